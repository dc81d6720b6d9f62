"""The one door: timers in their time, results of the right generation, one ready set by priority, nobody forgotten."""

from __future__ import annotations

from math import inf

import pytest
from tests.core.bench import FAILING, UNRUN, WARNING, Hand, failing, running, service, simulate

from selfheal.core.engine import Engine
from selfheal.core.messages import (
    NOTHING,
    CheckFinished,
    JournalChanged,
    Output,
    RunCheck,
    Started,
    TimePassed,
    WatchReported,
    WindowChanged,
    WokeLate,
)
from selfheal.core.model import (
    PASSING,
    Budget,
    Cause,
    CheckResult,
    Dependency,
    Fleet,
    Policy,
    Priority,
    Purpose,
    Run,
    Settled,
    State,
    Verdict,
)
from selfheal.core.records import Doubted, HoldChanged, Intended, Moved


def needs(*names: str) -> tuple[Dependency, ...]:
    return tuple(Dependency(services=(name,)) for name in names)


# -- the ordinary day -----------------------------------------------------------------------------------------------


def test_a_passing_check_of_a_well_service_says_nothing_and_sets_the_next_time() -> None:
    hand = Hand(service())
    hand.well("db")
    assert hand.state() is State.HEALTHY
    for _ in range(5):
        due = hand.engine.due("db")
        assert hand.engine.deadline == due
        hand.until(due)
        assert hand.engine.in_flight("db") is Purpose.ROUTINE
        assert hand.engine.due("db") == inf
        assert hand.check("db", PASSING) is NOTHING
        assert hand.engine.due("db") == due + 30.0


def test_the_command_of_a_well_service_is_one_object() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.until(hand.engine.due("db"))
    first = hand.checks["db"]
    hand.well("db")
    hand.until(hand.engine.due("db"))
    assert hand.checks["db"] is first


def test_time_alone_changes_nothing_until_something_is_due() -> None:
    hand = Hand(service())
    hand.well("db")
    assert hand.wait(1.0) is NOTHING
    assert hand.now == pytest.approx(1.02)


def test_time_never_goes_back() -> None:
    hand = Hand(service())
    hand.until(50.0)
    hand.feed(TimePassed(at=10.0))
    assert hand.now == 50.0


def test_an_empty_fleet_waits_for_nothing() -> None:
    hand = Hand()
    assert hand.engine.deadline == inf
    assert hand.engine.snapshot(7).number == 7


# -- the upper half: results move it --------------------------------------------------------------------------------


def test_a_failure_is_suspected_at_once_and_believed_after_its_span() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.check()
    assert (hand.state(), hand.condition().cause, hand.condition().detail) == (
        State.UNHEALTHY,
        Cause.UNREACHABLE,
        "refused",
    )
    began = hand.evidence().failing_since
    assert hand.condition().correlation == f"db@{began:.3f}"
    hand.fail()
    assert hand.now - began >= 30.0
    assert hand.evidence().failures >= 3


def test_a_suspect_service_is_looked_at_quickly() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.check()
    assert hand.engine.due("db") == pytest.approx(hand.now + 5.0)


def test_a_suspicion_is_taken_back_by_one_pass() -> None:
    hand = Hand(service())
    hand.check()
    hand.check("db", PASSING)
    assert (hand.state(), hand.condition().correlation, hand.condition().cause) == (State.HEALTHY, "", None)


def test_a_failure_without_words_is_still_told() -> None:
    hand = Hand(service())
    hand.check("db", failing(summary=""))
    assert hand.said(Moved)[-1].because == "a check failed"


def test_s9_a_warning_degrades_and_nothing_is_done() -> None:
    hand = Hand(service())
    hand.check("db", WARNING)
    assert (hand.state(), hand.reason(), hand.condition().detail) == (State.DEGRADED, "warning", "91 % of the slots")
    before = len(hand.records)
    hand.check("db", WARNING)
    assert len(hand.records) == before
    assert hand.alerts == {"db warning"}
    hand.check("db", PASSING)
    assert (hand.state(), hand.alerts) == (State.HEALTHY, set())


