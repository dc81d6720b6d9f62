"""`redis.failover` against real servers: it promotes where there is certainly no other primary, and nowhere else."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
from tests.servers import free_port, until
from tests.stack.redis import RedisSentinel, RedisServer

from selfheal.core.model import Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal.plugins import ActionContext, Context
from selfheal.secret import Secret
from selfheal.shell.contexts import Act
from selfheal.shell.plugin_thread import Ending, Outcome
from selfheal.testing.stage import SERVICE, Stage
from selfheal_redis.check import RedisCheck
from selfheal_redis.failover import Failover

pytestmark = [pytest.mark.server, pytest.mark.real_time, pytest.mark.anyio]


@attrs.frozen(kw_only=True)
class Kept:
    """The process of a server of the stack, as a workload that can only be looked at."""

    kind: ClassVar[str] = "stack"

    server: RedisServer

    async def inspect(self, context: Context) -> Instance:
        return Instance(id=str(self.server.port), run=Run.RUNNING if self.server.running else Run.EXITED)

    async def restart(self, context: ActionContext) -> None:
        self.server.kill()
        self.server.start()


@attrs.frozen(kw_only=True)
class Stoppable(Kept):
    """One that can be stopped as well."""

    async def start(self, context: ActionContext) -> None:
        self.server.start()

    async def stop(self, context: ActionContext) -> None:
        await context.blocking(self.server.kill)


@pytest.fixture
def anyio_backend() -> str:
    """One host is enough: what is tested runs on asyncio in a thread of ours; the conformance kit has every host."""
    return "asyncio"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        server.start("--repl-diskless-sync-delay", "0")
        yield server


@pytest.fixture
def replica(tmp_path: Path, redis: RedisServer) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "replica") as server:
        server.start("--replicaof", "127.0.0.1", str(redis.port))
        server.becomes(lambda info: info.get("master_link_status") == "up", "the replica follows", 30.0)
        redis.ask("SET", "a", "1")
        until(lambda: server.ask("GET", "a") == "1", "it has the data")
        yield server


class Acting:
    """Runs failovers where selfheal runs them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def _context(self, action: Failover, server: RedisServer, workload: Any, timeout: float) -> ActionContext:
        act = Act(key="1/redis/1/0", incident=1, check=RedisCheck(url=server.url), workload=workload)
        return self._stage.contexts.for_action(SERVICE, action, timeout, act)

    async def run(self, action: Failover, server: RedisServer, workload: Any = None, timeout: float = 8.0) -> Outcome:
        return await self._stage.run(
            lambda: action.run(self._context(action, server, workload, timeout)), timeout, "action"
        )

    async def does(self, action: Failover, server: RedisServer, workload: Any = None, timeout: float = 8.0) -> str:
        outcome = await self.run(action, server, workload, timeout)
        assert outcome.ending is Ending.VALUE, outcome.error
        assert isinstance(outcome.value, str)
        return outcome.value

    async def refuses(self, action: Failover, server: RedisServer, workload: Any = None, timeout: float = 8.0) -> str:
        outcome = await self.run(action, server, workload, timeout)
        assert isinstance(outcome.error, ActionFailed), outcome
        return str(outcome.error)

    async def probe(self, action: Failover, server: RedisServer) -> Settled | None:
        outcome = await self._stage.run(lambda: action.probe(self._context(action, server, None, 5.0)), 5.0)
        assert outcome.ending is Ending.VALUE, outcome.error
        assert outcome.value is None or isinstance(outcome.value, Settled)
        return outcome.value

    async def proves(self, action: Failover, server: RedisServer, workload: Any = None) -> str:
        """Return what the doctor of an action says."""
        outcome = await self._stage.run(lambda: action.doctor(self._context(action, server, workload, 5.0)), 5.0)
        assert outcome.ending is Ending.VALUE, outcome.error
        assert isinstance(outcome.value, list)
        return " ".join(map(str, outcome.value))


@asynccontextmanager
async def acting() -> AsyncIterator[Acting]:
    stage = Stage()
    try:
        yield Acting(stage)
    finally:
        await stage.loops.aclose(2.0)
        stage.contexts.threads.close()


def role(server: RedisServer) -> str:
    return str(server.ask("ROLE")[0])


# -- a named replica -------------------------------------------------------------------------------------------------


async def test_s32_a_replica_is_promoted_once_its_primary_is_proven_down(
    redis: RedisServer, replica: RedisServer
) -> None:
    action = Failover(replica=replica.address)
    async with acting() as act:
        redis.kill()
        assert await act.probe(action, redis) is Settled.NOT_STARTED
        for words in ("is the primary now", "was the primary already"):
            assert await act.does(action, redis, Kept(server=redis)) == f"{replica.address} {words}"
            assert role(replica) == "master"
        assert await act.probe(action, redis) is Settled.DONE
    assert replica.ask("GET", "a") == "1"
    assert replica.ask("SET", "b", "2") == "OK"


