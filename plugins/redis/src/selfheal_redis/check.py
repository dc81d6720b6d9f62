"""The check `redis`: one conversation by default, the driver for the thorough one.

Owns the options and the order in which a server is asked; what its answers mean is in `judge`.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from selfheal import Cause, CheckResult, Verdict
from selfheal.builtin.options import seconds, whole
from selfheal.plugins import CheckContext
from selfheal.secret import Secret
from selfheal.wire import Talk, Target, Tls, failing, inconclusive
from selfheal_redis.address import Address, masked, read_url
from selfheal_redis.driver import loaded
from selfheal_redis.judge import Limits, Seen, answered, hangs_up, refused
from selfheal_redis.replies import NotRedis, Refusal, command, read_info, read_reply

BYTES: Final = 65536
"""The most that one check reads. INFO has 5 to 8 KiB, and 100 bytes for each replica and each error word."""

NAME: Final = "selfheal"
"""How our connections are called in CLIENT LIST, and spared when clients are killed."""

QUESTIONS: Final = command("CLIENT", "SETNAME", NAME) + command("PING") + command("ROLE") + command("INFO")
"""What each check asks, in one go: 100 bytes out, some KiB back."""

AS_NEW: Final = command("RESET")
"""Has a connection be what a new one is, logged in only where nobody has to be (Redis 6.2 and Valkey; no Sentinel)."""

READING_FAULTS: Final = (OSError, ValueError, LookupError)
"""What reading a secret may raise."""


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _share(default: float) -> Any:
    def within(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ValueError(f"{attribute.name}: {value!r:.40} is no share; give a number above 0, at most 1")

    return attrs.field(default=default, validator=within, metadata={"unit": "share"})


def _text_or_secret(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | Secret):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is neither text nor a secret")


_OPTIONAL_TEXT: Final = attrs.validators.optional(
    attrs.validators.and_(attrs.validators.instance_of(str), attrs.validators.min_len(1))
)


class Renewals:
    """Counts how often the connections of a check were to be replaced; each connection remembers its number."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@attrs.frozen(kw_only=True)
