"""The real engine under virtual time: a heap in place of an event loop, a `World` in place of the outside.

The simulator is a host like any other, and keeps the host's duties (see `core.engine`): it stores batches, starts an
action only once its intent is durable, reports `NOT_STARTED` when the store fails, drops results of cancelled checks,
and wakes on a grid. It can kill itself after any event, with or without what that event commanded, and come back from
whatever part was durable, by history or by snapshot. The same fleet, world and seed give the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import ceil, inf
from typing import Any, TypeAlias

import attrs

from selfheal.core.engine import Engine
from selfheal.core.ledger import Ledger, Snapshot
from selfheal.core.messages import (
    ActionFinished,
    CancelAction,
    CheckFinished,
    Command,
    Event,
    FleetProposed,
    JournalChanged,
    Output,
    Requested,
    RunAction,
    RunCheck,
    Settle,
    Started,
    TimePassed,
    WatchReported,
    WindowChanged,
    WokeLate,
)
from selfheal.core.model import Fleet, Instance, Settled
from selfheal.core.records import Record, decode, dumps, encode, record_bytes
from selfheal.testing.worlds import World

Watcher: TypeAlias = Callable[["Simulator", Event, Output], None]


@attrs.frozen(kw_only=True)
class Stored:
    """One batch: an input (none for a wake-up) and the records it caused."""

    at: float
    input: Event | None
    records: tuple[Record, ...]


@attrs.frozen(kw_only=True)
class Kill:
    """Kill the manager once it has taken in event number `event` (the first is 1), and start it again.

    `obeyed`: whether what that event commanded was still done. `lost`: how many of the batches that need not be
    durable yet are gone. `down_for` seconds pass until the start.
    """

    event: int
    obeyed: bool = True
    lost: int = 0
    down_for: float = 1.0
    by_snapshot: bool = False


class Simulator:
    """Drives an engine through a world.

    `watchers` are called after every event; laws are watchers. `flush` is how long quiet batches may wait to be
    durable, `grain` the grid on which the host wakes, both in virtual seconds. `kills` are carried out as they come up.
    """

    def __init__(
        self,
        fleet: Fleet,
        world: World,
        *,
        seed: int = 0,
        watchers: Iterable[Watcher] = (),
        flush: float = 1.0,
        grain: float = 0.0,
        kills: Iterable[Kill] = (),
        engine: type[Engine] = Engine,
        start: float = 0.0,
    ) -> None:
        self.fleet = fleet
        self.world = world
        self.now = start
        self.watchers = list(watchers)
        self.flush = flush
        self.grain = grain
        self.kills = {kill.event: kill for kill in kills}
        self.draw = random.Random(seed)  # noqa: S311  # a simulation wants repeatable draws, not secrecy
        self.batches: list[Stored] = []
        self.durable = 0
        self.crashes = 0
        self.events = 0
        self.store_well = True
        self._make = engine
        self._tie = 0
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._flights: dict[str, int] = {}
        self._actions: dict[str, int] = {}
        self._run = 0
        self._flushed_at = start
        self.engine = engine()
        self._begin(0.0)

    # -- what a test does --------------------------------------------------------------------------------------------

    @property
    def records(self) -> list[Record]:
        """Every record stored so far, in order."""
        return [record for batch in self.batches for record in batch.records]

    @property
    def inputs(self) -> list[Event]:
        """Every input stored so far, in order."""
        return [batch.input for batch in self.batches if batch.input is not None]

    def bytes(self) -> bytes:
        """Return every record as JSON lines."""
        return record_bytes(self.records)

    def at(self, time: float, what: Callable[[], object]) -> None:
        """Let `what` happen in the world or to the manager at `time`."""
        self._later(time, what)

    def run(self, until: float) -> None:
        """Let virtual time pass until `until`."""
        while True:
            due = self._heap[0][0] if self._heap else inf
            wake = self.engine.deadline
            if self.grain and wake < inf:
                wake = max(wake, ceil(wake / self.grain) * self.grain)
            at = min(due, wake)
            if at > until:
                break
            self.now = max(self.now, at)
            if due <= wake:
                heappop(self._heap)[2]()
            else:
                self.feed(TimePassed(at=self.now))
        self.now = max(self.now, until)

    def request(self, act: str, service: str = "", **changes: object) -> str:
        """Let a person ask for something now; return the id of the request."""
        self._tie += 1
        id_ = f"r{self._tie}"
        said: dict[str, Any] = {"actor": "pat", "reason": "asked", **changes}
        self.feed(Requested(at=self.now, id=id_, act=act, service=service, **said))
        return id_

    def propose(self, fleet: Fleet, *, confirmed: bool = False) -> bool:
        """Let a person propose another fleet now; return whether it was accepted."""
        self._tie += 1
        id_ = f"r{self._tie}"
        self.feed(FleetProposed(at=self.now, id=id_, actor="pat", reason="reload", fleet=fleet, confirmed=confirmed))
        accepted = self.engine.ledger.answers.get(id_, (False, ""))[0]
        if accepted:
            self.fleet = fleet
        return accepted

    def report(self, service: str, instance: Instance | None = None) -> None:
        """Let a workload's `watch` (or, without an instance, a kept connection) speak now."""
        self.feed(WatchReported(at=self.now, service=service, instance=instance))

    def window(self, name: str, services: tuple[str, ...], *, active: bool, until: float) -> None:
        """Let a maintenance window of the calendar open or close now."""
        self.feed(WindowChanged(at=self.now, window=name, services=services, active=active, until=until))

    def store_fails(self, until: float, *, unnoticed: float = 0.0) -> None:
        """Let nothing be durable from now on until `until`, and the manager hear of it after `unnoticed` seconds."""
        if not self.store_well:
            return
        self.store_well = False
        if unnoticed:
            self._later(self.now + unnoticed, self._tell_store)
        else:
            self._tell_store()

        def mended() -> None:
            self.store_well = True
            self.feed(JournalChanged(at=self.now, well=True))

        self._later(until, mended)

    def _tell_store(self) -> None:
        if not self.store_well:
            self.feed(JournalChanged(at=self.now, well=False, detail="the disk is full"))

    def feed(self, event: Event) -> Output:
        """Give the engine one event and do what it commands."""
        output = self.engine.receive(event)
        self.events += 1
        stored = None if isinstance(event, TimePassed) else event
        if stored is not None or output.records:
            self.batches.append(Stored(at=event.at, input=stored, records=output.records))
        for watcher in self.watchers:
            watcher(self, event, output)
        kill = self.kills.get(self.events)
        acts = any(isinstance(command, RunAction) for command in output.commands)
        if self.store_well and ((acts and (kill is None or kill.obeyed)) or self.now - self._flushed_at >= self.flush):
            self.durable, self._flushed_at = len(self.batches), self.now
        if kill is None or kill.obeyed:
            for command in output.commands:
                self._do(command)
        if kill is not None:
            self._killed(kill)
        return output

    def suspend(self, seconds: float) -> None:
        """Let the host stand still: nothing is read, everything that ends meanwhile is heard at the end."""
        self.now += seconds
        late = self.now - self.engine.deadline
        if late > self.fleet.limits.late_after:
            self.feed(WokeLate(at=self.now, late=late))

    def crash(
        self, down_for: float, *, lose: bool = True, fleet: Fleet | None = None, by_snapshot: bool = False
    ) -> None:
        """Kill the manager now and start it again after `down_for` seconds.

        With `lose`, some of the batches that were not durable yet are gone. Actions under way go on without it. The new
        run begins with `fleet`, if one is given, and from a stored snapshot and the records after it, if so asked.
        """
        keep = self.draw.randint(self.durable, len(self.batches)) if lose else len(self.batches)
        self._reborn(keep, down_for, fleet or self.fleet, by_snapshot=by_snapshot)

    def replayed(self) -> list[Record]:
        """Return the records of a fresh engine fed with the stored inputs: law 20b says they are `records`."""
        engine = self._make()
        last = TimePassed(at=self.engine.now)  # what the last wake-ups said has no input after it
        return [record for event in (*self.inputs, last) for record in engine.receive(event).records]

    # -- death and birth ---------------------------------------------------------------------------------------------

    def _killed(self, kill: Kill) -> None:
        keep = max(self.durable, len(self.batches) - kill.lost)
        self._reborn(keep, kill.down_for, self.fleet, by_snapshot=kill.by_snapshot)

    def _reborn(self, keep: int, down_for: float, fleet: Fleet, *, by_snapshot: bool) -> None:
        self.crashes += 1
        del self.batches[keep:]
        self.durable = len(self.batches)
        self._run += 1
        self._flights.clear()
        self.now += down_for
        self.fleet = fleet
        self.engine = self._from_snapshot() if by_snapshot else self._make(history=self.records)
        self._begin(self.batches[-1].at if self.batches else 0.0)

    def _from_snapshot(self) -> Engine:
        """Return an engine of a stored snapshot of some earlier batch and the records after it."""
        number = self.draw.randint(0, len(self.batches))
        head = Ledger.fold(record for batch in self.batches[:number] for record in batch.records)
        stored = decode(Snapshot, json.loads(dumps(encode(head.image(number)))))
        engine = self._make(snapshot=stored, history=[r for batch in self.batches[number:] for r in batch.records])
        assert engine.snapshot() == Ledger.fold(self.records).image(), "law 20a: a snapshot and its tail are not all"
        return engine

    def _begin(self, resumes: float) -> None:
        self.feed(Started(at=self.now, resumes=resumes, fleet=self.fleet))
        if not self.store_well:
            self._later(self.now + 0.5, self._tell_store)

    # -- the host's duties -------------------------------------------------------------------------------------------

    def _later(self, time: float, what: Callable[[], object]) -> None:
        self._tie += 1
        heappush(self._heap, (time, self._tie, what))

    def _do(self, command: Command) -> None:
        if isinstance(command, RunCheck):
            self._check(command)
        elif isinstance(command, RunAction):
            self._act(command)
        elif isinstance(command, CancelAction):
            self._cancel(command)
        else:
            self._settle(command)

    def _check(self, command: RunCheck) -> None:
        self._tie += 1
        flight = self._flights[command.service] = self._tie
        started, run = self.now, self._run
        reply = self.world.check(command.service, started, inspect=command.inspect)

        def ended() -> None:
            if self._run != run or self._flights.get(command.service) != flight:
                return
            del self._flights[command.service]
            self.feed(
                CheckFinished(
                    at=self.now,
                    service=command.service,
                    generation=command.generation,
                    purpose=command.purpose,
                    started=started,
                    ended=self.now,
                    result=reply.result,
                    instance=reply.instance,
                )
            )

        self._later(started + reply.takes, ended)

    def _act(self, command: RunAction) -> None:
        self._flights.pop(command.service, None)
        run = self._run
        self._actions[command.intent] = run
        if not self.store_well and not self.fleet.limits.act_without_journal:
            self._later(self.now + 0.01, lambda: self._heard(command.intent, run, Settled.NOT_STARTED, "not durable"))
            return
        action = self.engine.ledger.policies[command.service].steps[command.step].action
        reply = self.world.act(command, action, self.now)

        def ended() -> None:
            if reply.settled not in (Settled.SUPERSEDED, Settled.NOT_STARTED):
                self.world.done(command, action, self.now)
            self._heard(command.intent, run, reply.settled, reply.detail)

        self._later(self.now + reply.takes, ended)

    def _heard(self, intent: str, run: int, settled: Settled, detail: str = "") -> None:
        """Tell the run that started an action how it ended, unless that has been told, or the run is over."""
        if self._run == run and self._actions.pop(intent, None) is not None:
            self.feed(ActionFinished(at=self.now, intent=intent, settled=settled, detail=detail))

    def _cancel(self, command: CancelAction) -> None:
        run = self._run
        self.world.cancelled(command.intent, self.now)
        self._later(self.now + 0.01, lambda: self._heard(command.intent, run, Settled.TIMED_OUT))

    def _settle(self, command: Settle) -> None:
        run = self._run

        def ended() -> None:
            if self._run == run:
                reply = self.world.settle(command.intent, self.now)
                self.feed(
                    ActionFinished(at=self.now, intent=command.intent, settled=reply.settled, detail=reply.detail)
                )

        self._later(self.now + 0.2, ended)
