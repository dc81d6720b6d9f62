"""What the tests of the configuration ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from selfheal.config import Configuration, load
from selfheal.errors import ConfigurationError
from selfheal.loading import Tables, load_plugins

from .standins import StandIns


@pytest.fixture(scope="session")
def tables() -> Tables:
    return load_plugins((), extra={"stand-ins": StandIns()})


@pytest.fixture
def loaded(tmp_path: Path, tables: Tables) -> Callable[[str], Configuration]:
    """Load a text as a file."""

    def go(text: str) -> Configuration:
        path = tmp_path / "selfheal.toml"
        path.write_text(text, encoding="utf-8")
        return load(path, tables=tables)

    return go


@pytest.fixture
def refused(loaded: Callable[[str], Configuration]) -> Callable[[str], list[str]]:
    """Return the problems of a text that is refused."""

    def go(text: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            loaded(text)
        return [str(problem) for problem in caught.value.problems]

    return go
