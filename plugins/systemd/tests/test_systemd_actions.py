"""Acting on a real unit: it does what it should, says so when it did not, and leaves alone what it should."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.builtin.receiver import Call
from tests.servers import until
from tests.stack.systemd import Systemd, on_the_way

from selfheal import ActionFailed, Instance, Run, Settled
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-api.service"
SLEEP = "/bin/sleep 1000"
STUBBORN = "/usr/bin/python3 -c 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)'"
ONCE = "/bin/sh -c 'test -e /run/kh-once && exit 7; touch /run/kh-once; exec sleep 1000'"
"""A program that runs well the first time, and ends at once ever after."""


def workload(**options: Any) -> SystemdWorkload:
    return SystemdWorkload(unit=NAME, **{"settle": 0.3, **options})


def seen(**options: Any) -> Instance:
    return asyncio.run(workload(**options).inspect(Call()))


def do(
    verb: str, expected: Instance | None = None, timeout: float = 20.0, to: int | None = None, **options: Any
) -> str:
    """Have a verb done, as an action on what was inspected before it; return what it says."""
    context = Call(timeout=timeout)
    context.verb, context.expected = verb, expected
    context.arguments = {} if to is None else {"to": to}
    said = asyncio.run(getattr(workload(**options), verb)(context))
    assert isinstance(said, str)
    return said


def running(systemd: Systemd, start: str = SLEEP, **options: Any) -> Instance:
    """Have a unit that runs, and is enabled."""
    systemd.unit(NAME, start, wanted=True, **options)
    systemd.ask("start", NAME)
    if start == STUBBORN:
        until(lambda: systemd.run("cat", f"/proc/{systemd.shows(NAME, 'MainPID')}/status", check=False).find(
            "SigIgn:\t0000000001005000") > 0, "it ignores SIGTERM")  # fmt: skip
    one = seen()
    assert one.run is Run.RUNNING
    return one


# -- restart ---------------------------------------------------------------------------------------------------------


def test_a_restart_makes_a_new_incarnation_that_runs(systemd: Systemd) -> None:
    before = running(systemd)
    said = do("restart", before)
    after = seen()
    assert (after.run, after.id != before.id) == (Run.RUNNING, True)
    assert said.startswith(f"restarted {NAME}: invocation {after.id}, process ")


def test_one_that_has_ended_is_started_by_a_restart(systemd: Systemd) -> None:
    before = running(systemd)
    systemd.kill(NAME)
    until(lambda: seen().run is Run.EXITED, "it has ended")
    assert f"started {NAME}, which was ended by SIGKILL: invocation" in do("restart", before)
    assert seen().run is Run.RUNNING


def test_s30_one_that_does_not_exist_fails_and_says_so(systemd: Systemd) -> None:
    with pytest.raises(ActionFailed, match=f"there is no unit {NAME}"):
        do("restart")


def test_one_that_exits_at_once_fails_though_systemd_calls_it_done(systemd: Systemd) -> None:
    systemd.run("rm", "-f", "/run/kh-once")
    before = running(systemd, ONCE)
    with pytest.raises(ActionFailed, match="does not run: it exited with code 7"):
        do("restart", before)


def test_one_that_systemd_starts_over_and_over_fails(systemd: Systemd) -> None:
    systemd.run("rm", "-f", "/run/kh-once")
    before = running(systemd, ONCE, Restart="always", RestartSec="50ms")
    with pytest.raises(ActionFailed, match="over and over"):
        do("restart", before)


def test_one_that_never_becomes_ready_fails_with_the_reason(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, Type="notify", TimeoutStartSec="300ms")
    with pytest.raises(ActionFailed, match=r"\(timeout\)"):
        do("restart", seen())


def test_another_incarnation_than_the_one_that_failed_is_left_alone(systemd: Systemd) -> None:
    before = running(systemd)
    systemd.ask("restart", NAME)
    other = seen()
    with pytest.raises(ActionFailed, match="left alone"):
        do("restart", before)
    assert seen().id == other.id


def test_what_a_person_stopped_or_masked_is_left_alone(systemd: Systemd) -> None:
    running(systemd)
    systemd.ask("stop", NAME)
    with pytest.raises(ActionFailed, match="somebody asked systemd to stop it"):
        do("restart", seen())
    assert systemd.shows(NAME, "ActiveState") == "inactive"
    (systemd.root / "etc/systemd/system" / NAME).unlink()
    systemd.ask("mask", "--runtime", NAME)
    with pytest.raises(ActionFailed, match="masked"):
        do("restart", seen())


def test_what_systemd_is_about_to_restart_itself_is_left_alone(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/false", wanted=True, Restart="on-failure", RestartSec="60")
    systemd.ask("start", NAME)
    until(lambda: systemd.shows(NAME, "SubState") == "auto-restart", "systemd waits for its restart")
    with pytest.raises(ActionFailed, match="systemd itself"):
        do("restart", seen())
    assert systemd.shows(NAME, "SubState") == "auto-restart"


def test_a_job_of_somebody_else_is_left_alone(systemd: Systemd) -> None:
    before = running(systemd, STUBBORN, TimeoutStopSec="60")
    systemd.ask("stop", "--no-block", NAME)
    job = systemd.shows(NAME, "Job")
    with pytest.raises(ActionFailed, match=f"a stop job of it is under way .job {job}"):
        do("restart", before)
    assert systemd.shows(NAME, "Job") == job


def test_a_unit_at_its_start_limit_is_not_stopped_into_a_refusal(systemd: Systemd) -> None:
    limit = {"StartLimitBurst": "2", "StartLimitIntervalSec": "1h"}
    running(systemd, unit=limit)
    systemd.ask("restart", NAME)
    before = seen()
    do("restart", before)
    assert seen().run is Run.RUNNING
    # That it was at its limit, and what becomes of it otherwise: by hand the second further restart is refused.
    systemd.ask("restart", NAME)
    systemd.ask("restart", NAME, check=False)
    assert systemd.shows(NAME, "Result") == "start-limit-hit"
    assert seen().run is Run.EXITED
    assert do("restart", seen()).endswith("(it was at its start limit, which was reset first)")
    assert seen().run is Run.RUNNING


def test_a_stop_that_takes_longer_than_the_step_is_told_and_left_to_systemd(systemd: Systemd) -> None:
    before = running(systemd, STUBBORN, TimeoutStopSec="3")
    began = time.monotonic()
    with pytest.raises(ActionFailed, match="systemd goes on with it"):
        do("restart", before, timeout=2.0)
    assert time.monotonic() - began < 2.0
    assert seen().run is Run.STARTING  # left alone by whoever looks, until it is over
    until(lambda: seen().run is Run.RUNNING, "systemd has finished the restart")
    assert seen().id != before.id


def test_one_that_ignores_term_is_restarted_when_systemd_has_lost_patience(systemd: Systemd) -> None:
    before = running(systemd, STUBBORN, TimeoutStopSec="1")
    do("restart", before)
    assert (seen().run, seen().id != before.id) == (Run.RUNNING, True)


def cancelled_after(seconds: float, before: Instance) -> None:
    async def story() -> None:
        context = Call(timeout=30.0)
        context.expected = before
        acting = asyncio.ensure_future(workload().restart(context))
        await asyncio.sleep(seconds)
        assert not acting.done()
        acting.cancel()
        began = time.monotonic()
        await asyncio.wait([acting])
        assert acting.cancelled()
        assert time.monotonic() - began < 2.5

    asyncio.run(story())


def test_when_cancelled_a_job_that_systemd_has_not_begun_is_taken_back(systemd: Systemd) -> None:
    systemd.unit("kh-slow.service", "/bin/sleep 60", Type="oneshot")
    systemd.unit(NAME, SLEEP, wanted=True, unit={"Requires": "kh-slow.service", "After": "kh-slow.service"})
    cancelled_after(1.0, seen())
    assert NAME not in systemd.ask("list-jobs", "--no-legend", check=False)


def test_when_cancelled_a_job_that_systemd_has_begun_is_finished_by_it(systemd: Systemd) -> None:
    before = running(systemd, STUBBORN, TimeoutStopSec="2")
    cancelled_after(0.7, before)
    assert seen().run is Run.STARTING
    until(lambda: seen().run is Run.RUNNING, "systemd has finished the restart")
    assert seen().id != before.id


def test_what_it_needs_and_what_is_down_is_named(systemd: Systemd) -> None:
    systemd.unit("kh-db.service", "/bin/false", Type="oneshot")
    systemd.unit(NAME, SLEEP, wanted=True, unit={"Requires": "kh-db.service", "After": "kh-db.service"})
    with pytest.raises(ActionFailed, match=r"kh-db\.service \(failed\)"):
        do("restart", seen())


def test_a_condition_that_is_not_met_is_named(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, unit={"ConditionPathExists": "/nonexistent"})
    with pytest.raises(ActionFailed, match="condition"):
        do("restart", seen())


def test_what_refuses_manual_starts_is_told_before_it_is_tried(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, unit={"RefuseManualStart": "yes"})
    with pytest.raises(ActionFailed, match="RefuseManualStart"):
        do("restart", seen())


def test_a_restart_of_a_systemd_that_hangs_ends_in_time(systemd: Systemd) -> None:
    before = running(systemd)
    systemd.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            do("restart", before, timeout=1.0)
        assert time.monotonic() - began < 5.0
    finally:
        systemd.thaw()
    until(lambda: seen().run is Run.RUNNING, "it answers again")


# -- start, stop -----------------------------------------------------------------------------------------------------


def test_start_leaves_alone_what_runs_and_starts_what_a_person_stopped(systemd: Systemd) -> None:
    before = running(systemd)
    assert "ran already" in do("start", before)
    assert seen().id == before.id
    assert do("stop", before) == f"stopped {NAME}"
    assert seen().run is Run.STOPPED
    do("start", seen())
    assert seen().run is Run.RUNNING


def test_stop_of_what_has_ended_changes_nothing(systemd: Systemd) -> None:
    running(systemd)
    systemd.kill(NAME)
    until(lambda: seen().run is Run.EXITED, "it has ended")
    assert do("stop", seen()) == f"{NAME} had ended already"
    assert seen().run is Run.EXITED


# -- scale_up --------------------------------------------------------------------------------------------------------


def test_s31_scale_up_raises_to_the_maximum_and_no_further_and_restarts_nothing(systemd: Systemd) -> None:
    before = running(systemd, MemoryMax="64M", CPUQuota="50%")
    more: dict[str, Any] = {"memory_max": "100m", "cpus_max": 0.9}
    said = do("scale_up", before, **more)
    assert said == (
        f"raised MemoryMax from {64 << 20} to {96 << 20} bytes and CPUQuota from 0.5 to 0.75 processors of {NAME}"
    )
    assert systemd.shows(NAME, "MemoryMax") == str(96 << 20)
    assert systemd.shows(NAME, "CPUQuotaPerSecUSec") == "750ms"
    do("scale_up", before, **more)
    assert systemd.shows(NAME, "MemoryMax") == str(100 << 20)
    assert systemd.shows(NAME, "CPUQuotaPerSecUSec") == "900ms"
    with pytest.raises(ActionFailed, match="nothing to raise"):
        do("scale_up", before, **more)
    assert seen().id == before.id
    assert not list((systemd.root / "etc/systemd").rglob(f"{NAME}.d"))


def test_scale_up_that_should_stay_is_written_where_it_stays(systemd: Systemd) -> None:
    before = running(systemd, MemoryMax="64M")
    do("scale_up", before, memory_max="1g", persistent=True)
    assert list((systemd.root / "etc/systemd/system.control").rglob("50-MemoryMax.conf"))


def test_scale_up_without_a_limit_or_to_several_is_refused(systemd: Systemd) -> None:
    before = running(systemd)
    with pytest.raises(ActionFailed, match="no limit"):
        do("scale_up", before, memory_max="1g")
    with pytest.raises(ActionFailed, match="cannot be several"):
        do("scale_up", before, to=3, memory_max="1g")
    assert workload().verbs() == {"restart", "start", "stop"}
    assert "scale_up" in workload(cpus_max=2.0).verbs()


# -- after a crash ---------------------------------------------------------------------------------------------------


def probed(expected: Instance | None, verb: str = "restart", **options: Any) -> Settled | None:
    context = Call()
    context.verb, context.expected = verb, expected
    return asyncio.run(workload(**options).probe(context))


def test_after_a_crash_it_is_known_whether_it_was_restarted(systemd: Systemd) -> None:
    before = running(systemd)
    assert probed(before, cpus_max=2.0) is Settled.NOT_STARTED
    assert probed(before, "stop") is Settled.NOT_STARTED
    assert probed(before, "scale_up", cpus_max=2.0) is None
    assert probed(None) is None
    assert probed(Instance(id="", run=Run.UNKNOWN)) is None
    do("restart", before)
    assert probed(before) is Settled.DONE
    systemd.ask("stop", NAME)
    assert probed(before) is None
    assert probed(before, "stop") is Settled.DONE


def test_after_a_crash_in_the_middle_of_a_restart_nothing_is_claimed(systemd: Systemd) -> None:
    before = running(systemd, STUBBORN, TimeoutStopSec="2")
    systemd.ask("restart", "--no-block", NAME)
    assert probed(before) is None
    assert until(lambda: probed(before), "systemd has finished the restart") is Settled.DONE


MANAGER = """
import asyncio
from selfheal_systemd.workload import SystemdWorkload
from tests.builtin.receiver import Call
asyncio.run(SystemdWorkload(unit={unit!r}, settle=0.3).restart(Call(timeout=60.0)))
"""


@pytest.fixture
def slow(systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a `systemctl` that is on the way; return its folder. None is left over."""
    monkeypatch.setenv("PATH", f"{on_the_way(systemd, tmp_path)}:{os.environ['PATH']}")
    yield tmp_path
    (tmp_path / "drop").touch()


