"""Kept connections: used again, lost at rest, dead at the start of a check, and what each of these proves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from selfheal.builtin.wire_checks import HttpCheck, RedisPing, TcpCheck
from selfheal.core.model import PASSING, Cause, Verdict
from selfheal.shell.lanes import KEPT_CHECKS, Lane
from selfheal.testing import servers
from selfheal.testing.probing import Turned


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.runner.close()


def closing_after(pings: int, *, at_rest: bool) -> Any:
    """Answer so many pings on each connection, then close: at rest, or when one more ping arrives."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        for _ in range(pings):
            if not client.recv(4096):
                return
            client.sendall(b"+PONG\r\n")
        if at_rest:
            stop.wait(0.05)
        else:
            client.recv(4096)

    return servers.serve(speak)


def test_a_kept_connection_is_used_again_and_logged_in_once(turned: Turned) -> None:
    heard: list[bytes] = []

    def speak(client: socket.socket, stop: threading.Event) -> None:
        while data := client.recv(4096):
            heard.append(data)
            client.sendall(b"+OK\r\n" if b"AUTH" in data else b"+PONG\r\n")

    with servers.serve(speak) as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://:sesame@{address}"), 2.0, None)
        for _ in range(3):
            assert turned.run(lane) is PASSING
        assert [b"AUTH" in data for data in heard] == [True, False, False, False]
        assert turned.runner.connections == 1
        turned.runner.forget(lane)
        assert turned.runner.connections == 0


def test_after_ten_checks_another_connection_is_taken_and_logged_in(turned: Turned) -> None:
    """Who is in already does not notice that the password was changed, or that nobody else is let in."""
    logins: list[str] = []
    renewed = threading.Event()

    def speak(client: socket.socket, stop: threading.Event) -> None:
        while data := client.recv(4096):
            if b"AUTH" in data:
                logins.append("refused" if renewed.is_set() else "let in")
                if renewed.is_set():
                    client.sendall(b"-WRONGPASS invalid username-password pair\r\n")
                    return
            client.sendall(b"+OK\r\n" if b"AUTH" in data else b"+PONG\r\n")

    with servers.serve(speak) as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://:sesame@{address}"), 2.0, None)
        for _ in range(KEPT_CHECKS):
            assert turned.run(lane) is PASSING
        assert (logins, turned.runner.connections) == (["let in"], 1)  # open, so that its end is heard
        renewed.set()
        result = turned.run(lane)
        assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.AUTH)
        renewed.clear()
        for _ in range(KEPT_CHECKS):
            assert turned.run(lane) is PASSING
        assert logins == ["let in", "refused", "let in"]
        assert (turned.lost, turned.runner.connections) == ([], 1)


def test_a_connection_that_dies_at_rest_is_told_as_lost_once_and_proves_nothing(turned: Turned) -> None:
    with closing_after(1, at_rest=True) as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        assert turned.run(lane) is PASSING
        turned.turn(lambda: turned.lost == [lane])
        turned.runner.poll()
        assert turned.lost == [lane]
        assert turned.runner.connections == 0
        assert turned.run(lane) is PASSING


def test_a_forgotten_lane_is_never_spoken_of_again(turned: Turned) -> None:
    with closing_after(1, at_rest=True) as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        assert turned.run(lane) is PASSING
        other = turned.runner.lane(TcpCheck(address=address), 2.0, None)
        turned.runner.start(lane, monotonic())
        turned.then = lambda told: turned.runner.forget(lane)
        turned.runner.start(other, monotonic())
        turned.runner.flush()
        turned.runner.poll()
        assert [told for told, _ in turned.told] == [lane, other]
        assert turned.lost == []
        assert turned.runner.connections == 0


def test_a_lost_connection_is_not_told_when_a_check_has_begun_since(turned: Turned) -> None:
    with closing_after(1, at_rest=True) as address, servers.refuse() as dead:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        assert turned.run(lane) is PASSING
        threading.Event().wait(0.2)  # the end has come, and was not looked at
        turned.runner.start(turned.runner.lane(TcpCheck(address=dead), 2.0, None), monotonic())

        def begin(told: Lane) -> None:
            turned.then = lambda told: None
            turned.runner.start(lane, monotonic())

        turned.then = begin
        turned.runner.poll()
        assert turned.lost == []
        turned.turn(lambda: len(turned.told) == 3)
        assert turned.told[2] == (lane, PASSING)


def test_an_answer_and_the_end_in_one_event_are_both_noticed(turned: Turned) -> None:
    with servers.answer(b"+PONG\r\n") as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        turned.runner.start(lane, monotonic())
        threading.Event().wait(0.2)  # both have come when we look
        turned.runner.poll()
        assert turned.told == [(lane, PASSING)]
        assert turned.lost == [lane]
        assert turned.runner.connections == 0


def test_an_answer_with_more_after_it_passes_and_the_connection_is_not_kept(turned: Turned) -> None:
    with servers.half_close(b"+PONG\r\n+more\r\n") as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        assert turned.run(lane) is PASSING
        assert lane.flight is None
        assert turned.lost == []


def test_a_connection_that_dies_when_the_check_begins_costs_one_new_connection(turned: Turned) -> None:
    with closing_after(1, at_rest=False) as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        for _ in range(3):
            assert turned.run(lane) is PASSING
        assert turned.lost == []


def test_a_service_that_is_gone_when_the_check_begins_fails(turned: Turned) -> None:
    with servers.pong() as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        assert turned.run(lane) is PASSING
    result = turned.run(lane)
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.UNREACHABLE)
    assert turned.lost == [], "a check in flight says more than a lost connection"


@pytest.mark.real_time
def test_a_kept_connection_that_only_went_silent_costs_a_new_one_within_the_deadline(turned: Turned) -> None:
    """A firewall forgot the connection; the service is well."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.recv(4096)
        client.sendall(b"+PONG\r\n")
        stop.wait()

    with servers.serve(speak) as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 0.6, None)
        for _ in range(2):
            assert turned.run(lane) is PASSING
        started, ended = turned.times[-1]
        assert 0.3 <= ended - started < 0.5


def test_words_nobody_asked_for_end_a_kept_connection(turned: Turned) -> None:
    speak_up = threading.Event()

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.recv(4096)
        client.sendall(b"+PONG\r\n")
        speak_up.wait(5)
        client.sendall(b"-ERR bye\r\n")
        stop.wait()

    with servers.serve(speak) as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        assert turned.run(lane) is PASSING
        speak_up.set()
        turned.turn(lambda: turned.lost == [lane])


@pytest.mark.parametrize("keep", [True, False])
def test_http_on_a_kept_connection_is_read_to_the_end_of_each_answer(turned: Turned, keep: bool) -> None:
    connections: list[int] = []

    def speak(client: socket.socket, stop: threading.Event) -> None:
        connections.append(1)
        while client.recv(4096):
            client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nOK\r\n")
            client.sendall(b"0\r\n\r\n")

    with servers.serve(speak) as address:
        lane = turned.runner.lane(HttpCheck(url=f"http://{address}/", body="OK", keep=keep), 2.0, None)
        for _ in range(3):
            assert turned.run(lane) is PASSING
    assert len(connections) == (1 if keep else 3)
