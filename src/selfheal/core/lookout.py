"""The observer's doubts about itself: storms, canaries, late wakes, a store that fails; and the holds they raise."""

from __future__ import annotations

from math import inf
from typing import Final

from selfheal.core.desk import Desk, Watch
from selfheal.core.holds import CanaryWatch, DoubtWatch, StormWatch
from selfheal.core.messages import (
    CheckFinished,
    JournalChanged,
    WokeLate,
)
from selfheal.core.model import (
    CANARY_PREFIX,
    Condition,
    Evidence,
    Policy,
    Purpose,
    Verdict,
)
from selfheal.core.records import (
    Doubted,
)

CANARY_RECHECK: Final = 5.0
"""Seconds between the checks of canaries while none answers."""


class Lookout:
    """Watches our own view of the fleet, and holds fire when it cannot be trusted (law 18)."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.storm = StormWatch()
        self.canaries = CanaryWatch()
        self.doubt = DoubtWatch()
        self.storm_at = inf
        self.excused: dict[str, None] = {}
        """Services that failed and were excused, because they are starting: in order of the first time."""

    def forget(self) -> None:
        """A new run begins: its own lateness and store are looked at afresh.

        A storm and blind canaries are the world's: they outlive us, and end by what the new run sees (law 18).
        """
        self.doubt.reset()
        self.storm.reset(0)
        self.excused.clear()
        self.storm_at = self.desk.now
        for name in ("doubt", "journal"):
            self.desk.hold(name, False, "selfheal was started")

    @property
    def trusted_since(self) -> float:
        """Since when our view of the fleet is not in doubt."""
        return max(self.canaries.well_since, self.doubt.before)

    def release(self, hold: str) -> None:
        """A person releases a hold: it is not raised again by what raised it."""
        if hold == "storm":
            self.storm.pardon()
        elif hold == "canary":
            self.canaries.excused = True
            self.desk.wake("canary")
        else:  # doubt
            self.doubt.since = inf

    def suspect(self, name: str) -> None:
        self.storm.suspect(name, self.desk.now, self.desk.ledger.children.get(name, ()))
        self.ask_canaries()
        limits = self.desk.ledger.fleet.limits
        if "storm" in self.desk.ledger.holds or not self.storm.rising(limits, self.desk.now):
            return
        self.storm_at = self.desk.now
        self.desk.hold("storm", True, self.storm.evidence())

    def reconsider(self) -> None:
        """End a storm that is none any more: somebody is well again, or who is watched has changed."""
        if self.storm.calm(self.desk.ledger.fleet.limits):
            self.desk.hold("storm", False, self.storm.evidence())

    def ask_canaries(self) -> None:
        """Have every canary checked from now on: an answer that was under way already vouches for nothing new."""
        for canary in self.canaries.names:
            self.desk.want(CANARY_PREFIX + canary, Purpose.PARENT)

    def unsuspect(self, name: str) -> None:
        self.storm.cleared(name, self.desk.ledger.children.get(name, ()))
        self.reconsider()

    def canary_checked(self, watch: Watch, event: CheckFinished) -> None:
        watch.flight = None
        wanted, watch.wanted = watch.wanted, None
        late = event.started < self.doubt.before
        verdict = Verdict.INCONCLUSIVE if late else event.result.verdict
        well = verdict in (Verdict.PASSING, Verdict.WARNING)
        if not late:
            self.canaries.heard(watch.name.removeprefix(CANARY_PREFIX), verdict, event.started)
        if self.canaries.down or well:
            evidence = event.result.summary or ("no canary answers" if self.canaries.down else "a canary answers")
            self.desk.hold("canary", self.canaries.down, evidence)
        if well:
            if "storm" in self.desk.ledger.holds and event.started >= self.storm_at:
                self.storm.pardon()
                self.desk.hold("storm", False, f"{watch.name} answers")
            self.desk.wake("canary")
        if wanted is not None:
            self.desk.want(watch.name, Purpose.ROUTINE)
        else:
            self.desk.schedule(watch, CANARY_RECHECK if self.canaries.down or verdict is Verdict.INCONCLUSIVE else None)

    def woke_late(self, event: WokeLate) -> None:
        limits = self.desk.ledger.fleet.limits
        self.desk.say(Doubted(at=self.desk.now, late=event.late))
        self.excused = {name: None for name in self.excused if self.desk.evidence_of(name).down_since < inf}
        for name in dict.fromkeys((*self.storm, *self.excused)):
            slept_through(self.desk.evidence_of(name), self.desk.now, event.late)
        if self.doubt.late(limits, self.desk.now, event.late):
            self.desk.hold("doubt", True, f"the loop has been waking late for {self.desk.now - self.doubt.since:.0f} s")
        if "doubt" in self.desk.ledger.holds:
            self.desk.agenda.set(("doubt", ""), self.desk.now + limits.late_alert_after)

    def journal_changed(self, event: JournalChanged) -> None:
        self.desk.hold(
            "journal", not event.well, event.detail or ("the store answers" if event.well else "the store failed")
        )

    def disbelieves(self, event: CheckFinished, condition: Condition, policy: Policy) -> bool:
        """Whether a result proves nothing.

        It was begun before we woke late, or came while no canary answers (laws 7, 18), or it is a failure begun
        before an action had time to settle.
        """
        if event.started < self.doubt.before or self.canaries.down:
            return True
        if event.started >= condition.settle_until:
            return False
        verdict = event.result.verdict
        return verdict is Verdict.FAILING or (verdict is Verdict.WARNING and policy.warning_fails)


def slept_through(evidence: Evidence, now: float, late: float) -> None:
    """Leave the `late` seconds before `now` out of every span: nobody looked, so nothing was seen to last."""
    for name in ("failing_since", "suspect_since", "starting_since", "down_since"):
        since = getattr(evidence, name)
        if since < inf:
            setattr(evidence, name, min(now, since + late))
