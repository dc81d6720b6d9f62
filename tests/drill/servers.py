"""KnowledgeHub's five servers, as the drill knows them: their program, whether they serve, and what they hold.

Each has data on a small disk of its own (a tmpfs), so that it can be full and outlives every restart.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import urllib.parse
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import psycopg
import urllib3
from minio import Minio as Client
from tests.servers import until
from tests.stack.minio import USER as MINIO_USER
from tests.stack.minio import Minio
from tests.stack.neo4j import USER as NEO4J_USER
from tests.stack.neo4j import Neo4j
from tests.stack.postgres import Server, Template
from tests.stack.redis import RedisServer
from tests.stack.running import Program
from tests.stack.weaviate import Weaviate

SERVICES = ("database", "redis", "weaviate", "neo4j", "minio")
APPLICATION = "api"
PASSWORD = "sesame-open-sesame"  # of servers that live for one drill
WATCHER = "selfheal"
"""The user of Neo4j's check: a wrong password, sent again and again, locks a user out, which should harm nobody."""

DISK = "640m"
"""Room for the data of one server, in memory; only what is written is used."""

GRAPH_TRANSACTIONS = 20
"""How many transactions Neo4j takes at once."""

STRICT = {"max_wal_size": "64MB", "min_wal_size": "32MB", "wal_keep_size": 0, "synchronous_commit": "on"}
"""PostgreSQL on a small disk."""


@attrs.frozen(kw_only=True)
class HubServer:
    """One server."""

    name: str
    program: Program
    ports: tuple[int, ...]
    disk: Path
    serves: Callable[[], bool]
    """Whether it answers what the application asks of it, within about a second."""
    holds: Callable[[], set[int]]
    """What was written by the application and is there."""
    environment: Mapping[str, str]
    """By which the application, and selfheal, find it."""
    kit: Any
    """The class of `tests.stack` that speaks to it."""


def quietly(ask: Callable[[], Any]) -> bool:
    """Whether an answer comes and is true; a server that does not serve raises all sorts of things."""
    with suppress(Exception):
        return bool(ask())
    return False


def servers(names: tuple[str, ...], folder: Path, stack: ExitStack) -> dict[str, HubServer]:
    """Return these servers, with their data made and nothing running. Their disks go when the stack is closed."""
    makers = {"database": _database, "redis": _redis, "weaviate": _weaviate, "neo4j": _neo4j, "minio": _minio}
    return {name: makers[name](_disk(folder / name, stack), stack) for name in names}


def _disk(folder: Path, stack: ExitStack) -> Path:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "selfheal-drill", str(folder)], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
    return folder


