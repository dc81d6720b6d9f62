"""Incidents: one number for one outage, whatever it drags down with it.

A failing child of a parent that is down is folded into the parent's incident. When the child was seen first, its own
incident is merged into the parent's as soon as that opens. Where any of several parents will do, one of them that is
down explains nothing while another is well. A relapse within probation opens the same incident again. An incident
closes when its last member is well, disabled or gone.

The functions yield records one by one; the caller applies each before asking for the next, so that a generator sees
its own effects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from selfheal.core.ledger import FRESH, WELL, Ledger, hard
from selfheal.core.model import Condition, Dependency, Incident, Policy, State, WhenDisabled
from selfheal.core.records import IncidentClosed, IncidentMerged, IncidentOpened, Moved, Record

_DOWN: Final = frozenset({State.FAILED, State.RECOVERING})


def belongs_to(ledger: Ledger, policy: Policy, condition: Condition, now: float) -> tuple[int, bool, bool]:
    """Return the incident a failure at `now` belongs to: its number, whether to open it, whether it is a relapse."""
    last = condition.last_incident
    relapse = last is not None and now <= condition.probation_until
    for dependency in hard(policy):
        for parent in dependency.services:
            above = ledger.conditions.get(parent, FRESH)
            if above.incident is not None and above.state in _DOWN and _irreplaceable(ledger, dependency, parent):
                return above.incident, False, above.incident == last
    if relapse:
        assert last is not None
        return last, last not in ledger.incidents, True
    return ledger.last_incident + 1, True, False


def _irreplaceable(ledger: Ledger, dependency: Dependency, parent: str) -> bool:
    """Whether no other member of the dependency will do in the place of `parent`."""
    for other in dependency.services:
        state = ledger.conditions.get(other, FRESH).state
        passed_over = state is State.DISABLED and dependency.when_disabled is WhenDisabled.PROCEED
        if other != parent and (state in WELL or passed_over):
            return False
    return True


def explained(ledger: Ledger, policy: Policy) -> bool:
    """Whether something it needs, however far above, is down: what it fails then says nothing of itself."""
    seen, todo = {policy.name: None}, [policy]
    while todo:
        for dependency in hard(todo.pop()):
            for parent in dependency.services:
                above = ledger.policies.get(parent)
                if above is None or parent in seen or not _irreplaceable(ledger, dependency, parent):
                    continue
                if ledger.conditions[parent].state in _DOWN:
                    return True
                seen[parent] = None
                todo.append(above)
    return False


def opened(name: str, number: int, now: float, correlation: str, *, reopened: int = 0) -> Record:
    """Return the record that opens an incident, or opens it again."""
    incident = Incident(number=number, root=name, since=now, correlation=correlation, reopened=reopened)
    return IncidentOpened(at=now, service=name, incident=incident)


def merged(ledger: Ledger, parent: str, into: int, now: float) -> Iterator[Record]:
    """Yield the records that fold the incidents of `parent`'s dependents into `into`."""
    for number in _below(ledger, parent, into):
        for name in sorted(ledger.members.get(number, ())):  # the order they came in is not kept by a snapshot
            condition = ledger.conditions[name]
            after = attrs.evolve(condition, incident=into)
            begun = ledger.incidents[number]
            if name == begun.root and condition.confirmed and condition.confirmed[-1] >= begun.since:
                # It was believed before its parent was: that was the parent's failure, not its own flapping.
                after = attrs.evolve(after, confirmed=condition.confirmed[:-1])
            yield Moved(at=now, service=name, before=condition, after=after, because=f"its parent {parent} is down")
        yield IncidentMerged(at=now, service=ledger.incidents[number].root, incident=number, into=into)


def _below(ledger: Ledger, parent: str, into: int) -> list[int]:
    """The open incidents of dependents of `parent`, however far below, that began with one of them or with itself.

    With itself: an earlier outage of the parent, of which a dependent has not come back yet.
    """
    found: dict[int, None] = {}
    seen = {parent: None}
    todo = [parent]
    while todo:
        above = todo.pop()
        for child in ledger.children.get(above, ()):
            needed = [d for d in hard(ledger.policies[child]) if above in d.services]
            if child in seen or not any(_irreplaceable(ledger, dependency, above) for dependency in needed):
                continue
            seen[child] = None
            todo.append(child)
            number = ledger.conditions[child].incident
            if number is not None and number != into:
                found[number] = None
    return [number for number in found if ledger.root_of(number) in seen]


def left(ledger: Ledger, name: str, number: int | None, now: float, because: str) -> Iterator[Record]:
    """Yield the record that closes incident `number` when `name` was its last member."""
    if number is None or number not in ledger.incidents or ledger.members.get(number):
        return
    since = ledger.incidents[number].since
    yield IncidentClosed(at=now, service=name, incident=number, because=because, duration=now - since)
