"""What the tests of a whole supervisor share: quick services, a way to wait for what was decided, faulty stores."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.broken import patience

from selfheal import Service, Supervisor
from selfheal.core.model import Backoff, Budget
from selfheal.errors import JournalError
from selfheal.journal import Journal, Pace, SqliteStore
from selfheal.journal.store import Batch
from selfheal.shell.stream import Told

QUICK: dict[str, Any] = {
    "interval": 0.2,
    "timeout": 0.15,
    "recheck": 0.05,
    "jitter": 0.0,
    "failure_threshold": 2,
    "success_threshold": 1,
    "min_failing_span": 0.0,
    "definite_span": 0.0,
    "probation": 0.0,
    "flapping": (Budget(limit=1000, per=3600.0),),
    "budgets": (Budget(limit=1000, per=3600.0),),
    "backoff": Backoff(initial=0.05, multiplier=1.0, cap=0.05, jitter=0.0),
}
"""A policy that decides in tenths of seconds."""

RESTART: tuple[Mapping[str, Any], ...] = ({"action": "restart", "settle": 0.05},)
MEND: tuple[Mapping[str, Any], ...] = ({"action": "mend", "settle": 0.0},)


def quick(name: str, **options: Any) -> Service:
    """Return a service with a quick policy."""
    return Service(name, **{**QUICK, **options})


class Switch:
    """A check of the application: says what `well` says."""

    def __init__(self, well: bool = True) -> None:
        self.well = well
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.well


class Heard:
    """Every record that was told since, and what it takes to wait for one."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.last = 0
        self._more = anyio.Event()

    def add(self, told: Told) -> None:
        if told.seq is not None and told.seq <= self.last:
            return  # it was read from the journal
        self.last = told.seq or self.last
        self.told.append(told)
        self._more.set()
        self._more = anyio.Event()

    def kinds(self, service: str | None = None) -> list[str]:
        return [t.record.kind for t in self.told if service is None or getattr(t.record, "service", "") == service]

    def of(self, kind: str, **fields: Any) -> list[Any]:
        return [
            t.record
            for t in self.told
            if t.record.kind == kind and all(getattr(t.record, key) == value for key, value in fields.items())
        ]

    async def first(self, kind: str, *, within: float = 5.0, nth: int = 1, **fields: Any) -> Any:
        """Return the nth record of this kind with these fields, waiting for it."""
        with anyio.move_on_after(within := patience(within)):
            while len(found := self.of(kind, **fields)) < nth:
                await self._more.wait()
            return found[nth - 1]
        raise AssertionError(f"no {kind} {fields} within {within} s; there were {self.kinds()}")

    async def state(self, service: str, state: str, *, within: float = 5.0, nth: int = 1) -> Any:
        """Return the move of a service to a state, waiting for it."""
        with anyio.move_on_after(within := patience(within)):
            while True:
                found = [r for r in self.of("moved", service=service) if r.after.state == state]
                entered = [r for r in found if r.before.state != state]
                if len(entered) >= nth:
                    return entered[nth - 1]
                await self._more.wait()
        states = [(r.service, str(r.after.state), r.after.reason) for r in self.of("moved")]
        raise AssertionError(f"{service} was not {state} within {within} s; moves: {states}")


@asynccontextmanager
async def hearing(supervisor: Supervisor) -> AsyncIterator[Heard]:
    """Hear every record: those that are stored already, and from now on."""
    heard = Heard()
    running = supervisor._running
    assert running is not None

    async def listen(started: Callable[[], None]) -> None:
        async with supervisor.records() as records:
            reader = running.journal.reader
            for one in await anyio.to_thread.run_sync(lambda: reader.records(limit=100_000)):
                heard.add(Told(seq=one.seq, number=one.number, wall=one.wall, record=one.record))
            started()
            async for told in records:
                heard.add(told)

    async with anyio.create_task_group() as tasks:
        ready = anyio.Event()
        tasks.start_soon(listen, ready.set)
        await ready.wait()
        yield heard
        tasks.cancel_scope.cancel()


async def state_of(supervisor: Supervisor, service: str) -> dict[str, Any]:
    """Return the service as it is asked for."""
    answer: dict[str, Any] = await supervisor.ask("service", service=service)
    return answer