def test_why_it_is_warned_of_is_known_as_long_as_it_is() -> None:
    hand = Hand(service())
    hand.check("db", WARNING)
    assert hand.condition().cause is Cause.OVERLOADED
    hand.check("db", CheckResult(Verdict.WARNING, cause=Cause.READ_ONLY, summary="it takes no writes"))
    assert (hand.condition().cause, hand.condition().detail) == (Cause.READ_ONLY, "it takes no writes")
    hand.well("db")
    assert hand.condition().cause is None
    hand.fail()
    hand.check("db", WARNING)
    hand.check("db", WARNING)
    now = hand.condition()
    assert (now.state, now.reason, now.cause) == (State.DEGRADED, "warning", Cause.OVERLOADED)
    assert now.detail == "91 % of the slots"
    before = len(hand.records)
    hand.check("db", WARNING)
    assert len(hand.records) == before


def test_an_unsteady_service_stays_what_it_is_at_each_failure_until_believed_down() -> None:
    hand = Hand(service())
    hand.well("db")
    for result in [FAILING, PASSING] * 5:
        hand.check("db", result)
    assert (hand.state(), hand.reason()) == (State.DEGRADED, "unsteady")
    before = len(hand.said(Moved))
    hand.check()
    assert (hand.state(), len(hand.said(Moved))) == (State.DEGRADED, before)
    hand.fail()
    assert hand.state() is State.FAILED


def test_what_dependents_fail_of_their_parent_does_not_make_them_unsteady() -> None:
    """The flagship outage ends without an alert about anything but the parent."""
    children = [service(name, depends_on=needs("db"), interval=20.0) for name in ("api", "jobs", "web")]
    simulator, world = simulate(service("db", has_workload=True, recheck=3.0, min_failing_span=20.0), *children)
    simulator.at(60.0, lambda: world.breaks("db"))
    alerts = set[str]()
    simulator.watchers.append(
        lambda sim, event, output: alerts.update(a.service for a in sim.engine.ledger.alerts.values())
    )
    simulator.run(600.0)
    assert {name: one.state for name, one in simulator.engine.ledger.conditions.items()} == dict.fromkeys(
        ("db", "api", "jobs", "web"), State.HEALTHY
    )
    assert alerts == {"db"}


def test_a_service_that_was_unsteady_before_its_parent_fell_stays_so() -> None:
    hand = Hand(service("db"), service("api", depends_on=needs("db")))
    hand.well("db", "api")
    for result in [FAILING, PASSING] * 5:
        hand.check("api", result)
    assert hand.reason("api") == "unsteady"
    hand.fail("db")
    hand.check("api", PASSING)
    assert hand.reason("api") == "unsteady"


# -- checks that prove nothing --------------------------------------------------------------------------------------


def test_a_result_of_another_generation_changes_nothing() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.until(hand.engine.due("db"))
    stale = CheckFinished(
        at=hand.now,
        service="db",
        generation=9,
        purpose=Purpose.ROUTINE,
        started=hand.now,
        ended=hand.now,
        result=FAILING,
    )
    assert hand.feed(stale) is NOTHING
    assert hand.evidence().checks == 1
    assert hand.engine.in_flight("db") is Purpose.ROUTINE


def test_a_result_that_nobody_waits_for_changes_nothing() -> None:
    hand = Hand(service())
    hand.well("db")
    for name in ("db", "gone"):
        event = CheckFinished(
            at=hand.now, service=name, generation=0, purpose=Purpose.ROUTINE, started=0.0, ended=0.0, result=FAILING
        )
        assert hand.feed(event) is NOTHING
    assert hand.evidence().checks == 1


def test_people_hear_when_checks_cannot_run_and_when_they_can_again() -> None:
    hand = Hand(service())
    hand.well("db")
    for _ in range(3):
        assert "db unobserved" not in hand.alerts
        hand.check("db", UNRUN)
    assert hand.state() is State.HEALTHY
    assert hand.alerts == {"db unobserved"}
    hand.check("db", UNRUN)
    hand.well("db")
    assert hand.alerts == set()


def test_what_says_nothing_at_all_is_told_all_the_same() -> None:
    hand = Hand(service())
    for _ in range(3):
        hand.check("db", UNRUN.__class__(Verdict.INCONCLUSIVE))
    (alert,) = hand.ledger.alerts.values()
    assert alert.text == "checks cannot run"


def test_a_check_that_could_not_run_is_tried_again_soon_and_not_for_ever() -> None:
    hand = Hand(service())
    hand.well("db")
    pauses = []
    for _ in range(4):
        hand.check("db", UNRUN)
        pauses.append(hand.engine.due("db") - hand.now)
    assert pauses[:2] == [pytest.approx(5.0)] * 2
    assert pauses[3] > 20.0


