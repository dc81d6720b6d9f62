"""Whole answers, for checks that read what a server says of itself."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from selfheal.builtin.addresses import read_http_url
from selfheal.builtin.http_talk import NotHttp, Reply, ask, basic, compose
from selfheal.wire import PeerClosed

URL = read_http_url("http://server:8080/")


def answered(*pieces: bytes, method: str = "GET") -> Reply:
    """Return the reply that arrives in these pieces, after which the peer closes."""
    talk: Generator[bytes, Any, Reply] = ask(compose(URL, method, "/"), method)
    assert next(talk).startswith(method.encode())
    try:
        for piece in pieces:
            talk.send(piece)
        talk.throw(PeerClosed("closed"))
    except StopIteration as stop:
        reply: Reply = stop.value
        return reply
    raise AssertionError("it wants to hear more of a peer that has closed")


def test_a_whole_answer_is_read_in_whatever_pieces_it_comes() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Node: a\r\n\r\nhello"
    for cut in range(1, len(said)):
        reply = answered(said[:cut], said[cut:])
        assert (reply.status, reply.body, reply.headers["x-node"], reply.reusable) == (200, b"hello", "a", True)
    chunked = answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (chunked.body, chunked.reusable) == (b"abcde", True)


def test_a_body_that_ends_with_the_connection_is_whole_and_the_connection_is_over() -> None:
    reply = answered(b"HTTP/1.1 503 X\r\n\r\n", b"sta", b"rting")
    assert (reply.status, reply.body, reply.reusable) == (503, b"starting", False)
    assert answered(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", method="HEAD").body == b""


def test_an_end_in_the_middle_and_broken_framing_are_told_apart() -> None:
    with pytest.raises(PeerClosed, match="in the middle"):
        answered(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
    with pytest.raises(NotHttp, match="framing"):
        answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno chunk\r\n")
    with pytest.raises(NotHttp, match="status line"):
        answered(b"-ERR unknown command\r\n")


def test_a_request_says_what_it_must_and_carries_no_line_breaks() -> None:
    said = compose(URL, "POST", "/v1/x", {"Authorization": basic("me", "pw")}, b"{}")
    assert said.startswith(b"POST /v1/x HTTP/1.1\r\nHost: server:8080\r\n")
    assert b"Authorization: Basic bWU6cHc=\r\n" in said
    assert said.endswith(b"Content-Length: 2\r\n\r\n{}")
    with pytest.raises(ValueError, match="Authorization") as refused:
        compose(URL, "GET", "/", {"Authorization": "Bearer hunter2\r\nX: y"})
    assert "hunter2" not in str(refused.value)
