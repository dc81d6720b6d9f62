"""The pictures of the docs, taken of a real fleet. Set SELFHEAL_PICTURES to put them into docs/images."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import attrs
import pytest
from playwright.sync_api import Page
from tests.stack.dashboard import open_site

from selfheal import ActionContext, CheckResult, Service, Supervisor, Verdict
from selfheal.core.model import Cause, Step

pytestmark = [pytest.mark.real_time, pytest.mark.server]

IMAGES: Final = Path(__file__).parents[4] / "docs" / "images"

LARGEST: Final = 150_000
"""Bytes of a picture at most."""

NEEDS: Final[dict[str, list[Any]]] = {
    "database": [],
    "redis": [],
    "storage": [],
    "mail": [],
    "api": ["database", {"service": "redis", "kind": "soft"}],
    "login": ["database"],
    "search": ["database", "storage"],
    "thumbnails": ["storage"],
    "worker": ["redis", "database"],
    "importer": ["worker"],
    "billing": ["api", "mail"],
    "web": ["api", "login"],
    "partners": ["api"],
    "gateway": ["web", {"any_of": ["search", "thumbnails"]}],
}


@attrs.define
class Scene:
    """A fleet whose database goes down, takes the api with it, and is being restarted for as long as we look."""

    down: set[str] = attrs.field(factory=set)
    mended: threading.Event = attrs.field(factory=threading.Event)

    def supervisor(self, folder: Path) -> Supervisor:
        """Return a supervisor of it."""
        supervisor = Supervisor(
            [self._service(name) for name in NEEDS], journal=folder / "selfheal.db", name="knowledgehub"
        )
        supervisor.action("database", "reconnect")(self._in_vain)
        supervisor.action("database", "restart")(self._long)
        supervisor.action("api", "restart")(self._in_vain)
        return supervisor

    def _service(self, name: str) -> Service:
        ladder = {"database": ["reconnect", "restart"], "api": ["restart"]}.get(name, [])
        return Service(
            name,
            check=self._check(name),
            depends_on=NEEDS[name],
            interval=1.0,
            recheck=0.3,
            min_failing_span=0.5,
            failure_threshold=2,
            recovery_actions=[Step(action=action, settle=0.3) for action in ladder],
        )

    def _check(self, name: str) -> Callable[[], Any]:
        async def check() -> CheckResult:
            await anyio.sleep(0.004)
            if name == "database" and name in self.down:
                return CheckResult(
                    Verdict.FAILING,
                    cause=Cause.UNREACHABLE,
                    summary="connection refused by 10.0.0.5:5432",
                    details={"host": "10.0.0.5", "port": 5432},
                )
            if name == "api" and name in self.down:
                return CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary="GET /health answered 503")
            if name == "login":
                summary = "the certificate ends in 6 days"
                return CheckResult(Verdict.WARNING, cause=Cause.CONFIG, summary=summary)
            return CheckResult(Verdict.PASSING)

        return check

    @staticmethod
    async def _in_vain(context: ActionContext) -> None:
        await anyio.sleep(0.01)

    async def _long(self, context: ActionContext) -> None:
        await anyio.to_thread.run_sync(self.mended.wait, abandon_on_cancel=True)


def test_who_sees_it_for_the_first_time_reads_what_is_broken_and_what_is_done(
    tmp_path: Path, visit: Callable[..., Page]
) -> None:
    folder = IMAGES if os.environ.get("SELFHEAL_PICTURES") else tmp_path
    folder.mkdir(exist_ok=True)

    def take(page: Page, name: str, **options: Any) -> None:
        path = folder / f"dashboard-{name}.png"
        page.screenshot(path=path, animations="disabled", **options)
        assert 5_000 < path.stat().st_size < LARGEST, f"{path.name} has {path.stat().st_size} bytes"

    scene = Scene()
    with open_site(scene.supervisor(tmp_path)) as site:
        page = visit(site.page, viewport={"width": 1200, "height": 760})
        page.locator("h1", has_text="1 of 14 services serves with a warning.").wait_for()
        scene.down.add("database")
        page.locator("h1", has_text="1 of 14 services is down").wait_for()
        scene.down.add("api")
        page.locator("h1", has_text="2 of 14 services are down").wait_for()
        story = page.locator(".stories li", has_text="database down since")
        story.get_by_text(re.compile(r"restarting for \d+ s, step 2 of 2")).wait_for()
        story.get_by_text("waits for it").wait_for()
        take(page, "overview")
        phone = visit(site.page, viewport={"width": 360, "height": 740}, color_scheme="dark", device_scale_factor=1.5)
        phone.locator(".stories li", has_text="step 2 of 2").wait_for()
        take(phone, "phone")
        page.goto(f"{site.page}#/graph")
        page.locator(".edge.hurt").first.wait_for()
        take(page, "graph", clip={"x": 0, "y": 0, "width": 1200, "height": 470})
        page.goto(f"{site.page}#/service/api")
        page.get_by_text("because what it needs is not well yet").wait_for()
        page.set_viewport_size({"width": 1200, "height": 900})
        page.locator(".timeline .block", has_text="down").wait_for()
        take(page, "service")
        scene.down.clear()
        scene.mended.set()
        page.locator(".verdict.is-healthy").wait_for()
        page.goto(f"{site.page}#/incident/1")
        page.locator("h1", has_text="Incident 1: database").wait_for()
        take(page, "incident", clip={"x": 0, "y": 0, "width": 1200, "height": 560})
        page.close()
        phone.close()
