"""Proving, without acting, that this process may do what is configured; and what to change where it may not.

Permission cannot be asked of polkit: only root may name the unit and the verb in a question to it, and a rule that is
as narrow as it should be answers no to a question without them. So systemd itself is asked to do it, in a job mode that
the verb cannot have: systemd looks whether we may, and then refuses because of the mode. No job comes of it either way.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from selfheal import ActionFailed, Context
from selfheal.errors import Problem
from selfheal_systemd import permission
from selfheal_systemd.systemctl import Denied, Refused, Systemctl, first_line
from selfheal_systemd.unit import Unit

_IMPOSSIBLE: Final = {"restart": "isolate", "stop": "isolate", "start": "triggering"}
"""verb -> a job mode that it cannot have: only a start may isolate, only a stop may be of what it triggers."""

_OF_THE_MODE: Final = "only valid for"
"""What systemd says of a job mode that a verb cannot have."""

_SET_NOTHING: Final = (
    "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
    "SetUnitProperties", "sba(sv)",
)  # fmt: skip


async def of_unit(
    systemctl: Systemctl, context: Context, name: str, verbs: Collection[str], *, forgotten_heals: bool
) -> tuple[Unit | None, list[Problem]]:
    """Return the unit if it can be seen, and what stands in the way of `verbs`."""
    try:
        unit = await systemctl.show(context, name)
    except FileNotFoundError:
        hint = "install systemd, or run selfheal on the machine itself, not in a container"
        return None, [Problem(path="workload", message="there is no program systemctl here", hint=hint)]
    except (OSError, ActionFailed) as problem:
        return None, [Problem(path="workload.manager", message=str(problem), hint=_reach(systemctl))]
    problems = _of_its_file(unit, verbs, forgotten_heals=forgotten_heals)
    if unit.load != "not-found":
        problems += await _of_rights(systemctl, context, unit, verbs)
    return unit, problems


def _reach(systemctl: Systemctl) -> str:
    if systemctl.manager == "user":
        return "run selfheal as the user whose units these are, and let the manager stay: loginctl enable-linger USER"
    return "systemd must be process 1 here, and /run/dbus/system_bus_socket (or /run/systemd/private, for root) open"


def _of_its_file(unit: Unit, verbs: Collection[str], *, forgotten_heals: bool) -> list[Problem]:
    def problem(message: str, hint: str) -> list[Problem]:
        return [Problem(path="workload.unit", message=f"{unit.name} {message}", hint=hint)]

    if unit.load == "not-found":
        return problem("is not known to systemd", "install it and run systemctl daemon-reload, or correct the name")
    if unit.load == "masked":
        return problem("is masked: nobody may start it", f"systemctl unmask {unit.name}")
    if unit.load != "loaded":
        error = unit.said.get("LoadError", "")[:300]
        return problem(f"cannot be loaded ({unit.load}): {error}", f"systemd-analyze verify {unit.name}")
    problems = []
    if unit.said.get("CanStart") == "no":
        problems += problem("may not be started by hand", "take RefuseManualStart= out of its file")
    if unit.said.get("CanStop") == "no" and {"restart", "stop"} & set(verbs):
        problems += problem("may not be stopped by hand", "take RefuseManualStop= out of its file")
    if not unit.wanted and not forgotten_heals and unit.active != "failed":
        problems += problem(
            "is not enabled: if it ends with success, systemd forgets how, and it counts as stopped by a person",
            f'systemctl enable {unit.name}, or set unexplained_end = "exited"',
        )
    return problems


async def _of_rights(systemctl: Systemctl, context: Context, unit: Unit, verbs: Collection[str]) -> list[Problem]:
    refusals = {verb: await _refusal(systemctl, context, unit.name, verb) for verb in sorted(verbs)}
    missing = [verb for verb, reason in refusals.items() if reason]
    if not missing:
        return []
    if systemctl.manager == "user":
        hint = _reach(systemctl)
    else:
        hint = f"write to {permission.RULES}:\n{permission.rule(unit.name, permission.needed(verbs))}"
    message = f"{', '.join(missing)} of {unit.name} is not allowed: {refusals[missing[0]]}"
    return [Problem(path="workload", message=message, hint=hint)]


async def _refusal(systemctl: Systemctl, context: Context, name: str, verb: str) -> str:
    """Return why a verb is not allowed, or is not known to be; empty when it is."""
    if verb == "scale_up":
        return await _refusal_to_set(systemctl, context, name)
    try:
        await systemctl.act(context, verb, name, f"--job-mode={_IMPOSSIBLE[verb]}", "--no-block")
    except (OSError, Denied) as problem:
        return str(problem)
    except Refused as problem:
        # Only a refusal of the mode shows that it came past polkit.
        return "" if _OF_THE_MODE in str(problem) else str(problem)
    return ""


async def _refusal_to_set(systemctl: Systemctl, context: Context, name: str) -> str:
    """Return why properties may not be set: none are. `systemctl` cannot set none, so that `busctl` is asked."""
    manager = "--user" if systemctl.manager == "user" else "--system"
    try:
        done = await systemctl.run(context, ("busctl", manager, *_SET_NOTHING, name, "true", "0"))
    except FileNotFoundError:
        return ""  # it cannot be proven; the first scale_up will tell
    except OSError as problem:
        return str(problem)
    return "" if done.code == 0 else first_line(done)


def of_limits(unit: Unit, memory_max: int | None, cpus_max: float | None) -> list[Problem]:
    """Return which of the maxima have nothing to raise."""
    missing = []
    if memory_max is not None and unit.memory_max is None:
        missing.append(("memory_max", "MemoryMax"))
    if cpus_max is not None and unit.cpus is None:
        missing.append(("cpus_max", "CPUQuota"))
    return [
        Problem(
            path=f"workload.{option}",
            message=f"{unit.name} has no {key}=, so there is nothing to raise",
            hint=f"set {key}= in its file (systemctl edit {unit.name}), or leave {option} away",
        )
        for option, key in missing
    ]
