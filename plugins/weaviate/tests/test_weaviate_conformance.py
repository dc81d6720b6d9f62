"""`weaviate` does what a check must do, as a coroutine and as a talk, from both hosts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import ClassVar

import attrs
import pytest

from selfheal import Secret, Target
from selfheal.plugins import HealthCheck
from selfheal.testing import servers
from selfheal.testing.conformance import CheckConformance
from selfheal.wire import Talk, WireCheck
from selfheal_weaviate.checks import WeaviateCheck

pytestmark = pytest.mark.real_time

TOKEN = "hunter2-canary-51d2e8"
NODES = b'{"nodes": [{"name": "node1", "status": "HEALTHY", "operationalMode": "ReadWrite", "version": "1.35.2"}]}'


def speak(client: socket.socket, stop: threading.Event) -> None:
    """Answer everything as a Weaviate that is well does; to be seen against the real one in `test_weaviate_real`."""
    heard = b""
    while data := client.recv(4096):
        heard += data
        while b"\r\n\r\n" in heard:
            request, _, heard = heard.partition(b"\r\n\r\n")
            body = NODES if b"/v1/nodes" in request else b""
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@attrs.frozen(kw_only=True)
class Light:
    """The talk of the check alone: a class with both is called by the kit, never talked to."""

    kind: ClassVar[str] = "weaviate"
    of: WeaviateCheck

    def target(self) -> Target:
        return self.of.target()

    def talk(self) -> Talk:
        return self.of.talk()


class Both(CheckConformance):
    runs = 10

    @pytest.fixture(autouse=True)
    def _well(self) -> Iterator[None]:
        with servers.serve(speak) as self.address:
            yield

    def make(self) -> HealthCheck | WireCheck:
        return self._at(self.address)

    def make_broken(self, fault: str, address: str) -> HealthCheck | WireCheck:
        return self._at(address)

    def _at(self, address: str) -> HealthCheck | WireCheck:
        raise NotImplementedError


class TestDeep(Both):
    def _at(self, address: str) -> HealthCheck:
        return WeaviateCheck(url=f"http://{address}", api_key=Secret(TOKEN))


class TestLight(Both):
    secret = TOKEN

    def _at(self, address: str) -> WireCheck:
        return Light(of=WeaviateCheck(url=f"http://{address}", api_key=Secret(TOKEN)))
