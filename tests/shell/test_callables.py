"""An application's own functions as checks: where they run and what their values mean."""

# ruff: noqa: ASYNC110, ASYNC251  # conditions in other threads are polled, and blocking a loop is the subject
from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from tests.broken import fails_when

from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.errors import SecretUnreadable
from selfheal.shell.blocking import ServiceThreads
from selfheal.shell.callables import Application, Callables, is_async
from selfheal.shell.plugin_loop import poke_here
from selfheal.shell.plugin_thread import Ending, Report

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(
    *, threaded: bool = False, elsewhere: Application | None = None
) -> AsyncIterator[tuple[Callables, list[Report]]]:
    threads, reports = ServiceThreads(), list[Report]()
    yield Callables(threads, poke=poke_here(), told=reports.append, threaded=threaded, elsewhere=elsewhere), reports
    threads.close()


async def ask(function: Callable[[], object], timeout: float = 1.0) -> CheckResult:
    async with running() as (callables, _):
        return (await callables.check("app", function, timeout=timeout)).result


def returning(value: object) -> list[Callable[[], object]]:
    """The same value said in every way a callable can say it (S6)."""

    async def asynchronous() -> object:
        await anyio.lowlevel.checkpoint()
        return value

    class Asynchronous:
        async def __call__(self) -> object:
            return await asynchronous()

    class Future:
        def __await__(self) -> object:
            return asynchronous().__await__()

    return [
        asynchronous,
        partial(asynchronous),
        Asynchronous(),
        partial(Asynchronous()),
        lambda: asynchronous(),  # noqa: PLW0108  # the lambda is the subject
        Future,
        lambda: value,
    ]


@fails_when("what a callable returns is never awaited")
async def test_s06_every_way_of_being_asynchronous_is_awaited() -> None:
    for function in returning(False):
        result = await ask(function)
        assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.ERROR), function
    for function in returning(True):
        assert await ask(function) is PASSING, function


@fails_when("what is no result is a success")
@pytest.mark.parametrize("value", ["down", "", None, 0, 1, {}, object])
async def test_s05_any_other_value_is_inconclusive(value: object) -> None:
    for function in returning(value):
        result = await ask(function)
        assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


async def test_a_verdict_and_a_result_count_as_they_are() -> None:
    assert (await ask(lambda: Verdict.WARNING)).verdict is Verdict.WARNING
    said = CheckResult(Verdict.FAILING, cause=Cause.FULL, summary="97 % used", details={"used": 0.97})
    assert await ask(lambda: said) == said


@pytest.mark.parametrize(
    ("problem", "verdict", "cause"),
    [
        (RuntimeError("x"), Verdict.FAILING, Cause.ERROR),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), Verdict.FAILING, Cause.ERROR),
        (OSError(errno.EMFILE, "x"), Verdict.INCONCLUSIVE, Cause.ERROR),
        (ImportError("x"), Verdict.INCONCLUSIVE, Cause.CONFIG),
        (SecretUnreadable("the environment has no URL"), Verdict.INCONCLUSIVE, Cause.CONFIG),
        (NameError("x"), Verdict.INCONCLUSIVE, Cause.ERROR),
        (TypeError("x"), Verdict.INCONCLUSIVE, Cause.ERROR),
        (AttributeError("x"), Verdict.INCONCLUSIVE, Cause.ERROR),
        (SystemExit("x"), Verdict.INCONCLUSIVE, Cause.ERROR),
        (asyncio.CancelledError("x"), Verdict.INCONCLUSIVE, Cause.ERROR),
    ],
)
async def test_s10_what_a_callable_raises_is_kept_and_bugs_are_no_failures(
    problem: BaseException, verdict: Verdict, cause: Cause
) -> None:
    def plain() -> None:
        raise problem

    async def asynchronous() -> None:
        await anyio.lowlevel.checkpoint()
        raise problem

    for function in (plain, asynchronous):
        result = await ask(function)
        assert (result.verdict, result.cause) == (verdict, cause)
        if isinstance(problem, RuntimeError):
            assert result.summary == "RuntimeError: x"


async def test_an_asynchronous_callable_runs_on_the_hosts_loop_and_a_plain_one_in_its_services_thread() -> None:
    async def here() -> str:
        return threading.current_thread().name

    async with running() as (callables, _):
        assert (await callables.run("app", here, timeout=1.0)).value == threading.current_thread().name
        name = await callables.run("app", lambda: threading.current_thread().name, timeout=1.0)
        assert name.value == "selfheal-app"


async def test_arguments_are_handed_on_for_an_applications_cure() -> None:
    async def reset_pool(context: str) -> str:
        return context

    async with running() as (callables, _):
        assert (await callables.run("app", reset_pool, "context", timeout=1.0)).value == "context"


@pytest.mark.parametrize("function", [lambda: anyio.sleep(30.0), lambda: time.sleep(0.5)])
async def test_a_total_deadline_holds(function: Callable[[], object]) -> None:
    async with running() as (callables, _):
        checked = await callables.check("app", function, timeout=0.1)
    assert (checked.result.verdict, checked.result.cause) == (Verdict.FAILING, Cause.TIMEOUT)
    assert 0.09 <= checked.ended - checked.started < 0.25


