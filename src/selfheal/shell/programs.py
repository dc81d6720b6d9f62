"""The programs that selfheal runs itself: started where they are absent, let go of at a reload and at the stop.

A start here is no repair: only what was never started (or was stopped with selfheal) is started. One that has ended by
itself is a failure and goes the way of failures, past every guard; one that a person stopped stays so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import anyio

from selfheal.core.model import Run
from selfheal.plugins import Hosting
from selfheal.shell.checks import inspected, instance_of
from selfheal.shell.contexts import Act, Contexts
from selfheal.shell.plugin_loop import PluginLoops
from selfheal.shell.plugin_thread import Ending, Outcome
from selfheal.shell.roster import Entry

START_TIMEOUT: Final = 60.0
"""Seconds a program may take to be started."""

ASK_TIMEOUT: Final = 10.0
"""Seconds a workload may take to say whether its program runs."""

log = logging.getLogger("selfheal")


class Programs:
    """Starts programs and lets go of them. `allowed` says whether a service may be started now."""

    def __init__(self, *, loops: PluginLoops, contexts: Contexts, allowed: Callable[[str], bool]) -> None:
        self._loops = loops
        self._contexts = contexts
        self._allowed = allowed
        self._stopped = False

    def start(self, entry: Entry) -> None:
        """Start the program of a service if it is absent and may be started."""
        workload = entry.workload
        if not isinstance(workload, Hosting) or not workload.autostart or not self._allowed(entry.name):
            return
        self._loops.submit(
            entry.name,
            lambda: inspected(entry, self._contexts.plain(entry.name, workload, ASK_TIMEOUT)),
            timeout=ASK_TIMEOUT,
            done=partial(self._seen, entry),
            kind="inspect",
        )

    def _seen(self, entry: Entry, outcome: Outcome) -> None:
        workload: Any = entry.workload
        # STARTING: somebody else looks at the same moment. A start leaves alone what runs by then.
        seen = instance_of(outcome, entry).run
        if self._stopped or seen not in (Run.ABSENT, Run.STARTING) or not self._allowed(entry.name):
            return
        act = Act(key=f"start/{entry.name}", check=entry.check, workload=workload)
        self._loops.submit(
            entry.name,
            lambda: workload.start(self._contexts.for_action(entry.name, workload, START_TIMEOUT, act)),
            timeout=START_TIMEOUT,
            done=partial(self._started, entry),
            kind="action",
        )

    def _started(self, entry: Entry, outcome: Outcome) -> None:
        if outcome.ending is not Ending.VALUE:
            log.warning("%s could not be started: %s", entry.name, _why(entry, outcome))

    def stop(self) -> None:
        """Start nothing any more."""
        self._stopped = True

    async def release(self, entries: Iterable[Entry], *, stopping: bool) -> None:
        """Let go of the programs of these services: at the stop each is stopped unless it is told otherwise."""
        async with anyio.create_task_group() as group:
            for entry in entries:
                if isinstance(entry.workload, Hosting):
                    group.start_soon(self._release, entry, entry.workload, stopping)

    async def _release(self, entry: Entry, workload: Hosting, stopping: bool) -> None:
        timeout = workload.stop_timeout + 5.0
        outcome = await self._loops.run(
            entry.name,
            lambda: workload.release(self._contexts.plain(entry.name, workload, timeout), stopping=stopping),
            timeout=timeout,
            kind="other",
        )
        if outcome.ending is not Ending.VALUE:
            log.warning("%s could not be stopped: %s", entry.name, _why(entry, outcome))


def _why(entry: Entry, outcome: Outcome) -> str:
    return entry.scrubber.text(outcome.error or outcome.ending.value)
