"""Reading a journal kept in SQLite, on a connection of its own.

A reader may be opened by any process, also while another holds the journal, also on a read-only file system.
"""

from __future__ import annotations

import heapq
import struct
import threading
import zlib
from collections.abc import Collection, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any, Final

from selfheal.core.messages import CheckFinished
from selfheal.errors import JournalDamaged, JournalError
from selfheal.journal import audit, runs
from selfheal.journal.chain import Key
from selfheal.journal.identity import START_AFRESH, Files
from selfheal.journal.inputs import stored_input, stored_record
from selfheal.journal.retention import rollup_from
from selfheal.journal.schema import TROUBLE, connect_reading, refuse_stranger, trouble_of
from selfheal.journal.store import Batch, Last, Rollup, Snapshot, StoredRecord, StoredResult, Verification

_PAGE: Final = 500
_MOST: Final = 2**62


class SqliteReader:
    """Reads a journal. Usable from any thread; one read at a time."""

    def __init__(self, path: Path | str) -> None:
        """Open it for reading only. Raises `JournalError`, `JournalDamaged` or `JournalTooNew`."""
        self.files = Files(database=Path(path))
        self._path = self.files.database
        try:
            size = self._path.stat().st_size
        except OSError as problem:
            raise JournalError(f"cannot read the journal {self._path}: {problem.strerror}") from problem
        if size == 0:
            raise JournalDamaged(f"the journal {self._path} has a length of zero: {START_AFRESH}")
        self._reading = connect_reading(self._path)
        self._turn = threading.Lock()
        try:
            refuse_stranger(self._reading, self._path)
        except BaseException:
            self._reading.close()
            raise

    def close(self) -> None:
        """Close it; twice does no harm."""
        with self._turn:
            self._reading.close()

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        with self._turn:
            try:
                return self._reading.execute(sql, values).fetchall()
            except TROUBLE as problem:
                raise trouble_of(problem, self._path) from problem

    def last(self) -> Last:
        """Return where the journal ends."""
        seq, number, at, wall = self._rows(
            "SELECT (SELECT max(seq) FROM records), number, at, wall FROM (SELECT * FROM ("
            "SELECT number, at, wall FROM batches ORDER BY link DESC LIMIT 1) UNION ALL SELECT * FROM ("
            "SELECT last, at, until FROM runs ORDER BY first DESC LIMIT 1) UNION ALL SELECT 0, 0.0, 0.0) "
            "ORDER BY number DESC LIMIT 1"
        )[0]
        return Last(number=number, seq=seq or 0, at=at, wall=wall)

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
        where, values = ["seq > ?", "seq < ?"], [after, _MOST if before is None else before]
        wanted: tuple[tuple[str, Sequence[Any] | None], ...] = (
            ("service", None if service is None else (service,)),
            ("kind", None if kinds is None else tuple(kinds)),
            ("incident", None if incident is None else (incident,)),
        )
        for column, choices in wanted:
            if choices is not None:
                where.append(f"{column} IN ({', '.join('?' * len(choices))})")
                values.extend(choices)
        rows = self._rows(
            f"SELECT seq, number, wall, body FROM records WHERE {' AND '.join(where)} "  # noqa: S608  # our own words
            f"ORDER BY seq {'DESC' if newest_first else 'ASC'} LIMIT ?",
            *values,
            max(0, limit),
        )
        return [
            StoredRecord(seq=seq, number=number, wall=wall, record=stored_record(body, f"record {seq}"))
            for seq, number, wall, body in rows
        ]

    def batches(self, *, after: int = 0) -> Iterator[Batch]:
        """Yield the batches with a number above `after`, in order, as of when the reading began."""
        upto = self.last().number
        return heapq.merge(
            self._single_batches(after, upto), self._run_batches(after, upto), key=lambda batch: batch.number
        )

    def _single_batches(self, after: int, upto: int) -> Iterator[Batch]:
        while True:
            rows = self._rows(
                "SELECT number, seq, at, wall, input, length(digest) FROM batches "
                "WHERE number > ? AND number <= ? ORDER BY number LIMIT ?",
                after,
                upto,
                _PAGE,
            )
            if not rows:
                return
            records: dict[int, list[Any]] = {}
            for seq, number, body in self._rows(
                "SELECT seq, number, body FROM records WHERE seq > ? AND seq <= coalesce("
                "(SELECT seq FROM batches WHERE number > ? ORDER BY number LIMIT 1), ?) ORDER BY seq",
                *(rows[0][1], rows[-1][0], _MOST),
            ):
                records.setdefault(number, []).append(stored_record(body, f"record {seq}"))
            for number, _, at, wall, stored, had_input in rows:
                yield Batch(
                    number=number,
                    at=at,
                    wall=wall,
                    input=None if stored is None else stored_input(stored, f"the input of batch {number}"),
                    records=tuple(records.get(number, ())),
                    input_expired=stored is None and had_input > 0,
                )
            after = rows[-1][0]

    def _run_batches(self, after: int, upto: int) -> Iterator[Batch]:
        while True:
            # By the last number and not by rows: a run may be merged with its neighbours while we read.
            rows = self._rows("SELECT body FROM runs WHERE last > ? AND first <= ? ORDER BY last LIMIT 1", after, upto)
            if not rows:
                return
            for batch in runs.unpack(rows[0][0], after=after):
                if batch.number > upto:
                    return
                yield batch
                after = batch.number

    def results(self, service: str, *, since: float = -inf, until: float = inf) -> Iterator[StoredResult]:
        """Yield the raw results of a service from `since` to before `until` (UNIX time), in order."""
        upto = self.last().number
        return (
            StoredResult(number=batch.number, wall=batch.wall, finished=batch.input)
            for batch in heapq.merge(
                self._single_results(service, since, until, upto),
                self._run_results(service, since, until, upto),
                key=lambda batch: batch.number,
            )
            if isinstance(batch.input, CheckFinished)
        )

    def _single_results(self, service: str, since: float, until: float, upto: int) -> Iterator[Batch]:
        after = 0
        while True:
            rows = self._rows(
                "SELECT number, at, wall, input FROM batches WHERE kind = 'check_finished' AND service = ? "
                "AND number > ? AND number <= ? AND wall >= ? AND wall < ? AND input IS NOT NULL "
                "ORDER BY number LIMIT ?",
                *(service, after, upto, since, until, _PAGE),
            )
            for number, at, wall, stored in rows:
                event = stored_input(stored, f"the input of batch {number}")
                yield Batch(number=number, at=at, wall=wall, input=event)
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

    def _run_results(self, service: str, since: float, until: float, upto: int) -> Iterator[Batch]:
        after = 0
        while True:
            rows = self._rows(
                "SELECT last, body FROM runs WHERE last > ? AND first <= ? AND until >= ? AND since < ? "
                "ORDER BY last LIMIT 1",
                *(after, upto, since, until),
            )
            if not rows:
                return
            ((last, body),) = rows
            for batch in runs.unpack(body, after=after, service=service):
                if batch.number <= upto and since <= batch.wall < until:
                    yield batch
            after = last

    def rollups(self, service: str, *, since: float = -inf, until: float = inf) -> list[Rollup]:
        """Return the hours of a service that began from `since` to before `until` and are over, in order."""
        rows = self._rows(
            "SELECT hour, body FROM rollups WHERE service = ? AND hour >= ? AND hour < ? ORDER BY hour",
            *(service, since, until),
        )
        try:
            return [rollup_from(service, hour, body) for hour, body in rows]
        except (ValueError, KeyError, TypeError) as problem:
            raise JournalDamaged(f"a roll-up of {service} cannot be read: {problem}") from problem

    def replayable_from(self) -> int | None:
        """Return the number of the first batch from which the journal can be replayed (a `Started`), if any."""
        ((number,),) = self._rows(
            "SELECT min(number) FROM batches WHERE kind = 'started' AND input IS NOT NULL AND number > coalesce("
            "(SELECT max(number) FROM batches WHERE input IS NULL AND length(digest) > 0), 0)"
        )
        return None if number is None else int(number)

    def load_snapshot(self) -> tuple[Snapshot | None, str]:
        """Return the newest snapshot if it is intact, and what was wrong with it ("" if nothing)."""
        try:
            rows = self._rows("SELECT number, seq, state, seal FROM snapshots ORDER BY number DESC LIMIT 2")
            key = Key.load(self.files.key)
        except JournalError as problem:
            return None, f"no snapshot can be read: {problem}"
        wrong = ""
        for number, seq, state, seal in rows:
            try:
                if seal == audit.snapshot_seal(key, number, seq, state):
                    return Snapshot(number=number, seq=seq, state=zlib.decompress(state)), wrong
            except (zlib.error, struct.error, TypeError):
                pass  # said below: whatever is wrong with it, it is not used
            wrong = f"the snapshot of batch {number} is damaged and is not used"
        return None, wrong

    def verify(self) -> Verification:
        """Check every row against the chain, and the end against the head kept outside."""
        return audit.verify(self.files)
