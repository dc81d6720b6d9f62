"""Where a PostgreSQL is and who asks it: URLs as people and their applications write them, read without quoting them.

What is wrong with a URL is said without repeating it: it may hold a password.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import attrs

PORT: Final = 5432

SSLMODES: Final = ("disable", "prefer", "require", "verify-ca", "verify-full")
"""As libpq names them; `allow` is left out, since it would log in twice."""


@attrs.frozen(kw_only=True)
class Address:
    """One server, and how to log in. `host` is a name, or the folder of a unix socket when it begins with `/`."""

    host: str
    port: int = PORT
    user: str
    database: str
    password: str | None = attrs.field(default=None, repr=False)
    sslmode: str = "prefer"
    authority: Path | None = None
    certificate: Path | None = None

    @property
    def socket(self) -> str | None:
        """The path of the unix socket, or None for TCP."""
        return f"{self.host.rstrip('/')}/.s.PGSQL.{self.port}" if self.host.startswith("/") else None

    @property
    def place(self) -> str:
        """The address for people: without user and password."""
        return self.socket or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    @property
    def secured(self) -> bool:
        """Whether TLS is asked for."""
        return self.socket is None and self.sslmode != "disable"

    @property
    def verified(self) -> bool:
        """Whether the server must prove who it is."""
        return self.secured and self.sslmode.startswith("verify-")

    def parameters(self) -> dict[str, str | int]:
        """Return what libpq is to be told. The password is among it: not for printing."""
        given: dict[str, str | int] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "dbname": self.database,
            "sslmode": self.sslmode,
            "gssencmode": "disable",  # libpq would ask for it first, on a connection of its own where it is refused
            "application_name": "selfheal",
        }
        if self.password is not None:
            given["password"] = self.password
        if self.verified:
            given["sslrootcert"] = "system" if self.authority is None else str(self.authority)
        if self.certificate is not None:
            given |= {"sslcert": str(self.certificate), "sslkey": str(self.certificate)}
        return given


@attrs.frozen(kw_only=True)
class Written:
    """What a URL says; None where it says nothing."""

    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    database: str | None = None
    sslmode: str | None = None
    authority: Path | None = None
    certificate: Path | None = None


def read_url(text: str) -> Written:
    """Read `postgresql://[user[:password]@][host][:port][/database][?parameters]`. Raises ValueError.

    `postgres://` and the drivers of SQLAlchemy (`postgresql+psycopg://`) are read too, so that an application's
    own `DATABASE_URL` serves as it stands. Of the parameters these are used: `host` (the folder of a unix socket),
    `port`, `user`, `password`, `dbname`, `sslmode`, `sslrootcert`, `sslcert`; the others are meant for the
    application's driver.
    """
    parts = _split(text)
    if parts.scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ValueError("it must begin with postgresql:// or postgres://")
    if "," in parts.netloc.rpartition("@")[2]:
        raise ValueError("it names several hosts; a check watches one server, so write one service for each")
    more = {key: value for key, value in parse_qsl(parts.query, keep_blank_values=True) if value}
    for key in ("host", "port"):
        if "," in more.get(key, ""):
            raise ValueError(f"its {key} names several; a check watches one server, so write one service for each")
    mode = more.get("sslmode")
    if mode is not None:
        read_sslmode(mode)
    root = more.get("sslrootcert")
    return Written(
        host=more.get("host") or (unquote(parts.hostname) if parts.hostname else None),
        port=_port(parts, more.get("port")),
        user=more.get("user") or (unquote(parts.username) if parts.username else None),
        password=more.get("password") or (unquote(parts.password) if parts.password else None),
        database=more.get("dbname") or unquote(parts.path.removeprefix("/")) or None,
        sslmode=mode,
        authority=Path(root) if root and root != "system" else None,
        certificate=Path(more["sslcert"]) if "sslcert" in more else None,
    )


def read_place(text: str) -> Written:
    """Read a URL, or only `host`, `host:port`, `[v6]:port` or the folder of a unix socket. Raises ValueError."""
    if "://" in text:
        return read_url(text)
    if text.startswith("/"):
        return Written(host=text)
    if not text or any(letter.isspace() or letter in "@/," for letter in text):
        raise ValueError("it is no address; give host:port, the folder of a unix socket, or a postgresql:// URL")
    return read_url(f"postgresql://{text}")


def read_sslmode(mode: str) -> str:
    """Return the mode. Raises ValueError for one that is none, or that is not for machines."""
    if mode not in SSLMODES:
        raise ValueError(f"sslmode: {mode!r:.40} is none; give one of {', '.join(SSLMODES)}")
    return mode


def own_name() -> str:
    """Return the name of the user this process runs as, which PostgreSQL takes where none is given."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise ValueError("no user is given, and this process runs as one without a name; give `user`") from None


def _split(text: str) -> SplitResult:
    if any(letter.isspace() for letter in text.strip()):
        raise ValueError("it has a blank in it (in a password, write it %20)")
    try:
        return urlsplit(text.strip())
    except ValueError:
        raise ValueError("it is no URL (in a password, write [ as %5B and ] as %5D)") from None


def _port(parts: SplitResult, given: str | None) -> int | None:
    """Return a URL's port. The words of the parser are not passed on: they may quote a password."""
    try:
        port = int(given) if given is not None else parts.port
    except ValueError:
        port = 0
    if port is not None and not 0 < port < 65536:
        raise ValueError("its port is no number from 1 to 65535 (in a password, / is written %2F and # is %23)")
    return port
