"""The action `standby`: start another workload in the place of the one that failed.

Owns the fence. Two that take the same writes are worse than none: so the standby is started only when the service's own
workload is proven down, or was stopped here, and what is missing for that is said instead. That it cannot be reached
proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeVar

import attrs

from selfheal.core.model import Effect, Instance, Run, Settled
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Hosting, Offering, Proving, Starting, Workload

T = TypeVar("T")

ENDED: Final = frozenset({Run.EXITED, Run.ABSENT})
"""How a workload stands that certainly serves nobody. One that somebody stopped may only be paused, and write on."""

DOWN: Final = ENDED | {Run.STOPPED}
"""The same once it was stopped here: then it is known how."""

UP: Final = frozenset({Run.RUNNING, Run.STARTING})


def _startable(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Workload):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is no workload")
    if not isinstance(value, Starting) or (isinstance(value, Offering) and "start" not in value.verbs()):
        raise ValueError(f"{attribute.name}: {value.kind} cannot be started here, so it can be no standby")


@attrs.frozen(kw_only=True)
class Standby:
    """Start the standby `workload` once the service's own workload is down for certain.

    Where clients find it is theirs, or a proxy's, to know: unless the address of the service's check leads to the
    standby, the checks that follow fail, and so does the recovery. The standby goes on when selfheal ends, and nothing
    heals it before a service names it as its workload.
    """

    kind: ClassVar[str] = "standby"
    verb: ClassVar[str] = "failover"
    effect: ClassVar[Effect] = Effect.DISRUPTIVE

    #: What is started: a workload of any kind that can be started.
    workload: Workload = attrs.field(validator=_startable)
    #: How the old one is known to be down: `inspect` only looks that it has ended by itself; `stop` has it stopped
    #: first, so that nothing starts it again, and then looks.
    fence: Literal["inspect", "stop"] = attrs.field(
        default="inspect", validator=attrs.validators.in_(("inspect", "stop"))
    )

    async def run(self, context: ActionContext) -> str:
        """Do it and say who runs now; one that runs already, with the old one down, is left alone.

        Raises `ActionFailed` otherwise.
        """
        standby = await self._standing(context)
        if standby.run is Run.ABSENT and not isinstance(self.workload, Hosting):
            raise ActionFailed(f"there is no standby to be started ({self._named}): {standby.detail or 'it is absent'}")
        await self._fenced(context)
        # What is only about to run is told to as well: a container that was created and never started is no more.
        if standby.run is not Run.RUNNING:
            await self._starting.start(self._own(context))
            standby = await self._standing(context)
        if standby.run not in UP:
            raise ActionFailed(f"the standby was started and is {standby.run.value}: {standby.detail}".rstrip(": "))
        return f"the standby runs: {standby.id}"

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return DONE when the standby runs and the old one is down, NOT_STARTED when it is the other way about."""
        if context.workload is None:
            return None
        try:
            standby = await self._standing(context)
            old = await context.workload.inspect(context)
        except (OSError, ActionFailed):
            return None
        if standby.run is Run.RUNNING and old.run in DOWN:
            return Settled.DONE
        expected = context.expected
        if standby.run in DOWN and old.run in UP and expected is not None and old.id == expected.id:
            return Settled.NOT_STARTED
        return None

    async def doctor(self, context: ActionContext) -> Sequence[Problem]:
        """Return what is missing for a failover, without doing it."""
        found = []
        if missing := self._no_fence(context):
            text, _, hint = missing.partition("; ")
            found.append(Problem(path="recovery_actions", message=f"failover: {text}", hint=hint))
        try:
            standby = await self._standing(context)
        except (OSError, ActionFailed) as problem:
            hint = "see that it can be inspected from here"
            return [*found, Problem(path="recovery_actions", message=f"failover: {problem}", hint=hint)]
        if standby.run is Run.RUNNING:
            message = f"failover: the standby ({self._named}) runs already, beside the service itself"
            found.append(Problem(path="recovery_actions", message=message, hint="stop it, or name another"))
        if standby.run is Run.ABSENT and not isinstance(self.workload, Hosting):
            message = f"failover: there is no standby ({self._named})"
            found.append(Problem(path="recovery_actions", message=message, hint="create it, or correct its name"))
        elif isinstance(self.workload, Proving):
            found += [
                attrs.evolve(problem, path=problem.path.replace("workload", "recovery_actions.standby", 1))
                for problem in await self.workload.doctor(self._own(context))
            ]
        return found

    # -- the fence ---------------------------------------------------------------------------------------------------

    def _no_fence(self, context: ActionContext) -> str:
        """Return what is missing for a fence; empty where nothing is."""
        old = context.workload
        if old is None:
            return (
                "not fenced: the service has no workload that could say whether the old one is down; give it one, or "
                "register a callback that fences it and fails over"
            )
        if old == self.workload:
            return "not fenced: the standby is the service's own workload; name another"
        if self.fence == "stop" and (
            not isinstance(old, Starting) or (isinstance(old, Offering) and "stop" not in old.verbs())
        ):
            return f'not fenced: the workload {old.kind} cannot be stopped here; use fence = "inspect"'
        return ""

    async def _fenced(self, context: ActionContext) -> None:
        """Make certain that the old one is down. Raises `ActionFailed` with what is missing."""
        if missing := self._no_fence(context):
            raise ActionFailed(missing)
        old = context.workload
        assert old is not None
        seen = await _looked(old, context)
        expected = context.expected
        if expected is not None and expected.run is not Run.UNKNOWN and seen.id != expected.id:
            raise ActionFailed(f"{seen.id} is the old one by now, not {expected.id} whose failure was seen; left alone")
        if self.fence == "stop":
            assert isinstance(old, Starting)
            await old.stop(context)
            seen = await _looked(old, context)
        if seen.run not in (DOWN if self.fence == "stop" else ENDED):
            raise ActionFailed(
                f"not fenced: the workload of the old one is {seen.run.value} {seen.detail}".rstrip()
                + ('; it must be down, or be stopped by us (fence = "stop")' if self.fence == "inspect" else "")
            )

    # -- the standby -------------------------------------------------------------------------------------------------

    @property
    def _starting(self) -> Starting:
        assert isinstance(self.workload, Starting)
        return self.workload

    @property
    def _named(self) -> str:
        return self.workload.kind

    async def _standing(self, context: ActionContext) -> Instance:
        return await _looked(self.workload, self._own(context), "the standby")

    def _own(self, context: ActionContext) -> ActionContext:
        return _Own(context, self.workload)


