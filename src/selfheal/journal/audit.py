"""Is this journal whole? Walks the chain and names the row that is not what was written."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final

import attrs

from selfheal.errors import JournalError
from selfheal.journal.chain import Head, HeadFile, HeadRead, Key, batch_link, digest, record_link
from selfheal.journal.identity import Files
from selfheal.journal.schema import TROUBLE, connect_reading, refuse_stranger
from selfheal.journal.store import Fault, Verification

MOST_FAULTS: Final = 100

_BATCHES: Final = (
    "SELECT link, number, seq, at, wall, kind, service, input, digest, hash FROM batches WHERE link > ? ORDER BY link"
)
_RECORDS: Final = (
    "SELECT seq, number, at, wall, kind, service, incident, body, hash FROM records WHERE seq > ? ORDER BY seq"
)
_INDEXES: Final = (
    "SELECT total(number + link) FROM batches INDEXED BY sqlite_autoindex_batches_1",
    "SELECT total(number + link) FROM batches INDEXED BY batches_by_service WHERE kind = 'check_finished'",
    "SELECT total(at + link) FROM batches INDEXED BY batches_with_input WHERE input IS NOT NULL",
    "SELECT total(length(service) + seq) FROM records INDEXED BY records_by_service",
    "SELECT total(length(kind) + seq) FROM records INDEXED BY records_by_kind",
    "SELECT total(incident + seq) FROM records INDEXED BY records_by_incident WHERE incident IS NOT NULL",
    "SELECT total(last + first) FROM runs INDEXED BY runs_by_last",
)
"""Reading every index through: SQLite's own check passes over a changed byte in the head of an entry."""

_TYPES: Final = {
    "meta": "typeof(name) <> 'text' OR typeof(value) <> 'blob' OR typeof(seal) <> 'blob'",
    "batches": "typeof(kind) <> 'text' OR typeof(service) <> 'text' OR typeof(input) NOT IN ('blob', 'null') "
    "OR typeof(digest) <> 'blob' OR typeof(hash) <> 'blob'",
    "records": "typeof(kind) <> 'text' OR typeof(service) <> 'text' OR typeof(body) <> 'blob' "
    "OR typeof(hash) <> 'blob'",
    "runs": "typeof(body) <> 'blob' OR typeof(seal) <> 'blob'",
    "rollups": "typeof(service) <> 'text' OR typeof(body) <> 'blob' OR typeof(seal) <> 'blob'",
    "snapshots": "typeof(state) <> 'blob' OR typeof(seal) <> 'blob'",
}
"""What is no longer what it was stored as: one bit makes a text of bytes. They are the same to the walk, which takes
texts as bytes, and to the hashes; whoever reads them is given the other, or nothing."""

_UNREADABLE: Final = (struct.error, TypeError, ValueError, AttributeError, OverflowError)


def run_seal(key: Key, first: int, last: int, at: float, since: float, until: float, count: int, body: bytes) -> bytes:
    """Return the seal of a row of `runs`."""
    return key.seal("run", struct.pack(">qqdddq", first, last, at, since, until, count), body)


def rollup_seal(key: Key, service: str, hour: float, body: bytes) -> bytes:
    """Return the seal of a row of `rollups`."""
    return key.seal("rollup", service.encode(), struct.pack(">d", hour), body)


def snapshot_seal(key: Key, number: int, seq: int, state: bytes) -> bytes:
    """Return the seal of a row of `snapshots`."""
    return key.seal("snapshot", struct.pack(">qq", number, seq), state)


def meta_seal(key: Key, name: str, value: bytes) -> bytes:
    """Return the seal of a row of `meta`."""
    return key.seal("meta", name.encode(), value)


