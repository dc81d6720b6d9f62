"""Our own checks do what a check must do; what cannot be asked of one is excused with its reason, or fails."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from selfheal.builtin.command import CommandCheck
from selfheal.builtin.heartbeat import HeartbeatCheck
from selfheal.builtin.process_check import ProcessCheck
from selfheal.builtin.wire_checks import HttpCheck, RedisPing, TcpCheck
from selfheal.plugins import HealthCheck
from selfheal.secret import Secret
from selfheal.testing import servers
from selfheal.testing.conformance import CheckConformance
from selfheal.testing.doubles import ScriptedWorkload
from selfheal.testing.stage import FAULTS
from selfheal.wire import WireCheck

pytestmark = pytest.mark.real_time

TOKEN = "hunter2-canary-51d2e8"


class Ours(CheckConformance):
    """A check, and a server that is well."""

    runs = 10

    @pytest.fixture(autouse=True)
    def _well(self) -> Iterator[None]:
        with servers.serve(self.speak) as self.address:
            yield

    @staticmethod
    def speak(client: socket.socket, stop: threading.Event) -> None:
        while client.recv(4096):
            pass


class TestTcp(Ours):
    inapplicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("silent", "garbage", "reset", "drip", "endless"), "whoever accepts is reached, whatever is said afterwards"
    )

    def make(self) -> WireCheck:
        return TcpCheck(address=self.address)

    def make_broken(self, fault: str, address: str) -> WireCheck | None:
        return TcpCheck(address=address) if fault in ("refused", "hole") else None


class TestHttp(Ours):
    """With a condition on the body, so that the whole answer is read."""

    @staticmethod
    def speak(client: socket.socket, stop: threading.Event) -> None:
        while client.recv(4096):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is well")

    def make(self) -> WireCheck:
        return self._at(self.address)

    def make_broken(self, fault: str, address: str) -> WireCheck:
        return self._at(address)

    def _at(self, address: str) -> WireCheck:
        return HttpCheck(url=f"http://{address}/health", body="well", headers={"Authorization": Secret(TOKEN)})


class TestRedisPing(Ours):
    @staticmethod
    def speak(client: socket.socket, stop: threading.Event) -> None:
        while heard := client.recv(4096):
            client.sendall(b"+OK\r\n" if b"AUTH" in heard else b"+PONG\r\n")

    def make(self) -> WireCheck:
        return self._at(self.address)

    def make_broken(self, fault: str, address: str) -> WireCheck:
        return self._at(address)

    def _at(self, address: str) -> WireCheck:
        return RedisPing(url=f"redis://{address}", password=Secret(TOKEN))


BROKEN_PROGRAMS = {
    "refused": "sys.exit(3)",
    "silent": "time.sleep(600)",
    "garbage": "os.write(1, bytes(range(256)) * 4); sys.exit(1)",
    "reset": "os.write(1, b'half an ans'); os.kill(os.getpid(), 9)",
    "drip": "[(os.write(1, b'x'), time.sleep(0.05)) for _ in range(10**6)]",
    "endless": "[os.write(1, b'x' * 65536) for _ in range(10**9)]",
}
"""What the program does that a peer would do with this fault; each tells its secret if it can."""


class TestCommand(CheckConformance):
    runs = 5
    refusal_is_proven = False  # its program is there, whatever it will say
    inapplicable: ClassVar[Mapping[str, str]] = {"hole": "a program that has not answered is silent, and no more"}

    def make(self) -> HealthCheck:
        return self._running("sys.exit(0)")

    def make_broken(self, fault: str, address: str) -> HealthCheck | None:
        return self._running(BROKEN_PROGRAMS[fault]) if fault in BROKEN_PROGRAMS else None

    def _running(self, code: str) -> HealthCheck:
        program = f"import os, sys, time; os.write(1, os.environ['TOKEN'].encode()); {code}"
        return CommandCheck(command=(sys.executable, "-S", "-E", "-c", program), environment={"TOKEN": Secret(TOKEN)})


class TestHeartbeat(CheckConformance):
    inapplicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        set(FAULTS) - {"silent"}, "it speaks to nobody: the service calls us, or is silent"
    )

    def make(self) -> HealthCheck:
        check = HeartbeatCheck(every=60.0)
        check.beat(time.monotonic())
        return check

    def make_broken(self, fault: str, address: str) -> HealthCheck | None:
        check = HeartbeatCheck(every=0.05, grace=0.0)
        check.beat(time.monotonic() - 60.0)
        return check if fault == "silent" else None


class TestProcessOfAPidFile(CheckConformance):
    inapplicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("hole", "silent", "drip", "reset"), "a pid file is there and whole, or it is not"
    )

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        (tmp_path / "well").write_text(f"{os.getpid()}\n")
        (tmp_path / "garbage").write_bytes(bytes(range(256)) * 4)

    def make(self) -> HealthCheck:
        return ProcessCheck(pid_file=self.folder / "well")

    def make_broken(self, fault: str, address: str) -> HealthCheck | None:
        files = {"refused": self.folder / "absent", "garbage": self.folder / "garbage", "endless": Path("/dev/zero")}
        return ProcessCheck(pid_file=files[fault]) if fault in files else None


class TestProcessOfAWorkload(CheckConformance):
    inapplicable: ClassVar[Mapping[str, str]] = {"make_broken": "it asks a workload, whose duties these are"}

    def make(self) -> HealthCheck:
        return ProcessCheck(workload=ScriptedWorkload())

    def make_broken(self, fault: str, address: str) -> Any:
        return None
