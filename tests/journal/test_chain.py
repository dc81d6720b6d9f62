"""Tampering is found, and the row is named."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfheal.core.messages import WokeLate
from selfheal.core.records import Doubted
from selfheal.errors import JournalDamaged, JournalError
from selfheal.journal import Files, SqliteReader, SqliteStore, Verification
from selfheal.journal.audit import verify
from selfheal.testing.stores import batch, checked, story


def made(path: Path, rounds: int = 3) -> Files:
    """Make a journal with several stories in it: 5 records and 6 chained batches each, runs, and a snapshot."""
    store = SqliteStore.open(path)
    for turn in range(rounds):
        told = [attrs.evolve(one, number=one.number + 10 * turn) for one in story()]
        store.append(told, durable=True)
    store.save_snapshot(15, b"state")
    store.close()
    return Files(database=path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return made(tmp_path / "selfheal.db")


def by_hand(files: Files, *statements: str) -> None:
    """Do what somebody with the sqlite3 shell would."""
    with closing(sqlite3.connect(files.database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def found(files: Files) -> list[tuple[str, int]]:
    """Return the rows that `verify` blames."""
    return [(fault.table, fault.row) for fault in verify(files).faults]


def test_an_untouched_journal_verifies(files: Files) -> None:
    verification = verify(files)
    assert verification.well
    assert (verification.records, verification.batches) == (15, 18)
    with closing(SqliteReader(files.database)) as reader:
        assert verification.seal == reader.verify().seal


@pytest.mark.parametrize("seq", range(1, 16))
@pytest.mark.parametrize(
    "change",
    [
        "body = replace(body, ':', ';')",
        "at = at + 0.000001",
        "wall = wall - 1",
        "kind = kind || 'x'",
        "service = service || 'x'",
        "incident = 99",
        "hash = zeroblob(32)",
        "body = 'text'",
        "at = 'text'",
    ],
)
def test_a_changed_record_is_the_only_one_blamed(files: Files, seq: int, change: str) -> None:
    by_hand(files, f"UPDATE records SET {change} WHERE seq = {seq}")
    assert found(files) == [("records", seq)]


@pytest.mark.parametrize("link", [1, 2, 5, 9, 17])
@pytest.mark.parametrize(
    "change",
    ["input = replace(input, ':', ';')", "input = NULL", "at = at - 1", "service = 'x'", "hash = zeroblob(32)"],
)
def test_a_changed_input_is_the_only_one_blamed(files: Files, link: int, change: str) -> None:
    with closing(sqlite3.connect(files.database)) as connection:
        (had_input,) = connection.execute(f"SELECT input IS NOT NULL FROM batches WHERE link = {link}").fetchone()
    by_hand(files, f"UPDATE batches SET {change} WHERE link = {link}")
    assert found(files) == ([] if not had_input and "input" in change else [("batches", link)])


@pytest.mark.parametrize("seq", range(1, 15))
def test_a_deleted_record_is_named(files: Files, seq: int) -> None:
    by_hand(files, f"DELETE FROM records WHERE seq = {seq}")
    assert found(files) == [("records", seq)]
    assert "is missing" in str(verify(files).faults[0])


def test_several_deleted_records_are_named(files: Files) -> None:
    by_hand(files, "DELETE FROM records WHERE seq BETWEEN 4 AND 6")
    assert found(files) == [("records", 4), ("records", 5), ("records", 6)]


@pytest.mark.parametrize("link", range(1, 18))
def test_a_deleted_batch_is_named(files: Files, link: int) -> None:
    by_hand(files, f"DELETE FROM batches WHERE link = {link}")
    assert ("batches", link) in found(files)


def test_two_records_that_changed_places_are_both_blamed(files: Files) -> None:
    by_hand(
        files,
        "UPDATE records SET seq = -3 WHERE seq = 3",
        "UPDATE records SET seq = 3 WHERE seq = 4",
        "UPDATE records SET seq = 4 WHERE seq = -3",
    )
    assert {("records", 3), ("records", 4)} <= set(found(files))


def test_two_bodies_that_changed_places_are_both_blamed(files: Files) -> None:
    by_hand(
        files,
        "CREATE TEMP TABLE t AS SELECT * FROM records WHERE seq IN (7, 13)",
        "UPDATE records SET body = (SELECT body FROM t WHERE t.seq = 13) WHERE seq = 7",
        "UPDATE records SET body = (SELECT body FROM t WHERE t.seq = 7) WHERE seq = 13",
    )
    assert set(found(files)) == {("records", 7), ("records", 13)}


def test_an_inserted_record_is_blamed(files: Files) -> None:
    columns = "number, at, wall, kind, service, incident, body, hash"
    by_hand(files, f"INSERT INTO records SELECT 16, {columns} FROM records WHERE seq = 15")
    assert found(files) == [("records", 16)]


@pytest.mark.parametrize("kept", range(15))
def test_a_cut_tail_of_records_is_found(files: Files, kept: int) -> None:
    by_hand(files, f"DELETE FROM records WHERE seq > {kept}")
    assert ("records", kept + 1) in found(files)


@pytest.mark.parametrize("kept", [0, 10, 19, 29])
def test_a_tail_cut_clean_is_found_by_the_head_alone(files: Files, kept: int) -> None:
    by_hand(files, f"DELETE FROM records WHERE number > {kept}", f"DELETE FROM batches WHERE number > {kept}")
    faults = verify(files).faults
    assert faults
    assert all("tail was cut" in fault.problem for fault in faults)
    with pytest.raises(JournalDamaged, match="tail was cut"):
        SqliteStore.open(files.database)


@pytest.mark.parametrize("table", ["runs", "snapshots"])
def test_a_changed_run_or_snapshot_is_named(files: Files, table: str) -> None:
    column, row = ("body", "first") if table == "runs" else ("state", "number")
    with closing(sqlite3.connect(files.database)) as connection:
        (first,) = connection.execute(f"SELECT max({row}) FROM {table}").fetchone()
    by_hand(files, f"UPDATE {table} SET {column} = {column} || x'00' WHERE {row} = {first}")
    assert found(files) == [(table, first)]


def test_a_damaged_snapshot_is_not_used_and_said(files: Files) -> None:
    by_hand(files, "UPDATE snapshots SET state = zeroblob(9)")
    with closing(SqliteReader(files.database)) as reader:
        assert reader.load_snapshot() == (None, "the snapshot of batch 15 is damaged and is not used")


# -- the head -----------------------------------------------------------------------------------------------------


def slots(files: Files) -> list[bytes]:
    data = files.head.read_bytes()
    return [data[:512], data[512:]]


def newest(files: Files) -> int:
    turns = [json.loads(slot)["turn"] for slot in slots(files)]
    return turns.index(max(turns))


@pytest.mark.parametrize("length", [0, 1, 100, 300])
def test_a_slot_torn_while_it_was_written_does_no_harm(files: Files, length: int) -> None:
    """The commit came before the head, so the database has what the torn slot was to speak of."""
    before = newest(files)
    store = SqliteStore.open(files.database)
    store.append([batch(100, WokeLate(at=100.0, late=1.0), Doubted(at=100.0, late=1.0))], durable=True)
    store.close()
    torn = newest(files)
    assert torn != before
    data = slots(files)
    data[torn] = data[torn][:length] + b"\x00" * (512 - length)
    files.head.write_bytes(b"".join(data))
    assert verify(files).well
    SqliteStore.open(files.database).close()
    assert verify(files).well
    assert all(json.loads(slot) for slot in slots(files))


def test_a_slot_torn_to_hide_a_cut_is_found(files: Files) -> None:
    by_hand(files, "DELETE FROM records WHERE number > 20", "DELETE FROM batches WHERE number > 20")
    data = slots(files)
    data[newest(files)] = b"\x00" * 512
    files.head.write_bytes(b"".join(data))
    with pytest.raises(JournalDamaged, match=r"the tail is cut|tail was cut"):
        SqliteStore.open(files.database)
    assert not verify(files).well


def test_a_head_of_another_journal_is_refused(files: Files, tmp_path: Path) -> None:
    other = made(tmp_path / "other.db")
    files.head.write_bytes(other.head.read_bytes())
    with pytest.raises(JournalDamaged, match="cannot be read with its key"):
        SqliteStore.open(files.database)


def test_a_head_that_lags_is_proven_and_brought_up(files: Files) -> None:
    old = files.head.read_bytes()
    store = SqliteStore.open(files.database)
    store.append([batch(100, None, Doubted(at=100.0, late=1.0), at=100.0)], durable=False)
    store.close()
    files.head.write_bytes(old)
    assert verify(files).well
    store = SqliteStore.open(files.database)
    assert store.last().number == 100
    store.close()
    assert files.head.read_bytes() != old


# -- single bytes -------------------------------------------------------------------------------------------------


def everything(path: Path) -> Any:
    """Return all that can be read of a journal."""
    reader = SqliteReader(path)
    try:
        return (
            list(reader.batches()),
            reader.records(),
            list(reader.results("api")),
            reader.records(service="api"),
            reader.records(incident=7),
            reader.records(kinds=["moved"]),
            reader.load_snapshot()[0],
        )
    finally:
        reader.close()


@attrs.frozen(kw_only=True)
class Pristine:
    """A journal, its bytes, and all that can be read of it; shown in few words, as a failing example is."""

    files: Files = attrs.field(repr=False)
    data: bytes = attrs.field(repr=False)
    expected: Any = attrs.field(repr=False)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Pristine:
    files = made(tmp_path_factory.mktemp("pristine") / "selfheal.db", rounds=2)
    return Pristine(files=files, data=files.database.read_bytes(), expected=everything(files.database))


@given(place=st.integers(0, 2**40), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_byte_changes_what_is_read_without_being_found(pristine: Pristine, place: int, bit: int) -> None:
    """A flip in unused space changes nothing; any other is found by `verify`, or the file is refused."""
    files, original, expected = pristine.files, pristine.data, pristine.expected
    broken = bytearray(original)
    used = [index for index, byte in enumerate(original) if byte]
    broken[used[place % len(used)]] ^= 1 << bit
    _replace(files.database, bytes(broken))
    try:
        if verify(files).well:
            assert everything(files.database) == expected
    finally:
        _replace(files.database, original)


@pytest.mark.parametrize(
    ("table", "column", "other"),
    [
        ("batches", "kind", "BLOB"),
        ("batches", "input", "TEXT"),
        ("batches", "hash", "TEXT"),
        ("records", "service", "BLOB"),
        ("records", "body", "TEXT"),
        ("runs", "body", "TEXT"),
        ("runs", "seal", "TEXT"),
        ("snapshots", "state", "TEXT"),
        ("meta", "value", "TEXT"),
    ],
)
def test_bytes_that_became_a_text_are_found_though_they_are_the_same_bytes(
    pristine: Pristine, table: str, column: str, other: str
) -> None:
    """One bit of the head of a row says which of the two a column is."""
    files = pristine.files
    try:
        with closing(sqlite3.connect(files.database)) as connection, connection:
            connection.execute(f"UPDATE {table} SET {column} = CAST({column} AS {other}) WHERE {column} IS NOT NULL")
        assert not verify(files).well
    finally:
        _replace(files.database, pristine.data)


def test_a_changed_index_is_found(pristine: Pristine) -> None:
    """SQLite's own check passes over some bytes of an index that make a query fail."""
    files, original, expected = pristine.files, pristine.data, pristine.expected
    with closing(sqlite3.connect(files.database)) as connection:
        pages = [page for (page,) in connection.execute("SELECT rootpage FROM sqlite_schema WHERE type = 'index'")]
    try:
        for index in [4096 * page - back for page in pages for back in range(1, 25)]:
            broken = bytearray(original)
            broken[index] ^= 1
            _replace(files.database, bytes(broken))
            assert not verify(files).well or everything(files.database) == expected
    finally:
        _replace(files.database, original)


