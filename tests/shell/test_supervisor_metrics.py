"""The metrics of a whole supervisor: asked, or answered at once to who cannot wait; the same over a restart."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from selfheal import NotRunning, Supervisor
from selfheal.errors import RequestRefused

if TYPE_CHECKING:
    from tests.shell.supervised import MEND, QUICK, Switch, hearing, until_state
else:
    from supervised import MEND, QUICK, Switch, hearing, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


def one_service(journal: Path | None, check: Switch) -> Supervisor:
    """Return a supervisor of a service that its cure makes well."""
    supervisor = Supervisor(journal=journal)
    supervisor.service("api", recovery_actions=MEND, **QUICK)(check)

    @supervisor.action("api", "mend")
    def mend(context: Any) -> None:
        check.well = True

    return supervisor


async def outage(supervisor: Supervisor, check: Switch) -> None:
    """Let the service be down once, and be cured."""
    async with hearing(supervisor) as heard:
        await until_state(supervisor, "api", "healthy")
        check.well = False
        await heard.first("incident_closed")


def successes(shown: Any) -> list[float]:
    samples = shown["recovery_attempts_total"]["samples"]
    return [one["value"] for one in samples if one["labels"]["result"] == "success"]


async def stored(supervisor: Supervisor, count: float) -> Any:
    """Return the metrics once so many recoveries are stored."""
    with anyio.fail_after(20):
        while True:
            shown = await supervisor.ask("metrics", format="data")
            if successes(shown) == [count]:
                return shown
            await anyio.sleep(0.02)


async def test_counters_go_on_over_a_restart(tmp_path: Path) -> None:
    for run in (1, 2, 3):
        check = Switch()
        async with one_service(tmp_path / "selfheal.db", check) as supervisor:
            await stored(supervisor, run - 1)
            await outage(supervisor, check)
            shown = await stored(supervisor, run)
    durations = {one["name"]: one["value"] for one in shown["recovery_duration_seconds"]["samples"]}
    assert durations["recovery_duration_seconds_count"] == 3


async def test_without_a_journal_the_numbers_of_the_run_are_there() -> None:
    check = Switch()
    async with one_service(None, check) as supervisor:
        await outage(supervisor, check)
        shown = await stored(supervisor, 1)
    (uptime,) = shown["service_uptime_percentage"]["samples"]
    assert 0.0 < uptime["value"] < 100.0


async def test_it_is_answered_at_once_on_the_loop_and_in_any_thread() -> None:
    check = Switch()
    async with one_service(None, check) as supervisor:
        await outage(supervisor, check)
        await stored(supervisor, 1)
        here = supervisor.metrics()
        there = await anyio.to_thread.run_sync(supervisor.metrics)
        text = await anyio.to_thread.run_sync(supervisor.metrics, "openmetrics")
    assert successes(here) == successes(there) == [1]
    assert set(here) == set(there)
    assert text.endswith("# EOF\n")


async def test_it_is_refused_like_any_other_answer() -> None:
    supervisor = one_service(None, Switch())
    with pytest.raises(NotRunning):
        supervisor.metrics()
    async with supervisor:
        with pytest.raises(RequestRefused, match="choose from text, openmetrics, data"):
            supervisor.metrics("yaml")
        with pytest.raises(RequestRefused, match="choose from text, openmetrics, data"):
            await supervisor.ask("metrics", format="yaml")


async def test_who_waits_for_a_loop_that_stands_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfheal.shell.running.TURNS", 0.1)
    found: list[str] = []

    def wait() -> None:
        try:
            supervisor.metrics()
        except TimeoutError as problem:
            found.append(str(problem))

    async with one_service(None, Switch()) as supervisor:
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join()  # this is the loop, and it stands
    assert found == ["the supervisor's loop did not turn for 0.1 s"]
