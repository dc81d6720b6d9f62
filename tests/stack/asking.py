"""How the tests of a plugin run its check where selfheal runs it: on the runner of talks, or on the plugin loop.

Nothing here is about one service.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import anyio

from selfheal.core.model import CheckResult
from selfheal.shell.results import Scrubber, checked
from selfheal.testing.probing import Turned
from selfheal.testing.stage import Open, Stage, verdict_of


def light(check: Any, timeout: float = 5.0) -> CheckResult:
    """Run a wire check once, on a connection of its own."""
    turned = Turned()
    try:
        return turned.run(check, timeout)
    finally:
        turned.runner.close()


def deep(check: Any, timeout: float = 10.0, backend: str = "asyncio") -> CheckResult:
    """Run a coroutine check once, on the plugin loop of a host of this kind; return what the runner makes of it."""

    async def run() -> CheckResult:
        stage = Stage()
        try:
            return await _deep(stage, "deep", check, timeout)
        finally:
            await stage.loops.aclose(2.0)
            stage.contexts.threads.close()

    return anyio.run(run, backend=backend)


async def _deep(stage: Stage, service: str, check: Any, timeout: float) -> CheckResult:
    scrubber = Scrubber(check)
    return verdict_of(
        await stage.loops.run(
            service,
            lambda: checked(check, stage.contexts.for_check(service, check, timeout, deep=True), scrubber),
            timeout=timeout,
        )
    )


@contextmanager
def silence() -> Iterator[int]:
    """Be a port that takes every connection, as the kernel does by itself, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        yield listener.getsockname()[1]


def left_by_light_failures(check: Any, count: int = 1000) -> dict[str, int]:
    """Run so many light checks, 50 ms each, and return of what there is more afterwards. All must fail."""

    async def run() -> dict[str, int]:
        stage, turned = Stage(), Turned()
        try:
            _fail_lightly(turned, check, 50)
            before = await stage.open_now()
            _fail_lightly(turned, check, count)
            return (await stage.settled(before, 5.0)).more_than(before)
        finally:
            turned.runner.close()
            await stage.loops.aclose(2.0)

    return anyio.run(run)


def _fail_lightly(turned: Turned, check: Any, count: int) -> None:
    before = len(turned.told)
    for _ in range(count):
        turned.runner.start(turned.runner.lane(check, 0.05, None), monotonic())
    turned.turn(lambda: len(turned.told) == before + count, 30.0)
    assert all(result.verdict.value == "failing" for _, result in turned.told), turned.told[-1][1]


def left_by_deep_failures(check: Any, count: int = 1000, at_once: int = 20) -> dict[str, int]:
    """Run so many deep checks, 50 ms each, for several services at once; return of what there is more afterwards."""

    async def some(stage: Stage, service: str, number: int) -> None:
        for _ in range(number):
            result = await _deep(stage, service, check, 0.05)
            assert result.verdict.value == "failing", result

    async def all_of(stage: Stage, number: int) -> None:
        async with anyio.create_task_group() as tasks:
            for each in range(at_once):
                tasks.start_soon(some, stage, f"service{each}", number)

    async def run() -> dict[str, int]:
        stage = Stage()
        try:
            await _deep(stage, "service0", check, 1.0)  # drivers are imported at the first call
            await all_of(stage, 2)
            before: Open = await stage.open_now()
            await all_of(stage, count // at_once)
            return (await stage.settled(before, 5.0)).more_than(before)
        finally:
            await stage.loops.aclose(2.0)
            stage.contexts.threads.close()

    return anyio.run(run)
