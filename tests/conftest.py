"""What every test may ask for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Tests share code as `tests.core.nets…`: found by `python -m pytest`, which puts this folder on the path, and so by
# plain `pytest` too.
ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)


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
