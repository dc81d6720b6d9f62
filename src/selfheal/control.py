"""The control socket, both ends: every row of `requests.TABLE` over a Unix socket, one JSON object a line.

    -> {"v": 1, "id": 7, "request": "pause", "parameters": {"services": ["api"]}, "reason": "upgrade"}
    <- {"v": 1, "id": 7, "ok": true, "answer": {...}}
    <- {"v": 1, "id": 7, "ok": false, "error": {"code": "unknown_service", "message": "no service 'api'"}}

Who may open the socket has every scope; it lies in the `state_dir`, readable and writable for its owner alone. The
actor of an act is the calling user, as the kernel names it; a caller with our own uid may name another (`actor`: a
web worker that forwards) and fewer `scopes`, and the record then shows both. `key` makes an act one act, however often
it is sent; `journal` says which journal is meant, and any other is refused.

Everything is bounded: the line, the number of connections (the one that is silent for longest makes room), the time
a line, an answer and its delivery may take. One request at a time is dealt with on a connection.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import pwd
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread
import attrs
from anyio.abc import ByteReceiveStream, SocketAttribute, SocketListener, SocketStream, TaskGroup

from selfheal.core.records import dumps
from selfheal.errors import ControlError, JournalError, NotRunning, RequestRefused
from selfheal.requests import SCOPES, checked

log = logging.getLogger("selfheal.control")

VERSION: Final = 1
"""Version of the protocol; it grows when a field changes its meaning."""

LINE_LIMIT: Final = 64 << 10
"""Bytes of a request; the largest that makes sense names a few hundred services."""

ANSWER_LIMIT: Final = 64 << 20
"""Bytes of an answer that a caller takes in."""

CONNECTIONS: Final = 64
"""Connections at a time."""

TIMEOUT: Final = 15.0
"""Seconds a caller waits in all. A store that hangs is noticed after five, and the answer then comes without it."""

KEYS: Final = frozenset({"v", "id", "request", "parameters", "actor", "reason", "key", "scopes", "journal"})

_CREDENTIALS: Final = struct.Struct("3i")
_PATH_LIMIT: Final = 100
"""Bytes of a path that fit into an address with room to spare; the kernel has 108."""


class Unreachable(ControlError):
    """Nobody listens at the socket, or we may not open it."""


class Silent(ControlError):
    """Somebody listens at the socket, and has not answered in time."""


class Answering(Protocol):
    """Who answers requests: a `Supervisor`."""

    async def act(
        self,
        name: str,
        *,
        actor: str,
        reason: str,
        scopes: frozenset[str],
        id: str | None,  # noqa: A002  # the word of `Supervisor.act`
        **parameters: Any,
    ) -> dict[str, Any]: ...

    async def ask(self, name: str, **parameters: Any) -> Any: ...


@attrs.frozen(kw_only=True)
class Pace:
    """How long the server waits, in seconds: for a next line, a whole line, an answer, and its taking."""

    idle: float = 60.0
    line: float = 10.0
    answer: float = 60.0
    write: float = 10.0


# -- addresses ------------------------------------------------------------------------------------------------------


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """Give `path` as an address: by way of its open folder where it is too long for one."""
    if len(os.fsencode(path)) < _PATH_LIMIT:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def alive(path: Path) -> bool:
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            with _address(path) as address:
                probe.connect(address)
        except OSError as problem:
            return problem.errno == errno.EAGAIN
        return True


# -- the server -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Peer:
    """Who is on the other end, by the kernel's word."""

    pid: int
    uid: int
    name: str


class _Wrong(Exception):
    """What came in is no request. `last`: what follows it cannot be understood either."""

    def __init__(self, code: str, message: str, *, last: bool = False) -> None:
        self.code = code
        self.last = last
        super().__init__(message)


@attrs.define(eq=False)
class _Line:
    """One connection, as the limit on their number sees it. `idle_since` is infinite while a request is dealt with."""

    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    idle_since: float = inf


