"""What a scrape and the statistics cost: 500 services, a year of records, the first reading of them, and each after.

    python benchmarks/metrics.py [--services 500] [--weeks 52] [folder]

Every service fails once a week; one time in five its first step does not help. selfheal starts anew once a week.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selfheal import views
from selfheal.core.ledger import Ledger
from selfheal.core.model import Alert, Condition, Fleet, Incident, Policy, Settled, Severity, State, Step
from selfheal.core.records import (
    AlertChanged,
    Delivered,
    Ended,
    FleetSet,
    IncidentClosed,
    IncidentOpened,
    Intended,
    Moved,
    Record,
    Resumed,
)
from selfheal.journal import Batch, SqliteReader, SqliteStore
from selfheal.metrics import Metering, Moment, live, written

EPOCH = 1_700_000_000.0
WEEK = 7 * 86400.0
LADDER = (Step(action="reconnect"), Step(action="restart"))


def outage(name: str, number: int, at: float, draw: random.Random) -> Iterator[Record]:
    """Yield what one failure leaves: the first step helps four times in five, else the second does."""
    well = Condition(state=State.HEALTHY, since=at - 1000.0)
    sick = Condition(state=State.UNHEALTHY, since=at)
    dead = Condition(state=State.FAILED, since=at + 30.0, incident=number)
    mending = Condition(state=State.RECOVERING, since=at + 40.0, incident=number)
    alert = Alert(id=f"a{number}", service=name, rule="failed", severity=Severity.HIGH, since=at + 30.0, text="x")
    yield Moved(at=at, service=name, before=well, after=sick)
    yield Moved(at=at + 30.0, service=name, before=sick, after=dead)
    yield IncidentOpened(at=at + 30.0, service=name, incident=Incident(number=number, root=name, since=at + 30.0))
    yield AlertChanged(at=at + 30.0, service=name, alert=alert, open=True)
    now = at + 40.0
    for step, what in enumerate(LADDER[: 1 if draw.random() < 0.8 else 2]):
        key = f"{number}/{name}/1/{step}"
        yield Intended(
            at=now, intent=key, service=name, incident=number, attempt=1, step=step, action=what.action, first=not step
        )
        yield Moved(at=now, service=name, before=dead, after=mending)
        yield Ended(at=now + 1.0, intent=key, service=name, settled=Settled.DONE, duration=1.0)
        now += draw.uniform(5.0, 90.0)
    yield Moved(at=now, service=name, before=mending, after=Condition(state=State.HEALTHY, since=now))
    yield IncidentClosed(at=now, service=name, incident=number, duration=now - at)
    yield AlertChanged(at=now, service=name, alert=alert, open=False)
    for phase in ("opened", "resolved"):
        yield Delivered(at=now, notification=f"{number}/{phase}", notifier="oncall", service=name, incident=number)


def history(services: int, weeks: int) -> Iterator[list[Record]]:
    """Yield the records of each outage and each start, in order."""
    draw = random.Random(1)
    names = [f"service-{number:03}" for number in range(services)]
    yield [Resumed(at=0.0, away=0.0)]
    yield [FleetSet(at=0.0, fleet=Fleet(name="year", policies=tuple(Policy(name=n, steps=LADDER) for n in names)))]
    unknown, well = Condition(), Condition(state=State.HEALTHY)
    yield [Moved(at=1.0, service=name, before=unknown, after=well) for name in names]
    number = 0
    for week in range(weeks):
        for at, name in sorted((week * WEEK + draw.uniform(600.0, WEEK - 600.0), name) for name in names):
            number += 1
            yield list(outage(name, number, at, draw))
        yield [Resumed(at=(week + 1) * WEEK, away=20.0)]


def store(path: Path, services: int, weeks: int) -> tuple[Ledger, int]:
    """Write the year, and return its ledger and how many records it has."""
    journal, ledger, batches, at, count = SqliteStore.open(path), Ledger(), [], 0.0, 0
    for number, records in enumerate(history(services, weeks), 1):
        at = max(at, records[-1].at)
        for record in records:
            ledger.apply(record)
        count += len(records)
        batches.append(Batch(number=number, at=at, wall=EPOCH + at, input=None, records=tuple(records)))
        if len(batches) == 500:
            assert journal.append(batches, durable=False) == {}
            batches = []
    assert journal.append(batches, durable=True) == {}
    journal.close()
    return ledger, count


def rss() -> int:
    """Return this process's resident memory in KiB."""
    line = next(one for one in Path("/proc/self/status").read_text("ascii").splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1])


