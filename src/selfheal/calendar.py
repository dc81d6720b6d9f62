"""The calendar: maintenance windows in local time become facts in UTC.

Owns what people write (`weekly`, `daily`, or one `start` and `end`), its strict reading, and which window is open
when. The supervisor turns each change into a `WindowChanged`; what a window suppresses is the engine's business.

A clock that is put forward skips some local times, and one that is put back shows some twice. A window is the set of
instants from its local beginning to its local end. A boundary in the skipped hour is the moment of the jump; one that
comes twice begins at the first and ends at the second, so that the work fits in whatever the clock shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time, timedelta
from math import inf
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

MIDNIGHT: Final = 24 * 60

_SPAN: Final = re.compile(r"(\d\d):(\d\d)\s*-\s*(\d\d):(\d\d)")


def zone(name: str) -> ZoneInfo:
    """Return a time zone by its IANA name. Raises `ValueError` when it is unknown here, or no zone is known at all."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    try:
        ZoneInfo("Europe/London")
    except (ZoneInfoNotFoundError, OSError):
        raise ValueError(
            f"timezone: {name!r} cannot be looked up: this host has no time zone data; install the system's tzdata "
            "package, or the Python package of that name"
        ) from None
    raise ValueError(f"timezone: {name!r} is not a time zone; give an IANA name such as 'Europe/Amsterdam' or 'UTC'")


@attrs.frozen
class Span:
    """From `begin` to `end`, in minutes of the local day; an end not after the begin is on the next day."""

    begin: int
    end: int

    @property
    def days(self) -> int:
        """How many midnights lie between begin and end."""
        return int(self.end <= self.begin)


