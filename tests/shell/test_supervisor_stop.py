"""The stop: bounded whatever hangs, recorded as what it was, and what is ours is taken along."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import attrs
import pytest
from tests.broken import fails_when

from selfheal import Service, Supervisor
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.process_check import ProcessCheck
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.core.model import Backoff, CheckResult, Effect, Settled, Verdict
from selfheal.core.routing import Route
from selfheal.plugins import ActionContext, CheckContext
from selfheal.shell import running as running_module
from selfheal.shell.contexts import Act
from selfheal.shell.names import Resolver
from selfheal.testing.doubles import RecordingNotifier, ScriptedCheck, ScriptedWorkload
from selfheal.testing.servers import SilentResolver, hang

if TYPE_CHECKING:
    from tests.shell.supervised import (
        MEND,
        QUICK,
        RESTART,
        Switch,
        hearing,
        quick,
        stored,
        until,
        until_reason,
        until_state,
    )
else:
    from supervised import MEND, QUICK, RESTART, Switch, hearing, quick, stored, until, until_reason, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

BOUND = 5.0
"""Seconds a stop may take (G23)."""

FAILING = CheckResult(Verdict.FAILING, summary="a test says so")
SLOW: dict[str, Any] = {**QUICK, "interval": 60.0, "timeout": 50.0}


@attrs.frozen
class Stubborn:
    """An action of a plugin that takes for ever, and may ignore its cancellation."""

    kind: ClassVar[str] = "stubborn"
    verb: ClassVar[str] = "mend"
    effect: ClassVar[Effect] = Effect.GENTLE
    begun: threading.Event = attrs.field(factory=threading.Event, eq=False)
    tidied: list[float] = attrs.field(factory=list, eq=False)
    takes: float = 0.0
    ignores: bool = False
    released: threading.Event = attrs.field(factory=threading.Event, eq=False)

    async def run(self, context: ActionContext) -> None:
        self.begun.set()
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if self.ignores and not self.released.is_set():
                    continue
                await asyncio.sleep(self.takes)
                self.tidied.append(time.monotonic())
                raise

    async def probe(self, context: ActionContext) -> Settled | None:
        return None


def hanging(count: int, wire: str, blocked: threading.Event) -> list[Service]:
    """Return services whose checks hang by every road: in a coroutine, in a thread, on the wire, of the application."""

    async def never() -> bool:
        await anyio.sleep_forever()
        return True

    made = []
    for n in range(count):
        check: Any = (
            ScriptedCheck(script=(3600.0, FAILING)),
            TcpCheck(address=wire),
            lambda: blocked.wait(60.0),
            Deaf(released=blocked),
            never,
        )[n % 5]
        made.append(Service(f"hangs-{n}", check=check, **SLOW))
    return made


@attrs.frozen
class Deaf:
    """A check that ignores its cancellation, until the test is over."""

    kind: ClassVar[str] = "deaf"
    released: threading.Event = attrs.field(eq=False)

    async def check(self, context: CheckContext) -> CheckResult:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if self.released.is_set():
                    raise


async def test_g23_the_stop_is_bounded_whatever_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver, blocked = SilentResolver(), threading.Event()
    monkeypatch.setattr(running_module, "Resolver", lambda: Resolver(lookup=resolver))
    action = Stubborn(ignores=True)
    with hang() as wire:
        services = hanging(50, wire, blocked)
        services += [Service(f"named-{n}", check=TcpCheck(address=f"hang{n}.example:80"), **SLOW) for n in range(20)]
        services.append(quick("mended", check=Switch(False), recovery_actions=[action]))
        notifier = RecordingNotifier(script=(3600.0, None))
        supervisor = Supervisor(services, journal=tmp_path / "selfheal.db", notifiers={"people": notifier})
        async with supervisor:
            await until(action.begun.is_set, what="the action", within=10.0)
            await anyio.sleep(0.5)
            began = time.monotonic()
        took = time.monotonic() - began
    blocked.set()
    action.released.set()
    resolver.released.set()
    print(f"\nstop with 50 hanging checks, 20 silent names, a deaf action and a hanging notifier: {took:.2f} s")
    assert took < BOUND
    ended = [record for record in stored(tmp_path / "selfheal.db") if record.kind == "ended"]
    assert [record.settled for record in ended] == [Settled.IN_DOUBT]  # nobody knows what a deaf one still does


async def test_s35_an_action_under_way_at_the_stop_is_recorded_as_interrupted(tmp_path: Path) -> None:
    action = Stubborn(takes=0.3)
    service = quick("mended", check=Switch(False), recovery_actions=[action])
    async with Supervisor([service], journal=tmp_path / "selfheal.db"):
        await until(action.begun.is_set, what="the action")
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    assert len(action.tidied) == 1  # it was waited for: it had the time to end what it began
    ended = [record for record in stored(tmp_path / "selfheal.db") if record.kind == "ended"]
    assert [(record.settled, record.detail) for record in ended] == [(Settled.INTERRUPTED, "selfheal was stopped")]


@fails_when("a start uses an attempt")
async def test_s35_a_stop_during_backoff_spends_nothing_and_goes_on_afterwards(tmp_path: Path) -> None:
    check, cures = Switch(False), list[str]()
    backoff = Backoff(initial=30.0, cap=30.0, jitter=0.0)

    def made() -> Supervisor:
        supervisor = Supervisor(journal=tmp_path / "selfheal.db")
        supervisor.service("api", recovery_actions=MEND, **{**QUICK, "backoff": backoff})(check)
        supervisor.action("api", "mend")(lambda context: cures.append(context.key))
        return supervisor

    async with made() as supervisor, hearing(supervisor) as heard:
        await heard.first("ended")
        await until_reason(supervisor, "api", "backoff")
    before = stored(tmp_path / "selfheal.db")
    assert before[-1].kind != "intended"
    assert [r.settled for r in before if r.kind == "ended"] == [Settled.DONE]
    async with made() as supervisor:
        asked = await until_state(supervisor, "api", "failed")
        assert asked["attempt"] == 1
        await until_reason(supervisor, "api", "backoff")
    assert len(cures) == 1


@pytest.mark.parametrize("along", [True, False])
async def test_a_program_of_ours_ends_with_us_unless_told_otherwise(tmp_path: Path, along: bool) -> None:
    workload = ProcessWorkload(command=["sleep", "600"], stop_with_selfheal=along)
    service = quick("program", check=ProcessCheck(), workload=workload)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor:
        await until_state(supervisor, "program", "healthy")
        running = supervisor._running
        assert running is not None
        pid = int((await running.actions.look(running.roster.entries["program"])).id.partition(":")[0])
    lives = _lives(pid)
    if lives:
        os.kill(pid, 9)
    assert lives is not along


def _stop_by_hand(running: Any, workload: Any) -> Any:
    return workload.stop(running.contexts.for_action("program", workload, 10.0, Act(key="by-hand")))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_person_s_stop_outlives_a_restart_of_selfheal(tmp_path: Path) -> None:
    """Neither the start of selfheal nor a repair starts what a person has stopped (law 17)."""
    workload = ProcessWorkload(command=["sleep", "600"])
    service = quick("program", check=ProcessCheck(), workload=workload, recovery_actions=RESTART)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor:
        await until_state(supervisor, "program", "healthy")
        running = supervisor._running
        assert running is not None
        entry = running.roster.entries["program"]
        mine: Any = entry.workload
        outcome = await running.loops.run(
            "program",
            partial(_stop_by_hand, running, mine),
            timeout=10.0,
            kind="other",
        )
        assert outcome.error is None
        await until_state(supervisor, "program", "failed")
        assert (await running.actions.look(entry)).run == "stopped"
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor:
        await anyio.sleep(1.0)
        running = supervisor._running
        assert running is not None
        assert (await running.actions.look(running.roster.entries["program"])).run == "stopped"
    assert [r for r in stored(tmp_path / "selfheal.db") if r.kind == "ended" and r.settled is Settled.DONE] == []


async def test_a_program_that_has_died_is_repaired_past_the_guards_and_not_simply_started(tmp_path: Path) -> None:
    """It died while selfheal was away. A start that no record tells of would spend no budget and ask no guard."""
    workload = ProcessWorkload(command=["sleep", "600"], stop_with_selfheal=False)
    service = quick("program", check=ProcessCheck(), workload=workload, recovery_actions=RESTART)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor:
        await until_state(supervisor, "program", "healthy")
        running = supervisor._running
        assert running is not None
        pid = int((await running.actions.look(running.roster.entries["program"])).id.partition(":")[0])
    os.kill(pid, 9)
    paused = Supervisor([service], journal=tmp_path / "selfheal.db")
    async with paused:
        await paused.act("pause", everything=True, actor="alice", reason="a test")
        await anyio.sleep(0.6)
        await until_state(paused, "program", "failed")
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
        await anyio.sleep(0.5)
        assert heard.of("intended") == []
        await supervisor.act("resume", everything=True, actor="alice", reason="a test")
        await heard.first("intended", service="program")
        await heard.state("program", "healthy", nth=2)  # the first was in another life
        await supervisor.act("disable", service="program", actor="alice", reason="a test")
        running = supervisor._running
        assert running is not None
        pid = int((await running.actions.look(running.roster.entries["program"])).id.partition(":")[0])
    os.kill(pid, 9)


async def test_what_is_disabled_is_not_started_at_the_start(tmp_path: Path) -> None:
    workload = ProcessWorkload(command=["sleep", "600"])
    service = quick("program", check=ProcessCheck(), workload=workload, enabled=False)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor:
        await anyio.sleep(0.4)
        running = supervisor._running
        assert running is not None
        assert (await running.actions.look(running.roster.entries["program"])).run == "absent"


async def test_messages_that_went_out_while_stopping_are_not_sent_again(tmp_path: Path) -> None:
    check = Switch(False)
    first = RecordingNotifier(script=(0.3, None))

    def made(notifier: RecordingNotifier) -> Supervisor:
        route = Route(notifier="people", group_wait=0.0)
        return Supervisor(
            [quick("api", check=check)],
            journal=tmp_path / "selfheal.db",
            notifiers={"people": notifier},
            routes=[route],
        )

    async with made(first) as supervisor, hearing(supervisor) as heard:
        await heard.first("alert_changed", service="api")
        await until(lambda: supervisor._running.outbox.standing()[0].sending)  # type: ignore[union-attr]
    assert len(first.sent) == 1
    again = RecordingNotifier()
    async with made(again) as supervisor:
        await until_state(supervisor, "api", "failed")
        await anyio.sleep(0.5)
    assert [message.id for message in again.sent if message.id == first.sent[0].id] == []


def test_the_interpreter_ends_though_names_are_silent(tmp_path: Path) -> None:
    """A hung lookup lives in a thread that cannot be ended; the process ends all the same."""
    script = """
