"""The five health functions against the real servers: True, False, or an exception that says what to do."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest
from tests.servers import free_port
from tests.shell.supervised import QUICK, hearing, state_of
from tests.stack import minio as minio_stack
from tests.stack.minio import Minio
from tests.stack.neo4j import Neo4j
from tests.stack.postgres import WATCHER, WATCHER_PASSWORD, Server, Template
from tests.stack.redis import RedisServer
from tests.stack.weaviate import Weaviate

import selfheal_knowledgehub as hub
from selfheal import RecoveryStrategy, Supervisor
from selfheal_knowledgehub import health

pytestmark = [pytest.mark.anyio, pytest.mark.server, pytest.mark.real_time]

CHECKS: dict[str, Callable[[], Coroutine[Any, Any, bool]]] = {
    "database": hub.check_database_health,
    "redis": hub.check_redis_health,
    "weaviate": hub.check_weaviate_health,
    "neo4j": hub.check_neo4j_health,
    "minio": hub.check_minio_health,
}
VARIABLES = {
    "database": ("DATABASE_URL",),
    "redis": ("REDIS_URL",),
    "weaviate": ("WEAVIATE_URL",),
    "neo4j": ("NEO4J_URI", "NEO4J_PASSWORD"),
    "minio": ("MINIO_ENDPOINT",),
}
REQUIRED = [(name, variable) for name, variables in VARIABLES.items() for variable in variables]
WRONG = "hunter2-canary-77aa01"


@attrs.frozen
class Hub:
    """The five servers, as the application knows them."""

    servers: dict[str, Any]
    variables: dict[str, str]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    with Template() as template:
        database = template.server()
        redis = RedisServer(folder / "redis", password="sesame")
        weaviate, neo4j, minio = Weaviate(folder / "weaviate"), Neo4j(folder / "neo4j"), Minio(folder / "minio")
        found: dict[str, Any] = {
            "database": database,
            "redis": redis,
            "weaviate": weaviate,
            "neo4j": neo4j,
            "minio": minio,
        }
        try:
            for each in found.values():
                each.start()
            yield Hub(found, variables_of(database, redis, weaviate, neo4j, minio))
        finally:
            database.close()
            for each in (redis, weaviate, neo4j, minio):
                each.kill()


def variables_of(
    database: Server, redis: RedisServer, weaviate: Weaviate, neo4j: Neo4j, minio: Minio
) -> dict[str, str]:
    return {
        "DATABASE_URL": f"postgresql+asyncpg://{WATCHER}:{WATCHER_PASSWORD}@127.0.0.1:{database.port}/postgres",
        "REDIS_URL": f"redis://:sesame@127.0.0.1:{redis.port}/0",
        "WEAVIATE_URL": weaviate.url,
        "WEAVIATE_API_KEY": str(weaviate.key),
        "NEO4J_URI": neo4j.uri.replace("bolt:", "neo4j:"),
        "NEO4J_USER": "neo4j",
        "NEO4J_PASSWORD": neo4j.password,
        "MINIO_ENDPOINT": f"127.0.0.1:{minio.port}",
        "MINIO_ACCESS_KEY": minio_stack.USER,
        "MINIO_SECRET_KEY": minio.password,
    }


@pytest.fixture
def running(servers: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The servers, with the application's variables set."""
    for name, value in servers.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MINIO_SECURE", raising=False)
    return servers


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> int:
    """The application's variables name a port where nobody listens; return it."""
    port = free_port()
    for name in ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "MINIO_SECURE", "NEO4J_USER", "WEAVIATE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, scheme in (("DATABASE_URL", "postgresql://u:p@"), ("REDIS_URL", "redis://"), ("NEO4J_URI", "bolt://")):
        monkeypatch.setenv(name, f"{scheme}127.0.0.1:{port}")
    monkeypatch.setenv("WEAVIATE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MINIO_ENDPOINT", f"127.0.0.1:{port}")
    monkeypatch.setenv("NEO4J_PASSWORD", WRONG)
    return port


# -- true or false ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKS)
async def test_a_server_that_is_well_is_true(running: Hub, name: str) -> None:
    assert await CHECKS[name]() is True


async def test_all_of_them_may_be_asked_at_once(running: Hub) -> None:
    found: dict[str, bool] = {}

    async def ask(name: str) -> None:
        found[name] = await CHECKS[name]()

    async with anyio.create_task_group() as tasks:
        for name in CHECKS:
            tasks.start_soon(ask, name)
    assert found == dict.fromkeys(CHECKS, True)


