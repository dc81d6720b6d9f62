"""What the drill prints: rows in a terminal, and the table of the docs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.drill.judge import Row

HEAD = ("on", "broken", "fault", "detected", "works again", "closed", "steps", "bad s", "verdict")
_WIDE = (10, 27, 19, 9, 11, 8, 34, 6, 7)


def head() -> str:
    """Return the first line of a table in a terminal."""
    return _line(HEAD)


def line(row: Row) -> str:
    """Return a row in a terminal, with what is held against it under it."""
    text = _line(cells(row))
    return "\n".join([text, *(f"{'':12}! {breach}" for breach in row.breaches)])


def cells(row: Row) -> tuple[str, ...]:
    """Return what stands in a row. A star: since people mended it."""
    star = "*" if row.fault.told is not None else ""
    return (
        row.on,
        row.fault.title,
        row.fault.name,
        _seconds(row.detected),
        _seconds(row.good_again, star),
        _seconds(row.closed, star),
        folded(row.steps),
        str(row.bad_seconds),
        "ok" if row.good else "FAILED",
    )


def folded(steps: str) -> str:
    """Return steps with repetitions counted: `restart ×3`."""
    found: list[tuple[str, int]] = []
    for step in steps.split():
        if found and found[-1][0] == step:
            found[-1] = (step, found[-1][1] + 1)
        else:
            found.append((step, 1))
    return ", ".join(step if count == 1 else f"{step} ×{count}" for step, count in found) or "none"


def _seconds(value: float | None, star: str = "") -> str:
    return "–" if value is None else f"{value:.{1 if value >= 1 else 2}f}{star}"


def _line(words: Sequence[str]) -> str:
    return "  ".join(f"{word:<{width}}" for word, width in zip(words, _WIDE, strict=True)).rstrip()


def markdown(rows: Iterable[Row]) -> str:
    """Return rows as a table of the docs."""
    lines = [HEAD, tuple("---" for _ in HEAD), *map(cells, rows)]
    return "\n".join("| " + " | ".join(one) + " |" for one in lines) + "\n"
