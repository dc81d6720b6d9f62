"""Who is watched: the fleet at a start, a new fleet at run time, switching on and off, suppressions and windows."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Final

import attrs

from selfheal.core import alerts, graph, guards, incidents, machine
from selfheal.core.desk import Desk, Watch
from selfheal.core.ledger import Ledger, alert_key
from selfheal.core.lookout import Lookout
from selfheal.core.messages import (
    FleetProposed,
    Settle,
    Started,
    WindowChanged,
)
from selfheal.core.model import (
    CANARY_PREFIX,
    Binds,
    Condition,
    Fleet,
    Policy,
    Purpose,
    State,
    Suppression,
)
from selfheal.core.records import (
    Answered,
    FleetSet,
    Resumed,
    SuppressionChanged,
)
from selfheal.core.repair import ORPHAN_MARGIN, Repair

_SUSPECT: Final = frozenset({State.UNHEALTHY, State.FAILED, State.RECOVERING})

WINDOW: Final = "window:"
"""How the suppression of a maintenance window of the calendar begins; its name follows."""

FIRST_CHECKS_APART: Final = 0.02
"""Seconds between the first checks of two services after a start: quick answers, no herd."""


class Roster:
    """Keeps what is watched in line with the fleet and with what people have said."""

    def __init__(self, desk: Desk, lookout: Lookout, repair: Repair) -> None:
        self.desk = desk
        self.lookout = lookout
        self.repair = repair

    def started(self, event: Started) -> None:
        """A restart is an event: everything volatile is forgotten, so that a replay runs through crashes."""
        self.desk.forget()
        self.desk.say(Resumed(at=self.desk.now, away=max(0.0, self.desk.now - event.resumes) if event.resumes else 0.0))
        fleet, unwatched = self._kept(event.fleet)
        old = self.desk.ledger.policies
        if fleet != self.desk.ledger.fleet or unwatched != tuple(self.desk.ledger.unwatched):
            self._drop(fleet, "not in the configuration any more")
            self.desk.say(FleetSet(at=self.desk.now, fleet=fleet, unwatched=unwatched, actor="selfheal"))
            self._ladders_changed(old)
            for name in unwatched:
                self.repair.leave(name)
        self.lookout.forget()
        if unwatched:
            self.desk.hold(
                "fleet", True, f"{len(unwatched)} services are gone from the configuration: kept, not watched"
            )
        else:
            self.desk.hold("fleet", False, "the fleet is whole")
        self._watch_fleet()
        for suppression in self.desk.ledger.suppressions.values():
            self.desk.agenda.set(("expire", suppression.id), suppression.until)
        if alert_key("", "budget") in self.desk.ledger.alerts:
            self.desk.agenda.set(("budget", ""), self.desk.now)
        for policy in self.desk.ledger.fleet.policies:
            self._resume(policy, event.resumes)
        self.lookout.reconsider()
        for intended in self.desk.ledger.intents.values():
            # However long nobody was there, whoever is asked gets the time to answer.
            due = max(self.desk.now, intended.at + intended.timeout) + ORPHAN_MARGIN
            self.desk.agenda.set(("settle", intended.intent), due)
            self.desk.commands.append(Settle(intent=intended.intent))

    def _kept(self, fleet: Fleet) -> tuple[Fleet, tuple[str, ...]]:
        """Return the fleet to watch: one that lost too much keeps what it lost, unwatched (law 19)."""
        names = {policy.name for policy in fleet.policies}
        dropped = [policy for policy in self.desk.ledger.fleet.policies if policy.name not in names]
        if not drops_too_much(self.desk.ledger.fleet, fleet) and not unconfirmed(self.desk.ledger, fleet):
            return fleet, ()
        return attrs.evolve(fleet, policies=(*fleet.policies, *dropped)), tuple(policy.name for policy in dropped)

    def _watch_fleet(self) -> None:
        """Make the watches of the present fleet; those that stay keep what they have observed."""
        fleet, old = self.desk.ledger.fleet, self.desk.watches
        below = graph.weights(fleet.policies)
        self.desk.watches = {}
        fresh: list[Watch] = []
        count = len(fleet.policies) + len(fleet.canaries)
        things: list[tuple[str, Policy | None, float]] = [(p.name, p, p.interval) for p in fleet.policies]
        things += [(CANARY_PREFIX + c.name, None, c.interval) for c in fleet.canaries]
        for place, (name, policy, interval) in enumerate(things):
            if name in self.desk.ledger.unwatched:
                continue
            rank = (-int(policy.priority) if policy is not None else 0, -below.get(name, 0), name)
            phase = self.desk.now + interval * (place + 1) / count
            watch = Watch(name, policy, interval, phase, fleet.seed, rank)
            before = old.get(name)
            if before is not None:
                watch.evidence, watch.flight, watch.flight_at = before.evidence, before.flight, before.flight_at
                watch.wanted, watch.nudged, watch.withheld = before.wanted, before.nudged, before.withheld
                if before.interval == interval:
                    watch.phase = before.phase
                elif self.desk.now + interval < self.desk.agenda.due(watch.key) < inf:
                    self.desk.schedule(watch, None)  # what is to be looked at more often is not left to the old time
            else:
                fresh.append(watch)
            self.desk.watches[name] = watch
        for gone in old:
            if gone not in self.desk.watches:
                self.desk.agenda.cancel(("check", gone))
                self.desk.agenda.cancel(("act", gone))
                self.desk.agenda.cancel(("attempt", gone))
        canaries = tuple(canary.name for canary in fleet.canaries)
        if not old or canaries != self.lookout.canaries.names:
            self.lookout.canaries.reset(canaries)
            if not canaries:
                self.desk.hold("canary", False, "there are no canaries")
        self._recount(anew=not old)
        for place, watch in enumerate(fresh):
            self.desk.agenda.set(
                watch.key, self.desk.now + place * min(FIRST_CHECKS_APART, watch.interval / len(fresh))
            )

    def _recount(self, *, anew: bool) -> None:
        """Begin the storm watch afresh over what is watched now, keeping who is suspect; `anew`: who was so last."""
        conditions, storm = self.desk.ledger.conditions, self.lookout.storm
        enabled = [n for n in self.desk.watches if n in conditions and conditions[n].state is not State.DISABLED]
        if anew:
            known = [(self._failing_since(n), n, False) for n in enabled if conditions[n].state in _SUSPECT]
        else:
            known = [(storm.since(n), n, storm.pardoned(n)) for n in enabled if n in storm]
        storm.reset(len(enabled))
        for since, name, pardoned in sorted(known):
            storm.suspect(name, since, self.desk.ledger.children.get(name, ()), pardoned=pardoned)
        self.lookout.reconsider()

    def _failing_since(self, name: str) -> float:
        """Since when a service was known to fail, as far as it is stored."""
        condition = self.desk.ledger.conditions[name]
        incident = self.desk.ledger.incidents.get(condition.incident) if condition.incident is not None else None
        return min(condition.since, incident.since) if incident is not None else condition.since

    def _resume(self, policy: Policy, resumes: float) -> None:
        """Take one service up where the last run, which lived until `resumes`, or nobody, left it."""
        name = policy.name
        watch = self.desk.watches.get(name)
        if watch is None:
            return
        condition = self.desk.ledger.conditions[name]
        if not (policy.enabled and condition.enabled):
            if condition.state is not State.DISABLED:
                self.switch_off(name, "not enabled", enabled=condition.enabled)
            return
        self.repair.run_demand(name)
        if condition.state is State.DISABLED:
            self.lookout.storm.resize(1)
            self.desk.move(
                name, machine.afresh(condition, self.desk.now, State.UNKNOWN), "enabled in the configuration"
            )
        elif condition.state is State.FAILED:
            stopped = machine.clock_stopped(condition, max(condition.acting_since or 0.0, resumes))
            if condition.asked_at is not None:  # nobody could answer while nobody was there
                stopped["asked_at"] = self.desk.now
            self.desk.move(name, machine.moved(condition, self.desk.now, **stopped), "selfheal was started")
            self.desk.ready(name)
        elif condition.state is State.RECOVERING:
            self._resume_recovery(watch, condition, resumes)

    def _resume_recovery(self, watch: Watch, condition: Condition, resumes: float) -> None:
        """The clock of its attempt stood still while nobody was there."""
        stopped = machine.clock_stopped(condition, max(condition.acting_since or 0.0, resumes))
        running = {**stopped, "acting_since": self.desk.now, "generation": condition.generation + 1}
        after = machine.moved(condition, self.desk.now, **running)
        self.desk.move(watch.name, after, "selfheal was started")
        self.repair.run_clock(watch.name, after)
        if self.desk.ledger.acting(watch.name) is None:
            self.desk.agenda.set(watch.key, max(self.desk.now, after.settle_until))
        else:
            self.desk.agenda.cancel(watch.key)

    def proposed(self, event: FleetProposed) -> None:
        why = refusal_of_fleet(self.desk.ledger, event)
        if not why:
            self.set_fleet(event.fleet, event.actor)
        self.desk.say(
            Answered(
                at=self.desk.now,
                id=event.id,
                act="fleet",
                service="",
                actor=event.actor,
                reason=event.reason,
                accepted=not why,
                because=why,
                code="refused" if why else "",
            )
        )

    def set_fleet(self, fleet: Fleet, actor: str) -> None:
        """Let the fleet be `fleet`: what stays keeps its state, what is new is checked at once, the rest is closed."""
        old, lacking = self.desk.ledger.policies, unconfirmed(self.desk.ledger, fleet)
        self._drop(fleet, "removed from the fleet")
        self.desk.say(FleetSet(at=self.desk.now, fleet=fleet, actor=actor))
        self._ladders_changed(old)
        self.desk.hold("fleet", False, "confirmed" if lacking else "the fleet is whole", actor)
        self._watch_fleet()
        if alert_key("", "budget") in self.desk.ledger.alerts:
            self.desk.agenda.set(("budget", ""), self.desk.now)
        for policy in fleet.policies:
            self.repair.run_demand(policy.name)
            before = old.get(policy.name)
            watch, condition = self.desk.watches[policy.name], self.desk.ledger.conditions[policy.name]
            on = policy.enabled and condition.enabled
            if not on and condition.state is not State.DISABLED:
                self.switch_off(policy.name, "not enabled", actor, enabled=condition.enabled)
            elif on and condition.state is State.DISABLED:
                self.switch_on(policy.name, "enabled in the configuration", actor, enabled=condition.enabled)
            elif before is not None and before.fingerprint != policy.fingerprint and on:
                self._renewed(watch, condition, actor)
            elif before != policy:
                self.desk.ready(policy.name)

    def _ladders_changed(self, old: Mapping[str, Policy]) -> None:
        """Bring what is under way in line with ladders and retries that are others now.

        A person said yes to a step of the old ladder, not to what stands in its place now (law 13); and nobody waits
        for ever because the old policy had no slow retry.
        """
        for name, policy in self.desk.ledger.policies.items():
            before = old.get(name)
            if before is None or before == policy:
                continue
            condition = self.desk.ledger.conditions[name]
            if before.steps != policy.steps:
                after = machine.moved(condition, self.desk.now, asked=None, asked_at=None, approved=None)
                self.desk.move(name, after, "its recovery_actions were changed")
            if any(getattr(before, key) != getattr(policy, key) for key in ("max_retries", "slow_retry", "backoff")):
                condition = self.desk.ledger.conditions[name]
                after = machine.retries_changed(policy, condition, self.desk.now, self.desk.ledger.fleet.seed)
                self.desk.move(name, after, "its retries were changed")

    def _renewed(self, watch: Watch, condition: Condition, actor: str) -> None:
        """Another check object answers now: results of the old one count no more, and it is asked at once."""
        after = machine.moved(condition, self.desk.now, generation=condition.generation + 1)
        self.desk.move(watch.name, after, "its check or workload was changed", actor)
        if self.desk.ledger.acting(watch.name) is None:
            self.desk.forget_observations(watch)
            self.lookout.unsuspect(watch.name)
            self.desk.want(watch.name, Purpose.PARENT)
        self.desk.ready(watch.name)

    def _drop(self, fleet: Fleet, because: str) -> None:
        """Close what is open about the services that `fleet` lacks."""
        names = {policy.name for policy in fleet.policies}
        for name in [n for n in self.desk.ledger.conditions if n not in names]:
            self.desk.say_all(alerts.withdrawn(self.desk.ledger, name, self.desk.now, because))
            condition = self.desk.ledger.conditions[name]
            if condition.state is not State.DISABLED:
                self.switch_off(name, because, enabled=condition.enabled)

    def switch_off(self, name: str, because: str, actor: str = "", *, enabled: bool = False) -> None:
        """Let a service be DISABLED. An action that runs is let finish: half a restart is worse than a whole one."""
        condition = self.desk.ledger.conditions[name]
        watch = self.desk.watches.get(name)
        if watch is not None:
            watch.flight = watch.wanted = None
            watch.withheld = False
            self.desk.agenda.cancel(watch.key)
            self.lookout.unsuspect(name)
            self.lookout.storm.resize(-1)
        self.desk.agenda.cancel(("act", name))
        self.desk.agenda.cancel(("attempt", name))
        self.desk.reserved.pop(name, None)
        self.desk.move(name, machine.afresh(condition, self.desk.now, State.DISABLED, enabled=enabled), because, actor)
        self.desk.say_all(incidents.left(self.desk.ledger, name, condition.incident, self.desk.now, because))
        self.desk.wake(guards.SLOT)
        self.desk.wake(f"service:{name}")

    def switch_on(self, name: str, because: str, actor: str = "", *, enabled: bool = True) -> None:
        """Let a service be UNKNOWN, whatever it was, and check it at once."""
        condition = self.desk.ledger.conditions[name]
        watch = self.desk.watches[name]
        self.desk.forget_observations(watch)
        self.lookout.storm.resize(condition.state is State.DISABLED)
        self.lookout.unsuspect(name)
        self.desk.agenda.cancel(("act", name))
        self.desk.agenda.cancel(("attempt", name))
        self.desk.reserved.pop(name, None)
        self.desk.move(name, machine.afresh(condition, self.desk.now, State.UNKNOWN, enabled=enabled), because, actor)
        self.desk.say_all(incidents.left(self.desk.ledger, name, condition.incident, self.desk.now, because))
        self.desk.wake(guards.SLOT)
        self.desk.want(name, Purpose.ROUTINE)

    def suppress(self, suppression: Suppression) -> None:
        """Let a suppression begin."""
        self.desk.say(SuppressionChanged(at=self.desk.now, suppression=suppression, on=True, actor=suppression.actor))
        self.desk.agenda.set(("expire", suppression.id), suppression.until)

    def lift(self, id_: str, actor: str, because: str) -> bool:
        """End a suppression; whoever it held looks again. Returns whether there was one."""
        suppression = self.desk.ledger.suppressions.get(id_)
        if suppression is None:
            return False
        self.desk.agenda.cancel(("expire", id_))
        self.desk.say(SuppressionChanged(at=self.desk.now, suppression=suppression, on=False, actor=actor))
        self.desk.wake(guards.OPERATOR)
        return True

    def window_changed(self, event: WindowChanged) -> None:
        id_ = WINDOW + event.window
        known = self.desk.ledger.suppressions.get(id_)
        if not event.active:
            self.lift(id_, "calendar", "the window is over")
            return
        suppression = Suppression(
            id=id_,
            binds=Binds.MAINTENANCE,
            services=event.services,
            everything=event.everything,
            since=known.since if known is not None else self.desk.now,
            until=event.until,
            actor="calendar",
            reason=event.window,
        )
        if known != suppression:
            self.suppress(suppression)

    def release(self, hold: str, actor: str) -> bool:
        """End a hold by a person's word. Returns whether there was one."""
        if hold not in self.desk.ledger.holds:
            return False
        if hold == "fleet":
            kept = tuple(p for p in self.desk.ledger.fleet.policies if p.name not in self.desk.ledger.unwatched)
            self.set_fleet(attrs.evolve(self.desk.ledger.fleet, policies=kept), actor)
            return True
        self.lookout.release(hold)
        self.desk.hold(hold, False, "released", actor)
        return True


