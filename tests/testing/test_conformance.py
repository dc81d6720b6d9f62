"""A small zoo: one well-behaved plugin of each kind passes every duty, and each offender is caught by its own."""

# ruff: noqa: ASYNC220, ASYNC221, ASYNC251  # blocking a loop is one of the offences
from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import count
from math import nan
from typing import Any, ClassVar

import attrs
import pytest

from selfheal.core.model import PASSING, Cause, CheckResult, Effect, Instance, Notification, Run, Settled, Verdict
from selfheal.errors import ActionFailed, NotificationFailed, Problem
from selfheal.plugins import ActionContext, CheckContext, Context
from selfheal.secret import Secret
from selfheal.shell.plugin_thread import ACTION_GRACE, SLOW_STEP
from selfheal.testing import servers
from selfheal.testing.conformance import (
    ActionConformance,
    CheckConformance,
    NotifierConformance,
    WorkloadConformance,
)
from selfheal.testing.doubles import ScriptedWorkload
from selfheal.wire import Talk, Target, read_until

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module", autouse=True)
def well() -> Iterator[None]:
    """A server that answers PONG."""
    with servers.pong() as address:
        SERVER.append(address)
        yield
        SERVER.pop()


SERVER: list[str] = []


def duties(conformance: type) -> list[str]:
    return [name for name in dir(conformance) if name.startswith("test_")]


def passes(conformance: type, duty: str) -> None:
    getattr(conformance(), duty)()


def caught(conformance: type, duty: str) -> str:
    class Impatient(conformance):  # type: ignore[misc]  # a class given by its name
        patience = 0.5  # what offends here is never mended, however long one waits

    with pytest.raises(AssertionError) as found:
        getattr(Impatient(), duty)()
    return str(found.value)


# -- checks ---------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Good:
    """PING, PONG."""

    kind: ClassVar[str] = "zoo"
    address: str
    password: Secret = attrs.field(factory=lambda: Secret("hunter22-secret"))

    async def check(self, context: CheckContext) -> CheckResult:
        reader, writer = await self.connect()
        try:
            writer.write(b"PING\r\n")
            reply = await reader.read(64)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return self.judge(reply)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    def judge(self, reply: bytes) -> CheckResult:
        if reply == b"+PONG\r\n":
            return PASSING
        return CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary="no PONG")


@attrs.frozen(kw_only=True)
class Wire:
    kind: ClassVar[str] = "zoo-wire"
    address: str

    def target(self) -> Target:
        host, _, port = self.address.rpartition(":")
        return Target(host=host, port=int(port))

    def talk(self) -> Talk:
        line, _ = yield from read_until(b"\r\n", (yield b"PING\r\n"))
        return PASSING if line == b"+PONG\r\n" else CheckResult(Verdict.FAILING, cause=Cause.ERROR)


@attrs.frozen(kw_only=True)
class Both(Good):
    """The same by a talk, beside its check; and it can prove that it will work."""

    kind: ClassVar[str] = "zoo-both"

    def target(self) -> Target:
        return Wire(address=self.address).target()

    def talk(self) -> Talk:
        return Wire(address=self.address).talk()

    async def doctor(self, context: Context) -> list[Problem]:
        return [] if self.address == SERVER[-1] else [await self.complaint(context)]

    async def complaint(self, context: Context) -> Problem:
        return Problem(path="check.address", message="it is another", hint="write the right one")


def conformance_of(specimen: type) -> type[CheckConformance]:
    class Conformance(CheckConformance):
        runs = 20

        def make(self) -> Any:
            return specimen(address=SERVER[-1])

        def make_broken(self, fault: str, address: str) -> Any:
            return None if fault in getattr(specimen, "untried", ()) else specimen(address=address)

    return Conformance


@pytest.mark.parametrize("duty", duties(CheckConformance))
@pytest.mark.parametrize("specimen", [Good, Wire, Both])
def test_a_good_check_does_every_duty(specimen: type, duty: str) -> None:
    passes(conformance_of(specimen), duty)


class Changeable(Good):
    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


