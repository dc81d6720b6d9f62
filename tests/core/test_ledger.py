"""Decided state is a fold of records: each kind of record, the indexes, the image, and the fold law."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from tests.core.bench import service, simulate

from selfheal.core.ledger import FRESH, Ledger, Snapshot, alert_key, hard
from selfheal.core.model import (
    Alert,
    Binds,
    Condition,
    Dependency,
    DependencyKind,
    Fleet,
    Incident,
    Policy,
    Settled,
    Severity,
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
    decode,
    encode,
)

DB = Policy(name="db")
API = Policy(
    name="api", depends_on=(Dependency(services=("db",)), Dependency(services=("cache",), kind=DependencyKind.SOFT))
)


def fold(*records: Record) -> Ledger:
    return Ledger.fold((FleetSet(at=0.0, fleet=Fleet(policies=(DB, API))), *records))


def void(_: object) -> None:
    """Let an answer go."""


def moved(name: str = "db", at: float = 1.0, **changes: Any) -> Moved:
    return Moved(at=at, service=name, before=FRESH, after=Condition(**changes))


def intended(intent: str = "1/db/1/0", at: float = 2.0, **changes: Any) -> Intended:
    return Intended(
        **{
            "at": at,
            "intent": intent,
            "service": "db",
            "incident": 1,
            "attempt": 1,
            "step": 0,
            "action": "restart",
            **changes,
        }
    )


def ended(intent: str = "1/db/1/0", at: float = 3.0, **changes: Any) -> Ended:
    return Ended(**{"at": at, "intent": intent, "service": "db", "settled": Settled.DONE, **changes})


# -- the fleet ------------------------------------------------------------------------------------------------------


def test_a_fleet_gives_each_service_a_fresh_condition_and_knows_who_waits_for_whom() -> None:
    ledger = fold()
    assert ledger.conditions == {"db": FRESH, "api": FRESH}
    assert ledger.children == {"db": ("api",)}
    assert hard(API) == (Dependency(services=("db",)),)


def test_who_stays_in_the_fleet_keeps_its_condition_and_who_leaves_loses_it() -> None:
    ledger = fold(moved("db", state=State.FAILED, incident=1), moved("api", state=State.HEALTHY))
    ledger.apply(FleetSet(at=5.0, fleet=Fleet(policies=(API,)), unwatched=("api",)))
    assert set(ledger.conditions) == {"api"}
    assert ledger.conditions["api"].state is State.HEALTHY
    assert ledger.members == {}
    assert list(ledger.unwatched) == ["api"]


# -- one service ----------------------------------------------------------------------------------------------------


def test_a_move_is_an_after_image() -> None:
    assert fold(moved(state=State.DEGRADED, reason="slow")).conditions["db"].reason == "slow"


def test_who_belongs_to_an_incident_follows_its_members() -> None:
    ledger = fold(moved("db", incident=1), moved("api", incident=1))
    assert list(ledger.members[1]) == ["db", "api"]
    ledger.apply(moved("db", incident=2))
    assert (list(ledger.members[1]), list(ledger.members[2])) == (["api"], ["db"])
    ledger.apply(moved("api"))
    assert list(ledger.members) == [2]
    ledger.apply(moved("db", incident=2, state=State.HEALTHY))
    assert list(ledger.members[2]) == ["db"]


def test_a_recovery_occupies_its_service_until_it_is_over() -> None:
    ledger = fold(intended())
    assert (list(ledger.occupied), ledger.acting("db"), ledger.acting("api")) == (
        ["db"],
        ledger.intents["1/db/1/0"],
        None,
    )
    ledger.apply(moved(state=State.RECOVERING))
    ledger.apply(ended())
    assert (list(ledger.occupied), ledger.acting("db")) == (["db"], None)  # its effect is being verified
    ledger.apply(moved(state=State.HEALTHY))
    assert not ledger.occupied


def test_an_action_goes_on_occupying_a_service_that_was_switched_off() -> None:
    ledger = fold(moved(state=State.RECOVERING), intended(), moved(state=State.DISABLED))
    assert list(ledger.occupied) == ["db"]
    ledger.apply(ended())
    assert not ledger.occupied


def test_an_action_goes_on_occupying_a_service_that_has_left_the_fleet() -> None:
    ledger = fold(intended())
    ledger.apply(FleetSet(at=5.0, fleet=Fleet()))
    assert list(ledger.occupied) == ["db"]
    ledger.apply(ended())
    assert not ledger.occupied


# -- what is spent --------------------------------------------------------------------------------------------------


def test_an_action_is_spent_when_it_begins() -> None:
    ledger = fold(intended(), intended("1/db/1/1", at=4.0, action="flush", spends=False))
    assert [(entry.action, entry.at, entry.counts) for entry in ledger.spent["db"]] == [
        ("restart", 2.0, True),
        ("flush", 4.0, False),
    ]
    assert ledger.fleet_spent == [2.0]


def test_what_never_started_is_given_back_and_nothing_else() -> None:
    ledger = fold(intended(), ended(), intended("1/db/2/0", at=9.0), ended("1/db/2/0", at=9.5, refunded=True))
    assert [entry.at for entry in ledger.spent["db"]] == [2.0]
    assert ledger.fleet_spent == [2.0]
    only = fold(intended(), ended(refunded=True))
    assert only.spent == {}
    assert only.fleet_spent == []
    gentle = fold(intended(spends=False), ended(refunded=True))
    assert gentle.spent == {}


def test_a_refund_older_than_what_is_remembered_changes_nothing() -> None:
    ledger = fold(intended())
    ledger.spent, ledger.fleet_spent = {}, []
    ledger.apply(ended(refunded=True))
    assert (ledger.spent, ledger.fleet_spent) == ({}, [])


def test_the_end_of_an_intent_that_nobody_knows_changes_nothing() -> None:
    ledger = fold(intended())
    before = ledger.image()
    ledger.apply(ended("9/db/9/9", at=2.0))
    assert ledger.image() == before


def test_what_is_spent_is_remembered_up_to_a_bound() -> None:
    ledger = fold(*(intended(f"1/db/{n}/0", at=float(n)) for n in range(1, 1101)))
    assert len(ledger.spent["db"]) == 1000
    assert ledger.spent["db"][-1].at == 1100.0


# -- incidents, alerts, suppressions, holds, answers ----------------------------------------------------------------


def incident(number: int) -> Incident:
    return Incident(number=number, root="db", since=1.0)


def test_incidents_open_merge_and_close() -> None:
    ledger = fold(*(IncidentOpened(at=1.0, service="db", incident=incident(n)) for n in (1, 2)))
    assert (ledger.last_incident, ledger.root_of(2), ledger.root_of(None), ledger.root_of(7)) == (2, "db", None, None)
    ledger.apply(IncidentMerged(at=2.0, service="db", incident=1, into=2))
    ledger.apply(IncidentClosed(at=3.0, service="db", incident=2))
    assert ledger.incidents == {}
    ledger.apply(IncidentOpened(at=4.0, service="db", incident=incident(1)))
    assert ledger.last_incident == 2


def alert(number: int, rule: str = "failed", service: str = "db") -> Alert:
    return Alert(id=f"a{number}", service=service, rule=rule, severity=Severity.HIGH, since=1.0)


def test_at_most_one_alert_is_open_per_service_and_rule() -> None:
    opened = [AlertChanged(at=1.0, service="db", alert=alert(n), open=True) for n in (1, 3)]
    ledger = fold(*opened)
    assert (list(ledger.alerts), ledger.alerts[alert_key("db", "failed")].id, ledger.last_alert) == (
        [alert_key("db", "failed")],
        "a3",
        3,
    )
    ledger.apply(AlertChanged(at=2.0, service="db", alert=alert(3), open=False))
    ledger.apply(AlertChanged(at=2.0, service="db", alert=alert(3), open=False))
    assert (ledger.alerts, ledger.last_alert) == ({}, 3)


def test_suppressions_and_holds_begin_and_end() -> None:
    pause = Suppression(id="r1", binds=Binds.PAUSED, everything=True)
    ledger = fold(
        SuppressionChanged(at=1.0, suppression=pause, on=True),
        HoldChanged(at=1.0, hold="storm", on=True, evidence="5 of 6"),
    )
    assert (ledger.suppressions, ledger.holds) == ({"r1": pause}, {"storm": "5 of 6"})
    for _ in range(2):
        ledger.apply(SuppressionChanged(at=2.0, suppression=pause, on=False))
        ledger.apply(HoldChanged(at=2.0, hold="storm", on=False))
    assert (ledger.suppressions, ledger.holds) == ({}, {})


def answered(number: int) -> Answered:
    return Answered(
        at=1.0, id=f"r{number}", act="pause", service="", actor="pat", reason="", accepted=True, because="x"
    )


def test_answers_are_remembered_up_to_a_bound() -> None:
    ledger = fold(*map(answered, range(600)))
    assert len(ledger.answers) == 512
    assert "r0" not in ledger.answers
    assert ledger.answers["r599"] == (True, "x")


@pytest.mark.parametrize(
    "record",
    [Doubted(at=7.0, late=1.0), Resumed(at=7.0, away=1.0), Delivered(at=7.0, notification="n", notifier="oncall")],
)
def test_what_decides_nothing_only_moves_the_time(record: Record) -> None:
    before = fold().image()
    assert fold(record).image() == attrs.evolve(before, at=7.0)


# -- the image ------------------------------------------------------------------------------------------------------


def test_a_ledger_begun_from_an_image_is_the_same_ledger() -> None:
    """A day of trouble, cut anywhere: image and the rest fold to the same state and the same indexes."""
    simulator, world = simulate(
        service("db", has_workload=True), service("api", depends_on=(Dependency(services=("db",)),))
    )
    simulator.at(60.0, lambda: world.breaks("db"))
    simulator.at(200.0, lambda: void(simulator.request("pause", everything=True)))
    simulator.at(220.0, lambda: world.breaks("db"))
    simulator.run(700.0)
    records = simulator.records
    whole = Ledger.fold(records)
    for cut in range(len(records) + 1):
        begun = Ledger.fold(records[:cut]).image(7)
        stored = decode(Snapshot, encode(begun))
        assert stored == begun
        ledger = Ledger.fold(records[cut:], stored)
        assert ledger.image() == whole.image()
        assert (ledger.members, ledger.occupied, ledger.children) == (whole.members, whole.occupied, whole.children)


def test_an_image_does_not_change_with_the_ledger_it_was_taken_from() -> None:
    ledger = fold(intended())
    image = ledger.image(3)
    ledger.apply(ended())
    assert list(image.intents) == ["1/db/1/0"]
    assert image.number == 3
    assert list(Ledger(image).occupied) == ["db"]


def test_what_no_budget_counts_is_forgotten_first() -> None:
    gentle = [intended(intent=f"g{number}", at=float(number), spends=number == 7) for number in range(1500)]
    spent = fold(*gentle).spent["db"]
    assert len(spent) == 1000
    assert spent[0].intent == "g7"


def test_who_was_switched_off_when_it_left_is_off_when_it_comes_back() -> None:
    ledger = fold(moved("db", state=State.DISABLED, enabled=False), moved("api", state=State.HEALTHY))
    ledger.apply(FleetSet(at=5.0, fleet=Fleet()))
    assert list(ledger.off) == ["db"]
    again = Ledger(ledger.image())
    again.apply(FleetSet(at=6.0, fleet=Fleet(policies=(Policy(name="db"), API))))
    assert (again.conditions["db"].enabled, again.conditions["api"].enabled) == (False, True)
    assert not again.off
