"""`minio` does what a check must do, as a coroutine and as a talk, from both hosts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from selfheal import Secret
from selfheal.plugins import HealthCheck
from selfheal.testing import servers
from selfheal.testing.conformance import CheckConformance
from selfheal_minio.checks import MinioCheck

pytestmark = pytest.mark.real_time

TOKEN = "hunter2-canary-51d2e8"


def speak(client: socket.socket, stop: threading.Event) -> None:
    """Answer everything as a MinIO that is well does; to be seen against the real one in `test_minio_real`."""
    heard = b""
    while data := client.recv(4096):
        heard += data
        while b"\r\n\r\n" in heard:
            request, _, heard = heard.partition(b"\r\n\r\n")
            body = b'{"servers": [{"state": "online", "drives": []}]}' if b"/minio/admin/" in request else b""
            client.sendall(
                b"HTTP/1.1 200 OK\r\nX-Minio-Write-Quorum: 1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )


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
        return MinioCheck(url=f"http://{address}", access_key="watcher", secret_key=Secret(TOKEN), bucket="things")
