"""Who is watched: starts, other fleets, switching on and off, suppressions, windows; and that empty is nothing."""

from __future__ import annotations

from math import inf
from typing import Any

import attrs
import pytest
from tests.core.bench import FAILING, FLUSH, Hand, running, service

from selfheal.core.messages import Settle, WindowChanged
from selfheal.core.model import (
    PASSING,
    Budget,
    Canary,
    Dependency,
    Fleet,
    Limits,
    Policy,
    Priority,
    Purpose,
    Settled,
    State,
)
from selfheal.core.records import Answered, FleetSet, HoldChanged, Intended, Moved, Resumed, SuppressionChanged
from selfheal.core.roster import drops_too_much

ADMIN = frozenset({"admin"})
NEEDS_DB = (Dependency(services=("db",)),)


def fleet(*names: str) -> Fleet:
    return Fleet(policies=tuple(service(name) for name in names))


# -- a start --------------------------------------------------------------------------------------------------------


def test_s4_everybody_is_unknown_and_checked_at_once_but_not_at_the_same_time() -> None:
    hand = Hand(service("db"), service("api"), service("web"))
    assert [hand.state(name) for name in ("db", "api", "web")] == [State.UNKNOWN] * 3
    assert hand.engine.in_flight("db") is Purpose.ROUTINE
    assert [hand.engine.due(name) for name in ("api", "web")] == [0.02, 0.04]


def test_a_start_says_its_fleet_once() -> None:
    hand = Hand(service())
    assert len(hand.said(FleetSet)) == 1
    hand.restart()
    assert len(hand.said(FleetSet)) == 1
    hand.restart(fleet=attrs.evolve(hand.fleet, name="other"))
    assert hand.said(FleetSet)[-1].fleet.name == "other"


def test_every_run_says_how_long_nobody_looked() -> None:
    hand = Hand(service())
    assert hand.said(Resumed) == [Resumed(at=0.0, away=0.0)]
    hand.wait(30.0)
    hand.restart(down_for=100.0)
    assert hand.said(Resumed)[1:] == [Resumed(at=130.0, away=100.0)]


def test_a_service_that_the_file_switches_off_is_disabled_and_on_again_unknown() -> None:
    hand = Hand(service(enabled=False))
    assert (hand.state(), hand.engine.due("db")) == (State.DISABLED, inf)
    hand.restart()
    assert len(hand.said(Moved)) == 1
    hand.restart(fleet=attrs.evolve(hand.fleet, policies=(service(),)))
    assert hand.state() is State.UNKNOWN
    assert hand.engine.in_flight("db") is Purpose.ROUTINE


def test_s60_a_failed_service_is_taken_up_where_it_was_left() -> None:
    hand = Hand(service(budgets=(Budget(limit=1, per=3600.0),)))
    hand.act()
    hand.finish()
    hand.reach("held:budget")
    before = hand.condition()
    hand.restart(down_for=100.0)
    hand.check()
    assert hand.condition() == before
    hand.wait(3600.0)
    hand.check()
    assert hand.actions or hand.engine.in_flight("db") is Purpose.BEFORE_STEP


def test_the_clock_of_an_attempt_stands_still_while_nobody_is_there() -> None:
    hand = Hand(service(steps=(service().steps[0], service().steps[0]), recovery_timeout=100.0))
    hand.act()
    hand.finish()
    for _ in range(3):
        hand.check()  # the step did not help: the second one is due, after a fresh check
    condition = hand.condition()
    assert (condition.state, condition.in_attempt) == (State.FAILED, True)
    assert condition.acting_since is not None
    died = hand.now
    hand.restart(down_for=500.0)
    assert (hand.condition().acting_since, hand.condition().acted_for) == (None, died - condition.acting_since)
    hand.act()
    assert hand.said(Intended)[-1].intent == "1/db/1/1"


def test_a_recovery_that_was_being_verified_goes_on_being_verified() -> None:
    hand = Hand(service(recovery_timeout=100.0))
    hand.act()
    hand.finish()
    settles = hand.condition().settle_until
    hand.restart(down_for=3.0)
    assert hand.state() is State.RECOVERING
    assert hand.engine.due("db") == settles
    hand.recover()
    assert hand.state() is State.HEALTHY


