"""One service: its legal moves, its ladder, and what its condition is after each turn of a recovery.

The law of this file
====================

A service is a small machine. *Results* move it along the upper half (UNKNOWN, HEALTHY, DEGRADED, UNHEALTHY), *belief*
moves it down (FAILED), *action* across (RECOVERING), and *health*, always, back up. `TRANSITIONS` is the whole of it;
a move that is not in the table is a bug and raises. Whoever knows circuit breakers knows this one: closed until
FAILED, open while `backoff` lasts, half-open in RECOVERING.

Two rules explain the rest.

1. **Success is what later checks say.** An action's own word counts for nothing: whatever it returned, the service is
   RECOVERING until enough checks pass, or enough fail that began after it had time to settle.
2. **Giving up is never a dead end.** FAILED with the reason `escalated` is still checked; health clears it, a person
   may force it, and (unless turned off) one slow retry is made from time to time.

An *attempt* is one climb of the ladder: its steps in order, each preceded by a fresh check, each followed by
verification. It is counted when it begins. Its clock (`recovery_timeout`) runs from its first intent and stands still
while the next step is held. The *level* is the exponent of the backoff: it grows with every attempt, outlives the
incident, and is forgotten after a long enough run of health. Nothing of this is spent while the service is held.

The functions below are pure: a policy, a condition and an instant in, the condition afterwards out. Whoever calls
them says it as a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, Final

import attrs

from selfheal.core import backoff
from selfheal.core.detector import GONE
from selfheal.core.model import (
    MANUAL,
    NEVER_RESTART,
    NOT_CURED,
    Cause,
    Condition,
    Effect,
    Evidence,
    Forced,
    Policy,
    State,
    Step,
)

TRANSITIONS: Final[Mapping[State, Mapping[State, str]]] = {
    State.UNKNOWN: {
        State.HEALTHY: "the first check passes",
        State.DEGRADED: "the first check warns",
        State.UNHEALTHY: "the first check fails",
        State.FAILED: "its end was heard and a check fails, or a person forces a recovery",
        State.DISABLED: "switched off",
    },
    State.HEALTHY: {
        State.DEGRADED: "a warning, too slow, or unsteady",
        State.UNHEALTHY: "a check fails",
        State.FAILED: "its end was heard and a check fails",
        State.UNKNOWN: "a person asks to look afresh",
        State.DISABLED: "switched off",
    },
    State.DEGRADED: {
        State.HEALTHY: "passing and steady again",
        State.UNHEALTHY: "a check fails",
        State.FAILED: "the failure is confirmed, or a person forces a recovery",
        State.UNKNOWN: "a person asks to look afresh",
        State.DISABLED: "switched off",
    },
    State.UNHEALTHY: {
        State.HEALTHY: "a check passes",
        State.DEGRADED: "a check passes, but not well",
        State.FAILED: "the failure is confirmed, or a person forces a recovery",
        State.UNKNOWN: "a person asks to look afresh",
        State.DISABLED: "switched off",
    },
    State.FAILED: {
        State.RECOVERING: "no guard holds and a fresh check fails: a step begins",
        State.HEALTHY: "enough checks pass: it healed by itself",
        State.DEGRADED: "enough checks pass, but not well",
        State.UNKNOWN: "a person asks to look afresh",
        State.DISABLED: "switched off",
    },
    State.RECOVERING: {
        State.HEALTHY: "enough checks pass: recovered",
        State.DEGRADED: "enough checks pass, but not well",
        State.FAILED: "the step did not help, or never started",
        State.UNKNOWN: "a person asks to look afresh",
        State.DISABLED: "switched off",
    },
    State.DISABLED: {
        State.UNKNOWN: "switched on: checked at once",
    },
}
"""Every legal move, and what makes it. The diagram in the docs is printed from this table."""


def moved(condition: Condition, now: float, **changes: Any) -> Condition:
    """Return `condition` with `changes`; entering another state stamps `since` and clears reason and detail.

    Raises `AssertionError` for a move that is not in `TRANSITIONS`.
    """
    state = changes.get("state", condition.state)
    if state is not condition.state:
        assert state in TRANSITIONS[condition.state], f"{condition.state} -> {state} is no legal move"
        changes = {"reason": "", "detail": "", "since": now, **changes}
    return attrs.evolve(condition, **changes)


# -- the ladder -----------------------------------------------------------------------------------------------------


def _attempt(condition: Condition) -> int:
    """Return the attempt that the next step belongs to."""
    return condition.attempt if condition.in_attempt else condition.attempt + 1


def known_cause(condition: Condition, evidence: Evidence) -> Cause | None:
    """Return why it fails: what was observed in this run or, before anything was, what is stored."""
    unseen = evidence.last_verdict is None and evidence.cause is None
    return condition.cause if unseen else evidence.cause


def fits(policy: Policy, step: Step, evidence: Evidence, cause: Cause | None) -> bool:
    """Whether a step fits this failure: its cause, and whether there is anything to reconnect to, or to restart."""
    if step.only_for and cause not in step.only_for:
        return False
    if policy.has_workload and evidence.instance is not None and evidence.instance.run in GONE:
        return not step.needs_running
    return step.action != "restart" or cause not in NOT_CURED or cause in step.only_for


def allowed(step: Step, cause: Cause | None) -> bool:
    """Whether the cause lets this step be taken: what is wrong with a password or a setting no restart cures."""
    return cause not in NEVER_RESTART or step.effect is Effect.GENTLE or step.action == MANUAL


def next_step(policy: Policy, condition: Condition, evidence: Evidence) -> int | None:
    """Return the index of the next step that fits and is allowed; None when the ladder has none left.

    An attempt that would have no step at all takes one that is meant for a later attempt: that one may never come. Once
    all attempts are used, what only people mend is left to them: a slow retry would be noise.
    """
    later, cause = None, known_cause(condition, evidence)
    theirs = cause in NEVER_RESTART and _attempt(condition) > policy.max_retries
    for index in range(condition.cursor, len(policy.steps)):
        step = policy.steps[index]
        if not fits(policy, step, evidence, cause) or not allowed(step, cause) or (theirs and step.action != MANUAL):
            continue
        if _attempt(condition) >= step.from_attempt:
            return index
        later = index if later is None else later
    return None if condition.in_attempt else later


# -- the turns of a recovery ----------------------------------------------------------------------------------------


def failed(
    policy: Policy,
    condition: Condition,
    now: float,
    *,
    incident: int,
    fresh: bool,
    opens: bool,
    cause: Cause | None,
    wait: float,
    level: int,
    relapses: int = 0,
) -> Condition:
    """The failure is believed. `fresh` begins a new count of attempts, in an incident that `opens` now or not."""
    # One more than a window holds: the last may turn out to have been a parent's failure.
    kept = max([budget.limit + 1 for budget in policy.flapping], default=0)
    times = (*condition.confirmed, now)[-kept:] if kept else ()
    # A fresh count in an incident it may have been part of before must not repeat the keys of then.
    changes: dict[str, Any] = {"attempt": 0, "reissues": condition.reissues + (not opens)} if fresh else {}
    return moved(
        condition,
        now,
        state=State.FAILED,
        incident=incident,
        cause=cause,
        in_attempt=False,
        cursor=0,
        acting_since=None,
        acted_for=0.0,
        asked=None,
        asked_at=None,
        approved=None,
        not_before=now + wait if wait else 0.0,
        level=level,
        relapses=relapses,
        well_since=inf,
        confirmed=times,
        **changes,
    )


def level_now(policy: Policy, condition: Condition, now: float) -> int:
    """Return the backoff level a failure at `now` finds: 0 after a long enough run of health."""
    return 0 if now - condition.well_since >= policy.backoff.forget_after else condition.level


def wait(policy: Policy, seed: int, incident: int, attempt: int, level: int) -> float:
    """Return the backoff in seconds: a pure function of (seed, service, incident, attempt), whoever asks."""
    draw = backoff.mix(backoff.seed_of(seed, policy.name), incident * 1_000_003 + attempt)
    return backoff.delay(policy.backoff, level, draw)


def begins(condition: Condition, now: float, step: int) -> Condition:
    """A step begins: its attempt is counted with its first step, and the attempt's clock runs."""
    first = not condition.in_attempt
    return moved(
        condition,
        now,
        state=State.RECOVERING,
        generation=condition.generation + 1,
        attempt=condition.attempt + first,
        level=condition.level + first,
        in_attempt=True,
        cursor=step,
        acting_since=now if condition.acting_since is None else condition.acting_since,
        asked=None,
        asked_at=None,
        approved=None,
    )


