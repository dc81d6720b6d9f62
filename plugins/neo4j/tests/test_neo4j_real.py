"""The check `neo4j` against the real Neo4j: each way it can be unwell is told from the others, and from being well."""

from __future__ import annotations

import datetime
import gc
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import trustme
from tests.servers import free_port, until
from tests.stack.asking import deep, left_by_deep_failures, left_by_light_failures, light, silence
from tests.stack.neo4j import PASSWORD, USER, Neo4j
from tests.stack.small_disk import fill, small_disk
from tests.stack.starved import starve

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.core.model import NOT_CURED
from selfheal.shell.lanes import KEPT_CHECKS
from selfheal.testing import servers
from selfheal.testing.probing import Turned
from selfheal.testing.stage import Stage
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


def tls_of(folder: Path) -> dict[str, str]:
    """Return the settings of a server that also speaks TLS, with the certificate in a folder."""
    return {
        "dbms__ssl__policy__bolt__enabled": "true",
        "dbms__ssl__policy__bolt__base_directory": str(folder),
        "dbms__ssl__policy__bolt__private_key": "private.key",
        "dbms__ssl__policy__bolt__public_certificate": "public.crt",
        "server__bolt__tls_level": "OPTIONAL",
    }


@pytest.fixture(scope="module")
def well(seed: Neo4j, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neo4j]:
    """One that stays well, with and without TLS: nobody here may harm it. Its certificate ends in three days."""
    folder = tmp_path_factory.mktemp("well")
    _certify(folder, 3.0)
    with copied(seed, folder, **tls_of(folder)) as one:
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


def test_a_password_changed_while_it_runs_is_auth_until_the_new_one_is_read(well: Neo4j, turned: Turned) -> None:
    user(well, "watcher")
    held = [GIVEN]
    one = check(well, user="watcher", password=Secret(lambda: held[0], source="env PASSWORD"))
    lane = turned.runner.lane(one, 5.0, None)
    is_(turned.run(lane), Verdict.PASSING, None)
    assert well.ask("ALTER USER watcher SET PASSWORD 'sesame-the-other' CHANGE NOT REQUIRED", "system")[0] == 202
    assert turned.runner.connections == 1
    is_(turned.run(lane), Verdict.FAILING, Cause.AUTH)  # the kept connection, which is logged in
    is_(deep(one), Verdict.FAILING, Cause.AUTH)
    held[0] = "sesame-the-other"
    is_(turned.run(lane), Verdict.PASSING, None)
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


def test_doctor_proves_login_and_sight_of_the_disk(well: Neo4j, tmp_path: Path) -> None:
    user(well, "surgeon")

    async def proven(**options: Any) -> list[str]:
        one = check(well, user="surgeon", **options)
        stage = Stage()
        found = await one.doctor(stage.contexts.for_check("neo4j", one, 5.0, deep=False))
        stage.contexts.threads.close()
        return [str(problem) for problem in found]

    right = Secret(GIVEN)
    assert anyio.run(partial(proven, password=right, data_path=tmp_path)) == []
    disk, login = anyio.run(partial(proven, password=Secret(WRONG), data_path=tmp_path / "nowhere"))
    assert disk.startswith("check.data_path: cannot be looked at: No such file")
    assert login.startswith("check.password: ")
    assert WRONG not in login
    (nobody,) = anyio.run(partial(proven, password=right, uri=f"bolt://127.0.0.1:{free_port()}"))
    assert nobody.startswith("check.uri: Connection refused")


# -- the process ----------------------------------------------------------------------------------------------------


def test_it_starts_freezes_takes_nobody_any_more_and_is_killed(seed: Neo4j, tmp_path: Path, turned: Turned) -> None:
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

        lane = turned.runner.lane(check(one), 1.0, None)
        is_(turned.run(lane), Verdict.PASSING, None)
        starve(one.pid, one.http_port)
        is_(light(check(one), 0.5), Verdict.FAILING, Cause.TIMEOUT)
        seen = [turned.run(lane).cause for _ in range(KEPT_CHECKS)]
        assert (seen[-1], set(seen[:-1])) == (Cause.TIMEOUT, {None})
        subprocess.run(["prlimit", "--pid", str(one.pid), "--nofile=4096:"], check=True)
        until(lambda: turned.run(lane).verdict is Verdict.PASSING, "it takes connections again")

        one.kill()
        began = time.monotonic()
        turned.turn(lambda: lane in turned.lost)
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's, see above
def test_one_is_read_only_has_an_expired_certificate_and_a_crowd(seed: Neo4j, tmp_path: Path) -> None:
    authority = _certify(tmp_path, -1.0)
    most = {"db__transaction__concurrent__maximum": "4"}
    with copied(seed, tmp_path, server__databases__read_only="neo4j", **most, **tls_of(tmp_path)) as one:
        one.start()
        late = check(one, uri=one.uri.replace("bolt:", "bolt+s:"), authority=authority)
        for result in (light(late), deep(late)):
            assert "expired" in is_(result, Verdict.FAILING, Cause.CONFIG).summary
        assert one.ask("CREATE (n)")[0] == 400
        is_(light(check(one)), Verdict.PASSING, None)
        assert "read-only" in is_(deep(check(one)), Verdict.WARNING, Cause.READ_ONLY).summary
        is_(deep(check(one, writable=False)), Verdict.PASSING, None)
        for _ in range(4):
            transaction(one)
        assert "MaximumTransactionLimitReached" in str(one.ask("RETURN 1"))
        is_(light(check(one)), Verdict.FAILING, Cause.OVERLOADED)
        is_(deep(check(one)), Verdict.FAILING, Cause.OVERLOADED)


