"""One systemd for all tests of this plugin, and no unit left over from one test to the next."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.stack.systemd import Systemd, booted


@pytest.fixture(scope="session")
def _systemd() -> Iterator[Systemd]:
    with booted() as one:
        yield one


@pytest.fixture
def systemd(_systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """Have a systemd that `systemctl` on PATH speaks to."""
    monkeypatch.setenv("PATH", f"{_systemd.programs()}:{os.environ['PATH']}")
    yield _systemd
    _systemd.tidy()
