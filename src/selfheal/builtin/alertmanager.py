"""The notifier for Prometheus Alertmanager, by its API v2.

Owns how a notification becomes an alert there. Grouping, silencing, routing and repeating are Alertmanager's; here is
only this:

- **Identity.** Alertmanager knows an alert by its labels, so FIRING and RESOLVED of one matter carry the same ones:
  `alertname`, `service`, `severity`, `incident` or `matter`, `fleet`, and yours. The severity is the one that may
  change on the way; therefore every message that is not the first also ends the alerts of the other severities.
- **Staying alive.** `endsAt` is far ahead (`alive_for`), so an alert outlives a restart of ours: a healer that died
  has not resolved anything. Alertmanager itself keeps its alerts in memory only, and forgets them when it restarts;
  therefore the outbox sends what is open again every `refresh` seconds, and what was resolved for another 15 minutes,
  as Prometheus does.
- **Ending.** RESOLVED has an `endsAt` a little in the past, because an end in Alertmanager's future is no end yet.
- **Several.** Each is told everything, as a cluster of Alertmanagers wants it. One that takes it is enough; the others
  hear it at the next refresh.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import anyio
import attrs

from selfheal.builtin.http_client import SEE_URL, Ask, check_headers, check_url, neutral, obstacle
from selfheal.builtin.notices import delivered, matter, utc
from selfheal.core.bounds import seconds
from selfheal.core.model import Notification, Phase, Severity
from selfheal.errors import NotificationFailed, Problem
from selfheal.plugins import Context
from selfheal.secret import Secret

Url: TypeAlias = "str | Secret"

SKEW: Final = 30.0
"""Seconds that Alertmanager's clock may be behind ours without a resolution being taken for a plan."""

_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OURS: Final = frozenset({"alertname", "service", "severity", "incident", "matter", "fleet"})


def _urls(value: object) -> object:
    return (value,) if isinstance(value, (str, Secret)) else tuple(value) if isinstance(value, list) else value


def _check_urls(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not value:
        raise ValueError(f"{attribute.name}: give the URL of at least one Alertmanager")
    for one in value:
        check_url(instance, attribute, one)


def _check_labels(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, str]) -> None:
    for name, content in value.items():
        if _LABEL.fullmatch(name) is None:
            raise ValueError(f"{attribute.name}: {name!r} is no label; letters, digits and _ only, no digit first")
        if name in _OURS - {"fleet"}:
            raise ValueError(f"{attribute.name}: {name} is set by selfheal; choose another name")
        if not isinstance(content, str):
            raise TypeError(f"{attribute.name}.{name}: {content!r} is not text")


