"""How values that people write become options: the converters and fields that several classes share, ours and yours.

`seconds`, `whole` and `share` make the attrs fields of durations, whole numbers and fractions, with their bounds;
`memory`, `processors` and `factor` those of what runs a service, and of how it may grow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import attrs

from selfheal.core.bounds import seconds, share, whole

__all__ = ["factor", "memory", "path", "processors", "seconds", "share", "texts", "whole"]

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def path(value: str | Path | None) -> Path | None:
    """Return the path that a text names; what is no text is left for the validator."""
    return Path(value) if isinstance(value, str) else value


def texts(value: Iterable[str]) -> tuple[str, ...]:
    """Return a list of texts as a tuple. Raises `TypeError` for a single text, which is a list of its letters."""
    if isinstance(value, str):
        raise TypeError(f"{value!r} is one text; write a list of them")
    return tuple(value)


def memory(default: int | None = None, low: int = 1 << 20) -> Any:
    """Return an attrs field for an amount of memory in bytes, at least `low`; `"512m"` and `"2GiB"` are read too."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and default is None:
            return
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= 1 << 50:
            least = f"from {low >> 20} MiB on"
            raise ValueError(f'{attribute.name}: {value!r} is no amount of memory {least}, such as "512m" or "2g"')

    return attrs.field(default=default, converter=_bytes, validator=check, metadata={"unit": "bytes"})


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+)\s*([kmgt]?)(i?b)?\s*", value, re.IGNORECASE)
    if found is None:
        raise ValueError(f'{value!r} is no amount of memory; write bytes, or a text such as "512m" or "2g"')
    return int(found[1]) * _UNITS[found[2].lower()]


def processors(default: float | None = None) -> Any:
    """Return an attrs field for a number of processors, such as 1.5: from 0.01 to 10,000."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and default is None:
            return
        if not isinstance(value, float | int) or isinstance(value, bool) or not 0.01 <= value <= 10_000:
            raise ValueError(f"{attribute.name}: {value!r} is no number of processors, such as 1.5")

    return attrs.field(default=default, validator=check)


def factor(default: float) -> Any:
    """Return an attrs field for a factor to grow by: above 1, at most 10."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, float | int) or isinstance(value, bool) or not 1.0 < value <= 10.0:
            raise ValueError(f"{attribute.name}: {value!r} is no factor above 1 and at most 10")

    return attrs.field(default=default, validator=check)
