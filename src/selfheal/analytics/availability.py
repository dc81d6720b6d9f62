"""The numbers: uptime, failures, time to repair, which action helps, reliability. "No data" is an answer (None).

All of it over a window of journal time, from what `timeline` and `repairs` read out of the records. Definitions, and
why they are these: see the page on numbers in the documentation; the measurements behind them (what the median of
closed outages hides, how a blend of ratios forecasts) are of public outage histories and of the LANL failure data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any, Final

import attrs

from selfheal.analytics.repairs import Outcome, Repair
from selfheal.analytics.timeline import Failure, Lived

DAY: Final = 86400.0
WEEK: Final = 7 * DAY
HALF_LIFE: Final = 60 * DAY
"""Seconds after which a week counts half in the reliability score."""
PSEUDO_WEEKS: Final = 2.0
"""Weeks of the fleet's mean that are mixed into each service's score: few weeks prove little."""
ENOUGH: Final = 0.5
"""Share of a week that must have been observed for it to count."""
TARGET: Final = 0.995
"""Share of the observed time that a week must be up to count as met, unless another is asked for."""
NONE_SEEN: Final = 3.0
"""Rule of three: with no failure in T, the mean time between failures is at least T / 3, with 95 % confidence."""


@attrs.frozen(kw_only=True)
class Availability:
    """How one service did over a window, in seconds. `coverage` is the share of the enabled time that was observed.

    `uptime` is 1 - down / observed; None where nothing was observed.
    """

    enabled: float
    observed: float
    down: float
    degraded: float
    planned: float
    uptime: float | None
    coverage: float | None


def availability(lived: Lived, since: float, until: float) -> Availability:
    """Return how a service did from `since` to `until`."""
    return summed(
        enabled=lived.enabled.seconds_within(since, until),
        observed=lived.observed.seconds_within(since, until),
        down=lived.fallen.seconds_within(since, until),
        degraded=lived.warned.seconds_within(since, until),
        planned=lived.excused.seconds_within(since, until),
    )


def summed(*, enabled: float, observed: float, down: float, degraded: float, planned: float) -> Availability:
    """Return what follows from these seconds."""
    unplanned = enabled - planned
    return Availability(
        enabled=enabled,
        observed=observed,
        down=down,
        degraded=degraded,
        planned=planned,
        uptime=1.0 - down / observed if observed > 0 else None,
        coverage=observed / unplanned if unplanned > 0 else None,
    )


@attrs.frozen
class Days:
    """The last days of UTC, oldest first; the last ends with the instant they were made for."""

    edges: tuple[float, ...]
    dates: tuple[str, ...]

    @classmethod
    def until(cls, until: float, wall: float, days: int) -> Days:
        """Return the last `days` days (1 or more). `wall` is the UNIX time of `until`, which is journal time."""
        midnight = until - wall % DAY
        begins = tuple(midnight - back * DAY for back in range(days - 1, -1, -1))
        dates = (datetime.fromtimestamp(wall - (until - since), UTC).date().isoformat() for since in begins)
        return cls((*begins, until), tuple(dates))


def daily(lived: Lived, days: Days) -> list[dict[str, Any]]:
    """Return how each of some days went.

    A day before the first of which anything is known is left out; in the others, seconds that are in none of the four
    were not observed.
    """
    known = min((since for since, _ in lived.enabled), default=inf)
    columns = [part.parts(days.edges) for part in (lived.observed, lived.fallen, lived.warned, lived.excused)]
    return [
        {
            "date": date,
            "observed_seconds": observed,
            "down_seconds": down,
            "degraded_seconds": degraded,
            "planned_seconds": planned,
        }
        for end, date, observed, down, degraded, planned in zip(days.edges[1:], days.dates, *columns, strict=True)
        if end > known
    ]


def quantile(durations: Iterable[float], still: Iterable[float], share: float) -> float | None:
    """Return the time within which `share` (0 to 1) of what began was over; None where it cannot be said.

    `still` are those that last, with how long they have so far: leaving them out would make every number too good
    (Kaplan and Meier, 1958; over real durations, the closed ones alone had a median of 17 min where 20 was true and
    this gave 21, and a mean of 26.5 where 41 was).
    """
    events = sorted([(seconds, 0) for seconds in durations] + [(seconds, 1) for seconds in still])
    surviving, at_risk = 1.0, len(events)
    for seconds, lasts in events:
        if not lasts:
            surviving *= 1.0 - 1.0 / at_risk
            if 1.0 - surviving >= share - 1e-12:
                return seconds
        at_risk -= 1
    return None


def reliability(weeks: Sequence[tuple[float, bool]], fleet: float | None) -> float | None:
    """Return the chance, 0 to 100, that next week meets its target; None without a week to judge by.

    `weeks` are (age in seconds, met). It is the share of weeks that met the target, each counting half as much as one
    `HALF_LIFE` younger, drawn towards the `fleet`'s share by two weeks' worth. Of six forecasts of the next window, on
    two public histories, this was the best in all cases (Brier score); a weighted blend of uptime, repair time and
    success rate forecasts nothing.
    """
    if not weeks or fleet is None:
        return None
    met, total = _weighed(weeks)
    return 100.0 * (met + PSEUDO_WEEKS * fleet) / (total + PSEUDO_WEEKS)


def weeks(lived: Lived, until: float, target: float = TARGET) -> list[tuple[float, bool]]:
    """Return (age, whether it met the target) of every week back from `until` of which enough was observed."""
    first = min((since for since, _ in lived.enabled), default=inf)
    edges = [until]
    while edges[-1] - WEEK >= first - DAY:  # a week that lacks its first hours is one too
        edges.append(edges[-1] - WEEK)
    edges.reverse()
    columns = (part.parts(edges) for part in (lived.observed, lived.fallen, lived.excused))
    found = [
        (until - end, 1.0 - down / observed >= target)
        for end, observed, down, planned in zip(edges[1:], *columns, strict=True)
        if observed > 0 and observed + planned >= ENOUGH * WEEK
    ]
    found.reverse()
    return found


def fleet_share(of_services: Iterable[Sequence[tuple[float, bool]]]) -> float | None:
    """Return the share of all weeks of all services that met the target, younger ones counting more."""
    met, total = _weighed([week for one in of_services for week in one])
    return met / total if total else None


def _weighed(weeks: Iterable[tuple[float, bool]]) -> tuple[float, float]:
    """Return the weight of the weeks that met their target, and of all."""
    weighed = [(float(0.5 ** (age / HALF_LIFE)), met) for age, met in weeks]
    return sum(weight for weight, met in weighed if met), sum(weight for weight, _ in weighed)


def numbers(
    lived: Lived, repairs: Iterable[Repair], *, since: float, until: float, score: float | None = None
) -> Numbers:
    """Return everything that is counted of one service in a window."""
    return Numbers(
        time=availability(lived, since, until),
        failures=[failure for failure in lived.failures if since <= failure.began < until],
        repairs=[repair for repair in repairs if since <= repair.began < until],
        since=since,
        until=until,
        score=score,
    )


@attrs.frozen(kw_only=True)
class Numbers:
    """What is counted of a service, or of several, in a window of journal time."""

    time: Availability
    failures: Sequence[Failure]
    repairs: Sequence[Repair]
    since: float
    until: float
    score: float | None = None

    @classmethod
    def together(cls, some: Sequence[Numbers], *, since: float, until: float, score: float | None) -> Numbers:
        """Return what is counted of several services: their times added up, their failures and steps as one list."""
        times = [one.time for one in some]
        return cls(
            time=summed(
                enabled=sum(time.enabled for time in times),
                observed=sum(time.observed for time in times),
                down=sum(time.down for time in times),
                degraded=sum(time.degraded for time in times),
                planned=sum(time.planned for time in times),
            ),
            failures=[failure for one in some for failure in one.failures],
            repairs=[repair for one in some for repair in one.repairs],
            since=since,
            until=until,
            score=score,
        )

    def shape(self) -> dict[str, Any]:
        """Return them under the names of the public answer."""
        time, until = self.time, self.until
        up = time.observed - time.down
        return {
            "window_seconds": until - self.since,
            "observed_seconds": time.observed,
            "coverage": time.coverage,
            "uptime_percentage": None if time.uptime is None else 100.0 * time.uptime,
            "down_seconds": time.down,
            "degraded_seconds": time.degraded,
            "planned_seconds": time.planned,
            **_failed(self.failures, up),
            **_repaired(self.failures, until),
            "steps": _counted(self.repairs),
            "actions": _acted(self.repairs),
            "reliability_score": self.score,
        }


def _failed(failures: Sequence[Failure], up: float) -> dict[str, Any]:
    detections = sorted(failure.confirmed - failure.began for failure in failures)
    causes = Counter(failure.cause.value if failure.cause is not None else "unknown" for failure in failures)
    return {
        "incidents": len(failures),
        "relapses": sum(failure.relapses for failure in failures),
        "failures_by_cause": dict(causes.most_common()),
        "failure_rate_per_day": len(failures) / (up / DAY) if up > 0 else None,
        "mean_time_between_failures_seconds": up / len(failures) if failures else None,
        "mean_time_between_failures_at_least_seconds": up / NONE_SEEN if not failures and up > 0 else None,
        "median_detection_seconds": quantile(detections, (), 0.5),
    }


def _repaired(failures: Sequence[Failure], until: float) -> dict[str, Any]:
    over = [failure for failure in failures if failure.over]
    times = [failure.ended - failure.began for failure in over if failure.ended is not None]
    still = [
        (until if failure.ended is None else failure.ended) - failure.began for failure in failures if not failure.over
    ]
    return {
        "recovered": sum(failure.recovered for failure in over),
        "healed_by_itself": sum(not failure.recovered for failure in over),
        "open": sum(failure.ended is None for failure in failures),
        "recoveries_measured": len(times),
        "mean_recovery_seconds": sum(times) / len(times) if times else None,
        "median_recovery_seconds": quantile(times, still, 0.5),
        "p90_recovery_seconds": quantile(times, still, 0.9),
    }


def _acted(repairs: Sequence[Repair]) -> dict[str, Any]:
    by_action: dict[str, list[Repair]] = {}
    for repair in repairs:
        by_action.setdefault(repair.action, []).append(repair)
    return {action: _counted(some) for action, some in by_action.items()}


def _counted(repairs: Sequence[Repair]) -> dict[str, Any]:
    outcomes = Counter(repair.outcome for repair in repairs)
    won, lost = outcomes[Outcome.SUCCESS], outcomes[Outcome.FAILURE]
    return {
        "taken": len(repairs),
        "success": won,
        "failure": lost,
        "success_rate": won / (won + lost) if won + lost else None,
    }
