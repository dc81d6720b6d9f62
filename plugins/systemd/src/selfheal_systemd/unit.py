"""What systemd says of a unit, and what it means: runs, is starting, has ended by itself, or was stopped.

Owns the reading of `systemctl show` and every judgement that follows from it. Nothing here asks anybody.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping
from typing import Final

import attrs

from selfheal import Instance, Run

PROPERTIES: Final = (
    "Id", "LoadState", "LoadError", "UnitFileState", "ActiveState", "SubState", "Result", "InvocationID", "Job", "Type",
    "Restart", "RestartPreventExitStatus", "RemainAfterExit", "ExitType", "NRestarts", "MainPID", "ControlGroup",
    "FreezerState", "CanStart", "CanStop", "NeedDaemonReload", "ConditionResult", "RuntimeMaxUSec", "TimeoutStopUSec",
    "StartLimitBurst", "StartLimitIntervalUSec", "ExecMainCode", "ExecMainStatus", "ExecMainStartTimestampMonotonic",
    "ExecMainExitTimestampMonotonic", "ActiveEnterTimestampMonotonic", "ActiveExitTimestampMonotonic",
    "InactiveExitTimestampMonotonic", "StateChangeTimestampMonotonic", "WantedBy", "RequiredBy", "BoundBy",
    "Requires", "ConditionTimestampMonotonic", "MemoryMax", "CPUQuotaPerSecUSec",
)  # fmt: skip
"""What is asked for. A systemd that does not know one of them leaves it away, which reads as empty."""

FORGOTTEN: Final = "none"
"""The id of what systemd remembers no incarnation of: never started, or ended and forgotten."""

OF_ITSELF: Final = frozenset({"watchdog", "oom-kill", "protocol", "resources", "start-limit-hit", "exec-condition"})
"""Values of `Result` that nobody's wish to stop it leads to."""

_EXITED, _KILLED, _DUMPED = 1, 2, 3  # CLD_ codes of waitid(2), as ExecMainCode shows them
_UNITS: Final = {
    "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0,
    "month": 2629800.0, "y": 31557600.0,
}  # fmt: skip


