"""What the kernel says of processes: who they are, what belongs to them, and that they are gone.

Owns identity (a pid alone names nobody: it is used again; pid and start time do), the family of a process, and the
ending of a whole family. Nothing is signalled but an identity that was verified through a pidfd, and never ourselves,
an ancestor of ours or init. Linux only: it reads `/proc`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import attrs

T = TypeVar("T")

_KERNEL_THREAD: Final = 0x00200000  # PF_KTHREAD of the kernel's sched.h
_ROUND: Final = 0.1  # seconds between two looks for what a SIGKILL has missed
_KILL_WAIT: Final = 1.0  # seconds after which what still lives is called unkillable


@attrs.frozen(order=True)
class Identity:
    """One process, for as long as this machine runs: `start` is its start time in clock ticks since boot."""

    pid: int
    start: int

    def __str__(self) -> str:
        return f"{self.pid}:{self.start}"


@attrs.frozen(kw_only=True)
class Seen:
    """A process as `/proc/PID/stat` showed it once."""

    identity: Identity
    program: str
    state: str
    parent: int
    group: int
    session: int
    alive: bool


def look(pid: int) -> Seen | None:
    """Return what runs under `pid` now, zombies included, or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name may itself hold spaces and brackets, so the fields are counted from the last bracket.
    opening, closing = text.index(b"("), text.rindex(b")")
    fields = text[closing + 2 :].split()
    state = fields[0].decode()
    if int(fields[6]) & _KERNEL_THREAD:
        return None
    return Seen(
        identity=Identity(pid, int(fields[19])),
        program=text[opening + 1 : closing].decode(errors="replace"),
        state=state,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        # A first thread that ended before the others shows as a zombie too, but with more than one thread.
        alive=state not in "ZXx" or int(fields[17]) > 1,
    )


def everyone() -> Iterator[Seen]:
    """Yield every process that can be seen, without threads of the kernel."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            seen = look(int(entry.name))
            if seen is not None:
                yield seen


def environment_of(pid: int) -> bytes:
    """Return the environment `pid` was started with, each entry between NULs; empty when it cannot be read."""
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def boot() -> str:
    """Return the name of this boot of the machine: after another one no process of before can live."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def ticks() -> int:
    """Return now, in the unit of `Identity.start`."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def began(identity: Identity) -> float:
    """Return when it started, in UNIX time; good to a clock tick (usually 10 ms)."""
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def is_alive(identity: Identity) -> bool:
    """Whether it still runs; a zombie does not. Raises `PermissionError` when `/proc` hides who has the pid."""
    seen = look(identity.pid)
    if seen is not None:
        return seen.identity == identity and seen.alive
    try:
        os.close(os.pidfd_open(identity.pid))
    except OSError:
        return False
    if look(identity.pid) is None:
        raise PermissionError(f"process {identity.pid} exists but /proc hides it; mount /proc without hidepid")
    return False


def hold(identity: Identity) -> int | None:
    """Return a pidfd of it (also of a zombie), or None when it is gone. The caller closes it."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Looked at after the pidfd exists: if the start time fits now, the descriptor cannot be another process.
    seen = look(identity.pid)
    if seen is None or seen.identity != identity:
        os.close(descriptor)
        return None
    return descriptor


def deliver(identity: Identity, number: int) -> bool:
    """Send a signal to exactly this process; False when it is gone or we may not."""
    descriptor = hold(identity)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


@attrs.frozen(kw_only=True)
class Ending:
    """How a child of ours ended: one of the two is set; neither, when somebody else reaped it."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.code is not None:
            return f"exit code {self.code}"
        if self.signal is None:
            return "how is not known: it was not, or no longer, a child of this selfheal"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"killed by signal {self.signal}"


def reap(descriptor: int) -> Ending | None:
    """Collect the child behind a pidfd without waiting; None while it runs."""
    try:
        status = os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return Ending()
    if status is None:
        return None
    if status.si_code == os.CLD_EXITED:
        return Ending(code=status.si_status)
    return Ending(signal=status.si_status)


# -- waiting ---------------------------------------------------------------------------------------------------------


async def readable(descriptor: int, seconds: float | None) -> bool:
    """Wait until `descriptor` is readable (a pidfd: until its process has ended); False after `seconds`."""
    if seconds is not None and seconds <= 0:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_reader(descriptor, heard.set)
    try:
        async with asyncio.timeout(seconds):  # `wait_for` loses a cancellation, before 3.12, if both come at once
            await heard.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True


async def gone(identity: Identity, seconds: float) -> bool:
    """Wait until it has ended; False when it has not after `seconds`."""
    descriptor = hold(identity)
    if descriptor is None:
        return True
    try:
        return await readable(descriptor, max(0.0, seconds))
    finally:
        os.close(descriptor)


async def aside(function: Callable[..., T], /, *args: Any) -> T:
    """Run what reads `/proc` or writes a small file in a thread of its own and return its value.

    Not the loop's pool and not `context.blocking`: a check stuck in its thread must not keep the action from working
    that would cure it, and a thread that hangs must not keep the interpreter from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # None is a T where the function returns None

    def work() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = function(*args)
        except BaseException as raised:  # noqa: BLE001  # whatever it is, it is raised where it is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name=f"selfheal {getattr(function, '__name__', 'aside')}", daemon=True).start()
    return await future


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even when cancelled meanwhile, and only then let the cancellation through."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as never retrieved
        raise cancelled
    return task.result()


