"""Listening to workloads that can be heard: their `watch` runs on the plugin loop, and starts anew when it ends."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final, Protocol

import anyio

from selfheal.core.messages import Event, WatchReported
from selfheal.core.model import Instance, Run
from selfheal.plugins import Watching
from selfheal.shell.checks import scrubbed
from selfheal.shell.contexts import Contexts
from selfheal.shell.plugin_loop import PluginLoops
from selfheal.shell.plugin_thread import Call, Outcome
from selfheal.shell.roster import Entry

AGAIN: Final = (1.0, 60.0)
"""Seconds before a watch that ended starts anew: at first, doubling to at most."""


class Clock(Protocol):
    """What watching needs of the loop."""

    def at(self, instant: float | None = None) -> float: ...

    def from_unix(self, instant: float) -> float: ...

    def post(self, event: Event) -> None: ...


class Watches:
    """Keeps one `watch` going for every workload that has it. Every method is called on the host's loop."""

    def __init__(
        self,
        *,
        loops: PluginLoops,
        contexts: Contexts,
        poke: Callable[[Callable[[], object]], object],
        spawn: Callable[[Callable[[], Coroutine[Any, Any, Any]]], object],
        restated: Callable[[Instance], Instance],
    ) -> None:
        self.clock: Clock
        self._loops = loops
        self._contexts = contexts
        self._poke = poke
        self._spawn = spawn
        self._restated = restated
        self._calls: dict[str, tuple[Watching, Call]] = {}
        self._last: dict[str, tuple[str, Run]] = {}
        self._pauses: dict[str, float] = {}
        self._entries: dict[str, Entry] = {}
        self._stopped = False

    def replace(self, entries: dict[str, Entry]) -> None:
        """Watch what the fleet has now; what stayed the same goes on."""
        self._entries = entries
        for name, (workload, call) in tuple(self._calls.items()):
            entry = entries.get(name)
            if entry is None or entry.watching is not workload:
                del self._calls[name]
                self._pauses.pop(name, None)
                self._last.pop(name, None)
                call.cancel()
        for name, entry in entries.items():
            watching = entry.watching
            if watching is not None and name not in self._calls:
                self._start(name, watching)

    def stop(self) -> None:
        """End every watch."""
        self._stopped = True
        for _, call in self._calls.values():
            call.cancel()
        self._calls.clear()

    def _start(self, name: str, workload: Watching) -> None:
        async def listen() -> None:
            async for instance in workload.watch(self._contexts.plain(name, workload)):
                self._poke(partial(self._heard, name, workload, instance))

        done = partial(self._ended, name, workload, monotonic())
        call = self._loops.submit(f"{name} (watch)", listen, timeout=inf, done=done, kind="other")
        self._calls[name] = (workload, call)

    def _heard(self, name: str, workload: Watching, instance: object) -> None:
        known = self._calls.get(name)
        entry = self._entries.get(name)
        if known is None or known[0] is not workload or entry is None or not isinstance(instance, Instance):
            return
        self._pauses.pop(name, None)
        if self._last.get(name) == (instance.id, instance.run):
            return  # no news: a sensor that repeats itself fills no journal
        self._last[name] = (instance.id, instance.run)
        heard = self._restated(scrubbed(instance, entry))
        self.clock.post(WatchReported(at=self.clock.at(), service=name, instance=heard))

    def _ended(self, name: str, workload: Watching, since: float, outcome: Outcome) -> None:
        known = self._calls.get(name)
        if self._stopped or known is None or known[0] is not workload:
            return
        first, most = AGAIN
        pause = self._pauses.get(name, first) if monotonic() - since < most else first
        self._pauses[name] = min(pause * 2, most)
        self._spawn(partial(self._anew, name, workload, pause))

    async def _anew(self, name: str, workload: Watching, pause: float) -> None:
        await anyio.sleep(pause)
        known = self._calls.get(name)
        if not self._stopped and known is not None and known[0] is workload:
            self._start(name, workload)
