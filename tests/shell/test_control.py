"""The control socket: what it answers, whom it lets in, and what no caller can do to it."""

from __future__ import annotations

import json
import os
import pwd
import random
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from selfheal import control
from selfheal.builtin.heartbeat import HeartbeatCheck
from selfheal.control import Pace, Question, Unreachable, call, forward, serving
from selfheal.core.model import PASSING
from selfheal.errors import ControlError, JournalError, NotRunning, RequestRefused
from selfheal.requests import TABLE
from selfheal.service import Service
from selfheal.supervisor import Supervisor

pytestmark = pytest.mark.anyio

HASTY = Pace(idle=0.3, line=0.3, answer=5.0, write=0.3)
ME = pwd.getpwuid(os.getuid()).pw_name


class Answers:
    """Who is behind the door: says what it was asked, or does what the request is called after."""

    def __init__(self) -> None:
        self.acts: list[dict[str, Any]] = []
        self.busy = anyio.Semaphore(0)

    async def act(self, name: str, **said: Any) -> dict[str, Any]:
        self.acts.append({"name": name, **said})
        return {"accepted": True}

    async def ask(self, name: str, **parameters: Any) -> Any:
        if name == "metrics":
            raise ZeroDivisionError("the secret inside")
        if name == "graph":
            self.busy.release()
            await anyio.sleep_forever()
        if name == "health":
            raise NotRunning("not yet")
        if name == "statistics":
            raise JournalError("the disk is gone")
        if name == "records":
            return ["x" * 1000] * 20_000
        return {"asked": name, **parameters}


@asynccontextmanager
async def door(path: Path, **options: Any) -> AsyncIterator[Answers]:
    answers = Answers()
    async with serving(answers, path, **options) as open_:
        assert open_
        yield answers


async def asked(path: Path, request: str, **said: Any) -> Any:
    """Ask as the command line does: blocking, from another thread."""
    question = Question(request=request, **said)
    return await anyio.to_thread.run_sync(partial(call, path, question, timeout=10.0))


