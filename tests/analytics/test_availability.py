"""The numbers, by hand: small histories whose answers can be worked out on paper."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.analytics.test_timeline import Story, suppression

from selfheal.analytics import availability as a
from selfheal.analytics.repairs import Outcome, Repair
from selfheal.core.model import Binds, Cause, State
from selfheal.core.records import Resumed, SuppressionChanged

DAY, WEEK = 86400.0, 7 * 86400.0


def up_since(at: float = 0.0) -> Story:
    story = Story()
    story.moves(at, State.HEALTHY)
    return story


# -- uptime -----------------------------------------------------------------------------------------------------------


def test_uptime_is_weighed_by_time() -> None:
    story = up_since()
    story.outage(100.0, lasts=50.0)
    time = a.availability(story.lived(1000.0), 0.0, 1000.0)
    assert (time.uptime, time.down, time.coverage) == (0.95, 50.0, 1.0)


def test_planned_and_unobserved_time_counts_neither_way() -> None:
    story = up_since()
    story.says(SuppressionChanged(at=100.0, suppression=suppression(Binds.MAINTENANCE), on=True))
    story.outage(150.0, lasts=100.0)  # of it 50 s unplanned
    story.says(SuppressionChanged(at=200.0, suppression=suppression(Binds.MAINTENANCE), on=False))
    story.says(Resumed(at=700.0, away=400.0))
    time = a.availability(story.lived(1000.0), 0.0, 1000.0)
    assert (time.enabled, time.planned, time.observed, time.down) == (1000.0, 100.0, 500.0, 50.0)
    assert time.uptime == 0.9
    assert time.coverage == 500.0 / 900.0


def test_a_window_sees_only_its_part_of_an_outage() -> None:
    story = up_since()
    story.outage(100.0, lasts=200.0)
    assert a.availability(story.lived(1000.0), 200.0, 400.0).uptime == 0.5
    assert a.availability(story.lived(1000.0), 500.0, 900.0).uptime == 1.0


def test_of_time_in_which_nobody_looked_there_is_no_uptime() -> None:
    time = a.availability(Story().lived(1000.0), 0.0, 1000.0)
    assert (time.uptime, time.coverage, time.enabled) == (None, 0.0, 1000.0)
    story = up_since()
    story.moves(10.0, State.DISABLED)
    assert a.availability(story.lived(1000.0), 100.0, 1000.0).coverage is None


def test_each_day_is_one_of_utc_and_what_nobody_saw_is_in_none_of_its_parts() -> None:
    story = up_since(10.0)
    story.outage(DAY - 50.0, lasts=100.0)
    story.says(Resumed(at=2 * DAY, away=DAY / 2))
    noon = 20_000.5 * DAY  # journal time 0 was midnight
    days = a.daily(story.lived(2.5 * DAY), a.Days.until(2.5 * DAY, noon, 90))
    assert [(day["date"], day["observed_seconds"], day["down_seconds"]) for day in days] == [
        ("2024-10-02", DAY - 10.0, 50.0),
        ("2024-10-03", DAY / 2, 50.0),
        ("2024-10-04", DAY / 2, 0.0),
    ]
    last_two = a.daily(story.lived(2.5 * DAY), a.Days.until(2.5 * DAY, noon, 2))
    assert [day["date"] for day in last_two] == ["2024-10-03", "2024-10-04"]
    # An hour later by the clock on the wall: midnight was an hour earlier.
    shifted = a.daily(story.lived(2.5 * DAY), a.Days.until(2.5 * DAY, noon + 3600.0, 90))
    assert [day["observed_seconds"] for day in shifted] == [DAY - 3610.0, DAY / 2 + 3600.0, DAY / 2]


# -- how long ---------------------------------------------------------------------------------------------------------


def test_a_quantile_of_what_is_over_is_that_of_the_list() -> None:
    assert a.quantile([10.0, 20.0, 30.0, 40.0], (), 0.5) == 20.0
    assert a.quantile([10.0, 20.0, 30.0, 40.0], (), 0.9) == 40.0
    assert a.quantile([], (), 0.5) is None


def test_what_still_lasts_is_not_left_out() -> None:
    # Kaplan and Meier: S = 3/4 after 10 s, and with one of three that left at 15 s, 3/8 after 20 s.
    assert a.quantile([10.0, 20.0, 30.0], [15.0], 0.5) == 20.0
    assert a.quantile([10.0, 20.0, 30.0], [15.0], 0.25) == 10.0
    assert a.quantile([10.0], [500.0, 600.0], 0.5) is None  # nobody can tell yet


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_so_many_are_within_a_quantile_and_no_fewer(times: list[float], share: float) -> None:
    found = a.quantile(times, (), share)
    assert found is not None
    assert sum(one <= found for one in times) >= share * len(times) - 1e-6
    assert sum(one < found for one in times) < share * len(times) + 1e-6


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=30), st.lists(st.floats(1, 1e6), max_size=10))
def test_open_ones_never_make_it_look_better(times: list[float], still: list[float]) -> None:
    assert (a.quantile(times, still, 0.5) or inf) >= (a.quantile([*times, *still], (), 0.5) or inf)


# -- reliability ------------------------------------------------------------------------------------------------------


def test_a_week_counts_when_enough_of_it_was_seen() -> None:
    story = up_since()
    story.outage(8 * DAY, lasts=0.02 * WEEK)
    story.says(Resumed(at=3 * WEEK - DAY, away=5 * DAY))
    assert a.weeks(story.lived(4 * WEEK), 4 * WEEK) == [(0.0, True), (2 * WEEK, False), (3 * WEEK, True)]
    assert a.weeks(story.lived(4 * WEEK), 4 * WEEK, target=0.97) == [(0.0, True), (2 * WEEK, True), (3 * WEEK, True)]
    assert a.weeks(story.lived(3 * DAY), 3 * DAY) == []


def test_reliability_is_the_share_of_weeks_drawn_towards_the_fleet() -> None:
    assert a.reliability([(0.0, True)], 0.5) == pytest.approx(100 * (1 + 2 * 0.5) / 3)
    assert a.reliability([(0.0, True), (60 * DAY, False)], 1.0) == pytest.approx(100 * (1 + 2) / 3.5)
    assert a.reliability([], 1.0) is None
    assert a.reliability([(0.0, True)], None) is None
    assert a.fleet_share([[(0.0, True)], [(60 * DAY, False)], []]) == pytest.approx(1 / 1.5)
    assert a.fleet_share([]) is None


# -- all together -----------------------------------------------------------------------------------------------------


def repair(at: float, outcome: Outcome | None, action: str = "restart") -> Repair:
    return Repair(service="db", incident=1, attempt=1, step=0, action=action, began=at, outcome=outcome)


def test_everything_that_is_counted_of_a_service() -> None:
    story = up_since()
    story.outage(100.0, lasts=60.0, incident=1, cause=Cause.UNREACHABLE)
    story.outage(2000.0, lasts=140.0, incident=2, cause=Cause.TIMEOUT)
    story.moves(9000.0, State.FAILED, incident=3)
    repairs = [
        repair(140.0, Outcome.FAILURE, "reconnect"),
        repair(150.0, Outcome.SUCCESS),
        repair(2040.0, Outcome.SUCCESS),
        repair(9001.0, None),
    ]
    found = a.numbers(story.lived(10000.0), repairs, since=0.0, until=10000.0, score=None).shape()
    assert (found["incidents"], found["recovered"], found["healed_by_itself"], found["open"]) == (3, 2, 0, 1)
    assert found["failures_by_cause"] == {"unreachable": 1, "timeout": 1, "unknown": 1}
    assert (found["mean_recovery_seconds"], found["recoveries_measured"]) == (100.0, 2)
    assert (found["median_recovery_seconds"], found["p90_recovery_seconds"]) == (140.0, None)
    assert found["uptime_percentage"] == 88.0
    assert found["mean_time_between_failures_seconds"] == pytest.approx(8800.0 / 3)
    assert found["failure_rate_per_day"] == pytest.approx(3 / (8800.0 / DAY))
    assert found["median_detection_seconds"] == 30.0
    assert found["actions"] == {
        "reconnect": {"taken": 1, "success": 0, "failure": 1, "success_rate": 0.0},
        "restart": {"taken": 3, "success": 2, "failure": 0, "success_rate": 1.0},
    }
    assert found["steps"] == {"taken": 4, "success": 2, "failure": 1, "success_rate": 2 / 3}
    assert found["reliability_score"] is None


def test_the_numbers_of_several_are_of_their_time_added_up_and_their_failures_as_one_list() -> None:
    one, other = up_since(), up_since()
    one.outage(100.0, lasts=60.0, incident=1, cause=Cause.UNREACHABLE)
    other.outage(100.0, lasts=140.0, incident=2, cause=Cause.TIMEOUT)
    found = [
        a.numbers(story.lived(1000.0), [repair(140.0, outcome)], since=0.0, until=1000.0)
        for story, outcome in ((one, Outcome.SUCCESS), (other, Outcome.FAILURE))
    ]
    fleet = a.Numbers.together(found, since=0.0, until=1000.0, score=80.0).shape()
    assert (fleet["observed_seconds"], fleet["down_seconds"], fleet["uptime_percentage"]) == (2000.0, 200.0, 90.0)
    assert (fleet["incidents"], fleet["recovered"], fleet["mean_recovery_seconds"]) == (2, 2, 100.0)
    assert fleet["failures_by_cause"] == {"unreachable": 1, "timeout": 1}
    assert fleet["steps"] == {"taken": 2, "success": 1, "failure": 1, "success_rate": 0.5}
    assert (fleet["reliability_score"], fleet["coverage"]) == (80.0, 1.0)
    nobody = a.Numbers.together([], since=0.0, until=0.0, score=None).shape()
    assert [nobody[key] for key in ("uptime_percentage", "mean_recovery_seconds", "reliability_score")] == [None] * 3


def test_without_a_failure_there_is_a_bound_and_no_number() -> None:
    found = a.numbers(up_since().lived(3000.0), [], since=0.0, until=3000.0).shape()
    assert found["mean_time_between_failures_seconds"] is None
    assert found["mean_time_between_failures_at_least_seconds"] == 1000.0
    for key in ("mean_recovery_seconds", "median_recovery_seconds", "p90_recovery_seconds", "median_detection_seconds"):
        assert found[key] is None
    assert (found["failure_rate_per_day"], found["actions"]) == (0.0, {})
