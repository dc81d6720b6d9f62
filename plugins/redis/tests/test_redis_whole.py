"""Redis under the whole of selfheal: as a file describes it, watched, repaired, and left alone where nothing helps."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from tests.shell.supervised import hearing, quick, state_of
from tests.stack.redis import RedisServer

from selfheal import Instance, Run, Supervisor
from selfheal.config import configure
from selfheal.core.model import Cause, Effect
from selfheal.errors import ConfigurationError
from selfheal.ladder import resolve_all
from selfheal.loading import load_plugins
from selfheal.plugins import ActionContext, Context
from selfheal.secret import Secret
from selfheal_redis import reset_pool
from selfheal_redis.check import RedisCheck
from selfheal_redis.failover import Failover
from selfheal_redis.reconnect import Reconnect
from selfheal_redis.reset_cache import ResetCache

pytestmark = [pytest.mark.server, pytest.mark.real_time]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        server.start()
        yield server


@attrs.frozen(kw_only=True)
class Process:
    """The process of a server of the stack, as a workload."""

    kind: ClassVar[str] = "stack"

    server: RedisServer

    async def inspect(self, context: Context) -> Instance:
        if not self.server.running:
            return Instance(id="none", run=Run.EXITED)
        return Instance(id=str(self.server.pid), run=Run.RUNNING)

    async def restart(self, context: ActionContext) -> None:
        await context.blocking(self.server.kill)
        await context.blocking(self.server.start)


# -- the file --------------------------------------------------------------------------------------------------------


def services_of(check: dict[str, Any], *steps: Any) -> Any:
    """Return the services of a file, and their ladders."""
    tables = load_plugins(["redis"])
    table = {"check": {"kind": "redis", **check}, "recovery_actions": list(steps)}
    configuration = configure({"services": {"cache": table}}, tables=tables)
    return configuration.services[0], resolve_all(configuration.services, {}, tables.actions)["cache"]


def test_s27_the_ladder_of_the_specification_loads_as_it_stands_and_its_last_step_asks_a_person() -> None:
    service, steps = services_of({"url": "redis://127.0.0.1:6379/0"}, "reconnect", "reset_cache")
    assert isinstance(service.check, RedisCheck)
    reconnect, reset = (one.step for one in steps)
    assert (reconnect.effect, reconnect.asks) == (Effect.GENTLE, False)
    assert (reset.effect, reset.asks) == (Effect.DESTRUCTIVE, True)


def test_every_option_can_be_written_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "sesame")
    check = {
        "url": "rediss://127.0.0.1:6379/2",
        "username": "watcher",
        "password": {"env": "REDIS_PASSWORD"},
        "expect": "primary",
        "memory_warn": 0.8,
        "clients_warn": 0.5,
        "lag_warn": "1m",
        "replicas": 2,
        "write_key": "selfheal:probe",
        "server_name": "redis.example",
        "authority": str(tmp_path / "ca.pem"),
        "certificate": str(tmp_path / "own.pem"),
        "verify": True,
        "warn_before": "7d",
        "keep": False,
    }
    by_sentinel = {"sentinels": ["127.0.0.1:26379"], "master": "main", "sentinel_password": {"env": "REDIS_PASSWORD"}}
    service, steps = services_of(
        check,
        {"action": "reconnect", "kill_idle": "5m", "kill_name": "worker-*", "kill_user": "app"},
        {"action": "reset_cache", "pattern": "cache:*", "database": 3, "persistent_share": 0.05, "batch": 100},
        {"action": "failover", "replica": "127.0.0.1:6380", "fence": "stop", "stale_limit": "10m"},
        {"action": "failover", **by_sentinel},
    )
    assert service.check.lag_warn == 60.0
    assert service.check.address().password == "sesame"
    reconnect, reset, named, elected = (one.target for one in steps)
    assert reconnect == Reconnect(kill_idle=300.0, kill_name="worker-*", kill_user="app")
    assert [one.step.effect for one in steps[:1]] == [Effect.DISRUPTIVE]
    assert reset == ResetCache(pattern="cache:*", database=3, persistent_share=0.05, batch=100)
    assert named == Failover(replica="127.0.0.1:6380", fence="stop", stale_limit=600.0)
    assert elected.sentinels == ("127.0.0.1:26379",)
    assert elected.sentinel_password.reveal() == "sesame"


@pytest.mark.parametrize(
    ("step", "word"),
    [
        ({"action": "reset_cache", "pattern": "*"}, "wildcard"),
        ({"action": "reset_cache", "patern": "cache:*"}, "pattern"),
        ("failover", "replica"),
        ({"action": "reconnect", "effect": "gentle", "kill_idle": 60.0}, "disruptive"),
        ({"action": "reset_cache", "database": 0, "effect": "gentle"}, "destructive"),
    ],
)
def test_a_step_that_cannot_work_is_refused_when_the_file_is_read(step: Any, word: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        services_of({"url": "redis://127.0.0.1:6379/0"}, step)
    assert word in str(caught.value)


def test_s65_nothing_is_imported_until_it_is_needed() -> None:
    code = """
