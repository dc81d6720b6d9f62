"""The script of `test_process_crash`: a manager that is killed at one of its steps."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from selfheal.builtin import launch, proc
from selfheal.builtin.launch import Launcher
from selfheal.builtin.process import ProcessWorkload
from selfheal.testing.crashes import CrashPoint, around


@attrs.define(kw_only=True)
class Context:
    """As much of a context as the workload asks for."""

    service: str = "importer"
    remaining: float = 60.0
    key: str = "crashed"
    expected: object = None
    arguments: Mapping[str, Any] = attrs.field(factory=lambda: {"to": 1})


def manage(crash_point: CrashPoint, folder: str, verb: str, dawdle: int, *command: str) -> None:
    """Do what `verb` says, once. Every change on disk, every start and every signal is a step, before and after; so
    are the points between the four steps of a start."""

    def step(*_: object) -> None:
        crash_point("step")

    class Crashing(ProcessWorkload):
        def _launcher(self, service: str) -> Launcher:
            extra: dict[str, Any] = {"spawn": _fork_and_dawdle} if dawdle else {}
            return attrs.evolve(super()._launcher(service), pause=step, **extra)

    workload = Crashing(command=command, state_directory=Path(folder), stop_timeout=5.0)
    with ExitStack() as stack:
        stack.enter_context(around(step, launch.Launcher, "write", "try_lock"))
        stack.enter_context(around(step, proc, "deliver"))
        asyncio.run(getattr(workload, verb)(Context()))


def _fork_and_dawdle(
    arguments: Sequence[str], *, environment: Mapping[str, str], cwd: Path | None, stdin: int, output: int
) -> int:
    """The worst instant: killed between fork and exec, with a child that is not the program for a while yet."""
    if os.fork() == 0:
        os.setsid()
        for given, wanted in ((stdin, 0), (output, 1), (output, 2)):
            os.dup2(given, wanted)
        os.closerange(3, 100)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1.0)
        os.execve(arguments[0], list(arguments), dict(environment))
    time.sleep(60)
    raise AssertionError("the child did not kill its manager")