import anyio, sys, threading, time
from selfheal import Service, Supervisor
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.shell import names, running
running.Resolver = lambda: names.Resolver(lookup=lambda host, port: time.sleep(60))
async def main():
    services = [Service(f"s{n}", check=TcpCheck(address=f"n{n}.example:80")) for n in range(20)]
    services += [Service("blocked", check=lambda: time.sleep(60))]
    async with Supervisor(services, journal=None):
        await anyio.sleep(0.5)
anyio.run(main)
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert time.monotonic() - began < 0.5 + BOUND + 2.0


async def test_nothing_starts_any_more_once_it_is_stopping(tmp_path: Path) -> None:
    """While a slow program ends, the other services' timers go on; none of them may act."""
    late = ScriptedWorkload()
    slow = ProcessWorkload(
        command=[
            sys.executable,
            "-c",
            "import signal,time; signal.signal(15, lambda *a: time.sleep(1.5) or exit())\nwhile True: time.sleep(1)",
        ]
    )
    services = [
        quick("slow", check=Switch(), workload=slow),
        quick("late", check=Switch(False), workload=late, recovery_actions=RESTART, failure_threshold=8),
    ]
    async with Supervisor(services, journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
        await heard.state("slow", "healthy")
        await until(lambda: len(heard.of("moved", service="late")) > 0)
    kinds = [record.kind for record in stored(tmp_path / "selfheal.db")]
    assert "intended" not in kinds
    assert late.keys == []
