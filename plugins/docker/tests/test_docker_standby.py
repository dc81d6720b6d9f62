"""A container that takes over from another: the built-in action `standby`, on a real Engine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.builtin.receiver import Call
from tests.stack.docker import DockerEngine

from selfheal.builtin.standby import Standby
from selfheal.config import configure
from selfheal.core.model import Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal.ladder import resolve
from selfheal_docker.workload import DockerWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]


def pair(docker: DockerEngine) -> tuple[DockerWorkload, DockerWorkload]:
    """Have one container that runs, and another that waits."""
    docker.idle("kh-db")
    docker.idle("kh-db-2")
    docker("stop", "kh-db-2")
    old, new = (DockerWorkload(container=name, host=docker.host, settle=0.2) for name in ("kh-db", "kh-db-2"))
    return old, new


def inspect(workload: DockerWorkload) -> Instance:
    return asyncio.run(workload.inspect(Call(service="db")))


def call(old: DockerWorkload, expected: Instance | None = None) -> Call:
    made = Call(service="db", timeout=30.0)
    made.workload, made.expected = old, expected
    return made


def test_s32_a_container_that_was_killed_is_followed_by_its_standby(docker: DockerEngine) -> None:
    old, new = pair(docker)
    before = inspect(old)
    docker.kill_process("kh-db")
    end = time.monotonic() + 10.0
    while inspect(old).run is not Run.EXITED:
        assert time.monotonic() < end
    action = Standby(workload=new)
    asyncio.run(action.run(call(old, before)))
    assert docker.state("kh-db-2")["Running"]
    assert not docker.state("kh-db")["Running"]
    assert asyncio.run(action.probe(call(old, before))) is Settled.DONE


def test_s32_a_standby_that_was_created_and_never_started_is_started(docker: DockerEngine) -> None:
    old, new = pair(docker)
    docker("rm", "kh-db-2")
    docker("create", "--name", "kh-db-2", "--network", "host", "selfheal-busybox", "sleep", "1000")
    assert asyncio.run(Standby(workload=new).doctor(call(old))) == []
    asyncio.run(Standby(workload=new, fence="stop").run(call(old, inspect(old))))
    assert docker.state("kh-db-2")["Running"]


@pytest.mark.parametrize("how", ["running", "paused"])
def test_s32_beside_one_that_runs_or_is_paused_nothing_is_started(docker: DockerEngine, how: str) -> None:
    """Paused counts as stopped by a person, and goes on writing when it is let go on."""
    old, new = pair(docker)
    if how == "paused":
        docker("pause", "kh-db")
    with pytest.raises(ActionFailed, match="not fenced"):
        asyncio.run(Standby(workload=new).run(call(old)))
    assert not docker.state("kh-db-2")["Running"]
    if how == "paused":
        docker("unpause", "kh-db")


def test_s32_with_a_fence_the_old_container_is_stopped_and_stays_so(docker: DockerEngine) -> None:
    old, new = pair(docker)
    asyncio.run(Standby(workload=new, fence="stop").run(call(old, inspect(old))))
    assert docker.state("kh-db-2")["Running"]
    assert inspect(old).run is Run.STOPPED


def test_a_standby_that_does_not_exist_stops_nothing(docker: DockerEngine) -> None:
    old, _ = pair(docker)
    missing = DockerWorkload(container="kh-nobody", host=docker.host)
    action = Standby(workload=missing, fence="stop")
    with pytest.raises(ActionFailed, match="no standby"):
        asyncio.run(action.run(call(old)))
    assert docker.state("kh-db")["Running"]
    assert "no standby" in str(asyncio.run(action.doctor(call(old)))[0])


def test_a_file_names_it(tmp_path: Path) -> None:
    standby = {"kind": "docker", "container": "kh-db-2"}
    service = {
        "check": {"kind": "tcp", "address": "127.0.0.1:9"},
        "workload": {"kind": "docker", "container": "kh-db"},
        "recovery_actions": [{"action": "failover", "fence": "stop", "standby": standby}],
    }
    found = configure({"fleet": {"state_dir": str(tmp_path)}, "services": {"db": service}})
    (step,) = resolve(found.services[0], {}, {})
    assert step.target == Standby(workload=DockerWorkload(container="kh-db-2"), fence="stop")
