"""What a check asks a PostgreSQL that let it in, and what the answer means. Both roads of the check ask the same.

Everything asked here may be asked by a role that can do nothing but log in; the versions are those still maintained
(13 and later). One statement, 1 to 2 ms on a warm server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, Protocol

import attrs

from selfheal import Cause, CheckResult, Verdict

QUESTION: Final = """
SELECT json_build_object(
  'version', current_setting('server_version'),
  'started', extract(epoch FROM pg_postmaster_start_time()),
  'recovery', pg_is_in_recovery(),
  'read_only', current_setting('transaction_read_only') = 'on',
  'slots', current_setting('max_connections')::int,
  'reserved', current_setting('superuser_reserved_connections')::int
            + coalesce(current_setting('reserved_connections', true)::int, 0),
  'used', (SELECT count(*) FROM pg_stat_activity
           WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND leader_pid IS NULL),
  'xid_age', (SELECT max(age(datfrozenxid)) FROM pg_database),
  'multixact_age', (SELECT max(mxid_age(datminmxid)) FROM pg_database),
  'temp_logged', current_setting('log_temp_files'),
  'receiver', CASE WHEN pg_is_in_recovery() THEN (SELECT count(*) FROM pg_stat_wal_receiver) END,
  'lag', CASE WHEN NOT pg_is_in_recovery() THEN NULL
              WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0
              ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END,
  'paused', CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END,
  'standbys', CASE WHEN NOT pg_is_in_recovery() THEN
      (SELECT count(*) FROM pg_stat_replication WHERE state IS NULL OR state IN ('streaming', 'catchup')) END,
  'synchronous', current_setting('synchronous_standby_names') <> '',
  'idle_slots', CASE WHEN NOT pg_is_in_recovery() THEN
      (SELECT count(*) FROM pg_replication_slots WHERE NOT active AND NOT temporary) END,
  'idle_slot', CASE WHEN NOT pg_is_in_recovery() THEN
      (SELECT slot_name FROM pg_replication_slots WHERE NOT active AND NOT temporary
       ORDER BY restart_lsn NULLS LAST LIMIT 1) END,
  'held_wal', CASE WHEN NOT pg_is_in_recovery() THEN
      (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) FROM pg_replication_slots
       WHERE NOT active AND NOT temporary) END
)::text
"""

SPILL: Final = (
    "SET LOCAL work_mem = '64kB'; "
    "SELECT count(*) FROM (SELECT n FROM generate_series(1, 4000) AS n ORDER BY n DESC OFFSET 0) AS sorted"
)
"""A sort that does not fit into its memory: it writes about 100 kB beside the data and removes it. Nothing else tells
a role without privileges that the disk is full, and it works on a standby as well."""

SPILLED_KB: Final = 256
"""A `log_temp_files` of less than this would log the sort, at every check: then it is left out."""


class Expectations(Protocol):
    """The options of the check that decide what an answer means."""

    @property
    def expect(self) -> str: ...
    @property
    def connections(self) -> float: ...
    @property
    def xid_age(self) -> int: ...
    @property
    def standby_lag(self) -> float | None: ...
    @property
    def min_standbys(self) -> int: ...
    @property
    def idle_slots(self) -> bool: ...


@attrs.frozen(kw_only=True)
class Facts:
    """One answer to `QUESTION`. Seconds, bytes and counts; None where it has no meaning in this role."""

    version: str
    started: float
    recovery: bool
    read_only: bool
    slots: int
    reserved: int
    used: int
    xid_age: int
    multixact_age: int
    temp_logged: str
    receiver: int | None
    lag: float | None
    paused: bool | None
    standbys: int | None
    synchronous: bool
    idle_slots: int | None
    idle_slot: str | None
    held_wal: float | None

    @classmethod
    def of(cls, text: str | None) -> Facts:
        """Read an answer. Raises ValueError when it is none, as from a server that only resembles PostgreSQL."""
        try:
            return cls(**json.loads(text or ""))
        except TypeError as problem:
            raise ValueError("the answer is not what was asked for") from problem

    def not_looked_at(self, asked_for: bool) -> str:
        """Return why the disk is left alone; empty where it may be looked at by `SPILL`."""
        number = self.temp_logged.removesuffix("kB")
        if not asked_for:
            return "not looked at"
        logged = number.isdigit() and int(number) <= SPILLED_KB
        return "not looked at: log_temp_files would log it" if logged else ""

    @property
    def role(self) -> str:
        return "standby" if self.recovery else "primary"

    @property
    def usable(self) -> int:
        """The connections that ordinary roles may have."""
        return max(1, self.slots - self.reserved)


def judge(facts: Facts, wanted: Expectations, disk: str, *, more: dict[str, Any] | None = None) -> CheckResult:
    """Return the result for a server that answered. `disk` says how its disk was looked at."""
    details: dict[str, Any] = {
        "role": facts.role,
        "version": facts.version,
        "connections": facts.used,
        "connections_max": facts.usable,
        "xid_age": facts.xid_age,
        "disk": disk,
    }
    if facts.recovery:
        details |= {"streaming": bool(facts.receiver), "replay_paused": facts.paused}
        details["lag_seconds"] = None if facts.lag is None else max(0.0, round(facts.lag, 3))
    else:
        details |= {"standbys": facts.standbys, "read_only": facts.read_only, "idle_slots": facts.idle_slots}
        if facts.held_wal:
            details["held_wal_bytes"] = int(facts.held_wal)
    details |= more or {}
    instance = f"{facts.started:.3f}"
    troubles = list(_troubles(facts, wanted))
    if not troubles:
        return CheckResult(Verdict.PASSING, details=details, instance=instance)
    summary = "; ".join(text for _, text in troubles)
    return CheckResult(Verdict.WARNING, cause=troubles[0][0], summary=summary, details=details, instance=instance)


def _troubles(facts: Facts, wanted: Expectations) -> Iterator[tuple[Cause, str]]:
    """Yield what is wrong with a server that answers, the worst first."""
    if wanted.expect == "primary" and facts.recovery:
        yield Cause.DEGRADED_CLUSTER, "a standby, where a primary is expected: a failover happened, or is due"
    elif wanted.expect == "standby" and not facts.recovery:
        yield Cause.DEGRADED_CLUSTER, "a primary, where a standby is expected: it was promoted, or there are two"
    elif facts.read_only and not facts.recovery and wanted.expect != "standby":
        yield Cause.READ_ONLY, "it is a primary, and new transactions are read-only (default_transaction_read_only)"
    if max(facts.xid_age, facts.multixact_age) > wanted.xid_age:
        what = "transaction" if facts.xid_age >= facts.multixact_age else "multixact"
        oldest = max(facts.xid_age, facts.multixact_age)
        yield Cause.FULL, f"{what} ids run out: the oldest is {oldest:,} old, of 2,147,483,647; vacuum is behind"
    if facts.used > wanted.connections * facts.usable:
        yield Cause.OVERLOADED, f"{facts.used} of {facts.usable} connections are in use"
    if facts.recovery:
        yield from _behind(facts, wanted)
    else:
        yield from _followed(facts, wanted)


def _behind(facts: Facts, wanted: Expectations) -> Iterator[tuple[Cause, str]]:
    if wanted.standby_lag is None:
        return
    if not facts.receiver:
        yield Cause.DEGRADED_CLUSTER, "no WAL is being received: its primary is gone, or it is cut off"
    if facts.lag is not None and facts.lag > wanted.standby_lag:
        paused = ", because replay is paused" if facts.paused else ""
        yield Cause.DEGRADED_CLUSTER, f"{facts.lag:.0f} s behind its primary{paused}"


def _followed(facts: Facts, wanted: Expectations) -> Iterator[tuple[Cause, str]]:
    standbys = facts.standbys or 0
    if standbys < wanted.min_standbys:
        yield Cause.DEGRADED_CLUSTER, f"{standbys} standbys follow it, where {wanted.min_standbys} should"
    elif facts.synchronous and not standbys:
        yield Cause.DEGRADED_CLUSTER, "every commit waits: synchronous_standby_names is set and no standby follows"
    if wanted.idle_slots and facts.idle_slots:
        held = f" and holds {facts.held_wal / 2**20:,.0f} MiB of WAL" if facts.held_wal else ""
        yield (
            Cause.DEGRADED_CLUSTER,
            f"{facts.idle_slots} replication slots are not in use; the oldest is {facts.idle_slot}{held}",
        )
