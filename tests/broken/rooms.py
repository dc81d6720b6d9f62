"""Everything around the engine with one thing wrong in one place: see `tests.broken`."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import anyio
import attrs
from tests.broken import Break, replacing

from selfheal import metrics, service, supervisor
from selfheal.analytics import availability
from selfheal.builtin import cache_directory, http_client, launch, proc, spawn
from selfheal.builtin.cache_directory import CacheDirectory
from selfheal.builtin.command import CommandWorkload
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.standby import Standby
from selfheal.config import schema
from selfheal.core import graph
from selfheal.core.model import PASSING, CheckResult, Effect, Verdict
from selfheal.errors import ControlError, RequestRefused
from selfheal.requests import TABLE
from selfheal.secret import Secret
from selfheal.shell import callables, remembering, results
from selfheal.shell.actions import Actions
from selfheal.shell.blocking import ServiceThread, ServiceThreads
from selfheal.shell.callables import Callables
from selfheal.shell.loop import Loop
from selfheal.shell.plugin_loop import PluginLoops
from selfheal.shell.plugin_thread import Outcome, PluginThread, Run
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.reading import Reading
from selfheal.supervisor import Supervisor

# -- checks -----------------------------------------------------------------------------------------------------------


def _awaits_nothing(whole: Any) -> Any:
    async def run(self: Callables, name: str, function: Any, *args: object, timeout: float) -> Outcome:
        if callables.is_async(function):
            outcome: Outcome = await whole(self, name, function, *args, timeout=timeout)
            return outcome
        outcome = await self._in_thread(name, partial(function, *args), time.monotonic() + timeout)
        if inspect.iscoroutine(outcome.value):
            outcome.value.close()
        return outcome

    return run


def _one_after_another(whole: Any) -> Any:
    def post(self: PluginThread, run: Run) -> None:
        if self.runs:
            self.runs[run] = None
        else:
            whole(self, run)

    return post


def _waits_its_turn(whole: Any) -> Any:
    waiting: list[Any] = []

    def start(self: ProbeRunner, lane: Any, now: float) -> None:
        waiting.append(lane)
        if not self.in_flight:
            whole(self, waiting.pop(0), now)

    return start


def _threads_without_end(stack: ExitStack) -> None:
    """They end with the build, and leave nothing that a next test would count."""

    def ended(one: ServiceThread) -> None:
        thread = one._thread
        one.close()
        if thread is not None:
            thread.join(5.0)

    def made(_: Any) -> Any:
        def of(self: ServiceThreads, name: str) -> ServiceThread:
            another = ServiceThread(name)
            stack.callback(ended, another)
            return another

        return of

    replacing(ServiceThreads, "of", made)(stack)


def _left_open(stack: ExitStack) -> None:
    kept: list[int] = []

    def made(whole: Any) -> Any:
        def drop(self: ProbeRunner, flight: Any) -> None:
            if flight.sock is not None and len(kept) < 50:
                kept.append(os.dup(flight.sock.fileno()))
                stack.callback(os.close, kept[-1])
            whole(self, flight)

        return drop

    replacing(ProbeRunner, "_drop", made)(stack)


# -- the supervisor ---------------------------------------------------------------------------------------------------


def _entered_twice(whole: Any) -> Any:
    async def enter(self: Supervisor) -> Supervisor:
        if self._stack is None:
            entered: Supervisor = await whole(self)
            return entered
        first, self._stack = self._stack, AsyncExitStack()
        self._stack.callback(setattr, self, "_stack", first)
        return self

    return enter


def _first_loses(whole: Any) -> Any:
    async def enter(self: Supervisor) -> Supervisor:
        if self._running is not None:
            self._running.loop.close()
        entered: Supervisor = await whole(self)
        return entered

    return enter


def _loses_the_round(whole: Any) -> Any:
    async def change(self: Supervisor, *args: Any, **options: Any) -> None:
        self._at_work().checks.cancel_all()
        await anyio.lowlevel.checkpoint()
        await whole(self, *args, **options)

    return change


def _drops_what_it_does_not_know(whole: Any) -> Any:
    def checked(name: object, parameters: Mapping[str, Any]) -> Any:
        row = TABLE.get(str(name))
        known = {one.name for one in row.parameters} if row is not None else set()
        return whole(name, {key: value for key, value in parameters.items() if key in known})

    return checked


def _shows_where(whole: Any) -> Any:
    def checked(name: object, parameters: Mapping[str, Any]) -> Any:
        try:
            return whole(name, parameters)
        except RequestRefused as problem:
            raise RequestRefused(problem.code, traceback.format_exc()) from None

    return checked


async def _nobody_answers(self: Reading, question: Any, *, timeout: float) -> Any:
    raise ControlError("nobody was asked")


# -- numbers ----------------------------------------------------------------------------------------------------------


def _sampled(changed: Callable[[str, float], Any]) -> Callable[[Any], Any]:
    """Make metrics that show other values than there are."""

    def made(whole: Any) -> Any:
        def live(moment: Any) -> Iterator[Any]:
            for family in whole(moment):
                samples = [one._replace(value=changed(family.name, one.value)) for one in family.samples]
                yield attrs.evolve(family, samples=samples)

        return live

    return made


# -- commands and actions ---------------------------------------------------------------------------------------------


def _filled_by(changed: Callable[[str], str]) -> Callable[[Any], Any]:
    """Make a workload that fills something else into its commands than the service's name."""

    def made(whole: Any) -> Any:
        def filled(arguments: tuple[str, ...], values: Mapping[str, str], verb: str) -> tuple[str, ...]:
            found = whole(arguments, {**values, "{service}": "a"}, verb)
            name = changed(values["{service}"])
            return tuple(name if one == "{service}" else done for one, done in zip(arguments, found, strict=True))

        return filled

    return made


