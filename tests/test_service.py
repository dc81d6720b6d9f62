"""The noun of the library: what it takes, what the core sees of it, and its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from selfheal.builtin.actions import HttpHook
from selfheal.core.model import (
    PASSING,
    Backoff,
    Budget,
    Cause,
    CheckResult,
    Dependency,
    DependencyKind,
    Effect,
    Instance,
    Limits,
    Policy,
    Priority,
    Run,
    Step,
    WhenDisabled,
)
from selfheal.ladder import RecoveryAction
from selfheal.plugins import ActionContext, CheckContext, Context
from selfheal.secret import Secret
from selfheal.service import DERIVED, Canary, RecoveryStrategy, Service, fingerprint, fleet_of, name_fault
from selfheal.testing.doubles import ScriptedCheck, ScriptedWorkload

KEY = b"a key of thirty-two bytes, or so"


@attrs.frozen(kw_only=True)
class Ping:
    kind: ClassVar[str] = "ping"
    url: Secret | str = "ping://here"
    places: tuple[Path, ...] = ()
    _memory: list[int] = attrs.field(factory=list, init=False, eq=False)

    async def check(self, context: CheckContext) -> CheckResult:
        return PASSING


@attrs.frozen(kw_only=True)
class Box:
    kind: ClassVar[str] = "box"
    box: str = "a"

    async def inspect(self, context: Context) -> Instance:
        return Instance(id="1", run=Run.RUNNING)

    async def restart(self, context: ActionContext) -> None: ...


def answers() -> bool:
    return True


# -- what it takes ---------------------------------------------------------------------------------------------------


def test_it_has_every_field_of_a_policy_with_the_same_default() -> None:
    policy, service = Policy(name="a"), Service("a", check=answers)

    for field in attrs.fields(Policy):
        if field.name not in DERIVED:
            assert getattr(service, field.name) == getattr(policy, field.name), field.name
    assert service.policy() == policy


def test_it_has_the_limits_of_a_policy() -> None:
    for changes in ({"interval": 0.0}, {"max_retries": 0}, {"jitter": 2.0}, {"recheck": float("nan")}):
        (name,) = changes
        with pytest.raises(ValueError, match=rf"{name}: .* out of range"):
            Service("a", check=answers, **changes)
    for wrong in ({"enabled": "no"}, {"deep": 1}, {"max_retries": True}, {"backoff": None}, {"budgets": [3]}):
        with pytest.raises(TypeError):
            Service("a", check=answers, **wrong)


def test_only_the_name_is_positional() -> None:
    with pytest.raises(TypeError):
        Service("a", answers)  # type: ignore[call-arg, arg-type]


def test_s28_a_name_is_refused_rather_than_escaped() -> None:
    for name in ("x; touch pwned", "../../etc", "", "canary:x", "-rf", "a b", "a\n", "x" * 101, "é", 3, None):
        assert name_fault(name) is not None
        with pytest.raises(ValueError, match="name: "):
            Service(name, check=answers)  # type: ignore[arg-type]
    assert name_fault("A9.b_c-d") is None


@pytest.mark.parametrize(("given", "words"), [(Ping, "is a class"), ("http://a", "is no check"), (None, "is no check")])
def test_a_check_is_an_object_or_a_callable(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Service("a", check=given)


def test_a_workload_is_an_object_that_can_be_inspected_and_restarted() -> None:
    for wrong in (Box, Ping(), "box"):
        with pytest.raises(TypeError, match="is no workload"):
            Service("a", check=answers, workload=wrong)  # type: ignore[arg-type]


def test_dependencies_are_written_in_four_ways() -> None:
    service = Service(
        "a",
        check=answers,
        depends_on=[
            "b",
            {"service": "c", "kind": "soft", "when_disabled": "wait"},
            {"any_of": ["d", "e"]},
            Dependency(services=("f",)),
        ],
    )

    assert service.depends_on == (
        Dependency(services=("b",)),
        Dependency(services=("c",), kind=DependencyKind.SOFT, when_disabled=WhenDisabled.WAIT),
        Dependency(services=("d", "e")),
        Dependency(services=("f",)),
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("b", "depends_on: give a list"),
        ([3], r"depends_on\[0\]: 3 is no dependency"),
        (["b", {"kind": "soft"}], r"depends_on\[1\]: name one `service`, or several"),
        ([{"service": "b", "any_of": ["c"]}], r"depends_on\[0\]: name one `service`"),
        ([{"servise": "b"}], "servise"),
        ([{"service": "b", "kind": "solid"}], "solid"),
    ],
)
def test_a_dependency_that_says_nothing_is_refused_by_its_place(given: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Service("a", check=answers, depends_on=given)


def test_steps_are_written_in_five_ways() -> None:
    hook = HttpHook(url="http://a/", verb="failover")
    service = Service(
        "a",
        check=answers,
        recovery_actions=[
            "reconnect",
            RecoveryAction.RESET_CACHE,
            {"action": "scale_up", "to": 3, "cooldown": 600.0, "only_for": ["overloaded"], "approval": True},
            Step(action="vacuum", timeout=5.0),
            hook,
        ],
    )
    reconnect, reset, scale, vacuum, failover = service.recovery_actions

    assert reconnect.step == Step(action="reconnect", effect=Effect.GENTLE, needs_running=True)
    assert reset.step == Step(action="reset_cache", effect=Effect.DESTRUCTIVE)
    assert reset.step.asks
    assert type(reset.step.action) is str
    assert scale.step == Step(action="scale_up", cooldown=600.0, only_for=frozenset({Cause.OVERLOADED}), approval=True)
    assert scale.options == {"to": 3}
    assert vacuum.step == Step(action="vacuum", timeout=5.0)
    assert failover.step.action == "failover"
    assert isinstance(failover.by, HttpHook)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("restart", "recovery_actions: give a list"),
        ([3], r"recovery_actions\[0\]: 3 is no step"),
        ([{"cooldown": 3}], r"\[0\]: action: None is no verb"),
        (["restart now"], r"\[0\]: action: 'restart now' is no verb"),
        ([{"action": "restart", "cooldwn": 3}], r"\[0\]: 'cooldwn' is unknown to steps; did you mean \"cooldown\"\?"),
        ([{"action": "restart", "effect": "mild"}], "mild"),
        ([{"action": "restart", "only_for": ["slow"]}], "slow"),
        ([{"action": "restart", "timeout": 0}], r"timeout: 0\.0 is out of range"),
        ([{"action": "restart", "http": {"url": "http://a"}}], r"write http=HttpHook\(url=…\)"),
    ],
)
def test_a_step_that_says_nothing_is_refused_by_its_place(given: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Service("a", check=answers, recovery_actions=given)


def test_a_priority_is_a_word_or_a_member() -> None:
    assert Service("a", check=answers, priority="high").priority is Priority.HIGH
    assert Service("a", check=answers, priority=Priority.LOW).priority is Priority.LOW
    with pytest.raises(ValueError, match="say high, medium or low"):
        Service("a", check=answers, priority="urgent")


def test_a_timeout_is_below_the_interval_and_shrinks_with_it_when_nobody_gave_one() -> None:
    assert Service("a", check=answers).timeout == 5.0
    assert Service("a", check=answers, interval=1.0).timeout == 0.8
    assert Canary("c", check=answers, interval=1.0).timeout == 0.8
    with pytest.raises(ValueError, match="timeout: 5 s is not below the interval of 5 s"):
        Service("a", check=answers, interval=5.0, timeout=5.0)


def test_the_words_of_the_specification_make_a_service_with_its_defaults() -> None:
    service = RecoveryStrategy(
        service_name="api-server",
        health_check=answers,
        dependencies=["database", "redis"],
        recovery_actions=[RecoveryAction.RESTART, RecoveryAction.MANUAL_INTERVENTION],
        max_retries=3,
        priority="high",
    )

    assert service == Service(
        "api-server",
        check=answers,
        depends_on=["database", "redis"],
        recovery_actions=["restart", "manual_intervention"],
        max_retries=3,
        priority="high",
        interval=30.0,
        failure_threshold=3,
        recovery_timeout=60.0,
        backoff=Backoff(initial=1.0, multiplier=2.0, cap=300.0),
    )
    assert RecoveryStrategy("a", answers, []).max_retries == 5


def test_the_six_actions_of_the_specification_are_there() -> None:
    assert list(RecoveryAction) == [
        "restart",
        "reconnect",
        "scale_up",
        "failover",
        "reset_cache",
        "manual_intervention",
    ]


# -- what the core sees ----------------------------------------------------------------------------------------------


def test_a_fleet_holds_no_plugin_object_and_no_secret() -> None:
    service = Service("a", check=Ping(url=Secret("hunter2")), workload=Box(), budgets=[Budget(limit=1)], deep=True)

    fleet = fleet_of(
        [service], canaries=[Canary("c", check=Ping(), interval=9.0)], limits=Limits(storm_floor=9), name="f", key=KEY
    )

    (policy,) = fleet.policies
    assert (policy.has_workload, policy.deep, policy.budgets) == (True, True, (Budget(limit=1),))
    assert len(policy.fingerprint) == len(fleet.canaries[0].fingerprint) == 32
    assert (fleet.canaries[0].name, fleet.canaries[0].interval) == ("c", 9.0)
    assert "hunter2" not in repr(fleet) + repr(service)
    assert "Ping" not in repr(fleet)


def test_without_a_key_there_is_no_fingerprint() -> None:
    assert Service("a", check=Ping()).policy().fingerprint == ""


def test_a_fingerprint_changes_with_everything_it_is_of_and_with_nothing_else() -> None:
    def of(check: object = Ping(), **more: Any) -> str:
        return Service("a", check=check, **more).policy(key=KEY).fingerprint  # type: ignore[arg-type]

    different = [
        of(),
        of(Ping(url="ping://there")),
        of(Ping(url=Secret("ping://here"))),
        of(Ping(url=Secret("ping://there"))),
        of(Ping(places=(Path("a"), Path("b")))),
        of(Ping(places=(Path("a/b"),))),
        of(answers),
        of(workload=Box()),
        of(workload=Box(box="b")),
        of(recovery_actions=["restart"]),
        of(recovery_actions=[{"action": "restart", "note": "x"}]),
        of(recovery_actions=[{"action": "restart", "http": HttpHook(url="http://a/")}]),
        of(recovery_actions=[{"action": "restart", "http": HttpHook(url="http://a/", headers={"a": Secret("b")})}]),
    ]
    used = Ping()
    used._memory.append(1)

    assert len(set(different)) == len(different)
    assert of(used) == of()
    assert of(interval=9.0) == of()
    assert of(Ping(url=Secret(lambda: "ping://here"))) == of(Ping(url=Secret("ping://here")))
    assert Service("a", check=Ping()).policy(key=b"another").fingerprint != of()


def test_a_fingerprint_takes_values_apart_that_look_alike() -> None:
    things: list[Any] = [
        ("a", "b"),
        ("ab",),
        (("a",), "b"),
        ("a", ("b",)),
        ("xstr:y", "z"),
        ("x", "ystr:z"),
        {"a": "b"},
        frozenset({"a", "b"}),
        1,
        1.0,
        "1",
        True,
        None,
        "None",
        b"1",
        Path("1"),
        Effect.GENTLE,
        "gentle",
        Secret("1"),
    ]
    prints = [fingerprint(KEY, thing) for thing in things]

    assert len(set(prints)) == len(prints)
    assert fingerprint(KEY, frozenset("abc")) == fingerprint(KEY, frozenset("cba"))
    assert fingerprint(KEY, {"a": 1, "b": 2}) == fingerprint(KEY, {"b": 2, "a": 1})


def test_a_secret_that_cannot_be_read_does_not_stop_the_fingerprint() -> None:
    def gone() -> str:
        raise OSError("gone")

    missing = Secret(gone, source="file /a")

    assert fingerprint(KEY, missing) == fingerprint(KEY, Secret(gone, source="file /a"))
    assert fingerprint(KEY, missing) != fingerprint(KEY, Secret("x"))


def test_who_has_a_workload_is_given_a_minute_to_boot_unless_it_says_otherwise() -> None:
    check, workload = ScriptedCheck(), ScriptedWorkload()
    assert Service("a", check=check).policy().start_grace == 0.0
    assert Service("a", check=check, workload=workload).policy().start_grace == 60.0
    assert Service("a", check=check, workload=workload, start_grace=5.0).policy().start_grace == 5.0
