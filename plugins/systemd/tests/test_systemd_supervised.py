"""The whole of it: a supervisor keeps a real unit of a real systemd alive, and touches nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from tests.servers import free_port, program_of, until
from tests.stack.systemd import Systemd

from selfheal import Backoff, Service, State, Supervisor
from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.records import Ended, Intended
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

SICK, WELL = "kh-sick.service", "kh-well.service"


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
    assert sum(isinstance(record, Ended) for record in records) == 1
