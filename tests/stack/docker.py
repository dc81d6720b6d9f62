"""A Docker Engine of the tests' own: its own data, socket and containerd, no network and no firewall rules.

It needs root, and Debian's `docker.io`. No registry is asked for anything: images are made of a static busybox, or of
a program of this machine with the libraries that `ldd` names, and imported. Containers run on the host's network.
Everything is ended by its own pid, and unmounted, whatever state the Engine was left in.

    with engine() as docker:
        docker.run("kh-redis", "redis", "redis-server", "--port", "7000")
        docker("stop", "kh-redis")
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.servers import program_of, until
from tests.stack.built import built
from tests.stack.child import freeze

APPLETS = ("sh", "sleep", "cat", "echo", "true", "false", "kill", "test", "touch", "rm", "ls", "tail", "dd", "httpd")
"""What the image `busybox` has in its /bin."""

STARTS_WITHIN = 60.0
"""Seconds an Engine may take to answer: 1 when nothing else is going on."""


class DockerEngine:
    """One dockerd, with everything it keeps in one folder. `host` is its address, as DOCKER_HOST takes it."""

    def __init__(self, folder: Path) -> None:
        _require_root()
        self.dockerd = program_of("docker", "dockerd")
        self.client = program_of("docker", "docker")
        program_of("docker", "containerd")
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(folder / "config")}
        self._storage: tuple[str, ...] = ("overlay2", "vfs")
        self._images: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None

    # -- the daemon --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it answers; where overlay2 is refused, with vfs."""
        (self.folder / "config").mkdir(parents=True, exist_ok=True)
        for storage in self._storage:
            process = self._process = self._begin(storage)

            def answers(process: subprocess.Popen[bytes] = process) -> bool:
                return process.poll() is not None or self._pings()

            until(answers, f"dockerd answers: {self.log()}", STARTS_WITHIN)
            if process.poll() is None:
                self._storage = (storage,)
                return
            process.wait()
        raise AssertionError(f"dockerd does not start: {self.log()}")

    def _begin(self, storage: str) -> subprocess.Popen[bytes]:
        folder = self.folder
        # Of one that was killed, and took its containerd with it; their zombies may still be there, and be believed.
        for left in ("docker.pid", "exec/containerd/containerd.pid"):
            (folder / left).unlink(missing_ok=True)
        arguments = [
            self.dockerd,
            *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "-H", self.host),
            *("--pidfile", str(folder / "docker.pid"), "--storage-driver", storage),
            # The machine's network is left as it is: no bridge, no rule in its firewall.
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--userland-proxy=false"),
            "--shutdown-timeout=3",
        ]
        with (folder / "dockerd.log").open("ab") as log:
            return subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _pings(self) -> bool:
        try:
            return self.ask("GET", "/_ping")[0] == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """Stop the daemon in its tracks; its containers go on, its socket still takes connections."""
        freeze(self.pid)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the daemon; what its containers do then is as with Docker: they go on until it is started again."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(15.0)
        self._process = None

    def stop(self) -> None:
        """Stop the daemon as a person or an upgrade does: it stops its containers first."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.thaw()
        self._process.terminate()
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(15.0)
        self._process = None

    def remove(self) -> None:
        """Stop it and leave nothing: no process, no mount, no file."""
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            names = self.run_client("ps", "-aq", check=False, timeout=20.0).split()
            if names:
                self.run_client("rm", "-f", *names, check=False, timeout=60.0)
        self.stop()
        for pid in _left_over(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not _left_over(self.folder), "what the Engine left behind is gone")
        for place in _mounts_under(self.folder):
            subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """Return the last lines of the daemon's log."""
        with contextlib.suppress(OSError):
            return (self.folder / "dockerd.log").read_text(errors="replace")[-2000:]
        return ""

    # -- asking it, and acting as a person does ----------------------------------------------------------------------

    def ask(self, method: str, path: str, timeout: float = 10.0) -> tuple[int, Any]:
        """Ask the daemon itself, with nothing of ours between; return the status and what the JSON said."""
        connection = _OverSocket(str(self.socket), timeout)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(body)
        return answer.status, body.decode(errors="replace")

    def __call__(self, *arguments: str) -> str:
        """Run the command `docker` as a person would, and return what it said."""
        return self.run_client(*arguments)

    def run_client(self, *arguments: str, check: bool = True, timeout: float = 60.0, text: bytes | None = None) -> str:
        """Run the command `docker`; its output is in the error when it fails."""
        ran = subprocess.run(
            [self.client, *arguments],
            env=self.environment,
            input=text,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        assert not check or ran.returncode == 0, f"docker {' '.join(arguments)}: {ran.stderr.decode(errors='replace')}"
        return ran.stdout.decode(errors="replace").strip()

    def state(self, name: str) -> dict[str, Any]:
        """Return `State` of a container, as Docker tells it."""
        state: dict[str, Any] = self.data(name)["State"]
        return state

    def data(self, name: str) -> dict[str, Any]:
        """Return everything Docker tells of a container."""
        status, said = self.ask("GET", f"/containers/{name}/json")
        assert status == 200, said
        found: dict[str, Any] = said
        return found

    # -- containers --------------------------------------------------------------------------------------------------

    def run(self, name: str, image: str, *command: str, options: Sequence[str] = ()) -> str:
        """Run a container on the host's network, and return its id."""
        self.image(image)
        return self("run", "-d", "--name", name, "--network", "host", *options, f"selfheal-{image}", *command)

    def shell(self, name: str, script: str, *options: str) -> str:
        """Run a container whose program is a script of busybox's shell, and return its id."""
        return self.run(name, "busybox", "sh", "-c", script, options=options)

    def idle(self, name: str, *options: str) -> str:
        """Run a container that does nothing, and ends at once when it is asked to."""
        return self.shell(name, "trap 'exit 0' TERM; while :; do sleep 0.05; done", *options)

    def kill_process(self, name: str) -> float:
        """SIGKILL the first process of a container from outside, as the kernel might; return when, monotonic."""
        pid = int(self.state(name)["Pid"])
        assert pid > 1
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return began

    def image(self, name: str) -> None:
        """Have an image: `busybox`, or a program of this machine (`redis-server`) with its libraries."""
        if name not in self._images:
            content = _busybox() if name == "busybox" else _of_program(name)
            self.run_client("import", "-", f"selfheal-{name}", text=content)
            self._images.add(name)

    def tidy(self) -> None:
        """Remove every container, as `docker rm -f` does."""
        status, listed = self.ask("GET", "/containers/json?all=1")
        assert status == 200, listed
        for one in listed:
            self.ask("DELETE", f"/containers/{one['Id']}?force=1", timeout=60.0)

    def forget(self) -> None:
        """Have the daemon forget what happened before: it remembers its last 256 events, whatever they are of."""
        self.image("busybox")
        for _ in range(260):
            status, said = self.ask("POST", "/images/selfheal-busybox/tag?repo=selfheal-forgetful")
            assert status == 201, said

    def with_compose(self) -> DockerEngine:
        """Give the command `docker` its plugin `compose`, building that once where Go is; else the test is skipped."""
        plugin = self.folder / "config" / "cli-plugins" / "docker-compose"
        if not plugin.exists():
            plugin.parent.mkdir(parents=True, exist_ok=True)
            plugin.symlink_to(built("compose") / "cmd")
        return self


@contextmanager
def engine() -> Iterator[DockerEngine]:
    """Have an Engine of one's own; skipped where it cannot be, with the reason, or failed if it is required."""
    # Not pytest's folder: the path of a unix socket has room for 107 characters.
    one = DockerEngine(Path(tempfile.mkdtemp(prefix="selfheal-docker-")))
    try:
        one.start()
        yield one
    finally:
        one.remove()


def _require_root() -> None:
    if os.geteuid() != 0:
        if "docker" in os.environ.get("SELFHEAL_REQUIRE", "").split(","):
            pytest.fail("docker is required (SELFHEAL_REQUIRE), and only root may start an Engine of its own")
        pytest.skip("docker: only root may start an Engine of its own")


class _OverSocket(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


# -- what is left of one that was killed -----------------------------------------------------------------------------


def _left_over(folder: Path) -> list[int]:
    """Return the pids of what belongs to an Engine in `folder`: its daemons and shims, and everything under these."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if stat[0] == "Z":
                continue
            parents[int(place.name)] = int(stat[1])
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            program = Path(words[0]).name
            if program.startswith(("dockerd", "containerd")) and any(word.startswith(f"{folder}/") for word in words):
                found.add(int(place.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def _mounts_under(folder: Path) -> list[str]:
    """Return the mounts in `folder`, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    places = [re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines]
    return sorted((place for place in places if place.startswith(f"{folder}/")), key=len, reverse=True)


# -- images ----------------------------------------------------------------------------------------------------------


def _busybox() -> bytes:
    static = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if Path(path).exists()), None)
    program = static or program_of("docker", "busybox")
    with _tar() as (tar, written):
        _add(tar, Path(program), "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        if not _is_static(program):
            for library in _libraries(program):
                _add(tar, library, str(library).lstrip("/"))
    return written.getvalue()


def _of_program(name: str) -> bytes:
    program = program_of(name.partition("-")[0], name)
    with _tar() as (tar, written):
        _add(tar, Path(program), f"bin/{name}")
        for library in _libraries(program):
            _add(tar, library, str(library).lstrip("/"))
    return written.getvalue()


@contextmanager
def _tar() -> Iterator[tuple[tarfile.TarFile, io.BytesIO]]:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for folder in ("tmp", "etc", "proc", "dev", "sys", "data"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(entry)
        yield tar, written


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tar.gettarinfo(str(path.resolve()), arcname=name)
    with path.resolve().open("rb") as content:
        tar.addfile(entry, content)


def _is_static(program: str) -> bool:
    return not _libraries(program)


def _libraries(program: str) -> list[Path]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [Path(found) for found in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", said, re.MULTILINE)]
