"""The API under load, and the checks meanwhile: how many requests a second, how slow the slowest, how late the engine.

    python benchmarks/http_load.py [SECONDS]

Starts `selfheal run` with a hundred checks a second twice: once left alone, once under load (reads, acts, 500 open
streams, 500 connections that send half a head), and prints one table. Linux only; everything is on loopback, and the
load is made by one more process on the same machine, which wants a processor for itself.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

SERVICES: Final = 100
STREAMS: Final = 500
HALF_OPEN: Final = 500
CLIENTS: Final = 20
ACTORS: Final = 4
ACTS: Final = 60
PORT: Final = 23117
PREFIX: Final = "/api/recovery"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Daemon:
    """A daemon that checks one port a hundred times a second, and the tokens of those who ask."""

    def __init__(self, folder: Path, watched: int) -> None:
        check = f'check = {{ kind = "tcp", address = "127.0.0.1:{watched}" }}\ninterval = "1s"\n'
        services = "".join(f"[services.s{number}]\n{check}" for number in range(SERVICES))
        door = f'[http]\nlisten = "127.0.0.1:{PORT}"\n'
        (folder / "fleet.toml").write_text(f'[fleet]\nstate_dir = "state"\n{services}{door}')
        self.tokens = [self._token(folder, f"actor{number}") for number in range(ACTORS)]
        with (folder / "log").open("w") as log:
            line = [sys.executable, "-m", "selfheal", "run", str(folder / "fleet.toml")]
            self.child = subprocess.Popen(line, stderr=log)  # a line of our own

    @staticmethod
    def _token(folder: Path, name: str) -> str:
        line = [sys.executable, "-m", "selfheal", "--state-dir", str(folder / "state"), "token", "create", name]
        made = subprocess.run([*line, "--scope", "operate"], capture_output=True, text=True, check=True)
        return made.stdout.strip()

    def resident(self) -> float:
        """Return the memory it has, in MiB."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


@contextmanager
def daemon(watched: int) -> Iterator[Daemon]:
    """Run a daemon."""
    with tempfile.TemporaryDirectory() as name:
        running = Daemon(Path(name), watched)
        try:
            yield running
        finally:
            began = time.monotonic()
            running.child.send_signal(signal.SIGTERM)
            running.child.wait(30.0)
            say(f"{'the daemon stopped in':48} {time.monotonic() - began:8.2f} s")


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, token: str, method: str = "GET"
) -> tuple[int, bytes]:
    """Send one request over an open connection; return the status and the body."""
    head = f"{method} {PREFIX}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
    writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(int(line.partition(":")[2]) for line in answer.split("\r\n") if line.startswith("content-length"))
    return int(answer.split(" ", 2)[1]), await reader.readexactly(length)


