"""Why an action does not run: each guard by itself, their order, and who may pass which."""

from __future__ import annotations

from math import inf
from typing import Any

import attrs
import pytest
from tests.core.bench import FLUSH, PEOPLE, RECONNECT, RESTART, running, service

from selfheal.core import guards
from selfheal.core.guards import GUARDS, OPERATOR, SLOT, Pass, Sight, answer, walk
from selfheal.core.ledger import Ledger, Snapshot, Spent
from selfheal.core.model import (
    Binds,
    Budget,
    Cause,
    Condition,
    Dependency,
    DependencyKind,
    Evidence,
    Fleet,
    Forced,
    Hold,
    Instance,
    Limits,
    Policy,
    Run,
    State,
    Step,
    Suppression,
    Verdict,
    WhenDisabled,
)
from selfheal.core.records import GuardAnswer, Intended

NOW = 1000.0
DOWN = Condition(state=State.FAILED, since=900.0, incident=1)
FAILS = Evidence(failures=4, failing_since=890.0, last_verdict=Verdict.FAILING, cause=Cause.UNREACHABLE)


def sight(
    policy: Policy | None = None,
    condition: Condition = DOWN,
    evidence: Evidence | None = None,
    *,
    others: dict[str, tuple[Condition, Evidence]] | None = None,
    limits: Limits | None = None,
    reserved: tuple[str, ...] = (),
    trusted_since: float = -inf,
    policies: tuple[Policy, ...] = (),
    **image: Any,
) -> Sight:
    policy = policy or service()
    others = others or {}
    ledger = Ledger(
        Snapshot(
            fleet=Fleet(policies=(policy, *policies), limits=limits or Limits()),
            conditions={policy.name: condition, **{name: one for name, (one, _) in others.items()}},
            **image,
        )
    )
    observed = {name: seen for name, (_, seen) in others.items()}
    return Sight(
        now=NOW,
        name=policy.name,
        policy=policy,
        condition=condition,
        evidence=evidence or attrs.evolve(FAILS),
        ledger=ledger,
        evidence_of=lambda name: observed.get(name, Evidence()),
        reserved=dict.fromkeys(reserved),
        trusted_since=trusted_since,
    )


def asked(name: str, one: Sight) -> Hold | None:
    (guard,) = (guard for guard in GUARDS if guard.name == name)
    return guard.hold(one)


def reason(name: str, one: Sight) -> str:
    hold = asked(name, one)
    return "" if hold is None else hold.reason


def test_nothing_holds_a_plain_failure() -> None:
    assert [hold for _, hold in walk(GUARDS, sight())] == [None] * len(GUARDS)


def test_the_order_is_part_of_the_contract() -> None:
    names = [guard.name for guard in GUARDS]
    assert len(set(names)) == len(names)
    after = names.index("parents")
    assert all(names.index(name) < after for name in ("backoff", "budget", "cooldown", "fleet_budget"))
    assert names[-1] == "slot"


# -- our own view, and people's words -------------------------------------------------------------------------------


def test_the_journal_holds_unless_told_otherwise() -> None:
    held = sight(holds={"journal": "disk is full"})
    assert asked("journal", held) == Hold(reason="held:journal", detail="disk is full", wake=("hold:journal",))
    assert asked("journal", sight(holds={"journal": ""}, limits=Limits(act_without_journal=True))) is None


@pytest.mark.parametrize("name", ["doubt", "canary", "storm"])
def test_a_hold_of_the_fleet_holds_until_it_ends(name: str) -> None:
    assert asked(name, sight()) is None
    assert asked(name, sight(holds={name: "why"})) == Hold(reason=f"held:{name}", detail="why", wake=(f"hold:{name}",))


def test_a_workload_that_has_exited_is_evidence_against_a_storm() -> None:
    exited = attrs.evolve(FAILS, instance=running(1, Run.EXITED))
    assert asked("storm", sight(evidence=exited, holds={"storm": ""})) is None
    alive = attrs.evolve(FAILS, instance=running(1))
    assert reason("storm", sight(evidence=alive, holds={"storm": ""})) == "held:storm"


