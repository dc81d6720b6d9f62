"""Real servers that tests may need: which program it is, or why the test does not run; and a free port for it."""

from __future__ import annotations

import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest


def program_of(server: str, *names: str) -> str:
    """Return the path of the first of these programs that is installed.

    Where there is none the test is skipped, or fails if SELFHEAL_REQUIRE (names with commas between, as in
    `.ci/packages.txt`) asks for this server.
    """
    for name in names:
        if (path := shutil.which(name)) is not None:
            return path
    if server in os.environ.get("SELFHEAL_REQUIRE", "").split(","):
        pytest.fail(f"{server} is required (SELFHEAL_REQUIRE), and none of {', '.join(names)} is installed")
    pytest.skip(f"{server}: none of {', '.join(names)} is installed")


def free_ports(count: int = 1) -> int:
    """Return the first of so many ports of loopback, side by side, that nobody listens on.

    They lie below those that the kernel gives to clients: a client, even a check that knocks before the server listens,
    could be given one of these, and the server would find it taken.
    """
    for _ in range(1000):
        port = random.randrange(12000, 32000 - count)
        with suppress(OSError), ExitStack() as stack:
            for each in range(count):
                stack.enter_context(socket.create_server(("127.0.0.1", port + each)))
            return port
    raise AssertionError(f"no {count} free ports side by side")


def free_port() -> int:
    """Return a port of loopback that nobody listens on; see `free_ports`."""
    return free_ports()


def until(true: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Ask until the answer is true, and return it; fail with `what` after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value
