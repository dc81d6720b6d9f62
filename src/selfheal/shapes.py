"""The one public shape of a record: the same in the command line, the stream and the API.

Every record has the same outer fields, null where they do not apply, and some of its own. `VERSION` grows only when a
field changes its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from selfheal.core.model import State
from selfheal.core.records import (
    AlertChanged,
    Answered,
    Ended,
    FleetSet,
    HoldChanged,
    IncidentClosed,
    IncidentMerged,
    IncidentOpened,
    Intended,
    Moved,
    Record,
    Resumed,
    SuppressionChanged,
    encode,
)

VERSION: Final = 1
"""Version of the public shape of records."""


def utc(instant: float) -> str:
    """Return a UNIX time as ISO 8601 text in UTC, to the millisecond."""
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def public(record: Record, *, seq: int | None, wall: float, volatile: bool = False) -> dict[str, Any]:
    """Return the public shape of a record: every record has the same outer fields, null where they do not apply."""
    shape: dict[str, Any] = {
        "version": VERSION,
        "seq": seq,
        "at": record.at,
        "time": utc(wall),
        "kind": record.kind,
        "service": getattr(record, "service", None) or None,
        "incident": None,
        "root_incident": None,
        "attempt": None,
        "step": None,
        "action": None,
        "actor": getattr(record, "actor", "") or None,
        "reason": {"code": "", "detail": ""},
        "cause": None,
        "correlation_id": None,
        "guards": [],
        "duration_seconds": None,
    }
    if volatile:
        shape["volatile"] = True
    _FILL.get(type(record), _rest)(record, shape)
    return shape


def _reason(shape: dict[str, Any], code: str, detail: str = "") -> None:
    shape["reason"] = {"code": code, "detail": detail}


def _moved(record: Moved, shape: dict[str, Any]) -> None:
    after = record.after
    shape |= {
        "from": record.before.state.value,
        "to": after.state.value,
        "incident": after.incident if after.incident is not None else record.before.incident,
        "attempt": after.attempt if after.in_attempt or after.attempt else None,
        "step": after.cursor if after.in_attempt else None,
        "cause": after.cause.value if after.cause is not None else None,
        "correlation_id": after.correlation or record.before.correlation or None,
        "probation": after.state is State.HEALTHY and after.probation_until > record.at,
    }
    shape["root_incident"] = shape["incident"]
    _reason(shape, after.reason or after.state.value, record.because)


def _opened(record: IncidentOpened, shape: dict[str, Any]) -> None:
    shape |= {
        "incident": record.incident.number,
        "root_incident": record.incident.number,
        "correlation_id": record.incident.correlation or None,
    }
    _reason(shape, "relapse" if record.incident.reopened else "opened")


def _merged(record: IncidentMerged, shape: dict[str, Any]) -> None:
    shape |= {"incident": record.incident, "root_incident": record.into}
    _reason(shape, "merged", f"into incident {record.into}")


def _closed(record: IncidentClosed, shape: dict[str, Any]) -> None:
    shape |= {
        "incident": record.incident,
        "root_incident": record.incident,
        "duration_seconds": record.duration,
    }
    _reason(shape, "closed", record.because)


def _intended(record: Intended, shape: dict[str, Any]) -> None:
    shape |= {
        "incident": record.incident,
        "root_incident": record.incident,
        "attempt": record.attempt,
        "step": record.step,
        "action": record.action,
        "intent": record.intent,
        "expected_instance": record.expected,
        "correlation_id": record.correlation or None,
        "guards": [
            {
                "guard": a.guard,
                "holds": bool(a.reason),
                "reason": a.reason,
                "detail": a.detail,
                "passed_by": a.passed_by,
            }
            for a in record.guards
        ],
    }
    _reason(shape, "intended", "forced" if record.actor else "automatic")


def _ended(record: Ended, shape: dict[str, Any]) -> None:
    number, _, rest = record.intent.partition("/")
    shape |= {
        "incident": int(number) if number.isdigit() else None,
        "intent": record.intent,
        "duration_seconds": record.duration,
        "refunded": record.refunded,
    }
    shape["root_incident"] = shape["incident"]
    parts = rest.split("/")
    if len(parts) >= 3 and parts[-2].isdigit():
        shape |= {"attempt": int(parts[-2]), "step": int(parts[-1].partition(".")[0])}
    _reason(shape, record.settled.value, record.detail)


def _answered(record: Answered, shape: dict[str, Any]) -> None:
    shape |= {
        "action": record.act,
        "id": record.id,
        "accepted": record.accepted,
        "arguments": dict(record.arguments),
        "asked_because": record.reason,
    }
    _reason(shape, record.code or ("accepted" if record.accepted else "refused"), record.because)


def _alert(record: AlertChanged, shape: dict[str, Any]) -> None:
    alert = record.alert
    shape |= {
        "incident": alert.incident,
        "root_incident": alert.incident,
        "alert": alert.id,
        "rule": alert.rule,
        "severity": alert.severity.value,
        "text": alert.text,
        "open": record.open,
        "folded": alert.folded,
        "correlation_id": alert.correlation or None,
        "acknowledged_by": alert.acknowledged_by or None,
        "duration_seconds": None if record.open else record.at - alert.since,
    }
    _reason(shape, alert.rule, record.because or alert.text)


def _hold(record: HoldChanged, shape: dict[str, Any]) -> None:
    shape |= {"hold": record.hold, "on": record.on}
    _reason(shape, record.hold, record.evidence)


def _suppression(record: SuppressionChanged, shape: dict[str, Any]) -> None:
    suppression = record.suppression
    shape |= {
        "suppression": suppression.id,
        "on": record.on,
        "services": list(suppression.services),
        "everything": suppression.everything,
        "actor": record.actor or suppression.actor or None,
    }
    _reason(shape, suppression.binds.value, suppression.reason)


def _fleet(record: FleetSet, shape: dict[str, Any]) -> None:
    shape |= {
        "services": [policy.name for policy in record.fleet.policies],
        "unwatched": list(record.unwatched),
    }
    _reason(shape, "fleet_set")


def _resumed(record: Resumed, shape: dict[str, Any]) -> None:
    shape |= {"away_seconds": record.away}
    _reason(shape, "resumed", f"nobody looked for {record.away:.0f} s" if record.away else "")


def _rest(record: Any, shape: dict[str, Any]) -> None:
    known = {"at", "service", "actor"}
    shape |= {key: value for key, value in encode(record).items() if key not in known}
    _reason(shape, record.kind, getattr(record, "error", ""))


_FILL: Final[Mapping[type[Any], Callable[[Any, dict[str, Any]], None]]] = {
    Moved: _moved,
    IncidentOpened: _opened,
    IncidentMerged: _merged,
    IncidentClosed: _closed,
    Intended: _intended,
    Ended: _ended,
    Answered: _answered,
    AlertChanged: _alert,
    HoldChanged: _hold,
    SuppressionChanged: _suppression,
    FleetSet: _fleet,
    Resumed: _resumed,
}
