"""The check and the workload `command`: exit codes read right, arguments left whole, trees ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.broken import fails_when

from selfheal.builtin import proc
from selfheal.builtin.command import CommandCheck, CommandWorkload, read_plugin_output
from selfheal.core.model import PASSING, Cause, CheckResult, Instance, Run, Verdict
from selfheal.errors import ActionFailed
from selfheal.plugins import HealthCheck, Scaling, Starting, Workload
from selfheal.secret import Secret

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.fixture
def anyio_backend() -> str:
    """Plugin coroutines run on asyncio, whatever the host runs."""
    return "asyncio"


@attrs.define(kw_only=True)
class Given:
    """A context for checks and for actions, as the runner would give it."""

    service: str = "mail"
    remaining: float = 20.0
    kept: dict[str, Any] = attrs.field(factory=dict)
    deep: bool = False
    previous: CheckResult | None = None
    key: str = "1/mail/1/0"
    verb: str = "restart"
    incident: int = 1
    attempt: int = 2
    cause: Cause | None = None
    expected: Instance | None = None
    check: HealthCheck | None = None
    workload: Workload | None = None
    arguments: Mapping[str, Any] = attrs.field(factory=dict)

    async def blocking(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return function(*args)


def sh(script: str, *arguments: str) -> list[str]:
    return ["sh", "-c", script, "sh", *arguments]


# -- the check -------------------------------------------------------------------------------------------------------


def test_they_fit_their_interfaces() -> None:
    assert isinstance(CommandCheck(command=["true"]), HealthCheck)
    workload = CommandWorkload(inspect=["true"], restart=["true"])
    for interface in (Workload, Starting, Scaling):
        assert isinstance(workload, interface)


async def test_exit_code_zero_passes_and_any_other_fails_with_the_last_line() -> None:
    assert await CommandCheck(command=["true"]).check(Given()) is PASSING
    result = await CommandCheck(command=sh("echo first; echo 'queue is \033[31mfull\033[0m'; exit 4")).check(Given())
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.ERROR)
    assert result.summary == "exit code 4: queue is  [31mfull [0m"
    assert result.details == {"exit_code": 4}


async def test_the_cause_of_a_failure_can_be_named() -> None:
    check = CommandCheck(command=["false"], cause="overloaded")
    assert (await check.check(Given())).cause is Cause.OVERLOADED
    with pytest.raises(ValueError):
        CommandCheck(command=["false"], cause="tired")


@pytest.mark.parametrize(
    ("code", "verdict", "cause"),
    [
        (0, Verdict.PASSING, None),
        (1, Verdict.WARNING, Cause.ERROR),
        (2, Verdict.FAILING, Cause.ERROR),
        (3, Verdict.INCONCLUSIVE, Cause.ERROR),
        (4, Verdict.INCONCLUSIVE, Cause.ERROR),
        (127, Verdict.INCONCLUSIVE, Cause.CONFIG),
    ],
)
async def test_the_convention_of_nagios_plugins(code: int, verdict: Verdict, cause: Cause | None) -> None:
    script = f"echo 'LOAD - average 0.5 | load1=0.5;5;10;0 time=12ms'; exit {code}"
    result = await CommandCheck(command=sh(script), nagios=True).check(Given())
    assert (result.verdict, result.cause) == (verdict, cause)
    if code < 100:
        assert result.summary == "LOAD - average 0.5"
        assert result.details == {"load1": 0.5, "time_seconds": pytest.approx(0.012)}


async def test_a_missing_program_and_one_that_may_not_be_run_are_our_fault(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for command in (["/no/such/program"], [str(plain)], [str(tmp_path)], sh("/no/such/program"), sh(str(plain))):
        result = await CommandCheck(command=command).check(Given())
        assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG), command
    result = await CommandCheck(command=["true"], cwd=tmp_path / "nowhere").check(Given())
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert "nowhere" in result.summary


async def test_a_check_killed_by_a_signal_says_nothing_of_the_service() -> None:
    result = await CommandCheck(command=sh("kill -9 $$")).check(Given())
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "SIGKILL" in result.summary


@fails_when("only the program itself is ended")
async def test_s25_a_check_that_hangs_fails_by_timeout_before_its_deadline_and_is_gone(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    check = CommandCheck(
        command=sh(
            'trap "" TERM; sleep 300 & echo $! > "$0.new"; mv "$0.new" "$0"; wait',
        )
    )
    check = attrs.evolve(check, command=("sh", "-c", check.command[2], str(pid)))
    result = await check.check(Given(remaining=1.5))
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.TIMEOUT)
    assert "ended by us" in result.summary
    seen = proc.look(int(pid.read_text()))
    lived = seen is not None and seen.alive and proc.deliver(seen.identity, signal.SIGKILL)
    assert not lived


async def test_what_a_check_leaves_in_its_group_is_killed(tmp_path: Path) -> None:
    result = await CommandCheck(command=sh("sleep 300 & echo $!; exit 1")).check(Given())
    seen = proc.look(int(result.summary.split()[-1]))
    if seen is not None:
        assert await proc.gone(seen.identity, 5)


async def test_no_secret_of_the_environment_appears_in_a_result() -> None:
    check = CommandCheck(
        command=sh("echo cannot log in with $PASSWORD; exit 2"), environment={"PASSWORD": Secret("hunter2")}
    )
    result = await check.check(Given())
    assert result.summary == "exit code 2: cannot log in with ***"
    assert "hunter2" not in repr(check)


async def test_a_secret_that_cannot_be_read_is_a_matter_of_configuration() -> None:
    secret = Secret(lambda: Path("/no/such/secret").read_text(), source="file")
    result = await CommandCheck(command=["true"], environment={"PASSWORD": secret}).check(Given())
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


# -- the output of Nagios plugins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "text", "details"),
    [
        ("", "", {}),
        ("OK", "OK", {}),
        ("DISK OK | /=2643MB;5948;5958;0;5968", "DISK OK", {"/_MB": 2643.0}),
        ("PING OK|rta=0.8ms;1;2 pl=0%;20;60", "PING OK", {"rta_seconds": 0.0008, "pl_percent": 0.0}),
        ("OK | 'free space'=12B 'it''s'=3 hits=7c", "OK", {"free space_bytes": 12.0, "it's": 3.0, "hits_total": 7.0}),
        ("OK | a=U b=-1.5e3 c=0,5s d= e=x =3 f", "OK", {"a": None, "b": -1500.0, "c_seconds": 0.5}),
        ("OK | a=1\nlong text\nmore | b=2\nc=3", "OK", {"a": 1.0, "b": 2.0, "c": 3.0}),
        ("OK | a=1e999", "OK", {}),
        ("\x1b]0;title\x07OK\x00 |", "]0;title OK", {}),
    ],
)
def test_performance_figures_become_details_with_their_unit(output: str, text: str, details: dict[str, Any]) -> None:
    found_text, found = read_plugin_output(output)
    assert found_text == text
    assert found == pytest.approx(details)


@given(st.text())
def test_no_output_whatever_breaks_the_reading(output: str) -> None:
    text, details = read_plugin_output(output)
    assert len(text) <= 200
    assert "\n" not in text
    assert len(details) <= 32


# -- the workload ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "run", "count"),
    [(0, Run.RUNNING, 1), (1, Run.EXITED, 0), (2, Run.EXITED, 0), (3, Run.STOPPED, 0), (4, Run.UNKNOWN, 0)],
)
async def test_the_exit_code_of_inspect_says_how_it_runs(code: int, run: Run, count: int) -> None:
    workload = CommandWorkload(inspect=sh(f"echo 'pid 12'; exit {code}"), restart=["true"])
    assert await workload.inspect(Given()) == Instance(id="pid 12", run=run, count=count)


async def test_inspect_may_say_more() -> None:
    script = "printf 'id\\ncount=3\\nsince=12.5\\ndetail=three\\tof them\\n'"
    workload = CommandWorkload(inspect=sh(script), restart=["true"])
    expected = Instance(id="id", run=Run.RUNNING, since=12.5, count=3, detail="three of them")
    assert await workload.inspect(Given()) == expected


@pytest.mark.parametrize("script", ["exit 5", "kill -9 $$", "sleep 100"])
async def test_s30_an_inspection_that_says_nothing_is_a_failed_one(script: str) -> None:
    workload = CommandWorkload(inspect=sh(script), restart=["true"])
    with pytest.raises(ActionFailed, match="inspect"):
        await workload.inspect(Given(remaining=1.5))
    with pytest.raises(OSError):
        await CommandWorkload(inspect=["/no/such/program"], restart=["true"]).inspect(Given())


@fails_when("every program has succeeded")
async def test_s30_a_command_that_fails_is_a_failed_action_with_its_last_line() -> None:
    workload = CommandWorkload(inspect=["true"], restart=sh("echo no such container >&2; exit 125"))
    with pytest.raises(ActionFailed, match="restart: sh: exit code 125: no such container"):
        await workload.restart(Given())
    with pytest.raises(ActionFailed, match="could not be run"):
        await CommandWorkload(inspect=["true"], restart=["/no/such/program"]).restart(Given())
    with pytest.raises(ActionFailed, match="no `stop` command"):
        await workload.stop(Given())


@fails_when("a name is expanded by a shell", "a name is quoted as for a shell")
@pytest.mark.parametrize("name", ["x; touch pwned", "$(touch pwned)", "`touch pwned`", "a b\tc", "'; --all", "*", "&"])
async def test_s28_a_service_name_is_one_literal_argument(tmp_path: Path, name: str) -> None:
    code = "import sys; open(sys.argv[2], 'w').write(repr(sys.argv[1]))"
    said = tmp_path / "said"
    workload = CommandWorkload(
        inspect=["true"], restart=[sys.executable, "-S", "-c", code, "{service}", str(said)], cwd=tmp_path
    )
    await workload.restart(Given(service=name))
    assert said.read_text() == repr(name)
    assert os.listdir(tmp_path) == ["said"]


@fails_when("a name may be an option")
@pytest.mark.parametrize("name", ["--all", "-f", "-"])
async def test_s28_a_service_name_that_could_be_an_option_is_refused(name: str) -> None:
    workload = CommandWorkload(inspect=["true"], restart=["echo", "{service}"])
    with pytest.raises(ActionFailed, match="option"):
        await workload.restart(Given(service=name))


async def test_placeholders_are_filled_from_what_is_known_and_from_nothing_else(tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = 'printf "%s\\n" "$@" "$SELFHEAL_KEY" "$SELFHEAL_SERVICE" "$SELFHEAL_INCIDENT" "$SELFHEAL_ATTEMPT" > "$0"'
    workload = CommandWorkload(
        inspect=["echo", "id 1"],
        restart=["sh", "-c", script, str(said), "{instance}", "{service}", "{other}", "{{.State}}"],
    )
    with pytest.raises(ActionFailed, match="not known"):
        await workload.restart(Given())
    await workload.restart(Given(expected=Instance(id="id 1", run=Run.RUNNING)))
    lines = ["id 1", "mail", "{other}", "{{.State}}", "1/mail/1/0", "mail", "1", "2"]
    assert said.read_text().splitlines() == lines


@pytest.mark.parametrize(
    "fields",
    [
        {"inspect": [], "restart": ["true"]},
        {"inspect": ["true"]},
        {"inspect": ["true"], "start": ["true"]},
        {"inspect": "true", "restart": ["true"]},
        {"inspect": ["true"], "restart": ["sh", "-c", "restart {service}"]},
        {"inspect": ["true"], "restart": ["{service}"]},
        {"inspect": ["true"], "restart": ["a", "{to}"]},
        {"inspect": ["true"], "restart": ["a"], "scale": ["a", "3"]},
        {"inspect": ["true"], "restart": ["a"], "scale": ["{to}a"]},
        {"inspect": ["true"], "restart": ["a", "--to={to}"]},
        {"inspect": ["true"], "restart": ["a"], "scale": ["a", "{to}", "--of={service}"]},
    ],
)
def test_commands_that_could_not_work_are_refused_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        CommandWorkload(**fields)


async def test_without_a_restart_it_is_stopped_and_started_but_not_started_when_the_stop_failed(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def step(word: str, code: int = 0) -> list[str]:
        return ["sh", "-c", f'echo {word} >> "$0"; exit {code}', str(log)]

    await CommandWorkload(inspect=["true"], stop=step("stop"), start=step("start")).restart(Given())
    assert log.read_text() == "stop\nstart\n"
    with pytest.raises(ActionFailed):
        await CommandWorkload(inspect=["true"], stop=step("stop", 1), start=step("start")).restart(Given())
    assert log.read_text() == "stop\nstart\nstop\n"


@fails_when("it is scaled to what is asked")
async def test_s31_scaling_by_command_goes_upwards_only(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("5")
    workload = CommandWorkload(
        inspect=["sh", "-c", 'echo id; echo "count=$(cat "$0")"', str(count)],
        restart=["true"],
        scale=["sh", "-c", 'test "$2" = "web=$1" && printf %s "$1" > "$0"', str(count), "{to}", "web={to}"],
    )
    await workload.scale_up(Given(arguments={"to": 2}))
    assert count.read_text() == "5"
    await workload.scale_up(Given(arguments={"to": 7}))
    assert count.read_text() == "7"
    for to in (None, "8", True, 0, -1, 1001):
        with pytest.raises(ActionFailed, match="whole number"):
            await workload.scale_up(Given(arguments={"to": to}))
    count.write_text("many")
    with pytest.raises(ActionFailed, match="scaling down"):
        await workload.scale_up(Given(arguments={"to": 9}))
    assert count.read_text() == "many"


async def test_it_says_which_verbs_it_has_commands_for() -> None:
    some = CommandWorkload(inspect=["true"], stop=["true"], start=["true"])
    assert some.verbs() == {"restart", "start", "stop"}
    with pytest.raises(ActionFailed, match="no `scale` command"):
        await some.scale_up(Given(arguments={"to": 2}))


async def test_a_daemon_that_a_start_command_leaves_behind_lives_on(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    workload = CommandWorkload(
        inspect=["true"], restart=["sh", "-c", 'sleep 300 >/dev/null 2>&1 & echo $! > "$0"', str(pid)]
    )
    await workload.restart(Given())
    seen = proc.look(int(pid.read_text()))
    assert seen is not None
    assert seen.alive
    assert proc.deliver(seen.identity, signal.SIGKILL)


async def test_s25_an_action_at_its_deadline_is_ended_and_says_so() -> None:
    workload = CommandWorkload(inspect=["true"], restart=sh("trap '' TERM; echo waiting for the lock; sleep 300"))
    began = time.monotonic()
    with pytest.raises(ActionFailed, match=r"not finished after .* s, and ended by us: waiting for the lock"):
        await workload.restart(Given(remaining=1.5))
    assert time.monotonic() - began < 1.5, "killing included"
