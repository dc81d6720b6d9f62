"""Plugins at the command line: frontends that `selfheal run` serves, commands of their own, observers."""

from __future__ import annotations

import json
import os
import signal

import pytest
from tests.cli.conftest import PATIENCE, House, wait_for

pytestmark = pytest.mark.real_time

DOORS = '''
import json
from pathlib import Path
from typing import ClassVar

import anyio
import attrs
import click

from selfheal.hookspecs import STATE_DIR, hookimpl


@attrs.frozen(kw_only=True)
class Notebook:
    """Writes the status into a file, again and again."""

    kind: ClassVar[str] = "notebook"
    path: str

    async def serve(self, supervisor):
        while True:
            answer = await supervisor.ask("status")
            Path(self.path).write_text(json.dumps(answer["counts"]))
            await anyio.sleep(0.1)


@attrs.frozen(kw_only=True)
class Broken:
    """Fails at once."""

    kind: ClassVar[str] = "http"
    listen: str

    async def serve(self, supervisor):
        raise OSError(f"{self.listen} is taken")


@click.command("wave")
def wave():
    """Wave from a plugin."""
    click.echo("hello from a plugin")


@hookimpl
def selfheal_register_frontends():
    return [Notebook, Broken]


@click.command("where")
def where():
    """Say which state_dir is meant."""
    click.echo(click.get_current_context().meta[STATE_DIR]())


@hookimpl
def selfheal_register_commands():
    return [wave, where]
'''


@pytest.fixture
def doors(house: House) -> House:
    """A house in whose Python a distribution with frontends is installed."""
    site = house.folder / "site"
    info = site / "doors-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "doors.py").write_text(DOORS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[selfheal]\ndoors = doors\n")
    house.more["PYTHONPATH"] = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return house


def test_a_frontend_is_served_with_the_running_supervisor(doors: House) -> None:
    notebook = doors.folder / "counts.json"
    doors.write(f'\n[notebook]\npath = "{notebook}"\n')
    child = doors.start()
    wait_for(lambda: notebook.exists() and json.loads(notebook.read_text() or "{}").get("healthy") == 2)
    child.send_signal(signal.SIGTERM)
    assert child.wait(PATIENCE) == 0
    assert "Traceback" not in doors.log()


def test_a_frontend_that_fails_is_named_and_everything_goes_on(doors: House) -> None:
    doors.write(fleet='plugins = ["doors"]')
    doors.start("--http", "127.0.0.1:80")
    doors.settled()
    assert "the frontend [http] failed; everything else goes on" in doors.log()
    assert "127.0.0.1:80 is taken" in doors.log()


def test_commands_of_plugins_are_found_and_listed_apart(doors: House) -> None:
    assert doors.run("wave").stdout == "hello from a plugin\n"
    assert "Commands of plugins:\n  wave" in doors.run("--help").stdout
    assert "frontend notebook" in doors.run("plugins").stdout


def test_a_command_of_a_plugin_is_told_which_state_dir_is_meant(doors: House) -> None:
    assert doors.run("where").stdout == f"{doors.state}\n"
