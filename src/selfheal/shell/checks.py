"""The roads of a check: from a `RunCheck` command to one `CheckFinished`, stamped where it ran.

Wire checks run on the supervisor's loop, classes with `check` on the plugin loop, an application's callables where
the application lives. An inspection of the workload comes first when it is asked for, with a deadline of its own; if
it fails the check still runs, and the instance is `unknown`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any, Protocol

import anyio
import anyio.to_thread
import attrs

from selfheal.core.messages import CheckFinished, Event, RunCheck, WatchReported
from selfheal.core.model import CheckResult, Instance, Run
from selfheal.plugins import Context
from selfheal.shell import results
from selfheal.shell.callables import Callables
from selfheal.shell.contexts import Contexts
from selfheal.shell.lanes import Lane
from selfheal.shell.plugin_loop import PluginLoops
from selfheal.shell.plugin_thread import Call, Ending, Outcome
from selfheal.shell.probes import ProbeRunner
from selfheal.shell.roster import Entry, Road


class Clock(Protocol):
    """What checks need of the loop."""

    def at(self, instant: float | None = None) -> float: ...

    def from_unix(self, instant: float) -> float: ...

    def post(self, event: Event) -> None: ...

    def hurry(self) -> None: ...


Spawn = Callable[[Callable[[], Coroutine[Any, Any, Any]]], object]
"""Start a coroutine function on the host's loop."""


class Flight:
    """One check under way: its command, and what must be stopped if it is cancelled."""

    __slots__ = ("call", "command", "entry", "instance", "scope")

    def __init__(self, command: RunCheck, entry: Entry) -> None:
        self.command = command
        self.entry = entry
        self.instance: Instance | None = None
        self.call: Call | None = None
        self.scope: anyio.CancelScope | None = None