def plugged(path: Path) -> socket.socket:
    """Return a connection of a caller with no manners."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10.0)
    connection.connect(str(path))
    return connection


def heard(connection: socket.socket) -> dict[str, Any]:
    """Return the next line, or an empty object where the connection ended instead."""
    received = b""
    try:
        while not received.endswith(b"\n"):
            chunk = connection.recv(65536)
            if not chunk:
                return {}
            received += chunk
    except (ConnectionResetError, BrokenPipeError):
        return {}
    return dict(json.loads(received))


def said(connection: socket.socket, data: bytes) -> dict[str, Any]:
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)
    return heard(connection)


# -- what it answers --------------------------------------------------------------------------------------------------


async def test_both_callers_get_the_answer_of_a_query(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path):
        assert await asked(path, "service", parameters={"service": "api"}) == {"asked": "service", "service": "api"}
        assert await forward(path, Question(request="status")) == {"asked": "status"}


async def test_many_requests_on_one_connection_are_answered_in_order_with_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path):

        def converse() -> list[Any]:
            with plugged(path) as connection, connection.makefile("rb") as lines:
                for number in range(50):
                    connection.sendall(json.dumps({"v": 1, "id": number, "request": "status"}).encode() + b"\n")
                return [json.loads(lines.readline())["id"] for _ in range(50)]

        assert await anyio.to_thread.run_sync(converse) == list(range(50))


async def test_an_answer_may_be_far_longer_than_a_request(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path):
        assert len(await asked(path, "records")) == 20_000
        assert len(await forward(path, Question(request="records"))) == 20_000


@pytest.mark.parametrize(
    ("request_", "error", "text"),
    [
        ("nonsense", RequestRefused, "no request 'nonsense'"),
        ("service", RequestRefused, "needs service"),
        ("health", RequestRefused, "not yet"),
        ("statistics", JournalError, "the disk is gone"),
        ("metrics", ControlError, "a fault in selfheal"),
    ],
)
async def test_what_is_refused_raises_the_same_error_at_the_other_end(
    tmp_path: Path, request_: str, error: type[Exception], text: str
) -> None:
    path = tmp_path / "s"
    async with door(path):
        with pytest.raises(error, match=text) as refused:
            await asked(path, request_)
        with pytest.raises(error, match=text):
            await forward(path, Question(request=request_))
    assert "secret" not in str(refused.value)


async def test_an_answer_that_never_comes_is_given_up_by_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path, pace=Pace(answer=0.2)):
        with pytest.raises(ControlError, match="may still be done"):
            await asked(path, "graph")
    async with door(path):
        with pytest.raises(ControlError, match=r"within 0\.2 s"):
            await anyio.to_thread.run_sync(partial(call, path, Question(request="graph"), timeout=0.2))
        with pytest.raises(ControlError, match=r"within 0\.2 s"):
            await forward(path, Question(request="graph"), timeout=0.2)


# -- who asks ---------------------------------------------------------------------------------------------------------


async def test_the_actor_is_the_calling_user_by_the_kernels_word(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path) as answers:
        await asked(path, "disable", parameters={"service": "api"}, reason="retired")
        await asked(path, "disable", parameters={"service": "api"}, reason="retired", actor="ann", key="k1")
        await asked(path, "disable", parameters={"service": "api"}, reason="x", scopes=frozenset({"read"}))
    assert [act["actor"] for act in answers.acts] == [ME, f"ann via uid {os.getuid()}", ME]
    assert [act["id"] for act in answers.acts] == [None, "k1", None]
    assert answers.acts[0]["scopes"] == {"read", "operate", "admin"}
    assert answers.acts[2]["scopes"] == {"read"}


async def test_another_user_may_not_name_the_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    async with door(path) as answers:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(RequestRefused, match="only a process of selfheal's own user") as refused:
            await asked(path, "disable", parameters={"service": "api"}, reason="x", actor="ann")
        await asked(path, "disable", parameters={"service": "api"}, reason="x")
    assert refused.value.code == "forbidden"
    assert [act["actor"] for act in answers.acts] == [ME]


async def test_who_means_another_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path, journal="selfheal.db"):
        assert await asked(path, "status", journal="selfheal.db")
        with pytest.raises(RequestRefused, match=r"holds selfheal\.db, not 'other\.db'"):
            await asked(path, "status", journal="other.db")


async def test_only_its_owner_may_open_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == os.getuid()


# -- where it lies ----------------------------------------------------------------------------------------------------


async def test_it_is_gone_afterwards_and_nothing_else_is_left(tmp_path: Path) -> None:
    async with door(tmp_path / "s"):
        assert os.listdir(tmp_path) == ["s"]
    assert not os.listdir(tmp_path)
    with pytest.raises(Unreachable, match="nobody listens"):
        call(tmp_path / "s", Question(request="status"))
    with pytest.raises(Unreachable, match="nobody listens"):
        await forward(tmp_path / "s", Question(request="status"))


async def test_the_socket_of_a_dead_holder_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    async with door(path):
        assert await asked(path, "status")


async def test_a_socket_somebody_listens_at_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s"
    async with door(path):
        async with serving(Answers(), path) as open_:
            assert not open_
        assert "another selfheal listens" in caplog.text
        assert await asked(path, "status")


async def test_where_none_can_be_made_that_is_said_and_nothing_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Answers(), tmp_path / "missing" / "s") as open_:
        assert not open_
    assert "no control socket" in caplog.text


async def test_a_folder_too_deep_for_an_address_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    async with door(folder / "control.sock"):
        assert await asked(folder / "control.sock", "status")
        assert await forward(folder / "control.sock", Question(request="status"))
        assert control.alive(folder / "control.sock")
    assert not os.listdir(folder)


# -- callers without manners ------------------------------------------------------------------------------------------

WRONG = [
    (b"\n", "bad_request"),
    (b"GET / HTTP/1.1\r\n", "bad_request"),
    (b"\xff\xfe\x00\n", "bad_request"),
    (b"[1, 2]\n", "bad_request"),
    (b"null\n", "bad_request"),
    (b"[" * 60_000 + b"\n", "bad_request"),
    (b'{"v": 1, "request": "status", "parameters": {"x": NaN}}\n', "bad_request"),
    (b'{"v": 1, "request": "lift", "reason": "x", "parameters": {"suppression": "\\ud800"}}\n', "bad_request"),
    (b'{"v": 1, "id": ' + b"9" * 5000 + b', "request": "status"}\n', "bad_request"),
    (b'{"request": "status"}\n', "version"),
    (b'{"v": 2, "request": "status"}\n', "version"),
    (b'{"v": true, "request": "status"}\n', "version"),
    (b'{"v": 1, "request": "status", "dry_run": true}\n', "bad_request"),
    (b'{"v": 1, "request": ["status"]}\n', "bad_request"),
    (b'{"v": 1, "request": "__class__"}\n', "unknown_request"),
    (b'{"v": 1}\n', "unknown_request"),
    (b'{"v": 1, "request": "status", "parameters": []}\n', "bad_request"),
    (b'{"v": 1, "request": "status", "parameters": {"actor": "x"}}\n', "bad_parameter"),
    (b'{"v": 1, "request": "disable", "parameters": {"service": "a", "reason": "x"}}\n', "bad_parameter"),
    (b'{"v": 1, "request": "disable", "parameters": {"service": "a"}, "reason": "a\\u001b[2J"}\n', "bad_request"),
    (b'{"v": 1, "request": "status", "scopes": ["root"]}\n', "bad_request"),
    (b'{"v": 1, "request": "status", "actor": ""}\n', "bad_request"),
    (b'{"v": 1, "request": "status"', ""),
    (b"x" * (control.LINE_LIMIT + 1), "too_long"),
    (b"x" * (10 << 20), "too_long"),
]


@pytest.mark.parametrize(("data", "code"), WRONG, ids=[f"{code}-{data[:40]!a}" for data, code in WRONG])
async def test_what_is_no_request_gets_a_clear_error(tmp_path: Path, data: bytes, code: str) -> None:
    path = tmp_path / "s"
    async with door(path, pace=HASTY) as answers:

        def rude() -> dict[str, Any]:
            with plugged(path) as connection:
                return said(connection, data)

        answer = await anyio.to_thread.run_sync(rude)
        assert answer["ok"] is False
        assert answer["error"]["code"] == (code or "timeout")
        assert "Traceback" not in answer["error"]["message"]
        assert await asked(path, "status")
    assert not answers.acts


async def test_half_a_line_at_the_end_is_said_to_be_half(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path):

        def half() -> dict[str, Any]:
            with plugged(path) as connection:
                connection.sendall(b'{"v": 1, "request": "sta')
                connection.shutdown(socket.SHUT_WR)
                return heard(connection)

        assert (await anyio.to_thread.run_sync(half))["error"]["message"] == "the line has no end"


async def test_random_bytes_never_end_the_answering(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s"
    chance = random.Random(7)
    whole = json.dumps({"v": 1, "id": 1, "request": "history", "parameters": {"service": "api", "limit": 3}}).encode()

    def spoil() -> bytes:
        line = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            line[chance.randrange(len(line))] = chance.randrange(256)
        return bytes(line) if chance.random() < 0.5 else chance.randbytes(chance.randrange(1, 3000))

    async with door(path, pace=HASTY):

        def rude() -> None:
            for _ in range(300):
                with plugged(path) as connection:
                    try:
                        connection.sendall(spoil() + b"\n")
                    except (BrokenPipeError, ConnectionResetError):
                        continue
                    if chance.random() < 0.5:
                        heard(connection)

        await anyio.to_thread.run_sync(rude)
        assert await asked(path, "status")
    assert "Traceback" not in caplog.text


async def test_two_hundred_silent_connections_keep_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path):
        with ExitStack() as stack:

            def crowd() -> None:
                for _ in range(200):
                    stack.enter_context(plugged(path))

            await anyio.to_thread.run_sync(crowd)
            began = time.monotonic()
            for _ in range(5):
                assert await asked(path, "status")
            assert time.monotonic() - began < 5.0


async def test_when_each_connection_has_a_request_under_way_the_next_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path, most=2) as answers, anyio.create_task_group() as tasks:

        async def wait_for_ever() -> None:
            await forward(path, Question(request="graph"), timeout=60.0)

        tasks.start_soon(wait_for_ever)
        tasks.start_soon(wait_for_ever)
        with anyio.fail_after(5):
            await answers.busy.acquire()
            await answers.busy.acquire()
        with pytest.raises(ControlError, match="2 requests are under way"):
            await asked(path, "status")
        tasks.cancel_scope.cancel()


async def test_a_caller_that_never_reads_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path, pace=HASTY):
        with ExitStack() as stack:

            def deaf() -> socket.socket:
                connection = stack.enter_context(plugged(path))
                connection.sendall(b'{"v": 1, "request": "records"}\n')
                return connection

            connections = [await anyio.to_thread.run_sync(deaf) for _ in range(3)]
            assert await asked(path, "status")

            def drained() -> bytes:
                time.sleep(HASTY.write + 0.5)
                received = b""
                while chunk := connections[0].recv(1 << 20):
                    received += chunk
                return received

            assert not (await anyio.to_thread.run_sync(drained)).endswith(b"\n")


async def test_a_silent_connection_is_ended_after_its_time(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with door(path, pace=HASTY):

        def silent() -> tuple[dict[str, Any], dict[str, Any]]:
            with plugged(path) as connection:
                return heard(connection), heard(connection)

        answer, after = await anyio.to_thread.run_sync(silent)
        assert answer["error"]["code"] == "timeout"
        assert after == {}


# -- what answers at the other end ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\n", "does not speak our protocol"),
        (b'{"v":2,"ok":true,"answer":1}\n', "version 2"),
        (b'{"v":1}\n', "does not speak our protocol"),
        (b"", "without an answer"),
        (b'{"v":1,"ok"', "without an answer"),
    ],
)
async def test_a_stranger_at_the_socket_is_recognised(tmp_path: Path, answer: bytes, text: str) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()

        def serve() -> None:
            for _ in range(2):
                connection, _ = stranger.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, serve)
            with pytest.raises(ControlError, match=text):
                await asked(path, "status")
            with pytest.raises(ControlError, match=text):
                await forward(path, Question(request="status"))


async def test_a_question_too_long_for_a_line_is_not_sent(tmp_path: Path) -> None:
    question = Question(request="pause", parameters={"services": ["x" * 1000] * 100}, reason="x")
    with pytest.raises(ControlError, match="more than the"):
        call(tmp_path / "s", question)


# -- with a real supervisor behind it ---------------------------------------------------------------------------------


def fleet() -> list[Service]:
    return [
        Service("api", check=lambda: PASSING, interval=60.0),
        Service("importer", check=HeartbeatCheck(every=60.0), interval=60.0),
    ]


@pytest.mark.real_time
async def test_every_request_of_the_table_is_answered(tmp_path: Path) -> None:
    given: dict[str, dict[str, Any]] = {
        "incident": {"number": 1},
        "lift": {"suppression": "none"},
        "release": {"hold": "storm"},
        "pause": {"services": ["api"]},
        "resume": {"services": ["api"]},
        "maintenance": {"everything": True, "duration": 60},
        "silence": {"services": ["importer"]},
        "heartbeat": {"service": "importer"},
    }
    async with Supervisor(fleet(), journal=tmp_path / "selfheal.db"):
        path = tmp_path / "control.sock"
        codes: dict[str, str] = {}
        for name, request in TABLE.items():
            needed = any(parameter.name == "service" and parameter.required for parameter in request.parameters)
            parameters = given.get(name, {"service": "api"} if needed else {})
            reason = "to see" if request.act else None
            try:
                answer = await asked(path, name, parameters=parameters, reason=reason)
            except RequestRefused as refused:
                codes[name] = refused.code
            else:
                assert answer is not None or name == "heartbeat"
        assert set(codes.values()) <= {"refused", "not_found"}, codes
        audit = await asked(path, "audit")
        assert {record["actor"] for record in audit} == {ME}
        assert len(audit) == sum(request.act for request in TABLE.values())
    assert not path.exists()


@pytest.mark.real_time
async def test_the_same_act_sent_twice_is_one_act_with_one_answer(tmp_path: Path) -> None:
    async with Supervisor(fleet(), journal=tmp_path / "selfheal.db"):
        path = tmp_path / "control.sock"
        said_ = {"parameters": {"everything": True}, "reason": "twice", "key": "one-act"}
        first = await asked(path, "pause", **said_)
        assert await asked(path, "pause", **said_) == first
        assert len(await asked(path, "suppressions")) == 1


async def test_a_supervisor_in_memory_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with Supervisor(fleet(), journal=None):
        assert not os.listdir(tmp_path)