def test_an_unobserved_alert_of_the_last_run_is_resolved_by_the_first_check_of_this_one() -> None:
    hand = Hand(service())
    hand.well("db")
    for _ in range(3):
        hand.check("db", UNRUN)
    hand.restart()
    assert hand.alerts == {"db unobserved"}
    hand.well("db")
    assert hand.alerts == set()


def test_while_no_canary_answers_one_alert_says_so_and_none_about_each_service() -> None:
    simulator, world = simulate(service("db"), service("api"), canaries=["gateway"])
    simulator.at(60.0, lambda: setattr(world, "cut_off_until", 400.0))
    simulator.run(390.0)
    assert [alert.rule for alert in simulator.engine.ledger.alerts.values()] == ["canary"]
    simulator.run(700.0)
    assert not simulator.engine.ledger.alerts


def test_a_server_that_starts_is_shown_as_suspect_but_counts_neither_way() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.check("db", failing(Cause.STARTING, "replaying its log"))
    assert (hand.state(), hand.condition().detail) == (State.UNHEALTHY, "replaying its log")
    hand.check("db", failing(Cause.STARTING))
    assert (hand.state(), hand.evidence().failures) == (State.UNHEALTHY, 0)
    hand.well("db")
    assert hand.state() is State.HEALTHY


def test_a_check_that_ran_ends_the_alert_even_when_its_failure_is_excused() -> None:
    hand = Hand(service())
    for _ in range(3):
        hand.check("db", UNRUN)
    hand.check("db", failing(Cause.STARTING))
    assert "db unobserved" not in hand.alerts


def test_what_began_before_the_canaries_were_well_is_counted_from_then() -> None:
    hand = Hand(service(), canaries=["gateway"])
    hand.canary("gateway")
    hand.well("db")
    hand.check()
    assert hand.evidence().failures == 1
    hand.canary("gateway", FAILING)
    hand.check()
    hand.canary("gateway")
    hand.check()
    assert (hand.evidence().failures, hand.evidence().failing_since) == (1, hand.evidence().last_started)


# -- timers ---------------------------------------------------------------------------------------------------------


def test_what_is_due_happens_at_its_time_however_late_we_wake() -> None:
    hand = Hand(service("a"), service("b"))
    hand.well("a", "b")
    dues = [hand.engine.due("a"), hand.engine.due("b")]
    hand.ask("pause", everything=True, duration=40.0)
    hand.until(500.0)
    assert set(hand.checks) == {"a", "b"}
    assert sorted([hand.engine.desk.watches["a"].flight_at, hand.engine.desk.watches["b"].flight_at]) == sorted(dues)


def test_what_is_due_when_an_event_comes_happens_before_it() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.ask("pause", everything=True, duration=40.0)
    ends = hand.now + 40.0
    output = hand.feed(JournalChanged(at=ends + 10.0, well=False))
    assert [(type(record).__name__, record.at) for record in output.records][:2] == [
        ("SuppressionChanged", ends),
        ("HoldChanged", ends + 10.0),
    ]


def test_waking_late_moves_what_is_overdue_to_now() -> None:
    hand = Hand(service())
    hand.well("db")
    due = hand.engine.due("db")
    hand.feed(WokeLate(at=due + 100.0, late=100.0))
    assert hand.engine.desk.watches["db"].flight_at == due + 100.0
    assert hand.said(Doubted) == [Doubted(at=due + 100.0, late=100.0)]


def test_what_was_due_before_we_should_have_woken_happened_in_its_time() -> None:
    hand = Hand(service("a"), service("b"))
    hand.well("a", "b")
    first, second = hand.engine.due("a"), hand.engine.due("b")
    hand.feed(WokeLate(at=second + 100.0, late=100.0))
    assert hand.engine.desk.watches["a"].flight_at == first
    assert hand.engine.desk.watches["b"].flight_at == second + 100.0


def test_those_whose_time_comes_at_once_pass_one_ready_set_by_priority() -> None:
    """A budget that opens for two gives its one turn to the more important, whoever came first."""
    low = service("low", priority=Priority.LOW)
    high = service("high", priority=Priority.HIGH)
    other = service("other")
    hand = Hand(other, low, high, budget_floor=1, budget_share=0.0, budget_per=600.0, storm_floor=9)
    hand.act("other")
    hand.finish("other")
    hand.recover("other")
    for name in ("low", "high"):
        hand.fail(name)
        hand.reach("held:budget", name)
    opens = hand.said(Intended)[0].at + 600.0
    while hand.engine.deadline < opens:
        hand.until(hand.engine.deadline)
        for name in list(hand.checks):
            hand.check(name, PASSING if name == "other" else FAILING, took=0.001)
    asked = [command.service for command in hand.until(opens).commands if isinstance(command, RunCheck)]
    before_step = [name for name in asked if hand.checks[name].purpose is Purpose.BEFORE_STEP]
    assert before_step == ["high", "low"]
    hand.check("high")
    hand.check("low")
    assert list(hand.actions) == ["high"]
    assert hand.reason("low") == "held:budget"


