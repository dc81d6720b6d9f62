"""A simulated day of fifty services runs in seconds, and is the same to the byte in every process (law 1)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def run(seed: int, hash_seed: str, hours: float = 24.0) -> dict[str, Any]:
    """Simulate a day in a process of its own, its hashes seeded so."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.nets.day", str(seed), str(hours)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.slow
def test_a_day_of_fifty_services_runs_in_seconds_and_is_the_same_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    first, again = run(1, "0"), run(1, "12345")
    other = run(2, "0")
    with capsys.disabled():
        print(f"\na day of 50 services: {first}")
    assert first.pop("seconds") < 60.0
    again.pop("seconds")
    assert first == again
    assert first["digest"] != other["digest"]
    assert first["well at the end"] == 50
    assert first["actions"] > 10


def test_an_hour_is_the_same_whatever_the_hash_seed() -> None:
    digests = {run(3, hash_seed, 3.0)["digest"] for hash_seed in ("0", "1", "77", "4242")}
    assert len(digests) == 1
