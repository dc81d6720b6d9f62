"""Maintenance windows of the calendar: they bind from the first moment, and follow the file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from selfheal import ActionContext, Supervisor
from selfheal.calendar import MaintenanceWindow
from selfheal.config import Configuration

if TYPE_CHECKING:
    from tests.shell.supervised import MEND, Switch, hearing, quick, until, until_reason, until_state
else:
    from supervised import MEND, Switch, hearing, quick, until, until_reason, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

NOW = datetime.now(UTC)
OPEN = MaintenanceWindow(name="rack", services=("api",), start=NOW - timedelta(hours=1), end=NOW + timedelta(hours=1))
LATER = MaintenanceWindow(name="rack", services=("api",), start=NOW + timedelta(hours=1), end=NOW + timedelta(hours=2))


def house(folder: Path, switch: Switch, *windows: MaintenanceWindow) -> Configuration:
    """Return the configuration of one service with these windows."""
    api = quick("api", check=switch, recovery_actions=MEND)
    return Configuration(services=(api,), maintenance=windows, state_dir=folder)


def supervisor_of(configuration: Configuration, cures: list[str]) -> Supervisor:
    """Return a supervisor whose one cure notes that it was called."""
    supervisor = Supervisor.of(configuration)

    @supervisor.action("api", "mend")
    def mend(context: ActionContext) -> None:
        cures.append("mended")

    return supervisor


async def windows_of(supervisor: Supervisor) -> list[Any]:
    return [one["suppression"] for one in await supervisor.ask("suppressions")]


async def test_a_window_that_is_open_at_the_start_holds_everything_from_the_first_moment(tmp_path: Path) -> None:
    cures: list[str] = []
    async with supervisor_of(house(tmp_path, Switch(well=False), OPEN), cures) as supervisor:
        assert await windows_of(supervisor) == ["window:rack"], "before anything could be started"
        await until_reason(supervisor, "api", "held:maintenance")
        assert not cures


async def test_a_window_that_is_no_longer_in_the_file_ends_at_the_start(tmp_path: Path) -> None:
    cures: list[str] = []
    async with supervisor_of(house(tmp_path, Switch(), OPEN), cures) as supervisor:
        assert await windows_of(supervisor) == ["window:rack"]
    async with supervisor_of(house(tmp_path, Switch()), cures) as supervisor:
        assert await windows_of(supervisor) == []


async def test_a_reload_opens_moves_and_ends_windows(tmp_path: Path) -> None:
    cures: list[str] = []
    switch = Switch()
    async with supervisor_of(house(tmp_path, switch), cures) as supervisor, hearing(supervisor) as heard:
        await supervisor.reload(house(tmp_path, switch, OPEN))
        assert await windows_of(supervisor) == ["window:rack"]
        switch.well = False
        await until_reason(supervisor, "api", "held:maintenance")
        await supervisor.reload(house(tmp_path, switch, OPEN))
        assert len(heard.of("suppression_changed", on=True)) == 1, "the same window is no news"
        assert not cures
        await supervisor.reload(house(tmp_path, switch, LATER))
        assert await windows_of(supervisor) == []
        await until(lambda: cures, what="the cure")
        switch.well = True
        await until_state(supervisor, "api", "healthy")
        await supervisor.reload(house(tmp_path, switch, OPEN))
        await supervisor.reload(house(tmp_path, switch))
        assert await windows_of(supervisor) == []
