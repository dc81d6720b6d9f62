"""The workload `process`: a program that selfheal starts and stops itself.

Owns what the verbs mean for it. Who runs, and that nothing is started twice, is the business of `launch`; that a
family of processes is gone, of `proc`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import attrs

from selfheal.builtin import launch, options, proc, spawn
from selfheal.builtin.launch import Act, Launcher, Roll
from selfheal.builtin.proc import Ending, Family, Identity
from selfheal.core.bounds import seconds, whole
from selfheal.core.model import Instance, Run, Settled
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Context
from selfheal.secret import Secret

T = TypeVar("T")

ABSENT: Final = "absent"
"""The instance id of a workload of which nothing was ever started in this boot of the machine."""

MOST: Final = 1000
"""Copies a workload may have at most."""

_PATIENCE: Final = 5.0  # seconds an act waits for another act to end
_RESERVE: Final = 2.5  # seconds of an action's time kept back for the kill and the start after a slow stop
_REMNANT_GRACE: Final = 0.5  # seconds between SIGTERM and SIGKILL for what a process left behind


def default_folder() -> Path:
    """Return where rolls are kept when nobody says: the platform's state directory."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0]) / "processes"
    if os.geteuid() == 0:
        return Path("/var/lib/selfheal/processes")
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "selfheal" / "processes"


