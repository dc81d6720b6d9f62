"""The third net: a Hypothesis state machine that drives the engine with whatever may come, and shrinks what breaks it.

Fleets are drawn small and simple first, so that a failure shrinks to one service and a handful of steps. The laws are
watchers of the simulator, so each rule that feeds an event is held to all of them; at the end of each example the
faults stop, everything must become well and quiet (law 21), and the stored inputs must replay (law 20b).
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import attrs
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.core.nets.swarm import calm_down, within

from selfheal.core.engine import Engine
from selfheal.core.messages import ActionFinished, CheckFinished
from selfheal.core.model import (
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
from selfheal.testing.laws import Laws
from selfheal.testing.proofs import changes_nothing, quiet, replays
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

EXAMPLES = int(os.environ.get("SELFHEAL_NETS_EXAMPLES", "400"))

PROFILE = settings(
    max_examples=EXAMPLES,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
"""Deterministic, so that CI never fails by luck; `SELFHEAL_NETS_EXAMPLES` asks for more."""

QUICK = settings(PROFILE, phases=(Phase.generate,), print_blob=False)
"""To see whether a wrong core is caught at all: no shrinking."""


def _choice(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


STEPS = _choice(
    (Step(action="restart", timeout=20.0, settle=2.0),),
    (
        Step(action="reconnect", effect=Effect.GENTLE, timeout=5.0),
        Step(action="restart", timeout=20.0, settle=0.0, cooldown=60.0),
    ),
    (
        Step(action="reset_cache", effect=Effect.DESTRUCTIVE),
        Step(action="restart", only_for=frozenset({Cause.TIMEOUT})),
    ),
    (Step(action="restart", approval=True), Step(action="manual_intervention")),
    (),
)


@st.composite
def policies(draw: st.DrawFn, place: int) -> Policy:
    """Draw the policy of service number `place`."""
    edges: tuple[Dependency, ...] = ()
    if place and draw(st.booleans()):
        names = tuple(sorted(draw(st.sets(_choice(*(f"s{i}" for i in range(place))), min_size=1, max_size=2))))
        kind = draw(_choice(DependencyKind.HARD, DependencyKind.HARD, DependencyKind.SOFT))
        edges = (Dependency(services=names, kind=kind, when_disabled=draw(st.sampled_from(WhenDisabled))),)
    return Policy(
        name=f"s{place}",
        interval=draw(_choice(10.0, 30.0)),
        recheck=5.0,
        jitter=draw(_choice(0.0, 0.1)),
        failure_threshold=draw(_choice(1, 2, 3)),
        min_failing_span=draw(_choice(0.0, 10.0)),
        window=draw(_choice(None, None, Window(failures=2, checks=4))),
        success_threshold=draw(_choice(1, 2)),
        start_grace=draw(_choice(0.0, 20.0)),
        warning_fails=draw(_choice(False, False, True)),
        flapping=draw(_choice((), (Budget(limit=2, per=600.0),))),
        priority=draw(_choice(Priority.MEDIUM, Priority.HIGH)),
        steps=draw(STEPS),
        max_retries=draw(_choice(1, 2, 3)),
        backoff=Backoff(
            initial=draw(_choice(10.0, 0.0)),
            cap=60.0,
            jitter=draw(_choice(0.0, 0.5)),
            forget_after=draw(_choice(600.0, 0.0)),
        ),
        recovery_timeout=draw(_choice(300.0, 15.0)),
        slow_retry=draw(_choice(120.0, None)),
        probation=draw(_choice(300.0, 0.0)),
        budgets=draw(_choice((), (Budget(limit=1, per=300.0),))),
        approval_timeout=60.0,
        observe_only=draw(_choice(False, False, False, True)),
        depends_on=edges,
        dependent_grace=draw(_choice(0.0, 30.0)),
        has_workload=draw(st.booleans()),
    )


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Draw a fleet of one to four services."""
    count = draw(st.integers(1, 4))
    return Fleet(
        policies=tuple(draw(policies(place)) for place in range(count)),
        canaries=draw(_choice((), (), (Canary(name="gw", interval=10.0),))),
        limits=Limits(max_concurrent_recoveries=draw(_choice(1, 2, 3)), budget_floor=draw(_choice(3, 1))),
    )


