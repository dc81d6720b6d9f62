"""Both workloads do what a workload must do, each against a real Engine and against broken ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest
from tests.stack.docker import DockerEngine

from selfheal.plugins import Workload
from selfheal.secret import Secret
from selfheal.testing.conformance import WorkloadConformance
from selfheal_docker.compose import ComposeWorkload
from selfheal_docker.workload import DockerWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

TOKEN = "hunter2-canary-51d2e8"


@pytest.fixture(scope="class")
def container(_engine: DockerEngine) -> Iterator[None]:
    """Have one container for all duties."""
    TestDocker.docker = _engine
    _engine.idle("kh-redis", "--env", f"PASSWORD={TOKEN}")
    yield
    _engine.tidy()


@pytest.fixture(scope="class")
def containers(_engine: DockerEngine) -> Iterator[None]:
    """Have two containers with the labels that compose would have given them."""
    TestCompose.docker = _engine
    for number in ("1", "2"):
        labels = {"project": "kh", "service": "api", "oneoff": "False", "container-number": number}
        options = [part for name, value in labels.items() for part in ("--label", f"com.docker.compose.{name}={value}")]
        _engine.idle(f"kh-api-{number}", *options)
    yield
    _engine.tidy()


@pytest.mark.usefixtures("container")
class TestDocker(WorkloadConformance):
    timeout = 3.0
    runs = 5

    docker: ClassVar[DockerEngine]

    secret: ClassVar[str] = TOKEN

    def make(self) -> Workload:
        return DockerWorkload(container="kh-redis", host=self.docker.host, settle=0.1)

    def make_absent(self) -> Workload:
        return DockerWorkload(container="kh-nobody", host=self.docker.host)

    def make_broken(self, fault: str, address: str) -> Workload:
        return DockerWorkload(container="kh-redis", host=f"tcp://{address}")


@pytest.mark.usefixtures("containers")
class TestCompose(WorkloadConformance):
    """A service of two containers."""

    timeout = 3.0
    runs = 2
    faults = ("refused", "silent", "garbage")
    inapplicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("hole", "reset", "drip", "endless"), "the way to Docker is the same for all three workloads: see TestDocker"
    )

    docker: ClassVar[DockerEngine]

    def make(self) -> Workload:
        return self._at(self.docker.host)

    def make_absent(self) -> Workload:
        return ComposeWorkload(project="kh", service="nobody", host=self.docker.host)

    def make_broken(self, fault: str, address: str) -> Workload:
        return self._at(f"tcp://{address}")

    def _at(self, host: str) -> Workload:
        return ComposeWorkload(
            project="kh", service="api", host=host, settle=0.1, environment={"PASSWORD": Secret(TOKEN)}
        )
