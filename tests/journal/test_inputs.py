"""The codec of inputs: every event but `TimePassed` comes back as it went in."""

from __future__ import annotations

import json
import typing

import pytest

from selfheal.core.messages import (
    ActionFinished,
    CheckFinished,
    FleetProposed,
    JournalChanged,
    Requested,
    Started,
    TimePassed,
    WatchReported,
    WindowChanged,
    WokeLate,
)
from selfheal.core.model import (
    Cause,
    CheckResult,
    Dependency,
    Fleet,
    Instance,
    Policy,
    Purpose,
    Run,
    Settled,
    Step,
    Verdict,
)
from selfheal.core.records import decode
from selfheal.core.routing import DeliveryFinished
from selfheal.errors import JournalDamaged, JournalTooNew
from selfheal.journal import inputs
from selfheal.journal.inputs import INPUTS, decode_input, encode_input, stored_input, stored_record, to_bytes
from selfheal.journal.store import Input

FLEET = Fleet(
    policies=(
        Policy(name="a", steps=(Step(action="restart", only_for=frozenset({Cause.FULL})),)),
        Policy(name="b", depends_on=(Dependency(services=("a",)),)),
    )
)

EVENTS: list[Input] = [
    Started(at=0.1 + 0.2, resumes=1e-300, fleet=FLEET),
    WokeLate(at=1.0, late=0.3),
    CheckFinished(
        at=2.0,
        service="a",
        generation=3,
        purpose=Purpose.BEFORE_STEP,
        started=1.1,
        ended=1.9,
        result=CheckResult(Verdict.WARNING, cause=Cause.CONFIG, details={"days": 3, "lag": 1e300}),
        instance=Instance(id="x", run=Run.RUNNING, since=0.5),
    ),
    ActionFinished(at=3.0, intent="1/a/1/0", settled=Settled.IN_DOUBT, detail="?"),
    WatchReported(at=4.0, service="a"),
    Requested(
        at=5.0,
        id="r",
        act="recover",
        service="a",
        actor="alice",
        reason="now",
        scopes=frozenset({"read", "admin"}),
        override=frozenset({"parents"}),
        duration=60.0,
    ),
    FleetProposed(at=6.0, id="p", actor="alice", fleet=FLEET, confirmed=True),
    WindowChanged(at=7.0, window="w", services=("a", "b"), active=True, until=float("inf")),
    JournalChanged(at=8.0, well=True),
    DeliveryFinished(at=9.0, notification="n1", notifier="oncall", error="410 Gone", permanent=True),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_input_comes_back_as_it_went_in(event: Input) -> None:
    assert decode_input(json.loads(to_bytes(encode_input(event)))) == event


def test_every_input_but_time_passed_has_a_stored_form() -> None:
    assert set(typing.get_args(Input)) - {TimePassed} == set(INPUTS.values())
    assert {type(event) for event in EVENTS} == set(INPUTS.values())
    with pytest.raises(TypeError, match="TimePassed is not stored"):
        encode_input(TimePassed(at=1.0))


def test_an_input_of_an_earlier_version_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "INPUT_VERSIONS", {**inputs.INPUT_VERSIONS, "woke_late": 3})
    monkeypatch.setattr(
        inputs,
        "INPUT_UPCASTS",
        {
            ("woke_late", 1): lambda body: {"at": body["at"], "delay": body["behind"]},
            ("woke_late", 2): lambda body: {"at": body["at"], "late": body["delay"]},
        },
    )
    assert decode_input({"kind": "woke_late", "v": 1, "at": 1.0, "behind": 2.0}) == WokeLate(at=1.0, late=2.0)


def test_what_a_newer_release_wrote_is_not_called_damage() -> None:
    with pytest.raises(JournalTooNew, match=r"batch 4 .*newer release"):
        stored_input(b'{"kind":"woke_late","v":2,"at":1.0}', "batch 4")
    with pytest.raises(JournalTooNew, match=r"record 7 .*newer release"):
        stored_record(b'{"kind":"not_yet_thought_of","v":1,"at":1.0}', "record 7")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"kind":"woke_late","v":1,"at":"x"}', b"\xff"])
def test_what_cannot_be_read_is_damage_and_names_its_place(body: bytes) -> None:
    with pytest.raises(JournalDamaged, match="batch 4"):
        stored_input(body, "batch 4")


def test_text_that_is_no_unicode_comes_back() -> None:
    result = CheckResult(Verdict.FAILING, summary="\udcfe\udcff")
    assert decode(CheckResult, json.loads(to_bytes({"verdict": "failing", "summary": "\udcfe\udcff"}))) == result
