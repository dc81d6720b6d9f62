"""The nouns of the core: plain frozen values, no plugin object, no URL, no secret.

Owns every word of the glossary that the engine decides with: the states, verdicts and causes, the policy of one
service with all of its defaults, the fleet with its limits, what is decided about a service (`Condition`) and what
was observed of it (`Evidence`). All durations are seconds; all instants are journal time (see `messages`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from math import inf, isfinite
from typing import Final, TypeAlias

import attrs

from selfheal.core.bounds import number, seconds, share, whole

Scalar: TypeAlias = "str | int | float | bool | None"


class State(StrEnum):
    """What is decided about a service. The legal moves between them are `machine.TRANSITIONS`."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    FAILED = "failed"
    RECOVERING = "recovering"
    DISABLED = "disabled"


class Verdict(StrEnum):
    """What one check concluded. INCONCLUSIVE counts neither as a failure nor as a success."""

    PASSING = "passing"
    WARNING = "warning"
    FAILING = "failing"
    INCONCLUSIVE = "inconclusive"


class Cause(StrEnum):
    """Why a check did not pass; it selects which steps may be taken."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    DNS = "dns"
    STARTING = "starting"
    OVERLOADED = "overloaded"
    FULL = "full"
    READ_ONLY = "read_only"
    DEGRADED_CLUSTER = "degraded_cluster"
    EXITED = "exited"
    AUTH = "auth"
    CONFIG = "config"
    ERROR = "error"


NEVER_RESTART: Final = frozenset({Cause.AUTH, Cause.CONFIG})
"""Causes that a restart cannot cure and must not be tried on (law 7)."""

NOT_CURED: Final = frozenset({Cause.STARTING, Cause.DNS, Cause.FULL, Cause.READ_ONLY})
"""Causes that a restart does not cure, and may make worse: it is tried where a step names them (`only_for`), or where
nothing of the service runs. A database that recovers from its log would begin to recover anew."""

INSPECTION_FAILED: Final = "inspection failed"
"""How the detail of a hold begins that waits for somebody to mend the way to a workload."""


class Run(StrEnum):
    """How a workload stands. `STOPPED` means a person stopped it; `EXITED` that it ended by itself."""

    RUNNING = "running"
    STARTING = "starting"
    EXITED = "exited"
    STOPPED = "stopped"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Effect(StrEnum):
    """How much a step disturbs: `GENTLE` nothing, `DISRUPTIVE` users for a while, `DESTRUCTIVE` data."""

    GENTLE = "gentle"
    DISRUPTIVE = "disruptive"
    DESTRUCTIVE = "destructive"


class Settled(StrEnum):
    """What became of an intent."""

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    SUPERSEDED = "superseded"
    NOT_STARTED = "not_started"
    INTERRUPTED = "interrupted"
    IN_DOUBT = "in_doubt"


class Purpose(StrEnum):
    """Why a check runs."""

    ROUTINE = "routine"
    PARENT = "parent"
    BEFORE_STEP = "before_step"
    VERIFY = "verify"


class Severity(StrEnum):
    """The four severities of the specification."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Priority(IntEnum):
    """Who gets a free slot first. Files write the lower-case name."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2


class DependencyKind(StrEnum):
    """How strongly a service needs its parent: `HARD` waits for it, `SOFT` only mentions it."""

    HARD = "hard"
    SOFT = "soft"


class WhenDisabled(StrEnum):
    """What a dependent does while a parent is DISABLED: act as if it were well, or wait."""

    PROCEED = "proceed"
    WAIT = "wait"


# -- what one check and one inspection say --------------------------------------------------------------------------


@attrs.frozen
class CheckResult:
    """What one check found. Latency is stamped beside it by the runner, so a plain PASSING stays one object.

    `summary` is one line for people, `details` small facts worth showing, `instance` the server's own run id (it
    counts only where there is no workload), `definite` true when the failure needs no repetition to be believed.
    """

    verdict: Verdict
    cause: Cause | None = attrs.field(default=None, kw_only=True)
    summary: str = attrs.field(default="", kw_only=True)
    details: Mapping[str, Scalar] = attrs.field(factory=dict, kw_only=True)
    instance: str | None = attrs.field(default=None, kw_only=True)
    definite: bool = attrs.field(default=False, kw_only=True)


PASSING: Final = CheckResult(Verdict.PASSING)
"""The one object an ordinary passing check returns."""


@attrs.frozen(kw_only=True)
class Instance:
    """Who runs a service now. Only `id` is compared: it names the incarnation (law 17).

    `since` is when this incarnation began: UNIX time from a plugin, restated in journal time by the runner before
    the engine sees it. `count` is how many copies run.
    """

    id: str
    run: Run
    since: float | None = None
    count: int = 1
    detail: str = ""


# -- policy ---------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Backoff:
    """How long to wait after the n-th attempt: `min(cap, initial * multiplier**(n-1))`, less up to `jitter` of it.

    `jitter` 0.5 is equal jitter (a guaranteed half, the rest drawn): for repairs it needs 12–25 % fewer actions than
    full jitter at the same lateness (measured by simulation). 0 is none. `forget_after` seconds of health reset n,
    as the kubelet does after ten minutes.
    """

    initial: float = seconds(10.0)
    multiplier: float = attrs.field(default=2.0, validator=number(1.0, 100.0))
    cap: float = seconds(300.0)
    jitter: float = share(0.5)
    forget_after: float = seconds(600.0)


@attrs.frozen(kw_only=True)
class Budget:
    """At most `limit` in any window of `per` seconds. A cooldown of c seconds is `Budget(limit=1, per=c)`."""

    limit: int = whole(3)
    per: float = seconds(3600.0, 0.001)


@attrs.frozen(kw_only=True)
class Window:
    """N failures within the last M checks: the alternative to consecutive failures, which 1-0-1-0 never meets."""

    failures: int = whole(3, 1, 64)
    checks: int = whole(5, 1, 64)

    def __attrs_post_init__(self) -> None:
        if self.failures > self.checks:
            raise ValueError(f"failures: {self.failures} of {self.checks} can never be; give at most {self.checks}")


@attrs.frozen(kw_only=True)
class Dependency:
    """One thing a service needs: any one of `services` will do (usually there is one)."""

    services: tuple[str, ...]
    kind: DependencyKind = DependencyKind.HARD
    when_disabled: WhenDisabled = WhenDisabled.PROCEED


KEPT_SPENT: Final = 1000
"""Actions of one service that are remembered; no budget of a service can be larger."""

MANUAL: Final = "manual_intervention"
"""The step that is people: no intent, no slot; an alert until it is acknowledged."""


@attrs.frozen(kw_only=True)
class Step:
    """One rung of a ladder, as far as the core must know it; what it does is the runner's business.

    `settle` defaults to 2 s after a gentle step and 15 s otherwise. `from_attempt` skips the step in earlier
    attempts; `only_for` skips it for other causes. `needs_running` skips it where the workload does not run.
    """

    action: str
    effect: Effect = Effect.DISRUPTIVE
    timeout: float = seconds(60.0, 0.01)
    cooldown: float | None = seconds(None, 0.001)
    settle: float | None = seconds(None)
    only_for: frozenset[Cause] = frozenset()
    from_attempt: int = whole(1, 1, 1000)
    needs_running: bool = False
    approval: bool = False
    allow_destructive: bool = False
    arguments: tuple[tuple[str, Scalar], ...] = ()

    def __attrs_post_init__(self) -> None:
        for name, value in self.arguments:
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"{name}: {value} has no stored form; give a finite number")

    @property
    def settling(self) -> float:
        """Seconds to wait after the action before its effect is judged."""
        if self.settle is not None:
            return self.settle
        return 2.0 if self.effect is Effect.GENTLE else 15.0

    @property
    def asks(self) -> bool:
        """Whether a person must approve before this step runs (law 13)."""
        return self.approval or (self.effect is Effect.DESTRUCTIVE and not self.allow_destructive)


@attrs.frozen(kw_only=True)
class Policy:
    """Everything the core knows about one service: when it is watched, believed dead, and repaired.

    Every field has a key of the same name in the file. `fingerprint` is a keyed digest of the plugin objects behind
    the policy, so that a change of a URL or a secret is visible in a record without showing it.
    """

    name: str
    enabled: bool = True
    priority: Priority = Priority.MEDIUM
    # detection
    interval: float = seconds(30.0, 0.05)
    timeout: float = seconds(5.0, 0.01)
    recheck: float = seconds(5.0, 0.05)
    jitter: float = share(0.1)
    failure_threshold: int = whole(3, 1, 1000)
    min_failing_span: float = seconds(30.0)
    definite_span: float = seconds(10.0)
    window: Window | None = None
    success_threshold: int = whole(2, 1, 1000)
    start_grace: float = seconds(0.0)
    starting_limit: float = seconds(300.0)
    suspicion_threshold: int = whole(21, 0, 1000)
    suspicion_span: float = seconds(30.0)
    latency_objective: float | None = seconds(None, 0.0001)
    latency_strikes: int = whole(3, 1, 1000)
    warning_fails: bool = False
    flapping: tuple[Budget, ...] = (Budget(limit=3, per=3600.0), Budget(limit=5, per=86400.0))
    # recovery
    steps: tuple[Step, ...] = ()
    max_retries: int = whole(3, 1, 1000)
    backoff: Backoff = Backoff()
    recovery_timeout: float = seconds(300.0, 0.1)
    slow_retry: float | None = seconds(900.0, 1.0, optional=True)
    probation: float = seconds(300.0)
    budgets: tuple[Budget, ...] = (Budget(limit=3, per=3600.0), Budget(limit=10, per=86400.0))
    approval_timeout: float = seconds(900.0, 1.0)
    observe_only: bool = False
    # dependencies
    depends_on: tuple[Dependency, ...] = ()
    dependent_grace: float = seconds(30.0)
    # what the core must know of the plugin objects
    has_workload: bool = False
    deep: bool = False
    fingerprint: str = ""

    def __attrs_post_init__(self) -> None:
        for budget in self.budgets:
            if budget.limit > KEPT_SPENT:
                raise ValueError(
                    f"budgets: {budget.limit} is more than is counted; give a limit of at most {KEPT_SPENT}"
                )


@attrs.frozen(kw_only=True)
class Canary:
    """A check of something that is always there (a gateway, a resolver): while none answers, nothing is concluded."""

    name: str
    interval: float = seconds(30.0, 0.05)
    timeout: float = seconds(5.0, 0.01)
    fingerprint: str = ""


CANARY_PREFIX: Final = "canary:"
"""Commands and results name a canary `canary:<name>`; no service may be called so."""


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of the whole fleet. `budget_share` of the services (at least `budget_floor`) per `budget_per`."""

    max_concurrent_recoveries: int = whole(3, 1, 10_000)
    budget_floor: int = whole(3, 1, 1_000_000)
    budget_share: float = share(0.1)
    budget_per: float = seconds(300.0, 0.001)
    storm_share: float = share(0.5)
    storm_floor: int = whole(3, 2, 1_000_000)
    storm_window: float = seconds(60.0, 0.1)
    late_after: float = seconds(0.25, 0.001)
    late_alert_after: float = seconds(60.0, 0.1)
    max_fleet_drop: float = share(0.5)
    act_without_journal: bool = False


