"""The crash harness: every point is found, the kill is real, and a careless program is caught."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from selfheal.testing.crashes import Crash, Life, crashes, live

if TYPE_CHECKING:
    from tests.testing import crash_scripts
else:
    import crash_scripts


def counted(folder: Path) -> int:
    path = folder / "count"
    return int(path.read_text()) if path.exists() else 0


def test_a_life_without_a_crash_tells_its_points_and_its_words(tmp_path: Path) -> None:
    life = live(crash_scripts.count, tmp_path, 2)
    assert life == Life(killed=False, points=("begun", "written", "begun", "written", "done"), said=("1", "2"))
    assert counted(tmp_path) == 2


def test_every_point_is_found_each_time_it_is_passed(tmp_path: Path) -> None:
    assert crashes(crash_scripts.count, tmp_path, 2) == [
        Crash("begun"),
        Crash("written"),
        Crash("begun", 2),
        Crash("written", 2),
        Crash("done"),
    ]


def acknowledged_and_lost(folder: Path, *, careless: bool) -> list[Crash]:
    lost = []
    for number, crash in enumerate(crashes(crash_scripts.count, folder, 2, careless)):
        mine = folder / str(number)
        mine.mkdir()
        life = live(crash_scripts.count, mine, 2, careless, crash=crash)
        assert life.killed
        assert life.points[-1] == crash.point
        assert life.points.count(crash.point) == crash.occurrence
        if int(life.said[-1] if life.said else 0) > counted(mine):
            lost.append(crash)
    return lost


def test_a_careful_program_keeps_what_it_acknowledged_wherever_it_is_killed(tmp_path: Path) -> None:
    assert acknowledged_and_lost(tmp_path, careless=False) == []


def test_a_careless_one_is_caught(tmp_path: Path) -> None:
    lost = acknowledged_and_lost(tmp_path, careless=True)
    assert lost == [Crash("begun"), Crash("written"), Crash("begun", 2), Crash("written", 2)]


def test_a_point_it_never_comes_to_kills_nobody(tmp_path: Path) -> None:
    assert not live(crash_scripts.count, tmp_path, 2, crash=Crash("begun", 3)).killed


def test_an_error_is_told_and_is_no_crash() -> None:
    with pytest.raises(RuntimeError, match=r"stumble ended with 1(.|\n)*KeyError: 'nothing of the kind'"):
        live(crash_scripts.stumble, crash=Crash("later"))


def test_points_are_not_counted_in_a_life_that_somebody_else_ended() -> None:
    assert live(crash_scripts.commit_suicide) == Life(killed=True, points=("last",), said=())
    with pytest.raises(RuntimeError, match="nobody asked"):
        crashes(crash_scripts.commit_suicide)


def test_what_a_child_left_behind_is_neither_waited_for_nor_killed() -> None:
    life = live(crash_scripts.leave_somebody, 120.0, crash=Crash("started"), timeout=60.0)
    (line,) = life.said
    assert life.killed
    os.kill(int(line), signal.SIGKILL)  # it would be an error if it were not there any more


def test_a_point_in_threads_is_counted_once_for_each() -> None:
    assert len(crashes(crash_scripts.in_threads)) == 8
    assert live(crash_scripts.in_threads, crash=Crash("there", 8)).points == ("there",) * 8


def test_code_without_points_is_given_some_for_a_while() -> None:
    assert crashes(crash_scripts.through_a_door) == [Crash("before open"), Crash("after open")]
    assert live(crash_scripts.through_a_door, crash=Crash("before open")).said == ()


def test_a_script_that_takes_too_long_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        live(crash_scripts.count, "/nonexistent", 10**12, timeout=0.01)


def test_a_script_a_child_cannot_import_is_refused() -> None:
    with pytest.raises(ValueError, match="module of its own"):
        live(lambda crash_point: None)
    program = "from selfheal.testing.crashes import live\ndef f(point): pass\nlive(f)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "cannot import it from __main__" in ended.stderr
