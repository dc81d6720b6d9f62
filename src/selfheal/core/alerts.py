"""Alerts: which matters are open, by severity. Who is told is `routing`'s business.

At most one alert is open per service and rule. What *should* be open follows from a service's condition alone
(`wanted`), so alerts cannot drift from the state they tell of; `changes` yields the difference. Sticky rules stay
open until the service is well again: a page must not flutter while a slow retry runs. Suppression plays no part
here, so no resolution is ever lost (law 14).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from selfheal.core.guards import CANNOT_RUN, PARENT_OFF, SERVICE_BUDGET
from selfheal.core.ledger import Ledger, alert_key
from selfheal.core.model import (
    INSPECTION_FAILED,
    Alert,
    Cause,
    Condition,
    Severity,
    State,
)
from selfheal.core.records import AlertChanged, Record

DOWN: Final = frozenset({State.FAILED, State.RECOVERING})

SERVICE_RULES: Final[Mapping[str, Severity]] = {
    "unattended": Severity.CRITICAL,
    "failed": Severity.HIGH,
    "flapping": Severity.HIGH,
    "in_doubt": Severity.HIGH,
    "recovering": Severity.MEDIUM,
    "degraded": Severity.MEDIUM,
    "warning": Severity.LOW,
    "unobserved": Severity.LOW,
}
"""Every rule about one service, with its severity."""

FLEET_RULES: Final[Mapping[str, Severity]] = {
    "journal": Severity.CRITICAL,
    "storm": Severity.CRITICAL,
    "canary": Severity.CRITICAL,
    "doubt": Severity.HIGH,
    "budget": Severity.CRITICAL,
    "fleet": Severity.HIGH,
}
"""Every rule about the fleet; each but `budget` is the hold of the same name."""

STICKY: Final = ("unattended", "flapping", "in_doubt")
"""Rules that stay open until the service is well, disabled or gone."""

SHORT: Final = (Cause.FULL, Cause.READ_ONLY)
"""Causes of a warning that is told as DEGRADED is, and not as a warning."""

UNATTENDED: Final[Mapping[str, tuple[str, ...]]] = {
    "escalated": ("",),
    "held:cause": ("",),
    "held:approval": ("",),
    "held:observe": ("",),
    "held:budget": (SERVICE_BUDGET,),
    "held:workload": (INSPECTION_FAILED,),
    "held:doubt": (CANNOT_RUN,),
    "waiting-for": (PARENT_OFF, CANNOT_RUN),
}
"""Reasons for which a service is down and nobody acts, each with how its detail must begin.

