"""Who does each step: the order of resolution, effects that nobody can talk down, and what is refused at load."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

from selfheal.builtin.actions import HttpHook
from selfheal.builtin.command import CommandWorkload
from selfheal.core.model import PASSING, CheckResult, Effect, Instance, Run, Settled, Step
from selfheal.errors import ConfigurationError
from selfheal.ladder import needed_actions, resolve, resolve_all
from selfheal.plugins import ActionContext, CheckContext, Context
from selfheal.service import Service


@attrs.frozen(kw_only=True)
class StoreCheck:
    kind: ClassVar[str] = "store"

    async def check(self, context: CheckContext) -> CheckResult:
        return PASSING


@attrs.frozen(kw_only=True)
class Box:
    kind: ClassVar[str] = "box"

    async def inspect(self, context: Context) -> Instance:
        return Instance(id="1", run=Run.RUNNING)

    async def restart(self, context: ActionContext) -> None: ...


@attrs.frozen(kw_only=True)
class Cluster(Box):
    async def scale_up(self, context: ActionContext) -> None: ...

    async def failover(self, context: ActionContext) -> None: ...

    async def start(self, context: ActionContext) -> None: ...

    async def stop(self, context: ActionContext) -> None: ...

    async def vacuum(self, context: ActionContext) -> None: ...


@attrs.frozen(kw_only=True)
class Reset:
    kind: ClassVar[str] = "store"
    verb: ClassVar[str] = "reset_cache"
    effect: ClassVar[Effect] = Effect.DESTRUCTIVE
    pattern: str = attrs.field(default="*", validator=attrs.validators.min_len(1))

    async def run(self, context: ActionContext) -> None: ...

    async def probe(self, context: ActionContext) -> Settled | None:
        return None


@attrs.frozen(kw_only=True)
class Vacuum(Reset):
    verb: ClassVar[str] = "vacuum"
    effect: ClassVar[Effect] = Effect.GENTLE


@attrs.frozen(kw_only=True)
class Restart(Reset):
    verb: ClassVar[str] = "restart"


ACTIONS: dict[str, type[Any]] = {"store.reset_cache": Reset, "store.vacuum": Vacuum, "store.restart": Restart}


async def cure(context: ActionContext) -> None: ...


def one(step: Any, *, callbacks: Any = (), workload: Any = None) -> Any:
    service = Service("a", check=StoreCheck(), workload=workload, recovery_actions=[step])
    (resolved,) = resolve(service, dict(callbacks), ACTIONS)
    return resolved


def refusal(step: Any, **more: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        one(step, **more)
    (problem,) = caught.value.problems
    assert problem.path == "services.a.recovery_actions[0]"
    return str(problem)


# -- the order -------------------------------------------------------------------------------------------------------


def test_the_callback_comes_first_then_the_hook_then_the_workload_then_the_plugin() -> None:
    hook = {"action": "restart", "http": HttpHook(url="http://a/")}
    callback = {("a", "restart"): cure}

    assert one("restart", callbacks=callback, workload=Box()).how == "callback"
    assert one("restart", callbacks=callback, workload=Box()).target is cure
    assert one(hook, workload=Box()).how == "http"
    assert one("restart", workload=Box()).how == "workload"
    assert one("restart").how == "plugin"


def test_a_callback_is_of_one_service_and_one_verb() -> None:
    assert one("restart", callbacks={("b", "restart"): cure, ("a", "reconnect"): cure}).how == "plugin"


def test_a_callback_and_a_hook_for_one_step_are_ambiguous() -> None:
    hook = {"action": "restart", "http": HttpHook(url="http://a/")}

    assert "both a callback and the action object of this step answer restart (remove one)" in refusal(
        hook, callbacks={("a", "restart"): cure}
    )


@pytest.mark.parametrize("verb", ["restart", "scale_up", "failover", "start", "stop"])
def test_a_workload_answers_the_verbs_of_its_interfaces(verb: str) -> None:
    found = one(verb, workload=Cluster())

    assert (found.how, found.method, found.step.effect) == ("workload", verb, Effect.DISRUPTIVE)


def test_a_workload_answers_no_verb_only_because_it_has_a_method_of_that_name() -> None:
    assert one("vacuum", workload=Cluster()).how == "plugin"
    assert "nothing answers" in refusal("inspect", workload=Cluster())


def test_s36_manual_intervention_is_people_and_nobody_else() -> None:
    found = one("manual_intervention")

    assert (found.how, found.target, found.step.effect) == ("people", None, Effect.GENTLE)
    assert "is people" in refusal("manual_intervention", callbacks={("a", "manual_intervention"): cure})
    assert "is people" in refusal({"action": "manual_intervention", "http": HttpHook(url="http://a/")})
    assert "'to' is unknown to manual_intervention" in refusal({"action": "manual_intervention", "to": 3})


def test_an_action_object_may_stand_in_the_ladder_itself() -> None:
    found = one(Vacuum(pattern="x"))

    assert (found.how, found.target, found.step.effect) == ("plugin", Vacuum(pattern="x"), Effect.GENTLE)


# -- what nothing answers --------------------------------------------------------------------------------------------


def test_a_verb_that_nothing_answers_is_refused_with_what_would_answer_it() -> None:
    assert 'nothing answers "failover": the service has no workload' in refusal("failover")
    assert "has a workload that cannot `scale_up`" in refusal("scale_up", workload=Box())
    assert "register a callback" in refusal("reconnect")
    assert "its check offers: reset_cache, vacuum, restart" in refusal("reconnect")


def test_a_workload_whose_options_leave_a_verb_out_cannot_do_it() -> None:
    asked = ["docker", "inspect", "web"]
    one_way = CommandWorkload(inspect=asked, restart=["docker", "restart", "web"])
    scaled = CommandWorkload(inspect=asked, restart=["x"], scale=["docker", "compose", "up", "--scale", "web={to}"])

    for verb in ("scale_up", "start", "stop"):
        assert f"has a workload that cannot `{verb}`" in refusal({"action": verb}, workload=one_way)
    assert one({"action": "scale_up", "to": 3}, workload=scaled).how == "workload"
    assert one("restart", workload=one_way).how == "workload"


def test_a_misspelt_verb_is_refused_with_a_suggestion() -> None:
    assert 'did you mean "restart"?' in refusal("restrat", workload=Box())
    assert 'did you mean "vacuum"?' in refusal("vacum")


def test_a_callable_has_no_plugin_actions() -> None:
    service = Service("a", check=lambda: True, recovery_actions=["reset_cache"])

    with pytest.raises(ConfigurationError, match='nothing answers "reset_cache"'):
        resolve(service, {}, {**ACTIONS, "None.reset_cache": Reset})


def test_everything_unanswered_in_a_fleet_is_told_at_once() -> None:
    services = [
        Service("a", check=StoreCheck(), recovery_actions=["failover", "vacuum", "scale_up"]),
        Service("b", check=StoreCheck(), recovery_actions=["reconnect"]),
        Service("c", check=StoreCheck(), recovery_actions=["vacuum"]),
    ]

    with pytest.raises(ConfigurationError) as caught:
        resolve_all(services, {("cc", "vacuum"): cure}, ACTIONS)

    assert [problem.path for problem in caught.value.problems] == [
        "services.a.recovery_actions[0]",
        "services.a.recovery_actions[2]",
        "services.b.recovery_actions[0]",
        "actions.cc.vacuum",
    ]
    assert list(resolve_all(services[2:], {("c", "vacuum"): cure}, ACTIONS)) == ["c"]


# -- effects ---------------------------------------------------------------------------------------------------------


def test_the_effect_of_a_plugin_is_its_own() -> None:
    assert one("reset_cache").step.effect is Effect.DESTRUCTIVE
    assert one("vacuum").step.effect is Effect.GENTLE
    assert one({"action": "vacuum", "effect": "disruptive"}).step.effect is Effect.DISRUPTIVE
    assert one(Step(action="reset_cache", effect=Effect.GENTLE)).step.effect is Effect.DESTRUCTIVE


def test_law_13_nobody_calls_an_action_better_than_it_is() -> None:
    said = "is destructive, not gentle (leave `effect` out, or call it worse)"
    assert said in refusal({"action": "reset_cache", "effect": "gentle"})
    assert "restart is disruptive, not gentle" in refusal({"action": "restart", "effect": "gentle"}, workload=Box())
    assert one("reset_cache").step.asks
    assert not one({"action": "reset_cache", "allow_destructive": True}).step.asks


def test_what_a_callback_or_an_endpoint_of_theirs_does_people_know_themselves() -> None:
    callbacks = {("a", "reset_cache"): cure}
    hook = HttpHook(url="http://a/")

    assert one("reset_cache", callbacks=callbacks).step.effect is Effect.DESTRUCTIVE
    assert one({"action": "reset_cache", "effect": "gentle"}, callbacks=callbacks).step.effect is Effect.GENTLE
    for step, effect in [
        ({"action": "reconnect"}, Effect.DISRUPTIVE),  # the hook's default is not better than that
        ({"action": "reconnect", "effect": "gentle"}, Effect.GENTLE),
        ({"action": "reset_cache"}, Effect.DESTRUCTIVE),
    ]:
        found = one({**step, "http": hook})
        assert found.step.effect is effect
        assert (found.target.effect, found.target.verb) == (effect, step["action"])


# -- further keys ----------------------------------------------------------------------------------------------------


def test_further_keys_reach_who_reads_them() -> None:
    assert dict(one({"action": "scale_up", "to": 3}, workload=Cluster()).step.arguments) == {"to": 3}
    assert dict(one({"action": "failover", "to": "b"}, workload=Cluster()).step.arguments) == {"to": "b"}
    assert one({"action": "reset_cache", "pattern": "x"}).target == Reset(pattern="x")
    callbacks = {("a", "restart"): cure}
    assert one({"action": "restart", "b": 1, "a": None}, callbacks=callbacks).step.arguments == (("a", None), ("b", 1))


@pytest.mark.parametrize(
    ("step", "workload", "words"),
    [
        ({"action": "restart", "to": 3}, Box(), "'to' is unknown to restart (it reads: action,"),
        ({"action": "scale_up", "top": 3}, Cluster(), "'top' is unknown to scale_up (did you mean \"to\"?)"),
        ({"action": "scale_up", "to": 0}, Cluster(), '"to" is 0 (give the number of copies'),
        ({"action": "scale_up", "to": True}, Cluster(), '"to" is True'),
        ({"action": "scale_up", "to": [3]}, Cluster(), "'to' is neither text, number"),
        ({"action": "reset_cache", "patern": "x"}, None, 'did you mean "pattern"?'),
        ({"action": "reset_cache", "pattern": ""}, None, "store.reset_cache: "),
        ({"action": "restart", "http": HttpHook(url="http://a/"), "to": 1}, None, "'to' is unknown to restart"),
    ],
)
def test_a_key_that_nobody_reads_is_refused(step: dict[str, Any], workload: Any, words: str) -> None:
    assert words in refusal(step, workload=workload)


# -- what must be loaded ---------------------------------------------------------------------------------------------


def test_needed_are_the_plugin_actions_that_nothing_else_answers() -> None:
    services = [
        Service(
            "a",
            check=StoreCheck(),
            workload=Box(),
            recovery_actions=["restart", "scale_up", "reset_cache", "manual_intervention", Vacuum()],
        ),
        Service("b", check=StoreCheck(), recovery_actions=["reconnect", "restart"]),
        Service("c", check=lambda: True, recovery_actions=["restart"]),
    ]

    assert needed_actions(services, {("b", "reconnect"): cure}) == {
        ("action", "store.scale_up"),
        ("action", "store.reset_cache"),
        ("action", "store.restart"),
    }
