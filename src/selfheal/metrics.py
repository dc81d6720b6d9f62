"""Metrics: what is live at a moment and what was counted, as families of samples, and how each format writes them.

Owns the names, the kinds and the help of every family, the escaping of labels, and how the count keeps in step with
the journal. Nothing here is a second truth: states come from the ledger, all that is counted from the records.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypeAlias

import attrs

from selfheal import outages
from selfheal.analytics import tally
from selfheal.analytics.repairs import Outcome
from selfheal.analytics.tally import BOUNDS, Tally
from selfheal.core.ledger import Ledger
from selfheal.core.model import Evidence, Severity, State
from selfheal.errors import JournalError
from selfheal.journal.store import Last, Reader, StoredRecord
from selfheal.outages import Alerts, Outages

log = logging.getLogger("selfheal")

CONTENT_TYPES: Final[Mapping[str, str]] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
"""What each written format calls itself over HTTP; `data` is the third, and is plain data."""

HOLDS: Final = ("storm", "canary", "doubt", "journal", "fleet")
"""The holds that are shown while they are off, too."""

FORMATS: Final = ("text", "openmetrics", "data")

KINDS: Final = tuple(sorted({*tally.KINDS, *outages.KINDS}))
"""The records that are taken into account."""

PAGE: Final = 1000
"""Records that are read at a time."""

PATIENCE: Final = 2.0
"""Seconds an answer waits for the first reading of a long journal; until that is done nothing counted is shown."""

BRIEFLY: Final = 0.1
"""Seconds it waits where it stands on the engine's loop."""

