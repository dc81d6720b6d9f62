"""The real Redis: one process of it, its replica, its Sentinel, each on a port and in a folder of its own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeAlias

from tests.servers import free_port, program_of, until
from tests.stack.child import Child
from tests.stack.running import Program

Answer: TypeAlias = Any
"""Text, a number, a list of answers, or None; an error is a text that begins with a minus."""

PATIENCE = 15.0


class RedisServer(Child):
    """A `redis-server` on loopback. `start` may be called again after `stop` or `kill`: the folder stays."""

    def __init__(self, folder: Path, *, port: int | None = None, password: str | None = None) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self.password = password
        self._program = program_of("redis", "redis-server", "valkey-server")
        self._process: subprocess.Popen[bytes] | None = None
        self._crowd: list[RedisClient] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """Its address, without a password."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def address(self) -> str:
        """Its address as `host:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has said so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def begin(self, *options: str) -> None:
        """Start it with these options over ours, and do not wait."""
        self._run(self.serving(*options))

    def serving(self, *options: str) -> Program:
        """Return the server as a program, with these options over ours."""
        ours = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "daemonize": "no"}
        arguments = [part for name, value in ours.items() for part in (f"--{name}", str(value))]
        if self.password is not None:
            arguments += ["--requirepass", self.password, "--masterauth", self.password]
        return self._program_with(*arguments, *options)

    def _program_with(self, *arguments: str) -> Program:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        return Program(arguments=(self._program, *arguments), environment=environment, cwd=self.folder)

    def _run(self, program: Program) -> None:
        assert self._process is None, "it runs already"
        self._process = program.begin(self.folder / "log")

    def start(self, *options: str) -> None:
        """Start it, and wait until it serves: until it answers anything but that it is loading."""
        self.begin(*options)
        until(lambda: (said := self.ask("PING")) and not str(said).startswith("-LOADING"), "Redis answers", PATIENCE)

    def ask(self, *words: str | int, timeout: float = 5.0) -> Answer:
        """Send one command on a connection of its own and return the answer; "" where there is none."""
        try:
            with RedisClient(self, timeout=timeout) as client:
                return client.ask(*words)
        except (OSError, EOFError):
            return ""

    def info(self, section: str = "everything") -> dict[str, str]:
        """Return the fields of INFO."""
        lines = str(self.ask("INFO", section)).splitlines()
        return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}

    def becomes(self, true: Callable[[dict[str, str]], Any], what: str, seconds: float = PATIENCE) -> None:
        """Wait until INFO has a condition fulfilled."""
        until(lambda: true(self.info()), what, seconds)

    def crowd(self, count: int) -> list[RedisClient]:
        """Return so many clients that are connected and known to the server; they leave with the block at last."""
        clients = [RedisClient(self) for _ in range(count)]
        self._crowd += clients
        for client in clients:
            client.ask("PING")
        return clients

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        for client in self._crowd:
            client.close()
        self.kill()


class RedisSentinel(RedisServer):
    """A Sentinel (the same program) that watches one primary, alone or with others."""

    def __init__(self, folder: Path, primary: RedisServer, *, name: str = "main", quorum: int = 1) -> None:
        super().__init__(folder)
        self.primary, self.name, self.quorum = primary, name, quorum

    def begin(self, *options: str) -> None:
        """Start it with a file of its own, which it rewrites, and do not wait."""
        file = self.folder / "sentinel.conf"
        if not file.exists():
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self.folder}",
                f"sentinel monitor {self.name} 127.0.0.1 {self.primary.port} {self.quorum}",
                f"sentinel down-after-milliseconds {self.name} 60000",  # by itself it should do nothing in a test
                f"sentinel failover-timeout {self.name} 10000",
                *options,
            ]
            if self.primary.password is not None:
                lines.append(f"sentinel auth-pass {self.name} {self.primary.password}")
            file.write_text("\n".join(lines) + "\n")
        self._run(self._program_with(str(file), "--sentinel"))

    def replica(self) -> dict[str, str]:
        """Return what it says of the first replica of its primary."""
        said = self.ask("SENTINEL", "REPLICAS", self.name)[0]
        return dict(zip(said[::2], said[1::2], strict=True))


class RedisClient:
    """One connection to a Redis, and the few words that tests say on it."""

    def __init__(self, server: RedisServer, *, timeout: float = 5.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=timeout)
        self._heard = self._socket.makefile("rb")
        if server.password is not None:
            try:
                self.ask("AUTH", server.password)
            except (OSError, EOFError):
                self.close()
                raise

    def send(self, *words: str | int) -> None:
        """Send one command, and do not wait for the answer."""
        parts = [str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))

    def ask(self, *words: str | int) -> Answer:
        """Send one command and return its answer. Raises OSError or EOFError where there is none."""
        self.send(*words)
        return self.hear()

    def hear(self) -> Answer:
        """Read one answer. Raises EOFError where the server has hung up."""
        line = self._heard.readline()
        if not line:
            raise EOFError
        mark, rest = line[:1], line[1:].decode(errors="replace").strip()
        match mark:
            case b"+":
                return rest
            case b":":
                return int(rest)
            case b"$":
                return None if rest == "-1" else self._heard.read(int(rest) + 2)[:-2].decode(errors="replace")
            case b"*":
                return None if rest == "-1" else [self.hear() for _ in range(int(rest))]
            case _:
                return line.decode(errors="replace").strip()

    def close(self) -> None:
        """Hang up."""
        self._heard.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()
