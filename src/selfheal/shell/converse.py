"""A conversation over a plain stream, for whoever holds one outside the runner: a deep check, a test.

It shares nothing with the runner but TLS and the cap on bytes, so the two check each other in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from selfheal.core.model import Cause, CheckResult
from selfheal.shell.lanes import allowance
from selfheal.shell.tls import TlsSettingsBroken, prepare, within
from selfheal.wire import PeerClosed, Talk, Target, failing, inconclusive


async def converse(target: Target, talk: Talk) -> CheckResult:
    """Hold a conversation on a connection of its own, on asyncio or trio, and return its result.

    The caller owns the deadline. Raises `OSError` when the peer is not reached, and whatever leaves the talk but
    `PeerClosed`, which is FAILING, `unreachable`.
    """
    try:
        return await exchange(await connect(target), target, talk)
    finally:
        talk.close()


async def connect(target: Target) -> anyio.abc.ByteStream:
    """Return a stream to the target. Raises `OSError`."""
    if target.host is None:
        return await anyio.connect_unix(str(target.path))
    return await anyio.connect_tcp(target.host, target.port)


async def exchange(stream: anyio.abc.ByteStream, target: Target, talk: Talk) -> CheckResult:
    """Hold the conversation on this stream, which is closed then. Raises what leaves the talk but `PeerClosed`."""
    async with stream:
        try:
            if target.tls is not None:
                talk = within(talk, target, (await anyio.to_thread.run_sync(prepare, target.tls)).context)
            return await _turns(talk, target, stream)
        except TlsSettingsBroken as problem:
            return inconclusive(f"TLS: {problem}", Cause.CONFIG)
        except PeerClosed as problem:
            return failing(Cause.UNREACHABLE, str(problem))


async def _turns(talk: Any, target: Target, stream: anyio.abc.ByteStream) -> CheckResult:
    """Take turns until the talk gives its result; raise what it raises."""
    room = allowance(target)
    said, over = _step(talk.send, None)
    while not over and isinstance(said, bytes):
        try:
            if said:
                await stream.send(said)
            heard = await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            said, over = _step(talk.throw, PeerClosed("closed the connection"))
            return said if isinstance(said, CheckResult) else failing(Cause.UNREACHABLE, "closed the connection")
        room -= len(heard)
        if room < 0:
            return failing(Cause.ERROR, f"said more than {target.limit} bytes")
        said, over = _step(talk.send, heard)
    return said if isinstance(said, CheckResult) else inconclusive(f"said {type(said).__name__}", Cause.CONFIG)


def _step(step: Callable[[Any], object], value: object) -> tuple[object, bool]:
    """Take one step of a generator; return what it yielded or returned, and whether it is over."""
    try:
        return step(value), False
    except StopIteration as stop:
        return stop.value, True
