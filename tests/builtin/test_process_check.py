"""The check `process`: alive, the right one, and not a new one all the time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import attrs
import pytest

from selfheal.builtin import proc
from selfheal.builtin.process_check import ProcessCheck
from selfheal.core.model import PASSING, Cause, CheckResult, Instance, Run, Verdict
from selfheal.plugins import HealthCheck, Workload

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@attrs.define(kw_only=True)
class Given:
    service: str = "daemon"
    remaining: float = 5.0
    kept: dict[str, Any] = attrs.field(factory=dict)
    deep: bool = False
    previous: CheckResult | None = None
    workload: Workload | None = None

    async def blocking(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return function(*args)


@attrs.define
class Workshop:
    """A workload that says what it is told."""

    kind: ClassVar[str] = "workshop"

    instance: Instance

    async def inspect(self, context: object) -> Instance:
        return self.instance

    async def restart(self, context: object) -> None: ...


@pytest.fixture
def daemon() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        child.kill()


@pytest.fixture
def pid_file(tmp_path: Path, daemon: subprocess.Popen[bytes]) -> Path:
    path = tmp_path / "daemon.pid"
    path.write_text(f"{daemon.pid}\n")
    return path


def test_it_is_a_health_check() -> None:
    assert isinstance(ProcessCheck(), HealthCheck)


async def test_a_living_process_passes_and_says_which_incarnation_it_is(
    pid_file: Path, daemon: subprocess.Popen[bytes]
) -> None:
    seen = proc.look(daemon.pid)
    assert seen is not None
    result = await ProcessCheck(pid_file=pid_file, program="sleep").check(Given())
    assert (result.verdict, result.instance) == (Verdict.PASSING, str(seen.identity))


async def test_a_dead_one_has_exited_also_while_it_is_a_zombie(pid_file: Path, daemon: subprocess.Popen[bytes]) -> None:
    seen = proc.look(daemon.pid)
    assert seen is not None
    daemon.kill()
    await proc.gone(seen.identity, 5)
    os.kill(daemon.pid, 0)  # a zombie
    result = await ProcessCheck(pid_file=pid_file).check(Given())
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.EXITED)
    os.unlink(pid_file)
    result = await ProcessCheck(pid_file=pid_file).check(Given())
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.EXITED)


async def test_another_program_under_the_same_pid_is_not_the_service(pid_file: Path) -> None:
    result = await ProcessCheck(pid_file=pid_file, program="postgres").check(Given())
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.EXITED)
    assert "is sleep by now" in result.summary


async def test_one_that_is_stopped_by_a_signal_is_a_warning(pid_file: Path, daemon: subprocess.Popen[bytes]) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)
    with anyio.fail_after(5):
        while (found := proc.look(daemon.pid)) is None or found.state != "T":  # noqa: ASYNC110  # the kernel's state
            await anyio.sleep(0.005)
    result = await ProcessCheck(pid_file=pid_file).check(Given())
    assert result.verdict is Verdict.WARNING
    assert "stopped" in result.summary
    seen = proc.look(daemon.pid)
    assert seen is not None
    workload = Workshop(Instance(id=str(seen.identity), run=Run.RUNNING))
    assert (await ProcessCheck(workload=workload).check(Given())).verdict is Verdict.WARNING


@pytest.mark.parametrize("text", ["", "none", "-1", "0", "12 x", "\0"])
async def test_a_file_without_a_pid_says_nothing_of_the_service(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pid"
    path.write_text(text)
    result = await ProcessCheck(pid_file=path).check(Given())
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    result = await ProcessCheck(pid_file=tmp_path).check(Given())
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


@pytest.mark.parametrize(
    ("run", "verdict", "cause"),
    [
        (Run.RUNNING, Verdict.PASSING, None),
        (Run.EXITED, Verdict.FAILING, Cause.EXITED),
        (Run.STOPPED, Verdict.FAILING, Cause.EXITED),
        (Run.ABSENT, Verdict.FAILING, Cause.EXITED),
        (Run.STARTING, Verdict.FAILING, Cause.STARTING),
        (Run.UNKNOWN, Verdict.INCONCLUSIVE, Cause.ERROR),
    ],
)
async def test_the_service_s_own_workload_is_asked(run: Run, verdict: Verdict, cause: Cause | None) -> None:
    workload = Workshop(Instance(id="a", run=run))
    for check, context in ((ProcessCheck(), Given(workload=workload)), (ProcessCheck(workload=workload), Given())):
        result = await check.check(context)
        assert (result.verdict, result.cause) == (verdict, cause)


async def test_with_neither_file_nor_workload_it_says_what_is_missing() -> None:
    result = await ProcessCheck().check(Given())
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


async def test_missing_copies_are_a_warning() -> None:
    check = ProcessCheck(copies=3, workload=Workshop(Instance(id="a,b", run=Run.RUNNING, count=2)))
    result = await check.check(Given())
    assert (result.verdict, result.summary) == (Verdict.WARNING, "2 of 3 copies run")


async def test_a_process_that_keeps_being_a_new_one_is_a_warning_until_it_stays() -> None:
    workload = Workshop(Instance(id="0", run=Run.RUNNING))
    check = ProcessCheck(workload=workload, restarts=3, per=3600.0)
    verdicts = []
    for number in (0, 0, 1, 2, 2, 3, 3):
        workload.instance = Instance(id=str(number), run=Run.RUNNING)
        verdicts.append((await check.check(Given())).verdict)
    assert verdicts == [Verdict.PASSING] * 5 + [Verdict.WARNING] * 2
    result = await check.check(Given())
    assert result.summary == "restarted 3 times within 3600 s"
    assert result.details == {"count": 1, "restarts": 3}
    check._incarnations.changes[0] -= 3601
    assert await check.check(Given()) is PASSING
