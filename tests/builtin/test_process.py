"""The workload `process`: real programs, started, watched, stopped, scaled and let go."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import attrs
import pytest
from tests.broken import fails_when

from selfheal.builtin import launch, proc
from selfheal.builtin.launch import Launcher
from selfheal.builtin.process import ABSENT, ProcessWorkload
from selfheal.core.model import Cause, Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal.plugins import HealthCheck, Probing, Scaling, Starting, Watching, Workload
from selfheal.secret import Secret

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

T = TypeVar("T")


@attrs.define(kw_only=True)
class Given:
    """A context as the runner would give it."""

    service: str = "importer"
    remaining: float = 30.0
    kept: MutableMapping[str, Any] = attrs.field(factory=dict)
    key: str = "1/importer/1/0"
    verb: str = "restart"
    incident: int = 1
    attempt: int = 1
    cause: Cause | None = None
    expected: Instance | None = None
    check: HealthCheck | None = None
    workload: Workload | None = None
    arguments: Mapping[str, Any] = attrs.field(factory=dict)

    async def blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        return await anyio.to_thread.run_sync(lambda: function(*args))


@pytest.fixture
def anyio_backend() -> str:
    """Plugin coroutines run on asyncio, whatever the host runs."""
    return "asyncio"


NOTE = """
import os, sys, time, signal
def note(path=sys.argv[1]):
    start = open("/proc/self/stat").read().rpartition(")")[2].split()[19]
    with open(path, "a") as file:
        file.write(f"{os.getpid()} {start}\\n")
