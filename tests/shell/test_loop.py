"""The loop alone: order, the gate, doubts about itself, what is told while the store is down, a fault of ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from random import Random
from typing import Any

import attrs
import pytest

from selfheal.core.engine import Engine
from selfheal.core.messages import (
    ActionFinished,
    CancelAction,
    CheckFinished,
    Command,
    Event,
    JournalChanged,
    Output,
    RunAction,
    Started,
    TimePassed,
    WokeLate,
)
from selfheal.core.model import PASSING, Cause, CheckResult, Fleet, Limits, Policy, Purpose, Settled, Verdict
from selfheal.core.records import Delivered, Doubted, Record
from selfheal.core.routing import DeliveryFinished
from selfheal.errors import JournalError
from selfheal.journal.store import Batch
from selfheal.shell.loop import GRID, PULSE, ROUNDS, SNAPSHOT_EVERY, Loop


class Scripted(Engine):
    """An engine that says what a test wants, and remembers what it heard."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Event] = []
        self.outputs: dict[type[Any], list[Output]] = {}
        self.wakes = inf

    def receive(self, event: Event) -> Output:
        self.heard.append(event)
        outputs = self.outputs.get(type(event))
        return outputs.pop(0) if outputs else Output()

    @property
    def deadline(self) -> float:
        return self.wakes


class Store:
    """A store that answers when the test says so."""

    def __init__(self) -> None:
        self.well = True
        self.lost = 0
        self.batches: list[Batch] = []
        self.durable: list[bool] = []
        self.snapshots: list[int] = []
        self._done: dict[int, Callable[[JournalError | None], None]] = {}

    def submit(self, batch: Batch, *, durable: bool, done: Callable[[JournalError | None], None] | None = None) -> None:
        self.batches.append(batch)
        self.durable.append(durable)
        if done is not None:
            self._done[batch.number] = done

    def save_snapshot(
        self, number: int, state: bytes, *, done: Callable[[JournalError | None], None] | None = None
    ) -> None:
        self.snapshots.append(number)

    def stores(self, *numbers: int) -> None:
        for number in numbers or sorted(self._done):
            self._done.pop(number)(None)

    def refuses(self, number: int) -> None:
        self.lost += 1
        self._done.pop(number)(JournalError("too much waits"))


class Probes:
    def __init__(self) -> None:
        self.deadline: float | None = None
        self.expired: list[float] = []

    def expire(self, now: float) -> None:
        self.expired.append(now)

    def next_deadline(self) -> float | None:
        return self.deadline


class World:
    """A loop with everything around it in the hands of a test."""

    def __init__(self, *, fleet: Fleet | None = None, grid: float = GRID) -> None:
        self.engine = Scripted()
        if fleet is not None:
            self.engine.desk.ledger.fleet = fleet
        self.store, self.probes = Store(), Probes()
        self.done: list[Command] = []
        self.told: list[tuple[int, bool]] = []
        self.caught = 0
        self.reader: Callable[[Batch], object] = lambda batch: None
        self.loop = Loop(
            self.engine,
            self.store,
            hands=self,
            readers=self,
            poke=lambda function: function(),
            probes=self.probes,  # type: ignore[arg-type]  # what the loop asks of them
            at=100.0,
            number=7,
            grid=grid,
        )

    def do(self, command: Command) -> None:
        self.done.append(command)

    def publish(self, batch: Batch, *, volatile: bool) -> None:
        self.told.append((batch.number, volatile))
        self.reader(batch)

    def caught_up(self, count: int) -> None:
        self.caught += count

    def says(self, *records: Record, commands: tuple[Command, ...] = (), on: type[Any] = JournalChanged) -> None:
        self.engine.outputs.setdefault(on, []).append(Output(records, commands))

    def post(self, event: Event | None = None) -> None:
        self.loop.post(event if event is not None else JournalChanged(at=self.loop.at(), well=True))


def action(name: str) -> RunAction:
    return RunAction(intent=f"1/{name}/1/0", service=name, step=0, expected=None, timeout=5.0)


def record(at: float = 100.0) -> Record:
    return Doubted(at=at, late=1.0)


