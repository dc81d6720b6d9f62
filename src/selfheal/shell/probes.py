"""The runner of wire checks: names, connections, TLS, deadlines and the byte cap, for thousands of checks at once.

All sockets are in one epoll whose own descriptor any event loop can watch (`readiness`), so a check costs no task, no
future and no cancel scope. Everything is called on one thread, the loop's, and nothing here blocks; times are
`time.monotonic`, which the loop restates in journal time.

Three rules of this file:

- **Nothing is told from inside `start`, `cancel` or an event.** Results and lost connections wait in a queue, which
  `flush` empties; `poll` and `expire` end with a flush. While one waits, `next_deadline` is already past, so a loop
  that forgets to flush is only late. In a flush, every act on the runner is allowed, `start` included.
- **Poll comes before expiring**, so that our own lateness is not held against the service.
- **The epoll is edge-triggered and only a hint.** After a fork, the child's copy of a descriptor keeps a closed one
  alive in here, and its events come under a number that may be somebody else's by now: so every event is verified by
  the system call it announces. Data and end come as one event: when the peer has hung up we read to the end.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.shell.approach import Approach, ephemeral_ports, kind, met_itself
from selfheal.shell.lanes import CONNECTING, KEPT_CHECKS, PREPARING, REST, TALKING, Flight, Lane, allowance
from selfheal.shell.names import Resolver
from selfheal.shell.oserrors import better, from_errno, from_oserror
from selfheal.shell.tls import within
from selfheal.shell.wheel import GRID, Wheel
from selfheal.wire import PeerClosed, Talk, WireCheck, failing, inconclusive

_STREAM: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_Socket: Final = socket.SocketType  # the C type: socket.socket wraps it in Python, at a third of a TCP check
_GONE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_READ: Final = select.EPOLLIN | _GONE
_WRITE: Final = select.EPOLLOUT
_EDGE: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_QUIET: Final = socket.MSG_NOSIGNAL  # whatever the host did with SIGPIPE
_PENDING: Final = frozenset({errno.EINPROGRESS, errno.EALREADY})
_CHUNK: Final = 4096
_MOST: Final = 512  # events of one call of epoll
_SLACK: Final = 0.001  # seconds; a grid point may lie a rounding error before the deadline it stands for
_CLOSED: Final = "closed the connection"

Finished = Callable[[Lane, CheckResult, float, float], None]
Lost = Callable[[Lane], None]


class ProbeRunner:
    """Runs wire checks. `finished(lane, result, started, ended)` is told once for each `start`, unless cancelled.

    `lost(lane)` says that the kept connection of a lane at rest broke: this proves nothing, and is told once.
    """

    def __init__(self, finished: Finished, lost: Lost, resolver: Resolver, *, grid: float = GRID) -> None:
        """`resolver` is closed with the runner. `grid` seconds between two points at which a deadline can pass."""
        self.resolver = resolver
        self.in_flight = 0
        """Checks begun and not yet ended."""
        self._finished = finished
        self._lost = lost
        self._epoll = select.epoll()
        self._epoll.register(resolver.fd, select.EPOLLIN)
        self._flights: dict[int, Flight] = {}
        self._wheel: Wheel[Flight] = Wheel(monotonic(), grid)
        self._settled: deque[tuple[Lane, CheckResult | None, float, float]] = deque()
        self._approach = Approach(resolver)
        self._ephemeral = ephemeral_ports()
        self._closed = False

    @property
    def fd(self) -> int:
        """The descriptor that is readable when `poll` has something to do."""
        return self._epoll.fileno()

    @property
    def connections(self) -> int:
        """How many sockets the epoll watches now, kept ones included."""
        return len(self._flights)

    # -- what the loop asks ---------------------------------------------------------------------------------------

    def lane(self, check: WireCheck, timeout: float, owner: object) -> Lane:
        """Return a lane for one service. `timeout` seconds bound a whole check, name and TLS included.

        Never raises for what the check does: one that cannot say where to go is INCONCLUSIVE, and asked again.
        Its TLS context is begun in a thread now, so that the first check finds it.
        """
        lane = Lane(check, timeout, owner)
        if self._approach.aim(lane) is None:
            self._approach.foresee(lane, monotonic())
        return lane

    def start(self, lane: Lane, now: float) -> None:
        """Begin a check; its end is told by a later flush. `now` may be the instant of a whole batch.

        Raises RuntimeError when a check of this lane is in flight already: cancel it first.
        """
        if lane.started is not None:
            raise RuntimeError("a check is in flight on this lane; cancel it first")
        started = lane.started = monotonic()
        self.in_flight += 1
        flight = lane.flight
        if flight is not None:
            if flight.checks < KEPT_CHECKS:
                flight.checks += 1
                self._resume(flight, started)
                return
            self._drop(flight)
            lane.flight = None
        if lane.target is None or lane.unsafe is not None:
            problem = self._approach.aim(lane)
            if problem is not None:
                self._settle(lane, problem)
                return
        target = lane.target
        assert target is not None
        deadline = started + lane.timeout
        flight = lane.flight = Flight(lane, target, deadline)
        flight.slot = self._wheel.put(deadline, flight)
        if (lane.believed > now and target.tls is None) or self._approach.ready(lane, now):
            self._connect(flight)

    def cancel(self, lane: Lane) -> None:
        """Drop the check in flight, if any: its connection is closed and nothing is told. A lane at rest stays so."""
        if lane.started is None:
            return
        lane.started = None
        flight = lane.flight
        if flight is not None and flight.phase != REST:  # REST: the result waited for its flush, the connection is fine
            self.in_flight -= 1
            self._approach.leave(lane)
            self._wheel.remove(flight.slot, flight)
            self._drop(flight)
            lane.flight = None

    def forget(self, lane: Lane) -> None:
        """Cancel, and close the connection kept for the next check. The lane may still be started again."""
        self.cancel(lane)
        for entry in [entry for entry in self._settled if entry[0] is lane]:
            self._settled.remove(entry)
        if lane.flight is not None:
            self._drop(lane.flight)
            lane.flight = None

    def poll(self) -> None:
        """Handle what the kernel and the threads have to say, then flush. Call it whenever `fd` is readable."""
        self._listen()
        if self._settled:
            self.flush()

    def expire(self, now: float) -> None:
        """End what is over its time, after a last look at what has arrived; then flush."""
        first = self._wheel.first()
        if first is not None and first <= now + 1e-6:
            while self._listen() == _MOST:
                pass
            for flight in self._wheel.due(now):
                if flight.lane.flight is flight and flight.phase != REST:
                    self._overdue(flight, now)
        if self._settled:
            self.flush()

    def next_deadline(self) -> float | None:
        """Return when `expire` is to be called next: a grid point, the past while results wait, or None."""
        return self._settled[0][3] if self._settled else self._wheel.first()

    def flush(self) -> None:
        """Tell what has ended up to now. What ends meanwhile waits for the next flush, so this always returns."""
        settled = self._settled
        for _ in range(len(settled)):
            if not settled:  # forgotten meanwhile
                return
            lane, result, started, ended = settled.popleft()
            if result is None:
                if lane.started is None:  # a check begun since then will say more than this
                    self._lost(lane)
            elif lane.started == started:  # else it was cancelled
                lane.started = None
                self._finished(lane, result, started, ended)

    def close(self) -> None:
        """Close every connection, the epoll and the resolver; nothing is told any more. Stop watching `fd` before."""
        if self._closed:
            return
        self._closed = True
        for flight in list(self._flights.values()):
            self._drop(flight)
            flight.lane.flight = None
        self._settled.clear()
        self._epoll.close()
        self.resolver.close()

    # -- connecting -------------------------------------------------------------------------------------------------

    def _connect(self, flight: Flight) -> None:
        """Try the lane's next address."""
        lane = flight.lane
        family, address = lane.addresses[flight.at]
        flight.phase = CONNECTING
        try:
            sock = _Socket(family, _STREAM)
            flight.sock = sock
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS and lane.near:  # loopback: the handshake is over already; ask again
                code = sock.connect_ex(address)
        except OSError as problem:
            self._refused(flight, from_oserror(problem))
            return
        except (TypeError, ValueError, OverflowError) as problem:
            self._end(flight, inconclusive(f"the address cannot be used: {type(problem).__name__}", Cause.CONFIG))
            return
        if code == 0:
            self._connected(flight)
        elif code in _PENDING:
            self._watch(flight)
            if flight.at + 1 < len(lane.addresses) and flight.sock is not None:
                self._share(flight)
        else:
            self._refused(flight, from_errno(code))

    def _share(self, flight: Flight) -> None:
        """Give the address in hand its share of what is left, so that the others get their turn before the end."""
        now = monotonic()
        self._reslot(flight, now + (flight.deadline - now) / (len(flight.lane.addresses) - flight.at))

    def _reslot(self, flight: Flight, at: float) -> None:
        self._wheel.remove(flight.slot, flight)
        flight.slot = self._wheel.put(at, flight)

    def _refused(self, flight: Flight, trouble: CheckResult) -> None:
        """Go on to the next address; after the last, end with what says most. localhost is often ::1 first."""
        flight.trouble = better(flight.trouble, trouble)
        lane = flight.lane
        flight.at += 1
        if flight.at < len(lane.addresses):
            self._drop(flight)
            self._reslot(flight, flight.deadline)
            self._connect(flight)
            return
        self._approach.doubt(lane)
        self._end(flight, flight.trouble)

    def _connected(self, flight: Flight) -> None:
        """Begin the conversation."""
        lane = flight.lane
        target = lane.target
        sock = flight.sock
        assert target is not None
        assert sock is not None
        if target.port in self._ephemeral and target.host is not None and met_itself(sock):
            self._refused(flight, from_errno(errno.ECONNREFUSED))
            return
        if flight.at:
            self._prefer(lane, flight)
        flight.phase = TALKING
        talk: Any = None
        try:
            talk = lane.check.talk()
            step = talk.send
            if target.tls is not None:
                talk = within(talk, target, self._approach.context(lane))
                step = talk.send
        except KeyboardInterrupt:
            self._end(flight, inconclusive("interrupted"))
            raise
        except BaseException as problem:  # noqa: BLE001 - a check's own code: whatever it raises, the others go on
            if talk is None:
                self._end(flight, inconclusive(f"{type(problem).__name__} in {kind(lane)}"))
            else:
                self._end(flight, inconclusive(f"{kind(lane)}: talk() did not return a generator", Cause.CONFIG))
            return
        flight.talk = talk
        self._turn(flight, step, None)

    def _prefer(self, lane: Lane, flight: Flight) -> None:
        """Begin with the address that answered, next time."""
        addresses = list(lane.addresses)
        addresses.insert(0, addresses.pop(flight.at))
        lane.addresses = tuple(addresses)
        flight.at = 0
        flight.trouble = None

    def _watch(self, flight: Flight) -> None:
        """Put the socket into the epoll: once, both ways, edge-triggered, so that no epoll_ctl follows."""
        assert flight.sock is not None
        fd = flight.fd = flight.sock.fileno()
        self._flights[fd] = flight
        try:
            self._epoll.register(fd, _EDGE)
        except OSError as problem:  # ENOSPC: the user's limit of watches; ENOMEM
            self._end(flight, inconclusive(f"epoll: {problem.strerror}"))

    # -- talking ----------------------------------------------------------------------------------------------------

    def _turn(self, flight: Flight, step: Callable[[Any], Any], heard: Any) -> None:
        """Take one turn: tell the talk what was heard, do what it says."""
        try:
            said = step(heard)
        except StopIteration as stop:
            flight.talk = None
            self._end(flight, _fit(flight, stop.value))
            return
        except PeerClosed as problem:
            flight.talk = None
            self._end(flight, failing(Cause.UNREACHABLE, str(problem) or _CLOSED))
            return
        except BaseException as problem:  # a bug in a check says nothing about the service
            flight.talk = None
            self._end(flight, inconclusive(f"{type(problem).__name__} in {kind(flight.lane)}"))
            if isinstance(problem, KeyboardInterrupt):
                raise
            return
        if said.__class__ is bytes:
            if said:
                self._send(flight, said)
            if flight.fd < 0 and flight.sock is not None:
                self._watch(flight)
        elif said.__class__ is CheckResult:
            self._rest(flight, _fit(flight, said))
        else:
            self._end(
                flight,
                inconclusive(
                    f"{kind(flight.lane)} yielded {type(said).__name__}; yield bytes or a CheckResult", Cause.CONFIG
                ),
            )

    def _send(self, flight: Flight, said: bytes) -> None:
        """Send, or keep what the kernel does not take; after what is kept already."""
        if flight.unsent is not None:
            flight.unsent += said
            return
        assert flight.sock is not None
        try:
            sent = flight.sock.send(said, _QUIET)
        except BlockingIOError:
            sent = 0
        except OSError as problem:
            if problem.errno != errno.EPIPE and problem.errno != errno.ECONNRESET:
                self._broken(flight, from_oserror(problem))
            return  # reading will say it, after the peer's last words ("max number of clients reached")
        if sent < len(said):
            flight.unsent = said[sent:]

    def _send_rest(self, flight: Flight) -> None:
        """Go on with what the kernel did not take before."""
        unsent, flight.unsent = flight.unsent, None
        if unsent:
            self._send(flight, unsent)

    def _resume(self, flight: Flight, started: float) -> None:
        """Begin a check on the connection kept from the last one."""
        lane = flight.lane
        assert lane.target is not None
        assert flight.talk is not None
        flight.deadline = started + lane.timeout
        # A peer that is silent may be dead or only lost to a firewall: half the time is for a new connection.
        flight.slot = self._wheel.put(started + lane.timeout / 2, flight)
        flight.phase = TALKING
        flight.room = allowance(lane.target)
        flight.fresh = False
        self._turn(flight, flight.talk.send, b"")

    def _rest(self, flight: Flight, result: CheckResult) -> None:
        """Tell the result and keep the connection, if the target says so."""
        lane = flight.lane
        assert lane.target is not None
        if not lane.target.keep or flight.unsent is not None or result.verdict is Verdict.INCONCLUSIVE:
            self._end(flight, result)
            return
        if flight.fd < 0:
            self._watch(flight)
            if flight.sock is None:
                return
        flight.phase = REST
        self._wheel.remove(flight.slot, flight)
        self._settle(lane, result)

    def _end(self, flight: Flight, result: CheckResult) -> None:
        """End a check and its connection."""
        lane = flight.lane
        self._wheel.remove(flight.slot, flight)
        self._drop(flight)
        lane.flight = None
        if result.cause is Cause.AUTH:
            lane.target = None  # a secret may have been renewed: read it again
        self._settle(lane, result)

    def _settle(self, lane: Lane, result: CheckResult) -> None:
        self.in_flight -= 1
        assert lane.started is not None
        self._settled.append((lane, result, lane.started, monotonic()))

    def _drop(self, flight: Flight) -> None:
        """Close the connection and the talk."""
        if flight.fd >= 0:
            del self._flights[flight.fd]
            flight.fd = -1
        if flight.sock is not None:
            with suppress(OSError):  # a descriptor the host closed behind our back
                flight.sock.close()
            flight.sock = None
        flight.unsent = None
        talk = flight.talk
        if talk is not None:
            flight.talk = None
            self._hush(flight.lane, talk)

    def _hush(self, lane: Lane, talk: Talk) -> None:
        """Close a talk in mid-sentence. One that will not be closed is kept for ever, and never run again."""
        try:
            talk.close()
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - its result stands already
            if getattr(talk, "gi_frame", None) is not None:
                lane.unsafe = talk

    # -- what the kernel says -----------------------------------------------------------------------------------------

    def _listen(self) -> int:
        """Handle the events of one call of epoll; return how many there were."""
        flights = self._flights
        found = self._epoll.poll(0, _MOST)
        for fd, events in found:
            flight = flights.get(fd)
            if flight is None:
                if fd == self.resolver.fd:
                    self._answered()
                continue
            phase = flight.phase
            if phase == TALKING:
                if events & _WRITE and flight.unsent is not None:
                    self._send_rest(flight)
                if events & _READ and flight.sock is not None:
                    self._read(flight, events)
            elif phase == CONNECTING:
                self._arrived(flight, events)
            elif events & _READ:
                self._disturbed(flight)
        return len(found)

    def _answered(self) -> None:
        """Go on with those who waited for a name or a TLS context."""
        now = monotonic()
        for lane, trouble in self._approach.collect(now):
            flight = lane.flight
            if flight is None or flight.phase != PREPARING:
                continue
            if trouble is not None:
                self._end(flight, trouble)
            elif self._approach.ready(lane, now):
                self._connect(flight)

    def _arrived(self, flight: Flight, events: int) -> None:
        """See whether the connection is there: asking again is the one call that cannot be fooled."""
        sock = flight.sock
        assert sock is not None
        code = sock.connect_ex(flight.lane.addresses[flight.at][1])
        if code in (0, errno.EISCONN):
            self._connected(flight)
            if events & _READ and flight.sock is sock:  # the server spoke first, or left, in the same event
                if flight.phase == TALKING:
                    self._read(flight, events)
                else:
                    self._disturbed(flight)
        elif code not in _PENDING:
            self._refused(flight, from_errno(code))

    def _disturbed(self, flight: Flight) -> None:
        """Something happened to a connection at rest: the end, or words nobody asked for. Both end it."""
        assert flight.sock is not None
        try:
            flight.sock.recv(1)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._lose(flight)

    def _lose(self, flight: Flight) -> None:
        """Close a connection at rest, and say so."""
        lane = flight.lane
        self._drop(flight)
        lane.flight = None
        now = monotonic()
        self._settled.append((lane, None, now, now))

    def _read(self, flight: Flight, events: int) -> None:
        """Read while there is something, and give it to the talk."""
        sock = flight.sock
        assert sock is not None
        while True:
            try:
                data = sock.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError as problem:
                self._broken(flight, from_oserror(problem))
                return
            if not data:
                self._ended(flight)
                return
            flight.fresh = True
            flight.room -= len(data)
            if flight.room < 0:
                assert flight.lane.target is not None
                self._end(flight, failing(Cause.ERROR, f"said more than {flight.lane.target.limit} bytes"))
                return
            assert flight.talk is not None
            self._turn(flight, flight.talk.send, data)
            if flight.sock is not sock:
                return
            if flight.phase == REST:
                if events & _GONE:  # the answer and the end came in one event, and no second one will tell
                    self._disturbed(flight)
                return
            if len(data) < _CHUNK and not events & _GONE:
                return  # a short read means that no more lies there; the next byte is a new edge

    def _ended(self, flight: Flight) -> None:
        """Tell the talk that the peer has closed."""
        if not flight.fresh:
            self._broken(flight, failing(Cause.UNREACHABLE, _CLOSED))
            return
        sock, talk = flight.sock, flight.talk
        assert talk is not None
        self._turn(flight, talk.throw, PeerClosed(_CLOSED))
        if flight.sock is sock:
            if flight.phase == REST:  # it would keep what is gone
                self._lose(flight)
            else:  # it wants to hear more
                self._end(flight, failing(Cause.UNREACHABLE, _CLOSED))

    def _broken(self, flight: Flight, trouble: CheckResult) -> None:
        """End the check; but a kept connection that died at rest proves nothing: try a new one, within the deadline."""
        if flight.fresh:
            self._end(flight, trouble)
            return
        self._drop(flight)
        flight.fresh = True
        flight.at = 0
        assert flight.lane.target is not None
        flight.room = allowance(flight.lane.target)
        flight.phase = PREPARING
        self._reslot(flight, flight.deadline)
        if self._approach.ready(flight.lane, monotonic()):
            self._connect(flight)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _overdue(self, flight: Flight, now: float) -> None:
        """A share of the time is over, or all of it."""
        lane = flight.lane
        phase = flight.phase
        late = failing(Cause.TIMEOUT, f"no {'connection' if phase == CONNECTING else 'answer'} in {lane.timeout:g} s")
        if now < flight.deadline - _SLACK:
            if phase == CONNECTING:
                self._refused(flight, late)
            elif phase == TALKING and not flight.fresh:
                self._broken(flight, late)
            else:  # it came further than its share asked for
                flight.slot = self._wheel.put(flight.deadline, flight)
        elif phase == PREPARING:
            self._end(flight, self._approach.unready(lane, now))
        else:
            if phase == CONNECTING:
                self._approach.doubt(lane)
            self._end(flight, late)


def _fit(flight: Flight, result: object) -> CheckResult:
    """Return a talk's result, or what is wrong with it."""
    if result is PASSING:
        return PASSING
    if not isinstance(result, CheckResult):
        what = "nothing" if result is None else type(result).__name__
        return inconclusive(f"{kind(flight.lane)} returned {what}; return a CheckResult", Cause.CONFIG)
    verdict: object = result.verdict
    cause: object = result.cause
    if not isinstance(verdict, Verdict) or not isinstance(cause, Cause | None):
        return inconclusive(f"{kind(flight.lane)} returned a CheckResult whose verdict or cause is none", Cause.CONFIG)
    return result