WAITS = _choice(0.5, 5.0, 40.0, 130.0, 400.0)
PLACES = st.integers(0, 3)


class Healing(RuleBasedStateMachine):
    """A fleet, a world, and everything that may come."""

    engine: ClassVar[type[Engine]] = Engine
    ask_every: ClassVar[int] = 6

    @initialize(fleet=fleets(), takes=_choice((1.0, 1.0), (0.5, 30.0)))
    def begins(self, fleet: Fleet, takes: tuple[float, float]) -> None:
        self.w = SimpleWorld(fleet, seed=1, action_takes=takes)
        laws = Laws(fold_every=5, ask_every=self.ask_every)
        self.s = Simulator(fleet, self.w, watchers=[laws], engine=self.engine)
        self.s.run(1.0)

    def name(self, place: int) -> str:
        names = list(self.s.engine.ledger.policies)
        return names[place % len(names)] if names else next(iter(self.w.things))

    @rule(seconds=WAITS)
    def wait(self, seconds: float) -> None:
        self.s.run(self.s.now + seconds)

    @rule(place=PLACES, cause=_choice(Cause.UNREACHABLE, Cause.TIMEOUT, Cause.AUTH, Cause.STARTING), cure=st.booleans(),
          heals=_choice(1e9, 20.0, 100.0), hangs=st.booleans())  # fmt: skip
    def breaks(self, place: int, cause: Cause, cure: bool, heals: float, hangs: bool) -> None:
        cures = frozenset({"restart", "reconnect"}) if cure else frozenset({"nothing"})
        self.w.breaks(self.name(place), cause, heals_at=self.s.now + heals, cured_by=cures, hangs=hangs)

    @rule(place=PLACES, cure=st.booleans())
    def fails_until_failed(self, place: int, cure: bool) -> None:
        """Without this rule, FAILED would need many lucky steps."""
        name = self.name(place)
        self.breaks(place, Cause.UNREACHABLE, cure, 1e9, False)
        for _ in range(30):
            condition = self.s.engine.ledger.conditions.get(name)
            if condition is None or condition.state in (State.FAILED, State.RECOVERING, State.DISABLED):
                return
            self.s.run(self.s.now + 2.0)

    @rule(place=PLACES)
    def mends(self, place: int) -> None:
        self.w.mends(self.name(place))

    @rule(place=PLACES, pattern=_choice((True, False), (False, False, True)))
    def flickers(self, place: int, pattern: tuple[bool, ...]) -> None:
        self.w.things[self.name(place)].pattern = pattern

    @rule(place=PLACES)
    def warns(self, place: int) -> None:
        self.w.breaks(self.name(place), Cause.FULL, heals_at=self.s.now + 60.0, verdict=Verdict.WARNING)

    @rule(place=PLACES, run=_choice(Run.EXITED, Run.STOPPED, Run.ABSENT), heard=st.booleans())
    def ends(self, place: int, run: Run, heard: bool) -> None:
        name = self.name(place)
        self.w.things[name].run = run
        if self.w.workloads[name] and heard:
            self.s.report(name, self.w.instance(name))

    @rule(place=PLACES, unseen=st.booleans())
    def cannot_be_inspected(self, place: int, unseen: bool) -> None:
        self.w.things[self.name(place)].unseen = unseen

    @rule(place=PLACES)
    def restarts_by_itself(self, place: int) -> None:
        self.w.reborn(self.name(place), self.s.now)

    @rule(place=PLACES)
    def slips(self, place: int) -> None:
        self.w.things[self.name(place)].slips = True

    @rule(seconds=_choice(20.0, 100.0))
    def is_cut_off(self, seconds: float) -> None:
        self.w.cut_off_until = self.s.now + seconds

    @rule(down_for=_choice(0.0, 1.0, 40.0, 400.0), lose=st.booleans(), by_snapshot=st.booleans())
    def crashes(self, down_for: float, lose: bool, by_snapshot: bool) -> None:
        self.s.crash(down_for, lose=lose, by_snapshot=by_snapshot)

    @rule(seconds=_choice(0.3, 20.0, 200.0))
    def is_suspended(self, seconds: float) -> None:
        self.s.suspend(seconds)

    @rule(seconds=_choice(20.0, 200.0), unnoticed=_choice(0.0, 50.0))
    def store_fails(self, seconds: float, unnoticed: float) -> None:
        self.s.store_fails(self.s.now + seconds, unnoticed=unnoticed)

    @rule(place=PLACES, act=_choice("recover", "disable", "enable", "initialize", "approve", "refuse", "acknowledge"))
    def asks(self, place: int, act: str) -> None:
        self.s.request(act, self.name(place))

    @rule(place=PLACES, override=st.sets(_choice("parents", "paused", "maintenance", "observe")))
    def overrides(self, place: int, override: set[str]) -> None:
        self.s.request("recover", self.name(place), override=frozenset(override), scopes=frozenset({"admin"}))

    @rule(
        place=PLACES, act=_choice("pause", "maintenance", "silence"), duration=_choice(None, 60.0), all_=st.booleans()
    )
    def suppresses(self, place: int, act: str, duration: float | None, all_: bool) -> None:
        self.s.request(act, self.name(place), duration=duration, everything=all_)

    @rule(place=PLACES)
    def resumes(self, place: int) -> None:
        self.s.request("resume", self.name(place))

    @rule(hold=_choice("storm", "canary", "doubt", "fleet"))
    def releases(self, hold: str) -> None:
        self.s.request("release", hold=hold, scopes=frozenset({"admin"}))
        self.s.fleet = self.s.engine.ledger.fleet

    @rule(place=PLACES, active=st.booleans())
    def window(self, place: int, active: bool) -> None:
        self.s.window("night", (self.name(place),), active=active, until=self.s.now + 60.0)

    @rule(place=PLACES, to=st.data(), confirmed=st.booleans())
    def reloads(self, place: int, to: st.DataObject, confirmed: bool) -> None:
        fleet = self.s.fleet
        kind = to.draw(_choice("policy", "fingerprint", "drop", "canaries", "cut short"))
        chosen = list(fleet.policies)
        if kind == "canaries":
            fleet = attrs.evolve(fleet, canaries=() if fleet.canaries else (Canary(name="gw"),))
        elif kind == "cut short":
            chosen = [attrs.evolve(p, depends_on=()) for p in chosen[:1]]
        elif chosen:
            at = place % len(chosen)
            known = {p.name for p in chosen}
            if kind == "policy":
                new = to.draw(policies(int(chosen[at].name[1:])))
                edges = tuple(d for d in new.depends_on if known.issuperset(d.services))
                chosen[at] = attrs.evolve(new, depends_on=edges, has_workload=chosen[at].has_workload)
            elif kind == "fingerprint":
                chosen[at] = attrs.evolve(chosen[at], fingerprint=chosen[at].fingerprint + "x")
            else:
                gone = chosen.pop(at).name
                chosen = [
                    attrs.evolve(p, depends_on=tuple(d for d in p.depends_on if gone not in d.services)) for p in chosen
                ]
        other = attrs.evolve(fleet, policies=tuple(chosen))
        self.w.meets(other)
        self.s.propose(other, confirmed=confirmed)

    @precondition(lambda self: self.s.engine.ledger.policies)
    @rule(place=PLACES, older=st.booleans(), passing=st.booleans(), purpose=st.sampled_from(Purpose))
    def hears_what_is_stale(self, place: int, older: bool, passing: bool, purpose: Purpose) -> None:
        name, now = self.name(place), self.s.now
        generation = self.s.engine.ledger.conditions[name].generation + (-1 if older else 1)
        result = PASSING if passing else CheckResult(Verdict.FAILING, cause=Cause.EXITED)
        late = CheckFinished(
            at=now, service=name, generation=generation, purpose=purpose, started=now - 1.0, ended=now, result=result
        )
        changes_nothing(self.s, late)
        changes_nothing(self.s, ActionFinished(at=now, intent="1/nobody/1/0", settled=Settled.DONE))

    def teardown(self) -> None:
        if not hasattr(self, "s"):
            return
        with within(20.0):
            calm_down(self.s, self.w)
            quiet(self.s, 3000.0)
            replays(self.s)
