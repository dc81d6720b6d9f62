"""A manager that is killed at any instant is succeeded by one that adopts what runs and starts nothing twice."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import pytest

from selfheal.builtin import launch, proc
from selfheal.builtin.launch import Launcher
from selfheal.builtin.process import ProcessWorkload
from selfheal.core.model import Cause, Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal.plugins import HealthCheck, Workload
from selfheal.testing.crashes import Crash, live

if TYPE_CHECKING:
    from tests.builtin.process_scripts import manage
else:
    from process_scripts import manage

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

# The program holds a lock as long as it lives: a second one beside it says so, whoever started it.
PROGRAM = """
import fcntl, os, sys, time
lock = open(sys.argv[1] + ".lock", "w")
start = open("/proc/self/stat").read().rpartition(")")[2].split()[19]
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    start += " TWICE"
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()} {start}\\n")
time.sleep(600)
"""


@attrs.define(kw_only=True)
class Given:
    """A context as the runner would give it."""

    service: str = "importer"
    remaining: float = 30.0
    kept: dict[str, Any] = attrs.field(factory=dict)
    key: str = "after"
    verb: str = "restart"
    incident: int = 1
    attempt: int = 1
    cause: Cause | None = None
    expected: Instance | None = None
    check: HealthCheck | None = None
    workload: Workload | None = None
    arguments: Mapping[str, Any] = attrs.field(factory=dict)

    async def blocking(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@attrs.frozen
class Scene:
    """A folder, a program, and the managers that come and go."""

    root: Path

    @property
    def notes(self) -> Path:
        return self.root / "notes"

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-S", "-c", PROGRAM, str(self.notes)]

    @property
    def workload(self) -> ProcessWorkload:
        return ProcessWorkload(command=self.command, state_directory=self.root / "state", stop_timeout=5.0)

    @property
    def launcher(self) -> Launcher:
        return Launcher(folder=self.root / "state", service="importer")

    def started(self) -> list[proc.Identity]:
        return [proc.Identity(*map(int, line.split()[:2])) for line in self.notes.read_text().splitlines()]

    def living(self) -> list[proc.Identity]:
        return [identity for identity in self.started() if proc.is_alive(identity)]

    def manager(
        self, verb: str, crash_at: int, *, dawdle: bool = False, command: list[str] | None = None
    ) -> int | None:
        """Run a manager; return its number of steps, or None when it was killed on the way."""
        crash = Crash("step", crash_at) if crash_at else None
        life = live(manage, self.root / "state", verb, dawdle, *(command or self.command), crash=crash)
        return None if life.killed else len(life.points)

    async def until(self, true: Callable[[], bool]) -> None:
        with anyio.fail_after(15):
            while not true():  # noqa: ASYNC110  # other processes set no event of ours
                await anyio.sleep(0.005)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Whoever carries this folder's mark at the end is killed, and only they."""
    scene = Scene(tmp_path)
    scene.notes.touch()
    yield scene
    for identity in {*scene.started(), *(identity for _, _, identity in scene.launcher._marked())}:
        proc.deliver(identity, signal.SIGKILL)


async def test_a_program_outlives_its_manager_and_is_adopted_watched_and_restarted_by_the_next(scene: Scene) -> None:
    assert scene.manager("start", 0)
    await scene.until(lambda: len(scene.living()) == 1)
    (first,) = scene.started()
    successor = scene.workload
    adopted = await successor.inspect(Given())
    assert (adopted.id, adopted.run, adopted.detail) == (str(first), Run.RUNNING, "")
    assert await successor.probe(Given(key="crashed")) is Settled.DONE

    watch = successor.watch(Given())
    dying = asyncio.ensure_future(anext(watch))
    await anyio.sleep(0.2)
    proc.deliver(first, signal.SIGKILL)
    with anyio.fail_after(2):
        instance = await dying
    await watch.aclose()  # type: ignore[attr-defined]
    assert instance.run is Run.EXITED
    assert instance.id == adopted.id
    assert "not known" in instance.detail

    await successor.restart(Given(expected=instance))
    await scene.until(lambda: len(scene.living()) == 1)
    assert scene.living() != [first]
    assert "TWICE" not in scene.notes.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["start", "restart", "scale_up"])
async def test_no_crash_between_any_two_steps_starts_anything_twice(scene: Scene, verb: str) -> None:
    """Kill the manager at every one of its steps; each time its successor is asked for the same thing."""
    crash_at = 0
    finished = None
    outcomes: set[Settled | None] = set()
    while finished is None:
        crash_at += 1
        finished = scene.manager(verb, crash_at)
        successor = scene.workload
        seen = await successor.inspect(Given())
        assert seen.run is not Run.UNKNOWN
        outcome = await successor.probe(Given(key="crashed"))
        outcomes.add(outcome)
        before = list(scene.living())
        if scene.launcher._marked():
            assert seen.run is Run.RUNNING, f"what runs after step {crash_at} is known before anything is started"
        await successor.start(Given(key=f"after {crash_at}", expected=seen))
        await scene.until(lambda: len(scene.living()) == 1)
        if seen.run is Run.RUNNING:
            assert str(scene.living()[0]) == seen.id, f"adopted after step {crash_at}, not replaced"
            assert set(before) <= set(scene.living())
        assert "TWICE" not in scene.notes.read_text(), f"after step {crash_at}"
        assert len(scene.launcher._marked()) == 1
        if verb != "restart":  # begin with nothing each time
            await successor.release(Given(), stopping=True)
            assert scene.living() == []
    assert crash_at > 12, "steps were enumerated"
    assert Settled.DONE in outcomes