def fill(disk: Path) -> None:
    """Leave no room on a disk."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass


def empty(disk: Path) -> None:
    """Make room again."""
    (disk / "ballast").unlink(missing_ok=True)


# -- each of them ----------------------------------------------------------------------------------------------------


def _database(disk: Path, stack: ExitStack) -> HubServer:
    template = stack.enter_context(Template(disk))
    template.own(disk)
    server: Server = template.server()
    server.start()
    server.ask(f"CREATE ROLE hub LOGIN PASSWORD '{PASSWORD}'")
    server.ask("CREATE DATABASE hub OWNER hub")
    server.end()
    url = f"postgresql://hub:{PASSWORD}@127.0.0.1:{server.port}/hub"
    quick = f"{url}?connect_timeout=2&options=-c%20statement_timeout%3D2000"

    def rows(statement: str) -> list[Any]:
        with psycopg.connect(quick) as connection:
            return connection.execute(statement).fetchall()

    return HubServer(
        name="database",
        program=server.serving(**STRICT),
        ports=(server.port,),
        disk=disk,
        serves=lambda: quietly(lambda: server.ready() == 0 and rows("SELECT 1")),
        holds=lambda: {row[0] for row in rows("SELECT n FROM drill")},
        environment={"DATABASE_URL": url},
        kit=server,
    )


def _redis(disk: Path, stack: ExitStack) -> HubServer:
    server = RedisServer(disk / "redis", password=PASSWORD)

    def holds() -> set[int]:
        return {int(key.partition(":")[2]) for key in server.ask("KEYS", "drill:*")}

    return HubServer(
        name="redis",
        program=server.serving("--appendonly", "yes", "--lua-time-limit", "500"),
        ports=(server.port,),
        disk=disk,
        serves=lambda: quietly(lambda: server.ask("PING", timeout=1.0) == "PONG"),
        holds=holds,
        environment={"REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"},
        kit=server,
    )


def _weaviate(disk: Path, stack: ExitStack) -> HubServer:
    server = Weaviate(disk, key=None)

    def holds() -> set[int]:
        found: set[int] = set()
        after = ""
        while True:
            clause = f'limit: 1000, after: "{after}"'
            query = {"query": f"{{ Get {{ Drill({clause}) {{ n _additional {{ id }} }} }} }}"}
            page = server.ask("/v1/graphql", "POST", query)[1]["data"]["Get"]["Drill"]
            if not page:
                return found
            found |= {int(one["n"]) for one in page}
            after = page[-1]["_additional"]["id"]

    return HubServer(
        name="weaviate",
        program=server.serving(),
        ports=(server.port,),
        disk=disk,
        serves=lambda: status_of(server.url + "/v1/.well-known/ready") == 200,
        holds=holds,
        environment={"WEAVIATE_URL": server.url},
        kit=server,
    )


def _neo4j(disk: Path, stack: ExitStack) -> HubServer:
    server = Neo4j(disk, password=PASSWORD)
    server.settings["db.transaction.concurrent.maximum"] = str(GRAPH_TRANSACTIONS)
    program = server.serving()

    def holds() -> set[int]:
        return {int(row[0]) for row in server.ask("MATCH (d:Drill) RETURN d.n")[1]["data"]["values"]}

    def serves() -> bool:
        body = json.dumps({"statement": "RETURN 1"})
        return status_of(f"{server.url}/db/neo4j/query/v2", "POST", body, server.headers()) == 202

    return HubServer(
        name="neo4j",
        program=program,
        ports=(server.bolt_port, server.http_port),
        disk=disk,
        serves=serves,
        holds=holds,
        environment={"NEO4J_URI": server.uri, "NEO4J_USER": NEO4J_USER, "NEO4J_PASSWORD": PASSWORD},
        kit=server,
    )


def _minio(disk: Path, stack: ExitStack) -> HubServer:
    server = Minio(disk)
    address = f"127.0.0.1:{server.port}"
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=2.0, read=10.0), retries=False)
    stack.callback(pool.clear)
    client = Client(address, MINIO_USER, server.password, secure=False, region="us-east-1", http_client=pool)

    return HubServer(
        name="minio",
        program=server.serving(),
        ports=(server.port,),
        disk=disk,
        serves=lambda: status_of(server.url + "/minio/health/cluster") == 200,
        holds=lambda: {int(one.object_name) for one in client.list_objects("drill") if one.object_name},
        environment={
            "MINIO_ENDPOINT": address,
            "MINIO_ACCESS_KEY": MINIO_USER,
            "MINIO_SECRET_KEY": server.password,
        },
        kit=client,
    )


def furnish(running: Mapping[str, HubServer]) -> None:
    """Wait until each serves, and make what the application and selfheal expect to be there."""
    for server in running.values():
        until(server.serves, f"{server.name} serves", 120.0)
    if "neo4j" in running:
        status, said = running["neo4j"].kit.ask(
            f"CREATE USER {WATCHER} SET PASSWORD '{PASSWORD}' CHANGE NOT REQUIRED", "system"
        )
        assert status == 202, said
    if "minio" in running:
        running["minio"].kit.make_bucket("drill")


def status_of(
    url: str,
    method: str = "GET",
    body: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 1.5,
) -> int:
    """Return the status of an answer of HTTP; 0 where there is none."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request(method, parts.path, body, dict(headers or {}))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
