"""What a plugin call is given: time, a place to keep things, and the service's one thread."""

# ruff: noqa: ASYNC110  # conditions in other threads are polled, and blocking a loop is the subject
from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from tests.broken import fails_when

from selfheal.core.model import Cause, Verdict
from selfheal.shell.blocking import DaemonPool, ServiceThreads, StillStuck
from selfheal.shell.contexts import Act, Contexts
from selfheal.shell.plugin_loop import PluginLoops, poke_here
from selfheal.shell.plugin_thread import Ending, Report
from selfheal.shell.results import of_outcome

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running() -> AsyncIterator[tuple[PluginLoops, Contexts, list[Report]]]:
    contexts = Contexts()
    reports: list[Report] = []
    loops = PluginLoops(poke=poke_here(), told=reports.append, kept=contexts.kept)
    try:
        yield loops, contexts, reports
    finally:
        await loops.aclose(2.0)
        contexts.threads.close()


class Connection:
    def __init__(self, *, slow: float = 0.0, problem: type[BaseException] | None = None) -> None:
        self.closed_in: str = ""
        self._slow = slow
        self._problem = problem

    async def aclose(self) -> None:
        if self._problem:
            raise self._problem
        await asyncio.sleep(self._slow)
        self.closed_in = threading.current_thread().name


class Plain:
    closed = False

    def close(self) -> None:
        self.closed = True


async def test_remaining_counts_down_from_the_deadline_and_is_never_negative() -> None:
    context = Contexts().plain("redis", object(), 0.05)
    assert 0.0 < context.remaining <= 0.05
    await anyio.sleep(0.06)
    assert context.remaining == 0.0


async def test_an_action_context_carries_the_intent() -> None:
    act = Act(key="17/redis/1/0", incident=17, attempt=2, cause=Cause.UNREACHABLE, arguments={"to": 3})
    context = Contexts().for_action("redis", object(), 1.0, act)
    assert (context.key, context.incident, context.attempt, context.cause) == ("17/redis/1/0", 17, 2, Cause.UNREACHABLE)
    assert context.arguments == {"to": 3}
    assert (context.workload, context.check, context.expected) == (None, None, None)


async def test_kept_belongs_to_service_object_and_loop() -> None:
    one, other = object(), object()
    async with running() as (loops, contexts, _):

        async def keep(service: str, plugin: object) -> int:
            context = contexts.plain(service, plugin, 1.0)
            context.kept["connection"] = context.kept.get("connection", 0) + 1
            return int(context.kept["connection"])

        async def kept(service: str, plugin: object, kind: str = "check") -> object:
            make = lambda: keep(service, plugin)  # noqa: E731
            return (await loops.run(service, make, timeout=1.0, kind=kind)).value  # type: ignore[arg-type]

        assert await kept("a", one) == 1
        assert await kept("a", one) == 2
        assert await kept("a", other) == 1
        assert await kept("b", one) == 1
        assert await kept("a", one, "action") == 1, "actions have a loop of their own"


async def test_kept_is_closed_on_its_loop_at_reload_and_begins_empty() -> None:
    connection, plain, foreign, plugin = Connection(), Plain(), Connection(), object()
    async with running() as (loops, contexts, _):

        async def keep(service: str, *values: object) -> int:
            kept = contexts.plain(service, plugin, 1.0).kept
            before = len(kept)
            kept.update({str(number): value for number, value in enumerate(values)})
            return before

        await loops.run("redis", lambda: keep("redis", connection, plain, 42), timeout=1.0)
        await loops.run("other", lambda: keep("other", foreign), timeout=1.0)
        await loops.close_kept("redis")
        assert connection.closed_in == "selfheal-checks"
        assert plain.closed
        assert not bool(foreign.closed_in)
        assert (await loops.run("redis", lambda: keep("redis"), timeout=1.0)).value == 0
    assert foreign.closed_in == "selfheal-checks", "closed at stop"


async def test_what_will_not_close_is_named_by_its_type_and_holds_nobody_up() -> None:
    good, plugin = Connection(), object()
    async with running() as (loops, contexts, reports):

        async def keep() -> None:
            kept = contexts.plain("redis", plugin, 1.0).kept
            kept.update(slow=Connection(slow=30.0), bad=Connection(problem=SystemExit), good=good)

        await loops.run("redis", keep, timeout=1.0)
        began = time.monotonic()
        await loops.close_kept("redis", timeout=0.2)
        assert time.monotonic() - began < 0.6
        with anyio.fail_after(1.0):
            while len(reports) < 2:
                await anyio.sleep(0.01)
    assert good.closed_in
    assert sorted(report.where for report in reports) == [
        "Connection: SystemExit when it was closed",
        "Connection: did not close within 0.2 s",
    ]