async def test_a_manager_killed_between_fork_and_exec_leaves_a_child_that_is_waited_for_and_adopted(
    scene: Scene,
) -> None:
    assert scene.manager("start", 0, dawdle=True) is None
    assert scene.started() == [], "it is not the program yet"
    await scene.workload.start(Given())
    await scene.until(lambda: len(scene.living()) == 1)
    await anyio.sleep(0.2)  # a second one would write, too
    assert len(scene.started()) == 1
    assert (await scene.workload.inspect(Given())).id == str(scene.started()[0])


async def test_an_unrecorded_program_that_overwrote_its_environment_is_found_by_its_standard_input(
    scene: Scene,
) -> None:
    """As nginx and PostgreSQL do to show a title; here the variable is simply gone."""
    command = ["/usr/bin/env", "-i", *scene.command]
    assert scene.manager("start", 0, dawdle=True, command=command) is None
    workload = attrs.evolve(scene.workload, command=command)
    await scene.until(lambda: len(scene.living()) == 1)
    assert scene.launcher._marked() == []
    await workload.start(Given())
    assert (await workload.inspect(Given())).id == str(scene.started()[0])
    await anyio.sleep(0.2)
    assert len(scene.started()) == 1


async def test_a_child_that_never_becomes_the_program_is_a_refusal_with_a_reason(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_BECOMING", 0.2)
    launcher = scene.launcher
    lock = launcher.try_lock()
    assert lock is not None
    token = "0123456789abcdef"
    doubt = launch.Launching(number=0, token=token, after=proc.ticks())
    launcher.write(launch.Roll(boot=proc.boot(), launching=doubt))
    launcher.unlock(lock)
    with launcher._gate(token).open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        with pytest.raises(ActionFailed, match="not the program yet"):
            await scene.workload.start(Given())
        with pytest.raises(ActionFailed, match="not the program yet"):
            await scene.workload.inspect(Given())
    await scene.workload.start(Given())  # the lock is gone, and with it the doubt
    await scene.until(lambda: len(scene.living()) == 1)


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "whole folder"])
async def test_a_lost_roll_is_found_again_by_the_mark_of_its_processes(scene: Scene, damage: str) -> None:
    await scene.workload.start(Given())
    before = await scene.workload.inspect(Given())
    path = scene.launcher.path("json")
    if damage == "missing":
        path.unlink()
    elif damage == "whole folder":
        for file in (scene.root / "state").iterdir():
            file.unlink()
        (scene.root / "state").rmdir()
    else:
        path.write_text("" if damage == "empty" else path.read_text()[:40])
    await scene.workload.start(Given())
    after = await scene.workload.inspect(Given())
    assert (after.id, after.run) == (before.id, Run.RUNNING)
    await scene.until(lambda: len(scene.started()) == 1)


async def test_a_pid_of_an_earlier_boot_is_nobody(scene: Scene) -> None:
    """After a reboot the same pid, even with the same start time, is another process; a person's stop still holds."""
    mine = proc.look(os.getpid())
    assert mine is not None
    stale = launch.Copy(identity=mine.identity, since=0.0, token="t", program="")
    (scene.root / "state").mkdir()
    for stopped, run in [(False, Run.ABSENT), (True, Run.STOPPED)]:
        scene.launcher.write(launch.Roll(boot="an earlier one", copies={0: stale}, stopped=stopped))
        assert (await scene.workload.inspect(Given())).run is run


async def test_a_person_s_stop_is_remembered_even_when_the_manager_dies_on_it(scene: Scene) -> None:
    """Remembered before the first signal: what is found dead then was stopped, and is not healed."""
    crash_at, finished = 0, None
    while finished is None:
        crash_at += 1
        await scene.workload.start(Given(key=f"start {crash_at}"))
        await scene.until(lambda: len(scene.living()) == 1)
        finished = scene.manager("stop", crash_at)
        instance = await scene.workload.inspect(Given())
        for identity in scene.living():
            # A signal that was sent takes a moment to end it.
            if finished is not None or "was asked to stop" in instance.detail:
                await proc.gone(identity, 0.2)
        if not scene.living():
            assert (await scene.workload.inspect(Given())).run is Run.STOPPED
    assert scene.living() == []
    assert await scene.workload.probe(Given(key="crashed")) is Settled.DONE


def test_two_services_and_two_folders_have_different_marks(tmp_path: Path) -> None:
    marks = {
        Launcher(folder=tmp_path / folder, service=service).mark
        for folder in ("a", "b")
        for service in ("x", "y", "x/0")
    }
    assert len(marks) == 6


def test_a_lock_held_by_a_killed_manager_is_free_at_once(tmp_path: Path) -> None:
    launcher = Launcher(folder=tmp_path, service="importer")
    code = (
        "import sys; from pathlib import Path; from selfheal.builtin.launch import Launcher; "
        "lock = Launcher(folder=Path(sys.argv[1]), service='importer').try_lock(); print(lock, flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() != "None"
        assert launcher.try_lock() is None
        holder.kill()
    lock = launcher.try_lock()
    assert lock is not None
    launcher.unlock(lock)
