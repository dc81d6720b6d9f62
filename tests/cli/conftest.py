"""A real daemon as a child, with a fleet of real programs in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from selfheal.cli import main
from selfheal.control import Question, alive, call
from selfheal.errors import ControlError

PATIENCE = 20.0
"""Seconds within which everything here happens, on a busy machine too."""


def wait_for(what: Callable[[], Any], *, within: float = PATIENCE) -> Any:
    """Return the first true value of a condition."""
    deadline = time.monotonic() + within
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class House:
    """A folder with a configuration file, a `state_dir`, and whoever runs there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "fleet.toml"
        self.state = folder / "state"
        self.web, self.shop = free_port(), free_port()
        self.children: list[subprocess.Popen[bytes]] = []
        self.more: dict[str, str] = {}
        self.write()

    @property
    def environment(self) -> dict[str, str]:
        """What the children are given: on a broken build, which one it is."""
        passed = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        return {**passed, "PYTHONUNBUFFERED": "1", **self.more}

    def write(self, more: str = "", *, fleet: str = "") -> None:
        """Write the file: two programs, one of which needs the other, and a job that calls."""

        def program(port: int) -> str:
            command = json.dumps([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)])
            return (
                f'check = {{ kind = "tcp", address = "127.0.0.1:{port}" }}\n'
                f'workload = {{ kind = "process", command = {command} }}\n'
                'recovery_actions = [{ action = "restart", settle = 0.5 }]\n'
            )

        self.file.write_text(
            f'[fleet]\nstate_dir = "state"\ninterval = "500ms"\nrecheck = "200ms"\nmin_failing_span = "500ms"\n'
            f'definite_span = "200ms"\n{fleet}\n'
            f"[services.web]\n{program(self.web)}\n"
            f'[services.shop]\n{program(self.shop)}depends_on = ["web"]\n\n'
            '[services.job]\ncheck = { kind = "heartbeat", every = "10m", grace = "2m" }\n'
            f"{more}"
        )

    # -- who runs ----------------------------------------------------------------------------------------------------

    def start(self, *options: str, ready: bool = True, **environment: str) -> subprocess.Popen[bytes]:
        """Start `selfheal run`, and wait until it answers."""
        log = (self.folder / "log").open("ab")
        with log:
            child = subprocess.Popen(
                [sys.executable, "-m", "selfheal", "run", str(self.file), *options],
                stderr=log,
                env={**self.environment, **environment},
            )
        self.children.append(child)
        if ready:
            wait_for(lambda: alive(self.state / "control.sock") or child.poll() is not None)
            assert child.poll() is None, self.log()
        return child

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def end(self) -> None:
        """Stop everybody, and the programs of a daemon that was killed."""
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdout, child.stderr):
                if pipe is not None:
                    pipe.close()
        for port in (self.web, self.shop):
            for pid in self.programs(port):
                os.kill(pid, signal.SIGKILL)

    @staticmethod
    def programs(port: int) -> list[int]:
        """Return the processes that serve a port of ours."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"http.server" in words and str(port).encode() in words:
                found.append(int(path.parent.name))
        return found

    # -- asking ------------------------------------------------------------------------------------------------------

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        environment = {**self.environment, **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-m", "selfheal", "--state-dir", str(self.state), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
            **options,
        )

    def ask(self, *arguments: str) -> Any:
        """Return the JSON of a command that must succeed. It runs in this process: a test asks often."""
        done = invoked("--state-dir", self.state, *arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def state_of(self, service: str) -> str:
        lines = call(self.state / "control.sock", Question(request="status"))["services"]
        return next(str(line["state"]) for line in lines if line["service"] == service)

    def settled(self) -> None:
        """Wait until the programs are well."""
        wait_for(lambda: self._state_or_nobody("web") == self._state_or_nobody("shop") == "healthy")

    def _state_or_nobody(self, service: str) -> str:
        try:
            return self.state_of(service)
        except ControlError:
            return ""

    def break_(self, port: int) -> int:
        """Kill a program as a crash would, and return what its pid was."""
        (pid,) = wait_for(lambda: self.programs(port))
        os.kill(pid, signal.SIGKILL)
        return int(pid)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house nobody lives in yet."""
    found = House(tmp_path)
    try:
        yield found
    finally:
        found.end()


def invoked(*arguments: object, **options: Any) -> Result:
    # Before click 8.2 the two streams are only apart when that is asked for; since then they always are.
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(main, [str(argument) for argument in arguments], **options)
