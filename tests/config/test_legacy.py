"""`recovery.json` as it stands: what its keys mean, and that none of them is passed over (S61)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfheal.config import Configuration, check, legacy, load
from selfheal.core.model import Effect, Priority
from selfheal.errors import ConfigurationError
from selfheal.hookspecs import hookimpl
from selfheal.loading import Tables, load_plugins

from .standins import StandIns

FILE = """
{"enabled": true, "monitoring_interval": 30, "recovery_timeout": 300, "max_concurrent_recoveries": 3,
 "notification": {"email_enabled": false, "slack_enabled": false, "webhook_url": null},
 "services": {"database": {"enabled": true, "priority": "high", "max_retries": 3,
                           "recovery_actions": ["reconnect", "restart"]},
              "redis": {"enabled": true, "priority": "medium", "max_retries": 3,
                        "recovery_actions": ["reconnect", "restart", "reset_cache"]}}}
"""


class Knowing(StandIns):
    """What a plugin that knows these services says of them."""

    @hookimpl
    def selfheal_register_presets(self) -> Mapping[str, Mapping[str, Any]]:
        return {
            "database": {
                "check": {"kind": "postgres", "url": {"env": "DATABASE_URL"}},
                "workload": {"kind": "docker", "container": "knowledgehub-database"},
                "interval": 30,
                "failure_threshold": 2,
                "backoff": {"initial": 2, "cap": 60},
            },
            "redis": {
                "check": {"kind": "redis", "url": {"env": "REDIS_URL"}},
                "workload": {"kind": "docker", "container": "knowledgehub-redis"},
                "interval": 15,
            },
        }


@pytest.fixture(scope="session")
def knowing() -> Tables:
    return load_plugins((), extra={"stand-ins": Knowing()})


@pytest.fixture(autouse=True)
def where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@db/hub")
    monkeypatch.setenv("REDIS_URL", "redis://cache")


def configured(folder: Path, text: str, tables: Tables) -> Configuration:
    file = folder / "recovery.json"
    file.write_text(text)
    return load(file, tables=tables)


def refusal(folder: Path, text: str, tables: Tables) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        configured(folder, text, tables)
    return {one.path: f"{one.message} ({one.hint})" for one in caught.value.problems}


def changed(**keys: Any) -> str:
    return json.dumps({**json.loads(FILE), **keys})


def test_s61_the_file_runs_as_it_stands(tmp_path: Path, knowing: Tables) -> None:
    found = configured(tmp_path, FILE, knowing)
    database, redis = found.services
    assert found.warnings == ()
    assert found.limits.max_concurrent_recoveries == 3
    assert [(one.name, one.priority, one.max_retries) for one in found.services] == [
        ("database", Priority.HIGH, 3),
        ("redis", Priority.MEDIUM, 3),
    ]
    assert [rung.step.action for rung in redis.recovery_actions] == ["reconnect", "restart", "reset_cache"]
    assert redis.recovery_actions[2].step.effect is Effect.DESTRUCTIVE, "and so it waits for a person"
    assert (database.kind, database.workload.container) == ("postgres", "knowledgehub-database")  # type: ignore[union-attr]
    assert (database.interval, redis.interval) == (30.0, 15.0), "what is known of a service is nearer than the top"
    assert (database.backoff.initial, database.backoff.cap, database.failure_threshold) == (2.0, 60.0, 2)
    assert database.recovery_timeout == redis.recovery_timeout == 300.0
    assert found.notifiers == {}
    assert not database.observe_only


def test_comments_may_stand_after_values_and_within_no_text(tmp_path: Path, knowing: Tables) -> None:
    text = """{ // the defaults
      "health_check_interval": 20, // seconds
      "failure_threshold": 4, "max_concurrent_recoveries": 2, "recovery_timeout": 120, "log_level": "debug", // "x": 1
      "notification": {"webhook_url": "http://hooks.example/a//b"},
      "services": {"redis": {}}
    }"""
    found = configured(tmp_path, text, knowing)
    assert found.services[0].failure_threshold == 4
    assert found.services[0].recovery_timeout == 120.0
    assert (found.limits.max_concurrent_recoveries, found.log_level) == (2, "debug")
    assert found.notifiers[legacy.WEBHOOK].url == "http://hooks.example/a//b"  # type: ignore[attr-defined]
    assert check(tmp_path / "recovery.json", tables=knowing).problems == ()


def test_where_it_is_malformed_is_told_in_spite_of_comments(tmp_path: Path, knowing: Tables) -> None:
    with pytest.raises(ConfigurationError, match="at line 3, column 1"):
        configured(tmp_path, '{ "enabled": // yes\n  true,\n]', knowing)


def test_the_names_of_the_specification_s_strategies_are_understood(tmp_path: Path, knowing: Tables) -> None:
    services = {"redis": {"initial_delay": 3, "max_delay": 9, "backoff_multiplier": 3, "dependencies": ["database"]}}
    found = configured(tmp_path, changed(services={"database": {}, **services}), knowing)
    assert (found.services[1].backoff.initial, found.services[1].backoff.cap) == (3.0, 9.0)
    assert found.services[1].backoff.multiplier == 3.0
    assert found.services[1].depends_on[0].services == ("database",)
    wrong = {"redis": {"initial_delay": -3, "dependencies": ["databse"]}}
    told = refusal(tmp_path, changed(services={"database": {}, **wrong}), knowing)
    assert "services.redis.initial_delay" in told
    assert any("database" in words for path, words in told.items() if path.startswith("services.redis.depends_on"))


def test_switched_off_is_watched_and_not_repaired_and_says_so(tmp_path: Path, knowing: Tables) -> None:
    found = configured(tmp_path, changed(enabled=False), knowing)
    assert all(one.observe_only for one in found.services)
    assert [(one.path, one.message) for one in found.warnings] == [
        ("enabled", "is false: everything is watched and told, and nothing is repaired")
    ]
    off = configured(tmp_path, changed(services={"redis": {"enabled": False}}), knowing)
    assert not off.services[0].enabled


def test_without_the_plugin_it_is_understood_and_the_answer_says_what_to_install(tmp_path: Path) -> None:
    bare = load_plugins(())
    told = refusal(tmp_path, FILE, bare)
    wanted = "nothing says how it is checked (install selfheal-core[knowledgehub], which knows its five services)"
    assert told["services.database"] == told["services.redis"] == wanted


def test_a_service_that_nobody_knows_is_told_with_those_that_are_known(tmp_path: Path, knowing: Tables) -> None:
    told = refusal(tmp_path, changed(services={"api-server": {"priority": "high"}}), knowing)
    assert told == {
        "services.api-server": "nothing says how it is checked "
        "(there are presets for: database, redis; for another, give it a `check` here)"
    }
    ours = {"api-server": {"check": {"kind": "tcp", "address": "127.0.0.1:80"}}}
    assert configured(tmp_path, changed(services=ours), knowing).services[0].kind == "tcp"


@pytest.mark.parametrize(
    ("keys", "path", "said"),
    [
        ({"monitoring_intervall": 3}, "monitoring_intervall", 'did you mean "monitoring_interval"?'),
        ({"zz": 3}, "zz", "there are: enabled, failure_threshold"),
        ({"": 3}, '""', "there are: enabled, failure_threshold"),
        ({"enabled": "yes"}, "enabled", "neither true nor false"),
        ({"monitoring_interval": -1}, "monitoring_interval", ""),
        ({"health_check_interval": 3}, "health_check_interval", "monitoring_interval"),
        ({"services": []}, "services", "is not a table"),
        ({"services": {"redis": 3}}, "services.redis", "not a table"),
        ({"services": {"redis": {"max_retrys": 3}}}, "services.redis.max_retrys", "max_retries"),
        ({"services": {"redis": {"priority": "hgih"}}}, "services.redis.priority", ""),
        ({"notification": {"email_enabled": True}}, "notification.email_enabled", "sends no mail"),
        ({"notification": {"slack_enabled": True}}, "notification.slack_enabled", "sends no Slack messages"),
        ({"notification": {"slack_enabled": "no"}}, "notification.slack_enabled", "neither true nor false"),
        ({"notification": {"webhook": ""}}, "notification.webhook", 'did you mean "webhook_url"?'),
        ({"notification": {"webhook_url": "not a url"}}, "notification.webhook_url", ""),
        ({"notification": 3}, "notification", "is not a table"),
    ],
)
def test_s61_what_cannot_be_used_is_refused_by_name(
    tmp_path: Path, knowing: Tables, keys: dict[str, Any], path: str, said: str
) -> None:
    told = refusal(tmp_path, changed(**keys), knowing)
    assert list(told) == [path]
    assert said in told[path]


def test_all_of_it_is_told_at_once(tmp_path: Path, knowing: Tables) -> None:
    text = changed(zz=1, log_level="loud", notification={"email_enabled": True}, services={"web": {}})
    assert set(refusal(tmp_path, text, knowing)) == {"zz", "log_level", "notification.email_enabled", "services.web"}


def test_our_own_file_in_json_is_ours(tmp_path: Path, knowing: Tables) -> None:
    ours = {"fleet": {"name": "x"}, "services": {"a": {"check": {"kind": "tcp", "address": "127.0.0.1:1"}}}}
    assert not legacy.recognised(ours)
    assert not legacy.recognised({"services": ours["services"]})
    assert not legacy.recognised({**ours, "enabled": True}), "then it is a key of ours that nobody knows"
    assert configured(tmp_path, json.dumps(ours), knowing).name == "x"


@pytest.mark.parametrize("word", ["INFO", "Warning", "debug"])
def test_the_level_of_the_log_is_written_as_python_does_too(tmp_path: Path, knowing: Tables, word: str) -> None:
    assert configured(tmp_path, changed(log_level=word), knowing).log_level == word.lower()


def test_s61_a_default_that_no_service_has_is_warned_of(tmp_path: Path, knowing: Tables) -> None:
    """What is known of a service is nearer. One that is met somewhere is in use."""

    def told(**keys: Any) -> list[str]:
        return [one.path for one in configured(tmp_path, changed(**keys), knowing).warnings]

    assert told(monitoring_interval=30, failure_threshold=3) == []
    assert told(monitoring_interval="20s", failure_threshold=7) == ["monitoring_interval"]
    tcp = {"check": {"kind": "tcp", "address": "127.0.0.1:1"}}
    redis = {"recovery_actions": ["restart"]}
    assert told(monitoring_interval=20, services={"redis": redis, "web": tcp}) == []
    assert told(monitoring_interval=20, services={}) == ["services"]
