"""The check `neo4j`: its options, the light talk over Bolt, and what each refusal means.

Light, it logs in and asks for `RETURN 1` in the database, each time anew, on a kept connection. Where the database is
not to be had it asks the database `system` why. Deep, the driver does the same on a new connection and looks at every
database.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import attrs

from selfheal import Cause, CheckContext, CheckResult, Secret, Target, Tls, Verdict, converse
from selfheal.builtin import options
from selfheal.errors import Problem
from selfheal.wire import Talk, failing, inconclusive, warning
from selfheal_neo4j.bolt import SPEAKS_HTTP, Failed, NotBolt, greet, log_in_again, query, reset

Details = dict[str, str | int | float | bool | None]

SCHEMES: Final = ("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")
PORT: Final = 7687
LIMIT: Final = 2**18
"""Bytes of one light check."""

PATIENCE: Final = 30_000
"""Milliseconds after which the server itself ends our query, should we be gone."""

ROOM: Final = 2**30
ROOM_SHARE: Final = 0.1
"""Bytes, or the share of a disk, that must be free for a start: Neo4j reserves 256 MiB for its log of transactions."""

READING_FAULTS: Final = (OSError, ValueError, LookupError)
"""What reading an address or a secret may raise."""

NAMED: Final = 5
"""Databases that a summary names."""

WHY: Final = "SHOW DATABASES"
"""What `system` is asked. Its columns are looked up by name: they differ between versions."""


def _text_or_secret(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str | Secret):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is neither text nor a secret")


_YES_OR_NO: Final = attrs.validators.instance_of(bool)


@attrs.frozen(kw_only=True)
class Address:
    """What a URI says: where, and whether over TLS with a certificate that is verified."""

    host: str
    port: int
    secure: bool
    verify: bool


def read_uri(text: str) -> Address:
    """Read `bolt://host[:port]` or another of `SCHEMES`. Raises ValueError, without quoting what may be a password."""
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"it must begin with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user or password in it would be printed; use `user` and `password`")
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("give a host and a port, and no path or query: bolt://127.0.0.1:7687")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("its port is no number from 1 to 65535")
    _, _, how = parts.scheme.partition("+")
    return Address(host=parts.hostname, port=port or PORT, secure=bool(how), verify=how != "ssc")


@attrs.frozen(kw_only=True)
class Neo4jCheck:
    """Whether Neo4j takes us and answers a query in a database; with `deep`, also how all its databases are."""

    kind: ClassVar[str] = "neo4j"

    #: `bolt://host:7687`; `bolt+s://` with TLS, `bolt+ssc://` with TLS that is not verified. `neo4j://…` is taken as
    #: `bolt://…`: a check asks this server, and is not sent on to another. May be a secret.
    uri: str | Secret = attrs.field()
    #: The user to log in as. May be a secret, whose value is then masked wherever it is seen.
    user: str | Secret = attrs.field(default="neo4j")
    #: Its password; without one nobody logs in (`dbms.security.auth_enabled=false`).
    password: Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Secret))
    )
    #: Whether anybody logs in at all; `false` for a server without authentication, whatever password is given.
    authentication: bool = attrs.field(default=True, validator=_YES_OR_NO)
    #: The database that is asked.
    database: str = attrs.field(default="neo4j", validator=attrs.validators.matches_re(r"[A-Za-z][A-Za-z0-9.-]{2,62}"))
    #: Whether a deep check warns when the database may not be written.
    writable: bool = attrs.field(default=True, validator=_YES_OR_NO)
    #: Any folder on the disk of its data, as this machine sees it. A database that has given up because that disk was
    #: full is restarted only where this shows room again.
    data_path: Path | None = attrs.field(default=None, converter=options.path)
    #: A PEM file of the authorities to trust, instead of the system's.
    authority: Path | None = attrs.field(default=None, converter=options.path)
    #: Seconds before its end from which a certificate warns; light checks only.
    warn_before: float = options.seconds(14 * 86400.0)
    #: Whether to keep the connection: its end is then noticed within milliseconds.
    keep: bool = attrs.field(default=True, validator=_YES_OR_NO)

    @uri.validator
    def _readable(self, attribute: attrs.Attribute[Any], value: object) -> None:
        _text_or_secret(self, attribute, value)
        if isinstance(value, str):
            self.address()

    @user.validator
    def _is_somebody(self, attribute: attrs.Attribute[Any], value: object) -> None:
        _text_or_secret(self, attribute, value)
        if not value:
            raise ValueError("user: it is empty; leave it out for neo4j")

    def __attrs_post_init__(self) -> None:
        if not self.authentication:  # what nobody needs is neither looked for nor missed
            object.__setattr__(self, "password", None)

    def address(self) -> Address:
        """Return where it is. Raises ValueError, and what reading a secret raises."""
        try:
            return read_uri(self.uri.reveal().strip() if isinstance(self.uri, Secret) else self.uri)
        except ValueError as problem:
            raise ValueError(f"uri: {problem}") from None

    def target(self) -> Target:
        """Return where to connect. Raises as `address` does."""
        end = self.address()
        return Target(host=end.host, port=end.port, tls=self.tls(end), limit=LIMIT, keep=self.keep)

    def tls(self, end: Address) -> Tls | None:
        """Return how to be sure of the peer; None where the URI asks for no TLS."""
        if not end.secure:
            return None
        return Tls(verify=end.verify, authority=self.authority, warn_before=self.warn_before)

    def credentials(self) -> dict[str, str]:
        """Return what Bolt logs in with. Raises what reading the secret raises."""
        if self.password is None:
            return {"scheme": "none"}
        user = self.user.reveal().strip() if isinstance(self.user, Secret) else self.user
        return {"scheme": "basic", "principal": user, "credentials": self.password.reveal().strip("\r\n")}

    def room(self) -> bool | None:
        """Return whether the disk at `data_path` has room for a start; None where nobody can see."""
        try:
            seen = None if self.data_path is None else os.statvfs(self.data_path)
        except OSError:
            return None
        if seen is None:
            return None
        return seen.f_bavail * seen.f_frsize >= ROOM or seen.f_bavail >= ROOM_SHARE * seen.f_blocks

    def talk(self) -> Talk:
        """Log in and ask, at each check anew, where Bolt can do that on one connection."""
        try:
            auth = self.credentials()
        except READING_FAULTS as problem:
            return inconclusive(f"the user or the password cannot be read: {type(problem).__name__}", Cause.CONFIG)
        details: Details = {}
        try:
            hello, again = yield from greet(auth)
            details = {"server": str(hello.get("server", ""))[:60], "database": self.database}
            while True:
                result = yield from self._asked(details)
                if result.verdict is not Verdict.PASSING or not self.keep:
                    return result
                yield result
                if again:
                    yield from log_in_again(auth)
        except NotBolt as problem:
            return failing(Cause.CONFIG if str(problem) == SPEAKS_HTTP else Cause.ERROR, f"not Bolt: {problem}")
        except Failed as failure:
            return attrs.evolve(refused(failure.code), details={**details, "code": failure.code})

    def _asked(self, details: Details) -> Generator[bytes, bytes, CheckResult]:
        """Ask the database, and where it is not to be had, `system` why."""
        try:
            _, rows = yield from query("RETURN 1", self.database, PATIENCE)
        except Failed as failure:
            if not failure.code.endswith(UNSERVED):
                raise
            yield from reset()
            fields, rows = yield from query(WHY, "system", PATIENCE)
            result = judge_databases(fields, rows, self.database, writable=False)
            result = unserved(failure.code, result, self.room())
            return attrs.evolve(result, details={**details, **result.details, "code": failure.code})
        if rows != [[1]]:
            return attrs.evolve(failing(Cause.ERROR, "RETURN 1 is not answered with 1"), details=details)
        return CheckResult(Verdict.PASSING, details=details)

    async def check(self, context: CheckContext) -> CheckResult:
        """Ask through the driver, on a new connection, and look at every database: the deep check."""
        from selfheal_neo4j.deep import look  # noqa: PLC0415  # only a deep check needs the driver's names

        try:  # a secret may stand in a file, and a disk may hang
            end = await context.blocking(self.address)
            auth = await context.blocking(self.credentials)
        except READING_FAULTS as problem:
            what = "the address, the user or the password"
            return inconclusive(f"{what} cannot be read: {type(problem).__name__}", Cause.CONFIG)
        try:
            trusted = await context.blocking(self._trust, end)
        except OSError as problem:
            return inconclusive(f"the authority cannot be used: {problem.strerror}", Cause.CONFIG)
        return await look(self, context, end, auth, trusted)

    async def doctor(self, context: CheckContext) -> list[Problem]:
        """Return why nothing could be asked with this login, or why `data_path` shows nothing of a disk."""
        found = []
        try:
            if self.data_path is not None:
                await context.blocking(os.statvfs, self.data_path)
        except OSError as problem:
            why = f"cannot be looked at: {os.strerror(problem.errno or 0)}"
            found.append(Problem(path="check.data_path", message=why, hint="any folder on that disk will do"))
        try:
            result = await converse(await context.blocking(self.target), self.talk())
        except OSError as problem:
            inner = problem.__cause__ if isinstance(problem.__cause__, OSError) else problem
            why = os.strerror(inner.errno) if inner.errno else type(inner).__name__
            return [*found, Problem(path="check.uri", message=why, hint="see that Neo4j runs there")]
        except (ValueError, LookupError) as problem:
            why = f"it cannot be read: {type(problem).__name__}"
            return [*found, Problem(path="check.uri", message=why, hint="see where it is to come from")]
        if result.cause is Cause.AUTH:
            found.append(Problem(path="check.password", message=result.summary, hint="a user that may log in and read"))
        elif result.verdict in (Verdict.FAILING, Verdict.INCONCLUSIVE):
            found.append(Problem(path="check.uri", message=result.summary, hint="see that Neo4j is well there"))
        return found

    def _trust(self, end: Address) -> ssl.SSLContext | None:
        tls = self.tls(end)
        if tls is None:
            return None
        context = ssl.create_default_context(cafile=tls.authority)
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


# -- what the answers mean --------------------------------------------------------------------------------------------

UNSERVED: Final = (".DatabaseUnavailable", ".DatabaseNotAvailable", ".TransactionStartFailed")
"""How refusals end whose reason `system` knows: the last is that of a database which has given up after a fault."""

NO_ROOM: Final = "No space left"
"""What stands in the message of a database that has given up because its disk was full."""

CAUSES: Final = {
    "ClientError.Security.Unauthorized": (Cause.AUTH, "it does not take our user and password"),
    "ClientError.Security.AuthenticationRateLimit": (
        Cause.AUTH,
        "it takes no password from us for a while, after several wrong ones",
    ),
    "ClientError.Security.CredentialsExpired": (Cause.AUTH, "the password must be changed before it serves"),
    "ClientError.Security.Forbidden": (Cause.AUTH, "our user may not do this"),
    "ClientError.Security.TokenExpired": (Cause.AUTH, "our token has expired"),
    "ClientError.Database.DatabaseNotFound": (Cause.CONFIG, "there is no such database"),
    "TransientError.General.DatabaseUnavailable": (Cause.STARTING, "the database is not available yet"),
    "TransientError.Database.DatabaseUnavailable": (Cause.STARTING, "the database is not available yet"),
    "TransientError.General.MemoryPoolOutOfMemoryError": (Cause.OVERLOADED, "its memory for transactions is used up"),
    "TransientError.General.OutOfMemoryError": (Cause.OVERLOADED, "its memory is used up"),
    "TransientError.Transaction.MaximumTransactionLimitReached": (
        Cause.OVERLOADED,
        "it has as many transactions as it takes",
    ),
    "TransientError.Request.NoThreadsAvailable": (Cause.OVERLOADED, "it has no thread for another request"),
    "ClientError.Transaction.TransactionTimedOut": (Cause.TIMEOUT, "it ended our query, which took too long"),
}
"""Neo4j's own words for an error, without the `Neo.` before them: why, and what to say of it."""


