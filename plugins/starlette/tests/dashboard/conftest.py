"""A real browser, and pages in it that watch for whatever the browser complains about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from tests.servers import program_of


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for the tests of one module: while it is open, this thread belongs to Playwright's event loop."""
    chromium = program_of("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open an address in a new window. At the end nothing was complained of but what the test `expects`."""
    opened: list[tuple[BrowserContext, list[str], tuple[str, ...]]] = []

    def visit(address: str, *, expects: tuple[str, ...] = (), wait: str = "main h1", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        page = context.new_page()
        page.set_default_timeout(15_000)
        complaints: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda fault: complaints.append(f"uncaught: {fault}"))
        opened.append((context, complaints, expects))
        page.goto(address)
        if wait:
            page.wait_for_selector(wait)
        return page

    yield visit
    for context, complaints, expects in opened:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")  # what is on its way may be answered no more
        context.close()
        assert [one for one in complaints if not any(word in one for word in expects)] == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    return (Path(__file__).parent / "vendor" / "axe.min.js").read_text("utf-8")
