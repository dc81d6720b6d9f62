"""The actions of `redis` against the real server: what they cure, what they refuse, and what they leave alone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.servers import free_port, until
from tests.stack.redis import RedisServer

from selfheal.builtin.wire_checks import RedisPing
from selfheal.core.model import Effect
from selfheal.errors import ActionFailed, Problem
from selfheal.secret import Secret
from selfheal.shell.contexts import Act
from selfheal.shell.plugin_thread import Ending, Outcome
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal.testing.stage import SERVICE, Stage
from selfheal_redis.check import RedisCheck
from selfheal_redis.reconnect import Reconnect
from selfheal_redis.reset_cache import ResetCache

pytestmark = [pytest.mark.server, pytest.mark.real_time, pytest.mark.anyio]

WRONG = "hunter2-canary-51d2e8"


@pytest.fixture
def anyio_backend() -> str:
    """One host is enough: what is tested runs on asyncio in a thread of ours; the conformance kit has every host."""
    return "asyncio"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


class Acting:
    """Runs actions where selfheal runs them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def run(self, action: Any, check: Any, workload: Any = None, timeout: float = 5.0) -> Outcome:
        act = Act(key="1/redis/1/0", incident=1, check=check, workload=workload)
        outcome = await self.stage.run(
            lambda: action.run(self.stage.contexts.for_action(SERVICE, action, timeout, act)), timeout, "action"
        )
        assert WRONG not in repr(outcome.error)
        return outcome

    async def does(self, action: Any, check: Any, workload: Any = None, timeout: float = 5.0) -> str:
        outcome = await self.run(action, check, workload, timeout)
        assert outcome.ending is Ending.VALUE, outcome.error
        assert isinstance(outcome.value, str)
        return outcome.value

    async def refuses(self, action: Any, check: Any, workload: Any = None, timeout: float = 5.0) -> str:
        outcome = await self.run(action, check, workload, timeout)
        assert isinstance(outcome.error, ActionFailed), outcome
        return str(outcome.error)

    async def proves(self, action: Any, check: Any, workload: Any = None, timeout: float = 5.0) -> list[Problem]:
        """Return what the doctor of an action says."""
        act = Act(key="doctor", check=check, workload=workload)
        outcome = await self.stage.run(
            lambda: action.doctor(self.stage.contexts.for_action(SERVICE, action, timeout, act)), timeout
        )
        assert outcome.ending is Ending.VALUE, outcome.error
        assert isinstance(outcome.value, list)
        return outcome.value


@asynccontextmanager
async def acting() -> AsyncIterator[Acting]:
    stage = Stage()
    try:
        yield Acting(stage)
    finally:
        await stage.loops.aclose(2.0)
        stage.contexts.threads.close()


# -- reconnect -------------------------------------------------------------------------------------------------------


async def test_reconnect_replaces_our_own_connection_and_never_fails_for_the_server(redis: RedisServer) -> None:
    redis.start()
    check = RedisCheck(url=redis.url)
    turned = Turned()
    lane = turned.runner.lane(check, 2.0, None)
    turned.run(lane)
    first = next(line for line in redis.ask("CLIENT", "LIST").splitlines() if "name=selfheal" in line).split(" ")[0]
    async with acting() as act:
        for _ in range(2):
            assert "made anew" in await act.does(Reconnect(), check)
        turned.run(lane)
        turned.run(lane)
        assert f"{first} " not in redis.ask("CLIENT", "LIST")
        redis.kill()
        await act.does(Reconnect(), check)
    turned.runner.close()
    assert Reconnect().effect is Effect.GENTLE
    assert Reconnect(kill_idle=60.0).effect is Effect.DISRUPTIVE


async def test_s38_an_action_needs_the_address_of_its_own_check(redis: RedisServer) -> None:
    async with acting() as act:
        for action in (Reconnect(), ResetCache(database=0)):
            assert "no check of Redis" in await act.refuses(action, RedisPing(url=redis.url))
            assert "no check of Redis" in await act.refuses(action, None)


