"""One asyncio loop in a thread of its own, and the runs of plugin coroutines on it.

Owns what happens *on* the loop: deadlines, cancelling and insisting, containment, the stamps, and how long each step
stood on the loop. Who shares a loop with whom is decided by `plugin_loop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextvars import Context, ContextVar
from enum import StrEnum
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Protocol, TypeAlias

import attrs

from selfheal.shell.blocking import OWNER, DaemonPool
from selfheal.shell.contexts import Kept
from selfheal.shell.threads import Turns

Kind: TypeAlias = Literal["check", "inspect", "action", "other"]
"""What a call is: a `check` and an `inspect` may run again elsewhere, an `action` and `other` never."""

SLOW_STEP: Final = 0.1
"""Seconds one step may stand on the loop before it is a strike against its plugin."""

NOTED_STEP: Final = 0.02
"""Seconds from which a step counts as time in which the loop stood still for the others."""

LATE: Final = 0.05
"""Seconds of other plugins' standing from which a run is given that time back: our lateness is no failure (law 7)."""

GRACE: Final = 0.25
"""Seconds a cancelled run may take to close what it opened, before it is given up."""

ACTION_GRACE: Final = 5.0
"""The same for an action, which must kill what it started: asking, waiting, then killing."""

STOPS: Final = 8
"""How often a loop that is being cleaned may be stopped by others before that is given up."""

INSIST: Final = 1.0
"""Seconds between two further cancellations of what has been given up. Some drivers spend the first on cleaning up."""


class Ending(StrEnum):
    """How a call ended. `ABANDONED`: nobody knows what became of it; an action must be settled."""

    VALUE = "value"
    EXCEPTION = "exception"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"


@attrs.frozen(kw_only=True)
class Outcome:
    """What a call came to. `started` and `ended` are `time.monotonic`, stamped where it ran.

    `longest` is the longest that one of its own steps stood on its loop; `late` how long the loop stood still for it
    because of others. Both in seconds.
    """

    ending: Ending
    value: object = None
    error: BaseException | None = None
    started: float
    ended: float
    longest: float = 0.0
    late: float = 0.0

    @classmethod
    def at_once(cls, ending: Ending, error: BaseException | None = None) -> Outcome:
        """Return the outcome of a call that never began."""
        now = time.monotonic()
        return cls(ending=ending, error=error, started=now, ended=now)

    @classmethod
    def without(cls, run: Run, ending: Ending) -> Outcome:
        """Return the outcome, now, of a run that has not said anything."""
        now = time.monotonic()
        return cls(ending=ending, started=run.started or now, ended=now, longest=run.longest, late=run.late)


_WORDS: Final = {
    "blocked": "blocks its loop (for {seconds:.2f} s so far) in {where}; await instead, or use context.blocking",
    "slow": "stands on the shared loop again and again ({where}: {seconds:.2f} s) and now has a loop of its own",
    "ignored_cancellation": "ignores its cancellation in {where}; it is not called again until it has ended",
    "raised": "raised {where} outside of its call; contained",
    "spinning": "keeps the interpreter busy in {where}; everything here runs slower, and it cannot be stopped",
    "stuck": "did not end within {seconds:g} s and is left behind in the thread {where}",
    "host": "stood on the application's own loop for {seconds:.2f} s; that delays the application",
    "kept": "left something open: {where}",
}


@attrs.frozen(kw_only=True)
class Report:
    """A plugin misbehaved, and this is its name. `owner` is empty where it could not be told."""

    kind: Literal["blocked", "slow", "ignored_cancellation", "raised", "spinning", "stuck", "host", "kept"]
    owner: str
    where: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.owner or 'a plugin'} " + _WORDS[self.kind].format(where=self.where, seconds=self.seconds)


class Call:
    """One submitted coroutine. It is settled exactly once, however many loops it sees."""

    __slots__ = ("cancelled", "done", "kind", "make", "owner", "reruns", "run", "settled", "timeout")

    def __init__(
        self,
        owner: str,
        make: Callable[[], Awaitable[object]],
        timeout: float,
        done: Callable[[Outcome], None],
        kind: Kind,
    ) -> None:
        self.owner = owner
        self.make = make
        self.timeout = timeout
        self.done = done
        self.kind: Kind = kind
        self.reruns = 0
        self.run: Run | None = None
        self.settled = False
        self.cancelled = False

    def cancel(self) -> None:
        """Cancel it, from any thread. Its end is still reported, once."""
        self.cancelled = True
        run = self.run
        if run is not None:
            run.home.cancel(run)


