"""Holds on the whole fleet: when too much fails at once, when our own view is in doubt; and what ends them.

A hold ends by evidence, never by a fixed time: in simulation a time-based release let 1,687 needless actions through
where release by evidence let 1. Evidence is: a canary answers, or the share of the failing falls; a person may
release it too. The three watches here only observe and say what they see; the engine says it as records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Final

from selfheal.core.model import Limits, Verdict

DUMB_AFTER: Final = 3
"""Checks of a canary in a row that could not run before it counts as one that does not answer."""


class StormWatch:
    """How many independent services are suspect, and how many became so lately.

    Dependents of a suspect parent are not independent: they count once, with it. Every change costs the number of
    the service's own dependents, never the size of the fleet.
    """

    __slots__ = ("_blamed", "_lone", "_recent", "_recent_lone", "_suspects", "_total")

    def __init__(self) -> None:
        self._suspects: dict[str, float] = {}
        self._recent: dict[str, float] = {}
        self._blamed: dict[str, int] = {}
        self._lone = 0
        self._recent_lone = 0
        self._total = 0

    def reset(self, total: int) -> None:
        """Begin afresh over `total` watched services."""
        self._suspects.clear()
        self._recent.clear()
        self._blamed.clear()
        self._lone = self._recent_lone = 0
        self._total = total

    def suspect(self, name: str, at: float, children: Iterable[str], *, pardoned: bool = False) -> None:
        """A service began to fail at `at`; one that is `pardoned` raises no hold any more."""
        if name in self._suspects:
            return
        self._suspects[name] = at
        if not pardoned:
            self._recent[name] = at
        if not self._blamed.get(name):
            self._lone += 1
            self._recent_lone += not pardoned
        for child in children:
            blamed = self._blamed.get(child, 0)
            self._blamed[child] = blamed + 1
            if not blamed and child in self._suspects:
                self._lone -= 1
                self._recent_lone -= child in self._recent

    def cleared(self, name: str, children: Iterable[str]) -> None:
        """A service passes again, or is watched no more."""
        if self._suspects.pop(name, None) is None:
            return
        recent = self._recent.pop(name, None) is not None
        if not self._blamed.get(name):
            self._lone -= 1
            self._recent_lone -= recent
        for child in children:
            blamed = self._blamed.get(child, 0) - 1
            if blamed > 0:
                self._blamed[child] = blamed
                continue
            self._blamed.pop(child, None)
            if blamed == 0 and child in self._suspects:
                self._lone += 1
                self._recent_lone += child in self._recent

    def pardon(self) -> None:
        """A hold is released: who raised it does not raise it again; who begins to fail from now on may."""
        self._recent.clear()
        self._recent_lone = 0

    def pardoned(self, name: str) -> bool:
        """Whether a suspect raises no hold any more: it was pardoned, or began to fail long ago."""
        return name not in self._recent

    def resize(self, by: int) -> None:
        """A service is watched now (1), or is not any more (-1)."""
        self._total += by

    def __contains__(self, name: str) -> bool:
        return name in self._suspects

    def __iter__(self) -> Iterator[str]:
        return iter(self._suspects)

    def since(self, name: str) -> float:
        """Return when a service became suspect; infinity when it is not."""
        return self._suspects.get(name, inf)

    @property
    def independent(self) -> int:
        """Watched services, those apart that fail together with a parent."""
        return self._total - (len(self._suspects) - self._lone)

    def rising(self, limits: Limits, now: float) -> bool:
        """Whether enough independent services became suspect within the window."""
        while self._recent:
            name, at = next(iter(self._recent.items()))
            if at > now - limits.storm_window:
                break
            del self._recent[name]
            self._recent_lone -= not self._blamed.get(name)
        return self._recent_lone >= limits.storm_floor and self._recent_lone >= limits.storm_share * self.independent

    def calm(self, limits: Limits) -> bool:
        """Whether the share of the failing has fallen below half of what raises the hold."""
        return self._lone < limits.storm_floor or self._lone < limits.storm_share / 2 * self.independent

    def evidence(self) -> str:
        """Return what is seen, for the record."""
        return f"{self._lone} of {self.independent} independent services are failing"


class CanaryWatch:
    """What the canaries say: while none of them answers, nothing is concluded.

    A canary that cannot be asked answers as little as one that fails: else its own misconfiguration would silence
    everything, and nobody would hear of it. One that a person excused is believed in again when it passes.
    """

    __slots__ = ("_dumb", "_failing", "excused", "last_pass", "names", "well_since")

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._failing: dict[str, bool] = {}
        self._dumb: dict[str, int] = {}
        self.excused = False
        self.last_pass = -inf
        self.well_since = -inf

    def reset(self, names: Iterable[str]) -> None:
        """Begin afresh with these canaries."""
        self.names = tuple(names)
        self._failing, self._dumb, self.excused = {}, {}, False
        self.last_pass = self.well_since = -inf

    def heard(self, name: str, verdict: Verdict, started: float) -> None:
        """Take in one result of a canary; that it could not be asked says nothing before it has happened so often."""
        dumb = self._dumb[name] = self._dumb.get(name, 0) + 1 if verdict is Verdict.INCONCLUSIVE else 0
        if 0 < dumb < DUMB_AFTER:
            return
        was_down = self.down
        failing = dumb > 0 or verdict is Verdict.FAILING
        self._failing[name] = failing
        if not failing:
            self.excused = False
            self.last_pass = max(self.last_pass, started)
            if was_down:
                self.well_since = started

    @property
    def down(self) -> bool:
        """Whether every canary has been heard of, and none well; never while a person excuses them."""
        heard = bool(self.names) and len(self._failing) == len(self.names)
        return heard and not self.excused and all(self._failing.values())

    def vouches(self, since: float) -> bool:
        """Whether a canary check begun at `since` or later passed (or there is no canary to ask, or it is excused)."""
        return not self.names or self.excused or self.last_pass >= since


class DoubtWatch:
    """Our own lateness: results begun before we woke late prove nothing; late for long is people's business."""

    __slots__ = ("before", "last", "since")

    def __init__(self) -> None:
        self.before = -inf
        self.since = inf
        self.last = -inf

    def reset(self) -> None:
        """Begin afresh."""
        self.before, self.since, self.last = -inf, inf, -inf

    def late(self, limits: Limits, at: float, late: float) -> bool:
        """We woke `late` seconds late at `at`. Returns whether we have been late for long, on end.

        Two late wakes belong together when less than a quarter of `late_alert_after` lies between them. One long
        sleep (a suspended machine) is one lateness, however long: it is over when it is noticed, and next to another
        it counts as half of `late_alert_after` at most, so that it takes a second one to be chronic.
        """
        if at - late - self.last > limits.late_alert_after / 4:
            self.since = at
        else:
            self.since += max(0.0, late - limits.late_alert_after / 2)
        self.before = self.last = at
        return at - self.since >= limits.late_alert_after
