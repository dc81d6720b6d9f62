"""The whole of it: a Supervisor, a real container that runs Redis, a kill, and what becomes of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.servers import free_port, until
from tests.shell.supervised import QUICK, hearing, quick, until_reason, until_state
from tests.stack.docker import DockerEngine
from tests.stack.docker_or_systemd import HOW, beside_polling, times_to_be_well_again
from tests.stack.killed import killed_afterwards

from selfheal import Service, Supervisor
from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.model import Limits
from selfheal_docker.workload import DockerWorkload

pytestmark = [pytest.mark.anyio, pytest.mark.server, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> str:
    """One host is enough: a plugin runs on asyncio in a thread of ours; the conformance kit has every host."""
    return "asyncio"


NAME = "knowledgehub-redis"
RESTART: tuple[Mapping[str, Any], ...] = ({"action": "restart", "settle": 0.1},)
PATIENT: dict[str, Any] = {**QUICK, "interval": 30.0, "timeout": 1.0, "recheck": 0.2, "failure_threshold": 3}
"""Polling alone would take a minute to find out."""


def redis(docker: DockerEngine, **options: Any) -> Service:
    """Run Redis in a container; return the service."""
    port = free_port()
    docker.run(NAME, "redis-server", "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    workload = DockerWorkload(container=NAME, host=docker.host, settle=0.3, stop_timeout=1.0)
    url = f"redis://127.0.0.1:{port}"
    options = {**PATIENT, "recovery_actions": RESTART, **options}
    return Service("redis", check=RedisPing(url=url), workload=workload, **options)


async def test_a_killed_container_is_heard_restarted_and_proven_well(
    docker: DockerEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = redis(docker)
    took: list[float] = []
    limits = Limits(budget_floor=1000)
    async with (
        Supervisor([service], journal=tmp_path / "selfheal.db", limits=limits) as supervisor,
        hearing(supervisor) as heard,
    ):
        await until_state(supervisor, "redis", "healthy", within=10.0)
        await anyio.sleep(0.2)  # what is killed before anybody listens is only found by polling
        for turn in range(1, 3):
            before = docker.state(NAME)["StartedAt"]
            killed = docker.kill_process(NAME)
            intended = await heard.first("intended", nth=turn, within=10.0)
            took.append(time.monotonic() - killed)
            assert intended.expected == f"{docker.data(NAME)['Id'][:12]}@{before}"
            ended = await heard.first("ended", nth=turn, within=10.0)
            assert ended.settled.value == "done"
            now = f"{docker.data(NAME)['Id'][:12]}@{docker.state(NAME)['StartedAt']}"
            assert ended.detail == f"started {NAME}, which was ended by SIGKILL (code 137): it runs as {now}"
            await heard.state("redis", "healthy", nth=turn + 1, within=10.0)
            assert docker.state(NAME)["StartedAt"] != before
    with capsys.disabled():
        span = f"{min(took) * 1e3:.0f} to {max(took) * 1e3:.0f} ms"
        print(f"\nSIGKILL of a container to the decision to restart it: {span} (polling every 30 s)")
    assert max(took) < 5.0


async def test_a_death_that_is_heard_is_over_sooner_than_one_that_is_found_by_polling(
    docker: DockerEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {}
    for how in HOW:
        port = free_port()
        name = f"kh-redis-{port}"
        docker.run(name, "redis-server", "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
        workload = DockerWorkload(container=name, host=docker.host, settle=0.3)
        runs[how] = (port, workload, partial(docker.kill_process, name))
    took = await times_to_be_well_again(runs, tmp_path / "selfheal.db")
    with capsys.disabled():
        print(beside_polling("a container", took))
    assert took[HOW[0]] < took[HOW[2]]


async def test_what_a_person_stopped_is_held_and_never_started_again(docker: DockerEngine, tmp_path: Path) -> None:
    service = redis(docker, interval=0.5, timeout=0.4, recheck=0.1, failure_threshold=2)
    async with (
        Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor,
        hearing(supervisor) as heard,
    ):
        await until_state(supervisor, "redis", "healthy", within=10.0)
        await anyio.to_thread.run_sync(docker, "stop", NAME)
        said = await until_reason(supervisor, "redis", "held:workload", within=10.0)
        assert "stopped by a person" in said["detail"]
        await anyio.sleep(1.0)
        assert heard.kinds("redis").count("intended") == 0
        await anyio.to_thread.run_sync(docker, "start", NAME)
        await until_state(supervisor, "redis", "healthy", within=10.0)
    assert docker.state(NAME)["Running"] is True


async def test_while_docker_is_frozen_nothing_is_done(docker: DockerEngine, tmp_path: Path) -> None:
    """Who runs cannot be told: a restart could hit another one, and would only wait."""
    service = redis(docker, interval=0.5, timeout=0.4, recheck=0.1, failure_threshold=2)
    async with (
        Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor,
        hearing(supervisor) as heard,
    ):
        await until_state(supervisor, "redis", "healthy", within=10.0)
        docker.freeze()
        try:
            os.kill(_redis_pid(), signal.SIGSTOP)
            said = await until_reason(supervisor, "redis", "held:workload", within=20.0)
            assert "gave no answer" in said["detail"]
            assert heard.kinds("redis").count("intended") == 0
        finally:
            docker.thaw()
        await heard.first("ended", within=20.0)
        await until_state(supervisor, "redis", "healthy", within=20.0)


def _redis_pid() -> int:
    """Return the process of Redis in the container; Docker, frozen, cannot be asked."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and (place / "comm").exists():
            words = (place / "cmdline").read_bytes().split(b"\0")
            if words[0].startswith(b"redis-server") and "docker" in (place / "cgroup").read_text():
                return int(place.name)
    raise AssertionError("no container runs Redis")


