"""A manager that is killed: one supervisor, one program, faults by a script, and a SIGKILL at one named moment.

Run as a program by `test_manager_killed`: folder, backend, moment, occurrence. What actions did is written to
`effects` beside the journal, before and after, so that the test knows what happened whatever the journal says.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs

from selfheal import ActionContext, Service, Supervisor
from selfheal.builtin.launch import Launcher
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.process_check import ProcessCheck
from selfheal.core.model import Backoff, Budget, Limits
from selfheal.journal import Journal, Pace

FAULTS = 2
MANY = (Budget(limit=1000, per=3600.0),)
LIMITS = Limits(budget_floor=1000)


class Fate:
    """Kills this process when a moment comes for the n-th time."""

    def __init__(self, moment: str, occurrence: int) -> None:
        self._moment = moment
        self._left = occurrence

    def __call__(self, moment: str) -> None:
        if moment == self._moment:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


FATE = Fate("", 0)


@attrs.frozen(kw_only=True)
class MortalWorkload(ProcessWorkload):
    """A program of ours whose manager may die at every point of an act."""

    def _launcher(self, service: str) -> Launcher:
        launcher = super()._launcher(service)
        launcher.pause = lambda point: FATE(f"launch:{point}")
        return launcher

    async def restart(self, context: ActionContext) -> None:
        FATE("action:before")
        effect(self.state_directory, f"begun {context.key}")
        await super().restart(context)
        FATE("action:after")
        effect(self.state_directory, f"done {context.key}")


def effect(folder: Path | None, line: str) -> None:
    assert folder is not None
    with (folder.parent / "effects").open("a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def service(folder: Path) -> Service:
    """Return the service, whose timers are far below those of a person."""
    return Service(
        "program",
        check=ProcessCheck(restarts=1000),
        workload=MortalWorkload(
            command=["sleep", "600"], state_directory=folder / "processes", stop_with_selfheal=False, stop_timeout=1.0
        ),
        recovery_actions=[{"action": "restart", "settle": 0.05, "timeout": 5.0}],
        interval=0.2,
        timeout=0.15,
        recheck=0.05,
        jitter=0.0,
        failure_threshold=2,
        success_threshold=1,
        min_failing_span=0.0,
        definite_span=0.0,
        probation=2.0,
        max_retries=1000,
        flapping=MANY,
        budgets=MANY,
        backoff=Backoff(initial=0.1, multiplier=2.0, cap=1.0, jitter=0.0),
    )


def supervisor(folder: Path) -> Supervisor:
    return Supervisor([service(folder)], journal=folder / "selfheal.db", share=False, seed=7, limits=LIMITS)


async def until_healthy(supervisor: Supervisor, not_pid: int = 0) -> int:
    """Wait until the program is healthy, and another process than before; return its pid."""
    end = time.monotonic() + 15.0
    while time.monotonic() < end:
        asked = await supervisor.ask("service", service="program")
        running = supervisor._running
        assert running is not None
        if asked["state"] == "healthy":
            instance = await running.actions.look(running.roster.entries["program"])
            pid = int(instance.id.partition(":")[0]) if instance.run == "running" else 0
            if pid not in (0, not_pid):
                return pid
        await anyio.sleep(0.02)
    raise AssertionError(f"not healthy: {asked}")


async def live(folder: Path) -> None:
    async with supervisor(folder) as manager:
        pid = await until_healthy(manager)
        for _ in range(FAULTS):
            os.kill(pid, signal.SIGKILL)
            pid = await until_healthy(manager, pid)
        await manager.act("silence", services=["program"], actor="alice", reason="a test", duration=1.0)


def mortal_open(cls: type[Journal], path: Path | str, /, *, changed: Any = None, **more: Any) -> Journal:
    return OPEN(path, changed=changed, crash_point=FATE, pace=Pace(flush=0.1, tend=0.2))


OPEN = Journal.open

if __name__ == "__main__":
    FATE = Fate(sys.argv[3], int(sys.argv[4]))
    setattr(Journal, "open", classmethod(mortal_open))  # noqa: B010  # mypy: a method is not assigned
    anyio.run(partial(live, Path(sys.argv[1])), backend=sys.argv[2])
