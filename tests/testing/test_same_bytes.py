"""Same seed, same bytes (law 1): in another process, with other hashes, on a day when everything happens at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("crowded.py")


def crowded(seed: int, hash_seed: str) -> tuple[str, int]:
    """Play the crowded simulation in a process of its own; return its digest and how much was said."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, str(PROGRAM), str(seed)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    digest, said = ended.stdout.split()
    return digest, int(said)


def test_the_same_seed_says_the_same_bytes_in_every_process() -> None:
    first = crowded(1, "0")
    assert first[1] > 2000, "a quiet day proves nothing"
    assert [crowded(1, hash_seed) for hash_seed in ("1", "77", "4242")] == [first] * 3


def test_another_seed_says_others() -> None:
    assert crowded(1, "0") != crowded(2, "0")
