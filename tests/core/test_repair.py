"""Belief and action: from a confirmed failure over the guards to a step, through its verification, back to health."""

from __future__ import annotations

from math import inf
from typing import Any

import attrs
import pytest
from tests.core.bench import (
    FAILING,
    FLUSH,
    PEOPLE,
    RECONNECT,
    RESTART,
    UNRUN,
    WARNING,
    Hand,
    failing,
    running,
    service,
)

from selfheal.core.messages import NOTHING, ActionFinished, JournalChanged, RunAction, WokeLate
from selfheal.core.model import (
    PASSING,
    Backoff,
    Cause,
    Dependency,
    Effect,
    Instance,
    Priority,
    Purpose,
    Run,
    Settled,
    State,
    Step,
)
from selfheal.core.records import AlertChanged, Ended, IncidentClosed, IncidentOpened, Intended, Moved

ADMIN = frozenset({"admin"})
NEEDS_DB = (Dependency(services=("db",)),)


def stepped(**changes: Any) -> Hand:
    """Return a bench where the first step of `db` runs."""
    hand = Hand(service(**changes))
    hand.act(instance=running(1) if changes.get("has_workload") else None)
    return hand


# -- belief ---------------------------------------------------------------------------------------------------------


def test_a_believed_failure_opens_an_incident_with_the_correlation_of_the_first_failing_check() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.check()
    correlation = hand.condition().correlation
    hand.fail()
    (opened,) = hand.said(IncidentOpened)
    assert (opened.incident.root, opened.incident.correlation) == ("db", correlation)
    assert hand.condition().correlation == correlation
    hand.act()
    assert hand.said(Intended)[0].correlation == correlation


def test_a_belief_says_what_the_check_said() -> None:
    hand = Hand(service())
    hand.fail()
    assert hand.said(Moved)[-1].because == "confirmed: refused"
    quiet = Hand(service())
    quiet.fail("db", failing(summary=""))
    assert quiet.said(Moved)[-1].because == "confirmed"


def test_a_failure_confirmed_by_count_waits_for_a_canary_to_vouch() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway")
    hand.well("db")
    hand.want("canary:gateway")
    hand.until_true(lambda: hand.engine.desk.watches["db"].withheld)
    assert hand.state() is State.UNHEALTHY
    hand.check("db", PASSING)
    hand.canary("gateway")
    hand.canary("gateway")
    assert hand.state() is State.HEALTHY  # nothing is left to believe
    assert not hand.said(IncidentOpened)


def test_a_failure_that_is_another_instances_by_now_is_not_believed_when_a_canary_vouches() -> None:
    hand = Hand(service(has_workload=True), canaries=["gateway"])
    hand.canary("gateway")
    hand.check("db", PASSING, running(1))
    hand.want("canary:gateway")
    for _ in range(8):
        hand.check(instance=running(1))
    assert hand.engine.desk.watches["db"].withheld
    hand.check(instance=running(2))
    hand.canary("gateway")
    hand.canary("gateway")
    assert (hand.state(), hand.engine.desk.watches["db"].withheld) == (State.UNHEALTHY, False)


def test_what_is_unsteady_is_shown_as_suspect_while_a_canary_is_asked() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway")
    hand.well("db")
    for result in [FAILING, PASSING] * 5:
        hand.check("db", result)
    assert hand.reason() == "unsteady"
    hand.canary("gateway")
    hand.want("canary:gateway")
    hand.until_true(lambda: hand.state() is not State.DEGRADED)
    assert (hand.state(), hand.said(Moved)[-1].because) == (State.UNHEALTHY, "confirmed by count; a canary is asked")
    hand.canary("gateway")
    hand.canary("gateway")
    assert hand.state() is State.FAILED


def test_a_canary_that_does_not_answer_confirms_nothing() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway")
    hand.well("db")
    hand.want("canary:gateway")
    hand.until_true(lambda: hand.engine.desk.watches["db"].withheld)
    hand.canary("gateway", FAILING)
    assert (hand.state(), list(hand.ledger.holds)) == (State.UNHEALTHY, ["canary"])


# -- a step ---------------------------------------------------------------------------------------------------------


def test_a_step_is_intended_with_every_guards_answer_and_the_instance_it_is_for() -> None:
    hand = stepped(has_workload=True)
    (intended,) = hand.said(Intended)
    assert (intended.intent, intended.expected, intended.action, intended.spends) == (
        "1/db/1/0",
        "db#1",
        "restart",
        True,
    )
    assert [answer.guard for answer in intended.guards] == [name for name, _ in hand.engine.explain("db")]
    assert hand.actions["db"] == RunAction(intent="1/db/1/0", service="db", step=0, expected="db#1", timeout=60.0)


