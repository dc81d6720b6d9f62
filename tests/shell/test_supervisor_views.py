"""Every answer is plain data and what the table of requests promises; numbers are those that were recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.broken import fails_when

from selfheal import Cause, CheckResult, Supervisor, Verdict, requests
from selfheal.errors import RequestRefused
from selfheal.testing.doubles import ScriptedWorkload

if TYPE_CHECKING:
    from tests.shell.supervised import MEND, QUICK, RESTART, Switch, hearing, quick, state_of, until, until_state
else:
    from supervised import MEND, QUICK, RESTART, Switch, hearing, quick, state_of, until, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

OUTER = {
    "version", "seq", "at", "time", "kind", "service", "incident", "root_incident", "attempt", "step", "action",
    "actor", "reason", "cause", "correlation_id", "guards", "duration_seconds",
}  # fmt: skip
"""Fields that every record has (design §6)."""

PROMISED: dict[str, set[str]] = {
    "status": {"counts", "holds", "incidents", "services"},
    "service": {"policy", "condition", "evidence", "alerts"},
    "incident": {"incident", "members", "timeline"},
    "health": {"running", "reading", "journal", "version", "release", "lag_seconds"},
    "statistics": {"services", "incidents"},
    "graph": {"services", "edges"},
}
LISTS = {"services", "incidents", "history", "alerts", "approvals", "suppressions", "audit", "records", "results"}


class Outage:
    """A service that was down once and was cured, and one that depends on it."""

    def __init__(self, path: Path | None, **options: Any) -> None:
        self.check, self.child = Switch(), Switch()
        self.supervisor = Supervisor(journal=path, **options)
        self.supervisor.service("api", recovery_actions=MEND, **QUICK)(self.check)
        self.supervisor.service("web", depends_on=["api"], **QUICK)(self.child)
        self.supervisor.action("api", "mend")(self.mend)

    def mend(self, context: Any) -> None:
        self.check.well = True

    async def happen(self, heard: Any, nth: int = 1) -> None:
        await until_state(self.supervisor, "api", "healthy")
        self.check.well = False
        await heard.first("incident_closed", nth=nth)


async def test_every_answer_is_plain_data_and_what_the_table_promises(tmp_path: Path) -> None:
    outage = Outage(tmp_path / "selfheal.db")
    async with outage.supervisor as supervisor, hearing(supervisor) as heard:
        await outage.happen(heard)
        await supervisor.act("silence", services=["web"], actor="alice", reason="a test")
        parameters: dict[str, dict[str, Any]] = {
            "service": {"service": "api"},
            "explain": {"service": "api"},
            "incident": {"number": 1},
            "results": {"service": "api"},
        }
        for request in requests.TABLE.values():
            if request.act or request.name == "heartbeat":
                continue
            answer = await supervisor.ask(request.name, **parameters.get(request.name, {}))
            again = json.loads(json.dumps(answer, allow_nan=False))
            assert again == answer, f"{request.name} changes when it is written down"
            if request.name in LISTS:
                assert isinstance(answer, list), request.name
            if request.name in PROMISED:
                assert PROMISED[request.name] <= set(answer), request.name
            assert "Infinity" not in json.dumps(answer)
        records = await supervisor.ask("records")
        assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
        for record in records:
            assert set(record) >= OUTER, record["kind"]
            assert set(record["reason"]) == {"code", "detail"}
            assert datetime.fromisoformat(record["time"]).tzinfo is not None
        assert await supervisor.ask("records", after=records[2]["seq"]) == records[3:]
        assert len(await supervisor.ask("history", limit=3)) == 3


async def test_what_is_streamed_is_what_is_stored(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    outage = Outage(tmp_path / "selfheal.db", observers=[seen.append])
    async with outage.supervisor as supervisor, hearing(supervisor) as heard:
        await outage.happen(heard)
        await anyio.sleep(0.2)
        stored = await supervisor.ask("records", limit=1000)
    by_seq = {record["seq"]: record for record in stored}
    assert len(seen) >= 10
    for record in seen:
        if record["seq"] in by_seq:
            assert {**record, "time": ""} == {**by_seq[record["seq"]], "time": ""}


@fails_when("only passes have a time")
async def test_s11_the_last_check_is_the_last_one_also_when_it_failed() -> None:
    check = Switch(False)
    async with Supervisor([quick("api", check=check)], journal=None) as supervisor:
        first = await until_state(supervisor, "api", "failed")
        calls = check.calls
        await until(lambda: check.calls > calls + 2, what="further checks")
        after = await state_of(supervisor, "api")
        assert first["last_check"] is not None
        assert first["last_check"] < after["last_check"]
        assert after["last_verdict"] == "failing"
        late = datetime.now(UTC) - datetime.fromisoformat(after["last_check"])
        assert abs(late.total_seconds()) < 1.0


@fails_when("one failure is enough")
async def test_s48_blips_below_the_threshold_are_no_recoveries(tmp_path: Path) -> None:
    check = Switch()
    service = quick("api", check=check, failure_threshold=50, recheck=0.1)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
        await until_state(supervisor, "api", "healthy")
        for n in (1, 2):
            check.well = False
            await heard.state("api", "unhealthy", nth=n)
            check.well = True
            await heard.state("api", "healthy", nth=n + 1)
        statistics = await supervisor.ask("statistics")
    assert statistics["incidents"] == 0
    api = statistics["services"].get("api", {"recovered": 0, "healed_by_itself": 0, "incidents": 0})
    assert (api["incidents"], api["recovered"], api["healed_by_itself"]) == (0, 0, 0)


@fails_when("incidents never close")
async def test_s49_a_failed_recovery_that_heals_by_itself_is_one_incident_with_one_outcome(tmp_path: Path) -> None:
    check, workload = Switch(), ScriptedWorkload(script=(RuntimeError("no"),))
    service = quick("api", check=check, workload=workload, recovery_actions=RESTART)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
        await until_state(supervisor, "api", "healthy")
        check.well = False
        await heard.first("ended")
        await heard.state("api", "failed", nth=2)
        check.well = True
        await heard.first("incident_closed")
        statistics = await supervisor.ask("statistics", service="api")
        incidents = await supervisor.ask("incidents")
    assert len(incidents) == 1
    api = statistics["services"]["api"]
    assert api["incidents"] == 1
    assert api["recovered"] + api["healed_by_itself"] == 1


@fails_when("numbers are written as words", "checks are not counted")
async def test_s50_the_metrics_are_real_numbers_in_the_exposition_format(tmp_path: Path) -> None:
    outage = Outage(tmp_path / "selfheal.db")
    async with outage.supervisor as supervisor, hearing(supervisor) as heard:
        await outage.happen(heard)
        text = await supervisor.ask("metrics")
        checks = (await state_of(supervisor, "api"))["evidence"]["checks"]
    for line in text.splitlines():
        assert line.startswith("#") or re.fullmatch(
            r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+', line
        )
    (counted,) = re.findall(r'selfheal_checks_total\{service="api"\} (\d+)', text)
    assert 0 < int(counted) <= checks
    assert 'selfheal_service_state{service="api",state="healthy"} 1' in text


@fails_when("what was never measured took a minute")
async def test_s51_without_history_a_number_is_null_and_no_guess(tmp_path: Path) -> None:
    async with Supervisor([quick("api", check=Switch())], journal=tmp_path / "selfheal.db") as supervisor:
        await until_state(supervisor, "api", "healthy")
        with anyio.fail_after(5):
            # It is counted as soon as it is stored, which sets no event.
            while not (statistics := await supervisor.ask("statistics"))["services"]:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        for service in statistics["services"].values():
            assert service["median_recovery_seconds"] is None
            assert service["p90_recovery_seconds"] is None
            assert service["recoveries_measured"] == 0
        assert await supervisor.ask("incidents") == []


@fails_when("a refusal shows where it was made")
async def test_s54_a_refusal_says_what_was_wrong_and_nothing_of_our_inside() -> None:
    async with Supervisor([quick("api", check=Switch())], journal=None) as supervisor:
        wrong: list[tuple[str, dict[str, Any], str]] = [
            ("nothing", {}, "unknown_request"),
            ("__class__", {}, "unknown_request"),
            ("service", {}, "bad_parameter"),
            ("service", {"service": "nobody"}, "unknown_service"),
            ("service", {"service": 7}, "bad_parameter"),
            ("incident", {"number": 99}, "not_found"),
            ("incident", {"number": -1}, "bad_parameter"),
            ("records", {"limit": "many"}, "bad_parameter"),
            ("disable", {"service": "api"}, "bad_parameter"),
        ]
        for name, parameters, code in wrong:
            with pytest.raises(RequestRefused) as refused:
                await supervisor.ask(name, **parameters)
            assert refused.value.code == code, name
            assert "Traceback" not in str(refused.value)
            assert "selfheal." not in str(refused.value)


@fails_when("alerts vanish")
async def test_s56_an_alert_that_came_and_went_is_in_the_history(tmp_path: Path) -> None:
    outage = Outage(tmp_path / "selfheal.db")
    async with outage.supervisor as supervisor, hearing(supervisor) as heard:
        await outage.happen(heard)
        await until_state(supervisor, "web", "healthy")
        assert [alert for alert in await supervisor.ask("alerts") if alert["service"] == "api"] == []
        ever = [alert for alert in await supervisor.ask("alerts", all=True) if alert["service"] == "api"]
        assert ever
        assert all(alert["resolved"] is not None and alert["opened"] <= alert["resolved"] for alert in ever)


@fails_when("what a request does not know is dropped")
async def test_s52_the_service_of_an_act_is_the_one_that_was_named() -> None:
    outage = Outage(None)
    async with outage.supervisor as supervisor:
        await until_state(supervisor, "web", "healthy")
        wrong: list[dict[str, Any]] = [{}, {"service": "api", "services": ["web"]}, {"service": "nobody"}]
        for parameters in wrong:
            with pytest.raises(RequestRefused):
                await supervisor.act("disable", reason="a test", **parameters)
        assert (await state_of(supervisor, "api"))["state"] == "healthy"


async def test_explain_names_what_holds_and_asking_changes_nothing(tmp_path: Path) -> None:
    check = Switch(False)
    service = quick("api", check=check, recovery_actions=MEND)
    supervisor = Supervisor([service], journal=tmp_path / "selfheal.db")
    supervisor.action("api", "mend")(lambda context: None)
    async with supervisor:
        await supervisor.act("pause", everything=True, actor="alice", reason="a test")
        await until_state(supervisor, "api", "failed")
        running = supervisor._running
        assert running is not None
        before = running.engine.snapshot()
        for _ in range(5):
            explained = await supervisor.ask("explain", service="api")
        assert running.engine.snapshot() == before
        assert "paused" in json.dumps(explained)


async def test_what_a_check_found_worth_seeing_is_seen() -> None:
    found = CheckResult(
        Verdict.WARNING, cause=Cause.FULL, summary="91 %", details={"used_percent": 91, "role": "primary"}
    )
    async with Supervisor([quick("db", check=lambda: found)], journal=None) as supervisor:
        answer = await until_state(supervisor, "db", "degraded")
        assert answer["evidence"]["details"] == {"used_percent": 91, "role": "primary"}
