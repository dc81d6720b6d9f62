"""TLS for wire checks: one context for each setting, and the certificate that ends soon.

A context takes about 50 ms to build (most of it reading the system's authorities), so it is built once for each `Tls`
value, in a thread, and shared by every check with that setting; see `probes`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.wire import Talk, Target, Tls, secure, warning

FRESH: Final = 300.0
"""Seconds after which the files behind a context are looked at again: a renewed certificate needs no reload."""


class TlsSettingsBroken(Exception):
    """The files of a `Tls` value cannot be used; the text says which and why."""


@attrs.frozen(kw_only=True)
class Prepared:
    """A context, and what its files looked like when it was built."""

    context: ssl.SSLContext
    files: tuple[tuple[str, int, int], ...]


def prepare(tls: Tls, earlier: Prepared | None = None) -> Prepared:
    """Return a context for `tls`; `earlier` itself while the files behind it are the same.

    Reads files: call it in a thread. Raises `TlsSettingsBroken`.
    """
    files = _look(tls)
    if earlier is not None and earlier.files == files:
        return earlier
    try:
        context = ssl.create_default_context(cafile=None if tls.authority is None else str(tls.authority))
    except (OSError, ValueError) as problem:
        raise TlsSettingsBroken(f"authority {tls.authority}: {_why(problem)}; give a PEM file") from problem
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        try:
            context.load_cert_chain(tls.certificate, password=_no_password)
        except (OSError, ValueError) as problem:
            raise TlsSettingsBroken(
                f"certificate {tls.certificate}: {_why(problem)}; give one PEM file with the certificate and its key"
            ) from problem
    return Prepared(context=context, files=files)


def within(talk: Talk, target: Target, context: ssl.SSLContext, wall: Callable[[], float] = time.time) -> Talk:
    """Return `talk` inside TLS as `target` wants it; its PASSING warns when the certificate ends soon.

    `wall` gives UNIX time: the end of a certificate is a date, not a duration.
    """
    tls = target.tls
    assert tls is not None
    limit = tls.warn_before

    def judge(result: CheckResult, peer: ssl.SSLObject) -> CheckResult:
        if result is not PASSING and result.verdict is not Verdict.PASSING:
            return result
        ends = _end(peer)
        if ends is None:
            return result
        left = ends - wall()
        if left >= limit:
            return result
        return attrs.evolve(warning(Cause.CONFIG, f"certificate ends in {_days(left)}"), details=result.details)

    return secure(talk, context, tls.server_name or target.host, judge)


def _look(tls: Tls) -> tuple[tuple[str, int, int], ...]:
    """Return what the files look like now. A missing one looks like nothing; building says what is wrong with it."""
    default = ssl.get_default_verify_paths().cafile if tls.authority is None else tls.authority
    files = []
    for path in (default, tls.certificate):
        if path is not None:
            try:
                stat = Path(path).stat()
            except OSError:
                files.append((str(path), 0, 0))
            else:
                files.append((str(path), stat.st_mtime_ns, stat.st_size))
    return tuple(files)


def _end(peer: ssl.SSLObject) -> float | None:
    """Return when the peer's certificate ends, in UNIX time; None where it was not verified and so not read."""
    certificate = peer.getpeercert()
    ends = certificate.get("notAfter") if certificate else None
    return ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.0f} days" if seconds >= 2 * 86400 else f"{max(0.0, seconds) / 3600:.0f} hours"


def _why(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLError):
        return problem.reason or "not a PEM file"
    return getattr(problem, "strerror", None) or str(problem)


def _no_password() -> str:
    """Refuse, instead of letting OpenSSL ask the terminal."""
    raise ValueError("its key is encrypted; give one without a passphrase")
