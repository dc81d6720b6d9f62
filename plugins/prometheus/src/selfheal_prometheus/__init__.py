"""Metrics of selfheal for Prometheus: `[prometheus]` in the file, `collector` and `exposition` in an application.

    REGISTRY.register(selfheal_prometheus.collector(supervisor))                        # beside an application's own
    content_type, body = await selfheal_prometheus.exposition(supervisor, accept)       # or in a route of one's own

Only who asks for a collector imports prometheus_client: the daemon does without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from selfheal.hookspecs import hookimpl
from selfheal_prometheus.exposing import exposition

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from selfheal_prometheus.collecting import Metered

__all__ = ["collector", "exposition"]


def collector(supervisor: Metered) -> Collector:
    """Return a collector of a supervisor's metrics for any `CollectorRegistry`; it may be registered before it runs."""
    made: Collector = import_module("selfheal_prometheus.collecting").SelfhealCollector(supervisor)
    return made


@hookimpl
def selfheal_register_frontends() -> dict[str, str]:
    """Register the table `[prometheus]`."""
    return {"prometheus": "selfheal_prometheus.serving:Prometheus"}
