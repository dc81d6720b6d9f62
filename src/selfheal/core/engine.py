"""The fleet: one deterministic machine. Events in, records and commands out, and when to be woken.

How to read this file
=====================

`receive` is the one door. It first fires the timers that are due, each at its own due time, then takes the event in,
then lets every service that was woken walk the guards, most important first. Whatever is decided is *said*: a record
goes through `Ledger.apply`, the only writer of decided state, and out to the host. What is merely observed lives in
`Evidence`, which a restart forgets.

The host's duties
-----------------

1. Feed events in the order they happened, with `at` in journal time; feed `TimePassed` at or after `deadline`.
2. Store the records of each output before anybody is told of them; start a `RunAction` only once its records are
   durable, and report `NOT_STARTED` when they could not be made so.
3. Answer every `RunCheck` by one `CheckFinished` with the same generation and purpose, every `RunAction` and `Settle`
   by one `ActionFinished`. Cancel a check in flight when its service gets a `RunAction` or a newer generation.
4. Report waking more than `late_after` seconds late as `WokeLate`, before anything else of that moment.

Nothing here knows a clock, a socket, a thread or a random source; the same events give the same bytes (law 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any, Final, TypeAlias, assert_never

import attrs

from selfheal.core import acts, alerts, detector, guards, incidents, machine
from selfheal.core.desk import Desk, Watch
from selfheal.core.guards import CANNOT_RUN, UNOBSERVED_AFTER
from selfheal.core.ledger import FRESH, WELL, Ledger, Snapshot, alert_key
from selfheal.core.lookout import Lookout
from selfheal.core.messages import (
    NOTHING,
    ActionFinished,
    CheckFinished,
    Event,
    FleetProposed,
    JournalChanged,
    Output,
    Requested,
    Started,
    TimePassed,
    WatchReported,
    WindowChanged,
    WokeLate,
)
from selfheal.core.model import (
    Condition,
    Evidence,
    Hold,
    Purpose,
    Run,
    State,
    Verdict,
)
from selfheal.core.records import (
    Record,
)
from selfheal.core.repair import Repair
from selfheal.core.roster import Roster

Uncommon: TypeAlias = (
    Started
    | TimePassed
    | WokeLate
    | ActionFinished
    | WatchReported
    | Requested
    | FleetProposed
    | WindowChanged
    | JournalChanged
)
"""Every event but the end of a check, which comes a thousand times as often."""

JUST_BEFORE: Final = 1e-9
"""Seconds: how far a difference of two instants may be off by rounding."""

# What every check asks for: looked up in its enumeration, a member costs six times what a name of the module does.
_HEALTHY: Final = State.HEALTHY
_INCONCLUSIVE: Final = Verdict.INCONCLUSIVE
_PASSING: Final = Verdict.PASSING
_ROUTINE: Final = Purpose.ROUTINE


class Engine:
    """Decides for a whole fleet. See the module for how to read it and what its host owes it."""

    def __init__(self, *, snapshot: Snapshot | None = None, history: Iterable[Record] = ()) -> None:
        self.desk = Desk(snapshot, history)
        self.lookout = Lookout(self.desk)
        self.repair = Repair(self.desk, self.lookout)
        self.roster = Roster(self.desk, self.lookout, self.repair)

    @property
    def ledger(self) -> Ledger:
        """The decided state: read it, never write it."""
        return self.desk.ledger

    @property
    def now(self) -> float:
        """The journal time of the last event."""
        return self.desk.now

    def receive(self, event: Event) -> Output:
        """Take one event in; return the records it caused and the commands for the host.

        It always ends, and costs no more in a large fleet than in a small one.
        """
        desk = self.desk
        agenda, at = desk.agenda, event.at
        if at < desk.now:
            at = desk.now
        if isinstance(event, CheckFinished):
            if agenda.bound <= at:
                self._fire(at)
            desk.now = at
            self._checked(event)
        else:
            self._take(event, at)
        if desk.awake or desk.touched:
            self._settle()
        if agenda.bound <= at:
            self._fire(at)
        records, commands = desk.records, desk.commands
        if not records and not commands:
            return NOTHING
        output = Output(tuple(records), tuple(commands))
        records.clear()
        commands.clear()
        return output

    @property
    def deadline(self) -> float:
        """When to be woken with `TimePassed`, in journal time; infinity when nothing is due."""
        return self.desk.agenda.deadline

    def snapshot(self, number: int = 0) -> Snapshot:
        """Return the decided state; `number` is the batch it is good for."""
        return self.desk.ledger.image(number)

    def explain(self, service: str) -> tuple[tuple[str, Hold | None], ...]:
        """Return every guard in order and what it says now. Asking changes nothing (law 22).

        Raises `KeyError` for an unknown service.
        """
        sight = self.repair.sight(self.desk.ledger.policies[service])
        return tuple((guard.name, hold) for guard, hold in guards.walk(self.repair.guards, sight))

    def evidence(self, service: str) -> Evidence:
        """Return what was observed of a service in this run. It is live: read it, do not keep it.

        Raises `KeyError` for an unknown or unwatched service.
        """
        return self.desk.watches[service].evidence

    def in_flight(self, service: str) -> Purpose | None:
        """Return why a check of the service is in flight; None when none is."""
        watch = self.desk.watches.get(service)
        return watch.flight if watch is not None else None

    def due(self, service: str) -> float:
        """Return when the service's next check is due; infinity while one is in flight or an action runs."""
        return self.desk.agenda.due(("check", service))

    def _take(self, event: Uncommon, at: float) -> None:
        if isinstance(event, Started):
            # The dead run lived until `resumes`; what it had due after that, it never did.
            self._fire(min(event.resumes, at))
        elif isinstance(event, WokeLate):
            # What was due before we should have woken happened in its time; the rest is overdue, and happens now.
            self._fire(at - event.late - JUST_BEFORE)
            self.desk.agenda.postpone(at)
            self.desk.now = at
            self.repair.slept_through(event.late)
        else:
            self._fire(at)
        self.desk.now = at
        match event:
            case TimePassed():
                pass
            case WokeLate():
                self.lookout.woke_late(event)
            case ActionFinished():
                self.repair.acted(event)
            case WatchReported():
                self._reported(event)
            case Requested():
                acts.perform(acts.Rooms(desk=self.desk, repair=self.repair, roster=self.roster), event)
            case FleetProposed():
                self.roster.proposed(event)
            case WindowChanged():
                self.roster.window_changed(event)
            case JournalChanged():
                self.lookout.journal_changed(event)
            case Started():
                self.roster.started(event)
            case _:
                assert_never(event)

    def _settle(self) -> None:
        """Let the woken walk the guards, most important first, until nobody is awake."""
        while self.desk.awake or self.desk.fills_slots():
            self.repair.attempt(self.desk.next_awake())
        if self.desk.touched:
            self.desk.tell()

    def _fire(self, until: float) -> None:
        """Let what is due by `until` happen, each at its own time and in its order (law 2).

        Whoever is woken at one time passes one ready set, so that a turn goes to the most important of them.
        """
        desk = self.desk
        agenda = desk.agenda
        while (entry := agenda.take(until)) is not None:
            due, _, (what, name) = entry
            if due > desk.now:
                desk.now = due
            if what == "check":
                self._check_due(name)
            elif what == "act":
                desk.ready(name)
            elif what == "attempt":
                self.repair.out_of_time(name)
            elif what == "expire":
                self.roster.lift(name, "", "it has run out")
            elif what == "settle":
                self.repair.ask_again(name)
            elif what == "orphan":
                self.repair.orphan(name)
            elif what == "forced":
                self.repair.demand_over(name)
            elif what == "budget":
                self.repair.budget_opens()
            else:  # doubt
                desk.hold("doubt", False, "on time again")
            if (desk.awake or desk.touched) and agenda.deadline > due:
                self._settle()

    def _check_due(self, name: str) -> None:
        desk = self.desk
        watch, condition = desk.watches.get(name), desk.ledger.conditions.get(name)
        if (
            watch is not None
            and condition is not None
            and condition.state is _HEALTHY
            and watch.flight is None
            and not desk.ledger.intents
        ):
            desk.begin(watch, condition, _ROUTINE)
            return
        recovering = condition is not None and condition.state is State.RECOVERING
        desk.want(name, Purpose.VERIFY if recovering else _ROUTINE)

    def _checked(self, event: CheckFinished) -> None:
        desk, lookout, name = self.desk, self.lookout, event.service
        watch = desk.watches.get(name)
        if watch is None or watch.flight is None:
            return
        policy, e, ledger = watch.policy, watch.evidence, desk.ledger
        if policy is None:
            lookout.canary_checked(watch, event)
            return
        condition = ledger.conditions[name]
        if event.generation != condition.generation:
            return  # law 3
        purpose, watch.flight = watch.flight, None
        wanted, watch.wanted = watch.wanted, None
        result, started = event.result, event.started
        ran = result.verdict is not _INCONCLUSIVE
        doubtful = started < condition.settle_until or started < lookout.doubt.before or lookout.canaries.names
        if doubtful and ran and lookout.disbelieves(event, condition, policy):
            result = attrs.evolve(result, verdict=_INCONCLUSIVE)
        if e.failing_since < lookout.canaries.well_since:
            e.failures, e.failing_since, e.history = 0, inf, 0
        verdict = detector.judge(policy, e, result, started, event.ended, event.instance)
        if purpose is not _ROUTINE and purpose is Purpose.BEFORE_STEP:
            desk.reserved.pop(name, None)
        if (
            verdict is _PASSING
            and condition.state is _HEALTHY
            and not (e.score or e.slow or wanted or name in lookout.storm)
            and not (ledger.alerts and alert_key(name, "unobserved") in ledger.alerts)
        ):
            if desk.waiting.many and watch.wake in desk.waiting:
                desk.wake(watch.wake)
            desk.schedule(watch, None)
            return
        excused = verdict is _INCONCLUSIVE and result.verdict is not _INCONCLUSIVE
        self._conclude(watch, condition, verdict, purpose, ran=ran, excused=excused)
        self._after_check(watch, wanted)

    def _conclude(
        self, watch: Watch, condition: Condition, verdict: Verdict, purpose: Purpose, *, ran: bool, excused: bool
    ) -> None:
        name = watch.name
        if verdict is Verdict.INCONCLUSIVE:
            if excused:
                self.lookout.excused[name] = None
            if excused and not watch.evidence.failures and name in self.lookout.storm:
                self.lookout.unsuspect(name)
            if not (excused and self._loops(watch, condition)):
                self._inconclusive(watch, condition, purpose, ran=ran)
            return
        self._observed(name)
        if verdict is Verdict.FAILING:
            if name not in self.lookout.storm:
                self.lookout.suspect(name)
            self._failing(watch, condition, purpose)
        else:
            if name in self.lookout.storm:
                self.lookout.unsuspect(name)
            self._passing(watch, condition)
            if purpose is Purpose.BEFORE_STEP:
                self.desk.wake(guards.SLOT)
            self.desk.wake(watch.wake)

    def _after_check(self, watch: Watch, wanted: Purpose | None) -> None:
        name, e = watch.name, watch.evidence
        condition = self.desk.ledger.conditions.get(name, FRESH)
        if watch.flight is not None or not self.desk.checkable(name):
            return
        if wanted is not None and not (wanted is Purpose.BEFORE_STEP and condition.state is not State.FAILED):
            self.desk.want(name, wanted)
            return
        assert watch.policy is not None
        hurried = detector.quick(watch.policy, condition, e) or (
            e.inconclusive > 0 and (e.inconclusive < UNOBSERVED_AFTER or watch.wake in self.desk.waiting)
        )
        quick = watch.policy.recheck if hurried else None
        if self.desk.agenda.due(watch.key) == inf:
            self.desk.schedule(watch, quick)

    def _inconclusive(self, watch: Watch, condition: Condition, purpose: Purpose, *, ran: bool) -> None:
        """It counts neither way; people hear of it when it lasts, because what is not observed is not healed.

        What `ran` and is not believed is told by the hold that disbelieves it, once, and not for each service.
        """
        name, e = watch.name, watch.evidence
        if purpose is Purpose.BEFORE_STEP:
            self.desk.wake(guards.SLOT)
        if ran:
            e.blind = 0
            self._observed(name)
        if e.last_verdict is Verdict.FAILING and e.starting_since < inf and condition.state in WELL:
            self.desk.move(
                name, machine.moved(condition, self.desk.now, state=State.UNHEALTHY, detail=e.summary), "it is starting"
            )
        key = alert_key(name, "unobserved")
        if e.blind < UNOBSERVED_AFTER:
            return
        self.repair.attempt(name)  # what is not observed is not healed, and `explain` says so
        if key not in self.desk.ledger.alerts:
            text = f"{CANNOT_RUN}: {e.summary}" if e.summary else CANNOT_RUN
            severity = alerts.SERVICE_RULES["unobserved"]
            self.desk.say(
                alerts.new(
                    self.desk.ledger, name, "unobserved", severity, text, self.desk.now, incident=condition.incident
                )
            )

    def _observed(self, name: str) -> None:
        alert = self.desk.ledger.alerts.get(alert_key(name, "unobserved"))
        if alert is not None:
            self.desk.say(alerts.resolved(alert, self.desk.now, "a check ran"))

    def _failing(self, watch: Watch, condition: Condition, purpose: Purpose) -> None:
        name, policy, e = watch.name, watch.policy, watch.evidence
        assert policy is not None
        state = condition.state
        if state is State.RECOVERING:
            if e.failures >= policy.failure_threshold:
                self.repair.step_failed(name, f"still failing: {e.summary}")
        elif state is State.FAILED:
            if detector.confirmed(policy, e, self.desk.now):
                e.unconfirmed = False
            self.repair.attempt(name, fresh=purpose is Purpose.BEFORE_STEP)
        elif detector.confirmed(policy, e, self.desk.now):
            self.repair.confirm(watch, condition)
        elif self._loops(watch, condition):
            pass
        elif state is State.DEGRADED and condition.reason == "unsteady":
            pass  # one failure more of many: it stays what it is until confirmed or steady
        elif state is not State.UNHEALTHY:
            correlation = condition.correlation or f"{name}@{e.failing_since:.3f}"
            after = machine.moved(
                condition,
                self.desk.now,
                state=State.UNHEALTHY,
                detail=e.summary,
                cause=e.cause,
                correlation=correlation,
            )
            self.desk.move(name, after, e.summary or "a check failed")

    def _loops(self, watch: Watch, condition: Condition) -> bool:
        """Believe that a service is down of which one instance after the other fails, none for long enough.

        Each instance is given its time, so no count and no span is ever full; but nobody has been served for long.
        What may be done about the instance that runs now is the guard's question, not this one's.
        """
        policy, e = watch.policy, watch.evidence
        assert policy is not None
        if condition.state in alerts.DOWN or e.instance is None:
            return False
        if self.desk.now - e.down_since < detector.loop_span(policy):
            return False
        if not self.lookout.canaries.vouches(e.down_since):
            self.lookout.ask_canaries()
            return False
        self.repair.believe(watch.name, "one instance after the other fails")
        e.unconfirmed = True
        return True

    def _passing(self, watch: Watch, condition: Condition) -> None:
        name, policy, e = watch.name, watch.policy, watch.evidence
        assert policy is not None
        if condition.state in alerts.DOWN:
            if e.passes >= policy.success_threshold:
                self.repair.well(watch, condition)
            return
        reason = detector.degraded(policy, condition, e, self.desk.now)
        if reason == "unsteady" and condition.reason != reason and incidents.explained(self.desk.ledger, policy):
            reason = ""
        state = State.DEGRADED if reason else State.HEALTHY
        cause = e.cause if reason == "warning" else None
        told = condition.cause is cause or condition.incident is not None
        if condition.state is state and condition.reason == reason and told:
            return
        detail = e.summary if reason == "warning" else ""
        if reason == "slow":
            detail = f"{e.latency:.3g} s; the objective is {policy.latency_objective:g} s"
        changes: dict[str, Any] = {"correlation": "", "cause": cause} if condition.incident is None else {}
        if condition.well_since == inf:
            changes["well_since"] = self.desk.now
        after = machine.moved(condition, self.desk.now, state=state, **{"reason": reason, "detail": detail, **changes})
        came_back = condition.state in (State.UNKNOWN, State.DISABLED)
        self.desk.move(name, after, reason or "passing")
        if came_back:
            self.repair.release_dependents(name)

    def _reported(self, event: WatchReported) -> None:
        """A sensor spoke: it proves nothing, so look at once; but an end nobody asked for needs only one look."""
        watch = self.desk.watches.get(event.service)
        if watch is None or watch.policy is None or not self.desk.checkable(event.service):
            return
        condition, instance = self.desk.ledger.conditions[event.service], event.instance
        if condition.state is State.RECOVERING:
            return
        if instance is None:
            if self.desk.now - watch.nudged < watch.interval:
                return
            watch.nudged = self.desk.now
        elif instance.run in detector.GONE:
            watch.evidence.instance = instance
            watch.evidence.ended = True
        elif instance.run is Run.STOPPED:
            watch.evidence.instance = instance
        else:
            return
        self.desk.want(event.service, Purpose.PARENT)
