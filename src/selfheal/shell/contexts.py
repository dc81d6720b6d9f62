"""What a plugin call is given: the contexts of `selfheal.plugins`, made real.

Owns the time left, what a plugin keeps between calls, and the way into the service's thread. A context is made anew
on the plugin loop for every run of a call, so that a check which runs again elsewhere starts with its whole time.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import partial
from math import inf
from typing import Any, TypeVar

import attrs

from selfheal.core.model import Cause, CheckResult, Instance, Scalar
from selfheal.plugins import HealthCheck, Workload
from selfheal.shell.blocking import Finished, ServiceThreads

T = TypeVar("T")

CLOSING = 2.0
"""Seconds that the kept things of one service and loop may take to close."""


class Kept:
    """What plugins keep between calls, for each loop, service and plugin object."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str, int], _Place] = {}
        self._lock = threading.Lock()

    def of(self, loop: asyncio.AbstractEventLoop, service: str, plugin: object) -> MutableMapping[str, Any]:
        """Return the mapping that belongs to these three; it begins empty."""
        key = (id(loop), service, id(plugin))
        with self._lock:
            place = self._kept.get(key)
            if place is None:
                place = self._kept[key] = _Place(loop=loop, plugin=plugin)
            return place.values

    def take(
        self, loop: asyncio.AbstractEventLoop, service: str | None = None, *, of: Iterable[object] | None = None
    ) -> list[Any]:
        """Forget what `service` (every service, by default) keeps on `loop`, and return it to be closed.

        With `of`, only what belongs to these plugin objects.
        """
        plugins = None if of is None else {id(plugin) for plugin in of}
        with self._lock:
            keys = [
                key
                for key in self._kept
                if key[0] == id(loop) and service in (None, key[1]) and (plugins is None or key[2] in plugins)
            ]
            places = [self._kept.pop(key) for key in keys]
        taken = [value for place in places for value in place.values.values()]
        for place in places:
            place.values.clear()
        return taken

    def loops(self, service: str | None = None) -> list[asyncio.AbstractEventLoop]:
        """Return the loops on which `service` (any service, by default) keeps something."""
        with self._lock:
            found = {key[0]: place.loop for key, place in self._kept.items() if service in (None, key[1])}
        return list(found.values())

    async def close_here(
        self, service: str | None = None, *, of: Iterable[object] | None = None, timeout: float = CLOSING
    ) -> list[str]:
        """Close what is kept on the running loop, all at once, within `timeout` seconds.

        Return one line for each thing that would not close: its type and the type of what it raised, no more, for
        the text of a driver's error may hold a secret.
        """
        taken = self.take(asyncio.get_running_loop(), service, of=of)
        if not taken:
            return []
        tasks = {asyncio.ensure_future(_closed(value)): value for value in taken}
        _, late = await asyncio.wait(tasks, timeout=timeout)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=0.1)
        return [
            f"{type(value).__name__}: did not close within {timeout:g} s" if task in late else task.result()
            for task, value in tasks.items()
            if task in late or task.result()
        ]


@attrs.frozen(kw_only=True)
class _Place:
    """One mapping, and the objects whose identity is its address: they must not be freed while it lives."""

    loop: asyncio.AbstractEventLoop
    plugin: object
    values: dict[str, Any] = attrs.field(factory=dict)


async def _closed(value: object) -> str:
    """Close one kept thing by `aclose()` or `close()`, if it has either; return what went wrong, or ""."""
    close = getattr(value, "aclose", None) or getattr(value, "close", None)
    if close is None:
        return ""
    try:
        waits = close()
        if inspect.isawaitable(waits):
            await waits
    except asyncio.CancelledError:
        raise
    except BaseException as problem:  # noqa: BLE001  # a driver's goodbye must not stop the others'
        return f"{type(value).__name__}: {type(problem).__name__} when it was closed"
    return ""


