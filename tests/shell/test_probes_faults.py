"""Every fault, on both loops and both ways of connecting: the runner's verdict, and converse() agrees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from selfheal.builtin.addresses import read_address
from selfheal.builtin.wire_checks import HttpCheck, RedisPing, TcpCheck
from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.testing import servers
from selfheal.testing.converse import converse
from selfheal.testing.probing import probing
from selfheal.wire import PeerClosed, Talk, Target, WireCheck, failing, read_until

P, W, F, I = Verdict.PASSING, Verdict.WARNING, Verdict.FAILING, Verdict.INCONCLUSIVE  # noqa: E741
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@attrs.frozen(kw_only=True)
class Talking:
    """A check whose talk is given: for what no builtin check does."""

    kind: ClassVar[str] = "talking"
    address: str
    says: Callable[[], Talk]
    limit: int = 65536

    def target(self) -> Target:
        end = read_address(self.address)
        return Target(host=end.host, port=end.port, path=end.path, limit=self.limit)

    def talk(self) -> Talk:
        return self.says()


def greeted() -> Talk:
    line, _ = yield from read_until(b"\r\n")
    return PASSING if line.startswith(b"220") else failing(Cause.ERROR)


def uploads() -> Talk:
    data = yield b"x" * 3_000_000 + b"\0"
    return PASSING if data == b"got it" else failing(Cause.ERROR)


def raises() -> Talk:
    yield b"x"
    raise ZeroDivisionError("secret words")


def returns_text() -> Talk:
    yield b"x"
    return "down"  # type: ignore[return-value]


def returns_nothing() -> Talk:  # type: ignore[return]
    yield b"x"


def yields_text() -> Talk:
    yield "PING"  # type: ignore[misc]
    return PASSING


def asks_for_ever() -> Talk:
    while True:
        yield b""


def swallows_the_end() -> Talk:
    yield b"x"
    while True:
        with suppress(PeerClosed):
            yield b""


def reads_all() -> Talk:
    yield b"GET"
    while True:
        yield b""


def forges_a_verdict() -> Talk:
    yield b"x"
    return CheckResult("passing")  # type: ignore[arg-type]


def http(**options: Any) -> Callable[[str], WireCheck]:
    return lambda address: HttpCheck(url=f"http://{address}/health", **options)


def tcp(address: str) -> WireCheck:
    return TcpCheck(address=address)


def ping(address: str) -> WireCheck:
    return RedisPing(url=f"redis://{address}")


def says(talk: Callable[[], Talk], **options: Any) -> Callable[[str], WireCheck]:
    return lambda address: Talking(address=address, says=talk, **options)


def greeting() -> AbstractContextManager[str]:
    def speak(client: Any, stop: Any) -> None:
        client.sendall(b"220 mx.exam")
        stop.wait(0.01)
        client.sendall(b"ple ESMTP\r\n")
        client.recv(10)

    return servers.serve(speak)


def full_at_once() -> AbstractContextManager[str]:
    def speak(client: Any, stop: Any) -> None:
        client.sendall(b"-ERR max number of clients reached\r\n")

    return servers.serve(speak)


def redis_says(line: bytes) -> Callable[[], AbstractContextManager[str]]:
    return lambda: servers.answer(line + b"\r\n")


Case = tuple[Callable[[], AbstractContextManager[str]], Callable[[str], WireCheck], Verdict, Cause | None]

CASES: dict[str, Case] = {
    "tcp": (servers.hang, tcp, P, None),
    "tcp refused": (servers.refuse, tcp, F, Cause.UNREACHABLE),
    "tcp black hole": (servers.black_hole, tcp, F, Cause.TIMEOUT),
    "http": (lambda: servers.answer(OK), http(), P, None),
    "http refused": (servers.refuse, http(), F, Cause.UNREACHABLE),
    "http mute": (servers.hang, http(), F, Cause.TIMEOUT),
    "http drip": (lambda: servers.drip(OK), http(body="hello"), P, None),
    "http lacks text": (lambda: servers.answer(OK), http(body="nope"), F, Cause.ERROR),
    "http 503": (lambda: servers.answer(b"HTTP/1.1 503 Busy\r\n\r\n"), http(), F, Cause.OVERLOADED),
    "http 302": (lambda: servers.answer(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), http(), F, Cause.CONFIG),
    "http endless": (servers.endless_body, http(body="y"), F, Cause.ERROR),
    "http silent end": (servers.half_close, http(), F, Cause.UNREACHABLE),
    "http half a head": (lambda: servers.half_close(b"HTTP/1.1 200 O"), http(), F, Cause.UNREACHABLE),
    "http half a body": (lambda: servers.half_close(OK[:-2]), http(body="hello"), F, Cause.UNREACHABLE),
    "http body to the end": (lambda: servers.half_close(b"HTTP/1.1 200 OK\r\n\r\nhello"), http(body="hello"), P, None),
    "http reset": (lambda: servers.reset(b""), http(), F, Cause.UNREACHABLE),
    "http reset in body": (servers.reset, http(body="hello"), F, Cause.UNREACHABLE),
    "http garbage": (servers.garbage, http(), F, Cause.ERROR),
    "redis": (servers.pong, ping, P, None),
    "redis mute": (servers.hang, ping, F, Cause.TIMEOUT),
    "redis garbage": (lambda: servers.answer(b"HTTP/1.1 400\r\n"), ping, F, Cause.ERROR),
    "redis loading": (redis_says(b"-LOADING Redis is loading"), ping, F, Cause.STARTING),
    "redis locked": (redis_says(b"-NOAUTH Authentication required."), ping, F, Cause.AUTH),
    "redis full": (redis_says(b"-ERR max number of clients reached"), ping, F, Cause.OVERLOADED),
    "redis endless line": (lambda: servers.answer(b"+" + b"x" * 70000), ping, F, Cause.ERROR),
    "server speaks first": (greeting, says(greeted), P, None),
    "slow reader": (servers.slow_reader, says(uploads), P, None),
    "talk raises": (lambda: servers.answer(OK), says(raises), I, Cause.ERROR),
    "talk returns text": (lambda: servers.answer(OK), says(returns_text), I, Cause.CONFIG),
    "talk returns nothing": (lambda: servers.answer(OK), says(returns_nothing), I, Cause.CONFIG),
    "talk yields text": (lambda: servers.answer(OK), says(yields_text), I, Cause.CONFIG),
    "talk waits for ever": (servers.hang, says(asks_for_ever), F, Cause.TIMEOUT),
    "talk swallows the end": (lambda: servers.half_close(b""), says(swallows_the_end), F, Cause.UNREACHABLE),
    "byte cap": (servers.endless_body, says(reads_all, limit=5000), F, Cause.ERROR),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", CASES)
async def test_a_fault_gives_its_verdict(name: str, anyio_backend: str) -> None:
    server, check, verdict, cause = CASES[name]
    deadline = 0.3 if cause is Cause.TIMEOUT else 5.0
    with server() as address:
        async with probing() as probes:
            for near in (True, False):
                result = await probes.check(check(address), deadline, near=near)
                assert (result.verdict, result.cause) == (verdict, cause), (near, result)
            assert probes.runner.connections == 0
            assert probes.runner.in_flight == 0
        slow = await converse(check(address), deadline)
    assert (slow.verdict, slow.cause) == (verdict, cause)


TLS_CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], Verdict, Cause | None]] = {
    "valid": (servers.tls_valid, {}, P, None),
    "valid, body": (servers.tls_valid, {"body": "OK"}, P, None),
    "valid, lacks text": (servers.tls_valid, {"body": "nope"}, F, Cause.ERROR),
    "ends soon": (lambda: servers.tls_valid(days=3.0), {}, W, Cause.CONFIG),
    "ends soon, not asked": (lambda: servers.tls_valid(days=3.0), {"warn_before": 86400.0}, P, None),
    "expired": (servers.tls_expired, {}, F, Cause.CONFIG),
    "expired, not verified": (servers.tls_expired, {"verify": False}, P, None),
    "not yet valid": (servers.tls_not_yet_valid, {}, F, Cause.CONFIG),
    "wrong name": (servers.tls_wrong_name, {}, F, Cause.CONFIG),
    "named": (servers.tls_wrong_name, {"server_name": "elsewhere.example"}, P, None),
    "untrusted": (servers.tls_untrusted, {}, F, Cause.CONFIG),
    "certificate missing": (servers.tls_client_certificate_required, {}, F, Cause.CONFIG),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", TLS_CASES)
async def test_a_certificate_gives_its_verdict(name: str, anyio_backend: str) -> None:
    server, options, verdict, cause = TLS_CASES[name]
    with server() as peer:
        check = HttpCheck(url=f"https://{peer.address}/", authority=peer.authority, **options)
        async with probing() as probes:
            for near in (True, False):
                result = await probes.check(check, 5.0, near=near)
                assert (result.verdict, result.cause) == (verdict, cause), (near, result)
            assert probes.runner.connections == 0
        slow = await converse(check, 5.0)
    assert (slow.verdict, slow.cause) == (verdict, cause)


@pytest.mark.anyio
async def test_a_kept_connection_inside_tls_is_used_again(anyio_backend: str) -> None:
    """The handshake alone takes more than a PING may receive."""
    with servers.tls_pong() as peer:
        check = RedisPing(url=f"rediss://{peer.address}", authority=peer.authority)
        assert await converse(check, 5.0) is PASSING
        async with probing() as probes:
            lane = probes.runner.lane(check, 5.0, None)
            assert await probes.again(lane) is PASSING
            flight = lane.flight
            for _ in range(3):
                assert await probes.again(lane) is PASSING
            assert lane.flight is flight
            assert probes.lost == []


@pytest.mark.anyio
async def test_a_client_certificate_is_shown(anyio_backend: str) -> None:
    with servers.tls_client_certificate_required() as peer:
        check = HttpCheck(url=f"https://{peer.address}/", authority=peer.authority, certificate=peer.certificate)
        async with probing() as probes:
            assert await probes.check(check) is PASSING
        assert await converse(check, 5.0) is PASSING


@pytest.mark.anyio
async def test_tls_to_a_plain_server_is_an_error_and_to_a_mute_one_a_timeout(
    anyio_backend: str, tmp_path: Path
) -> None:
    with servers.tls_valid() as peer, servers.answer(OK) as plain, servers.hang() as mute:
        async with probing() as probes:
            for address, cause in ((plain, Cause.ERROR), (mute, Cause.TIMEOUT)):
                check = HttpCheck(url=f"https://{address}/", authority=peer.authority)
                assert (await probes.check(check, 0.4)).cause is cause
                assert (await converse(check, 0.4)).cause is cause


@pytest.mark.anyio
async def test_a_missing_authority_is_our_configuration_and_is_found_when_it_appears(
    anyio_backend: str, tmp_path: Path
) -> None:
    with servers.tls_valid() as peer:
        missing = tmp_path / "authority.pem"
        check = HttpCheck(url=f"https://{peer.address}/", authority=missing)
        async with probing() as probes:
            lane = probes.runner.lane(check, 5.0, None)
            result = await probes.again(lane)
            assert (result.verdict, result.cause) == (I, Cause.CONFIG)
            assert str(missing) in result.summary
            missing.write_bytes(peer.authority.read_bytes())
            assert await probes.again(lane) is PASSING


@pytest.mark.anyio
async def test_unix_sockets(anyio_backend: str, tmp_path: Path) -> None:
    with servers.pong(path=tmp_path / "r.sock") as there, servers.refuse(path=tmp_path / "dead.sock") as dead:
        with servers.full_backlog(tmp_path / "full.sock") as full:
            async with probing() as probes:
                wanted = {
                    there: (P, None),
                    dead: (F, Cause.UNREACHABLE),
                    str(tmp_path / "none"): (F, Cause.UNREACHABLE),
                }
                for address, (verdict, cause) in wanted.items():
                    check = RedisPing(url=f"unix://{address}")
                    for result in (await probes.check(check), await converse(check, 2.0)):
                        assert (result.verdict, result.cause) == (verdict, cause)
                result = await probes.check(TcpCheck(address=full))
                assert (result.verdict, result.cause) == (F, Cause.OVERLOADED)


@pytest.mark.anyio
async def test_a_forged_verdict_is_no_verdict(anyio_backend: str) -> None:
    with servers.answer(OK) as address:
        async with probing() as probes:
            result = await probes.check(Talking(address=address, says=forges_a_verdict))
    assert (result.verdict, result.cause) == (I, Cause.CONFIG)


@pytest.mark.anyio
async def test_what_a_check_raises_is_named_and_not_quoted(anyio_backend: str) -> None:
    with servers.answer(OK) as address:
        async with probing() as probes:
            result = await probes.check(Talking(address=address, says=raises))
    assert "ZeroDivisionError" in result.summary
    assert "secret" not in result.summary


@pytest.mark.anyio
async def test_the_last_words_of_a_full_redis_are_heard(anyio_backend: str) -> None:
    """It speaks and resets before it has read our PING: the send fails, and the words lie there all the same."""
    with full_at_once() as address:
        async with probing() as probes:
            for _ in range(20):
                result = await probes.check(ping(address))
                assert (result.verdict, result.cause) == (F, Cause.OVERLOADED)
