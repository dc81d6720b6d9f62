"""An incident that is folded takes all of its members along; only its root is forgiven the failure."""

from __future__ import annotations

from tests.core.bench import Hand, service

from selfheal.core.incidents import merged
from selfheal.core.ledger import Ledger
from selfheal.core.model import Condition, Dependency, Fleet, Incident, Policy, State
from selfheal.core.records import FleetSet, IncidentMerged, IncidentOpened, Moved, Record


def test_members_come_along_and_only_the_root_is_forgiven() -> None:
    fleet = Fleet(
        policies=(
            Policy(name="db"),
            Policy(name="api", depends_on=(Dependency(services=("db",)),)),
            Policy(name="web", depends_on=(Dependency(services=("api",)),)),
        )
    )
    down = Condition(state=State.FAILED, incident=1, confirmed=(5.0,))
    history: list[Record] = [
        FleetSet(at=0.0, fleet=fleet),
        IncidentOpened(at=5.0, service="api", incident=Incident(number=1, root="api", since=5.0)),
        Moved(at=5.0, service="api", before=Condition(), after=down),
        Moved(at=5.0, service="web", before=Condition(), after=down),
    ]

    records = list(merged(Ledger.fold(history), "db", 2, 9.0))

    moves = {record.service: record.after for record in records if isinstance(record, Moved)}
    assert {name: after.incident for name, after in moves.items()} == {"api": 2, "web": 2}
    assert moves["api"].confirmed == ()
    assert moves["web"].confirmed == (5.0,)
    assert [record.into for record in records if isinstance(record, IncidentMerged)] == [2]


def test_a_child_that_never_came_back_goes_with_its_parents_next_outage() -> None:
    """Its incident began with the parent's earlier outage; the parent is down again, in an incident of its own."""
    needs_db = (Dependency(services=("db",)),)
    hand = Hand(service("db", probation=0.0), service("api", depends_on=needs_db, steps=()))
    hand.well("db", "api")
    hand.fail("db")
    hand.fail("api")
    first = hand.condition("api").incident
    assert first == hand.condition("db").incident
    hand.recover("db")
    hand.wait(1.0)
    hand.fail("db")
    second = hand.condition("db").incident
    assert second != first
    assert hand.condition("api").incident == second
    assert first not in hand.ledger.incidents


def test_a_root_that_was_not_counted_in_this_outage_keeps_what_it_failed_by_itself_before() -> None:
    fleet = Fleet(policies=(Policy(name="db"), Policy(name="api", depends_on=(Dependency(services=("db",)),))))
    down = Condition(state=State.FAILED, incident=1, confirmed=(5.0, 40.0))
    history: list[Record] = [
        FleetSet(at=0.0, fleet=fleet),
        IncidentOpened(at=50.0, service="api", incident=Incident(number=1, root="api", since=50.0)),
        Moved(at=50.0, service="api", before=Condition(), after=down),
    ]
    records = list(merged(Ledger.fold(history), "db", 2, 60.0))
    assert [one.after.confirmed for one in records if isinstance(one, Moved)] == [(5.0, 40.0)]
