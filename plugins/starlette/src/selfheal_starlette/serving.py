"""The table `[http]` of the file: the API, served by `selfheal run` itself.

The server has a thread and an event loop of its own, whatever loop the daemon runs on: what it does, however much comes
in, delays no check. Each question crosses to the loop of the supervisor and back. The server installs no signal
handler there; when the daemon stops, its streams end first.
"""

from __future__ import annotations

import logging
import re
import resource
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import anyio
import anyio.to_thread
import attrs
import uvicorn
from anyio.from_thread import BlockingPortal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from selfheal.builtin.options import path, texts
from selfheal.errors import SelfhealError
from selfheal.supervisor import Supervisor
from selfheal_starlette.access import host_name, is_loopback, networks
from selfheal_starlette.app import PREFIX, RecoveryApp, problem_response, recovery_app
from selfheal_starlette.events import Bounds
from selfheal_starlette.problems import Refusal
from selfheal_starlette.supervised import Across, Supervised
from selfheal_starlette.tokens import FILE, TokenBook, TokenFile

log = logging.getLogger("selfheal.http")

CONNECTIONS: Final = 1200
"""Connections at a time. Then one that has come to no request yet is ended for each that comes, the oldest first."""

OTHERS: Final = 200
"""Descriptors that are left to everything else in the process, before half of the rest are connections."""

KEPT: Final = 15
"""Seconds a connection may rest between two requests."""

BEGUN: Final = 20.0
"""Seconds a connection may be open without a request under way; one that sends half a head is not open for ever."""

OPENED: Final = 3.0
"""Seconds between two tries to listen."""

RENEWED: Final = 100
"""Tenths of a second between two looks whether the certificate was renewed."""

STOPPED: Final = 3
"""Seconds that open requests are given at the stop; streams end at once."""

_LISTEN: Final = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):)?([0-9]{1,5})")


class NotServed(SelfhealError):
    """The API is not served: what is written would be unsafe, or the address cannot be had."""


@attrs.frozen(kw_only=True)
class ServedTls:
    """The certificate of the server."""

    #: A PEM file with the certificate, and those that lead to its authority.
    certificate: Path = attrs.field(converter=path, validator=attrs.validators.instance_of(Path))
    #: A PEM file with the key; by default it is in the same file.
    key: Path | None = attrs.field(default=None, converter=path)
    #: A PEM file of authorities: clients must then show a certificate of theirs.
    clients: Path | None = attrs.field(default=None, converter=path)

    @property
    def chain(self) -> tuple[str, str]:
        """The files of the certificate and of the key."""
        return str(self.certificate), str(self.key or self.certificate)


@runtime_checkable
class Routed(Protocol):
    """A frontend that can also be seen where the API is served: a path, such as `/metrics`, and what answers there."""

    def routes(self, supervisor: Supervised) -> Mapping[str, ASGIApp]:
        """Return ASGI applications by their paths; `supervisor` is asked as a supervisor is, from any event loop."""


