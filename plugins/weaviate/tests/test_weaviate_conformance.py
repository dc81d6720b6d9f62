"""`weaviate` does what a check must do, as a coroutine and as a talk, from both hosts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import ClassVar

import attrs
import pytest

from selfheal import CheckContext, CheckResult, Secret
from selfheal.plugins import HealthCheck
from selfheal.testing import servers
from selfheal.testing.conformance import CheckConformance
from selfheal_weaviate.checks import WeaviateCheck

pytestmark = pytest.mark.real_time

TOKEN = "hunter2-canary-51d2e8"
NODES = b'{"nodes": [{"name": "node1", "status": "HEALTHY", "operationalMode": "ReadWrite", "version": "1.35.2"}]}'
ANSWERS = {b"/v1/nodes": NODES, b"/v1/batch/objects": b'[{"result": {"status": "SUCCESS"}}]'}


def speak(client: socket.socket, stop: threading.Event) -> None:
    """Answer everything as a Weaviate that is well does; to be seen against the real one in `test_weaviate_real`."""
    heard = b""
    while data := client.recv(4096):
        heard += data
        while b"\r\n\r\n" in heard:
            request, _, heard = heard.partition(b"\r\n\r\n")
            body = next((answer for path, answer in ANSWERS.items() if path in request), b"")
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class TestCheck(CheckConformance):
    """Its talk and its check alike."""

    runs = 10
    secret = TOKEN

    @pytest.fixture(autouse=True)
    def _well(self) -> Iterator[None]:
        with servers.serve(speak) as self.address:
            yield

    def make(self) -> HealthCheck:
        return self._at(self.address)

    def make_broken(self, fault: str, address: str) -> HealthCheck:
        return self._at(address)

    def _at(self, address: str) -> HealthCheck:
        return WeaviateCheck(url=f"http://{address}", api_key=Secret(TOKEN))


@attrs.frozen(kw_only=True)
class Probing:
    """The check with its write probe, which the talk does not have."""

    kind: ClassVar[str] = "weaviate"
    of: WeaviateCheck

    async def check(self, context: CheckContext) -> CheckResult:
        return await self.of.check(context)


class TestWriteProbe(TestCheck):
    """Its collection is what it keeps, and goes at the end."""

    def _at(self, address: str) -> HealthCheck:
        return Probing(of=WeaviateCheck(url=f"http://{address}", api_key=Secret(TOKEN), write_probe=True))