async def test_blocking_runs_in_the_services_one_daemon_thread() -> None:
    async with running() as (loops, contexts, _):

        async def check() -> tuple[str, bool, int, int]:
            context = contexts.plain("redis", object(), 1.0)
            thread = await context.blocking(threading.current_thread)
            again = await context.blocking(threading.get_ident)
            both = await asyncio.gather(context.blocking(divmod, 7, 2), context.blocking(threading.get_ident))
            assert both[0] == (3, 1), "two at once wait their turn"
            return thread.name, thread.daemon, again, both[1]

        value = (await loops.run("redis", check, timeout=1.0)).value
    assert isinstance(value, tuple)
    assert value[:2] == ("selfheal-redis", True)
    assert value[2] == value[3]


@pytest.mark.parametrize("problem", [ValueError, SystemExit, StopIteration])
async def test_what_a_blocking_function_raises_is_raised_at_the_await(problem: type[BaseException]) -> None:
    def raises() -> int:
        raise problem("no")

    async with running() as (loops, contexts, _):
        make = lambda: contexts.plain("redis", object(), 1.0).blocking(raises)  # noqa: E731
        outcome = await loops.run("redis", make, timeout=1.0)
        assert isinstance(outcome.error, RuntimeError if problem is StopIteration else problem)
        make = lambda: contexts.plain("redis", object(), 1.0).blocking(int)  # noqa: E731
        assert (await loops.run("redis", make, timeout=1.0)).value == 0


@fails_when("every call has a thread of its own")
async def test_s16_a_stuck_sync_check_due_a_thousand_times_keeps_one_thread() -> None:
    release, runs = threading.Event(), 0

    def stuck() -> None:
        nonlocal runs
        runs += 1
        release.wait()

    async with running() as (loops, contexts, _):
        make = lambda: contexts.plain("stuck-redis", object(), 0.05).blocking(stuck)  # noqa: E731
        try:
            assert (await loops.run("stuck-redis", make, timeout=0.05)).ending is Ending.TIMED_OUT
            for _ in range(1000):
                outcome = await loops.run("stuck-redis", make, timeout=0.05)
                assert isinstance(outcome.error, StillStuck)
            result = of_outcome(outcome, timeout=0.05)
            assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.TIMEOUT)
            assert "has not come back" in result.summary
            assert [thread.name for thread in threading.enumerate()].count("selfheal-stuck-redis") == 1
            assert runs == 1
        finally:
            release.set()
        with anyio.fail_after(1.0):
            while (await loops.run("stuck-redis", make, timeout=0.05)).ending is not Ending.VALUE:
                await anyio.sleep(0.01)


async def test_a_call_cancelled_before_its_deadline_is_waited_for_not_called_stuck() -> None:
    async with running() as (loops, contexts, _):

        def make() -> object:
            return contexts.plain("redis", object(), 2.0).blocking(time.sleep, 0.2)

        with anyio.move_on_after(0.05):
            await loops.run("redis", make, timeout=2.0)  # type: ignore[arg-type]
        assert (await loops.run("redis", make, timeout=2.0)).ending is Ending.VALUE  # type: ignore[arg-type]


async def test_a_function_whose_caller_gave_up_before_it_began_never_runs() -> None:
    release, ran = threading.Event(), threading.Event()
    async with running() as (loops, contexts, _):

        async def gives_up() -> None:
            context = contexts.plain("redis", object(), 5.0)
            first = asyncio.ensure_future(context.blocking(release.wait))
            await asyncio.sleep(0.01)
            second = asyncio.ensure_future(context.blocking(ran.set))
            await asyncio.sleep(0.01)
            second.cancel()
            await asyncio.wait([second])
            release.set()
            await first
            await context.blocking(int)

        assert (await loops.run("redis", gives_up, timeout=5.0)).ending is Ending.VALUE
    assert not ran.is_set()