@pytest.mark.parametrize("binds", [Binds.PAUSED, Binds.MAINTENANCE, Binds.OBSERVE])
def test_a_suppression_binds_what_it_covers_by_its_own_guard(binds: Binds) -> None:
    said = Suppression(id="r1", binds=binds, services=("db",), actor="pat", reason="disks")
    held = sight(suppressions={"r1": said})
    assert asked(binds.value, held) == Hold(reason=f"held:{binds.value}", detail="r1 by pat: disks", wake=(OPERATOR,))
    others = {"paused", "maintenance", "observe"} - {binds.value}
    assert not any(asked(name, held) for name in others)
    elsewhere = attrs.evolve(said, services=("api",))
    assert asked(binds.value, sight(suppressions={"r1": elsewhere})) is None


def test_a_silence_binds_no_action() -> None:
    silence = Suppression(id="r1", binds=Binds.SILENCE, everything=True)
    assert not any(hold for _, hold in walk(GUARDS, sight(suppressions={"r1": silence})))


def test_what_is_only_observed_or_has_no_ladder_is_not_acted_on() -> None:
    observed = asked("observe", sight(service(observe_only=True)))
    assert observed is not None
    assert observed.detail == "observe_only is set"
    bare = asked("observe", sight(service(steps=())))
    assert bare is not None
    assert bare.detail == "it has no recovery_actions"


# -- who runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance", "detail"),
    [
        (None, "nobody has asked who runs yet"),
        (Instance(id="", run=Run.UNKNOWN, detail="no socket"), "inspection failed: no socket"),
        (running(1, Run.STOPPED, detail="by root"), "stopped by a person: by root"),
    ],
)
def test_without_knowing_who_runs_nothing_is_done(instance: Instance | None, detail: str) -> None:
    managed = service(has_workload=True)
    hold = asked("workload", sight(managed, evidence=attrs.evolve(FAILS, instance=instance)))
    assert hold is not None
    assert (hold.reason, hold.detail, hold.wake) == ("held:workload", detail, ("service:db",))
    assert hold.ask == (("db",) if instance is None else ())


def test_what_somebody_is_starting_is_left_to_them_for_as_long_as_a_start_may_take() -> None:
    """A systemd that restarts it itself, a Docker whose health check has not passed: an action would be refused."""
    managed = service(has_workload=True, starting_limit=300.0)
    begun = attrs.evolve(FAILS, instance=running(1, Run.STARTING, detail="systemd is about to start it again"))
    hold = asked("workload", sight(managed, evidence=begun))
    assert hold is not None
    assert hold.detail == "it is being started: systemd is about to start it again"
    assert hold.until == sight(managed).condition.since + 300.0
    assert asked("workload", attrs.evolve(sight(managed, evidence=begun), now=hold.until)) is None


@pytest.mark.parametrize("run", [Run.RUNNING, Run.EXITED, Run.ABSENT])
def test_what_runs_or_has_ended_may_be_acted_on(run: Run) -> None:
    assert (
        asked("workload", sight(service(has_workload=True), evidence=attrs.evolve(FAILS, instance=running(1, run))))
        is None
    )


def test_without_a_workload_nobody_need_know_who_runs() -> None:
    assert asked("workload", sight(evidence=attrs.evolve(FAILS, instance=None))) is None


def test_a_new_instance_is_observed_for_as_long_as_a_failure_needs_to_be_believed() -> None:
    young = attrs.evolve(FAILS, failures=2, unconfirmed=True)
    hold = asked("workload", sight(evidence=young))
    assert hold is not None
    assert hold.detail == "a new instance runs and is being observed"
    assert asked("workload", sight(evidence=attrs.evolve(FAILS, unconfirmed=True))) is None


def test_a_cause_that_no_step_fits_holds() -> None:
    hold = asked("cause", sight(evidence=attrs.evolve(FAILS, cause=Cause.AUTH)))
    assert hold == Hold(reason="held:cause", detail="no step fits the cause auth", wake=("service:db",))
    only = service(steps=(Step(action="restart", only_for=frozenset({Cause.FULL})),))
    unsaid = asked("cause", sight(only, evidence=attrs.evolve(FAILS, cause=None)))
    assert unsaid is not None
    assert unsaid.detail == "no step fits the cause unknown"
    assert asked("cause", sight(service(steps=()))) is None  # that is what `observe` says


