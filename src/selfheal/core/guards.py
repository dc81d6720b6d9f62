"""Why an action does not run: one ordered table of guards.

A guard looks and answers None or a `Hold`; it changes nothing, so `explain` may ask all of them at any time. They are
asked in order and the first hold is the reason shown. The order matters in one place: the parents stand after backoff
and budget, because only a parent check that began after those ended is news.

What a person may pass: `force` (a forced recovery passes it), `override` (only when it is named and the caller has
the admin scope), or nothing. Single flight, the instance, the journal and destructive consent are never passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from math import inf
from typing import Final, TypeAlias

import attrs

from selfheal.core.backoff import all_open, opens
from selfheal.core.detector import confirmed, flapping
from selfheal.core.ledger import WELL, Ledger, hard
from selfheal.core.machine import known_cause, next_step
from selfheal.core.model import (
    INSPECTION_FAILED,
    MANUAL,
    Binds,
    Budget,
    Condition,
    Dependency,
    Effect,
    Evidence,
    Fleet,
    Hold,
    Policy,
    Run,
    State,
    Step,
    WhenDisabled,
)
from selfheal.core.records import GuardAnswer

CANNOT_RUN: Final = "checks cannot run"
"""How the detail of a hold begins that waits for somebody to mend a check."""

UNOBSERVED_AFTER: Final = 3
"""Checks in a row that could not run before people hear of it, and before nothing is done about the service."""

UNWATCHED: Final = "it is gone from the configuration: kept, not watched"
PARENT_OFF: Final = "disabled"
"""Details of holds that last until a person does something."""

SERVICE_BUDGET: Final = "service"
FLEET_BUDGET: Final = "fleet"
COOLDOWN: Final = "cooldown"
"""How the detail of `held:budget` begins, by whose budget it is."""

OPERATOR: Final = "operator"
SLOT: Final = "slot"


@attrs.frozen(kw_only=True)
class Sight:
    """What a guard may look at: one service, and the fleet around it. Reading it changes nothing."""

    now: float
    name: str
    policy: Policy
    condition: Condition
    evidence: Evidence
    ledger: Ledger
    evidence_of: Callable[[str], Evidence]
    reserved: Mapping[str, None]
    trusted_since: float = -inf

    @property
    def index(self) -> int:
        """The step that is next; where none fits, the one at the cursor."""
        index = next_step(self.policy, self.condition, self.evidence)
        return index if index is not None else min(self.condition.cursor, len(self.policy.steps) - 1)

    @property
    def step(self) -> Step | None:
        """The step that is next; None for a service without a ladder."""
        return self.policy.steps[self.index] if self.policy.steps else None


Ask: TypeAlias = Callable[[Sight], Hold | None]


class Pass(StrEnum):
    """How a person may pass a guard."""

    NEVER = "never"
    FORCE = "force"
    OVERRIDE = "override"


@attrs.frozen(kw_only=True)
class Guard:
    """One row: its name, how it is passed, and the question."""

    name: str
    passed: Pass = Pass.NEVER
    ask: Ask

    def hold(self, sight: Sight) -> Hold | None:
        """Return what holds the service here; None when nothing does or a person's demand passes it."""
        hold = self.ask(sight)
        return None if hold is not None and self.passed_by(sight.condition) else hold

    def passed_by(self, condition: Condition) -> str:
        """Return who passes this guard by force; empty when nobody does."""
        forced = condition.forced
        if forced is None:
            return ""
        if self.passed is Pass.FORCE or (self.passed is Pass.OVERRIDE and self.name in forced.override):
            return forced.actor
        return ""


# -- the questions --------------------------------------------------------------------------------------------------


def journal(sight: Sight) -> Hold | None:
    """Intents cannot be made durable: fail static."""
    if "journal" not in sight.ledger.holds or sight.ledger.fleet.limits.act_without_journal:
        return None
    return Hold(reason="held:journal", detail=sight.ledger.holds["journal"], wake=("hold:journal",))


