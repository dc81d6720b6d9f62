"""Hearing that a unit has ended, from the kernel: its main process is held by a pidfd.

Owns the choice of what to wait for. While the main process lives nothing is polled: whatever happens to the unit ends
that process, and the kernel says so at once, without D-Bus, without rights and without a dependency. While there is no
process to hold, systemd is asked again and again, more and more slowly. What is yielded was inspected.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final

from selfheal import ActionFailed, Instance, Run
from selfheal.builtin import proc
from selfheal_systemd.systemctl import heed_cancellation
from selfheal_systemd.unit import Unit

AGAIN: Final = (0.25, 5.0)
"""Seconds between two looks while there is no process to hold: after a change, doubling to at most."""

_AGREE: Final = 2.0  # seconds within which systemd must have noticed the end that the kernel told us of
_SOON: Final = 0.003  # seconds between two looks until then
_ANYWAY: Final = 60.0  # seconds after which a unit that runs is looked at all the same: a main process may be replaced


async def changes(look: Callable[[], Awaitable[tuple[Unit, Instance]]]) -> AsyncGenerator[Instance, None]:
    """Yield the instance whenever it has changed; the first one only if it has already ended. Never ends by itself."""
    known: tuple[str, Run] | None = None
    dead: tuple[int, float] | None = None
    pause = AGAIN[0]
    while True:
        try:
            unit, instance = await look()
        except (OSError, ActionFailed):
            # Checks and inspections say what is wrong with systemd; a sensor only tries again.
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN[1])
            continue
        if dead is not None and unit.main_pid == dead[0] and time.monotonic() < dead[1]:
            await asyncio.sleep(_SOON)
            continue
        dead = None
        now = (instance.id, instance.run)
        if now != known:
            pause = AGAIN[0]
            if known is not None or instance.run is Run.EXITED:
                yield instance
        known = now
        # On the loop: a few calls that never wait, where a thread could open what a cancellation then loses.
        held = hold(unit) if unit.main_pid else None
        if held is None:
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN[1])
            continue
        try:
            if await proc.readable(held, _ANYWAY):
                heed_cancellation()
                dead = (unit.main_pid, time.monotonic() + _AGREE)
        finally:
            os.close(held)


def hold(unit: Unit) -> int | None:
    """Return a pidfd of the main process; None when it is gone, or is not to be seen from here.

    A pid is a number of systemd's own namespace; in ours it may be somebody else's. So the process must be in the
    unit's control group.
    """
    try:
        seen = proc.look(unit.main_pid)
        if seen is None or not seen.alive or not unit.control_group:
            return None
        groups = Path(f"/proc/{unit.main_pid}/cgroup").read_text(errors="replace")
        if not any(_within(line.rpartition(":")[2], unit.control_group) for line in groups.splitlines()):
            return None
        return proc.hold(seen.identity)
    except OSError:
        return None  # /proc hides it, or it ended just now: polling goes on


def _within(group: str, units: str) -> bool:
    return group.endswith(units) or f"{units}/" in group