# -- too often ------------------------------------------------------------------------------------------------------


def test_flapping_holds_before_an_attempt_and_never_within_one() -> None:
    often = attrs.evolve(DOWN, confirmed=(700.0, 800.0, 900.0))
    assert reason("flapping", sight(condition=often)) == "held:flapping"
    assert asked("flapping", sight(condition=attrs.evolve(often, in_attempt=True))) is None


def test_used_attempts_escalate_until_the_slow_retry() -> None:
    used = attrs.evolve(DOWN, attempt=3, not_before=1900.0)
    hold = asked("escalated", sight(condition=used))
    assert hold == Hold(reason="escalated", detail="3 attempts used", until=1900.0, wake=(OPERATOR,))
    assert asked("escalated", sight(condition=attrs.evolve(used, not_before=NOW))) is None
    assert asked("escalated", sight(condition=attrs.evolve(used, in_attempt=True))) is None
    assert asked("escalated", sight(condition=attrs.evolve(DOWN, attempt=2))) is None


def test_backoff_holds_until_it_is_over() -> None:
    waits = asked("backoff", sight(condition=attrs.evolve(DOWN, attempt=2, not_before=1010.0)))
    assert waits == Hold(reason="backoff", detail="after attempt 2", until=1010.0)
    first = asked("backoff", sight(condition=attrs.evolve(DOWN, not_before=1010.0)))
    assert first is not None
    assert first.detail == "before the first attempt"
    assert asked("backoff", sight(condition=attrs.evolve(DOWN, not_before=NOW))) is None


def spent(*times: float, action: str = "restart", counts: bool = True) -> dict[str, tuple[Spent, ...]]:
    return {"db": tuple(Spent(intent=f"i{at}", action=action, at=at, counts=counts) for at in times)}


def test_a_budget_of_the_service_holds_disruptive_steps_only() -> None:
    hour = service(budgets=(Budget(limit=2, per=3600.0),))
    hold = asked("budget", sight(hour, spent=spent(100.0, 200.0)))
    assert hold == Hold(reason="held:budget", detail="service: 2 in 3600 s", until=3700.0)
    assert asked("budget", sight(hour, spent=spent(200.0))) is None
    assert asked("budget", sight(hour, spent=spent(100.0, 200.0, counts=False))) is None
    gentle = service(steps=(RECONNECT,), budgets=(Budget(limit=2, per=3600.0),))
    assert asked("budget", sight(gentle, spent=spent(100.0, 200.0))) is None
    assert asked("budget", sight(service(steps=()), spent=spent(100.0, 200.0))) is None
    passed = service(budgets=(Budget(limit=2, per=800.0),))
    assert asked("budget", sight(passed, spent=spent(100.0, 200.0))) is None


def test_a_cooldown_is_of_one_step() -> None:
    cooled = service(steps=(Step(action="scale_up", cooldown=600.0),))
    hold = asked("cooldown", sight(cooled, spent=spent(500.0, action="scale_up")))
    assert hold == Hold(reason="held:budget", detail="cooldown of scale_up: 1 in 600 s", until=1100.0)
    assert asked("cooldown", sight(cooled, spent=spent(500.0))) is None
    assert asked("cooldown", sight(cooled, spent=spent(400.0, action="scale_up"))) is None
    assert asked("cooldown", sight(spent=spent(999.0))) is None
    assert asked("cooldown", sight(service(steps=()))) is None


def test_a_budget_of_the_fleet_is_a_share_of_it_and_a_floor() -> None:
    lately = (900.0, 950.0, 990.0)
    hold = asked("fleet_budget", sight(fleet_spent=lately))
    assert hold == Hold(reason="held:budget", detail="fleet: 3 in 300 s", until=1200.0)
    many = tuple(service(f"s{number}") for number in range(39))
    assert asked("fleet_budget", sight(fleet_spent=lately, policies=many)) is None  # 4 of 40
    assert asked("fleet_budget", sight(service(steps=(RECONNECT,)), fleet_spent=lately)) is None
    assert asked("fleet_budget", sight(service(steps=()), fleet_spent=lately)) is None