@attrs.define(eq=False)
class _Cell:
    """What one workload object remembers while this manager runs; nothing that a successor would need."""

    lock: threading.Lock = attrs.field(factory=threading.Lock)
    acting: int = 0
    endings: dict[Identity, Ending] = attrs.field(factory=dict)
    listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = attrs.field(factory=list)

    def ring(self) -> None:
        """Wake every watcher, on whatever loop it lives."""
        with self.lock:
            listeners = list(self.listeners)
        for loop, bell in listeners:
            with contextlib.suppress(RuntimeError):  # a loop that has closed has no watcher either
                loop.call_soon_threadsafe(bell.set)

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Have an event that is set at each ring."""
        mine = (asyncio.get_running_loop(), asyncio.Event())
        with self.lock:
            self.listeners.append(mine)
        try:
            yield mine[1]
        finally:
            with self.lock:
                self.listeners.remove(mine)

    def how_it_ended(self, identity: Identity) -> Ending:
        """Return how a process that is no longer alive ended, collecting it if it is a child of ours."""
        with self.lock:
            known = self.endings.get(identity)
            if known is not None:
                return known
            descriptor = proc.hold(identity)
            if descriptor is None:
                return Ending()
            try:
                ending = proc.reap(descriptor)
            finally:
                os.close(descriptor)
            if ending is None:
                return Ending()
            self.endings[identity] = ending
            while len(self.endings) > MOST:
                del self.endings[next(iter(self.endings))]
            return ending


def _signal(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not hasattr(signal, value) or not value.startswith("SIG") or "_" in value:
        raise ValueError(f'{attribute.name}: {value!r} is no signal; write a name such as "SIGTERM" or "SIGINT"')


@attrs.frozen(kw_only=True)
class ProcessWorkload:
    """Run a program as this service: start it, stop it, restart it, run several copies of it.

    The program leads a session of its own, writes to a file and never to a pipe, and so outlives a crash of selfheal,
    whose successor adopts it by pid and start time. It must stay in the foreground: what it leaves behind when it ends
    is ended before it is started again.
    """

    kind: ClassVar[str] = "process"

    #: The program and its arguments, as a list.
    command: tuple[str, ...] = attrs.field(converter=spawn.checked)
    #: Copies that run.
    count: int = whole(1, 1, MOST)
    #: The directory to run it in; by default, selfheal's own.
    cwd: Path | None = attrs.field(default=None, converter=options.path)
    #: Variables it is given, over the few that every program is given; values may be secrets.
    environment: Mapping[str, str | Secret] = attrs.field(factory=dict, converter=spawn.named)
    #: Names of further variables of selfheal's own that it is given.
    inherit: tuple[str, ...] = attrs.field(default=(), converter=options.texts)
    #: The signal that asks each first process to end.
    stop_signal: str = attrs.field(default="SIGTERM", validator=_signal)
    #: Seconds after which what has not ended is killed, with everything it started.
    stop_timeout: float = seconds(10.0, 0.0, 3600.0)
    #: Where both streams go; by default, a `.log` beside the roll. A file, or a device such as /dev/null.
    output: Path | None = attrs.field(default=None, converter=options.path)
    #: Bytes from which on an inspection moves the newest part of the output to `<output>.1` and empties it. Between
    #: two inspections it may grow beyond, and what is written during the move is lost.
    output_limit: int = whole(1 << 20, 1 << 12, 1 << 40)
    #: Where the roll of its processes is kept: the `state_dir` of the fleet. Two managers must not share one.
    state_directory: Path | None = attrs.field(default=None, converter=options.path)
    #: Whether a clean stop of selfheal stops it.
    stop_with_selfheal: bool = True
    #: Whether selfheal starts it when it finds it absent at its own start.
    autostart: bool = True
    _cell: _Cell = attrs.field(factory=_Cell, init=False, eq=False, repr=False)

    # -- who runs ----------------------------------------------------------------------------------------------------

    async def inspect(self, context: Context) -> Instance:
        """Return who runs now: `pid:start time` of each copy, dead ones included, so that dying changes no identity.

        EXITED when no copy runs and nobody asked for that. Raises `ActionFailed` when a process may run that cannot
        be found, `OSError` when `/proc` or the state directory cannot be read.
        """
        instance, _ = await proc.aside(self._survey, self._launcher(context.service))
        return instance

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        """Yield the instance whenever it has changed, a death within milliseconds; nothing while an act is under way.

        The first one is yielded only if it has already ended.
        """
        known: tuple[str, Run, int] | None = None
        launcher = self._launcher(context.service)
        with self._cell.listening() as bell:
            while True:
                bell.clear()
                alive: frozenset[Identity] = frozenset()
                if not self._cell.acting:
                    instance, alive = await proc.aside(self._survey, launcher)
                    if self._cell.acting:
                        continue  # it began while we looked: what was seen may be half of it
                    now = (instance.id, instance.run, instance.count)
                    if now != known and (known is not None or instance.run is Run.EXITED):
                        yield instance
                    known = now
                await _first_end(alive, bell)

    def _launcher(self, service: str) -> Launcher:
        return Launcher(folder=self.state_directory or default_folder(), service=service)

    async def doctor(self, context: Context) -> list[Problem]:
        """Say whether its program is there, and its output and roll may be written; nothing is started."""
        return await context.blocking(self._prove, self._launcher(context.service))

    def _prove(self, launcher: Launcher) -> list[Problem]:
        problems = spawn.missing(self.command, "workload.command", cwd=self.cwd, environment=self.environment)
        for option, written in (("output", self._written(launcher)), ("state_directory", launcher.path("json"))):
            places = (written, *written.absolute().parents)
            nearest = next(path for path in places if os.path.exists(path))  # noqa: PTH110  # Path's raises on EACCES
            if not os.access(nearest, os.W_OK):
                message = f"{written} may not be written by the user that asks"
                problems.append(
                    Problem(path=f"workload.{option}", message=message, hint="give another, or the right to")
                )
        return problems

    def _written(self, launcher: Launcher) -> Path:
        return self.output or launcher.path("log")

    def _survey(self, launcher: Launcher) -> tuple[Instance, frozenset[Identity]]:
        untrimmed = ""
        try:
            launch.trim(self._written(launcher), self.output_limit)
        except OSError as error:
            untrimmed = f"its output cannot be kept below its limit: {error}"
        roll = launcher.read()
        if roll is None or roll.launching is not None:
            lock = launcher.try_lock()
            if lock is None:
                return Instance(id=_id(roll), run=Run.STARTING, count=0, detail="a start is under way"), frozenset()
            try:
                roll = launcher.settle()
            finally:
                launcher.unlock(lock)
        alive = frozenset(copy.identity for copy in roll.copies.values() if proc.is_alive(copy.identity))
        return self._instance(roll, alive, untrimmed), alive

    def _instance(self, roll: Roll, alive: frozenset[Identity], untrimmed: str) -> Instance:
        dead = {number: copy for number, copy in roll.copies.items() if copy.identity not in alive}
        said = [f"copy {number} ended: {self._cell.how_it_ended(copy.identity)}" for number, copy in dead.items()]
        if alive:
            run = Run.RUNNING
            if roll.stopped:
                said.insert(0, "was asked to stop and still runs")
            now = launch.fingerprint(self.command)
            if any(copy.program not in ("", now) for copy in roll.copies.values() if copy.identity in alive):
                said.append("runs an earlier command; a restart brings the one configured now")
        elif roll.stopped:
            run = Run.STOPPED
        else:
            run = Run.EXITED if roll.copies else Run.ABSENT
        if len(alive) != self._wanted(roll) and alive:
            said.insert(0, f"{len(alive)} of {self._wanted(roll)} copies run")
        return Instance(
            id=_id(roll),
            run=run,
            since=max((copy.since for copy in roll.copies.values()), default=None),
            count=len(alive),
            detail="; ".join(filter(None, [*said[:8], untrimmed])),
        )

    def _wanted(self, roll: Roll) -> int:
        return max(self.count, roll.count or 0)

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def verbs(self) -> frozenset[str]:
        """Return what this workload can be asked to do."""
        return frozenset({"restart", "start", "stop", "scale_up"})

    async def restart(self, context: ActionContext) -> None:
        """Stop every copy and what came from it, then start them.

        Raises `ActionFailed` when one could not be stopped, and then starts none, or when one could not be started.
        """

        async def work(launcher: Launcher, roll: Roll) -> None:
            await self._end(context, launcher, roll, tuple(roll.copies), everything=True)
            await self._start_missing(launcher, surplus=False)

        await self._act(context, "restart", work)

    async def start(self, context: ActionContext) -> None:
        """Start the copies that do not run; those that run are left alone."""

        async def work(launcher: Launcher, roll: Roll) -> None:
            await self._end_remnants(context, launcher, roll)
            await self._start_missing(launcher)

        await self._act(context, "start", work)

    async def stop(self, context: ActionContext) -> None:
        """Stop every copy, as a person's wish: it is remembered before the first signal, and nothing heals it."""

        async def work(launcher: Launcher, roll: Roll) -> None:
            roll = await _aside(launcher.write, attrs.evolve(roll, stopped=True), durable=True)
            await self._end(context, launcher, roll, tuple(roll.copies), everything=True)

        await self._act(context, "stop", work)

    async def scale_up(self, context: ActionContext) -> str:
        """Run at least `arguments["to"]` copies from now on; fewer than run already changes nothing (S31)."""
        to = context.arguments.get("to")
        if not isinstance(to, int) or isinstance(to, bool) or not 1 <= to <= MOST:
            raise ActionFailed(f'scale_up needs "to", a whole number from 1 to {MOST}, and got {to!r}')

        async def work(launcher: Launcher, roll: Roll) -> None:
            roll = await _aside(launcher.write, attrs.evolve(roll, count=max(self._wanted(roll), to)))
            await self._end_remnants(context, launcher, roll)
            await self._start_missing(launcher)

        await self._act(context, "scale_up", work)
        return f"at least {to} copies run"

    async def probe(self, context: ActionContext) -> Settled | None:
        """Say from the roll what became of `context.key`; None when the roll is lost or has forgotten it."""

        def look() -> Settled | None:
            launcher = self._launcher(context.service)
            if launcher.read() is None:
                return None
            instance, alive = self._survey(launcher)
            roll = launcher.read()
            if roll is None or instance.run is Run.STARTING:
                return None
            act = roll.act(context.key)
            if act is None:
                return None if roll.forgetful else Settled.NOT_STARTED
            if act.settled:
                return Settled(act.settled)
            if act.verb == "stop":
                done = not alive
            else:
                done = len(alive) >= self._wanted(roll) and not (act.verb == "restart" and alive & set(act.before))
            return Settled.DONE if done else Settled.INTERRUPTED

        return await proc.aside(look)

    async def release(self, context: Context, *, stopping: bool) -> None:
        """Let go of the program at a clean stop of selfheal (`stopping`) or at a reload.

        When selfheal stops, the program is stopped unless `stop_with_selfheal` is false, and is absent afterwards, so
        that the next start of selfheal starts it; a person's stop stays one. Raises `ActionFailed` when it would not
        end.
        """
        if not (stopping and self.stop_with_selfheal):
            return

        async def work(launcher: Launcher, roll: Roll) -> None:
            await self._end(context, launcher, roll, tuple(roll.copies), everything=True)
            await _aside(launcher.write, attrs.evolve(roll, copies={}, count=None))

        await self._locked(context, work)

    # -- how ---------------------------------------------------------------------------------------------------------

    async def _locked(self, context: Context, work: Callable[[Launcher, Roll], Awaitable[None]]) -> None:
        """Do `work` with the workload to itself, among all managers; watchers hear of it when it is over."""
        launcher = self._launcher(context.service)
        deadline = time.monotonic() + min(_PATIENCE, context.remaining)
        # Two system calls on a file of ours: cheap enough for the loop, and a cancellation cannot lose the lock.
        while (lock := launcher.try_lock()) is None:
            if time.monotonic() >= deadline:
                raise ActionFailed(f"{context.service}: another act, perhaps of another selfheal, is under way")
            await asyncio.sleep(0.02)
        self._cell.acting += 1
        try:
            await work(launcher, await _aside(launcher.settle))
        finally:
            self._cell.acting -= 1
            launcher.unlock(lock)
            self._cell.ring()

    async def _act(self, context: ActionContext, verb: str, work: Callable[[Launcher, Roll], Awaitable[None]]) -> None:
        """Do `work` under the key of the context, so that `probe` can tell what became of it."""

        async def remembered(launcher: Launcher, roll: Roll) -> None:
            expected = context.expected
            if expected is not None and expected.run is not Run.UNKNOWN and expected.id != _id(roll):
                raise ActionFailed(
                    f"{context.service} is {_id(roll)} by now, not {expected.id} whose failure was seen; left alone"
                )
            before = tuple(copy.identity for copy in roll.copies.values())
            act = Act(key=context.key, verb=verb, before=before)
            roll = await _aside(launcher.write, roll.remember(act))
            settled = Settled.FAILED
            try:
                await work(launcher, roll)
                settled = Settled.DONE
            except OSError as error:
                raise ActionFailed(f"{context.service}: {verb}: {error}") from error
            except asyncio.CancelledError:
                settled = Settled.INTERRUPTED
                raise
            finally:
                # Settled in the roll that the work has left behind, whatever it has become.
                if settled is not Settled.INTERRUPTED:
                    await _aside(_settle, launcher, attrs.evolve(act, settled=settled.value))

        await self._locked(context, remembered)

    async def _end_remnants(self, context: Context, launcher: Launcher, roll: Roll) -> None:
        """End what copies that do not run have left behind, lest a new one finds its place taken."""
        alive = await _aside(_alive, roll)
        missing = tuple(
            number
            for number in {*roll.copies, *range(self._wanted(roll))}
            if number not in roll.copies or roll.copies[number].identity not in alive
        )
        await self._end(context, launcher, roll, missing)

    async def _end(
        self, context: Context, launcher: Launcher, roll: Roll, numbers: Sequence[int], *, everything: bool = False
    ) -> None:
        """End some copies with all that came from them, or raise `ActionFailed`."""
        firsts = {roll.copies[number].identity for number in numbers if number in roll.copies}
        marks = launcher.marks() if everything else tuple(m for number in numbers for m in launcher.marks(number))
        whole_family = Family(roots=set(firsts), marks=marks)
        # Looked at before anything ends: children of a dead process show no longer whose they were.
        alive = await proc.aside(whole_family.alive)
        number = getattr(signal, self.stop_signal)
        deadline = time.monotonic() + min(self.stop_timeout, max(0.1, context.remaining - _RESERVE))
        asked = [identity for identity in firsts & alive if proc.deliver(identity, number)]
        for identity in asked:
            proc.deliver(identity, signal.SIGCONT)  # a stopped process cannot obey
        in_time = True
        for identity in asked:
            in_time &= await proc.gone(identity, deadline - time.monotonic())
        left = await proc.uninterrupted(whole_family.end(grace=_REMNANT_GRACE if in_time else 0.0)) if alive else ()
        for identity in firsts:
            self._cell.how_it_ended(identity)
        if left:
            pids = ", ".join(map(str, left))
            raise ActionFailed(
                f"{context.service}: process {pids} did not end, not even by SIGKILL (it may wait for a device, be "
                "frozen, or belong to another user); nothing was started beside it"
            )

    async def _start_missing(self, launcher: Launcher, *, surplus: bool = True) -> None:
        def start() -> None:
            roll = launcher.settle()
            wanted = self._wanted(roll)
            if not surplus:
                kept = {number: copy for number, copy in roll.copies.items() if number < wanted}
                roll = attrs.evolve(roll, copies=kept)
            alive = _alive(roll)
            environment = spawn.surroundings(self.environment, self.inherit)
            with launch.written_to(self._written(launcher)) as output:
                for number in range(wanted):
                    if number not in roll.copies or roll.copies[number].identity not in alive:
                        roll = launcher.start(roll, number, self.command, environment, self.cwd, output)

        await _aside(start)


