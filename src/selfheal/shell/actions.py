"""Carrying out one step, and finding out after a crash what became of one.

The instance is inspected again before anything is done: another one than the expected closes the intent as
superseded, a failed inspection lets nothing start (law 17). An action's own word is only its outcome; whether it
helped is decided by later checks. One that is stopped has ended when it has truly ended, and not when it was told to:
else the next could begin beside it (law 4).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

import anyio
import attrs

from selfheal.core.messages import ActionFinished, Event, RunAction
from selfheal.core.model import Cause, Effect, Instance, Run, Settled
from selfheal.core.records import Intended
from selfheal.ladder import ResolvedStep
from selfheal.plugins import ActionContext, Probing
from selfheal.shell.blocking import StillStuck
from selfheal.shell.callables import Callables, NoLoop, NotReached
from selfheal.shell.checks import inspected, instance_of
from selfheal.shell.contexts import Act, Contexts
from selfheal.shell.plugin_loop import PluginLoops
from selfheal.shell.plugin_thread import Call, Ending, Outcome
from selfheal.shell.roster import Entry

INSPECT_TIMEOUT: Final = 10.0
"""Seconds an inspection before an action, or while settling, may take."""

NEVER_BEGAN: Final = (StillStuck, NoLoop, NotReached)
"""What an action ends with that was never begun: nothing is spent on it."""

STUCK_AGAIN: Final = 10.0
"""Seconds until it is told of one that could not begin: what is given back is tried again at once."""

SETTLE_AGAIN: Final = 2.0
"""Seconds between two attempts to find out what became of an action."""


class Clock(Protocol):
    """What actions need of the loop."""

    def at(self, instant: float | None = None) -> float: ...

    def post(self, event: Event) -> None: ...


@attrs.define(kw_only=True)
class Underway:
    """One action under way; what its cancellation means once it is stopped, and the call to be cancelled."""

    command: RunAction
    scope: anyio.CancelScope
    settled: Settled | None = None
    why: str = ""
    begun: bool = False
    call: Call | None = None

    def stop(self, settled: Settled, why: str) -> None:
        """Stop it; the first reason counts. A plugin's call is cancelled and waited for, anything else just ends."""
        if self.settled is None:
            self.settled, self.why = settled, why
            if self.call is not None:
                self.call.cancel()
            else:
                self.scope.cancel()