# -- parents --------------------------------------------------------------------------------------------------------

WELL = Condition(state=State.HEALTHY)


def seen(last_pass: float, failures: int = 0) -> Evidence:
    return Evidence(last_pass=last_pass, failures=failures)


def child(*names: str, **changes: Any) -> Policy:
    return service("api", depends_on=(Dependency(services=names or ("db",), **changes),))


def parents(
    policy: Policy, others: dict[str, tuple[Condition, Evidence]], condition: Condition = DOWN, **changes: Any
) -> Hold | None:
    return asked("parents", sight(policy, condition, others=others, **changes))


def test_a_parent_that_passed_since_we_failed_lets_us_act() -> None:
    assert parents(child(), {"db": (WELL, seen(900.0))}) is None


def test_a_pass_from_before_our_failure_is_no_news() -> None:
    hold = parents(child(), {"db": (WELL, seen(899.9))})
    assert hold == Hold(
        reason="waiting-for:db",
        detail="looks well; a fresh check of it is awaited",
        wake=("service:db",),
        ask=("db",),
    )


def test_a_pass_from_before_our_backoff_ended_is_no_news() -> None:
    waited = attrs.evolve(DOWN, not_before=980.0)
    assert parents(child(), {"db": (WELL, seen(979.0))}, waited) is not None
    assert parents(child(), {"db": (WELL, seen(980.0))}, waited) is None
    later = attrs.evolve(DOWN, not_before=2000.0)  # forced past it
    assert parents(child(), {"db": (WELL, seen(901.0))}, later) is None


def test_a_pass_from_before_we_could_trust_our_view_is_no_news() -> None:
    assert parents(child(), {"db": (WELL, seen(950.0))}, trusted_since=960.0) is not None
    assert parents(child(), {"db": (WELL, seen(960.0))}, trusted_since=960.0) is None


def test_a_parent_that_fails_now_is_not_well_whatever_it_was() -> None:
    assert parents(child(), {"db": (WELL, seen(990.0, failures=1))}) is not None


@pytest.mark.parametrize("state", [State.UNKNOWN, State.UNHEALTHY, State.FAILED, State.RECOVERING])
def test_a_parent_that_is_not_well_is_waited_for(state: State) -> None:
    hold = parents(child(), {"db": (Condition(state=state), seen(990.0))})
    assert hold == Hold(reason="waiting-for:db", detail="not well", wake=("service:db",))


def test_a_degraded_parent_serves() -> None:
    assert parents(child(), {"db": (Condition(state=State.DEGRADED), seen(990.0))}) is None


def test_a_parent_whose_action_has_not_been_settled_is_not_well() -> None:
    from selfheal.core.records import Intended

    open_intent = Intended(at=5.0, intent="1/db/1/0", service="db", incident=1, attempt=1, step=0, action="restart")
    hold = parents(child(), {"db": (WELL, seen(990.0))}, intents={"1/db/1/0": open_intent})
    assert hold is not None
    assert hold.detail == "not well"


@pytest.mark.parametrize(("when", "held"), [(WhenDisabled.PROCEED, False), (WhenDisabled.WAIT, True)])
def test_a_disabled_parent_counts_as_well_unless_it_is_waited_for(when: WhenDisabled, held: bool) -> None:
    policy = child(when_disabled=when)
    off = {"db": (Condition(state=State.DISABLED), Evidence())}
    assert (parents(policy, off) is not None) is held
    assert (parents(policy, {}) is not None) is held
    assert (parents(policy, {"db": (WELL, seen(1.0))}, unwatched=("db",)) is not None) is held


def test_any_one_of_several_will_do() -> None:
    policy = child("left", "right")
    failed = (Condition(state=State.FAILED), Evidence())
    assert parents(policy, {"left": failed, "right": (WELL, seen(990.0))}) is None
    both = parents(policy, {"left": failed, "right": failed})
    assert both is not None
    assert (both.reason, both.wake) == ("waiting-for:left", ("service:left", "service:right"))
    stale = parents(policy, {"left": failed, "right": (WELL, seen(1.0))})
    assert stale is not None
    assert (stale.reason, stale.ask) == ("waiting-for:right", ("right",))


