"""The check `neo4j` against the real Neo4j: each way it can be unwell is told from the others, and from being well."""

from __future__ import annotations

import datetime
import gc
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.servers import until
from tests.stack.asking import deep, left_by_deep_failures, left_by_light_failures, light, silence
from tests.stack.neo4j import PASSWORD, USER, Neo4j

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal_neo4j.checks import Neo4jCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time]

WRONG = "hunter2-canary-51d2e8"
GIVEN = "sesame-the-first"


def is_(result: CheckResult, verdict: Verdict, cause: Cause | None) -> CheckResult:
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert WRONG not in repr(result)
    assert PASSWORD not in repr(result)
    return result


def check(neo4j: Neo4j, **options: Any) -> Neo4jCheck:
    return Neo4jCheck(**{"uri": neo4j.uri, "password": Secret(PASSWORD), **options})


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Neo4j:
    """A home with a password and databases: the others begin with a copy of it. Its stop in order would take 10 s."""
    one = Neo4j(tmp_path_factory.mktemp("seed"))
    try:
        one.start()
    finally:
        one.kill()
    return one


@contextmanager
def copied(seed: Neo4j, folder: Path, **settings: str) -> Iterator[Neo4j]:
    one = Neo4j(folder)
    one.settings = {name.replace("__", "."): value for name, value in settings.items()}
    one.copy_from(seed)
    try:
        yield one
    finally:
        one.kill()


