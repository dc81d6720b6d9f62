"""The runner itself, turned by hand: when things are told, what is kept, what is closed."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import attrs
import pytest
from tests.broken import fails_when, patience

from selfheal.builtin.wire_checks import HttpCheck, RedisPing, TcpCheck
from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.shell.lanes import Lane
from selfheal.shell.names import Resolver
from selfheal.shell.oserrors import better, from_errno, from_oserror
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal.wire import PeerClosed, Talk, Target, WireCheck

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.runner.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@attrs.frozen(kw_only=True)
class Says:
    """A check made of a talk."""

    kind: ClassVar[str] = "says"
    address: str
    says: Callable[[], Talk]
    keep: bool = False

    def target(self) -> Target:
        host, _, port = self.address.rpartition(":")
        return Target(host=host, port=int(port), keep=self.keep)

    def talk(self) -> Talk:
        return self.says()


# -- when things are told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [servers.refuse, servers.hang])
def test_start_tells_nothing_and_the_next_deadline_is_past_until_the_flush(turned: Turned, server: Any) -> None:
    with server() as address:
        lane = turned.runner.lane(TcpCheck(address=address), 1.0, None)
        turned.runner.start(lane, monotonic())
        assert turned.told == []
        at = turned.runner.next_deadline()
        assert at is not None
        assert at <= monotonic()
        turned.runner.flush()
        assert len(turned.told) == 1
        assert turned.runner.next_deadline() is None


def test_a_check_may_be_started_from_finished_and_the_flush_still_ends(turned: Turned) -> None:
    with servers.refuse() as address:
        lane = turned.runner.lane(TcpCheck(address=address), 1.0, None)
        turned.then = lambda lane: turned.runner.start(lane, monotonic())
        turned.runner.start(lane, monotonic())
        turned.runner.flush()
        assert len(turned.told) == 1
        turned.runner.poll()
        assert len(turned.told) == 2


def test_what_finished_raises_comes_out_and_loses_no_other_result(turned: Turned) -> None:
    with servers.refuse() as address:
        for _ in range(2):
            turned.runner.start(turned.runner.lane(TcpCheck(address=address), 1.0, None), monotonic())

        def fail(lane: Lane) -> None:
            turned.then = lambda lane: None
            raise KeyError("bug of the loop")

        turned.then = fail
        with pytest.raises(KeyError):
            turned.runner.flush()
        turned.runner.flush()
        assert len(turned.told) == 2


def test_two_checks_at_once_on_one_lane_are_refused(turned: Turned) -> None:
    with servers.hang() as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 1.0, None)
        turned.runner.start(lane, monotonic())
        with pytest.raises(RuntimeError, match="in flight"):
            turned.runner.start(lane, monotonic())


def test_a_cancelled_check_is_dropped_silently_and_its_socket_closed(turned: Turned) -> None:
    with servers.hang() as address, servers.refuse() as dead:
        before = descriptors()
        for check in (RedisPing(url=f"redis://{address}"), TcpCheck(address=dead), TcpCheck(address=address)):
            lane = turned.runner.lane(check, 1.0, None)
            turned.runner.start(lane, monotonic())
            turned.runner.cancel(lane)
            turned.runner.cancel(lane)
        turned.runner.flush()
        assert turned.told == []
        assert turned.runner.in_flight == 0
        assert turned.runner.next_deadline() is None
        turned.turn(lambda: descriptors() <= before)


def test_a_check_cancelled_between_its_result_and_the_flush_keeps_its_connection(turned: Turned) -> None:
    def at_once() -> Talk:
        while True:
            yield PASSING

    with servers.hang() as address:
        lane = turned.runner.lane(Says(address=address, says=at_once, keep=True), 1.0, None)
        turned.runner.start(lane, monotonic())
        turned.runner.cancel(lane)
        turned.runner.flush()
        assert turned.told == []
        assert turned.runner.in_flight == 0
        assert turned.runner.connections == 1
        assert turned.run(lane) is PASSING


def test_a_result_of_a_cancelled_check_is_not_taken_for_the_next_one(turned: Turned) -> None:
    with servers.hang() as address:
        lane = turned.runner.lane(TcpCheck(address=address), 1.0, None)
        turned.runner.start(lane, monotonic())  # passes at once, and waits for the flush
        turned.runner.cancel(lane)
        lane.near = False
        turned.runner.start(lane, monotonic())
        turned.runner.flush()
        assert turned.told == []
        turned.turn(lambda: turned.told == [(lane, PASSING)])


def test_latency_is_that_of_the_service(turned: Turned) -> None:
    with servers.answer(OK[:9], OK[9:], pause=0.1) as address:
        assert turned.run(HttpCheck(url=f"http://{address}/")) is PASSING
    started, ended = turned.times[0]
    assert 0.1 <= ended - started < 1.0


# -- deadlines -------------------------------------------------------------------------------------------------------


@fails_when("a check on the wire waits for the one before")
@pytest.mark.real_time
def test_s14_checks_that_hang_delay_nobody(turned: Turned) -> None:
    """Six hang, a seventh is due: it starts and ends on time."""
    with servers.hang() as mute, servers.pong() as well:
        for _ in range(6):
            turned.runner.start(turned.runner.lane(RedisPing(url=f"redis://{mute}"), 3.0, None), monotonic())
        began = monotonic()
        seventh = turned.runner.lane(RedisPing(url=f"redis://{well}"), 2.0, None)
        turned.runner.start(seventh, monotonic())
        turned.turn(lambda: bool(turned.told), patience(5.0))
        assert turned.told == [(seventh, PASSING)]
        assert monotonic() - began < 0.5
        turned.turn(lambda: len(turned.told) == 7)
        assert all(result.cause is Cause.TIMEOUT for _, result in turned.told[1:])
        assert all(3.0 <= ended - started < 3.2 for started, ended in turned.times[1:])


@pytest.mark.real_time
def test_a_drip_that_never_ends_meets_the_total_deadline(turned: Turned) -> None:
    with servers.drip(b"x" * 4000, pause=0.02) as address:
        result = turned.run(RedisPing(url=f"redis://{address}"), 0.3)
    assert result.cause is Cause.TIMEOUT
    started, ended = turned.times[0]
    assert ended - started < 0.4


def test_an_answer_that_came_while_we_were_late_still_counts(turned: Turned) -> None:
    with servers.pong() as address:
        lane = turned.runner.lane(RedisPing(url=f"redis://{address}"), 0.05, None)
        turned.runner.start(lane, monotonic())
        select.select([turned.runner.fd], [], [], 2.0)
        threading.Event().wait(0.2)  # the whole process stands still past the deadline
        turned.runner.expire(monotonic())
        assert turned.told == [(lane, PASSING)]


@pytest.mark.real_time
def test_an_address_that_swallows_connections_leaves_time_for_the_next() -> None:
    with servers.black_hole() as hole, servers.pong() as well:
        (hole_host, hole_port), (host, port) = hole.split(":"), well.split(":")
        both = ((socket.AF_INET, (hole_host, int(hole_port))), (socket.AF_INET, (host, int(port))))
        turned = Turned(Resolver(lookup=lambda host, port: both))
        try:
            lane = turned.runner.lane(RedisPing(url="redis://two.example", keep=False), 1.0, None)
            assert turned.run(lane) is PASSING
            assert turned.times[0][1] - turned.times[0][0] >= 0.5
            assert turned.run(lane) is PASSING
            assert turned.times[1][1] - turned.times[1][0] < 0.4, "it begins with the address that answered"
        finally:
            turned.runner.close()


# -- whose fault -----------------------------------------------------------------------------------------------------


def test_no_descriptors_left_is_our_own_want(turned: Turned) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with servers.pong() as address:
        check = RedisPing(url=f"redis://{address}")
        lane = turned.runner.lane(check, 1.0, None)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            turned.runner.start(lane, monotonic())
            turned.runner.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [result.verdict for _, result in turned.told] == [Verdict.INCONCLUSIVE]
        assert turned.run(check) is PASSING


def test_a_dead_port_of_the_connecting_range_never_passes_by_meeting_itself(turned: Turned) -> None:
    """Connecting to a free local port may draw that very port; TCP then connects the socket to itself."""
    for parity in (0, 1):  # the kernel tries ports of one parity first
        for port in range(40_000 + parity, 41_000, 2):
            lane = turned.runner.lane(TcpCheck(address=f"127.0.0.1:{port}"), 1.0, None)
            met = 0
            for _ in range(30_000):
                turned.runner.start(lane, 0.0)
                turned.runner.flush()
                met += turned.told.pop()[1] is PASSING
            if not met or is_free(port):
                assert met == 0
                break  # else somebody listened there meanwhile


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@fails_when("connections are left open")
def test_s64_a_failing_check_leaves_no_connection_open(turned: Turned) -> None:
    """A thousand checks that fail after connecting, in every way."""

    def raises() -> Talk:
        yield b"hello"
        raise RuntimeError

    with servers.answer(b"HTTP/1.1 500 No\r\n\r\n") as ill, servers.reset(b"") as resets, servers.refuse() as dead:
        checks: list[WireCheck] = [
            HttpCheck(url=f"http://{ill}/"),
            HttpCheck(url=f"http://{resets}/"),
            HttpCheck(url=f"http://{dead}/"),
            Says(address=ill, says=raises),
        ]
        for check in checks:
            turned.run(check)
        lanes = [turned.runner.lane(check, 2.0, None) for check in checks]
        before = descriptors()
        for _ in range(250):
            done = len(turned.told) + len(lanes)
            for lane in lanes:
                turned.runner.start(lane, monotonic())
            turned.turn(lambda done=done: len(turned.told) == done)  # type: ignore[misc]
        assert turned.runner.connections == 0
        assert all(result.verdict is not Verdict.PASSING for _, result in turned.told)
        # The server's own ends are closed by its threads.
        turned.turn(lambda: descriptors() <= before, patience(5.0))


# -- talks that misbehave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", [SystemExit, GeneratorExit, RecursionError, MemoryError, StopIteration])
def test_whatever_a_talk_raises_ends_only_its_own_check(turned: Turned, raised: type[BaseException]) -> None:
    def raises() -> Talk:
        yield b"hello"
        raise raised

    with servers.answer(OK) as address:
        assert turned.run(Says(address=address, says=raises)).verdict is Verdict.INCONCLUSIVE
        assert turned.run(HttpCheck(url=f"http://{address}/")) is PASSING


def test_a_persons_interrupt_is_not_swallowed(turned: Turned) -> None:
    def interrupted() -> Talk:
        yield b"hello"
        raise KeyboardInterrupt

    with servers.answer(OK) as address:
        lane = turned.runner.lane(Says(address=address, says=interrupted), 1.0, None)
        turned.runner.start(lane, monotonic())
        with pytest.raises(KeyboardInterrupt):
            turned.turn(lambda: bool(turned.told))
        turned.turn(lambda: bool(turned.told))
        assert turned.told[0][1].verdict is Verdict.INCONCLUSIVE


def test_a_talk_that_is_no_generator_is_a_configuration_error(turned: Turned) -> None:
    with servers.answer(OK) as address:
        check = Says(address=address, says=lambda: "hello")  # type: ignore[arg-type, return-value]
        result = turned.run(check)
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_a_check_that_cannot_say_where_to_go_is_asked_again(turned: Turned) -> None:
    @attrs.define
    class Lost:
        kind: ClassVar[str] = "lost"
        address: str = ""

        def target(self) -> Target:
            if not self.address:
                raise OSError("the secret with the URL in it is not there yet")
            return TcpCheck(address=self.address).target()

        def talk(self) -> Talk:
            return PASSING
            yield

    check = Lost()
    lane = turned.runner.lane(check, 1.0, None)
    result = turned.run(lane)
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    with servers.hang() as address:
        check.address = address
        assert turned.run(lane) is PASSING


def test_a_talk_that_cannot_be_closed_is_kept_and_never_run_again(turned: Turned) -> None:
    begun: list[int] = []
    release = threading.Event()

    def clings() -> Talk:
        begun.append(1)
        while not release.is_set():
            with suppress(GeneratorExit):
                yield b""
        return PASSING

    with servers.hang() as address:
        lane = turned.runner.lane(Says(address=address, says=clings), 0.05, None)
        assert turned.run(lane).cause is Cause.TIMEOUT
        assert turned.runner.connections == 0
        result = turned.run(lane)
        assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
        assert begun == [1]
        release.set()  # or its end would be reported as never raised


def test_a_talk_in_mid_sentence_is_closed_at_the_deadline_and_its_cleanup_runs(turned: Turned) -> None:
    closed: list[str] = []

    def careful() -> Talk:
        try:
            yield b"hello"
        finally:
            closed.append("yes")
        return PASSING

    with servers.hang() as address:
        turned.run(Says(address=address, says=careful), 0.05)
    assert closed == ["yes"]


def test_what_is_said_while_the_kernel_is_full_comes_after_what_was_said_before(turned: Turned) -> None:
    heard = bytearray()

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.sendall(b"go")
        stop.wait(0.1)
        while not heard.endswith(b"end"):
            heard.extend(client.recv(1 << 20))
        client.sendall(b"done")
        stop.wait()

    def talk() -> Talk:
        yield b"a" * 8_000_000
        reply = yield b"end"
        return PASSING if reply == b"done" else CheckResult(Verdict.FAILING)

    with servers.serve(speak) as address:
        assert turned.run(Says(address=address, says=talk)) is PASSING
    assert bytes(heard) == b"a" * 8_000_000 + b"end"


def test_last_words_are_heard_though_sending_failed_before_them(turned: Turned) -> None:
    gone = threading.Event()

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.recv(4096)
        client.sendall(b"x" * 4096 + b"last words")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        gone.set()

    def talk() -> Talk:
        data = yield b"hello"
        while not data.endswith(b"last words"):
            data += yield b"more?"
        return PASSING

    with servers.serve(speak) as address:
        lane = turned.runner.lane(Says(address=address, says=talk), 2.0, None)
        turned.runner.start(lane, monotonic())
        assert gone.wait(5)
        turned.turn(lambda: bool(turned.told))
        assert turned.told == [(lane, PASSING)]


def test_the_end_of_the_peer_is_raised_and_the_talk_may_conclude_from_it(turned: Turned) -> None:
    def to_the_end() -> Talk:
        seen = yield b"hello"
        try:
            while True:
                seen += yield b""
        except PeerClosed:
            return PASSING if seen == b"all of it" else CheckResult(Verdict.FAILING)

    with servers.answer(b"all ", b"of it", pause=0.01) as address:
        assert turned.run(Says(address=address, says=to_the_end)) is PASSING


# -- the kernel's traps ----------------------------------------------------------------------------------------------


def test_a_stray_event_of_a_copied_descriptor_connects_nobody(turned: Turned) -> None:
    """As after a fork: the copy keeps a closed socket in the epoll, under a number that is somebody else's by now."""
    with servers.pong() as address, servers.black_hole() as hole:
        kept = turned.runner.lane(RedisPing(url=f"redis://{address}"), 2.0, None)
        assert turned.run(kept) is PASSING
        assert kept.flight is not None
        number = kept.flight.fd
        with copied(number) as copy:
            turned.runner.forget(kept)
            numbers: list[int] = []
            while number not in numbers:  # a thread that is just ending may have taken the number for a moment
                assert len(numbers) < 20
                lane = turned.runner.lane(TcpCheck(address=hole), 0.3, None)
                lane.near = False
                turned.runner.start(lane, monotonic())
                assert lane.flight is not None
                numbers.append(lane.flight.fd)
            copy.send(b"*1\r\n$4\r\nPING\r\n")  # the answer is an event of the old socket, under the old number
            turned.turn(lambda: len(turned.told) > len(numbers))
            assert {told[1].cause for told in turned.told[1:]} == {Cause.TIMEOUT}


