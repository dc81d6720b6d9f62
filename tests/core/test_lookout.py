"""The observer's doubts about itself: when a hold is raised, on what evidence it ends, and what is not believed."""

from __future__ import annotations

from typing import Any

import pytest
from tests.core.bench import FAILING, UNRUN, WARNING, Hand, running, service

from selfheal.core.messages import JournalChanged, WokeLate
from selfheal.core.model import PASSING, Cause, CheckResult, Dependency, Purpose, Run, State, Verdict
from selfheal.core.records import HoldChanged

ADMIN = frozenset({"admin"})
NAMES = ("a", "b", "c", "d")


def fleet(**changes: Any) -> Hand:
    return Hand(*(service(name) for name in NAMES), **changes)


def holds(hand: Hand) -> list[tuple[str, bool, str]]:
    return [(record.hold, record.on, record.evidence) for record in hand.said(HoldChanged)]


# -- storms ---------------------------------------------------------------------------------------------------------


def test_a_storm_holds_fire_and_pages_people_when_it_withholds_a_repair() -> None:
    hand = fleet()
    for name in NAMES[:3]:
        hand.check(name)
    assert holds(hand) == [("storm", True, "3 of 4 independent services are failing")]
    assert "storm" not in hand.alerts  # a fleet that is being started looks like this
    hand.fail("a")
    assert hand.reason("a") == "held:storm"
    assert "storm" in hand.alerts
    hand.wait(3600.0)
    assert "storm" in hand.ledger.holds  # no time ends it


def test_a_storm_ends_when_the_share_of_the_failing_falls() -> None:
    hand = fleet()
    for name in NAMES:
        hand.check(name)
    hand.recover("a")
    assert "storm" in hand.ledger.holds
    hand.fail("c")
    assert "storm" in hand.alerts
    hand.recover("b")
    assert holds(hand)[-1] == ("storm", False, "2 of 4 independent services are failing")
    assert "storm" not in hand.alerts


def test_a_storm_ends_when_a_canary_answers_that_was_asked_after_it_began() -> None:
    hand = fleet(canaries=["gateway"])
    hand.canary("gateway")
    hand.until(hand.engine.due("canary:gateway"))
    asked_before = hand.engine.in_flight("canary:gateway")
    assert asked_before is Purpose.ROUTINE
    for name in NAMES:
        if name in hand.checks:
            hand.check(name)
    for name in NAMES:
        if "storm" not in hand.ledger.holds:
            hand.check(name)
    assert "storm" in hand.ledger.holds
    hand.canary("gateway")  # the one that was under way proves nothing
    assert "storm" in hand.ledger.holds
    if "canary:gateway" not in hand.checks:
        hand.until(hand.engine.due("canary:gateway"))
    hand.canary("gateway")
    assert holds(hand)[-1] == ("storm", False, "canary:gateway answers")


def test_a_storm_that_a_canary_excused_is_not_raised_again_by_those_who_raised_it() -> None:
    hand = fleet(canaries=["gateway"])
    hand.canary("gateway")
    for name in NAMES[:3]:
        hand.check(name)
    hand.canary("gateway")  # under way since the first failure
    hand.canary("gateway")
    assert [on for _, on, _ in holds(hand)] == [True, False]
    hand.check("d")
    assert "storm" not in hand.ledger.holds
    for name in NAMES:
        hand.recover(name)
    for name in NAMES[:3]:
        hand.check(name)
    assert "storm" in hand.ledger.holds


def test_a_storm_that_a_person_released_is_not_raised_again_by_what_raised_it() -> None:
    hand = fleet()
    for name in NAMES[:3]:
        hand.check(name)
    hand.ask("release", hold="storm", scopes=ADMIN)
    hand.check("d")
    assert "storm" not in hand.ledger.holds
    assert hand.said(HoldChanged)[-1].actor == "pat"


def test_dependents_of_one_parent_are_no_storm() -> None:
    needs = (Dependency(services=("db",)),)
    hand = Hand(service("db"), *(service(name, depends_on=needs) for name in NAMES))
    hand.check("db")
    for name in NAMES:
        hand.check(name)
    assert not hand.ledger.holds