@attrs.frozen(kw_only=True)
class Fleet:
    """All policies, the canaries and the limits: one value, so that it can itself be a record."""

    name: str = "selfheal"
    policies: tuple[Policy, ...] = ()
    canaries: tuple[Canary, ...] = ()
    limits: Limits = Limits()
    seed: int = 0


# -- what is decided, and what was observed -------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Forced:
    """A person's demand to recover a service, good until `until`: who, why, and which guards they named to override."""

    actor: str
    reason: str
    request: str
    override: frozenset[str] = frozenset()
    until: float = inf


@attrs.frozen(kw_only=True)
class Condition:
    """What is DECIDED about one service. Changed only by `Ledger.apply`; a record carries the whole value.

    `attempt` counts the attempts begun in this incident; `acting_since` is set while the clock of the current
    attempt runs and `acted_for` holds what it has used before; `level` is the exponent of the backoff, which
    outlives an incident until it is forgotten; `cursor` is the next step of the ladder; `reissues` keeps intent keys
    apart when an attempt was given back.
    """

    state: State = State.UNKNOWN
    reason: str = ""
    detail: str = ""
    since: float = 0.0
    enabled: bool = True
    generation: int = 0
    incident: int | None = None
    correlation: str = ""
    cause: Cause | None = None
    # the attempt in progress
    attempt: int = 0
    in_attempt: bool = False
    cursor: int = 0
    acting_since: float | None = None
    acted_for: float = 0.0
    settle_until: float = 0.0
    reissues: int = 0
    asked: int | None = None
    asked_at: float | None = None
    approved: int | None = None
    forced: Forced | None = None
    # memory
    not_before: float = 0.0
    level: int = 0
    well_since: float = inf
    probation_until: float = 0.0
    last_incident: int | None = None
    relapses: int = 0
    confirmed: tuple[float, ...] = ()


