"""What a command prints: tables and lines, with colour on a terminal and plain in a pipe; JSON where it is asked for.

Text is cleaned here, whoever it comes from. Answers go to standard output, everything about the asking to the other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import click

from selfheal.words import clean

STYLES: Final = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "bright_red",
    "failed": "red",
    "recovering": "cyan",
    "unknown": "bright_black",
    "disabled": "bright_black",
    "unwatched": "bright_black",
    "passing": "green",
    "warning": "yellow",
    "failing": "red",
    "inconclusive": "bright_black",
    "critical": "red",
    "high": "red",
    "medium": "yellow",
    "low": "bright_black",
    "holds": "red",
    "lets": "green",
}
"""Words that have a colour, wherever they stand alone in a cell."""


def colourful() -> bool:
    """Whether standard output is a terminal that may be coloured."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def note(text: str) -> None:
    """Say something about the asking, to standard error."""
    click.echo(clean(text), err=True)


def line(text: str = "", *, style: str | None = None) -> None:
    """Print a line."""
    click.echo(painted(clean(text), style))


def painted(text: str, style: str | None) -> str:
    """Return clean text in a colour, where there are colours."""
    return click.style(text, fg=style) if style is not None and colourful() else text


def document(answer: Any) -> None:
    """Print an answer as JSON. What does not print is escaped there by itself."""
    click.echo(json.dumps(answer, indent=2))


def record(answer: Any) -> None:
    """Print an answer as JSON in one line, of many."""
    click.echo(json.dumps(answer))


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in lines: columns aligned by spaces, nothing cut off, words of `STYLES` coloured."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(headers), *cells]) for column in range(len(headers))]

    def put(row: Sequence[str], *, head: bool = False) -> str:
        parts = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padded = cell if column == len(row) - 1 else cell.ljust(width)
            parts.append(painted(padded, "bright_black" if head else STYLES.get(cell)))
        return "  ".join(parts).rstrip()

    return [put(headers, head=True), *(put(row) for row in cells)]


def rich_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> Any:
    """Return a table that rich fits into the terminal. Raises `ImportError` where rich is not installed."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bright_black")
    for number, header in enumerate(headers):
        made.add_column(header, overflow="fold", no_wrap=number < len(headers) - 1)
    for row in rows:
        cells = [clean(cell) for cell in row]
        made.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    return made


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table; where there are no rows, a sentence instead."""
    found = list(rows)
    if not found:
        line(empty)
        return
    if sys.stdout.isatty():
        with suppress(ImportError):
            from rich.console import Console

            Console(highlight=False).print(rich_table(headers, found))
            return
    for one in text_table(headers, found):
        click.echo(one)


class Frame:
    """What is shown in place of what was shown before, on a terminal; below it, in a pipe."""

    def __init__(self) -> None:
        self._live: Any = None

    def __enter__(self) -> Self:
        """Begin."""
        if sys.stdout.isatty():
            with suppress(ImportError):
                from rich.live import Live

                self._live = Live(auto_refresh=False, screen=True, vertical_overflow="crop")
                self._live.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        """End; the terminal is as it was."""
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def show(self, lines: Sequence[str], headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show lines and a table under them."""
        if self._live is not None:
            from rich.console import Group
            from rich.text import Text

            head = [Text(said, style="red" if said.startswith("HOLD") else "") for said in lines]
            self._live.update(Group(*head, Text(""), rich_table(headers, rows)), refresh=True)
            return
        if sys.stdout.isatty():
            click.clear()
        for one in [*lines, *text_table(headers, rows), ""]:
            click.echo(one)
