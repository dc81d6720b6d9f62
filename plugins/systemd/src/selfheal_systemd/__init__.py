"""Units of systemd as workloads of selfheal: who runs, how it ended, and a restart that respects a stop by a person."""

from __future__ import annotations

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_workloads() -> dict[str, str]:
    """Register the workload `systemd`."""
    return {"systemd": "selfheal_systemd.workload:SystemdWorkload"}
