"""What the children of `test_crashes` do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from selfheal.testing import crashes
from selfheal.testing.crashes import CrashPoint


def count(crash_point: CrashPoint, folder: str, most: int, careless: int = 0) -> None:
    """Count in a file. Careless: say it before it is written."""
    path = Path(folder, "count")
    for number in range(1, most + 1):
        if careless:
            print(number)
        crash_point("begun")
        beside = path.with_suffix(".new")
        beside.write_text(str(number))
        crash_point("written")
        beside.replace(path)
        if not careless:
            print(number)
    crash_point("done")


def stumble(crash_point: CrashPoint) -> None:
    """Raise."""
    crash_point("here")
    raise KeyError("nothing of the kind")


def commit_suicide(crash_point: CrashPoint) -> None:
    """Die though nobody asked for it."""
    crash_point("last")
    os.kill(os.getpid(), signal.SIGKILL)


def leave_somebody(crash_point: CrashPoint, seconds: float) -> None:
    """Start a program that holds our streams open, and go on."""
    child = subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"])
    print(child.pid)
    crash_point("started")


def in_threads(crash_point: CrashPoint) -> None:
    """Come to one point from several threads."""
    threads = [threading.Thread(target=crash_point, args=("there",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Door:
    """Something without crash points."""

    def open(self) -> str:
        """Open it."""
        return "open"


def through_a_door(crash_point: CrashPoint) -> None:
    """Make crash points where there are none."""
    with crashes.around(crash_point, Door, "open"):
        print(Door().open())
    Door().open()
