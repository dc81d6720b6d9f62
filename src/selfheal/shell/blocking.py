"""Threads for code that blocks: one per service for ever, and a pool that cannot be filled by one owner.

Owns `ServiceThread` (what `context.blocking` and an application's synchronous checks run in) and `DaemonPool` (what
`loop.getaddrinfo` and `asyncio.to_thread` of a plugin run in). All of them are daemons: none holds up the end of the
interpreter, which an ordinary `ThreadPoolExecutor` does for as long as one resolver is silent.

A thread cannot be cancelled. So whoever stops waiting *abandons* the job, and the thread stays the only one of its
service: the next call waits behind a job that still has time, and is refused with `StillStuck` behind one that has
outlived its own deadline.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from math import inf
from queue import SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

OWNER: Final[ContextVar[str]] = ContextVar("selfheal_owner", default="")
"""For whom the code now running was started; inherited by every task and callback it starts."""

THREADS_PER_OWNER: Final = 4
"""How many threads of the pool one owner may hold: a silent resolver then costs its own service four, others none."""

IDLE: Final = 30.0
"""Seconds after which an idle thread of the pool ends."""


class StillStuck(Exception):
    """The previous call has not come back. The runner turns it into FAILING, `timeout`: nothing new was started."""


class Job:
    """One function on its way through a service's thread."""

    __slots__ = ("_claim", "abandoned", "begun", "deadline", "done", "function")

    def __init__(self, function: Callable[[], object], done: Callable[[Finished], None], deadline: float) -> None:
        self.function = function
        self.done = done
        self.deadline = deadline
        self.abandoned = False
        self.begun = False
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Return True to the first who asks: the thread that will run it, or the caller who gave up before."""
        return self._claim.acquire(blocking=False)

    def abandon(self) -> None:
        """Stop waiting. A job not begun never runs; one that runs goes on, and nobody hears of it."""
        self.abandoned = True
        self.claim()


class Finished:
    """What a job came to: its value or what it raised, and when, by `time.monotonic`, it ran."""

    __slots__ = ("ended", "error", "started", "value")

    def __init__(self, value: object, error: BaseException | None, started: float, ended: float) -> None:
        self.value = value
        self.error = error
        self.started = started
        self.ended = ended


class ServiceThread:
    """The one thread of one service, started when first needed."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._running: Job | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a job runs."""
        return self._running is not None

    @property
    def stuck(self) -> bool:
        """Whether the job that runs was given up and has outlived its own deadline."""
        job = self._running
        return job is not None and job.abandoned and time.monotonic() >= job.deadline

    def start(self, function: Callable[[], object], done: Callable[[Finished], None], *, deadline: float = inf) -> Job:
        """Queue `function`; `done` is called in the thread. `deadline` is by `time.monotonic`.

        Raises `StillStuck` when an earlier job has outlived its deadline.
        """
        if self.stuck:
            raise StillStuck("the previous call has not come back")
        job = Job(function, done, deadline)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"selfheal-{self.service}", daemon=True)
                self._thread.start()
            self._jobs.put(job)
        return job

    def close(self) -> None:
        """Let the thread end once it is free."""
        with self._lock:
            if self._thread is not None:
                self._jobs.put(None)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                with self._lock:
                    if self._jobs.empty():  # else somebody came back meanwhile
                        self._thread = None
                        return
                continue
            if not job.claim():
                continue
            self._running = job
            started = time.monotonic()
            value: object = None
            error: BaseException | None = None
            try:
                value = job.function()
            except BaseException as problem:  # noqa: BLE001  # SystemExit in a plugin must not end its service's thread
                error = problem
            finished = Finished(value, error, started, time.monotonic())
            self._running = None  # before `done`: who is told may call again at once
            if not job.abandoned:
                with contextlib.suppress(RuntimeError):  # the loop that waited has been closed
                    job.done(finished)
            del job, value, error, finished  # an idle thread keeps nothing alive


class ServiceThreads:
    """The threads of all services, by name."""

    def __init__(self) -> None:
        self._threads: dict[str, ServiceThread] = {}
        self._lock = threading.Lock()

    def of(self, service: str) -> ServiceThread:
        """Return the thread of `service`; there is never a second one."""
        with self._lock:
            if service not in self._threads:
                self._threads[service] = ServiceThread(service)
            return self._threads[service]

    def close(self, service: str | None = None) -> None:
        """Let the thread of `service` (of all, by default) end once it is free.

        A busy one stays on record, so that a service which comes back by a reload does not get a second.
        """
        with self._lock:
            for name in list(self._threads) if service is None else [service]:
                thread = self._threads.get(name)
                if thread is None:
                    continue
                if not thread.busy:
                    del self._threads[name]
                thread.close()


class DaemonPool(ThreadPoolExecutor):
    """An executor of daemon threads, at most `THREADS_PER_OWNER` for each owner.

    asyncio's own default executor is shared: with 6 threads on 2 cores, 12 hung look-ups made a healthy service
    time out (measured). It is a `ThreadPoolExecutor` by name only, because asyncio insists.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._guard = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` in a thread of the owner on whose behalf this is called."""
        future: Future[T] = Future()
        owner = OWNER.get()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as problem:  # noqa: BLE001  # it belongs to who awaits the future, whatever it is
                future.set_exception(problem)

        with self._guard:
            if self._ended:
                raise RuntimeError("the plugin loop has ended: no new work for its threads")
            lane = self._lanes.get(owner)
            if lane is None:
                lane = self._lanes[owner] = _Lane(owner)
            lane.waiting.append(work)
            if len(lane.waiting) > lane.idle and lane.threads < THREADS_PER_OWNER:
                lane.threads += 1
                threading.Thread(target=self._serve, args=(lane,), name=f"selfheal-{owner}-io", daemon=True).start()
            else:
                lane.wake.release()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work and let idle threads end. Never waits: a stuck thread would hold up everybody."""
        with self._guard:
            self._ended = True
            for lane in self._lanes.values():
                lane.wake.release(THREADS_PER_OWNER)

    def _serve(self, lane: _Lane) -> None:
        while True:
            with self._guard:
                work = lane.waiting.popleft() if lane.waiting else None
                if work is None:
                    if self._ended:
                        lane.threads -= 1
                        return
                    lane.idle += 1
            if work is not None:
                work()
                del work
                continue
            woken = lane.wake.acquire(timeout=IDLE)
            with self._guard:
                lane.idle -= 1
                if not woken and not lane.waiting:
                    lane.threads -= 1
                    return


class _Lane:
    """The threads and the waiting work of one owner."""

    __slots__ = ("idle", "owner", "threads", "waiting", "wake")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.threads = 0
        self.idle = 0
        self.waiting: deque[Callable[[], Any]] = deque()
        self.wake = threading.Semaphore(0)