@attrs.define
class Evidence:
    """What was OBSERVED of one service in this run: volatile, rebuilt from nothing after a restart."""

    failures: int = 0
    passes: int = 0
    failing_since: float = inf
    passing_since: float = inf
    last_started: float = -inf
    last_pass: float = -inf
    last_verdict: Verdict | None = None
    last_at: float | None = None
    cause: Cause | None = None
    summary: str = ""
    details: Mapping[str, Scalar] = PASSING.details
    latency: float | None = None
    instance: Instance | None = None
    ended: bool = False
    unconfirmed: bool = False
    definite: bool = False
    score: int = 0
    suspect_since: float = inf
    streaks: int = 0
    slow: int = 0
    starting_since: float = inf
    down_since: float = inf
    history: int = 0
    inconclusive: int = 0
    blind: int = 0
    ever_passed: bool = False
    checks: int = 0


@attrs.frozen(kw_only=True)
class Hold:
    """Why nothing happens, until when at most, what else wakes us (`wake`), and whose check would tell (`ask`)."""

    reason: str
    detail: str = ""
    until: float = inf
    wake: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()


# -- what outlives one service's condition --------------------------------------------------------------------------


class Binds(StrEnum):
    """What a suppression binds: actions (for one of three reasons), or only the telling of people."""

    PAUSED = "paused"
    MAINTENANCE = "maintenance"
    OBSERVE = "observe"
    SILENCE = "silence"


