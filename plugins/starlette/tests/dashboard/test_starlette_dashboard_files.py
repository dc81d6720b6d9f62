"""The files of the dashboard: how they are served, under any prefix, and what they never do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.stack.dashboard import Site, open_site
from tests.stack.starlette import Fleet

from selfheal_starlette.dashboard import POLICY, TYPES, assets

SOURCES = Path(__file__).parents[2] / "src" / "selfheal_starlette" / "dashboard"


ICONS = {"icon-down.svg", "icon-warn.svg", "icon-lost.svg"}
"""What the tab wears while something is wrong."""


@pytest.fixture(scope="module", params=["/api/recovery", "/ops/heal/it"])
def site(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    supervisor = Fleet(tmp_path_factory.mktemp("fleet")).supervisor()
    with open_site(supervisor, prefix=request.param) as site:
        yield site


@pytest.mark.server
def test_the_page_and_all_it_names_are_there_under_any_prefix(site: Site) -> None:
    with httpx2.Client() as client:
        page = client.get(site.page)
        assert page.status_code == 200
        named = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
        assert {"app.js", "style.css", "vendor/uPlot.iife.min.js"} <= set(named)
        for name in named:
            assert "/" not in name.removeprefix("vendor/"), f"{name} is not beside the page"
        waiting, seen = list(named), set()
        while waiting:
            name = waiting.pop()
            answer = client.get(f"{site.page}{name}")
            assert answer.status_code == 200, name
            assert answer.headers["content-type"] == TYPES[name[name.rindex(".") :]]
            if name.endswith(".js") and "vendor" not in name and name not in seen:
                waiting += re.findall(r'from "\./([^"]+)"', answer.text)
            seen.add(name)
        assert seen | {"", "vendor/uPlot.LICENSE", *ICONS} == set(assets())


@pytest.mark.server
def test_who_comes_without_the_slash_or_to_the_mount_is_led_to_the_page(site: Site) -> None:
    with httpx2.Client(follow_redirects=True) as client:
        for address in (site.page.rstrip("/"), site.api):
            answer = client.get(address)
            assert str(answer.url) == site.page, address
            assert answer.status_code == 200


@pytest.mark.server
def test_every_file_is_kept_by_the_browser_and_asked_for_anew(site: Site) -> None:
    with httpx2.Client() as client:
        for name in assets():
            first = client.get(f"{site.page}{name}")
            assert first.headers["cache-control"] == "no-cache"
            again = client.get(f"{site.page}{name}", headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            other = client.get(f"{site.page}{name}", headers={"If-None-Match": '"another"'})
            assert other.status_code == 200


@pytest.mark.server
def test_every_file_says_what_the_page_may_do_and_nothing_else_is_served(site: Site) -> None:
    with httpx2.Client() as client:
        for name in (*assets(), "nothing.js"):
            answer = client.get(f"{site.page}{name}")
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "access-control-allow-origin" not in answer.headers
        for name in ("nothing.js", "__init__.py", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "vendor/", "index.html"):
            assert client.get(f"{site.page}{name}").status_code == 404, name
        assert client.post(site.page, content=b"x").status_code == 405


def test_no_source_makes_markup_of_text_or_holds_a_script_or_style_of_its_own() -> None:
    for path in (*SOURCES.glob("*.js"), SOURCES / "index.html"):
        source = path.read_text("utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "new Function",
            "style=",
            "onclick",
            "localStorage",
            "http:",
        ):
            allowed = word == "http:" and path.name == "dom.js"  # the name of SVG, which nobody fetches
            assert allowed or word not in source, f"{path.name} has {word}"


def test_the_page_is_small() -> None:
    own = sum(len(asset.body) for name, asset in assets().items() if not name.startswith("vendor/"))
    sent = sum(len(asset.packed) for asset in assets().values())
    assert own < 115_000
    assert sent < 70_000


@pytest.mark.server
def test_who_takes_gzip_is_sent_less_and_each_kind_has_its_own_tag(site: Site) -> None:
    with httpx2.Client() as client:
        for name, asset in assets().items():
            kinds = {}
            for accepted in ("gzip, br", "identity", "gzip;q=0", ""):
                answer = client.get(f"{site.page}{name}", headers={"Accept-Encoding": accepted})
                assert answer.content == asset.body, (name, accepted)
                assert answer.headers["vary"] == "Accept-Encoding"
                kinds[accepted] = (answer.headers.get("content-encoding"), answer.headers["etag"])
            assert kinds["gzip, br"][0] == "gzip"
            assert {kinds["identity"], kinds["gzip;q=0"], kinds[""]} == {(None, asset.etag)}
            assert kinds["gzip, br"][1] != asset.etag