async def _looked(workload: Workload, context: ActionContext, who: str = "not fenced: the old one") -> Instance:
    """Ask who runs. Raises `ActionFailed`: if inspection fails, nothing is done."""
    try:
        instance = await workload.inspect(context)
    except OSError as problem:
        raise ActionFailed(f"{who} could not be inspected: {problem.strerror or problem}") from None
    if instance.run is Run.UNKNOWN:
        raise ActionFailed(f"{who} could not be inspected: {instance.detail}")
    return instance


@attrs.frozen
class _Own:
    """The context of the action, for the standby: a service by a name of its own, of which no failure was seen."""

    _of: ActionContext
    workload: Workload | None

    @property
    def service(self) -> str:
        return f"{self._of.service} standby"

    @property
    def remaining(self) -> float:
        return self._of.remaining

    @property
    def kept(self) -> MutableMapping[str, Any]:
        return self._of.kept

    @property
    def key(self) -> str:
        return self._of.key

    @property
    def verb(self) -> str:
        return "start"

    @property
    def incident(self) -> int:
        return self._of.incident

    @property
    def attempt(self) -> int:
        return self._of.attempt

    @property
    def cause(self) -> Any:
        return self._of.cause

    @property
    def expected(self) -> None:
        return None

    @property
    def check(self) -> Any:
        return self._of.check

    @property
    def arguments(self) -> dict[str, Any]:
        return {}

    async def blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        return await self._of.blocking(function, *args)
