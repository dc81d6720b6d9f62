"""The one table from `OSError` to a result, for wire checks and coroutine checks alike.

It answers two questions about an error of the operating system: whose fault is it, and would a restart help?

- our own want (no descriptors, no memory, no local port) is INCONCLUSIVE: it says nothing about the service (law 7);
- names are `dns`, our deadlines and the kernel's are `timeout`, certificates and permissions are `config`;
- everything else means that the service was not reached: FAILING, `unreachable`.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Final

from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.wire import failing, inconclusive, tls_trouble

OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""What this process or machine lacks. EADDRNOTAVAIL: local ports used up, or an address family that is turned off."""

_CAUSES: Final = {
    errno.ETIMEDOUT: Cause.TIMEOUT,
    errno.EACCES: Cause.CONFIG,
    errno.EPERM: Cause.CONFIG,
}


def from_errno(code: int) -> CheckResult:
    """Return the result for an error number of connecting, sending or receiving."""
    if code in OURS:
        return inconclusive(f"{os.strerror(code)} (this machine's own limit, not the service's fault)")
    if code == errno.EAGAIN:  # at connect, and only of a unix socket; elsewhere it never reaches this table
        return failing(Cause.OVERLOADED, "the backlog of its socket is full")
    return failing(_CAUSES.get(code, Cause.UNREACHABLE), os.strerror(code) if code else "not reached")


def from_oserror(problem: OSError) -> CheckResult:
    """Return the result for an exception. An error that only wraps others (a group, a cause) is looked into."""
    problem = _innermost(problem)
    if isinstance(problem, ssl.SSLError):
        return tls_trouble(problem)
    if isinstance(problem, socket.gaierror):
        return failing(Cause.DNS, problem.strerror or "the name has no address")
    if isinstance(problem, TimeoutError):
        return failing(Cause.TIMEOUT, str(problem) or "timed out")
    if problem.errno:
        return from_errno(problem.errno)
    return failing(Cause.UNREACHABLE, str(problem) or type(problem).__name__)


def better(first: CheckResult | None, second: CheckResult) -> CheckResult:
    """Return the one of two failures to connect that says more: a word about the service beats one about us."""
    return first if first is not None and second.verdict is Verdict.INCONCLUSIVE else second


def _innermost(problem: OSError) -> OSError:
    """Return the error inside those that carry neither a number nor a type of their own, as anyio raises them."""
    seen = 0
    while type(problem) is OSError and not problem.errno and seen < 8:
        seen += 1
        inner: list[BaseException] = [problem.__cause__] if problem.__cause__ is not None else []
        while inner and isinstance(inner[0], BaseExceptionGroup):
            inner = [*inner[0].exceptions, *inner[1:]]
        errors = [error for error in inner if isinstance(error, OSError)]
        if not errors:
            break
        problem = next((error for error in reversed(errors) if error.errno not in OURS), errors[-1])
    return problem
