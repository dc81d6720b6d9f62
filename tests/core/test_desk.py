"""The few ways to change what is decided: say, move, want, wake; and the grid that checks keep to."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.bench import FAILING, Hand, service

from selfheal.core.desk import Desk, Watch
from selfheal.core.messages import RunCheck
from selfheal.core.model import CANARY_PREFIX, PASSING, Canary, Fleet, Limits, Policy, Priority, Purpose, State
from selfheal.core.records import AlertChanged, FleetSet, HoldChanged, Moved


def watch(policy: Policy | None, interval: float = 30.0, name: str = "db") -> Watch:
    priority = -int(policy.priority) if policy is not None else 0
    return Watch(name, policy, interval, 0.0, 0, (priority, 0, name))


def desk(*policies: Policy, limits: Limits | None = None) -> Desk:
    one = Desk(None, [FleetSet(at=0.0, fleet=Fleet(policies=policies, limits=limits or Limits()))])
    for policy in policies:
        one.watches[policy.name] = watch(policy, policy.interval, policy.name)
    return one


# -- deciding -------------------------------------------------------------------------------------------------------


def test_what_is_said_is_applied_and_handed_out() -> None:
    one = desk(service())
    one.move("db", attrs.evolve(one.ledger.conditions["db"], state=State.HEALTHY), "passing")
    assert one.ledger.conditions["db"].state is State.HEALTHY
    assert [type(record) for record in one.records] == [Moved]
    assert list(one.touched) == ["db"]


def test_a_move_to_where_it_is_says_nothing() -> None:
    one = desk(service())
    one.move("db", one.ledger.conditions["db"], "nothing")
    assert one.records == []


def test_another_state_wakes_who_waits_for_it_and_another_reason_does_not() -> None:
    one = desk(service(), service("api"))
    one.waiting.add("service:db", one.watches["api"].rank)
    one.move("db", attrs.evolve(one.ledger.conditions["db"], detail="more"), "same state")
    assert one.awake == []
    one.move("db", attrs.evolve(one.ledger.conditions["db"], state=State.HEALTHY), "passing")
    assert one.next_awake() == "api"
    with pytest.raises(IndexError):
        one.next_awake()


def test_the_end_of_a_recovery_frees_its_slot() -> None:
    one = desk(service(), service("api"), limits=Limits(max_concurrent_recoveries=1))
    one.move("db", attrs.evolve(one.ledger.conditions["db"], state=State.RECOVERING), "restart")
    one.waiting.add("slot", one.watches["api"].rank)
    one.wake("slot")
    assert one.awake == []
    one.move("db", attrs.evolve(one.ledger.conditions["db"], state=State.HEALTHY), "verified")
    assert one.next_awake() == "api"


def test_as_many_are_woken_as_there_are_slots_the_most_important_first() -> None:
    policies = [
        service(name, priority=priority) for name, priority in zip("abcd", [*Priority, Priority.HIGH], strict=True)
    ]
    one = desk(*policies, limits=Limits(max_concurrent_recoveries=3))
    for policy in policies:
        one.waiting.add("slot", one.watches[policy.name].rank)
    one.reserved["elsewhere"] = None
    one.wake("slot")
    assert [one.next_awake() for _ in range(2)] == ["c", "d"]
    assert not one.awake


def test_being_ready_twice_is_being_ready_once_and_strangers_are_never() -> None:
    one = desk(service())
    for name in ("db", "db", "gone"):
        one.ready(name)
    assert one.next_awake() == "db"
    assert not one.awake


def test_a_hold_is_said_with_its_alert_once() -> None:
    one = desk(service())
    for _ in range(2):
        one.hold("canary", True, "none answers")
    assert [type(record) for record in one.records] == [HoldChanged, AlertChanged]
    one.waiting.add("hold:canary", one.watches["db"].rank)
    for _ in range(2):
        one.hold("canary", False, "one answers")
    assert [type(record) for record in one.records[2:]] == [HoldChanged, AlertChanged]
    assert one.next_awake() == "db"


def test_a_hold_without_an_open_alert_ends_all_the_same() -> None:
    one = desk()
    one.hold("storm", True, "5 of 6")
    one.hold("storm", False, "1 of 6")
    assert [type(record) for record in one.records] == [HoldChanged, HoldChanged]


def test_alerts_are_told_of_those_that_were_touched_and_are_still_there() -> None:
    one = desk(service())
    one.touched["gone"] = None
    one.move("db", attrs.evolve(one.ledger.conditions["db"], state=State.UNHEALTHY), "")
    one.move("db", attrs.evolve(one.ledger.conditions["db"], state=State.FAILED), "")
    one.tell()
    assert isinstance(one.records[-1], AlertChanged)
    assert not one.touched


# -- checks ---------------------------------------------------------------------------------------------------------


def commands(one: Desk) -> list[RunCheck]:
    return [command for command in one.commands if isinstance(command, RunCheck)]


def test_one_check_of_a_service_is_in_flight_and_a_wish_of_another_kind_is_kept() -> None:
    one = desk(service())
    one.agenda.set(("check", "db"), 9.0)
    one.want("db", Purpose.ROUTINE)
    assert one.agenda.due(("check", "db")) == inf
    one.now = 1.0
    for purpose in (Purpose.ROUTINE, Purpose.PARENT, Purpose.ROUTINE):
        one.want("db", purpose)
    assert len(commands(one)) == 1
    assert one.watches["db"].wanted is Purpose.PARENT


def test_a_check_asked_for_in_the_same_moment_for_the_same_reason_is_fresh_enough() -> None:
    one = desk(service())
    one.want("db", Purpose.PARENT)
    one.want("db", Purpose.PARENT)
    assert one.watches["db"].wanted is None
    one.want("db", Purpose.BEFORE_STEP)
    assert one.watches["db"].wanted is Purpose.BEFORE_STEP


def test_nobody_is_checked_that_is_off_or_unknown_or_being_acted_on() -> None:
    hand = Hand(service(), service("off", enabled=False))
    one = hand.engine.desk
    for name in ("off", "gone"):
        one.want(name, Purpose.PARENT)
    hand.act()
    one.want("db", Purpose.PARENT)
    assert one.commands == []
    assert not one.checkable("db")
    hand.finish()
    assert one.checkable("db")


def test_a_workload_is_asked_who_runs_only_of_what_is_suspect() -> None:
    hand = Hand(service(has_workload=True))
    assert hand.checks["db"].inspect  # nothing is known yet
    hand.well("db")
    hand.until(hand.engine.due("db"))
    assert not hand.checks["db"].inspect
    hand.check()
    hand.until(hand.engine.due("db"))
    assert hand.checks["db"].inspect
    hand.check("db", PASSING)
    hand.until(hand.engine.due("db"))
    assert hand.checks["db"].inspect  # the suspicion has not worn off


def test_the_command_of_a_well_service_is_made_once_for_each_generation() -> None:
    one = desk(service())
    one.move("db", attrs.evolve(one.ledger.conditions["db"], state=State.HEALTHY), "passing")
    for _ in range(2):
        one.want("db", Purpose.ROUTINE)
        one.watches["db"].flight = None
    one.move("db", attrs.evolve(one.ledger.conditions["db"], generation=7), "renewed")
    one.want("db", Purpose.ROUTINE)
    first, again, renewed = commands(one)
    assert first is again
    assert (first.generation, renewed.generation) == (0, 7)


def test_a_canary_has_one_command() -> None:
    one = desk()
    gateway = CANARY_PREFIX + "gateway"
    one.watches[gateway] = watch(None, Canary(name="gateway").interval, gateway)
    for _ in range(2):
        one.want(gateway, Purpose.PARENT)
        one.watches[gateway].flight = None
    first, second = commands(one)
    assert first is second
    assert (first.service, first.purpose, first.inspect) == (gateway, Purpose.ROUTINE, False)


def test_what_was_observed_of_another_instance_is_forgotten_but_what_was_last_said() -> None:
    hand = Hand(service())
    hand.check()
    one = hand.engine.desk.watches["db"]
    hand.engine.desk.forget_observations(one)
    assert (one.evidence.failures, one.evidence.checks, one.evidence.summary) == (0, 1, "refused")
    assert one.flight is None


def test_nothing_is_known_of_what_is_not_watched() -> None:
    assert desk().evidence_of("gone").checks == 0


def test_a_new_run_forgets_everything_volatile() -> None:
    one = desk(service())
    one.want("db", Purpose.ROUTINE)
    one.ready("db")
    one.waiting.add("slot", one.watches["db"].rank)
    one.agenda.set(("act", "db"), 3.0)
    one.reserved["db"] = None
    one.forget()
    assert (one.awake, one.watches, one.reserved, one.agenda.deadline, "slot" in one.waiting) == (
        [],
        {},
        {},
        inf,
        False,
    )


# -- the grid -------------------------------------------------------------------------------------------------------


def test_a_quick_look_comes_after_recheck_unless_the_interval_is_shorter() -> None:
    one = desk(service(jitter=0.0))
    one.now = 100.0
    one.schedule(one.watches["db"], 5.0)
    assert one.agenda.due(("check", "db")) == 105.0
    one.schedule(one.watches["db"], 50.0)
    assert one.agenda.due(("check", "db")) == 120.0


def test_s20_checks_keep_to_their_grid_however_long_each_takes() -> None:
    one = desk(service(interval=1.0, jitter=0.0))
    dues = []
    for _ in range(100):
        one.schedule(one.watches["db"], None)
        dues.append(one.agenda.due(("check", "db")))
        one.now = dues[-1] + 0.3
    assert dues == [float(number) for number in range(1, 101)]


@given(st.floats(0.05, 3600.0), st.floats(0.0, 0.99), st.lists(st.floats(0.0, 2.0), min_size=1, max_size=40))
def test_jitter_displaces_a_place_on_the_grid_and_never_adds_up(
    interval: float, jitter: float, takes: list[float]
) -> None:
    one = desk(service(interval=interval, jitter=jitter))
    dues = []
    for share in takes:
        one.schedule(one.watches["db"], None)
        due = one.agenda.due(("check", "db"))
        assert due > one.now
        beat = round(due / interval)
        assert jitter >= 0.5 or abs(due - beat * interval) <= jitter * interval * (1 + 1e-9) + 1e-9
        dues.append(due)
        one.now = due + share * interval
    assert all(earlier < later for earlier, later in pairwise(dues))


def test_a_canary_has_a_jitter_of_its_own() -> None:
    one = desk()
    gateway = watch(None, 30.0, "canary:gateway")
    one.schedule(gateway, None)
    assert 27.0 <= one.agenda.due(("check", "canary:gateway")) <= 33.0


def test_a_place_that_is_just_past_is_not_taken_again() -> None:
    one = desk(service(interval=10.0, jitter=0.5))
    one.now = 4.0
    one.schedule(one.watches["db"], None)
    first = one.agenda.due(("check", "db"))
    one.now = first
    one.schedule(one.watches["db"], None)
    assert one.agenda.due(("check", "db")) > first


def test_failing_checks_do_not_change_the_grid() -> None:
    hand = Hand(service(jitter=0.0))
    hand.well("db")
    on_grid = hand.engine.due("db")
    hand.check("db", FAILING)
    while hand.state() is not State.HEALTHY or hand.evidence().score:
        hand.check("db", PASSING)
    assert (hand.engine.due("db") - on_grid) % 30.0 == pytest.approx(0.0)


def test_a_slot_that_is_free_is_filled_until_nobody_waits_or_somebody_is_awake() -> None:
    one = desk(service("a"), service("b"), limits=Limits(max_concurrent_recoveries=1))
    assert not one.fills_slots()
    for name in "ab":
        one.waiting.add("slot", one.watches[name].rank)
    assert one.fills_slots()
    assert one.next_awake() == "a"
    assert one.fills_slots()
    assert one.next_awake() == "b"
    assert not one.fills_slots()
