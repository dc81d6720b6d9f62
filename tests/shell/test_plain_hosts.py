"""Hosts that did not begin with anyio: a loop that `asyncio.run` or a web server has started."""

from __future__ import annotations

import asyncio

import pytest

from selfheal import ActionContext, Service, Supervisor

pytestmark = pytest.mark.real_time


def test_a_fleet_is_watched_and_healed_on_a_loop_that_anyio_has_not_started() -> None:
    """Nearly everything is done in callbacks, and in those there is no task by which sniffio could know asyncio."""
    well = True

    async def check() -> bool:
        return well

    supervisor = Supervisor(
        [
            Service(
                "web",
                check=check,
                interval=0.05,
                recheck=0.05,
                failure_threshold=2,
                min_failing_span=0.1,
                recovery_actions=["reconnect"],
            )
        ],
        journal=None,
    )

    @supervisor.action("web", "reconnect")
    async def reconnect(context: ActionContext) -> None:
        nonlocal well
        well = True

    async def reach(state: str) -> None:
        while True:
            if (await supervisor.ask("service", service="web"))["state"] == state:
                return
            await asyncio.sleep(0.01)

    async def host() -> None:
        nonlocal well
        async with supervisor:
            async with asyncio.timeout(15.0):
                await reach("healthy")
                for act in ("disable", "enable"):
                    await supervisor.act(act, service="web", reason="to and fro, from a task of the host's")
                await reach("healthy")
                well = False
                await reach("recovering")
                await reach("healthy")
            assert (await supervisor.ask("health"))["running"]

    asyncio.run(host())
    assert well
