"""One service: its legal moves, its ladder, and what its condition is after each turn of a recovery."""

from __future__ import annotations

from math import inf
from typing import Any

import attrs
import pytest

from selfheal.core import machine
from selfheal.core.model import (
    MANUAL,
    Backoff,
    Budget,
    Cause,
    Condition,
    Effect,
    Evidence,
    Forced,
    Instance,
    Policy,
    Run,
    State,
    Step,
)

RECONNECT = Step(action="reconnect", effect=Effect.GENTLE, needs_running=True)
RESTART = Step(action="restart")
PEOPLE = Step(action=MANUAL, effect=Effect.GENTLE)


def policy(*steps: Step, **changes: Any) -> Policy:
    return Policy(name="db", steps=steps or (RECONNECT, RESTART), backoff=Backoff(jitter=0.0), **changes)


DOWN = Condition(state=State.FAILED, incident=1, correlation="db@5.000", cause=Cause.UNREACHABLE, generation=3)


# -- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_only_the_moves_of_the_table_are_made(before: State, after: State) -> None:
    condition = Condition(state=before)
    if before is after or after in machine.TRANSITIONS[before]:
        assert machine.moved(condition, 9.0, state=after).state is after
    else:
        with pytest.raises(AssertionError, match="is no legal move"):
            machine.moved(condition, 9.0, state=after)


def test_nothing_leaves_disabled_but_by_being_switched_on() -> None:
    assert set(machine.TRANSITIONS[State.DISABLED]) == {State.UNKNOWN}


def test_health_is_reached_from_wherever_checks_go_on() -> None:
    for state in set(State) - {State.HEALTHY, State.DISABLED}:
        assert State.HEALTHY in machine.TRANSITIONS[state]


def test_an_action_begins_only_from_failed() -> None:
    assert [state for state in State if State.RECOVERING in machine.TRANSITIONS[state]] == [State.FAILED]


def test_another_state_is_stamped_and_forgets_its_reason() -> None:
    before = Condition(state=State.FAILED, reason="backoff", detail="after attempt 1", since=1.0)
    after = machine.moved(before, 9.0, state=State.HEALTHY)
    assert (after.since, after.reason, after.detail) == (9.0, "", "")
    same = machine.moved(before, 9.0, detail="other")
    assert (same.since, same.reason, same.detail) == (1.0, "backoff", "other")
    named = machine.moved(before, 9.0, state=State.DEGRADED, reason="warning")
    assert named.reason == "warning"


# -- the ladder -----------------------------------------------------------------------------------------------------


def running(run: Run) -> Evidence:
    return Evidence(instance=Instance(id="db#1", run=run), cause=Cause.UNREACHABLE)


def test_the_ladder_is_climbed_from_the_cursor() -> None:
    assert machine.next_step(policy(), DOWN, Evidence()) == 0
    assert machine.next_step(policy(), attrs.evolve(DOWN, cursor=1), Evidence()) == 1
    assert machine.next_step(policy(), attrs.evolve(DOWN, cursor=2), Evidence()) is None


def test_there_is_nothing_to_reconnect_to_where_nothing_runs() -> None:
    managed = policy(has_workload=True)
    assert machine.next_step(managed, DOWN, running(Run.EXITED)) == 1
    assert machine.next_step(managed, DOWN, running(Run.ABSENT)) == 1
    assert machine.next_step(managed, DOWN, running(Run.RUNNING)) == 0
    assert machine.next_step(managed, DOWN, Evidence()) == 0
    assert machine.next_step(policy(), DOWN, running(Run.EXITED)) == 0  # without a workload nobody has looked


def test_a_step_for_other_causes_is_passed_over() -> None:
    scaling = Step(action="scale_up", only_for=frozenset({Cause.OVERLOADED}))
    assert machine.next_step(policy(scaling, RESTART), DOWN, Evidence(cause=Cause.TIMEOUT)) == 1
    assert machine.next_step(policy(scaling, RESTART), DOWN, Evidence(cause=Cause.OVERLOADED)) == 0


