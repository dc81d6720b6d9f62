"""A kill at any point: what was acknowledged is there, the chain verifies, and the next start goes on.

A child process writes batches and is killed (SIGKILL) at one named point, the n-th time it comes there. It prints each
acknowledgement, so what it was told before it died is known exactly.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from selfheal.errors import JournalError
from selfheal.journal import Files, Journal, Pace, SqliteStore, opening, sqlite
from selfheal.journal.audit import verify
from selfheal.testing.crashes import Crash, live
from selfheal.testing.stores import same

from .scripts import tell, told

POINTS = [
    "create:marked",
    "create:keyed",
    "create:built",
    "create:headed",
    "create:placed",
    "create:made",
    "append:written",
    "append:committed",
    "append:headed",
    "snapshot:written",
    "snapshot:committed",
    "tend:rolled",
    "tend:merged",
    "tend:expired",
    "close:checkpointed",
]
"""Every point that `SqliteStore` calls. The test below holds this list against the source."""


def killed_child(path: Path, point: str, occurrence: int) -> tuple[set[int], bool]:
    """Run the child until it is killed or has ended; return what it was told is stored, and whether it was killed."""
    life = live(tell, path, crash=Crash(point, occurrence))
    return {int(line) for line in life.said}, life.killed


def test_the_points_are_those_of_the_source() -> None:
    source = "".join(Path(str(module.__file__)).read_text() for module in (opening, sqlite))
    assert sorted(re.findall(r'point\("([a-z:]+)"\)', source)) == sorted(POINTS)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("occurrence", [1, 3, 4])  # every third batch is told to be durable, the others are not
def test_a_kill_at_any_point_loses_nothing_that_was_acknowledged(tmp_path: Path, point: str, occurrence: int) -> None:
    path = tmp_path / "selfheal.db"
    acknowledged, killed = killed_child(path, point, occurrence)
    once = point.startswith(("create:", "close:"))
    assert killed == (occurrence == 1 or not once)
    # Whatever the kill left, the next start needs no help.
    store = SqliteStore.open(path)
    try:
        numbers = [batch.number for batch in store.batches()]
        assert acknowledged <= set(numbers)
        assert numbers == list(range(1, len(numbers) + 1))
        assert same(list(store.batches()), told()[: len(numbers)])
        assert [one.seq for one in store.records()] == list(range(1, store.last().seq + 1))
        assert store.verify().faults == ()
        store.append(told(), durable=True)
        assert same(list(store.batches()), told())
        assert store.verify().faults == ()
    finally:
        store.close()
    assert verify(Files(database=path)).well


def test_kills_one_after_another_do_not_add_up(tmp_path: Path) -> None:
    path = tmp_path / "selfheal.db"
    acknowledged: set[int] = set()
    for point in POINTS:
        more, _ = killed_child(path, point, 1)
        acknowledged |= more
    store = SqliteStore.open(path)
    assert same(list(store.batches()), told())
    assert acknowledged == {batch.number for batch in told()}
    assert store.verify().well
    store.close()


def test_s60_what_was_decided_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    """Budgets, backoff and incidents are folds of records; every record acknowledged as durable comes back."""
    path = tmp_path / "selfheal.db"
    stored = threading.Semaphore(0)
    journal = Journal.open(path, pace=Pace(flush=0.01))
    for batch in told():
        journal.submit(batch, durable=True, done=lambda problem: stored.release() if problem is None else None)
    for _ in told():
        assert stored.acquire(timeout=10.0)
    expected = [record for batch in told() for record in batch.records]
    # A child that was started meanwhile, as actions start them, neither holds the lock nor takes it with it.
    subprocess.run([sys.executable, "-c", ""], check=True, close_fds=False)
    with pytest.raises(JournalError, match="held by process"):
        SqliteStore.open(path)
    assert journal.close()
    again = Journal.open(path)
    assert [one.record for one in again.reader.records()] == expected
    assert again.last().number == told()[-1].number
    again.close()
