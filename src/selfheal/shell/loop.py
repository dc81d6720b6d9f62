"""The one loop: events in through an inbox, journal time, batches to the store, commands to the hands.

Owns the host's duties of `core.engine`. Everything here runs on the host's event loop; other threads hand in what
they have through its `poke`. Commands other than actions are carried out at once; an action waits at the *gate* until
the batch with its intent is durable, and is reported NOT_STARTED when that cannot be.

A fault of our own ends the healing and not the application: it is handed to `broke`, and from then on nothing is taken
in and nothing is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import ceil, floor, inf
from time import monotonic, time
from typing import Final, Protocol

from selfheal.core.engine import Engine
from selfheal.core.messages import (
    ActionFinished,
    CancelAction,
    CheckFinished,
    Command,
    Event,
    JournalChanged,
    RunAction,
    TimePassed,
    WokeLate,
)
from selfheal.core.model import Purpose, Settled, Verdict
from selfheal.core.records import Delivered, Record, dumps, encode
from selfheal.core.routing import DeliveryFinished
from selfheal.errors import JournalError
from selfheal.journal.store import Batch
from selfheal.shell.probes import ProbeRunner

GRID: Final = 0.010
"""Seconds between two instants at which the loop may wake for a due time: one wake-up starts a whole batch."""

SNAPSHOT_EVERY: Final = 2000
"""Records between two snapshots: what a start has to fold at the most."""

PULSE: Final = 0.5
"""Seconds after which the loop wakes at the latest while anything is under way: so long a standstill goes unnoticed.