def verifying(policy: Policy, condition: Condition, now: float) -> Condition:
    """The action has ended: let it settle, then judge. Results of checks from before it count for nothing."""
    settling = policy.steps[condition.cursor].settling if condition.cursor < len(policy.steps) else 0.0
    return moved(condition, now, generation=condition.generation + 1, settle_until=now + settling)


def given_back(condition: Condition, now: float, *, first: bool) -> Condition:
    """The action never started (law 9): where it was the `first` of its attempt, the attempt was none."""
    return moved(
        condition,
        now,
        state=State.FAILED,
        generation=condition.generation + 1,
        attempt=condition.attempt - first,
        level=condition.level - first,
        in_attempt=not first,
        acting_since=None if first else condition.acting_since,
        acted_for=0.0 if first else condition.acted_for,
        reissues=condition.reissues + 1,
    )


def next_rung(condition: Condition, now: float) -> Condition:
    """The step did not help, or is passed over: the one after it is next."""
    state = {} if condition.state is State.FAILED else {"state": State.FAILED}
    return moved(condition, now, cursor=condition.cursor + 1, asked=None, asked_at=None, approved=None, **state)


def pause(policy: Policy, seed: int, incident: int, attempt: int, level: int) -> float:
    """Return the seconds from the end of `attempt` to the next: the backoff, or the slow retry once all are used."""
    if attempt < policy.max_retries:
        return wait(policy, seed, incident, attempt, level)
    return policy.slow_retry if policy.slow_retry is not None else inf


