"""A real HTTP receiver in threads, which can be as nasty as the ones outside, and the contexts to call it with."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Literal, TypeVar

import anyio.to_thread
import attrs

from selfheal.core.model import Cause, Instance
from selfheal.plugins import HealthCheck, Workload

T = TypeVar("T")

Deed = Literal["answer", "drop", "hang", "drip", "drip_header", "endless", "endless_header", "garbage", "cut"]


@attrs.frozen(kw_only=True)
class Request:
    """What arrived; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@attrs.frozen(kw_only=True)
class Reply:
    """What to do with one request."""

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b"{}"
    deed: Deed = "answer"


class Receiver:
    """Listens on loopback. Takes the next of `replies` for each request, the plain 200 when there is none."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.replies: deque[Reply] = deque()
        self.always = Reply()
        self._tls = tls
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._socket = socket.create_server(("127.0.0.1", port))
        self._socket.settimeout(0.05)
        self.port: int = self._socket.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def settle(self) -> None:
        """Wait until every connection that was accepted has ended."""
        for thread in list(self._threads):
            thread.join(5)

    def close(self) -> None:
        self._stop.set()
        self._accepting.join(5)
        for thread in self._threads:
            thread.join(5)
        self._socket.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(5)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            request = _read(connection)
            if request is None:
                return
            self.requests.append(request)
            reply = self.replies.popleft() if self.replies else self.always
            getattr(self, f"_{reply.deed}")(connection, reply)

    def _answer(self, connection: socket.socket, reply: Reply) -> None:
        lines = [f"HTTP/1.1 {reply.status} Whatever", f"content-length: {len(reply.body)}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body)

    def _drop(self, connection: socket.socket, reply: Reply) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # RST, not FIN

    def _hang(self, connection: socket.socket, reply: Reply) -> None:
        connection.settimeout(0.05)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(100):
                    return

    def _drip(self, connection: socket.socket, reply: Reply) -> None:
        connection.sendall(f"HTTP/1.1 {reply.status} Whatever\r\n\r\n".encode())
        self._drops(connection, b"x")

    def _drip_header(self, connection: socket.socket, reply: Reply) -> None:
        connection.sendall(b"HTTP/1.1 200 Whatever\r\nx-slow: ")
        self._drops(connection, b"x")

    def _drops(self, connection: socket.socket, drop: bytes) -> None:
        while not self._stop.wait(0.02):
            connection.sendall(drop)

    def _endless(self, connection: socket.socket, reply: Reply) -> None:
        connection.sendall(f"HTTP/1.1 {reply.status} Whatever\r\n\r\n".encode())
        while not self._stop.is_set():
            connection.sendall(b"x" * 65536)

    def _endless_header(self, connection: socket.socket, reply: Reply) -> None:
        connection.sendall(b"HTTP/1.1 200 Whatever\r\nx-long: ")
        while not self._stop.is_set():
            connection.sendall(b"x" * 65536)

    def _garbage(self, connection: socket.socket, reply: Reply) -> None:
        connection.sendall(b"-ERR this is no HTTP\r\n\r\n")

    def _cut(self, connection: socket.socket, reply: Reply) -> None:
        connection.sendall(f"HTTP/1.1 {reply.status} Whatever\r\ncontent-length: 1000\r\n\r\nonly this".encode())


def _read(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    method, target, _ = first.split(" ")
    return Request(method=method, target=target, headers=headers, body=body)


class Call:
    """A context, as the plugin loop gives one: for notifiers, and for actions."""

    def __init__(self, *, timeout: float = 10.0, key: str = "17/redis/1/0", service: str = "redis") -> None:
        self.service = service
        self.kept: MutableMapping[str, Any] = {}
        self.key = key
        self.verb = "restart"
        self.incident = 17
        self.attempt = 1
        self.cause: Cause | None = Cause.UNREACHABLE
        self.expected: Instance | None = None
        self.check: HealthCheck | None = None
        self.workload: Workload | None = None
        self.arguments: Mapping[str, Any] = {}
        self._deadline = time.monotonic() + timeout

    @property
    def remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    async def blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        return await anyio.to_thread.run_sync(lambda: function(*args), abandon_on_cancel=True)

    async def aclose(self) -> None:
        for value in self.kept.values():
            await value.aclose()
        self.kept.clear()


@contextlib.contextmanager
def receiving(*, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver for the length of a `with`."""
    receiver = Receiver(tls=tls)
    try:
        yield receiver
    finally:
        receiver.close()


def descriptors() -> int:
    """Return how many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def everything(problem: BaseException | None) -> str:
    """Return all that could be printed of an exception: itself, what it was raised from, and what came before."""
    if problem is None:
        return ""
    parts = [repr(problem), str(problem), repr(vars(problem))]
    return "\n".join([*parts, everything(problem.__cause__), everything(problem.__context__)])