def test_a_soft_parent_is_never_waited_for() -> None:
    failed = {"db": (Condition(state=State.FAILED), Evidence())}
    assert parents(child(kind=DependencyKind.SOFT), failed) is None


# -- consent and slots ----------------------------------------------------------------------------------------------


def test_a_step_that_asks_waits_for_a_person_and_not_for_ever() -> None:
    asks = service(steps=(FLUSH,))
    first = asked("approval", sight(asks))
    assert first == Hold(reason="held:approval", detail="flush", until=1900.0, wake=(OPERATOR,))
    waits = attrs.evolve(DOWN, reason="held:approval", asked=0, asked_at=950.0)
    for condition, until in (
        (waits, 1850.0),
        (attrs.evolve(waits, reason="held:paused"), 1900.0),  # what else held it took nothing of the time to answer
        (attrs.evolve(waits, asked=1), 1900.0),
    ):
        later = asked("approval", sight(asks, condition))
        assert later is not None
        assert later.until == until
    assert asked("approval", sight(asks, attrs.evolve(DOWN, approved=0))) is None
    assert reason("approval", sight(asks, attrs.evolve(DOWN, approved=1))) == "held:approval"
    assert asked("approval", sight()) is None
    assert asked("approval", sight(service(steps=()))) is None


def test_people_are_waited_for_without_end() -> None:
    hold = asked("approval", sight(service(steps=(PEOPLE,))))
    assert hold is not None
    assert hold.until == inf


def test_slots_are_of_the_whole_fleet_and_ones_own_reservation_counts_not() -> None:
    two = Limits(max_concurrent_recoveries=2)
    busy = {name: (Condition(state=State.RECOVERING), Evidence()) for name in ("a", "b")}
    hold = asked("slot", sight(limits=two, others=busy))
    assert hold == Hold(reason="held:slot", detail="2 recoveries under way", wake=(SLOT,))
    one = {"a": busy["a"]}
    assert asked("slot", sight(limits=two, others=one)) is None
    assert reason("slot", sight(limits=two, others=one, reserved=("c",))) == "held:slot"
    assert asked("slot", sight(limits=two, others=one, reserved=("db",))) is None


# -- passing by force -----------------------------------------------------------------------------------------------


def forced(*override: str) -> Condition:
    by = Forced(actor="pat", reason="now", request="r1", override=frozenset(override))
    return attrs.evolve(DOWN, forced=by)


def test_who_may_pass_what_is_the_design() -> None:
    passed = {kind: {guard.name for guard in GUARDS if guard.passed is kind} for kind in Pass}
    assert passed[Pass.FORCE] == {"storm", "flapping", "escalated", "backoff", "budget", "cooldown", "fleet_budget"}
    assert passed[Pass.OVERRIDE] == {"paused", "maintenance", "observe", "parents"}
    assert passed[Pass.NEVER] == {"journal", "doubt", "canary", "workload", "cause", "approval", "slot"}


def test_force_passes_a_storm_and_an_override_what_it_names() -> None:
    pause = Suppression(id="r1", binds=Binds.PAUSED, everything=True)
    held: dict[str, Any] = {"holds": {"storm": "", "canary": ""}, "suppressions": {"r1": pause}}
    plain = sight(condition=forced(), **held)
    assert (reason("storm", plain), reason("canary", plain), reason("paused", plain)) == (
        "",
        "held:canary",
        "held:paused",
    )
    named = sight(condition=forced("paused", "canary"), **held)
    assert (reason("paused", named), reason("canary", named)) == ("", "held:canary")


def test_an_answer_keeps_what_was_said_and_who_passed_it() -> None:
    by_name = {guard.name: guard for guard in GUARDS}
    storm = by_name["storm"]
    calm, held, past = sight(), sight(holds={"storm": "5 of 6"}), sight(condition=forced(), holds={"storm": "5 of 6"})
    assert answer(storm, storm.hold(calm), calm) == GuardAnswer(guard="storm")
    assert answer(storm, storm.hold(held), held) == GuardAnswer(guard="storm", reason="held:storm", detail="5 of 6")
    assert answer(storm, storm.hold(past), past) == GuardAnswer(
        guard="storm", reason="held:storm", detail="5 of 6", passed_by="pat"
    )
    unheld = sight(condition=forced())
    assert answer(storm, storm.hold(unheld), unheld) == GuardAnswer(guard="storm")


