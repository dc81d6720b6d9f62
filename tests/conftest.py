"""What every test may ask for."""

from __future__ import annotations

import gc
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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what pytest holds out of every later collection of garbage.

    Thousands of tests with all that they import are some 300,000 objects: a full collection of them stops every thread
    for 0.2 s and more, which a loop that is watched for blocking, and a check that is to be on time, take for a fault.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run an anyio test on both event loops."""
    backend: str = request.param
    return backend
