"""The deep check of `redis`, with the driver, against the real server."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trustme
from tests.servers import free_port, until
from tests.stack.redis import RedisClient, RedisSentinel, RedisServer

from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.secret import Secret
from selfheal.testing import servers
from selfheal.testing.stage import SERVICE, Stage, verdict_of
from selfheal_redis.check import RedisCheck

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


class Looking:
    """Runs deep checks where selfheal runs them; what is kept is kept from one to the next."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def at(self, check: RedisCheck, timeout: float = 3.0) -> CheckResult:
        contexts = self._stage.contexts
        outcome = await self._stage.run(
            lambda: check.check(contexts.for_check(SERVICE, check, timeout, deep=True)), timeout, "check"
        )
        result = verdict_of(outcome)
        assert WRONG not in repr((result, outcome.error))
        return result

    async def finds(
        self, check: RedisCheck, verdict: Verdict, cause: Cause | None, timeout: float = 3.0
    ) -> CheckResult:
        result = await self.at(check, timeout)
        assert (result.verdict, result.cause) == (verdict, cause), result
        return result


@asynccontextmanager
async def looking() -> AsyncIterator[Looking]:
    stage = Stage()
    try:
        yield Looking(stage)
    finally:
        await stage.loops.aclose(2.0)
        stage.contexts.threads.close()


async def test_a_healthy_one_says_more_and_its_connection_is_kept(redis: RedisServer) -> None:
    redis.start()
    check = RedisCheck(url=redis.url)
    async with looking() as look:
        result = await look.finds(check, Verdict.PASSING, None)
        assert result.instance == redis.info()["run_id"]
        assert result.details["role"] == "primary"
        assert result.details["slow_commands"] == 0
        assert isinstance(result.details["ping_seconds"], float)
        before = redis.info()["total_connections_received"]
        await look.finds(check, Verdict.PASSING, None)
        assert int(redis.info()["total_connections_received"]) == int(before) + 1  # that one is the question itself
        check.renew()
        await look.finds(check, Verdict.PASSING, None)
        assert int(redis.info()["total_connections_received"]) == int(before) + 3
        redis.kill()
        await look.finds(check, Verdict.FAILING, Cause.UNREACHABLE)
        redis.start()
        await look.finds(check, Verdict.PASSING, None)
        redis.kill()
        redis.start()
        await look.finds(check, Verdict.PASSING, None)  # the kept one died at rest: that proves nothing


async def test_nothing_is_written_unless_a_key_is_named_and_then_a_key_of_others_is_left_alone(
    redis: RedisServer,
) -> None:
    redis.start()
    async with looking() as look:
        await look.finds(RedisCheck(url=redis.url), Verdict.PASSING, None)
        assert "cmdstat_set:" not in str(redis.ask("INFO", "commandstats"))
        check = RedisCheck(url=redis.url, write_key="selfheal:probe")
        await look.finds(check, Verdict.PASSING, None)
        assert "cmdstat_set:" in str(redis.ask("INFO", "commandstats"))
        assert redis.ask("DBSIZE") == 0
        redis.ask("SET", "selfheal:probe", "theirs")
        await look.finds(check, Verdict.PASSING, None)
        assert redis.ask("GET", "selfheal:probe") == "theirs"


async def test_a_write_that_is_refused_is_told_with_its_reason(redis: RedisServer, tmp_path: Path) -> None:
    redis.start("--min-replicas-to-write", "1")
    check = RedisCheck(url=redis.url, write_key="selfheal:probe")
    async with looking() as look:
        assert redis.ask("SET", "a", "1").startswith("-NOREPLICAS")
        text = (await look.finds(attrs.evolve(check, write_key=None), Verdict.WARNING, Cause.DEGRADED_CLUSTER)).summary
        assert "min-replicas-to-write" in text
        await look.finds(check, Verdict.FAILING, Cause.DEGRADED_CLUSTER)
        redis.ask("CONFIG", "SET", "min-replicas-to-write", "0")
        redis.ask("SET", "big", "x" * 4_000_000)
        redis.ask("CONFIG", "SET", "maxmemory", "3mb")
        assert redis.ask("SET", "a", "1").startswith("-OOM")
        await look.finds(check, Verdict.FAILING, Cause.OVERLOADED)
        redis.ask("CONFIG", "SET", "maxmemory", "0")
        redis.ask("REPLICAOF", "127.0.0.1", str(free_port()))
        assert redis.ask("SET", "a", "1").startswith("-READONLY")
        await look.finds(check, Verdict.FAILING, Cause.READ_ONLY)


