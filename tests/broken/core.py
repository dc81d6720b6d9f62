"""The engine with one thing wrong in one place, each a mistake somebody could make: see `tests.broken`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import attrs
from tests.broken import Break, replacing

from selfheal.core import acts, backoff, detector, guards, incidents, ledger, machine
from selfheal.core.desk import Desk
from selfheal.core.engine import Engine
from selfheal.core.ledger import Ledger
from selfheal.core.model import (
    CheckResult,
    Condition,
    Dependency,
    Evidence,
    Forced,
    Policy,
    Purpose,
    Settled,
    State,
    Verdict,
    WhenDisabled,
)
from selfheal.core.repair import Repair
from selfheal.core.roster import Roster


def without(guard: str) -> Break:
    """Break the table of guards: one is not asked."""
    return replacing(Repair, "guards", lambda whole: tuple(one for one in whole if one.name != guard))


def _checkable_but_not_recovering(whole: Callable[[Desk, str], bool]) -> Callable[[Desk, str], bool]:
    return lambda desk, name: whole(desk, name) and desk.ledger.conditions[name].state is not State.RECOVERING


def _disabled_goes_on(stack: ExitStack) -> None:
    stack.enter_context(patch.object(Desk, "checkable", lambda *_: True))
    stack.enter_context(patch("selfheal.core.agenda.Agenda.cancel", lambda *_: None))


def _judged(changed: Callable[[CheckResult], CheckResult]) -> Callable[[Any], Any]:
    """Make a judge that sees other results than were found."""

    def made(whole: Any) -> Any:
        return lambda policy, e, result, *rest: whole(policy, e, changed(result), *rest)

    return made


def _as_failing(verdict: Verdict) -> Callable[[CheckResult], CheckResult]:
    return lambda result: attrs.evolve(result, verdict=Verdict.FAILING) if result.verdict is verdict else result


def _wordless(whole: Any) -> Any:
    return lambda policy, e, result, *rest: whole(policy, e, attrs.evolve(result, summary=""), *rest)


def _only_passes_have_a_time(whole: Any) -> Any:
    def judge(policy: Policy, e: Evidence, result: CheckResult, *rest: Any) -> Verdict:
        before = e.last_at
        verdict: Verdict = whole(policy, e, result, *rest)
        e.last_at = e.last_at if verdict is Verdict.PASSING else before
        return verdict

    return judge


def _drifting(desk: Desk, watch: Any, quick: float | None) -> None:
    desk.agenda.set(watch.key, desk.now + (watch.interval if quick is None else quick))


def _forgetful_fleet(whole: Any) -> Any:
    def set_fleet(self: Ledger, record: Any) -> None:
        whole(self, record)
        self.conditions = {policy.name: ledger.FRESH for policy in record.fleet.policies}

    return set_fleet


def _time_goes_back(whole: Any) -> Any:
    def receive(self: Engine, event: Any) -> Any:
        self.desk.now = min(self.desk.now, event.at)
        return whole(self, event)

    return receive


def _enabled_waits(whole: Any) -> Any:
    def want(desk: Desk, name: str, purpose: Purpose) -> None:
        condition = desk.ledger.conditions.get(name)
        if condition is not None and condition.state is State.UNKNOWN and condition.generation:
            desk.schedule(desk.watches[name], None)
        else:
            whole(desk, name, purpose)

    return want


def _believes_the_action(whole: Any) -> Any:
    def verify(repair: Repair, watch: Any, condition: Condition, settled: Settled, detail: str) -> None:
        if settled is Settled.FAILED:
            repair._attempt_over(watch.name, condition, detail)  # a broken build reaches anywhere
        else:
            whole(repair, watch, condition, settled, detail)

    return verify


def _done_is_enough(whole: Any) -> Any:
    def verify(repair: Repair, watch: Any, condition: Condition, settled: Settled, detail: str) -> None:
        whole(repair, watch, condition, settled, detail)
        if settled is Settled.DONE:
            repair.well(watch, repair.desk.ledger.conditions[watch.name])

    return verify


def _starts_another(stack: ExitStack) -> None:
    def recover(rooms: acts.Rooms, event: Any) -> str:
        condition = rooms.desk.ledger.conditions[event.service]
        by = Forced(actor=event.actor, reason=event.reason, request=event.id)
        rooms.desk.ledger.intents.clear()
        after = machine.moved(condition, rooms.desk.now, state=State.FAILED, forced=by)
        rooms.desk.move(event.service, after, "again")
        rooms.desk.ready(event.service)
        return "again"

    stack.enter_context(patch.dict(acts._ACTS, recover=recover))  # a broken build reaches anywhere


def _a_start_uses_an_attempt(whole: Any) -> Any:
    def resume(roster: Roster, policy: Policy, *rest: Any) -> None:
        condition = roster.desk.ledger.conditions[policy.name]
        if condition.state is State.FAILED:
            roster.desk.move(policy.name, attrs.evolve(condition, attempt=condition.attempt + 1), "failed")
        whole(roster, policy, *rest)

    return resume


def _presumed_well(whole: Any) -> Any:
    def parent(sight: guards.Sight, dependency: Dependency, since: float) -> Any:
        known = (sight.ledger.conditions[name].state for name in dependency.services)
        return None if any(state is State.UNKNOWN for state in known) else whole(sight, dependency, since)

    return parent


def _asked_once(whole: Any) -> Any:
    return lambda sight: None if sight.condition.attempt else whole(sight)


def _disabled_is_never_ready(whole: Any) -> Any:
    def parent(sight: guards.Sight, dependency: Dependency, since: float) -> Any:
        return whole(sight, attrs.evolve(dependency, when_disabled=WhenDisabled.WAIT), since)

    return parent


def _alerts_vanish(whole: Any) -> Any:
    def tell(desk: Desk) -> None:
        for key, alert in list(desk.ledger.alerts.items()):
            if desk.ledger.conditions[alert.service].state is State.HEALTHY:
                del desk.ledger.alerts[key]
        whole(desk)

    return tell


def _guarded(whole: Any, name: str, made: Callable[[Any], Any]) -> tuple[guards.Guard, ...]:
    return tuple(attrs.evolve(one, ask=made(one.ask)) if one.name == name else one for one in whole)


BUILDS: Mapping[str, Break] = {
    "what recovers is never checked": replacing(Desk, "checkable", _checkable_but_not_recovering),
    "what is disabled is checked": _disabled_goes_on,
    "attempts are not counted": replacing(
        machine, "begins", lambda whole: lambda c, now, step: attrs.evolve(whole(c, now, step), attempt=c.attempt)
    ),
    "nobody is unknown": replacing(ledger, "FRESH", lambda fresh: attrs.evolve(fresh, state=State.HEALTHY)),
    "a new fleet forgets": replacing(Ledger, "_fleet_set", _forgetful_fleet),
    "a warning is a failure": replacing(detector, "judge", _judged(_as_failing(Verdict.WARNING))),
    "what could not run is a failure": replacing(detector, "judge", _judged(_as_failing(Verdict.INCONCLUSIVE))),
    "failures lose their words": replacing(detector, "_failed", _wordless),
    "only passes have a time": replacing(detector, "judge", _only_passes_have_a_time),
    "time goes back": replacing(Engine, "receive", _time_goes_back),
    "what is enabled waits for its turn": replacing(Desk, "want", _enabled_waits),
    "nothing is suspicious": replacing(detector, "FAILURE_WEIGHT", lambda _: 0),
    "checks drift": replacing(Desk, "schedule", lambda _: _drifting),
    "the ladder is never climbed": replacing(
        machine, "next_rung", lambda whole: lambda c, now: attrs.evolve(whole(c, now), cursor=c.cursor)
    ),
    "no fresh check before a step": replacing(
        Repair, "attempt", lambda whole: lambda repair, name, *, fresh=False: whole(repair, name, fresh=True)
    ),
    "the action's word is believed": replacing(Repair, "_verify", _believes_the_action),
    "what an action has done has helped": replacing(Repair, "_verify", _done_is_enough),
    "a demand starts another action": _starts_another,
    "no limit to recoveries at once": without("slot"),
    "no consent is needed": without("approval"),
    "parents are not asked": without("parents"),
    "the backoff begins anew": replacing(machine, "level_now", lambda _: lambda *_: 0),
    "no jitter": replacing(backoff, "mix", lambda _: lambda *_: 0.5),
    "a start uses an attempt": replacing(Roster, "_resume", _a_start_uses_an_attempt),
    "an attempt has no end": replacing(Repair, "run_clock", lambda _: lambda *_: None),
    "unknown parents are presumed well": replacing(guards, "_parent", _presumed_well),
    "parents are asked once": replacing(Repair, "guards", lambda whole: _guarded(whole, "parents", _asked_once)),
    "a disabled parent is never ready": replacing(guards, "_parent", _disabled_is_never_ready),
    "nobody is released": replacing(Repair, "release_dependents", lambda _: lambda *_: None),
    "one failure is enough": replacing(detector, "confirmed", lambda _: lambda policy, e, now: e.failures > 0),
    "incidents never close": replacing(incidents, "left", lambda _: lambda *_: iter(())),
    "alerts vanish": replacing(Desk, "tell", _alerts_vanish),
    "memory only": replacing(Ledger, "fold", lambda _: lambda records, snapshot=None: Ledger(snapshot)),
}
"""Every broken build: what is wrong with it, and how it is made."""
