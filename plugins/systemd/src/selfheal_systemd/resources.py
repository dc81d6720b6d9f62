"""More memory and processor time for a unit that runs: upwards only, and to a maximum.

Owns the arithmetic. systemd changes the limits of a running unit at once; nothing is restarted.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from selfheal import ActionFailed
from selfheal_systemd.unit import Unit

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PAGE: Final = 4096


def size(value: object) -> object:
    """Return a number of bytes; a text is read as systemd reads it (`512M`, `2G`)."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+)\s*([kmgt]?)(i?b)?\s*", value, re.IGNORECASE)
    if found is None:
        raise ValueError(f'{value!r} is no amount of memory; write bytes, or a text such as "512m" or "2g"')
    return int(found[1]) * _UNITS[found[2].lower()]


def check_size(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate an amount of memory: attrs calls this."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 << 20 <= value <= 1 << 50:
        raise ValueError(f'{attribute.name}: {value!r} is no amount of memory from 1 MiB on, such as "512m" or "2g"')


def check_cpus(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate a number of processors: attrs calls this."""
    if value is None:
        return
    if not isinstance(value, float | int) or isinstance(value, bool) or not 0.01 <= value <= 10_000:
        raise ValueError(f"{attribute.name}: {value!r} is no number of processors, such as 1.5")


def check_share(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate a factor to grow by: attrs calls this."""
    if not isinstance(value, float | int) or isinstance(value, bool) or not 1.0 < value <= 10.0:
        raise ValueError(f"{attribute.name}: {value!r} is no factor above 1 and at most 10")


@attrs.frozen(kw_only=True)
class Raise:
    """What a unit is to be given: bytes of memory, and processors; None leaves one of them alone."""

    memory: int | None = None
    cpus: float | None = None

    @property
    def properties(self) -> tuple[str, ...]:
        """Return it as `systemctl set-property` takes it."""
        memory = () if self.memory is None else (f"MemoryMax={self.memory}",)
        return memory if self.cpus is None else (*memory, f"CPUQuota={round(self.cpus * 100)}%")

    def missed(self, after: Unit) -> str:
        """Return what of it the unit has not got; empty when it has all."""
        said = []
        if self.memory is not None and (after.memory_max is None or after.memory_max < self.memory - _PAGE):
            said.append(f"MemoryMax is {after.memory_max}, not {self.memory}")
        if self.cpus is not None and (after.cpus is None or after.cpus < self.cpus - 0.01):
            said.append(f"CPUQuota is {after.cpus}, not {self.cpus:g} processors")
        return " and ".join(said)


def raised(unit: Unit, memory_max: int | None, cpus_max: float | None, grow: float) -> Raise:
    """Return `grow` times more of each, at most the maxima.

    Raises `ActionFailed` when nothing can be raised: it is at its maximum already, or has no limit to begin with.
    """
    why: list[str] = []
    memory, cpus = unit.memory_max, unit.cpus
    more_memory: int | None = None
    more_cpus: float | None = None
    if memory_max is not None:
        if memory is None:
            why.append("its memory has no limit (MemoryMax=)")
        elif memory >= memory_max - _PAGE:
            why.append(f"its memory is {memory} bytes already, and memory_max {memory_max}")
        else:
            more_memory = min(memory_max, int(memory * grow))
    if cpus_max is not None:
        if cpus is None:
            why.append("its processors have no limit (CPUQuota=)")
        elif cpus >= cpus_max - 0.01:
            why.append(f"it has {cpus:g} processors already, and cpus_max is {cpus_max:g}")
        else:
            more_cpus = min(cpus_max, round(cpus * grow, 2))
    if more_memory is None and more_cpus is None:
        raise ActionFailed(f"{unit.name}: nothing to raise: {'; '.join(why) or 'no maximum is configured'}")
    return Raise(memory=more_memory, cpus=more_cpus)
