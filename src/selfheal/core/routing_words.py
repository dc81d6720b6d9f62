"""What a message says, for a person woken at 3 a.m.: what, since when, and what selfheal does about it (or nobody)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from selfheal.core.model import Alert

LISTED: Final = 10
"""Lines of a message at most; the rest is counted."""

TITLES: Final = {
    "unattended": "{} is down and nobody acts",
    "failed": "{} is down",
    "flapping": "{} fails again and again",
    "in_doubt": "{}: a repair may or may not have happened",
    "recovering": "{} is being repaired",
    "degraded": "{} is degraded",
    "warning": "{} warns",
    "unobserved": "{} cannot be checked",
    "journal": "selfheal cannot write its journal",
    "storm": "many services fail at once",
    "canary": "no canary answers",
    "doubt": "selfheal itself is late",
    "budget": "the disruptive actions of the fleet are used up",
    "fleet": "a change of the fleet waits for a person",
}
"""What each rule of `alerts` says in a title; an unknown one says its own name."""

CONDUCT: Final = {
    "unattended": "selfheal does not act any further: a person is needed.",
    "flapping": "selfheal does not restart it again for now: a person should look why it fails.",
    "in_doubt": "selfheal does not know whether its repair took place: a person should look.",
    "recovering": "selfheal is repairing it.",
    "failed": "selfheal repairs it unless something holds it back, and tells you when it gives up.",
    "journal": "selfheal goes on checking, and repairs nothing it cannot write down first, unless told to.",
    "storm": "selfheal repairs only what has exited, until fewer fail or a person says so: look for one cause.",
    "canary": "selfheal repairs nothing until a canary answers: its own network may be at fault.",
    "doubt": "selfheal repairs nothing while it distrusts what it sees: look at the load of its host.",
    "budget": "selfheal disrupts nothing until the window lets it: so many repairs at once have a common cause.",
    "fleet": "selfheal keeps the services concerned unwatched until the change is confirmed or taken back.",
}
"""What selfheal does about it. The first rule here that is open speaks; without any, nothing needs to be done."""


def span(duration: float) -> str:
    """Return a duration in seconds in words, in the largest unit of which there are at least two."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if duration >= 2 * size:
            return f"{int(duration / size)} {unit}"
    return f"{int(duration)} s"


def title(alerts: Sequence[Alert]) -> str:
    """Return one line about open alerts, the root's first."""
    head = alerts[0]
    words = TITLES.get(head.rule, f"{{}}: {head.rule}").format(head.service or "the fleet")
    others = len({alert.service for alert in alerts} - {head.service})
    return f"{words}, {others} more with it" if others else words


def text(alerts: Sequence[Alert], now: float) -> str:
    """Return the body of a message about open alerts: each with its age at `now`, and what selfheal does about it."""
    lines = []
    for alert in alerts[:LISTED]:
        known = f" (acknowledged by {alert.acknowledged_by})" if alert.acknowledged_by else ""
        lines.append(f"{alert.service or 'fleet'}: {alert.text or alert.rule}, for {span(now - alert.since)}{known}")
    if len(alerts) > LISTED:
        lines.append(f"and {len(alerts) - LISTED} more")
    rules = {alert.rule for alert in alerts}
    lines.append(
        next(
            (says for rule, says in CONDUCT.items() if rule in rules), "selfheal only watches it: nothing is restarted."
        )
    )
    return "\n".join(lines)


def ended(services: Sequence[str], lasted: float | None, because: str) -> tuple[str, str]:
    """Return title and text of a resolution: whom it concerned, after how many seconds (None: not known), and why."""
    about = ", ".join(services[:3]) + (f" and {len(services) - 3} more" if len(services) > 3 else "")
    over = "Over" if lasted is None else f"Over after {span(lasted)}"
    return f"Resolved: {about}", f"{over}: {because}." if because else f"{over}."