def test_an_action_whose_manager_died_is_asked_after_and_its_service_is_not_checked_meanwhile() -> None:
    hand = Hand(service())
    hand.act()
    output = hand.restart(down_for=5.0)
    assert Settle(intent="1/db/1/0") in output.commands
    assert (hand.engine.due("db"), hand.engine.in_flight("db")) == (inf, None)


def test_an_old_alert_of_the_fleet_is_resolved_by_a_start_with_a_whole_one() -> None:
    hand = Hand(*fleet("a", "b", "c").policies)
    hand.restart(fleet=fleet("a"))
    assert hand.alerts == {"fleet"}
    hand.restart(fleet=fleet("a", "b", "c"))
    assert hand.alerts == set()
    assert not hand.ledger.unwatched


def test_a_suppression_goes_on_over_a_start_and_ends_in_its_time() -> None:
    hand = Hand(service())
    hand.ask("pause", "db", duration=500.0)
    hand.restart(down_for=100.0)
    assert list(hand.ledger.suppressions) == ["r1"]
    hand.until(500.0)
    assert not hand.ledger.suppressions


# -- who is gone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "too_much"),
    [
        ("abcd", "ab", False),
        ("abcd", "a", True),
        ("abcd", "", True),
        ("abcd", "xyab", False),
        ("", "ab", False),
        ("", "", False),
        ("a", "", True),
    ],
)
def test_more_than_half_is_too_much(old: str, new: str, too_much: bool) -> None:
    assert drops_too_much(fleet(*old), fleet(*new)) is too_much


def test_a_start_that_finds_too_many_gone_keeps_them_unwatched_and_says_so() -> None:
    hand = Hand(*fleet("a", "b", "c").policies)
    hand.well("a", "b", "c")
    hand.restart(fleet=fleet("a"))
    assert list(hand.ledger.unwatched) == ["b", "c"]
    assert hand.state("b") is State.HEALTHY
    assert hand.engine.in_flight("b") is None
    assert hand.alerts == {"fleet"}
    hand.wait(3600.0)
    assert set(hand.checks) == {"a"}


def test_a_start_that_finds_few_gone_lets_them_go() -> None:
    hand = Hand(*fleet("a", "b", "c").policies)
    hand.fail("c")
    hand.restart(fleet=fleet("a", "b"))
    assert set(hand.ledger.conditions) == {"a", "b"}
    assert not hand.ledger.incidents
    assert hand.alerts == set()


def test_who_was_kept_goes_only_when_a_person_says_so() -> None:
    hand = Hand(*fleet("a", "b", "c", "d").policies)
    hand.well("a", "b", "c", "d")
    hand.restart(fleet=fleet("a"))
    answer = hand.propose(service("a"), service("b"))  # drops two of four, which is not too much by itself
    assert (answer.accepted, answer.code) == (False, "refused")
    assert answer.because == "it lacks c, d, kept until somebody confirms that they are gone"
    assert list(hand.ledger.unwatched) == ["b", "c", "d"]
    assert hand.ask("release", hold="fleet", scopes=ADMIN).accepted
    assert set(hand.ledger.conditions) == {"a"}
    assert hand.alerts == set()


def test_a_second_start_does_not_confirm_what_the_first_one_kept() -> None:
    hand = Hand(*fleet("a", "b", "c", "d").policies)
    hand.restart(fleet=fleet("a"))
    hand.restart(fleet=fleet("a", "b"))
    assert list(hand.ledger.unwatched) == ["c", "d"]
    assert hand.alerts == {"fleet"}


def test_who_was_kept_can_be_dropped_by_a_confirmed_fleet_or_come_back_by_any() -> None:
    hand = Hand(*fleet("a", "b", "c").policies)
    hand.restart(fleet=fleet("a"))
    assert hand.propose(service("a"), confirmed=True).accepted
    assert set(hand.ledger.conditions) == {"a"}
    hand = Hand(*fleet("a", "b", "c").policies)
    hand.restart(fleet=fleet("a"))
    assert hand.propose(*fleet("a", "b", "c").policies).accepted
    assert hand.engine.in_flight("b") or hand.engine.due("b") < inf
    assert hand.said(HoldChanged)[-1].evidence == "the fleet is whole"


