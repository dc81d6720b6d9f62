"""However a reply is cut on its way, the runner and converse() come to one verdict, on a real socket."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import anyio
import pytest

from selfheal.builtin.wire_checks import HttpCheck, RedisPing
from selfheal.core.model import CheckResult
from selfheal.testing import servers
from selfheal.testing.converse import converse
from selfheal.testing.probing import probing
from selfheal.wire import WireCheck

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nneed\r\n2\r\nle\r\n0\r\n\r\n"


def http(address: str, **options: Any) -> HttpCheck:
    return HttpCheck(url=f"http://{address}/", **options)


REPLIES: dict[str, tuple[Any, bytes]] = {
    "status": (http, b"HTTP/1.1 503 Busy\r\nA: b\r\n\r\n"),
    "body": (lambda address: http(address, body="needle"), CHUNKED),
    "kept": (lambda address: http(address, body="needle", keep=True), CHUNKED),
    "garbage": (http, b"\x16\x03\x01nothing\r\n\r\n"),
    "ping": (lambda address: RedisPing(url=f"redis://{address}"), b"+PONG\r\n"),
    "loading": (lambda address: RedisPing(url=f"redis://{address}"), b"-LOADING wait\r\n"),
}


def splits(reply: bytes) -> list[list[bytes]]:
    """Whole, every cut in two, single bytes, and some at random."""
    dice = random.Random(len(reply))
    cuts = [[], *[[at] for at in range(1, len(reply))], [*range(1, len(reply))]]
    cuts += [sorted(dice.sample(range(1, len(reply)), 4)) for _ in range(10)]
    return [[reply[low:high] for low, high in pairwise([0, *cut, len(reply)])] for cut in cuts]


@contextmanager
def cutting(ways: list[list[bytes]]) -> Iterator[str]:
    """Serve each way of cutting once, to one client after the other, and begin anew."""
    turn = iter(range(1_000_000))

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(65536)
        for piece in ways[next(turn) % len(ways)]:
            client.sendall(piece)
            stop.wait(0.001)
        client.shutdown(socket.SHUT_WR)
        client.recv(65536)

    with servers.serve(speak) as address:
        yield address


@pytest.mark.anyio
@pytest.mark.parametrize("name", REPLIES)
async def test_every_cut_of_a_reply_gives_one_verdict(name: str, anyio_backend: str) -> None:
    make, reply = REPLIES[name]
    ways = splits(reply)
    found: list[CheckResult] = []

    async def run(step: Any, check: WireCheck, *rest: Any) -> None:
        async with some:
            found.append(await step(check, *rest))

    some = anyio.CapacityLimiter(8)
    with cutting(ways) as address:
        check = make(address)
        async with probing() as probes:

            async def probe(check: WireCheck, near: bool) -> CheckResult:
                return await probes.check(check, 5.0, near=near)

            async with anyio.create_task_group() as tasks:
                for _ in ways:
                    tasks.start_soon(run, probe, check, True)
                    tasks.start_soon(run, probe, check, False)
                    tasks.start_soon(run, converse, check, 5.0)
    assert len(found) == 3 * len(ways)
    assert len({(result.verdict, result.cause, result.summary) for result in found}) == 1, found