def _suppressed(sight: Sight, binds: Binds) -> Hold | None:
    found = [s for s in sight.ledger.suppressions.values() if s.binds is binds and s.covers(sight.name)]
    if not found:
        return None
    longest = max(found, key=lambda suppression: suppression.until)
    detail = f"{longest.id} by {longest.actor}: {longest.reason}"
    return Hold(reason=f"held:{binds.value}", detail=detail, until=longest.until, wake=(OPERATOR,))


def paused(sight: Sight) -> Hold | None:
    """A person paused all or this."""
    return _suppressed(sight, Binds.PAUSED)


def maintenance(sight: Sight) -> Hold | None:
    """A maintenance window is open."""
    return _suppressed(sight, Binds.MAINTENANCE)


def observe(sight: Sight) -> Hold | None:
    """It is only watched: by policy, by a person, or because it has no ladder; or it is not watched any more."""
    if sight.name in sight.ledger.unwatched:
        return Hold(reason="held:observe", detail=UNWATCHED, wake=(OPERATOR,))
    if sight.policy.observe_only or not sight.policy.steps:
        detail = "observe_only is set" if sight.policy.observe_only else "it has no recovery_actions"
        return Hold(reason="held:observe", detail=detail, wake=(OPERATOR,))
    return _suppressed(sight, Binds.OBSERVE)


def doubt(sight: Sight) -> Hold | None:
    """We have been late for long, or its checks cannot run: what we see, or do not see, may be our own trouble."""
    if "doubt" in sight.ledger.holds:
        return Hold(reason="held:doubt", detail=sight.ledger.holds["doubt"], wake=("hold:doubt",))
    if sight.evidence.blind < UNOBSERVED_AFTER:
        return None
    return Hold(reason="held:doubt", detail=f"{CANNOT_RUN}: {sight.evidence.summary}", wake=(f"service:{sight.name}",))


def canary(sight: Sight) -> Hold | None:
    """No canary answers: the trouble is ours, or the network's."""
    if "canary" not in sight.ledger.holds:
        return None
    return Hold(reason="held:canary", detail=sight.ledger.holds["canary"], wake=("hold:canary",))


def storm(sight: Sight) -> Hold | None:
    """Too much failed at once. A workload that says it has exited is evidence enough for its own service."""
    if "storm" not in sight.ledger.holds:
        return None
    instance = sight.evidence.instance
    if instance is not None and instance.run is Run.EXITED:
        return None
    return Hold(reason="held:storm", detail=sight.ledger.holds["storm"], wake=("hold:storm",))


def workload(sight: Sight) -> Hold | None:
    """We must know who runs, that nobody stopped it or is starting it, and that it is this one which failed."""
    e = sight.evidence
    wake = (f"service:{sight.name}",)
    if e.unconfirmed and not confirmed(sight.policy, e, sight.now):
        return Hold(reason="held:workload", detail="a new instance runs and is being observed", wake=wake)
    if not sight.policy.has_workload:
        return None
    if e.instance is None:
        return Hold(reason="held:workload", detail="nobody has asked who runs yet", wake=wake, ask=(sight.name,))
    if e.instance.run is Run.UNKNOWN:
        return Hold(reason="held:workload", detail=f"{INSPECTION_FAILED}: {e.instance.detail}", wake=wake)
    if e.instance.run is Run.STOPPED:
        return Hold(reason="held:workload", detail=f"stopped by a person: {e.instance.detail}", wake=wake)
    until = sight.condition.since + sight.policy.starting_limit
    if e.instance.run is Run.STARTING and sight.now < until:
        # Whoever starts it is at it: an action would be refused, and cost an attempt, or begin the start anew.
        detail = f"it is being started: {e.instance.detail}".rstrip(": ")
        return Hold(reason="held:workload", detail=detail, until=until, wake=wake)
    return None


def cause(sight: Sight) -> Hold | None:
    """No step of the ladder fits this failure."""
    if next_step(sight.policy, sight.condition, sight.evidence) is not None or not sight.policy.steps:
        return None
    known = known_cause(sight.condition, sight.evidence)
    said = known.value if known is not None else "unknown"
    return Hold(reason="held:cause", detail=f"no step fits the cause {said}", wake=(f"service:{sight.name}",))


