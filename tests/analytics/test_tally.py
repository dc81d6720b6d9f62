"""The count goes on where it stood, and says at every moment what counting everything anew would say."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest

from selfheal.analytics.availability import availability
from selfheal.analytics.repairs import Outcome, Repairs
from selfheal.analytics.tally import BOUNDS, KINDS, Durations, Tally
from selfheal.analytics.timeline import Timelines
from selfheal.core.model import Canary, Cause, Fleet, Policy, Step
from selfheal.core.records import Doubted, Record, Resumed
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld


def lived_through(seed: int, hours: float = 8.0) -> list[Record]:
    """Return the records of a fleet to which things happen: failures, maintenance, a sleep, a restart."""
    steps = (Step(action="reconnect"), Step(action="restart"))
    names = ("database", "web", "cache")
    fleet = Fleet(
        name="tally",
        policies=tuple(Policy(name=name, steps=steps, has_workload=True) for name in names),
        canaries=(Canary(name="gateway"),),
    )
    world, draw = SimpleWorld(fleet), random.Random(seed)
    world.things["web"].cured_by = frozenset({"restart"})
    sim = Simulator(fleet, world)
    for _ in range(12):
        at, name = draw.uniform(60.0, hours * 3600.0), draw.choice(names)
        sim.at(at, partial(world.breaks, name, draw.choice((Cause.TIMEOUT, Cause.UNREACHABLE))))
    sim.at(3000.0, lambda: sim.request("maintenance", services=("web",), duration=900.0))
    sim.at(5000.0, lambda: sim.request("disable", "cache"))
    sim.at(9000.0, lambda: sim.request("enable", "cache"))
    sim.at(12000.0, lambda: world.canaries.update(gateway=False))
    sim.at(12600.0, lambda: world.canaries.update(gateway=True))
    sim.run(until=hours * 3600.0)
    records = [record for batch in sim.batches for record in batch.records]
    middle = records[len(records) // 2].at
    records += [Doubted(at=middle, late=40.0), Resumed(at=middle, away=100.0)]
    return sorted(records, key=lambda record: record.at)


@pytest.mark.parametrize("seed", range(4))
def test_it_says_what_counting_everything_anew_says(seed: int) -> None:
    records, draw = lived_through(seed), random.Random(seed)
    tally, seen = Tally(), list[Record]()
    compared = Counter[str]()
    for record in records:
        tally.take(record)
        seen.append(record)
        if draw.random() > 0.2:
            continue
        anew = Repairs(seen).all
        outcomes = Counter((one.service, one.action, str(one.outcome)) for one in anew if one.outcome is not None)
        assert dict(tally.attempts) == dict(outcomes)
        times = [one.seconds or 0.0 for one in anew if one.outcome is Outcome.SUCCESS]
        assert sum(sum(one.counts) for one in tally.durations.values()) == len(times)
        assert sum(one.total for one in tally.durations.values()) == pytest.approx(sum(times))
        compared.update(str(outcome) for _, _, outcome in outcomes)
        lives = Timelines(one for one in seen if one.kind in KINDS)
        for at in (record.at, record.at + draw.uniform(0.0, 500.0)):
            for service in lives.services:
                expected = availability(lives.lived(service, at), lives.began or 0.0, at).uptime
                assert tally.uptime(service, at) == pytest.approx(expected), (service, at)
    assert min(compared["success"], compared["failure"]) > 10


def test_what_was_counted_is_forgotten() -> None:
    tally = Tally(lived_through(1))
    assert sum(tally.attempts.values()) > 5
    assert all(step.outcome is None for step in tally._steps.all)


def test_a_service_that_nobody_has_heard_of_has_no_uptime() -> None:
    assert Tally().uptime("nobody", 10.0) is None


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    durations = Durations()
    for seconds in (0.5, 1.0, 1.5, 3600.0, 4000.0):
        durations.add(seconds)
    assert durations.counts == [2, 1, *[0] * (len(BOUNDS) - 3), 1, 1]
    assert durations.total == 7603.0