async def test_s32_without_a_fence_it_refuses_and_says_what_is_missing(
    redis: RedisServer, replica: RedisServer
) -> None:
    action = Failover(replica=replica.address)
    async with acting() as act:
        assert "is running" in await act.refuses(action, redis, Kept(server=redis))
        redis.freeze()  # we hear nothing of it, and it may wake up at any time
        assert "is running" in await act.refuses(action, redis, Kept(server=redis))
        redis.thaw()
        redis.kill()
        assert "no workload" in await act.refuses(action, redis)
        assert role(replica) == "slave"
        stop = Failover(replica=replica.address, fence="stop")
        assert "cannot be stopped" in await act.refuses(stop, redis, Kept(server=redis))


async def test_who_has_to_may_stop_the_old_primary_and_then_promote(redis: RedisServer, replica: RedisServer) -> None:
    redis.freeze()
    async with acting() as act:
        action = Failover(replica=replica.address, fence="stop")
        assert await act.probe(action, redis) is None
        assert (await act.does(action, redis, Stoppable(server=redis))).endswith("; the old one was stopped first")
    assert not redis.running
    assert role(replica) == "master"


async def test_who_stopped_the_old_primary_and_could_not_promote_says_that_it_is_down(
    redis: RedisServer, replica: RedisServer
) -> None:
    """Nothing heals what was stopped on purpose: whoever is called must know that it was."""

    @attrs.frozen(kw_only=True)
    class Both(Stoppable):
        async def stop(self, context: ActionContext) -> None:
            await context.blocking(self.server.kill)
            await context.blocking(replica.kill)

    async with acting() as act:
        said = await act.refuses(Failover(replica=replica.address, fence="stop"), redis, Both(server=redis))
    assert "the old primary was stopped for this and stays so" in said
    assert replica.address in said


async def test_a_workload_that_is_down_while_its_address_answers_is_no_fence(
    redis: RedisServer, replica: RedisServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "nobody") as nobody:
        async with acting() as act:
            text = await act.refuses(Failover(replica=replica.address), redis, Kept(server=nobody))
            assert "and yet" in text
            assert redis.address in text
            assert role(replica) == "slave"


async def test_a_replica_that_still_hears_its_primary_is_not_promoted(
    redis: RedisServer, replica: RedisServer, tmp_path: Path
) -> None:
    """We are cut off from the primary, and the replica is not."""
    with RedisServer(tmp_path / "nobody") as nobody:  # what we believe the primary to be: nothing is there
        async with acting() as act:
            text = await act.refuses(Failover(replica=replica.address), nobody, Kept(server=nobody), 2.0)
            assert "still hears its primary" in text
            assert role(replica) == "slave"


async def test_a_copy_that_is_too_old_or_of_unknown_age_is_not_promoted(
    redis: RedisServer, replica: RedisServer
) -> None:
    redis.kill()
    replica.becomes(lambda info: int(info.get("master_link_down_since_seconds", "-1")) > 1, "the copy grows old")
    workload = Kept(server=redis)
    async with acting() as act:
        assert "stale_limit" in await act.refuses(Failover(replica=replica.address, stale_limit=1.0), redis, workload)
        replica.kill()
        replica.start("--replicaof", "127.0.0.1", str(redis.port))
        assert "never had a link" in await act.refuses(Failover(replica=replica.address), redis, workload)
        assert role(replica) == "slave"


async def test_a_replica_that_is_dead_locked_or_frozen_is_a_failure_in_time(
    redis: RedisServer, replica: RedisServer
) -> None:
    redis.kill()
    workload, action = Kept(server=redis), Failover(replica=replica.address)
    async with acting() as act:
        replica.freeze()
        began = time.monotonic()
        assert "in time" in await act.refuses(action, redis, workload, 1.0)
        assert time.monotonic() - began < 1.5
        replica.thaw()
        wrong = Failover(replica=replica.address, password=Secret("hunter2-canary-51d2e8"))
        assert "refused" in await act.refuses(wrong, redis, workload)
        replica.kill()
        assert "cannot be reached" in await act.refuses(action, redis, workload)
        assert await act.probe(action, redis) is None


async def test_s62_what_is_missing_for_a_failover_is_told_before_it_is_needed(
    redis: RedisServer, replica: RedisServer
) -> None:
    action = Failover(replica=replica.address)
    async with acting() as act:
        assert await act.proves(action, redis, Kept(server=redis)) == ""
        assert "has no workload" in await act.proves(action, redis)
        stop = Failover(replica=replica.address, fence="stop")
        assert "cannot be stopped" in await act.proves(stop, redis, Kept(server=redis))
        assert await act.proves(stop, redis, Stoppable(server=redis)) == ""
        itself = Failover(replica=redis.address)
        assert "is no replica but a master" in await act.proves(itself, redis, Kept(server=redis))
        assert replica.ask("ACL", "SETUSER", "default", "-replicaof") == "OK"
        assert "ACL SETUSER default +replicaof" in await act.proves(action, redis, Kept(server=redis))
        replica.kill()
        assert "cannot be reached" in await act.proves(action, redis, Kept(server=redis))
    assert role(redis) == "master"