def test_a_service_that_exited_is_restarted_in_a_storm() -> None:
    hand = Hand(*(service(name, has_workload=True) for name in NAMES))
    for name in NAMES:
        hand.check(name, instance=running(1, Run.EXITED if name == "a" else Run.RUNNING, name=name))
    assert "storm" in hand.ledger.holds
    hand.act("a", instance=running(1, Run.EXITED, name="a"))
    hand.fail("b", instance=running(1, name="b"))
    assert hand.reason("b") == "held:storm"


# -- canaries -------------------------------------------------------------------------------------------------------


def test_a_suspicion_asks_the_canaries() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway")
    hand.well("db")
    hand.check()
    assert hand.engine.in_flight("canary:gateway") is Purpose.PARENT


def test_while_no_canary_answers_nothing_is_concluded() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.well("db")
    hand.canary("gateway", FAILING)
    assert holds(hand) == [("canary", True, "refused")]
    assert "canary" in hand.alerts
    for _ in range(10):
        hand.check()
    assert (hand.state(), hand.evidence().failures) == (State.HEALTHY, 0)
    hand.canary("gateway")
    assert holds(hand)[-1] == ("canary", False, "a canary answers")


def test_a_canary_without_words_is_told_in_ours() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway", CheckResult(Verdict.FAILING))
    assert holds(hand) == [("canary", True, "no canary answers")]


def test_while_no_canary_answers_they_are_asked_often() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway", FAILING)
    assert hand.engine.due("canary:gateway") == pytest.approx(hand.now + 5.0)
    hand.canary("gateway", UNRUN)
    assert hand.engine.due("canary:gateway") == pytest.approx(hand.now + 5.0)
    hand.canary("gateway", WARNING)
    assert hand.engine.due("canary:gateway") > hand.now + 5.0


def test_a_failure_is_not_believed_before_a_canary_has_vouched_for_our_view() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway")
    hand.well("db")
    hand.want("canary:gateway")
    hand.wait(1.0)
    for _ in range(9):
        hand.check()
    assert (hand.state(), hand.evidence().failures) == (State.UNHEALTHY, 9)
    hand.canary("gateway")
    assert hand.state() is State.UNHEALTHY  # it was asked before the failing began
    hand.canary("gateway")
    assert hand.state() is State.FAILED


def test_a_canary_that_a_person_excused_holds_nothing_until_it_has_answered_again() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway", FAILING)
    hand.ask("release", hold="canary", scopes=ADMIN)
    for _ in range(3):
        hand.canary("gateway", FAILING)
        assert not hand.ledger.holds
    hand.fail()  # and what fails meanwhile is believed
    hand.canary("gateway")
    hand.canary("gateway", FAILING)
    assert "canary" in hand.ledger.holds


def test_what_waited_for_a_canary_is_looked_at_when_a_person_excuses_it() -> None:
    hand = Hand(service(), service("api"), canaries=["gateway"])
    hand.canary("gateway")
    hand.well("db", "api")
    hand.want("canary:gateway")
    hand.until_true(lambda: hand.engine.desk.watches["db"].withheld)
    hand.canary("gateway", FAILING)
    hand.canary("gateway", FAILING)
    assert "canary" in hand.ledger.holds
    hand.ask("release", hold="canary", scopes=ADMIN)
    hand.fail()


def test_a_canary_that_cannot_be_asked_is_no_silent_reason_to_do_nothing() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway", UNRUN)
    hand.canary("gateway", UNRUN)
    assert not hand.ledger.holds
    hand.canary("gateway", UNRUN)
    assert holds(hand) == [("canary", True, "a bug in the check")]
    assert "canary" in hand.alerts
    hand.canary("gateway")
    assert not hand.ledger.holds


def test_what_a_canary_could_not_say_while_we_were_late_is_not_held_against_it() -> None:
    hand = Hand(service(), canaries=["gateway"])
    for _ in range(4):
        hand.wait(0.1)
        hand.want("canary:gateway")
        late(hand, 1.0, 0.5)
        hand.canary("gateway", FAILING)
    assert not hand.ledger.holds