@pytest.mark.parametrize(
    ("name", "variable", "said"),
    [
        ("database", "DATABASE_URL", f"postgresql://{WATCHER}:{WRONG}@127.0.0.1:PORT/postgres"),
        ("redis", "REDIS_URL", f"redis://:{WRONG}@127.0.0.1:PORT/0"),
        ("neo4j", "NEO4J_PASSWORD", WRONG),
        ("minio", "MINIO_SECRET_KEY", WRONG),
        ("minio", "MINIO_ACCESS_KEY", WRONG),
        ("weaviate", "WEAVIATE_API_KEY", WRONG),
    ],
)
async def test_a_server_that_does_not_take_the_application_s_password_is_false(
    running: Hub, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, said: str
) -> None:
    """For whoever asks it is down. In a service of selfheal the cause is `auth`, and nothing is restarted."""
    monkeypatch.setenv(variable, said.replace("PORT", str(getattr(running.servers[name], "port", 0))))
    assert await CHECKS[name]() is False
    monkeypatch.setenv(variable, running.variables[variable])
    assert await CHECKS[name]() is True, "what a variable says is read anew"


async def test_a_warning_is_true(running: Hub) -> None:
    """Redis that cannot save is in danger, and serves: what asks this function may go on."""
    redis: RedisServer = running.servers["redis"]
    redis.ask("CONFIG", "SET", "maxmemory", "1mb")
    try:
        service = hub.service("redis")
        from selfheal import Verdict, check_once

        assert (await check_once(service.check)).verdict is Verdict.WARNING
        assert await hub.check_redis_health() is True
    finally:
        redis.ask("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.parametrize("name", CHECKS)
async def test_a_server_that_hangs_is_false_after_the_time_out(
    running: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(health, "TIMEOUT", 0.5)
    server = running.servers[name]
    freeze = partial(server.freeze, all_of_it=True) if name == "database" else server.freeze
    await anyio.to_thread.run_sync(freeze)
    try:
        with anyio.fail_after(4.0):
            assert await CHECKS[name]() is False
    finally:
        server.thaw()


@pytest.mark.parametrize("name", CHECKS)
async def test_a_server_that_is_not_there_is_false(nowhere: int, name: str) -> None:
    assert await CHECKS[name]() is False


# -- neither ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variable"), REQUIRED)
@pytest.mark.parametrize("said", [None, ""], ids=["unset", "empty"])
async def test_a_variable_that_is_not_set_is_named_with_an_example(
    nowhere: int, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, said: str | None
) -> None:
    if said is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, said)
    with pytest.raises(hub.Unanswered, match=f"^the variable {variable} is (not set|empty); .*looks like ") as caught:
        await CHECKS[name]()
    assert WRONG not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "variable", "said", "words"),
    [
        ("database", "DATABASE_URL", "mysql://me:hunter2@db/hub", "must begin with postgresql://"),
        ("redis", "REDIS_URL", "http://me:hunter2@cache", "must begin with redis://"),
        ("weaviate", "WEAVIATE_URL", "vectors:8080", "must begin with http:// or https://"),
        ("neo4j", "NEO4J_URI", "http://graph:7474", "must begin with one of bolt://"),
        ("minio", "MINIO_ENDPOINT", "s3://objects/bucket", "must begin with http:// or https://"),
        ("minio", "MINIO_ENDPOINT", "hunter2 hunter2", "'http://***' has no host"),
    ],
)
async def test_an_address_that_is_none_says_nothing_about_the_service(
    nowhere: int, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, said: str, words: str
) -> None:
    monkeypatch.setenv(variable, said)
    with pytest.raises(hub.Unanswered, match=f"^the variable {variable} cannot be used: .*looks like") as caught:
        await CHECKS[name]()
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_check_that_could_not_run_is_neither_yes_nor_no(running: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = "?sslmode=verify-full&sslrootcert=/nowhere/authority.pem"
    monkeypatch.setenv("DATABASE_URL", running.variables["DATABASE_URL"] + lacking)
    with pytest.raises(hub.Unanswered, match=r"^nothing could be found out .* the address cannot be used"):
        await hub.check_database_health()


BLOCKED = """
import sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
import anyio
import selfheal_knowledgehub
try:
    said = anyio.run(getattr(selfheal_knowledgehub, f"check_{sys.argv[1]}_health"))
except ImportError as missing:
    print(type(missing).__name__, missing.name, "|", missing)
else:
    print(said)
"""


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [
        ("database", "selfheal_postgres", "postgres"),
        ("database", "psycopg", "postgres"),
        ("redis", "selfheal_redis", "redis"),
        ("redis", "redis", "redis"),
        ("weaviate", "selfheal_weaviate", "weaviate"),
        ("neo4j", "selfheal_neo4j", "neo4j"),
        ("neo4j", "neo4j", "neo4j"),
        ("minio", "selfheal_minio", "minio"),
        ("minio", "minio", "minio"),
    ],
)
def test_s65_a_plugin_or_a_driver_that_is_missing_is_said_with_the_extra(
    nowhere: int, name: str, missing: str, extra: str
) -> None:
    def said(blocked: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", BLOCKED, name, blocked], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    assert said(missing) == (
        f"ModuleNotFoundError {missing} | {missing} is not installed: pip install 'selfheal-core[{extra}]'"
    )
    others = {"selfheal_postgres", "selfheal_redis", "selfheal_weaviate", "selfheal_neo4j", "selfheal_minio"}
    others |= {"psycopg", "redis", "neo4j", "minio", "weaviate"} - {missing}
    mine = {f"selfheal_{extra}", {"postgres": "psycopg"}.get(extra, extra)}
    assert said(",".join(sorted(others - mine))) == "False", "what another service needs is not asked for"


