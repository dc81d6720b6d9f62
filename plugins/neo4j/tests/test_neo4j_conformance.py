"""`neo4j` does what a check must do, as a coroutine and as a talk, from both hosts; the healthy one is a real Neo4j."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.stack.neo4j import PASSWORD, Neo4j

from selfheal import Secret
from selfheal.plugins import HealthCheck
from selfheal.testing.conformance import CheckConformance
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


class TestCheck(CheckConformance):
    """Its talk and its check alike."""

    runs = 10
    secret = PASSWORD

    @pytest.fixture(autouse=True)
    def _well(self, well: Neo4j) -> None:
        self.address = f"127.0.0.1:{well.bolt_port}"

    def make(self) -> HealthCheck:
        return self._at(self.address)

    def make_broken(self, fault: str, address: str) -> HealthCheck:
        return self._at(address)

    def _at(self, address: str) -> HealthCheck:
        return Neo4jCheck(uri=f"bolt://{address}", password=Secret(PASSWORD))
