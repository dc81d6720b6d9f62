"""The one codec: what is written comes back as it was, older shapes are lifted, the malformed is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfheal.core import records
from selfheal.core.ledger import Snapshot
from selfheal.core.model import (
    Alert,
    Backoff,
    Binds,
    Canary,
    Cause,
    Condition,
    Dependency,
    DependencyKind,
    Effect,
    Fleet,
    Forced,
    Incident,
    Limits,
    Policy,
    Priority,
    Scalar,
    Settled,
    Severity,
    State,
    Step,
    Suppression,
    WhenDisabled,
    Window,
)
from selfheal.core.records import (
    RECORDS,
    VERSIONS,
    AlertChanged,
    Answered,
    Delivered,
    Doubted,
    Ended,
    FleetSet,
    GuardAnswer,
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
    decode_record,
    dumps,
    encode,
    encode_record,
    record_bytes,
)

LADDER = (
    Step(action="reconnect", effect=Effect.GENTLE, needs_running=True),
    Step(action="scale_up", only_for=frozenset({Cause.OVERLOADED, Cause.FULL}), arguments=(("to", 3), ("fast", True))),
)
RICH = Policy(
    name="api",
    priority=Priority.HIGH,
    window=Window(failures=3, checks=5),
    slow_retry=None,
    steps=LADDER,
    depends_on=(Dependency(services=("db", "replica"), kind=DependencyKind.SOFT, when_disabled=WhenDisabled.WAIT),),
)
FULL = Condition(
    state=State.FAILED,
    reason="waiting-for:db",
    cause=Cause.DNS,
    incident=3,
    confirmed=(1.5, 2.5),
    forced=Forced(actor="pat", reason="now", request="r1", override=frozenset({"parents", "paused"})),
    well_since=inf,
    approved=1,
)
EVERY: tuple[Record, ...] = (
    FleetSet(
        at=0.0, fleet=Fleet(policies=(Policy(name="db"), RICH), canaries=(Canary(name="gateway"),)), unwatched=("db",)
    ),
    Moved(at=1.25, service="api", before=Condition(), after=FULL, because="confirmed", actor="pat"),
    IncidentOpened(at=2.0, service="api", incident=Incident(number=3, root="api", since=2.0, reopened=1)),
    IncidentMerged(at=3.0, service="api", incident=3, into=4),
    IncidentClosed(at=4.0, service="api", incident=4, because="verified", duration=2.0),
    Intended(
        at=5.0,
        intent="3/api/1/0",
        service="api",
        incident=3,
        attempt=1,
        step=0,
        action="restart",
        expected="api#1",
        guards=(GuardAnswer(guard="paused"), GuardAnswer(guard="storm", reason="held:storm", passed_by="pat")),
        spends=False,
    ),
    Ended(at=6.0, intent="3/api/1/0", service="api", settled=Settled.TIMED_OUT, refunded=True),
    Answered(
        at=7.0,
        id="r1",
        act="pause",
        service="api",
        actor="pat",
        reason="naïve “quotes” \u2028",
        accepted=False,
        arguments=(("duration", 60.0), ("everything", True), ("hold", None), ("n", 3), ("s", "x")),
    ),
    Doubted(at=8.0, late=0.5),
    Resumed(at=9.0, away=60.0),
    HoldChanged(at=9.0, hold="storm", on=True, evidence="5 of 6"),
    SuppressionChanged(at=10.0, suppression=Suppression(id="r1", binds=Binds.SILENCE, until=inf), on=True),
    AlertChanged(
        at=11.0,
        service="api",
        alert=Alert(id="a1", service="api", rule="failed", severity=Severity.HIGH, since=2.0, folded=True),
        open=True,
    ),
    Delivered(at=12.0, notification="n1", notifier="oncall", error="refused"),
)


def test_one_of_every_kind_is_tried_here() -> None:
    assert {record.kind for record in EVERY} == set(RECORDS)
    assert set(VERSIONS) == set(RECORDS)


@pytest.mark.parametrize("record", EVERY, ids=lambda record: record.kind)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    data = encode_record(record)
    assert (data["kind"], data["v"]) == (record.kind, VERSIONS[record.kind])
    assert decode_record(data) == record
    import json

    assert decode_record(json.loads(dumps(data))) == record


def test_what_differs_from_no_default_is_left_out() -> None:
    assert encode_record(Doubted(at=8.0, late=0.5)) == {"kind": "doubted", "v": 1, "at": 8.0, "late": 0.5}
    assert encode(Condition()) == {}


def test_a_default_of_another_type_is_kept() -> None:
    assert encode(Incident(number=1, root="db", since=0.0, reopened=False)) == {
        "number": 1,
        "root": "db",
        "since": 0.0,
        "reopened": False,
    }


def test_what_a_person_writes_is_kept_whole_because_defaults_are_advice() -> None:
    stored = encode(Policy(name="db"))
    assert set(stored) == {field.name for field in attrs.fields(Policy)}
    assert stored["backoff"] == {"initial": 10.0, "multiplier": 2.0, "cap": 300.0, "jitter": 0.5, "forget_after": 600.0}
    assert set(encode(Limits())) == {field.name for field in attrs.fields(Limits)}


def test_the_infinities_are_words_and_come_back() -> None:
    suppression = Suppression(id="r", binds=Binds.PAUSED, since=-inf, until=5.0)
    assert encode(suppression)["since"] == "-inf"
    assert decode(Suppression, encode(suppression)) == suppression
    assert decode(Condition, {"well_since": "inf"}) == Condition()


def test_sets_are_stored_in_one_order() -> None:
    forced = Forced(actor="pat", reason="", request="r", override=frozenset({"b", "a", "c"}))
    assert encode(forced)["override"] == ["a", "b", "c"]


def test_a_priority_is_stored_by_its_name() -> None:
    assert encode(Priority.HIGH) == "high"
    assert decode(Policy, encode(RICH)) == RICH


def test_mappings_are_stored_with_words_for_keys() -> None:
    assert encode({State.FAILED: 1, 2: "x"}) == {"failed": 1, "2": "x"}
    image = Snapshot(conditions={"db": FULL}, answers=(("r1", True, "done"),), holds={"storm": "5 of 6"})
    assert decode(Snapshot, encode(image)) == image


def test_a_value_without_a_stored_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no stored form"):
        encode(object())

    @attrs.frozen
    class Odd:
        thing: object

    with pytest.raises(ValueError, match="not a stored Odd: no stored form for <class 'object'>"):
        decode(Odd, {})


def test_bytes_are_one_line_each_and_keep_words_as_they_are() -> None:
    lines = record_bytes(EVERY).splitlines(keepends=True)
    assert len(lines) >= len(EVERY)
    assert dumps({"naïve": [1, 2.5, None]}) == '{"naïve":[1,2.5,null]}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        dumps(inf)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "unknown record kind None"),
        ({"kind": "moved"}, "unknown record kind 'moved'"),
        ({"kind": "exploded", "v": 1}, "unknown record kind 'exploded'"),
        (
            {"kind": "doubted", "v": 2, "at": 1.0, "late": 1.0},
            "doubted version 2 is of a newer release (this one knows 1)",
        ),
        ({"kind": "doubted", "v": 1, "at": 1.0}, "not a stored Doubted"),
        ({"kind": "doubted", "v": 1, "at": "soon", "late": 1.0}, "not a stored Doubted: could not convert"),
        ({"kind": "doubted", "v": 1, "at": 1.0, "late": 1.0, "why": ""}, "not a stored Doubted: 'why'"),
        ({"kind": "delivered", "v": 1, "at": 1.0, "notification": 3, "notifier": "n"}, "3 is not str"),
        ({"kind": "hold_changed", "v": 1, "at": 1.0, "hold": "storm", "on": 1}, "1 is not bool"),
        (
            {"kind": "moved", "v": 1, "at": 1.0, "service": "db", "before": {"state": "limp"}, "after": {}},
            "'limp' is not",
        ),
        ({"kind": "moved", "v": 1, "at": 1.0, "service": "db", "before": [], "after": {}}, "not a stored Moved"),
    ],
)
def test_a_malformed_record_is_refused_by_name(data: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        decode_record(data)
    assert problem in str(caught.value)


def test_a_pair_of_the_wrong_length_is_refused() -> None:
    stored = encode_record(EVERY[7])
    stored["arguments"] = [["duration", 60.0, "s"]]
    with pytest.raises(ValueError, match="not a stored Answered"):
        decode_record(stored)


# -- earlier versions (law 20a) -------------------------------------------------------------------------------------


def test_an_older_shape_is_lifted_one_version_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def renames(data: dict[str, Any]) -> dict[str, Any]:
        return {**{key: value for key, value in data.items() if key != "lag"}, "late": data["lag"]}

    def in_seconds(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "late": data["late"] / 1000}

    monkeypatch.setattr(records, "VERSIONS", {**VERSIONS, "doubted": 3})
    monkeypatch.setattr(records, "UPCASTS", {("doubted", 1): renames, ("doubted", 2): in_seconds})
    assert decode_record({"kind": "doubted", "v": 1, "at": 1.0, "lag": 500}) == Doubted(at=1.0, late=0.5)
    assert decode_record({"kind": "doubted", "v": 2, "at": 1.0, "late": 500}) == Doubted(at=1.0, late=0.5)
    assert encode_record(Doubted(at=1.0, late=0.5))["v"] == 3


def test_every_step_of_every_kind_can_be_lifted() -> None:
    for kind, version in VERSIONS.items():
        assert all((kind, older) in records.UPCASTS for older in range(1, version))


# -- any value at all -----------------------------------------------------------------------------------------------

TIMES = st.floats(-1e9, 1e9) | st.sampled_from([inf, -inf])
WORDS = st.text(max_size=8)
CONDITIONS = st.builds(
    Condition,
    state=st.sampled_from(State),
    reason=WORDS,
    since=TIMES,
    enabled=st.booleans(),
    incident=st.none() | st.integers(0, 9),
    cause=st.none() | st.sampled_from(Cause),
    acting_since=st.none() | TIMES,
    confirmed=st.lists(TIMES, max_size=3).map(tuple),
    forced=st.none()
    | st.builds(Forced, actor=WORDS, reason=WORDS, request=WORDS, override=st.frozensets(WORDS, max_size=3)),
)
SCALARS: st.SearchStrategy[Scalar] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS
)


@settings(max_examples=150)
@given(CONDITIONS, CONDITIONS, st.floats(0, 1e9), st.lists(st.tuples(WORDS, SCALARS), max_size=3).map(tuple))
def test_whatever_is_said_can_be_read_again(
    before: Condition, after: Condition, at: float, arguments: tuple[tuple[str, Scalar], ...]
) -> None:
    import json

    moved = Moved(at=at, service="db", before=before, after=after)
    answered = Answered(at=at, id="r", act="pause", service="", actor="", reason="", accepted=True, arguments=arguments)
    for record in (moved, answered):
        again = decode_record(json.loads(dumps(encode_record(record))))
        assert again == record
        assert record_bytes([again]) == record_bytes([record])


def test_a_backoff_reads_what_an_older_release_stored() -> None:
    """A field added with a default needs no upcast: old data reads as that default."""
    assert decode(Backoff, {"initial": 1.0}) == Backoff(initial=1.0)
