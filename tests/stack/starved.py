"""A server of the tests that has run out of descriptors: the kernel takes who connects, and nobody speaks to it."""

from __future__ import annotations

import socket
import subprocess

from tests.servers import until

HTTP = b"GET / HTTP/1.0\r\n\r\n"


def starve(pid: int, port: int, request: bytes = HTTP) -> None:
    """Let a process open nothing more, and wait until somebody new who connects hears nothing."""
    subprocess.run(["prlimit", "--pid", str(pid), "--nofile=3:"], check=True)
    until(lambda: _silent(port, request), "it takes nobody any more")


def _silent(port: int, request: bytes) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=0.5) as nobody:
        try:
            nobody.sendall(request)
            nobody.recv(1)
        except TimeoutError:
            return True
        except OSError:
            return False
    return False
