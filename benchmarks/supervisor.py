"""What the whole supervisor costs: CPU per check and lateness, beside a paced C loop and plain anyio of the same run.

    python benchmarks/supervisor.py                                       # everything, about twenty minutes
    python benchmarks/supervisor.py --rates 1000 --kinds tcp --rounds 3 --rows C,asyncio,anyio

Each service is checked once a second, without jitter, so that each has a grid point of its own to be late for. Rows:

    C         paced.c: the same checks as an epoll loop in C, on the same grid
    probes    our runner of wire checks alone, under the smallest scheduler that keeps a grid (benchmarks/probes.py)
    asyncio   the supervisor, its journal a file; `trio` likewise
    memory    the supervisor on asyncio without a journal: what it keeps is in memory
    anyio     what one writes by hand: a task for each service, `anyio.connect_tcp` in `fail_after`, nothing else; up
              to 1,000 a second, because it cannot keep up with ten times that

Rounds are interleaved, ratios are taken within a round, and medians of them printed, because machines differ and are
shared: only ratios mean something. CPU is that of the whole process, the thread of the journal included; lateness is
that of the beginning of a check, from the grid point at which it was due. Then a hundred services that answer, without
and with ten that never do, and the memory of a service. Needs gcc. The journal lies in `--folder`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
from probes import KINDS, ours
from yardstick import GRID, Yardstick, addresses, cpu, figures, many_files, numbers, yardstick

from selfheal import Service, Supervisor
from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.messages import CheckFinished
from selfheal.core.model import PASSING
from selfheal.testing import servers

WARM = 3.0
"""Seconds before counting: two checks of each service, and one flush of the journal."""

REQUESTS = {
    "http": b"GET /health HTTP/1.1\r\nHost: h\r\nUser-Agent: by-hand\r\nAccept: */*\r\nConnection: close\r\n\r\n",
    "ping": b"*1\r\n$4\r\nPING\r\n",
}


def fleet(kind: str, port: int, count: int, mute: int = 0, mute_address: str = "") -> list[Service]:
    """Return `count` services that answer and `mute` that never do, each checked once a second."""
    made = [
        Service(f"s{i}", check=KINDS[kind](address), interval=1.0, jitter=0.0)
        for i, address in enumerate(addresses(port, count))
    ]
    made += [
        Service(f"mute{i}", check=RedisPing(url=f"redis://{mute_address}", keep=False), interval=1.0, timeout=0.9)
        for i in range(mute)
    ]
    return made


# -- one round, in a process of its own --------------------------------------------------------------------------------


def results(running: Any, since: float, until: float) -> Iterator[CheckFinished]:
    """Yield what ended from `since` to before `until`, in journal time, of the services that answer."""
    for batch in running.journal.reader.batches():
        event = batch.input
        if isinstance(event, CheckFinished) and since <= event.at < until and event.service.startswith("s"):
            yield event


async def settle() -> None:
    """Warm up, then do what the daemon does: put what lives as long as the process out of the collector's sight."""
    await anyio.sleep(WARM)
    gc.collect()
    gc.freeze()
    await anyio.sleep(0.5)


async def supervise(
    kind: str, port: int, rate: int, seconds: float, journal: Path | None, mute: int, address: str
) -> None:
    """Let a supervisor check for a while, and report."""
    async with Supervisor(fleet(kind, port, rate, mute, address), journal=journal) as supervisor:
        running: Any = supervisor._running
        loop, engine = running.loop, running.engine
        await settle()
        begin, used = loop.at(), cpu()
        await anyio.sleep(seconds)
        end, used = loop.at(), cpu() - used
        phases = {name: watch.phase for name, watch in engine.desk.watches.items()}
        await anyio.sleep(1.5)  # what ended by then is stored by now
        late, failed = [], 0
        for event in results(running, begin, end):
            phase = phases[event.service]
            # The start that belongs to the last grid point before it; a millisecond for the rounding of the clocks.
            due = phase + (event.started + 0.001 - phase) // 1.0
            late.append(event.started - ceil(due / GRID - 1e-6) * GRID)
            failed += event.result is not PASSING and event.result.verdict is not PASSING.verdict
        print(figures(len(late), failed, used, late))


