"""Scenarios of the whole engine, by number: what a healer must do where a script would do harm.

The numbers are those of `docs/reference/scenarios.md`. Each runs the real engine in virtual time, under the laws.
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import pytest

from selfheal.core.model import Cause, Dependency, Effect, Fleet, Limits, Policy, State, Step
from selfheal.core.records import AlertChanged, Ended, Intended, Moved
from selfheal.testing.laws import Laws
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

HOUR = 3600.0
RESTART = (Step(action="restart"),)


def service(name: str, *needs: str, **changes: Any) -> Policy:
    """Return a service with a workload, a ladder of one step, and hard parents."""
    parents = tuple(Dependency(services=(parent,)) for parent in needs)
    given: dict[str, Any] = {"name": name, "has_workload": True, "steps": RESTART, "depends_on": parents, **changes}
    return Policy(**given)


def fleet_of(*policies: Policy, limits: Limits = Limits()) -> tuple[Simulator, SimpleWorld]:  # noqa: B008  # frozen
    """Return a fleet under virtual time, watched by the laws, and the world it is in."""
    fleet = Fleet(policies=policies, limits=limits)
    world = SimpleWorld(fleet, action_takes=(5.0, 15.0))
    return Simulator(fleet, world, watchers=[Laws()]), world


def intended(sim: Simulator, name: str = "") -> list[Intended]:
    """Return the actions that were begun, of one service or of all."""
    return [r for r in sim.records if isinstance(r, Intended) and name in ("", r.service)]


def state(sim: Simulator, name: str) -> State:
    """Return how a service stands."""
    return sim.engine.ledger.conditions[name].state


def reasons(sim: Simulator, name: str) -> set[str]:
    """Return why a service that was down was not acted on."""
    moves = [r for r in sim.records if isinstance(r, Moved) and r.service == name]
    return {move.after.reason for move in moves if move.after.state is State.FAILED}


# -- state ------------------------------------------------------------------------------------------------------------


def test_s1_a_restart_that_helps_ends_in_health_and_the_next_outage_is_seen() -> None:
    sim, world = fleet_of(service("api"))
    sim.at(60.0, lambda: world.breaks("api"))
    sim.run(400.0)
    assert state(sim, "api") is State.HEALTHY
    assert len(intended(sim)) == 1
    sim.at(1200.0, lambda: world.breaks("api"))
    sim.run(1800.0)
    assert state(sim, "api") is State.HEALTHY
    assert [one.incident for one in intended(sim)] == [1, 2]


def test_s3_what_never_recovers_is_restarted_as_often_as_is_allowed_and_stays_failed() -> None:
    sim, world = fleet_of(service("api", max_retries=2, slow_retry=None))
    world.things["api"].cured_by = frozenset()
    world.breaks("api")
    sim.run(24 * HOUR)
    assert len(intended(sim)) == 2
    assert state(sim, "api") is State.FAILED
    assert sim.engine.ledger.conditions["api"].reason == "escalated"


def test_s3_slow_retries_stay_within_the_budget_of_every_hour() -> None:
    sim, world = fleet_of(service("api", max_retries=2))
    world.things["api"].cured_by = frozenset()
    world.breaks("api")
    sim.run(24 * HOUR)
    times = [one.at for one in intended(sim)]
    assert 2 < len(times) <= 10
    assert all(len([t for t in times if begin <= t < begin + HOUR]) <= 3 for begin in times)


def test_s19_what_flips_between_well_and_ill_is_told_once_and_not_restarted() -> None:
    sim, world = fleet_of(service("api", failure_threshold=2))
    world.things["api"].pattern = (True, False)
    sim.run(2 * HOUR)
    assert intended(sim) == []
    assert sim.engine.ledger.conditions["api"].state in (State.DEGRADED, State.UNHEALTHY)
    opened = [r for r in sim.records if isinstance(r, AlertChanged) and r.open]
    assert [(r.alert.rule, r.because) for r in opened] == [("degraded", opened[0].because)]


# -- many at once -----------------------------------------------------------------------------------------------------


def test_s26_however_many_fail_no_more_recover_at_once_than_may() -> None:
    sim, world = fleet_of(*(service(f"s{number}") for number in range(60)))
    for number in range(20):
        sim.at(60.0, lambda name=f"s{number}": world.breaks(name))
    most = 0

    def count(*seen: object) -> None:
        nonlocal most
        most = max(most, len(sim.engine.ledger.occupied))

    sim.watchers.append(count)
    sim.run(2 * HOUR)
    assert most == 3
    assert {state(sim, f"s{number}") for number in range(20)} == {State.HEALTHY}


def test_s34_equal_services_that_fail_together_are_not_tried_again_together() -> None:
    names = [f"s{number}" for number in range(10)]
    many = Limits(max_concurrent_recoveries=20, budget_floor=100)
    sim, world = fleet_of(*(service(name) for name in [*names, *"abcdefghijkl"]), limits=many)
    for name in names:
        world.things[name].cured_by = frozenset()
        world.breaks(name)
    sim.run(600.0)
    ends = {r.after.not_before - r.at for r in sim.records if isinstance(r, Moved) and r.after.reason == "backoff"}
    assert len(ends) >= 10
    begun = sorted(one.at for one in intended(sim) if one.attempt == 2)
    assert len(begun) >= 5
    assert all(later - earlier > 0.1 for earlier, later in pairwise(begun))


# -- recovery ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", "refuse", "approve"])
def test_s27_data_is_deleted_only_with_a_persons_word(answer: str) -> None:
    wipe = Step(action="reset_cache", effect=Effect.DESTRUCTIVE)
    sim, world = fleet_of(service("redis", steps=(*RESTART, wipe), max_retries=1, slow_retry=None))
    world.things["redis"].cured_by = frozenset({"reset_cache"})
    sim.at(60.0, lambda: world.breaks("redis"))
    if answer:
        sim.at(300.0, lambda: sim.request(answer, "redis"))
    sim.run(2 * HOUR)
    wiped = [one for one in intended(sim) if one.action == "reset_cache"]
    assert "held:approval" in reasons(sim, "redis")
    assert len(wiped) == (answer == "approve")
    assert state(sim, "redis") is (State.HEALTHY if wiped else State.FAILED)


# -- dependencies -----------------------------------------------------------------------------------------------------


def test_s42_a_parent_that_was_never_checked_is_checked_first() -> None:
    sim, world = fleet_of(service("db", interval=HOUR), service("api", "db"))
    world.breaks("db")
    sim.run(20 * 60.0)
    assert [one.service for one in intended(sim)] == ["db"]
    assert {state(sim, "db"), state(sim, "api")} == {State.HEALTHY}


def test_s43_a_child_of_a_parent_that_is_down_is_not_touched_and_spends_nothing() -> None:
    sim, world = fleet_of(service("db", observe_only=True), service("api", "db"))
    sim.at(60.0, lambda: world.breaks("db"))
    sim.run(HOUR)
    assert intended(sim) == []
    condition = sim.engine.ledger.conditions["api"]
    assert (condition.state, condition.reason, condition.attempt) == (State.FAILED, "waiting-for:db", 0)
    assert sim.engine.ledger.spent.get("api", ()) == ()


def test_s45_a_parent_that_falls_during_a_recovery_lets_the_next_attempt_wait() -> None:
    sim, world = fleet_of(service("db", observe_only=True), service("api", "db"))
    world.things["api"].cured_by = frozenset()
    sim.at(60.0, lambda: world.breaks("api"))
    first: list[float] = []

    def fell(*seen: object) -> None:
        if not first and any(isinstance(r, Ended) and r.service == "api" for r in sim.records):
            first.append(sim.now)
            world.breaks("db", heals_at=sim.now + 900.0)

    sim.watchers.append(fell)
    sim.run(HOUR)
    (fell_at,) = first
    begun = [one.at for one in intended(sim, "api")]
    assert not [at for at in begun if fell_at < at < fell_at + 900.0]
    assert [at for at in begun if at > fell_at + 900.0], "and when the parent is back, it goes on"
    assert "waiting-for:db" in reasons(sim, "api")


def test_s46_a_parent_that_is_repaired_for_long_blocks_its_dependents_no_longer_than_it_is_down() -> None:
    sim, world = fleet_of(service("db", start_grace=30.0), service("api", "db"))
    world.things["db"].boot = 200.0
    sim.at(60.0, lambda: world.breaks("db", Cause.TIMEOUT))
    sim.at(70.0, lambda: world.breaks("api"))
    sim.run(HOUR)
    db_well = max(r.at for r in sim.records if isinstance(r, Moved) and r.service == "db" and r.after.state is State.HEALTHY)
    assert [one.at for one in intended(sim, "api")][0] - db_well < 60.0
    assert state(sim, "api") is State.HEALTHY


# -- the clock --------------------------------------------------------------------------------------------------------

STEPS_BACK = """
import time, anyio, selfheal
from selfheal import Verdict
real, back = time.time, [0.0]
time.time = lambda: real() - back[0]
checks = []
async def main():
    supervisor = selfheal.Supervisor([], journal="clock.db")
    @supervisor.service("api", interval=0.2)
    async def answers():
        checks.append(time.monotonic())
        return True
    async with supervisor:
        while len(checks) < 3:
            await anyio.sleep(0.02)
        back[0] = 3600.0
        began, seen = time.monotonic(), len(checks)
        while len(checks) < seen + 5:
            assert time.monotonic() - began < 20.0, "no check after the step"
            await anyio.sleep(0.02)
        status = await supervisor.ask("status")
        assert status["counts"]["healthy"] == 1, status
anyio.run(main)
print("went on")
"""


@pytest.mark.real_time
def test_s12_a_wall_clock_that_steps_back_an_hour_stops_no_check(tmp_path: Any) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STEPS_BACK], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "went on", done.stderr
    assert time.monotonic() - began < 30.0
