"""Opening a journal: making a new one, looking whether an old one is whole, and taking one as it is.

Nothing here writes to a database that exists.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import attrs

from selfheal.errors import JournalDamaged
from selfheal.journal import audit
from selfheal.journal.chain import Head, HeadFile, Key
from selfheal.journal.identity import START_AFRESH, Files, Lock, Marker, accepting, new_id, sync_folder, write_marker
from selfheal.journal.schema import (
    APPLICATION,
    SCHEMA,
    SCHEMA_VERSION,
    TROUBLE,
    connect_reading,
    refuse_stranger,
    trouble_of,
)
from selfheal.journal.store import CrashPoint, Verification


def create(files: Files, begun: Marker | None, point: CrashPoint) -> Marker:
    """Make a new journal, or go on with a creation that was killed. Never touches a database that is not its own."""
    marker = begun or Marker(id=new_id(), made=False)
    if begun is None:
        write_marker(files.marker, marker)
        point("create:marked")
    if not files.database.exists():
        _build(files, marker, point)
    key = Key.load(files.key)
    examine(files, marker, key)
    made = attrs.evolve(marker, made=True)
    write_marker(files.marker, made)
    point("create:made")
    return made


def _build(files: Files, marker: Marker, point: CrashPoint) -> None:
    """Build an empty database under another name, with its key and head, and move it into place whole."""
    log = files.database.with_name(files.database.name + "-wal")
    if log.exists() and log.stat().st_size > 0:
        raise JournalDamaged(f"there is a write-ahead log {log} but no database: {START_AFRESH}")
    try:
        key = Key.load(files.key)
    except JournalDamaged:
        files.key.unlink(missing_ok=True)  # what a killed creation left: no database was ever sealed with it
        Key.create(files.key)
        key = Key.load(files.key)
    point("create:keyed")
    for stale in ("", "-wal", "-shm", "-journal"):
        files.draft.with_name(files.draft.name + stale).unlink(missing_ok=True)
    with closing(sqlite3.connect(files.draft, isolation_level=None)) as connection:
        files.draft.chmod(0o600)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.executescript(SCHEMA)
        identity = marker.id.encode()
        connection.execute("INSERT INTO meta VALUES ('id', ?, ?)", (identity, audit.meta_seal(key, "id", identity)))
        connection.execute("PRAGMA journal_mode = WAL")
    point("create:built")
    HeadFile.create(files.head, key, Head())
    point("create:headed")
    files.draft.rename(files.database)
    sync_folder(files.database.parent)
    point("create:placed")


def examine(files: Files, marker: Marker, key: Key) -> None:
    """Raise unless the database is whole, is the marker's, and reaches its head. Changes nothing."""
    path = files.database
    log = path.with_name(path.name + "-wal")
    # Without a log the file is whole by itself, and can be looked at without leaving a trace.
    still = not (log.exists() and log.stat().st_size > 0)
    with closing(connect_reading(path, still=still)) as connection:
        refuse_stranger(connection, path)
        try:
            said = _complaints(connection, path if still else None)
            if said:
                raise JournalDamaged(f"the journal {path} is damaged ({said}); it is left as it is: {START_AFRESH}")
            row = connection.execute("SELECT value FROM meta WHERE name = 'id'").fetchone()
            if row is None or bytes(row[0]) != marker.id.encode():
                raise JournalDamaged(
                    f"the journal {path} is not the one of its marker {files.marker}: it comes from elsewhere. Put the "
                    f"right one back, or, if it is the journal to use, run {accepting(path)}"
                )
            read = HeadFile.read(files.head, key)
            connection.text_factory = bytes
            walk = audit.Walk(key=key, head=read.head)
            walk.go(connection)
            audit.end_faults(connection, read, walk)
        except TROUBLE as problem:
            raise trouble_of(problem, path) from problem
    if walk.faults:
        raise JournalDamaged(
            f"the journal {path} is not what was written ({walk.faults[0]}); it is left as it is. Put a copy back, "
            f"or, knowing what is lost, run {accepting(path)}"
        )


def _complaints(connection: sqlite3.Connection, alone: Path | None) -> str:
    """Return what SQLite's own check finds, and whether the file `alone` is shorter than its pages (SQLite pads)."""
    (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    if alone is not None and alone.stat().st_size < pages * size:
        return f"it is shorter than its {pages} pages"
    said = [text for (text,) in connection.execute("PRAGMA quick_check(3)")]
    return "" if said == ["ok"] else "; ".join(said)


def accept(path: Path | str) -> Verification:
    """Take the database at `path` as it is: write marker and head anew, and return what `verify` says then.

    For a person who knows why the two do not fit (a restored copy, a lost head file). Changes nothing in the
    database, so a changed row goes on being reported. Raises `JournalHeld`, `JournalDamaged` when the file itself
    or its key cannot be read, or `JournalTooNew`.
    """
    files = Files(database=Path(path))
    lock = Lock(files.lock)
    try:
        key = Key.load(files.key)
        with closing(connect_reading(files.database)) as connection:
            refuse_stranger(connection, files.database)
            (identity,) = connection.execute("SELECT value FROM meta WHERE name = 'id'").fetchone()
            connection.text_factory = bytes
            walk = audit.Walk(key=key)
            walk.go(connection)
        HeadFile.create(files.head, key, walk.head)
        write_marker(files.marker, Marker(id=bytes(identity).decode(), made=True))
        return audit.verify(files)
    except (*TROUBLE, OSError) as problem:
        raise trouble_of(problem, files.database) from problem
    finally:
        lock.release()
