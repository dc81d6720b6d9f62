"""What every room of the engine writes with: the ledger and the pen, the agenda, and who is awake.

`say` is the one way to decide something, `move` the one way to say it of a service's condition, `want` the one way to
have something checked. A `Watch` is what is kept of one watched thing in this run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from math import floor, inf
from typing import Final

from selfheal.core import alerts, guards
from selfheal.core.agenda import Agenda, Rank, Waiting
from selfheal.core.backoff import mix, seed_of
from selfheal.core.ledger import WELL, Ledger, Snapshot, alert_key
from selfheal.core.messages import (
    Command,
    RunCheck,
)
from selfheal.core.model import (
    Condition,
    Evidence,
    Policy,
    Purpose,
    State,
)
from selfheal.core.records import (
    HoldChanged,
    Moved,
    Record,
)

_ROUTINE: Final = Purpose.ROUTINE


class Watch:
    """What the engine keeps of one watched thing in this run: evidence, its place on the grid, what is in flight."""

    __slots__ = (
        "evidence",
        "flight",
        "flight_at",
        "interval",
        "jitter",
        "key",
        "name",
        "nudged",
        "phase",
        "policy",
        "rank",
        "routine",
        "seed",
        "wake",
        "wanted",
        "withheld",
    )

    def __init__(self, name: str, policy: Policy | None, interval: float, phase: float, seed: int, rank: Rank) -> None:
        self.name = name
        self.policy = policy
        self.interval = interval
        self.jitter = policy.jitter if policy is not None else 0.1
        self.phase = phase
        self.seed = seed_of(seed, name)
        self.rank = rank
        self.key = ("check", name)
        self.wake = f"service:{name}"
        self.evidence = Evidence()
        self.flight: Purpose | None = None
        self.flight_at = -inf
        self.wanted: Purpose | None = None
        self.nudged = -inf
        self.routine: RunCheck | None = None
        self.withheld = False


class Desk:
    """The state that the rooms of the engine share, and the few ways to change it."""

    def __init__(self, snapshot: Snapshot | None, history: Iterable[Record]) -> None:
        self.ledger = Ledger.fold(history, snapshot)
        self.now = self.ledger.at
        self.watches: dict[str, Watch] = {}
        self.agenda = Agenda()
        self.waiting = Waiting()
        self.reserved: dict[str, None] = {}
        self.touched: dict[str, None] = {}
        self.records: list[Record] = []
        self.commands: list[Command] = []
        self.awake: list[Rank] = []
        self._roused: dict[str, None] = {}

    def next_awake(self) -> str:
        """Take the most important service that is awake. Raises `IndexError` when none is."""
        name = heappop(self.awake)[2]
        del self._roused[name]
        return name

    def forget(self) -> None:
        """Forget everything volatile: a new run begins."""
        self.agenda.clear()
        self.waiting.clear()
        self.awake.clear()
        self._roused.clear()
        self.reserved.clear()
        self.watches.clear()

    def say(self, record: Record) -> None:
        """Decide something: apply the record and hand it to the host."""
        self.ledger.apply(record)
        self.records.append(record)

    def say_all(self, records: Iterator[Record]) -> None:
        """Say records one by one, each applied before the next is asked for."""
        for record in records:
            self.say(record)

    def move(self, name: str, after: Condition, because: str, actor: str = "") -> None:
        """Let the condition of a service be `after`, if it is another; wake whoever waits for that."""
        before = self.ledger.conditions[name]
        if after == before:
            return
        self.say(Moved(at=self.now, service=name, before=before, after=after, because=because, actor=actor))
        self.touched[name] = None
        if before.state is not after.state:
            self.wake(f"service:{name}")
            if before.state is State.RECOVERING:
                self.wake(guards.SLOT)

    def wake(self, key: str) -> None:
        """Let what waits for `key` walk the guards again; of those who wait for a slot, as many as there are."""
        if key == guards.SLOT:
            free = self.ledger.fleet.limits.max_concurrent_recoveries - len(self.ledger.occupied) - len(self.reserved)
            names = []
            while free > 0 and (name := self.waiting.take(key)) is not None:
                names.append(name)
                free -= 1
        else:
            names = self.waiting.take_all(key)
        for name in names:
            self.ready(name)

    def fills_slots(self) -> bool:
        """Wake more of those who wait while a slot is free: who was woken first may not have needed it.

        Returns whether somebody is awake.
        """
        if guards.SLOT in self.waiting:
            self.wake(guards.SLOT)
        return bool(self.awake)

    def ready(self, name: str) -> None:
        """Let a service walk the guards before this event is over."""
        watch = self.watches.get(name)
        if watch is not None and name not in self._roused:
            self._roused[name] = None
            heappush(self.awake, watch.rank)

    def hold(self, name: str, on: bool, evidence: str, actor: str = "") -> None:
        """Begin or end a hold of the whole fleet, with its alert; wake whoever it held.

        Of a storm people hear when it keeps somebody who is down from being repaired: until then nothing was withheld.
        """
        if (name in self.ledger.holds) is on:
            return
        self.say(HoldChanged(at=self.now, hold=name, on=on, evidence=evidence, actor=actor))
        if not (on and name == "storm"):
            self.alarm(name, on, evidence, actor)
        if not on:
            self.wake(f"hold:{name}")

    def alarm(self, rule: str, on: bool, text: str, actor: str = "") -> None:
        """Open or resolve the one alert of the fleet under `rule`."""
        alert = self.ledger.alerts.get(alert_key("", rule))
        if on and alert is None:
            self.say(alerts.new(self.ledger, "", rule, alerts.FLEET_RULES[rule], text, self.now))
        elif not on and alert is not None:
            self.say(alerts.resolved(alert, self.now, text, actor))

    def want(self, name: str, purpose: Purpose) -> None:
        """Have a service checked now; while a check is in flight, right after it."""
        watch = self.watches.get(name)
        if watch is None or (watch.policy is not None and not self.checkable(name)):
            return
        if watch.flight is not None:
            if purpose is not Purpose.ROUTINE and (watch.flight_at < self.now or watch.flight is not purpose):
                # The check before a step is as fresh as any other, and has a slot reserved for it.
                watch.wanted = purpose if watch.wanted is not Purpose.BEFORE_STEP else watch.wanted
            return
        self.agenda.cancel(watch.key)
        self.begin(watch, self.ledger.conditions.get(name), purpose)

    def begin(self, watch: Watch, condition: Condition | None, purpose: Purpose) -> None:
        """Have a service (a canary has no condition) checked now that neither has a check in flight nor one due."""
        watch.flight = purpose
        watch.flight_at = self.now
        self.commands.append(self._check_command(watch, condition, purpose))

    def evidence_of(self, name: str) -> Evidence:
        """Return what was observed of a service; nothing for one that is not watched."""
        watch = self.watches.get(name)
        return watch.evidence if watch is not None else Evidence()

    def checkable(self, name: str) -> bool:
        """Whether a check may run: of what is watched, and while no action of it runs (law 4)."""
        if self.ledger.conditions[name].state is State.DISABLED:
            return False
        return not self.ledger.intents or self.ledger.acting(name) is None

    def _check_command(self, watch: Watch, condition: Condition | None, purpose: Purpose) -> RunCheck:
        """Return the command; the one of a well service is made once and used again."""
        policy, e, kept = watch.policy, watch.evidence, watch.routine
        if policy is None or condition is None:
            watch.routine = kept or RunCheck(service=watch.name, generation=0, purpose=Purpose.ROUTINE)
            return watch.routine
        suspect = e.failures > 0 or e.score > 0 or condition.state not in WELL
        if purpose is _ROUTINE and not suspect:
            if kept is None or kept.generation != condition.generation:
                kept = watch.routine = RunCheck(
                    service=watch.name, generation=condition.generation, purpose=Purpose.ROUTINE
                )
            return kept
        return RunCheck(
            service=watch.name,
            generation=condition.generation,
            purpose=purpose,
            inspect=policy.has_workload and suspect,
        )

    def schedule(self, watch: Watch, quick: float | None) -> None:
        """Set the next check: `quick` seconds from now, or at the next place on its grid.

        The grid is phase + n * interval; jitter displaces one place and never accumulates.
        """
        if quick is not None and quick < watch.interval:
            self.agenda.set(watch.key, self.now + quick)
            return
        now, interval, phase, jitter = self.now, watch.interval, watch.phase, watch.jitter
        beat = floor((now - phase) / interval) + 1
        due = phase + beat * interval + (mix(watch.seed, beat) * 2.0 - 1.0) * jitter * interval
        if due <= now:  # it was displaced to before its place, and has been
            beat += 1
            due = phase + beat * interval + (mix(watch.seed, beat) * 2.0 - 1.0) * jitter * interval
        self.agenda.set(watch.key, due)

    def tell(self) -> None:
        """Bring the open alerts of every touched service in line with its condition."""
        while self.touched:
            name = next(iter(self.touched))
            del self.touched[name]
            condition = self.ledger.conditions.get(name)
            if condition is not None:
                self.say_all(alerts.changes(self.ledger, name, condition, self.now))

    def forget_observations(self, watch: Watch) -> None:
        """What was counted was another instance's; the checks in flight are of an older generation."""
        old = watch.evidence
        watch.evidence = Evidence(checks=old.checks, last_at=old.last_at, summary=old.summary, cause=old.cause)
        watch.flight = watch.wanted = None
