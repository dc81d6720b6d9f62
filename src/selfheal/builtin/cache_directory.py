"""The action `directory`: empty a cache that is a folder, and nothing else.

Owns what may be removed. Nothing is reached by its path, which others may change meanwhile: every folder is opened from
the descriptor of the one above it, never through a symbolic link, and what is removed is a name in an open folder. So
whatever anybody swaps while it runs, it can only remove what hangs below the folder that was meant.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import attrs

from selfheal.builtin import options, proc
from selfheal.builtin.process import default_folder
from selfheal.core.bounds import seconds
from selfheal.core.model import Effect, Settled
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext

NEVER: Final = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr")
"""Folders that no cache lies in directly; below `/run` and `/root` one may."""

NEVER_BELOW: Final = frozenset(NEVER) - {"/root", "/run"}

DEPTH: Final = 64
"""Folders that may lie within one another; each that is open costs two descriptors."""

RESERVE: Final = 0.95
"""Share of the time that is used: the rest is for saying how far it came."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_Place: TypeAlias = "tuple[int, int]"


def _pattern(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value or "/" in value:
        raise ValueError(f"{attribute.name}: {value!r:.80} is no pattern of file names, such as '*.jpg'")


def _text(value: str | Path) -> str:
    return str(value) if isinstance(value, Path) else value


@attrs.frozen(kw_only=True)
class CacheDirectory:
    """Remove what is in the folder `path`, which must lie below `root`.

    Files, links, sockets and pipes are removed, and folders once they are empty; with `pattern` or `older_than` only
    files that match, and no folder. A symbolic link is removed as such and never followed. What is mounted below stays
    as it is. The folder itself stays, and so does its root.
    """

    kind: ClassVar[str] = "directory"
    verb: ClassVar[str] = "reset_cache"
    effect: ClassVar[Effect] = Effect.DESTRUCTIVE

    #: The folder to empty: absolute, or from `root` on.
    path: str = attrs.field(converter=_text, validator=attrs.validators.instance_of(str))
    #: The folder that it must lie in. Nobody but its owner should be able to write there.
    root: Path = attrs.field(converter=options.path, validator=attrs.validators.instance_of(Path))
    #: Remove only files whose name matches: `*` and `?` stand for anything.
    pattern: str | None = attrs.field(default=None, validator=_pattern)
    #: Remove only files that were last written so long ago.
    older_than: float | None = seconds(None, 0.0, optional=True)
    #: The folder that holds selfheal's own journal, which is never touched; the `state_dir` of the fleet.
    state_directory: Path | None = attrs.field(default=None, converter=options.path)

    def __attrs_post_init__(self) -> None:
        """Refuse what no cache can be, by its name. What its name hides is looked at before anything is removed."""
        for name, place in (("root", self.root), ("path", Path(self.path))):
            if ".." in place.parts or "\0" in str(place):
                raise ValueError(f"{name}: {str(place)!r:.200} leads upwards; write it without ..")
        if not self.root.is_absolute():
            raise ValueError(f"root: {str(self.root)!r:.200} is not absolute; write it from / on")
        if fault := _forbidden(self.root, self._kept_folders()):
            raise ValueError(f"root: {self.root} is {fault}; name the folder in which caches lie")
        if not self._below:
            raise ValueError(f"path: {self.path} is not below the root {self.root}, which itself is never emptied")
        if fault := _forbidden(self.root.joinpath(*self._below), self._kept_folders()):
            raise ValueError(f"path: {self.path} is {fault}")

    @property
    def _below(self) -> tuple[str, ...]:
        """The names that lead from the root to the folder; none when it does not lie below."""
        path = self.root / self.path
        return path.relative_to(self.root).parts if path.is_relative_to(self.root) else ()

    def _kept_folders(self) -> dict[Path, str]:
        """Return the folders that must be neither emptied nor around what is, each with what it is."""
        kept = {Path("/"): "the root of the file system"}
        home = os.path.expanduser("~")  # noqa: PTH111  # Path's raises where there is none
        if home.startswith("/"):
            kept[Path(home)] = "a home"
        state = self.state_directory or default_folder().parent
        kept[state] = "where selfheal's own journal lies"
        return kept

    # -- the verbs ---------------------------------------------------------------------------------------------------

    async def run(self, context: ActionContext) -> str:
        """Empty it; say what went. Raises `ActionFailed` with what stands in the way, or what could not be removed."""
        work = _Emptying(self, deadline=time.monotonic() + RESERVE * context.remaining)
        await _aside(work)
        if work.faults:
            raise ActionFailed(f"{self._shown}: {work.told}")
        return f"{self._shown}: {work.told}"

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return None: what is empty may have been so before, and what is not may have filled again."""
        return None

    async def doctor(self, context: ActionContext) -> list[Problem]:
        """Say whether the folder is there and may be emptied; nothing is removed."""
        work = _Emptying(self, deadline=time.monotonic() + RESERVE * context.remaining, proving=True)
        try:
            await _aside(work)
        except ActionFailed as problem:
            text, _, hint = str(problem).partition("; ")
            return [Problem(path="recovery_actions", message=text, hint=hint or "correct `path` or `root`")]
        return []

    @property
    def _shown(self) -> str:
        return str(self.root.joinpath(*self._below))


def _forbidden(place: Path, kept: dict[Path, str]) -> str:
    """Return what a folder is that must not be emptied, by its name; empty when nothing is wrong with it."""
    if str(place) in NEVER or any(place.is_relative_to(never) for never in NEVER_BELOW):
        return "a folder of the system"
    for one, what in kept.items():
        if place == one:
            return what
        if one.is_relative_to(place):
            return f"above {one}, {what}"
    state = [one for one, what in kept.items() if "journal" in what]
    return f"in {state[0]}, where selfheal's own journal lies" if place.is_relative_to(state[0]) else ""


# -- emptying --------------------------------------------------------------------------------------------------------


class _Emptying:
    """One run, in a thread of its own: what it has removed, what it left, and why."""

    def __init__(self, of: CacheDirectory, *, deadline: float, proving: bool = False) -> None:
        self.of = of
        self.deadline = deadline
        self.proving = proving
        self.stopped = threading.Event()
        self.removed = self.bytes = self.kept = 0
        self.faults: list[str] = []
        # Ages of files are by the wall clock, as their times are.
        self._before = None if of.older_than is None else time.time() - of.older_than
        self._mount = 0
        self._untouched: set[_Place] = set()

    @property
    def told(self) -> str:
        """What it came to, in words."""
        said = f"removed {self.removed} ({self.bytes} bytes), left {self.kept}"
        if len(self.faults) > 3:
            return f"{said}: {'; '.join(self.faults[:3])} and {len(self.faults) - 3} more"
        return said + (f": {'; '.join(self.faults)}" if self.faults else "")

    def work(self) -> None:
        """Go to the folder and empty it. Raises `ActionFailed` before anything is removed."""
        opened = self._go_there()
        try:
            if not self.proving:
                self._empty(opened, (), 0)
            elif not os.access(f"/proc/self/fd/{opened}", os.W_OK | os.X_OK):
                raise ActionFailed(f"{self.of._shown} may not be emptied by the user that asks; give it the right to")
        finally:
            os.close(opened)

    def _go_there(self) -> int:
        """Return the folder, open. Every step is from an open folder to a name in it that is no link."""
        kept = [*self.of._kept_folders(), *map(Path, NEVER)]
        self._untouched = {place for folder in kept if (place := _place(folder)) is not None}
        at = self.of.root
        try:
            folder = os.open(at, _FOLDER)
        except OSError as problem:
            raise ActionFailed(f"the root {at} cannot be opened: {_reason(problem)}") from None
        self._mount = _mount(folder)
        if refusal := self._not_ours(folder):
            os.close(folder)
            raise ActionFailed(f"the root {at} {refusal}")
        for name in self.of._below:
            at = at / name
            try:
                inner = os.open(name, _FOLDER, dir_fd=folder)
            except OSError as problem:
                raise ActionFailed(f"{at} cannot be opened: {_reason(problem)}") from None
            finally:
                os.close(folder)
            folder = inner
            if refusal := self._not_ours(folder):
                os.close(folder)
                raise ActionFailed(f"{at} {refusal}")
        return folder

    def _not_ours(self, folder: int) -> str:
        """Return why nothing may be removed in an open folder; empty when it may."""
        seen = os.fstat(folder)
        if (seen.st_dev, seen.st_ino) in self._untouched:
            return "is a home, a folder of the system, or where selfheal's own journal lies"
        if _mount(folder) != self._mount:
            return "is another file system, mounted there"
        return ""

    def _empty(self, folder: int, names: tuple[str, ...], depth: int) -> None:
        """Remove what is in an open folder; `names` lead to it from the one that is emptied."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if self._over():
                    return
                self._one(folder, entry.name, (*names, entry.name), depth)

    def _one(self, folder: int, name: str, names: tuple[str, ...], depth: int) -> None:
        try:
            seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(seen.st_mode):
                self._inner(folder, name, names, depth)
            elif self._meant(name, seen):
                os.unlink(name, dir_fd=folder)
                self.removed += 1
                self.bytes += seen.st_size if seen.st_nlink == 1 else 0
            else:
                self.kept += 1
        except FileNotFoundError:
            pass  # somebody else was faster
        except OSError as problem:
            self._fault(names, _reason(problem))

    def _inner(self, folder: int, name: str, names: tuple[str, ...], depth: int) -> None:
        """Empty a folder in the folder, and remove it if it is empty then and folders may go."""
        if depth >= DEPTH:
            return self._fault(names, f"more than {DEPTH} folders within one another")
        inner = os.open(name, _FOLDER, dir_fd=folder)
        try:
            if refusal := self._not_ours(inner):
                return self._fault(names, refusal)
            self._empty(inner, names, depth + 1)
        finally:
            os.close(inner)
        if self.of.pattern is not None or self._before is not None or self.stopped.is_set():
            return None
        try:
            os.rmdir(name, dir_fd=folder)
            self.removed += 1
        except OSError:
            self.kept += 1  # it is not empty: why, was told for what is in it, or somebody writes there meanwhile
        return None

    def _meant(self, name: str, seen: os.stat_result) -> bool:
        if self.of.pattern is not None and not fnmatchcase(name, self.of.pattern):
            return False
        return self._before is None or seen.st_mtime < self._before

    def _over(self) -> bool:
        """Whether it must end: it was told to, or its time is over."""
        if not self.stopped.is_set() and time.monotonic() >= self.deadline:
            self.stopped.set()
            self.faults.insert(0, "the time of this step was over before it was done")
        return self.stopped.is_set()

    def _fault(self, names: Collection[str], why: str) -> None:
        self.kept += 1
        if len(self.faults) < 1000:
            self.faults.append(f"{'/'.join(names)!a:.200} {why}")


async def _aside(work: _Emptying) -> None:
    """Do it in a thread. One that is cancelled has ended, but for a call that the disk does not answer."""
    ended = asyncio.ensure_future(proc.aside(work.work))
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        work.stopped.set()
        await proc.uninterrupted(_over(ended))
        raise


async def _over(ended: asyncio.Future[None]) -> None:
    await asyncio.wait([ended])
    if not ended.cancelled():
        ended.exception()  # looked at, so that it is not reported as never retrieved


def _place(folder: Path) -> _Place | None:
    """Return what a folder is, whatever it is called; None where it is not there."""
    try:
        seen = folder.stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino


def _mount(folder: int) -> int:
    """Return the mount that an open folder is on: another one even where it shows a part of the same file system."""
    for line in Path(f"/proc/self/fdinfo/{folder}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line.partition(":")[2])
    raise ActionFailed("/proc does not say what is mounted where, and so nothing can be removed safely")


def _reason(problem: OSError) -> str:
    return f"({problem.strerror or type(problem).__name__})"