# -- the gate --------------------------------------------------------------------------------------------------------


def test_an_action_waits_for_its_batch_and_nothing_else_does() -> None:
    world = World()
    other = CancelAction(intent="an older one")
    world.says(record(), commands=(action("api"), other))
    world.post()
    assert world.done == [other]
    assert world.store.durable == [True]
    assert world.told == []
    world.store.stores()
    assert world.done == [other, action("api")]
    assert world.told == [(8, False)]


def test_a_batch_that_is_not_kept_lets_its_action_not_start() -> None:
    world = World()
    world.says(record(), commands=(action("api"),))
    world.post()
    world.store.refuses(8)
    assert world.done == []
    (ended,) = [event for event in world.engine.heard if isinstance(event, ActionFinished)]
    assert (ended.intent, ended.settled, ended.detail) == ("1/api/1/0", Settled.NOT_STARTED, "too much waits")


def test_a_store_that_stops_answering_empties_the_gate_before_the_engine_hears_of_it() -> None:
    world = World()
    world.says(record(), commands=(action("api"), action("db")))
    world.post()
    world.post(JournalChanged(at=world.loop.at(), well=False, detail="full"))
    kinds = [type(event).__name__ for event in world.engine.heard]
    assert kinds == ["JournalChanged", "JournalChanged", "ActionFinished", "ActionFinished"]
    world.store.stores()  # it comes back late, and stores the intent: it must not start any more
    assert world.done == []


def test_an_action_that_is_cancelled_at_the_gate_does_not_take_its_neighbour_along() -> None:
    world = World()
    world.says(record(), commands=(action("api"), action("db")))
    world.post()
    world.says(commands=(CancelAction(intent="1/api/1/0"),))
    world.post()
    world.store.stores(8)
    assert world.done == [action("db")]
    assert [e.intent for e in world.engine.heard if isinstance(e, ActionFinished)] == ["1/api/1/0"]


def test_with_act_without_journal_the_gate_stands_open_while_the_store_is_down() -> None:
    world = World(fleet=Fleet(limits=Limits(act_without_journal=True)))
    world.says(record(), commands=(action("api"),))
    world.post()
    world.post(JournalChanged(at=world.loop.at(), well=False))
    assert world.done == [action("api")]
    world.says(record(), commands=(action("db"),), on=CheckFinished)
    world.post(_checked(world))
    assert world.done == [action("api"), action("db")]
    world.store.stores()
    assert len(world.done) == 2


def test_nothing_passes_the_gate_once_it_is_closed_and_only_ends_are_heard() -> None:
    world = World()
    world.says(record(), commands=(action("api"),))
    world.post()
    world.loop.close()
    world.store.stores()
    assert world.done == []
    world.post(_checked(world))
    world.post(ActionFinished(at=world.loop.at(), intent="x", settled=Settled.INTERRUPTED))
    assert [type(event).__name__ for event in world.engine.heard] == [
        "JournalChanged", "ActionFinished", "ActionFinished",
    ]  # fmt: skip
    world.engine.wakes = 0.0
    assert world.loop.beat() == inf


def _checked(world: World) -> CheckFinished:
    at = world.loop.at()
    return CheckFinished(
        at=at, service="api", generation=0, purpose=Purpose.ROUTINE, started=at, ended=at, result=PASSING
    )


# -- what is told ----------------------------------------------------------------------------------------------------


def test_batches_are_told_in_order_once_they_are_stored() -> None:
    world = World()
    for _ in range(3):
        world.says(record())
        world.post()
    assert world.told == []
    world.store.stores(8)
    assert world.told == [(8, False)]
    world.store.stores(10)  # a store that says only the last
    assert world.told == [(8, False), (9, False), (10, False)]


def test_while_the_store_is_down_everything_is_told_at_once_and_counted_when_it_is_back() -> None:
    world = World()
    world.says(record(), record())
    world.post()
    world.says()
    world.post(JournalChanged(at=world.loop.at(), well=False))
    world.says(record(), on=CheckFinished)
    world.post(_checked(world))
    assert world.told == [(8, True), (10, True)]
    world.says()
    world.post(JournalChanged(at=world.loop.at(), well=True))
    world.store.stores()
    assert world.told == [(8, True), (10, True)]
    assert world.caught == 3


