"""What is said of a real unit in every condition it can be in."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.builtin.receiver import Call, descriptors
from tests.servers import until
from tests.stack.systemd import Systemd

from selfheal import Instance, Run
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-api.service"
SLEEP = "/bin/sleep 1000"
CODE_143 = "/usr/bin/python3 -c 'import signal, sys; signal.signal(15, lambda *a: sys.exit(143)); signal.pause()'"
ON_FILE = "/bin/sh -c 'until test -e /run/kh-end; do sleep 0.02; done; exit %s'"


def seen(**options: Any) -> Instance:
    return asyncio.run(SystemdWorkload(unit=NAME, **options).inspect(Call()))


def is_(systemd: Systemd, state: str, sub: str = "") -> None:
    """Prove by systemd's own word that the unit is in a condition."""
    until(
        lambda: systemd.shows(NAME, "ActiveState") == state and (not sub or systemd.shows(NAME, "SubState") == sub),
        f"{NAME} is {state} {sub}",
    )


def test_one_that_runs(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP)
    before = time.time()
    systemd.ask("start", NAME)
    one = seen()
    assert (one.run, one.count, one.id) == (Run.RUNNING, 1, systemd.shows(NAME, "InvocationID"))
    assert one.since is not None
    assert before - 0.5 <= one.since <= time.time() + 0.1
    assert len({seen().id for _ in range(3)}) == 1


def test_one_that_was_killed_has_exited_and_keeps_its_incarnation(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP)
    systemd.ask("start", NAME)
    before = seen()
    systemd.kill(NAME)
    is_(systemd, "failed")
    after = seen()
    assert (after.run, after.id, after.count) == (Run.EXITED, before.id, 0)
    assert "SIGKILL" in after.detail


@pytest.mark.parametrize("wanted", [True, False])
def test_one_that_was_stopped_by_a_person_is_stopped(systemd: Systemd, wanted: bool) -> None:
    systemd.unit(NAME, SLEEP, wanted=wanted)
    systemd.ask("start", NAME)
    systemd.ask("stop", NAME)
    is_(systemd, "inactive")
    assert seen().run is Run.STOPPED


def test_one_that_was_stopped_by_a_person_and_calls_that_a_failure_is_stopped(systemd: Systemd) -> None:
    systemd.unit(NAME, CODE_143)
    systemd.ask("start", NAME)
    time.sleep(0.3)  # until the program has set its handler; nobody outside can see that
    systemd.ask("stop", NAME)
    is_(systemd, "failed")
    assert systemd.shows(NAME, "Result") == "exit-code"
    one = seen()
    assert one.run is Run.STOPPED
    assert "143" in one.detail


@pytest.mark.parametrize("code", [0, 3])
def test_one_that_ended_by_itself_has_exited_whatever_its_code(systemd: Systemd, code: int) -> None:
    systemd.unit(NAME, ON_FILE % code, wanted=True)
    systemd.run("rm", "-f", "/run/kh-end")
    systemd.ask("start", NAME)
    systemd.run("touch", "/run/kh-end")
    is_(systemd, "failed" if code else "inactive")
    one = seen()
    assert one.run is Run.EXITED
    assert f"code {code}" in one.detail


