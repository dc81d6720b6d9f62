"""When a service was watched, down, degraded, or excused: a fold of records into stretches of journal time.

How time is divided, for one service:

- *enabled*: it belongs to the fleet and is not DISABLED;
- *blind*: enabled, but nobody could tell: selfheal was away or slept (`resumed`, `doubted`), no check of it could run
  (the alert `unobserved`), no canary answered, it was dropped and kept unwatched, or it is still UNKNOWN;
- *planned*: under maintenance;
- *observed*: what is enabled and neither blind nor planned. Only this counts, for and against;
- *down*: from the first failing check of a failure that was confirmed, to its end. A failure that never was confirmed
  is no downtime: it was not believed when it happened either;
- *degraded*: serving, but warned. It is reported apart, and counts as up.

Planned and blind time leave both sides of every fraction: in the history of one large provider, counting 18 announced
maintenances as outages would have added 74 % of downtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from selfheal.analytics.spans import Spans, Stretch
from selfheal.core.alerts import DOWN
from selfheal.core.ledger import WELL
from selfheal.core.model import Binds, Cause, State, Suppression
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

KINDS: Final = (
    "alert_changed",
    "doubted",
    "fleet_set",
    "hold_changed",
    "moved",
    "resumed",
    "suppression_changed",
)
"""The records that say how time is divided."""


@attrs.define(kw_only=True)
class Failure:
    """A confirmed failure of one service. A relapse goes on with the same one: it had not been repaired.

    `began` is the first failing check, `confirmed` when it was believed, `ended` when checks proved it over (None
    while they have not). `recovered`: after an action; otherwise it healed by itself. `given_up`: it was disabled or
    left the fleet before it was well.
    """

    service: str
    incident: int | None
    began: float
    confirmed: float
    cause: Cause | None = None
    ended: float | None = None
    recovered: bool = False
    given_up: bool = False
    relapses: int = 0

    @property
    def over(self) -> bool:
        """Whether checks have proved it over."""
        return self.ended is not None and not self.given_up


@attrs.define
class _Stretches:
    """Stretches of one kind while they are being read: those that are over, and since when one lasts."""

    over: list[Stretch] = attrs.field(factory=list)
    since: float | None = None

    def set(self, on: bool, at: float) -> None:
        if on and self.since is None:
            self.since = at
        elif not on and self.since is not None:
            self.over.append((self.since, at))
            self.since = None

    def until(self, end: float) -> Spans:
        return Spans(self.over if self.since is None else (*self.over, (self.since, end)))


@attrs.frozen(kw_only=True)
class Lived:
    """How the time of one service divides, up to the moment it was asked for; what goes on without an end has none.

    `observed` is the only time that counts; `fallen` and `warned` are the parts of it that it was down and degraded,
    `excused` the planned part of the time it was enabled.
    """

    enabled: Spans
    blind: Spans
    planned: Spans
    down: Spans
    degraded: Spans
    failures: Sequence[Failure] = ()
    observed: Spans = attrs.field(init=False)
    fallen: Spans = attrs.field(init=False)
    warned: Spans = attrs.field(init=False)
    excused: Spans = attrs.field(init=False)

    @observed.default
    def _observed(self) -> Spans:
        return self.enabled - self.blind - self.planned

    @fallen.default
    def _fallen(self) -> Spans:
        return self.observed & self.down

    @warned.default
    def _warned(self) -> Spans:
        return self.observed & self.degraded

    @excused.default
    def _excused(self) -> Spans:
        return self.planned & self.enabled


@attrs.define
class _Service:
    enabled: _Stretches = attrs.field(factory=_Stretches)
    blind: _Stretches = attrs.field(factory=_Stretches)
    planned: _Stretches = attrs.field(factory=_Stretches)
    down: _Stretches = attrs.field(factory=_Stretches)
    degraded: _Stretches = attrs.field(factory=_Stretches)
    failures: list[Failure] = attrs.field(factory=list)
    state: State | None = None
    unwatched: bool = False
    unobserved: bool = False


class Timelines:
    """Folds records, in their order, into the time of every service."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._services: dict[str, _Service] = {}
        self._away: list[Stretch] = []
        self._canary = _Stretches()
        self._nobody: tuple[float, Spans] | None = None
        self._maintenance: dict[str, Suppression] = {}
        self.began: float | None = None
        self.at = 0.0
        for record in records:
            self.take(record)

    @property
    def services(self) -> tuple[str, ...]:
        """Every service that was ever heard of, in order of the first time."""
        return tuple(self._services)

    def take(self, record: Record) -> None:
        """Take in the next record; one of a kind that is not in `KINDS` only moves the time."""
        self.at = max(self.at, record.at)
        if self.began is None:
            self.began = record.at
        match record:
            case Resumed(at=at, away=seconds) | Doubted(at=at, late=seconds):
                self._away.append((at - seconds, at))
                self._nobody = None
            case HoldChanged(hold="canary", on=on, at=at):
                self._canary.set(on, at)
                self._nobody = None
            case FleetSet():
                self._fleet(record)
            case Moved():
                self._moved(record)
            case AlertChanged() if record.alert.rule == "unobserved" and record.service:
                one = self._of(record.service)
                one.unobserved = record.open
                self._look(one, record.at)
            case SuppressionChanged() if record.suppression.binds is Binds.MAINTENANCE:
                self._plan(record)
            case _:
                pass

    def lived(self, service: str, end: float) -> Lived:
        """Return how the time of a service divides up to `end`, which may be `inf`: then what lasts has no end.

        Raises `KeyError` for one that was never heard of.
        """
        one = self._services[service]
        if self._nobody is None or self._nobody[0] != end:
            self._nobody = (end, Spans(self._away) | self._canary.until(end))
        return Lived(
            enabled=one.enabled.until(end),
            blind=self._nobody[1] | one.blind.until(end),
            planned=one.planned.until(end),
            down=one.down.until(end),
            degraded=one.degraded.until(end),
            failures=tuple(one.failures),
        )

    def _of(self, name: str) -> _Service:
        return self._services.setdefault(name, _Service())

    def _look(self, one: _Service, at: float) -> None:
        """Bring what follows from a service's state, and from who watches it, in line."""
        enabled = one.state is not None and one.state is not State.DISABLED
        one.enabled.set(enabled, at)
        one.blind.set(enabled and (one.unwatched or one.unobserved or one.state is State.UNKNOWN), at)
        one.degraded.set(one.state is State.DEGRADED, at)

    def _fleet(self, record: FleetSet) -> None:
        there = {policy.name for policy in record.fleet.policies}
        for name in there:
            one = self._of(name)
            one.state = one.state or State.UNKNOWN
        for name, one in self._services.items():
            one.unwatched = name in record.unwatched
            if name not in there:
                self._ended(one, record.at, given_up=True)
                one.state = None
            one.planned.set(self._is_planned(name), record.at)
            self._look(one, record.at)

    def _moved(self, record: Moved) -> None:
        one, at = self._of(record.service), record.at
        before, after = record.before, record.after
        one.state = after.state
        if after.state in DOWN and before.state not in DOWN:
            self._failed(one, record)
        elif after.state not in DOWN and one.down.since is not None:
            self._ended(one, at, given_up=after.state not in WELL, recovered=before.state is State.RECOVERING)
        elif after.state in DOWN and one.failures:
            failure = one.failures[-1]
            failure.cause = after.cause or failure.cause
            failure.incident = after.incident if after.incident is not None else failure.incident
        self._look(one, at)

    def _failed(self, one: _Service, record: Moved) -> None:
        before, after = record.before, record.after
        began = before.since if before.state is State.UNHEALTHY else record.at
        one.down.set(True, began)
        last = one.failures[-1] if one.failures else None
        if last is not None and last.incident is not None and last.incident == after.incident:
            last.ended, last.recovered, last.given_up = None, False, False
            last.relapses += 1
            last.cause = after.cause or last.cause
            return
        one.failures.append(
            Failure(
                service=record.service,
                incident=after.incident,
                began=began,
                confirmed=record.at,
                cause=after.cause,
            )
        )

    def _ended(self, one: _Service, at: float, *, given_up: bool, recovered: bool = False) -> None:
        if one.down.since is None:
            return
        one.down.set(False, at)
        failure = one.failures[-1]
        failure.ended, failure.given_up, failure.recovered = at, given_up, recovered and not given_up

    def _plan(self, record: SuppressionChanged) -> None:
        suppression = record.suppression
        if record.on:
            self._maintenance[suppression.id] = suppression
        else:
            self._maintenance.pop(suppression.id, None)
        for name, one in self._services.items():
            if suppression.covers(name):
                one.planned.set(self._is_planned(name), record.at)

    def _is_planned(self, name: str) -> bool:
        return any(suppression.covers(name) for suppression in self._maintenance.values())
