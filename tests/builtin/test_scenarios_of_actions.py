"""The scenarios of caches and standbys, each on the real thing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.broken import fails_when
from tests.servers import free_port, until

from selfheal import Service, Supervisor
from selfheal.builtin.cache_directory import CacheDirectory
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.standby import Standby
from selfheal.builtin.wire_checks import HttpCheck, TcpCheck
from selfheal.core.model import Run
from selfheal.errors import RequestRefused
from selfheal.shell.contexts import Act, Contexts
from selfheal.testing import servers

pytestmark = pytest.mark.real_time

SERVES = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
QUICK: dict[str, Any] = {
    "interval": 0.5,
    "timeout": 0.4,
    "recheck": 0.1,
    "failure_threshold": 1,
    "min_failing_span": 0.0,
    "start_grace": 0.0,
}


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False


class Front:
    """Where the clients go: a proxy that leads to one of two servers."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, client: socket.socket, stop: threading.Event) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as server:
            server.sendall(client.recv(65536))
            while data := server.recv(65536):
                client.sendall(data)


class Pair:
    """A server, its standby, and the way to them."""

    def __init__(self, folder: Path) -> None:
        self.ports = (free_port(), free_port())
        self.old, self.new = (self._program(folder / name, self.ports[n]) for n, name in enumerate(("old", "new")))
        self.front = Front(self.ports[0])

    @staticmethod
    def _program(folder: Path, port: int) -> ProcessWorkload:
        command = (sys.executable, "-S", "-E", "-c", SERVES, str(port))
        return ProcessWorkload(
            command=command,
            state_directory=folder,
            output=Path("/dev/null"),
            stop_timeout=2.0,
            stop_with_selfheal=False,
        )

    def do(self, workload: ProcessWorkload, verb: str) -> Any:
        name = "api" if workload is self.old else "api standby"

        async def body() -> Any:
            context = Contexts().for_action(name, workload, 20.0, Act(key="by-hand"))
            return await getattr(workload, verb)(context)

        return asyncio.run(body())

    def runs(self, workload: ProcessWorkload) -> Run:
        found: Run = self.do(workload, "inspect").run
        return found

    def pid(self) -> int:
        return int(self.do(self.old, "inspect").id.partition(":")[0])


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Pair, str]]:
    pair = Pair(folder)
    pair.do(pair.old, "start")
    until(lambda: _answers(pair.ports[0]), "the old one serves")
    try:
        with servers.serve(pair.front) as address:
            yield pair, address
    finally:
        with suppress(ProcessLookupError, ValueError):  # it may have ended, or never have begun
            os.kill(pair.pid(), signal.SIGCONT)
        for workload in (pair.old, pair.new):
            pair.do(workload, "stop")


async def until_state(supervisor: Supervisor, name: str, *states: str, within: float = 15.0) -> str:
    with anyio.fail_after(within):
        while True:
            state = str((await supervisor.ask("service", service=name))["state"])
            if state in states:
                return state
            await anyio.sleep(0.02)


# -- S32 -------------------------------------------------------------------------------------------------------------


def failover(pair: Pair, address: str, *, moves: bool) -> str:
    """Kill the old one, let the standby take over, and return what is said of the service when that is done."""
    step = {"action": "failover", "standby": Standby(workload=pair.new), "settle": 0.1}
    check = HttpCheck(url=f"http://{address}/")
    service = Service("api", check=check, workload=pair.old, recovery_actions=[step], max_retries=1, **QUICK)

    async def body() -> str:
        async with Supervisor([service], journal=None) as supervisor:
            await until_state(supervisor, "api", "healthy")
            os.kill(await anyio.to_thread.run_sync(pair.pid), signal.SIGKILL)
            with anyio.fail_after(15.0):
                while not _answers(pair.ports[1]):  # noqa: ASYNC110  # a program sets no event
                    await anyio.sleep(0.05)
            if moves:
                pair.front.port = pair.ports[1]
            return await until_state(supervisor, "api", "healthy") if moves else await _for_a_while(supervisor)

    return anyio.run(body)


