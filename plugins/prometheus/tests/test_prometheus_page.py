"""The how-to page: what it tells people to paste is what Prometheus takes, and its alerts fire when they should."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from tests.stack.prometheus import promtool

from selfheal import metrics
from selfheal.analytics.tally import Tally
from selfheal.config import configure
from selfheal.core.ledger import Ledger

PAGE = Path(__file__).resolve().parents[3] / "docs/how-to/scrape-with-prometheus.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
YAML = [text for kind, text in BLOCKS if kind == "yaml"]
RULES = next(text for text in YAML if text.startswith("groups:"))
ALERTS = re.findall(r"alert: (\w+)", RULES)

needs_promtool = pytest.mark.server


@needs_promtool
def test_prometheus_takes_every_scrape_configuration_of_the_page(tmp_path: Path) -> None:
    scraped = [text for text in YAML if text.startswith("scrape_configs:")]
    assert len(scraped) == 2
    for text in scraped:
        (tmp_path / "prometheus.yml").write_text(text)
        checked = promtool("check", "config", "--syntax-only", str(tmp_path / "prometheus.yml"))
        assert checked.returncode == 0, checked.stderr


@needs_promtool
def test_prometheus_takes_the_three_alerts_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(RULES)
    checked = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert checked.returncode == 0, checked.stderr
    assert "SUCCESS: 3 rules found" in checked.stdout


UP, RUNNING = 'up{job="selfheal"}', 'selfheal_running{job="selfheal"}'
FAILED, RECOVERING = (f'service_health_status{{service="web",state="{one}"}}' for one in ("failed", "recovering"))
REPAIRED = 'recovery_attempts_total{service="web",action="restart",result="success"}'
SKIPPED = 'recovery_attempts_total{service="web",action="restart",result="superseded"}'

QUIET = {UP: "1x1500", RUNNING: "1x1500", FAILED: "0x1500", RECOVERING: "0x1500", REPAIRED: "7x1500", SKIPPED: "0x1500"}
"""A day, a sample a minute, of a fleet to which nothing happens."""

LABELS = {
    "SelfhealGone": {"job": "selfheal", "severity": "critical"},
    "ServiceStaysDown": {"service": "web", "severity": "critical"},
    "ServiceIsRepairedOften": {"service": "web", "severity": "warning"},
}

EVERY_FOUR_HOURS = " ".join(f"{count}x239" for count in range(7))


@needs_promtool
@pytest.mark.parametrize(
    ("changed", "alert"),
    [
        ({}, None),
        ({UP: "0x1500"}, "SelfhealGone"),
        ({UP: "_x1500", RUNNING: "_x1500"}, "SelfhealGone"),
        ({RUNNING: "0x1500"}, "SelfhealGone"),
        ({FAILED: "1 0 1 0 1 0 1x1500", RECOVERING: "0 1 0 1 0 1 0x1500"}, "ServiceStaysDown"),
        ({REPAIRED: EVERY_FOUR_HOURS}, "ServiceIsRepairedOften"),
        ({SKIPPED: EVERY_FOUR_HOURS}, None),
    ],
    ids=["quiet", "gone", "never seen", "engine stopped", "down", "repaired often", "healed by itself"],
)
def test_an_alert_of_the_page_fires_when_it_should(tmp_path: Path, changed: dict[str, str], alert: str | None) -> None:
    (tmp_path / "rules.yml").write_text(re.sub(r" +annotations:\n(?: {10}.*\n)+", "", RULES))  # prose, compared as well
    series = [{"series": name, "values": values} for name, values in {**QUIET, **changed}.items()]
    fired = [{"exp_labels": LABELS[alert]}] if alert is not None else []
    rules = [{"eval_time": "1439m", "alertname": name, "exp_alerts": fired if name == alert else []} for name in ALERTS]
    one = {"interval": "1m", "input_series": series, "alert_rule_test": rules}
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": [one]}))
    tested = promtool("test", "rules", "test.yml", cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_page_names_every_family_and_no_other() -> None:
    moment = metrics.Moment.of(Ledger(), running=True)
    families = [*metrics.counted(moment, Tally(), 0.0), *metrics.live(moment)]
    table = re.findall(r"^\| `(\w+)(?:{[\w,]+})?` \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(table) == sorted((one.name, one.kind) for one in families)


def test_the_tables_of_the_page_are_read() -> None:
    tables = [text for kind, text in BLOCKS if kind == "toml"]
    assert len(tables) == 2
    for text in tables:
        assert set(configure(tomllib.loads(text)).frontends) == {"prometheus"}
