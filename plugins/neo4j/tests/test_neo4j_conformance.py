"""`neo4j` does what a check must do, as a coroutine and as a talk, from both hosts; the healthy one is a real Neo4j."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import attrs
import pytest
from tests.stack.neo4j import PASSWORD, Neo4j

from selfheal import Secret, Target
from selfheal.plugins import HealthCheck
from selfheal.testing.conformance import CheckConformance
from selfheal.wire import Talk, WireCheck
from selfheal_neo4j.checks import Neo4jCheck

pytestmark = [pytest.mark.server, pytest.mark.real_time]


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neo4j]:
    one = Neo4j(tmp_path_factory.mktemp("conformance"))
    try:
        one.start()
        yield one
    finally:
        one.kill()


@attrs.frozen(kw_only=True)
class Light:
    """The talk of the check alone: a class with both is called by the kit, never talked to."""

    kind: ClassVar[str] = "neo4j"
    of: Neo4jCheck

    def target(self) -> Target:
        return self.of.target()

    def talk(self) -> Talk:
        return self.of.talk()


class Both(CheckConformance):
    runs = 10

    @pytest.fixture(autouse=True)
    def _well(self, well: Neo4j) -> None:
        self.address = f"127.0.0.1:{well.bolt_port}"

    def make(self) -> HealthCheck | WireCheck:
        return self._at(self.address)

    def make_broken(self, fault: str, address: str) -> HealthCheck | WireCheck:
        return self._at(address)

    def _at(self, address: str) -> HealthCheck | WireCheck:
        raise NotImplementedError


class TestDeep(Both):
    def _at(self, address: str) -> HealthCheck:
        return Neo4jCheck(uri=f"bolt://{address}", password=Secret(PASSWORD))


class TestLight(Both):
    secret = PASSWORD

    def _at(self, address: str) -> WireCheck:
        return Light(of=Neo4jCheck(uri=f"bolt://{address}", password=Secret(PASSWORD)))
