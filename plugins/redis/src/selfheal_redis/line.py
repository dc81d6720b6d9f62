"""One connection to a Redis through its driver, for the deep check and the actions.

Owns what the driver has to be told (no retries, no time-outs, protocol 2, no decoding) and the translation of what it
raises. Its connection is used below its client: answers come raw, as `replies` has them, so that one judge reads both
roads; nothing is asked twice; and what was cancelled is closed at once.

All time-outs are ours. With one of its own the driver sends through `asyncio.wait_for`, which on Python 3.11 loses a
cancellation that comes while the send is done already: an action went on for thousands of commands after its end.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from inspect import signature
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, InvalidResponse, RedisError, ResponseError

from selfheal.plugins import Context
from selfheal.wire import Tls
from selfheal_redis.address import Address
from selfheal_redis.judge import NO_PLACE
from selfheal_redis.replies import NotRedis, Refusal, Reply

MARGIN: Final = 0.9
"""Share of the time left that one answer may take, so that our own words about a slow server are heard."""

NAME: Final = "selfheal"
"""How our connections are called in CLIENT LIST, and spared when clients are killed."""


SILENT: Final[dict[str, Any]] = (
    {"driver_info": None}
    if "driver_info" in signature(AbstractConnection).parameters
    else {"lib_name": None, "lib_version": None}
)
"""Has the driver not introduce itself. It would write twice before it reads, and a server without a place for us has
hung up by then: what the server said would be lost behind the error of the second write."""


class Refused(Exception):
    """The server answered a login, or a command that had to succeed, with an error."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.text)


class Line:
    """A connection that asks one thing after another. Not for two tasks at once."""

    def __init__(self, connection: Any, patience: float) -> None:
        self._connection = connection
        self.patience = patience
        """Seconds that each answer may take."""
        self.checks = 0
        """How many checks it has carried, for whoever keeps it."""
        self.mark: object = None
        """What it was dialled for, for whoever keeps it."""

    async def ask(self, *words: str | bytes | int) -> Reply:
        """Return the answer to one command; an error is a `Refusal`. Raises OSError, `Refused`, `NotRedis`.

        LOADING and NOAUTH are raised as `Refused`: the driver hangs up when it hears them.
        """
        try:
            async with asyncio.timeout(self.patience):
                await self._connection.send_command(*words, check_health=False)
                return await self._hear()
        except RedisError as problem:
            raise translated(problem) from None

    async def must(self, *words: str | bytes | int) -> Reply:
        """Return the answer to one command. Raises `Refused` when it is an error, and what `ask` raises."""
        reply = await self.ask(*words)
        if isinstance(reply, Refusal):
            raise Refused(reply)
        return reply

    async def ask_all(self, commands: list[tuple[str | bytes, ...]]) -> list[Reply]:
        """Send several commands in one go and return their answers. Raises what `ask` raises."""
        packed = self._connection.pack_commands(commands)
        try:
            async with asyncio.timeout(self.patience):
                await self._connection.send_packed_command(packed, check_health=False)
                return [await self._hear() for _ in commands]
        except RedisError as problem:
            raise translated(problem) from None

    async def _hear(self) -> Reply:
        try:
            reply: Reply = await self._connection.read_response(disable_decoding=True)
        except ResponseError as problem:
            return refusal_of(problem)
        return reply

    async def aclose(self) -> None:
        """Hang up; what has not arrived is lost."""
        await self._connection.disconnect(nowait=True)
        await asyncio.sleep(0)  # the transport lets its descriptor go at the loop's next turn


@asynccontextmanager
async def dialled(address: Address, tls: Tls, context: Context, *, within: float = math.inf) -> AsyncIterator[Line]:
    """Connect and log in, for the length of the block. Raises what `dial` raises."""
    line = await dial(address, tls, context, within=within)
    try:
        yield line
    finally:
        await line.aclose()


async def dial(address: Address, tls: Tls, context: Context, *, within: float = math.inf) -> Line:
    """Connect and log in; connecting, and each answer after it, may take `within` seconds, or what is left.

    Raises OSError, `Refused` when the server does not let us in, `NotRedis`.
    """
    secured = await context.blocking(secured_by, tls) if address.secure else None
    connection = _connection(address, tls, secured)
    line = Line(connection, min(within, MARGIN * context.remaining))
    try:
        async with asyncio.timeout(line.patience):
            await connection.connect()
        await line.ask("CLIENT", "SETNAME", NAME)  # who may not name himself remains without a name
    except RedisError as problem:
        await line.aclose()
        raise translated(problem) from None
    except BaseException:
        await line.aclose()
        raise
    return line


def _connection(address: Address, tls: Tls, secured: ssl.SSLContext | None) -> Any:
    told: dict[str, Any] = {
        "db": address.database,
        "username": address.user,
        "password": address.password,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "health_check_interval": 0,
        **SILENT,
    }
    if address.path is not None:
        return UnixDomainSocketConnection(path=address.path, **told)
    told |= {"host": address.host, "port": address.port}
    if secured is not None:
        return _Secured(secured=secured, server_name=tls.server_name or str(address.host), **told)
    return Connection(**told)


class _Secured(SSLConnection):
    """A connection of the driver with a context that was made in a thread, and a name to verify of its own."""

    def __init__(self, *, secured: ssl.SSLContext, server_name: str, **told: Any) -> None:
        super().__init__(**told)
        self.ssl_context.context = secured
        self._server_name = server_name

    async def disconnect(self, *args: Any, **told: Any) -> None:
        """Hang up without a goodbye: asyncio waits 30 s for that of a peer that hangs, its descriptor open."""
        writer = self._writer
        await super().disconnect(*args, **told)
        if writer is not None:
            writer.transport.abort()

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._server_name}


def secured_by(tls: Tls) -> ssl.SSLContext:
    """Return a context for these options. Reads files and takes 20 ms: call it in a thread. Raises OSError."""
    made = ssl.create_default_context(cafile=None if tls.authority is None else str(tls.authority))
    if not tls.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        made.load_cert_chain(str(tls.certificate))
    return made


# -- what the driver raises ------------------------------------------------------------------------------------------


def translated(problem: RedisError) -> Exception:
    """Return what an exception of the driver means: an OSError, a `Refused`, or `NotRedis`.

    The driver wraps: what says most lies inside, as the cause or the context.
    """
    for inner in _inside(problem):
        if NO_PLACE in str(inner):
            return Refused(Refusal.of(f"ERR {inner}"))
        if isinstance(inner, AuthenticationError | BusyLoadingError | ResponseError):
            return Refused(refusal_of(inner))
        if isinstance(inner, InvalidResponse):
            return NotRedis("not the answer of a Redis")
        if isinstance(inner, OSError):
            return inner
    return ConnectionError(f"{problem}"[:200])


def _inside(problem: BaseException) -> Iterator[BaseException]:
    inner: BaseException | None = problem
    for _ in range(8):
        if inner is None:
            return
        yield inner
        inner = inner.__cause__ or inner.__context__


_WORDS: Final = {
    "BusyLoadingError": "LOADING",
    "NoPermissionError": "NOPERM",
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
}
"""The driver cuts the first word off the errors that it has a class for; this is the way back."""


def refusal_of(problem: Exception) -> Refusal:
    """Return the error of the server that an exception of the driver stands for."""
    text = str(problem)
    if isinstance(problem, AuthenticationError):
        word = "NOAUTH" if text.startswith("Authentication required") else "WRONGPASS"
    else:
        word = _WORDS.get(type(problem).__name__, "")
    return Refusal.of(f"{word} {text}".strip())
