"""Permission on a real systemd with a real polkit: proven without acting, and told with the exact remedy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from tests.builtin.receiver import Call
from tests.servers import program_of, until
from tests.stack.systemd import Systemd

from selfheal import ActionFailed, Run
from selfheal.errors import Problem
from selfheal_systemd import permission, systemctl
from selfheal_systemd.workload import SystemdWorkload

pytestmark = [pytest.mark.server, pytest.mark.real_time]

NAME = "kh-api.service"
SLEEP = "/bin/sleep 1000"
HEALER = "kh-healer"


def found(**options: Any) -> list[Problem]:
    return asyncio.run(SystemdWorkload(unit=NAME, **options).doctor(Call()))


def told(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


@pytest.fixture
def unprivileged(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Speak to systemd as a user without rights, with polkit as the judge."""
    program_of("systemd", "pkcheck")
    systemd.person(HEALER)
    monkeypatch.setenv("PATH", f"{systemd.programs(HEALER)}:{os.environ['PATH']}")
    for module in (systemctl, permission):
        monkeypatch.setattr(module, "user", lambda: HEALER)
    yield HEALER
    rules = systemd.root / permission.RULES.lstrip("/")
    if rules.exists():
        rules.unlink()
        systemd.ask("restart", "polkit.service")


def allow(systemd: Systemd, rule: str) -> None:
    """Have polkit read a rule, as it stands in the remedy."""
    path = systemd.root / permission.RULES.lstrip("/")
    path.write_text(rule)
    path.chmod(0o644)
    systemd.ask("restart", "polkit.service")


def test_s62_root_may_do_everything_and_nothing_happens(systemd: Systemd) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, MemoryMax="64M")
    systemd.ask("start", NAME)
    before = systemd.shows(NAME, "InvocationID"), systemd.shows(NAME, "StateChangeTimestampMonotonic")
    assert found(memory_max="1g") == []
    assert (systemd.shows(NAME, "InvocationID"), systemd.shows(NAME, "StateChangeTimestampMonotonic")) == before
    systemd.ask("stop", NAME)
    assert found() == []
    assert systemd.shows(NAME, "ActiveState") == "inactive"


def test_s62_without_rights_it_is_told_and_the_remedy_works_word_for_word(systemd: Systemd, unprivileged: str) -> None:
    systemd.unit(NAME, SLEEP, wanted=True, MemoryMax="64M")
    systemd.ask("start", NAME)
    one = SystemdWorkload(unit=NAME, memory_max=1 << 30, settle=0.1)
    before = asyncio.run(one.inspect(Call()))
    assert before.run is Run.RUNNING  # looking needs no right
    (problem,) = found(memory_max="1g")
    assert "restart, scale_up, start, stop" in problem.message
    for verb in ("restart", "stop", "scale_up"):
        with pytest.raises(ActionFailed, match=f"{HEALER} may not .*50-selfheal.rules"):
            asyncio.run(getattr(one, verb)(Call()))
    assert asyncio.run(one.inspect(Call())).id == before.id

    allow(systemd, problem.hint.partition("\n")[2])
    until(lambda: found(memory_max="1g") == [], "polkit allows it")
    for verb in ("restart", "scale_up", "stop", "start"):
        asyncio.run(getattr(one, verb)(Call()))
    after = asyncio.run(one.inspect(Call()))
    assert (after.run, after.id != before.id) == (Run.RUNNING, True)


def test_s62_the_rule_is_for_this_unit_and_these_verbs_only(systemd: Systemd, unprivileged: str) -> None:
    systemd.unit(NAME, SLEEP, wanted=True)
    systemd.unit("kh-other.service", SLEEP, wanted=True)
    allow(systemd, permission.rule(NAME, ["restart", "reset-failed", "cancel"]))
    until(lambda: "restart" not in told(found()).partition(" of ")[0], "polkit allows a restart")
    assert "start, stop of" in told(found())
    other = asyncio.run(SystemdWorkload(unit="kh-other.service").doctor(Call()))
    assert "restart, start, stop" in told(other)


def test_what_is_wrong_with_a_unit_is_told(systemd: Systemd) -> None:
    assert "is not known to systemd" in told(found())
    systemd.unit(NAME, SLEEP)
    assert "is not enabled" in told(found())
    assert found(unexplained_end="exited") == []
    assert "no MemoryMax=" in told(found(memory_max="1g"))
    assert "no CPUQuota=" in told(found(cpus_max=2.0))
    systemd.unit(NAME, SLEEP, unit={"RefuseManualStart": "yes", "RefuseManualStop": "yes"})
    assert "RefuseManualStart" in told(found())
    assert "RefuseManualStop" in told(found())
    systemd.unit(NAME, "not/absolute")
    assert "bad-setting" in told(found())
    (systemd.root / "etc/systemd/system" / NAME).unlink()
    systemd.ask("mask", "--runtime", NAME)
    assert "is masked" in told(found())


def test_without_systemctl_and_without_systemd_it_is_told(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd.freeze()
    try:
        (problem,) = asyncio.run(SystemdWorkload(unit=NAME).doctor(Call(timeout=1.0)))
        assert (problem.path, "gave no answer" in problem.message) == ("workload.manager", True)
    finally:
        systemd.thaw()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    (problem,) = found(manager="user")
    assert (problem.path, "enable-linger" in problem.hint) == ("workload.manager", True)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "no program systemctl" in told(found())
