"""One HTTP exchange, for the notifiers and the hooks.

Owns what every request of ours to the outside has in common: the name is resolved and every address looked at before
we connect to exactly that address, one total deadline, a byte cap, no redirects, no proxy, no cookie, one connection
per request, and errors that hold no secret. What an answer means is its callers' business.

The transport of httpx2 is used below its client, because the client writes every URL to the log `httpx2`, and the URL
of a webhook is a password.
"""

from __future__ import annotations

import base64
import importlib
import ipaddress
import os
import re
import socket
import ssl
import sys
import time
import unicodedata
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import anyio
import attrs

from selfheal.errors import PluginError, SelfhealError
from selfheal.plugins import Context
from selfheal.secret import Secret, scrub

if TYPE_CHECKING:
    import httpx2

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

BODY_LIMIT: Final = 65536
"""Bytes of an answer that are read; an endless body costs no more (one filled 1.1 GB in 3 s without a cap)."""

BODY_SECONDS: Final = 5.0
"""Seconds spent on the body of an answer once its status is known: the status is what counts."""

MARGIN: Final = 0.95
"""Share of `context.remaining` we use ourselves, so that our own words about a slow peer are heard."""


class NoAnswer(SelfhealError):
    """The exchange ended without a status. `sent` says whether the peer may have seen the request."""

    def __init__(self, message: str, *, sent: bool) -> None:
        self.sent = sent
        super().__init__(message)


@attrs.frozen(kw_only=True)
class Ask:
    """A request, before its secrets are revealed.

    `private` allows loopback and private addresses. `authority` is a PEM file of the only authorities to trust.
    `timeout` is the most seconds this may take; `context.remaining` may be less.
    """

    method: str
    url: str | Secret = attrs.field(repr=False)
    headers: Mapping[str, str | Secret] = attrs.field(factory=dict, repr=False)
    body: bytes = attrs.field(default=b"", repr=False)
    private: bool = False
    verify: bool = True
    authority: Path | None = None
    timeout: float = 30.0


@attrs.frozen(kw_only=True)
class Answer:
    """What the peer said: header names are lower case, `body` is at most `BODY_LIMIT` bytes of it, maybe none."""

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(default=b"", repr=False)
    revealed: tuple[str, ...] = attrs.field(default=(), repr=False)

    def plain(self, text: str, limit: int = 200) -> str:
        """Return `text` of this answer fit for a record: our secrets masked, on one line, capped."""
        return neutral(scrub(text, list(self.revealed)), limit)


# -- text from outside ----------------------------------------------------------------------------------------------

_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~")
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def neutral(text: str, limit: int = 2000, *, keep: str = "") -> str:
    """Return at most `limit` characters of `text`, its control, bidirectional and other invisible ones escaped.

    What a service or a person wrote cannot forge a second log line or drive a terminal afterwards. `keep` are
    characters left alone where the reader can bear them, such as a line break.
    """
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(_escape(c) if unicodedata.category(c) in _INVISIBLE and c not in keep else c for c in cut)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


# -- addresses ------------------------------------------------------------------------------------------------------


class Reach(Enum):
    """Where an address leads: to the public net, to this machine or its inner net, or nowhere we would ever send."""

    PUBLIC = "public"
    INNER = "inner"
    FORBIDDEN = "forbidden"


_FORBIDDEN: Final = tuple(
    ipaddress.ip_network(net)
    for net in (
        "169.254.0.0/16",  # link-local, and in it the metadata service of nearly every cloud
        "100.100.100.200/32",  # metadata, Alibaba Cloud
        "168.63.129.16/32",  # the wire server of Azure
        "192.0.0.192/32",  # metadata, Oracle Cloud
        "224.0.0.0/4",
        "255.255.255.255/32",
        "fe80::/10",
        "fec0::/10",
        "fd00:ec2::/32",  # metadata and its neighbours, AWS
        "fd20:ce::/32",  # metadata, Google Cloud
        "ff00::/8",
    )
)
_SHARED: Final = ipaddress.ip_network("100.64.0.0/10")
_NAT64: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_COMPATIBLE: Final = ipaddress.ip_network("::/96")


def reach(address: Address) -> Reach:
    """Return where `address` leads. An IPv4 address inside an IPv6 one (mapped, NAT64, 6to4, Teredo) counts as itself.

    Python alone calls `64:ff9b::7f00:1` global, which a NAT64 gateway takes to 127.0.0.1.
    """
    inside = _embedded(address)
    if inside is not None:
        return reach(inside)
    if any(address in net for net in _FORBIDDEN):
        return Reach.FORBIDDEN
    if address.is_global and address not in _SHARED:
        return Reach.PUBLIC
    return Reach.INNER


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if any(address in net for net in _NAT64) or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


