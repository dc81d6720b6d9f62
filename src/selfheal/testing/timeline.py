"""Records as lines that people read: who, and what was decided, for the timelines of stories.

Owns the wording only; what a record means is said in `core.records`.
"""

from __future__ import annotations

from math import inf

from selfheal.core.model import Condition
from selfheal.core.records import (
    AlertChanged,
    Answered,
    Doubted,
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
)


def told(record: Record) -> tuple[str, str] | None:
    """Return (who, what) of a record; None for one that a timeline does not show."""
    match record:
        case FleetSet(fleet=fleet, unwatched=unwatched):
            names = ", ".join(policy.name for policy in fleet.policies)
            kept = f"; kept, not watched: {', '.join(unwatched)}" if unwatched else ""
            return "fleet", f"{len(fleet.policies)} services: {names}{kept}"
        case Moved():
            return record.service, _moved(record)
        case IncidentOpened(incident=incident):
            again = " again" if incident.reopened else ""
            return "incident", f"{incident.number} opens{again} at {incident.root}"
        case IncidentMerged(incident=number, into=into):
            return "incident", f"{number} is folded into {into}"
        case IncidentClosed(incident=number, because=because, duration=duration):
            return "incident", f"{number} is closed after {duration:.1f} s: {because}"
        case Intended():
            return record.service, _intended(record)
        case Ended(settled=settled, detail=detail):
            back = ", given back" if record.refunded else ""
            said = f": {detail}" if detail else ""
            return record.service, f"{record.intent} {settled.value} after {record.duration:.1f} s{back}{said}"
        case Answered():
            word = "yes" if record.accepted else f"no ({record.code})"
            about = f" {record.service}" if record.service else ""
            return record.actor, f"asked to {record.act}{about}: {word}" + (
                f", {record.because}" if record.because else ""
            )
        case Doubted(late=late):
            return "selfheal", f"checks begun before now prove nothing: it woke {late:.1f} s late"
        case Resumed(away=away) if away:
            return "selfheal", f"runs again, after {away:.1f} s"
        case HoldChanged(hold=hold, on=on, evidence=evidence):
            return "hold", f"{hold} {'begins' if on else 'ends'}: {evidence}" + _by(record.actor)
        case SuppressionChanged():
            return "suppress", _suppressed(record)
        case AlertChanged():
            return "alert", _alert(record)
        case _:
            return None


def _by(actor: str) -> str:
    return f" (by {actor})" if actor else ""


def _state(condition: Condition) -> str:
    return condition.state.value + (f" [{condition.reason}]" if condition.reason else "")


def _moved(record: Moved) -> str:
    before, after = record.before, record.after
    move = _state(after) if before.state is after.state else f"{before.state.value} -> {_state(after)}"
    detail = after.detail if after.detail not in ("", record.because) and after.detail != before.detail else ""
    said = [part for part in (record.because, detail) if part]
    if after.attempt != before.attempt:
        said.append(f"attempt {after.attempt}")
    if after.not_before != before.not_before and after.not_before > record.at:
        said.append("no next time" if after.not_before == inf else f"not before {after.not_before:.1f}")
    if after.incident != before.incident and after.incident is not None:
        said.append(f"incident {after.incident}")
    if before.state is after.state and before.reason == after.reason:
        move = f"({move})"
    return f"{move}: {'; '.join(said)}" + _by(record.actor)


def _intended(record: Intended) -> str:
    forced = [answer.guard for answer in record.guards if answer.passed_by]
    expected = f" on {record.expected}" if record.expected else ""
    spends = "" if record.spends else ", spends no budget"
    by = f", forced by {record.actor} past {', '.join(forced) or 'nothing'}" if record.actor else ""
    return f"{record.action.upper()}{expected} as {record.intent}{spends}{by}"


def _suppressed(record: SuppressionChanged) -> str:
    suppression = record.suppression
    what = "everything" if suppression.everything else ", ".join(suppression.services)
    until = "" if suppression.until == inf or not record.on else f" until {suppression.until:.1f}"
    verb = "is" if record.on else "is no more"
    return f"{what} {verb} under {suppression.binds.value} ({suppression.id}){until}" + _by(record.actor)


def _alert(record: AlertChanged) -> str:
    alert = record.alert
    who = f"{alert.service or 'fleet'} {alert.rule}"
    folded = ", folded" if alert.folded else ""
    if not record.open:
        return f"resolved: {who}: {record.because}"
    if record.because == "acknowledged":
        return f"known: {who}" + _by(record.actor)
    number = f", incident {alert.incident}" if alert.incident is not None else ""
    if alert.since == record.at and record.because == alert.text:
        return f"OPENED {alert.severity.value}: {who}: {alert.text}{number}{folded}"
    return f"changed: {who}: {alert.text}{number}{folded}"
