"""The scripted plugins do as they are told, and say what they were asked."""

from __future__ import annotations

import asyncio

import pytest

from selfheal.core.model import PASSING, Cause, CheckResult, Notification, Phase, Run, Settled, Severity, Verdict
from selfheal.errors import NotificationFailed
from selfheal.plugins import Action, HealthCheck, Notifier, Watching, Workload
from selfheal.shell.contexts import Act, Contexts
from selfheal.testing.doubles import RecordingNotifier, ScriptedAction, ScriptedCheck, ScriptedWorkload

FAILING = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE)


def test_they_satisfy_the_interfaces() -> None:
    assert isinstance(ScriptedCheck(), HealthCheck)
    assert isinstance(ScriptedAction(), Action)
    assert isinstance(ScriptedWorkload(), Workload)
    assert isinstance(ScriptedWorkload(), Watching)
    assert isinstance(RecordingNotifier(), Notifier)


def test_a_script_is_played_line_by_line_and_its_last_line_repeated() -> None:
    check = ScriptedCheck(script=[FAILING, OSError("refused"), 0.01, PASSING])
    context = Contexts().for_check("redis", check, 1.0)

    async def play() -> list[object]:
        first = await check.check(context)
        with pytest.raises(OSError, match="refused"):
            await check.check(context)
        return [first, *[await check.check(context) for _ in range(3)]]

    assert asyncio.run(play()) == [FAILING, PASSING, PASSING, PASSING]
    assert check.contexts == [context] * 5


def test_a_wait_at_the_end_is_for_ever() -> None:
    check = ScriptedCheck(script=[0.001])
    context = Contexts().for_check("redis", check, 1.0)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(check.check(context), 0.05))


def test_an_empty_script_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one line"):
        ScriptedCheck(script=[])


def test_an_action_says_afterwards_what_became_of_each_key() -> None:
    action = ScriptedAction(script=[None, RuntimeError("no")])
    contexts = [Contexts().for_action("redis", action, 1.0, Act(key=key)) for key in "abc"]

    async def play() -> list[Settled | None]:
        await action.run(contexts[0])
        with pytest.raises(RuntimeError):
            await action.run(contexts[1])
        return [await action.probe(context) for context in contexts]

    assert asyncio.run(play()) == [Settled.DONE, Settled.INTERRUPTED, Settled.NOT_STARTED]
    assert action.keys == ["a", "b"]


def test_a_workload_begins_a_new_incarnation_at_each_restart_and_can_be_ended() -> None:
    workload = ScriptedWorkload(name="redis")
    contexts = Contexts()

    async def play() -> list[tuple[str, Run]]:
        context = contexts.plain("redis", workload)
        seen = [await workload.inspect(context)]
        workload.end()
        seen.append(await workload.inspect(context))
        await workload.restart(contexts.for_action("redis", workload, 1.0, Act(key="a")))
        seen.append(await workload.inspect(context))
        return [(instance.id, instance.run) for instance in seen]

    assert asyncio.run(play()) == [
        ("redis-1", Run.RUNNING),
        ("redis-1", Run.EXITED),
        ("redis-2", Run.RUNNING),
    ]
    assert workload.keys == ["a"]


def test_a_notifier_keeps_what_it_was_given_unless_it_fails() -> None:
    notifier = RecordingNotifier(script=[NotificationFailed("busy", retry_after=1.0), "receipt"])
    said = Notification(
        id="1", incident=1, service="redis", phase=Phase.FIRING, severity=Severity.HIGH, title="redis is down"
    )
    context = Contexts().plain("oncall", notifier)

    async def play() -> str | None:
        with pytest.raises(NotificationFailed):
            await notifier.send(said, context)
        return await notifier.send(said, context)

    assert asyncio.run(play()) == "receipt"
    assert notifier.sent == [said]
