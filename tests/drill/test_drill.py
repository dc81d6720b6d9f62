"""The quick drill: one fault for each server, then servers and application at once, in a real KnowledgeHub.

The whole table is `python -m tests.drill`; see docs/explanation/drill.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import attrs
import pytest
from tests.servers import until

DRIVERS = ("minio", "neo4j", "psycopg", "psycopg_pool", "redis", "urllib3")
PLUGINS = ("docker", "minio", "neo4j", "postgres", "redis", "systemd", "weaviate")

REQUIRED = "docker" in os.environ.get("SELFHEAL_REQUIRE", "").split(",")

try:
    from tests.drill import table
    from tests.drill.__main__ import chosen, drilled
    from tests.drill.breaking import Fault, killed
    from tests.drill.faults import FAULTS, QUICK
    from tests.drill.judge import Row, run
    from tests.drill.servers import APPLICATION, SERVICES
    from tests.drill.stage import Stage, standing
except ModuleNotFoundError as missing:
    if missing.name not in DRIVERS or REQUIRED:
        raise
    pytest.skip(f"the drill needs the driver {missing.name}", allow_module_level=True)


@pytest.fixture(autouse=True)
def plugins() -> None:
    """Skip, or fail where it is required, without the plugins that the daemon is to load."""
    if missing := [name for name in PLUGINS if find_spec(f"selfheal_{name}") is None]:
        (pytest.fail if REQUIRED else pytest.skip)(f"the drill needs the plugins {', '.join(missing)}")


def rows_of(
    kind: str, faults: Sequence[Fault], names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> list[Row]:
    """Run the drill and show its rows as they come, also where nothing is wrong."""
    rows: list[Row] = []
    for row in drilled(kind, list(faults), names):
        rows.append(row)
        with capsys.disabled():
            print(f"\n{table.line(row)}", end="", flush=True)
    return rows


def all_good(rows: Sequence[Row]) -> None:
    bad = [f"{row.fault.title}, {row.fault.name}: {breach}" for row in rows for breach in row.breaches]
    assert not bad, "\n".join(bad)


def test_every_server_has_six_faults_and_one_in_which_nothing_is_to_be_restarted() -> None:
    for service in SERVICES:
        faults = FAULTS[service]
        assert len(faults) >= 6
        assert any("restart" not in fault.steps[service] for fault in faults)
        assert len({fault.name for fault in faults}) == len(faults)
    assert all(any(fault.name == name for fault in FAULTS[about]) for about, name in QUICK.items())


@pytest.mark.server
@pytest.mark.real_time
@pytest.mark.slow
def test_one_fault_for_each_container_is_repaired_in_order_and_nothing_else_is_touched(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults = chosen(FAULTS, (), quick=True)
    assert len(faults) == len(QUICK)
    all_good(rows_of("containers", faults, SERVICES, capsys))


@pytest.mark.server
@pytest.mark.real_time
@pytest.mark.slow
def test_units_of_systemd_are_repaired_in_order_and_nothing_else_is_touched(capsys: pytest.CaptureFixture[str]) -> None:
    faults = [one for one in FAULTS["redis"] if one.name in ("killed", "stopped")]
    faults += [one for one in FAULTS["together"] if one.services == ("database", "redis", "api")]
    all_good(rows_of("units", faults, ("database", "redis"), capsys))


@pytest.mark.server
@pytest.mark.real_time
@pytest.mark.slow
def test_the_judge_sees_what_is_lost_and_who_was_touched_and_who_was_not_repaired() -> None:
    """A drill that cannot fail shows nothing: here people do the harm that selfheal must not do."""

    def harm(stage: Stage) -> float:
        at = killed("redis").begin(stage)
        until(stage.hub["redis"].serves, "redis is repaired")
        assert stage.hub["redis"].kit.ask("DEL", "drill:1") == 1
        stage.host.stop(APPLICATION)
        stage.host.start(APPLICATION)
        return at

    fault = attrs.evolve(killed("redis"), begin=harm, steps={"redis": "restart restart"}, within=20.0)
    with standing("containers", ("redis",)) as stage:
        breaches = " | ".join(run(stage, fault).breaches)
    assert "redis: steps were 'restart', not 'restart restart'" in breaches
    assert "redis has lost 1 of" in breaches
    assert "api is another incarnation, and was not to be touched" in breaches
