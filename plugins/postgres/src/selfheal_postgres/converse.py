"""The light road on the plugin loop: what a driver does not say is asked in the server's own protocol.

libpq keeps the SQLSTATE of a failed connect to itself, and its PQping, which would tell "starting" from "down", is
called by psycopg's binary package with the interpreter locked: against a silent peer that stops the whole process for
two seconds. The same conversation as that of the light check stops nobody, ends when it is cancelled, and knows more.
"""

from __future__ import annotations

import asyncio
from typing import Final

from selfheal import CheckResult
from selfheal.wire import PeerClosed, Talk
from selfheal_postgres.address import Address

READ: Final = 65536


async def converse(talk: Talk, address: Address) -> CheckResult:
    """Hold a conversation on a connection of its own, and return its result. Raises `OSError` and `PeerClosed`."""
    if address.socket is not None:
        reader, writer = await asyncio.open_unix_connection(address.socket)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        said = next(talk)
        while isinstance(said, bytes):
            writer.write(said)
            heard = await reader.read(READ)
            said = talk.send(heard) if heard else talk.throw(PeerClosed("closed the connection"))
        return said
    except StopIteration as stop:
        result: CheckResult = stop.value
        return result
    finally:
        talk.close()
        writer.transport.abort()
