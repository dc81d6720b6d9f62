"""What the engine costs: an ordinary check and a failure, in time and in bytes, from 10 to 100,000 services.

    python benchmarks/engine.py                        # about two minutes
    python benchmarks/engine.py --most 1000 --rounds 3

The host is as plain as can be: it wakes on a grid of 10 ms and answers at once. What is measured is the time inside
`receive`: `result` is one passing result of a healthy service, `wake` its share of the wake-up that asked for it,
`failing` one event of a service that fails, is confirmed, restarted and verified while all others pass. Making the
event is the host's. Rounds go over all sizes in turn and medians are shown, each round without its slowest hundredth,
because machines are shared: what means something is the ratio to the smallest fleet, and to the bare call of a function
that returns a pair.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tracemalloc
from collections.abc import Iterable
from math import ceil
from time import perf_counter

from selfheal.core.engine import Engine
from selfheal.core.messages import (
    ActionFinished,
    CheckFinished,
    Command,
    Event,
    Output,
    RunAction,
    RunCheck,
    Started,
    TimePassed,
)
from selfheal.core.model import PASSING, Cause, CheckResult, Fleet, Limits, Policy, Settled, State, Step, Verdict

FAILING = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE, summary="refused")
GRID = 0.010
ILL = 10
"""How many services fail at once in the failing part, whatever the size of the fleet."""


def fleet(count: int) -> Fleet:
    """Return a fleet of `count` equal services; no storm, flapping or budget, because they are not the subject."""
    policies = tuple(
        Policy(name=f"s{i}", steps=(Step(action="restart"),), budgets=(), flapping=(), probation=0.0)
        for i in range(count)
    )
    return Fleet(
        policies=policies, limits=Limits(storm_floor=1_000_000, max_concurrent_recoveries=ILL, budget_floor=999_999)
    )


class Host:
    """Feeds one engine of `count` services, and adds up the time spent in it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.engine = Engine()
        self.ill: set[str] = set()
        self.wanted: list[Command] = []
        self.forget()
        self.take(self.engine.receive(Started(at=0.0, fleet=fleet(count))))
        self.checks_done(3 * count)

    def forget(self) -> None:
        """Begin to count anew."""
        self.waking: list[float] = []
        self.passing: list[float] = []
        self.failing: list[float] = []
        self.checks = 0

    def checks_done(self, checks: int) -> None:
        """Go on until `checks` ordinary checks are done."""
        self.forget()
        while self.checks < checks:
            self.turn()

    def turn(self) -> None:
        """Answer what was asked for; if nothing was, wake at the first grid point with something due."""
        engine, receive = self.engine, self.engine.receive
        if not self.wanted:
            wake = TimePassed(at=ceil(engine.deadline / GRID) * GRID)
            begun = perf_counter()
            output = receive(wake)
            self.waking.append(perf_counter() - begun - CLOCK)
            self.take(output)
            return
        asked, self.wanted = self.wanted, []
        events = [answer for command in asked if (answer := self.answer(command)) is not None]
        passing = [event for event in events if not self.suffers(event)]
        begun = perf_counter()
        outputs = [receive(event) for event in passing]
        self.passing.append(perf_counter() - begun - CLOCK)
        self.checks += len(passing)
        self.take(*outputs)
        for event in events:
            if self.suffers(event):
                begun = perf_counter()
                output = receive(event)
                self.failing.append(perf_counter() - begun - CLOCK)
                self.take(output)

    def take(self, *outputs: Output) -> None:
        """Remember what is commanded."""
        for output in outputs:
            self.wanted += output.commands

    def suffers(self, event: Event) -> bool:
        """Whether an event belongs to the failure path."""
        if not isinstance(event, CheckFinished):
            return True
        return event.result is FAILING or self.engine.ledger.conditions[event.service].state is not State.HEALTHY

    def answer(self, command: Command) -> Event | None:
        """Return the end of what is commanded: who is ill fails until it is restarted."""
        now = self.engine.now
        if isinstance(command, RunAction):
            self.ill.discard(command.service)
            return ActionFinished(at=now, intent=command.intent, settled=Settled.DONE)
        if not isinstance(command, RunCheck):
            return None
        return CheckFinished(
            at=now,
            service=command.service,
            generation=command.generation,
            purpose=command.purpose,
            started=now,
            ended=now,
            result=FAILING if command.service in self.ill else PASSING,
        )

    def fall_ill(self) -> None:
        """Let some fail, and go on until they have been repaired."""
        names = [f"s{i * self.count // ILL}" for i in range(ILL)]
        self.forget()
        self.ill = set(names)
        while self.ill or any(self.engine.ledger.conditions[name].state is not State.HEALTHY for name in names):
            self.turn()


def pair() -> tuple[tuple[()], tuple[()]]:
    """Return what an engine with nothing to say returns: the floor."""
    return (), ()


def bare(calls: int = 100_000) -> float:
    """Return seconds for a bare call in a list comprehension, as the results are fed."""
    events = [None] * calls
    begun = perf_counter()
    [pair() for _ in events]
    return (perf_counter() - begun) / calls


def clock(calls: int = 10_000) -> float:
    """Return seconds that reading the clock adds to what is measured."""
    return min(-(perf_counter() - perf_counter()) for _ in range(calls))


CLOCK = clock()


def bytes_each(count: int) -> tuple[float, float]:
    """Return bytes per service of the fleet's policies, and of a settled engine that watches them."""
    tracemalloc.start()
    kept = fleet(count)
    policies, _ = tracemalloc.get_traced_memory()
    host = Host(count)
    host.wanted.clear()
    gc.collect()
    both, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept.policies) == count
    return policies / count, (both - 2 * policies) / count


def trimmed(seconds: list[float]) -> float:
    """Return the sum as it would be without the slowest hundredth: that is where others had the processor."""
    kept = sorted(seconds)[: max(1, len(seconds) * 99 // 100)]
    return sum(kept) * len(seconds) / len(kept)


def median(values: Iterable[float]) -> float:
    """Return the median in microseconds."""
    return statistics.median(values) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    counts = [count for count in (10, 100, 1_000, 10_000, 100_000) if count <= options.most]
    hosts = [Host(count) for count in counts]
    gc.collect()
    gc.freeze()
    floors = []
    results: dict[int, list[float]] = {count: [] for count in counts}
    wakes: dict[int, list[float]] = {count: [] for count in counts}
    failures: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        floors.append(bare())
        for host in hosts:
            host.checks_done(max(10_000, min(host.count, 50_000)))
            results[host.count].append(trimmed(host.passing) / host.checks)
            wakes[host.count].append(trimmed(host.waking) / host.checks)
        for host in hosts:
            host.fall_ill()
            failures[host.count].append(trimmed(host.failing) / len(host.failing))
    floor = median(floors)
    del hosts
    gc.unfreeze()
    print(f"a bare call that returns a pair: {floor:.3f} us; reading the clock is taken off")
    print(
        f"{'services':>9} {'result us':>16} {'x bare':>7} {'wake us':>16} {'failing us':>16} "
        f"{'engine B':>9} {'policy B':>9}"
    )
    for count in counts:
        columns = [median(each[count]) for each in (results, wakes, failures)]
        firsts = [median(each[counts[0]]) for each in (results, wakes, failures)]
        result, wake, failing = (f"{us:8.2f} x{us / first:<5.2f}" for us, first in zip(columns, firsts, strict=True))
        policy, engine = bytes_each(count)
        print(
            f"{count:>9} {result:>16} {columns[0] / floor:>7.0f} {wake:>16} {failing:>16} "
            f"{engine:>9.0f} {policy:>9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