async def by_hand(kind: str, port: int, rate: int, seconds: float) -> None:
    """Do the same as people do at first: a task for each service."""
    late: list[float] = []
    failures = 0
    epoch = monotonic() + 0.5

    async def once(host: str, kept: list[Any]) -> None:
        with anyio.fail_after(5.0):
            stream = kept.pop() if kept else await anyio.connect_tcp(host, port)
            if kind != "tcp":
                await stream.send(REQUESTS[kind])
                answer = await stream.receive()
                assert answer.startswith((b"+PONG", b"HTTP/1.1 200"))
            if kind == "ping":
                kept.append(stream)
            else:
                await stream.aclose()

    async def watch(host: str, phase: float) -> None:
        nonlocal failures
        kept: list[Any] = []
        due = epoch + phase
        while True:
            await anyio.sleep(max(0.0, due - monotonic()))
            late.append(monotonic() - due)
            try:
                await once(host, kept)
            except (OSError, AssertionError, anyio.EndOfStream):
                failures += 1
            due += 1.0

    async with anyio.create_task_group() as tasks:
        for i, address in enumerate(addresses(port, rate)):
            tasks.start_soon(watch, address.partition(":")[0], i * 100 // rate * GRID)
        await settle()
        late.clear()
        failures, used = 0, cpu()
        await anyio.sleep(seconds)
        print(figures(len(late), failures, cpu() - used, late))
        tasks.cancel_scope.cancel()


def child(options: argparse.Namespace) -> None:
    """Run one round of ours and print its figures."""
    row, kind, port, rate, seconds, mute, address = options.child
    many_files()
    if row == "anyio":
        asyncio.run(by_hand(kind, int(port), int(rate), float(seconds)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        journal = None if row == "memory" else Path(folder) / "journal.db"
        backend = "asyncio" if row == "memory" else row
        anyio.run(supervise, kind, int(port), int(rate), float(seconds), journal, int(mute), address, backend=backend)


def memory(port: int, kind: str, folder: str | None, count: int = 1000) -> float:
    """Return bytes of one service of a supervisor at work: its nouns, state, schedule and connection."""

    async def main(where: str) -> float:
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        async with Supervisor(fleet(kind, port, count), journal=Path(where) / "journal.db") as supervisor:
            await anyio.sleep(WARM)
            running: Any = supervisor._running
            running.checks.cancel_all()
            await anyio.sleep(1.5)  # nothing waits for the store any more
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - before) / count
        tracemalloc.stop()
        return each

    with tempfile.TemporaryDirectory(dir=folder) as where:
        return asyncio.run(main(where))


# -- the rounds --------------------------------------------------------------------------------------------------------


def one(
    row: str, kind: str, rate: str, c: Yardstick, options: argparse.Namespace, mute: str = "0", address: str = ""
) -> tuple[float, ...]:
    """Run one round of one row in a process of its own; return its figures."""
    seconds = str(options.seconds)
    if row == "C":
        return c.measure(kind, rate, seconds)
    if row == "probes":
        return ours("asyncio", kind, c.port, rate, seconds)
    where = ["--folder", options.folder] if options.folder else []
    return numbers([sys.executable, __file__, *where, "--child", row, kind, c.port, rate, seconds, mute, address])


def times(rounds: list[tuple[float, ...]], others: list[tuple[float, ...]] | None) -> str:
    """Return how many times as much processor one row takes as another: the median of the ratios of each round."""
    if others is None:
        return "-"
    return f"{statistics.median(ours[2] / theirs[2] for ours, theirs in zip(rounds, others, strict=True)):.2f}"


def compare(c: Yardstick, options: argparse.Namespace) -> None:
    """Run the rounds and print the table."""
    print(
        f"{'rate':>6} {'kind':5} {'row':8} {'us/check':>9} {'x C':>6} {'x anyio':>8} {'p50 ms':>7} {'p99 ms':>8} "
        f"{'checks':>7}  failed"
    )
    for rate in options.rates.split(","):
        for kind in options.kinds.split(","):
            here = [row for row in options.rows.split(",") if row != "anyio" or int(rate) <= 1000]
            found: dict[str, list[tuple[float, ...]]] = {row: [] for row in here}
            for _ in range(options.rounds):
                for row in here:
                    found[row].append(one(row, kind, rate, c, options))
            for row, rounds in found.items():
                done, failed, each, p50, p99 = (statistics.median(column) for column in zip(*rounds, strict=True))
                print(
                    f"{rate:>6} {kind:5} {row:8} {each:9.1f} {times(rounds, found.get('C')):>6} "
                    f"{times(rounds, found.get('anyio')):>8} {p50:7.2f} {p99:8.2f} {done:7.0f}  {failed:.0f}",
                    flush=True,
                )


def deaf(c: Yardstick, options: argparse.Namespace) -> None:
    """Ten that never answer, among a hundred that do."""
    for backend in [row for row in options.rows.split(",") if row in ("asyncio", "trio")]:
        with servers.hang() as mute:
            found: dict[str, list[float]] = {"0": [], "10": []}
            for _ in range(options.rounds):
                for count, late in found.items():
                    late.append(one(backend, "tcp", "100", c, options, count, mute)[4])
        for count, late in found.items():
            p99 = statistics.median(late)
            print(f"100 services and {count:>2} mute, {backend}: p99 of the healthy {p99:.2f} ms", flush=True)


def main() -> None:
    """Build what is needed, run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="100,1000,10000")
    parser.add_argument("--kinds", default="tcp,http,ping")
    parser.add_argument("--rows", default="C,probes,asyncio,trio,memory,anyio")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", help="where the journal lies; by default the folder for temporary files")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    with yardstick() as c:
        compare(c, options)
        deaf(c, options)
        for kind in options.kinds.split(","):
            each = memory(int(c.port), kind, options.folder)
            print(f"{kind}: {each:.0f} bytes a service, everything included", flush=True)


if __name__ == "__main__":
    main()
