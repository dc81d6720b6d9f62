"""One day of fifty services, with faults: the figures of a simulation, and whether it is the same each time.

Run as a program (`python -m tests.core.nets.day 1`) it prints what the day came to and the digest of its records.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from random import Random

from selfheal.core.ledger import WELL
from selfheal.core.model import Canary, Cause, Dependency, Effect, Fleet, Limits, Policy, Priority, Run, Step
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

DAY = 86_400.0
STEPS = (
    Step(action="reconnect", effect=Effect.GENTLE, timeout=10.0, needs_running=True),
    Step(action="restart", timeout=60.0),
)


def fleet(seed: int, services: int = 50) -> Fleet:
    """Draw a fleet in three floors: stores, services that need one or two of them, and front ends."""
    r = Random(seed)
    policies = []
    for place in range(services):
        floor = 0 if place < services // 5 else 1 if place < services * 4 // 5 else 2
        above = {1: range(services // 5), 2: range(services // 5, services * 4 // 5)}.get(floor, range(0))
        needs = sorted(r.sample(list(above), min(len(above), r.choice([1, 1, 2]))))
        policies.append(
            Policy(
                name=f"s{place:02}",
                priority=(Priority.HIGH, Priority.MEDIUM, Priority.LOW)[floor],
                steps=STEPS,
                has_workload=r.random() < 0.8,
                depends_on=tuple(Dependency(services=(f"s{parent:02}",)) for parent in needs),
            )
        )
    return Fleet(policies=tuple(policies), canaries=(Canary(name="gateway"),), limits=Limits(), seed=seed)


def _fault(kind: float, name: str, simulator: Simulator, world: SimpleWorld) -> Callable[[], object]:
    """Return one thing that goes wrong; `kind` from 0 to 1 says which."""
    if kind < 0.55:
        return lambda: world.breaks(name, cured_by=frozenset({"restart"}))
    if kind < 0.65:
        return lambda: world.breaks(name, Cause.OVERLOADED, heals_at=simulator.now + 300.0)
    if kind < 0.75:
        return lambda: setattr(world.things[name], "run", Run.EXITED)
    if kind < 0.85:
        return lambda: setattr(world, "cut_off_until", simulator.now + 120.0)
    if kind < 0.93:
        return lambda: simulator.crash(20.0)
    return lambda: simulator.suspend(45.0)


def day(seed: int, *, hours: float = 24.0) -> dict[str, object]:
    """Simulate a day; return its figures. Times apart, they are the same for the same seed."""
    drawn = fleet(seed)
    world = SimpleWorld(drawn, seed=seed, action_takes=(0.5, 8.0))
    simulator = Simulator(drawn, world, seed=seed, grain=0.01)
    r = Random(f"faults {seed}")
    names = [policy.name for policy in drawn.policies]
    until = hours * 3600.0
    at = 600.0
    while (at := at + r.expovariate(1 / 1200.0)) < until - 3600.0:
        simulator.at(at, _fault(r.random(), r.choice(names), simulator, world))
    began = time.perf_counter()
    simulator.run(until)
    took = time.perf_counter() - began
    written = simulator.bytes()
    return {
        "seed": seed,
        "events": simulator.events,
        "records": len(simulator.records),
        "actions": len(world.acted),
        "needless": sum(thing.needless for thing in world.things.values()),
        "crashes": simulator.crashes,
        "well at the end": sum(c.state in WELL for c in simulator.engine.ledger.conditions.values()),
        "digest": hashlib.sha256(written).hexdigest(),
        "seconds": round(took, 2),
    }


if __name__ == "__main__":
    print(json.dumps(day(int(sys.argv[1]), hours=float(sys.argv[2]) if len(sys.argv) > 2 else 24.0)))
