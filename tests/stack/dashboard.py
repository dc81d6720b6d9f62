"""A small shop of real processes behind the real API and its dashboard, on a server in a thread."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.servers import free_port, until
from tests.stack.starlette import MANY, PREFIX

from selfheal import Backoff, Service, Supervisor
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.process_check import ProcessCheck
from selfheal.requests import Scope
from selfheal_starlette import recovery_app
from selfheal_starlette.tokens import FILE, TokenFile

QUICK: Final[dict[str, Any]] = {
    "interval": 0.5,
    "recheck": 0.4,
    "jitter": 0.0,
    "min_failing_span": 1.0,
    "definite_span": 1.0,
    "failure_threshold": 3,
    "probation": 2.0,
    "dependent_grace": 1.0,
    "start_grace": 0.0,
    "backoff": Backoff(initial=1.0, cap=2.0, jitter=0.0),
}
"""A detection that takes a second or two, so that a person, or a test, sees every state go by."""


@attrs.define
class Shop:
    """Services that are processes of this machine, what depends on what, and how to hurt them."""

    folder: Path

    def service(self, name: str, *needs: Any, **options: Any) -> Service:
        """Return a service whose master keeps one worker, which dies alone: that is seen by checks and not heard.

        While it is broken a start brings no worker.
        """
        worker = f"test -e {self._broken(name)} || {{ sleep 1000 & echo $! >{self._pid_file(name)}; }}"
        workload = ProcessWorkload(
            command=("/bin/sh", "-c", f"{worker}; exec sleep 1000"),
            environment={"SHOP_SERVICE": self._mark(name)},
            state_directory=self.folder,
            stop_timeout=1.0,
        )
        check = ProcessCheck(pid_file=self._pid_file(name))
        given = {"recovery_actions": [{"action": "restart", "settle": 0.5}], **QUICK, **options}
        return Service(name, check=check, workload=workload, depends_on=list(needs), **given)

    def _pid_file(self, name: str) -> Path:
        return self.folder / f"{name}.pid"

    def _broken(self, name: str) -> Path:
        return self.folder / f"{name}.broken"

    def _mark(self, name: str) -> str:
        return f"{self.folder.name}-{name}"

    def pids(self, name: str) -> list[int]:
        """Return the processes of a service."""
        found = []
        mark = f"SHOP_SERVICE={self._mark(name)}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def kill(self, name: str) -> None:
        """Kill the worker of a service."""
        os.kill(int(self._pid_file(name).read_text()), signal.SIGKILL)

    def break_(self, name: str) -> None:
        """Kill a service, and let its next starts fail."""
        self._broken(name).touch()
        self.kill(name)

    def mend(self, name: str) -> None:
        """Let it start again."""
        self._broken(name).unlink(missing_ok=True)

    def end(self, *names: str) -> None:
        """Kill whatever is left of them."""
        for name in names:
            for pid in self.pids(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def token(self, name: str, scope: str, services: list[str] | None = None) -> str:
        """Make a token and return it."""
        text, _ = TokenFile(self.folder / FILE).create(name, Scope(scope), services=services)
        return text


@attrs.frozen
class Site:
    """A server that runs: where its page is."""

    port: int
    prefix: str

    @property
    def api(self) -> str:
        """The address of the API."""
        return f"http://127.0.0.1:{self.port}{self.prefix}/"

    @property
    def page(self) -> str:
        """The address of the page."""
        return f"{self.api}dashboard/"


@contextmanager
def open_site(supervisor: Supervisor, *, port: int = 0, prefix: str = PREFIX, **options: Any) -> Iterator[Site]:
    """Serve the API of a supervisor and its page, and stop at the end. `options` are those of `recovery_app`."""
    port = port or free_port()
    given: dict[str, Any] = {"loopback_writes": True, "rates": MANY, **options}
    app = Starlette(routes=[Mount(prefix, app=recovery_app(supervisor, **given))], lifespan=supervisor.lifespan)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, ws="none", timeout_graceful_shutdown=2, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="the site of the test")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the server has started")
        assert server.started
        yield Site(port, prefix)
    finally:
        server.should_exit = True
        thread.join(15.0)
        assert not thread.is_alive()
