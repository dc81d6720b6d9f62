"""HTTP to one Docker Engine, over its unix socket or over TCP to a socket proxy.

Owns the connection, the total deadline, the byte cap, and the words for what went wrong on the way. What an answer
means is its callers' business. One connection for each exchange: on a unix socket that costs a tenth of a millisecond,
and a cancelled call has nothing to give back.

There is no SDK here. Docker's own is synchronous: its calls live in the service's one thread, where a daemon that
drips or is frozen holds them beyond every deadline, and where listening to events would leave no thread to inspect
with. On asyncio a cancelled call closes its socket at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import attrs
import h11

from selfheal.errors import ActionFailed
from selfheal.plugins import Context

DEFAULT: Final = "unix:///var/run/docker.sock"
"""Where Docker listens when nobody has said otherwise."""

LIMIT: Final = 2 << 20
"""Bytes of an answer that are read. One container's data is about 10 kB, a list of them 2 kB each."""

MARGIN: Final = 0.95
"""Share of the time left that we use ourselves, so that our own words about a silent daemon are heard."""

_CHUNK: Final = 1 << 16


class Refused(ActionFailed):
    """Docker answered, and its answer was no. `status` is HTTP's."""

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)


def line(text: object, limit: int = 200) -> str:
    """Return `text` as one printable line of at most `limit` characters."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", str(text)).strip()
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


# -- where it listens ------------------------------------------------------------------------------------------------


def check_host(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    """Validate the option `host`: attrs calls this."""
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name}: give a text such as {DEFAULT!r}")
    parts = urlsplit(value)
    if parts.scheme == "unix":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError(f"{attribute.name}: {value!r} needs an absolute path: unix:///run/user/1000/docker.sock")
        return
    if parts.scheme == "ssh":
        raise ValueError(
            f"{attribute.name}: ssh is not spoken here; forward the socket "
            "(ssh -L /run/selfheal/other.sock:/var/run/docker.sock HOST) and name unix:///run/selfheal/other.sock"
        )
    if parts.scheme != "tcp":
        raise ValueError(f"{attribute.name}: {value!r} must begin with unix:// or tcp://")
    _check_tcp(attribute.name, value)


def _check_tcp(name: str, value: str) -> None:
    parts = urlsplit(value)
    try:
        port, host = parts.port, parts.hostname
    except ValueError as problem:
        raise ValueError(f"{name}: {value!r}: {problem}") from None
    if not host or port is None or parts.path not in ("", "/") or parts.username is not None:
        raise ValueError(f"{name}: {value!r} must be tcp://HOST:PORT and nothing else")
    if port == 2376:
        raise ValueError(f"{name}: TLS is not spoken here; put a socket proxy beside the Engine, or forward its socket")
    try:
        outside = ipaddress.ip_address(host).is_global
    except ValueError:
        return
    if outside:
        raise ValueError(
            f"{name}: {host} is a public address, and whoever can reach Docker without TLS there is root on that "
            "machine; use a socket proxy on loopback or on an inner network"
        )


# -- one exchange ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Reply:
    """What Docker said."""

    status: int
    body: bytes = attrs.field(default=b"", repr=False)

    def json(self) -> Any:
        """Return the body as JSON. Raises `ActionFailed` when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise ActionFailed(f"Docker's answer is no JSON: {line(self.body[:80].decode(errors='replace'))}") from None

    def wanted(self, *statuses: int) -> Reply:
        """Return this reply if its status is one of these. Raises `Refused` with Docker's own words otherwise."""
        if self.status in statuses:
            return self
        said = self.body.decode(errors="replace")
        try:
            message = json.loads(said)["message"]
        except (ValueError, KeyError, TypeError):
            message = said or "it did not say why"
        text = f"Docker refused ({self.status}): {line(message)}"
        if self.status == 403:
            text += "; if this is a socket proxy, its settings do not allow it (see the README of selfheal-docker)"
        raise Refused(text, status=self.status)


@attrs.frozen
class Docker:
    """One Docker Engine. No exchange takes more than `longest` seconds, however much time its caller has."""

    host: str
    longest: float = 3600.0

    async def get(self, context: Context, path: str, **query: str) -> Reply:
        """Ask for something that changes nothing. Raises `OSError` when there is no answer."""
        return await self._exchange(context, "GET", path, query, None)

    async def post(self, context: Context, path: str, body: Mapping[str, Any] | None = None, **query: str) -> Reply:
        """Have something done; return when Docker has done it. Raises `OSError` when there is no answer.

        When this is cancelled, Docker goes on with what it has begun.
        """
        return await self._exchange(context, "POST", path, query, body)

    async def _exchange(
        self, context: Context, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None
    ) -> Reply:
        async with self._within(context), self._connected(context) as wire:
            status = await wire.ask(method, await wire.versioned(path), query, body)
            return Reply(status=status, body=await wire.whole())

    @asynccontextmanager
    async def events(self, context: Context, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[object]]:
        """Listen to Docker's events, as JSON: what happens after this was entered will be heard.

        Docker ends them when `query` has an `until` that is past. Raises `OSError` when there is no answer, `Refused`
        when they are not allowed.
        """
        async with self._connected(context) as wire:
            async with self._within(context):
                status = await wire.ask("GET", await wire.versioned("/events"), query, None)
                if status != 200:
                    Reply(status=status, body=await wire.whole()).wanted(200)
            yield self._read(wire)

    async def began(self, context: Context) -> float | None:
        """Return when this Engine was started, as UNIX time; None where that cannot be told.

        No answer of its API says so. The kernel knows which process listens on a unix socket, and since when it runs.
        """
        if not self.host.startswith("unix:"):
            return None
        async with self._within(context), self._connected(context) as wire:
            pid = wire.peer()
        if pid == 1 and self.host == DEFAULT:  # systemd opened the socket and handed it over
            pid = _written_pid()
        return _process_began(pid)

    async def _read(self, wire: _Wire) -> AsyncIterator[object]:
        async for text in wire.lines():
            try:
                yield json.loads(text)
            except ValueError:
                raise ConnectionError(f"{self.host} sent an event that is no JSON") from None

    @asynccontextmanager
    async def _within(self, context: Context) -> AsyncIterator[None]:
        seconds = min(context.remaining * MARGIN, self.longest)
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise TimeoutError(f"Docker at {self.host} gave no answer in {seconds:.3g} s") from None

    @asynccontextmanager
    async def _connected(self, context: Context) -> AsyncIterator[_Wire]:
        parts = urlsplit(self.host)
        try:
            if parts.scheme == "unix":
                reader, writer = await asyncio.open_unix_connection(parts.path)
            else:
                address = await _resolved(context, parts.hostname or "", parts.port or 0)
                reader, writer = await asyncio.open_connection(address, parts.port)
        except TimeoutError:
            raise
        except OSError as problem:
            raise _explained(problem, self.host) from None
        try:
            yield _Wire(reader=reader, writer=writer, host=self.host)
        except OSError as problem:
            # A broken connection says nothing by itself; what we have worded already stays as it is.
            raise problem if not problem.errno else type(problem)(problem.errno, f"{self.host}: {problem}") from None
        finally:
            writer.transport.abort()


