"""One PostgreSQL data folder is made for all tests of this plugin; each server is a copy of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.stack.postgres import Server, Template


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    with Template() as made:
        yield made


@pytest.fixture
def server(template: Template) -> Iterator[Server]:
    """A server that has not been started."""
    made = template.server()
    yield made
    made.close()


@pytest.fixture
def primary(server: Server) -> Server:
    """A server that takes connections."""
    server.start()
    return server


@pytest.fixture
def standby(primary: Server) -> Iterator[Server]:
    """A standby that streams from `primary`."""
    made = primary.standby()
    yield made
    made.close()
