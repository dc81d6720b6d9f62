"""How time divides, against the plainest reading of the same records: one instant at a time, from the beginning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import pytest
from tests.core.nets.fleets import Faults, draw_fleet

from selfheal.analytics.spans import Spans
from selfheal.analytics.timeline import Lived, Timelines
from selfheal.core.alerts import DOWN
from selfheal.core.model import Alert, Binds, Cause, Condition, Fleet, Policy, Severity, State, Suppression
from selfheal.core.records import (
    AlertChanged,
    Doubted,
    FleetSet,
    HoldChanged,
    Moved,
    Record,
    Resumed,
    SuppressionChanged,
)
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

# -- by hand ----------------------------------------------------------------------------------------------------------


class Story:
    """Records of one service, written by hand."""

    def __init__(self, *names: str) -> None:
        self.conditions = {name: Condition() for name in names or ("db",)}
        self.records: list[Record] = [
            Resumed(at=0.0, away=0.0),
            FleetSet(at=0.0, fleet=Fleet(policies=tuple(Policy(name=name) for name in self.conditions))),
        ]

    def moves(self, at: float, state: State, name: str = "db", **changes: Any) -> None:
        before = self.conditions[name]
        since = before.since if before.state is state else at
        after = Condition(state=state, since=since, **{"incident": before.incident, **changes})
        self.conditions[name] = after
        self.says(Moved(at=at, service=name, before=before, after=after))

    def outage(self, at: float, *, lasts: float, incident: int = 1, cause: Cause | None = None) -> None:
        """Fail at `at`, be believed down 30 s later, be repaired after `lasts`."""
        self.moves(at, State.UNHEALTHY, cause=cause)
        self.moves(at + 30.0, State.FAILED, incident=incident, cause=cause)
        self.moves(at + 40.0, State.RECOVERING, cause=cause)
        self.moves(at + lasts, State.HEALTHY, incident=None)

    def says(self, record: Record) -> None:
        self.records.append(record)

    def lived(self, end: float, name: str = "db") -> Lived:
        return Timelines(self.records).lived(name, end)


def suppression(binds: Binds = Binds.MAINTENANCE, *services: str) -> Suppression:
    return Suppression(id=f"{binds}-1", binds=binds, services=services, everything=not services)


def test_an_outage_begins_with_its_first_failing_check() -> None:
    story = Story()
    story.moves(1.0, State.HEALTHY)
    story.outage(100.0, lasts=60.0, cause=Cause.UNREACHABLE)
    lived = story.lived(1000.0)
    assert list(lived.down) == [(100.0, 160.0)]
    assert list(lived.observed) == [(1.0, 1000.0)]
    (failure,) = lived.failures
    assert (failure.began, failure.confirmed, failure.ended) == (100.0, 130.0, 160.0)
    assert (failure.cause, failure.recovered, failure.over) == (Cause.UNREACHABLE, True, True)


def test_a_failure_that_was_never_believed_is_no_downtime() -> None:
    story = Story()
    story.moves(1.0, State.HEALTHY)
    story.moves(100.0, State.UNHEALTHY)
    story.moves(110.0, State.HEALTHY)
    assert story.lived(1000.0).down.seconds == 0
    assert story.lived(1000.0).failures == ()


def test_a_relapse_goes_on_with_the_same_failure() -> None:
    story = Story()
    story.moves(1.0, State.HEALTHY)
    story.outage(100.0, lasts=60.0)
    story.outage(200.0, lasts=60.0)
    lived = story.lived(1000.0)
    assert list(lived.down) == [(100.0, 160.0), (200.0, 260.0)]
    (failure,) = lived.failures
    assert (failure.began, failure.ended, failure.relapses) == (100.0, 260.0, 1)


def test_who_is_disabled_or_leaves_while_down_has_not_been_repaired() -> None:
    for leaves in (True, False):
        story = Story()
        story.moves(1.0, State.HEALTHY)
        story.moves(100.0, State.FAILED, incident=1)
        if leaves:
            story.says(FleetSet(at=150.0, fleet=Fleet(policies=(Policy(name="other"),))))
        else:
            story.moves(150.0, State.DISABLED)
        lived = story.lived(1000.0)
        (failure,) = lived.failures
        assert (failure.ended, failure.given_up, failure.over) == (150.0, True, False)
        assert lived.enabled.seconds == 150.0


def test_who_healed_by_itself_was_not_recovered() -> None:
    story = Story()
    story.moves(100.0, State.FAILED, incident=1)
    story.moves(150.0, State.DEGRADED)
    (failure,) = story.lived(1000.0).failures
    assert (failure.recovered, failure.over) == (False, True)


def test_maintenance_counts_for_nothing_and_a_pause_does() -> None:
    story = Story("db", "api")
    story.moves(0.0, State.HEALTHY)
    story.says(SuppressionChanged(at=100.0, suppression=suppression(Binds.MAINTENANCE, "db"), on=True))
    story.says(SuppressionChanged(at=100.0, suppression=suppression(Binds.PAUSED), on=True))
    story.outage(150.0, lasts=60.0)
    story.says(SuppressionChanged(at=400.0, suppression=suppression(Binds.MAINTENANCE, "db"), on=False))
    assert list(story.lived(1000.0).planned) == [(100.0, 400.0)]
    assert story.lived(1000.0).observed.seconds == 700.0
    assert story.lived(1000.0, "api").planned.seconds == 0


def test_who_joins_during_a_maintenance_of_everything_is_under_it() -> None:
    story = Story("db")
    story.says(SuppressionChanged(at=10.0, suppression=suppression(), on=True))
    story.says(FleetSet(at=20.0, fleet=Fleet(policies=(Policy(name="db"), Policy(name="api")))))
    story.says(SuppressionChanged(at=30.0, suppression=suppression(), on=False))
    assert list(story.lived(100.0, "db").planned) == [(10.0, 30.0)]
    assert list(story.lived(100.0, "api").planned) == [(20.0, 30.0)]


def test_what_nobody_could_see_is_blind() -> None:
    story = Story()
    story.moves(10.0, State.HEALTHY)
    story.says(Doubted(at=200.0, late=50.0))
    story.says(Resumed(at=400.0, away=100.0))
    alert = Alert(id="a1", rule="unobserved", service="db", severity=Severity.LOW, since=500.0, text="")
    story.says(AlertChanged(at=500.0, service="db", alert=alert, open=True))
    story.says(AlertChanged(at=550.0, service="db", alert=alert, open=False))
    story.says(HoldChanged(at=600.0, hold="canary", on=True))
    story.says(HoldChanged(at=650.0, hold="canary", on=False))
    policies = (Policy(name="db"),)
    story.says(FleetSet(at=700.0, fleet=Fleet(policies=policies), unwatched=("db",)))
    story.says(FleetSet(at=800.0, fleet=Fleet(policies=policies)))
    blind = [(0.0, 10.0), (150.0, 200.0), (300.0, 400.0), (500.0, 550.0), (600.0, 650.0), (700.0, 800.0)]
    assert list(story.lived(1000.0).blind) == blind
    assert story.lived(1000.0).observed.seconds == 640.0


def test_of_a_service_nobody_knows_nothing_is_said() -> None:
    with pytest.raises(KeyError):
        Story().lived(1.0, "nobody")


# -- against the plainest reading -------------------------------------------------------------------------------------


class Instant:
    """What records say of one service at one instant, by reading all of them."""

    def __init__(self, records: Sequence[Record], service: str, at: float) -> None:
        self.past = [record for record in records if record.at <= at]
        self.future = [record for record in records if record.at > at]
        self.service, self.at, self.all = service, at, records

    def last(self, kind: type[Any], **wanted: Any) -> Any:
        found = [
            r for r in self.past if isinstance(r, kind) and all(getattr(r, key) == is_ for key, is_ in wanted.items())
        ]
        return found[-1] if found else None

    @property
    def state(self) -> State | None:
        fleet = self.last(FleetSet)
        if fleet is None or self.service not in {policy.name for policy in fleet.fleet.policies}:
            return None
        since_it_joined: list[Moved] = []
        for record in self.past:
            if isinstance(record, FleetSet) and self.service not in {policy.name for policy in record.fleet.policies}:
                since_it_joined.clear()
            elif isinstance(record, Moved) and record.service == self.service:
                since_it_joined.append(record)
        return since_it_joined[-1].after.state if since_it_joined else State.UNKNOWN

    @property
    def down(self) -> bool:
        if self.state is State.UNHEALTHY:
            for record in self.future:
                mine = isinstance(record, Moved) and record.service == self.service
                if isinstance(record, Moved) and mine and record.after.state is not State.UNHEALTHY:
                    return record.after.state in DOWN
        return self.state in DOWN

    @property
    def planned(self) -> bool:
        active: dict[str, Suppression] = {}
        for record in self.past:
            if isinstance(record, SuppressionChanged):
                active.pop(record.suppression.id, None)
                if record.on:
                    active[record.suppression.id] = record.suppression
        return any(one.covers(self.service) and one.binds is Binds.MAINTENANCE for one in active.values())

    @property
    def blind(self) -> bool:
        away = any(
            record.at - (record.away if isinstance(record, Resumed) else record.late) < self.at < record.at
            for record in self.all
            if isinstance(record, (Resumed, Doubted))
        )
        canary = self.last(HoldChanged, hold="canary")
        alerts = [r for r in self.past if isinstance(r, AlertChanged) and r.service == self.service]
        unobserved = [r.open for r in alerts if r.alert.rule == "unobserved"]
        unwatched = self.service in self.last(FleetSet).unwatched
        if away or (canary is not None and canary.on):
            return True
        enabled = self.state not in (None, State.DISABLED)
        return enabled and (unobserved[-1:] == [True] or unwatched or self.state is State.UNKNOWN)


def has(spans: Spans, at: float) -> bool:
    return any(since < at < until for since, until in spans)


def test_time_divides_as_the_plainest_reading_says() -> None:
    seen: Counter[str] = Counter()
    for seed in range(12):
        r = Random(seed)
        fleet = draw_fleet(r)
        world = SimpleWorld(fleet, seed=seed)
        simulator = Simulator(fleet, world, seed=seed)
        faults = Faults(r, simulator, world)
        for number in range(25):
            simulator.at(60.0 + 80.0 * number, faults)
        simulator.at(500.0, partial(simulator.request, "maintenance", everything=True, duration=200.0))
        simulator.run(2400.0)
        records = list(simulator.records)
        timelines = Timelines(records)
        times = sorted({record.at for record in records} | {2400.0})
        for name in timelines.services:
            lived = timelines.lived(name, 2400.0)
            for _ in range(40):
                place = r.randrange(len(times) - 1)
                at = (times[place] + times[place + 1]) / 2
                instant = Instant(records, name, at)
                enabled = instant.state not in (None, State.DISABLED)
                expected = (enabled, instant.down, instant.planned and enabled, instant.blind)
                asked = (lived.enabled, lived.down, lived.planned & lived.enabled, lived.blind)
                found = tuple(has(spans, at) for spans in asked)
                assert found == expected, (seed, name, at)
                words = ("enabled", "down", "planned", "blind")
                seen.update(word for word, so in zip(words, expected, strict=True) if so)
    assert min(seen[word] for word in ("enabled", "down", "planned", "blind")) > 50, seen
