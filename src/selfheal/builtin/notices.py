"""What all notifiers share: what a notification is about, and what the end of an HTTP exchange means for delivery."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

from selfheal.builtin.http_client import Answer, Ask, NoAnswer, exchange
from selfheal.core.model import Notification
from selfheal.errors import NotificationFailed
from selfheal.plugins import Context


def matter(notification: Notification) -> str:
    """Return what a notification is about: the same from FIRING to RESOLVED, and for nothing else.

    An incident is one matter, whatever joins it. What has no incident is told apart by its correlation, or by the
    service alone.
    """
    if notification.incident is not None:
        return f"incident-{notification.incident}"
    about = notification.service or "fleet"
    return f"{about}/{notification.correlation}" if notification.correlation else about


def utc(at: float) -> str | None:
    """Return a UNIX time as RFC 3339 in UTC; None for 0, which says that it is not known."""
    if not at or not isfinite(at):
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def header_safe(text: str) -> str:
    """Return `text` as the value of a header: what HTTP forbids there becomes `?`."""
    return "".join(c if "!" <= c <= "~" else "?" for c in text)


async def delivered(context: Context, ask: Ask) -> Answer:
    """Return the 2xx answer to `ask`. Raises `NotificationFailed` for every other end (see `refusal`)."""
    words = ""
    try:
        answer = await exchange(context, ask)
    except NoAnswer as problem:
        words = str(problem)
    if words:
        raise NotificationFailed(words)
    failure = refusal(answer)
    if failure is not None:
        raise failure
    return answer


def refusal(answer: Answer) -> NotificationFailed | None:
    """Return what a status means for delivery: None delivered (2xx), or the failure, permanent or not.

    408, 425, 429 and 5xx pass, and a `Retry-After` with them is the receiver's wish. Any other 4xx, and a redirect,
    would be the same the next time.
    """
    status = answer.status
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return NotificationFailed(
            f"answered {status}: redirects are not followed; configure the final address", permanent=True
        )
    said = answer.plain(answer.body.decode(errors="replace").strip())
    words = f"answered {status}" + (f": {said}" if said else "")
    if status >= 500 or status in (408, 425, 429):
        return NotificationFailed(words, retry_after=retry_after(answer.headers.get("retry-after", "")))
    return NotificationFailed(words, permanent=True)


def retry_after(value: str) -> float | None:
    """Return the seconds that a `Retry-After` asks for (a number, or a date against our clock), None if it does not."""
    value = value.strip()
    if value.isascii() and value.isdecimal() and len(value) <= 9:
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time.time())
