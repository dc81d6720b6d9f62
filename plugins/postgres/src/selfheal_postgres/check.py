"""The check `postgres`: its options, and the light road, which needs no driver.

A class with `talk` is talked to; a service with `deep = true` takes `check`, which is the road of psycopg (`deep`).
Both log in anew for every check: see the README for why a kept connection proves the wrong thing.
"""

from __future__ import annotations

import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from selfheal import Cause, CheckResult, Verdict
from selfheal.builtin.options import seconds, share, whole
from selfheal.errors import Problem
from selfheal.plugins import CheckContext
from selfheal.secret import Secret
from selfheal.wire import Talk, Target, failing, inconclusive, read_exactly, secure
from selfheal_postgres import tls
from selfheal_postgres.address import (
    PORT,
    SSLMODES,
    Address,
    Written,
    own_name,
    read_place,
    read_sslmode,
    read_url,
)
from selfheal_postgres.causes import from_server
from selfheal_postgres.facts import QUESTION, SPILL, Facts, judge
from selfheal_postgres.protocol import (
    SSL_REQUEST,
    Keys,
    Line,
    Login,
    NoPassword,
    NotPostgres,
    NotTrusted,
    ServerError,
    Unforked,
    Unspoken,
    read_old_error,
)

_DAY: Final = 86400.0
_LOOPBACK: Final = ("127.", "::1", "localhost")


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def masked(url: str | Secret | None) -> str:
    """Return an address for people: whatever stands before the @, or behind the ?, is not shown."""
    if not isinstance(url, str):
        return repr(url)
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        return repr(url.rpartition("@")[2])
    where, question, _ = rest.partition("?")
    _, at, where = where.rpartition("@")
    return repr(f"{scheme}://{'***@' if at else ''}{where}{'?…' if question else ''}")


def _text_or_secret(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, (str, Secret)):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is neither text nor a secret")


