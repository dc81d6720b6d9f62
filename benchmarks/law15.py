"""Law 15 in figures: what bad plugins cost the good ones, and what one check costs.

    python benchmarks/law15.py [backend ...]

Twenty good plugins answer every 100 ms, each in 5 ms, beside one bad one. `late` is how long after its time a good
check began, `answer` how long the host waited for it; both in milliseconds.
"""

# ruff: noqa: ASYNC251  # blocking a loop is the subject
from __future__ import annotations

import argparse
import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar

import anyio
import attrs

from selfheal.core.model import PASSING, CheckResult
from selfheal.plugins import CheckContext
from selfheal.shell.contexts import Contexts
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.plugin_thread import Ending, Outcome, Report
from selfheal.shell.results import Scrubber, checked

GOOD = 20
PERIOD = 0.1
SECONDS = 6.0
TIMEOUT = 1.0


async def good() -> bool:
    await asyncio.sleep(0.005)
    return True


async def blocks() -> None:
    time.sleep(2.5)


async def never_returns() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):  # the fault on show
            await asyncio.sleep(3600.0)


async def raises_system_exit() -> None:
    raise SystemExit(3)


spinning = threading.Event()


async def spins_in_a_thread() -> None:
    if not spinning.is_set():
        spinning.set()
        threading.Thread(target=_spin, daemon=True).start()


def _spin() -> None:
    while spinning.is_set():
        pass


@attrs.define
class Tally:
    late: list[float] = attrs.field(factory=list)
    answer: list[float] = attrs.field(factory=list)
    wrong: int = 0

    async def watch(self, loops: PluginLoops, owner: str, make: Callable[[], Awaitable[object]], end: float) -> None:
        """Call one good plugin every period and note how it went."""
        due = time.monotonic()
        while due < end:
            await anyio.sleep(max(0.0, due - time.monotonic()))
            asked = time.monotonic()
            outcome = await loops.run(owner, make, timeout=TIMEOUT)
            self.late.append(outcome.started - due)
            self.answer.append(time.monotonic() - asked)
            self.wrong += outcome.ending is not Ending.VALUE
            due = max(due + PERIOD, time.monotonic())


async def bad_one(loops: PluginLoops, make: Callable[[], Awaitable[object]], end: float, seen: list[Outcome]) -> None:
    while time.monotonic() < end:
        seen.append(await loops.run("bad", make, timeout=TIMEOUT))
        await anyio.sleep(PERIOD)


async def beside(bad: Callable[[], Awaitable[object]] | None) -> None:
    tally, reports, seen = Tally(), list[Report](), list[Outcome]()
    loops = PluginLoops(poke=poke_here(), told=reports.append)
    end = time.monotonic() + SECONDS
    async with anyio.create_task_group() as group:
        for number in range(GOOD):
            group.start_soon(tally.watch, loops, f"good-{number}", good, end)
        if bad is not None:
            group.start_soon(bad_one, loops, bad, end, seen)
    spinning.clear()
    await loops.aclose(1.0)
    name = bad.__name__ if bad is not None else "nobody"
    said = ", ".join(sorted({f"{report.owner or '?'} {report.kind}" for report in reports if report.kind != "stuck"}))
    print(f"  {name:<20} late {_spread(tally.late)}  answer {_spread(tally.answer)}  n {len(tally.late)}", end="")
    print(f"  wrong {tally.wrong}  named: {said or '-'}")


def _spread(values: list[float]) -> str:
    ordered = sorted(values)
    picks = (ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1])
    return " ".join(f"{name} {value * 1e3:6.1f}" for name, value in zip(("p50", "p99", "max"), picks, strict=True))


class Trivial:
    kind: ClassVar[str] = "trivial"

    async def check(self, context: CheckContext) -> CheckResult:
        return PASSING


async def cost(count: int = 5000) -> None:
    contexts, check = Contexts(), Trivial()
    loops = PluginLoops(poke=poke_here(), kept=contexts.kept)
    scrubber = Scrubber(check)

    def make() -> Awaitable[object]:
        return checked(check, contexts.for_check("trivial", check, 5.0), scrubber)

    await loops.run("trivial", make, timeout=5.0)
    one, cpu = time.monotonic(), time.process_time()
    for _ in range(count):
        await loops.run("trivial", make, timeout=5.0)
    one, one_cpu = time.monotonic() - one, time.process_time() - cpu

    ended, left = anyio.Event(), count

    def done(_: Outcome) -> None:
        nonlocal left
        left -= 1
        if not left:
            ended.set()

    many, cpu = time.monotonic(), time.process_time()
    for _ in range(count):
        loops.submit("trivial", make, timeout=5.0, done=done)
    await ended.wait()
    many, many_cpu = time.monotonic() - many, time.process_time() - cpu
    await loops.aclose()
    for name, wall, spent in (("one after the other", one, one_cpu), ("all at once", many, many_cpu)):
        print(f"  {name:<20} {wall / count * 1e6:6.1f} us a check, {spent / count * 1e6:6.1f} us of processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", default=["asyncio", "trio"])
    for backend in parser.parse_args().backends:
        print(f"{backend}: {GOOD} good plugins beside")
        for bad in (None, blocks, spins_in_a_thread, never_returns, raises_system_exit):
            anyio.run(partial(beside, bad), backend=backend)
        print(f"{backend}: one trivial check")
        anyio.run(cost, backend=backend)


if __name__ == "__main__":
    main()
