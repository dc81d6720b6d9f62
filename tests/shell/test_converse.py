"""`selfheal.converse`: a conversation that a deep check holds by itself, with the results the runner would give."""

from __future__ import annotations

import socket

import anyio
import pytest

from selfheal import PASSING, Cause, CheckResult, Target, Verdict, converse
from selfheal.testing.servers import answer, hang, pong
from selfheal.wire import Talk, failing

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


def target_of(address: str, *, limit: int = 65536) -> Target:
    host, _, port = address.rpartition(":")
    return Target(host=host, port=int(port), limit=limit)


class Watched:
    """A talk, and whether it was closed."""

    def __init__(self, *said: bytes) -> None:
        self.said = said
        self.heard = b""
        self.closed = False

    def talk(self) -> Talk:
        try:
            for said in self.said:
                self.heard += yield said
            return PASSING
        finally:
            self.closed = True


async def test_what_is_said_is_sent_and_the_result_is_returned() -> None:
    one = Watched(b"PING\r\n")
    with pong() as address:
        assert await converse(target_of(address), one.talk()) is PASSING
    assert one.heard
    assert one.closed


async def test_a_peer_that_closes_or_says_too_much_is_failing() -> None:
    with answer(b"x" * 4000) as address:
        closes = await converse(target_of(address), Watched(b"a", b"", b"").talk())
        assert (closes.verdict, closes.cause) == (Verdict.FAILING, Cause.UNREACHABLE)
        told = await converse(target_of(address, limit=1024), Watched(b"a", b"", b"").talk())
        assert (told.verdict, told.cause) == (Verdict.FAILING, Cause.ERROR)


async def test_who_is_not_reached_and_what_a_talk_raises_is_raised_and_the_talk_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nobody = Watched(b"a")
    talk = nobody.talk()
    with pytest.raises(OSError):
        await converse(Target(host="127.0.0.1", port=port), talk)
    with pytest.raises(StopIteration):
        next(talk)

    def buggy() -> Talk:
        yield b"PING\r\n"
        raise ZeroDivisionError
        return PASSING

    with pong() as address, pytest.raises(ZeroDivisionError):
        await converse(target_of(address), buggy())


async def test_the_caller_s_deadline_ends_it_and_closes_the_talk() -> None:
    mute = Watched(b"a")
    result: CheckResult = failing(Cause.TIMEOUT)
    with hang() as address, anyio.move_on_after(0.2) as limit:
        result = await converse(target_of(address), mute.talk())
    assert limit.cancelled_caught
    assert mute.closed
    assert result.cause is Cause.TIMEOUT