def _replace(path: Path, data: bytes) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("place", [b"records_by_kind ON", b"CREATE TABLE runs"])
def test_a_schema_that_is_not_text_any_more_is_damage(files: Files, place: bytes) -> None:
    """The sqlite3 module quotes such a schema in an error that it then cannot decode."""
    broken = bytearray(files.database.read_bytes())
    broken[broken.index(place) + 4] ^= 0x80
    files.database.write_bytes(broken)
    assert not verify(files).well
    with pytest.raises(JournalDamaged):
        SqliteStore.open(files.database)
    with pytest.raises(JournalDamaged):
        SqliteReader(files.database)


def test_verify_never_raises_for_what_it_is_there_to_find(files: Files) -> None:
    breaks: Sequence[Callable[[], object]] = (
        files.key.unlink,
        lambda: files.database.write_bytes(b"x" * 5000),
        files.database.unlink,
    )
    for broken in breaks:
        broken()
        verification: Verification = verify(files)
        assert not verification.well


def test_verify_reads_while_somebody_writes(files: Files) -> None:
    store = SqliteStore.open(files.database)
    for number in range(100, 130):
        store.append(
            [batch(number, checked(float(number)), Doubted(at=number - 0.5, late=1.0))], durable=number % 3 == 0
        )
        assert verify(files).well
    store.close()


def test_the_key_is_not_printed(files: Files) -> None:
    from selfheal.journal.chain import Key

    key = Key.load(files.key)
    assert repr(key) == "Key(***)"
    assert files.key.read_text().strip() not in files.database.read_bytes().hex()
    with pytest.raises(JournalError, match="not a key"):
        Key.load(files.marker)