# -- what is made ready in a thread: secrets, the name, the TLS context ----------------------------------------------


@attrs.frozen(kw_only=True)
class _Ready:
    scheme: str
    host: str
    port: int
    target: str
    addresses: tuple[str, ...]
    headers: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    revealed: tuple[str, ...] = attrs.field(repr=False)
    tls: ssl.SSLContext | None = None


def reveal(value: str | Secret) -> str:
    """Return the value itself. Raises `NoAnswer` naming only the source of a secret that cannot be read."""
    if isinstance(value, str):
        return value
    problem = ""
    try:
        return value.reveal().strip(" \t\r\n")
    except Exception as failure:  # noqa: BLE001  # the reader is anybody's function, and its text may hold the value
        problem = failure.__class__.__name__
    raise NoAnswer(f"the secret from {value.source} cannot be read ({problem})", sent=False)


def split(url: str) -> tuple[str, str, int, str, str | None]:
    """Return (scheme, host, port, target, authorization) of `url`. Raises `ValueError` that does not repeat it."""
    parts, port, problem = None, None, ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        problem = "it cannot be parsed"
    if parts is None or problem:
        raise ValueError(f"not a usable URL: {problem}")
    if parts.scheme not in ("http", "https"):
        raise ValueError("not a usable URL: it must begin with http:// or https://")
    host = parts.hostname
    if not host or any(c.isspace() or unicodedata.category(c) == "Cc" for c in url):
        raise ValueError("not a usable URL: it " + ("contains a blank or control character" if host else "has no host"))
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), target, authorization


def _parts(host: str, target: str) -> list[str]:
    """Return what of a secret URL a peer might echo: any part of it long enough to be a token."""
    return [host, target, *(part for part in re.split(r"[/?&=;,]", target) if len(part) >= 8)]


def check_headers(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate an option of extra headers: attrs calls this. Their values are checked when they are used."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{attribute.name}: give a table of names and values")
    for name, content in value.items():
        if not isinstance(name, str) or not name or not all(c.isascii() and (c.isalnum() or c in _TOKEN) for c in name):
            raise ValueError(f"{attribute.name}: {name!r} is not the name of a header")
        if not isinstance(content, (str, Secret)):
            raise TypeError(f"{attribute.name}.{name}: give text or a secret")
        if name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
            raise ValueError(f"{attribute.name}.{name}: this header is set by us")


