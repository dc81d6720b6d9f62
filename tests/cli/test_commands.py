"""The command line without a daemon: files judged, checks run once, journals read, and words on a screen."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import click
import pytest
from tests.broken import fails_when
from tests.cli.conftest import PATIENCE, House, invoked, wait_for

from selfheal.cli import COMMANDS, asking, main, screen
from selfheal.core.model import PASSING, CheckResult, Verdict
from selfheal.errors import JournalError
from selfheal.requests import TABLE
from selfheal.service import Service
from selfheal.shell.homes import Home, settled, usual_folder, usual_homes
from selfheal.supervisor import Supervisor
from selfheal.words import ago, clean, clock, counted, sentence, span


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A `state_dir` in which a supervisor has lived: one service well, one failing with an evil summary."""
    evil = CheckResult(Verdict.FAILING, summary="down\x1b[2J\x07 \u202e red")
    services = [
        Service("api", check=lambda: PASSING, interval=60.0),
        Service("bad", check=lambda: evil, interval=60.0),
    ]
    supervisor = Supervisor(services, journal=tmp_path / "state" / "app.db", name="shop")
    with supervisor.threaded() as running:
        wait_for(lambda: {line["state"] for line in running.ask("status")["services"]} == {"healthy", "unhealthy"})
        running.act("pause", services=["bad"], actor="ann", reason="a\u2028rack")
    return tmp_path / "state"


# -- what is there ----------------------------------------------------------------------------------------------------


def test_every_request_can_be_made_by_a_command() -> None:
    named = {"acknowledge": "ack", "services": "status", "records": "history"}
    assert {named.get(name, name) for name in TABLE} <= set(COMMANDS)


def test_every_command_explains_itself() -> None:
    group = main
    for name in group.list_commands(click.Context(group)):
        done = invoked(name, "--help")
        assert done.exit_code == 0
        assert len(done.output.splitlines()) > 4
    assert invoked("audit", "verify", "--help").exit_code == 0
    assert invoked("config", "check", "--help").exit_code == 0


def test_an_unknown_command_is_a_usage_error() -> None:
    done = invoked("destroy")
    assert done.exit_code == 2
    assert "No such command" in done.stderr


# -- the file ---------------------------------------------------------------------------------------------------------

PROBLEMS = """
[fleet]
intervall = "30s"
[services.api]
check = { kind = "tcp", adress = "127.0.0.1:1" }
depends_on = ["databse"]
max_retries = -1
[services.database]
check = { kind = "redis" }
[notifiers.oncall]
kind = "pager"
"""


def test_a_recovery_json_is_taken_wherever_a_file_is(tmp_path: Path) -> None:
    """It has no place for a state_dir, nor for what the command line adds: both go in beside it."""
    file = tmp_path / "recovery.json"
    check = '{"kind": "command", "command": ["true"]}'
    file.write_text(f'{{"enabled": false, "recovery_timeout": 60, "services": {{"job": {{"check": {check}}}}}}}')
    for command in (("config", "check", file), ("doctor", file), ("check", file, "--json")):
        done = invoked("--state-dir", tmp_path / "state", *command)
        assert done.exit_code == 0, done.output
    found = settled(file, state_dir=tmp_path / "state", added={"notifiers": {"log": {"kind": "log"}}})
    assert found.state_dir == tmp_path / "state"
    assert [one.recovery_timeout for one in found.services] == [60.0]
    assert list(found.notifiers) == ["log"]
    assert settled(file).state_dir == usual_folder("selfheal")


@fails_when("a key that nobody reads is passed over")
def test_s61_every_key_of_a_file_is_used_or_refused_and_all_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfheal.loading.entry_points", lambda group: ())  # where no plugin is installed
    file = tmp_path / "x.toml"
    file.write_text(PROBLEMS)
    done = invoked("config", "check", file)
    assert done.exit_code == 2
    said = done.stderr.splitlines()
    assert all(line.startswith("selfheal: ") for line in said)
    for path in ("fleet", "services.api.check", "services.api.depends_on", "services.api.max_retries", "oncall"):
        assert any(path in line for line in said), path
    assert "interval" in done.stderr
    assert "selfheal-core[redis]" in done.stderr
    problems = json.loads(invoked("config", "check", file, "--json").stdout)["problems"]
    assert len(problems) == len(said)
    assert {"path", "message", "hint"} == set(problems[0])
    for command in ("check", "run"):
        assert invoked(command, file).exit_code == 2


def test_a_good_file_is_said_to_be_good(house: House) -> None:
    done = invoked("config", "check", house.file)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith("3 services; nothing is wrong\n")


