"""One Docker Engine for all tests of this plugin, and no container left over from one test to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.stack.docker import DockerEngine, engine


@pytest.fixture(scope="session")
def _engine() -> Iterator[DockerEngine]:
    with engine() as one:
        yield one


@pytest.fixture
def docker(_engine: DockerEngine) -> Iterator[DockerEngine]:
    yield _engine
    _engine.tidy()
