"""Metrics: how a format writes them, which one a header asks for, and that the count keeps in step with the journal."""

from __future__ import annotations

import threading
from math import inf
from typing import Any

import pytest

from selfheal import metrics
from selfheal.analytics.tally import BOUNDS, Tally
from selfheal.core.ledger import Ledger
from selfheal.core.model import Condition, Fleet, Policy, Settled, State, Step
from selfheal.core.records import Ended, FleetSet, Intended, Moved, Record
from selfheal.errors import JournalError
from selfheal.journal import MemoryStore
from selfheal.journal.store import Batch, StoredRecord
from selfheal.metrics import PAGE, Family, Metering, Moment, Sample, Spread, chosen, written

NASTY = 'a "quoted" \\ back\nline <b>ü'


def family(name: str = "things_total", kind: str = "counter", **given: Any) -> Family:
    return Family(name=name, kind=kind, about='Says "so" \\ and\nso.', **given)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_label_is_escaped_and_nothing_else_of_it_is_changed() -> None:
    text = written([family(samples=[Sample((("service", NASTY), ("b", "c")), 2)])])
    assert text.splitlines()[-1] == r'things_total{service="a \"quoted\" \\ back\nline <b>ü",b="c"} 2'
    assert len(text.splitlines()) == 3


def test_help_is_escaped_as_each_format_wants_it() -> None:
    assert written([family()]).splitlines()[0] == '# HELP things_total Says "so" \\\\ and\\nso.'
    assert written([family()], "openmetrics").splitlines()[0] == '# HELP things Says \\"so\\" \\\\ and\\nso.'


def test_openmetrics_names_a_counter_without_its_end_and_says_where_it_is_over() -> None:
    lines = written([family(samples=[Sample((), 2)]), family("took_seconds", "gauge")], "openmetrics").splitlines()
    assert "# TYPE things counter" in lines
    assert "things_total 2" in lines
    assert lines[-2:] == ["# UNIT took_seconds seconds", "# EOF"]


def test_a_histogram_is_written_with_every_bucket_its_count_and_its_sum() -> None:
    sums = tuple(range(len(BOUNDS) + 1))
    one = family("took_seconds", "histogram", spreads=[Spread((("service", "a"),), sums, 7.5)])
    lines = written([one]).splitlines()[2:]
    assert lines[0] == 'took_seconds_bucket{service="a",le="1.0"} 0'
    assert lines[-3:] == [
        f'took_seconds_bucket{{service="a",le="+Inf"}} {sums[-1]}',
        f'took_seconds_count{{service="a"}} {sums[-1]}',
        'took_seconds_sum{service="a"} 7.5',
    ]
    data = written([one], "data")["took_seconds"]["samples"]
    assert data[0] == {"name": "took_seconds_bucket", "labels": {"service": "a", "le": "1.0"}, "value": 0}
    assert len(data) == len(lines)


# -- which format -----------------------------------------------------------------------------------------------------

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_2, "openmetrics"),
        (PROMETHEUS_3, "openmetrics"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text"),
        (BROWSER, "text"),
        ("*/*", "text"),
        ("", "text"),
        ("application/json", "text"),
        ("text/plain;q=0,application/openmetrics-text;q=0.1", "openmetrics"),
        ("Application/OpenMetrics-Text ; q=0.9, text/plain; q=nonsense", "openmetrics"),
        (",;,q=,text/plain;;", "text"),
    ],
)
def test_the_format_is_the_one_that_is_preferred(accept: str, expected: str) -> None:
    assert chosen(accept) == expected


def test_who_offers_json_first_gives_it_to_who_does_not_mind() -> None:
    offered = ("data", "text", "openmetrics")
    assert chosen("*/*", offered) == "data"
    assert chosen(BROWSER, offered) == "data"
    assert chosen("application/json", offered) == "data"
    assert chosen(PROMETHEUS_2, offered) == "openmetrics"
    assert chosen("text/plain", offered) == "text"


# -- in step with the journal -----------------------------------------------------------------------------------------

POLICY = Policy(name="db", steps=(Step(action="restart"), Step(action="manual_intervention")))


def repaired(number: int) -> tuple[Record, ...]:
    at = 100.0 * number
    well = Condition(state=State.HEALTHY)
    mending = Condition(state=State.RECOVERING, incident=number)
    key = f"{number}/db/1/0"
    return (
        Intended(at=at, intent=key, service="db", incident=number, attempt=1, step=0, action="restart"),
        Moved(at=at, service="db", before=Condition(state=State.FAILED), after=mending),
        Ended(at=at + 1.0, intent=key, service="db", settled=Settled.DONE),
        Moved(at=at + 8.0, service="db", before=mending, after=well),
    )


class Journal(MemoryStore):
    """A journal in memory that can be in trouble, and says how it was read."""

    def __init__(self, repairs: int) -> None:
        super().__init__()
        self.number = 0
        self.in_trouble = False
        self.after_pages = inf
        self.read: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.add((FleetSet(at=0.0, fleet=Fleet(name="f", policies=(POLICY,))),))
        for number in range(1, repairs + 1):
            self.add(repaired(number))

    def add(self, records: tuple[Record, ...]) -> None:
        self.number += 1
        at = records[-1].at
        assert self.append([Batch(number=self.number, at=at, wall=at, records=records)], durable=True) == {}

    def records(self, **given: Any) -> list[StoredRecord]:
        assert self.gate.wait(10.0)
        if self.in_trouble or len(self.read) >= self.after_pages:
            raise JournalError("the disk is gone")
        page = super().records(**given)
        self.read.append(len(page))
        return page

    def moment(self) -> Moment:
        fleets = super().records(kinds=("fleet_set",), limit=10**6)
        return Moment.of(Ledger.fold(one.record for one in fleets))


