"""Numbers within bounds: which are refused, and in which words."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import attrs
import pytest

from selfheal.core.bounds import seconds, share, whole
from selfheal.core.model import Backoff, Budget, Canary, Limits, Policy, Step, Window


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (
            lambda: Policy(name="db", interval=0),
            "interval: 0.0 is out of range; give a number from 0.05 to a year",
        ),
        (lambda: Policy(name="db", interval=nan), "interval: nan is out of range"),
        (lambda: Policy(name="db", interval=inf), "interval: inf is out of range"),
        (lambda: Policy(name="db", failure_threshold=0), "failure_threshold: 0 is out of range; give a number from 1"),
        (lambda: Policy(name="db", jitter=1.5), "jitter: 1.5 is out of range; give a number from 0 to 1"),
        (lambda: Policy(name="db", latency_objective=0.0), "latency_objective: 0.0 is out of range"),
        (lambda: Policy(name="db", slow_retry=0.5), "slow_retry: 0.5 is out of range"),
        (lambda: Step(action="restart", timeout=0.0), "timeout: 0.0 is out of range"),
        (lambda: Backoff(multiplier=0.5), "multiplier: 0.5 is out of range; give a number from 1 to 100"),
        (lambda: Budget(limit=0), "limit: 0 is out of range"),
        (lambda: Window(failures=6, checks=5), "failures: 6 of 5 can never be; give at most 5"),
        (lambda: Limits(storm_floor=1), "storm_floor: 1 is out of range; give a number from 2"),
        (lambda: Canary(name="gateway", timeout=-1), "timeout: -1.0 is out of range"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(make: Any, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("cls", "field", "value", "problem"),
    [
        (Backoff, "initial", "30s", "initial: '30s' is not a number"),
        (Backoff, "cap", True, "cap: True is not a number"),
        (Backoff, "initial", None, "initial: None is not a number"),
        (Budget, "limit", 2.0, "limit: 2.0 is not a whole number"),
        (Budget, "limit", False, "limit: False is not a whole number"),
        (Limits, "budget_share", "half", "budget_share: 'half' is not a number"),
    ],
)
def test_what_is_no_number_is_refused(cls: type[Any], field: str, value: object, problem: str) -> None:
    with pytest.raises(TypeError) as caught:
        cls(**{field: value})
    assert str(caught.value) == problem


def test_a_bound_without_an_end_is_said_as_at_least() -> None:
    cls = attrs.make_class("Thing", {"patience": seconds(1.0, 0.5, inf)})
    with pytest.raises(ValueError, match=r"patience: 0\.1 is out of range; give a number of at least 0\.5"):
        cls(0.1)


def test_whole_seconds_are_seconds() -> None:
    policy = Policy(name="db", interval=30)
    assert isinstance(policy.interval, float)
    assert Policy(name="db", slow_retry=None).slow_retry is None


def test_each_kind_of_field_has_its_default_and_may_be_none_where_that_is_it() -> None:
    cls = attrs.make_class(
        "Thing", {"long": seconds(None), "many": whole(None, 2, 4), "part": share(0.5)}, kw_only=True
    )
    thing = cls()
    assert (thing.long, thing.many, thing.part) == (None, None, 0.5)
    with pytest.raises(ValueError, match="many: 5 is out of range; give a number from 2 to 4"):
        cls(many=5)
