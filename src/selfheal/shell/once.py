"""One look at services, by the roads every check takes, with no engine behind it: nothing is decided, nothing done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from time import monotonic, time
from typing import Any, Final

import anyio
import anyio.abc
import anyio.to_thread
import attrs

from selfheal.core.messages import CheckFinished, Event, RunCheck
from selfheal.core.model import CANARY_PREFIX, CheckResult, Limits, Purpose
from selfheal.errors import Problem
from selfheal.plugins import Context, Notifier, Proving
from selfheal.service import Check, Service
from selfheal.shell.callables import Callables
from selfheal.shell.checks import Checks
from selfheal.shell.contexts import Act, Contexts
from selfheal.shell.names import Resolver
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.plugin_thread import Ending, Report
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.readiness import Readiness
from selfheal.shell.results import Scrubber
from selfheal.shell.roster import Entry, Roster
from selfheal.wire import WireCheck

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

    async def close(self) -> None:
        """End what was begun for looking."""
        with anyio.CancelScope(shield=True):
            await self.loops.aclose(1.0)
        self.contexts.threads.close()
        self._tasks.cancel_scope.cancel()
        self.probes.close()

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
            await once.close()


async def examine(
    roster: Roster,
    names: Iterable[str],
    *,
    notifiers: Mapping[str, Notifier] | None = None,
    timeout: float = 20.0,
) -> dict[str, tuple[Problem, ...]]:
    """Return, for each of the named services and of `notifiers`, what would stand in the way of its work.

    Its secrets are read, and its check, its workload and who takes its steps prove what they can (`plugins.Proving`);
    nothing is done, and nobody is told anything. Each has `timeout` seconds. Problems have paths such as
    `services.redis.workload`; what is found of a notifier is under its whole path, `notifiers.oncall`.
    """
    names, notifiers = tuple(names), notifiers or {}
    found: dict[str, tuple[Problem, ...]] = {}
    async with anyio.create_task_group() as tasks:
        once = Look(roster, lambda finished: None, tasks)
        try:
            async with anyio.create_task_group() as looks:
                for name in names:
                    looks.start_soon(_examined, once, roster.entries[name], timeout, found)
                for name, notifier in notifiers.items():
                    looks.start_soon(_examined_notifier, once, f"notifiers.{name}", notifier, timeout, found)
        finally:
            await once.close()
    return {name: found[name] for name in (*names, *(f"notifiers.{name}" for name in notifiers))}


async def _examined(once: Look, entry: Entry, timeout: float, found: dict[str, tuple[Problem, ...]]) -> None:
    canary = entry.name.startswith(CANARY_PREFIX)
    where = f"canaries.{entry.name.removeprefix(CANARY_PREFIX)}" if canary else f"services.{entry.name}"
    unread = await anyio.to_thread.run_sync(entry.scrubber.unreadable)
    problems = [Problem(path=where, message=why, hint=hint) for why, hint in unread]
    # Who needs a secret that is not there could only say so again.
    who = [one for one in _who(once, entry, timeout) if not unread or one[0] is entry.workload]
    said = [await _proved(once, entry.name, plugin, context, timeout) for plugin, context in who]
    if not unread and isinstance(entry.check, WireCheck):
        said.append(await anyio.to_thread.run_sync(_aimed, entry, entry.check))
    for one in dict.fromkeys(problem for some in said for problem in some):
        text = entry.scrubber.text
        problems.append(Problem(path=f"{where}.{text(one.path)}", message=text(one.message), hint=text(one.hint)))
    found[entry.name] = tuple(problems)


async def _examined_notifier(
    once: Look, where: str, notifier: Notifier, timeout: float, found: dict[str, tuple[Problem, ...]]
) -> None:
    scrubber = Scrubber(notifier)
    unread = await anyio.to_thread.run_sync(scrubber.unreadable)
    problems = [Problem(path=where, message=why, hint=hint) for why, hint in unread]
    if not unread:
        await anyio.to_thread.run_sync(scrubber.read_now)
        context = partial(once.contexts.plain, where, notifier, timeout)
        for one in await _proved(once, where, notifier, context, timeout):
            text = scrubber.text
            problems.append(Problem(path=f"{where}.{text(one.path)}", message=text(one.message), hint=text(one.hint)))
    found[where] = tuple(problems)


def _who(once: Look, entry: Entry, timeout: float) -> Iterable[tuple[object, Callable[[], Context]]]:
    """Yield what can prove something, each with the context it would be given for its work."""
    contexts, check, workload = once.contexts, entry.check, entry.workload
    plain = Act(key=f"doctor/{entry.name}", check=check, workload=workload)
    yield check, partial(contexts.for_check, entry.name, check, timeout, deep=entry.deep, workload=workload)
    yield workload, partial(contexts.for_action, entry.name, workload, timeout, plain)
    for resolved in entry.steps:
        if resolved.target is not workload:
            act = attrs.evolve(plain, arguments=dict(resolved.step.arguments))
            yield resolved.target, partial(contexts.for_action, entry.name, resolved.target, timeout, act)


def _aimed(entry: Entry, check: WireCheck) -> Sequence[Problem]:
    """Say why a wire check leads nowhere, if it does. May read files."""
    try:
        check.target()
    except Exception as problem:  # noqa: BLE001  # a check's own code
        entry.scrubber.read_now()
        why = str(problem) if entry.scrubber.quotable(str(problem)) else type(problem).__name__
        return [Problem(path="check", message=f"it leads nowhere: {why}", hint="see its address, and its secrets")]
    return ()


async def _proved(
    once: Look, owner: str, plugin: object, context: Callable[[], Context], timeout: float
) -> Sequence[Problem]:
    if not isinstance(plugin, Proving):
        return ()
    outcome = await once.loops.run(owner, lambda: plugin.doctor(context()), timeout=timeout, kind="other")
    if outcome.ending is Ending.VALUE and isinstance(outcome.value, Sequence):
        return [problem for problem in outcome.value if isinstance(problem, Problem)]
    kind = getattr(type(plugin), "kind", type(plugin).__name__)
    why = outcome.error if outcome.error is not None else f"it gave no answer within {timeout:g} s"
    return [Problem(path=kind, message=f"could not be examined: {why}")]


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
