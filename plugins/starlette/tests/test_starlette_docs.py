"""What is written about the API is so: the table of routes, an example of each, the options, and every test named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs
import pytest
from tests.servers import until
from tests.stack.starlette import MANY, api, settled

from selfheal import CheckResult, Service, Supervisor, Verdict
from selfheal.requests import TABLE
from selfheal_starlette import openapi, pages, recovery_app
from selfheal_starlette.problems import CODES
from selfheal_starlette.routes import ROUTES, Crossroads
from selfheal_starlette.serving import Http

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = (ROOT / "docs/reference/http-api.md").read_text("utf-8")
HOW_TO = (ROOT / "docs/how-to/serve-over-http.md").read_text("utf-8")
SECURITY = (ROOT / "docs/explanation/api-security.md").read_text("utf-8")


def test_the_table_of_the_reference_is_that_of_the_routes() -> None:
    """Put what `selfheal_starlette.pages.table()` returns between the two comments."""
    block = re.search(r"<!-- routes -->\n(.*)\n<!-- end routes -->", REFERENCE, re.DOTALL)
    assert block is not None
    assert block[1] == pages.table()


def examples() -> list[tuple[str, str, str, int]]:
    """Return method, path, body and status of every example."""
    (block,) = re.findall(r"```http\n(.*?)```", REFERENCE, re.DOTALL)
    lines = block.splitlines()
    found = []
    for asked, status in zip(lines[::2], lines[1::2], strict=True):
        method, path, *body = asked.split(" ", 2)
        found.append((method, path, body[0] if body else "", int(status)))
    return found


def test_every_route_has_an_example_and_each_answers_as_it_is_written(tmp_path: Path) -> None:
    roads = Crossroads(ROUTES)
    shown = {roads.find(path.partition("?")[0])[0][method].name for method, path, _, _ in examples()}
    assert shown == {route.name for route in ROUTES}
    with api(tmp_path, rates=MANY) as served:
        headers = served.token("reader of the docs", "admin")
        settled(served, **headers)
        for method, path, body, status in examples():
            content = {"json": json.loads(body)} if body else {"json": None}
            with served.client.stream(method, f"{served.base}{path}", headers=headers, **content) as response:
                assert response.status_code == status, f"{method} {path}"


def test_every_status_is_explained() -> None:
    listed = {
        int(number) for row in re.findall(r"^\| ([\d, ]+) \|", REFERENCE, re.MULTILINE) for number in row.split(",")
    }
    assert listed | {406, 500} >= {status for status, _ in CODES.values()}


def test_every_option_of_the_table_and_every_argument_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \| .* \| .* \|$", HOW_TO, re.MULTILINE) == [one.name for one in attrs.fields(Http)]
    named = set(re.findall(r"`(\w+)`", REFERENCE))
    arguments = [name for name in recovery_app.__annotations__ if name not in ("return", "supervisor")]
    assert not [name for name in arguments if name not in named]


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    rows = re.findall(r"^\| (API\d+) .*\|$", SECURITY, re.MULTILINE)
    assert rows == [f"API{number}" for number in range(1, 11)]
    named = re.findall(r"`(test_\w+)`", SECURITY)
    assert len(named) >= 10
    assert not [name for name in named if f"def {name}(" not in tests]


def test_no_request_carries_an_address_or_a_command() -> None:
    """What is checked, and what is run, comes from the file alone: nothing that comes in by HTTP adds to it."""
    names = {parameter.name for row in TABLE.values() for parameter in row.parameters}
    assert not names & {"url", "address", "host", "command", "path", "check", "workload", "kind", "plugin", "notifier"}
    assert openapi.document(".").get("webhooks") is None


def test_a_service_of_a_hostile_name_or_summary_stays_text(tmp_path: Path) -> None:
    """No service can be called like markup; what a service *says* can be anything, and stays what it is."""
    with pytest.raises(ValueError, match="img"):
        Service("<img src=x onerror=alert(1)>", check=lambda: True)
    hostile = "<img src=x onerror=alert(1)>\x1b[2J\u202e\n{}\x00</script>"

    def check() -> CheckResult:
        return CheckResult(Verdict.WARNING, summary=hostile, details={hostile[:20]: hostile})

    supervisor = Supervisor([Service("web", check=check, interval=0.2)], journal=tmp_path / "selfheal.db")
    with api(tmp_path, supervisor=supervisor, loopback_writes=True) as served:
        until(lambda: "onerror" in served.get("/services/web").json()["summary"], "it has said so")
        for path in ("/services/web", "/status", "/services", "/history", "/records", "/alerts?state=all", "/metrics"):
            answer = served.get(path)
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.content.isascii()
            assert not set(answer.content) & set(range(32))
        refused = served.post("/services/%3Cimg%20src=x%20onerror=alert(1)%3E/disable")
        assert refused.status_code == 404
        assert refused.headers["content-type"] == "application/problem+json"
        assert served.get("/audit").json()["records"] == []
