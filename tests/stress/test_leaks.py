"""A thousand failing checks of each kind, by each of its roads, leave descriptors and threads where they were."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from selfheal import Secret
from selfheal.core.model import CheckResult, Verdict
from selfheal.loading import load_plugins
from selfheal.shell.plugin_thread import Ending
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal.testing.stage import Stage, children, descriptors, roads_of, verdict_of

pytestmark = pytest.mark.real_time

DEADLINE: Final = 0.05
CROWD: Final = 50
ROUNDS: Final = 20
PATIENCE: Final = 10.0
PASSWORD: Final = Secret("hunter2-canary-51d2e8")

FEWER: Final = {"command": 5}
"""kind -> in how many parts a crowd of it comes: programs that are all killed at once take a busy machine long."""

FAULTS: Final[dict[str, Callable[[], AbstractContextManager[str]]]] = {
    "refused": servers.refuse,
    "mute": servers.hang,
}

MADE: Final[dict[str, Callable[[Any, str], Any]]] = {
    "tcp": lambda cls, at: cls(address=at),
    "http": lambda cls, at: cls(url=f"http://{at}/health"),
    "redis_ping": lambda cls, at: cls(url=f"redis://{at}", password=PASSWORD),
    "redis": lambda cls, at: cls(url=f"redis://{at}", password=PASSWORD),
    "postgres": lambda cls, at: cls(url=f"postgresql://watcher@{at}/postgres", password=PASSWORD),
    "neo4j": lambda cls, at: cls(uri=f"bolt://{at}", password=PASSWORD),
    "weaviate": lambda cls, at: cls(url=f"http://{at}", api_key=PASSWORD),
    "minio": lambda cls, at: cls(url=f"http://{at}", access_key="watcher", secret_key=PASSWORD, bucket="things"),
}
"""kind -> how a check of it is made, for a server at an address."""

MADE_OF_FAULTS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "command": lambda cls, fault: cls(command=("/bin/false",) if fault == "refused" else ("/bin/sleep", "60")),
    "process": lambda cls, fault: cls(pid_file=Path("/nonexistent" if fault == "refused" else "/dev/zero")),
    "heartbeat": lambda cls, fault: _overdue(cls(every=0.05, grace=0.0)),
}
"""The same for what has no address: how it is made to fail."""

TABLES: Final = load_plugins()
KINDS: Final = sorted(TABLES.checks)


def _overdue(check: Any) -> Any:
    check.beat(time.monotonic() - 60.0)
    return check


def test_every_kind_of_check_there_is_has_its_thousand() -> None:
    assert set(KINDS) == set(MADE) | set(MADE_OF_FAULTS), "say how a check of each kind is made to fail"
    owners = {TABLES.checks.owner(kind) for kind in KINDS}
    assert owners >= {"selfheal", "redis", "postgres", "minio", "weaviate", "neo4j"}, "are all plugins installed?"


def _roads() -> Iterator[Any]:
    for kind in KINDS:
        roads = roads_of(_bare(kind))
        for road in roads:
            for fault in FAULTS:
                yield pytest.param(kind, road, fault, id=f"{kind}-{road}-{fault}")


def _bare(kind: str) -> Any:
    cls = TABLES.checks[kind]
    return MADE[kind](cls, "127.0.0.1:9") if kind in MADE else MADE_OF_FAULTS[kind](cls, "refused")


def made(kind: str, fault: str, address: str) -> Any:
    cls = TABLES.checks[kind]
    return MADE[kind](cls, address) if kind in MADE else MADE_OF_FAULTS[kind](cls, fault)


def threads() -> int:
    return sum(not thread.name.startswith("fault-server") for thread in threading.enumerate())


def counted() -> tuple[int, int, int]:
    return descriptors(), threads(), len(children())


def settled_at(before: tuple[int, int, int]) -> None:
    """The peer is in this process too, and its end of a connection closes a little later."""
    end = time.monotonic() + PATIENCE
    while any(now > then for now, then in zip(counted(), before, strict=True)):
        assert time.monotonic() < end, f"descriptors, threads and processes were {before} and are {counted()}"
        threading.Event().wait(0.02)


def is_failure(result: CheckResult) -> bool:
    """Whether it says that the service fails, or that it could not look: never that all is well."""
    return result.verdict in (Verdict.FAILING, Verdict.INCONCLUSIVE)


@pytest.mark.parametrize(("kind", "road", "fault"), list(_roads()))
def test_s64_a_thousand_failing_checks_leave_descriptors_and_threads_where_they_were(
    kind: str, road: str, fault: str
) -> None:
    # Whoever takes the connection answers a check of TCP: there a black hole is what says nothing.
    faulty = servers.black_hole if (kind, fault) == ("tcp", "mute") else FAULTS[fault]
    with faulty() as address, servers.refuse() as nobody:
        make = partial(made, kind, fault, address)
        if road == "talk":
            _by_talk(make)
        else:
            anyio.run(_by_check, make, made(kind, "refused", nobody), FEWER.get(kind, 1))


def _by_talk(make: Callable[[], Any]) -> None:
    turned = Turned()
    lanes = [turned.runner.lane(make(), DEADLINE, None) for _ in range(CROWD)]

    def crowd() -> None:
        told = len(turned.told)
        for lane in lanes:
            turned.runner.start(lane, time.monotonic())
        turned.turn(lambda: len(turned.told) == told + CROWD)

    crowd()  # the first calls are no part of the count
    before = counted()
    for _ in range(ROUNDS):
        crowd()
    results = [result for _, result in turned.told]
    assert len(results) == CROWD * (ROUNDS + 1)
    assert all(map(is_failure, results)), results[-1]
    assert turned.runner.connections == 0
    settled_at(before)
    turned.runner.close()


async def _by_check(make: Callable[[], Any], first: Any, parts: int) -> None:
    stage = Stage()
    checks = [make() for _ in range(CROWD // parts)]
    results: list[CheckResult] = []

    async def one(name: str, check: Any, deadline: float = DEADLINE) -> None:
        def begin() -> Any:
            return check.check(stage.contexts.for_check(name, check, deadline, deep=True))

        outcome = await stage.loops.run(name, begin, timeout=deadline)
        assert outcome.ending is not Ending.ABANDONED
        results.append(verdict_of(outcome))

    async def crowd() -> None:
        for _ in range(parts):
            async with anyio.create_task_group() as tasks:
                for number, check in enumerate(checks):
                    tasks.start_soon(one, f"service-{number}", check)

    await one("service-0", first, 10.0)  # the driver is imported
    await crowd()
    await crowd()
    results.clear()
    before = await stage.open_now()
    all_before = counted()
    for _ in range(ROUNDS):
        await crowd()
    assert len(results) == CROWD * ROUNDS
    assert all(map(is_failure, results)), results[-1]
    assert (await stage.settled(before, PATIENCE)).more_than(before) == {}
    await anyio.to_thread.run_sync(settled_at, _with_one_more_thread(all_before))
    if parts == 1:  # whoever kills programs may take longer than its grace on a busy machine, and is told of
        assert stage.named("blocked", "ignored_cancellation") == []
    await stage.loops.aclose(2.0)
    stage.contexts.threads.close()


def _with_one_more_thread(before: tuple[int, int, int]) -> tuple[int, int, int]:
    """The thread that counts is one more."""
    return before[0], before[1] + 1, before[2]


def test_what_leaks_would_be_seen() -> None:
    """The count itself: one descriptor, one thread more is seen."""
    over, opened = threading.Event(), os.open(os.devnull, os.O_RDONLY)
    os.close(opened)
    before = counted()
    opened = os.open(os.devnull, os.O_RDONLY)
    thread = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    now = counted()
    os.close(opened)
    over.set()
    thread.join()
    assert (now[0] - before[0], now[1] - before[1]) == (1, 1)
