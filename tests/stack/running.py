"""A server as a program to be run: as a child of a test, in a container, or as a unit of systemd."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Program:
    """What is run, with its whole environment, where, and as whom; None is whoever runs it."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: Path
    user: int | None = None
    group: int | None = None

    def begin(self, log: Path) -> subprocess.Popen[bytes]:
        """Start it as a child, with what it says appended to a file, and do not wait."""
        with log.open("ab") as said:
            return subprocess.Popen(
                self.arguments,
                env=self.environment,
                cwd=self.cwd,
                user=self.user,
                group=self.group,
                extra_groups=None if self.user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
