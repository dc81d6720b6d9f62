"""The laws as watchers of a simulation: each raises `AssertionError` naming the law it found broken.

They look at what goes in and what comes out, and at decided state through the ledger. What they believe of a service
is their own account (`witness`), so that a wrong engine cannot agree with them by being wrong in the same way.
"""

from __future__ import annotations

import json
from collections import deque
from math import inf

from selfheal.core.backoff import delay
from selfheal.core.engine import Engine
from selfheal.core.ledger import WELL, Ledger, Snapshot, alert_key, hard
from selfheal.core.machine import TRANSITIONS
from selfheal.core.messages import (
    CheckFinished,
    Event,
    FleetProposed,
    Output,
    Requested,
    RunAction,
    RunCheck,
    Settle,
    Started,
    TimePassed,
    WatchReported,
    WokeLate,
)
from selfheal.core.model import (
    CANARY_PREFIX,
    Binds,
    Cause,
    Condition,
    Effect,
    Fleet,
    Policy,
    Purpose,
    Run,
    Settled,
    State,
    WhenDisabled,
)
from selfheal.core.records import (
    AlertChanged,
    Ended,
    FleetSet,
    HoldChanged,
    IncidentClosed,
    Intended,
    Moved,
    Record,
    SuppressionChanged,
    decode,
    decode_record,
    dumps,
    encode,
    encode_record,
)
from selfheal.testing.past import DOWN, Past
from selfheal.testing.proofs import asking_sees
from selfheal.testing.simulator import Simulator

_SUSPECT = (State.UNHEALTHY, State.FAILED, State.RECOVERING)
_TURNS = 20
"""So many actions of one service, begun twice a second or faster, are an engine that turns on the spot."""
_NEVER_STARTED = (Settled.SUPERSEDED, Settled.NOT_STARTED)


