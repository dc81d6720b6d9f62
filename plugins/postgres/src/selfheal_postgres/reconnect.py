"""`postgres.reconnect`: log in anew; and, where it is asked for, end sessions that hold a transaction open and idle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Final

import attrs

from selfheal import Effect, Settled
from selfheal.builtin.options import seconds, whole
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext
from selfheal_postgres.acting import check_of, session_for
from selfheal_postgres.check import unproven

if TYPE_CHECKING:
    from selfheal_postgres.driver import Session

IDLE: Final = """
SELECT a.pid, r.rolname FROM pg_stat_activity AS a JOIN pg_roles AS r ON r.oid = a.usesysid
WHERE a.backend_type = 'client backend'
  AND a.state IN ('idle in transaction', 'idle in transaction (aborted)')
  AND a.state_change < clock_timestamp() - make_interval(secs => %s)
  AND a.datname = current_database() AND a.pid <> pg_backend_pid()
  AND a.application_name NOT LIKE 'selfheal%%'
  AND NOT r.rolsuper AND NOT r.rolreplication
  AND (%s::text[] = '{}' OR r.rolname::text = ANY (%s::text[]))
ORDER BY a.state_change LIMIT %s
"""
"""Whom it may be: clients of the check's own database, never ourselves, a superuser or one who may replicate."""

STILL_IDLE: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = %s AND state IN ('idle in transaction', 'idle in transaction (aborted)')
  AND state_change < clock_timestamp() - make_interval(secs => %s)
"""
"""Asked again of each, at the moment it is ended: meanwhile it may have gone on, or be another one with its number."""

NAMED: Final = 5
"""Sessions whose numbers and roles are told."""

MAY: Final = """
SELECT quote_ident(current_user), pg_has_role('pg_read_all_stats', 'USAGE'), pg_has_role('pg_signal_backend', 'USAGE')
"""


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


@attrs.frozen(kw_only=True)
class Reconnect:
    """Log in anew, which proves that it is possible, and end abandoned transactions if asked to.

    A kept connection of the check is given up and replaced. The pools of the application are its own to reset: see
    `selfheal_postgres.pools` for a callback, or give the step an HTTP hook.
    """

    kind: ClassVar[str] = "postgres"
    verb: ClassVar[str] = "reconnect"

    #: Seconds after which a session that is idle within a transaction is ended; None (`off`) ends none.
    end_idle_transactions: float | None = seconds(None, 1.0, optional=True)
    #: Roles whose sessions may be ended; all but superusers and replication by default.
    roles: Sequence[str] = attrs.field(
        default=(),
        converter=_names,
        validator=attrs.validators.deep_iterable(attrs.validators.instance_of(str)),
    )
    #: Seconds the server may take to let us in. One that is frozen never does, and is not worth a minute of an outage:
    #: the next step can help it.
    patience: float = seconds(5.0, 2.0, 300.0)
    #: Sessions one call may end, the oldest first.
    limit: int = whole(50, 1, 10_000)

    @property
    def effect(self) -> Effect:
        """Logging in disturbs nobody; ending sessions rolls back what they had begun."""
        return Effect.GENTLE if self.end_idle_transactions is None else Effect.DISRUPTIVE

    async def run(self, context: ActionContext) -> str:
        """Log in and ask one thing, and say whose session was ended.

        Raises `ActionFailed` when that, or what was asked for, could not be done.
        """
        check_of(context).give_up()
        async with session_for(context, within=self.patience) as asked:
            await asked.value("SELECT 1")
            if self.end_idle_transactions is None:
                return "logged in anew"
            return await self._end_idle(asked, self.end_idle_transactions)

    async def _end_idle(self, asked: Session, age: float) -> str:
        role, sees, signals = await asked.row(MAY) or ("", False, False)
        missing = [name for name, has in (("pg_read_all_stats", sees), ("pg_signal_backend", signals)) if not has]
        if missing:
            raise ActionFailed(f"may not end sessions of other roles: GRANT {', '.join(missing)} TO {role};")
        names = list(self.roles)
        ended: list[str] = []
        for pid, name in await asked.rows(IDLE, age, names, names, self.limit):
            if await asked.rows(STILL_IDLE, pid, age) == [(True,)]:  # else it has gone on meanwhile, or away
                ended.append(f"{pid} ({name})")
        if not ended:
            return "logged in anew; no session was idle in a transaction for so long"
        more = ", …" if len(ended) > NAMED else ""
        return f"logged in anew; ended {len(ended)} sessions idle in a transaction: {', '.join(ended[:NAMED])}{more}"

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return None: a log-in leaves no trace, and whose session was ended by whom is not kept by the server."""
        return None

    async def doctor(self, context: ActionContext) -> list[Problem]:
        """Return what the role may not do of what is configured, without doing it."""
        try:
            async with session_for(context) as asked:
                role, sees, signals = await asked.row(MAY) or ("", False, False)
        except ActionFailed as problem:
            return [unproven("recovery_actions", f"reconnect: {problem}")]
        if self.end_idle_transactions is None:
            return []
        lacks = [
            (not sees, "does not see whether the sessions of other roles are idle", "pg_read_all_stats"),
            (not signals, "may not end sessions of other roles", "pg_signal_backend"),
        ]
        return [
            Problem(path="recovery_actions", message=f"reconnect: {role} {what}", hint=f"GRANT {name} TO {role};")
            for lacking, what, name in lacks
            if lacking
        ]