"""


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    """A file in which test programs write who they are; whoever is left at the end is killed, and only they."""
    path = tmp_path / "notes"
    path.touch()
    yield path
    for identity in written(path):
        proc.deliver(identity, signal.SIGKILL)
    for _, _, identity in Launcher(folder=tmp_path / "state", service="importer")._marked():
        proc.deliver(identity, signal.SIGKILL)


def written(path: Path) -> list[proc.Identity]:
    return [proc.Identity(*map(int, line.split())) for line in path.read_text().splitlines()]


def living(path: Path) -> list[proc.Identity]:
    return [identity for identity in written(path) if proc.is_alive(identity)]


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(15):
        while not true():  # noqa: ASYNC110  # other processes set no event of ours
            await anyio.sleep(0.005)


def workload(notes: Path, code: str = "note(); time.sleep(600)", **fields: Any) -> ProcessWorkload:
    fields.setdefault("command", [sys.executable, "-S", "-c", NOTE + code, str(notes)])
    return ProcessWorkload(state_directory=notes.parent / "state", **fields)


def test_it_fits_every_interface_of_a_workload() -> None:
    process = ProcessWorkload(command=("sleep", "1"))
    for interface in (Workload, Starting, Scaling, Probing, Watching):
        assert isinstance(process, interface)
    assert process.kind == "process"


@pytest.mark.parametrize(
    "fields",
    [
        {"command": "sleep 1"},
        {"command": []},
        {"command": ["sleep\0"]},
        {"command": ["sleep"], "count": 0},
        {"command": ["sleep"], "stop_signal": "TERM"},
        {"command": ["sleep"], "stop_signal": "SIG_IGN"},
        {"command": ["sleep"], "environment": {"A=B": "c"}},
        {"command": ["sleep"], "output_limit": 1},
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        ProcessWorkload(**fields)


async def test_it_is_absent_then_runs_then_is_stopped_by_a_person_then_runs_again(notes: Path) -> None:
    process = workload(notes)
    assert await process.inspect(Given()) == Instance(id=ABSENT, run=Run.ABSENT, count=0)
    await process.start(Given())
    running = await process.inspect(Given())
    await until(lambda: len(living(notes)) == 1)
    assert running.id == str(written(notes)[0])
    assert (running.run, running.count) == (Run.RUNNING, 1)
    assert running.since == pytest.approx(time.time(), abs=10)
    await process.stop(Given(key="2"))
    stopped = await process.inspect(Given())
    assert (stopped.id, stopped.run, stopped.count) == (running.id, Run.STOPPED, 0)
    assert living(notes) == []
    await process.start(Given(key="3"))
    assert (await process.inspect(Given())).run is Run.RUNNING


async def test_starting_what_runs_starts_nothing(notes: Path) -> None:
    process = workload(notes)
    await process.start(Given())
    before = await process.inspect(Given())
    await process.start(Given(key="2"))
    assert await process.inspect(Given()) == before


async def test_a_restart_replaces_the_process_and_all_it_had_started(notes: Path) -> None:
    process = workload(notes, "note()\nif not os.fork(): os.setsid(); note()\ntime.sleep(600)")
    await process.start(Given())
    await until(lambda: len(living(notes)) == 2)
    old = set(living(notes))
    await process.restart(Given(key="2"))
    await until(lambda: len(living(notes)) == 2)
    assert not old & set(living(notes))


async def test_one_that_ended_by_itself_has_exited_with_the_same_identity_and_a_reason(notes: Path) -> None:
    process = workload(notes, "note(); sys.exit(7)")
    await process.start(Given())
    await until(lambda: len(written(notes)) == 1 and not living(notes))
    instance = await process.inspect(Given())
    assert (instance.run, instance.id) == (Run.EXITED, str(written(notes)[0]))
    assert instance.detail == "copy 0 ended: exit code 7"
    assert proc.look(written(notes)[0].pid) is None, "not even a zombie stays"


async def test_no_descriptor_and_no_zombie_is_left_by_many_restarts(notes: Path) -> None:
    process = workload(notes, count=2)
    await process.start(Given())
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    for number in range(5):
        await process.restart(Given(key=str(number)))
    await until(lambda: len(living(notes)) == 2)
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() <= threads + 1
    assert not any(proc.look(identity.pid) for identity in written(notes) if not proc.is_alive(identity))


async def test_a_program_that_ignores_its_stop_signal_is_killed_at_the_deadline(notes: Path) -> None:
    process = workload(notes, "signal.signal(15, signal.SIG_IGN); note(); time.sleep(600)", stop_timeout=0.3)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    began = time.monotonic()
    await process.restart(Given(key="2"))
    assert 0.3 <= time.monotonic() - began < 5
    await until(lambda: len(written(notes)) == 2)
    assert len(living(notes)) == 1


async def test_a_hung_program_is_replaced(notes: Path) -> None:
    """SIGSTOP is the hang of the fault catalogue: SIGTERM alone has no effect on it."""
    process = workload(notes, stop_timeout=2.0)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    assert proc.deliver(living(notes)[0], signal.SIGSTOP)
    began = time.monotonic()
    await process.restart(Given(key="2"))
    assert time.monotonic() - began < 1.9, "it was continued, and obeyed"
    await until(lambda: len(written(notes)) == 2)
    assert len(living(notes)) == 1


async def test_the_stop_signal_of_the_configuration_is_the_one_that_is_sent_and_only_to_the_first_process(
    notes: Path,
) -> None:
    code = """
child = os.fork()
def bye(number, frame):
    with open(sys.argv[1] + ".signals", "a") as file:
        file.write(f"{'first' if child else 'second'} {number}\\n")
    os._exit(0)
