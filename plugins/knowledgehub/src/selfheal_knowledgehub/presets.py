"""What is known of the five services: the table of KnowledgeHub's specification, where they are, and what runs them.

The numbers are the specification's. Where a service is, is read from the application's own variables, each time anew.
Everything may be said otherwise in a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

CONTAINER: Final = "knowledgehub-"
"""How the application's containers are called: this, and the name of the service."""

CHECKS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "database": {"kind": "postgres", "url": {"env": "DATABASE_URL"}},
        "redis": {"kind": "redis", "url": {"env": "REDIS_URL"}},
        "weaviate": {"kind": "weaviate", "url": {"env": "WEAVIATE_URL"}},
        "neo4j": {
            "kind": "neo4j",
            "url": {"env": "NEO4J_URI"},
            "user": {"env": "NEO4J_USER"},
            "password": {"env": "NEO4J_PASSWORD"},
        },
        "minio": {"kind": "minio", "url": {"env": "MINIO_ENDPOINT"}},
    }
)
"""How each is checked, as a file would say it."""


def _preset(
    name: str, priority: str, retries: int, actions: list[str], failures: int, delays: tuple[float, float], every: float
) -> dict[str, Any]:
    return {
        "priority": priority,
        "max_retries": retries,
        "recovery_actions": actions,
        "failure_threshold": failures,
        "backoff": {"initial": delays[0], "cap": delays[1]},
        "interval": every,
        "check": dict(CHECKS[name]),
        "workload": {"kind": "docker", "container": CONTAINER + name},
    }


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "database": _preset("database", "high", 3, ["reconnect", "restart"], 2, (2.0, 60.0), 30.0),
        "redis": _preset("redis", "medium", 3, ["reconnect", "restart", "reset_cache"], 2, (1.0, 30.0), 15.0),
        "weaviate": _preset("weaviate", "high", 2, ["restart"], 3, (5.0, 120.0), 60.0),
        "neo4j": _preset("neo4j", "medium", 2, ["restart"], 3, (10.0, 180.0), 60.0),
        "minio": _preset("minio", "low", 2, ["restart"], 2, (3.0, 90.0), 45.0),
    }
)
"""Each service's keys, as a file would have them."""
