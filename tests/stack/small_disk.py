"""A disk of its own for the data of a server of the tests, so small that it can be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, kibibytes: int, server: str) -> Iterator[Path]:
    """Mount a tmpfs of this size at a folder, which is made. Where nobody may, the test is skipped, or fails if
    SELFHEAL_REQUIRE asks for this server.
    """
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        if server in os.environ.get("SELFHEAL_REQUIRE", "").split(","):
            pytest.fail("a tmpfs cannot be mounted here")
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, share: float = 2.0) -> Path:
    """Write a file over this share of the room that is left, above 1 until nothing more goes in; return it."""
    ballast = disk / "ballast"
    space = os.statvfs(disk)
    left = int(space.f_bavail * share) * space.f_frsize
    for size in (2**20, 4096):
        with ballast.open("ab", buffering=0) as written, suppress(OSError):
            while left > 0 or share > 1:
                left -= written.write(b"x" * min(size, left if share <= 1 else size))
    return ballast
