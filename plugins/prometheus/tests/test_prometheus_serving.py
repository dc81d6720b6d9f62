"""The table `[prometheus]` over real sockets: what is answered to whom, and what cannot stop it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as of_text
from tests.servers import free_port

from selfheal import NotRunning, Service, Supervisor
from selfheal.config import configure
from selfheal.errors import ConfigurationError
from selfheal.metrics import CONTENT_TYPES
from selfheal.secret import Secret
from selfheal_prometheus import exposition, serving
from selfheal_prometheus.exposing import Asked
from selfheal_prometheus.serving import CONNECTIONS, HEAD, NotServed, Prometheus

pytestmark = pytest.mark.anyio

READ_OPENMETRICS: Callable[[str], Any] = read_openmetrics  # it has no annotations of its own

OPENMETRICS = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


class Stub:
    """Answers with what it was given; raises it, where it is an exception."""

    def __init__(self, answer: str | Exception = "things 1\n") -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    async def ask(self, name: str, **parameters: Any) -> str:
        self.asked.append({"name": name, **parameters})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@attrs.frozen
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes


@attrs.frozen
class Door:
    """Where something listens."""

    port: int

    async def send(self, said: bytes) -> bytes:
        """Send bytes and return all that comes back."""
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            await stream.send(said)
            heard = b""
            try:
                while True:
                    heard += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return heard

    async def opened(self) -> None:
        """Wait until it answers."""
        while True:
            with suppress(OSError):
                if await self.send(b"GET / HTTP/1.0\r\n\r\n"):
                    return
            await anyio.sleep(0.01)

    async def get(self, target: str = "/metrics", *headers: str, host: str = "", method: str = "GET") -> Answered:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}", *headers, "", ""]
        head, _, body = (await self.send("\r\n".join(lines).encode())).partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return Answered(
            int(first.split()[1]), {k.lower(): v for k, _, v in (one.partition(": ") for one in rest)}, body
        )


@asynccontextmanager
async def served(supervisor: Asked, **options: Any) -> AsyncIterator[Door]:
    """Serve for as long as the block lasts."""
    port = free_port()
    frontend = Prometheus(**{"listen": f"127.0.0.1:{port}", **options})
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(frontend.serve, supervisor)
            door = Door(port)
            await door.opened()
            yield door
            tasks.cancel_scope.cancel()


def quick(name: str, check: Any) -> Service:
    return Service(name, check=check, interval=0.2, recovery_actions=["reconnect"])


async def test_both_formats_say_the_same_and_are_what_their_own_readers_read() -> None:
    """The readers of prometheus_client refuse families without a type, samples twice, and labels badly escaped."""
    supervisor = Supervisor([quick("web", lambda: True), quick("mail", lambda: True)], journal=None)

    @supervisor.action("web", "reconnect")
    async def mend(context: Any) -> None: ...

    @supervisor.action("mail", "reconnect")
    async def mend_too(context: Any) -> None: ...

    async with supervisor, served(supervisor) as door:
        with anyio.fail_after(10.0):
            while (await door.get()).body.count(b"\nservice_uptime_percentage{") < 2:
                pass  # until both were seen up, and that is stored: no series comes after that
        plain, modern = await door.get(), await door.get("/metrics", OPENMETRICS)
    assert (plain.status, plain.headers["content-type"]) == (200, CONTENT_TYPES["text"])
    assert (modern.status, modern.headers["content-type"]) == (200, CONTENT_TYPES["openmetrics"])

    def told(families: Any) -> dict[str, tuple[str, str, set[Any]]]:
        found = list(families)
        assert len({one.name for one in found}) == len(found)
        return {
            one.name: (one.type, one.documentation, {(s.name, tuple(sorted(s.labels.items()))) for s in one.samples})
            for one in found
        }

    text, openmetrics = told(of_text(plain.body.decode())), told(READ_OPENMETRICS(modern.body.decode()))
    assert text == openmetrics
    assert {"recovery_attempts", "recovery_duration_seconds", "service_health_status", "selfheal_running"} <= set(text)
    assert len(text["service_health_status"][2]) == 2 * 7
    assert text["recovery_attempts"][2] == {
        ("recovery_attempts_total", (("action", "reconnect"), ("result", result), ("service", service)))
        for service in ("web", "mail")
        for result in ("success", "failure")
    }


async def test_one_function_answers_for_whoever_has_a_route_of_his_own() -> None:
    stub = Stub()
    assert await exposition(stub) == (CONTENT_TYPES["text"], b"things 1\n")
    assert (await exposition(stub, OPENMETRICS.partition(" ")[2]))[0] == CONTENT_TYPES["openmetrics"]
    assert stub.asked == [{"name": "metrics", "format": "text"}, {"name": "metrics", "format": "openmetrics"}]


async def test_only_the_metrics_are_there_and_they_are_only_read() -> None:
    stub = Stub()
    async with served(stub) as door:
        assert (await door.get("/metrics?name[]=x")).status == 200
        headed = await door.get(method="HEAD")
        assert (headed.status, headed.headers["content-length"], headed.body) == (200, "9", b"")
        assert (await door.get(method="DELETE")).status == 405
        lost = await door.get("/")
        assert (lost.status, lost.body) == (404, b"the metrics of selfheal are at /metrics\n")
        assert lost.headers["x-content-type-options"] == "nosniff"
    async with served(stub, path="/elsewhere") as door:
        assert (await door.get()).status == 404
        assert (await door.get("/elsewhere")).status == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("", 401),
        ("Authorization: Bearer wrong", 401),
        ("Authorization: Basic a long word", 401),
        ("Authorization: Bearer", 401),
        ("Authorization: Bearer a long wordé", 401),
        ("Authorization: bearer a long word", 200),
    ],
)
async def test_with_a_token_nothing_is_told_without_it(authorization: str, status: int) -> None:
    stub = Stub()
    async with served(stub, token=Secret("a long word\n")) as door:
        answer = await door.get("/metrics", *filter(None, [authorization]))
        assert answer.status == status
        assert bool(stub.asked) == (status == 200)
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert (await door.get("/other", *filter(None, [authorization]))).status == (404 if status == 200 else 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9464", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:9464", 200),
        ("[::1]", 200),
        ("rebound.example:9464", 421),
        ("localhost.rebound.example", 421),
    ],
)
async def test_a_web_page_cannot_read_loopback_under_a_name_of_its_own(host: str, status: int) -> None:
    async with served(Stub()) as door:
        assert (await door.get(host=host)).status == status
    async with served(Stub(), anyone=True) as door:
        assert (await door.get(host=host)).status == 200


@pytest.mark.parametrize(
    "problem", [NotRunning("it is /not/ running"), ZeroDivisionError("line 17 of /etc/secret"), TimeoutError()]
)
async def test_a_supervisor_that_cannot_answer_is_a_503_that_tells_nothing_of_our_inside(problem: Exception) -> None:
    stub = Stub(problem)
    async with served(stub) as door:
        answer = await door.get()
        assert (answer.status, answer.body) == (503, b"selfheal does not answer; its log says more\n")
        stub.answer = "things 2\n"
        assert (await door.get()).body == b"things 2\n"


async def test_a_token_that_cannot_be_read_lets_nobody_in() -> None:
    def gone() -> str:
        raise FileNotFoundError("/run/secrets/scrape")

    stub = Stub()
    async with served(stub, token=Secret(gone)) as door:
        assert (await door.get("/metrics", "Authorization: Bearer x")).status == 503
    assert not stub.asked


async def test_nonsense_ends_its_own_connection_only() -> None:
    async with served(Stub()) as door:
        for said in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            assert (await door.send(said)).startswith(b"HTTP/1.1 400 ")
        assert b" 431 " in (await door.send(b"GET / HTTP/1.1\r\nA: " + b"x" * (2 * HEAD)))[:20]
        silent = [await anyio.connect_tcp("127.0.0.1", door.port) for _ in range(CONNECTIONS - 1)]
        assert (await door.get()).status == 200, "the last slot"
        one_more = await anyio.connect_tcp("127.0.0.1", door.port)
        assert await door.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n") == b"", "closed at once"
        for stream in (*silent, one_more):
            await stream.aclose()
        await door.opened()


async def test_who_connects_and_says_nothing_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE", 0.2)
    async with served(Stub()) as door:
        assert await door.send(b"GET /metrics HTTP/1.1\r\n") == b""
        assert (await door.get()).status == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "metrics.example:0"])
async def test_other_machines_are_let_in_only_on_purpose(listen: str) -> None:
    with anyio.fail_after(5), pytest.raises(NotServed, match="can be reached from other machines"):
        await Prometheus(listen=listen.replace(":0", ":9464")).serve(Stub())


# An old anyio leaves the socket that it could not bind to the collector.
@pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_address_that_is_taken_is_named_once_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "OPENED", 0.05)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                tasks.start_soon(Prometheus(listen=f"127.0.0.1:{port}").serve, Stub())
                await anyio.sleep(0.3)  # time for several tries
            await Door(port).opened()
            assert (await Door(port).get()).status == 200
            tasks.cancel_scope.cancel()
    assert caplog.text.count(f"cannot listen at 127.0.0.1:{port}: Address already in use") == 1


async def test_the_file_names_it_and_a_mistake_in_it_is_explained(tmp_path: Path) -> None:
    found = configure({"prometheus": {"listen": "[::1]:9464", "token": {"env": "SCRAPE_TOKEN"}}})
    assert found.frontends["prometheus"].listen == "[::1]:9464"
    assert isinstance(found.frontends["prometheus"].token, Secret)
    assert configure({"prometheus": {}}).frontends["prometheus"] == Prometheus()
    for wrong in ({"listen": "9464"}, {"listen": "/run/x.sock"}, {"path": "metrics"}, {"path": "/a?b"}, {"anyone": 3}):
        with pytest.raises(ConfigurationError) as refused:
            configure({"prometheus": wrong})
        assert f"prometheus.{next(iter(wrong))}" in str(refused.value)
