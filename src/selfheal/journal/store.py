"""The interface of a store, and the values that go in and come out.

Owns `Batch` (one input with the records it caused) and what reading gives back. A store is blocking and used by one
writer thread (`writer.Journal`); its reading half may be used from any thread. Times called `at` are journal time,
times called `wall`, `since` and `until` are UNIX time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import exp, inf, log
from typing import Final, Protocol, TypeAlias, runtime_checkable

import attrs

from selfheal.core.messages import CheckFinished, Event
from selfheal.core.model import Incident
from selfheal.core.records import Record
from selfheal.core.routing import DeliveryFinished

Input: TypeAlias = Event | DeliveryFinished
"""What may have caused a batch: an event of the engine, or an input of the router."""

CrashPoint: TypeAlias = Callable[[str], None]
"""Called with the name of each point at which a kill must do no harm; tests kill the process there."""


def no_crash(point: str) -> None:
    """Do nothing: the crash point of everybody but the tests."""


@attrs.frozen(kw_only=True)
class Batch:
    """One input and the records it caused. `number` grows by one with each; a gap is a loss that was reported.

    `input` is None for records that only time caused, and, with `input_expired`, where retention has removed it.
    """

    number: int
    at: float
    wall: float
    input: Input | None = None
    records: tuple[Record, ...] = ()
    input_expired: bool = False


@attrs.frozen(kw_only=True)
class StoredRecord:
    """A record with its place. `seq` is gap-free from 1; `wall` is when it happened, restored from its batch."""

    seq: int
    number: int
    wall: float
    record: Record


@attrs.frozen(kw_only=True)
class StoredResult:
    """One raw result, whether it was stored by itself or in a run."""

    number: int
    wall: float
    finished: CheckFinished


@attrs.frozen(kw_only=True)
class Last:
    """Where a journal ends. All zero when it holds nothing."""

    number: int = 0
    seq: int = 0
    at: float = 0.0
    wall: float = 0.0


@attrs.frozen(kw_only=True)
class Snapshot:
    """A state that somebody folded: all records up to `seq` (those of batch `number` included) are in it."""

    number: int
    seq: int
    state: bytes


@attrs.frozen(kw_only=True)
class Fault:
    """One thing `verify` found: the exact row, and what is wrong with it."""

    table: str
    row: int
    problem: str

    def __str__(self) -> str:
        return f"{self.table} {self.row}: {self.problem}"


@attrs.frozen(kw_only=True)
class Verification:
    """What `verify` read and found. `seal` is the hash at the end: kept elsewhere, it proves this journal later."""

    records: int
    batches: int
    faults: tuple[Fault, ...] = ()
    seal: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing was found."""
        return not self.faults


BUCKETS: Final = log(1.1)
"""Width of a latency bucket: each ends 10 % above its beginning, so a quantile is within 5 % of the truth."""


@attrs.frozen(kw_only=True)
class Rollup:
    """One hour of one service. `hour` is the UNIX time it began; latencies are of passing and warning checks.

    `observed` is how many seconds of the hour lay between two results with no restart, sleep or disabling between
    them. `buckets` counts latencies by `ceil(log(seconds) / log(1.1))`.
    """

    service: str
    hour: float
    passing: int = 0
    warning: int = 0
    failing: int = 0
    inconclusive: int = 0
    observed: float = 0.0
    latency_min: float = inf
    latency_max: float = 0.0
    latency_sum: float = 0.0
    buckets: Mapping[int, int] = attrs.field(factory=dict)

    @property
    def latency_mean(self) -> float | None:
        """Seconds; None where nothing passed."""
        served = self.passing + self.warning
        return self.latency_sum / served if served else None

    def latency_quantile(self, share: float) -> float | None:
        """Return the latency that `share` (0 to 1) of the checks stayed within, to 5 %; None where nothing passed."""
        rank = share * sum(self.buckets.values())
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return min(max(exp((bucket - 0.5) * BUCKETS), self.latency_min), self.latency_max)
        return None


@runtime_checkable
class Reader(Protocol):
    """The reading half of a store, for views, replay and audit. Usable from any thread."""

    def last(self) -> Last:
        """Return where the journal ends."""

    def records(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        service: str | None = None,
        kinds: Collection[str] | None = None,
        incident: int | None = None,
        newest_first: bool = False,
    ) -> list[StoredRecord]:
        """Return at most `limit` records with `after < seq < before`; an empty `kinds` selects none."""

    def batches(self, *, after: int = 0) -> Iterator[Batch]:
        """Yield the batches with a number above `after`, in order, as of when the reading began."""

    def results(self, service: str, *, since: float = -inf, until: float = inf) -> Iterator[StoredResult]:
        """Yield the raw results of a service from `since` to before `until` (UNIX time), in order."""

    def rollups(self, service: str, *, since: float = -inf, until: float = inf) -> list[Rollup]:
        """Return the hours of a service that began from `since` to before `until` and are over, in order."""

    def replayable_from(self) -> int | None:
        """Return the number of the first batch from which the journal can be replayed (a `Started`), if any."""

    def load_snapshot(self) -> tuple[Snapshot | None, str]:
        """Return the newest snapshot that is intact, and what was wrong with one that is not ("" if nothing)."""

    def verify(self) -> Verification:
        """Check every row against the chain, and the end against the head kept outside."""


@runtime_checkable
class Store(Reader, Protocol):
    """Where a journal is kept. The writing half blocks, belongs to one thread, and raises `JournalError`.

    `trouble` says what is wrong though everything is stored; usually it is empty.
    """

    trouble: str

    def append(self, batches: Sequence[Batch], *, durable: bool) -> Mapping[int, str]:
        """Store batches, all or none; with `durable` they survive a power cut when this returns.

        Batches whose number is stored already are passed over, so an append that failed may be repeated. Returns
        the numbers of the batches that have no stored form, with the reason; those were left out.
        """

    def save_snapshot(self, number: int, state: bytes) -> None:
        """Store a snapshot of everything up to batch `number`; only the newest two are kept."""

    def tend(self) -> bool:
        """Roll up, pack and expire a slice of old results; return whether there is more to do at once."""

    def derive(self, purpose: str) -> bytes:
        """Return 32 secret bytes for a purpose; the same for as long as this journal lives."""

    def close(self) -> None:
        """Close it; the lock is released last. Twice does no harm."""


def incident_of(record: Record) -> int | None:
    """Return the number of the incident a record belongs to."""
    about = getattr(record, "incident", None)
    if about is None:
        about = getattr(getattr(record, "alert", None) or getattr(record, "after", None), "incident", None)
    return about.number if isinstance(about, Incident) else about


def selected(record: StoredRecord, *, service: str | None, kinds: Collection[str] | None, incident: int | None) -> bool:
    """Whether a record is of this service, one of these kinds, and this incident; None selects all."""
    return (
        (service is None or getattr(record.record, "service", "") == service)
        and (kinds is None or record.record.kind in kinds)
        and (incident is None or incident_of(record.record) == incident)
    )