def refused(code: str) -> CheckResult:
    """Return what a refusal says. Of a code we do not know, the middle tells whose fault it is."""
    word = code.removeprefix("Neo.")
    if word in CAUSES:
        cause, text = CAUSES[word]
    elif word.startswith("ClientError.Security"):
        cause, text = Cause.AUTH, "it refuses us"
    elif word.startswith("ClientError"):
        cause, text = Cause.CONFIG, "it does not take our question"
    elif word.startswith("TransientError"):
        cause, text = Cause.OVERLOADED, "it cannot answer now"
    else:
        cause, text = Cause.ERROR, "it fails at our question"
    return failing(cause, f"{text} ({code})")


def unserved(code: str, result: CheckResult, room: bool | None = None) -> CheckResult:
    """Return why a database serves nothing: what `system` says of it, or, where that is nothing, what it says itself.

    A database that could not write has given up: it is online, takes neither reads nor writes, and only a restart opens
    it again, which on a full disk fails. So it is `full`, which is not restarted for, until there is `room`.
    """
    if result.verdict is Verdict.FAILING:
        return result
    told = str(result.details.get("message") or "")
    found = refused(code)
    if NO_ROOM in told:
        if room:
            text = f"its disk was full, and it serves nothing until it is restarted; there is room again ({told})"
        else:
            text = f"its disk was full, and it serves nothing until there is room and it is restarted ({told})"
        found = failing(Cause.ERROR if room else Cause.FULL, text)
    elif told:
        found = failing(found.cause or Cause.ERROR, f"{told} ({code})")
    return attrs.evolve(found, details=result.details)


