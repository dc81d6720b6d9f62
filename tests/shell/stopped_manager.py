"""A manager that is stopped and continued: everything it watches is well, by every road, and takes its time.

Run as a program by `test_supervisor_doubt`: folder, backend, and the address of a slow and well server, or `lone` for
one service that is due in an hour.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import attrs

from selfheal import CheckContext, CheckResult, Supervisor, Verdict
from selfheal.builtin.wire_checks import HttpCheck
from selfheal.core.model import PASSING, Instance, Run
from selfheal.plugins import ActionContext, Context

OPTIONS: dict[str, Any] = {
    "interval": 0.5,
    "timeout": 0.4,
    "recheck": 0.1,
    "failure_threshold": 1,
    "min_failing_span": 0.0,
    "definite_span": 0.0,
}


@attrs.frozen(kw_only=True)
class Slow:
    """A check by a coroutine that is well after a while."""

    kind: ClassVar[str] = "slow"

    async def check(self, context: CheckContext) -> CheckResult:
        for _ in range(10):
            await asyncio.sleep(0.02)
        return CheckResult(Verdict.PASSING)


@attrs.frozen(kw_only=True)
class Standing:
    """A workload that is always there, and counts its restarts."""

    kind: ClassVar[str] = "standing"
    restarts: Path

    async def inspect(self, context: Context) -> Instance:
        return Instance(id="always", run=Run.RUNNING)

    async def restart(self, context: ActionContext) -> None:
        with self.restarts.open("a") as file:
            file.write(f"{context.service}\n")


@attrs.frozen(kw_only=True)
class Impatient:
    """A check whose driver has a deadline of its own."""

    kind: ClassVar[str] = "impatient"

    async def check(self, context: CheckContext) -> CheckResult:
        began = time.monotonic()
        print("checking", flush=True)
        await asyncio.sleep(0.3)
        late = time.monotonic() - began > 1.0
        return CheckResult(Verdict.FAILING, summary="the driver's own deadline") if late else PASSING


def well() -> bool:
    time.sleep(0.2)
    return True


async def well_soon() -> bool:
    await anyio.sleep(0.2)
    return True


async def live(folder: Path, address: str) -> None:
    supervisor = Supervisor(journal=folder / "selfheal.db")
    if address == "lone":
        lone: dict[str, Any] = {**OPTIONS, "interval": 3600.0, "timeout": 30.0, "recheck": 3600.0}
        supervisor.service("lone", **lone)(Impatient())  # type: ignore[type-var]  # a check object, and no function
        async with supervisor:
            await anyio.to_thread.run_sync(sys.stdin.readline)
        return
    checks: dict[str, Any] = {
        "wire": HttpCheck(url=f"http://{address}/"),
        "coroutine": Slow(),
        "thread": well,
        "called": well_soon,
    }
    for name, check in checks.items():
        workload = Standing(restarts=folder / "restarts")
        for place in range(5):
            supervisor.service(f"{name}-{place}", workload=workload, recovery_actions=["restart"], **OPTIONS)(check)
    async with supervisor:
        while (await supervisor.ask("status"))["counts"]["healthy"] < 20:  # noqa: ASYNC110  # nothing tells
            await anyio.sleep(0.05)
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)


if __name__ == "__main__":
    anyio.run(partial(live, Path(sys.argv[1]), sys.argv[3]), backend=sys.argv[2])