class Laws(Past):
    """Every law of the design that one step of a simulation can show broken.

    `fold_every` says how often (in events) the whole history is folded and compared; `ask_every` how often `explain`
    is asked and the stored forms are read back. 0 is never.
    """

    def __init__(self, *, fold_every: int = 1, ask_every: int = 5) -> None:
        super().__init__()
        self.fold_every = fold_every
        self.ask_every = ask_every
        self.seen = 0
        self.now = -inf
        self.event: Event | None = None
        self.event_at = -inf
        self.fleet = Fleet()
        self.heard = ""
        self.free_since: dict[str, float] = {}
        self.slowest: dict[str, float] = {}

    def __call__(self, simulator: Simulator, event: Event, output: Output) -> None:
        """Hold one event and its output to every law."""
        engine = simulator.engine
        ledger = engine.ledger
        self.event, self.event_at, self.heard = event, event.at, ""
        if isinstance(event, Started):
            self._started(simulator, event)
        elif isinstance(event, WokeLate):
            self.account.doubted = event.at
            self.account.doubts += 1
        elif isinstance(event, WatchReported):
            self.account.told(event)
        elif isinstance(event, CheckFinished):
            self._heard(ledger, event)
        if isinstance(event, WokeLate):
            early = [r for r in output.records if event.at - event.late + 1e-6 < r.at < event.at]
            assert not early, f"law 2: {early[0].kind} at {early[0].at}, but nobody was awake from then to {event.at}"
        bound = 12 * (len(ledger.policies) + len(ledger.alerts) + len(ledger.incidents)) + 40
        assert len(output.records) + len(output.commands) <= bound, "law 5: one event must not spin"
        last = self.now
        for record in output.records:
            assert last <= record.at <= event.at, f"law 2: a {record.kind} at {record.at} between {last} and {event.at}"
            last = record.at
            self._said(ledger, record)
        self.now = event.at
        self._storm_law(ledger, event, output)
        self._commanded(ledger, output)
        self._fleet_law(ledger, event, output)
        self._standing(engine)
        self.seen += 1
        if self.fold_every and self.seen % self.fold_every == 0 and not isinstance(event, TimePassed):
            assert Ledger.fold(simulator.records).image() == ledger.image(), "state is not the fold of its records"
        if self.ask_every and self.seen % self.ask_every == 0:
            self._asking(engine, output)

    # -- what is heard ------------------------------------------------------------------------------------------------

    def _started(self, simulator: Simulator, event: Started) -> None:
        """Learn the stored past anew: some of what was said before a crash may be gone."""
        self.account.start(tuple(canary.name for canary in event.fleet.canaries))
        self.free_since.clear()
        self._forget_records()
        for batch in simulator.batches[:-1]:
            for record in batch.records:
                self._learn(record)
        for name, condition in self.conditions.items():
            if condition.state in _SUSPECT:
                incident = self.incidents.get(condition.incident or 0)
                self.account.remember(name, min(condition.since, incident.since if incident is not None else inf))
        self.account.blame(simulator.engine.ledger.fleet.policies)
        self.attempts.clear()
        self.given_back.clear()

    def _heard(self, ledger: Ledger, event: CheckFinished) -> None:
        account = self.account
        flight = account.flying.get(event.service)
        self.slowest[event.service] = max(self.slowest.get(event.service, 0.0), event.at - event.started)
        if event.service.startswith(CANARY_PREFIX):
            account.hear_canary(event)
            account.flying.pop(event.service, None)
            return
        condition, policy = self.conditions.get(event.service), ledger.policies.get(event.service)
        if flight is None or flight[0] != event.generation or condition is None or policy is None:
            return
        del account.flying[event.service]
        if event.service in ledger.unwatched or condition.state is State.DISABLED:
            return
        self.heard = account.hear(event, policy, condition.state, condition.settle_until)
        if self.heard != "failing":
            self.free_since.pop(event.service, None)
        elif account.of(event.service).became_suspect == event.at:
            account.blame(ledger.fleet.policies)
        if self.heard:
            key = alert_key(event.service, "unobserved")
            assert key not in ledger.alerts, f"law 14: {event.service} is called unobserved after a check of it ran"

    # -- what is said -------------------------------------------------------------------------------------------------

    def _said(self, ledger: Ledger, record: Record) -> None:
        if isinstance(record, Moved):
            self._moved(ledger, record)
        elif isinstance(record, Intended):
            self._intended(ledger, record)
        elif isinstance(record, Ended):
            assert record.intent in self.running, f"law 12: {record.intent} ends, but never was"
            assert record.refunded is (record.settled in _NEVER_STARTED), "law 9: only what never started is given back"
        elif isinstance(record, AlertChanged):
            key = alert_key(record.service, record.alert.rule)
            known = self.alerts.get(key)
            if not record.open:
                assert known is not None, f"law 14: {record.alert.id} is resolved but was not open"
                assert known.id == record.alert.id, f"law 14: {record.alert.id} is resolved, {known.id} is open"
            else:
                new = known is None
                assert known is None or known.id == record.alert.id, f"law 14: {record.alert.rule} opens twice at once"
                fresh = record.alert.since == record.at and record.because == record.alert.text
                assert not new or fresh, f"law 14: {record.alert.id} changes but is not open"
        elif isinstance(record, SuppressionChanged) and not record.on:
            ran_out = record.suppression.until <= record.at
            assert record.actor or ran_out, f"law 19: nobody lifted {record.suppression.id}, yet it ends"
        elif isinstance(record, IncidentClosed):
            assert record.incident in self.incidents, f"incident {record.incident} is closed but was not open"
            members = [n for n, c in self.conditions.items() if c.incident == record.incident]
            assert not members, f"incident {record.incident} is closed over {members}"
        self._learn(record)

    def _moved(self, ledger: Ledger, record: Moved) -> None:
        name, before, after = record.service, record.before, record.after
        policy, seen = ledger.policies.get(name), self.account.of(name)
        known = self.conditions.get(name, Condition())
        assert before == known, f"the condition of {name} changed without a record"
        assert after.generation >= before.generation, f"law 3: the generation of {name} goes back"
        if policy is None:
            return
        if before.incident is not None and after.incident not in (None, before.incident) and self.confirmed.get(name):
            self.confirmed[name].pop()  # its failure turned out to be its parent's
        if after.attempt > before.attempt:
            begun = any(i.service == name and i.at == record.at for i in self.running.values())
            passed_over = before.state is State.FAILED and after.state is State.FAILED and not before.in_attempt
            assert begun or passed_over, f"law 9: {name} spends an attempt without an action"
        if after.state is State.FAILED and after.reason:
            assert after.acting_since is None, f"law 9: the clock of {name} runs while it is {after.reason}"
        if after.reason != before.reason:
            self._reason(ledger, policy, record)
        given_back = self.given_back.pop(name, None)
        if given_back is not None and before.state is State.RECOVERING:
            assert after.attempt == given_back, f"law 9: an action of {name} that never started has cost an attempt"
        if before.state is after.state:
            return
        assert after.state in TRANSITIONS[before.state], f"{name}: {before.state} -> {after.state} is no move"
        if name in self.off:
            assert after.state is State.DISABLED or record.actor, f"law 19: nobody enabled {name}, yet it is"
        if after.state is State.FAILED:
            self._failed(ledger, policy, record)
        elif before.state in DOWN and after.state in WELL:
            event = self.event
            check = isinstance(event, CheckFinished) and event.service == name and self.heard == "passing"
            assert check, f"law 8: {name} is called well without a passing check"
            assert seen.passes >= policy.success_threshold, f"law 8: {name} is well after {seen.passes} passes"

    def _reason(self, ledger: Ledger, policy: Policy, record: Moved) -> None:
        """What is said to hold a service is so."""
        name, after, limits = policy.name, record.after, ledger.fleet.limits
        if after.reason == "held:budget":
            mine = [entry.at for entry in self.spent.get(name, ())]
            full = any(sum(t > record.at - b.per for t in mine) >= b.limit for b in policy.budgets)
            every = [entry.at for entries in self.spent.values() for entry in entries]
            most = max(limits.budget_floor, int(limits.budget_share * len(ledger.policies)))
            full = full or sum(t > record.at - limits.budget_per for t in every) >= most
            cools = [step.cooldown for step in policy.steps if step.cooldown is not None]
            times = [entry.at for entry in ledger.spent.get(name, ())]
            full = full or any(t > record.at - c for t in times for c in cools)
            assert full, f"law 9: {name} is held for a budget that it has not spent"
        elif after.reason == "held:slot":
            occupied = {i.service for i in self.running.values()} | {
                n for n, c in self.conditions.items() if c.state is State.RECOVERING
            }
            waiting = {n for n, (_, purpose) in self.account.flying.items() if purpose is Purpose.BEFORE_STEP}
            failing = {n for n, c in self.conditions.items() if c.state is State.FAILED}
            least = len(occupied) + len(waiting | failing) - 1
            assert least >= limits.max_concurrent_recoveries, f"law 21: {name} waits for a slot, and all are free"
        elif after.reason == "escalated":
            assert after.attempt >= policy.max_retries, f"{name} is given up after {after.attempt} attempts"

    def _failed(self, ledger: Ledger, policy: Policy, record: Moved) -> None:
        name, before, seen = policy.name, record.before, self.account.of(policy.name)
        if before.state is not State.RECOVERING:
            seen.failed_at = record.at
            if not self._explained(ledger, policy):
                self.confirmed.setdefault(name, []).append(record.at)
                most = max((budget.limit for budget in policy.flapping), default=0)
                del self.confirmed[name][: -most or None]
            # One instance after the other fails: each is given its time, and nobody is served.
            endless = max(10 * policy.min_failing_span, policy.start_grace + policy.starting_limit)
            loops = record.at - seen.down_since >= endless
            believed = before.forced is not None or loops or seen.may_be_confirmed(policy, record.at)
            assert believed, f"law 7: {name} is believed down on {seen.fails} failures since {seen.failing_since}"
            return
        seen.failed_at = max(seen.failed_at, record.at)
        if record.because.startswith("still failing"):
            enough = seen.fails_settled >= policy.failure_threshold
            assert enough, f"a step of {name} is called a failure after {seen.fails_settled} failures"

    def _explained(self, ledger: Ledger, policy: Policy) -> bool:
        """Whether a hard parent, however far above, is down: then a failure may be the parent's."""
        todo, seen = [policy], {policy.name}
        while todo:
            for parent in (name for dependency in hard(todo.pop()) for name in dependency.services):
                if parent in seen or parent not in ledger.policies:
                    continue
                if self.conditions[parent].state in DOWN:
                    return True
                seen.add(parent)
                todo.append(ledger.policies[parent])
        return False

    def _intended(self, ledger: Ledger, record: Intended) -> None:
        name, policy = record.service, ledger.policies[record.service]
        condition, seen = self.conditions[name], self.account.of(record.service)
        forced, step = bool(record.actor), policy.steps[record.step]
        self.free_since.pop(name, None)
        event = self.event
        others = [i for i in self.running.values() if i.service == name]
        assert not others, f"law 4: two actions of {name}"
        fresh = isinstance(event, CheckFinished) and event.service == name and event.purpose is Purpose.BEFORE_STEP
        assert fresh, f"{name} is acted on without a fresh check"
        assert record.at == self.event_at, f"{name} is acted on at {record.at}, not when its check ended"
        assert self.heard == "failing", f"{name} is acted on though its check before the step did not fail"
        assert condition.state is State.FAILED, f"law 11: {name} is acted on while {condition.state}"
        assert name not in ledger.unwatched, f"law 19: {name} is acted on though it is not watched"
        assert not any(answer.reason and not answer.passed_by for answer in record.guards), (
            "a guard held and was passed"
        )
        self._parents(ledger, policy, condition, forced=forced)
        self._suppressed(ledger, name, policy, condition)
        self._holds(ledger, policy, forced=forced)
        if policy.has_workload:
            assert seen.run not in (Run.STOPPED, Run.UNKNOWN, None), f"law 17: {name} is {seen.run}"
            assert seen.instance is not None
            assert record.expected == seen.instance.id, f"law 17: {record.expected} is expected of {seen.instance.id}"
            assert forced or seen.fails, f"law 17: this instance of {name} was not seen failing"
        if step.effect is not Effect.GENTLE:
            assert seen.cause not in (Cause.AUTH, Cause.CONFIG), f"law 7: {name} is restarted for {seen.cause}"
        assert not step.only_for or seen.cause in step.only_for, f"{step.action} is not for {seen.cause}"
        if step.action == "restart" and seen.run not in (Run.EXITED, Run.ABSENT) and not step.only_for:
            helpless = (Cause.STARTING, Cause.DNS, Cause.FULL, Cause.READ_ONLY)
            assert seen.cause not in helpless, f"{name} is restarted for {seen.cause}, and no step asks for that"
        lately = self.lately.setdefault(name, deque(maxlen=_TURNS))
        lately.append(record.at)
        turns = len(lately) == _TURNS and record.at - lately[0] < _TURNS / 2
        assert not turns, f"law 5: {_TURNS} actions of {name} begin within {record.at - lately[0]:.1f} s"
        if step.asks:
            approved = self.approved.get(name)
            assert approved == step.action, f"law 13: {step.action} runs; a person was asked for {approved!r}"
        occupied = {i.service for i in self.running.values()} | {
            n for n, c in self.conditions.items() if c.state is State.RECOVERING
        }
        limits = ledger.fleet.limits
        assert len(occupied | {name}) <= limits.max_concurrent_recoveries, f"law 10: {len(occupied) + 1} at once"
        if not forced:
            self._patience(policy, record, condition)
        assert record.spends is (not forced and step.effect is not Effect.GENTLE), "law 10: what spends is off"
        if record.spends:
            self._budgets(ledger, policy, record.at)
        if step.cooldown is not None and not forced:
            times = [e.at for e in ledger.spent.get(name, ()) if e.action == step.action and e.intent != record.intent]
            assert all(record.at >= at + step.cooldown for at in times), f"{step.action} of {name} within its cooldown"

    # -- the laws of an action ----------------------------------------------------------------------------------------

    def _parents(self, ledger: Ledger, policy: Policy, condition: Condition, *, forced: bool) -> None:
        if condition.forced is not None and "parents" in condition.forced.override:
            return
        account = self.account
        backed_off = -inf if forced else condition.not_before
        since = max(account.of(policy.name).failed_at, backed_off, account.trusted_since)
        acting = {intended.service for intended in self.running.values()}
        for dependency in hard(policy):
            verdicts = []
            for parent in dependency.services:
                above = self.conditions.get(parent)
                if above is None or above.state is State.DISABLED or parent in ledger.unwatched:
                    verdicts.append(dependency.when_disabled is WhenDisabled.PROCEED)
                    continue
                seen = account.of(parent)
                well = above.state in WELL and parent not in acting and not seen.failing
                verdicts.append(well and seen.passed >= since)
            assert any(verdicts), f"law 6: {policy.name} acted on while {dependency.services} is not freshly well"

    def _suppressed(self, ledger: Ledger, name: str, policy: Policy, condition: Condition) -> None:
        override = condition.forced.override if condition.forced is not None else frozenset()
        assert not policy.observe_only or "observe" in override, f"law 11: {name} is only observed"
        for suppression in ledger.suppressions.values():
            if suppression.binds is not Binds.SILENCE and suppression.covers(name):
                assert suppression.binds.value in override, f"law 11: {name} is under {suppression.binds}"

    def _holds(self, ledger: Ledger, policy: Policy, *, forced: bool) -> None:
        name, account = policy.name, self.account
        held = {"storm", "canary", "doubt"} & set(ledger.holds)
        exited = account.of(name).run is Run.EXITED
        if forced or exited:
            held.discard("storm")
        assert not held, f"law 18: {name} acted on during {held}"
        assert "journal" not in ledger.holds or ledger.fleet.limits.act_without_journal, "fail static: no journal"
        assert not account.blind, f"law 18: {name} acted on while no canary answers"
        if not (forced or exited or self.storm_ended > self.now - ledger.fleet.limits.storm_window):
            self._mass_failure(ledger)

    def _mass_failure(self, ledger: Ledger) -> None:
        """No action while enough independent services have begun to fail within the window (law 18)."""
        since = min((seen.became_suspect for seen in self.account.services.values()), default=inf)
        if self.storm_ended < since and not ledger.unwatched:
            assert not self._stormy(ledger), "law 18: acted on while too much began to fail at once"

    def _storm_law(self, ledger: Ledger, event: Event, output: Output) -> None:
        """A storm ends because it is over, a canary answers, or a person says so; a new run ends none (law 18)."""
        ended = [
            r for r in output.records if isinstance(r, HoldChanged) and r.hold == "storm" and not r.on and not r.actor
        ]
        canary = isinstance(event, CheckFinished) and event.service.startswith(CANARY_PREFIX)
        if ended and not canary:
            assert not self._stormy(ledger), "law 18: a storm ends without evidence"

    def _stormy(self, ledger: Ledger) -> bool:
        """Whether, by our own account, enough independent services have begun to fail within the window."""
        limits, account = ledger.fleet.limits, self.account
        watched = [p for p in ledger.fleet.policies if p.name not in ledger.unwatched]
        failing = {n for n, seen in account.services.items() if seen.became_suspect < inf}
        watching = {
            p.name for p in watched if self.conditions[p.name].state is not State.DISABLED and not p.start_grace
        }
        failing &= watching  # within its grace a failure may be excused
        lone = {n for n in failing if not account.of(n).excusable}
        recent = [n for n in lone if account.of(n).became_suspect > self.now - limits.storm_window]
        independent = len(watched) - len({c for parent in failing for c in ledger.children.get(parent, ())} & failing)
        return len(recent) >= limits.storm_floor and len(recent) >= limits.storm_share * independent

    def _patience(self, policy: Policy, record: Intended, condition: Condition) -> None:
        """An attempt begins no sooner than the backoff (or the slow retry) after the last one was over."""
        name = policy.name
        times = self.confirmed.get(name, [])
        for flap in () if condition.in_attempt else policy.flapping:
            often = sum(time > record.at - flap.per for time in times)
            assert often < flap.limit, f"{name} was confirmed down {often} times within {flap.per:g} s, and is acted on"
        if condition.in_attempt or name not in self.over:
            return
        over, attempts = self.over[name]
        if attempts >= policy.max_retries:
            slow = policy.slow_retry
            assert slow is not None and record.at >= over + slow, f"{name}: an attempt after the last one"  # noqa: PT018  # one law, one sentence
            return
        least = delay(
            policy.backoff, attempts - self.before_well.get(name, 0), 0.0
        )  # the level may be forgotten by then
        assert record.at >= over + least, f"{name}: attempt {record.attempt} after {record.at - over:g} s of {least:g}"

    def _budgets(self, ledger: Ledger, policy: Policy, at: float) -> None:
        mine = [entry.at for entry in self.spent.get(policy.name, ())]
        for budget in policy.budgets:
            within = 1 + sum(time > at - budget.per for time in mine)
            assert within <= budget.limit, f"law 10: {policy.name} over {budget.limit} in {budget.per:g} s"
        limits = ledger.fleet.limits
        most = max(limits.budget_floor, int(limits.budget_share * len(ledger.policies)))
        within = 1 + sum(e.at > at - limits.budget_per for entries in self.spent.values() for e in entries[-most - 1 :])
        assert within <= most, f"law 10: the fleet over {most} in {limits.budget_per:g} s"

    # -- what is commanded, and what must hold after every event ------------------------------------------------------

    def _commanded(self, ledger: Ledger, output: Output) -> None:
        flying = self.account.flying
        for command in output.commands:
            if isinstance(command, RunAction):
                intended = self.running.get(command.intent)
                assert intended is not None, f"law 12: {command.intent} runs without an intent"
                assert command.expected == intended.expected, "law 17: the command expects another than its intent"
                flying.pop(command.service, None)
            elif isinstance(command, RunCheck):
                name = command.service
                if _stale(command, ledger):
                    continue  # it was commanded by a timer, and made stale by the event that came after
                acting = [i for i in self.running.values() if i.service == name]
                assert not acting, f"law 4: {name} is checked while acted on"
                known = flying.get(name)
                assert known is None or command.generation > known[0], f"law 4: two checks of {name} at once"
                flying[name] = (command.generation, command.purpose)
                if not name.startswith(CANARY_PREFIX):
                    self._check_law(ledger, command)
            elif isinstance(command, Settle):
                assert command.intent in self.running, f"law 12: {command.intent} is settled without an intent"

    def _check_law(self, ledger: Ledger, command: RunCheck) -> None:
        name = command.service
        policy, condition = ledger.policies[name], self.conditions[name]
        assert condition.state is not State.DISABLED, f"law 11: {name} is checked while DISABLED"
        assert name not in ledger.unwatched, f"law 19: {name} is checked though it is not watched"
        suspect = condition.state not in WELL
        assert command.inspect or not (suspect and policy.has_workload), f"law 17: {name} is checked without inspect"

    def _fleet_law(self, ledger: Ledger, event: Event, output: Output) -> None:
        sets = any(isinstance(record, FleetSet) for record in output.records)
        if isinstance(event, FleetProposed):
            names = {policy.name for policy in event.fleet.policies}
            before = self.fleet
            gone = sum(policy.name not in names for policy in before.policies)
            too_much = gone > before.limits.max_fleet_drop * len(before.policies) and not event.confirmed
            assert not (too_much and sets), f"law 19: {gone} of {len(before.policies)} services dropped, unconfirmed"
            assert sets is ledger.answers[event.id][0], "law 19: the answer to a proposed fleet is not what was done"
        else:
            by_act = isinstance(event, Requested) and event.act == "release"
            assert not sets or by_act or isinstance(event, Started), "law 19: the fleet changes without being proposed"
        self.fleet = ledger.fleet

    def _standing(self, engine: Engine) -> None:
        ledger = engine.ledger
        recovering = {name for name, condition in ledger.conditions.items() if condition.state is State.RECOVERING}
        occupied = recovering | {intent.service for intent in ledger.intents.values()}
        assert set(ledger.occupied) == occupied, "the index of the occupied is off"
        assert set(self.running) == set(ledger.intents), "law 12: an open intent is forgotten or invented"
        assert self.alerts == ledger.alerts, "law 14: what is open is not what was opened and not resolved"
        assert self.opened == self.resolved + len(ledger.alerts), (
            f"law 14: {self.opened} opened, {self.resolved} resolved"
        )
        members = {c.incident for c in ledger.conditions.values() if c.incident is not None}
        assert members == set(ledger.incidents), f"incidents {set(ledger.incidents)} but members {members}"
        for name in engine.desk.reserved:
            held = ledger.conditions[name].state is State.FAILED and engine.in_flight(name) is not None
            assert held, f"law 10: {name} keeps a slot it does not use"
        for name, condition in ledger.conditions.items():
            if condition.state is State.DISABLED or name in ledger.unwatched:
                assert condition.incident is None or name in ledger.unwatched, f"{name} is disabled in an incident"
                assert name not in engine.lookout.storm, f"law 18: {name} is not watched, yet counts as failing"
                continue
            self._not_forgotten(engine, name, condition)

    def _not_forgotten(self, engine: Engine, name: str, condition: Condition) -> None:
        """Something is truly in flight, or a time is set (law 5)."""
        flight, due = engine.in_flight(name), engine.due(name)
        if flight is not None:
            known = self.account.flying.get(name)
            assert known is not None, f"law 5: {name} awaits a check that nobody runs"
            assert known[0] == condition.generation, f"law 5: {name} awaits a check whose result is stale"
            return
        alive = due < inf or engine.ledger.acting(name) is not None
        assert alive, f"law 5: {name} ({condition.state}, {condition.reason}) is forgotten"

    # -- asking -------------------------------------------------------------------------------------------------------

    def _asking(self, engine: Engine, output: Output) -> None:
        """Asking changes nothing (law 22); what nothing holds is acted on (21); stored forms read back (20a)."""
        ledger = engine.ledger
        before = asking_sees(engine)
        for name, condition in ledger.conditions.items():
            free = condition.state is State.FAILED and name not in ledger.unwatched and ledger.acting(name) is None
            if free and not any(hold for _, hold in engine.explain(name)):
                self._free(engine, name, condition)
            else:
                self.free_since.pop(name, None)
        assert asking_sees(engine) == before, "law 22: asking changed something"
        for record in output.records:
            assert decode_record(json.loads(dumps(encode_record(record)))) == record, (
                f"law 20a: {record.kind} is altered"
            )
        if self.seen % (self.ask_every * 40) == 0:
            image = engine.snapshot()
            assert decode(Snapshot, json.loads(dumps(encode(image)))) == image, "law 20a: the snapshot is altered"

    def _free(self, engine: Engine, name: str, condition: Condition) -> None:
        """A FAILED service that nothing holds has its action begin within a bound (law 21)."""
        policy = engine.ledger.policies[name]
        doubts, since = self.account.doubts, self.free_since.setdefault(name, self.now)
        seen = self.account.of(name)
        if seen.inconclusive or not seen.failing or doubts or seen.cause is Cause.STARTING:
            self.free_since[name] = self.now  # what was seen of it does not tell whether it is still down
            self.account.doubts = 0
            return
        bound = 2 * policy.interval * (1 + policy.jitter) + 3 * self.slowest.get(name, 0.0) + 5.0 + policy.start_grace
        waited = self.now - since
        assert waited <= bound, f"law 21: {name} waits {waited:.0f} s for its action though nothing holds it"


def _stale(command: RunCheck, ledger: Ledger) -> bool:
    """Whether a check is of a service or a canary that is gone by now, or of an older generation."""
    if command.service.startswith(CANARY_PREFIX):
        return command.service.removeprefix(CANARY_PREFIX) not in {canary.name for canary in ledger.fleet.canaries}
    condition = ledger.conditions.get(command.service)
    return condition is None or command.generation < condition.generation