# -- sensors --------------------------------------------------------------------------------------------------------


def report(hand: Hand, run: Run | None, name: str = "db") -> Output:
    instance = None if run is None else running(1, run)
    return hand.feed(WatchReported(at=hand.now, service=name, instance=instance))


@pytest.mark.parametrize("run", [Run.EXITED, Run.ABSENT])
def test_an_end_nobody_asked_for_needs_one_failing_check(run: Run) -> None:
    hand = Hand(service(has_workload=True))
    hand.well("db")
    (command,) = report(hand, run).commands
    assert isinstance(command, RunCheck)
    assert command.purpose is Purpose.PARENT
    hand.check(instance=running(1, run))
    assert hand.state() is State.FAILED


def test_an_end_that_was_heard_is_forgotten_when_it_passes() -> None:
    hand = Hand(service(has_workload=True))
    hand.well("db")
    report(hand, Run.EXITED)
    hand.well("db")
    hand.check(instance=running(1))
    assert hand.state() is State.UNHEALTHY


def test_a_stop_by_a_person_is_looked_at_and_no_proof() -> None:
    hand = Hand(service(has_workload=True))
    hand.well("db")
    assert report(hand, Run.STOPPED).commands
    hand.check(instance=running(1, Run.STOPPED))
    assert hand.state() is State.UNHEALTHY


def test_news_of_what_runs_is_no_reason_to_look() -> None:
    hand = Hand(service(has_workload=True))
    hand.well("db")
    assert report(hand, Run.RUNNING) is NOTHING


def test_a_connection_that_died_is_a_reason_to_look_at_most_once_an_interval() -> None:
    hand = Hand(service())
    hand.well("db")
    assert report(hand, None).commands
    hand.well("db")
    assert report(hand, None) is NOTHING
    hand.until(hand.engine.due("db"))
    hand.well("db")
    hand.wait(1.0)
    assert report(hand, None).commands


def test_nobody_listens_to_sensors_of_what_is_not_watched_or_is_being_repaired() -> None:
    hand = Hand(service(has_workload=True), service("off", enabled=False), canaries=["gateway"])
    assert report(hand, Run.EXITED, "gone") is NOTHING
    assert report(hand, Run.EXITED, "off") is NOTHING
    assert report(hand, Run.EXITED, "canary:gateway") is NOTHING
    hand.canary("gateway")
    hand.act(instance=running(1))
    assert report(hand, Run.EXITED) is NOTHING
    hand.finish()
    assert report(hand, Run.EXITED) is NOTHING


# -- the other events -----------------------------------------------------------------------------------------------


def test_a_window_of_the_calendar_and_another_fleet_are_events_like_any_other() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.feed(WindowChanged(at=hand.now, window="weekly", services=("db",), active=True, until=hand.now + 60.0))
    assert list(hand.ledger.suppressions) == ["window:weekly"]
    assert hand.propose(service(), service("api")).accepted
    assert "api" in hand.checks


def test_a_parent_that_passes_wakes_who_waits_for_it() -> None:
    hand = Hand(service("db"), service("api", depends_on=needs("db")))
    hand.well("db", "api")
    hand.fail("api")
    assert hand.reason("api") == "waiting-for:db"
    hand.well("db")  # one that was under way already: no news
    assert hand.engine.in_flight("db") is Purpose.PARENT
    assert hand.engine.in_flight("api") is not Purpose.BEFORE_STEP
    hand.well("db")
    assert hand.engine.in_flight("api") is Purpose.BEFORE_STEP


def test_a_fresh_check_that_could_not_run_gives_its_turn_to_the_next() -> None:
    hand = Hand(service("a"), service("b"), service("c"), max_concurrent_recoveries=1, storm_floor=9)
    for name in ("a", "b"):
        hand.fail(name)
    assert hand.engine.in_flight("a") is Purpose.BEFORE_STEP
    assert hand.reason("b") == "held:slot"
    hand.check("a", UNRUN)
    assert hand.engine.in_flight("b") is Purpose.BEFORE_STEP


