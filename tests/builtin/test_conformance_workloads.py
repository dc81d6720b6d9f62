"""Our own workloads do what a workload must do."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from selfheal.builtin.command import CommandWorkload
from selfheal.builtin.process import ProcessWorkload
from selfheal.plugins import Workload
from selfheal.secret import Secret
from selfheal.testing.conformance import WorkloadConformance
from selfheal.testing.stage import SERVICE

if TYPE_CHECKING:
    from tests.builtin.receiver import Call
else:
    from receiver import Call

pytestmark = pytest.mark.real_time

TOKEN = "hunter2-canary-51d2e8"
PYTHON = (sys.executable, "-S", "-E", "-c")


class TestProcess(WorkloadConformance):
    """One program runs, and every workload made here finds it by its roll."""

    runs = 10
    inapplicable: ClassVar[Mapping[str, str]] = {"make_broken": "it asks the kernel and a file of its own"}

    @pytest.fixture(autouse=True)
    def _program(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        workload = self._in(tmp_path)
        asyncio.run(workload.start(Call(service=SERVICE)))
        yield
        asyncio.run(workload.release(Call(service=SERVICE), stopping=True))

    def make(self) -> Workload:
        return self._in(self.folder)

    def make_absent(self) -> Workload:
        return self._in(self.folder / "never")

    @staticmethod
    def _in(folder: Path) -> ProcessWorkload:
        return ProcessWorkload(
            command=(*PYTHON, "import time; time.sleep(600)"),
            environment={"TOKEN": Secret(TOKEN)},
            state_directory=folder,
            stop_timeout=2.0,
        )


BROKEN_INSPECTIONS = {
    "silent": "time.sleep(600)",
    "garbage": "os.write(1, bytes(range(256)) * 4); sys.exit(77)",
    "reset": "os.write(1, b'half an ans'); os.kill(os.getpid(), 9)",
    "drip": "[(os.write(1, b'x'), time.sleep(0.05)) for _ in range(10**6)]",
    "endless": "[os.write(1, b'x' * 65536) for _ in range(10**9)]",
}


class TestCommand(WorkloadConformance):
    """What runs is a line in a file, and a restart writes another one."""

    runs = 5
    inapplicable: ClassVar[Mapping[str, str]] = {
        "watch": "a command answers when it is asked, and calls nobody",
        "hole": "a program that has not answered is silent, and no more",
    }

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.file = tmp_path / "instance"
        self.file.write_text("first\n")

    def make(self) -> Workload:
        return self._inspected(("/bin/cat", str(self.file)))

    def make_absent(self) -> Workload:
        return self._inspected(("/bin/false",))

    def make_broken(self, fault: str, address: str) -> Workload | None:
        if fault == "hole":
            return None
        if fault == "refused":
            return self._inspected((os.devnull,))
        program = f"import os, sys, time; os.write(1, os.environ['TOKEN'].encode()); {BROKEN_INSPECTIONS[fault]}"
        return self._inspected((*PYTHON, program))

    def _inspected(self, inspect: tuple[str, ...]) -> Workload:
        program = "import sys, time; open(sys.argv[1], 'w').write(str(time.time_ns()))"
        options: dict[str, Any] = {"inspect": inspect, "restart": (*PYTHON, program, str(self.file))}
        return CommandWorkload(environment={"TOKEN": Secret(TOKEN)}, **options)