async def _for_a_while(supervisor: Supervisor) -> str:
    """Return what was ever said of it within the time in which checks would have said that it is well again."""
    await anyio.sleep(2.0)
    history = await supervisor.ask("history", service="api")
    moves = [one["to"] for one in reversed(history) if one["kind"] == "moved"]
    return "healthy" if "healthy" in moves[moves.index("failed") :] else "failed"


@fails_when("what an action has done has helped")
def test_s32_a_failover_succeeds_only_when_the_traffic_has_moved(tmp_path: Path) -> None:
    with serving(tmp_path / "moved") as (pair, address):
        assert failover(pair, address, moves=True) == "healthy"
    with serving(tmp_path / "not") as (pair, address):
        assert failover(pair, address, moves=False) != "healthy"
        assert pair.runs(pair.new) is Run.RUNNING


@fails_when("a standby is started without a fence")
def test_s32_what_is_not_down_for_certain_is_not_failed_over_from(tmp_path: Path) -> None:
    """The old one is frozen: it answers nobody, and would write on when it thaws."""
    with serving(tmp_path) as (pair, address):
        os.kill(pair.pid(), signal.SIGSTOP)
        step = {"action": "failover", "standby": Standby(workload=pair.new), "settle": 0.1}
        check = HttpCheck(url=f"http://{address}/")
        service = Service("api", check=check, workload=pair.old, recovery_actions=[step], max_retries=1, **QUICK)

        async def body() -> None:
            async with Supervisor([service], journal=None) as supervisor:
                with anyio.fail_after(15.0):
                    while True:
                        with suppress(RequestRefused):  # nothing is on record of it yet
                            history = await supervisor.ask("history", service="api")
                            if any(record.get("kind") == "ended" for record in _records(history)):
                                return
                        await anyio.sleep(0.05)

        anyio.run(body)
        assert pair.runs(pair.new) is not Run.RUNNING, "both run"


def _records(answer: Any) -> list[dict[str, Any]]:
    return list(answer["records"]) if isinstance(answer, dict) else list(answer)


# -- S27 and S29 -----------------------------------------------------------------------------------------------------


def cache(folder: Path) -> Path:
    (folder / "caches" / "thumbs").mkdir(parents=True)
    (folder / "caches" / "thumbs" / "one").write_text("x")
    (folder / "precious").mkdir()
    (folder / "precious" / "ledger").write_text("x")
    return folder / "caches"


@fails_when("emptying a cache is gentle")
def test_s27_a_cache_is_not_emptied_before_somebody_has_said_so(tmp_path: Path) -> None:
    root = cache(tmp_path)
    service = Service(
        "thumbs",
        check=TcpCheck(address="127.0.0.1:9"),
        recovery_actions=[CacheDirectory(path="thumbs", root=root)],
        **QUICK,
    )

    async def body() -> None:
        async with Supervisor([service], journal=None) as supervisor:
            with anyio.fail_after(15.0):
                while "approval" not in str((await supervisor.ask("service", service="thumbs")).get("reason")):
                    assert (root / "thumbs" / "one").exists(), "emptied, and nobody was asked"
                    await anyio.sleep(0.02)
            assert (root / "thumbs" / "one").exists(), "emptied, and nobody was asked"
            (asked,) = _records(await supervisor.ask("approvals"))
            await supervisor.act("approve", service="thumbs", actor="ann", reason="it is a cache")
            assert asked
            with anyio.fail_after(15.0):
                while (root / "thumbs" / "one").exists():  # noqa: ASYNC110  # a file sets no event
                    await anyio.sleep(0.02)

    anyio.run(body)


@fails_when("links are followed")
def test_s29_what_is_configured_never_leads_out_of_its_root(tmp_path: Path) -> None:
    root = cache(tmp_path)
    (root / "link").symlink_to(tmp_path / "precious")
    (root / "thumbs" / "link").symlink_to(tmp_path / "precious")
    for path in ("link", "link/.", "../precious", "thumbs/../../precious", str(tmp_path / "precious"), "thumbs"):

        async def body(path: str = path) -> None:
            with suppress(Exception):
                action = CacheDirectory(path=path, root=root)
                await action.run(Contexts().for_action("thumbs", action, 5.0, Act(key="1/thumbs/1/0")))

        asyncio.run(body())
        assert (tmp_path / "precious" / "ledger").exists(), f"by way of {path!r}"
    assert not (root / "thumbs" / "one").exists()
