"""Incidents and alerts as the records tell them: what began, what was done, whom it hit, how long it lasted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs

from selfheal.core.records import (
    AlertChanged,
    Ended,
    IncidentClosed,
    IncidentMerged,
    IncidentOpened,
    Intended,
    Moved,
    Record,
)
from selfheal.journal.store import Reader, StoredRecord
from selfheal.shapes import utc

PAGE: Final = 1000
"""Records that are read from the journal at a time."""

KINDS: Final = (
    "alert_changed",
    "ended",
    "incident_closed",
    "incident_merged",
    "incident_opened",
    "intended",
    "moved",
)
"""The records that say something about an incident."""


def each(reader: Reader, kinds: tuple[str, ...], *, after: int = 0, upto: int | None = None) -> Iterable[StoredRecord]:
    """Yield every record of these kinds, oldest first, that follows number `after`, up to `upto` or the end."""
    last = reader.last().seq if upto is None else upto
    while after < last:
        # A stretch of numbers and not "the next thousand of these kinds": for that, SQLite sorts all that follow.
        end = min(after + PAGE, last)
        yield from reader.records(after=after, before=end + 1, kinds=kinds, limit=PAGE)
        after = end


@attrs.define(kw_only=True)
class Outage:
    """An incident as the records tell it. Times are UNIX time; `first` and `last` are numbers of records about it."""

    number: int
    root: str
    opened: float
    first: int = 0
    last: int = 0
    correlation: str = ""
    members: dict[str, None] = attrs.field(factory=dict)
    closed: float | None = None
    into: int | None = None
    because: str = ""
    actions: list[str] = attrs.field(factory=list)
    relapses: int = 0
    first_failure: float | None = None

    @property
    def open(self) -> bool:
        """Whether it goes on by itself; one that was merged goes on in another."""
        return self.closed is None and self.into is None

    def shape(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        return {
            "incident": self.number,
            "root": self.root,
            "opened": utc(self.opened),
            "closed": utc(self.closed) if self.closed is not None else None,
            "open": self.open,
            "merged_into": self.into,
            "members": list(self.members),
            "actions": self.actions,
            "relapses": self.relapses,
            "because": self.because,
            "correlation_id": self.correlation,
            # A death that is heard is stamped when it was heard, a moment before the check that failed of it began.
            "detection_seconds": max(0.0, self.opened - self.first_failure) if self.first_failure is not None else None,
            "duration_seconds": self.closed - self.opened if self.closed is not None else None,
        }


class Outages:
    """Folds records, in their order, into the incidents that there were."""

    def __init__(self) -> None:
        self.all: dict[int, Outage] = {}
        """By their numbers, in the order in which they opened."""
        self._first: dict[int, int] = {}

    def take(self, stored: StoredRecord) -> None:
        """Take in the next record; one of a kind that is not in `KINDS` changes nothing."""
        record, wall = stored.record, stored.wall
        if isinstance(record, IncidentOpened):
            self._opened(record, stored)
        elif isinstance(record, IncidentMerged) and record.incident in self.all:
            self.all[record.incident].into = record.into
        elif isinstance(record, IncidentClosed) and record.incident in self.all:
            self.all[record.incident].closed = wall
            self.all[record.incident].because = record.because
        elif isinstance(record, Intended) and record.incident in self.all:
            self.all[record.incident].actions.append(f"{record.service}: {record.action}")
        elif isinstance(record, Moved) and record.after.incident in self.all and record.after.incident is not None:
            self.all[record.after.incident].members[record.service] = None
        for number in concerned(record):
            if (outage := self.all.get(number)) is not None:
                outage.last = stored.seq
            else:  # what opens it is told a moment later
                self._first.setdefault(number, stored.seq)

    def _opened(self, record: IncidentOpened, stored: StoredRecord) -> None:
        outage = self.all.get(record.incident.number)
        if outage is None:
            outage = self.all[record.incident.number] = Outage(
                number=record.incident.number,
                root=record.service,
                opened=stored.wall,
                first=self._first.pop(record.incident.number, stored.seq),
                correlation=record.incident.correlation,
                first_failure=_first_failure(record, stored.wall),
            )
        else:
            outage.closed = None
            outage.relapses += 1
        outage.members[record.service] = None


def concerned(record: Record) -> tuple[int, ...]:
    """Return the numbers of the incidents that a record is about: two where one is merged into another."""
    match record:
        case IncidentMerged():
            return (record.incident, record.into)
        case IncidentOpened():
            return (record.incident.number,)
        case Moved():
            number = record.after.incident if record.after.incident is not None else record.before.incident
        case Ended():
            text = record.intent.partition("/")[0]
            number = int(text) if text.isdigit() else None
        case AlertChanged():
            number = record.alert.incident
        case IncidentClosed() | Intended():
            number = record.incident
        case _:
            number = None
    return () if number is None else (number,)


@attrs.define(kw_only=True)
class Alerted:
    """An alert as the records tell it. `opened` is UNIX time; `opened_seq` and `last` number its first and last record.

    Little is kept, because there are many.
    """

    opened: float
    opened_seq: int
    last: int
    open: bool = True


class Alerts:
    """Folds records, in their order, into the alerts that there were."""

    def __init__(self) -> None:
        self.all: dict[str, Alerted] = {}
        """By their ids, in the order in which they opened, which no later word changes."""

    def take(self, stored: StoredRecord) -> None:
        """Take in the next record; one of another kind changes nothing."""
        change = stored.record
        if not isinstance(change, AlertChanged):
            return
        known = self.all.get(change.alert.id)
        if known is None:
            known = self.all[change.alert.id] = Alerted(opened=stored.wall, opened_seq=stored.seq, last=stored.seq)
        known.last, known.open = stored.seq, change.open


def _first_failure(record: IncidentOpened, wall: float) -> float | None:
    """The UNIX time of the first failing check: the correlation id carries its journal time."""
    _, _, at = record.incident.correlation.rpartition("@")
    try:
        return wall - (record.at - float(at))
    except ValueError:
        return None
