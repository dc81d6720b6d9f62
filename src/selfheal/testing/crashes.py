"""Kill a program at any of its crash points (SIGKILL, as the kernel does it), then see what its successor makes of it.

A *crash point* is a named place at which a kill must do no harm. Code that has some calls `crash_point("name")` there,
which does nothing but in such a test. The script of a test is a function of a module, given the crash point first and
then the arguments, which are texts and numbers; it runs in a child process:

    def script(crash_point: CrashPoint, path: str) -> None:
        store = MyStore(path, crash_point=crash_point)
        store.append("one")
        print("one")

    def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path):
        for number, crash in enumerate(crashes(script, tmp_path / "0")):
            life = live(script, tmp_path / str(number + 1), crash=crash)
            assert life.killed
            assert MyStore(tmp_path / str(number + 1)).items() >= set(life.said)

Code without crash points is given some by `around`. What a child has started is not killed with it: as in life.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeAlias
from unittest import mock

import attrs

CrashPoint: TypeAlias = "Callable[[str], None]"
Argument: TypeAlias = "str | Path | int | float | None"

_BOOT: Final = """
import json, sys
order = json.load(sys.stdin)
sys.path[:] = order["path"]
from selfheal.testing.crashes import _obey
_obey(order)
"""


@attrs.frozen
class Crash:
    """Where to die: the `occurrence`-th time (from 1) the script comes to a point."""

    point: str
    occurrence: int = 1


@attrs.frozen(kw_only=True)
class Life:
    """How a child lived: whether it was killed, the points it came to, in order, and the lines it printed."""

    killed: bool
    points: tuple[str, ...]
    said: tuple[str, ...]


def live(
    script: Callable[..., object], *arguments: Argument, crash: Crash | None = None, timeout: float = 60.0
) -> Life:
    """Run `script(crash_point, *arguments)` in a child process until it ends, or dies at `crash`.

    `killed` is whether it died of SIGKILL, by us or by what the script has arranged. Raises `RuntimeError` with what
    it wrote to standard error when it ended in any other way than well, `ValueError` for a script that a child could
    not import, `subprocess.TimeoutExpired` after `timeout` seconds.
    """
    module, name = script.__module__, script.__qualname__
    if "<" in name or module == "__main__":
        raise ValueError(f"{name}: a child cannot import it from {module}; make it a function of a module of its own")
    with tempfile.TemporaryDirectory(prefix="selfheal-crashes-") as folder:
        passed, out, err = (Path(folder, name) for name in ("points", "out", "err"))
        order = {
            "path": sys.path,
            "module": module,
            "name": name,
            "arguments": [os.fspath(one) if isinstance(one, Path) else one for one in arguments],
            "crash": None if crash is None else attrs.astuple(crash),
            "passed": str(passed),
        }
        # Files and no pipes: what the child has started may hold its streams open for long.
        with out.open("wb") as stdout, err.open("wb") as stderr:
            ended = subprocess.run(  # noqa: S603  # this very interpreter, with a program of ours
                [sys.executable, "-u", "-c", _BOOT],
                input=json.dumps(order).encode(),
                stdout=stdout,
                stderr=stderr,
                timeout=timeout,
                check=False,
            )
        if ended.returncode not in (0, -signal.SIGKILL):
            complaint = err.read_text("utf-8", errors="replace").strip()
            raise RuntimeError(
                f"{module}.{name} ended with {ended.returncode}, where it should have lived:\n{complaint}"
            )
        return Life(
            killed=ended.returncode != 0,
            points=tuple(passed.read_text("utf-8").splitlines()) if passed.exists() else (),
            said=tuple(out.read_text("utf-8", errors="replace").splitlines()),
        )


def crashes(script: Callable[..., object], *arguments: Argument, timeout: float = 60.0) -> list[Crash]:
    """Let `script` live once, and return every crash that it can die of: each point, each time it came there."""
    life = live(script, *arguments, timeout=timeout)
    if life.killed:
        raise RuntimeError(f"{script.__qualname__} was killed at {life.points[-1:]}, though nobody asked for that")
    seen: Counter[str] = Counter()
    found = []
    for point in life.points:
        seen[point] += 1
        found.append(Crash(point, seen[point]))
    return found


@contextmanager
def around(crash_point: CrashPoint, owner: Any, *names: str) -> Iterator[None]:
    """Make crash points `before <name>` and `after <name>` of functions of a module or a class, for a while."""
    with ExitStack() as stack:
        for name in names:
            pointed = _pointed(crash_point, name, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, pointed))
        yield


def _pointed(crash_point: CrashPoint, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def pointed(*args: Any, **options: Any) -> Any:
        crash_point(f"before {name}")
        value = function(*args, **options)
        crash_point(f"after {name}")
        return value

    return pointed


# -- in the child -----------------------------------------------------------------------------------------------------


def _obey(order: dict[str, Any]) -> None:
    """Import the script and run it."""
    module: Any = importlib.import_module(order["module"])
    script: Any = module
    for part in order["name"].split("."):
        script = getattr(script, part)
    with Path(order["passed"]).open("ab", buffering=0) as passed:
        script(_point(passed.write, order["crash"]), *order["arguments"])


def _point(write: Callable[[bytes], object], crash: tuple[str, int] | None) -> CrashPoint:
    guard = threading.Lock()
    left = 0 if crash is None else crash[1]

    def crash_point(name: str) -> None:
        nonlocal left
        with guard:
            write(f"{name}\n".encode())
            if crash is not None and name == crash[0]:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    return crash_point