@attrs.define
class Walk:
    """A walk along the chain from `head`. `faults` fill up while it goes; at the end `head` is where it ended.

    A row fails on its own account when it matches neither the stored hash before it nor the one computed there, so a
    changed byte is blamed on its row alone, and a changed hash as well.
    """

    key: Key
    horizon: float = 0.0
    head: Head = attrs.field(factory=Head)
    faults: list[Fault] = attrs.field(factory=list)
    batches: int = 0
    records: int = 0
    _candidates: tuple[bytes, ...] = ()
    _shaken: bool = False

    def go(self, connection: sqlite3.Connection) -> None:
        """Walk to the end of the database, or until there are faults enough. Text must come as bytes."""
        self._candidates = (self.head.hash,)
        number = self.head.number
        waiting = _rows(connection, _RECORDS, self.head.seq)
        record = next(waiting, None)
        for row in _rows(connection, _BATCHES, self.head.link):
            while record is not None and _before(record[1], row[1]):
                self._step_record(record, number)
                record = next(waiting, None)
            number = row[1]
            self._step_batch(row)
            if len(self.faults) >= MOST_FAULTS:
                return
        while record is not None and len(self.faults) < MOST_FAULTS:
            self._step_record(record, number)
            record = next(waiting, None)

    def _blame(self, table: str, row: int, problem: str) -> None:
        self.faults.append(Fault(table=table, row=row, problem=problem))

    def _gap(self, table: str, expected: int, found: int) -> None:
        if found == expected:
            return
        what = "is missing" if found == expected + 1 else f"and what follows up to {found - 1} are missing"
        self._blame(table, expected, what if found > expected else "stands out of order")
        self._candidates = ()  # what the next row follows is gone: it cannot be judged

    def _step_batch(self, row: Any) -> None:
        link, number, seq, at, wall, kind, service, stored, digested, hashed = row
        self._gap("batches", self.head.link + 1, link)
        if isinstance(seq, int) and seq > self.head.seq:
            self._gap("records", self.head.seq + 1, seq + 1)
            self.head = attrs.evolve(self.head, seq=seq)
        self.batches += 1
        if stored is not None and digest(_bytes(stored)) != digested:
            self._blame("batches", link, "its input is not the one that was written")
        elif stored is None and digested and at >= self.horizon:
            self._blame("batches", link, "its input was removed before its time")

        def hash_after(previous: bytes) -> bytes:
            return batch_link(
                self.key,
                previous,
                link=link,
                number=number,
                seq=seq,
                at=at,
                wall=wall,
                kind=kind.decode(),
                service=service.decode(),
                digest=digested,
            )

        self._judge("batches", link, hashed, hash_after)
        self.head = attrs.evolve(self.head, link=link, number=number)

    def _step_record(self, row: Any, batch: int) -> None:
        seq, number, at, wall, kind, service, incident, body, hashed = row
        self._gap("records", self.head.seq + 1, seq)
        self.records += 1
        if number != batch:
            self._blame("records", seq, f"its batch {number} is missing")
            self._candidates = ()

        def hash_after(previous: bytes) -> bytes:
            return record_link(
                self.key,
                previous,
                seq=seq,
                number=number,
                at=at,
                wall=wall,
                kind=kind.decode(),
                service=service.decode(),
                incident=incident,
                body=_bytes(body),
            )

        self._judge("records", seq, hashed, hash_after)
        self.head = attrs.evolve(self.head, seq=seq)

    def _judge(self, table: str, row: int, hashed: Any, hash_after: Any) -> None:
        """Compare a row's hash with what it must be after any candidate for the hash before it."""
        computed: list[bytes] = []
        try:
            computed = [hash_after(previous) for previous in self._candidates]
        except _UNREADABLE:
            self._blame(table, row, "holds values of another kind than was written")
        else:
            if computed and not any(_same(hashed, one) for one in computed):
                self._blame(table, row, "follows a changed row and cannot be proven" if self._shaken else "was changed")
                self._shaken = True
            else:
                self._shaken = False
        stored = hashed if isinstance(hashed, bytes) else b""
        self._candidates = tuple(dict.fromkeys([stored, *computed[:2]]))
        self.head = attrs.evolve(self.head, hash=stored)


def verify(files: Files) -> Verification:
    """Check every row of a journal, and its end against the head. Works while another process writes to it."""
    try:
        key = Key.load(files.key)
        # The head first: whatever is committed afterwards can only lie beyond it.
        read: HeadRead | None = None
        faults = []
        try:
            read = HeadFile.read(files.head, key)
        except JournalError as problem:
            faults.append(Fault(table="head", row=0, problem=str(problem)))
        connection = _connect(files.database)
    except JournalError as problem:
        return Verification(records=0, batches=0, faults=(Fault(table="database", row=0, problem=str(problem)),))
    walk = Walk(key=key)
    try:
        connection.execute("BEGIN")
        walk.horizon = _horizon(connection, key, walk)
        walk.go(connection)
        if read is not None:
            end_faults(connection, read, walk)
        _check_seals(connection, key, walk)
        for (said,) in connection.execute("PRAGMA integrity_check(20)"):
            if _text(said) != "ok":
                walk.faults.append(Fault(table="database", row=0, problem=_text(said)))
        for statement in _INDEXES:
            connection.execute(statement).fetchone()
        _check_types(connection, walk)
    except TROUBLE as problem:
        walk.faults.append(
            Fault(table="database", row=0, problem=f"cannot be read after record {walk.head.seq}: {problem}")
        )
    finally:
        connection.close()
    return Verification(
        records=walk.records,
        batches=walk.batches,
        faults=(*faults, *walk.faults)[:MOST_FAULTS],
        seal=walk.head.hash.hex(),
    )


