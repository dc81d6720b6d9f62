"""`postgres` against the real server: each way it can be unwell, proven by its own word first, on both roads."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from tests.servers import free_port, until
from tests.stack import asking
from tests.stack.postgres import ADMIN, ADMIN_PASSWORD, WATCHER, WATCHER_PASSWORD, Server, within

from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.secret import Secret
from selfheal.shell.lanes import KEPT_CHECKS
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal_postgres.check import PostgresCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time]

WRONG = "hunter2-canary-51d2e8"

Road: TypeAlias = "Callable[..., CheckResult]"


@pytest.fixture(params=["light", "deep"])
def road(request: pytest.FixtureRequest) -> Road:
    """The check as a conversation, and by psycopg."""
    found: Road = asking.light if request.param == "light" else asking.deep
    return found


@pytest.fixture
def turned() -> Iterator[Turned]:
    made = Turned()
    yield made
    made.runner.close()


def of(server: Server, **options: object) -> PostgresCheck:
    return PostgresCheck(url=Secret(server.url()), **options)  # type: ignore[arg-type]  # each test gives its own


def failing(result: CheckResult, cause: Cause) -> str:
    """Assert that it is FAILING for this reason, and return what it says."""
    assert (result.verdict, result.cause) == (Verdict.FAILING, cause), result
    return quiet(result)


def warning(result: CheckResult, cause: Cause) -> str:
    """Assert that it is a WARNING for this reason, and return what it says."""
    assert (result.verdict, result.cause) == (Verdict.WARNING, cause), result
    return quiet(result)


def passing(result: CheckResult) -> CheckResult:
    assert result.verdict is Verdict.PASSING, result
    quiet(result)
    return result


def quiet(result: CheckResult) -> str:
    """Assert that it tells no password, and return its summary."""
    for secret in (WRONG, WATCHER_PASSWORD, ADMIN_PASSWORD):
        assert secret not in repr(result)
    return result.summary


# -- well ------------------------------------------------------------------------------------------------------------


def test_a_healthy_one_passes_and_tells_what_is_worth_seeing(primary: Server, road: Road) -> None:
    result = passing(road(of(primary, expect="primary")))
    assert result.details["role"] == "primary"
    assert str(result.details["version"]).startswith("1")
    assert result.details["connections"] == 1
    assert result.details["connections_max"] == int(primary.ask("SHOW max_connections")) - 3
    assert result.details["disk"] == "writable"
    started = float(primary.ask("SELECT extract(epoch FROM pg_postmaster_start_time())"))
    assert float(str(result.instance)) == pytest.approx(started, abs=0.001)


def test_a_commit_is_proven_by_the_deep_check_and_changes_no_table(primary: Server) -> None:
    before = primary.ask("SELECT pg_current_wal_insert_lsn()")
    result = passing(asking.deep(of(primary)))
    assert isinstance(result.details["commit_seconds"], float)
    assert primary.ask(f"SELECT pg_current_wal_insert_lsn() > '{before}'") == "t"
    assert primary.ask("SELECT count(*) FROM pg_class WHERE relname LIKE '%selfheal%'") == "0"


def test_it_passes_over_a_unix_socket(primary: Server, road: Road) -> None:
    check = PostgresCheck(host=str(primary.folder), port=primary.port, user=WATCHER, database="postgres")
    passing(road(check))
    passing(road(PostgresCheck(url=f"postgresql://{WATCHER}@/postgres?host={primary.folder}&port={primary.port}")))


@pytest.mark.parametrize("method", ["scram-sha-256", "md5", "password", "trust"])
def test_it_logs_in_as_the_server_asks(primary: Server, road: Road, method: str) -> None:
    if method == "md5":
        primary.ask(f"SET password_encryption = 'md5'; ALTER ROLE {WATCHER} PASSWORD '{WATCHER_PASSWORD}'")
    (primary.data / "pg_hba.conf").write_text(f"local all all trust\nhost all all 127.0.0.1/32 {method}\n")
    primary.reload()
    passing(road(of(primary)))


def test_a_password_that_is_not_ascii_serves_on_both_roads(primary: Server, road: Road) -> None:
    password = "sés\u00a0ame \u2168"  # a no-break space and a Roman nine: SASLprep changes both
    primary.ask(f"ALTER ROLE {WATCHER} PASSWORD '{password}'")
    passing(road(PostgresCheck(url=primary.url(password=None), password=Secret(password))))
    failing(road(PostgresCheck(url=primary.url(password=None), password=Secret(password + "x"))), Cause.AUTH)


# -- not let in ------------------------------------------------------------------------------------------------------


def test_a_wrong_or_missing_password_is_no_outage_but_auth(primary: Server, road: Road) -> None:
    assert "password authentication failed" in failing(road(PostgresCheck(url=primary.url(password=WRONG))), Cause.AUTH)
    check = PostgresCheck(url=primary.url(password=None), password=Secret(WRONG))
    failing(road(check), Cause.AUTH)
    assert "password" in failing(road(PostgresCheck(url=primary.url(password=None))), Cause.AUTH)


def test_a_password_changed_while_it_runs_is_auth_until_the_secret_is_renewed(primary: Server, road: Road) -> None:
    held = [WATCHER_PASSWORD]
    check = PostgresCheck(url=primary.url(password=None), password=Secret(lambda: held[0], source="test"))
    passing(road(check))
    primary.ask(f"ALTER ROLE {WATCHER} PASSWORD '{WRONG}'")
    failing(road(check), Cause.AUTH)
    held[0] = WRONG
    passing(road(check))


def test_an_unknown_role_is_auth_and_an_unknown_database_is_config(primary: Server, road: Road) -> None:
    failing(road(PostgresCheck(url=primary.url(user="nobody_here"))), Cause.AUTH)
    assert "does not exist" in failing(road(PostgresCheck(url=primary.url(database="nowhere"))), Cause.CONFIG)


def test_a_role_that_may_not_connect_to_the_database_is_auth(primary: Server, road: Road) -> None:
    primary.ask("CREATE DATABASE closed")
    primary.ask("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
    failing(road(PostgresCheck(url=primary.url(database="closed"))), Cause.AUTH)


def test_an_address_that_the_server_does_not_let_in_is_auth(primary: Server, road: Road) -> None:
    (primary.data / "pg_hba.conf").write_text("local all all trust\n")
    primary.reload()
    assert "pg_hba.conf" in failing(road(of(primary)), Cause.AUTH)


# -- down, and coming back -------------------------------------------------------------------------------------------


def test_where_nobody_listens_it_is_unreachable(server: Server, road: Road) -> None:
    assert server.ready() == 2
    assert "refused" in failing(road(of(server)), Cause.UNREACHABLE)
    missing = PostgresCheck(host=str(server.folder), port=server.port, user=WATCHER, database="postgres")
    failing(road(missing), Cause.UNREACHABLE)


def test_a_killed_postmaster_is_unreachable(primary: Server, road: Road) -> None:
    passing(road(of(primary)))
    primary.kill()
    assert primary.ready() == 2
    failing(road(of(primary)), Cause.UNREACHABLE)


@pytest.mark.parametrize("how", ["its postmaster", "one backend"])
def test_recovery_after_a_kill_is_starting_and_ends_by_itself(primary: Server, road: Road, how: str) -> None:
    """A restart would only begin the recovery anew."""
    primary.ask("CREATE TABLE much AS SELECT n, repeat('x', 200) FROM generate_series(1, 400000) AS n")
    if how == "one backend":
        with primary.session("SELECT 1", user=ADMIN):
            os.kill(
                int(primary.ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'psql' AND state = 'idle'")),
                9,
            )
    else:
        primary.kill()
        primary.begin()
    held = until(lambda: rejecting_and_held(primary), "it recovers and rejects connections")
    assert (
        "(57P03)" in (said := failing(road(of(primary)), Cause.STARTING)) or "starting up" in said or "recovery" in said
    )
    os.kill(held, signal.SIGCONT)
    until(lambda: road(of(primary)).verdict is Verdict.PASSING, "it has recovered by itself", 30.0)
    assert primary.ask("SELECT count(*) FROM much") == "400000"


def rejecting_and_held(server: Server) -> int:
    """Stop the process that recovers, so that the state lasts; return it, or 0 where none recovers now."""
    for pid in within(server.data):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"startup" in title:
            os.kill(pid, signal.SIGSTOP)
            if server.ready() == 1:
                return pid
            os.kill(pid, signal.SIGCONT)
    return 0


def test_one_that_shuts_down_and_waits_for_its_clients_is_starting(primary: Server, road: Road) -> None:
    with primary.session("SELECT 1"):
        os.kill(primary.pid, signal.SIGTERM)
        until(lambda: primary.ready() == 1, "it shuts down")
        assert "shutting down" in failing(road(of(primary)), Cause.STARTING)


def test_a_standby_that_lets_nobody_in_is_starting(primary: Server, road: Road) -> None:
    closed = primary.copied_to_standby()
    try:
        closed.begin(hot_standby="off")
        until(lambda: closed.ready() == 1, "it follows and rejects connections")
        failing(road(of(closed)), Cause.STARTING)
    finally:
        closed.close()


def test_a_stopped_postmaster_accepts_and_says_nothing_which_is_a_timeout(primary: Server, road: Road) -> None:
    primary.freeze()
    began = time.monotonic()
    failing(road(of(primary), 0.5), Cause.TIMEOUT)
    assert time.monotonic() - began < 3.0
    primary.thaw()
    passing(road(of(primary)))


def test_a_stopped_backend_in_the_midst_of_an_answer_is_a_timeout(primary: Server, turned: Turned) -> None:
    lane = turned.runner.lane(of(primary, keep=True), 0.6, None)
    passing(turned.run(lane))
    primary.freeze(all_of_it=True)
    failing(turned.run(lane), Cause.TIMEOUT)
    primary.thaw()
    passing(turned.run(lane))


# -- serving, but ----------------------------------------------------------------------------------------------------


def test_no_free_slot_is_overloaded_a_warning_or_a_failure_as_asked_for(server: Server, road: Road) -> None:
    server.start(max_connections=6, superuser_reserved_connections=3, max_wal_senders=0, wal_level="minimal")
    with ExitStack() as crowd:
        for _ in range(3):
            crowd.enter_context(server.session("SELECT 1"))
        assert server.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = 'watcher'") == "3"
        assert "slot" in warning(road(of(server)), Cause.OVERLOADED)
        failing(road(of(server, exhausted="failing")), Cause.OVERLOADED)
    until(lambda: road(of(server)).verdict is Verdict.PASSING or None, "the crowd has left")


def test_almost_no_free_slot_warns(server: Server, road: Road) -> None:
    server.start(max_connections=8, superuser_reserved_connections=3, max_wal_senders=0, wal_level="minimal")
    with ExitStack() as crowd:
        for _ in range(3):
            crowd.enter_context(server.session("SELECT 1"))
        assert "4 of 5 connections" in warning(road(of(server, connections=0.7)), Cause.OVERLOADED)
        passing(road(of(server, connections=0.9)))


def test_one_without_memory_for_another_backend_is_overloaded(server: Server, road: Road) -> None:
    """ "Cannot allocate memory" is its word about itself: not ours about this machine."""
    server.start()
    for more in (0, 2**20):
        server.limit(**{"as": server.address_space + more})
        assert "memory" in server.refuses()
        assert "memory" in failing(road(of(server)), Cause.OVERLOADED)
    server.restart()
    passing(road(of(server)))


def test_one_that_cannot_fork_is_overloaded(server: Server, road: Road) -> None:
    """It says so in the protocol of long ago, and hangs up."""
    server.start()
    server.limit(nproc=1)
    assert "could not fork new process" in server.refuses()
    for mode in ("prefer", "disable"):
        assert "could not fork" in failing(road(of(server, sslmode=mode)), Cause.OVERLOADED)
    server.restart()
    passing(road(of(server)))


def test_while_a_large_load_runs_all_is_well(primary: Server, road: Road) -> None:
    load = "CREATE TABLE large AS SELECT n, md5(n::text) AS text FROM generate_series(1, 300000) AS n"
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(primary.ask, f"{load}; CREATE INDEX ON large (text)")
            while not running.done():
                passing(road(of(primary)))
            running.result()
        assert primary.ask("SELECT count(*) FROM large") == "300000"
    finally:
        primary.ask("DROP TABLE IF EXISTS large")


def test_a_primary_that_takes_no_writes_is_read_only(server: Server, road: Road) -> None:
    server.start(default_transaction_read_only="on")
    assert "read-only transaction" in server.refuses("CREATE TABLE t ()")
    assert "read-only" in warning(road(of(server)), Cause.READ_ONLY)


def test_a_full_disk_is_full_and_only_a_warning(server: Server, road: Road) -> None:
    """A PostgreSQL that is restarted on a full disk may not come back: nothing may restart it for this."""
    with server.on_small_disk(megabytes=160):
        server.start(wal_level="minimal", max_wal_senders=0, max_wal_size="64MB", min_wal_size="32MB")
        passing(road(of(server)))
        server.fill_disk()
        assert server.ask("SELECT 1") == "1"
        assert "No space left on device" in server.refuses("CREATE TABLE more AS SELECT generate_series(1, 100000)")
        assert "No space left" in warning(road(of(server)), Cause.FULL)
        blind = road(of(server, disk=False))
        assert blind.details.get("disk", "not looked at") == "not looked at"
        for ballast in server.data.glob("ballast*"):
            ballast.unlink()
        passing(road(of(server)))  # it goes on by itself when there is room


def test_a_server_that_logs_what_it_sorts_on_disk_is_not_asked_to(server: Server, road: Road) -> None:
    server.start(log_temp_files="0", log_min_messages="log")
    assert "log_temp_files" in str(passing(road(of(server))).details["disk"])
    assert "temporary file" not in server.log.read_text()
    server.restart(log_temp_files="50kB", log_min_messages="log")
    assert "log_temp_files" in str(passing(road(of(server))).details["disk"])
    server.restart(log_temp_files="10MB", log_min_messages="log")
    assert passing(road(of(server))).details["disk"] == "writable"
    assert "temporary file" not in server.log.read_text()


def test_old_transaction_ids_warn(primary: Server, road: Road) -> None:
    for _ in range(3):
        primary.ask("SELECT pg_current_xact_id()")
    assert int(primary.ask("SELECT max(age(datfrozenxid)) FROM pg_database")) > 3
    assert "ids run out" in warning(road(of(primary, xid_age=3)), Cause.FULL)


def test_a_replication_slot_that_nobody_uses_warns_with_what_it_holds(primary: Server, road: Road) -> None:
    primary.ask("SELECT pg_create_physical_replication_slot('forgotten', true)")
    primary.ask("CREATE TABLE much AS SELECT generate_series(1, 50000)")
    assert primary.ask("SELECT active FROM pg_replication_slots") == "f"
    said = warning(road(of(primary)), Cause.DEGRADED_CLUSTER)
    assert "forgotten" in said
    assert "MiB of WAL" in said
    passing(road(of(primary, idle_slots=False)))


# -- with a standby --------------------------------------------------------------------------------------------------


def test_each_role_passes_where_it_is_expected_and_warns_where_it_is_not(
    primary: Server, standby: Server, road: Road
) -> None:
    assert (primary.ask("SELECT pg_is_in_recovery()"), standby.ask("SELECT pg_is_in_recovery()")) == ("f", "t")
    result = passing(road(of(standby, expect="standby")))
    assert (result.details["role"], result.details["streaming"]) == ("standby", True)
    assert passing(road(of(primary, expect="primary", min_standbys=1))).details["standbys"] == 1
    assert "a primary is expected" in warning(road(of(standby, expect="primary")), Cause.DEGRADED_CLUSTER)
    assert "a standby is expected" in warning(road(of(primary, expect="standby")), Cause.DEGRADED_CLUSTER)
    passing(road(of(standby)))
    passing(road(of(primary)))


def test_a_standby_that_is_behind_warns(primary: Server, standby: Server, road: Road) -> None:
    primary.ask("CREATE TABLE t AS SELECT 1")
    standby.ask("SELECT pg_wal_replay_pause()")
    until(lambda: standby.ask("SELECT pg_get_wal_replay_pause_state()") == "paused", "replay is paused")
    primary.ask("INSERT INTO t VALUES (2)")
    until(
        lambda: standby.ask("SELECT pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()") == "t",
        "it has more to replay",
    )
    check = of(standby, expect="standby", standby_lag=0.05)
    said = until(lambda: (result := road(check)).verdict is Verdict.WARNING and result, "it is behind")
    assert "replay is paused" in warning(said, Cause.DEGRADED_CLUSTER)
    passing(road(of(standby, expect="standby", standby_lag=3600.0)))
    standby.ask("SELECT pg_wal_replay_resume()")
    until(lambda: road(check).verdict is Verdict.PASSING, "it has caught up")


def test_a_standby_whose_primary_is_gone_warns(primary: Server, standby: Server, road: Road) -> None:
    primary.kill()
    until(lambda: standby.ask("SELECT count(*) FROM pg_stat_wal_receiver") == "0", "it receives nothing")
    assert "no WAL is being received" in warning(road(of(standby, expect="standby")), Cause.DEGRADED_CLUSTER)
    passing(road(of(standby, expect="standby", standby_lag=None)))


def test_a_primary_without_the_standbys_it_should_have_warns(server: Server, road: Road) -> None:
    server.start()
    assert server.ask("SELECT count(*) FROM pg_stat_replication") == "0"
    assert "0 standbys" in warning(road(of(server, min_standbys=1)), Cause.DEGRADED_CLUSTER)
    server.restart(synchronous_standby_names="*")
    assert "every commit waits" in warning(road(of(server)), Cause.DEGRADED_CLUSTER)


# -- a peer that is none ---------------------------------------------------------------------------------------------


def at(address: str) -> PostgresCheck:
    return PostgresCheck(url=f"postgresql://{WATCHER}@{address}/postgres", password=Secret(WRONG))


def test_a_black_hole_is_a_timeout(road: Road) -> None:
    with servers.black_hole() as address:
        failing(road(at(address), 0.5), Cause.TIMEOUT)


def test_silence_is_a_timeout(road: Road) -> None:
    with servers.hang() as address:
        failing(road(at(address), 0.5), Cause.TIMEOUT)


def test_an_answer_that_drips_does_not_outlive_the_deadline(road: Road) -> None:
    hello = b"N" + b"R\0\0\0\x08\0\0\0\0" + b"S\0\0\0\x20" + b"x" * 28
    with servers.drip(hello, 0.1) as address:
        began = time.monotonic()
        failing(road(at(address), 0.6), Cause.TIMEOUT)
        assert time.monotonic() - began < 3.0


def test_what_speaks_something_else_is_an_error_and_no_pass(road: Road) -> None:
    for peer in (servers.garbage, servers.pong):
        with peer() as address:
            result = road(at(address), 2.0)
            assert result.verdict is Verdict.FAILING, result
            # libpq waits for the rest of what it takes for a long message
            assert result.cause is Cause.ERROR or road is asking.deep, result


def test_a_name_that_does_not_resolve_is_dns(road: Road) -> None:
    failing(road(PostgresCheck(url="postgresql://u@nowhere.invalid/d"), 5.0), Cause.DNS)


# -- a connection that is kept ---------------------------------------------------------------------------------------


def test_a_kept_connection_carries_ten_checks_and_then_logs_in_anew(primary: Server, turned: Turned) -> None:
    lane = turned.runner.lane(of(primary, keep=True), 2.0, None)
    seen = []
    for _ in range(KEPT_CHECKS + 1):
        passing(turned.run(lane))
        seen.append(primary.ask("SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE usename = 'watcher'"))
    assert len(set(seen[:KEPT_CHECKS])) == 1
    assert seen[-1] not in ("", seen[0])


def test_the_end_of_the_server_is_told_at_once_by_its_kept_connection(primary: Server, turned: Turned) -> None:
    lane = turned.runner.lane(of(primary, keep=True), 2.0, None)
    passing(turned.run(lane))
    primary.kill()
    began = time.monotonic()
    turned.turn(lambda: turned.lost == [lane])
    assert time.monotonic() - began < 0.5
    failing(turned.run(lane), Cause.UNREACHABLE)


def test_a_kept_connection_is_given_up_when_asked_to(primary: Server, turned: Turned) -> None:
    check = of(primary, keep=True)
    lane = turned.runner.lane(check, 2.0, None)
    passing(turned.run(lane))
    before = primary.ask("SELECT pid FROM pg_stat_activity WHERE usename = 'watcher'")
    check.give_up()
    passing(turned.run(lane))
    passing(turned.run(lane))
    until(
        lambda: primary.ask("SELECT pid FROM pg_stat_activity WHERE usename = 'watcher'") not in ("", before),
        "another connection is kept",
    )


# -- what it leaves behind -------------------------------------------------------------------------------------------


def test_a_thousand_failing_light_checks_leave_nothing_behind() -> None:
    with asking.silence() as port:
        assert asking.left_by_light_failures(at(f"127.0.0.1:{port}")) == {}


@pytest.mark.slow
def test_a_thousand_failing_deep_checks_leave_nothing_behind() -> None:
    with asking.silence() as port:
        assert asking.left_by_deep_failures(at(f"127.0.0.1:{port}")) == {}


def test_s64_a_check_that_fails_after_connecting_leaves_no_session_on_the_server(primary: Server, road: Road) -> None:
    primary.freeze(all_of_it=True)
    for _ in range(3):
        failing(road(of(primary), 0.3), Cause.TIMEOUT)
    primary.thaw()
    until(
        lambda: primary.ask("SELECT count(*) FROM pg_stat_activity WHERE usename = 'watcher'") == "0",
        "the server has let the sessions go",
    )


def test_s63_the_password_stands_in_no_repr() -> None:
    check = PostgresCheck(url=f"postgresql://u:{WRONG}@localhost:{free_port()}/d", password=Secret(WRONG))
    assert WRONG not in repr(check) + str(check)
    assert WRONG not in repr(check.address())
