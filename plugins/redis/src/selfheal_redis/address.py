"""Addresses of Redis as people write them, read once and refused with a sentence that quotes no password."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

from selfheal.secret import MASK, Secret

USUAL_PORT: Final = 6379
SCHEMES: Final = ("redis", "rediss", "unix", "redis+socket")
OF_THE_DRIVER: Final = frozenset(
    {"client_name", "decode_responses", "encoding", "encoding_errors", "health_check_interval", "legacy_responses"}
    | {"lib_name", "lib_version", "max_connections", "protocol", "retry_on_error", "retry_on_timeout"}
    | {"socket_connect_timeout", "socket_keepalive", "socket_read_size", "socket_timeout", "timeout"}
)
"""What redis-py reads after the `?` and what concerns its own pool alone: an application's REDIS_URL may say it."""


@attrs.frozen(kw_only=True)
class Address:
    """Where a Redis is, and who we are there: `host` and `port`, or the `path` of a unix socket."""

    host: str | None = None
    port: int = 0
    path: str | None = None
    secure: bool = False
    database: int = 0
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address for people, without user and password."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in str(self.host) else f"{self.host}:{self.port}"


def read_url(text: str, *, strict: bool = False) -> Address:
    """Read `redis://[user:password@]host[:port][/database]`, `rediss://…` (TLS) or `unix://[…@]/path[?db=1]`.

    What redis-py reads behind the `?` for itself (`decode_responses=true`) is passed over unless it is `strict`: it may
    stand in an application's variable, and would mislead in a file of ours. Raises ValueError.
    """
    parts = urlsplit(text.strip())
    if parts.scheme not in SCHEMES:
        raise ValueError("it must begin with redis://, rediss:// or unix://")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in given:
        if name.startswith("ssl_"):
            raise ValueError(f"{name!r:.40} after the ? is not read; use `verify`, `authority` and `certificate`")
        if name != "db" and (strict or name not in OF_THE_DRIVER):
            raise ValueError(f"{name!r:.40} after the ? is unknown; only db=NUMBER may stand there")
    if parts.scheme in ("unix", "redis+socket"):
        if not parts.path.startswith("/"):
            raise ValueError("it has no path of a socket; write unix:///run/redis.sock")
        database = _database(given.get("db", ""))
        return Address(path=unquote(parts.path), database=database, user=user, password=password)
    if not parts.hostname:
        raise ValueError("it has no host; write redis://127.0.0.1:6379")
    try:
        port = parts.port if parts.port is not None else USUAL_PORT
    except ValueError:  # the parser's own words may quote a password
        port = 0
    if port == 0:
        raise ValueError("its port is no number from 1 to 65535 (in a password, / is written %2F and # is %23)")
    return Address(
        host=_name(parts.hostname),
        port=port,
        secure=parts.scheme == "rediss",
        database=_database(given.get("db", "") or parts.path.strip("/")),
        user=user,
        password=password,
    )


def read_node(text: str) -> tuple[str, int]:
    """Read `host:port` or `[v6]:port`, of a replica or a Sentinel. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r:.80} is ambiguous; write an IPv6 address in brackets, [::1]:6379")
    if not colon or not host or any(letter.isspace() for letter in text):
        raise ValueError(f"{text!r:.80} is no address; give host:port")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r:.80} has no port from 1 to 65535")
    return _name(host), int(port)


def masked(url: str | Secret) -> str:
    """Return a URL for people: whatever stands before the @ is not shown."""
    if isinstance(url, Secret):
        return repr(url)
    scheme, slashes, rest = url.partition("://")
    return repr(f"{scheme}{slashes}{MASK}@{rest.rpartition('@')[2]}" if "@" in rest else url)


def _database(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError("its database is no number; write redis://127.0.0.1:6379/0")
    return int(text)


def _name(host: str) -> str:
    """Return a host name as DNS takes it; an international one in its ASCII form."""
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as problem:
        raise ValueError(f"{host!r:.80} is no host name") from problem
