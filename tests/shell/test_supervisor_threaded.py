"""A supervisor in a thread of its own: beside synchronous applications, and beside a loop that stands still."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from selfheal import ActionContext, Supervisor
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.process_check import ProcessCheck
from selfheal.errors import RequestRefused
from selfheal.supervisor import Threaded

if TYPE_CHECKING:
    from tests.shell.supervised import MEND, QUICK, RESTART, Switch, ours, quick
else:
    from supervised import MEND, QUICK, RESTART, Switch, ours, quick

pytestmark = pytest.mark.real_time


def wait_until(condition: Callable[[], object], *, within: float = 5.0, what: str = "it") -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {within} s"
        time.sleep(0.01)


def state(threaded: Threaded, name: str) -> Any:
    return threaded.ask("service", service=name)["state"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_synchronous_code_has_everything_by_blocking_calls(backend: str, tmp_path: Path) -> None:
    before, _ = ours()
    check = Switch()
    supervisor = Supervisor([quick("api", check=check)], journal=tmp_path / "selfheal.db")
    with supervisor.threaded(backend=backend) as threaded:
        wait_until(lambda: state(threaded, "api") == "healthy")
        threaded.register(quick("late", check=Switch()))
        wait_until(lambda: state(threaded, "late") == "healthy")
        threaded.remove("late")
        with pytest.raises(RequestRefused, match="confirm"):
            threaded.remove("api")
        answer = threaded.act("pause", everything=True, actor="alice", reason="a test")
        assert answer["accepted"]
        assert threaded.ask("suppressions")[0]["actor"] == "alice"
    assert not supervisor.running
    wait_until(lambda: ours()[0] <= before, what="the end of the threads")


def test_an_asynchronous_callable_without_a_loop_is_inconclusive_and_says_what_to_do() -> None:
    async def never() -> bool:
        raise AssertionError("there is no loop to run it on")

    supervisor = Supervisor([quick("api", check=never)], journal=None)
    with supervisor.threaded() as threaded:
        wait_until(lambda: threaded.ask("service", service="api")["evidence"]["inconclusive"] >= 1)
        asked = threaded.ask("service", service="api")
    assert asked["state"] == "unknown"
    assert "plain function" in asked["summary"]


@pytest.mark.anyio
async def test_asynchronous_callables_run_on_the_loop_that_called_threaded() -> None:
    here, ran = threading.get_ident(), set[int]()
    ill, cured = Switch(False), anyio.Event()
    supervisor = Supervisor(journal=None)

    async def check() -> bool:
        ran.add(threading.get_ident())
        await anyio.lowlevel.checkpoint()
        return ill()

    @supervisor.action("api", "mend")
    async def mend(context: ActionContext) -> None:
        ran.add(threading.get_ident())
        await anyio.lowlevel.checkpoint()
        ill.well = True
        cured.set()

    supervisor.service("api", recovery_actions=MEND, **QUICK)(check)
    with supervisor.threaded() as threaded:
        with anyio.fail_after(5):
            await cured.wait()
        await anyio.to_thread.run_sync(wait_until, lambda: state(threaded, "api") == "healthy")
    assert ran == {here}


def test_s15_a_host_that_blocks_its_loop_is_healed_all_the_same(tmp_path: Path) -> None:
    """The program is killed while the application's loop stands still; it runs again before the loop turns again."""
    workload = ProcessWorkload(command=["sleep", "600"], state_directory=tmp_path / "processes")
    service = quick("program", check=ProcessCheck(), workload=workload, recovery_actions=RESTART)
    supervisor = Supervisor([service], journal=tmp_path / "selfheal.db")

    async def application() -> tuple[str, str]:
        with supervisor.threaded() as threaded:
            await asyncio.to_thread(wait_until, lambda: state(threaded, "program") == "healthy")
            first = (await asyncio.to_thread(_instance, threaded, supervisor)).id
            os.kill(int(first.partition(":")[0]), signal.SIGKILL)
            time.sleep(1.5)  # noqa: ASYNC251  # the application's fault is the subject
            return first, (await asyncio.to_thread(_instance, threaded, supervisor)).id

    began = time.monotonic()
    first, second = asyncio.run(application())
    assert first != second
    assert time.monotonic() - began < 10.0


def _instance(threaded: Threaded, supervisor: Supervisor) -> Any:
    running = supervisor._running
    assert running is not None
    return threaded.portal.call(running.actions.look, running.roster.entries["program"])


def test_what_the_application_raises_comes_out_and_everything_ends(tmp_path: Path) -> None:
    supervisor = Supervisor([quick("api", check=Switch())], journal=tmp_path / "selfheal.db")
    with pytest.raises(ZeroDivisionError), supervisor.threaded():
        raise ZeroDivisionError
    assert not supervisor.running
    with supervisor.threaded() as threaded:
        assert threaded.ask("status")["running"]


def test_a_check_that_blocks_its_thread_neither_stops_the_others_nor_the_end() -> None:
    free, blocked = Switch(), threading.Event()
    supervisor = Supervisor([quick("stuck", check=lambda: blocked.wait(30.0)), quick("free", check=free)], journal=None)
    with supervisor.threaded() as threaded:
        wait_until(lambda: state(threaded, "stuck") in ("unhealthy", "failed"))
        calls = free.calls
        wait_until(lambda: free.calls > calls + 2, what="the checks of the other")
        began = time.monotonic()
    assert time.monotonic() - began < 5.0
    blocked.set()
