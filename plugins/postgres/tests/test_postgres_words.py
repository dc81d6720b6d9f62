"""What is read and said without any server: addresses, the protocol's pieces, options, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from selfheal.core.model import Cause, CheckResult, Verdict
from selfheal.loading import load_plugins
from selfheal.secret import Secret
from selfheal.wire import rehearse
from selfheal_postgres import causes
from selfheal_postgres.address import read_place, read_url
from selfheal_postgres.check import PostgresCheck
from selfheal_postgres.facts import Facts
from selfheal_postgres.protocol import MOST_ITERATIONS, error_of

SECRET = "hunter2-canary-51d2e8"


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:p%40w@db.example:6000/shop",
        "postgres://u:p%40w@db.example:6000/shop",
        "postgresql+asyncpg://u:p%40w@db.example:6000/shop?pool_size=5",
        "postgresql://db.example/shop?user=u&password=p%40w&port=6000",
    ],
)
def test_a_url_is_read_as_applications_write_it(text: str) -> None:
    found = PostgresCheck(url=text).address()
    assert (found.host, found.port, found.user, found.password, found.database) == (
        "db.example",
        6000,
        "u",
        "p@w",
        "shop",
    )


def test_what_stands_beside_a_url_goes_before_it() -> None:
    check = PostgresCheck(
        url=f"postgresql://u:{SECRET}@db/shop?sslmode=disable",
        user="other",
        password=Secret("mine"),
        database="d",
        port=7,
        sslmode="require",
    )
    found = check.address()
    assert (found.user, found.password, found.database, found.port, found.sslmode) == (
        "other",
        "mine",
        "d",
        7,
        "require",
    )
    assert SECRET not in repr(check)


def test_the_folder_of_a_unix_socket_and_an_address_of_version_six() -> None:
    for check in (
        PostgresCheck(host="/run/postgresql", user="u"),
        PostgresCheck(url="postgresql:///u?host=/run/postgresql&user=u"),
        PostgresCheck(url="postgresql://u@%2Frun%2Fpostgresql/u"),
    ):
        assert check.target().path == "/run/postgresql/.s.PGSQL.5432"
        assert not check.address().secured
    six = PostgresCheck(url="postgresql://u@[::1]:6000").target()
    assert (six.host, six.port) == ("::1", 6000)
    assert read_place("[::1]:6000").host == "::1"
    assert read_place("/run/postgresql").host == "/run/postgresql"


def test_the_database_is_named_like_the_role_and_the_role_like_our_user() -> None:
    assert PostgresCheck(url="postgresql://u@db").address().database == "u"
    assert PostgresCheck(host="db").address().user


@pytest.mark.parametrize(
    "text",
    [
        f"mysql://u:{SECRET}@db/d",
        f"postgresql://u:{SECRET}@one,two/d",
        f"postgresql://u:{SECRET}@db:99999/d",
        f"postgresql://u:{SECRET}/@db/d",
        f"postgresql://u:{SECRET}@db/d?sslmode=maybe",
        f"postgresql://u:{SECRET} x@db/d",
        f"postgresql://u:{SECRET}[@db/d",
        f"postgresql://u:{SECRET}@/d?host=a,b",
    ],
)
def test_a_bad_url_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        PostgresCheck(url=text)
    assert SECRET not in str(refused.value)
    with pytest.raises(ValueError):
        read_url(text)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "postgresql://db", "host": "db"},
        {"host": "db", "port": 0},
        {"host": "db", "port": True},
        {"host": "db", "sslmode": "allow"},
        {"host": "db", "expect": "leader"},
        {"host": "db", "connections": 90},
        {"host": "db", "xid_age": 3_000_000_000},
        {"host": "db", "exhausted": "passing"},
        {"host": ""},
        {"host": "db", "password": "plain"},
        {"url": 5},
    ],
)
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        PostgresCheck(**options)


def test_a_secret_that_is_no_url_is_ours_and_is_not_shown() -> None:
    check = PostgresCheck(url=Secret(SECRET))
    with pytest.raises(ValueError) as refused:
        check.target()
    assert SECRET not in str(refused.value)
    result = last(check.talk())
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert SECRET not in repr(result)


def test_a_secret_that_cannot_be_read_is_ours() -> None:
    def read() -> str:
        raise FileNotFoundError(SECRET)

    result = last(PostgresCheck(host="db", password=Secret(read, source="file")).talk())
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert SECRET not in repr(result)


# -- the protocol ----------------------------------------------------------------------------------------------------


def last(talk: Generator[Any, bytes, CheckResult], *replies: bytes) -> CheckResult:
    """Return the last word of a talk that hears these replies."""
    said = list(rehearse(talk, *replies))[-1]
    assert isinstance(said, CheckResult), said
    return said


def message(kind: bytes, payload: bytes) -> bytes:
    return kind + pack("!i", len(payload) + 4) + payload


def plain(**options: Any) -> PostgresCheck:
    return PostgresCheck(url="postgresql://u@db.example/d", sslmode="disable", **options)


def error(state: str, text: str = "Kein Anschluß frei") -> bytes:
    return message(b"E", f"SFATAL\0VFATAL\0C{state}\0M{text}\0\0".encode())


@pytest.mark.parametrize(
    ("state", "verdict", "cause"),
    [
        ("57P03", Verdict.FAILING, Cause.STARTING),
        ("57P01", Verdict.FAILING, Cause.STARTING),
        ("53300", Verdict.WARNING, Cause.OVERLOADED),
        ("53200", Verdict.FAILING, Cause.OVERLOADED),
        ("53100", Verdict.WARNING, Cause.FULL),
        ("28P01", Verdict.FAILING, Cause.AUTH),
        ("28000", Verdict.FAILING, Cause.AUTH),
        ("3D000", Verdict.FAILING, Cause.CONFIG),
        ("25006", Verdict.FAILING, Cause.READ_ONLY),
        ("57014", Verdict.FAILING, Cause.TIMEOUT),
        ("XX000", Verdict.FAILING, Cause.ERROR),
        ("42883", Verdict.INCONCLUSIVE, Cause.CONFIG),
    ],
)
def test_the_code_decides_and_not_the_language_of_the_text(state: str, verdict: Verdict, cause: Cause) -> None:
    result = last(plain().talk(), error(state))
    assert (result.verdict, result.cause) == (verdict, cause)
    assert "Kein Anschluß frei" in result.summary


def test_answers_may_be_cut_anywhere() -> None:
    whole = message(b"R", pack("!i", 0)) + error("53300")
    pieces = [whole[at : at + 1] for at in range(len(whole))]
    assert last(plain().talk(), *pieces).cause is Cause.OVERLOADED


@pytest.mark.parametrize(
    "heard", [b"HTTP/1.1 400", b"\0" * 9, b"R" + pack("!i", 1 << 30), message(b"R", b""), b"Z\xff\xff\xff\xff"]
)
def test_nonsense_from_the_peer_is_an_error_or_nothing_we_speak(heard: bytes) -> None:
    result = last(plain().talk(), heard)
    assert result.verdict in (Verdict.FAILING, Verdict.INCONCLUSIVE)
    assert result.cause in (Cause.ERROR, Cause.CONFIG)


def test_a_server_cannot_make_us_compute_for_ever() -> None:
    check = plain(password=Secret(SECRET))
    talk = check.talk()
    next(talk)
    hello = talk.send(message(b"R", pack("!i", 10) + b"SCRAM-SHA-256\0\0"))
    assert isinstance(hello, bytes)
    nonce = hello.rpartition(b"r=")[2]
    first = b"r=" + nonce + b"more,s=c2FsdA==,i=" + str(MOST_ITERATIONS + 1).encode()
    with pytest.raises(StopIteration) as stop:
        talk.send(message(b"R", pack("!i", 11) + first))
    result = stop.value.value
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_a_server_that_does_not_know_the_password_is_not_believed() -> None:
    check = plain(password=Secret(SECRET))
    talk = check.talk()
    next(talk)
    hello = talk.send(message(b"R", pack("!i", 10) + b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))
    assert isinstance(hello, bytes)
    nonce = hello.rpartition(b"r=")[2]
    proof = talk.send(message(b"R", pack("!i", 11) + b"r=" + nonce + b"more,s=c2FsdA==,i=4096"))
    assert isinstance(proof, bytes)
    assert SECRET.encode() not in proof
    with pytest.raises(StopIteration) as stop:
        talk.send(message(b"R", pack("!i", 12) + b"v=bm90IHRoZSBwcm9vZg=="))
    assert (stop.value.value.verdict, stop.value.value.cause) == (Verdict.FAILING, Cause.AUTH)


@pytest.mark.parametrize("code", [2, 7, 9, 99])
def test_a_way_to_log_in_that_is_not_spoken_here_is_ours_and_says_what_to_do(code: int) -> None:
    result = last(plain().talk(), message(b"R", pack("!i", code)))
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert "deep = true" in result.summary


def test_bytes_behind_the_answer_about_tls_are_not_taken_for_the_server_s() -> None:
    """Who sits between could put them there before TLS begins (CVE-2021-23222)."""
    check = PostgresCheck(url="postgresql://u@db.example/d", sslmode="require")
    result = last(check.talk(), b"S" + error("28P01"))
    assert (result.verdict, result.cause) == (Verdict.FAILING, Cause.ERROR)


def test_an_error_is_read_whole() -> None:
    said = error_of(b"SFEHLER\0VERROR\0C53100\0MPlatte voll\0Fmd.c\0\0")
    assert (said.sqlstate, said.message, said.severity) == ("53100", "Platte voll", "ERROR")
    assert causes.from_server(said).cause is Cause.FULL


def test_an_answer_that_is_none_of_ours_is_a_value_error() -> None:
    for text in (None, "", "[]", "{}", '{"version": "15"}', "nonsense"):
        with pytest.raises(ValueError):
            Facts.of(text)


# -- the plugin --------------------------------------------------------------------------------------------------------


def test_it_is_found_by_its_names() -> None:
    tables = load_plugins()
    assert tables.checks["postgres"] is PostgresCheck
    assert {"postgres.reconnect", "postgres.failover"} <= set(tables.actions)
    assert tables.actions["postgres.reconnect"].__name__ == "Reconnect"
    assert tables.actions["postgres.failover"].__name__ == "Failover"


def test_s65_neither_loading_nor_the_light_check_needs_the_driver(tmp_path: Path) -> None:
    """Without psycopg the light check works, and a deep one is no outage."""
    (tmp_path / "psycopg.py").write_text("raise ImportError('it is not installed')")
    code = """
import anyio, sys
from selfheal.loading import load_plugins
tables = load_plugins()
check = tables.checks["postgres"](url="postgresql://u@127.0.0.1:1/d")
tables.actions["postgres.reconnect"](), tables.actions["postgres.failover"](standby="db2")
from tests.stack import asking
assert asking.light(check).cause.value == "unreachable"
assert "psycopg" not in sys.modules
deep = asking.deep(check)
assert (deep.verdict.value, deep.cause.value) == ("inconclusive", "config"), deep
"""
    root = Path(__file__).parents[3]
    given = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60.0, env=given)
