"""The deep check: the same question through Neo4j's own driver, and every database.

The driver is told to wait no longer than we do, for each of the three things it waits for, and to try nothing twice.
Its exceptions are read for their code and their cause, never for their text: that may quote the URI.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from selfheal import Cause, CheckContext, CheckResult, PeerClosed, Verdict
from selfheal.wire import Talk, failing, read_exactly, secure, tls_trouble
from selfheal_neo4j.bolt import OFFER, SPEAKS_HTTP
from selfheal_neo4j.checks import UNSERVED, WHY, Address, Neo4jCheck, judge_databases, refused, unserved

if TYPE_CHECKING:
    from neo4j import AsyncDriver

MARGIN: Final = 0.9
"""Share of the time left that the driver is given."""

COMPONENTS: Final = "CALL dbms.components() YIELD name, versions, edition RETURN versions[0] AS version, edition"


def library() -> Any:
    """Return the driver's package, imported now. Raises ImportError."""
    return importlib.import_module("neo4j")


async def look(
    check: Neo4jCheck, context: CheckContext, end: Address, auth: Mapping[str, str], trusted: ssl.SSLContext | None
) -> CheckResult:
    """Return how the server and its databases are."""
    neo4j = library() if sys.modules.get("neo4j") else await context.blocking(library)
    if (trouble := await _knock(end, trusted)) is not None:
        return trouble
    host = f"[{end.host}]" if ":" in end.host else end.host
    began = context.remaining
    patience = max(0.001, began * MARGIN)
    options: dict[str, Any] = {} if trusted is None else {"ssl_context": trusted}
    driver: AsyncDriver = neo4j.AsyncGraphDatabase.driver(
        f"bolt://{host}:{end.port}",
        auth=None if auth["scheme"] == "none" else (auth["principal"], auth["credentials"]),
        connection_timeout=patience,
        connection_acquisition_timeout=patience,
        max_transaction_retry_time=0.0,
        max_connection_pool_size=1,
        telemetry_disabled=True,
        notifications_min_severity="OFF",
        user_agent="selfheal/1",
        **options,
    )
    result: CheckResult | None = None
    try:
        async with driver:
            result = await _looked(neo4j, check, context, driver, patience)
    except neo4j.exceptions.Neo4jError as problem:
        result = attrs.evolve(refused(str(problem.code)), details={"code": str(problem.code)[:120]})
    except (neo4j.exceptions.DriverError, OSError) as problem:
        # When its own deadline has passed the driver says SessionExpired, and no cause: the clock knows better.
        late = began - context.remaining >= patience * 0.98
        result = failing(Cause.TIMEOUT, "no answer in time") if late else unreached(problem)
    return result


async def _knock(end: Address, trusted: ssl.SSLContext | None) -> CheckResult | None:
    """Return why there is no speaking Bolt at an address; None where there is.

    The driver is sent only where somebody speaks Bolt: it leaves its socket open when it is cancelled while it connects
    or when TLS fails, and takes a greeting that comes in pieces for no Bolt.
    """
    talk = _greeting()
    if trusted is not None:  # asyncio's own TLS, too, leaves a transport open when the handshake fails
        talk = secure(talk, trusted, end.host)
    try:
        reader, writer = await asyncio.open_connection(end.host, end.port)
    except OSError as problem:
        return unreached(problem)
    try:
        result = await _turns(talk, reader, writer)
    finally:
        talk.close()
        writer.transport.abort()
    return None if result.verdict is Verdict.PASSING else result


def _greeting() -> Talk:
    """Offer versions of Bolt, and hear whether one is taken."""
    heard, _ = yield from read_exactly(4, (yield OFFER))
    if heard == b"HTTP":
        return failing(Cause.CONFIG, f"not Bolt: {SPEAKS_HTTP}")
    if heard[:2] != b"\0\0":
        return failing(Cause.ERROR, "not Bolt: it does not begin with a version")
    return CheckResult(Verdict.PASSING)


async def _turns(talk: Talk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> CheckResult:
    try:
        said = next(talk)
        while not isinstance(said, CheckResult):
            writer.write(said)
            try:
                heard = await reader.read(65536)
            except ConnectionError:
                heard = b""
            said = talk.send(heard) if heard else talk.throw(PeerClosed("closed the connection"))
    except StopIteration as stop:
        result: CheckResult = stop.value
        return result
    except PeerClosed as problem:
        return failing(Cause.UNREACHABLE, str(problem))
    return said


async def _looked(
    neo4j: Any, check: Neo4jCheck, context: CheckContext, driver: AsyncDriver, patience: float
) -> CheckResult:
    details: dict[str, str | int | float | bool | None] = {"database": check.database}
    code = ""
    try:
        _, rows = await _rows(neo4j, driver, "RETURN 1", check.database, patience)
        if rows != [[1]]:
            return failing(Cause.ERROR, "RETURN 1 is not answered with 1")
    except neo4j.exceptions.Neo4jError as problem:
        code = str(problem.code)
        if not code.endswith(UNSERVED):
            raise
    fields, rows = await _rows(neo4j, driver, WHY, "system", patience)
    result = judge_databases(fields, rows, check.database, writable=check.writable)
    if code:
        found = unserved(code, result, await context.blocking(check.room))
        result = attrs.evolve(found, details={**result.details, "code": code})
    else:
        _, rows = await _rows(neo4j, driver, COMPONENTS, "system", patience)
        if rows:
            details |= {"version": str(rows[0][0])[:60], "edition": str(rows[0][1])[:60]}
    return attrs.evolve(result, details={**details, **result.details})


async def _rows(
    neo4j: Any, driver: AsyncDriver, statement: str, database: str, patience: float
) -> tuple[list[str], list[list[Any]]]:
    """Run a statement that reads in a transaction of its own, once."""
    async with driver.session(database=database, default_access_mode=neo4j.READ_ACCESS) as session:
        result = await session.run(neo4j.Query(statement, timeout=patience))
        rows = [list(record.values()) async for record in result]
        return list(result.keys()), rows


def unreached(problem: BaseException) -> CheckResult:
    """Return what an exception of the driver means that is not the server's word; its text is never shown."""
    for seen in _chain(problem):
        if isinstance(seen, ssl.SSLError):
            return tls_trouble(seen)
        if isinstance(seen, socket.gaierror):
            return failing(Cause.DNS, "its name has no address")
        if isinstance(seen, TimeoutError):
            return failing(Cause.TIMEOUT, "no answer in time")
        if isinstance(seen, OSError) and seen.errno:
            return failing(Cause.UNREACHABLE, os.strerror(seen.errno))
    name = type(problem).__name__
    if name == "ServiceUnavailable":
        return failing(Cause.UNREACHABLE, "it closed the connection, or does not speak Bolt")
    cause = {"SessionExpired": Cause.UNREACHABLE, "IncompleteCommit": Cause.UNREACHABLE}.get(name, Cause.ERROR)
    return failing(cause, f"the driver gave up: {name}")


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and what it came from; a group of which each member failed is entered."""
    for _ in range(16):
        if problem is None:
            return
        yield problem
        if isinstance(problem, BaseExceptionGroup):
            problem = problem.exceptions[0]
        else:
            problem = problem.__cause__ or problem.__context__