def _expanded(name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a file").touch()
        done = subprocess.run(
            ["sh", "-c", f"printf %s {name}"], capture_output=True, text=True, check=False, cwd=folder
        )
    return done.stdout


async def _ends_the_root(self: proc.Family, *, grace: float, group: int | None = None) -> tuple[int, ...]:
    for root in self.roots:
        proc.deliver(root, signal.SIGKILL)
        await proc.gone(root, grace)
    return ()


async def _scales_to(self: CommandWorkload, context: Any) -> None:
    to = context.arguments.get("to")
    await self._do(context, "scale", self._scale, {"{to}": str(to)})


async def _no_fence(self: Standby, context: Any) -> None:
    pass


def _follows_links(stack: ExitStack) -> None:
    folder = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    replacing(cache_directory, "_FOLDER", lambda _: folder)(stack)
    replacing(cache_directory._Emptying, "_not_ours", lambda _: lambda self, folder: "")(stack)


BUILDS: Mapping[str, Break] = {
    "what is no result is a success": replacing(results, "inconclusive", lambda _: lambda summary, cause=None: PASSING),
    "a check that could not run has failed": replacing(
        results, "inconclusive", lambda _: lambda summary, cause=None: CheckResult(Verdict.FAILING, summary=summary)
    ),
    "exceptions lose their words": replacing(results, "_told", lambda _: lambda problem: ""),
    "what a callable returns is never awaited": replacing(Callables, "run", _awaits_nothing),
    "a change of the fleet loses the checks under way": replacing(Supervisor, "_change", _loses_the_round),
    "a check waits for the one before": replacing(PluginThread, "post", _one_after_another),
    "a check on the wire waits for the one before": replacing(ProbeRunner, "start", _waits_its_turn),
    "nobody watches over the loop of plugins": replacing(PluginLoops, "_start_watching", lambda _: lambda self: None),
    "who blocks the host is not named": replacing(callables, "STOOD", lambda _: inf),
    "every call has a thread of its own": _threads_without_end,
    "it can be entered twice": replacing(Supervisor, "__aenter__", _entered_twice),
    "the second stops the first": replacing(Supervisor, "__aenter__", _first_loses),
    "what was decided is not read again": replacing(
        remembering, "_read", lambda whole: lambda journal: attrs.evolve(whole(journal), snapshot=None, records=())
    ),
    "a fault of ours is passed over": replacing(Loop, "give_up", lambda _: lambda self, problem: None),
    "who has left the group is not found": replacing(
        proc, "family", lambda whole: lambda roots, marks=(): whole(roots)
    ),
    "only the program itself is ended": replacing(proc.Family, "end", lambda _: _ends_the_root),
    "a name is expanded by a shell": replacing(CommandWorkload, "_filled", _filled_by(_expanded)),
    "a name is quoted as for a shell": replacing(CommandWorkload, "_filled", _filled_by(shlex.quote)),
    "a name may be an option": replacing(CommandWorkload, "_filled", _filled_by(str)),
    "any text is a name": replacing(service, "_NAME", lambda _: re.compile("(?s).*")),
    "every program has succeeded": replacing(
        spawn, "_collect", lambda whole: lambda descriptor: attrs.evolve(whole(descriptor), code=0, signal=None)
    ),
    "what it was scaled to is forgotten": replacing(
        ProcessWorkload, "_wanted", lambda _: lambda self, roll: int(self.count)
    ),
    "a file is called as the service is": replacing(
        launch.Launcher, "stem", lambda _: property(lambda self: self.service)
    ),
    "it is scaled to what is asked": replacing(CommandWorkload, "scale_up", lambda _: _scales_to),
    "an action is given no check": replacing(
        Actions, "_act", lambda whole: lambda *given: attrs.evolve(whole(*given), check=None)
    ),
    "a hook takes longer than it may": replacing(http_client, "MARGIN", lambda margin: 1.5 * margin),
    "nothing is suggested": replacing(graph.Spelling, "hint", lambda _: lambda self, name, *, cutoff=0.6: ""),
    "dependencies are not looked up": replacing(graph, "_faults", lambda _: lambda node, *, seen: iter(())),
    "cycles are not looked for": replacing(graph, "_cycles", lambda _: lambda edges: iter(())),
    "numbers are written as words": replacing(metrics, "live", _sampled(lambda name, value: str(value))),
    "checks are not counted": replacing(
        metrics, "live", _sampled(lambda name, value: 0 if name == "selfheal_checks_total" else value)
    ),
    "what was never measured took a minute": replacing(
        availability, "quantile", lambda whole: lambda *given: 60.0 if (found := whole(*given)) is None else found
    ),
    "a refusal shows where it was made": replacing(supervisor, "checked", _shows_where),
    "what a request does not know is dropped": replacing(supervisor, "checked", _drops_what_it_does_not_know),
    "who reads along asks nobody": replacing(Reading, "hand_on", lambda _: _nobody_answers),
    "a key that nobody reads is passed over": replacing(
        schema, "unknown", lambda _: lambda key, known, path, notes: ""
    ),
    "a secret shows itself": replacing(Secret, "__repr__", lambda _: lambda self: f"Secret({self.reveal()!r})"),
    "connections are left open": _left_open,
    "a standby is started without a fence": replacing(Standby, "_fenced", lambda _: _no_fence),
    "emptying a cache is gentle": replacing(CacheDirectory, "effect", lambda _: Effect.GENTLE),
    "links are followed": _follows_links,
}
"""Every broken build: what is wrong with it, and how it is made."""
