"""Whose journal this is: one holder at a time, and never a damaged file taken for a fresh start.

Beside the database `x.db` stand `x.db.lock` (held by `flock`, with the holder's pid in it), `x.db.id` (the marker: a
random id, which is in the database too), `x.db.key` (see `chain`) and `x.db.head`. A start is fresh only where there
is neither database nor marker. Anything else that does not fit together is refused and left as it is.

A creation that was killed half-way is told apart by the marker: it says `creating` before there is a database, which
is then built under another name and moved into place whole, and says `made` afterwards.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from selfheal.errors import JournalDamaged, JournalError, JournalHeld

_FORMAT: Final = 1

START_AFRESH: Final = (
    "put the files back from a copy; or, to begin anew and forget every budget, switch and incident, move the files "
    "that are there out of the folder"
)


def accepting(path: Path) -> str:
    """Return the command that takes the files of a journal as they are, as it is typed for those around `path`."""
    return f"`selfheal --state-dir {shlex.quote(str(path.parent))} audit accept`"


@attrs.frozen(kw_only=True)
class Files:
    """The files of one journal."""

    database: Path

    def _beside(self, suffix: str) -> Path:
        return self.database.with_name(self.database.name + suffix)

    @property
    def lock(self) -> Path:
        return self._beside(".lock")

    @property
    def marker(self) -> Path:
        return self._beside(".id")

    @property
    def key(self) -> Path:
        return self._beside(".key")

    @property
    def head(self) -> Path:
        return self._beside(".head")

    @property
    def draft(self) -> Path:
        return self._beside(".new")


@attrs.frozen(kw_only=True)
class Marker:
    """What the marker says: the id, and whether the database beside it was ever finished."""

    id: str
    made: bool


class Lock:
    """The right to write, for as long as the process lives or until `release`."""

    def __init__(self, path: Path) -> None:
        """Take it. Raises `JournalHeld`, naming the holder's pid, or `JournalError`."""
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise JournalError(
                f"cannot open {path}: {problem.strerror}; give a state_dir that this user may write to"
            ) from problem
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            pid = os.pread(self._handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._handle)
            raise JournalHeld(
                f"the journal {path.with_suffix('')} is held by process {pid}: stop that one, give this one another "
                "journal, or only read"
            ) from problem
        except OSError as problem:
            os.close(self._handle)
            raise JournalError(
                f"cannot lock {path}: {problem.strerror}; keep the state_dir on a local disk"
            ) from problem
        with suppress(OSError):  # a full disk: the lock holds all the same, only its owner goes unnamed
            os.pwrite(self._handle, f"{os.getpid()}\n".ljust(32).encode(), 0)

    def release(self) -> None:
        """Give it back; twice does no harm."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def read_marker(path: Path) -> Marker | None:
    """Return the marker, or None where there is none. Raises `JournalDamaged` for one that cannot be read."""
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT or not isinstance(data["id"], str):
            raise ValueError(f"format {data['format']!r}")
        return Marker(id=data["id"], made=data["stage"] == "made")
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise JournalError(f"cannot read the marker {path}: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise JournalDamaged(f"the marker {path} cannot be read ({problem}): {START_AFRESH}") from problem


def write_marker(path: Path, marker: Marker) -> None:
    """Write the marker whole or not at all, durably. Raises `OSError`."""
    draft = path.with_name(path.name + ".new")
    body = {"format": _FORMAT, "id": marker.id, "stage": "made" if marker.made else "creating"}
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, json.dumps(body).encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)
    draft.replace(path)
    sync_folder(path.parent)


def new_id() -> str:
    """Return a random id for a new journal."""
    return secrets.token_hex(16)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable. Raises `OSError`."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def standing(files: Files) -> Marker | None:
    """Return the marker of what is there; None for a fresh start, `made` false for a creation to be gone on with.

    Looks at names and sizes only: opening and closing a database file by hand would drop SQLite's own locks on it.
    Raises `JournalDamaged` when something is missing.
    """
    marker = read_marker(files.marker)
    size = _size(files.database)
    if marker is None:
        if size is None:
            return None
        raise JournalDamaged(
            f"there is a database {files.database} but no marker {files.marker}: it may be a copy, or not ours. Put "
            f"the marker back, or, if it is the journal to use, run {accepting(files.database)}"
        )
    if size is None and marker.made:
        raise JournalDamaged(
            f"the journal {files.database} is missing, although {files.marker} says there was one: {START_AFRESH}"
        )
    if size == 0:
        raise JournalDamaged(f"the journal {files.database} has a length of zero: {START_AFRESH}")
    return marker


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise JournalError(f"cannot look at {path}: {problem.strerror}") from problem
