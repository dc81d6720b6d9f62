"""What is known of the five services: the table of KnowledgeHub's specification, where they are, and what runs them.

The numbers are the specification's. Where a service is and who we are there stands in the application's own variables.
Addresses and passwords are read when they are needed, each time anew; what else a variable decides is decided when the
file is read. Everything may be said otherwise in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

CONTAINER: Final = "knowledgehub-"
"""How the application's containers are called: this, and the name of the service."""

YES: Final = frozenset({"true", "1", "yes", "on"})
"""Words of MINIO_SECURE that mean https; every other one means http."""

NOBODY: Final = "none"
"""The value of NEO4J_AUTH with which Neo4j's own image lets everybody in."""


def presets(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return each service's keys, as a file would have them, where these variables are set.

    Variables that are not in the specification count only where they are set: WEAVIATE_API_KEY, MINIO_SECURE,
    NEO4J_AUTH, and DOCKER_HOST for the Docker Engine. So do NEO4J_USER, whose default is Neo4j's own, and the two keys
    of MinIO.
    """
    found = {
        "database": _preset("high", 3, ["reconnect", "restart"], 2, (2.0, 60.0), 30.0),
        "redis": _preset("medium", 3, ["reconnect", "restart", "reset_cache"], 2, (1.0, 30.0), 15.0),
        "weaviate": _preset("high", 2, ["restart"], 3, (5.0, 120.0), 60.0),
        "neo4j": _preset("medium", 2, ["restart"], 3, (10.0, 180.0), 60.0),
        "minio": _preset("low", 2, ["restart"], 2, (3.0, 90.0), 45.0),
    }
    engine = {"host": environment["DOCKER_HOST"]} if environment.get("DOCKER_HOST") else {}
    for name, check in _checks(environment).items():
        found[name]["check"] = check
        found[name]["workload"] = {"kind": "docker", "container": CONTAINER + name, **engine}
    return found


def _preset(
    priority: str, retries: int, actions: Sequence[str], failures: int, delays: tuple[float, float], interval: float
) -> dict[str, Any]:
    """Return one row of the specification's table; delays (the first, the cap) and the interval in seconds."""
    return {
        "priority": priority,
        "max_retries": retries,
        "recovery_actions": [*actions],
        "failure_threshold": failures,
        "backoff": {"initial": delays[0], "cap": delays[1]},
        "interval": interval,
    }


def _checks(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return how each is checked. What may hold a password, and what must be there, is named and not copied."""
    weaviate: dict[str, Any] = {"kind": "weaviate", "url": {"env": "WEAVIATE_URL"}}
    if environment.get("WEAVIATE_API_KEY"):
        weaviate["api_key"] = {"env": "WEAVIATE_API_KEY"}
    # A user that were read as a secret would be masked wherever it is seen, and it is often called as the database is.
    neo4j: dict[str, Any] = {"kind": "neo4j", "uri": {"env": "NEO4J_URI"}}
    if environment.get("NEO4J_AUTH", "").strip() != NOBODY:
        neo4j["password"] = {"env": "NEO4J_PASSWORD"}
    if user := environment.get("NEO4J_USER", "").strip():
        neo4j["user"] = user
    minio: dict[str, Any] = {"kind": "minio", "url": {"env": "MINIO_ENDPOINT"}}
    if environment.get("MINIO_SECURE", "").strip().lower() in YES:
        minio["secure"] = True
    if environment.get("MINIO_ACCESS_KEY") and environment.get("MINIO_SECRET_KEY"):
        minio |= {"access_key": {"env": "MINIO_ACCESS_KEY"}, "secret_key": {"env": "MINIO_SECRET_KEY"}}
    return {
        "database": {"kind": "postgres", "url": {"env": "DATABASE_URL"}},
        "redis": {"kind": "redis", "url": {"env": "REDIS_URL"}},
        "weaviate": weaviate,
        "neo4j": neo4j,
        "minio": minio,
    }
