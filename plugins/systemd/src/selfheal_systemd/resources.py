"""More memory and processor time for a unit that runs: upwards only, and to a maximum.

Owns the arithmetic. systemd changes the limits of a running unit at once; nothing is restarted.
"""

from __future__ import annotations

from typing import Final

import attrs

from selfheal import ActionFailed
from selfheal_systemd.unit import Unit

_PAGE: Final = 4096


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

    def told(self, before: Unit) -> str:
        """Say what the unit was given."""
        said = []
        if self.memory is not None:
            said.append(f"MemoryMax from {before.memory_max} to {self.memory} bytes")
        if self.cpus is not None:
            said.append(f"CPUQuota from {before.cpus:g} to {self.cpus:g} processors")
        return f"raised {' and '.join(said)} of {before.name}"

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