def test_a_file_anybody_may_write_is_warned_of(house: House) -> None:
    house.file.chmod(0o666)
    done = invoked("config", "check", house.file)
    assert done.exit_code == 0
    assert "warning:" in done.stderr
    assert "chmod o-w" in done.stderr


def test_a_missing_file_is_a_usage_error_and_says_so(tmp_path: Path) -> None:
    for command in (("run",), ("check",), ("config", "check")):
        done = invoked(*command, tmp_path / "none.toml")
        assert done.exit_code == 2
        assert "No such file" in done.stderr


# -- one look ---------------------------------------------------------------------------------------------------------


def test_check_looks_once_and_starts_nothing(house: House) -> None:
    done = invoked("check", house.file)
    assert done.exit_code == 1
    assert re.search(r"^web +failing +unreachable .* +Connection refused$", done.stdout, re.MULTILINE)
    assert not house.programs(house.web)
    assert not house.state.exists()
    house.state.mkdir()
    found = json.loads(invoked("check", house.file, "web", "--json").stdout)
    assert [(one["service"], one["verdict"], one["workload"]) for one in found] == [("web", "failing", "absent")]
    assert invoked("check", house.file, "job").exit_code == 0
    unknown = invoked("check", house.file, "wbe")
    assert unknown.exit_code == 3
    assert "no service 'wbe'; did you mean \"web\"?" in unknown.stderr


def test_check_passes_where_all_is_well(house: House) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(house.web)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: invoked("check", house.file, "web").exit_code == 0)
    finally:
        program.kill()
        program.wait()


# -- nobody runs ------------------------------------------------------------------------------------------------------


def test_where_nobody_ever_lived_every_command_says_so(tmp_path: Path) -> None:
    for arguments in (["status"], ["explain", "x"], ["history"], ["disable", "x", "--reason", "y"]):
        done = invoked("--state-dir", tmp_path, *arguments)
        assert done.exit_code == 4, arguments
        assert f"nobody listens at {tmp_path}/control.sock" in done.stderr
        assert not done.stdout
    assert not os.listdir(tmp_path)


@pytest.mark.real_time
def test_queries_are_answered_from_the_journal_and_say_so(journal: Path) -> None:
    for name in ("status", "history", "incidents", "alerts", "approvals", "suppressions", "graph", "statistics"):
        done = invoked("--state-dir", journal, name)
        assert done.exit_code == 0, done.stderr
        assert re.search(r"This is from the journal; its last entry is \d+(s|ms) old\.$", done.stderr), done.stderr
    status = json.loads(invoked("--state-dir", journal, "status", "--json").stdout)
    assert (status["running"], status["fleet"]) == (False, "shop")
    assert {line["service"]: line["state"] for line in status["services"]} == {"api": "healthy", "bad": "unhealthy"}
    assert "only a confirmed failure is acted on" in invoked("--state-dir", journal, "explain", "bad").stdout
    assert invoked("--state-dir", journal, "explain", "none").exit_code == 3
    assert invoked("--state-dir", journal, "incident", "99").exit_code == 3
    assert "ann: pause bad" in invoked("--state-dir", journal, "audit").stdout
    heartbeat = invoked("--state-dir", journal, "heartbeat", "api")
    assert heartbeat.exit_code == 4
    assert "Nothing was done" in heartbeat.stderr


@pytest.mark.real_time
def test_a_changed_row_is_named_by_audit_verify(journal: Path) -> None:
    import sqlite3

    assert invoked("--state-dir", journal, "audit", "verify").exit_code == 0
    connection = sqlite3.connect(journal / "app.db")
    connection.execute("UPDATE records SET service = 'other' WHERE seq = 2")
    connection.commit()
    connection.close()
    done = invoked("--state-dir", journal, "audit", "verify")
    assert done.exit_code == 1
    assert "records 2: was changed" in done.stdout
    assert json.loads(invoked("--state-dir", journal, "audit", "verify", "--json").stdout)["well"] is False
    assert invoked("--state-dir", journal, "audit", "accept", input="n\n").exit_code == 1
    assert "records 2: was changed" in invoked("--state-dir", journal, "audit", "accept", "--yes").stdout


@pytest.mark.real_time
def test_what_services_say_cannot_move_a_cursor(journal: Path) -> None:
    for arguments in (["status"], ["history"], ["service", "bad"], ["explain", "bad"], ["suppressions"]):
        for more in ([], ["--json"]):
            text = invoked("--state-dir", journal, *arguments, *more).stdout
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202e]", text), (arguments, more)
    assert "a\\u2028rack" in invoked("--state-dir", journal, "status").stdout


# -- places -----------------------------------------------------------------------------------------------------------