class Actions:
    """Runs and settles actions. Every method is called on the host's loop."""

    def __init__(
        self,
        *,
        loops: PluginLoops,
        contexts: Contexts,
        callables: Callables,
        spawn: Callable[[Callable[[], Coroutine[Any, Any, Any]]], object],
        intended: Callable[[str], Intended | None],
        cause: Callable[[str], Cause | None],
    ) -> None:
        self.clock: Clock
        self.entries: dict[str, Entry] = {}
        self._loops = loops
        self._contexts = contexts
        self._callables = callables
        self._spawn = spawn
        self._intended = intended
        self._cause = cause
        self._running: dict[str, Underway] = {}
        self._rest = anyio.Event()

    def run(self, command: RunAction) -> None:
        """Begin an action; its end is posted as `ActionFinished`."""
        running = self._running[command.intent] = Underway(command=command, scope=anyio.CancelScope())
        self._spawn(partial(self._run, running))

    def cancel(self, intent: str) -> None:
        """Stop an action because its time is over."""
        running = self._running.get(intent)
        if running is not None:
            running.stop(Settled.TIMED_OUT, "recovery_timeout is over")

    def interrupt(self) -> None:
        """Stop every action because selfheal stops: each ends as interrupted."""
        for running in self._running.values():
            running.stop(Settled.INTERRUPTED, "selfheal was stopped")

    def leave(self) -> None:
        """Wait no longer for those that were interrupted and have not ended: nobody knows what they still do."""
        for intent in tuple(self._running):
            self._end(intent, Settled.IN_DOUBT, "selfheal was stopped, and it did not end when it was cancelled")

    async def idle(self) -> None:
        """Wait until no action is under way."""
        while self._running:
            self._rest = anyio.Event()
            await self._rest.wait()

    # -- one action --------------------------------------------------------------------------------------------------

    async def _run(self, running: Underway) -> None:
        settled, detail = Settled.INTERRUPTED, ""
        with running.scope:
            settled, detail = await self._do(running)
        if running.scope.cancelled_caught:
            # A callable of the application was stopped; or nothing had begun yet, and so nothing is spent.
            settled = (running.settled or settled) if running.begun else Settled.NOT_STARTED
            detail = running.why
        self._end(running.command.intent, settled, detail)

    def _end(self, intent: str, settled: Settled, detail: str) -> None:
        if self._running.pop(intent, None) is None:
            return  # it was left
        self._rest.set()
        self.clock.post(ActionFinished(at=self.clock.at(), intent=intent, settled=settled, detail=detail))

    async def _do(self, running: Underway) -> tuple[Settled, str]:
        command = running.command
        entry = self.entries.get(command.service)
        if entry is None or command.step >= len(entry.steps):
            return Settled.NOT_STARTED, "its service or its step is gone"
        expected: Instance | None = None
        if entry.workload is not None:
            expected = await self.look(entry)
            refusal = _refusal(expected, command.expected)
            if refusal is not None:
                return refusal
        resolved = entry.steps[command.step]
        act = self._act(command.intent, entry, resolved, expected)
        running.begun = True
        outcome = await self._carry_out(entry, resolved, act, running)
        running.call = None
        if outcome.ending is Ending.ABANDONED:
            told = await self._probe(entry, resolved, act)
            return (told, "told by its probe") if told is not None else (Settled.IN_DOUBT, "its loop was abandoned")
        if outcome.ending is Ending.CANCELLED and running.settled is not None:
            return running.settled, running.why
        if isinstance(outcome.error, NEVER_BEGAN):
            running.begun = False
            await anyio.sleep(STUCK_AGAIN)
            return Settled.NOT_STARTED, str(outcome.error)
        return _settled(outcome, entry, command.timeout)

    async def look(self, entry: Entry) -> Instance:
        """Ask the workload of a service who runs now."""
        workload = entry.workload
        assert workload is not None
        outcome = await self._loops.run(
            entry.name,
            lambda: inspected(entry, self._contexts.plain(entry.name, workload, INSPECT_TIMEOUT)),
            timeout=INSPECT_TIMEOUT,
            kind="inspect",
        )
        return instance_of(outcome, entry)

    def _act(self, intent: str, entry: Entry, resolved: ResolvedStep, expected: Instance | None) -> Act:
        intended = self._intended(intent)
        return Act(
            key=intent,
            verb=resolved.step.action,
            incident=intended.incident if intended is not None else 0,
            attempt=intended.attempt if intended is not None else 1,
            cause=self._cause(entry.name),
            expected=expected,
            check=entry.check,
            workload=entry.workload,
            arguments=dict(resolved.step.arguments),
        )

    async def _carry_out(self, entry: Entry, resolved: ResolvedStep, act: Act, running: Underway) -> Outcome:
        timeout = running.command.timeout
        if resolved.how == "callback":
            context = self._contexts.for_action(entry.name, resolved.target, timeout, act)
            return await self._callables.run(entry.name, resolved.target, context, timeout=timeout)
        method = getattr(resolved.target, resolved.method)  # `ladder.METHODS`, never a word that came in
        ended = anyio.Event()
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            ended.set()

        running.call = self._loops.submit(
            entry.name,
            lambda: _acted(entry, method, self._contexts.for_action(entry.name, resolved.target, timeout, act)),
            timeout=timeout,
            done=done,
            kind="action",
        )
        with anyio.CancelScope(shield=True):  # it ends when it has ended: whoever stops it cancels the call
            await ended.wait()
        return outcomes[0]

    # -- after a crash -----------------------------------------------------------------------------------------------

    def settle(self, intent: str) -> None:
        """Find out what became of an action whose manager died; the answer is posted as `ActionFinished`."""
        self._spawn(partial(self._settle, intent))

    async def _settle(self, intent: str) -> None:
        settled, detail = await self._found_out(intent)
        self.clock.post(ActionFinished(at=self.clock.at(), intent=intent, settled=settled, detail=detail))

    async def _found_out(self, intent: str) -> tuple[Settled, str]:
        intended = self._intended(intent)
        entry = self.entries.get(intended.service) if intended is not None else None
        if intended is None or entry is None or intended.step >= len(entry.steps):
            return Settled.IN_DOUBT, "its service or its step is gone"
        resolved = entry.steps[intended.step]
        act = self._act(intent, entry, resolved, _remembered(intended))
        over = intended.at + intended.timeout
        while True:
            told = await self._probe(entry, resolved, act)
            if told is not None:
                return told, "told by its probe"
            if resolved.step.action == "restart" and entry.workload is not None and intended.expected is not None:
                instance = await self.look(entry)
                if instance.run is not Run.UNKNOWN and instance.id != intended.expected:
                    return Settled.DONE, f"another instance runs now: {instance.id}"
                if instance.run is not Run.UNKNOWN and self.clock.at() > over and resolved.how == "workload":
                    return Settled.FAILED, "the same instance runs as before it"
            if self.clock.at() > over:
                if resolved.step.effect is Effect.GENTLE:
                    return Settled.INTERRUPTED, "selfheal ended before it did"  # nothing that people must look after
                return Settled.IN_DOUBT, "nobody can tell whether it happened"
            await anyio.sleep(SETTLE_AGAIN)

    async def _probe(self, entry: Entry, resolved: ResolvedStep, act: Act) -> Settled | None:
        target = resolved.target
        if not isinstance(target, Probing):
            return None
        outcome = await self._loops.run(
            entry.name,
            lambda: target.probe(self._contexts.for_action(entry.name, target, INSPECT_TIMEOUT, act)),
            timeout=INSPECT_TIMEOUT,
            kind="inspect",
        )
        value = outcome.value if outcome.ending is Ending.VALUE else None
        return value if isinstance(value, Settled) else None


