"""Whether the server that carries a stream is stopping, by whichever server it is.

A server waits for its open responses before it stops, and tells none of them. It closes the socket it listens on
first, though; that can be seen from outside it, without a signal handler and without a look into its objects.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

DESCRIPTORS: Final = Path("/proc/self/fd")


@attrs.frozen
class Listening:
    """A socket of this process that listens: its descriptor, and what the kernel calls it."""

    descriptor: int
    link: str

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Listening | None:
        """Return the one a request came in by; None where none can be found. Reads every descriptor: in a thread."""
        server = scope.get("server")
        if not server:
            return None
        try:
            numbers = [int(entry) for entry in os.listdir(DESCRIPTORS)]  # noqa: PTH208  # names are all that is wanted
        except OSError:
            return None
        for number in numbers:
            link = _link(number)
            if link.startswith("socket:") and _listens_at(number, server):
                return cls(number, link)
        return None

    @property
    def closed(self) -> bool:
        """Whether it is open no more."""
        return _link(self.descriptor) != self.link


def _link(number: int) -> str:
    try:
        return str((DESCRIPTORS / str(number)).readlink())
    except OSError:
        return ""


def _listens_at(number: int, server: tuple[str, int | None]) -> bool:
    """Whether a descriptor is a socket that listens at that address."""
    try:
        copy = os.dup(number)
    except OSError:
        return False
    try:
        with socket.socket(fileno=copy) as one:
            if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            name = one.getsockname()
    except OSError:
        return False
    host, port = server
    if port is None:
        return bool(name == host)
    return isinstance(name, tuple) and bool(name[1] == port)
