"""Hearing what happens to a real unit."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
from tests.builtin.receiver import Call, descriptors
from tests.stack.docker_or_systemd import Ear
from tests.stack.systemd import Systemd

from selfheal import Run
from selfheal.builtin import proc
from selfheal_systemd import listening
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-api.service"
SLEEP = "/bin/sleep 1000"


@asynccontextmanager
async def listening_to(name: str = NAME) -> AsyncIterator[tuple[Ear, asyncio.Event]]:
    """Have a workload watched; the event is set whenever its main process is held."""
    ear = Ear()
    held = asyncio.Event()
    readable = proc.readable

    async def telling(descriptor: int, seconds: float | None) -> bool:
        if seconds == listening._ANYWAY:  # and not a wait for the end of `systemctl`
            held.set()
        try:
            return await readable(descriptor, seconds)
        finally:
            held.clear()

    async def listen() -> None:
        async for instance in SystemdWorkload(unit=name).watch(Call(timeout=3600.0)):
            ear.heard.append((time.monotonic(), instance))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proc, "readable", telling)
        listener = asyncio.ensure_future(listen())
        try:
            yield ear, held
        finally:
            if listener.done():
                listener.result()
            listener.cancel()
            await asyncio.wait([listener])


def test_a_death_is_heard_in_milliseconds(systemd: Systemd, capsys: pytest.CaptureFixture[str]) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, unit={"StartLimitIntervalSec": "0"})
    systemd.ask("start", NAME)

    async def story() -> list[float]:
        took = []
        async with listening_to() as (ear, held):
            for _ in range(10):
                await asyncio.wait_for(held.wait(), 10.0)
                ear.heard.clear()
                killed = await asyncio.to_thread(systemd.kill, NAME)
                took.append(await ear.until(lambda one: one.run is Run.EXITED, "its death") - killed)
                await asyncio.to_thread(systemd.ask, "start", NAME)
                await ear.until(lambda one: one.run is Run.RUNNING, "its start")
        return took

    took = sorted(asyncio.run(story()))
    with capsys.disabled():
        print(
            f"\nSIGKILL of a unit's process to heard by watch: median {statistics.median(took) * 1e3:.0f} ms, "
            f"least {took[0] * 1e3:.0f} ms, most {took[-1] * 1e3:.0f} ms"
        )
    assert statistics.median(took) < 0.5


def test_a_person_s_stop_start_and_restart_are_heard_as_that(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    systemd.ask("start", NAME)

    async def story() -> list[Run]:
        async with listening_to() as (ear, held):
            await asyncio.wait_for(held.wait(), 10.0)
            await asyncio.to_thread(systemd.ask, "stop", NAME)
            await ear.until(lambda one: one.run is Run.STOPPED, "the stop")
            await asyncio.to_thread(systemd.ask, "start", NAME)
            await ear.until(lambda one: one.run is Run.RUNNING, "the start")
            first = ear.heard[-1][1].id
            await asyncio.wait_for(held.wait(), 10.0)
            await asyncio.to_thread(systemd.ask, "restart", NAME)
            await ear.until(lambda one: one.run is Run.RUNNING and one.id != first, "the restart")
        return [instance.run for _, instance in ear.heard]

    assert Run.EXITED not in asyncio.run(story())


def test_nobody_is_asked_while_it_runs(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    systemd.ask("start", NAME)
    looks = []
    look = SystemdWorkload._look

    async def counted(self: SystemdWorkload, context: Call) -> object:
        looks.append(time.monotonic())
        return await look(self, context)

    monkeypatch.setattr(SystemdWorkload, "_look", counted)

    async def story() -> None:
        async with listening_to() as (_, held):
            await asyncio.wait_for(held.wait(), 10.0)
            await asyncio.sleep(1.5)

    asyncio.run(story())
    assert len(looks) == 1


def test_one_that_was_dead_already_is_told_once(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/false", wanted=True)
    systemd.ask("start", NAME)

    async def story() -> list[Run]:
        async with listening_to() as (ear, _):
            await ear.until(lambda one: one.run is Run.EXITED, "that it has ended")
            await asyncio.sleep(0.8)
            return [one.run for _, one in ear.heard]

    assert asyncio.run(story()) == [Run.EXITED]


def test_a_pid_that_is_not_in_the_unit_s_control_group_is_not_held(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    systemd.ask("start", NAME)
    unit, _ = asyncio.run(SystemdWorkload(unit=NAME)._look(Call()))
    held = listening.hold(unit)
    assert held is not None
    os.close(held)
    for other in ({"main_pid": 1}, {"control_group": "/system.slice/kh-other.service"}, {"main_pid": 4_000_000}):
        assert listening.hold(attrs.evolve(unit, **other)) is None


def test_a_systemd_that_hangs_for_a_while_is_survived(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    systemd.ask("start", NAME)

    async def story() -> None:
        async with listening_to() as (ear, held):
            await asyncio.wait_for(held.wait(), 10.0)
            systemd.freeze()
            try:
                await asyncio.to_thread(systemd_kill)
                await asyncio.sleep(0.5)
                assert not ear.heard
            finally:
                systemd.thaw()
            await ear.until(lambda one: one.run is Run.EXITED, "its death", 20.0)

    pid = systemd.main_pid(NAME)

    def systemd_kill() -> None:
        os.kill(pid, 9)

    asyncio.run(story())


def test_watching_can_be_cancelled_at_any_time_and_leaves_nothing_open(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    systemd.ask("start", NAME)

    async def listen() -> None:
        async for _ in SystemdWorkload(unit=NAME).watch(Call(timeout=3600.0)):
            pass

    async def story() -> tuple[int, int]:
        before = 0
        for turn in range(40):
            listener = asyncio.ensure_future(listen())
            await asyncio.sleep(0.004 * (turn % 10))
            listener.cancel()
            await asyncio.wait([listener])
            await asyncio.sleep(0)
            if turn == 9:
                gc.collect()
                before = descriptors()
        gc.collect()
        return before, descriptors()

    before, after = asyncio.run(story())
    assert after <= before
