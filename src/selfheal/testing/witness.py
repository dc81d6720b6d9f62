"""What a bystander of a simulation has seen: an account of every service that shares no code with the engine.

It is kept from what goes in (results, reports, acts) and what is said (records), so that a wrong engine cannot agree
with it by being wrong in the same way. Where the engine may rightly count less than happened (it forgets at a parent's
return, after a partition, at a start), the account counts more: what it says is the most that can be believed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from math import inf

import attrs

from selfheal.core.ledger import hard
from selfheal.core.messages import CheckFinished, WatchReported
from selfheal.core.model import CANARY_PREFIX, Cause, Instance, Policy, Purpose, Run, State, Verdict


@attrs.define
class Seen:
    """What was seen of one service in this run."""

    failing: bool = False
    cause: Cause | None = None
    instance: Instance | None = None
    run_id: str | None = None
    fails: int = 0
    fails_settled: int = 0
    failing_since: float = inf
    suspect_since: float = inf
    became_suspect: float = inf
    excusable: bool = False
    definite: bool = False
    passes: int = 0
    passed: float = -inf
    recent: int = 0
    ended: bool = False
    starting_since: float = inf
    down_since: float = inf
    inconclusive: int = 0
    failed_at: float = -inf

    @property
    def run(self) -> Run | None:
        """How its workload stood when somebody last asked."""
        return self.instance.run if self.instance is not None else None

    def counts_afresh(self) -> None:
        """What failed until now was another's failure."""
        self.fails = self.fails_settled = self.recent = 0
        self.failing_since = inf
        self.starting_since = inf
        self.ended = False

    def meets(self, instance: Instance) -> None:
        """Take in who runs; a new incarnation has failed nothing yet."""
        known = self.instance
        if known is not None and known.id not in ("", instance.id) and instance.run is not Run.UNKNOWN:
            self.counts_afresh()
        if instance.run is Run.UNKNOWN and known is not None:
            instance = attrs.evolve(instance, id=known.id)
        self.instance = instance

    def may_be_confirmed(self, policy: Policy, now: float) -> bool:
        """Whether a failure may be believed by now."""
        if self.ended and self.fails:
            return True
        gone = self.definite or self.run in (Run.EXITED, Run.ABSENT)
        span = min(policy.definite_span, policy.min_failing_span) if gone else policy.min_failing_span
        if self.fails >= policy.failure_threshold and now - self.failing_since >= span:
            return True
        window = policy.window
        if window is None or now - self.suspect_since < span:
            return False
        return (self.recent & ((1 << window.checks) - 1)).bit_count() >= window.failures


class Account:
    """Everything seen in this run of the manager. `start` begins it anew."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self.services: dict[str, Seen] = {}
        self.flying: dict[str, tuple[int, Purpose]] = {}
        self.canaries: dict[str, bool] = {}
        self.canary_well_since = -inf
        self.doubted = -inf
        self.doubts = 0

    def start(self, canaries: tuple[str, ...]) -> None:
        """A new run begins: what was seen in the last one is forgotten."""
        self.services.clear()
        self.flying.clear()
        self.watch_canaries(canaries, anew=True)
        self.doubted = -inf

    def remember(self, service: str, since: float) -> None:
        """Take in what the last run knew to fail: that does not begin to fail with this one."""
        self.of(service).became_suspect = since

    def watch_canaries(self, names: tuple[str, ...], *, anew: bool = False) -> None:
        """These canaries there are; of new ones nothing was heard yet."""
        if names == self._names and not anew:
            return
        self.canaries = {}
        self._names = names
        self.canary_well_since = -inf

    def keep(self, names: Container[str]) -> None:
        """Only these services are watched from now on: checks of the others are cancelled."""
        for gone in [name for name in self.services if name not in names]:
            del self.services[gone]
        watched = {CANARY_PREFIX + name for name in self._names}
        for gone in [name for name in self.flying if name not in names and name not in watched]:
            del self.flying[gone]

    def forget(self, service: str) -> None:
        """It is looked at afresh: nothing was seen of it."""
        self.services.pop(service, None)

    def blame(self, policies: Iterable[Policy]) -> None:
        """Mark who fails while a parent fails: for as long as it does, that may be the parent's doing."""
        for policy in policies:
            seen = self.of(policy.name)
            above = [self.of(parent) for dependency in hard(policy) for parent in dependency.services]
            if seen.became_suspect == inf:
                seen.excusable = False
            elif any(parent.became_suspect < inf for parent in above):
                seen.excusable = True

    def of(self, service: str) -> Seen:
        """Return what was seen of a service."""
        return self.services.setdefault(service, Seen())

    @property
    def blind(self) -> bool:
        """Whether every canary has answered, and none well."""
        return bool(self._names) and len(self.canaries) == len(self._names) and not any(self.canaries.values())

    @property
    def trusted_since(self) -> float:
        """Since when there is no reason to doubt what is seen."""
        return max(self.doubted, self.canary_well_since)

    def hear_canary(self, event: CheckFinished) -> None:
        """Take in a canary's result."""
        if event.result.verdict is Verdict.INCONCLUSIVE or event.started < self.doubted:
            return
        blind = self.blind
        well = event.result.verdict is not Verdict.FAILING
        self.canaries[event.service.removeprefix(CANARY_PREFIX)] = well
        if blind and well:
            self.canary_well_since = event.started

    def hear(self, event: CheckFinished, policy: Policy, state: State, settle_until: float) -> str:
        """Take in a result that is awaited; return what it counts as: `failing`, `passing` or nothing."""
        seen, result = self.of(event.service), event.result
        verdict = result.verdict
        if verdict is Verdict.WARNING and policy.warning_fails:
            verdict = Verdict.FAILING
        unsettled = verdict is Verdict.FAILING and event.started < settle_until
        if event.instance is not None:
            seen.meets(event.instance)
        elif result.instance is not None and not policy.has_workload:
            if seen.run_id not in (None, result.instance):
                seen.counts_afresh()
            seen.run_id = result.instance
        if verdict is Verdict.INCONCLUSIVE or event.started < self.doubted or self.blind or unsettled:
            seen.inconclusive += 1
            return ""
        seen.inconclusive = 0
        seen.failing = verdict is Verdict.FAILING
        seen.cause = result.cause
        if verdict is not Verdict.FAILING:
            recent = seen.recent << 1
            seen.counts_afresh()
            seen.recent = recent
            seen.passes += 1
            seen.passed = event.started
            seen.became_suspect = seen.down_since = inf
            return "passing"
        seen.passes = 0
        seen.down_since = min(seen.down_since, event.started)
        if result.cause is Cause.STARTING:
            seen.starting_since = min(seen.starting_since, event.started)
            if event.started - seen.starting_since < policy.starting_limit:
                seen.became_suspect = seen.became_suspect if seen.fails else inf
                return ""
        else:
            seen.starting_since = inf
        if not seen.fails:
            seen.failing_since = event.started
        if seen.became_suspect == inf:
            seen.became_suspect = event.at
        seen.suspect_since = min(seen.suspect_since, event.started)
        seen.definite = result.definite
        seen.fails += 1
        seen.recent = seen.recent << 1 | 1
        if state is State.RECOVERING:
            seen.fails_settled += 1
        return "failing"

    def told(self, event: WatchReported) -> None:
        """Take in what a sensor said."""
        if event.instance is not None and event.instance.run in (Run.EXITED, Run.ABSENT, Run.STOPPED):
            seen = self.of(event.service)
            seen.instance = event.instance
            seen.ended = seen.ended or event.instance.run is not Run.STOPPED
