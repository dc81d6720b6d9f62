"""Watching one descriptor and one time from any event loop, as cheaply as that loop allows.

`anyio.wait_readable` and a timer task would do on every loop, but on asyncio they cost twice a kept PING: so there it
is one standing reader and one timer, with no task, future or cancel scope for each wake-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf, isfinite
from time import monotonic

import anyio
import anyio.lowlevel


class Readiness:
    """Calls `poll` whenever `fd` is readable, and `beat` at the time it last asked for.

    `beat` does what is due and returns when it wants to be called next, in `time.monotonic` seconds; `inf` is never.
    Both run on the loop's thread, never at the same time, and must not block; what they raise comes out of `run`.
    """

    def __init__(self, fd: int, poll: Callable[[], None], beat: Callable[[], float]) -> None:
        self._fd = fd
        self._poll = poll
        self._beat = beat
        self._at = inf
        self._hasten: Callable[[], None] = lambda: None

    def sooner(self, at: float) -> None:
        """Have `beat` called at `at`, if that is before the time it asked for. Call it on the loop's thread."""
        if at < self._at:
            self._at = at
            self._hasten()

    async def run(self) -> None:
        """Beat at once, then go on until cancelled. `fd` must outlive this call."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            await self._run_anyio()
        else:
            await self._run_asyncio(loop)

    async def _run_asyncio(self, loop: asyncio.AbstractEventLoop) -> None:
        shift = loop.time() - monotonic()
        over: asyncio.Future[None] = loop.create_future()
        timer: asyncio.TimerHandle | None = None

        def arm() -> None:
            nonlocal timer
            if timer is not None:
                timer.cancel()
                timer = None
            if isfinite(self._at) and not over.done():
                timer = loop.call_at(self._at + shift, beat)

        def beat() -> None:
            try:
                self._at = inf
                self._at = min(self._at, self._beat())
            except BaseException as problem:  # noqa: BLE001 - handed to `run`, which raises it
                fail(problem)
            arm()

        def poll() -> None:
            try:
                self._poll()
            except BaseException as problem:  # noqa: BLE001 - handed to `run`, which raises it
                fail(problem)

        def fail(problem: BaseException) -> None:
            if not over.done():
                over.set_exception(problem)

        self._hasten = arm
        loop.add_reader(self._fd, poll)
        try:
            beat()
            await over
        finally:
            self._hasten = lambda: None
            loop.remove_reader(self._fd)
            if timer is not None:
                timer.cancel()

    async def _run_anyio(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll_for_ever)
            shift = anyio.current_time() - monotonic()
            while True:
                self._at = inf
                self._at = min(self._at, self._beat())
                with anyio.CancelScope(deadline=self._at + shift) as sleep:

                    def hasten(scope: anyio.CancelScope = sleep) -> None:
                        scope.deadline = self._at + shift

                    self._hasten = hasten
                    await anyio.sleep_forever()
                self._hasten = lambda: None
                await anyio.lowlevel.checkpoint()

    async def _poll_for_ever(self) -> None:
        while True:
            await anyio.wait_readable(self._fd)
            self._poll()
