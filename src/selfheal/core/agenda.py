"""Due times, and who waits for what.

`Agenda` has at most one live entry for each (what, whom); an entry that was moved or cancelled stays where it is and
is passed over when it comes up. Ties go by the order of setting, so that the same inputs fire the same timers in the
same order. Entries lie in slots of half a second, and only the slot that is due first is put in order: so what
a check costs hardly grows with the fleet. `Waiting` keeps, for each thing that may wake somebody, who waits for it,
most important first; waking one costs nothing for the others.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf, nan
from typing import Final, TypeAlias

Key: TypeAlias = tuple[str, str]
Rank: TypeAlias = tuple[int, int, str]
Entry: TypeAlias = tuple[float, int, Key]

SLOT: Final = 0.5
"""Seconds; a power of two, so that an instant and its slot never disagree by rounding."""


class Agenda:
    """What is due when. Instants are journal time."""

    __slots__ = ("_due", "_opened", "_order", "_slots", "_tie", "bound")

    def __init__(self) -> None:
        self.bound = inf
        """Nothing is due before this instant: it costs nothing to read, and `deadline` makes it exact."""
        self._due: dict[Key, float] = {}
        self._slots: dict[float, list[Entry]] = {}
        self._order: list[float] = []  # a heap of the slots, one each
        self._opened = nan  # the slot whose entries are a heap
        self._tie = 0

    def set(self, key: Key, due: float) -> None:
        """Make `key` due at `due`, in place of any earlier time; an infinite one only cancels."""
        if due == inf:
            self._due.pop(key, None)
            return
        self._due[key] = due
        self._tie = tie = self._tie + 1
        slot = due // SLOT
        entries = self._slots.get(slot)
        if entries is None:
            self._slots[slot] = [(due, tie, key)]
            heappush(self._order, slot)
        elif slot == self._opened:
            heappush(entries, (due, tie, key))
        else:
            entries.append((due, tie, key))
        if due < self.bound:
            self.bound = due

    def cancel(self, key: Key) -> None:
        """Forget `key`."""
        self._due.pop(key, None)

    def due(self, key: Key) -> float:
        """Return when `key` is due; infinity when it is not set."""
        return self._due.get(key, inf)

    @property
    def deadline(self) -> float:
        """The earliest due time; infinity when nothing is due."""
        self._first()
        return self.bound

    def pop(self) -> tuple[float, Key]:
        """Take the earliest entry. Raises `IndexError` when nothing is due."""
        entry = self.take(inf)
        if entry is None:
            raise IndexError("nothing is due")
        return entry[0], entry[2]

    def take(self, until: float) -> Entry | None:
        """Take the earliest entry if it is due by `until`; None when it is not."""
        entries = self._first()
        if entries is None or self.bound > until:
            return None
        entry = heappop(entries)
        del self._due[entry[2]]
        return entry

    def _first(self) -> list[Entry] | None:
        """Return the heap whose top is due first; None when nothing is due. Makes `bound` exact."""
        due, order = self._due, self._order
        while order:
            slot = order[0]
            entries = self._slots[slot]
            if slot != self._opened:
                heapify(entries)
                self._opened = slot
            while entries:
                at, _, key = entries[0]
                if due.get(key) == at:
                    self.bound = at
                    return entries
                heappop(entries)
            del self._slots[heappop(order)]
            self._opened = nan
        self.bound = inf
        return None

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
        self._due.clear()
        self._slots.clear()
        self._order.clear()
        self._opened = nan
        self.bound = inf


class Waiting:
    """Who waits for what: wake key -> the waiting, most important first."""

    __slots__ = ("_heaps", "_waits", "many")

    def __init__(self) -> None:
        self.many = 0
        """How many wait, for whatever it is."""
        self._heaps: dict[str, list[Rank]] = {}
        self._waits: dict[str, dict[str, None]] = {}

    def add(self, key: str, rank: Rank) -> None:
        """Let the service named last in `rank` wait for `key`."""
        waits = self._waits.setdefault(key, {})
        if rank[2] not in waits:
            self.many += 1
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
        self.many -= 1
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
        self.many = 0
