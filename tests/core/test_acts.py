"""What people ask of the engine: each act, its answer, and why it may be refused."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from tests.core.bench import FAILING, FLUSH, PEOPLE, RESTART, WARNING, Hand, failing, running, service

from selfheal.core.messages import NOTHING, JournalChanged, Requested
from selfheal.core.model import PASSING, Budget, Cause, Dependency, Purpose, Settled, State, Step
from selfheal.core.records import Answered, Ended, Intended, Moved, SuppressionChanged

ADMIN = frozenset({"admin"})


def refusal(answer: Answered) -> tuple[str, str]:
    assert not answer.accepted
    return answer.code, answer.because


@pytest.fixture
def hand() -> Hand:
    one = Hand(service(), service("api", enabled=False))
    one.well("db")
    return one


def down(**changes: Any) -> Hand:
    one = Hand(service(**changes))
    one.fail()
    return one


# -- every act ------------------------------------------------------------------------------------------------------


def test_an_answer_is_stored_with_who_asked_and_why_and_what_else_was_said(hand: Hand) -> None:
    answer = hand.ask("pause", "db", duration=60.0, actor="kim", reason="disks")
    assert (answer.actor, answer.reason, answer.act, answer.service) == ("kim", "disks", "pause", "db")
    assert answer.arguments == (("duration", 60.0),)
    more = hand.ask("recover", "db", override=frozenset({"parents", "paused"}), scopes=ADMIN)
    assert more.arguments == (("override", "parents,paused"),)
    several = hand.ask("silence", services=("db", "api"), everything=True)
    assert several.arguments == (("services", "db,api"), ("everything", True))


def test_the_answer_comes_after_its_effects_in_the_same_batch(hand: Hand) -> None:
    hand.ask("pause", everything=True)
    assert [type(record) for record in hand.records[-2:]] == [SuppressionChanged, Answered]


def test_the_same_act_sent_twice_has_one_effect_and_one_answer(hand: Hand) -> None:
    asked = Requested(at=hand.now, id="once", act="pause", everything=True, actor="pat", reason="")
    assert hand.feed(asked).records
    assert hand.feed(asked) is NOTHING
    assert len(hand.said(SuppressionChanged)) == 1


@pytest.mark.parametrize(
    ("act", "service_name", "code"),
    [
        ("explode", "", "unknown_request"),
        ("recover", "pg", "unknown_service"),
        ("recover", "", "bad_parameter"),
        ("enable", "", "bad_parameter"),
        ("disable", "", "bad_parameter"),
        ("approve", "", "bad_parameter"),
        ("refuse", "", "bad_parameter"),
        ("acknowledge", "", "bad_parameter"),
        ("pause", "", "bad_parameter"),
        ("resume", "", "bad_parameter"),
        ("resume", "db", "not_found"),
        ("lift", "", "not_found"),
        ("approve", "db", "not_found"),
        ("refuse", "db", "not_found"),
        ("acknowledge", "db", "not_found"),
        ("release", "", "forbidden"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(hand: Hand, act: str, service_name: str, code: str) -> None:
    before = hand.ledger.image()
    answer = hand.ask(act, service_name)
    assert refusal(answer)[0] == code
    after = hand.ledger.image()
    assert (after.conditions, after.suppressions) == (before.conditions, before.suppressions)


# -- recover --------------------------------------------------------------------------------------------------------


def test_a_recovery_is_forced_past_the_backoff_after_a_fresh_check() -> None:
    hand = down()
    hand.act()
    hand.finish()
    hand.fail()
    assert hand.reason() == "backoff"
    assert hand.ask("recover", "db").accepted
    hand.act()
    intended = hand.said(Intended)[-1]
    assert (intended.actor, intended.spends) == ("pat", False)
    assert {answer.guard: answer.passed_by for answer in intended.guards if answer.passed_by} == {"backoff": "pat"}


def test_a_forced_recovery_that_finds_the_service_well_does_nothing() -> None:
    hand = down()
    hand.ask("pause", everything=True)
    hand.check()
    hand.ask("lift", suppression="r1")
    hand.ask("recover", "db")
    hand.recover()
    assert not hand.actions
    assert hand.condition().forced is None


@pytest.mark.parametrize("results", [[WARNING], [FAILING]])
def test_a_person_may_force_what_is_not_yet_believed(results: list[Any]) -> None:
    hand = Hand(service())
    for result in results:
        hand.check("db", result)
    answer = hand.ask("recover", "db", reason="I see it")
    assert answer.because == "a recovery is forced; a fresh check comes first"
    assert hand.state() is State.FAILED
    assert hand.said(Moved)[-1].actor == "pat" or any(move.actor == "pat" for move in hand.said(Moved))
    hand.act()


@pytest.mark.parametrize(
    ("held", "because"),
    [
        (
            lambda hand: hand.ask("pause", services=("db",), reason="moving"),
            "but held:paused holds it (r1 by pat: moving): end that, or override paused",
        ),
        (
            lambda hand: hand.feed(JournalChanged(at=hand.now, well=False, detail="disk full")),
            "but held:journal holds it (disk full); it begins when that has ended, if it does within 900 s",
        ),
    ],
)
def test_a_forced_recovery_says_what_holds_it_all_the_same(held: Callable[[Hand], object], because: str) -> None:
    hand = Hand(service())
    held(hand)
    hand.fail()
    answer = hand.ask("recover", "db")
    assert (answer.accepted, answer.because) == (True, f"a recovery is forced; {because}")
    assert not hand.actions


def test_s24_a_recovery_asked_for_while_one_runs_joins_it() -> None:
    hand = down()
    hand.act()
    answer = hand.ask("recover", "db")
    assert (answer.accepted, answer.because) == (True, "a recovery is under way already")
    hand.finish()
    assert hand.ask("recover", "db").because == "a recovery is under way already"
    assert len(hand.said(Intended)) == 1


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"enabled": False}, "db is not watched; enable it first"),
        ({}, "db is healthy: there is nothing to recover"),
        ({"steps": ()}, "db has no recovery_actions"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused(changes: dict[str, Any], because: str) -> None:
    hand = Hand(service(**changes))
    if changes.get("enabled", True):
        hand.check("db", PASSING if "steps" not in changes else FAILING)
    assert refusal(hand.ask("recover", "db")) == ("refused", because)


def test_overriding_needs_the_scope_admin() -> None:
    hand = down()
    code, because = refusal(hand.ask("recover", "db", override=frozenset({"paused", "parents"})))
    assert (code, because) == ("forbidden", "overriding parents, paused needs the scope admin")
    hand.ask("pause", everything=True)
    assert hand.ask("recover", "db", override=frozenset({"paused"}), scopes=ADMIN).accepted
    hand.act()


def test_a_service_that_was_dropped_and_kept_cannot_be_recovered() -> None:
    import attrs

    hand = Hand(service(), service("api"), service("web"))
    hand.well("db", "api", "web")
    hand.ask("disable", "web")
    hand.restart(fleet=attrs.evolve(hand.fleet, policies=hand.fleet.policies[:1]))
    assert refusal(hand.ask("recover", "api")) == ("refused", "api is not watched; enable it first")
    assert refusal(hand.ask("enable", "web")) == (
        "refused",
        "web is gone from the configuration: release the hold `fleet`, or bring it back",
    )
    assert refusal(hand.ask("enable", "api"))[0] == "refused"  # it was healthy, and is not watched all the same
    assert hand.ask("initialize", everything=True).because == "1 looked at afresh"


# -- switching on and off -------------------------------------------------------------------------------------------


def test_s2_what_is_disabled_is_not_checked_and_stays_so(hand: Hand) -> None:
    assert hand.ask("disable", "db").because == "it is not watched any more"
    assert (hand.state(), hand.engine.due("db"), hand.engine.in_flight("db")) == (State.DISABLED, inf, None)
    hand.wait(3600.0)
    assert hand.state() is State.DISABLED
    assert hand.ask("disable", "db").because == "it was disabled already"


def test_s13_what_is_enabled_is_unknown_and_checked_at_once(hand: Hand) -> None:
    hand.ask("disable", "db")
    assert hand.ask("enable", "db").because == "it is checked at once"
    assert (hand.state(), hand.engine.in_flight("db")) == (State.UNKNOWN, Purpose.ROUTINE)
    assert hand.ask("enable", "db").because == "it is enabled"


def test_the_file_and_the_switch_must_both_say_on(hand: Hand) -> None:
    assert hand.state("api") is State.DISABLED
    answer = hand.ask("enable", "api")
    assert answer.because == "switched on here, but the configuration says enabled = false"
    assert hand.state("api") is State.DISABLED
    hand.ask("disable", "api")
    assert not hand.condition("api").enabled


def test_what_was_disabled_by_a_person_stays_so_over_a_restart(hand: Hand) -> None:
    hand.ask("disable", "db")
    hand.restart()
    assert (hand.state(), hand.condition().enabled) == (State.DISABLED, False)


def test_an_action_that_runs_is_let_finish_when_its_service_is_disabled() -> None:
    hand = down()
    hand.act()
    hand.ask("disable", "db")
    assert hand.cancelled == []
    assert list(hand.ledger.occupied) == ["db"]
    hand.finish()
    assert (hand.state(), dict(hand.ledger.occupied)) == (State.DISABLED, {})


def test_looking_afresh_forgets_what_is_believed() -> None:
    hand = down()
    assert hand.ask("initialize", "db").because == "1 looked at afresh"
    assert (hand.state(), hand.condition().incident, hand.alerts) == (State.UNKNOWN, None, set())
    assert hand.evidence().failures == 0


def test_looking_afresh_at_everything_passes_over_what_is_off_or_being_acted_on(hand: Hand) -> None:
    assert hand.ask("initialize", everything=True).because == "1 looked at afresh"
    hand.act()
    assert hand.ask("initialize", everything=True).because == "0 looked at afresh"
    assert refusal(hand.ask("initialize", "db")) == ("conflict", "an action runs on db; wait for its end")


def test_a_client_that_begins_with_it_however_often_wipes_out_nothing() -> None:
    hand = Hand(service(), service("api", enabled=False), service("web"))
    hand.well("web")
    hand.fail("db")
    before = dict(hand.ledger.conditions)
    for _ in range(2):
        answer = hand.ask("initialize")
        assert answer.because == "nothing to do: 2 of 3 services are watched already; switched off: api"
    assert dict(hand.ledger.conditions) == before


# -- suppressions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "binds"), [("pause", "paused"), ("maintenance", "maintenance"), ("silence", "silence")]
)
def test_a_suppression_is_known_by_the_id_of_its_request(hand: Hand, act: str, binds: str) -> None:
    answer = hand.ask(act, services=("db",), duration=60.0)
    said = hand.ledger.suppressions[answer.because]
    assert (said.id, said.binds.value, said.services, said.until, said.actor) == (
        answer.id,
        binds,
        ("db",),
        hand.now + 60.0,
        "pat",
    )
    hand.wait(60.0)
    assert not hand.ledger.suppressions


def test_without_a_duration_it_lasts_until_somebody_ends_it(hand: Hand) -> None:
    hand.ask("pause", "db")
    hand.wait(1e6)
    assert hand.ledger.suppressions


def test_a_misspelt_name_pauses_nobody(hand: Hand) -> None:
    code, because = refusal(hand.ask("pause", services=("db", "apo")))
    assert (code, because) == ("unknown_service", "no service 'apo'; did you mean \"api\"?; nothing was changed")
    assert not hand.ledger.suppressions


def test_resuming_ends_just_the_pauses_it_covers(hand: Hand) -> None:
    hand.ask("pause", "db")
    hand.ask("pause", services=("db", "api"))
    hand.ask("pause", everything=True)
    hand.ask("silence", "db")
    assert hand.ask("resume", "db").because == "1 ended"
    assert hand.ask("resume", services=("api", "db")).because == "1 ended"
    assert refusal(hand.ask("resume", "db"))[0] == "not_found"
    assert hand.ask("resume", everything=True).because == "1 ended"
    assert [one.binds.value for one in hand.ledger.suppressions.values()] == ["silence"]


def test_any_suppression_can_be_lifted_by_its_id(hand: Hand) -> None:
    name = hand.ask("silence", "db").because
    assert hand.ask("lift", suppression=name).because == "lifted"
    assert refusal(hand.ask("lift", suppression=name)) == ("not_found", f"no suppression {name!r}")


# -- approvals ------------------------------------------------------------------------------------------------------


def asking(*steps: Step, **changes: Any) -> Hand:
    hand = Hand(service(steps=steps, **changes))
    hand.fail()
    hand.reach("held:approval")
    return hand


def test_an_approved_step_runs_after_a_fresh_check() -> None:
    hand = asking(FLUSH)
    assert hand.ask("approve", "db").because == "flush may run"
    assert not hand.actions
    hand.act()
    assert hand.said(Intended)[-1].action == "flush"
    assert hand.condition().approved is None


def test_a_refused_step_is_passed_over() -> None:
    hand = asking(FLUSH, RESTART)
    assert hand.ask("refuse", "db").because == "flush is passed over"
    hand.act()
    assert hand.said(Intended)[-1].action == "restart"


def test_people_are_not_approved_but_acknowledged() -> None:
    hand = asking(PEOPLE, RESTART)
    code, because = refusal(hand.ask("approve", "db"))
    assert (code, because) == ("refused", "manual_intervention is done by people: acknowledge it when it is")
    assert hand.ask("acknowledge", "db").because == "manual_intervention is acknowledged"
    hand.act()
    assert hand.said(Intended)[-1].action == "restart"


def test_an_approval_is_for_the_step_that_was_asked_for() -> None:
    """The cause is another by now, so another step is next: nobody has said yes to that one."""
    flush = Step(action="flush", approval=True, only_for=frozenset({Cause.UNREACHABLE}))
    drain = Step(action="drain", approval=True)
    hand = asking(flush, drain)
    hand.ask("pause", "db")
    hand.check("db", failing(Cause.STARTING))
    code, because = refusal(hand.ask("approve", "db"))
    assert (code, because) == ("conflict", "flush was asked for, and drain is next by now; look again")
    assert not hand.actions


@pytest.mark.parametrize("act", ["approve", "refuse"])
def test_an_answer_that_names_its_step_is_for_no_other(act: str) -> None:
    """Between the question on the screen and the answer it may have run out, and the next step be asked for."""
    hand = Hand(service(steps=(FLUSH,)))
    hand.reach("held:approval")
    told = refusal(hand.ask(act, "db", action="failover"))
    assert told == ("conflict", f"{FLUSH.action} waits by now, and not failover; look again")
    assert hand.ask(act, "db", action=FLUSH.action).accepted


def test_an_approval_is_for_a_service_that_is_down() -> None:
    hand = asking(FLUSH)
    hand.recover()
    assert refusal(hand.ask("approve", "db")) == ("not_found", "no step of db waits for a person")


def test_open_alerts_are_acknowledged_once() -> None:
    hand = down()
    assert hand.ask("acknowledge", "db").because == "1 acknowledged"
    assert {alert.acknowledged_by for alert in hand.ledger.alerts.values()} == {"pat"}
    assert refusal(hand.ask("acknowledge", "db")) == ("not_found", "nothing about db waits to be acknowledged")


# -- holds ----------------------------------------------------------------------------------------------------------


def test_a_hold_is_released_by_an_admin() -> None:
    hand = Hand(*(service(name) for name in "abc"))
    for name in "abc":
        hand.check(name)
    assert "storm" in hand.ledger.holds
    assert refusal(hand.ask("release", hold="storm")) == ("forbidden", "releasing a hold needs the scope admin")
    assert hand.ask("release", hold="storm", scopes=ADMIN).because == "storm is released"
    assert "storm" not in hand.ledger.holds
    assert refusal(hand.ask("release", hold="storm", scopes=ADMIN)) == ("not_found", "no hold 'storm'")


def test_no_word_ends_the_hold_of_a_store_that_does_not_answer() -> None:
    hand = Hand(service())
    hand.feed(JournalChanged(at=hand.now, well=False, detail="disk is full"))
    code, because = refusal(hand.ask("release", hold="journal", scopes=ADMIN))
    assert (code, because) == ("refused", "only a store that answers ends this hold; see act_without_journal")
    assert hand.alerts == {"journal"}


def test_s53_ten_forced_recoveries_in_a_minute_are_one_at_a_time_and_each_is_stored() -> None:
    hand = Hand(service(budgets=(Budget(limit=1, per=3600.0),)))
    hand.fail()
    for number in range(10):
        hand.ask("recover", "db", actor="pat", reason=f"try {number}")
        hand.wait(6.0)
        if "db" in hand.checks:
            hand.check()
    assert len(hand.said(Intended)) == 1
    assert [answer.reason for answer in hand.said(Answered)] == [f"try {number}" for number in range(10)]


def test_a_forced_recovery_past_its_parents_needs_to_name_them() -> None:
    hand = Hand(service(), service("api", depends_on=(Dependency(services=("db",)),), has_workload=True))
    hand.well("db")
    hand.fail("api", instance=running(1, name="api"))
    hand.fail("db")
    hand.ask("pause", "db")
    hand.ask("recover", "api")
    for _ in range(3):
        hand.check("api", instance=running(1, name="api"))
    assert "api" not in hand.actions
    hand.ask("recover", "api", override=frozenset({"parents"}), scopes=ADMIN)
    hand.act("api", instance=running(1, name="api"))
    hand.finish("api", Settled.FAILED)
    assert hand.said(Ended)[-1].settled is Settled.FAILED
