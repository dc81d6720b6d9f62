"""Which matters are open: what a condition calls for, the difference to what is open, and nothing lost."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from selfheal.core import alerts
from selfheal.core.ledger import Ledger
from selfheal.core.model import Alert, Cause, Condition, Fleet, Incident, Policy, Severity, State
from selfheal.core.records import AlertChanged, FleetSet, IncidentOpened, Moved


def down(reason: str = "backoff", **changes: Any) -> Condition:
    return Condition(state=State.FAILED, reason=reason, cause=Cause.FULL, incident=1, **changes)


class Told:
    """A ledger to which conditions are told, with the alerts that follow."""

    def __init__(self, root: str = "db") -> None:
        self.ledger = Ledger.fold(
            [
                FleetSet(at=0.0, fleet=Fleet(policies=(Policy(name="db"), Policy(name="api")))),
                IncidentOpened(at=0.0, service=root, incident=Incident(number=1, root=root, since=0.0)),
            ]
        )
        self.now = 0.0

    def tell(self, condition: Condition, name: str = "db") -> list[AlertChanged]:
        self.now += 1.0
        before = self.ledger.conditions[name]
        self.ledger.apply(Moved(at=self.now, service=name, before=before, after=condition))
        said = []
        for record in alerts.changes(self.ledger, name, condition, self.now):
            self.ledger.apply(record)
            assert isinstance(record, AlertChanged)
            said.append(record)
        return said

    @property
    def open(self) -> dict[str, Alert]:
        return {alert.rule: alert for alert in self.ledger.alerts.values()}


# -- what a condition calls for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.UNKNOWN, State.HEALTHY, State.UNHEALTHY, State.DISABLED])
def test_what_is_not_believed_down_calls_for_nothing(state: State) -> None:
    assert alerts.wanted(Condition(state=state)) == {}


@pytest.mark.parametrize(
    ("condition", "rules"),
    [
        (down(), {"failed": "confirmed down (full)"}),
        (down("waiting-for:db"), {"failed": "confirmed down (full)"}),
        (down("held:paused"), {"failed": "confirmed down (full)"}),
        (
            down("held:flapping", detail="3 times"),
            {"failed": "confirmed down (full)", "flapping": "not restarted again: 3 times"},
        ),
        (
            Condition(state=State.RECOVERING, attempt=2, cursor=1),
            {"failed": "confirmed down", "recovering": "attempt 2, step 2"},
        ),
        (
            Condition(state=State.DEGRADED, reason="warning", detail="disk at 91 %"),
            {"warning": "disk at 91 %"},
        ),
        (Condition(state=State.DEGRADED, reason="warning"), {"warning": "a check warns"}),
        (
            Condition(state=State.DEGRADED, reason="warning", cause=Cause.FULL, detail="every write is refused"),
            {"degraded": "every write is refused"},
        ),
        (Condition(state=State.DEGRADED, reason="warning", cause=Cause.OVERLOADED), {"warning": "a check warns"}),
        (Condition(state=State.DEGRADED, reason="slow"), {"degraded": "slow"}),
        (Condition(state=State.DEGRADED, reason="slow", detail="0.9 s"), {"degraded": "slow: 0.9 s"}),
        (
            down("held:workload", detail="stopped by a person: root"),
            {"failed": "confirmed down (full)"},
        ),
    ],
)
def test_a_condition_calls_for_its_alerts(condition: Condition, rules: dict[str, str]) -> None:
    assert alerts.wanted(condition) == rules


@pytest.mark.parametrize(
    ("kind", "detail"), [(k, detail) for k, details in alerts.UNATTENDED.items() for detail in details]
)
def test_when_nobody_acts_people_are_wanted(kind: str, detail: str) -> None:
    reason = "waiting-for:disk" if kind == "waiting-for" else kind
    said = f", {detail}" if detail else ""
    assert alerts.wanted(down(reason, detail=detail))["unattended"] == f"down (full) and nobody acts: {reason}{said}"
    assert not detail or "unattended" not in alerts.wanted(down(reason, detail="something that passes by itself"))


def test_a_budget_of_the_fleet_and_a_cooldown_page_nobody_for_a_service() -> None:
    for detail in ("fleet: 3 in 300 s", "cooldown of restart: 1 in 60 s"):
        assert "unattended" not in alerts.wanted(down("held:budget", detail=detail))


def test_they_are_told_why_but_not_again_at_each_slow_retry_how_many_there_were() -> None:
    budget = alerts.wanted(down("held:budget", detail="service: 3 in 3600 s"))
    assert budget["unattended"] == "down (full) and nobody acts: held:budget, service: 3 in 3600 s"
    fourth, fifth = (alerts.wanted(down("escalated", detail=f"{n} attempts used")) for n in (4, 5))
    assert fourth == fifth


def test_an_inspection_that_fails_leaves_a_service_unattended() -> None:
    assert "unattended" in alerts.wanted(down("held:workload", detail="inspection failed: no socket"))


# -- the difference -------------------------------------------------------------------------------------------------


def test_an_alert_opens_once_and_resolves_with_health() -> None:
    told = Told()
    (opened,) = told.tell(down())
    assert opened.alert == Alert(
        id="a1",
        service="db",
        rule="failed",
        severity=Severity.HIGH,
        since=1.0,
        text="confirmed down (full)",
        incident=1,
    )
    assert told.tell(down("held:paused")) == []
    (resolved,) = told.tell(Condition(state=State.HEALTHY))
    assert (resolved.open, resolved.because, resolved.alert.id) == (False, "healthy", "a1")


def test_a_page_does_not_flutter_while_a_slow_retry_runs_and_says_why_it_is_open() -> None:
    told = Told()
    told.tell(down("escalated"))
    assert {record.alert.rule for record in told.tell(Condition(state=State.RECOVERING, incident=1))} == {"recovering"}
    assert told.open["unattended"].id == "a1"
    (changed, _) = told.tell(down("held:budget", detail="service: 3 in 3600 s"))
    assert (changed.open, changed.alert.id, changed.because) == (True, "a1", "changed")
    assert "held:budget" in changed.alert.text
    told.tell(Condition(state=State.HEALTHY))
    assert told.open == {}


def test_who_knows_of_one_matter_is_told_of_the_next() -> None:
    told = Told()
    told.tell(down("held:approval", detail="flush"))
    for record in tuple(alerts.acknowledged(told.ledger, "db", "kim", told.now)):
        told.ledger.apply(record)
    told.tell(attrs.evolve(down("held:approval", detail="flush"), cause=Cause.TIMEOUT))
    assert told.open["unattended"].acknowledged_by == "kim"
    told.tell(down("escalated"))
    assert told.open["unattended"].acknowledged_by == ""
    assert told.open["failed"].acknowledged_by == "kim"


def test_in_doubt_and_flapping_stay_open_until_health_too() -> None:
    told = Told()
    told.tell(down("held:flapping"))
    told.ledger.apply(alerts.new(told.ledger, "db", "in_doubt", Severity.HIGH, "who knows", told.now, incident=1))
    told.tell(down("backoff"))
    assert set(told.open) == {"failed", "flapping", "in_doubt"}
    told.tell(Condition(state=State.DISABLED))
    assert told.open == {}


def test_what_cannot_be_observed_is_not_resolved_by_a_move_but_by_being_switched_off() -> None:
    told = Told()
    told.ledger.apply(alerts.new(told.ledger, "db", "unobserved", Severity.LOW, "checks cannot run", 0.0))
    assert told.tell(Condition(state=State.UNHEALTHY)) == []
    assert [record.open for record in told.tell(Condition(state=State.DISABLED))] == [False]


def test_the_alerts_of_a_child_are_folded_into_the_parents_incident() -> None:
    told = Told(root="api")
    (own,) = told.tell(down(), "db")
    assert own.alert.folded
    root = Told(root="db")
    (opened,) = root.tell(down(), "db")
    assert not opened.alert.folded


def test_open_alerts_move_with_their_service_into_another_incident() -> None:
    told = Told()
    told.tell(down("held:flapping"))
    told.ledger.apply(alerts.new(told.ledger, "db", "in_doubt", Severity.HIGH, "?", told.now, incident=1))
    merged = IncidentOpened(at=5.0, service="api", incident=Incident(number=2, root="api", since=5.0))
    told.ledger.apply(merged)
    folded = told.tell(Condition(state=State.FAILED, reason="waiting-for:api", incident=2))
    assert {(record.alert.rule, record.alert.incident, record.alert.folded, record.open) for record in folded} == {
        ("failed", 2, True, True),
        ("flapping", 2, True, True),
        ("in_doubt", 2, True, True),
    }
    assert told.tell(Condition(state=State.FAILED, reason="waiting-for:api", incident=2)) == []


def test_people_can_say_that_they_know() -> None:
    told = Told()
    told.tell(down("escalated"))
    for record in alerts.acknowledged(told.ledger, "db", "pat", 9.0):
        told.ledger.apply(record)
    assert {alert.acknowledged_by for alert in told.open.values()} == {"pat"}
    assert list(alerts.acknowledged(told.ledger, "db", "kim", 9.0)) == []
    told.ledger.apply(alerts.new(told.ledger, "", "storm", Severity.CRITICAL, "5 of 6", 9.0))
    (fleet,) = alerts.acknowledged(told.ledger, "", "kim", 9.0)
    assert isinstance(fleet, AlertChanged)
    assert (fleet.alert.rule, fleet.alert.acknowledged_by, fleet.actor) == ("storm", "kim", "kim")


def test_everything_open_about_a_service_can_be_withdrawn() -> None:
    told = Told()
    told.tell(down("escalated"))
    told.tell(down(), "api")
    for record in alerts.withdrawn(told.ledger, "db", 9.0, "removed from the fleet"):
        told.ledger.apply(record)
    assert {alert.service for alert in told.ledger.alerts.values()} == {"api"}


def test_every_hold_of_the_fleet_has_a_severity_and_no_rule_is_of_both_kinds() -> None:
    assert set(alerts.FLEET_RULES) == {"journal", "storm", "canary", "doubt", "budget", "fleet"}
    assert not set(alerts.FLEET_RULES) & set(alerts.SERVICE_RULES)
    assert set(alerts.STICKY) <= set(alerts.SERVICE_RULES)
