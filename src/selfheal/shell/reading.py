"""A journal that somebody else holds, or nobody: read along, answer from it, hand acts on to who holds it.

Owns what a second supervisor on one journal does (the other web workers), and what the command line shows where no
selfheal runs. What is answered from a journal alone knows decisions, and no evidence of the run that made them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskGroup

from selfheal import shapes, views
from selfheal.control import Question, forward
from selfheal.core.ledger import Ledger
from selfheal.errors import ControlError, SelfhealError
from selfheal.journal import SqliteReader
from selfheal.metrics import BRIEFLY, PATIENCE, Metering
from selfheal.requests import Request
from selfheal.shell.homes import Home
from selfheal.shell.remembering import last_snapshot
from selfheal.shell.stream import Told

POLL: Final = 0.5
"""Seconds between two looks for new records."""

HANDOVER: Final = 10.0
"""Seconds an act may wait while one process has died and another takes over."""

log = logging.getLogger("selfheal")


class Onlooker:
    """Reads a journal along. Every method blocks, and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises `JournalError` and its kin."""
        self.reader = SqliteReader(path)
        self._turn = threading.Lock()
        self._metering = Metering(self.reader)
        try:
            snapshot, self._seq = last_snapshot(self.reader)
            self._ledger = Ledger(snapshot)
        except BaseException:
            self.reader.close()
            raise

    def close(self) -> None:
        """Close it; twice does no harm."""
        self._metering.close()
        self.reader.close()

    def answer(self, name: str, parameters: Mapping[str, Any], *, patience: float = PATIENCE) -> Any:
        """Answer a query from what is stored. Raises `RequestRefused` or `JournalError`.

        For `metrics`, `patience` is how many seconds the first reading of the whole journal is waited for.
        """
        if name not in views.LIVE:
            return views.stored(name, parameters, self.reader, self._metering)
        with self._turn:
            self._read_on()
            if name != "metrics":
                return views.live(name, parameters, self._facts())
            metered = views.metered(self._facts(), parameters, patience=patience)
        return metered()

    def _read_on(self) -> None:
        while page := self.reader.records(after=self._seq, limit=5000):
            for stored in page:
                self._ledger.apply(stored.record)
            self._seq = page[-1].seq

    def _facts(self) -> views.Facts:
        last = self.reader.last()
        return views.Facts(
            ledger=self._ledger,
            at=last.at + max(0.0, time.time() - last.wall) if last.number else 0.0,
            to_unix=lambda at: last.wall + (at - last.at),
            health={
                "running": False,
                "journal": {"well": False, "detail": "another process has it, or nobody"},
                "reading": True,
                "lag_seconds": None,
                "checks_in_flight": 0,
                "plugins": [],
                "delivery": [],
                "last_stored": shapes.utc(last.wall) if last.number else None,
            },
            metering=self._metering,
        )

    def age(self) -> float | None:
        """Return the seconds since anything was stored; None when nothing ever was."""
        last = self.reader.last()
        return max(0.0, time.time() - last.wall) if last.number else None


class Reading:
    """What a supervisor does while another process holds its journal. Used on one event loop."""

    def __init__(self, journal: Path, tasks: TaskGroup) -> None:
        self.over = False
        """Whether we hold the journal ourselves, meanwhile."""
        self._tasks = tasks
        self._home = Home.of(journal)
        self._onlooker: Onlooker | None = None
        self._opening = threading.Lock()

    async def ask(self, request: Request, parameters: Mapping[str, Any]) -> Any:
        """Answer a query: what is live from the holder, as long as that answers; all else from the journal."""
        if request.name in views.LIVE:
            try:
                return await self.hand_on(Question(request=request.name, parameters=parameters), timeout=5.0)
            except ControlError:
                pass  # it is busy dying, or just dead: what it has stored is there
        onlooker = await self._opened()
        return await anyio.to_thread.run_sync(onlooker.answer, request.name, parameters)

    async def hand_on(self, question: Question, *, timeout: float) -> Any:
        """Let the holder answer. Raises `Unreachable`, `ControlError`, `RequestRefused` or `JournalError`."""
        meant = attrs.evolve(question, journal=self._home.journal.name)
        return await forward(self._home.socket, meant, timeout=timeout)

    async def persist(self, question: Question) -> tuple[bool, Any]:
        """Let the holder answer, whoever that is by then; False when it is we.

        A question with a `key` may be asked again, so an act outlives the death of the holder. Raises as `hand_on`.
        """
        deadline = time.monotonic() + HANDOVER
        while not self.over:
            try:
                return True, await self.hand_on(question, timeout=max(0.1, deadline - time.monotonic()))
            except ControlError:
                if time.monotonic() >= deadline:
                    raise
                await anyio.sleep(POLL / 2)
        return False, None

    def beat(self, service: str) -> None:
        """Hand a heartbeat on, in the background."""
        self._tasks.start_soon(self._beat, service)

    async def _beat(self, service: str) -> None:
        try:
            await self.persist(Question(request="heartbeat", parameters={"service": service}))
        except SelfhealError as problem:
            log.warning("a heartbeat of %s did not reach the process that heals: %s", service, problem)

    async def records(self) -> AsyncGenerator[Told]:
        """Return every record that is stored from now on, soon after it is, until we hold the journal ourselves."""
        reader = (await self._opened()).reader
        return self._from(reader, (await anyio.to_thread.run_sync(reader.last)).seq)

    async def _from(self, reader: SqliteReader, after: int) -> AsyncGenerator[Told]:
        while not self.over:
            page = await anyio.to_thread.run_sync(partial(reader.records, after=after, limit=1000))
            for stored in page:
                after = stored.seq
                yield Told(seq=stored.seq, number=stored.number, wall=stored.wall, record=stored.record)
            if not page:
                await anyio.sleep(POLL)

    def answer(self, name: str, parameters: Mapping[str, Any]) -> Any:
        """Answer a query from the journal alone, to who cannot wait. Blocks; may be called from any thread."""
        return self._open().answer(name, parameters, patience=BRIEFLY)

    async def _opened(self) -> Onlooker:
        known = self._onlooker
        return known if known is not None else await anyio.to_thread.run_sync(self._open)

    def _open(self) -> Onlooker:
        with self._opening:
            if self._onlooker is None:
                self._onlooker = Onlooker(self._home.journal)
            return self._onlooker

    def close(self) -> None:
        """Let go of the journal."""
        with self._opening:
            if self._onlooker is not None:
                self._onlooker.close()
                self._onlooker = None