async def test_who_may_not_come_in_is_auth_also_when_the_password_changes_under_a_kept_connection(
    redis: RedisServer,
) -> None:
    redis.start("--requirepass", "sesame")
    check = RedisCheck(url=redis.url, password=Secret("sesame"))
    async with looking() as look:
        await look.finds(check, Verdict.PASSING, None)
        assert "no password" in (await look.finds(RedisCheck(url=redis.url), Verdict.FAILING, Cause.AUTH)).summary
        await look.finds(RedisCheck(url=redis.url, password=Secret(WRONG)), Verdict.FAILING, Cause.AUTH)
        with RedisClient(redis) as client:
            client.ask("AUTH", "sesame")
            client.ask("CONFIG", "SET", "requirepass", "open")
        await look.finds(check, Verdict.FAILING, Cause.AUTH)


@pytest.mark.parametrize("knows_reset", [True, False])
async def test_a_first_password_set_under_a_kept_connection_is_auth(redis: RedisServer, knows_reset: bool) -> None:
    redis.start(*(() if knows_reset else ("--rename-command", "RESET", "")))
    check = RedisCheck(url=redis.url.replace("/0", "/3"), write_key="probe")
    async with looking() as look:
        with RedisClient(redis) as inside:
            for _ in range(2):
                await look.finds(check, Verdict.PASSING, None)
                ours = [line for line in inside.ask("CLIENT", "LIST").splitlines() if " name=selfheal " in line]
                assert [line for line in ours if " db=3 " in line] == ours != []  # in its database, under its name
            inside.ask("CONFIG", "SET", "requirepass", "open")
            assert redis.ask("PING").startswith("-NOAUTH")
            assert "no password" in (await look.finds(check, Verdict.FAILING, Cause.AUTH)).summary


async def test_a_user_with_few_rights_gets_what_they_allow(redis: RedisServer) -> None:
    redis.start("--user", "watcher", "on", ">sesame", "-@all", "+ping", "+role", "+info")
    async with looking() as look:
        check = RedisCheck(url=redis.url, username="watcher", password=Secret("sesame"))
        assert "slow_commands" not in (await look.finds(check, Verdict.PASSING, None)).details


