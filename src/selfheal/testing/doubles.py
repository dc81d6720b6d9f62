"""Plugins that do as they are told: for tests of policies, of supervisors, and of your own code around them.

They satisfy the interfaces of `selfheal.plugins`, do no IO, and record what was asked of them. A script is played line
by line; its last line is repeated for ever. They are values of a configuration like any other plugin, so they are
frozen; what changes stands in their lists.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import ClassVar, TypeAlias

import attrs

from selfheal.core.model import PASSING, CheckResult, Effect, Instance, Notification, Run, Settled
from selfheal.plugins import ActionContext, CheckContext, Context

Line: TypeAlias = "CheckResult | str | BaseException | float | None"
"""What happens at one call: a value is returned, an exception raised, seconds are waited before the next line."""


@attrs.frozen
class _Script:
    """Lines to play, and how many have been."""

    lines: tuple[object, ...]
    _played: list[None] = attrs.field(factory=list, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)

    def _next(self) -> object:
        with self._lock:
            at = min(len(self._played), len(self.lines) - 1)
            self._played.append(None)
            return self.lines[at]

    async def play(self) -> object:
        """Return what the next line says, or raise it; waits are waited, and a wait at the very end is for ever."""
        line = self._next()
        while isinstance(line, float):
            await asyncio.sleep(line)
            line = self._next()
        if isinstance(line, BaseException):
            raise line
        return line


def _lines(script: Iterable[Line]) -> tuple[Line, ...]:
    lines = tuple(script)
    if not lines:
        raise ValueError("script: give at least one line")
    return lines


@attrs.frozen(kw_only=True)
class ScriptedCheck:
    """A check that returns, raises or waits as its script says."""

    kind: ClassVar[str] = "scripted"
    script: Sequence[Line] = attrs.field(default=(PASSING,), converter=_lines)
    contexts: list[CheckContext] = attrs.field(factory=list, init=False, eq=False)
    _told: _Script = attrs.field(init=False, eq=False, repr=False)

    @_told.default
    def _(self) -> _Script:
        return _Script(tuple(self.script))

    async def check(self, context: CheckContext) -> CheckResult:
        self.contexts.append(context)
        result = await self._told.play()
        assert isinstance(result, CheckResult)
        return result


@attrs.frozen(kw_only=True)
class ScriptedAction:
    """An action that succeeds, raises or waits as its script says; `keys` are those it was run with, in order."""

    kind: ClassVar[str] = "scripted"
    verb: ClassVar[str] = "mend"
    effect: ClassVar[Effect] = Effect.GENTLE
    script: Sequence[Line] = attrs.field(default=(None,), converter=_lines)
    keys: list[str] = attrs.field(factory=list, init=False, eq=False)
    finished: list[str] = attrs.field(factory=list, init=False, eq=False)
    _told: _Script = attrs.field(init=False, eq=False, repr=False)

    @_told.default
    def _(self) -> _Script:
        return _Script(tuple(self.script))

    async def run(self, context: ActionContext) -> None:
        self.keys.append(context.key)
        await self._told.play()
        self.finished.append(context.key)

    async def probe(self, context: ActionContext) -> Settled | None:
        if context.key in self.finished:
            return Settled.DONE
        return Settled.INTERRUPTED if context.key in self.keys else Settled.NOT_STARTED


@attrs.frozen(kw_only=True)
class ScriptedWorkload:
    """A workload in memory: `restart` begins a new incarnation, `end` ends it, both are heard by `watch`."""

    kind: ClassVar[str] = "scripted"
    name: str = "scripted"
    script: Sequence[Line] = attrs.field(default=(None,), converter=_lines)
    history: list[Instance] = attrs.field(factory=list, init=False, eq=False)
    keys: list[str] = attrs.field(factory=list, init=False, eq=False)
    _told: _Script = attrs.field(init=False, eq=False, repr=False)

    @_told.default
    def _(self) -> _Script:
        return _Script(tuple(self.script))

    def __attrs_post_init__(self) -> None:
        self.history.append(Instance(id=f"{self.name}-1", run=Run.RUNNING))

    @property
    def current(self) -> Instance:
        return self.history[-1]

    def end(self, run: Run = Run.EXITED) -> None:
        """End the present incarnation."""
        self.history.append(attrs.evolve(self.current, run=run))

    async def inspect(self, context: Context) -> Instance:
        return self.current

    async def restart(self, context: ActionContext) -> None:
        self.keys.append(context.key)
        await self._told.play()
        begun = len({instance.id for instance in self.history}) + 1
        self.history.append(Instance(id=f"{self.name}-{begun}", run=Run.RUNNING))

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        seen = len(self.history)
        while True:
            await asyncio.sleep(0.005)
            while seen < len(self.history):
                seen += 1
                yield self.history[seen - 1]


@attrs.frozen(kw_only=True)
class RecordingNotifier:
    """A notifier that keeps what it is given in `sent`, and fails as its script says."""

    kind: ClassVar[str] = "recording"
    script: Sequence[Line] = attrs.field(default=(None,), converter=_lines)
    sent: list[Notification] = attrs.field(factory=list, init=False, eq=False)
    _told: _Script = attrs.field(init=False, eq=False, repr=False)

    @_told.default
    def _(self) -> _Script:
        return _Script(tuple(self.script))

    async def send(self, notification: Notification, context: Context) -> str | None:
        receipt = await self._told.play()
        self.sent.append(notification)
        return receipt if isinstance(receipt, str) else None
