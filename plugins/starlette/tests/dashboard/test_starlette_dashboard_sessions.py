"""The dashboard of an application that knows its users by a cookie, in a real browser: who is let in, and who not."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
from playwright.sync_api import Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send
from tests.servers import until
from tests.stack.starlette import PREFIX, Fleet, Served, serving

from selfheal import Supervisor
from selfheal.requests import Scope as Allowed
from selfheal_starlette import Caller, recovery_app

pytestmark = [pytest.mark.real_time, pytest.mark.server]

Visit = Callable[..., Page]

USERS: Final = {"ann": Allowed.OPERATE, "bob": Allowed.READ}

FORM: Final = '<form method="post"><label>Name <input name="user"></label><button>Log in</button></form>'

TRICKS: Final = """async (to) => {
    const tried = {};
    const attempt = async (name, work) => {
        try {
            tried[name] = String(await work());
        } catch (problem) {
            tried[name] = problem.name;
        }
    };
    const plain = {method: 'POST', credentials: 'include', body: '{"reason": "tricked"}'};
    await attempt('read', () => fetch(`${to}/status`, {credentials: 'include'}).then((answer) => answer.text()));
    await attempt('json', () => fetch(`${to}/services/mail/disable`,
        {...plain, headers: {'Content-Type': 'application/json'}}).then((answer) => answer.status));
    await attempt('plain', () => fetch(`${to}/services/mail/disable`, {...plain, mode: 'no-cors'})
        .then((answer) => answer.type));
    await attempt('bare', () => fetch(`${to}/services/mail/disable`,
        {method: 'POST', credentials: 'include', mode: 'no-cors'}).then((answer) => answer.type));
    await attempt('beacon', () => navigator.sendBeacon(`${to}/services/mail/disable`, '{"reason": "tricked"}'));
    const form = document.body.appendChild(document.createElement('form'));
    const act = `${to}/services/mail/disable`;
    Object.assign(form, {method: 'post', action: act, target: 'inside', enctype: 'text/plain'});
    form.appendChild(document.createElement('input')).name = '{"reason": "tricked", "ignored": "';
    const frame = document.body.appendChild(document.createElement('iframe'));
    frame.name = 'inside';
    form.submit();
    const shown = document.body.appendChild(document.createElement('iframe'));
    shown.src = `${to}/dashboard/`;
    return tried;
}"""
"""What a page of a stranger may try in the browser of somebody who is logged in."""


@attrs.define
class Host:
    """An application with a log-in page, whose sessions are remembered by a cookie and end when we say so."""

    supervisor: Supervisor
    sessions: dict[str, str] = attrs.field(factory=dict)
    came: list[tuple[str, str, bool, str]] = attrs.field(factory=list)
    """Of each request its method, its path, whether it carried the cookie, and the origin it named."""

    _app: Starlette = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        api = recovery_app(self.supervisor, authenticate=self.who)
        routes = [
            Route("/login", self.login, methods=["GET", "POST"]),
            Route("/logout", self.logout),
            Mount(PREFIX, api),
        ]
        self._app = Starlette(routes=routes, lifespan=self.supervisor.lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, and remember who came."""
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            with_cookie = "session=" in headers.get("cookie", "")
            self.came.append((scope["method"], scope["path"], with_cookie, headers.get("origin", "")))
        await self._app(scope, receive, send)

    def who(self, request: Request) -> Caller | None:
        """Know a user by the cookie."""
        user = self.sessions.get(request.cookies.get("session", ""))
        return Caller(name=user, scope=USERS[user]) if user else None

    async def login(self, request: Request) -> Response:
        """Show the form, and begin a session."""
        if request.method == "GET":
            return HTMLResponse(FORM)
        user = (await request.body()).decode().removeprefix("user=")
        key = secrets.token_urlsafe()
        self.sessions[key] = user
        response = RedirectResponse("/login", status_code=303)
        response.set_cookie("session", key, httponly=True, samesite="lax")
        return response

    async def logout(self, request: Request) -> Response:
        """End the session."""
        self.sessions.pop(request.cookies.get("session", ""), None)
        return HTMLResponse("Good-bye.")


@contextmanager
def hosted(folder: Path) -> Iterator[tuple[Host, Served]]:
    """Serve such an application over a small fleet."""
    fleet = Fleet(folder)
    host = Host(fleet.supervisor("mail", "database"))
    with serving(host, fleet) as served:
        yield host, served


def log_in(page: Page, served: Served, user: str) -> Page:
    """Log in to the application in another tab of the same browser, which stays open."""
    tab = page.context.new_page()
    tab.goto(f"http://127.0.0.1:{served.port}/login")
    tab.get_by_label("Name").fill(user)
    tab.get_by_role("button", name="Log in").click()
    tab.wait_for_url("**/login")
    return tab


