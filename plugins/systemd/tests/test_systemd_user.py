"""The units of a user, with their real manager: looked at, heard, healed, given more, and proven beforehand."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.builtin.receiver import Call
from tests.servers import until
from tests.stack.docker_or_systemd import Ear
from tests.stack.systemd import Systemd

from selfheal import ActionFailed, Instance, Run, Settled
from selfheal_systemd import listening
from selfheal_systemd.unit import Unit
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-api.service"
USER = "kh-user"
FILE = """[Service]
ExecStart=/bin/sleep 1000
MemoryMax=64M
[Install]
WantedBy=default.target
"""


@attrs.frozen(kw_only=True)
class Home:
    """A user with a manager, and one unit of theirs."""

    systemd: Systemd
    uid: int

    def ask(self, *arguments: str, check: bool = True) -> str:
        """Run `systemctl --user` as the user would, and return what it says."""
        place = f"XDG_RUNTIME_DIR=/run/user/{self.uid}"
        return self.systemd.run("env", place, "systemctl", "--user", "--no-pager", *arguments, check=check, user=USER)

    def shows(self, key: str) -> str:
        return self.ask("show", f"--property={key}", "--value", NAME)


@pytest.fixture
def home(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Have a user whose manager runs, and be that user as far as `systemctl` is concerned."""
    uid = systemd.person(USER)
    folder = systemd.root / f"home/{USER}/.config/systemd/user"
    wants = folder / "default.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(FILE)
    (wants / NAME).unlink(missing_ok=True)
    (wants / NAME).symlink_to(folder / NAME)
    systemd.run("chown", "-R", USER, f"/home/{USER}/.config")
    systemd.ask("start", f"user@{uid}.service")
    monkeypatch.setenv("PATH", f"{systemd.programs(USER)}:/usr/bin:/bin:/usr/sbin:/sbin")
    # As in a unit with User= and without a log-in: nobody has said where the manager is.
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    one = Home(systemd=systemd, uid=uid)
    until(lambda: one.shows("ActiveState") == "active", "the user's unit is up")
    yield one
    systemd.ask("stop", f"user@{uid}.service")


def workload(**options: Any) -> SystemdWorkload:
    return SystemdWorkload(unit=NAME, manager="user", **{"settle": 0.1, **options})


def seen(**options: Any) -> Instance:
    return asyncio.run(workload(**options).inspect(Call()))


def do(verb: str, **options: Any) -> str:
    context = Call(timeout=20.0)
    context.verb, context.expected = verb, seen()
    return str(asyncio.run(getattr(workload(**options), verb)(context)))


def killed(home: Home) -> float:
    """SIGKILL the main process of the unit; return when, monotonic."""
    unit = asyncio.run(workload()._look(Call()))[0]
    os.kill(unit.main_pid, signal.SIGKILL)
    return time.monotonic()


def test_it_is_looked_at_healed_and_left_alone_as_a_unit_of_the_system_is(home: Home) -> None:
    before = seen()
    assert (before.run, before.id) == (Run.RUNNING, home.shows("InvocationID"))
    assert asyncio.run(SystemdWorkload(unit=NAME).inspect(Call())).run is Run.ABSENT  # the system knows nothing of it
    context = Call()
    context.expected = before
    assert asyncio.run(workload().probe(context)) is Settled.NOT_STARTED
    do("restart")
    assert (seen().run, seen().id != before.id) == (Run.RUNNING, True)
    assert asyncio.run(workload().probe(context)) is Settled.DONE
    killed(home)
    until(lambda: seen().run is Run.EXITED, "it has ended")
    assert "which was ended by SIGKILL" in do("restart")
    home.ask("stop", NAME)
    assert seen().run is Run.STOPPED
    with pytest.raises(ActionFailed, match="somebody asked systemd to stop it"):
        do("restart")
    assert "started" in do("start")


def test_it_is_given_more_memory(home: Home) -> None:
    assert home.shows("MemoryMax") == str(64 << 20)
    assert f"from {64 << 20} to {96 << 20} bytes" in do("scale_up", memory_max=1 << 30)
    assert home.shows("MemoryMax") == str(96 << 20)


def test_its_death_is_heard_from_the_kernel(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear()
    held: list[int] = []
    hold = listening.hold

    def told(unit: Unit) -> int | None:
        descriptor = hold(unit)
        held.extend(() if descriptor is None else (unit.main_pid,))
        return descriptor

    monkeypatch.setattr(listening, "hold", told)

    async def story() -> float:
        async def listen() -> None:
            async for instance in workload().watch(Call(timeout=3600.0)):
                ear.heard.append((time.monotonic(), instance))

        listener = asyncio.ensure_future(listen())
        await asyncio.to_thread(until, lambda: held, "its main process is held")
        os.kill(held[0], signal.SIGKILL)
        began = time.monotonic()
        at = await ear.until(lambda one: one.run is Run.EXITED, "its death")
        listener.cancel()
        await asyncio.wait([listener])
        return at - began

    assert asyncio.run(story()) < 1.0


def test_s62_what_may_be_done_is_proven_and_what_is_missing_is_told(home: Home, tmp_path: Path) -> None:
    before = home.shows("InvocationID")
    assert asyncio.run(workload(memory_max=1 << 30).doctor(Call())) == []
    assert home.shows("InvocationID") == before
    assert "no CPUQuota=" in "\n".join(map(str, asyncio.run(workload(cpus_max=2.0).doctor(Call()))))
    home.systemd.ask("stop", f"user@{home.uid}.service")
    (problem,) = asyncio.run(workload().doctor(Call()))
    assert (problem.path, "loginctl enable-linger" in problem.hint) == ("workload.manager", True)
