"""The health of each service as a function of no arguments, for code that knows nothing of selfheal.

Each is `async () -> bool`, on asyncio and on trio: True while the service does its work, well or not quite, False when
it does not. What they connect to, they read from the application's variables each time they are called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from selfheal import Secret, Verdict, check_once

TIMEOUT: Final = 5.0
"""Seconds that one look may take in all."""

CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "postgres": ("selfheal_postgres.check", "PostgresCheck"),
    "redis": ("selfheal_redis.check", "RedisCheck"),
    "weaviate": ("selfheal_weaviate.checks", "WeaviateCheck"),
    "neo4j": ("selfheal_neo4j.checks", "Neo4jCheck"),
    "minio": ("selfheal_minio.checks", "MinioCheck"),
}
"""kind of a check -> where its class is."""


async def check_database_health() -> bool:
    """Whether PostgreSQL at `DATABASE_URL` answers. Raises as `answers` does."""
    return await answers("postgres", url="DATABASE_URL")


async def check_redis_health() -> bool:
    """Whether Redis at `REDIS_URL` answers. Raises as `answers` does."""
    return await answers("redis", url="REDIS_URL")


async def check_weaviate_health() -> bool:
    """Whether Weaviate at `WEAVIATE_URL` is ready. Raises as `answers` does."""
    return await answers("weaviate", url="WEAVIATE_URL")


async def check_neo4j_health() -> bool:
    """Whether Neo4j at `NEO4J_URI` answers `NEO4J_USER` with `NEO4J_PASSWORD`. Raises as `answers` does."""
    return await answers("neo4j", url="NEO4J_URI", user="NEO4J_USER", password="NEO4J_PASSWORD")  # noqa: S106  # names


async def check_minio_health() -> bool:
    """Whether MinIO at `MINIO_ENDPOINT` can write. Raises as `answers` does."""
    return await answers("minio", url="MINIO_ENDPOINT")


async def answers(kind: str, **variables: str) -> bool:
    """Return whether a check of this kind passes, its options read from these environment variables.

    Raises `ModuleNotFoundError`, which names the extra, when the plugin or its driver is missing; and `RuntimeError`
    when nothing could be found out: a variable is not set, or the check itself could not run.
    """
    module, name = CLASSES[kind]
    try:
        make: Any = getattr(import_module(module), name)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"{missing.name} is not installed: pip install 'selfheal-core[{kind}]'", name=missing.name
        ) from None
    check = make(**{option: _read_from(variable) for option, variable in variables.items()})
    result = await check_once(check, timeout=TIMEOUT)
    if result.verdict is Verdict.INCONCLUSIVE:
        raise RuntimeError(f"nothing could be found out of {kind}: {result.summary}")
    return result.verdict is not Verdict.FAILING


def _read_from(variable: str) -> Secret:
    def read() -> str:
        if not (value := os.environ.get(variable)):
            raise LookupError(f"{variable} is not set")
        return value

    return Secret(read, source=f"env {variable}")
