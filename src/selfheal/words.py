"""Answers in words: records as sentences, seconds as people say them, text without what could move a cursor.

Everything here takes the public shapes of `views`, so that it reads a daemon's answer and a journal's alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def clean(text: object) -> str:
    """Return a text in one line, with everything that does not print shown as an escape: it may come from anywhere."""
    plain = str(text)
    return plain if plain.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)


def counted(number: int, thing: str) -> str:
    """Return a number of things as one says it: `1 service`, `2 canaries`."""
    if number != 1:
        thing = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number} {thing}"


def span(seconds: float | None) -> str:
    """Return a number of seconds in at most two units: `1d 4h`, `3m 20s`, `12s`, `40ms`."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.0f}s"
    left, parts = round(seconds), []
    for size, name in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{name}")
    if left:
        parts.append(f"{left}s")
    return " ".join(parts[:2])


def ago(time: str | None, now: str | None) -> float | None:
    """Return the seconds between two UTC times of an answer."""
    if time is None or now is None:
        return None
    return (datetime.fromisoformat(now) - datetime.fromisoformat(time)).total_seconds()


def clock(time: str | None) -> str:
    """Return a UTC time of an answer by this machine's clock; without the day, if that is today."""
    if time is None:
        return ""
    moment = datetime.fromisoformat(time).astimezone()
    today = datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M:%S")


def _because(record: Mapping[str, Any]) -> str:
    detail = record["reason"]["detail"]
    return f" ({detail})" if detail else ""


def _moved(record: Mapping[str, Any]) -> str:
    code = record["reason"]["code"]
    reason = f", {code}" if code != record["to"] else ""
    came = f"{record['from']} -> " if record["from"] != record["to"] else ""
    return f"{came}{record['to']}{reason}{_because(record)}"


def _intended(record: Mapping[str, Any]) -> str:
    passed = ", ".join(guard["guard"] for guard in record["guards"] if guard["passed_by"])
    if record["actor"]:
        past = f", past {passed}" if passed else ""
        return f"{record['action']} intended for {record['actor']}{past}"
    return f"{record['action']} intended: every guard lets it"


def _ended(record: Mapping[str, Any]) -> str:
    took = f" after {span(record['duration_seconds'])}" if record["duration_seconds"] else ""
    return f"the action ended: {record['reason']['code']}{took}{_because(record)}"


def _answered(record: Mapping[str, Any]) -> str:
    word = "" if record["accepted"] else "refused: "
    about = "".join(f" {value}" for key, value in record["arguments"].items() if key in ("services", "hold"))
    whole = " everything" if record["arguments"].get("everything") else ""
    return f"{record['actor']}: {record['action']}{about}{whole}, “{record['asked_because']}”: {word}{_detail(record)}"


def _detail(record: Mapping[str, Any]) -> str:
    return str(record["reason"]["detail"] or record["reason"]["code"])


def _alert(record: Mapping[str, Any]) -> str:
    # Not "resolved": it may be over because it got worse.
    over = "" if record["open"] else " is over"
    told = f" ({record['text']})" if record["reason"]["detail"] == "changed" else _because(record)
    return f"alert {record['severity']} {record['rule']}{over}{told}"


def _suppression(record: Mapping[str, Any]) -> str:
    about = "everything" if record["everything"] else ", ".join(record["services"])
    word = "begins for" if record["on"] else "ends for"
    return f"{record['reason']['code']} {word} {about}{_because(record)}"


def _delivered(record: Mapping[str, Any]) -> str:
    word = "was not told" if record.get("error") else "was told"
    return f"{record.get('notifier', 'a notifier')} {word}{_because(record)}"


_WORDS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "moved": _moved,
    "intended": _intended,
    "ended": _ended,
    "answered": _answered,
    "alert_changed": _alert,
    "delivered": _delivered,
    "suppression_changed": _suppression,
    "incident_opened": lambda record: f"incident {record['incident']} {record['reason']['code']}",
    "incident_merged": lambda record: f"incident {record['incident']} {record['reason']['detail']}",
    "incident_closed": lambda record: (
        f"incident {record['incident']} closed after {span(record['duration_seconds'])}{_because(record)}"
    ),
    "hold_changed": lambda record: f"hold {record['hold']} {'on' if record['on'] else 'off'}{_because(record)}",
    "resumed": lambda record: (
        f"selfheal runs again, after {span(away)}" if (away := record.get("away_seconds")) else "selfheal begins"
    ),
    "fleet_set": lambda record: f"the fleet has {counted(len(record['services']), 'service')}",
}


def sentence(record: Mapping[str, Any]) -> str:
    """Return a record in words, without its time and service."""
    words = _WORDS.get(record["kind"])
    said = words(record) if words is not None else f"{record['kind']}{_because(record)}"
    return clean(said)