def took(work: Callable[[], object], times: int = 21) -> str:
    """Return the median of so many runs in milliseconds: of the processor's time, and of the clock's."""
    spent, lasted = [], []
    for _ in range(times):
        began, used = time.perf_counter(), time.process_time()
        work()
        lasted.append((time.perf_counter() - began) * 1000.0)
        spent.append((time.process_time() - used) * 1000.0)
    return f"{statistics.median(spent):7.1f} ms of a processor, {statistics.median(lasted):7.1f} by the clock"


def main() -> None:
    """Print it."""
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("folder", nargs="?", type=Path)
    asked.add_argument("--services", type=int, default=500)
    asked.add_argument("--weeks", type=int, default=52)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "selfheal.db"
        ledger, count = store(path, given.services, given.weeks)
        size = path.stat().st_size / 2**20
        print(
            f"{given.services} services, {given.weeks} weeks, {count} records, {size:.0f} MiB; {sys.version.split()[0]}"
        )
        reader = SqliteReader(path)
        metering, before = Metering(reader), rss()

        def moment() -> Moment:
            return Moment.of(ledger)

        used = time.process_time()
        metering.families(moment(), patience=3600.0)
        first = time.process_time() - used
        print(f"first reading        {first:7.1f} s in a thread, {count / first:,.0f} records/s, +{rss() - before} KiB")
        print(f"copy of what is live {took(moment)}   the only part on the engine's loop")
        families = metering.families(moment())
        print(f"gathering            {took(lambda: metering.families(moment()))}")
        print(f"writing, text        {took(lambda: written(families))}")
        print(f"writing, openmetrics {took(lambda: written(families, 'openmetrics'))}")
        whole = took(lambda: written(metering.families(moment()), "openmetrics").encode())
        text = written(families)
        print(f"a whole scrape       {whole}   {text.count(chr(10))} lines, {len(text) / 1024:.0f} KiB")
        metering._account.tally._standings.clear()  # what a start, a sleep or a hold does
        print(f"after a start        {took(lambda: metering.families(moment()), 1)}   every uptime counted anew")
        print(f"without the journal  {took(lambda: written(live(moment())))}")
        _asked(reader, metering)
        _collected(metering, moment)
        for scraped in (False, True):
            late = asyncio.run(_beside(lambda: written(metering.families(moment())), scraped=scraped))
            how = "5 scrapes a second" if scraped else "no scrape"
            print(f"a loop beside it     {late:7.1f} ms late at the worst, {how}")
        reader.close()


def _asked(reader: SqliteReader, metering: Metering) -> None:
    """Print what the answers cost that are made of the same account."""
    questions: tuple[tuple[str, dict[str, Any]], ...] = (
        ("statistics", {}),
        ("statistics", {"days": 90}),
        ("statistics", {"window": WEEK, "service": "service-001"}),
        ("incidents", {}),
        ("incident", {"number": 5}),
        ("alerts", {"all": True}),
    )
    for name, said in questions:
        print(f"{name:20} {took(partial(views.stored, name, said, reader, metering), 5)}   {said or ''}")


async def _beside(scrape: Callable[[], object], *, scraped: bool, seconds: float = 5.0) -> float:
    """Return how late, in milliseconds, a loop woke at the worst while it was scraped in a thread."""
    end, worst, turn = time.perf_counter() + seconds, 0.0, 0
    under_way: asyncio.Task[object] | None = None
    while (began := time.perf_counter()) < end:
        if scraped and turn % 20 == 0 and (under_way is None or under_way.done()):
            under_way = asyncio.create_task(asyncio.to_thread(scrape))
        await asyncio.sleep(0.01)
        turn, worst = turn + 1, max(worst, time.perf_counter() - began - 0.01)
    if under_way is not None:
        await under_way
    return worst * 1000.0


def _collected(metering: Metering, moment: Callable[[], Moment]) -> None:
    """Print what the same costs through a host's registry, where the plugin is installed."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415  # it may not be there

        from selfheal_prometheus import collector  # noqa: PLC0415  # nor may this
    except ImportError:
        return

    class Stands:
        def metrics(self, format: str = "data") -> object:  # noqa: A002  # as the supervisor has it
            return written(metering.families(moment()), format)

    registry = CollectorRegistry()
    registry.register(collector(Stands()))
    print(f"a host's registry    {took(lambda: generate_latest(registry), 5)}   prometheus_client's own writer")


if __name__ == "__main__":
    main()