signal.signal(2, bye); signal.signal(15, bye); note(); time.sleep(600)"""
    process = workload(notes, code, stop_signal="SIGINT")
    await process.start(Given())
    await until(lambda: len(living(notes)) == 2)
    await process.stop(Given(key="2"))
    signals = (notes.parent / "notes.signals").read_text().splitlines()
    assert signals == ["first 2", "second 15"]  # what is left behind is told to end, too, but later


async def test_a_restart_whose_stop_failed_starts_no_second_copy(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = workload(notes, stop_timeout=0.1)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    before = await process.inspect(Given())
    monkeypatch.setattr(proc, "deliver", lambda identity, number: False)
    with pytest.raises(ActionFailed, match="nothing was started beside it"):
        await process.restart(Given(key="2"))
    monkeypatch.undo()
    assert await process.inspect(Given()) == before
    assert len(written(notes)) == 1
    assert await process.probe(Given(key="2")) is Settled.FAILED


async def test_a_program_that_is_missing_is_a_failure_that_names_it_and_can_be_tried_again(notes: Path) -> None:
    process = workload(notes, command=["/no/such/program"])
    with pytest.raises(ActionFailed, match="/no/such/program could not be started"):
        await process.start(Given())
    assert (await process.inspect(Given())).run is Run.ABSENT
    await workload(notes).start(Given(key="2"))
    assert (await process.inspect(Given())).run is Run.RUNNING
    assert [path.suffix for path in (notes.parent / "state").glob("*.gate")] == []


async def test_an_action_applies_only_to_the_instance_that_failed(notes: Path) -> None:
    process = workload(notes)
    await process.start(Given())
    seen = await process.inspect(Given())
    await process.restart(Given(key="2", expected=seen))
    now = await process.inspect(Given())
    with pytest.raises(ActionFailed, match="left alone"):
        await process.restart(Given(key="3", expected=seen))
    assert await process.inspect(Given()) == now


@fails_when("what it was scaled to is forgotten")
async def test_s31_scaling_goes_upwards_only_and_stays(notes: Path) -> None:
    process = workload(notes, count=5)
    await process.start(Given())
    await process.scale_up(Given(key="2", arguments={"to": 2}))
    five = await process.inspect(Given())
    assert five.count == 5
    await process.scale_up(Given(key="3", arguments={"to": 6}))
    six = await process.inspect(Given())
    assert six.count == 6
    assert six.id.startswith(five.id)
    await process.scale_up(Given(key="4", arguments={"to": 3}))
    await process.restart(Given(key="5"))
    assert (await process.inspect(Given())).count == 6
    await until(lambda: len(living(notes)) == 6)


@pytest.mark.parametrize("to", [None, 0, True, "3", 1001, 2.5])
async def test_scaling_to_what_is_no_number_of_copies_is_refused(notes: Path, to: object) -> None:
    with pytest.raises(ActionFailed, match="whole number"):
        await workload(notes).scale_up(Given(arguments={"to": to}))
    assert written(notes) == []


async def test_one_of_three_copies_that_died_is_seen_and_start_brings_it_back_alone(notes: Path) -> None:
    process = workload(notes, count=3)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 3)
    victim, *others = living(notes)
    proc.deliver(victim, signal.SIGKILL)
    await proc.gone(victim, 5)
    instance = await process.inspect(Given())
    assert (instance.run, instance.count) == (Run.RUNNING, 2)
    assert instance.detail.startswith("2 of 3 copies run; copy ")
    assert "killed by SIGKILL" in instance.detail
    await process.start(Given(key="2"))
    await until(lambda: len(living(notes)) == 3)
    assert set(others) < set(living(notes))


async def test_what_a_dead_program_left_behind_is_ended_before_it_is_started_again(notes: Path) -> None:
    """A server whose workers live on, holding its port, could never be started again."""
    process = workload(notes, "if not os.fork(): note()\ntime.sleep(600)")
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    first = proc.Identity(*map(int, (await process.inspect(Given())).id.split(":")))
    worker = living(notes)[0]
    proc.deliver(first, signal.SIGKILL)
    await proc.gone(first, 5)
    assert proc.is_alive(worker)
    await process.start(Given(key="2"))
    assert not proc.is_alive(worker)


def pidfds() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += "pidfd" in os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


async def test_a_child_that_hid_from_its_parent_its_session_and_its_environment_ends_with_the_program(
    notes: Path,
) -> None:
    """It is found as long as its parent lives, so it is looked for before anything is ended."""
    code = """
if not os.fork():
    os.setsid(); note(); os.execve("/bin/sleep", ["sleep", "600"], {})
