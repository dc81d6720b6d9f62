"""Docker's events as a sensor: who runs, whenever that changes.

Owns the stream, its reconnecting, and the memory of who asked for an end. An event only says when to look; what is
yielded was inspected.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from selfheal import Instance, Run
from selfheal.errors import ActionFailed
from selfheal.plugins import Context
from selfheal_docker.api import Docker
from selfheal_docker.container import Event, Memory, read_event

Filters: TypeAlias = Mapping[str, Sequence[str]]

CHANGES: Final = (
    "create", "start", "restart", "die", "oom", "stop", "pause", "unpause", "destroy", "rename", "health_status",
)  # fmt: skip
"""Events after which it is looked at anew. `kill` is only remembered: it changes nothing by itself."""

AGAIN: Final = (0.25, 10.0)
"""Seconds before it is listened again: at first, doubling to at most."""

_ANSWER: Final = 10.0  # seconds Docker is given to answer a question of ours
_GOING_DOWN: Final = 30.0  # seconds before the stream ends in which a stop may have been Docker's own shutdown: it
# gives its containers 15


async def changes(
    docker: Docker,
    context: Context,
    memory: Memory,
    filters: Callable[[], Filters],
    look: Callable[[Docker], Awaitable[Instance]],
) -> AsyncGenerator[Instance, None]:
    """Yield the instance whenever it has changed; the first one only if it has already ended. Never ends by itself.

    `filters` says which events concern it, and is asked again after every look: where it answers otherwise, another
    stream is opened.
    """
    docker = attrs.evolve(docker, longest=_ANSWER)
    known: tuple[str, Run] | None = None
    pause = AGAIN[0]
    since = time.time()
    while True:
        resubscribe = False
        try:
            chosen = filters()
            asked = {"filters": json.dumps({"type": ["container"], "event": [*CHANGES, "kill"], **chosen})}
            asked["since"] = f"{since:.9f}"
            async with docker.events(context, asked) as stream:
                pause = AGAIN[0]
                async for event in _after_the_first_look(stream):
                    if event is not None:
                        memory.heard.append(event)
                        since = max(since, event.at)
                        if event.action == "kill":
                            continue
                    instance = await look(docker)
                    now = (instance.id, instance.run)
                    if now != known and (known is not None or instance.run is Run.EXITED):
                        yield instance
                    known = now
                    if resubscribe := filters() != chosen:
                        break
        except (OSError, ActionFailed):
            pass  # polling says what is wrong with Docker; a sensor only tries again
        if not resubscribe:
            memory.forget_since(time.time() - _GOING_DOWN)
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN[1])


async def _after_the_first_look(stream: AsyncIterator[object]) -> AsyncIterator[Event | None]:
    """Yield None, for the look that is due once we listen, and then each event."""
    yield None
    async for data in stream:
        if (event := read_event(data)) is not None:
            yield event