# -- proposed fleets ------------------------------------------------------------------------------------------------


def drops_too_much(old: Fleet, new: Fleet) -> bool:
    """Whether `new` lacks more than `max_fleet_drop` of the services of `old`."""
    names = {policy.name for policy in new.policies}
    gone = sum(policy.name not in names for policy in old.policies)
    return gone > old.limits.max_fleet_drop * len(old.policies)


def unconfirmed(ledger: Ledger, new: Fleet) -> tuple[str, ...]:
    """Return who was kept unwatched at a start and is still not in `new`: only a person says that they are gone."""
    names = {policy.name for policy in new.policies}
    return tuple(name for name in ledger.unwatched if name not in names)


def refusal_of_fleet(ledger: Ledger, event: FleetProposed) -> str:
    """Return why a proposed fleet is refused; empty when it is not."""
    problems = graph.problems(event.fleet.policies)
    if problems:
        return "; ".join(str(problem) for problem in problems)
    if any(policy.name.startswith(CANARY_PREFIX) for policy in event.fleet.policies):
        return f"no service may be called {CANARY_PREFIX}…"
    if event.confirmed:
        return ""
    if drops_too_much(ledger.fleet, event.fleet):
        share = ledger.fleet.limits.max_fleet_drop
        return f"it drops more than {share:.0%} of the services; confirm it if that is meant"
    if lacking := unconfirmed(ledger, event.fleet):
        return f"it lacks {', '.join(lacking)}, kept until somebody confirms that they are gone"
    return ""
