"""The application's own pools, renewed after every one of their connections was cut by the server."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import anyio
import attrs
import psycopg_pool
import pytest
import sqlalchemy
from tests.servers import free_port
from tests.stack.postgres import Server

from selfheal_postgres import pools

pytestmark = [pytest.mark.server, pytest.mark.real_time]


@attrs.frozen(kw_only=True)
class Call:
    """What the callbacks read of an action's context."""

    remaining: float = 5.0


def context(remaining: float = 5.0) -> Any:
    return Call(remaining=remaining)


def cut(server: Server) -> None:
    """End every session of the application, as a restart of the server does."""
    server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'watcher'")


def alchemy(server: Server, driver: str = "psycopg") -> str:
    return server.url().replace("postgresql://", f"postgresql+{driver}://")


def test_a_pool_is_renewed(primary: Server) -> None:
    with psycopg_pool.ConnectionPool(primary.url(), min_size=2, max_size=4, open=True) as pool:
        pool.wait(10.0)
        cut(primary)
        pools.renew_pool(pool)(context())
        for _ in range(4):
            with pool.connection(timeout=5.0) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_async_pool_is_renewed(primary: Server) -> None:
    async def run() -> None:
        pool = psycopg_pool.AsyncConnectionPool(primary.url(), min_size=2, max_size=4, open=False)
        async with pool:
            await pool.wait(10.0)
            cut(primary)
            await pools.renew_async_pool(pool)(context())
            for _ in range(4):
                async with pool.connection(timeout=5.0) as connection:
                    await connection.execute("SELECT 1")

    anyio.run(run, backend="asyncio")


def test_an_engine_is_renewed(primary: Server) -> None:
    engine = sqlalchemy.create_engine(alchemy(primary), pool_size=2)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        cut(primary)
        pools.renew_engine(engine)(context())
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    finally:
        engine.dispose()


def test_an_async_engine_is_renewed(primary: Server) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    async def run() -> None:
        engine = create_async_engine(alchemy(primary), pool_size=2)
        try:
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
            cut(primary)
            await pools.renew_async_engine(engine)(context())
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
        finally:
            await engine.dispose()

    anyio.run(run, backend="asyncio")


def test_a_renewal_that_finds_no_server_fails_within_its_time(server: Server) -> None:
    """Nobody listens: the step must fail, so that the next one of the ladder gets its turn."""
    url = server.url().replace(str(server.port), str(free_port()))
    began = time.monotonic()
    with psycopg_pool.ConnectionPool(url, min_size=0, max_size=2, open=True, reconnect_timeout=0.5) as pool:
        with pytest.raises(psycopg_pool.PoolTimeout):
            pools.renew_pool(pool)(context(remaining=0.5))
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with pytest.raises(sqlalchemy.exc.OperationalError):
        pools.renew_engine(engine)(context())
    engine.dispose()
    assert time.monotonic() - began < 10.0


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys, selfheal_postgres.pools as p; "
        "assert not {'psycopg', 'psycopg_pool', 'sqlalchemy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60.0)
