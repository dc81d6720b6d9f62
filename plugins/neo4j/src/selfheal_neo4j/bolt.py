"""As much of Bolt as one short query needs: values (PackStream), messages in chunks, the first words of a connection.

Written by hand because the driver costs tens of MiB and a check every 30 seconds says six fixed things. Versions 4.2 to
5.4 are offered, which every Neo4j since 4.2 takes. What comes from the peer is read within its bounds: a value that
claims more than its message holds is `NotBolt`.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

from selfheal.wire import read_exactly

OFFER: Final = bytes.fromhex("6060b01700030405000000050002040400000000")
"""The magic word and what we speak, best first: 5.4 to 5.1, 5.0, 4.4 to 4.2."""

HELLO: Final = 0x01
LOGON: Final = 0x6A
LOGOFF: Final = 0x6B
RUN: Final = 0x10
PULL: Final = 0x3F
RESET: Final = 0x0F
SUCCESS: Final = 0x70
RECORD: Final = 0x71
IGNORED: Final = 0x7E
FAILURE: Final = 0x7F

DEEPEST: Final = 16
"""Levels that a value may be nested."""

LONGEST: Final = 2**20
"""Bytes of one message."""

SPEAKS_HTTP: Final = "it speaks HTTP: give the port of Bolt, 7687 by default"


class NotBolt(Exception):
    """What the peer says is not Bolt; the text says why."""


class Failed(Exception):
    """The server refused a message. `code` is Neo4j's own word for it, `Neo.ClientError.…`; its text is not kept."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


# -- values -----------------------------------------------------------------------------------------------------------


def pack(value: object) -> bytes:
    """Return a value as PackStream. Raises TypeError for what Bolt has no form of."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return struct.pack(">b", value) if -16 <= value < 128 else b"\xcb" + struct.pack(">q", value)
    if isinstance(value, str):
        said = value.encode()
        return _sized(len(said), 0x80, 0xD0) + said
    if isinstance(value, Mapping):
        parts = [pack(part) for item in value.items() for part in item]
        return _sized(len(value), 0xA0, 0xD8) + b"".join(parts)
    if isinstance(value, Sequence):
        return _sized(len(value), 0x90, 0xD4) + b"".join(pack(part) for part in value)
    raise TypeError(f"{type(value).__name__} cannot be said in Bolt")


def _sized(size: int, tiny: int, first: int) -> bytes:
    if size < 16:
        return bytes((tiny | size,))
    if size < 2**8:
        return bytes((first, size))
    if size < 2**16:
        return bytes((first + 1,)) + struct.pack(">H", size)
    return bytes((first + 2,)) + struct.pack(">I", size)


_NUMBERS: Final = {0xC1: ">d", 0xC8: ">b", 0xC9: ">h", 0xCA: ">i", 0xCB: ">q"}
_SIZES: Final = (">B", ">H", ">I")


class Unpacked:
    """Reads the values of one message. Every method raises `NotBolt` for what is not there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise NotBolt("a value ends before its end")
        self._at += count
        return part

    def value(self, depth: int = 0) -> Any:
        """Return the next value. A structure, of which we need none, is a list of its fields."""
        if depth > DEEPEST:
            raise NotBolt("its values are nested too deeply")
        mark = self.take(1)[0]
        if mark < 0x80 or mark >= 0xF0:
            return mark if mark < 0x80 else mark - 256
        if mark in _NUMBERS:
            form = _NUMBERS[mark]
            return struct.unpack(form, self.take(struct.calcsize(form)))[0]
        if mark in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[mark]
        if 0xCC <= mark <= 0xCE:
            return self.take(self._size(mark - 0xCC))
        if 0xD0 <= mark <= 0xD2 or mark & 0xF0 == 0x80:
            return self.take(self._size(mark - 0xD0) if mark >= 0xD0 else mark & 0x0F).decode("utf-8", "replace")
        if 0xD4 <= mark <= 0xD6 or mark & 0xF0 == 0x90:
            size = self._size(mark - 0xD4) if mark >= 0xD4 else mark & 0x0F
            return [self.value(depth + 1) for _ in range(size)]
        if 0xD8 <= mark <= 0xDA or mark & 0xF0 == 0xA0:
            size = self._size(mark - 0xD8) if mark >= 0xD8 else mark & 0x0F
            return {str(self.value(depth + 1)): self.value(depth + 1) for _ in range(size)}
        if mark & 0xF0 == 0xB0:
            self.take(1)
            return [self.value(depth + 1) for _ in range(mark & 0x0F)]
        raise NotBolt(f"0x{mark:02x} begins no value")

    def _size(self, power: int) -> int:
        form = _SIZES[power]
        size: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return size


