"""From results to evidence, and from evidence to a conclusion."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfheal.core.detector import FAILURE_WEIGHT, confirmed, degraded, flapping, judge, loop_span, quick
from selfheal.core.model import (
    PASSING,
    Budget,
    Cause,
    CheckResult,
    Condition,
    Evidence,
    Instance,
    Policy,
    Run,
    State,
    Verdict,
    Window,
)

BAD = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE, summary="refused")
WARN = CheckResult(Verdict.WARNING, cause=Cause.FULL, summary="91 %")
UNRUN = CheckResult(Verdict.INCONCLUSIVE, summary="a bug")
STARTING = CheckResult(Verdict.FAILING, cause=Cause.STARTING, summary="replaying its log")


def policy(**changes: Any) -> Policy:
    return Policy(**{"name": "db", **changes})


class Watched:
    """One service's evidence, judged result after result."""

    def __init__(self, **changes: Any) -> None:
        self.policy = policy(**changes)
        self.evidence = Evidence()
        self.now = 0.0

    def judge(
        self, *results: CheckResult, every: float = 5.0, instance: Instance | None = None, takes: float = 0.1
    ) -> Verdict:
        verdict = Verdict.INCONCLUSIVE
        for result in results:
            verdict = judge(self.policy, self.evidence, result, self.now, self.now + takes, instance)
            self.now += every
        return verdict

    @property
    def confirmed(self) -> bool:
        return confirmed(self.policy, self.evidence, self.now)

    def degraded(self, state: State = State.HEALTHY, reason: str = "") -> str:
        return degraded(self.policy, Condition(state=state, reason=reason), self.evidence, self.now)


def instance(number: int = 1, run: Run = Run.RUNNING, **changes: Any) -> Instance:
    return Instance(id=f"db#{number}", run=run, **changes)


# -- counting -------------------------------------------------------------------------------------------------------


def test_the_details_are_those_of_the_last_result_whatever_it_was() -> None:
    one = Watched()
    for verdict in Verdict:
        one.judge(CheckResult(verdict, details={"role": verdict.value}))
        assert one.evidence.details == {"role": verdict.value}
    one.judge(PASSING)
    assert one.evidence.details == {}


def test_a_failure_is_counted_with_what_it_said_and_when_it_began() -> None:
    one = Watched()
    assert one.judge(BAD, BAD) is Verdict.FAILING
    e = one.evidence
    assert (e.failures, e.passes, e.failing_since, e.last_started) == (2, 0, 0.0, 5.0)
    assert (e.cause, e.summary, e.checks, e.last_at) == (Cause.UNREACHABLE, "refused", 2, 5.1)
    assert e.latency == pytest.approx(0.1)


def test_a_pass_forgets_the_failures_in_a_row_but_not_the_suspicion() -> None:
    one = Watched()
    one.judge(BAD, BAD)
    assert one.judge(PASSING) is Verdict.PASSING
    e = one.evidence
    assert (e.failures, e.failing_since, e.passes, e.passing_since, e.last_pass) == (0, inf, 1, 10.0, 10.0)
    assert e.score == 2 * FAILURE_WEIGHT - 1
    assert e.suspect_since == 0.0


def test_a_check_that_could_not_run_says_nothing() -> None:
    one = Watched()
    one.judge(BAD)
    before = (one.evidence.failures, one.evidence.passes, one.evidence.score, one.evidence.last_verdict)
    assert one.judge(UNRUN, UNRUN) is Verdict.INCONCLUSIVE
    e = one.evidence
    assert (e.failures, e.passes, e.score, e.last_verdict) == before
    assert (e.inconclusive, e.summary) == (2, "a bug")
    one.judge(PASSING)
    assert one.evidence.inconclusive == 0


def test_a_warning_is_a_pass_unless_the_service_says_otherwise() -> None:
    assert Watched().judge(WARN) is Verdict.WARNING
    strict = Watched(warning_fails=True)
    assert strict.judge(WARN) is Verdict.FAILING
    assert strict.evidence.failures == 1