def test_a_canary_wanted_while_it_is_being_asked_is_asked_again() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.wait(0.1)
    hand.want("canary:gateway")
    assert hand.engine.in_flight("canary:gateway") is Purpose.ROUTINE
    hand.wait(0.1)
    hand.want("canary:gateway")
    hand.canary("gateway")
    assert hand.engine.in_flight("canary:gateway") is Purpose.ROUTINE


# -- our own lateness -----------------------------------------------------------------------------------------------


def late(hand: Hand, after: float, by: float) -> None:
    hand.feed(WokeLate(at=hand.now + after, late=by))


def test_a_result_begun_before_we_woke_late_proves_nothing() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.wait(0.02)
    late(hand, 1.0, 0.5)
    hand.check()
    hand.canary("gateway", FAILING)
    assert (hand.state(), hand.evidence().failures, hand.ledger.holds) == (State.UNKNOWN, 0, {})
    hand.check()
    assert hand.evidence().failures == 1


def test_lateness_that_lasts_is_peoples_business_and_is_over_when_we_are_on_time_again() -> None:
    hand = Hand(service())
    hand.well("db")
    for _ in range(7):
        late(hand, 10.0, 5.0)
    assert holds(hand) == [("doubt", True, "the loop has been waking late for 60 s")]
    late(hand, 50.0, 0.5)
    hand.wait(59.0)
    assert "doubt" in hand.ledger.holds
    hand.wait(2.0)
    assert holds(hand)[-1] == ("doubt", False, "on time again")


def test_a_long_sleep_right_after_a_late_wake_is_not_chronic_and_a_second_one_is() -> None:
    hand = Hand(service())
    hand.well("db")
    late(hand, 1.0, 0.5)
    late(hand, 3605.0, 3600.0)
    assert not hand.ledger.holds
    late(hand, 3605.0, 3600.0)
    assert "doubt" in hand.ledger.holds


def test_a_sleep_is_not_taken_from_the_time_a_server_has_to_start() -> None:
    starting = CheckResult(Verdict.FAILING, cause=Cause.STARTING)
    hand = Hand(service(starting_limit=300.0))
    hand.well("db")
    hand.check("db", starting)
    since = hand.evidence().starting_since
    late(hand, 3600.0, 3599.0)
    assert hand.evidence().starting_since == since + 3599.0
    hand.check("db", starting)  # begun before
    hand.check("db", starting)
    assert (hand.evidence().failures, *hand.engine.lookout.excused) == (0, "db")
    hand.well("db")
    late(hand, 10.0, 5.0)
    assert not hand.engine.lookout.excused


def test_one_long_sleep_is_no_chronic_lateness_and_no_failing_span() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.check()
    since = hand.evidence().failing_since
    late(hand, 3600.0, 3599.0)
    assert not hand.ledger.holds
    assert hand.evidence().failing_since == since + 3599.0
    hand.check()  # begun before
    assert hand.state() is State.UNHEALTHY
    hand.check()
    hand.check()
    assert hand.state() is State.UNHEALTHY  # three failures, and not 30 s of them
    hand.fail()


def test_a_doubt_that_a_person_released_is_not_raised_again_by_what_raised_it() -> None:
    hand = Hand(service())
    for _ in range(7):
        late(hand, 10.0, 5.0)
    hand.ask("release", hold="doubt", scopes=ADMIN)
    late(hand, 10.0, 5.0)
    assert not hand.ledger.holds


def test_a_failure_begun_before_an_action_had_settled_proves_nothing() -> None:
    hand = Hand(service())
    hand.act()
    hand.finish()
    settles = hand.condition().settle_until
    hand.want("db")
    hand.check(started=settles - 1.0)
    assert hand.evidence().failures == 0
    hand.check("db", PASSING)
    assert hand.evidence().passes == 1


def test_a_warning_that_counts_as_a_failure_proves_nothing_before_an_action_had_settled_either() -> None:
    hand = Hand(service(warning_fails=True))
    hand.act("db", WARNING)
    hand.finish()
    hand.want("db")
    hand.check("db", WARNING)
    assert hand.evidence().failures == 0