def test_what_the_store_never_had_is_told_as_volatile_in_its_place() -> None:
    world = World()
    for _ in range(3):
        world.says(record())
        world.post()
    world.store.refuses(9)
    assert world.told == []
    world.store.stores(8, 10)
    assert world.told == [(8, False), (9, True), (10, False)]
    assert world.caught == 0


def test_a_loss_is_made_whole_by_a_snapshot() -> None:
    world = World()
    world.says(record())
    world.post()
    world.store.refuses(8)
    world.says(record())
    world.post()
    assert world.store.snapshots == [9]


def test_a_reader_that_causes_a_record_while_the_store_is_down_is_told_of_it_afterwards() -> None:
    world = World()
    world.says()
    world.post(JournalChanged(at=world.loop.at(), well=False))
    noted: list[int] = []

    def reader(batch: Batch) -> None:
        if not noted:
            noted.append(batch.number)
            world.loop.note([Delivered(at=100.0, notification="n", notifier="people", service="")])
            assert world.told == [(batch.number, True)]

    world.reader = reader
    world.says(record(), on=CheckFinished)
    world.post(_checked(world))
    assert world.told == [(9, True), (10, True)]


def test_receipts_do_not_wait_for_the_disk_and_are_stored_with_what_caused_them() -> None:
    world = World()
    finished = DeliveryFinished(at=100.0, notification="n", notifier="people")
    world.loop.note([Delivered(at=100.0, notification="n", notifier="people", service="")], finished)
    assert world.store.durable == [False]
    assert world.store.batches[0].input == finished


def test_a_wake_up_is_no_input_and_one_without_records_is_not_stored() -> None:
    world = World()
    world.engine.wakes = 100.0
    world.engine.outputs[TimePassed] = [Output(), Output((record(),))]
    world.loop.beat()
    assert world.store.batches == []
    world.loop.beat()
    assert world.store.batches[0].input is None


def test_a_snapshot_is_saved_every_so_many_records() -> None:
    world = World()
    for n in range(SNAPSHOT_EVERY):
        world.says(record())
        world.post()
        assert bool(world.store.snapshots) is (n == SNAPSHOT_EVERY - 1)


# -- time ------------------------------------------------------------------------------------------------------------


def test_journal_time_goes_on_from_where_it_was_and_never_back() -> None:
    world = World()
    first = world.loop.at()
    assert 100.0 <= first < 101.0
    assert world.loop.at() >= first
    assert world.loop.from_unix(world.loop.to_unix(150.0)) == pytest.approx(150.0, abs=0.01)


def test_it_wakes_at_the_first_grid_point_not_before_the_deadline() -> None:
    world = World()
    world.engine.wakes = world.loop.at() + 5.0033
    due = world.loop.at(world.loop.beat())
    assert world.engine.wakes <= due < world.engine.wakes + GRID + 1e-6
    assert due / GRID == pytest.approx(round(due / GRID), abs=1e-3)


def test_while_something_is_under_way_it_wakes_at_the_latest_after_a_pulse() -> None:
    world = World()
    world.engine.wakes = world.loop.at() + 3600.0
    assert world.loop.beat() - time.monotonic() > 3000.0
    world.loop.under_way = lambda: True
    assert PULSE - 0.1 < world.loop.beat() - time.monotonic() <= PULSE
    world.probes.deadline = time.monotonic() + 0.1
    assert world.loop.beat() - time.monotonic() <= 0.1


def test_waking_late_is_said_before_everything_else_of_that_moment() -> None:
    world = World()
    world.engine.wakes = world.loop.at() + 0.02
    world.loop.beat()
    time.sleep(0.4)
    world.post(_checked(world))
    late, checked = world.engine.heard
    assert isinstance(late, WokeLate)
    assert 0.25 < late.late < 1.0
    assert isinstance(checked, CheckFinished)
    world.post(_checked(world))
    assert [type(event) for event in world.engine.heard].count(WokeLate) == 1  # said once


