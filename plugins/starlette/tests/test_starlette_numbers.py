"""The numbers of the API are those that plain SQL finds in the journal's file, also after the daemon was killed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.cli.conftest import House, wait_for
from tests.servers import free_port
from tests.stack.fleets import EAGER
from tests.stack.starlette import PREFIX

pytestmark = [pytest.mark.real_time, pytest.mark.server]

OUTAGES = """
WITH moves AS (
    SELECT at, service, coalesce(body ->> '$.before.state', 'unknown') AS was, body ->> '$.after.state' AS now,
           body ->> '$.before.since' AS since, body ->> '$.after.cause' AS cause
    FROM records WHERE kind = 'moved' AND at <= :until
), known AS (
    SELECT service, min(at) AS since FROM moves WHERE was = 'unknown' GROUP BY service
), down AS (
    SELECT service, at AS confirmed, iif(was = 'unhealthy', since, at) AS began, cause,
           (SELECT min(later.at) FROM moves AS later WHERE later.service = moves.service AND later.at > moves.at
            AND later.now IN ('healthy', 'degraded')) AS ended
    FROM moves WHERE now IN ('failed', 'recovering') AND was NOT IN ('failed', 'recovering')
), away AS (
    SELECT at - coalesce(body ->> '$.away', body ->> '$.late') AS since, at AS until
    FROM records WHERE kind IN ('resumed', 'doubted') AND at <= :until
)
"""

TIMES = (
    OUTAGES
    + """
SELECT
    :until - known.since - (SELECT total(max(0, until - max(away.since, known.since))) FROM away),
    (SELECT total(coalesce(ended, :until) - began) FROM down WHERE down.service = known.service)
    - (SELECT total(max(0, min(coalesce(ended, :until), until) - max(began, away.since))) FROM down, away
       WHERE down.service = known.service)
FROM known WHERE service = :service
"""
)

COUNTS = (
    OUTAGES
    + """
SELECT (SELECT count(*) FROM down WHERE service = :service),
       (SELECT count(*) FROM moves WHERE service = :service AND was = 'recovering' AND now = 'healthy'),
       (SELECT avg(ended - began) FROM down WHERE service = :service AND ended IS NOT NULL),
       (SELECT count(*) FROM records WHERE kind = 'intended' AND service = :service AND at <= :until),
       (SELECT avg(confirmed - began) FROM down WHERE service = :service)
"""
)


def select(house: House, sql: str, **given: Any) -> tuple[Any, ...]:
    """Ask the journal's file itself, past all of selfheal."""
    with closing(sqlite3.connect(f"file:{house.state / 'selfheal.db'}?mode=ro", uri=True, timeout=10.0)) as journal:
        row: tuple[Any, ...] = journal.execute(sql, given).fetchone()
        return row


def equal(house: House, answer: dict[str, Any], service: str) -> dict[str, Any]:
    """Hold the numbers of a service against the file as of the moment they are about, and return them."""
    found: dict[str, Any] = answer["services"][service]
    (began,) = select(house, "SELECT min(at) FROM records")
    until = began + answer["window_seconds"] + 1e-7  # the last record came just then, but for the rounding
    observed, down = select(house, TIMES, service=service, until=until)
    assert found["observed_seconds"] == pytest.approx(observed, abs=1e-6)
    assert found["down_seconds"] == pytest.approx(down, abs=1e-6)
    assert found["uptime_percentage"] == pytest.approx(100.0 * (1.0 - down / observed))
    failures, recovered, mean, taken, _ = select(house, COUNTS, service=service, until=until)
    assert (found["incidents"], found["recovered"], found["steps"]["taken"]) == (failures, recovered, taken)
    assert found["mean_recovery_seconds"] == (pytest.approx(mean) if mean is not None else None)
    assert found["mean_time_between_failures_seconds"] == (
        pytest.approx((observed - down) / failures) if failures else None
    )
    rate = failures / (observed - down) * 86400.0
    assert found["failure_rate_per_day"] == pytest.approx(rate)
    assert found["steps"]["success"] == recovered
    assert sum(found["failures_by_cause"].values()) == failures
    return found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.end()


def test_s50_the_numbers_are_those_of_independent_sql_before_and_after_a_kill(house: House) -> None:
    port = free_port()
    house.write(f'[http]\nlisten = "127.0.0.1:{port}"\n', fleet=EAGER)
    base = f"http://127.0.0.1:{port}{PREFIX}"

    def ask(path: str) -> Any:
        return httpx2.get(f"{base}{path}", timeout=10.0).json()

    def broken(times: int) -> dict[str, Any]:
        """Break it once more, and return the answer when it has been repaired so many times."""
        house.break_(house.web)
        wait_for(lambda: ask("/statistics")["services"]["web"]["recovered"] == times)
        answer: dict[str, Any] = ask("/statistics")
        return answer

    def served() -> bool:
        try:
            return bool(ask("/health")["status"] == "pass")
        except httpx2.TransportError:
            return False

    daemon = house.start()
    wait_for(served)
    house.settled()
    equal(house, ask("/statistics"), "web")
    broken(1)
    before = broken(2)
    found = equal(house, before, "web")
    assert (found["incidents"], found["recovered"], found["coverage"]) == (2, 2, pytest.approx(1.0, abs=0.2))

    house.break_(house.web)
    wait_for(lambda: select(house, "SELECT count(*) FROM records WHERE kind = 'intended' AND service = 'web'")[0] == 3)
    daemon.kill()
    daemon.wait()
    # Nobody runs: the command line reads the same file.
    dead = house.ask("statistics")
    assert equal(house, dead, "web")["open"] == 1
    assert dead["fleet"]["recovered"] >= 2

    house.start()
    wait_for(served)
    wait_for(lambda: ask("/statistics")["services"]["web"]["recovered"] == 3)
    house.settled()
    after = broken(4)
    found = equal(house, after, "web")
    equal(house, after, "shop")
    assert found["incidents"] == 4
    fleet, services = after["fleet"], after["services"].values()
    for key in ("incidents", "recovered", "healed_by_itself", "open", "observed_seconds", "down_seconds"):
        assert fleet[key] == pytest.approx(sum(one[key] for one in services)), key
    assert fleet["steps"]["taken"] == sum(one["steps"]["taken"] for one in services)

    # A window sees its part of it, and one in which nothing was down is all up.
    hour = ask("/statistics?window=3600")
    assert hour["services"]["web"]["incidents"] == 4
    (away,) = select(house, "SELECT body ->> '$.away' FROM records WHERE kind = 'resumed' ORDER BY seq DESC")
    assert away > 0.0
    assert sum(day["down_seconds"] for day in ask("/statistics?days=2")["services"]["web"]["days"]) == pytest.approx(
        found["down_seconds"], abs=0.5
    )
