"""The whole of it: a supervisor keeps a real unit of a real systemd alive, and touches nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import pytest
from tests.servers import free_port, program_of, until
from tests.shell.supervised import hearing, quick, until_state
from tests.stack.docker_or_systemd import HOW, beside_polling, times_to_be_well_again
from tests.stack.killed import killed_afterwards
from tests.stack.systemd import Systemd, on_the_way

from selfheal import Backoff, Service, State, Supervisor
from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.records import Ended, Intended
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

SICK, WELL, CRASH = "kh-sick.service", "kh-well.service", "kh-crash.service"


@pytest.fixture
def anyio_backend() -> str:
    """One host is enough: a plugin runs on asyncio in a thread of ours; the conformance kit has every host."""
    return "asyncio"


def service(unit: str, port: int) -> Service:
    return Service(
        unit.removesuffix(".service"),
        check=RedisPing(url=f"redis://127.0.0.1:{port}", keep=False),
        workload=SystemdWorkload(unit=unit, settle=0.2),
        recovery_actions=[{"action": "restart", "settle": 0.5}],
        interval=1.0,
        backoff=Backoff(initial=0.1),
        probation=0.0,
        success_threshold=1,
    )


async def until_true(true: Callable[[], object], what: str) -> None:
    await anyio.to_thread.run_sync(until, true, what, 30.0)


def state(supervisor: Supervisor, name: str) -> State:
    running = supervisor._running
    assert running is not None
    return running.engine.ledger.conditions[name].state


@pytest.mark.anyio
async def test_a_killed_unit_is_repaired_and_a_healthy_one_is_left_alone(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = program_of("redis", "redis-server")
    ports = {SICK: free_port(), WELL: free_port()}
    for unit, port in ports.items():
        systemd.unit(unit, f"{program} --port {port} --bind 127.0.0.1 --save ''", wanted=True)
        systemd.ask("start", unit)
    before = {unit: systemd.shows(unit, "InvocationID") for unit in ports}
    names = [unit.removesuffix(".service") for unit in ports]
    services = [service(unit, port) for unit, port in ports.items()]
    async with Supervisor(services, journal=tmp_path / "selfheal.db") as supervisor:
        for name in names:
            await until_true(lambda name=name: state(supervisor, name) is State.HEALTHY, f"{name} is healthy")  # type: ignore[misc]
        killed = await anyio.to_thread.run_sync(systemd.kill, SICK)
        await until_true(lambda: systemd.shows(SICK, "InvocationID") not in (before[SICK], ""), "it was restarted")
        repaired = time.monotonic() - killed
        await until_true(lambda: state(supervisor, names[0]) is State.HEALTHY, "it is healthy again")
        healthy = time.monotonic() - killed
        # What a person stops afterwards is seen to be down, and stays down.
        await anyio.to_thread.run_sync(systemd.ask, "stop", SICK)
        well = (State.HEALTHY, State.DEGRADED)
        await until_true(lambda: state(supervisor, names[0]) not in well, "it is seen to be down")
        await anyio.sleep(2.0)
        assert supervisor._running is not None
        batches = list(supervisor._running.journal.reader.batches())
    records = [record for batch in batches for record in batch.records]
    with capsys.disabled():
        print(f"\nSIGKILL to a new invocation: {repaired:.2f} s, to healthy: {healthy:.2f} s")
    assert systemd.shows(SICK, "ActiveState") == "inactive"
    assert systemd.shows(WELL, "InvocationID") == before[WELL]
    intents = [record for record in records if isinstance(record, Intended)]
    assert [intent.service for intent in intents] == [names[0]]
    (ended,) = [record for record in records if isinstance(record, Ended)]
    assert ended.detail.startswith(f"started {SICK}, which was ended by SIGKILL: invocation ")


@pytest.mark.anyio
async def test_a_death_that_is_heard_is_over_sooner_than_one_that_is_found_by_polling(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = program_of("redis", "redis-server")
    runs = {}
    for how in HOW:
        port = free_port()
        unit = f"kh-redis-{port}.service"
        systemd.unit(unit, f"{program} --port {port} --bind 127.0.0.1 --save ''", wanted=True)
        systemd.ask("start", unit)
        runs[how] = (port, SystemdWorkload(unit=unit, settle=0.2), partial(systemd.kill, unit))
    took = await times_to_be_well_again(runs, tmp_path / "selfheal.db")
    with capsys.disabled():
        print(beside_polling("a unit's process", took))
    assert took[HOW[0]] < took[HOW[2]]


@pytest.mark.anyio
async def test_a_manager_killed_in_the_middle_of_a_restart_is_settled_by_its_successor(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `systemctl` outlives it, and restarts the unit while the successor already asks: that is done, and once."""
    monkeypatch.setenv("PATH", f"{on_the_way(systemd, tmp_path)}:{os.environ['PATH']}")
    systemd.unit(CRASH, "/bin/sleep 1000", wanted=True)
    systemd.ask("start", CRASH)
    before = systemd.shows(CRASH, "InvocationID")
    journal = tmp_path / "selfheal.db"
    step = {"action": "restart", "settle": 0.1}
    options = f"check=lambda: False, workload=SystemdWorkload(unit={CRASH!r}, settle=0.2)"
    with killed_afterwards(journal, step, options, "from selfheal_systemd.workload import SystemdWorkload"):
        await until_true((tmp_path / "asking").exists, "its systemctl is on the way")
    service = quick("service", check=lambda: True, workload=SystemdWorkload(unit=CRASH), recovery_actions=[step])
    async with Supervisor([service], journal=journal) as supervisor, hearing(supervisor) as heard:
        await anyio.sleep(1.0)
        assert not heard.of("ended"), "nobody can tell yet"
        assert systemd.shows(CRASH, "InvocationID") == before
        (tmp_path / "go").touch()
        ended = await heard.first("ended", within=20.0)
        assert ended.settled.value == "done", ended
        await until_state(supervisor, "service", "healthy", within=10.0)
        assert len(heard.of("intended")) == 1
    after = systemd.shows(CRASH, "InvocationID")
    assert after not in (before, "")
    started = systemd.run("journalctl", "--no-pager", "--output=cat", f"--unit={CRASH}", check=False).count("Started ")
    assert started in (0, 2), "once by hand, once by us; where the journal is kept at all"
