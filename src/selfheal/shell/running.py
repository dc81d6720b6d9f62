"""One run of a supervisor: everything that lives between its start and its stop, put together and taken apart.

Opens the journal and folds it, makes the engine and its hands, keeps the tasks, and stops in order: nothing new
starts, what runs is interrupted and recorded so, programs of ours are stopped, messages get a last chance, the
journal is flushed.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

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
    TimePassed,
    WindowChanged,
)
from selfheal.core.model import Cause, Notification
from selfheal.core.records import Answered, Intended, Record
from selfheal.core.routing import Deliver, DeliveryFinished, Route, Router, RouterOutput
from selfheal.journal import Journal
from selfheal.plugins import Notifier
from selfheal.shell.actions import Actions
from selfheal.shell.callables import Application, Callables
from selfheal.shell.checks import Checks
from selfheal.shell.contexts import Act, Contexts
from selfheal.shell.delivery import Outbox
from selfheal.shell.loop import Loop
from selfheal.shell.names import Resolver
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.plugin_thread import Ending, Report
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.readiness import Readiness
from selfheal.shell.remembering import remember
from selfheal.shell.roster import Entry, Roster
from selfheal.shell.stream import Stream, Told
from selfheal.shell.watch import Watches

log = logging.getLogger("selfheal")

ACTIONS_STOP: Final = 2.0
"""Seconds interrupted actions get to kill what they started."""

MESSAGES_STOP: Final = 1.0
"""Seconds the last messages get."""

STORE_STOP: Final = 2.0
"""Seconds the journal gets to flush."""

START_TIMEOUT: Final = 60.0
"""Seconds a program of ours may take to be started."""


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
        self._tasks = tasks
        self._resumes = last.at
        at = last.at + max(0.0, time.time() - last.wall) if last.number else 0.0
        self._poke = poke_here()
        self.contexts = Contexts()
        self.loops = PluginLoops(poke=self._poke, told=self._report, kept=self.contexts.kept)
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
        self.checks.clock = self.actions.clock = self.watches.clock = self.loop
        self.outbox = Outbox(plan.notifiers, call=self._send, finished=self._delivered)
        self.router: Router | None = None
        self._router_due = anyio.Event()
        self.stream.add(self._route)
        for name, observer in plan.observers:
            self.stream.add(partial(_observe, name, observer))

    # -- start -------------------------------------------------------------------------------------------------------

    def begin(self, history: Iterable[Record]) -> None:
        """Let the engine know that it runs, and everything turn. `history` is what the router remembers from."""
        self.router = Router(self.plan.routes, history=history)
        self._adopt(self.roster)
        self.loop.post(Started(at=self.loop.at(), resumes=min(self._resumes, self.loop.at()), fleet=self.roster.fleet))
        if not self.journal.well:
            self.loop.post(JournalChanged(at=self.loop.at(), well=False, detail=self.journal.detail))
        readiness = Readiness(self.probes.fd, self.probes.poll, self.loop.beat)
        self.loop.sooner = readiness.sooner
        self._tasks.start_soon(readiness.run)
        self._tasks.start_soon(self.outbox.run)
        self._tasks.start_soon(self._keep_router)
        self._tasks.start_soon(self._keep_calendar)
        for entry in self.roster.entries.values():
            self._autostart(entry)

    def _adopt(self, roster: Roster) -> None:
        self.roster = roster
        entries = dict(roster.entries)
        self.checks.replace(entries)
        self.actions.entries = entries
        self.watches.replace(entries)

    def _autostart(self, entry: Entry) -> None:
        """Start a program that is ours to run and does not run yet; one that does is left alone."""
        workload: Any = entry.workload
        if workload is None or not getattr(workload, "autostart", False):
            return
        act = Act(key=f"start/{entry.name}", check=entry.check, workload=workload)
        self.loops.submit(
            entry.name,
            lambda: workload.start(self.contexts.for_action(entry.name, workload, START_TIMEOUT, act)),
            timeout=START_TIMEOUT,
            done=lambda outcome: self._autostarted(entry, outcome.ending, outcome.error),
            kind="action",
        )

    def _autostarted(self, entry: Entry, ending: Ending, error: BaseException | None) -> None:
        if ending is not Ending.VALUE:
            log.warning("%s could not be started: %s", entry.name, error or ending.value)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run a coroutine function on the host's loop."""
        self._tasks.start_soon(function)

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

    def _report(self, report: Report) -> None:
        self.reports.append(report)
        del self.reports[:-100]
        log.warning("%s", report)

    # -- acts and fleets ---------------------------------------------------------------------------------------------

    async def act(self, event: Requested | FleetProposed) -> Told:
        """Post an act and return its answer, once that is stored (or told as volatile while the store is down)."""
        ready, answers = self.stream.expect(event.id)
        try:
            self.loop.post(event)
            await ready.wait()
        finally:
            self.stream.forget(event.id)
        return answers[0]

    async def propose(self, roster: Roster, *, actor: str, reason: str, confirmed: bool = False) -> Told:
        """Propose a new fleet; its plugin objects are taken over when the engine accepts it."""
        old = self.roster
        self.checks.entries = self.actions.entries = {**old.entries, **roster.entries}
        told = await self.act(
            FleetProposed(
                at=self.loop.at(),
                id=secrets.token_hex(8),
                actor=actor,
                reason=reason,
                fleet=roster.fleet,
                confirmed=confirmed,
            )
        )
        accepted = isinstance(told.record, Answered) and told.record.accepted
        self._adopt(roster if accepted else old)
        if accepted:
            for name, entry in roster.entries.items():
                if name not in old.entries:
                    self._autostart(entry)
        return told

    # -- who is told -------------------------------------------------------------------------------------------------

    def _route(self, told: Told) -> None:
        if self.router is not None:
            self._routed(self.router.receive(told.record))

    def _routed(self, output: RouterOutput, cause: DeliveryFinished | None = None) -> None:
        for deliver in output.deliveries:
            self.outbox.offer(deliver.notifier, self._restated(deliver))
        if output.records or cause is not None:
            self.loop.note(output.records, cause)
        self._router_due.set()

    def _restated(self, deliver: Deliver) -> Notification:
        return attrs.evolve(deliver.notification, since=self.loop.to_unix(deliver.notification.since))

    async def _keep_router(self) -> None:
        """Wake the router when it wants to be woken."""
        while True:
            self._router_due = anyio.Event()
            router = self.router
            pause = router.deadline - self.loop.at() if router is not None else inf
            with anyio.move_on_after(max(0.0, pause)):
                await self._router_due.wait()
                continue
            if router is not None:
                self._routed(router.receive(TimePassed(at=self.loop.at())))

    async def _send(self, notifier: str, send: Any, timeout: float) -> str | None:
        plugin = self.plan.notifiers[notifier]
        outcome = await self.loops.run(
            f"{notifier} (notifier)",
            lambda: send(self.contexts.plain(notifier, plugin, timeout)),
            timeout=timeout,
            kind="other",
        )
        if outcome.ending is Ending.VALUE:
            return outcome.value if isinstance(outcome.value, str) else None
        raise outcome.error if outcome.error is not None else TimeoutError(f"{notifier}: {outcome.ending.value}")

    def _delivered(self, id_: str, notifier: str, receipt: str | None, error: str, permanent: bool) -> None:
        if self.router is None or self.stopping:
            return
        finished = DeliveryFinished(
            at=self.loop.at(), notification=id_, notifier=notifier, receipt=receipt, error=error, permanent=permanent
        )
        # Not from within the outbox: what the router says next may be offered to it at once.
        self.loops.tell(partial(self._outcome, self.router, finished))

    def _outcome(self, router: Router, finished: DeliveryFinished) -> None:
        self._routed(router.receive(finished), finished)

    # -- the calendar ------------------------------------------------------------------------------------------------

    async def _keep_calendar(self) -> None:
        """Tell the engine when a maintenance window opens or closes."""
        calendar = self.plan.calendar
        while True:
            now = time.time()
            for window in calendar.at(now):
                self.loop.post(
                    WindowChanged(
                        at=self.loop.at(),
                        window=window.name,
                        services=window.services,
                        everything=window.everything,
                        active=window.active,
                        until=self.loop.from_unix(window.until) if window.until < inf else inf,
                    )
                )
            pause = calendar.next_change(now) - now
            # A step of the wall clock is found at the latest after a minute.
            await anyio.sleep(min(max(pause, 0.05), 60.0) if pause < inf else 3600.0)

    # -- stop --------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop in order. Bounded: under 5 s, and what programs of ours take to end on top of that."""
        self.stopping = True
        self.watches.stop()
        self.checks.cancel_all()
        self.loop.close_gate()
        self.actions.interrupt()
        with anyio.move_on_after(ACTIONS_STOP):
            await self.actions.idle()
        await self._release_workloads()
        undelivered = await self.outbox.close(MESSAGES_STOP)
        if undelivered:
            log.warning("%d messages were not delivered; they are tried again at the next start", len(undelivered))
        self.loop.save_snapshot()
        self.stream.close()
        await self.loops.aclose(1.0)
        self.contexts.threads.close()
        stored = await anyio.to_thread.run_sync(self.journal.close, STORE_STOP)
        if not stored:
            log.error("the journal could not be flushed: what was decided last may be missing at the next start")
        self.probes.close()

    async def _release_workloads(self) -> None:
        """Let go of the programs we run: each is stopped unless it is told otherwise."""
        async with anyio.create_task_group() as group:
            for entry in self.roster.entries.values():
                if hasattr(entry.workload, "release"):
                    group.start_soon(self._release, entry)

    async def _release(self, entry: Entry) -> None:
        workload: Any = entry.workload
        timeout = getattr(workload, "stop_timeout", 0.0) + 5.0
        outcome = await self.loops.run(
            entry.name,
            lambda: workload.release(self.contexts.plain(entry.name, workload, timeout), stopping=True),
            timeout=timeout,
            kind="other",
        )
        if outcome.ending is not Ending.VALUE:
            log.warning("%s could not be stopped: %s", entry.name, outcome.error or outcome.ending.value)


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
    except BaseException:
        remembered.journal.close(STORE_STOP)
        raise
    tasks = await stack.enter_async_context(anyio.create_task_group())
    running = Running(plan, remembered.journal, engine, roster, tasks)
    posted.append(running.loop.post)

    async def end() -> None:
        with anyio.CancelScope(shield=True):
            await running.stop()
        tasks.cancel_scope.cancel()

    stack.push_async_callback(end)
    running.begin(remembered.history)
    return running


__all__ = ["Plan", "Running", "start"]
