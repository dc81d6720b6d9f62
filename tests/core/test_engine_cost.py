"""What an event costs, counted and not timed: objects left behind, bytes for a moment, lines of Python run.

The benchmark (`benchmarks/engine.py`) tells microseconds; these tests fail where somebody makes the ordinary path say
something, leave something behind, or look at the whole fleet.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from selfheal.core.engine import Engine
from selfheal.core.messages import NOTHING, CheckFinished, Event, Output, RunCheck, Started, TimePassed
from selfheal.core.model import PASSING, Cause, CheckResult, Fleet, Limits, Policy, State, Step, Verdict

FAILING = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE, summary="refused")
SMALL, LARGE = 10, 1000


def settled(count: int) -> Engine:
    """Return an engine whose services are all healthy, with nothing in flight."""
    policies = tuple(Policy(name=f"s{i}", steps=(Step(action="restart"),), min_failing_span=0.0) for i in range(count))
    engine = Engine()
    wanted = checks(engine.receive(Started(at=0.0, fleet=Fleet(policies=policies, limits=Limits(storm_floor=10_000)))))
    done = 0
    while done < 3 * count or wanted:
        wanted = [more for command in wanted for more in checks(engine.receive(result(engine, command)))]
        if done < 3 * count and not wanted:
            wanted = checks(engine.receive(TimePassed(at=engine.deadline)))
            done += len(wanted)
    assert all(condition.state is State.HEALTHY for condition in engine.ledger.conditions.values())
    return engine


def checks(output: Output) -> list[RunCheck]:
    return [command for command in output.commands if isinstance(command, RunCheck)]


def result(engine: Engine, command: RunCheck, said: CheckResult = PASSING) -> CheckFinished:
    return CheckFinished(
        at=engine.now,
        service=command.service,
        generation=command.generation,
        purpose=command.purpose,
        started=engine.now,
        ended=engine.now,
        result=said,
    )


def passing(engine: Engine) -> Iterator[Event]:
    """Yield what a healthy fleet brings, for ever: a wake-up, the result it asked for, the next wake-up."""
    while True:
        wake = TimePassed(at=engine.deadline)
        yield wake
        for name, watch in engine.desk.watches.items():
            if watch.flight is not None:
                yield result(engine, RunCheck(service=name, generation=0, purpose=watch.flight))


def failing(engine: Engine) -> Iterator[Event]:
    """Yield the third failure of one service after the other: it is confirmed, an incident, an alert, a look."""
    wanted: list[RunCheck] = []
    for ill, watch in engine.desk.watches.items():
        while engine.ledger.conditions[ill].state is not State.FAILED:
            wanted = wanted or checks(engine.receive(TimePassed(at=engine.deadline)))
            command = wanted.pop()
            event = result(engine, command, FAILING if command.service == ill else PASSING)
            if command.service == ill and watch.evidence.failures == 2:
                yield event
            else:
                wanted += checks(engine.receive(event))


# -- how to count ----------------------------------------------------------------------------------------------------


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the collector and whoever traces (a measurement of coverage) out of what is counted."""
    tracer, collects = sys.gettrace(), gc.isenabled()
    sys.settrace(None)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        sys.settrace(tracer)


def lines(work: Callable[[], Any]) -> int:
    """Return how many lines of Python `work` runs."""
    count = 0

    def local(frame: FrameType, what: str, argument: object) -> Any:
        nonlocal count
        count += what == "line"
        return local

    sys.settrace(local)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


def moment(work: Callable[[], Any]) -> int:
    """Return how many bytes more than before `work` holds at its worst moment."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def least(count: int, kind: type[Event], events: Callable[[Engine], Iterator[Event]], cost: Any) -> int:
    """Return what the cheapest of many such events costs in a fleet of `count`.

    The cheapest, because now and then a dictionary grows, and that is paid for by the thousands that follow.
    """
    engine = settled(count)
    found: list[int] = []
    with undisturbed():
        for event in events(engine):
            if isinstance(event, kind):
                found.append(cost(lambda event=event: engine.receive(event)))
            else:
                engine.receive(event)
            if len(found) == 20:
                break
    return min(found)


# -- the ordinary path -------------------------------------------------------------------------------------------------


def test_a_passing_result_of_a_healthy_service_says_nothing() -> None:
    engine = settled(SMALL)
    feed = passing(engine)
    for _ in range(100):
        event = next(feed)
        output = engine.receive(event)
        if isinstance(event, CheckFinished):
            assert output is NOTHING
        else:
            assert not output.records


def test_a_healthy_fleet_leaves_nothing_behind() -> None:
    engine = settled(SMALL)
    feed = passing(engine)

    def rounds(many: int) -> None:
        for _ in range(many):
            engine.receive(next(feed))

    rounds(2000)
    with undisturbed():
        tracked, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        rounds(2000)
        assert gc.collect() == 0, "the ordinary path makes cycles"
        assert abs(len(gc.get_objects()) - tracked) < 50
        assert abs(sys.getallocatedblocks() - blocks) < 200


def test_a_routine_check_is_asked_for_by_the_same_object_each_time() -> None:
    engine = settled(SMALL)
    seen: dict[str, RunCheck] = {}
    feed = passing(engine)
    for _ in range(10 * SMALL):
        for command in checks(engine.receive(next(feed))):
            assert seen.setdefault(command.service, command) is command


def test_a_passing_result_needs_a_few_hundred_bytes_for_a_moment() -> None:
    assert least(SMALL, CheckFinished, passing, moment) < 400


# -- flat --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "events"),
    [(CheckFinished, passing), (TimePassed, passing), (CheckFinished, failing)],
    ids=["result", "wake-up", "failure"],
)
def test_an_event_runs_as_many_lines_in_a_large_fleet_as_in_a_small_one(
    kind: type[Event], events: Callable[[Engine], Iterator[Event]]
) -> None:
    assert least(LARGE, kind, events, lines) <= least(SMALL, kind, events, lines) + 10


@pytest.mark.parametrize(
    ("kind", "events"),
    [(CheckFinished, passing), (TimePassed, passing), (CheckFinished, failing)],
    ids=["result", "wake-up", "failure"],
)
def test_an_event_needs_as_much_memory_in_a_large_fleet_as_in_a_small_one(
    kind: type[Event], events: Callable[[Engine], Iterator[Event]]
) -> None:
    """What copies or lists the fleet inside C needs eight bytes a service at least."""
    assert least(LARGE, kind, events, moment) < least(SMALL, kind, events, moment) + 4 * LARGE
