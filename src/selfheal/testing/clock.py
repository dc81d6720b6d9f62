"""Virtual time for code that waits: an hour of it takes no longer than what is computed in it.

The engine needs none of this, as its time comes inside events (see `simulator`). It is for what stands around it:
your checks, your callables, your waiting.

    async def story() -> float:
        with anyio.move_on_after(3600.0):
            while True:
                await my_check(...)
                await anyio.sleep(30.0)
        return anyio.current_time()

    def test_an_hour() -> None:
        assert virtual_time("asyncio")(story) == 3600.0

Time begins at 0.0 and moves only while everything waits, at once and to the next instant at which something is due.
So nothing outside may be waited for, whose time is real: a thread, a socket and a process are refused, and the run
fails though the code under test may have swallowed the refusal. When everything waits and nothing is due, the run
fails and says who waits. The same code takes the same course each time; on trio, whose scheduler draws lots, it does
so by `seed`.

What reads `time.monotonic` or `time.time` reads real time: ask `anyio.current_time`, or be told the clock.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import selectors
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import Context
from math import inf
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple
from unittest import mock

import anyio
import attrs

if TYPE_CHECKING:
    import trio

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class NothingScheduled(RuntimeError):
    """Everything waits and nothing is due: in real time this would wait for ever."""


class NotVirtual(RuntimeError):
    """A thread, a socket or a process was asked for: its time would be real."""


class HowToRun(Protocol):
    """How to run a coroutine function in virtual time."""

    def __call__(self, function: Callable[[*Arguments], Awaitable[T]], /, *arguments: *Arguments) -> T:
        """Run it to its end and return its value. Raises what it raises, `NothingScheduled` and `NotVirtual`."""


def virtual_time(backend: str = "asyncio", *, seed: int = 0) -> HowToRun:
    """Return how to run a coroutine function on `asyncio` or `trio` in virtual time. `seed` orders trio's tasks."""

    def run(function: Callable[[*Arguments], Awaitable[T]], /, *arguments: *Arguments) -> T:
        seal = _Seal()

        async def sealed() -> T:
            with seal.closed():
                return await function(*arguments)

        try:
            value = _on_asyncio(sealed) if backend == "asyncio" else _on_trio(sealed, seed)
        except NotVirtual:
            raise
        except Exception as problem:
            if seal.refused:
                raise NotVirtual(seal.refused[0]) from problem
            raise
        if seal.refused:
            raise NotVirtual(seal.refused[0])
        return value

    if backend not in ("asyncio", "trio"):
        raise ValueError(f"{backend!r} is no event loop to run on; give 'asyncio' or 'trio'")
    return run


# -- what is refused --------------------------------------------------------------------------------------------------


