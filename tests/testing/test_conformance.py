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
from selfheal.errors import ActionFailed, NotificationFailed
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


def conformance_of(specimen: type) -> type[CheckConformance]:
    class Conformance(CheckConformance):
        runs = 20

        def make(self) -> Any:
            return specimen(address=SERVER[-1])

        def make_broken(self, fault: str, address: str) -> Any:
            return None if fault in getattr(specimen, "untried", ()) else specimen(address=address)

    return Conformance


@pytest.mark.parametrize("duty", duties(CheckConformance))
@pytest.mark.parametrize("specimen", [Good, Wire])
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


@pytest.mark.parametrize(
    ("offender", "duty"),
    [
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


class WorkloadZoo(WorkloadConformance):
    runs = 5
    specimen: ClassVar[type] = ScriptedWorkload
    inapplicable: ClassVar[Mapping[str, str]] = {
        "make_absent": "what is in memory is there",
        "make_broken": "it asks nobody",
    }

    def make(self) -> Any:
        return self.specimen()


@pytest.mark.parametrize("duty", duties(WorkloadConformance))
def test_a_good_workload_does_every_duty(duty: str) -> None:
    passes(WorkloadZoo, duty)


class NewIdEachTime(ScriptedWorkload):
    async def inspect(self, context: Context) -> Instance:
        return Instance(id=str(time.monotonic_ns()), run=Run.RUNNING)


class SameIdAfterRestart(ScriptedWorkload):
    async def inspect(self, context: Context) -> Instance:
        return Instance(id="the-container", run=Run.RUNNING)


class RunsWhenAbsent(SameIdAfterRestart):
    pass


class AssumesTheBest(ScriptedWorkload):
    async def inspect(self, context: Context) -> Instance:
        return self.history[-1]


class Deaf(ScriptedWorkload):
    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        while True:
            await asyncio.sleep(1.0)
            yield self.history[0]


class SleepyInspect(ScriptedWorkload):
    async def inspect(self, context: Context) -> Instance:
        time.sleep(0.09)
        return self.current


class StubbornInspect(ScriptedWorkload):
    async def inspect(self, context: Context) -> Instance:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return self.current


class LeakyInspect(ScriptedWorkload):
    async def inspect(self, context: Context) -> Instance:
        OPENED.append(asyncio.ensure_future(asyncio.sleep(60.0)))
        return self.current


class TellingInspect(ScriptedWorkload):
    def __repr__(self) -> str:
        return "token=workload-secret"


class ChangeableWorkload(ScriptedWorkload):
    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


class Unwatched(ScriptedWorkload):
    watch = None  # type: ignore[assignment]  # so that it has none


@pytest.mark.parametrize(
    ("offender", "duty"),
    [
        (Unwatched, "test_passes_over_nothing_in_silence"),
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


class NoVerb(Mends):
    verb = ""


class FireAndForget(Mends):
    async def run(self, context: ActionContext) -> None:
        OPENED.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(30)"]))


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
        (LeavesItRunning, "test_kills_what_it_started_when_cancelled"),
        (AgainAndAgain, "test_a_second_call_does_no_harm"),
        (ProbeKnowsAll, "test_probe_answers"),
        (ProbeForgets, "test_probe_answers"),
        (ProbeSaysYes, "test_probe_answers"),
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
    ("zoo", "conformance"),
    [
        (test_a_bad_workload_is_caught_by_its_duty, WorkloadConformance),
        (test_a_bad_action_is_caught_by_its_duty, ActionConformance),
        (test_a_bad_notifier_is_caught_by_its_duty, NotifierConformance),
    ],
)
def test_every_other_duty_has_its_offender(zoo: Any, conformance: type) -> None:
    (mark,) = [mark for mark in zoo.pytestmark if mark.name == "parametrize"]
    assert {duty for _, duty in mark.args[1]} == set(duties(conformance))
