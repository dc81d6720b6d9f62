"""Golden values of the anchors, wherever a policy of ours can express them: through the whole engine, simulated.

What is not here, and why. Icinga's and Nagios' flapping is a weighted percentage over the last 20 or 21 results
(33.90 % and 35.53 % at the sixth change). We count confirmed failures in windows of an hour and a day instead: a
percentage over results depends on how often one looks, which changes with the first failure, and cannot be said in a
sentence. Alertmanager's 30 s / 5 m / 4 h are the business of `routing` and stand in its tests.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from tests.core import bench
from tests.core.bench import FAILING, Hand, began, service

from selfheal.core.model import PASSING, Backoff, Budget, Cause, Condition, Policy, Run, State, Step, Window
from selfheal.core.records import Ended, HoldChanged, Intended, Moved
from selfheal.testing.laws import Laws
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

AT_ONCE: dict[str, Any] = {
    "steps": (Step(action="restart", settle=0.0),),
    "interval": 4.0,
    "recheck": 1.0,
    "failure_threshold": 1,
    "min_failing_span": 0.0,
    "success_threshold": 1,
    "suspicion_threshold": 0,
    "max_retries": 1000,
    "recovery_timeout": 3600.0,
    "flapping": (),
    "budgets": (),
    "probation": 0.0,
}
"""One failing check is believed, an action is judged by the next one: what is left is the policy under test."""


def simulate(*policies: Policy, **changes: Any) -> tuple[Simulator, SimpleWorld]:
    """Simulate for hours: every law watches, and the slow ones (folding, explaining) now and then."""
    return bench.simulate(*policies, laws=Laws(fold_every=500, ask_every=500), **changes)


def waits(simulator: Simulator, name: str = "db") -> list[float]:
    """How long after each belief or failed attempt the engine decided to wait."""
    found = []
    for record in simulator.records:
        if isinstance(record, Moved) and record.service == name and record.after.state is State.FAILED:
            begins = record.before.state is not State.FAILED
            if begins:
                found.append(max(0.0, record.after.not_before - record.at))
    return found


def crashing(backoff: Backoff, number: int) -> list[float]:
    """Let a service crash again the moment after each restart; return the first `number` waits."""
    simulator, world = simulate(service(**{**AT_ONCE, "backoff": backoff}), takes=0.01, budget_floor=9999)
    simulator.at(10.0, lambda: world.breaks("db", cured_by=frozenset()))
    simulator.run(6000.0)
    return waits(simulator)[:number]


# -- backoff --------------------------------------------------------------------------------------------------------


def test_the_kubelets_crash_backoff() -> None:
    """kubernetes/website: pod-lifecycle: 10 s, doubled, capped at five minutes; the first start is at once."""
    kubelet = Backoff(initial=10.0, multiplier=2.0, cap=300.0, jitter=0.0, forget_after=600.0)
    assert crashing(kubelet, 8) == pytest.approx([0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0])


@pytest.mark.parametrize(("healthy", "expected"), [(590.0, [40.0]), (601.0, [0.0])])
def test_the_kubelet_forgets_after_ten_minutes_of_health(healthy: float, expected: list[float]) -> None:
    kubelet = Backoff(initial=10.0, multiplier=2.0, cap=300.0, jitter=0.0, forget_after=600.0)
    simulator, world = simulate(service(**{**AT_ONCE, "backoff": kubelet}), takes=0.01, budget_floor=9999)
    simulator.at(10.0, lambda: world.breaks("db", cured_by=frozenset(), heals_at=70.0))
    simulator.run(200.0)
    attempts = len(began(simulator.records))
    assert attempts == 3  # at 0, 10 and 30 s; then it healed
    well = next(r.at for r in simulator.records if isinstance(r, Moved) and r.after.well_since == r.at and r.at > 60.0)
    simulator.at(well + healthy, lambda: world.breaks("db", cured_by=frozenset({"restart"})))
    simulator.run(well + healthy + 100.0)
    assert waits(simulator)[-1:] == pytest.approx(expected, abs=0.001)


def test_systemds_graduated_restart_steps() -> None:
    """RestartSec=1, RestartSteps=5, RestartMaxDelaySec=60: delay(i) = 1 * 60 ** (i / 5) (systemd/systemd#28266).

    That is our backoff with a multiplier of 60 ** (1 / 5). systemd waits before the first restart too; we begin at 0.
    """
    steps = Backoff(initial=1.0, multiplier=60.0 ** (1 / 5), cap=60.0, jitter=0.0)
    assert crashing(steps, 7)[1:] == pytest.approx([1.0, 2.27, 5.14, 11.67, 26.46, 60.0], abs=0.01)


# -- intensity ------------------------------------------------------------------------------------------------------

OTP = Budget(limit=1, per=5.0)


def crashes(every: float, times: int, budget: Budget, **changes: Any) -> Simulator:
    """Let a service crash at a fixed pace, each time cured by one restart."""
    policy = service(**{**AT_ONCE, "interval": 0.05, "recheck": 0.05, "timeout": 0.04, "budgets": (budget,), **changes})
    simulator, world = simulate(policy, takes=0.001, budget_floor=9999)
    for number in range(times):
        simulator.at(10.0 + number * every, lambda: world.breaks("db"))
    simulator.run(10.0 + times * every)
    return simulator


def held(simulator: Simulator, reason: str) -> list[float]:
    return [r.at for r in simulator.records if isinstance(r, Moved) and r.after.reason == reason != r.before.reason]


def test_otp_gives_up_at_the_second_restart_within_five_seconds() -> None:
    """erlang/otp: sup_princ: intensity 1, period 5 s. Their supervisor ends; our service waits, and people are told."""
    fast = crashes(every=2.0, times=2, budget=OTP, backoff=Backoff(initial=0.0, jitter=0.0))
    assert len(held(fast, "held:budget")) == 1
    assert any(alert.rule == "unattended" for alert in fast.engine.ledger.alerts.values())


def test_otp_never_gives_up_at_one_restart_each_5_1_seconds() -> None:
    slow = crashes(every=5.1, times=40, budget=OTP, backoff=Backoff(initial=0.0, jitter=0.0))
    assert held(slow, "held:budget") == []
    assert len(began(slow.records)) == 40


def test_one_in_six_seconds_is_not_five_in_thirty() -> None:
    """The tuning rule of the same page: the rate is equal, the burst is not."""
    burst = crashes(every=1.0, times=5, budget=Budget(limit=5, per=30.0), backoff=Backoff(initial=0.0, jitter=0.0))
    assert held(burst, "held:budget") == []
    no_burst = crashes(every=1.0, times=5, budget=Budget(limit=1, per=6.0), backoff=Backoff(initial=0.0, jitter=0.0))
    assert held(no_burst, "held:budget")


# -- nomad ----------------------------------------------------------------------------------------------------------


def nomad(seed: int, until: float = 1700.0) -> Simulator:
    """hashicorp/nomad: structs.go: 2 attempts in 30 min, 15 s and up to 25 % more between them, mode fail.

    Ours takes jitter off: 18.75 s less up to a fifth of it. The first restart of theirs waits too; ours is at once.
    """
    delay = Backoff(initial=18.75, multiplier=1.0, cap=18.75, jitter=0.2)
    policy = service(**{**AT_ONCE, "budgets": (Budget(limit=2, per=1800.0),), "backoff": delay, "slow_retry": None})
    simulator, world = simulate(policy, takes=0.01, seed=seed, budget_floor=9999)
    simulator.at(10.0, lambda: world.breaks("db", cured_by=frozenset()))
    simulator.run(until)
    return simulator


def test_nomads_third_failure_within_half_an_hour_is_terminal() -> None:
    simulator = nomad(0)
    assert len(began(simulator.records)) == 2
    assert simulator.engine.ledger.conditions["db"].reason == "held:budget"
    simulator.run(1900.0)
    assert len(began(simulator.records)) > 2  # where theirs stays dead, our window moves on


def test_nomads_delays_lie_within_15_and_18_75_seconds() -> None:
    found = [wait for seed in range(12) for wait in waits(nomad(seed, until=100.0))[1:2]]
    assert all(15.0 <= wait <= 18.75 for wait in found)
    assert len({round(wait, 3) for wait in found}) == 12


# -- monit ----------------------------------------------------------------------------------------------------------


def monit(**changes: Any) -> list[int]:
    """Answer 1010101… (1 is a failure); return the numbers of the checks at which the failure is believed."""
    quick = {"interval": 5.0, "recheck": 5.0, "min_failing_span": 0.0, "suspicion_threshold": 0, **changes}
    hand = Hand(service(observe_only=True, **quick))
    believed = []
    for number in range(1, 41):
        before = hand.state()
        hand.check("db", FAILING if number % 2 else PASSING)
        if hand.state() is State.FAILED is not before:
            believed.append(number)
    return believed


def test_monits_three_times_within_five_cycles() -> None:
    """monit(1), fault tolerance: the pattern 1010101 with `3 times within 5 cycles` fires at check 5."""
    assert monit(window=Window(failures=3, checks=5), failure_threshold=1000)[0] == 5


def test_monits_two_consecutive_cycles_never_fire_on_it() -> None:
    assert monit(failure_threshold=2) == []


# -- medik8s --------------------------------------------------------------------------------------------------------


def nodes(count: int = 20) -> list[Policy]:
    """Twenty nodes, each remediated on its own."""
    fast = {"interval": 5.0, "recheck": 1.0, "min_failing_span": 2.0, "success_threshold": 1, "timeout": 0.9}
    slow = Step(action="restart", settle=1.0, timeout=3000.0)
    return [service(f"n{number}", steps=(slow,), recovery_timeout=3600.0, **fast) for number in range(count)]


def test_medik8s_storm_of_twenty_nodes() -> None:
    """medik8s/node-healthcheck-operator: configuration.md: minHealthy 11, stormCooldownDuration 30 s.

    5 down: 5 remediations. 10 down: the storm begins and the 5 more are blocked. Theirs is released 30 s after 12 are
    healthy again; ours by that evidence itself, the share of the failing, and by no time.
    """
    simulator, world = simulate(
        *nodes(), takes=300.0, max_concurrent_recoveries=20, budget_floor=99, storm_share=0.5, storm_window=600.0
    )
    simulator.run(60.0)
    for number in range(5):
        world.breaks(f"n{number}")
    simulator.run(100.0)
    remediated = {r.service for r in simulator.records if isinstance(r, Intended)}
    assert remediated == {f"n{number}" for number in range(5)}
    for number in range(5, 10):
        world.breaks(f"n{number}")
    simulator.run(200.0)
    assert {r.service for r in simulator.records if isinstance(r, Intended)} == remediated
    blocked = {name for name, one in simulator.engine.ledger.conditions.items() if one.reason == "held:storm"}
    assert blocked == {f"n{number}" for number in range(5, 10)}
    for number in range(5, 10):
        world.mends(f"n{number}")
    simulator.run(300.0)
    assert "storm" in simulator.engine.ledger.holds  # 15 of 20 are healthy, but a quarter is still down
    simulator.run(450.0)  # the five remediations have ended
    ends = [r for r in simulator.records if isinstance(r, HoldChanged) and not r.on]
    assert [end.evidence for end in ends] == ["4 of 20 independent services are failing"]
    assert {r.service for r in simulator.records if isinstance(r, Intended)} == remediated


def test_five_of_twenty_are_no_storm() -> None:
    simulator, world = simulate(*nodes(), takes=20.0, max_concurrent_recoveries=20, budget_floor=99)
    for number in range(5):
        world.breaks(f"n{number}")
    simulator.run(300.0)
    assert not [r for r in simulator.records if isinstance(r, HoldChanged)]
    assert all(one.state is State.HEALTHY for one in simulator.engine.ledger.conditions.values())


# -- the whole of it is steady --------------------------------------------------------------------------------------


def test_equal_jitter_never_shortens_a_wait_below_half() -> None:
    found = [wait for seed in range(5) for wait in _jittered(seed)]
    assert all(0.5 <= wait / full <= 1.0 for wait, full in found)


def _jittered(seed: int) -> list[tuple[float, float]]:
    policy = service(**{**AT_ONCE, "backoff": Backoff()})
    simulator, world = simulate(policy, takes=0.01, seed=seed, budget_floor=9999)
    simulator.at(10.0, lambda: world.breaks("db", cured_by=frozenset()))
    simulator.run(400.0)
    full = [10.0, 20.0, 40.0, 80.0]
    return list(zip(waits(simulator)[1:5], full, strict=True))


def test_no_golden_run_breaks_a_law() -> None:
    """`simulate` watches every law in all of the above; here with crashes of the manager in between."""
    simulator, world = simulate(service(**AT_ONCE), takes=2.0)
    assert any(isinstance(watcher, Laws) for watcher in simulator.watchers)
    simulator.at(10.0, lambda: world.breaks("db", Cause.EXITED, run=Run.EXITED))
    for at in (10.7, 11.3, 12.5):
        simulator.at(at, lambda: simulator.crash(0.3))
    simulator.run(200.0)
    assert simulator.engine.ledger.conditions["db"].state is State.HEALTHY
    settled = [r for r in simulator.records if isinstance(r, Ended)]
    assert len({r.intent for r in settled}) == len(settled)
    assert all(earlier.at <= later.at for earlier, later in pairwise(simulator.records))
    assert isinstance(simulator.engine.ledger.conditions["db"], Condition)
