"""Where a plugin under test plays: the real plugin loop, on every kind of host, with everything counted.

Owns the runs behind `selfheal.testing.conformance`, and the counting of descriptors, threads, tasks and processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import anyio
import attrs

from selfheal.builtin import proc
from selfheal.core.model import CheckResult
from selfheal.plugins import HealthCheck
from selfheal.shell.contexts import Contexts
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.plugin_thread import Call, Kind, Outcome, Report
from selfheal.shell.results import of_outcome
from selfheal.shell.threads import LOOPS
from selfheal.testing import servers
from selfheal.testing.converse import converse
from selfheal.wire import WireCheck

SERVICE: Final = "conformance"

LOOP_DESCRIPTORS: Final = 3
"""Descriptors that one asyncio loop keeps open: an epoll, and a pair of sockets to be woken by."""

FAULTS: Final[dict[str, Callable[[], AbstractContextManager[str]]]] = {
    "refused": servers.refuse,
    "hole": servers.black_hole,
    "silent": servers.hang,
    "garbage": servers.garbage,
    "reset": servers.reset,
    "drip": partial(servers.drip, b"x" * 10_000, 0.05),
    "endless": servers.endless_body,
}
"""What can be wrong with a peer: it refuses, is a black hole (no connection comes about, and none is refused), accepts
and says nothing, says nonsense, resets in the middle of its answer, says one byte at a time, or never stops."""

HANGING: Final = ("hole", "silent", "drip", "endless")
"""The faults of a peer that end nothing by themselves: only a deadline does."""

Road: TypeAlias = Literal["check", "talk"]
"""The two ways in which a check may be written; a class may have both."""


def roads_of(plugin: object) -> tuple[Road, ...]:
    """Return the roads of a check."""
    roads: list[Road] = ["check"] if isinstance(plugin, HealthCheck) and callable(plugin.check) else []
    return (*roads, "talk") if callable(getattr(plugin, "talk", None)) else tuple(roads)


class Stage:
    """One host, its plugin loops, and what was reported there."""

    def __init__(self) -> None:
        self.contexts = Contexts()
        self.reports: list[Report] = []
        self.loops = PluginLoops(poke=poke_here(), told=self.reports.append, kept=self.contexts.kept)

    async def check(self, plugin: HealthCheck | WireCheck, timeout: float) -> Outcome:
        """Run a check once; its outcome is raw, neither translated nor scrubbed."""
        return await self.loops.run(SERVICE, self.make_check(plugin, timeout), timeout=timeout)

    def make_check(
        self, plugin: HealthCheck | WireCheck, timeout: float, road: Road | None = None
    ) -> Callable[[], Awaitable[object]]:
        """Return what makes the coroutine of one check; a wire check is conversed with.

        Of a check with two roads `road` is taken, by default its `check`. That is its thorough one, and is told so.
        """
        roads = roads_of(plugin)
        some: Any = plugin
        if (road or roads[0]) == "talk":
            return lambda: converse(some, timeout)
        return lambda: some.check(self.contexts.for_check(SERVICE, plugin, timeout, deep=len(roads) > 1))

    async def run(self, make: Callable[[], Awaitable[object]], timeout: float, kind: Kind = "other") -> Outcome:
        """Run any coroutine of a plugin."""
        return await self.loops.run(SERVICE, make, timeout=timeout, kind=kind)

    async def cancelled_after(
        self, seconds: float, make: Callable[[], Awaitable[object]], kind: Kind = "check"
    ) -> tuple[Outcome, float]:
        """Start a coroutine, cancel it after `seconds`; return its outcome and how long the cancelling took."""
        ended = anyio.Event()
        heard: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            heard.append(outcome)
            ended.set()

        call: Call = self.loops.submit(SERVICE, make, timeout=60.0, done=done, kind=kind)
        with anyio.move_on_after(seconds):
            await ended.wait()
        began = time.monotonic()
        call.cancel()
        await ended.wait()
        return heard[0], time.monotonic() - began

    async def longest_gap(self, make: Callable[[], Awaitable[object]], timeout: float, kind: Kind = "check") -> float:
        """Run a coroutine; return the longest time, in seconds, that its loop did nothing else meanwhile."""
        gap, over = 0.0, threading.Event()

        async def tick() -> None:
            nonlocal gap
            before = time.monotonic()
            while not over.is_set():
                await asyncio.sleep(0.002)
                now = time.monotonic()
                gap, before = max(gap, now - before), now

        async def both() -> None:
            ticking = asyncio.ensure_future(tick())
            await asyncio.sleep(0.01)
            try:
                await make()
            finally:
                await asyncio.sleep(0.005)
                over.set()
                await ticking

        await self.loops.run(SERVICE, both, timeout=timeout + 1.0, kind=kind)
        return gap

    async def open_now(self) -> Open:
        """Close what is kept and count what is open: by the second time nothing may have been added.

        Our own loops are left out of the count: one more of them, made when a busy machine put the plugin on a loop of
        its own, is nothing that the plugin has left behind. What it leaves on any of them counts.
        """
        await self.loops.close_kept(SERVICE)

        async def tasks() -> tuple[int, int]:
            mine = asyncio.current_task()
            return id(asyncio.get_running_loop()), sum(task is not mine for task in asyncio.all_tasks())

        left: dict[int, int] = {}
        kinds: tuple[Kind, ...] = ("check", "action")  # each has a loop of its own
        for owner in (f"{SERVICE}-count", SERVICE):  # the loop of all, and the one where the plugin may be alone
            for kind in kinds:
                counted = await self.loops.run(owner, tasks, timeout=5.0, kind=kind)
                if isinstance(counted.value, tuple):
                    left.update([counted.value])
        gc.collect()
        names = [thread.name for thread in threading.enumerate()]
        loops = sum(name.startswith(LOOPS) for name in names)
        return Open(
            descriptors=descriptors() - LOOP_DESCRIPTORS * loops,
            threads=sum(not name.startswith(("selfheal-", "fault-server")) for name in names),
            tasks=sum(left.values()),
            processes=len(children()),
        )

    async def settled(self, before: Open, seconds: float) -> Open:
        """Count until nothing has been added to `before`, at most so many seconds; return the last count."""
        end = time.monotonic() + seconds
        while (now := await self.open_now()).more_than(before) and time.monotonic() < end:  # noqa: ASYNC110  # closing sets no event
            await anyio.sleep(0.02)
        return now

    def named(self, *kinds: str) -> list[str]:
        """Return what was reported, of these kinds."""
        return [str(report) for report in self.reports if report.kind in kinds]


@attrs.frozen(kw_only=True)
class Open:
    """What is open in this process."""

    descriptors: int
    threads: int
    tasks: int
    processes: int

    def more_than(self, other: Open) -> dict[str, int]:
        """Return what there is more of than in `other`, and how much."""
        mine, theirs = attrs.asdict(self), attrs.asdict(other)
        return {name: mine[name] - theirs[name] for name in mine if mine[name] > theirs[name]}


def on_every_host(body: Callable[[Stage], Awaitable[None]]) -> None:
    """Run `body` on an asyncio host and, where trio is installed, on a trio host; the plugin is on asyncio in both."""

    async def staged() -> None:
        stage = Stage()
        try:
            await body(stage)
        finally:
            await stage.loops.aclose(2.0)
            stage.contexts.threads.close()

    for backend in ("asyncio", "trio"):
        if backend == "asyncio" or importlib.util.find_spec("trio") is not None:
            anyio.run(staged, backend=backend)


def verdict_of(outcome: Outcome) -> CheckResult:
    """Return what the runner makes of a raw outcome."""
    return of_outcome(outcome, timeout=outcome.ended - outcome.started)


def descriptors() -> int:
    """Return how many descriptors this process has open.

    Not counted are those through which a thread of ours (the watchdog) happens to look at the process itself.
    """
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, as is the one through which we look
            found += not str(entry.readlink()).startswith(f"/proc/{os.getpid()}/")
    return found


def children() -> set[int]:
    """Return the processes that descend from this one and still run."""
    parents = {seen.identity.pid: seen.parent for seen in proc.everyone() if seen.state != "Z"}
    found = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {os.getpid()}
