"""Names to addresses, off the loop: a few daemon threads, one question per name in flight, answers kept for a while.

`getaddrinfo` blocks, cannot be cancelled, and hangs for ten seconds and more when the name server is silent. So each
question has a thread of its own while it runs; a name that hangs keeps one thread, however often it is asked for, and
others go on in the rest, up to `threads`. Beyond that a question waits, and `begun` tells that it was never put.
The same threads do the other short errands of wire checks that would block: building TLS contexts.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

import attrs

Address: TypeAlias = "tuple[int, Any]"
"""Address family and what `socket.connect` takes."""

Lookup: TypeAlias = "Callable[[str, int], tuple[Address, ...]]"

_LOCAL: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
_IDLE: Final = 30.0


def lookup(host: str, port: int) -> tuple[Address, ...]:
    """Return the addresses of `host` in the system's order of preference. Blocks; raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def literal(host: str, port: int) -> tuple[Address, ...]:
    """Return the address that `host` itself is, or none. `localhost` is never asked for (RFC 6761): ::1, then IPv4."""
    if host in _LOCAL:
        return ((socket.AF_INET6, ("::1", port)), (socket.AF_INET, ("127.0.0.1", port)))
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return ((int(family), (host, port)),)
    return ()


@attrs.frozen
class Answer:
    """What became of one question: a value, or the exception it raised; and who waits for it."""

    key: Hashable
    waiting: tuple[Any, ...]
    value: Any
    problem: Exception | None


@attrs.define
class _Question:
    job: Callable[[], Any]
    waiting: dict[Any, None]  # a dict, so that who asks again every interval stands in it once
    begun: float | None = None


class Resolver:
    """Puts questions to threads. Everything but `lookup` is called on one thread, the loop's."""

    def __init__(self, *, lookup: Lookup = lookup, ttl: float = 30.0, threads: int = 16) -> None:
        """`ttl` seconds an address is believed; `threads` at most, started when needed, gone after 30 s of idleness."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when an answer waits for `collect`."""
        self.ttl = ttl
        self._lookup = lookup
        self._most = threads
        self._known: dict[tuple[str, int], tuple[float, tuple[Address, ...]]] = {}
        self._questions: dict[Hashable, _Question] = {}
        self._queue: SimpleQueue[Hashable] = SimpleQueue()
        self._answers: deque[tuple[Hashable, Any, Exception | None]] = deque()
        self._lock = threading.Lock()  # guards the four below, and writing to `fd`
        self._threads = 0
        self._free = 0
        self._queued = 0
        self._closed = False

    def known(self, host: str, port: int, now: float) -> tuple[float, tuple[Address, ...]] | None:
        """Return until when an address is believed, and the addresses; None when the name must be asked for."""
        found = self._known.get((host, port))
        return found if found is not None and found[0] > now else None

    def doubt(self, host: str, port: int) -> None:
        """Forget an address that did not answer: the name may have moved."""
        self._known.pop((host, port), None)

    def ask(self, host: str, port: int, who: Any) -> None:
        """Ask for the addresses of a name; never blocks."""
        self.errand((host, port), lambda: self._lookup(host, port), who)

    def errand(self, key: Hashable, job: Callable[[], Any], who: Any) -> None:
        """Have `job` done in a thread, once for all who ask under `key` until it ends. `who` None: nobody waits."""
        question = self._questions.get(key)
        if question is not None:
            if who is not None:
                question.waiting[who] = None
            return
        self._questions[key] = _Question(job, {} if who is None else {who: None})
        with self._lock:
            self._queued += 1
            more = self._queued > self._free and self._threads < self._most
            if more:
                self._threads += 1
                self._free += 1
        self._queue.put(key)
        if more:
            try:
                threading.Thread(target=self._work, name="selfheal-names", daemon=True).start()
            except RuntimeError:  # no more threads in this process; those that run will come to it
                with self._lock:
                    self._threads -= 1
                    self._free -= 1

    def leave(self, key: Hashable, who: Any) -> None:
        """Stop waiting for an answer."""
        question = self._questions.get(key)
        if question is not None:
            question.waiting.pop(who, None)

    def begun(self, key: Hashable) -> bool:
        """Whether a thread took up this question; false while all threads are stuck in others."""
        question = self._questions.get(key)
        return question is None or question.begun is not None

    def stuck(self, now: float, after: float = 5.0) -> tuple[Hashable, ...]:
        """Return the questions that have been running for more than `after` seconds, for people."""
        return tuple(
            key
            for key, question in self._questions.items()
            if question.begun is not None and now - question.begun > after
        )

    def collect(self) -> list[Answer]:
        """Take the answers that came in; call it when `fd` is readable."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        found = []
        while self._answers:
            key, value, problem = self._answers.popleft()
            question = self._questions.pop(key)
            if problem is None and isinstance(key, tuple):
                self._known[key] = (time.monotonic() + self.ttl, value)
            found.append(Answer(key, tuple(question.waiting), value, problem))
        return found

    def close(self) -> None:
        """Let the threads go. One that hangs goes when its lookup ends; it holds up nothing, not even exit."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self.fd)
            threads = self._threads
        for _ in range(threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (key := self._next()) is not None:
            question = self._questions.get(key)
            if question is None:  # only after `close`
                return
            question.begun = time.monotonic()
            value, problem = None, None
            try:
                value = question.job()
            except Exception as raised:  # noqa: BLE001 - whatever it is, the one who waits is told
                problem = raised
            with self._lock:
                if self._closed:
                    return  # `fd` may be somebody else's by now
                self._free += 1
                self._answers.append((key, value, problem))
                os.eventfd_write(self.fd, 1)

    def _next(self) -> Hashable:
        """Return the next question, or None when this thread is to end. It counts as free while it waits here."""
        while True:
            try:
                key = self._queue.get(timeout=_IDLE)
            except Empty:
                with self._lock:
                    if self._queued:  # one is on its way to the queue
                        continue
                    self._free -= 1
                    self._threads -= 1
                return None
            with self._lock:
                if key is None or self._closed:
                    return None
                self._queued -= 1
                self._free -= 1
            return key
