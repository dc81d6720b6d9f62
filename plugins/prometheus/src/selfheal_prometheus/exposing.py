"""The metrics as bytes, in the format that an `Accept` header asks for."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from selfheal.metrics import CONTENT_TYPES, chosen


class Asked(Protocol):
    """What is asked: a `selfheal.Supervisor`, or what forwards to one."""

    def ask(self, name: str, **parameters: Any) -> Awaitable[Any]:
        """Answer a query."""


async def exposition(supervisor: Asked, accept: str = "") -> tuple[str, bytes]:
    """Return the content type and the body of `/metrics`: OpenMetrics 1.0.0 where `accept` prefers it, else 0.0.4.

    Written in a thread, so the loop goes on. Raises what `Supervisor.ask` raises: `NotRunning`, `JournalError`.
    """
    form = chosen(accept)
    text: str = await supervisor.ask("metrics", format=form)
    return CONTENT_TYPES[form], text.encode()
