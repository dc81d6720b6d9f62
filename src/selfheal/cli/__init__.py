"""The command line: `selfheal`. Owns the group, its one global option, and the exit codes.

    0  done
    1  looked, and something is wrong: a check fails, a journal was changed
    2  what was written cannot be used: the command line, or a file
    3  refused: by the engine, or because another process holds the journal
    4  nobody to ask: no selfheal runs here, and no journal answers instead
    5  done, but not stored: an act is in force only until this selfheal ends, for its journal cannot be written

Commands are imported when they are called, so that a heartbeat from a cron job costs no more than it must.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from selfheal.errors import (
    ConfigurationError,
    ControlError,
    JournalError,
    JournalHeld,
    NotRunning,
    PluginError,
    RequestRefused,
    SelfhealError,
)
from selfheal.hookspecs import STATE_DIR

COMMANDS: Final = {
    "run": "hosting",
    "check": "hosting",
    "doctor": "hosting",
    "config": "hosting",
    "plugins": "hosting",
    "demo": "hosting",
    "status": "asking",
    "service": "asking",
    "explain": "asking",
    "incidents": "asking",
    "incident": "asking",
    "history": "asking",
    "results": "asking",
    "alerts": "asking",
    "approvals": "asking",
    "suppressions": "asking",
    "statistics": "asking",
    "graph": "asking",
    "health": "asking",
    "metrics": "asking",
    "audit": "auditing",
    "recover": "acting",
    "initialize": "acting",
    "enable": "acting",
    "disable": "acting",
    "pause": "acting",
    "resume": "acting",
    "maintenance": "acting",
    "silence": "acting",
    "lift": "acting",
    "approve": "acting",
    "refuse": "acting",
    "ack": "acting",
    "release": "acting",
    "heartbeat": "acting",
}
"""Every command, and the module it lives in under its own name."""

CODES: Final = (
    (ConfigurationError, 2),
    (PluginError, 2),
    (RequestRefused, 3),
    (JournalHeld, 3),
    (ControlError, 4),
    (JournalError, 4),
    (NotRunning, 4),
)


class Commands(click.Group):
    """The group: imports a command when it is wanted, and asks plugins for one that is not ours."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of our own commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name."""
        if cmd_name in COMMANDS:
            found: click.Command = getattr(import_module(f"selfheal.cli.{COMMANDS[cmd_name]}"), cmd_name)
            return found
        return next((command for command in _of_plugins() if command.name == cmd_name), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, and those of plugins below."""
        super().format_commands(ctx, formatter)
        if rows := [(str(command.name), command.get_short_help_str()) for command in _of_plugins()]:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what selfheal raises becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except SelfhealError as problem:
            complain(str(problem))
            ctx.exit(next((code for kind, code in CODES if isinstance(problem, kind)), 1))


def complain(message: str) -> None:
    """Print what is wrong to standard error, line by line, without what could move a cursor."""
    from selfheal.words import clean

    for line in message.splitlines() or ["it failed, and does not say why"]:
        click.echo(f"selfheal: {clean(line)}", err=True)


def _of_plugins() -> list[click.Command]:
    from selfheal.loading import load_plugins

    return [command for command in load_plugins().commands if isinstance(command, click.Command)]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar="SELFHEAL_STATE_DIR",
    help="The folder of the journal and the control socket; also SELFHEAL_STATE_DIR. Without it, the usual place.",
)
@click.version_option(package_name="selfheal-core", message="selfheal %(version)s")
@click.pass_context
def main(ctx: click.Context, state_dir: Path | None) -> None:
    """Watch services, repair what has really failed, and say why."""
    ctx.obj = state_dir
    ctx.meta[STATE_DIR] = partial(_state_dir, state_dir)


def _state_dir(named: Path | None) -> Path:
    from selfheal.cli.asked import home

    return home(named).folder
