"""The journal: one writer thread before a store, so that nobody who hands over a batch ever waits for a disk.

Owns the queue, what is flushed when, what happens while the store refuses or hangs, and the end.

- What waits is written as one transaction, in order. A durable batch is written at once, and with it all before it;
  records are written at once; quiet results wait about a second for company.
- A write that fails is repeated until the store answers. Meanwhile batches are kept, up to a bound: beyond half of it
  quiet results are refused, beyond all of it everything is. What was refused is counted and its `done` says so.
- A store that does not answer at all is noticed by a second thread: the first one cannot say it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import tenacity

from selfheal.errors import JournalDamaged, JournalError
from selfheal.journal.retention import Keep
from selfheal.journal.sqlite import SqliteStore
from selfheal.journal.store import Batch, CrashPoint, Last, Reader, Store, no_crash

Done: TypeAlias = "Callable[[JournalError | None], None]"
Changed: TypeAlias = Callable[[bool, str], None]

MOST_WAITING: Final = 50_000
"""Batches kept while the store refuses: about 20 MB."""

_GROUP: Final = 5_000
_UPKEEP: Final = 0.05
"""Seconds of upkeep between two writes while others wait."""

_LOG: Final = logging.getLogger(__name__)


@attrs.frozen
class _Waiting:
    """One batch, or one snapshot, that is not stored yet."""

    batch: Batch | None
    durable: bool
    done: Done | None
    snapshot: tuple[int, bytes] | None = None

    @property
    def urgent(self) -> bool:
        return self.durable or self.batch is None or bool(self.batch.records)


@attrs.frozen(kw_only=True)
class Pace:
    """How fast a journal works, in seconds. The defaults suit everybody but tests.

    `flush` bounds the wait of quiet results, `durable` that of records nobody waits for; `deadline` is when a store
    that does not answer is called stuck; `tend` is the time between two slices of upkeep; a failed write is
    repeated after `retry`, doubling up to `retry_cap`.
    """

    flush: float = 1.0
    durable: float = 30.0
    deadline: float = 5.0
    tend: float = 60.0
    retry: float = 0.2
    retry_cap: float = 5.0


class Journal:
    """Takes batches from any thread and stores them in order. `reader` reads what is stored.

    `changed(well, detail)` is called, from a thread of the journal, when the store stops answering and when it
    answers again. `done` of a batch is called on the writer thread, in order, once the batch is stored (None) or will
    never be. Callbacks must be quick and must not call `close`.
    """

    def __init__(
        self,
        store: Store,
        *,
        changed: Changed | None = None,
        pace: Pace | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """Start writing to an opened store, which now belongs to this journal."""
        self.reader: Reader = store
        self._store = store
        self._changed = changed
        self._pace = pace or Pace()
        self._most = most_waiting
        self._queue: deque[_Waiting] = deque()
        self._turn = threading.Condition()
        self._closing = threading.Event()
        self._in_hand: deque[_Waiting] = deque()  # taken from the queue, not yet stored
        self._oldest = 0.0
        self._lost = 0
        self._well = True
        self._detail = ""
        self._saying = threading.Lock()
        self._busy_since: float | None = None
        self._durable_at = self._tended_at = time.monotonic()
        self._behind = False
        self._whole = True
        self._writer = threading.Thread(target=self._write_all, name="selfheal-journal", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="selfheal-journal-watch", daemon=True)
        self._writer.start()
        self._watcher.start()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        changed: Changed | None = None,
        keep: Keep | None = None,
        pace: Pace | None = None,
        most_waiting: int = MOST_WAITING,
        crash_point: CrashPoint = no_crash,
    ) -> Journal:
        """Open or create the journal at `path` and start writing. Blocks: call it in a thread.

        Raises `JournalHeld` (another process writes to it; it may still be read), `JournalDamaged`, `JournalTooNew`
        or `JournalError`, each saying what to do.
        """
        store = SqliteStore.open(path, keep=keep, crash_point=crash_point)
        return cls(store, changed=changed, pace=pace, most_waiting=most_waiting)

    @property
    def well(self) -> bool:
        """Whether the store answers, as far as is known."""
        return self._well

    @property
    def detail(self) -> str:
        """What is wrong, and what to do; empty when nothing is."""
        return self._detail

    @property
    def waiting(self) -> int:
        """How many batches are not stored yet."""
        return len(self._queue) + len(self._in_hand)

    @property
    def lost(self) -> int:
        """How many batches were refused since the start because too many waited, or had no stored form.

        After a loss of records, a snapshot (`save_snapshot`) makes what is stored whole again.
        """
        return self._lost

    def last(self) -> Last:
        """Return where the stored journal ends. Blocks for a moment."""
        return self.reader.last()

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes for a purpose, e.g. to fingerprint plugin objects; they outlive restarts."""
        return self._store.derive(purpose)

    def submit(self, batch: Batch, *, durable: bool, done: Done | None = None) -> None:
        """Hand over the next batch; never blocks.

        With `durable`, `done` is called after the batch has reached the disk. When too much waits, or the journal
        is closed, `done` is called at once, here, with the error.
        """
        self._put(_Waiting(batch, durable, done))

    def save_snapshot(self, number: int, state: bytes, *, done: Done | None = None) -> None:
        """Hand over a snapshot of everything up to batch `number`, submitted before; never blocks."""
        self._put(_Waiting(None, durable=False, done=done, snapshot=(number, state)))

    def close(self, timeout: float = 5.0) -> bool:
        """Store what waits and close the store; return whether all was stored within `timeout` seconds.

        While the store refuses, it is asked once more, and what is left is given up (`done` says so). A store that
        hangs keeps its lock until the process ends. Twice does no harm.
        """
        with self._turn:
            self._closing.set()
            self._turn.notify_all()
        self._writer.join(timeout)
        return not self._writer.is_alive() and self._whole

    # -- the queue ----------------------------------------------------------------------------------------------

    def _put(self, waiting: _Waiting) -> None:
        problem = None
        with self._turn:
            room = self._most if waiting.urgent else self._most // 2
            if self._closing.is_set():
                problem = JournalError("the journal is closed")
            elif len(self._queue) + len(self._in_hand) >= room:
                self._lost += 1
                problem = JournalError(
                    f"{self._most} batches wait for the store, which does not answer: this one is not kept "
                    f"({self._detail or 'the store is too slow'})"
                )
            else:
                if not self._queue:
                    self._oldest = time.monotonic()
                self._queue.append(waiting)
                if waiting.urgent or len(self._queue) == 1 or len(self._queue) == _GROUP:
                    self._turn.notify()
        if problem is not None:
            _call(waiting, problem)

    def _take(self) -> list[_Waiting]:
        """Wait for something to write and return it, in order; empty when the journal is closed."""
        with self._turn:
            while True:
                now = time.monotonic()
                if self._queue:
                    due = self._oldest + self._pace.flush
                    if (
                        now >= due
                        or self._closing.is_set()
                        or len(self._queue) >= _GROUP
                        or any(waiting.urgent for waiting in self._queue)
                    ):
                        break
                    self._turn.wait(due - now)
                elif self._closing.is_set():
                    return []
                else:
                    self._turn.wait()
            taken = [self._queue.popleft() for _ in range(min(len(self._queue), _GROUP))]
            self._in_hand.extend(taken)
            return taken

    # -- the writer thread ----------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        try:
            while taken := self._take():
                for group in _groups(taken):
                    self._write(group)
                self._tend()
        except Exception as problem:  # noqa: BLE001  # a fault of ours: nothing is stored any more; said
            _LOG.exception("the journal has stopped")
            self._stop_for(problem)
        finally:
            self._busy_since = time.monotonic()
            self._store.close()
            self._busy_since = None

    def _stop_for(self, problem: Exception) -> None:
        self._whole = False
        self._say(False, f"the journal has stopped after a fault in selfheal: {problem!r}; report it and restart")
        with self._turn:
            self._closing.set()
            left = [*self._in_hand, *self._queue]
            self._in_hand.clear()
            self._queue.clear()
        for waiting in left:
            _call(waiting, JournalError(self._detail))

    def _write(self, group: Sequence[_Waiting]) -> None:
        """Store a group, however often it takes, and tell each of its members."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(JournalError),
            wait=tenacity.wait_exponential(multiplier=self._pace.retry, max=self._pace.retry_cap),
            stop=lambda state: self._closing.is_set(),
            sleep=self._pause,
            before_sleep=lambda state: self._refused(state.outcome),
            reraise=True,
        )
        refused: Mapping[int, str] = {}
        problem: JournalError | None = None
        try:
            refused = retrying(self._attempt, group)
        except JournalError as given_up:
            problem = given_up
            self._whole = False
            self._say(False, str(given_up))
        else:
            self._say(True, self._store.trouble)
        self._lost += len(refused)
        for waiting in group:
            self._in_hand.popleft()
            number = waiting.batch.number if waiting.batch is not None else 0
            _call(waiting, JournalError(refused[number]) if number in refused else problem)

    def _attempt(self, group: Sequence[_Waiting]) -> Mapping[int, str]:
        now = time.monotonic()
        self._busy_since = now
        try:
            (first, *_) = group
            if first.snapshot is not None:
                self._store.save_snapshot(*first.snapshot)
                return {}
            batches = [waiting.batch for waiting in group if waiting.batch is not None]
            durable = (
                any(waiting.durable for waiting in group)
                or self._closing.is_set()
                or now - self._durable_at >= self._pace.durable
            )
            refused = self._store.append(batches, durable=durable)
            if durable:
                self._durable_at = now
            return refused
        finally:
            self._busy_since = None

    def _tend(self) -> None:
        """Do some upkeep now and then; while there is more of it, after every write, but for a moment only."""
        now = time.monotonic()
        if self._closing.is_set() or (now - self._tended_at < self._pace.tend and not self._behind):
            return
        self._tended_at = now
        try:
            self._behind = True
            while self._behind and (not self._queue or time.monotonic() - now < _UPKEEP):
                self._busy_since = time.monotonic()
                self._behind = self._store.tend()
        except JournalDamaged as problem:
            self._behind = False
            self._say(True, f"old results cannot be rolled up: {problem}")
        except JournalError as problem:
            self._behind = False
            self._say(False, str(problem))
        finally:
            self._busy_since = None

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _refused(self, outcome: tenacity.Future | None) -> None:
        problem = None if outcome is None else outcome.exception()
        self._say(False, str(problem))

    # -- how it stands ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Say so when one call of the store takes longer than the deadline."""
        while self._writer.is_alive():
            if self._closing.is_set():
                self._writer.join(self._pace.deadline / 4)
            else:
                self._closing.wait(self._pace.deadline / 4)
            since = self._busy_since
            if since is not None and time.monotonic() - since > self._pace.deadline:
                with self._saying:
                    if self._busy_since == since:  # still the same call
                        self._tell(False, f"the store has not answered for {self._pace.deadline:g} s")

    def _say(self, well: bool, detail: str) -> None:
        with self._saying:
            self._tell(well, detail)

    def _tell(self, well: bool, detail: str) -> None:
        """Report a change; not each refusal of the same trouble."""
        if (well, detail) == (self._well, self._detail):
            return
        self._well, self._detail = well, detail
        if self._changed is not None:
            try:
                self._changed(well, detail)
            except Exception:  # noqa: BLE001  # the host's own; it must not end the writing
                _LOG.exception("a callback of the journal failed")


def _groups(taken: Sequence[_Waiting]) -> list[list[_Waiting]]:
    """Split what was taken into runs of batches and single snapshots."""
    groups: list[list[_Waiting]] = []
    for waiting in taken:
        if waiting.batch is None or not groups or groups[-1][0].batch is None:
            groups.append([waiting])
        else:
            groups[-1].append(waiting)
    return groups


def _call(waiting: _Waiting, problem: JournalError | None) -> None:
    if waiting.done is None:
        return
    try:
        waiting.done(problem)
    except Exception:  # noqa: BLE001  # e.g. the host's loop is closed; the others must be told
        _LOG.exception("a callback of the journal failed")
