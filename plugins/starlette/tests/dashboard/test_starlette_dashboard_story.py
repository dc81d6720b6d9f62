"""The dashboard in a real browser, over real processes: what happens is seen while it happens, and people can act."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Locator, Page
from tests.servers import until
from tests.stack.dashboard import Shop, Site, open_site

from selfheal import Limits, Supervisor

pytestmark = [pytest.mark.real_time, pytest.mark.server]

NAMES = ("database", "cache", "api", "web", "mail")

Visit = Callable[..., Page]


def fleet(shop: Shop) -> Supervisor:
    """Return a small shop in which the mail asks before it is restarted."""
    ask_first = [{"action": "restart", "settle": 0.5, "approval": True}]
    services = [
        shop.service("database"),
        shop.service("cache"),
        shop.service("api", "database", {"service": "cache", "kind": "soft"}),
        shop.service("web", "api"),
        shop.service("mail", recovery_actions=ask_first),
    ]
    limits = Limits(budget_floor=50)
    return Supervisor(services, journal=shop.folder / "selfheal.db", name="shop", limits=limits)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    yield shop
    shop.end(*NAMES)


@pytest.fixture(scope="module")
def site(shop: Shop) -> Iterator[Site]:
    with open_site(fleet(shop)) as site:
        yield site


@pytest.fixture
def well(site: Site, shop: Shop) -> Iterator[None]:
    """Everything is healthy before a test, and mended after it."""
    with httpx2.Client() as client:
        until(
            lambda: client.get(f"{site.api}status").json()["counts"]["healthy"] == len(NAMES), "all are healthy", 30.0
        )
        yield
        for name in NAMES:
            shop.mend(name)


def row(page: Page, service: str) -> Locator:
    return page.locator(f'tr[data-key="{service}"]')


def act(page: Page, button: str, reason: str, *, choose: str = "") -> None:
    """Press a button, give the reason, confirm, and wait until it is done."""
    page.get_by_role("button", name=button, exact=True).first.click()
    dialog = page.get_by_role("dialog")
    if choose:
        dialog.get_by_label("For how long").select_option(label=choose)
    dialog.get_by_label("Reason").fill(reason)
    dialog.locator("button[type=submit]").click()
    dialog.wait_for(state="hidden")


@pytest.mark.usefixtures("well")
def test_a_service_is_killed_and_the_page_tells_the_story_while_it_happens(
    site: Site, shop: Shop, visit: Visit
) -> None:
    page = visit(site.page)
    page.evaluate("window.here = true")
    assert page.locator("h1").inner_text() == "All 5 services are healthy."
    page.evaluate("""() => {
        window.states = [];
        const look = () => {
            const state = document.querySelector('tr[data-key="database"] .badge')?.textContent;
            if (state && state !== window.states.at(-1)) window.states.push(state);
        };
        new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
    }""")
    shop.break_("database")
    row(page, "database").locator(".is-unhealthy").wait_for()
    assert "failing, not confirmed yet" in page.locator("h1").inner_text()
    page.locator("h1", has_text="1 of 5 services is down").wait_for()
    story = page.locator(".stories li", has_text="database down since")
    story.get_by_text(re.compile(r"attempt 1 did not help; (trying again|about to try again)")).wait_for()
    since = story.locator("time").first.get_attribute("datetime")
    story.get_by_text(re.compile(r"attempt 2 did not help; (trying again|about to try again)")).wait_for()
    assert story.locator("time").first.get_attribute("datetime") == since, "an attempt is no new outage"
    assert "has ended" in row(page, "database").inner_text()
    assert page.title() == "(1 down) Overview – shop"
    shop.mend("database")
    page.locator("h1", has_text="All 5 services are healthy.").wait_for()
    states = page.evaluate("window.states")
    states = states[states[0] == "healthy" :]
    assert states[0] == "unhealthy"
    assert states[-1] == "healthy"
    assert "recovering" in states
    assert "failed" in states
    assert page.evaluate("window.here")
    assert page.locator("#connection").inner_text() == "Live"


@pytest.mark.usefixtures("well")
def test_the_page_of_a_service_says_why_nothing_is_done_and_where_its_ladder_stands(
    site: Site, shop: Shop, visit: Visit
) -> None:
    page = visit(f"{site.page}#/service/mail", wait="#why")
    page.locator(".badge", has_text="healthy").wait_for()
    shop.break_("mail")
    page.get_by_text("It is down, and nothing is done, because the next step asks a person first.").wait_for()
    assert page.locator("#why").inner_text() == "Why nothing is being done"
    assert page.locator(".ladder .here").inner_text() == "restart disruptive, asks a person next"
    shop.mend("mail")
    act(page, "Approve mail", "the mail is needed")
    page.locator(".verdict.is-healthy").wait_for()
    history = page.locator(".records").inner_text()
    assert "asked for approve (“the mail is needed”)" in history
    assert "unhealthy → failed" in history
    page.locator("#chart canvas").wait_for()
    key = page.locator(".timeline .legend").inner_text()
    assert all(word in key for word in ("failing", "down", "being repaired")), key
    assert re.search(r"\d+ results since \d\d:\d\d: .*\d+ failing", page.locator(".timeline").inner_text())
    shades = page.evaluate("""() => {
        const canvas = document.querySelector('#chart canvas');
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        const seen = new Set();
        for (let at = 0; at < data.length; at += 4) seen.add(data.slice(at, at + 3).join());
        return [...seen];
    }""")
    assert {"185,28,28", "28,122,67", "29,95,168"} <= set(shades), "failed, healthy and recovering have their strips"
    page.locator("#chart .u-over").hover(position={"x": 30, "y": 40})
    page.locator("#reading", has_text=re.compile(r"^\d\d:\d\d:\d\d: (passing|failing), ")).wait_for()


@pytest.mark.usefixtures("well")
def test_every_act_works_from_the_page_and_is_in_the_audit_trail(site: Site, shop: Shop, visit: Visit) -> None:
    page = visit(f"{site.page}#/service/cache", wait="#why")
    act(page, "Pause cache", "one", choose="15 minutes")
    page.get_by_role("button", name="Resume cache").wait_for()
    act(page, "Resume cache", "two")
    page.get_by_role("button", name="Pause cache").wait_for()
    act(page, "Maintenance cache", "three")
    act(page, "Silence cache", "four", choose="until somebody ends it")
    page.goto(f"{site.page}#/")
    for left in (1, 0):
        page.locator(".notices li").first.get_by_role("button", name="End it …").click()
        page.get_by_role("dialog").get_by_label("Reason").fill("five")
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for(state="hidden")
        page.locator(".notices li").nth(left).wait_for(state="detached")
    act(page, "Pause everything …", "six", choose="until somebody ends it")
    page.get_by_text("Paused: the whole fleet").wait_for()
    act(page, "End it …", "seven")
    page.goto(f"{site.page}#/service/cache")
    act(page, "Disable cache", "eight")
    page.locator(".verdict.is-disabled").wait_for()
    act(page, "Enable cache", "nine")
    page.locator(".verdict.is-healthy").wait_for()
    shop.break_("mail")
    page.goto(f"{site.page}#/")
    page.locator(".stories").get_by_text("waiting for a person to approve: restart").wait_for()
    act(page, "Refuse mail", "ten")
    page.locator(".stories").get_by_text("waiting for a person to approve: restart").wait_for(state="hidden")
    page.goto(f"{site.page}#/alerts")
    act(page, "Acknowledge mail", "eleven")
    page.get_by_text("acknowledged by").first.wait_for()
    page.goto(f"{site.page}#/")
    page.locator(".stories", has_text="loopback at 127.0.0.1 sees to it").wait_for()
    shop.mend("mail")
    page.goto(f"{site.page}#/service/mail")
    act(page, "Recover now mail", "twelve")
    act(page, "Approve mail", "thirteen")
    page.locator(".verdict.is-healthy").wait_for()
    page.goto(f"{site.page}#/audit")
    page.locator("h1", has_text="Audit").wait_for()
    trail = page.locator("main").inner_text()
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    for number in (*numbers, "thirteen"):
        assert re.search(rf"\b{number}\b", trail), number
    assert "loopback at 127.0.0.1" in trail


@pytest.mark.usefixtures("well")
def test_an_act_needs_a_reason_and_a_second_word_and_can_be_left(site: Site, visit: Visit) -> None:
    page = visit(f"{site.page}#/service/web", wait="#why")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    opener = page.get_by_role("button", name="Disable web")
    opener.click()
    dialog = page.get_by_role("dialog")
    dialog.locator("button[type=submit]").click()
    assert "Say why" in dialog.get_by_role("alert").inner_text()
    dialog.get_by_label("Reason").fill("   ")
    page.keyboard.press("Enter")
    assert "Say why" in dialog.get_by_role("alert").inner_text()
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert opener.evaluate("one => one === document.activeElement")
    assert asked == []


@pytest.mark.usefixtures("well")
def test_what_the_engine_refuses_is_said_in_the_dialog(site: Site, visit: Visit) -> None:
    page = visit(f"{site.page}#/service/web", wait="#why", expects=("409",))
    page.get_by_role("button", name="Recover now web").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("I wonder")
    page.keyboard.press("Enter")
    until(lambda: dialog.get_by_role("alert").inner_text(), "the refusal is shown")
    assert "healthy" in dialog.get_by_role("alert").inner_text()


@pytest.mark.usefixtures("well")
def test_everything_can_be_done_with_the_keyboard_alone(site: Site, visit: Visit) -> None:
    page = visit(site.page)
    press = page.keyboard.press

    def focused() -> str:
        return str(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))

    def tab_to(name: str) -> None:
        for _ in range(60):
            press("Tab")
            if focused() == name:
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"nobody sees that {name} has the focus"
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("Skip to the content")
    press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("cach")
    until(lambda: page.locator("tbody tr").count() == 1, "the others are filtered out")
    tab_to("cache")
    press("Enter")
    page.locator("#why").wait_for()
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to("Pause cache")
    press("Enter")
    for _ in range(12):
        press("Tab")
        assert page.evaluate("!document.activeElement.closest('main')"), "the dialog holds the focus"
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert focused() == "Pause cache"
    press("Enter")
    page.keyboard.type("by hand")
    press("Enter")
    page.get_by_role("button", name="Resume cache").wait_for()
    assert focused() == "Resume cache"
    press("Enter")
    page.keyboard.type("by hand again")
    press("Enter")
    page.get_by_role("button", name="Pause cache").wait_for()


@pytest.mark.usefixtures("well")
def test_what_has_the_focus_keeps_it_when_it_moves_to_another_place(site: Site, shop: Shop, visit: Visit) -> None:
    page = visit(site.page)
    row(page, "web").get_by_role("link").focus()
    shop.kill("web")
    page.locator("tr.troubled", has_text="web").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "web"
    page.locator("h1", has_text="All 5 services are healthy.").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "web"


def test_when_the_server_restarts_the_page_says_so_calmly_and_goes_on(tmp_path: Path, visit: Visit) -> None:
    shop = Shop(tmp_path)

    def one() -> Supervisor:
        return Supervisor([shop.service("database"), shop.service("api", "database")], journal=tmp_path / "selfheal.db")

    try:
        with open_site(one()) as site:
            page = visit(site.page, expects=("Failed to load resource", "ERR_INCOMPLETE_CHUNKED_ENCODING"))
            page.locator("#connection", has_text="Live").wait_for()
            page.locator("h1", has_text="All 2 services are healthy.").wait_for()
            page.evaluate("window.here = true")
            act(page, "Pause everything …", "so that something is heard")
            page.get_by_text("Paused: the whole fleet").wait_for()
            act(page, "End it …", "enough")
            until(lambda: page.locator(".notices li").count() == 0, "it has ended")
            port = site.port
        page.locator("#connection", has_text="Connection lost. Last heard at").wait_for()
        assert page.locator("h1").inner_text() == "All 2 services are healthy."
        assert page.title().startswith("(?) "), "the tab tells that it does not know"
        assert page.locator("link[rel=icon]").get_attribute("href") == "icon-lost.svg"
        assert page.locator("body.stale time").first.evaluate("one => getComputedStyle(one).fontStyle") == "italic"
        resumed: list[str | None] = []
        page.on(
            "request",
            lambda request: (
                resumed.append(request.headers.get("last-event-id")) if request.url.endswith("/events") else None
            ),
        )
        with open_site(one(), port=port):
            page.locator("#connection", has_text="Live").wait_for()
            until(lambda: page.locator("body.stale").count() == 0, "it is not stale any more")
            assert not page.title().startswith("(?) ")
            shop.break_("database")
            page.locator("h1", has_text="is down").wait_for()
        assert resumed[-1] is not None
        assert resumed[-1].isdigit()
        assert page.evaluate("window.here")
    finally:
        shop.end("database", "api")
