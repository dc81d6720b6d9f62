"""`explain` names every guard that holds, and only those: shown on a thousand drawn situations (law 22)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from random import Random

import pytest
from tests.core.nets.fleets import Faults, draw_fleet

from selfheal.core.engine import Engine
from selfheal.core.guards import GUARDS, Guard, Sight
from selfheal.core.messages import RunAction
from selfheal.core.model import MANUAL, State
from selfheal.testing.laws import Laws
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

SITUATIONS = int(os.environ.get("SELFHEAL_NETS_SITUATIONS", "1000"))


def _passes(sight: Sight) -> None:
    del sight


def flipped(engine: Engine, guards: set[str]) -> Engine:
    """Return a copy of an engine in which some guards have nothing against it."""
    shared: dict[int, object] = {id(policy): policy for policy in engine.ledger.fleet.policies}
    shared |= {id(condition): condition for condition in engine.ledger.conditions.values()}
    other: Engine = deepcopy(engine, {**shared, id(engine.ledger.fleet): engine.ledger.fleet})
    other.repair.guards = tuple(
        Guard(name=g.name, passed=g.passed, ask=_passes) if g.name in guards else g for g in GUARDS
    )
    return other


def runs(engine: Engine, name: str) -> bool:
    """Whether a step of a service begins, its check before the step having just failed."""
    engine.repair.attempt(name, fresh=True)
    return any(isinstance(command, RunAction) and command.service == name for command in engine.desk.commands)


def situations() -> Iterator[tuple[Engine, str, tuple[str, ...]]]:
    """Draw engines in which a service is down and held, its name, and the guards that `explain` names."""
    seed = 0
    while True:
        seed += 1
        r = Random(seed)
        fleet = draw_fleet(r)
        world = SimpleWorld(fleet, seed=seed, action_takes=(0.5, 20.0))
        world.lenient = True
        simulator = Simulator(fleet, world, seed=seed, watchers=[Laws(fold_every=0, ask_every=0)])
        faults = Faults(r, simulator, world)
        for _ in range(40):
            simulator.run(simulator.now + r.uniform(5.0, 60.0))
            if r.random() < 0.6:
                faults()
            if r.random() < 0.2:
                world.canaries = dict.fromkeys(world.canaries, r.random() < 0.5)
            engine = simulator.engine
            for name, condition in engine.ledger.conditions.items():
                policy = engine.ledger.policies[name]
                if condition.state is not State.FAILED or name in engine.ledger.unwatched or not policy.steps:
                    continue
                step = engine.repair.sight(policy).step
                answers = engine.explain(name)
                held = tuple(guard for guard, hold in answers if hold is not None)
                waits = condition.asked_at is not None and engine.now >= condition.asked_at + policy.approval_timeout
                if (
                    held
                    and step is not None
                    and step.action != MANUAL
                    and engine.ledger.acting(name) is None
                    and not waits
                ):
                    yield engine, name, held


@pytest.mark.slow
def test_flipping_all_guards_that_explain_names_lets_the_action_run_and_leaving_one_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    named: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    drawn = situations()
    while sum(sizes.values()) < SITUATIONS:
        engine, name, held = next(drawn)
        if min(named[guard] for guard in held) > SITUATIONS / 8:
            continue  # enough of these were seen: rarer ones are worth more
        named.update(held)
        sizes[len(held)] += 1
        assert runs(flipped(engine, set(held)), name), f"{name} is not acted on though {held} are flipped"
        for left in held:
            rest = set(held) - {left}
            assert not runs(flipped(engine, rest), name), f"{name} is acted on though {left} holds"
    with capsys.disabled():
        print(f"\n{sum(sizes.values())} situations; guards held at once: {dict(sorted(sizes.items()))}")
        print(f"held: {dict(named.most_common())}")
    assert set(named) == {guard.name for guard in GUARDS}, "a guard is never seen to hold"
