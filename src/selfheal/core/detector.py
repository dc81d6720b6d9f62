"""From results to evidence, and from evidence to a conclusion.

`judge` is the only writer of `Evidence`. The rest of this module answers questions about it: is the failure
confirmed, does the service serve badly, is it flapping, does it deserve a quick second look.

What the numbers are good for (simulated over 20 services and 30 days, see the docs on detection defaults): counting
alone is the wrong clock. Three failures within ten seconds are one piece of evidence, so FAILED needs a *number* of
failures and a *span*. Consecutive counting cannot see a service that fails half its checks; the suspicion score
(Page's CUSUM: +6 for a failure, -1 for a pass, from +log(p1/p0) and +log((1-p1)/(1-p0)) with p0 = 1 %, p1 = 50 %)
can. A check that could not run says nothing, and is counted as nothing.
"""

from __future__ import annotations

from math import inf
from typing import Final

from selfheal.core.backoff import all_open
from selfheal.core.model import Cause, CheckResult, Condition, Evidence, Hold, Instance, Policy, Run, State, Verdict

FAILURE_WEIGHT: Final = 6
PASS_WEIGHT: Final = 1
LOOP_SPANS: Final = 10
_HISTORY: Final = (1 << 64) - 1
_PASSING: Final = Verdict.PASSING
GONE: Final = frozenset({Run.EXITED, Run.ABSENT})
"""How a workload stands when nothing of it runs and nobody stopped it."""


def judge(
    policy: Policy, evidence: Evidence, result: CheckResult, started: float, ended: float, instance: Instance | None
) -> Verdict:
    """Take one result into `evidence` and return the verdict it counted as.

    FAILING comes back as INCONCLUSIVE when it is excused (start-up grace, a `starting` server within its limit):
    then it counts neither way, and `evidence.starting_since` says since when.
    """
    e, verdict = evidence, result.verdict
    e.checks += 1
    e.last_at, e.details = ended, result.details
    if instance is not None:
        _meet(policy, e, instance)
    elif result.instance is not None and not policy.has_workload:
        _meet(policy, e, Instance(id=result.instance, run=Run.RUNNING))
    if verdict is not _PASSING and verdict is Verdict.INCONCLUSIVE:
        e.inconclusive += 1
        e.blind = 0 if result.cause is Cause.STARTING else e.blind + 1
        e.summary = result.summary
        return verdict
    e.inconclusive = e.blind = 0
    e.last_started = started
    e.latency = ended - started
    if verdict is not _PASSING and (verdict is Verdict.FAILING or policy.warning_fails):
        e.last_verdict = Verdict.FAILING
        return _failed(policy, e, result, started)
    e.last_verdict = verdict
    if not e.passes:
        e.passing_since = started
    e.passes += 1
    e.last_pass = started
    e.failures, e.failing_since, e.cause = 0, inf, result.cause
    e.ended = e.definite = e.unconfirmed = False
    e.ever_passed = True
    e.starting_since = e.down_since = inf
    e.summary = result.summary
    e.history = e.history << 1 & _HISTORY
    if e.score:
        e.score -= PASS_WEIGHT
    if e.suspect_since < inf and not e.score and not _recent(policy, e):
        e.suspect_since, e.streaks = inf, 0
    if policy.latency_objective is not None:
        e.slow = e.slow + 1 if e.latency > policy.latency_objective else 0
    return verdict


def _meet(policy: Policy, e: Evidence, instance: Instance) -> None:
    """A new incarnation has failed nothing yet (kubelet's lesson): what was counted was another's."""
    known = e.instance
    if known is not None and known.id not in ("", instance.id) and instance.run is not Run.UNKNOWN:
        if e.failures:
            e.unconfirmed = True
        e.failures, e.failing_since, e.history = 0, inf, 0
        e.ended = e.definite = e.ever_passed = False
        e.starting_since = inf
    if instance.run is Run.UNKNOWN and known is not None:
        # Nobody could tell who runs: who ran last is remembered, so that somebody new is seen as new.
        instance = Instance(id=known.id, run=Run.UNKNOWN, since=known.since, count=known.count, detail=instance.detail)
    e.instance = instance


