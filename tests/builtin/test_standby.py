"""A standby is started when the old one is down for certain, and never beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from tests.servers import until

from selfheal import ConfigurationError, Service, Supervisor
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.standby import Standby
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.config import configure
from selfheal.core.model import Effect, Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal.ladder import resolve
from selfheal.plugins import ActionContext
from selfheal.shell.contexts import Act, Contexts
from selfheal.testing.doubles import ScriptedWorkload

pytestmark = pytest.mark.real_time

NUMBERS = count(1)
SLEEPS = "import time; time.sleep(600)"


@attrs.define
class Pair:
    """Two programs: the one that serves, and the one that may take over."""

    old: ProcessWorkload
    new: ProcessWorkload

    def of(self, workload: ProcessWorkload) -> str:
        return "db" if workload is self.old else "db standby"

    def do(self, what: Callable[[ActionContext], Awaitable[Any]], of: ProcessWorkload) -> Any:
        contexts = Contexts()

        async def body() -> Any:
            return await what(contexts.for_action(self.of(of), of, 20.0, Act(key="by-hand")))

        return asyncio.run(body())

    def instance(self, workload: ProcessWorkload) -> Instance:
        found = self.do(workload.inspect, workload)
        assert isinstance(found, Instance)
        return found

    def kill_old(self) -> Instance:
        before = self.instance(self.old)
        os.kill(int(before.id.partition(":")[0]), signal.SIGKILL)
        until(lambda: self.instance(self.old).run is Run.EXITED, "the old one has ended")
        return before


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    def program(folder: str) -> ProcessWorkload:
        return ProcessWorkload(
            command=(sys.executable, "-S", "-E", "-c", SLEEPS),
            state_directory=tmp_path / folder,
            output=Path("/dev/null"),
            stop_timeout=2.0,
        )

    found = Pair(program("old"), program("new"))
    found.do(found.old.start, found.old)
    yield found
    for workload in (found.old, found.new):
        found.do(workload.stop, workload)


def run(pair: Pair, action: Standby, expected: Instance | None = None, old: Any = "its own") -> None:
    asyncio.run(action.run(context(pair, action, expected, old)))


def context(pair: Pair, action: Standby, expected: Instance | None = None, old: Any = "its own") -> ActionContext:
    workload = pair.old if old == "its own" else old
    act = Act(key="1/db/1/0", incident=1, expected=expected, workload=workload)
    return Contexts().for_action("db", action, 20.0, act)


def test_one_that_has_ended_is_followed_by_its_standby(pair: Pair) -> None:
    before = pair.kill_old()
    action = Standby(workload=pair.new)
    run(pair, action, before)
    assert pair.instance(pair.new).run is Run.RUNNING
    assert pair.instance(pair.old).run is Run.EXITED
    assert asyncio.run(action.probe(context(pair, action, before))) is Settled.DONE


def test_beside_one_that_runs_nothing_is_started_and_what_is_missing_is_said(pair: Pair) -> None:
    action = Standby(workload=pair.new)
    with pytest.raises(ActionFailed, match=r"not fenced.*running.*fence = \"stop\""):
        run(pair, action, pair.instance(pair.old))
    assert pair.instance(pair.new).run is Run.ABSENT
    assert pair.instance(pair.old).run is Run.RUNNING
    assert asyncio.run(action.probe(context(pair, action, pair.instance(pair.old)))) is Settled.NOT_STARTED


def test_one_that_is_frozen_is_not_down_though_it_answers_nobody(pair: Pair) -> None:
    pid = int(pair.instance(pair.old).id.partition(":")[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ActionFailed, match="not fenced"):
            run(pair, Standby(workload=pair.new))
        assert pair.instance(pair.new).run is Run.ABSENT
    finally:
        os.kill(pid, signal.SIGCONT)


def test_with_a_fence_the_old_one_is_stopped_before(pair: Pair) -> None:
    run(pair, Standby(workload=pair.new, fence="stop"), pair.instance(pair.old))
    assert pair.instance(pair.old).run is Run.STOPPED
    assert pair.instance(pair.new).run is Run.RUNNING


def test_another_incarnation_of_the_old_one_is_left_alone(pair: Pair) -> None:
    before = pair.instance(pair.old)
    pair.do(pair.old.restart, pair.old)
    with pytest.raises(ActionFailed, match="left alone"):
        run(pair, Standby(workload=pair.new, fence="stop"), before)
    assert pair.instance(pair.old).run is Run.RUNNING
    assert pair.instance(pair.new).run is Run.ABSENT


def test_a_second_call_starts_nothing_again(pair: Pair) -> None:
    pair.kill_old()
    run(pair, Standby(workload=pair.new))
    first = pair.instance(pair.new).id
    run(pair, Standby(workload=pair.new))
    assert pair.instance(pair.new).id == first


def test_a_standby_that_cannot_start_leaves_the_old_one_down_and_says_so(pair: Pair, tmp_path: Path) -> None:
    before = pair.kill_old()
    missing = ProcessWorkload(command=("/nonexistent/program",), state_directory=tmp_path / "missing")
    with pytest.raises(ActionFailed, match="nonexistent"):
        run(pair, Standby(workload=missing), before)


class Asked(ScriptedWorkload):
    """A workload that can be started and stopped, in memory."""

    async def start(self, context: ActionContext) -> None:
        await self.restart(context)

    async def stop(self, context: ActionContext) -> None:
        self.end(Run.STOPPED)


def asked(*ends: Run) -> Asked:
    made = Asked(name=f"asked{next(NUMBERS)}")
    for end in ends:
        made.end(end)
    return made


def test_a_standby_that_was_never_started_is_started_though_it_counts_as_starting() -> None:
    new = asked(Run.STARTING)
    run(Pair.__new__(Pair), Standby(workload=new), old=asked(Run.EXITED))
    assert new.current.run is Run.RUNNING


class Nobody(Asked):
    async def inspect(self, context: Any) -> Instance:
        raise ConnectionRefusedError(111, "nobody listens there")


def test_a_standby_that_is_absent_is_noticed_before_the_old_one_is_stopped() -> None:
    old, new = asked(), asked(Run.ABSENT)
    with pytest.raises(ActionFailed, match="no standby"):
        run(Pair.__new__(Pair), Standby(workload=new, fence="stop"), old=old)
    assert old.current.run is Run.RUNNING


@pytest.mark.parametrize("unknown", [Nobody(), asked(Run.UNKNOWN)])
@pytest.mark.parametrize("which", ["the old one", "the standby"])
def test_where_inspection_fails_nothing_is_done(unknown: Asked, which: str) -> None:
    other = asked(Run.EXITED)
    old, new = (unknown, other) if which == "the old one" else (other, unknown)
    before = len(other.history)
    with pytest.raises(ActionFailed, match="could not be inspected"):
        run(Pair.__new__(Pair), Standby(workload=new, fence="stop"), old=old)
    assert len(other.history) == before


def test_without_a_workload_of_its_own_nobody_can_say_that_it_is_down() -> None:
    new = asked(Run.EXITED)
    with pytest.raises(ActionFailed, match="no workload"):
        run(Pair.__new__(Pair), Standby(workload=new), old=None)
    assert new.current.run is Run.EXITED


def test_what_says_that_it_was_stopped_and_runs_on_is_no_fence() -> None:
    class RunsOn(Asked):
        async def stop(self, context: ActionContext) -> None:
            pass

    new = asked(Run.EXITED)
    with pytest.raises(ActionFailed, match="not fenced"):
        run(Pair.__new__(Pair), Standby(workload=new, fence="stop"), old=RunsOn())
    assert new.current.run is Run.EXITED


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (asked(), asked(Run.EXITED), ""),
        (None, asked(Run.EXITED), "no workload"),
        (asked(), asked(), "runs already"),
        (asked(), asked(Run.ABSENT), "no standby"),
        (asked(), Nobody(), "nobody listens"),
    ],
)
def test_doctor_says_what_is_missing_and_does_nothing(old: Asked | None, new: Asked, words: str) -> None:
    action = Standby(workload=new)
    before = len(new.history)
    found = asyncio.run(action.doctor(context(Pair.__new__(Pair), action, old=old)))
    assert words in " ".join(map(str, found))
    assert bool(found) is bool(words)
    assert all(problem.hint for problem in found)
    assert len(new.history) == before


def test_a_workload_that_cannot_be_started_is_no_standby() -> None:
    with pytest.raises(ValueError, match="cannot be started"):
        Standby(workload=ScriptedWorkload())


# -- in a ladder -----------------------------------------------------------------------------------------------------


def written(tmp_path: Path, step: dict[str, Any]) -> dict[str, Any]:
    service = {
        "check": {"kind": "tcp", "address": "127.0.0.1:9"},
        "workload": {"kind": "process", "command": ["sleep", "600"]},
        "recovery_actions": ["restart", step],
    }
    return {"fleet": {"state_dir": str(tmp_path), "name": "here"}, "services": {"db": service}}


def test_a_step_of_the_file_names_the_workload_that_takes_over(tmp_path: Path) -> None:
    standby = {"kind": "process", "command": ["sleep", "700"]}
    found = configure(written(tmp_path, {"action": "failover", "fence": "stop", "standby": standby, "timeout": "2m"}))
    _, resolved = resolve(found.services[0], {}, {})
    assert (resolved.how, resolved.step.effect, resolved.step.timeout) == ("plugin", Effect.DISRUPTIVE, 120.0)
    action = resolved.target
    assert isinstance(action, Standby)
    assert action.fence == "stop"
    assert isinstance(action.workload, ProcessWorkload)
    assert (action.workload.command, action.workload.state_directory) == (("sleep", "700"), tmp_path)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"standby": {"kind": "nothing"}}, 'no workload "nothing"'),
        ({"standby": {"kind": "process"}}, '"command" is missing'),
        ({"standby": {"kind": "process", "command": ["a"]}, "fence": "hope"}, "hope"),
        ({"standby": {"kind": "process", "command": ["a"]}, "fnce": "stop"}, "unknown key"),
        ({"standby": {"kind": "process", "command": ["a"]}, "action": "restart"}, 'write action = "failover"'),
        ({"standby": "127.0.0.1:5433"}, "nothing answers"),
    ],
)
def test_a_step_that_cannot_be_meant_is_refused_when_read(tmp_path: Path, step: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolve(configure(written(tmp_path, {"action": "failover", **step})).services[0], {}, {})
    assert words in str(refused.value)


def test_a_supervisor_starts_the_standby_of_a_program_that_has_ended(pair: Pair, anyio_backend: str) -> None:
    """The whole way: the check fails, the workload has exited, the ladder comes to the standby."""
    service = Service(
        "db",
        check=TcpCheck(address="127.0.0.1:9"),
        workload=pair.old,
        recovery_actions=[Standby(workload=pair.new)],
        interval=1.0,
        timeout=0.5,
        failure_threshold=1,
        min_failing_span=0.0,
    )
    pair.kill_old()

    def runs() -> bool:
        return pair.instance(pair.new).run is Run.RUNNING

    async def body() -> None:
        supervisor = Supervisor([service], journal=None)
        async with supervisor:
            with anyio.fail_after(20.0):
                while not await anyio.to_thread.run_sync(runs):  # noqa: ASYNC110  # a program sets no event of ours
                    await anyio.sleep(0.05)

    anyio.run(body, backend=anyio_backend)
    assert pair.instance(pair.old).run in (Run.EXITED, Run.ABSENT)
    assert pair.instance(pair.new).run is Run.RUNNING
