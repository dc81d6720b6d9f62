"""One healthy service beside fifty that hang, in every way in which one can: it is checked on time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, Final

import anyio
import attrs
import pytest

from selfheal import CheckContext, CheckResult, Secret, Service, Supervisor
from selfheal.builtin.wire_checks import HttpCheck
from selfheal.core.model import PASSING
from selfheal.loading import load_plugins
from selfheal.testing.servers import hang

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

HUNG: Final = 50
INTERVAL: Final = 0.25
SECONDS: Final = 2.5
LATE: Final = 0.25
"""Seconds by which a check may come later than its interval and jitter say: one interval, on a machine that is busy."""


@attrs.frozen(kw_only=True)
class Hangs:
    """A coroutine that never ends."""

    kind: ClassVar[str] = "hangs"

    async def check(self, context: CheckContext) -> CheckResult:
        await asyncio.sleep(3600.0)
        return PASSING


@attrs.frozen(kw_only=True)
class Blocks:
    """A synchronous driver that never comes back, in the thread of its service."""

    kind: ClassVar[str] = "blocks"
    over: threading.Event = attrs.field(eq=False)

    async def check(self, context: CheckContext) -> CheckResult:
        await context.blocking(self.over.wait, 60.0)
        return PASSING


@attrs.frozen(kw_only=True)
class Well:
    """Notes when it is asked, by a coroutine or in its thread."""

    kind: ClassVar[str] = "well"
    asked: list[float] = attrs.field(factory=list, eq=False)
    blocking: bool = False

    async def check(self, context: CheckContext) -> CheckResult:
        if self.blocking:
            await context.blocking(self.asked.append, time.monotonic())
        else:
            self.asked.append(time.monotonic())
        return PASSING


@attrs.frozen(kw_only=True)
class Ill:
    """How fifty services hang."""

    name: str
    make: Callable[[str, threading.Event, int], Any]
    deep: bool = False


PASSWORD: Final = Secret("hunter2-canary-51d2e8")

DEEP: Final[dict[str, dict[str, Any]]] = {
    "minio": {"url": "http://{}", "access_key": "watcher", "secret_key": PASSWORD, "bucket": "things"},
    "neo4j": {"uri": "bolt://{}", "password": PASSWORD},
    "postgres": {"url": "postgresql://watcher@{}/postgres", "password": PASSWORD},
    "redis": {"url": "redis://{}", "password": PASSWORD},
    "weaviate": {"url": "http://{}", "api_key": PASSWORD, "write_probe": True},
}
"""kind -> options of a check that looks deep, where a driver is used for it; `{}` is the address."""


def _deep(address: str, over: threading.Event, number: int) -> Any:
    kind = sorted(DEEP)[number % len(DEEP)]
    options = {name: value.format(address) if name in ("url", "uri") else value for name, value in DEEP[kind].items()}
    return load_plugins([kind]).checks[kind](**options)


WAYS: Final = [
    Ill(name="on the wire", make=lambda address, over, number: HttpCheck(url=f"http://{address}/")),
    Ill(name="in a coroutine", make=lambda address, over, number: Hangs()),
    Ill(name="in a thread", make=lambda address, over, number: Blocks(over=over)),
    Ill(name="in the application", make=lambda address, over, number: lambda: over.wait(60.0)),
    Ill(name="in the drivers of five kinds", make=_deep, deep=True),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name.replace(" ", "-"))
async def test_s14_a_healthy_service_beside_fifty_hung_ones_is_checked_on_time(way: Ill) -> None:
    over, noted = threading.Event(), (Well(), Well(blocking=True))
    options: dict[str, Any] = {"interval": INTERVAL, "timeout": 0.2, "recheck": INTERVAL, "jitter": 0.1}
    with hang() as address:
        services = [
            Service(f"ill-{n}", check=way.make(address, over, n), deep=way.deep, **options) for n in range(HUNG)
        ]
        services += [Service(f"well-{n}", check=check, **options) for n, check in enumerate(noted)]
        try:
            async with Supervisor(services, journal=None) as supervisor:
                with anyio.fail_after(10.0):
                    while min(len(check.asked) for check in noted) < 2:  # noqa: ASYNC110  # a check sets no event
                        await anyio.sleep(0.02)
                began = time.monotonic()
                await anyio.sleep(SECONDS)
                states = {one["service"]: one["state"] for one in await supervisor.ask("services")}
        finally:
            over.set()
    for number, check in enumerate(noted):
        times = [at for at in check.asked if at >= began - INTERVAL]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        print(
            f"\n{way.name}: well-{number}: {len(times)} checks in {SECONDS:g} s, longest gap {max(gaps) * 1e3:.0f} ms"
        )
        assert len(times) >= 0.8 * SECONDS / INTERVAL
        assert max(gaps) <= 1.2 * INTERVAL + LATE  # ±10 % of the interval is jitter
        assert states[f"well-{number}"] == "healthy"
    assert not any(state == "healthy" for name, state in states.items() if name.startswith("ill"))