@fails_when("who blocks the host is not named")
async def test_s15_a_callable_that_blocks_the_hosts_loop_is_reported_with_how_long_and_fails_its_deadline() -> None:
    async def blocks() -> bool:
        await anyio.lowlevel.checkpoint()
        time.sleep(0.3)
        return True

    async with running() as (callables, reports):
        checked = await callables.check("app", blocks, timeout=0.1)
        assert (checked.result.verdict, checked.result.cause) == (Verdict.FAILING, Cause.TIMEOUT)
        assert (await callables.check("app", blocks, timeout=1.0)).result is PASSING
    assert [(report.kind, report.owner) for report in reports] == [("host", "app")] * 2
    assert 0.28 < reports[0].seconds < 0.5


@fails_when("every call has a thread of its own")
async def test_s16_a_plain_callable_that_is_stuck_is_not_started_again() -> None:
    release, runs = threading.Event(), 0

    def stuck() -> bool:
        nonlocal runs
        runs += 1
        return release.wait()

    async with running() as (callables, _):
        try:
            await callables.check("stuck-app", stuck, timeout=0.05)
            for _ in range(1000):
                result = (await callables.check("stuck-app", stuck, timeout=0.05)).result
                assert runs == 1
            assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.TIMEOUT)
            assert [thread.name for thread in threading.enumerate()].count("selfheal-stuck-app") == 1
        finally:
            release.set()
        with anyio.fail_after(2.0):
            while (await callables.check("stuck-app", stuck, timeout=0.5)).result is not PASSING:
                await anyio.sleep(0.005)


async def test_cancelling_a_check_cancels_the_callable() -> None:
    ended = False

    async def waits() -> bool:
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            ended = True
        return True

    async with running() as (callables, _):
        with anyio.move_on_after(0.05) as scope:
            await callables.check("app", waits, timeout=30.0)
    assert scope.cancelled_caught
    assert ended


# -- threaded(): the supervisor's loop is not the application's -----------------------------------------------------


async def test_threaded_with_no_loop_turning_an_asynchronous_callable_is_inconclusive_and_says_so() -> None:
    async with running(threaded=True) as (callables, _):
        for function in returning(True)[:-1]:
            result = (await callables.check("app", function, timeout=1.0)).result
            assert result.verdict is Verdict.INCONCLUSIVE
            assert "threaded()" in result.summary
        assert (await callables.check("app", lambda: True, timeout=1.0)).result is PASSING


def test_no_loop_is_here_where_none_turns() -> None:
    assert Application.here() is None


@asynccontextmanager
async def application_elsewhere(backend: str) -> AsyncIterator[tuple[Application, Callable[[float], None]]]:
    """An application whose loop turns in another thread; the second value blocks it for some seconds."""
    started, ended = threading.Event(), threading.Event()
    found: list[Application] = []

    async def main() -> None:
        application = Application.here()
        assert application is not None
        found.append(application)
        started.set()
        while not ended.is_set():
            await anyio.sleep(0.005)

    thread = threading.Thread(target=partial(anyio.run, main, backend=backend), name="application", daemon=True)
    thread.start()
    await asyncio_safe_wait(started)
    try:
        yield found[0], lambda seconds: (found[0].run_soon(partial(time.sleep, seconds)), None)[1]
    finally:
        ended.set()
        thread.join(5.0)


async def asyncio_safe_wait(event: threading.Event) -> None:
    with anyio.fail_after(5.0):
        while not event.is_set():
            await anyio.sleep(0.005)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_threaded_an_asynchronous_callable_runs_on_the_loop_it_was_called_from(backend: str) -> None:
    async def there() -> str:
        await anyio.sleep(0.001)
        return threading.current_thread().name

    async def raises() -> None:
        await anyio.lowlevel.checkpoint()
        raise SystemExit(3)

    ended = threading.Event()

    async def never() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with application_elsewhere(backend) as (application, block):
        async with running(threaded=True, elsewhere=application) as (callables, _):
            assert (await callables.run("app", there, timeout=1.0)).value == "application"
            assert (await callables.check("app", raises, timeout=1.0)).result.verdict is Verdict.INCONCLUSIVE
            assert (await callables.run("app", never, timeout=0.1)).ending is Ending.TIMED_OUT
            await asyncio_safe_wait(ended)
            block(0.5)
            await anyio.sleep(0.05)
            late = (await callables.check("app", there, timeout=0.1)).result
            assert late.verdict is Verdict.INCONCLUSIVE, "the application's loop stood still: no word about the service"
            assert (await callables.run("app", there, timeout=2.0)).value == "application"


def test_what_counts_as_asynchronous() -> None:
    async def asynchronous() -> None: ...

    class Object:
        async def method(self) -> None: ...
        async def __call__(self) -> None: ...

    yes: list[Callable[..., Awaitable[None]]] = [asynchronous, Object().method, Object(), partial(partial(Object()))]
    assert all(is_async(function) for function in yes)
    assert not any(is_async(function) for function in (lambda: True, int, partial(int)))
