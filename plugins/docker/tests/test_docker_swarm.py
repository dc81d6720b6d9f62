"""A service of a real swarm of one node: inspected, restarted, and given more replicas by swarm itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
from tests.builtin.receiver import Call
from tests.servers import free_port, until
from tests.stack.docker import DockerEngine

from selfheal import Service
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.config import configure
from selfheal.core.model import Instance, Run, Settled
from selfheal.errors import ActionFailed, ConfigurationError
from selfheal.ladder import resolve
from selfheal.plugins import Workload
from selfheal.testing.conformance import WorkloadConformance
from selfheal_docker.swarm import SwarmWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

RUNS = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
QUICK = ("--update-monitor", "300ms", "--restart-delay", "200ms", "--update-parallelism", "0")
START_FIRST = ("--update-order", "start-first")
"""Otherwise swarm takes three seconds from the stop of what was to the start of what will be."""


class Swarm:
    """A swarm of one node, as a person handles it."""

    def __init__(self, docker: DockerEngine) -> None:
        self.docker = docker

    def begin(self, name: str, *options: str, script: str = RUNS, replicas: int = 1) -> None:
        """Create a service, and wait until it runs."""
        self.docker(
            *("service", "create", "--detach", "--no-resolve-image", "--network", "host", "--name", name),
            *("--replicas", str(replicas), *QUICK, *options, "selfheal-busybox", "sh", "-c", script),
        )

    def running(self, name: str) -> list[str]:
        """Return the ids of the tasks that run, as swarm itself says."""
        filters = f'{{"service":["{name}"],"desired-state":["running"]}}'
        status, said = self.docker.ask("GET", f"/tasks?filters={filters}".replace('"', "%22"))
        assert status == 200, said
        return sorted(task["ID"] for task in said if task["Status"]["State"] == "running")

    def until_running(self, name: str, count: int) -> list[str]:
        until(lambda: len(self.running(name)) == count, f"{count} tasks of {name} run", 30.0)
        return self.running(name)

    def replicas(self, name: str) -> int:
        status, said = self.docker.ask("GET", f"/services/{name}")
        assert status == 200, said
        return int(said["Spec"]["Mode"]["Replicated"]["Replicas"])


@pytest.fixture(scope="module")
def one(_engine: DockerEngine) -> Iterator[Swarm]:
    _engine.image("busybox")
    place = f"127.0.0.1:{free_port()}"
    _engine("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", place)
    yield Swarm(_engine)
    _engine("swarm", "leave", "--force")


@pytest.fixture
def swarm(one: Swarm, docker: DockerEngine) -> Iterator[Swarm]:
    yield one
    if names := docker("service", "ls", "-q").split():
        docker("service", "rm", *names)


def at(swarm: Swarm, service: str = "web", **options: Any) -> SwarmWorkload:
    return SwarmWorkload(service=service, host=swarm.docker.host, settle=0.2, **options)


def inspect(workload: SwarmWorkload) -> Instance:
    return asyncio.run(workload.inspect(Call(service="web")))


def call(timeout: float = 30.0, expected: Instance | None = None, **arguments: Any) -> Call:
    made = Call(service="web", timeout=timeout)
    made.expected, made.arguments = expected, arguments
    return made


# -- who runs --------------------------------------------------------------------------------------------------------


def test_it_says_who_runs_and_since_when(swarm: Swarm) -> None:
    swarm.begin("web", replicas=2)
    ids = swarm.until_running("web", 2)
    seen = inspect(at(swarm))
    assert (seen.run, seen.count, sorted(seen.id.split(","))) == (Run.RUNNING, 2, ids)
    assert seen.since is not None
    assert inspect(at(swarm)).id == seen.id


def test_one_that_swarm_has_replaced_is_another_instance(swarm: Swarm) -> None:
    swarm.begin("web")
    (before,) = swarm.until_running("web", 1)
    swarm.docker("kill", swarm.docker("ps", "-q"))
    until(lambda: swarm.running("web") not in ([], [before]), "swarm has started another", 30.0)
    seen = inspect(at(swarm))
    assert seen.run is Run.RUNNING
    assert seen.id != before
    expected = Instance(id=before, run=Run.RUNNING)
    assert asyncio.run(at(swarm).probe(call(expected=expected))) is Settled.DONE


def test_nought_replicas_are_a_person_s_wish_and_nothing_is_restarted(swarm: Swarm) -> None:
    swarm.begin("web")
    swarm.until_running("web", 1)
    swarm.docker("service", "scale", "--detach", "web=0")
    swarm.until_running("web", 0)
    until(lambda: inspect(at(swarm)).run is Run.STOPPED, "it counts as stopped")
    with pytest.raises(ActionFailed, match="nought"):
        asyncio.run(at(swarm).restart(call()))
    assert swarm.replicas("web") == 0


def test_what_swarm_cannot_start_is_starting_and_says_why(swarm: Swarm) -> None:
    swarm.begin("web", "--constraint", "node.labels.nowhere==true")
    until(lambda: "no suitable node" in inspect(at(swarm)).detail, "it says why")
    assert inspect(at(swarm)).run is Run.STARTING


def test_one_that_has_ended_for_good_has_exited(swarm: Swarm) -> None:
    swarm.begin("web", "--restart-condition", "none", script="exit 3")
    until(lambda: inspect(at(swarm)).run is Run.EXITED, "it has ended", 30.0)
    assert "exit" in inspect(at(swarm)).detail


def test_the_beginning_of_an_id_is_no_name(swarm: Swarm) -> None:
    swarm.begin("web")
    number = swarm.docker("service", "ls", "-q")
    assert inspect(at(swarm, service=number[:5])).run is Run.ABSENT
    assert inspect(at(swarm, service="nobody")).run is Run.ABSENT


# -- restart ---------------------------------------------------------------------------------------------------------


def test_a_restart_replaces_every_task(swarm: Swarm) -> None:
    swarm.begin("web", replicas=2)
    before = swarm.until_running("web", 2)
    seen = inspect(at(swarm))
    said = asyncio.run(at(swarm).restart(call(expected=seen)))
    after = swarm.running("web")
    assert said == f"swarm replaced the tasks of web: {inspect(at(swarm)).id} run"
    assert len(after) == 2
    assert not set(after) & set(before)
    assert asyncio.run(at(swarm).probe(call(expected=seen))) is Settled.DONE


def test_a_restart_that_swarm_gives_up_is_a_failure(swarm: Swarm) -> None:
    """The first run of it works, and each later one ends at once."""
    folder = swarm.docker.folder / "flag"
    folder.mkdir(exist_ok=True)
    (folder / "begun").unlink(missing_ok=True)
    script = f"test -e /flag/begun && exit 7; touch /flag/begun; {RUNS}"
    mount = f"type=bind,source={folder},target=/flag"
    swarm.begin("web", "--mount", mount, *START_FIRST, script=script)
    swarm.until_running("web", 1)
    with pytest.raises(ActionFailed, match=r"restart failed|not over"):
        asyncio.run(at(swarm).restart(call(timeout=15.0)))


def test_an_update_of_somebody_else_is_left_alone(swarm: Swarm) -> None:
    swarm.begin("web", "--update-monitor", "5s", "--update-parallelism", "1", replicas=2)
    swarm.until_running("web", 2)
    swarm.docker("service", "update", "--detach", "--force", "web")
    with pytest.raises(ActionFailed, match=r"left alone: (an update|somebody changed)"):
        asyncio.run(at(swarm).restart(call()))


def test_s30_a_service_that_does_not_exist_is_a_failure(swarm: Swarm) -> None:
    with pytest.raises(ActionFailed, match="no service nobody"):
        asyncio.run(at(swarm, "nobody").restart(call()))


@pytest.mark.parametrize("name", ["../web", "a b", "--all", "", "web/update"])
def test_s28_a_name_is_a_name_or_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="service"):
        SwarmWorkload(service=name)


def test_another_instance_is_left_alone(swarm: Swarm) -> None:
    swarm.begin("web")
    before = swarm.until_running("web", 1)
    with pytest.raises(ActionFailed, match="left alone"):
        asyncio.run(at(swarm).restart(call(expected=Instance(id="another", run=Run.RUNNING))))
    assert swarm.running("web") == before


# -- scale_up --------------------------------------------------------------------------------------------------------


def test_s31_it_is_given_more_replicas_upwards_only_and_to_its_maximum(swarm: Swarm) -> None:
    swarm.begin("web")
    (first,) = swarm.until_running("web", 1)
    workload = at(swarm, replicas_max=3)
    asked = call(expected=inspect(workload), to=2)
    asked.verb = "scale_up"
    assert asyncio.run(workload.probe(asked)) is None
    assert asyncio.run(workload.scale_up(asked)) == "2 replicas of web run, 1 before"
    assert asyncio.run(workload.probe(asked)) is Settled.DONE
    assert len(swarm.running("web")) == 2
    asyncio.run(workload.scale_up(call(to=9)))
    assert (len(swarm.running("web")), swarm.replicas("web")) == (3, 3)
    asyncio.run(workload.scale_up(call(to=1)))
    assert swarm.replicas("web") == 3
    assert first in swarm.running("web")


def test_one_that_keeps_data_is_only_scaled_when_asked_for_by_name(swarm: Swarm) -> None:
    swarm.begin("db", "--mount", "type=volume,source=data,target=/data")
    swarm.until_running("db", 1)
    with pytest.raises(ActionFailed, match=r"keeps data in /data.*scale_stateful"):
        asyncio.run(at(swarm, "db", replicas_max=3).scale_up(call(to=2)))
    assert swarm.replicas("db") == 1
    asyncio.run(at(swarm, "db", replicas_max=3, scale_stateful="db").scale_up(call(to=2)))
    assert swarm.replicas("db") == 2


def test_one_on_every_node_has_no_replicas(swarm: Swarm) -> None:
    create = ("service", "create", "--detach", "--no-resolve-image", "--network", "host", "--name", "web")
    swarm.docker(*create, "--mode", "global", "selfheal-busybox", "sh", "-c", RUNS)
    swarm.until_running("web", 1)
    assert inspect(at(swarm)).run is Run.RUNNING
    with pytest.raises(ActionFailed, match="no replicated service"):
        asyncio.run(at(swarm, replicas_max=3).scale_up(call(to=2)))


def test_replicas_that_do_not_come_are_a_failure_with_swarm_s_reason(swarm: Swarm) -> None:
    swarm.begin("web", "--replicas-max-per-node", "1")
    swarm.until_running("web", 1)
    with pytest.raises(ActionFailed, match=r"1 of 2 replicas run: no suitable node"):
        asyncio.run(at(swarm, replicas_max=2).scale_up(call(timeout=2.5, to=2)))


@pytest.mark.parametrize("to", [None, 0, True, "2"])
def test_what_is_no_number_of_replicas_is_refused(swarm: Swarm, to: object) -> None:
    with pytest.raises(ActionFailed, match="whole number"):
        asyncio.run(at(swarm, replicas_max=3).scale_up(call(to=to)))


def test_without_a_maximum_it_cannot_be_scaled_and_that_is_said_when_it_is_read() -> None:
    workload = SwarmWorkload(service="web")
    service = Service(
        "web",
        check=TcpCheck(address="127.0.0.1:9"),
        workload=workload,
        recovery_actions=[{"action": "scale_up", "to": 2}],
    )
    with pytest.raises(ConfigurationError, match="scale_up"):
        resolve(service, {}, {})


# -- doctor ----------------------------------------------------------------------------------------------------------


def ailing(workload: SwarmWorkload) -> str:
    return " ".join(map(str, asyncio.run(workload.doctor(call()))))


def test_doctor_says_what_is_missing(swarm: Swarm) -> None:
    swarm.begin("web")
    swarm.begin("db", "--mount", "type=volume,source=data,target=/data")
    assert ailing(at(swarm)) == ""
    assert "no service nobody" in ailing(at(swarm, "nobody"))
    assert "keeps data in /data" in ailing(at(swarm, "db", replicas_max=2))
    assert swarm.replicas("web") == 1


def test_an_engine_without_a_swarm_is_named_before_it_is_needed(docker: DockerEngine, one: Swarm) -> None:
    docker("swarm", "leave", "--force")
    try:
        assert "no manager of a swarm (name a manager" in ailing(at(one))
        with pytest.raises(ActionFailed, match="swarm manager"):
            inspect(at(one))
    finally:
        place = f"127.0.0.1:{free_port()}"
        docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", place)


def test_a_file_names_it() -> None:
    found = configure(
        {
            "services": {
                "web": {
                    "check": {"kind": "tcp", "address": "127.0.0.1:9"},
                    "workload": {"kind": "swarm", "service": "kh_web", "replicas_max": 4},
                    "recovery_actions": ["restart", {"action": "scale_up", "to": 3}],
                }
            }
        }
    )
    steps = resolve(found.services[0], {}, {})
    assert [step.how for step in steps] == ["workload", "workload"]


# -- conformance -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="class")
def web(one: Swarm) -> Iterator[None]:
    """Have one service for all duties."""
    TestSwarm.swarm = one
    one.begin("web", *START_FIRST, replicas=2)
    one.until_running("web", 2)
    yield
    one.docker("service", "rm", "web")


@pytest.mark.usefixtures("web")
class TestSwarm(WorkloadConformance):
    timeout = 5.0
    restart_timeout = 60.0
    runs = 2
    faults = ("refused", "silent", "garbage")
    inapplicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("hole", "reset", "drip", "endless"), "the way to Docker is the same for all three workloads: see TestDocker"
    )

    swarm: ClassVar[Swarm]

    def make(self) -> Workload:
        return at(self.swarm)

    def make_absent(self) -> Workload:
        return at(self.swarm, "nobody")

    def make_broken(self, fault: str, address: str) -> Workload:
        return SwarmWorkload(service="web", host=f"tcp://{address}")
