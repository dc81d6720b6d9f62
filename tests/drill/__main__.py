"""The KnowledgeHub drill as a command: `python -m tests.drill`. See docs/explanation/drill.md.

It needs root, and the five servers, Docker and systemd-nspawn (`tests/stack`); it ends with 1 if a row is not good.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.drill import beside, page, table
from tests.drill.beside import Measured
from tests.drill.breaking import Fault
from tests.drill.faults import FAULTS, QUICK
from tests.drill.judge import Row, run
from tests.drill.servers import SERVICES
from tests.drill.stage import Stage, standing
from tests.drill.watched import waited

from selfheal.errors import SelfhealError


def chosen(services: Iterable[str], faults: Iterable[str], quick: bool) -> list[Fault]:
    """Return the faults that are asked for by whom they are about, by name, or as the quick ones."""
    found: list[Fault] = []
    for about in services:
        for fault in FAULTS[about]:
            if quick and QUICK.get(about) != fault.name:
                continue
            if not faults or fault.name in faults:
                found.append(fault)
    return found


def drilled(kind: str, faults: Sequence[Fault], names: tuple[str, ...]) -> Iterator[Row]:
    """Break one thing after the other on a host of this kind, and return the rows as they come.

    Where something stays broken, the next fault begins with everything new.
    """
    left = [fault for fault in faults if kind == "containers" or fault.name != "Docker killed"]
    while left:
        with standing(kind, names) as stage:
            while left:
                yield attempted(stage, left.pop(0))
                if not waited(stage.watched.all_well, 30.0):
                    break


def attempted(stage: Stage, fault: Fault) -> Row:
    """Run one fault; where it could not be induced or mended, the row says so and is not good."""
    try:
        return run(stage, fault)
    except (AssertionError, OSError, subprocess.SubprocessError, SelfhealError) as problem:
        stage.mend()
        said = " ".join(str(problem).split())[:300]
        return Row(on=stage.host.name, fault=fault, breaches=(f"the drill failed: {type(problem).__name__}: {said}",))


@contextmanager
def ended_in_good_order() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the drill, and let nothing disturb the cleaning after that."""

    def end(number: int, frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, end) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, was in before.items():
            signal.signal(one, was)


def main() -> int:
    """Run what the command line asks for; return 1 if a row is not good."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("--on", choices=("containers", "units", "both"), default="containers")
    parser.add_argument("--services", nargs="*", choices=tuple(FAULTS), default=tuple(FAULTS))
    parser.add_argument("--faults", nargs="*", default=(), help="only faults of these names")
    parser.add_argument("--beside", action="store_true", help="have Monit and systemd repair the same kills afterwards")
    parser.add_argument("--only-beside", action="store_true", help="nothing but that")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page of the docs")
    parser.add_argument("--quick", action="store_true", help="one fault for each service, and one of several at once")
    asked = parser.parse_args()
    faults = chosen(asked.services, asked.faults, asked.quick)
    if not faults:
        parser.error("no fault is called so; see tests/drill/faults.py")
    needed = {service for fault in faults for service in fault.services}
    names = SERVICES if {"all", "api"} & needed else tuple(name for name in SERVICES if name in needed)
    kinds = () if asked.only_beside else ("containers", "units") if asked.on == "both" else (asked.on,)
    bad = 0

    def keep(section: str, text: str) -> None:
        if asked.write:
            page.write(asked.write, {section: text, "meanings": page.meanings()})

    with ended_in_good_order():
        for kind in kinds:
            print(table.head(), flush=True)
            rows: list[Row] = []
            for row in drilled(kind, faults, names):
                print(table.line(row), flush=True)
                rows.append(row)
            bad += sum(not row.good for row in rows)
            print(f"{len(rows)} rows on {kind}, {sum(not row.good for row in rows)} not good", flush=True)
            keep(kind, page.rows(rows))
        if asked.beside or asked.only_beside:
            keep("beside", page.compared(list(_shown(beside.compared()))))
    return 1 if bad else 0


def _shown(measured: Iterable[Measured]) -> Iterator[Measured]:
    for one in measured:
        print(f"{one.by:<18} {one.service:<10} {one.signal:<8} {one.told}", flush=True)
        yield one


if __name__ == "__main__":
    sys.exit(main())