# -- another fleet --------------------------------------------------------------------------------------------------


def test_s7_who_stays_keeps_its_state_its_history_and_its_place() -> None:
    hand = Hand(service("db"), service("api"))
    hand.act("db")
    hand.well("api")
    due = hand.engine.due("api")
    before = hand.condition("db"), hand.ledger.spent["db"]
    hand.propose(service("db"), service("api"), service("web"))
    assert (hand.condition("db"), hand.ledger.spent["db"]) == before
    assert hand.engine.due("api") == due
    assert hand.engine.in_flight("web") is Purpose.ROUTINE or hand.engine.due("web") < inf
    hand.finish("db")
    hand.recover("db")


def test_another_interval_is_another_grid() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.propose(service(interval=7.0))
    hand.well("db")
    hand.well("db")
    assert hand.engine.due("db") - hand.now == pytest.approx(7.0, abs=0.1)


def test_who_is_gone_takes_its_incident_its_alerts_and_its_timers_along() -> None:
    hand = Hand(service("db"), service("api"), service("web"))
    hand.fail("db")
    hand.check("db")
    assert hand.propose(service("api"), service("web")).accepted
    assert set(hand.ledger.conditions) == {"api", "web"}
    assert (hand.ledger.incidents, hand.alerts) == ({}, set())
    assert hand.engine.in_flight("db") is None
    hand.wait(3600.0)


def test_a_service_that_was_off_goes_without_a_word() -> None:
    hand = Hand(service("db"), service("api", enabled=False))
    before = len(hand.said(Moved))
    hand.propose(service("db"))
    assert len(hand.said(Moved)) == before


def test_an_action_of_a_service_that_is_gone_is_heard_of_to_its_end() -> None:
    hand = Hand(service("db"), service("api"))
    hand.act("db")
    hand.propose(service("api"))
    assert list(hand.ledger.occupied) == ["db"]
    hand.finish("db")
    assert not hand.ledger.occupied


