"""Disks that are full or read-only, descriptors that are used up, and results that grow old: on real files."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from selfheal.core.messages import CheckFinished, Started
from selfheal.core.model import Condition, Fleet, State
from selfheal.core.records import Doubted, Moved
from selfheal.errors import JournalError
from selfheal.journal import Batch, Journal, Keep, Pace, SqliteReader, SqliteStore
from selfheal.testing.stores import EPOCH, batch, checked, same, story

QUICK = Pace(flush=0.02, retry=0.02, retry_cap=0.1)


def mount(*arguments: str) -> bool:
    """Run `mount`; return whether it was allowed."""
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)):
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def telling(number: int, size: int = 0) -> Batch:
    moved = Moved(
        at=float(number), service="api", before=Condition(), after=Condition(state=State.FAILED), because="x" * size
    )
    return batch(number, None, moved, at=float(number))


def fill(folder: Path) -> Path:
    """Use up what is free on a disk."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


def test_a_full_disk_loses_nothing_and_heals_by_itself(disk: Path) -> None:
    news = threading.Condition()
    changes: list[tuple[bool, str]] = []
    stored: list[int] = []

    def changed(well: bool, detail: str) -> None:
        with news:
            changes.append((well, detail))
            news.notify_all()

    def submit(journal: Journal, one: Batch) -> None:
        def done(problem: JournalError | None) -> None:
            assert problem is None
            with news:
                stored.append(one.number)
                news.notify_all()

        journal.submit(one, durable=True, done=done)

    journal = Journal.open(disk / "selfheal.db", changed=changed, pace=QUICK)
    try:
        submit(journal, telling(1))
        with news:
            assert news.wait_for(lambda: stored == [1], 10.0)
        ballast = fill(disk)
        for number in range(2, 60):
            submit(journal, telling(number, size=3000))
        with news:
            assert news.wait_for(lambda: bool(changes), 10.0)
            assert changes[0][0] is False
            assert "full: free some space" in changes[0][1]
            known = len(stored)
        # Reading goes on while nothing can be written.
        assert len(journal.reader.records()) == known
        assert journal.reader.verify().well
        ballast.unlink()
        with news:
            assert news.wait_for(lambda: len(stored) == 59 and changes[-1] == (True, ""), 20.0)
            assert stored == list(range(1, 60))
        assert [one.seq for one in journal.reader.records()] == list(range(1, 60))
        assert journal.reader.verify().well
    finally:
        assert journal.close(10.0)


def test_a_full_disk_does_not_keep_a_journal_from_being_read_or_closed(disk: Path) -> None:
    store = SqliteStore.open(disk / "selfheal.db")
    store.append(story(), durable=True)
    fill(disk)
    with pytest.raises(JournalError, match="full"):
        store.append([telling(number, size=4000) for number in range(11, 300)], durable=True)
    assert same(list(store.batches()), story())
    store.close()
    (disk / "ballast").unlink()
    store = SqliteStore.open(disk / "selfheal.db")
    assert same(list(store.batches()), story())
    assert store.verify().well
    store.close()


def test_a_read_only_disk_is_said_and_heals(disk: Path) -> None:
    store = SqliteStore.open(disk / "selfheal.db")
    try:
        store.append(story()[:4], durable=True)
        # Open files keep a disk from being remounted, so the database is made read-only for new transactions.
        store._writing.execute("PRAGMA query_only = ON")
        with pytest.raises(JournalError, match="read-only"):
            store.append(story(), durable=True)
        assert same(list(store.batches()), story()[:4])
        store._writing.execute("PRAGMA query_only = OFF")
        store.append(story(), durable=True)
        assert same(list(store.batches()), story())
    finally:
        store.close()


@pytest.mark.parametrize("clean", [True, False])
def test_a_journal_on_a_read_only_disk_can_be_read(disk: Path, clean: bool) -> None:
    path = disk / "selfheal.db"
    if clean:
        store = SqliteStore.open(path)
        store.append(story(), durable=True)
        store.close()
    else:
        script = (
            "import os, sys; from selfheal.journal import SqliteStore; from selfheal.testing.stores import story; "
            "store = SqliteStore.open(sys.argv[1]); store.append(story(), durable=True); "
            "os._exit(0)  # without closing: the log is left behind"
        )
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert path.with_name("selfheal.db-wal").stat().st_size > 0
    assert mount("-o", "remount,ro", str(disk))
    reader = SqliteReader(path)
    assert same(list(reader.batches()), story())
    assert reader.verify().well
    reader.close()
    with pytest.raises(JournalError, match="Read-only file system"):
        SqliteStore.open(path)


def test_writing_needs_no_new_descriptor(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "selfheal.db")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        assert held
        store.append(story(), durable=True)
        assert same(list(store.batches()), story())
        store.save_snapshot(10, b"state")
        store.tend()
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        store.close()


def test_only_what_must_last_waits_for_the_disk(tmp_path: Path) -> None:
    """SQLite syncs its log at the end of a transaction when `synchronous` is FULL (2), and not when it is NORMAL."""
    store = SqliteStore.open(tmp_path / "selfheal.db")
    levels = []
    for durable in (True, False, True):
        store.append([telling(store.last().number + 1)], durable=durable)
        levels.append(store._writing.execute("PRAGMA synchronous").fetchone()[0])
    assert levels == [2, 1, 2]
    store.close()


