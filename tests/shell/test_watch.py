"""Listening to workloads: a death is known in milliseconds, and a watch that ends starts anew."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import attrs
import pytest

from selfheal import CheckContext, CheckResult, Service, Supervisor
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.process_check import ProcessCheck
from selfheal.core.messages import WatchReported
from selfheal.core.model import PASSING, Backoff, Instance, Limits, Run
from selfheal.journal import SqliteStore
from selfheal.plugins import Context
from selfheal.shell import watch
from selfheal.testing.doubles import ScriptedCheck, ScriptedWorkload

if TYPE_CHECKING:
    from tests.shell.supervised import QUICK, RESTART, Switch, hearing, quick, stored, until, until_state
else:
    from supervised import QUICK, RESTART, Switch, hearing, quick, stored, until, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

PATIENT: dict[str, Any] = {
    **QUICK,
    "interval": 30.0,
    "timeout": 1.0,
    "failure_threshold": 3,
    "backoff": Backoff(initial=0.0, cap=0.0),
}
"""Polling alone would take a minute and a half."""


async def test_from_the_death_of_a_process_to_the_intent_are_milliseconds(tmp_path: Path) -> None:
    workload = ProcessWorkload(command=["sleep", "600"], output=Path(os.devnull))
    service = Service("program", check=ProcessCheck(restarts=1000), workload=workload, recovery_actions=RESTART,
                      **PATIENT)  # fmt: skip
    took: list[float] = []
    whole: list[float] = []
    limits = Limits(budget_floor=1000)
    async with (
        Supervisor([service], journal=tmp_path / "selfheal.db", limits=limits) as supervisor,
        hearing(supervisor) as heard,
    ):
        await until_state(supervisor, "program", "healthy", within=40.0)
        running = supervisor._running
        assert running is not None
        for n in range(1, 11):
            instance = await running.actions.look(running.roster.entries["program"])
            at = running.loop.at()
            os.kill(int(instance.id.partition(":")[0]), signal.SIGKILL)
            intended = await heard.first("intended", nth=n)
            took.append(intended.at - at)
            ended = await heard.first("ended", nth=n)
            whole.append(ended.at - at)
            await heard.state("program", "healthy", nth=n + 1, within=10.0)
    milliseconds = sorted(1000.0 * seconds for seconds in took)
    ends = sorted(1000.0 * seconds for seconds in whole)
    print(
        f"\nSIGKILL to Intended: median {statistics.median(milliseconds):.1f} ms "
        f"[{milliseconds[0]:.1f}-{milliseconds[-1]:.1f}]; to the end of the restart: {statistics.median(ends):.1f} ms"
    )
    assert milliseconds[-1] < 1000.0


@attrs.frozen(kw_only=True)
class Fickle(ScriptedWorkload):
    """A workload whose watch breaks off again and again."""

    kind: ClassVar[str] = "fickle"
    begun: list[float] = attrs.field(factory=list, eq=False)
    how: str = "raises"

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        self.begun.append(time.monotonic())
        seen = len(self.history)
        while len(self.begun) > 2:  # the third holds
            await asyncio.sleep(0.005)
            while seen < len(self.history):
                seen += 1
                yield self.history[seen - 1]
        if self.how == "raises":
            raise ConnectionResetError("the socket of the engine was closed")


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_a_watch_that_ends_starts_anew(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "AGAIN", (0.1, 0.4))
    workload = Fickle(how=how)
    service = quick("api", check=ScriptedCheck(), workload=workload, recovery_actions=RESTART, interval=30.0)
    async with Supervisor([service], journal=None) as supervisor:
        await until(lambda: len(workload.begun) == 3, what="the third watch")
        first, second, third = workload.begun
        assert second - first >= 0.1
        assert third - second >= 0.2  # it doubles
        await until_state(supervisor, "api", "healthy")


async def test_a_watch_whose_loop_another_plugin_blocks_starts_anew_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "AGAIN", (0.1, 0.4))
    blocked: list[float] = []

    @attrs.frozen(kw_only=True)
    class Blocking:
        kind: ClassVar[str] = "blocking"

        async def check(self, context: CheckContext) -> CheckResult:
            if not blocked:
                blocked.append(time.monotonic())
                time.sleep(1.0)  # noqa: ASYNC251  # the plugin's fault is the subject
            return PASSING

    @attrs.frozen(kw_only=True)
    class Listening(ScriptedWorkload):
        kind: ClassVar[str] = "listening"
        begun: list[float] = attrs.field(factory=list, eq=False)

        async def watch(self, context: Context) -> AsyncIterator[Instance]:
            self.begun.append(time.monotonic())
            async for instance in super().watch(context):
                yield instance

    workload = Listening()
    services = [
        quick("heard", check=ScriptedCheck(), workload=workload, recovery_actions=RESTART),
        quick("blocks", check=Blocking(), timeout=0.19),
    ]
    async with Supervisor(services, journal=None) as supervisor:
        await until(lambda: len(workload.begun) == 2, what="the second watch")
        await until_state(supervisor, "heard", "healthy")
        assert any("blocks its loop" in line for line in (await supervisor.ask("health"))["plugins"])


async def test_what_a_watch_repeats_is_no_news(tmp_path: Path) -> None:
    @attrs.frozen(kw_only=True)
    class Chatty(ScriptedWorkload):
        kind: ClassVar[str] = "chatty"

        async def watch(self, context: Context) -> AsyncIterator[Instance]:
            while True:
                await asyncio.sleep(0.002)
                yield self.current

    service = quick("api", check=Switch(), workload=Chatty())
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor:
        await until_state(supervisor, "api", "healthy")
        await anyio.sleep(0.5)
    store = SqliteStore.open(tmp_path / "selfheal.db")
    reports = [batch for batch in store.batches() if isinstance(batch.input, WatchReported)]
    store.close()
    assert len(reports) == 1


async def test_what_a_watch_says_that_is_no_instance_is_passed_over() -> None:
    @attrs.frozen(kw_only=True)
    class Babbling(ScriptedWorkload):
        kind: ClassVar[str] = "babbling"

        async def watch(self, context: Context) -> AsyncIterator[Any]:
            for word in (None, 7, "exited", Instance(id="x", run=Run.RUNNING)):
                yield word
            await asyncio.sleep(3600)

    async with Supervisor([quick("api", check=Switch(), workload=Babbling())], journal=None) as supervisor:
        await until_state(supervisor, "api", "healthy")


async def test_a_replaced_workload_is_watched_in_place_of_the_old(tmp_path: Path) -> None:
    old, new = ScriptedWorkload(name="old"), ScriptedWorkload(name="new")
    options: dict[str, Any] = {"interval": 30.0, "timeout": 1.0, "recovery_actions": RESTART, "failure_threshold": 3}
    check = ScriptedCheck()
    services = [quick("api", check=check, workload=old, **options), quick("b", check=Switch())]
    async with Supervisor(services, journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
        await until_state(supervisor, "api", "healthy")
        await supervisor.register(quick("api", check=check, workload=new, **options), replace=True)
        await until_state(supervisor, "api", "healthy")
        old.end()
        await anyio.sleep(0.2)
        assert heard.of("intended") == []
        assert (await supervisor.ask("service", service="api"))["state"] == "healthy"
    reports = _reports(tmp_path / "selfheal.db")
    assert "old-1" not in reports
    assert stored(tmp_path / "selfheal.db")


def _reports(path: Path) -> list[str]:
    store = SqliteStore.open(path)
    try:
        return [b.input.instance.id for b in store.batches() if isinstance(b.input, WatchReported) and b.input.instance]
    finally:
        store.close()
