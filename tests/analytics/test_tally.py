"""The count goes on where it stood, and says at every moment what counting everything anew would say."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any

import attrs
import pytest

from selfheal.analytics.availability import (
    DAY,
    ENOUGH,
    TARGET,
    WEEK,
    Numbers,
    availability,
    fleet_share,
    numbers,
    reliability,
)
from selfheal.analytics.repairs import Outcome, Repairs
from selfheal.analytics.tally import BOUNDS, KINDS, Durations, Tally
from selfheal.analytics.timeline import Lived, Timelines
from selfheal.core.model import Canary, Cause, Fleet, Policy, Step
from selfheal.core.records import Doubted, IncidentOpened, Moved, Record, Resumed
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


def anew(
    records: list[Record], until: float, wall: float, service: str | None, window: float | None, days: int
) -> dict[str, Any]:
    """Return the statistics in the plainest way: everything read again, and each day and week looked at by itself."""
    lives, steps = Timelines(records), Repairs(records)
    began = lives.began or 0.0
    since = began if window is None else max(began, until - window)
    lived = {name: lives.lived(name, until) for name in lives.services}
    met = {name: plain_weeks(one, until) for name, one in lived.items()}
    share = fleet_share(met.values())
    done = {name: [step for step in steps.all if step.service == name] for name in lived}
    found = {
        name: numbers(one, done[name], since=since, until=until, score=reliability(met[name], share))
        for name, one in lived.items()
        if service in (None, name)
    }
    shown = {name: one.shape() for name, one in found.items()}
    if days:
        for name, one in shown.items():
            one["days"] = plain_days(lived[name], until, wall, days)
    opened = {one.incident.number: one.at for one in reversed(records) if isinstance(one, IncidentOpened)}
    answer: dict[str, Any] = {
        "incidents": sum(since <= at for at in opened.values()),
        "window_seconds": until - since,
    }
    if service is None:
        score = None if share is None else 100.0 * share
        answer["fleet"] = Numbers.together(list(found.values()), since=since, until=until, score=score).shape()
    return {**answer, "services": shown}


def plain_weeks(lived: Lived, until: float) -> list[tuple[float, bool]]:
    first, found, end = min((since for since, _ in lived.enabled), default=inf), [], until
    while end - WEEK >= first - DAY:
        week = availability(lived, end - WEEK, end)
        if week.uptime is not None and week.observed + week.planned >= ENOUGH * WEEK:
            found.append((until - end, week.uptime >= TARGET))
        end -= WEEK
    return found


def plain_days(lived: Lived, until: float, wall: float, days: int) -> list[dict[str, Any]]:
    known, midnight, found = min((since for since, _ in lived.enabled), default=inf), until - wall % DAY, []
    for back in range(days - 1, -1, -1):
        since, end = midnight - back * DAY, min(until, midnight - back * DAY + DAY)
        if end <= known:
            continue
        observed = lived.observed.within(since, end)
        found.append(
            {
                "date": datetime.fromtimestamp(wall - (until - since), UTC).date().isoformat(),
                "observed_seconds": observed.seconds,
                "down_seconds": (observed & lived.down).seconds,
                "degraded_seconds": (observed & lived.degraded).seconds,
                "planned_seconds": (lived.planned & lived.enabled.within(since, end)).seconds,
            }
        )
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_statistics_go_on_where_they_stood_and_are_exactly_those_of_everything_read_anew(seed: int) -> None:
    """Asked at any moment, of any service, window and number of days; the hours are stretched, so that weeks pass."""
    slow = 24.0 * 7.0
    records = [stretched(record, slow) for record in lived_through(seed)]
    draw, tally, seen, asked = random.Random(seed), Tally(), list[Record](), 0
    for record in records:
        tally.take(record)
        seen.append(record)
        if draw.random() > 0.15:
            continue
        asked += 1
        until = record.at + draw.choice((0.0, draw.uniform(0.0, 5.0 * DAY)))
        service = draw.choice((None, None, "web", "database"))
        window = draw.choice((None, 3600.0, DAY, 12.5 * DAY))
        wall, days = 1_760_000_000.0 + until, draw.choice((0, 1, 30))
        if service not in (None, *Timelines(seen).services):
            with pytest.raises(KeyError):
                tally.statistics(until=until, wall=wall, service=service)
            continue
        expected = anew(seen, until, wall, service, window, days)
        found = tally.statistics(until=until, wall=wall, service=service, window=window, days=days)
        assert found == expected, (service, window, days)
    assert asked > 20
    assert any(one["reliability_score"] is not None for one in expected["services"].values())


def stretched(record: Record, slow: float) -> Record:
    """Return a record as of a time that passed more slowly."""
    shifts: dict[str, Any] = {"at": record.at * slow}
    if isinstance(record, Moved):
        shifts["before"] = attrs.evolve(record.before, since=record.before.since * slow)
    if isinstance(record, Resumed):
        shifts["away"] = record.away * slow
    return attrs.evolve(record, **shifts)


def test_a_service_that_nobody_has_heard_of_has_no_uptime() -> None:
    assert Tally().uptime("nobody", 10.0) is None


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    durations = Durations()
    for seconds in (0.5, 1.0, 1.5, 3600.0, 4000.0):
        durations.add(seconds)
    assert durations.counts == [2, 1, *[0] * (len(BOUNDS) - 3), 1, 1]
    assert durations.total == 7603.0
