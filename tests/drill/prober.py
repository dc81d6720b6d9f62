"""A user of the application: asks again and again, and keeps what was answered and what was promised."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Mapping
from typing import Self

import attrs


@attrs.frozen(kw_only=True)
class Asked:
    """One request: when it was answered (UNIX time), and whether well."""

    at: float
    good: bool
    failed: Mapping[str, str]
    """Which services it failed for, and what the application says of each."""


class Prober:
    """Asks the application five times a second, in a thread of its own, for as long as the block lasts."""

    def __init__(self, port: int, services: tuple[str, ...]) -> None:
        self.port = port
        self.services = services
        self.asked: list[Asked] = []
        self.promised: dict[str, set[int]] = {name: set() for name in services}
        """The numbers whose writing each service, by the application's answer, has done."""
        self._n = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="prober", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def _ask_on(self) -> None:
        while not self._stop.wait(0.2):
            self._n += 1
            status, failed = self._ask(self._n)
            at = time.time()
            if status in (200, 503):
                for name in self.services:
                    if name not in failed:
                        self.promised[name].add(self._n)
            self.asked.append(Asked(at=at, good=status == 200, failed=failed))

    def _ask(self, n: int) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=4.0)
        try:
            connection.request("POST", f"/work?n={n}")
            answer = connection.getresponse()
            return answer.status, dict(json.loads(answer.read())["failed"])
        except (OSError, ValueError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def good_since(self, at: float) -> bool:
        """Whether the last answer is good and later than this UNIX time."""
        last = self.asked[-1] if self.asked else None
        return last is not None and last.good and last.at > at

    def bad_seconds(self, begin: float, end: float) -> int:
        """Return the number of whole seconds between two UNIX times in which no good answer came."""
        good = {int(one.at - begin) for one in list(self.asked) if one.good and begin <= one.at <= end}
        return len(set(range(int(end - begin))) - good)
