"""The decided state of the fleet, as a fold of records.

`apply` is the ONLY writer: whatever is decided is first said as a record. So the journal can be folded into the same
state, a crash loses nothing that was said, and nothing that was not said was ever believed. A record carries whole
values (after-images), so `apply` looks at no policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias, assert_never

import attrs

from selfheal.core.model import (
    KEPT_SPENT,
    Alert,
    Condition,
    Dependency,
    DependencyKind,
    Fleet,
    Incident,
    Policy,
    State,
    Suppression,
)
from selfheal.core.records import (
    AlertChanged,
    Answered,
    Delivered,
    Doubted,
    Ended,
    FleetSet,
    HoldChanged,
    IncidentClosed,
    IncidentMerged,
    IncidentOpened,
    Intended,
    Moved,
    Record,
    Resumed,
    SuppressionChanged,
)

FRESH: Final = Condition()
WELL: Final = frozenset({State.HEALTHY, State.DEGRADED})
"""States in which a service serves."""

_KEPT_FLEET_SPENT: Final = 20_000
_KEPT_ANSWERS: Final = 512

AlertKey: TypeAlias = str


@attrs.frozen(kw_only=True)
class Spent:
    """One action that began: what budgets and cooldowns look at. `counts`: automatic and disruptive."""

    intent: str
    action: str
    at: float
    counts: bool


@attrs.frozen(kw_only=True)
class Snapshot:
    """Everything a `Ledger` holds, as one value with a stored form. `number` is the batch it is good for."""

    at: float = 0.0
    number: int = 0
    fleet: Fleet = attrs.field(factory=Fleet)
    unwatched: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    conditions: dict[str, Condition] = attrs.field(factory=dict)
    intents: dict[str, Intended] = attrs.field(factory=dict)
    spent: dict[str, tuple[Spent, ...]] = attrs.field(factory=dict)
    fleet_spent: tuple[float, ...] = ()
    incidents: dict[str, Incident] = attrs.field(factory=dict)
    last_incident: int = 0
    alerts: dict[str, Alert] = attrs.field(factory=dict)
    last_alert: int = 0
    suppressions: dict[str, Suppression] = attrs.field(factory=dict)
    holds: dict[str, str] = attrs.field(factory=dict)
    answers: tuple[tuple[str, bool, str], ...] = ()


class Ledger:
    """Decided state: read it freely, write it only through `apply`."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        s = snapshot or Snapshot()
        self.at = s.at
        self.fleet = s.fleet
        self.unwatched = dict.fromkeys(s.unwatched)
        self.off = dict.fromkeys(s.off)  # switched off by a person, and gone from the fleet since: off is off
        self.conditions = dict(s.conditions)
        self.intents = dict(s.intents)
        self.spent = dict(s.spent)
        self.fleet_spent = list(s.fleet_spent)
        self.incidents = {int(number): incident for number, incident in s.incidents.items()}
        self.last_incident = s.last_incident
        self.alerts: dict[AlertKey, Alert] = dict(s.alerts)
        self.last_alert = s.last_alert
        self.suppressions = dict(s.suppressions)
        self.holds = dict(s.holds)
        self.answers = {id_: (accepted, because) for id_, accepted, because in s.answers}
        # derived
        self.policies: dict[str, Policy] = {}
        self.children: dict[str, tuple[str, ...]] = {}
        self.members: dict[int, dict[str, None]] = {}
        self.occupied: dict[str, None] = {}
        self._index_fleet()
        for name, condition in self.conditions.items():
            self._index(name, FRESH, condition)
        for intent in self.intents.values():
            self.occupied[intent.service] = None

    @classmethod
    def fold(cls, records: Iterable[Record], snapshot: Snapshot | None = None) -> Ledger:
        """Return the state after `records`, beginning at `snapshot` or at nothing."""
        ledger = cls(snapshot)
        for record in records:
            ledger.apply(record)
        return ledger

    def image(self, number: int = 0) -> Snapshot:
        """Return everything held, as one value."""
        return Snapshot(
            at=self.at,
            number=number,
            fleet=self.fleet,
            unwatched=tuple(self.unwatched),
            off=tuple(self.off),
            conditions=dict(self.conditions),
            intents=dict(self.intents),
            spent=dict(self.spent),
            fleet_spent=tuple(self.fleet_spent),
            incidents={str(number): incident for number, incident in self.incidents.items()},
            last_incident=self.last_incident,
            alerts=dict(self.alerts),
            last_alert=self.last_alert,
            suppressions=dict(self.suppressions),
            holds=dict(self.holds),
            answers=tuple((id_, accepted, because) for id_, (accepted, because) in self.answers.items()),
        )

    def apply(self, record: Record) -> None:
        """Take one record in. The only writer."""
        self.at = record.at
        match record:
            case Moved(service=name, after=after):
                before = self.conditions.get(name, FRESH)
                self.conditions[name] = after
                self._index(name, before, after)
            case Intended():
                self._intended(record)
            case Ended():
                self._ended(record)
            case IncidentOpened(incident=incident):
                self.incidents[incident.number] = incident
                self.last_incident = max(self.last_incident, incident.number)
            case IncidentMerged(incident=number) | IncidentClosed(incident=number):
                self.incidents.pop(number, None)
            case FleetSet():
                self._fleet_set(record)
            case AlertChanged(alert=alert):
                key = alert_key(alert.service, alert.rule)
                if record.open:
                    self.alerts[key] = alert
                    self.last_alert = max(self.last_alert, int(alert.id[1:]))
                else:
                    self.alerts.pop(key, None)
            case SuppressionChanged(suppression=suppression, on=on):
                if on:
                    self.suppressions[suppression.id] = suppression
                else:
                    self.suppressions.pop(suppression.id, None)
            case HoldChanged(hold=hold, on=on, evidence=evidence):
                if on:
                    self.holds[hold] = evidence
                else:
                    self.holds.pop(hold, None)
            case Answered(id=id_, accepted=accepted, because=because):
                self.answers[id_] = (accepted, because)
                while len(self.answers) > _KEPT_ANSWERS:
                    del self.answers[next(iter(self.answers))]
            case Doubted() | Resumed() | Delivered():
                pass
            case _:
                assert_never(record)

    # -- what a record changes, by its kind --------------------------------------------------------------------------

    def _intended(self, record: Intended) -> None:
        name = record.service
        self.intents[record.intent] = record
        self.occupied[name] = None
        spent = Spent(intent=record.intent, action=record.action, at=record.at, counts=record.spends)
        entries = [*self.spent.get(name, ()), spent]
        if len(entries) > KEPT_SPENT:  # what no budget counts goes first
            del entries[next((place for place, entry in enumerate(entries) if not entry.counts), 0)]
        self.spent[name] = tuple(entries)
        if record.spends:
            self.fleet_spent.append(record.at)
            del self.fleet_spent[:-_KEPT_FLEET_SPENT]

    def _ended(self, record: Ended) -> None:
        intended = self.intents.pop(record.intent, None)
        if intended is None:
            return
        name = record.service
        if record.refunded:
            spent = tuple(entry for entry in self.spent.get(name, ()) if entry.intent != record.intent)
            if spent:
                self.spent[name] = spent
            else:
                self.spent.pop(name, None)
            if intended.spends and intended.at in self.fleet_spent:
                self.fleet_spent.remove(intended.at)
        condition = self.conditions.get(name)
        if condition is None or condition.state is not State.RECOVERING:
            self.occupied.pop(name, None)

    def _fleet_set(self, record: FleetSet) -> None:
        self.fleet = record.fleet
        self.unwatched = dict.fromkeys(record.unwatched)
        names = {policy.name for policy in record.fleet.policies}
        for gone in [name for name in self.conditions if name not in names]:
            self._index(gone, self.conditions[gone], FRESH)
            if not self.conditions.pop(gone).enabled:
                self.off[gone] = None
        for policy in record.fleet.policies:
            if policy.name not in self.conditions:
                enabled = policy.name not in self.off
                self.off.pop(policy.name, None)
                self.conditions[policy.name] = FRESH if enabled else attrs.evolve(FRESH, enabled=False)
        self._index_fleet()

    # -- indexes: derived from what is above, never stored -------------------------------------------------------------

    def _index_fleet(self) -> None:
        self.policies = {policy.name: policy for policy in self.fleet.policies}
        children: dict[str, dict[str, None]] = {}
        for policy in self.fleet.policies:
            for dependency in hard(policy):
                for parent in dependency.services:
                    children.setdefault(parent, {})[policy.name] = None
        self.children = {parent: tuple(names) for parent, names in children.items()}

    def _index(self, name: str, before: Condition, after: Condition) -> None:
        if before.incident != after.incident:
            if before.incident is not None:
                members = self.members.get(before.incident, {})
                members.pop(name, None)
                if not members:
                    self.members.pop(before.incident, None)
            if after.incident is not None:
                self.members.setdefault(after.incident, {})[name] = None
        elif after.incident is not None:
            self.members.setdefault(after.incident, {})[name] = None
        if after.state is State.RECOVERING:
            self.occupied[name] = None
        elif not self.acting(name):
            self.occupied.pop(name, None)

    # -- questions ---------------------------------------------------------------------------------------------------

    def acting(self, name: str) -> Intended | None:
        """Return the open intent of a service, if there is one: at most one (law 4)."""
        return next((intent for intent in self.intents.values() if intent.service == name), None)

    def root_of(self, incident: int | None) -> str | None:
        """Return the service an open incident began with."""
        found = self.incidents.get(incident) if incident is not None else None
        return found.root if found is not None else None


def hard(policy: Policy) -> tuple[Dependency, ...]:
    """Return the dependencies that a service waits for."""
    return tuple(d for d in policy.depends_on if d.kind is DependencyKind.HARD)


def alert_key(service: str, rule: str) -> AlertKey:
    """Return the key of the one alert a service may have open under a rule."""
    return f"{service}\x1f{rule}"