# -- families --------------------------------------------------------------------------------------------------------


def _ourselves() -> frozenset[int]:
    """Return the pids that are never signalled: ours, all of our ancestors, init."""
    spared = {1}
    pid = os.getpid()
    while pid > 1 and pid not in spared:
        spared.add(pid)
        seen = look(pid)
        pid = seen.parent if seen is not None else 1
    return frozenset(spared)


def family(roots: Iterable[Identity], marks: tuple[bytes, ...] = ()) -> set[Identity]:
    """Return who is alive of `roots` and of all that came from them.

    What came from them is: their children and children's children; the members of a session or group that one of them
    leads (as long as the leader, or its zombie, is there to prove whose it is); and whoever was started with an
    environment that contains one of `marks`, which finds daemons that left parent, group and session. What also
    cleared its environment cannot be found.
    """
    roots = frozenset(roots)
    oldest = min((root.start for root in roots), default=0)
    spared = _ourselves()
    candidates = {
        seen.identity.pid: seen
        for seen in everyone()
        if seen.identity.start >= oldest and seen.identity.pid not in spared
    }
    members = {seen.identity.pid for seen in candidates.values() if seen.identity in roots}
    if marks:
        for pid in candidates.keys() - members:
            environment = environment_of(pid)
            if any(mark in environment for mark in marks):
                members.add(pid)
    grown = True
    while grown:
        grown = False
        for pid, seen in candidates.items():
            if pid not in members and not members.isdisjoint((seen.parent, seen.group, seen.session)):
                members.add(pid)
                grown = True
    return {candidates[pid].identity for pid in members if candidates[pid].alive}


@attrs.define(kw_only=True)
class Family:
    """The processes that are to be ended together, remembered once seen, even when they lose their parents."""

    roots: set[Identity]
    marks: tuple[bytes, ...] = ()

    def alive(self) -> set[Identity]:
        """Look who is alive, and remember them."""
        found = family(self.roots, self.marks)
        self.roots |= found
        return found

    async def end(self, *, grace: float, group: int | None = None) -> tuple[int, ...]:
        """End all of it: SIGTERM, `grace` seconds, SIGKILL until nothing is left; return the pids that still live.

        `group` is a process group whose leader is a child of ours not yet reaped, so that its number cannot have been
        given away. Takes at most `grace` and about a second; what lives on then is beyond SIGKILL (waiting for a
        device, frozen, or not ours to signal).
        """
        try:
            members = await aside(self.alive)
        except OSError:
            # Without a free descriptor nobody can be looked at. A group can be killed without one.
            to_group(group, signal.SIGKILL)
            raise
        for member in members:
            # Each once, and not the group as well: many programs take a second SIGTERM for impatience. A stopped
            # process cannot obey before it is continued.
            _ = deliver(member, signal.SIGTERM) and deliver(member, signal.SIGCONT)
        deadline = time.monotonic() + grace
        for member in members:
            await gone(member, deadline - time.monotonic())
        deadline = time.monotonic() + _KILL_WAIT
        while members := await aside(self.alive):
            if time.monotonic() >= deadline:
                break
            to_group(group, signal.SIGKILL)
            for member in members:
                deliver(member, signal.SIGKILL)
            until = time.monotonic() + _ROUND
            for member in members:
                await gone(member, until - time.monotonic())
        return tuple(sorted(member.pid for member in members))


def to_group(group: int | None, number: int) -> None:
    """Send a signal to a process group, if any; the caller knows that its number is still its own."""
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
