"""The roll of a workload: which processes were started for it, and the proof that none is started twice.

Owns the file a `process` workload lives by and every change of it. The file, not the memory of a manager, is the
truth, so a manager that was killed is succeeded by one that knows as much. The law of this module:

    However a manager ends, and at whatever instant, its successor finds every process it has started, or says that it
    cannot tell. It never starts a second one beside the first.

A start takes four steps, and a crash may fall between any two:

    1. the intent, with a token, is written
    2. a *gate*, an empty file named by the token, is locked; the child inherits it as its standard input
    3. the program is started; the token is in its environment
    4. the process is written down, the intent is gone, the gate is removed

The lock belongs to the open file and not to a process: from the fork on the child holds it too. A successor that finds
an intent therefore looks at the gate. Locked: a child exists; it is found by its environment, or by its standard
input, as soon as it has become the program. Free: it never was, has ended, or has given up its standard input, and
then its environment has been in place for long. What cannot be decided is refused, with the reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from selfheal.builtin import proc, spawn
from selfheal.builtin.proc import Identity
from selfheal.errors import ActionFailed

WORKLOAD_MARK: Final = "SELFHEAL_WORKLOAD"
"""The variable by which a process is known to be ours: workload, number of the copy, token of the start."""

_VERSION: Final = 1
_KEPT: Final = 16  # acts that are remembered for `probe`; one is in flight at most
_BECOMING: Final = 5.0  # seconds a child may take from fork to exec before we say that we cannot tell


@attrs.frozen(kw_only=True)
class Copy:
    """One process of a workload, alive or not: who, since when (UNIX time), and the token of its start."""

    identity: Identity
    since: float
    token: str
    program: str


@attrs.frozen(kw_only=True)
class Launching:
    """A start that was begun and not yet written down; `after` is in clock ticks since boot."""

    number: int
    token: str
    after: int


@attrs.frozen(kw_only=True)
class Act:
    """What was asked of the workload under one key: `before` is who ran then, `settled` is empty until it ended."""

    key: str
    verb: str
    before: tuple[Identity, ...]
    settled: str = ""


@attrs.frozen(kw_only=True)
class Roll:
    """Everything that is known of a workload's processes, in this boot of the machine.

    `stopped` says that a person wanted it so. `count` is the number of copies after a `scale_up`, None before.
    """

    boot: str
    stopped: bool = False
    count: int | None = None
    copies: Mapping[int, Copy] = attrs.field(factory=dict)
    launching: Launching | None = None
    acts: tuple[Act, ...] = ()

    def act(self, key: str) -> Act | None:
        """Return what was asked under `key`."""
        return next((act for act in reversed(self.acts) if act.key == key), None)

    def remember(self, act: Act) -> Roll:
        """Return the roll with `act` in place of what is known under its key."""
        others = [other for other in self.acts if other.key != act.key]
        return attrs.evolve(self, acts=(*others, act)[-_KEPT:])

    @property
    def forgetful(self) -> bool:
        """Whether acts may have been forgotten, so that an unknown key proves nothing."""
        return len(self.acts) >= _KEPT


def write_down(roll: Roll) -> str:
    """Return the roll as the text of its file."""
    launching = attrs.asdict(roll.launching) if roll.launching else None
    return json.dumps(
        {
            "version": _VERSION,
            "boot": roll.boot,
            "stopped": roll.stopped,
            "count": roll.count,
            "copies": {
                str(number): [copy.identity.pid, copy.identity.start, copy.since, copy.token, copy.program]
                for number, copy in roll.copies.items()
            },
            "launching": launching,
            "acts": [
                [act.key, act.verb, [[who.pid, who.start] for who in act.before], act.settled] for act in roll.acts
            ],
        }
    )


def read_back(text: str) -> Roll:
    """Return the roll from the text of its file. Raises `ValueError`, `KeyError` or `TypeError` when it is damaged."""
    data: dict[str, Any] = json.loads(text)
    if data["version"] != _VERSION:
        raise ValueError(f"version {data['version']} is not {_VERSION}")
    return Roll(
        boot=str(data["boot"]),
        stopped=bool(data["stopped"]),
        count=None if data["count"] is None else int(data["count"]),
        copies={
            int(number): Copy(identity=Identity(int(pid), int(start)), since=float(since), token=token, program=program)
            for number, (pid, start, since, token, program) in data["copies"].items()
        },
        launching=Launching(**data["launching"]) if data["launching"] else None,
        acts=tuple(
            Act(key=key, verb=verb, before=tuple(Identity(*who) for who in before), settled=settled)
            for key, verb, before, settled in data["acts"]
        ),
    )


def fingerprint(command: Sequence[str]) -> str:
    """Return a short digest of a command, to notice that what runs is an earlier one."""
    return hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]


def _nothing(point: str) -> None:
    """Do nothing at a point between two steps; tests crash there."""


@attrs.define(kw_only=True)
class Launcher:
    """The roll of one service's workload in one folder. Every method is synchronous; call it off the loop."""

    folder: Path
    service: str
    pause: Callable[[str], None] = _nothing
    spawn: Callable[..., int] = spawn.launch

    @property
    def stem(self) -> str:
        """The service's name as a file name: no name leads out of the folder, and no two names meet."""
        readable = re.sub(r"[^A-Za-z0-9_-]", "_", self.service)[:60]
        return f"{readable}-{hashlib.sha256(self.service.encode()).hexdigest()[:12]}"

    @property
    def mark(self) -> str:
        """The name of this workload in the environment of its processes: this service, of this folder."""
        return hashlib.sha256(f"{self.folder.resolve()}\0{self.service}".encode()).hexdigest()[:24]

    def marks(self, number: int | None = None) -> tuple[bytes, ...]:
        """Return what finds the processes of the workload, or of one copy of it, by their environment."""
        return (f"\0{WORKLOAD_MARK}={self.mark}/{'' if number is None else f'{number}/'}".encode(),)

    def path(self, suffix: str) -> Path:
        """Return a file of this workload."""
        return self.folder / f"{self.stem}.{suffix}"

    # -- the lock: one act at a time, among all managers -------------------------------------------------------------

    def try_lock(self) -> int | None:
        """Take the workload for one act; None while another act, here or in another process, has it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if _flock(descriptor):
            return descriptor
        os.close(descriptor)
        return None

    @staticmethod
    def unlock(descriptor: int) -> None:
        """Give it back, also where a child just forked elsewhere in this program has a copy of the descriptor."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    # -- the file ----------------------------------------------------------------------------------------------------

    def read(self) -> Roll | None:
        """Return the roll as it stands, or None when there is none that can be read.

        After another boot nothing of it lives: only that a person stopped it, and what was asked, is still true.
        """
        try:
            roll = read_back(self.path("json").read_text())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None
        boot = proc.boot()
        if roll.boot != boot:
            return Roll(boot=boot, stopped=roll.stopped, acts=roll.acts)
        return roll

    def write(self, roll: Roll, *, durable: bool = False) -> Roll:
        """Replace the file. `durable` outlives a power cut, which what runs does not need: it does not live either."""
        fresh = self.path("new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(write_down(roll))
            if durable:
                file.flush()
                os.fsync(descriptor)
        fresh.replace(self.path("json"))
        if durable:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return roll

    def settle(self) -> Roll:
        """Return a roll without doubts, and write it. The caller holds the lock.

        A start that nobody wrote down is looked for; where the whole file is missing or damaged, so is everything
        that carries our mark. Raises `ActionFailed` when a process may run that cannot be found.
        """
        roll = self.read()
        if roll is None:
            return self.write(self._lost())
        if roll.launching is not None:
            return self._resolve(roll, roll.launching)
        return roll

    def _lost(self) -> Roll:
        damaged = self.path("json")
        if damaged.exists():
            damaged.replace(self.path("damaged"))  # kept for people
        found: dict[int, Copy] = {}
        for number, token, identity in self._marked():
            if number in found:
                raise ActionFailed(
                    f"{self.service}: the file {damaged} is lost and processes {found[number].identity.pid} and "
                    f"{identity.pid} both look like copy {number}; end one of them"
                )
            found[number] = Copy(identity=identity, since=proc.began(identity), token=token, program="")
        return Roll(boot=proc.boot(), copies=found)

    def _marked(self, token: str | None = None, after: int = 0) -> list[tuple[int, str, Identity]]:
        """Return what we started and nobody wrote down: number, token and identity of each first process.

        A first process leads its own session and does not descend from another that is marked.
        """
        prefix = self.marks()[0]
        gate = self._gate_identity(token) if token else None
        marked: dict[int, tuple[int, str, Identity]] = {}
        parents: dict[int, int] = {}
        for seen in proc.everyone():
            if not seen.alive or seen.identity.start < after or seen.identity.pid == os.getpid():
                continue
            pid = seen.identity.pid
            _, found, rest = proc.environment_of(pid).partition(prefix)
            number, _, given = rest.partition(b"\0")[0].decode(errors="replace").partition("/")
            if not found and gate is not None and _standard_input(pid) == gate and token is not None:
                number, given = "0", token
            elif not found or not number.isdigit() or (token is not None and given != token):
                continue
            parents[pid] = seen.parent
            if seen.session == pid:
                marked[pid] = (int(number), given, seen.identity)
        return [marked[pid] for pid in sorted(marked) if parents[pid] not in parents]

    # -- one start ---------------------------------------------------------------------------------------------------

    def _gate(self, token: str) -> Path:
        return self.path(f"{token}.gate")

    def _gate_identity(self, token: str) -> tuple[int, int] | None:
        try:
            status = self._gate(token).stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _resolve(self, roll: Roll, launching: Launching) -> Roll:
        deadline = time.monotonic() + _BECOMING
        while True:
            # Asked before looking: what has given the gate up by now has its environment in place by now.
            locked = self._is_locked(launching.token)
            found = self._marked(launching.token, launching.after)
            if found or not locked:
                break
            if time.monotonic() >= deadline:
                raise ActionFailed(
                    f"{self.service}: a process started by an earlier selfheal holds {self._gate(launching.token)} and "
                    "is not the program yet; look for it (fuser shows who) and end it, or wait"
                )
            time.sleep(0.01)
        copies = dict(roll.copies)
        if found:
            identity = min(found, key=lambda each: each[2].start)[2]
            copies[launching.number] = Copy(
                identity=identity, since=proc.began(identity), token=launching.token, program=""
            )
        roll = self.write(attrs.evolve(roll, copies=copies, launching=None))
        self._gate(launching.token).unlink(missing_ok=True)
        return roll

    def _is_locked(self, token: str) -> bool:
        try:
            descriptor = os.open(self._gate(token), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            return not _flock(descriptor)
        finally:
            os.close(descriptor)

    def start(
        self,
        roll: Roll,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path | None,
        output: int,
    ) -> Roll:
        """Start one copy and write it down. The caller holds the lock and has seen that the copy does not run.

        Raises `ActionFailed` when the program could not be started.
        """
        token = secrets.token_hex(8)
        self.pause("before the intent")
        intent = Launching(number=number, token=token, after=proc.ticks() - os.sysconf("SC_CLK_TCK"))
        self.write(attrs.evolve(roll, launching=intent))
        self.pause("after the intent")
        gate = os.open(self._gate(token), os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        recorded = False
        try:
            if not _flock(gate):
                raise ActionFailed(f"{self.service}: {self._gate(token)} was locked by somebody else; try again")
            self.pause("after the gate")
            marked = {**environment, WORKLOAD_MARK: f"{self.mark}/{number}/{token}"}
            try:
                pid = self.spawn(command, environment=marked, cwd=cwd, stdin=gate, output=output)
            except OSError as error:
                self.write(attrs.evolve(roll, launching=None))
                recorded = True
                raise ActionFailed(f"{command[0]} could not be started: {error}") from error
            self.pause("after the program")
            seen = proc.look(pid)
            identity = seen.identity if seen is not None else Identity(pid, 0)
            copy = Copy(identity=identity, since=time.time(), token=token, program=fingerprint(command))
            roll = self.write(attrs.evolve(roll, copies={**roll.copies, number: copy}, launching=None, stopped=False))
            recorded = True
            self.pause("after the record")
            return roll
        finally:
            if recorded:
                self._gate(token).unlink(missing_ok=True)
            os.close(gate)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _standard_input(pid: int) -> tuple[int, int] | None:
    try:
        status = Path(f"/proc/{pid}/fd/0").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


# -- the output file -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_to(path: Path) -> Iterator[int]:
    """Open the file a program writes to. Raises `ActionFailed` for anything but a file or a device such as /dev/null.

    Appending, so that truncating it under the program starts it anew at its beginning.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ActionFailed(f"the output {path} cannot be opened: {error}") from error
    try:
        kind = os.fstat(descriptor).st_mode >> 12
        if kind not in (0o10, 0o2):
            raise ActionFailed(
                f"the output {path} is neither a file nor a device; a pipe would end the program with us"
            )
        os.set_blocking(descriptor, True)
        yield descriptor
    finally:
        os.close(descriptor)


def trim(path: Path, limit: int) -> None:
    """Keep the file below `limit` bytes: its last `limit` bytes go to `<name>.1`, and it starts anew.

    What is written between the copy and the truncation is lost. Between two calls the file may grow beyond the limit.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        size = os.fstat(descriptor).st_size
        if size <= limit:
            return
        old = path.with_name(path.name + ".1")
        kept = os.open(old, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            at = size - limit
            while at < size and (sent := os.sendfile(kept, descriptor, at, min(size - at, 1 << 20))):
                at += sent
        finally:
            os.close(kept)
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
