"""The tokens: made, kept as hashes in `tokens.json`, read again when the file changes, compared in constant time.

A token is 256 random bits, shown once and kept nowhere. A hash that takes long is for passwords that people make up;
for these it would only be a way to keep us busy, so it is SHA-256.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import attrs

from selfheal.errors import SelfhealError
from selfheal.requests import SCOPES, Scope

FILE: Final = "tokens.json"
PREFIX: Final = "selfheal_"
"""How every token begins, so that scanners for leaked secrets find it."""

VERSION: Final = 1
LOOK: Final = 0.25
"""Seconds for which what was read counts without another look at the file."""

MOST_BYTES: Final = 1 << 20

UNSEEN: Final = object()
"""What a file is like that has not been read, or could not be."""

log = logging.getLogger("selfheal.http")


class TokensUnusable(SelfhealError):
    """The file of the tokens cannot be used: it says why, and nobody is let in by a token meanwhile."""


@attrs.frozen(kw_only=True)
class Token:
    """What is kept of a token. `services` limits what it may act on; None is all. `expires` is UNIX time."""

    id: str
    name: str
    hash: str = attrs.field(repr=False)
    scope: Scope
    services: tuple[str, ...] | None = None
    created: float = 0.0
    expires: float | None = None

    def over(self, now: float) -> bool:
        """Whether it has expired."""
        return self.expires is not None and now >= self.expires

    def shape(self) -> dict[str, Any]:
        """Return it as the file has it."""
        return {
            "id": self.id,
            "name": self.name,
            "hash": self.hash,
            "scope": self.scope.value,
            "services": list(self.services) if self.services is not None else None,
            "created": _text(self.created),
            "expires": _text(self.expires) if self.expires is not None else None,
        }

    @classmethod
    def of(cls, shape: Mapping[str, Any]) -> Token:
        """Return the token that an entry of the file describes. Raises `ValueError`, `KeyError` or `TypeError`."""
        services, expires = shape["services"], shape["expires"]
        if len(bytes.fromhex(shape["hash"])) != sha256().digest_size:
            raise ValueError("a hash has 64 hexadecimal digits")
        if services is not None and not all(isinstance(name, str) for name in services):
            raise ValueError("services are names")
        return cls(
            id=str(shape["id"]),
            name=str(shape["name"]),
            hash=shape["hash"].lower(),
            scope=Scope(shape["scope"]),
            services=tuple(services) if services is not None else None,
            created=_instant(shape["created"]),
            expires=_instant(expires) if expires is not None else None,
        )


def _text(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def hash_of(text: str) -> str:
    """Return the hash of a token."""
    return sha256(text.encode()).hexdigest()


class TokenFile:
    """The file, both ways. Every method blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def look(self) -> tuple[int, ...] | None:
        """Return what changes when the file does; None where there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)

    def read(self) -> tuple[Token, ...]:
        """Return the tokens; none where there is no file. Raises `TokensUnusable`."""
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                text = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return ()
        except OSError as problem:
            raise TokensUnusable(f"{self.path} cannot be read: {problem.strerror}") from problem
        if mode & 0o077:
            raise TokensUnusable(f"{self.path} is open to other users (mode {mode & 0o777:o}): chmod 600 {self.path}")
        try:
            if len(text) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes")
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"it is of version {data['version']!r}, and this selfheal knows {VERSION}")
            return tuple(Token.of(entry) for entry in data["tokens"])
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise TokensUnusable(f"{self.path} holds no tokens as we write them: {problem}") from None

    def write(self, tokens: Iterable[Token]) -> None:
        """Put the file in the place of the old one, whole or not at all; it belongs to whom the folder belongs."""
        body = json.dumps({"version": VERSION, "tokens": [token.shape() for token in tokens]}, indent=1) + "\n"
        new = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "w") as file:
                owner = self.path.parent.stat()
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from changing the file meanwhile. Makes the folder where there is none."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def create(
        self, name: str, scope: Scope, *, services: Iterable[str] | None = None, expires: float | None = None
    ) -> tuple[str, Token]:
        """Make a token and return it, this once, with what is kept of it. Raises `TokensUnusable`, `ValueError`."""
        if scope.value not in SCOPES or not name or not name.isprintable() or len(name) > 60:
            raise ValueError("a token has a name of at most 60 printable characters, and a scope")
        text = PREFIX + secrets.token_urlsafe(32)
        token = Token(
            id=secrets.token_hex(4),
            name=name,
            hash=hash_of(text),
            scope=scope,
            services=tuple(services) if services is not None else None,
            created=float(int(time.time())),
            expires=float(int(expires)) if expires is not None else None,
        )
        with self.alone():
            self.write([*self.read(), token])
        return text, token

    def revoke(self, id_: str) -> Token | None:
        """Let a token be no token any more and return it; None when there is none of that id."""
        with self.alone():
            tokens = self.read()
            gone = next((token for token in tokens if token.id == id_), None)
            if gone is not None:
                self.write(token for token in tokens if token is not gone)
            return gone


class TokenBook:
    """The tokens as a running application knows them: the file, looked at again every moment."""

    def __init__(self, file: TokenFile | None) -> None:
        self._file = file
        self._seen: object = UNSEEN
        self._looked = float("-inf")
        self._by_hash: dict[str, Token] = {}
        self._unusable = False
        self._lock: anyio.Lock | None = None

    @property
    def used(self) -> bool:
        """Whether tokens are configured at all. A file that cannot be used counts: it lets nobody in, and says so."""
        return self._unusable or bool(self._by_hash)

    async def refresh(self) -> None:
        """Take over what has changed in the file."""
        if self._file is None or time.monotonic() - self._looked < LOOK:
            return
        self._lock = self._lock or anyio.Lock()
        async with self._lock:
            if time.monotonic() - self._looked >= LOOK:
                await anyio.to_thread.run_sync(self.read)

    def read(self) -> None:
        """Read the file, if it has changed. Blocks."""
        assert self._file is not None
        try:
            seen = self._file.look()
            if seen != self._seen:
                self._by_hash = {token.hash: token for token in self._file.read()}
                self._seen, self._unusable = seen, False
        except (TokensUnusable, OSError) as problem:
            if not self._unusable:
                log.error("nobody is let in by a token: %s", problem)
            self._by_hash, self._unusable, self._seen = {}, True, UNSEEN
        self._looked = time.monotonic()

    def find(self, text: str) -> Token | None:
        """Return the token that a text is, unless it has expired."""
        wanted = hash_of(text)
        token = self._by_hash.get(wanted)
        # The look-up is by a hash that nobody can choose; the comparison is what decides.
        if token is None or not hmac.compare_digest(token.hash, wanted) or token.over(time.time()):
            return None
        return token

    def by_id(self, id_: str) -> Token | None:
        """Return a token by its id, unless it has expired."""
        token = next((token for token in self._by_hash.values() if token.id == id_), None)
        return None if token is None or token.over(time.time()) else token