def _written_pid() -> int:
    try:
        return int(Path("/run/docker.pid").read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _process_began(pid: int) -> float | None:
    """Return when a process was started, as UNIX time; None for one that is not Docker, or cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = stat.rpartition(")")
    if not name.endswith("(dockerd"):
        return None
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(rest.split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


async def _resolved(context: Context, host: str, port: int) -> str:
    """Return an address of `host`; a look-up that hangs is in this service's thread and in nobody else's way."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        found = await context.blocking(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
        return str(found[0][4][0])


def _explained(problem: OSError, host: str) -> OSError:
    """Return the same kind of error with words that help; its number decides what the house makes of it."""
    text = f"{host}: {problem.strerror or problem}"
    if isinstance(problem, PermissionError):
        text = (
            f"{host}: this process may not open Docker's socket; let selfheal run in the socket's group "
            "(SupplementaryGroups=docker: that is root), or name a socket proxy that allows only what is needed"
        )
    elif isinstance(problem, FileNotFoundError):
        text = f"{host}: there is no such socket; Docker does not run, or `host` is another one"
    elif isinstance(problem, ConnectionRefusedError):
        text = f"{host}: nobody listens there; Docker does not run"
    if isinstance(problem, socket.gaierror):
        return problem
    return type(problem)(problem.errno, text) if problem.errno else ConnectionError(text)


# -- the wire --------------------------------------------------------------------------------------------------------


@attrs.define(kw_only=True)
class _Wire:
    """One connection, and h11's view of it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    host: str
    http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.CLIENT))

    async def versioned(self, path: str) -> str:
        """Return `path` under the newest API this daemon speaks: unversioned paths are said to go away."""
        await self.ask("GET", "/_ping", {}, None)
        version = self._version
        await self.whole()
        if self.http.our_state is h11.MUST_CLOSE or self.http.their_state is not h11.DONE:
            raise ConnectionError(f"{self.host} ended the connection after a ping")
        self.http.start_next_cycle()
        return f"/v{version}{path}" if version else path

    _version: str = ""

    def peer(self) -> int:
        """Return the pid of the process that listens; 0 for one that cannot be seen from here."""
        socket_ = self.writer.get_extra_info("socket")
        credentials = socket_.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    async def ask(self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None) -> int:
        """Send a request and return the status of its answer."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = [("Host", "docker"), ("User-Agent", "selfheal")]
        if method == "POST":
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        target = quote(path, safe="/:._-~") + (f"?{urlencode(query)}" if query else "")
        sent = self.http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if content:
            sent += self.http.send(h11.Data(data=content)) or b""
        sent += self.http.send(h11.EndOfMessage()) or b""
        self.writer.write(sent)
        await self.writer.drain()
        while not isinstance(event := await self._next(), h11.Response):
            pass
        versions = [value.decode("ascii", "replace") for name, value in event.headers if name == b"api-version"]
        self._version = versions[0] if versions and re.fullmatch(r"\d{1,3}\.\d{1,3}", versions[0]) else ""
        return event.status_code

    async def whole(self) -> bytes:
        """Return the rest of the answer. Raises `ActionFailed` beyond the cap."""
        kept = bytearray()
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                kept += event.data
                if len(kept) > LIMIT:
                    raise ActionFailed(f"{self.host} answers more than {LIMIT} bytes")
        return bytes(kept)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of an answer as they come, until it ends."""
        rest = b""
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                *lines, rest = (rest + event.data).split(b"\n")
                for text in lines:
                    if text.strip():
                        yield text
                if len(rest) > LIMIT:
                    raise ConnectionError(f"{self.host} sent an event of more than {LIMIT} bytes")

    async def _next(self) -> h11.Event:
        """Return the next thing said. Raises `ConnectionError` when it is not HTTP, or is cut off."""
        try:
            while (event := self.http.next_event()) is h11.NEED_DATA:
                self.http.receive_data(await self.reader.read(_CHUNK))
        except h11.RemoteProtocolError as problem:
            raise ConnectionError(f"{self.host} does not answer as Docker does: {line(problem)}") from None
        if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise ConnectionError(f"{self.host} closed the connection in the midst of an answer")
        assert isinstance(event, h11.Event)
        return event
