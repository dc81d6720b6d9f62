"""Running a list of arguments: one child, one deadline, one cap on its output, and nothing left of it afterwards.

Owns the starting of programs (for checks and commands that are awaited, and for workloads that are not) and the
environment they are given. There is no shell anywhere: arguments are a list, and reach the program as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from selfheal.builtin import proc
from selfheal.errors import Problem
from selfheal.secret import Secret

RUN_MARK: Final = "SELFHEAL_RUN"
"""The variable whose value finds what a command left behind, whatever it did to its parents and session."""

PASSED_ON: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR"}
)
"""What a program is given of our own environment, with every `LC_` variable; the rest only when it is named, because
the environment of a healer holds the passwords of everything it heals."""

LIMIT: Final = 64 * 1024
"""Bytes of output that are kept by default: one pipe full."""

_CHUNK: Final = 64 * 1024
_PACE: Final = 0.01  # seconds between two reads of output nobody wants: at most 6.4 MB/s are thrown away


@attrs.frozen(kw_only=True)
class Finished:
    """How a command ended.

    `code` or `signal` is set, or neither when it was ended by us (`expired`) or reaped by another part of the program.
    `output` is standard output and error together, as text, cut at the limit (`truncated`). `escaped` are the pids of
    what belongs to it and still lives although everything was done to end it.
    """

    code: int | None = None
    signal: int | None = None
    expired: bool = False
    output: str = ""
    truncated: bool = False
    escaped: tuple[int, ...] = ()


def checked(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return `arguments` as a tuple.

    Raises `TypeError` for anything but a list of texts, `ValueError` for an empty one, an empty program or a NUL.
    """
    if isinstance(arguments, str | bytes) or not isinstance(arguments, Sequence):
        raise TypeError(f'{arguments!r} is not a list of arguments; there is no shell, write ["program", "argument"]')
    for argument in arguments:
        if not isinstance(argument, str):
            raise TypeError(f"the argument {argument!r} is not a text; put it in quotes")
        if "\0" in argument:
            raise ValueError(f"the argument {argument!r} holds a NUL, which no program can be given")
    if not arguments or not arguments[0]:
        raise ValueError("no program is named; the first argument is the program")
    return tuple(arguments)


def named(environment: Mapping[str, str | Secret]) -> dict[str, str | Secret]:
    """Return `environment` as a plain dict. Raises `ValueError` for a name no environment can hold."""
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} is no name of a variable")
        if not isinstance(value, str | Secret):
            raise TypeError(f"{name}: {value!r} is not a text; put it in quotes")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{name}: the value holds a NUL")
    return dict(environment)


def surroundings(environment: Mapping[str, str | Secret], inherit: Sequence[str] = ()) -> dict[str, str]:
    """Return a whole environment: `PASSED_ON`, our variables named in `inherit`, and `environment` revealed over them.

    Raises what a secret's reader raises, e.g. `OSError` for a missing file.
    """
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith("LC_") or name in inherit
    }
    return passed | {
        name: value.reveal() if isinstance(value, Secret) else value for name, value in environment.items()
    }


def missing(
    arguments: Sequence[str], option: str, *, cwd: Path | None, environment: Mapping[str, str | Secret]
) -> list[Problem]:
    """Return what stands in the way of starting a program; `option` is what names it. Blocks."""
    problems = []
    if cwd is not None and not cwd.is_dir():
        problems.append(
            Problem(
                path=f"{option.rpartition('.')[0]}.cwd".lstrip("."),
                message=f"{cwd} is no directory here",
                hint="create it, or correct cwd",
            )
        )
    program = arguments[0]
    where = str(cwd / program) if cwd is not None and "/" in program else program
    path = environment.get("PATH")
    if shutil.which(where, path=path if isinstance(path, str) else None) is None:
        hint = (
            "correct the name, or give a whole path"
            if "/" not in program
            else "correct the path, or make it executable"
        )
        problems.append(Problem(path=option, message=f"{program} is no program that can be run here", hint=hint))
    return problems


def launch(
    arguments: Sequence[str], *, environment: Mapping[str, str], cwd: Path | None, stdin: int, output: int
) -> int:
    """Start a program as the leader of its own session and return its pid; whoever calls reaps it.

    Returns when the program itself is running: nothing of ours is left in the child. Raises `OSError` when it could
    not be started: no such program, no right, no process or memory to be had.
    """
    child = subprocess.Popen(  # noqa: S603  # running what the configuration names is the purpose
        list(arguments),
        stdin=stdin,
        stdout=output,
        stderr=output,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
        close_fds=True,
    )
    # It is watched by pidfd and pid with start time, and reaped there. Left to itself this object would complain that
    # the child still runs, and later collect a status by pid, which may by then be another child's.
    child.returncode = 0
    return child.pid