COMING: Final = frozenset({"initial", "starting", "store copying", "unknown"})


def judge_databases(
    fields: Sequence[str], rows: Sequence[Sequence[Any]], database: str, *, writable: bool
) -> CheckResult:
    """Return what SHOW DATABASES says: of ours, then of the others. `writable` is whether ours must be."""
    seen = [dict(zip(fields, row, strict=False)) for row in rows]
    ours = [one for one in seen if one.get("name") == database or database in (one.get("aliases") or ())]
    others = [one for one in seen if one not in ours]
    details: Details = {"databases": len({str(one.get("name")) for one in seen})}
    if not ours:
        return attrs.evolve(failing(Cause.CONFIG, f"there is no database {database}"), details=details)
    one = next((one for one in ours if one.get("currentStatus") != "online"), ours[0])
    details |= {"status": _word(one, "currentStatus"), "access": _word(one, "access"), "role": _word(one, "role")}
    details["message"] = _said(one) or None
    details = {name: value for name, value in details.items() if value is not None}
    return attrs.evolve(_judged(one, ours, others, writable), details=details)


def _judged(
    one: Mapping[str, Any], ours: list[dict[str, Any]], others: list[dict[str, Any]], writable: bool
) -> CheckResult:
    name, status = str(one.get("name"))[:60], _word(one, "currentStatus")
    online = [other for other in ours if other.get("currentStatus") == "online"]
    if not online:
        if status in COMING:
            return failing(Cause.STARTING, f"database {name} is {status}")
        if one.get("requestedStatus") == "offline":
            return failing(Cause.CONFIG, f"database {name} is {status}: a person stopped it")
        said = _said(one)
        cause = Cause.FULL if NO_ROOM in said else Cause.ERROR
        return failing(cause, f"database {name} is {status}{f': {said}' if said else ''}")
    off = [f"{_where(other)} {_word(other, 'currentStatus')}" for other in ours if other not in online]
    off += [
        f"{_where(other)} {_word(other, 'currentStatus')}"
        for other in others
        if other.get("currentStatus") != other.get("requestedStatus")
    ]
    if off:
        more = f" and {len(off) - NAMED} more" if len(off) > NAMED else ""
        return warning(Cause.DEGRADED_CLUSTER, f"not as they should be: {', '.join(off[:NAMED])}{more}")
    if writable and not any(_may_be_written(other) for other in online):
        return warning(Cause.READ_ONLY, f"database {name} may not be written: {_word(one, 'access') or 'no writer'}")
    return CheckResult(Verdict.PASSING)


def _may_be_written(one: Mapping[str, Any]) -> bool:
    return one.get("access", "read-write") == "read-write" and one.get("writer", True) is True


def _said(one: Mapping[str, Any]) -> str:
    return str(one.get("statusMessage") or one.get("error") or "")[:200]


def _word(one: Mapping[str, Any], field: str) -> str | None:
    value = one.get(field)
    return None if value is None else str(value)[:60]


def _where(one: Mapping[str, Any]) -> str:
    return f"{_word(one, 'name')} on {_word(one, 'address')}"
