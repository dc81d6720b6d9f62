"""Running argument lists: nothing hangs, nothing grows, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from tests.broken import fails_when

from selfheal.builtin import proc, spawn
from selfheal.builtin.spawn import Finished, run
from selfheal.secret import Secret

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> str:
    """Plugin coroutines run on asyncio, whatever the host runs."""
    return "asyncio"


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    """A file in which test programs write who they are; whoever is left at the end is killed, and only they."""
    path = tmp_path / "notes"
    path.touch()
    yield path
    for identity in written(path):
        proc.deliver(identity, signal.SIGKILL)


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-S", "-c", NOTE + code, *map(str, arguments)]


# Each test program can note its own pid and start time; `detach` is the classic double fork.
NOTE = """
import os, sys, time, signal
def note(path=sys.argv[1] if len(sys.argv) > 1 else None):
    start = open("/proc/self/stat").read().rpartition(")")[2].split()[19]
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {start}\\n")
def detach():
    if os.fork():
        os.wait()
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True
"""


def written(path: Path) -> list[proc.Identity]:
    return [proc.Identity(*map(int, line.split())) for line in path.read_text().splitlines()]


async def until_written(path: Path, count: int) -> list[proc.Identity]:
    await until(lambda: len(written(path)) >= count)
    return written(path)


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not true():  # noqa: ASYNC110  # other processes set no event of ours
            await anyio.sleep(0.005)


def nobody_lives(path: Path) -> bool:
    return not any(proc.is_alive(identity) for identity in written(path))


async def test_an_exit_code_and_both_streams_are_returned() -> None:
    finished = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10)
    assert finished == Finished(code=3, output="out\nerr\n")


async def test_a_signal_is_told_from_an_exit_code() -> None:
    assert await run(["sh", "-c", "kill -9 $$"], timeout=10) == Finished(signal=9)


async def test_what_is_given_on_standard_input_is_read_and_otherwise_there_is_nothing_to_read() -> None:
    assert (await run(["cat"], timeout=10, stdin=b"x" * 200_000, limit=1_000_000)).output == "x" * 200_000
    assert await run(["cat"], timeout=10) == Finished(code=0)


async def test_arguments_reach_the_program_as_they_are_and_no_shell_reads_them(tmp_path: Path) -> None:
    tricky = ["$(touch pwned)", "; touch pwned", "`touch pwned`", "a b", "", "*", "-n", "\n"]
    code = "import sys; print(sys.argv[1:])"
    finished = await run([sys.executable, "-S", "-c", code, *tricky], timeout=10, cwd=tmp_path)
    assert finished.output == f"{tricky!r}\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [("ls -l", TypeError), ([], ValueError), ([""], ValueError), (["a\0b"], ValueError), (["sleep", 1], TypeError)],
)
async def test_what_is_no_argument_list_is_refused(arguments: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        await run(arguments, timeout=1)


async def test_a_missing_program_is_an_os_error_and_leaks_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        await run(["/no/such/program"], timeout=1)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_flood_of_output_is_cut_costs_no_memory_and_little_processor() -> None:
    used = time.process_time()
    finished = await run(["yes"], timeout=1.0, limit=1000)
    assert finished.expired
    assert finished.truncated
    assert finished.output == "y\n" * 500
    assert time.process_time() - used < 0.5


async def test_a_program_with_more_output_than_is_kept_still_ends_by_itself() -> None:
    finished = await run([sys.executable, "-S", "-c", "print('z' * 500_000)"], timeout=20, limit=100)
    assert finished == Finished(code=0, output="z" * 100, truncated=True)


async def test_a_grandchild_that_holds_the_pipe_open_keeps_nobody_waiting(notes: Path) -> None:
    began = time.monotonic()
    code = "if os.fork(): print('done', flush=True); os._exit(0)\nnote(); time.sleep(60)"
    finished = await run(python(code, notes), timeout=30)
    assert finished == Finished(code=0, output="done\n")
    assert time.monotonic() - began < 10
    (grandchild,) = await until_written(notes, 1)
    assert proc.is_alive(grandchild), "a command may have been meant to start it"


async def test_a_sweep_kills_what_stayed_in_the_group_of_a_command_that_ended(notes: Path) -> None:
    code = """