def test_a_gentle_step_spends_no_budget() -> None:
    hand = stepped(steps=(RECONNECT,))
    assert not hand.said(Intended)[0].spends
    assert hand.ledger.fleet_spent == []


def test_each_step_is_preceded_by_a_fresh_check() -> None:
    hand = Hand(service())
    hand.fail()
    assert hand.engine.in_flight("db") is Purpose.BEFORE_STEP
    assert not hand.said(Intended)
    hand.check()
    assert hand.said(Intended)


def test_s22_a_service_that_has_healed_by_then_is_left_alone() -> None:
    hand = Hand(service(success_threshold=1))
    hand.fail()
    hand.check("db", PASSING)
    assert (hand.state(), hand.said(Intended)) == (State.HEALTHY, [])
    assert hand.said(IncidentClosed)[0].because == "healed by itself"


def test_what_could_not_be_checked_before_a_step_is_looked_at_again_first() -> None:
    hand = Hand(service())
    hand.fail()
    hand.check("db", UNRUN)
    assert not hand.said(Intended)
    hand.act()


def test_s21_a_step_that_does_not_help_is_followed_by_the_next() -> None:
    hand = stepped(steps=(RECONNECT, RESTART))
    hand.finish()
    hand.act()
    assert [one.action for one in hand.said(Intended)] == ["reconnect", "restart"]
    assert hand.condition().attempt == 1


def test_s23_what_the_action_says_of_itself_counts_for_nothing() -> None:
    bad = stepped()
    bad.finish(settled=Settled.FAILED, detail="exit 1")
    assert (bad.state(), bad.said(Moved)[-1].because) == (State.RECOVERING, "failed: exit 1")
    bad.recover()
    good = stepped()
    good.finish(settled=Settled.DONE)
    for _ in range(3):
        good.check()
    assert good.state() is State.FAILED


def test_checks_after_an_action_begin_when_it_has_settled() -> None:
    hand = stepped()
    hand.finish()
    assert hand.engine.due("db") == hand.now + 15.0


def test_two_passes_after_a_step_are_a_repair() -> None:
    hand = stepped()
    hand.finish()
    hand.check("db", PASSING)
    assert hand.state() is State.RECOVERING
    hand.check("db", WARNING)
    assert (hand.state(), hand.reason()) == (State.DEGRADED, "warning")
    assert hand.said(IncidentClosed)[0].because == "verified"


# -- what never started ---------------------------------------------------------------------------------------------


def test_another_instance_supersedes_the_step_and_is_observed_first() -> None:
    hand = stepped(has_workload=True)
    hand.finish(settled=Settled.SUPERSEDED, detail="another instance runs")
    assert (hand.state(), hand.reason(), hand.condition().attempt) == (State.FAILED, "held:workload", 0)
    assert hand.said(Ended)[0].refunded
    assert (hand.ledger.spent, hand.ledger.fleet_spent) == ({}, [])
    assert hand.said(Moved)[-2].because == "restart superseded: another instance runs"
    hand.act(instance=running(2))
    assert hand.said(Intended)[-1].intent == "1/db/1/0.1"


def test_what_could_not_be_stored_is_tried_again_when_it_can_and_costs_nothing() -> None:
    hand = stepped()
    hand.feed(JournalChanged(at=hand.now, well=False, detail="disk is full"))
    hand.finish(settled=Settled.NOT_STARTED)
    assert (hand.state(), hand.condition().attempt, hand.said(Moved)[-1].because) == (State.FAILED, 0, "not_started")
    hand.check()
    assert hand.reason() == "held:journal"
    hand.feed(JournalChanged(at=hand.now, well=True))
    hand.act()


def test_a_runner_that_could_not_look_again_leaves_it_unknown_who_runs() -> None:
    hand = stepped(has_workload=True)
    hand.finish(settled=Settled.NOT_STARTED, detail="no socket")
    assert hand.reason() == "held:workload"
    assert hand.condition().detail == "inspection failed: no socket"
    assert "db unattended" in hand.alerts


def test_a_second_step_that_never_started_keeps_its_attempt_and_the_clock() -> None:
    hand = stepped(steps=(RECONNECT, RESTART), recovery_timeout=60.0)
    began = hand.now
    hand.finish()
    hand.act()
    hand.finish(settled=Settled.NOT_STARTED)
    assert hand.condition().attempt == 1
    hand.until(began + 61.0)
    assert hand.reason() == "backoff"


