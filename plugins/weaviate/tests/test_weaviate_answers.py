"""What the answers mean that a real Weaviate is hard to bring to, and what the options refuse."""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any

import pytest
from tests.stack.asking import deep, light

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.builtin.http_talk import Reply
from selfheal.config import configure
from selfheal.loading import load_plugins
from selfheal.testing import servers
from selfheal.wire import rehearse
from selfheal_weaviate.checks import WeaviateCheck
from selfheal_weaviate.writing import RIGHTS, Disk, Probe, judge_write


def http(status: int, body: object = None, *headers: str) -> bytes:
    said = b"" if body is None else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(said)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + said


def nodes(*each: dict[str, Any]) -> bytes:
    return http(200, {"nodes": [{"name": f"node{n}", "status": "HEALTHY", **one} for n, one in enumerate(each, 1)]})


def said(*replies: bytes, **options: Any) -> CheckResult:
    """Return what a check says that hears these answers in turn."""
    last = [*rehearse(WeaviateCheck(url="http://weaviate:8080", keep=False, **options).talk(), *replies)][-1]
    assert isinstance(last, CheckResult)
    return last


CLOSED = {"class": "Thing", "name": "a", "vectorIndexingStatus": "READONLY"}
UNASKED = {"error": [{"message": "node: node3: send http request: connection refused"}]}


@pytest.mark.parametrize(
    ("replies", "verdict", "cause", "word"),
    [
        ([http(200), nodes({}, {"status": "TIMEOUT"})], Verdict.WARNING, Cause.DEGRADED_CLUSTER, "node2 TIMEOUT"),
        ([http(200), nodes({"operationalMode": "ScaleOut"})], Verdict.WARNING, Cause.READ_ONLY, "node1 ScaleOut"),
        ([http(200), nodes({"operationalMode": "WriteOnly"})], Verdict.WARNING, Cause.CONFIG, "reads are refused"),
        ([http(200), http(500, UNASKED)], Verdict.WARNING, Cause.DEGRADED_CLUSTER, "node3"),
        ([http(200), http(429)], Verdict.FAILING, Cause.OVERLOADED, "429"),
        ([http(200), http(503)], Verdict.FAILING, Cause.OVERLOADED, "503"),
        ([http(200), http(200, [])], Verdict.FAILING, Cause.ERROR, "not understood"),
        ([http(200), http(200, {"nodes": [{"name": "one"}]})], Verdict.FAILING, Cause.ERROR, "not understood"),
        ([http(503), nodes({})], Verdict.FAILING, Cause.STARTING, "not ready"),
        ([http(503), http(500, UNASKED)], Verdict.FAILING, Cause.DEGRADED_CLUSTER, "node3"),
        ([http(503), nodes({"status": "UNHEALTHY"})], Verdict.FAILING, Cause.DEGRADED_CLUSTER, "not ready"),
        (
            [http(503), nodes({"stats": {"shardCount": 2}, "shards": [CLOSED, {**CLOSED, "name": "b"}]})],
            Verdict.WARNING,
            Cause.FULL,
            "make room",
        ),
        (
            [http(503), nodes({"stats": {"shardCount": 2}, "shards": [CLOSED]})],
            Verdict.FAILING,
            Cause.STARTING,
            "not ready",
        ),
        ([http(503), http(401)], Verdict.FAILING, Cause.AUTH, "401"),
        ([http(503, None, "Connection: close")], Verdict.FAILING, Cause.STARTING, "not ready"),
        ([http(200, None, "Connection: close")], Verdict.WARNING, Cause.CONFIG, "closed after each answer"),
        ([http(404)], Verdict.FAILING, Cause.CONFIG, "Weaviate"),
        ([http(502)], Verdict.FAILING, Cause.UNREACHABLE, "502"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n"], Verdict.FAILING, Cause.ERROR, "not HTTP"),
    ],
)
def test_each_answer_has_its_meaning(replies: list[bytes], verdict: Verdict, cause: Cause, word: str) -> None:
    result = said(*replies)
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert word in result.summary


def refused(text: str) -> tuple[int, object]:
    return 200, [{"result": {"status": "FAILED", "errors": {"error": [{"message": text}]}}}]


FULL = "store is read-only due to: disk usage too high. Set to read-only at 93.10%, threshold set to 85.00%"


@pytest.mark.parametrize(
    ("answer", "used", "verdict", "cause", "word"),
    [
        ((200, [{"result": {"status": "SUCCESS"}}]), None, Verdict.PASSING, None, ""),
        ((200, [{"result": {"status": "PENDING"}}]), None, Verdict.FAILING, Cause.ERROR, "PENDING"),
        ((200, {"objects": []}), None, Verdict.FAILING, Cause.ERROR, "not understood"),
        (refused(FULL), None, Verdict.WARNING, Cause.FULL, "give data_path"),
        (refused(FULL), 84.0, Verdict.WARNING, Cause.FULL, "84 % full: make room"),
        (refused(FULL), 82.0, Verdict.FAILING, Cause.ERROR, "a restart opens"),
        (refused("write …/proplengths: no space left on device"), 100.0, Verdict.WARNING, Cause.FULL, "disk is full"),
        (refused("store is read-only due to: manually set"), None, Verdict.WARNING, Cause.READ_ONLY, "manually"),
        ((500, {"error": [{"message": "batch: not enough memory"}]}), None, Verdict.WARNING, Cause.OVERLOADED, "want"),
        ((500, {"error": [{"message": "leader not found"}]}), None, Verdict.FAILING, Cause.DEGRADED_CLUSTER, "leader"),
        ((500, None), None, Verdict.FAILING, Cause.ERROR, "without a word"),
        ((403, {"error": [{"message": "forbidden"}]}), None, Verdict.WARNING, Cause.AUTH, RIGHTS),
    ],
)
def test_each_answer_to_a_write_has_its_meaning(
    answer: tuple[int, object], used: float | None, verdict: Verdict, cause: Cause | None, word: str
) -> None:
    status, body = answer
    reply = Reply(status=status, headers={}, body=b"" if body is None else json.dumps(body).encode(), reusable=True)
    result = judge_write(reply, Disk(used=used))
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert word in result.summary
    assert result.details["written"] is (verdict is Verdict.PASSING)


LOST = 'resolve node name "node3" to host'
"""What the others say of a write to a node that they have forgotten, while all of them are healthy and ready."""


@pytest.mark.parametrize(
    ("count", "verdict", "cause"),
    [(1, Verdict.FAILING, Cause.ERROR), (2, Verdict.WARNING, Cause.DEGRADED_CLUSTER)],
)
def test_on_a_cluster_a_write_that_fails_is_no_reason_to_restart_this_node(
    count: int, verdict: Verdict, cause: Cause
) -> None:
    bodies = {b"/v1/nodes": nodes(*[{}] * count), b"/v1/batch": http(200, refused(LOST)[1])}

    def speak(client: socket.socket, stop: threading.Event) -> None:
        while request := client.recv(4096):
            client.sendall(next((body for path, body in bodies.items() if path in request), http(200, {})))

    with servers.serve(speak) as address:
        result = deep(WeaviateCheck(url=f"http://{address}", write_probe=True))
    assert (result.verdict, result.cause) == (verdict, cause), result
    assert "node3" in result.summary
    assert result.details["written"] is False


def test_s63_what_is_kept_between_two_probes_shows_no_key() -> None:
    one = WeaviateCheck(url="http://weaviate:8080", api_key=Secret("sesame"), write_probe=True)
    kept = Probe(address=one.address(), target=one.target(), headers={"Authorization": "Bearer sesame"})
    assert "sesame" not in repr(kept)


def test_the_key_goes_to_the_list_of_nodes_and_not_to_ready() -> None:
    one = WeaviateCheck(url="http://weaviate:8080", api_key=Secret("sesame"), keep=False)
    first, second, result = rehearse(one.talk(), http(200), nodes({}))
    assert b"sesame" not in bytes(first)  # type: ignore[arg-type]  # what a talk says before its result is bytes
    assert b"Authorization: Bearer sesame\r\n" in bytes(second)  # type: ignore[arg-type]  # as above
    assert isinstance(result, CheckResult)


def test_a_key_with_a_line_break_is_not_sent() -> None:
    result = said(http(200), nodes({}), api_key=Secret("sesame\r\nX-Evil: 1"))
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)


