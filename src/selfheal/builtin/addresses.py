"""Addresses as people write them, read once and refused with a sentence: `host:port`, unix sockets, URLs."""

from __future__ import annotations

from urllib.parse import SplitResult, quote, unquote, urlsplit

import attrs

_SAFE = "/%:=&?~+!$,;'@()*[]"


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where to connect: host and port, or the path of a unix socket."""

    host: str | None = None
    port: int = 0
    path: str | None = None


@attrs.frozen(kw_only=True)
class HttpUrl:
    """What a check needs of an http or https URL. `authority` is what the Host header says."""

    secure: bool
    host: str
    port: int
    authority: str
    target: str


@attrs.frozen(kw_only=True)
class RedisUrl:
    """What a check needs of a redis, rediss or unix URL."""

    secure: bool
    endpoint: Endpoint
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)


def read_address(text: str) -> Endpoint:
    """Read `host:port`, `[v6]:port`, `unix:/path` or `/path`. Raises ValueError."""
    path = text.removeprefix("unix:")
    if path.startswith("/"):
        return Endpoint(path=path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is ambiguous; write an IPv6 address in brackets, [::1]:5432")
    if not colon or not host or any(letter.isspace() for letter in text):
        raise ValueError(f"{text!r} is no address; give host:port or the path of a unix socket")
    return Endpoint(host=_name(host), port=_port(port, text))


def read_http_url(text: str) -> HttpUrl:
    """Read an http or https URL. Raises ValueError, without quoting what may hold a password."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https"):
        raise ValueError("it must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user or password in the URL would be printed; send an Authorization header with a secret")
    if not parts.hostname or any(letter.isspace() for letter in text):
        raise ValueError(f"{text!r} has no host or has a blank in it")
    secure = parts.scheme == "https"
    host = _name(parts.hostname)
    usual = 443 if secure else 80
    port = _given_port(parts, usual)
    shown = f"[{host}]" if ":" in host else host
    target = quote(parts.path or "/", safe=_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_SAFE)
    return HttpUrl(
        secure=secure, host=host, port=port, authority=shown if port == usual else f"{shown}:{port}", target=target
    )


def read_redis_url(text: str) -> RedisUrl:
    """Read `redis://[user:password@]host[:port][/db]`, `rediss://…` (TLS) or `unix://[…@]/path`. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss", "unix", "redis+socket"):
        raise ValueError("it must begin with redis://, rediss:// or unix://")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if parts.scheme in ("unix", "redis+socket"):
        if not parts.path.startswith("/"):
            raise ValueError("it has no path of a socket; write unix:///run/redis.sock")
        return RedisUrl(secure=False, endpoint=Endpoint(path=unquote(parts.path)), user=user, password=password)
    if not parts.hostname:
        raise ValueError("it has no host; write redis://127.0.0.1:6379")
    port = _given_port(parts, 6379)
    endpoint = Endpoint(host=_name(parts.hostname), port=port)
    return RedisUrl(secure=parts.scheme == "rediss", endpoint=endpoint, user=user, password=password)


def _name(host: str) -> str:
    """Return a host name as DNS takes it; an international one in its ASCII form."""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as problem:
        raise ValueError(f"{host!r} is no host name") from problem


def _given_port(parts: SplitResult, usual: int) -> int:
    """Return a URL's port. The words of the parser are not passed on: they may quote a password."""
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is no number from 1 to 65535 (in a password, / is written %2F and # is %23)")
    return usual if port is None else port


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ValueError(f"{whole!r} has no port from 1 to 65535")
    return int(text)
