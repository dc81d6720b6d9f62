"""The laws as watchers of a simulation: each raises `AssertionError` naming the law it found broken.

They look at what goes in and what comes out, and at decided state through the ledger, so that a wrong engine cannot
agree with them by being wrong in the same way.
"""

from __future__ import annotations

from collections import Counter
from math import inf

from selfheal.core.ledger import WELL, Ledger, hard
from selfheal.core.messages import CheckFinished, Event, Output, RunAction, RunCheck, Started, TimePassed, WokeLate
from selfheal.core.model import (
    Binds,
    Cause,
    Condition,
    Effect,
    Policy,
    Run,
    Settled,
    State,
    Verdict,
    WhenDisabled,
)
from selfheal.core.records import AlertChanged, Ended, FleetSet, Intended, Moved
from selfheal.testing.simulator import Simulator


class Laws:
    """Every law of the design that one step of a simulation can show broken.

    `fold_every` says how often (in events) the whole history is folded and compared; 0 never.
    """

    def __init__(self, *, fold_every: int = 1) -> None:
        self.fold_every = fold_every
        self.executed: Counter[str] = Counter()
        self.running: dict[str, str] = {}
        self.failed_at: dict[str, float] = {}
        self.passed: dict[str, float] = {}
        self.failing: dict[str, bool] = {}
        self.cause: dict[str, Cause | None] = {}
        self.run: dict[str, Run | None] = {}
        self.disruptive: dict[str, list[float]] = {}
        self.all_disruptive: list[float] = []
        self.opened = self.resolved = 0
        self.doubt_before = -inf
        self.seen = 0

    def __call__(self, simulator: Simulator, event: Event, output: Output) -> None:
        """Hold one event and its output to every law."""
        ledger = simulator.engine.ledger
        if isinstance(event, Started):
            self._started(simulator, event)
        if isinstance(event, WokeLate):
            self.doubt_before = event.at
        if isinstance(event, CheckFinished):
            self._heard(ledger, event)
        bound = 12 * (len(ledger.policies) + len(ledger.alerts) + len(ledger.incidents)) + 40
        assert len(output.records) + len(output.commands) <= bound, "law 5: one event must not spin"
        for record in output.records:
            if isinstance(record, Moved):
                self._moved(record)
            elif isinstance(record, Intended):
                self._intended(ledger, record)
            elif isinstance(record, Ended):
                self._ended(record)
            elif isinstance(record, AlertChanged):
                self._alert(record)
            elif isinstance(record, FleetSet):
                self.passed = {name: at for name, at in self.passed.items() if name in ledger.policies}
        for command in output.commands:
            if isinstance(command, RunAction):
                assert self.executed[command.intent] == 0, f"law 12: {command.intent} runs twice"
                assert command.intent in ledger.intents, f"law 12: {command.intent} runs without an intent"
                self.executed[command.intent] += 1
            elif isinstance(command, RunCheck):
                assert ledger.acting(command.service) is None, f"law 4: {command.service} is checked while acted on"
        self._standing(simulator, ledger)
        self.seen += 1
        if self.fold_every and self.seen % self.fold_every == 0 and not isinstance(event, TimePassed):
            assert Ledger.fold(simulator.records).image() == ledger.image(), "state is not the fold of its records"

    # -- what is heard and said --------------------------------------------------------------------------------------

    def _started(self, simulator: Simulator, event: Started) -> None:
        self.passed.clear()
        self.failing.clear()
        self.run.clear()
        self.doubt_before = -inf
        ledger = Ledger.fold(record for batch in simulator.batches[:-1] for record in batch.records)
        self.disruptive = {
            name: [entry.at for entry in entries if entry.counts] for name, entries in ledger.spent.items()
        }
        self.all_disruptive = list(ledger.fleet_spent)
        self.running = {intent.intent: intent.service for intent in ledger.intents.values()}
        self.failed_at = {n: c.since for n, c in ledger.conditions.items() if c.state is State.FAILED}
        self.opened = self.resolved = 0
        for batch in simulator.batches[:-1]:
            for record in batch.records:
                if isinstance(record, AlertChanged):
                    self._alert(record, quiet=True)

    def _heard(self, ledger: Ledger, event: CheckFinished) -> None:
        if "canary" in ledger.holds or event.started < self.doubt_before or event.result.verdict is Verdict.INCONCLUSIVE:
            return
        failing = event.result.verdict is Verdict.FAILING
        self.failing[event.service] = failing
        self.cause[event.service] = event.result.cause
        if event.instance is not None:
            self.run[event.service] = event.instance.run
        if not failing:
            self.passed[event.service] = event.started

    def _moved(self, record: Moved) -> None:
        if record.after.state is State.FAILED and record.before.state is not State.FAILED:
            self.failed_at[record.service] = record.at

    def _ended(self, record: Ended) -> None:
        self.running.pop(record.intent, None)
        if record.settled in (Settled.SUPERSEDED, Settled.NOT_STARTED):
            times = self.disruptive.get(record.service, [])
            if times and record.refunded:
                gone = times.pop()
                self.all_disruptive.remove(gone)

    def _alert(self, record: AlertChanged, *, quiet: bool = False) -> None:
        if not record.open:
            self.resolved += 1
        elif record.alert.since == record.at and record.because == record.alert.text:
            self.opened += 1
        del quiet

    def _intended(self, ledger: Ledger, record: Intended) -> None:
        name, policy = record.service, ledger.policies[record.service]
        condition = ledger.conditions[name]
        forced = bool(record.actor)
        assert name not in self.running.values(), f"law 4: two actions of {name}"
        self.running[record.intent] = name
        self._parents(ledger, policy, condition, forced=forced)
        self._suppressed(ledger, name, policy, condition)
        assert condition.state is not State.DISABLED, f"law 11: {name} is disabled"
        step = policy.steps[record.step]
        if not forced:
            held = {"storm", "canary", "doubt"} & set(ledger.holds)
            if self.run.get(name) is Run.EXITED:
                held.discard("storm")
            assert not held, f"law 18: {name} acted on during {held}"
        assert "journal" not in ledger.holds or ledger.fleet.limits.act_without_journal, "fail static: no journal"
        assert self.failing.get(name) or policy.warning_fails or forced, f"no fresh failing check of {name}"
        if policy.has_workload:
            assert self.run.get(name) not in (Run.STOPPED, Run.UNKNOWN, None), f"law 17: {name} is {self.run.get(name)}"
        if step.effect is not Effect.GENTLE:
            assert self.cause.get(name) not in (Cause.AUTH, Cause.CONFIG), f"law 7: {name} restarted for its cause"
        assert not step.asks or condition.approved is None, "law 13: the approval is used up by its step"
        if record.spends:
            self._budget(ledger, policy, record.at)

    def _parents(self, ledger: Ledger, policy: Policy, condition: Condition, *, forced: bool) -> None:
        if condition.forced is not None and "parents" in condition.forced.override:
            return
        backed_off = condition.not_before if not forced else 0.0
        since = max(self.failed_at.get(policy.name, -inf), backed_off)
        for dependency in hard(policy):
            verdicts = []
            for parent in dependency.services:
                above = ledger.conditions.get(parent)
                if above is None or above.state is State.DISABLED or parent in ledger.unwatched:
                    verdicts.append(dependency.when_disabled is WhenDisabled.PROCEED)
                    continue
                well = above.state in WELL and parent not in self.running.values() and not self.failing.get(parent)
                verdicts.append(well and self.passed.get(parent, -inf) >= since)
            assert any(verdicts), f"law 6: {policy.name} acted on while {dependency.services} is not freshly well"

    def _suppressed(self, ledger: Ledger, name: str, policy: Policy, condition: Condition) -> None:
        override = condition.forced.override if condition.forced is not None else frozenset()
        assert not policy.observe_only or "observe" in override, f"law 11: {name} is only observed"
        for suppression in ledger.suppressions.values():
            if suppression.binds is not Binds.SILENCE and suppression.covers(name):
                assert suppression.binds.value in override, f"law 11: {name} is under {suppression.binds}"

    def _budget(self, ledger: Ledger, policy: Policy, at: float) -> None:
        mine = self.disruptive.setdefault(policy.name, [])
        mine.append(at)
        self.all_disruptive.append(at)
        limits = ledger.fleet.limits
        for budget in policy.budgets:
            within = sum(time > at - budget.per for time in mine)
            assert within <= budget.limit, f"law 10: {policy.name} over {budget.limit} in {budget.per:g} s"
        most = max(limits.budget_floor, int(limits.budget_share * len(ledger.policies)))
        within = sum(time > at - limits.budget_per for time in self.all_disruptive[-most - 1 :])
        assert within <= most, f"law 10: the fleet over {most} in {limits.budget_per:g} s"

    # -- what must hold after every event ----------------------------------------------------------------------------

    def _standing(self, simulator: Simulator, ledger: Ledger) -> None:
        limits = ledger.fleet.limits
        recovering = {name for name, condition in ledger.conditions.items() if condition.state is State.RECOVERING}
        occupied = recovering | {intent.service for intent in ledger.intents.values()}
        if len(occupied) > limits.max_concurrent_recoveries:
            raise AssertionError(f"law 10: {len(occupied)} recoveries at once")
        assert set(ledger.occupied) == occupied, "the index of the occupied is off"
        open_alerts = len(ledger.alerts)
        assert self.opened == self.resolved + open_alerts, (
            f"law 14: opened {self.opened}, resolved {self.resolved}, open {open_alerts}"
        )
        members = {c.incident for c in ledger.conditions.values() if c.incident is not None}
        assert members == set(ledger.incidents), f"incidents {set(ledger.incidents)} but members {members}"
        engine = simulator.engine
        for name, condition in ledger.conditions.items():
            if condition.state is State.DISABLED or name in ledger.unwatched:
                assert condition.incident is None or name in ledger.unwatched, f"{name} is disabled in an incident"
                continue
            alive = engine.in_flight(name) is not None or engine.due(name) < inf or ledger.acting(name) is not None
            assert alive, f"law 5: {name} ({condition.state}, {condition.reason}) is forgotten"


def quiet(simulator: Simulator, within: float) -> None:
    """After faults have stopped: everything recoverable is well within a bound and the journal falls quiet (law 21).

    Raises `AssertionError` naming who is not well.
    """
    simulator.run(simulator.now + within)
    ledger = simulator.engine.ledger
    ill = {n: (c.state.value, c.reason) for n, c in ledger.conditions.items() if c.state not in WELL}
    ill = {n: s for n, s in ill.items() if s[0] != State.DISABLED.value and n not in ledger.unwatched}
    assert not ill, f"law 21: not well after {within:g} s: {ill}"
    before = len(simulator.records)
    simulator.run(simulator.now + 1200.0)
    assert len(simulator.records) == before, "law 21: the journal does not fall quiet"
