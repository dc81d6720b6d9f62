"""The protocol of Redis, as far as a check speaks it: commands out, replies in, without a socket.

Owns what a reply is: text, a number, a list of these, nothing, or an `Refusal`. The byte cap is the runner's.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias

import attrs

LONGEST_LINE: Final = 1024
"""Bytes of a line that is no text of counted length: errors, numbers, lengths."""

DEEPEST: Final = 4
"""Lists inside each other; the answer to ROLE has two."""

Reply: TypeAlias = "bytes | int | Refusal | list[Reply] | None"
Reading: TypeAlias = "Generator[bytes, bytes, tuple[Reply, bytes]]"


class NotRedis(Exception):
    """What was said is not the protocol of Redis."""


@attrs.frozen
class Refusal:
    """An error reply: its first word, such as LOADING, and its whole text without control characters."""

    word: str
    text: str

    @classmethod
    def of(cls, line: str) -> Refusal:
        """Return the refusal of a line without its leading minus."""
        text = "".join(letter if letter.isprintable() else "?" for letter in line)[:200]
        return cls(text.partition(" ")[0], text)


def command(*words: bytes | str) -> bytes:
    """Return one command as it is sent."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def read_reply(data: bytes, depth: int = 0) -> Reading:
    """Read one reply, and return it with the bytes that came after it. Raises `NotRedis`."""
    while not data:
        data = yield b""
    mark = data[:1]
    if mark not in b"+-:$*":
        raise NotRedis("not the answer of a Redis")
    while (end := data.find(b"\r\n")) < 0:
        if len(data) > LONGEST_LINE:
            raise NotRedis("not the answer of a Redis: a line without an end")
        data += yield b""
    line, data = data[1:end], data[end + 2 :]
    if mark == b"+":
        return line, data
    if mark == b"-":
        return Refusal.of(line.decode("utf-8", "replace")), data
    number = _number(line)
    if mark == b":":
        return number, data
    if number < 0:
        return None, data
    if mark == b"$":
        while len(data) < number + 2:
            data += yield b""
        return data[:number], data[number + 2 :]
    if depth == DEEPEST:
        raise NotRedis("not the answer of a Redis: lists stand too deep")
    items: list[Reply] = []
    for _ in range(number):
        item, data = yield from read_reply(data, depth + 1)
        items.append(item)
    return items, data


def _number(line: bytes) -> int:
    try:
        return int(line)
    except ValueError:
        raise NotRedis("not the answer of a Redis: a length that is no number") from None


def read_info(text: bytes) -> dict[str, str]:
    """Return the fields of an answer to INFO; a field that stands twice has its last value."""
    fields: dict[str, str] = {}
    for line in text.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields[name] = value
    return fields
