"""One run of a supervisor: everything that lives between its start and its stop, put together and taken apart.

Opens the journal and folds it, makes the engine and its hands, keeps the tasks, and stops in order: nothing new
starts, what runs is interrupted and recorded so, programs of ours are stopped, messages get a last chance, the
journal is flushed.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskGroup

from selfheal import shapes
from selfheal.calendar import Calendar
from selfheal.core.engine import Engine
from selfheal.core.messages import (
    CancelAction,
    Command,
    Event,
    FleetProposed,
    JournalChanged,
    Requested,
    RunAction,
    RunCheck,
    Settle,
    Started,
)
from selfheal.core.model import Binds, Cause, State
from selfheal.core.records import Answered, Intended
from selfheal.core.roster import WINDOW, refusal_of_fleet
from selfheal.core.routing import Route
from selfheal.errors import NotRunning, RequestRefused
from selfheal.journal import Journal
from selfheal.metrics import Metering
from selfheal.plugins import Notifier
from selfheal.shell.actions import Actions
from selfheal.shell.backend import Backend
from selfheal.shell.callables import Application, Callables
from selfheal.shell.checks import Checks
from selfheal.shell.contexts import Contexts
from selfheal.shell.delivery import Standing
from selfheal.shell.loop import Loop
from selfheal.shell.names import Resolver
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.plugin_thread import Report
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.programs import Programs
from selfheal.shell.readiness import Readiness
from selfheal.shell.remembering import remember
from selfheal.shell.roster import Roster
from selfheal.shell.stream import Stream, Told
from selfheal.shell.telling import Telling
from selfheal.shell.watch import Watches
from selfheal.shell.windows import Windows
from selfheal.words import sentence

T = TypeVar("T")

log = logging.getLogger("selfheal")
records_log = logging.getLogger("selfheal.records")

QUIET: Final = frozenset({"delivered", "doubted"})
"""Kinds of record that are not worth a line of the log."""

TURNS: Final = 5.0
"""Seconds a caller in another thread waits for the host's loop to turn."""

STOP: Final = 4.5
"""Seconds a stop may take in all, not counting what programs of ours take to end."""

ACTIONS_STOP: Final = 2.0
"""Seconds of these that interrupted actions get to kill what they started."""

MESSAGES_STOP: Final = 1.0
"""Seconds of these that the last messages get."""

PLUGINS_STOP: Final = 1.0
"""Seconds of these that plugins get to close what they keep."""

STORE_STOP: Final = 2.0
"""Seconds of these that the journal gets to flush, and half a second in any case."""


@attrs.frozen(kw_only=True)
class Plan:
    """What a run is made of."""

    roster: Callable[[bytes], Roster]
    journal: Path | None
    notifiers: Mapping[str, Notifier] = attrs.field(factory=dict)
    routes: tuple[Route, ...] = ()
    calendar: Calendar = attrs.field(factory=lambda: Calendar(()))
    observers: tuple[tuple[str, Callable[[Mapping[str, Any]], object]], ...] = ()
    threaded: bool = False
    application: Application | None = None


