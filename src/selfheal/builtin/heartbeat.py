"""The check `heartbeat`: a dead man's switch. The service calls us; its silence is what fails."""

from __future__ import annotations

import time
from typing import ClassVar

import attrs

from selfheal.core.bounds import seconds
from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.plugins import CheckContext


@attrs.define(eq=False)
class _Beats:
    """When the watching began and when the last beat came, in monotonic seconds.

    The check itself is frozen, because it is configuration and is compared as such; what arrives while we run is no
    part of it, and lives here. One float is written and one is read, so no lock is needed between a thread that
    receives beats and the loop that checks.
    """

    began: float | None = None
    last: float | None = None


@attrs.frozen(kw_only=True)
class HeartbeatCheck:
    """Whether the service has called within `every` seconds and a tolerance; after that it is FAILING, `timeout`.

    Before the first call of this run it is INCONCLUSIVE for as long as one call may take, and FAILING afterwards. Time
    in which this machine sleeps does not count. Beats are kept in memory: a restart of selfheal forgets them, and
    waits.
    """

    kind: ClassVar[str] = "heartbeat"

    #: Seconds between two calls, as the service promises them.
    every: float = seconds(low=0.05)
    #: Seconds a call may be late. Without it, three periods and ten seconds of silence are borne: two calls in a row
    #: may be lost. (A tolerance that adapts to the calls was simulated, and lies on the same curve as a fixed one.)
    grace: float | None = seconds(None, optional=True)
    _beats: _Beats = attrs.field(factory=_Beats, init=False, eq=False, repr=False)

    @property
    def tolerance(self) -> float:
        """Seconds of silence that are borne."""
        return self.every + self.grace if self.grace is not None else 3 * self.every + 10.0

    def beat(self, at: float) -> None:
        """Note a call that came at `at`, in seconds of `time.monotonic`. May be called from any thread."""
        last = self._beats.last
        if last is None or at > last:
            self._beats.last = at

    async def check(self, context: CheckContext) -> CheckResult:
        """Compare the silence with the tolerance."""
        now = time.monotonic()
        beats = self._beats
        if beats.began is None:
            beats.began = now
        silence = now - (beats.last if beats.last is not None else beats.began)
        if silence <= self.tolerance:
            if beats.last is not None:
                return PASSING
            return CheckResult(
                Verdict.INCONCLUSIVE,
                cause=Cause.STARTING,
                summary=f"no heartbeat yet; {self.tolerance - silence:.0f} s are left for the first",
            )
        never = "" if beats.last is not None else " since selfheal began to watch"
        return CheckResult(
            Verdict.FAILING,
            cause=Cause.TIMEOUT,
            summary=f"no heartbeat for {silence:.0f} s{never}; {self.tolerance:g} s are allowed",
            details={"silent_seconds": round(silence, 3), "allowed_seconds": self.tolerance},
        )
