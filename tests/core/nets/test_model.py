"""The engine against the reference model: drawn policies, drawn runs of results, the same story to the microsecond."""

from __future__ import annotations

import os
from itertools import zip_longest
from random import Random
from typing import Any

import pytest
from tests.core.nets.model import Happening, predicted

from selfheal.core.engine import Engine
from selfheal.core.messages import RunAction
from selfheal.core.model import (
    PASSING,
    Backoff,
    Cause,
    CheckResult,
    Effect,
    Fleet,
    Policy,
    Settled,
    State,
    Step,
    Verdict,
)
from selfheal.core.records import Intended, Moved
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import ActionReply, CheckReply

CHECK_TAKES = 0.03125
SAME = (
    "interval",
    "recheck",
    "failure_threshold",
    "min_failing_span",
    "success_threshold",
    "max_retries",
    "recovery_timeout",
    "slow_retry",
    "probation",
)
"""Fields that are spelt alike in the model and the policy."""


class Scripted:
    """A world of one service whose checks turn out as written."""

    def __init__(self, spells: list[tuple[float, bool]], action_takes: float) -> None:
        self.spells = spells
        self.action_takes = action_takes

    def passes(self, at: float) -> bool:
        return next((well for until, well in self.spells if at < until), True)

    def check(self, service: str, at: float, *, inspect: bool) -> CheckReply:
        del service, inspect
        failing = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE)
        return CheckReply(result=PASSING if self.passes(at) else failing, takes=CHECK_TAKES)

    def act(self, command: RunAction, action: str, at: float) -> ActionReply:
        del command, action, at
        return ActionReply(takes=self.action_takes)

    def done(self, command: RunAction, action: str, at: float) -> None:
        pass

    def cancelled(self, intent: str, at: float) -> None:
        pass

    def settle(self, intent: str, at: float) -> ActionReply:
        del intent, at
        return ActionReply(settled=Settled.IN_DOUBT)


def drawn(seed: int) -> tuple[dict[str, Any], Policy, list[tuple[float, bool]], float]:
    """Draw a policy in both spellings, spells of health and failure, and how long an action takes.

    Times are odd binary fractions, so that no two timers fall on one instant by chance and sums are exact.
    """
    r = Random(seed)
    plain: dict[str, Any] = {
        "interval": r.choice([8.0, 31.0]),
        "recheck": r.choice([1.5, 5.25]),
        "failure_threshold": r.choice([1, 2, 3]),
        "min_failing_span": r.choice([0.0, 7.375, 30.0]),
        "success_threshold": r.choice([1, 2, 3]),
        "settle": r.choice([0.0, 2.625]),
        "steps": r.choice([1, 2, 3]),
        "max_retries": r.choice([1, 2, 3]),
        "initial": r.choice([0.0, 1.189453125, 10.013671875]),
        "multiplier": r.choice([1.0, 2.0]),
        "cap": r.choice([15.5625, 300.0]),
        "forget_after": r.choice([0.0, 60.0, 600.0]),
        "recovery_timeout": r.choice([12.71875, 33.0, 300.0]),
        "slow_retry": r.choice([None, 120.65234375]),
        "probation": r.choice([0.0, 50.0, 300.0]),
    }
    p = plain
    step = Step(action="reconnect", effect=Effect.GENTLE, timeout=60.0, settle=p["settle"])
    policy = Policy(
        name="one",
        jitter=0.0,
        suspicion_threshold=0,
        flapping=(),
        budgets=(),
        steps=(step,) * p["steps"],
        backoff=Backoff(
            initial=p["initial"], multiplier=p["multiplier"], cap=p["cap"], jitter=0.0, forget_after=p["forget_after"]
        ),
        **{key: p[key] for key in SAME},
    )
    at, spells = 0.0, []
    for place in range(r.randrange(2, 9)):
        at += r.choice([2.0, 11.0, 40.0, 170.0, 700.0]) * r.uniform(0.5, 1.0)
        spells.append((at, place % 2 == 0))
    return plain, policy, spells, r.choice([0.125, 4.4375, 20.0])


def happened(policy: Policy, world: Scripted, until: float, engine: type[Engine] = Engine) -> list[Happening]:
    """Return what the engine did, in the words of the model."""
    simulator = Simulator(Fleet(policies=(policy,)), world, engine=engine)
    simulator.run(until)
    said: list[Happening] = []
    for record in simulator.records:
        if isinstance(record, Moved) and record.before.state is not record.after.state:
            said.append((record.at, record.after.state.value))
        elif isinstance(record, Intended):
            said.append((record.at, f"act {record.attempt}/{record.step}"))
    return [(at, what) for at, what in said if what != State.DEGRADED.value]


def compare(seed: int, engine: type[Engine] = Engine) -> int:
    """Compare one seed; return how much happened."""
    plain, policy, spells, action_takes = drawn(seed)
    world = Scripted(spells, action_takes)
    until = spells[-1][0] + 600.0
    expected = predicted(plain, world.passes, CHECK_TAKES, action_takes, until)
    actual = happened(policy, world, until, engine)
    # An intent is said before the move it causes; the model says it after.
    key = sorted((round(at, 6), what) for at, what in actual)
    wanted = sorted((round(at, 6), what) for at, what in expected)
    other = next((pair for pair in zip_longest(key, wanted) if pair[0] != pair[1]), None)
    assert other is None, f"seed {seed}: the engine {other[0]}, the model {other[1]}, with {plain}"
    return len(key)


@pytest.mark.parametrize("block", range(4))
def test_the_engine_does_what_the_reference_model_says(block: int) -> None:
    count = int(os.environ.get("SELFHEAL_NETS_MODEL", "400")) // 4
    happenings = sum(compare(seed) for seed in range(block * count, (block + 1) * count))
    assert happenings > count, "the drawn stories are empty"
