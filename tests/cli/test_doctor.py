"""`selfheal doctor`: what is lacking is named before it is needed, and nothing is done."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from tests.cli.conftest import invoked

from selfheal import ActionContext, CheckContext, CheckResult, Secret, Service, check_once
from selfheal.builtin.command import CommandCheck, CommandWorkload
from selfheal.builtin.process import ProcessWorkload
from selfheal.config.read import secret
from selfheal.core.model import PASSING, Cause, Effect, Limits, Settled, Verdict
from selfheal.errors import Problem
from selfheal.plugins import Context
from selfheal.shell.once import examine
from selfheal.shell.roster import Roster
from selfheal.testing import servers
from selfheal.wire import Target

FILE = """
[services.web]
check = { kind = "tcp", address = "127.0.0.1:1" }
workload = { kind = "process", command = ["no-such-program"], cwd = "/nowhere" }
recovery_actions = ["restart"]

[services.job]
check = { kind = "command", command = ["/etc/passwd"] }

[services.box]
check = { kind = "tcp", address = "127.0.0.1:1" }
workload = { kind = "command", inspect = ["true"], restart = ["true"], scale = ["absent-tool", "{to}"] }
recovery_actions = ["restart"]

[services.fine]
check = { kind = "command", command = ["true"] }
workload = { kind = "process", command = ["sleep", "60"] }
recovery_actions = ["restart"]
"""


def test_everything_that_lacks_is_named_with_its_remedy_and_nothing_is_done(tmp_path: Path) -> None:
    file = tmp_path / "selfheal.toml"
    file.write_text(f'[fleet]\nstate_dir = "{tmp_path}/state"\n' + FILE)
    done = invoked("doctor", file)
    assert done.exit_code == 1
    said = done.stderr.splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in said] == [
        "services.web.workload.cwd",
        "services.web.workload.command",
        "services.job.check.command",
        "services.box.workload.scale",
    ]
    assert "no-such-program is no program that can be run here (correct the name, or give a whole path)" in said[1]
    assert "make it executable" in said[2]
    assert not (tmp_path / "state").exists()

    alone = invoked("doctor", file, "fine", "--json")
    assert (alone.exit_code, json.loads(alone.stdout)) == (0, [])
    assert "nothing stands in the way of 1 service," in invoked("doctor", file, "fine").stdout
    assert {one["path"] for one in json.loads(invoked("doctor", file, "job", "--json").stdout)} == {
        "services.job.check.command"
    }
    assert invoked("doctor", file, "fien").exit_code == 3


def test_who_is_to_be_told_is_looked_at_as_well_and_nobody_is_told(tmp_path: Path) -> None:
    file = tmp_path / "selfheal.toml"
    with servers.hang() as listening, servers.refuse() as nobody:
        text = f"""
            [fleet]
            state_dir = "{tmp_path}/state"
            [services.web]
            check = {{ kind = "tcp", address = "127.0.0.1:1" }}
            [notifiers.inner]
            kind = "webhook"
            url = "http://{listening}/"
            [notifiers.well]
            kind = "webhook"
            url = "http://{listening}/"
            private = true
            [notifiers.nobody]
            kind = "alertmanager"
            url = ["http://{listening}", "http://{nobody}"]
            [notifiers.secret]
            kind = "webhook"
            url = {{ env = "NO_SUCH_VARIABLE" }}
        """
        file.write_text(textwrap.dedent(text))
        done = invoked("doctor", file)
        assert done.exit_code == 1
        told = "\n".join(line for line in done.stderr.splitlines() if "warning" not in line)
        assert "notifiers.inner.url: 127.0.0.1 leads to a loopback or private address" in told
        assert "notifiers.nobody.url[1]: 127.0.0.1 cannot be reached: Connection refused" in told
        assert "notifiers.secret: the secret from env NO_SUCH_VARIABLE cannot be read" in told
        assert "notifiers.well" not in told
        assert invoked("doctor", file, "web").exit_code == 0
        file.write_text(file.read_text().partition("[notifiers.inner]")[0])
        assert "nothing stands in the way of 1 service," in invoked("doctor", file).stdout


def gone() -> str:
    raise OSError("no such file")


def roster_of(*services: Service) -> Roster:
    return Roster.of(services, (), limits=Limits(), name="x", seed=0, key=b"", callbacks={}, actions={"odd.mend": Mend})


@attrs.frozen(kw_only=True)
class Odd:
    kind: ClassVar[str] = "odd"
    password: Secret | None = None
    raises: bool = False
    hangs: bool = False

    async def check(self, context: CheckContext) -> CheckResult:
        return PASSING

    async def doctor(self, context: Context) -> list[Any]:
        if self.raises:
            raise RuntimeError(f"no right with {self.password.reveal() if self.password else 'nothing'}")
        if self.hangs:
            await context.blocking(__import__("time").sleep, 1.0)
        return [Problem(path="check.url", message="no right", hint="GRANT it"), "nonsense"]


@attrs.frozen(kw_only=True)
class Mend:
    kind: ClassVar[str] = "odd"
    verb: ClassVar[str] = "mend"
    effect: ClassVar[Effect] = Effect.GENTLE
    to: str = ""

    async def run(self, context: ActionContext) -> None:
        raise AssertionError("it only proves")

    async def probe(self, context: ActionContext) -> Settled | None:
        return None

    async def doctor(self, context: ActionContext) -> list[Problem]:
        assert isinstance(context.check, Odd)
        return [Problem(path="recovery_actions", message=f"mend of {self.to} may not", hint="let it")]


@attrs.frozen(kw_only=True)
class Elsewhere:
    """A wire check that finds out only when it is asked that it leads nowhere."""

    kind: ClassVar[str] = "elsewhere"
    url: Secret
    quotes: bool = False

    def target(self) -> Target:
        raise ValueError(f"{self.url.reveal()[4:]} is no URL" if self.quotes else "it must begin with x://")

    def talk(self) -> Generator[bytes | CheckResult, bytes, CheckResult]:
        yield b""
        return PASSING


@pytest.mark.anyio
async def test_a_check_that_leads_nowhere_says_why_but_not_what_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOBODY_SETS_THIS", raising=False)
    found = await examine(
        roster_of(
            Service("a", check=Elsewhere(url=Secret("y://ann:hunter2-canary@h"))),
            Service("b", check=Elsewhere(url=Secret("y://ann:hunter2-canary@h"), quotes=True)),
            Service("c", check=Elsewhere(url=secret("env", "NOBODY_SETS_THIS"))),
        ),
        ("a", "b", "c"),
    )
    where = "services.{}.check: it leads nowhere: {} (see its address, and its secrets)"
    assert [str(one) for one in found["a"]] == [where.format("a", "it must begin with x://")]
    assert [str(one) for one in found["b"]] == [where.format("b", "ValueError")]
    (unread,) = found["c"]
    assert str(unread) == (
        "services.c: the secret from env NOBODY_SETS_THIS cannot be read: the environment has no NOBODY_SETS_THIS "
        "(set it in the environment selfheal runs in)"
    )


@pytest.mark.anyio
async def test_a_check_says_which_variable_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOBODY_SETS_THIS", raising=False)

    @attrs.frozen(kw_only=True)
    class Reads(Elsewhere):
        def target(self) -> Target:
            return Target(host=self.url.reveal(), port=1)

    result = await check_once(Reads(url=secret("env", "NOBODY_SETS_THIS")))
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert result.summary == "elsewhere: no target (the environment has no NOBODY_SETS_THIS)"


@pytest.mark.anyio
async def test_each_part_proves_for_itself_and_one_that_fails_says_so() -> None:
    found = await examine(
        roster_of(
            Service("a", check=Odd(), recovery_actions=[{"action": "mend", "to": "b"}]),
            Service("b", check=Odd(raises=True, password=Secret("hunter2-canary"))),
            Service("c", check=Odd(hangs=True)),
            Service("d", check=lambda: True),
            Service("e", check=Odd(password=Secret(gone, source="file /run/key"))),
        ),
        ("a", "b", "c", "d", "e"),
        timeout=0.3,
    )
    assert [str(one) for one in found["a"]] == [
        "services.a.check.url: no right (GRANT it)",
        "services.a.recovery_actions: mend of b may not (let it)",
    ]
    (raised,) = found["b"]
    assert raised.path == "services.b.odd"
    assert "could not be examined: no right with" in raised.message
    assert "hunter2" not in str(raised)
    assert "no answer within 0.3 s" in found["c"][0].message
    assert found["d"] == ()
    assert str(found["e"][0]) == (
        "services.e: the secret from file /run/key cannot be read: no such file "
        "(make it readable for the user selfheal runs as)"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="root may write everywhere, and only root can be somebody else")
def test_it_is_the_user_who_asks_whose_rights_count(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    tmp_path.chmod(0o755)
    workload = ProcessWorkload(command=["true"], output=tmp_path / "log", state_directory=tmp_path)
    assert problems_of(workload) == []
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        os._exit(len(problems_of(workload)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2


def problems_of(workload: ProcessWorkload) -> list[Problem]:
    return workload._prove(workload._launcher("web"))


def test_a_path_of_its_own_environment_is_where_a_program_is_looked_for(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    from selfheal.builtin.spawn import missing

    assert missing(["tool"], "command", cwd=None, environment={})
    assert not missing(["tool"], "command", cwd=None, environment={"PATH": str(tmp_path)})
    assert not missing(["./tool"], "command", cwd=tmp_path, environment={})
    assert CommandCheck(command=["tool"]).kind == CommandWorkload(inspect=["a"], restart=["b"]).kind
