"""A service of a real compose project: inspected, restarted, and given more containers by `docker compose` itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.builtin.receiver import Call, descriptors
from tests.servers import until
from tests.stack.docker import DockerEngine

from selfheal.core.model import Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal_docker.compose import ComposeWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

LABEL = "com.docker.compose"
RUNS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
FILE = f"""
name: kh
services:
  api:
    image: selfheal-busybox
    network_mode: host
    command: ["sh", "-c", "{RUNS}"]
    environment: ["COLOUR=${{COLOUR:-blue}}"]
    depends_on: [worker]
  worker:
    image: selfheal-busybox
    network_mode: host
    command: ["sh", "-c", "{RUNS}"]
    deploy: {{replicas: 1}}
  single:
    image: selfheal-busybox
    network_mode: host
    container_name: kh-single
    command: ["sh", "-c", "{RUNS}"]
  web:
    image: selfheal-busybox
    network_mode: host
    ports: ["127.0.0.1:18080:80"]
    command: ["sh", "-c", "{RUNS}"]
  database:
    image: selfheal-busybox
    network_mode: host
    volumes: ["data:/data"]
    command: ["sh", "-c", "{RUNS}"]
volumes: {{data: {{}}}}
"""


class Project:
    """A compose project of its own, as a person handles it."""

    def __init__(self, docker: DockerEngine, folder: Path) -> None:
        self.docker, self.folder = docker, folder
        (folder / "compose.yaml").write_text(FILE)

    def __call__(self, *arguments: str) -> str:
        return self.docker("compose", "--project-directory", str(self.folder), "--progress", "quiet", *arguments)

    def workload(self, service: str = "api", **options: Any) -> ComposeWorkload:
        options = {
            "directory": self.folder,
            "settle": 0.2,
            "environment": {"DOCKER_CONFIG": self.docker.environment["DOCKER_CONFIG"]},
            **options,
        }
        return ComposeWorkload(project="kh", service=service, host=self.docker.host, **options)

    def running(self, service: str) -> int:
        labels = [f"{LABEL}.project=kh", f"{LABEL}.service={service}", f"{LABEL}.oneoff=False"]
        filters = quote(json.dumps({"label": labels, "status": ["running"]}))
        status, listed = self.docker.ask("GET", f"/containers/json?filters={filters}")
        assert status == 200, listed
        return len(listed)


@pytest.fixture
def project(docker: DockerEngine, tmp_path: Path) -> Iterator[Project]:
    docker.with_compose().image("busybox")
    one = Project(docker, tmp_path)
    yield one
    docker.tidy()
    docker.ask("DELETE", "/volumes/kh_data")


def seen(one: ComposeWorkload) -> Instance:
    return asyncio.run(one.inspect(Call()))


def do(one: ComposeWorkload, verb: str, expected: Instance | None = None, **arguments: Any) -> str:
    context = Call(timeout=30.0)
    context.verb, context.expected, context.arguments = verb, expected, arguments
    said = asyncio.run(getattr(one, verb)(context))
    assert isinstance(said, str)
    return said


def test_a_service_is_all_its_containers(project: Project) -> None:
    one = project.workload()
    assert seen(one).run is Run.ABSENT
    project("up", "-d", "--scale", "api=3", "api")
    project("run", "-d", "api", "sh", "-c", RUNS)
    whole = seen(one)
    assert (whole.run, whole.count, whole.id.count("@")) == (Run.RUNNING, 3, 3), whole
    project.docker.kill_process("kh-api-2")
    until(lambda: project.docker.state("kh-api-2")["Status"] == "exited", "one of them is gone")
    less = seen(one)
    assert (less.run, less.count, less.id) == (Run.RUNNING, 2, whole.id)
    assert "kh-api-2: was ended by SIGKILL" in less.detail


def test_of_many_containers_the_id_is_short(project: Project) -> None:
    project("up", "-d", "--scale", "api=6", "api")
    one = project.workload()
    assert seen(one).id == seen(one).id
    assert len(seen(one).id) < 64
    before = seen(one)
    do(one, "restart", before)
    assert seen(one).id != before.id


def test_it_has_exited_when_none_runs_and_is_stopped_when_somebody_stopped_all(project: Project) -> None:
    project("up", "-d", "--scale", "api=2", "api")
    one = project.workload()
    project.docker("stop", "kh-api-1")
    project.docker.kill_process("kh-api-2")
    until(lambda: project.running("api") == 0, "none runs")
    assert seen(one).run is Run.EXITED
    project("start", "api")
    project("stop", "-t", "0", "api")
    assert (seen(one).run, seen(one).count) == (Run.STOPPED, 0)


def test_a_restart_restarts_all_but_what_a_person_has_stopped(project: Project) -> None:
    project("up", "-d", "--scale", "api=3", "api")
    one = project.workload()
    project.docker("stop", "kh-api-3")
    project.docker.kill_process("kh-api-2")
    until(lambda: project.running("api") == 1, "one runs")
    began = {name: project.docker.state(name)["StartedAt"] for name in ("kh-api-1", "kh-api-2", "kh-api-3")}
    said = do(one, "restart", seen(one))
    assert "restarted kh-api-1" in said
    assert "started kh-api-2, which was ended by SIGKILL" in said
    assert said.endswith("left alone, for somebody stopped them or Docker has them: 1")
    changed = [name for name, at in began.items() if project.docker.state(name)["StartedAt"] != at]
    assert changed == ["kh-api-1", "kh-api-2"]
    assert seen(one).count == 2


def test_others_than_those_that_failed_are_left_alone_and_so_is_what_is_stopped(project: Project) -> None:
    project("up", "-d", "api")
    one = project.workload()
    failed = seen(one)
    project("restart", "-t", "0", "api")
    with pytest.raises(ActionFailed, match="left alone"):
        do(one, "restart", failed)
    project("stop", "api")
    with pytest.raises(ActionFailed, match="left alone"):
        do(one, "restart", seen(one))


def test_s30_a_service_without_containers_is_a_failure(project: Project) -> None:
    with pytest.raises(ActionFailed, match="has no container"):
        do(project.workload("nobody"), "restart")


def test_stop_and_start_work_on_all_and_a_first_start_creates(project: Project) -> None:
    one = project.workload()
    do(one, "start")
    assert seen(one).count == 1
    do(one, "stop", seen(one))
    assert seen(one).run is Run.STOPPED
    do(one, "start", seen(one))
    assert seen(one).run is Run.RUNNING


def test_s31_it_is_scaled_up_and_never_down_and_its_neighbours_keep_their_scale(project: Project) -> None:
    project("up", "-d", "--scale", "worker=3", "api", "worker")
    project.docker("stop", "kh-worker-3")
    one = project.workload(instances_max=4)
    first = project.docker.state("kh-api-1")["StartedAt"]
    context = Call()
    context.verb, context.expected, context.arguments = "scale_up", seen(one), {"to": 3}
    assert asyncio.run(one.probe(context)) is None
    assert do(one, "scale_up", seen(one), to=3) == "3 containers of kh/api run, 1 before"
    assert asyncio.run(one.probe(context)) is Settled.DONE
    assert project.running("api") == 3
    assert project.docker.state("kh-api-1")["StartedAt"] == first, "what runs is not made anew"
    assert "already" in do(one, "scale_up", to=2)
    assert project.running("api") == 3
    do(one, "scale_up", to=9)
    assert project.running("api") == 4, "instances_max"
    assert project.running("worker") == 2, "neither reset to the file's scale, nor started against somebody's stop"


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ("single", "container_name 'kh-single'"),
        ("web", "fixed port 18080"),
        ("database", "keeps data in /data"),
    ],
)
def test_what_there_can_only_be_one_of_is_not_scaled(project: Project, service: str, words: str) -> None:
    project("up", "-d", service)
    with pytest.raises(ActionFailed, match=words):
        do(project.workload(service, instances_max=3), "scale_up", to=2)
    assert project.running(service) == 1


def test_what_is_stateful_is_scaled_if_it_is_asked_for_by_name(project: Project) -> None:
    project("up", "-d", "database")
    do(project.workload("database", instances_max=2, scale_stateful="database"), "scale_up", to=2)
    assert project.running("database") == 2


def test_nothing_is_scaled_by_default_or_with_other_files_than_it_was_made_of(project: Project) -> None:
    project("up", "-d", "api")
    with pytest.raises(ActionFailed, match="no instances_max"):
        do(project.workload(), "scale_up", to=2)
    with pytest.raises(ActionFailed, match="neither `directory` nor `files`"):
        do(project.workload(instances_max=2, directory=None), "scale_up", to=2)
    environment = {"DOCKER_CONFIG": project.docker.environment["DOCKER_CONFIG"], "COLOUR": "red"}
    with pytest.raises(ActionFailed, match="another version"):
        do(project.workload(instances_max=2, environment=environment), "scale_up", to=2)
    assert project.running("api") == 1


def test_what_is_missing_for_scaling_is_named(project: Project, tmp_path: Path) -> None:
    project("up", "-d", "api")
    with pytest.raises(ActionFailed, match="docker-compose-plugin"):
        do(project.workload(instances_max=2, environment={"DOCKER_CONFIG": str(tmp_path)}), "scale_up", to=2)
    with pytest.raises(ActionFailed, match="no-such-docker is not there"):
        do(project.workload(instances_max=2, program="no-such-docker"), "scale_up", to=2)


SLOW = """#!/bin/sh
# A `docker` whose plugin hangs, in a process group of its own, deaf to being asked to end.
case "$*" in *version*) echo 2.0.0; exit 0;; esac
trap '' TERM
{python} -S -c '
import os, signal
os.setpgid(0, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.execvp("sleep", ["sleep", "987"])' &
wait
"""


def test_s25_when_it_is_cancelled_nothing_of_the_command_is_left(project: Project, tmp_path: Path) -> None:
    project("up", "-d", "api")
    program = tmp_path / "docker"
    program.write_text(SLOW.format(python=sys.executable))
    program.chmod(0o755)
    one = project.workload(instances_max=2, program=str(program))

    def left() -> list[str]:
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                try:
                    line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if line.startswith("sleep 987") or str(program) in line:
                    found.append(line)
        return found

    async def story() -> float:
        context = Call(timeout=30.0)
        context.arguments = {"to": 2}
        acting = asyncio.ensure_future(one.scale_up(context))
        await asyncio.to_thread(until, lambda: any("sleep 987" in line for line in left()), "the command hangs")
        began = time.monotonic()
        acting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acting
        return time.monotonic() - began

    before = descriptors()
    took = asyncio.run(story())
    assert left() == []
    assert took < 2.5
    assert descriptors() <= before


def test_it_is_heard_when_the_last_of_them_dies(project: Project) -> None:
    project("up", "-d", "--scale", "api=2", "api")
    one = project.workload()

    async def story() -> Instance:
        heard: dict[Run, Instance] = {}

        async def listen() -> None:
            async for instance in one.watch(Call(timeout=3600.0)):
                heard[instance.run] = instance

        listener = asyncio.ensure_future(listen())
        while not one._memory.heard:
            await asyncio.to_thread(project.docker, "kill", "-s", "URG", "kh-api-1")
        project.docker.kill_process("kh-api-1")
        project.docker.kill_process("kh-api-2")
        await asyncio.to_thread(until, lambda: Run.EXITED in heard, "their death")
        listener.cancel()
        await asyncio.wait([listener])
        return heard[Run.EXITED]

    assert asyncio.run(story()).count == 0


def test_probe_says_done_once_none_of_those_that_failed_runs(project: Project) -> None:
    project("up", "-d", "--scale", "api=2", "api")
    one = project.workload()
    context = Call()
    context.expected = seen(one)
    assert asyncio.run(one.probe(context)) is None
    project.docker("restart", "-t", "0", "kh-api-1")
    assert asyncio.run(one.probe(context)) is None, "half of it"
    project.docker("restart", "-t", "0", "kh-api-2")
    assert asyncio.run(one.probe(context)) is Settled.DONE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"project": "x; touch pwned"}, "project"),
        ({"service": "-f"}, "service"),
        ({"directory": "relative"}, "absolute"),
        ({"files": "compose.yaml"}, "absolute"),
        ({"scale_stateful": "other"}, "not this service"),
        ({"instances_max": 0}, "instances_max"),
        ({"host": "ssh://root@elsewhere"}, "forward the socket"),
    ],
)
def test_s28_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        ComposeWorkload(**{"project": "kh", "service": "api", **options})


def test_the_command_is_given_few_of_our_variables(project: Project, tmp_path: Path) -> None:
    """The environment of a healer holds the passwords of everything it heals."""
    project("up", "-d", "api")
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/given\nexit 1\n")
    program.chmod(0o755)
    os.environ["SELFHEAL_TEST_PASSWORD"] = "hunter2-canary"
    try:
        with pytest.raises(ActionFailed):
            do(project.workload(instances_max=2, program=str(program)), "scale_up", to=2)
    finally:
        del os.environ["SELFHEAL_TEST_PASSWORD"]
    given = (tmp_path / "given").read_text()
    assert "hunter2" not in given
    assert f"DOCKER_HOST={project.docker.host}" in given