def test_people_hear_when_inspection_fails_though_it_was_held_for_another_reason_of_the_workload() -> None:
    """After a restart nobody knows who runs; when asking fails too, that must not stay unsaid."""
    hand = stepped(has_workload=True)
    hand.finish()
    for _ in range(3):
        hand.check(instance=running(1))
    assert hand.reason() == "backoff"
    hand.restart(down_for=1000.0)
    assert (hand.reason(), hand.condition().detail) == ("held:workload", "nobody has asked who runs yet")
    hand.check(instance=Instance(id="", run=Run.UNKNOWN, detail="no socket"))
    assert hand.condition().detail == "inspection failed: no socket"
    assert "db unattended" in hand.alerts
    said = len(hand.records)
    hand.check(instance=Instance(id="", run=Run.UNKNOWN, detail="no socket, 2nd try"))
    assert len(hand.records) == said  # once is enough


# -- the time of an attempt -----------------------------------------------------------------------------------------


def test_s37_an_action_that_outlasts_its_attempt_is_stopped_and_the_attempt_is_over() -> None:
    hand = stepped(steps=(Step(action="restart", timeout=600.0),), recovery_timeout=60.0)
    hand.wait(60.0)
    assert hand.cancelled == ["1/db/1/0"]
    hand.finish(settled=Settled.TIMED_OUT)
    assert (hand.state(), hand.reason(), hand.said(Moved)[-2].because) == (State.FAILED, "backoff", "its time was over")


def test_an_attempt_that_is_verified_too_long_is_over() -> None:
    hand = stepped(recovery_timeout=40.0)
    hand.finish()
    for _ in range(3):
        hand.check("db", UNRUN)
    hand.wait(60.0)
    assert hand.said(Moved)[-2].because == "recovery_timeout is over"


def test_the_clock_stands_while_the_next_step_is_held() -> None:
    hand = stepped(steps=(RECONNECT, FLUSH), recovery_timeout=60.0)
    hand.finish()
    hand.reach("held:approval")
    hand.wait(500.0)
    assert hand.reason() == "held:approval"
    hand.ask("approve", "db")
    hand.act()
    hand.finish()
    assert hand.state() is State.RECOVERING


# -- waiting for people ---------------------------------------------------------------------------------------------


def test_nobody_approves_in_time_and_the_step_is_passed_over() -> None:
    hand = stepped(steps=(RECONNECT, FLUSH, RESTART))
    hand.finish()
    hand.reach("held:approval")
    hand.act()
    assert [one.action for one in hand.said(Intended)] == ["reconnect", "restart"]
    assert any(move.because == "nobody approved it in time" for move in hand.said(Moved))


def test_when_the_last_step_is_passed_over_the_attempt_is_over() -> None:
    hand = Hand(service(steps=(FLUSH,)))
    hand.fail()
    hand.reach("backoff")
    assert (hand.condition().attempt, hand.said(Intended)) == (1, [])


def test_who_refuses_the_only_step_is_not_asked_again_at_once() -> None:
    hand = Hand(service(steps=(FLUSH,)))
    hand.fail()
    waits = []
    for _ in range(3):
        hand.reach("held:approval")
        hand.ask("refuse", "db")
        waits.append(round(hand.condition().not_before - hand.now))
    assert waits == [10, 20, 900]


def test_a_late_wake_does_not_put_the_question_anew_and_the_yes_asks_for_a_fresh_look_at_the_parent() -> None:
    hand = Hand(service("api"), service("db", steps=(FLUSH,), depends_on=(Dependency(services=("api",)),)))
    hand.well("api", "db")
    hand.fail("db")
    for _ in range(4):
        if hand.reason("db") == "held:approval":
            break
        hand.well("api")
    put = hand.condition("db")
    assert (put.reason, put.asked_at) == ("held:approval", hand.now)
    before = len(hand.said(Moved))
    hand.feed(WokeLate(at=hand.now + 10.0, late=5.0))
    hand.check("db")  # begun before
    hand.check("db")
    assert hand.reason("db") == "held:approval"
    # The clock of the question stands still for the time slept; nothing else of it has changed.
    assert [move.because for move in hand.said(Moved)[before:]] == ["selfheal woke 5 s late"]
    hand.ask("approve", "db")
    assert hand.reason("db") == "waiting-for:api"
    hand.well("api")
    hand.check("db")
    assert [one.action for one in hand.said(Intended)] == ["flush"]


def test_the_clock_of_people_never_ends() -> None:
    hand = Hand(service(steps=(PEOPLE,)))
    hand.fail()
    hand.wait(1e6)
    hand.check()
    assert (hand.reason(), hand.condition().attempt) == ("held:approval", 0)


