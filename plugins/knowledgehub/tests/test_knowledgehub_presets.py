"""What is known of the five services, and that everything of it may be said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfheal import Backoff, Priority, Secret, Service, Step
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.config import check, configure, load
from selfheal.errors import ConfigurationError
from selfheal.ladder import resolve_all
from selfheal.loading import Tables, load_plugins
from selfheal_docker.workload import DockerWorkload
from selfheal_knowledgehub import presets, service
from selfheal_neo4j.checks import Neo4jCheck
from selfheal_postgres.check import PostgresCheck
from selfheal_systemd.workload import SystemdWorkload

VARIABLES = {
    "DATABASE_URL": "postgresql+asyncpg://hub:sesame@db.example:5433/knowledgehub",
    "REDIS_URL": "redis://:sesame@cache.example:6380/1",
    "WEAVIATE_URL": "http://vectors.example:8080",
    "NEO4J_URI": "bolt://graph.example",
    "NEO4J_USER": "neo4j",
    "NEO4J_PASSWORD": "sesame",
    "MINIO_ENDPOINT": "objects.example:9000",
    "MINIO_ACCESS_KEY": "hub",
    "MINIO_SECRET_KEY": "sesame-sesame",
}
OPTIONAL = ("WEAVIATE_API_KEY", "MINIO_SECURE", "NEO4J_AUTH", "DOCKER_HOST")

SPECIFICATION = """
database | high   | 3 | reconnect, restart              | 2 | 2, 60, 30
redis    | medium | 3 | reconnect, restart, reset_cache | 2 | 1, 30, 15
weaviate | high   | 2 | restart                         | 3 | 5, 120, 60
neo4j    | medium | 2 | restart                         | 3 | 10, 180, 60
minio    | low    | 2 | restart                         | 2 | 3, 90, 45
"""
"""The table of KnowledgeHub's specification, column by column."""

NAMES = tuple(line.split()[0] for line in SPECIFICATION.strip().splitlines())


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    for name in OPTIONAL:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return load_plugins()


def read(services: dict[str, Any], **fleet: Any) -> dict[str, Service]:
    """Return the services of a file, as if it were read now."""
    data = {"fleet": fleet, "services": services}
    return {one.name: one for one in configure(data).services}


