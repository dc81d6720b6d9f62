"""What the engine costs: one whole ordinary check (timer, command, result) and one failure, from 10 to 100,000 services.

Prints microseconds per check and bytes per service; the interesting figure is the ratio between the smallest and the
largest fleet, which the design wants flat. Run it as `python benchmarks/engine.py [most]`.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from math import inf

from selfheal.core.engine import Engine
from selfheal.core.messages import CheckFinished, RunAction, RunCheck, Started, TimePassed
from selfheal.core.model import PASSING, Cause, CheckResult, Fleet, Limits, Policy, Step, Verdict

FAILING = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE, summary="refused")


def fleet(count: int) -> Fleet:
    """Return a fleet of `count` equal services."""
    policies = tuple(Policy(name=f"s{i}", steps=(Step(action="restart"),)) for i in range(count))
    return Fleet(policies=policies, limits=Limits(storm_floor=1_000_000))


def settled(count: int) -> tuple[Engine, list[RunCheck]]:
    """Return an engine whose services have all passed twice, and the checks it wants now."""
    engine = Engine()
    wanted = [c for c in engine.receive(Started(at=0.0, fleet=fleet(count))).commands if isinstance(c, RunCheck)]
    for _ in range(2 * count + 10):
        wanted = drive(engine, wanted, PASSING)[0]
    return engine, wanted


def drive(engine: Engine, wanted: list[RunCheck], result: CheckResult) -> tuple[list[RunCheck], int]:
    """Answer what is wanted, or wake; return what is wanted next and how many checks were answered."""
    if not wanted:
        output = engine.receive(TimePassed(at=engine.deadline))
        return [c for c in output.commands if isinstance(c, RunCheck)], 0
    following: list[RunCheck] = []
    for command in wanted:
        at = engine.now + 1e-6
        event = CheckFinished(
            at=at,
            service=command.service,
            generation=command.generation,
            purpose=command.purpose,
            started=engine.now,
            ended=at,
            result=result,
        )
        output = engine.receive(event)
        following += [c for c in output.commands if isinstance(c, RunCheck)]
    return following, len(wanted)


def healthy(count: int, checks: int) -> float:
    """Return seconds per ordinary check: the timer, the command, the result; less the making of the event itself."""
    engine, wanted = settled(count)
    gc.collect()
    gc.freeze()
    done = 0
    begun = time.perf_counter()
    while done < checks:
        wanted, answered = drive(engine, wanted, PASSING)
        done += answered
    spent = (time.perf_counter() - begun) / done
    gc.unfreeze()
    return spent


def event_alone(checks: int) -> float:
    """Return seconds for what the host does per check: making one event."""
    begun = time.perf_counter()
    for i in range(checks):
        CheckFinished(
            at=float(i),
            service="s",
            generation=0,
            purpose=None,  # type: ignore[arg-type]  # only its cost matters here
            started=float(i),
            ended=float(i),
            result=PASSING,
        )
    return (time.perf_counter() - begun) / checks


def failing(count: int, rounds: int) -> float:
    """Return seconds per event of one service that fails, is confirmed, restarted and verified, `rounds` times."""
    engine, wanted = settled(count)
    events, spent = 0, 0.0
    for _ in range(rounds):
        result = FAILING
        for _ in range(5000):
            begun = time.perf_counter()
            if wanted:
                command = wanted.pop(0)
                at = engine.now + 0.001
                output = engine.receive(
                    CheckFinished(
                        at=at,
                        service=command.service,
                        generation=command.generation,
                        purpose=command.purpose,
                        started=engine.now,
                        ended=at,
                        result=result if command.service == "s0" else PASSING,
                    )
                )
            else:
                output = engine.receive(TimePassed(at=engine.deadline))
            spent += time.perf_counter() - begun
            events += 1
            wanted += [c for c in output.commands if isinstance(c, RunCheck)]
            if any(isinstance(c, RunAction) for c in output.commands):
                break
        else:
            break
    return spent / max(events, 1)


def bytes_each(count: int) -> float:
    """Return bytes per service of a settled engine, its policies included."""
    tracemalloc.start()
    engine, _ = settled(count)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert engine.deadline < inf
    return size / count


def main() -> None:
    """Print the table."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    alone = min(event_alone(100_000) for _ in range(5))
    print(f"making the event alone: {alone * 1e6:.2f} us (the host's, contained in the figures below)")
    print(f"{'services':>9} {'us/check healthy':>17} {'us/event failing':>17} {'bytes/service':>14}")
    first = None
    for count in (10, 100, 1_000, 10_000, 100_000):
        if count > most:
            break
        each = min(healthy(count, max(20_000, count)) for _ in range(3))
        first = first or each
        fails = failing(count, 3)
        print(f"{count:>9} {each * 1e6:>12.2f} x{each / first:<4.2f} {fails * 1e6:>16.2f} {bytes_each(count):>14.0f}")


if __name__ == "__main__":
    main()