# -- what they leave, and where they are used -------------------------------------------------------------------------


OF_THE_HOST = ("AnyIO worker thread", "Trio thread")
"""Threads of the host's pool: it keeps them for a while, and there are never more than calls at a time."""


def left_open() -> dict[str, int]:
    """Count what is open in this process; what somebody reads in /proc at this moment is not."""
    gc.collect()
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    threads = [thread.name for thread in threading.enumerate()]
    return {
        "descriptors": sum(not link.startswith("/proc/") for link in links),
        "threads": sum(not name.startswith(OF_THE_HOST) for name in threads),
    }


async def nothing_more_than(before: dict[str, int]) -> None:
    """Wait until no more is open than there was."""
    with anyio.move_on_after(5.0):
        while any(now > before[what] for what, now in left_open().items()):  # noqa: ASYNC110  # closing sets no event
            await anyio.sleep(0.05)
        return
    raise AssertionError(f"there was {before}, and is {left_open()}")


@pytest.fixture(params=["well", "absent"])
def asked(request: pytest.FixtureRequest, running: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """Ask servers that are well, and then ports where nobody listens, with every variable set."""
    if request.param == "absent":
        port = free_port()
        for name, value in running.variables.items():
            for server in running.servers.values():
                for each in (getattr(server, "port", 0), getattr(server, "bolt_port", 0)):
                    value = value.replace(f":{each}", f":{port}") if each else value
            monkeypatch.setenv(name, value)
    return str(request.param)


async def test_a_hundred_calls_leave_descriptors_and_threads_where_they_were(asked: str) -> None:
    """All five at once, twenty times."""
    found: set[bool] = set()

    async def ask(check: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        found.add(await check())

    async def rounds(count: int) -> None:
        for _ in range(count):
            async with anyio.create_task_group() as tasks:
                for check in CHECKS.values():
                    tasks.start_soon(ask, check)

    await rounds(2)
    before = left_open()
    await rounds(20)
    assert found == {asked == "well"}
    await nothing_more_than(before)


async def test_one_that_is_cancelled_leaves_nothing(running: Hub) -> None:
    server: RedisServer = running.servers["redis"]
    await hub.check_redis_health()
    await anyio.to_thread.run_sync(server.freeze)
    try:
        before = left_open()
        for _ in range(10):
            with anyio.move_on_after(0.05) as scope:
                await hub.check_redis_health()
            assert scope.cancelled_caught
        await nothing_more_than(before)
    finally:
        server.thaw()


async def test_law_7_a_supervisor_that_asks_one_concludes_nothing_where_nothing_could_be_found_out(
    nowhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy as the specification writes it: an unset variable must not restart a database."""
    fields = {name: value for name, value in QUICK.items() if name not in {"interval", "failure_threshold", "backoff"}}
    strategy = RecoveryStrategy(
        "database",
        hub.check_database_health,
        [],
        health_check_interval=1.0,
        failure_threshold=1,
        **{**fields, "timeout": 0.9},
    )
    monkeypatch.delenv("DATABASE_URL")
    async with Supervisor([strategy], journal=None) as supervisor, hearing(supervisor) as heard:
        answer: dict[str, Any] = {}
        with anyio.fail_after(15.0):
            while answer.get("evidence", {}).get("inconclusive", 0) < 2:
                await anyio.sleep(0.05)
                answer = await state_of(supervisor, "database")
        assert answer["state"] == "unknown"
        assert "DATABASE_URL is not set" in str(answer)
        assert not heard.of("incident_opened")
        os.environ["DATABASE_URL"] = f"postgresql://u:{WRONG}@127.0.0.1:{nowhere}"
        await heard.state("database", "failed", within=20.0)
        assert WRONG not in str(await state_of(supervisor, "database"))


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKS)
async def test_a_server_that_was_killed_is_false(running: Hub, name: str) -> None:
    """The last one here: nobody needs them any more."""
    await anyio.to_thread.run_sync(running.servers[name].kill)
    assert await CHECKS[name]() is False