class RedisCheck:
    """How a Redis (or what speaks its protocol) is, and why."""

    kind: ClassVar[str] = "redis"

    #: `redis://[user:password@]host:port/0`, `rediss://…` for TLS, or `unix:///path`. May be a secret.
    url: str | Secret = attrs.field(validator=_text_or_secret, repr=masked)
    #: The user to log in as, instead of one in the URL; without either, Redis's `default`.
    username: str | None = attrs.field(default=None, validator=_OPTIONAL_TEXT)
    #: Used instead of a password in the URL.
    password: Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Secret))
    )
    #: What the server should be: `primary`, `replica`, or `any`.
    expect: str = attrs.field(default="any", validator=attrs.validators.in_(("any", "primary", "replica")))
    #: The share of `maxmemory` from which on a server that can evict nothing is warned of.
    memory_warn: float = _share(0.9)
    #: The share of `maxclients` from which on is warned.
    clients_warn: float = _share(0.9)
    #: Seconds without a word over a replication link (an idle primary speaks every 10 s, a replica each second).
    lag_warn: float = seconds(30.0, 1.0)
    #: How many replicas a primary should have.
    replicas: int = whole(0, 0, 1000)
    #: A key that the deep check may write (with an end after a minute); without it nothing is ever written.
    write_key: str | None = attrs.field(default=None, validator=_OPTIONAL_TEXT)
    #: The name that the certificate must bear; the URL's host by default.
    server_name: str | None = None
    #: A PEM file of the authorities to trust, instead of the system's.
    authority: Path | None = attrs.field(default=None, converter=_path)
    #: Our own certificate and its key, in one PEM file.
    certificate: Path | None = attrs.field(default=None, converter=_path)
    #: Whether to verify the peer's certificate at all.
    verify: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    #: Seconds before its end from which a certificate warns.
    warn_before: float = seconds(14 * 86400.0)
    #: Whether to keep the connection: its end is then noticed within milliseconds.
    keep: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))

    _renewals: Renewals = attrs.field(factory=Renewals, init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.url, str):
            try:
                parts = read_url(self.url, strict=True)
            except ValueError as problem:
                raise ValueError(f"url: {problem}") from None
            if not parts.secure and (self.authority or self.certificate or self.server_name or not self.verify):
                raise ValueError(
                    "url: authority, certificate, server_name and verify have a meaning for rediss:// only"
                )

    # -- where it is, and who we are ----------------------------------------------------------------------------------

    def address(self) -> Address:
        """Return where it is, with the user and the password to use. Reveals secrets; raises what they raise."""
        parts = read_url(self.url.reveal() if isinstance(self.url, Secret) else self.url)
        password = self.password.reveal() if self.password is not None else parts.password
        return attrs.evolve(parts, user=self.username or parts.user, password=password)

    def tls(self) -> Tls:
        """Return how to be sure of the peer, where the URL is `rediss://`."""
        return Tls(
            server_name=self.server_name,
            verify=self.verify,
            authority=self.authority,
            certificate=self.certificate,
            warn_before=self.warn_before,
        )

    def limits(self) -> Limits:
        """Return from where on is warned."""
        return Limits(
            expect=self.expect,
            memory=self.memory_warn,
            clients=self.clients_warn,
            lag=self.lag_warn,
            replicas=self.replicas,
        )

    def renew(self) -> None:
        """Have every connection that is kept for this check replaced before it is used twice more."""
        self._renewals.count += 1

    @property
    def renewed(self) -> int:
        """How often connections were to be replaced so far."""
        return self._renewals.count

    # -- the light check ----------------------------------------------------------------------------------------------

    def target(self) -> Target:
        """Return where to connect. Raises ValueError when the URL is a secret, and no URL."""
        parts = read_url(self.url.reveal() if isinstance(self.url, Secret) else self.url)
        tls = self.tls() if parts.secure else None
        return Target(host=parts.host, port=parts.port, path=parts.path, tls=tls, limit=BYTES, keep=self.keep)

    def talk(self) -> Talk:
        """Ask everything in one go: AUTH, PING, ROLE, INFO; at each check anew, AUTH too.

        A connection stays logged in when the password is changed, or when the first one is set. Only one that logs in
        again hears of it, or, without a password, one that is made as new.
        """
        try:
            login = self._login()
        except READING_FAULTS as problem:
            return inconclusive(f"the password cannot be read: {type(problem).__name__}", Cause.CONFIG)
        again = login  # what goes before the questions
        renewed, limits = self.renewed, self.limits()
        seen: Seen | None = None
        try:
            while True:
                heard = yield again + QUESTIONS
                if again:
                    said, heard = yield from read_reply(heard)
                    if isinstance(said, Refusal) and login:
                        return refused(said, Cause.AUTH)
                result, seen, heard = yield from _answers(heard, limits, seen)
                if heard or result.verdict is Verdict.FAILING or renewed != self.renewed:
                    return result  # what is too much could not be told from the next answer
                yield result
                again = login or AS_NEW
        except NotRedis as problem:
            return failing(Cause.ERROR, str(problem))

    def _login(self) -> bytes:
        parts = self.address()
        if parts.password is None:
            return b""
        return command("AUTH", *(() if parts.user is None else (parts.user,)), parts.password)

    # -- the deep check -----------------------------------------------------------------------------------------------

    async def check(self, context: CheckContext) -> CheckResult:
        """Ask more than the light check does, with the driver, on a connection that is kept."""
        await loaded(context)
        from selfheal_redis.deep import looked_into  # noqa: PLC0415  # it needs the driver, which few need

        return await looked_into(self, context)


def _answers(
    heard: bytes, limits: Limits, seen: Seen | None
) -> Generator[bytes, bytes, tuple[CheckResult, Seen | None, bytes]]:
    """Read what is said to one round of questions; return the verdict, what to remember, and what is too much."""
    named, heard = yield from read_reply(heard)
    if isinstance(named, Refusal) and hangs_up(named):
        return refused(named), None, heard
    ping, heard = yield from read_reply(heard)
    role, heard = yield from read_reply(heard)
    info, heard = yield from read_reply(heard)
    fields = read_info(info) if isinstance(info, bytes) else {}
    return answered(ping, role, info, fields, limits, seen), Seen.of(fields), heard
