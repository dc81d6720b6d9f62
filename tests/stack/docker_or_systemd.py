"""What tests of containers and of units have in common: hearing of a death, and how long it takes to be well again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio
import anyio.to_thread
import attrs
from tests.shell.supervised import QUICK, hearing, until_state

from selfheal import Service, Supervisor
from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.model import Instance, Limits, Run
from selfheal.plugins import ActionContext, Context, Workload

INTERVAL: Final = 4.0
"""Seconds from one check to the next where nothing is heard: the default is 30."""

HOW: Final = ("watched", "by its kept connection", "polled")
"""How a death is heard of, in these measurements."""


@attrs.define
class Ear:
    """What was heard, and when."""

    heard: list[tuple[float, Instance]] = attrs.field(factory=list)

    async def until(self, true: Callable[[Instance], bool], what: str, seconds: float = 10.0) -> float:
        """Wait until such an instance was heard; return when, monotonic."""
        end = time.monotonic() + seconds
        while True:
            for at, instance in self.heard:
                if true(instance):
                    return at
            assert time.monotonic() < end, f"not heard: {what}; heard {[one for _, one in self.heard]}"
            await asyncio.sleep(0.002)

    @property
    def runs(self) -> list[Run]:
        return [instance.run for _, instance in self.heard]


@attrs.frozen(kw_only=True)
class Deaf:
    """A workload whose end nobody hears."""

    kind: ClassVar[str] = "deaf"
    of: Workload

    async def inspect(self, context: Context) -> Instance:
        return await self.of.inspect(context)

    async def restart(self, context: ActionContext) -> str | None:
        return await self.of.restart(context)


async def times_to_be_well_again(
    runs: Mapping[str, tuple[int, Workload, Callable[[], float]]], journal: Path
) -> dict[str, float]:
    """Kill a Redis for each of `HOW`, and return the seconds until a check has passed again.

    `runs` has for each of them a port, what runs there, and what kills it and returns when, monotonic.
    """
    policy: dict[str, Any] = {**QUICK, "interval": INTERVAL, "timeout": 1.0, "recheck": 1.0, "failure_threshold": 3}
    services = {}
    for how, (port, workload, _) in runs.items():
        services[how] = Service(
            f"redis-{port}",
            check=RedisPing(url=f"redis://127.0.0.1:{port}", keep=how == HOW[1]),
            workload=workload if how == HOW[0] else Deaf(of=workload),
            recovery_actions=[{"action": "restart", "settle": 0.1}],
            **policy,
        )
    took = {}
    limits = Limits(budget_floor=1000)
    async with (
        Supervisor(list(services.values()), journal=journal, limits=limits) as supervisor,
        hearing(supervisor) as heard,
    ):
        for service in services.values():
            await until_state(supervisor, service.name, "healthy", within=10.0)
        await anyio.sleep(0.3)  # what is killed before anybody listens is only found by polling
        for how, service in services.items():
            killed = await anyio.to_thread.run_sync(runs[how][2])
            await heard.state(service.name, "healthy", nth=2, within=30.0)
            took[how] = time.monotonic() - killed
    return took


def beside_polling(what: str, took: Mapping[str, float]) -> str:
    """Return a line to be printed."""
    said = ", ".join(f"{how} {seconds:.1f} s" for how, seconds in took.items())
    return f"\nSIGKILL of {what} to the next good check (a check every {INTERVAL:g} s): {said}"
