"""The journal: what happened and what was decided, stored so that it survives a kill, a full disk and a curious hand.

`Journal` takes batches and never blocks; `SqliteReader` reads a journal that somebody else holds; `SqliteStore` and
`MemoryStore` are the stores behind them.
"""

from __future__ import annotations

from selfheal.journal.identity import Files
from selfheal.journal.memory import MemoryStore
from selfheal.journal.opening import accept
from selfheal.journal.reading import SqliteReader
from selfheal.journal.retention import Keep
from selfheal.journal.sqlite import SqliteStore
from selfheal.journal.store import (
    Batch,
    Fault,
    Input,
    Last,
    Reader,
    Rollup,
    Snapshot,
    Store,
    StoredRecord,
    StoredResult,
    Verification,
)
from selfheal.journal.writer import Journal, Pace

__all__ = [
    "Batch",
    "Fault",
    "Files",
    "Input",
    "Journal",
    "Keep",
    "Last",
    "MemoryStore",
    "Pace",
    "Reader",
    "Rollup",
    "Snapshot",
    "SqliteReader",
    "SqliteStore",
    "Store",
    "StoredRecord",
    "StoredResult",
    "Verification",
    "accept",
]
