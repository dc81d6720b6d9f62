"""The callbacks that renew an application's own driver, with real pools on a real Neo4j that comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import neo4j as driver
import pytest
from tests.stack.neo4j import PASSWORD, USER, Neo4j

from selfheal_neo4j.pools import RENEWED, renew_async_driver, renew_driver

pytestmark = [pytest.mark.server, pytest.mark.real_time]

AUTH = (USER, PASSWORD)
AT_ONCE = 5
CONTEXT: Any = None  # the callbacks ask nothing of it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neo4j]:
    one = Neo4j(tmp_path_factory.mktemp("neo4j"))
    one.start()
    yield one
    one.kill()


def comes_back(server: Neo4j) -> None:
    server.kill()
    server.start()


async def asked_by_many(pool: driver.AsyncDriver) -> list[BaseException | None]:
    """Ask with as many connections at a time, each held until all have one; return what each raised."""
    together = asyncio.Barrier(AT_ONCE)

    async def ask() -> None:
        async with pool.session() as session, await session.begin_transaction() as held:
            await (await held.run("RETURN 1")).consume()
            await together.wait()

    return await asyncio.gather(*(ask() for _ in range(AT_ONCE)), return_exceptions=True)


def test_an_async_pool_full_of_dead_connections_works_again(server: Neo4j) -> None:
    async def body() -> None:
        async with driver.AsyncGraphDatabase.driver(server.uri, auth=AUTH) as pool:
            assert not any(await asked_by_many(pool))
            await asyncio.to_thread(comes_back, server)
            assert await renew_async_driver(pool)(CONTEXT) == RENEWED
            assert not any(await asked_by_many(pool))

    asyncio.run(body())


def test_a_pool_full_of_dead_connections_works_again(server: Neo4j) -> None:
    def ask(pool: driver.Driver, together: threading.Barrier) -> None:
        with pool.session() as session, session.begin_transaction() as held:
            held.run("RETURN 1").consume()
            together.wait(10.0)  # until all have one

    with driver.GraphDatabase.driver(server.uri, auth=AUTH) as pool, ThreadPoolExecutor(AT_ONCE) as threads:

        def asked_by_many() -> None:
            together = threading.Barrier(AT_ONCE)
            list(threads.map(ask, [pool] * AT_ONCE, [together] * AT_ONCE))

        asked_by_many()
        comes_back(server)
        assert renew_driver(pool)(CONTEXT) == RENEWED
        asked_by_many()
        server.kill()
        with pytest.raises(driver.exceptions.ServiceUnavailable):
            renew_driver(pool)(CONTEXT)
