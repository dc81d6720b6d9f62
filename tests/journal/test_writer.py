"""The writer thread: order, grouping, durability, refusal, hanging, and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from selfheal.core.records import Doubted
from selfheal.errors import JournalError
from selfheal.journal import Batch, Journal, MemoryStore, Pace
from selfheal.testing.stores import batch, checked, same, story

QUICK = Pace(flush=0.02, deadline=0.2, tend=0.0, retry=0.01, retry_cap=0.05)


class Watched(MemoryStore):
    """A store in memory that notes each append, and refuses or hangs when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.appends: list[tuple[list[int], bool]] = []
        self.problem: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.tended = 0
        self.closed = False

    def append(self, batches: Sequence[Batch], *, durable: bool) -> Mapping[int, str]:
        assert self.answers.wait(10.0)
        if self.problem is not None:
            raise self.problem
        self.appends.append(([one.number for one in batches], durable))
        return super().append(batches, durable=durable)

    def tend(self) -> bool:
        self.tended += 1
        return False

    def close(self) -> None:
        self.closed = True


class Told:
    """What the journal said, in order."""

    def __init__(self) -> None:
        self.changes: list[tuple[bool, str]] = []
        self.done: list[tuple[int, str]] = []
        self._news = threading.Condition()

    def changed(self, well: bool, detail: str) -> None:
        with self._news:
            self.changes.append((well, detail))
            self._news.notify_all()

    def of(self, number: int) -> Callable[[JournalError | None], None]:
        def done(problem: JournalError | None) -> None:
            with self._news:
                self.done.append((number, "" if problem is None else str(problem)))
                self._news.notify_all()

        return done

    def wait(self, until: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(until, 10.0), (self.changes, self.done)


@contextmanager
def running(store: Watched, told: Told, *, pace: Pace = QUICK, most_waiting: int = 1000) -> Iterator[Journal]:
    journal = Journal(store, changed=told.changed, pace=pace, most_waiting=most_waiting)
    try:
        yield journal
    finally:
        store.problem = None
        store.answers.set()
        assert journal.close(10.0) or journal.lost or store.closed


def quiet(number: int) -> Batch:
    return batch(number, checked(float(number)))


def telling(number: int) -> Batch:
    return batch(number, None, Doubted(at=float(number), late=1.0), at=float(number))


def test_batches_are_stored_and_told_in_order() -> None:
    store, told = Watched(), Told()
    with running(store, told) as journal:
        for one in story():
            journal.submit(one, durable=one.number % 4 == 0, done=told.of(one.number))
        told.wait(lambda: len(told.done) == 10)
        assert told.done == [(number, "") for number in range(1, 11)]
        assert same(list(journal.reader.batches()), story())
        assert journal.last().number == 10
    assert told.changes == []
    assert store.closed


def test_a_durable_batch_takes_with_it_all_before_it_in_one_append() -> None:
    store, told = Watched(), Told()
    with running(store, told, pace=Pace(flush=60.0)) as journal:
        for number in range(1, 6):
            journal.submit(quiet(number), durable=False)
        journal.submit(telling(6), durable=True, done=told.of(6))
        told.wait(lambda: bool(told.done))
        assert store.appends == [([1, 2, 3, 4, 5, 6], True)]


def test_quiet_results_wait_for_company_and_records_do_not() -> None:
    store, told = Watched(), Told()
    with running(store, told, pace=Pace(flush=60.0)) as journal:
        journal.submit(quiet(1), durable=False)
        journal.submit(telling(2), durable=False, done=told.of(2))
        told.wait(lambda: bool(told.done))
        assert store.appends == [([1, 2], False)]
        journal.submit(quiet(3), durable=False)
    assert store.appends[1:] == [([3], True)]


@pytest.mark.real_time
def test_quiet_results_are_flushed_after_a_while() -> None:
    store, told = Watched(), Told()
    with running(store, told, pace=Pace(flush=0.3)) as journal:
        began = time.monotonic()
        for number in (1, 2, 3):
            journal.submit(quiet(number), durable=False, done=told.of(number))
        told.wait(lambda: len(told.done) == 3)
        assert time.monotonic() - began >= 0.3
        assert store.appends == [([1, 2, 3], False)]


def test_what_the_store_refuses_is_kept_and_repeated_until_it_answers() -> None:
    store, told = Watched(), Told()
    store.problem = JournalError("the disk is full: free some space")
    with running(store, told) as journal:
        journal.submit(telling(1), durable=True, done=told.of(1))
        told.wait(lambda: told.changes == [(False, "the disk is full: free some space")])
        assert not journal.well
        journal.submit(quiet(2), durable=False, done=told.of(2))
        assert journal.waiting == 2
        assert told.done == []
        store.problem = None
        told.wait(lambda: len(told.done) == 2)
        assert told.done == [(1, ""), (2, "")]
        assert told.changes[1:] == [(True, "")]
        assert journal.well
        assert journal.waiting == 0


def test_memory_is_bounded_and_quiet_results_give_way_first() -> None:
    store, told = Watched(), Told()
    store.problem = JournalError("full")
    with running(store, told, most_waiting=10) as journal:
        journal.submit(telling(1), durable=True)
        told.wait(lambda: bool(told.changes))
        for number in range(2, 9):
            journal.submit(quiet(number), durable=False, done=told.of(number))
        assert [number for number, _ in told.done] == [6, 7, 8]
        assert "10 batches wait" in told.done[0][1]
        for number in range(9, 16):
            journal.submit(telling(number), durable=False, done=told.of(number))
        assert [number for number, _ in told.done] == [6, 7, 8, 14, 15]
        assert (journal.waiting, journal.lost) == (10, 5)
        store.problem = None
        told.wait(lambda: len(told.done) == 14)
        assert [one.number for one in store.batches()] == [1, 2, 3, 4, 5, 9, 10, 11, 12, 13]
        assert store.last().seq == 6


@pytest.mark.real_time
def test_a_store_that_hangs_is_noticed_by_the_deadline() -> None:
    store, told = Watched(), Told()
    store.answers.clear()
    with running(store, told) as journal:
        began = time.monotonic()
        journal.submit(telling(1), durable=True, done=told.of(1))
        told.wait(lambda: bool(told.changes))
        assert told.changes == [(False, "the store has not answered for 0.2 s")]
        assert 0.2 <= time.monotonic() - began < 2.0
        before = time.monotonic()
        for number in range(2, 500):
            journal.submit(quiet(number), durable=False)
        assert time.monotonic() - before < 0.2
        assert told.done == []
        store.answers.set()
        told.wait(lambda: told.changes[1:] == [(True, "")] and told.done == [(1, "")])


def test_closing_stores_what_waits() -> None:
    store, told = Watched(), Told()
    journal = Journal(store, pace=Pace(flush=60.0))
    journal.submit(quiet(1), durable=False, done=told.of(1))
    assert journal.close()
    assert journal.close()
    assert told.done == [(1, "")]
    assert store.appends == [([1], True)]
    assert store.closed


def test_closing_a_store_that_refuses_gives_up_and_says_so() -> None:
    store, told = Watched(), Told()
    store.problem = JournalError("full")
    journal = Journal(store, changed=told.changed, pace=Pace(flush=0.01, retry=60.0, retry_cap=60.0))
    journal.submit(telling(1), durable=True, done=told.of(1))
    told.wait(lambda: bool(told.changes))
    journal.submit(telling(2), durable=True, done=told.of(2))
    assert not journal.close(10.0)
    assert told.done == [(1, "full"), (2, "full")]
    assert store.closed
    journal.submit(telling(3), durable=True, done=told.of(3))
    assert told.done[2] == (3, "the journal is closed")


def test_closing_a_store_that_hangs_returns_in_time() -> None:
    store, told = Watched(), Told()
    store.answers.clear()
    journal = Journal(store, pace=QUICK)
    journal.submit(telling(1), durable=True, done=told.of(1))
    began = time.monotonic()
    assert not journal.close(0.1)
    assert time.monotonic() - began < 5.0
    assert not store.closed
    store.answers.set()
    assert journal.close(10.0)
    assert told.done == [(1, "")]


def test_a_callback_that_raises_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store, told = Watched(), Told()

    def raising(problem: JournalError | None) -> None:
        raise RuntimeError("Event loop is closed")

    with running(store, told) as journal:
        journal.submit(telling(1), durable=True, done=raising)
        journal.submit(telling(2), durable=True, done=told.of(2))
        told.wait(lambda: told.done == [(2, "")])
    assert "Event loop is closed" in caplog.text


def test_a_fault_of_ours_is_said_and_ends_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    store, told = Watched(), Told()
    store.problem = ZeroDivisionError("oops")
    journal = Journal(store, changed=told.changed, pace=QUICK)
    journal.submit(telling(1), durable=True, done=told.of(1))
    told.wait(lambda: len(told.changes) == 1 and len(told.done) == 1)
    assert not told.changes[0][0]
    assert "ZeroDivisionError" in told.changes[0][1]
    assert "ZeroDivisionError" in told.done[0][1]
    assert not journal.close()
    assert store.closed


def test_a_batch_with_no_stored_form_is_told_and_counted() -> None:
    from selfheal.core.messages import TimePassed

    store, told = Watched(), Told()
    with running(store, told) as journal:
        journal.submit(batch(1, TimePassed(at=1.0)), durable=True, done=told.of(1))
        journal.submit(telling(2), durable=True, done=told.of(2))
        told.wait(lambda: len(told.done) == 2)
        assert "TimePassed is not stored" in told.done[0][1]
        assert told.done[1] == (2, "")
        assert journal.lost == 1


def test_snapshots_keep_their_place_among_the_batches() -> None:
    store, told = Watched(), Told()
    with running(store, told, pace=Pace(flush=60.0)) as journal:
        journal.submit(telling(1), durable=False)
        journal.save_snapshot(1, b"one", done=told.of(100))
        journal.submit(telling(2), durable=True, done=told.of(2))
        told.wait(lambda: len(told.done) == 2)
        snapshot, _ = journal.reader.load_snapshot()
        assert snapshot is not None
        assert (snapshot.number, snapshot.seq, snapshot.state) == (1, 1, b"one")


def test_upkeep_is_done_between_writes() -> None:
    store, told = Watched(), Told()
    with running(store, told) as journal:
        journal.submit(telling(1), durable=True, done=told.of(1))
        told.wait(lambda: bool(told.done))
        journal.submit(telling(2), durable=True, done=told.of(2))
        told.wait(lambda: len(told.done) == 2)
    assert store.tended >= 1


def test_many_threads_may_hand_over() -> None:
    store, told = Watched(), Told()
    turn = threading.Lock()
    number = 0

    with running(store, told, pace=Pace(flush=0.001), most_waiting=100_000) as journal:

        def hand_over() -> None:
            nonlocal number
            for _ in range(200):
                with turn:
                    number += 1
                    journal.submit(quiet(number), durable=False, done=told.of(number))

        threads = [threading.Thread(target=hand_over) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told.wait(lambda: len(told.done) == 800)
        assert [number for number, _ in told.done] == list(range(1, 801))
        assert [one.number for one in store.batches()] == list(range(1, 801))