def test_one_that_ended_well_and_that_nothing_wants_is_what_was_chosen(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/true")
    systemd.ask("start", NAME)
    until(lambda: systemd.shows(NAME, "InvocationID") == "", "systemd has forgotten it")
    assert seen().run is Run.STOPPED
    assert seen(unexplained_end="exited").run is Run.EXITED
    assert "cannot be told" in seen().detail


def test_one_that_is_wanted_and_was_never_started_has_exited(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    assert seen().run is Run.EXITED


def test_stopped_by_a_person_while_systemd_was_about_to_restart_it(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/false", wanted=True, Restart="on-failure", RestartSec="60")
    systemd.ask("start", NAME)
    is_(systemd, "activating", "auto-restart")
    one = seen()
    assert (one.run, "systemd itself" in one.detail) == (Run.STARTING, True)
    systemd.ask("stop", NAME)
    is_(systemd, "inactive")
    assert seen().run is Run.STOPPED


def test_stopped_by_a_person_while_systemd_was_about_to_restart_what_had_ended_well(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/true", wanted=True, Restart="always", RestartSec="60")
    systemd.ask("start", NAME)
    is_(systemd, "activating", "auto-restart")
    systemd.ask("stop", NAME)
    is_(systemd, "inactive")
    assert seen().run is Run.STOPPED


def test_stopped_by_a_person_before_it_was_ready(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, Type="notify", TimeoutStartSec="60")
    systemd.ask("start", "--no-block", NAME)
    is_(systemd, "activating", "start")
    assert seen().run is Run.STARTING
    systemd.ask("stop", NAME)
    is_(systemd, "inactive")
    assert seen().run is Run.STOPPED


def test_one_that_never_became_ready_has_exited(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, Type="notify", TimeoutStartSec="300ms")
    systemd.ask("start", NAME, check=False)
    is_(systemd, "failed")
    one = seen()
    assert one.run is Run.EXITED
    assert "timeout" in one.detail


def test_one_that_is_being_stopped_is_stopped_and_one_being_restarted_is_starting(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/sh -c 'trap \"\" TERM; while :; do sleep 0.1; done'", TimeoutStopSec="60", wanted=True)
    systemd.ask("start", NAME)
    time.sleep(0.3)  # until the shell has set its trap
    systemd.ask("stop", "--no-block", NAME)
    is_(systemd, "deactivating")
    assert seen().run is Run.STOPPED
    systemd.ask("restart", "--no-block", NAME)
    assert seen().run is Run.STARTING
    systemd.ask("stop", "--no-block", NAME)
    systemd.ask("kill", "--signal=KILL", NAME)
    is_(systemd, "failed")
    assert seen().run is Run.STOPPED


def test_one_that_watches_itself_and_was_ended_for_it_has_exited(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, WatchdogSec="200ms")
    systemd.ask("start", NAME)
    is_(systemd, "failed")
    assert systemd.shows(NAME, "Result") == "watchdog"
    one = seen()
    assert (one.run, "watchdog" in one.detail) == (Run.EXITED, True)


def test_one_that_hit_its_start_limit_has_exited(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/false", unit={"StartLimitBurst": "2", "StartLimitIntervalSec": "60"}, Restart="always",
                 RestartSec="10ms")  # fmt: skip
    systemd.ask("start", NAME)
    is_(systemd, "failed")
    assert systemd.shows(NAME, "Result") in ("start-limit-hit", "exit-code")
    assert seen().run is Run.EXITED


def test_masked_is_stopped_and_missing_is_absent(systemd: Systemd) -> None:
    assert seen().run is Run.ABSENT
    systemd.unit(NAME, SLEEP)
    systemd.ask("mask", "--runtime", NAME, check=False)
    (systemd.root / "etc/systemd/system" / NAME).unlink()
    systemd.ask("daemon-reload")
    systemd.ask("mask", "--runtime", NAME, check=False)
    assert systemd.shows(NAME, "LoadState") == "masked"
    one = seen()
    assert (one.run, "masked" in one.detail) == (Run.STOPPED, True)


def test_a_broken_file_has_exited_with_the_reason(systemd: Systemd) -> None:
    systemd.unit(NAME, "not/absolute")
    assert systemd.shows(NAME, "LoadState") == "bad-setting"
    one = seen()
    assert (one.run, "bad-setting" in one.detail) == (Run.EXITED, True)


def test_disabled_but_running_runs(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    systemd.ask("start", NAME)
    systemd.ask("--quiet", "disable", NAME)
    assert systemd.shows(NAME, "UnitFileState") == "disabled"
    assert seen().run is Run.RUNNING


def test_work_that_is_done_once_and_what_stays_active_without_a_process(systemd: Systemd) -> None:
    systemd.unit(NAME, "/bin/true", wanted=True, Type="oneshot", RemainAfterExit="yes")
    systemd.ask("start", NAME)
    one = seen()
    assert (one.run, one.detail) == (Run.RUNNING, "exited")
    systemd.ask("stop", NAME)
    assert seen().run is Run.STOPPED


def test_a_systemd_that_hangs_is_a_timeout_within_the_deadline(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP)
    systemd.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="gave no answer"):
            asyncio.run(SystemdWorkload(unit=NAME).inspect(Call(timeout=1.0)))
        assert time.monotonic() - began < 1.5
    finally:
        systemd.thaw()
    until(lambda: seen().run is not Run.UNKNOWN, "it answers again")


def test_a_machine_without_systemctl_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FileNotFoundError):
        seen()


def test_a_thousand_failing_inspections_leave_nothing_behind(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred of a systemd that is frozen, the others of a `systemctl` that hangs: for us it is the same."""
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\nexec nsenter -t {systemd.init} -a -- systemctl "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    systemd.freeze()
    one = SystemdWorkload(unit=NAME)

    async def fail() -> None:
        with pytest.raises((TimeoutError, OSError)):
            await asyncio.wait_for(one.inspect(Call(timeout=0.05)), 5.0)

    async def story() -> tuple[int, int, int]:
        await asyncio.gather(*(fail() for _ in range(25)))
        gc.collect()
        before, threads = descriptors(), threading.active_count()
        for turn in range(40):
            if turn == 4:
                program.write_text("#!/bin/sh\nexec sleep 100\n")
            await asyncio.gather(*(fail() for _ in range(25)))
        gc.collect()
        return before, descriptors(), threads

    try:
        before, after, threads = asyncio.run(story())
    finally:
        systemd.thaw()
    assert after <= before
    until(lambda: threading.active_count() <= threads, "whoever collects the last of them has ended")
    # Their clients are gone from the container too, or systemd would answer into the void later.
    program.unlink()
    until(lambda: seen().run is Run.ABSENT, "it answers again")