def test_a_step_of_later_attempts_waits_for_them() -> None:
    late = policy(Step(action="failover", from_attempt=2), RESTART)
    assert machine.next_step(late, DOWN, Evidence()) == 1
    assert machine.next_step(late, attrs.evolve(DOWN, attempt=1), Evidence()) == 0
    assert machine.next_step(late, attrs.evolve(DOWN, attempt=1, in_attempt=True), Evidence()) == 1


@pytest.mark.parametrize("cause", [Cause.AUTH, Cause.CONFIG])
def test_no_password_and_no_setting_is_cured_by_a_restart(cause: Cause) -> None:
    e = Evidence(cause=cause)
    assert machine.next_step(policy(RESTART), DOWN, e) is None
    assert machine.next_step(policy(RESTART, PEOPLE), DOWN, e) == 1
    assert machine.next_step(policy(RECONNECT, RESTART), DOWN, e) == 0


def test_what_only_people_mend_is_left_to_them_once_all_attempts_are_used() -> None:
    gentle = policy(RECONNECT, PEOPLE, max_retries=2)
    for attempt, cause, step in [(1, Cause.AUTH, 0), (2, Cause.AUTH, 1), (2, Cause.TIMEOUT, 0)]:
        assert machine.next_step(gentle, attrs.evolve(DOWN, attempt=attempt), Evidence(cause=cause)) == step
    assert (
        machine.next_step(policy(RECONNECT, max_retries=2), attrs.evolve(DOWN, attempt=2), Evidence(cause=Cause.AUTH))
        is None
    )


@pytest.mark.parametrize("cause", [Cause.STARTING, Cause.DNS, Cause.FULL, Cause.READ_ONLY])
def test_a_restart_is_not_tried_on_what_it_does_not_cure_unless_a_step_names_it_or_nothing_runs(cause: Cause) -> None:
    e = Evidence(cause=cause)
    assert machine.next_step(policy(RESTART), DOWN, e) is None
    assert machine.next_step(policy(RESTART, Step(action="failover")), DOWN, e) == 1
    named = attrs.evolve(RESTART, only_for=frozenset({cause}))
    assert machine.next_step(policy(named), DOWN, e) == 0
    managed = policy(RESTART, has_workload=True)
    for run, step in [(Run.RUNNING, None), (Run.EXITED, 0), (Run.ABSENT, 0)]:
        assert machine.next_step(managed, DOWN, attrs.evolve(running(run), cause=cause)) == step


# -- belief ---------------------------------------------------------------------------------------------------------


def failed(condition: Condition, **changes: Any) -> Condition:
    given: dict[str, Any] = {
        "incident": 4,
        "fresh": True,
        "opens": True,
        "cause": Cause.FULL,
        "wait": 0.0,
        "level": 0,
        **changes,
    }
    return machine.failed(given.pop("policy", policy()), condition, 100.0, **given)


def test_belief_begins_a_count_of_its_own() -> None:
    after = failed(Condition(state=State.UNHEALTHY, attempt=2, cursor=1, approved=1, well_since=7.0))
    assert (after.state, after.incident, after.attempt, after.cursor, after.approved) == (State.FAILED, 4, 0, 0, None)
    assert (after.cause, after.not_before, after.well_since, after.reissues) == (Cause.FULL, 0.0, inf, 0)


def test_a_relapse_keeps_its_attempts_and_waits() -> None:
    after = failed(Condition(state=State.UNHEALTHY, attempt=2), fresh=False, wait=20.0, level=2)
    assert (after.attempt, after.not_before, after.level, after.reissues) == (2, 120.0, 2, 0)


def test_a_fresh_count_in_an_old_incident_never_repeats_a_key() -> None:
    assert failed(Condition(state=State.UNHEALTHY), opens=False).reissues == 1


