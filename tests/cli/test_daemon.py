"""`selfheal run` as a child process, with real programs: what it does, what it refuses, how it ends and comes back."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import Any

import anyio
import pytest
from tests.cli.conftest import PATIENCE, House, wait_for

from selfheal import Supervisor, daemon

pytestmark = pytest.mark.real_time

ME = pwd.getpwuid(os.getuid()).pw_name


def test_a_program_that_dies_is_restarted_and_every_command_tells_of_it(house: House) -> None:
    house.start()
    house.settled()
    assert stat.S_IMODE((house.state / "control.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(house.state.stat().st_mode) == 0o700
    old = house.break_(house.web)
    wait_for(lambda: [pid for pid in house.programs(house.web) if pid != old])
    wait_for(lambda: [one for one in house.ask("incidents") if not one["open"]])

    (incident,) = house.ask("incidents")
    assert incident["root"] == "web"
    assert incident["actions"] == ["web: restart"]
    timeline = house.ask("incident", "1")["timeline"]
    assert [record["kind"] for record in timeline].count("intended") == 1
    history = house.ask("history", "web")
    assert [record["seq"] for record in history] == sorted((record["seq"] for record in history), reverse=True)
    assert house.ask("statistics", "web")["services"]["web"]["recovered"] == 1
    assert house.run("audit", "verify").stdout.splitlines()[-1].startswith("seal ")
    for command in ("status", "incidents", "history", "alerts", "graph", "health", "metrics", "approvals"):
        done = house.run(command)
        assert done.returncode == 0, command
        assert done.stdout
        assert not done.stderr
        assert "\x1b" not in done.stdout
    assert "restart intended" in house.run("incident", "1").stdout
    assert "depends_on" in house.run("service", "shop").stdout
    assert "all together" in house.run("statistics").stdout


def test_people_act_and_are_recorded(house: House) -> None:
    house.start()
    house.settled()
    paused = house.ask("pause", "web", "--duration", "1h30m", "--reason", "moving a rack")
    assert (paused["actor"], paused["accepted"], paused["asked_because"]) == (ME, True, "moving a rack")
    (suppression,) = house.ask("suppressions")
    assert suppression["suppression"] == paused["reason"]["detail"]
    assert suppression["until"] is not None

    house.break_(house.web)
    wait_for(lambda: house.state_of("web") == "failed")
    wait_for(lambda: "paused" in house.ask("explain", "web")["holding"])
    shown = house.run("explain", "web").stdout
    assert "nothing is done, because of: paused" in shown
    (held,) = [line for line in shown.splitlines() if line.startswith("holds")]
    assert "moving a rack" in held
    assert not house.programs(house.web)
    assert house.run("ack", "web", "--reason", "I see it").returncode == 0

    assert house.run("lift", suppression["suppression"], "--reason", "done").returncode == 0
    wait_for(lambda: house.programs(house.web))
    assert house.run("disable", "job", "--reason", "retired").stdout.startswith("disable job:")
    assert house.state_of("job") == "disabled"
    assert house.run("enable", "job", "--reason", "not yet").returncode == 0
    assert house.run("heartbeat", "job").returncode == 0
    wait_for(lambda: house.state_of("job") == "healthy")
    assert {record["action"] for record in house.ask("audit")} == {"pause", "acknowledge", "lift", "disable", "enable"}
    assert {record["actor"] for record in house.ask("audit")} == {ME}
    assert {record["service"] for record in house.ask("audit", "job")} == {"job"}


def test_a_forced_recovery_names_what_it_overrides(house: House) -> None:
    house.start()
    house.settled()
    refused = house.run("recover", "web", "--reason", "to see")
    assert refused.returncode == 3
    assert refused.stderr == "selfheal: web is healthy: there is nothing to recover\n"
    house.run("pause", "--everything", "--reason", "a rack")
    old = house.break_(house.web)
    wait_for(lambda: house.state_of("web") == "failed")
    done = house.run("recover", "web", "--override", "paused", "--reason", "it must not wait")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: [pid for pid in house.programs(house.web) if pid != old])
    assert f"restart intended for {ME}, past paused" in house.run("history", "web").stdout


def test_a_second_one_is_refused_and_told_who_holds_the_journal(house: House) -> None:
    first = house.start()
    second = house.start(ready=False)
    assert second.wait(PATIENCE) == 3
    assert f"is held by process {first.pid}" in house.log()
    assert "Traceback" not in house.log()
    assert house.ask("status")["running"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_order_and_soon(house: House, number: signal.Signals) -> None:
    child = house.start()
    house.settled()
    began = time.monotonic()
    child.send_signal(number)
    assert child.wait(PATIENCE) == 0
    assert time.monotonic() - began < 5.0
    assert not (house.state / "control.sock").exists()
    assert not house.programs(house.web)
    assert house.log().rstrip().endswith("stopped")


def test_s60_a_killed_daemon_comes_back_and_goes_on(house: House) -> None:
    child = house.start()
    house.settled()
    house.break_(house.web)
    wait_for(lambda: [one for one in house.ask("incidents") if one["actions"]])
    wait_for(lambda: house.state_of("web") == "healthy")
    house.ask("pause", "--services", "shop", "--reason", "kept over the kill")
    (program,) = house.programs(house.web)
    child.kill()
    child.wait()
    assert house.programs(house.web) == [program]

    told = house.run("status")
    assert told.returncode == 0
    assert "This is from the journal; its last entry is" in told.stderr
    assert "shop" in told.stdout
    assert not house.ask("status")["running"]
    assert house.ask("incidents")[0]["actions"] == ["web: restart"]
    nobody = house.run("disable", "web", "--reason", "x")
    assert nobody.returncode == 4
    assert "Nothing was done; start it with `selfheal run FILE`" in nobody.stderr

    house.start()
    house.settled()
    assert house.programs(house.web) == [program], "the program was adopted and not started again"
    assert [one["reason"] for one in house.ask("suppressions")] == ["kept over the kill"]
    assert len(house.ask("incidents")) == 1
    assert house.ask("service", "web")["condition"]["state"] == "healthy"
    assert house.run("audit", "verify").returncode == 0


def test_a_reload_takes_over_what_is_right_and_nothing_that_is_wrong(house: House) -> None:
    child = house.start()
    house.settled()
    (program,) = house.programs(house.web)
    house.write('\n[services.extra]\ncheck = { kind = "heartbeat", every = "1h" }\n')
    child.send_signal(signal.SIGHUP)
    wait_for(lambda: len(house.ask("status")["services"]) == 4)
    house.write('\n[services.extra]\ncheck = { kind = "hartbeat", every = "1h" }\n')
    child.send_signal(signal.SIGHUP)
    wait_for(lambda: "the file was not taken over: services.extra.check" in house.log())
    assert len(house.ask("status")["services"]) == 4
    house.file.write_text('[fleet]\nstate_dir = "state"\n')
    child.send_signal(signal.SIGHUP)
    wait_for(lambda: house.log().count("the file was not taken over") == 2)
    wait_for(lambda: "restart selfheal with this file, then say `selfheal release fleet`" in house.log())
    assert len(house.ask("status")["services"]) == 4
    assert house.programs(house.web) == [program]


def test_a_reload_names_what_waits_for_the_next_start(house: House) -> None:
    child = house.start()
    house.settled()
    house.write(
        """