class Checks:
    """Runs checks. Every method is called on the host's loop."""

    def __init__(
        self, *, probes: ProbeRunner, loops: PluginLoops, contexts: Contexts, callables: Callables, spawn: Spawn
    ) -> None:
        self.clock: Clock
        self.entries: dict[str, Entry] = {}
        self._probes = probes
        self._loops = loops
        self._contexts = contexts
        self._callables = callables
        self._spawn = spawn
        self._flights: dict[str, Flight] = {}
        self._previous: dict[str, CheckResult] = {}

    # -- begin and end -----------------------------------------------------------------------------------------------

    def run(self, command: RunCheck) -> None:
        """Begin a check; one that is still under way for the service is cancelled, and its result dropped."""
        entry = self.entries.get(command.service)
        if entry is None:
            return
        if command.service in self._flights:
            self.cancel(command.service)
        flight = self._flights[command.service] = Flight(command, entry)
        if command.inspect and entry.workload is not None:
            self._inspect(flight, entry.workload)
        else:
            self._begin(flight)

    def cancel(self, service: str) -> None:
        """Drop the check under way, if there is one."""
        flight = self._flights.pop(service, None)
        if flight is None:
            return
        if flight.call is not None:
            flight.call.cancel()
        if flight.scope is not None:
            flight.scope.cancel()
        if flight.entry.lane is not None:
            self._probes.cancel(flight.entry.lane)

    def under_way(self) -> bool:
        """Whether any check is under way."""
        return bool(self._flights)

    def cancel_all(self) -> None:
        """Drop every check under way."""
        for service in tuple(self._flights):
            self.cancel(service)

    def replace(self, entries: dict[str, Entry]) -> None:
        """Take the plugin objects of a new fleet; what stayed the same keeps its connection.

        A check under way whose object has changed begins again with the new one: each command has an answer.
        """
        again: list[RunCheck] = []
        for name, old in self.entries.items():
            new = entries.get(name)
            if new is not None and new.same_check(old):
                new.lane = old.lane
                continue
            flight = self._flights.get(name)
            if flight is not None and new is not None:
                again.append(flight.command)
            self.cancel(name)
            if old.lane is not None:
                self._probes.forget(old.lane)
            self._previous.pop(name, None)
        self.entries = entries
        for command in again:
            self.run(command)

    def _finish(self, flight: Flight, result: CheckResult, started: float, ended: float) -> None:
        name = flight.command.service
        if self._flights.get(name) is not flight:
            return
        del self._flights[name]
        if flight.entry.deep or flight.entry.road is Road.PLUGIN:
            self._previous[name] = result
        clock, command = self.clock, flight.command
        zero = clock.at(0.0)
        clock.post(
            CheckFinished(
                at=monotonic() + zero,
                service=name,
                generation=command.generation,
                purpose=command.purpose,
                started=started + zero,
                ended=ended + zero,
                result=result,
                instance=flight.instance,
            )
        )

    # -- who runs it -------------------------------------------------------------------------------------------------

    def _inspect(self, flight: Flight, workload: Any) -> None:
        name, timeout = flight.command.service, flight.entry.timeout
        flight.call = self._loops.submit(
            name,
            lambda: inspected(flight.entry, self._contexts.plain(name, workload, timeout)),
            timeout=timeout,
            done=partial(self._inspected, flight),
            kind="inspect",
        )

    def _inspected(self, flight: Flight, outcome: Outcome) -> None:
        if self._flights.get(flight.command.service) is not flight:
            return
        flight.call = None
        flight.instance = self.restated(instance_of(outcome, flight.entry))
        self._begin(flight)

    def restated(self, instance: Instance) -> Instance:
        """Return an instance with its `since` in journal time, as the engine wants it."""
        if instance.since is None:
            return instance
        return attrs.evolve(instance, since=self.clock.from_unix(instance.since))

    # -- the roads ---------------------------------------------------------------------------------------------------

    def _begin(self, flight: Flight) -> None:
        road = flight.entry.road
        if road is Road.WIRE:
            self._talk(flight)
        elif road is Road.PLUGIN:
            self._call(flight)
        else:
            self._spawn(partial(self._ask_application, flight))

    def _talk(self, flight: Flight) -> None:
        entry = flight.entry
        if entry.lane is None:
            entry.lane = self._probes.lane(entry.check, entry.timeout, entry.name)
        self._probes.start(entry.lane, monotonic())
        self.clock.hurry()

    def told(self, lane: Lane, result: CheckResult, started: float, ended: float) -> None:
        """The probe runner has finished a wire check."""
        flight = self._flights.get(str(lane.owner))
        if flight is None or flight.entry.lane is not lane:
            return
        scrubber = flight.entry.scrubber
        if not (result.summary or result.details):
            self._finish(flight, result, started, ended)
        elif scrubber.may_block:
            self._spawn(partial(self._told_late, flight, result, started, ended))
        else:
            scrubber.read_now()
            self._finish(flight, scrubber.clean(result), started, ended)

    async def _told_late(self, flight: Flight, result: CheckResult, started: float, ended: float) -> None:
        """Look at a result once the secrets that may stand in it have been read from their files."""
        scrubber = flight.entry.scrubber
        await anyio.to_thread.run_sync(scrubber.read_now)
        self._finish(flight, scrubber.clean(result), started, ended)

    def lost(self, lane: Lane) -> None:
        """A kept connection died at rest: it proves nothing, so look."""
        self.clock.post(WatchReported(at=self.clock.at(), service=str(lane.owner)))

    def _call(self, flight: Flight) -> None:
        entry, name = flight.entry, flight.command.service

        def make() -> Awaitable[object]:
            context = self._contexts.for_check(
                name,
                entry.check,
                entry.timeout,
                deep=entry.deep,
                previous=self._previous.get(name),
                workload=entry.workload,
            )
            return results.checked(entry.check, context, entry.scrubber)

        flight.call = self._loops.submit(name, make, timeout=entry.timeout, done=partial(self._called, flight))

    def _called(self, flight: Flight, outcome: Outcome) -> None:
        result = results.of_outcome(outcome, timeout=flight.entry.timeout)
        self._finish(flight, result, outcome.started, outcome.ended)

    async def _ask_application(self, flight: Flight) -> None:
        if self._flights.get(flight.command.service) is not flight:
            return
        with anyio.CancelScope() as flight.scope:
            checked = await self._callables.check(
                flight.command.service, flight.entry.check, timeout=flight.entry.timeout
            )
            self._finish(flight, checked.result, checked.started, checked.ended)


async def inspected(entry: Entry, context: Context) -> Instance:
    """Ask the workload of a service who runs, on the plugin loop; what it says may be scrubbed afterwards."""
    assert entry.workload is not None
    try:
        instance = await entry.workload.inspect(context)
    except Exception:
        await entry.scrubber.read()
        raise
    if getattr(instance, "detail", ""):
        await entry.scrubber.read()
    return instance


def instance_of(outcome: Outcome, entry: Entry) -> Instance:
    """Return what an inspection said; an instance that is `unknown` when it failed."""
    value = outcome.value
    if outcome.ending is Ending.VALUE and isinstance(value, Instance):
        return scrubbed(value, entry)
    if outcome.ending is Ending.VALUE:
        detail = f"inspect returned {type(value).__name__}, not an Instance"
    elif outcome.ending is Ending.EXCEPTION:
        detail = f"{type(outcome.error).__name__}: {outcome.error}"
    else:
        detail = f"inspect: {outcome.ending.value}"
    return Instance(id="", run=Run.UNKNOWN, detail=entry.scrubber.text(detail))


def scrubbed(instance: Instance, entry: Entry) -> Instance:
    """Return what a plugin said of an instance, with nothing secret in its text."""
    return attrs.evolve(instance, detail=entry.scrubber.text(instance.detail)) if instance.detail else instance
