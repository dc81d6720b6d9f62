"""More memory and processor time for a container that runs: upwards only, and to a maximum.

Owns the arithmetic. Docker changes a running container at once; nothing is restarted.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from selfheal.errors import ActionFailed
from selfheal_docker.container import Container

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NANO: Final = 1_000_000_000
_PERIOD: Final = 100_000  # microseconds; the kernel's default, which Docker shows as 0


def size(value: object) -> object:
    """Return a number of bytes; a text is read as Docker reads it (`512m`, `2g`, `2GiB`)."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+)\s*([kmgt]?)(i?b)?\s*", value, re.IGNORECASE)
    if found is None:
        raise ValueError(f'{value!r} is no amount of memory; write bytes, or a text such as "512m" or "2g"')
    return int(found[1]) * _UNITS[found[2].lower()]


def check_size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate an amount of memory: attrs calls this. 6 MiB is the least Docker takes."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 6 << 20 <= value <= 1 << 50:
        raise ValueError(f'{attribute.name}: {value!r} is no amount of memory from 6 MiB on, such as "512m" or "2g"')


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
    period = container.cpu_period or _PERIOD
    now = container.nano_cpus / _NANO if container.nano_cpus > 0 else max(0, container.cpu_quota) / period
    if now <= 0:
        why.append("its processor time has no limit")
    elif now >= most:
        why.append(f"it has {now:g} processors already, and cpus_max is {most:g}")
    elif container.nano_cpus > 0:
        update["NanoCpus"] = int(min(most, now * grow) * _NANO)
    else:
        update["CpuQuota"] = int(min(most, now * grow) * period)


def short_of(container: Container, update: dict[str, int]) -> str:
    """Say what of an update did not come about; nothing when all of it did."""
    now = {"Memory": container.memory, "NanoCpus": container.nano_cpus, "CpuQuota": container.cpu_quota}
    missed = [
        f"{name} is {now[name]}, not {wanted}" for name, wanted in update.items() if now.get(name, wanted) < wanted
    ]
    return "; ".join(missed)
