"""Incidents as the records tell them: what began, what was done, whom it dragged down, how long it lasted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs

from selfheal.core.records import IncidentClosed, IncidentMerged, IncidentOpened, Intended, Moved
from selfheal.journal.store import Reader, StoredRecord
from selfheal.shapes import utc

PAGE: Final = 1000
"""Records that are read from the journal at a time."""

KINDS: Final = ("incident_opened", "incident_merged", "incident_closed", "moved", "ended", "intended")


def each(reader: Reader, kinds: tuple[str, ...], *, service: str | None = None) -> Iterable[StoredRecord]:
    """Yield every record of these kinds, oldest first, however many there are."""
    after, last = 0, reader.last().seq
    while after < last:
        # A stretch of numbers and not "the next thousand of these kinds": for that, SQLite sorts all that follow.
        yield from reader.records(after=after, before=after + PAGE + 1, kinds=kinds, service=service, limit=PAGE)
        after += PAGE


@attrs.define(kw_only=True)
class Outage:
    """An incident as the records tell it. Times are UNIX time; `downs` are seconds down, by member."""

    number: int
    root: str
    opened: float
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


def read(reader: Reader) -> dict[int, Outage]:
    """Return every incident by number, as the records tell it."""
    found: dict[int, Outage] = {}
    for stored_record in each(reader, KINDS):
        record, wall = stored_record.record, stored_record.wall
        if isinstance(record, IncidentOpened):
            outage = found.get(record.incident.number)
            if outage is None:
                outage = found[record.incident.number] = Outage(
                    number=record.incident.number,
                    root=record.service,
                    opened=wall,
                    correlation=record.incident.correlation,
                    first_failure=_first_failure(record, wall),
                )
            else:
                outage.closed = None
                outage.relapses += 1
            outage.members[record.service] = None
        elif isinstance(record, IncidentMerged) and record.incident in found:
            found[record.incident].into = record.into
        elif isinstance(record, IncidentClosed) and record.incident in found:
            found[record.incident].closed = wall
            found[record.incident].because = record.because
        elif isinstance(record, Intended) and record.incident in found:
            found[record.incident].actions.append(f"{record.service}: {record.action}")
        elif isinstance(record, Moved) and record.after.incident in found and record.after.incident is not None:
            found[record.after.incident].members[record.service] = None
    return found


def _first_failure(record: IncidentOpened, wall: float) -> float | None:
    """The UNIX time of the first failing check: the correlation id carries its journal time."""
    _, _, at = record.incident.correlation.rpartition("@")
    try:
        return wall - (record.at - float(at))
    except ValueError:
        return None