def test_a_failover_without_a_name_is_refused_at_load() -> None:
    for options in (
        {},
        {"replica": "127.0.0.1:1", "sentinels": ["127.0.0.1:2"], "master": "main"},
        {"replica": "127.0.0.1"},
        {"replica": "::1:6379"},
        {"sentinels": ["127.0.0.1:1"]},
        {"sentinels": ["127.0.0.1"], "master": "main"},
        {"sentinels": ["127.0.0.1:1"], "master": "main; FLUSHALL"},
        {"replica": "127.0.0.1:1", "fence": "hope"},
    ):
        with pytest.raises((ValueError, TypeError)):
            Failover(**options)


# -- Sentinel --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sentinel(tmp_path: Path, redis: RedisServer, replica: RedisServer) -> Iterator[RedisSentinel]:
    with RedisSentinel(tmp_path / "sentinel", redis) as server:
        server.start()
        server.becomes(lambda info: "slaves=1" in info["master0"], "Sentinel knows of the replica", 20.0)
        until(lambda: server.replica()["master-link-status"] == "ok", "Sentinel has looked at the replica")
        yield server


def by_sentinel(*sentinels: str) -> Failover:
    return Failover(sentinels=sentinels, master="main")


async def test_a_primary_that_is_well_is_left_alone(redis: RedisServer, sentinel: RedisSentinel) -> None:
    async with acting() as act:
        assert await act.proves(by_sentinel(sentinel.address), redis) == ""
        stranger = Failover(sentinels=(sentinel.address,), master="stranger")
        assert "knows no stranger" in await act.proves(stranger, redis)
        said = await act.does(by_sentinel(f"127.0.0.1:{free_port()}", sentinel.address), redis)
        assert said == f"the primary {redis.address} is well, and was left alone"
    assert role(redis) == "master"


async def test_sentinel_fails_over_from_a_primary_that_calls_itself_sick(
    redis: RedisServer, replica: RedisServer, sentinel: RedisSentinel
) -> None:
    redis.ask("CONFIG", "SET", "save", "3600 1")
    shutil.rmtree(redis.folder)
    redis.ask("BGSAVE")
    redis.becomes(lambda info: info.get("rdb_last_bgsave_status") == "err", "the save has failed")
    assert redis.ask("PING").startswith("-MISCONF")
    async with acting() as act:
        said = await act.does(by_sentinel(sentinel.address), redis, timeout=30.0)
        assert said == f"Sentinel failed over from {redis.address} to {replica.address}"
        assert role(replica) == "master"
        await act.does(by_sentinel(sentinel.address), redis)  # the new one is well: nothing happens
        assert role(replica) == "master"
        assert await act.probe(by_sentinel(sentinel.address), redis) is None


async def test_silence_that_only_we_hear_is_no_fence(
    redis: RedisServer, replica: RedisServer, sentinel: RedisSentinel
) -> None:
    redis.freeze()
    async with acting() as act:
        assert "the fault may be ours" in await act.refuses(by_sentinel(sentinel.address), redis)
    assert role(replica) == "slave"


async def test_silence_that_sentinel_hears_too_is(
    redis: RedisServer, replica: RedisServer, sentinel: RedisSentinel
) -> None:
    assert sentinel.ask("SENTINEL", "SET", "main", "down-after-milliseconds", "300") == "OK"
    redis.freeze()
    sentinel.becomes(lambda info: "status=ok" not in info["master0"] or str(replica.port) in info["master0"], "noticed")
    async with acting() as act:
        await act.does(by_sentinel(sentinel.address), redis, timeout=30.0)
    assert role(replica) == "master"


async def test_a_sentinel_that_knows_nothing_or_is_alone_or_gone_is_a_failure_in_words(
    redis: RedisServer, sentinel: RedisSentinel
) -> None:
    async with acting() as act:
        stranger = Failover(sentinels=(sentinel.address,), master="stranger")
        assert "knows no stranger" in await act.refuses(stranger, redis)
        sentinel.ask("SENTINEL", "SET", "main", "quorum", "2")
        sentinel.ask("SENTINEL", "SET", "main", "down-after-milliseconds", "300")
        redis.kill()
        sentinel.becomes(lambda info: "status=ok" not in info["master0"], "noticed")
        assert "NOQUORUM" in await act.refuses(by_sentinel(sentinel.address), redis)
        sentinel.kill()
        assert "no Sentinel could be asked" in await act.refuses(by_sentinel(sentinel.address), redis)
