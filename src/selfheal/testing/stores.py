"""What every store of a journal must do, as a test class to inherit.

    class TestMyStore(StoreConformance):
        def open_store(self) -> Store:
            return MyStore(...)

Every test opens a new, empty store and closes it. Needs no test framework: any that calls `test_*` methods will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from selfheal.core.messages import CheckFinished, Event, JournalChanged, Requested, Started, TimePassed, WokeLate
from selfheal.core.model import (
    PASSING,
    Cause,
    CheckResult,
    Condition,
    Fleet,
    Incident,
    Instance,
    Policy,
    Purpose,
    Run,
    State,
    Verdict,
)
from selfheal.core.records import Answered, Doubted, FleetSet, IncidentOpened, Moved, Record
from selfheal.journal.store import Batch, Store

EPOCH: Final = 1_700_000_000.0
"""UNIX time at journal time zero, in these tests."""

FLEET: Final = Fleet(policies=(Policy(name="api"), Policy(name="database")))


def batch(number: int, event: Event | None, *records: Record, at: float | None = None) -> Batch:
    """Return a batch whose time is that of its input, or `at`."""
    time = at if event is None else event.at
    assert time is not None
    return Batch(number=number, at=time, wall=EPOCH + time, input=event, records=records)


def checked(
    at: float, service: str = "api", result: CheckResult = PASSING, *, generation: int = 1, latency: float = 0.0021
) -> CheckFinished:
    """Return a finished check that took `latency` and was reported 70 µs later."""
    ended = at - 0.00007
    return CheckFinished(
        at=at,
        service=service,
        generation=generation,
        purpose=Purpose.ROUTINE,
        started=ended - latency,
        ended=ended,
        result=result,
    )


def story() -> list[Batch]:
    """Return ten batches with every sort of thing in them: inputs with and without records, results, time alone."""
    failing = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE, summary="connection refused", details={"try": 2})
    running = Instance(id="c1", run=Run.RUNNING, since=3.5)
    moved = Moved(
        at=40.25,
        service="api",
        before=Condition(state=State.HEALTHY),
        after=Condition(state=State.UNHEALTHY, since=40.25, generation=2, incident=7),
        because="3 failures",
    )
    asked = Requested(at=55.0, id="r1", act="pause", actor="alice", reason="deploy", services=("api", "database"))
    answer = Answered(at=55.0, id="r1", act="pause", service="api", actor="alice", reason="deploy", accepted=True)
    return [
        batch(1, Started(at=1.0, fleet=FLEET), FleetSet(at=1.0, fleet=FLEET)),
        batch(2, checked(10.1)),
        batch(3, checked(10.4, "database", generation=1)),
        batch(4, checked(20.3, result=failing, generation=2)),
        batch(5, checked(40.25, result=failing, generation=3), moved),
        batch(6, None, Doubted(at=45.0, late=0.3), at=45.0),
        batch(7, checked(50.2, "database", generation=2)),
        batch(8, asked, answer),
        batch(9, WokeLate(at=60.0, late=4.5)),
        batch(
            10,
            CheckFinished(
                at=61.0,
                service="api",
                generation=4,
                purpose=Purpose.VERIFY,
                started=60.5,
                ended=60.999999999,
                result=PASSING,
                instance=running,
            ),
            IncidentOpened(at=60.9, service="api", incident=Incident(number=7, root="api", since=40.25)),
        ),
    ]


def same(stored: Sequence[Batch], given: Sequence[Batch]) -> bool:
    """Whether batches came back as they were given; `wall` may be rounded to a millisecond in a run."""
    return len(stored) == len(given) and all(
        (one.number, one.at, one.input, one.records) == (other.number, other.at, other.input, other.records)
        and abs(one.wall - other.wall) < 0.001
        for one, other in zip(stored, given, strict=True)
    )


class StoreConformance:
    """The promises of `Store`."""

    def open_store(self) -> Store:
        """Return a new, empty store."""
        raise NotImplementedError

    @contextmanager
    def _opened(self, batches: Sequence[Batch] = ()) -> Iterator[Store]:
        store = self.open_store()
        try:
            store.append(batches, durable=True)
            yield store
        finally:
            store.close()

    def test_a_new_store_is_empty(self) -> None:
        with self._opened() as store:
            last = store.last()
            assert (last.number, last.seq, last.at, last.wall) == (0, 0, 0.0, 0.0)
            assert store.records() == []
            assert list(store.batches()) == []
            assert list(store.results("api")) == []
            assert store.rollups("api") == []
            assert store.load_snapshot() == (None, "")
            assert store.replayable_from() is None
            assert store.verify().well

    def test_batches_come_back_as_they_were_given(self) -> None:
        with self._opened(story()) as store:
            assert same(list(store.batches()), story())
            assert same(list(store.batches(after=4)), story()[4:])
            assert list(store.batches(after=10)) == []
            assert store.verify().well

    def test_the_order_does_not_depend_on_how_batches_were_grouped(self) -> None:
        for size in (1, 2, 3, 7):
            with self._opened() as store:
                given = story()
                for start in range(0, len(given), size):
                    store.append(given[start : start + size], durable=start % 2 == 0)
                assert same(list(store.batches()), given)
                assert store.last().seq == 5

    def test_it_says_where_it_ends(self) -> None:
        with self._opened(story()[:7]) as store:
            last = store.last()
            assert (last.number, last.seq, last.at) == (7, 3, 50.2)
            assert abs(last.wall - (EPOCH + 50.2)) < 0.001

    def test_a_repeated_append_changes_nothing(self) -> None:
        with self._opened(story()[:6]) as store:
            store.append(story(), durable=False)
            store.append(story(), durable=True)
            assert same(list(store.batches()), story())

    def test_records_are_numbered_without_a_gap_and_have_their_own_time(self) -> None:
        with self._opened(story()) as store:
            stored = store.records()
            assert [one.seq for one in stored] == [1, 2, 3, 4, 5]
            assert [one.record.kind for one in stored] == [
                "fleet_set",
                "moved",
                "doubted",
                "answered",
                "incident_opened",
            ]
            assert stored[4].number == 10
            assert abs(stored[4].wall - (EPOCH + 60.9)) < 1e-6

    def test_records_are_selected(self) -> None:
        with self._opened(story()) as store:
            assert [one.seq for one in store.records(after=2, limit=2)] == [3, 4]
            assert [one.seq for one in store.records(newest_first=True, limit=2)] == [5, 4]
            assert [one.seq for one in store.records(newest_first=True, before=4, limit=2)] == [3, 2]
            assert [one.seq for one in store.records(service="api")] == [2, 4, 5]
            assert [one.seq for one in store.records(kinds=["doubted", "answered"])] == [3, 4]
            assert [one.seq for one in store.records(incident=7)] == [2, 5]
            assert [one.seq for one in store.records(service="api", kinds=["moved"], incident=7)] == [2]

    def test_an_empty_selection_selects_nothing(self) -> None:
        with self._opened(story()) as store:
            assert store.records(kinds=[]) == []
            assert store.records(service="") == [store.records()[0], store.records()[2]]
            assert store.records(limit=0) == []

    def test_results_of_one_service_come_in_order(self) -> None:
        with self._opened(story()) as store:
            assert [one.number for one in store.results("api")] == [2, 4, 5, 10]
            assert [one.number for one in store.results("database")] == [3, 7]
            assert [one.number for one in store.results("api", since=EPOCH + 20.0, until=EPOCH + 50.0)] == [4, 5]
            assert list(store.results("nobody")) == []
            finished = next(iter(store.results("api"))).finished
            assert finished == story()[1].input

    def test_hours_that_are_over_are_rolled_up(self) -> None:
        given = [batch(n, checked(n * 60.0, latency=0.001 * n)) for n in range(1, 120)]
        given.append(batch(120, checked(7300.0, result=CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT))))
        with self._opened(given) as store:
            while store.tend():
                pass
            hours = store.rollups("api")
            counts = [hour.passing + hour.failing for hour in hours]
            # EPOCH lies 800 s into an hour; the hour of the last result is not over.
            assert counts == [46, 60]
            assert abs(hours[0].observed - 45 * 60.0) < 0.01
            assert abs(hours[1].observed - 60 * 60.0) < 0.01
            mean = hours[0].latency_mean
            assert mean is not None
            assert abs(mean - 0.0235) < 0.0001
            median = hours[0].latency_quantile(0.5)
            assert median is not None
            assert abs(median / 0.0235 - 1.0) < 0.06
            assert store.rollups("api", since=hours[1].hour) == [hours[1]]

    def test_the_newest_snapshot_is_loaded(self) -> None:
        with self._opened(story()) as store:
            store.save_snapshot(5, b"five")
            store.save_snapshot(8, b"eight" * 1000)
            snapshot, wrong = store.load_snapshot()
            assert snapshot is not None
            assert (snapshot.number, snapshot.seq, snapshot.state, wrong) == (8, 4, b"eight" * 1000, "")

    def test_replay_begins_at_a_start(self) -> None:
        with self._opened(story()) as store:
            assert store.replayable_from() == 1

    def test_a_batch_without_a_stored_form_is_refused_and_the_others_are_kept(self) -> None:
        with self._opened() as store:
            odd = batch(2, TimePassed(at=10.0))
            refused = store.append([story()[0], odd, *story()[2:]], durable=False)
            assert list(refused) == [2]
            assert "TimePassed" in refused[2]
            assert [one.number for one in store.batches()] == [1, 3, 4, 5, 6, 7, 8, 9, 10]
            assert store.verify().well

    def test_a_gap_in_the_numbers_is_kept(self) -> None:
        with self._opened([story()[0], story()[7]]) as store:
            assert [one.number for one in store.batches()] == [1, 8]
            assert store.last().seq == 2
            assert store.verify().well

    def test_odd_text_comes_back(self) -> None:
        text = "caf\u00e9 \udcff \x00 \U0001f525"
        odd = CheckResult(Verdict.WARNING, summary=text, details={"a": 1.5, "b": None, "c": True})
        given = [
            batch(1, checked(1.0, result=odd)),
            batch(2, JournalChanged(at=2.0, well=False, detail=text), Doubted(at=2.0, late=0.1)),
        ]
        with self._opened(given) as store:
            assert same(list(store.batches()), given)

    def test_secrets_are_derived_by_purpose(self) -> None:
        with self._opened() as store:
            assert store.derive("a") == store.derive("a")
            assert store.derive("a") != store.derive("b")
            assert len(store.derive("a")) == 32
