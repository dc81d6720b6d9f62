"""The demo is the main job on real input, and its own test: it must notice when the engine does harm."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

PRELUDE = """
import sys
import attrs
from selfheal.core import guards
from selfheal.core.guards import GUARDS, Guard
from selfheal.core.repair import Repair
from selfheal.shell import actions

def without(name, ask=lambda sight: None):
    Repair.guards = tuple(attrs.evolve(g, ask=ask) if g.name == name else g for g in GUARDS)
"""

STALE = """
from selfheal.core.ledger import WELL, hard
from selfheal.core.model import Hold

def stale(sight):
    for dependency in hard(sight.policy):
        for name in dependency.services:
            if sight.ledger.conditions[name].state not in WELL:
                return Hold(reason=f"waiting-for:{name}", wake=(f"service:{name}",))
    return None

without("parents", stale)
"""

BREAKS = {
    "parents": 'without("parents")',
    "freshness": STALE,
    "budget": 'without("budget")',
    "flapping": 'without("flapping")',
    "instance-in-the-runner": "actions._refusal = lambda instance, expected: None",
    "instance-in-the-engine": 'without("workload")',
}
"""Name -> what switches one guard off."""

RUN = """
from selfheal.cli.demo import main
sys.exit(main(fast=True))
"""


def play(prelude: str = "") -> tuple[int, str, float]:
    """Run the fast demo in a process of its own; return its status, what it printed and how long it took."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + prelude + RUN], capture_output=True, text=True, timeout=150, check=False
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


@pytest.mark.real_time
@pytest.mark.slow
def test_every_fault_is_healed_as_the_laws_demand_in_under_a_minute() -> None:
    status, printed, took = play()

    assert status == 0, printed
    assert took < 60.0, f"{took:.0f} s"
    assert "8 faults, 8 handled as the laws demand" in printed
    assert "api was not restarted: waiting-for:store" in printed
    assert "you are told" in printed


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.parametrize("guard", BREAKS)
def test_the_demo_fails_when_a_guard_is_switched_off(guard: str) -> None:
    status, printed, _ = play(BREAKS[guard])

    assert status == 1, printed
    assert "WRONG" in printed
