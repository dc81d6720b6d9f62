"""For embedding: callbacks that give an application's own pool a fresh start, as the step `reconnect`.

    @supervisor.action("database", "reconnect")   # or:
    supervisor.action("database", "reconnect")(renew_pool(pool))

Each closes what is idle, lets what is in use finish, and proves by one query that a new connection works; it raises
when none does. A psycopg_pool does so within what is left of the step's time; an engine has its own `connect_timeout`,
which should be shorter. Nothing is imported here: the pool brings its own library.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from selfheal.plugins import ActionContext

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool, ConnectionPool
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

Callback: TypeAlias = "Callable[[ActionContext], None]"
AsyncCallback: TypeAlias = "Callable[[ActionContext], Awaitable[None]]"


def renew_pool(pool: ConnectionPool) -> Callback:
    """Return a callback that renews a `psycopg_pool.ConnectionPool`; selfheal runs it in a thread."""

    def reconnect(context: ActionContext) -> None:
        pool.drain()
        pool.check()
        with pool.connection(timeout=context.remaining) as connection:
            connection.execute("SELECT 1")

    return reconnect


def renew_async_pool(pool: AsyncConnectionPool) -> AsyncCallback:
    """Return a callback that renews a `psycopg_pool.AsyncConnectionPool`, on the application's own loop."""

    async def reconnect(context: ActionContext) -> None:
        await pool.drain()
        await pool.check()
        async with pool.connection(timeout=context.remaining) as connection:
            await connection.execute("SELECT 1")

    return reconnect


def renew_engine(engine: Engine) -> Callback:
    """Return a callback that renews the pool of a SQLAlchemy `Engine`; selfheal runs it in a thread."""

    def reconnect(context: ActionContext) -> None:
        engine.dispose()
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")

    return reconnect


def renew_async_engine(engine: AsyncEngine) -> AsyncCallback:
    """Return a callback that renews the pool of a SQLAlchemy `AsyncEngine`, on the application's own loop."""

    async def reconnect(context: ActionContext) -> None:
        await engine.dispose()
        async with engine.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")

    return reconnect