class Run:
    """A call on one loop."""

    __slots__ = (
        "began_at",
        "begun",
        "call",
        "coroutine",
        "deadline",
        "dropped",
        "ended",
        "expired",
        "extended",
        "home",
        "longest",
        "own",
        "started",
        "stopping",
        "stopping_at",
        "task",
        "timer",
    )

    def __init__(self, call: Call, home: PluginThread) -> None:
        self.call = call
        self.home = home
        self.begun = False
        self.started = 0.0
        self.deadline = time.monotonic() + call.timeout
        self.extended = 0.0
        self.began_at = 0.0  # what `home.stood` was then
        self.own = 0.0
        self.longest = 0.0
        self.stopping = False
        self.stopping_at = inf
        self.expired = False
        self.dropped = False  # its call lives elsewhere, or nowhere: it may not take another step
        self.ended = False
        self.coroutine: Coroutine[Any, Any, object] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def grace(self) -> float:
        """Seconds it may take to end once it is cancelled."""
        return ACTION_GRACE if self.call.kind == "action" else GRACE

    @property
    def late(self) -> float:
        """Seconds its loop stood still because of others."""
        return max(0.0, self.home.stood - self.began_at - self.own) if self.begun else 0.0

    def overdue_at(self) -> float:
        """Return when the watchdog must end it, because its own loop does not."""
        if self.home.blocked or self.home.abandoned:
            return min(self.deadline, self.stopping_at + self.grace)
        return min(self.deadline, self.stopping_at) + self.grace + 1.0


class Overseer(Protocol):
    """Who hears what happens on a loop; called in the loop's thread."""

    @property
    def kept(self) -> Kept: ...

    def settle(self, run: Run, outcome: Outcome) -> None: ...

    def give_up(self, run: Run, outcome: Outcome) -> None: ...

    def ended(self, run: Run) -> None: ...

    def strike(self, run: Run, seconds: float) -> None: ...

    def left(self, home: PluginThread) -> None: ...

    def report(self, report: Report) -> None: ...


RUN: Final[ContextVar[Run | None]] = ContextVar("selfheal_run", default=None)
"""The run on whose behalf a callback is called; every task and callback a plugin starts inherits it."""


