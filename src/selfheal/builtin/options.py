"""How values that people write become options: the converters that several classes share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def path(value: str | Path | None) -> Path | None:
    """Return the path that a text names; what is no text is left for the validator."""
    return Path(value) if isinstance(value, str) else value


def texts(value: Iterable[str]) -> tuple[str, ...]:
    """Return a list of texts as a tuple. Raises `TypeError` for a single text, which is a list of its letters."""
    if isinstance(value, str):
        raise TypeError(f"{value!r} is one text; write a list of them")
    return tuple(value)
