"""KnowledgeHub for selfheal: the presets of its five services, and their health as functions.

With it, the application's own `recovery.json` runs as it stands. Nothing of a service is imported here before it is
asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from selfheal.hookspecs import hookimpl
from selfheal_knowledgehub.health import (
    Unanswered,
    check_database_health,
    check_minio_health,
    check_neo4j_health,
    check_redis_health,
    check_weaviate_health,
    service,
)
from selfheal_knowledgehub.presets import presets

__all__ = [
    "Unanswered",
    "check_database_health",
    "check_minio_health",
    "check_neo4j_health",
    "check_redis_health",
    "check_weaviate_health",
    "presets",
    "service",
]


@hookimpl
def selfheal_register_presets() -> Mapping[str, Mapping[str, Any]]:
    """Offer what is known of `database`, `redis`, `weaviate`, `neo4j` and `minio`."""
    return presets(os.environ)
