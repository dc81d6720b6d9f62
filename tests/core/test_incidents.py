"""One number for one outage: opened, folded, merged, opened again by a relapse, closed with its last member."""

from __future__ import annotations

from typing import Any

import pytest

from selfheal.core import incidents
from selfheal.core.ledger import Ledger
from selfheal.core.model import Condition, Dependency, DependencyKind, Fleet, Incident, Policy, State, WhenDisabled
from selfheal.core.records import FleetSet, IncidentClosed, IncidentMerged, IncidentOpened, Moved, Record


def needs(*services: str, **changes: Any) -> Dependency:
    return Dependency(services=services, **changes)


DB = Policy(name="db")
API = Policy(name="api", depends_on=(needs("db"),))
WEB = Policy(name="web", depends_on=(needs("api"),))
LEFT, RIGHT = Policy(name="left"), Policy(name="right")
READER = Policy(name="reader", depends_on=(needs("left", "right"),))
CACHED = Policy(name="cached", depends_on=(needs("db", kind=DependencyKind.SOFT),))
FLEET = Fleet(policies=(DB, API, WEB, LEFT, RIGHT, READER, CACHED))


def well(name: str) -> Record:
    return moved(name, state=State.HEALTHY)


def moved(name: str, **changes: Any) -> Record:
    return Moved(at=1.0, service=name, before=Condition(), after=Condition(**changes))


def down(name: str, number: int, state: State = State.FAILED) -> list[Record]:
    opened = IncidentOpened(at=1.0, service=name, incident=Incident(number=number, root=name, since=1.0))
    return [opened, moved(name, state=state, incident=number)]


def ledger(*said: Record | list[Record]) -> Ledger:
    records = [one for part in said for one in (part if isinstance(part, list) else [part])]
    return Ledger.fold([FleetSet(at=0.0, fleet=FLEET), *(well(policy.name) for policy in FLEET.policies), *records])


def belongs(
    one: Ledger, policy: Policy, condition: Condition | None = None, now: float = 10.0
) -> tuple[int, bool, bool]:
    return incidents.belongs_to(one, policy, condition or one.conditions[policy.name], now)


def fold(one: Ledger, parent: str, into: int) -> list[Record]:
    said = []
    for record in incidents.merged(one, parent, into, 9.0):
        one.apply(record)
        said.append(record)
    return said


# -- where a failure belongs ----------------------------------------------------------------------------------------


def test_a_failure_of_its_own_opens_the_next_number() -> None:
    assert belongs(ledger(), DB) == (1, True, False)
    assert belongs(ledger(down("left", 4)), DB) == (5, True, False)


@pytest.mark.parametrize("state", [State.FAILED, State.RECOVERING])
def test_a_child_of_a_parent_that_is_down_is_folded_into_its_incident(state: State) -> None:
    assert belongs(ledger(down("db", 3, state)), API) == (3, False, False)


def test_a_parent_that_is_merely_suspect_explains_nothing_yet() -> None:
    assert belongs(ledger(moved("db", state=State.UNHEALTHY)), API) == (1, True, False)


def test_a_soft_parent_explains_nothing() -> None:
    assert belongs(ledger(down("db", 3)), CACHED) == (4, True, False)


def test_a_parent_that_nobody_knows_explains_nothing() -> None:
    lost = Policy(name="lost", depends_on=(needs("gone"),))
    assert belongs(ledger(), lost, Condition()) == (1, True, False)


def test_one_replica_down_explains_nothing_while_another_is_well() -> None:
    assert belongs(ledger(down("left", 3)), READER) == (4, True, False)
    both = ledger(down("left", 3), down("right", 4))
    assert belongs(both, READER) == (3, False, False)


def test_a_disabled_replica_that_counts_as_well_explains_nothing_either() -> None:
    off = moved("right", state=State.DISABLED)
    assert belongs(ledger(down("left", 3), off), READER) == (4, True, False)
    waits = Policy(name="reader", depends_on=(needs("left", "right", when_disabled=WhenDisabled.WAIT),))
    assert belongs(ledger(down("left", 3), off), waits, Condition()) == (3, False, False)


