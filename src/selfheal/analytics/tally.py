"""What a scrape asks for, counted as the records come: steps by what came of them, how long repairs took, uptime.

A fold that goes on where it stood, so that an answer costs what has happened since the last one and not the whole
journal. It counts what `repairs` and `timeline` read out of the records, and reads nothing out of them itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, Final

import attrs

from selfheal.analytics import repairs, timeline
from selfheal.analytics.availability import (
    Days,
    Numbers,
    availability,
    daily,
    fleet_share,
    numbers,
    reliability,
    weeks,
)
from selfheal.analytics.repairs import Outcome, Repair, Repairs
from selfheal.analytics.timeline import Lived, Timelines
from selfheal.core.records import IncidentOpened, Record

KINDS: Final = tuple(sorted({*timeline.KINDS, *repairs.KINDS, "incident_opened"}))
"""The records that are counted."""

BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds, in seconds, of the buckets of repair times.

The first proof that a gentle step helped comes about 2 s after it, that a disruptive one did after 15 s; an attempt is
given 300 s.
"""

_ALL: Final = frozenset({"doubted", "fleet_set", "hold_changed", "resumed", "suppression_changed"})
"""The records that divide the time of every service anew, and not of one."""


@attrs.define
class Durations:
    """How long something took, in buckets: `counts` has one more entry than `BOUNDS`, and does not add up."""

    counts: list[int] = attrs.field(factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@attrs.frozen
class _Standing:
    """How much of a service's time was observed and down at `at`, and whether each of them grows since."""

    at: float
    observed: float
    down: float
    observing: bool
    falling: bool

    def uptime(self, at: float) -> float | None:
        passed = max(0.0, at - self.at)
        observed = self.observed + passed * self.observing
        down = self.down + passed * self.falling
        return 1.0 - down / observed if observed > 0.0 else None


class Tally:
    """Folds records, in their order, into the numbers of a scrape and of the statistics."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._lives = Timelines()
        self._steps = Repairs()
        self._incidents: dict[int, float] = {}
        self._attempts: Counter[tuple[str, str, str]] = Counter()
        self._durations: dict[tuple[str, str], Durations] = {}
        self._lived: dict[str, Lived] = {}
        self._standings: dict[str, _Standing] = {}
        for record in records:
            self.take(record)

    @property
    def attempts(self) -> Mapping[tuple[str, str, str], int]:
        """How many steps had which end, by service, action and `Outcome`; those whose end is open are not counted."""
        return self._attempts

    @property
    def durations(self) -> Mapping[tuple[str, str], Durations]:
        """By service and action, how long it was from the intent of a step until checks proved the service well."""
        return self._durations

    @property
    def at(self) -> float:
        """When the last record was, in journal time."""
        return self._lives.at

    def take(self, record: Record) -> None:
        """Take in the next record; one of a kind that is not in `KINDS` only moves the time."""
        self._lives.take(record)
        over = self._steps.take(record)
        if over is not None:
            self._count(over)
        if isinstance(record, IncidentOpened):
            self._incidents.setdefault(record.incident.number, record.at)
        if record.kind in _ALL:
            self._lived.clear()
            self._standings.clear()
        elif record.kind in timeline.KINDS:
            service = getattr(record, "service", "")
            self._lived.pop(service, None)
            self._standings.pop(service, None)

    def lived(self, service: str) -> Lived:
        """Return how the time of a service divides, what lasts without an end. Raises `KeyError`."""
        known = self._lived.get(service)
        if known is None:
            known = self._lived[service] = self._lives.lived(service, inf)
        return known

    # -- a window ------------------------------------------------------------------------------------------------------

    def statistics(
        self, *, until: float, wall: float, service: str | None = None, window: float | None = None, days: int = 0
    ) -> dict[str, Any]:
        """Return the numbers of every service, or of one, and of all together.

        `until` is where the journal ends, in journal time, and `wall` its UNIX time; `window` is how many seconds
        before it are looked at, all by default. With `days` it is also said how each of the last so many days went.
        Raises `KeyError` for a service that was never heard of.
        """
        until = max(until, self._lives.at)
        began = self._lives.began if self._lives.began is not None else until
        since = began if window is None else max(began, until - window)
        if service is not None:
            self.lived(service)
        met = {name: weeks(self.lived(name), until) for name in self._lives.services}
        share = fleet_share(met.values())
        found = {
            name: numbers(
                self.lived(name),
                self._steps.of.get(name, ()),
                since=since,
                until=until,
                score=reliability(met[name], share),
            )
            for name in self._lives.services
            if service in (None, name)
        }
        services = {name: one.shape() for name, one in found.items()}
        if days:
            calendar = Days.until(until, wall, days)
            for name, shown in services.items():
                shown["days"] = daily(self.lived(name), calendar)
        answer: dict[str, Any] = {
            "incidents": sum(since <= at <= until for at in self._incidents.values()),
            "window_seconds": until - since,
        }
        if service is None:
            score = None if share is None else 100.0 * share
            answer["fleet"] = Numbers.together(list(found.values()), since=since, until=until, score=score).shape()
        return {**answer, "services": services}

    # -- all time ------------------------------------------------------------------------------------------------------

    def uptime(self, service: str, at: float) -> float | None:
        """Return the share of its observed time that a service was up, from its first record to the instant `at`.

        None where nothing was observed. The same number as `availability` gives: between two records every stretch
        of time either grows with the clock or stands still.
        """
        if service not in self._standings and service in self._lives.services:
            self._standings[service] = self._stand(service, max(at, self._lives.at))
        known = self._standings.get(service)
        return None if known is None else known.uptime(at)

    def _stand(self, service: str, at: float) -> _Standing:
        began = self._lives.began or 0.0
        lived = self.lived(service)
        so_far, next_second = availability(lived, began, at), availability(lived, at, at + 1.0)
        return _Standing(
            at=at,
            observed=so_far.observed,
            down=so_far.down,
            observing=next_second.observed > 0.5,
            falling=next_second.down > 0.5,
        )

    def _count(self, step: Repair) -> None:
        """Count a step whose end is known by now."""
        assert step.outcome is not None
        self._attempts[step.service, step.action, step.outcome.value] += 1
        if step.outcome is Outcome.SUCCESS and step.seconds is not None:
            self._durations.setdefault((step.service, step.action), Durations()).add(step.seconds)