def test_one_belief_more_is_remembered_than_flapping_asks_for() -> None:
    seen = Condition(state=State.UNHEALTHY, confirmed=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert failed(seen).confirmed == (1.0, 2.0, 3.0, 4.0, 5.0, 100.0)
    two = policy(flapping=(Budget(limit=2, per=60.0),))
    assert failed(seen, policy=two).confirmed == (4.0, 5.0, 100.0)
    assert failed(seen, policy=policy(flapping=())).confirmed == ()


def test_the_level_is_forgotten_after_a_long_run_of_health() -> None:
    condition = Condition(level=3, well_since=100.0)
    assert machine.level_now(policy(), condition, 699.9) == 3
    assert machine.level_now(policy(), condition, 700.0) == 0
    assert machine.level_now(policy(), Condition(level=3), 9e9) == 3  # it is not well


def test_the_wait_depends_on_the_seed_the_service_the_incident_and_the_attempt_only() -> None:
    jittered = attrs.evolve(policy(), backoff=Backoff())
    waits = {
        (seed, incident, attempt): machine.wait(jittered, seed, incident, attempt, 2)
        for seed in (0, 1)
        for incident in (1, 2)
        for attempt in (1, 2)
    }
    assert len(set(waits.values())) == 8
    assert all(10.0 <= wait < 20.0 for wait in waits.values())
    assert machine.wait(jittered, 0, 1, 1, 2) == waits[0, 1, 1]


# -- an attempt -----------------------------------------------------------------------------------------------------


def test_an_attempt_is_counted_with_its_first_step() -> None:
    first = machine.begins(attrs.evolve(DOWN, approved=0, asked_at=3.0), 100.0, 0)
    assert (first.state, first.attempt, first.level, first.in_attempt, first.acting_since) == (
        State.RECOVERING,
        1,
        1,
        True,
        100.0,
    )
    assert (first.generation, first.approved, first.asked_at) == (4, None, None)
    second = machine.begins(machine.next_rung(first, 150.0), 160.0, 1)
    assert (second.attempt, second.level, second.acting_since, second.cursor) == (1, 1, 100.0, 1)


def test_an_ended_action_settles_before_it_is_judged() -> None:
    acting = machine.begins(DOWN, 100.0, 0)
    assert machine.verifying(policy(), acting, 101.0).settle_until == 103.0
    assert machine.verifying(policy(), attrs.evolve(acting, cursor=1), 101.0).settle_until == 116.0
    given = policy(Step(action="restart", settle=1.5))
    assert machine.verifying(given, acting, 101.0).settle_until == 102.5
    assert machine.verifying(given, attrs.evolve(acting, cursor=7), 101.0).settle_until == 101.0  # a shorter ladder
    assert machine.verifying(given, acting, 101.0).generation == acting.generation + 1


def test_what_never_started_gives_its_attempt_back() -> None:
    acting = machine.begins(DOWN, 100.0, 0)
    back = machine.given_back(acting, 100.5, first=True)
    assert (back.state, back.attempt, back.level, back.in_attempt, back.acting_since) == (
        State.FAILED,
        0,
        0,
        False,
        None,
    )
    assert back.reissues == 1


def test_a_second_step_that_never_started_does_not_take_the_attempt_with_it() -> None:
    first = machine.begins(DOWN, 100.0, 0)
    second = machine.begins(machine.next_rung(first, 150.0), 160.0, 1)
    back = machine.given_back(second, 160.5, first=False)
    assert (back.attempt, back.level, back.in_attempt, back.acting_since) == (1, 1, True, 100.0)


def test_the_next_rung_asks_anew() -> None:
    after = machine.next_rung(attrs.evolve(DOWN, asked_at=3.0, approved=0, reason="held:approval"), 9.0)
    assert (after.cursor, after.asked_at, after.approved, after.reason) == (1, None, None, "held:approval")
    assert machine.next_rung(machine.begins(DOWN, 9.0, 0), 10.0).state is State.FAILED


def test_the_end_of_an_attempt_waits_longer_each_time_then_escalates() -> None:
    acting = machine.begins(DOWN, 100.0, 0)
    after = machine.attempt_over(
        policy(), attrs.evolve(acting, forced=Forced(actor="pat", reason="", request="r")), 150.0, 0
    )
    assert (after.state, after.not_before, after.in_attempt, after.cursor, after.forced) == (
        State.FAILED,
        160.0,
        False,
        0,
        None,
    )
    second = machine.attempt_over(policy(), attrs.evolve(acting, attempt=2, level=2), 150.0, 0)
    assert second.not_before == 170.0
    third = machine.attempt_over(policy(), attrs.evolve(acting, attempt=3, level=3), 150.0, 0)
    assert third.not_before == 1050.0
    never = machine.attempt_over(policy(slow_retry=None), attrs.evolve(acting, attempt=3), 150.0, 0)
    assert never.not_before == inf
    passed_over = machine.attempt_over(policy(), attrs.evolve(DOWN, attempt=1, level=1, since=7.0), 150.0, 0)
    assert passed_over.since == 7.0  # it was FAILED and stays so


def test_an_attempt_belongs_to_an_incident() -> None:
    with pytest.raises(AssertionError):
        machine.attempt_over(policy(), attrs.evolve(DOWN, incident=None), 150.0, 0)


def test_the_clock_of_an_attempt_stands_while_it_is_held() -> None:
    acting = machine.begins(DOWN, 100.0, 0)
    assert machine.clock_stopped(acting, 130.0) == {"acting_since": None, "acted_for": 30.0}
    again = attrs.evolve(acting, acted_for=30.0, acting_since=200.0)
    assert machine.clock_stopped(again, 210.0) == {"acting_since": None, "acted_for": 40.0}
    assert machine.clock_stopped(DOWN, 130.0) == {}


# -- the ends -------------------------------------------------------------------------------------------------------


def test_health_clears_everything_but_what_a_relapse_needs() -> None:
    ill = attrs.evolve(machine.begins(DOWN, 100.0, 0), acted_for=3.0, not_before=9.0, confirmed=(90.0,))
    after = machine.well(policy(), ill, 150.0, State.HEALTHY)
    assert (after.incident, after.correlation, after.cause, after.in_attempt, after.acting_since) == (
        None,
        "",
        None,
        False,
        None,
    )
    assert (after.attempt, after.level, after.confirmed) == (1, 1, (90.0,))
    assert (after.last_incident, after.probation_until, after.well_since) == (1, 450.0, 150.0)
    again = machine.well(
        policy(), attrs.evolve(ill, incident=None, last_incident=7), 150.0, State.DEGRADED, reason="warning"
    )
    assert (again.last_incident, again.reason) == (7, "warning")


def test_afresh_forgets_belief_but_not_how_often_it_was_confirmed() -> None:
    ill = attrs.evolve(machine.begins(DOWN, 100.0, 0), confirmed=(90.0,), last_incident=1)
    after = machine.afresh(ill, 150.0, State.DISABLED, enabled=False)
    assert (after.state, after.enabled, after.incident, after.attempt, after.level, after.last_incident) == (
        State.DISABLED,
        False,
        None,
        0,
        0,
        None,
    )
    assert (after.confirmed, after.generation, after.reissues) == ((90.0,), ill.generation + 1, 1)


def test_a_demand_is_kept_with_who_made_it() -> None:
    by = Forced(actor="pat", reason="customers wait", request="r1", override=frozenset({"parents"}))
    assert machine.forced(DOWN, 9.0, by).forced is by


def test_who_waits_longer_than_the_new_policy_would_have_it_waits_no_longer() -> None:
    given = policy(RESTART, max_retries=1, slow_retry=600.0)
    waits = attrs.evolve(DOWN, incident=1, attempt=1, not_before=inf)
    assert machine.retries_changed(given, waits, 100.0, 0).not_before == 700.0
    soon = attrs.evolve(waits, not_before=200.0)
    assert machine.retries_changed(given, soon, 100.0, 0).not_before == 200.0
    for other in (
        attrs.evolve(waits, in_attempt=True),
        attrs.evolve(waits, state=State.HEALTHY),
        attrs.evolve(waits, incident=None),
    ):
        assert machine.retries_changed(given, other, 100.0, 0) is other


def test_a_clock_that_runs_stands_still_while_the_host_sleeps() -> None:
    acting = machine.begins(DOWN, 100.0, 0)
    assert machine.slept_through(acting, 500.0, 300.0).acting_since == 400.0
    assert machine.slept_through(acting, 500.0, 450.0).acting_since == 500.0
    assert machine.slept_through(DOWN, 500.0, 300.0) == DOWN
    asked = attrs.evolve(DOWN, asked=0, asked_at=100.0)
    assert machine.slept_through(asked, 500.0, 300.0).asked_at == 400.0
