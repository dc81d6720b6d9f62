"""The chain: what makes a changed, missing, added or moved row visible, and the head kept outside the database.

Every batch that is not in a run, and every record, is a link: an HMAC-SHA256 over its columns and the link before it,
with a key that is not in the database. Runs, roll-ups and snapshots carry a seal of their own, because they come and
go. An input that has expired leaves its digest behind, so the chain outlives it.

The head file holds the last link that is known to be *durable*. It is written after the commit that made it so and
never before: a kill in between leaves a head that lags, which the chain proves to be a beginning of what is there,
while a database that ends before its head has lost its tail. Two slots are written in turn, so that a torn one
leaves the other; and because the commit came first, a torn slot with nothing after the other one is no accident.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import struct
from pathlib import Path
from typing import Final, final

import attrs

from selfheal.errors import JournalDamaged, JournalError
from selfheal.journal.identity import accepting

GENESIS: Final = bytes(32)
"""What the first link follows."""

_SLOT: Final = 512
_BATCH: Final = struct.Struct(">qqqdd")
_RECORD: Final = struct.Struct(">qqddq")


@final
class Key:
    """The secret of one journal. It is never printed."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "Key(***)"

    def seal(self, label: str, *parts: bytes) -> bytes:
        """Return 32 bytes that only the holder of the key can make of these parts."""
        message = [label.encode(), *parts]
        return hmac.digest(self._secret, b"".join(len(part).to_bytes(4, "big") + part for part in message), "sha256")

    @classmethod
    def create(cls, path: Path) -> None:
        """Write a new key file, mode 0600. Raises `FileExistsError` where there is one."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, secrets.token_hex(32).encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)

    @classmethod
    def load(cls, path: Path) -> Key:
        """Return the key in a file. Raises `JournalDamaged` when it is missing or is none."""
        try:
            secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except FileNotFoundError as problem:
            raise JournalDamaged(
                f"the key of the journal, {path}, is missing: put it back from a copy (without it nobody can tell "
                "whether the records are whole)"
            ) from problem
        except OSError as problem:
            raise JournalError(f"cannot read the key of the journal, {path}: {problem.strerror}") from problem
        except ValueError as problem:
            raise JournalDamaged(f"{path} is not a key: put the right one back from a copy") from problem
        if len(secret) != 32:
            raise JournalDamaged(f"{path} is not a key of 32 bytes: put the right one back from a copy")
        return cls(secret)


def digest(body: bytes | None) -> bytes:
    """Return the digest of an input; empty where there was none."""
    return b"" if body is None else hashlib.sha256(body).digest()


def batch_link(
    key: Key,
    previous: bytes,
    *,
    link: int,
    number: int,
    seq: int,
    at: float,
    wall: float,
    kind: str,
    service: str,
    digest: bytes,
) -> bytes:
    """Return the hash of a row of `batches`. `seq` is that of the last record before it."""
    numbers = _BATCH.pack(link, number, seq, at, wall)
    return key.seal("batch", previous, numbers, kind.encode(), service.encode(), digest)


def record_link(
    key: Key,
    previous: bytes,
    *,
    seq: int,
    number: int,
    at: float,
    wall: float,
    kind: str,
    service: str,
    incident: int | None,
    body: bytes,
) -> bytes:
    """Return the hash of a row of `records`."""
    numbers = _RECORD.pack(seq, number, at, wall, -1 if incident is None else incident)
    return key.seal("record", previous, numbers, kind.encode(), service.encode(), body)


@attrs.frozen(kw_only=True)
class Head:
    """Where the chain ends: the ordinals of the last batch row and record, the last batch number, the last hash."""

    link: int = 0
    seq: int = 0
    number: int = 0
    hash: bytes = GENESIS


@attrs.frozen(kw_only=True)
class HeadRead:
    """What a head file says. `torn`: the slot written last is not whole, and `head` is the one before it."""

    head: Head
    turn: int
    torn: bool


def _slot(key: Key, turn: int, head: Head) -> bytes:
    body = {
        "turn": turn,
        "link": head.link,
        "seq": head.seq,
        "number": head.number,
        "hash": head.hash.hex(),
        "seal": _head_seal(key, turn, head).hex(),
    }
    return json.dumps(body).encode().ljust(_SLOT - 1) + b"\n"


def _head_seal(key: Key, turn: int, head: Head) -> bytes:
    return key.seal("head", struct.pack(">qqqq", turn, head.link, head.seq, head.number), head.hash)


def _read_slot(key: Key, data: bytes) -> tuple[int, Head] | None:
    try:
        body = json.loads(data)
        turn = body["turn"]
        head = Head(link=body["link"], seq=body["seq"], number=body["number"], hash=bytes.fromhex(body["hash"]))
        seal = bytes.fromhex(body["seal"])
        whole = hmac.compare_digest(seal, _head_seal(key, turn, head))
    except (ValueError, KeyError, TypeError, struct.error):
        return None
    return (turn, head) if whole else None


class HeadFile:
    """The head file, kept open from the start so that it can be written when no descriptor is left."""

    def __init__(self, path: Path, key: Key) -> None:
        """Open an existing file. Raises `JournalError` or `OSError`."""
        read = self.read(path, key)
        self._key = key
        self._turn = read.turn
        self._head = read.head
        self._handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, head: Head) -> None:
        """Write over the older slot, in place. Raises `OSError`.

        A head that is there already is not written again: a slot is only ever torn while it says something new,
        which `end_faults` builds on.
        """
        if head == self._head:
            return
        turn = self._turn + 1
        os.pwrite(self._handle, _slot(self._key, turn, head), _SLOT * (turn % 2))
        self._turn, self._head = turn, head

    def close(self) -> None:
        """Close it; twice does no harm."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @staticmethod
    def create(path: Path, key: Key, head: Head) -> None:
        """Write a new file whose only head is `head`, replacing one that is there."""
        draft = path.with_name(path.name + ".new")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, _slot(key, 0, head) + b" " * (_SLOT - 1) + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        draft.replace(path)

    @staticmethod
    def read(path: Path, key: Key) -> HeadRead:
        """Return what a head file says. Raises `JournalDamaged` when it is missing or says nothing."""
        command = accepting(path)
        advice = f"put it back from a copy, or, if the journal is known to be whole, run {command} to seal it as it is"
        try:
            data = path.read_bytes()
        except FileNotFoundError as problem:
            raise JournalDamaged(f"the head of the journal, {path}, is missing: {advice}") from problem
        except OSError as problem:
            raise JournalError(f"cannot read the head of the journal, {path}: {problem.strerror}") from problem
        slots = [data[:_SLOT], data[_SLOT : 2 * _SLOT]]
        read = [_read_slot(key, slot) for slot in slots]
        whole = max((slot for slot in read if slot is not None), key=lambda slot: slot[0], default=None)
        if whole is None:
            raise JournalDamaged(f"the head of the journal, {path}, cannot be read with its key: {advice}")
        turn, head = whole
        never_written = turn == 0 and not slots[1].strip()
        return HeadRead(head=head, turn=turn, torn=None in read and not never_written)
