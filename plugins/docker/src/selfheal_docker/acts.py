"""Looking at one container, and having Docker act on it: what both workloads do.

Owns who is meant by a name, that nothing is done to another incarnation than the one that failed, and what must be seen
after Docker has said that it is done: Docker calls a restart well done when the program has been started, even if it
was gone a moment later.
"""

from __future__ import annotations

import asyncio
import json
import time
from math import ceil
from typing import Any, Final

import attrs

from selfheal import Run
from selfheal.builtin.options import seconds
from selfheal.errors import ActionFailed
from selfheal.plugins import ActionContext, Context
from selfheal_docker.api import Docker, Refused
from selfheal_docker.container import (
    Asked,
    Container,
    Memory,
    asked_by_docker,
    asked_by_events,
    asked_by_policy,
    how_it_ended,
    read,
    read_event,
    stands,
)

_RESERVE: Final = 2.0  # seconds of an action's time kept back from a slow stop, for the start
_POLL: Final = 0.1  # seconds between two looks at a container that has just been started
_SLOW_POLL: Final = 0.5  # ... while only its health is waited for
_LATE: Final = 10.0  # seconds after an end by which its last event has been written
_SHORTEST_ID: Final = 12  # digits of an id that Docker shows to people; a shorter one might be another's


@attrs.frozen(kw_only=True)
class Patience:
    """How long a container is given, in seconds."""

    #: From the stop signal to SIGKILL; by default, what the container was created with, else 10.
    stop_timeout: float | None = seconds(None, 0.0, 3600.0)
    #: A container without a health check must run this long to count as started.
    settle: float = seconds(1.0, 0.0, 300.0)
    #: How long Docker's health check is waited for; what is still `starting` then is left to selfheal's own checks.
    health_timeout: float = seconds(10.0, 0.0, 3600.0)


# -- looking ---------------------------------------------------------------------------------------------------------


async def found(docker: Docker, context: Context, named: str) -> Container | None:
    """Return the container of this name or id; None when there is none.

    Docker takes the beginning of an id for an id, so that `cafe` may find somebody else's container: what is found
    must have the name, the whole id, or an id of at least twelve digits.
    """
    reply = await docker.get(context, f"/containers/{named}/json")
    if reply.status == 404 and b"no such container" in reply.body.lower():
        return None
    container = read(reply.wanted(200).json())
    by_id = len(named) >= _SHORTEST_ID and container.id.startswith(named)
    return container if by_id or container.name == named else None


async def standing(
    docker: Docker, context: Context, memory: Memory, container: Container, unexplained: Run
) -> tuple[Run, str]:
    """Return how a container stands; where it has ended, Docker's events are asked how."""
    asked: Asked = None
    if container.status == "exited":
        asked = memory.known(container)
        if asked is None:
            asked = memory.learn(container, await _found_out(docker, context, memory, container))
        if asked is None:
            asked = asked_by_policy(container)
    return stands(container, asked, unexplained)


async def _found_out(docker: Docker, context: Context, memory: Memory, container: Container) -> Asked:
    """Return whether somebody asked for an end, as far as the start of Docker and its events say."""
    asked = asked_by_docker(container, await docker.began(context))
    if asked is None:
        asked = asked_by_events(container, memory.heard)
    return await _told_by_history(docker, context, container) if asked is None else asked


async def _told_by_history(docker: Docker, context: Context, container: Container) -> Asked:
    if container.finished_at is None:
        return None
    began = max(container.started_at or 0.0, container.finished_at - 61.0)
    query = {
        "since": f"{began:.9f}",
        "until": f"{min(time.time(), container.finished_at + _LATE):.9f}",
        "filters": json.dumps({"type": ["container"], "container": [container.id], "event": ["die", "stop", "kill"]}),
    }
    try:
        async with asyncio.timeout(context.remaining), docker.events(context, query) as heard:
            events = [event async for data in heard if (event := read_event(data)) is not None]
    except Refused:
        return None  # a socket proxy that lets nobody listen
    return asked_by_events(container, events)


# -- acting ----------------------------------------------------------------------------------------------------------


def as_expected(context: ActionContext, incarnation: str) -> None:
    """Raise `ActionFailed` unless this is the incarnation whose failure was seen (law 17)."""
    expected = context.expected
    if expected is not None and expected.run is not Run.UNKNOWN and expected.id != incarnation:
        raise ActionFailed(f"{incarnation} runs by now, not {expected.id} whose failure was seen; left alone")


def refuse_restart(container: Container, run: Run, detail: str) -> None:
    """Raise `ActionFailed` for a container that is not ours to restart now."""
    if run is Run.STOPPED:
        raise ActionFailed(f"{container.name} is left alone: {detail}")
    if container.status == "restarting":
        raise ActionFailed(f"{container.name} is left alone: {detail}")
    if run is Run.ABSENT or container.status == "dead":
        raise ActionFailed(f"{container.name} cannot be restarted: {detail}")