async def test_loading_no_place_and_a_busy_script_are_told_apart_by_the_driver_too(redis: RedisServer) -> None:
    redis.start("--maxclients", "3", "--lua-time-limit", "50")
    script = "for i = 1, 1000 do redis.call('SET', 'key' .. i, string.rep('x', 100)) end"
    redis.ask("EVAL", script, "0")
    redis.ask("SAVE")
    check = RedisCheck(url=redis.url)
    async with looking() as look:
        crowd = redis.crowd(3)
        await look.finds(check, Verdict.FAILING, Cause.OVERLOADED)
        for client in crowd:
            client.close()
        redis.becomes(lambda info: info["connected_clients"] == "1", "the crowd has left")
        runs = threading.Thread(target=redis.ask, args=("EVAL", "while true do end", "0"), kwargs={"timeout": 20.0})
        runs.start()
        until(lambda: str(redis.ask("PING")).startswith("-BUSY"), "the script runs too long")
        assert "SCRIPT KILL" in (await look.finds(check, Verdict.FAILING, Cause.OVERLOADED)).summary
        redis.ask("SCRIPT", "KILL")
        runs.join(10.0)
        redis.kill()
        redis.begin("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
        until(lambda: str(redis.ask("PING")).startswith("-LOADING"), "Redis loads")
        assert "% is read" in (await look.finds(check, Verdict.FAILING, Cause.STARTING)).summary


async def test_a_frozen_one_ends_at_the_deadline_kept_or_not(redis: RedisServer) -> None:
    redis.start()
    check = RedisCheck(url=redis.url)
    async with looking() as look:
        await look.finds(check, Verdict.PASSING, None)
        redis.freeze()
        for _ in range(2):
            began = time.monotonic()
            await look.finds(check, Verdict.FAILING, Cause.TIMEOUT, 0.6)
            assert time.monotonic() - began < 1.2
        redis.thaw()
        await look.finds(check, Verdict.PASSING, None)


async def test_over_tls_and_a_unix_socket_and_what_is_wrong_with_them(redis: RedisServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("redis.example")
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    own, port = str(tmp_path / "own.pem"), free_port()
    redis.start(
        *("--tls-port", str(port), "--tls-cert-file", own, "--tls-key-file", own, "--tls-auth-clients", "yes"),
        *("--tls-ca-cert-file", str(tmp_path / "authority.pem"), "--unixsocket", str(tmp_path / "redis.sock")),
    )
    check = RedisCheck(
        url=f"rediss://127.0.0.1:{port}",
        authority=tmp_path / "authority.pem",
        certificate=tmp_path / "own.pem",
        server_name="redis.example",
    )
    async with looking() as look:
        await look.finds(check, Verdict.PASSING, None)
        await look.finds(attrs.evolve(check, server_name=None), Verdict.FAILING, Cause.CONFIG)
        await look.finds(attrs.evolve(check, authority=None), Verdict.FAILING, Cause.CONFIG)
        await look.finds(RedisCheck(url=f"unix://{tmp_path / 'redis.sock'}"), Verdict.PASSING, None)
        await look.finds(RedisCheck(url=f"unix://{tmp_path / 'nobody.sock'}"), Verdict.FAILING, Cause.UNREACHABLE)


async def test_a_cluster_that_does_not_serve_its_slots_fails(redis: RedisServer) -> None:
    redis.start("--cluster-enabled", "yes")
    check = RedisCheck(url=redis.url, write_key="selfheal:probe")
    async with looking() as look:
        assert "cluster_state:fail" in redis.ask("CLUSTER", "INFO")
        result = await look.finds(check, Verdict.FAILING, Cause.DEGRADED_CLUSTER)
        assert "16384 of 16384" in result.summary
        assert redis.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == "OK"
        until(lambda: "cluster_state:ok" in redis.ask("CLUSTER", "INFO"), "the cluster serves")
        await look.finds(check, Verdict.PASSING, None)


async def test_a_sentinel_that_could_not_fail_over_warns(redis: RedisServer, tmp_path: Path) -> None:
    redis.start()
    with RedisSentinel(tmp_path / "sentinel", redis, quorum=2) as sentinel:
        sentinel.start()
        assert "NOQUORUM" in sentinel.ask("SENTINEL", "CKQUORUM", "main")
        async with looking() as look:
            result = await look.finds(RedisCheck(url=sentinel.url), Verdict.WARNING, Cause.DEGRADED_CLUSTER)
            assert "NOQUORUM" in result.summary


async def test_what_is_no_redis_and_a_black_hole_are_told_apart() -> None:
    async with looking() as look:
        with servers.answer(b"HTTP/1.1 400 Bad Request\r\n\r\n") as garbage, servers.black_hole() as hole:
            await look.finds(RedisCheck(url=f"redis://{garbage}"), Verdict.FAILING, Cause.ERROR)
            await look.finds(RedisCheck(url=f"redis://{hole}"), Verdict.FAILING, Cause.TIMEOUT, 0.4)
        await look.finds(RedisCheck(url=f"redis://127.0.0.1:{free_port()}"), Verdict.FAILING, Cause.UNREACHABLE)