import sys
from selfheal.loading import load_plugins
tables = load_plugins(["redis"])
assert "redis" in tables.checks, tables.plugins
assert not any(name.startswith("selfheal_redis.") for name in sys.modules)
tables.checks["redis"]
tables.actions["redis.reset_cache"]
tables.actions["redis.failover"]
tables.actions["redis.reconnect"]
assert "redis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- watched and repaired --------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("deep", [False, True], ids=["light", "deep"])
async def test_one_that_was_killed_is_restarted_and_one_that_hangs_too(redis: RedisServer, deep: bool) -> None:
    steps = ({"action": "reconnect", "settle": 0.05}, {"action": "restart", "settle": 0.05})
    service = quick(
        "cache",
        check=RedisCheck(url=redis.url),
        workload=Process(server=redis),
        recovery_actions=steps,
        deep=deep,
        interval=0.4,
        timeout=0.3,
    )
    async with Supervisor([service], journal=None, plugins=["redis"]) as supervisor, hearing(supervisor) as heard:
        await heard.state("cache", "healthy")
        began = time.monotonic()
        redis.kill()
        await heard.state("cache", "healthy", within=20.0, nth=2)
        print(f"killed, and well again after {time.monotonic() - began:.2f} s")
        assert redis.ask("PING") == "PONG"
        redis.freeze()
        await heard.state("cache", "healthy", within=20.0, nth=3)
        assert redis.ask("PING") == "PONG"
        taken = [record.action for record in heard.of("intended")]
        assert "restart" in taken
        assert set(taken) <= {"reconnect", "restart"}


@pytest.mark.anyio
async def test_a_password_that_was_changed_is_told_to_people_and_restarts_nothing(redis: RedisServer) -> None:
    redis.ask("CONFIG", "SET", "requirepass", "sesame")
    service = quick(
        "cache",
        check=RedisCheck(url=redis.url, password=Secret("sesame")),
        workload=Process(server=redis),
        recovery_actions=({"action": "restart", "settle": 0.05},),
    )
    redis.password = "sesame"
    async with Supervisor([service], journal=None, plugins=["redis"]) as supervisor, hearing(supervisor) as heard:
        await heard.state("cache", "healthy")
        pid = redis.pid
        assert redis.ask("CONFIG", "SET", "requirepass", "open") == "OK"
        await heard.state("cache", "failed")
        answer = await state_of(supervisor, "cache")
        assert answer["cause"] == Cause.AUTH
        assert not heard.of("intended")
        assert redis.pid == pid


@pytest.mark.anyio
async def test_a_disk_that_is_full_is_a_degraded_service_and_restarts_nothing(redis: RedisServer) -> None:
    service = quick(
        "cache",
        check=RedisCheck(url=redis.url),
        workload=Process(server=redis),
        recovery_actions=({"action": "restart", "settle": 0.05},),
    )
    shutil.rmtree(redis.folder)  # its working directory: a place where nothing can be written, even by root
    redis.ask("CONFIG", "SET", "save", "3600 1")
    redis.ask("SET", "a", "1")
    redis.ask("BGSAVE")
    redis.becomes(lambda info: info.get("rdb_last_bgsave_status") == "err", "the save has failed")
    async with Supervisor([service], journal=None, plugins=["redis"]) as supervisor, hearing(supervisor) as heard:
        await heard.state("cache", "degraded")
        answer = await state_of(supervisor, "cache")
        assert answer["evidence"]["cause"] == Cause.FULL
        assert "lose what is not saved" in answer["detail"]
        assert not heard.of("intended")
    assert redis.ask("GET", "a") == "1"


# -- the application's pool ------------------------------------------------------------------------------------------


def test_the_pool_of_an_application_is_reset_and_who_waits_on_it_is_freed(redis: RedisServer) -> None:
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    async def application() -> None:
        client = Redis(host="127.0.0.1", port=redis.port)
        await client.set("a", "1")
        reset = reset_pool(client)
        redis.freeze()
        waiting = [asyncio.ensure_future(client.get("a")) for _ in range(3)]
        await asyncio.sleep(0.05)
        await reset(None)
        redis.thaw()
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5.0)
        assert all(isinstance(one, RedisError | OSError) or one == b"1" for one in ended), ended
        assert await client.get("a") == b"1"
        await reset()
        await reset()  # an empty pool
        assert await client.get("a") == b"1"
        await client.aclose()

    asyncio.run(application())


def test_the_pool_of_a_synchronous_application_is_reset_by_a_plain_function(redis: RedisServer) -> None:
    from redis import Redis

    client = Redis(host="127.0.0.1", port=redis.port)
    client.set("a", "1")
    reset = reset_pool(client.connection_pool)
    redis.kill()
    redis.start()
    assert not asyncio.iscoroutinefunction(reset)
    reset(None)
    assert client.get("a") is None
    assert threading.active_count() >= 1
    client.close()
    with pytest.raises(TypeError, match="neither a client"):
        reset_pool(object())
