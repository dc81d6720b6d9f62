"""The second net: scripted stories, killed after every single event, with every possible loss of what was not durable.

A story is short and has one thing to tell. For each of its events the manager is killed once for every way to die: the
commands of that event obeyed or not, and none, one, or every batch lost that did not have to be durable. Then it starts
again, the story goes on, all laws hold, no action runs twice, and all is well in the end.

Run as a program (`python -m tests.core.nets.crashpoints`) it walks every point and prints its figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

import attrs

from selfheal.core.engine import Engine
from selfheal.core.model import Backoff, Budget, Canary, Cause, Dependency, Effect, Fleet, Limits, Policy, Run, Step
from selfheal.testing.laws import Laws
from selfheal.testing.proofs import quiet, replays
from selfheal.testing.simulator import Kill, Simulator
from selfheal.testing.worlds import SimpleWorld

Script: TypeAlias = Callable[[Simulator, SimpleWorld], None]


@attrs.frozen(kw_only=True)
class Story:
    """A fleet, what happens to it, and for how long."""

    name: str
    fleet: Fleet
    script: Script
    horizon: float
    takes: float = 4.0


RESTART = Step(action="restart", timeout=20.0, settle=2.0)
RECONNECT = Step(action="reconnect", effect=Effect.GENTLE, timeout=5.0, settle=1.0)
BASE = Policy(
    name="",
    interval=60.0,
    recheck=10.0,
    jitter=0.0,
    failure_threshold=2,
    min_failing_span=5.0,
    success_threshold=1,
    steps=(RESTART,),
    backoff=Backoff(initial=10.0, jitter=0.5),
    recovery_timeout=60.0,
    probation=60.0,
    slow_retry=120.0,
)


USUAL = Limits()


def _fleet(*policies: Policy, canaries: tuple[Canary, ...] = (), limits: Limits = USUAL) -> Fleet:
    return Fleet(policies=policies, canaries=canaries, limits=limits)


def _parent_and_child(s: Simulator, w: SimpleWorld) -> None:
    s.at(70.0, lambda: w.breaks("database"))
    s.at(75.0, lambda: w.breaks("api"))


def _ladder(s: Simulator, w: SimpleWorld) -> None:
    w.things["cache"].boot = 3.0
    s.at(65.0, lambda: w.breaks("cache", chance=0.5))
    s.at(300.0, lambda: w.breaks("cache"))


def _approval(s: Simulator, w: SimpleWorld) -> None:
    s.at(65.0, lambda: w.breaks("queue", Cause.FULL, cured_by=frozenset({"reset_cache"})))
    s.at(149.0, lambda: s.store_fails(200.0, unnoticed=40.0))

    def approve() -> None:
        if s.engine.ledger.conditions["queue"].asked_at is not None:
            s.request("approve", "queue")

    for at in (150.0, 250.0, 400.0):
        s.at(at, approve)


def _people(s: Simulator, w: SimpleWorld) -> None:
    s.at(65.0, lambda: w.breaks("web"))
    s.at(70.0, lambda: s.request("pause", "web", duration=40.0))
    s.at(125.0, lambda: s.request("disable", "web"))
    s.at(128.0, lambda: s.request("enable", "web"))
    s.at(140.0, lambda: s.request("recover", "web"))
    s.at(160.0, lambda: s.propose(attrs.evolve(s.fleet, limits=attrs.evolve(s.fleet.limits, late_after=0.5))))


def _exit(s: Simulator, w: SimpleWorld) -> None:
    def ends(run: Run) -> None:
        w.things["worker"].run = run
        s.report("worker", w.instance("worker"))

    s.at(65.0, lambda: ends(Run.EXITED))
    s.at(150.0, lambda: s.suspend(20.0))
    s.at(160.0, lambda: ends(Run.STOPPED))
    s.at(260.0, lambda: w.mends("worker"))


def _all_at_once(s: Simulator, w: SimpleWorld) -> None:
    for name in ("a", "b", "c"):
        s.at(70.0, lambda name=name: w.breaks(name))  # type: ignore[misc]
    s.at(70.0, lambda: s.store_fails(130.0))


STORIES: tuple[Story, ...] = (
    Story(
        name="a parent and its child",
        fleet=_fleet(
            attrs.evolve(BASE, name="database", has_workload=True),
            attrs.evolve(BASE, name="api", depends_on=(Dependency(services=("database",)),), dependent_grace=5.0),
            limits=Limits(max_concurrent_recoveries=1),
        ),
        script=_parent_and_child,
        horizon=200.0,
    ),
    Story(
        name="a ladder, twice",
        fleet=_fleet(attrs.evolve(BASE, name="cache", has_workload=True, steps=(RECONNECT, RESTART), max_retries=2)),
        script=_ladder,
        horizon=420.0,
    ),
    Story(
        name="a destructive step waits for a person",
        fleet=_fleet(
            attrs.evolve(
                BASE,
                name="queue",
                steps=(RECONNECT, Step(action="reset_cache", effect=Effect.DESTRUCTIVE, timeout=20.0, settle=2.0)),
                approval_timeout=300.0,
                budgets=(Budget(limit=1, per=3600.0),),
            )
        ),
        script=_approval,
        horizon=420.0,
    ),
    Story(
        name="an action outlives its manager",
        fleet=_fleet(
            attrs.evolve(
                BASE,
                name="search",
                recheck=2.0,
                failure_threshold=1,
                min_failing_span=0.0,
                steps=(attrs.evolve(RESTART, action="reload", settle=0.0), RESTART),
            )
        ),
        script=lambda s, w: s.at(65.0, lambda: w.breaks("search")),
        horizon=130.0,
        takes=15.0,
    ),
    Story(
        name="people act meanwhile",
        fleet=_fleet(attrs.evolve(BASE, name="web", recheck=5.0)),
        script=_people,
        horizon=220.0,
    ),
    Story(
        name="a process exits, then a person stops it",
        fleet=_fleet(
            attrs.evolve(BASE, name="worker", has_workload=True), canaries=(Canary(name="gw", interval=60.0),)
        ),
        script=_exit,
        horizon=300.0,
    ),
    Story(
        name="all at once while the store fails",
        fleet=_fleet(*(attrs.evolve(BASE, name=name, recheck=20.0) for name in "abc"), canaries=(Canary(name="gw"),)),
        script=_all_at_once,
        horizon=160.0,
    ),
)


def told(story: Story, kill: Kill | None = None, *, engine: type[Engine] = Engine) -> Simulator:
    """Run a story, killed or not, to its good end. Raises `AssertionError` when a law is broken."""
    world = SimpleWorld(story.fleet, seed=7, action_takes=(story.takes, story.takes))
    kills = () if kill is None else (kill,)
    laws = Laws(fold_every=4, ask_every=9)
    simulator = Simulator(story.fleet, world, watchers=[laws], flush=30.0, kills=kills, engine=engine)
    story.script(simulator, world)
    simulator.run(story.horizon)
    simulator.run(max(simulator.now, story.horizon))
    for name in world.things:
        world.mends(name)
    for suppression in list(simulator.engine.ledger.suppressions):
        simulator.request("lift", suppression=suppression)
    for name in simulator.engine.ledger.policies:
        simulator.request("enable", name)
    quiet(simulator, 1500.0, silent_for=130.0)
    replays(simulator)
    return simulator


def points(story: Story) -> Iterator[Kill]:
    """Yield every way to kill the manager once during a story."""
    last = 0

    def count(simulator: Simulator, *_: object) -> None:
        nonlocal last
        last = simulator.events

    world = SimpleWorld(story.fleet, seed=7, action_takes=(story.takes, story.takes))
    simulator = Simulator(story.fleet, world, watchers=[count], flush=30.0)
    story.script(simulator, world)
    simulator.run(story.horizon)
    for event in range(1, last + 1):
        for down_for in (0.0, 1.0, 45.0):
            yield Kill(event=event, obeyed=True, down_for=down_for, by_snapshot=event % 3 == 0)
            yield Kill(event=event, obeyed=False, down_for=down_for, by_snapshot=event % 3 == 1)
        for lost in (1, 2, 10_000):
            yield Kill(event=event, obeyed=False, lost=lost, down_for=(0.0, 1.0, 45.0)[(event + lost) % 3])


if __name__ == "__main__":
    for told_story in STORIES:
        began = time.perf_counter()
        kills = list(points(told_story))
        events = sum(told(told_story, kill).events for kill in kills)
        took = time.perf_counter() - began
        print(f"{told_story.name:45} {len(kills):6} points {events:9} events {took:7.1f} s")
