"""An application's own functions as checks and actions.

Owns where they run: asynchronous ones on the application's loop, because that is where their pools and sessions
live; synchronous ones in their service's thread. What they block on the application's loop is reported, with how
long it stood still, not contained: it is the application's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, Final

import anyio
import attrs

from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.shell.blocking import Finished, ServiceThreads, StillStuck
from selfheal.shell.plugin_loop import Poke, poke_here
from selfheal.shell.plugin_thread import Ending, Outcome, Report
from selfheal.shell.results import of_callable

STOOD: Final = 0.05
"""Seconds a callable may stand on the application's loop before that is reported."""


class NoLoop(Exception):
    """An asynchronous callable, and no loop of the application to run it on."""


class NotReached(Exception):
    """The application's loop did not turn within the deadline: the callable never began."""


@attrs.frozen(kw_only=True)
class Checked:
    """What a callable found, and when, by `time.monotonic`, it ran."""

    result: CheckResult
    started: float
    ended: float


class Application:
    """The loop that `threaded()` was called from, reached from the supervisor's own thread."""

    def __init__(self, run_soon: Poke, spawn: Callable[[_Stepped], object]) -> None:
        self.run_soon = run_soon
        self.spawn = spawn

    @classmethod
    def here(cls) -> Application | None:
        """Return the loop that turns where this is called; None where none does."""
        if "trio" in sys.modules:
            import trio  # noqa: PLC0415  # an optional dependency, needed only where the host has imported it

            with contextlib.suppress(RuntimeError):
                token = trio.lowlevel.current_trio_token()
                return cls(token.run_sync_soon, lambda task: trio.lowlevel.spawn_system_task(task.run_on_trio))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        tasks: set[asyncio.Task[None]] = set()

        def spawn(stepped: _Stepped) -> None:
            task = loop.create_task(stepped.run_on_asyncio())
            stepped.cancel = task.cancel
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        return cls(poke_here(), spawn)


class Callables:
    """Runs an application's functions. Its own methods run on the supervisor's loop.

    `elsewhere` is None when the supervisor's loop is the application's own. For `threaded()` it is what
    `Application.here()` said where that was called, and `threaded` is true.
    """

    def __init__(
        self,
        threads: ServiceThreads,
        *,
        poke: Poke,
        told: Callable[[Report], None] | None = None,
        threaded: bool = False,
        elsewhere: Application | None = None,
    ) -> None:
        self._threads = threads
        self._poke = poke
        self._told = told
        self._threaded = threaded
        self._elsewhere = elsewhere

    async def check(self, service: str, function: Callable[[], object], *, timeout: float) -> Checked:
        """Run a callable as a check of `service`; never raises, unless it is cancelled itself. `timeout` in seconds."""
        outcome = await self.run(service, function, timeout=timeout)
        if isinstance(outcome.error, NoLoop | NotReached):
            result = CheckResult(Verdict.INCONCLUSIVE, cause=Cause.CONFIG, summary=str(outcome.error))
        else:
            result = of_callable(outcome, timeout=timeout)
        return Checked(result=result, started=outcome.started, ended=outcome.ended)

    async def run(self, service: str, function: Callable[..., object], *args: object, timeout: float) -> Outcome:
        """Run a callable and return its outcome. `timeout` is the total deadline in seconds."""
        deadline = time.monotonic() + timeout
        if is_async(function):
            return await self._awaited(service, partial(function, *args), deadline)
        outcome = await self._in_thread(service, partial(function, *args), deadline)
        if outcome.ending is Ending.VALUE and inspect.isawaitable(outcome.value):  # a lambda returning a coroutine
            awaitable = outcome.value
            rest = await self._awaited(service, lambda: awaitable, deadline)
            if inspect.iscoroutine(awaitable):
                awaitable.close()  # where there was no loop for it
            return attrs.evolve(rest, started=outcome.started)
        return outcome

    # -- in the service's thread -----------------------------------------------------------------------------------

    async def _in_thread(self, service: str, function: Callable[[], object], deadline: float) -> Outcome:
        began = time.monotonic()
        ended = anyio.Event()
        heard: list[Finished] = []

        def done(finished: Finished) -> None:
            heard.append(finished)
            self._poke(ended.set)

        try:
            job = self._threads.of(service).start(function, done, deadline=deadline)
        except StillStuck as problem:
            return Outcome.at_once(Ending.EXCEPTION, problem)
        try:
            with anyio.move_on_after(max(0.0, deadline - began)):
                await ended.wait()
        finally:
            if not heard:
                job.abandon()
        if not heard:
            return Outcome(ending=Ending.TIMED_OUT, started=began, ended=time.monotonic())
        return _outcome(heard[0], deadline)

    # -- on the application's loop ---------------------------------------------------------------------------------

    async def _awaited(self, service: str, make: Callable[[], object], deadline: float) -> Outcome:
        stepped = _Stepped(make)
        if not self._threaded:
            began = time.monotonic()
            with anyio.move_on_after(max(0.0, deadline - began)):
                await stepped.run_here()
        elif self._elsewhere is None:
            why = "an asynchronous callable needs the application's loop, and none turned where threaded() was called"
            return Outcome.at_once(Ending.EXCEPTION, NoLoop(f"{why}; write it as a plain function"))
        else:
            await self._sent(stepped, self._elsewhere, deadline)
        if stepped.longest > STOOD and self._told is not None:
            self._told(Report(kind="host", owner=service, seconds=stepped.longest))
        if stepped.finished is not None:
            return _outcome(stepped.finished, deadline, longest=stepped.longest)
        if stepped.started is None:
            why = "the application's loop did not turn within the deadline; what blocks it?"
            return Outcome.at_once(Ending.EXCEPTION, NotReached(why))
        return Outcome(
            ending=Ending.TIMED_OUT, started=stepped.started, ended=time.monotonic(), longest=stepped.longest
        )

    async def _sent(self, stepped: _Stepped, application: Application, deadline: float) -> None:
        """Run it on the application's loop, in another thread, and wait for it here."""
        ended = anyio.Event()
        stepped.done = partial(self._poke, ended.set)
        try:
            application.run_soon(partial(application.spawn, stepped))
        except RuntimeError:  # that loop has ended
            return
        try:
            with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
                await ended.wait()
        finally:
            if stepped.finished is None:
                stepped.given_up = True
                with contextlib.suppress(RuntimeError):
                    application.run_soon(stepped.end)


