"""A talk: one matter with one notifier, and the route that says how patiently it is told.

Owns what is news to whom, when the next message of a talk is due, and what its messages have told so far. Which talks
there are, and what is sent, is decided by `routing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf
from typing import Final

import attrs

from selfheal.core.bounds import seconds
from selfheal.core.model import Alert, Notification, Severity

LOST_AFTER: Final = 90_000.0
"""Seconds after which a message whose end was not reported counts as refused. The outbox gives up within 24 h."""


@attrs.frozen(kw_only=True)
class Deliver:
    """Hand a notification to a notifier. `alerts` are the ids it tells of, or whose end it tells."""

    notifier: str
    notification: Notification
    alerts: tuple[str, ...] = ()


def _severities(values: Iterable[Severity]) -> frozenset[Severity]:
    return frozenset(values)


@attrs.frozen(kw_only=True)
class Route:
    """What one notifier is told, and how patiently. Of several of one notifier the first that takes an alert counts.

    `services` None takes all, and the fleet's own alerts with them; an empty tuple takes none (law 19). Grouping in
    seconds (30, 300, 14,400) is as in Alertmanager. `critical_at_once` spares critical alerts both waits. After
    `escalate_after` seconds without an acknowledgement the talk is opened with `escalate_to` as well.
    """

    notifier: str
    severities: frozenset[Severity] = attrs.field(default=frozenset(Severity), converter=_severities)
    services: tuple[str, ...] | None = None
    group_wait: float = seconds(30.0)
    group_interval: float = seconds(300.0, 1.0)
    repeat_interval: float = seconds(14_400.0, 1.0)
    critical_at_once: bool = True
    send_resolved: bool = True
    escalate_after: float | None = seconds(None, 1.0)
    escalate_to: str = ""

    def __attrs_post_init__(self) -> None:
        if (self.escalate_after is None) != (not self.escalate_to):
            raise ValueError("escalate_after and escalate_to: give both, or neither")
        if self.escalate_to == self.notifier:
            raise ValueError(f"escalate_to: {self.notifier!r} is who does not answer; name another notifier")

    def takes(self, alert: Alert) -> bool:
        """Whether this notifier is told of `alert`."""
        return alert.severity in self.severities and (self.services is None or alert.service in self.services)

    def escalated(self) -> Route:
        """Return the route to whom this one escalates."""
        return attrs.evolve(self, notifier=self.escalate_to, escalate_after=None, escalate_to="")


@attrs.define(eq=False)
class Known:
    """An open alert: since when we know it, under which services a silence finds it, and which talks have it."""

    alert: Alert
    seen: float
    places: tuple[str, ...] = ()
    talks: dict[tuple[str, str], Talk] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Talk:
    """One matter with one notifier. `news` are open alerts to tell, and from when on; `told` those that were.

    `tried` are the open ones that some message of this round had, whether it arrived or not: they are no news.
    """

    route: Route
    key: str
    service: str
    incident: int | None
    correlation: str = ""
    at_once: bool = False
    folded: bool = False
    open: dict[str, Known] = attrs.field(factory=dict)
    unacknowledged: dict[str, None] = attrs.field(factory=dict)
    news: dict[str, float] = attrs.field(factory=dict)
    ready: float = inf
    owed_at: float = inf
    owed: Deliver | None = None
    tries: int = 0
    because: str = ""
    # the round
    round: str = ""
    number: int = 0
    first: float = inf
    last: float = inf
    in_flight: Deliver | None = None
    offered: float = inf
    known: bool = False
    perhaps: bool = False
    escalated: bool = False
    tried: dict[str, None] = attrs.field(factory=dict)
    told: dict[str, None] = attrs.field(factory=dict)
    who: dict[str, None] = attrs.field(factory=dict)
    worst: Severity = Severity.LOW
    since: float = inf
    receipt: str | None = None

    @property
    def name(self) -> tuple[str, str]:
        return self.route.notifier, self.key

    @property
    def begun(self) -> bool:
        return self.first < inf

    @property
    def message_due(self) -> float:
        """When the next message may be due: early rather than late, because `ready` may have been for what is gone."""
        if self.in_flight is not None:
            return self.offered + LOST_AFTER
        if not self.open:
            return self.owed_at
        return min(self.ready, self.repeat_due)

    @property
    def repeat_due(self) -> float:
        waits = self.unacknowledged and not self.folded
        return self.last + self.route.repeat_interval if waits else inf

    @property
    def escalation_due(self) -> float:
        if self.route.escalate_after is None or self.escalated or self.folded or not self.unacknowledged:
            return inf
        return self.first + self.route.escalate_after

    def has_told(self, id_: str) -> bool:
        """Whether the notifier was told of an alert, or is being told."""
        return id_ in self.told or (self.in_flight is not None and id_ in self.in_flight.alerts)

    def wait_for(self, alert: Alert, now: float, seen: float) -> float:
        """When an alert that is news since `now` may be told."""
        if self.at_once or (self.route.critical_at_once and alert.severity is Severity.CRITICAL):
            return now
        if not self.begun:
            return max(now, seen + self.route.group_wait)
        every = self.route.group_interval
        return max(now, self.first + every * max(1, ceil((now - self.first) / every)))

    def sort(self, known: Known, now: float, *, muted: bool, ended_silence: bool = False) -> None:
        """Put an open alert where it belongs: news or not, unacknowledged or not; what is muted is neither."""
        alert = known.alert
        if muted or alert.acknowledged_by:
            self.unacknowledged.pop(alert.id, None)
        else:
            self.unacknowledged[alert.id] = None
        if muted:
            self.news.pop(alert.id, None)
        elif alert.id not in self.news and alert.id not in self.tried:
            told_then = ended_silence and self.begun
            self.news[alert.id] = when = now if told_then else self.wait_for(alert, now, known.seen)
            self.ready = min(self.ready, when)
        if not self.news:
            self.ready = inf

    def drop(self, id_: str, now: float, because: str) -> None:
        """An alert is open no more, or belongs elsewhere."""
        del self.open[id_]
        self.news.pop(id_, None)
        self.unacknowledged.pop(id_, None)
        self.tried.pop(id_, None)
        if not self.news:
            self.ready = inf
        if not self.open:
            self.owed_at, self.because = now, because
