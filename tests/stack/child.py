"""A server as one process of the test that started it: frozen, thawed and ended by its own process id."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

from tests.servers import until


def freeze(pid: int) -> None:
    """Stop a process where it stands, and wait until each of its threads does: one that still runs may still answer."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: all(state in "TZ" for state in _states(pid)), f"process {pid} stands")


def _states(pid: int) -> list[str]:
    texts = [path.read_text("utf-8") for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return [text.rpartition(")")[2].split()[0] for text in texts]


class Child:
    """What every server has that a test started as its child. `_process` is there while it runs."""

    patience: ClassVar[float] = 30.0
    """Seconds it may take to end when it is asked to; then it is killed."""

    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. Only while it runs."""
        assert self._process is not None
        return self._process.pid

    def freeze(self) -> None:
        """Stop the process where it stands: its port still accepts."""
        freeze(self.pid)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does, and wait for that."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # one that is frozen would not hear the other
        process.send_signal(number)
        try:
            process.wait(self.patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(self.patience)
