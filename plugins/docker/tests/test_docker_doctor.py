"""What `doctor` finds, and that it does nothing; behind a socket proxy that forbids, and without one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.builtin.receiver import Call
from tests.stack.docker import DockerEngine

from selfheal.core.model import Run
from selfheal.errors import ActionFailed, Problem
from selfheal_docker.compose import ComposeWorkload
from selfheal_docker.workload import DockerWorkload

NAME = "kh-redis"


def found(one: DockerWorkload | ComposeWorkload) -> list[Problem]:
    return asyncio.run(one.doctor(Call(timeout=20.0)))


def said(problems: list[Problem]) -> str:
    return "\n".join(str(problem) for problem in problems)


@contextmanager
def proxy(docker: DockerEngine, *forbidden: str) -> Iterator[str]:
    """Run a socket proxy on a port of loopback; a request whose first line holds one of `forbidden` gets a 403."""
    listener = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def serve(client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as engine:
            engine.connect(str(docker.socket))

            def answers() -> None:
                while data := engine.recv(65536):
                    client.sendall(data)

            reader = threading.Thread(target=_quiet, args=(answers,), daemon=True)
            reader.start()
            while data := client.recv(65536):
                if any(word.encode() in data.split(b"\r\n")[0] for word in forbidden):
                    client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nforbidden")
                    break
                engine.sendall(data)
            engine.shutdown(socket.SHUT_RDWR)
            reader.join(5.0)

    def accept() -> None:
        while not ending.is_set():
            client, _ = listener.accept()
            threading.Thread(target=_quiet, args=(serve, client), daemon=True).start()

    thread = threading.Thread(target=_quiet, args=(accept,), daemon=True)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ending.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5.0)


def _quiet(function: Any, *arguments: Any) -> None:
    with contextlib.suppress(OSError):  # whoever speaks through it has gone
        function(*arguments)


pytestmark = [pytest.mark.server, pytest.mark.real_time]


def test_where_all_is_well_nothing_is_found_and_nothing_was_done(docker: DockerEngine) -> None:
    docker.idle(NAME, "--memory", "32m", "--cpus", "0.5")
    before = docker.data(NAME)
    assert found(DockerWorkload(container=NAME, host=docker.host, memory_max=64 << 20, cpus_max=1.0)) == []
    assert docker.data(NAME)["State"] == before["State"]
    assert docker.data(NAME)["HostConfig"] == before["HostConfig"]
    assert len(docker("ps", "-aq").split()) == 1


def test_a_docker_that_cannot_be_reached_is_found(docker: DockerEngine) -> None:
    (problem,) = found(DockerWorkload(container=NAME, host="unix:///nowhere.sock"))
    assert problem.message == "unix:///nowhere.sock: there is no such socket"
    docker.freeze()
    try:
        assert "gave no answer" in said(
            asyncio.run(DockerWorkload(container=NAME, host=docker.host).doctor(Call(timeout=0.5)))
        )
    finally:
        docker.thaw()


def test_s62_what_a_socket_proxy_forbids_is_found_with_the_setting_that_allows_it(docker: DockerEngine) -> None:
    docker.idle(NAME, "--memory", "32m")
    with proxy(docker, "/restart", "/update", "/events") as host:
        problems = said(found(DockerWorkload(container=NAME, host=host, memory_max=64 << 20)))
        one = DockerWorkload(container=NAME, host=host, memory_max=64 << 20)
        assert asyncio.run(one.inspect(Call())).run is Run.RUNNING
        for verb in (one.restart, one.scale_up):
            with pytest.raises(ActionFailed, match="403"):
                asyncio.run(verb(Call()))
    for words in ("restart is not allowed", "ALLOW_RESTARTS=1", "scale_up is not allowed", "EVENTS=1"):
        assert words in problems
    assert "start is not allowed here" not in problems.replace("restart", "")
    with proxy(docker, "/containers/json") as host:
        assert "CONTAINERS=1" in said(found(DockerWorkload(container=NAME, host=host)))


def test_where_events_are_forbidden_the_policy_and_the_option_tell(docker: DockerEngine) -> None:
    docker.idle(NAME, "--restart", "always")
    docker.idle("kh-other")
    docker("stop", NAME, "kh-other")
    with proxy(docker, "/events") as host:
        assert asyncio.run(DockerWorkload(container=NAME, host=host).inspect(Call())).run is Run.STOPPED
        assert asyncio.run(DockerWorkload(container="kh-other", host=host).inspect(Call())).run is Run.EXITED


def test_what_is_wrong_with_a_container_is_found(docker: DockerEngine) -> None:
    assert "no container kh-redis" in said(found(DockerWorkload(container=NAME, host=docker.host)))
    docker.idle(NAME, "--rm")
    problems = said(found(DockerWorkload(container=NAME, host=docker.host, memory_max=64 << 20, cpus_max=1.0)))
    for words in ("--rm", "no memory limit", "no processor limit"):
        assert words in problems


def test_what_keeps_a_compose_service_from_being_scaled_is_found(docker: DockerEngine, tmp_path: Any) -> None:
    one = ComposeWorkload(project="kh", service="api", host=docker.host, directory=tmp_path, instances_max=3)
    assert "no container kh/api" in said(found(one))
    docker.idle("kh-api-1", *(f"--label=com.docker.compose.{name}" for name in ("project=kh", "service=api")))
    problems = said(found(ComposeWorkload(
        project="kh", service="api", host=docker.host, directory=tmp_path, instances_max=3, program="no-such-docker"
    )))  # fmt: skip
    assert "docker-compose-plugin" in problems
    with proxy(docker, "/create") as host:
        forbidden = ComposeWorkload(project="kh", service="api", host=host, directory=tmp_path, instances_max=3)
        assert "containers may not be created here" in said(found(forbidden))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("ssh://root@elsewhere", "forward the socket"),
        ("tcp://elsewhere", "HOST:PORT"),
        ("tcp://elsewhere:2376", "TLS"),
        ("tcp://8.8.8.8:2375", "public address"),
        ("tcp://user@elsewhere:2375", "nothing else"),
        ("tcp://elsewhere:x", "Port"),
        ("unix://docker.sock", "absolute path"),
        ("/var/run/docker.sock", "unix://"),
    ],
)
def test_addresses_that_would_not_do_are_refused_with_what_to_do(host: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DockerWorkload(container=NAME, host=host)


@pytest.mark.parametrize(
    "options",
    [{"memory_max": "lots"}, {"memory_max": 5}, {"cpus_max": 0}, {"grow": 1.0}, {"unexplained_end": "perhaps"}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=next(iter(options)) if options != {"memory_max": "lots"} else "amount of memory"
    ):
        DockerWorkload(container=NAME, **options)
