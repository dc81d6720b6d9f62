"""The workload `systemd`: one service unit, by its name."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar, Final, Literal

import attrs

from selfheal import ActionContext, ActionFailed, Context, Instance, Run, Settled
from selfheal.builtin.options import factor, memory, processors, seconds
from selfheal.errors import Problem
from selfheal_systemd import doctor, permission, resources
from selfheal_systemd.acts import Acting
from selfheal_systemd.listening import changes
from selfheal_systemd.systemctl import Denied, Manager, Systemctl
from selfheal_systemd.unit import Unit, instance_of, stands

_NAME: Final = re.compile(r"[A-Za-z0-9_:.\\][A-Za-z0-9_:.\\-]*(@[A-Za-z0-9_:.\\-]+)?\.service")

UNEXPLAINED: Final[dict[str, Run]] = {"exited": Run.EXITED, "stopped": Run.STOPPED}


def full_name(value: object) -> object:
    """Return the name of a unit with its type, as `systemctl` completes it."""
    return f"{value}.service" if isinstance(value, str) and value and not value.endswith(".service") else value


def check_name(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate the name of a unit: attrs calls this (S28). A pattern would name many units (S19)."""
    if not isinstance(value, str) or len(value) > 255 or not _NAME.fullmatch(value):
        raise ValueError(
            f'{attribute.name}: {value!r} is no name of one service unit, such as "redis-server.service" or '
            '"worker@1.service": letters, digits, "_", ".", ":", "-" and "\\", no pattern and no path'
        )