def _failed(policy: Policy, e: Evidence, result: CheckResult, started: float) -> Verdict:
    e.passes, e.passing_since, e.slow = 0, inf, 0
    e.cause, e.summary = result.cause, result.summary
    if e.down_since == inf:
        e.down_since = started
    if _excused(policy, e, result, started):
        return Verdict.INCONCLUSIVE
    if not e.failures:
        e.failing_since = started
        e.streaks += 1
    if e.suspect_since == inf:
        e.suspect_since = started
    e.failures += 1
    e.history = (e.history << 1 | 1) & _HISTORY
    if policy.suspicion_threshold:
        e.score = min(e.score + FAILURE_WEIGHT, max(2 * policy.suspicion_threshold, FAILURE_WEIGHT))
    e.definite = result.definite or (e.instance is not None and e.instance.run in GONE)
    return Verdict.FAILING


def _excused(policy: Policy, e: Evidence, result: CheckResult, started: float) -> bool:
    """Whether a failure counts neither way: its server says that it is starting, or its incarnation is that young.

    What has exited is not starting any more, however young it was.
    """
    if result.cause is Cause.STARTING:
        e.starting_since = min(e.starting_since, started)
        return started - e.starting_since < policy.starting_limit
    e.starting_since = inf
    since = e.instance.since if e.instance is not None and e.instance.run not in GONE else None
    if since is None or e.ever_passed or abs(started - since) >= policy.start_grace:
        return False
    # Who runs is asked from the second failing check on: what was counted before was this grace, or another's.
    e.failures, e.failing_since, e.history, e.definite = 0, inf, 0, False
    e.score, e.suspect_since, e.streaks = 0, inf, 0
    return True


def _recent(policy: Policy, e: Evidence) -> int:
    """How many of the last checks failed, as far as `window` looks back."""
    return (e.history & ((1 << policy.window.checks) - 1)).bit_count() if policy.window is not None else 0


def confirmed(policy: Policy, evidence: Evidence, now: float) -> bool:
    """Whether the failure is believed: enough of it, for long enough.

    `evidence.ended` (the workload's end was heard and nobody asked for it) needs one failing check and no span.
    """
    e = evidence
    if not e.failures:
        return False
    if e.ended:
        return True
    span = failing_span(policy, e)
    if e.failures >= policy.failure_threshold and now - e.failing_since >= span:
        return True
    if policy.window is None:
        return False
    return _recent(policy, e) >= policy.window.failures and now - e.suspect_since >= span


def failing_span(policy: Policy, evidence: Evidence) -> float:
    """Return the seconds it must have failed to be believed: fewer where its workload or its check leaves no doubt."""
    return min(policy.definite_span, policy.min_failing_span) if evidence.definite else policy.min_failing_span


def loop_span(policy: Policy) -> float:
    """Return the seconds without one good answer after which a service is down, whichever instance it is.

    Longer than any instance is excused for, and ten times what one must fail.
    """
    return max(LOOP_SPANS * policy.min_failing_span, policy.start_grace + policy.starting_limit)


def degraded(policy: Policy, condition: Condition, evidence: Evidence, now: float) -> str:
    """Return why a passing service serves badly (`warning`, `slow`, `unsteady`), or an empty text.

    Unsteady is what fails again and again: one failure that lasted a while and ended, however high it drove the
    score, is an outage that is over. A service found unsteady stays so until its score is back at 0: the one threshold
    in, the other out.
    """
    e = evidence
    if e.last_verdict is Verdict.WARNING:
        return "warning"
    if policy.latency_objective is not None and e.slow >= policy.latency_strikes:
        return "slow"
    if not policy.suspicion_threshold or not e.score:
        return ""
    if condition.state is State.DEGRADED and condition.reason == "unsteady":
        return "unsteady"
    risen = e.score >= policy.suspicion_threshold and now - e.suspect_since >= policy.suspicion_span
    return "unsteady" if risen and e.streaks > 1 else ""


def flapping(policy: Policy, condition: Condition, now: float) -> Hold | None:
    """Return the hold of a service that was confirmed down too often: more restarts will not cure it."""
    until, window = all_open(condition.confirmed, policy.flapping)
    if now >= until or window is None:
        return None
    detail = f"confirmed down {window.limit} times within {window.per:g} s"
    return Hold(reason="held:flapping", detail=detail, until=until, wake=("operator",))


def quick(policy: Policy, condition: Condition, evidence: Evidence) -> bool:
    """Whether the next check should come after `recheck` instead of `interval`."""
    if condition.state is State.RECOVERING:
        return True
    if condition.state is State.FAILED:
        hopeless = condition.attempt >= policy.max_retries and not condition.in_attempt
        return evidence.passes > 0 or not (hopeless or condition.reason.startswith("waiting-for"))
    return evidence.last_verdict is Verdict.FAILING or evidence.score > 0
