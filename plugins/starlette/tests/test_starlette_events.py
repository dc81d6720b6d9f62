"""The stream: every record in order, from where one was, for who may listen, and gone when the server stops."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectSendStream
from starlette.requests import Request
from tests.servers import until
from tests.stack.starlette import MANY, Fleet, Listener, Served, api, settled

from selfheal.errors import NotRunning
from selfheal.requests import Scope
from selfheal_starlette import Caller
from selfheal_starlette.ending import Listening
from selfheal_starlette.events import Bounds, Feed
from selfheal_starlette.tickets import GOOD_FOR, Tickets
from selfheal_starlette.tokens import FILE, TokenBook, TokenFile

pytestmark = pytest.mark.real_time


def act(served: Served, number: int = 1, **headers: str) -> None:
    """Make records: switch a service off and on again."""
    for _ in range(number):
        for verb in ("disable", "enable"):
            assert served.post(f"/services/mail/{verb}", headers=headers).status_code == 200


def newest(served: Served, **headers: str) -> int:
    return int(served.get("/history?limit=1", headers=headers).json()["records"][0]["seq"])


def has_reached(listener: Listener, last: int) -> bool:
    return listener.ids[-1:] >= [last]


def test_a_listener_hears_every_record_as_it_is_in_the_journal(tmp_path: Path) -> None:
    with api(tmp_path, rates=MANY, loopback_writes=True) as served:
        settled(served)
        listener = Listener(served).start()
        assert listener.status == 200
        act(served)
        until(lambda: [one for one in listener.heard if one["kind"] == "answered"][1:], "both answers are heard")
        assert listener.ids == [one["seq"] for one in listener.heard]
        stored = served.get(f"/records?after={listener.ids[0] - 1}").json()["records"]
        assert listener.heard == stored[: len(listener.heard)]


def test_who_resumes_gets_what_was_missed_once_and_in_order(tmp_path: Path) -> None:
    with api(tmp_path, rates=MANY, loopback_writes=True) as served:
        settled(served)
        act(served)
        seen = newest(served)
        act(served, 2)
        by_header = Listener(served, headers={"Last-Event-ID": str(seen)}).start()
        by_query = Listener(served, path=f"/events?after={seen}").start()
        until(lambda: by_header.heard and by_query.heard, "what was missed is told")
        act(served)
        last = newest(served)
        whole = Listener(served, headers={"Last-Event-ID": "0"}).start()
        for one in (by_header, by_query, whole):
            until(partial(has_reached, one, last), "everything is told")
        for one, first in ((by_header, seen + 1), (by_query, seen + 1), (whole, 1)):
            assert [number for number in one.ids if number <= last] == list(range(first, last + 1))


def test_when_the_one_that_hears_for_all_leaves_nobody_misses_a_record(tmp_path: Path) -> None:
    with api(tmp_path, rates=MANY, loopback_writes=True, bounds=Bounds(life=2.0)) as served:
        settled(served)
        first = Listener(served).start()
        time.sleep(1.0)  # so that the first ends well before the second
        second = Listener(served).start()
        began = newest(served)
        while not first.ended:
            served.post("/services/job/enable")
            time.sleep(0.05)
        last = newest(served)
        until(lambda: second.ids[-1:] >= [last] or second.ended, "the newest is heard")
        assert [one for one in second.ids if began < one <= last] == list(range(began + 1, last + 1))


def test_a_sign_of_life_comes_when_nothing_else_does_and_a_stream_ends_in_time(tmp_path: Path) -> None:
    with api(tmp_path, bounds=Bounds(heartbeat=0.1, life=0.8)) as served:
        settled(served)
        listener = Listener(served).start()
        listener.until_ended()
        assert listener.comments >= 3


def test_a_stream_without_a_scope_is_refused(tmp_path: Path) -> None:
    with api(tmp_path) as served:
        served.token("chief", "admin")
        assert Listener(served).start().status == 401
        assert Listener(served, path="/events?ticket=made.up").start().status == 401


def test_a_ticket_opens_the_stream_once(tmp_path: Path) -> None:
    with api(tmp_path) as served:
        reader = served.token("reader", "read")
        given = served.post("/events/ticket", headers=reader).json()
        assert given["good_for_seconds"] == GOOD_FOR
        opened = Listener(served, path=f"/events?ticket={given['ticket']}").start()
        assert opened.status == 200
        assert Listener(served, path=f"/events?ticket={given['ticket']}").start().status == 401
        assert served.get(f"/status?ticket={given['ticket']}").status_code == 401
        assert served.post("/events/ticket").status_code == 401


def test_when_a_token_is_revoked_its_streams_end_and_its_tickets_are_none(tmp_path: Path) -> None:
    with api(tmp_path, bounds=Bounds(heartbeat=0.1)) as served:
        reader = served.token("reader", "read")
        served.token("another", "read")
        ticket = served.post("/events/ticket", headers=reader).json()["ticket"]
        listener = Listener(served, headers=reader).start()
        assert listener.status == 200
        file = TokenFile(tmp_path / FILE)
        (mine,) = [one for one in file.read() if one.name == "reader"]
        file.revoke(mine.id)
        listener.until_ended()
        assert Listener(served, path=f"/events?ticket={ticket}").start().status == 401


@pytest.mark.parametrize("how", ["logged out", "another user", "the store of sessions is down"])
def test_when_the_host_does_not_know_its_user_any_more_the_stream_ends(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    knows: list[Any] = [Caller(name="ann", scope=Scope.READ)]

    async def authenticate(request: Request) -> Caller | None:
        if isinstance(knows[0], Exception):
            raise knows[0]
        found: Caller | None = knows[0]
        return found

    with api(tmp_path, authenticate=authenticate, bounds=Bounds(heartbeat=0.1, again=0.3)) as served:
        listener = Listener(served).start()
        until(lambda: listener.comments >= 8, "it is asked for again, and listens on")
        assert not listener.ended
        knows[0] = {
            "logged out": None,
            "another user": Caller(name="bob", scope=Scope.READ),
            "the store of sessions is down": OSError("no sessions"),
        }[how]
        listener.until_ended()
        assert ("who listens over HTTP could not be asked for again" in caplog.text) == how.startswith("the store")


def test_tickets_are_for_their_time_and_cannot_be_made_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile(tmp_path / FILE)

    _, token = file.create("reader", Scope.READ)
    book = TokenBook(file)
    book.read()
    tickets, another = Tickets(), Tickets()
    good = tickets.give("reader", token)
    body, _, signature = good.partition(".")
    for bad in (
        "",
        ".",
        good[:-1],
        f"{body}x.{signature}",
        f"{body}.{'0' * 64}",
        "é",
        "x" * 5000,
        "e30.00",
        "bnVsbA.00",
    ):
        assert tickets.redeem(bad, book) is None, bad
    assert another.redeem(good, book) == {"name": "reader", "scope": Scope.READ, "token": token.id}
    assert another.redeem(good, book) is None
    assert another.redeem(tickets.give("ann", None), book) is None
    assert tickets.redeem(tickets.give("ann", None), book) == {"name": "ann", "scope": Scope.READ, "token": ""}
    late = tickets.give("reader", token)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + GOOD_FOR + 1)
    assert tickets.redeem(late, book) is None


def test_streams_are_bounded_in_all_and_for_each_caller(tmp_path: Path) -> None:
    with api(tmp_path, bounds=Bounds(streams=3, of_a_caller=2)) as served:
        ann, bob = served.token("ann", "read"), served.token("bob", "read")
        for _ in range(2):
            assert Listener(served, headers=ann).start().status == 200
        assert Listener(served, headers=ann).start().status == 429
        assert Listener(served, headers=bob).start().status == 200
        assert Listener(served, headers=bob).start().status == 503


def test_a_client_that_reads_nothing_is_cut_and_resumes_where_it_was(tmp_path: Path) -> None:
    bounds = Bounds(room=16, write=0.5, heartbeat=0.2)
    with api(tmp_path, rates=MANY, loopback_writes=True, bounds=bounds) as served:
        settled(served)
        act(served, 40)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.connect(("127.0.0.1", served.port))
            # Whoever asks for the whole history again and again and reads none of it fills the buffers of the kernel.
            slow.sendall(b"GET /api/recovery/events?after=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            until(lambda: slow.recv(1, socket.MSG_PEEK), "it has begun")
            fast = Listener(served).start()
            act(served)
            until(lambda: len(fast.heard) >= 4, "the others hear what comes")
            seen = newest(served)
        resumed = Listener(served, headers={"Last-Event-ID": "5"}).start()
        until(lambda: resumed.ids[-1:] >= [seen], "it has caught up")
        assert resumed.ids[: seen - 5] == list(range(6, seen + 1))


async def _always() -> bool:
    return True


@pytest.mark.anyio
async def test_a_client_without_room_is_cut_and_the_others_hear_on() -> None:
    """One client never takes anything; the other hears every record."""
    supervised = Told()
    feed = Feed(supervised, Bounds(room=4, look=0.02, write=60.0))
    heard: list[bytes] = []
    over, everything = anyio.Event(), anyio.Event()

    async def never() -> dict[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    async def stuck(message: Any) -> None:
        if message["type"] == "http.response.body" and message["body"].startswith(b"id:"):
            await anyio.sleep_forever()

    async def quick(message: Any) -> None:
        heard.append(message.get("body", b""))
        if b"id: 10\n" in heard[-1]:
            everything.set()

    async def listen(send: Any, name: str) -> None:
        await feed.serve(
            {"type": "http"},
            never,
            send,
            caller=name,
            after=None,
            headers=[],
            still=_always,
        )
        if name == "stuck":
            over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen, stuck, "stuck")
        tasks.start_soon(listen, quick, "quick")
        with anyio.fail_after(30.0):
            await supervised.subscribed.wait()
            await anyio.wait_all_tasks_blocked()
            assert feed.open == 2
            for number in range(1, 11):
                supervised.tell(number)
                await anyio.wait_all_tasks_blocked()
            await over.wait()
            await everything.wait()
        assert feed.open == 1
        feed.closing = True
    assert [line for line in b"".join(heard).splitlines() if line.startswith(b"id:")] == [
        b"id: %d" % number for number in range(1, 11)
    ]


class Told:
    """A supervisor that keeps what it is told to tell, and tells it to who listens."""

    running = True
    journal = None

    def __init__(self) -> None:
        self.subscribed = anyio.Event()
        self._kept: list[dict[str, Any]] = []
        self._open: MemoryObjectSendStream[dict[str, Any]] | None = None

    async def ask(self, name: str, **parameters: Any) -> Any:
        if name == "history":
            return self._kept[-1:]
        return [one for one in self._kept if one["seq"] > parameters["after"]][: parameters["limit"]]

    async def act(self, name: str, **parameters: Any) -> dict[str, Any]:
        raise NotRunning

    def tell(self, number: int) -> None:
        self._kept.append({"seq": number, "kind": "moved"})
        if self._open is not None:
            self._open.send_nowait(self._kept[-1])

    @asynccontextmanager
    async def told(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        self._open, receive = anyio.create_memory_object_stream[dict[str, Any]](100)
        self.subscribed.set()
        try:
            async with receive, self._open:
                yield receive
        finally:
            self._open = None


def test_a_socket_that_listens_is_found_and_its_end_is_seen() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    found = Listening.of({"server": ("127.0.0.1", port)})
    assert found is not None
    assert not found.closed
    listening.close()
    assert found.closed
    assert Listening.of({"server": ("127.0.0.1", port)}) is None
    assert Listening.of({"server": None}) is None
    assert Listening.of({}) is None


def test_streams_end_when_the_engine_stops(tmp_path: Path) -> None:
    """The host's supervisor ends before its server does."""
    import anyio.from_thread
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from tests.stack.starlette import PREFIX, serving

    from selfheal_starlette import recovery_app
    from selfheal_starlette.supervised import Across

    fleet = Fleet(tmp_path)
    supervisor = fleet.supervisor()
    with anyio.from_thread.start_blocking_portal() as portal:
        app = Starlette(routes=[Mount(PREFIX, app=recovery_app(Across(supervisor, portal)))])
        with serving(app, fleet) as served:
            with portal.wrap_async_context_manager(supervisor):
                settled(served)
                listener = Listener(served).start()
                assert listener.status == 200
            listener.until_ended()
            response = served.get("/status")
            assert (response.status_code, response.json()["code"]) == (503, "not_running")
