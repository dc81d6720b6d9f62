"""What a wire check needs before it can connect: a target, an address, a TLS context.

Owns the addresses and contexts of all lanes; the threads that find them are the resolver's.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Hashable, Iterator
from math import inf
from pathlib import Path
from typing import Final

from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.errors import SecretUnreadable
from selfheal.shell.lanes import Lane
from selfheal.shell.names import Answer, Resolver
from selfheal.shell.oserrors import from_oserror
from selfheal.shell.tls import FRESH, Prepared, TlsSettingsBroken, prepare
from selfheal.wire import Tls, failing, inconclusive

_RESET: Final = struct.pack("ii", 1, 0)


class Approach:
    """Knows what each lane still lacks, and asks for it, one thing after the other."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._contexts: dict[Tls, tuple[float, Prepared]] = {}
        self._lacking: dict[Lane, Hashable] = {}

    def aim(self, lane: Lane) -> CheckResult | None:
        """Find out where the lane leads; return why it leads nowhere."""
        if lane.unsafe is not None:
            return inconclusive(f"{kind(lane)}: its talk() cannot be closed, so it is not run again", Cause.CONFIG)
        try:
            lane.aim()
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - a check's own code: whatever it raises, the others go on
            lane.target = None
            return inconclusive(f"{kind(lane)}: no target ({_quote(problem)})", Cause.CONFIG)
        return None

    def foresee(self, lane: Lane, now: float) -> None:
        """Begin the lane's TLS context, which takes long, before its first check."""
        if lane.target is not None and lane.target.tls is not None:
            self._secured(lane.target.tls, None, now)

    def ready(self, lane: Lane, now: float) -> bool:
        """Whether nothing is lacking; if something is, it has been asked for, and `collect` will name the lane."""
        target = lane.target
        assert target is not None
        if lane.believed <= now:
            assert target.host is not None
            known = self._resolver.known(target.host, target.port, now)
            if known is None:
                self._resolver.ask(target.host, target.port, lane)
                self._lacking[lane] = (target.host, target.port)
                return False
            lane.believed, lane.addresses = known
        if target.tls is not None and not self._secured(target.tls, lane, now):
            self._lacking[lane] = target.tls
            return False
        return True

    def context(self, lane: Lane) -> ssl.SSLContext:
        """Return the context of a lane that was found `ready`."""
        assert lane.context is not None
        return lane.context

    def collect(self, now: float) -> Iterator[tuple[Lane, CheckResult | None]]:
        """Yield the lanes whose errand is done: None, or why it came to nothing."""
        for answer in self._resolver.collect():
            trouble = self._learn(answer, now)
            for lane in answer.waiting:
                if self._lacking.get(lane) == answer.key:
                    del self._lacking[lane]
                    yield lane, trouble

    def leave(self, lane: Lane) -> Hashable | None:
        """Stop waiting; return what was lacking."""
        key = self._lacking.pop(lane, None)
        if key is not None:
            self._resolver.leave(key, lane)
        return key

    def unready(self, lane: Lane, now: float) -> CheckResult:
        """Stop waiting because the time is over; return what that says."""
        key = self.leave(lane)
        if not self._resolver.begun(key):  # our own threads, so it says nothing about the service
            stuck = len(self._resolver.stuck(now, 0.0))
            return inconclusive(f"waited {lane.timeout:g} s behind {stuck} lookups that hang", Cause.DNS)
        if isinstance(key, Tls):
            return inconclusive(f"its TLS context was not ready in {lane.timeout:g} s")
        host = lane.target.host if lane.target is not None else None
        return failing(Cause.DNS, f"no answer about {host} in {lane.timeout:g} s")

    def doubt(self, lane: Lane) -> None:
        """Ask for the lane's name anew next time: nobody answered there, so it may have moved."""
        target = lane.target
        if target is not None and target.host is not None and lane.believed != inf:
            lane.believed = 0.0
            self._resolver.doubt(target.host, target.port)

    def _secured(self, tls: Tls, lane: Lane | None, now: float) -> bool:
        found = self._contexts.get(tls)
        if found is None:
            self._resolver.errand(tls, lambda: prepare(tls), lane)
            return False
        until, prepared = found
        if lane is not None:
            lane.context = prepared.context
        if until <= now:  # this check may do with it; the thread looks whether a file was renewed
            self._resolver.errand(tls, lambda: prepare(tls, prepared), None)
        return True

    def _learn(self, answer: Answer, now: float) -> CheckResult | None:
        key, problem = answer.key, answer.problem
        if isinstance(key, Tls):
            if problem is None:
                self._contexts[key] = (now + FRESH, answer.value)
                return None
            self._contexts.pop(key, None)  # not kept: each check asks again, so a file put right is found
            return inconclusive(f"TLS: {_quote(problem)}", Cause.CONFIG)
        if isinstance(problem, OSError):
            trouble = from_oserror(problem)
            return trouble if trouble.verdict is Verdict.INCONCLUSIVE else failing(Cause.DNS, trouble.summary)
        if problem is not None:
            return inconclusive(f"the name cannot be asked for: {_quote(problem)}", Cause.CONFIG)
        return None if answer.value else failing(Cause.DNS, "the name has no address")


def kind(lane: Lane) -> str:
    """Return the check's kind, for people."""
    return str(getattr(lane.check, "kind", type(lane.check).__name__))


def _quote(problem: BaseException) -> str:
    """Return an exception for people. Only words of ours are quoted: others may hold a secret (law 16)."""
    return str(problem) if isinstance(problem, (TlsSettingsBroken, SecretUnreadable)) else type(problem).__name__


def ephemeral_ports() -> range:
    """Return the ports that connecting draws from; the kernel's default where it does not say."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return range(int(low), int(high) + 1)
    except (OSError, ValueError):
        return range(32768, 61000)


def met_itself(sock: socket.SocketType) -> bool:
    """Whether the kernel gave us the very port we wanted to reach: TCP then connects the socket to itself.

    It happens to one in some ten thousand connections to a dead local port among the `ephemeral_ports`.
    """
    try:
        if sock.getsockname() != sock.getpeername():
            return False
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # or TIME_WAIT would keep the server out
    except OSError:
        return False
    return True
