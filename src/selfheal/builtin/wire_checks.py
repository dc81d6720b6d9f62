"""The wire checks that need no driver: `tcp`, `http` and `redis_ping`.

Each is a conversation (see `selfheal.wire`); the runner connects, waits and closes. The fields are the options of the
configuration file. They are checked when the object is made, so a bad one is refused at load, never found out later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final

import attrs

from selfheal.builtin import options
from selfheal.builtin.addresses import Endpoint, RedisUrl, read_address, read_http_url, read_redis_url
from selfheal.builtin.http_talk import NotHttp, cause_of, read_body, read_head
from selfheal.core.bounds import seconds, whole
from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.secret import Secret
from selfheal.wire import Talk, Target, Tls, failing, inconclusive

_DAY: Final = 86400.0
_NAME: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_OURS: Final = frozenset({"connection", "content-length", "transfer-encoding"})


def _masked(url: str | Secret) -> str:
    """Return a URL for people: whatever stands before the @ is not shown."""
    if isinstance(url, Secret):
        return repr(url)
    scheme, slashes, rest = url.partition("://")
    return repr(f"{scheme}{slashes}***@{rest.rpartition('@')[2]}" if "@" in rest else url)


def _tls(check: HttpCheck | RedisPing, name: str | None = None) -> Tls:
    """Return how to be sure of the peer; `name` stands in where the check has no host of its own to verify."""
    return Tls(
        server_name=check.server_name or name,
        verify=check.verify,
        authority=check.authority,
        certificate=check.certificate,
        warn_before=check.warn_before,
    )


@attrs.frozen(kw_only=True)
class TcpCheck:
    """Whether somebody accepts connections at an address. Weak evidence: a hung process accepts too."""

    kind: ClassVar[str] = "tcp"

    #: `host:port`, `[v6]:port`, or the path of a unix socket.
    address: str = attrs.field()

    @address.validator
    def _readable(self, attribute: attrs.Attribute[str], value: str) -> None:
        _refuse(attribute, lambda: read_address(value))

    def target(self) -> Target:
        """Return where to connect."""
        end = read_address(self.address)
        return Target(host=end.host, port=end.port, path=end.path)

    def talk(self) -> Talk:
        """Say nothing: that it was reached is the answer."""
        return PASSING
        yield


def _statuses(value: object) -> tuple[int | str, ...]:
    return (value,) if isinstance(value, (int, str)) else tuple(value) if isinstance(value, Sequence) else (str(value),)


_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_ONLY_OK: Final = frozenset({200})  # shared, as a fleet has thousands of these


def _mapping(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(value) if value else _NOTHING


def _text_or_secret(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, (str, Secret)):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is neither text nor a secret")


@attrs.frozen(kw_only=True)
class HttpCheck:
    """Whether a URL answers as it should. Redirects are not followed; name 301 in `status` to expect one.

    An unwanted status is FAILING with the cause that `http_talk.CAUSES` gives it. A body without the wanted text, or a
    header without the wanted value, is FAILING, `error`.
    """

    kind: ClassVar[str] = "http"

    #: `http://` or `https://`; without user and password, which belong into `headers`.
    url: str = attrs.field()
    #: `GET` or `HEAD`.
    method: str = attrs.field(default="GET", validator=attrs.validators.in_(("GET", "HEAD")))
    #: The statuses that pass: `200`, `"2xx"`, `"200-299"`, or a list of such.
    status: tuple[int | str, ...] = attrs.field(default=(200,), converter=_statuses)
    #: Text that the body must contain, as UTF-8.
    body: str | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.min_len(1)))
    #: Headers the answer must have, with their values; an empty value means that any will do.
    expect_headers: Mapping[str, str] = attrs.field(factory=dict, converter=_mapping)
    #: Headers to send. A value may be a secret.
    headers: Mapping[str, str | Secret] = attrs.field(
        factory=dict, converter=_mapping, repr=lambda value: str([*value])
    )
    #: The path of a unix socket to connect to, instead of the URL's host.
    socket: str | None = None
    #: The name that the certificate must bear, and SNI; the URL's host by default.
    server_name: str | None = None
    #: A PEM file of the authorities to trust, instead of the system's.
    authority: Path | None = attrs.field(default=None, converter=options.path)
    #: Our own certificate and its key, in one PEM file.
    certificate: Path | None = attrs.field(default=None, converter=options.path)
    #: Whether to verify the peer's certificate at all.
    verify: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    #: Seconds before its end from which a certificate warns.
    warn_before: float = seconds(14 * _DAY)
    #: Bytes one check may receive.
    limit: int = whole(65536, 1024, 64 << 20)
    #: Whether to keep the connection: cheaper, but then a check does not prove that connecting works.
    keep: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    _accepted: frozenset[int] = attrs.field(init=False, repr=False, eq=False)
    _request: bytes | None = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        fields = attrs.fields_dict(HttpCheck)
        parts = _refuse(fields["url"], lambda: read_http_url(self.url))
        object.__setattr__(self, "_accepted", _refuse(fields["status"], lambda: read_statuses(self.status)))
        if self.body is not None and self.method == "HEAD":
            raise ValueError("body: an answer to HEAD has no body; use GET")
        if not parts.secure and (self.authority or self.certificate or self.server_name or not self.verify):
            raise ValueError("url: authority, certificate, server_name and verify have no meaning for http://")
        for name, value in self.headers.items():
            if not _NAME.fullmatch(name) or name.lower() in _OURS:
                raise ValueError(f"headers: {name!r} is no header that can be set here")
            _text_or_secret(self, fields["headers"], value)
            if isinstance(value, str) and not _sendable(value):
                raise ValueError(f"headers: the value of {name!r} has a line break or a letter outside Latin-1")
        plain = not any(isinstance(value, Secret) for value in self.headers.values())
        object.__setattr__(self, "_request", self._compose() if plain else None)

    def target(self) -> Target:
        """Return where to connect."""
        parts = read_http_url(self.url)
        tls = _tls(self, parts.host) if parts.secure else None
        if self.socket is not None:
            return Target(path=self.socket, tls=tls, limit=self.limit, keep=self.keep)
        return Target(host=parts.host, port=parts.port, tls=tls, limit=self.limit, keep=self.keep)

    def talk(self) -> Talk:
        """Send the request, read as much of the answer as the conditions need."""
        while True:
            request = self._request
            if request is None:
                try:
                    request = self._compose()
                except (OSError, ValueError, KeyError) as problem:
                    return inconclusive(f"a secret header cannot be used: {type(problem).__name__}", Cause.CONFIG)
            reusable = False
            try:
                head = yield from read_head((yield request))
                result = self._judge(head.status, head.headers) if self._asks_more(head.status) else PASSING
                if self.body is not None or self.keep:
                    wanted = self.body.encode() if self.body is not None and result is PASSING else None
                    if wanted is not None or self.keep:
                        found, reusable = yield from read_body(head, self.method, wanted, whole=self.keep)
                        if not found:
                            result = failing(Cause.ERROR, "the body lacks the wanted text")
            except NotHttp as problem:
                return failing(Cause.ERROR, f"not HTTP: {problem}")
            if not reusable:
                return result
            yield result

    def _asks_more(self, status: int) -> bool:
        return bool(self.expect_headers) or status not in self._accepted

    def _judge(self, status: int, headers: Any) -> CheckResult:
        """Return what the head of an answer says that is not plainly good."""
        if status not in self._accepted:
            text = f"status {status}"
            if 300 <= status < 400 and status != 304:
                text += " (redirects are not followed)"
            return CheckResult(Verdict.FAILING, cause=cause_of(status), summary=text, details={"status": status})
        said = headers()
        for name, value in self.expect_headers.items():
            heard = said.get(name.lower())
            if heard is None or (value and value.lower() not in heard.lower()):
                how = "is missing" if heard is None else "has another value"
                return failing(Cause.ERROR, f"header {name} {how}")
        return PASSING

    def _compose(self) -> bytes:
        """Return the request. Raises ValueError for a secret that cannot stand in a header."""
        parts = read_http_url(self.url)
        lines = {
            "Host": parts.authority,
            "User-Agent": "selfheal",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        for name, value in self.headers.items():
            text = value.reveal() if isinstance(value, Secret) else value
            if not _sendable(text):
                raise ValueError("line break")
            lines = {key: other for key, other in lines.items() if key.lower() != name.lower()}
            lines[name] = text
        if not self.keep:
            lines["Connection"] = "close"
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{self.method} {parts.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1")


def read_statuses(values: Sequence[int | str]) -> frozenset[int]:
    """Return the statuses that `200`, `"3xx"` and `"200-299"` name. Raises ValueError."""
    found: set[int] = set()
    for value in values:
        text = str(value).lower()
        if re.fullmatch(r"[1-5]xx", text):
            low = int(text[0]) * 100
            found.update(range(low, low + 100))
        elif match := re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", text):
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        else:
            raise ValueError(f"{value!r} is no status; give 200, '2xx' or '200-299'")
    if not found:
        raise ValueError("no status would pass; give at least one")
    return _ONLY_OK if found == _ONLY_OK else frozenset(found)


REDIS_CAUSES: Final = {
    "NOAUTH": Cause.AUTH,
    "WRONGPASS": Cause.AUTH,
    "NOPERM": Cause.AUTH,
    "DENIED": Cause.CONFIG,  # protected mode
    "LOADING": Cause.STARTING,
    "BUSY": Cause.OVERLOADED,  # a script runs too long
    "UNKILLABLE": Cause.OVERLOADED,
    "TRYAGAIN": Cause.DEGRADED_CLUSTER,
    "MASTERDOWN": Cause.DEGRADED_CLUSTER,
    "CLUSTERDOWN": Cause.DEGRADED_CLUSTER,
    "NOREPLICAS": Cause.DEGRADED_CLUSTER,
    "READONLY": Cause.READ_ONLY,
    "MISCONF": Cause.FULL,  # it cannot save, and so refuses writes: in practice the disk
    "OOM": Cause.OVERLOADED,
}
"""What the first word of a Redis error says. `LOADING` must not be answered with a restart: it would load again."""


@attrs.frozen(kw_only=True)
class RedisPing:
    """Whether Redis (or what speaks its protocol) answers PING."""

    kind: ClassVar[str] = "redis_ping"

    #: `redis://[user:password@]host:port`, `rediss://…` for TLS, or `unix:///path`. May be a secret.
    url: str | Secret = attrs.field(validator=_text_or_secret, repr=_masked)
    #: Used instead of a password in the URL.
    password: Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Secret))
    )
    #: The name that the certificate must bear; the URL's host by default.
    server_name: str | None = None
    #: A PEM file of the authorities to trust, instead of the system's.
    authority: Path | None = attrs.field(default=None, converter=options.path)
    #: Our own certificate and its key, in one PEM file.
    certificate: Path | None = attrs.field(default=None, converter=options.path)
    #: Whether to verify the peer's certificate at all.
    verify: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    #: Seconds before its end from which a certificate warns.
    warn_before: float = seconds(14 * _DAY)
    #: Whether to keep the connection: its end is then noticed within milliseconds.
    keep: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))

    def __attrs_post_init__(self) -> None:
        if isinstance(self.url, str):
            parts = _refuse(attrs.fields_dict(RedisPing)["url"], self._read)
            if not parts.secure and (self.authority or self.certificate or self.server_name or not self.verify):
                raise ValueError(
                    "url: authority, certificate, server_name and verify have a meaning for rediss:// only"
                )

    def target(self) -> Target:
        """Return where to connect. Raises ValueError when the URL is a secret, and no URL."""
        parts = self._read()
        end: Endpoint = parts.endpoint
        tls = _tls(self) if parts.secure else None
        return Target(host=end.host, port=end.port, path=end.path, tls=tls, limit=4096, keep=self.keep)

    def talk(self) -> Talk:
        """Log in once for each connection, then PING once for each check."""
        try:
            words = self._login()
        except (OSError, ValueError, KeyError) as problem:
            return inconclusive(f"the password cannot be read: {type(problem).__name__}", Cause.CONFIG)
        if words:
            line, more = yield from _read_line((yield _command(*words)))
            if line != b"+OK":
                return redis_trouble(line, Cause.AUTH)
        while True:
            data = yield b"*1\r\n$4\r\nPING\r\n"
            if data != b"+PONG\r\n":
                line, more = yield from _read_line(data)
                if line != b"+PONG":
                    return redis_trouble(line, Cause.ERROR)
                if more:  # it says more than was asked; what follows could not be told from the next answer
                    return PASSING
            yield PASSING

    def _read(self) -> RedisUrl:
        return read_redis_url(self.url.reveal() if isinstance(self.url, Secret) else self.url)

    def _login(self) -> tuple[bytes, ...]:
        parts = self._read()
        password = self.password.reveal() if self.password is not None else parts.password
        if password is None:
            return ()
        user = () if parts.user is None else (parts.user.encode(),)
        return (b"AUTH", *user, password.encode())


def redis_trouble(line: bytes, otherwise: Cause) -> CheckResult:
    """Return what a Redis answer that is not the wanted one says; `otherwise` is the cause of a plain `-ERR`."""
    text = line.decode("utf-8", "replace")
    if not text.startswith("-"):
        return failing(Cause.ERROR, "not the answer of a Redis")
    word = text[1:].partition(" ")[0]
    cause = Cause.OVERLOADED if "max number of clients" in text else REDIS_CAUSES.get(word, otherwise)
    return failing(cause, text[1:200])


def _read_line(data: bytes) -> Any:
    """Return one line without its end, and what came after it; no line of an answer we ask for is long."""
    while (at := data.find(b"\r\n")) < 0:
        data += yield b""
    return data[:at], data[at + 2 :]


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _sendable(value: str) -> bool:
    try:
        return not any(byte < 32 and byte != 9 for byte in value.encode("latin-1"))
    except UnicodeError:
        return False


def _refuse(attribute: attrs.Attribute[Any], read: Any) -> Any:
    """Return what `read` returns; name the field in what it raises."""
    try:
        return read()
    except ValueError as problem:
        raise ValueError(f"{attribute.name}: {problem}") from None