def test_a_step_that_fits_no_more_is_not_waited_for() -> None:
    """It asked about a step for a cause that is another by now."""
    asks = Step(action="flush", approval=True, only_for=frozenset({Cause.FULL}))
    hand = Hand(service(steps=(asks,)))
    hand.fail("db", failing(Cause.FULL))
    assert hand.reason() == "held:approval"
    hand.check("db", failing(Cause.ERROR))
    assert hand.reason() == "held:cause"
    assert hand.ask("refuse", "db").code == "not_found"
    hand.check("db", failing(Cause.FULL))
    assert hand.reason() == "held:approval"


# -- parents come back ----------------------------------------------------------------------------------------------


def test_s44_dependents_are_looked_at_at_once_and_apart_when_their_parent_is_back() -> None:
    slow = {"depends_on": NEEDS_DB, "interval": 600.0}
    hand = Hand(
        service("db"),
        service("a", **slow),
        service("b", **slow),
        service("c", **slow, recheck=600.0),
        service("d", **slow),
        storm_floor=9,
    )
    hand.well("d")
    for name in ("a", "b"):
        hand.fail(name)
    hand.check("c")
    hand.act("db")
    for name in ("a", "b"):
        hand.check(name)
    hand.finish("db")
    hand.recover("db")
    back = hand.now
    assert hand.engine.in_flight("a") is Purpose.ROUTINE
    assert [round(hand.engine.due(name) - back, 3) for name in ("b", "c")] == [0.2, 0.4]
    assert hand.engine.due("d") - back > 1.0
    assert hand.condition("a").not_before == back + 30.0
    assert hand.evidence("c").failures == 0


def test_a_dependent_in_the_middle_of_an_attempt_or_escalated_keeps_its_own_time() -> None:
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB, max_retries=1))
    hand.well("db")
    hand.fail("api")
    for _ in range(2):
        hand.well("db")
    hand.act("api")
    hand.finish("api")
    hand.fail("api")
    assert hand.reason("api") == "escalated"
    before = hand.condition("api").not_before
    hand.fail("db")
    hand.recover("db")
    assert hand.condition("api").not_before == before


def test_a_dependent_that_is_being_checked_is_checked_again() -> None:
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB))
    hand.fail("api")
    hand.act("db")
    hand.finish("db")
    hand.check("db", PASSING)
    hand.check("api")
    hand.want("api")
    hand.recover("db")
    hand.check("api")
    assert hand.engine.in_flight("api") is Purpose.PARENT


def test_a_dependent_that_nobody_watches_is_not_released() -> None:
    import attrs

    hand = Hand(service("db", success_threshold=1), service("api", depends_on=NEEDS_DB), service("web"))
    hand.fail("db")
    hand.restart(fleet=attrs.evolve(hand.fleet, policies=hand.fleet.policies[:1]))
    hand.recover("db")
    assert "api" not in hand.checks


@pytest.mark.parametrize("verifying", [True, False])
def test_a_recovery_that_nobody_watches_any_more_gives_its_slot_back(verifying: bool) -> None:
    import attrs

    hand = Hand(service("db"), service("api"), service("web"))
    hand.act("api")
    if verifying:
        hand.finish("api")
    hand.restart(fleet=attrs.evolve(hand.fleet, policies=hand.fleet.policies[:1]))
    if not verifying:
        assert list(hand.ledger.occupied) == ["api"]
        hand.feed(ActionFinished(at=hand.now + 0.2, intent="1/api/1/0", settled=Settled.DONE))
    assert (hand.state("api"), dict(hand.ledger.occupied)) == (State.FAILED, {})
    assert hand.said(Moved)[-1].because == "it is not watched"


def test_what_is_two_floors_below_by_two_ways_is_pardoned_once_and_all_the_same() -> None:
    both = (*NEEDS_DB, Dependency(services=("api",)))
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB), service("web", depends_on=both))
    hand.well("db", "api", "web")
    for name in ("api", "web"):
        hand.check(name)
    hand.act("db")
    hand.finish("db")
    hand.recover("db")
    assert [hand.evidence(name).score for name in ("api", "web")] == [0, 0]


# -- in doubt -------------------------------------------------------------------------------------------------------


def test_the_end_of_an_unknown_intent_changes_nothing() -> None:
    hand = Hand(service())
    assert hand.feed(ActionFinished(at=hand.now, intent="9/db/9/9", settled=Settled.DONE)) is NOTHING


def test_an_action_whose_manager_died_may_still_run_and_occupies_its_service_until_its_time_is_over() -> None:
    hand = stepped()
    began = hand.now
    hand.restart(down_for=5.0)
    unsure = ActionFinished(at=hand.now + 0.2, intent="1/db/1/0", settled=Settled.IN_DOUBT, detail="no probe")
    assert hand.feed(unsure) is NOTHING
    assert list(hand.ledger.occupied) == ["db"]
    hand.until(began + 60.0 + 30.0)
    assert hand.settles == ["1/db/1/0", "1/db/1/0"]  # what it did may be seen by now
    assert not hand.said(Ended)
    hand.until(began + 60.0 + 30.0 + 30.0)
    (ended,) = hand.said(Ended)
    assert (ended.settled, ended.refunded) == (Settled.IN_DOUBT, False)
    assert "db in_doubt" in hand.alerts
    hand.recover()
    assert hand.alerts == set()


