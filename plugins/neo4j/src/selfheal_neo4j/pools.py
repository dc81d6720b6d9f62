"""For embedding: callbacks that give an application's own driver a fresh start, as the step `reconnect`.

    supervisor.action("neo4j", "reconnect")(renew_async_driver(driver))

The driver's interface has no word for emptying its pool. But it looks at a connection before `verify_connectivity` uses
it, and where that one is dead it drops all that lie idle to the same server (seen with the driver 6.4). What is in use
is left alone. A callback raises when no connection can be made. Nothing is imported here: the driver is the
application's, and so is its `connection_acquisition_timeout`, which should be shorter than the step's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from selfheal.plugins import ActionContext

if TYPE_CHECKING:
    from neo4j import AsyncDriver, Driver

Callback: TypeAlias = "Callable[[ActionContext], str]"
AsyncCallback: TypeAlias = "Callable[[ActionContext], Awaitable[str]]"

RENEWED = "the pool was renewed, and a connection of it works"


def renew_driver(driver: Driver) -> Callback:
    """Return a callback that renews the pool of a `neo4j.Driver`; selfheal runs it in a thread."""

    def reconnect(context: ActionContext) -> str:
        driver.verify_connectivity()
        return RENEWED

    return reconnect


def renew_async_driver(driver: AsyncDriver) -> AsyncCallback:
    """Return a callback that renews the pool of a `neo4j.AsyncDriver`, on the application's own loop."""

    async def reconnect(context: ActionContext) -> str:
        await driver.verify_connectivity()
        return RENEWED

    return reconnect
