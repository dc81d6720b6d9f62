"""Hearing what happens to a real container, from Docker's events."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.builtin.receiver import Call, descriptors
from tests.stack.docker import DockerEngine
from tests.stack.docker_or_systemd import Ear

from selfheal.core.model import Instance, Run
from selfheal_docker.workload import DockerWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-redis"


@asynccontextmanager
async def listening(docker: DockerEngine, container: str = NAME) -> AsyncIterator[tuple[Ear, DockerWorkload]]:
    """Have a workload watched, from the moment on when it is listening."""
    ear = Ear()
    one = DockerWorkload(container=container, host=docker.host)

    async def listen() -> None:
        async for instance in one.watch(Call(timeout=3600.0)):
            ear.heard.append((time.monotonic(), instance))

    listener = asyncio.ensure_future(listen())
    try:
        # An event of another container that the filter lets through shows that we are subscribed.
        while not one._memory.heard:
            await asyncio.to_thread(docker, "kill", "-s", "URG", container)
            await asyncio.sleep(0.05)
        yield ear, one
    finally:
        listener.cancel()
        await asyncio.wait([listener])


async def person(docker: DockerEngine, *arguments: str) -> None:
    await asyncio.to_thread(docker, *arguments)


def test_a_death_is_heard_in_milliseconds(docker: DockerEngine, capsys: pytest.CaptureFixture[str]) -> None:
    docker.idle(NAME)

    async def story() -> list[float]:
        took = []
        async with listening(docker) as (ear, _):
            for _ in range(5):
                ear.heard.clear()
                killed = docker.kill_process(NAME)
                took.append(await ear.until(lambda one: one.run is Run.EXITED, "its death") - killed)
                await person(docker, "start", NAME)
                await ear.until(lambda one: one.run is Run.RUNNING, "its start")
        return took

    took = sorted(asyncio.run(story()))
    with capsys.disabled():
        print(
            f"\nSIGKILL of a container to heard by watch: median {took[2] * 1e3:.0f} ms, most {took[-1] * 1e3:.0f} ms"
        )
    assert took[2] < 1.0


def test_a_person_s_stop_is_heard_as_that_and_not_as_a_death(docker: DockerEngine) -> None:
    docker.idle(NAME)

    async def story() -> list[Run]:
        async with listening(docker) as (ear, _):
            await person(docker, "stop", NAME)
            await ear.until(lambda one: one.run is Run.STOPPED, "the stop")
            await person(docker, "start", NAME)
            await ear.until(lambda one: one.run is Run.RUNNING, "the start")
            await person(docker, "restart", "-t", "1", NAME)
            await person(docker, "pause", NAME)
            await ear.until(lambda one: "paused" in one.detail, "the pause")
            return ear.runs

    assert Run.EXITED not in asyncio.run(story())


def test_what_was_heard_is_known_after_docker_has_forgotten_it(docker: DockerEngine) -> None:
    docker.idle(NAME)

    async def story() -> Instance:
        async with listening(docker) as (ear, one):
            await person(docker, "stop", NAME)
            await ear.until(lambda instance: instance.run is Run.STOPPED, "the stop")
            await asyncio.to_thread(docker.forget)
            return await one.inspect(Call())

    assert asyncio.run(story()).run is Run.STOPPED


def test_its_health_its_removal_and_its_new_name_are_heard(docker: DockerEngine) -> None:
    docker.idle(NAME, "--health-cmd", "test -e /tmp/well", "--health-interval", "0.1s", "--health-start-period", "60s")

    async def story() -> None:
        async with listening(docker) as (ear, _):
            await person(docker, "exec", NAME, "touch", "/tmp/well")
            await ear.until(lambda one: one.run is Run.RUNNING, "its health")
            await person(docker, "rename", NAME, "kh-other")
            await ear.until(lambda one: one.run is Run.ABSENT, "its new name")
            await person(docker, "rename", "kh-other", NAME)
            ear.heard.clear()
            await person(docker, "rm", "-f", NAME)
            await ear.until(lambda one: one.run is Run.ABSENT, "its removal")

    asyncio.run(story())


def test_a_container_that_is_made_anew_is_heard_and_so_is_its_death(docker: DockerEngine) -> None:
    docker.idle(NAME)

    async def story() -> None:
        async with listening(docker) as (ear, _):
            await person(docker, "rm", "-f", NAME)
            await ear.until(lambda one: one.run is Run.ABSENT, "its removal")
            await asyncio.to_thread(docker.idle, NAME)
            await ear.until(lambda one: one.run is Run.RUNNING, "the new one")
            docker.kill_process(NAME)
            await ear.until(lambda one: one.run is Run.EXITED, "the death of the new one")

    asyncio.run(story())


def test_docker_going_down_and_coming_back_is_survived_and_its_stops_are_nobody_s_wish(docker: DockerEngine) -> None:
    """An upgrade of Docker stops every container; of those without a policy none comes back by itself."""
    docker.idle(NAME)

    async def story() -> Instance:
        async with listening(docker) as (ear, one):
            await asyncio.to_thread(docker.stop)
            await asyncio.to_thread(docker.start)
            assert docker.state(NAME)["Status"] == "exited"
            told = await one.inspect(Call())
            await person(docker, "start", NAME)
            ear.heard.clear()
            docker.kill_process(NAME)
            await ear.until(lambda instance: instance.run is Run.EXITED, "its death, after Docker came back", 20.0)
            return told

    assert asyncio.run(story()).run is Run.EXITED


def test_watching_can_be_cancelled_at_any_time_and_leaves_nothing_open(docker: DockerEngine) -> None:
    docker.idle(NAME)

    async def listen() -> None:
        async for _ in DockerWorkload(container=NAME, host=docker.host).watch(Call(timeout=3600.0)):
            pass

    async def story() -> tuple[int, int]:
        before = 0
        for turn in range(60):
            listener = asyncio.ensure_future(listen())
            await asyncio.sleep(0.001 * (turn % 10))
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


def test_watching_works_off_the_main_thread(docker: DockerEngine) -> None:
    docker.idle(NAME)

    async def story() -> Run:
        async with listening(docker) as (ear, _):
            docker.kill_process(NAME)
            await ear.until(lambda one: one.run is Run.EXITED, "its death")
            return ear.heard[-1][1].run

    async def elsewhere() -> Run:
        return await asyncio.to_thread(lambda: asyncio.run(story()))

    assert asyncio.run(elsewhere()) is Run.EXITED