async def until(condition: Callable[[], object], *, within: float = 5.0, what: str = "it") -> float:
    """Wait for a condition; return how many seconds it took."""
    began, within = time.monotonic(), patience(within)
    while not condition():
        if time.monotonic() - began > within:
            raise AssertionError(f"{what} did not happen within {within} s")
        await anyio.sleep(0.005)
    return time.monotonic() - began


async def until_state(supervisor: Supervisor, service: str, *states: str, within: float = 5.0) -> dict[str, Any]:
    """Wait until a service is in one of some states; return it as it is asked for."""
    end = time.monotonic() + patience(within)
    while (answer := await state_of(supervisor, service))["state"] not in states:
        if time.monotonic() > end:
            raise AssertionError(f"{service} is {answer['state']} ({answer['reason']}), not {states}: {answer}")
        await anyio.sleep(0.01)
    return answer


async def until_reason(supervisor: Supervisor, service: str, reason: str, *, within: float = 5.0) -> dict[str, Any]:
    """Wait until a service is held for some reason; return it as it is asked for."""
    end = time.monotonic() + patience(within)
    while (answer := await state_of(supervisor, service))["reason"] != reason:
        if time.monotonic() > end:
            raise AssertionError(f"{service} is {answer['state']} ({answer['reason']}), not {reason}: {answer}")
        await anyio.sleep(0.01)
    return answer


def ours() -> tuple[set[str], int]:
    """Return the names of the threads that are selfheal's, and how many descriptors are open."""
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("selfheal")}
    return threads, len(os.listdir("/proc/self/fd"))


class FaultyStore(SqliteStore):
    """A store on a real disk whose writes can be made to fail, hang or take their time, for one test at a time."""

    failing = False
    slow = 0.0
    hung: threading.Event | None = None
    appended: list[int] = []  # noqa: RUF012  # made anew by `faulty`

    def append(self, batches: Sequence[Batch], *, durable: bool) -> Mapping[int, str]:
        cls = type(self)
        if cls.hung is not None:
            cls.hung.wait(30.0)
        if cls.slow:
            time.sleep(cls.slow)
        if cls.failing:
            raise JournalError("no space left on the device (a test says so)")
        refused = super().append(batches, durable=durable)
        cls.appended.extend(batch.number for batch in batches)
        return refused

    def save_snapshot(self, number: int, state: bytes) -> None:
        if type(self).failing:
            raise JournalError("no space left on the device (a test says so)")
        super().save_snapshot(number, state)


PROMPT = Pace(flush=0.05, deadline=0.3, retry=0.02, retry_cap=0.1)


@contextmanager
def faulty(monkeypatch: pytest.MonkeyPatch, pace: Pace = PROMPT) -> Iterator[type[FaultyStore]]:
    """Have every journal opened meanwhile write through a faulty store."""

    class Store(FaultyStore):
        appended: list[int] = []  # noqa: RUF012  # one for each test

    def open_(cls: type[Journal], path: Path | str, /, *, changed: Any = None, **more: Any) -> Journal:
        return Journal(Store.open(path), changed=changed, pace=pace)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "open", classmethod(open_))
        yield Store
        Store.failing = False
        if Store.hung is not None:
            Store.hung.set()


def stored(path: Path) -> list[Any]:
    """Return every record in the journal at `path`."""
    store = SqliteStore.open(path)
    try:
        return [one.record for one in store.records(limit=1_000_000)]
    finally:
        store.close()


class Asgi:
    """The smallest ASGI host there is: it speaks the lifespan protocol with an application, and answers requests."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Callable[[str], Any]]:
        to_app, in_app = anyio.create_memory_object_stream[dict[str, Any]](10)
        from_app, out = anyio.create_memory_object_stream[dict[str, Any]](10)

        async def request(path: str) -> dict[str, Any]:
            sent: list[dict[str, Any]] = []

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            await self._app({"type": "http", "path": path, "method": "GET"}, receive, send)
            return {"status": sent[0]["status"], "body": sent[1]["body"]}

        async with anyio.create_task_group() as tasks, to_app, in_app, from_app, out:
            tasks.start_soon(self._app, {"type": "lifespan"}, in_app.receive, from_app.send)
            await to_app.send({"type": "lifespan.startup"})
            assert (await out.receive())["type"] == "lifespan.startup.complete"
            yield request
            await to_app.send({"type": "lifespan.shutdown"})
            assert (await out.receive())["type"] == "lifespan.shutdown.complete"
