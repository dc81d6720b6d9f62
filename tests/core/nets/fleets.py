"""Fleets and faults drawn as widely as the model allows: every field of a policy, every edge, every act of a person.

A swarm: each run draws which kinds of fault there are and how often, so that rare mixes are met as well.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import attrs

from selfheal.core.messages import ActionFinished, CheckFinished
from selfheal.core.model import (
    MANUAL,
    PASSING,
    Backoff,
    Budget,
    Canary,
    Cause,
    CheckResult,
    Dependency,
    DependencyKind,
    Effect,
    Fleet,
    Limits,
    Policy,
    Priority,
    Purpose,
    Run,
    Settled,
    State,
    Step,
    Verdict,
    WhenDisabled,
    Window,
)
from selfheal.testing.proofs import changes_nothing
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld


def _step(r: Random, action: str) -> Step:
    effect = {"reconnect": Effect.GENTLE, "reset_cache": Effect.DESTRUCTIVE}.get(action, Effect.DISRUPTIVE)
    return Step(
        action=action,
        effect=effect,
        timeout=r.choice([5.0, 20.0]),
        settle=r.choice([None, 0.0, 2.0, 15.0]),
        cooldown=r.choice([None, None, 30.0, 400.0]),
        only_for=r.choice([frozenset()] * 5 + [frozenset({Cause.UNREACHABLE, Cause.TIMEOUT}), frozenset({Cause.FULL})]),
        from_attempt=r.choice([1, 1, 1, 1, 2]),
        needs_running=action == "reconnect" and r.random() < 0.5,
        approval=r.random() < 0.08,
        allow_destructive=action == "reset_cache" and r.random() < 0.4,
    )


def _ladder(r: Random) -> tuple[Step, ...]:
    actions = r.choice(
        [
            ["restart"],
            ["reconnect", "restart"],
            ["reconnect", "restart"],
            ["reconnect", "restart", "reset_cache"],
            ["restart", "restart_all"],
            ["reset_cache", "restart"],
            ["restart", MANUAL],
            ["reconnect"],
            [],
        ]
    )
    return tuple(_step(r, action) for action in actions)


def _edges(r: Random, place: int) -> tuple[Dependency, ...]:
    if not place:
        return ()
    free = [f"s{i}" for i in range(place)]
    edges = []
    for _ in range(r.choice([0, 1, 1, 2])):
        count = min(r.choice([1, 1, 1, 2]), len(free))
        if not count:
            break
        names = tuple(sorted(r.sample(free, count)))
        free = [name for name in free if name not in names]
        kind = r.choice([DependencyKind.HARD] * 3 + [DependencyKind.SOFT])
        edges.append(Dependency(services=names, kind=kind, when_disabled=r.choice(list(WhenDisabled))))
    return tuple(edges)


def draw_policy(r: Random, place: int) -> Policy:
    """Draw the policy of service number `place`; it may depend on those before it."""
    return Policy(
        name=f"s{place}",
        enabled=r.random() < 0.97,
        priority=r.choice(list(Priority)),
        interval=r.choice([5.0, 10.0, 30.0, 60.0]),
        timeout=r.choice([1.0, 5.0]),
        recheck=r.choice([1.0, 5.0, 20.0]),
        jitter=r.choice([0.0, 0.1, 0.5]),
        failure_threshold=r.choice([1, 2, 3]),
        min_failing_span=r.choice([0.0, 10.0, 30.0]),
        definite_span=r.choice([0.0, 10.0]),
        window=r.choice([None, None, None, Window(failures=3, checks=5)]),
        success_threshold=r.choice([1, 2, 2, 3]),
        start_grace=r.choice([0.0, 0.0, 20.0]),
        starting_limit=r.choice([30.0, 300.0]),
        suspicion_threshold=r.choice([0, 12, 21]),
        latency_objective=r.choice([None, None, 0.5]),
        warning_fails=r.random() < 0.15,
        flapping=r.choice(
            [(), (), (Budget(limit=3, per=3600.0), Budget(limit=5, per=86400.0)), (Budget(limit=2, per=600.0),)]
        ),
        steps=_ladder(r),
        max_retries=r.randrange(1, 4),
        backoff=Backoff(
            initial=r.choice([0.0, 1.0, 10.0]),
            multiplier=r.choice([1.0, 2.0]),
            cap=r.choice([60.0, 300.0]),
            jitter=r.choice([0.0, 0.5, 1.0]),
            forget_after=r.choice([0.0, 100.0, 600.0]),
        ),
        recovery_timeout=r.choice([15.0, 40.0, 300.0]),
        slow_retry=r.choice([None, 120.0, 900.0]),
        probation=r.choice([0.0, 60.0, 300.0]),
        budgets=r.choice(
            [
                (),
                (Budget(limit=1, per=300.0),),
                (Budget(limit=2, per=600.0),),
                (Budget(limit=3, per=3600.0), Budget(limit=10, per=86400.0)),
            ]
        ),
        approval_timeout=r.choice([60.0, 900.0]),
        observe_only=r.random() < 0.05,
        depends_on=_edges(r, place),
        dependent_grace=r.choice([0.0, 5.0, 30.0]),
        has_workload=r.random() < 0.5,
    )


def draw_fleet(r: Random, *, most: int = 8) -> Fleet:
    """Draw a fleet of one to `most` services."""
    canaries = r.choice([(), (), (Canary(name="gw", interval=10.0),), (Canary(name="gw"), Canary(name="dns"))])
    return Fleet(
        policies=tuple(draw_policy(r, place) for place in range(r.randrange(1, most + 1))),
        canaries=canaries,
        limits=Limits(
            max_concurrent_recoveries=r.randrange(1, 4),
            budget_floor=r.choice([1, 3, 20]),
            budget_per=r.choice([60.0, 300.0]),
            storm_share=r.choice([0.5, 0.5, 1.0]),
            act_without_journal=r.random() < 0.05,
        ),
        seed=r.randrange(99),
    )


def varied(r: Random, fleet: Fleet) -> Fleet:
    """Draw a fleet that differs from `fleet` a little: policies, a service more or less, a canary, a limit."""
    policies = list(fleet.policies)
    for place, policy in enumerate(policies):
        chance = r.random()
        if chance < 0.25:
            drawn = draw_policy(r, int(policy.name[1:]))
            names = {p.name for p in policies}
            edges = tuple(d for d in drawn.depends_on if names.issuperset(d.services))
            policies[place] = attrs.evolve(drawn, depends_on=edges, has_workload=policy.has_workload)
        elif chance < 0.35:
            policies[place] = attrs.evolve(policy, fingerprint=f"f{r.randrange(9)}")
    if len(policies) > 1 and r.random() < 0.4:
        gone = r.choice(policies).name
        policies = [
            attrs.evolve(p, depends_on=tuple(d for d in p.depends_on if gone not in d.services))
            for p in policies
            if p.name != gone
        ]
    elif r.random() < 0.5:
        free = next(i for i in range(len(policies) + 1) if f"s{i}" not in {p.name for p in policies})
        drawn = draw_policy(r, free)
        names = {p.name for p in policies}
        edges = tuple(d for d in drawn.depends_on if names.issuperset(d.services))
        policies.append(attrs.evolve(drawn, depends_on=edges))
    canaries = r.choice([fleet.canaries, fleet.canaries, (), (Canary(name="gw"),)])
    limits = attrs.evolve(fleet.limits, max_concurrent_recoveries=r.randrange(1, 4))
    return attrs.evolve(fleet, policies=tuple(policies), canaries=canaries, limits=limits)


ACTS = ("recover", "disable", "enable", "pause", "resume", "maintenance", "silence", "approve", "refuse", "acknowledge",
        "initialize", "release", "lift", "nonsense")  # fmt: skip


class Faults:
    """What may go wrong in one run, by name; each run of the swarm draws how often each kind happens."""

    def __init__(self, r: Random, simulator: Simulator, world: SimpleWorld) -> None:
        self.r = r
        self.s = simulator
        self.w = world
        self.last_result: CheckFinished | None = None
        kinds: dict[str, Callable[[], None]] = {
            "breaks": self.breaks,
            "mends": self.mends,
            "flickers": self.flickers,
            "warns": self.warns,
            "ends": self.ends,
            "unseen": self.unseen,
            "cut_off": self.cut_off,
            "many": self.many,
            "canary": self.canary,
            "crash": self.crash,
            "crash_crash": self.crash_crash,
            "restart_other": self.restart_other,
            "suspend": self.suspend,
            "late_often": self.late_often,
            "act": self.act,
            "approve": self.approve,
            "reload": self.reload,
            "store": self.store,
            "window": self.window,
            "stale": self.stale,
            "nudge": self.nudge,
            "reborn": self.reborn,
            "slips": self.slips,
            "paused": self.paused,
            "force": self.force,
        }
        self.kinds = kinds
        often = [kind for kind in kinds if r.random() < 0.4]
        self.often = [*["breaks"] * max(2, len(often)), *often]

    def __call__(self) -> None:
        """Let one thing happen now."""
        self.kinds[self.r.choice(self.often)]()

    def name(self) -> str:
        names = list(self.s.engine.ledger.policies)
        return self.r.choice(names) if names else "nobody"

    def breaks(self) -> None:
        r, name = self.r, self.name()
        cause = r.choice(
            [Cause.UNREACHABLE] * 5 + [Cause.AUTH, Cause.STARTING, Cause.FULL, Cause.TIMEOUT, Cause.CONFIG]
        )
        thing = self.w.things.get(name)
        if thing is None:
            return
        heals = self.s.now + r.choice([5.0, 20.0, 200.0, 1e9])
        cures = frozenset({r.choice(["restart", "restart", "reconnect", "reset_cache", "nothing"]), "restart_all"})
        self.w.breaks(name, cause, heals_at=heals, chance=r.choice([0.3, 1.0]), hangs=r.random() < 0.2, cured_by=cures)
        thing.boot = r.choice([0.0, 0.0, 8.0, 60.0])
        thing.run_id = r.random() < 0.3

    def mends(self) -> None:
        name = self.name()
        if name in self.w.things:
            self.w.mends(name)

    def flickers(self) -> None:
        if (name := self.name()) in self.w.things:
            self.w.things[name].pattern = self.r.choice([(True, False), (True, True, False), (False, False, True), ()])

    def warns(self) -> None:
        if (name := self.name()) in self.w.things:
            self.w.breaks(name, Cause.DEGRADED_CLUSTER, heals_at=self.s.now + 100.0, verdict=Verdict.WARNING)
            self.w.things[name].latency = self.r.choice([0.02, 0.8])

    def ends(self) -> None:
        if (name := self.name()) in self.w.things:
            self.w.things[name].run = self.r.choice([Run.EXITED, Run.EXITED, Run.STOPPED, Run.ABSENT])
            if self.w.workloads[name] and self.r.random() < 0.7:
                self.s.report(name, self.w.instance(name))

    def unseen(self) -> None:
        if (name := self.name()) in self.w.things:
            self.w.things[name].unseen = self.r.random() < 0.7

    def cut_off(self) -> None:
        self.w.cut_off_until = self.s.now + self.r.choice([10.0, 30.0, 120.0])

    def many(self) -> None:
        for name in self.w.things:
            if self.r.random() < 0.8:
                self.w.breaks(name, heals_at=self.s.now + self.r.choice([30.0, 300.0]))

    def canary(self) -> None:
        for name in self.w.canaries:
            self.w.canaries[name] = self.r.random() < 0.6

    def crash(self) -> None:
        self.s.crash(
            self.r.choice([0.0, 1.0, 40.0, 400.0]), lose=self.r.random() < 0.8, by_snapshot=self.r.random() < 0.5
        )

    def crash_crash(self) -> None:
        self.s.crash(self.r.choice([0.0, 1.0]))
        self.s.run(self.s.now + self.r.choice([0.0, 0.05, 0.3]))
        self.s.crash(self.r.choice([0.0, 30.0]), by_snapshot=self.r.random() < 0.5)

    def restart_other(self) -> None:
        r, fleet = self.r, self.s.fleet
        if r.random() < 0.5:
            kept = r.sample(fleet.policies, r.randint(0, len(fleet.policies)))
            names = {p.name for p in kept}
            edges = [(p, tuple(d for d in p.depends_on if names.issuperset(d.services))) for p in kept]
            other = attrs.evolve(fleet, policies=tuple(attrs.evolve(p, depends_on=e) for p, e in edges))
        else:
            other = varied(r, fleet)
        self.w.meets(other)
        before = fleet
        self.s.crash(r.choice([0.0, 5.0]), fleet=other)
        self.s.at(self.s.now + r.choice([100.0, 500.0]), lambda: self._come_back(before))

    def _come_back(self, fleet: Fleet) -> None:
        self.w.meets(fleet)
        self.s.propose(fleet, confirmed=self.r.random() < 0.8)

    def suspend(self) -> None:
        self.s.suspend(self.r.choice([0.1, 0.3, 5.0, 90.0]))

    def late_often(self) -> None:
        for _ in range(self.r.choice([3, 12])):
            self.s.run(self.s.now + 5.0)
            self.s.suspend(self.r.choice([3.0, 8.0]))

    def act(self) -> None:
        r, act, name = self.r, self.r.choice(ACTS), self.name()
        scopes = frozenset({"admin"}) if r.random() < 0.6 else frozenset()
        changes: dict[str, object] = {"scopes": scopes}
        if act in ("pause", "maintenance", "silence"):
            changes |= {"duration": r.choice([None, 60.0, 300.0]), "everything": r.random() < 0.2}
        if act == "recover":
            changes["override"] = frozenset(r.sample(["parents", "paused", "maintenance", "observe"], r.randrange(3)))
        if act == "release":
            name, changes["hold"] = "", r.choice(["storm", "canary", "doubt", "fleet", "journal", "nothing"])
        if act == "lift":
            name, changes["suppression"] = "", r.choice([*self.s.engine.ledger.suppressions, "nothing"])
        if act == "initialize" and r.random() < 0.3:
            name, changes["everything"] = "", r.random() < 0.7
        self.s.request(act, name, **changes)
        if act == "release" and changes["hold"] == "fleet":
            self.s.fleet = self.s.engine.ledger.fleet

    def approve(self) -> None:
        for name, condition in list(self.s.engine.ledger.conditions.items()):
            if condition.asked_at is not None:
                self.s.request(self.r.choice(["approve", "approve", "refuse", "acknowledge"]), name)

    def reload(self) -> None:
        fleet = self.s.fleet
        other = varied(self.r, fleet)
        if self.r.random() < 0.2:  # a file cut short
            other = attrs.evolve(fleet, policies=tuple(attrs.evolve(p, depends_on=()) for p in fleet.policies[:1]))
        self.w.meets(other)
        self.s.propose(other, confirmed=self.r.random() < 0.3)

    def store(self) -> None:
        self.s.store_fails(self.s.now + self.r.choice([2.0, 60.0, 400.0]), unnoticed=self.r.choice([0.0, 1.0, 50.0]))

    def window(self) -> None:
        id_, active = self.r.choice(["w1", "w2"]), self.r.random() < 0.7
        self.s.window(id_, (self.name(),), active=active, until=self.s.now + self.r.choice([50.0, 300.0]))

    def stale(self) -> None:
        s, name = self.s, self.name()
        condition = s.engine.ledger.conditions.get(name)
        generation = condition.generation if condition is not None else 0
        result = self.r.choice([PASSING, CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE)])
        late = CheckFinished(
            at=s.now,
            service=name,
            generation=generation + self.r.choice([-1, 1]),
            purpose=self.r.choice(list(Purpose)),
            started=s.now - 1.0,
            ended=s.now,
            result=result,
        )
        foreign = attrs.evolve(late, service="stranger", generation=0)
        unasked = attrs.evolve(late, generation=generation)
        events = [late, foreign] if s.engine.in_flight(name) else [late, foreign, unasked]
        changes_nothing(s, self.r.choice(events))
        changes_nothing(s, ActionFinished(at=s.now, intent="0/stranger/1/0", settled=Settled.DONE))

    def reborn(self) -> None:
        if (name := self.name()) in self.w.things:
            self.w.reborn(name, self.s.now)

    def slips(self) -> None:
        for thing in self.w.things.values():
            thing.slips = True

    def paused(self) -> None:
        """What is suppressed fails, as it will when people work on it."""
        name = self.name()
        self.s.request(self.r.choice(["pause", "pause", "maintenance"]), name, duration=self.r.choice([60.0, 300.0]))
        if name in self.w.things:
            self.w.breaks(name, heals_at=self.s.now + self.r.choice([100.0, 1e9]))

    def force(self) -> None:
        for name, condition in list(self.s.engine.ledger.conditions.items()):
            if condition.state is State.FAILED and self.r.random() < 0.6:
                self.s.request("recover", name)

    def nudge(self) -> None:
        self.s.report(self.name(), None)
