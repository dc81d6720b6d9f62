"""More memory and processor time for a container that runs: upwards only, and to a maximum.

Owns the arithmetic. Docker changes a running container at once; nothing is restarted.
"""

from __future__ import annotations

from typing import Final

from selfheal.errors import ActionFailed
from selfheal_docker.container import Container

LEAST: Final = 6 << 20
"""Bytes of memory that are the least Docker takes for a limit."""

_NANO: Final = 1_000_000_000
_PERIOD: Final = 100_000  # microseconds; the kernel's default, which Docker shows as 0


def raised(container: Container, memory_max: int | None, cpus_max: float | None, grow: float) -> dict[str, int]:
    """Return the body of an update that gives `grow` times more of each, at most the maxima.

    Raises `ActionFailed` when nothing can be raised: it is at its maximum already, or has no limit to begin with.
    """
    update: dict[str, int] = {}
    why: list[str] = []
    if memory_max is not None:
        _raise_memory(container, memory_max, grow, update, why)
    if cpus_max is not None:
        _raise_cpus(container, cpus_max, grow, update, why)
    if not update:
        raise ActionFailed(f"{container.name}: nothing to raise: {'; '.join(why) or 'no maximum is configured'}")
    return update


def _raise_memory(container: Container, most: int, grow: float, update: dict[str, int], why: list[str]) -> None:
    now = container.memory
    if now <= 0:
        why.append("its memory has no limit")
    elif now >= most:
        why.append(f"its memory is {now} bytes already, and memory_max {most}")
    else:
        wanted = min(most, int(now * grow))
        update["Memory"] = wanted
        # Docker refuses a limit of memory above the one of memory and swap together: what swap it had, it keeps.
        swap = container.memory_and_swap
        update["MemorySwap"] = -1 if swap < 0 else wanted + max(0, swap - now)


def _raise_cpus(container: Container, most: float, grow: float, update: dict[str, int], why: list[str]) -> None:
    period, now = container.cpu_period or _PERIOD, cpus_of(container)
    if now <= 0:
        why.append("its processor time has no limit")
    elif now >= most:
        why.append(f"it has {now:g} processors already, and cpus_max is {most:g}")
    elif container.nano_cpus > 0:
        update["NanoCpus"] = int(min(most, now * grow) * _NANO)
    else:
        update["CpuQuota"] = int(min(most, now * grow) * period)


def cpus_of(container: Container) -> float:
    """Return its limit of processors; 0 for none."""
    if container.nano_cpus > 0:
        return container.nano_cpus / _NANO
    return max(0, container.cpu_quota) / (container.cpu_period or _PERIOD)


def told(before: Container, after: Container) -> str:
    """Say what a container was given."""
    said = []
    if after.memory != before.memory:
        said.append(f"memory from {before.memory} to {after.memory} bytes")
    if cpus_of(after) != cpus_of(before):
        said.append(f"processors from {cpus_of(before):g} to {cpus_of(after):g}")
    return f"raised {' and '.join(said) or 'nothing'} of {after.name}"


def short_of(container: Container, update: dict[str, int]) -> str:
    """Say what of an update did not come about; nothing when all of it did."""
    now = {"Memory": container.memory, "NanoCpus": container.nano_cpus, "CpuQuota": container.cpu_quota}
    missed = [
        f"{name} is {now[name]}, not {wanted}" for name, wanted in update.items() if now.get(name, wanted) < wanted
    ]
    return "; ".join(missed)
