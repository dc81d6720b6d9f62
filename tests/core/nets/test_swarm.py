"""The swarm over the shipped engine, and the liveness laws by themselves."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from tests.core.nets import liveness, swarm

SEEDS = int(os.environ.get("SELFHEAL_NETS_SEEDS", "80"))
BLOCKS = 4


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_fleets_under_random_faults_keep_every_law(block: int, capsys: pytest.CaptureFixture[str]) -> None:
    total: Counter[str] = Counter()
    for seed in range(block, SEEDS, BLOCKS):
        with swarm.within(120.0):
            total += swarm.one(seed)
    with capsys.disabled():
        print(f"\nswarm, {SEEDS // BLOCKS} seeds: {dict(total)}")
    assert total["actions"] > SEEDS // BLOCKS
    assert total["crashes"] > SEEDS // BLOCKS


def test_everything_recoverable_is_repaired_in_time_and_then_the_journal_is_quiet() -> None:
    with swarm.within(120.0):
        actions = sum(liveness.one(seed) for seed in range(int(os.environ.get("SELFHEAL_NETS_SEEDS", "120"))))
    assert actions > 120