def check_url(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate a URL option: attrs calls this. A secret one is checked when it is used."""
    if isinstance(value, Secret):
        return
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name}: give a URL, as text or as a secret")
    try:
        split(value)
    except ValueError as problem:
        raise ValueError(f"{attribute.name}: {problem}") from None


def _prepare(ask: Ask, tls: ssl.SSLContext | None) -> _Ready:
    """Do, in a thread, all that may block: read secrets, resolve the name, load certificates."""
    url = reveal(ask.url)
    problem = ""
    try:
        scheme, host, port, target, authorization = split(url)
    except ValueError as failure:
        problem = str(failure)
    if problem:
        raise NoAnswer(f"{problem} (from {_source(ask.url)})", sent=False)
    headers = {"Host": _host_header(scheme, host, port)}
    if authorization is not None:
        headers["Authorization"] = authorization
    revealed = [] if isinstance(ask.url, str) else [url, *_parts(host, target)]
    revealed += [authorization, unquote(urlsplit(url).password or "")] if authorization else []
    for name, value in ask.headers.items():
        headers[name] = reveal(value)
        if isinstance(value, Secret):
            revealed.append(headers[name])
        if not _fits_header(headers[name]):
            raise NoAnswer(f"the value of header {name} has a line break or another character HTTP forbids", sent=False)
    return _Ready(
        scheme=scheme,
        host=host,
        port=port,
        target=target,
        addresses=_resolve(ask, host, port),
        headers=tuple(headers.items()),
        revealed=tuple(value for value in revealed if len(value) > 1),
        tls=tls or (_trust(ask) if scheme == "https" else None),
    )


SEE_URL: Final = "see that the address is right, that somebody listens there, and that this host may reach it"
"""What to do where `obstacle` finds one."""


def obstacle(ask: Ask) -> str:
    """Return what would keep a request from going out; empty when nothing does. Nothing is sent.

    Secrets and certificates are read, the name is resolved, and a connection is made and closed. Blocks, `ask.timeout`
    seconds at most for the connection: call it in a thread.
    """
    try:
        ready = _prepare(ask, None)
    except NoAnswer as problem:
        return str(problem)
    why, end = "", time.monotonic() + ask.timeout
    for address in ready.addresses:
        try:
            with socket.create_connection((address, ready.port), max(0.01, end - time.monotonic())):
                return ""
        except OSError as problem:
            why = problem.strerror or "no answer in time"
    return f"{_place(ask, ready.host)} cannot be reached: {why}"


def _at_hand(ask: Ask) -> bool:
    """Return whether there is nothing to wait for: no secret to read, no name to resolve, no certificate to load."""
    if isinstance(ask.url, Secret) or any(isinstance(value, Secret) for value in ask.headers.values()):
        return False
    try:
        parts = urlsplit(ask.url)
        ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return False
    return parts.scheme == "http"


def _source(url: str | Secret) -> str:
    return url.source if isinstance(url, Secret) else "the configuration"


def _place(ask: Ask, host: str) -> str:
    """Return how an error may call the peer: a secret URL is not quoted, not even its host."""
    return "the host of the URL" if isinstance(ask.url, Secret) else neutral(host, 100)


def _host_header(scheme: str, host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host.encode("idna").decode() if not host.isascii() else host
    return name if port == (443 if scheme == "https" else 80) else f"{name}:{port}"


def _fits_header(value: str) -> bool:
    return all(" " <= c <= "~" or c == "\t" or "\x80" <= c <= "\xff" for c in value) and value == value.strip(" \t")


def _resolve(ask: Ask, host: str, port: int) -> tuple[str, ...]:
    """Return the addresses of `host`, all of them looked at. One that must not be reached refuses the whole name."""
    place, reason = _place(ask, host), ""
    found: list[str] = []
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except socket.gaierror as failure:
        reason = failure.strerror or "no such name"
    except (OSError, UnicodeError) as failure:
        reason = failure.__class__.__name__
    if reason or not found:
        raise NoAnswer(f"{place} does not resolve: {reason or 'no address'}", sent=False)
    for text in found:
        kind = reach(ipaddress.ip_address(text))
        if kind is Reach.FORBIDDEN:
            raise NoAnswer(f"{place} leads to a link-local, metadata or multicast address: never sent to", sent=False)
        if kind is Reach.INNER and not ask.private:
            raise NoAnswer(
                f"{place} leads to a loopback or private address; set `private = true` if that is meant", sent=False
            )
    return tuple(dict.fromkeys(found))


def _trust(ask: Ask) -> ssl.SSLContext:
    problem = ""
    try:
        context = ssl.create_default_context(cafile=ask.authority)
    except (OSError, ssl.SSLError) as failure:
        problem = failure.strerror or failure.__class__.__name__
    if problem:
        raise NoAnswer(f"authority {ask.authority}: {problem}", sent=False)
    if not ask.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# -- the exchange ---------------------------------------------------------------------------------------------------


def library() -> Any:
    """Return httpx2, imported now. Raises `PluginError` with what to install."""
    try:
        importlib.import_module("httpcore2")  # what httpx2 itself imports late, and would import on the loop
        return importlib.import_module("httpx2")
    except ImportError:
        pass
    raise PluginError("httpx2 is not installed; it sends what goes over HTTP: pip install selfheal-core[http]")


class _Line:
    """A transport and the TLS context it was made with, kept for one plugin object on one loop."""

    def __init__(self, transport: httpx2.AsyncHTTPTransport, tls: ssl.SSLContext | None) -> None:
        self.transport = transport
        self.tls = tls

    async def aclose(self) -> None:
        await self.transport.aclose()


async def exchange(context: Context, ask: Ask) -> Answer:
    """Send a request once and return the answer, whatever its status.

    Raises `NoAnswer` when there is none before the deadline, and `PluginError` when httpx2 is missing. Neither the
    message nor a chained exception holds the URL or a header.
    """
    within = max(0.0, min(ask.timeout, context.remaining * MARGIN))
    answer: Answer | None = None
    failure: NoAnswer | None = None
    sent = [False]
    with anyio.move_on_after(within):
        try:
            answer = await _exchange(context, ask, within, sent)
        except NoAnswer as problem:
            failure = problem
    if answer is not None:
        return answer
    if failure is not None:
        raise NoAnswer(str(failure), sent=failure.sent)
    raise NoAnswer(f"no answer within {within:.3g} s", sent=sent[0])


async def _exchange(context: Context, ask: Ask, within: float, sent: list[bool]) -> Answer:
    httpx = library() if "httpx2" in sys.modules else await context.blocking(library)
    line = context.kept.get("https")
    tls = line.tls if line is not None else None
    ready = _prepare(ask, tls) if _at_hand(ask) else await context.blocking(_prepare, ask, tls)
    kind = "http" if ready.tls is None else "https"
    line = context.kept.get(kind)
    if line is None:
        bare = ready.tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # A connection per request: messages are rare, and a kept connection that died unnoticed would be a failure
        # of our own making.
        limits = httpx.Limits(max_keepalive_connections=0)
        line = context.kept[kind] = _Line(httpx.AsyncHTTPTransport(verify=bare, limits=limits), ready.tls)
    why = ""
    for number, address in enumerate(ready.addresses, 1):
        last = number == len(ready.addresses)
        request = _request(httpx, ask, ready, address, within if last else within / len(ready.addresses))
        try:
            sent[0] = True
            return await _answer(line.transport, request, ready)
        except (httpx.ConnectError, httpx.ConnectTimeout) as problem:
            sent[0] = False
            why = _why(problem)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as problem:
            why = _why(problem)
            break
    raise NoAnswer(f"{_place(ask, ready.host)}: {why}", sent=sent[0])


def _request(httpx: Any, ask: Ask, ready: _Ready, address: str, within: float) -> httpx2.Request:
    at = f"[{address}]" if ":" in address else address
    headers = (*ready.headers, ("User-Agent", "selfheal"), ("Connection", "close"))
    request: httpx2.Request = httpx.Request(
        ask.method,
        f"{ready.scheme}://{at}:{ready.port}{ready.target}",
        headers=[(name.encode(), value.encode("latin-1")) for name, value in headers],
        content=ask.body,
        # The name, not the address, is what the peer's certificate must be for.
        extensions={
            "sni_hostname": _host_header("https", ready.host, 443).strip("[]"),
            "timeout": dict.fromkeys(("connect", "read", "write", "pool"), within),
        },
    )
    return request


async def _answer(transport: httpx2.AsyncHTTPTransport, request: httpx2.Request, ready: _Ready) -> Answer:
    response = await transport.handle_async_request(request)
    body = bytearray()
    # Never up to the deadline itself: a body that drips must not take away the status we already have.
    left = anyio.current_effective_deadline() - anyio.current_time()
    try:
        with anyio.move_on_after(min(BODY_SECONDS, left / 2)) as scope:
            await _read(response, body, scope)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
            await response.aclose()
    return Answer(
        status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=bytes(body[:BODY_LIMIT]),
        revealed=ready.revealed,
    )


async def _read(response: httpx2.Response, body: bytearray, scope: anyio.CancelScope) -> None:
    """Read what can be had into `body`; a peer that breaks off has answered all the same."""
    httpx = library()
    stream: Any = response.stream
    try:
        async for chunk in stream:
            body += chunk
            if len(body) >= BODY_LIMIT:
                # Leaving the loop here would leave the generators below it to the garbage collector; a cancellation
                # takes them all down in order.
                scope.cancel()
    except (httpx.HTTPError, OSError):
        return


def _why(problem: BaseException) -> str:
    """Return what went wrong in words that cannot hold a secret: numbers and fixed texts, never the exception's own."""
    seen: BaseException | None = problem
    for _ in range(8):
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"certificate: {neutral(seen.verify_message, 200)}"
        if isinstance(seen, ssl.SSLError):
            return f"TLS: {neutral(seen.reason or 'failed', 100)}"
        if isinstance(seen, OSError) and seen.errno is not None and seen.errno > 0:
            return os.strerror(seen.errno)
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
            continue
        if seen is None:
            break
        seen = seen.__cause__ or seen.__context__
    name = problem.__class__.__name__
    return {
        "ConnectError": "the connection failed",
        "ConnectTimeout": "no connection in time",
        "ReadTimeout": "no answer in time",
        "WriteTimeout": "the request was not taken in time",
        "ReadError": "the connection broke before the answer",
        "WriteError": "the connection broke during the request",
        "RemoteProtocolError": "the peer closed the connection without an HTTP answer, or sent none",
    }.get(name, name)