def test_a_little_late_is_no_doubt() -> None:
    world = World()
    world.engine.wakes = world.loop.at() + 0.01
    world.loop.beat()
    time.sleep(0.1)
    world.loop.beat()
    assert [type(event) for event in world.engine.heard] == [TimePassed]


@pytest.mark.parametrize("seed", range(3))
def test_how_late_it_was_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Against a list of all there was; a wake-up is noticed at most once, so the clock is moved by hand."""
    world, draw, now = World(), Random(seed), 1000.0
    monkeypatch.setattr("selfheal.shell.loop.monotonic", lambda: now)
    known: list[tuple[float, float]] = []
    assert world.loop.lag == 0.0
    for _ in range(400):
        now += draw.choice((0.01, 0.3, 5.0, 20.0))
        late = draw.choice((0.001, draw.uniform(0.0, 0.2)))
        world.loop._lagged(now, late)
        known.append((now, late))
        assert len(world.loop._lags) <= 62
        least = max((late for when, late in known if when >= now - 59.0), default=0.0)
        most = max((late for when, late in known if when >= now - 60.0), default=0.0)
        assert least <= world.loop.lag <= most
    now += 62.0
    assert world.loop.lag == 0.0


def test_what_is_due_sooner_is_said_to_who_wakes_us() -> None:
    world = World()
    asked: list[float] = []
    world.loop.sooner = asked.append
    world.engine.wakes = world.loop.at() + 100.0
    world.loop.beat()
    world.engine.wakes = world.loop.at() + 1.0
    world.post()
    assert len(asked) == 1
    world.loop.hurry()
    assert len(asked) == 1


# -- what passed may wait a moment -----------------------------------------------------------------------------------


def _woken_soon(grid: float = 10.0) -> World:
    """Return a world whose loop plans to wake within a step of its grid, one that is wide enough for any machine."""
    world = World(grid=grid)
    world.engine.wakes = 100.0 + grid
    assert world.loop.at(world.loop.beat()) == pytest.approx(100.0 + grid)
    return world


def _failed(world: World) -> CheckFinished:
    return attrs.evolve(_checked(world), result=CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE))


def _passed(world: World, service: str) -> CheckFinished:
    return attrs.evolve(_checked(world), service=service)


def test_what_passed_shortly_before_a_wake_up_is_heard_with_it_in_order_and_once() -> None:
    world = _woken_soon()
    results = [_passed(world, name) for name in ("a", "b", "c")]
    for result in results:
        world.post(result)
    assert [event for event in world.engine.heard if isinstance(event, CheckFinished)] == []
    world.engine.wakes = 0.0
    world.loop.beat()
    *first, last = [event for event in world.engine.heard if event.at >= results[0].at]
    assert first == results
    assert isinstance(last, TimePassed)
    assert [batch.input for batch in world.store.batches] == results
    world.loop.beat()
    assert [event for event in world.engine.heard if isinstance(event, CheckFinished)] == results


def test_what_passed_is_heard_at_once_when_the_next_wake_up_is_far() -> None:
    world = World()
    world.engine.wakes = world.loop.at() + 3 * GRID
    world.loop.beat()
    world.post(_checked(world))
    assert len(world.engine.heard) == 1


@pytest.mark.parametrize(
    "differs",
    [
        {"result": CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE)},
        {"result": CheckResult(Verdict.WARNING)},
        {"purpose": Purpose.VERIFY},
    ],
)
def test_nothing_but_a_routine_check_that_passed_waits(differs: dict[str, Any]) -> None:
    world = _woken_soon()
    before = len(world.engine.heard)
    world.post(attrs.evolve(_checked(world), **differs))
    assert len(world.engine.heard) == before + 1


def test_whatever_else_comes_is_heard_after_what_waits() -> None:
    world = _woken_soon()
    before = len(world.engine.heard)
    passed, failed = _checked(world), _failed(world)
    world.post(passed)
    world.post(failed)
    assert world.engine.heard[before:] == [passed, failed]


def test_a_stop_hears_what_waits_and_nothing_that_comes_after_it() -> None:
    world = _woken_soon()
    passed = _checked(world)
    world.post(passed)
    world.loop.close()
    assert world.engine.heard[-1] == passed
    world.post(_checked(world))
    world.post(ActionFinished(at=world.loop.at(), intent="x", settled=Settled.INTERRUPTED))
    assert [type(event) for event in world.engine.heard[-2:]] == [CheckFinished, ActionFinished]


def test_a_standstill_is_said_after_what_had_passed_before_it() -> None:
    world = _woken_soon(0.2)
    passed = _checked(world)
    world.post(passed)
    time.sleep(0.6)
    world.loop.beat()
    heard = [event for event in world.engine.heard if event.at >= passed.at]
    assert heard[0] == passed
    assert isinstance(heard[1], WokeLate)


def test_what_waits_is_stored_before_the_words_of_the_router() -> None:
    world = _woken_soon()
    passed = _checked(world)
    world.post(passed)
    world.loop.note([Delivered(at=passed.at, notification="n", notifier="people", service="")])
    assert world.store.batches[0].input == passed
    assert len(world.store.batches) == 2


def test_a_fault_in_what_waits_is_not_the_readers_whose_word_found_it() -> None:
    world = _woken_soon()
    world.loop.engine = Faulty()
    world.post(_checked(world))
    assert world.loop.broken is None
    world.loop.note([Delivered(at=100.0, notification="n", notifier="people", service="")])
    assert isinstance(world.loop.broken, ZeroDivisionError)


def test_a_check_that_a_result_has_begun_and_that_has_ended_needs_no_wake_up_of_its_own() -> None:
    world = World()
    ends = [["a"], ["b"]]  # asked once more it would fail

    def expire(now: float) -> None:
        for name in ends.pop(0):
            world.post(_passed(world, name))
        world.probes.deadline = now if ends else None

    world.probes.expire = expire  # type: ignore[method-assign]
    world.loop.beat()
    assert [event.service for event in world.engine.heard if isinstance(event, CheckFinished)] == ["a", "b"]
    assert world.loop.broken is None


def test_a_fleet_whose_checks_never_end_beginning_others_leaves_the_host_its_turn() -> None:
    world = World()

    def expire(now: float) -> None:
        world.probes.expired.append(now)
        world.probes.deadline = now

    world.probes.expire = expire  # type: ignore[method-assign]
    assert world.loop.beat() <= time.monotonic()
    assert len(world.probes.expired) == ROUNDS


# -- a fault of ours -------------------------------------------------------------------------------------------------


class Faulty(Scripted):
    def receive(self, event: Event) -> Output:
        if isinstance(event, CheckFinished):
            raise ZeroDivisionError("a fault of ours")
        return super().receive(event)


def test_a_fault_breaks_the_loop_and_nobody_else() -> None:
    world = World()
    world.loop.engine = Faulty()
    broke: list[Exception] = []
    world.loop.broke = broke.append
    world.says(record(), commands=(action("api"),))
    world.post(_checked(world))
    assert isinstance(world.loop.broken, ZeroDivisionError)
    assert broke == [world.loop.broken]
    world.post()
    world.engine.wakes = 0.0
    assert world.loop.beat() == inf
    world.loop.hurry()
    assert len(broke) == 1


def test_after_a_fault_in_a_wake_up_nothing_is_due() -> None:
    class Dead(Scripted):
        def receive(self, event: Event) -> Output:
            raise ZeroDivisionError("a fault of ours")

    world = World()
    world.loop.engine = engine = Dead()
    engine.wakes = 0.0
    assert world.loop.beat() == inf
    assert isinstance(world.loop.broken, ZeroDivisionError)
    assert world.loop.beat() == inf


def test_an_event_that_comes_while_one_is_dealt_with_waits_for_its_turn() -> None:
    world = World()
    order: list[str] = []

    class Nested(Scripted):
        def receive(self, event: Event) -> Output:
            order.append(f"begin {type(event).__name__}")
            if isinstance(event, Started):
                world.post()
            order.append(f"end {type(event).__name__}")
            return Output()

    world.loop.engine = Nested()
    world.post(Started(at=world.loop.at(), fleet=Fleet(policies=(Policy(name="api"),))))
    assert order == ["begin Started", "end Started", "begin JournalChanged", "end JournalChanged"]