note(); time.sleep(600)"""
    process = workload(notes, code)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 2 and any(b"SELF" not in environ(each) for each in living(notes)))
    await process.stop(Given(key="2"))
    assert living(notes) == []


def environ(identity: proc.Identity) -> bytes:
    return proc.environment_of(identity.pid)


# -- watching --------------------------------------------------------------------------------------------------------


async def heard(watch: AsyncIterator[Instance]) -> Instance:
    with anyio.fail_after(5):
        return await anext(watch)


async def test_a_death_is_heard_within_milliseconds(notes: Path) -> None:
    process = workload(notes)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    watch = process.watch(Given())
    killed = 0.0

    def kill() -> None:
        nonlocal killed
        time.sleep(0.3)
        killed = time.monotonic()
        proc.deliver(living(notes)[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    instance = await heard(watch)
    assert time.monotonic() - killed < 0.25
    assert instance.run is Run.EXITED
    assert "killed by SIGKILL" in instance.detail
    thread.join()
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_restart_of_ours_is_heard_as_a_new_instance_and_never_as_a_death(notes: Path) -> None:
    process = workload(notes, count=2)
    await process.start(Given())
    heard_of: list[Instance] = []

    async def listen() -> None:
        async for instance in process.watch(Given()):
            heard_of.append(instance)  # noqa: PERF401  # it is looked at while it grows

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await until(lambda: pidfds() == 2)
        await process.restart(Given(key="2"))
        await until(lambda: len(heard_of) == 1)
        await process.stop(Given(key="3"))
        await until(lambda: len(heard_of) == 2)
        group.cancel_scope.cancel()
    assert [instance.run for instance in heard_of] == [Run.RUNNING, Run.STOPPED]
    assert process._cell.listeners == []


async def test_what_had_ended_before_anybody_watched_is_reported_at_once(notes: Path) -> None:
    process = workload(notes, "note()")
    await process.start(Given())
    await until(lambda: len(written(notes)) == 1 and not living(notes))
    watch = process.watch(Given())
    assert (await heard(watch)).run is Run.EXITED
    await watch.aclose()  # type: ignore[attr-defined]


# -- probe, release, output ------------------------------------------------------------------------------------------


async def test_probe_tells_what_became_of_a_key(notes: Path) -> None:
    process = workload(notes)
    assert await process.probe(Given(key="never")) is None, "no roll, no knowledge"
    await process.start(Given(key="1"))
    assert await process.probe(Given(key="1")) is Settled.DONE
    assert await process.probe(Given(key="never")) is Settled.NOT_STARTED
    for number in range(2, 30):
        await process.start(Given(key=str(number)))
    assert await process.probe(Given(key="never")) is None, "it may have been forgotten"


async def test_a_cancelled_restart_is_interrupted_and_gives_the_workload_back(notes: Path) -> None:
    process = workload(notes, "signal.signal(15, signal.SIG_IGN); note(); time.sleep(600)", stop_timeout=30.0)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    with anyio.move_on_after(0.3) as scope:
        await process.restart(Given(key="2"))
    assert scope.cancelled_caught
    assert await process.probe(Given(key="2")) is Settled.INTERRUPTED
    assert (await process.inspect(Given())).run is Run.RUNNING
    await attrs.evolve(process, stop_timeout=0.1).restart(Given(key="3"))
    assert len(living(notes)) <= 1


async def test_two_acts_at_once_are_one_after_the_other(notes: Path) -> None:
    process, twin = workload(notes), workload(notes)
    async with anyio.create_task_group() as group:
        for number, each in enumerate([process, twin] * 3):
            group.start_soon(each.start, Given(key=str(number)))
    await until(lambda: len(written(notes)) >= 1)
    assert (await process.inspect(Given())).count == 1
    assert len(written(notes)) == 1


async def test_a_clean_stop_of_selfheal_stops_its_programs_and_leaves_them_absent(notes: Path) -> None:
    process = workload(notes)
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    await process.release(Given(), stopping=False)
    assert len(living(notes)) == 1
    await process.release(Given(), stopping=True)
    assert living(notes) == []
    assert (await process.inspect(Given())).run is Run.ABSENT


async def test_a_person_s_stop_outlives_a_clean_stop_of_selfheal(notes: Path) -> None:
    process = workload(notes)
    await process.start(Given())
    await process.stop(Given(key="2"))
    await process.release(Given(), stopping=True)
    assert (await process.inspect(Given())).run is Run.STOPPED


async def test_a_program_may_be_left_running_at_a_clean_stop(notes: Path) -> None:
    process = workload(notes, stop_with_selfheal=False)
    await process.start(Given())
    await process.release(Given(), stopping=True)
    assert (await process.inspect(Given())).run is Run.RUNNING


async def test_its_output_goes_to_a_file_that_is_kept_below_its_limit(notes: Path) -> None:
    code = """
