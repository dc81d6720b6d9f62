"""The check `process`: whether a process is there, and whether it keeps being a new one.

Weak evidence: a hung process is there too. Use it beside nothing better.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import ClassVar

import attrs

from selfheal.builtin import options, proc
from selfheal.core.bounds import seconds, whole
from selfheal.core.model import PASSING, Cause, CheckResult, Instance, Run, Scalar, Verdict
from selfheal.plugins import CheckContext, Workload
from selfheal.wire import failing, inconclusive


@attrs.define(eq=False)
class _Incarnations:
    """Who was seen last, and when (monotonic) each new one was first seen; mutable, as no configuration is."""

    last: str | None = None
    changes: deque[float] = attrs.field(factory=deque)


@attrs.frozen(kw_only=True)
class ProcessCheck:
    """Whether a process lives: the one in a pid file, or else the service's own workload.

    FAILING, `exited`, when there is none, also when the pid in the file is stale. WARNING when it is stopped by a
    signal or under a debugger, when fewer than `copies` run, and when it has been restarted, by whomever, `restarts`
    times within `per` seconds: somebody else's supervisor hides a crash loop behind a process that is always there.
    """

    kind: ClassVar[str] = "process"

    #: The file in which a daemon keeps its pid.
    pid_file: Path | None = attrs.field(default=None, converter=options.path)
    #: The name the process must have (`comm`, at most 15 characters): another program may have got its pid.
    program: str | None = None
    #: The workload to ask, where there is no pid file; by default the service's own.
    workload: Workload | None = attrs.field(default=None, repr=False)
    #: Copies of the workload that should run; fewer are a warning, none is a failure.
    copies: int = whole(1, 1, 1000)
    #: So many restarts are a warning.
    restarts: int = whole(3, 1, 1000)
    #: Seconds in which they are counted.
    per: float = seconds(3600.0, 1.0)
    _incarnations: _Incarnations = attrs.field(factory=_Incarnations, init=False, eq=False, repr=False)

    async def check(self, context: CheckContext) -> CheckResult:
        """Look once."""
        if self.pid_file is not None:
            return await context.blocking(self._of_the_file, self.pid_file)
        workload = self.workload or context.workload
        if not isinstance(workload, Workload):
            return inconclusive("there is neither a pid_file nor a workload to ask; give one", Cause.CONFIG)
        return self._of_an_instance(await workload.inspect(context))

    def _of_the_file(self, path: Path) -> CheckResult:
        try:
            with path.open("rb") as file:
                text = file.read(64).split(b"\n")[0].decode(errors="replace").strip()
        except FileNotFoundError:
            return failing(Cause.EXITED, f"{path} is not there")
        except OSError as error:
            return inconclusive(f"{path} cannot be read: {error.strerror}", Cause.CONFIG)
        if not text.isdigit() or not int(text):
            return inconclusive(f"{path} holds {text!r} and no pid", Cause.CONFIG)
        seen = proc.look(int(text))
        if seen is None or not seen.alive:
            return failing(Cause.EXITED, f"process {text} of {path} has ended")
        if self.program is not None and seen.program != self.program[:15]:
            return failing(Cause.EXITED, f"process {text} of {path} is {seen.program} by now, not {self.program}")
        return self._judged(
            str(seen.identity),
            f"process {text} is stopped (state {seen.state})" if seen.state in "Tt" else "",
            {"pid": seen.identity.pid, "state": seen.state},
            instance=str(seen.identity),
        )

    def _of_an_instance(self, instance: Instance) -> CheckResult:
        if instance.run in (Run.EXITED, Run.ABSENT, Run.STOPPED):
            return failing(
                Cause.EXITED, f"{instance.run.value}: {instance.detail}" if instance.detail else instance.run.value
            )
        if instance.run is Run.STARTING:
            return failing(Cause.STARTING, instance.detail)
        if instance.run is Run.UNKNOWN:
            return inconclusive(instance.detail or "its workload does not know")
        stopped = [
            seen.identity.pid
            for seen in map(proc.look, _pids(instance.id))
            if seen is not None and seen.state in "Tt" and str(seen.identity) in instance.id.split(",")
        ]
        wrong = f"process {', '.join(map(str, stopped))} is stopped by a signal" if stopped else ""
        if instance.count < self.copies:
            wrong = f"{instance.count} of {self.copies} copies run"
        return self._judged(instance.id, wrong, {"count": instance.count})

    def _judged(
        self, incarnation: str, wrong: str, details: dict[str, Scalar], instance: str | None = None
    ) -> CheckResult:
        """Count restarts, and warn of what is wrong with a process that lives."""
        seen, now = self._incarnations, time.monotonic()
        if seen.last not in (None, incarnation):
            seen.changes.append(now)
        seen.last = incarnation
        while seen.changes and (now - seen.changes[0] > self.per or len(seen.changes) > 1000):
            seen.changes.popleft()
        restarted = len(seen.changes)
        if restarted >= self.restarts:
            wrong = wrong or f"restarted {restarted} times within {self.per:g} s"
        if not wrong:
            return PASSING if instance is None else CheckResult(Verdict.PASSING, instance=instance)
        return CheckResult(
            Verdict.WARNING,
            cause=Cause.ERROR,
            summary=wrong,
            details={**details, "restarts": restarted},
            instance=instance,
        )


def _pids(instance: str) -> list[int]:
    pids = [part.partition(":")[0] for part in instance.split(",")]
    return [int(pid) for pid in pids if pid.isdigit()]