def killed_while_it_asks(folder: Path) -> None:
    """SIGKILL a manager that has just told its `systemctl` to restart the unit."""
    root = str(Path(__file__).parents[3])
    manager = subprocess.Popen(
        [sys.executable, "-c", MANAGER.format(unit=NAME)], env={**os.environ, "PYTHONPATH": root}
    )
    try:
        until((folder / "asking").exists, "its systemctl is on the way", 30.0)
    finally:
        manager.kill()
        manager.wait(10.0)


def test_after_a_crash_a_systemctl_that_is_still_on_its_way_is_waited_for(systemd: Systemd, slow: Path) -> None:
    """It outlives the manager that started it: "not started" would have the unit restarted twice."""
    before = running(systemd)
    killed_while_it_asks(slow)
    assert seen().id == before.id
    assert probed(before) is None
    (slow / "go").touch()
    assert until(lambda: probed(before), "it has asked, and systemd has done it") is Settled.DONE


def test_after_a_crash_a_systemctl_that_ended_before_it_asked_has_started_nothing(systemd: Systemd, slow: Path) -> None:
    before = running(systemd)
    killed_while_it_asks(slow)
    (slow / "drop").touch()
    assert until(lambda: probed(before), "its systemctl has ended") is Settled.NOT_STARTED
    assert seen().id == before.id
