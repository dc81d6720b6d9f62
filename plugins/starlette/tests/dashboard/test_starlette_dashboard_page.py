"""The dashboard in a real browser: who may see what, hostile texts, many services, small screens, and every reader."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import httpx2
import pytest
from playwright.sync_api import Page, Route
from tests.servers import until
from tests.stack.dashboard import Shop, Site, open_site
from tests.stack.starlette import PREFIX

from selfheal import CheckResult, Service, Supervisor, Verdict
from selfheal.core.model import Cause

pytestmark = [pytest.mark.real_time, pytest.mark.server]

Visit = Callable[..., Page]

HOSTILE: Final = "<img src=x onerror=window.hurt=1> gnp.exe <script>window.hurt=1</script>"

VIEWS: Final = ("#/", "#/service/s005", "#/graph", "#/incidents", "#/incident/1", "#/alerts", "#/days", "#/audit")

SICK: Final = ("s005", "s042")


@attrs.define
class Many:
    """Many services that are what they are told to be, in trees of ten, or of `tree`."""

    sick: set[str] = attrs.field(factory=lambda: set(SICK))
    tree: int = 10

    def services(self, number: int) -> list[Service]:
        """Return so many."""
        names = [f"s{place:03}" for place in range(number)]
        return [
            Service(
                name,
                check=self._check(name),
                depends_on=self._needs(names, place),
                interval=1.0,
                recheck=0.3,
                min_failing_span=0.5,
                failure_threshold=2,
            )
            for place, name in enumerate(names)
        ]

    def _needs(self, names: list[str], place: int) -> list[str]:
        inside = place % self.tree
        return [names[place - 1 - place % 3 % inside]] if inside else []

    def _check(self, name: str) -> Callable[[], Any]:
        async def check() -> CheckResult:
            if name in self.sick:
                return CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary=HOSTILE, details={"said": HOSTILE})
            return CheckResult(Verdict.PASSING)

        return check


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """200 services, of which two are down."""
    folder = tmp_path_factory.mktemp("many")
    supervisor = Supervisor(Many().services(200), journal=folder / "selfheal.db", name="many")
    with open_site(supervisor) as site, httpx2.Client() as client:
        until(lambda: client.get(f"{site.api}status").json()["counts"]["failed"] == len(SICK), "two are down", 30.0)
        until(lambda: client.get(f"{site.api}status").json()["counts"]["healthy"] == 198, "the others are well", 30.0)
        yield site


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """20 services, of which one is down: what is judged of each element need not be judged 200 times."""
    folder = tmp_path_factory.mktemp("few")
    supervisor = Supervisor(Many(sick={"s005"}).services(20), journal=folder / "selfheal.db", name="few")
    with open_site(supervisor) as site, httpx2.Client() as client:
        until(lambda: client.get(f"{site.api}status").json()["counts"]["healthy"] == 19, "the others are well", 30.0)
        until(lambda: client.get(f"{site.api}status").json()["counts"]["failed"] == 1, "one is down", 30.0)
        yield site


def view(page: Page, site: Site, where: str) -> None:
    """Go to a view, and wait until it is drawn."""
    page.goto(f"{site.page}{where}")
    page.evaluate("new Promise((done) => setTimeout(done))")  # so that it has seen where it is
    page.wait_for_selector("main h1")
    until(lambda: page.locator("main").get_by_text("One moment").count() == 0, f"{where} is drawn")


# -- many -------------------------------------------------------------------------------------------------------------


def test_with_200_services_what_is_broken_comes_first_and_a_few_letters_find_the_rest(many: Site, visit: Visit) -> None:
    page = visit(many.page)
    assert page.locator("h1").inner_text() == "2 of 200 services are down."
    names = page.locator("tbody th[scope=row]")
    assert names.count() == 200
    assert [names.nth(place).inner_text() for place in (0, 1, 2)] == ["s005", "s042", "s000"]
    page.get_by_role("searchbox").fill("s04")
    assert page.locator("tbody th[scope=row]").count() == 10
    page.get_by_role("button", name="failed").click()
    assert page.locator("tbody th[scope=row]").all_inner_texts() == ["s042"]
    assert page.url.endswith("#/?q=s04&state=failed")
    again = visit(page.url)
    assert again.locator("tbody th[scope=row]").all_inner_texts() == ["s042"]
    page.get_by_role("searchbox").fill("nobody")
    assert page.get_by_text("No service fits this filter.").is_visible()
    took = page.evaluate("""async () => {
        const field = document.getElementById('text');
        const began = performance.now();
        for (const text of ['', 's', 's1', '']) {
            field.value = text;
            field.dispatchEvent(new Event('input', {bubbles: true}));
        }
        return (performance.now() - began) / 4;
    }""")
    assert took < 250, f"{took:.0f} ms to draw 200 services"


def test_nothing_jumps_and_nothing_chatters_while_nothing_happens(many: Site, visit: Visit) -> None:
    page = visit(many.page)
    page.locator("#connection", has_text="Live").wait_for()
    until(lambda: page.locator("#news").inner_text(), "the news is told once")
    page.evaluate("""() => {
        window.shifted = 0;
        window.said = 0;
        window.moved = [];
        new PerformanceObserver((list) => list.getEntries().forEach((one) => {
            window.shifted += one.value;
            window.moved.push(...one.sources.map(({node}) => (node?.parentElement ?? node)?.outerHTML.slice(0, 120)));
        }))
            .observe({type: 'layout-shift'});
        new MutationObserver(() => (window.said += 1))
            .observe(document.getElementById('news'), {subtree: true, childList: true, characterData: true});
    }""")
    with page.expect_response("**/status"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # then it asks at once, as every 5 s
    page.wait_for_timeout(2000)  # the tick comes every second, and news a moment later
    assert page.evaluate("[window.shifted, window.said]") == [0, 0], page.evaluate("window.moved")


def test_the_graph_draws_each_line_between_its_services_and_marks_what_is_broken(many: Site, visit: Visit) -> None:
    page = visit(f"{many.page}#/graph", wait=".graph svg")
    assert page.locator(".node").count() == 200
    places = page.evaluate("""() => Object.fromEntries([...document.querySelectorAll('.node')].map((one) => {
        const {x, y} = one.querySelector('rect').getBBox();
        return [one.dataset.key, [x, y]];
    }))""")
    assert len({tuple(place) for place in places.values()}) == 200
    with httpx2.Client() as client:
        graph = client.get(f"{many.api}graph").json()
    for edge in graph["edges"]:
        for parent in edge["needs"]:
            assert places[parent][0] < places[edge["service"]][0], edge
    assert page.locator(".node.troubled").count() == 2
    broken = [edge for edge in graph["edges"] if set(edge["needs"]) & set(SICK)]
    assert page.locator(".edge.hurt").count() == len(broken)
    page.locator('.node[data-key="s042"]').focus()
    page.keyboard.press("Enter")
    page.locator("h1", has_text="s042").wait_for()


def test_however_much_is_heard_the_page_asks_neither_never_nor_all_the_time(many: Site, visit: Visit) -> None:
    page = visit(many.page)
    page.locator("#connection", has_text="Live").wait_for()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/status") else None)
    began = time.monotonic()
    with httpx2.Client() as client:
        while time.monotonic() - began < 2.5:
            page.wait_for_timeout(40)
            for verb in ("pause", "resume"):
                client.post(f"{many.api}{verb}", json={"services": ["s001"]}).raise_for_status()
    lasted = time.monotonic() - began
    assert 2 <= len(asked) <= lasted / 0.25 + 1


# -- hostile texts ----------------------------------------------------------------------------------------------------


def test_what_comes_from_outside_stays_text_in_every_view(many: Site, visit: Visit) -> None:
    page = visit(many.page, expects=("404",))
    name = "<img src=x onerror=window.hurt=1>"

    def renamed(route: Route) -> None:
        """Let the answers speak of a service of that name: our own rules let nobody configure it."""
        response = route.fetch()
        body = response.text().replace('"s042"', json.dumps(name)).replace("s042:", f"{name}:")
        # The runner leaves no control characters in a summary; the page does not rely on it.
        body = body.replace("gnp.exe", json.dumps("\x1b[31mred\x07 \u202egnp.exe")[1:-1])
        route.fulfill(response=response, body=body)

    page.route(lambda url: PREFIX in url and "/dashboard/" not in url and "/events" not in url, renamed)
    page.reload()  # what was answered before is kept no longer
    for where in VIEWS:
        view(page, many, where)
        assert page.evaluate("window.hurt") is None
        assert page.locator("main img, main script").count() == 0, where
        assert "\x1b" not in page.locator("main").inner_text()
        assert "\u202e" not in page.locator("main").inner_text()
    view(page, many, "#/")
    told = page.locator("main").inner_text()
    assert name in told
    assert r"\x1b[31mred\x07 \u202egnp.exe" in told
    assert page.locator("tbody a", has_text=name).get_attribute("href") == (
        "#/service/%3Cimg%20src%3Dx%20onerror%3Dwindow.hurt%3D1%3E"
    )


def test_the_browser_itself_forbids_text_to_become_markup_or_script(many: Site, visit: Visit) -> None:
    page = visit(many.page, expects=("Content Security Policy", "TrustedHTML", "Trusted Type", "unsafe-eval"))
    tried = page.evaluate("""() => ['document.body.innerHTML = "<b>x</b>"', 'document.write("x")'].map((line) => {
        const script = document.createElement('div');
        try {
            if (line.startsWith('document.write')) document.write('x');
            else script.innerHTML = '<b>x</b>';
            return 'done';
        } catch (problem) {
            return problem.name;
        }
    })""")
    assert tried == ["TypeError", "TypeError"]


# -- who may do what --------------------------------------------------------------------------------------------------


def test_without_a_token_the_page_asks_for_one_and_keeps_it_in_its_tab_only(tmp_path: Path, visit: Visit) -> None:
    shop = Shop(tmp_path)
    supervisor = Supervisor(Many().services(12), journal=tmp_path / "selfheal.db")
    with open_site(supervisor, loopback_writes=False) as site:
        reader, operator = shop.token("ann", "read"), shop.token("bob", "operate", ["s003"])
        page = visit(site.page, expects=("401",), wait="dialog[open]")
        dialog = page.get_by_role("dialog", name="Who are you?")
        page.keyboard.press("Escape")
        assert page.locator("main h1").inner_text() == "Who are you?"
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(1200)
        assert asked == [], "nobody knocks for ever at a door that is closed"
        page.get_by_role("button", name="Sign in").click()
        dialog.get_by_label("Token").fill("selfheal_wrong")
        page.keyboard.press("Enter")
        until(lambda: "unknown, expired or revoked" in dialog.get_by_role("alert").inner_text(), "it is none")
        assert page.evaluate("Object.values(sessionStorage)") == []
        dialog.get_by_label("Token").fill(reader)
        page.keyboard.press("Enter")
        page.locator(".fleet").wait_for()
        page.locator("#connection", has_text="Live").wait_for()
        assert page.locator("#who").inner_text().startswith("ann, read")
        view(page, site, "#/service/s003")
        page.locator("#why").wait_for()
        assert page.locator("[data-act]").count() == 0
        kept = page.evaluate("[Object.values(sessionStorage), Object.keys(localStorage), document.cookie]")
        assert kept == [[reader], [], ""]
        assert reader not in page.url
        page.get_by_role("button", name="Sign out").click()
        dialog.get_by_label("Token").fill(operator)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Disable s003").wait_for()
        view(page, site, "#/service/s004")
        page.locator("#why").wait_for()
        assert page.locator("[data-act]").count() == 0
        assert page.evaluate("Object.values(sessionStorage)") == [operator]
        page.close()


def test_only_an_admin_is_offered_to_release_a_hold_and_it_works(tmp_path: Path, visit: Visit) -> None:
    shop = Shop(tmp_path)
    storm = Many(sick={f"s00{place}" for place in range(5)}, tree=1)
    supervisor = Supervisor(storm.services(8), journal=tmp_path / "selfheal.db")
    with open_site(supervisor, loopback_writes=False) as site:
        tokens = [shop.token("bob", "operate"), shop.token("eve", "admin")]
        for token in tokens:
            page = visit(site.page, expects=("401",), wait="dialog[open]")
            page.get_by_role("dialog").get_by_label("Token").fill(token)
            page.keyboard.press("Enter")
            page.get_by_text("Nothing automatic happens (storm).").wait_for()
            if token == tokens[0]:
                assert page.get_by_role("button", name="Release …").count() == 0
                page.close()
        page.get_by_role("button", name="Release …").click()
        page.get_by_role("dialog").get_by_label("Reason").fill("I know what they share")
        page.keyboard.press("Enter")
        page.get_by_text("Nothing automatic happens (storm).").wait_for(state="hidden")
        page.close()


# -- what is shown first ----------------------------------------------------------------------------------------------


def changed(page: Page, change: Callable[[dict[str, Any]], None]) -> None:
    """Let the status tell another story from now on."""

    def instead(route: Route) -> None:
        response = route.fetch()
        status = response.json()
        change(status)
        route.fulfill(response=response, json=status)

    page.route(lambda url: url.endswith("/status"), instead)
    page.reload()
    page.wait_for_selector("main h1")


def test_what_is_still_down_when_its_root_is_well_again_is_told_by_itself(many: Site, visit: Visit) -> None:
    page = visit(many.page)
    down = {"state": "failed", "reason": "backoff", "incident": 2, "root": "s042", "attempt": 1}

    def change(status: dict[str, Any]) -> None:
        lines = {line["service"]: line for line in status["services"]}
        lines["s042"] |= {"state": "healthy", "reason": "", "root": "s042"}
        lines["s043"] |= down
        lines["s044"] |= {**down, "reason": "waiting-for:s043"}

    changed(page, change)
    stories = page.locator(".stories > li")
    assert [one.splitlines()[0].split(" down")[0] for one in stories.all_inner_texts()] == ["s005", "s043"]
    assert "s044 waits for it" in stories.nth(1).inner_text()
    rows = page.locator("tbody th[scope=row]").all_inner_texts()
    assert rows[:3] == ["s005", "s043", "s044"]


def test_what_holds_back_everything_is_told_before_what_each_service_does(many: Site, visit: Visit) -> None:
    page = visit(many.page)
    changed(page, lambda status: status.update(holds=[{"hold": "canary", "evidence": "no canary of 2 answers"}]))
    told = page.locator(".verdict").inner_text()
    assert told.index("Nothing automatic happens (canary).") < told.index("s005 down since")
    assert "no canary of 2 answers" in told


def test_the_tab_tells_how_many_are_sick_while_nobody_looks_at_the_page(many: Site, visit: Visit) -> None:
    page = visit(many.page)
    now: dict[str, int] = {}
    changed(page, lambda status: status.update(counts={**dict.fromkeys(status["counts"], 0), **now}))
    for counts, title, icon in (
        ({}, "Overview – many", "icon.svg"),
        ({"failed": 1, "recovering": 2, "degraded": 3}, "(3 down) Overview – many", "icon-down.svg"),
        ({"unhealthy": 2, "degraded": 3}, "(2 failing) Overview – many", "icon-warn.svg"),
        ({"degraded": 3}, "Overview – many", "icon-warn.svg"),
    ):
        now.clear()
        now.update(counts)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_function("title => document.title === title", arg=title)
        assert page.locator("link[rel=icon]").get_attribute("href") == icon


# -- every reader -----------------------------------------------------------------------------------------------------

TIDY: Final = """() => {
    const wrong = [];
    const tell = (one, what) => wrong.push(`${what}: <${one.localName}> ${one.textContent.slice(0, 40)}`);
    for (const one of document.querySelectorAll('#top *, main *')) {
        const {display} = getComputedStyle(one);
        if (!one.clientWidth || display.startsWith('inline')) continue;
        if (one.closest('svg, nav, .graph, .unseen, .uplot') || one.closest('thead')?.clientWidth < 9) continue;
        if (one.scrollWidth > one.clientWidth + 1) tell(one, 'does not fit');
    }
    for (const one of document.querySelectorAll('main button, main thead th, #views a')) {
        const lines = (one.clientHeight - 2 * parseFloat(getComputedStyle(one).paddingTop)) / 24;
        if (one.checkVisibility() && one.clientWidth > 1 && lines > 1.6) tell(one, 'is broken into lines');
    }
    for (const one of document.querySelectorAll('td[data-label=Doing], td[data-label=What]'))
        if (one.checkVisibility() && one.clientWidth < 120) tell(one, 'has no room');
    for (const one of document.querySelectorAll('.node')) {
        const [box, text] = [one.querySelector('rect').getBBox(), one.querySelector('text').getBBox()];
        if (text.x + text.width > box.x + box.width) tell(one, 'leaves its box');
    }
    if (document.documentElement.scrollWidth > innerWidth) wrong.push('the page is too wide');
    return wrong;
}"""
"""What is cut, squeezed, broken in the middle, or wider than its place."""


def test_nothing_is_cut_or_squeezed_on_any_screen(few: Site, visit: Visit) -> None:
    page = visit(few.page, expects=("404",))
    long = "customer-notification-dispatcher-europe-west"

    def renamed(route: Route) -> None:
        response = route.fetch()
        body = response.text().replace('"s012"', json.dumps(long)).replace("s012:", f"{long}:")
        route.fulfill(response=response, body=re.sub(r'"since":"[^T"]*T', '"since":"2025-10-30T', body))

    page.route(lambda url: PREFIX in url and "/dashboard/" not in url and "/events" not in url, renamed)
    page.reload()
    for where in VIEWS:
        view(page, few, where)
        for width in (1440, 1280, 820, 390, 360):
            page.set_viewport_size({"width": width, "height": 800})
            page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            assert page.evaluate(TIDY) == [], f"{where} at {width}"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_axe_finds_nothing_in_any_view(few: Site, visit: Visit, axe: str, scheme: str, width: int) -> None:
    page = visit(few.page, color_scheme=scheme, viewport={"width": width, "height": 780}, reduced_motion="reduce")
    page.evaluate(axe)
    for where in VIEWS:
        view(page, few, where)
        if where == "#/service/s005":
            page.get_by_role("button", name="Pause s005").click()
        found = page.evaluate("""() => axe.run(document, {resultTypes: ['violations']}).then(({violations}) =>
            violations.map((one) => `${one.impact} ${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html)}`))""")
        assert found == [], where
        if where == "#/service/s005":
            page.keyboard.press("Escape")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{where} is {wide} wide"


def test_times_are_the_readers_own_with_utc_beside_them(many: Site, visit: Visit) -> None:
    page = visit(many.page, timezone_id="Asia/Tokyo", locale="en-GB")
    since = page.locator('tr[data-key="s005"] [data-label=Since] time').first
    utc = since.get_attribute("title") or ""
    hour = int(utc[11:13])
    assert since.inner_text().endswith(f"{(hour + 9) % 24:02}:{utc[14:16]}")
    assert utc.endswith(" UTC")
    view(page, many, "#/days")
    assert "A day begins at 09:00 by your clock" in page.locator(".legend").inner_text()
    today = page.locator(".days li").first.locator(".day").last.get_attribute("title") or ""
    assert re.match(r"(\d+ \w+, )?09:00 to (\d+ \w+, )?09:00: ", today), today


@pytest.mark.parametrize(("motion", "moves"), [("no-preference", True), ("reduce", False)])
def test_nothing_moves_for_who_asked_for_less_motion(many: Site, visit: Visit, motion: str, moves: bool) -> None:
    page = visit(many.page, reduced_motion=motion)

    def repaired(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=response.text().replace('"state":"failed"', '"state":"recovering"'))

    page.route(lambda url: url.endswith("/status"), repaired)
    page.reload()
    page.locator(".badge.is-recovering").first.wait_for()
    assert (page.evaluate("document.getAnimations().length") > 0) is moves


def test_a_link_to_nothing_says_so(many: Site, visit: Visit) -> None:
    page = visit(f"{many.page}#/service/nobody", expects=("404",))
    assert page.locator("h1").inner_text() == "There is no such thing"
    assert "nobody" in page.locator("main").inner_text()
    view(page, many, "#/incident/1")
    assert page.locator("h1").inner_text().startswith("Incident 1: s0")


# -- each day ---------------------------------------------------------------------------------------------------------


def days_of(place: int) -> list[dict[str, Any]]:
    """Return 60 days of a service, as the server would divide them: all kinds of them, at different places."""
    found = []
    for number in range(60):
        day = {"date": f"2026-{1 + number // 28:02}-{1 + number % 28:02}", "observed_seconds": 86400.0}
        day |= {"down_seconds": 0.0, "degraded_seconds": 0.0, "planned_seconds": 0.0}
        match (number + place) % 17:
            case 3:
                day["down_seconds"] = 1800.0 * (1 + number % 3) ** 3
            case 7:
                day["degraded_seconds"] = 600.0
            case 11:
                day |= {"observed_seconds": 0.0, "planned_seconds": 7200.0}
            case 13:
                day["observed_seconds"] = 0.0
        found.append(day)
    return found


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_each_day_has_a_bar_and_the_share_of_days_is_said_in_words(
    few: Site, visit: Visit, axe: str, width: int, scheme: str
) -> None:
    page = visit(few.page, color_scheme=scheme, viewport={"width": width, "height": 780})

    def divided(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        for name, one in answer["services"].items():
            one["days"] = days_of(int(name[1:]))
        route.fulfill(response=response, json=answer)

    page.route(lambda url: "/statistics" in url, divided)
    view(page, few, "#/days")
    first = page.locator('.days li[data-key="s003"]')
    assert first.locator(".day").count() == 90
    expected = {"down": 4, "degraded": 4, "planned": 4, "unobserved": 30 + 3, "up": 45}
    assert {kind: first.locator(f".day.{kind}").count() for kind in expected} == expected
    assert first.locator(".bars").get_attribute("aria-label") == (
        "Of the last 90 days: 45 days up, 4 days with a warning, 4 days with an outage, 4 days in maintenance, "
        "33 not watched"
    )
    assert (first.locator(".day.down").first.get_attribute("title") or "").endswith("down for 30 min")
    assert first.locator(".day.up").first.evaluate("one => one.getBoundingClientRect().width") >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations)")
    assert found == []