@pytest.mark.parametrize(
    ("policies", "because"),
    [
        ((service("db"), service("api", depends_on=(Dependency(services=("bd",)),))), 'no service "bd"'),
        ((service("db", depends_on=NEEDS_DB),), "db"),
        ((service("db"), service("canary:gateway")), "no service may be called canary:…"),
        ((), "it drops more than 50% of the services; confirm it if that is meant"),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused_and_changes_nothing(policies: tuple[Policy, ...], because: str) -> None:
    hand = Hand(service("db"))
    before = hand.ledger.fleet
    answer = hand.propose(*policies)
    assert (answer.accepted, answer.act, answer.code) == (False, "fleet", "refused")
    assert because in answer.because
    assert hand.ledger.fleet is before


def test_a_confirmed_fleet_may_even_be_empty() -> None:
    hand = Hand(service("db"))
    assert hand.propose(confirmed=True).accepted
    assert hand.ledger.conditions == {}
    assert hand.engine.deadline == inf


def test_a_fleet_switches_services_on_and_off() -> None:
    hand = Hand(service("db"), service("api"))
    hand.well("db", "api")
    hand.propose(service("db", enabled=False), service("api"))
    assert (hand.state("db"), hand.condition("db").enabled) == (State.DISABLED, True)
    hand.propose(service("db"), service("api"))
    assert hand.state("db") is State.UNKNOWN
    assert hand.engine.in_flight("db") is Purpose.ROUTINE


def test_a_fleet_does_not_switch_on_what_a_person_switched_off() -> None:
    hand = Hand(service("db"))
    hand.ask("disable", "db")
    hand.propose(service("db", interval=7.0))
    assert hand.state("db") is State.DISABLED


def test_another_check_object_begins_another_generation() -> None:
    hand = Hand(service(fingerprint="one"))
    hand.check()
    generation = hand.condition().generation
    hand.propose(service(fingerprint="two"))
    assert hand.condition().generation == generation + 1
    assert hand.evidence().failures == 0
    assert hand.engine.in_flight("db") is Purpose.PARENT


def test_another_check_object_is_not_asked_while_an_action_runs() -> None:
    hand = Hand(service(fingerprint="one"))
    hand.act()
    hand.propose(service(fingerprint="two"))
    assert hand.engine.in_flight("db") is None
    hand.finish()
    hand.recover()


def test_a_yes_to_a_step_is_no_yes_to_what_stands_in_its_place_in_another_fleet() -> None:
    hand = Hand(service(steps=(FLUSH,)))
    hand.fail()
    hand.reach("held:approval")
    asked = hand.condition().asked_at
    hand.ask("pause", everything=True)
    hand.ask("approve", "db")
    assert hand.condition().approved == 0
    hand.wait(60.0)
    hand.propose(service(steps=(attrs.evolve(FLUSH, action="drop"),)))
    assert (hand.condition().approved, hand.condition().asked_at) == (None, None)
    hand.ask("resume", everything=True)
    assert (hand.reason(), hand.condition().detail) == ("held:approval", "drop")
    assert hand.condition().asked_at == hand.now != asked


def test_another_policy_lets_a_held_service_look_again() -> None:
    hand = Hand(service(observe_only=True))
    hand.fail()
    hand.check()
    assert hand.reason() == "held:observe"
    hand.propose(service())
    assert hand.engine.in_flight("db") is Purpose.BEFORE_STEP


def test_other_canaries_begin_afresh_and_the_same_ones_do_not() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway", FAILING)
    hand.propose(service(), service("api"))
    assert "canary" in hand.ledger.holds
    hand.propose(service(), service("api"), canaries=(Canary(name="resolver"),))
    assert "canary" in hand.ledger.holds  # the new ones have not answered yet
    assert "canary:gateway" not in hand.engine.desk.watches
    hand.canary("resolver")
    assert "canary" not in hand.ledger.holds
    hand.canary("resolver", FAILING)
    hand.propose(service(), service("api"), canaries=())
    assert "canary" not in hand.ledger.holds


def test_who_is_suspect_stays_so_in_a_new_fleet() -> None:
    hand = Hand(*fleet(*"abcd").policies)
    for name in "ab":
        hand.check(name)
    hand.propose(*fleet(*"abcde").policies)
    hand.check("c")
    assert "storm" in hand.ledger.holds


def test_the_limits_are_those_of_the_new_fleet() -> None:
    hand = Hand(service())
    hand.propose(service(), limits=Limits(max_concurrent_recoveries=1))
    assert hand.ledger.fleet.limits.max_concurrent_recoveries == 1


# -- switching ------------------------------------------------------------------------------------------------------


def test_switching_off_frees_the_slot_and_tells_who_waits() -> None:
    hand = Hand(service("a"), service("b"), service("c"), max_concurrent_recoveries=1, storm_floor=9)
    for name in ("a", "b"):
        hand.fail(name)
    assert hand.reason("b") == "held:slot"
    hand.ask("disable", "a")
    assert hand.engine.in_flight("b") is Purpose.BEFORE_STEP


def test_s47_a_dependent_learns_that_its_parent_is_switched_off() -> None:
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB))
    hand.fail("db")
    hand.ask("pause", "db")
    hand.fail("api")
    assert hand.reason("api") == "waiting-for:db"
    hand.ask("disable", "db")
    assert hand.engine.in_flight("api") is Purpose.BEFORE_STEP


def test_s13_switching_on_forgets_what_was_observed() -> None:
    hand = Hand(service("db"), service("api"))
    hand.fail("db")
    hand.ask("disable", "db")
    hand.ask("enable", "db")
    assert (hand.state("db"), hand.evidence("db").failures, hand.condition("db").attempt) == (State.UNKNOWN, 0, 0)


# -- windows of the calendar ----------------------------------------------------------------------------------------


def window(hand: Hand, active: bool, until: float = 500.0, **changes: Any) -> None:
    given: dict[str, Any] = {"services": ("db",), **changes}
    hand.feed(WindowChanged(at=hand.now, window="weekly", active=active, until=until, **given))


def test_a_window_is_a_maintenance_of_the_calendars() -> None:
    hand = Hand(service())
    window(hand, active=True)
    said = hand.ledger.suppressions["window:weekly"]
    assert (said.binds.value, said.services, said.actor, said.reason) == ("maintenance", ("db",), "calendar", "weekly")
    window(hand, active=True)
    assert len(hand.said(SuppressionChanged)) == 1
    window(hand, active=False)
    window(hand, active=False)
    assert [one.on for one in hand.said(SuppressionChanged)] == [True, False]