def test_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert usual_folder("shop") == tmp_path / "selfheal" / "shop"
    for name in ("shop", "yard", "empty"):
        (tmp_path / "selfheal" / name).mkdir(parents=True)
    here = [home.folder for home in usual_homes() if home.folder.is_relative_to(tmp_path)]
    assert here == []
    (tmp_path / "selfheal" / "shop" / "selfheal.db").touch()
    (home,) = [home for home in usual_homes() if home.folder.is_relative_to(tmp_path)]
    assert home.socket == tmp_path / "selfheal" / "shop" / "control.sock"
    (tmp_path / "selfheal" / "yard" / "selfheal.db").touch()
    done = invoked("status", env={"SELFHEAL_STATE_DIR": None})
    assert done.exit_code == 4
    assert "more than one selfheal here" in done.stderr
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert usual_folder("shop") == Path("/var/lib/selfheal")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    assert usual_folder("shop") == Path("/var/lib/one")


def test_a_journal_may_have_any_name_but_not_a_neighbour(tmp_path: Path) -> None:
    assert Home.at(tmp_path).journal == tmp_path / "selfheal.db"
    (tmp_path / "app.db.id").touch()
    assert Home.at(tmp_path).journal == tmp_path / "app.db"
    (tmp_path / "web.db.id").touch()
    with pytest.raises(JournalError, match=r"several journals .* \(app\.db, web\.db\)"):
        Home.at(tmp_path)


def test_a_file_is_settled_where_it_says_or_where_we_say(house: House, tmp_path: Path) -> None:
    assert settled(house.file).state_dir == house.state
    assert settled(house.file, state_dir=tmp_path / "else").state_dir == tmp_path / "else"
    workload: Any = settled(house.file, state_dir=tmp_path / "else").services[0].workload
    assert workload.state_directory == tmp_path / "else"
    assert Supervisor.from_file(house.file).journal == house.state / "selfheal.db"
    assert Supervisor.from_file(house.file, journal=None).journal is None