def attempt_over(policy: Policy, condition: Condition, now: float, seed: int, *, rest: float = 0.0) -> Condition:
    """The ladder or its time is at an end: wait longer than the last time (at least `rest`), or escalate to people."""
    assert condition.incident is not None
    seconds = pause(policy, seed, condition.incident, condition.attempt, condition.level)
    state = {} if condition.state is State.FAILED else {"state": State.FAILED}
    return moved(
        condition,
        now,
        in_attempt=False,
        cursor=0,
        acting_since=None,
        acted_for=0.0,
        asked=None,
        asked_at=None,
        approved=None,
        forced=None,
        not_before=now + max(seconds, rest),
        **state,
    )


def retries_changed(policy: Policy, condition: Condition, now: float, seed: int) -> Condition:
    """Its `max_retries`, `slow_retry` or `backoff` were changed: it waits no longer than they have it wait now."""
    if condition.state is not State.FAILED or condition.in_attempt or condition.incident is None:
        return condition
    seconds = pause(policy, seed, condition.incident, condition.attempt, condition.level)
    return moved(condition, now, not_before=min(condition.not_before, now + seconds) if seconds < inf else inf)


def slept_through(condition: Condition, now: float, late: float) -> Condition:
    """The host was suspended for the `late` seconds before `now`: the clocks of attempt and answer stood still."""
    clocks = {"acting_since": condition.acting_since, "asked_at": condition.asked_at}
    return moved(condition, now, **{name: min(now, at + late) for name, at in clocks.items() if at is not None})


def clock_stopped(condition: Condition, now: float) -> dict[str, Any]:
    """Return the changes that stop the attempt's clock; none when it stands."""
    if condition.acting_since is None:
        return {}
    return {"acting_since": None, "acted_for": condition.acted_for + (now - condition.acting_since)}


def well(policy: Policy, condition: Condition, now: float, state: State, **why: Any) -> Condition:
    """Health clears everything but the memory that a relapse needs; `why` it is only DEGRADED may be said."""
    return moved(
        condition,
        now,
        state=state,
        **{"reason": "", "cause": None, **why},
        incident=None,
        correlation="",
        in_attempt=False,
        cursor=0,
        acting_since=None,
        acted_for=0.0,
        settle_until=0.0,
        asked=None,
        asked_at=None,
        approved=None,
        forced=None,
        not_before=0.0,
        well_since=now,
        probation_until=now + policy.probation,
        last_incident=condition.incident if condition.incident is not None else condition.last_incident,
    )


def afresh(condition: Condition, now: float, state: State, **changes: Any) -> Condition:
    """Forget what is believed of a service, not what it has spent or how often it was confirmed down."""
    return moved(
        condition,
        now,
        state=state,
        generation=condition.generation + 1,
        incident=None,
        correlation="",
        cause=None,
        attempt=0,
        in_attempt=False,
        cursor=0,
        acting_since=None,
        acted_for=0.0,
        settle_until=0.0,
        reissues=condition.reissues + 1,
        asked=None,
        asked_at=None,
        approved=None,
        forced=None,
        not_before=0.0,
        level=0,
        well_since=inf,
        probation_until=0.0,
        last_incident=None,
        relapses=0,
        **changes,
    )


def forced(condition: Condition, now: float, by: Forced) -> Condition:
    """A person wants it recovered: from FAILED as it is, else believed on their word."""
    return moved(condition, now, forced=by)
