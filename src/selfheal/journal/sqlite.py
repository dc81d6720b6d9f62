"""The store in SQLite: opened only when everything fits together, written by one thread in whole transactions."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from math import isfinite
from pathlib import Path
from typing import Any, Final

import attrs

from selfheal.core.records import encode_record
from selfheal.errors import JournalError
from selfheal.journal import audit, runs
from selfheal.journal.chain import GENESIS, Head, HeadFile, Key, batch_link, digest, record_link
from selfheal.journal.identity import Files, Lock, standing
from selfheal.journal.inputs import KINDS, encode_input, to_bytes
from selfheal.journal.opening import create, examine
from selfheal.journal.reading import SqliteReader
from selfheal.journal.retention import Folding, Keep, hour_of, merged, rollup_bytes, rollup_from
from selfheal.journal.schema import TROUBLE, trouble_of
from selfheal.journal.store import Batch, CrashPoint, incident_of, no_crash

_SLICE: Final = 1000
"""Batches rolled up, or inputs removed, in one go: some ten milliseconds."""

_MOST_HOURS: Final = 2000
"""Roll-ups counted before they are stored though there is more to count: some 60 ms of storing."""

_LOOSE: Final = 512
_MANY: Final = 64
"""Runs shorter than `_LOOSE` are merged once there are `_MANY` of them."""

_WAL_LIMIT: Final = 16 * 2**20


@attrs.frozen(kw_only=True)
class _Tip:
    """Where the next row goes."""

    head: Head
    number: int


@attrs.define
class _Rows:
    """What one append will write, made before the transaction begins."""

    tip: _Tip
    batches: list[tuple[Any, ...]] = attrs.field(factory=list)
    records: list[tuple[Any, ...]] = attrs.field(factory=list)
    runs: list[runs.Run] = attrs.field(factory=list)
    refused: dict[int, str] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.batches or self.runs)


class SqliteStore(SqliteReader):
    """A journal in one SQLite file, held by this process. Made by `open`."""

    def __init__(self, files: Files, lock: Lock, key: Key, keep: Keep, crash_point: CrashPoint) -> None:
        """Use `open`."""
        super().__init__(files.database)
        self.trouble = ""
        self._lock = lock
        self._key = key
        self._keep = keep
        self._point = crash_point
        self._closed = False
        self._synchronous = ""
        self._tip: _Tip | None = None
        self._folding: Folding | None = None
        self._rolled = 0
        self._writing = sqlite3.connect(files.database, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            self._writing.execute("PRAGMA journal_mode = WAL")
            self._writing.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
            # What a killed process left in the log becomes durable now, and the head may then speak of it.
            self._tip = self._read_tip()
            self._head_file = HeadFile(files.head, key)
            if self._checkpoint():
                self._write_head(self._tip.head)
        except BaseException:
            self._writing.close()
            super().close()
            raise

    @classmethod
    def open(cls, path: Path | str, *, keep: Keep | None = None, crash_point: CrashPoint = no_crash) -> SqliteStore:
        """Open the journal at `path`, or create it where there is neither database nor marker.

        Blocks: a large file is checked page by page. Raises `JournalHeld`, `JournalDamaged`, `JournalTooNew` or
        `JournalError`; a file that is refused is left as it is.
        """
        files = Files(database=Path(path))
        try:
            files.database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise JournalError(
                f"cannot make the folder {files.database.parent}: {problem.strerror}; give another state_dir"
            ) from problem
        lock = Lock(files.lock)
        try:
            marker = standing(files)
            if marker is None or not marker.made:
                marker = create(files, marker, crash_point)
            key = Key.load(files.key)
            examine(files, marker, key)
            return cls(files, lock, key, keep or Keep(), crash_point)
        except (*TROUBLE, OSError) as problem:
            lock.release()
            raise trouble_of(problem, files.database) from problem
        except BaseException:
            lock.release()
            raise

    def append(self, batches: Sequence[Batch], *, durable: bool) -> Mapping[int, str]:
        """Store batches, all or none; with `durable` they survive a power cut when this returns.

        Batches whose number is stored already are passed over, so an append that failed may be repeated. Returns
        the numbers of the batches that have no stored form, with the reason; those were left out.
        """
        with self._transaction(durable):
            # Until the end of this is known, where the journal ends is to be read and not remembered.
            tip, self._tip = self._tip or self._read_tip(), None
            rows = self._rows_of(tip, batches)
            self._insert(rows)
            if durable and not rows:
                # Stored by an append whose end we did not see: write something, so that there is something to sync.
                self._put_meta("synced", b"1" if self._meta("synced") == b"0" else b"0")
            self._point("append:written")
        self._point("append:committed")
        self._tip = rows.tip
        if durable:
            self._write_head(rows.tip.head)
            self._point("append:headed")
        return rows.refused

    def save_snapshot(self, number: int, state: bytes) -> None:
        """Store a snapshot of everything up to batch `number`; only the newest two are kept."""
        packed = zlib.compress(state, 1)
        with self._transaction(durable=False):
            (seq,) = self._writing.execute(
                "SELECT coalesce((SELECT seq FROM batches WHERE number > ? ORDER BY number LIMIT 1), "
                "(SELECT max(seq) FROM records), 0)",
                (number,),
            ).fetchone()
            self._writing.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)",
                (number, seq, packed, audit.snapshot_seal(self._key, number, seq, packed)),
            )
            self._writing.execute(
                "DELETE FROM snapshots WHERE number NOT IN (SELECT number FROM snapshots ORDER BY number DESC LIMIT 2)"
            )
            self._point("snapshot:written")
        self._point("snapshot:committed")

    def tend(self) -> bool:
        """Roll up, pack and expire a slice of old results; return whether there is more to do at once."""
        more = self._roll_up()
        self._point("tend:rolled")
        self._merge_runs()
        self._point("tend:merged")
        more = self._expire() or more
        self._point("tend:expired")
        return more

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes for a purpose; the same for as long as this journal lives."""
        return self._key.seal("derived", purpose.encode())

    def close(self) -> None:
        """Close it; the lock is released last. Twice does no harm."""
        if self._closed:
            return
        self._closed = True
        super().close()
        try:
            # Where the disk refuses, everything acknowledged is durable all the same, and the next start goes on.
            with suppress(sqlite3.Error):
                tip = self._read_tip()
                if self._checkpoint():
                    self._point("close:checkpointed")
                    self._write_head(tip.head)
            with suppress(sqlite3.Error):
                self._writing.close()
            self._head_file.close()
        finally:
            self._lock.release()

    # -- one transaction ------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, durable: bool) -> Iterator[None]:
        """Commit what the block writes, or nothing. Raises `JournalError`."""
        try:
            self._synchronise("FULL" if durable else "NORMAL")
            self._writing.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._writing.execute("COMMIT")
            except BaseException:
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
                raise
        except (*TROUBLE, OSError) as problem:
            raise trouble_of(problem, self._path) from problem

    def _synchronise(self, level: str) -> None:
        if self._synchronous != level:
            self._writing.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _checkpoint(self) -> bool:
        """Make everything committed durable, and empty the log; return whether that was done.

        On a full disk, or while another process reads, it is not, and nothing is lost by that.
        """
        try:
            self._synchronise("FULL")
            (busy, _, _) = self._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            return False
        return not busy

    def _write_head(self, head: Head) -> None:
        """Write the head. A failure is said and not raised: what it speaks of is committed."""
        try:
            self._head_file.write(head)
            self.trouble = ""
        except OSError as problem:
            self.trouble = f"cannot write {self.files.head}: {problem.strerror}; a cut tail would go unnoticed"

    def _read_tip(self) -> _Tip:
        execute = self._writing.execute
        link, number, hashed = execute(
            "SELECT link, number, hash FROM batches ORDER BY link DESC LIMIT 1"
        ).fetchone() or (0, 0, GENESIS)
        seq, of, record_hash = execute(
            "SELECT seq, number, hash FROM records ORDER BY seq DESC LIMIT 1"
        ).fetchone() or (
            0,
            -1,
            b"",
        )
        (last,) = execute("SELECT coalesce(max(last), 0) FROM runs").fetchone()
        head = Head(link=link, seq=seq, number=number, hash=record_hash if of == number else hashed)
        return _Tip(head=head, number=max(number, last))

    # -- rows ---------------------------------------------------------------------------------------------------

    def _rows_of(self, tip: _Tip, batches: Sequence[Batch]) -> _Rows:
        rows = _Rows(tip=tip)
        quiet = []
        number = tip.number
        for batch in batches:
            if batch.number <= number:
                continue
            number = batch.number
            if runs.fits(batch):
                quiet.append(batch)
                continue
            try:
                self._add_batch(rows, batch)
            except (TypeError, ValueError) as problem:
                rows.refused[batch.number] = f"batch {batch.number} has no stored form: {problem}"
        for start in range(0, len(quiet), runs.LONGEST):
            self._add_run(rows, quiet[start : start + runs.LONGEST])
        rows.tip = attrs.evolve(rows.tip, number=number)
        return rows

    def _add_batch(self, rows: _Rows, batch: Batch) -> None:
        """Add a batch and its records to the chain; nothing is added when one of them has no stored form."""
        if not (isfinite(batch.at) and isfinite(batch.wall)):
            raise ValueError(f"its time is {batch.at!r} ({batch.wall!r})")
        event = batch.input
        stored = None if event is None else to_bytes(encode_input(event))
        kind, service = ("" if event is None else KINDS[event.__class__]), getattr(event, "service", "")
        head = rows.tip.head
        link = head.link + 1
        digested = digest(stored)
        hashed = batch_link(
            self._key,
            head.hash,
            link=link,
            number=batch.number,
            seq=head.seq,
            at=batch.at,
            wall=batch.wall,
            kind=kind,
            service=service,
            digest=digested,
        )
        row = (link, batch.number, head.seq, batch.at, batch.wall, kind, service, stored, digested, hashed)
        added = []
        seq = head.seq
        for record in batch.records:
            seq += 1
            body = to_bytes(encode_record(record))
            about, incident = getattr(record, "service", ""), incident_of(record)
            wall = batch.wall - (batch.at - record.at)
            hashed = record_link(
                self._key,
                hashed,
                seq=seq,
                number=batch.number,
                at=record.at,
                wall=wall,
                kind=record.kind,
                service=about,
                incident=incident,
                body=body,
            )
            added.append((seq, batch.number, record.at, wall, record.kind, about, incident, body, hashed))
        rows.batches.append(row)
        rows.records.extend(added)
        rows.tip = _Tip(head=Head(link=link, seq=seq, number=batch.number, hash=hashed), number=batch.number)

    def _add_run(self, rows: _Rows, quiet: Sequence[Batch]) -> None:
        try:
            rows.runs.append(runs.pack(quiet))
        except (TypeError, ValueError) as problem:
            if len(quiet) == 1:
                rows.refused[quiet[0].number] = f"batch {quiet[0].number} has no stored form: {problem}"
                return
            for batch in quiet:
                self._add_run(rows, [batch])

    def _insert(self, rows: _Rows) -> None:
        many = self._writing.executemany
        many("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows.batches)
        many("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows.records)
        for run in rows.runs:
            self._insert_run(run)

    def _insert_run(self, run: runs.Run) -> None:
        values = attrs.astuple(run)
        seal = audit.run_seal(self._key, *values)
        self._writing.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, seal))

    def _meta(self, name: str) -> bytes | None:
        row = self._writing.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def _put_meta(self, name: str, value: bytes) -> None:
        seal = audit.meta_seal(self._key, name, value)
        self._writing.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, value, seal))

    # -- retention ----------------------------------------------------------------------------------------------

    def _roll_up(self) -> bool:
        """Count a slice of the batches whose hour is over, and store what was counted when there are no more.

        What is counted but not stored is counted again after a restart.
        """
        folding = self._folding or self._stored_folding()
        before = folding.number
        now = hour_of(self.last().wall)
        slice_of = islice(self.batches(after=before), _SLICE)
        counted = 0
        for batch in takewhile(lambda batch: hour_of(batch.wall) != now, slice_of):
            folding.add(batch)
            counted += 1
        more = counted == _SLICE
        self._folding = folding
        if folding.number > self._rolled and (not more or len(folding) > _MOST_HOURS):
            self._store_folding(folding)
        return more

    def _stored_folding(self) -> Folding:
        stored = json.loads(self._meta("rolled") or b'{"number": 0, "seen": {}}')
        self._rolled = stored["number"]
        return Folding(stored["seen"], stored["number"])

    def _store_folding(self, folding: Folding) -> None:
        self._folding = None  # whatever happens now, the next slice goes on from what is stored
        with self._transaction(durable=False):
            for rollup in folding.rollups():
                key = (rollup.service, rollup.hour)
                row = self._writing.execute("SELECT body FROM rollups WHERE service = ? AND hour = ?", key).fetchone()
                body = rollup_bytes(rollup if row is None else merged(rollup_from(*key, row[0]), rollup))
                seal = audit.rollup_seal(self._key, *key, body)
                self._writing.execute("INSERT OR REPLACE INTO rollups VALUES (?, ?, ?, ?)", (*key, body, seal))
            self._put_meta("rolled", to_bytes({"number": folding.number, "seen": folding.seen}))
        self._rolled = folding.number

    def _merge_runs(self) -> None:
        """Merge the short runs of single flushes into long ones."""
        loose = self._rows("SELECT first, body FROM runs WHERE count < ? ORDER BY first LIMIT 1024", _LOOSE)
        if len(loose) < _MANY:
            return
        batches = [batch for _, body in loose for batch in runs.unpack(body)]
        # A long run between two short ones must stay between them.
        long = self._rows("SELECT first FROM runs WHERE count >= ? AND first > ? ORDER BY first", _LOOSE, loose[0][0])
        bounds = [first for (first,) in long]
        groups: list[list[Batch]] = [[]]
        for batch in batches:
            full = len(groups[-1]) == runs.LONGEST
            passed = bool(groups[-1]) and any(groups[-1][-1].number < bound < batch.number for bound in bounds)
            if full or passed:
                groups.append([])
            groups[-1].append(batch)
        with self._transaction(durable=False):
            self._writing.executemany("DELETE FROM runs WHERE first = ?", [(first,) for first, _ in loose])
            for group in groups:
                self._insert_run(runs.pack(group))

    def _expire(self) -> bool:
        """Remove a slice of the inputs and runs that are too old and have been rolled up."""
        at = self.last().at
        inputs = self._rows(
            "SELECT link FROM batches WHERE input IS NOT NULL AND at < ? AND number <= ? LIMIT ?",
            *(at - self._keep.inputs, self._rolled, _SLICE),
        )
        old = self._rows(
            "SELECT first FROM runs WHERE at < ? AND last <= ? ORDER BY first LIMIT 100",
            *(at - self._keep.runs, self._rolled),
        )
        if not inputs and not old:
            return False
        with self._transaction(durable=False):
            self._put_meta("horizon", repr(at - self._keep.inputs).encode())
            self._writing.executemany("UPDATE batches SET input = NULL WHERE link = ?", inputs)
            self._writing.executemany("DELETE FROM runs WHERE first = ?", old)
        return len(inputs) == _SLICE or len(old) == 100
