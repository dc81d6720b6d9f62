"""How much, and how often: the bounds of what comes in, and the rates of acts and of failed log-ins."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import ceil
from typing import Final

import attrs

BODY: Final = 64 << 10
"""Bytes of a body; the largest that makes sense names a few hundred services."""

HEADERS: Final = 16 << 10
"""Bytes of all headers together."""

QUERY: Final = 4 << 10
"""Bytes of the query."""

PATH: Final = 2 << 10
"""Bytes of the path."""

BODY_WITHIN: Final = 10.0
"""Seconds in which a body must have come."""

KEYS: Final = 10_000
"""Keys that a rate remembers; the one that was quiet for longest is forgotten first."""


@attrs.frozen(kw_only=True)
class Rate:
    """So many in so many seconds: a bucket of `count` that fills up again evenly."""

    count: int
    seconds: float


@attrs.frozen(kw_only=True)
class Rates:
    """The rates of one application. Each is for one process: four workers let through four times as much."""

    service: Rate = Rate(count=6, seconds=60.0)
    """Acts of one caller on one service."""

    caller: Rate = Rate(count=60, seconds=60.0)
    """Acts of one caller on all services."""

    heartbeats: Rate = Rate(count=120, seconds=60.0)
    """Heartbeats of one caller for one service."""

    failures: Rate = Rate(count=20, seconds=60.0)
    """Requests of one address with a token that is not known."""


class Buckets:
    """Counts one rate, by key."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._full: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def wait(self, key: Hashable) -> int:
        """Return the whole seconds until one more is let through; 0 when it would be now. Nothing is taken."""
        left = self._left(key)
        return 0 if left >= 1.0 else max(1, ceil((1.0 - left) * self._rate.seconds / self._rate.count))

    def take(self, key: Hashable) -> int:
        """Take one and return 0, or return the whole seconds until one can be taken."""
        if (seconds := self.wait(key)) == 0:
            self._full[key] = (self._left(key) - 1.0, self._clock())
            self._full.move_to_end(key)
            while len(self._full) > KEYS:
                self._full.popitem(last=False)
        return seconds

    def _left(self, key: Hashable) -> float:
        left, at = self._full.get(key, (float(self._rate.count), self._clock()))
        return min(self._rate.count, left + (self._clock() - at) * self._rate.count / self._rate.seconds)
