"""A plugin of selfheal for Neo4j; see the README beside `src`."""

from __future__ import annotations

from collections.abc import Mapping

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_checks() -> Mapping[str, str]:
    """Offer `neo4j`; neither it nor the driver is imported before a service asks for it."""
    return {"neo4j": "selfheal_neo4j.checks:Neo4jCheck"}