def _certify(folder: Path, days: float) -> Path:
    """Write a certificate that ends in so many days, and its key; return the authority to trust."""
    now = datetime.datetime.now(datetime.UTC)
    authority = trustme.CA()
    ends = now + datetime.timedelta(days=days)
    leaf = authority.issue_cert("127.0.0.1", not_before=now - datetime.timedelta(days=30), not_after=ends)
    leaf.cert_chain_pems[0].write_to_path(str(folder / "public.crt"))
    leaf.private_key_pem.write_to_path(str(folder / "private.key"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return folder / "authority.pem"


@pytest.fixture(scope="module")
def well(seed: Neo4j, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neo4j]:
    """One that stays well, with and without TLS: nobody here may harm it. Its certificate ends in three days."""
    folder = tmp_path_factory.mktemp("well")
    _certify(folder, 3.0)
    policy = {
        "dbms__ssl__policy__bolt__enabled": "true",
        "dbms__ssl__policy__bolt__base_directory": str(folder),
        "dbms__ssl__policy__bolt__private_key": "private.key",
        "dbms__ssl__policy__bolt__public_certificate": "public.crt",
        "server__bolt__tls_level": "OPTIONAL",
    }
    with copied(seed, folder, **policy) as one:
        one.start()
        yield one


@pytest.fixture
def turned() -> Iterator[Turned]:
    turned = Turned()
    yield turned
    turned.runner.close()


def user(neo4j: Neo4j, name: str, *, change: str = "NOT REQUIRED") -> None:
    """Make a user of our own: several wrong passwords shut a user out for a while."""
    made = neo4j.ask(f"CREATE OR REPLACE USER {name} SET PASSWORD '{GIVEN}' CHANGE {change}", "system")
    assert made[0] == 202, made


# -- well ---------------------------------------------------------------------------------------------------------


def test_a_healthy_one_passes_and_says_what_it_is(well: Neo4j) -> None:
    result = is_(light(check(well)), Verdict.PASSING, None)
    assert result.details == {"server": "Neo4j/5.26.0", "database": "neo4j"}


def test_one_kept_connection_carries_one_check_after_another(well: Neo4j, turned: Turned) -> None:
    lane = turned.runner.lane(check(well), 5.0, None)
    for _ in range(5):
        is_(turned.run(lane), Verdict.PASSING, None)
    assert turned.runner.connections == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_deep_check_knows_every_database(well: Neo4j, backend: str) -> None:
    result = is_(deep(check(well), backend=backend), Verdict.PASSING, None)
    assert result.details == {
        "database": "neo4j",
        "version": "5.26.0",
        "edition": "community",
        "databases": 2,
        "status": "online",
        "access": "read-write",
        "role": "primary",
    }


# What the driver leaves of a handshake that failed (asyncio of Python 3.11 does not close it) is the collector's.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_over_tls_it_passes_and_a_certificate_that_ends_soon_is_a_warning(well: Neo4j) -> None:
    authority = well.home.parent / "authority.pem"
    uri = well.uri.replace("bolt:", "bolt+s:")
    is_(light(check(well, uri=uri, authority=authority, warn_before=3600.0)), Verdict.PASSING, None)
    is_(light(check(well, uri=uri, authority=authority)), Verdict.WARNING, Cause.CONFIG)
    is_(deep(check(well, uri=uri, authority=authority)), Verdict.PASSING, None)
    for unsure in (check(well, uri=uri), check(well, uri=uri, authority=Path("/nowhere.pem"))):
        assert light(unsure).cause is Cause.CONFIG
        assert deep(unsure).cause is Cause.CONFIG
    is_(light(check(well, uri=uri.replace("+s", "+ssc"))), Verdict.PASSING, None)
    is_(deep(check(well, uri=uri.replace("+s", "+ssc"))), Verdict.PASSING, None)
    gc.collect()


def test_a_certificate_that_has_ended_is_config() -> None:
    with servers.tls_expired() as server:
        one = Neo4jCheck(uri=f"bolt+s://{server.address}", authority=server.authority)
        assert "expired" in is_(light(one), Verdict.FAILING, Cause.CONFIG).summary
        assert "expired" in is_(deep(one), Verdict.FAILING, Cause.CONFIG).summary


# -- keys and databases ---------------------------------------------------------------------------------------------


def test_s63_a_wrong_or_missing_password_is_auth_and_is_not_shown(well: Neo4j) -> None:
    user(well, "stranger")
    one = check(well, user="stranger", password=Secret(WRONG))
    assert "Unauthorized" in is_(light(one), Verdict.FAILING, Cause.AUTH).summary
    is_(deep(one), Verdict.FAILING, Cause.AUTH)
    is_(light(check(well, password=None)), Verdict.FAILING, Cause.AUTH)
    is_(deep(check(well, password=None)), Verdict.FAILING, Cause.AUTH)
    assert WRONG not in repr(one)


def test_a_user_shut_out_after_wrong_passwords_is_auth_as_well(well: Neo4j) -> None:
    """Why a check wants a user of its own: Neo4j refuses the right password, too, from whoever it is."""
    user(well, "guest")
    until(lambda: "RateLimit" in light(check(well, user="guest", password=Secret(WRONG))).summary, "shut out")
    right = check(well, user="guest", password=Secret(GIVEN))
    assert "RateLimit" in is_(light(right), Verdict.FAILING, Cause.AUTH).summary
    is_(deep(right), Verdict.FAILING, Cause.AUTH)
    is_(light(check(well)), Verdict.PASSING, None)


def test_a_password_changed_while_it_runs_is_auth_until_the_new_one_is_read(well: Neo4j) -> None:
    user(well, "watcher")
    held = [GIVEN]
    one = check(well, user="watcher", password=Secret(lambda: held[0], source="env PASSWORD"))
    is_(light(one), Verdict.PASSING, None)
    assert well.ask("ALTER USER watcher SET PASSWORD 'sesame-the-other' CHANGE NOT REQUIRED", "system")[0] == 202
    is_(light(one), Verdict.FAILING, Cause.AUTH)
    is_(deep(one), Verdict.FAILING, Cause.AUTH)
    held[0] = "sesame-the-other"
    is_(light(one), Verdict.PASSING, None)
    is_(deep(one), Verdict.PASSING, None)


def test_a_password_that_must_be_changed_is_auth(well: Neo4j) -> None:
    user(well, "novice", change="REQUIRED")
    one = check(well, user="novice", password=Secret(GIVEN))
    assert "changed" in is_(light(one), Verdict.FAILING, Cause.AUTH).summary
    is_(deep(one), Verdict.FAILING, Cause.AUTH)


def test_a_password_that_cannot_be_read_says_nothing_about_neo4j(well: Neo4j) -> None:
    def absent() -> str:
        raise FileNotFoundError("/run/secrets/password")

    one = check(well, password=Secret(absent, source="file /run/secrets/password"))
    is_(light(one), Verdict.INCONCLUSIVE, Cause.CONFIG)
    is_(deep(one), Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_a_database_that_is_not_there_is_config(well: Neo4j) -> None:
    one = check(well, database="elsewhere")
    is_(light(one), Verdict.FAILING, Cause.CONFIG)
    is_(deep(one), Verdict.FAILING, Cause.CONFIG)


def test_the_port_of_http_is_told_from_that_of_bolt(well: Neo4j) -> None:
    one = check(well, uri=f"bolt://127.0.0.1:{well.http_port}")
    assert "7687" in is_(light(one), Verdict.FAILING, Cause.CONFIG).summary
    assert "7687" in is_(deep(one), Verdict.FAILING, Cause.CONFIG).summary


# -- the process ----------------------------------------------------------------------------------------------------


def test_it_starts_freezes_and_is_killed(seed: Neo4j, tmp_path: Path, turned: Turned) -> None:
    with copied(seed, tmp_path) as one:
        is_(deep(check(one)), Verdict.FAILING, Cause.UNREACHABLE)
        lane = turned.runner.lane(check(one), 2.0, None)
        one.begin()
        seen = [turned.run(lane).cause]
        end = time.monotonic() + 60.0
        while seen[-1] is not None and time.monotonic() < end:
            seen.append(turned.run(lane).cause)
        assert seen[0] is Cause.UNREACHABLE
        assert seen[-1] is None
        # The port is bound before it is served: for an instant a connection may be taken and not answered.
        assert set(seen) <= {Cause.UNREACHABLE, Cause.STARTING, Cause.TIMEOUT, None}

        one.freeze()
        is_(turned.run(lane), Verdict.FAILING, Cause.TIMEOUT)
        is_(light(check(one), 0.5), Verdict.FAILING, Cause.TIMEOUT)
        is_(deep(check(one), 0.5), Verdict.FAILING, Cause.TIMEOUT)
        one.thaw()
        until(lambda: turned.run(lane).verdict is Verdict.PASSING, "it goes on")

        one.kill()
        began = time.monotonic()
        turned.turn(lambda: turned.lost == [lane])
        assert time.monotonic() - began < 0.5
        is_(turned.run(lane), Verdict.FAILING, Cause.UNREACHABLE)


def test_a_database_that_cannot_be_opened_is_told_from_one_that_starts(seed: Neo4j, tmp_path: Path) -> None:
    """The server itself is well: a damaged file keeps one database from coming."""
    with copied(seed, tmp_path) as one:
        for name, size in (("neostore", 100), ("neostore.nodestore.db", 3)):
            os.truncate(one.home / "data/databases/neo4j" / name, size)
        one.begin()

        def status() -> object:
            _, said = one.ask("SHOW DATABASE neo4j YIELD currentStatus", "system")
            return said and said["data"]["values"][0][0]

        until(lambda: status() == "offline", "Neo4j gives the database up", 60.0)
        for result in (light(check(one)), deep(check(one))):
            is_(result, Verdict.FAILING, Cause.ERROR)
            assert "offline" in result.summary
            assert "Unable to start" in result.summary
            assert result.details["databases"] == 2


def test_one_that_may_not_be_written_is_read_only_and_a_crowd_is_overloaded(seed: Neo4j, tmp_path: Path) -> None:
    most = {"db__transaction__concurrent__maximum": "4"}
    with copied(seed, tmp_path, server__databases__read_only="neo4j", **most) as one:
        one.start()
        assert one.ask("CREATE (n)")[0] == 400
        is_(light(check(one)), Verdict.PASSING, None)
        assert "read-only" in is_(deep(check(one)), Verdict.WARNING, Cause.READ_ONLY).summary
        is_(deep(check(one, writable=False)), Verdict.PASSING, None)

        crowd = http.client.HTTPConnection("127.0.0.1", one.http_port, timeout=10.0)
        for _ in range(4):
            crowd.request("POST", "/db/neo4j/tx", '{"statements": []}', one.headers())
            answer = crowd.getresponse()
            answer.read()
            assert answer.status == 201
        crowd.close()
        is_(light(check(one)), Verdict.FAILING, Cause.OVERLOADED)
        is_(deep(check(one)), Verdict.FAILING, Cause.OVERLOADED)


# -- what is left behind --------------------------------------------------------------------------------------------


def test_s64_a_thousand_failing_checks_leave_nothing_open() -> None:
    with silence() as port:
        one = Neo4jCheck(uri=f"bolt://127.0.0.1:{port}", user=USER, password=Secret(WRONG))
        assert left_by_light_failures(one) == {}
        assert left_by_deep_failures(one) == {}


def greets_and_drips(client: socket.socket, stop: threading.Event) -> None:
    """Agree on Bolt 5.4 and then keep the connection alive, as a server may, without ever saying a word."""
    client.recv(4096)
    client.sendall(b"\0\0\x04\x05")
    while not stop.wait(0.01):
        client.sendall(b"\0")


@pytest.mark.parametrize(
    "fault",
    [
        servers.black_hole,
        servers.hang,
        lambda: servers.drip(b"\0\0\x04\x05" + b"\0" * 999, 0.2),
        lambda: servers.serve(greets_and_drips),
    ],
)
def test_silence_in_every_form_is_a_timeout(fault: Any) -> None:
    with fault() as address:
        one = Neo4jCheck(uri=f"bolt://{address}", password=Secret(WRONG))
        is_(light(one, 0.3), Verdict.FAILING, Cause.TIMEOUT)
        is_(deep(one, 0.3), Verdict.FAILING, Cause.TIMEOUT)
