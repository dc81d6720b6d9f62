"""The metrics in a registry of prometheus_client: an application exposes them beside its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from selfheal import NotRunning
from selfheal.errors import SelfhealError

log = logging.getLogger("selfheal.prometheus")


class Metered(Protocol):
    """What is collected: a `selfheal.Supervisor`."""

    def metrics(self, format: str = ...) -> Any:  # noqa: A002  # the word of the request
        """Return the metrics in a format, from any thread."""


class SelfhealCollector(Collector):
    """Collects the metrics of one supervisor, in whatever thread it is scraped."""

    def __init__(self, supervisor: Metered) -> None:
        self._supervisor = supervisor

    def describe(self) -> Iterable[Metric]:
        """Return nothing: to be registered is not to be collected, and the supervisor need not run yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return every family. Where the supervisor cannot say, only that it does not run: the others are exposed."""
        try:
            families: Mapping[str, Mapping[str, Any]] = self._supervisor.metrics("data")
        except (SelfhealError, TimeoutError) as problem:
            if not isinstance(problem, NotRunning):
                log.warning("no metrics of selfheal: %s", problem)
            about = "Whether selfheal's engine turns (1) or nothing is watched (0)."
            return [GaugeMetricFamily("selfheal_running", about, value=0)]
        return [_metric(name, family) for name, family in families.items()]


def _metric(name: str, family: Mapping[str, Any]) -> Metric:
    unit = "seconds" if name.endswith("_seconds") else ""
    metric = Metric(name.removesuffix("_total"), family["help"], family["type"], unit)
    for sample in family["samples"]:
        metric.add_sample(sample.get("name", name), sample["labels"], sample["value"])
    return metric