# -- messages ---------------------------------------------------------------------------------------------------------


def message(tag: int, *fields: object) -> bytes:
    """Return a message, in chunks."""
    said = bytes((0xB0 | len(fields), tag)) + b"".join(pack(field) for field in fields)
    chunks = [said[at : at + 0xFFFF] for at in range(0, len(said), 0xFFFF)]
    return b"".join(struct.pack(">H", len(chunk)) + chunk for chunk in chunks) + b"\0\0"


def read_message(data: bytes) -> Generator[bytes, bytes, tuple[int, Any, bytes]]:
    """Read one message; return its tag, its first field, and what came after it. Empty chunks between are passed."""
    said = b""
    while True:
        head, data = yield from read_exactly(2, data)
        size = struct.unpack(">H", head)[0]
        if size:
            chunk, data = yield from read_exactly(size, data)
            said += chunk
            if len(said) > LONGEST:
                raise NotBolt("a message is longer than any answer to us")
        elif said:
            break
    if said[0] & 0xF0 != 0xB0 or len(said) < 2:
        raise NotBolt("a message has no head")
    values = Unpacked(said[2:])
    return said[1], values.value() if said[0] & 0x0F else None, data


def answered(data: bytes) -> Generator[bytes, bytes, tuple[dict[str, Any], bytes]]:
    """Read the answer to one message; return what SUCCESS says. Raises `Failed`."""
    tag, said, data = yield from read_message(data)
    if tag == FAILURE:
        code = said.get("code") if isinstance(said, dict) else None
        raise Failed(str(code)[:120])
    if tag != SUCCESS or not isinstance(said, dict):
        raise NotBolt(f"message 0x{tag:02x} where an answer was due")
    return said, data


# -- the conversation -------------------------------------------------------------------------------------------------


def greet(auth: Mapping[str, str]) -> Generator[bytes, bytes, tuple[dict[str, Any], bool]]:
    """Agree on a version and log in. Raises `NotBolt` and `Failed`.

    Return what the server says of itself, and whether one may log in again on this connection (since Bolt 5.1).
    """
    heard, data = yield from read_exactly(4, (yield OFFER))
    if heard == b"HTTP":
        raise NotBolt(SPEAKS_HTTP)
    major, minor = heard[3], heard[2]
    if heard == b"\0\0\0\0":
        raise NotBolt("it speaks none of Bolt 4.2 to 5.4")
    if heard[:2] != b"\0\0" or (major, minor) not in {(5, 4), (5, 3), (5, 2), (5, 1), (5, 0), (4, 4), (4, 3), (4, 2)}:
        raise NotBolt("it does not begin with a version we offered")
    agent = {"user_agent": "selfheal/1", "bolt_agent": {"product": "selfheal/1"}}
    if (major, minor) < (5, 1):
        hello, data = yield from answered(data + (yield message(HELLO, {"user_agent": "selfheal/1", **auth})))
        return hello, False
    data += yield message(HELLO, agent) + message(LOGON, auth)
    hello, data = yield from answered(data)
    yield from answered(data)
    return hello, True


def log_in_again(auth: Mapping[str, str]) -> Generator[bytes, bytes, None]:
    """Log off and on: a connection stays logged in when the password is changed. Raises `NotBolt` and `Failed`."""
    _, data = yield from answered((yield message(LOGOFF) + message(LOGON, auth)))
    yield from answered(data)


def query(
    statement: str, database: str, milliseconds: int
) -> Generator[bytes, bytes, tuple[list[str], list[list[Any]]]]:
    """Run a statement that reads; return its fields and rows. Raises `NotBolt` and `Failed`."""
    extra = {"db": database, "mode": "r", "tx_timeout": milliseconds}
    data = yield message(RUN, statement, {}, extra) + message(PULL, {"n": -1})
    head, data = yield from answered(data)
    rows: list[list[Any]] = []
    while True:
        tag, said, data = yield from read_message(data)
        if tag == RECORD and isinstance(said, list):
            rows.append(said)
        elif tag == SUCCESS:
            return [str(field) for field in head.get("fields") or ()], rows
        elif tag == FAILURE and isinstance(said, dict):
            raise Failed(str(said.get("code"))[:120])
        else:
            raise NotBolt(f"message 0x{tag:02x} among the rows")


def reset() -> Generator[bytes, bytes, None]:
    """Begin anew after a failure: what was ignored because of it is passed over."""
    data = yield message(RESET)
    while True:
        tag, _, data = yield from read_message(data)
        if tag == SUCCESS:
            return
        if tag != IGNORED:
            raise NotBolt(f"message 0x{tag:02x} in answer to a reset")
