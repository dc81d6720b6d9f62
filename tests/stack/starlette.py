"""The HTTP API over a real socket: a fleet of callables, the application in a host, and a server in a thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.servers import free_port, until

from selfheal import ActionContext, Service, Supervisor
from selfheal.requests import Scope
from selfheal_starlette import limits, recovery_app
from selfheal_starlette.tokens import FILE, TokenFile

PREFIX: Final = "/api/recovery"

MANY: Final = limits.Rates(
    service=limits.Rate(count=1000, seconds=60.0),
    caller=limits.Rate(count=5000, seconds=60.0),
    failures=limits.Rate(count=100_000, seconds=60.0),
)
"""Rates that no test reaches, for those that are about something else."""


@attrs.define
class Fleet:
    """Three services that are what they are told to be, one of which can be cured, and a job that calls."""

    folder: Path
    well: dict[str, bool] = attrs.field(factory=lambda: {"database": True, "web": True, "mail": True})
    cured: list[str] = attrs.field(factory=list)

    def supervisor(self, *names: str, **options: Any) -> Supervisor:
        """Return a supervisor of it."""
        from selfheal.builtin.heartbeat import HeartbeatCheck

        common: dict[str, Any] = {"interval": 0.3, "recheck": 0.1, "min_failing_span": 0.2, "failure_threshold": 2}
        services = [
            Service("database", check=self._check("database"), recovery_actions=["reconnect"], **common),
            Service("web", check=self._check("web"), depends_on=["database"], recovery_actions=["reconnect"], **common),
            Service("mail", check=self._check("mail"), **common),
            Service("job", check=HeartbeatCheck(every=600.0, grace=60.0)),
        ]
        chosen = [one for one in services if not names or one.name in names]
        given: dict[str, Any] = {"journal": self.folder / "selfheal.db", "name": "shop", **options}
        supervisor = Supervisor(chosen, **given)
        for name in ("database", "web"):
            if not names or name in names:
                supervisor.action(name, "reconnect")(self._cure(name))
        return supervisor

    def _check(self, name: str) -> Callable[[], Any]:
        async def check() -> bool:
            return self.well[name]

        return check

    def _cure(self, name: str) -> Callable[[ActionContext], Any]:
        async def cure(context: ActionContext) -> None:
            self.cured.append(name)
            self.well[name] = True

        return cure


@attrs.frozen
class Served:
    """A server that runs, and a client that talks to it."""

    client: httpx2.Client
    port: int
    server: uvicorn.Server
    fleet: Fleet

    @property
    def base(self) -> str:
        """The address of the API."""
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    def get(self, path: str, **more: Any) -> httpx2.Response:
        """Ask, and return the response."""
        return self.client.get(f"{self.base}{path}", **more)

    def post(self, path: str, **more: Any) -> httpx2.Response:
        """Ask for an act, and return the response."""
        return self.client.post(f"{self.base}{path}", **more)

    def token(self, name: str, scope: str, services: Sequence[str] | None = None, **more: Any) -> dict[str, str]:
        """Make a token and return the headers that carry it, once the application knows it."""
        text, _ = TokenFile(self.fleet.folder / FILE).create(name, Scope(scope), services=services, **more)
        headers = {"Authorization": f"Bearer {text}"}
        if more.get("expires") is None:
            until(lambda: self.get("/status", headers=headers).status_code == 200, "the token is known")
        return headers


@contextmanager
def serving(app: Any, fleet: Fleet, **options: Any) -> Iterator[Served]:
    """Serve an application on a free port of loopback, in a thread, and stop it at the end."""
    port = free_port()
    given: dict[str, Any] = {"log_config": None, "timeout_graceful_shutdown": 5, "ws": "none", **options}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **given))
    thread = threading.Thread(target=server.run, name="the server of the test")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the server has started")
        assert server.started
        with httpx2.Client(timeout=20.0) as client:
            yield Served(client, port, server, fleet)
    finally:
        server.should_exit = True
        thread.join(15.0)
        assert not thread.is_alive()


@contextmanager
def api(folder: Path, *, supervisor: Supervisor | None = None, **options: Any) -> Iterator[Served]:
    """Serve the API of a fleet in a Starlette application; `options` are those of `recovery_app`."""
    fleet = Fleet(folder)
    supervisor = supervisor or fleet.supervisor()
    host = Starlette(routes=[Mount(PREFIX, app=recovery_app(supervisor, **options))], lifespan=supervisor.lifespan)
    with serving(host, fleet) as served:
        yield served


def settled(served: Served, **headers: str) -> None:
    """Wait until everything that is checked is well."""
    until(lambda: served.get("/status", headers=headers).json()["counts"]["healthy"] >= 3, "all are healthy")


class Based(Protocol):
    """Whatever has the address of an API."""

    @property
    def base(self) -> str: ...


@attrs.define
class Listener:
    """A client of the stream, in a thread: what it has heard so far, and whether the stream has ended."""

    served: Based
    path: str = "/events"
    headers: dict[str, str] = attrs.field(factory=dict)
    status: int = 0
    heard: list[dict[str, Any]] = attrs.field(factory=list)
    ids: list[int] = attrs.field(factory=list)
    comments: int = 0
    ended: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> Listener:
        """Begin to listen, and return when the stream is open or refused."""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        until(lambda: self.status, "the stream has answered")
        return self

    def _listen(self) -> None:
        try:
            with httpx2.Client(timeout=60.0) as client:
                with client.stream("GET", f"{self.served.base}{self.path}", headers=self.headers) as response:
                    self.status = response.status_code
                    for line in response.iter_lines():
                        self._take(line)
        except httpx2.TransportError:
            self.status = self.status or -1
        self.ended = True

    def _take(self, line: str) -> None:
        if line.startswith("data: "):
            self.heard.append(json.loads(line[6:]))
        elif line.startswith("id: "):
            self.ids.append(int(line[4:]))
        elif line.startswith(":"):
            self.comments += 1

    def until_ended(self, seconds: float = 10.0) -> None:
        """Wait until the stream has ended."""
        until(lambda: self.ended, "the stream has ended", seconds)