def test_a_stray_event_of_a_copied_descriptor_ends_no_connection_at_rest(turned: Turned) -> None:
    with servers.pong() as address:
        check = RedisPing(url=f"redis://{address}")
        old, new = (turned.runner.lane(check, 2.0, None) for _ in range(2))
        assert turned.run(old) is PASSING
        assert old.flight is not None
        number = old.flight.fd
        with copied(number) as copy:
            turned.runner.forget(old)
            assert turned.run(new) is PASSING
            assert new.flight is not None
            assert new.flight.fd == number
            copy.send(b"*1\r\n$4\r\nPING\r\n")
            assert select.select([turned.runner.fd], [], [], 5.0)[0], "the stray event is there"
            turned.runner.poll()
            assert turned.lost == []
            assert turned.run(new) is PASSING


@contextmanager
def copied(descriptor: int) -> Iterator[socket.socket]:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        yield copy


def test_errors_of_the_system_have_one_table() -> None:
    assert from_errno(errno.ECONNREFUSED).cause is Cause.UNREACHABLE
    assert from_errno(errno.EHOSTUNREACH).cause is Cause.UNREACHABLE
    assert from_errno(errno.EACCES).cause is Cause.CONFIG
    assert from_errno(errno.EAGAIN).cause is Cause.OVERLOADED
    for ours in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL):
        assert from_errno(ours).verdict is Verdict.INCONCLUSIVE
        assert from_oserror(OSError(ours, "")).verdict is Verdict.INCONCLUSIVE
    assert from_oserror(TimeoutError()).cause is Cause.TIMEOUT
    assert from_oserror(OSError(errno.ETIMEDOUT, "")).cause is Cause.TIMEOUT
    assert from_oserror(socket.gaierror(-2, "Name or service not known")).cause is Cause.DNS
    assert from_oserror(ConnectionResetError()).cause is Cause.UNREACHABLE
    assert from_oserror(OSError("All connection attempts failed")).cause is Cause.UNREACHABLE
    wrapping = OSError("All connection attempts failed")
    wrapping.__cause__ = ExceptionGroup(
        "", [ConnectionRefusedError(errno.ECONNREFUSED, "x"), OSError(errno.EMFILE, "y")]
    )
    assert from_oserror(wrapping).cause is Cause.UNREACHABLE
    refused, want = from_errno(errno.ECONNREFUSED), from_errno(errno.EADDRNOTAVAIL)
    assert better(None, want) is want
    assert better(refused, want) is refused, "of several addresses the one that says more counts"
    assert better(want, refused) is refused
    wrapping.__cause__ = OSError(errno.EMFILE, "y")
    assert from_oserror(wrapping).verdict is Verdict.INCONCLUSIVE


def test_a_lane_at_rest_is_small(turned: Turned) -> None:
    import tracemalloc

    checks = [TcpCheck(address=f"127.0.0.1:{port}") for port in range(2000, 4000)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    lanes = [turned.runner.lane(check, 5.0, None) for check in checks]
    each = (tracemalloc.get_traced_memory()[0] - before) / len(lanes)
    tracemalloc.stop()
    assert each < 640, f"{each:.0f} bytes"


def test_closing_leaves_no_descriptor(tmp_path: Path) -> None:
    before = descriptors()
    with servers.pong() as address, servers.hang() as mute:
        turned = Turned()
        turned.run(RedisPing(url=f"redis://{address}"))
        turned.runner.start(turned.runner.lane(RedisPing(url=f"redis://{mute}"), 5.0, None), monotonic())
        turned.runner.close()
        turned.runner.close()
    assert descriptors() == before
