"""Several processes on one journal: one heals, the others read along, hand acts on, and take over when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.broken import fails_when
from tests.cli.conftest import PATIENCE, House, wait_for

from selfheal.core.records import Moved
from selfheal.errors import RequestRefused
from selfheal.service import Service
from selfheal.supervisor import Supervisor

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

WORKER = """
import sys, anyio
from selfheal.supervisor import Supervisor

async def main():
    async with Supervisor.from_file(sys.argv[1]) as supervisor:
        print("reading" if supervisor.reading else "holding", flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[2])
"""


def worker(house: House, backend: str = "asyncio") -> subprocess.Popen[bytes]:
    """Start a web worker, as far as we are concerned, and wait until it has come up."""
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(house.file), backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=house.environment,
    )
    house.children.append(child)
    assert child.stdout is not None
    assert child.stdout.readline() in (b"reading\n", b"holding\n")
    return child


def holder(house: House) -> int:
    return int((house.state / "selfheal.db.lock").read_text())


def restarts(house: House) -> int:
    return sum(len(one["actions"]) for one in house.ask("incidents"))


@fails_when("a journal is held by everybody")
def test_s59_four_workers_make_one_recovery_and_the_death_of_the_holder_changes_nothing(house: House) -> None:
    workers = [worker(house, backend) for backend in ("asyncio", "asyncio", "trio", "trio")]
    house.settled()
    assert holder(house) == workers[0].pid
    old = house.break_(house.web)
    wait_for(lambda: [pid for pid in house.programs(house.web) if pid != old])
    wait_for(lambda: [one for one in house.ask("incidents") if not one["open"]])
    assert restarts(house) == 1
    (program,) = house.programs(house.web)

    workers[0].kill()
    workers[0].wait()
    wait_for(lambda: holder(house) in {one.pid for one in workers[1:]}, within=5.0)
    house.settled()
    assert house.programs(house.web) == [program]
    house.break_(house.web)
    wait_for(lambda: [pid for pid in house.programs(house.web) if pid != program])
    wait_for(lambda: house.state_of("web") == "healthy")
    assert restarts(house) == 2
    assert all(one.poll() is None for one in workers[1:])


async def blocking(function: Any, *arguments: Any, **options: Any) -> Any:
    return await anyio.to_thread.run_sync(partial(function, *arguments, **options))


@fails_when("who reads along asks nobody")
async def test_s55_a_second_supervisor_answers_what_the_holder_believes(house: House) -> None:
    await blocking(house.start)
    await blocking(house.settled)
    async with Supervisor.from_file(house.file) as supervisor:
        assert supervisor.reading
        assert supervisor.running
        mine, its = await supervisor.ask("status"), await blocking(house.ask, "status")
        assert [(line["service"], line["since"]) for line in mine["services"]] == [
            (line["service"], line["since"]) for line in its["services"]
        ]
        assert all(line["last_check"] for line in mine["services"] if line["service"] != "job")
        assert await supervisor.ask("history") == await blocking(house.ask, "history")
        with pytest.raises(RequestRefused, match="no service 'nope'"):
            await supervisor.ask("service", service="nope")
        with pytest.raises(RequestRefused, match="another process holds"):
            await supervisor.remove("web")


async def test_acts_are_handed_on_with_their_actor_and_both_are_recorded(house: House) -> None:
    await blocking(house.start)
    async with Supervisor.from_file(house.file) as supervisor:
        answer = await supervisor.act("disable", service="job", actor="ann", reason="retired")
        assert answer["actor"] == f"ann via uid {os.getuid()}"
        assert answer["accepted"]
        (recorded,) = await blocking(house.ask, "audit")
        assert recorded == answer
        scopes = frozenset({"read", "operate"})
        with pytest.raises(RequestRefused, match="needs the scope admin") as refused:
            await supervisor.act("release", hold="storm", reason="x", scopes=scopes)
        assert refused.value.code == "forbidden"
        await supervisor.act("enable", service="job", reason="after all")
        supervisor.beat("job")
        await blocking(wait_for, lambda: house.state_of("job") == "healthy")


async def test_records_are_read_along(house: House) -> None:
    await blocking(house.start)
    await blocking(house.settled)
    async with Supervisor.from_file(house.file) as supervisor, supervisor.records() as records:
        moves = []
        await blocking(house.run, "disable", "job", "--reason", "x")
        with anyio.fail_after(PATIENCE):
            async for told in records:
                if isinstance(told.record, Moved):
                    moves.append(told.record.after.state.value)
                    break
        assert moves == ["disabled"]


async def test_an_act_outlives_the_death_of_the_holder(house: House) -> None:
    daemon = await blocking(house.start)
    await blocking(house.settled)
    async with Supervisor.from_file(house.file) as supervisor:
        assert supervisor.reading
        programs = house.programs(house.web)
        daemon.send_signal(signal.SIGKILL)
        await blocking(daemon.wait)
        answer = await supervisor.act("pause", services=["web"], actor="ann", reason="in between")
        assert answer["actor"] == "ann", "by then it is this process that heals"
        assert not supervisor.reading
        assert (await blocking(house.ask, "status"))["running"]
        assert house.programs(house.web) == programs
    assert not (house.state / "control.sock").exists()


async def test_without_a_holder_it_answers_from_the_journal_until_it_takes_over(house: House) -> None:
    daemon = await blocking(house.start)
    await blocking(house.settled)
    async with Supervisor.from_file(house.file) as supervisor:
        daemon.send_signal(signal.SIGKILL)
        answer = await supervisor.ask("status")
        assert {line["service"]: line["state"] for line in answer["services"]}["web"] == "healthy"
        await blocking(wait_for, lambda: not supervisor.reading)


async def test_who_does_not_want_to_share_is_refused(tmp_path: Path) -> None:
    from selfheal.errors import JournalHeld

    async with Supervisor([Service("a", check=lambda: True)], journal=tmp_path / "x.db"):
        second = Supervisor([Service("a", check=lambda: True)], journal=tmp_path / "x.db", share=False)
        with pytest.raises(JournalHeld, match=f"process {os.getpid()}"):
            await second.__aenter__()
        assert not second.running


async def raising(supervisor: Supervisor, *, reading: bool) -> None:
    async with supervisor:
        assert supervisor.reading is reading
        raise KeyError("mine")


async def test_an_exception_of_the_application_comes_out_as_it_went_in(tmp_path: Path) -> None:
    for path in (None, tmp_path / "x.db"):
        with pytest.raises(KeyError, match="mine"):
            await raising(Supervisor([], journal=path), reading=False)
    async with Supervisor([], journal=tmp_path / "x.db"):
        with pytest.raises(KeyError, match="mine"):
            await raising(Supervisor([], journal=tmp_path / "x.db"), reading=True)
