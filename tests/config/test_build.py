"""Files as people write them: what they mean, what is refused, and in which words."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.broken import fails_when

from selfheal.builtin.actions import HttpHook
from selfheal.config import Configuration, at_start_only, check, configure, load
from selfheal.config.build import CANARY_KEYS, POLICY_KEYS, SERVICE_KEYS, needs
from selfheal.core.model import (
    Backoff,
    Budget,
    Cause,
    DependencyKind,
    Effect,
    Limits,
    Policy,
    Priority,
    Severity,
    Window,
)
from selfheal.core.model import Canary as PlainCanary
from selfheal.errors import ConfigurationError
from selfheal.hookspecs import hookimpl
from selfheal.ladder import resolve, resolve_all
from selfheal.loading import NOT_ALLOWED, NOT_INSTALLED, Plugin, Tables, load_plugins
from selfheal.secret import Secret
from selfheal.service import DERIVED, Service, fleet_of

from .standins import DockerContainer, PostgresCheck, RedisResetCache, StandIns

EXAMPLE = """
[fleet]
name = "knowledgehub"
interval = "30s"
max_concurrent_recoveries = 3
state_dir = "/var/lib/selfheal"
plugins = ["postgres", "redis", "docker", "systemd", "starlette"]

[services.database]
priority = "high"
check = { kind = "postgres", url = { env = "DATABASE_URL" }, expect = "primary" }
workload = { kind = "docker", container = "knowledgehub-database" }
recovery_actions = ["reconnect", "restart"]
failure_threshold = 2
max_retries = 3
backoff = { initial = "2s", multiplier = 2.0, cap = "60s" }

[services.redis]
check = { kind = "redis", url = "redis://127.0.0.1:6379/0" }
workload = { kind = "docker", container = "knowledgehub-redis" }
recovery_actions = ["reconnect", "restart"]

[services.api]
check = { kind = "http", url = "http://127.0.0.1:8000/health" }
latency_objective = "500ms"
workload = { kind = "systemd", unit = "knowledgehub-api.service" }
depends_on = ["database", { service = "redis", kind = "soft" }]
recovery_actions = [
    "restart", { action = "scale_up", to = 3, cooldown = "10m", only_for = ["overloaded"] }, "manual_intervention"
]

[services.importer]
check = { kind = "heartbeat", every = "10m", grace = "2m" }
workload = { kind = "process", command = ["python", "-m", "importer"] }

[canaries.gateway]
check = { kind = "tcp", address = "192.0.2.1:53" }

[[maintenance]]
services = ["database"]
weekly = "Sun 03:00-04:00"
timezone = "UTC"

[notifiers.oncall]
kind = "webhook"
url = { file = "/run/secrets/oncall-url" }
severities = ["critical", "high"]

