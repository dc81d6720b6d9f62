"""When may something happen again: the one backoff, and budgets over sliding windows.

Nothing here knows a clock: instants come in, instants come out. A window's opening is computed by one expression in
one place (`opens`), because two roundings of one window once made an engine spin for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

from selfheal.core.model import Backoff, Budget

_MASK: Final = (1 << 64) - 1


def mix(seed: int, number: int) -> float:
    """Return a number in [0, 1) drawn from (`seed`, `number`): splitmix64, cheap enough for every check.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
    """
    x = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def seed_of(seed: int, text: str) -> int:
    """Return a 64-bit seed for `text` under the fleet's `seed`: FNV-1a, the same in every process."""
    x = 0xCBF29CE484222325 ^ (seed & _MASK)
    for byte in text.encode():
        x = ((x ^ byte) * 0x100000001B3) & _MASK
    return x


def delay(backoff: Backoff, level: int, draw: float) -> float:
    """Return the seconds to wait after attempt number `level` (1 for the first); 0 for level 0.

    `draw` in [0, 1) is the jitter: the wait lies within [(1 - jitter) * d, d) for the full delay d.
    """
    if level <= 0:
        return 0.0
    try:
        full = min(backoff.cap, backoff.initial * backoff.multiplier ** (level - 1))
    except OverflowError:
        full = backoff.cap
    return full * (1.0 - backoff.jitter + backoff.jitter * draw)


def opens(spent: Sequence[float], budget: Budget) -> float:
    """Return when `budget` lets one more happen, given the instants already `spent` in order; -inf when it does now."""
    if len(spent) < budget.limit:
        return -inf
    return spent[-budget.limit] + budget.per


def all_open(spent: Sequence[float], budgets: Iterable[Budget]) -> tuple[float, Budget | None]:
    """Return when every one of `budgets` is open, and the one that opens last (None when none is in the way)."""
    latest, last = -inf, None
    for budget in budgets:
        at = opens(spent, budget)
        if at > latest:
            latest, last = at, budget
    return latest, last