@attrs.frozen(kw_only=True)
class SystemdWorkload:
    """One service unit: who runs and how it ended; it can be restarted, started, stopped and given more resources."""

    kind: ClassVar[str] = "systemd"

    #: The unit's name; `.service` may be left away.
    unit: str = attrs.field(converter=full_name, validator=check_name)
    #: Whose units: `system`, or `user`, the manager of the user that selfheal runs as.
    manager: Manager = attrs.field(default="system", validator=attrs.validators.in_(("system", "user")))
    #: Seconds it must run after a start to count as started.
    settle: float = seconds(1.0, 0.0, 300.0)
    #: What an end counts as of which cannot be told whether somebody asked for it: `exited` or `stopped`.
    unexplained_end: Literal["exited", "stopped"] = attrs.field(
        default="stopped", validator=attrs.validators.in_(tuple(UNEXPLAINED))
    )
    #: The most memory `scale_up` may give it (`MemoryMax=`), in bytes or as `"2g"`; by default, memory is left alone.
    memory_max: int | None = memory()
    #: The most processors `scale_up` may give it (`CPUQuota=`, 1.0 is 100 %); by default, they are left alone.
    cpus_max: float | None = processors()
    #: The factor by which one `scale_up` raises memory and processors.
    grow: float = factor(1.5)
    #: Whether what `scale_up` gave stays after a reboot; by default, the unit's own file has the last word.
    persistent: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))

    @property
    def _systemctl(self) -> Systemctl:
        return Systemctl(self.manager)

    # -- who runs ----------------------------------------------------------------------------------------------------

    async def inspect(self, context: Context) -> Instance:
        """Return who runs: the unit's invocation, which stays when it ends.

        Raises `OSError` when systemd gives no answer.
        """
        _, instance = await self._look(context)
        return instance

    async def _look(self, context: Context) -> tuple[Unit, Instance]:
        unit = await self._systemctl.show(context, self.unit)
        job = ""
        if unit.job and not unit.runs:
            found = await self._systemctl.job(context, unit.job)
            job = found[0] if found is not None else ""
        return unit, instance_of(unit, *stands(unit, UNEXPLAINED[self.unexplained_end], job))

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        """Yield the instance whenever it has changed: an end within milliseconds, a start within seconds."""
        async with aclosing(changes(lambda: self._look(context))) as instances:
            async for instance in instances:
                yield instance

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def verbs(self) -> frozenset[str]:
        """Return what this workload can be asked to do, which depends on whether it has a maximum to grow to."""
        grows = self.memory_max is not None or self.cpus_max is not None
        return frozenset({"restart", "start", "stop"} | ({"scale_up"} if grows else set()))

    def _acting(self, context: ActionContext) -> Acting:
        return Acting(
            systemctl=self._systemctl,
            context=context,
            name=self.unit,
            settle=self.settle,
            unexplained=UNEXPLAINED[self.unexplained_end],
        )

    async def restart(self, context: ActionContext) -> str:
        """Restart it, or start it if it has ended, see it run, and say what runs now.

        Raises `ActionFailed` when it does not exist (S30), is another incarnation than the one that failed, was
        stopped or masked by a person, has a job under way, is being restarted by systemd itself, ended at once, or
        when this process may not restart it.
        """
        return await self._acting(context).restart()

    async def start(self, context: ActionContext) -> str:
        """Start it and see it run; one that runs is left alone. Raises `ActionFailed`, as `restart` does."""
        return await self._acting(context).start()

    async def stop(self, context: ActionContext) -> str:
        """Stop it, as a person's wish: it counts as stopped afterwards, and nothing heals it."""
        return await self._acting(context).stop()

    async def scale_up(self, context: ActionContext) -> str:
        """Give it more memory and processors while it runs, up to the maxima, and say how much; nothing is restarted.

        Raises `ActionFailed` when it is at its maximum already, has no limits, or systemd did not do it.
        """
        if context.arguments.get("to") is not None:
            raise ActionFailed("scale_up: one unit cannot be several; leave `to` away")
        unit = await self._acting(context).meant()
        more = resources.raised(unit, self.memory_max, self.cpus_max, self.grow)
        options = () if self.persistent else ("--runtime",)
        try:
            await self._systemctl.act(context, "set-property", self.unit, *options, more=more.properties)
        except Denied as problem:
            raise ActionFailed(f"{problem}; {permission.advice(self.manager, self.unit, 'set-property')}") from None
        after = await self._systemctl.show(context, self.unit)
        if missed := more.missed(after):
            raise ActionFailed(f"{self.unit}: systemd said that it was done, but {missed}")
        return more.told(unit)

    async def probe(self, context: ActionContext) -> Settled | None:
        """Say whether another invocation runs than the one that failed; None while that cannot be told.

        The same invocation, with no job of it under way and nobody left who asks for one, was neither restarted nor
        stopped. Nothing can be told of a `scale_up`: who asked for what it has, systemd does not say.
        """
        expected = context.expected
        if expected is None or expected.run is Run.UNKNOWN or context.verb == "scale_up":
            return None
        try:
            # In this order: a `systemctl` that we started may have outlived us, and its job may yet come. When it has
            # ended its order lies with systemd, which need not have read it before a first answer; before a second, it
            # has.
            if await self._systemctl.still_asking(context, self.unit):
                return None
            seen = [await self._systemctl.show(context, self.unit) for _ in range(2)]
        except (OSError, ActionFailed):
            return None
        now = seen[-1]
        if any(unit.job for unit in seen):
            return None
        if context.verb == "stop":
            return Settled.DONE if now.ended else Settled.NOT_STARTED if now.id == expected.id else None
        if not all(unit.runs for unit in seen):
            return None  # it may have been stopped for a start that then failed
        return Settled.DONE if now.id != expected.id else Settled.NOT_STARTED

    # -- before it is needed -----------------------------------------------------------------------------------------

    async def doctor(self, context: Context) -> list[Problem]:
        """Say, without acting, what would stand in the way of everything this workload may be asked to do."""
        unit, problems = await doctor.of_unit(
            self._systemctl, context, self.unit, self.verbs(), forgotten_heals=self.unexplained_end == "exited"
        )
        if unit is not None and unit.load == "loaded":
            problems += doctor.of_limits(unit, self.memory_max, self.cpus_max)
        return problems