[notifiers.phone]
kind = "log"

[[maintenance]]
name = "rack"
services = ["web"]
daily = "00:00-23:59"
"""
    )
    child.send_signal(signal.SIGHUP)
    wait_for(lambda: "notifiers.phone: what has changed there is taken over at the next start only" in house.log())
    wait_for(lambda: [one["suppression"] for one in house.ask("suppressions")] == ["window:rack"])
    assert "maintenance" not in [line.partition(": what has changed")[0] for line in house.log().splitlines()]


def test_of_one_that_is_frozen_the_journal_tells(house: House) -> None:
    child = house.start()
    house.settled()
    child.send_signal(signal.SIGSTOP)
    try:
        told = house.run("status")
        assert told.returncode == 0
        assert "the selfheal there is stopped, or its host is very busy. This is from the journal" in told.stderr
        assert "web" in told.stdout
        asked = house.run("pause", "web", "--reason", "x")
        assert (asked.returncode, "may still be done" in asked.stderr) == (4, True)
    finally:
        child.send_signal(signal.SIGCONT)


def test_a_damaged_journal_stops_no_checking_and_is_left_as_it_is(house: House) -> None:
    child = house.start()
    house.settled()
    child.send_signal(signal.SIGTERM)
    child.wait(PATIENCE)
    journal = house.state / "selfheal.db"
    damaged = bytearray(journal.read_bytes())
    damaged[100:4000] = os.urandom(3900)
    journal.write_bytes(damaged)

    house.start()
    house.settled()
    assert "everything is checked and nothing is repaired" in house.log()
    answer = house.ask("status")
    assert [hold["hold"] for hold in answer["holds"]] == ["journal"]
    assert any(alert["rule"] == "journal" for alert in house.ask("alerts"))
    assert not house.ask("health")["journal"]["well"]
    house.break_(house.web)
    wait_for(lambda: house.state_of("web") == "failed")
    wait_for(lambda: "journal" in house.ask("explain", "web")["holding"])
    assert not house.programs(house.web)
    assert journal.read_bytes() == damaged
    unstored = house.run("pause", "web", "--reason", "moving a rack")
    assert unstored.returncode == 5
    assert "End it with" in unstored.stdout
    assert "not stored yet" in unstored.stderr
    second = house.start(ready=False)
    assert second.wait(PATIENCE) == 3


def test_the_service_manager_hears_of_start_watchdog_and_stop(house: House) -> None:
    address = house.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE)
        child = house.start(NOTIFY_SOCKET=str(address), WATCHDOG_USEC="200000")
        heard = {manager.recv(200).decode()}
        while not {"READY=1", "WATCHDOG=1"} <= heard:
            heard.add(manager.recv(200).decode())
        began = time.monotonic()
        for _ in range(5):
            assert manager.recv(200) == b"WATCHDOG=1"
        assert time.monotonic() - began > 0.3
        child.send_signal(signal.SIGTERM)
        while heard != {"READY=1", "WATCHDOG=1", "STOPPING=1"}:
            heard.add(manager.recv(200).decode())
        assert child.wait(PATIENCE) == 0


def _recv_for_ever(manager: socket.socket) -> None:
    while True:
        manager.recv(200)


def test_a_loop_that_is_dead_does_not_answer_the_watchdog(house: House) -> None:
    address = house.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE)
        child = house.start(NOTIFY_SOCKET=str(address), WATCHDOG_USEC="100000")
        while manager.recv(200) != b"WATCHDOG=1":
            pass
        child.send_signal(signal.SIGSTOP)
        manager.settimeout(0.5)
        with pytest.raises(TimeoutError):
            _recv_for_ever(manager)
        child.send_signal(signal.SIGCONT)
        manager.settimeout(PATIENCE)
        assert manager.recv(200) == b"WATCHDOG=1"


@pytest.mark.anyio
async def test_an_engine_that_has_stopped_does_not_answer_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    said, answered = [], anyio.Event()

    def hear(text: str) -> None:
        said.append(text)
        answered.set()

    monkeypatch.setattr(daemon, "notify", hear)
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    async with Supervisor(journal=None) as supervisor, anyio.create_task_group() as tasks:
        tasks.start_soon(daemon._keep_watchdog, supervisor)
        with anyio.fail_after(PATIENCE):
            await answered.wait()
        assert supervisor._running is not None
        supervisor._running.loop.give_up(ZeroDivisionError("a fault of ours"))
    assert set(said) == {"WATCHDOG=1"}  # and the task has ended by itself


def test_its_log_is_lines_of_json_when_asked_for(house: House) -> None:
    child = house.start("--log-format", "json")
    house.settled()
    child.send_signal(signal.SIGTERM)
    child.wait(PATIENCE)
    entries: list[dict[str, Any]] = [json.loads(line) for line in house.log().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(entries[0])
    assert any(entry["message"].startswith("web: ") for entry in entries)


def test_a_file_with_errors_is_not_run_and_all_of_them_are_named(house: House) -> None:
    house.write('\n[services.extra]\ncheck = { kind = "tcp", adress = "x:1" }\nmax_retry = 3\n')
    child = house.start(ready=False)
    assert child.wait(PATIENCE) == 2
    assert "services.extra.check" in house.log()
    assert "max_retries" in house.log()
    assert not house.state.exists()


def test_a_file_with_a_step_that_nobody_answers_leaves_no_journal_behind(house: House) -> None:
    house.write(
        '\n[services.extra]\ncheck = { kind = "tcp", address = "127.0.0.1:1" }\nrecovery_actions = ["reconect"]\n'
    )
    child = house.start(ready=False)
    assert child.wait(PATIENCE) == 2
    assert "services.extra.recovery_actions" in house.log()
    assert not house.state.exists()


def test_garbage_at_the_socket_disturbs_nobody(house: House) -> None:
    house.start()
    house.settled()
    connections = []
    for number in range(200):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(str(house.state / "control.sock"))
        if number % 3:
            connection.send(os.urandom(100) if number % 2 else b'{"v": 1, "request": "rec')
        connections.append(connection)
    assert house.state_of("web") == "healthy"
    house.break_(house.web)
    wait_for(lambda: house.programs(house.web))
    for connection in connections:
        connection.close()
    assert "Traceback" not in house.log()


def test_its_files_are_for_nobody_else(house: House) -> None:
    house.start()
    house.settled()
    for path in [house.state, *house.state.iterdir()]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_it_runs_as_a_module_and_says_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "selfheal", "--version"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.startswith("selfheal 0.")