def end_faults(connection: sqlite3.Connection, read: HeadRead, walk: Walk) -> None:
    """Blame `walk` when the database does not reach its head, or is not what the head was taken of.

    `walk` has walked to the end, from the beginning or from this head.
    """
    head = read.head
    ends = "SELECT coalesce((SELECT max(link) FROM batches), 0), coalesce((SELECT max(seq) FROM records), 0)"
    link, seq = connection.execute(ends).fetchone()
    if link < head.link:
        walk.faults.append(Fault(table="batches", row=link + 1, problem=_cut(head.link, "batches")))
    if seq < head.seq:
        walk.faults.append(Fault(table="records", row=seq + 1, problem=_cut(head.seq, "records")))
    if link < head.link or seq < head.seq:
        return
    if read.torn and link == head.link and seq == head.seq:
        walk.faults.append(
            Fault(
                table="head",
                row=1,
                problem="its newest slot is damaged, and the journal has nothing after the other one: the tail is cut",
            )
        )
    row = connection.execute(
        "SELECT hash FROM records WHERE seq = ? AND number = (SELECT number FROM batches WHERE link = ?) UNION ALL "
        "SELECT hash FROM batches WHERE link = ? LIMIT 1",
        (head.seq, head.link, head.link),
    ).fetchone()
    if head.link and (row is None or row[0] != head.hash) and not walk.faults:
        walk.faults.append(Fault(table="batches", row=head.link, problem="is not the one the head was taken of"))


def _cut(row: int, table: str) -> str:
    return f"is missing, with all that follows: the head file knows {table} up to {row}, so the tail was cut"


def _check_seals(connection: sqlite3.Connection, key: Key, walk: Walk) -> None:
    """Check what stands outside the chain: runs, roll-ups, snapshots."""
    tables: tuple[tuple[str, str, Any], ...] = (
        (
            "runs",
            "SELECT first, seal, first, last, at, since, until, count, body FROM runs ORDER BY first",
            run_seal,
        ),
        ("rollups", "SELECT 0, seal, service, hour, body FROM rollups", _rollup_seal),
        ("snapshots", "SELECT number, seal, number, seq, state FROM snapshots ORDER BY number", snapshot_seal),
    )
    for table, sql, seal_of in tables:
        for row, seal, *values in connection.execute(sql):
            try:
                whole = _same(seal, seal_of(key, *values))
            except _UNREADABLE:
                whole = False
            if not whole:
                where = f" ({_text(values[0])}, hour {values[1]})" if table == "rollups" else ""
                walk.faults.append(Fault(table=table, row=row, problem=f"was changed{where}"))
                if len(walk.faults) >= MOST_FAULTS:
                    return


def _rollup_seal(key: Key, service: bytes, hour: float, body: bytes) -> bytes:
    return rollup_seal(key, service.decode(), hour, body)


def _horizon(connection: sqlite3.Connection, key: Key, walk: Walk) -> float:
    """Return the journal time before which inputs may have expired."""
    horizon = 0.0
    for name, value, seal in connection.execute("SELECT name, value, seal FROM meta"):
        if not _same(seal, meta_seal(key, _text(name), _bytes(value))):
            walk.faults.append(Fault(table="meta", row=0, problem=f"{_text(name)} was changed"))
        elif _text(name) == "horizon":
            horizon = float(_text(value))
    return horizon


def _check_types(connection: sqlite3.Connection, walk: Walk) -> None:
    """Blame the tables whose rows are all in order but for what SQLite takes them for."""
    for table in sorted(_TYPES.keys() - {fault.table for fault in walk.faults}):
        (count,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {_TYPES[table]}").fetchone()  # noqa: S608  # ours
        if count:
            found = f"texts are stored as bytes, or bytes as texts, in {count} of its rows"
            walk.faults.append(Fault(table=table, row=0, problem=found))


def _connect(path: Path) -> sqlite3.Connection:
    connection = connect_reading(path)
    try:
        refuse_stranger(connection, path)
    except BaseException:
        connection.close()
        raise
    connection.text_factory = bytes  # a changed byte may not be UTF-8 any more, and must not end the walk
    return connection


def _rows(connection: sqlite3.Connection, sql: str, after: int) -> Iterator[Any]:
    return iter(connection.execute(sql, (after,)))


def _before(number: Any, other: Any) -> bool:
    return not (isinstance(number, int) and isinstance(other, int)) or number < other


def _same(stored: Any, computed: bytes) -> bool:
    return isinstance(stored, bytes) and compare_digest(stored, computed)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