def test_the_suspicion_is_capped_and_wears_off() -> None:
    one = Watched()
    one.judge(*[BAD] * 20)
    assert one.evidence.score == 42
    one.judge(*[PASSING] * 41)
    assert (one.evidence.score, one.evidence.suspect_since) == (1, 0.0)
    one.judge(PASSING)
    assert (one.evidence.score, one.evidence.suspect_since) == (0, inf)


def test_no_suspicion_where_it_is_turned_off() -> None:
    one = Watched(suspicion_threshold=0)
    one.judge(BAD, PASSING)
    assert one.degraded() == ""


@given(st.lists(st.sampled_from([BAD, PASSING, WARN, UNRUN]), max_size=60))
def test_failures_and_passes_in_a_row_agree_with_counting_by_hand(results: list[CheckResult]) -> None:
    one = Watched()
    one.judge(*results)
    conclusive = [result is BAD for result in results if result is not UNRUN]
    row = 0
    for bad in reversed(conclusive):
        if bad is not conclusive[-1]:
            break
        row += 1
    failing = bool(conclusive) and conclusive[-1]
    assert (one.evidence.failures, one.evidence.passes) == ((row, 0) if failing else (0, row))
    assert one.evidence.checks == len(results)


# -- confirming -----------------------------------------------------------------------------------------------------


def test_a_failure_is_believed_after_a_number_and_a_span() -> None:
    one = Watched()
    one.judge(*[BAD] * 5)
    assert not one.confirmed  # five, but within 25 s
    one.judge(BAD)
    assert one.confirmed


def test_long_failing_is_not_enough_without_the_number() -> None:
    one = Watched()
    one.judge(BAD, BAD, every=60.0)
    assert not one.confirmed
    one.judge(BAD)
    assert one.confirmed


def test_nothing_is_believed_of_what_does_not_fail() -> None:
    one = Watched()
    assert not one.confirmed
    one.judge(*[BAD] * 9, PASSING)
    assert not one.confirmed


def test_definite_evidence_shortens_the_span() -> None:
    exited = Watched()
    exited.judge(*[BAD] * 3, instance=instance(run=Run.EXITED))
    assert exited.confirmed
    said = Watched()
    said.judge(*[CheckResult(Verdict.FAILING, definite=True)] * 3)
    assert said.confirmed
    running = Watched()
    running.judge(*[BAD] * 3, instance=instance())
    assert not running.confirmed


def test_definite_evidence_never_lengthens_a_shorter_span() -> None:
    one = Watched(min_failing_span=4.0)
    one.judge(*[CheckResult(Verdict.FAILING, definite=True)] * 3, every=2.0)
    assert one.confirmed


def test_an_end_that_was_heard_needs_one_failing_check() -> None:
    one = Watched()
    one.evidence.ended = True
    assert not one.confirmed
    one.judge(BAD)
    assert one.confirmed


def test_a_window_finds_what_consecutive_counting_cannot() -> None:
    one = Watched(window=Window(failures=3, checks=5), min_failing_span=10.0)
    one.judge(BAD, PASSING, BAD, PASSING)
    assert not one.confirmed
    one.judge(BAD)
    assert one.confirmed
    one.judge(PASSING)
    assert not one.confirmed
    one.judge(PASSING, PASSING, BAD)
    assert not one.confirmed  # 1-0-0-0-1: two of five


def test_a_window_needs_its_span_too() -> None:
    one = Watched(window=Window(failures=3, checks=5), min_failing_span=60.0)
    one.judge(BAD, PASSING, BAD, PASSING, BAD)
    assert not one.confirmed


# -- who runs -------------------------------------------------------------------------------------------------------


def test_a_new_incarnation_has_failed_nothing_yet() -> None:
    one = Watched()
    one.judge(*[BAD] * 5, instance=instance(1))
    one.judge(BAD, instance=instance(2))
    e = one.evidence
    assert (e.failures, e.failing_since, e.unconfirmed) == (1, 25.0, True)


def test_a_new_incarnation_of_what_never_failed_needs_no_proof() -> None:
    one = Watched()
    one.judge(PASSING, instance=instance(1))
    one.judge(BAD, instance=instance(2))
    assert not one.evidence.unconfirmed
    assert not one.evidence.ever_passed