Labels: TypeAlias = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One number. A large fleet has tens of thousands in a scrape: hence a tuple."""

    labels: Labels
    value: float


class Spread(NamedTuple):
    """A histogram of one set of labels: how many were at most each bound, and the sum of all."""

    labels: Labels
    sums: tuple[int, ...]
    total: float


@attrs.frozen(kw_only=True)
class Family:
    """A metric with its samples, under the name of the text format (a counter's ends in `_total`).

    `kind` is `counter`, `gauge` or `histogram`; a histogram has `spreads` and no `samples`.
    """

    name: str
    kind: str
    about: str
    samples: Sequence[Sample] = ()
    spreads: Sequence[Spread] = ()


# -- what is live ------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Moment:
    """What is live, copied on the engine's thread so that all the rest may happen in any.

    `running`: whether the engine turns; None where that is not known here.
    """

    running: bool | None
    states: Mapping[str, State]
    ladders: Mapping[str, tuple[str, ...]]
    checks: Mapping[str, tuple[int, float | None]]
    alerts: Mapping[str, int]
    holds: frozenset[str]
    incidents: int

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        evidence_of: Callable[[str], Evidence | None] = lambda name: None,
        running: bool | None = None,
    ) -> Moment:
        """Copy it."""
        seen = {name: evidence for name in ledger.policies if (evidence := evidence_of(name)) is not None}
        return cls(
            running=running,
            states={name: ledger.conditions[name].state for name in ledger.policies},
            ladders={name: tuple(step.action for step in policy.steps) for name, policy in ledger.policies.items()},
            checks={name: (evidence.checks, evidence.latency) for name, evidence in seen.items()},
            alerts=Counter(alert.severity.value for alert in ledger.alerts.values()),
            holds=frozenset(ledger.holds),
            incidents=len(ledger.incidents),
        )


def live(moment: Moment) -> Iterator[Family]:
    """Yield the families of what is live."""
    every = [(state, ("state", state.value)) for state in State]
    states = [
        Sample((service, label), int(now is state))
        for service, now in ((("service", name), now) for name, now in moment.states.items())
        for state, label in every
    ]
    about = "Whether a service is in a state (1) or not (0)."
    yield Family(name="service_health_status", kind="gauge", about=about, samples=states)
    yield Family(name="selfheal_service_state", kind="gauge", about=about, samples=states)
    yield Family(
        name="selfheal_checks_total",
        kind="counter",
        about="Checks of a service in this run.",
        samples=tuple(Sample((("service", name),), checks) for name, (checks, _) in moment.checks.items()),
    )
    yield Family(
        name="selfheal_check_latency_seconds",
        kind="gauge",
        about="Latency of the last check that concluded something.",
        samples=tuple(
            Sample((("service", name),), round(latency, 6))
            for name, (_, latency) in moment.checks.items()
            if latency is not None
        ),
    )
    yield Family(
        name="selfheal_alerts_open",
        kind="gauge",
        about="Open alerts.",
        samples=tuple(Sample((("severity", one.value),), moment.alerts.get(one.value, 0)) for one in Severity),
    )
    yield Family(
        name="selfheal_hold",
        kind="gauge",
        about="Whether a hold on the fleet is on (1) or not (0).",
        samples=tuple(
            Sample((("hold", hold),), int(hold in moment.holds))
            for hold in dict.fromkeys((*HOLDS, *sorted(moment.holds)))
        ),
    )
    yield Family(
        name="selfheal_incidents_open",
        kind="gauge",
        about="Open incidents.",
        samples=(Sample((), moment.incidents),),
    )
    if moment.running is not None:
        yield Family(
            name="selfheal_running",
            kind="gauge",
            about="Whether selfheal's engine turns (1) or nothing is watched (0).",
            samples=(Sample((), int(moment.running)),),
        )


# -- what is counted ---------------------------------------------------------------------------------------------------


def counted(moment: Moment, count: Tally, at: float) -> Iterator[Family]:
    """Yield the families of what is counted up to `at`, in journal time, of the services that there are."""
    yield Family(
        name="recovery_attempts_total",
        kind="counter",
        about="Steps taken to recover a service, by what checks said afterwards.",
        samples=list(_attempts(moment, count)),
    )
    yield Family(
        name="recovery_duration_seconds",
        kind="histogram",
        about="Time from the start of a step until checks proved the service well.",
        spreads=[
            Spread((("service", service), ("action", action)), tuple(accumulate(durations.counts)), durations.total)
            for (service, action), durations in count.durations.items()
            if service in moment.states
        ],
    )
    uptimes = {name: count.uptime(name, at) for name in moment.states}
    yield Family(
        name="service_uptime_percentage",
        kind="gauge",
        about="Share of its observed time that a service was up, 0 to 100; absent while there is none.",
        samples=tuple(Sample((("service", name),), 100.0 * up) for name, up in uptimes.items() if up is not None),
    )


def _attempts(moment: Moment, count: Tally) -> Iterator[Sample]:
    """Yield a sample for each that was counted, and zero for what may be: an increase from nothing is none."""
    expected = {
        (service, action, outcome.value): 0
        for service, ladder in moment.ladders.items()
        for action in ladder
        if action != "manual_intervention"  # people are no attempt
        for outcome in (Outcome.SUCCESS, Outcome.FAILURE)
    }
    found = {key: number for key, number in count.attempts.items() if key[0] in moment.states}
    for (service, action, result), number in {**expected, **found}.items():
        yield Sample((("service", service), ("action", action), ("result", result)), number)


@attrs.define(kw_only=True)
class Account:
    """What the records of a journal add up to, and where it ended when it did."""

    tally: Tally = attrs.field(factory=Tally)
    outages: Outages = attrs.field(factory=Outages)
    alerts: Alerts = attrs.field(factory=Alerts)
    last: Last = attrs.field(factory=Last)

    def take(self, stored: StoredRecord) -> None:
        """Take in the next record."""
        self.tally.take(stored.record)
        self.outages.take(stored)
        self.alerts.take(stored)


class Metering:
    """Keeps an account in step with a journal. Every method may be called from any thread.

    For a scrape it reads in a thread of its own: the first reading of a long journal takes a while, and a disk may
    answer late. Until the first is done nothing that is counted is shown, because half a count looks like a counter
    that was reset. Who asks for the account itself waits for it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._account = Account()
        self._seq = 0
        self._whole = False
        self._over = False
        self._counting = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """Stop reading."""
        self._over = True

    def families(self, moment: Moment, *, patience: float = PATIENCE) -> list[Family]:
        """Return every family; blocks for a few milliseconds, and for at most twice `patience` seconds."""
        self._begin().join(patience)
        found = list(live(moment))
        if self._whole and self._counting.acquire(timeout=patience):
            try:
                # Up to where the journal ends: nobody was observed for longer than is stored.
                found[:0] = counted(moment, self._account.tally, self._account.last.at)
            finally:
                self._counting.release()
        return found

    @contextmanager
    def account(self) -> Iterator[Account]:
        """Give the account as of now, which stands still meanwhile; blocks. Raises `JournalError`.

        What was read for an earlier answer is not read again.
        """
        while not self._page():
            pass
        with self._counting:
            while not self._read():
                pass
            yield self._account

    def _begin(self) -> threading.Thread:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._read_on, name="selfheal-metrics", daemon=True)
                self._thread.start()
            return self._thread

    def _read_on(self) -> None:
        try:
            while not self._over and not self._page():
                pass
        except JournalError as problem:
            if not self._over:
                log.warning("metrics go on with what was counted so far: %s", problem)
        else:
            self._whole = self._whole or not self._over

    def _page(self) -> bool:
        """Take in a page of records; return whether it was the last."""
        with self._counting:
            return self._read()

    def _read(self) -> bool:
        last = self._reader.last()
        # A stretch of numbers and not "the next thousand of these kinds": for that, SQLite sorts all that follow.
        until = min(self._seq + PAGE, last.seq)
        for stored in self._reader.records(after=self._seq, before=until + 1, kinds=KINDS, limit=PAGE):
            self._account.take(stored)
        self._seq, self._account.last = max(self._seq, until), last
        return self._seq >= last.seq


