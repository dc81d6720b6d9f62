"""What every test may ask for."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a maintainer accept what now happens in the stories."""
    parser.addoption(
        "--rewrite-stories", action="store_true", help="write what now happens into the files of tests/stories"
    )


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run an anyio test on both event loops."""
    backend: str = request.param
    return backend
