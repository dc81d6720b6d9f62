"""Laws of the router, over random outages, silences, acknowledgements, merges, failing channels and restarts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfheal.core.messages import TimePassed
from selfheal.core.model import Alert, Binds, Phase, Severity, Suppression
from selfheal.core.records import (
    AlertChanged,
    Delivered,
    IncidentMerged,
    Record,
    SuppressionChanged,
    dumps,
    encode,
    record_bytes,
)
from selfheal.core.routing import DeliveryFinished, Router
from selfheal.core.talks import Deliver, Route

ROUTES = (
    Route(
        notifier="oncall",
        severities=frozenset({Severity.CRITICAL, Severity.HIGH}),
        escalate_after=900.0,
        escalate_to="boss",
    ),
    Route(notifier="log", group_wait=0.0, group_interval=60.0, repeat_interval=3600.0),
    Route(notifier="web", services=("s0", "s1"), critical_at_once=False),
)
RULES = {"failed": Severity.HIGH, "unattended": Severity.CRITICAL, "degraded": Severity.MEDIUM}


class World:
    """A random but consistent stream of records, and a shell whose deliveries succeed, fail, dawdle or get lost.

    `told` and `ended` count, for each notifier and alert, what *arrived*: they know nothing of the router's inside.
    """

    def __init__(self, seed: int, routes: tuple[Route, ...] = ROUTES, *, failing: float = 0.3) -> None:
        self.random = random.Random(seed)
        self.failing = failing
        self.routes = routes
        self.router = Router(routes)
        self.now = 0.0
        self.records: list[Record] = []
        self.trace: list[bytes] = []
        self.outbox: list[Deliver] = []
        self.alerts: dict[tuple[str, str], Alert] = {}
        self.resolved: set[str] = set()
        self.silences: dict[str, Suppression] = {}
        self.incidents: dict[str, int] = {}
        self.counts = Counter[str]()
        self.told: dict[str, set[str]] = {}
        self.ended: dict[str, Counter[str]] = {}
        self.offered: dict[str, float] = {}
        self.last: dict[tuple[str, str], Phase] = {}

    # -- the host ---------------------------------------------------------------------------------------------------

    def receive(self, event: Any) -> None:
        out = self.router.receive(event)
        self.records += out.records
        self.outbox += out.deliveries
        self.offered |= {deliver.notification.id: self.now for deliver in out.deliveries}
        self.trace.append(record_bytes(out.records) + dumps([encode(deliver) for deliver in out.deliveries]))

    def record(self, record: Record) -> None:
        self.records.append(record)
        self.receive(record)

    def sleep(self, seconds: float) -> None:
        """Let time pass. The outbox gives up what it has tried for ten hours, as it promises."""
        while self.outbox and self.offered[self.outbox[0].notification.id] < self.now - 36_000.0:
            self.deliver(ok=False)
        until, wakes = self.now + seconds, 0
        while (deadline := self.router.deadline) < until:
            self.now = max(self.now, deadline)
            self.receive(TimePassed(at=self.now))
            assert self.router.deadline > self.now, "it spins"
            wakes += 1
            assert wakes < 10_000
        self.now = until

    def deliver(self, *, ok: bool | None = None) -> None:
        """Let the first message of one notifier end: each notifier's are in order."""
        if not self.outbox:
            return
        notifier = self.random.choice(sorted({deliver.notifier for deliver in self.outbox}))
        message = next(deliver for deliver in self.outbox if deliver.notifier == notifier)
        self.outbox.remove(message)
        ok = self.random.random() >= self.failing if ok is None else ok
        if ok:
            self.arrived(message)
        self.receive(
            DeliveryFinished(
                at=self.now,
                notification=message.notification.id,
                notifier=notifier,
                receipt="r" if ok else None,
                error="" if ok else "down",
                permanent=not ok and self.random.random() < 0.5,
            )
        )

    def arrived(self, message: Deliver) -> None:
        self.last[message.notifier, message.notification.id.rsplit(".", 4)[0]] = message.notification.phase
        if message.notification.phase is Phase.RESOLVED:
            self.ended.setdefault(message.notifier, Counter()).update(message.alerts)
            assert self.resolved >= set(message.alerts), "told the end of what goes on"
        else:
            assert message.alerts
            self.told.setdefault(message.notifier, set()).update(message.alerts)

    def restart(self) -> None:
        """Die, losing what is on its way, and begin from what was stored."""
        self.receive(TimePassed(at=self.now))
        self.outbox = []
        self.router = Router(self.routes, self.records)
        self.receive(TimePassed(at=self.now))

    # -- the world --------------------------------------------------------------------------------------------------

    def number(self, what: str) -> int:
        self.counts[what] += 1
        return self.counts[what]

    def breaks(self) -> None:
        service, rule = f"s{self.random.randrange(4)}", self.random.choice([*RULES])
        if (service, rule) in self.alerts:
            return
        incident = None
        if rule != "degraded":
            if service not in self.incidents:
                parents = [s for s in self.incidents if self.random.random() < 0.3]
                self.incidents[service] = self.incidents[parents[0]] if parents else self.number("incident")
            incident = self.incidents[service]
        alert = Alert(
            id=f"a{self.number('alert')}",
            service=service,
            rule=rule,
            severity=RULES[rule],
            since=self.now,
            incident=incident,
        )
        self.alerts[service, rule] = alert
        self.record(AlertChanged(at=self.now, service=service, alert=alert, open=True))

    def heals(self) -> None:
        if not self.alerts:
            return
        service = self.random.choice(sorted({service for service, _ in self.alerts}))
        for key in [key for key in self.alerts if key[0] == service]:
            alert = self.alerts.pop(key)
            self.resolved.add(alert.id)
            self.record(AlertChanged(at=self.now, service=service, alert=alert, open=False, because="healthy"))
        self.incidents.pop(service, None)

    def merges(self) -> None:
        numbers = sorted(set(self.incidents.values()))
        if len(numbers) < 2:
            return
        old, into = self.random.sample(numbers, 2)
        self.record(IncidentMerged(at=self.now, service="s0", incident=old, into=into))
        for service in [service for service, number in self.incidents.items() if number == old]:
            self.incidents[service] = into
            for key in [key for key in self.alerts if key[0] == service and self.alerts[key].incident == old]:
                self.changes(key, incident=into, folded=True)

    def changes(self, key: tuple[str, str], **fields: Any) -> None:
        self.alerts[key] = attrs.evolve(self.alerts[key], **fields)
        self.record(AlertChanged(at=self.now, service=key[0], alert=self.alerts[key], open=True))

    def acknowledges(self) -> None:
        if self.alerts:
            self.changes(self.random.choice(sorted(self.alerts)), acknowledged_by="anna")

    def silences_or_lifts(self) -> None:
        if self.silences and self.random.random() < 0.6:
            id_, suppression = self.silences.popitem()
            self.record(SuppressionChanged(at=self.now, suppression=suppression, on=False))
            return
        everything = self.random.random() < 0.2
        services = () if everything else (f"s{self.random.randrange(4)}",)
        binds = self.random.choice([*Binds])
        id_ = f"x{self.number('silence')}"
        self.silences[id_] = Suppression(id=id_, binds=binds, services=services, everything=everything)
        self.record(SuppressionChanged(at=self.now, suppression=self.silences[id_], on=True))

    def happens(self, *, restarts: bool) -> None:
        self.random.choices(
            [
                self.breaks,
                self.heals,
                self.deliver,
                lambda: self.sleep(self.random.choice([0.0, 1.0, 29.0, 30.0, 300.0, 1000.0, 14_400.0])),
                self.merges,
                self.acknowledges,
                self.silences_or_lifts,
                self.restart if restarts else self.deliver,
            ],
            [5, 4, 6, 5, 1, 1, 2, 1],
        )[0]()

    def calm(self) -> None:
        """Everything heals, the channels work again, and time passes: silences stay."""
        while self.alerts:
            self.heals()
        for _ in range(40):
            while self.outbox:
                self.deliver(ok=True)
            self.sleep(14_400.0)


SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32)


def lived(seed: int, steps: int = 150, *, restarts: bool = True, failing: float = 0.3) -> World:
    world = World(seed, failing=failing)
    for _ in range(steps):
        world.happens(restarts=restarts)
    return world


def conserved(world: World) -> None:
    for notifier, told in world.told.items():
        ended = world.ended.get(notifier, Counter())
        missing = told - set(ended)
        assert not missing, f"{notifier} was never told the end of {sorted(missing)}"
        assert set(ended.values()) <= {1}, f"{notifier} was told an end twice: {ended}"


@SOME
@given(seed=seeds)
def test_each_alert_told_ends_in_exactly_one_resolution(seed: int) -> None:
    """Law 14, without restarts: opened = resolved + still open, for every notifier and every alert."""
    world = lived(seed, restarts=False)
    open_now = {alert.id for alert in world.alerts.values()}
    for notifier, told in world.told.items():
        ended = world.ended.get(notifier, Counter())
        assert not open_now & set(ended)
        assert set(ended) <= told
    world.calm()
    conserved(world)
    assert world.router.deadline == float("inf")
    assert not world.router._talks
    assert not world.router._alerts


@SOME
@given(seed=seeds)
def test_no_resolution_is_lost_over_restarts(seed: int) -> None:
    world = lived(seed)
    world.calm()
    assert {name for name, phase in world.last.items() if phase is not Phase.RESOLVED} == set()
    assert not world.router._talks


