"""Runs give back every result bit for bit."""

from __future__ import annotations

import struct
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfheal.core.messages import CheckFinished, WokeLate
from selfheal.core.model import PASSING, Cause, CheckResult, Instance, Purpose, Run, Verdict
from selfheal.core.records import Doubted
from selfheal.errors import JournalDamaged, JournalTooNew
from selfheal.journal import runs
from selfheal.journal.store import Batch
from selfheal.testing.stores import batch, checked

STAMPS = st.floats(min_value=0.0, max_value=1e12, allow_nan=False) | st.floats(min_value=0.0, allow_infinity=False)
RESULTS = st.sampled_from(
    [
        PASSING,
        CheckResult(Verdict.PASSING, summary="3 replicas", details={"lag": 0.25}),
        CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT, summary="no answer"),
    ]
)
INSTANCES = st.none() | st.builds(Instance, id=st.text(max_size=5), run=st.sampled_from(Run), since=st.none() | STAMPS)


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    """Return results in order, of any services, with any stamps, and gaps in their numbers."""
    count = draw(st.integers(1, 30))
    numbers = sorted(draw(st.sets(st.integers(1, 2**62), min_size=count, max_size=count)))
    return [
        batch(
            number,
            CheckFinished(
                at=draw(STAMPS),
                service=draw(st.sampled_from(["a", "b", "canary:gateway", "ü"])),
                generation=draw(st.integers(0, 2**40)),
                purpose=draw(st.sampled_from(Purpose)),
                started=draw(STAMPS),
                ended=draw(STAMPS),
                result=draw(RESULTS),
                instance=draw(INSTANCES),
            ),
        )
        for number in numbers
    ]


def stamps(finished: CheckFinished) -> bytes:
    """Return the exact bytes of the three stamps."""
    return struct.pack("<3d", finished.at + 0.0, finished.started + 0.0, finished.ended + 0.0)


@given(batches())
@settings(deadline=None, max_examples=150)
def test_results_come_back_bit_for_bit(given_batches: list[Batch]) -> None:
    assert all(runs.fits(one) for one in given_batches)
    run = runs.pack(given_batches)
    back = list(runs.unpack(run.body))
    assert [(one.number, one.at, one.input) for one in back] == [
        (one.number, one.at, one.input) for one in given_batches
    ]
    for one, other in zip(back, given_batches, strict=True):
        assert isinstance(one.input, CheckFinished)
        assert isinstance(other.input, CheckFinished)
        assert stamps(one.input) == stamps(other.input)
    assert (run.first, run.last, run.count) == (back[0].number, back[-1].number, len(back))
    of_a = [one for one in back if isinstance(one.input, CheckFinished) and one.input.service == "a"]
    assert list(runs.unpack(run.body, service="a")) == of_a


def test_wall_time_comes_back_to_a_millisecond_even_when_the_clock_was_set() -> None:
    given_batches = [batch(1, checked(10.0)), batch(2, checked(20.0)), batch(3, checked(30.0))]
    given_batches[1] = Batch(number=2, at=20.0, wall=given_batches[1].wall - 3600.123456, input=given_batches[1].input)
    back = list(runs.unpack(runs.pack(given_batches).body))
    assert [one.wall for one in back] == pytest.approx([one.wall for one in given_batches], abs=0.00051)


@pytest.mark.parametrize(
    "odd",
    [
        batch(1, WokeLate(at=1.0, late=1.0)),
        batch(1, None, at=1.0),
        batch(1, checked(1.0), Doubted(at=1.0, late=1.0)),
        batch(1, checked(-1.0)),
        batch(1, checked(inf)),
        batch(1, checked(nan)),
        Batch(number=1, at=1.0, wall=1.0, input=checked(2.0)),
    ],
)
def test_what_is_not_a_plain_result_does_not_fit_a_run(odd: Batch) -> None:
    assert not runs.fits(odd)


def test_a_run_that_cannot_be_read_is_damage() -> None:
    body = runs.pack([batch(1, checked(1.0))]).body
    for broken in (b"", body[:-1], body[:10] + b"\x00" + body[11:]):
        with pytest.raises(JournalDamaged):
            list(runs.unpack(broken))


def test_a_run_of_a_newer_release_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "VERSION", 2)
    body = runs.pack([batch(1, checked(1.0))]).body
    monkeypatch.setattr(runs, "VERSION", 1)
    with pytest.raises(JournalTooNew):
        list(runs.unpack(body))
