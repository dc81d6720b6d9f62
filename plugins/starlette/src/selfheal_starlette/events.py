"""The stream of records, as server-sent events: bounded, resumable, and gone when its server stops.

One reader hears the supervisor for all clients: the task of whichever client holds the turn, because a mounted
application has no task of its own. When that client leaves, the next takes the turn and reads what was told in
between, so that nobody misses a record. A client that is too slow is cut, and resumes where it was by `Last-Event-ID`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.types import Receive, Scope, Send

from selfheal.errors import SelfhealError
from selfheal_starlette.ending import Listening
from selfheal_starlette.problems import Refusal
from selfheal_starlette.supervised import Supervised

log = logging.getLogger("selfheal.http")

PAGE: Final = 500
"""Records that are read from the journal at a time, for who resumes."""


@attrs.frozen(kw_only=True)
class Bounds:
    """How many streams there are, and how long one lasts. Times are seconds."""

    streams: int = 500
    """Streams in all."""

    of_a_caller: int = 450
    """Streams of one caller."""

    room: int = 256
    """Records that may wait for one client."""

    heartbeat: float = 10.0
    """Between two signs of life; at each it is asked whether the caller's token still is one."""

    again: float = 60.0
    """Between two times that a host application is asked whether it still knows the caller."""

    life: float = 900.0
    """After which a stream ends, and its client comes again."""

    write: float = 10.0
    """A client that takes nothing for so long is cut."""

    look: float = 0.2
    """Between two looks whether the server stops."""


def frame_of(shape: dict[str, Any]) -> bytes:
    """Return a record as an event. It has its number for an id, unless it is volatile and has none."""
    data = json.dumps(shape, separators=(",", ":"), allow_nan=False)
    number = f"id: {shape['seq']}\n" if shape["seq"] is not None else ""
    return f"{number}data: {data}\n\n".encode()


@attrs.define(eq=False)
class _Client:
    """One open stream."""

    caller: str
    send: MemoryObjectSendStream[tuple[int | None, bytes]]
    receive: MemoryObjectReceiveStream[tuple[int | None, bytes]]
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    begun: bool = False

    def offer(self, seq: int | None, frame: bytes) -> None:
        try:
            self.send.send_nowait((seq, frame))
        except anyio.WouldBlock:
            self.scope.cancel()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass


class Feed:
    """The streams of one application."""

    def __init__(self, supervised: Supervised, bounds: Bounds) -> None:
        self._supervised = supervised
        self.bounds = bounds
        self._clients: dict[_Client, None] = {}
        self._seq: int | None = None
        """The last record that was told to the clients; none is told twice, and none is left out."""
        self._turn = anyio.Lock()
        self._live = anyio.Event()
        """Set while somebody hears the supervisor, or nobody can."""
        self._listening: dict[tuple[object, ...], Listening | None] = {}
        self.closing = False
        """Set, from any thread, when the application is to end its streams."""

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._clients)

    def _judge(self, caller: str) -> None:
        """Refuse a stream that is one too many. Raises `Refusal`."""
        if len(self._clients) >= self.bounds.streams:
            raise Refusal("full", "too many streams are open; ask for the status instead", {"Retry-After": "10"})
        if sum(client.caller == caller for client in self._clients) >= self.bounds.of_a_caller:
            raise Refusal("too_many", "you have too many streams open", {"Retry-After": "10"})

    async def serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        caller: str,
        after: int | None,
        headers: list[tuple[bytes, bytes]],
        still: Callable[[], Awaitable[bool]],
    ) -> None:
        """Serve one stream to its end; `still` says whether its caller may still listen.

        Raises `Refusal` for one that is too many; then nothing has been sent.
        """
        listening = await self._listening_at(scope)
        self._judge(caller)
        queue_in, queue_out = anyio.create_memory_object_stream[tuple[int | None, bytes]](self.bounds.room)
        client = _Client(caller, queue_in, queue_out)
        self._enter(client)
        try:
            with client.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._pump)
                    tasks.start_soon(_gone, receive, client.scope)
                    tasks.start_soon(self._watch, client, listening, still)
                    await self._speak(send, client, headers, after)
                    tasks.cancel_scope.cancel()
        finally:
            self._leave(client)
        if client.begun:
            with anyio.move_on_after(0.5), suppress(OSError):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _listening_at(self, scope: Scope) -> Listening | None:
        """Return the socket that a request came in by; it is looked for once."""
        server = scope.get("server")
        if not server:
            return None
        key = tuple(server)
        known = self._listening.get(key)
        if known is None or known.closed:
            known = self._listening[key] = await anyio.to_thread.run_sync(Listening.of, scope)
        return known

    def _enter(self, client: _Client) -> None:
        if not self._clients:
            self._seq, self._turn, self._live = None, anyio.Lock(), anyio.Event()
        self._clients[client] = None

    def _leave(self, client: _Client) -> None:
        self._clients.pop(client, None)
        client.send.close()
        client.receive.close()

    async def _write(self, send: Send, frame: bytes) -> None:
        with anyio.fail_after(self.bounds.write):
            await send({"type": "http.response.body", "body": frame, "more_body": True})

    async def _speak(self, send: Send, client: _Client, headers: list[tuple[bytes, bytes]], after: int | None) -> None:
        """Tell a client what it has missed, and then what comes. Who has been answered hears all from then on."""
        await self._live.wait()
        client.begun = True
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._write(send, b"retry: 2000\n\n")
            told = -1 if after is None else await self._replay(send, after)
            while True:
                seq, frame = None, b": still here\n\n"
                with anyio.move_on_after(self.bounds.heartbeat):
                    seq, frame = await client.receive.receive()
                if seq is None or seq > told:
                    await self._write(send, frame)
        except (TimeoutError, OSError, anyio.EndOfStream, SelfhealError):
            return  # gone, too slow, or nothing more to tell

    async def _replay(self, send: Send, after: int) -> int:
        """Tell everything since `after`; return the number of the last record that was told."""
        told = -1
        while page := await self._supervised.ask("records", after=max(after, told), limit=PAGE):
            await self._write(send, b"".join(frame_of(shape) for shape in page))
            told = page[-1]["seq"]
        return told

    async def _watch(self, client: _Client, listening: Listening | None, still: Callable[[], Awaitable[bool]]) -> None:
        """End a stream whose time has come, whose server stops, or whose caller may not listen any more."""
        until = time.monotonic() + self.bounds.life
        asked = time.monotonic()
        while time.monotonic() < until and not self.closing and not (listening is not None and listening.closed):
            await anyio.sleep(self.bounds.look)
            if time.monotonic() - asked >= self.bounds.heartbeat:
                asked = time.monotonic()
                if not await self._may_still(still):
                    break
        client.scope.cancel()

    async def _may_still(self, still: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await still()
        except Exception:  # it is the host's that raises; nobody is known by it
            log.exception("who listens over HTTP could not be asked for again, and is let go")
            return False

    # -- one reader for all --------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        async with self._turn:
            heard = True
            while heard and self._supervised.running:
                heard = await self._hear()  # once more, if we were too slow or another process took over
            for client in self._clients:
                client.send.close()

    async def _hear(self) -> bool:
        """Tell the clients what is told to us; False when there is nobody to hear any more."""
        try:
            if self._seq is None:
                newest = await self._supervised.ask("history", limit=1)
                self._seq = newest[0]["seq"] if newest else 0
            async with self._supervised.told() as records:
                await self._catch_up()
                self._live.set()
                async for shape in records:
                    self._publish(shape)
        except SelfhealError as problem:
            log.info("the stream over HTTP has ended: %s", problem)
            self._live.set()
            return False
        return True

    async def _catch_up(self) -> None:
        """Tell what was told since the last record that was heard, by whoever heard it."""
        while page := await self._supervised.ask("records", after=self._seq, limit=PAGE):
            for shape in page:
                self._publish(shape)
                await anyio.lowlevel.checkpoint()  # so that who reads has room for the next

    def _publish(self, shape: dict[str, Any]) -> None:
        seq = shape["seq"]
        if seq is not None:
            if seq <= (self._seq or 0):
                return
            self._seq = seq
        frame = frame_of(shape)
        for client in tuple(self._clients):
            client.offer(seq, frame)


async def _gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
