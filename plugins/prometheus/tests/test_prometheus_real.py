"""A real Prometheus scrapes a real daemon, which is killed in the middle of a repair."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import House
from tests.servers import free_port, until
from tests.stack.fleets import EAGER
from tests.stack.prometheus import PrometheusServer, promtool

pytestmark = [pytest.mark.server, pytest.mark.real_time]

RECOVERED = 'recovery_attempts_total{service="web",action="restart",result="success"}'


def in_the_journal(house: House, sql: str) -> Any:
    """Ask the journal's file itself, past all of selfheal."""
    with closing(sqlite3.connect(f"file:{house.state / 'selfheal.db'}?mode=ro", uri=True, timeout=10.0)) as journal:
        return journal.execute(sql).fetchone()[0]


RESTARTS = "SELECT count(*) FROM records WHERE kind = 'intended' AND service = 'web'"

RECOVERIES = (
    "SELECT count(*) FROM records WHERE kind = 'moved' AND service = 'web' "
    "AND json_extract(body, '$.before.state') = 'recovering' AND json_extract(body, '$.after.state') = 'healthy'"
)


def test_s50_the_counters_of_a_daemon_that_was_killed_go_on_and_prometheus_sees_no_reset(
    house: House, tmp_path: Path
) -> None:
    port = free_port()
    house.write(f'[prometheus]\nlisten = "127.0.0.1:{port}"\n', fleet=EAGER)
    daemon = house.start()
    house.settled()
    with PrometheusServer(tmp_path / "prometheus", f"127.0.0.1:{port}") as prometheus:
        prometheus.becomes('service_health_status{service="web",state="healthy"}', 1)
        prometheus.becomes(RECOVERED, 0)

        house.break_(house.web)
        prometheus.becomes(RECOVERED, 1)
        house.settled()

        house.break_(house.web)
        until(lambda: in_the_journal(house, RESTARTS) == 2, "the second restart is intended")
        daemon.kill()
        daemon.wait()
        prometheus.becomes('up{job="selfheal"}', 0)

        house.start()
        prometheus.becomes(RECOVERED, 2)
        house.settled()
        house.break_(house.web)
        prometheus.becomes(RECOVERED, 3)

        assert in_the_journal(house, RECOVERIES) == 3
        # The one that the kill met may have been intended twice, by how far it had come.
        assert prometheus.number('sum(recovery_attempts_total{service="web"})') == in_the_journal(house, RESTARTS)
        for name in ("attempts_total", "duration_seconds_count", "duration_seconds_sum", "duration_seconds_bucket"):
            resets = prometheus.query(f"resets(recovery_{name}[5m])")
            assert resets
            assert set(resets.values()) == {0}, name
        assert (prometheus.number(f"increase({RECOVERED}[5m])") or 0.0) >= 3.0
        assert prometheus.number('recovery_duration_seconds_count{service="web",action="restart"}') == 3
        assert prometheus.number('recovery_duration_seconds_bucket{service="web",le="+Inf"}') == 3

        uptimes = prometheus.query("service_uptime_percentage")
        assert {dict(labels)["service"] for labels in uptimes} == {"web", "shop"}  # of the job nothing is known
        said = house.ask("statistics", "web")["services"]["web"]["uptime_percentage"]
        (seen,) = [share for labels, share in uptimes.items() if dict(labels)["service"] == "web"]
        assert 0.0 < seen < 100.0
        assert seen == pytest.approx(said, abs=5.0)

        kinds = {name: one[0]["type"] for name, one in prometheus.api("metadata").items()}
        wanted = {
            "recovery_attempts_total": "counter",
            "recovery_duration_seconds": "histogram",
            "service_health_status": "gauge",
            "service_uptime_percentage": "gauge",
        }
        # In OpenMetrics a counter's family is named without the end of its samples.
        assert {kinds.get(name) or kinds.get(name.removesuffix("_total")) for name in wanted} == set(wanted.values())
        assert prometheus.trouble == ""


def test_series_of_a_service_that_was_removed_vanish(house: House, tmp_path: Path) -> None:
    port = free_port()
    table = f'[prometheus]\nlisten = "127.0.0.1:{port}"\n'
    house.write(f'[services.extra]\ncheck = {{ kind = "heartbeat", every = "10m", grace = "2m" }}\n{table}')
    daemon = house.start()
    house.settled()
    count = 'count({service="extra"})'
    with PrometheusServer(tmp_path / "prometheus", f"127.0.0.1:{port}") as prometheus:
        until(lambda: (prometheus.number(count) or 0) > 7, "the service has its series")
        house.write(table)
        daemon.send_signal(1)
        prometheus.becomes(count, None)
        prometheus.becomes('up{job="selfheal"}', 1)


def test_a_scrape_shows_its_token(house: House, tmp_path: Path) -> None:
    port = free_port()
    house.write(f'[prometheus]\nlisten = "127.0.0.1:{port}"\ntoken = {{ env = "SCRAPE_TOKEN" }}\n')
    house.start(SCRAPE_TOKEN="a long word")
    with PrometheusServer(tmp_path / "wrong", f"127.0.0.1:{port}", token="another") as prometheus:
        assert "401" in until(lambda: prometheus.trouble, "the scrape is refused")
    with PrometheusServer(tmp_path / "right", f"127.0.0.1:{port}", token="a long word") as prometheus:
        prometheus.becomes('up{job="selfheal"}', 1)
    assert "a long word" not in house.log()


def test_promtool_finds_nothing_to_say_of_what_a_daemon_exposes_and_leaves_behind(house: House) -> None:
    daemon = house.start()
    house.settled()
    house.break_(house.web)
    until(lambda: [one for one in house.ask("incidents") if not one["open"]], "it was repaired")
    text = house.run("metrics").stdout
    assert 'recovery_duration_seconds_count{service="web",action="restart"} 1' in text
    daemon.terminate()
    assert daemon.wait(30) == 0
    left = house.run("metrics").stdout
    counted = [line for line in text.splitlines() if line.startswith("recovery_")]
    assert [line for line in left.splitlines() if line.startswith("recovery_")] == counted, "the journal is there"
    assert "selfheal_running 1" in text
    assert "selfheal_running" not in left
    for one in (text, left):
        checked = promtool("check", "metrics", said=one)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    broken = promtool("check", "metrics", said=text.replace("# HELP recovery_attempts_total", "# HELP another_total"))
    assert broken.returncode != 0, "promtool has something to say of a family without help"
