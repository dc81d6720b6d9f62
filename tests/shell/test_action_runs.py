"""Carrying out steps, and finding out what became of one: the instance, the true end, what was never begun."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio
import attrs
import pytest
from tests.broken import fails_when

from selfheal import Service
from selfheal.core.messages import ActionFinished, Event, RunAction
from selfheal.core.model import Effect, Instance, Limits, Run, Settled, Step
from selfheal.core.records import Intended
from selfheal.errors import ActionFailed
from selfheal.plugins import ActionContext, Context
from selfheal.secret import Secret
from selfheal.shell import actions as actions_module
from selfheal.shell.actions import Actions
from selfheal.shell.callables import Callables
from selfheal.shell.contexts import Contexts
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.roster import Roster
from selfheal.testing.doubles import ScriptedAction, ScriptedCheck, ScriptedWorkload

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

INTENT = "1/api/1/0"


@attrs.frozen(kw_only=True)
class Slow:
    """An action that can be told how to take its cancellation; it knows nothing of a crash."""

    kind: ClassVar[str] = "slow"
    verb: ClassVar[str] = "mend"
    effect: Effect = Effect.GENTLE
    begun: threading.Event = attrs.field(factory=threading.Event, eq=False)
    ended: list[float] = attrs.field(factory=list, eq=False)
    tidying: float = 0.0
    deaf: bool = False
    over: threading.Event = attrs.field(factory=threading.Event, eq=False)

    async def run(self, context: ActionContext) -> None:
        self.begun.set()
        while not self.over.is_set():
            try:
                await asyncio.sleep(0.05 if self.deaf else 3600)
            except asyncio.CancelledError:
                if self.deaf:
                    continue
                await asyncio.sleep(self.tidying)
                self.ended.append(time.monotonic())
                raise

    async def probe(self, context: ActionContext) -> Settled | None:
        return None


class Hands:
    """The actions of one service, with what they need around them, and what they posted."""

    def __init__(self, service: Service, callbacks: dict[tuple[str, str], Callable[..., Any]], tasks: Any) -> None:
        self.posted: list[ActionFinished] = []
        self.more = anyio.Event()
        self.now = 50.0
        self.intended: Intended | None = None
        self._tasks = tasks
        self.contexts = Contexts()
        self.loops = PluginLoops(poke=poke_here(), kept=self.contexts.kept)
        callables = Callables(self.contexts.threads, poke=self.loops.tell)
        self.actions = Actions(
            loops=self.loops,
            contexts=self.contexts,
            callables=callables,
            spawn=self._spawn,
            intended=lambda intent: self.intended,
            cause=lambda service: None,
        )
        self.actions.clock = self
        roster = Roster.of([service], [], limits=Limits(), name="t", seed=0, key=b"k", callbacks=callbacks, actions={})
        self.actions.entries = dict(roster.entries)

    def _spawn(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._tasks.start_soon(function)

    def at(self, instant: float | None = None) -> float:
        return self.now

    def post(self, event: Event) -> None:
        assert isinstance(event, ActionFinished)
        self.posted.append(event)
        self.more.set()

    async def ending(self, within: float = 5.0) -> ActionFinished:
        with anyio.fail_after(within):
            await self.more.wait()
        (event,) = self.posted
        return event

    def run(self, expected: str | None = None, timeout: float = 5.0) -> None:
        self.actions.run(RunAction(intent=INTENT, service="api", step=0, expected=expected, timeout=timeout))


@asynccontextmanager
async def hands(
    *ladder: Any, workload: Any = None, callbacks: dict[tuple[str, str], Callable[..., Any]] | None = None
) -> AsyncIterator[Hands]:
    service = Service("api", check=ScriptedCheck(), workload=workload, recovery_actions=ladder)
    async with anyio.create_task_group() as tasks:
        made = Hands(service, callbacks or {}, tasks)
        try:
            yield made
        finally:
            with anyio.CancelScope(shield=True):
                await made.loops.aclose(1.0)
            made.contexts.threads.close()
            tasks.cancel_scope.cancel()


# -- what an action is told ------------------------------------------------------------------------------------------


@fails_when("an action is given no check")
async def test_s38_an_action_is_given_the_very_check_of_its_service_and_so_its_address() -> None:
    asked: list[Any] = []
    async with hands("mend", callbacks={("api", "mend"): lambda context: asked.append(context.check)}) as made:
        made.run()
        assert (await made.ending()).settled is Settled.DONE
        assert asked == [made.actions.entries["api"].check]


# -- the instance (law 17) -------------------------------------------------------------------------------------------


async def test_the_expected_instance_is_restarted_and_told_under_its_key() -> None:
    workload = ScriptedWorkload()
    async with hands("restart", workload=workload) as made:
        made.run(expected="scripted-1")
        assert (await made.ending()).settled is Settled.DONE
    assert workload.keys == [INTENT]


async def test_another_instance_closes_the_intent_and_is_left_alone() -> None:
    workload = ScriptedWorkload()
    async with hands("restart", workload=workload) as made:
        made.run(expected="scripted-0")
        ended = await made.ending()
    assert (ended.settled, ended.detail) == (Settled.SUPERSEDED, "another instance runs now: scripted-1")
    assert workload.keys == []


async def test_what_a_person_stopped_is_not_acted_on() -> None:
    workload = ScriptedWorkload()
    workload.end(Run.STOPPED)
    async with hands("restart", workload=workload) as made:
        made.run(expected="scripted-1")
        ended = await made.ending()
    assert ended.settled is Settled.NOT_STARTED
    assert "stopped by a person" in ended.detail
    assert workload.keys == []


@pytest.mark.parametrize("answer", [RuntimeError("the engine is away"), "a word", None])
async def test_without_an_inspection_nothing_is_done(answer: object) -> None:
    @attrs.frozen(kw_only=True)
    class Blind(ScriptedWorkload):
        kind: ClassVar[str] = "blind"

        async def inspect(self, context: Context) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    workload = Blind()
    async with hands("restart", workload=workload) as made:
        made.run(expected="scripted-1")
        ended = await made.ending()
    assert ended.settled is Settled.NOT_STARTED
    assert ended.detail.startswith("inspection failed")
    assert workload.keys == []


# -- how it ends -----------------------------------------------------------------------------------------------------


async def test_an_error_is_the_outcome_and_a_deadline_is_another() -> None:
    async with hands(ScriptedAction(script=(ActionFailed("no such thing"),))) as made:
        made.run()
        ended = await made.ending()
        assert (ended.settled, ended.detail) == (Settled.FAILED, "ActionFailed: no such thing")
    async with hands(Slow()) as made:
        made.run(timeout=0.2)
        ended = await made.ending()
        assert (ended.settled, ended.detail) == (Settled.TIMED_OUT, "not done within 0.2 s")


async def test_one_that_is_cancelled_ends_when_it_has_ended() -> None:
    """Else the next action could begin while it still kills what it started (law 4)."""
    action = Slow(tidying=0.4)
    async with hands(action) as made:
        made.run()
        await anyio.to_thread.run_sync(action.begun.wait)
        made.actions.cancel(INTENT)
        ended = await made.ending()
        assert len(action.ended) == 1
    assert (ended.settled, ended.detail) == (Settled.TIMED_OUT, "recovery_timeout is over")


async def test_one_that_ignores_its_cancellation_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfheal.shell.plugin_thread.ACTION_GRACE", 0.3)
    action = Slow(deaf=True)
    async with hands(action) as made:
        made.run()
        await anyio.to_thread.run_sync(action.begun.wait)
        made.actions.cancel(INTENT)
        ended = await made.ending()
        action.over.set()
    assert ended.settled is Settled.IN_DOUBT


async def test_at_the_stop_each_is_interrupted_and_the_deaf_are_left() -> None:
    action = Slow(deaf=True)
    async with hands(action) as made:
        made.run()
        await anyio.to_thread.run_sync(action.begun.wait)
        made.actions.interrupt()
        with anyio.move_on_after(0.2):
            await made.actions.idle()
        made.actions.leave()
        ended = await made.ending()
        assert ended.settled is Settled.IN_DOUBT
        action.over.set()
        with anyio.fail_after(1):
            await made.actions.idle()
        await anyio.sleep(0.2)
        assert len(made.posted) == 1  # its own late word is nobody's


async def test_one_that_never_began_spends_nothing_and_is_not_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given back is tried again at once; a stuck thread would make that a storm of intents."""
    monkeypatch.setattr(actions_module, "STUCK_AGAIN", 0.3)
    free = threading.Event()
    async with hands("mend", callbacks={("api", "mend"): lambda context: free.wait(30.0)}) as made:
        made.run(timeout=0.1)
        assert (await made.ending()).settled is Settled.TIMED_OUT
        made.posted.clear()
        made.more = anyio.Event()
        began = time.monotonic()
        made.run(timeout=0.1)
        ended = await made.ending()
        assert time.monotonic() - began >= 0.3
        assert (ended.settled, ended.detail) == (Settled.NOT_STARTED, "the previous call has not come back")
        free.set()