async def restart(docker: Docker, context: ActionContext, container: Container, patience: Patience) -> str:
    """Restart a container, or start one that has ended, see it run, and say what runs now.

    Raises `ActionFailed` when it does not.
    """
    within = str(_stop_seconds(context, container, patience))
    (await docker.post(context, f"/containers/{container.id}/restart", t=within)).wanted(204)
    now = await _seen_running(docker, context, container, patience)
    ended = f", which {how_it_ended(container)}" if container.status == "exited" else ""
    return f"{'restarted' if container.running else 'started'} {now.name}{ended}: {_runs(now)}"


async def start(docker: Docker, context: ActionContext, container: Container, patience: Patience) -> str:
    """Start a container, see it run, and say what runs now; one that runs is left alone.

    Raises `ActionFailed` when it does not run.
    """
    if container.status == "running":
        return f"{container.name} ran already as {container.incarnation}"
    if container.status == "paused":
        raise ActionFailed(f"{container.name} is paused: docker unpause {container.name} lets it go on")
    (await docker.post(context, f"/containers/{container.id}/start")).wanted(204, 304)
    return f"started {container.name}: {_runs(await _seen_running(docker, context, container, patience))}"


async def stop(docker: Docker, context: ActionContext, container: Container, patience: Patience) -> str:
    """Stop a container, as a person's wish; one that has ended stays so. Raises `ActionFailed` when it still runs."""
    within = str(_stop_seconds(context, container, patience))
    (await docker.post(context, f"/containers/{container.id}/stop", t=within)).wanted(204, 304)
    after = await found(docker, context, container.id)
    if after is not None and after.running:
        raise ActionFailed(f"{container.name} still runs, though Docker said that it was stopped")
    return f"stopped {container.name}" if container.running else f"{container.name} had ended already"


def _runs(now: Container) -> str:
    """Say what a container runs as, and how well by its own health check."""
    return f"it runs as {now.incarnation}" + (f", {now.health}" if now.health else "")


def _stop_seconds(context: ActionContext, container: Container, patience: Patience) -> int:
    """Return the whole seconds Docker waits before SIGKILL, so that the start still falls within our time."""
    asked = container.stop_timeout if patience.stop_timeout is None else patience.stop_timeout
    room = context.remaining - _RESERVE - patience.settle
    return max(0, min(ceil(asked), int(room)))


async def _seen_running(docker: Docker, context: ActionContext, before: Container, patience: Patience) -> Container:
    """Look at a container that was just started until it has settled, or has ended after all; return the last look."""
    began = time.monotonic()
    left = max(0.0, context.remaining - _RESERVE / 2)
    settled = began + min(patience.settle, left)
    patient = began + min(patience.health_timeout, left)
    first: Container | None = None
    while True:
        now = await found(docker, context, before.id)
        if now is None:
            raise ActionFailed(f"{before.name} was removed while it was being started")
        first = first or now
        _refuse_failed_start(before, first, now)
        over = time.monotonic()
        if now.health == "healthy" or now.status == "paused" or over >= (patient if now.health else settled):
            return now
        await asyncio.sleep(_POLL if over < settled or not now.health else _SLOW_POLL)


def _refuse_failed_start(before: Container, first: Container, now: Container) -> None:
    """Raise `ActionFailed` if what was started does not run: Docker itself calls that well done."""
    if now.error:
        raise ActionFailed(f"{now.name} could not be started: {now.error[:300]}")
    if now.status == "restarting" or now.restarts > first.restarts:
        raise ActionFailed(
            f"{now.name} ended at once ({how_it_ended(now)}), and Docker starts it over and over (policy {now.policy})"
        )
    if now.status not in ("running", "paused"):
        raise ActionFailed(f"{now.name} was started and ended at once: it {how_it_ended(now)}")
    if now.incarnation == before.incarnation:
        raise ActionFailed(f"{now.name}: Docker said that it was started, yet it is still {now.incarnation}")
    if now.health == "unhealthy":
        raise ActionFailed(f"{now.name} was started, and its own health check says that it is unhealthy")


def scale_target(context: ActionContext, most: int, option: str) -> int:
    """Return `arguments["to"]`, at most `most`. Raises `ActionFailed` when there is none."""
    to: Any = context.arguments.get("to")
    if not isinstance(to, int) or isinstance(to, bool) or to < 1:
        raise ActionFailed(f'scale_up needs "to", a whole number from 1, and got {to!r}')
    return min(to, most) if most > 1 else _nothing(option)


def _nothing(option: str) -> int:
    raise ActionFailed(f"scale_up: no {option} is configured, so there is nothing it may be scaled up to")
