"""The stream of records: stored first, then told to every reader, in order.

Owns the sequence numbers readers see, and the fan-out: the router, observers, whoever subscribes, and whoever waits
for the answer to an act. While the store is down records go out at once, marked volatile and without a number.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import attrs
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from selfheal.core.records import Answered, Record
from selfheal.journal.store import Batch

log = logging.getLogger("selfheal.stream")

ROOM = 1000
"""Records that may wait for one subscriber; one that is slower is told to begin anew."""


@attrs.frozen(kw_only=True)
class Told:
    """A record as readers get it. `seq` is None while the store is down; `wall` is UNIX time."""

    seq: int | None
    number: int
    wall: float
    record: Record
    volatile: bool = False


class Lagged(Exception):
    """A subscriber was too slow and has missed records: read again from the journal, then subscribe anew."""


class Stream:
    """Fans records out. Every method is called on the host's loop; readers must be quick and are contained."""

    def __init__(self, *, seq: int) -> None:
        self.seq = seq
        """The sequence number of the last record that was stored and told."""
        self._readers: list[Callable[[Told], None]] = []
        self._subscribers: dict[MemoryObjectSendStream[Told], None] = {}
        self._answers: dict[str, tuple[anyio.Event, list[Told]]] = {}

    def add(self, reader: Callable[[Told], None]) -> None:
        """Let `reader` hear every record from now on."""
        self._readers.append(reader)

    def publish(self, batch: Batch, *, volatile: bool) -> None:
        """Tell the records of a batch to everybody; those of a volatile batch have no number (see `caught_up`)."""
        for record in batch.records:
            if not volatile:
                self.seq += 1
            seq = None if volatile else self.seq
            wall = batch.wall - (batch.at - record.at)
            told = Told(seq=seq, number=batch.number, wall=wall, record=record, volatile=volatile)
            if isinstance(record, Answered):
                waiting = self._answers.pop(record.id, None)
                if waiting is not None:
                    waiting[1].append(told)
                    waiting[0].set()
            for reader in self._readers:
                try:
                    reader(told)
                except Exception:  # a reader's fault is its own; the others and the engine go on
                    log.exception("a reader of the stream failed")
            self._fan_out(told)

    def caught_up(self, count: int) -> None:
        """Count records that were told as volatile and are stored by now: they have their place in the store."""
        self.seq += count

    def _fan_out(self, told: Told) -> None:
        for send in tuple(self._subscribers):
            try:
                send.send_nowait(told)
            except anyio.WouldBlock:
                del self._subscribers[send]
                send.close()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                self._subscribers.pop(send, None)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[MemoryObjectReceiveStream[Told]]:
        """Give a stream of the records from now on. It ends early when its reader is too slow, or at the stop."""
        send, receive = anyio.create_memory_object_stream[Told](ROOM)
        self._subscribers[send] = None
        async with receive:
            try:
                yield receive
            finally:
                self._subscribers.pop(send, None)
                send.close()

    def expect(self, id_: str) -> tuple[anyio.Event, list[Told]]:
        """Return what is set, and where the answer will lie, when the act `id_` has been answered and stored."""
        return self._answers.setdefault(id_, (anyio.Event(), []))

    def forget(self, id_: str) -> None:
        """Nobody waits for that answer any more."""
        self._answers.pop(id_, None)

    def close(self) -> None:
        """End every subscription, and the waiting for answers that will not come."""
        for send in self._subscribers:
            send.close()
        self._subscribers.clear()
        for ready, _ in self._answers.values():
            ready.set()
        self._answers.clear()