class _Lines:
    """Lines out of a stream of bytes; never more in memory than one of them and a chunk."""

    def __init__(self, stream: ByteReceiveStream, pace: Pace) -> None:
        self._stream = stream
        self._pace = pace
        self._rest = bytearray()

    async def next(self) -> bytes | None:
        """Return the next line; None at the end. Raises `_Wrong` for one that is too long or not ended."""
        began = time.monotonic()
        looked = 0
        while True:
            end = self._rest.find(b"\n", looked)
            if end > LINE_LIMIT or (end < 0 and len(self._rest) > LINE_LIMIT):
                raise _Wrong("too_long", f"a request is one line of at most {LINE_LIMIT} bytes", last=True)
            if end >= 0:
                line = bytes(self._rest[:end])
                del self._rest[: end + 1]
                return line
            looked = len(self._rest)
            limit = self._pace.line if looked else self._pace.idle
            with anyio.move_on_after(began + limit - time.monotonic()) as waiting:
                try:
                    chunk = await self._stream.receive(LINE_LIMIT)
                except anyio.EndOfStream:
                    if looked:
                        raise _Wrong("bad_request", "the line has no end", last=True) from None
                    return None
                if not looked:
                    began = time.monotonic()
                self._rest += chunk
            if waiting.cancelled_caught:
                raise _Wrong("timeout", f"no whole line came within {limit:g} s", last=True)


class _Door:
    """Answers whoever comes."""

    def __init__(self, supervisor: Answering, journal: str, pace: Pace, most: int) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._pace = pace
        self._most = most
        self._open: dict[_Line, None] = {}
        self._names: dict[int, str] = {}

    async def accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as problem:
                # No descriptor left, say: who waits goes on waiting, and the fleet is watched all the same.
                log.warning("the control socket cannot take a caller: %s", problem.strerror)
                await anyio.sleep(0.5)
                continue
            if len(self._open) >= self._most and not self._make_room():
                await self._turn_away(stream)
                continue
            line = _Line(idle_since=time.monotonic())
            self._open[line] = None
            tasks.start_soon(self._serve, stream, line)

    def _make_room(self) -> bool:
        """End the connection that has said nothing for longest; False when each has a request under way."""
        longest = min(self._open, key=lambda line: line.idle_since)
        if longest.idle_since == inf:
            return False
        longest.scope.cancel()
        del self._open[longest]
        return True

    async def _turn_away(self, stream: SocketStream) -> None:
        with suppress(OSError):
            said = _refusal(None, "busy", f"{self._most} requests are under way; ask again in a moment")
            _raw(stream).send(said)
        await anyio.aclose_forcefully(stream)

    async def _serve(self, stream: SocketStream, line: _Line) -> None:
        try:
            with line.scope:
                async with stream:
                    await self._converse(stream, line, await self._peer(stream))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError, OSError):
            pass  # gone, or not reading: nobody is left to tell
        except Exception:  # a fault of ours ends this connection, not the supervisor
            log.exception("a connection of the control socket failed")
        finally:
            self._open.pop(line, None)

    async def _converse(self, stream: SocketStream, line: _Line, peer: Peer) -> None:
        lines = _Lines(stream, self._pace)
        while True:
            line.idle_since = time.monotonic()
            try:
                asked = await lines.next()
            except _Wrong as wrong:
                said, last = _refusal(None, wrong.code, str(wrong)), wrong.last
            else:
                if asked is None:
                    return
                line.idle_since = inf
                said, last = await self._answer(asked, peer)
            line.idle_since = inf
            with anyio.fail_after(self._pace.write):
                await stream.send(said)
            if last:
                return

    async def _answer(self, asked: bytes, peer: Peer) -> tuple[bytes, bool]:
        """Return the answer to a line, and whether it is the last of its connection."""
        id_: Any = None
        try:
            message = _read(asked)
            id_ = message.get("id")
            with anyio.fail_after(self._pace.answer):
                answer = await self._ask(message, peer)
            return await anyio.to_thread.run_sync(_said, id_, answer), False
        except _Wrong as wrong:
            return _refusal(id_, wrong.code, str(wrong)), wrong.last
        except RequestRefused as refused:
            return _refusal(id_, refused.code, str(refused)), False
        except NotRunning as problem:
            return _refusal(id_, "not_running", str(problem)), False
        except JournalError as problem:
            return _refusal(id_, "journal", str(problem)), False
        except TimeoutError:
            text = f"no answer within {self._pace.answer:g} s; it may still be done: look at `audit`"
            return _refusal(id_, "timeout", text), False
        except Exception:  # what it was stands in our log; a caller gets no internals (S54)
            log.exception("a request of the control socket failed")
            return _refusal(id_, "internal", "a fault in selfheal; its log says more"), False

    async def _ask(self, message: Mapping[str, Any], peer: Peer) -> Any:
        _judge(message)
        if message.get("journal", self._journal) != self._journal:
            raise RequestRefused("conflict", f"this selfheal holds {self._journal}, not {message['journal']!a:.200}")
        request, given = checked(message.get("request"), message.get("parameters") or {})
        if not request.act:
            return await self._supervisor.ask(request.name, **given)
        return await self._supervisor.act(
            request.name,
            actor=_actor(message.get("actor"), peer),
            reason=message.get("reason") or "",
            scopes=frozenset(message.get("scopes", SCOPES)),
            id=message.get("key"),
            **given,
        )

    async def _peer(self, stream: SocketStream) -> Peer:
        found = _raw(stream).getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(found)
        if uid not in self._names:
            self._names[uid] = await anyio.to_thread.run_sync(user_name, uid)
        return Peer(pid=pid, uid=uid, name=self._names[uid])