def _id(roll: Roll | None) -> str:
    copies = roll.copies if roll is not None else {}
    return ",".join(str(copies[number].identity) for number in sorted(copies)) or ABSENT


def _alive(roll: Roll) -> frozenset[Identity]:
    return frozenset(copy.identity for copy in roll.copies.values() if proc.is_alive(copy.identity))


def _settle(launcher: Launcher, act: Act) -> None:
    roll = launcher.read()
    if roll is not None:
        launcher.write(roll.remember(act))


async def _aside(function: Callable[..., T], /, *args: Any, **options: Any) -> T:
    """Run one step that changes the roll off the loop, and to its end: a lock is held and must outlast it."""
    return await proc.uninterrupted(proc.aside(lambda: function(*args, **options)))


async def _first_end(alive: frozenset[Identity], bell: asyncio.Event) -> None:
    """Wait until one of `alive` has ended, or the bell rings."""
    loop = asyncio.get_running_loop()
    held: list[int] = []
    try:
        for identity in alive:
            descriptor = proc.hold(identity)
            if descriptor is None:
                return
            held.append(descriptor)
            loop.add_reader(descriptor, bell.set)
        await bell.wait()
    finally:
        for descriptor in held:
            loop.remove_reader(descriptor)
            os.close(descriptor)
