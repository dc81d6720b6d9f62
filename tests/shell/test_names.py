"""Names to addresses: nobody waits for a name that hangs but those who asked for it."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from selfheal.builtin.wire_checks import RedisPing, TcpCheck
from selfheal.core.model import PASSING, Cause, Verdict
from selfheal.shell.names import Answer, Resolver, literal, lookup
from selfheal.testing import servers
from selfheal.testing.probing import probing
from selfheal.testing.servers import SilentResolver

HERE = ((socket.AF_INET, ("127.0.0.1", 0)),)


@pytest.fixture
def silent() -> Iterator[SilentResolver]:
    silent = SilentResolver(known={"known.example": HERE, "hang.example": HERE})
    yield silent
    silent.released.set()


def resolvers(silent: SilentResolver, **options: Any) -> Resolver:
    return Resolver(lookup=silent, **options)


def collect(resolver: Resolver, count: int) -> list[Answer]:
    found: list[Answer] = []
    end = monotonic() + 5.0
    while len(found) < count:
        assert monotonic() < end
        select.select([resolver.fd], [], [], 0.1)
        found += resolver.collect()
    return found


def wait(condition: Callable[[], bool]) -> None:
    end = monotonic() + 5.0
    while not condition():
        assert monotonic() < end, "the condition did not come true"
        threading.Event().wait(0.01)


def threads() -> int:
    return sum(thread.name == "selfheal-names" for thread in threading.enumerate())


def test_an_answer_goes_to_all_who_asked_meanwhile_and_the_name_is_looked_up_once(silent: SilentResolver) -> None:
    resolver = resolvers(silent)
    for who in ("a", "b", "a"):
        resolver.ask("hang.example", 80, who)
    silent.released.set()
    (answer,) = collect(resolver, 1)
    assert answer.waiting == ("a", "b")
    assert answer.value == ((socket.AF_INET, ("127.0.0.1", 80)),)
    assert silent.asked == ["hang.example"]
    resolver.close()


def test_an_answer_is_believed_for_its_time_and_not_longer(silent: SilentResolver) -> None:
    resolver = resolvers(silent, ttl=30.0)
    resolver.ask("known.example", 80, "a")
    collect(resolver, 1)
    now = monotonic()
    known = resolver.known("known.example", 80, now)
    assert known is not None
    assert now + 29.0 < known[0] <= now + 30.0
    assert resolver.known("known.example", 80, now + 31.0) is None
    resolver.doubt("known.example", 80)
    assert resolver.known("known.example", 80, now) is None
    resolver.close()


def test_names_that_hang_hold_one_thread_each_and_others_go_on(silent: SilentResolver) -> None:
    before = threads()
    resolver = resolvers(silent, threads=8)
    for number in range(6):
        for _ in range(3):
            resolver.ask(f"hang-{number}.example", 80, number)
    wait(lambda: len(silent.asked) == 6)
    for number in range(20):
        resolver.ask("known.example", 1000 + number, number)
    assert len(collect(resolver, 20)) == 20
    assert threads() - before <= 8
    assert len(resolver.stuck(monotonic() + 10.0)) == 6
    resolver.close()


def test_when_all_threads_hang_a_question_is_not_begun_and_goes_on_when_one_is_free(silent: SilentResolver) -> None:
    resolver = resolvers(silent, threads=2)
    for number in range(2):
        resolver.ask(f"hang-{number}.example", 80, number)
    wait(lambda: len(silent.asked) == 2)
    resolver.ask("known.example", 80, "a")
    assert not resolver.begun(("known.example", 80))
    silent.released.set()
    answers = {answer.key[0]: answer for answer in collect(resolver, 3) if isinstance(answer.key, tuple)}
    assert isinstance(answers["hang-0.example"].problem, socket.gaierror)
    assert answers["known.example"].problem is None
    resolver.close()


def test_a_lookup_that_ends_after_closing_touches_nothing(silent: SilentResolver) -> None:
    """Its descriptor may be somebody else's by then."""
    before = threads()
    resolver = resolvers(silent)
    resolver.ask("hang.example", 80, "a")
    wait(lambda: bool(silent.asked))
    number = resolver.fd
    resolver.close()
    resolver.close()
    stranger = os.eventfd(0, os.EFD_NONBLOCK)
    assert stranger == number
    silent.released.set()
    wait(lambda: threads() <= before)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(stranger)
    os.close(stranger)


