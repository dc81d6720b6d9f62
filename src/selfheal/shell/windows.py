"""Maintenance windows of the calendar, as events: one when a window opens or closes, none while nothing changes."""

from __future__ import annotations

import time
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
    """Tells the engine when maintenance windows open and close. Used on the host's loop."""

    def __init__(self, calendar: Calendar, *, clock: Clock) -> None:
        self._calendar = calendar
        self._clock = clock
        self._said: dict[str, WindowChanged] = {}

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            now = time.time()
            for window in self._calendar.at(now):
                self._say(window)
            pause = self._calendar.next_change(now) - now
            await anyio.sleep(min(max(pause, 0.05), LOOK) if pause < inf else 3600.0)

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
