"""Who is told, and when: stories, and the golden values of group_wait 30 s, group_interval 5 min, repeat 4 h."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

import pytest

from selfheal.core.alerts import FLEET_RULES, SERVICE_RULES
from selfheal.core.messages import TimePassed
from selfheal.core.model import Alert, Binds, Notification, Phase, Severity, Suppression
from selfheal.core.records import (
    AlertChanged,
    Delivered,
    Doubted,
    IncidentClosed,
    IncidentMerged,
    Record,
    SuppressionChanged,
)
from selfheal.core.routing import (
    IN_DOUBT,
    OWED_FIRST,
    REFUSED,
    REMEMBERED,
    DeliveryFinished,
    Router,
)
from selfheal.core.talks import LOST_AFTER, Deliver, Route

HOUR = 3600.0
DAY = 86400.0
ONCALL = Route(notifier="oncall")


def alert(number: int, service: str = "api", rule: str = "failed", **more: Any) -> Alert:
    severity = {**SERVICE_RULES, **FLEET_RULES}.get(rule, Severity.MEDIUM)
    return Alert(**{"id": f"a{number}", "service": service, "rule": rule, "severity": severity, "since": 0.0, **more})


class Story:
    """A router, a shell that delivers at once (unless told otherwise), and everything that was stored."""

    def __init__(self, *routes: Route, history: Iterable[Record] = ()) -> None:
        self.records: list[Record] = list(history)
        self.router = Router(routes or (ONCALL,), self.records)
        self.now = 0.0
        self.sent: list[tuple[float, Deliver]] = []
        self.answers: dict[str, dict[str, Any] | None] = {}

    def receive(self, event: Any) -> None:
        out = self.router.receive(event)
        if isinstance(event, TimePassed):
            assert self.router.deadline > event.at, "it spins"
        self.records += out.records
        for deliver in out.deliveries:
            self.sent.append((self.now, deliver))
            answer = self.answers.get(deliver.notifier, {"receipt": None})
            if answer is not None:
                self.finish(deliver, **answer)

    def finish(self, deliver: Deliver, **answer: Any) -> None:
        id_ = deliver.notification.id
        self.receive(DeliveryFinished(at=self.now, notification=id_, notifier=deliver.notifier, **answer))

    def before(self, at: float) -> Story:
        """Live until `at`, but leave what is due then: the records of that instant come first."""
        while (deadline := self.router.deadline) < at:
            self.now = max(self.now, deadline)
            self.receive(TimePassed(at=self.now))
        self.now = at
        return self

    def until(self, at: float) -> Story:
        """Live until `at`, what is due then included."""
        self.before(at)
        self.receive(TimePassed(at=at))
        return self.until(at) if self.router.deadline <= at else self

    def record(self, record: Record) -> None:
        self.records.append(record)
        self.receive(record)

    def opened(self, alert: Alert, at: float) -> Story:
        self.before(at)
        self.record(AlertChanged(at=at, service=alert.service, alert=alert, open=True))
        return self

    def resolved(self, alert: Alert, at: float, because: str = "healthy") -> Story:
        self.before(at)
        self.record(AlertChanged(at=at, service=alert.service, alert=alert, open=False, because=because))
        return self

    def silence(self, at: float, *services: str, on: bool = True, **more: Any) -> Story:
        self.before(at)
        suppression = Suppression(**{"id": "s1", "binds": Binds.SILENCE, "services": services, **more})
        self.record(SuppressionChanged(at=at, suppression=suppression, on=on))
        return self

    def restarted(self, *routes: Route) -> Story:
        story = Story(*(routes or self.router.routes), history=self.records)
        story.now = self.now
        return story

    def told(self, notifier: str = "oncall") -> list[tuple[float, Phase]]:
        return [(at, d.notification.phase) for at, d in self.sent if d.notifier == notifier]

    @property
    def last(self) -> Notification:
        return self.sent[-1][1].notification


FIRING, UPDATED, RESOLVED = Phase.FIRING, Phase.UPDATED, Phase.RESOLVED


# -- golden values --------------------------------------------------------------------------------------------------


def test_a_problem_gone_after_20_seconds_is_never_told() -> None:
    story = Story().opened(alert(1), 0.0).resolved(alert(1), 20.0).until(DAY)
    assert story.told() == []
    assert story.router.deadline == inf


def test_a_steady_problem_is_told_after_30_seconds_and_every_4_hours() -> None:
    story = Story().opened(alert(1), 0.0).until(9 * HOUR)
    assert story.told() == [(30.0, FIRING), (30.0 + 4 * HOUR, UPDATED), (30.0 + 8 * HOUR, UPDATED)]


def test_a_new_member_is_told_at_the_next_tick_of_5_minutes() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).opened(alert(2, "web", incident=1, folded=True), 100.0)
    story.until(HOUR)
    assert story.told() == [(30.0, FIRING), (330.0, UPDATED)]
    story.opened(alert(3, "shop", incident=1, folded=True), 3700.0).until(2 * HOUR)
    assert story.told()[2:] == [(3930.0, UPDATED)]


def test_the_default_route_has_these_values() -> None:
    assert (ONCALL.group_wait, ONCALL.group_interval, ONCALL.repeat_interval) == (30.0, 300.0, 4 * HOUR)
    assert ONCALL.severities == frozenset(Severity)


# -- one incident, one talk -----------------------------------------------------------------------------------------


def test_a_root_and_its_children_are_one_message_and_one_resolution() -> None:
    story = Story().opened(alert(1, "database", incident=7, correlation="c7", text="confirmed down (unreachable)"), 0.0)
    for n in range(2, 16):
        story.opened(alert(n, f"web{n:02}", incident=7, folded=True), 5.0)
    story.until(60.0)
    assert story.told() == [(30.0, FIRING)]
    assert story.last.title == "database is down, 14 more with it"
    assert story.last.text.startswith("database: confirmed down (unreachable), for 30 s\nweb02: failed, for 30 s\n")
    assert "and 5 more" in story.last.text
    assert (story.last.incident, story.last.service, story.last.correlation) == (7, "database", "c7")
    for n in range(15, 0, -1):
        story.resolved(alert(n, f"web{n:02}" if n > 1 else "database", incident=7), 120.0 + n)
    story.until(DAY)
    assert story.told() == [(30.0, FIRING), (135.0, RESOLVED)]
    assert story.last.title == "Resolved: database, web02, web03 and 12 more"
    assert story.last.text == "Over after 2 min: healthy."
    assert len(story.sent[-1][1].alerts) == 15


def test_what_has_no_incident_is_told_apart_by_service_and_rule() -> None:
    story = Story().opened(alert(1, rule="degraded"), 0.0).opened(alert(2, rule="unobserved"), 0.0).until(60.0)
    assert [d.notification.correlation for _, d in story.sent] == ["degraded", "unobserved"]
    assert [d.notification.incident for _, d in story.sent] == [None, None]


def test_an_alert_of_the_fleet_pages_at_once() -> None:
    story = Story().opened(alert(1, "", "storm"), 10.0).until(10.0)
    assert story.told() == [(10.0, FIRING)]
    assert (story.last.title, story.last.service) == ("many services fail at once", "")
    story.resolved(alert(1, "", "storm"), 100.0, because="").until(101.0)
    assert (story.last.title, story.last.text) == ("Resolved: the fleet", "Over after 100 s.")


def test_critical_joins_a_talk_at_once_unless_the_route_says_no() -> None:
    patient = Route(notifier="log", critical_at_once=False)
    story = Story(ONCALL, patient).opened(alert(1, incident=1), 0.0)
    story.opened(alert(2, rule="unattended", incident=1), 60.0).until(HOUR)
    assert story.told() == [(30.0, FIRING), (60.0, UPDATED)]
    assert story.told("log") == [(30.0, FIRING), (330.0, UPDATED)]
    assert story.last.title == "Update: api is down and nobody acts"
    assert "a person is needed" in story.last.text


def test_what_waits_behind_a_page_that_is_gone_still_has_its_own_wait() -> None:
    story = Story().opened(alert(1, incident=1), 0.0)
    story.opened(alert(2, rule="unattended", incident=1), 0.0).resolved(alert(2, rule="unattended"), 0.0)
    story.until(29.0)
    assert story.told() == []
    assert story.until(60.0).told() == [(30.0, FIRING)]


def test_records_of_one_instant_are_one_message() -> None:
    """A service that goes from failed to a warning within its incident does not resolve and fire anew."""
    story = Story().opened(alert(1, incident=1), 0.0).until(60.0)
    story.record(AlertChanged(at=60.0, service="api", alert=alert(1, incident=1), open=False))
    story.record(AlertChanged(at=60.0, service="api", alert=alert(2, rule="warning", incident=1), open=True))
    story.until(HOUR)
    assert story.told() == [(30.0, FIRING), (330.0, UPDATED)]
    story.resolved(alert(2), HOUR).until(HOUR)
    assert story.told()[-1] == (HOUR, RESOLVED)
    assert story.sent[-1][1].alerts == ("a1", "a2")


def test_a_relapse_in_the_same_incident_is_a_new_round() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).resolved(alert(1), 100.0)
    story.opened(alert(2, incident=1), 200.0).resolved(alert(2), 300.0).until(HOUR)
    assert story.told() == [(30.0, FIRING), (100.0, RESOLVED), (230.0, FIRING), (300.0, RESOLVED)]
    assert len({d.notification.id for _, d in story.sent}) == 4


def test_a_relapse_while_the_resolution_is_on_its_way_waits_for_it() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).until(60.0)
    story.answers["oncall"] = None
    story.resolved(alert(1), 100.0).opened(alert(2, incident=1), 110.0).until(500.0)
    assert story.told() == [(30.0, FIRING), (100.0, RESOLVED)]
    story.answers = {}
    story.finish(story.sent[-1][1], receipt="r")
    assert story.until(600.0).told()[2:] == [(500.0, FIRING)]


# -- routes ----------------------------------------------------------------------------------------------------------


def test_a_route_takes_its_severities_and_services_only() -> None:
    pages = Route(notifier="pager", severities=frozenset({Severity.CRITICAL, Severity.HIGH}))
    web = Route(notifier="web", services=("web",))
    nobody = Route(notifier="nobody", services=())
    story = Story(pages, web, nobody).opened(alert(1, rule="degraded"), 0.0).opened(alert(2, "web"), 0.0).until(60.0)
    assert [(d.notifier, d.notification.service) for _, d in story.sent] == [("pager", "web"), ("web", "web")]


def test_the_first_of_two_routes_of_one_notifier_counts() -> None:
    quick = Route(notifier="oncall", services=("api",), group_wait=1.0)
    story = Story(quick, ONCALL).opened(alert(1), 0.0).opened(alert(2, "web"), 0.0).until(60.0)
    assert story.told() == [(1.0, FIRING), (30.0, FIRING)]


def test_a_route_may_do_without_resolutions() -> None:
    story = Story(Route(notifier="oncall", send_resolved=False)).opened(alert(1), 0.0).resolved(alert(1), 60.0)
    assert story.until(DAY).told() == [(30.0, FIRING)]
    assert story.router.deadline == inf


# -- acknowledging and escalating ------------------------------------------------------------------------------------


def test_an_acknowledgement_stops_repeats_but_not_the_resolution() -> None:
    story = Story().opened(alert(1), 0.0).opened(alert(1, acknowledged_by="anna"), 100.0).resolved(alert(1), DAY)
    assert story.until(2 * DAY).told() == [(30.0, FIRING), (DAY, RESOLVED)]


def test_news_after_an_acknowledgement_says_who_knows() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).opened(alert(1, incident=1, acknowledged_by="anna"), 100.0)
    story.opened(alert(2, "web", incident=1, folded=True), 110.0).until(HOUR)
    assert story.told() == [(30.0, FIRING), (330.0, UPDATED)]
    assert "api: failed, for 5 min (acknowledged by anna)" in story.last.text


ESCALATING = Route(notifier="oncall", escalate_after=600.0, escalate_to="boss")


def test_what_nobody_acknowledges_is_escalated_once_and_resolved_there_too() -> None:
    story = Story(ESCALATING).opened(alert(1, incident=1), 0.0).until(HOUR)
    assert story.told("boss") == [(630.0, FIRING)]
    assert story.last.title == "Escalated, not acknowledged: api is down"
    story.opened(alert(2, "web", incident=1, folded=True), HOUR).until(2 * HOUR)
    assert story.told("boss")[1:] == [(HOUR, UPDATED)]
    story.resolved(alert(1), 2 * HOUR).resolved(alert(2), 2 * HOUR).until(DAY)
    assert story.told()[-1] == story.told("boss")[-1] == (2 * HOUR, RESOLVED)


def test_an_acknowledgement_stops_the_escalation() -> None:
    story = Story(ESCALATING).opened(alert(1), 0.0).opened(alert(1, acknowledged_by="anna"), 500.0)
    assert story.until(DAY).told("boss") == []


def test_an_escalation_hurries_what_the_other_would_have_been_told_anyway() -> None:
    slow = Route(notifier="boss", group_wait=1000.0)
    story = Story(ESCALATING, slow).opened(alert(1), 0.0).until(HOUR)
    assert story.told("boss") == [(630.0, FIRING)]
    quick = Route(notifier="boss", group_wait=1.0)
    story = Story(ESCALATING, quick).opened(alert(1), 0.0).until(HOUR)
    assert story.told("boss") == [(1.0, FIRING)]


# -- silences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binds", [Binds.SILENCE, Binds.MAINTENANCE])
@pytest.mark.parametrize("scope", [{"services": ("api",)}, {"services": (), "everything": True}])
def test_what_opens_under_a_silence_and_outlives_it_is_told_when_it_ends(binds: Binds, scope: dict[str, Any]) -> None:
    story = Story().silence(0.0, binds=binds, **scope).opened(alert(1, rule="unattended"), 10.0)
    assert story.until(999.0).told() == []
    story.silence(1000.0, on=False, binds=binds, **scope)
    assert story.until(2000.0).told() == [(1000.0, FIRING)]


def test_what_comes_and_goes_under_a_silence_is_never_told() -> None:
    story = Story().silence(0.0, "api").opened(alert(1), 10.0).resolved(alert(1), 500.0)
    assert story.silence(1000.0, "api", on=False).until(DAY).told() == []


def test_a_silence_never_holds_back_a_resolution() -> None:
    story = Story().opened(alert(1), 0.0).silence(60.0, "api").resolved(alert(1), DAY)
    assert story.until(DAY).told() == [(30.0, FIRING), (DAY, RESOLVED)]


def test_a_silence_over_the_root_covers_what_is_folded_under_it() -> None:
    story = Story().silence(0.0, "database")
    story.opened(alert(1, "database", incident=7), 1.0).opened(alert(2, incident=7, folded=True), 2.0)
    assert story.until(HOUR).told() == []
    story.silence(HOUR, "database", on=False).until(HOUR)
    assert story.told() == [(HOUR, FIRING)]
    story.record(IncidentClosed(at=HOUR, service="database", incident=7))


def test_news_under_a_silence_is_told_as_it_ends_and_not_at_a_tick() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).silence(50.0, "web")
    story.opened(alert(2, "web", incident=1, folded=True), 60.0).silence(400.0, "web", on=False).until(HOUR)
    assert story.told() == [(30.0, FIRING), (400.0, UPDATED)]


def test_a_silence_that_is_changed_replaces_itself_and_a_pause_silences_nothing() -> None:
    story = Story().silence(0.0, "api").silence(1.0, "web").silence(2.0, "api", id="s2", binds=Binds.PAUSED)
    story.opened(alert(1), 3.0).opened(alert(2, "web"), 3.0).until(60.0)
    assert [d.notification.service for _, d in story.sent] == ["api"]
    story.silence(61.0, "nothing", id="s9", on=False)
    assert story.told() == [(33.0, FIRING)]


# -- merging ---------------------------------------------------------------------------------------------------------


def merge(story: Story, at: float, number: int = 1, into: int = 2) -> Story:
    story.until(at)
    story.record(IncidentMerged(at=at, service="api", incident=number, into=into))
    return story


def test_the_talk_people_know_goes_on_when_its_root_is_found() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).until(60.0).opened(alert(2, "database", incident=2), 60.0)
    merge(story, 60.0).opened(alert(1, incident=2, folded=True), 60.0)
    story.opened(alert(3, "web", incident=2, folded=True), 70.0).until(HOUR)
    assert story.told() == [(30.0, FIRING), (330.0, UPDATED)]
    assert (story.last.title, story.last.incident) == ("Update: database is down, 2 more with it", 1)
    for n in (1, 2, 3):
        story.resolved(alert(n, incident=2), HOUR)
    story.until(HOUR)
    assert story.told()[2:] == [(HOUR, RESOLVED)]
    story.opened(alert(4, "database", incident=2), 2 * HOUR).until(3 * HOUR)
    assert story.last.incident == 2


def test_an_incident_nobody_knows_yet_is_told_as_part_of_its_root() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).opened(alert(2, "database", incident=2), 10.0)
    merge(story, 10.0).opened(alert(1, incident=2, folded=True), 10.0).until(HOUR)
    assert story.told() == [(30.0, FIRING)]
    assert (story.last.incident, story.last.title) == (2, "database is down, 1 more with it")


def test_two_talks_that_are_both_known_end_each_by_itself_and_the_folded_one_is_not_repeated() -> None:
    story = Story(ESCALATING).opened(alert(1, incident=1), 0.0).opened(alert(2, "database", incident=2), 0.0)
    merge(story, 60.0).opened(alert(1, incident=2, folded=True), 60.0)
    story.opened(alert(3, rule="flapping", incident=1), 61.0).opened(alert(3, rule="flapping", incident=2), 62.0)
    story.until(5 * HOUR)
    phases = [(d.notification.incident, d.notification.phase) for _, d in story.sent if d.notifier == "oncall"]
    assert phases == [(1, FIRING), (2, FIRING), (2, UPDATED), (2, UPDATED)]
    for n in (1, 2, 3):
        story.resolved(alert(n, incident=2), DAY)
    story.until(DAY)
    ends = {
        d.notification.incident: d.alerts
        for _, d in story.sent
        if d.notification.phase is RESOLVED and d.notifier == "oncall"
    }
    assert ends == {1: ("a1",), 2: ("a2", "a3")}


def test_a_merge_of_what_was_never_routed_changes_nothing() -> None:
    story = Story().opened(alert(1, incident=3), 0.0)
    merge(story, 1.0, 8, 9)
    merge(story, 2.0, 3, 3)
    assert story.until(60.0).told() == [(30.0, FIRING)]


def test_a_known_talk_goes_on_under_an_incident_that_has_no_talk_yet() -> None:
    story = Story().opened(alert(1, incident=1), 0.0)
    merge(story, 60.0).opened(alert(1, incident=2, folded=True), 60.0)
    story.opened(alert(2, "web", incident=2, folded=True), 61.0).until(HOUR)
    assert story.last.incident == 1


# -- delivery that fails ---------------------------------------------------------------------------------------------


def test_a_given_up_firing_is_told_again_at_the_next_repeat() -> None:
    story = Story().opened(alert(1), 0.0)
    story.answers["oncall"] = {"error": "no route to host"}
    story.until(60.0)
    story.opened(alert(1, text="changed"), 100.0).until(HOUR)
    assert story.told() == [(30.0, FIRING)]
    story.answers = {}
    story.until(5 * HOUR)
    assert story.told() == [(30.0, FIRING), (30.0 + 4 * HOUR, FIRING)]
    assert len({d.notification.id for _, d in story.sent}) == 2


def test_a_firing_that_may_have_got_through_is_resolved_once() -> None:
    story = Story().opened(alert(1), 0.0)
    story.answers["oncall"] = {"error": "timeout"}
    story.until(60.0).resolved(alert(1), 100.0).until(10 * DAY)
    assert story.told() == [(30.0, FIRING), (100.0, RESOLVED)]
    assert story.router.deadline == inf


def test_a_firing_refused_for_good_was_not_told_and_owes_nothing() -> None:
    story = Story().opened(alert(1), 0.0)
    story.answers["oncall"] = {"error": "answered 404", "permanent": True}
    story.until(60.0).resolved(alert(1), 100.0).until(DAY)
    assert story.told() == [(30.0, FIRING)]
    assert [r.error for r in story.records if isinstance(r, Delivered)] == [REFUSED + "answered 404"]


def test_a_problem_that_ends_while_its_message_is_on_the_way_is_resolved_after_it() -> None:
    story = Story().opened(alert(1), 0.0)
    story.answers["oncall"] = None
    story.until(60.0).resolved(alert(1), 100.0).until(200.0)
    assert story.told() == [(30.0, FIRING)]
    story.answers = {}
    story.finish(story.sent[0][1], receipt="thread-1")
    story.until(200.0)
    assert story.told() == [(30.0, FIRING), (200.0, RESOLVED)]
    assert story.last.receipt == "thread-1"


def test_a_resolution_given_up_stays_owed_with_growing_patience_under_one_id() -> None:
    story = Story().opened(alert(1), 0.0).until(60.0)
    story.answers["oncall"] = {"error": "down", "permanent": True}
    story.resolved(alert(1), 100.0).until(2000.0)
    assert story.told()[1:] == [(100.0 + w * OWED_FIRST, RESOLVED) for w in (0, 1, 3)]
    assert len({d.notification.id for _, d in story.sent[1:]}) == 1
    story.until(40 * DAY)
    gaps = [b - a for (a, _), (b, _) in zip(story.told()[-3:], story.told()[-2:], strict=False)]
    assert gaps == [DAY, DAY]
    story.answers = {}
    story.until(42 * DAY)
    assert story.router.deadline == inf


def test_an_owed_resolution_is_withdrawn_by_a_relapse_and_told_with_its_end() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).until(60.0)
    story.answers["oncall"] = {"error": "down"}
    story.resolved(alert(1), 100.0).until(110.0)
    story.answers = {}
    story.opened(alert(2, incident=1), 120.0).resolved(alert(2), 400.0).until(DAY)
    assert story.told() == [(30.0, FIRING), (100.0, RESOLVED), (330.0, UPDATED), (400.0, RESOLVED)]
    assert story.sent[-1][1].alerts == ("a1", "a2")


def test_a_resolution_given_up_after_a_relapse_lets_the_round_go_on() -> None:
    story = Story().opened(alert(1, incident=1), 0.0).until(60.0)
    story.answers["oncall"] = None
    story.resolved(alert(1), 100.0).opened(alert(2, incident=1), 110.0).until(200.0)
    story.answers = {}
    story.finish(story.sent[-1][1], error="down")
    story.resolved(alert(2), 400.0).until(DAY)
    assert story.told() == [(30.0, FIRING), (100.0, RESOLVED), (330.0, UPDATED), (400.0, RESOLVED)]


def test_a_message_whose_end_is_never_reported_blocks_nobody_for_ever() -> None:
    story = Story().opened(alert(1), 0.0)
    story.answers["oncall"] = None
    story.until(60.0)
    story.answers = {}
    story.until(3 * DAY)
    assert story.told()[:2] == [(30.0, FIRING), (30.0 + LOST_AFTER, FIRING)]


def test_a_word_of_delivery_that_is_not_ours_or_comes_twice_changes_nothing() -> None:
    story = Story().opened(alert(1), 0.0).until(60.0)
    first = story.sent[0][1]
    for id_ in ("", "test", "oncall:a.b.c.d.e", "other:api/failed.a1.1.firing.00000000"):
        story.receive(DeliveryFinished(at=60.0, notification=id_, notifier="oncall"))
    story.finish(first, receipt=None)
    story.finish(first, error="late")
    story.resolved(alert(1), 100.0).until(100.0)
    story.finish(first, receipt=None)
    story.finish(story.sent[-1][1], receipt=None)
    assert story.until(DAY).told() == [(30.0, FIRING), (100.0, RESOLVED)]


def test_only_so_many_ended_rounds_are_remembered() -> None:
    story = Story(Route(notifier="oncall", group_wait=0.0))
    for n in range(1, REMEMBERED + 3):
        story.opened(alert(n), 10.0 * n).resolved(alert(n), 10.0 * n + 5.0)
    story.until(1e6)
    assert len(story.router._ended) == REMEMBERED


# -- restarts --------------------------------------------------------------------------------------------------------


def test_after_a_restart_nothing_delivered_is_told_again() -> None:
    story = Story().opened(alert(1), 0.0).until(60.0)
    again = story.restarted().until(HOUR).resolved(alert(1), 2 * HOUR).until(DAY)
    assert again.told() == [(2 * HOUR, RESOLVED)]


def test_after_a_restart_what_was_not_delivered_is_offered_again_under_its_id() -> None:
    story = Story().opened(alert(1), 0.0)
    story.answers["oncall"] = None
    story.until(60.0)
    story.record(Doubted(at=60.0, late=1.0))
    again = story.restarted()
    assert again.router.deadline <= 60.0
    assert again.until(60.0).told() == [(60.0, FIRING)]
    assert again.sent[0][1] == story.sent[0][1]
    assert again.until(4 * HOUR).told() == [(60.0, FIRING)]


def test_a_silence_and_an_acknowledgement_outlive_a_restart() -> None:
    story = Story().silence(0.0, "web").opened(alert(1), 0.0).opened(alert(1, acknowledged_by="anna"), 60.0)
    again = story.restarted().opened(alert(2, "web"), 70.0).until(DAY)
    assert again.told() == []


def test_after_a_restart_under_other_routes_whoever_was_told_is_told_the_end() -> None:
    story = Story().opened(alert(1, incident=4), 0.0).until(60.0)
    nobody = Route(notifier="oncall", services=())
    again = story.restarted(nobody).resolved(alert(1, incident=4), 100.0).until(DAY)
    assert again.told() == [(60.0, RESOLVED)], "the alert left the talk with the route: it says so at once"
    assert (again.last.incident, again.last.severity) == (4, Severity.HIGH)
    gone = Story().opened(alert(1), 0.0).until(60.0).restarted(Route(notifier="log")).until(70.0)
    assert gone.told() == [(60.0, RESOLVED)]
    assert gone.last.correlation == "failed"


def test_a_route_that_takes_more_says_what_joins_as_news() -> None:
    high = Route(notifier="oncall", severities=frozenset({Severity.HIGH}))
    story = Story(high).opened(alert(1, rule="degraded", incident=1), 0.0).opened(alert(2, incident=1), 10.0)
    story.until(60.0)
    again = story.restarted(ONCALL).until(HOUR)
    assert again.told() == [(330.0, UPDATED)]
    again.resolved(alert(1), HOUR).resolved(alert(2), HOUR).until(HOUR)
    assert again.told()[1:] == [(HOUR, RESOLVED)]
    back = again.restarted(high).until(DAY)
    assert back.told() == []


def test_a_new_notifier_hears_of_what_is_open_and_not_of_the_past() -> None:
    story = Story().opened(alert(1), 0.0).resolved(alert(1), 100.0).opened(alert(2, "web"), 200.0).until(400.0)
    again = story.restarted(ONCALL, Route(notifier="new")).until(500.0)
    assert [(d.notifier, d.notification.service, d.notification.phase) for _, d in again.sent] == [
        ("new", "web", FIRING)
    ]


def test_what_may_have_been_on_its_way_when_we_died_is_told_and_resolved() -> None:
    story = Story().opened(alert(1, "web"), 0.0).until(60.0)
    story.answers["oncall"] = None
    story.opened(alert(2), 100.0).resolved(alert(2), 200.0)
    assert story.restarted().until(300.0).told() == [(200.0, FIRING), (200.0, RESOLVED)]
    story.resolved(alert(9), 200.0 + IN_DOUBT)
    assert story.restarted().until(DAY).told("oncall")[0][1] is UPDATED


def test_a_message_that_arrived_is_resolved_even_where_a_replay_does_not_decide_it() -> None:
    """Live, something of the same instant was told and gone again; in the records it was never there to be told."""
    story = Story().opened(alert(1), 0.0)
    story.answers["oncall"] = {"error": "answered 404", "permanent": True}
    story.until(60.0).resolved(alert(1), 100.0)
    arrived = "oncall:api/failed.a1.2.firing.00000000"
    story.records.append(Delivered(at=100.0, notification=arrived, notifier="oncall"))
    again = story.restarted().until(DAY)
    assert again.told() == [(100.0, RESOLVED)]
    assert again.router.deadline == inf
