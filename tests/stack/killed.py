"""A manager in a process of its own, which is killed in the middle of an action."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs

from selfheal.core.model import Instance, Run
from selfheal.plugins import ActionContext, Context

SCRIPT = """
import anyio
from selfheal import Service, Supervisor
{lines}

async def main():
    service = Service("service", {options}, recovery_actions=[{step!r}], interval=0.2, timeout=0.15, recheck=0.05,
                      jitter=0.0, failure_threshold=2, min_failing_span=0.0, definite_span=0.0, start_grace=0.0)
    async with Supervisor([service], journal={journal!r}):
        await anyio.sleep(600.0)

anyio.run(main)
"""


@attrs.frozen(kw_only=True)
class Ended:
    """The workload of somebody who has ended."""

    kind: ClassVar[str] = "ended"

    async def inspect(self, context: Context) -> Instance:
        return Instance(id="old", run=Run.EXITED)

    async def restart(self, context: ActionContext) -> None:
        raise NotImplementedError


@contextmanager
def killed_afterwards(journal: Path, step: Mapping[str, Any], options: str, lines: str) -> Iterator[None]:
    """Have a manager of one service, called `service`, for the length of the block, and SIGKILL it then.

    `options` are what its `Service` is made with beside the ladder, and `lines` come before that, both as Python text.
    """
    script = SCRIPT.format(lines=lines, options=options, step=dict(step), journal=str(journal))
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root}
    )
    try:
        yield
        assert process.poll() is None, "it is in the middle of it"
    finally:
        process.kill()
        print(process.communicate(timeout=10.0)[1].decode())
