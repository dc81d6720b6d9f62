"""Belief and action: from a confirmed failure over the guards to a step, through its verification, back to health."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, Final

import attrs

from selfheal.core import alerts, detector, incidents, machine
from selfheal.core.desk import Desk, Watch
from selfheal.core.guards import (
    CANNOT_RUN,
    FLEET_BUDGET,
    GUARDS,
    PARENT_OFF,
    SLOT,
    UNWATCHED,
    Guard,
    Sight,
    answer,
    fleet_opens,
    walk,
)
from selfheal.core.ledger import alert_key
from selfheal.core.lookout import Lookout
from selfheal.core.messages import (
    ActionFinished,
    CancelAction,
    RunAction,
    Settle,
)
from selfheal.core.model import (
    MANUAL,
    Condition,
    Effect,
    Evidence,
    Hold,
    Instance,
    Policy,
    Purpose,
    Run,
    Settled,
    State,
    Verdict,
)
from selfheal.core.records import (
    Ended,
    Intended,
    Moved,
    Record,
)

RELEASE_APART: Final = 0.2
"""Seconds between the checks of two dependents when their parent has come back."""
BUDGET_LOOK: Final = 5.0
"""Seconds between two looks whether somebody still waits for the budget of the fleet."""
ORPHAN_MARGIN: Final = 30.0
"""Seconds past its own timeout before an action whose manager died is given up as in doubt."""


class Repair:
    """Takes services that are down back up: one step at a time, each with every guard's leave."""

    guards: tuple[Guard, ...] = GUARDS

    def __init__(self, desk: Desk, lookout: Lookout) -> None:
        self.desk = desk
        self.lookout = lookout

    def confirm(self, watch: Watch, condition: Condition) -> None:
        """The failure has count and span. With canaries, one must have answered since it began (law 18)."""
        if not self.lookout.canaries.vouches(watch.evidence.failing_since):
            watch.withheld = True
            self.desk.waiting.add("canary", watch.rank)
            self.lookout.ask_canaries()
            if condition.state is not State.UNHEALTHY:
                after = machine.moved(condition, self.desk.now, state=State.UNHEALTHY, cause=watch.evidence.cause)
                self.desk.move(watch.name, after, "confirmed by count; a canary is asked")
            return
        self.believe(watch.name, "confirmed")

    def believe(self, name: str, because: str, actor: str = "") -> None:
        """Let a service be FAILED: find its incident, keep or begin its attempts, set its backoff."""
        watch = self.desk.watches[name]
        policy, e = watch.policy, watch.evidence
        assert policy is not None
        condition = self.desk.ledger.conditions[name]
        number, opens, relapse = incidents.belongs_to(self.desk.ledger, policy, condition, self.desk.now)
        correlation = condition.correlation or f"{name}@{min(e.failing_since, self.desk.now):.3f}"
        relapses = condition.relapses + opens if relapse else 0
        if opens:
            self.desk.say(incidents.opened(name, number, self.desk.now, correlation, reopened=relapses))
        level = machine.level_now(policy, condition, self.desk.now)
        attempt = condition.attempt if relapse else 0
        wait = machine.pause(policy, self.desk.ledger.fleet.seed, number, attempt, level)
        after = machine.failed(
            policy,
            attrs.evolve(condition, correlation=correlation),
            self.desk.now,
            incident=number,
            fresh=not relapse,
            opens=opens,
            cause=e.cause,
            wait=wait,
            level=level,
            relapses=relapses,
        )
        if actor or incidents.explained(self.desk.ledger, policy):
            # A person's word is no confirmed failure, and its parent's failure is not its own flapping.
            after = attrs.evolve(after, confirmed=condition.confirmed)
        e.unconfirmed = False
        self.desk.move(name, after, f"{because}: {e.summary}" if e.summary else because, actor)
        self.desk.say_all(self._touching(incidents.merged(self.desk.ledger, name, number, self.desk.now)))
        self.desk.ready(name)

    def _touching(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if isinstance(record, Moved):
                self.desk.touched[record.service] = None
            yield record

    def well(self, watch: Watch, condition: Condition) -> None:
        """Enough checks pass: recovered, or healed by itself."""
        name, policy, e = watch.name, watch.policy, watch.evidence
        assert policy is not None
        e.score, e.suspect_since = 0, inf
        e.slow = 0
        warned = e.last_verdict is Verdict.WARNING
        state = State.DEGRADED if warned else State.HEALTHY
        why = {"reason": "warning", "detail": e.summary, "cause": e.cause} if warned else {}
        because = "verified" if condition.state is State.RECOVERING else "healed by itself"
        self.desk.reserved.pop(name, None)
        self.desk.agenda.cancel(("attempt", name))
        self.desk.agenda.cancel(("act", name))
        self.desk.move(name, machine.well(policy, condition, self.desk.now, state, **why), because)
        self.desk.say_all(incidents.left(self.desk.ledger, name, condition.incident, self.desk.now, because))
        self.desk.wake(SLOT)
        self.release_dependents(name)

    def release_dependents(self, name: str) -> None:
        """A parent has come back: its dependents are checked at once, and get their grace before anything is done."""
        self._pardon(name)
        children = [w for c in self.desk.ledger.children.get(name, ()) if (w := self.desk.watches.get(c)) is not None]
        children.sort(key=lambda w: w.rank)
        for place, watch in enumerate(children):
            condition, policy = self.desk.ledger.conditions[watch.name], watch.policy
            assert policy is not None
            if condition.state is State.FAILED:
                if condition.attempt < policy.max_retries and not condition.in_attempt:
                    grace = max(condition.not_before, self.desk.now + policy.dependent_grace)
                    after = machine.moved(condition, self.desk.now, not_before=grace)
                    self.desk.move(watch.name, after, f"{name} is back")
                self.desk.ready(watch.name)
            elif condition.state is State.UNHEALTHY:
                # What it failed while its parent was away was not its own failure.
                e = watch.evidence
                e.failures, e.failing_since, e.history = 0, inf, 0
            else:
                continue
            if watch.flight is None:
                self.desk.agenda.set(
                    watch.key, min(self.desk.agenda.due(watch.key), self.desk.now + place * RELEASE_APART)
                )
            else:
                watch.wanted = watch.wanted or Purpose.PARENT

    def _pardon(self, name: str) -> None:
        """What failed with it, however far below, failed for it: that makes nobody unsteady who was not so before."""
        seen, todo = {name: None}, [name]
        while todo:
            for child in self.desk.ledger.children.get(todo.pop(), ()):
                if child in seen:
                    continue
                seen[child] = None
                todo.append(child)
                watch, state = self.desk.watches.get(child), self.desk.ledger.conditions[child].state
                if watch is not None and state in (State.HEALTHY, State.UNHEALTHY):
                    watch.evidence.score, watch.evidence.suspect_since = 0, inf

    def sight(self, policy: Policy) -> Sight:
        name = policy.name
        watch = self.desk.watches.get(name)
        return Sight(
            now=self.desk.now,
            name=name,
            policy=policy,
            condition=self.desk.ledger.conditions[name],
            evidence=watch.evidence if watch is not None else Evidence(),
            ledger=self.desk.ledger,
            evidence_of=self.desk.evidence_of,
            reserved=self.desk.reserved,
            trusted_since=self.lookout.trusted_since,
        )

    def attempt(self, name: str, *, fresh: bool = False) -> None:
        """Walk the guards of a service that is down. Say what holds it; else look afresh; else act."""
        watch = self.desk.watches.get(name)
        if watch is None or watch.policy is None:
            return
        if self.desk.ledger.conditions[name].state is State.UNHEALTHY and watch.withheld:
            self._reconsider(watch)
            return
        if self.desk.ledger.conditions[name].state is not State.FAILED or self.desk.ledger.acting(name) is not None:
            return
        if self._nothing_left(watch):
            return
        sight = self.sight(watch.policy)
        said = []
        for guard, hold in walk(self.guards, sight):
            said.append(answer(guard, hold, sight))
            if hold is not None:
                self.desk.reserved.pop(name, None)
                if guard.name == "approval" and hold.until <= self.desk.now:
                    self.pass_over(name, "nobody approved it in time")
                else:
                    self._held(watch, hold, sight)
                return
        if sight.step is None:
            return
        if not fresh:
            self.desk.reserved[name] = None
            self.desk.agenda.cancel(("act", name))
            self.desk.want(name, Purpose.BEFORE_STEP)
            return
        self._act(watch, sight, tuple(said))

    def _reconsider(self, watch: Watch) -> None:
        """A canary has been heard since a failure was confirmed by count."""
        watch.withheld = False
        condition = self.desk.ledger.conditions[watch.name]
        assert watch.policy is not None
        if not self.lookout.canaries.down and detector.confirmed(watch.policy, watch.evidence, self.desk.now):
            self.confirm(watch, condition)

    def _nothing_left(self, watch: Watch) -> bool:
        """End an attempt of whose remaining steps none fits any more; returns whether it was at its end."""
        condition, policy, e = self.desk.ledger.conditions[watch.name], watch.policy, watch.evidence
        assert policy is not None
        if not condition.in_attempt or e.last_verdict is not Verdict.FAILING:
            return False
        if machine.next_step(policy, condition, e) is not None:
            return False
        self._attempt_over(watch.name, condition, "no step that is left fits")
        return True

    def pass_over(self, name: str, because: str, actor: str = "") -> None:
        """Pass over the step that waits for a person: the next one is due, or the attempt is over."""
        policy, condition = self.desk.ledger.policies[name], self.desk.ledger.conditions[name]
        index = machine.next_step(policy, condition, self.desk.evidence_of(name))
        at = attrs.evolve(condition, cursor=index if index is not None else condition.cursor)
        after = machine.next_rung(at, self.desk.now)
        if machine.next_step(policy, after, self.desk.evidence_of(name)) is not None:
            self.desk.move(name, after, because, actor)
            self.desk.ready(name)
        else:
            first = not condition.in_attempt
            begun = attrs.evolve(after, attempt=condition.attempt + first, level=condition.level + first)
            by_people = index is not None and policy.steps[index].action == MANUAL
            # Whoever said that they see to it is not asked again a moment later.
            self._attempt_over(name, begun, because, actor, rest=policy.approval_timeout if by_people else 0.0)

    def _held(self, watch: Watch, hold: Hold, sight: Sight) -> None:
        name, condition = watch.name, sight.condition
        changes: dict[str, Any] = {}
        asks = hold.reason == "held:approval"
        other = sight.index != condition.asked if asks else _matter(condition) != _matter(hold)
        if condition.reason != hold.reason or other:
            changes = {"reason": hold.reason, "detail": hold.detail}
            if asks:
                changes |= {"asked": sight.index, "asked_at": self.desk.now, "approved": None}
        changes |= machine.clock_stopped(condition, self.desk.now)
        if changes:
            self.desk.agenda.cancel(("attempt", name))
            self.desk.move(name, machine.moved(condition, self.desk.now, **changes), "held")
        for key in hold.wake:
            self.desk.waiting.add(key, watch.rank)
        self.desk.agenda.set(("act", name), hold.until)
        if hold.reason == "held:budget" and hold.detail.startswith(FLEET_BUDGET):
            self.desk.alarm("budget", True, f"the disruptive actions of the fleet are used up: {hold.detail}")
            self.desk.agenda.set(("budget", ""), hold.until)
        if hold.reason == "held:storm":
            self.desk.alarm("storm", True, self.lookout.storm.evidence())
        for asked in hold.ask:
            self.desk.want(asked, Purpose.PARENT)

    def budget_opens(self) -> None:
        """The budget of the whole fleet may be open again: one alert tells of it, whoever waits."""
        ledger = self.desk.ledger
        until = fleet_opens(ledger)
        down = [ledger.conditions[name] for members in ledger.members.values() for name in members]
        if any(c.reason == "held:budget" and c.detail.startswith(FLEET_BUDGET) for c in down):
            until = max(until, self.desk.now + BUDGET_LOOK)
        if until > self.desk.now:
            self.desk.agenda.set(("budget", ""), until)
        else:
            self.desk.alarm("budget", False, "there is budget again, and nobody waits for it")

    def run_demand(self, name: str) -> None:
        """Let a person's demand run out in its time; at once, when that is over."""
        forced = self.desk.ledger.conditions[name].forced
        if forced is not None:
            self.desk.agenda.set(("forced", name), forced.until)

    def demand_over(self, name: str) -> None:
        """A demand to recover that was held for so long is not what its author would say now."""
        condition = self.desk.ledger.conditions.get(name)
        if condition is None or condition.forced is None or self.desk.now < condition.forced.until:
            return
        if condition.state is not State.RECOVERING:
            after = machine.moved(condition, self.desk.now, forced=None)
            self.desk.move(name, after, "the demand to recover it has run out")
            self.desk.ready(name)

    def _act(self, watch: Watch, sight: Sight, said: tuple[Any, ...]) -> None:
        name, policy, condition = watch.name, sight.policy, sight.condition
        index, step = sight.index, policy.steps[sight.index]
        assert condition.incident is not None
        after = machine.begins(condition, self.desk.now, index)
        key = self._unused(name, f"{condition.incident}/{name}/{after.attempt}/{index}", after.reissues)
        instance = watch.evidence.instance
        expected = instance.id if instance is not None else None
        forced = condition.forced
        self.desk.reserved.pop(name, None)
        self.desk.say(
            Intended(
                at=self.desk.now,
                intent=key,
                service=name,
                incident=condition.incident,
                attempt=after.attempt,
                step=index,
                action=step.action,
                expected=expected,
                first=not condition.in_attempt,
                guards=said,
                spends=forced is None and step.effect is not Effect.GENTLE,
                timeout=step.timeout,
                actor=forced.actor if forced is not None else "",
                correlation=condition.correlation,
            )
        )
        self.desk.move(name, after, step.action, forced.actor if forced is not None else "")
        watch.flight = watch.wanted = None
        self.desk.agenda.cancel(watch.key)
        self.desk.agenda.cancel(("act", name))
        self.run_clock(name, after)
        self.desk.commands.append(
            RunAction(intent=key, service=name, step=index, expected=expected, timeout=step.timeout)
        )

    def _unused(self, name: str, stem: str, reissues: int) -> str:
        """Return a key no action of this service has had: one that is merged or watched anew counts from 1 again."""
        used = {entry.intent for entry in self.desk.ledger.spent.get(name, ())}
        while (key := f"{stem}.{reissues}" if reissues else stem) in used:
            reissues += 1
        return key

    def run_clock(self, name: str, condition: Condition) -> None:
        policy = self.desk.ledger.policies[name]
        assert condition.acting_since is not None
        due = condition.acting_since + policy.recovery_timeout - condition.acted_for
        self.desk.agenda.set(("attempt", name), due)

    def acted(self, event: ActionFinished) -> None:
        intended = self.desk.ledger.intents.get(event.intent)
        if intended is None:
            return
        key = ("settle", event.intent)
        over = intended.at + intended.timeout + ORPHAN_MARGIN
        if event.settled is Settled.IN_DOUBT and self.desk.now < over and self.desk.agenda.due(key) < inf:
            return  # it may still run: it occupies its service until its own time is over
        self.desk.agenda.cancel(key)
        self.desk.agenda.cancel(("orphan", event.intent))
        self._end(intended, event.settled, event.detail)

    def ask_again(self, intent: str) -> None:
        """The time of an action whose manager died is over: what it did may be seen by now."""
        if intent in self.desk.ledger.intents:
            self.desk.commands.append(Settle(intent=intent))
            self.desk.agenda.set(("orphan", intent), self.desk.now + ORPHAN_MARGIN)

    def orphan(self, intent: str) -> None:
        intended = self.desk.ledger.intents.get(intent)
        if intended is not None:
            self._end(intended, Settled.IN_DOUBT, "its manager died and nobody can tell whether it happened")

    def _end(self, intended: Intended, settled: Settled, detail: str) -> None:
        name = intended.service
        refunded = settled in (Settled.SUPERSEDED, Settled.NOT_STARTED)
        self.desk.say(
            Ended(
                at=self.desk.now,
                intent=intended.intent,
                service=name,
                settled=settled,
                detail=detail,
                duration=self.desk.now - intended.at,
                refunded=refunded,
            )
        )
        self.desk.wake(SLOT)
        self.desk.wake(f"service:{name}")
        watch = self.desk.watches.get(name)
        if watch is None or watch.policy is None:
            self.leave(name)
            return
        condition = self.desk.ledger.conditions[name]
        if condition.state is not State.RECOVERING:
            if self.desk.checkable(name):
                self.desk.want(name, Purpose.ROUTINE)
            return
        if settled is Settled.IN_DOUBT and alert_key(name, "in_doubt") not in self.desk.ledger.alerts:
            severity = alerts.SERVICE_RULES["in_doubt"]
            text = f"{intended.action}: {detail}"
            self.desk.say(
                alerts.new(
                    self.desk.ledger, name, "in_doubt", severity, text, self.desk.now, incident=condition.incident
                )
            )
        if refunded:
            self._give_back(watch, condition, intended, settled, detail)
        else:
            self._verify(watch, condition, settled, detail)

    def leave(self, name: str) -> None:
        """Let a service that is kept but not watched give its slot back: nobody verifies its recovery."""
        condition = self.desk.ledger.conditions.get(name)
        if condition is None or condition.state not in alerts.DOWN or self.desk.ledger.acting(name) is not None:
            return
        stopped = machine.clock_stopped(condition, self.desk.now)
        told = {"reason": "held:observe", "detail": UNWATCHED}
        after = machine.moved(condition, self.desk.now, state=State.FAILED, **told, **stopped)
        self.desk.move(name, after, "it is not watched")

    def _give_back(self, watch: Watch, condition: Condition, intended: Intended, settled: Settled, detail: str) -> None:
        after = machine.given_back(condition, self.desk.now, first=intended.first)
        if after.acting_since is None:
            self.desk.agenda.cancel(("attempt", watch.name))
        e = watch.evidence
        if settled is Settled.SUPERSEDED:
            e.failures, e.failing_since, e.history, e.unconfirmed = 0, inf, 0, True
        elif watch.policy is not None and watch.policy.has_workload:
            e.instance = Instance(id=intended.expected or "", run=Run.UNKNOWN, detail=detail)
        self.desk.move(watch.name, after, f"{intended.action} {settled.value}: {detail}" if detail else settled.value)
        self.run_demand(watch.name)
        watch.flight = watch.wanted = None
        if settled is Settled.SUPERSEDED or (watch.policy is not None and watch.policy.has_workload):
            self.desk.ready(watch.name)  # else the next check does: at once, it would turn as fast as it is refused
        self.desk.schedule(watch, watch.policy.recheck if watch.policy is not None else None)

    def _verify(self, watch: Watch, condition: Condition, settled: Settled, detail: str) -> None:
        """Whatever the action says of itself: later checks decide (law 8)."""
        name, policy = watch.name, watch.policy
        assert policy is not None
        self.desk.forget_observations(watch)
        after = machine.verifying(policy, condition, self.desk.now)
        self.desk.move(name, after, f"{settled.value}: {detail}" if detail else settled.value)
        due = self.desk.agenda.due(("attempt", name))
        if due == inf:
            self._attempt_over(name, after, "its time was over")
            return
        self.desk.agenda.set(watch.key, after.settle_until)

    def step_failed(self, name: str, because: str) -> None:
        policy, condition = self.desk.ledger.policies[name], self.desk.ledger.conditions[name]
        after = machine.next_rung(condition, self.desk.now)
        if machine.next_step(policy, after, self.desk.evidence_of(name)) is None:
            self._attempt_over(name, condition, because)
            return
        self.desk.move(name, after, because)
        self.desk.ready(name)

    def _attempt_over(
        self, name: str, condition: Condition, because: str, actor: str = "", *, rest: float = 0.0
    ) -> None:
        policy, seed = self.desk.ledger.policies[name], self.desk.ledger.fleet.seed
        self.desk.agenda.cancel(("attempt", name))
        self.desk.reserved.pop(name, None)
        self.desk.move(name, machine.attempt_over(policy, condition, self.desk.now, seed, rest=rest), because, actor)
        self.desk.wake(SLOT)
        self.desk.ready(name)
        watch = self.desk.watches[name]
        if watch.flight is None and self.desk.agenda.due(watch.key) == inf:
            self.desk.schedule(watch, policy.recheck)

    def slept_through(self, late: float) -> None:
        """The host was suspended: the clocks of the attempts stood still for so long."""
        for name in {**self.desk.ledger.occupied, **dict.fromkeys(self.lookout.storm)}:
            condition = self.desk.ledger.conditions.get(name)
            if condition is None:
                continue
            after = machine.slept_through(condition, self.desk.now, late)
            self.desk.move(name, after, f"selfheal woke {late:.3g} s late")
            if after.acting_since is not None:
                self.run_clock(name, after)

    def out_of_time(self, name: str) -> None:
        """`recovery_timeout` is over: end the action that runs; else the attempt."""
        intended = self.desk.ledger.acting(name)
        if intended is not None:
            self.desk.commands.append(CancelAction(intent=intended.intent))
            return
        condition = self.desk.ledger.conditions[name]
        assert condition.in_attempt, f"the clock of {name} runs outside of an attempt"
        self._attempt_over(name, condition, "recovery_timeout is over")


def _matter(held: Condition | Hold) -> str:
    """What a detail is about, for people: what stands before the colon, where its numbers and messages change.

    How a parent stands is said by the parent; only that it is switched off must be said here.
    """
    if held.reason.startswith("waiting-for:"):
        return held.detail if held.detail.startswith((PARENT_OFF, CANNOT_RUN)) else ""
    return held.detail.partition(":")[0]
