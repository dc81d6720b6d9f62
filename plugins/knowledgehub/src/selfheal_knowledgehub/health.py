"""The five services as objects: the health of each as a function of no arguments, and each as a `Service`.

The functions are for code that knows nothing of selfheal. Each is `async () -> bool`, on asyncio and on trio. What they
connect to, they read from the application's variables each time they are called, and they keep nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import anyio.to_thread

import selfheal
from selfheal import Backoff, Secret, SelfhealError, Service, Verdict
from selfheal.secret import scrub
from selfheal_knowledgehub.presets import presets

TIMEOUT: Final = 5.0
"""Seconds that one look may take in all."""

DRIVERS: Final[Mapping[str, str]] = {"postgres": "psycopg", "redis": "redis", "neo4j": "neo4j", "minio": "minio"}
"""Kind of a check -> the package of its driver. Weaviate is asked without one."""

EXAMPLES: Final[Mapping[str, str]] = {
    "DATABASE_URL": "postgresql://user:password@localhost:5432/knowledgehub",
    "REDIS_URL": "redis://localhost:6379/0",
    "WEAVIATE_URL": "http://localhost:8080",
    "NEO4J_URI": "bolt://localhost:7687",
    "NEO4J_PASSWORD": "the password of NEO4J_USER",
    "MINIO_ENDPOINT": "localhost:9000",
}
"""What stands in each variable that must be set."""


class Unanswered(SelfhealError, NameError):
    """Nothing could be found out: a variable is not set, or the check itself could not run.

    It says nothing about the service. It is a `NameError` so that a supervisor which has one of these functions for a
    check concludes nothing from it (INCONCLUSIVE), and restarts nothing.
    """


async def check_database_health() -> bool:
    """Whether PostgreSQL at `DATABASE_URL` lets us in and answers. Raises as `well` does."""
    return await well("database")


async def check_redis_health() -> bool:
    """Whether Redis at `REDIS_URL` answers. Raises as `well` does."""
    return await well("redis")


async def check_weaviate_health() -> bool:
    """Whether Weaviate at `WEAVIATE_URL` is ready. Raises as `well` does."""
    return await well("weaviate")


async def check_neo4j_health() -> bool:
    """Whether Neo4j at `NEO4J_URI` answers `NEO4J_USER` with `NEO4J_PASSWORD`. Raises as `well` does."""
    return await well("neo4j")


async def check_minio_health() -> bool:
    """Whether MinIO at `MINIO_ENDPOINT` serves and, where both are set, takes its two keys. Raises as `well` does."""
    return await well("minio")


async def well(name: str) -> bool:
    """Return True while a service does its work, well or with a warning, and False when it does not.

    Raises `ModuleNotFoundError`, which names the extra, when the plugin or its driver is missing, and `Unanswered` when
    nothing could be found out: neither True nor False would be true then.
    """
    keys = presets(os.environ)[name]["check"]
    for value in keys.values():
        if isinstance(value, Mapping):
            _read(value["env"])
    check, check_once = await anyio.to_thread.run_sync(_prepared, keys)  # the first call imports
    result = await check_once(check, timeout=TIMEOUT, deep="secret_key" in keys)
    if result.verdict is Verdict.INCONCLUSIVE:
        raise Unanswered(f"nothing could be found out about {name}: {result.summary}")
    return result.verdict is not Verdict.FAILING


def service(preset: str, **given: Any) -> Service:
    """Return one of the five as a `Service`; `given` are fields of it, and go before those of the preset.

    Raises `ModuleNotFoundError`, which names the extra, `KeyError` for a preset that is none, and what `Service`
    raises.
    """
    keys = presets(os.environ)[preset]
    for section in ("check", "workload"):
        keys[section] = given[section] if section in given else _made(section, keys[section])
    keys["backoff"] = Backoff(**keys["backoff"])
    return Service(given.pop("name", preset), **{**keys, **given})


def _prepared(keys: Mapping[str, Any]) -> tuple[Any, Any]:
    check = _made("check", keys)
    try:
        check.target()
    except ValueError as problem:
        variable = keys["uri" if "uri" in keys else "url"]["env"]
        why = scrub(str(problem), [os.environ.get(variable, "")]).removeprefix("url: ").removeprefix("uri: ")
        raise Unanswered(f"the variable {variable} cannot be used: {why}{_example(variable)}") from None
    return check, selfheal.check_once


def _made(section: str, table: Mapping[str, Any]) -> Any:
    """Return the plugin object of a table, as a file would have it."""
    kind = str(table["kind"])
    options = {option: _given(value) for option, value in table.items() if option != "kind"}
    try:
        if kind in DRIVERS and find_spec(DRIVERS[kind]) is None:
            raise ModuleNotFoundError(name=DRIVERS[kind])
        registered = getattr(import_module(f"selfheal_{kind}"), f"selfheal_register_{section}s")()
        module, _, name = registered[kind].partition(":")
        return getattr(import_module(module), name)(**options)
    except ModuleNotFoundError as missing:
        hint = f"pip install 'selfheal-core[{kind}]'"
        raise ModuleNotFoundError(f"{missing.name or kind} is not installed: {hint}", name=missing.name) from None


def _given(value: Any) -> Any:
    """Return the value of an option: a secret for one that lies in a variable."""
    if not isinstance(value, Mapping):
        return value
    variable = value["env"]
    return Secret(lambda: _read(variable), source=f"env {variable}")


def _read(variable: str) -> str:
    if not (value := os.environ.get(variable)):
        why = "is not set" if value is None else "is empty"
        raise Unanswered(f"the variable {variable} {why}{_example(variable)}")
    return value


def _example(variable: str) -> str:
    return f"; it looks like {EXAMPLES[variable]}" if variable in EXAMPLES else ""