def _listen(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError("write an address and a port, as 127.0.0.1:3000 or [::1]:3000")


def _prefix(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", value):
        raise ValueError("write a path such as /api/recovery, without a slash at its end")


def _proxies(instance: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    networks(value)


@attrs.frozen(kw_only=True)
class Http:
    """Serves the API under `/api/recovery`."""

    kind: ClassVar[str] = "http"

    #: The address and the port to listen at. One that is not loopback needs a token.
    listen: str = attrs.field(default="127.0.0.1:3000", validator=_listen)
    #: The certificate to speak TLS with; without it the API is plain HTTP.
    tls: ServedTls | None = None
    #: Whether programs on this machine may act without a token, as long as there is none at all.
    loopback_writes: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    #: The path under which the API stands.
    prefix: str = attrs.field(default=PREFIX, validator=_prefix)
    #: The host names that are answered; by default loopback's and that of `listen`, or any where that is every address.
    hosts: tuple[str, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(texts))
    #: Other sites whose pages may ask, as `https://dashboard.example`.
    origins: tuple[str, ...] = attrs.field(default=(), converter=texts)
    #: Addresses or networks of proxies whose `X-Forwarded-For` is believed.
    proxies: tuple[str, ...] = attrs.field(default=(), converter=texts, validator=_proxies)

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]") or "127.0.0.1", int(port)

    async def serve(self, supervisor: Supervisor) -> None:
        """Serve until cancelled. What would be unsafe is not served, until it is safe; nor what has no address yet."""
        tokens = supervisor.journal.parent / FILE if supervisor.journal is not None else None
        listening = await self._opened(tokens)
        async with BlockingPortal() as portal:
            across = Across(supervisor, portal)
            app = self._app(across)
            config = self._config(app, self._beside(supervisor, across, app))
            running = _Running(config, app, listening, _Renewal(self.tls) if self.tls is not None else None)
            log.info("the API and its page are at %s", self._shown(listening))
            try:
                await running.until_ended(portal)
            finally:
                with anyio.CancelScope(shield=True):
                    await running.stop()

    def _shown(self, listening: socket.socket) -> str:
        """Return where it is, as one types it."""
        host, port = listening.getsockname()[:2]
        bracketed = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls is not None else 'http'}://{bracketed}:{port}{self.prefix}/"

    def _beside(self, supervisor: Supervisor, supervised: Across, app: RecoveryApp) -> list[Route]:
        """Return what the other frontends of the file show here, behind the same door."""
        found: dict[str, Route] = {}
        for name, frontend in getattr(supervisor, "frontends", {}).items():
            if frontend is self or not isinstance(frontend, Routed):
                continue
            for place, shown in frontend.routes(supervised).items():
                ours = place == "/" or f"{place}/".startswith(f"{self.prefix}/")
                if ours or place in found or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", place):
                    log.error("[%s] wants to be seen at %r, which it cannot be; everything else is", name, place)
                    continue
                found[place] = Route(place, app.beside(shown))
                log.info("[%s] is seen at %s, too", name, place)
        return list(found.values())

    def _app(self, supervised: Across) -> RecoveryApp:
        usual, room = Bounds(), most() // 2
        return recovery_app(
            supervised,
            loopback_writes=self.loopback_writes,
            hosts=self._hosts(),
            origins=self.origins,
            proxies=self.proxies,
            bounds=Bounds(streams=min(usual.streams, room), of_a_caller=min(usual.of_a_caller, room)),
        )

    def _hosts(self) -> tuple[str, ...] | None:
        if self.hosts is not None:
            return self.hosts
        host, _ = self.address
        with suppress(ValueError):
            if ip_address(host).is_unspecified:
                return None
        return ("localhost", "127.0.0.1", "::1", host_name(host))

    async def _opened(self, tokens: Path | None) -> socket.socket:
        """Return the socket that listens, as soon as there can be one: after a token, an interface, another's end."""
        told = ""
        while True:
            try:
                return await anyio.to_thread.run_sync(self._open, tokens)
            except NotServed as problem:
                if str(problem) != told:
                    told = str(problem)
                    log.error("%s (it is tried again every %g s; the fleet is watched meanwhile)", told, OPENED)
            await anyio.sleep(OPENED)

    def _open(self, tokens: Path | None) -> socket.socket:
        """Return the socket that listens. Blocks. Raises `NotServed`."""
        host, port = self.address
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as problem:
            raise NotServed(f"[http] listen: {host} is no address of this machine: {problem.strerror}") from problem
        family, _, _, _, address = found[0]
        if not is_loopback(ip_address(str(address[0]).partition("%")[0])):
            self._judge(tokens)
        # Not `create_server`: its sockets name no protocol, so asyncio sets no TCP_NODELAY; an answer then takes 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(256)
        except OSError as problem:
            listening.close()
            raise NotServed(f"[http] cannot listen at {self.listen}: {problem.strerror}") from problem
        return listening

    def _judge(self, tokens: Path | None) -> None:
        """Refuse to be reached from other machines without a token. Raises `NotServed`."""
        book = TokenBook(TokenFile(tokens) if tokens is not None else None)
        if tokens is not None:
            book.read()
        if not book.used:
            raise NotServed(
                f"[http] listen = {self.listen!r} can be reached from other machines, and there is no token: "
                "make one with `selfheal token create NAME --scope read`, or listen at 127.0.0.1"
            )
        if self.tls is None:
            log.warning("[http] tokens cross the network unencrypted: set `tls`, or put a proxy that does in front")

    async def _home(self, request: Request) -> Response:
        """Lead who types the address alone to the page; relatively, because a proxy may have put a path before ours."""
        return RedirectResponse(f"{self.prefix.lstrip('/')}/", status_code=307, headers={"cache-control": "no-cache"})

    async def _nothing(self, request: Request, problem: Exception) -> Response:
        """Say where the API is, to who asks beside it."""
        return problem_response(
            Refusal("unknown_request", f"there is no such path; the API is at {self.prefix or '/'}")
        )

    def _config(self, app: RecoveryApp, beside: list[Route]) -> uvicorn.Config:
        tls: dict[str, Any] = {}
        if self.tls is not None:
            certificate, key = self.tls.chain
            tls = {"ssl_certfile": certificate, "ssl_keyfile": key}
            if self.tls.clients is not None:
                tls |= {"ssl_ca_certs": str(self.tls.clients), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return uvicorn.Config(
            Starlette(
                routes=[*beside, *([Route("/", self._home)] if self.prefix else []), Mount(self.prefix, app=app)],
                exception_handlers={404: self._nothing},
            ),
            loop="asyncio",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEPT,
            timeout_graceful_shutdown=STOPPED,
            h11_max_incomplete_event_size=32 << 10,
            **tls,
        )


def most() -> int:
    """Return how many connections there may be: checks need descriptors, too, and find none where we take them all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = CONNECTIONS if soft == resource.RLIM_INFINITY else (soft - OTHERS) // 2
    return max(32, min(CONNECTIONS, left))


class _Connection(H11Protocol):
    """A connection of a server that has only so many: uvicorn itself takes in whatever comes, and then says 503."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.most = most()

    def connection_made(self, transport: Any) -> None:
        """Begin; end another connection where there are too many, of which the one that begins is the last choice."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            resting = [one for one in self.connections if _rests(one) and one is not self]
            # Who never came to a request first, and then who came first; a set has no order, so they are numbered.
            resting.sort(key=lambda one: (getattr(one, "cycle", None) is not None, getattr(one, "number", 0)))
            ended: Any = resting[0] if resting else self
            ended.transport.abort()
            self.connections.discard(ended)
        self.number = next(_NUMBERS)


_NUMBERS: Final = count()


def _rests(connection: object) -> bool:
    """Whether no request is under way."""
    cycle = getattr(connection, "cycle", None)
    return cycle is None or bool(getattr(cycle, "response_complete", False))


class _Renewal:
    """A certificate that is renewed while it is in use: whoever connects after that is shown the new one."""

    def __init__(self, tls: ServedTls) -> None:
        self._tls = tls
        self._seen: object = self._stamp()
        self._unusable = False

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        found = [Path(name).stat() for name in self._tls.chain]
        return tuple((one.st_ino, one.st_mtime_ns) for one in found)

    def look(self, context: ssl.SSLContext | None) -> None:
        """Take over new files; while they do not fit together, the old ones count. Blocks."""
        try:
            seen = self._stamp()
            if seen == self._seen or context is None:
                return
            # The context in use would be left with half of a pair that does not fit.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._tls.chain)
            context.load_cert_chain(*self._tls.chain)
        except OSError as problem:
            if not self._unusable:
                log.error("[http] the certificate has changed and cannot be used, so the old one is: %s", problem)
            self._unusable = True
        else:
            self._seen, self._unusable = seen, False
            log.info("[http] the certificate was renewed")


class _Server(uvicorn.Server):
    """A server that ends connections which never come to a request: uvicorn itself has no deadline for a head."""

    def __init__(self, config: uvicorn.Config, renewal: _Renewal | None) -> None:
        super().__init__(config)
        self._idle: dict[object, float] = {}
        self._renewal = renewal

    async def on_tick(self, counter: int) -> bool:
        """Do what is done every tenth of a second, and look after the connections every second."""
        if counter % 10 == 0:
            self._end_idle(time.monotonic())
        if self._renewal is not None and counter % RENEWED == 0:
            await anyio.to_thread.run_sync(self._renewal.look, self.config.ssl)
        return await super().on_tick(counter)

    def _end_idle(self, now: float) -> None:
        before, self._idle = self._idle, {}
        for connection in self.server_state.connections:
            if not _rests(connection):
                continue
            since = self._idle[connection] = before.get(connection, now)
            transport = getattr(connection, "transport", None)
            if now - since > BEGUN and transport is not None:
                transport.abort()


class _Running:
    """The server in its thread."""

    def __init__(
        self, config: uvicorn.Config, app: RecoveryApp, listening: socket.socket, renewal: _Renewal | None
    ) -> None:
        self._server = _Server(config, renewal)
        self._app = app
        self._listening = listening
        self._ended = anyio.Event()
        self._problem: BaseException | None = None
        self._thread: threading.Thread | None = None

    async def until_ended(self, portal: BlockingPortal) -> None:
        """Start, and return when it has ended by itself. Raises what ended it."""

        def run() -> None:
            try:
                self._server.run(sockets=[self._listening])
            except BaseException as problem:  # noqa: BLE001  # a server that cannot start raises SystemExit; it is told
                self._problem = problem
            finally:
                with suppress(RuntimeError):
                    portal.call(self._ended.set)

        self._thread = threading.Thread(target=run, name="selfheal-http", daemon=True)
        self._thread.start()
        await self._ended.wait()
        if self._problem is not None:
            raise NotServed(f"[http] the server has ended: {self._problem!r}") from self._problem

    async def stop(self) -> None:
        """Stop: the streams end, open requests have a moment, and then it is over."""
        self._app.feed.closing = True
        self._server.should_exit = True
        if self._thread is None:
            self._listening.close()
            return
        with anyio.move_on_after(STOPPED + 2.0):
            await self._ended.wait()
        if not self._ended.is_set():
            self._server.force_exit = True
            log.warning("the server of the API did not stop in time, and is left behind")
        self._listening.close()
