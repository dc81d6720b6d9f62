"""The demo's stack: four ordinary programs that know nothing of selfheal, and the little init script of one of them.

Run as a file, with the standard library only: ``demo_stack.py store PORT``, ``cache PORT``, ``api PORT STORE CACHE``,
``worker PORT STORE POISON``, and ``ctl FOLDER start|stop|restart|replace|inspect PROGRAM ARGUMENTS…``.
"""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 0.3


class Words(socketserver.StreamRequestHandler):
    """A store that counts: answers PING, INCR and GET, each on one line."""

    counts: dict[str, int] = {}  # noqa: RUF012  # one store, one table

    def handle(self) -> None:
        """Answer line by line until the client goes."""
        while line := self.rfile.readline():
            word, _, key = line.decode(errors="replace").strip().partition(" ")
            if word == "INCR":
                self.counts[key] = self.counts.get(key, 0) + 1
            if word in ("INCR", "GET"):
                self.wfile.write(f":{self.counts.get(key, 0)}\r\n".encode())
            elif word == "PING":
                self.wfile.write(b"+PONG\r\n")


class WordServer(socketserver.ThreadingTCPServer):
    """Serves `Words`."""

    allow_reuse_address = True
    daemon_threads = True


def ask(port: int, line: str) -> str:
    """Ask a word server one line. Raises `OSError` when it does not answer in time."""
    with socket.create_connection((HOST, port), PATIENCE) as client:
        client.settimeout(PATIENCE)
        client.sendall(line.encode() + b"\r\n")
        answer = client.recv(100).decode(errors="replace").strip()
        if not answer:
            raise OSError("closed the connection")
        return answer


class PageServer(ThreadingHTTPServer):
    """An HTTP server whose successor may listen beside it for a moment."""

    allow_reuse_port = True
    daemon_threads = True

    def server_bind(self) -> None:
        """Let two instances share the port, as rolling restarts do."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


class Page(BaseHTTPRequestHandler):
    """Answers every GET with what `look` says: a status and a text."""

    delay = 0.0

    @staticmethod
    def look() -> tuple[int, str]:
        """Return how the program is; each program sets its own."""
        return 200, "ok"

    def do_GET(self) -> None:  # the name http.server calls
        """Answer."""
        time.sleep(type(self).delay)
        status, text = type(self).look()
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def page_of(look: Callable[[], tuple[int, str]]) -> type[Page]:
    """Return the page of a program that says by `look` how it is."""
    return type("ProgramPage", (Page,), {"look": staticmethod(look)})


def store(port: int) -> None:
    """Serve words for ever."""
    WordServer((HOST, port), Words).serve_forever()


def api(port: int, store_port: int, cache_port: int) -> None:
    """Serve a page that needs the store and the cache. SIGUSR1: stop listening. SIGUSR2: be slow, or quick again."""

    def look() -> tuple[int, str]:
        try:
            return 200, f"{ask(store_port, 'GET jobs')} {ask(cache_port, 'PING')}"
        except OSError as problem:
            return 503, f"cannot serve: {problem}"

    page = page_of(look)
    server = PageServer((HOST, port), page)

    def slow(*_: object) -> None:
        page.delay = 0.0 if page.delay else 0.4

    signal.signal(signal.SIGUSR1, lambda *_: server.socket.close())
    signal.signal(signal.SIGUSR2, slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        time.sleep(3600)


def worker(port: int, store_port: int, poison: Path) -> None:
    """Do jobs against the store, and say on a page whether they get done. A poisoned job ends it at once."""
    done = time.monotonic()

    def look() -> tuple[int, str]:
        late = time.monotonic() - done
        return (200, "working") if late < 1.0 else (503, f"no job done for {late:.1f} s")

    if poison.exists():
        sys.exit("a poisoned job: giving up")
    server = PageServer((HOST, port), page_of(look))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        if poison.exists():
            os._exit(1)
        try:
            ask(store_port, "INCR jobs")
            done = time.monotonic()
        except OSError:
            pass  # the next round tries again
        time.sleep(0.1)


# -- the init script ------------------------------------------------------------------------------------------------


def born(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty when it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


class Init:
    """Starts and stops one program by a pid file, as init scripts do."""

    def __init__(self, folder: Path, program: list[str]) -> None:
        self.program = program
        self.pid_file = folder / f"{program[0]}.pid"
        self.stopped = folder / f"{program[0]}.stopped"
        self.log = folder / f"{program[0]}.starts"

    def running(self) -> tuple[int, str] | None:
        """Return (pid, start) of the instance that the pid file names, running or not."""
        try:
            pid, start = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid), start

    def start(self) -> None:
        """Start a new instance and write it down."""
        child = subprocess.Popen(  # noqa: S603  # our own file, and arguments as a list
            [sys.executable, "-S", "-E", __file__, *self.program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid_file.write_text(f"{child.pid} {born(child.pid)}")
        self.stopped.unlink(missing_ok=True)
        with self.log.open("a") as log:
            log.write(f"{child.pid}\n")

    def kill(self, instance: tuple[int, str] | None) -> None:
        """End an instance, if it is still the one that was written down."""
        if instance is None or born(instance[0]) != instance[1]:
            return
        os.kill(instance[0], signal.SIGKILL)
        until = time.monotonic() + 2.0
        while born(instance[0]) == instance[1] and time.monotonic() < until:
            time.sleep(0.005)

    def inspect(self) -> int:
        """Print who runs, and answer as `status` does: 0 runs, 1 has ended, 3 was stopped by a person."""
        instance = self.running()
        if instance is None:
            return 3
        print(f"{instance[0]}:{instance[1]}")  # noqa: T201  # the answer
        if self.stopped.exists():
            return 3
        return 0 if born(instance[0]) == instance[1] else 1

    def do(self, verb: str) -> int:
        """Do what an operator, or selfheal, asks for."""
        old = self.running()
        if verb == "inspect":
            return self.inspect()
        if verb == "stop":
            self.stopped.touch()
            self.kill(old)
        elif verb == "start":
            self.start()
        elif verb == "restart":
            self.kill(old)
            self.start()
        elif verb == "replace":  # the new one first, then the old one goes
            self.start()
            self.kill(old)
        return 0


def main(arguments: list[str]) -> int:
    """Be one of the programs."""
    name, *rest = arguments
    if name == "ctl":
        folder, verb, *program = rest
        return Init(Path(folder), program).do(verb)
    if name in ("store", "cache"):
        store(int(rest[0]))
    elif name == "api":
        api(int(rest[0]), int(rest[1]), int(rest[2]))
    elif name == "worker":
        worker(int(rest[0]), int(rest[1]), Path(rest[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