Without it a suspended process whose next timer lies far ahead would believe the time-outs it finds on waking.
"""

STALLED: Final = 10.0
"""Seconds past its own appointment from which a loop counts as dead: whatever should have called it has ended."""

ROUNDS: Final = 2
"""Looks of one wake-up for results of checks which its own results have begun; then the host has its turn."""

LAST_WORDS: Final = (ActionFinished, JournalChanged)
"""Events that are still taken in while selfheal is stopping."""

RECENT: Final = 60.0
"""Seconds for which it is remembered how late the loop woke."""


class Store(Protocol):
    """What the loop asks of a journal: see `journal.Journal`."""

    @property
    def well(self) -> bool: ...

    @property
    def lost(self) -> int: ...

    def submit(
        self, batch: Batch, *, durable: bool, done: Callable[[JournalError | None], None] | None = None
    ) -> None: ...

    def save_snapshot(
        self, number: int, state: bytes, *, done: Callable[[JournalError | None], None] | None = None
    ) -> None: ...


class Hands(Protocol):
    """Who carries out commands."""

    def do(self, command: Command) -> None:
        """Begin what is commanded; never blocks. Its end is posted as an event."""


class Readers(Protocol):
    """Who reads the stream of records."""

    def publish(self, batch: Batch, *, volatile: bool) -> None:
        """Take in the records of a batch: stored, or `volatile` while the store is down."""

    def caught_up(self, count: int) -> None:
        """Hear that `count` more records, told as volatile before, are stored by now."""


class Loop:
    """Turns events into records and commands, on the host's event loop.

    `at` is the journal time of now, `number` the last batch stored before. `poke` runs a function on the host's loop
    from any thread. `sooner` asks the host to beat at a monotonic instant, if that is earlier than it planned.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        *,
        hands: Hands,
        readers: Readers,
        poke: Callable[[Callable[[], object]], object],
        probes: ProbeRunner,
        at: float,
        number: int,
        grid: float = GRID,
    ) -> None:
        self.engine = engine
        self.sooner: Callable[[float], None] = lambda _: None
        self.under_way: Callable[[], bool] = lambda: False
        self.broke: Callable[[Exception], None] = lambda _: None
        self.aside: Callable[[Callable[[], None]], object] = lambda work: work()
        self.within: Callable[[Callable[[], object]], object] = lambda work: work()
        """Does what a callback has to do, so that anyio knows what it runs on (see `backend`)."""
        self.broken: Exception | None = None
        """The fault of our own that has ended the healing."""
        self._lags: deque[tuple[int, float]] = deque()  # by the second, falling
        self._store = store
        self._hands = hands
        self._readers = readers
        self._poke = poke
        self._probes = probes
        self._grid = grid
        self._zero = monotonic() - at
        self._number = number
        self._closing = False
        self._inbox: deque[Event] = deque()
        self._quiet: deque[CheckFinished] = deque()  # older than anything in the inbox
        self._busy = False
        self._beating = False
        self._asked = inf
        self._gate: dict[int, list[RunAction]] = {}
        self._unstored: deque[Batch] = deque()
        self._untold: deque[Batch] = deque()  # the end of what is unstored
        self._never: set[int] = set()
        self._confirmed = number
        self._telling = False
        self._since_snapshot = 0
        self._well = store.well
        self._lost = store.lost

    # -- time --------------------------------------------------------------------------------------------------------

    def at(self, instant: float | None = None) -> float:
        """Return the journal time of a `time.monotonic` instant; of now without one."""
        return (monotonic() if instant is None else instant) - self._zero

    def from_unix(self, instant: float) -> float:
        """Return the journal time of a UNIX instant, by the clock as it stands now."""
        return self.at() - (time() - instant)

    def to_unix(self, at: float) -> float:
        """Return the UNIX time of a journal time, by the clock as it stands now."""
        return time() - (self.at() - at)

    def beat(self) -> float:
        """Do what is due; return when to be called next, in `time.monotonic` seconds."""
        self.contained(self._beat)
        return self._asked if self.broken is None else inf

    def _beat(self) -> None:
        began = now = monotonic()
        if self._closing:
            self._asked = inf
            return
        self._notice(now)
        self._asked = inf
        self._beating = True
        try:
            if self.engine.deadline <= now - self._zero:
                self.post(TimePassed(at=now - self._zero))
            for _ in range(ROUNDS):
                self._probes.expire(now)
                self._drain()
                first, now = self._probes.next_deadline(), monotonic()
                if first is None or first > now:
                    break  # else a result has begun another check, and that has ended: no wake-up for it
        finally:
            self._beating = False
        self._notice_ours(began)
        self._asked = self._next()

    @property
    def turning(self) -> bool:
        """Whether what is due is being done: no fault of ours has ended it, and it keeps its appointments."""
        return self.broken is None and monotonic() - self._asked < STALLED

    def contained(self, work: Callable[[], object]) -> None:
        """Do `work` of ours on the host's loop, unless we are broken; a fault in it breaks us and nobody else."""
        if self.broken is not None:
            return
        try:
            self.within(work)
        except Exception as problem:  # noqa: BLE001  # whatever it is, it is our fault and not the application's
            self.give_up(problem)

    def give_up(self, problem: Exception) -> None:
        """Take nothing in any more, because of a fault of our own."""
        if self.broken is None:
            self.broken = problem
            self._asked = inf
            self._inbox.clear()
            self._quiet.clear()
            self.broke(problem)

    def _next(self) -> float:
        """The first instant at which something is due: on the grid for the engine, as it is for the probes."""
        deadline = self.engine.deadline
        due = ceil(deadline / self._grid - 1e-6) * self._grid + self._zero if deadline < inf else inf
        probes = self._probes.next_deadline()
        if probes is not None and probes < due:
            due = probes
        now = monotonic()
        if due > now + PULSE and self.under_way():
            return now + PULSE
        return max(due, now)

    def _notice(self, now: float) -> None:
        """Were we late? Say so before anything else of this moment, so that it is not held against a service."""
        late = now - self._asked
        if late <= 0.0:
            return
        self._lagged(now, late)
        if late > self.engine.ledger.fleet.limits.late_after:
            self._notice_late(now, late)

    def _notice_late(self, now: float, late: float) -> None:
        self._lagged(now, late)
        self._asked = inf
        self._inbox.appendleft(WokeLate(at=now - self._zero, late=late))
        self._drain()

    def _lagged(self, now: float, late: float) -> None:
        """Remember how late we were, by the second, and forget what a later one has outdone."""
        second = floor(now)
        if self._lags and self._lags[-1][0] == second:
            late = max(late, self._lags.pop()[1])
        while self._lags and self._lags[-1][1] <= late:
            self._lags.pop()
        self._lags.append((second, late))
        self._forget_lags(now)

    @property
    def lag(self) -> float:
        """The latest the loop has woken within the last minute, in seconds."""
        self._forget_lags(monotonic())
        return self._lags[0][1] if self._lags else 0.0

    def _forget_lags(self, now: float) -> None:
        while self._lags and self._lags[0][0] < now - RECENT:
            self._lags.popleft()

    def _notice_ours(self, began: float) -> None:
        """Did our own work take so long, or was the process suspended in the middle of it? That is late as well."""
        now = monotonic()
        if now - began > self.engine.ledger.fleet.limits.late_after:
            self._notice_late(now, now - began)

    # -- events ------------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Take an event in, on the host's loop. It is dealt with now, or after the one that is being dealt with.

        A routine check that passed waits for a wake-up that comes within a step of the grid anyway, or for the next
        event that does not: so a busy fleet's checks begin in batches, and not each with the end of another.
        """
        if self.broken is None and (not self._closing or isinstance(event, LAST_WORDS)):
            if not self._busy and isinstance(event, CheckFinished) and self._may_wait(event):
                self._quiet.append(event)
                return
            self._inbox.append(event)
            if not self._busy:
                self.contained(self._take_in)

    def _may_wait(self, event: CheckFinished) -> bool:
        if event.result.verdict is not Verdict.PASSING or event.purpose is not Purpose.ROUTINE:
            return False
        return self._beating or 0.0 < self._asked - self._zero - event.at <= self._grid

    def _take_in(self) -> None:
        began = monotonic()
        self._notice(began)
        self._drain()
        if not self._beating:
            self._notice_ours(began)

    def _drain(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self._quiet or self._inbox:
                self._feed(self._quiet.popleft() if self._quiet else self._inbox.popleft())
        finally:
            self._busy = False
        self.hurry()

    def hurry(self) -> None:
        """Something may be due sooner than was planned: plan anew."""
        if self._busy or self._beating or self.broken is not None:
            return
        due = self._next()
        if due < self._asked:
            self._asked = due
            self.sooner(due)

    def _feed(self, event: Event) -> None:
        if isinstance(event, JournalChanged):
            self._journal_changed(event)
        output = self.engine.receive(event)
        quick = isinstance(event, TimePassed)
        if output.records:
            actions = [command for command in output.commands if isinstance(command, RunAction)]
            self._store_batch(None if quick else event, event.at, output.records, actions)
        elif not quick:
            self._store_batch(event, event.at, (), [])
        for command in output.commands:
            if isinstance(command, RunAction):
                continue
            if isinstance(command, CancelAction) and self._turn_away(command.intent, "cancelled before it began"):
                continue
            self._hands.do(command)

    def note(self, records: Iterable[Record], cause: DeliveryFinished | None = None) -> None:
        """Store records of the router, and the outcome of a delivery that caused them, in a batch of their own."""
        self.contained(self._drain)  # a fault in it is ours, not the reader's whose word this is
        said = tuple(records)
        at = max([self.engine.ledger.at, *(record.at for record in said)])
        for record in said:
            self.engine.ledger.apply(record)
        if said or cause is not None:
            self._store_batch(cause, at, said, [])

    def _store_batch(
        self, event: Event | DeliveryFinished | None, at: float, records: tuple[Record, ...], actions: list[RunAction]
    ) -> None:
        self._number += 1
        number = self._number
        wall = time() - (monotonic() - self._zero - at)
        batch = Batch(number=number, at=at, wall=wall, input=event, records=records)
        if not records:
            self._store.submit(batch, durable=False)
            return
        if actions:
            self._gate[number] = actions
        self._unstored.append(batch)
        self._untold.append(batch)
        self._since_snapshot += len(records)
        self._store.submit(batch, durable=_matters(records), done=lambda error: self._heard(number, error))
        if not self._well:
            self._publish_volatile()
            if self.engine.ledger.fleet.limits.act_without_journal:
                self._open(number)
        if self._since_snapshot >= SNAPSHOT_EVERY or self._store.lost > self._lost:
            # After a loss only a snapshot makes what is stored whole again.
            self._lost = self._store.lost
            self.save_snapshot()

    def save_snapshot(self) -> None:
        """Store the decided state as it is now, so that the next start folds less.

        Writing five hundred services down takes 50 ms: that is done `aside`.
        """
        self._since_snapshot = 0
        number, image = self._number, self.engine.snapshot(self._number)
        self.aside(lambda: self._store.save_snapshot(number, dumps(encode(image))))

    # -- the gate ----------------------------------------------------------------------------------------------------

    def _heard(self, number: int, error: JournalError | None) -> None:
        """The store has something to say of a batch; called on any thread."""
        self._poke(lambda: self.contained(lambda: self._stored(number, error)))

    def _stored(self, number: int, error: JournalError | None) -> None:
        if error is None:
            self._confirmed = max(self._confirmed, number)
            self._publish_stored()
            self._open(number)
        else:
            self._never.add(number)
            self._publish_stored()
            self._refuse(number, str(error))

    def _publish_stored(self) -> None:
        """Tell what the store has by now, in order; what it will never have is told as volatile in its place."""
        while self._unstored:
            batch = self._unstored[0]
            lost = batch.number in self._never
            if batch.number > self._confirmed and not lost:
                return
            self._unstored.popleft()
            self._never.discard(batch.number)
            if self._untold and self._untold[0] is batch:
                self._untold.popleft()
                self._readers.publish(batch, volatile=lost)
            elif not lost:
                self._readers.caught_up(len(batch.records))

    def _open(self, number: int) -> None:
        for command in self._gate.pop(number, ()):
            self._hands.do(command)

    def _refuse(self, number: int, why: str) -> None:
        for command in self._gate.pop(number, ()):
            self._not_started(command, why)

    def _not_started(self, command: RunAction, why: str) -> None:
        self.post(ActionFinished(at=self.at(), intent=command.intent, settled=Settled.NOT_STARTED, detail=why))

    def _turn_away(self, intent: str, why: str) -> bool:
        """Let an action that still waits at the gate not start; returns whether there was one."""
        for commands in self._gate.values():
            for command in commands:
                if command.intent == intent:
                    commands.remove(command)
                    self._not_started(command, why)
                    return True
        return False

    def _journal_changed(self, event: JournalChanged) -> None:
        """While the store is down records go out marked, and nothing that waits for it starts."""
        self._well = event.well
        if event.well:
            return
        self._publish_volatile()
        for number in tuple(self._gate):
            if self.engine.ledger.fleet.limits.act_without_journal:
                self._open(number)
            else:
                self._refuse(number, f"its intent could not be stored: {event.detail}")

    def _publish_volatile(self) -> None:
        """Tell everything not told yet, in order. A reader may cause more: that is told after what it has heard."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._untold:
                self._readers.publish(self._untold.popleft(), volatile=True)
        finally:
            self._telling = False

    def close(self) -> None:
        """Let nothing start any more, nor be decided: selfheal is stopping. Only the ends of actions are taken in."""
        self.contained(self._drain)  # what has ended before is stored
        self._closing = True
        self._asked = inf
        for number in tuple(self._gate):
            self._refuse(number, "selfheal was stopped")


def _matters(records: tuple[Record, ...]) -> bool:
    """Whether a batch must reach the disk now; receipts of messages may wait for the next flush."""
    return not all(isinstance(record, Delivered) for record in records)
