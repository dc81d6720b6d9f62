"""Maintenance windows of the calendar, as events: one when a window opens or closes, none while nothing changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from math import inf, isclose
from typing import Final, Protocol

import anyio

from selfheal.calendar import Calendar, WindowState
from selfheal.core.messages import Event, WindowChanged

LOOK: Final = 60.0
"""Seconds after which a step of the wall clock is found at the latest."""

MOVED: Final = 1.0
"""Seconds by which the end of a window may differ from what was said, before it is said anew."""


class Clock(Protocol):
    """What windows need of the loop."""

    def at(self, instant: float | None = None) -> float: ...

    def from_unix(self, instant: float) -> float: ...

    def post(self, event: Event) -> None: ...


class Windows:
    """Tells the engine when maintenance windows open and close. Used on the host's loop.

    `standing` names the windows that are open by what was decided before: one that is no longer in the calendar ends.
    """

    def __init__(self, *, clock: Clock, standing: Callable[[], Iterable[str]] = tuple) -> None:
        self._calendar = Calendar()
        self._clock = clock
        self._standing = standing
        self._said: dict[str, WindowChanged] = {}
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            now = time.time()
            for window in self._calendar.at(now):
                self._say(window)
            pause = self._calendar.next_change(now) - now
            with anyio.move_on_after(min(max(pause, 0.05), LOOK) if pause < inf else 3600.0):
                await self._changed.wait()
                self._changed = anyio.Event()

    def replace(self, calendar: Calendar) -> None:
        """Take over a calendar: what is open in it holds from now on, what is not in it ends."""
        self._calendar = calendar
        self._said.clear()
        known = {window.name for window in calendar.windows}
        for name in [name for name in self._standing() if name not in known]:
            self._clock.post(WindowChanged(at=self._clock.at(), window=name, active=False, until=inf))
        for window in calendar.at(time.time()):
            self._say(window)
        self._changed.set()

    def _say(self, window: WindowState) -> None:
        """Say how a window stands, unless that has been said: its end is the same but for the drift of two clocks."""
        event = WindowChanged(
            at=self._clock.at(),
            window=window.name,
            services=window.services,
            everything=window.everything,
            active=window.active,
            until=self._clock.from_unix(window.until) if window.until < inf else inf,
        )
        said = self._said.get(window.name)
        known = said is not None and said.active is event.active
        if said is None or not known or not isclose(said.until, event.until, rel_tol=0.0, abs_tol=MOVED):
            self._said[window.name] = event
            self._clock.post(event)
