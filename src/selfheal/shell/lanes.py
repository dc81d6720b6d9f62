"""What the runner of wire checks remembers: a lane for each service, and a flight while something is open on it.

A lane is all there is of a service at rest; everything that belongs to one conversation is in its flight, which goes
when the conversation ends. A kept connection keeps its flight, in phase REST.
"""

from __future__ import annotations

from math import inf
from socket import AF_UNIX, SocketType
from ssl import SSLContext
from typing import Final

from selfheal.core.model import CheckResult
from selfheal.shell.names import Address, literal
from selfheal.wire import Talk, Target, WireCheck

PREPARING: Final = 0  # waiting for an address, or for a TLS context
CONNECTING: Final = 1
TALKING: Final = 2
HANDSHAKE: Final = 32768  # a chain of certificates takes 2 to 10 KiB
KEPT_CHECKS: Final = 10
"""Checks on one kept connection, after which the next one takes another.

Who is in already does not notice that nobody else is let in: a password that was changed, a server out of descriptors
or of places. The new connection is made when the next check begins, so that between two checks there is always one
whose end is heard.
"""

REST: Final = 3  # kept open between two checks; the wheel does not hold it


class Lane:
    """One service's line to its target.

    `started` is when the check in flight began, None between checks; it also tells a result that still counts from one
    whose check was cancelled. `near`: connecting is over at once, so it is worth asking a second time.
    """

    __slots__ = (
        "addresses",
        "believed",
        "check",
        "context",
        "flight",
        "near",
        "owner",
        "started",
        "target",
        "timeout",
        "unsafe",
    )

    def __init__(self, check: WireCheck, timeout: float, owner: object) -> None:
        self.check = check
        self.timeout = timeout
        self.owner = owner
        self.target: Target | None = None
        self.addresses: tuple[Address, ...] = ()
        self.believed = 0.0  # until when the addresses hold, in monotonic seconds
        self.near = False
        self.context: SSLContext | None = None  # shared with every lane of the same setting
        self.flight: Flight | None = None
        self.started: float | None = None
        self.unsafe: Talk | None = None  # a talk that would not be closed; kept so that it is never collected

    def aim(self) -> None:
        """Ask the check where to go. Raises what its `target` raises, and ValueError for one that is no target."""
        target = self.check.target()
        if not isinstance(target, Target):
            raise TypeError(f"target() returned {type(target).__name__}, not a Target")
        if target.host is None:
            if not target.path:
                raise ValueError("its target has neither a host nor the path of a unix socket")
            if target.tls is not None and target.tls.verify and target.tls.server_name is None:
                raise ValueError("TLS over a unix socket needs a server_name to verify")
            self.addresses = ((int(AF_UNIX), target.path),)
        else:
            if not 0 < target.port < 65536:
                raise ValueError(f"port {target.port} is out of range; give one from 1 to 65535")
            self.addresses = literal(target.host, target.port)
        self.believed = inf if self.addresses else 0.0
        self.near = all(family == AF_UNIX or _is_loopback(address[0]) for family, address in self.addresses)
        self.target = target


class Flight:
    """One conversation: what is open, how far it is, and until when."""

    __slots__ = (
        "at", "checks", "deadline", "fd", "fresh", "lane", "phase", "room", "slot", "sock", "talk", "trouble", "unsent",
    )  # fmt: skip

    def __init__(self, lane: Lane, target: Target, deadline: float) -> None:
        self.lane = lane
        self.deadline = deadline
        self.phase = PREPARING
        self.slot = 0
        self.checks = 1
        self.at = 0  # which of the lane's addresses
        self.fd = -1  # in the epoll when >= 0
        self.sock: SocketType | None = None
        self.talk: Talk | None = None
        self.unsent: bytes | None = None
        self.room = allowance(target)
        self.fresh = True  # false from the start of a check on a kept connection until the peer says something
        self.trouble: CheckResult | None = None  # the result of an earlier address that did not answer


def allowance(target: Target) -> int:
    """Return the bytes one check may receive. What the handshake takes is not the check's, and comes on top."""
    return target.limit if target.tls is None else target.limit + HANDSHAKE


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "::1"
