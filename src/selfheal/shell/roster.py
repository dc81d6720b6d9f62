"""The plugin objects of the fleet in force: which check, workload and ladder belong to a name, and by which road."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import attrs

from selfheal.core.model import CANARY_PREFIX, Fleet, Limits
from selfheal.ladder import Callbacks, ResolvedStep, resolve_all
from selfheal.plugins import Watching, Workload
from selfheal.service import Canary, Service, fleet_of
from selfheal.shell.lanes import Lane
from selfheal.shell.results import Scrubber
from selfheal.wire import WireCheck


class Road(Enum):
    """How a check runs: as a wire check on our loop, on the plugin loop, or as the application's own callable."""

    WIRE = "wire"
    PLUGIN = "plugin"
    CALLABLE = "callable"


@attrs.define(kw_only=True)
class Entry:
    """One watched thing with its plugin objects. `lane` is there once a wire check has been run."""

    name: str
    check: Any
    road: Road
    timeout: float
    deep: bool = False
    workload: Workload | None = None
    steps: tuple[ResolvedStep, ...] = ()
    scrubber: Scrubber
    lane: Lane | None = None

    @property
    def plugins(self) -> tuple[object, ...]:
        """Its check, its workload, and who takes its steps."""
        return (self.check, self.workload, *(step.target for step in self.steps))

    def same_check(self, other: Entry) -> bool:
        """Whether both are checked in the same way by the same object."""
        return (
            self.check is other.check
            and self.road is other.road
            and self.timeout == other.timeout
            and self.workload is other.workload
        )

    @property
    def watching(self) -> Watching | None:
        """Its workload, if that can be watched."""
        workload: Any = self.workload
        return workload if isinstance(workload, Watching) else None


def road_of(check: object, *, deep: bool) -> Road:
    """Return the road of a check. One that has both `talk` and `check` is talked to, unless `deep` is asked for."""
    talks = isinstance(check, WireCheck)
    checks = hasattr(type(check), "check")
    if talks and not (deep and checks):
        return Road.WIRE
    return Road.PLUGIN if checks else Road.CALLABLE


@attrs.frozen(kw_only=True)
class Roster:
    """The services and canaries of one fleet, resolved: what the engine gets (`fleet`) and what the shell runs."""

    services: Mapping[str, Service]
    canaries: Mapping[str, Canary]
    fleet: Fleet
    entries: Mapping[str, Entry]

    @classmethod
    def of(
        cls,
        services: Iterable[Service],
        canaries: Iterable[Canary],
        *,
        limits: Limits,
        name: str,
        seed: int,
        key: bytes,
        callbacks: Callbacks,
        actions: Mapping[str, type[Any]],
    ) -> Roster:
        """Resolve services into a roster. Reveals secrets, for the fingerprints and to scrub them: call it in a thread.

        Raises `ConfigurationError` with every step that nothing answers.
        """
        known = {service.name: service for service in services}
        watched = {canary.name: canary for canary in canaries}
        ladders = resolve_all(known.values(), callbacks, actions)
        fleet = fleet_of(
            known.values(),
            canaries=watched.values(),
            limits=limits,
            name=name,
            seed=seed,
            key=key,
            ladders=ladders,
        )
        entries = {service.name: _service_entry(service, ladders[service.name]) for service in known.values()}
        entries |= {CANARY_PREFIX + canary.name: _canary_entry(canary) for canary in watched.values()}
        for entry in entries.values():
            entry.scrubber.read_now()
        return cls(services=known, canaries=watched, fleet=fleet, entries=entries)


def _service_entry(service: Service, steps: tuple[ResolvedStep, ...]) -> Entry:
    return Entry(
        name=service.name,
        check=service.check,
        road=road_of(service.check, deep=service.deep),
        timeout=service.timeout,
        deep=service.deep,
        workload=service.workload,
        steps=steps,
        scrubber=Scrubber((service.check, service.workload, [step.target for step in steps])),
    )


def _canary_entry(canary: Canary) -> Entry:
    return Entry(
        name=CANARY_PREFIX + canary.name,
        check=canary.check,
        road=road_of(canary.check, deep=False),
        timeout=canary.timeout,
        scrubber=Scrubber(canary.check),
    )
