"""How the application reaches the supervisor: on the same event loop, or across from a loop of its own.

Both ask by `ask` and `act` and hear the stream of records, and know nothing else of the supervisor.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from selfheal.errors import NotRunning
from selfheal.shapes import public
from selfheal.supervisor import Supervisor

ROOM: Final = 1000
"""Records that may wait on their way across."""

CROSSINGS: Final = {"query": 8, "act": 16, "health": 2}
"""Requests that are under way across at a time; each occupies a thread while it is.

Of queries few, because each that ends there and goes on here is one more that the engine's thread has to take turns
with. Acts wait for the disk, and how selfheal is for nobody, so that neither stands behind the other.
"""

log = logging.getLogger("selfheal.http")


class Supervised(Protocol):
    """A supervisor, as the application sees it."""

    @property
    def running(self) -> bool:
        """Whether requests are answered."""

    @property
    def journal(self) -> Path | None:
        """The journal, beside which the tokens lie."""

    async def ask(self, name: str, **parameters: Any) -> Any:
        """Answer a query."""

    async def act(
        self, name: str, *, actor: str, reason: str, scopes: frozenset[str], key: str, **parameters: Any
    ) -> dict[str, Any]:
        """Do an act."""

    def told(self) -> AbstractAsyncContextManager[AsyncIterator[dict[str, Any]]]:
        """Give every record from now on, in its public shape. It ends early for a reader that is too slow."""


class Here:
    """A supervisor on the event loop of the application."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    @property
    def running(self) -> bool:
        """Whether requests are answered."""
        return self._supervisor.running

    @property
    def journal(self) -> Path | None:
        """The journal, beside which the tokens lie."""
        return self._supervisor.journal

    async def ask(self, name: str, **parameters: Any) -> Any:
        """Answer a query."""
        return await self._supervisor.ask(name, **parameters)

    async def act(
        self, name: str, *, actor: str, reason: str, scopes: frozenset[str], key: str, **parameters: Any
    ) -> dict[str, Any]:
        """Do an act."""
        return await self._supervisor.act(name, actor=actor, reason=reason, scopes=scopes, id=key, **parameters)

    @asynccontextmanager
    async def told(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Give every record from now on, in its public shape."""
        async with self._supervisor.records() as records:
            shapes = (public(one.record, seq=one.seq, wall=one.wall, volatile=one.volatile) async for one in records)
            async with aclosing(shapes):
                yield shapes


class Across:
    """A supervisor on another event loop, in another thread: `portal` leads there."""

    def __init__(self, supervisor: Supervisor, portal: BlockingPortal) -> None:
        self._there = Here(supervisor)
        self._portal = portal
        self._limiters: dict[str, anyio.CapacityLimiter] = {}

    @property
    def running(self) -> bool:
        """Whether requests are answered."""
        return self._there.running

    @property
    def journal(self) -> Path | None:
        """The journal, beside which the tokens lie."""
        return self._there.journal

    async def ask(self, name: str, **parameters: Any) -> Any:
        """Answer a query."""
        kind = "health" if name == "health" else "query"
        return await self._cross(kind, partial(self._there.ask, name, **parameters))

    async def act(
        self, name: str, *, actor: str, reason: str, scopes: frozenset[str], key: str, **parameters: Any
    ) -> dict[str, Any]:
        """Do an act."""
        asked = partial(self._there.act, name, actor=actor, reason=reason, scopes=scopes, key=key, **parameters)
        done: dict[str, Any] = await self._cross("act", asked)
        return done

    async def _cross(self, kind: str, asked: Any) -> Any:
        limiter = self._limiters.get(kind)
        if limiter is None:
            limiter = self._limiters[kind] = anyio.CapacityLimiter(CROSSINGS[kind])
        return await anyio.to_thread.run_sync(self._call, asked, limiter=limiter, abandon_on_cancel=True)

    def _call(self, asked: Any) -> Any:
        try:
            return self._portal.call(asked)
        except CancelledError:
            raise NotRunning("the supervisor is stopping") from None
        except RuntimeError as problem:
            if "portal is not running" not in str(problem):
                raise
            raise NotRunning("the supervisor has been stopped") from None

    @asynccontextmanager
    async def told(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Give every record from now on, in its public shape."""
        waiting: queue.Queue[dict[str, Any]] = queue.Queue(ROOM)

        async def hand_over() -> None:
            """Put what is told where it can be fetched; runs on the supervisor's loop, and never waits there."""
            try:
                async with self._there.told() as records:
                    started.set_result(None)
                    async for shape in records:
                        waiting.put_nowait(shape)
            except queue.Full:
                log.info("the stream over HTTP was too slow and begins anew")
            finally:
                ended.append(True)

        started: Future[None] = Future()
        ended: list[bool] = []
        try:
            running = self._portal.start_task_soon(hand_over)
        except RuntimeError:
            raise NotRunning("the supervisor has been stopped") from None

        def refused(done: Future[Any]) -> None:
            if not started.done():
                fault = None if done.cancelled() else done.exception()
                started.set_exception(fault or NotRunning("the supervisor has been stopped"))

        running.add_done_callback(refused)
        try:
            await anyio.to_thread.run_sync(started.result, 10.0, abandon_on_cancel=True)
            async with aclosing(self._fetched(waiting, ended)) as fetched:
                yield fetched
        finally:
            running.cancel()

    @staticmethod
    async def _fetched(waiting: queue.Queue[dict[str, Any]], ended: list[bool]) -> AsyncGenerator[dict[str, Any]]:
        def fetch() -> dict[str, Any] | None:
            try:
                return waiting.get(timeout=0.25)
            except queue.Empty:
                return None

        while True:
            over = bool(ended)
            shape = await anyio.to_thread.run_sync(fetch, abandon_on_cancel=True)
            if shape is not None:
                yield shape
            elif over:
                return