def test_many_nodes_are_counted_and_a_few_named() -> None:
    result = said(http(200), nodes(*[{"status": "UNAVAILABLE"}] * 20))
    assert result.summary.endswith("and 15 more")
    assert result.details["nodes_healthy"] == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"url": "weaviate:8080"}, "http://"),
        ({"url": "http://weaviate:8080/v1"}, "address alone"),
        ({"url": 8080}, "neither text nor a secret"),
        ({"data_path": "/var/lib"}, "write_probe = true"),
        ({"nodes": 0}, "nodes: 0 is out of range"),
        ({"grpc_port": 70000}, "65535"),
        ({"api_key": "plain"}, "api_key"),
        ({"warn_before": float("nan")}, "warn_before: nan is out of range"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_a_word(options: dict[str, Any], word: str) -> None:
    with pytest.raises((ValueError, TypeError), match=word):
        WeaviateCheck(**{"url": "http://weaviate:8080", **options})


def test_an_address_is_read_from_the_variable_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAVIATE_URL", " https://weaviate.example:8443/\n")
    table = {"kind": "weaviate", "url": {"env": "WEAVIATE_URL"}}
    (service,) = configure({"services": {"weaviate": {"check": table}}}, tables=load_plugins(["weaviate"])).services
    assert isinstance(service.check, WeaviateCheck)
    target = service.check.target()
    assert (target.host, target.port, target.tls is not None) == ("weaviate.example", 8443, True)


def test_an_address_that_cannot_be_read_says_nothing_about_weaviate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEAVIATE_URL", raising=False)
    one = WeaviateCheck(url=Secret(lambda: os.environ["WEAVIATE_URL"], source="env WEAVIATE_URL"))
    for result in (light(one), deep(one)):
        assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
