"""Real servers that tests may need: which program it is, or why the test does not run; and a free port for it."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
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


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def until(true: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Ask until the answer is true, and return it; fail with `what` after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value
