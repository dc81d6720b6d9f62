"""What the nets have found, each in as few steps as it takes."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from tests.core.nets.swarm import within

from selfheal.core.messages import ActionFinished
from selfheal.core.model import (
    Backoff,
    Budget,
    Canary,
    Cause,
    Dependency,
    Effect,
    Fleet,
    Limits,
    Policy,
    Run,
    Settled,
    State,
    Step,
    Verdict,
)
from selfheal.core.records import Ended, Intended
from selfheal.testing.laws import Laws
from selfheal.testing.proofs import quiet, replays
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

PLAIN = Policy(
    name="a",
    interval=10.0,
    jitter=0.0,
    failure_threshold=2,
    min_failing_span=0.0,
    success_threshold=1,
    flapping=(),
    budgets=(),
    steps=(Step(action="restart", timeout=20.0, settle=0.0),),
    backoff=Backoff(initial=10.0, jitter=0.0),
    slow_retry=120.0,
)


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    with within(20.0):
        yield


USUAL = Limits()


def simulated(
    *policies: Policy, canaries: tuple[Canary, ...] = (), takes: float = 1.0, limits: Limits = USUAL
) -> Simulator:
    fleet = Fleet(policies=policies, canaries=canaries, limits=limits)
    world = SimpleWorld(fleet, action_takes=(takes, takes))
    simulator = Simulator(fleet, world, watchers=[Laws()])
    simulator.run(1.0)
    return simulator


def world(s: Simulator) -> SimpleWorld:
    assert isinstance(s.world, SimpleWorld)
    return s.world


def until(s: Simulator, name: str, state: State, *, reason: str = "", at_most: float = 2000.0) -> None:
    """Run until a service is in a state (and has a reason that begins so)."""
    end = s.now + at_most
    while s.now < end:
        condition = s.engine.ledger.conditions[name]
        if condition.state is state and condition.reason.startswith(reason):
            return
        s.run(s.now + 0.5)
    raise AssertionError(f"{name} is {s.engine.ledger.conditions[name]}")


def intents(s: Simulator, name: str) -> list[Intended]:
    return [record for record in s.records if isinstance(record, Intended) and record.service == name]


def test_an_unobserved_alert_ends_with_the_next_check_that_runs() -> None:
    s = simulated(PLAIN)
    world(s).breaks("a", verdict=Verdict.INCONCLUSIVE)
    s.run(100.0)
    assert {alert.rule for alert in s.engine.ledger.alerts.values()} == {"unobserved"}
    s.crash(1.0)
    world(s).mends("a")
    s.run(130.0)
    assert not s.engine.ledger.alerts


def test_after_a_long_absence_whoever_is_asked_to_settle_gets_to_answer() -> None:
    s = simulated(PLAIN, takes=5.0)
    world(s).breaks("a")
    until(s, "a", State.RECOVERING)
    s.crash(4000.0)
    s.run(s.now + 5.0)
    assert [record.settled for record in s.records if isinstance(record, Ended)] == [Settled.DONE]


def test_a_canary_hold_ends_though_the_fleet_was_reloaded_during_it() -> None:
    for canaries in ((Canary(name="gw"),), ()):
        s = simulated(PLAIN, canaries=(Canary(name="gw"),))
        world(s).canaries["gw"] = False
        s.run(60.0)
        assert "canary" in s.engine.ledger.holds
        s.propose(attrs.evolve(s.fleet, canaries=canaries, policies=(attrs.evolve(PLAIN, interval=20.0),)))
        world(s).canaries["gw"] = True
        s.run(200.0)
        assert "canary" not in s.engine.ledger.holds


def test_a_disabled_service_does_not_count_as_failing_after_a_reload() -> None:
    s = simulated(PLAIN, attrs.evolve(PLAIN, name="b"))
    world(s).breaks("a", cured_by=frozenset())
    until(s, "a", State.UNHEALTHY)
    s.request("disable", "a")
    s.propose(attrs.evolve(s.fleet, policies=(PLAIN, attrs.evolve(PLAIN, name="b", interval=20.0))))
    assert "a" not in s.engine.lookout.storm


def test_all_attempts_used_by_a_lower_limit_of_a_reload_do_not_spin() -> None:
    s = simulated(PLAIN, attrs.evolve(PLAIN, name="b"))
    no_wait = attrs.evolve(PLAIN, backoff=Backoff(initial=0.0), probation=300.0, max_retries=3)
    s.propose(attrs.evolve(s.fleet, policies=(no_wait, attrs.evolve(PLAIN, name="b"))))
    world(s).breaks("a")
    until(s, "a", State.RECOVERING)
    until(s, "a", State.HEALTHY)
    world(s).breaks("a", cured_by=frozenset())
    s.request("pause", "a")
    until(s, "a", State.FAILED)
    s.propose(attrs.evolve(s.fleet, policies=(attrs.evolve(no_wait, max_retries=1), attrs.evolve(PLAIN, name="b"))))
    s.request("resume", "a")
    s.run(s.now + 100.0)


def test_a_relapse_with_all_attempts_used_waits_for_the_slow_retry() -> None:
    s = simulated(attrs.evolve(PLAIN, max_retries=1, backoff=Backoff(initial=0.0), probation=300.0))
    world(s).breaks("a")
    until(s, "a", State.RECOVERING)
    until(s, "a", State.HEALTHY)
    world(s).breaks("a")
    until(s, "a", State.FAILED, reason="escalated")
    relapsed = s.now
    until(s, "a", State.RECOVERING)
    assert s.now >= relapsed + 119.0


def test_an_action_that_cannot_be_made_durable_is_not_tried_again_at_once() -> None:
    s = simulated(attrs.evolve(PLAIN, interval=30.0))
    s.store_well = False  # nobody has told the engine
    world(s).breaks("a")
    until(s, "a", State.FAILED)
    s.run(s.now + 60.0)
    assert 2 <= len(intents(s, "a")) <= 14
    assert s.engine.ledger.conditions["a"].attempt == 0


def test_a_snapshot_and_a_history_decide_alike() -> None:
    """The members of an incident are told in one order, whatever order a restart found them in."""
    child = attrs.evolve(PLAIN, depends_on=(Dependency(services=("p",)),), failure_threshold=1)
    fleet = Fleet(
        policies=(attrs.evolve(PLAIN, name="p", failure_threshold=6), *(attrs.evolve(child, name=n) for n in "bca"))
    )

    def run(*, by_snapshot: bool) -> bytes:
        w = SimpleWorld(fleet)
        s = Simulator(fleet, w, watchers=[Laws()])
        s.run(1.0)
        s.request("pause", everything=True)
        for n in ("a", "b", "c"):
            w.breaks(n, cured_by=frozenset())
            s.run(s.now + 25.0)
            if n == "b":
                s.crash(1.0, lose=False, by_snapshot=by_snapshot)
        w.breaks("p", cured_by=frozenset())
        s.run(s.now + 300.0)
        replays(s)
        return s.bytes()

    assert run(by_snapshot=False) == run(by_snapshot=True)


DESTRUCTIVE = (
    Step(action="reset_cache", effect=Effect.DESTRUCTIVE, only_for=frozenset({Cause.FULL})),
    Step(action="drop_table", effect=Effect.DESTRUCTIVE),
)


def test_an_approval_is_of_the_step_that_was_shown_not_of_the_one_that_is_next() -> None:
    s = simulated(attrs.evolve(PLAIN, steps=DESTRUCTIVE, approval_timeout=60.0))
    world(s).breaks("a", Cause.FULL, cured_by=frozenset())
    until(s, "a", State.FAILED, reason="held:approval")
    s.run(s.now + 61.0)  # nobody answers: the next step asks, under its own name and for its own time
    condition = s.engine.ledger.conditions["a"]
    assert (condition.reason, condition.detail) == ("held:approval", "drop_table")


def test_an_approval_given_after_the_cause_has_changed_runs_nothing_else() -> None:
    s = simulated(attrs.evolve(PLAIN, steps=DESTRUCTIVE))
    world(s).breaks("a", Cause.FULL, cured_by=frozenset())
    until(s, "a", State.FAILED, reason="held:approval")
    s.engine.evidence("a").cause = None  # as a check a moment ago, or a restart, would have it
    s.request("approve", "a")
    s.run(s.now + 20.0)
    assert not intents(s, "a")


def test_an_approval_is_void_once_the_ladder_is_another() -> None:
    other = (Step(action="drop_table", effect=Effect.DESTRUCTIVE),)
    approved = attrs.evolve(PLAIN, steps=DESTRUCTIVE[:1])
    s = simulated(approved)
    world(s).breaks("a", Cause.FULL, cured_by=frozenset())
    until(s, "a", State.FAILED, reason="held:approval")
    s.store_fails(s.now + 30.0)
    s.request("approve", "a")
    s.propose(attrs.evolve(s.fleet, policies=(attrs.evolve(approved, steps=other),)))
    s.run(s.now + 60.0)
    assert not intents(s, "a")
    s = simulated(approved)
    world(s).breaks("a", Cause.FULL, cured_by=frozenset())
    until(s, "a", State.FAILED, reason="held:approval")
    s.request("approve", "a")
    s.crash(1.0, lose=False, fleet=attrs.evolve(s.fleet, policies=(attrs.evolve(approved, steps=other),)))
    s.run(s.now + 60.0)
    assert not intents(s, "a")


def test_a_step_that_needs_no_approval_is_not_passed_over_for_want_of_one() -> None:
    steps = (DESTRUCTIVE[0], PLAIN.steps[0])
    s = simulated(attrs.evolve(PLAIN, steps=steps, approval_timeout=60.0, max_retries=1, slow_retry=None))
    world(s).breaks("a", Cause.FULL)
    until(s, "a", State.FAILED, reason="held:approval")
    s.request("pause", "a", duration=100.0)
    world(s).breaks("a", Cause.UNREACHABLE)
    s.run(s.now + 150.0)
    assert [record.action for record in intents(s, "a")] == ["restart"]


def test_a_service_enabled_while_its_action_runs_is_checked_when_that_has_ended() -> None:
    s = simulated(PLAIN, takes=15.0)
    world(s).breaks("a")
    until(s, "a", State.RECOVERING)
    s.request("disable", "a")
    s.request("enable", "a")
    s.run(s.now + 60.0)
    assert s.engine.ledger.conditions["a"].state is State.HEALTHY


def three(*, gone: int) -> tuple[Simulator, Fleet]:
    policies = tuple(attrs.evolve(PLAIN, name=n, steps=DESTRUCTIVE[:1]) for n in "abc")
    s = simulated(*policies)
    return s, attrs.evolve(s.fleet, policies=policies[gone:])


@pytest.mark.parametrize("act", ["enable", "approve", "refuse", "acknowledge", "recover", "initialize", "disable"])
def test_no_act_on_a_service_that_is_kept_but_not_watched_breaks_the_engine(act: str) -> None:
    s, rest = three(gone=2)
    world(s).breaks("a", Cause.FULL, cured_by=frozenset())
    until(s, "a", State.FAILED, reason="held:approval")
    s.request("disable", "b")
    s.crash(1.0, lose=False, fleet=rest)
    assert set(s.engine.ledger.unwatched) == {"a", "b"}
    for name in "ab":
        s.request(act, name)
    s.run(s.now + 60.0)
    assert s.propose(attrs.evolve(rest, policies=(*rest.policies, attrs.evolve(PLAIN, name="a"))), confirmed=True)
    s.run(s.now + 60.0)


def test_a_service_that_is_not_watched_any_more_gives_its_slot_back() -> None:
    policies = tuple(attrs.evolve(PLAIN, name=n) for n in "abc")
    s = simulated(*policies, takes=5.0, limits=Limits(max_concurrent_recoveries=1))
    world(s).breaks("a")
    until(s, "a", State.RECOVERING)
    s.crash(1.0, lose=False, fleet=attrs.evolve(s.fleet, policies=policies[2:]))
    world(s).breaks("c")
    s.run(s.now + 120.0)
    assert s.engine.ledger.conditions["c"].state is State.HEALTHY


def test_a_parent_that_comes_back_does_not_shorten_the_backoff_of_its_child() -> None:
    child = attrs.evolve(PLAIN, name="c", depends_on=(Dependency(services=("a",)),), dependent_grace=1.0)
    s = simulated(PLAIN, attrs.evolve(child, backoff=Backoff(initial=300.0, jitter=0.0)))
    world(s).breaks("c", cured_by=frozenset())
    until(s, "c", State.RECOVERING)
    until(s, "c", State.FAILED, reason="backoff")
    over = s.now
    world(s).breaks("a")
    until(s, "a", State.RECOVERING)
    until(s, "c", State.RECOVERING)
    assert s.now >= over + 299.0


def test_a_ladder_whose_steps_begin_at_a_later_attempt_is_climbed_all_the_same() -> None:
    reconnect = Step(action="reconnect", effect=Effect.GENTLE, needs_running=True)
    restart = attrs.evolve(PLAIN.steps[0], from_attempt=2)
    s = simulated(attrs.evolve(PLAIN, has_workload=True, steps=(reconnect, restart)))
    world(s).things["a"].run = Run.EXITED
    until(s, "a", State.RECOVERING)
    quiet(s, 600.0)


def test_a_warning_that_counts_as_a_failure_does_not_count_before_the_action_has_settled() -> None:
    settles = attrs.evolve(PLAIN.steps[0], settle=15.0)
    s = simulated(attrs.evolve(PLAIN, steps=(settles,), warning_fails=True, failure_threshold=1, recovery_timeout=10.0))
    world(s).breaks("a", verdict=Verdict.WARNING, cured_by=frozenset())
    until(s, "a", State.RECOVERING)
    s.run(s.now + 300.0)


def test_a_step_that_never_started_gives_back_no_attempt_of_which_a_step_has_run() -> None:
    steps = (Step(action="reconnect", effect=Effect.GENTLE, settle=0.0), PLAIN.steps[0])
    s = simulated(attrs.evolve(PLAIN, steps=steps, has_workload=True))
    world(s).breaks("a")
    until(s, "a", State.RECOVERING)
    while s.engine.ledger.intents:
        s.run(s.now + 0.1)
    s.request("pause", "a", duration=10.0)
    until(s, "a", State.FAILED)
    s.crash(1.0, lose=False)
    until(s, "a", State.RECOVERING)
    event = ActionFinished(at=s.now, intent=next(iter(s.engine.ledger.intents)), settled=Settled.NOT_STARTED)
    s.feed(event)
    assert s.engine.ledger.conditions["a"].attempt == 1


def test_an_intent_never_has_the_key_of_another_though_incidents_merge() -> None:
    child = attrs.evolve(PLAIN, name="c", depends_on=(Dependency(services=("p",)),), dependent_grace=0.0, probation=0.0)
    s = simulated(attrs.evolve(PLAIN, name="p", probation=3000.0, failure_threshold=6), child)
    for _ in range(3):  # the parent's outages are one incident, opened again; the child fails first, and is merged
        world(s).breaks("p")
        until(s, "p", State.RECOVERING)
        world(s).breaks("c")
        quiet(s, 600.0)
    keys = [record.intent for record in s.records if isinstance(record, Intended)]
    assert len(keys) > 3
    assert len(keys) == len(set(keys))


def test_the_outages_of_a_parent_are_not_the_flapping_of_its_child() -> None:
    flaps = (Budget(limit=2, per=86400.0),)
    for threshold in (1, 6):  # the child is believed down after its parent, or before it
        parent = attrs.evolve(PLAIN, name="p", failure_threshold=threshold)
        child = attrs.evolve(PLAIN, name="c", depends_on=(Dependency(services=("p",)),), flapping=flaps)
        s = simulated(parent, child)
        for _ in range(4):
            world(s).breaks("p")
            until(s, "p", State.RECOVERING)
            quiet(s, 600.0)
        world(s).breaks("c")
        until(s, "c", State.RECOVERING)
        quiet(s, 600.0)
