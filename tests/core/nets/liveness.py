"""Liveness by itself: faults that only the right action cures, and no law but that all is well in time (law 21).

"Do nothing" satisfies every safety rule; here it fails. Nothing mends by itself: a service is down until it has been
restarted, and its dependents until it is up. Figures of the policy bound how long that may take.
"""

from __future__ import annotations

from random import Random

import attrs

from selfheal.core.engine import Engine
from selfheal.core.model import Backoff, Canary, Dependency, Effect, Fleet, Limits, Policy, Run, State, Step
from selfheal.testing.proofs import quiet, replays
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld


def one(seed: int, engine: type[Engine] = Engine) -> int:
    """Run one seed; return how many actions it took. Raises `AssertionError` when somebody is not well in time."""
    r = Random(seed)
    gentle = Step(action="reconnect", effect=Effect.GENTLE, timeout=5.0, settle=1.0, needs_running=True)
    restart = Step(action="restart", timeout=20.0, settle=2.0)
    count = r.randrange(1, 7)
    policies = tuple(
        Policy(
            name=f"s{place}",
            interval=r.choice([10.0, 30.0]),
            failure_threshold=r.choice([1, 3]),
            min_failing_span=r.choice([0.0, 10.0]),
            max_retries=r.choice([1, 3]),
            backoff=Backoff(initial=5.0, cap=20.0),
            slow_retry=60.0,
            budgets=(),
            flapping=(),
            steps=r.choice([(restart,), (gentle, restart)]),
            has_workload=r.random() < 0.5,
            depends_on=(Dependency(services=(f"s{r.randrange(place)}",)),) if place and r.random() < 0.6 else (),
            dependent_grace=5.0,
        )
        for place in range(count)
    )
    if count > 1 and r.random() < 0.4:  # a parent that is never ill, and seldom looked at
        policies = (attrs.evolve(policies[0], interval=5000.0), *policies[1:])
    canaries = (Canary(name="gw", interval=10.0),) if r.random() < 0.5 else ()
    limits = Limits(max_concurrent_recoveries=r.randrange(1, 3), budget_floor=20, storm_floor=100)
    fleet = Fleet(policies=policies, canaries=canaries, limits=limits, seed=seed)
    world = SimpleWorld(fleet, seed=seed, action_takes=(1.0, 5.0))
    simulator = Simulator(fleet, world, seed=seed, engine=engine, grain=0.01)
    simulator.run(60.0)
    names = [policy.name for policy in policies if policy.interval < 5000.0]
    for spell in range(3):
        for name in r.sample(names, r.randint(1, min(3, len(names)))):
            world.breaks(name, chance=r.choice([1.0, 0.6]), cured_by=frozenset({"restart"}))
            if world.workloads[name] and r.random() < 0.3:
                world.things[name].run = Run.EXITED
        if spell == 1:
            world.cut_off_until = simulator.now + 30.0
        simulator.run(simulator.now + r.choice([20.0, 60.0]))
        if spell == 2:
            simulator.crash(r.choice([1.0, 60.0]))
        end = simulator.now + 900.0
        while broken := [name for name in names if world.things[name].broken or world.things[name].run is Run.EXITED]:
            assert simulator.now < end, f"law 21: nobody has repaired {broken}"
            simulator.run(simulator.now + 10.0)
        quiet(simulator, 900.0, silent_for=120.0)
    assert all(c.state is State.HEALTHY for c in simulator.engine.ledger.conditions.values())
    replays(simulator)
    return len(world.acted)
