"""`postgres.failover`: promote a named standby, once it is certain that the old primary cannot take another write.

Two primaries are worse than none: each takes writes that the other will never have. So there is no promotion without
a fence, and what is missing is said instead. Nothing is stopped before the standby has been found fit.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs

from selfheal import Effect, Run, Settled
from selfheal.builtin.options import seconds
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Starting
from selfheal.secret import Secret
from selfheal.wire import PeerClosed
from selfheal_postgres.acting import address_for, check_of, session_for
from selfheal_postgres.address import Address, read_place
from selfheal_postgres.check import masked, unproven
from selfheal_postgres.converse import converse

if TYPE_CHECKING:
    from selfheal_postgres.driver import Session

ENDED: Final = frozenset({Run.EXITED, Run.ABSENT})
"""What a workload must say of the old primary before anybody else becomes one. One that was stopped may be paused."""

DOWN: Final = ENDED | {Run.STOPPED}
"""The same once it was stopped by us: then it is known how."""

RESERVE: Final = 1.0
"""Seconds of an action's time kept back to say what was seen."""

PATIENCE: Final = 2.0
"""Seconds the old primary's address is given to say something."""

FIT: Final = """
SELECT pg_is_in_recovery(), quote_ident(current_user),
  has_function_privilege('pg_promote(boolean, integer)', 'EXECUTE'),
  extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8
"""


def _standby(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, (str, Secret)):
        raise TypeError("standby: name the standby: host:port, or a URL, which may be a secret")
    if isinstance(value, str):
        try:
            read_place(value)
        except ValueError as problem:
            raise ValueError(f"standby: {problem}") from None