class _Output:
    """Reads a pipe on the loop, keeps the first `limit` bytes, and drains the rest slowly: a flood costs neither
    memory nor processor, and the flooder waits at its full pipe until the deadline ends it."""

    def __init__(self, descriptor: int, limit: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._kept = bytearray()
        self.truncated = False
        self._loop.add_reader(descriptor, self._ready)

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def _read(self) -> bool:
        """Take what is there; False at the end or when nothing is there."""
        try:
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return False
        room = self._limit - len(self._kept)
        self._kept += data[:room]
        self.truncated = self.truncated or len(data) > room
        if not data:
            self._loop.remove_reader(self._descriptor)
        return bool(data)

    def _ready(self) -> None:
        if self._read() and self.truncated:
            self._loop.remove_reader(self._descriptor)
            self._later = self._loop.call_later(_PACE, self._listen)

    def _listen(self) -> None:
        self._loop.add_reader(self._descriptor, self._ready)

    def close(self) -> None:
        """Take what is already there, but wait for nobody: a grandchild may hold the pipe open for ever."""
        if self._later is not None:
            self._later.cancel()
        while not self.truncated and self._read():
            pass
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)


async def run(
    arguments: Sequence[str],
    *,
    timeout: float,
    limit: int = LIMIT,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    grace: float = 0.5,
    sweep: bool = False,
) -> Finished:
    """Run a program to its end, or to the end of `timeout` seconds, and say how it ended.

    On expiry, and when cancelled, everything that came from it is ended: SIGTERM, `grace` seconds, SIGKILL (see
    `proc.family` for what is found). After an end in time, what it left behind in its process group is killed if
    `sweep` is set, and is otherwise left alone, since starting a daemon may have been the command's purpose.
    `environment` is the whole environment (default: `surroundings({})`). Raises `OSError` when it could not be
    started, and what `checked` raises.
    """
    arguments = checked(arguments)
    token = secrets.token_hex(8)
    environment = {**(surroundings({}) if environment is None else environment), RUN_MARK: token}
    pid, reading = _begin(arguments, environment=environment, cwd=cwd, stdin=stdin)
    try:
        seen = proc.look(pid)
        descriptor = proc.hold(seen.identity) if seen is not None and seen.parent == os.getpid() else None
    except OSError:
        # Without a free descriptor it cannot be watched. Killing needs none.
        os.close(reading)
        proc.to_group(pid, signal.SIGKILL)
        threading.Thread(target=_wait, args=(os.P_PID, pid), name="selfheal reaps a child", daemon=True).start()
        raise
    output = _Output(reading, limit)
    if seen is None or descriptor is None:
        # Somebody reaps every child of this process (SIGCHLD ignored, or a waitpid for any): its status is lost.
        output.close()
        return Finished(output=output.text, truncated=output.truncated)
    tree = proc.Family(roots={seen.identity}, marks=(f"\0{RUN_MARK}={token}\0".encode(),))
    escaped: tuple[int, ...] = ()
    expired = False
    try:
        try:
            expired = not await proc.readable(descriptor, max(0.0, timeout))
        except asyncio.CancelledError:
            await proc.uninterrupted(tree.end(grace=grace, group=pid))
            raise
        if expired:
            escaped = await proc.uninterrupted(tree.end(grace=grace, group=pid))
        elif sweep:
            # The leader is a zombie still, so the number of the group is still its own.
            _kill_group(pid)
    finally:
        output.close()
        ending = _collect(descriptor)
    if expired:
        ending = proc.Ending()
    return Finished(
        code=ending.code,
        signal=ending.signal,
        expired=expired,
        output=output.text,
        truncated=output.truncated,
        escaped=escaped,
    )


def _begin(
    arguments: Sequence[str], *, environment: Mapping[str, str], cwd: Path | None, stdin: bytes | None
) -> tuple[int, int]:
    """Start a program; return its pid and the descriptor that its output is read from. Raises `OSError`."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        source = _given(stdin)
        try:
            return launch(arguments, environment=environment, cwd=cwd, stdin=source, output=writing), reading
        finally:
            os.close(source)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)


def _given(stdin: bytes | None) -> int:
    """Return a descriptor to read `stdin` from: a file in memory, so that nobody has to feed a pipe."""
    if stdin is None:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    descriptor = os.memfd_create("selfheal stdin", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(stdin)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _kill_group(group: int) -> None:
    try:
        # Looks without reaping; fails when somebody else has reaped the leader and its number may be another's.
        os.waitid(os.P_PID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    proc.to_group(group, signal.SIGKILL)


def _collect(descriptor: int) -> proc.Ending:
    """Reap the child and close its pidfd; one that cannot be killed is left to a thread, lest it stay a zombie."""
    ending = proc.reap(descriptor)
    if ending is not None:
        os.close(descriptor)
        return ending

    def last() -> None:
        _wait(os.P_PIDFD, descriptor)
        os.close(descriptor)

    threading.Thread(target=last, name="selfheal waits for an unkillable child", daemon=True).start()
    return proc.Ending()


def _wait(kind: int, number: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitid(kind, number, os.WEXITED)