async def test_a_manager_killed_in_the_middle_of_a_restart_is_settled_by_its_successor(
    docker: DockerEngine, tmp_path: Path
) -> None:
    """Docker finishes the restart; the successor finds another incarnation, and says that it was done, once."""
    identity = docker.shell(NAME, "trap '' TERM; while :; do sleep 0.05; done")
    before = docker.state(NAME)["StartedAt"]
    journal = tmp_path / "selfheal.db"

    def told(event: str) -> list[str]:
        only = ("--filter", f"container={identity}", "--filter", f"event={event}")
        return docker("events", "--since", "60s", "--until", "0s", *only).splitlines()

    workload = DockerWorkload(container=NAME, host=docker.host, settle=0.3, stop_timeout=2.0)
    options = f"check=lambda: False, workload={workload!r}"
    lines = "from selfheal_docker.workload import DockerWorkload"
    with killed_afterwards(journal, RESTART[0], options, lines):
        await anyio.to_thread.run_sync(lambda: until(lambda: told("kill"), "Docker is stopping it", 30.0))
        assert docker.state(NAME)["StartedAt"] == before, "it is in the middle of it"

    service = quick("service", check=lambda: True, workload=workload, recovery_actions=RESTART)
    async with Supervisor([service], journal=journal) as supervisor, hearing(supervisor) as heard:
        ended = await heard.first("ended", within=20.0)
        assert ended.settled.value == "done", ended
        await until_state(supervisor, "service", "healthy", within=10.0)
        assert len(heard.of("intended")) == 1
    after = docker.state(NAME)
    assert (after["Running"], after["StartedAt"] != before) == (True, True)
    await anyio.to_thread.run_sync(lambda: until(lambda: told("restart"), "Docker says that it restarted it"))
    assert len(told("restart")) == 1


async def test_it_is_found_by_its_kind_and_imports_nothing_before() -> None:
    code = (
        "import sys; from selfheal.loading import load_plugins; "
        "tables = load_plugins(['docker']); "
        "assert 'docker' in tables.workloads and 'compose' in tables.workloads, tables.plugins; "
        "assert 'selfheal_docker.api' not in sys.modules and 'h11' not in sys.modules; "
        "print(tables.workloads['docker'].__name__, tables.workloads['compose'].__name__)"
    )
    ran = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert ran.stdout.decode().split() == ["DockerWorkload", "ComposeWorkload"], ran.stderr.decode()
