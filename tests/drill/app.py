"""The application of the drill: it holds real pools to the services, and serves requests that use each of them.

`python app.py PORT`, with the addresses of the services in its environment. It knows nothing of selfheal and imports
nothing of this repository. `POST /work?n=N` writes one thing into each service; `GET /health` reads from each. Both
answer 503 where something failed, and say what.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import urllib.parse
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import neo4j
import psycopg_pool
import redis.asyncio
import urllib3
from minio import Minio

PATIENCE = 1.0
"""Seconds that one service may take for one request."""


class Pools:
    """Connections to each service, opened when first needed and then kept."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._table = False

    def _keep(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    async def database(self, n: int | None) -> None:
        """Insert a row, or read."""

        def make() -> Any:
            url = os.environ["DATABASE_URL"] + "?connect_timeout=2"
            return psycopg_pool.AsyncConnectionPool(
                url,
                min_size=2,
                max_size=4,
                timeout=PATIENCE,
                reconnect_timeout=5.0,
                open=False,
                check=psycopg_pool.AsyncConnectionPool.check_connection,
            )

        pool = self._keep("database", make)
        await pool.open()
        async with pool.connection() as connection:
            if n is None:
                await connection.execute("SELECT 1")
                return
            if not self._table:
                await connection.execute("CREATE TABLE IF NOT EXISTS drill (n bigint PRIMARY KEY)")
            await connection.execute("INSERT INTO drill VALUES (%s) ON CONFLICT DO NOTHING", (n,))
        self._table = True

    async def redis(self, n: int | None) -> None:
        """Set a key, or read one."""
        client = self._keep("redis", lambda: redis.asyncio.from_url(os.environ["REDIS_URL"], socket_timeout=PATIENCE))
        await (client.get("drill:0") if n is None else client.set(f"drill:{n}", n))

    async def weaviate(self, n: int | None) -> None:
        """Create an object in Weaviate, by HTTP as its clients do, or ask whether it is ready."""

        def make() -> Any:
            url = urllib.parse.urlsplit(os.environ["WEAVIATE_URL"])
            return urllib3.HTTPConnectionPool(url.hostname or "", url.port, maxsize=4, timeout=PATIENCE, retries=False)

        pool = self._keep("weaviate", make)
        if n is None:
            answer = await asyncio.to_thread(pool.request, "GET", "/v1/.well-known/ready")
        else:
            body = {"class": "Drill", "id": f"00000000-0000-4000-8000-{n:012d}", "properties": {"n": n}}
            answer = await asyncio.to_thread(pool.request, "POST", "/v1/objects", json=body)
        if answer.status != 200:
            raise OSError(f"weaviate answered {answer.status}: {answer.data[:200]!r}")

    async def neo4j(self, n: int | None) -> None:
        """Create a node, or ask."""

        def make() -> Any:
            user = (os.environ["NEO4J_USER"], os.environ["NEO4J_PASSWORD"])
            uri = os.environ["NEO4J_URI"]
            return neo4j.AsyncGraphDatabase.driver(
                uri, auth=user, connection_timeout=PATIENCE, max_transaction_retry_time=PATIENCE
            )

        driver = self._keep("neo4j", make)
        await (driver.execute_query("RETURN 1") if n is None else driver.execute_query("MERGE (d:Drill {n: $n})", n=n))

    async def minio(self, n: int | None) -> None:
        """Put an object, or ask for the bucket."""

        def make() -> Minio:
            patience = urllib3.Timeout(connect=PATIENCE, read=PATIENCE)
            return Minio(
                os.environ["MINIO_ENDPOINT"],
                access_key=os.environ["MINIO_ACCESS_KEY"],
                secret_key=os.environ["MINIO_SECRET_KEY"],
                secure=False,
                region="us-east-1",
                http_client=urllib3.PoolManager(timeout=patience, maxsize=4, retries=False),
            )

        client = self._keep("minio", make)
        if n is None:
            await asyncio.to_thread(client.bucket_exists, "drill")
        else:
            await asyncio.to_thread(client.put_object, "drill", f"{n}", BytesIO(b"drill"), 5)

    async def everywhere(self, n: int | None) -> dict[str, str]:
        """Do one thing in each service that is asked for; return what went wrong where."""

        async def one(name: str) -> tuple[str, str]:
            work: Callable[[int | None], Awaitable[None]] = getattr(self, name)
            try:
                await asyncio.wait_for(work(n), PATIENCE)
            except Exception as problem:  # noqa: BLE001 - an application answers, whatever its drivers raise
                return name, f"{type(problem).__name__}: {problem}"[:200]
            return name, ""

        said = await asyncio.gather(*map(one, os.environ["DRILL_SERVICES"].split(",")))
        return {name: trouble for name, trouble in said if trouble}


async def answer(pools: Pools, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request."""
    try:
        method, target, _ = (await reader.readline()).decode().split(" ", 2)
        while (await reader.readline()).strip():
            pass
        url = urllib.parse.urlsplit(target)
        numbers = urllib.parse.parse_qs(url.query).get("n")
        writes = method == "POST" and url.path == "/work"
        failed = await pools.everywhere(int(numbers[0]) if writes and numbers else None)
        body = json.dumps({"failed": failed}).encode()
        status = "503 Service Unavailable" if failed else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
    except (OSError, ValueError, http.client.HTTPException):
        pass
    finally:
        writer.close()


async def main() -> None:
    """Serve until told to stop."""
    pools = Pools()
    server = await asyncio.start_server(lambda r, w: answer(pools, r, w), "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