def _raw(stream: SocketStream) -> socket.socket:
    found: socket.socket = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  # anyio's, not Django's
    return found


def user_name(uid: int) -> str:
    """Return the name of a user; `uid 1234` for one without. May ask a directory in the network: it blocks."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _read(asked: bytes) -> dict[str, Any]:
    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number in JSON")

    try:
        message = json.loads(asked, parse_constant=constant)
        dumps(message)  # what has no form of its own on the wire (half a surrogate pair) must not get into the journal
    except (ValueError, RecursionError) as fault:
        # A peer that does not speak our language once will not speak it on the next line either.
        raise _Wrong("bad_request", f"not a line of JSON: {fault!s:.100}", last=True) from None
    if not isinstance(message, dict):
        raise _Wrong("bad_request", f"a request is an object, not a {type(message).__name__}", last=True)
    return message


def _judge(message: Mapping[str, Any]) -> None:
    """Raise `_Wrong` for what is no request of this version."""
    if message.get("v") != VERSION or isinstance(message.get("v"), bool):
        raise _Wrong("version", f'this selfheal speaks version {VERSION}; say it with "v"')
    if unknown := sorted(set(message) - KEYS):
        raise _Wrong("bad_request", f"unknown key {unknown[0]!a:.80}; there are: {', '.join(sorted(KEYS))}")
    for key in ("request", "actor", "reason", "key", "journal"):
        value = message.get(key)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= 1000 and value.isprintable()):
            raise _Wrong("bad_request", f"{key} must be one printable line of at most 1000 characters")
    if not isinstance(message.get("parameters", {}), dict):
        raise _Wrong("bad_request", "parameters must be an object")
    scopes = message.get("scopes", [])
    if not isinstance(scopes, list) or not all(isinstance(scope, str) and scope in SCOPES for scope in scopes):
        raise _Wrong("bad_request", f"scopes must be a list of {', '.join(sorted(SCOPES))}")


def _actor(named: str | None, peer: Peer) -> str:
    """Return who is to be recorded: the calling user, and whom it speaks for."""
    if named is None:
        return peer.name
    if peer.uid != os.geteuid():
        raise RequestRefused("forbidden", "only a process of selfheal's own user may name the actor")
    return f"{named} via uid {peer.uid}"


def _said(id_: Any, answer: Any) -> bytes:
    return dumps({"v": VERSION, "id": _echo(id_), "ok": True, "answer": answer}) + b"\n"


def _refusal(id_: Any, code: str, message: str) -> bytes:
    error = {"code": code, "message": message}
    return dumps({"v": VERSION, "id": _echo(id_), "ok": False, "error": error}) + b"\n"


def _echo(id_: Any) -> Any:
    """Return an id as it may be said back."""
    if isinstance(id_, str):
        return id_ if len(id_) <= 200 else None
    return id_ if isinstance(id_, (int, float)) else None


@asynccontextmanager
async def serving(
    supervisor: Answering, path: Path, *, journal: str = "", pace: Pace | None = None, most: int = CONNECTIONS
) -> AsyncIterator[bool]:
    """Answer requests at the socket `path` while entered; for who holds the journal named `journal` in that folder.

    A socket that a dead holder left is replaced; one at which somebody else listens is not, and nor is anything done
    where none can be made: that is logged, and False is given.
    """
    try:
        listener, mine = await _listen(path)
    except OSError as problem:
        log.error("there is no control socket %s: %s", path, problem.strerror or problem)
        yield False
        return
    door = _Door(supervisor, journal, pace or Pace(), most)
    try:
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(door.accept, listener, tasks)
            try:
                yield True
            finally:
                tasks.cancel_scope.cancel()
    finally:
        _take_down(path, mine)


def _take_down(path: Path, mine: int) -> None:
    """Remove our socket, if it is still ours that lies there."""
    with suppress(OSError):
        if path.stat().st_ino == mine:
            path.unlink()


async def _listen(path: Path) -> tuple[SocketListener, int]:
    """Return a listener at `path`, closed to others from the first moment, and its inode."""
    if await anyio.to_thread.run_sync(alive, path):
        raise OSError(errno.EADDRINUSE, "another selfheal listens there; give each journal a folder of its own")
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns():x}")
    with _address(draft) as address:
        # Nobody can connect between the binding and the change of mode: it does not listen yet.
        listener = await anyio.create_unix_listener(address, mode=0o600, backlog=1024)
        try:
            inode = draft.stat().st_ino
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            await listener.aclose()
            raise
    return listener, inode


# -- the caller -----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Question:
    """One request as it goes over the socket; see the module for its fields."""

    request: str
    parameters: Mapping[str, Any] = attrs.field(factory=dict)
    reason: str | None = None
    actor: str | None = None
    key: str | None = None
    scopes: frozenset[str] | None = None
    journal: str | None = None

    def line(self) -> bytes:
        """Return it as a line. Raises `ControlError` when that is too long."""
        message: dict[str, Any] = {"v": VERSION, "id": 1, "request": self.request, "parameters": dict(self.parameters)}
        said = {"reason": self.reason, "actor": self.actor, "key": self.key, "journal": self.journal}
        message |= {name: value for name, value in said.items() if value is not None}
        if self.scopes is not None:
            message["scopes"] = sorted(self.scopes)
        line = dumps(message) + b"\n"
        if len(line) > LINE_LIMIT:
            raise ControlError(f"{self.request}: {len(line)} bytes are more than the {LINE_LIMIT} of one request")
        return line


REFUSALS: Final = frozenset(
    {
        "unknown_request",
        "unknown_service",
        "bad_parameter",
        "forbidden",
        "refused",
        "conflict",
        "not_found",
        "not_running",
    }
)
"""Codes of `RequestRefused`; any other is a trouble of the connection or of the journal."""


def understood(line: bytes) -> Any:
    """Return the answer in a line. Raises `RequestRefused`, `JournalError`, or `ControlError` for anything else."""
    try:
        message = json.loads(line)
        if message["v"] != VERSION:
            raise ControlError(f"it speaks version {message['v']!a:.40} of the protocol, and this is {VERSION}")
        if message["ok"]:
            return message["answer"]
        code, text = str(message["error"]["code"]), str(message["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ControlError("what answers at the control socket does not speak our protocol") from None
    if code in REFUSALS:
        raise RequestRefused(code, text)
    raise JournalError(text) if code == "journal" else ControlError(text)


def call(path: Path, question: Question, *, timeout: float = TIMEOUT) -> Any:
    """Ask whoever listens at `path` and return the answer; `timeout` is the total in seconds. Blocks.

    Raises `Unreachable`, `ControlError`, `RequestRefused` or `JournalError`.
    """
    deadline = time.monotonic() + timeout
    line = question.line()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            _connect(connection, path, deadline)
            connection.settimeout(_left(deadline))
            with suppress(BrokenPipeError):  # it may have said why before it closed
                connection.sendall(line)
            received = bytearray()
            while not received.endswith(b"\n"):
                connection.settimeout(_left(deadline))
                chunk = connection.recv(1 << 18)
                if not chunk:
                    raise ControlError(f"selfheal closed {path} without an answer; ask again")
                received += chunk
                if len(received) > ANSWER_LIMIT:
                    raise ControlError(f"the answer is longer than {ANSWER_LIMIT >> 20} MiB; ask for less")
        except TimeoutError:
            raise _late(path, timeout, question) from None
        except OSError as problem:
            raise ControlError(f"the connection to {path} broke: {problem.strerror or problem}") from problem
    return understood(bytes(received))


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    while True:
        connection.settimeout(_left(deadline))
        try:
            with _address(path) as address:
                connection.connect(address)
        except BlockingIOError:
            time.sleep(0.05)  # more callers than it has room for: wait, within our deadline
        except OSError as problem:
            raise _unreachable(path, problem) from problem
        else:
            return


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _late(path: Path, timeout: float, question: Question) -> Silent:
    late = f"no answer at {path} within {timeout:g} s"
    if question.reason is None:
        return Silent(f"{late}: the selfheal there is stopped, or its host is very busy")
    return Silent(f"{late}; what was asked may still be done: see `audit`")


def _unreachable(path: Path, problem: OSError) -> Unreachable:
    if isinstance(problem, PermissionError):
        return Unreachable(f"you may not open {path}: it belongs to the user selfheal runs as; become that user")
    if isinstance(problem, (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)):
        return Unreachable(f"no selfheal runs here: nobody listens at {path}")
    return Unreachable(f"{path} cannot be opened: {problem.strerror or problem}")


async def forward(path: Path, question: Question, *, timeout: float = TIMEOUT) -> Any:
    """Ask whoever listens at `path`, as `call` does, on an event loop."""
    line = question.line()
    received = bytearray()
    try:
        with anyio.fail_after(timeout):
            try:
                with _address(path) as address:
                    stream = await anyio.connect_unix(address)
            except OSError as problem:
                raise _unreachable(path, problem) from problem
            async with stream:
                with suppress(anyio.BrokenResourceError):
                    await stream.send(line)
                while not received.endswith(b"\n"):
                    received += await stream.receive(1 << 18)
                    if len(received) > ANSWER_LIMIT:
                        raise ControlError(f"the answer is longer than {ANSWER_LIMIT >> 20} MiB; ask for less")
    except TimeoutError:
        raise _late(path, timeout, question) from None
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        raise ControlError(f"selfheal closed {path} without an answer") from None
    return await anyio.to_thread.run_sync(understood, bytes(received))


__all__ = ["Pace", "Question", "Silent", "Unreachable", "alive", "call", "forward", "serving", "user_name"]