note()
print("a" * 5000, flush=True); print("b" * 4000, file=sys.stderr, flush=True)
while not os.path.exists(sys.argv[1] + ".go"): time.sleep(0.01)
print("after", flush=True); time.sleep(600)"""
    output = notes.parent / "output.log"
    process = workload(notes, code, output=output, output_limit=4096)
    await process.start(Given())
    await until(lambda: output.stat().st_size == 9002)
    await process.inspect(Given())
    assert output.read_text() == ""
    assert (notes.parent / "output.log.1").read_text() == ("a" * 94 + "\n" + "b" * 4000 + "\n")
    (notes.parent / "notes.go").touch()
    await until(lambda: output.read_text() == "after\n")


async def test_a_pipe_is_refused_as_output(notes: Path) -> None:
    os.mkfifo(notes.parent / "fifo")
    with pytest.raises(ActionFailed, match="output"):
        await workload(notes, output=notes.parent / "fifo").start(Given())
    assert written(notes) == []


async def test_secrets_reach_the_program_and_nothing_of_ours_that_is_not_named(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_PASSWORD", "hunter2")
    code = "open(sys.argv[1] + '.env', 'w').write(repr(dict(os.environ))); note(); time.sleep(600)"
    process = workload(notes, code, environment={"TOKEN": Secret("s3cret")})
    await process.start(Given())
    await until(lambda: len(living(notes)) == 1)
    environment = (notes.parent / "notes.env").read_text()
    assert "'TOKEN': 's3cret'" in environment
    assert "hunter2" not in environment
    assert "s3cret" not in repr(process)
    assert not any("s3cret" in path.read_text() for path in (notes.parent / "state").iterdir())


async def test_a_secret_that_cannot_be_read_is_a_failed_action(notes: Path) -> None:
    gone = Secret(lambda: Path("/no/such/secret").read_text(), source="file")
    with pytest.raises(ActionFailed, match="/no/such/secret"):
        await workload(notes, environment={"TOKEN": gone}).start(Given())


@fails_when("a file is called as the service is")
async def test_s29_a_service_name_never_leads_out_of_the_state_directory(notes: Path) -> None:
    names = ["../../etc", "..", "a/b", "/", "x; touch pwned", "ä" * 300, "a_b", "a.b", ""]
    stems = {Launcher(folder=notes.parent / "state", service=name).stem for name in names}
    assert len(stems) == len(names)
    assert all("/" not in stem and not stem.startswith(".") and len(stem) < 100 for stem in stems)
    process = workload(notes)
    await process.start(Given(service="../../etc"))
    assert (await process.inspect(Given(service="../../etc"))).run is Run.RUNNING
    await process.stop(Given(service="../../etc", key="2"))
    assert sorted(path.name for path in notes.parent.iterdir()) == ["notes", "state"]


def test_the_roll_survives_being_written_down() -> None:
    who = proc.Identity(12, 34)
    roll = launch.Roll(
        boot="b",
        stopped=True,
        count=3,
        copies={1: launch.Copy(identity=who, since=1.5, token="t", program="p")},
        launching=launch.Launching(number=2, token="u", after=9),
        acts=(launch.Act(key="k", verb="restart", before=(who,), settled="done"),),
    )
    assert launch.read_back(launch.write_down(roll)) == roll
