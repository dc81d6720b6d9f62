"""Our own actions do what an action must do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest

from selfheal.builtin.actions import HttpHook
from selfheal.plugins import Action
from selfheal.secret import Secret
from selfheal.testing.conformance import ActionConformance

if TYPE_CHECKING:
    from tests.builtin.receiver import Receiver, Reply, receiving
else:
    from receiver import Receiver, Reply, receiving

pytestmark = pytest.mark.real_time


class Endpoint(Receiver):
    """Repairs once for each key, and knows which it has repaired for."""

    def _answer(self, connection: socket.socket, reply: Reply) -> None:
        asked = self.requests[-1]
        if asked.method == "GET":
            key = parse_qs(urlsplit(asked.target).query)["key"][0]
            settled = "done" if key in self.repaired() else "not_started"
            reply = attrs.evolve(reply, body=json.dumps({"settled": settled}).encode())
        super()._answer(connection, reply)

    def repaired(self) -> set[str]:
        return {one.headers["idempotency-key"] for one in self.requests if one.method == "POST"}


class TestHttpHook(ActionConformance):
    timeout = 5.0
    runs = 3

    @pytest.fixture(autouse=True)
    def _endpoints(self) -> Iterator[None]:
        self.endpoint = Endpoint()
        with receiving() as hanging, receiving() as failing:
            hanging.always, failing.always = Reply(deed="hang"), Reply(status=503, body=b"out of order")
            self.hanging, self.failing = hanging, failing
            yield
        self.endpoint.close()

    def make(self) -> Action:
        return self._at(self.endpoint.url)

    def make_slow(self) -> Action:
        return self._at(self.hanging.url)

    def make_failing(self) -> Action:
        return self._at(self.failing.url)

    def make_broken(self, fault: str, address: str) -> Action:
        return self._at(f"http://{address}")

    def observe(self) -> object:
        return self.endpoint.repaired()

    def _at(self, url: str) -> Action:
        token = Secret("hunter2-canary-51d2e8")
        hook = HttpHook(url=f"{url}/repair", probe_url=f"{url}/settled", headers={"Authorization": token})
        return cast("Action", hook)  # its verb and effect are options, where the protocol has class variables
