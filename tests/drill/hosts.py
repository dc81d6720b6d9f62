"""What runs KnowledgeHub's servers: containers of a Docker Engine, or units of a systemd. The drill sees both alike.

Each server is a program of this machine. In a container it sees this machine's programs, its own folder, and nothing
else of the machine; as a unit it sees the same files as everybody.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.stack import built
from tests.stack.docker import DockerEngine, engine
from tests.stack.running import Program
from tests.stack.systemd import Systemd, booted

STOP_TIMEOUT = 3
"""Seconds from asking a server to end until it is killed: what a frozen one costs."""


class Host(Protocol):
    """Where servers run, under the names `knowledgehub-<service>`."""

    name: str
    plugin: str
    folder: Path

    def run(self, service: str, program: Program) -> None:
        """Run a program under the name of a service, and do not wait for it."""

    def instance(self, service: str) -> str:
        """Return which incarnation runs, or ran last: it changes with every start."""

    def running(self, service: str) -> bool:
        """Whether it runs."""

    def first_pid(self, service: str) -> int:
        """Return the first process of it as this machine knows it; 0 for none."""

    def stop(self, service: str) -> None:
        """Stop it as a person does."""

    def start(self, service: str) -> None:
        """Start it as a person does."""

    def log(self, service: str) -> str:
        """Return what its server has said of late."""

    def exit_status(self, service: str) -> int:
        """Return with what it ended last, 0 while it runs."""

    def workload(self, service: str) -> str:
        """Return the workload as a file of selfheal says it."""

    def environment(self) -> Mapping[str, str]:
        """Return what selfheal needs in its environment to reach it."""


def called(service: str) -> str:
    """Return the name of what runs a service."""
    return f"knowledgehub-{service}"


def pids(host: Host, service: str) -> list[int]:
    """Return the processes of a service, the first one first."""
    first = host.first_pid(service)
    found, more = ([first], [first]) if first else ([], [])
    while more:
        for task in Path(f"/proc/{more.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(one) for one in task.read_text("utf-8").split()]
                found += children
                more += children
    return found


def send(host: Host, service: str, number: int, *, everybody: bool = False) -> float:
    """Send a signal to the first process of a service, or to all of them, from outside; return when, UNIX time."""
    targets = pids(host, service) if everybody else [host.first_pid(service)]
    assert targets, f"{service} has no process"
    assert targets[0] > 1, f"{service} has no process"
    at = time.time()
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return at


def seen_by_servers() -> list[Path]:
    """Return the places of this machine that the servers and the application need to run."""
    places = [Path("/usr"), Path("/etc/alternatives"), Path("/etc/passwd"), Path("/etc/group")]
    places += sorted(Path("/etc").glob("java-*"))
    places += [built.place("minio").parent, Path(sys.prefix), Path(sys.base_prefix)]
    found: list[Path] = []
    for place in places:
        if place.exists() and not any(place.is_relative_to(one) for one in found):
            found.append(place)
    return found


class Containers:
    """Containers on the host's network, without a restart policy: what ends is selfheal's to start."""

    name = "containers"
    plugin = "docker"

    def __init__(self, docker: DockerEngine, folder: Path) -> None:
        self.docker = docker
        self.folder = folder
        docker.run_client("import", "-", "selfheal-hollow", text=_hollow())

    def run(self, service: str, program: Program) -> None:
        options = [part for place in seen_by_servers() for part in ("-v", f"{place}:{place}:ro")]
        options += ["-v", f"{program.cwd}:{program.cwd}", "-w", str(program.cwd)]
        options += [part for key, value in program.environment.items() for part in ("-e", f"{key}={value}")]
        if program.user is not None:
            options += ["--user", f"{program.user}:{program.group}"]
        self.docker("run", "-d", "--name", called(service), *_ALONE, *options, "selfheal-hollow", *program.arguments)

    def instance(self, service: str) -> str:
        data = self.docker.data(called(service))
        return f"{data['Id'][:12]}@{data['State']['StartedAt']}"

    def running(self, service: str) -> bool:
        return bool(self.docker.state(called(service))["Running"])

    def first_pid(self, service: str) -> int:
        return int(self.docker.state(called(service))["Pid"])

    def stop(self, service: str) -> None:
        self.docker("stop", "-t", str(STOP_TIMEOUT), called(service))

    def start(self, service: str) -> None:
        self.docker("start", called(service))

    def log(self, service: str) -> str:
        status, said = self.docker.ask("GET", f"/containers/{called(service)}/logs?stdout=1&stderr=1&tail=60")
        return f"{status} {said}"

    def exit_status(self, service: str) -> int:
        return int(self.docker.state(called(service))["ExitCode"])

    def workload(self, service: str) -> str:
        return (
            f'{{ kind = "docker", container = "{called(service)}", host = "{self.docker.host}", '
            f'stop_timeout = {STOP_TIMEOUT}, settle = "500ms" }}'
        )

    def environment(self) -> Mapping[str, str]:
        return {}


_ALONE = ("--network", "host", "--log-opt", "max-size=2m")


def _hollow() -> bytes:
    """Return an image with nothing in it but the links by which the programs under /usr are found."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name in ("lib", "lib64", "bin", "sbin"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for name in ("tmp", "etc", "usr"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(folder)
    return written.getvalue()