class _Stepped:
    """One callable on the application's loop: timed step by step, and contained."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make
        self.started: float | None = None
        self.longest = 0.0
        self.finished: Finished | None = None
        self.given_up = False
        self.cancel: Callable[[], object] = lambda: None
        self.done: Callable[[], object] = lambda: None

    async def run_here(self) -> None:
        """Run it. Cancellation from outside passes; KeyboardInterrupt is the person's, and passes too."""
        self.started = time.monotonic()
        value: object = None
        error: BaseException | None = None
        try:
            value = await self
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # law 15: SystemExit of a check must not end the application
            if isinstance(problem, anyio.get_cancelled_exc_class()) and not _by_itself():
                raise
            error = problem
        self.finished = Finished(value, error, self.started, time.monotonic())

    def end(self) -> None:
        """Cancel it, on its own loop."""
        self.cancel()

    async def run_on_asyncio(self) -> None:
        try:
            if not self.given_up:
                await self.run_here()
        finally:
            self.done()

    async def run_on_trio(self) -> None:
        try:
            with anyio.CancelScope() as scope:
                self.cancel = scope.cancel
                if not self.given_up:
                    await self.run_here()
        finally:
            self.done()

    def __await__(self) -> Generator[Any, Any, object]:
        begun = time.monotonic()
        awaitable = self._make()
        if not inspect.isawaitable(awaitable):
            return awaitable  # an async-looking callable that is none: its value counts
        coroutine = awaitable if inspect.iscoroutine(awaitable) else _plain(awaitable)
        heard: object = None
        thrown: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(heard) if thrown is None else coroutine.throw(thrown)
            except StopIteration as stop:
                return stop.value
            finally:
                self.longest = max(self.longest, time.monotonic() - begun)
            try:
                heard, thrown = (yield waits_for), None
            except BaseException as problem:  # noqa: BLE001  # what `await` does: it is thrown into the coroutine
                thrown = problem
            begun = time.monotonic()


async def _plain(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _by_itself() -> bool:
    """Whether a cancellation was raised by the callable: nobody has asked its asyncio task to end."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # trio: only trio makes a Cancelled
        return False
    return task is not None and task.cancelling() == 0


def _outcome(finished: Finished, deadline: float, *, longest: float = 0.0) -> Outcome:
    late = finished.ended > deadline  # it blocked past its deadline: a total deadline holds
    ending = Ending.TIMED_OUT if late else Ending.VALUE if finished.error is None else Ending.EXCEPTION
    return Outcome(
        ending=ending,
        value=None if late else finished.value,
        error=None if late else finished.error,
        started=finished.started,
        ended=finished.ended,
        longest=longest,
    )


def is_async(function: Callable[..., object]) -> bool:
    """Whether a callable is an async function: also behind `partial`, and as an object's async `__call__` (S6)."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004  # the method itself is asked, not whether there is one
    )
