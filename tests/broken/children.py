"""Builds for what a test starts as a process of its own: nothing of selfheal is imported here, only named."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from tests.broken import Break, importing, replacing


def take_the_signals() -> None:
    """Do what a library must not."""
    signal.signal(signal.SIGTERM, lambda *_: None)


def _takes_the_signals(whole: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def enter(self: Any) -> Any:
        take_the_signals()
        return await whole(self)

    return enter


def _takes_it_from_nobody(self: Any, path: Any) -> None:
    self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.pwrite(self._handle, f"{os.getpid()}\n".ljust(32).encode(), 0)


BUILDS: Mapping[str, Break] = {
    "an import takes the signals": importing("selfheal.supervisor", take_the_signals),
    "who is entered takes the signals": replacing("selfheal.supervisor:Supervisor", "__aenter__", _takes_the_signals),
    "a journal is held by everybody": replacing(
        "selfheal.journal.identity:Lock", "__init__", lambda _: _takes_it_from_nobody
    ),
}
"""Every broken build: what is wrong with it, and how it is made."""