async def test_s38_the_server_of_the_check_is_acted_on_and_no_other(redis: RedisServer, tmp_path: Path) -> None:
    redis.start()
    with RedisServer(tmp_path / "other") as other:
        other.start()
        for server in (redis, other):
            server.ask("SET", "cache:1", "x", "EX", "1000")
        async with acting() as act:
            await act.does(ResetCache(pattern="cache:*"), RedisCheck(url=redis.url))
        assert (redis.ask("DBSIZE"), other.ask("DBSIZE")) == (0, 1)


async def test_clients_are_ended_by_name_and_nobody_else(redis: RedisServer) -> None:
    redis.start()
    worker, web, ours = redis.crowd(3)
    worker.ask("CLIENT", "SETNAME", "worker-7")
    web.ask("CLIENT", "SETNAME", "web")
    ours.ask("CLIENT", "SETNAME", "selfheal")
    async with acting() as act:
        said = [
            await act.does(Reconnect(kill_name=name), RedisCheck(url=redis.url))
            for name in ("worker-*", "worker-*", "self*")  # a second time there is nobody, and ours are never ended
        ]
    assert said[0].startswith("ended 1 clients: worker-7@127.0.0.1:")
    assert said[1] == said[2] == "no client met what was asked for, and none was ended"
    assert web.ask("PING") == ours.ask("PING") == "PONG"
    with pytest.raises((EOFError, OSError)):
        worker.ask("PING")


async def test_clients_are_ended_when_idle_by_user_or_as_subscribers(redis: RedisServer) -> None:
    redis.start("--user", "app", "on", ">sesame", "~*", "&*", "+@all")
    idle, busy, reader = redis.crowd(3)
    until(lambda: busy.ask("PING") and "idle=2" in redis.ask("CLIENT", "LIST"), "somebody is idle")
    async with acting() as act:
        await act.does(Reconnect(kill_idle=2.0), RedisCheck(url=redis.url))
        assert busy.ask("PING") == "PONG"
        for client in (idle, reader):
            with pytest.raises((EOFError, OSError)):
                client.ask("PING")
        app, reader = redis.crowd(2)
        app.ask("AUTH", "app", "sesame")
        reader.ask("SUBSCRIBE", "news")
        reader.ask("CLIENT", "SETNAME", "reader")
        await act.does(Reconnect(kill_user="app"), RedisCheck(url=redis.url))
        with pytest.raises((EOFError, OSError)):
            app.ask("PING")
        await act.does(Reconnect(kill_name="*", kill_type="pubsub"), RedisCheck(url=redis.url))
        reader.send("PING")
        until(lambda: "name=reader" not in redis.ask("CLIENT", "LIST"), "the subscriber is gone")
        assert busy.ask("PING") == "PONG"


async def test_where_there_is_no_place_for_us_it_waits_for_one_and_says_so_in_the_end(redis: RedisServer) -> None:
    redis.start("--maxclients", "4")
    crowd = redis.crowd(4)
    check, action = RedisCheck(url=redis.url), Reconnect(kill_name="crowd")
    for client in crowd:
        client.ask("CLIENT", "SETNAME", "crowd")
    assert "max number of clients" in redis.ask("PING")
    async with acting() as act:
        assert "maxclients" in await act.refuses(action, check, timeout=1.0)
        crowd[0].close()
        await act.does(action, check)
        assert "max number of clients" not in redis.ask("PING")


async def test_a_client_may_not_be_ended_without_the_right_to(redis: RedisServer) -> None:
    redis.start("--user", "watcher", "on", ">sesame", "-@all", "+ping")
    async with acting() as act:
        check = RedisCheck(url=redis.url, username="watcher", password=Secret("sesame"))
        assert "client" in await act.refuses(Reconnect(kill_idle=1.0), check)
        check = RedisCheck(url=redis.url, password=Secret(WRONG))
        assert "refused" in await act.refuses(Reconnect(kill_idle=1.0), check)


# -- reset_cache -----------------------------------------------------------------------------------------------------


def fill(redis: RedisServer, expiring: int, lasting: int, prefix: str = "cache:") -> None:
    script = """for i = 1, ARGV[1] do redis.call('SET', ARGV[3] .. i, 'x', 'EX', 1000) end
                for i = 1, ARGV[2] do redis.call('SET', 'kept:' .. i, 'x') end"""
    assert redis.ask("EVAL", script, "0", expiring, lasting, prefix) is None


