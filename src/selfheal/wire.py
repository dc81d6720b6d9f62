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
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeAlias, runtime_checkable

import attrs

from selfheal.core.model import Cause, CheckResult, Verdict

Talk: TypeAlias = "Generator[bytes | CheckResult, bytes, CheckResult]"
Judge: TypeAlias = "Callable[[CheckResult, ssl.SSLObject], CheckResult]"


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


def secure(talk: Talk, context: ssl.SSLContext, server_name: str | None, judge: Judge | None = None) -> Talk:
    """Return the same conversation inside TLS: a talk around a talk.

    STARTTLS is ``return (yield from secure(...))``. A certificate that does not verify, or one of ours that the peer
    does not take, is FAILING, `config`; any other failure of the handshake is FAILING, `error`. `judge` may replace
    each result, knowing the finished handshake: this is how a certificate that ends soon becomes a warning.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            incoming.write((yield outgoing.read()))
        except ssl.SSLError as problem:
            talk.close()
            return tls_trouble(problem)
    try:
        said = next(talk)
        while True:
            if isinstance(said, CheckResult):
                yield judge(said, tls) if judge else said
                said = talk.send(b"")
                continue
            if said:
                tls.write(said)
            heard = yield from _hear(tls, incoming, outgoing)
            said = talk.send(heard) if heard else talk.throw(PeerClosed("closed the connection"))
    except StopIteration as stop:
        result: CheckResult = stop.value
        return judge(result, tls) if judge and isinstance(result, CheckResult) else result
    except ssl.SSLError as problem:
        return tls_trouble(problem)
    finally:
        talk.close()


def tls_trouble(problem: ssl.SSLError) -> CheckResult:
    """Return what a failure of TLS says about the peer. Certificates, theirs or ours, are never cured by a restart."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        hint = "; or is our own clock wrong?" if problem.verify_code == _NOT_YET_VALID else ""
        return failing(Cause.CONFIG, f"certificate: {problem.verify_message}{hint}")
    reason = problem.reason or type(problem).__name__
    if any(word in reason for word in _ABOUT_OUR_CERTIFICATE):
        return failing(Cause.CONFIG, f"the peer does not take our certificate: {reason}")
    return failing(Cause.ERROR, f"TLS: {reason}")


_NOT_YET_VALID: Final = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_ABOUT_OUR_CERTIFICATE: Final = (
    "ALERT_CERTIFICATE",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_UNKNOWN_CA",
    "ALERT_ACCESS_DENIED",
)


def _hear(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> Generator[bytes, bytes, bytes]:
    """Return the next plain bytes; b"" at the end, with close_notify or, as is common, without."""
    while True:
        try:
            return tls.read(65536)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
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
