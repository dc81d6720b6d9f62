"""How values that people write become options: the converters and fields that several classes share, ours and yours.

`seconds`, `whole` and `share` make the attrs fields of durations, whole numbers and fractions, with their bounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from selfheal.core.model import seconds, share, whole

__all__ = ["path", "seconds", "share", "texts", "whole"]


def path(value: str | Path | None) -> Path | None:
    """Return the path that a text names; what is no text is left for the validator."""
    return Path(value) if isinstance(value, str) else value


def texts(value: Iterable[str]) -> tuple[str, ...]:
    """Return a list of texts as a tuple. Raises `TypeError` for a single text, which is a list of its letters."""
    if isinstance(value, str):
        raise TypeError(f"{value!r} is one text; write a list of them")
    return tuple(value)