async def test_a_cache_is_reset_by_pattern_and_the_rest_stays(redis: RedisServer) -> None:
    redis.start()
    fill(redis, 5000, 50)
    fill(redis, 100, 0, "session:")
    async with acting() as act:
        for keys in (5000, 0):
            said = await act.does(ResetCache(pattern="cache:*", batch=100), RedisCheck(url=redis.url))
            assert said == f"removed {keys} keys that match 'cache:*'"
            assert redis.ask("DBSIZE") == 150
    assert len(redis.ask("KEYS", "session:*")) == 100


async def test_a_database_is_emptied_and_the_others_stay(redis: RedisServer) -> None:
    redis.start()
    fill(redis, 100, 0)
    redis.ask("SWAPDB", "0", "3")
    fill(redis, 50, 0)
    async with acting() as act:
        for words in ("emptied database 3: 100 keys were removed", "database 3 was empty already"):
            assert await act.does(ResetCache(database=3), RedisCheck(url=redis.url)) == words
            assert redis.ask("DBSIZE") == 50
        await act.does(ResetCache(database=0, pattern="cache:1*"), RedisCheck(url=f"{redis.url[:-1]}3"))
    assert redis.ask("DBSIZE") == 39


async def test_s27_what_is_no_cache_is_not_deleted_from_and_what_is_not_named_neither(redis: RedisServer) -> None:
    redis.start()
    fill(redis, 100, 12)
    check = RedisCheck(url=redis.url)
    async with acting() as act:
        assert "12 of 112 keys" in await act.refuses(ResetCache(pattern="cache:*"), check)
        assert "12 of 112 keys" in await act.refuses(ResetCache(database=0), check)
        assert "it is not said" in await act.refuses(ResetCache(), check)
        assert redis.ask("DBSIZE") == 112
        await act.does(ResetCache(pattern="cache:*", persistent_share=0.2), check)
        assert redis.ask("DBSIZE") == 12
    assert ResetCache.effect is Effect.DESTRUCTIVE  # and so it asks a person, unless the step says otherwise


async def test_a_replica_a_cluster_and_a_sick_server_are_refused(redis: RedisServer, tmp_path: Path) -> None:
    redis.start("--cluster-enabled", "yes")
    redis.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    until(lambda: redis.ask("SET", "cache:1", "x", "EX", "1000") == "OK", "the cluster serves")
    async with acting() as act:
        assert "cluster" in await act.refuses(ResetCache(pattern="cache:*"), RedisCheck(url=redis.url))
        with RedisServer(tmp_path / "replica") as replica:
            replica.start("--replicaof", "127.0.0.1", str(redis.port))
            with replica.crowd(1)[0] as client:
                client.ask("REPLICAOF", "NO", "ONE")
                client.ask("SET", "a", "1", "EX", "1000")
                client.ask("REPLICAOF", "127.0.0.1", str(free_port()))
            assert "replica" in await act.refuses(ResetCache(database=0), RedisCheck(url=replica.url))
        redis.kill()
        assert "cannot be reached" in await act.refuses(ResetCache(database=0), RedisCheck(url=redis.url))


async def test_a_deadline_ends_it_and_another_run_goes_on(redis: RedisServer) -> None:
    redis.start()
    fill(redis, 30_000, 0)
    check = RedisCheck(url=redis.url)
    async with acting() as act:
        redis.freeze()
        began = time.monotonic()
        outcome = await act.run(ResetCache(pattern="cache:*"), check, timeout=0.5)
        assert outcome.ending is not Ending.VALUE
        assert time.monotonic() - began < 1.5
        redis.thaw()
        left = redis.ask("DBSIZE")
        outcome = await act.run(ResetCache(pattern="cache:*", batch=1), check, timeout=0.3)
        assert outcome.ended - outcome.started < 0.4
        assert isinstance(outcome.error, ActionFailed), outcome
        removed = left - redis.ask("DBSIZE")
        assert 0 < removed < left
        assert f"{removed} keys were removed before that" in str(outcome.error)
        rest = await act.does(ResetCache(pattern="cache:*"), check)
        assert rest == f"removed {left - removed} keys that match 'cache:*'"
        assert redis.ask("DBSIZE") == 0


