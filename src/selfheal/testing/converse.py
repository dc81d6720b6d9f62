"""Wire checks the slow way: the same conversations over plain anyio streams.

It shares nothing with the runner but the table of errors and TLS, so the two check each other in the tests. It is also
the shortest way to try a wire check of your own: ``anyio.run(converse, MyCheck(...), 5.0)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from selfheal.core.model import Cause, CheckResult
from selfheal.shell.lanes import allowance
from selfheal.shell.oserrors import from_oserror
from selfheal.shell.tls import TlsSettingsBroken, prepare, within
from selfheal.wire import PeerClosed, Target, WireCheck, failing, inconclusive


async def converse(check: WireCheck, timeout: float) -> CheckResult:
    """Run one wire check on a connection of its own and return its result. `timeout` seconds bound the whole."""
    target = check.target()
    with anyio.move_on_after(timeout):
        try:
            stream = await _connect(target)
        except OSError as problem:
            return from_oserror(problem)
        async with stream:
            try:
                talk = check.talk()
                if target.tls is not None:
                    talk = within(talk, target, (await anyio.to_thread.run_sync(prepare, target.tls)).context)
                return await _exchange(talk, target, stream)
            except TlsSettingsBroken as problem:
                return inconclusive(f"TLS: {problem}", Cause.CONFIG)
            except PeerClosed as problem:
                return failing(Cause.UNREACHABLE, str(problem))
            except Exception as problem:  # noqa: BLE001 - a bug in a check says nothing about the service
                return inconclusive(f"{type(problem).__name__} in {check.kind}")
    return failing(Cause.TIMEOUT, f"no answer in {timeout:g} s")


async def _connect(target: Target) -> anyio.abc.ByteStream:
    if target.host is None:
        return await anyio.connect_unix(str(target.path))
    return await anyio.connect_tcp(target.host, target.port)


async def _exchange(talk: Any, target: Target, stream: anyio.abc.ByteStream) -> CheckResult:
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