def _port(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise ValueError(f"port: {value!r} is no port; give a number from 1 to 65535")


def _mode(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    read_sslmode(value)


@attrs.frozen(kw_only=True)
class PostgresCheck:
    """Whether a PostgreSQL lets us in and does what is expected of it, and if not, why.

    Give `url`, or `host` and what goes with it; what is given beside a URL goes before what the URL says.
    """

    kind: ClassVar[str] = "postgres"

    #: `postgresql://user@host:port/database`, as applications have it in `DATABASE_URL`. May be a secret.
    url: str | Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(_text_or_secret), repr=masked
    )
    #: A host name or address, or the folder of a unix socket, such as `/var/run/postgresql`.
    host: str | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.min_len(1)))
    #: The port; 5432 where neither this nor the URL says one. It is part of the unix socket's name too.
    port: int | None = attrs.field(default=None, validator=attrs.validators.optional(_port))
    #: The role to log in as; by default the name of the user selfheal runs as. It needs no privileges.
    user: str | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.min_len(1)))
    #: Its password; used instead of one in the URL.
    password: Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Secret))
    )
    #: The database to log in to; by default the one with the role's name.
    database: str | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.min_len(1)))
    #: `disable`, `prefer` (the default), `require`, `verify-ca` or `verify-full`, as libpq means them.
    sslmode: str | None = attrs.field(default=None, validator=attrs.validators.optional(_mode))
    #: A PEM file of the authorities to trust with `verify-ca` and `verify-full`, instead of the system's.
    authority: Path | None = attrs.field(default=None, converter=_path)
    #: Our own certificate and its key, in one PEM file.
    certificate: Path | None = attrs.field(default=None, converter=_path)
    #: Seconds before its end from which a verified certificate warns.
    warn_before: float = seconds(14 * _DAY)
    #: The role this server is to have: `any`, `primary` or `standby`. Another one is a WARNING.
    expect: str = attrs.field(default="any", validator=attrs.validators.in_(("any", "primary", "standby")))
    #: Share of the connections ordinary roles may have, from which it is a WARNING, `overloaded`.
    connections: float = share(0.9)
    #: Age of the oldest transaction (or multixact) id from which it is a WARNING, `full`. At 2.1 billion writing ends.
    xid_age: int = whole(1_500_000_000, 1, 2_100_000_000)
    #: Seconds a standby may be behind; more, or receiving nothing, is a WARNING. None (`off`) judges neither.
    standby_lag: float | None = seconds(60.0, optional=True)
    #: Standbys that must follow this primary.
    min_standbys: int = whole(0, 0, 1000)
    #: Whether a replication slot nobody uses is a WARNING: it keeps WAL until the disk is full.
    idle_slots: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    #: Whether to prove by a small sort on disk that the disk is not full. Left out where the server would log it.
    disk: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    #: What it is when no connection slot is free: `warning`, or `failing`, so that steps are taken.
    exhausted: str = attrs.field(default="warning", validator=attrs.validators.in_(("warning", "failing")))
    #: Seconds after which the server is to give up what a check asks. For the server's sake; the deadline is ours.
    statement_timeout: float = seconds(4.0, 0.1, 3600.0)
    #: Whether to keep the connection for ten checks: its end is then noticed within milliseconds, but most checks do
    #: not prove that anybody else could log in.
    keep: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    _keys: Keys = attrs.field(init=False, factory=dict, repr=False, eq=False)
    _tls: tls.Remembered = attrs.field(init=False, factory=tls.Remembered, repr=False, eq=False)
    _given_up: list[int] = attrs.field(init=False, factory=lambda: [0], repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if (self.url is None) == (self.host is None):
            raise ValueError("url: give either `url` or `host`, so that it is plain which server is meant")
        if isinstance(self.url, str):
            try:
                self.address()
            except ValueError as problem:
                raise ValueError(f"url: {problem}") from None

    def address(self, *, instead: str | None = None) -> Address:
        """Return where the server is and how to log in, its secrets read now. Raises ValueError.

        `instead` is another server (a URL, or `host:port`): what it does not say is as for this one.
        """
        own = Written()
        if self.url is not None:
            own = read_url(self.url.reveal() if isinstance(self.url, Secret) else self.url)
        other = None if instead is None else read_place(instead)
        host = self.host or own.host or "localhost" if other is None else other.host
        if host is None:
            raise ValueError("it has no host")
        port = (self.port or own.port) if other is None else other.port
        user = (other.user if other else None) or self.user or own.user or own_name()
        written = (other.password if other else None) or own.password
        password = self.password.reveal() if self.password is not None and not (other and other.password) else written
        return Address(
            host=host,
            port=port or PORT,
            user=user,
            password=password,
            database=(other.database if other else None) or self.database or own.database or user,
            sslmode=(other.sslmode if other else None) or self.sslmode or own.sslmode or SSLMODES[1],
            authority=(other.authority if other else None) or self.authority or own.authority,
            certificate=(other.certificate if other else None) or self.certificate or own.certificate,
        )

    def ready(self) -> tuple[Address, ssl.SSLContext | None]:
        """Return where to go, and how to be sure of the peer. Raises `UNUSABLE`; `unusable` says why."""
        address = self.address()
        return address, self._tls.context(address) if address.secured else None

    def patience(self) -> str:
        """Return what stands before a question: it holds for that one only, so that a pooler hands nothing on."""
        return f"SET LOCAL statement_timeout = {int(self.statement_timeout * 1000)}; "

    def give_up(self) -> None:
        """Close the kept connection with the next check on it; the one after that logs in anew."""
        self._given_up[0] += 1

    # -- the light road ----------------------------------------------------------------------------------------------

    def target(self) -> Target:
        """Return where to connect. Raises ValueError when the URL is a secret, and no URL."""
        address = self.address()
        with suppress(tls.Broken):
            self.ready()  # now, before the first check: the system's authorities take 50 ms to read
        if address.socket is not None:
            return Target(path=address.socket, keep=self.keep)
        return Target(host=address.host, port=address.port, keep=self.keep)

    def talk(self) -> Talk:
        """Log in, ask one question, spill one sort. TLS is begun within the conversation, as PostgreSQL wants it."""
        try:
            address, context = self.ready()
        except UNUSABLE as problem:
            return unusable(problem)
        if context is None:
            return (yield from self._session(address, private=False))
        answer, rest = yield from read_exactly(1, (yield SSL_REQUEST))
        if answer == b"S" and not rest:
            name = address.host if address.verified else None
            inside = self._session(address, private=True)
            return (yield from secure(inside, context, name, self._judge_peer))
        if answer == b"N" and not rest:
            if address.sslmode == "prefer":
                return (yield from self._session(address, private=False))
            return failing(Cause.CONFIG, f"the server has no TLS, and sslmode is {address.sslmode}")
        if answer == b"E" and rest[:1] != b"\0":
            return unforked((yield from read_old_error(rest)))
        return failing(Cause.ERROR, "it does not speak PostgreSQL: its answer to the wish for TLS is none")

    def _session(self, address: Address, *, private: bool) -> Talk:
        """Converse, inside TLS or not: one result for each check, the last one returned."""
        line = Line()
        near = address.socket is not None or address.host.startswith(_LOOPBACK)
        login = Login(
            user=address.user,
            database=address.database,
            password=address.password,
            may_show=private or near,
        )
        try:
            yield from line.log_in(login, self._keys)
            begun = self._given_up[0]
            while True:
                result = yield from self._ask(line)
                well = result.verdict in (Verdict.PASSING, Verdict.WARNING)
                if not (self.keep and well) or self._given_up[0] > begun:
                    return result
                yield result
        except ServerError as problem:
            return from_server(problem, Verdict(self.exhausted))
        except Unforked as problem:
            return unforked(str(problem))
        except NotPostgres as problem:
            return failing(Cause.ERROR, f"it does not speak PostgreSQL: {problem}")
        except Unspoken as problem:
            return inconclusive(str(problem), Cause.CONFIG)
        except (NoPassword, NotTrusted) as problem:
            return failing(Cause.AUTH, str(problem))

    def _ask(self, line: Line) -> Talk:
        """Ask, and return what the answer means."""
        patience = self.patience()
        try:
            facts = Facts.of((yield from line.ask(patience + QUESTION)))
        except ValueError:
            return inconclusive("it answers in another way than PostgreSQL", Cause.CONFIG)
        if not (disk := facts.not_looked_at(self.disk)):
            yield from line.ask(patience + SPILL)
            disk = "writable"
        return judge(facts, self, disk)

    def _judge_peer(self, result: CheckResult, peer: ssl.SSLObject) -> CheckResult:
        """Turn PASSING into a warning when the certificate ends soon."""
        left = tls.days_left(peer, time.time())
        if left is None or left * _DAY >= self.warn_before or result.verdict is not Verdict.PASSING:
            return result
        text = (
            f"certificate ends in {left:.0f} days" if left >= 2 else f"certificate ends in {max(0.0, left) * 24:.0f} h"
        )
        return attrs.evolve(result, verdict=Verdict.WARNING, cause=Cause.CONFIG, summary=text)

    # -- the deep road, and what may be done --------------------------------------------------------------------------

    async def check(self, context: CheckContext) -> CheckResult:
        """Ask the same by psycopg, and more: a durable commit, old transactions, who waits for whom."""
        from selfheal_postgres.deep import look  # noqa: PLC0415  # the driver costs nothing until a deep check needs it

        return await look(self, context)

    async def doctor(self, context: CheckContext) -> list[Problem]:
        """Return what the role may not do of what is configured, without doing it."""
        from selfheal_postgres.deep import may_look  # noqa: PLC0415  # as above

        try:
            return await may_look(self, context)
        except UNUSABLE as problem:
            why = unusable(problem).summary if not isinstance(problem, ConnectionError) else str(problem)
            return [unproven("check.url", why)]


def unforked(text: str) -> CheckResult:
    """Return what it means that the server could not make a process for us."""
    return failing(Cause.OVERLOADED, f"it has no memory or no process left for a connection: {text}")


def unproven(path: str, why: str) -> Problem:
    """Return the problem that nothing could be proven, because it could not be asked."""
    return Problem(path=path, message=why, hint="see that it runs there, and that this role may log in")


UNUSABLE: Final = (OSError, ValueError, KeyError, tls.Broken)
"""What an address, its secrets and its files may raise when they are read."""


def unusable(problem: Exception) -> CheckResult:
    """Return what it means that the address cannot be used. A reader's words may quote a secret; our own do not."""
    if type(problem) in (ValueError, tls.Broken):
        return inconclusive(f"the address cannot be used: {problem}", Cause.CONFIG)
    return inconclusive(f"the address or its password cannot be read: {type(problem).__name__}", Cause.CONFIG)
