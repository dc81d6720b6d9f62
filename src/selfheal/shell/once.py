"""One look at services, by the roads every check takes, with no engine behind it: nothing is decided, nothing done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from math import inf
from time import monotonic, time
from typing import Any, Final

import anyio
import anyio.abc
import anyio.to_thread

from selfheal.core.messages import CheckFinished, Event, RunCheck
from selfheal.core.model import CheckResult, Limits, Purpose
from selfheal.service import Check, Service
from selfheal.shell.callables import Callables
from selfheal.shell.checks import Checks
from selfheal.shell.contexts import Contexts
from selfheal.shell.names import Resolver
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.plugin_thread import Report
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.readiness import Readiness
from selfheal.shell.roster import Roster

AT_ONCE: Final = 50
"""Checks under way at a time."""

log = logging.getLogger("selfheal")


class Look:
    """Looks once at what a roster names. What checks ask of a loop, it is."""

    def __init__(self, roster: Roster, told: Callable[[CheckFinished], object], tasks: anyio.abc.TaskGroup) -> None:
        self._told = told
        self._tasks = tasks
        self._room = anyio.Semaphore(AT_ONCE)
        self._ready: dict[str, anyio.Event] = {}
        self.contexts = Contexts()
        self.loops = PluginLoops(poke=poke_here(), told=self._report, kept=self.contexts.kept)
        self.callables = Callables(self.contexts.threads, poke=self.loops.tell, told=self._report)
        self.probes = ProbeRunner(self._finished, lambda lane: None, Resolver())
        self.readiness = Readiness(self.probes.fd, self.probes.poll, self._beat)
        self.checks = Checks(
            probes=self.probes,
            loops=self.loops,
            contexts=self.contexts,
            callables=self.callables,
            spawn=self.spawn,
        )
        self.checks.clock = self
        self.checks.replace(dict(roster.entries))

    def spawn(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run a coroutine function on this loop."""
        self._tasks.start_soon(function)

    def at(self, instant: float | None = None) -> float:
        """Return a monotonic instant as it is."""
        return monotonic() if instant is None else instant

    def from_unix(self, instant: float) -> float:
        """Return a UNIX time as a monotonic instant."""
        return monotonic() - (time() - instant)

    def post(self, event: Event) -> None:
        """Hear that a check has finished."""
        if isinstance(event, CheckFinished) and event.service in self._ready:
            self._told(event)
            self._ready[event.service].set()

    def hurry(self) -> None:
        """A deadline has come nearer."""
        self.readiness.sooner(self._beat())

    def _beat(self) -> float:
        self.probes.expire(monotonic())
        due = self.probes.next_deadline()
        return inf if due is None else due

    def _finished(self, *told: Any) -> None:
        self.checks.told(*told)

    def _report(self, report: Report) -> None:
        log.warning("%s", report)

    async def at_one(self, name: str, inspect: bool) -> None:
        """Look at one service."""
        async with self._room:
            ready = self._ready[name] = anyio.Event()
            self.checks.run(RunCheck(service=name, generation=0, purpose=Purpose.ROUTINE, inspect=inspect))
            await ready.wait()


async def look(
    roster: Roster, names: Iterable[str], told: Callable[[CheckFinished], object], *, inspect: bool = True
) -> None:
    """Check each of the named services and canaries once; `told` hears of each as it finishes.

    With `inspect` their workloads are asked too who runs.
    """
    async with anyio.create_task_group() as tasks:
        once = Look(roster, told, tasks)
        tasks.start_soon(once.readiness.run)
        try:
            async with anyio.create_task_group() as looks:
                for name in names:
                    looks.start_soon(partial(once.at_one, name, inspect))
        finally:
            with anyio.CancelScope(shield=True):
                await once.loops.aclose(1.0)
            once.contexts.threads.close()
            tasks.cancel_scope.cancel()
    once.probes.close()


async def check_once(check: Check, *, timeout: float = 10.0, deep: bool = False) -> CheckResult:
    """Run a check once, by the road it would take in a supervisor, and return its result.

    `check` is what `Service` takes for one; `timeout` seconds are its total deadline. It may be called on asyncio and
    on trio. Nothing is kept and nothing is decided: for a script, a test, or a health endpoint of your own.
    """
    service = Service("once", check=check, timeout=timeout, interval=max(timeout * 2, 1.0), deep=deep)
    of = partial(Roster.of, limits=Limits(), name="once", seed=0, key=b"", callbacks={}, actions={})
    roster = await anyio.to_thread.run_sync(of, (service,), ())
    found: list[CheckFinished] = []
    await look(roster, ("once",), found.append, inspect=False)
    return found[0].result