def test_a_pass_proves_the_new_incarnation() -> None:
    one = Watched()
    one.judge(BAD, instance=instance(1))
    one.judge(BAD, instance=instance(2))
    one.judge(PASSING, instance=instance(2))
    assert not one.evidence.unconfirmed
    assert one.evidence.ever_passed


def test_an_inspection_that_failed_is_no_new_incarnation_and_keeps_the_known_one() -> None:
    one = Watched()
    one.judge(BAD, BAD, instance=instance(1, since=3.0, count=2))
    one.judge(BAD, instance=Instance(id="", run=Run.UNKNOWN, detail="no such socket"))
    known = one.evidence.instance
    assert known == Instance(id="db#1", run=Run.UNKNOWN, since=3.0, count=2, detail="no such socket")
    assert one.evidence.failures == 3
    one.judge(BAD, instance=Instance(id="", run=Run.UNKNOWN, detail="still"))
    one.judge(BAD, instance=instance(1))
    assert one.evidence.failures == 5


def test_the_servers_own_run_id_counts_only_without_a_workload() -> None:
    first = CheckResult(Verdict.FAILING, instance="run-1")
    second = CheckResult(Verdict.FAILING, instance="run-2")
    bare, managed = Watched(), Watched(has_workload=True)
    for one in (bare, managed):
        one.judge(first, first, second)
    assert (bare.evidence.failures, managed.evidence.failures) == (1, 3)
    assert bare.evidence.instance == Instance(id="run-2", run=Run.RUNNING)
    assert managed.evidence.instance is None


# -- starting -------------------------------------------------------------------------------------------------------


def test_a_server_that_says_it_is_starting_counts_neither_way_within_its_limit() -> None:
    one = Watched(starting_limit=20.0)
    assert one.judge(STARTING, STARTING) is Verdict.INCONCLUSIVE
    assert (one.evidence.failures, one.evidence.starting_since, one.evidence.cause) == (0, 0.0, Cause.STARTING)
    one.judge(STARTING, STARTING)
    assert one.judge(STARTING) is Verdict.FAILING
    assert one.evidence.failures == 1


def test_another_failure_ends_the_starting() -> None:
    one = Watched(starting_limit=20.0)
    one.judge(STARTING, STARTING, STARTING)
    assert one.judge(BAD) is Verdict.FAILING
    assert one.evidence.starting_since == inf
    assert one.judge(STARTING) is Verdict.INCONCLUSIVE  # it starts anew


def test_a_young_instance_has_its_grace_until_it_first_passes() -> None:
    one = Watched(start_grace=30.0, has_workload=True)
    young = instance(since=0.0)
    assert one.judge(*[BAD] * 6, instance=young) is Verdict.INCONCLUSIVE
    assert one.judge(BAD, instance=young) is Verdict.FAILING  # 30 s old
    other = Watched(start_grace=300.0, has_workload=True)
    other.judge(PASSING, instance=young)
    assert other.judge(BAD, instance=young) is Verdict.FAILING


def test_an_instance_of_unknown_age_has_no_grace() -> None:
    assert Watched(start_grace=30.0).judge(BAD) is Verdict.FAILING
    assert Watched(start_grace=30.0).judge(BAD, instance=instance()) is Verdict.FAILING


def test_a_clock_that_is_ahead_of_ours_excuses_nobody_for_longer_than_the_grace() -> None:
    ahead = instance(since=3600.0)
    assert Watched(has_workload=True).judge(BAD, instance=ahead) is Verdict.FAILING
    assert Watched(has_workload=True, start_grace=30.0).judge(BAD, instance=ahead) is Verdict.FAILING
    assert Watched(has_workload=True, start_grace=30.0).judge(BAD, instance=instance(since=2.0)) is Verdict.INCONCLUSIVE


# -- serving badly --------------------------------------------------------------------------------------------------


def test_a_warning_degrades() -> None:
    one = Watched()
    one.judge(WARN)
    assert one.degraded() == "warning"
    one.judge(PASSING)
    assert one.degraded() == ""