@pytest.mark.parametrize("stage", ["inspecting", "stuck"])
async def test_one_stopped_before_it_began_has_not_started(stage: str) -> None:
    @attrs.frozen(kw_only=True)
    class Silent(ScriptedWorkload):
        kind: ClassVar[str] = "silent"

        async def inspect(self, context: Context) -> Instance:
            await asyncio.sleep(3600)
            return self.current

    free = threading.Event()
    workload = Silent() if stage == "inspecting" else None
    async with hands("mend", workload=workload, callbacks={("api", "mend"): lambda context: free.wait(30.0)}) as made:
        if stage == "stuck":
            made.run(timeout=0.1)
            await made.ending()
            made.posted.clear()
            made.more = anyio.Event()
        made.run(timeout=0.1)
        await anyio.sleep(0.2)
        made.actions.interrupt()
        ended = await made.ending(within=1.0)
        free.set()
    assert (ended.settled, ended.detail) == (Settled.NOT_STARTED, "selfheal was stopped")


async def test_a_step_that_is_gone_is_not_started() -> None:
    async with hands("restart", workload=ScriptedWorkload()) as made:
        made.actions.entries = {}
        made.run()
        assert (await made.ending()).settled is Settled.NOT_STARTED


# -- after a crash ---------------------------------------------------------------------------------------------------


