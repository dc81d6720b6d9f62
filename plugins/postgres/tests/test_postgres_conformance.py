"""The plugin's classes do what their kinds must do: the check on both of its roads, and both actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest
from tests.servers import free_port
from tests.stack.postgres import WATCHER, WATCHER_PASSWORD, Server, Template
from tests.stack.postgres_workload import Postmaster

from selfheal.plugins import Action, HealthCheck, Workload
from selfheal.secret import Secret
from selfheal.testing import servers
from selfheal.testing.conformance import ActionConformance, CheckConformance
from selfheal.wire import WireCheck
from selfheal_postgres.check import PostgresCheck
from selfheal_postgres.failover import Failover
from selfheal_postgres.reconnect import Reconnect

pytestmark = [pytest.mark.server, pytest.mark.real_time]


@pytest.fixture(scope="class")
def primary(template: Template) -> Iterator[Server]:
    """A server for all duties, nobody's child: the kit counts what descends from this process."""
    made = template.server()
    made.start_apart()
    made.ask(f"GRANT pg_read_all_stats TO {WATCHER}")
    made.ask(f"GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) TO {WATCHER}")
    yield made
    made.close()


def url(address: str) -> str:
    return f"postgresql://{WATCHER}@{address}/postgres"


class TestCheck(CheckConformance):
    """Its talk and its check alike."""

    timeout = 3.0
    runs = 10

    @pytest.fixture(autouse=True)
    def _well(self, primary: Server) -> None:
        self.address = f"127.0.0.1:{primary.port}"

    def make(self) -> HealthCheck | WireCheck:
        return self._at(self.address)

    def make_broken(self, fault: str, address: str) -> HealthCheck | WireCheck:
        return self._at(address)

    def _at(self, address: str) -> HealthCheck | WireCheck:
        return PostgresCheck(url=url(address), password=Secret(WATCHER_PASSWORD))


class TestReconnect(ActionConformance):
    """Its address is the check's, and so it is the check that is made to be broken."""

    timeout = 5.0
    runs = 5
    check: HealthCheck | None  # type: ignore[misc]  # each situation has its own
    inapplicable: ClassVar[Mapping[str, str]] = {"observe": "a log-in changes nothing"}

    @pytest.fixture(autouse=True)
    def _well(self, primary: Server) -> Iterator[None]:
        self.address = f"127.0.0.1:{primary.port}"
        with servers.hang() as self.hanging:
            yield

    def make(self) -> Action:
        return self._at(self.address)

    def check_at(self, address: str) -> HealthCheck:
        return PostgresCheck(url=url(address), password=Secret(WATCHER_PASSWORD))

    def make_slow(self) -> Action:
        return self._at(self.hanging)

    def make_failing(self) -> Action:
        return self._at(f"127.0.0.1:{free_port()}")

    def _at(self, address: str) -> Action:
        self.check = self.check_at(address)
        return Reconnect()


@pytest.mark.slow
class TestFailover(ActionConformance):
    """Each action that is made is given a standby that has not been promoted yet."""

    timeout = 10.0
    runs = 3
    check: HealthCheck | None  # type: ignore[misc]  # it names a server of this test
    workload: Workload | None  # type: ignore[misc]  # as above

    @pytest.fixture(autouse=True)
    def _well(self, server: Server) -> Iterator[None]:
        server.start_apart()
        server.ask(f"GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer) TO {WATCHER}")
        self.primary, self.fresh = server, server.copied_to_standby()
        self.standby: Server | None = None
        self.check = PostgresCheck(url=server.url(password=None), password=Secret(WATCHER_PASSWORD))
        self.workload = Postmaster(server=server)
        with servers.hang() as self.hanging:
            yield
        if self.standby is not None:
            self.standby.close()

    def make(self) -> Action:
        if not self.primary.alive:
            self.primary.start_apart()
        if self.standby is None or self.standby.ask("SELECT pg_is_in_recovery()") == "f":
            if self.standby is not None:
                self.standby.close()
            self.standby = self.fresh.copy()
            self.standby.start_apart()
        return self._to(f"127.0.0.1:{self.standby.port}")

    def make_broken(self, fault: str, address: str) -> Action:
        return self._to(address)

    def make_slow(self) -> Action:
        return self._to(self.hanging)

    def make_failing(self) -> Action:
        return self._to(f"127.0.0.1:{free_port()}")

    def observe(self) -> object:
        """Return on which timeline the standby writes: each promotion begins a new one."""
        if self.standby is None:
            return "none yet"
        return self.standby.ask(
            "SELECT CASE WHEN pg_is_in_recovery() THEN 'none' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END"
        )

    def _to(self, address: str) -> Action:
        return Failover(standby=Secret(url(address)), fence="stop")
