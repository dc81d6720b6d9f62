"""What the tests of every plugin may ask for: the same as those of the house."""

from __future__ import annotations

from tests.conftest import anyio_backend, pytest_collection_finish

__all__ = ["anyio_backend", "pytest_collection_finish"]
