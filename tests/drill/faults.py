"""What is broken, and what the right answer of selfheal is: the drill's table, as data.

First the faults that one server alone knows, then those of several at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import neo4j
import psycopg
from tests.drill.breaking import (
    NOT_TOUCHED,
    QUIET,
    Fault,
    connects,
    cut_off,
    frozen,
    full,
    killed,
    locked_out,
    port_taken,
    proven,
    relapsing,
    stopped,
)
from tests.drill.hosts import Containers, send
from tests.drill.servers import APPLICATION, GRAPH_TRANSACTIONS, PASSWORD, SERVICES, WATCHER, empty, status_of
from tests.drill.stage import Stage
from tests.servers import until
from tests.stack import postgres

# -- PostgreSQL -------------------------------------------------------------------------------------------------------


def _change_database(stage: Stage, old: str, new: str) -> None:
    server = stage.hub["database"].kit
    server.ask(f"ALTER ROLE hub PASSWORD '{new}'")
    proven("the old password is refused", lambda: stage.hub["database"].serves() == (new == PASSWORD))


def crowded_out() -> Fault:
    """Return sessions that never end and leave no slot: the server runs well, for nobody."""

    def begin(stage: Stage) -> float:
        at = time.time()
        port = stage.hub["database"].ports[0]
        url = f"postgresql://{postgres.WATCHER}:{postgres.WATCHER_PASSWORD}@127.0.0.1:{port}/postgres?connect_timeout=2"

        def refused() -> bool:
            try:
                connection = psycopg.connect(url)
            except psycopg.OperationalError as problem:
                return any(word in str(problem) for word in ("too many clients", "connection slots are reserved"))
            stage.cleaning.callback(connection.close)
            connection.execute("SELECT 1")  # and with it, idle in a transaction
            return False

        proven("no slot is free", refused)
        return at

    return Fault(
        name="no free slot",
        services=("database",),
        what="idle transactions take every connection slot; the server says 'too many clients'",
        begin=begin,
        steps={"database": "reconnect restart"},
        seen_as=r"(unhealthy|failed) overloaded",
    )


# -- Redis ------------------------------------------------------------------------------------------------------------


def _change_redis(stage: Stage, old: str, new: str) -> None:
    server = stage.hub["redis"].kit
    server.password = old
    assert server.ask("CONFIG", "SET", "requirepass", new) == "OK"
    server.password = PASSWORD
    proven("the old password is refused", lambda: (server.ask("PING") == "PONG") == (new == PASSWORD))


def busy() -> Fault:
    """Return a script that does not end: only a restart ends it, for it has written."""

    def begin(stage: Stage) -> float:
        server = stage.hub["redis"].kit
        at = time.time()
        script = "redis.call('set', KEYS[1], 1) while true do end"
        runner = threading.Thread(target=server.ask, args=("EVAL", script, 1, "script"), kwargs={"timeout": 30.0})
        runner.daemon = True
        runner.start()
        stage.cleaning.callback(runner.join, 35.0)
        proven("it says BUSY", lambda: "BUSY" in str(server.ask("PING", timeout=1.0)), 15.0)
        return at

    return Fault(
        name="script hangs",
        services=("redis",),
        what="a script that has written never ends; the server says BUSY, and will not kill it",
        begin=begin,
        steps={"redis": "reconnect restart"},
        seen_as=r"(unhealthy|failed) (overloaded|timeout)",
    )


def memory_full() -> Fault:
    """Return the memory that is used up: reads go on, and a restart would find the same again."""

    def begin(stage: Stage) -> float:
        server = stage.hub["redis"].kit
        at = time.time()
        assert server.ask("CONFIG", "SET", "maxmemory", "1mb") == "OK"
        proven("a write is refused", lambda: "OOM" in str(server.ask("SET", "drill:0", "0")))
        return at

    return Fault(
        name="memory full",
        services=("redis",),
        what="maxmemory is reached and nothing may be evicted; the server says OOM to writes, and people give it more",
        begin=begin,
        told=lambda stage: stage.watched.is_("redis", "degraded"),
        quiet=QUIET,
        mend=lambda stage: stage.hub["redis"].kit.ask("CONFIG", "SET", "maxmemory", "0"),
        steps={"redis": NOT_TOUCHED},
        seen_as=r"degraded overloaded",
        incident=False,
    )


# -- Weaviate ---------------------------------------------------------------------------------------------------------


def _shards_ready(stage: Stage) -> None:
    """Make room, and have every shard writable again, as Weaviate wants it from people."""
    server = stage.hub["weaviate"].kit
    empty(stage.hub["weaviate"].disk)

    def all_ready() -> bool:
        shards = server.ask("/v1/schema/Drill/shards")[1]
        for shard in shards:
            if shard["status"] != "READY":
                server.ask(f"/v1/schema/Drill/shards/{shard['name']}", "PUT", {"status": "READY"})
        return all(shard["status"] == "READY" for shard in shards)

    until(all_ready, "every shard is ready again", 30.0)


# -- Neo4j ------------------------------------------------------------------------------------------------------------


def _change_neo4j(stage: Stage, old: str, new: str) -> None:
    server = stage.hub["neo4j"].kit
    status, said = server.ask(f"ALTER USER {WATCHER} SET PASSWORD '{new}' CHANGE NOT REQUIRED", "system")
    assert status == 202, said
    if new != PASSWORD:
        headers = server.headers(user=WATCHER)
        url = f"{server.url}/db/neo4j/query/v2"
        asked = partial(status_of, url, "POST", '{"statement": "RETURN 1"}', headers)
        proven("the old password is refused", lambda: asked() in (401, 429), 15.0)


def transactions_used_up() -> Fault:
    """Return transactions that are left open until no more are allowed."""

    def begin(stage: Stage) -> float:
        server = stage.hub["neo4j"].kit
        driver = neo4j.GraphDatabase.driver(server.uri, auth=("neo4j", PASSWORD), connection_timeout=3.0)
        stage.cleaning.callback(driver.close)
        at = time.time()
        for _ in range(GRAPH_TRANSACTIONS):
            session: Any = driver.session()
            with suppress(neo4j.exceptions.Neo4jError):
                session.begin_transaction().run("RETURN 1")
        proven("no transaction is left", lambda: "TransactionLimit" in str(server.ask("RETURN 1")[1]))
        return at

    return Fault(
        name="no transaction left",
        services=("neo4j",),
        what="open transactions use up all that are allowed; the server says MaximumTransactionLimitReached",
        begin=begin,
        steps={"neo4j": "restart"},
        seen_as=r"(unhealthy|failed) overloaded",
    )


# -- several at once --------------------------------------------------------------------------------------------------


def together(*services: str) -> Fault:
    """Return a crash of servers and the application at the same moment: the roots must be repaired first."""

    def begin(stage: Stage) -> float:
        everybody = [*services, APPLICATION]
        before = {name: stage.host.first_pid(name) for name in everybody}
        at = time.time()
        for name in everybody:
            send(stage.host, name, signal.SIGKILL)
        proven(
            "their processes are gone", lambda: all(stage.host.first_pid(name) != before[name] for name in everybody)
        )
        return at

    return Fault(
        name="killed together" if len(services) > 1 else "killed with api",
        services=(*services, APPLICATION),
        what="SIGKILL to all of them at once",
        begin=begin,
        steps=dict.fromkeys((*services, APPLICATION), "restart"),
        seen_as=r"(unhealthy|failed) (unreachable|timeout)",
        within=90.0,
    )


def application_killed() -> Fault:
    """Return the crash of the application alone: nothing it stands on may be touched."""

    def begin(stage: Stage) -> float:
        before = stage.host.first_pid(APPLICATION)
        at = send(stage.host, APPLICATION, signal.SIGKILL)
        proven("its process is gone", lambda: stage.host.first_pid(APPLICATION) != before)
        return at

    return Fault(
        name="killed",
        services=(APPLICATION,),
        what="SIGKILL to the application",
        begin=begin,
        steps={APPLICATION: "restart"},
        seen_as=r"(unhealthy|failed) (unreachable|timeout)",
    )


def network_down() -> Fault:
    """Return the network that is gone for all, the canary too: then nothing is known of anybody."""

    def begin(stage: Stage) -> float:
        at = time.time()
        ports = [port for server in stage.hub.values() for port in server.ports]
        stage.cut(stage.watched.canary, stage.prober.port, *ports)
        proven("nothing is reached", lambda: not any(connects(stage, name) for name in stage.hub), 20.0)
        return at

    def held(stage: Stage) -> bool:
        return any(one.get("hold") == "canary" or "canary" in str(one) for one in stage.watched.ask("status")["holds"])

    return Fault(
        name="network down",
        services=("all",),
        what="iptables drops everything, what goes to the canary too; fire is held until it comes back",
        begin=begin,
        told=held,
        quiet=2 * QUIET,
        steps={},
        seen_as=r"hold canary",
        incident=False,
    )


def engine_killed() -> Fault:
    """Return the death of Docker itself. Containers go on without it; it ends them when it is started again."""

    def begin(stage: Stage) -> float:
        assert isinstance(stage.host, Containers)
        at = time.time()
        stage.host.docker.kill()
        return at

    def mend(stage: Stage) -> None:
        assert isinstance(stage.host, Containers)
        stage.host.docker.start()

    return Fault(
        name="Docker killed",
        services=("all",),
        what="SIGKILL to dockerd, which is started again; it finds its containers running and ends them",
        begin=begin,
        told=lambda stage: True,
        quiet=QUIET,
        mend=mend,
        steps=dict.fromkeys((*SERVICES, APPLICATION), "restart"),
        # The application says 503 (overloaded) where its servers are ended before it is.
        seen_as=r"(unhealthy|failed) (unreachable|timeout|exited|overloaded)",
        within=150.0,
    )


# -- the table --------------------------------------------------------------------------------------------------------

FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "database": (
        killed("database"),
        frozen("database"),
        crowded_out(),
        cut_off("database"),
        port_taken("database"),
        locked_out("database", _change_database),
        full("database"),
        stopped("database"),
    ),
    "redis": (
        killed("redis"),
        frozen("redis"),
        busy(),
        cut_off("redis"),
        port_taken("redis"),
        locked_out("redis", _change_redis),
        memory_full(),
        stopped("redis"),
    ),
    "weaviate": (
        killed("weaviate"),
        frozen("weaviate"),
        relapsing("weaviate"),
        cut_off("weaviate"),
        port_taken("weaviate"),
        full("weaviate", _shards_ready),
        stopped("weaviate"),
    ),
    "neo4j": (
        killed("neo4j"),
        frozen("neo4j"),
        transactions_used_up(),
        cut_off("neo4j"),
        port_taken("neo4j"),
        locked_out("neo4j", _change_neo4j),
        stopped("neo4j"),
    ),
    "minio": (
        killed("minio"),
        frozen("minio"),
        relapsing("minio"),
        cut_off("minio"),
        port_taken("minio"),
        full("minio"),
        stopped("minio"),
    ),
    APPLICATION: (application_killed(),),
    "together": (together("database"), together("database", "redis"), network_down(), engine_killed()),
}
"""Whom each row is about; six ways and more for each server, and then what needs an order."""

QUICK: Mapping[str, str] = {
    "database": "password changed",
    "redis": "frozen",
    "weaviate": "killed",
    "neo4j": "killed",
    "minio": "killed",
    "together": "killed together",
}
"""One fault for each, and one where order matters: what a quick drill runs."""
