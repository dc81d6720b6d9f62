"""What a run knows from before: the journal opened and read, or, where that is impossible, what stands in for it.

Store trouble never stops checking. A journal that is damaged, missing or of a newer release is left as it lies; a run
without it has a memory of its own, is held (`held:journal`) from the first moment on, and says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from selfheal.core.ledger import Snapshot
from selfheal.core.records import Record, decode
from selfheal.errors import JournalError, JournalHeld
from selfheal.journal import Files, Journal, MemoryStore, Reader
from selfheal.journal.identity import Lock

log = logging.getLogger("selfheal")

ROUTED: Final = ("alert_changed", "delivered", "suppression_changed", "incident_merged", "incident_closed")
"""Kinds of record the router remembers from."""


class Standin(Journal):
    """A journal in memory, in the place of one that cannot be opened. It is never well, and says why."""

    def __init__(self, trouble: str, lock: Lock | None) -> None:
        """Hold the `lock` of the journal it stands in for until it is closed."""
        super().__init__(MemoryStore())
        self._trouble = trouble
        self._lock = lock

    @property
    def well(self) -> bool:
        """False: nothing that is decided now will be known later."""
        return False

    @property
    def detail(self) -> str:
        """What is wrong with the journal that should be here, and what to do."""
        return self._trouble

    def close(self, timeout: float = 5.0) -> bool:
        """End it, and let somebody else try. Returns True: there is nothing that could still be stored."""
        super().close(timeout)
        if self._lock is not None:
            self._lock.release()
        return True


@attrs.frozen(kw_only=True)
class Remembered:
    """What a journal holds, read in a thread."""

    journal: Journal
    snapshot: Snapshot | None
    records: tuple[Record, ...]
    history: tuple[Record, ...]


def remember(path: Path | None, changed: Callable[[bool, str], None]) -> Remembered:
    """Open a journal and read what the engine and the router must know. Blocks: call it in a thread.

    Raises `JournalHeld` when another process holds it; with any other trouble, what is remembered is nothing.
    """
    if path is None:
        return _read(Journal(MemoryStore(), changed=changed))
    try:
        return _read(Journal.open(path, changed=changed))
    except JournalHeld:
        raise
    except JournalError as problem:
        log.critical("the journal cannot be used, so everything is checked and nothing is repaired: %s", problem)
        return _read(Standin(str(problem), _lock(path)))


def _lock(path: Path) -> Lock | None:
    """Return the lock of a journal that could not be opened; None where not even that can be had."""
    try:
        return Lock(Files(database=path).lock)
    except JournalHeld:
        raise
    except JournalError:
        return None


def _read(journal: Journal) -> Remembered:
    try:
        snapshot, after = last_snapshot(journal.reader)
        return Remembered(
            journal=journal,
            snapshot=snapshot,
            records=tuple(every(journal.reader, after=after)),
            history=tuple(every(journal.reader, kinds=ROUTED)),
        )
    except BaseException:
        with suppress(JournalError):
            journal.close()
        raise


def last_snapshot(reader: Reader) -> tuple[Snapshot | None, int]:
    """Return the newest snapshot that can be used, and the record it reaches to."""
    stored, problem = reader.load_snapshot()
    if problem:
        log.warning("the last snapshot cannot be used, so every record is read: %s", problem)
    if stored is None:
        return None, 0
    return decode(Snapshot, json.loads(stored.state)), stored.seq


def every(reader: Reader, *, after: int = 0, kinds: tuple[str, ...] | None = None) -> Iterable[Record]:
    """Yield the records that follow record `after`."""
    while page := reader.records(after=after, limit=5000, kinds=kinds):
        for stored in page:
            yield stored.record
        after = page[-1].seq