async def _acted(entry: Entry, method: Callable[[ActionContext], Awaitable[object]], context: ActionContext) -> object:
    """Carry a step out, on the plugin loop; what it raises or says may be scrubbed afterwards."""
    try:
        said = await method(context)
    except Exception:
        await entry.scrubber.read()
        raise
    if isinstance(said, str):
        await entry.scrubber.read()
    return said


def _remembered(intended: Intended) -> Instance | None:
    """Return the instance an intent was meant for. Only who it was is on record: RUNNING stands for how it stood."""
    return None if intended.expected is None else Instance(id=intended.expected, run=Run.RUNNING)


def _refusal(instance: Instance, expected: str | None) -> tuple[Settled, str] | None:
    """Return why an action must not start on this instance; None when it may."""
    if instance.run is Run.UNKNOWN:
        return Settled.NOT_STARTED, f"inspection failed: {instance.detail}"
    if instance.run is Run.STOPPED:
        return Settled.NOT_STARTED, f"stopped by a person: {instance.detail}"
    if expected is not None and instance.id != expected:
        return Settled.SUPERSEDED, f"another instance runs now: {instance.id}"
    return None


def _settled(outcome: Outcome, entry: Entry, timeout: float) -> tuple[Settled, str]:
    """Return what an action's outcome is called, and its text, scrubbed."""
    match outcome.ending:
        case Ending.VALUE:
            return Settled.DONE, entry.scrubber.text(outcome.value) if isinstance(outcome.value, str) else ""
        case Ending.TIMED_OUT:
            return Settled.TIMED_OUT, f"not done within {timeout:g} s"
        case Ending.CANCELLED:
            return Settled.INTERRUPTED, "cancelled"
        case _:
            return Settled.FAILED, entry.scrubber.text(f"{type(outcome.error).__name__}: {outcome.error}")