class Running:
    """A supervisor at work. Made by `started`; every method is called on the host's loop."""

    def __init__(self, plan: Plan, journal: Journal, engine: Engine, roster: Roster, tasks: TaskGroup) -> None:
        last = journal.last()
        self.plan = plan
        self.journal = journal
        self.engine = engine
        self.roster = roster
        self.reports: list[Report] = []
        self.stopping = False
        self._thread = threading.get_ident()
        self._tasks = tasks
        self._backend = Backend()
        self._resumes = last.at
        at = last.at + max(0.0, time.time() - last.wall) if last.number else 0.0
        self.changing = anyio.Lock()
        """Held while a new fleet is made and proposed: each builds on the one before."""
        self.contexts = Contexts()
        self.loops = PluginLoops(poke=poke_here(), told=self._note, kept=self.contexts.kept)
        poke = self.loops.tell
        self.callables = Callables(
            self.contexts.threads,
            poke=poke,
            told=self._report,
            threaded=plan.threaded,
            elsewhere=plan.application,
        )
        self.probes = ProbeRunner(self._told, self._lost, Resolver())
        self.checks = Checks(
            probes=self.probes,
            loops=self.loops,
            contexts=self.contexts,
            callables=self.callables,
            spawn=self.spawn,
        )
        self.actions = Actions(
            loops=self.loops,
            contexts=self.contexts,
            callables=self.callables,
            spawn=self.spawn,
            intended=self._intended,
            cause=self._cause,
        )
        self.watches = Watches(
            loops=self.loops, contexts=self.contexts, poke=poke, spawn=self.spawn, restated=self.checks.restated
        )
        self.stream = Stream(seq=last.seq)
        self.metering = Metering(journal.reader)
        self.loop = Loop(
            engine,
            journal,
            hands=self,
            readers=self.stream,
            poke=poke,
            probes=self.probes,
            at=at,
            number=last.number,
        )
        self.loop.under_way, self.loop.broke, self.loop.aside = self.checks.under_way, self._broke, self._aside
        self.loop.within = self._backend.do
        self.checks.clock = self.actions.clock = self.watches.clock = self.loop
        self.programs = Programs(loops=self.loops, contexts=self.contexts, allowed=self._may_start)
        self.telling = Telling(plan.routes, plan.notifiers, loops=self.loops, contexts=self.contexts)
        self.telling.clock = self.loop
        self.outbox = self.telling.outbox
        self.windows = Windows(clock=self.loop, standing=self._windows_open)
        self.stream.add(self.telling.hear)
        self.stream.add(_logged)
        for name, observer in plan.observers:
            self.stream.add(partial(_observe, name, observer))

    # -- start -------------------------------------------------------------------------------------------------------

    def begin(self, told_before: Callable[[], None]) -> None:
        """Let the engine know that it runs, and everything turn. `told_before` is what `Telling.remember` returned."""
        told_before()
        self._adopt(self.roster)
        self.loop.post(Started(at=self.loop.at(), resumes=min(self._resumes, self.loop.at()), fleet=self.roster.fleet))
        if not self.journal.well:
            self.loop.post(JournalChanged(at=self.loop.at(), well=False, detail=self.journal.detail))
        self.windows.replace(self.plan.calendar)  # before anything is started that is being worked on
        readiness = Readiness(self.probes.fd, self.probes.poll, self.loop.beat)
        self.loop.sooner = readiness.sooner
        for task in (readiness.run, self.outbox.run, self.telling.run, self.windows.run):
            self.spawn(task)
        for entry in self.roster.entries.values():
            self.programs.start(entry)

    def _adopt(self, roster: Roster) -> None:
        self.roster = roster
        entries = dict(roster.entries)
        self.checks.replace(entries)
        self.actions.entries = entries
        self.watches.replace(entries)

    def _may_start(self, name: str) -> bool:
        """Whether a program that is absent may be started: off is off (law 19)."""
        ledger = self.engine.ledger
        policy, condition = ledger.policies.get(name), ledger.conditions.get(name)
        if policy is None or policy.observe_only or name in ledger.unwatched:
            return False
        bound = any(s.binds is not Binds.SILENCE and s.covers(name) for s in ledger.suppressions.values())
        return not bound and (condition is None or condition.state is not State.DISABLED)

    def _windows_open(self) -> list[str]:
        """The maintenance windows of a calendar that are open by what was decided."""
        return [id_.removeprefix(WINDOW) for id_ in self.engine.ledger.suppressions if id_.startswith(WINDOW)]

    @property
    def here(self) -> bool:
        """Whether the caller stands in the thread of the host's loop."""
        return threading.get_ident() == self._thread

    def now(self, function: Callable[[], T]) -> T:
        """Call `function` on the host's loop, from any thread, and return what it returns.

        Raises `TimeoutError` where the loop does not turn.
        """
        if self.here:
            return function()
        done: Future[T] = Future()

        def answer() -> None:
            try:
                done.set_result(function())
            except Exception as problem:  # noqa: BLE001  # it is the caller's, who waits for it
                done.set_exception(problem)

        self.loops.tell(answer)
        try:
            return done.result(TURNS)
        except TimeoutError:
            raise TimeoutError(f"the supervisor's loop did not turn for {TURNS:g} s") from None

    def spawn(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run a coroutine function on the host's loop. A fault in it is ours, and must not end the application."""
        self._backend.do(partial(self._tasks.start_soon, self._contained, function))

    def _aside(self, work: Callable[[], None]) -> None:
        """Do what takes long, and needs nothing of the loop, in a thread; at once while stopping."""
        if self.stopping:
            work()
        else:
            self.spawn(partial(anyio.to_thread.run_sync, work))

    async def _contained(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            await function()
        except Exception as problem:  # noqa: BLE001  # law 15, the other way round: the host is not ours to end
            self.loop.give_up(problem)

    def _broke(self, problem: Exception) -> None:
        """Say, by every way that needs no engine, that nothing is watched any more (S18)."""
        log.critical("selfheal has stopped watching after a fault of its own: report it and restart", exc_info=problem)
        self.checks.cancel_all()
        self.watches.stop()
        self.programs.stop()
        self.telling.cry(
            "selfheal has stopped",
            f"Nothing is watched or repaired any more, after a fault in selfheal ({type(problem).__name__}). "
            "Its log has the details; restart it.",
        )

    # -- hands -------------------------------------------------------------------------------------------------------

    def do(self, command: Command) -> None:
        """Carry a command of the engine out."""
        match command:
            case RunCheck():
                self.checks.run(command)
            case RunAction():
                self.checks.cancel(command.service)
                self.actions.run(command)
            case CancelAction():
                self.actions.cancel(command.intent)
            case Settle():
                self.actions.settle(command.intent)

    def _told(self, *told: Any) -> None:
        self.checks.told(*told)

    def _lost(self, lane: Any) -> None:
        self.checks.lost(lane)

    def _intended(self, intent: str) -> Intended | None:
        return self.engine.ledger.intents.get(intent)

    def _cause(self, service: str) -> Cause | None:
        condition = self.engine.ledger.conditions.get(service)
        return condition.cause if condition is not None else None

    def _note(self, report: Report) -> None:
        self.reports.append(report)
        del self.reports[:-100]

    def _report(self, report: Report) -> None:
        self._note(report)
        log.warning("%s", report)

    # -- acts and fleets ---------------------------------------------------------------------------------------------

    async def act(self, event: Requested | FleetProposed) -> Told:
        """Post an act and return its answer, once that is stored (or told as volatile while the store is down).

        Raises `NotRunning` when the run ends before that.
        """
        if self.stopping or self.loop.broken is not None:
            raise NotRunning("the supervisor is stopping" if self.stopping else "selfheal has stopped after a fault")
        ready, answers = self.stream.expect(event.id)
        try:
            self.loop.post(event)
            await ready.wait()
        finally:
            self.stream.forget(event.id)
        if not answers:
            raise NotRunning("the supervisor was stopped before the answer was stored; it may have been done")
        return answers[0]

    def answer_to(self, key: str) -> Told:
        """Return the stored answer to an act that was answered before. Blocks; may be called from any thread."""
        before: int | None = None
        while page := self.journal.reader.records(kinds=("answered",), before=before, limit=500, newest_first=True):
            for stored in page:
                if isinstance(stored.record, Answered) and stored.record.id == key:
                    return Told(seq=stored.seq, number=stored.number, wall=stored.wall, record=stored.record)
            before = page[-1].seq
        raise RequestRefused("conflict", "it was answered before, and that answer is not stored yet; ask again")

    async def propose(self, roster: Roster, *, actor: str, reason: str, confirmed: bool = False) -> Told:
        """Propose a new fleet; its plugin objects are taken over when the engine accepts it."""
        event = FleetProposed(
            at=self.loop.at(),
            id=secrets.token_hex(8),
            actor=actor,
            reason=reason,
            fleet=roster.fleet,
            confirmed=confirmed,
        )
        old = self.roster
        accepted = not refusal_of_fleet(self.engine.ledger, event)
        if accepted:
            self._adopt(roster)  # before the engine's first commands for it
        told = await self.act(event)
        if accepted:
            await self._let_go(old, roster)
            for name, entry in roster.entries.items():
                if name not in old.entries:
                    self.programs.start(entry)
        return told

    async def _let_go(self, old: Roster, new: Roster) -> None:
        """Close what plugins keep for services that are gone or others now, and forgive what was put apart."""
        for name, entry in old.entries.items():
            after = new.entries.get(name)
            if after is not None and after.same_check(entry):
                continue
            self.loops.forgive(name)
            kept = () if after is None else after.plugins
            gone = [plugin for plugin in entry.plugins if not any(plugin is one for one in kept)]
            await self.loops.close_kept(name, of=gone)
            if entry.workload is not None and any(entry.workload is plugin for plugin in gone):
                await self.programs.release([entry], stopping=False)
            if after is None:
                self.contexts.threads.close(name)

    # -- stop --------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop in order. Bounded: under 5 s, and what programs of ours take to end on top of that."""
        left = Left(STOP)
        self.stopping = True
        self.loop.close()
        self.watches.stop()
        self.programs.stop()
        self.checks.cancel_all()
        self.actions.interrupt()
        with left.bound(ACTIONS_STOP):
            await self.actions.idle()
        self.actions.leave()
        with left.standing_still():
            await self.programs.release(self.roster.entries.values(), stopping=True)
        undelivered = await self.telling.close(left.of(MESSAGES_STOP))
        if undelivered:
            log.warning("%d messages were not delivered; they are tried again at the next start", len(undelivered))
        if self.loop.broken is None:
            self.loop.save_snapshot()
        self.stream.close()
        self.metering.close()
        await self.loops.aclose(left.of(PLUGINS_STOP))
        self.contexts.threads.close()
        stored = await anyio.to_thread.run_sync(self.journal.close, max(0.5, left.of(STORE_STOP)))
        if not stored:
            log.error("the journal could not be flushed: what was decided last may be missing at the next start")

    def health(self) -> dict[str, Any]:
        """Return how this run itself is, as the requests `health` and `status` answer it."""
        return {
            "running": self.loop.turning,
            "journal": {"well": self.journal.well, "detail": self.journal.detail},
            "reading": False,
            "lag_seconds": self.loop.lag,
            "checks_in_flight": self.probes.in_flight,
            "plugins": [str(report) for report in self.reports[-10:]],
            "delivery": [self._delivery(standing) for standing in self.outbox.standing()],
        }

    def _delivery(self, standing: Standing) -> dict[str, Any]:
        """Return how delivery to one notifier stands, since when in UTC."""
        shape = attrs.asdict(standing)
        if standing.failing_since is not None:
            ago = self._backend.do(anyio.current_time) - standing.failing_since
            shape["failing_since"] = shapes.utc(self.loop.to_unix(self.loop.at() - ago))
        return shape


class Left:
    """What is left of a time, in seconds of `time.monotonic`."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def of(self, most: float) -> float:
        """Return the seconds for one part of it."""
        return max(0.05, min(most, self._until - time.monotonic()))

    def bound(self, most: float) -> anyio.CancelScope:
        """Return a scope that ends with that part."""
        return anyio.move_on_after(self.of(most))

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let what passes meanwhile not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._until += time.monotonic() - began


def _logged(told: Told) -> None:
    """Write a record to the log in words: why something was done, or not, is asked for there first."""
    kind = told.record.kind
    if kind in QUIET or not records_log.isEnabledFor(logging.WARNING):
        return
    record = shapes.public(told.record, seq=told.seq, wall=told.wall, volatile=told.volatile)
    serious = kind == "alert_changed" and record["open"] and record["severity"] in ("critical", "high")
    serious = serious or (kind == "hold_changed" and record["on"])
    about = f"{record['service']}: " if record["service"] else ""
    records_log.log(logging.WARNING if serious else logging.INFO, "%s%s", about, sentence(record))


def _observe(name: str, observer: Callable[[Mapping[str, Any]], object], told: Told) -> None:
    try:
        observer(shapes.public(told.record, seq=told.seq, wall=told.wall, volatile=told.volatile))
    except Exception:  # an observer's fault is its own, and named
        log.exception("the observer of %s failed", name)


async def start(plan: Plan, stack: AsyncExitStack) -> Running:
    """Start a run whose end `stack` will see to.

    Raises `ConfigurationError`, and `JournalHeld` when another process holds the journal; then nothing has been
    started. With any other trouble of the journal it starts without, holds fire, and says so.
    """
    poke = poke_here()
    posted: list[Callable[[Event], None]] = []

    def changed(well: bool, detail: str) -> None:
        def tell() -> None:
            for post in posted:
                post(JournalChanged(at=running.loop.at(), well=well, detail=detail))

        poke(tell)

    remembered = await anyio.to_thread.run_sync(remember, plan.journal, changed)
    try:
        roster = await anyio.to_thread.run_sync(plan.roster, remembered.journal.derive("fingerprints"))
        engine = await anyio.to_thread.run_sync(
            partial(Engine, snapshot=remembered.snapshot, history=remembered.records)
        )
        # What the tasks wait for outlives them: it is closed after they have ended.
        after = stack.enter_context(ExitStack())
        tasks = await stack.enter_async_context(anyio.create_task_group())
        running = Running(plan, remembered.journal, engine, roster, tasks)
        after.callback(running.probes.close)
        told_before = await anyio.to_thread.run_sync(running.telling.remember, remembered.history)
    except BaseException:
        remembered.journal.close(STORE_STOP)
        raise
    posted.append(running.loop.post)

    async def end() -> None:
        with anyio.CancelScope(shield=True):
            await running.stop()
        tasks.cancel_scope.cancel()

    stack.push_async_callback(end)
    running.begin(told_before)
    return running


__all__ = ["Plan", "Running", "start"]