def test_s22_a_service_that_has_healed_before_its_step_gives_its_turn_to_the_next() -> None:
    hand = Hand(service("a"), service("b"), service("c"), max_concurrent_recoveries=1, storm_floor=9)
    for name in ("a", "b"):
        hand.fail(name)
    hand.check("a", PASSING)
    assert not hand.actions
    assert hand.engine.in_flight("b") is Purpose.BEFORE_STEP


def test_a_step_that_does_not_help_is_judged_by_as_many_failures_as_the_threshold() -> None:
    hand = Hand(service())
    hand.act()
    hand.finish()
    hand.check()
    hand.check()
    assert hand.state() is State.RECOVERING
    hand.check()
    assert (hand.state(), hand.reason()) == (State.FAILED, "backoff")


# -- what a host may ask --------------------------------------------------------------------------------------------


def test_asking_why_changes_nothing_and_names_every_guard() -> None:
    hand = Hand(service(has_workload=True))
    hand.fail(instance=running(1))
    before = (hand.engine.snapshot(), hand.engine.deadline)
    names = [name for name, _ in hand.engine.explain("db")]
    assert names[0] == "journal"
    assert names[-1] == "slot"
    assert (hand.engine.snapshot(), hand.engine.deadline) == before
    with pytest.raises(KeyError):
        hand.engine.explain("gone")


def test_what_nobody_watches_has_nothing_in_flight_and_no_evidence() -> None:
    hand = Hand(service())
    assert hand.engine.in_flight("gone") is None
    assert hand.engine.due("gone") == inf
    with pytest.raises(KeyError):
        hand.engine.evidence("gone")


def test_a_step_waits_for_the_span_of_a_new_instance() -> None:
    hand = Hand(service(has_workload=True))
    hand.fail(instance=running(1))
    hand.check(instance=running(2))
    assert (hand.state(), hand.reason()) == (State.FAILED, "held:workload")
    while hand.reason() == "held:workload":
        hand.check(instance=running(2))
    assert hand.evidence().failing_since > 0.0
    assert not hand.evidence().unconfirmed


def test_a_wish_for_a_check_before_a_step_is_forgotten_when_the_service_is_well() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.until(hand.engine.due("db"))
    hand.engine.desk.want("db", Purpose.BEFORE_STEP)
    hand.well("db")
    assert hand.engine.in_flight("db") is None
    assert hand.engine.due("db") < inf


def test_a_wish_for_a_check_of_a_parent_is_met_right_after_the_one_in_flight() -> None:
    hand = Hand(service())
    hand.well("db")
    hand.until(hand.engine.due("db"))
    hand.wait(0.01)
    hand.engine.desk.want("db", Purpose.PARENT)
    hand.well("db")
    assert hand.engine.in_flight("db") is Purpose.PARENT


def test_the_same_events_give_the_same_bytes() -> None:
    def run() -> bytes:
        simulator, world = simulate(service("db", has_workload=True), service("api", depends_on=needs("db")), seed=3)
        simulator.at(60.0, lambda: world.breaks("db"))
        simulator.run(600.0)
        return simulator.bytes()

    assert run() == run()


def test_an_engine_begun_from_a_snapshot_goes_on() -> None:
    hand = Hand(service())
    hand.fail()
    other = Hand(service(), engine=Engine(snapshot=hand.engine.snapshot()), start=False)
    other.partial = True
    assert other.state() is State.FAILED
    other.feed(Started(at=hand.now + 10.0, resumes=hand.now, fleet=Fleet(policies=(service(),))))
    other.act()
    assert other.said(Intended)


def test_a_run_that_ended_early_did_not_do_what_was_due_later() -> None:
    """The dead run lived until `resumes`: what expired after that expires now, not in its time."""
    hand = Hand(service())
    hand.well("db")
    hand.ask("pause", everything=True, duration=100.0)
    hand.restart(down_for=1000.0)
    assert [record.at for record in hand.records if record.kind == "suppression_changed"] == [
        pytest.approx(0.02),
        hand.now,
    ]


def test_lateness_that_lasts_holds_fire_until_it_is_over() -> None:
    hand = Hand(service())
    hand.well("db")
    for _ in range(10):
        hand.feed(WokeLate(at=hand.now + 10.0, late=5.0))
    assert "doubt" in hand.ledger.holds
    hand.wait(100.0)
    assert "doubt" not in hand.ledger.holds
    assert [record.on for record in hand.said(HoldChanged)] == [True, False]