@attrs.frozen(kw_only=True)
class Suppression:
    """A person's (or the calendar's) word that something must not happen to some services until a time.

    It binds actions or messages, never checks, and never the resolution of an alert. `everything` must be said:
    an empty `services` without it selects nothing (law 19).
    """

    id: str
    binds: Binds
    services: tuple[str, ...] = ()
    everything: bool = False
    since: float = 0.0
    until: float = inf
    actor: str = ""
    reason: str = ""

    def covers(self, service: str) -> bool:
        """Whether `service` is in its scope."""
        return self.everything or service in self.services


@attrs.frozen(kw_only=True)
class Incident:
    """An outage: the service it began with and, under its number, everything folded into it.

    `reopened` counts how often it was open again after a relapse.
    """

    number: int
    root: str
    since: float
    correlation: str = ""
    reopened: int = 0


@attrs.frozen(kw_only=True)
class Alert:
    """One open matter people may have to know of: at most one per service and rule.

    `service` is empty for the fleet as a whole. `folded` alerts belong to another service's incident and are told
    with it.
    """

    id: str
    service: str
    rule: str
    severity: Severity
    since: float
    text: str = ""
    incident: int | None = None
    folded: bool = False
    correlation: str = ""
    acknowledged_by: str = ""


class Phase(StrEnum):
    """Where a notification stands in the life of what it tells."""

    FIRING = "firing"
    UPDATED = "updated"
    RESOLVED = "resolved"


@attrs.frozen(kw_only=True)
class Notification:
    """What a notifier delivers: in order, at least once, under a stable `id`. `since` is UNIX time."""

    id: str
    incident: int | None
    service: str
    phase: Phase
    severity: Severity
    title: str
    text: str = ""
    since: float = 0.0
    correlation: str = ""
    link: str | None = None
    receipt: str | None = None