def test_a_window_that_is_made_longer_keeps_its_beginning() -> None:
    hand = Hand(service())
    window(hand, active=True)
    hand.wait(100.0)
    window(hand, active=True, until=900.0)
    said = hand.ledger.suppressions["window:weekly"]
    assert (said.since, said.until) == (0.0, 900.0)
    hand.until(899.0)
    assert hand.ledger.suppressions
    hand.until(900.0)
    assert not hand.ledger.suppressions


def test_a_window_whose_end_nobody_announces_ends_all_the_same() -> None:
    hand = Hand(service())
    window(hand, active=True, everything=True)
    hand.until(500.0)
    assert not hand.ledger.suppressions


def test_a_hold_is_released_by_word_when_there_is_one() -> None:
    hand = Hand(*fleet("a", "b", "c").policies)
    for name in "abc":
        hand.check(name)
    assert hand.ask("release", hold="storm", scopes=ADMIN).accepted
    assert hand.said(HoldChanged)[-1].actor == "pat"
    assert hand.ask("release", hold="fleet", scopes=ADMIN).code == "not_found"


# -- who is asked first ---------------------------------------------------------------------------------------------


def test_the_important_and_the_much_depended_on_come_first() -> None:
    hand = Hand(
        service("api", depends_on=NEEDS_DB),
        service("db"),
        service("mail", priority=Priority.HIGH),
        service("jobs", priority=Priority.LOW),
    )
    watches = hand.engine.desk.watches
    ranked = sorted(watches, key=lambda name: watches[name].rank)
    assert ranked == ["mail", "db", "api", "jobs"]


def test_a_settled_action_of_a_former_run_lets_its_service_be_checked() -> None:
    from selfheal.core.messages import ActionFinished

    hand = Hand(service(has_workload=True))
    hand.act(instance=running(1))
    hand.restart(down_for=5.0)
    hand.feed(ActionFinished(at=hand.now + 0.2, intent="1/db/1/0", settled=Settled.DONE))
    hand.recover(instance=running(2))
    assert hand.state() is State.HEALTHY
    assert hand.check("db", PASSING) is not None
    assert not hand.said(Answered)


# -- what a new fleet must not undo, and what it must --------------------------------------------------------------


def test_off_is_off_for_a_service_that_was_removed_and_brought_back() -> None:
    hand = Hand(service(), service("api"), service("web"))
    hand.ask("disable", "db")
    hand.propose(service("api"), service("web"))
    hand.restart()
    hand.propose(service(), service("api"), service("web"))
    assert (hand.state(), hand.condition().enabled) == (State.DISABLED, False)
    assert "db" not in hand.ledger.off
    hand.ask("enable", "db")
    hand.propose(service("api"), service("web"))
    hand.propose(service(), service("api"), service("web"))
    assert hand.condition().enabled


def test_what_is_to_be_looked_at_more_often_is_not_left_to_the_old_time() -> None:
    hand = Hand(service(interval=3600.0), service("api", interval=3600.0))
    hand.well("db", "api")
    hand.wait(60.0)
    hand.propose(service(interval=10.0), service("api", interval=3600.0))
    assert hand.engine.due("db") <= hand.now + 10.0
    assert hand.engine.due("api") > hand.now + 1000.0


def test_nobody_waits_for_ever_because_there_was_no_slow_retry_before() -> None:
    hand = Hand(service(max_retries=1, slow_retry=None))
    hand.act()
    hand.finish()
    hand.reach("escalated")
    assert hand.condition().not_before == inf
    hand.propose(service(max_retries=1, slow_retry=600.0))
    assert hand.condition().not_before == hand.now + 600.0
    hand.propose(service(max_retries=1, slow_retry=None))
    assert hand.condition().not_before == inf  # and off is off at once
    hand.restart(fleet=Fleet(policies=(service(max_retries=3, slow_retry=600.0),)))
    assert hand.condition().not_before <= hand.now + 10.0
    hand.act()


