"""The first net: random fleets under random faults, every law after every event, then calm, then a replay.

Run as a program (`python -m tests.core.nets.swarm 0 500`) it prints its figures.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.core.nets.fleets import Faults, draw_fleet

from selfheal.core.engine import Engine
from selfheal.testing.laws import Laws
from selfheal.testing.proofs import quiet, replays
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let `AssertionError` be raised in what does not end within `seconds` of real time: an engine may spin (law 5)."""

    def over(number: int, frame: object) -> None:
        raise AssertionError(f"law 5: it does not end ({seconds:g} s)")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


CALM = 6000.0
"""Seconds of calm after which everything recoverable must be well."""


def one(
    seed: int, *, horizon: float = 3000.0, fold_every: int = 7, ask_every: int = 5, engine: type[Engine] = Engine
) -> Counter[str]:
    """Run one seed. Raises `AssertionError` (or whatever the engine raises) when a law is broken."""
    r = Random(seed)
    fleet = draw_fleet(r)
    world = SimpleWorld(fleet, seed=seed, action_takes=(0.2, r.choice([2.0, 30.0])))
    world.lenient = fleet.limits.act_without_journal
    laws = Laws(fold_every=fold_every, ask_every=ask_every)
    simulator = Simulator(
        fleet,
        world,
        seed=seed,
        watchers=[laws],
        grain=r.choice([0.0, 0.01]),
        flush=r.choice([1.0, 30.0]),
        engine=engine,
    )
    faults = Faults(r, simulator, world)
    every = r.choice([30.0, 60.0, 120.0])
    at = 0.0
    while (at := at + r.expovariate(1 / every)) < horizon:
        simulator.at(at, faults)
    simulator.run(horizon)
    calm_down(simulator, world)
    quiet(simulator, CALM)
    replays(simulator)
    return Counter(
        events=simulator.events,
        records=len(simulator.records),
        crashes=simulator.crashes,
        actions=len(world.acted),
        needless=sum(thing.needless for thing in world.things.values()),
    )


def calm_down(simulator: Simulator, world: SimpleWorld) -> None:
    """Let the faults stop, and people take back what they said."""
    world.cut_off_until = 0.0
    for name in world.canaries:
        world.canaries[name] = True
    simulator.run(simulator.now + 500.0)  # the store answers again, and those who come back have come
    for name, thing in world.things.items():
        world.mends(name)
        thing.boots_until, thing.latency = 0.0, 0.02
    for suppression in list(simulator.engine.ledger.suppressions):
        simulator.request("lift", suppression=suppression)
    for name in simulator.engine.ledger.policies:
        simulator.request("enable", name)


if __name__ == "__main__":
    total: Counter[str] = Counter()
    began, bad = time.perf_counter(), 0
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        try:
            with within(60.0):
                total += one(number)
        except Exception as problem:  # a wrong engine may raise anything; the seed is what counts
            bad += 1
            print("seed", number, type(problem).__name__, str(problem)[:400])
            if bad > 12 or len(sys.argv) > 3:
                raise
    print(dict(total), f"{bad} bad, {time.perf_counter() - began:.1f} s")