def test_who_cannot_tell_after_the_time_is_over_is_believed_at_once() -> None:
    hand = stepped()
    hand.restart(down_for=500.0)
    hand.feed(ActionFinished(at=hand.now + 0.2, intent="1/db/1/0", settled=Settled.IN_DOUBT, detail="no probe"))
    assert [one.settled for one in hand.said(Ended)] == [Settled.IN_DOUBT]
    assert hand.said(AlertChanged)[-1].alert.rule == "in_doubt"


def test_a_doubt_in_the_same_run_is_told_once_however_often() -> None:
    hand = stepped(steps=(RESTART, RESTART))
    hand.finish(settled=Settled.IN_DOUBT, detail="the connection broke")
    hand.act()
    hand.finish(settled=Settled.IN_DOUBT, detail="the connection broke")
    opened = [one for one in hand.said(AlertChanged) if one.alert.rule == "in_doubt" and one.open]
    assert len(opened) == 1


def test_an_orphan_that_has_ended_by_the_time_it_is_asked_again_is_in_no_doubt() -> None:
    hand = stepped()
    began = hand.now
    hand.restart(down_for=5.0)
    unsure = ActionFinished(at=hand.now + 0.2, intent="1/db/1/0", settled=Settled.IN_DOUBT)
    assert hand.feed(unsure) is NOTHING
    hand.until(began + 60.0 + 30.0)
    hand.feed(attrs.evolve(unsure, at=hand.now + 0.2, settled=Settled.DONE))
    assert [one.settled for one in hand.said(Ended)] == [Settled.DONE]
    hand.wait(100.0)
    hand.engine.repair.ask_again("1/db/1/0")
    assert [one.settled for one in hand.said(Ended)] == [Settled.DONE]


def test_an_orphan_that_was_settled_meanwhile_is_left_alone() -> None:
    hand = stepped()
    hand.restart(down_for=5.0)
    hand.feed(ActionFinished(at=hand.now + 0.2, intent="1/db/1/0", settled=Settled.DONE))
    hand.engine.repair.orphan("1/db/1/0")
    hand.wait(500.0)
    assert [one.settled for one in hand.said(Ended)] == [Settled.DONE]


# -- switched off, gone, passed by force ----------------------------------------------------------------------------


def test_a_service_that_was_switched_off_and_on_is_checked_when_its_old_action_has_ended() -> None:
    hand = stepped()
    hand.ask("disable", "db")
    hand.ask("enable", "db")
    assert (hand.state(), hand.engine.in_flight("db"), hand.engine.due("db")) == (State.UNKNOWN, None, inf)
    hand.finish()
    hand.well("db")
    assert hand.state() is State.HEALTHY


def test_the_end_of_an_action_of_a_service_that_is_off_or_gone_is_only_kept() -> None:
    off = stepped()
    off.ask("disable", "db")
    off.finish()
    assert (off.state(), off.engine.in_flight("db")) == (State.DISABLED, None)
    gone = stepped()
    gone.propose(confirmed=True)
    gone.finish()
    assert [one.settled for one in gone.said(Ended)] == [Settled.DONE]


def test_a_service_that_lost_its_ladder_while_it_was_forced_is_left_alone() -> None:
    hand = Hand(service())
    hand.fail()
    hand.feed(JournalChanged(at=hand.now, well=False))
    hand.check()
    hand.ask("recover", "db", override=frozenset({"observe"}), scopes=ADMIN)
    hand.propose(service(steps=()))
    hand.feed(JournalChanged(at=hand.now, well=True))
    hand.check()
    assert not hand.actions


def test_who_leaves_the_fleet_together_with_what_it_waits_for_is_forgotten() -> None:
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB), service("web"))
    hand.fail("db")
    hand.fail("api")
    assert hand.reason("api") == "waiting-for:db"
    hand.propose(service("web"), confirmed=True)
    assert set(hand.ledger.conditions) == {"web"}


