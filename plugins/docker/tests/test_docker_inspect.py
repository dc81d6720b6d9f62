"""Who runs and how it ended, told by a real Docker Engine: each state is proven by Docker's own answer first."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.builtin.receiver import Call, descriptors
from tests.servers import until
from tests.stack.docker import DockerEngine

from selfheal.core.model import Instance, Run
from selfheal_docker.workload import DockerWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-redis"


def workload(docker: DockerEngine, container: str = NAME, **options: object) -> DockerWorkload:
    return DockerWorkload(container=container, host=docker.host, **options)  # type: ignore[arg-type]  # any option


def seen(docker: DockerEngine, container: str = NAME, timeout: float = 10.0, **options: object) -> Instance:
    """Return what a workload says that knows nothing from before."""
    return asyncio.run(workload(docker, container, **options).inspect(Call(timeout=timeout)))


def ended(docker: DockerEngine, name: str = NAME) -> None:
    until(lambda: docker.state(name)["Status"] == "exited", "it has ended")


# -- running ---------------------------------------------------------------------------------------------------------


def test_one_that_runs_is_named_by_its_id_and_its_start(docker: DockerEngine) -> None:
    identity = docker.idle(NAME)
    one, other = seen(docker), seen(docker)
    assert one == other
    assert (one.run, one.count) == (Run.RUNNING, 1)
    assert one.id == f"{identity[:12]}@{docker.state(NAME)['StartedAt']}"
    assert one.since is not None
    assert abs(one.since - time.time()) < 30.0


def test_an_end_leaves_the_incarnation_and_a_start_makes_a_new_one(docker: DockerEngine) -> None:
    docker.idle(NAME)
    before = seen(docker)
    docker.kill_process(NAME)
    ended(docker)
    assert seen(docker).id == before.id
    docker("start", NAME)
    after = seen(docker)
    assert (after.run, after.id != before.id) == (Run.RUNNING, True)


def test_its_health_is_told_while_it_starts_once_it_is_well_and_when_it_is_ill(docker: DockerEngine) -> None:
    health = ("--health-cmd", "test -e /tmp/well", "--health-interval", "0.1s", "--health-retries", "1")
    docker.idle(NAME, *health, "--health-start-period", "60s")
    assert docker.state(NAME)["Health"]["Status"] == "starting"
    assert seen(docker).run is Run.STARTING
    docker("exec", NAME, "touch", "/tmp/well")
    until(lambda: docker.state(NAME)["Health"]["Status"] == "healthy", "it is healthy")
    assert (seen(docker).run, seen(docker).detail) == (Run.RUNNING, "healthy")
    docker("exec", NAME, "rm", "/tmp/well")
    until(lambda: docker.state(NAME)["Health"]["Status"] == "unhealthy", "it is unhealthy")
    assert seen(docker).run is Run.RUNNING
    assert "unhealthy" in seen(docker).detail


# -- ended by itself -------------------------------------------------------------------------------------------------


def test_one_that_ended_by_itself_has_exited(docker: DockerEngine) -> None:
    docker.shell(NAME, "exit 3")
    ended(docker)
    one = seen(docker)
    assert (one.run, one.count) == (Run.EXITED, 0)
    assert one.detail == "exited with code 3"


def test_one_that_was_killed_from_outside_has_exited(docker: DockerEngine) -> None:
    docker.idle(NAME)
    docker.kill_process(NAME)
    ended(docker)
    assert docker.state(NAME)["ExitCode"] == 137
    assert (seen(docker).run, "SIGKILL" in seen(docker).detail) == (Run.EXITED, True)


def test_one_that_was_out_of_memory_says_so(docker: DockerEngine) -> None:
    docker.shell(NAME, "tail /dev/zero", "--memory", "16m", "--memory-swap", "16m")
    ended(docker)
    assert docker.state(NAME)["OOMKilled"] is True
    one = seen(docker)
    assert (one.run, "out of memory" in one.detail) == (Run.EXITED, True)


def test_a_signal_sent_long_before_the_end_does_not_excuse_it(docker: DockerEngine) -> None:
    """`docker kill -s HUP` makes many servers read their configuration again."""
    docker.shell(NAME, "trap '' HUP; while :; do sleep 0.05; done")
    docker("kill", "-s", "HUP", NAME)
    docker.kill_process(NAME)
    ended(docker)
    assert seen(docker).run is Run.EXITED


def test_one_that_could_not_be_started_has_exited_and_says_why(docker: DockerEngine) -> None:
    docker.image("busybox")
    docker("create", "--name", NAME, "--network", "host", "selfheal-busybox", "no-such-program")
    docker.run_client("start", NAME, check=False)
    assert docker.state(NAME)["Error"]
    one = seen(docker)
    assert (one.run, "could not be started" in one.detail) == (Run.EXITED, True)


def test_one_whose_own_policy_gave_up_has_exited(docker: DockerEngine) -> None:
    docker.shell(NAME, "exit 4", "--restart", "on-failure:1")
    until(lambda: docker.data(NAME)["RestartCount"] == 1, "Docker has restarted it")
    ended(docker)
    assert seen(docker).run is Run.EXITED


@pytest.mark.parametrize("policy", ["no", "unless-stopped"])
def test_what_docker_ended_when_it_was_started_anew_nobody_had_asked_for(docker: DockerEngine, policy: str) -> None:
    """After Docker was killed, its events then tell of a stop, and `unless-stopped` does not start it again."""
    identity = docker.idle(NAME, "--restart", policy)
    docker.kill()
    docker.start()
    assert docker.state(NAME)["Status"] == "exited"
    stops = ("--since", "60s", "--until", "0s", "--filter", "event=stop", "--filter", f"container={identity}")
    until(lambda: docker("events", *stops), "its events tell of a stop")
    one = seen(docker)
    assert one.run is Run.EXITED, one


# -- stopped by a person ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["no", "on-failure", "unless-stopped", "always"])
@pytest.mark.parametrize("order", ["stop", "kill"])
def test_one_that_was_stopped_or_killed_through_docker_is_stopped(
    docker: DockerEngine, order: str, policy: str
) -> None:
    docker.idle(NAME, "--restart", policy)
    docker(order, NAME)
    ended(docker)
    one = seen(docker)
    assert (one.run, one.count) == (Run.STOPPED, 0), one


def test_one_that_needs_longer_than_it_is_given_is_stopped_too(docker: DockerEngine) -> None:
    docker.shell(NAME, "trap '' TERM; while :; do sleep 0.05; done")
    docker("stop", "-t", "1", NAME)
    assert docker.state(NAME)["ExitCode"] == 137
    assert seen(docker).run is Run.STOPPED


def test_one_that_is_paused_is_left_to_whoever_paused_it(docker: DockerEngine) -> None:
    docker.idle(NAME)
    docker("pause", NAME)
    assert docker.state(NAME)["Paused"] is True
    assert (seen(docker).run, "paused" in seen(docker).detail) == (Run.STOPPED, True)
    docker("unpause", NAME)
    assert seen(docker).run is Run.RUNNING


def test_what_docker_has_forgotten_is_told_by_the_restart_policy_or_else_by_the_option(docker: DockerEngine) -> None:
    docker.idle(NAME)
    docker.idle("kh-policy", "--restart", "unless-stopped")
    docker("stop", NAME, "kh-policy")
    knows = workload(docker)
    assert asyncio.run(knows.inspect(Call())).run is Run.STOPPED
    docker.forget()
    assert seen(docker, "kh-policy").run is Run.STOPPED
    one = seen(docker)
    assert (one.run, "cannot be told" in one.detail) == (Run.EXITED, True), one
    assert seen(docker, unexplained_end="stopped").run is Run.STOPPED
    assert asyncio.run(knows.inspect(Call())).run is Run.STOPPED, "what was once seen is remembered"


def test_after_a_restart_of_docker_a_person_s_stop_is_still_told_by_the_policy(docker: DockerEngine) -> None:
    docker.idle(NAME, "--restart", "unless-stopped")
    docker("stop", NAME)
    docker.stop()
    docker.start()
    assert docker.state(NAME)["Status"] == "exited"
    assert seen(docker).run is Run.STOPPED


# -- between and beyond ----------------------------------------------------------------------------------------------


def test_one_that_docker_restarts_itself_is_starting(docker: DockerEngine) -> None:
    docker.shell(NAME, "exit 5", "--restart", "always")
    until(
        lambda: docker.data(NAME)["RestartCount"] >= 4 and docker.state(NAME)["Restarting"],
        "Docker waits to restart it",
    )
    one = seen(docker)
    assert one.run is Run.STARTING, one
    assert "Docker itself" in one.detail


def test_one_that_was_created_and_never_started_is_starting(docker: DockerEngine) -> None:
    docker.image("busybox")
    docker("create", "--name", NAME, "selfheal-busybox", "true")
    one = seen(docker)
    assert (one.run, one.since) == (Run.STARTING, None)


def test_one_that_was_removed_is_absent_and_one_with_its_name_is_another(docker: DockerEngine) -> None:
    docker.idle(NAME)
    before = seen(docker)
    docker("rm", "-f", NAME)
    assert seen(docker).run is Run.ABSENT
    docker.idle(NAME)
    assert seen(docker).id != before.id


def test_one_that_was_renamed_is_found_by_its_id_only(docker: DockerEngine) -> None:
    identity = docker.idle(NAME)
    docker("rename", NAME, "kh-other")
    assert seen(docker).run is Run.ABSENT
    assert seen(docker, identity).run is Run.RUNNING
    assert seen(docker, identity[:12]).run is Run.RUNNING


def test_the_beginning_of_somebody_s_id_is_no_name(docker: DockerEngine) -> None:
    """Docker itself would take it for the container, and restart that."""
    identity = docker.idle(NAME)
    assert docker.data(identity[:5])["Id"] == identity
    assert seen(docker, identity[:5]).run is Run.ABSENT


@pytest.mark.parametrize("name", ["x; touch pwned", "../../etc", "-f", "a/b", "", "kh redis", "é"])
def test_s28_a_name_is_a_name_or_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a container"):
        DockerWorkload(container=name)


# -- docker itself is unwell -----------------------------------------------------------------------------------------


@contextmanager
def frozen(docker: DockerEngine) -> Iterator[None]:
    docker.freeze()
    try:
        with pytest.raises(OSError):
            docker.ask("GET", "/_ping", timeout=0.2)
        yield
    finally:
        docker.thaw()


def test_a_frozen_daemon_is_a_failed_inspection_within_the_deadline(docker: DockerEngine) -> None:
    docker.idle(NAME)
    with frozen(docker):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="gave no answer"):
            seen(docker, timeout=0.3)
        assert time.monotonic() - began < 0.4
    assert seen(docker).run is Run.RUNNING


def test_a_daemon_that_is_down_is_a_failed_inspection_and_says_so(docker: DockerEngine) -> None:
    docker.idle(NAME)
    docker.kill()
    try:
        with pytest.raises(ConnectionRefusedError, match="Docker does not run"):
            seen(docker)
        with pytest.raises(FileNotFoundError, match="no such socket"):
            asyncio.run(DockerWorkload(container=NAME, host="unix:///nowhere/docker.sock").inspect(Call()))
    finally:
        docker.start()


@contextmanager
def nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_socket_that_may_not_be_opened_names_the_remedy(docker: DockerEngine) -> None:
    docker.folder.chmod(0o755)
    docker.socket.chmod(0o660)
    with nobody(), pytest.raises(PermissionError, match="socket's group"):
        seen(docker)
    with nobody():
        (problem,) = asyncio.run(workload(docker).doctor(Call()))
    assert problem.message.endswith("may not open Docker's socket")
    assert problem.hint.startswith(
        "let selfheal run in the socket's group (SupplementaryGroups=docker: that is root), or"
    )


def test_a_thousand_failing_inspections_leave_nothing_behind(docker: DockerEngine) -> None:
    """Deadline 50 ms, frozen daemon; twenty at a time."""
    one = workload(docker)

    async def fail() -> None:
        with pytest.raises(TimeoutError):
            await one.inspect(Call(timeout=0.05))

    async def many() -> tuple[int, int, int, int]:
        await fail()
        await asyncio.sleep(0)  # a socket that was let go is closed at the next turn of the loop
        before = descriptors(), threading.active_count()
        for _ in range(50):
            await asyncio.gather(*(fail() for _ in range(20)))
        await asyncio.sleep(0)
        return *before, descriptors(), threading.active_count()

    with frozen(docker):
        files, threads, files_after, threads_after = asyncio.run(many())
    assert (files_after, threads_after) == (files, threads)
    assert seen(docker).run is Run.ABSENT
