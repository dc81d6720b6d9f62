"""What a scrape asks for, counted as the records come: steps by what came of them, how long repairs took, uptime.

A fold that goes on where it stood, so that an answer costs what has happened since the last one and not the whole
journal. It counts what `repairs` and `timeline` read out of the records, and reads nothing out of them itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from selfheal.analytics import repairs, timeline
from selfheal.analytics.availability import availability
from selfheal.analytics.repairs import Outcome, Repairs
from selfheal.analytics.timeline import Timelines
from selfheal.core.records import Record

KINDS: Final = tuple(sorted({*timeline.KINDS, *repairs.KINDS}))
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
    """Folds records, in their order, into the numbers of a scrape."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._lives = Timelines()
        self._steps = Repairs()
        self._attempts: Counter[tuple[str, str, str]] = Counter()
        self._durations: dict[tuple[str, str], Durations] = {}
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

    def take(self, record: Record) -> None:
        """Take in the next record; one of a kind that is not in `KINDS` only moves the time."""
        self._lives.take(record)
        self._steps.take(record)
        if record.kind in repairs.KINDS:
            self._count()
        if record.kind in _ALL:
            self._standings.clear()
        elif record.kind in timeline.KINDS:
            self._standings.pop(getattr(record, "service", ""), None)

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
        lived = self._lives.lived(service, at + 1.0)
        so_far, next_second = availability(lived, began, at), availability(lived, at, at + 1.0)
        return _Standing(
            at=at,
            observed=so_far.observed,
            down=so_far.down,
            observing=next_second.observed > 0.5,
            falling=next_second.down > 0.5,
        )

    def _count(self) -> None:
        """Count the steps whose end is known by now; what is counted is forgotten."""
        over = [step for step in self._steps.all if step.outcome is not None]
        if not over:
            return
        self._steps.all = [step for step in self._steps.all if step.outcome is None]
        for step in over:
            assert step.outcome is not None
            self._attempts[step.service, step.action, step.outcome.value] += 1
            if step.outcome is Outcome.SUCCESS and step.seconds is not None:
                self._durations.setdefault((step.service, step.action), Durations()).add(step.seconds)
