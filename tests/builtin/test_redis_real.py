"""`redis_ping` against the real Redis: each way it can be unwell is told from the others, and from being well."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.model import PASSING, Cause, Verdict
from selfheal.secret import Secret
from selfheal.testing.probing import Turned

if TYPE_CHECKING:
    from tests.servers import free_port, program_of, until
else:
    from servers import free_port, program_of, until

pytestmark = [pytest.mark.server, pytest.mark.real_time]

WRONG = "hunter2-canary-51d2e8"


class Redis:
    """One process of the real program, on a port and in a folder of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, *options: str) -> None:
        """Start it with these options over ours, and do not wait."""
        ours = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "daemonize": "no"}
        arguments = [part for name, value in ours.items() for part in (f"--{name}", str(value))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([self.program, *arguments, *options], stdout=log, stderr=log)

    def start(self, *options: str) -> None:
        """Start it, and wait until it serves: until it answers anything but that it is loading."""
        self.begin(*options)
        until(lambda: (said := self.ask("PING")) and not said.startswith(b"-LOADING"), "Redis answers")

    def ask(self, *words: str) -> bytes:
        """Send one command on its own connection; return the first line of the answer, empty without one."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5.0) as connection:
                parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
                connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
                return connection.recv(4096).split(b"\r\n")[0]
        except OSError:
            return b""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it with a signal, and wait for that."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(15.0)
            self._process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    one = Redis(program_of("redis", "redis-server", "valkey-server"), tmp_path)
    try:
        yield one
    finally:
        one.end()


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.runner.close()


@contextmanager
def shown(turned: Turned, check: RedisPing, cause: Cause, timeout: float = 2.0) -> Iterator[str]:
    """Run a check that must be FAILING with this cause; yield what it says, which must not be the password."""
    result = turned.run(check, timeout)
    assert (result.verdict, result.cause) == (Verdict.FAILING, cause), result
    assert WRONG not in repr(result)
    yield result.summary


def test_a_healthy_one_passes_over_tcp_and_over_a_unix_socket(redis: Redis, turned: Turned) -> None:
    path = redis.folder / "redis.sock"
    redis.start("--unixsocket", str(path))
    assert turned.run(RedisPing(url=redis.url)) is PASSING
    assert turned.run(RedisPing(url=f"unix://{path}")) is PASSING


def test_a_kept_connection_carries_one_check_after_another(redis: Redis, turned: Turned) -> None:
    redis.start()
    lane = turned.runner.lane(RedisPing(url=redis.url), 2.0, None)
    for _ in range(5):
        assert turned.run(lane) is PASSING
    assert turned.runner.connections == 1


def test_a_password_is_given_from_the_url_or_as_a_secret_and_to_a_user(redis: Redis, turned: Turned) -> None:
    redis.start("--requirepass", "sesame", "--user", "watcher", "on", ">sesame", "-@all", "+ping")
    assert turned.run(RedisPing(url=redis.url.replace("//", "//:sesame@"))) is PASSING
    assert turned.run(RedisPing(url=redis.url, password=Secret("sesame"))) is PASSING
    assert turned.run(RedisPing(url=redis.url.replace("//", "//watcher:sesame@"))) is PASSING


def test_a_missing_or_wrong_password_is_no_outage_but_auth(redis: Redis, turned: Turned) -> None:
    redis.start("--requirepass", "sesame", "--user", "mute", "on", ">sesame", "-@all")
    with shown(turned, RedisPing(url=redis.url), Cause.AUTH) as said:
        assert "NOAUTH" in said
    with shown(turned, RedisPing(url=redis.url, password=Secret(WRONG)), Cause.AUTH) as said:
        assert "WRONGPASS" in said
    with shown(turned, RedisPing(url=redis.url.replace("//", "//mute:sesame@")), Cause.AUTH) as said:
        assert "NOPERM" in said


def test_a_password_for_a_server_that_has_none_is_auth(redis: Redis, turned: Turned) -> None:
    redis.start()
    with shown(turned, RedisPing(url=redis.url, password=Secret(WRONG)), Cause.AUTH):
        pass


def test_one_that_loads_its_data_is_starting_and_then_passes(redis: Redis, turned: Turned) -> None:
    """Restarting it would only begin the loading anew."""
    redis.start()
    script = "for i = 1, 3000 do redis.call('SET', 'key' .. i, string.rep('x', 100)) end"
    assert redis.ask("EVAL", script, "0") == b"$-1"
    assert redis.ask("SAVE") == b"+OK"
    redis.end()
    redis.begin("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")  # a millisecond each
    until(lambda: redis.ask("PING"), "Redis answers while it loads")
    with shown(turned, RedisPing(url=redis.url), Cause.STARTING) as said:
        assert "LOADING" in said
    until(lambda: turned.run(RedisPing(url=redis.url)) is PASSING, "it has loaded its data", 30.0)


def test_a_start_goes_from_unreachable_over_starting_to_passing_and_shows_nothing_else(
    redis: Redis, turned: Turned
) -> None:
    check = RedisPing(url=redis.url)
    seen: list[Cause | None] = [turned.run(check).cause]
    redis.begin()
    end = time.monotonic() + 15.0
    while seen[-1] is not None and time.monotonic() < end:
        seen.append(turned.run(check).cause)
    assert seen[0] is Cause.UNREACHABLE
    assert seen[-1] is None
    assert set(seen) <= {Cause.UNREACHABLE, Cause.STARTING, None}


def test_one_without_a_place_for_another_client_is_overloaded(redis: Redis, turned: Turned) -> None:
    redis.start("--maxclients", "1")
    check = RedisPing(url=redis.url, keep=False)
    with socket.create_connection(("127.0.0.1", redis.port)) as crowd:
        crowd.sendall(b"PING\r\n")
        assert crowd.recv(100) == b"+PONG\r\n"
        with shown(turned, check, Cause.OVERLOADED) as said:
            assert "max number of clients" in said
    until(lambda: turned.run(check) is PASSING, "the crowd has left")


def test_a_script_that_does_not_end_is_overloaded(redis: Redis, turned: Turned) -> None:
    redis.start("--lua-time-limit", "50")
    runs = threading.Thread(target=redis.ask, args=("EVAL", "while true do end", "0"))
    runs.start()
    until(lambda: redis.ask("PING").startswith(b"-BUSY"), "the script runs too long")
    with shown(turned, RedisPing(url=redis.url), Cause.OVERLOADED) as said:
        assert "BUSY" in said
    assert redis.ask("SCRIPT", "KILL") == b"+OK"
    runs.join(10.0)
    assert turned.run(RedisPing(url=redis.url)) is PASSING


def test_a_replica_without_its_master_that_may_serve_nothing_old_is_a_degraded_cluster(
    redis: Redis, turned: Turned
) -> None:
    redis.start("--replicaof", "127.0.0.1", str(free_port()), "--replica-serve-stale-data", "no")
    with shown(turned, RedisPing(url=redis.url), Cause.DEGRADED_CLUSTER) as said:
        assert "MASTERDOWN" in said


def test_a_stopped_process_accepts_and_says_nothing_which_is_a_timeout(redis: Redis, turned: Turned) -> None:
    redis.start()
    lane = turned.runner.lane(RedisPing(url=redis.url), 0.5, None)
    assert turned.run(lane) is PASSING
    redis.send(signal.SIGSTOP)
    for check in (lane, RedisPing(url=redis.url)):  # on the kept connection, and on a new one
        began = time.monotonic()
        result = turned.run(check, 0.5)
        assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.TIMEOUT)
        assert time.monotonic() - began < 1.5
    redis.send(signal.SIGCONT)
    assert turned.run(lane) is PASSING


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_process_is_told_at_once_by_its_kept_connection(
    redis: Redis, turned: Turned, number: int
) -> None:
    redis.start()
    lane = turned.runner.lane(RedisPing(url=redis.url), 2.0, None)
    assert turned.run(lane) is PASSING
    redis.end(number)
    began = time.monotonic()
    turned.turn(lambda: turned.lost == [lane])
    assert time.monotonic() - began < 0.5
    result = turned.run(lane)
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.UNREACHABLE)


def test_another_incarnation_at_the_same_address_is_connected_to_anew(redis: Redis, turned: Turned) -> None:
    redis.start()
    lane = turned.runner.lane(RedisPing(url=redis.url), 2.0, None)
    assert turned.run(lane) is PASSING
    redis.end()
    redis.start()
    assert turned.run(lane) is PASSING


def test_where_nobody_listens_it_is_unreachable(redis: Redis, turned: Turned) -> None:
    with shown(turned, RedisPing(url=redis.url), Cause.UNREACHABLE) as said:
        assert "refused" in said
