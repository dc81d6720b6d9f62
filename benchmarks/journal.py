"""What the journal costs: bytes of a quiet check, batches per second, time to open, verify and read.

    python benchmarks/journal.py [folder]

The folder should lie on the disk in question; durable figures are those of its `fsync`.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from selfheal.core.messages import CheckFinished
from selfheal.core.model import PASSING, Condition, Purpose, State
from selfheal.core.records import Moved
from selfheal.journal import Batch, Journal, SqliteReader, SqliteStore

EPOCH = 1_700_000_000.0


def quiet(number: int, at: float, service: str, generation: int, draw: random.Random) -> Batch:
    """Return a passing result with stamps of nanosecond resolution, as `time.monotonic` gives them."""
    ended = at - draw.uniform(20e-6, 300e-6)
    started = ended - draw.lognormvariate(-6.2, 0.5)
    event = CheckFinished(
        at=round(at, 9),
        service=service,
        generation=generation,
        purpose=Purpose.ROUTINE,
        started=round(started, 9),
        ended=round(ended, 9),
        result=PASSING,
    )
    return Batch(number=number, at=event.at, wall=EPOCH + event.at, input=event)


def fleet(services: int, interval: float, seconds: float, begin: float, number: int = 1) -> Iterator[Batch]:
    """Yield the quiet results of a fleet, in order, with 10 % jitter."""
    draw = random.Random(1)
    due = sorted((begin + draw.uniform(0, interval), f"service-{index}") for index in range(services))
    generations = dict.fromkeys((name for _, name in due), 0)
    while due and due[0][0] < begin + seconds:
        later = []
        for at, name in due:
            generations[name] += 1
            yield quiet(number, at, name, generations[name], draw)
            number += 1
            later.append((at + interval * draw.uniform(0.9, 1.1), name))
        due = sorted(later)


def telling(number: int, at: float) -> Batch:
    """Return a batch with one record of ordinary size."""
    moved = Moved(
        at=at,
        service=f"service-{number % 50}",
        before=Condition(state=State.HEALTHY, since=1.0, generation=3),
        after=Condition(state=State.UNHEALTHY, since=at, generation=4, incident=number),
        because="connection refused",
    )
    return Batch(number=number, at=at, wall=EPOCH + at, records=(moved,))


def timed(what: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock and of processor time."""
    clock, cpu = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - clock, time.process_time() - cpu


def size(path: Path) -> int:
    """Return the bytes of the database file."""
    return path.stat().st_size


def bytes_of_quiet_checks(folder: Path, services: int, hours: float, age: float) -> None:
    """Store the results of a fleet second by second, as the writer does, in a journal that is `age` seconds old."""
    path = folder / f"quiet-{services}-{age:g}.db"
    store = SqliteStore.open(path)
    empty = size(path)
    flushes: list[list[Batch]] = [[]]
    for batch in fleet(services, 30.0, hours * 3600.0, age):
        if flushes[-1] and batch.at - flushes[-1][0].at > 1.0:
            flushes.append([])
        flushes[-1].append(batch)
    count = sum(len(flush) for flush in flushes)

    def store_all() -> None:
        tended = age
        for flush in flushes:
            store.append(flush, durable=False)
            if flush[0].at - tended > 60.0:
                store.tend()
                tended = flush[0].at

    _, cpu = timed(store_all)
    ((packed, rows),) = store._rows("SELECT sum(length(body)), count(*) FROM runs")
    store.close()
    print(
        f"{services:4d} services every 30 s, journal {age:.0e} s old: {packed / count:5.1f} bytes packed, "
        f"{(size(path) - empty) / count:5.1f} bytes of file a check ({count} checks, {rows} runs), "
        f"{1e6 * cpu / count:5.1f} us of processor each, flushed once a second, upkeep included"
    )


