"""The road of psycopg: one connection, opened anew, that ends at once when it is told to.

Owns what psycopg's errors mean. Importing this module imports the driver (see the README for what it costs); nothing
in the package does so before a deep check or an action runs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Final, NoReturn, TypeVar

import psycopg
from psycopg.errors import ConnectionTimeout, QueryCanceled

from selfheal import Cause, CheckResult, Verdict
from selfheal.plugins import Context
from selfheal.wire import failing
from selfheal_postgres.address import Address
from selfheal_postgres.causes import from_server
from selfheal_postgres.protocol import ServerError

T = TypeVar("T")

SHORTER: Final = 0.1
"""Seconds that the driver's own time-out is shorter than ours, so that its words are heard."""


class _Prompt(psycopg.AsyncConnection[tuple[Any, ...]]):
    """A connection that is closed when a question is cancelled.

    The driver would first ask the server to cancel, for up to 5 seconds: a frozen one does not hear it.
    """

    async def _try_cancel(self, *, timeout: float = 5.0) -> NoReturn:
        self.pgconn.finish()
        raise QueryCanceled("cancelled")  # as after a cancellation that the server has confirmed


class Session:
    """One open connection, in autocommit."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self._connection = connection

    async def value(self, sql: str, *arguments: object) -> Any:
        """Return the first value of the first row of the last answer. Raises `psycopg.Error`."""
        row = await self.row(sql, *arguments)
        return row[0] if row else None

    async def row(self, sql: str, *arguments: object) -> tuple[Any, ...] | None:
        """Return the first row of the last answer. Raises `psycopg.Error`."""
        rows = await self.rows(sql, *arguments)
        return rows[0] if rows else None

    async def rows(self, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Return the rows of the last answer; without arguments `sql` may be several statements."""
        return await _promptly(self._rows(sql, arguments))

    async def _rows(self, sql: str, arguments: tuple[object, ...]) -> list[tuple[Any, ...]]:
        cursor = await self._connection.execute(sql.encode(), arguments or None)
        while cursor.nextset():
            pass
        return await cursor.fetchall() if cursor.description is not None else []


@asynccontextmanager
async def session(
    address: Address, context: Context, *, name: str = "selfheal", within: float = inf
) -> AsyncIterator[Session]:
    """Log in, `within` so many seconds, for the length of the block.

    Raises `psycopg.Error`; `why_not` says what it means.
    """
    given: Mapping[str, Any] = address.parameters() | {"application_name": name}
    left = min(within, context.remaining - SHORTER)
    seconds = max(2, int(left))  # libpq takes whole seconds, two at least; ours ends it anyway
    connection = await _promptly(_Prompt.connect(**given, connect_timeout=seconds, autocommit=True))
    try:
        yield Session(connection)
    finally:
        connection.pgconn.finish()  # says goodbye and closes, without waiting for an answer


async def _promptly(doing: Coroutine[Any, Any, T]) -> T:
    """Await the driver, and when cancelled, cancel it until it has ended: it may take the first for a wish."""
    task = asyncio.ensure_future(doing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        if not task.cancelled():
            task.exception()  # it is taken, so that nobody warns that it never was
        raise


# -- what its errors mean --------------------------------------------------------------------------------------------


def server_error(problem: psycopg.Error) -> ServerError | None:
    """Return what the server said, or None where it said nothing: the connection broke, or never was."""
    if problem.sqlstate is None:
        return None
    diagnostic = problem.diag
    return ServerError(
        sqlstate=problem.sqlstate,
        message=diagnostic.message_primary or str(problem),
        severity=diagnostic.severity_nonlocalized or "ERROR",
    )


def broken(problem: psycopg.Error, exhausted: Verdict = Verdict.WARNING) -> CheckResult:
    """Return what an error says that came after the log-in."""
    said = server_error(problem)
    if said is not None:
        return from_server(said, exhausted)
    return failing(Cause.UNREACHABLE, f"the connection broke: {line(problem)}")


def without_asking(problem: psycopg.Error) -> CheckResult | None:
    """Return why a connection could not be made, where the driver's own words tell; else the server must be asked.

    "Cannot allocate memory" and the like do not tell: they may be the server's words about itself.
    """
    text = line(problem)
    if isinstance(problem, ConnectionTimeout):
        return failing(Cause.TIMEOUT, "no connection within the time")
    if isinstance(problem.__context__, socket.gaierror) or text.startswith("failed to resolve host"):
        return failing(Cause.DNS, text)
    return None


def line(problem: psycopg.Error) -> str:
    """Return an error of libpq as one line, without the address, which is known."""
    text = " ".join(str(problem).split()).removeprefix("connection failed: ").removeprefix("connection is bad: ")
    return text.rpartition(" failed: ")[2][:300] if " failed: " in text else text[:300]
