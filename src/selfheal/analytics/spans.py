"""Stretches of time, and their arithmetic: union, difference, what lies within, how long.

Seconds of journal time throughout. A `Spans` is sorted, its stretches are disjoint and none is empty, so that every
operation is one walk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import inf
from operator import itemgetter
from typing import Final, TypeAlias

Stretch: TypeAlias = tuple[float, float]
"""From, to."""

_END: Final = itemgetter(1)


class Spans:
    """A set of instants, as the stretches it consists of."""

    __slots__ = ("_stretches",)

    def __init__(self, stretches: Iterable[Stretch] = ()) -> None:
        """Take stretches in any order, overlapping or not; those that end before they begin count as empty."""
        joined: list[Stretch] = []
        for since, until in sorted(stretch for stretch in stretches if stretch[0] < stretch[1]):
            if joined and since <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], until))
            else:
                joined.append((since, until))
        self._stretches: Final = tuple(joined)

    def __iter__(self) -> Iterator[Stretch]:
        return iter(self._stretches)

    def __or__(self, other: Spans) -> Spans:
        """Return what lies in either."""
        return Spans((*self._stretches, *other._stretches))

    def __and__(self, other: Spans) -> Spans:
        """Return what lies in both."""
        return self - (ALWAYS - other)

    def __sub__(self, other: Spans) -> Spans:
        """Return what lies in this and not in the other."""
        left: list[Stretch] = []
        taken = iter(other._stretches)
        hole = next(taken, None)
        for begin, until in self._stretches:
            since = begin
            while hole is not None and hole[0] < until:
                if hole[1] > since:
                    left.append((since, hole[0]))
                    since = max(since, hole[1])
                if hole[1] > until:
                    break
                hole = next(taken, None)
            left.append((since, until))
        return Spans(left)

    def within(self, since: float, until: float) -> Spans:
        """Return the part from `since` to before `until`."""
        return Spans((max(since, one[0]), min(until, one[1])) for one in self._stretches)

    @property
    def seconds(self) -> float:
        """How long it is in all."""
        return sum(until - since for since, until in self._stretches)

    def parts(self, edges: Sequence[float]) -> list[float]:
        """Return how long it is between each edge and the next, in seconds; `edges` rise."""
        stretches, found = self._stretches, []
        place = bisect_right(stretches, edges[0], key=_END) if edges else 0
        for since, until in pairwise(edges):
            seconds = 0.0
            while place < len(stretches) and stretches[place][0] < until:
                begin, end = stretches[place]
                seconds += min(end, until) - max(begin, since)
                if end > until:
                    break  # it goes on in the next part
                place += 1
            found.append(seconds)
        return found

    def seconds_within(self, since: float, until: float) -> float:
        """Return how long the part from `since` to before `until` is."""
        return self.parts((since, until))[0] if since < until else 0.0


ALWAYS: Final = Spans([(-inf, inf)])
"""All time."""