# -- looking --------------------------------------------------------------------------------------------------------


def test_the_step_in_sight_is_the_next_that_fits_or_the_one_at_the_cursor() -> None:
    ladder = service(steps=(RECONNECT, RESTART))
    assert sight(ladder).step == RECONNECT
    assert sight(ladder, attrs.evolve(DOWN, cursor=1)).step == RESTART
    past_the_end = sight(ladder, attrs.evolve(DOWN, cursor=5))
    assert (past_the_end.index, past_the_end.step) == (1, RESTART)
    assert sight(service(steps=())).step is None


def test_looking_changes_nothing() -> None:
    one = sight(holds={"storm": ""}, spent=spent(1.0))
    before = (one.ledger.image(), attrs.asdict(one.evidence))
    assert list(walk(guards.GUARDS, one))
    assert (one.ledger.image(), attrs.asdict(one.evidence)) == before


# -- what lasts until a person does something ----------------------------------------------------------------------


def test_a_service_whose_checks_cannot_run_is_held_for_want_of_sight() -> None:
    assert asked("doubt", sight(evidence=Evidence(blind=2, summary="no driver"))) is None
    blind = Evidence(blind=3, summary="no driver")
    assert asked("doubt", sight(evidence=blind)) == Hold(
        reason="held:doubt", detail="checks cannot run: no driver", wake=("service:db",)
    )


def test_a_pause_that_ends_says_when_and_the_longest_one_speaks() -> None:
    pauses = [
        Suppression(id=id_, binds=Binds.PAUSED, everything=True, until=until, actor="kim", reason="disks")
        for id_, until in (("r1", 1100.0), ("r2", 1300.0), ("r3", 1200.0))
    ]
    paused = sight(suppressions={one.id: one for one in pauses})
    assert asked("paused", paused) == Hold(
        reason="held:paused", detail="r2 by kim: disks", until=1300.0, wake=(OPERATOR,)
    )


def test_a_parent_that_is_off_but_still_in_the_hands_of_an_action_is_waited_for() -> None:
    off = (Condition(state=State.DISABLED), Evidence())
    assert parents(child(), {"db": off}) is None
    acting = Intended(at=990.0, intent="1/db/1/0", service="db", incident=1, attempt=1, step=0, action="restart")
    hold = parents(child(), {"db": off}, intents={acting.intent: acting})
    assert hold is not None
    assert (hold.reason, hold.detail) == ("waiting-for:db", "not well")


def test_a_parent_that_is_waited_for_and_switched_off_is_said_to_be_so() -> None:
    waits = child(when_disabled=WhenDisabled.WAIT)
    hold = parents(waits, {"db": (Condition(state=State.DISABLED), Evidence())})
    assert hold is not None
    assert hold.detail == "disabled"


def test_what_is_kept_and_not_watched_is_only_observed() -> None:
    hold = asked("observe", sight(unwatched=("db",)))
    assert hold is not None
    assert (hold.reason, hold.detail) == ("held:observe", "it is gone from the configuration: kept, not watched")


def test_the_budget_of_the_fleet_opens_when_its_oldest_action_is_old_enough() -> None:
    one = sight(limits=Limits(budget_floor=2, budget_per=300.0), fleet_spent=(700.0, 800.0, 900.0))
    assert guards.fleet_opens(one.ledger) == 1100.0
    assert guards.budget_of(one.ledger.fleet) == Budget(limit=2, per=300.0)


def test_a_parent_that_looks_well_and_cannot_be_checked_is_said_to_be_unseen() -> None:
    blind = attrs.evolve(seen(800.0), blind=3)
    hold = parents(child(), {"db": (WELL, blind)})
    assert hold is not None
    assert hold.detail == "checks cannot run: nobody sees whether it is well"
