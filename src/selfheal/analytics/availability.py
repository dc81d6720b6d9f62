"""The numbers: uptime, failures, time to repair, which action helps, reliability. "No data" is an answer (None).

All of it over a window of journal time, from what `timeline` and `repairs` read out of the records. Definitions, and
why they are these: see the page on numbers in the documentation; the measurements behind them (what the median of
closed outages hides, how a blend of ratios forecasts) are of public outage histories and of the LANL failure data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    enabled = lived.enabled.within(since, until)
    planned = (lived.planned & enabled).seconds
    observed = lived.observed.within(since, until)
    down = (observed & lived.down).seconds
    unplanned = enabled.seconds - planned
    return Availability(
        enabled=enabled.seconds,
        observed=observed.seconds,
        down=down,
        degraded=(observed & lived.degraded).seconds,
        planned=planned,
        uptime=1.0 - down / observed.seconds if observed.seconds > 0 else None,
        coverage=observed.seconds / unplanned if unplanned > 0 else None,
    )


def daily(lived: Lived, until: float, wall: float, days: int) -> list[dict[str, Any]]:
    """Return how each of the last `days` days went, oldest first; days are of UTC, and the last ends with `until`.

    `wall` is the UNIX time of `until`. A day before the first of which anything is known is left out; in the others,
    seconds that are in none of the four were not observed.
    """
    known = min((since for since, _ in lived.enabled), default=inf)
    midnight = until - wall % DAY
    found = []
    for back in range(days - 1, -1, -1):
        since, end = midnight - back * DAY, min(until, midnight - back * DAY + DAY)
        if end <= known:
            continue
        day = availability(lived, since, end)
        found.append(
            {
                "date": datetime.fromtimestamp(wall - (until - since), UTC).date().isoformat(),
                "observed_seconds": day.observed,
                "down_seconds": day.down,
                "degraded_seconds": day.degraded,
                "planned_seconds": day.planned,
            }
        )
    return found


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
    found: list[tuple[float, bool]] = []
    first = min((since for since, _ in lived.enabled), default=inf)
    end = until
    while end - WEEK >= first - DAY:  # a week that lacks its first hours is one too
        week = availability(lived, end - WEEK, end)
        if week.uptime is not None and week.observed + week.planned >= ENOUGH * WEEK:
            found.append((until - end, week.uptime >= target))
        end -= WEEK
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
) -> Mapping[str, Any]:
    """Return everything that is counted of one service in a window, under the names of the public answer."""
    time = availability(lived, since, until)
    failures = [failure for failure in lived.failures if since <= failure.began < until]
    up = time.observed - time.down
    return {
        "window_seconds": until - since,
        "observed_seconds": time.observed,
        "coverage": time.coverage,
        "uptime_percentage": None if time.uptime is None else 100.0 * time.uptime,
        "down_seconds": time.down,
        "degraded_seconds": time.degraded,
        "planned_seconds": time.planned,
        **_failed(failures, up, until),
        **_repaired(failures, until),
        "actions": _acted([repair for repair in repairs if since <= repair.began < until]),
        "reliability_score": score,
    }


def _failed(failures: Sequence[Failure], up: float, until: float) -> dict[str, Any]:
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
    shown: dict[str, Any] = {}
    for action in dict.fromkeys(repair.action for repair in repairs):
        outcomes = Counter(repair.outcome for repair in repairs if repair.action == action)
        won, lost = outcomes[Outcome.SUCCESS], outcomes[Outcome.FAILURE]
        shown[action] = {
            "taken": outcomes.total(),
            "success": won,
            "failure": lost,
            "success_rate": won / (won + lost) if won + lost else None,
        }
    return shown