if os.fork():
    while not os.path.getsize(sys.argv[1]): time.sleep(0.01)
    os._exit(0)
note(); time.sleep(60)"""
    assert (await run(python(code, notes), timeout=30, sweep=True)).code == 0
    assert await proc.gone(written(notes)[0], 5)


@fails_when("only the program itself is ended")
async def test_s25_a_command_that_hangs_is_gone_at_its_deadline_with_its_whole_tree(notes: Path) -> None:
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for depth in range(3):
    note()
    if os.fork():
        break
time.sleep(60)"""
    began = time.monotonic()
    finished = await run(python(code, notes), timeout=1.0, grace=0.2)
    assert finished.expired
    assert finished.escaped == ()
    assert finished.code is None
    assert 1.0 <= time.monotonic() - began < 5
    assert len(written(notes)) == 3
    assert nobody_lives(notes)


@fails_when("who has left the group is not found")
async def test_s25_daemons_that_left_parent_group_and_session_are_found_and_ended(notes: Path) -> None:
    code = "note()\nif detach(): note()\ntime.sleep(60)"
    finished = await run(python(code, notes), timeout=1.0, grace=0.2)
    assert finished.escaped == ()
    assert len(written(notes)) == 2
    assert nobody_lives(notes)


async def test_a_stopped_command_is_continued_so_that_it_can_end(notes: Path) -> None:
    code = """
def bye(*_):
    print("bye", flush=True); os._exit(0)
signal.signal(signal.SIGTERM, bye)
note(); os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)"""
    finished = await run(python(code, notes), timeout=1.0, grace=5.0)
    assert finished == Finished(expired=True, output="bye\n")
    assert len(written(notes)) == 1
    assert nobody_lives(notes)


async def test_a_command_may_clean_up_on_sigterm_and_is_heard(notes: Path) -> None:
    code = """
def bye(*_):
    print("bye", flush=True); os._exit(0)
signal.signal(signal.SIGTERM, bye)
print("hello", flush=True); time.sleep(60)"""
    finished = await run(python(code, notes), timeout=1.0, grace=5.0)
    assert finished == Finished(expired=True, output="hello\nbye\n")


@fails_when("only the program itself is ended")
@pytest.mark.parametrize("shell", ["anyio", "asyncio", "asyncio twice"])
async def test_s25_a_cancelled_command_takes_its_tree_with_it(notes: Path, shell: str) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); note()\nif not os.fork(): note()\ntime.sleep(60)"
    if shell == "anyio":
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: run(python(code, notes), timeout=60, grace=0.1))
            await until_written(notes, 2)
            group.cancel_scope.cancel()
    else:
        task = asyncio.ensure_future(run(python(code, notes), timeout=60, grace=0.3))
        await until_written(notes, 2)
        task.cancel()
        if shell == "asyncio twice":
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert nobody_lives(notes)


async def test_what_cannot_be_ended_is_reported(monkeypatch: pytest.MonkeyPatch, notes: Path) -> None:
    """Every signal is lost, as on a process that waits for a device: it is named, and the call still returns."""
    monkeypatch.setattr(proc, "deliver", lambda identity, number: False)
    monkeypatch.setattr(proc, "to_group", lambda group, number: None)
    finished = await run(python("note(); time.sleep(60)", notes), timeout=0.5, grace=0.1)
    (stuck,) = written(notes)
    assert finished.expired
    assert finished.escaped == (stuck.pid,)
    monkeypatch.undo()
    proc.deliver(stuck, signal.SIGKILL)
    await until(lambda: proc.look(stuck.pid) is None)  # not even a zombie is left, though nobody awaits it any more


