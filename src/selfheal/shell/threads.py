"""What can be seen of other threads from outside: what a loop's thread runs now, and which threads spin.

Both look without touching: nothing is patched, traced or slowed in the threads looked at.
"""

from __future__ import annotations

import asyncio
import gc
import os
import selectors
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

SPIN_LATE: Final = 0.001
"""Seconds a wake-up must be late before spinning is suspected.

A thread that wants the GIL of one that spins waits 5 ms for it; less if another has asked before, so that where a
third thread wakes often, any share of the 5 ms is as likely as another.
"""

SPIN_SHARE: Final = 0.3
"""The share of a processor above which a thread spins: three of them share one GIL."""

SPIN_LOOKS: Final = 10
"""It is named once it was seen spinning at so many looks more than not: a second."""

LOOPS: Final = ("selfheal-checks", "selfheal-actions")
"""How the threads of plugin loops are called: what spins there is found as a blocked loop."""

_LIBRARY: Final = str(Path(os.__file__).parent)

_RUN: Final[CodeType] = asyncio.Handle._run.__code__  # every callback and every step of a task goes through it


class Turns(selectors.DefaultSelector):
    """The selector of a loop whose turns another thread follows: which one it is in, and whether it only waits.

    That is two stores a turn. Frames are for when the loop is seen standing: to ask for them costs one object for each
    thread of the process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        self.waiting = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait as the selector does; that is the end of a turn, and the next one begins when it returns."""
        self.number += 1
        self.waiting = True
        ready = super().select(timeout)
        self.waiting = False
        return ready


def frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread, by its identifier.

    Before Python 3.12 a garbage collection may begin inside `sys._current_frames` while it holds the lock over all
    thread states; one that finds a dead `threading.local`, or lets another thread have the GIL, then stands for ever,
    and every thread with it (cpython issue 106883). So nothing is collected meanwhile.
    """
    if sys.version_info >= (3, 12) or not gc.isenabled():
        return sys._current_frames()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        gc.enable()


def running_in(frame: FrameType | None) -> tuple[asyncio.Handle | None, str]:
    """Return what an asyncio loop runs now, given its thread's innermost frame, and where it stands.

    None when the loop waits, or is between two callbacks.
    """
    innermost = frame
    while frame is not None:
        if frame.f_code is _RUN:
            handle = frame.f_locals.get("self")
            return (handle, _where(innermost)) if isinstance(handle, asyncio.Handle) else (None, "")
        frame = frame.f_back
    return None, ""


def _where(frame: FrameType | None) -> str:
    """Return where a thread stands, and who called it there if that is the standard library."""
    if frame is None:
        return "no Python frame"
    place = _place(frame)
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_filename.startswith(_LIBRARY) and caller.f_code is not _RUN:
        if "site-packages" in caller.f_code.co_filename:
            break
        caller = caller.f_back
    if caller is None or caller is frame or caller.f_code is _RUN:
        return place
    return f"{place}, called from {_place(caller)}"


def _place(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_qualname}"


class Spinners:
    """Notices threads that keep the GIL busy. It can only say so: nobody can stop them."""

    def __init__(self) -> None:
        self._before: dict[int, float] = {}
        self._at = 0.0
        self._looks: dict[int, int] = {}
        self._named: set[int] = set()
        self._suspicion = 0

    def look(self, now: float, late: float) -> list[tuple[str, str]]:
        """Return the name and the place of every thread newly found spinning. `late` is how late we ourselves woke.

        It costs nothing while wake-ups are on time; else one small read for each thread.
        """
        self._suspicion = max(0, min(SPIN_LOOKS, self._suspicion + (1 if late >= SPIN_LATE else -1)))
        if not self._suspicion:
            self._before.clear()
            self._looks.clear()
            return []
        threads = {thread.native_id: thread for thread in threading.enumerate() if thread.native_id is not None}
        threads.pop(threading.get_native_id())
        threads.pop(threading.main_thread().native_id or 0, None)
        passed = now - self._at
        spent = {native: cpu for native in threads if (cpu := _processor_time(native)) is not None}
        for native, cpu in spent.items():
            spins = native in self._before and cpu - self._before[native] > SPIN_SHARE * passed
            self._looks[native] = max(0, self._looks.get(native, 0) + (1 if spins else -1))
        self._looks = {native: looks for native, looks in self._looks.items() if native in spent}
        self._before, self._at = spent, now
        found = [
            native
            for native, looks in self._looks.items()
            if looks >= SPIN_LOOKS and native not in self._named and not threads[native].name.startswith(LOOPS)
        ]
        self._named.update(found)
        stands = frames() if found else {}
        return [(threads[native].name, _where(stands.get(threads[native].ident or 0))) for native in found]


def _processor_time(native: int) -> float | None:
    """Return the processor seconds a thread of ours has used; None where the platform does not say."""
    try:
        after_name = Path(f"/proc/self/task/{native}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
