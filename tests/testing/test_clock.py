"""Virtual time: hours in no time, the same course each time, and nothing from outside."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from math import inf
from random import Random

import anyio
import anyio.to_thread
import pytest

from selfheal.testing.clock import HowToRun, NothingScheduled, NotVirtual, virtual_time

DAY = 86_400.0


@pytest.fixture
def run(anyio_backend: str) -> HowToRun:
    return virtual_time(anyio_backend)


def test_a_month_of_waiting_takes_no_time_and_loses_none(run: HowToRun) -> None:
    async def sleeper() -> list[float]:
        seen = [anyio.current_time()]
        for pause in (0.1, 30.0, 30 * DAY, 0.0, 1e-6):
            await anyio.sleep(pause)
            seen.append(anyio.current_time())
        return seen

    began = time.monotonic()
    seen = run(sleeper)
    assert time.monotonic() - began < 5.0
    month = 30.1 + 30 * DAY
    assert seen == pytest.approx([0.0, 0.1, 30.1, month, month, month + 1e-6], abs=1e-9)


def test_deadlines_end_waiting_at_their_time(run: HowToRun) -> None:
    async def waits_too_long() -> float:
        with anyio.move_on_after(3600.0):
            await anyio.sleep_forever()
        with pytest.raises(TimeoutError):
            with anyio.fail_after(10.0):
                await anyio.Event().wait()
        return anyio.current_time()

    assert run(waits_too_long) == 3610.0


def test_arguments_and_values_and_errors_go_through(run: HowToRun) -> None:
    async def divided(a: int, b: int) -> float:
        await anyio.sleep(1.0)
        return a / b

    assert run(divided, 3, 2) == 1.5
    with pytest.raises(ZeroDivisionError):
        run(divided, 3, 0)


async def hurly_burly() -> list[tuple[float, int]]:
    """Twenty tasks that tie, over and over, for the same limiter."""
    trace: list[tuple[float, int]] = []
    draw = Random(1)
    limiter = anyio.CapacityLimiter(3)

    async def worker(number: int) -> None:
        for _ in range(10):
            await anyio.sleep(draw.choice([0.0, 1.0, 1.0, 2.0]))
            async with limiter:
                trace.append((anyio.current_time(), number))
                with anyio.move_on_after(1.0):
                    await anyio.sleep(draw.choice([0.5, 1.0, 5.0]))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(worker, number)
    return trace


def test_the_same_code_takes_the_same_course(run: HowToRun) -> None:
    traces = [run(hurly_burly) for _ in range(10)]
    assert len(traces[0]) == 200
    assert all(trace == traces[0] for trace in traces)


def test_on_trio_another_seed_is_another_course() -> None:
    assert len({tuple(virtual_time("trio", seed=seed)(hurly_burly)) for seed in range(5)}) > 1


@pytest.mark.parametrize("forever", [anyio.sleep_forever, lambda: anyio.Event().wait(), lambda: anyio.sleep(inf)])
def test_waiting_for_nothing_is_an_error_that_says_who_waits(run: HowToRun, forever: object) -> None:
    async def patient() -> None:
        await anyio.sleep(7.0)
        await forever()  # type: ignore[operator]  # one of three kinds of callable

    with pytest.raises(NothingScheduled, match=r"^at 7 s of virtual time .*(patient|sealed|watched)"):
        run(patient)


def test_two_tasks_that_wait_for_each_other_are_an_error(run: HowToRun) -> None:
    async def embrace() -> None:
        one, other = anyio.Event(), anyio.Event()

        async def first() -> None:
            await one.wait()
            other.set()

        async def second() -> None:
            await other.wait()
            one.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first, name="first")
            tasks.start_soon(second, name="second")

    with pytest.raises(NothingScheduled, match=r"first.*second"):
        run(embrace)


def test_to_wait_until_all_others_wait_is_no_standstill(run: HowToRun) -> None:
    async def body() -> list[str]:
        seen: list[str] = []
        stop = anyio.Event()

        async def waiter() -> None:
            seen.append("waits")
            await stop.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(waiter)
            await anyio.wait_all_tasks_blocked()
            seen.append("all wait")
            stop.set()
        return seen

    assert run(body) == ["waits", "all wait"]


async def in_a_thread() -> None:
    await anyio.to_thread.run_sync(threading.get_ident)


async def over_a_socket() -> None:
    await anyio.connect_tcp("127.0.0.1", 9)


async def with_a_plain_socket() -> None:
    socket.create_connection(("127.0.0.1", 9))


async def in_a_process() -> None:
    await anyio.run_process([sys.executable, "-c", ""])


async def in_a_plain_process() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)  # noqa: ASYNC221  # the offence


async def in_a_plain_thread() -> None:
    threading.Thread(target=int).start()


OFFENCES = [in_a_thread, over_a_socket, with_a_plain_socket, in_a_process, in_a_plain_process, in_a_plain_thread]


@pytest.mark.parametrize("offence", OFFENCES)
def test_threads_sockets_and_processes_are_refused(run: HowToRun, offence: object) -> None:
    with pytest.raises(NotVirtual, match="real time"):
        run(offence)  # type: ignore[arg-type]  # a coroutine function


def test_a_refusal_that_was_swallowed_fails_the_run_nevertheless(run: HowToRun) -> None:
    async def swallows() -> str:
        with suppress(Exception):
            await in_a_thread()
        return "all is well"

    async def swallows_and_stumbles() -> None:
        await swallows()
        raise KeyError("later")

    with pytest.raises(NotVirtual, match="a thread"):
        run(swallows)
    with pytest.raises(NotVirtual, match="a thread") as found:
        run(swallows_and_stumbles)
    assert isinstance(found.value.__cause__, KeyError)


def test_a_thread_that_idles_since_an_earlier_run_is_refused_too(anyio_backend: str) -> None:
    anyio.run(in_a_thread, backend=anyio_backend)
    with pytest.raises(NotVirtual):
        virtual_time(anyio_backend)(in_a_thread)


def test_other_threads_are_let_be_and_all_is_as_before_afterwards(run: HowToRun) -> None:
    begin, ready = threading.Event(), threading.Event()

    def pair() -> None:
        for end in socket.socketpair():
            end.close()

    def other() -> None:
        begin.wait(10.0)
        pair()
        ready.set()

    elsewhere = threading.Thread(target=other)
    elsewhere.start()

    async def body() -> bool:
        begin.set()
        return ready.wait(10.0)

    assert run(body)
    elsewhere.join()
    pair()
    in_peace = threading.Thread(target=int)
    in_peace.start()
    in_peace.join()


def test_another_loop_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'curio' is no event loop"):
        virtual_time("curio")
