"""The stream of records: in order, numbered as the store numbers them, and no reader can harm another."""

from __future__ import annotations

import anyio
import pytest

from selfheal.core.records import Answered, Doubted, Record
from selfheal.journal.store import Batch
from selfheal.shell.stream import ROOM, Stream, Told

pytestmark = pytest.mark.anyio


def batch(number: int, *records: Record, at: float = 10.0) -> Batch:
    return Batch(number=number, at=at, wall=1000.0 + at, records=records)


def doubted(at: float = 10.0) -> Record:
    return Doubted(at=at, late=1.0)


def answered(id_: str) -> Record:
    return Answered(
        at=10.0, id=id_, act="pause", service="", actor="alice", reason="a test", accepted=True, because="done"
    )


async def test_records_are_numbered_on_from_the_last() -> None:
    stream, heard = Stream(seq=41), list[Told]()
    stream.add(heard.append)
    stream.publish(batch(7, doubted(), doubted()), volatile=False)
    assert [(told.seq, told.number) for told in heard] == [(42, 7), (43, 7)]


async def test_a_record_is_as_old_as_itself_and_not_as_its_batch() -> None:
    stream, heard = Stream(seq=0), list[Told]()
    stream.add(heard.append)
    stream.publish(batch(1, doubted(at=4.0), doubted(at=10.0), at=10.0), volatile=False)
    assert [told.wall for told in heard] == [1004.0, 1010.0]


async def test_what_is_volatile_has_no_number_until_it_is_stored() -> None:
    stream, heard = Stream(seq=0), list[Told]()
    stream.add(heard.append)
    stream.publish(batch(1, doubted(), doubted()), volatile=True)
    stream.caught_up(2)
    stream.publish(batch(2, doubted()), volatile=False)
    assert [(told.seq, told.volatile) for told in heard] == [(None, True), (None, True), (3, False)]


async def test_a_reader_that_raises_keeps_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    stream, heard = Stream(seq=0), list[Told]()

    def rude(told: Told) -> None:
        raise ZeroDivisionError

    stream.add(rude)
    stream.add(heard.append)
    stream.publish(batch(1, doubted()), volatile=False)
    assert len(heard) == 1
    assert "a reader of the stream failed" in caplog.text


async def test_a_subscriber_hears_everything_in_order() -> None:
    stream = Stream(seq=0)
    async with stream.subscribe() as records:
        for number in range(1, 6):
            stream.publish(batch(number, doubted()), volatile=False)
        with anyio.fail_after(1):
            assert [(await records.receive()).seq for _ in range(5)] == [1, 2, 3, 4, 5]


async def test_a_subscriber_that_is_too_slow_is_let_go_and_the_others_are_not() -> None:
    stream = Stream(seq=0)
    async with stream.subscribe() as slow, stream.subscribe() as quick:
        got = 0
        for number in range(1, ROOM + 10):
            stream.publish(batch(number, doubted()), volatile=False)
            with anyio.fail_after(1):
                await quick.receive()
            got += 1
        assert got == ROOM + 9
        with anyio.fail_after(1):
            seqs = [told.seq async for told in slow]
        assert seqs == list(range(1, ROOM + 1))  # a beginning without a gap, then the end


async def test_the_end_of_the_stream_ends_every_subscription_and_every_waiting() -> None:
    stream = Stream(seq=0)
    ready, answers = stream.expect("r1")
    async with stream.subscribe() as records:
        stream.close()
        with anyio.fail_after(1):
            assert [told async for told in records] == []
            await ready.wait()
    assert answers == []


async def test_an_answer_is_given_to_everybody_who_waits_for_it() -> None:
    stream = Stream(seq=0)
    first, second = stream.expect("r1"), stream.expect("r1")
    stream.publish(batch(1, answered("other")), volatile=False)
    assert not first[0].is_set()
    stream.publish(batch(2, answered("r1")), volatile=False)
    for ready, answers in (first, second):
        assert ready.is_set()
        assert [told.seq for told in answers] == [2]


async def test_whoever_has_left_a_subscription_costs_nothing() -> None:
    stream = Stream(seq=0)
    async with stream.subscribe():
        pass
    stream.publish(batch(1, doubted()), volatile=False)
    assert stream._subscribers == {}