class Units:
    """Units of a systemd in a container of its own, without `Restart=`: what ends is selfheal's to start."""

    name = "units"
    plugin = "systemd"

    def __init__(self, systemd: Systemd, folder: Path) -> None:
        self.systemd = systemd
        self.folder = folder

    def run(self, service: str, program: Program) -> None:
        self.write(service, program)
        self.systemd.ask("start", unit(service))

    def write(self, service: str, program: Program, **more: str) -> None:
        """Write the unit of a service, with more lines in its `[Service]`."""
        log = self.folder / f"{service}.log"
        known = {
            "Environment": " ".join(_quoted(f"{key}={value}") for key, value in program.environment.items()),
            "WorkingDirectory": str(program.cwd),
            "StandardOutput": f"append:{log}",
            "StandardError": f"append:{log}",
            "TimeoutStopSec": str(STOP_TIMEOUT),
            "SuccessExitStatus": "143",
        }
        if program.user is not None:
            known |= {"User": str(program.user), "Group": str(program.group)}
        start = " ".join(_quoted(word).replace("$", "$$") for word in program.arguments)
        self.systemd.unit(unit(service), start, unit={}, wanted=True, **known | more)

    def instance(self, service: str) -> str:
        return self.systemd.shows(unit(service), "InvocationID")

    def running(self, service: str) -> bool:
        return self.systemd.shows(unit(service), "ActiveState") == "active"

    def first_pid(self, service: str) -> int:
        return self.systemd.main_pid(unit(service))

    def stop(self, service: str) -> None:
        self.systemd.ask("stop", unit(service))

    def start(self, service: str) -> None:
        self.systemd.ask("start", unit(service))

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text("utf-8", errors="replace")[-6000:]

    def exit_status(self, service: str) -> int:
        return int(self.systemd.shows(unit(service), "ExecMainStatus"))

    def workload(self, service: str) -> str:
        return f'{{ kind = "systemd", unit = "{unit(service)}", settle = "500ms" }}'

    def environment(self) -> Mapping[str, str]:
        return {"PATH": f"{self.systemd.programs()}:{os.environ['PATH']}"}


def unit(service: str) -> str:
    """Return the name of the unit of a service."""
    return f"{called(service)}.service"


def _quoted(word: str) -> str:
    """Return a word as a unit file has it: quoted, and without specifiers."""
    return json.dumps(word, ensure_ascii=False).replace("%", "%%")


@contextmanager
def host_of(kind: str, folder: Path) -> Iterator[Containers | Units]:
    """Have what runs the servers, `containers` or `units`; nothing of it stays."""
    if kind == "containers":
        with engine() as docker:
            yield Containers(docker, folder)
    else:
        with booted(*_binds(folder)) as systemd:
            yield Units(systemd, folder)


def _binds(folder: Path) -> Sequence[Path]:
    """Return what a systemd must see that is not on the root's own file system, or that outlives it."""
    root = os.stat("/").st_dev
    hidden = [place for place in seen_by_servers() if place.stat().st_dev != root or place.is_relative_to("/tmp")]
    return [folder, *hidden]