# -- the store ------------------------------------------------------------------------------------------------------


def test_a_store_that_fails_is_told_with_its_words_or_ours() -> None:
    hand = Hand(service())
    hand.feed(JournalChanged(at=hand.now, well=False, detail="disk is full"))
    hand.feed(JournalChanged(at=hand.now, well=False, detail="disk is still full"))
    hand.feed(JournalChanged(at=hand.now, well=True))
    hand.feed(JournalChanged(at=hand.now, well=False))
    assert holds(hand) == [
        ("journal", True, "disk is full"),
        ("journal", False, "the store answers"),
        ("journal", True, "the store failed"),
    ]


# -- a new run ------------------------------------------------------------------------------------------------------


def test_what_was_held_is_looked_at_afresh_by_a_new_run() -> None:
    hand = fleet(canaries=["gateway"])
    for name in NAMES[:3]:
        hand.check(name)
    hand.feed(JournalChanged(at=hand.now, well=False))
    assert set(hand.ledger.holds) == {"storm", "journal"}
    hand.restart()
    assert set(hand.ledger.holds) == {"storm"}  # the store is ours, the storm is the world's
    assert hand.alerts == set()
    hand.canary("gateway")
    assert hand.ledger.holds == {}


def test_a_storm_outlives_a_restart_and_ends_when_those_who_failed_are_well() -> None:
    hand = fleet()
    for name in NAMES[:3]:
        hand.check(name)
    hand.restart(down_for=3600.0)
    assert "storm" in hand.ledger.holds
    hand.well("d")
    assert "storm" in hand.ledger.holds
    hand.recover("a")
    hand.recover("b")
    assert "storm" not in hand.ledger.holds


def test_canaries_that_did_not_answer_before_a_restart_must_answer_after_it() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway", FAILING)
    hand.restart()
    assert "canary" in hand.ledger.holds
    hand.canary("gateway", UNRUN)
    assert "canary" in hand.ledger.holds
    hand.canary("gateway")
    assert holds(hand)[-1] == ("canary", False, "a canary answers")


def test_what_has_failed_for_long_makes_no_storm_of_a_restart() -> None:
    hand = Hand(*(service(name, observe_only=True) for name in NAMES))
    for name in NAMES[:3]:
        hand.fail(name)
        hand.wait(200.0)
        hand.check("d", PASSING)
    hand.restart()
    for name in NAMES[:3]:
        hand.check(name)
    assert not hand.ledger.holds


def test_disabling_and_enabling_changes_what_half_of_the_fleet_is() -> None:
    hand = Hand(*(service(name) for name in "abcdefg"))
    hand.well(*"abcdefg")
    for name in "abc":
        hand.check(name)
    assert not hand.ledger.holds  # three of seven
    hand.ask("disable", "g")
    hand.recover("c")
    hand.check("c")
    assert holds(hand) == [("storm", True, "3 of 6 independent services are failing")]
    hand.ask("enable", "g")
    assert "storm" in hand.ledger.holds
    hand.recover("a")
    assert holds(hand)[-1] == ("storm", False, "2 of 7 independent services are failing")


def test_a_new_fleet_in_which_it_is_calm_ends_a_storm() -> None:
    hand = fleet()
    for name in NAMES[:3]:
        hand.check(name)
    assert "storm" in hand.ledger.holds
    hand.propose(*(service(f"s{number}") for number in range(12)), *(service(name) for name in NAMES))
    assert holds(hand)[-1] == ("storm", False, "3 of 16 independent services are failing")


def test_a_server_in_its_grace_takes_no_part_in_a_storm() -> None:
    hand = Hand(*(service(name, has_workload=True, start_grace=60.0) for name in NAMES))
    for name in NAMES[:2]:
        hand.check(name)
    for name in NAMES[:2]:
        hand.check(name, instance=running(1, name=name, since=hand.now - 1.0))
    hand.check("c")
    assert not hand.ledger.holds
