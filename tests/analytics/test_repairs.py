"""What came of each step that was taken: by what checks said afterwards, never by its own word."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from selfheal.analytics.repairs import Outcome, Repairs
from selfheal.core.model import Condition, Fleet, Policy, Settled, State, Step
from selfheal.core.records import Ended, Intended, Moved, Record
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld


def intended(at: float, *, action: str = "restart", step: int = 0, service: str = "db") -> Intended:
    key = f"1/{service}/1/{step}"
    return Intended(at=at, intent=key, service=service, incident=1, attempt=1, step=step, action=action)


def ended(at: float, settled: Settled = Settled.DONE) -> Ended:
    return Ended(at=at, intent="1/db/1/0", service="db", settled=settled)


def moved(at: float, before: State, after: State) -> Moved:
    return Moved(at=at, service="db", before=Condition(state=before), after=Condition(state=after))


def outcome(*records: Record) -> tuple[Outcome | None, float | None]:
    (repair,) = Repairs([intended(10.0), *records]).all
    return repair.outcome, repair.seconds


WELL_AGAIN = moved(40.0, State.RECOVERING, State.HEALTHY)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], (None, None)),
        ([ended(20.0)], (None, None)),
        ([ended(20.0), WELL_AGAIN], (Outcome.SUCCESS, 30.0)),
        ([ended(20.0, Settled.FAILED), WELL_AGAIN], (Outcome.SUCCESS, 30.0)),
        ([ended(20.0, Settled.IN_DOUBT), WELL_AGAIN], (Outcome.SUCCESS, 30.0)),
        ([ended(20.0), moved(50.0, State.RECOVERING, State.DEGRADED)], (Outcome.SUCCESS, 40.0)),
        ([ended(20.0), moved(50.0, State.RECOVERING, State.FAILED)], (Outcome.FAILURE, 40.0)),
        ([ended(20.0), moved(50.0, State.RECOVERING, State.DISABLED)], (Outcome.UNKNOWN, 40.0)),
        ([moved(11.0, State.FAILED, State.RECOVERING)], (None, None)),
        ([ended(11.0, Settled.SUPERSEDED), WELL_AGAIN], (Outcome.SUPERSEDED, 1.0)),
        ([ended(11.0, Settled.NOT_STARTED), WELL_AGAIN], (Outcome.NOT_STARTED, 1.0)),
    ],
)
def test_checks_decide(records: list[Record], expected: tuple[Any, Any]) -> None:
    assert outcome(*records) == expected


def test_the_next_step_means_that_this_one_did_not_help() -> None:
    first, second = Repairs([intended(10.0, action="reconnect"), ended(12.0), intended(30.0, step=1), WELL_AGAIN]).all
    assert (first.action, first.outcome, first.seconds) == ("reconnect", Outcome.FAILURE, 20.0)
    assert (second.action, second.outcome, second.seconds) == ("restart", Outcome.SUCCESS, 10.0)


def test_what_happens_to_another_service_decides_nothing() -> None:
    (repair,) = Repairs([intended(10.0, service="api"), ended(20.0), WELL_AGAIN]).all
    assert (repair.settled, repair.outcome) == (None, None)


def test_a_ladder_of_the_engine_itself() -> None:
    policy = Policy(name="db", has_workload=True, steps=(Step(action="reconnect"), Step(action="restart")))
    fleet = Fleet(policies=(policy,))
    world = SimpleWorld(fleet)
    world.things["db"].cured_by = frozenset({"restart"})
    simulator = Simulator(fleet, world)
    simulator.at(60.0, lambda: world.breaks("db"))
    simulator.run(600.0)
    found = [(repair.action, repair.outcome) for repair in Repairs(simulator.records).all]
    assert found == [("reconnect", Outcome.FAILURE), ("restart", Outcome.SUCCESS)]
    assert attrs.asdict(Repairs(simulator.records).all[1])["settled"] is Settled.DONE
