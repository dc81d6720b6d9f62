"""Servers with one fault each, on loopback, for tests of checks: yours and ours.

Each is a context manager that yields its address (`host:port`, or the path of a unix socket) and closes everything on
exit: listener, connections, threads. They are made of threads and plain sockets, so any event loop can be tested.

    with drip(b"+PONG\\r\\n") as address:
        ...

`serve` is the general one: give it the conversation. TLS servers yield a `TlsServer` and need the package `trustme`.
"""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from selfheal.shell.names import Address

if TYPE_CHECKING:
    import trustme

Conversation: TypeAlias = "Callable[[socket.socket, threading.Event], None]"
"""Speaks with one client; the event is set when the server is to end. What it raises as OSError is ignored."""

_Server: TypeAlias = "AbstractContextManager[str]"
_TlsServer: TypeAlias = "AbstractContextManager[TlsServer]"
_JOIN: Final = 5.0


@attrs.frozen(kw_only=True)
class TlsServer:
    """Where a TLS server is, the authority (PEM) to trust, and a certificate with its key (PEM) for a client."""

    address: str
    authority: Path
    certificate: Path


@contextmanager
def serve(
    conversation: Conversation, *, path: Path | None = None, context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve `conversation`, a thread for each client: on a free port, or on the unix socket `path`."""
    listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    stop = threading.Event()
    threads: list[threading.Thread] = []
    clients: set[socket.socket] = set()
    guard = threading.Lock()

    def speak(client: socket.socket) -> None:
        try:
            if context is not None:
                client.settimeout(_JOIN)
                secured = context.wrap_socket(client, server_side=True)
                with guard:
                    clients.discard(client)
                    clients.add(secured)
                client = secured
                client.settimeout(None)
            conversation(client, stop)
        except (OSError, ValueError):  # ValueError: a client that was closed under us
            pass
        finally:
            with guard:
                clients.discard(client)
            client.close()

    def accept() -> None:
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with guard:
                clients.add(client)
            thread = threading.Thread(target=speak, args=(client,), name="fault-server", daemon=True)
            threads.append(thread)
            thread.start()

    try:
        listener.bind(("127.0.0.1", 0) if path is None else str(path))
        listener.listen(512)
        accepting = threading.Thread(target=accept, name="fault-server", daemon=True)
        accepting.start()
        yield _address(listener)
    finally:
        stop.set()
        _end(listener)
        with guard:
            for client in clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
        accepting.join(_JOIN)
        for thread in threads:
            thread.join(_JOIN)


def answer(reply: bytes, *more: bytes, path: Path | None = None, pause: float = 0.0) -> _Server:
    """Hear something, say `reply`, then each of `more` after `pause` seconds, and close."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        if path is None:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(65536)
        client.sendall(reply)
        for piece in more:
            stop.wait(pause)
            client.sendall(piece)
        _finish(client)

    return serve(speak, path=path)


def drip(reply: bytes, pause: float = 0.001) -> _Server:
    """Hear something, then say `reply` one byte at a time."""
    pieces = [reply[at : at + 1] for at in range(len(reply))]
    return answer(*pieces, pause=pause)


def pong(*, path: Path | None = None) -> _Server:
    """Answer everything with Redis's PONG, on a connection that stays open."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        while client.recv(4096):
            client.sendall(b"+PONG\r\n")

    return serve(speak, path=path)


def hang(*, path: Path | None = None) -> _Server:
    """Accept, and say nothing until the client leaves."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        while client.recv(65536):
            pass

    return serve(speak, path=path)


def endless_body() -> _Server:
    """Begin an HTTP answer that never ends, as fast as it is read."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.recv(65536)
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stop.is_set():
            client.sendall(b"x" * 65536)

    return serve(speak)


def half_close(reply: bytes = b"") -> _Server:
    """Say `reply` and close the sending half; go on listening."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.recv(65536)
        client.sendall(reply)
        client.shutdown(socket.SHUT_WR)
        stop.wait()

    return serve(speak)


def reset(reply: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf") -> _Server:
    """Say `reply`, which is half an answer, and reset the connection once it was received."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        client.recv(65536)
        if reply:
            client.sendall(reply)
            stop.wait(0.05)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return serve(speak)


def garbage() -> _Server:
    """Say what is no protocol."""
    return answer(bytes(range(256)) * 4)


def slow_reader(wait: float = 0.2, reply: bytes = b"got it") -> _Server:
    """Read nothing for `wait` seconds, then everything until a zero byte; then say `reply`."""

    def speak(client: socket.socket, stop: threading.Event) -> None:
        stop.wait(wait)
        while data := client.recv(65536):
            if data.endswith(b"\0"):
                client.sendall(reply)
                break
        _finish(client)

    return serve(speak)


@contextmanager
def refuse(*, path: Path | None = None) -> Iterator[str]:
    """Be an address at which nobody listens, though it is ours."""
    with socket.socket(socket.AF_INET if path is None else socket.AF_UNIX) as bound:
        bound.bind(("127.0.0.1", 0) if path is None else str(path))
        yield _address(bound)


@contextmanager
def black_hole() -> Iterator[str]:
    """Be an address that takes no connection and refuses none: its backlog is full, so the kernel drops what comes."""
    with _full(socket.AF_INET, ("127.0.0.1", 0)) as address:
        yield address


@contextmanager
def full_backlog(path: Path) -> Iterator[str]:
    """Be a unix socket whose backlog is full: connecting fails at once with EAGAIN."""
    with _full(socket.AF_UNIX, str(path)) as address:
        yield address


@contextmanager
def _full(family: int, name: object) -> Iterator[str]:
    with socket.socket(family) as listener:
        listener.bind(name)  # type: ignore[arg-type]  # typeshed's address is Any at run time, a buffer or tuple here
        listener.listen(0)
        crowd = [socket.socket(family) for _ in range(4)]
        try:
            for client in crowd:
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
            yield _address(listener)
        finally:
            for client in crowd:
                client.close()


class SilentResolver:
    """A lookup for `Resolver` that never answers about names that begin with `hang`, until it is released."""

    def __init__(self, *, known: dict[str, tuple[Address, ...]] | None = None) -> None:
        self.known = known or {}
        self.asked: list[str] = []
        self.released = threading.Event()

    def __call__(self, host: str, port: int) -> tuple[Address, ...]:
        """Return what is known of a name. Raises `socket.gaierror`."""
        self.asked.append(host)
        if host.startswith("hang"):
            self.released.wait()
        if host in self.known:
            return tuple((family, (address[0], port)) for family, address in self.known[host])
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


# -- TLS ---------------------------------------------------------------------------------------------------------

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


def tls_valid(reply: bytes = _OK, *, days: float = 365.0) -> _TlsServer:
    """Serve over TLS with a certificate for 127.0.0.1 and localhost that ends in `days`."""
    return _tls(reply, days=(-1.0, days))


def tls_pong() -> _TlsServer:
    """Answer everything with Redis's PONG, over TLS, on a connection that stays open."""
    return _tls(b"+PONG\r\n", stays=True)


def tls_expired() -> _TlsServer:
    """Serve with a certificate that ended yesterday."""
    return _tls(days=(-10.0, -1.0))


def tls_not_yet_valid() -> _TlsServer:
    """Serve with a certificate that begins tomorrow."""
    return _tls(days=(1.0, 10.0))


def tls_wrong_name() -> _TlsServer:
    """Serve with a certificate for another host."""
    return _tls(names=("elsewhere.example",))


def tls_untrusted() -> _TlsServer:
    """Serve with a certificate of another authority than the one that is yielded."""
    return _tls(trusted=False)


def tls_client_certificate_required(reply: bytes = _OK) -> _TlsServer:
    """Serve only clients that show the yielded certificate."""
    return _tls(reply, client=True)


@contextmanager
def _tls(
    reply: bytes = _OK,
    *,
    names: tuple[str, ...] = ("127.0.0.1", "localhost"),
    days: tuple[float, float] = (-1.0, 365.0),
    trusted: bool = True,
    client: bool = False,
    stays: bool = False,
) -> Iterator[TlsServer]:
    import trustme  # noqa: PLC0415 - a dependency of tests only

    authority = trustme.CA()
    now = datetime.datetime.now(datetime.UTC)
    begins, ends = (now + datetime.timedelta(days=day) for day in days)
    leaf = authority.issue_cert(*names, not_before=begins, not_after=ends)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    if client:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)

    def speak(peer: socket.socket, stop: threading.Event) -> None:
        while peer.recv(65536):
            peer.sendall(reply)
            if not stays:
                return

    with tempfile.TemporaryDirectory() as folder, serve(speak, context=context) as address:
        pem, own = Path(folder, "authority.pem"), Path(folder, "client.pem")
        (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(pem))
        _write(authority.issue_cert("client@example.org"), own)
        yield TlsServer(address=address, authority=pem, certificate=own)


def _write(leaf: trustme.LeafCert, path: Path) -> None:
    leaf.private_key_and_cert_chain_pem.write_to_path(str(path))


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return str(name) if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _finish(client: socket.socket) -> None:
    """End what is said, and wait for the other side, so that closing does not reset what it has not read yet."""
    client.shutdown(socket.SHUT_WR)
    while client.recv(65536):
        pass


def _end(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
    listener.close()