def test_no_two_actions_ever_have_one_key_even_of_a_service_that_is_watched_anew() -> None:
    """Its count begins at 1 again, in an incident it has been part of before."""
    db, api, jobs = service("db"), service("api", depends_on=NEEDS_DB), service("jobs", depends_on=NEEDS_DB)
    hand = Hand(db, api, jobs, budget_floor=99)
    hand.ask("pause", "jobs")
    for _ in range(2):
        hand.fail("db")
        for name in ("api", "jobs"):
            hand.fail(name)
        hand.act("db")
        hand.finish("db")
        hand.recover("db")
        for _ in range(60):
            if "api" in hand.actions:
                break
            hand.check("db", PASSING)
            hand.check("api")
        hand.finish("api")
        assert hand.propose(db, jobs).accepted
        assert hand.propose(db, api, jobs).accepted
    keys = [one.intent for one in hand.said(Intended) if one.service == "api"]
    assert len(keys) == 2
    assert keys == ["1/api/1/0.1", "1/api/1/0.2"]


# -- attempts, backoff, relapses ------------------------------------------------------------------------------------


def rounds(hand: Hand, number: int) -> list[float]:
    """Let attempts fail; return how long each wait was."""
    waits = []
    for _ in range(number):
        hand.act()
        hand.finish()
        hand.fail()
        waits.append(hand.condition().not_before - hand.now)
    return waits


def test_s33_each_attempt_waits_longer_then_people_are_called_and_it_is_tried_slowly() -> None:
    hand = Hand(service(budgets=()), budget_floor=99)
    assert rounds(hand, 5) == pytest.approx([10.0, 20.0, 900.0, 900.0, 900.0])
    assert hand.reason() == "escalated"
    assert len([one for one in hand.said(AlertChanged) if one.alert.rule == "unattended" and one.open]) == 1


def test_without_a_slow_retry_it_is_only_checked_and_health_clears_it() -> None:
    hand = Hand(service(max_retries=1, slow_retry=None))
    assert rounds(hand, 1) == [inf]
    hand.wait(1e5)
    assert hand.reason() == "escalated"
    hand.recover()
    assert hand.state() is State.HEALTHY


def test_a_relapse_in_probation_goes_on_where_it_was() -> None:
    hand = stepped()
    hand.finish()
    hand.recover()
    hand.fail()
    assert hand.said(IncidentOpened)[-1].incident.reopened == 1
    assert hand.condition().attempt == 1
    assert hand.condition().not_before == pytest.approx(hand.now + 10.0)
    hand.act()
    assert hand.said(Intended)[-1].intent == "1/db/2/0"
    hand.finish()
    hand.recover()
    hand.fail()
    assert hand.said(IncidentOpened)[-1].incident.reopened == 2


@pytest.mark.parametrize(("slow_retry", "wait"), [(900.0, 900.0), (None, inf)])
def test_a_relapse_of_what_had_used_its_attempts_is_tried_slowly(slow_retry: float | None, wait: float) -> None:
    hand = Hand(service(max_retries=1, slow_retry=slow_retry))
    hand.act()
    hand.finish()
    hand.recover()
    hand.fail()
    assert hand.condition().not_before == pytest.approx(hand.now + wait)
    hand.check()
    assert hand.reason() == "escalated"


def test_after_ten_minutes_of_health_the_backoff_is_forgotten() -> None:
    def level_after(health: float) -> int:
        hand = Hand(service(probation=0.0))
        hand.act()
        hand.finish()
        hand.recover()
        until = hand.now + health
        while hand.engine.due("db") < until:
            hand.well("db")
        hand.fail()
        return hand.condition().level

    assert level_after(300.0) == 1
    assert level_after(650.0) == 0


def test_jitter_spreads_equal_services() -> None:
    """S34: ten services with equal settings that fail together do not retry together."""
    names = [f"s{number}" for number in range(10)]
    hand = Hand(
        *(service(name, backoff=Backoff()) for name in names),
        max_concurrent_recoveries=10,
        budget_floor=99,
        storm_floor=99,
    )
    waits = set()
    for name in names:
        hand.act(name)
        hand.finish(name, took=0.0)
    for name in names:
        hand.fail(name)
        waits.add(round(hand.condition(name).not_before - hand.condition(name).since, 3))
    assert len(waits) == 10
    assert all(5.0 <= wait <= 10.0 for wait in waits)


# -- what must not be a dead end, and what must not be told twice --------------------------------------------------


def test_an_attempt_of_whose_remaining_steps_none_fits_any_more_is_over() -> None:
    """Else it would be held for the cause inside of an attempt, whose first steps do fit."""
    only_busy = Step(action="scale_up", only_for=frozenset({Cause.OVERLOADED}))
    hand = Hand(service(steps=(RESTART, only_busy)))
    hand.act(result=failing(Cause.OVERLOADED))
    hand.finish()
    hand.until_true(lambda: hand.state() is State.FAILED, result=failing(Cause.OVERLOADED))
    assert (hand.condition().in_attempt, hand.condition().cursor) == (True, 1)
    hand.check()  # it is not busy any more, and it is still down
    assert (hand.condition().in_attempt, hand.condition().cursor, hand.reason()) == (False, 0, "backoff")
    hand.act()
    assert [one.action for one in hand.said(Intended)] == ["restart", "restart"]