class PluginThread:
    """One loop, its thread and its runs. `owner` is set when a plugin has it alone."""

    def __init__(self, overseer: Overseer, *, owner: str, actions: bool) -> None:
        self.owner = owner
        self.actions = actions
        self.runs: dict[Run, None] = {}
        self.stood = 0.0
        self.blocked = False
        self.abandoned = False
        self.turns = Turns()
        self.turn = -1
        self.seen: asyncio.Handle | None = None
        self.looks = 0
        self.since = 0.0
        self._overseer = overseer
        self._inbox: deque[Run] = deque()
        self._woken = False
        self._closing: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks weakly
        self._retiring = False
        self._ending = False
        self._context = Context()  # not the host's: anyio's backend is a context variable
        self._pool = DaemonPool()
        # Not the policy's: with uvloop the running callback could not be seen.
        self.loop: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop(self.turns)
        self.loop.set_default_executor(self._pool)
        self.loop.set_exception_handler(self._unheard)
        name = "selfheal-" + ("actions" if actions else "checks") + (f"-of-{owner}" if owner else "")
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()

    # -- from any thread -------------------------------------------------------------------------------------------

    def post(self, run: Run) -> None:
        """Begin a run soon. Many posts cost one wake-up."""
        self.runs[run] = None
        self._inbox.append(run)
        if not self._woken:
            self._woken = True
            self._soon(self._drain)

    def cancel(self, run: Run) -> None:
        """Cancel a run soon."""
        run.stopping_at = min(run.stopping_at, time.monotonic())
        self._soon(self._stop, run)

    def retire(self) -> None:
        """Cancel what was dropped, and end the thread once its last run has ended."""
        self._soon(self._retire)

    def close_kept(
        self, service: str, timeout: float, done: Callable[[], None], of: Sequence[object] | None = None
    ) -> None:
        """Close what `service` keeps here, within `timeout` seconds, then call `done` in this thread.

        With `of`, only what belongs to these plugin objects.
        """

        async def close() -> None:
            try:
                self._note_open(await self._overseer.kept.close_here(service, of=of, timeout=timeout))
            finally:
                done()

        def begin() -> None:
            task = self.loop.create_task(close(), context=Context())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

        self._soon(begin)

    def runs_now(self) -> list[Run]:
        """Return the runs that count: begun or not, but not dropped."""
        return [run for run in list(self.runs) if not run.dropped and not run.call.settled]

    def culprit(self, step: asyncio.Handle) -> Run | None:
        """Return the run on whose behalf `step` is called."""
        context: Context | None = getattr(step, "_context", None)
        return context.get(RUN) if context is not None else None

    # -- on the loop -----------------------------------------------------------------------------------------------

    def _soon(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # closed: everything on it has ended
            self.loop.call_soon_threadsafe(callback, *args, context=self._context)

    def _drain(self) -> None:
        self._woken = False
        while self._inbox:
            self._begin(self._inbox.popleft())

    def _begin(self, run: Run) -> None:
        call = run.call
        if run.dropped or call.cancelled or call.settled:
            self._end(run, Outcome.at_once(Ending.CANCELLED))
            return
        run.begun = True
        run.started = now = time.monotonic()
        run.deadline = now + call.timeout
        run.began_at = self.stood
        context = Context()
        context.run(_enter, run)
        run.task = self.loop.create_task(self._carry(run), context=context)
        if call.timeout < inf:
            run.timer = self.loop.call_at(run.deadline, self._expire, run, context=self._context)

    async def _carry(self, run: Run) -> None:
        """Run the plugin's coroutine and let nothing out but its outcome."""
        value: object = None
        error: BaseException | None = None
        try:
            value = await _Steps(run)
        except BaseException as problem:  # noqa: BLE001  # law 15: SystemExit and KeyboardInterrupt included
            error = problem.with_traceback(None)  # its frames hold the plugin's locals, secrets among them
        if run.expired:
            ending = Ending.TIMED_OUT
        elif run.call.cancelled:
            ending = Ending.CANCELLED
        else:
            ending = Ending.VALUE if error is None else Ending.EXCEPTION
        self._end(
            run,
            Outcome(
                ending=ending,
                value=value if ending is Ending.VALUE else None,
                error=error if ending is Ending.EXCEPTION else None,
                started=run.started,
                ended=time.monotonic(),
                longest=run.longest,
                late=run.late,
            ),
        )

    def _end(self, run: Run, outcome: Outcome) -> None:
        if run.ended:
            return
        run.ended = True
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        self.runs.pop(run, None)
        self._overseer.ended(run)
        self._overseer.settle(run, outcome)
        if self._retiring and not self.runs:
            self._leave()

    def _expire(self, run: Run) -> None:
        """The deadline: cancel, unless other plugins have taken some of its time; that much it gets back."""
        owed = max(run.late, time.monotonic() - run.deadline - run.own) - run.extended
        if owed > LATE:
            run.extended += owed
            run.deadline += owed
            run.timer = self.loop.call_at(run.deadline, self._expire, run, context=self._context)
            return
        run.expired = True
        self._stop(run)

    def _stop(self, run: Run) -> None:
        if run.ended or run.task is None or run.stopping:
            return
        run.stopping = True
        run.stopping_at = min(run.stopping_at, time.monotonic())
        if run.timer is not None:
            run.timer.cancel()
        run.task.cancel()
        # A task cancelled before its first step never enters its coroutine.
        run.task.add_done_callback(lambda _: self._end(run, Outcome.without(run, _stopped(run))))
        run.timer = self.loop.call_later(run.grace, self._insist, run, True, context=self._context)

    def _insist(self, run: Run, first: bool) -> None:
        """It ignores its cancellation: give it up, name it, and go on cancelling."""
        if run.ended or run.task is None:
            return
        if first and not run.dropped:
            where = _waiting_in(run.coroutine)
            self._overseer.report(Report(kind="ignored_cancellation", owner=run.call.owner, where=where))
            ending = Ending.ABANDONED if run.call.kind == "action" else _stopped(run)
            self._overseer.give_up(run, Outcome.without(run, ending))
        run.task.cancel()
        run.timer = self.loop.call_later(INSIST, self._insist, run, False, context=self._context)

    def step_took(self, run: Run, seconds: float) -> None:
        """Note that one step of a run stood on the loop for long."""
        self.stood += seconds
        self.blocked = False  # if it was, this is the step that did it
        run.own += seconds
        if seconds >= SLOW_STEP and not self.owner:
            self._overseer.strike(run, seconds)

    def _retire(self) -> None:
        self._retiring = True
        for run in list(self.runs):
            if run.dropped or run.call.cancelled:
                self._stop(run)
        if not self.runs:
            self._leave()

    def _leave(self) -> None:
        if self._ending:
            return
        self._ending = True
        self.loop.call_soon(self.loop.stop, context=self._context)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._ending:
            try:
                self.loop.run_forever()  # a plugin may stop the loop, or raise SystemExit from a task it started
            except BaseException as problem:  # noqa: BLE001  # law 15: the loop goes on
                run = _run_of(problem.__traceback__)
                owner = run.call.owner if run is not None else self.owner
                self._overseer.report(Report(kind="raised", owner=owner, where=type(problem).__name__))
        try:
            self._cleaned()
        except BaseException as problem:  # noqa: BLE001  # the last words of a plugin's task
            self._overseer.report(Report(kind="raised", owner=self.owner, where=type(problem).__name__))
        self._pool.shutdown(wait=False)
        with contextlib.suppress(RuntimeError):
            self.loop.close()
        self._overseer.left(self)

    def _cleaned(self) -> None:
        """Clean to the end: a stop of the loop that was asked for before, or by a plugin's last words, is not ours."""
        clean = self.loop.create_task(self._clean(), context=self._context)
        for stopped in range(1, STOPS + 1):
            try:
                self.loop.run_until_complete(clean)
            except RuntimeError:
                if stopped == STOPS or clean.done():
                    raise
            if clean.done():
                break

    async def _clean(self) -> None:
        """Cancel the tasks plugins left, close what they keep and their async generators."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE)
        self._note_open(await self._overseer.kept.close_here())
        await asyncio.wait_for(self.loop.shutdown_asyncgens(), timeout=GRACE)

    def _note_open(self, lines: list[str]) -> None:
        for line in lines:
            self._overseer.report(Report(kind="kept", owner=self.owner, where=line))

    def _unheard(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report what asyncio would log: the type only, for the text of a driver's error may hold a secret."""
        run = RUN.get()
        problem = context.get("exception")
        where = type(problem).__name__ if problem is not None else str(context.get("message", ""))[:200]
        self._overseer.report(Report(kind="raised", owner=run.call.owner if run else self.owner, where=where))


class _Steps:
    """Drives a plugin's coroutine one step at a time: times each, and takes none once the run is dropped."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, Any, object]:
        run = self._run
        now = time.monotonic
        begun = now()
        awaitable = run.call.make()
        if not inspect.iscoroutine(awaitable):
            if not inspect.isawaitable(awaitable):
                raise TypeError(f"returned {type(awaitable).__name__} where a coroutine was due; write `async def`")
            awaitable = _awaited(awaitable)
        run.coroutine = coroutine = awaitable
        heard: object = None
        thrown: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(heard) if thrown is None else coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            finally:
                took = now() - begun
                run.longest = max(run.longest, took)
                if took > NOTED_STEP:
                    run.home.step_took(run, took)
            try:
                heard = yield waits_for
                thrown = asyncio.CancelledError() if run.dropped else None
            except BaseException as problem:  # noqa: BLE001  # what `await` does: it is thrown into the coroutine
                thrown = problem
            begun = now()


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _enter(run: Run) -> None:
    RUN.set(run)
    OWNER.set(run.call.owner)


def _stopped(run: Run) -> Ending:
    return Ending.TIMED_OUT if run.expired else Ending.CANCELLED


def _waiting_in(coroutine: object) -> str:
    """Return where a suspended coroutine waits, and on whose behalf."""
    places: list[str] = []
    while inspect.iscoroutine(coroutine) and coroutine.cr_frame is not None:
        frame = coroutine.cr_frame
        places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        coroutine = coroutine.cr_await
    if len(places) > 1:
        return f"{places[-1]}, awaited from {places[0]}"
    return places[0] if places else "an unknown place"


def _run_of(trace: TracebackType | None) -> Run | None:
    """Return the run on whose behalf the callback in a traceback was called."""
    for frame, _ in traceback.walk_tb(trace):
        handle = frame.f_locals.get("self")
        if isinstance(handle, asyncio.Handle):
            context: Context | None = getattr(handle, "_context", None)
            return context.get(RUN) if context is not None else None
    return None