def test_a_service_that_is_kept_unwatched_and_down_pages() -> None:
    hand = Hand(service(), service("api"), service("web"))
    hand.fail()
    hand.restart(fleet=Fleet(policies=(service("x"),)))
    assert (hand.reason(), hand.condition().detail) == (
        "held:observe",
        "it is gone from the configuration: kept, not watched",
    )
    assert "db unattended" in hand.alerts
    assert dict(hand.engine.explain("db"))["observe"] is not None


def test_the_answer_to_a_new_fleet_comes_after_its_effects() -> None:
    hand = Hand(service())
    hand.propose(service(), service("api"))
    kinds = [type(record) for record in hand.records]
    assert kinds.index(Answered) > kinds.index(FleetSet, 1)


def test_what_ran_before_a_start_runs_out_after_it() -> None:
    hand = Hand(service("a"), service("b"), budget_floor=1)
    hand.act("a")
    hand.finish("a")
    hand.recover("a")
    hand.reach("held:budget", "b")
    hand.ask("pause", "b")
    hand.ask("recover", "b")
    until = hand.now + 900.0
    hand.restart(down_for=400.0)
    assert hand.condition("b").forced is not None
    hand.recover("b")
    hand.wait(10.0)
    assert "budget" not in hand.alerts
    hand.fail("b")
    hand.ask("recover", "b")
    hand.restart(down_for=1.0)
    hand.until(until + 1800.0)
    assert hand.condition("b").forced is None


def test_a_change_of_something_else_shortens_no_wait() -> None:
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB))
    hand.well("db", "api")
    hand.fail("db")
    hand.fail("api")
    hand.recover("db")
    grace = hand.condition("api").not_before
    assert grace == hand.now + 30.0
    hand.propose(service("db"), service("api", depends_on=NEEDS_DB, latency_objective=1.0))
    assert hand.condition("api").not_before == grace


def test_a_storm_that_is_calm_among_those_switched_on_at_a_start_is_over() -> None:
    names = [f"s{number}" for number in range(14)]
    few = Fleet(policies=tuple(service(name, enabled=number < 6) for number, name in enumerate(names)))
    hand = Hand(*few.policies)
    for name in names[:3]:
        hand.check(name)
    assert "storm" in hand.ledger.holds
    hand.restart(fleet=fleet(*names))
    assert "storm" not in hand.ledger.holds


def test_a_reload_that_opens_the_budget_ends_its_alert() -> None:
    hand = Hand(service("a"), service("b"), budget_floor=1, budget_per=86400.0)
    hand.act("a")
    hand.finish("a")
    hand.recover("a")
    hand.reach("held:budget", "b")
    hand.propose(service("a"), service("b"), limits=Limits())
    hand.act("b")
    hand.finish("b")
    hand.recover("b")
    hand.wait(60.0)
    assert "budget" not in hand.alerts


def test_who_was_pardoned_stays_so_in_a_new_fleet() -> None:
    hand = Hand(*fleet(*"abcdef").policies)
    hand.well(*"abcdef")
    for name in "abc":
        hand.check(name)
    hand.ask("release", hold="storm", scopes=ADMIN)
    hand.propose(*fleet(*"abcdefg").policies)
    hand.check("d")
    assert "storm" not in hand.ledger.holds


def test_a_storm_outlives_a_restart_with_whoever_is_only_unhealthy_yet_and_whoever_is_down() -> None:
    """Since when each fails is what is stored: that of its incident, or that of its state."""
    hand = Hand(*fleet(*"abcd").policies)
    hand.well(*"abcd")
    hand.fail("a")
    opened = hand.ledger.incidents[1].since
    hand.check("b")
    unhealthy = hand.condition("b").since
    hand.restart(down_for=1.0)
    assert (hand.engine.lookout.storm.since("a"), hand.engine.lookout.storm.since("b")) == (opened, unhealthy)
    assert "c" not in hand.engine.lookout.storm


def test_the_time_to_answer_begins_anew_with_a_start() -> None:
    hand = Hand(service(steps=(FLUSH,)))
    hand.reach("held:approval")
    hand.restart(down_for=3600.0)
    assert hand.condition().asked_at == hand.now