def test_a_free_slot_is_filled_though_the_first_who_waited_does_not_need_it_any_more() -> None:
    ranks = zip("abc", sorted(Priority, reverse=True), strict=True)
    hand = Hand(
        *(service(name, priority=priority) for name, priority in ranks), max_concurrent_recoveries=1, storm_floor=9
    )
    hand.act("a")
    for name in "bc":
        hand.reach("held:slot", name)
    hand.ask("pause", "b")
    hand.finish("a")
    hand.recover("a")
    assert list(hand.engine.desk.reserved) == ["c"]  # at once, and not when it is looked at next
    assert hand.reason("b") == "held:paused"


def test_the_check_before_a_step_is_not_lost_to_somebody_who_asks_for_a_parent() -> None:
    hand = Hand(service())
    hand.fail()
    watch = hand.engine.desk.watches["db"]
    watch.flight, watch.flight_at, watch.wanted = Purpose.PARENT, hand.now - 1.0, Purpose.BEFORE_STEP
    hand.engine.desk.want("db", Purpose.PARENT)
    assert watch.wanted is Purpose.BEFORE_STEP


def test_the_budget_of_the_fleet_is_told_once_for_all_who_wait() -> None:
    hand = Hand(*(service(name) for name in "abc"), budget_floor=1, storm_floor=9, max_concurrent_recoveries=9)
    hand.act("a")
    hand.finish("a")
    hand.recover("a")
    for name in "bc":
        hand.reach("held:budget", name)
    assert hand.alerts == {"budget", "b failed", "c failed"}
    hand.act("b")
    hand.finish("b")
    hand.recover("b")
    assert "budget" in hand.alerts  # c still waits, for the next window
    hand.act("c")
    hand.finish("c")
    hand.recover("c")
    hand.wait(600.0)
    assert hand.alerts == set()
    assert [one.open for one in hand.said(AlertChanged) if one.alert.rule == "budget"] == [True, False]


def test_a_budget_that_is_told_of_is_looked_at_by_the_next_run() -> None:
    hand = Hand(service("a"), service("b"), budget_floor=1)
    hand.act("a")
    hand.finish("a")
    hand.recover("a")
    hand.reach("held:budget", "b")
    hand.recover("b")
    hand.restart(down_for=3600.0)
    assert hand.alerts == set()


def test_the_clock_of_an_attempt_stands_still_while_the_host_sleeps() -> None:
    hand = Hand(service(recovery_timeout=100.0))
    hand.act()
    hand.feed(WokeLate(at=hand.now + 500.0, late=499.0))
    assert not hand.cancelled
    hand.wait(98.0)
    assert not hand.cancelled
    hand.wait(2.0)
    assert hand.cancelled == ["1/db/1/0"]


def test_what_never_started_gives_its_attempt_back_over_a_restart_too() -> None:
    hand = stepped()
    hand.restart()
    hand.feed(ActionFinished(at=hand.now + 0.2, intent="1/db/1/0", settled=Settled.NOT_STARTED))
    assert (hand.condition().attempt, hand.condition().in_attempt) == (0, False)


def test_the_time_to_approve_is_not_used_up_by_a_pause() -> None:
    hand = Hand(service(steps=(FLUSH, RESTART)))
    hand.reach("held:approval")
    hand.ask("pause", "db", duration=3600.0)
    hand.check()
    assert hand.reason() == "held:paused"
    hand.wait(3600.0)
    hand.check()
    assert hand.reason() == "held:approval"
    hand.wait(800.0)
    assert hand.ask("approve", "db").accepted


def test_who_acknowledged_that_people_are_wanted_is_not_asked_again_a_moment_later() -> None:
    hand = Hand(service(steps=(PEOPLE,)))
    hand.reach("held:approval")
    hand.ask("acknowledge", "db")
    asked = hand.now
    hand.until_true(lambda: hand.now > asked + 800.0)
    assert hand.condition().asked is None
    hand.until_true(lambda: hand.condition().asked is not None)
    assert hand.now >= asked + 900.0


def test_a_service_that_is_down_and_cannot_be_checked_says_so_and_pages() -> None:
    hand = Hand(service())
    hand.fail()
    for _ in range(3):
        hand.check("db", UNRUN)
    assert (hand.reason(), hand.condition().detail) == ("held:doubt", "checks cannot run: a bug in the check")
    assert {"db unobserved", "db unattended"} <= hand.alerts
    hand.act()
    assert hand.said(Intended)


