"""The one backoff and the budgets: golden values, bounds, and the one rounding."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfheal.core.backoff import all_open, delay, mix, opens, seed_of
from selfheal.core.model import Backoff, Budget

BARE = Backoff(jitter=0.0)


def test_the_waits_double_up_to_the_cap() -> None:
    assert [delay(BARE, level, 0.0) for level in range(8)] == [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]


def test_a_level_below_zero_waits_for_nothing() -> None:
    assert delay(BARE, -1, 0.5) == 0.0


def test_a_level_too_large_for_a_float_waits_for_the_cap() -> None:
    assert delay(BARE, 5000, 0.0) == 300.0


@given(st.integers(1, 4000), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_jitter_takes_at_most_its_share_and_never_adds(level: int, draw: float, share: float) -> None:
    full = delay(BARE, level, 0.0)
    jittered = delay(Backoff(jitter=share), level, draw)
    assert full * (1 - share) - 1e-9 <= jittered <= full + 1e-9


def test_equal_jitter_keeps_half_for_sure() -> None:
    assert delay(Backoff(), 1, 0.0) == 5.0
    assert delay(Backoff(), 1, 0.5) == 7.5


def test_a_budget_with_something_left_is_open() -> None:
    assert opens([1.0, 2.0], Budget(limit=3, per=60.0)) == -inf


def test_a_spent_budget_opens_when_the_oldest_of_its_window_leaves_it() -> None:
    assert opens([1.0, 2.0, 3.0, 9.0], Budget(limit=3, per=60.0)) == 62.0


def test_the_last_of_several_budgets_to_open_decides() -> None:
    hour, day = Budget(limit=1, per=3600.0), Budget(limit=2, per=86400.0)
    assert all_open([10.0, 20.0], (hour, day)) == (86410.0, day)
    assert all_open([20.0], (hour, day)) == (3620.0, hour)
    assert all_open([], (hour, day)) == (-inf, None)
    assert all_open([1.0], ()) == (-inf, None)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30).map(sorted), st.integers(1, 5), st.floats(0.001, 1e5))
def test_no_window_ever_holds_more_than_its_budget(wishes: list[float], limit: int, per: float) -> None:
    budget, spent = Budget(limit=limit, per=per), list[float]()
    for wish in wishes:
        if wish >= opens(spent, budget):
            spent.append(wish)
    for last in range(limit, len(spent)):
        assert spent[last] >= spent[last - limit] + per


def test_draws_are_those_of_the_published_generators() -> None:
    """splitmix64 from seed 1, and FNV-1a of "a": the same in every process and every release."""
    published = [10451216379200822465, 13757245211066428519, 17911839290282890590]
    assert [int(mix(1, number) * 2**53) for number in range(3)] == [draw >> 11 for draw in published]
    assert seed_of(0, "a") == 0xAF63DC4C8601EC8C
    assert seed_of(1, "db") != seed_of(0, "db") != seed_of(0, "bd")


@given(st.integers(0, 2**70), st.integers(0, 2**70))
def test_draws_lie_within_zero_and_one(seed: int, number: int) -> None:
    assert 0.0 <= mix(seed, number) < 1.0


def test_draws_are_spread_evenly() -> None:
    draws = [mix(seed_of(7, f"service-{n}"), 1) for n in range(1000)]
    assert all(70 < sum(low / 10 <= draw < (low + 1) / 10 for draw in draws) < 130 for low in range(10))
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.03)
