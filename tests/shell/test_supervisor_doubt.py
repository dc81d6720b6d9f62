"""Self-doubt: what we see after we stood still proves nothing about others (laws 2, 7; G14)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from selfheal import Supervisor
from selfheal.builtin.wire_checks import HttpCheck
from selfheal.core.messages import WokeLate
from selfheal.journal import SqliteStore
from selfheal.testing.doubles import ScriptedCheck, ScriptedWorkload
from selfheal.testing.servers import answer

if TYPE_CHECKING:
    from tests.shell.supervised import RESTART, hearing, quick, state_of, stored, until_state
else:
    from supervised import RESTART, hearing, quick, state_of, stored, until_state

pytestmark = pytest.mark.real_time

WELL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


def _deadline(child: subprocess.Popen[bytes]) -> threading.Timer:
    """Kill a child that hangs: whoever reads what it says then hears its end."""
    timer = threading.Timer(60.0, child.kill)
    timer.daemon = True
    timer.start()
    return timer


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_g14_a_manager_that_was_suspended_counts_no_failure_and_does_nothing(tmp_path: Path, backend: str) -> None:
    script = str(Path(__file__).with_name("stopped_manager.py"))
    pauses = [0.8, 1.0, 1.3, 1.7, 2.5, 3.0, 0.9, 1.1]
    with answer(WELL, pause=0.2) as address:
        child = subprocess.Popen(
            [sys.executable, script, str(tmp_path), backend, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None
        assert child.stdout is not None
        too_long = _deadline(child)
        try:
            assert child.stdout.readline() == b"ready\n"
            for pause in pauses:
                os.kill(child.pid, signal.SIGSTOP)
                time.sleep(pause)
                os.kill(child.pid, signal.SIGCONT)
                time.sleep(1.1)
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert child.wait(20) == 0
        finally:
            too_long.cancel()
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
    records = stored(tmp_path / "selfheal.db")
    moves = [(r.service, r.after.state.value, r.because) for r in records if r.kind == "moved"]
    bad = [move for move in moves if move[1] not in ("unknown", "healthy")]
    doubts = [record.late for record in records if record.kind == "doubted"]
    print(f"\n{backend}: {len(pauses)} suspensions of {sum(pauses):.1f} s, doubts {[round(d, 2) for d in doubts]}")
    assert bad == []
    assert not (tmp_path / "restarts").exists()
    assert len(doubts) >= len(pauses)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_suspension_is_noticed_though_nothing_was_due(tmp_path: Path, backend: str) -> None:
    """The next timer is an hour away: only the pulse of the loop tells that the time-out was ours."""
    script = str(Path(__file__).with_name("stopped_manager.py"))
    child = subprocess.Popen(
        [sys.executable, script, str(tmp_path), backend, "lone"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    too_long = _deadline(child)
    try:
        assert child.stdout.readline() == b"checking\n"
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(child.pid, signal.SIGCONT)
        time.sleep(1.0)
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.wait(20) == 0
    finally:
        too_long.cancel()
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    records = stored(tmp_path / "selfheal.db")
    assert [record.after.state.value for record in records if record.kind == "moved"] == []
    assert [record.kind for record in records if record.kind == "doubted"] == ["doubted"]


@pytest.mark.anyio
async def test_a_host_that_blocks_its_loop_is_noticed_and_nobody_is_blamed(tmp_path: Path) -> None:
    with answer(WELL, pause=0.05) as address:
        services = [
            quick("wire", check=HttpCheck(url=f"http://{address}/"), failure_threshold=1, latency_objective=0.3),
            quick("coroutine", check=ScriptedCheck(), failure_threshold=1, recovery_actions=RESTART,
                  workload=ScriptedWorkload()),
        ]  # fmt: skip
        async with Supervisor(services, journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
            await until_state(supervisor, "wire", "healthy")
            await until_state(supervisor, "coroutine", "healthy")
            for _ in range(3):
                await anyio.sleep(0.3)
                time.sleep(1.0)  # noqa: ASYNC251  # the application's fault is the subject
            await anyio.sleep(0.5)
            for name in ("wire", "coroutine"):
                assert (await state_of(supervisor, name))["state"] == "healthy"
            assert heard.of("intended") == []
            bad = [(r.service, r.because) for r in heard.of("moved") if r.after.state not in ("unknown", "healthy")]
            assert bad == []
            assert len(heard.of("doubted")) >= 3
            assert (await supervisor.ask("health"))["lag_seconds"] >= 0.5
    store = SqliteStore.open(tmp_path / "selfheal.db")
    late = [batch.input for batch in store.batches() if isinstance(batch.input, WokeLate)]
    store.close()
    assert len(late) >= 3
