"""What the answers mean that a real Neo4j is hard to bring to, the bounds of Bolt, and what the options refuse."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stack.asking import deep, light

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.config import configure
from selfheal.loading import load_plugins
from selfheal.wire import rehearse
from selfheal_neo4j.bolt import FAILURE, IGNORED, RECORD, SUCCESS, NotBolt, Unpacked, message, pack
from selfheal_neo4j.checks import Neo4jCheck, judge_databases, refused

UNAUTHORIZED = "Neo.ClientError.Security.Unauthorized"
NEWEST = b"\0\0\x04\x05"
HELLO = message(SUCCESS, {"server": "Neo4j/5.26.0"}) + message(SUCCESS, {})
ONE = message(SUCCESS, {"fields": ["1"]}) + message(RECORD, [1]) + message(SUCCESS, {})
GONE = message(FAILURE, {"code": "Neo.TransientError.General.DatabaseUnavailable", "message": "?"})
FIELDS = ["name", "address", "access", "requestedStatus", "currentStatus", "statusMessage", "writer", "role"]


def row(name: str, status: str, **more: Any) -> list[Any]:
    known = {"address": "a:7687", "access": "read-write", "requestedStatus": "online", "statusMessage": "", **more}
    return [{"name": name, "currentStatus": status, "writer": True, "role": "primary", **known}[one] for one in FIELDS]


def said(*replies: bytes) -> CheckResult:
    """Return what a check says that hears these answers in turn."""
    last = [*rehearse(Neo4jCheck(uri="bolt://neo4j", password=Secret("sesame"), keep=False).talk(), *replies)][-1]
    assert isinstance(last, CheckResult)
    return last


@pytest.mark.parametrize(
    ("replies", "verdict", "cause", "word"),
    [
        ([NEWEST, HELLO, ONE], Verdict.PASSING, None, ""),
        ([b"\0\0\0\x05", message(SUCCESS, {}), ONE], Verdict.PASSING, None, ""),  # 5.0 logs in with its greeting
        ([b"\0\0\0\0"], Verdict.FAILING, Cause.ERROR, "none of Bolt"),
        ([b"\0\0\x07\x09"], Verdict.FAILING, Cause.ERROR, "a version we offered"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], Verdict.FAILING, Cause.CONFIG, "7687"),
        ([NEWEST, HELLO, message(SUCCESS, {}) + message(SUCCESS, {})], Verdict.FAILING, Cause.ERROR, "RETURN 1"),
        ([NEWEST, HELLO, message(IGNORED)], Verdict.FAILING, Cause.ERROR, "not Bolt"),
        (
            [NEWEST, HELLO, GONE, message(IGNORED) + message(SUCCESS, {}), GONE],
            Verdict.FAILING,
            Cause.STARTING,
            "not available yet",
        ),
    ],
)
def test_each_answer_has_its_meaning(replies: list[bytes], verdict: Verdict, cause: Cause | None, word: str) -> None:
    result = said(*replies)
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert word in result.summary


LOGON = message(SUCCESS, {}) * 2


def test_at_each_check_one_logs_in_again_on_the_same_connection() -> None:
    talk = Neo4jCheck(uri="bolt://neo4j", password=Secret("sesame")).talk()
    heard = [*rehearse(talk, NEWEST, HELLO, ONE, LOGON, ONE, message(FAILURE, {"code": UNAUTHORIZED}))]
    results = [one for one in heard if isinstance(one, CheckResult)]
    assert [(one.verdict, one.cause) for one in results] == [
        (Verdict.PASSING, None),
        (Verdict.PASSING, None),
        (Verdict.FAILING, Cause.AUTH),
    ]


def test_where_one_cannot_log_in_again_one_asks_on() -> None:
    old = [b"\0\0\0\x05", message(SUCCESS, {})]
    heard = [
        *itertools.islice(rehearse(Neo4jCheck(uri="bolt://neo4j", password=Secret("s")).talk(), *old, ONE, ONE), 6)
    ]
    assert [one.verdict for one in heard if isinstance(one, CheckResult)] == [Verdict.PASSING] * 2
    assert b"\x6b" not in b"".join(one for one in heard if isinstance(one, bytes))


def test_an_answer_may_come_byte_by_byte() -> None:
    whole = NEWEST + HELLO
    assert said(*(whole[at : at + 1] for at in range(len(whole))), ONE).verdict is Verdict.PASSING


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("Neo.ClientError.Security.Forbidden", Cause.AUTH),
        ("Neo.ClientError.Security.Whatever", Cause.AUTH),
        ("Neo.ClientError.Statement.SyntaxError", Cause.CONFIG),
        ("Neo.TransientError.General.MemoryPoolOutOfMemoryError", Cause.OVERLOADED),
        ("Neo.TransientError.Request.NoThreadsAvailable", Cause.OVERLOADED),
        ("Neo.ClientError.Transaction.TransactionTimedOut", Cause.TIMEOUT),
        ("Neo.DatabaseError.General.UnknownError", Cause.ERROR),
        ("nonsense", Cause.ERROR),
    ],
)
def test_each_refusal_has_its_cause(code: str, cause: Cause) -> None:
    result = refused(code)
    assert (result.verdict, result.cause) == (Verdict.FAILING, cause)
    assert code in result.summary


@pytest.mark.parametrize(
    ("rows", "verdict", "cause", "word"),
    [
        ([row("neo4j", "online")], Verdict.PASSING, None, ""),
        ([row("other", "online")], Verdict.FAILING, Cause.CONFIG, "no database"),
        ([row("neo4j", "starting")], Verdict.FAILING, Cause.STARTING, "starting"),
        ([row("neo4j", "offline", requestedStatus="offline")], Verdict.FAILING, Cause.CONFIG, "a person stopped"),
        ([row("neo4j", "dirty", statusMessage="broken page")], Verdict.FAILING, Cause.ERROR, "broken page"),
        ([row("neo4j", "online"), row("logs", "offline")], Verdict.WARNING, Cause.DEGRADED_CLUSTER, "logs on a:7687"),
        ([row("neo4j", "online"), row("neo4j", "store copying")], Verdict.WARNING, Cause.DEGRADED_CLUSTER, "copying"),
        ([row("neo4j", "online"), row("old", "offline", requestedStatus="offline")], Verdict.PASSING, None, ""),
        ([row("neo4j", "online", writer=False)], Verdict.WARNING, Cause.READ_ONLY, "not be written"),
        ([row("neo4j", "online", writer=False), row("neo4j", "online")], Verdict.PASSING, None, ""),
    ],
)
def test_each_state_of_a_database_has_its_meaning(
    rows: list[list[Any]], verdict: Verdict, cause: Cause | None, word: str
) -> None:
    result = judge_databases(FIELDS, rows, "neo4j", writable=True)
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert word in result.summary


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=20), inner, max_size=20),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_packed_is_unpacked(value: Any) -> None:
    assert Unpacked(pack(value)).value() == value


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_no_bolt(data: bytes) -> None:
    with contextlib.suppress(NotBolt):
        Unpacked(data).value()


@pytest.mark.parametrize(
    "data", [b"\x91" * 99_999, b"\xd6\xff\xff\xff\xff", b"\xd2\x7f\xff\xff\xff", b"\xda\xff\xff\xff\xff"]
)
def test_a_value_that_claims_too_much_is_no_bolt(data: bytes) -> None:
    with pytest.raises(NotBolt):
        Unpacked(data).value()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"uri": "http://neo4j:7474"}, "bolt://"),
        ({"uri": "bolt://me:secret@neo4j"}, "would be printed"),
        ({"uri": "bolt://neo4j/db"}, "no path"),
        ({"uri": "bolt://neo4j:99999"}, "65535"),
        ({"uri": 7687}, "neither text nor a secret"),
        ({"user": ""}, "user"),
        ({"password": "plain"}, "password"),
        ({"database": "no such"}, "database"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_word(options: dict[str, Any], word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        Neo4jCheck(**{"uri": "bolt://neo4j", **options})


def test_nothing_of_the_driver_is_imported_for_a_light_check() -> None:
    code = "import sys, selfheal_neo4j.checks; sys.exit('neo4j' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_s65_without_the_driver_a_deep_check_could_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neo4j", None)
    result = deep(Neo4jCheck(uri="bolt://127.0.0.1:9", password=Secret("sesame")))
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


@pytest.mark.parametrize(
    ("uri", "port", "tls", "verified"),
    [
        ("bolt://graph", 7687, False, True),
        ("neo4j://graph:17687\n", 17687, False, True),
        ("bolt+s://graph", 7687, True, True),
        ("neo4j+s://graph", 7687, True, True),
        ("bolt+ssc://graph", 7687, True, False),
        ("neo4j+ssc://graph/", 7687, True, False),
    ],
)
def test_an_address_and_a_user_are_read_from_the_variables_of_the_application(
    monkeypatch: pytest.MonkeyPatch, uri: str, port: int, tls: bool, verified: bool
) -> None:
    monkeypatch.setenv("NEO4J_URI", uri)
    monkeypatch.setenv("NEO4J_USER", "steward")
    monkeypatch.setenv("NEO4J_PASSWORD", "sesame")
    table: dict[str, Any] = {"kind": "neo4j", "uri": {"env": "NEO4J_URI"}}
    table |= {"user": {"env": "NEO4J_USER"}, "password": {"env": "NEO4J_PASSWORD"}}
    (service,) = configure({"services": {"neo4j": {"check": table}}}, tables=load_plugins(["neo4j"])).services
    assert isinstance(service.check, Neo4jCheck)
    target = service.check.target()
    assert (target.host, target.port, target.tls is not None) == ("graph", port, tls)
    assert target.tls is None or target.tls.verify is verified
    assert service.check.credentials() == {"scheme": "basic", "principal": "steward", "credentials": "sesame"}


@pytest.mark.parametrize("option", ["uri", "user", "password"])
def test_an_option_that_cannot_be_read_says_nothing_about_neo4j(option: str) -> None:
    options: dict[str, Any] = {"uri": "bolt://127.0.0.1:9", "password": Secret("sesame")}
    options[option] = Secret(lambda: os.environ["NEO4J_NOT_SET"], source="env NEO4J_NOT_SET")
    one = Neo4jCheck(**options)
    assert deep(one).verdict is Verdict.INCONCLUSIVE
    found = light(one) if option == "uri" else [*rehearse(one.talk())][-1]
    assert isinstance(found, CheckResult)
    assert (found.verdict, found.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
