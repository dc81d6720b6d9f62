"""The table `[http]`: `selfheal run` serves the API, whatever loop it runs on, and refuses what would be unsafe."""

from __future__ import annotations

import concurrent.futures
import contextlib
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import httpx2
import pytest
import trustme
from tests.cli.conftest import PATIENCE, House, wait_for
from tests.servers import free_port
from tests.stack.starlette import PREFIX, Fleet, Listener

from selfheal import Supervisor
from selfheal.config import configure
from selfheal.errors import ConfigurationError, NotRunning
from selfheal.requests import Scope
from selfheal_starlette import recovery_app, serving
from selfheal_starlette.serving import Http, ServedTls
from selfheal_starlette.supervised import Across
from selfheal_starlette.tokens import FILE, TokenFile

pytestmark = pytest.mark.real_time


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.end()


@attrs.frozen
class Door:
    """The API of a daemon."""

    port: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(f"{self.base}{path}", timeout=10.0, **more)

    def post(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.post(f"{self.base}{path}", timeout=10.0, **more)

    def open(self) -> bool:
        try:
            return self.get("/health").status_code == 200
        except httpx2.TransportError:
            return False


async def served(frontend: Http, supervisor: Supervisor, visit: Callable[[], object]) -> None:
    """Serve a supervisor for as long as a visit, in a thread, takes."""
    async with supervisor, anyio.create_task_group() as tasks:
        tasks.start_soon(frontend.serve, supervisor)
        await anyio.to_thread.run_sync(visit)
        tasks.cancel_scope.cancel()


def test_the_lines_of_the_specification_work_on_loopback(house: House) -> None:
    """Its reads as they are, its writes with `loopback_writes`; what was done over HTTP is seen at the command line."""
    door = Door(free_port())
    house.write(f'\n[http]\nlisten = "127.0.0.1:{door.port}"\nloopback_writes = true\n')
    house.start()
    wait_for(door.open)
    house.settled()
    for path in ("/status", "/services", "/services/web", "/statistics", "/health", "/alerts?severity=high&limit=10"):
        assert door.get(path).status_code == 200, path
    assert door.get("/metrics").status_code == 200
    for path in ("/services/web/disable", "/services/web/enable", "/services/web/initialize"):
        assert door.post(path).status_code == 200, path
    assert door.post("/services/web/recover", json={"service_name": "web", "reason": "slow"}).status_code in (200, 409)
    assert door.post("/services/job/heartbeat").status_code == 204
    (enabled, *_) = [one for one in house.ask("audit") if one["action"] == "enable"]
    assert enabled["actor"] == "loopback at 127.0.0.1"


def test_who_types_the_address_alone_comes_to_the_page_and_the_log_has_the_whole_of_it(house: House) -> None:
    door = Door(free_port())
    house.write(f'\n[http]\nlisten = "127.0.0.1:{door.port}"\n')
    house.start()
    wait_for(door.open)
    page = httpx2.get(f"http://127.0.0.1:{door.port}/", timeout=10.0, follow_redirects=True)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert str(page.url) == f"{door.base}/dashboard/"
    assert f"the API and its page are at {door.base}/" in house.log()
    beside = httpx2.get(f"http://127.0.0.1:{door.port}/elsewhere", timeout=10.0)
    assert (beside.status_code, beside.headers["content-type"]) == (404, "application/problem+json")
    assert f"the API is at {PREFIX}" in beside.json()["detail"]
    assert beside.headers["x-content-type-options"] == "nosniff"


def test_the_option_of_the_command_line_serves_and_a_revoked_token_is_one_no_more(house: House) -> None:
    door = Door(free_port())
    house.start("--http", f"127.0.0.1:{door.port}")
    wait_for(door.open)
    assert door.post("/services/web/disable").status_code == 401
    text = house.run("token", "create", "ann", "--scope", "operate").stdout.strip()
    headers = {"Authorization": f"Bearer {text}"}
    wait_for(lambda: door.get("/status", headers=headers).status_code == 200)
    assert door.post("/services/web/disable", headers=headers).status_code == 200
    id_ = house.run("token", "list").stdout.split()[0]
    house.run("token", "revoke", id_)
    wait_for(lambda: door.get("/status", headers=headers).status_code == 401, within=2.0)
    assert text not in house.log()


def test_a_daemon_with_open_streams_stops_in_time(house: House) -> None:
    door = Door(free_port())
    child = house.start("--http", f"127.0.0.1:{door.port}")
    wait_for(door.open)
    listeners = [Listener(door).start() for _ in range(5)]
    assert [one.status for one in listeners] == [200] * 5
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    wait_for(lambda: all(one.ended for one in listeners))
    ended = time.monotonic() - began  # the streams and the server; how long the fleet's programs take is theirs
    assert child.wait(PATIENCE) == 0
    assert ended < 2.0
    assert "Traceback" not in house.log(), house.log()[-3000:]


def test_an_address_that_others_reach_needs_a_token(house: House) -> None:
    port = free_port()
    house.start("--http", f"0.0.0.0:{port}")
    wait_for(lambda: "can be reached from other machines" in house.log())
    assert "selfheal token create NAME --scope read" in house.log()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    house.settled()
    text = house.run("token", "create", "ann", "--scope", "read").stdout.strip()
    door = Door(port)
    wait_for(door.open)
    assert door.get("/status").status_code == 401
    assert door.get("/status", headers={"Authorization": f"Bearer {text}"}).status_code == 200
    assert "Traceback" not in house.log()


def test_with_a_token_it_listens_everywhere_and_warns_that_it_is_read_along(house: House) -> None:
    door = Door(free_port())
    text, _ = TokenFile(house.state / FILE).create("ann", Scope.READ)
    house.start("--http", f"0.0.0.0:{door.port}")
    wait_for(door.open)
    assert door.get("/status").status_code == 401
    headers = {"Authorization": f"Bearer {text}", "Host": "recovery.example"}
    assert door.get("/status", headers=headers).status_code == 200
    assert "unencrypted" in house.log()


def test_a_port_that_is_taken_is_said_and_waited_for_and_the_fleet_is_watched_all_the_same(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        house.start("--http", f"127.0.0.1:{port}")
        wait_for(lambda: f"cannot listen at 127.0.0.1:{port}: Address already in use" in house.log())
        house.settled()
    wait_for(Door(port).open)
    assert house.log().count("Address already in use") == 1


@pytest.mark.anyio
async def test_it_is_served_beside_a_supervisor_on_either_loop_and_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    door = Door(free_port())
    supervisor = Fleet(tmp_path).supervisor()
    frontend = Http(listen=f"127.0.0.1:{door.port}", loopback_writes=True)
    async with supervisor, anyio.create_task_group() as tasks:
        tasks.start_soon(frontend.serve, supervisor)

        def visit() -> list[int]:
            wait_for(door.open)
            wait_for(lambda: door.get("/status").json()["counts"]["healthy"] >= 3)
            with httpx2.stream("GET", f"http://127.0.0.1:{door.port}{PREFIX}/events", timeout=10.0) as stream:
                done = door.post("/services/mail/disable", json={"reason": "from another thread"})
                lines = stream.iter_lines()
                assert next(line for line in lines if "from another thread" in line)
            return [done.status_code, door.get("/services/nobody").status_code, door.get("/records").status_code]

        assert await anyio.to_thread.run_sync(visit) == [200, 404, 200]
        began = time.monotonic()
        tasks.cancel_scope.cancel()
    assert time.monotonic() - began < 8.0
    assert not door.open()


@pytest.mark.anyio
async def test_a_server_that_is_busy_delays_no_check(tmp_path: Path) -> None:
    """Its loop is blocked outright; the supervisor's turns on."""
    door = Door(free_port())
    supervisor = Fleet(tmp_path).supervisor()

    class Slow(Http):
        def _app(self, supervised: Across) -> Any:
            async def blocking(request: object) -> None:
                time.sleep(1.5)  # noqa: ASYNC251  # that is the subject

            return recovery_app(supervised, authenticate=blocking)

    async with supervisor, anyio.create_task_group() as tasks:
        tasks.start_soon(Slow(listen=f"127.0.0.1:{door.port}").serve, supervisor)
        assert await anyio.to_thread.run_sync(wait_for, door.open)
        before = (await supervisor.ask("service", service="mail"))["evidence"]["checks"]
        with anyio.fail_after(10.0):
            assert (await anyio.to_thread.run_sync(door.get, "/status")).status_code == 401
        evidence = (await supervisor.ask("service", service="mail"))["evidence"]
        assert evidence["checks"] - before >= 3
        assert (await supervisor.ask("health"))["lag_seconds"] < 1.0
        tasks.cancel_scope.cancel()


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head(house: House) -> None:
    """Where TCP_NODELAY is missing each takes 40 ms: the body waits until the other end has acknowledged the head."""
    door = Door(free_port())
    house.start("--http", f"127.0.0.1:{door.port}")
    wait_for(door.open)

    def twenty(client: httpx2.Client) -> float:
        began = time.monotonic()
        for _ in range(20):
            assert client.get(f"{door.base}/nothing").status_code == 404
        return time.monotonic() - began

    with httpx2.Client() as client:
        twenty(client)  # a new connection is acknowledged at once for a while
        assert min(twenty(client) for _ in range(4)) < 0.5


@pytest.mark.anyio
async def test_half_a_request_does_not_keep_a_connection_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BEGUN", 1.0)
    door = Door(free_port())
    supervisor = Fleet(tmp_path).supervisor()

    def visit() -> None:
        wait_for(door.open)
        half = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(50)]
        for one in half[:25]:
            one.sendall(b"GET /api/recovery/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        for one in half[25:]:
            one.sendall(b"GET /api/recovery/health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /api/reco")
        listener = Listener(door).start()
        assert door.get("/status").status_code == 200
        for one in half:
            one.settimeout(10.0)
            with contextlib.suppress(ConnectionResetError):
                while one.recv(65536):
                    pass
            one.close()
        assert not listener.ended

    await served(Http(listen=f"127.0.0.1:{door.port}"), supervisor, visit)


@pytest.mark.anyio
async def test_connections_without_end_take_nothing_from_who_has_something_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for forty; a hundred and twenty send half a head, and a stream and readers are beside them."""
    monkeypatch.setattr(serving, "CONNECTIONS", 40)
    door = Door(free_port())
    supervisor = Fleet(tmp_path).supervisor()

    def visit() -> None:
        wait_for(door.open)
        listener = Listener(door).start()
        with httpx2.Client(timeout=10.0) as kept:
            half = []
            for number in range(120):
                half.append(socket.create_connection(("127.0.0.1", door.port)))
                half[-1].sendall(b"GET /api/recovery/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
                if number % 10 == 0:
                    assert kept.get(f"{door.base}/status").status_code == 200
                    assert door.get("/status").status_code == 200
            ended = [one for one in half if _is_ended(one)]
            assert 70 <= len(ended) <= 90, "those that came first are gone, and no more than had to go"
            assert ended == half[: len(ended)]
        for one in half:
            one.close()
        assert not listener.ended

    await served(Http(listen=f"127.0.0.1:{door.port}"), supervisor, visit)


def test_the_daemon_shows_the_metrics_on_the_port_of_the_api_as_on_their_own(house: House) -> None:
    door, port = Door(free_port()), free_port()
    house.write(f'[http]\nlisten = "127.0.0.1:{door.port}"\n[prometheus]\nlisten = "127.0.0.1:{port}"\n')
    house.start()
    wait_for(door.open)
    house.settled()
    texts = []
    for each in (port, door.port):
        address = f"http://127.0.0.1:{each}/metrics"
        found = httpx2.get(address, timeout=10.0, headers={"Accept": "text/plain"})
        assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert httpx2.head(address, timeout=10.0).content == b""
        modern = httpx2.get(address, timeout=10.0, headers={"Accept": "application/openmetrics-text"})
        assert modern.text.endswith("# EOF\n")
        texts.append({line.partition(" ")[0] for line in found.text.splitlines() if not line.startswith("#")})
    assert texts[0] == texts[1]
    assert len(texts[0]) > 30
    house.run("token", "create", "prometheus", "--scope", "read")
    wait_for(lambda: httpx2.get(f"http://127.0.0.1:{door.port}/metrics").status_code == 401)


def _is_ended(one: socket.socket) -> bool:
    one.settimeout(0.02)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(("soft", "expected"), [(resource.RLIM_INFINITY, 1200), (20_000, 1200), (1024, 412), (256, 32)])
def test_checks_are_left_the_descriptors_they_need(monkeypatch: pytest.MonkeyPatch, soft: int, expected: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert serving.most() == expected


@attrs.frozen(eq=False)
class Shown:
    """A frontend that can also be seen where the API is served."""

    places: tuple[str, ...]

    def routes(self, supervisor: Any) -> dict[str, Any]:
        async def told(scope: Any, receive: Any, send: Any) -> None:
            counts = (await supervisor.ask("status"))["counts"]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": repr(sum(counts.values())).encode()})

        return dict.fromkeys(self.places, told)


@pytest.mark.anyio
async def test_what_other_frontends_offer_is_shown_beside_the_api_behind_the_same_door(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(free_port())
    supervisor = Fleet(tmp_path).supervisor()
    http = Http(listen=f"127.0.0.1:{door.port}")
    frontends = {"http": http, "count": Shown(("/count", f"{PREFIX}/count", "count")), "other": Shown(("/count",))}
    root = f"http://127.0.0.1:{door.port}"

    def visit() -> None:
        wait_for(door.open)
        assert httpx2.get(f"{root}/count").text == "4"
        assert httpx2.get(f"{root}/count", headers={"Host": "rebound.example"}).status_code == 421
        assert httpx2.get(f"{root}/count", headers={"Origin": "https://evil.example"}).status_code == 403
        refused = httpx2.post(f"{root}/count")
        assert (refused.status_code, refused.headers["content-type"]) == (405, "application/problem+json")
        assert httpx2.get(f"{root}/count/more").status_code == 404
        assert door.get("/count").status_code == 404, "nobody puts anything where the API is"
        text, _ = TokenFile(tmp_path / FILE).create("prometheus", Scope.READ)
        wait_for(lambda: httpx2.get(f"{root}/count").status_code == 401, within=3.0)
        assert httpx2.get(f"{root}/count", headers={"Authorization": f"Bearer {text}"}).text == "4"

    supervisor.frontends = frontends
    await served(http, supervisor, visit)
    assert caplog.text.count("which it cannot be") == 3


@pytest.mark.anyio
async def test_it_speaks_tls_and_may_ask_for_a_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("ann@example.org")
    paths = {name: tmp_path / f"{name}.pem" for name in ("server", "client", "authority")}
    server.private_key_and_cert_chain_pem.write_to_path(str(paths["server"]))
    client.private_key_and_cert_chain_pem.write_to_path(str(paths["client"]))
    authority.cert_pem.write_to_path(str(paths["authority"]))
    port = free_port()
    tls = ServedTls(certificate=paths["server"], clients=paths["authority"])
    supervisor = Fleet(tmp_path).supervisor()

    def visit(*, shown: bool) -> int:
        context = ssl.create_default_context(cafile=str(paths["authority"]))
        if shown:
            context.load_cert_chain(str(paths["client"]))
        return httpx2.get(f"https://localhost:{port}{PREFIX}/status", verify=context, timeout=5.0).status_code

    def visited() -> bool:
        try:
            return visit(shown=True) == 200
        except httpx2.TransportError:
            return False

    async with supervisor, anyio.create_task_group() as tasks:
        tasks.start_soon(Http(listen=f"127.0.0.1:{port}", tls=tls).serve, supervisor)
        assert await anyio.to_thread.run_sync(wait_for, visited)

        def unshown() -> None:
            with pytest.raises(httpx2.TransportError):
                visit(shown=False)

        await anyio.to_thread.run_sync(unshown)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_certificate_that_is_renewed_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "RENEWED", 1)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    first, second = trustme.CA(), trustme.CA()

    def put(authority: trustme.CA, *, keys: bool = True) -> None:
        made = authority.issue_cert("localhost")
        (tmp_path / "new").write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
        (tmp_path / "new").replace(certificate)
        if keys:
            made.private_key_pem.write_to_path(str(tmp_path / "new"))
            (tmp_path / "new").replace(key)

    put(first)
    port = free_port()
    frontend = Http(listen=f"127.0.0.1:{port}", tls=ServedTls(certificate=certificate, key=key))
    supervisor = Fleet(tmp_path).supervisor()

    def trusted(authority: trustme.CA) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        try:
            return (
                httpx2.get(f"https://localhost:{port}{PREFIX}/status", verify=context, timeout=5.0).status_code == 200
            )
        except httpx2.TransportError:
            return False

    def visit() -> None:
        wait_for(lambda: trusted(first))
        put(second, keys=False)  # the key comes a moment later, as it does
        wait_for(lambda: "cannot be used, so the old one is" in caplog.text)
        assert trusted(first)
        put(second)
        wait_for(lambda: trusted(second))
        assert not trusted(first)
        certificate.unlink()
        wait_for(lambda: caplog.text.count("cannot be used, so the old one is") == 2)
        assert trusted(second)

    caplog.set_level("INFO", "selfheal.http")
    await served(frontend, supervisor, visit)
    assert "the certificate was renewed" in caplog.text


# -- what is written in the file ---------------------------------------------------------------------------------------


def table(text: str) -> Any:
    import tomllib

    data = tomllib.loads(f'[services.web]\ncheck = {{ kind = "tcp", address = "127.0.0.1:9" }}\n[http]\n{text}')
    return configure(data).frontends["http"]


def test_the_table_is_read_with_its_defaults() -> None:
    assert table("") == Http()
    assert Http().address == ("127.0.0.1", 3000)
    assert table('listen = "[::1]:8080"').address == ("::1", 8080)
    assert table('listen = "3000"').address == ("127.0.0.1", 3000)
    assert table('tls = { certificate = "/etc/c.pem" }').tls == ServedTls(certificate="/etc/c.pem")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('listen = "nowhere"', "write an address and a port"),
        ('listen = "127.0.0.1:99999"', "write an address and a port"),
        ('prefix = "api/"', "write a path"),
        ('proxies = ["proxy.example"]', "does not appear to be"),
        ('loopback_writes = "yes"', "loopback_writes"),
        ('cors = ["*"]', "cors"),
        ("tls = {}", "certificate"),
    ],
)
def test_what_is_wrong_in_the_table_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said.replace("*", r"\*")):
        table(text)


@pytest.mark.anyio
async def test_an_address_that_is_not_ours_is_said_once_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "OPENED", 0.05)
    TokenFile(tmp_path / FILE).create("ann", Scope.READ)
    supervisor = Fleet(tmp_path).supervisor()
    async with supervisor:
        with anyio.move_on_after(0.5):
            await Http(listen="192.0.2.7:3000").serve(supervisor)
    assert caplog.text.count("cannot listen at 192.0.2.7:3000") == 1


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_who_does_not_serve_imports_nothing_of_the_web() -> None:
    """A fleet whose file has no `[http]`, in an application without a command line."""
    lines = (
        "import sys",
        "from selfheal.loading import load_plugins",
        "tables = load_plugins(['starlette'])",
        "assert [one.loaded for one in tables.plugins if one.name == 'starlette'] == [True], tables.plugins",
        "assert 'http' in tables.frontends",
        "heavy = {'starlette', 'uvicorn', 'click', 'selfheal_starlette.app', 'selfheal_starlette.tokens'}",
        "assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_a_question_that_the_stop_cuts_off_is_one_nobody_answers_any_more() -> None:
    """The portal cancels what is under way when its loop ends; a caller hears that nothing runs, and no fault."""

    class Ending:
        def call(self, asked: object) -> None:
            raise concurrent.futures.CancelledError

    async def ask() -> None:
        across = Across(Fleet(Path("unused")).supervisor(journal=None), Ending())  # type: ignore[arg-type]  # as it ends
        with pytest.raises(NotRunning, match="is stopping"):
            await across.ask("status")

    anyio.run(ask)
