"""Where a fleet lives: its `state_dir`, the files in it, and the configuration that says so.

A `state_dir` holds one journal with what belongs to it, and one control socket. Without one in the file it is the
platform's: systemd's `STATE_DIRECTORY`, `/var/lib/selfheal` for root, else `selfheal/<fleet>` in the user's own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from selfheal.config import Configuration, configure
from selfheal.config.read import read, writable_by_anybody
from selfheal.errors import JournalError, Problem
from selfheal.journal import Files
from selfheal.loading import Tables

JOURNAL: Final = "selfheal.db"
SOCKET: Final = "control.sock"
SYSTEM: Final = Path("/var/lib/selfheal")


@attrs.frozen
class Home:
    """A `state_dir`: the folder, its journal and its control socket."""

    folder: Path
    journal: Path

    @classmethod
    def of(cls, journal: Path) -> Home:
        """Return the home of a journal: the folder it lies in."""
        return cls(journal.parent, journal)

    @classmethod
    def at(cls, folder: Path) -> Home:
        """Return the home in a folder, whatever its journal is called there. Raises `JournalError` if it has several.

        An application may name its journal as it likes; the marker beside it tells which file is one.
        """
        usual = folder / JOURNAL
        marked = [path.with_suffix("") for path in sorted(folder.glob("*.id"))] if not usual.exists() else []
        if len(marked) > 1:
            names = ", ".join(path.name for path in marked)
            raise JournalError(f"there are several journals in {folder} ({names}): give each a folder of its own")
        return cls(folder, marked[0] if marked else usual)

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.folder / SOCKET

    @property
    def lived_in(self) -> bool:
        """Whether there is a journal, its marker, or a socket."""
        return any(path.exists() for path in (self.socket, self.journal, Files(database=self.journal).marker))


def user_folder() -> Path:
    """Return the folder that holds one `state_dir` for each fleet of an ordinary user."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "selfheal"


def usual_folder(fleet: str) -> Path:
    """Return the `state_dir` of a fleet whose file names none."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    return SYSTEM if os.geteuid() == 0 else user_folder() / fleet


def usual_homes() -> list[Home]:
    """Return the homes somebody lives in, among the places a `state_dir` usually is."""
    users = user_folder()
    folders = [SYSTEM] if os.geteuid() == 0 else [*(sorted(users.iterdir()) if users.is_dir() else ()), SYSTEM]
    homes = []
    for folder in folders:
        try:
            home = Home.at(folder)
            if home.lived_in:
                homes.append(home)
        except OSError:
            continue  # not ours to look into
    return homes


def settled(
    path: Path,
    *,
    state_dir: Path | None = None,
    tables: Tables | None = None,
    added: Mapping[str, Mapping[str, Any]] | None = None,
) -> Configuration:
    """Return the configuration of a file, always with a `state_dir`: the given, its own, or the usual one.

    `added` are tables that count as if they stood in the file. Reads files and may import plugins: not for the event
    loop. Raises `ConfigurationError` with every problem.
    """
    data = read(path)
    fleet = data.get("fleet", {})
    more: dict[str, Mapping[str, Any]] = {**(added or {})}
    if isinstance(fleet, dict):
        if state_dir is not None:
            more["fleet"] = {"state_dir": str(state_dir.absolute())}
        elif fleet.get("state_dir") is None:
            name = fleet.get("name", "selfheal")
            more["fleet"] = {"state_dir": str(usual_folder(name if isinstance(name, str) else "selfheal"))}
    configuration = configure(data, tables=tables, path=path, added=more)
    own = fleet.get("state_dir") if isinstance(fleet, dict) else None
    if state_dir is not None and isinstance(own, str) and configuration.state_dir != (path.parent / own).absolute():
        message = f"it says {own}, and {configuration.state_dir} is taken: --state-dir or SELFHEAL_STATE_DIR says so"
        warning = Problem(path="fleet.state_dir", message=message, hint="see that this is the journal that is meant")
        configuration = attrs.evolve(configuration, warnings=(*configuration.warnings, warning))
    if writable_by_anybody(path):
        message = "anybody on this machine may write this file, and so run commands as selfheal"
        warning = Problem(path=str(path), message=message, hint="chmod o-w")
        configuration = attrs.evolve(configuration, warnings=(*configuration.warnings, warning))
    return configuration
