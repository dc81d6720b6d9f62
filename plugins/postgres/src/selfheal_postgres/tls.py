"""TLS in PostgreSQL's manner: the contexts behind `sslmode`, built once and again when their files change."""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Final

from selfheal_postgres.address import Address

FRESH: Final = 60.0
"""Seconds after which the files behind a context are looked at again: a renewed certificate needs no reload."""


class Broken(Exception):
    """The files cannot be used; the text says which and why."""


class Remembered:
    """The context of one check. Building it from files takes a millisecond, from the system's authorities fifty."""

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None
        self._files: object = None
        self._looked = 0.0

    def context(self, address: Address) -> ssl.SSLContext:
        """Return a context for the address. Raises `Broken`."""
        now = time.monotonic()
        if self._context is not None and now - self._looked < FRESH:
            return self._context
        files = (address.sslmode, _look(address.authority), _look(address.certificate))
        if self._context is None or files != self._files:
            self._context, self._files = build(address), files
        self._looked = now
        return self._context


def build(address: Address) -> ssl.SSLContext:
    """Build a context: with `verify-full` the name counts, with `verify-ca` only the authority, else neither."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = address.sslmode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if address.verified else ssl.CERT_NONE
    if address.verified:
        try:
            if address.authority is None:
                context.load_default_certs()
            else:
                context.load_verify_locations(address.authority)
        except (OSError, ValueError) as problem:
            raise Broken(f"authority {address.authority}: {_why(problem)}; give a PEM file") from problem
    if address.certificate is not None:
        try:
            context.load_cert_chain(address.certificate, password=_no_password)
        except (OSError, ValueError) as problem:
            text = f"certificate {address.certificate}: {_why(problem)}; give one PEM file with it and its key"
            raise Broken(text) from problem
    return context


def days_left(peer: ssl.SSLObject, now: float) -> float | None:
    """Return the days until a verified certificate ends; None where none was verified. `now` is UNIX time."""
    certificate = peer.getpeercert()
    ends = certificate.get("notAfter") if certificate else None
    return (ssl.cert_time_to_seconds(ends) - now) / 86400 if isinstance(ends, str) else None


def _look(path: Path | None) -> object:
    """Return what a file looks like now. A missing one looks like nothing; building says what is wrong with it."""
    if path is None:
        return None
    try:
        stat = path.stat()
    except OSError:
        return (str(path), 0, 0)
    return (str(path), stat.st_mtime_ns, stat.st_size)


def _why(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLError):
        return problem.reason or "not a PEM file"
    return getattr(problem, "strerror", None) or str(problem)


def _no_password() -> str:
    """Refuse, instead of letting OpenSSL ask the terminal."""
    raise ValueError("its key is encrypted; give one without a passphrase")
