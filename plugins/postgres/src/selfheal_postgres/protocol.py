"""PostgreSQL's wire protocol 3.0 as far as a check needs it: log in, ask, read. No socket, no loop, no clock.

Every function that speaks is a generator in the manner of `selfheal.wire`: it yields the bytes to send (b"" for none)
and is sent what the server said next. What the server answers with an error is raised as `ServerError`, SQLSTATE
included: at log-in libpq keeps that to itself, and it is what tells "starting" from "no slot is free" in any language.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from collections.abc import Generator, Iterator, Mapping
from struct import pack, unpack_from
from typing import Final, TypeAlias, TypeVar

import attrs

from selfheal.wire import PeerClosed

T = TypeVar("T")
Speaking: TypeAlias = "Generator[bytes, bytes, T]"
Keys: TypeAlias = "dict[tuple[bytes, bytes, int], bytes]"
"""SCRAM's salted password by password, salt and rounds: computing it takes milliseconds."""

SSL_REQUEST: Final = pack("!ii", 8, 80877103)
VERSION: Final = 196608
"""3.0, which every server since 2003 speaks."""

MOST_ITERATIONS: Final = 100_000
"""Rounds of SCRAM we are ready to compute: 25 times PostgreSQL's default, about 20 ms. More would let a server, or an
impostor before it has proven anything, stop the loop."""

LONGEST: Final = 1 << 20
"""Bytes one message may have. What we ask for is answered with less than a thousand."""

LONGEST_LINE: Final = 200
"""Bytes of a line that is no message of the protocol."""

_KNOWN: Final = frozenset(b"RSKZTDCINEAG")
_FIELDS: Final = {"V": "severity", "C": "sqlstate", "M": "message"}


class NotPostgres(Exception):
    """What answers does not speak PostgreSQL's protocol."""


class Unspoken(Exception):
    """The server asks for something that is not spoken here; the text says what, and what to do."""


class Unforked(Exception):
    """The server could not make a process for us: it has run out of memory or of processes. The text is its own."""


class NotTrusted(Exception):
    """The server does not know the password it lets us in with: it is not the one that was meant."""


class NoPassword(Exception):
    """The server asks for a password and there is none."""


@attrs.frozen(kw_only=True)
class ServerError(Exception):
    """An error the server reports. `severity` and `sqlstate` are never translated; `message` may be."""

    sqlstate: str
    message: str
    severity: str = "ERROR"

    def __str__(self) -> str:
        return f"{self.message} ({self.sqlstate})"


@attrs.frozen(kw_only=True)
class Login:
    """Who logs in. `may_show` says whether the password may be sent as it is, where the server asks for that."""

    user: str
    database: str
    password: str | None = attrs.field(default=None, repr=False)
    may_show: bool = False


