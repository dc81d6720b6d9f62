"""Wire checks the slow way: the same conversations over plain anyio streams, as an oracle of the runner.

It is also the shortest way to try a wire check of your own: ``anyio.run(converse, MyCheck(...), 5.0)``.
"""

from __future__ import annotations

import anyio

from selfheal.core.model import Cause, CheckResult
from selfheal.shell.converse import connect, exchange
from selfheal.shell.oserrors import from_oserror
from selfheal.wire import WireCheck, failing, inconclusive


async def converse(check: WireCheck, timeout: float) -> CheckResult:
    """Run one wire check on a connection of its own and return its result. `timeout` seconds bound the whole."""
    target = check.target()
    with anyio.move_on_after(timeout):
        try:
            stream = await connect(target)
        except OSError as problem:
            return from_oserror(problem)
        try:
            return await exchange(stream, target, check.talk())
        except Exception as problem:  # noqa: BLE001 - a bug in a check says nothing about the service
            return inconclusive(f"{type(problem).__name__} in {check.kind}")
    return failing(Cause.TIMEOUT, f"no answer in {timeout:g} s")
