"""What the laws remember of a simulation: an account of its own of all that was said.

Owns the learning, which says nothing about right and wrong; `laws` holds what is said and done against it.
"""

from __future__ import annotations

from collections import deque
from math import inf

from selfheal.core.ledger import alert_key
from selfheal.core.model import Alert, Condition, Incident, Settled, State
from selfheal.core.records import (
    AlertChanged,
    Answered,
    Ended,
    FleetSet,
    HoldChanged,
    IncidentClosed,
    IncidentMerged,
    IncidentOpened,
    Intended,
    Moved,
    Record,
)
from selfheal.testing.witness import Account

DOWN = (State.FAILED, State.RECOVERING)
"""A service is confirmed down, whether something is done about it or not."""


class Past:
    """What the records have said so far, and what was seen of the services (`account`)."""

    def __init__(self) -> None:
        self.account = Account()
        self._forget_records()

    def _forget_records(self) -> None:
        self.running: dict[str, Intended] = {}
        self.spent: dict[str, list[Intended]] = {}
        self.conditions: dict[str, Condition] = {}
        self.alerts: dict[str, Alert] = {}
        self.opened = self.resolved = 0
        self.incidents: dict[int, Incident] = {}
        self.off: dict[str, None] = {}
        self.asked: dict[str, str] = {}
        self.approved: dict[str, str] = {}
        self.over: dict[str, tuple[float, int]] = {}
        self.before_well: dict[str, int] = {}
        self.storm_ended = -inf
        self.given_back: dict[str, int] = {}
        self.attempts: dict[str, int] = {}
        self.confirmed: dict[str, list[float]] = {}
        self.lately: dict[str, deque[float]] = {}

    def _learn(self, record: Record) -> None:
        """Take a record into what the laws remember of the past."""
        if isinstance(record, Moved):
            self.conditions[record.service] = record.after
            afresh = record.after.state in (State.UNKNOWN, State.DISABLED) and record.after.state != record.before.state
            if afresh or record.because.startswith("its check or workload"):
                self.account.forget(record.service)
            if record.after.reason == "held:approval":
                self.asked[record.service] = record.after.detail
            over = record.before.in_attempt and not record.after.in_attempt and record.after.state is State.FAILED
            if over and record.after.attempt == record.before.attempt and record.after.incident is not None:
                self.over[record.service] = (record.at, record.after.attempt)
            elif record.after.state not in DOWN:
                self.over.pop(record.service, None)
                self.before_well[record.service] = record.after.attempt
        elif isinstance(record, Intended):
            self.running[record.intent] = record
            known = self.conditions.get(record.service, Condition())
            if not known.in_attempt:
                self.attempts[record.intent] = known.attempt
            if record.spends:
                self.spent.setdefault(record.service, []).append(record)
            self.approved.pop(record.service, None)
        elif isinstance(record, Ended):
            self._learn_end(record)
        elif isinstance(record, AlertChanged):
            key = alert_key(record.service, record.alert.rule)
            self.opened += record.open and key not in self.alerts
            self.resolved += not record.open
            if record.open:
                self.alerts[key] = record.alert
            else:
                self.alerts.pop(key, None)
        elif isinstance(record, IncidentOpened):
            self.incidents[record.incident.number] = record.incident
        elif isinstance(record, IncidentMerged | IncidentClosed):
            self.incidents.pop(record.incident, None)
        elif isinstance(record, Answered):
            self._learn_answer(record)
        elif isinstance(record, HoldChanged) and record.hold == "storm" and not record.on:
            self.storm_ended = record.at
        elif isinstance(record, FleetSet):
            names = {policy.name for policy in record.fleet.policies}
            fresh = {n: Condition(enabled=n not in self.off) for n in names}  # off is off, wherever it was meanwhile
            self.conditions = {n: self.conditions.get(n, fresh[n]) for n in names}
            self.over.clear()
            self.confirmed.clear()
            self.account.watch_canaries(tuple(canary.name for canary in record.fleet.canaries))
            self.account.keep(names.difference(record.unwatched))
            self.account.blame(record.fleet.policies)

    def _learn_end(self, record: Ended) -> None:
        intended = self.running.pop(record.intent, None)
        attempt = self.attempts.pop(record.intent, None)
        if record.refunded and attempt is not None:
            self.given_back[record.service] = attempt
        seen = self.account.of(record.service)
        if not record.refunded:
            seen.counts_afresh()
            seen.passes, seen.instance, seen.run_id = 0, None, None
        elif record.settled is Settled.SUPERSEDED:
            seen.fails, seen.failing_since = 0, inf
        if intended is not None and record.refunded and intended.spends:
            self.spent[record.service].remove(intended)

    def _learn_answer(self, record: Answered) -> None:
        if not record.accepted:
            return
        if record.act == "disable":
            self.off[record.service] = None
        elif record.act == "enable":
            self.off.pop(record.service, None)
        elif record.act == "approve":
            self.approved[record.service] = self.asked.get(record.service, "")