def test_what_a_person_forces_is_no_confirmed_failure() -> None:
    hand = Hand(service(latency_objective=0.01, latency_strikes=1))
    hand.check("db", PASSING, took=1.0)
    assert (hand.state(), hand.condition().detail) == (State.DEGRADED, "1 s; the objective is 0.01 s")
    hand.ask("recover", "db")
    assert (hand.state(), hand.condition().confirmed) == (State.FAILED, ())


def test_a_demand_that_was_held_for_long_has_run_out() -> None:
    hand = Hand(service())
    hand.fail()
    hand.ask("pause", "db")
    hand.ask("recover", "db")
    hand.wait(899.0)
    assert hand.condition().forced is not None
    hand.restart(down_for=2.0)
    hand.wait(0.0)
    assert hand.condition().forced is None
    hand.ask("resume", "db")
    hand.act()
    assert hand.said(Intended)[-1].actor == ""


def test_a_demand_under_which_a_step_runs_lasts_as_long_as_the_step() -> None:
    hand = Hand(service(steps=(Step(action="restart", timeout=3600.0),), recovery_timeout=7200.0))
    hand.fail()
    hand.ask("recover", "db")
    hand.act()
    hand.wait(1000.0)
    assert hand.condition().forced is not None
    hand.engine.repair.demand_over("nobody")


def test_whose_clock_stands_is_not_moved_by_a_sleep() -> None:
    hand = Hand(service())
    hand.check()
    before = hand.condition()
    hand.feed(WokeLate(at=hand.now + 500.0, late=499.0))
    assert hand.condition() == before


def test_nobody_runs_out_of_time_to_answer_while_selfheal_is_away() -> None:
    hand = Hand(service(steps=(FLUSH,)))
    hand.reach("held:approval")
    hand.feed(WokeLate(at=hand.now + 3600.0, late=3590.0))
    hand.wait(800.0)
    assert (hand.reason(), hand.condition().attempt) == ("held:approval", 0)
    hand.restart(down_for=3600.0)
    hand.wait(800.0)
    assert (hand.condition().asked, hand.condition().attempt) == (0, 0)
    assert hand.ask("approve", "db").accepted


def test_a_yes_to_a_step_does_not_last_for_days() -> None:
    hand = Hand(service(steps=(FLUSH,)))
    hand.reach("held:approval")
    hand.ask("pause", "db", duration=86400.0)
    hand.ask("approve", "db")
    hand.wait(86401.0)
    hand.check()
    assert not hand.actions
    assert (hand.reason(), hand.condition().approved) == ("held:approval", None)
    hand.ask("approve", "db")
    hand.act()


def test_a_demand_whose_step_never_started_runs_out_all_the_same() -> None:
    hand = Hand(service())
    hand.fail()
    hand.ask("recover", "db")
    hand.act()
    hand.wait(1000.0)
    hand.ask("pause", "db")
    hand.finish(settled=Settled.NOT_STARTED)
    hand.wait(0.0)
    assert hand.condition().forced is None


def test_a_parent_that_cannot_be_checked_leaves_its_child_to_people() -> None:
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB))
    hand.well("db", "api")
    for _ in range(4):
        hand.check("db", UNRUN)
    hand.fail("api")
    for _ in range(4):
        hand.check("api")
        hand.check("db", UNRUN)
    assert hand.reason("api") == "waiting-for:db"
    assert "api unattended" in hand.alerts


def test_what_is_known_of_a_failure_is_known_to_the_next_run() -> None:
    flush = Step(action="flush", effect=Effect.GENTLE, only_for=frozenset({Cause.OVERLOADED}))
    hand = Hand(service(steps=(flush,)))
    hand.act(result=failing(Cause.OVERLOADED))
    hand.finish()
    hand.until_true(lambda: hand.reason() == "backoff", result=failing(Cause.OVERLOADED))
    hand.restart(down_for=1.0)
    assert hand.reason() == "backoff"
    assert "db unattended" not in hand.alerts


def test_an_action_on_a_service_that_is_gone_has_no_clock_to_stand_still() -> None:
    hand = Hand(service(), service("api"), service("web"))
    hand.act()
    hand.propose(service("api"), service("web"))
    assert list(hand.ledger.occupied) == ["db"]
    hand.feed(WokeLate(at=hand.now + 500.0, late=499.0))
    assert "db" not in hand.ledger.conditions


def test_a_storm_is_told_when_it_keeps_somebody_from_being_repaired() -> None:
    hand = Hand(*(service(name) for name in "abcd"))
    hand.well(*"abcd")
    for name in "abc":
        hand.check(name)
    assert ("storm" in hand.ledger.holds, "storm" in hand.alerts) == (True, False)
    hand.reach("held:storm", "a")
    assert "storm" in hand.alerts
