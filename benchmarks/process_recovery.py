"""How long after SIGKILL a death is heard, and how long until a new process runs; and what running a command costs.

Run it alone: `python benchmarks/process_recovery.py [kills]`. Times are milliseconds: median, least, most. The death
is heard twice: of a child of ours, and of a process that an earlier manager had started and ours has adopted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs

from selfheal.builtin import proc
from selfheal.builtin.command import CommandCheck
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.spawn import run

STARTER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from process_recovery import given, workload
asyncio.run(workload(sys.argv[2]).start(given()))
"""


@attrs.define(kw_only=True)
class _Given:
    """As much of a context as these plugins read."""

    service: str = "sleeper"
    remaining: float = 30.0
    key: str = "benchmark"
    expected: None = None
    arguments: dict[str, Any] = attrs.field(factory=dict)


def given() -> Any:
    """Return it as whatever kind of context is asked for."""
    return _Given()


def workload(folder: str) -> ProcessWorkload:
    """A program that is there as soon as it is started, so that what is measured is ours."""
    return ProcessWorkload(command=["sleep", "600"], state_directory=Path(folder), output=Path(os.devnull))


def told(what: str, seconds: list[float]) -> None:
    milliseconds = sorted(each * 1000 for each in seconds)
    print(f"{what:<58} {statistics.median(milliseconds):8.2f} [{milliseconds[0]:.2f}-{milliseconds[-1]:.2f}]")


def alone(instance_id: str) -> proc.Identity:
    pid, start = instance_id.split(":")
    return proc.Identity(int(pid), int(start))


async def deaths(kills: int, *, adopted: bool) -> None:
    heard, restarted = [], []
    with tempfile.TemporaryDirectory() as folder:
        process = workload(folder)
        for _ in range(kills):
            if adopted:
                here = str(Path(__file__).parent)
                await asyncio.to_thread(
                    subprocess.run, [sys.executable, "-c", STARTER, here, folder], check=True, timeout=30
                )
            else:
                await process.start(given())
            victim = alone((await process.inspect(given())).id)
            watch = process.watch(given())
            dying = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.1)
            killed = time.perf_counter()
            if not proc.deliver(victim, signal.SIGKILL):
                raise RuntimeError("it was gone before it was killed")
            instance = await dying
            heard.append(time.perf_counter() - killed)
            await process.restart(given())
            restarted.append(time.perf_counter() - killed)
            if (await process.inspect(given())).id == instance.id:
                raise RuntimeError("it was not restarted")
            await watch.aclose()  # type: ignore[attr-defined]
            await process.release(given(), stopping=True)
    who = "adopted process" if adopted else "own child"
    told(f"SIGKILL to watch event, {who}", heard)
    told(f"SIGKILL to restarted and written down, {who}", restarted)


async def commands(count: int) -> None:
    plain, checks, spent = [], [], time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        await run(["true"], timeout=10, environment={"PATH": os.defpath})
        plain.append(time.perf_counter() - began)
    spent = time.process_time() - spent
    check = CommandCheck(command=["true"])
    for _ in range(count):
        began = time.perf_counter()
        await check.check(given())
        checks.append(time.perf_counter() - began)
    told("run `true`", plain)
    told("CommandCheck of `true`", checks)
    print(f"{'processor of ours for each run of `true`, ms':<58} {spent / count * 1000:8.2f}")


async def looks(count: int) -> None:
    everybody, one = [], []
    for _ in range(count):
        began = time.perf_counter()
        seen = sum(1 for _ in proc.everyone())
        everybody.append(time.perf_counter() - began)
        began = time.perf_counter()
        proc.look(os.getpid())
        one.append(time.perf_counter() - began)
    told("look at one process", one)
    told(f"look at all {seen} processes", everybody)


async def main(kills: int) -> None:
    await deaths(kills, adopted=False)
    await deaths(kills, adopted=True)
    await commands(kills * 10)
    await looks(kills)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