@attrs.frozen(kw_only=True)
class Failover:
    """Promote a standby after its primary, the service, is fenced or proven down.

    Where clients find the new primary is theirs, or a proxy's, to know: unless the service's address leads to it, the
    checks that follow fail, and so does the recovery.
    """

    kind: ClassVar[str] = "postgres"
    verb: ClassVar[str] = "failover"
    effect: ClassVar[Effect] = Effect.DISRUPTIVE

    #: Who is to become the primary: `host:port`, or a URL. What it leaves out (role, password, TLS) is as in the check.
    standby: str | Secret = attrs.field(validator=_standby, repr=masked)
    #: How the old primary is kept from writing: `stop` has the service's workload stop it, and looks that it did;
    #: `inspect` only looks that it is down already. Without either nothing is promoted.
    fence: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.in_(("stop", "inspect")))
    )
    #: Refuse where the last transaction the standby replayed is older than so many seconds. None (`off`): any age.
    max_age: float | None = seconds(None, 0.0, optional=True)

    async def run(self, context: ActionContext) -> str:
        """Promote it, return when it takes writes, and say so. Raises `ActionFailed` when it could not be done.

        A standby that is a primary already was promoted before: then nothing is done. One that was told to, and took
        too long, may become one yet: `probe` tells.
        """
        own, other = await self._addresses(context)
        async with session_for(context, other) as asked:
            if not await self._fit(asked, other):
                return f"{other.place} was the primary already"
            await self._fenced(context, own, other)
            with self._stopped_for(other):
                await _promote(context, asked, other)
        return f"{other.place} is the primary now" + ("; the old one was stopped first" if self.fence == "stop" else "")

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return DONE when the standby is a primary now; None while it is none (it may be about to), or is silent."""
        try:
            _, other = await self._addresses(context)
            async with session_for(context, other) as asked:
                return None if await asked.value("SELECT pg_is_in_recovery()") else Settled.DONE
        except ActionFailed:
            return None

    async def doctor(self, context: ActionContext) -> list[Problem]:
        """Return what is missing for a failover, without doing it."""
        try:
            _, other = await self._addresses(context)
            async with session_for(context, other) as asked:
                recovery, role, may, _ = await asked.row(FIT) or (False, "", False, None)
        except ActionFailed as problem:
            return [unproven("recovery_actions", f"failover: {problem}")]
        fence = self._no_fence(context)
        grant = f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO {role}; -- on the primary: it replicates"
        lacks = [
            (not recovery, f"{other.place} is no standby", "name one in `standby`"),
            (not may, f"{role} may not promote {other.place}", grant),
            (bool(fence), "the old primary cannot be fenced", fence),
        ]
        return [
            Problem(path="recovery_actions", message=f"failover: {what}", hint=remedy)
            for lacking, what, remedy in lacks
            if lacking
        ]

    async def _addresses(self, context: ActionContext) -> tuple[Address, Address]:
        """Return where the old primary and the standby are."""
        words = ""
        standby = ""
        try:
            standby = await context.blocking(self.standby.reveal) if isinstance(self.standby, Secret) else self.standby
        except (OSError, KeyError, ValueError) as problem:
            words = type(problem).__name__
        if words:
            raise ActionFailed(f"the standby's address cannot be read: {words}")
        own, other = await address_for(context), await address_for(context, instead=standby)
        if own.place == other.place:
            raise ActionFailed(f"the standby is the service itself, {own.place}: name another server")
        return own, other

    async def _fit(self, asked: Session, other: Address) -> bool:
        """Return whether there is something to do. Raises `ActionFailed` where it cannot be done."""
        recovery, role, may, age = await asked.row(FIT) or (True, "", False, None)
        if not recovery:
            return False
        if not may:
            raise ActionFailed(f"may not promote: GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO {role};")
        if self.max_age is not None and (age is None or age > self.max_age):
            seen = "never" if age is None else f"{age:.0f} s ago"
            raise ActionFailed(
                f"{other.place} replayed its last transaction {seen}, and {self.max_age:g} s are allowed (max_age)"
            )
        return True

    def _no_fence(self, context: ActionContext) -> str:
        """Return what is missing for a fence; empty where nothing is."""
        if self.fence is None:
            return (
                'no fence: write `fence = "stop"` (the service\'s workload stops the old primary first) '
                'or `fence = "inspect"` (it must be down already)'
            )
        if context.workload is None:
            return f'fence = "{self.fence}" needs a workload: give the service the unit or container of the old primary'
        if self.fence == "stop" and not isinstance(context.workload, Starting):
            return f'its workload, {type(context.workload).kind}, cannot stop it: use `fence = "inspect"`'
        return ""

    @contextmanager
    def _stopped_for(self, other: Address) -> Iterator[None]:
        """Have a failure say that we have stopped the old primary: nothing heals what was stopped on purpose."""
        import psycopg  # noqa: PLC0415  # the driver costs nothing until an action runs

        words = ""
        try:
            yield
        except (ActionFailed, OSError, psycopg.Error) as problem:
            if self.fence != "stop":
                raise
            words = " ".join(str(problem).split())[:300]
        if words:
            raise ActionFailed(
                f"{words}; the old primary was stopped for this and stays so: see to {other.place}, or start the old "
                "one again"
            )

    async def _fenced(self, context: ActionContext, own: Address, other: Address) -> None:
        """Make certain that the old primary is down. Raises `ActionFailed`."""
        if missing := self._no_fence(context):
            raise ActionFailed(missing)
        workload = context.workload
        assert workload is not None
        instance, expected = await workload.inspect(context), context.expected
        if expected is not None and expected.run is not Run.UNKNOWN and instance.id != expected.id:
            raise ActionFailed(f"{instance.id} is the old primary by now, not {expected.id} whose failure was seen")
        if self.fence == "stop":
            assert isinstance(workload, Starting)
            await workload.stop(context)
        with self._stopped_for(other):
            instance = await workload.inspect(context)
            if instance.run not in (DOWN if self.fence == "stop" else ENDED):
                raise ActionFailed(
                    f"the old primary is not down: its workload says {instance.run} {instance.detail}".strip()
                )
            if await _answers(context, own):
                raise ActionFailed(
                    f"its workload is down, and something still answers at {own.place}: which of the two is the "
                    "primary?"
                )


async def _promote(context: ActionContext, asked: Session, other: Address) -> None:
    """Promote who was asked, and wait for it as long as there is time to say so. Raises `ActionFailed`."""
    if not await asked.value("SELECT pg_promote(true, %s)", max(1, int(context.remaining - RESERVE))):
        raise ActionFailed(f"{other.place} was told to become the primary, and is none yet")


async def _answers(context: ActionContext, own: Address) -> bool:
    """Return whether anything takes a connection at an address and keeps it: what is frozen is not down."""
    talk = check_of(context).talk()
    try:
        async with asyncio.timeout(PATIENCE):
            await converse(talk, own)
    except TimeoutError:
        return inspect.getgeneratorstate(talk) != inspect.GEN_CREATED  # it took the connection and said nothing
    except (OSError, PeerClosed):
        return False
    return True