def read_span(text: str) -> Span:
    """Read `03:00-04:00`. `24:00` ends a day. Raises `ValueError`."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a span of hours; write it like '03:00-04:00'")
    hour, minute, to_hour, to_minute = (int(part) for part in match.groups())
    begin, end = hour * 60 + minute, to_hour * 60 + to_minute
    if minute > 59 or to_minute > 59 or begin >= MIDNIGHT or end > MIDNIGHT:
        raise ValueError(f"{text!r}: a time of day goes from 00:00 to 23:59 (an end also to 24:00)")
    if begin == end:
        raise ValueError(f"{text!r} is empty; for a whole day write '00:00-24:00'")
    return Span(begin, end)


def read_weekly(text: str) -> tuple[tuple[int, ...], Span]:
    """Read `Sun 03:00-04:00` or `Mon,Wed 22:00-02:00`: weekdays (Monday is 0) and hours. Raises `ValueError`."""
    days, _, hours = text.strip().partition(" ")
    numbers = []
    for name in days.split(","):
        if name.lower() not in DAYS:
            names = ", ".join(day.title() for day in DAYS)
            raise ValueError(f"{text!r}: {name!r} is not a weekday; write it like 'Mon,Wed 22:00-02:00' (of {names})")
        if DAYS.index(name.lower()) in numbers:
            raise ValueError(f"{text!r}: {name} is there twice")
        numbers.append(DAYS.index(name.lower()))
    return tuple(sorted(numbers)), read_span(hours)


def _moment(value: datetime | str | None) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a date and time; write it like 2026-03-29T01:00:00+01:00") from None


def _names(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"services: {value!r} is one name; write a list of them")
    return tuple(value)


@attrs.frozen(kw_only=True)
class MaintenanceWindow:
    """When some services are being worked on: exactly one of `weekly`, `daily`, or `start` with `end`.

    `weekly` is like "Mon,Wed 22:00-02:00" (the weekday is the one it begins on), `daily` like "03:00-04:00", both in
    `timezone`, as are a `start` and `end` without an offset. `services` names whom; `everything` must be said (law 19).
    Raises `ValueError` for what cannot be meant.
    """

    name: str
    services: tuple[str, ...] = attrs.field(default=(), converter=_names)
    everything: bool = False
    weekly: str | None = None
    daily: str | None = None
    start: datetime | None = attrs.field(default=None, converter=_moment)
    end: datetime | None = attrs.field(default=None, converter=_moment)
    timezone: str = "UTC"
    zone: ZoneInfo = attrs.field(init=False, repr=False, eq=False)
    days: tuple[int, ...] = attrs.field(init=False, repr=False, eq=False, default=())
    hours: Span | None = attrs.field(init=False, repr=False, eq=False, default=None)

    def __attrs_post_init__(self) -> None:
        put = object.__setattr__  # attrs' own way to finish a frozen object
        put(self, "zone", zone(self.timezone))
        if self.everything == bool(self.services):
            raise ValueError("services: name the services, or say everything = true, and not both")
        once = self.start is not None or self.end is not None
        if (self.weekly is not None) + (self.daily is not None) + once != 1:
            raise ValueError("give exactly one of weekly, daily, or start and end")
        if once:
            if self.start is None or self.end is None:
                raise ValueError("start and end: give both")
            if not self.once[0] < self.once[1]:
                raise ValueError(f"end: {self.end} is not after the start, {self.start}")
            return
        try:
            days, hours = read_weekly(self.weekly) if self.weekly is not None else _every_day(self.daily or "")
        except ValueError as problem:
            raise ValueError(f"{'daily' if self.weekly is None else 'weekly'}: {problem}") from None
        if len(days) == 7 and hours == Span(0, MIDNIGHT):
            raise ValueError("a maintenance that never ends: disable the services instead")
        put(self, "days", days)
        put(self, "hours", hours)

    @property
    def once(self) -> tuple[float, float]:
        """Begin and end of a window that happens once, in UNIX time."""
        assert self.start is not None
        assert self.end is not None
        return instant(self.start, self.zone, ending=False), instant(self.end, self.zone, ending=True)

    def spans(self, utc: float) -> Iterator[tuple[float, float]]:
        """Yield when it is open, in UNIX time and in order: whatever ends after `utc`, for about the next 16 days.

        Sixteen, because a weekly window that falls into a skipped hour does not happen that week.
        """
        if self.hours is None:
            if self.once[1] > utc:
                yield self.once
            return
        begin, end = 0.0, -inf
        today = datetime.fromtimestamp(utc, self.zone).date()
        for offset in range(-1, 17):
            day = today + timedelta(days=offset)
            if day.weekday() not in self.days:
                continue
            opens = instant(_wall(day, self.hours.begin), self.zone, ending=False)
            closes = instant(_wall(day + timedelta(days=self.hours.days), self.hours.end), self.zone, ending=True)
            if closes <= opens:
                continue
            if opens <= end:
                end = closes
                continue
            if end > utc:
                yield begin, end
            begin, end = opens, closes
        yield begin, end


@attrs.frozen(kw_only=True)
class WindowState:
    """How a window stands: open (`active`) or not, and until when, in UNIX time (infinity: for ever)."""

    name: str
    services: tuple[str, ...]
    everything: bool
    active: bool
    until: float


class Calendar:
    """All windows together. Raises `ValueError` when two have the same name."""

    def __init__(self, windows: Iterable[MaintenanceWindow] = ()) -> None:
        self.windows = tuple(windows)
        names = [window.name for window in self.windows]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two maintenance windows are called {name!r}; give each its own name")
        self._latest: dict[str, tuple[float, WindowState]] = {}

    def at(self, utc: float) -> tuple[WindowState, ...]:
        """Return how every window stands at `utc`, in UNIX seconds."""
        return tuple(self._state(window, utc) for window in self.windows)

    def next_change(self, utc: float) -> float:
        """Return when the next window opens or closes after `utc`; infinity when none ever does."""
        return min((state.until for state in self.at(utc)), default=inf)

    def _state(self, window: MaintenanceWindow, utc: float) -> WindowState:
        since, state = self._latest.get(window.name, (inf, None))
        if state is not None and since <= utc < state.until:
            return state
        begin, end = next(window.spans(utc), (inf, inf))
        active = begin <= utc
        state = WindowState(
            name=window.name,
            services=window.services,
            everything=window.everything,
            active=active,
            until=end if active else begin,
        )
        self._latest[window.name] = (utc, state)
        return state


def instant(wall: datetime, zone: ZoneInfo, *, ending: bool) -> float:
    """Return the UNIX time of a reading of the clocks in `zone`; one that has an offset of its own needs no `zone`.

    A reading that is skipped is the moment of the jump; of one that comes twice, the second counts when `ending`.
    """
    if wall.tzinfo is not None:
        return wall.timestamp()
    first, second = (wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if second < first:
        return _jump(second, first, zone)
    return second if ending else first


def _jump(low: float, high: float, zone: ZoneInfo) -> float:
    """Return the second at which the offset of `zone` changes between two instants."""
    before = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1.0:
        middle = float((low + high) // 2)
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def _wall(day: date, minutes: int) -> datetime:
    return datetime.combine(day, time()) + timedelta(minutes=minutes)


def _every_day(text: str) -> tuple[tuple[int, ...], Span]:
    return tuple(range(7)), read_span(text)