def handed_over(journal: Journal, batches: Sequence[Batch], *, durable: bool) -> tuple[float, float, float]:
    """Hand over batches as fast as they are taken; return seconds, processor seconds, and seconds of handing over."""
    done = threading.Event()
    handing = 0.0

    def hand_over() -> None:
        nonlocal handing
        began = time.perf_counter()
        for batch in batches[:-1]:
            journal.submit(batch, durable=durable)
        journal.submit(batches[-1], durable=True, done=lambda _: done.set())
        handing = time.perf_counter() - began
        assert done.wait(60)

    return (*timed(hand_over), handing)


def throughput(folder: Path) -> None:
    """Print batches a second: quiet results, records in a burst, and durable records one at a time."""
    journal = Journal.open(folder / "rate.db", most_waiting=10_000_000)
    quiet_ones = list(fleet(1000, 1.0, 100.0, 1e5))
    count = len(quiet_ones)
    clock, cpu, handing = handed_over(journal, quiet_ones, durable=False)
    print(
        f"quiet: {count / clock:9,.0f} batches/s, {1e6 * cpu / count:.1f} us of processor each, "
        f"submit {1e6 * handing / count:.1f} us (while the writer runs)"
    )
    number = quiet_ones[-1].number
    for name, count in (("durable", 2000), ("relaxed", 20_000)):
        told = [telling(number + 1 + turn, 1e6 + number + turn) for turn in range(count)]
        number += count
        clock, cpu, _ = handed_over(journal, told, durable=name == "durable")
        print(f"{name} records, in a burst: {count / clock:9,.0f} batches/s, {1e6 * cpu / count:.1f} us each")
    waits = sorted(
        handed_over(journal, [telling(number + 1 + turn, 1e6 + number + turn)], durable=True)[0] for turn in range(300)
    )
    print(
        f"durable, one at a time: {len(waits) / sum(waits):,.0f} batches/s; until done: median "
        f"{1e3 * waits[150]:.2f} ms, 99 % {1e3 * waits[297]:.2f} ms"
    )
    assert journal.close(60)


def reading(folder: Path) -> None:
    """Read, verify and open what `throughput` left."""
    path = folder / "rate.db"
    reader = SqliteReader(path)
    counted: list[int] = []
    for name, what in (
        ("all batches", lambda: counted.append(sum(1 for _ in reader.batches()))),
        ("results of one service in 1000", lambda: counted.append(sum(1 for _ in reader.results("service-7")))),
        ("1000 records, newest first", lambda: counted.append(len(reader.records(newest_first=True)))),
        ("verify", lambda: counted.append(reader.verify().records)),
    ):
        clock, _ = timed(what)
        print(f"{name}: {1e3 * clock:.1f} ms, {1e6 * clock / counted[-1]:.1f} us each of {counted[-1]}")
    reader.close()
    clock, _ = timed(lambda: SqliteStore.open(path).close())
    print(f"open and close with {size(path) / 1e6:.1f} MB: {1e3 * clock:.1f} ms")


def upkeep(folder: Path) -> None:
    """Roll up an hour of 500 services."""
    store = SqliteStore.open(folder / "upkeep.db")
    batches = list(fleet(500, 30.0, 3700.0 * 2, 1e5))
    for start in range(0, len(batches), 4096):
        store.append(batches[start : start + 4096], durable=False)
    slices: list[float] = []
    more = True
    while more:
        began = time.perf_counter()
        more = store.tend()
        slices.append(time.perf_counter() - began)
    print(
        f"rolling up {len(batches)} results: {1e6 * sum(slices) / len(batches):.1f} us each, longest slice "
        f"{1e3 * max(slices):.0f} ms"
    )
    store.close()


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="on the disk in question; by default that for temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for services, hours in ((5, 24.0), (500, 2.0)):
            for age in (1e5, 1e8):
                bytes_of_quiet_checks(folder, services, hours, age)
        throughput(folder)
        reading(folder)
        upkeep(folder)
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