@SOME
@given(seed=seeds)
def test_the_same_inputs_give_the_same_bytes(seed: int) -> None:
    assert lived(seed).trace == lived(seed).trace


@SOME
@given(seed=seeds)
def test_the_state_is_a_fold_of_the_records(seed: int) -> None:
    """A router rebuilt from the records goes on exactly as the one that lived through them."""
    world = lived(seed, restarts=False)
    world.receive(TimePassed(at=world.now))
    while world.outbox:
        world.deliver()
    rebuilt = Router(world.routes, world.records)
    for at in range(1, 40):
        now = world.now + at * 600.0
        alive, again = world.router.receive(TimePassed(at=now)), rebuilt.receive(TimePassed(at=now))
        assert encode(alive.deliveries) == encode(again.deliveries)


@SOME
@given(seed=seeds)
def test_whoever_was_told_is_told_the_end_whatever_became_of_the_routes(seed: int) -> None:
    world = lived(seed, 80, restarts=False, failing=0.0)
    world.receive(TimePassed(at=world.now))
    while world.outbox:
        world.deliver(ok=True)
    firing = matters(world.records)
    world.routes = tuple(attrs.evolve(route, services=()) for route in ROUTES[1:])
    world.router = Router(world.routes, world.records)
    delivered: set[tuple[str, str]] = set()
    for step in range(3):
        for deliver in world.router.receive(TimePassed(at=world.now + step)).deliveries:
            assert deliver.notification.phase is Phase.RESOLVED
            delivered.add((deliver.notifier, deliver.notification.id.split(":")[1].rsplit(".", 4)[0]))
    assert delivered == firing


def matters(records: Iterable[Record]) -> set[tuple[str, str]]:
    """What was begun and not ended with each notifier, by the ids of what was delivered alone."""
    begun: dict[tuple[str, str], None] = {}
    for record in records:
        if isinstance(record, Delivered) and not record.error:
            key, _, _, phase, _ = record.notification.removeprefix(f"{record.notifier}:").rsplit(".", 4)
            if phase == "resolved":
                begun.pop((record.notifier, key), None)
            else:
                begun[record.notifier, key] = None
    return set(begun)