@attrs.frozen(kw_only=True)
class AlertmanagerNotifier:
    """Fire and resolve alerts in one or several Prometheus Alertmanagers.

    `url` is the base of one (`http://127.0.0.1:9093`), or a list. `labels` are added to every alert; route on them or
    on `severity` and `service`. `alive_for` seconds after the last word from us an alert ends by itself; `refresh` is
    how often, in seconds, open alerts are sent again. `private`, true here because an Alertmanager is a neighbour,
    allows loopback and private addresses.
    """

    kind: ClassVar[str] = "alertmanager"

    url: tuple[Url, ...] = attrs.field(converter=_urls, validator=_check_urls, repr=False)
    fleet: str = ""
    alertname: str = "ServiceNeedsAttention"
    labels: Mapping[str, str] = attrs.field(factory=dict, validator=_check_labels)
    headers: Mapping[str, str | Secret] = attrs.field(factory=dict, validator=check_headers, repr=False)
    alive_for: float = seconds(86400.0, 60.0)
    refresh: float = seconds(60.0, 1.0)
    private: bool = True
    verify: bool = True
    authority: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    timeout: float = seconds(10.0, 0.1, 600.0)

    async def send(self, notification: Notification, context: Context) -> str | None:
        body = json.dumps(self.alerts(notification, time.time()), ensure_ascii=False).encode(errors="replace")
        failures: dict[int, Exception] = {}

        async def tell(number: int) -> None:
            try:
                await delivered(context, self._ask(number - 1, body))
            except Exception as problem:  # noqa: BLE001  # whatever it is, it is the end of this one only
                failures[number] = problem

        async with anyio.create_task_group() as tasks:
            for number in range(1, len(self.url) + 1):
                tasks.start_soon(tell, number)
        if len(failures) < len(self.url):
            return matter(notification)
        failed: list[tuple[int, NotificationFailed]] = []
        for number, problem in sorted(failures.items()):
            if not isinstance(problem, NotificationFailed):
                raise problem
            failed.append((number, problem))
        waits = [problem.retry_after for _, problem in failed if problem.retry_after is not None]
        raise NotificationFailed(
            "; ".join(str(problem) if len(self.url) == 1 else f"number {n}: {problem}" for n, problem in failed),
            retry_after=min(waits) if waits else None,
            permanent=all(problem.permanent for _, problem in failed),
        )

    async def doctor(self, context: Context) -> Sequence[Problem]:
        """Return what would keep each of them from being told; nothing is sent."""
        found = []
        for number in range(len(self.url)):
            left = context.remaining / (len(self.url) + 1)
            why = await context.blocking(
                obstacle, attrs.evolve(self._ask(number, b""), timeout=min(self.timeout, left))
            )
            if why:
                place = "url" if len(self.url) == 1 else f"url[{number}]"
                found.append(Problem(path=place, message=why, hint=SEE_URL))
        return found

    def alerts(self, notification: Notification, now: float) -> list[dict[str, Any]]:
        """Return what is posted for a notification at UNIX time `now`: the alert, and the ends of its other selves."""
        severity = notification.severity
        alerts = [self._alert(notification, severity, now, ends=notification.phase is Phase.RESOLVED)]
        if notification.phase is not Phase.FIRING:
            alerts += [self._alert(notification, other, now, ends=True) for other in Severity if other is not severity]
        return alerts

    def _alert(self, notification: Notification, severity: Severity, now: float, *, ends: bool) -> dict[str, Any]:
        end = now - SKEW if ends else now + self.alive_for
        alert: dict[str, Any] = {
            "labels": self._labels(notification, severity),
            "annotations": self._annotations(notification),
            "startsAt": utc(min(notification.since or now, end)),
            "endsAt": utc(end),
        }
        if notification.link is not None and notification.link.startswith(("http://", "https://")):
            alert["generatorURL"] = notification.link
        return alert

    def _labels(self, notification: Notification, severity: Severity) -> dict[str, str]:
        labels = {
            **self.labels,
            "alertname": self.alertname,
            "service": notification.service,
            "severity": severity.value,
            "incident": "" if notification.incident is None else str(notification.incident),
            # Without an incident the number cannot tell two matters of one service apart.
            "matter": matter(notification) if notification.incident is None else "",
        }
        if self.fleet:
            labels["fleet"] = self.fleet
        return {name: neutral(value, 500) for name, value in labels.items() if value}

    def _annotations(self, notification: Notification) -> dict[str, str]:
        annotations = {
            "summary": notification.title,
            "description": notification.text,
            "correlation": notification.correlation,
            "notification": notification.id,
        }
        return {name: neutral(value, keep="\n") for name, value in annotations.items() if value}

    def _ask(self, number: int, body: bytes) -> Ask:
        base = self.url[number]
        return Ask(
            method="POST",
            url=_api(base) if isinstance(base, str) else Secret(lambda: _api(base.reveal()), source=base.source),
            headers={**self.headers, "Content-Type": "application/json"},
            body=body,
            private=self.private,
            verify=self.verify,
            authority=self.authority,
            timeout=self.timeout,
        )


def _api(base: str) -> str:
    """Return the URL of the alerts of the Alertmanager at `base`; a query (a tenant, say) stays behind the path."""
    path, mark, query = base.strip().partition("?")
    return path.rstrip("/") + "/api/v2/alerts" + mark + query
