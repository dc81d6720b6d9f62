"""Acting on a real container: it does what it should, says so when it did not, and leaves alone what it should."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.builtin.receiver import Call
from tests.servers import until
from tests.stack.docker import DockerEngine

from selfheal.core.model import Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal_docker.workload import DockerWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-redis"
STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"
ONCE = "test -e /tmp/once && exit 7; touch /tmp/once; trap 'exit 0' TERM; while :; do sleep 0.05; done"
"""A program that runs well the first time, and ends at once ever after."""


def workload(docker: DockerEngine, container: str = NAME, **options: Any) -> DockerWorkload:
    return DockerWorkload(container=container, host=docker.host, **{"settle": 0.3, **options})


def seen(one: DockerWorkload) -> Instance:
    return asyncio.run(one.inspect(Call()))


def do(
    one: DockerWorkload, verb: str, expected: Instance | None = None, timeout: float = 20.0, **arguments: Any
) -> str:
    """Have a verb done, as an action on what is inspected before it; return what it says."""
    context = Call(timeout=timeout)
    context.verb, context.expected, context.arguments = verb, expected, arguments
    said = asyncio.run(getattr(one, verb)(context))
    assert isinstance(said, str)
    return said


# -- restart ---------------------------------------------------------------------------------------------------------


def test_a_restart_makes_a_new_incarnation_that_runs(docker: DockerEngine) -> None:
    docker.idle(NAME)
    one = workload(docker)
    before = seen(one)
    said = do(one, "restart", before)
    after = seen(one)
    assert (after.run, after.id != before.id) == (Run.RUNNING, True)
    assert docker.state(NAME)["Running"] is True
    assert said == f"restarted {NAME}: it runs as {after.id}"


def test_one_that_has_ended_is_started_by_a_restart(docker: DockerEngine) -> None:
    docker.idle(NAME)
    docker.kill_process(NAME)
    one = workload(docker)
    until(lambda: seen(one).run is Run.EXITED, "it has ended")
    said = do(one, "restart", seen(one))
    assert seen(one).run is Run.RUNNING
    assert said == f"started {NAME}, which was ended by SIGKILL (code 137): it runs as {seen(one).id}"


def test_one_that_ignores_the_stop_signal_is_killed_after_its_time(docker: DockerEngine) -> None:
    docker.shell(NAME, STUBBORN)
    one = workload(docker, stop_timeout=1.0)
    began = time.monotonic()
    do(one, "restart", seen(one))
    assert 1.0 <= time.monotonic() - began < 5.0
    assert seen(one).run is Run.RUNNING


def test_a_slow_stop_is_cut_short_so_that_the_start_falls_within_the_deadline(docker: DockerEngine) -> None:
    docker.shell(NAME, STUBBORN)
    one = workload(docker, stop_timeout=600.0)
    began = time.monotonic()
    do(one, "restart", seen(one), timeout=4.0)
    assert time.monotonic() - began < 4.0
    assert seen(one).run is Run.RUNNING


def test_one_that_ends_at_once_is_a_failure_though_docker_calls_it_done(docker: DockerEngine) -> None:
    docker.shell(NAME, ONCE)
    until(lambda: docker("exec", NAME, "ls", "/tmp/once"), "it has run once")
    one = workload(docker)
    with pytest.raises(ActionFailed, match="ended at once: it exited with code 7"):
        do(one, "restart", seen(one))
    assert docker("restart", NAME) == NAME, "Docker itself says that this was done"


def test_one_that_ends_at_once_under_a_policy_is_a_failure_too(docker: DockerEngine) -> None:
    docker.shell(NAME, ONCE, "--restart", "always")
    until(lambda: docker("exec", NAME, "ls", "/tmp/once"), "it has run once")
    one = workload(docker, settle=2.0)
    with pytest.raises(ActionFailed, match="over and over"):
        do(one, "restart", seen(one))


def test_its_health_is_waited_for(docker: DockerEngine) -> None:
    health = ("--health-cmd", "test -e /tmp/well", "--health-interval", "0.1s", "--health-start-period", "30s")
    docker.shell(NAME, "sleep 1.0 & wait $!; touch /tmp/well; while :; do sleep 0.05; done", *health)
    docker("exec", NAME, "rm", "-f", "/tmp/well")
    one = workload(docker, stop_timeout=0.0)
    assert do(one, "restart", seen(one)).endswith(", healthy")
    assert docker.state(NAME)["Health"]["Status"] == "healthy"


def test_one_that_is_unhealthy_afterwards_is_a_failure(docker: DockerEngine) -> None:
    docker.idle(NAME, "--health-cmd", "false", "--health-interval", "0.1s", "--health-retries", "2")
    one = workload(docker)
    with pytest.raises(ActionFailed, match="unhealthy"):
        do(one, "restart", seen(one))


def test_one_whose_health_takes_longer_than_is_waited_is_left_to_the_checks(docker: DockerEngine) -> None:
    docker.idle(NAME, "--health-cmd", "true", "--health-interval", "30s")
    one = workload(docker, health_timeout=0.5)
    do(one, "restart", seen(one))
    assert docker.state(NAME)["Health"]["Status"] == "starting"


def test_s30_a_container_that_does_not_exist_is_a_failure(docker: DockerEngine) -> None:
    one = workload(docker, "kh-nobody")
    with pytest.raises(ActionFailed, match="no container kh-nobody"):
        do(one, "restart")


def test_another_incarnation_than_the_one_that_failed_is_left_alone(docker: DockerEngine) -> None:
    docker.idle(NAME)
    one = workload(docker)
    failed = seen(one)
    docker("restart", "-t", "1", NAME)
    somebody_s = docker.state(NAME)["StartedAt"]
    for verb in ("restart", "stop", "start"):
        with pytest.raises(ActionFailed, match="left alone"):
            do(one, verb, failed)
    assert docker.state(NAME)["StartedAt"] == somebody_s
    assert docker.state(NAME)["Running"] is True


@pytest.mark.parametrize("order", ["stop", "kill", "pause"])
def test_what_a_person_has_stopped_is_left_alone(docker: DockerEngine, order: str) -> None:
    docker.idle(NAME)
    docker(order, NAME)
    one = workload(docker)
    with pytest.raises(ActionFailed, match="left alone"):
        do(one, "restart", seen(one))
    assert docker.state(NAME)["Status"] in ("exited", "paused")


def test_what_docker_itself_restarts_is_left_to_it(docker: DockerEngine) -> None:
    docker.shell(NAME, "exit 5", "--restart", "always")
    one = workload(docker)
    until(lambda: docker.data(NAME)["RestartCount"] >= 4 and docker.state(NAME)["Restarting"], "Docker waits")
    with pytest.raises(ActionFailed, match="Docker itself is restarting it"):
        do(one, "restart")


def test_a_restart_that_docker_did_not_finish_is_no_wish_of_a_person(docker: DockerEngine) -> None:
    """Docker is killed between stopping it and starting it: the stop was ours."""
    docker.shell(NAME, STUBBORN, "--restart", "unless-stopped", "--stop-timeout", "1")
    one = workload(docker, stop_timeout=600.0)
    stopping = ("events", "--since", "60s", "--until", "0s", "--filter", f"container={NAME}", "--filter", "event=kill")

    async def killed_in_the_middle() -> None:
        context = Call(timeout=60.0)
        context.expected = await one.inspect(Call())
        acting = asyncio.ensure_future(one.restart(context))
        await asyncio.to_thread(until, lambda: docker(*stopping), "Docker is stopping it")
        docker.kill()
        with pytest.raises(OSError, match=r"docker\.sock"):
            await acting

    asyncio.run(killed_in_the_middle())
    docker.start()
    assert docker.state(NAME)["Status"] == "exited", "Docker does not start it again"
    assert seen(one).run is Run.EXITED


# -- start and stop --------------------------------------------------------------------------------------------------


def test_start_starts_and_twice_does_no_harm(docker: DockerEngine) -> None:
    docker.idle(NAME)
    docker("stop", NAME)
    one = workload(docker)
    assert "started" in do(one, "start")
    first = seen(one)
    assert "ran already" in do(one, "start", first)
    assert (first.run, seen(one).id) == (Run.RUNNING, first.id)


def test_start_of_one_that_ends_at_once_is_a_failure(docker: DockerEngine) -> None:
    docker.shell(NAME, ONCE)
    until(lambda: docker("exec", NAME, "ls", "/tmp/once"), "it has run once")
    docker("stop", NAME)
    with pytest.raises(ActionFailed, match="ended at once"):
        do(workload(docker), "start")


def test_start_of_one_that_cannot_be_started_says_docker_s_own_reason(docker: DockerEngine) -> None:
    docker.image("busybox")
    docker("create", "--name", NAME, "--network", "host", "selfheal-busybox", "no-such-program")
    with pytest.raises(ActionFailed, match="no-such-program"):
        do(workload(docker), "start")


def test_start_does_not_end_somebody_s_pause(docker: DockerEngine) -> None:
    docker.idle(NAME)
    docker("pause", NAME)
    with pytest.raises(ActionFailed, match="docker unpause"):
        do(workload(docker), "start")


def test_stop_is_a_person_s_wish_and_twice_does_no_harm(docker: DockerEngine) -> None:
    docker.idle(NAME, "--restart", "always")
    one = workload(docker)
    assert do(one, "stop", seen(one)) == f"stopped {NAME}"
    assert docker.state(NAME)["Status"] == "exited"
    assert do(one, "stop", seen(one)) == f"{NAME} had ended already"
    assert seen(one).run is Run.STOPPED
    with pytest.raises(ActionFailed, match="left alone"):
        do(one, "restart", seen(one))


# -- more of it ------------------------------------------------------------------------------------------------------


def resources(docker: DockerEngine) -> tuple[int, int]:
    host = docker.data(NAME)["HostConfig"]
    return host["Memory"], host["NanoCpus"]


def test_it_is_given_more_upwards_only_and_to_a_maximum(docker: DockerEngine) -> None:
    docker.idle(NAME, "--memory", "32m", "--cpus", "0.5")
    one = workload(docker, memory_max="60m", cpus_max=0.8, grow=1.5)
    before = seen(one)
    said = do(one, "scale_up", before)
    assert resources(docker) == (48 << 20, 750_000_000)
    assert said == f"raised memory from {32 << 20} to {48 << 20} bytes and processors from 0.5 to 0.75 of {NAME}"
    do(one, "scale_up", before)
    assert resources(docker) == (60 << 20, 800_000_000)
    with pytest.raises(ActionFailed, match="already"):
        do(one, "scale_up", before)
    assert resources(docker) == (60 << 20, 800_000_000)
    assert seen(one).id == before.id, "nothing was restarted"


def test_what_is_above_the_maximum_is_never_lowered(docker: DockerEngine) -> None:
    docker.idle(NAME, "--memory", "64m")
    with pytest.raises(ActionFailed, match="nothing to raise"):
        do(workload(docker, memory_max="48m"), "scale_up")
    assert resources(docker)[0] == 64 << 20


def test_what_has_no_limit_or_no_maximum_has_nothing_to_raise(docker: DockerEngine) -> None:
    docker.idle(NAME)
    with pytest.raises(ActionFailed, match="no limit"):
        do(workload(docker, memory_max="1g"), "scale_up")
    with pytest.raises(ActionFailed, match="no maximum"):
        do(workload(docker), "scale_up")
    with pytest.raises(ActionFailed, match="cannot be several"):
        do(workload(docker, memory_max="1g"), "scale_up", to=3)


# -- deadlines, cancelling, and after a crash ------------------------------------------------------------------------


def test_s25_an_action_on_a_frozen_daemon_ends_at_its_deadline(docker: DockerEngine) -> None:
    docker.idle(NAME)
    one = workload(docker)
    before = seen(one)
    docker.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="gave no answer"):
            do(one, "restart", before, timeout=0.5)
        assert time.monotonic() - began < 0.6
    finally:
        docker.thaw()


def test_a_restart_that_is_cancelled_ends_at_once_and_is_told_by_probe_afterwards(docker: DockerEngine) -> None:
    """Docker finishes what it has begun; until it has, nobody can tell, and then it was done."""
    docker.shell(NAME, STUBBORN)
    one = workload(docker, stop_timeout=1.0)

    async def story() -> list[Settled | None]:
        context = Call(timeout=30.0)
        context.expected = await one.inspect(Call())
        acting = asyncio.ensure_future(one.restart(context))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        acting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acting
        assert time.monotonic() - began < 0.1
        successor = workload(docker)
        told = [await successor.probe(context)]
        while told[-1] is None:
            await asyncio.sleep(0.05)
            told.append(await successor.probe(context))
        return told

    told = asyncio.run(asyncio.wait_for(story(), 15.0))
    assert told[0] is None
    assert told[-1] is Settled.DONE


def test_probe_does_not_claim_what_it_cannot_know(docker: DockerEngine) -> None:
    docker.idle(NAME)
    one = workload(docker)
    assert asyncio.run(one.probe(Call())) is None, "nobody says who had failed"
    context = Call()
    context.expected = seen(one)
    assert asyncio.run(one.probe(context)) is None, "the same one may be about to be restarted"
    context.verb = "scale_up"
    docker("restart", "-t", "0", NAME)
    assert asyncio.run(one.probe(context)) is None, "what it had before cannot be told"
    context.verb = "restart"
    docker("rm", "-f", NAME)
    assert asyncio.run(one.probe(context)) is None, "it is gone, which no restart of ours does"


def test_after_a_crash_a_stop_is_told_by_its_end(docker: DockerEngine) -> None:
    docker.idle(NAME)
    one = workload(docker)
    context = Call()
    context.verb, context.expected = "stop", seen(one)
    assert asyncio.run(one.probe(context)) is None, "Docker may still wait for it"
    docker("stop", NAME)
    assert asyncio.run(one.probe(context)) is Settled.DONE