class SaysDown(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        return CheckResult(Verdict.FAILING, cause=Cause.ERROR)


class SwallowsErrors(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        with contextlib.suppress(OSError):
            await super().check(context)
        return PASSING


class NoCause(Good):
    def judge(self, reply: bytes) -> CheckResult:
        return PASSING if reply == b"+PONG\r\n" else CheckResult(Verdict.FAILING)


class IgnoresCancellation(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        end = time.monotonic() + 1.5
        result = PASSING
        done = asyncio.ensure_future(super().check(context))
        while not done.done() and time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([done], timeout=0.1)
        if done.done():
            result = done.result()
        else:
            done.cancel()
        return result


class SlowGoodbye(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        try:
            return await super().check(context)
        finally:
            if self.address != SERVER[-1]:
                await asyncio.sleep(0.15)


OPENED: list[Any] = []


class LeaksConnections(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        OPENED.append(os.open(os.devnull, os.O_RDONLY))
        return await super().check(context)


class LeaksTasks(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        OPENED.append(asyncio.ensure_future(asyncio.sleep(60.0)))
        return await super().check(context)


class LeaksThreads(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        threading.Thread(target=time.sleep, args=(5.0,), daemon=True).start()
        return await super().check(context)


class Chatty(Good):
    def judge(self, reply: bytes) -> CheckResult:
        return attrs.evolve(super().judge(reply), summary="reply " * 1000)


class ManyDetails(Good):
    def judge(self, reply: bytes) -> CheckResult:
        return attrs.evolve(super().judge(reply), details={str(number): number for number in range(100)})


class ReadsEverything(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        if self.address == SERVER[-1]:
            return await super().check(context)
        reader, writer = await self.connect()
        try:
            writer.write(b"PING\r\n")
            return self.judge(await reader.read())
        finally:
            writer.close()


class SecretInResult(Good):
    def judge(self, reply: bytes) -> CheckResult:
        return attrs.evolve(super().judge(reply), summary=f"as user:{self.password.reveal()}")


class SecretInError(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        if self.address != SERVER[-1]:
            raise RuntimeError(f"redis://:{self.password.reveal()}@host")
        return PASSING


class SecretInRepr(Good):
    def __repr__(self) -> str:
        return f"Check({self.password.reveal()})"


class OneAtATime(Good):
    busy: ClassVar[list[None]] = []

    async def check(self, context: CheckContext) -> CheckResult:
        if self.busy:
            raise RuntimeError("busy")
        self.busy.append(None)
        try:
            await asyncio.sleep(0.01)
            return await super().check(context)
        finally:
            self.busy.pop()


class Blocks(Good):
    async def check(self, context: CheckContext) -> CheckResult:
        time.sleep(0.09)
        return await super().check(context)


class UntriedAgainstResets(Good):
    untried: ClassVar[tuple[str, ...]] = ("reset",)


class NotJson(Good):
    def judge(self, reply: bytes) -> CheckResult:
        return attrs.evolve(super().judge(reply), details={"share": nan})


class NewInstanceEachTime(Good):
    numbers: ClassVar[Iterator[int]] = count()

    def judge(self, reply: bytes) -> CheckResult:
        return attrs.evolve(super().judge(reply), instance=f"run-{next(self.numbers)}")


class DoctorRaises(Both):
    async def complaint(self, context: Context) -> Problem:
        raise OSError("cannot be reached")


class DoctorTellsItsSecret(Both):
    async def complaint(self, context: Context) -> Problem:
        return Problem(path="check", message=f"redis://:{self.password.reveal()}@", hint="write the right one")


class DoctorKnowsNoRemedy(Both):
    async def complaint(self, context: Context) -> Problem:
        return Problem(path="check", message="it does not work")


class DoctorWillNotEnd(Both):
    async def complaint(self, context: Context) -> Problem:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)
        return await super().complaint(context)


class DoctorComplainsAnyway(Both):
    async def doctor(self, context: Context) -> list[Problem]:
        return [await self.complaint(context)]


class DoctorIsAlwaysPleased(Both):
    async def doctor(self, context: Context) -> list[Problem]:
        return []


class DoctorSaysSo(Both):
    async def doctor(self, context: Context) -> Any:
        return "all is well"


@pytest.mark.parametrize(
    ("offender", "words"),
    [
        (DoctorRaises, "raised"),
        (DoctorTellsItsSecret, "shows a secret"),
        (DoctorKnowsNoRemedy, "what is to be done"),
        (DoctorWillNotEnd, "does not end"),
        (DoctorComplainsAnyway, "all is well"),
        (DoctorIsAlwaysPleased, "nobody whom it could ask"),
        (DoctorSaysSo, "list of Problem"),
    ],
)
def test_whatever_a_doctor_does_wrong_is_named(offender: type, words: str) -> None:
    assert words in caught(conformance_of(offender), "test_proves_without_acting")


class PassesByItsTalkAlone(Both):
    async def check(self, context: CheckContext) -> CheckResult:
        return CheckResult(Verdict.FAILING, cause=Cause.ERROR)


class PassesByItsCheckAlone(Both):
    def talk(self) -> Talk:
        yield b"PING\r\n"
        return CheckResult(Verdict.FAILING, cause=Cause.ERROR)


class TellsItsSecretByTalk(Both):
    def talk(self) -> Talk:
        yield b"PING\r\n"
        return CheckResult(Verdict.PASSING, summary=f"as user:{self.password.reveal()}")


@pytest.mark.parametrize(
    ("offender", "duty", "road"),
    [
        (PassesByItsTalkAlone, "test_passes_when_all_is_well", "check"),
        (PassesByItsCheckAlone, "test_passes_when_all_is_well", "talk"),
        (TellsItsSecretByTalk, "test_keeps_its_secrets", "talk"),
    ],
)
def test_a_check_with_two_roads_is_held_to_its_duties_on_each(offender: type, duty: str, road: str) -> None:
    assert f"by its `{road}`" in caught(conformance_of(offender), duty)


def test_the_check_of_two_roads_is_told_that_it_is_the_deep_one() -> None:
    deep: list[bool] = []

    class Noted(Both):
        async def check(self, context: CheckContext) -> CheckResult:
            deep.append(context.deep)
            return await super().check(context)

    passes(conformance_of(Noted), "test_passes_when_all_is_well")
    assert set(deep) == {True}


@pytest.mark.parametrize(
    ("offender", "duty"),
    [
        (DoctorRaises, "test_proves_without_acting"),
        (Changeable, "test_is_frozen_and_has_a_kind"),
        (SaysDown, "test_passes_when_all_is_well"),
        (SwallowsErrors, "test_never_passes_on_error"),
        (NoCause, "test_names_a_cause_when_failing"),
        (IgnoresCancellation, "test_honours_its_deadline"),
        (SlowGoodbye, "test_honours_its_deadline"),
        (IgnoresCancellation, "test_can_be_cancelled"),
        (SlowGoodbye, "test_can_be_cancelled"),
        (LeaksConnections, "test_leaves_nothing_behind"),
        (LeaksTasks, "test_leaves_nothing_behind"),
        (LeaksThreads, "test_leaves_nothing_behind"),
        (Chatty, "test_bounds_its_output"),
        (ManyDetails, "test_bounds_its_output"),
        (ReadsEverything, "test_bounds_its_output"),
        (SecretInResult, "test_keeps_its_secrets"),
        (SecretInError, "test_keeps_its_secrets"),
        (SecretInRepr, "test_keeps_its_secrets"),
        (OneAtATime, "test_works_twice_at_once"),
        (Blocks, "test_does_not_block_the_loop"),
        (NotJson, "test_can_be_written_as_json"),
        (NewInstanceEachTime, "test_names_its_instance_steadily"),
        (UntriedAgainstResets, "test_passes_over_nothing_in_silence"),
    ],
)
def test_a_bad_check_is_caught_by_its_duty(offender: type, duty: str) -> None:
    try:
        assert caught(conformance_of(offender), duty)
    finally:
        while OPENED:
            opened = OPENED.pop()
            if isinstance(opened, int):
                os.close(opened)


class SlowNowAndThen(Good):
    """Stands on the loop of all so often that it gets one of its own, in the midst of what is counted."""

    calls: ClassVar[Iterator[int]] = count()

    async def check(self, context: CheckContext) -> CheckResult:
        if next(self.calls) in (4, 5, 6):
            time.sleep(1.2 * SLOW_STEP)
        return await super().check(context)


class SlowAndLeaves(SlowNowAndThen):
    async def check(self, context: CheckContext) -> CheckResult:
        OPENED.append(asyncio.ensure_future(asyncio.sleep(60.0)))
        return await super().check(context)


@pytest.mark.parametrize("left", ["nothing", "tasks"])
def test_a_loop_of_its_own_is_not_left_behind_by_a_plugin_but_what_it_leaves_there_is(left: str) -> None:
    SlowNowAndThen.calls = count()
    conformance = conformance_of({"nothing": SlowNowAndThen, "tasks": SlowAndLeaves}[left])
    if left == "nothing":
        passes(conformance, "test_leaves_nothing_behind")
    else:
        assert "'tasks': 20" in caught(conformance, "test_leaves_nothing_behind")
    assert next(SlowNowAndThen.calls) > 6
    OPENED.clear()


def test_every_duty_of_a_check_has_its_offender() -> None:
    (mark,) = [mark for mark in test_a_bad_check_is_caught_by_its_duty.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {duty for _, duty in mark.args[1]} == set(duties(CheckConformance))


# -- workloads ------------------------------------------------------------------------------------------------------


class Careful(ScriptedWorkload):
    """It does nothing to another incarnation than the one that failed, and knows afterwards what became of it."""

    async def restart(self, context: ActionContext) -> None:
        self.meant(context)
        await super().restart(context)

    async def stop(self, context: ActionContext) -> None:
        self.meant(context)
        self.end(Run.STOPPED)

    async def start(self, context: ActionContext) -> None:
        raise ActionFailed("nobody asked for that")

    def meant(self, context: ActionContext) -> None:
        if context.expected is not None and context.expected.id != self.current.id:
            raise ActionFailed(f"{self.current.id} runs by now")

    async def probe(self, context: ActionContext) -> Settled | None:
        return Settled.DONE if context.key in self.keys else Settled.NOT_STARTED

    async def doctor(self, context: Context) -> list[Problem]:
        return []


class WorkloadZoo(WorkloadConformance):
    runs = 5
    specimen: ClassVar[type] = Careful
    inapplicable: ClassVar[Mapping[str, str]] = {
        "make_absent": "what is in memory is there",
        "make_broken": "it asks nobody",
    }

    def make(self) -> Any:
        return self.specimen()


@pytest.mark.parametrize("duty", duties(WorkloadConformance))
def test_a_good_workload_does_every_duty(duty: str) -> None:
    passes(WorkloadZoo, duty)


class NewIdEachTime(Careful):
    async def inspect(self, context: Context) -> Instance:
        return Instance(id=str(time.monotonic_ns()), run=Run.RUNNING)


class SameIdAfterRestart(Careful):
    async def inspect(self, context: Context) -> Instance:
        return Instance(id="the-container", run=Run.RUNNING)


class RunsWhenAbsent(SameIdAfterRestart):
    pass


class AssumesTheBest(Careful):
    async def inspect(self, context: Context) -> Instance:
        return self.history[-1]


class Deaf(Careful):
    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        while True:
            await asyncio.sleep(1.0)
            yield self.history[0]


class SleepyInspect(Careful):
    async def inspect(self, context: Context) -> Instance:
        time.sleep(0.09)
        return self.current


class StubbornInspect(Careful):
    async def inspect(self, context: Context) -> Instance:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return self.current


class LeakyInspect(Careful):
    async def inspect(self, context: Context) -> Instance:
        OPENED.append(asyncio.ensure_future(asyncio.sleep(60.0)))
        return self.current


class TellingInspect(Careful):
    def __repr__(self) -> str:
        return "token=workload-secret"


class ChangeableWorkload(Careful):
    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


class Unwatched(Careful):
    watch = None  # type: ignore[assignment]  # so that it has none


class RestartsWhateverRuns(Careful):
    def meant(self, context: ActionContext) -> None:
        pass


class StopsWhateverRuns(Careful):
    async def stop(self, context: ActionContext) -> None:
        self.end(Run.STOPPED)


class SaysItDidIt(Careful):
    async def restart(self, context: ActionContext) -> None:
        with contextlib.suppress(ActionFailed):
            await super().restart(context)


class ProbeRestarts(Careful):
    async def probe(self, context: ActionContext) -> Settled | None:
        await ScriptedWorkload.restart(self, context)
        return Settled.DONE


class ProbeRaises(Careful):
    async def probe(self, context: ActionContext) -> Settled | None:
        raise OSError("nobody answers")


class ProbeNeverSaw(Careful):
    async def probe(self, context: ActionContext) -> Settled | None:
        return Settled.NOT_STARTED


class DoctorRestarts(Careful):
    async def doctor(self, context: Any) -> list[Problem]:
        await ScriptedWorkload.restart(self, context)
        return []


@pytest.mark.parametrize(
    ("offender", "duty"),
    [
        (Unwatched, "test_passes_over_nothing_in_silence"),
        (RestartsWhateverRuns, "test_leaves_another_instance_alone"),
        (StopsWhateverRuns, "test_leaves_another_instance_alone"),
        (SaysItDidIt, "test_leaves_another_instance_alone"),
        (ProbeRestarts, "test_probe_never_acts"),
        (ProbeRaises, "test_probe_never_acts"),
        (ProbeRaises, "test_probe_knows_a_restart"),
        (ProbeNeverSaw, "test_probe_knows_a_restart"),
        (DoctorRestarts, "test_proves_without_acting"),
        (NewIdEachTime, "test_inspects_a_steady_instance"),
        (SameIdAfterRestart, "test_a_restart_is_a_new_instance"),
        (RunsWhenAbsent, "test_what_is_absent_does_not_run"),
        (AssumesTheBest, "test_never_runs_when_nobody_knows"),
        (Deaf, "test_watch_hears_of_a_restart"),
        (SleepyInspect, "test_does_not_block_the_loop"),
        (StubbornInspect, "test_honours_its_deadline"),
        (StubbornInspect, "test_can_be_cancelled"),
        (LeakyInspect, "test_leaves_nothing_behind"),
        (TellingInspect, "test_keeps_its_secrets"),
        (ChangeableWorkload, "test_is_frozen_and_has_a_kind"),
    ],
)
def test_a_bad_workload_is_caught_by_its_duty(offender: type, duty: str) -> None:
    class Zoo(WorkloadZoo):
        specimen = offender
        secret = "workload-secret"
        inapplicable: ClassVar[Mapping[str, str]] = {}

        def make_absent(self) -> Any:
            return offender()

        def make_broken(self, fault: str, address: str) -> Any:
            return offender()

    assert caught(Zoo, duty)
    OPENED.clear()


# -- actions --------------------------------------------------------------------------------------------------------

DONE: list[str] = []


@attrs.frozen(kw_only=True)
class Mends:
    """Runs a command, once for each key."""

    kind: ClassVar[str] = "zoo.mend"
    verb: ClassVar[str] = "mend"
    effect: ClassVar[Effect] = Effect.GENTLE
    seconds: float = 0.0
    exit_code: int = 0
    address: str = ""
    token: Secret = attrs.field(factory=lambda: Secret("action-secret"))

    def command(self) -> list[str]:
        code = f"import sys, time; time.sleep({self.seconds}); sys.exit({self.exit_code})"
        return [sys.executable, "-S", "-c", code]

    async def run(self, context: ActionContext) -> None:
        if self.address:
            await self.ask()
        if context.key in DONE:
            return
        process = await asyncio.create_subprocess_exec(*self.command())
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if code:
            raise ActionFailed(f"exit code {code}")
        DONE.append(context.key)

    async def ask(self) -> None:
        result = await Good(address=self.address).check(None)  # type: ignore[arg-type]  # it asks for nothing
        if result.verdict is not Verdict.PASSING:
            raise ActionFailed(f"not done: {result.summary}")

    async def probe(self, context: ActionContext) -> Settled | None:
        return Settled.DONE if context.key in DONE else None


@attrs.frozen(kw_only=True)
class MendsWhatItsCheckSees(Mends):
    """It speaks to whom the service's own check speaks, and acts on the incarnation that failed only."""

    async def run(self, context: ActionContext) -> None:
        assert isinstance(context.check, Good)
        self.meant(context)
        await attrs.evolve(self, address=context.check.address).ask()
        await super().run(context)

    def meant(self, context: ActionContext) -> None:
        if context.expected is not None and context.expected.id != RUNS.current.id:
            raise ActionFailed(f"{RUNS.current.id} runs by now")

    async def doctor(self, context: ActionContext) -> list[Problem]:
        assert isinstance(context.check, Good)
        if context.check.address == SERVER[-1]:
            return []
        return [Problem(path="check.address", message="it is another", hint="write the right one")]


RUNS = ScriptedWorkload()


class ActionZoo(ActionConformance):
    runs = 3
    timeout = 5.0
    specimen: ClassVar[Callable[..., Any]] = Mends

    def make(self) -> Any:
        return type(self).specimen()

    def make_slow(self) -> Any:
        return type(self).specimen(seconds=30.0)

    def make_failing(self) -> Any:
        return type(self).specimen(exit_code=3)

    def make_broken(self, fault: str, address: str) -> Any:
        return type(self).specimen(address=address)

    def observe(self) -> object:
        return list(DONE)


@pytest.mark.parametrize("duty", duties(ActionConformance))
def test_a_good_action_does_every_duty(duty: str) -> None:
    DONE.clear()
    passes(ActionZoo, duty)


class BesideZoo(ActionZoo):
    """An action without an address of its own."""

    specimen: ClassVar[Callable[..., Any]] = MendsWhatItsCheckSees
    workload = RUNS

    def __init__(self) -> None:
        self.check = Good(address=SERVER[-1])  # type: ignore[misc]  # there is no server yet when this class is made

    def make_broken(self, fault: str, address: str) -> Any:
        return None

    def check_at(self, address: str) -> Any:
        return Good(address=address)


@pytest.mark.parametrize("duty", duties(ActionConformance))
def test_a_good_action_that_reads_its_address_from_the_check_does_every_duty(duty: str) -> None:
    DONE.clear()
    passes(BesideZoo, duty)


class HidesSilence(MendsWhatItsCheckSees):
    """It has a time-out of its own, a little before the deadline, and takes that for success."""

    async def run(self, context: ActionContext) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(context.remaining / 2):
                await super().run(context)


class SwallowsItsCancellation(MendsWhatItsCheckSees):
    async def run(self, context: ActionContext) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await super().run(context)


class WillNotEnd(MendsWhatItsCheckSees):
    async def run(self, context: ActionContext) -> None:
        end = time.monotonic() + ACTION_GRACE + 1.0
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError, ActionFailed, OSError):
                await super().run(context)
                return


class MendsAnotherToo(MendsWhatItsCheckSees):
    def meant(self, context: ActionContext) -> None:
        pass


class TellsTheChecksPassword(MendsWhatItsCheckSees):
    async def run(self, context: ActionContext) -> None:
        assert isinstance(context.check, Good)
        raise ActionFailed(f"redis://:{context.check.password.reveal()}@{context.check.address}")


class DoctorOfActionRaises(MendsWhatItsCheckSees):
    async def doctor(self, context: ActionContext) -> list[Problem]:
        raise ActionFailed("cannot be reached")


class DoctorMends(MendsWhatItsCheckSees):
    async def doctor(self, context: ActionContext) -> list[Problem]:
        DONE.append(context.key)
        return []


@pytest.mark.parametrize(
    ("offender", "duty"),
    [
        (HidesSilence, "test_fails_by_raising"),
        (SwallowsItsCancellation, "test_can_be_cancelled"),
        (WillNotEnd, "test_honours_its_deadline"),
        (MendsAnotherToo, "test_leaves_another_instance_alone"),
        (TellsTheChecksPassword, "test_keeps_its_secrets"),
        (DoctorOfActionRaises, "test_proves_without_acting"),
        (DoctorMends, "test_proves_without_acting"),
    ],
)
def test_a_bad_action_is_caught_though_its_address_is_the_check_s(offender: Callable[..., Any], duty: str) -> None:
    class Zoo(BesideZoo):
        specimen = offender

    DONE.clear()
    assert caught(Zoo, duty)


class NoVerb(Mends):
    verb = ""


class FireAndForget(Mends):
    async def run(self, context: ActionContext) -> None:
        OPENED.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(30)"]))


class ReturnsItsOutput(Mends):
    async def run(self, context: ActionContext) -> Any:
        await super().run(context)
        return {"removed": 312}


class LeavesItRunning(Mends):
    async def run(self, context: ActionContext) -> None:
        process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(30)"])
        OPENED.append(process)
        await asyncio.sleep(self.seconds)


class AgainAndAgain(Mends):
    async def run(self, context: ActionContext) -> None:
        DONE.append(context.key)


class ProbeKnowsAll(Mends):
    async def probe(self, context: ActionContext) -> Settled | None:
        return Settled.DONE


class ProbeForgets(Mends):
    async def probe(self, context: ActionContext) -> Settled | None:
        return Settled.NOT_STARTED


class ProbeSaysYes(Mends):
    async def probe(self, context: ActionContext) -> Any:
        return True


class ProbeActs(Mends):
    async def probe(self, context: ActionContext) -> Settled | None:
        DONE.append(context.key)
        return None


class ProbeGuesses(Mends):
    async def probe(self, context: ActionContext) -> Settled | None:
        return Settled.FAILED


class HidesFailure(Mends):
    async def run(self, context: ActionContext) -> None:
        with contextlib.suppress(ActionFailed):
            await super().run(context)


class BlockingCommand(Mends):
    async def run(self, context: ActionContext) -> None:
        subprocess.run([sys.executable, "-S", "-c", "import time; time.sleep(0.1)"], check=True)


class TellsItsToken(Mends):
    async def run(self, context: ActionContext) -> None:
        raise ActionFailed(f"curl -H 'Authorization: {self.token.reveal()}'")


class LeakyAction(Mends):
    async def run(self, context: ActionContext) -> None:
        OPENED.append(asyncio.ensure_future(asyncio.sleep(60.0)))


class StubbornAction(Mends):
    async def ask(self) -> None:
        end = time.monotonic() + ACTION_GRACE + 1.0
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)


def never_fails(seconds: float = 0.0, exit_code: int = 0, address: str = "") -> Mends | None:
    return None if exit_code else Mends(seconds=seconds, address=address)


class ChangeableAction(Mends):
    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@pytest.mark.parametrize(
    ("offender", "duty"),
    [
        (never_fails, "test_passes_over_nothing_in_silence"),
        (StubbornAction, "test_honours_its_deadline"),
        (StubbornAction, "test_can_be_cancelled"),
        (NoVerb, "test_says_its_verb_and_effect"),
        (FireAndForget, "test_returns_when_its_command_has_finished"),
        (ReturnsItsOutput, "test_returns_when_its_command_has_finished"),
        (LeavesItRunning, "test_kills_what_it_started_when_cancelled"),
        (AgainAndAgain, "test_a_second_call_does_no_harm"),
        (ProbeKnowsAll, "test_probe_answers"),
        (ProbeForgets, "test_probe_answers"),
        (ProbeSaysYes, "test_probe_answers"),
        (ProbeActs, "test_probe_never_acts"),
        (ProbeGuesses, "test_probe_never_acts"),
        (ProbeKnowsAll, "test_probe_never_acts"),
        (HidesFailure, "test_fails_by_raising"),
        (BlockingCommand, "test_does_not_block_the_loop"),
        (TellsItsToken, "test_keeps_its_secrets"),
        (LeakyAction, "test_leaves_nothing_behind"),
        (ChangeableAction, "test_is_frozen_and_has_a_kind"),
    ],
)
def test_a_bad_action_is_caught_by_its_duty(offender: Callable[..., Any], duty: str) -> None:
    class Zoo(ActionZoo):
        specimen = offender

    DONE.clear()
    try:
        assert caught(Zoo, duty)
    finally:
        while OPENED:
            opened = OPENED.pop()
            if isinstance(opened, subprocess.Popen):
                opened.kill()
                opened.wait()


# -- notifiers ------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Tells:
    kind: ClassVar[str] = "zoo"
    address: str
    refused: bool = False
    token: Secret = attrs.field(factory=lambda: Secret("notifier-secret"))

    async def send(self, notification: Notification, context: Context) -> str | None:
        if self.refused:
            raise NotificationFailed("the receiver says no", permanent=True)
        try:
            async with asyncio.timeout(max(0.0, context.remaining - 0.02)):
                result = await Good(address=self.address).check(context)  # type: ignore[arg-type]
        except OSError as problem:
            raise NotificationFailed(f"not delivered: {type(problem).__name__}") from None
        if result.verdict is not Verdict.PASSING:
            raise NotificationFailed("the receiver answered something else")
        return "receipt-1"


class NotifierZoo(NotifierConformance):
    runs = 5
    specimen: ClassVar[Callable[..., Any]] = Tells

    def make(self) -> Any:
        return type(self).specimen(address=SERVER[-1])

    def make_broken(self, fault: str, address: str) -> Any:
        return type(self).specimen(address=address)

    def make_refusing(self) -> Any:
        return type(self).specimen(address=SERVER[-1], refused=True)


@pytest.mark.parametrize("duty", duties(NotifierConformance))
def test_a_good_notifier_does_every_duty(duty: str) -> None:
    passes(NotifierZoo, duty)


class ReturnsANumber(Tells):
    async def send(self, notification: Notification, context: Context) -> Any:
        return 200


class SaysItDelivered(Tells):
    async def send(self, notification: Notification, context: Context) -> str | None:
        with contextlib.suppress(NotificationFailed):
            return await super().send(notification, context)
        return None


class RaisesItsDriversError(Tells):
    async def send(self, notification: Notification, context: Context) -> str | None:
        await Good(address=self.address).check(context)  # type: ignore[arg-type]
        return None


class StubbornNotifier(Tells):
    async def send(self, notification: Notification, context: Context) -> str | None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return None


class BlockingNotifier(Tells):
    async def send(self, notification: Notification, context: Context) -> str | None:
        time.sleep(0.09)
        return None


class TellingNotifier(Tells):
    async def send(self, notification: Notification, context: Context) -> str | None:
        raise NotificationFailed(f"https://hooks.example.org/{self.token.reveal()}")


class LeakyNotifier(Tells):
    async def send(self, notification: Notification, context: Context) -> str | None:
        OPENED.append(asyncio.ensure_future(asyncio.sleep(60.0)))
        return None


def never_refused(address: str, refused: bool = False) -> Tells | None:
    return None if refused else Tells(address=address)


class ProvingNotifier(Tells):
    async def doctor(self, context: Context) -> list[Problem]:
        raise OSError("nobody is there")


class ChangeableNotifier(Tells):
    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@pytest.mark.parametrize(
    ("offender", "duty"),
    [
        (never_refused, "test_passes_over_nothing_in_silence"),
        (ReturnsANumber, "test_delivers_and_returns_a_receipt_or_none"),
        (SaysItDelivered, "test_raises_when_it_was_not_delivered"),
        (RaisesItsDriversError, "test_raises_when_it_was_not_delivered"),
        (StubbornNotifier, "test_honours_its_deadline"),
        (StubbornNotifier, "test_can_be_cancelled"),
        (BlockingNotifier, "test_does_not_block_the_loop"),
        (TellingNotifier, "test_keeps_its_secrets"),
        (LeakyNotifier, "test_leaves_nothing_behind"),
        (ProvingNotifier, "test_proves_without_acting"),
        (ChangeableNotifier, "test_is_frozen_and_has_a_kind"),
    ],
)
def test_a_bad_notifier_is_caught_by_its_duty(offender: Callable[..., Any], duty: str) -> None:
    class Zoo(NotifierZoo):
        specimen = offender

    assert caught(Zoo, duty)
    OPENED.clear()


def test_what_has_no_meaning_is_excused_by_its_reason_and_only_as_long_as_that_holds() -> None:
    class Excused(conformance_of(UntriedAgainstResets)):  # type: ignore[misc]  # a class made for the specimen
        inapplicable: ClassVar[Mapping[str, str]] = {"reset": "it is spoken to in datagrams"}

    class WithoutAReason(Excused):
        inapplicable: ClassVar[Mapping[str, str]] = {"reset": ""}

    class Stale(conformance_of(Good)):  # type: ignore[misc]  # a class made for the specimen
        inapplicable = Excused.inapplicable

    class Misspelt(Excused):
        inapplicable: ClassVar[Mapping[str, str]] = {**Excused.inapplicable, "rest": "it never rests"}

    duty = "test_passes_over_nothing_in_silence"
    passes(Excused, duty)
    assert "for want of reset" in caught(WithoutAReason, duty)
    assert "names reset, which is made" in caught(Stale, duty)
    assert "names rest, which" in caught(Misspelt, duty)


def test_a_secret_that_could_be_given_is_asked_for() -> None:
    class Careless(conformance_of(Good)):  # type: ignore[misc]  # a class made for the specimen
        def make(self) -> Any:
            return Good(address=SERVER[-1], password=Secret(""))

    assert "for want of secret" in caught(Careless, "test_passes_over_nothing_in_silence")


@pytest.mark.parametrize(
    ("zoos", "conformance"),
    [
        ([test_a_bad_workload_is_caught_by_its_duty], WorkloadConformance),
        (
            [test_a_bad_action_is_caught_by_its_duty, test_a_bad_action_is_caught_though_its_address_is_the_check_s],
            ActionConformance,
        ),
        ([test_a_bad_notifier_is_caught_by_its_duty], NotifierConformance),
    ],
)
def test_every_other_duty_has_its_offender(zoos: list[Any], conformance: type) -> None:
    marks = [mark for zoo in zoos for mark in zoo.pytestmark if mark.name == "parametrize"]
    assert {duty for mark in marks for _, duty in mark.args[1]} == set(duties(conformance))