class PlainContext:
    """A `plugins.Context`."""

    def __init__(self, contexts: Contexts, service: str, plugin: object, timeout: float) -> None:
        self._contexts = contexts
        self._service = service
        self._plugin = plugin
        self._deadline = time.monotonic() + timeout
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def service(self) -> str:
        return self._service

    @property
    def remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    @property
    def kept(self) -> MutableMapping[str, Any]:
        with contextlib.suppress(RuntimeError):  # in a thread there is no running loop: the last one counts
            self._loop = asyncio.get_running_loop()
        if self._loop is None:
            raise RuntimeError("context.kept belongs to a loop: read it in the coroutine, before the thread is entered")
        return self._contexts.kept.of(self._loop, self._service, self._plugin)

    async def blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        loop = asyncio.get_running_loop()
        self._loop = loop
        answer: asyncio.Future[T] = loop.create_future()
        job = self._contexts.threads.of(self._service).start(
            partial(function, *args),
            lambda finished: _tell(loop, answer, finished),
            deadline=self._deadline,
        )
        try:
            return await answer
        finally:
            if not answer.done() or answer.cancelled():
                job.abandon()


def _tell(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Any], finished: Finished) -> None:
    """Hand what a thread found to the coroutine that waits for it."""

    def tell() -> None:
        if answer.done():
            return
        error = finished.error
        if isinstance(error, StopIteration):  # a future refuses it
            error = RuntimeError("StopIteration left a function that ran in the service's thread")
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(finished.value)

    loop.call_soon_threadsafe(tell)


class CheckContext(PlainContext):
    """A `plugins.CheckContext`."""

    def __init__(
        self,
        contexts: Contexts,
        service: str,
        plugin: object,
        timeout: float,
        deep: bool,
        previous: CheckResult | None,
        workload: Workload | None,
    ) -> None:
        super().__init__(contexts, service, plugin, timeout)
        self._deep = deep
        self._previous = previous
        self._workload = workload

    @property
    def workload(self) -> Workload | None:
        """The service's own workload, for a check that asks who runs."""
        return self._workload

    @property
    def deep(self) -> bool:
        return self._deep

    @property
    def previous(self) -> CheckResult | None:
        return self._previous


@attrs.frozen(kw_only=True)
class Act:
    """What an action is told of the intent it serves."""

    key: str
    verb: str = ""
    incident: int = 0
    attempt: int = 1
    cause: Cause | None = None
    expected: Instance | None = None
    check: HealthCheck | None = None
    workload: Workload | None = None
    arguments: Mapping[str, Scalar] = attrs.field(factory=dict)


class ActionContext(PlainContext):
    """A `plugins.ActionContext`."""

    def __init__(self, contexts: Contexts, service: str, plugin: object, timeout: float, act: Act) -> None:
        super().__init__(contexts, service, plugin, timeout)
        self._act = act

    @property
    def key(self) -> str:
        return self._act.key

    @property
    def verb(self) -> str:
        return self._act.verb

    @property
    def incident(self) -> int:
        return self._act.incident

    @property
    def attempt(self) -> int:
        return self._act.attempt

    @property
    def cause(self) -> Cause | None:
        return self._act.cause

    @property
    def expected(self) -> Instance | None:
        return self._act.expected

    @property
    def check(self) -> HealthCheck | None:
        return self._act.check

    @property
    def workload(self) -> Workload | None:
        return self._act.workload

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self._act.arguments


class Contexts:
    """Where contexts come from: it holds what they share, the threads of the services and what plugins keep.

    Make one on the plugin loop, in the `make` of `PluginLoops.submit`, so that its clock starts with the call.
    """

    def __init__(self, threads: ServiceThreads | None = None) -> None:
        self.threads = threads if threads is not None else ServiceThreads()
        self.kept = Kept()

    def plain(self, service: str, plugin: object, timeout: float = inf) -> PlainContext:
        """Return a context for `inspect`, `watch` and notifiers. `timeout` is in seconds."""
        return PlainContext(self, service, plugin, timeout)

    def for_check(
        self,
        service: str,
        plugin: object,
        timeout: float,
        *,
        deep: bool = False,
        previous: CheckResult | None = None,
        workload: Workload | None = None,
    ) -> CheckContext:
        """Return a context for one check of `timeout` seconds."""
        return CheckContext(self, service, plugin, timeout, deep, previous, workload)

    def for_action(self, service: str, plugin: object, timeout: float, act: Act) -> ActionContext:
        """Return a context for one action of `timeout` seconds."""
        return ActionContext(self, service, plugin, timeout, act)