def test_a_relapse_within_probation_is_the_same_incident() -> None:
    healed = Condition(last_incident=2, probation_until=300.0)
    assert belongs(ledger(), DB, healed, 300.0) == (2, True, True)
    assert belongs(ledger(), DB, healed, 300.1) == (1, True, False)


def test_a_relapse_into_an_incident_that_is_still_open_does_not_open_it_again() -> None:
    healed = Condition(last_incident=3, probation_until=300.0)
    assert belongs(ledger(down("api", 3)), DB, healed) == (3, False, True)


def test_a_child_that_relapses_under_its_parent_keeps_its_attempts_only_in_the_same_incident() -> None:
    healed = Condition(last_incident=3, probation_until=300.0)
    assert belongs(ledger(down("db", 3)), API, healed) == (3, False, True)
    assert belongs(ledger(down("db", 4)), API, healed) == (4, False, False)


# -- opening, merging, closing --------------------------------------------------------------------------------------


def test_an_incident_is_opened_and_opened_again() -> None:
    first = incidents.opened("db", 1, 5.0, "db@1.000")
    again = incidents.opened("db", 1, 5.0, "db@1.000", reopened=1)
    assert isinstance(first, IncidentOpened)
    assert isinstance(again, IncidentOpened)
    assert first.incident == Incident(number=1, root="db", since=5.0, correlation="db@1.000")
    assert again.incident.reopened == 1


def test_incidents_of_dependents_however_far_below_are_folded_into_the_roots() -> None:
    one = ledger(down("web", 1), down("api", 2), down("db", 3))
    said = fold(one, "db", 3)
    assert [type(record).__name__ for record in said] == ["Moved", "IncidentMerged"] * 2
    assert {record.into for record in said if isinstance(record, IncidentMerged)} == {3}
    assert list(one.incidents) == [3]
    assert {one.conditions[name].incident for name in ("db", "api", "web")} == {3}


def test_an_incident_that_began_elsewhere_is_not_folded() -> None:
    one = ledger(down("mail", 1), moved("api", state=State.FAILED, incident=1), down("db", 2))
    assert fold(one, "db", 2) == []
    assert one.conditions["api"].incident == 1


def test_a_reader_with_a_well_replica_keeps_its_own_incident() -> None:
    one = ledger(down("reader", 1), down("left", 2))
    assert fold(one, "left", 2) == []
    one = ledger(down("reader", 1), down("left", 2), down("right", 3))
    assert [type(record).__name__ for record in fold(one, "right", 3)] == ["Moved", "IncidentMerged"]


def test_a_service_below_two_ways_is_folded_once() -> None:
    both = Policy(name="both", depends_on=(needs("db"), needs("api")))
    one = Ledger.fold([FleetSet(at=0.0, fleet=Fleet(policies=(DB, API, both))), *down("both", 1), *down("db", 2)])
    assert len(fold(one, "db", 2)) == 2


def test_an_incident_closes_with_its_last_member() -> None:
    one = ledger(down("db", 1), moved("api", state=State.FAILED, incident=1))
    one.apply(well("db"))
    assert list(incidents.left(one, "db", 1, 9.0, "verified")) == []
    one.apply(well("api"))
    (closed,) = incidents.left(one, "api", 1, 9.0, "healed")
    assert closed == IncidentClosed(at=9.0, service="api", incident=1, because="healed", duration=8.0)


def test_nothing_closes_that_is_not_open() -> None:
    assert list(incidents.left(ledger(), "db", None, 9.0, "")) == []
    assert list(incidents.left(ledger(), "db", 7, 9.0, "")) == []


# -- what explains a failure ----------------------------------------------------------------------------------------


def test_a_parent_that_is_down_explains_what_its_dependents_fail_however_far_below() -> None:
    one = ledger(down("db", 1))
    assert incidents.explained(one, API)
    assert incidents.explained(one, WEB)
    assert not incidents.explained(one, DB)
    assert not incidents.explained(one, CACHED)
    assert not incidents.explained(ledger(), API)
    assert not incidents.explained(one, Policy(name="lost", depends_on=(needs("gone"),)))


def test_one_replica_of_two_explains_nothing() -> None:
    assert not incidents.explained(ledger(down("left", 1)), READER)
    assert incidents.explained(ledger(down("left", 1), down("right", 2)), READER)
