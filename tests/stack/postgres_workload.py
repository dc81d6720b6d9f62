"""What runs a server of `tests.stack.postgres`, as a workload that can start and stop it."""

from __future__ import annotations

import signal
from typing import ClassVar

import attrs
from tests.stack.postgres import Server

from selfheal.core.model import Instance, Run
from selfheal.plugins import ActionContext, Context


@attrs.frozen(kw_only=True)
class Postmaster:
    """The postmaster of a server."""

    kind: ClassVar[str] = "postmaster"
    server: Server

    async def inspect(self, context: Context) -> Instance:
        """Return whether it runs."""
        alive = self.server.alive
        return Instance(id=str(self.server.pid) if alive else "gone", run=Run.RUNNING if alive else Run.EXITED)

    async def restart(self, context: ActionContext) -> None:
        """End it in good order and start it again."""
        await context.blocking(self.server.restart)

    async def start(self, context: ActionContext) -> None:
        """Start it."""
        await context.blocking(self.server.start)

    async def stop(self, context: ActionContext) -> None:
        """End it in good order."""
        await context.blocking(self.server.end, signal.SIGINT)
