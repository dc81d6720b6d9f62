"""The wire checks without a socket: what they say, what they make of answers, what they refuse when made."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from selfheal.builtin.wire_checks import HttpCheck, RedisPing, TcpCheck
from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.secret import Secret
from selfheal.wire import PeerClosed, WireCheck, rehearse


def conclude(check: WireCheck, pieces: list[bytes]) -> CheckResult | str:
    """Let a check hear `pieces` and then the end; return what it concludes."""
    talk = check.talk()
    said: object = None
    try:
        said = next(talk)
        for piece in pieces:
            if isinstance(said, CheckResult):
                return said
            said = talk.send(piece)
        if not isinstance(said, CheckResult):
            said = talk.throw(PeerClosed())
    except StopIteration as stop:
        said = stop.value
    except PeerClosed:
        return "closed"
    return said if isinstance(said, CheckResult) else "wants more"


def verdict(check: WireCheck, reply: bytes) -> tuple[Verdict, Cause | None]:
    result = conclude(check, [reply])
    assert isinstance(result, CheckResult), result
    return result.verdict, result.cause


def http(**options: Any) -> HttpCheck:
    return HttpCheck(url="http://h.example/health", **options)


def request(check: HttpCheck) -> bytes:
    said = next(iter(rehearse(check.talk())))
    assert isinstance(said, bytes)
    return said


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nneed\r\n2\r\nle\r\n0\r\n\r\n"
REPLIES: list[tuple[WireCheck, bytes]] = [
    (http(), b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"),
    (http(), b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n"),
    (http(status="2xx", body="x"), b"HTTP/1.1 204 No\r\nContent-Length: 1\r\n\r\nx"),
    (http(), b"HTTP/1.0 503 No\n\n"),
    (http(), b"SSH-2.0-OpenSSH_9.2\r\n"),
    (http(), b"HTTP/2 200\r\n\r\n"),
    (http(), b"HTTP/1.1 abc\r\n\r\n"),
    (http(), b"\r\n\r\n"),
    (http(body="needle"), CHUNKED),
    (http(body="needles"), CHUNKED),
    (http(body="needle", keep=True), CHUNKED),
    (http(body="needle"), CHUNKED.replace(b"4\r\n", b"zz\r\n")),
    (http(body="needle"), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno needle after the length"),
    (http(body="needle"), b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf"),
    (http(body="needle"), b"HTTP/1.1 200 OK\r\n\r\nup to the end, needle"),
    (http(expect_headers={"X-Role": "primary"}), b"HTTP/1.1 200 OK\r\nx-role:  Primary \r\n\r\n"),
    (http(expect_headers={"X-Role": "primary"}), b"HTTP/1.1 200 OK\r\nX-Role: replica\r\n\r\n"),
    (RedisPing(url="redis://h"), b"+PONG\r\n"),
    (RedisPing(url="redis://h"), b"+PONG\r\n+more\r\n"),
    (RedisPing(url="redis://h"), b"-LOADING x\r\n"),
    (RedisPing(url="redis://h"), b"HTTP/1.1 400 Bad\r\n"),
    (RedisPing(url="redis://:p@h"), b"+OK\r\n+PONG\r\n"),
    (RedisPing(url="redis://:p@h"), b"-WRONGPASS no\r\n"),
]


@pytest.mark.parametrize("number", range(len(REPLIES)))
def test_however_a_reply_is_cut_the_conclusion_is_the_same(number: int) -> None:
    check, reply = REPLIES[number]
    if isinstance(check, RedisPing) and reply.startswith(b"+OK"):
        return  # two answers to two requests; the fault tests have it on a socket
    wanted = conclude(check, [reply])
    for at in range(1, len(reply)):
        assert conclude(check, [reply[:at], reply[at:]]) == wanted, at
    assert conclude(check, [bytes([byte]) for byte in reply]) == wanted
    dice = random.Random(number)
    for _ in range(50):
        cuts = sorted({0, len(reply), *(dice.randrange(1, len(reply)) for _ in range(4))})
        assert conclude(check, [reply[low:high] for low, high in pairwise(cuts)]) == wanted, cuts


# -- tcp -------------------------------------------------------------------------------------------------------------


def test_tcp_reads_addresses() -> None:
    assert TcpCheck(address="db.example:5432").target().host == "db.example"
    assert TcpCheck(address="[::1]:5432").target().host == "::1"
    assert TcpCheck(address="/run/x.sock").target().path == "/run/x.sock"
    assert TcpCheck(address="unix:/run/x.sock").target().path == "/run/x.sock"
    assert TcpCheck(address="bücher.example:80").target().host == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "address", ["", "db", "db:", ":5432", "db:0", "db:65536", "db:http", "::1:5432", "a b:80", "db:٣"]
)
def test_tcp_refuses_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"^address: "):
        TcpCheck(address=address)


# -- http ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (301, Cause.CONFIG),
        (400, Cause.CONFIG),
        (401, Cause.AUTH),
        (403, Cause.AUTH),
        (404, Cause.CONFIG),
        (429, Cause.OVERLOADED),
        (500, Cause.ERROR),
        (502, Cause.UNREACHABLE),
        (503, Cause.OVERLOADED),
        (504, Cause.TIMEOUT),
        (507, Cause.FULL),
    ],
)
def test_an_unwanted_status_has_its_cause(status: int, cause: Cause) -> None:
    assert verdict(http(), b"HTTP/1.1 %d Why\r\n\r\n" % status) == (Verdict.FAILING, cause)


@pytest.mark.parametrize("status", [200, "200", "2xx", "200-204", [500, 200], ("3xx", "2XX")])
def test_a_status_can_be_one_a_class_a_range_or_several(status: Any) -> None:
    assert verdict(http(status=status), b"HTTP/1.1 200 OK\r\n\r\n") == (Verdict.PASSING, None)
    assert verdict(http(status=status), b"HTTP/1.1 418 No\r\n\r\n")[0] is Verdict.FAILING


def test_a_redirect_that_is_expected_passes() -> None:
    assert verdict(http(status=301), b"HTTP/1.1 301 Moved\r\nLocation: /x\r\n\r\n") == (Verdict.PASSING, None)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"url": "ftp://h"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://user:pw@h"}, "url"),
        ({"url": "http://h:0"}, "url"),
        ({"url": "http://h:x"}, "url"),
        ({"url": "http://h", "authority": "/x.pem"}, "url"),
        ({"url": "http://h", "verify": False}, "url"),
        ({"url": "http://h", "status": "ok"}, "status"),
        ({"url": "http://h", "status": []}, "status"),
        ({"url": "http://h", "status": 99}, "status"),
        ({"url": "http://h", "status": 2.5}, "status"),
        ({"url": "http://h", "method": "POST"}, "method"),
        ({"url": "http://h", "method": "HEAD", "body": "x"}, "body"),
        ({"url": "http://h", "body": ""}, "body"),
        ({"url": "http://h", "headers": {"A b": "x"}}, "headers"),
        ({"url": "http://h", "headers": {"A": "x\r\nB: y"}}, "headers"),
        ({"url": "http://h", "headers": {"Content-Length": "1"}}, "headers"),
        ({"url": "http://h", "limit": 10}, "limit"),
        ({"url": "http://h", "warn_before": -1}, "warn_before"),
    ],
)
def test_http_refuses_a_bad_option_and_names_it(options: dict[str, Any], field: str) -> None:
    with pytest.raises((ValueError, TypeError), match=field) as raised:
        HttpCheck(**options)
    assert "pw" not in str(raised.value)


def test_the_request_is_what_the_options_say() -> None:
    plain = request(HttpCheck(url="http://h.example:8080/a b?q=ü#f".replace(" ", "%20")))
    assert plain.startswith(b"GET /a%20b?q=%C3%BC HTTP/1.1\r\nHost: h.example:8080\r\n")
    assert b"\r\nConnection: close\r\n" in plain
    assert plain.endswith(b"\r\n\r\n")
    assert b"Host: [::1]\r\n" in request(HttpCheck(url="http://[::1]/"))
    kept = request(http(method="HEAD", keep=True, headers={"host": "other", "Authorization": Secret("Bearer x")}))
    assert kept.startswith(b"HEAD /health HTTP/1.1\r\n")
    assert kept.count(b"ost: ") == 1
    assert b"host: other\r\n" in kept
    assert b"Authorization: Bearer x\r\n" in kept
    assert b"Connection" not in kept


def test_a_secret_header_is_revealed_for_each_connection_and_printed_never() -> None:
    words = iter(["first-word", "second-word"])
    check = http(headers={"Authorization": Secret(lambda: next(words))})
    assert b"first-word" in request(check)
    assert b"second-word" in request(check)
    assert "word" not in repr(check)
    assert "Authorization" in repr(check)


@pytest.mark.parametrize("secret", [Secret("a\r\nb"), Secret(Path("/nonexistent").read_text)])
def test_a_secret_that_cannot_be_used_is_inconclusive(secret: Secret) -> None:
    assert verdict(http(headers={"A": secret}), b"") == (Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_https_has_a_target_with_tls_and_http_has_none() -> None:
    assert http().target().tls is None
    secured = HttpCheck(url="https://h.example/", authority="/x.pem", warn_before=60).target()
    assert secured.port == 443
    assert secured.tls is not None
    assert str(secured.tls.authority) == "/x.pem"
    assert secured.tls.warn_before == 60.0
    over_unix = HttpCheck(url="https://h.example/", socket="/run/x.sock").target()
    assert over_unix.path == "/run/x.sock"
    assert over_unix.tls is not None
    assert over_unix.tls.server_name == "h.example"


# -- redis -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b"-NOAUTH Authentication required.", Cause.AUTH),
        (b"-WRONGPASS invalid username-password pair", Cause.AUTH),
        (b"-NOPERM this user has no permissions", Cause.AUTH),
        (b"-LOADING Redis is loading the dataset in memory", Cause.STARTING),
        (b"-MASTERDOWN Link with MASTER is down", Cause.DEGRADED_CLUSTER),
        (b"-CLUSTERDOWN The cluster is down", Cause.DEGRADED_CLUSTER),
        (b"-BUSY Redis is busy running a script", Cause.OVERLOADED),
        (b"-ERR max number of clients reached", Cause.OVERLOADED),
        (b"-MISCONF Redis is configured to save RDB snapshots", Cause.FULL),
        (b"-DENIED Redis is running in protected mode", Cause.CONFIG),
        (b"-ERR unknown command 'PING'", Cause.ERROR),
        (b"+OK", Cause.ERROR),
    ],
)
def test_redis_says_why(line: bytes, cause: Cause) -> None:
    assert verdict(RedisPing(url="redis://h"), line + b"\r\n") == (Verdict.FAILING, cause)


def test_a_refused_login_is_auth_whatever_its_words() -> None:
    assert verdict(RedisPing(url="redis://:p@h"), b"-ERR AUTH called without any password\r\n")[1] is Cause.AUTH
    assert verdict(RedisPing(url="redis://:p@h"), b"-LOADING x\r\n")[1] is Cause.STARTING


def test_redis_logs_in_once_and_then_pings_for_ever() -> None:
    check = RedisPing(url="redis://me:a%2Fb@h")
    said = list(zip(range(4), rehearse(check.talk(), b"+OK\r\n", b"+PONG\r\n", b"+PONG\r\n"), strict=False))
    assert [words for _, words in said] == [
        b"*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$3\r\na/b\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        PASSING,
        b"*1\r\n$4\r\nPING\r\n",
    ]


def test_redis_reads_urls() -> None:
    assert RedisPing(url="redis://h").target().port == 6379
    assert RedisPing(url="redis://h:7000/3").target().port == 7000
    assert RedisPing(url="unix:///run/r.sock").target().path == "/run/r.sock"
    assert RedisPing(url="rediss://h").target().tls is not None
    assert RedisPing(url=Secret("redis://:p@h:7000")).target().port == 7000


def test_no_password_is_printed() -> None:
    for check in (
        RedisPing(url="redis://me:sesame@h"),
        RedisPing(url="redis://:ses@me@h"),
        RedisPing(url="redis://h", password=Secret("sesame")),
        RedisPing(url=Secret("redis://:sesame@h")),
    ):
        assert "sesame" not in repr(check)
        assert "ses@" not in repr(check)
    for url in (
        "redis://:ses/ame@h",
        "redis://:sesame@",
        "http://:sesame@h",
        "redis://:sesame@h:x",
        "redis://:sesame@h:0",
    ):
        with pytest.raises(ValueError, match=r"^url: ") as raised:
            RedisPing(url=url)
        assert "ses" not in str(raised.value)
        assert raised.value.__cause__ is None


def test_a_password_that_cannot_be_read_is_inconclusive() -> None:
    check = RedisPing(url="redis://h", password=Secret(Path("/nonexistent").read_text))
    assert verdict(check, b"") == (Verdict.INCONCLUSIVE, Cause.CONFIG)
