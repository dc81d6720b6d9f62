"""The store for tests and toys: it forgets everything with the process, and the oldest before that."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf
from typing import Final

from selfheal.core.messages import CheckFinished, Started
from selfheal.journal.inputs import KINDS
from selfheal.journal.retention import Folding, hour_of
from selfheal.journal.store import (
    Batch,
    Last,
    Rollup,
    Snapshot,
    StoredRecord,
    StoredResult,
    Verification,
    selected,
)

MOST: Final = 100_000
"""Batches, and records, that are remembered."""


class MemoryStore:
    """Keeps the newest batches in memory. Durable means nothing here; there is no chain and nothing to verify."""

    trouble = ""

    def __init__(self, *, most: int = MOST) -> None:
        """Remember the newest `most` batches, and as many records."""
        self._batches: deque[Batch] = deque(maxlen=most)
        self._records: deque[StoredRecord] = deque(maxlen=most)
        self._last = Last()
        self._forgot = False
        self._snapshot: Snapshot | None = None
        self._secret = secrets.token_bytes(32)
        self._turn = threading.Lock()

    def append(self, batches: Sequence[Batch], *, durable: bool) -> Mapping[int, str]:
        """Remember batches; those whose number is known already are passed over."""
        refused = {}
        with self._turn:
            for batch in batches:
                if batch.number <= self._last.number:
                    continue
                if batch.input is not None and batch.input.__class__ not in KINDS:
                    name = batch.input.__class__.__name__
                    refused[batch.number] = f"batch {batch.number} has no stored form: {name} is not stored"
                    continue
                seq = self._last.seq
                for record in batch.records:
                    seq += 1
                    wall = batch.wall - (batch.at - record.at)
                    self._records.append(StoredRecord(seq=seq, number=batch.number, wall=wall, record=record))
                self._forgot = self._forgot or len(self._batches) == self._batches.maxlen
                self._batches.append(batch)
                self._last = Last(number=batch.number, seq=seq, at=batch.at, wall=batch.wall)
        return refused

    def save_snapshot(self, number: int, state: bytes) -> None:
        """Remember the newest snapshot."""
        with self._turn:
            seq = max((stored.seq for stored in self._records if stored.number <= number), default=0)
            self._snapshot = Snapshot(number=number, seq=seq, state=state)

    def load_snapshot(self) -> tuple[Snapshot | None, str]:
        """Return the newest snapshot; nothing is ever wrong with it."""
        return self._snapshot, ""

    def tend(self) -> bool:
        """Do nothing: the oldest is forgotten as the newest comes."""
        return False

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes for a purpose; the same for as long as this store lives."""
        return hmac.digest(self._secret, purpose.encode(), "sha256")

    def close(self) -> None:
        """Do nothing."""

    def last(self) -> Last:
        """Return where the journal ends."""
        return self._last

    def records(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        service: str | None = None,
        kinds: Collection[str] | None = None,
        incident: int | None = None,
        newest_first: bool = False,
    ) -> list[StoredRecord]:
        """Return at most `limit` records with `after < seq < before`; an empty `kinds` selects none."""
        with self._turn:
            found = [
                stored
                for stored in self._records
                if after < stored.seq
                and (before is None or stored.seq < before)
                and selected(stored, service=service, kinds=kinds, incident=incident)
            ]
        if newest_first:
            found.reverse()
        return found[: max(0, limit)]

    def batches(self, *, after: int = 0) -> Iterator[Batch]:
        """Yield the batches with a number above `after`, in order, as of when the reading began."""
        with self._turn:
            found = [batch for batch in self._batches if batch.number > after]
        return iter(found)

    def results(self, service: str, *, since: float = -inf, until: float = inf) -> Iterator[StoredResult]:
        """Yield the raw results of a service from `since` to before `until` (UNIX time), in order."""
        for batch in self.batches():
            event = batch.input
            if isinstance(event, CheckFinished) and event.service == service and since <= batch.wall < until:
                yield StoredResult(number=batch.number, wall=batch.wall, finished=event)

    def rollups(self, service: str, *, since: float = -inf, until: float = inf) -> list[Rollup]:
        """Return the hours of a service that began from `since` to before `until` and are over, in order."""
        folding = Folding({})
        now = hour_of(self._last.wall)
        for batch in self.batches():
            if hour_of(batch.wall) != now:
                folding.add(batch)
        found = [one for one in folding.rollups() if one.service == service and since <= one.hour < until]
        return sorted(found, key=lambda one: one.hour)

    def replayable_from(self) -> int | None:
        """Return the number of the first `Started` that is remembered."""
        return next((batch.number for batch in self.batches() if isinstance(batch.input, Started)), None)

    def verify(self) -> Verification:
        """Return how much is remembered: memory has no chain."""
        return Verification(records=len(self._records), batches=len(self._batches))