async def test_one_that_is_cancelled_in_the_middle_ends_at_once(redis: RedisServer) -> None:
    """The driver's own time-outs lose a cancellation; see `line`."""
    redis.start()
    fill(redis, 30_000, 0)
    async with acting() as act:
        check, action = RedisCheck(url=redis.url), ResetCache(pattern="cache:*", batch=1)
        context = act.stage.contexts.for_action(SERVICE, action, 5.0, Act(key="1/redis/1/0", check=check))
        outcome, took = await act.stage.cancelled_after(0.1, lambda: action.run(context), "action")
        assert outcome.ending is Ending.CANCELLED, outcome
        assert took < 0.2
    assert 0 < redis.ask("DBSIZE") < 30_000


async def test_a_server_that_dies_in_the_middle_is_a_failure_that_says_how_far_it_came(redis: RedisServer) -> None:
    redis.start()
    fill(redis, 30_000, 0)

    def kill() -> None:
        until(lambda: redis.ask("DBSIZE") < 29_000, "some keys are gone")
        redis.kill()

    async with acting() as act:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            said = await act.refuses(ResetCache(pattern="cache:*", batch=1), RedisCheck(url=redis.url), timeout=20.0)
        finally:
            killer.join()
    assert re.search(r"keys were removed before that$", said), said


@pytest.mark.parametrize("pattern", ["*", "?ache:*", "[c]ache:*", "", "\\*"])
def test_s29_a_pattern_that_begins_with_a_wildcard_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        ResetCache(pattern=pattern)


def test_nonsense_in_a_step_is_refused() -> None:
    for options in ({"database": -1}, {"database": "all"}, {"persistent_share": 2.0}, {"batch": 0}):
        with pytest.raises((ValueError, TypeError)):
            ResetCache(**options)
    for options in ({"kill_idle": 0.0}, {"kill_name": ""}, {"kill_type": "master"}):
        with pytest.raises((ValueError, TypeError)):
            Reconnect(**options)


async def test_a_black_hole_and_one_that_is_no_redis_are_failures_in_words() -> None:
    async with acting() as act:
        with servers.black_hole() as hole, servers.answer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as http:
            assert "in time" in await act.refuses(ResetCache(database=0), RedisCheck(url=f"redis://{hole}"), None, 0.5)
            assert "not the answer" in await act.refuses(ResetCache(database=0), RedisCheck(url=f"redis://{http}"))


# -- before they are needed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "rules"),
    [
        (ResetCache(pattern="cache:*"), "+info +scan +unlink ~cache:*"),
        (ResetCache(database=0), "+info +dbsize +flushdb"),
        (Reconnect(kill_idle=3600.0), "+client|id +client|list +client|kill"),
    ],
    ids=["pattern", "database", "clients"],
)
async def test_s62_what_the_user_may_not_is_told_and_the_remedy_works_word_for_word(
    redis: RedisServer, action: Any, rules: str
) -> None:
    redis.start("--user", "healer", "on", ">sesame", "-@all", "+ping")
    fill(redis, 100, 0)
    (client,) = redis.crowd(1)
    check = RedisCheck(url=redis.url, username="healer", password=Secret("sesame"))
    async with acting() as act:
        (problem,) = await act.proves(action, check)
        assert problem.hint == f"ACL SETUSER healer {rules}"
        assert problem.message.startswith(f"{action.verb}: the user healer lacks ")
        assert redis.ask(*problem.hint.split()) == "OK"
        assert await act.proves(action, check) == []
        assert (redis.ask("DBSIZE"), client.ask("PING")) == (100, "PONG"), "nothing was done"
        await act.does(action, check)


async def test_s62_what_would_be_refused_or_cannot_be_proven_is_told(redis: RedisServer) -> None:
    async with acting() as act:
        check = RedisCheck(url=redis.url)
        for action in (ResetCache(database=0), Reconnect(kill_idle=60.0)):
            assert "not proven" in str(await act.proves(action, check))
        assert await act.proves(Reconnect(), check) == []
        redis.start()
        fill(redis, 100, 12)
        assert "12 of 112 keys" in str(await act.proves(ResetCache(database=0), check))
        assert await act.proves(ResetCache(), check) == [], "as the specification's ladders have it"
