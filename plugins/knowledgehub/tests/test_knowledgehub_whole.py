"""The application's own `recovery.json`, as it stands, on the real command line, with real servers in containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.config.test_legacy import FILE
from tests.servers import free_port, until
from tests.stack import built
from tests.stack.docker import DockerEngine, engine
from tests.stack.minio import USER, Minio
from tests.stack.neo4j import Neo4j
from tests.stack.postgres import WATCHER, WATCHER_PASSWORD, Template
from tests.stack.redis import RedisServer
from tests.stack.running import Program
from tests.stack.weaviate import Weaviate

from selfheal.control import Question, alive, call
from selfheal_knowledgehub.presets import CONTAINER

pytestmark = [pytest.mark.server, pytest.mark.real_time]

WITH_COMMENTS = """\
{
  "health_check_interval": 1,      // seconds between checks
  "failure_threshold": 4,          // failures before recovery
  "max_concurrent_recoveries": 2,  // at the same time
  "recovery_timeout": 120,
  "log_level": "warning",          // "info" by day
  "services": {
    "redis": {"health_check_interval": 1, "initial_delay": 0.5, "max_delay": 4},  // nearer than what is known of it
    "web": {"check": {"kind": "tcp", "address": "127.0.0.1:WEB"}}                 // http://example.com/not/a/comment
  }
}
"""
SEEN = (*(Path(each) for each in ("/usr", "/lib", "/lib64", "/etc")), built.place("neo4j").parent)
"""What of this machine the containers see: its programs, and those that were built for tests."""


@attrs.frozen
class Hub:
    """The application's containers, its variables, and a folder with its file."""

    docker: DockerEngine
    folder: Path
    variables: dict[str, str]
    redis: RedisServer

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, **self.variables, "PYTHONUNBUFFERED": "1", **more}

    def file(self, text: str) -> Path:
        path = self.folder / "recovery.json"
        path.write_text(text)
        return path

    def selfheal(self, *arguments: object, program: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as a person would; `program` is Python that stands for `selfheal`."""
        begin = ("-c", program) if program else ("-m", "selfheal")
        command = [sys.executable, *begin, "--state-dir", self.state, *arguments]
        return subprocess.run(
            [str(part) for part in command],
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def running(self, file: Path) -> Iterator[Path]:
        """Run `selfheal run` with a file; yield its log. It must stop in order."""
        log = self.folder / "log"
        with log.open("ab") as said:
            command = [sys.executable, "-m", "selfheal", "--state-dir", str(self.state), "run", str(file)]
            child = subprocess.Popen(command, env=self.environment(), stderr=said)
        try:
            until(lambda: alive(self.state / "control.sock") or child.poll() is not None, "it runs", 20.0)
            assert child.poll() is None, log.read_text()
            yield log
            child.send_signal(signal.SIGTERM)
            assert child.wait(20.0) == 0, log.read_text()
        finally:
            child.kill()
            child.wait()

    def ask(self, request: str, **parameters: Any) -> Any:
        return call(self.state / "control.sock", Question(request=request, parameters=parameters))

    def states(self) -> dict[str, str]:
        return {line["service"]: line["state"] for line in self.ask("status")["services"]}


@attrs.frozen
class Containers:
    """The application's five servers, each in the container that the application would call so."""

    docker: DockerEngine
    redis: RedisServer
    variables: dict[str, str]


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    with engine() as docker, Template() as template:
        database, redis = template.server(), RedisServer(docker.folder / "redis")
        weaviate, neo4j = Weaviate(docker.folder / "weaviate"), Neo4j(docker.folder / "neo4j")
        minio = Minio(docker.folder / "minio")
        for name, program, folder in (
            ("database", database.serving(), database.folder),
            ("redis", redis.serving(), redis.folder),
            ("weaviate", weaviate.serving(), weaviate.folder),
            ("neo4j", neo4j.serving(), neo4j.home),
            ("minio", minio.serving(), minio.folder),
        ):
            contain(docker, name, program, folder)
        for what, true in {
            "PostgreSQL takes connections": lambda: database.ready() == 0,
            "Redis answers": lambda: redis.ask("PING") == "PONG",
            "Weaviate is ready": lambda: weaviate.ask("/v1/.well-known/ready")[0] == 200,
            "Neo4j answers": lambda: neo4j.ask("RETURN 1")[0] == 202,
            "MinIO can be written": lambda: minio.ask("/minio/health/cluster")[0] == 200,
        }.items():
            until(true, what, 90.0)
        database.ask("CREATE TABLE things AS SELECT generate_series(1, 1000) AS one")
        variables = {
            "DATABASE_URL": f"postgresql+asyncpg://{WATCHER}:{WATCHER_PASSWORD}@127.0.0.1:{database.port}/postgres",
            "REDIS_URL": f"{redis.url}?decode_responses=true",
            "WEAVIATE_URL": weaviate.url,
            "WEAVIATE_API_KEY": str(weaviate.key),
            "NEO4J_URI": neo4j.uri,
            "NEO4J_USER": "neo4j",
            "NEO4J_PASSWORD": neo4j.password,
            "MINIO_ENDPOINT": f"127.0.0.1:{minio.port}",
            "MINIO_ACCESS_KEY": USER,
            "MINIO_SECRET_KEY": minio.password,
            "DOCKER_HOST": docker.host,
        }
        yield Containers(docker, redis, variables)
        assert database.ask("SELECT count(*) FROM things") == "1000", "no row was lost"


def contain(docker: DockerEngine, name: str, program: Program, folder: Path) -> None:
    """Run a program of this machine in a container: it sees the machine's programs, and may write its own folder."""
    seen = [part for each in SEEN for part in ("-v", f"{each}:{each}:ro")]
    environment = [part for key, value in program.environment.items() for part in ("-e", f"{key}={value}")]
    user = () if program.user is None else ("--user", f"{program.user}:{program.group}")
    own = ("-v", f"{folder}:{folder}", "-w", str(program.cwd))
    docker.run(f"{CONTAINER}{name}", "busybox", *program.arguments, options=[*seen, *own, *user, *environment])


@pytest.fixture
def hub(containers: Containers, tmp_path: Path) -> Hub:
    return Hub(containers.docker, tmp_path, containers.variables, containers.redis)


# -- it is understood -------------------------------------------------------------------------------------------------


def test_s61_the_file_as_it_stands_has_nothing_wrong_and_nothing_doubtful(hub: Hub) -> None:
    done = hub.selfheal("config", "check", hub.file(FILE))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 services; nothing is wrong" in done.stdout


def test_doctor_proves_that_its_steps_could_be_taken_and_check_that_all_is_well(hub: Hub) -> None:
    file = hub.file(FILE)
    done = hub.selfheal("doctor", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing stands in the way of 2 services" in done.stdout
    done = hub.selfheal("check", file, "--json")
    assert [(one["service"], one["verdict"]) for one in json.loads(done.stdout)] == [
        ("database", "passing"),
        ("redis", "passing"),
    ]


def test_all_five_by_nothing_but_their_names_are_well_and_could_be_repaired(hub: Hub) -> None:
    names = ["database", "redis", "weaviate", "neo4j", "minio"]
    file = hub.file(json.dumps({"enabled": True, "services": {name: {} for name in names}}))
    done = hub.selfheal("check", file, "--json")
    assert [(one["service"], one["verdict"]) for one in json.loads(done.stdout)] == [(n, "passing") for n in names], (
        done
    )
    done = hub.selfheal("doctor", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing stands in the way of 5 services" in done.stdout


def test_doctor_names_each_thing_that_is_lacking(hub: Hub) -> None:
    done = hub.selfheal("doctor", hub.file(FILE), DATABASE_URL="", DOCKER_HOST=f"unix://{hub.folder}/none.sock")
    assert done.returncode == 1
    assert "DATABASE_URL of the environment is empty" in done.stderr
    assert "services.redis.workload" in done.stderr
    assert "none.sock" in done.stderr
    assert WATCHER_PASSWORD not in done.stderr + done.stdout


def test_s30_a_container_that_is_not_there_is_found_before_it_is_needed(hub: Hub) -> None:
    known = json.loads(FILE)
    known["services"]["redis"]["workload"] = {"container": "knowledgehub-rdis"}
    done = hub.selfheal("doctor", hub.file(json.dumps(known)))
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert "services.redis.workload" in said
    assert "knowledgehub-rdis" in said


BLOCKED = """
import sys
sys.modules["selfheal_knowledgehub"] = None
from selfheal.cli import main
main()
"""


def test_s65_without_the_plugin_it_is_understood_and_what_to_install_is_said(hub: Hub) -> None:
    for command in (("config", "check"), ("run",), ("doctor",)):
        done = hub.selfheal(*command, hub.file(FILE), program=BLOCKED)
        assert done.returncode == 2, done.stderr
        said = "nothing says how it is checked (install selfheal-core[knowledgehub], which knows its five services)"
        assert [line.partition(": ")[2] for line in done.stderr.splitlines()] == [
            f"services.database: {said}",
            f"services.redis: {said}",
        ]


def test_s61_a_key_that_nobody_reads_is_refused_by_name_on_the_command_line(hub: Hub) -> None:
    known = json.loads(FILE)
    known |= {"monitoring_intervall": 30, "plugins": []}
    known["services"]["redis"]["max_retrys"] = 3
    done = hub.selfheal("run", hub.file(json.dumps(known)))
    assert done.returncode == 2
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "monitoring_intervall",
        "plugins",
        "services.redis.max_retrys",
    ]


# -- it runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_s61_the_file_as_it_stands_runs_and_brings_back_what_is_killed(hub: Hub) -> None:
    """With the numbers of the specification: both die at once; Docker's events are faster than any interval."""
    started = {name: hub.docker.state(f"knowledgehub-{name}")["StartedAt"] for name in ("database", "redis")}
    with hub.running(hub.file(FILE)):
        until(lambda: hub.states() == {"database": "healthy", "redis": "healthy"}, "both are well", 60.0)
        policy = hub.ask("service", service="redis")["policy"]
        assert (policy["interval"], policy["timeout"], policy["recovery_timeout"]) == (15.0, 5.0, 300.0)
        killed = hub.docker.kill_process("knowledgehub-redis")
        hub.docker.kill_process("knowledgehub-database")
        until(lambda: len(hub.ask("incidents")) == 2, "both are seen to be down", 20.0)
        print(f"seen after {time.monotonic() - killed:.2f} s")
        until(lambda: all(not one["open"] for one in hub.ask("incidents")), "both are well again", 90.0)
        print(f"verified after {time.monotonic() - killed:.2f} s")
        assert sorted(action for one in hub.ask("incidents") for action in one["actions"]) == [
            "database: restart",
            "redis: restart",
        ], "a connection to what does not run is not replaced, and no cache is emptied"
        shown = hub.selfheal("status")
        assert shown.returncode == 0
        assert "2 healthy" in shown.stdout
    for name, before in started.items():
        state = hub.docker.state(f"knowledgehub-{name}")
        assert state["Running"]
        assert state["StartedAt"] != before
    assert WATCHER_PASSWORD not in (hub.folder / "log").read_text()


@pytest.mark.slow
def test_what_takes_long_to_start_is_restarted_once_and_waited_for(hub: Hub) -> None:
    """Weaviate and Neo4j, by nothing but their names."""
    file = hub.file('{"enabled": true, "services": {"weaviate": {}, "neo4j": {}}}')
    with hub.running(file):
        until(lambda: set(hub.states().values()) == {"healthy"}, "both are well", 90.0)
        for name in ("weaviate", "neo4j"):
            hub.docker.kill_process(f"{CONTAINER}{name}")
        until(lambda: len(hub.ask("incidents")) == 2, "both are seen to be down", 20.0)
        until(lambda: all(not one["open"] for one in hub.ask("incidents")), "both are well again", 120.0)
        assert sorted(action for one in hub.ask("incidents") for action in one["actions"]) == [
            "neo4j: restart",
            "weaviate: restart",
        ]


def test_s61_settings_at_the_top_with_comments_are_the_fleet_s_and_run_too(hub: Hub) -> None:
    file = hub.file(WITH_COMMENTS.replace("WEB", str(free_port())))
    checked = hub.selfheal("config", "check", file)
    assert (checked.returncode, checked.stderr) == (0, "")
    with hub.running(file) as log:
        until(lambda: hub.states() == {"redis": "healthy", "web": "unhealthy"}, "both have been checked", 20.0)
        web, redis = (hub.ask("service", service=name)["policy"] for name in ("web", "redis"))
        assert (web["interval"], web["timeout"], web["failure_threshold"]) == (1.0, 0.8, 4)
        assert (redis["interval"], redis["timeout"], redis["failure_threshold"]) == (1.0, 0.8, 2), "what is known of it"
        assert web["recovery_timeout"] == redis["recovery_timeout"] == 120.0
        assert (redis["backoff"]["initial"], redis["backoff"]["cap"]) == (0.5, 4.0)
        assert web["backoff"]["initial"] == 10.0
        hub.docker.kill_process("knowledgehub-redis")
        until(lambda: hub.states()["redis"] == "recovering", "it is restarted", 20.0)
        until(lambda: hub.redis.ask("PING") == "PONG", "it answers", 20.0)
        said = log.read_text()
        assert " warning " in said
        assert " info " not in said