def _intended(*, expected: str | None, at: float = 50.0, timeout: float = 5.0) -> Intended:
    return Intended(
        at=at, intent=INTENT, service="api", incident=1, attempt=1, step=0, action="mend", expected=expected,
        guards=(), spends=True, timeout=timeout, correlation="c",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "finished", "settled"),
    [([], [], Settled.NOT_STARTED), ([INTENT], [], Settled.INTERRUPTED), ([INTENT], [INTENT], Settled.DONE)],
)
async def test_a_probe_says_what_became_of_it(keys: list[str], finished: list[str], settled: Settled) -> None:
    action = ScriptedAction()
    action.keys.extend(keys)
    action.finished.extend(finished)
    async with hands(action) as made:
        made.intended = _intended(expected=None)
        made.actions.settle(INTENT)
        assert (await made.ending()).settled is settled


@pytest.mark.parametrize("expected", [None, "scripted-1"])
async def test_a_probe_is_told_which_instance_was_meant(expected: str | None) -> None:
    told: list[str | None] = []

    class Asks(ScriptedWorkload):
        async def probe(self, context: ActionContext) -> Settled | None:
            told.append(None if context.expected is None else context.expected.id)
            return Settled.DONE

    async with hands("restart", workload=Asks()) as made:
        made.intended = _intended(expected=expected)
        made.actions.settle(INTENT)
        assert (await made.ending()).settled is Settled.DONE
    assert told == [expected]


async def test_without_a_probe_another_instance_says_that_it_happened() -> None:
    workload = ScriptedWorkload()
    workload.history.append(Instance(id="scripted-2", run=Run.RUNNING))
    async with hands("restart", workload=workload) as made:
        made.intended = _intended(expected="scripted-1")
        made.actions.settle(INTENT)
        ended = await made.ending()
    assert (ended.settled, ended.detail) == (Settled.DONE, "another instance runs now: scripted-2")


async def test_the_same_instance_says_nothing_before_the_action_s_own_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command may still be at work in another process; by journal time, which a step of the clock cannot move."""
    monkeypatch.setattr(actions_module, "SETTLE_AGAIN", 0.05)
    async with hands("restart", workload=ScriptedWorkload()) as made:
        made.intended = _intended(expected="scripted-1")
        made.actions.settle(INTENT)
        await anyio.sleep(0.3)
        assert made.posted == []
        made.now = 56.0
        assert (await made.ending()).settled is Settled.FAILED


async def test_when_nobody_can_tell_it_is_in_doubt() -> None:
    async with hands(Slow(effect=Effect.DISRUPTIVE)) as made:
        made.intended = _intended(expected=None, at=40.0)
        made.actions.settle(INTENT)
        assert (await made.ending()).settled is Settled.IN_DOUBT


# -- what an action says of itself ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Says:
    """An action that returns something."""

    kind: ClassVar[str] = "says"
    verb: ClassVar[str] = "mend"
    effect: ClassVar[Effect] = Effect.GENTLE
    said: Any
    password: Secret = attrs.field(factory=lambda: Secret("hunter22-secret"))

    async def run(self, context: ActionContext) -> Any:
        return f"{context.verb}: {self.said}" if isinstance(self.said, str) else self.said

    async def probe(self, context: ActionContext) -> Settled | None:
        return None


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        ("removed 312 keys", "mend: removed 312 keys"),
        ("went in with hunter22-secret", "mend: went in with ***"),
        ("two\nlines", "mend: two lines"),
        (None, ""),
        (312, ""),
    ],
)
async def test_the_sentence_an_action_returns_is_told_without_its_secrets(said: Any, detail: str) -> None:
    async with hands(Says(said=said)) as made:
        made.run()
        ended = await made.ending()
    assert (ended.settled, ended.detail) == (Settled.DONE, detail)


async def test_the_sentence_a_callback_returns_is_told() -> None:
    async with hands("mend", callbacks={("api", "mend"): lambda context: "pool of 5 replaced"}) as made:
        made.run()
        assert (await made.ending()).detail == "pool of 5 replaced"


@pytest.mark.parametrize(
    ("effect", "settled"), [(Effect.GENTLE, Settled.INTERRUPTED), (Effect.DESTRUCTIVE, Settled.IN_DOUBT)]
)
async def test_who_runs_says_nothing_of_an_action_that_makes_no_other_instance(
    effect: Effect, settled: Settled
) -> None:
    """Emptying a cache leaves the instance as it is, whether it happened or not; and another one did not empty it."""
    workload = ScriptedWorkload()
    workload.history.append(Instance(id="scripted-2", run=Run.RUNNING))
    step = Step(action="mend", effect=effect, allow_destructive=True)
    async with hands(step, workload=workload, callbacks={("api", "mend"): lambda: None}) as made:
        made.intended = _intended(expected="scripted-1", at=40.0)
        made.now = 56.0
        made.actions.settle(INTENT)
        assert (await made.ending()).settled is settled
