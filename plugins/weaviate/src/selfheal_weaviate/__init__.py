"""A plugin of selfheal for Weaviate; see the README beside `src`."""

from __future__ import annotations

from collections.abc import Mapping

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_checks() -> Mapping[str, str]:
    """Offer `weaviate`; it is imported when a service asks for it."""
    return {"weaviate": "selfheal_weaviate.checks:WeaviateCheck"}