class Line:
    """One connection to a server: what was heard and not yet read, and what the server told of itself."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self._heard = b""
        self._begun = False

    def log_in(self, login: Login, keys: Keys) -> Speaking[None]:
        """Log in. `keys` remembers what was computed at the last log-in.

        Raises `ServerError`, `NotPostgres`, `Unforked`, `Unspoken`, `NotTrusted`, `NoPassword`.
        """
        words = {
            "user": login.user,
            "database": login.database,
            "application_name": "selfheal",
            "client_encoding": "UTF8",
        }
        body = b"".join(_text(part) for pair in words.items() for part in pair) + b"\0"
        yield from self._say(pack("!ii", len(body) + 8, VERSION) + body)
        while True:
            kind, payload = yield from self._message()
            if kind == b"R":
                yield from self._authenticate(payload, login, keys)
            elif kind == b"Z":
                return
            elif kind not in b"SKN":
                raise NotPostgres(f"message {kind!r} at log-in")

    def ask(self, sql: str) -> Speaking[str | None]:
        """Return the first value of the first row of the answer, as text; None where there is none, or NULL."""
        query = _text(sql)
        yield from self._say(b"Q" + pack("!i", len(query) + 4) + query)
        value: str | None = None
        rows = 0
        while True:
            kind, payload = yield from self._message()
            if kind == b"Z":
                return value
            if kind == b"D":
                rows += 1
                value = _first(payload) if rows == 1 else value

    # -- messages ----------------------------------------------------------------------------------------------------

    def _say(self, message: bytes) -> Speaking[None]:
        self._heard += yield message

    def _message(self) -> Speaking[tuple[bytes, bytes]]:
        """Return the kind and the payload of the next message that is not about the server itself."""
        while True:
            while len(self._heard) < 5:
                if self._heard and self._heard[0] not in _KNOWN:
                    raise NotPostgres("what it says begins with no message of the protocol")
                self._heard += yield b""
            kind = self._heard[:1]
            size: int = unpack_from("!i", self._heard, 1)[0]
            if kind == b"E" and not self._begun and size > LONGEST:
                raise Unforked((yield from read_old_error(self._heard[1:])))
            self._begun = True
            if kind[0] not in _KNOWN or not 4 <= size <= LONGEST:
                raise NotPostgres("what it says begins with no message of the protocol")
            while len(self._heard) <= size:
                self._heard += yield b""
            payload, self._heard = self._heard[5 : size + 1], self._heard[size + 1 :]
            if kind == b"E":
                raise error_of(payload)
            if kind == b"S":
                name, _, value = payload.rstrip(b"\0").partition(b"\0")
                self.told[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
            else:
                return kind, payload

    def _authenticate(self, payload: bytes, login: Login, keys: Keys) -> Speaking[None]:
        code = unpack_from("!i", payload)[0] if len(payload) >= 4 else -1
        if code == 0:
            return
        if code not in (3, 5, 10):
            named = {7: "GSSAPI", 9: "SSPI", 2: "Kerberos"}.get(code, f"a method of the number {code}")
            raise Unspoken(f"the server asks for {named}, which only the driver speaks: set `deep = true`")
        if login.password is None:
            raise NoPassword("the server asks for a password and none is configured")
        if code == 10:
            yield from self._scram(payload[4:], login.password, keys)
        elif code == 5:
            inner = _md5(login.password.encode() + login.user.encode())
            yield from self._say(_password(_text("md5" + _md5(inner.encode() + payload[4:8]))))
        elif login.may_show:
            yield from self._say(_password(_text(login.password)))
        else:
            raise Unspoken(
                "the server wants the password as it is, which is not sent over a line that others may read: "
                "set `sslmode` to verify-full, or scram-sha-256 in the server's pg_hba.conf"
            )

    def _scram(self, mechanisms: bytes, password: str, keys: Keys) -> Speaking[None]:
        """SCRAM-SHA-256 (RFC 5802 and 7677) without channel binding; the server must prove itself as well."""
        if b"SCRAM-SHA-256" not in mechanisms.split(b"\0"):
            raise Unspoken("the server offers no SCRAM-SHA-256: set `deep = true`")
        nonce = base64.b64encode(secrets.token_bytes(18)).decode()
        bare = f"n=,r={nonce}"
        hello = f"n,,{bare}".encode()
        yield from self._say(_password(_text("SCRAM-SHA-256") + pack("!i", len(hello)) + hello))
        first = yield from self._sasl(11)
        said = _attributes(first)
        salt, rounds = base64.b64decode(said.get("s", "")), said.get("i", "")
        if not said.get("r", "").startswith(nonce) or not salt or not rounds.isdigit():
            raise NotPostgres("its part of SCRAM is none")
        if int(rounds) > MOST_ITERATIONS:
            raise Unspoken(
                f"the server asks for {rounds} rounds of SCRAM; set `deep = true`, or scram_iterations lower"
            )
        known = (_prepared(password), salt, int(rounds))
        key = keys.get(known)
        if key is None:
            keys.clear()  # the latest only
            key = keys[known] = hashlib.pbkdf2_hmac("sha256", *known)
        final = f"c=biws,r={said['r']}"
        whole = f"{bare},{first},{final}".encode()
        client = _hmac(key, b"Client Key")
        proof = _xor(client, _hmac(hashlib.sha256(client).digest(), whole))
        yield from self._say(_password(f"{final},p={base64.b64encode(proof).decode()}".encode()))
        last = _attributes((yield from self._sasl(12)))
        expected = base64.b64encode(_hmac(_hmac(key, b"Server Key"), whole)).decode()
        if not hmac.compare_digest(last.get("v", ""), expected):
            raise NotTrusted("the server let us in without knowing the password: another one answers at this address")

    def _sasl(self, wanted: int) -> Speaking[str]:
        kind, payload = yield from self._message()
        if kind != b"R" or len(payload) < 4 or unpack_from("!i", payload)[0] != wanted:
            raise NotPostgres("its part of SCRAM is none")
        return payload[4:].decode("utf-8", "replace")


def read_old_error(heard: bytes) -> Speaking[str]:
    """Return the words of a postmaster that could not fork; `heard` is what came after its E.

    It speaks the protocol of twenty years ago then: a line of text, and hangs up.
    """
    try:
        while b"\n" not in heard and b"\0" not in heard and len(heard) < LONGEST_LINE:
            heard += yield b""
    except PeerClosed:
        pass
    line = heard.replace(b"\0", b"\n").split(b"\n")[0][:LONGEST_LINE].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def error_of(payload: bytes) -> ServerError:
    """Return what an ErrorResponse says."""
    found = {"severity": "ERROR", "sqlstate": "", "message": ""}
    for field in payload.split(b"\0"):
        name = _FIELDS.get(field[:1].decode("latin-1"))
        if name is not None:
            found[name] = field[1:].decode("utf-8", "replace")
    return ServerError(**found)


def _first(payload: bytes) -> str | None:
    """Return the first value of a DataRow."""
    if len(payload) < 6 or unpack_from("!h", payload)[0] < 1:
        return None
    size: int = unpack_from("!i", payload, 2)[0]
    return None if size < 0 else payload[6 : 6 + size].decode("utf-8", "replace")


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _password(body: bytes) -> bytes:
    return b"p" + pack("!i", len(body) + 4) + body


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _attributes(text: str) -> Mapping[str, str]:
    return {part[0]: part[2:] for part in text.split(",") if part[1:2] == "="}


def _prepared(password: str) -> bytes:
    """Return a password as SASLprep (RFC 4013) wants it; where that has no answer, as it is, like PostgreSQL."""
    if password.isascii():
        return password.encode()
    mapped = "".join(_mapped(password))
    plain = unicodedata.normalize("NFKC", mapped)
    forbidden = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
        stringprep.in_table_a1,
    )
    bad = not plain or any(refuses(letter) for letter in plain for refuses in forbidden)
    return (password if bad else plain).encode()


def _mapped(password: str) -> Iterator[str]:
    for letter in password:
        if not stringprep.in_table_b1(letter):
            yield " " if stringprep.in_table_c12(letter) else letter
