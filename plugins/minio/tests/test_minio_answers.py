"""What the answers mean that a real MinIO is hard to bring to, and what the options refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import attrs
import pytest
from tests.stack.asking import deep, light

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.builtin.http_talk import Reply
from selfheal.config import configure
from selfheal.loading import load_plugins
from selfheal.testing import servers
from selfheal.wire import rehearse
from selfheal_minio.checks import MinioCheck
from selfheal_minio.deep import judge_bucket, judge_drives, judge_keys


def reply(status: int, body: object = None, **headers: str) -> Reply:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=said, body=json.dumps(body).encode(), reusable=True)


def http(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Content-Length: 0", *headers, "", ""]
    return "\r\n".join(lines).encode()


def said(*replies: bytes) -> CheckResult:
    """Return what a check says that hears these answers in turn."""
    last = [*rehearse(MinioCheck(url="http://minio:9000", keep=False).talk(), *replies)][-1]
    assert isinstance(last, CheckResult)
    return last


@pytest.mark.parametrize(
    ("replies", "verdict", "cause", "word"),
    [
        ([http(200), http(200, "X-Minio-Healing-Drives: 2")], Verdict.WARNING, Cause.DEGRADED_CLUSTER, "heals 2"),
        ([http(429)], Verdict.FAILING, Cause.OVERLOADED, "429"),
        ([http(503)], Verdict.FAILING, Cause.OVERLOADED, "503"),
        ([http(403)], Verdict.FAILING, Cause.CONFIG, "MinIO"),
        ([http(404)], Verdict.FAILING, Cause.CONFIG, "MinIO"),
        ([http(302)], Verdict.FAILING, Cause.CONFIG, "302"),
        ([http(500)], Verdict.FAILING, Cause.ERROR, "500"),
        ([http(200, "X-Minio-Server-Status: offline")], Verdict.FAILING, Cause.STARTING, "drives"),
        (
            [http(200), http(503, "X-Minio-Server-Status: iam-offline")],
            Verdict.FAILING,
            Cause.STARTING,
            "users",
        ),
        ([http(200), http(502)], Verdict.FAILING, Cause.UNREACHABLE, "502"),
        ([http(200), http(503), http(503)], Verdict.FAILING, Cause.DEGRADED_CLUSTER, "nothing"),
        ([http(200), http(503, "Connection: close")], Verdict.WARNING, Cause.DEGRADED_CLUSTER, "not be written"),
        ([http(200, "Connection: close")], Verdict.WARNING, Cause.CONFIG, "closed after each answer"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"], Verdict.FAILING, Cause.ERROR, "not HTTP"),
    ],
)
def test_each_answer_has_its_meaning(replies: list[bytes], verdict: Verdict, cause: Cause, word: str) -> None:
    result = said(*replies)
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert word in result.summary


def test_an_answer_may_come_in_pieces_and_in_chunks() -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    pieces = [whole[at : at + 1] for at in range(len(whole))]
    assert said(*pieces, http(200)).verdict is Verdict.PASSING


@pytest.mark.parametrize(
    ("status", "code", "cause", "word"),
    [
        (403, "RequestTimeTooSkewed", Cause.CONFIG, "clock"),
        (403, "", Cause.AUTH, "key"),
        (404, "", Cause.CONFIG, "not there"),
        (503, "SlowDownRead", Cause.DEGRADED_CLUSTER, "drives"),
        (507, "", Cause.FULL, "507"),
        (500, "InternalError", Cause.ERROR, "500"),
    ],
)
def test_each_refusal_of_a_bucket_has_its_cause(status: int, code: str, cause: Cause, word: str) -> None:
    result = judge_bucket(reply(status, x_minio_error_code=code), "things")
    assert (result.verdict, result.cause) == (Verdict.FAILING, cause)
    assert word in result.summary


@pytest.mark.parametrize(
    ("status", "code", "cause", "word"),
    [
        (403, "SignatureDoesNotMatch", Cause.AUTH, "does not take our key (status 403"),
        (403, "RequestTimeTooSkewed", Cause.CONFIG, "15 minutes"),
        (503, "SlowDownRead", Cause.DEGRADED_CLUSTER, "too few drives (status"),
        (500, "InternalError", Cause.ERROR, "not listed"),
    ],
)
def test_each_refusal_of_the_keys_alone_has_its_cause(status: int, code: str, cause: Cause, word: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode()
    result = judge_keys(Reply(status=status, headers={}, body=body, reusable=True))
    assert (result.verdict, result.cause) == (Verdict.FAILING, cause)
    assert word in result.summary


def test_many_lost_drives_are_counted_and_a_few_named() -> None:
    drives = [{"endpoint": f"http://node/drive{n}", "state": "offline" if n > 2 else "ok"} for n in range(20)]
    result = judge_drives(reply(200, {"servers": [{"state": "online", "drives": drives}]}), 0.05)
    assert (result.verdict, result.cause) == (Verdict.WARNING, Cause.DEGRADED_CLUSTER)
    assert result.summary.startswith("17 of 20 drives")
    assert result.summary.endswith("and 12 more")


def test_a_node_that_is_not_online_is_named() -> None:
    servers_said = [{"endpoint": "node1:9000", "state": "online"}, {"endpoint": "node2:9000", "state": "offline"}]
    result = judge_drives(reply(200, {"servers": servers_said}), 0.05)
    assert (result.verdict, result.cause) == (Verdict.WARNING, Cause.DEGRADED_CLUSTER)
    assert "node2:9000" in result.summary


@pytest.mark.parametrize("body", [None, [], {"servers": 3}, {"servers": [3]}, {"servers": []}])
def test_a_list_that_is_not_understood_is_no_fault_of_minio(body: Any) -> None:
    result = judge_drives(reply(200, body), 0.05)
    assert result.verdict is Verdict.PASSING
    assert "not understood" in str(result.details["drives"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"url": "ftp://minio:9000"}, "http://"),
        ({"url": "minio:9000/documents"}, "address alone"),
        ({"url": 9000}, "neither text nor a secret"),
        ({"secure": "yes"}, "secure"),
        ({"url": "http://user:pass@minio:9000"}, "user or password"),
        ({"url": "http://minio:9000/minio/health/live"}, "address alone"),
        ({"access_key": "me"}, "go together"),
        ({"bucket": "documents"}, "with keys"),
        ({"bucket": "No Such"}, "bucket"),
        ({"min_free": 5}, "min_free: 5 is out of range"),
        ({"warn_before": -1}, "warn_before: -1.0 is out of range"),
        ({"keep": "yes"}, "keep"),
        ({"secret_key": "plain"}, "secret_key"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_word(options: dict[str, Any], word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        MinioCheck(**{"url": "http://minio:9000", **options})


@pytest.mark.parametrize(
    ("url", "secure", "host", "port", "tls"),
    [
        ("minio:9000", False, "minio", 9000, False),
        ("minio:9000", True, "minio", 9000, True),
        ("minio", True, "minio", 443, True),
        ("[::1]:9000", False, "::1", 9000, False),
        (" minio:9000\n", False, "minio", 9000, False),
        ("https://minio:9000/", False, "minio", 9000, True),
        ("http://minio:9000", True, "minio", 9000, False),
    ],
)
def test_an_address_is_read_as_applications_have_it_in_a_variable(
    monkeypatch: pytest.MonkeyPatch, url: str, secure: bool, host: str, port: int, tls: bool
) -> None:
    monkeypatch.setenv("MINIO_ENDPOINT", url)
    table = {"kind": "minio", "url": {"env": "MINIO_ENDPOINT"}, "secure": secure}
    (service,) = configure({"services": {"minio": {"check": table}}}, tables=load_plugins(["minio"])).services
    assert isinstance(service.check, MinioCheck)
    target = service.check.target()
    assert (target.host, target.port, target.tls is not None) == (host, port, tls)


def test_an_address_that_cannot_be_read_says_nothing_about_minio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIO_ENDPOINT", raising=False)
    one = MinioCheck(url=Secret(lambda: os.environ["MINIO_ENDPOINT"], source="env MINIO_ENDPOINT"))
    keys = attrs.evolve(one, access_key="a", secret_key=Secret("b"))
    for result in (light(one), deep(one), deep(keys)):
        assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_nothing_of_the_sdk_is_imported_for_a_light_check() -> None:
    code = "import sys, selfheal_minio.checks; sys.exit('minio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_light_check_needs_no_key() -> None:
    with servers.answer(http(200, "Connection: close")) as address:
        one = MinioCheck(url=f"http://{address}", access_key="a", secret_key=Secret("b"), bucket="things")
        assert light(one).cause is Cause.CONFIG  # closes after each answer; heard without the key


def test_s65_without_the_sdk_a_deep_check_could_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minio.signer", None)
    one = MinioCheck(url="http://127.0.0.1:9", access_key="a", secret_key=Secret("b"), bucket="things")
    result = deep(one)
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert "minio" in result.summary