def transaction(one: Neo4j, path: str = "/db/neo4j/tx", *statements: str) -> str:
    """Begin a transaction that stays open, or go on with one; return where it is."""
    body = json.dumps({"statements": [{"statement": each} for each in statements]})
    connection = http.client.HTTPConnection("127.0.0.1", one.http_port, timeout=20.0)
    try:
        connection.request("POST", path, body, one.headers())
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 201)
        return urlsplit(answer.getheader("Location") or path).path
    finally:
        connection.close()


def test_without_authentication_it_takes_a_load_until_its_memory_is_full(seed: Neo4j, tmp_path: Path) -> None:
    """While a large load runs all is well; one that takes all memory of transactions leaves none for a question."""
    settings = {"dbms__security__auth_enabled": "false", "dbms__memory__transaction__total__max": "11m"}
    with copied(seed, tmp_path, **settings) as one:
        one.start()
        anybody = Neo4jCheck(uri=one.uri, authentication=False, password=Secret(WRONG))
        assert anybody.password is None
        load = "UNWIND range(1, 50000) AS i CALL (i) {CREATE (:Thing {text: toString(i)})} IN TRANSACTIONS OF 1000 ROWS"
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(one.ask, load)
            while not running.done():
                is_(light(anybody), Verdict.PASSING, None)
            assert running.result()[0] == 202
        assert int(one.ask("MATCH (n:Thing) RETURN count(n)")[1]["data"]["values"][0][0]) == 50000
        is_(deep(anybody), Verdict.PASSING, None)

        much = "UNWIND range(1, 1500) AS i CREATE (:Thing {text: 'x' + toString(i)})"
        where = transaction(one)

        def full() -> bool:
            transaction(one, where, much)
            return "MemoryPoolOutOfMemory" in str(one.ask("RETURN 1"))

        until(full, "no memory is left for transactions")
        for result in (light(anybody), deep(anybody)):
            assert "memory" in is_(result, Verdict.FAILING, Cause.OVERLOADED).summary


@pytest.mark.slow
def test_a_disk_that_was_full_stops_its_database_until_there_is_room_and_it_is_restarted(
    seed: Neo4j, tmp_path: Path
) -> None:
    """It is online, as it says, and takes neither reads nor writes any more."""
    with small_disk(tmp_path / "disk", 300 * 1024, "neo4j") as disk, copied(seed, disk) as one:
        one.start()
        is_(light(check(one)), Verdict.PASSING, None)
        ballast = fill(disk)
        one.ask("UNWIND range(1, 2000) AS i CREATE (:Thing {text: 'x' + toString(i)})")

        def refuses() -> bool:
            _, said = one.ask("SHOW DATABASE neo4j YIELD currentStatus, statusMessage", "system")
            given_up: bool = said["data"]["values"] == [["online", "No space left on device"]]
            return given_up and "errors" in str(one.ask("MATCH (n) RETURN count(n)"))

        until(refuses, "it has given its database up")
        for freed in (False, True):
            if freed:
                ballast.unlink()
                assert refuses()
            for result in (light(check(one)), deep(check(one))):
                assert "No space left" in is_(result, Verdict.FAILING, Cause.FULL).summary
            seeing = check(one, data_path=disk)
            for result in (light(seeing), deep(seeing)):  # a restart is taken for the one cause, not for the other
                is_(result, Verdict.FAILING, Cause.ERROR if freed else Cause.FULL)
                assert (result.cause in NOT_CURED) is not freed
        one.kill()
        one.start()
        is_(light(check(one)), Verdict.PASSING, None)
        is_(deep(check(one)), Verdict.PASSING, None)


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
