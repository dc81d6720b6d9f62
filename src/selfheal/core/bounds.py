"""Numbers within bounds: one validator each, so that every bad number is refused with the same words.

Owns the attrs fields of durations, whole numbers and fractions.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

import attrs

_YEAR: Final = 366 * 86400.0


def number(low: float, high: float, *, whole: bool = False, optional: bool = False) -> Any:
    """Return an attrs validator for a number within [low, high]; NaN and booleans are refused."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if optional and value is None:
            return
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise TypeError(f"{attribute.name}: {value!r} is not a {'whole number' if whole else 'number'}")
        if not (low <= value <= high) or (value != value):
            most = "a year" if high == _YEAR else f"{high:g}"
            bound = f"from {low:g} to {most}" if isfinite(high) else f"of at least {low:g}"
            raise ValueError(f"{attribute.name}: {value!r} is out of range; give a number {bound}")

    return check


def seconds(default: Any = attrs.NOTHING, low: float = 0.0, high: float = _YEAR, *, optional: bool = False) -> Any:
    """Return an attrs field for a duration in seconds within [low, high]; without a default it must be given."""

    def convert(value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return attrs.field(
        default=default,
        converter=convert,
        validator=number(low, high, optional=optional or default is None),
        metadata={"unit": "seconds"},
    )


def whole(default: int | None, low: int = 1, high: int = 1_000_000) -> Any:
    """Return an attrs field for a whole number within [low, high], or none where that is the default."""
    return attrs.field(default=default, validator=number(low, high, whole=True, optional=default is None))


def share(default: float) -> Any:
    """Return an attrs field for a fraction from 0 to 1."""
    return attrs.field(default=default, validator=number(0.0, 1.0))
