"""The API under load, and the checks meanwhile: how many requests a second, how slow the slowest, how late the engine.

    python benchmarks/http_load.py [SECONDS]

Starts `selfheal run` with a hundred checks a second twice: once left alone, once under load (reads, acts, open streams,
connections that send half a head), and prints one table. Linux only; everything is on loopback.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

SERVICES: Final = 100
STREAMS: Final = 450
HALF_OPEN: Final = 450
CLIENTS: Final = 20
PORT: Final = 23117
PREFIX: Final = "/api/recovery"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def daemon(watched: int) -> Iterator[int]:
    """Run a daemon that checks the port `watched` a hundred times a second; give its process id."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check = f'check = {{ kind = "tcp", address = "127.0.0.1:{watched}" }}\ninterval = "1s"\n'
        services = "".join(f"[services.s{number}]\n{check}" for number in range(SERVICES))
        door = f'[http]\nlisten = "127.0.0.1:{PORT}"\nloopback_writes = true\n'
        (folder / "fleet.toml").write_text(f'[fleet]\nstate_dir = "state"\n{services}{door}')
        with (folder / "log").open("w") as log:
            line = [sys.executable, "-m", "selfheal", "run", str(folder / "fleet.toml")]
            child = subprocess.Popen(line, stderr=log)  # a line of our own
        try:
            yield child.pid
        finally:
            began = time.monotonic()
            child.send_signal(signal.SIGTERM)
            child.wait(30.0)
            say(f"{'the daemon stopped in':44} {time.monotonic() - began:8.2f} s")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, method: str) -> tuple[int, bytes]:
    """Send one request over an open connection; return the status and the body."""
    writer.write(f"{method} {PREFIX}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(int(line.partition(":")[2]) for line in head.split("\r\n") if line.startswith("content-length"))
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


async def once(path: str) -> Any:
    """Ask over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    _, body = await ask(reader, writer, path, "GET")
    writer.close()
    return json.loads(body)


async def load(what: str, path: str, seconds: float, *, clients: int = CLIENTS, method: str = "GET") -> None:
    """Ask from several connections without a pause, and say how it went."""
    took: list[float] = []
    codes: Counter[int] = Counter()
    end = time.monotonic() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        while time.monotonic() < end:
            began = time.monotonic()
            code, _ = await ask(reader, writer, path, method)
            took.append(time.monotonic() - began)
            codes[code] += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    took.sort()
    median, p99 = took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3
    say(f"{what:44} {len(took) / seconds:8.0f} /s   median {median:6.1f} ms   p99 {p99:6.1f} ms   {dict(codes)}")


async def opened() -> None:
    """Wait until the API answers."""
    for _ in range(200):
        try:
            await once("/health")
        except OSError:
            await asyncio.sleep(0.1)
        else:
            return
    raise SystemExit("the API did not come up")


async def lateness() -> float:
    """Return the latest that the engine has woken since it began, in seconds."""
    return float((await once("/health"))["details"]["lag_seconds"])


async def raw(head: str, number: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open connections and send the beginning of a request over each."""
    found = []
    for _ in range(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(head.encode())
        found.append((reader, writer))
    return found


def resident(pid: int) -> float:
    """Return the memory that a process has, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


async def measure(seconds: float) -> None:
    """Print everything."""
    watched = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, backlog=1000)
    port = watched.sockets[0].getsockname()[1]
    with daemon(port):
        await opened()
        await asyncio.sleep(seconds * 4)
        say(f"{'the engine woke late by at most, left alone':44} {await lateness() * 1e3:8.1f} ms")
    with daemon(port) as pid:
        await opened()
        await load("one reader, /health", "/health", seconds, clients=1)
        await load("readers, /health", "/health", seconds)
        await load("readers, /status of a hundred services", "/status", seconds)
        await load("acts on one service", "/services/s1/enable", seconds, method="POST")
        streams = await raw(f"GET {PREFIX}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", STREAMS)
        firsts = [await reader.readline() for reader, _ in streams]
        half = await raw(f"GET {PREFIX}/status HTTP/1.1\r\nHost: 12", HALF_OPEN)
        say(f"{'streams open, and half-open connections':44} {sum(b' 200 ' in one for one in firsts):8} + {len(half)}")
        await load("readers beside them", "/status", seconds)
        say(f"{'the engine woke late by at most, under load':44} {await lateness() * 1e3:8.1f} ms")
        say(f"{'resident memory of the daemon':44} {resident(pid):8.1f} MiB")
    watched.close()


if __name__ == "__main__":
    asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0))
