"""The tables of a journal in SQLite, how a file is opened for reading, and what its errors mean.

A file is looked at only through SQLite: opening and closing it by hand would drop the locks SQLite holds on it in
this process.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from selfheal.errors import JournalDamaged, JournalError, JournalTooNew
from selfheal.journal.identity import START_AFRESH

APPLICATION: Final = 0x5E1F4EA1
"""SQLite's `application_id`: tells our files from those of other programs."""

SCHEMA_VERSION: Final = 1
"""SQLite's `user_version`. A release that changes the tables raises it and lifts older files when it opens them."""

SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (
    link INTEGER PRIMARY KEY, number INTEGER NOT NULL UNIQUE, seq INTEGER NOT NULL, at REAL NOT NULL,
    wall REAL NOT NULL, kind TEXT NOT NULL, service TEXT NOT NULL, input BLOB, digest BLOB NOT NULL, hash BLOB NOT NULL
);
CREATE INDEX batches_by_service ON batches (service, number) WHERE kind = 'check_finished';
CREATE INDEX batches_with_input ON batches (at) WHERE input IS NOT NULL;
CREATE TABLE records (
    seq INTEGER PRIMARY KEY, number INTEGER NOT NULL, at REAL NOT NULL, wall REAL NOT NULL, kind TEXT NOT NULL,
    service TEXT NOT NULL, incident INTEGER, body BLOB NOT NULL, hash BLOB NOT NULL
);
CREATE INDEX records_by_service ON records (service, seq);
CREATE INDEX records_by_kind ON records (kind, seq);
CREATE INDEX records_by_incident ON records (incident, seq) WHERE incident IS NOT NULL;
CREATE TABLE runs (
    first INTEGER PRIMARY KEY, last INTEGER NOT NULL, at REAL NOT NULL, since REAL NOT NULL, until REAL NOT NULL,
    count INTEGER NOT NULL, body BLOB NOT NULL, seal BLOB NOT NULL
);
CREATE INDEX runs_by_last ON runs (last);
CREATE TABLE rollups (
    service TEXT NOT NULL, hour REAL NOT NULL, body BLOB NOT NULL, seal BLOB NOT NULL, PRIMARY KEY (service, hour)
) WITHOUT ROWID;
CREATE TABLE snapshots (number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, state BLOB NOT NULL, seal BLOB NOT NULL);
"""


TROUBLE: Final = (sqlite3.Error, UnicodeDecodeError)
"""What the sqlite3 module raises. UnicodeDecodeError is its way to quote a schema with a changed byte in it."""


def trouble_of(problem: sqlite3.Error | UnicodeDecodeError | OSError, path: Path) -> JournalError:
    """Return what SQLite or the system said, as one of our errors that says what to do."""
    if isinstance(problem, OSError):
        return JournalError(f"the journal {path}: {problem.strerror or problem}")
    undecodable = isinstance(problem, UnicodeDecodeError) or "decode to UTF-8" in str(problem)
    name: str = "SQLITE_CORRUPT" if undecodable else getattr(problem, "sqlite_errorname", "") or ""
    match name.split("_")[1:2]:
        case ["FULL"]:
            return JournalError(f"the disk that holds the journal {path} is full: free some space there")
        case ["READONLY"]:
            return JournalError(f"the journal {path} cannot be written: the file system or the file is read-only")
        case ["BUSY"] | ["LOCKED"]:
            return JournalError(f"another program keeps the journal {path} locked: close it there")
        case ["CANTOPEN"] if not path.exists():
            return JournalError(f"there is no journal {path}")
        case ["CANTOPEN"]:
            return JournalError(f"cannot open the journal {path}: look at its folder, its owner and free inodes")
        case ["IOERR"]:
            return JournalError(f"the disk that holds the journal {path} fails ({name}): look at the kernel's log")
        # Our own statements are right, so a plain ERROR is a schema that is not what we wrote; so is undecodable text.
        case ["NOTADB"] | ["CORRUPT"] | ["ERROR"]:
            return JournalDamaged(f"the journal {path} is damaged ({problem}); it is left as it is: {START_AFRESH}")
        case _:
            return JournalError(f"the journal {path}: {problem}{f' ({name})' if name else ''}")


def connect_reading(path: Path, *, still: bool = False) -> sqlite3.Connection:
    """Return a connection that can only read. Raises `JournalError`.

    Where not even the shared memory beside the database can be made (a read-only file system), the file is read as
    it stands, without what may be left in its write-ahead log. `still` asks for that from the start.
    """
    uri = path.absolute().as_uri()
    problem: sqlite3.Error | UnicodeDecodeError | None = None
    for mode in ("?mode=ro&immutable=1",) if still else ("?mode=ro", "?mode=ro&immutable=1"):
        connection = None
        try:
            connection = sqlite3.connect(uri + mode, uri=True, isolation_level=None, check_same_thread=False, timeout=2)
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except TROUBLE as refusal:
            problem = problem or refusal
            if connection is not None:
                connection.close()
            if getattr(refusal, "sqlite_errorname", "").startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                continue
            break
        return connection
    assert problem is not None
    raise trouble_of(problem, path) from problem


def refuse_stranger(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `JournalDamaged` for a database of another program, `JournalTooNew` for one of a newer release."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except TROUBLE as problem:
        raise trouble_of(problem, path) from problem
    if application != APPLICATION:
        raise JournalDamaged(f"{path} is not a journal of selfheal; it is left as it is: {START_AFRESH}")
    if version > SCHEMA_VERSION:
        raise JournalTooNew(
            f"the journal {path} has schema {version} of a newer release (this one knows {SCHEMA_VERSION}): install "
            "that release"
        )