async def once(path: str, token: str) -> bytes:
    """Ask over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    _, body = await ask(reader, writer, path, token)
    writer.close()
    return body


def told(what: str, took: list[float], seconds: float, codes: Counter[int]) -> None:
    """Print how it went."""
    took.sort()
    median, p99 = took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3
    shown = ", ".join(f"{code}: {number}" for code, number in sorted(codes.items()))
    say(f"{what:48} {len(took) / seconds:8.0f} /s   median {median:6.1f} ms   p99 {p99:6.1f} ms   {shown}")


async def reads(what: str, path: str, token: str, seconds: float, *, clients: int = CLIENTS) -> None:
    """Ask from several connections without a pause, and say how it went."""
    took: list[float] = []
    codes: Counter[int] = Counter()
    end = time.monotonic() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        while time.monotonic() < end:
            began = time.monotonic()
            code, _ = await ask(reader, writer, path, token)
            took.append(time.monotonic() - began)
            codes[code] += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    told(what, took, seconds, codes)


async def acts(what: str, tokens: list[str]) -> None:
    """Let each caller act as often as it may in a minute, each answer durable; then once more, which is refused."""
    took: list[float] = []
    codes: Counter[int] = Counter()
    began = time.monotonic()

    async def actor(place: int, token: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        for number in range(ACTS + 1):
            # Each service is switched off and on again at once, by one of them alone.
            name = f"s{(place * SERVICES // ACTORS + number // 2) % SERVICES}"
            at = time.monotonic()
            code, _ = await ask(reader, writer, f"/services/{name}/{('disable', 'enable')[number % 2]}", token, "POST")
            took.append(time.monotonic() - at)
            codes[code] += 1
        writer.close()

    await asyncio.gather(*(actor(place, token) for place, token in enumerate(tokens)))
    told(what, took, time.monotonic() - began, codes)


async def opened(token: str) -> None:
    """Wait until the API answers."""
    for _ in range(200):
        try:
            await once("/health", token)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            return
    raise SystemExit("the API did not come up")


async def lateness(token: str) -> float:
    """Return the latest that the engine has woken in the last minute, in milliseconds."""
    answer: Any = json.loads(await once("/health", token))
    return float(answer["details"]["lag_seconds"]) * 1e3


async def checks(token: str) -> int:
    """Return how many checks there have been."""
    text = (await once("/metrics?format=text", token)).decode()
    return sum(int(number) for number in re.findall(r"^selfheal_checks_total\{.*\} (\d+)$", text, re.MULTILINE))


class Meanwhile:
    """Counts the checks of a stretch of time."""

    def __init__(self, token: str) -> None:
        self.token = token

    async def __aenter__(self) -> Self:
        self.before, self.began = await checks(self.token), time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.rate = (await checks(self.token) - self.before) / (time.monotonic() - self.began)
        self.late = await lateness(self.token)

    def say(self, how: str) -> None:
        """Print them."""
        say(f"{f'checks, {how}':48} {self.rate:8.1f} /s   and the engine woke late by at most {self.late:.1f} ms")


async def raw(head: str, number: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open connections and send the beginning of a request over each."""
    found = []
    for _ in range(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(head.encode())
        found.append((reader, writer))
    return found


async def measure(seconds: float) -> None:
    """Print everything."""
    watched = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, backlog=1000)
    port = watched.sockets[0].getsockname()[1]
    with daemon(port) as running:
        one, *_ = running.tokens
        await opened(one)
        async with Meanwhile(one) as alone:
            await asyncio.sleep(seconds * 4)
        alone.say("left alone")
        say(f"{'resident memory of the daemon':48} {running.resident():8.1f} MiB")
    with daemon(port) as running:
        one, *_ = running.tokens
        await opened(one)
        async with Meanwhile(one) as loaded:
            await reads("one reader, /health", "/health", one, seconds, clients=1)
            await reads(f"{CLIENTS} readers, /health", "/health", one, seconds)
            await reads(f"{CLIENTS} readers, /status of {SERVICES} services", "/status", one, seconds)
            await acts(f"{ACTORS} callers who act as often as they may", running.tokens)
            await _beside(running.tokens, seconds)
        loaded.say("under load")
        say(f"{'resident memory of the daemon':48} {running.resident():8.1f} MiB")
    watched.close()


async def _beside(tokens: list[str], seconds: float) -> None:
    """Open the streams and the halves of heads, and read beside them."""
    heads = [f"GET {PREFIX}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {t}\r\n\r\n" for t in tokens]
    streams = [one for head in heads for one in await raw(head, STREAMS // len(heads))]
    firsts = [await reader.readline() for reader, _ in streams]
    half = await raw(f"GET {PREFIX}/status HTTP/1.1\r\nHost: 12", HALF_OPEN)
    say(f"{'streams open, and half-open connections':48} {sum(b' 200 ' in one for one in firsts):8} + {len(half)}")
    await reads(f"{CLIENTS} readers beside them, /status", "/status", tokens[0], seconds)
    listening = sum(not reader.at_eof() for reader, _ in streams)
    say(f"{'streams that are open afterwards':48} {listening:8}")
    for _, writer in (*streams, *half):
        writer.close()


if __name__ == "__main__":
    asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0))
