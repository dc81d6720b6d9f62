"""Wire checks, the author's side: a check as one conversation.

A check that speaks a simple protocol over one connection is a generator and nothing else: no socket, no loop, no
clock. The runner (`shell.probes`) owns names, connecting, TLS, the total deadline, the byte cap, kept connections,
latency, closing, and the translation of OS errors into causes.

Its turns:

- ``yield bytes``: they are sent; the value of the yield is what the peer said next. ``b""`` sends nothing: the
  server speaks first, or its answer is not whole yet.
- ``yield result``: the verdict; the connection is at rest, and the next check resumes here.
- ``return result``: the verdict; the connection is closed.
- `PeerClosed` is raised at the yield when the peer closes; any other exception that leaves the talk is INCONCLUSIVE.
"""

from __future__ import annotations

import ssl
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import attrs

from selfheal.core.model import Cause, CheckResult, Verdict

Talk: TypeAlias = "Generator[bytes | CheckResult, bytes, CheckResult]"


class PeerClosed(Exception):
    """Raised at the yield of a talk when the peer closes. Not caught, it means FAILING, `unreachable`."""


@attrs.frozen(kw_only=True)
class Tls:
    """How to be sure of the peer. `authority` is a PEM file; `warn_before` seconds before its end a certificate warns.

    `certificate` is our own (certificate and key in one PEM file). `verify` false is for people who mean it.
    """

    server_name: str | None = None
    verify: bool = True
    authority: Path | None = None
    certificate: Path | None = None
    warn_before: float = 14 * 86400.0


@attrs.frozen(kw_only=True)
class Target:
    """Where to connect: `host` and `port`, or the `path` of a unix socket.

    `limit` bytes one check may receive; `keep` leaves the connection open between checks.
    """

    host: str | None = None
    port: int = 0
    path: str | None = None
    tls: Tls | None = None
    limit: int = 65536
    keep: bool = False


@runtime_checkable
class WireCheck(Protocol):
    """A check written as one conversation."""

    kind: ClassVar[str]

    def target(self) -> Target: ...

    def talk(self) -> Talk: ...


def failing(cause: Cause, summary: str = "") -> CheckResult:
    """Return a FAILING result."""
    return CheckResult(Verdict.FAILING, cause=cause, summary=summary)


def warning(cause: Cause | None, summary: str = "") -> CheckResult:
    """Return a WARNING result."""
    return CheckResult(Verdict.WARNING, cause=cause, summary=summary)


def inconclusive(summary: str, cause: Cause | None = Cause.ERROR) -> CheckResult:
    """Return an INCONCLUSIVE result: the check could not run."""
    return CheckResult(Verdict.INCONCLUSIVE, cause=cause, summary=summary)


def read_until(mark: bytes, data: bytes = b"") -> Generator[bytes, bytes, tuple[bytes, bytes]]:
    """Return everything up to and with `mark`, and what came after it. `data` is what was already heard."""
    at = data.find(mark)
    while at < 0:
        seen = max(0, len(data) - len(mark) + 1)
        data += yield b""
        at = data.find(mark, seen)
    at += len(mark)
    return data[:at], data[at:]


def read_exactly(count: int, data: bytes = b"") -> Generator[bytes, bytes, tuple[bytes, bytes]]:
    """Return the first `count` bytes, and what came after them."""
    while len(data) < count:
        data += yield b""
    return data[:count], data[count:]


def secure(talk: Talk, context: ssl.SSLContext, server_name: str | None) -> Talk:
    """Return the same conversation inside TLS: a talk around a talk.

    STARTTLS is ``return (yield from secure(...))``. A certificate that does not verify is FAILING, `config`; any
    other failure of the handshake is FAILING, `error`.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write((yield outgoing.read()))
        except ssl.SSLCertVerificationError as problem:
            return failing(Cause.CONFIG, f"certificate: {problem.verify_message}")
        except ssl.SSLError as problem:
            return failing(Cause.ERROR, f"TLS: {problem.reason}")
    try:
        said = next(talk)
        while True:
            if isinstance(said, CheckResult):
                yield said
                said = talk.send(b"")
                continue
            if said:
                tls.write(said)
            heard = yield from _hear(tls, incoming, outgoing)
            said = talk.send(heard) if heard else talk.throw(PeerClosed("closed the connection"))
    except StopIteration as stop:
        result: CheckResult = stop.value
        return result


def _hear(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> Generator[bytes, bytes, bytes]:
    """Return the next plain bytes; b"" at the end, with close_notify or, as is common, without."""
    while True:
        try:
            return tls.read(65536)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            return b""
        try:
            incoming.write((yield outgoing.read()))
        except PeerClosed:
            incoming.write_eof()


def rehearse(talk: Talk, *replies: bytes) -> Iterator[bytes | CheckResult]:
    """Drive a talk by hand: yield what it says, answer with `replies` in order, then with silence (b"").

    For tests; no socket needed.
    """
    lines = iter(replies)
    try:
        said = next(talk)
        while True:
            yield said
            said = talk.send(b"" if isinstance(said, CheckResult) else next(lines, b""))
    except StopIteration as stop:
        yield stop.value