def refusal(services: dict[str, Any], **fleet: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(services, **fleet)
    return str(caught.value)


# -- the table --------------------------------------------------------------------------------------------------------


def rows() -> list[tuple[Any, ...]]:
    found = []
    for line in SPECIFICATION.strip().splitlines():
        name, priority, retries, actions, failures, times = (cell.strip() for cell in line.split("|"))
        first, cap, interval = (float(number) for number in times.split(","))
        found.append((name, priority, int(retries), actions.split(", "), int(failures), first, cap, interval))
    return found


@pytest.mark.parametrize("given", ["file", "python"])
def test_each_preset_is_the_row_of_the_specification(given: str) -> None:
    named = read({name: {"preset": name} for name in NAMES}) if given == "file" else {n: service(n) for n in NAMES}
    found = [
        (
            one.name,
            one.priority.name.lower(),
            one.max_retries,
            [rung.step.action for rung in one.recovery_actions],
            one.failure_threshold,
            one.backoff.initial,
            one.backoff.cap,
            one.interval,
        )
        for one in named.values()
    ]
    assert found == rows()
    assert [(one.kind, one.workload) for one in named.values()] == [
        (kind, DockerWorkload(container=f"knowledgehub-{name}"))
        for kind, name in zip(("postgres", "redis", "weaviate", "neo4j", "minio"), NAMES, strict=True)
    ]


def test_s27_every_step_of_every_preset_is_answered_and_what_deletes_asks_first(tables: Tables) -> None:
    named = [service(name) for name in NAMES]
    found = resolve_all(named, {}, tables.actions)
    assert {name: [step.step.effect.value for step in steps] for name, steps in found.items()} == {
        "database": ["gentle", "disruptive"],
        "redis": ["gentle", "disruptive", "destructive"],
        **{name: ["disruptive"] for name in ("weaviate", "neo4j", "minio")},
    }
    assert found["redis"][2].step.asks, "nothing is deleted before a person has said so"


def test_file_and_python_make_the_same_services() -> None:
    for name, one in read({name: {"preset": name} for name in NAMES}).items():
        assert one == service(name)
        assert one.policy(key=b"key").fingerprint == service(name).policy(key=b"key").fingerprint


# -- everything may be said otherwise ---------------------------------------------------------------------------------

OTHERWISE: dict[str, tuple[Any, Any, Any]] = {
    # key: what the file says, what is said in Python, what it must be
    "priority": ("low", "low", Priority.LOW),
    "max_retries": (7, 7, 7),
    "failure_threshold": (9, 9, 9),
    "interval": ("2m", 120.0, 120.0),
    "backoff": ({"initial": 1, "cap": 7}, Backoff(initial=1.0, cap=7.0), Backoff(initial=1.0, cap=7.0)),
    "recovery_actions": (["manual_intervention"], ["manual_intervention"], ["manual_intervention"]),
    "check": (
        {"kind": "tcp", "address": "10.0.0.1:1"},
        TcpCheck(address="10.0.0.1:1"),
        TcpCheck(address="10.0.0.1:1"),
    ),
    "workload": (
        {"kind": "systemd", "unit": "x.service"},
        SystemdWorkload(unit="x.service"),
        SystemdWorkload(unit="x.service"),
    ),
}


def value_of(one: Service, key: str) -> Any:
    return [rung.step.action for rung in one.recovery_actions] if key == "recovery_actions" else getattr(one, key)


def test_no_key_of_a_preset_is_left_out_here() -> None:
    assert {key for keys in presets({}).values() for key in keys} == OTHERWISE.keys()


@pytest.mark.parametrize("key", OTHERWISE)
@pytest.mark.parametrize("name", NAMES)
def test_the_service_goes_before_its_preset_in_a_file_and_in_python(name: str, key: str) -> None:
    in_file, in_python, wanted = OTHERWISE[key]
    assert value_of(read({name: {"preset": name, key: in_file}})[name], key) == wanted
    assert value_of(service(name, **{key: in_python}), key) == wanted
    assert value_of(service(name), key) != wanted or (name, key) == ("minio", "priority"), "it would show nothing"


@pytest.mark.parametrize("key", ["priority", "max_retries", "failure_threshold", "interval", "recovery_actions"])
def test_the_preset_goes_before_the_fleet_and_the_fleet_before_the_default(key: str) -> None:
    """The preset is nearer: what is known of a service holds, whatever holds for all others."""
    in_file, _, wanted = OTHERWISE[key]
    bare = {"check": {"kind": "tcp", "address": "127.0.0.1:1"}}
    with_fleet = read({"redis": {"preset": "redis"}, "other": bare}, **{key: in_file})
    assert value_of(with_fleet["other"], key) == wanted
    assert value_of(with_fleet["redis"], key) == value_of(service("redis"), key) != wanted
    assert value_of(read({"other": bare})["other"], key) != wanted, "and without both it is the default"


def test_what_a_preset_does_not_say_comes_from_the_fleet() -> None:
    found = read({"redis": {"preset": "redis"}}, probation="9m", recovery_timeout="7m", backoff={"multiplier": 3})
    redis = found["redis"]
    assert (redis.probation, redis.recovery_timeout) == (540.0, 420.0)
    assert redis.backoff == Backoff(initial=1.0, cap=30.0, multiplier=3.0), "delays are merged key by key"


def test_one_option_of_a_check_or_a_workload_may_be_said_otherwise() -> None:
    check = {"expect": "primary", "url": "postgresql://other.example/hub"}
    database = read({"database": {"preset": "database", "check": check, "workload": {"container": "pg"}}})["database"]
    assert isinstance(database.check, PostgresCheck)
    assert (database.check.expect, database.check.address().host) == ("primary", "other.example")
    assert database.workload == DockerWorkload(container="pg")
    renamed = read({"primary": {"preset": "database", "interval": 5}})["primary"]
    assert (renamed.interval, renamed.priority) == (5.0, Priority.HIGH), "a preset goes with any name"
    assert service("redis", name="cache", recovery_actions=[Step(action="restart")]).name == "cache"


def test_a_neo4j_without_authentication_is_said_by_a_password_that_is_none() -> None:
    neo4j = read({"neo4j": {"preset": "neo4j", "check": {"password": None}}})["neo4j"].check
    assert isinstance(neo4j, Neo4jCheck)
    assert neo4j.credentials() == {"scheme": "none"}


def test_a_neo4j_without_authentication_is_said_in_toml_or_by_the_variable_of_its_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEO4J_PASSWORD")
    file = tmp_path / "selfheal.toml"
    for written, variable in (("check = { authentication = false }", ""), ("", "none")):
        monkeypatch.setenv("NEO4J_AUTH", variable)
        file.write_text(f'[services.neo4j]\npreset = "neo4j"\n{written}\n')
        assert check(file).problems == ()
        (neo4j,) = load(file).services
        assert isinstance(neo4j.check, Neo4jCheck)
        assert neo4j.check.credentials() == {"scheme": "none"}
    assert [problem for problem in check(file).warnings if "NEO4J_PASSWORD" in str(problem)] == []
    monkeypatch.setenv("NEO4J_AUTH", "neo4j/sesame")
    assert "password" in presets(os.environ)["neo4j"]["check"]


@pytest.mark.parametrize(("interval", "timeout"), [(1, 0.8), (0.5, 0.4), (5, 4.0), (6.25, 5.0), (60, 5.0)])
def test_a_short_interval_shortens_what_a_check_may_take(interval: float, timeout: float) -> None:
    for name in NAMES:
        found = read({name: {"preset": name, "interval": interval}})[name]
        assert found.interval == interval
        assert found.timeout == pytest.approx(timeout)
        assert service(name, interval=float(interval)).timeout == pytest.approx(timeout)


def test_a_timeout_that_does_not_fit_the_interval_is_refused_with_both_numbers() -> None:
    said = refusal({"redis": {"preset": "redis", "interval": 1, "timeout": 2}})
    assert "services.redis" in said
    assert "timeout: 2 s is not below the interval of 1 s" in said
    # One of the fleet that the shorter interval of a preset has no room for is refused too, and not shortened.
    said = refusal({"redis": {"preset": "redis"}}, timeout=20, interval=60)
    assert "services.redis" in said
    assert "20 s is not below the interval of 15 s" in said


# -- the variables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "postgres+x"])
def test_a_url_of_sqlalchemy_is_one_of_the_database(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://hub:p%40ss@db.example/knowledgehub?ssl=require&pool_size=5")
    database = read({"database": {"preset": "database"}})["database"].check
    assert isinstance(database, PostgresCheck)
    address = database.address()
    assert (address.host, address.port, address.user, address.password, address.database) == (
        "db.example",
        5432,
        "hub",
        "p@ss",
        "knowledgehub",
    )


def test_every_target_is_where_the_variables_say() -> None:
    named = read({name: {"preset": name} for name in NAMES})
    found: dict[str, Any] = {name: one.check.target() for name, one in named.items()}  # type: ignore[union-attr]
    assert {name: (target.host, target.port, target.tls is not None) for name, target in found.items()} == {
        "database": ("db.example", 5433, False),
        "redis": ("cache.example", 6380, False),
        "weaviate": ("vectors.example", 8080, False),
        "neo4j": ("graph.example", 7687, False),
        "minio": ("objects.example", 9000, False),
    }


def test_variables_that_are_read_late_are_read_each_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    named = read({name: {"preset": name} for name in NAMES})
    for name, value in VARIABLES.items():
        if "example" in value:
            monkeypatch.setenv(name, value.replace(".example", ".invalid"))
    assert {one.check.target().host.partition(".")[2] for one in named.values()} == {"invalid"}  # type: ignore[union-attr]


def test_further_variables_count_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    without: dict[str, Any] = {name: one.check for name, one in read({n: {"preset": n} for n in NAMES}).items()}
    assert without["weaviate"].api_key is None
    assert not without["minio"].secure
    monkeypatch.setenv("WEAVIATE_API_KEY", "sesame")
    monkeypatch.setenv("MINIO_SECURE", "True")
    monkeypatch.setenv("NEO4J_USER", "steward")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
    monkeypatch.delenv("MINIO_ACCESS_KEY")
    named = read({name: {"preset": name} for name in NAMES})
    found: dict[str, Any] = {name: one.check for name, one in named.items()}
    assert found["weaviate"].api_key.reveal() == "sesame"
    assert found["minio"].target().tls is not None
    assert (found["minio"].access_key, found["minio"].secret_key) == (None, None), "one key is none"
    assert found["neo4j"].user == "steward"
    assert {one.workload.host for one in named.values()} == {"unix:///run/user/1000/docker.sock"}  # type: ignore[union-attr]
    monkeypatch.delenv("NEO4J_USER")
    neo4j = service("neo4j").check
    assert isinstance(neo4j, Neo4jCheck)
    assert neo4j.user == "neo4j"


@pytest.mark.parametrize("word", ["true", "1", "ON", " yes", "false", "0", "no", ""])
def test_minio_secure_is_a_word(word: str) -> None:
    secure = presets({"MINIO_SECURE": word})["minio"]["check"].get("secure", False)
    assert secure is (word in {"true", "1", "ON", " yes"})


def test_s40_a_dependency_that_is_misspelt_is_refused_with_the_preset_s_name() -> None:
    said = refusal({"redis": {"preset": "redis", "depends_on": ["databse"]}, "database": {"preset": "database"}})
    assert said.startswith("services.redis.depends_on")
    assert "database" in said


def test_s63_no_password_of_the_variables_is_in_a_preset_a_service_or_a_warning(tmp_path: Path) -> None:
    named = [service(name) for name in NAMES]
    file = tmp_path / "selfheal.toml"
    file.write_text("".join(f'[services.{name}]\npreset = "{name}"\n' for name in NAMES))
    report = check(file)
    assert report.problems == report.warnings == ()
    told = [repr(presets({**VARIABLES, "WEAVIATE_API_KEY": "sesame"})), repr(named), repr(report)]
    assert not [text for text in told if "sesame" in text]


def test_a_variable_that_is_not_set_is_warned_of_by_its_name_and_refuses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name)
    found = configure({"services": {name: {"preset": name} for name in NAMES}})
    told = {one.path: one.message for one in found.warnings}
    assert {path: message.rpartition(" ")[2] for path, message in told.items()} == {
        "services.database.check.url": "DATABASE_URL",
        "services.redis.check.url": "REDIS_URL",
        "services.weaviate.check.url": "WEAVIATE_URL",
        "services.neo4j.check.uri": "NEO4J_URI",
        "services.neo4j.check.password": "NEO4J_PASSWORD",
        "services.minio.check.url": "MINIO_ENDPOINT",
    }


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_nothing_of_a_service_or_of_the_supervisor_is_imported_before_it_is_asked_for() -> None:
    code = """
import sys
from selfheal.loading import load_plugins
tables = load_plugins(["knowledgehub"])
assert sorted(tables.presets) == ["database", "minio", "neo4j", "redis", "weaviate"], tables.plugins
import selfheal_knowledgehub
ours = ("postgres", "redis", "weaviate", "neo4j", "minio", "docker")
early = [name for name in sys.modules for each in ours if name.split(".")[0] in (each, f"selfheal_{each}", "psycopg")]
assert not early, early
assert "selfheal.shell.once" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_preset_that_is_none_and_a_field_that_is_none_are_refused_in_python() -> None:
    with pytest.raises(KeyError, match="databse"):
        service("databse")
    with pytest.raises(TypeError, match="intervall"):
        service("redis", intervall=3.0)
    with pytest.raises(ValueError, match="interval"):
        service("redis", interval=-1.0)
    assert isinstance(service("redis").check.url, Secret)  # type: ignore[union-attr]