def timespan(text: str) -> float | None:
    """Return the seconds of a timespan as systemd prints it (`1min 30s`); None for `infinity` or none at all."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d|w|month|y)(?![a-z])", text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else None


def whole(text: str) -> int | None:
    """Return the number a property holds; None for none, `infinity` and `[not set]`."""
    return int(text) if text.isdecimal() and int(text) < 2**64 - 1 else None


@attrs.frozen(kw_only=True)
class Unit:
    """One look at a unit; times are microseconds of the monotonic clock, 0 for never."""

    name: str
    load: str
    active: str
    sub: str
    result: str
    invocation: str
    job: int
    main_pid: int
    control_group: str
    restarts: int
    main_code: int
    main_status: int
    main_started: int
    main_ended: int
    became_active: int
    left_active: int
    began: int
    changed: int
    said: Mapping[str, str]

    @property
    def id(self) -> str:
        """The incarnation: the invocation, which stays when it ends."""
        return self.invocation or FORGOTTEN

    @property
    def runs(self) -> bool:
        """Whether it is up."""
        return self.active in ("active", "reloading", "refreshing", "maintenance")

    @property
    def ended(self) -> bool:
        """Whether it is down."""
        return self.active in ("inactive", "failed")

    @property
    def healed_by_systemd(self) -> bool:
        """Whether systemd waits for its own next start of it."""
        return self.sub.startswith("auto-restart")

    @property
    def once(self) -> bool:
        """Whether it does its work and is done: what has succeeded does not run."""
        return self.said.get("Type") == "oneshot" and self.said.get("RemainAfterExit") != "yes"

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.active == "inactive" and self.result == "success" and bool(self.invocation)

    @property
    def unmet(self) -> bool:
        """Whether a condition kept it from the last start; `no` alone may only mean that none was looked at yet."""
        looked = whole(self.said.get("ConditionTimestampMonotonic", "")) or 0
        return self.said.get("ConditionResult") == "no" and looked > 0

    @property
    def wanted(self) -> bool:
        """Whether a unit that systemd has loaded asks for it, which also keeps systemd from forgetting it."""
        return any(self.said.get(by) for by in ("WantedBy", "RequiredBy", "BoundBy"))

    @property
    def since(self) -> float | None:
        """When this incarnation began, UNIX time."""
        at = max(self.main_started, self.began)
        if at == 0 or not self.invocation:
            return None
        return round(time.time() - (time.monotonic() - at / 1e6), 3)

    @property
    def memory_max(self) -> int | None:
        """Its limit of memory in bytes; None without one."""
        return whole(self.said.get("MemoryMax", ""))

    @property
    def cpus(self) -> float | None:
        """Its limit of processors; None without one."""
        return timespan(self.said.get("CPUQuotaPerSecUSec", ""))


def read(name: str, text: str) -> Unit:
    """Return the unit that `systemctl show` has described. Raises `ValueError` when that is no description."""
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if "LoadState" not in said or "ActiveState" not in said:
        raise ValueError(f"systemctl described no unit {name}: {text[:200]!r}")

    def number(key: str) -> int:
        return whole(said.get(key, "")) or 0

    return Unit(
        name=name,
        load=said["LoadState"],
        active=said["ActiveState"],
        sub=said.get("SubState", ""),
        result=said.get("Result", ""),
        invocation=said.get("InvocationID", ""),
        job=number("Job"),
        main_pid=number("MainPID"),
        control_group=said.get("ControlGroup", ""),
        restarts=number("NRestarts"),
        main_code=number("ExecMainCode"),
        main_status=number("ExecMainStatus"),
        main_started=number("ExecMainStartTimestampMonotonic"),
        main_ended=number("ExecMainExitTimestampMonotonic"),
        became_active=number("ActiveEnterTimestampMonotonic"),
        left_active=number("ActiveExitTimestampMonotonic"),
        began=number("InactiveExitTimestampMonotonic"),
        changed=number("StateChangeTimestampMonotonic"),
        said=said,
    )


# -- how it ended ----------------------------------------------------------------------------------------------------


def how_it_ended(unit: Unit) -> str:
    """Return the end of its main process in words."""
    if unit.main_code == _EXITED:
        said = f"exited with code {unit.main_status}"
    elif unit.main_code in (_KILLED, _DUMPED):
        try:
            said = f"was ended by {signal.Signals(unit.main_status).name}"
        except ValueError:
            said = f"was ended by signal {unit.main_status}"
    else:
        said = "ended"
    return said if unit.result in ("success", "exit-code", "signal", "") else f"{said} ({unit.result})"


def asked(unit: Unit) -> bool | None:
    """Whether somebody asked systemd to end it; None when that cannot be told.

    systemd leaves `active` *before* it ends a process that it was asked to stop, and *after* a process that has ended
    by itself: two timestamps of one clock tell them apart, whatever the exit code (a Java program that was stopped is
    `failed` with code 143). A few ends are told by other facts.
    """
    if not unit.invocation:
        return None
    if unit.result in OF_ITSELF:
        return False
    if _restarts_always(unit) and unit.active == "inactive":
        return True  # by itself it would have been started again, or have failed
    if unit.active == "inactive" and unit.result != "success":
        return True  # stopped while systemd was waiting to start it again; else it would be `failed`
    if unit.said.get("RemainAfterExit") == "yes" and unit.left_active >= unit.became_active > 0:
        return True  # it stays active whatever its processes do
    if unit.said.get("ExitType") == "cgroup" or not unit.main_started or unit.main_ended < unit.main_started:
        return None
    if unit.became_active < unit.main_started:
        return _asked_while_starting(unit)
    if unit.result == "timeout" and timespan(unit.said.get("RuntimeMaxUSec", "")) is not None:
        return None
    return unit.left_active < unit.main_ended


def _restarts_always(unit: Unit) -> bool:
    prevented = unit.said.get("RestartPreventExitStatus", "")
    return unit.said.get("Restart") == "always" and not prevented


def _asked_while_starting(unit: Unit) -> bool | None:
    if unit.result == "success" and unit.main_code == _KILLED:
        return True  # one that dies by itself while it starts has failed
    if unit.once and unit.main_code == _KILLED and unit.main_status == signal.SIGTERM:
        return None
    return False


# -- how it stands ---------------------------------------------------------------------------------------------------


def stands(unit: Unit, unexplained: Run, job: str = "") -> tuple[Run, str]:
    """Return how a unit stands, and a sentence about it. `job` is the type of the job under way, where it is known."""
    if unit.runs:
        return _running(unit)
    if unit.healed_by_systemd:
        return Run.STARTING, f"systemd itself is about to start it again (restart {unit.restarts}): it {_ended(unit)}"
    if unit.active == "activating":
        return Run.STARTING, f"systemd is starting it ({unit.sub})"
    if unit.active == "deactivating":
        return _deactivating(unit, job)
    if unit.job and job in ("start", "restart", "try-restart", "reload-or-start"):
        return Run.STARTING, f"a {job} job of it is waiting"
    return _down(unit, unexplained)


def _running(unit: Unit) -> tuple[Run, str]:
    if unit.said.get("FreezerState") in ("frozen", "freezing"):
        return Run.STOPPED, "frozen: somebody asked systemd to freeze it (systemctl thaw lets it go on)"
    said = [] if unit.sub in ("running", "listening", "waiting", "mounted") else [unit.sub]
    if unit.load not in ("loaded", ""):
        said.append(f"its unit is {unit.load}: once ended it cannot be started")
    if unit.said.get("NeedDaemonReload") == "yes":
        said.append("its file has changed since systemd read it (systemctl daemon-reload)")
    if unit.restarts:
        said.append(f"restarted {unit.restarts} times by systemd")
    return Run.RUNNING, "; ".join(said)


def _deactivating(unit: Unit, job: str) -> tuple[Run, str]:
    if job in ("restart", "start", "try-restart"):
        return Run.STARTING, f"a {job} job is under way ({unit.sub})"
    ended_first = unit.main_started <= unit.main_ended <= unit.left_active
    if (ended_first and job != "stop") or unit.result not in ("success", ""):
        return Run.EXITED, f"{_ended(unit)}; systemd is cleaning up after it ({unit.sub})"
    return Run.STOPPED, f"somebody asked systemd to stop it, which is under way ({unit.sub})"


def _ended(unit: Unit) -> str:
    return how_it_ended(unit) if unit.main_ended >= unit.main_started else unit.result


def _down(unit: Unit, unexplained: Run) -> tuple[Run, str]:
    if unit.load == "not-found" and not unit.invocation:
        return Run.ABSENT, "systemd knows no such unit"
    if unit.load == "masked":
        return Run.STOPPED, "masked: somebody forbade that it is started (systemctl unmask allows it)"
    if unit.load not in ("loaded", ""):
        return Run.EXITED, f"its unit cannot be loaded ({unit.load}): {unit.said.get('LoadError', '')[:200]}"
    if not unit.invocation:
        return _forgotten(unit, unexplained)
    by_wish = asked(unit)
    ended = how_it_ended(unit)
    if by_wish is None:
        return unexplained, f"{ended}; whether somebody stopped it cannot be told"
    return (Run.STOPPED, f"somebody asked systemd to stop it; it {ended}") if by_wish else (Run.EXITED, ended)


def _forgotten(unit: Unit, unexplained: Run) -> tuple[Run, str]:
    if not unit.wanted:
        return unexplained, (
            "it does not run; whether it has been started, and how it ended, cannot be told: "
            "systemd forgets a unit that nothing wants as soon as it has ended well"
        )
    because = "; a condition of it was not met" if unit.unmet else ""
    return Run.EXITED, f"it has not been started since systemd began{because}"


def instance_of(unit: Unit, run: Run, detail: str) -> Instance:
    """Return the instance that a unit is."""
    count = 1 if unit.runs and run is not Run.STOPPED else 0
    return Instance(id=unit.id, run=run, since=unit.since, count=count, detail=detail)