[http]
listen = "127.0.0.1:3000"
"""

Load = Callable[[str], Configuration]
Refuse = Callable[[str], list[str]]

TCP = 'check = { kind = "tcp", address = "127.0.0.1:1" }'


def service(text: str = "", name: str = "a") -> str:
    return f"[services.{name}]\n{TCP}\n{text}\n"


# -- the example of the documentation --------------------------------------------------------------------------------


def test_the_example_loads_as_printed(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@db/hub")
    found = loaded(EXAMPLE)
    database, redis, api, importer = found.services

    assert found.name == "knowledgehub"
    assert found.limits == Limits(max_concurrent_recoveries=3)
    assert found.state_dir == Path("/var/lib/selfheal")
    assert isinstance(database.check, PostgresCheck)
    assert database.check.url.reveal() == "postgresql://me:hunter2@db/hub"
    assert database.workload == DockerContainer(container="knowledgehub-database")
    assert (database.priority, database.failure_threshold) == (Priority.HIGH, 2)
    assert database.backoff == Backoff(initial=2.0, cap=60.0)
    assert [dependency.kind for dependency in api.depends_on] == [DependencyKind.HARD, DependencyKind.SOFT]
    assert api.latency_objective == 0.5
    scale_up = api.recovery_actions[1]
    assert scale_up.step.cooldown == 600.0
    assert scale_up.step.only_for == {Cause.OVERLOADED}
    assert scale_up.options == {"to": 3}
    assert (importer.check.every, importer.check.grace) == (600.0, 120.0)  # type: ignore[union-attr]
    assert importer.workload.state_directory == Path("/var/lib/selfheal")  # type: ignore[union-attr]
    assert [canary.name for canary in found.canaries] == ["gateway"]
    assert found.maintenance[0].services == ("database",)
    assert found.routes[0].severities == {Severity.CRITICAL, Severity.HIGH}
    assert found.notifiers["oncall"].kind == "webhook"
    assert found.frontends["http"].listen == "127.0.0.1:3000"
    assert redis.interval == 30.0
    assert "hunter2" not in repr(found)
    ladders = resolve_all(found.services, {}, found.tables.actions)
    assert [(step.how, step.step.effect) for step in ladders["database"]] == [
        ("plugin", Effect.GENTLE),
        ("workload", Effect.DISRUPTIVE),
    ]
    assert [step.how for step in ladders["api"]] == ["workload", "workload", "people"]
    assert dict(ladders["api"][1].step.arguments) == {"to": 3}
    assert len(fleet_of(found.services, canaries=found.canaries, ladders=ladders).policies) == 4


def test_check_finds_nothing_wrong_with_the_example_but_the_secrets_that_are_not_here(
    tmp_path: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    path = tmp_path / "selfheal.toml"
    path.write_text(EXAMPLE)

    report = check(path, tables=tables)

    assert report.problems == ()
    places = ["services.database.check.url", "services.importer", "notifiers.oncall.url"]
    assert [warning.path for warning in report.warnings] == places
    assert "nothing is ever repaired" in report.warnings[1].message
    assert "the environment has no DATABASE_URL" in report.warnings[0].message


# -- every key is used or refused ------------------------------------------------------------------------------------


def test_s61_every_field_of_policy_limits_and_canary_has_a_key() -> None:
    named = {"name": "the table's own name", "steps": "recovery_actions", "depends_on": "depends_on"}
    derived = {"has_workload", "fingerprint"}

    for field in attrs.fields(Policy):
        assert field.name in derived or named.get(field.name, field.name) in {*SERVICE_KEYS, named["name"]}, field.name
    for field in attrs.fields(Service):
        assert field.name == "name" or field.name in SERVICE_KEYS, field.name
    for field in attrs.fields(PlainCanary):
        assert field.name in {*CANARY_KEYS, "name", "fingerprint"}, field.name
    assert {field.name for field in attrs.fields(Policy)} - DERIVED - {"name", "depends_on"} == set(POLICY_KEYS)


def sample(cls: type[Any], name: str) -> tuple[Any, Any]:
    """Return a value other than the default of a field, as the file writes it and as it is read."""
    default = attrs.fields_dict(cls)[name].default
    special: dict[str, tuple[Any, Any]] = {
        "priority": ("low", Priority.LOW),
        "window": ({"failures": 2, "checks": 4}, Window(failures=2, checks=4)),
        "latency_objective": ("250ms", 0.25),
        "flapping": ([{"limit": 9, "per": "1h"}], (Budget(limit=9, per=3600.0),)),
        "budgets": ([{"limit": 9, "per": "1h"}], (Budget(limit=9, per=3600.0),)),
        "backoff": ({"cap": "20m"}, Backoff(cap=1200.0)),
        "slow_retry": ("off", None),
        "timeout": ("4s", 4.0),
        "jitter": (0.2, 0.2),
    }
    if name in special:
        return special[name]
    if isinstance(default, bool):
        return not default, not default
    if isinstance(default, int):
        return default + 1, default + 1
    given = default / 2 if default else 1.0
    return given, given


@pytest.mark.parametrize("name", POLICY_KEYS)
def test_each_key_of_a_policy_reaches_it_from_service_preset_and_fleet(name: str) -> None:
    given, wanted = sample(Policy, name)
    base = {"check": {"kind": "tcp", "address": "a:1"}}
    tables = attrs.evolve(Tables(), presets={"p": {name: given}})
    tables.checks.claim("tcp", "selfheal.builtin.wire_checks:TcpCheck", "selfheal")
    for data in (
        {"services": {"a": {**base, name: given}}},
        {"services": {"a": {**base, "preset": "p"}}},
        {"services": {"a": base}, "fleet": {name: given}},
    ):
        (found,) = configure(data, tables=tables).services
        assert getattr(found, name) == wanted
        assert getattr(found.policy(), name) == wanted
        assert getattr(Policy(name="a"), name) != wanted


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Limits)])
def test_each_key_of_the_limits_reaches_them(name: str, tables: Tables) -> None:
    given, wanted = sample(Limits, name)

    assert getattr(configure({"fleet": {name: given}}, tables=tables).limits, name) == wanted


def test_unknown_keys_are_refused_everywhere_at_once_with_what_was_meant(refused: Refuse) -> None:
    said = refused(
        "flet = 1\n[fleet]\nintervall = 3\nmax_retires = 1\n"
        + service("max_retires = 2\nbackoff = { inital = 3 }\nwindow = { failure = 1 }")
        + '[services.b]\ncheck = { kind = "tcp", adress = "a:1" }\ndepends_on = [{ services = "a" }]\n'
        + 'recovery_actions = [{ action = "manual_intervention", cooldwn = 3 }]\n'
        + '[canaries.c]\ncheck = { kind = "tcp", address = "a:1" }\ntimeot = 2\n'
        + '[notifiers.n]\nkind = "log"\nseverity = ["high"]\n[[maintenance]]\nservises = ["a"]\n[http]\nlissen = "a"\n'
    )

    assert [(line.split(":")[0], line.partition("did you mean ")[2].rstrip("?)")) for line in said] == [
        ("fleet.intervall", '"interval"'),
        ("fleet.max_retires", '"max_retries"'),
        ("services.a.max_retires", '"max_retries"'),
        ("services.a.backoff.inital", '"initial"'),
        ("services.a.window.failure", '"failures"'),
        ("services.b.check.adress", '"address"'),
        ("services.b.recovery_actions[0]", '"cooldown"'),
        ("services.b.depends_on[0].services", '"service"'),
        ("canaries.c.timeot", '"timeout"'),
        ("notifiers.n.severity", '"severities"'),
        ("maintenance[0].servises", '"services"'),
        ("flet", '"fleet"'),
        ("http.lissen", '"listen"'),
    ]


def test_all_values_that_are_wrong_are_told_at_once(refused: Refuse) -> None:
    said = refused(
        '[fleet]\nmax_concurrent_recoveries = 0\nstorm_share = 2\nlog_level = "loud"\n'
        + service('interval = "-5s"\nmax_retries = 0\nenabled = "false"\npriority = "urgent"\njitter = 7')
        + service('budgets = [{ limit = 0 }]\nlatency_objective = "soon"\nwindow = { failures = 5, checks = 3 }', "b")
    )

    assert [line.partition(":")[0] for line in said] == [
        "fleet.log_level",
        "fleet.max_concurrent_recoveries",
        "fleet.storm_share",
        "services.a.interval",
        "services.a.max_retries",
        "services.a.enabled",
        "services.a.priority",
        "services.a.jitter",
        "services.b.budgets[0].limit",
        "services.b.latency_objective",
        "services.b.window",
    ]
    assert "0 is out of range; give a number from 1 to 10000" in said[1]
    assert "write true or false, without quotation marks" in said[5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('interval = "400d"', "out of range"),
        ("interval = 1e300", "out of range"),
        ("interval = 0", "out of range"),
        ("interval = true", "true is not a duration"),
        ("max_retries = 3.0", "3.0 is not a whole number"),
        ('timeout = "30s"', "30 s is not below the interval of 30 s"),
        ("timeout = 31", "31 s is not below the interval of 30 s"),
        ('backoff = { initial = "10m" }', "600 s is more than the cap of 300 s"),
        ("monitoring_interval = 5\ninterval = 6", "means the same as monitoring_interval"),
        ("name = 'b'", "unknown key"),
        ("steps = []", "unknown key"),
        ("fingerprint = 'x'", "unknown key"),
    ],
)
def test_absurd_values_are_refused(refused: Refuse, text: str, words: str) -> None:
    (said,) = refused(service(text))

    assert words in said
    assert said.startswith("services.a.")


# -- names -----------------------------------------------------------------------------------------------------------


@fails_when("any text is a name")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ('"x; touch pwned"', "cannot be a name"),
        ('"../../etc"', "cannot be a name"),
        ('"canary:x"', "canary: is how canaries are told from services"),
        ('""', "the name is empty"),
        ('"-rf"', "beginning with a letter or digit"),
        (f'"{"x" * 101}"', "at most 100 characters"),
        ('"r\\u0435dis"', "CYRILLIC SMALL LETTER IE"),
        ('"\\uff52edis"', "it looks like 'redis' and is not"),
    ],
)
def test_s28_names_that_could_be_something_else_are_refused(refused: Refuse, name: str, words: str) -> None:
    for section in ("services", "canaries", "notifiers"):
        (said,) = refused(f"[{section}.{name}]\n" + ("kind = 'log'" if section == "notifiers" else TCP))
        assert words in said
        assert said.isprintable()


def test_names_that_differ_in_case_alone_are_warned_of(loaded: Load) -> None:
    (warning,) = loaded(service() + service(name="A")).warnings

    assert warning.path == "services.A"


# -- precedence ------------------------------------------------------------------------------------------------------


def test_the_service_wins_over_the_preset_over_the_fleet_over_the_default(loaded: Load) -> None:
    (found,) = loaded(
        '[fleet]\ninterval = 40\nprobation = 7\nmax_retries = 9\npriority = "low"\n'
        'backoff = { jitter = 0.25, cap = "10m", initial = "5s" }\n'
        '[services.a]\npreset = "database"\nmax_retries = 4\nbackoff = { cap = "30s" }\n'
        'check = { url = { env = "HOME" } }\n'
    ).services

    assert (found.interval, found.probation, found.max_retries, found.priority) == (20.0, 7.0, 4, Priority.HIGH)
    assert found.backoff == Backoff(jitter=0.25, cap=30.0, initial=2.0)
    assert found.failure_threshold == 3
    assert isinstance(found.check, PostgresCheck)
    assert found.check.expect == "primary"
    assert [rung.step.action for rung in found.recovery_actions] == ["reconnect"]


def test_a_check_of_another_kind_takes_nothing_from_the_preset(loaded: Load) -> None:
    (found,) = loaded(service('preset = "database"')).services

    assert found.kind == "tcp"


def test_an_unknown_preset_is_refused_with_a_suggestion(refused: Refuse) -> None:
    assert refused(service('preset = "databse"')) == [
        "services.a.preset: there is no preset 'databse' (did you mean \"database\"?)"
    ]


def test_a_notifier_that_tells_of_the_fleet_knows_its_name() -> None:
    notifiers = {"ours": {"kind": "alertmanager", "url": "http://127.0.0.1:9093"}}
    notifiers["theirs"] = {**notifiers["ours"], "fleet": "theirs"}
    found = configure({"fleet": {"name": "hub"}, "notifiers": notifiers})

    assert {name: one.fleet for name, one in found.notifiers.items()} == {"ours": "hub", "theirs": "theirs"}  # type: ignore[attr-defined]


def test_what_a_reload_does_not_take_over_is_named() -> None:
    phone = {"kind": "webhook", "url": "http://127.0.0.1:9/"}
    before = {"fleet": {"name": "hub"}, "notifiers": {"phone": phone, "gone": phone}}
    after = {
        "fleet": {"name": "hub2", "interval": 9},
        "notifiers": {"phone": {**phone, "severities": ["high"]}, "new": phone},
    }
    one, other = configure(before), configure(after)

    assert at_start_only(one, one) == ()
    assert at_start_only(one, other) == ("fleet.name", "notifiers.gone", "notifiers.new", "notifiers.phone")
    door = attrs.evolve(one, frontends={"http": object()}, routes=one.routes)
    assert at_start_only(one, door) == at_start_only(door, one) == ("http",)


def test_a_ladder_of_the_fleet_is_for_services_without_one(loaded: Load) -> None:
    first, second = loaded(
        '[fleet]\nrecovery_actions = ["manual_intervention"]\n' + service("recovery_actions = []") + service(name="b")
    ).services

    assert first.recovery_actions == ()
    assert [rung.step.action for rung in second.recovery_actions] == ["manual_intervention"]


@pytest.mark.parametrize("key", ["interval", "monitoring_interval", "health_check_interval"])
def test_the_specification_has_three_words_for_the_interval(loaded: Load, key: str) -> None:
    found = loaded(f"[fleet]\n{key} = 44\n[canaries.c]\n{TCP}\n{key} = 12\n" + service() + service(f"{key} = 7", "b"))

    assert [one.interval for one in found.services] == [44.0, 7.0]
    assert found.canaries[0].interval == 12.0


def test_a_short_interval_shortens_the_timeout_that_nobody_gave(loaded: Load) -> None:
    (found,) = loaded(service('interval = "1s"')).services

    assert found.timeout == 0.8


def test_a_fault_of_the_fleet_is_told_once_however_many_services_there_are(refused: Refuse) -> None:
    said = refused("[fleet]\nprobation = -1\n" + "".join(service(name=f"s{n}") for n in range(5)))

    assert len(said) == 1
    assert said[0].startswith("fleet.probation: -1.0 is out of range")


# -- kinds -----------------------------------------------------------------------------------------------------------


def test_a_kind_that_an_extra_would_install_says_so(refused: Refuse) -> None:
    text = "[services.a]\ncheck = { kind = 'neo4j' }\nworkload = { kind = 'compose' }\n[prometheus]\n[grafana]\n"
    assert refused(text) == [
        (
            'services.a.workload.kind: there is no workload "compose"'
            " (you have `compose` configured; install selfheal-core[docker])"
        ),
        'services.a.check.kind: there is no check "neo4j" (you have `neo4j` configured; install selfheal-core[neo4j])',
        (
            'prometheus: there is no frontend "prometheus"'
            " (you have `prometheus` configured; install selfheal-core[prometheus])"
        ),
        'grafana: there is no frontend "grafana" (there are: http)',
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[services.a]", "it has no check"),
        ("[services.a]\ncheck = 'http://a'", "write check = { kind ="),
        ("[services.a]\ncheck = { address = 'a:1' }", "it does not say its kind"),
        ("[services.a]\ncheck = { kind = 'tpc' }", 'did you mean "tcp"?'),
        ("[services.a]\ncheck = { kind = 'tcp', address = 'nonsense' }", "services.a.check.address"),
        (service("workload = { kind = 'process' }"), '"command" is missing'),
        (service("workload = { kind = 'process', command = 'python -m x' }"), "services.a.workload.command"),
        ("[notifiers.a]\nurl = 'x'", "it does not say its kind"),
        ("[notifiers.a]\nkind = 'log'\nservices = ['b']", "there is no service 'b'"),
        ("[notifiers.a]\nkind = 'log'\nescalate_after = 60\nescalate_to = 'b'", "there is no notifier 'b'"),
        ("services = 3", "is not a table"),
        ("services.a = 3", "a int is not a table"),
        ("maintenance = 3", "write [[maintenance]]"),
        ("maintenance = [3]", "write [[maintenance]]"),
        ("[[maintenance]]\nservices = ['b']\ndaily = '03:00-04:00'", "there is no service 'b'"),
        ("[[maintenance]]\nservices = []\ndaily = '03:00-04:00'", "name the services, or say everything = true"),
        ("http = 3", "unknown key"),
        ("[fleet]\nname = 'a b'", "fleet.name: 'a b' cannot be a name"),
        (service() + "[[maintenance]]\nname = 'a b'\nservices = ['a']\ndaily = '03:00-04:00'", "cannot be a name"),
        (service() + "[[maintenance]]\nservices = ['a']\nstart = 'soon'\nend = 'later'", "is not a datetime"),
        (service("recovery_actions = 'restart'"), 'write ["restart"]'),
        (service("recovery_actions = [3]"), "is no step"),
        (service("recovery_actions = [{ cooldown = 3 }]"), "it does not say its action"),
        (service("recovery_actions = ['Restart!']"), "is no verb"),
        (service("recovery_actions = [{ action = 'restart', http = { uri = 'x' } }]"), 'did you mean "url"?'),
        (
            service("recovery_actions = [{ action = 'restart', http = { url = 'http://a', verb = 'x' } }]"),
            "unknown key",
        ),
        (service("recovery_actions = [{ action = 'restart', http = 3 }]"), "write http = { url ="),
        (service("recovery_actions = [{ action = 'restart', from_attempt = 0 }]"), "recovery_actions[0].from_attempt"),
        (service("depends_on = 'b'"), 'write ["database"]'),
        (service("depends_on = [3]"), "is no dependency"),
        (service("depends_on = [{ kind = 'soft' }]"), "name one `service`, or several as `any_of`"),
        (service("depends_on = [{ service = 'b', any_of = ['c'] }]"), "name one `service`, or several as `any_of`"),
        (service("depends_on = ['a']"), "a service cannot depend on itself"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(refused: Refuse, text: str, words: str) -> None:
    said = refused(text)

    assert len(said) == (2 if "soon" in text else 1), said
    assert words in said[0]


class Odd(StandIns):
    """A plugin with an odd preset, and classes whose modules are not there."""

    @hookimpl
    def selfheal_register_presets(self) -> Any:
        return {"odd": {"intervall": 3, "probation": -1}, "odder": {"interval": object()}}

    @hookimpl
    def selfheal_register_checks(self) -> Any:
        return {"gone": "no_such_module_here:Check"}

    @hookimpl
    def selfheal_register_actions(self) -> Any:
        return {"tcp.reconnect": "no_such_module_here:Action"}


def test_what_a_plugin_did_wrong_is_told_with_the_rest_of_the_file() -> None:
    tables = load_plugins((), extra={"odd": Odd()})
    tcp = {"kind": "tcp", "address": "a:1"}

    with pytest.raises(ConfigurationError) as caught:
        configure(
            {
                "services": {
                    "a": {"preset": "odd", "check": tcp},
                    "b": {"preset": "odd", "check": tcp},
                    "c": {"preset": "odder", "check": tcp},
                    "d": {"check": {"kind": "gone"}},
                    "e": {"check": tcp, "recovery_actions": [{"action": "reconnect", "hard": True}]},
                }
            },
            tables=tables,
        )

    said = [str(problem).replace("selfheal plugins", "") for problem in caught.value.problems]
    gone = "of the plugin odd cannot be loaded: ModuleNotFoundError: No module named 'no_such_module_here'"
    assert said == [
        'preset odd.intervall: unknown key (did you mean "interval"?)',
        "preset odd.probation: -1.0 is out of range; give a number from 0 to a year",
        "preset odder: interval: is a object, which no file can hold",
        f'services.d.check.kind: the check "gone" {gone} (is everything it needs installed?)',
        f'services.e.recovery_actions[0]: the action "tcp.reconnect" {gone}',
    ]


def test_without_our_own_actions_there_is_no_http_hook() -> None:
    tables = Tables()
    tables.checks.claim("tcp", "selfheal.builtin.wire_checks:TcpCheck", "selfheal")

    with pytest.raises(ConfigurationError, match="there are no HTTP hooks here"):
        configure(
            {
                "services": {
                    "a": {
                        "check": {"kind": "tcp", "address": "a:1"},
                        "recovery_actions": [{"action": "restart", "http": {}}],
                    }
                }
            },
            tables=tables,
        )


def test_an_effect_that_cannot_be_read_is_told_once(refused: Refuse) -> None:
    (said,) = refused(
        service("recovery_actions = [{ action = 'restart', effect = 'mild', http = { url = 'http://a' } }]")
    )

    assert said.startswith("services.a.recovery_actions[0].effect: 'mild' is none of gentle, disruptive, destructive")


# -- dependencies ----------------------------------------------------------------------------------------------------


@fails_when("dependencies are not looked up", "nothing is suggested")
def test_s40_a_misspelt_dependency_is_refused_with_a_suggestion(refused: Refuse) -> None:
    assert refused(service(name="database") + service('depends_on = ["databse"]')) == [
        'services.a.depends_on[0]: there is no service "databse" (did you mean "database"?)'
    ]


@fails_when("cycles are not looked for")
def test_s41_a_cycle_is_refused_and_named(refused: Refuse) -> None:
    (said,) = refused(service('depends_on = ["b"]') + service('depends_on = ["a"]', "b"))

    assert "a cycle: a needs b needs a" in said
    assert 'kind = "soft"' in said


def test_a_service_that_cannot_be_read_is_still_known_to_those_that_need_it(refused: Refuse) -> None:
    said = refused("[services.database]\nmax_retries = 0\n" + service('depends_on = ["database"]'))

    assert not any("there is no service" in line for line in said)


# -- ladders ---------------------------------------------------------------------------------------------------------


def test_s38_an_action_of_a_check_is_found_by_its_kind_and_takes_its_options(loaded: Load) -> None:
    found = loaded(
        '[services.cache]\ncheck = { kind = "redis", url = "redis://a" }\n'
        'recovery_actions = [{ action = "reset_cache", pattern = "x:*", patience = "2m", allow_destructive = true }]\n'
    )

    (step,) = resolve(found.services[0], {}, found.tables.actions)

    assert step.target == RedisResetCache(pattern="x:*", patience=120.0)
    assert (step.how, step.step.effect, step.step.asks) == ("plugin", Effect.DESTRUCTIVE, False)


def test_an_http_hook_of_a_step_gets_the_verb_and_effect_of_the_step(loaded: Load) -> None:
    found = loaded(
        service('recovery_actions = [{ action = "reconnect", http = { url = { env = "HOME" } }, settle = "1s" }]')
    )

    (step,) = resolve(found.services[0], {}, found.tables.actions)

    assert isinstance(step.target, HttpHook)
    assert (step.how, step.target.verb, step.target.effect) == ("http", "reconnect", Effect.GENTLE)
    assert (step.step.settle, step.step.needs_running) == (1.0, True)
    assert isinstance(step.target.url, Secret)


def test_a_key_that_no_action_reads_is_found_by_check(tmp_path: Path, tables: Tables) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        '[services.a]\ncheck = { kind = "redis", url = "redis://a" }\nworkload = { kind = "docker", container = "x" }\n'
        'recovery_actions = [{ action = "restart", to = 3 }, { action = "reset_cache", patern = "x" }, "failover"]\n'
    )

    report = check(path, tables=tables)

    assert [str(problem) for problem in report.problems] == [
        (
            "services.a.recovery_actions[0]: 'to' is unknown to restart (it reads: action, effect, timeout, cooldown,"
            " settle, only_for, from_attempt, needs_running, approval, allow_destructive)"
        ),
        "services.a.recovery_actions[1]: 'patern' is unknown to redis.reset_cache (did you mean \"pattern\"?)",
        (
            'services.a.recovery_actions[2]: nothing answers "failover": the service has a workload that cannot '
            "`failover` (give it a workload that can, add http = { url = … } to the step, or register a callback)"
        ),
    ]


# -- law 19, and what is doubtful ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "[services]\n", "[fleet]\nname = 'a'\n"])
def test_law_19_empty_means_nothing(loaded: Load, text: str) -> None:
    found = loaded(text)

    assert found.services == ()
    assert [warning.path for warning in found.warnings] == ["services"]


def test_half_a_file_is_used_not_at_all(tmp_path: Path, tables: Tables) -> None:
    path = tmp_path / "selfheal.toml"
    for length in range(0, len(EXAMPLE), 7):
        path.write_text(EXAMPLE[:length])
        try:
            found = load(path, tables=tables)
        except ConfigurationError:
            continue
        assert len(found.services) <= 4


def test_what_is_doubtful_is_warned_of(loaded: Load, tmp_path: Path, tables: Tables) -> None:
    found = loaded(
        service(
            "budgets = []\nmax_retries = 2\nrecovery_timeout = 60\n"
            'recovery_actions = [{ action = "manual_intervention", from_attempt = 3, timeout = "2m" }]'
        )
        + "[notifiers.n]\nkind = 'log'\nservices = []\n"
    )

    assert [str(warning).partition(":")[0] for warning in found.warnings] == [
        "services.a.budgets",
        "services.a.recovery_actions[0]",
        "services.a.recovery_actions[0]",
        "notifiers.n",
    ]
    path = tmp_path / "selfheal.toml"
    os.chmod(path, 0o666)
    assert "anybody on this machine may write this file" in load(path, tables=tables).warnings[-1].message


@fails_when("a secret shows itself")
def test_s63_no_secret_is_in_a_problem_a_warning_or_a_repr(tables: Tables, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("hunter2-canary")
    for url in ("redis://:hunter2-canary@h", "hunter2-canary", {"file": "s"}):
        data: dict[str, Any] = {
            "services": {
                "a": {"check": {"kind": "redis", "url": url}},
                "b": {"check": {"kind": "postgres", "url": url}},
            },
            "notifiers": {"n": {"kind": "webhook", "url": "https://h/hunter2-canary", "secret": url}},
            "http": {"token": url},
        }
        found = configure(data, tables=tables, path=tmp_path / "x.toml")
        shown = repr(found) + str(found.warnings)
        assert found.services[0].check.url.reveal().count("hunter2-canary") == 1  # type: ignore[union-attr]
        for service_ in data["services"].values():
            service_["check"]["x"] = url
        data["services"]["b"]["check"]["expect"] = "what"
        data["fleet"] = {"name": url, "interval": url, "priority": url}
        with pytest.raises(ConfigurationError) as caught:
            configure(data, tables=tables)
        shown += "\n".join(str(one) for one in caught.value.problems if not one.path.startswith("fleet"))
        assert "hunter2-canary" not in shown


def test_relative_paths_start_from_the_folder_of_the_file(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    found = loaded(
        '[fleet]\nstate_dir = "state"\n'
        '[services.a]\ncheck = { kind = "redis", url = { file = "secret" } }\n'
        "[[maintenance]]\neverything = true\nstart = 2031-01-01T00:00:00\nend = 2031-01-02T00:00:00\n"
    )

    assert found.state_dir == tmp_path / "state"
    assert found.services[0].check.url.reveal() == "s"  # type: ignore[union-attr]
    assert found.maintenance[0].start is not None
    assert found.maintenance[0].start.replace(tzinfo=None) == datetime(2031, 1, 1)
    assert found.warnings == ()


def test_a_window_keeps_its_name_when_others_come_before_it(loaded: Load, refused: Refuse) -> None:
    first = "[[maintenance]]\nservices = ['a']\ndaily = '03:00-04:00'\n"
    second = "[[maintenance]]\neverything = true\nweekly = 'Sun 03:00-04:00'\n"

    alone = loaded(service() + second).maintenance[0]

    assert loaded(service() + first + second).maintenance[1].name == alone.name
    assert "is maintenance[0] again" in refused(service() + first + first)[0]


# -- what is needed, and size ----------------------------------------------------------------------------------------


def test_needs_name_every_kind_and_nothing_else() -> None:
    data = {
        "fleet": {},
        "services": {
            "a": {
                "check": {"kind": "redis"},
                "workload": {"kind": "docker"},
                "preset": "database",
                "recovery_actions": [
                    "restart",
                    "reconnect",
                    "manual_intervention",
                    {"action": "reset_cache", "http": {}},
                    {"action": 3},
                ],
            },
            "b": {"check": "x", "recovery_actions": "y"},
            "c": 3,
        },
        "canaries": {"c": {"check": {"kind": "tcp"}}},
        "notifiers": {"n": {"kind": "log"}},
        "http": {},
    }

    assert needs(data) == {
        ("check", "redis"),
        ("check", "tcp"),
        ("workload", "docker"),
        ("preset", "database"),
        ("action", "redis.reconnect"),
        ("notifier", "log"),
        ("frontend", "http"),
    }


def test_without_tables_the_plugins_are_loaded_that_are_needed_and_allowed(tmp_path: Path) -> None:
    path = tmp_path / "selfheal.toml"
    path.write_text(service())

    assert [plugin.name for plugin in load(path).tables.plugins] == ["selfheal"]
    path.write_text('[fleet]\nplugins = ["no-such-plugin"]\n' + service())
    found = load(path)
    assert [(plugin.name, plugin.reason) for plugin in found.tables.plugins if not plugin.loaded][-1] == (
        "no-such-plugin",
        NOT_INSTALLED,
    )
    assert [str(warning) for warning in found.warnings] == [
        'fleet.plugins: the plugin "no-such-plugin" is not installed (install it, or leave it out)'
    ]
    assert found.plugins == ("no-such-plugin",)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a plugin that provides the check `stranger`; return the name of its module."""
    installed = tmp_path / "site"
    (installed / "stranger-1.0.dist-info").mkdir(parents=True)
    (installed / "stranger-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (installed / "stranger-1.0.dist-info/entry_points.txt").write_text("[selfheal]\nstranger = stranger_module\n")
    (installed / "stranger_module.py").write_text(
        "import attrs\nfrom selfheal.hookspecs import hookimpl\n"
        "@attrs.frozen\nclass Check:\n    kind = 'stranger'\n    async def check(self, context): ...\n"
        "@hookimpl\ndef selfheal_register_checks(): return [Check]\n"
    )
    monkeypatch.syspath_prepend(installed)
    monkeypatch.delitem(sys.modules, "stranger_module", raising=False)
    return "stranger_module"


@pytest.mark.parametrize("given", [3, "stranger", [3], {"stranger": 1}])
def test_a_broken_allow_list_allows_nothing_and_is_refused(given: Any, stranger: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure({"fleet": {"plugins": given}, "services": {"a": {"check": {"kind": "stranger"}}}})

    assert [problem.path.partition("[")[0] for problem in caught.value.problems] == [
        "fleet.plugins",
        "services.a.check.kind",
    ]
    assert stranger not in sys.modules


def test_an_installed_plugin_is_imported_only_when_it_is_needed_or_allowed(stranger: str) -> None:
    tcp = {"a": {"check": {"kind": "tcp", "address": "a:1"}}}

    configure({"services": tcp})
    configure({"services": tcp, "fleet": {"plugins": ["other"]}})
    assert stranger not in sys.modules
    found = configure({"services": {"a": {"check": {"kind": "stranger"}}}})

    assert stranger in sys.modules
    assert found.services[0].kind == "stranger"
    assert [plugin.origin for plugin in found.tables.plugins if plugin.name == "stranger"] == ["stranger 1.0"]


@pytest.mark.slow
def test_a_hundred_thousand_services_load_in_time_that_grows_with_them(tmp_path: Path, tables: Tables) -> None:
    path = tmp_path / "large.json"
    body = ",".join(
        f'"s{n}":{{"check":{{"kind":"tcp","address":"10.0.0.1:{n % 60000 + 1}"}},"depends_on":["s{n // 10}"],'
        f'"recovery_actions":["manual_intervention"],"interval":"30s"}}'
        for n in range(1, 100_000)
    )
    path.write_text(f'{{"services":{{"s0":{{"check":{{"kind":"tcp","address":"a:1"}}}},{body}}}}}')
    began = time.perf_counter()

    found = load(path, tables=tables)

    assert len(found.services) == 100_000
    assert time.perf_counter() - began < 120.0


def test_a_preset_of_a_plugin_that_is_not_let_in_or_not_installed_says_which() -> None:
    data = {"services": {"redis": {"preset": "redis"}}}
    with pytest.raises(ConfigurationError, match=r"there is no preset 'redis' \(install selfheal-core\[knowledgehub"):
        configure(data, tables=load_plugins(()))
    barred = Plugin(name="knowledgehub", loaded=False, reason=NOT_ALLOWED)
    with pytest.raises(ConfigurationError, match=r'"knowledgehub" is disabled: .* \(add it to `plugins`\)'):
        configure(data, tables=attrs.evolve(load_plugins(()), plugins=(barred,)))
