"""Whatever a file holds, loading it ends in a configuration or in a `ConfigurationError`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfheal.config import check, configure
from selfheal.config.build import CANARY_KEYS, POLICY_KEYS, SECTIONS, SERVICE_KEYS, needs
from selfheal.config.legacy import TOP
from selfheal.errors import ConfigurationError
from selfheal.ladder import STEP_KEYS, RecoveryAction, resolve_all
from selfheal.loading import Tables, load_plugins

from .standins import StandIns

TABLES = load_plugins((), extra={"stand-ins": StandIns()})

KEYS = sorted(
    {*SECTIONS, *SERVICE_KEYS, *CANARY_KEYS, *POLICY_KEYS, *STEP_KEYS, "kind", "url", "http", "env", "file", "any_of"}
    | {"service", "services", "severities", "everything", "limit", "per", "initial", "cap", "failures", "checks", "to"}
)
WORDS = ["tcp", "http", "postgres", "redis", "docker", "process", "restart", "a", "b", "database", "soft", "high", "1m"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*WORDS, *RecoveryAction])
)
keys = st.sampled_from(KEYS) | st.text(max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["a", "b", "database", "Database", "x; touch pwned", "canary:x", "ｒedis"])


def near(known: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Tables with keys of ours and values of any kind."""
    return st.dictionaries(st.sampled_from(known) | keys, values, max_size=5)


objects = st.fixed_dictionaries(
    {"kind": st.sampled_from([*TABLES.checks, *TABLES.workloads, "nothing"])},
    optional={
        "url": values,
        "address": values,
        "container": values,
        "unit": values,
        "command": values,
        "every": values,
    },
)
steps = st.lists(
    st.sampled_from(list(RecoveryAction))
    | st.fixed_dictionaries(
        {"action": st.sampled_from([*RecoveryAction, "vacuum", "a b"])},
        optional=dict.fromkeys((*STEP_KEYS[1:], "http", "to", "pattern"), values),
    )
    | values,
    max_size=3,
)
services = st.fixed_dictionaries(
    {},
    optional={
        "check": objects | values,
        "workload": objects | values,
        "recovery_actions": steps | values,
        "depends_on": st.lists(names | values, max_size=3) | values,
        "preset": st.just("database") | values,
        **dict.fromkeys(("interval", "timeout", "backoff", "window", "budgets", "priority", "slow_retry"), values),
    },
)
files = (
    st.fixed_dictionaries(
        {},
        optional={
            "fleet": near(list(POLICY_KEYS)) | values,
            "services": st.dictionaries(names, services | values, max_size=3) | values,
            "canaries": st.dictionaries(names, near(sorted(CANARY_KEYS)), max_size=2) | values,
            "notifiers": st.dictionaries(names, objects | near(["kind", "url", "severities", "services"]), max_size=2)
            | values,
            "maintenance": st.lists(near(["services", "weekly", "everything"]), max_size=2) | values,
            "http": near(["listen", "token"]) | values,
            "hhtp": values,
        },
    )
    | st.dictionaries(keys, values, max_size=3)
    | st.dictionaries(st.sampled_from([*sorted(TOP), ""]), values, max_size=5)
)


@given(files)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_data_becomes_a_configuration_or_a_configuration_error(data: dict[str, Any]) -> None:
    try:
        needs(data)
        configuration = configure(data, tables=TABLES, path=Path("/etc/selfheal.toml"))
        resolve_all(configuration.services, {}, TABLES.actions)
    except ConfigurationError as refused:
        problems = refused.problems
    else:
        return
    assert problems
    for problem in problems:
        assert problem.path
        assert problem.message
        assert str(problem).isprintable(), str(problem)


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode(errors="surrogatepass")))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_any_bytes_become_a_report(tmp_path: Path, suffix: str, tables: Tables, content: bytes) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content)

    report = check(path, tables=tables)

    assert report.problems or report.configuration is not None
