"""Our own actions do what an action must do."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest

from selfheal.builtin.actions import HttpHook
from selfheal.builtin.cache_directory import CacheDirectory
from selfheal.builtin.command import CommandWorkload
from selfheal.builtin.standby import Standby
from selfheal.plugins import Action, Workload
from selfheal.secret import Secret
from selfheal.testing.conformance import ActionConformance

if TYPE_CHECKING:
    from tests.builtin.receiver import Receiver, Reply, receiving
else:
    from receiver import Receiver, Reply, receiving

pytestmark = pytest.mark.real_time


class Endpoint(Receiver):
    """Repairs once for each key, and knows which it has repaired for."""

    def _answer(self, connection: socket.socket, reply: Reply) -> None:
        asked = self.requests[-1]
        if asked.method == "GET":
            key = parse_qs(urlsplit(asked.target).query)["key"][0]
            settled = "done" if key in self.repaired() else "not_started"
            reply = attrs.evolve(reply, body=json.dumps({"settled": settled}).encode())
        super()._answer(connection, reply)

    def repaired(self) -> set[str]:
        return {one.headers["idempotency-key"] for one in self.requests if one.method == "POST"}


class TestHttpHook(ActionConformance):
    timeout = 5.0
    runs = 3

    @pytest.fixture(autouse=True)
    def _endpoints(self) -> Iterator[None]:
        self.endpoint = Endpoint()
        with receiving() as hanging, receiving() as failing:
            hanging.always, failing.always = Reply(deed="hang"), Reply(status=503, body=b"out of order")
            self.hanging, self.failing = hanging, failing
            yield
        self.endpoint.close()

    def make(self) -> Action:
        return self._at(self.endpoint.url)

    def make_slow(self) -> Action:
        return self._at(self.hanging.url)

    def make_failing(self) -> Action:
        return self._at(self.failing.url)

    def make_broken(self, fault: str, address: str) -> Action:
        return self._at(f"http://{address}")

    def observe(self) -> object:
        return self.endpoint.repaired()

    def _at(self, url: str) -> Action:
        token = Secret("hunter2-canary-51d2e8")
        hook = HttpHook(url=f"{url}/repair", probe_url=f"{url}/settled", headers={"Authorization": token})
        return cast("Action", hook)  # its verb and effect are options, where the protocol has class variables


class TestCacheDirectory(ActionConformance):
    timeout = 5.0
    runs = 3
    inapplicable: ClassVar[Mapping[str, str]] = {"make_broken": "it asks the kernel, and nobody by an address"}

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = tmp_path, monkeypatch
        (tmp_path / "thumbs").mkdir()

    def make(self) -> Action:
        for number in range(20):
            (self.root / "thumbs" / f"{number}").write_text("x")
        return CacheDirectory(path="thumbs", root=self.root)

    def make_slow(self) -> Action:
        made = self.make()
        real = CacheDirectory.run

        async def slow(self: CacheDirectory, context: Any) -> None:
            await asyncio.sleep(5.0)
            await real(self, context)

        self.patch.setattr(CacheDirectory, "run", slow)
        return made

    def make_failing(self) -> Action:
        return CacheDirectory(path="absent", root=self.root)

    def observe(self) -> object:
        return len(list((self.root / "thumbs").iterdir()))


class TestStandby(ActionConformance):
    """The old one has ended; the standby is there as long as a file is."""

    timeout = 5.0
    runs = 3
    inapplicable: ClassVar[Mapping[str, str]] = {"make_broken": "it asks workloads, whose duties these are"}
    workload: ClassVar[Workload | None] = CommandWorkload(
        inspect=("/bin/sh", "-c", "echo old-1; exit 1"), restart=("/bin/false",), start=("/bin/false",)
    )

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.file = tmp_path / "standby"

    def make(self) -> Action:
        self.file.unlink(missing_ok=True)
        return self._started_by("/bin/sh", "-c", 'echo "$SELFHEAL_KEY $$" > "$0"', str(self.file))

    def make_slow(self) -> Action:
        self.file.unlink(missing_ok=True)
        return self._started_by("/bin/sleep", "30")

    def make_failing(self) -> Action:
        self.file.unlink(missing_ok=True)
        return self._started_by("/bin/false")

    def observe(self) -> object:
        return self.file.read_text() if self.file.exists() else "down"

    def _started_by(self, *start: str) -> Action:
        looks = ("/bin/sh", "-c", 'cat "$0" 2> /dev/null || { echo down; exit 1; }', str(self.file))
        token = {"TOKEN": Secret("hunter2-canary-51d2e8")}
        return Standby(workload=CommandWorkload(inspect=looks, restart=start, start=start, environment=token))
