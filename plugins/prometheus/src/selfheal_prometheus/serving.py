"""The table `[prometheus]`: a small HTTP server inside `selfheal run` that answers a scrape and nothing else.

One request a connection, bounded in number, size and time: who connects and says nothing costs a slot for ten seconds.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, ClassVar, Final

import anyio
import attrs
import h11
from anyio.abc import SocketStream
from anyio.streams.stapled import MultiListener

from selfheal.builtin.addresses import read_address
from selfheal.errors import SelfhealError
from selfheal.secret import Secret
from selfheal_prometheus.exposing import Asked, exposition

log = logging.getLogger("selfheal.prometheus")

CONNECTIONS: Final = 32
"""Connections at a time; one more is closed at once. A Prometheus opens one, a pair of them two."""

PATIENCE: Final = 10.0
"""Seconds a connection may take from its first byte to its last: the time after which Prometheus gives up, too."""

OPENED: Final = 3.0
"""Seconds between two tries to listen."""

HEAD: Final = 16 << 10
"""Bytes a request's line and headers may have."""


class NotServed(SelfhealError):
    """The metrics cannot be served; the text says why and what to do."""


def _listen(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if read_address(value).host is None:
        raise ValueError(f"{value!r} is a unix socket, and Prometheus scrapes none; give host:port")


def _path(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not value.startswith("/") or not value.isprintable() or set(value) & set(" ?#"):
        raise ValueError(f"{value!r} is no path; begin it with / and leave ? and # out")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


@attrs.frozen
class Answer:
    """An answer to one request."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


@attrs.frozen(kw_only=True)
class Prometheus:
    """Serves the metrics while selfheal runs."""

    kind: ClassVar[str] = "prometheus"

    #: The address and the port to listen at. One that is not loopback needs a token, or `anyone`.
    listen: str = attrs.field(default="127.0.0.1:9464", validator=[attrs.validators.instance_of(str), _listen])
    #: The path under which the metrics stand.
    path: str = attrs.field(default="/metrics", validator=[attrs.validators.instance_of(str), _path])
    #: What a scrape must show as `Authorization: Bearer`; without it none is asked for.
    token: Secret | None = None
    #: Whether other machines may read the metrics without a token: names of services, their states, what was repaired.
    anyone: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    async def serve(self, supervisor: Asked) -> None:
        """Serve until cancelled, as soon as the address can be had. Raises `NotServed` for what would be unsafe."""
        endpoint = read_address(self.listen)
        assert endpoint.host is not None
        if self.token is None and not self.anyone and not _is_loopback(endpoint.host):
            raise NotServed(
                f"[prometheus] listen = {self.listen!r} can be reached from other machines, and there is no token: "
                "set `token`, say `anyone = true`, or listen at 127.0.0.1"
            )
        listener = await self._opened(endpoint.host, endpoint.port)
        taken = 0

        async def connected(stream: SocketStream) -> None:
            nonlocal taken
            async with stream:
                if taken >= CONNECTIONS:
                    return
                taken += 1
                try:
                    await self._talk(stream, supervisor)
                finally:
                    taken -= 1

        async with listener:
            log.info("metrics at http://%s%s", self.listen, self.path)
            await listener.serve(connected)

    async def _opened(self, host: str, port: int) -> MultiListener[SocketStream]:
        """Return what listens: an interface may come up later than we do, and another let go of its port."""
        told = ""
        while True:
            try:
                return await anyio.create_tcp_listener(local_host=host, local_port=port)
            except OSError as problem:
                if (text := problem.strerror or str(problem)) != told:
                    told = text
                    again = f"it is tried again every {OPENED:g} s"
                    log.error("[prometheus] cannot listen at %s: %s (%s)", self.listen, text, again)
            await anyio.sleep(OPENED)

    def routes(self, supervisor: Asked) -> Mapping[str, Callable[..., Any]]:
        """Return the same for `[http]` to show at the same path, to whoever may read there."""

        async def metrics(scope: Mapping[str, Any], receive: Any, send: Callable[[dict[str, Any]], Any]) -> None:
            accept = b", ".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
            content_type, body = await exposition(supervisor, accept)
            headers = [
                (b"content-type", content_type.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

        return {self.path: metrics}

    async def _talk(self, stream: SocketStream, supervisor: Asked) -> None:
        """Hear one request and answer it. Whatever goes wrong ends this connection only."""
        talk = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD)
        with anyio.move_on_after(PATIENCE), suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            try:
                request = await _heard(talk, stream)
                if request is None:
                    return
                answer = await self._contained(request, supervisor)
                bare = request.method == b"HEAD"
            except h11.RemoteProtocolError as problem:
                answer, bare = Answer(problem.error_status_hint, b"that is no request\n"), False
            await _say(talk, stream, answer, bare=bare)

    async def _contained(self, request: h11.Request, supervisor: Asked) -> Answer:
        try:
            return await self._answer(request, supervisor)
        except SelfhealError as problem:
            log.warning("a scrape was not answered: %s", problem)
        except Exception:  # a fault of ours, or a token that cannot be read: the next scrape may do better
            log.exception("a scrape was not answered")
        return Answer(503, b"selfheal does not answer; its log says more\n")

    async def _answer(self, request: h11.Request, supervisor: Asked) -> Answer:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
        if not self._may(headers.get("authorization", "")):
            asked = (("WWW-Authenticate", 'Bearer realm="selfheal"'),)
            return Answer(401, b"a token is needed: Authorization: Bearer ...\n", headers=asked)
        if self.token is None and not self.anyone and not _names_this_machine(headers.get("host", "")):
            return Answer(421, b"ask for 127.0.0.1 or localhost: another name may be a web page's way in\n")
        if request.method not in (b"GET", b"HEAD"):
            return Answer(405, b"metrics are only read\n", headers=(("Allow", "GET, HEAD"),))
        target = request.target.decode("latin-1").partition("?")[0]
        if target != self.path:
            return Answer(404, f"the metrics of selfheal are at {self.path}\n".encode())
        content_type, body = await exposition(supervisor, headers.get("accept", ""))
        return Answer(200, body, content_type)

    def _may(self, authorization: str) -> bool:
        if self.token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.token.reveal().strip().encode())
        return scheme.lower() == "bearer" and right


def _names_this_machine(host: str) -> bool:
    """Whether a `Host` header is an address or localhost: any other name may have been bent to point here."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.strip("[]").lower()
    with suppress(ValueError):
        return bool(ip_address(name))
    return name in ("", "localhost")


async def _heard(talk: h11.Connection, stream: SocketStream) -> h11.Request | None:
    """Return the request; None where the other side hung up before it was whole."""
    while True:
        event: Any = talk.next_event()
        if event is h11.NEED_DATA:
            try:
                talk.receive_data(await stream.receive(4096))
            except anyio.EndOfStream:
                return None
        elif isinstance(event, h11.Request):
            return event
        else:
            return None


async def _say(talk: h11.Connection, stream: SocketStream, answer: Answer, *, bare: bool) -> None:
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *answer.headers,
    ]
    said = talk.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if not bare:
        said += talk.send(h11.Data(data=answer.body)) or b""
    said += talk.send(h11.EndOfMessage()) or b""
    await stream.send(said)