def test_three_answers_in_a_row_over_the_objective_degrade() -> None:
    one = Watched(latency_objective=0.5)
    one.judge(PASSING, PASSING, takes=0.6)
    assert one.degraded() == ""
    one.judge(PASSING, takes=0.6)
    assert one.degraded() == "slow"
    one.judge(PASSING, takes=0.4)
    assert one.degraded() == ""


def test_a_failure_ends_a_row_of_slow_answers() -> None:
    one = Watched(latency_objective=0.5)
    one.judge(PASSING, PASSING, BAD, PASSING, takes=0.6)
    assert one.evidence.slow == 1


def test_half_failing_is_unsteady_after_a_while_and_until_it_is_steady() -> None:
    one = Watched()
    for _ in range(3):
        one.judge(BAD, PASSING)
    assert one.degraded() == ""  # 15 points
    one.judge(BAD, PASSING)
    assert (one.evidence.score, one.degraded()) == (20, "")
    one.judge(BAD, PASSING)
    assert one.degraded() == "unsteady"
    one.judge(*[PASSING] * 20)
    assert one.degraded() == ""  # never said to be unsteady: below the threshold
    assert one.degraded(State.DEGRADED, "unsteady") == "unsteady"  # said so: until the score is gone
    one.judge(*[PASSING] * 5)
    assert one.degraded(State.DEGRADED, "unsteady") == ""


def test_a_burst_is_not_unsteady_before_its_span() -> None:
    one = Watched()
    one.judge(*[BAD] * 4, PASSING, every=1.0)
    assert (one.evidence.score, one.degraded()) == (23, "")


# -- flapping, and the next look ------------------------------------------------------------------------------------


def test_three_confirmed_failures_within_an_hour_flap_until_the_first_is_an_hour_ago() -> None:
    hold = flapping(policy(), Condition(confirmed=(100.0, 900.0, 1900.0)), 2000.0)
    assert hold is not None
    assert (hold.reason, hold.until, hold.wake) == ("held:flapping", 3700.0, ("operator",))
    assert hold.detail == "confirmed down 3 times within 3600 s"
    assert flapping(policy(), Condition(confirmed=(100.0, 900.0, 1900.0)), 3700.0) is None


def test_two_do_not_flap_and_five_within_a_day_do() -> None:
    assert flapping(policy(), Condition(confirmed=(100.0, 900.0)), 1000.0) is None
    spread = tuple(float(hour * 3600) for hour in (0, 4, 8, 12, 16))
    hold = flapping(policy(), Condition(confirmed=spread), 60000.0)
    assert hold is not None
    assert hold.until == 86400.0


def test_nothing_flaps_without_a_window() -> None:
    assert flapping(policy(flapping=()), Condition(confirmed=(1.0, 2.0, 3.0)), 4.0) is None
    assert flapping(policy(flapping=(Budget(limit=1, per=9.0),)), Condition(confirmed=(1.0,)), 4.0) is not None


@pytest.mark.parametrize(
    ("condition", "evidence", "expected"),
    [
        (Condition(state=State.HEALTHY), {}, False),
        (Condition(state=State.HEALTHY), {"score": 3}, True),
        (Condition(state=State.UNHEALTHY), {"last_verdict": Verdict.FAILING}, True),
        (Condition(state=State.UNKNOWN), {"last_verdict": Verdict.PASSING}, False),
        (Condition(state=State.RECOVERING), {}, True),
        (Condition(state=State.FAILED, attempt=1), {}, True),
        (Condition(state=State.FAILED, reason="waiting-for:db"), {}, False),
        (Condition(state=State.FAILED, reason="waiting-for:db"), {"passes": 1}, True),
        (Condition(state=State.FAILED, attempt=3), {}, False),
        (Condition(state=State.FAILED, attempt=3), {"passes": 1}, True),
        (Condition(state=State.FAILED, attempt=3, in_attempt=True), {}, True),
    ],
)
def test_who_deserves_a_quick_second_look(condition: Condition, evidence: dict[str, Any], expected: bool) -> None:
    assert quick(policy(), condition, Evidence(**evidence)) is expected


# -- what an inspection that failed, a grace and a window must not hide --------------------------------------------