def flaps(sight: Sight) -> Hold | None:
    """It was confirmed down too often: more restarts will not cure it. An attempt under way is finished."""
    return None if sight.condition.in_attempt else flapping(sight.policy, sight.condition, sight.now)


def escalated(sight: Sight) -> Hold | None:
    """All attempts are used: people are told, and one slow retry is made from time to time."""
    c = sight.condition
    if c.attempt < sight.policy.max_retries or c.in_attempt or c.not_before <= sight.now:
        return None
    return Hold(reason="escalated", detail=f"{c.attempt} attempts used", until=c.not_before, wake=(OPERATOR,))


def backoff(sight: Sight) -> Hold | None:
    """It was tried a moment ago, or its parent has just come back."""
    c = sight.condition
    if sight.now >= c.not_before:
        return None
    detail = f"after attempt {c.attempt}" if c.attempt else "before the first attempt"
    return Hold(reason="backoff", detail=detail, until=c.not_before)


def _spent(sight: Sight, action: str | None = None) -> list[float]:
    entries = sight.ledger.spent.get(sight.name, ())
    if action is None:
        return [entry.at for entry in entries if entry.counts]
    return [entry.at for entry in entries if entry.action == action]


def _within(sight: Sight, what: str, spent: list[float], budgets: tuple[Budget, ...]) -> Hold | None:
    until, budget = all_open(spent, budgets)
    if sight.now >= until or budget is None:
        return None
    return Hold(reason="held:budget", detail=f"{what}: {budget.limit} in {budget.per:g} s", until=until)


def budget(sight: Sight) -> Hold | None:
    """The service has had its disruptive actions for this window."""
    if sight.step is None or sight.step.effect is Effect.GENTLE:
        return None
    return _within(sight, SERVICE_BUDGET, _spent(sight), sight.policy.budgets)


def cooldown(sight: Sight) -> Hold | None:
    """This step ran on this service a moment ago."""
    step = sight.step
    if step is None or step.cooldown is None:
        return None
    spent = _spent(sight, step.action)
    return _within(sight, f"{COOLDOWN} of {step.action}", spent, (Budget(limit=1, per=step.cooldown),))


def fleet_budget(sight: Sight) -> Hold | None:
    """The fleet has had its disruptive actions for this window."""
    if sight.step is None or sight.step.effect is Effect.GENTLE:
        return None
    return _within(sight, FLEET_BUDGET, sight.ledger.fleet_spent, (budget_of(sight.ledger.fleet),))


def budget_of(fleet: Fleet) -> Budget:
    """Return the budget of the whole fleet: a share of its services, and no less than a floor."""
    limits = fleet.limits
    limit = max(limits.budget_floor, int(limits.budget_share * len(fleet.policies)))
    return Budget(limit=limit, per=limits.budget_per)


def fleet_opens(ledger: Ledger) -> float:
    """Return when the budget of the whole fleet lets one more action happen."""
    return opens(ledger.fleet_spent, budget_of(ledger.fleet))


def parents(sight: Sight) -> Hold | None:
    """A hard parent must be well, by a check that began after this service failed and its backoff ended.

    And after we last had reason to doubt our own view: what was seen before a partition is not news after it. While a
    question is put to people, a parent that was well when it was put need not be looked at anew: the yes will ask for
    that, and a question that goes away for a moment at every late wake would be put again each time.
    """
    c = sight.condition
    put = c.reason == "held:approval" and c.asked == sight.index and c.approved != sight.index
    trusted = -inf if put else sight.trusted_since
    since = max(c.since, trusted, c.not_before if c.not_before <= sight.now else -inf)
    for dependency in hard(sight.policy):
        hold = _parent(sight, dependency, since)
        if hold is not None:
            return hold
    return None