# -- how it is written -------------------------------------------------------------------------------------------------

_BOUNDS: Final = (*map(repr, BOUNDS), "+Inf")


def written(families: Iterable[Family], form: str = "text") -> Any:
    """Return families in a format: `text` (Prometheus 0.0.4), `openmetrics` (1.0.0) or `data`, which is plain data."""
    if form == "data":
        return {family.name: _data(family) for family in families}
    return _text(families, modern=form == "openmetrics")


def _text(families: Iterable[Family], *, modern: bool) -> str:
    lines: list[str] = []
    for family in families:
        name = family.name
        base = name.removesuffix("_total") if modern else name
        lines += [f"# HELP {base} {_help(family.about, modern=modern)}", f"# TYPE {base} {family.kind}"]
        if modern and name.endswith("_seconds"):
            lines.append(f"# UNIT {base} seconds")
        lines += [
            f"{name}{{{_inner(labels)}}} {value!r}" if labels else f"{name} {value!r}"
            for labels, value in family.samples
        ]
        for labels, sums, total in family.spreads:
            inner = _inner(labels)
            lines += [
                f'{name}_bucket{{{inner},le="{bound}"}} {number}' for bound, number in zip(_BOUNDS, sums, strict=True)
            ]
            lines += [f"{name}_count{{{inner}}} {sums[-1]}", f"{name}_sum{{{inner}}} {total!r}"]
    if modern:
        lines.append("# EOF")
    lines.append("")
    return "\n".join(lines)


def _inner(labels: Labels) -> str:
    return ",".join([f'{name}="{_quoted(value)}"' for name, value in labels])


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _help(text: str, *, modern: bool) -> str:
    return _quoted(text) if modern else text.replace("\\", r"\\").replace("\n", r"\n")


def _data(family: Family) -> dict[str, Any]:
    samples: list[dict[str, Any]] = [{"labels": dict(labels), "value": value} for labels, value in family.samples]
    for labels, sums, total in family.spreads:
        own = dict(labels)
        samples += [
            {"name": f"{family.name}_bucket", "labels": {**own, "le": bound}, "value": number}
            for bound, number in zip(_BOUNDS, sums, strict=True)
        ]
        samples.append({"name": f"{family.name}_count", "labels": own, "value": sums[-1]})
        samples.append({"name": f"{family.name}_sum", "labels": own, "value": total})
    return {"help": family.about, "type": family.kind, "samples": samples}


_RANGES: Final[Mapping[str, tuple[str, ...]]] = {
    "text": ("text/plain", "text/*", "*/*"),
    "openmetrics": ("application/openmetrics-text", "application/*", "*/*"),
    "data": ("application/json", "application/*", "*/*"),
}
"""What an `Accept` header may call each format, from the most particular."""


def chosen(accept: str, offered: Sequence[str] = ("text", "openmetrics")) -> str:
    """Return the format that an `Accept` header prefers of those offered; the first where it prefers none.

    Who accepts nothing that is offered gets the first as well: a scraper that says nonsense is better served than not.
    """
    asked = dict(_quality(part) for part in reversed(accept.lower().split(",")) if part.strip())
    return max(offered, key=lambda form: next((asked[one] for one in _RANGES[form] if one in asked), 0.0))


def _quality(part: str) -> tuple[str, float]:
    kind, *rest = [piece.strip() for piece in part.split(";")]
    for piece in rest:
        if piece.startswith("q="):
            try:
                return kind, min(1.0, max(0.0, float(piece[2:])))
            except ValueError:
                return kind, 0.0
    return kind, 1.0
