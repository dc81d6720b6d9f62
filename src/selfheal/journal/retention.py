"""How long results are kept, and the hourly roll-ups that outlive them.

Records are never removed. A result is removed only after it has been rolled up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil, floor, inf, log
from typing import Any, Final

import attrs

from selfheal.core.messages import CheckFinished, Started, WokeLate
from selfheal.core.model import State, Verdict
from selfheal.core.records import Moved
from selfheal.journal.store import BUCKETS, Batch, Rollup

HOUR: Final = 3600.0
DAY: Final = 86400.0


@attrs.frozen(kw_only=True)
class Keep:
    """How many seconds of journal time inputs are kept: those that caused records, and those in runs.

    Runs are kept longer because they are small. Replay reaches as far back as both are there.
    """

    inputs: float = 14 * DAY
    runs: float = 60 * DAY

    def __attrs_post_init__(self) -> None:
        if not 0 < self.inputs <= self.runs:
            raise ValueError(f"inputs ({self.inputs:g} s) must be kept for some time, and no longer than runs")


def hour_of(wall: float) -> float:
    """Return the UNIX time at which the hour of `wall` began."""
    return floor(wall / HOUR) * HOUR


class _Hour:
    """A roll-up while it is being counted."""

    __slots__ = ("buckets", "counts", "high", "low", "observed", "total")

    def __init__(self) -> None:
        self.counts = dict.fromkeys(Verdict, 0)
        self.observed = 0.0
        self.low = inf
        self.high = 0.0
        self.total = 0.0
        self.buckets: dict[int, int] = {}

    def add(self, verdict: Verdict, latency: float) -> None:
        self.counts[verdict] += 1
        if verdict is Verdict.PASSING or verdict is Verdict.WARNING:
            if latency < self.low:
                self.low = latency
            if latency > self.high:
                self.high = latency
            self.total += latency
            bucket = ceil(log(max(1e-09, latency)) / BUCKETS)
            self.buckets[bucket] = self.buckets.get(bucket, 0) + 1


class Folding:
    """Counts batches, in order, into hours of services.

    `number` is the last batch that was counted, `seen` when each service was last looked at: both go on from one
    folding to the next. Between two results of a service it was observed, unless a restart, a sleep or a disabling
    lies between them.
    """

    def __init__(self, seen: Mapping[str, float], number: int = 0) -> None:
        self.seen = dict(seen)
        self.number = number
        self._hours: dict[tuple[str, float], _Hour] = {}

    def add(self, batch: Batch) -> None:
        """Count one batch."""
        self.number = batch.number
        event = batch.input
        if isinstance(event, CheckFinished):
            key = (event.service, hour_of(batch.wall))
            hour = self._hours.get(key)
            if hour is None:
                hour = self._hours[key] = _Hour()
            hour.add(event.result.verdict, event.ended - event.started)
            before = self.seen.get(event.service)
            if before is not None and event.at > before:
                hour.observed += event.at - before
            self.seen[event.service] = event.at
        elif isinstance(event, (Started, WokeLate)):
            self.seen.clear()
        for record in batch.records:
            if isinstance(record, Moved) and record.after.state is State.DISABLED:
                self.seen.pop(record.service, None)

    def __len__(self) -> int:
        return len(self._hours)

    def rollups(self) -> list[Rollup]:
        """Return what was counted."""
        return [
            Rollup(
                service=service,
                hour=hour,
                passing=counted.counts[Verdict.PASSING],
                warning=counted.counts[Verdict.WARNING],
                failing=counted.counts[Verdict.FAILING],
                inconclusive=counted.counts[Verdict.INCONCLUSIVE],
                observed=counted.observed,
                latency_min=counted.low,
                latency_max=counted.high,
                latency_sum=counted.total,
                buckets=counted.buckets,
            )
            for (service, hour), counted in self._hours.items()
        ]


def merged(one: Rollup, other: Rollup) -> Rollup:
    """Return two parts of one hour as one."""
    buckets = dict(one.buckets)
    for bucket, count in other.buckets.items():
        buckets[bucket] = buckets.get(bucket, 0) + count
    return Rollup(
        service=one.service,
        hour=one.hour,
        passing=one.passing + other.passing,
        warning=one.warning + other.warning,
        failing=one.failing + other.failing,
        inconclusive=one.inconclusive + other.inconclusive,
        observed=one.observed + other.observed,
        latency_min=min(one.latency_min, other.latency_min),
        latency_max=max(one.latency_max, other.latency_max),
        latency_sum=one.latency_sum + other.latency_sum,
        buckets=buckets,
    )


def rollup_bytes(rollup: Rollup) -> bytes:
    """Return a roll-up as it is stored, without its service and hour, which are the row's key."""
    body: dict[str, Any] = {
        "v": 1,
        "counts": [rollup.passing, rollup.warning, rollup.failing, rollup.inconclusive],
        "observed": rollup.observed,
    }
    if rollup.buckets:
        body["latency"] = [rollup.latency_min, rollup.latency_max, rollup.latency_sum]
        body["buckets"] = sorted(rollup.buckets.items())
    return json.dumps(body, separators=(",", ":")).encode()


def rollup_from(service: str, hour: float, data: bytes) -> Rollup:
    """Return the roll-up that `rollup_bytes` stored. Raises `ValueError` and its like for other bytes."""
    body = json.loads(data)
    passing, warning, failing, inconclusive = body["counts"]
    low, high, total = body.get("latency", (inf, 0.0, 0.0))
    return Rollup(
        service=service,
        hour=hour,
        passing=passing,
        warning=warning,
        failing=failing,
        inconclusive=inconclusive,
        observed=body["observed"],
        latency_min=low,
        latency_max=high,
        latency_sum=total,
        buckets=dict(body.get("buckets", ())),
    )
