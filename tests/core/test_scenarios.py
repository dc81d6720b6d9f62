"""Scenarios of the original's faults that the core answers for, by their number; each shown to fail on a broken build.

Every test runs twice: on the engine as it is, where it passes, and on the engine broken in one named place
(`tests.broken`), where one of its own assertions must fail. So no test here is one that cannot fail.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from tests.broken import broken, builds, fails_when
from tests.core import bench
from tests.core.bench import FLUSH, PEOPLE, RECONNECT, UNRUN, WARNING, Hand, began, service

from selfheal.core.messages import TimePassed
from selfheal.core.model import (
    Budget,
    Cause,
    CheckResult,
    Condition,
    Dependency,
    Fleet,
    Limits,
    Policy,
    Settled,
    State,
    Step,
    Verdict,
    WhenDisabled,
)
from selfheal.core.records import (
    AlertChanged,
    Answered,
    Ended,
    IncidentClosed,
    IncidentOpened,
    Intended,
    Moved,
)
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import CheckReply, SimpleWorld

NEEDS_DB = (Dependency(services=("db",)),)

# -- playing without the laws: a broken build must fail the scenario, not a law ---------------------------------------


class Counting(SimpleWorld):
    """A world that remembers what was checked when, and how many actions ran at once."""

    def __init__(self, fleet: Fleet, takes: float) -> None:
        super().__init__(fleet, action_takes=(takes, takes))
        self.lenient = True
        self.checked: dict[str, list[float]] = {}
        self.at_once = self.most_at_once = 0
        self.says: Settled | None = None

    def check(self, service: str, at: float, *, inspect: bool) -> CheckReply:
        self.checked.setdefault(service, []).append(at)
        return super().check(service, at, inspect=inspect)

    def act(self, command: Any, action: str, at: float) -> Any:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        reply = super().act(command, action, at)
        return reply if self.says is None else attrs.evolve(reply, settled=self.says)

    def done(self, command: Any, action: str, at: float) -> None:
        self.at_once -= 1
        super().done(command, action, at)


def play(*policies: Policy, takes: float = 1.0, **limits: Any) -> tuple[Simulator, Counting]:
    fleet = Fleet(policies=policies, limits=Limits(**limits))
    world = Counting(fleet, takes)
    return Simulator(fleet, world), world


def condition(simulator: Simulator, name: str = "db") -> Condition:
    return simulator.engine.ledger.conditions[name]


def said(simulator: Simulator, kind: type[bench.R]) -> list[bench.R]:
    return [record for record in simulator.records if isinstance(record, kind)]


# -- state machine --------------------------------------------------------------------------------------------------


@fails_when("what recovers is never checked")
def test_s1_a_healed_service_is_watched_again_and_its_next_outage_is_seen() -> None:
    simulator, world = play(service())
    simulator.at(60.0, lambda: world.breaks("db"))
    simulator.run(200.0)
    assert condition(simulator).state is State.HEALTHY
    simulator.at(1000.0, lambda: world.breaks("db"))
    simulator.run(1200.0)
    assert len(said(simulator, IncidentOpened)) == 2


@fails_when("what is disabled is checked")
def test_s2_nothing_runs_for_a_disabled_service() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.ask("disable", "db")
    commands = hand.wait(3600.0).commands
    assert commands == ()
    assert hand.state() is State.DISABLED


@fails_when("attempts are not counted")
def test_s3_what_never_recovers_is_given_up_and_stays_so_until_reset() -> None:
    simulator, world = play(service(max_retries=2, budgets=(), flapping=(), slow_retry=None), budget_floor=99)
    simulator.at(60.0, lambda: world.breaks("db", cured_by=frozenset()))
    simulator.run(4000.0)
    assert len(began(simulator.records)) == 2
    assert (condition(simulator).state, condition(simulator).reason) == (State.FAILED, "escalated")
    simulator.request("initialize", "db")
    simulator.run(8000.0)
    assert len(began(simulator.records)) == 4


@fails_when("nobody is unknown")
def test_s4_nobody_is_well_before_the_first_check() -> None:
    hand = Hand(service(), service("api"))
    assert {hand.state(name) for name in ("db", "api")} == {State.UNKNOWN}


@fails_when("a new fleet forgets")
def test_s7_registering_again_keeps_state_and_history() -> None:
    hand = Hand(service())
    hand.act()
    hand.propose(service())
    assert (hand.state(), hand.condition().attempt) == (State.RECOVERING, 1)
    hand.finish()
    hand.recover()
    assert len(hand.said(Intended)) == 1


@fails_when("a warning is a failure")
def test_s9_a_degraded_service_is_degraded_and_not_restarted() -> None:
    hand = Hand(service())
    for _ in range(20):
        hand.check("db", WARNING)
    assert hand.state() is State.DEGRADED
    assert not hand.actions


@fails_when("failures lose their words")
def test_s10_the_words_of_an_error_are_kept() -> None:
    hand = Hand(service())
    hand.check("db", CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary="RuntimeError: x"))
    assert hand.evidence().summary == "RuntimeError: x"
    assert hand.condition().detail == "RuntimeError: x"
    hand.fail("db", CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary="RuntimeError: x"))
    assert hand.said(Moved)[-1].because == "confirmed: RuntimeError: x"


@fails_when("only passes have a time")
def test_s11_the_last_check_is_the_last_check_whatever_it_found() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.check()
    assert hand.evidence().last_at == hand.now
    hand.check("db", UNRUN)
    assert hand.evidence().last_at == hand.now


@fails_when("time goes back")
def test_s12_checks_go_on_when_a_clock_steps_back() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.wait(3600.0)
    hand.well("db")
    due = hand.engine.due("db")
    hand.feed(TimePassed(at=hand.now - 3600.0))
    assert hand.engine.due("db") - hand.now == pytest.approx(due - hand.now, abs=30.0)
    assert hand.engine.due("db") <= hand.now + 30.0


@fails_when("what is enabled waits for its turn")
def test_s13_what_is_enabled_is_unknown_and_checked_at_once() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.ask("disable", "db")
    hand.ask("enable", "db")
    assert hand.state() is State.UNKNOWN
    assert "db" in hand.checks


@fails_when("nothing is suspicious")
def test_s19_half_failing_is_noticed_once_and_nothing_is_restarted() -> None:
    simulator, world = play(service(failure_threshold=2))
    world.things["db"].pattern = (False, True)
    for _ in range(200):
        simulator.run(simulator.now + 5.0)
    opened = [one for one in said(simulator, AlertChanged) if one.open and one.alert.rule == "degraded"]
    assert len(opened) == 1
    assert condition(simulator).reason == "unsteady"
    assert began(simulator.records) == []


@fails_when("checks drift")
def test_s20_an_interval_of_a_second_does_not_drift() -> None:
    simulator, world = play(service(interval=1.0, timeout=0.9))
    world.things["db"].latency = 0.3
    simulator.run(601.0)
    assert len(world.checked["db"]) in (600, 601, 602)


# -- recovery -------------------------------------------------------------------------------------------------------


@fails_when("the ladder is never climbed")
def test_s21_a_step_that_does_not_heal_is_followed_by_the_next() -> None:
    simulator, world = play(service(steps=(RECONNECT, Step(action="restart"))))
    simulator.at(60.0, lambda: world.breaks("db"))
    simulator.run(400.0)
    assert [one.action for one in said(simulator, Intended)][:2] == ["reconnect", "restart"]
    assert condition(simulator).state is State.HEALTHY


@fails_when("no fresh check before a step")
def test_s22_what_healed_during_the_backoff_is_left_alone() -> None:
    simulator, world = play(service(recheck=60.0, interval=60.0, success_threshold=1))
    simulator.at(60.0, lambda: world.breaks("db", cured_by=frozenset()))
    simulator.run(60.0)
    while condition(simulator).reason != "backoff":
        simulator.run(simulator.now + 1.0)
    done = len(began(simulator.records))
    world.mends("db")
    simulator.run(simulator.now + 600.0)
    assert len(began(simulator.records)) == done
    assert condition(simulator).state is State.HEALTHY


@fails_when("the action's word is believed")
def test_s23_what_the_action_says_does_not_decide() -> None:
    simulator, world = play(service())
    world.says = Settled.FAILED
    simulator.at(60.0, lambda: world.breaks("db"))
    simulator.run(300.0)
    assert [one.settled for one in said(simulator, Ended)] == [Settled.FAILED]
    moves = [one.because for one in said(simulator, Moved)]
    assert "verified" in moves


@fails_when("a demand starts another action")
def test_s24_a_demand_joins_the_recovery_that_runs() -> None:
    hand = Hand(service())
    hand.partial = True
    hand.act()
    for _ in range(3):
        hand.ask("recover", "db")
        hand.wait(1.0)
        if "db" in hand.checks:
            hand.check()
    assert len(hand.said(Intended)) == 1
    assert hand.cancelled == []


@fails_when("no limit to recoveries at once")
def test_s26_twenty_failures_are_never_more_than_three_recoveries_at_once() -> None:
    names = [f"s{number}" for number in range(20)]
    simulator, world = play(*(service(name) for name in names), takes=30.0, budget_floor=99, storm_floor=99)
    for name in names:
        world.breaks(name)
    simulator.run(1500.0)
    assert world.most_at_once == 3
    assert {one.state for one in simulator.engine.ledger.conditions.values()} == {State.HEALTHY}


@fails_when("no consent is needed")
def test_s27_no_data_is_deleted_without_consent() -> None:
    simulator, world = play(service(steps=(Step(action="restart"), FLUSH)))
    simulator.at(60.0, lambda: world.breaks("db", cured_by=frozenset()))
    simulator.run(7200.0)
    assert "flush" not in {action for _, _, action, _ in world.acted}


@fails_when("the backoff begins anew")
def test_s33_the_backoff_goes_on_from_where_it_was() -> None:
    simulator, world = play(service(probation=0.0, flapping=(), budgets=()), budget_floor=99)
    for at in (60.0, 300.0, 600.0):
        simulator.at(at, lambda: world.breaks("db"))
    simulator.run(900.0)
    believed = [one for one in said(simulator, Moved) if one.because.startswith("confirmed")]
    waits = [max(0.0, one.after.not_before - one.at) for one in believed]
    assert waits == pytest.approx([0.0, 10.0, 20.0])


@fails_when("no jitter")
def test_s34_equal_services_that_fail_together_do_not_retry_together() -> None:
    names = [f"s{number}" for number in range(10)]
    policies = [attrs.evolve(service(name), backoff=Policy(name=name).backoff) for name in names]
    simulator, world = play(*policies, max_concurrent_recoveries=10, budget_floor=99, storm_floor=99)
    for name in names:
        world.breaks(name, cured_by=frozenset())
    simulator.run(100.0)
    ends = [
        one
        for one in said(simulator, Moved)
        if one.after.attempt == 1 and one.after.reason == "" and one.before.in_attempt
    ]
    waits = [round(one.after.not_before - one.at, 3) for one in ends if one.after.not_before]
    assert len(waits) == 10
    assert len(set(waits)) == 10


@fails_when("a start uses an attempt")
def test_s35_a_shutdown_during_the_backoff_interrupts_and_fails_nothing() -> None:
    hand = Hand(service())
    hand.act()
    hand.finish()
    hand.reach("backoff")
    before = hand.condition()
    hand.restart(down_for=1.0)
    assert (hand.condition().attempt, hand.condition().not_before, hand.reason()) == (1, before.not_before, "backoff")


@fails_when("no consent is needed")
def test_s36_a_manual_intervention_tells_people_and_waits() -> None:
    hand = Hand(service(steps=(PEOPLE,)))
    hand.fail()
    for _ in range(100):
        hand.check()
    assert (hand.state(), hand.reason()) == (State.FAILED, "held:approval")
    assert "db unattended" in hand.alerts
    assert hand.condition().attempt == 0
    assert hand.ask("acknowledge", "db").because == "manual_intervention is acknowledged"


@fails_when("an attempt has no end")
def test_s37_a_recovery_that_takes_too_long_is_ended() -> None:
    hand = Hand(service(steps=(Step(action="restart", timeout=3600.0),), recovery_timeout=60.0))
    hand.act()
    hand.wait(61.0)
    assert hand.cancelled == ["1/db/1/0"]


# -- dependencies ---------------------------------------------------------------------------------------------------


@fails_when("unknown parents are presumed well", "parents are not asked")
def test_s42_a_parent_that_was_never_checked_is_checked_first() -> None:
    hand = Hand(service("db"), service("api", depends_on=NEEDS_DB))
    for _ in range(12):
        hand.check("api")
    assert hand.state("db") is State.UNKNOWN
    assert (hand.reason("api"), dict(hand.actions)) == ("waiting-for:db", {})
    for _ in range(60):
        if "db" in hand.checks:
            hand.well("db")
        if "api" not in hand.actions:
            hand.check("api")
    assert list(hand.actions) == ["api"]


@fails_when("parents are not asked")
def test_s43_while_a_parent_is_down_nothing_is_done_and_nothing_counted() -> None:
    simulator, world = play(service("db"), service("api", depends_on=NEEDS_DB))
    simulator.request("pause", "db")
    simulator.at(60.0, lambda: world.breaks("db"))
    simulator.run(600.0)
    assert len(world.checked["api"]) > 10
    assert began(simulator.records, "api") == []
    assert (condition(simulator, "api").attempt, condition(simulator, "api").reason) == (0, "waiting-for:db")


@fails_when("nobody is released")
def test_s44_when_a_parent_is_back_its_dependents_are_looked_at_at_once_and_repaired_if_still_ill() -> None:
    slow = {"interval": 300.0, "depends_on": NEEDS_DB}
    simulator, world = play(service("db"), service("ill", **slow), service("fine", **slow), budget_floor=99)
    simulator.run(450.0)
    world.breaks("db", cured_by=frozenset())
    simulator.run(700.0)
    world.breaks("ill")
    assert {condition(simulator, name).reason for name in ("ill", "fine")} == {"waiting-for:db"}
    world.mends("db")
    while condition(simulator).state is not State.HEALTHY:
        simulator.run(simulator.now + 0.1)
    back = simulator.now
    simulator.run(back + 10.0)
    assert condition(simulator, "fine").state is State.HEALTHY
    simulator.run(back + 60.0)
    assert {name: condition(simulator, name).state for name in ("ill", "fine")} == dict.fromkeys(
        ("ill", "fine"), State.HEALTHY
    )
    assert len(began(simulator.records, "ill")) == 1
    assert began(simulator.records, "ill")[0] - back >= 29.0
    assert began(simulator.records, "fine") == []


@fails_when("parents are asked once")
def test_s45_a_parent_that_fails_during_a_recovery_pauses_the_next_attempt() -> None:
    simulator, world = play(service("db"), service("api", depends_on=NEEDS_DB, min_failing_span=5.0))
    simulator.at(60.0, lambda: world.breaks("api", cured_by=frozenset()))
    simulator.run(60.0)
    while not began(simulator.records, "api"):
        simulator.run(simulator.now + 1.0)
    simulator.request("pause", "db")
    world.breaks("db")
    simulator.run(simulator.now + 600.0)
    assert len(began(simulator.records, "api")) == 1
    assert condition(simulator, "api").reason == "waiting-for:db"


@fails_when("what recovers is never checked")
def test_s46_dependents_are_not_blocked_for_ever_by_a_parent_that_recovered() -> None:
    simulator, world = play(service("db"), service("api", depends_on=NEEDS_DB))
    simulator.at(60.0, lambda: world.breaks("db"))
    simulator.at(61.0, lambda: world.breaks("api"))
    simulator.run(600.0)
    assert {one.state for one in simulator.engine.ledger.conditions.values()} == {State.HEALTHY}


@fails_when("a disabled parent is never ready")
def test_s47_a_disabled_parent_counts_as_was_declared() -> None:
    proceeds = service("proceeds", depends_on=NEEDS_DB)
    waits = service("waits", depends_on=(Dependency(services=("db",), when_disabled=WhenDisabled.WAIT),))
    simulator, world = play(service("db", enabled=False), proceeds, waits)
    for name in ("proceeds", "waits"):
        world.breaks(name)
    simulator.run(300.0)
    assert condition(simulator, "proceeds").state is State.HEALTHY
    assert condition(simulator, "waits").reason == "waiting-for:db"


# -- numbers --------------------------------------------------------------------------------------------------------


@fails_when("one failure is enough")
def test_s48_two_blips_are_no_recovery() -> None:
    simulator, world = play(service())
    for at in (59.0, 299.0):
        simulator.at(at, lambda: world.breaks("db", heals_at=simulator.now + 25.0))
    simulator.run(600.0)
    assert [one for one in said(simulator, Moved) if one.after.state is State.UNHEALTHY]
    assert (began(simulator.records), said(simulator, IncidentOpened)) == ([], [])


@fails_when("incidents never close")
def test_s49_a_failed_recovery_that_then_heals_by_itself_is_one_incident_with_one_outcome() -> None:
    simulator, world = play(service())
    simulator.at(60.0, lambda: world.breaks("db", cured_by=frozenset(), heals_at=160.0))
    simulator.run(600.0)
    assert len(began(simulator.records)) >= 1
    assert [one.incident.number for one in said(simulator, IncidentOpened)] == [1]
    assert [one.incident for one in said(simulator, IncidentClosed)] == [1]


@fails_when("a demand starts another action")
def test_s53_ten_demands_in_a_minute_are_one_action_and_ten_stored_answers() -> None:
    hand = Hand(service())
    hand.partial = True
    hand.fail()
    for number in range(10):
        hand.ask("recover", "db", actor=f"person {number}", reason=f"reason {number}")
        hand.wait(6.0)
        if "db" in hand.checks:
            hand.check()
    assert len(hand.said(Intended)) == 1
    assert [(one.actor, one.reason) for one in hand.said(Answered)] == [
        (f"person {number}", f"reason {number}") for number in range(10)
    ]


@fails_when("alerts vanish")
def test_s56_an_alert_that_came_and_went_is_in_the_history() -> None:
    hand = Hand(service())
    hand.partial = True
    hand.act()
    hand.finish()
    hand.recover()
    assert not hand.ledger.alerts
    history = [(one.alert.rule, one.open) for one in hand.said(AlertChanged)]
    assert history.count(("failed", True)) == history.count(("failed", False)) == 1


@fails_when("memory only")
def test_s60_budgets_backoff_and_incidents_go_on_over_a_restart() -> None:
    simulator, world = play(service(budgets=(Budget(limit=1, per=3600.0),)))
    simulator.at(60.0, lambda: world.breaks("db", cured_by=frozenset()))
    simulator.run(200.0)
    before = condition(simulator)
    assert before.reason == "held:budget"
    simulator.crash(100.0, lose=False)
    simulator.run(3000.0)
    assert (condition(simulator).incident, condition(simulator).attempt, condition(simulator).level) == (1, 1, 1)
    assert len([one for one in world.acted if one[2] == "restart"]) == 1


@fails_when("what could not run is a failure")
def test_s65_a_check_that_cannot_run_never_restarts_anything() -> None:
    hand = Hand(service())
    hand.well("db")
    for _ in range(30):
        hand.check("db", UNRUN)
    assert (hand.state(), hand.evidence().failures, dict(hand.actions)) == (State.HEALTHY, 0, {})
    assert hand.alerts == {"db unobserved"}


# -- the builds themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", builds("core"))
def test_a_broken_build_is_whole_again_afterwards(build: str) -> None:
    with broken(build):
        pass
    hand = Hand(service(), service("api", depends_on=NEEDS_DB))
    hand.act()
    hand.finish()
    hand.recover()
    hand.well("api")
    assert {hand.state(name) for name in ("db", "api")} == {State.HEALTHY}
    assert not hand.alerts
