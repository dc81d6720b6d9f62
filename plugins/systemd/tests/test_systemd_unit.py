"""What needs no systemd: options that are refused, and the reading of what systemd prints."""

from __future__ import annotations

import sys
from subprocess import run
from typing import Any

import pytest

from selfheal.plugins import Offering, Probing, Proving, Scaling, Starting, Watching, Workload
from selfheal_systemd.permission import rule
from selfheal_systemd.unit import read, timespan
from selfheal_systemd.workload import SystemdWorkload


@pytest.mark.parametrize(
    "name",
    ["x; touch pwned", "../../etc", "--force", "-H.service", "*.service", "a?.service", "[ab].service", "", "a b",
     "a/b.service", "redis.socket\n", "worker@.service", "a\0b", "x" * 256],
)  # fmt: skip
def test_s28_s29_a_name_that_is_no_unit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        SystemdWorkload(unit=name)


@pytest.mark.parametrize(
    "name", ["redis-server", "redis-server.service", "worker@1.service", "a.b", r"mnt-x\x2dy.service", "w@a:b"]
)
def test_a_name_of_a_unit_is_taken_with_and_without_its_type(name: str) -> None:
    assert SystemdWorkload(unit=name).unit == name.removesuffix(".service") + ".service"


@pytest.mark.parametrize(
    "options",
    [{"manager": "root"}, {"settle": -1.0}, {"settle": 301.0}, {"unexplained_end": "dead"}, {"memory_max": "much"},
     {"memory_max": 5}, {"cpus_max": 0.0}, {"cpus_max": True}, {"grow": 1.0}, {"grow": 11.0}, {"persistent": 1}],
)  # fmt: skip
def test_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        SystemdWorkload(unit="redis", **options)


def test_memory_is_written_as_people_write_it() -> None:
    for text, amount in (("2g", 2 << 30), ("512M", 512 << 20)):
        options: dict[str, Any] = {"memory_max": text}
        assert SystemdWorkload(unit="redis", **options).memory_max == amount


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10.0), ("1min 30s", 90.0), ("500ms", 0.5), ("1.500000s", 1.5), ("3us", 3e-6), ("1h", 3600.0),
     ("1w 2d", 777600.0), ("1month 1y", 34187400.0), ("infinity", None), ("", None), ("[not set]", None)],
)  # fmt: skip
def test_a_timespan_is_read_as_systemd_prints_it(text: str, seconds: float | None) -> None:
    assert timespan(text) == (None if seconds is None else pytest.approx(seconds))


def test_what_is_no_description_of_a_unit_is_no_answer() -> None:
    with pytest.raises(ValueError, match="described no unit"):
        read("a.service", "Failed to connect to bus: No such file or directory")


def test_it_is_all_that_it_says_it_is() -> None:
    one = SystemdWorkload(unit="redis")
    for interface in (Workload, Starting, Scaling, Probing, Watching, Offering, Proving):
        assert isinstance(one, interface)


def test_a_rule_quotes_what_it_is_given() -> None:
    assert r'action.lookup("unit") == "a\\x2db.service"' in rule(r"a\x2db.service", ["restart"])


def test_nothing_is_imported_before_it_is_needed() -> None:
    lines = "import selfheal_systemd, sys; assert 'selfheal_systemd.workload' not in sys.modules"
    run([sys.executable, "-c", lines], check=True)