def shut_out(page: Page) -> None:
    """Wait until the page says that one is not logged in, and not more than that."""
    page.locator("h1", has_text="You are not logged in").wait_for()
    assert page.locator("dialog[open]").count() == 0, "a token would not help"
    assert page.locator(".fleet, [data-act], [data-sign=in]").count() == 0


def test_a_user_of_the_application_acts_as_themselves_until_the_session_ends(tmp_path: Path, visit: Visit) -> None:
    with hosted(tmp_path) as (host, served):
        page = visit(f"{served.base}/dashboard/#/service/mail", expects=("401",))
        shut_out(page)
        assert "Log in to the application that serves this" in page.locator("main").inner_text()
        tab = log_in(page, served, "ann")
        page.get_by_role("button", name="Try again").click()
        page.locator("#connection", has_text="Live").wait_for()
        assert page.locator("#who").inner_text() == "ann, operate"
        page.get_by_role("button", name="Disable mail").click()
        page.get_by_label("Reason").fill("it is moved")
        page.keyboard.press("Enter")
        page.locator(".verdict.is-disabled").wait_for()
        done = served.get("/audit", headers={"Cookie": f"session={next(iter(host.sessions))}"}).json()["records"]
        assert [(one["action"], one["actor"], one["accepted"]) for one in done] == [
            ("disable", "ann at 127.0.0.1", True)
        ]
        page.get_by_role("button", name="Enable mail").click()
        host.sessions.clear()
        page.get_by_label("Reason").fill("it is back")
        page.keyboard.press("Enter")
        page.get_by_role("alert").get_by_text("log in to the application").wait_for()
        page.keyboard.press("Escape")
        shut_out(page)
        asked = len(host.came)
        page.wait_for_timeout(1200)
        assert len(host.came) == asked, "nobody knocks for ever at a door that is closed"
        tab.close()
        log_in(page, served, "bob")
        page.get_by_role("button", name="Try again").click()
        page.locator("#who", has_text="bob, read").wait_for()
        page.locator("h1", has_text="mail").wait_for()
        assert page.locator("[data-act]").count() == 0, "bob may only look"
        page.close()


def test_who_logs_out_in_another_tab_sees_and_hears_nothing_more(tmp_path: Path, visit: Visit) -> None:
    with hosted(tmp_path) as (host, served):
        page = visit(f"{served.base}/dashboard/", expects=("401",))
        tab = log_in(page, served, "ann")
        page.get_by_role("button", name="Try again").click()
        page.locator("#connection", has_text="Live").wait_for()
        tab.goto(f"http://127.0.0.1:{served.port}/logout")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as when one comes back to its tab
        shut_out(page)
        assert host.sessions == {}
        page.close()


def test_a_page_of_a_stranger_neither_reads_nor_acts_with_the_cookie_of_who_visits_it(
    tmp_path: Path, visit: Visit
) -> None:
    # Ports do not part cookies: the browser sends the cookie of the victim along, and only the origin tells them apart.
    other = Starlette(routes=[Route("/", lambda request: HTMLResponse("<title>Kittens</title><body>"))])
    with hosted(tmp_path / "ours") as (host, served), serving(other, Fleet(tmp_path / "theirs")) as stranger:
        page = visit(f"{served.base}/dashboard/", expects=("401",))
        log_in(page, served, "ann")
        trap = page.context.new_page()
        trap.goto(f"http://127.0.0.1:{stranger.port}/")
        before = len(host.came)
        tried: dict[str, Any] = trap.evaluate(TRICKS, served.base)
        assert tried == {
            "read": "TypeError",
            "json": "TypeError",
            "plain": "TypeError",
            "bare": "TypeError",
            "beacon": "true",
        }
        acts = f"{PREFIX}/services/mail/disable"
        until(lambda: len([one for one in host.came[before:] if one[:2] == ("POST", acts)]) == 4, "all have come")
        origin = f"http://127.0.0.1:{stranger.port}"
        assert {one[2:] for one in host.came[before:] if one[0] == "POST"} == {(True, origin)}
        ann = {"Cookie": f"session={next(iter(host.sessions))}"}
        assert served.get("/audit", headers=ann).json()["records"] == []
        assert served.get("/services/mail", headers=ann).json()["state"] != "disabled"
        until(lambda: any(one[1] == f"{PREFIX}/dashboard/" for one in host.came[before:]), "the page is asked for")
        # Nobody may put the page into a frame, and make people click.
        until(lambda: trap.evaluate("1") and trap.frames[-1].url == "chrome-error://chromewebdata/", "it is not shown")
        # The same act from the page itself is done: it was the origin, and nothing else, that stood in the way.
        page.get_by_role("button", name="Try again").click()
        page.locator(".fleet").wait_for()
        said = page.evaluate(
            "(to) => fetch(to, {method: 'POST', headers: {'Content-Type': 'application/json'}, "
            'body: \'{"reason": "meant"}\'}).then((answer) => answer.status)',
            f"{served.base}/services/mail/disable",
        )
        assert said == 200
        page.close()