def test_a_commit_whose_end_was_not_seen_is_not_repeated(tmp_path: Path) -> None:
    """A disk may fail after it has written: what stands in the journal is read again, and decides."""
    failing = True

    def crash_point(here: str) -> None:
        nonlocal failing
        if failing and here == "append:committed":
            failing = False
            raise sqlite3.OperationalError("disk I/O error")

    store = SqliteStore.open(tmp_path / "selfheal.db", crash_point=crash_point)
    with pytest.raises(sqlite3.OperationalError):
        store.append(story(), durable=True)
    store.append(story(), durable=True)
    assert same(list(store.batches()), story())
    assert store.verify().well
    store.close()


def test_a_repeated_durable_append_reaches_the_disk_though_it_adds_nothing(tmp_path: Path) -> None:
    """Whether an append whose end was not seen was synced is not known, so the repetition must sync something."""
    store = SqliteStore.open(tmp_path / "selfheal.db")
    store.append([telling(1)], durable=False)
    changes = store._writing.total_changes
    store.append([telling(1)], durable=True)
    assert store._writing.total_changes > changes
    assert store.verify().well
    store.close()


# -- growing old ------------------------------------------------------------------------------------------------


def days(first: int, last: int, number: int) -> list[Batch]:
    """Return a result every ten minutes, and a record and an act every day, from day `first` to before `last`."""
    batches = []
    for day in range(first, last):
        batches.append(batch(number, Started(at=day * 86400.0, fleet=Fleet()), Doubted(at=day * 86400.0, late=1.0)))
        number += 1
        for turn in range(1, 144):
            batches.append(batch(number, checked(day * 86400.0 + turn * 600.0, generation=turn)))
            number += 1
    return batches


def test_results_grow_old_and_records_do_not(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "selfheal.db", keep=Keep(inputs=3 * 86400.0, runs=5 * 86400.0))
    told = days(0, 10, 1)
    for start in range(0, len(told), 37):
        store.append(told[start : start + 37], durable=False)
        while store.tend():
            pass
    assert len(store.records()) == 10
    assert store.verify().faults == ()
    oldest = next(iter(store.results("api")))
    assert 4.9 * 86400.0 < told[-1].at - oldest.finished.at < 6.5 * 86400.0
    kept = [one for one in store.batches() if one.input is not None]
    assert same(
        [one for one in kept if isinstance(one.input, CheckFinished)],
        [one for one in told if isinstance(one.input, CheckFinished) and one.number >= oldest.number],
    )
    expired = [one for one in store.batches() if one.input_expired]
    assert [one.number for one in expired] == [1 + 144 * day for day in range(7)]
    assert store.replayable_from() == 1 + 144 * 7
    # Everything was rolled up before it went: every hour but the last, every result in it.
    hours = store.rollups("api")
    assert sum(hour.passing for hour in hours) + 1 == sum(isinstance(one.input, CheckFinished) for one in told)
    assert hours[0].hour <= EPOCH + 600.0
    # Nothing is observed over a restart: 143 results a day have 142 spaces between them.
    assert abs(sum(hour.observed for hour in hours) - (10 * 142 - 1) * 600.0) < 1.0
    store.close()


def test_short_runs_are_merged_in_order(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "selfheal.db")
    told = [batch(1 + turn, checked(1.0 + turn, "ab"[turn % 2], generation=turn)) for turn in range(900)]
    for start in [*range(100), *range(700, 800)]:
        store.append(told[start : start + 1] if start != 99 else told[99:700], durable=False)
    store.append(told[800:], durable=False)
    ((before,),) = store._rows("SELECT count(*) FROM runs")
    store.tend()
    ((after,),) = store._rows("SELECT count(*) FROM runs")
    assert (before, after) == (201, 3)
    assert same(list(store.batches()), told)
    assert [one.number for one in store.results("b")] == list(range(2, 901, 2))
    assert store.verify().well
    store.close()


def test_reading_goes_on_while_runs_are_merged(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "selfheal.db")
    told = [batch(1 + turn, checked(1.0 + turn, generation=turn)) for turn in range(200)]
    for one in told:
        store.append([one], durable=False)
    reading = store.batches()
    first = [next(reading) for _ in range(50)]
    store.tend()
    store.append([batch(201, checked(300.0))], durable=False)
    assert same(first + list(reading), told)
    store.close()


def test_a_damaged_run_does_not_stop_the_journal(tmp_path: Path) -> None:
    said = threading.Event()
    store = SqliteStore.open(tmp_path / "selfheal.db")
    store.append([batch(1, checked(1.0)), batch(2, checked(7200.0))], durable=True)
    store._writing.execute("UPDATE runs SET body = zeroblob(20)")
    journal = Journal(
        store, changed=lambda well, detail: said.set() if well and "rolled up" in detail else None, pace=Pace(tend=0.0)
    )
    journal.submit(telling(3), durable=True)
    assert said.wait(10.0)
    assert journal.well
    assert journal.close(10.0)
