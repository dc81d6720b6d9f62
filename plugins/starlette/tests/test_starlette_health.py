"""`/health` says 503 while selfheal itself is unwell, and says so no longer when it is well again: each for real."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.servers import until
from tests.stack.starlette import PREFIX, Fleet, Served, serving

from selfheal.core.model import Limits
from selfheal.supervisor import Threaded
from selfheal_starlette import recovery_app

pytestmark = pytest.mark.real_time

EAGER = Limits(late_after=0.05, late_alert_after=0.8)


@contextmanager
def beside(folder: Path) -> Iterator[tuple[Served, Threaded]]:
    """Serve the API of a fleet that runs on a loop of its own, as in the daemon."""
    fleet = Fleet(folder)
    with fleet.supervisor(limits=EAGER).threaded() as running:
        app = Starlette(routes=[Mount(PREFIX, app=recovery_app(running, loopback_writes=True))])
        with serving(app, fleet) as served:
            until(lambda: verdict(served) == (200, ""), "it is well")
            yield served, running


def verdict(served: Served) -> tuple[int, str]:
    response = served.get("/health")
    assert response.json()["status"] == ("pass" if response.status_code == 200 else "fail")
    return response.status_code, "; ".join(response.json()["why"])


def unwell(served: Served, why: str) -> bool:
    code, said = verdict(served)
    assert (code == 503) == bool(said)
    return why in said


def test_a_loop_that_stands_still_is_late_and_well_again_when_it_turns(tmp_path: Path) -> None:
    with beside(tmp_path) as (served, running):
        standing = running.portal.start_task_soon(_blocking(3.0))
        assert until(lambda: unwell(served, "the scheduler is late: the engine did not say"), "it is late")
        standing.result(10.0)
        until(lambda: verdict(served) == (200, ""), "it is well again")
        assert served.get("/health").json()["details"]["lag_seconds"] > 1.0, "how late it was is told for a minute"


def test_a_loop_that_is_late_again_and_again_is_late_until_it_is_not(tmp_path: Path) -> None:
    with beside(tmp_path) as (served, running):

        def late() -> bool:
            running.portal.start_task_soon(_blocking(0.12)).result(10.0)
            return unwell(served, "the scheduler is late, for a minute or more")

        until(late, "it is late for long")
        until(lambda: verdict(served) == (200, ""), "it is on time again")


def _blocking(seconds: float) -> Callable[[], object]:
    async def stand() -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # that is the subject

    return stand


def test_a_journal_that_cannot_be_written_is_said_until_it_can(tmp_path: Path) -> None:
    with beside(tmp_path) as (served, _):
        with closing(sqlite3.connect(tmp_path / "selfheal.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            acted = served.post("/services/mail/disable", json={"reason": "while nothing can be stored"})
            until(lambda: unwell(served, "the journal cannot be written"), "it is said", 20.0)
            assert served.get("/status").status_code == 200, "reading goes on"
            other.execute("ROLLBACK")
        until(lambda: verdict(served) == (200, ""), "it can be written again", 20.0)
        assert acted.status_code == 200, acted.text
        stored = served.get("/audit").json()["records"]
        assert [one["asked_because"] for one in stored] == ["while nothing can be stored"]


def test_an_engine_that_is_stopped_is_said_until_it_runs_again(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    supervisor = fleet.supervisor()
    app = Starlette(routes=[Mount(PREFIX, app=recovery_app(supervisor))])
    with serving(app, fleet) as served:
        assert unwell(served, "The engine is not running")
        for _ in range(2):
            with supervisor.threaded():
                until(lambda: verdict(served)[0] == 200, "it runs")
            assert unwell(served, "The engine is not running")


def test_an_engine_that_a_fault_has_ended_is_unwell_for_good(tmp_path: Path) -> None:
    with beside(tmp_path) as (served, running):
        inside = running.supervisor._running
        assert inside is not None
        running.portal.call(inside.loop.give_up, RuntimeError("a fault of our own"))
        assert verdict(served) == (503, "the engine does not turn: a fault has ended it, or nobody holds it")
        assert served.get("/status").json()["running"] is False