def test_an_inspection_that_failed_does_not_hide_that_another_runs() -> None:
    one = Watched(has_workload=True)
    one.judge(BAD, BAD, instance=Instance(id="a", run=Run.RUNNING))
    one.judge(BAD, instance=Instance(id="", run=Run.UNKNOWN, detail="no socket"))
    assert (one.evidence.failures, one.evidence.instance) == (
        3,
        Instance(id="a", run=Run.UNKNOWN, detail="no socket"),
    )
    one.judge(BAD, instance=Instance(id="b", run=Run.RUNNING))
    assert (one.evidence.failures, one.evidence.unconfirmed) == (1, True)


def test_who_was_never_seen_is_nobody_new() -> None:
    one = Watched(has_workload=True)
    one.judge(BAD, instance=Instance(id="", run=Run.UNKNOWN))
    one.judge(BAD, instance=Instance(id="a", run=Run.RUNNING))
    assert (one.evidence.failures, one.evidence.unconfirmed) == (2, False)


def test_the_failure_before_anybody_asked_who_runs_is_within_the_grace_too() -> None:
    one = Watched(has_workload=True, start_grace=60.0, suspicion_threshold=6)
    one.judge(BAD)  # only a second look is preceded by an inspection
    assert one.evidence.failures == 1
    assert one.judge(BAD, instance=Instance(id="a", run=Run.RUNNING, since=-1.0)) is Verdict.INCONCLUSIVE
    e = one.evidence
    assert (e.failures, e.failing_since, e.history, e.score, e.suspect_since) == (0, inf, 0, 0, inf)


def test_a_window_keeps_its_span_without_a_suspicion_score() -> None:
    one = Watched(window=Window(failures=2, checks=4), suspicion_threshold=0, min_failing_span=30.0)
    one.judge(BAD, PASSING, PASSING, PASSING, PASSING)
    assert one.evidence.suspect_since == inf
    one.judge(BAD, PASSING, BAD)
    assert not one.confirmed  # two of four, but not for half a minute
    one.now += 30.0
    assert one.confirmed


def test_a_warning_that_counts_as_a_failure_is_looked_at_again_soon() -> None:
    one = Watched(warning_fails=True, suspicion_threshold=0)
    one.judge(WARN)
    assert quick(one.policy, Condition(state=State.UNHEALTHY), one.evidence)


def test_one_outage_that_is_over_is_not_unsteady_however_high_it_drove_the_score() -> None:
    one = Watched()
    one.judge(PASSING, BAD, BAD, BAD, BAD, BAD, BAD, BAD, PASSING)
    assert one.evidence.score >= one.policy.suspicion_threshold
    assert one.degraded() == ""
    one.judge(BAD, PASSING)
    assert one.degraded() == "unsteady"


def test_a_server_that_says_it_starts_is_observed_and_a_check_that_cannot_run_is_not() -> None:
    one = Watched()
    one.judge(UNRUN, UNRUN)
    assert one.evidence.blind == 2
    one.judge(CheckResult(Verdict.INCONCLUSIVE, cause=Cause.STARTING, summary="no beat yet"))
    assert (one.evidence.blind, one.evidence.inconclusive) == (0, 3)
    one.judge(UNRUN, PASSING)
    assert (one.evidence.blind, one.evidence.inconclusive) == (0, 0)


def test_nobody_is_slow_without_an_objective() -> None:
    one = Watched(latency_objective=0.05)
    one.judge(PASSING, PASSING, PASSING)
    assert one.degraded() == "slow"
    one.policy = policy()
    assert one.degraded() == ""


def test_a_crash_loop_outlasts_every_excuse_before_it_is_believed() -> None:
    assert loop_span(policy()) == 300.0
    assert loop_span(policy(min_failing_span=60.0)) == 600.0
    assert loop_span(policy(start_grace=500.0, starting_limit=400.0)) == 900.0


def test_what_has_exited_is_not_starting_any_more_however_young_it_was() -> None:
    gone = instance(run=Run.EXITED, since=0.0)
    assert Watched(start_grace=300.0, has_workload=True).judge(BAD, instance=gone) is Verdict.FAILING
    young = instance(since=0.0)
    assert Watched(start_grace=300.0, has_workload=True).judge(BAD, instance=young) is Verdict.INCONCLUSIVE