def _parent(sight: Sight, dependency: Dependency, since: float) -> Hold | None:
    """One dependency: any of its members that is well, freshly looked at, will do."""
    stale: list[str] = []
    off: list[str] = []
    for name in dependency.services:
        condition = sight.ledger.conditions.get(name)
        if name in sight.ledger.occupied:
            continue  # whoever is not watched may still be in the hands of an action that was let finish
        if condition is None or condition.state is State.DISABLED or name in sight.ledger.unwatched:
            if dependency.when_disabled is WhenDisabled.PROCEED:
                return None
            off.append(name)
            continue
        if condition.state not in WELL:
            continue
        evidence = sight.evidence_of(name)
        if evidence.last_pass >= since and not evidence.failures:
            return None
        stale.append(name)
    first = stale[0] if stale else dependency.services[0]
    detail = "looks well; a fresh check of it is awaited" if stale else "not well"
    if len(off) == len(dependency.services):
        detail = PARENT_OFF
    elif stale and all(sight.evidence_of(name).blind >= UNOBSERVED_AFTER for name in stale):
        detail = f"{CANNOT_RUN}: nobody sees whether it is well"
    wake = tuple(f"service:{name}" for name in dependency.services)
    return Hold(reason=f"waiting-for:{first}", detail=detail, wake=wake, ask=tuple(stale))


def approval(sight: Sight) -> Hold | None:
    """This step waits for a person: until they answer, or (except for manual intervention) the time is up."""
    step, c = sight.step, sight.condition
    if step is None or not (step.asks or step.action == MANUAL):
        return None
    # Whoever said yes said it of what they saw: that lasts as long as the question would have.
    if c.approved == sight.index and (c.asked_at is None or sight.now < c.asked_at + sight.policy.approval_timeout):
        return None
    # What else held it meanwhile took nothing of the time to answer: the question is put anew.
    put = c.asked_at is not None and c.asked == sight.index and c.reason == "held:approval"
    asked = c.asked_at if put and c.asked_at is not None else sight.now
    until = inf if step.action == MANUAL else asked + sight.policy.approval_timeout
    return Hold(reason="held:approval", detail=step.action, until=until, wake=(OPERATOR,))


def slot(sight: Sight) -> Hold | None:
    """As many recoveries run as may at once; an action whose manager died counts until it is settled."""
    others = len(sight.ledger.occupied) + len(sight.reserved) - (sight.name in sight.reserved)
    if others < sight.ledger.fleet.limits.max_concurrent_recoveries:
        return None
    return Hold(reason="held:slot", detail=f"{others} recoveries under way", wake=(SLOT,))


GUARDS: Final[tuple[Guard, ...]] = (
    Guard(name="journal", ask=journal),
    Guard(name="paused", passed=Pass.OVERRIDE, ask=paused),
    Guard(name="maintenance", passed=Pass.OVERRIDE, ask=maintenance),
    Guard(name="observe", passed=Pass.OVERRIDE, ask=observe),
    Guard(name="doubt", ask=doubt),
    Guard(name="canary", ask=canary),
    Guard(name="storm", passed=Pass.FORCE, ask=storm),
    Guard(name="workload", ask=workload),
    Guard(name="cause", ask=cause),
    Guard(name="flapping", passed=Pass.FORCE, ask=flaps),
    Guard(name="escalated", passed=Pass.FORCE, ask=escalated),
    Guard(name="backoff", passed=Pass.FORCE, ask=backoff),
    Guard(name="budget", passed=Pass.FORCE, ask=budget),
    Guard(name="cooldown", passed=Pass.FORCE, ask=cooldown),
    Guard(name="fleet_budget", passed=Pass.FORCE, ask=fleet_budget),
    Guard(name="parents", passed=Pass.OVERRIDE, ask=parents),
    Guard(name="approval", ask=approval),
    Guard(name="slot", ask=slot),
)
"""Every guard, in the order they are asked."""


def walk(guards: tuple[Guard, ...], sight: Sight) -> Iterator[tuple[Guard, Hold | None]]:
    """Ask each guard in turn."""
    for guard in guards:
        yield guard, guard.hold(sight)


def answer(guard: Guard, hold: Hold | None, sight: Sight) -> GuardAnswer:
    """Return what a guard said, as a record keeps it; one that was passed by force is kept with what it said."""
    actor = guard.passed_by(sight.condition) if hold is None else ""
    said = guard.ask(sight) if actor else hold
    if said is None:
        return GuardAnswer(guard=guard.name)
    return GuardAnswer(guard=guard.name, reason=said.reason, detail=said.detail, passed_by=actor)