def test_literals_and_localhost_are_never_asked_for() -> None:
    assert literal("127.0.0.1", 80) == ((socket.AF_INET, ("127.0.0.1", 80)),)
    assert literal("::1", 80) == ((socket.AF_INET6, ("::1", 80)),)
    assert literal("localhost", 80) == ((socket.AF_INET6, ("::1", 80)), (socket.AF_INET, ("127.0.0.1", 80)))
    assert literal("db.example", 80) == ()
    assert literal("no\x00name", 80) == ()


def test_the_systems_lookup_gives_each_address_once() -> None:
    found = lookup("localhost", 80)
    assert (socket.AF_INET, ("127.0.0.1", 80)) in found
    assert len(found) == len(set(found))


# -- seen from a check -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_localhost_is_found_on_ipv4_when_nobody_listens_on_ipv6(anyio_backend: str) -> None:
    with servers.pong() as address:
        port = address.rpartition(":")[2]
        async with probing(Resolver(lookup=lambda host, port: pytest.fail("asked"))) as probes:
            for near in (True, False):
                assert await probes.check(RedisPing(url=f"redis://localhost:{port}"), near=near) is PASSING


@pytest.mark.anyio
async def test_a_name_that_is_not_known_is_dns(anyio_backend: str, silent: SilentResolver) -> None:
    async with probing(resolvers(silent)) as probes:
        result = await probes.check(TcpCheck(address="nobody.example:80"))
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.DNS)


@pytest.mark.anyio
async def test_a_resolver_that_is_silent_is_dns_at_the_deadline_and_delays_no_other_name(
    anyio_backend: str, silent: SilentResolver
) -> None:
    with servers.pong() as address:
        port = address.rpartition(":")[2]
        async with probing(resolvers(silent)) as probes:
            lane = probes.runner.lane(TcpCheck(address=f"hang.example:{port}"), 0.2, None)
            result = await probes.again(lane)
            assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.DNS)
            began = monotonic()
            assert await probes.check(RedisPing(url=f"redis://known.example:{port}")) is PASSING
            assert monotonic() - began < 0.5
            assert (await probes.again(lane)).cause is Cause.DNS
            assert silent.asked.count("hang.example") == 1, "one question per name"
            silent.released.set()
            assert await probes.again(lane) is PASSING


@pytest.mark.anyio
async def test_a_question_our_own_threads_never_put_says_nothing_about_the_service(
    anyio_backend: str, silent: SilentResolver
) -> None:
    async with probing(resolvers(silent, threads=1)) as probes:
        assert (await probes.check(TcpCheck(address="hang.example:80"), 0.1)).cause is Cause.DNS
        result = await probes.check(TcpCheck(address="known.example:80"), 0.1)
        assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.DNS)


@pytest.mark.anyio
async def test_a_service_that_moved_is_asked_for_again_after_its_first_failure(
    anyio_backend: str, silent: SilentResolver
) -> None:
    """The old address refuses; the next check does not wait for the end of its time to live."""
    with servers.pong() as address:
        port = address.rpartition(":")[2]
        silent.known["moves.example"] = ((socket.AF_INET, ("127.0.0.2", 0)),)
        async with probing(resolvers(silent)) as probes:
            lane = probes.runner.lane(RedisPing(url=f"redis://moves.example:{port}"), 2.0, None)
            assert (await probes.again(lane)).cause is Cause.UNREACHABLE
            silent.known["moves.example"] = HERE
            assert await probes.again(lane) is PASSING