@attrs.define
class _Seal:
    """Keeps what has a time of its own out of a run, and what was refused in mind. Other threads are let be."""

    refused: list[str] = attrs.field(factory=list)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Refuse from here on, in this thread."""
        with ExitStack() as stack:
            for owner, name, what in (
                (threading.Thread, "start", "a thread"),
                (socket.socket, "__init__", "a socket"),
                (subprocess.Popen, "__init__", "a process"),
                # A worker that idles since an earlier run is not started, only told what to do.
                (getattr(_part_of_trio("_thread_cache"), "ThreadCache", None), "start_thread_soon", "a thread"),
            ):
                if owner is not None:
                    stack.enter_context(mock.patch.object(owner, name, self._instead_of(getattr(owner, name), what)))
            yield

    def _instead_of(self, original: Callable[..., Any], what: str) -> Callable[..., Any]:
        home = threading.get_ident()

        def refuse(owner: object, *args: Any, **options: Any) -> Any:
            if threading.get_ident() != home:
                return original(owner, *args, **options)
            self.refused.append(
                f"{what} was asked for in virtual time, and lives in real time; put a double in its place"
            )
            raise NotVirtual(self.refused[-1])

        return refuse


def _part_of_trio(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"trio._core.{name}")
    except ImportError:
        return None


def _stuck(at: float, waiting: list[str]) -> NothingScheduled:
    who = "; ".join(sorted(waiting)) or "nobody can be seen to wait"
    return NothingScheduled(f"at {at:g} s of virtual time everything waits and nothing is due: {who}")


# -- asyncio ----------------------------------------------------------------------------------------------------------


def _on_asyncio(main: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(main, backend="asyncio", backend_options={"loop_factory": _VirtualLoop})


class _Passing(selectors.SelectSelector):
    """Lets time pass where others wait: its `now` moves by each timeout, and no descriptor is ever ready."""

    now = 0.0
    loop: asyncio.AbstractEventLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            tasks = asyncio.all_tasks(self.loop)
            waiting = [f"{task.get_name()} in {_innermost(task.get_coro())}" for task in tasks]
            raise _stuck(self.now, waiting)
        self.now += max(0.0, timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes at once."""

    def __init__(self) -> None:
        self._passing = _Passing()
        super().__init__(self._passing)
        self._passing.loop = self

    def time(self) -> float:
        return self._passing.now

    def call_at(
        self, when: float, callback: Callable[[*Arguments], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if when == inf:  # never: kept out of the timers, lest the clock run after it
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)


def _innermost(coroutine: object) -> str:
    """Return the name of the coroutine that a coroutine really waits in."""
    while (awaited := getattr(coroutine, "cr_await", None)) is not None and hasattr(awaited, "cr_frame"):
        coroutine = awaited
    return getattr(coroutine, "__qualname__", "what is no coroutine")


# -- trio -------------------------------------------------------------------------------------------------------------


def _on_trio(main: Callable[[], Awaitable[T]], seed: int) -> T:
    import trio.testing  # noqa: PLC0415  # an extra: asked for only by who runs on trio

    alarm = _alarm()
    clock = trio.testing.MockClock(autojump_threshold=0.0)

    async def watched() -> T:
        with trio.CancelScope() as alarm.scope:
            return await main()
        raise _stuck(trio.current_time(), alarm.waiting)

    with _drawing(seed):
        # Not `anyio.run`: up to anyio 4.7 it hands no options to trio, and all would live in real time unnoticed.
        return trio.run(watched, clock=clock, instruments=[alarm])


def _alarm() -> Any:
    """Return an instrument that cancels its `scope` when trio has twice in a row found nothing to do and nothing due.

    Once could be somebody who waits for just that (`wait_all_tasks_blocked`). An instrument cannot raise.
    """
    import trio  # noqa: PLC0415  # as above

    class Alarm(trio.abc.Instrument):
        def __init__(self) -> None:
            self.scope: trio.CancelScope | None = None
            self.waiting: list[str] = []
            self.idle = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.idle = 0

        def before_io_wait(self, timeout: float) -> None:
            now = trio.lowlevel.current_statistics()
            if now.tasks_runnable or now.seconds_to_next_deadline < inf or now.run_sync_soon_queue_size:
                return
            self.idle += 1
            root = trio.lowlevel.current_root_task()
            if self.idle == 2 and self.scope is not None and root is not None:
                # What trio itself keeps waiting has a name in angle brackets.
                tasks = [task for task in _below(root) if not (task.child_nurseries or task.name.startswith("<"))]
                self.waiting = [f"{task.name} in {_innermost(task.coro)}" for task in tasks]
                self.scope.cancel()

    return Alarm()


def _below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child
            yield from _below(child)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Let trio draw the order of its tasks from a source with a seed, where this version of it can be told to."""
    scheduler = _part_of_trio("_run")
    with ExitStack() as stack:
        for name, value in (("_r", random.Random(seed)), ("_ALLOW_DETERMINISTIC_SCHEDULING", True)):  # noqa: S311  # no secrecy is wanted
            if hasattr(scheduler, name):
                stack.enter_context(mock.patch.object(scheduler, name, value))
        yield
