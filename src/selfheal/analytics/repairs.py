"""Which step healed what: a fold of records into the steps that were taken, each with what came of it.

A step counts as a success when *checks* find the service well after it and before the next step; never by its own
word (law 8). What did not start, or met another instance, is neither success nor failure. A step during which selfheal
died counts by what checks said afterwards, like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import attrs

from selfheal.core.ledger import WELL
from selfheal.core.model import Settled, State
from selfheal.core.records import Ended, Intended, Moved, Record

KINDS: Final = ("ended", "intended", "moved")
"""The records that say what was done, and what came of it."""


class Outcome(StrEnum):
    """What came of a step."""

    SUCCESS = "success"
    FAILURE = "failure"
    SUPERSEDED = "superseded"
    NOT_STARTED = "not_started"
    UNKNOWN = "unknown"


_MEETS_NOBODY: Final = {Settled.SUPERSEDED: Outcome.SUPERSEDED, Settled.NOT_STARTED: Outcome.NOT_STARTED}


@attrs.define(kw_only=True)
class Repair:
    """One step that was taken, and what came of it; `outcome` is None while that is not known.

    `seconds` runs from the intent to the moment at which checks proved the service well, or the step to have failed.
    """

    service: str
    incident: int
    attempt: int
    step: int
    action: str
    began: float
    actor: str = ""
    settled: Settled | None = None
    outcome: Outcome | None = None
    ended: float | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds of journal time; None while it is not over."""
        return None if self.ended is None else self.ended - self.began


class Repairs:
    """Folds records, in their order, into the steps that were taken."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.all: list[Repair] = []
        self.of: dict[str, list[Repair]] = {}
        """The same, by service."""
        self._open: dict[str, Repair] = {}
        for record in records:
            self.take(record)

    def take(self, record: Record) -> Repair | None:
        """Take in the next record, and return the step whose end it is; one of another kind changes nothing."""
        match record:
            case Intended():
                over = self._decide(record.service, Outcome.FAILURE, record.at)
                repair = Repair(
                    service=record.service,
                    incident=record.incident,
                    attempt=record.attempt,
                    step=record.step,
                    action=record.action,
                    began=record.at,
                    actor=record.actor,
                )
                self.all.append(repair)
                self.of.setdefault(record.service, []).append(repair)
                self._open[record.service] = repair
                return over
            case Ended() if record.service in self._open:
                self._open[record.service].settled = record.settled
                if (outcome := _MEETS_NOBODY.get(record.settled)) is not None:
                    return self._decide(record.service, outcome, record.at)
            case Moved() if record.service in self._open:
                return self._moved(record)
            case _:
                pass
        return None

    def _moved(self, record: Moved) -> Repair | None:
        before, after = record.before.state, record.after.state
        if after in WELL:
            return self._decide(record.service, Outcome.SUCCESS, record.at)
        if before is State.RECOVERING and after is State.FAILED:
            return self._decide(record.service, Outcome.FAILURE, record.at)
        if after in (State.DISABLED, State.UNKNOWN):
            return self._decide(record.service, Outcome.UNKNOWN, record.at)
        return None

    def _decide(self, service: str, outcome: Outcome, at: float) -> Repair | None:
        repair = self._open.pop(service, None)
        if repair is not None:
            repair.outcome, repair.ended = outcome, at
        return repair
