"""The command `docker compose`: what only it can do, since compose has no other interface.

Owns the running of it: an argument list, few variables, one cap on its output, and nothing of it left when it is
cancelled; and what its answers mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from selfheal.errors import ActionFailed
from selfheal.secret import Secret, scrub
from selfheal_docker.api import LIMIT, line

PASSED_ON: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"}
)
"""What it is given of our own environment; the rest only by `environment`, for a healer's holds many passwords."""

MISSING: Final = (
    "`docker compose` (version 2) is not there: install docker-compose-plugin, or put its binary into "
    "~/.docker/cli-plugins/docker-compose; the older docker-compose, version 1, is not used"
)

_GRACE: Final = 1.0  # seconds between SIGTERM and SIGKILL


@attrs.frozen(kw_only=True)
class Said:
    """What a command said before it ended."""

    code: int
    output: str = attrs.field(repr=False)
    errors: str = attrs.field(repr=False)

    @property
    def last_line(self) -> str:
        return next((text for text in map(line, reversed(self.errors.splitlines())) if text), "")


@attrs.frozen(kw_only=True)
class Compose:
    """`docker compose` for one project."""

    program: str
    host: str
    project: str
    directory: Path | None
    files: tuple[Path, ...]
    env_files: tuple[Path, ...]
    environment: Mapping[str, str | Secret] = attrs.field(repr=False)

    async def version(self) -> str:
        """Return its version. Raises `ActionFailed` that says what is missing."""
        try:
            said = await self._run("version", "--short")
        except FileNotFoundError:
            raise ActionFailed(f"the program {self.program} is not there; {MISSING}") from None
        if said.code != 0:
            raise ActionFailed(MISSING)
        return said.output.strip()

    async def service(self, name: str) -> dict[str, Any]:
        """Return a service as the files have it, everything resolved. Raises `ActionFailed` when it is not there."""
        said = await self._done("config", "--format", "json")
        try:
            services = json.loads(said.output)["services"]
            found = services[name]
        except (ValueError, KeyError, TypeError):
            raise ActionFailed(f"the files of the project {self.project} have no service {name}") from None
        return found if isinstance(found, dict) else {}

    async def fingerprint(self, name: str) -> str:
        """Return compose's own hash of a service as the files have it; its containers carry the one they came from."""
        said = await self._done("config", "--hash", name)
        words = said.output.split()
        return words[-1] if words else ""

    async def up(self, name: str, count: int | None = None) -> None:
        """Have at least the containers of this one service, leaving those that are there as they are.

        Nothing else of the project is touched: with `--no-deps` and a service's name compose looks at no other, so
        that no other scale is reset and nothing is started that somebody has stopped. It even refuses to be told
        their scales.
        """
        scale = () if count is None else ("--scale", f"{name}={count}")
        options = ("--detach", "--no-deps", "--no-recreate", "--no-build", "--pull", "never", *scale)
        await self._done("--progress", "plain", "up", *options, "--", name)

    async def _done(self, *arguments: str) -> Said:
        await self.version()
        said = await self._run(*arguments)
        if said.code != 0:
            raise ActionFailed(f"docker compose {arguments[0]} failed ({said.code}): {said.last_line}")
        return said

    async def _run(self, *arguments: str) -> Said:
        revealed = {name: _revealed(name, value) for name, value in self.environment.items()}
        environment = {
            **{name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("LC_")},
            **revealed,
            "DOCKER_HOST": self.host,
            "NO_COLOR": "1",
        }
        place: list[str] = ["--project-name", self.project]
        if self.directory is not None:
            place += ["--project-directory", str(self.directory)]
        for option, paths in (("--file", self.files), ("--env-file", self.env_files)):
            place += [part for path in paths for part in (option, str(path))]
        code, output, errors = await _ran([self.program, "compose", *place, *arguments], environment)
        hidden = [value for name, value in revealed.items() if isinstance(self.environment[name], Secret)]
        return Said(code=code, output=output, errors=scrub(errors, hidden))


def _revealed(name: str, value: str | Secret) -> str:
    if not isinstance(value, Secret):
        return value
    try:
        return value.reveal()
    except OSError as problem:
        raise ActionFailed(f"environment.{name}: {value.source} cannot be read ({type(problem).__name__})") from None


async def _ran(arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a command to its end; when cancelled, end it and everything in its session. Raises `OSError`."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    reading = asyncio.gather(_bounded(process.stdout), _bounded(process.stderr), process.wait())
    try:
        output, errors, code = await asyncio.shield(reading)
    except asyncio.CancelledError:
        ending = asyncio.ensure_future(_end(process, reading))
        while not ending.done():  # to its end, however often we are cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(ending)
        raise
    return code, output.decode(errors="replace"), errors.decode(errors="replace")


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(1 << 16):
        kept += chunk[: LIMIT - len(kept)]
    return bytes(kept)


async def _end(process: asyncio.subprocess.Process, reading: asyncio.Future[Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for group in await asyncio.to_thread(_groups_of_session, process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
        done, _ = await asyncio.wait([reading], timeout=_GRACE)
        if done:
            break
    else:
        reading.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await reading


def _groups_of_session(session: int) -> set[int]:
    """Return the process groups of a session: the command may put its plugin into a group of its own."""
    groups = {session}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[3]) == session:
                    groups.add(int(fields[2]))
    return groups
