"""The deep check: the same question by psycopg, a durable commit, and who waits for whom.

Imported when a deep check runs for the first time; it brings the driver with it.
"""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any, Final

import psycopg

from selfheal import Cause, CheckResult, Verdict
from selfheal.errors import Problem
from selfheal.plugins import CheckContext, Context
from selfheal.wire import PeerClosed, failing, inconclusive
from selfheal_postgres.address import Address
from selfheal_postgres.check import UNUSABLE, PostgresCheck, unusable
from selfheal_postgres.converse import converse
from selfheal_postgres.driver import Session, broken, line, session, without_asking
from selfheal_postgres.facts import QUESTION, SPILL, Facts, judge

MORE: Final = """
SELECT json_build_object(
  'oldest_transaction_seconds',
      (SELECT round(max(extract(epoch FROM clock_timestamp() - xact_start))::numeric, 3) FROM pg_stat_activity
       WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()),
  'idle_in_transaction', (SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'),
  'waiting_for_locks', (SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'),
  'standby_lag_seconds',
      (SELECT round(max(extract(epoch FROM replay_lag))::numeric, 3) FROM pg_stat_replication)
)::text
"""
"""Of the sessions of other roles only a member of pg_read_all_stats is told."""

COMMIT: Final = "SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, 'selfheal', 'a check')"
"""A commit that must reach the disk: about 60 bytes of WAL that say nothing and change no table. It waits for no
standby, since a backend that waits for one cannot be made to give up in time."""


async def look(check: PostgresCheck, context: Context) -> CheckResult:
    """Return what a thorough look at the server finds."""
    exhausted = Verdict(check.exhausted)
    try:
        address, _ = await context.blocking(check.ready)
    except UNUSABLE as problem:
        return unusable(problem)
    inside = False
    try:
        async with session(address, context) as asked:
            inside = True
            return await _ask(check, asked)
    except psycopg.Error as problem:
        return broken(problem, exhausted) if inside else await _why_not(check, address, problem)


async def _why_not(check: PostgresCheck, address: Address, problem: psycopg.Error) -> CheckResult:
    """Return why a connection could not be made: what libpq keeps to itself, the server is asked for."""
    told = without_asking(problem)
    if told is not None:
        return told
    try:
        found = await converse(check.talk(), address)
    except PeerClosed:
        return failing(Cause.UNREACHABLE, line(problem))
    if found.verdict is Verdict.FAILING or found.cause is Cause.OVERLOADED:
        return found
    # The light road got in, or further than it can go: then it is about how the driver logs in, or was a moment ago.
    return inconclusive(f"the driver is not let in: {line(problem)}", Cause.CONFIG)


async def _ask(check: PostgresCheck, asked: Session) -> CheckResult:
    patience = check.patience()
    try:
        facts = Facts.of(await asked.value(patience + QUESTION))
    except ValueError:
        return inconclusive("it answers in another way than PostgreSQL", Cause.CONFIG)
    more: dict[str, Any] = json.loads(await asked.value(patience + MORE))
    if not (disk := facts.not_looked_at(check.disk)):
        await asked.rows(patience + SPILL)
        disk = "writable"
    if not facts.recovery and not facts.read_only:
        began = perf_counter()
        await asked.rows(patience + COMMIT)
        more["commit_seconds"] = round(perf_counter() - began, 6)
    return judge(facts, check, disk, more={key: value for key, value in more.items() if value is not None})


async def may_look(check: PostgresCheck, context: CheckContext) -> list[Problem]:
    """Return what the role of a check may not do. Raises `ConnectionError` where it cannot even log in."""
    address = await context.blocking(check.address)
    try:
        async with session(address, context) as asked:
            row = await asked.row(
                "SELECT quote_ident(current_user), rolsuper, pg_has_role('pg_read_all_stats', 'USAGE'), "
                "has_function_privilege('pg_logical_emit_message(boolean, text, text)', 'EXECUTE') "
                "FROM pg_roles WHERE rolname = current_user"
            )
    except psycopg.Error as problem:
        raise ConnectionError(f"{address.place}: {' '.join(str(problem).split())[:300]}") from None
    role, superuser, sees, commits = row or ("", False, False, False)
    emit = "pg_logical_emit_message(boolean, text, text)"
    lacks = [
        (
            superuser,
            "is a superuser, who is let in where nobody else is, and so does not see that all slots are taken",
            "CREATE ROLE selfheal LOGIN PASSWORD '…'; -- and name it in `user`",
        ),
        (
            context.deep and not sees,
            "does not see the sessions of other roles, so the deep check tells less of them",
            f"GRANT pg_read_all_stats TO {role};",
        ),
        (
            context.deep and not commits,
            "may not commit a message of its own, which the deep check does",
            f"GRANT EXECUTE ON FUNCTION {emit} TO {role};",
        ),
    ]
    return [
        Problem(path="check.user", message=f"{role} {what}", hint=remedy) for lacking, what, remedy in lacks if lacking
    ]
