"""Due times, and who waits for what.

`Agenda` is a heap with at most one live entry for each (what, whom); an entry that was moved or cancelled stays in
the heap and is passed over when it comes up. Ties go by the order of setting, so that the same inputs fire the same
timers in the same order. `Waiting` keeps, for each thing that may wake somebody, who waits for it, most important
first; waking one costs nothing for the others.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import TypeAlias

Key: TypeAlias = tuple[str, str]
Rank: TypeAlias = tuple[int, int, str]


class Agenda:
    """What is due when. Instants are journal time."""

    __slots__ = ("_due", "_heap", "_tie")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._tie = 0

    def set(self, key: Key, due: float) -> None:
        """Make `key` due at `due`, in place of any earlier time; an infinite one only cancels."""
        if due == inf:
            self._due.pop(key, None)
            return
        self._due[key] = due
        self._tie += 1
        heappush(self._heap, (due, self._tie, key))

    def cancel(self, key: Key) -> None:
        """Forget `key`."""
        self._due.pop(key, None)

    def due(self, key: Key) -> float:
        """Return when `key` is due; infinity when it is not set."""
        return self._due.get(key, inf)

    @property
    def deadline(self) -> float:
        """The earliest due time; infinity when nothing is due."""
        heap, due = self._heap, self._due
        while heap:
            first = heap[0]
            if due.get(first[2]) == first[0]:
                return first[0]
            heappop(heap)
        return inf

    def pop(self) -> tuple[float, Key]:
        """Take the earliest entry. Raises `IndexError` when nothing is due."""
        at = self.deadline
        if at == inf:
            raise IndexError("nothing is due")
        _, _, key = heappop(self._heap)
        del self._due[key]
        return at, key

    def postpone(self, at: float) -> None:
        """Move every entry that is overdue at `at` to `at`, in their order (a suspended host spends no attempts)."""
        overdue = []
        while self.deadline < at:
            overdue.append(self.pop()[1])
        for key in overdue:
            self.set(key, at)

    def __len__(self) -> int:
        return len(self._due)

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
        self._due.clear()


class Waiting:
    """Who waits for what: wake key -> the waiting, most important first."""

    __slots__ = ("_heaps", "_waits")

    def __init__(self) -> None:
        self._heaps: dict[str, list[Rank]] = {}
        self._waits: dict[str, dict[str, None]] = {}

    def add(self, key: str, rank: Rank) -> None:
        """Let the service named last in `rank` wait for `key`."""
        waits = self._waits.setdefault(key, {})
        if rank[2] not in waits:
            waits[rank[2]] = None
            heappush(self._heaps.setdefault(key, []), rank)

    def __contains__(self, key: str) -> bool:
        return bool(self._waits.get(key))

    def take(self, key: str) -> str | None:
        """Take the most important waiter of `key`; None when nobody waits."""
        heap = self._heaps.get(key)
        if not heap:
            return None
        name = heappop(heap)[2]
        del self._waits[key][name]
        return name

    def take_all(self, key: str) -> list[str]:
        """Take every waiter of `key`, most important first."""
        names = []
        while (name := self.take(key)) is not None:
            names.append(name)
        return names

    def clear(self) -> None:
        """Forget everything."""
        self._heaps.clear()
        self._waits.clear()
