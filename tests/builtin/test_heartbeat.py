"""A service that calls in time is well; silence is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from selfheal.builtin.heartbeat import HeartbeatCheck
from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.plugins import HealthCheck

pytestmark = pytest.mark.anyio


@attrs.define(kw_only=True)
class Given:
    service: str = "importer"
    remaining: float = 5.0
    kept: dict[str, Any] = attrs.field(factory=dict)
    deep: bool = False
    previous: CheckResult | None = None
    workload: None = None

    async def blocking(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return function(*args)


@attrs.define
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


async def verdicts(check: HeartbeatCheck, clock: Clock, *moments: float) -> list[tuple[Verdict, Cause | None]]:
    found = []
    for moment in moments:
        clock.now = moment
        result = await check.check(Given())
        found.append((result.verdict, result.cause))
    return found


WAITING = (Verdict.INCONCLUSIVE, Cause.STARTING)
WELL = (Verdict.PASSING, None)
SILENT = (Verdict.FAILING, Cause.TIMEOUT)


def test_it_is_a_health_check() -> None:
    assert isinstance(HeartbeatCheck(every=1), HealthCheck)


async def test_before_the_first_beat_it_waits_as_long_as_one_may_take(clock: Clock) -> None:
    check = HeartbeatCheck(every=600, grace=120)
    assert await verdicts(check, clock, 1000, 1720, 1721) == [WAITING, WAITING, SILENT]


async def test_a_beat_is_good_for_a_period_and_its_grace(clock: Clock) -> None:
    check = HeartbeatCheck(every=600, grace=120)
    await check.check(Given())
    check.beat(1100)
    assert await verdicts(check, clock, 1100, 1820, 1820.5) == [WELL, WELL, SILENT]
    check.beat(1900)
    assert await verdicts(check, clock, 1901) == [WELL]


async def test_without_a_grace_two_beats_may_be_lost(clock: Clock) -> None:
    check = HeartbeatCheck(every=60)
    check.beat(1000)
    assert await verdicts(check, clock, 1190, 1190.5) == [WELL, SILENT]


async def test_a_beat_that_arrives_late_and_out_of_order_takes_nothing_back(clock: Clock) -> None:
    check = HeartbeatCheck(every=60, grace=0)
    check.beat(1000)
    check.beat(900)
    assert await verdicts(check, clock, 1060) == [WELL]


async def test_it_says_for_how_long_it_was_silent_and_whether_it_ever_spoke(clock: Clock) -> None:
    check = HeartbeatCheck(every=60, grace=0)
    await check.check(Given())
    clock.now = 1100
    result = await check.check(Given())
    assert result.summary == "no heartbeat for 100 s since selfheal began to watch; 60 s are allowed"
    assert result.details == {"silent_seconds": 100.0, "allowed_seconds": 60.0}
    check.beat(1000)
    assert "since" not in (await check.check(Given())).summary


async def test_a_passing_one_stays_one_object(clock: Clock) -> None:
    check = HeartbeatCheck(every=60)
    check.beat(1000)
    assert await check.check(Given()) is PASSING


def test_beats_are_no_part_of_the_configuration() -> None:
    one, two = HeartbeatCheck(every=60), HeartbeatCheck(every=60)
    one.beat(5)
    assert one == two
    assert repr(one) == "HeartbeatCheck(every=60.0, grace=None)"
    assert hash(one) == hash(two)


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), True, "10m", None])
def test_what_is_no_period_is_refused(every: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        HeartbeatCheck(every=every)
