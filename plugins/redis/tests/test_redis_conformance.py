"""The check and the actions of `redis` do what a plugin must do; and a thousand failures leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import anyio
import attrs
import pytest
from tests.stack.redis import RedisServer

from selfheal.core.model import Cause, Instance, Run, Verdict
from selfheal.loading import load_plugins
from selfheal.plugins import Action, ActionContext, Context, HealthCheck
from selfheal.secret import Secret
from selfheal.testing import servers
from selfheal.testing.conformance import ActionConformance, CheckConformance
from selfheal.testing.probing import Turned
from selfheal.testing.stage import Stage, descriptors, verdict_of
from selfheal_redis.check import RedisCheck
from selfheal_redis.failover import Failover
from selfheal_redis.reconnect import Reconnect
from selfheal_redis.reset_cache import ResetCache

pytestmark = [pytest.mark.server, pytest.mark.real_time]

TOKEN = "hunter2-canary-51d2e8"


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), password=TOKEN) as server:
        server.start()
        yield server


def at(address: str) -> RedisCheck:
    return RedisCheck(url=f"redis://{address}", password=Secret(TOKEN))


class TestCheck(CheckConformance):
    """Its talk and its check alike."""

    runs = 10

    @pytest.fixture(autouse=True)
    def _server(self, well: RedisServer) -> None:
        self.address = well.address

    def make(self) -> HealthCheck:
        return attrs.evolve(at(self.address), write_key="selfheal:probe")

    def make_broken(self, fault: str, address: str) -> HealthCheck:
        return at(address)


class Acts(ActionConformance):
    """An action, whose address is the one of the check that stands beside it."""

    timeout = 5.0
    runs = 3
    secret = TOKEN

    @pytest.fixture(autouse=True)
    def _server(self, well: RedisServer) -> Iterator[None]:
        self.well = well
        with servers.hang() as self.hanging:
            yield

    def beside(self, check: RedisCheck) -> Action:
        """Return the action, with this check beside it."""
        self.check = check  # type: ignore[misc]  # each situation has its own
        return self.action()

    def action(self) -> Action:
        raise NotImplementedError

    def make(self) -> Action:
        return self.beside(at(self.well.address))

    def make_slow(self) -> Action:
        return self.beside(at(self.hanging))

    def make_failing(self) -> Action:
        return self.beside(attrs.evolve(at(self.well.address), password=Secret("wrong")))

    def check_at(self, address: str) -> HealthCheck | None:
        return at(address)


class TestReconnectOfOurOwn(Acts):
    inapplicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("make_broken", "make_slow", "make_failing", "observe"), "it speaks to nobody, and always succeeds"
    )

    def action(self) -> Action:
        return Reconnect()

    def make_slow(self) -> Any:
        return None

    def make_failing(self) -> Any:
        return None

    def check_at(self, address: str) -> None:
        return None


class TestReconnectOfTheServersClients(Acts):
    def action(self) -> Action:
        return Reconnect(kill_name="nobody")

    def observe(self) -> object:
        return self.well.ask("PING")


class TestResetCache(Acts):
    def action(self) -> Action:
        return ResetCache(pattern="cache:*")

    def make(self) -> Action:
        self.well.ask("FLUSHALL")
        self.well.ask("SET", "cache:1", "x", "EX", "1000")
        return super().make()

    def observe(self) -> object:
        return self.well.ask("DBSIZE")


@attrs.frozen(kw_only=True)
class Dead:
    """A workload that has ended."""

    kind: ClassVar[str] = "dead"

    async def inspect(self, context: Context) -> Instance:
        return Instance(id="dead", run=Run.EXITED)

    async def restart(self, context: ActionContext) -> None:
        raise AssertionError("nobody asked for that")


class TestFailover(Acts):
    runs = 2
    workload = Dead()

    @pytest.fixture(autouse=True)
    def _pair(self, tmp_path: Path) -> Iterator[None]:
        with RedisServer(tmp_path / "primary", password=TOKEN) as self.primary:
            with RedisServer(tmp_path / "replica", password=TOKEN) as self.replica:
                self.replica.start("--repl-diskless-sync-delay", "0")
                yield

    def action(self) -> Action:
        return self.to(self.replica.address)

    def to(self, address: str) -> Action:
        self.check = at(self.primary.address)  # type: ignore[misc]  # each situation has its own
        return Failover(replica=address)

    def make(self) -> Action:
        if self.replica.ask("ROLE")[0] == "master":
            self.primary.start("--repl-diskless-sync-delay", "0")
            self.replica.ask("REPLICAOF", "127.0.0.1", str(self.primary.port))
            self.replica.becomes(lambda info: info.get("master_link_status") == "up", "the replica follows", 30.0)
            self.primary.kill()
            self.replica.becomes(lambda info: info.get("master_link_status") == "down", "the primary is dead")
        return self.action()

    def make_slow(self) -> Action:
        return self.to(self.hanging)

    def make_failing(self) -> Action:
        return Failover(replica=self.replica.address, password=Secret("wrong"))

    def make_broken(self, fault: str, address: str) -> Action:
        return self.to(address)

    def observe(self) -> object:
        return self.replica.ask("ROLE")[0]


# -- what is registered ----------------------------------------------------------------------------------------------


def test_everything_is_found_by_its_name_and_is_what_it_says() -> None:
    tables = load_plugins(["redis"])
    assert tables.checks["redis"] is RedisCheck
    for verb, cls in {"reconnect": Reconnect, "reset_cache": ResetCache, "failover": Failover}.items():
        assert tables.actions[f"redis.{verb}"] is cls


# -- a thousand failures ---------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[], AbstractContextManager[str]], set[Cause]]] = {
    "refused": (servers.refuse, {Cause.UNREACHABLE, Cause.TIMEOUT}),
    "silent": (servers.hang, {Cause.TIMEOUT}),
    "hole": (servers.black_hole, {Cause.TIMEOUT}),
    "reset": (lambda: servers.reset(b"+OK"), {Cause.UNREACHABLE, Cause.TIMEOUT}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_s64_a_thousand_failing_light_checks_leave_nothing_open(fault: str) -> None:
    make, causes = FAULTS[fault]
    with make() as address:
        turned = Turned()
        lanes = [turned.runner.lane(at(address), 0.05, None) for _ in range(50)]
        turned.run(lanes[0])
        before = (descriptors(), plugin_threads())
        for _ in range(20):
            told = len(turned.told)
            for lane in lanes:
                turned.runner.start(lane, 0.0)
            turned.turn(lambda told=told: len(turned.told) == told + 50)  # type: ignore[misc]  # bound on purpose
        assert {result.cause for _, result in turned.told} <= causes
        assert turned.runner.connections == 0
        settled_at(before)
        turned.runner.close()


@pytest.mark.parametrize("fault", ["refused", "silent", "reset"])
def test_s64_a_thousand_failing_deep_checks_leave_nothing_open(fault: str) -> None:
    make, causes = FAULTS[fault]

    async def body(address: str) -> None:
        stage = Stage()
        seen: set[Cause | None] = set()

        async def one(number: int) -> None:
            check, name = at(address), f"service-{number}"
            context = stage.contexts.for_check
            outcome = await stage.loops.run(name, lambda: check.check(context(name, check, 0.05)), timeout=0.05)
            result = verdict_of(outcome)
            assert result.verdict is Verdict.FAILING, result
            seen.add(result.cause)

        async def fifty() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(one, number)

        await stage.check(at(address), 5.0)  # the driver is imported
        await fifty()
        seen.clear()
        before = await stage.open_now()
        for _ in range(20):
            await fifty()
        assert (await stage.settled(before, 5.0)).more_than(before) == {}
        assert seen <= causes, seen
        await stage.loops.aclose(2.0)
        stage.contexts.threads.close()

    with make() as address:
        anyio.run(body, address)


def plugin_threads() -> int:
    return sum(not thread.name.startswith("fault-server") for thread in threading.enumerate())


def settled_at(before: tuple[int, int]) -> None:
    """The peer is in this process too, and its end of a connection closes a little later."""
    from tests.servers import until

    until(lambda: (descriptors(), plugin_threads()) <= before, f"{before} descriptors and threads are open", 5.0)