def test_the_time_of_an_attempt_ends_it() -> None:
    hand = Hand(service(recovery_timeout=40.0, failure_threshold=1000))
    hand.evidence().ended = True
    hand.act()
    hand.finish()
    hand.wait(60.0)
    assert (hand.state(), hand.reason()) == (State.FAILED, "backoff")


def test_an_action_whose_manager_died_is_given_up_in_its_time() -> None:
    hand = Hand(service())
    hand.act()
    hand.restart(down_for=5.0)
    assert hand.settles == ["1/db/1/0"]
    hand.wait(200.0)
    assert "db in_doubt" in hand.alerts
    assert hand.records[-1].at <= hand.now


def test_a_service_without_a_ladder_is_only_watched() -> None:
    hand = Hand(Policy(name="db", jitter=0.0))
    hand.fail()
    hand.check()
    assert (hand.state(), hand.reason()) == (State.FAILED, "held:observe")
    assert "db unattended" in hand.alerts


def test_a_check_of_the_parent_is_a_routine_check_too() -> None:
    hand = Hand(service(budgets=(Budget(limit=9, per=60.0),)))
    hand.act()
    hand.finish(settled=Settled.FAILED, detail="exit 1")
    hand.recover()
    assert hand.state() is State.HEALTHY


def test_who_is_in_its_grace_is_no_suspect() -> None:
    hand = Hand(service(has_workload=True, start_grace=60.0))
    hand.check()
    assert "db" in hand.engine.lookout.storm
    hand.check(instance=running(1, since=hand.now - 1.0))
    assert "db" not in hand.engine.lookout.storm


def test_what_fails_again_and_again_with_its_parent_is_not_unsteady_by_itself() -> None:
    hand = Hand(service("db"), service("api", depends_on=needs("db"), suspicion_span=0.0))
    hand.well("db", "api")
    hand.fail("db")
    for _ in range(3):
        hand.check("api")
        hand.check("api")
        hand.check("api", PASSING)
        assert hand.state("api") is State.HEALTHY
    hand.recover("db")
    for _ in range(3):
        hand.check("api")
        hand.check("api")
        hand.check("api", PASSING)
    assert hand.reason("api") == "unsteady"


def test_who_is_slow_says_how_slow_and_what_was_wanted() -> None:
    hand = Hand(service(latency_objective=0.5))
    for _ in range(3):
        hand.check("db", PASSING, took=0.75)
    assert hand.condition().detail == "0.75 s; the objective is 0.5 s"


def test_a_demand_that_runs_out_is_taken_back_in_its_time() -> None:
    hand = Hand(service())
    hand.fail()
    hand.ask("pause", "db")
    hand.ask("recover", "db")
    hand.until(hand.now + 899.0)
    assert hand.condition().forced is not None
    hand.until(hand.now + 2.0)
    assert hand.condition().forced is None
    assert hand.said(Moved)[-1].because == "the demand to recover it has run out"


@pytest.mark.parametrize("period", [4, 11, 29])
@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_a_crash_loop_that_gives_no_instance_its_time_is_seen_and_told(period: int, grace: float) -> None:
    """Somebody else restarts it again and again: none fails for long enough, and nobody is served."""
    hand = Hand(service(has_workload=True, start_grace=grace))
    hand.check("db", PASSING, running(0))
    began = hand.now
    while hand.now < began + 420.0:
        number = int((hand.now - began) / period) + 1
        hand.check(instance=running(number, since=began + (number - 1) * period))
    assert hand.state() is State.FAILED
    assert (hand.reason(), hand.condition().detail) == ("held:workload", "a new instance runs and is being observed")
    assert "db failed" in hand.alerts
    assert not hand.actions
    hand.act(instance=running(999))  # the one that stays is given its time, and then repaired
    hand.finish()
    hand.recover(instance=running(1000))


def test_a_crash_loop_is_not_believed_before_a_canary_has_answered() -> None:
    hand = Hand(service(has_workload=True), canaries=["gateway"])
    hand.canary("gateway")
    hand.check("db", PASSING, running(0))
    for number in range(1, 200):
        hand.check(instance=running(number // 2))
    assert hand.state() is State.UNHEALTHY
    hand.canary("gateway")
    hand.canary("gateway")
    hand.check(instance=running(500))
    assert hand.state() is State.FAILED