def attempts(metering: Metering, journal: Journal, **given: Any) -> dict[tuple[str, ...], float] | None:
    """Return the attempts by their labels; None where they are not shown."""
    shown = {one.name: one for one in metering.families(journal.moment(), **given)}
    assert "service_health_status" in shown
    if "recovery_attempts_total" not in shown:
        return None
    return {tuple(value for _, value in labels): count for labels, count in shown["recovery_attempts_total"].samples}


def test_each_answer_reads_on_where_the_last_one_stood() -> None:
    journal = Journal(3)
    metering = Metering(journal)
    assert attempts(metering, journal) == {("db", "restart", "success"): 3, ("db", "restart", "failure"): 0}
    journal.read.clear()
    assert attempts(metering, journal) == {("db", "restart", "success"): 3, ("db", "restart", "failure"): 0}
    assert sum(journal.read) == 0
    journal.add(repaired(4))
    assert attempts(metering, journal) == {("db", "restart", "success"): 4, ("db", "restart", "failure"): 0}
    assert sum(journal.read) == 4


def test_a_journal_of_many_pages_is_read_whole() -> None:
    journal = Journal(PAGE)
    shown = attempts(Metering(journal), journal, patience=30.0)
    assert shown is not None
    assert shown["db", "restart", "success"] == PAGE
    assert len(journal.read) > 3


def test_nothing_counted_is_shown_before_the_journal_was_read_to_its_end() -> None:
    """Half a count, and then the whole one after a restart, would look like a counter that was reset."""
    journal = Journal(PAGE)
    journal.gate.clear()
    metering = Metering(journal)
    assert attempts(metering, journal, patience=0.0) is None
    journal.gate.set()
    shown = attempts(metering, journal, patience=30.0)
    assert shown is not None
    assert shown["db", "restart", "success"] == PAGE


def test_a_first_reading_that_was_ended_half_way_shows_nothing() -> None:
    journal = Journal(PAGE)
    journal.gate.clear()
    metering = Metering(journal)
    assert attempts(metering, journal, patience=0.0) is None
    metering.close()
    journal.gate.set()
    assert attempts(metering, journal, patience=30.0) is None


def test_a_first_reading_that_failed_half_way_shows_nothing_and_is_taken_up_again() -> None:
    journal = Journal(PAGE)
    journal.after_pages = 2
    metering = Metering(journal)
    assert attempts(metering, journal, patience=30.0) is None
    journal.after_pages = inf
    shown = attempts(metering, journal, patience=30.0)
    assert shown is not None
    assert shown["db", "restart", "success"] == PAGE


def test_what_was_counted_stands_while_the_journal_is_in_trouble(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(3)
    metering = Metering(journal)
    before = attempts(metering, journal)
    journal.in_trouble = True
    journal.add(repaired(4))
    assert attempts(metering, journal) == before
    assert "the disk is gone" in caplog.text
    journal.in_trouble = False
    assert attempts(metering, journal) == {("db", "restart", "success"): 4, ("db", "restart", "failure"): 0}


def test_what_may_be_counted_is_there_before_it_is() -> None:
    """A series that appears with 1 has not increased, as Prometheus sees it. People are no attempt."""
    journal = Journal(0)
    assert attempts(Metering(journal), journal) == {("db", "restart", "success"): 0, ("db", "restart", "failure"): 0}


def test_a_service_that_is_gone_takes_its_series_with_it_and_goes_on_where_it_was_when_it_comes_back() -> None:
    journal = Journal(3)
    metering = Metering(journal)
    journal.add((FleetSet(at=1000.0, fleet=Fleet(name="f", policies=(Policy(name="other"),))),))
    shown = written(metering.families(journal.moment()))
    assert '"db"' not in shown
    assert 'service_health_status{service="other",state="unknown"} 1' in shown
    journal.add((FleetSet(at=1010.0, fleet=Fleet(name="f", policies=(POLICY,))),))
    assert 'recovery_attempts_total{service="db",action="restart",result="success"} 3' in written(
        metering.families(journal.moment())
    )


def test_an_uptime_ends_where_the_journal_does() -> None:
    """What is asked for an hour after selfheal has stopped has not been up for that hour: nobody looked."""
    journal = Journal(0)
    metering = Metering(journal)
    seen = []
    for step, state in ((100.0, State.HEALTHY), (200.0, State.FAILED), (300.0, State.HEALTHY)):
        before = Condition(state=State.HEALTHY if state is State.FAILED else State.FAILED)
        journal.add((Moved(at=step, service="db", before=before, after=Condition(state=state)),))
        shown = {one.name: one for one in metering.families(journal.moment())}
        seen += [value for _, value in shown["service_uptime_percentage"].samples]
    assert seen == [100.0, 50.0]


def test_no_uptime_is_no_sample() -> None:
    journal = Journal(0)
    shown = {one.name: one for one in metrics.counted(journal.moment(), Tally(), 10.0)}
    assert list(shown["service_uptime_percentage"].samples) == []