async def test_a_status_that_somebody_else_reaped_is_unknown_not_zero() -> None:
    old = await anyio.to_thread.run_sync(lambda: signal.getsignal(signal.SIGCHLD))
    done = threading.Event()

    def steal() -> None:
        while not done.is_set():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.0005)

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        for _ in range(20):
            finished = await run(["sh", "-c", "exit 1"], timeout=10)
            assert finished.code in (None, 1)
    finally:
        done.set()
        thief.join()
    assert signal.getsignal(signal.SIGCHLD) == old


async def test_the_environment_is_fixed_and_ours_only_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("GIVEN", "yes")
    environment = spawn.surroundings({"TOKEN": Secret("s3cret"), "PATH": "/usr/bin:/bin"}, inherit=["GIVEN"])
    shown = (await run(["env"], timeout=10, environment=environment)).output.splitlines()
    assert "TOKEN=s3cret" in shown
    assert "GIVEN=yes" in shown
    assert "PATH=/usr/bin:/bin" in shown
    assert not any("hunter2" in line for line in shown)


async def test_no_descriptor_of_ours_reaches_the_child(notes: Path) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)  # as a web server does with its listening socket
    try:
        finished = await run(["sh", "-c", "ls /proc/$$/fd"], timeout=10)
        assert set(finished.output.split()) <= {"0", "1", "2", "10", "255"}
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_pid_that_is_somebody_elses_by_now_is_not_signalled() -> None:
    """The same number with another start time is another process."""
    mine = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        seen = proc.look(mine.pid)
        assert seen is not None
        stale = proc.Identity(mine.pid, seen.identity.start - 1)
        assert not proc.is_alive(stale)
        assert not proc.deliver(stale, signal.SIGKILL)
        assert proc.family([stale]) == set()
        assert await proc.Family(roots={stale}).end(grace=0.1) == ()
        assert proc.is_alive(seen.identity)
    finally:
        mine.kill()
        await mine.wait()


async def test_we_and_our_ancestors_are_never_part_of_a_family() -> None:
    me = proc.look(os.getpid())
    parent = proc.look(os.getppid())
    assert me is not None
    assert parent is not None
    assert not {me.identity, parent.identity} & proc.family([me.identity, parent.identity])


async def test_a_zombie_is_not_alive_although_kill_says_so() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    pid = spawn.launch(["true"], environment=spawn.surroundings({}), cwd=None, stdin=null, output=null)
    os.close(null)
    seen = proc.look(pid)
    assert seen is not None
    assert await proc.gone(seen.identity, 5)
    os.kill(pid, 0)  # says it lives
    assert not proc.is_alive(seen.identity)
    assert await proc.gone(seen.identity, 0)
    descriptor = proc.hold(seen.identity)
    assert descriptor is not None
    assert proc.reap(descriptor) == proc.Ending(code=0)
    os.close(descriptor)
    assert proc.hold(seen.identity) is None


async def test_a_process_whose_first_thread_ended_is_alive() -> None:
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    code += "ctypes.CDLL(None).pthread_exit(None)"
    child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", code, stderr=asyncio.subprocess.DEVNULL)
    try:
        await until(lambda: (seen := proc.look(child.pid)) is not None and seen.state == "Z")
        seen = proc.look(child.pid)
        assert seen is not None
        assert seen.alive
        assert not await proc.gone(seen.identity, 0)
    finally:
        child.kill()
        await child.wait()


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_is_not_lost_when_the_end_is_heard_at_the_same_moment(turns: int) -> None:
    """The turns between the two are those of one loop: what is cancelled before it has answered, ends cancelled."""
    ours, theirs = os.pipe()
    try:
        waiting = asyncio.ensure_future(proc.readable(ours, 5.0))
        await asyncio.sleep(0.01)  # it waits now
        os.write(theirs, b"x")
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            assert waiting.result()
    finally:
        os.close(ours)
        os.close(theirs)
