"""The routes over a real socket: what is asked is what the supervisor answers; what is wrong is said in one shape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.servers import until
from tests.stack.starlette import MANY, PREFIX, Fleet, Served, api, serving, settled

from selfheal.requests import TABLE
from selfheal_starlette import answers, limits, openapi, problems, recovery_app
from selfheal_starlette.app import GUARDED
from selfheal_starlette.routes import ROUTES, Crossroads, Route


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An API, and a client that may do everything."""
    with api(tmp_path_factory.mktemp("fleet"), rates=MANY) as running:
        running.client.headers.update(running.token("tester", "admin"))
        settled(running)
        yield running


def is_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """Judge the one shape of everything that is not answered as asked, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == problems.MEDIA_TYPE
    found: dict[str, Any] = response.json()
    assert set(found) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (found["code"], found["status"]) == (code, status)
    assert found["type"] == f"urn:selfheal:problem:{code}"
    assert found["request_id"] == response.headers["x-request-id"]
    return found


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_request_of_the_table_has_a_route() -> None:
    assert {route.request for route in ROUTES if route.request} == set(TABLE)


def test_what_changes_something_is_a_post_and_what_is_asked_a_get() -> None:
    for route in ROUTES:
        if route.row is not None:
            assert (route.method == "POST") == (route.row.act or route.request == "heartbeat"), route.path


def test_every_parameter_of_a_row_has_a_place_in_its_route() -> None:
    for route in ROUTES:
        if route.row is not None:
            places = {*route.in_path, *(one.name for one in (*route.in_query, *route.in_body))}
            wanted = {one.name for one in route.row.parameters}
            if route.paging is not None:
                wanted = {"cursor" if name == "before" else name for name in wanted}
            assert wanted - {"all"} <= places, route.path


def test_two_routes_of_one_path_and_method_are_refused() -> None:
    with pytest.raises(ValueError, match="two routes"):
        Crossroads((*ROUTES, Route(method="GET", path="/status", request="status")))


def test_a_path_is_found_only_as_it_is_written() -> None:
    roads = Crossroads(ROUTES)
    assert roads.find("/services/web/recover")[1] == {"service": "web"}
    assert roads.find("/status/")[0]["GET"].request == "status"
    for path in ("/services//recover", "/", "", "/services/{service}/nothing", "/STATUS", "/status/more/and/more"):
        assert roads.find(path)[0] == {}, path


# -- queries -----------------------------------------------------------------------------------------------------------

READABLE = [
    "/status",
    "/services",
    "/services/web",
    "/services/web/explain",
    "/services/web/history",
    "/statistics",
    "/health",
    "/metrics",
    "/alerts",
    "/incidents",
    "/history",
    "/records",
    "/graph",
    "/approvals",
    "/suppressions",
    "/pause",
    "/maintenance",
    "/silences",
    "/audit",
]


@pytest.mark.parametrize("path", READABLE)
def test_a_read_answers_json_with_a_tag_and_every_guard_in_its_headers(served: Served, path: str) -> None:
    response = served.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["etag"].startswith('W/"')
    assert {name: response.headers[name] for name in GUARDED} == GUARDED
    assert "access-control-allow-origin" not in response.headers
    assert isinstance(response.json(), dict)
    head = served.client.head(f"{served.base}{path}")
    assert (head.status_code, head.content) == (200, b"")


def test_what_has_not_changed_is_not_sent_again(served: Served) -> None:
    first = served.get("/graph")
    again = served.get("/graph", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert served.get("/graph", headers={"If-None-Match": '"another"'}).status_code == 200


def test_the_clocks_in_an_answer_do_not_change_its_tag() -> None:
    one = answers.body_of({"time": "a", "since_seconds": 1.0, "state": "healthy", "lag_seconds": None})
    other = answers.body_of({"time": "b", "since_seconds": 2.5, "state": "healthy", "lag_seconds": 0.1})
    failed = answers.body_of({"time": "a", "since_seconds": 1.0, "state": "failed", "lag_seconds": None})
    assert answers.etag_of(one) == answers.etag_of(other) != answers.etag_of(failed)
    spoken = [answers.body_of({"summary": f'"time":"{word}"', "state": "x"}) for word in "ab"]
    assert answers.etag_of(spoken[0]) != answers.etag_of(spoken[1])


def test_s50_metrics_are_real_numbers_in_json_and_in_text(served: Served) -> None:
    found = served.get("/metrics").json()
    states = found["service_health_status"]["samples"]
    assert sum(one["value"] for one in states if one["labels"]["state"] == "healthy") >= 3
    for accept, kind in (
        ("text/plain", "text/plain; version=0.0.4"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"),
    ):
        text = served.get("/metrics", headers={"Accept": accept})
        assert text.headers["content-type"].startswith(kind)
        assert text.headers["vary"] == "accept"
        assert 'service_health_status{service="web",state="healthy"}' in text.text
    named = served.get("/metrics?format=text", headers={"Accept": "application/json"})
    assert named.headers["content-type"].startswith("text/plain")


def alerts_of(served: Served, name: str) -> list[Any]:
    found: list[Any] = served.get(f"/alerts?state=all&service={name}").json()["alerts"]
    return found


def resolved(served: Served, name: str) -> bool:
    return all(one["resolved"] for one in alerts_of(served, name))


def test_s56_an_alert_that_came_and_went_is_in_the_history_page_by_page(tmp_path: Path) -> None:
    with api(tmp_path) as served:
        settled(served)
        for name in ("mail", "web", "database"):
            served.fleet.well[name] = False
            until(partial(alerts_of, served, name), "there is an alert")
            served.fleet.well[name] = True
            until(partial(resolved, served, name), "it is resolved")
        assert served.get("/alerts").json() == {"alerts": [], "next": None}
        whole = served.get("/alerts?state=all").json()["alerts"]
        assert len(whole) >= 3
        assert all(one["resolved"] for one in whole)
        paged: list[Any] = []
        cursor = ""
        while True:
            page = served.get(f"/alerts?state=resolved&limit=1{cursor}").json()
            paged += page["alerts"]
            if page["next"] is None:
                break
            cursor = f"&cursor={page['next']}"
        assert paged == whole
        (one, *_) = [alert for alert in whole if alert["service"] == "mail"]
        assert one in served.get(f"/alerts?state=all&severity={one['severity']}").json()["alerts"]
        assert {a["service"] for a in served.get("/alerts?state=all&service=mail").json()["alerts"]} == {"mail"}
        assert served.get("/alerts?state=all&since=2999-01-01T00:00:00Z").json()["alerts"] == []
        assert served.get("/alerts?state=all&since=2000-01-01T00:00:00%2B02:00").json()["alerts"] == whole
        history = served.get("/history?limit=2").json()
        assert len(history["records"]) == 2
        after = served.get(f"/history?limit=2&cursor={history['next']}").json()["records"]
        assert after[0]["seq"] == history["records"][-1]["seq"] - 1
        number = served.get("/incidents").json()["incidents"][0]["incident"]
        assert served.get(f"/incidents/{number}").json()["timeline"]
        assert served.get("/statistics?service=mail").json()["services"].keys() == {"mail"}


WELL: dict[str, Any] = {"running": True, "holds": [], "journal": {"well": True, "detail": ""}}


@attrs.define
class Patient:
    """A supervisor that says of itself what it is told to."""

    health: dict[str, Any]
    takes: float = 0.0
    running: bool = True
    journal: None = None

    async def ask(self, name: str, **parameters: Any) -> Any:
        await anyio.sleep(self.takes)
        return self.health

    async def act(self, name: str, **parameters: Any) -> dict[str, Any]:
        raise NotImplementedError

    def told(self) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("patient", "why"),
    [
        (Patient(WELL), None),
        (Patient({**WELL, "holds": ["storm"]}), None),
        (Patient(WELL, running=False), "The engine is not running"),
        (Patient({**WELL, "running": False}), "the engine does not turn"),
        (Patient({**WELL, "holds": ["doubt"]}), "the scheduler is late"),
        (Patient(WELL, takes=30.0), "the scheduler is late"),
        (Patient({**WELL, "journal": {"well": False, "detail": "disk full"}}), "the journal cannot be written"),
    ],
    ids=["well", "a storm is the fleet's", "not running", "does not turn", "late", "silent", "journal"],
)
def test_health_is_about_selfheal_itself(tmp_path: Path, patient: Patient, why: str | None) -> None:
    with serving(Starlette(routes=[Mount(PREFIX, app=recovery_app(patient))]), Fleet(tmp_path)) as served:
        response = served.get("/health")
        assert response.status_code == (200 if why is None else 503)
        assert response.json()["status"] == ("pass" if why is None else "fail")
        assert [text.startswith(str(why)) for text in response.json()["why"]] == ([] if why is None else [True])


def test_a_fleet_without_a_journal_is_answered_for_as_well(tmp_path: Path) -> None:
    with api(tmp_path, supervisor=Fleet(tmp_path).supervisor(journal=None), loopback_writes=True) as served:
        settled(served)
        assert served.get("/health").status_code == 200
        assert served.post("/services/mail/disable").status_code == 200
        assert served.get("/audit").json()["records"][0]["action"] == "disable"


# -- acts --------------------------------------------------------------------------------------------------------------


def test_s52_a_recovery_needs_no_body_and_a_name_that_differs_from_the_path_is_refused(tmp_path: Path) -> None:
    with api(tmp_path, loopback_writes=True) as served:
        settled(served)
        clash = served.post("/services/web/recover", json={"service_name": "mail", "reason": "it is slow"})
        assert "another service" in is_problem(clash, 400, "bad_parameter")["detail"]
        served.post("/pause", json={"everything": True, "reason": "let it be down for a while"})
        served.fleet.well["web"] = False
        until(lambda: served.get("/services/web").json()["state"] == "failed", "web is down, and nothing acts")
        forced = served.post("/services/web/recover")
        assert forced.status_code == 200, forced.text
        answer = forced.json()
        assert (answer["accepted"], answer["service"], answer["action"]) == (True, "web", "recover")
        assert answer["actor"] == "loopback at 127.0.0.1"
        same = served.post("/services/web/recover", json={"service_name": "web", "reason": "again"})
        assert same.json()["asked_because"] == "again"


def test_every_act_is_in_the_audit_trail_with_who_why_from_where_and_which_request(served: Served) -> None:
    done = served.post("/services/mail/disable", json={"reason": "it moves to another machine"})
    assert done.status_code == 200
    (record, *_) = served.get("/audit?service=mail").json()["records"]
    assert record["id"] == done.headers["x-request-id"] == done.json()["id"]
    assert re.fullmatch(r"tester \(token [0-9a-f]{8}\) at 127\.0\.0\.1", record["actor"])
    assert record["asked_because"] == "it moves to another machine"
    assert served.post("/services/mail/enable").status_code == 200


def test_acts_on_the_fleet_take_their_parameters_from_the_body(served: Served) -> None:
    for path in ("/maintenance", "/silences", "/pause"):
        made = served.post(path, json={"services": ["mail"], "duration": 60, "reason": "an upgrade"})
        assert made.status_code == 200, made.text
        (shown,) = served.get(path).json()["suppressions"]
        assert shown["services"] == ["mail"]
        lifted = served.post("/lift", json={"suppression": shown["suppression"], "reason": "it is done"})
        assert lifted.status_code == 200
        assert served.get(path).json()["suppressions"] == []
    assert served.post("/resume", json={"everything": True}).status_code in (200, 404)  # there is none


def test_initialize_says_that_the_fleet_is_watched_however_often_it_is_asked(served: Served) -> None:
    for _ in range(2):
        answer = served.post("/initialize", json={"reason": "after the move"}).json()
        assert "services are watched already" in answer["reason"]["detail"]
    all_of_it = served.post("/initialize", json={"reason": "after the move", "everything": True}).json()
    assert "looked at afresh" in all_of_it["reason"]["detail"]
    again = served.post("/services/web/initialize").json()
    assert again["service"] == "web"


def test_a_heartbeat_is_heard(served: Served) -> None:
    response = served.post("/services/job/heartbeat")
    assert (response.status_code, response.content) == (204, b"")
    is_problem(served.post("/services/web/heartbeat"), 409, "refused")
    is_problem(served.post("/services/nobody/heartbeat"), 404, "unknown_service")


def test_the_same_idempotency_key_is_the_same_act(served: Served) -> None:
    key = {"Idempotency-Key": "once-and-no-more"}
    first = served.post("/services/mail/enable", headers=key)
    again = served.post("/services/mail/enable", headers=key)
    other = served.post("/services/web/enable", headers=key)
    assert first.json() == again.json()
    assert other.json()["service"] == "web"
    is_problem(served.post("/services/mail/enable", headers={"Idempotency-Key": "k" * 201}), 400, "bad_parameter")


def test_s53_ten_forced_recoveries_in_a_minute_are_limited_and_those_let_through_are_stored(tmp_path: Path) -> None:
    with api(tmp_path, loopback_writes=True) as served:
        settled(served)
        sent = [served.post("/services/web/recover", json={"reason": f"try {n}"}) for n in range(10)]
        limited = [one for one in sent if one.status_code == 429]
        assert len(limited) == 10 - limits.Rates().service.count
        assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in limited)
        is_problem(limited[0], 429, "too_many")
        stored = [r for r in served.get("/audit?service=web").json()["records"] if r["action"] == "recover"]
        assert {one["asked_because"] for one in stored} == {f"try {n}" for n in range(limits.Rates().service.count)}
        assert {one["actor"] for one in stored} == {"loopback at 127.0.0.1"}
        assert served.post("/services/database/enable").status_code == 200


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nothing", 404, "unknown_request"),
        ("/services/nobody", 404, "unknown_service"),
        ("/services/%3Cimg%20src=x%20onerror=alert(1)%3E", 404, "unknown_service"),
        ("/services/nobody/history", 404, "unknown_service"),
        ("/incidents/999999", 404, "not_found"),
        ("/incidents/first", 400, "bad_parameter"),
        ("/incidents/%D9%A1", 400, "bad_parameter"),
        ("/alerts?severity=awful", 400, "bad_parameter"),
        ("/alerts?limit=0", 400, "bad_parameter"),
        ("/alerts?limit=1001", 400, "bad_parameter"),
        ("/alerts?limit=+5", 400, "bad_parameter"),
        ("/alerts?limit=5&limit=6", 400, "bad_parameter"),
        ("/alerts?since=yesterday", 400, "bad_parameter"),
        ("/alerts?since=2026-01-01T00:00:00", 400, "bad_parameter"),
        ("/alerts?since=0001-01-01T00:00:00%2B14:00", 400, "bad_parameter"),
        ("/alerts?cursor=x", 400, "bad_parameter"),
        ("/alerts?all=true", 400, "bad_parameter"),
        ("/incidents?open=yes", 400, "bad_parameter"),
        ("/status?verbose=1", 400, "bad_parameter"),
        (f"/records?after={2**53}", 400, "bad_parameter"),
        (f"/services/{'x' * 3000}", 414, "too_long"),
        (f"/alerts?service={'x' * 5000}", 414, "too_long"),
        ("/services/..%2f..%2fetc/history", 404, "unknown_request"),
    ],
)
def test_a_wrong_question_is_refused_in_the_one_shape(served: Served, path: str, status: int, code: str) -> None:
    is_problem(served.get(path), status, code)


BODIES: list[tuple[bytes, str, int, str]] = [
    (b"{", "application/json", 400, "bad_request"),
    (b"[]", "application/json", 400, "bad_request"),
    (b'"reason"', "application/json", 400, "bad_request"),
    (b"\xff\xfe", "application/json", 400, "bad_request"),
    (b'{"reason": "a", "reason": "b"}', "application/json", 400, "bad_request"),
    (b'{"reason": NaN}', "application/json", 400, "bad_request"),
    (b"[" * 60_000, "application/json", 400, "bad_request"),
    (b"1" * 60_000, "application/json", 400, "bad_request"),
    (b'{"reason": 5}', "application/json", 400, "bad_parameter"),
    (b'{"reason": ""}', "application/json", 400, "bad_parameter"),
    (b'{"reason": "two\\nlines"}', "application/json", 400, "bad_parameter"),
    (b'{"reason": "\\ud800"}', "application/json", 400, "bad_parameter"),
    (b'{"nonsense": 1}', "application/json", 400, "bad_parameter"),
    (b'{"reason": "r"}', "text/plain", 415, "media_type"),
    (b'{"reason": "r"}', "", 415, "media_type"),
    (b"reason=r", "application/x-www-form-urlencoded", 415, "media_type"),
    (b" " * (limits.BODY + 1), "application/json", 413, "too_large"),
]


@pytest.mark.parametrize("route", [one for one in ROUTES if one.method == "POST" and one.row], ids=lambda one: one.name)
def test_a_wrong_body_is_refused_by_every_route_that_takes_one(served: Served, route: Route) -> None:
    path = route.path.replace("{service}", "mail")
    for body, kind, status, code in BODIES:
        response = served.post(path, content=body, headers={"Content-Type": kind} if kind else {})
        found = is_problem(response, status, code)
        assert "Traceback" not in found["detail"]
        assert len(response.content) < 2000


@pytest.mark.parametrize("route", ROUTES, ids=lambda one: one.name)
def test_every_route_refuses_what_is_huge_or_not_its_own(served: Served, route: Route) -> None:
    path = route.path.replace("{service}", "mail").replace("{number}", "1")
    url = f"{served.base}{path}"
    is_problem(served.client.request(route.method, url + "?" + "x" * 5000), 414, "too_long")
    is_problem(served.client.request(route.method, url, headers={"X-Huge": "x" * 20_000}), 431, "headers_too_large")
    is_problem(served.client.request(route.method, url + "?nonsense=1"), 400, "bad_parameter")
    for method in ("DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"):
        refused = served.client.request(method, url)
        is_problem(refused, 405, "method")
        assert route.method in refused.headers["allow"].split(", ")


def test_a_body_without_a_declared_length_is_bounded_too(served: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    response = served.post("/pause", content=chunks(), headers={"Content-Type": "application/json"})
    is_problem(response, 413, "too_large")


def test_s54_an_internal_error_says_nothing_of_what_is_inside(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise OSError("/var/lib/selfheal/secret-path: password=hunter2")

    monkeypatch.setattr(answers, "etag_of", broken)
    found = is_problem(served.get("/status"), 500, "internal")
    assert "hunter2" not in json.dumps(found)
    assert "secret-path" not in json.dumps(found)
    assert found["request_id"] in caplog.text


# -- what is written about it ------------------------------------------------------------------------------------------


def test_the_document_has_every_route_and_no_other(served: Served) -> None:
    document = served.get("/openapi.json").json()
    told = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert told == {(route.path, route.method) for route in ROUTES}
    assert document["servers"] == [{"url": "/api/recovery"}]
    ids = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))


def test_the_fields_that_the_document_promises_are_there(served: Served) -> None:
    status = served.get("/status").json()
    assert set(openapi.SCHEMAS["Status"]["required"]) <= set(status)
    assert set(openapi.SCHEMAS["Line"]["required"]) <= set(status["services"][0])
    assert set(openapi.SCHEMAS["Service"]["required"]) <= set(served.get("/services/web").json())
    statistics = served.get("/statistics?days=2").json()
    assert set(openapi.SCHEMAS["Statistics"]["properties"]) == set(statistics)
    for numbers in (statistics["services"]["web"], {**statistics["fleet"], "days": []}):
        assert set(openapi.SCHEMAS["Numbers"]["properties"]) == set(numbers)
    assert set(openapi.SCHEMAS["Day"]["properties"]) == set(statistics["services"]["web"]["days"][0])
    assert set(openapi.SCHEMAS["Steps"]["properties"]) == set(statistics["fleet"]["steps"])
    assert set(openapi.SCHEMAS["Record"]["required"]) <= set(served.get("/records").json()["records"][0])


def test_the_page_of_the_routes_has_them_all_and_may_load_nothing(served: Served) -> None:
    page = served.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "script" not in page.text
    assert all(f"{route.method} {route.path}" in page.text for route in ROUTES)
