"""The page of the docs that holds the table: what a run writes into it, between the marks of its section."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.drill import beside, table
from tests.drill.beside import Measured
from tests.drill.faults import FAULTS
from tests.drill.judge import Row
from tests.stack.built import SOURCES
from tests.stack.postgres import programs

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, sections: dict[str, str]) -> None:
    """Put each text between the marks of its section, `<!-- drill: NAME -->` and the end. Raises ValueError."""
    page = path.read_text("utf-8")
    for name, text in sections.items():
        begin, end = f"<!-- drill: {name} -->\n", f"<!-- end drill: {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{path} has no place for {name}: it needs the lines {begin.strip()} and {end}")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    path.write_text(page, "utf-8")


def rows(found: Sequence[Row]) -> str:
    """Return the section of a drill: when and where it ran, its rows, and what is held against them."""
    bad = [row for row in found if not row.good]
    said = f"{len(found)} faults, {len(bad)} not answered as they should be."
    lines = [facts(), "", said, "", table.markdown(found)]
    lines += [f"- {row.fault.title}, {row.fault.name}: {breach}" for row in bad for breach in row.breaches]
    return "\n".join(lines)


def compared(found: list[Measured]) -> str:
    """Return the section of the comparison."""
    return f"{facts()}\n\n{beside.markdown(found)}"


def meanings() -> str:
    """Return the section that says what each fault is, from the table in the code."""
    whose: dict[tuple[str, str, str], list[str]] = {}
    for faults in FAULTS.values():
        for fault in faults:
            whose.setdefault((fault.name, fault.what, fault.answer), []).append(fault.title)
    lines = ["| fault | of | what is done | the right answer |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {', '.join(of)} | {what} | {answer} |" for (name, what, answer), of in whose.items()]
    return "\n".join(lines) + "\n"


def facts() -> str:
    """Return one line on when and where this ran."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )
    return f"Run on {now}, revision {_revision()}: {machine}; {', '.join(_versions())}."


def _revision() -> str:
    said = _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
    return said or "unknown"


def _versions() -> Iterable[str]:
    yield _first_line([str(programs() / "postgres"), "--version"]).replace("postgres (PostgreSQL)", "PostgreSQL")
    yield "Redis " + _first_line(["redis-server", "--version"]).partition("v=")[2].partition(" ")[0]
    for name, called in (("weaviate", "Weaviate"), ("neo4j", "Neo4j"), ("minio", "MinIO")):
        yield f"{called} {SOURCES[name].version.partition('-')[0 if name != 'minio' else 2].partition('-')[0]}"
    yield _first_line(["dockerd", "--version"]).partition(",")[0].replace(" version", "")
    yield _first_line(["systemctl", "--version"]).partition(" (")[0]


def _first_line(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0].strip()
    except OSError:
        return ""
