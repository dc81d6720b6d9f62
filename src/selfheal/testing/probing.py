"""Wire checks on the real runner, under whatever event loop the test runs.

async with probing() as probes:
    result = await probes.check(MyCheck(address=address), 2.0)
"""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf
from time import monotonic

import anyio
import anyio.lowlevel

from selfheal.core.model import CheckResult
from selfheal.shell.lanes import Lane
from selfheal.shell.names import Resolver
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.readiness import Readiness
from selfheal.wire import WireCheck


class Probes:
    """A runner that is being turned; made by `probing`."""

    def __init__(self, resolver: Resolver) -> None:
        self.runner = ProbeRunner(self._finished, self._lose, resolver)
        self.lost: list[Lane] = []
        """The lanes whose kept connection broke at rest, in order."""
        self.latency: dict[Lane, float] = {}
        """Seconds the last check of each lane took."""
        self.readiness = Readiness(self.runner.fd, self._poll, self._beat)
        self._results: dict[Lane, CheckResult] = {}
        self._ended: dict[Lane, anyio.Event] = {}

    async def check(self, check: WireCheck, timeout: float = 2.0, *, near: bool | None = None) -> CheckResult:
        """Run one check on a lane of its own, and forget the lane. `near` overrides how it connects."""
        lane = self.runner.lane(check, timeout, None)
        if near is not None:
            lane.near = near
        try:
            return await self.again(lane)
        finally:
            self.runner.forget(lane)

    async def again(self, lane: Lane) -> CheckResult:
        """Run a check on a lane of `runner.lane`, on its kept connection if there is one."""
        ended = self._ended[lane] = anyio.Event()
        now = monotonic()
        self.runner.start(lane, now)
        self._hasten()
        try:
            await ended.wait()
        finally:
            self.runner.cancel(lane)
            del self._ended[lane]
        return self._results.pop(lane)

    def _finished(self, lane: Lane, result: CheckResult, started: float, ended: float) -> None:
        self.latency[lane] = ended - started
        self._results[lane] = result
        if lane in self._ended:
            self._ended[lane].set()

    def _lose(self, lane: Lane) -> None:
        self.lost.append(lane)

    def _poll(self) -> None:
        self.runner.poll()
        self._hasten()

    def _hasten(self) -> None:
        at = self.runner.next_deadline()
        if at is not None:
            self.readiness.sooner(at)

    def _beat(self) -> float:
        self.runner.poll()
        self.runner.expire(monotonic())
        at = self.runner.next_deadline()
        return inf if at is None else at


class Turned:
    """A runner without an event loop, turned by hand; what it tells is in `told`, `times` and `lost`."""

    def __init__(self, resolver: Resolver | None = None) -> None:
        self.told: list[tuple[Lane, CheckResult]] = []
        self.times: list[tuple[float, float]] = []
        self.lost: list[Lane] = []
        self.then: Callable[[Lane], None] = lambda lane: None
        """Called with each lane that is told, from inside the flush."""
        self.runner = ProbeRunner(self._finished, self.lost.append, resolver or Resolver())

    def _finished(self, lane: Lane, result: CheckResult, started: float, ended: float) -> None:
        self.told.append((lane, result))
        self.times.append((started, ended))
        self.then(lane)

    def turn(self, until: Callable[[], bool], patience: float = 5.0) -> None:
        """Do what a loop does, until a condition holds."""
        end = monotonic() + patience
        while not until():
            assert monotonic() < end, "the condition did not come true"
            at = self.runner.next_deadline()
            wait = 0.05 if at is None else max(0.0, min(0.05, at - monotonic()))
            select.select([self.runner.fd], [], [], wait)
            self.runner.poll()
            self.runner.expire(monotonic())

    def run(self, check: WireCheck | Lane, timeout: float = 2.0) -> CheckResult:
        """Run one check, on its lane or on a new one, and return its result."""
        lane = check if isinstance(check, Lane) else self.runner.lane(check, timeout, None)
        before = len(self.told)
        self.runner.start(lane, monotonic())
        self.turn(lambda: len(self.told) > before)
        assert self.told[-1][0] is lane
        return self.told[-1][1]


@asynccontextmanager
async def probing(resolver: Resolver | None = None) -> AsyncIterator[Probes]:
    """Turn a runner for the length of the block, and close it."""
    probes = Probes(resolver or Resolver())
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(probes.readiness.run)
            await anyio.lowlevel.checkpoint()
            yield probes
            tasks.cancel_scope.cancel()
    finally:
        probes.runner.close()
