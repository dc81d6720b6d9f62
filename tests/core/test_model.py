"""The nouns: what is refused, in which words, and what the defaults are."""

from __future__ import annotations

from math import inf

import attrs
import pytest

from selfheal.core.model import (
    PASSING,
    Backoff,
    Binds,
    Budget,
    CheckResult,
    Condition,
    Effect,
    Evidence,
    Limits,
    Policy,
    Step,
    Suppression,
    Verdict,
    Window,
)


def test_a_window_may_be_as_strict_as_it_is_wide_and_no_stricter() -> None:
    assert Window(failures=5, checks=5).checks == 5
    with pytest.raises(ValueError, match="failures: 6 of 5 can never be; give at most 5"):
        Window(failures=6, checks=5)


def test_the_defaults_are_those_of_the_design() -> None:
    policy, limits = Policy(name="db"), Limits()
    assert (policy.interval, policy.timeout, policy.recheck, policy.jitter) == (30.0, 5.0, 5.0, 0.1)
    assert (policy.failure_threshold, policy.min_failing_span, policy.definite_span) == (3, 30.0, 10.0)
    assert (policy.success_threshold, policy.suspicion_threshold, policy.latency_strikes) == (2, 21, 3)
    assert policy.flapping == (Budget(limit=3, per=3600.0), Budget(limit=5, per=86400.0))
    assert (policy.max_retries, policy.recovery_timeout, policy.slow_retry, policy.probation) == (
        3,
        300.0,
        900.0,
        300.0,
    )
    assert policy.backoff == Backoff(initial=10.0, multiplier=2.0, cap=300.0, jitter=0.5, forget_after=600.0)
    assert policy.budgets == (Budget(limit=3, per=3600.0), Budget(limit=10, per=86400.0))
    assert (policy.approval_timeout, policy.dependent_grace) == (900.0, 30.0)
    assert (limits.max_concurrent_recoveries, limits.budget_floor, limits.budget_share, limits.budget_per) == (
        3,
        3,
        0.1,
        300.0,
    )
    assert (limits.storm_share, limits.storm_floor, limits.storm_window) == (0.5, 3, 60.0)
    assert (limits.late_after, limits.late_alert_after, limits.max_fleet_drop) == (0.25, 60.0, 0.5)
    assert not limits.act_without_journal


def test_a_step_settles_by_how_much_it_disturbs() -> None:
    assert Step(action="reconnect", effect=Effect.GENTLE).settling == 2.0
    assert Step(action="restart").settling == 15.0
    assert Step(action="restart", settle=0.0).settling == 0.0


def test_a_destructive_step_asks_unless_it_is_allowed() -> None:
    flush = Step(action="flush", effect=Effect.DESTRUCTIVE)
    assert flush.asks
    assert not attrs.evolve(flush, allow_destructive=True).asks
    assert not Step(action="restart").asks
    assert Step(action="restart", approval=True).asks


def test_an_empty_selection_selects_nothing() -> None:
    assert not Suppression(id="r", binds=Binds.PAUSED).covers("db")
    assert Suppression(id="r", binds=Binds.PAUSED, services=("db",)).covers("db")
    assert not Suppression(id="r", binds=Binds.PAUSED, services=("db",)).covers("api")
    assert Suppression(id="r", binds=Binds.PAUSED, everything=True).covers("api")


def test_s4_nothing_is_known_of_a_service_that_was_never_checked() -> None:
    assert Condition().state.value == "unknown"
    assert Evidence().last_verdict is None


def test_a_verdict_is_the_only_positional_word_of_a_result() -> None:
    assert CheckResult(Verdict.PASSING) == PASSING
    with pytest.raises(TypeError):
        CheckResult(Verdict.PASSING, None)  # type: ignore[call-arg]  # that it is refused is the point


def test_s5_a_word_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="is not a valid Verdict"):
        Verdict("down")


def test_a_budget_larger_than_what_is_remembered_would_never_hold() -> None:
    assert Policy(name="db", budgets=(Budget(limit=1000, per=60.0),)).budgets
    with pytest.raises(ValueError, match="budgets: 1001 is more than is counted; give a limit of at most 1000"):
        Policy(name="db", budgets=(Budget(limit=1001, per=60.0),))


def test_an_argument_without_a_stored_form_is_refused() -> None:
    assert Step(action="hook", arguments=(("wait", 1.5),)).arguments
    with pytest.raises(ValueError, match="wait: inf has no stored form; give a finite number"):
        Step(action="hook", arguments=(("wait", inf),))
