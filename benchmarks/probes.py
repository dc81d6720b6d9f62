"""What a wire check costs: CPU per check and lateness, as ratios to a paced C epoll loop of the same rounds.

    python benchmarks/probes.py                      # everything, about ten minutes
    python benchmarks/probes.py --rates 1000 --rounds 3 --seconds 3

The runner alone, under the smallest scheduler that keeps a grid; the engine and the journal come on top. Rounds are
interleaved (C, asyncio, trio, C, …), ratios taken within a round, and medians of them printed, because machines differ
and are shared: only ratios mean something. Needs gcc.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tracemalloc
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

import anyio
from yardstick import GRID, Yardstick, addresses, cpu, figures, many_files, numbers, yardstick

from selfheal.builtin.wire_checks import HttpCheck, RedisPing, TcpCheck
from selfheal.core.model import PASSING
from selfheal.shell.lanes import Lane
from selfheal.shell.names import Resolver
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.readiness import Readiness
from selfheal.testing import servers

KINDS: dict[str, Callable[[str], Any]] = {
    "tcp": lambda address: TcpCheck(address=address),
    "http": lambda address: HttpCheck(url=f"http://{address}/health"),
    "ping": lambda address: RedisPing(url=f"redis://{address}"),
}


class Pace:
    """Each lane once a second, on the grid; stops itself."""

    def __init__(self, seconds: float) -> None:
        self.runner = ProbeRunner(self.finished, lambda lane: None, Resolver())
        self.slots: list[list[Lane]] = [[] for _ in range(100)]
        self.seconds = seconds
        self.late: list[float] = []
        self.done = self.failed = 0
        self.used = 0.0
        self.tick = 0
        self.epoch = monotonic() + 0.05
        self.warm = False
        self.over = anyio.Event()
        self.healthy: set[Lane] | None = None

    def fill(self, checks: list[Any], timeout: float = 5.0) -> list[Lane]:
        lanes = [self.runner.lane(check, timeout, None) for check in checks]
        for number, lane in enumerate(lanes):
            self.slots[number * 100 // len(lanes)].append(lane)
        return lanes

    def finished(self, lane: Lane, result: Any, started: float, ended: float) -> None:
        self.done += 1
        if result is not PASSING:
            self.failed += 1

    def beat(self) -> float:
        now = monotonic()
        runner, late, healthy = self.runner, self.late, self.healthy
        while (due := self.epoch + self.tick * GRID) <= now:
            seconds = self.tick * GRID
            if not self.warm and seconds >= 1.0:
                self.warm = True
                self.used, self.done, self.failed = cpu(), 0, 0
                late.clear()
            if seconds >= 1.0 + self.seconds:
                self.used = cpu() - self.used
                self.over.set()
                return inf
            for lane in self.slots[self.tick % 100]:
                if lane.started is None:
                    runner.start(lane, now)
                    if healthy is None or lane in healthy:
                        assert lane.started is not None
                        late.append(lane.started - due)
            self.tick += 1
        runner.poll()
        runner.expire(now)
        at = runner.next_deadline()
        due = self.epoch + self.tick * GRID
        return due if at is None or at > due else at

    async def run(self) -> None:
        readiness = Readiness(self.runner.fd, self.runner.poll, self.beat)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(readiness.run)
            await self.over.wait()
            tasks.cancel_scope.cancel()
        self.runner.close()

    def report(self) -> str:
        return figures(self.done, self.failed, self.used, self.late)


def child(backend: str, kind: str, port: int, rate: int, seconds: float, mute: int, mute_address: str) -> None:
    """One round of ours, in a process of its own."""
    many_files()

    async def main() -> None:
        pace = Pace(seconds)
        lanes = pace.fill([KINDS[kind](address) for address in addresses(port, rate)])
        if mute:
            pace.healthy = set(lanes)
            pace.fill([RedisPing(url=f"redis://{mute_address}", keep=False) for _ in range(mute)])
        gc.collect()
        gc.freeze()
        await pace.run()
        print(pace.report())

    anyio.run(main, backend=backend)


def memory(port: int, kind: str, count: int = 1000) -> float:
    """Bytes of one service at rest, after two checks, check object included."""

    async def main() -> float:
        pace = Pace(1.5)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        pace.fill([KINDS[kind](address) for address in addresses(port, count)])
        runner = pace.runner
        readiness = Readiness(runner.fd, runner.poll, pace.beat)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(readiness.run)
            await pace.over.wait()
            tasks.cancel_scope.cancel()
        pace.late.clear()
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        runner.close()
        return each

    return asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="100,1000,10000")
    parser.add_argument("--kinds", default="tcp,http,ping")
    parser.add_argument("--backends", default="asyncio,trio")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        backend, kind, port, rate, seconds, mute, address = options.child
        child(backend, kind, int(port), int(rate), float(seconds), int(mute), address)
        return
    with yardstick() as c:
        compare(c, options)


def compare(c: Yardstick, options: argparse.Namespace) -> None:
    """Run the rounds and print the table."""
    port, seconds = c.port, str(options.seconds)
    backends = options.backends.split(",")
    print(f"{'rate':>6} {'kind':5} {'loop':8} {'us/check':>9} {'x C':>6} {'p50 ms':>7} {'p99 ms':>7}  failed")
    for rate in options.rates.split(","):
        for kind in options.kinds.split(","):
            found: dict[str, list[tuple[float, ...]]] = {"C": [], **{backend: [] for backend in backends}}
            for _ in range(options.rounds):
                found["C"].append(c.measure(kind, rate, seconds))
                for backend in backends:
                    found[backend].append(ours(backend, kind, port, rate, seconds))
            for name, rows in found.items():
                times = statistics.median(row[2] / c_row[2] for row, c_row in zip(rows, found["C"], strict=True))
                each, p50, p99 = (statistics.median(row[column] for row in rows) for column in (2, 3, 4))
                failed = int(sum(row[1] for row in rows))
                print(
                    f"{rate:>6} {kind:5} {name:8} {each:9.1f} {times:6.2f} {p50:7.2f} {p99:7.2f}  {failed}",
                    flush=True,
                )
    with servers.hang() as mute:
        for backend in backends:
            for count in ("0", "10"):
                rows = [ours(backend, "ping", port, "100", seconds, count, mute) for _ in range(options.rounds)]
                p99 = statistics.median(row[4] for row in rows)
                print(f"100 services and {count:>2} mute, {backend}: p99 of the healthy {p99:.2f} ms", flush=True)
    for kind in options.kinds.split(","):
        print(f"{kind}: {memory(int(port), kind):.0f} bytes a service, check and connection included", flush=True)


def ours(
    backend: str, kind: str, port: str, rate: str, seconds: str, mute: str = "0", address: str = ""
) -> tuple[float, ...]:
    return numbers([sys.executable, __file__, "--child", backend, kind, port, rate, seconds, mute, address])


if __name__ == "__main__":
    main()
