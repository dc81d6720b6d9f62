"""Asking systemd through `systemctl`: a program that is on every machine, with a deadline of ours around each call.

Owns the arguments and environment it is given, what its refusals mean, and that a job is only ever queued, never
waited for inside the program: so nobody has to kill a `systemctl` to end a wait, which would leave its job behind.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

import attrs

from selfheal import ActionFailed, Context
from selfheal.builtin import proc, spawn
from selfheal_systemd.unit import PROPERTIES, Unit, read

Manager: TypeAlias = Literal["system", "user"]

ANSWER: Final = 10.0
"""Seconds systemd is given for one answer; it takes about 0.02."""

JOBS: Final = ("restart", "start", "stop")
"""The verbs that queue a job."""

_QUEUED: Final = ("--no-block", "--job-mode=fail")
_GRACE: Final = 0.1  # seconds `systemctl` has to end by itself when it is told to; it holds nothing
_DENIED: Final = re.compile(
    r"interactive authentication required|access denied|not authorized|permission denied|authentication is needed",
    re.IGNORECASE,
)


def user() -> str:
    """Return the name of who this process runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


class Denied(ActionFailed):
    """This process has no right to do that."""


class Refused(ActionFailed):
    """systemd would not do it, for another reason than rights."""


@attrs.frozen
class Systemctl:
    """The program, for one manager."""

    manager: Manager

    async def show(self, context: Context, name: str) -> Unit:
        """Return how a unit is. Raises `OSError` when there is no answer."""
        done = await self._run(context, "show", f"--property={','.join(PROPERTIES)}", "--", name)
        try:
            return read(name, done.output)
        except ValueError:
            raise ConnectionError(f"no answer from systemd ({self.manager} manager): {first_line(done)}") from None

    async def enqueue(self, context: Context, verb: str, name: str) -> None:
        """Queue a job. A job of somebody else that contradicts it is not replaced.

        systemd could tell its number (`--show-transaction`), but the policy of the bus keeps that from everybody but
        root. Raises `Denied`, `Refused`, `OSError`.
        """
        await self.act(context, verb, name, *_QUEUED)

    async def still_asking(self, context: Context, name: str) -> bool:
        """Whether a `systemctl` of ours still asks for a job of a unit: one that has outlived whoever started it.

        Every process of our own user can be seen, whatever `/proc` hides.
        """
        return await context.blocking(self._seen_asking, name)

    def _seen_asking(self, name: str) -> bool:
        asking = [(*_QUEUED, verb, "--", name) for verb in JOBS]
        for place in Path("/proc").iterdir():
            if not place.name.isdigit():
                continue
            try:
                seen = proc.look(int(place.name))
                if seen is None or not seen.alive or not seen.program.startswith("systemctl"):
                    continue
                words = tuple((place / "cmdline").read_text(errors="replace").split("\0")[:-1])
            except OSError:
                continue  # it has just ended; or it is hidden, and so none of ours
            if words[-5:] in asking and ("--user" in words) == (self.manager == "user"):
                return True
        return False

    async def act(self, context: Context, verb: str, name: str, *options: str, more: tuple[str, ...] = ()) -> Finished:
        """Do what `systemctl VERB UNIT` does. Raises `Denied`, `Refused`, `OSError`."""
        done = await self._run(context, *options, verb, "--", name, *more)
        if done.code == 0:
            return done
        text = first_line(done)
        if denied(text):
            raise Denied(f"{user()} may not {verb} {name} ({text})")
        if done.code is None and not done.signal and "Failed to" not in done.output:
            return done  # somebody reaped our child: how it stands tells whether it was done
        if "Failed to connect" in text:
            raise ConnectionError(f"no answer from systemd ({self.manager} manager): {text}")
        raise Refused(f"systemctl {verb} {name}: {text}")

    async def job(self, context: Context, number: int) -> tuple[str, str] | None:
        """Return the type and the state (`waiting`, `running`) of a job; None when there is none."""
        done = await self._run(context, "list-jobs", "--no-legend", "--full", "--plain")
        for line in done.output.splitlines():
            words = line.split()
            if len(words) >= 4 and words[0] == str(number):
                return words[-2], words[-1]
        return None

    async def cancel(self, context: Context, number: int) -> None:
        """Take back a job. Raises `OSError` when there is no answer; a job that is gone is no fault."""
        await self._run(context, "cancel", "--", str(number))

    async def _run(self, context: Context, *arguments: str) -> Finished:
        manager = ("--user",) if self.manager == "user" else ()
        command = ("systemctl", *manager, "--no-ask-password", "--no-pager", *arguments)
        return await self.run(context, command)

    async def run(self, context: Context, command: tuple[str, ...]) -> Finished:
        """Run a program that asks systemd. Raises `TimeoutError` without an answer, `OSError` when it is missing."""
        left = context.remaining
        patience = min(ANSWER, left - min(0.2, left / 10))
        done = await spawn.run(command, timeout=max(0.0, patience), environment=self._environment(), grace=_GRACE)
        heed_cancellation()
        if done.expired:
            raise TimeoutError(f"systemd ({self.manager} manager) gave no answer within {patience:.1f} s")
        return done

    def _environment(self) -> dict[str, str]:
        ours: dict[str, str] = {"LC_ALL": "C", "SYSTEMD_COLORS": "0"}
        if self.manager == "user" and not os.environ.get("XDG_RUNTIME_DIR"):
            ours["XDG_RUNTIME_DIR"] = f"/run/user/{os.geteuid()}"
        return spawn.surroundings(ours)


Finished: TypeAlias = spawn.Finished


def heed_cancellation() -> None:
    """Raise `CancelledError` if this task was told to end.

    Before Python 3.12 `asyncio.wait_for`, which waits under `proc.readable`, loses that when what it waits for comes
    in the same turn of the loop; whoever goes on in a loop would then never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def denied(text: str) -> bool:
    """Whether a reason says that this process has no right."""
    return _DENIED.search(text) is not None


def first_line(done: Finished) -> str:
    """Return the first line a program has said, which is its reason."""
    lines = [line.strip() for line in done.output.splitlines() if line.strip()]
    return (lines[0] if lines else f"it said nothing and ended with code {done.code}")[:300]
