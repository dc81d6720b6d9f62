"""`postgres.reconnect` and `postgres.failover` on real servers: what they repair, what they refuse, what they say."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import anyio
import attrs
import pytest
from tests.servers import free_port, until
from tests.stack import asking
from tests.stack.postgres import ADMIN, ADMIN_PASSWORD, WATCHER, WATCHER_PASSWORD, Server
from tests.stack.postgres_workload import Postmaster

from selfheal.builtin.wire_checks import TcpCheck
from selfheal.core.model import Cause, Effect, Instance, Limits, Run, Settled, Verdict
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Context
from selfheal.secret import Secret
from selfheal.service import Service
from selfheal.shell.contexts import Act
from selfheal.shell.once import examine
from selfheal.shell.plugin_thread import Ending, Outcome
from selfheal.shell.roster import Roster
from selfheal.testing import servers
from selfheal.testing.stage import SERVICE, Stage
from selfheal_postgres.check import PostgresCheck
from selfheal_postgres.failover import Failover
from selfheal_postgres.reconnect import Reconnect

pytestmark = [pytest.mark.server, pytest.mark.real_time]


@attrs.frozen(kw_only=True)
class Onlooker:
    """A workload that says what it is told to, and can stop nothing."""

    kind: ClassVar[str] = "onlooker"
    run: Run

    async def inspect(self, context: Context) -> Instance:
        return Instance(id="1", run=self.run)

    async def restart(self, context: ActionContext) -> None:
        raise ActionFailed("it cannot")


def called(
    call: Callable[[ActionContext], Awaitable[object]],
    check: Any,
    *,
    workload: Any = None,
    timeout: float = 15.0,
    backend: str = "asyncio",
) -> Outcome:
    """Call a method of an action where selfheal calls it, and return how that ended."""

    async def run() -> Outcome:
        stage = Stage()
        act = Act(key="1/database/1/0", incident=1, check=check, workload=workload)
        try:
            return await stage.loops.run(
                SERVICE,
                lambda: call(stage.contexts.for_action(SERVICE, call, timeout, act)),
                timeout=timeout,
                kind="action",
            )
        finally:
            await stage.loops.aclose(2.0)
            stage.contexts.threads.close()

    return anyio.run(run, backend=backend)


def done(outcome: Outcome) -> object:
    assert outcome.ending is Ending.VALUE, outcome
    return outcome.value


def refused(outcome: Outcome) -> str:
    """Assert that it failed as an action fails, telling no password; return what it says."""
    assert isinstance(outcome.error, ActionFailed), outcome
    text = str(outcome.error)
    assert WATCHER_PASSWORD not in text
    assert ADMIN_PASSWORD not in text
    return text


def lacking(outcome: Outcome) -> dict[str, str]:
    """Return the remedies of what is lacking, by what is said of it."""
    value = done(outcome)
    assert isinstance(value, Sequence)
    for one in value:
        assert isinstance(one, Problem)
    return {one.message: one.hint for one in value}


def watching(server: Server, **options: Any) -> PostgresCheck:
    return PostgresCheck(url=Secret(server.url()), **options)


def sessions(server: Server, state: str) -> int:
    return int(
        server.ask(f"SELECT count(*) FROM pg_stat_activity WHERE state = '{state}' AND application_name = 'psql'")
    )


# -- reconnect -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_reconnect_logs_in_anew_twice_if_need_be(primary: Server, backend: str) -> None:
    for _ in range(2):
        assert done(called(Reconnect().run, watching(primary), backend=backend)) == "logged in anew"
    until(
        lambda: primary.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = 'watcher'") == "0",
        "nothing stays open",
    )


def test_reconnect_gives_up_the_kept_connection_of_the_check(primary: Server) -> None:
    check = watching(primary, keep=True)
    before = check._given_up[0]
    done(called(Reconnect().run, check))
    assert check._given_up[0] == before + 1


def test_a_log_in_that_fails_is_a_failure_and_says_why(server: Server) -> None:
    assert "refused" in refused(called(Reconnect().run, watching(server)))
    server.start()
    wrong = PostgresCheck(url=server.url(password=None), password=Secret("hunter2-wrong"))
    assert "password authentication failed" in refused(called(Reconnect().run, wrong))
    gone = PostgresCheck(url=server.url(database="nowhere"))
    assert "does not exist" in refused(called(Reconnect().run, gone))


def test_s38_the_address_is_the_one_of_the_service_s_own_check_and_no_other(primary: Server) -> None:
    assert "no `postgres`" in refused(called(Reconnect().run, TcpCheck(address=f"127.0.0.1:{primary.port}")))
    assert "no `postgres`" in refused(called(Reconnect().run, None))


def test_a_deadline_ends_it_against_a_frozen_server(primary: Server) -> None:
    primary.freeze(all_of_it=True)
    began = time.monotonic()
    outcome = called(Reconnect().run, watching(primary), timeout=0.5)
    assert outcome.ending is Ending.TIMED_OUT
    assert time.monotonic() - began < 2.0


def test_a_frozen_server_is_not_waited_for_as_long_as_the_step_may_take(primary: Server) -> None:
    primary.freeze(all_of_it=True)
    began = time.monotonic()
    assert "timeout" in refused(called(Reconnect(patience=2.0).run, watching(primary), timeout=60.0))
    assert time.monotonic() - began < 10.0


def test_abandoned_transactions_are_ended_and_nobody_else(primary: Server) -> None:
    primary.ask("CREATE TABLE t (n int)")
    primary.ask(f"GRANT ALL ON t TO {WATCHER}")
    primary.ask("CREATE ROLE doctor LOGIN PASSWORD 'hunter2-doctor'")
    primary.ask("GRANT pg_read_all_stats, pg_signal_backend TO doctor")
    primary.ask("CREATE DATABASE other")
    check = PostgresCheck(url=primary.url(user="doctor", password="hunter2-doctor"))
    with ExitStack() as crowd:
        crowd.enter_context(primary.session("BEGIN; INSERT INTO t VALUES (1)"))
        crowd.enter_context(primary.session("BEGIN; SELECT 1"))
        crowd.enter_context(primary.session("BEGIN; SELECT 1", user=ADMIN))
        crowd.enter_context(primary.session("BEGIN; SELECT 1", database="other"))
        crowd.enter_context(primary.session("SELECT 1"))
        assert (sessions(primary, "idle in transaction"), sessions(primary, "idle")) == (4, 1)
        done(called(Reconnect(end_idle_transactions=3600.0).run, check))
        assert sessions(primary, "idle in transaction") == 4
        until(lambda: oldest(primary) > 1.0, "they have been idle for a second")
        done(called(Reconnect(end_idle_transactions=1.0, roles=["doctor"]).run, check))
        assert sessions(primary, "idle in transaction") == 4
        said = str(done(called(Reconnect(end_idle_transactions=1.0, limit=1).run, check)))
        assert re.fullmatch(r"logged in anew; ended 1 sessions idle in a transaction: \d+ \(watcher\)", said)
        until(lambda: sessions(primary, "idle in transaction") == 3, "the oldest one is ended")
        done(called(Reconnect(end_idle_transactions=1.0).run, check))
        until(lambda: sessions(primary, "idle in transaction") == 2, "both of the watcher's are ended")
        assert "no session was idle" in str(done(called(Reconnect(end_idle_transactions=1.0).run, check)))
        left = primary.ask(
            "SELECT string_agg(usename || '@' || datname, ',' ORDER BY usename) FROM pg_stat_activity "
            "WHERE state = 'idle in transaction'"
        )
        assert left == f"{ADMIN}@postgres,{WATCHER}@other"
        assert sessions(primary, "idle") == 1
    assert primary.ask("SELECT count(*) FROM t") == "0"


def oldest(server: Server) -> float:
    """Return for how long the youngest idle transaction has been idle."""
    return float(
        server.ask(
            "SELECT min(extract(epoch FROM clock_timestamp() - state_change)) FROM pg_stat_activity "
            "WHERE state = 'idle in transaction'"
        )
    )


def test_without_the_right_to_end_sessions_it_refuses_with_the_grant(primary: Server) -> None:
    ends = Reconnect(end_idle_transactions=1.0)
    said = refused(called(ends.run, watching(primary)))
    assert "GRANT pg_read_all_stats, pg_signal_backend TO watcher;" in said
    missing = lacking(called(ends.doctor, watching(primary)))
    assert set(missing.values()) == {"GRANT pg_read_all_stats TO watcher;", "GRANT pg_signal_backend TO watcher;"}
    for remedy in missing.values():
        primary.ask(remedy)
    assert lacking(called(ends.doctor, watching(primary))) == {}
    done(called(ends.run, watching(primary)))
    assert lacking(called(Reconnect().doctor, watching(primary))) == {}


def test_ending_sessions_disturbs_more_than_logging_in() -> None:
    assert Reconnect().effect is Effect.GENTLE
    assert Reconnect(end_idle_transactions=60.0).effect is Effect.DISRUPTIVE


def test_nobody_can_tell_afterwards_whether_a_log_in_happened(primary: Server) -> None:
    assert done(called(Reconnect().probe, watching(primary))) is None


# -- failover --------------------------------------------------------------------------------------------------------


@pytest.fixture
def promoter(primary: Server) -> Server:
    """A primary whose watcher may promote its standbys."""
    primary.ask(f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO {WATCHER}")
    return primary


def named(standby: Server, **options: Any) -> Failover:
    return Failover(standby=f"127.0.0.1:{standby.port}", **options)


def recovering(server: Server) -> bool:
    return server.ask("SELECT pg_is_in_recovery()") == "t"


def test_s32_failover_stops_the_old_primary_then_promotes_the_standby_which_keeps_the_rows(
    promoter: Server, standby: Server
) -> None:
    promoter.ask("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    action, check, workload = named(standby, fence="stop"), watching(promoter), Postmaster(server=promoter)
    assert done(called(action.probe, check, workload=workload)) is None
    said = done(called(action.run, check, workload=workload))
    assert said == f"127.0.0.1:{standby.port} is the primary now; the old one was stopped first"
    assert not promoter.alive
    assert not recovering(standby)
    assert standby.ask("SELECT count(*) FROM t") == "1000"
    standby.ask("INSERT INTO t VALUES (0)")
    assert done(called(action.probe, check, workload=workload)) is Settled.DONE
    again = done(called(action.run, check, workload=workload))
    assert again == f"127.0.0.1:{standby.port} was the primary already"
    assert standby.ask("SELECT count(*) FROM t") == "1001"
    result = asking.light(PostgresCheck(url=standby.url(), expect="primary"))
    assert result.verdict is Verdict.PASSING
    assert asking.light(check).cause is Cause.UNREACHABLE  # the address does not lead there: no recovery is claimed


def test_s32_failover_after_the_primary_was_killed_keeps_what_had_been_replicated(
    promoter: Server, standby: Server
) -> None:
    promoter.ask("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    at = promoter.ask("SELECT pg_current_wal_lsn()")
    until(lambda: standby.ask(f"SELECT pg_last_wal_receive_lsn() >= '{at}'") == "t", "it has everything")
    promoter.kill()
    done(called(named(standby, fence="inspect").run, watching(promoter), workload=Postmaster(server=promoter)))
    assert standby.ask("SELECT count(*) FROM t") == "1000"


def test_who_stopped_the_old_primary_and_could_not_promote_says_that_it_is_down(
    promoter: Server, standby: Server
) -> None:
    """Nothing heals what was stopped on purpose: whoever is called must know that it was."""

    @attrs.frozen(kw_only=True)
    class Both(Postmaster):
        async def stop(self, context: ActionContext) -> None:
            await context.blocking(promoter.kill)
            await context.blocking(standby.kill)

    said = refused(called(named(standby, fence="stop").run, watching(promoter), workload=Both(server=promoter)))
    assert "the old primary was stopped for this and stays so" in said
    assert f"127.0.0.1:{standby.port}" in said


def test_a_promotion_that_takes_longer_than_the_step_is_told_in_its_own_words(
    promoter: Server, standby: Server
) -> None:
    """The process that would promote it is frozen: it has the order, and is no primary yet."""
    children = Path(f"/proc/{standby.pid}/task/{standby.pid}/children").read_text().split()
    (startup,) = (int(one) for one in children if b"startup" in Path(f"/proc/{one}/cmdline").read_bytes())
    os.kill(startup, signal.SIGSTOP)
    try:
        outcome = called(
            named(standby, fence="stop").run, watching(promoter), workload=Postmaster(server=promoter), timeout=5.0
        )
    finally:
        os.kill(startup, signal.SIGCONT)
    said = refused(outcome)
    assert "was told to become the primary, and is none yet; the old primary was stopped for this" in said
    until(lambda: not recovering(standby), "it becomes one after all")


@pytest.mark.parametrize(
    ("fence", "workload", "missing"),
    [
        (None, "postmaster", "no fence"),
        ("stop", None, "needs a workload"),
        ("inspect", None, "needs a workload"),
        ("stop", "onlooker", "cannot stop it"),
        ("inspect", "postmaster", "is not down"),
        ("inspect", "liar", "still answers"),
    ],
)
def test_s32_without_a_fence_it_refuses_says_what_is_missing_and_promotes_nothing(
    promoter: Server, standby: Server, fence: str | None, workload: str | None, missing: str
) -> None:
    runs = {"postmaster": Postmaster(server=promoter), "onlooker": Onlooker(run=Run.RUNNING)}
    runs["liar"] = Onlooker(run=Run.EXITED)
    outcome = called(named(standby, fence=fence).run, watching(promoter), workload=runs.get(workload or ""))
    assert missing in refused(outcome)
    assert recovering(standby)
    assert promoter.alive


def test_a_role_that_may_not_promote_is_told_the_grant_and_nothing_is_stopped(primary: Server, standby: Server) -> None:
    action, workload = named(standby, fence="stop"), Postmaster(server=primary)
    said = refused(called(action.run, watching(primary), workload=workload))
    grant = f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO {WATCHER};"
    assert grant in said
    assert primary.alive
    missing = lacking(called(action.doctor, watching(primary), workload=workload))
    ((said, remedy),) = missing.items()
    assert "may not promote" in said
    primary.ask(remedy.partition(" --")[0])
    until(
        lambda: lacking(called(action.doctor, watching(primary), workload=workload)) == {},
        "the grant has reached the standby",
    )
    unfenced = lacking(called(named(standby).doctor, watching(primary), workload=workload))
    assert "no fence" in unfenced["failover: the old primary cannot be fenced"]


def test_a_standby_that_is_down_silent_or_the_service_itself_is_refused_and_nothing_is_stopped(
    promoter: Server,
) -> None:
    workload = Postmaster(server=promoter)
    away = Failover(standby=f"127.0.0.1:{free_port()}", fence="stop")
    assert "refused" in refused(called(away.run, watching(promoter), workload=workload))
    assert done(called(away.probe, watching(promoter), workload=workload)) is None
    itself = Failover(standby=promoter.url(), fence="stop")
    assert "the service itself" in refused(called(itself.run, watching(promoter), workload=workload))
    with servers.hang() as address:
        outcome = called(
            Failover(standby=address, fence="stop").run, watching(promoter), workload=workload, timeout=0.5
        )
        assert outcome.ending is Ending.TIMED_OUT
    assert promoter.alive


def test_a_standby_that_has_replayed_nothing_for_too_long_is_refused(promoter: Server, standby: Server) -> None:
    promoter.ask("CREATE TABLE t ()")
    until(lambda: standby.ask("SELECT to_regclass('t') IS NOT NULL") == "t", "it has the table")
    until(
        lambda: standby.ask("SELECT clock_timestamp() - pg_last_xact_replay_timestamp() > '0.3 s'") == "t",
        "that was some time ago",
    )
    workload = Postmaster(server=promoter)
    old = named(standby, fence="stop", max_age=0.2)
    assert "max_age" in refused(called(old.run, watching(promoter), workload=workload))
    assert promoter.alive
    done(called(named(standby, fence="stop", max_age=3600.0).run, watching(promoter), workload=workload))


def test_a_deadline_ends_a_promotion_and_the_probe_tells_later_what_became_of_it(
    promoter: Server, standby: Server
) -> None:
    """The standby is frozen right after the log-in, as in the midst of a promotion."""
    promoter.kill()
    action, workload = named(standby, fence="inspect"), Postmaster(server=promoter)
    standby.freeze()  # its postmaster: whoever is let in later would be served
    outcome = called(action.run, watching(promoter), workload=workload, timeout=0.5)
    assert outcome.ending is Ending.TIMED_OUT
    standby.thaw()
    assert done(called(action.probe, watching(promoter), workload=workload)) is None
    done(called(action.run, watching(promoter), workload=workload))
    assert done(called(action.probe, watching(promoter), workload=workload)) is Settled.DONE


def test_the_standby_s_own_password_goes_before_the_check_s(promoter: Server, standby: Server) -> None:
    action = Failover(standby=Secret(standby.url(user=ADMIN, password=ADMIN_PASSWORD)), fence="stop")
    assert ADMIN_PASSWORD not in repr(action)
    wrong = PostgresCheck(url=promoter.url(password=None), password=Secret("hunter2-wrong"))
    done(called(action.run, wrong, workload=Postmaster(server=promoter)))
    assert not recovering(standby)


def test_nonsense_is_refused_when_it_is_written() -> None:
    for standby in ("", "a b", "http://example.org", 5432):
        with pytest.raises((TypeError, ValueError), match="standby"):
            Failover(standby=standby)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match="fence"):
        Failover(standby="db2:5432", fence="maybe")
    with pytest.raises(ValueError, match="end_idle_transactions"):
        Reconnect(end_idle_transactions=0.0)


# -- the check's own ---------------------------------------------------------------------------------------------------


def test_what_a_deep_check_may_not_see_is_told_with_the_grant(primary: Server) -> None:
    check = watching(primary)
    assert proved(check, deep=False) == {}, "the light check needs nothing"
    missing = proved(check, deep=True)
    assert list(missing.values()) == [f"GRANT pg_read_all_stats TO {WATCHER};"]
    primary.ask(*missing.values())
    assert proved(check, deep=True) == {}
    admin = PostgresCheck(url=primary.url(user=ADMIN, password=ADMIN_PASSWORD))
    assert "superuser" in str(proved(admin, deep=False))


def proved(check: PostgresCheck, *, deep: bool) -> dict[str, str]:
    """Return what the doctor of a check says, as `selfheal doctor` asks it."""
    database = Service("database", check=check, deep=deep)
    roster = Roster.of((database,), (), limits=Limits(), name="x", seed=0, key=b"", callbacks={}, actions={})
    found = anyio.run(examine, roster, ("database",))["database"]
    assert all(one.path == "services.database.check.user" for one in found), found
    return {one.message: one.hint for one in found}