@pytest.mark.real_time
async def test_eight_thousand_random_cancellations_leave_the_thread_free() -> None:
    chance = random.Random(7)
    async with running() as (loops, contexts, _):

        async def storm() -> int:
            cancelled = 0
            for _ in range(8000):
                context = contexts.plain("redis", object(), 60.0)
                task = asyncio.ensure_future(context.blocking(time.sleep, 0.0))
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.1:
                    await asyncio.sleep(chance.random() * 0.0005)
                task.cancel()
                await asyncio.wait([task])
                cancelled += task.cancelled()
            return cancelled

        cancelled = (await loops.run("redis", storm, timeout=60.0)).value
        assert isinstance(cancelled, int)
        assert cancelled > 0
        assert not contexts.threads.of("redis").stuck
        make = lambda: contexts.plain("redis", object(), 1.0).blocking(int)  # noqa: E731
        assert (await loops.run("redis", make, timeout=1.0)).value == 0
        with anyio.fail_after(1.0):
            while contexts.threads.of("redis").busy:
                await anyio.sleep(0.001)


async def test_a_closed_services_thread_ends_and_a_busy_one_is_kept_on_record() -> None:
    threads, release = ServiceThreads(), threading.Event()
    threads.of("a").start(release.wait, lambda _: None)
    threads.of("b").start(int, lambda _: None)
    with anyio.fail_after(1.0):
        while not threads.of("a").busy:
            await anyio.sleep(0.001)
    busy = threads.of("a")
    threads.close("a")
    assert threads.of("a") is busy
    threads.close("b")
    release.set()
    with anyio.fail_after(1.0):
        while {"selfheal-a", "selfheal-b"} & {thread.name for thread in threading.enumerate()}:
            await anyio.sleep(0.001)
    again = threading.Event()
    threads.of("a").start(again.set, lambda _: None)
    with anyio.fail_after(1.0):
        while not again.is_set():
            await anyio.sleep(0.001)
    threads.close()


async def test_a_service_that_comes_back_while_its_thread_is_to_end_keeps_it() -> None:
    threads, release, again = ServiceThreads(), threading.Event(), threading.Event()
    threads.of("a").start(release.wait, lambda _: None)
    with anyio.fail_after(1.0):
        while not threads.of("a").busy:
            await anyio.sleep(0.001)
    threads.close("a")
    threads.of("a").start(again.set, lambda _: None)
    assert [thread.name for thread in threading.enumerate()].count("selfheal-a") == 1
    release.set()
    with anyio.fail_after(1.0):
        while not again.is_set():
            await anyio.sleep(0.001)
    threads.close()


async def test_hung_lookups_of_one_plugin_leave_threads_for_the_others() -> None:
    release = threading.Event()

    async def hangs() -> None:
        await asyncio.gather(*(asyncio.to_thread(release.wait) for _ in range(20)))

    async def works() -> int:
        return await asyncio.to_thread(int)

    async with running() as (loops, _, _):
        before = threading.active_count()
        assert (await loops.run("bad", hangs, timeout=0.1)).ending is Ending.TIMED_OUT
        assert (await loops.run("good", works, timeout=1.0)).value == 0
        assert (await loops.run("bad", works, timeout=0.1)).ending is Ending.TIMED_OUT
        assert threading.active_count() - before <= 4 + 1 + 2
        release.set()
        assert (await loops.run("bad", works, timeout=1.0)).value == 0


def test_the_pool_runs_everything_once_and_its_idle_threads_end() -> None:
    pool = DaemonPool()
    futures = [pool.submit(lambda number=number: number) for number in range(500)]  # type: ignore[misc]
    assert [future.result(5.0) for future in futures] == list(range(500))
    pool.shutdown()
    end = time.monotonic() + 2.0
    while any(thread.name == "selfheal--io" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_nothing_holds_up_the_end_of_the_interpreter() -> None:
    code = """
import asyncio, threading, time, anyio
from selfheal.shell.contexts import Contexts
from selfheal.shell.plugin_loop import PluginLoops, poke_here
async def main():
    contexts = Contexts()
    loops = PluginLoops(poke=poke_here(), kept=contexts.kept)
    never = threading.Event()
    async def blocks(): never.wait()
    async def pool(): await asyncio.to_thread(never.wait)
    for make in (lambda: contexts.plain("a", None, 0.1).blocking(never.wait), pool, blocks):
        print((await loops.run("a", make, timeout=0.1)).ending)
anyio.run(main)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["timed_out"] * 3
    assert time.monotonic() - began < 10.0
    assert "Exception" not in done.stderr
