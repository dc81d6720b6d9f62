"""Events in, commands out: nothing else crosses the wall of the core.

Owns the three closed unions of the engine's doors and the `Output` of one event. `at` is *journal time*: seconds
that go on over restarts by elapsed wall time and never go back. UTC is only stamped into batches by the host.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

from selfheal.core.model import CheckResult, Fleet, Instance, Purpose, Settled
from selfheal.core.records import Record

# -- events: what happened, in the past tense -----------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Started:
    """The first event of every run. `resumes` is the time of the last durable batch: the dead run lived until then."""

    at: float
    resumes: float = 0.0
    fleet: Fleet


@attrs.frozen(kw_only=True)
class TimePassed:
    """A wake-up. It carries nothing a replay needs and is never stored."""

    at: float


@attrs.frozen(kw_only=True)
class WokeLate:
    """The host's self-doubt: the loop woke `late` seconds after it should have. Overdue timers move to `at`."""

    at: float
    late: float


@attrs.frozen(kw_only=True)
class CheckFinished:
    """A check has ended. `started` and `ended` were stamped where it ran; latency is their difference.

    `instance` is what `inspect` said before it: None where nobody asked or there is no workload.
    """

    at: float
    service: str
    generation: int
    purpose: Purpose
    started: float
    ended: float
    result: CheckResult
    instance: Instance | None = None


@attrs.frozen(kw_only=True)
class ActionFinished:
    """An action, or the settling of one whose manager died, has ended."""

    at: float
    intent: str
    settled: Settled
    detail: str = ""


@attrs.frozen(kw_only=True)
class WatchReported:
    """A workload's `watch` says who runs now, or (`instance` None) a kept connection died at rest: look at once."""

    at: float
    service: str
    instance: Instance | None = None


@attrs.frozen(kw_only=True)
class Requested:
    """A person's act. `id` makes it idempotent; `scopes` are those of the caller; the rest are the act's parameters."""

    at: float
    id: str
    act: str
    service: str = ""
    actor: str
    reason: str
    scopes: frozenset[str] = frozenset()
    services: tuple[str, ...] = ()
    everything: bool = False
    duration: float | None = None
    override: frozenset[str] = frozenset()
    suppression: str = ""
    hold: str = ""
    action: str = ""


@attrs.frozen(kw_only=True)
class FleetProposed:
    """A new fleet, by reload or by registering at run time. Refused when it drops too much and is not `confirmed`."""

    at: float
    id: str
    actor: str
    reason: str = ""
    fleet: Fleet
    confirmed: bool = False


@attrs.frozen(kw_only=True)
class WindowChanged:
    """A recurring maintenance window of the calendar opened (until `until`) or closed."""

    at: float
    window: str
    services: tuple[str, ...] = ()
    everything: bool = False
    active: bool
    until: float


@attrs.frozen(kw_only=True)
class JournalChanged:
    """The store stopped answering, or answers again."""

    at: float
    well: bool
    detail: str = ""


Event: TypeAlias = (
    Started
    | TimePassed
    | WokeLate
    | CheckFinished
    | ActionFinished
    | WatchReported
    | Requested
    | FleetProposed
    | WindowChanged
    | JournalChanged
)

# -- commands: what the host must do, in the imperative -------------------------------------------------------------


@attrs.frozen(kw_only=True)
class RunCheck:
    """Check a service (or a canary, `canary:<name>`) now; with `inspect`, first ask its workload who runs."""

    service: str
    generation: int
    purpose: Purpose
    inspect: bool = False


@attrs.frozen(kw_only=True)
class RunAction:
    """Run one step, once its intent is durable, if the instance is still the `expected` one."""

    intent: str
    service: str
    step: int
    expected: str | None
    timeout: float


@attrs.frozen(kw_only=True)
class CancelAction:
    """Stop a running action; its end is still reported."""

    intent: str


@attrs.frozen(kw_only=True)
class Settle:
    """Find out what became of an intent whose manager died."""

    intent: str


Command: TypeAlias = RunCheck | RunAction | CancelAction | Settle


@attrs.frozen
class Output:
    """What one event caused. The host stores the records; a `RunAction` may run only once they are durable."""

    records: tuple[Record, ...] = ()
    commands: tuple[Command, ...] = ()


NOTHING: Final = Output()
