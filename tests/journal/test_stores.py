"""Both stores keep the same promises."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from selfheal.journal import MemoryStore, SqliteStore, Store
from selfheal.testing.stores import StoreConformance


class TestMemory(StoreConformance):
    def open_store(self) -> Store:
        return MemoryStore()


class TestSqlite(StoreConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.names = count()

    def open_store(self) -> Store:
        return SqliteStore.open(self.folder / f"{next(self.names)}.db")
