"""The demo is the main job on real input, and its own test: it must notice when the engine does harm."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def stack() -> set[int]:
    """Return the processes of demonstrations, wherever they hang by now."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if b"demo_stack.py" in command:
            found.add(int(entry.name))
    return found


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_whoever_ends_the_demo_ends_its_programs(number: signal.Signals) -> None:
    """A closed terminal, too: and nothing can be printed there any more."""
    ours, terminal = pty.openpty()
    others = stack()
    demo = subprocess.Popen(
        [sys.executable, "-m", "selfheal", "demo", "--fast"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    try:
        end = time.monotonic() + 20.0
        while len(stack() - others) < 4:
            os.read(ours, 65536)  # it draws all the time
            assert time.monotonic() < end, "its stack does not come up"
        os.close(ours)
        demo.send_signal(number)
        demo.wait(30.0)
        assert stack() <= others
    finally:
        demo.kill()
        demo.wait(10.0)
