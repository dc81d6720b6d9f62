"""Watching one descriptor and one time, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from math import inf
from time import monotonic

import anyio
import pytest

from selfheal.shell.readiness import Readiness

pytestmark = pytest.mark.anyio


@pytest.fixture
def descriptor() -> Iterator[int]:
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


async def test_it_beats_at_once_then_when_asked_and_sooner_when_told(anyio_backend: str, descriptor: int) -> None:
    beats: list[float] = []
    begun = monotonic()
    heard = [anyio.Event() for _ in range(3)]

    def beat() -> float:
        beats.append(monotonic() - begun)
        heard[len(beats) - 1].set()
        return begun + 0.1 if len(beats) == 1 else begun + 30.0 if len(beats) == 2 else inf

    readiness = Readiness(descriptor, lambda: None, beat)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(readiness.run)
        await heard[1].wait()
        readiness.sooner(begun + 60.0)
        readiness.sooner(monotonic() + 0.05)
        with anyio.fail_after(5):
            await heard[2].wait()
        tasks.cancel_scope.cancel()
    assert beats[0] < 0.05
    assert 0.1 <= beats[1] < 0.2
    assert beats[1] + 0.05 <= beats[2] < beats[1] + 0.2


async def test_a_time_that_is_past_beats_at_once(anyio_backend: str, descriptor: int) -> None:
    beats: list[int] = []

    def beat() -> float:
        beats.append(1)
        return monotonic() - 5.0 if len(beats) < 3 else inf

    with anyio.move_on_after(0.2):
        await Readiness(descriptor, lambda: None, beat).run()
    assert len(beats) == 3


async def test_a_readable_descriptor_is_polled_and_may_bring_the_beat_forward(
    anyio_backend: str, descriptor: int
) -> None:
    heard = [anyio.Event() for _ in range(4)]
    beats: list[int] = []

    def poll() -> None:
        os.eventfd_read(descriptor)
        readiness.sooner(0.0)

    def beat() -> float:
        heard[len(beats)].set()
        beats.append(1)
        return inf

    readiness = Readiness(descriptor, poll, beat)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(readiness.run)
        for beaten in heard[:3]:
            with anyio.fail_after(5):
                await beaten.wait()
            os.eventfd_write(descriptor, 1)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("where", ["poll", "beat"])
async def test_what_a_callback_raises_comes_out_of_run(anyio_backend: str, descriptor: int, where: str) -> None:
    def fail() -> float:
        raise ZeroDivisionError

    def poll() -> None:
        fail()

    if where == "poll":
        os.eventfd_write(descriptor, 1)
    caught: list[BaseException] = []
    try:
        with anyio.fail_after(5):
            await Readiness(descriptor, poll, fail if where == "beat" else lambda: inf).run()
    except* ZeroDivisionError as group:
        caught.extend(group.exceptions)
    assert len(caught) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_it_leaves_neither_reader_nor_timer(anyio_backend: str, descriptor: int) -> None:
    polled: list[int] = []
    beats: list[int] = []

    def beat() -> float:
        beats.append(1)
        return monotonic() + 0.05

    task = asyncio.create_task(Readiness(descriptor, lambda: polled.append(1), beat).run())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    os.eventfd_write(descriptor, 1)
    before = len(beats)
    await asyncio.sleep(0.15)
    assert not polled
    assert len(beats) == before
    assert not asyncio.get_running_loop().remove_reader(descriptor)
