"""Whose journal it is: never a damaged one taken for a fresh start, never a refused one changed."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import attrs
import pytest

from selfheal.errors import JournalDamaged, JournalError, JournalHeld, JournalTooNew
from selfheal.journal import Batch, Files, SqliteReader, SqliteStore, accept
from selfheal.testing.stores import story


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A journal with ten batches in it, closed."""
    made = Files(database=tmp_path / "state" / "selfheal.db")
    store = SqliteStore.open(made.database)
    store.append(story(), durable=True)
    store.close()
    return made


def contents(files: Files) -> dict[str, bytes]:
    """Return what stands in the folder, but for the lock, whose pid is anybody's."""
    return {
        path.name: path.read_bytes()
        for path in files.database.parent.iterdir()
        if path != files.lock and not path.name.endswith(("-shm", "-wal"))
    }


def renumbered(batch: Batch, number: int) -> Batch:
    """Return a batch under another number."""
    return attrs.evolve(batch, number=number)


def refused(files: Files, error: type[JournalError], match: str) -> None:
    """Assert that the journal is refused, twice, and that nothing was changed."""
    before = contents(files)
    for _ in range(2):
        with pytest.raises(error, match=match) as caught:
            SqliteStore.open(files.database)
        assert type(caught.value) is error
        assert contents(files) == before


def test_a_fresh_start_makes_private_files(files: Files) -> None:
    for path in (files.database, files.key, files.head, files.marker, files.lock):
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert files.database.parent.stat().st_mode & 0o777 == 0o700


def test_a_second_opening_finds_the_first_ones_batches(files: Files) -> None:
    store = SqliteStore.open(files.database)
    assert store.last().number == 10
    assert store.verify().well
    store.close()


def test_a_missing_database_is_not_a_fresh_start(files: Files) -> None:
    files.database.unlink()
    refused(files, JournalDamaged, "is missing, although")
    assert not files.database.exists()


def test_a_missing_marker_is_not_a_fresh_start(files: Files) -> None:
    files.marker.unlink()
    refused(files, JournalDamaged, r"no marker .*selfheal --state-dir .* audit accept")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 2, "id": "x", "stage": "made"}'])
def test_a_marker_that_cannot_be_read_is_refused(files: Files, text: bytes) -> None:
    files.marker.write_bytes(text)
    refused(files, JournalDamaged, "the marker .* cannot be read")


def test_a_zero_length_database_is_refused(files: Files) -> None:
    files.database.write_bytes(b"")
    refused(files, JournalDamaged, "length of zero")
    with pytest.raises(JournalDamaged, match="length of zero"):
        SqliteReader(files.database)


@pytest.mark.parametrize("part", [1, 99, 100, 512, 4095, 4096, 8192, -4096, -1])
def test_a_truncated_database_is_refused(files: Files, part: int) -> None:
    data = files.database.read_bytes()
    files.database.write_bytes(data[:part])
    refused(files, JournalDamaged, "damaged|not a journal")


@pytest.mark.parametrize("page", range(12))
def test_a_destroyed_page_is_refused(files: Files, page: int) -> None:
    data = bytearray(files.database.read_bytes())
    assert len(data) > 4096 * page
    data[4096 * page : 4096 * page + 512] = os.urandom(512)
    files.database.write_bytes(data)
    refused(files, JournalDamaged, "damaged|not a journal|not what was written")


def test_a_database_of_another_program_is_refused(files: Files) -> None:
    files.database.unlink()
    with sqlite3.connect(files.database) as stranger:
        stranger.execute("CREATE TABLE notes (text)")
    stranger.close()
    refused(files, JournalDamaged, "not a journal of selfheal")


def test_a_journal_from_elsewhere_is_refused(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other" / "selfheal.db"
    store = SqliteStore.open(other)
    store.append(story(), durable=True)
    store.close()
    other.rename(files.database)
    refused(files, JournalDamaged, "comes from elsewhere")


def test_a_journal_of_a_newer_release_is_refused(files: Files) -> None:
    with sqlite3.connect(files.database) as newer:
        newer.execute("PRAGMA user_version = 2")
    newer.close()
    refused(files, JournalTooNew, "schema 2 of a newer release")
    with pytest.raises(JournalTooNew):
        SqliteReader(files.database)


def test_an_older_copy_put_back_is_noticed(files: Files) -> None:
    copy = files.database.read_bytes()
    store = SqliteStore.open(files.database)
    again = [renumbered(one, 10 + one.number) for one in story()[7:9]]
    store.append(again, durable=True)
    store.close()
    files.database.write_bytes(copy)
    refused(files, JournalDamaged, "the tail was cut")


def test_a_write_ahead_log_without_its_database_is_refused(tmp_path: Path) -> None:
    files = Files(database=tmp_path / "selfheal.db")
    (tmp_path / "selfheal.db-wal").write_bytes(b"x" * 100)
    with pytest.raises(JournalDamaged, match="write-ahead log"):
        SqliteStore.open(files.database)
    assert not files.database.exists()


@pytest.mark.parametrize("lost", ["head", "key"])
def test_a_missing_head_or_key_is_refused(files: Files, lost: str) -> None:
    getattr(files, lost).unlink()
    refused(files, JournalDamaged, f"the {lost} of the journal, .*missing")


def test_a_person_may_accept_what_there_is(files: Files) -> None:
    files.marker.unlink()
    files.head.write_bytes(b"torn")
    assert accept(files.database).well
    store = SqliteStore.open(files.database)
    assert store.last().number == 10
    store.close()


def test_accepting_does_not_hide_a_changed_row(files: Files) -> None:
    with sqlite3.connect(files.database) as hand:
        hand.execute("UPDATE records SET body = replace(body, 'alice', 'mallo') WHERE seq = 4")
    hand.close()
    assert [(fault.table, fault.row) for fault in accept(files.database).faults] == [("records", 4)]


def test_a_held_journal_names_its_holder_and_can_be_read(files: Files) -> None:
    store = SqliteStore.open(files.database)
    with pytest.raises(JournalHeld, match=f"held by process {os.getpid()}"):
        SqliteStore.open(files.database)
    with pytest.raises(JournalHeld):
        accept(files.database)
    reader = SqliteReader(files.database)
    assert reader.last().number == 10
    store.append([renumbered(story()[7], 11)], durable=False)
    assert reader.last().number == 11
    reader.close()
    store.close()
    SqliteStore.open(files.database).close()


def test_a_reader_never_makes_a_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        SqliteReader(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_the_marker_and_the_database_share_an_id(files: Files) -> None:
    identity = json.loads(files.marker.read_text())["id"]
    with sqlite3.connect(files.database) as database:
        (stored,) = database.execute("SELECT value FROM meta WHERE name = 'id'").fetchone()
    database.close()
    assert stored.decode() == identity


@pytest.mark.parametrize("odd", ["a?b#c%20d.db", "a b'c\".db"])
def test_odd_names_of_files_work(tmp_path: Path, odd: str) -> None:
    store = SqliteStore.open(tmp_path / odd)
    store.append(story(), durable=True)
    assert store.verify().well
    store.close()
    assert (tmp_path / odd).stat().st_size > 0
