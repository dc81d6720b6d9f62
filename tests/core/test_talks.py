"""What a talk knows by itself: what is news, when it may be told, and when the next message is due."""

from __future__ import annotations

from math import inf
from typing import Any

import attrs
import pytest

from selfheal.core.model import Alert, Notification, Phase, Severity
from selfheal.core.talks import LOST_AFTER, Deliver, Known, Route, Talk

ONCALL = Route(notifier="oncall")


def known(number: int, seen: float = 0.0, severity: Severity = Severity.HIGH, **more: Any) -> Known:
    return Known(
        Alert(**{"id": f"a{number}", "service": "api", "rule": "failed", "severity": severity, "since": 0.0, **more}),
        seen,
    )


def talk(route: Route = ONCALL, **more: Any) -> Talk:
    return attrs.evolve(Talk(route, "incident-1", "api", 1), **more)


def opened(talk: Talk, one: Known, now: float = 0.0, **how: Any) -> Talk:
    talk.open[one.alert.id] = one
    talk.sort(one, now, **{"muted": False, **how})
    return talk


def message(*alerts: str) -> Deliver:
    notification = Notification(
        id="n", incident=1, service="api", phase=Phase.FIRING, severity=Severity.HIGH, title="", text="", since=0.0
    )
    return Deliver(notifier="oncall", notification=notification, alerts=alerts)


# -- routes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"escalate_after": 60.0},
        {"escalate_to": "boss"},
        {"escalate_after": 60.0, "escalate_to": "oncall"},
        {"group_interval": 0.0},
        {"repeat_interval": -1.0},
    ],
)
def test_a_route_that_cannot_work_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"escalate_|_interval"):
        Route(notifier="oncall", **bad)


def test_a_route_takes_what_its_severities_and_services_say() -> None:
    high, low = known(1).alert, known(2, severity=Severity.LOW, service="").alert
    assert ONCALL.takes(high)
    assert ONCALL.takes(low), "the fleet's own alerts too"
    assert not attrs.evolve(ONCALL, severities=[Severity.LOW]).takes(high)
    assert not attrs.evolve(ONCALL, services=("web",)).takes(high)
    assert not attrs.evolve(ONCALL, services=()).takes(low), "law 19: empty means nothing"


def test_who_is_escalated_to_does_not_escalate_further() -> None:
    route = Route(notifier="oncall", escalate_after=60.0, escalate_to="boss", group_wait=5.0)
    assert route.escalated() == Route(notifier="boss", group_wait=5.0)


# -- when news may be told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "severity", "due"),
    [
        ({}, Severity.HIGH, 32.0),
        ({}, Severity.CRITICAL, 10.0),
        ({"route": attrs.evolve(ONCALL, critical_at_once=False)}, Severity.CRITICAL, 32.0),
        ({"at_once": True}, Severity.HIGH, 10.0),
        ({"first": 1.0}, Severity.HIGH, 301.0),
        ({"first": -600.0}, Severity.HIGH, 300.0),
    ],
)
def test_news_waits_for_its_group_or_the_next_tick_unless_it_is_urgent(
    changes: dict[str, Any], severity: Severity, due: float
) -> None:
    one = opened(talk(**changes), known(1, seen=2.0, severity=severity), now=10.0)
    assert one.news == {"a1": due}
    assert one.ready == one.message_due == due


def test_what_a_message_of_this_round_had_is_no_news() -> None:
    one = opened(talk(tried={"a1": None}), known(1))
    assert one.news == {}
    assert one.ready == inf
    assert one.unacknowledged == {"a1": None}


def test_what_is_muted_is_neither_news_nor_waited_for_and_is_told_when_the_silence_ends() -> None:
    one = talk(first=1.0)
    known_one = known(1)
    opened(one, known_one, 5.0)
    one.sort(known_one, 6.0, muted=True)
    assert (one.news, one.unacknowledged, one.ready) == ({}, {}, inf)
    one.sort(known_one, 50.0, muted=False, ended_silence=True)
    assert one.news == {"a1": 50.0}


def test_a_silence_that_ends_before_anything_was_told_hurries_nothing() -> None:
    assert opened(talk(), known(1, seen=2.0), 5.0, ended_silence=True).news == {"a1": 32.0}


def test_sorting_twice_changes_no_due_time() -> None:
    one = opened(talk(), known(1, seen=2.0), 5.0)
    one.sort(one.open["a1"], 20.0, muted=False)
    assert one.news == {"a1": 32.0}


def test_an_acknowledged_alert_is_news_and_is_not_repeated() -> None:
    one = opened(talk(last=0.0), known(1, acknowledged_by="anna"))
    assert one.news
    assert one.repeat_due == inf


# -- what is due ------------------------------------------------------------------------------------------------------


def test_a_message_in_flight_is_waited_for_a_day_and_an_hour() -> None:
    one = opened(talk(in_flight=message("a1"), offered=7.0), known(1))
    assert one.message_due == 7.0 + LOST_AFTER
    assert one.has_told("a1")
    assert not one.has_told("a2")


def test_what_was_told_stays_told_when_nothing_is_in_flight() -> None:
    assert talk(told={"a1": None}).has_told("a1")
    assert not talk().has_told("a1")


def test_a_talk_repeats_itself_while_somebody_has_to_answer() -> None:
    one = opened(talk(last=100.0, tried={"a1": None}), known(1))
    assert one.repeat_due == one.message_due == 100.0 + ONCALL.repeat_interval
    one.folded = True
    assert one.repeat_due == inf


def test_it_is_escalated_once_and_only_while_nobody_has_answered() -> None:
    route = Route(notifier="oncall", escalate_after=600.0, escalate_to="boss")
    assert opened(talk(route, first=30.0), known(1)).escalation_due == 630.0
    assert opened(talk(first=30.0), known(1)).escalation_due == inf
    assert opened(talk(route, first=30.0, escalated=True), known(1)).escalation_due == inf
    assert opened(talk(route, first=30.0, folded=True), known(1)).escalation_due == inf
    assert talk(route, first=30.0).escalation_due == inf


def test_the_end_is_owed_from_the_instant_the_last_alert_is_gone() -> None:
    one = opened(opened(talk(), known(1)), known(2))
    one.drop("a1", 40.0, "healthy")
    assert (one.owed_at, one.news) == (inf, {"a2": 30.0})
    one.drop("a2", 50.0, "gave up")
    assert (one.owed_at, one.because, one.ready) == (50.0, "gave up", inf)
    assert one.message_due == 50.0


def test_a_talk_has_begun_once_it_has_told_something() -> None:
    assert not talk().begun
    assert talk(first=0.0).begun
    assert talk().name == ("oncall", "incident-1")
