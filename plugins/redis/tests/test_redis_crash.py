"""A manager that is killed in the middle of an action of `redis`: its successor finds out what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from tests.servers import until
from tests.shell.supervised import hearing, quick
from tests.stack.killed import Ended, killed_afterwards
from tests.stack.redis import RedisServer

from selfheal import Supervisor
from selfheal_redis.check import RedisCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    """One host is enough: what is tested runs on asyncio in a thread of ours; the conformance kit has every host."""
    return "asyncio"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        server.start("--repl-diskless-sync-delay", "0")
        yield server


LINES = """
from pathlib import Path
from typing import ClassVar
import attrs
from selfheal import Cause, CheckResult, Instance, Run, Verdict
from selfheal_redis.check import RedisCheck

@attrs.frozen(kw_only=True)
class Sick(RedisCheck):
    def talk(self):
        return CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary="sick")
        yield

@attrs.frozen(kw_only=True)
class Slow:
    kind: ClassVar[str] = "slow"

    async def inspect(self, context):
        if hasattr(context, "incident"):  # the action asks, which it does while it fences
            Path({folder!r}, "fencing").touch()
            await anyio.sleep(60.0)
        return Instance(id="old", run=Run.EXITED)

    async def restart(self, context):
        raise NotImplementedError
"""


def manager(folder: Path, url: str, step: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Have a manager that finds its Redis sick, for the length of the block, and SIGKILL it then."""
    lines = LINES.format(folder=str(folder))
    return killed_afterwards(folder / "selfheal.db", step, f"check=Sick(url={url!r}), workload=Slow()", lines)


async def eventually(true: Callable[[], object], what: str) -> None:
    await anyio.to_thread.run_sync(lambda: until(true, what, 30.0))


async def test_a_reset_of_the_cache_is_in_doubt_and_not_done_again(
    redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = 100_000
    fill = "for i = 1, ARGV[1] do redis.call('SET', 'cache:' .. i, 'x', 'EX', 1000) end"
    redis.ask("EVAL", fill, "0", keys)
    step = {"action": "reset_cache", "pattern": "cache:*", "batch": 1, "timeout": 4.0, "allow_destructive": True}
    with manager(tmp_path, redis.url, step):
        await eventually(lambda: redis.ask("DBSIZE") < keys, "it has removed some")
    left = redis.ask("DBSIZE")
    assert 0 < left < keys
    service = quick("service", check=RedisCheck(url=redis.url), workload=Ended(), recovery_actions=[step])
    for module in ("repair", "roster"):  # what may still run is given half a minute more
        monkeypatch.setattr(f"selfheal.core.{module}.ORPHAN_MARGIN", 1.0)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
        ended = await heard.first("ended", within=20.0)
        assert ended.settled.value == "in_doubt", ended
        assert len(heard.of("intended")) == 1
    assert redis.ask("DBSIZE") == left


async def test_a_failover_that_had_not_promoted_is_done_once_by_the_successor(
    redis: RedisServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "replica") as replica:
        replica.start("--replicaof", "127.0.0.1", str(redis.port))
        replica.becomes(lambda info: info.get("master_link_status") == "up", "the replica follows", 30.0)
        step = {"action": "failover", "replica": replica.address, "timeout": 30.0, "settle": 0.1}
        redis.kill()
        with manager(tmp_path, redis.url, step):
            await eventually((tmp_path / "fencing").exists, "it fences")
        assert replica.ask("ROLE")[0] == "slave"
        options: dict[str, Any] = {"workload": Ended(), "recovery_actions": [step], "start_grace": 0.0}
        service = quick("service", check=RedisCheck(url=redis.url), **options)
        async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor, hearing(supervisor) as heard:
            first = await heard.first("ended", within=20.0)
            assert (first.settled.value, first.refunded) == ("not_started", True), first
            second = await heard.first("ended", nth=2, within=20.0)
            assert (second.settled.value, second.detail) == ("done", f"{replica.address} is the primary now")
        assert replica.ask("ROLE")[0] == "master"