Holds of the fleet, its budget among them, have alerts of their own. A cooldown is a backoff by another name. A person
who stopped a workload knows; a new instance is being looked at; a parent that is down is told itself, one that is
disabled or cannot be checked is not.
"""


def unattended(condition: Condition) -> bool:
    """Whether a service that is down waits for what only people can do."""
    kind = "waiting-for" if condition.reason.startswith("waiting-for:") else condition.reason
    return condition.detail.startswith(UNATTENDED.get(kind, ()))


def wanted(condition: Condition) -> dict[str, str]:
    """Return the rules that a condition calls for, with the text of each."""
    c = condition
    cause = f" ({c.cause.value})" if c.cause is not None else ""
    if c.state in DOWN:
        rules = {"failed": f"confirmed down{cause}"}
        if c.state is State.RECOVERING:
            rules["recovering"] = f"attempt {c.attempt}, step {c.cursor + 1}"
        elif unattended(c):
            # The number of attempts grows with every slow retry; people were told once that all are used.
            detail = f", {c.detail}" if c.detail and c.reason != "escalated" else ""
            rules["unattended"] = f"down{cause} and nobody acts: {c.reason}{detail}"
        elif c.reason == "held:flapping":
            rules["flapping"] = f"not restarted again: {c.detail}"
        return rules
    if c.state is State.DEGRADED:
        if c.reason == "warning":
            # Who is nearly full, or refuses writes, serves with something missing: that is no hint for the morning.
            return {"degraded" if c.cause in SHORT else "warning": c.detail or "a check warns"}
        return {"degraded": c.reason + (f": {c.detail}" if c.detail else "")}
    return {}


def changes(ledger: Ledger, name: str, condition: Condition, now: float) -> Iterator[Record]:
    """Yield the records that bring the open alerts of a service in line with its condition."""
    rules = wanted(condition)
    root = ledger.root_of(condition.incident)
    folded = root is not None and root != name
    for rule, severity in SERVICE_RULES.items():
        open_alert = ledger.alerts.get(alert_key(name, rule))
        if rule in rules:
            yield from _opened(ledger, name, rule, severity, rules[rule], condition, now, folded=folded)
        elif open_alert is not None:
            if rule == "unobserved" and condition.state is not State.DISABLED:
                continue
            if rule in STICKY and condition.state in DOWN:
                if open_alert.incident != condition.incident or open_alert.folded != folded:
                    moved = attrs.evolve(open_alert, incident=condition.incident, folded=folded)
                    yield AlertChanged(at=now, service=name, alert=moved, open=True, because="folded")
                continue
            yield resolved(open_alert, now, because=f"{condition.state.value}")


def _opened(
    ledger: Ledger,
    name: str,
    rule: str,
    severity: Severity,
    text: str,
    condition: Condition,
    now: float,
    *,
    folded: bool,
) -> Iterator[Record]:
    open_alert = ledger.alerts.get(alert_key(name, rule))
    if open_alert is None:
        yield new(
            ledger,
            name,
            rule,
            severity,
            text,
            now,
            incident=condition.incident,
            folded=folded,
            correlation=condition.correlation,
        )
    elif (open_alert.incident, open_alert.folded) != (condition.incident, folded) or (
        rule in STICKY and open_alert.text != text
    ):
        # Who knows of one matter does not know of the next.
        by = open_alert.acknowledged_by if rule not in STICKY or _matter(open_alert.text) == _matter(text) else ""
        alert = attrs.evolve(open_alert, incident=condition.incident, folded=folded, text=text, acknowledged_by=by)
        yield AlertChanged(at=now, service=name, alert=alert, open=True, because="changed")


def _matter(text: str) -> str:
    """What a sticky alert asks of people: the reason, without what else is told with it."""
    return text.partition("nobody acts: ")[2].partition(",")[0]


def new(
    ledger: Ledger,
    name: str,
    rule: str,
    severity: Severity,
    text: str,
    now: float,
    *,
    incident: int | None = None,
    folded: bool = False,
    correlation: str = "",
) -> Record:
    """Return the record that opens an alert."""
    alert = Alert(
        id=f"a{ledger.last_alert + 1}",
        service=name,
        rule=rule,
        severity=severity,
        since=now,
        text=text,
        incident=incident,
        folded=folded,
        correlation=correlation,
    )
    return AlertChanged(at=now, service=name, alert=alert, open=True, because=text)


def resolved(alert: Alert, now: float, because: str, actor: str = "") -> Record:
    """Return the record that resolves an alert."""
    return AlertChanged(at=now, service=alert.service, alert=alert, open=False, because=because, actor=actor)


def acknowledged(ledger: Ledger, name: str, actor: str, now: float) -> Iterator[Record]:
    """Yield the records that mark the open alerts of a service (or, with an empty name, of the fleet) as known."""
    rules = SERVICE_RULES if name else FLEET_RULES
    for rule in rules:
        alert = ledger.alerts.get(alert_key(name, rule))
        if alert is not None and not alert.acknowledged_by:
            known = attrs.evolve(alert, acknowledged_by=actor)
            yield AlertChanged(at=now, service=name, alert=known, open=True, because="acknowledged", actor=actor)


def withdrawn(ledger: Ledger, name: str, now: float, because: str) -> Iterator[Record]:
    """Yield the records that resolve everything open about a service that is watched no more."""
    for rule in SERVICE_RULES:
        alert = ledger.alerts.get(alert_key(name, rule))
        if alert is not None:
            yield resolved(alert, now, because)
