"""A crowded simulation, as a program: many of everything at once, so that whatever order is not decided shows itself.

Prints the digest of all inputs, records and commands, and how many there were.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import partial

from selfheal.core.messages import Event, Output
from selfheal.core.model import Canary, Cause, Dependency, DependencyKind, Fleet, Limits, Policy, Step
from selfheal.core.records import dumps, encode
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

STORES = ("ash", "elm", "oak")
BELOW = {store: tuple(f"{store}-{number}" for number in range(7)) for store in STORES}
EVERY = (*STORES, *(name for names in BELOW.values() for name in names), "front", "search")


def policies() -> Iterator[Policy]:
    for store in STORES:
        yield Policy(name=store, steps=(Step(action="restart"),))
        for name in BELOW[store]:
            yield Policy(name=name, steps=(Step(action="restart"),), depends_on=(Dependency(services=(store,)),))
    soft = Dependency(services=("oak",), kind=DependencyKind.SOFT)
    yield Policy(name="front", steps=(Step(action="restart"),), depends_on=(Dependency(services=STORES), soft))
    yield Policy(name="search", steps=(Step(action="flush", approval=True), Step(action="restart")))


def crowded(seed: int) -> tuple[str, int]:
    """Play it; return the digest and the number of what was said."""
    limits = Limits(max_concurrent_recoveries=4, budget_floor=40)
    canaries = (Canary(name="gateway"), Canary(name="resolver"))
    fleet = Fleet(policies=tuple(policies()), canaries=canaries, limits=limits, seed=seed)
    world = SimpleWorld(fleet, seed=seed, action_takes=(0.5, 8.0))
    digest = hashlib.sha256()
    said = 0

    def heard(simulator: Simulator, event: Event, output: Output) -> None:
        nonlocal said
        for one in (event, *output.records, *output.commands):
            digest.update(type(one).__name__.encode() + dumps(encode(one)) + b"\n")
            said += 1

    simulator = Simulator(fleet, world, seed=seed, watchers=[heard], grain=0.01)

    def break_all(names: tuple[str, ...], heals_at: float = 1e9, cure: str = "restart") -> None:
        for name in names:
            world.breaks(name, Cause.UNREACHABLE, heals_at=heals_at, cured_by=frozenset({cure}))

    simulator.at(100.0, lambda: break_all(("ash", *BELOW["ash"])))
    simulator.at(1500.0, lambda: break_all(BELOW["elm"], heals_at=4000.0, cure="nothing"))
    simulator.at(1500.0, lambda: break_all(("search",)))
    simulator.at(4500.0, lambda: break_all(EVERY, heals_at=5200.0))
    simulator.at(4600.0, lambda: simulator.crash(20.0))
    simulator.at(4700.0, lambda: simulator.suspend(45.0))
    simulator.at(6000.0, lambda: break_all(("oak", *BELOW["oak"], "front")))
    simulator.at(6300.0, lambda: simulator.crash(2.0))
    for store in STORES:
        simulator.at(6500.0, partial(simulator.request, "disable", store))
    simulator.run(8000.0)
    return digest.hexdigest(), said


if __name__ == "__main__":
    print(*crowded(int(sys.argv[1])))
