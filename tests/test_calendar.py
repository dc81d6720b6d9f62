"""Maintenance windows: what people write, strictly read, and right while clocks are put forward and back."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from math import inf
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfheal.calendar import DAYS, Calendar, MaintenanceWindow, Span, WindowState, read_span, read_weekly

HOUR = 3600.0


def window(**fields: Any) -> MaintenanceWindow:
    return MaintenanceWindow(**{"name": "w", "services": ("database",), **fields})


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> float:
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()


def spans(one: MaintenanceWindow, begin: float, end: float) -> list[tuple[float, float]]:
    """When the calendar says it is open, found by asking only what the supervisor asks."""
    calendar, found, now, opened = Calendar([one]), [], begin, None
    while now < end:
        (state,) = calendar.at(now)
        assert state.until > now, "it does not advance"
        assert calendar.next_change(now) == state.until
        if state.active:
            opened = now
        elif opened is not None:
            found.append((opened, now))
            opened = None
        now = state.until
    return found


# -- reading --------------------------------------------------------------------------------------------------------


def test_hours_and_weekdays_are_read() -> None:
    assert read_span("03:00-04:00") == Span(180, 240)
    assert read_span(" 22:00 - 24:00 ") == Span(1320, 1440)
    assert read_weekly("Mon,Wed 22:00-02:00") == ((0, 2), Span(1320, 120))
    assert read_weekly("SUN 03:00-04:00") == ((6,), Span(180, 240))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"daily": "3:00-4:00"}, "daily: '3:00-4:00' is not a span of hours; write it like '03:00-04:00'"),
        ({"daily": "03:60-04:00"}, "a time of day goes from 00:00 to 23:59"),
        ({"daily": "24:00-01:00"}, "a time of day goes from 00:00 to 23:59"),
        ({"daily": "03:00-24:01"}, "a time of day goes from 00:00 to 23:59"),
        ({"daily": "03:00-03:00"}, "is empty; for a whole day write '00:00-24:00'"),
        ({"daily": "00:00-24:00"}, "never ends: disable the services instead"),
        ({"daily": ""}, "daily: '' is not a span of hours"),
        ({"weekly": "03:00-04:00"}, "weekly: '03:00-04:00': '03:00-04:00' is not a weekday"),
        ({"weekly": "Sunday 03:00-04:00"}, "'Sunday' is not a weekday; write it like 'Mon,Wed 22:00-02:00'"),
        ({"weekly": "Mon, Wed 03:00-04:00"}, "'' is not a weekday"),
        ({"weekly": "Mon,mon 03:00-04:00"}, "mon is there twice"),
        ({"weekly": "Mon"}, "'' is not a span of hours"),
        ({"weekly": "Mon 03:00-04:00", "daily": "03:00-04:00"}, "give exactly one of weekly, daily, or start and end"),
        ({}, "give exactly one of weekly, daily, or start and end"),
        ({"start": datetime(2026, 1, 1)}, "start and end: give both"),
        ({"end": datetime(2026, 1, 1)}, "start and end: give both"),
        (
            {"start": datetime(2026, 1, 2), "end": datetime(2026, 1, 1)},
            "end: 2026-01-01 00:00:00 is not after the start",
        ),
        ({"start": "tomorrow", "end": datetime(2026, 1, 1)}, "'tomorrow' is not a date and time; write it like"),
        ({"start": 7, "end": datetime(2026, 1, 1)}, "7 is not a date and time; write it like"),
        ({"daily": "03:00-04:00", "services": ()}, "name the services, or say everything = true"),
        ({"daily": "03:00-04:00", "everything": True}, "and not both"),
        ({"daily": "03:00-04:00", "timezone": "Europe/Atlantis"}, "'Europe/Atlantis' is not a time zone; give an IANA"),
        ({"daily": "03:00-04:00", "timezone": "../etc"}, "is not a time zone"),
        ({"daily": "03:00-04:00", "timezone": ""}, "is not a time zone"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        window(**fields)
    assert words in str(refused.value)


def test_a_host_without_time_zone_data_is_told_what_to_install(tmp_path: Path) -> None:
    ZoneInfo.clear_cache()
    zoneinfo.reset_tzpath([str(tmp_path)])
    try:
        with pytest.raises(ValueError, match="no time zone data; install the system's tzdata"):
            window(daily="03:00-04:00", timezone="Europe/Amsterdam")
    finally:
        zoneinfo.reset_tzpath()
        ZoneInfo.clear_cache()


def test_two_windows_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two maintenance windows are called 'w'"):
        Calendar([window(daily="03:00-04:00"), window(daily="05:00-06:00")])


# -- plain weeks ------------------------------------------------------------------------------------------------------


def test_a_state_says_whom_it_concerns_and_until_when() -> None:
    one = window(weekly="Sun 03:00-04:00", timezone="Europe/Amsterdam")
    sunday = utc(2026, 1, 11, 2)
    assert Calendar([one]).at(sunday) == (
        WindowState(name="w", services=("database",), everything=False, active=True, until=sunday + HOUR),
    )
    assert Calendar([one]).at(sunday - 1.0)[0].until == sunday
    assert Calendar([one]).at(sunday + HOUR)[0] == WindowState(
        name="w", services=("database",), everything=False, active=False, until=sunday + 7 * 24 * HOUR
    )


def test_a_window_across_midnight_belongs_to_the_day_it_begins_on() -> None:
    found = spans(window(weekly="Sun,Mon 22:00-02:00"), utc(2026, 1, 5), utc(2026, 1, 14))
    hours = [(utc(2026, 1, day, 22), utc(2026, 1, day + 1, 2)) for day in (5, 11, 12)]
    assert found[-3:] == hours


def test_days_on_end_are_one_window() -> None:
    found = spans(window(weekly="Sat,Sun 00:00-24:00"), utc(2026, 1, 5), utc(2026, 1, 20))
    assert found == [(utc(2026, 1, 10), utc(2026, 1, 12)), (utc(2026, 1, 17), utc(2026, 1, 19))]


def test_the_calendar_may_be_asked_about_the_past() -> None:
    calendar = Calendar([window(daily="03:00-04:00")])
    assert calendar.at(utc(2026, 1, 5, 3, 30))[0].active
    assert not calendar.at(utc(2026, 1, 4, 2))[0].active
    assert calendar.at(utc(2026, 1, 4, 3))[0].active


def test_an_empty_calendar_never_changes() -> None:
    assert Calendar().at(0.0) == ()
    assert Calendar().next_change(0.0) == inf


# -- once -------------------------------------------------------------------------------------------------------------


def test_a_window_that_happens_once() -> None:
    offset = timezone(timedelta(hours=1))
    aware = window(start=datetime(2026, 1, 1, 3, tzinfo=offset), end=datetime(2026, 1, 1, 5, tzinfo=offset))
    local = window(start=datetime(2026, 1, 1, 3), end=datetime(2026, 1, 1, 5), timezone="Europe/Amsterdam")
    text = window(start="2026-01-01T03:00:00+01:00", end="2026-01-01T05:00:00", timezone="Europe/Amsterdam")
    for one in (aware, local, text):
        assert spans(one, utc(2025, 12, 1), utc(2026, 2, 1)) == [(utc(2026, 1, 1, 2), utc(2026, 1, 1, 4))]
        assert Calendar([one]).next_change(utc(2026, 1, 1, 4)) == inf


# -- clocks that jump -------------------------------------------------------------------------------------------------


def test_a_window_in_the_skipped_hour_does_not_happen_that_day() -> None:
    one = window(weekly="Sun 02:15-02:45", timezone="Europe/Amsterdam")
    found = spans(one, utc(2026, 3, 16), utc(2026, 4, 8))
    assert found == [
        (utc(2026, 3, 22, 1, 15), utc(2026, 3, 22, 1, 45)),
        (utc(2026, 4, 5, 0, 15), utc(2026, 4, 5, 0, 45)),
    ]


@pytest.mark.parametrize(
    ("hours", "begin", "end"),
    [
        ("02:30-04:00", (2026, 3, 29, 1), (2026, 3, 29, 2)),
        ("01:00-02:30", (2026, 3, 29, 0), (2026, 3, 29, 1)),
        ("01:30-03:30", (2026, 3, 29, 0, 30), (2026, 3, 29, 1, 30)),
    ],
)
def test_a_boundary_in_the_skipped_hour_is_the_jump(hours: str, begin: Any, end: Any) -> None:
    one = window(weekly=f"Sun {hours}", timezone="Europe/Amsterdam")
    assert spans(one, utc(2026, 3, 28), utc(2026, 3, 30)) == [(utc(*begin), utc(*end))]


def test_a_boundary_that_comes_twice_leaves_room_for_the_work() -> None:
    one = window(weekly="Sun 02:15-02:45", timezone="Europe/Amsterdam")
    assert spans(one, utc(2026, 10, 24), utc(2026, 10, 26)) == [(utc(2026, 10, 25, 0, 15), utc(2026, 10, 25, 1, 45))]


def test_a_zone_that_jumps_by_half_an_hour() -> None:
    one = window(weekly="Sun 01:45-02:45", timezone="Australia/Lord_Howe")
    assert spans(one, utc(2026, 10, 3), utc(2026, 10, 5)) == [(utc(2026, 10, 3, 15, 15), utc(2026, 10, 3, 15, 45))]


ZONES = {
    "Europe/Amsterdam": ((2026, 3, 29), (2026, 10, 25)),
    "America/New_York": ((2026, 3, 8), (2026, 11, 1)),
    "Australia/Lord_Howe": ((2026, 4, 5), (2026, 10, 4)),
    "America/Santiago": ((2026, 4, 5), (2026, 9, 6)),
    "Pacific/Apia": ((2011, 12, 30), (2011, 9, 24)),
    "Asia/Kolkata": ((2026, 3, 29),),
}
"""Zones, and days on which their clocks jump: by an hour, half an hour, at midnight, by a whole day, never."""


def by_brute_force(days: set[int], begin: int, end: int, zone: str, minutes: list[float]) -> list[bool]:
    """Whether it is open at each minute, from the readings of the clock alone.

    One occurrence lasts from the first minute at which the clock has reached its begin to the last at which it has
    not reached its end.
    """
    walls = [datetime.fromtimestamp(minute, ZoneInfo(zone)).replace(tzinfo=None) for minute in minutes]
    open_ = [False] * len(minutes)
    day = walls[0].date() - timedelta(days=1)
    while day <= walls[-1].date():
        if day.weekday() in days:
            midnight = datetime(day.year, day.month, day.day)
            opens = midnight + timedelta(minutes=begin)
            closes = midnight + timedelta(minutes=end, days=int(end <= begin))
            first = next((i for i, wall in enumerate(walls) if wall >= opens), len(walls))
            last = max((i for i, wall in enumerate(walls) if wall < closes), default=-1)
            for i in range(first, last + 1):
                open_[i] = True
        day += timedelta(days=1)
    return open_


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_the_calendar_agrees_with_the_clock_on_the_wall(data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from(sorted(ZONES)))
    jump = utc(*data.draw(st.sampled_from(ZONES[zone])))
    days = data.draw(st.sets(st.integers(0, 6), min_size=1))
    begin = data.draw(st.one_of(st.integers(0, 1439), st.integers(0, 240)))
    end = data.draw(st.one_of(st.integers(0, 1440), st.integers(0, 240)).filter(lambda end: end != begin))
    if len(days) == 7 and (begin, end) == (0, 1440):
        return
    text = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    weekly = ",".join(DAYS[day].title() for day in sorted(days)) + " " + text
    calendar = Calendar([window(weekly=weekly, timezone=zone)])
    start = jump - 2 * 86_400.0
    minutes = [start + 60.0 * i for i in range(4 * 1440)]
    expected = by_brute_force(days, begin, end, zone, minutes)
    middle = range(1440, 3 * 1440, 7)
    assert [calendar.at(minutes[i])[0].active for i in middle] == [expected[i] for i in middle]
    now = minutes[1440]
    while (change := calendar.next_change(now)) < minutes[3 * 1440]:
        index = round((change - start) / 60.0)
        assert minutes[index] == change
        assert expected[index] != expected[index - 1]
        now = change