# -- what is asked of people ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["disable", "web"], "say why, with --reason"),
        (["disable", "web", "--reason", " "], "say why, with --reason"),
        (["pause", "--reason", "x"], "name the services"),
        (["pause", "--services", "a", "--everything", "--reason", "x"], "and not both"),
        (["pause", "--everything", "--duration", "soon", "--reason", "x"], "is no duration"),
        (["recover", "a", "--override", "journal", "--reason", "x"], "is not one of"),
        (["release", "budget", "--reason", "x"], "is not one of"),
        (["incident", "zero"], "not a valid"),
        (["history", "--limit", "5000"], "1<=x<=1000"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(tmp_path: Path, arguments: list[str], text: str) -> None:
    done = invoked("--state-dir", tmp_path, *arguments)
    assert done.exit_code == 2
    assert text in done.stderr


def test_plugins_are_listed_with_what_they_offer() -> None:
    listed = json.loads(invoked("plugins", "--json").stdout)
    (own,) = [plugin for plugin in listed if plugin["name"] == "selfheal"]
    assert "check tcp" in own["provides"]
    assert "check tcp" in invoked("plugins").stdout


# -- on a terminal and in a pipe --------------------------------------------------------------------------------------


def on_terminal(
    *arguments: object, typed: bytes = b"", after: tuple[bytes, ...] = (b"Reason",), env: dict[str, str] | None = None
) -> str:
    """Return everything a command writes to a terminal of its own. It is typed to once all of `after` was seen."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **(env or {})}
    if not env:
        environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "selfheal", *(str(argument) for argument in arguments)]
    child = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # it takes no lock a thread may hold
    )
    os.close(theirs)
    seen = b""
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            ready, _, _ = select.select([ours], [], [], 0.1)
            if ready:
                try:
                    chunk = os.read(ours, 65536)
                except OSError:
                    break
                seen += chunk
            if typed and all(word in seen for word in after):
                os.write(ours, typed)
                typed = b""
        return seen.decode()
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        os.close(ours)


@pytest.mark.real_time
def test_a_terminal_gets_colours_unless_it_wants_none(journal: Path) -> None:
    coloured = on_terminal("--state-dir", journal, "status")
    assert "\x1b[32mhealthy" in coloured
    plain = on_terminal("--state-dir", journal, "status", env={"NO_COLOR": "1"})
    assert "healthy" in plain
    assert not re.search(r"\x1b\[\d*(;\d+)*3\dm", plain)
    assert "\x1b[2J" not in coloured + plain


@pytest.mark.real_time
def test_watch_draws_on_a_terminal_and_leaves_at_ctrl_c(journal: Path) -> None:
    drawn = (b"SERVICE", b"unhealthy", b"this is what the journal says")
    seen = on_terminal("--state-dir", journal, "status", "--watch", "--interval", "0.2", typed=b"\x03", after=drawn)
    assert "\x1b[?1049h" in seen
    assert "\x1b[?1049l" in seen
    assert "unhealthy" in seen
    assert "this is what the journal says" in seen
    assert "Traceback" not in seen
    assert "Aborted" not in seen


@pytest.mark.real_time
def test_a_reason_is_asked_for_on_a_terminal(tmp_path: Path) -> None:
    seen = on_terminal("--state-dir", tmp_path, "disable", "web", typed=b"because\n")
    assert "Reason" in seen
    assert "Nothing was done" in seen


@pytest.mark.real_time
def test_a_reader_that_leaves_early_is_no_error(journal: Path) -> None:
    command = f"{sys.executable} -m selfheal --state-dir {journal} history --json 2>err | head -c 10 > /dev/null"
    done = subprocess.run(["bash", "-c", command], cwd=journal.parent, timeout=60, check=False)
    assert done.returncode == 0
    assert "Traceback" not in (journal.parent / "err").read_text()
    assert "BrokenPipe" not in (journal.parent / "err").read_text()


@pytest.mark.real_time
def test_watch_in_a_pipe_is_one_table_after_the_other(journal: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "selfheal", "--state-dir", str(journal), "status", "--watch", "--interval", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert child.stdout is not None
    with child.stdout:
        lines = [child.stdout.readline().decode() for _ in range(12)]
        child.kill()
        child.wait()
    assert sum(line.startswith("SERVICE") for line in lines) >= 2
    assert "\x1b" not in "".join(lines)


def test_without_rich_a_terminal_gets_the_plain_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.table", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen.table(("A", "B"), [("x", 1)], empty="none")


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "0ms"),
        (0.0404, "40ms"),
        (1.0, "1s"),
        (59.4, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3600, "1h"),
        (90061, "1d 1h"),
        (86400 * 400, "400d"),
    ],
)
def test_seconds_in_words(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_one_thing_is_not_said_as_many() -> None:
    said = [counted(0, "service"), counted(1, "canary"), counted(2, "canary")]
    assert said == ["0 services", "1 canary", "2 canaries"]


def test_times_in_words() -> None:
    assert clock(None) == ""
    assert re.fullmatch(r"2020-01-0\d \d\d:\d\d:05", clock("2020-01-02T03:04:05.000Z"))
    assert ago("2020-01-02T03:04:05.000Z", "2020-01-02T03:04:06.500Z") == 1.5
    assert ago(None, "2020-01-02T03:04:06.500Z") is None


def test_text_without_tricks() -> None:
    assert clean("naïve ✓ – fine") == "naïve ✓ – fine"
    assert clean("a\nb\x1b[2J\x9b\u202e") == "a\\nb\\x1b[2J\\x9b\\u202e"


def test_every_kind_of_record_has_a_sentence() -> None:
    from selfheal.core.records import RECORDS

    record = {
        "reason": {"code": "why", "detail": "because"},
        "from": "healthy",
        "to": "failed",
        "action": "restart",
        "actor": "ann",
        "guards": [{"guard": "paused", "passed_by": "ann"}],
        "duration_seconds": 12.0,
        "arguments": {"services": "a,b"},
        "accepted": True,
        "asked_because": "x",
        "open": True,
        "severity": "high",
        "rule": "failed",
        "everything": False,
        "services": ["a"],
        "on": True,
        "hold": "storm",
        "incident": 7,
    }
    for kind in RECORDS:
        assert sentence({**record, "kind": kind}).strip(), kind


def doing(phase: str, step: int, steps: int) -> dict[str, Any]:
    return {"action": "restart", "phase": phase, "step": step, "steps": steps, "seconds": 48.0}


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        ({}, "", "Connection refused"),
        ({"state": "healthy", "detail": "", "summary": ""}, "", ""),
        ({"reason": "held:observe", "detail": "observe only"}, "held:observe", "observe only; Connection refused"),
        ({"detail": "confirmed: Connection refused"}, "", "confirmed: Connection refused"),
        ({"under_way": doing("acting", 1, 2)}, "restart, 2 of 2, for 48s", "Connection refused"),
        ({"under_way": doing("verifying", 0, 1)}, "verifying restart, for 48s", "Connection refused"),
        ({"watched": False, "summary": ""}, "was failed", ""),
    ],
)
def test_a_line_says_what_is_done_and_what_is_wrong(changes: dict[str, Any], reason: str, detail: str) -> None:
    line = {
        "service": "db",
        "state": "failed",
        "since": None,
        "since_seconds": 1.0,
        "probation": False,
        "reason": "",
        "watched": True,
        "under_way": None,
        "last_check": None,
        "latency_seconds": None,
        "detail": "",
        "summary": "Connection refused",
        **changes,
    }
    (row,) = asking._rows({"services": [line], "time": None})
    assert (row[3], row[6]) == (reason, detail)
