"""The real engine under virtual time: a heap in place of an event loop, a `World` in place of the outside.

The simulator is a host like any other, and keeps the host's duties (see `core.engine`): it stores batches, starts an
action only once its intent is durable, and drops results of cancelled checks. It can kill itself at any batch and
come back from what was durable. The same fleet, world and seed give the same bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from math import inf
from typing import TypeAlias

import attrs

from selfheal.core.engine import Engine
from selfheal.core.messages import (
    ActionFinished,
    CancelAction,
    CheckFinished,
    Event,
    Output,
    Requested,
    RunAction,
    RunCheck,
    Settle,
    Started,
    TimePassed,
    WokeLate,
)
from selfheal.core.model import Fleet, Settled
from selfheal.core.records import Record, record_bytes
from selfheal.testing.worlds import World

Watcher: TypeAlias = Callable[["Simulator", Event, Output], None]


@attrs.frozen(kw_only=True)
class Stored:
    """One batch: an input (none for a wake-up) and the records it caused."""

    at: float
    input: Event | None
    records: tuple[Record, ...]


class Simulator:
    """Drives an engine through a world.

    `watchers` are called after every event; laws are watchers. `flush` is how long quiet batches may wait to be
    durable, in virtual seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        world: World,
        *,
        seed: int = 0,
        watchers: Iterable[Watcher] = (),
        flush: float = 1.0,
        engine: type[Engine] = Engine,
        start: float = 0.0,
    ) -> None:
        self.fleet = fleet
        self.world = world
        self.now = start
        self.watchers = list(watchers)
        self.flush = flush
        self.draw = random.Random(seed)  # noqa: S311  # a simulation wants repeatable draws, not secrecy
        self.batches: list[Stored] = []
        self.durable = 0
        self.crashes = 0
        self.events = 0
        self._make = engine
        self._tie = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
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

    def at(self, time: float, what: Callable[[], None]) -> None:
        """Let `what` happen in the world or to the manager at `time`."""
        self._later(time, what)

    def run(self, until: float) -> None:
        """Let virtual time pass until `until`."""
        while True:
            due = self._heap[0][0] if self._heap else inf
            wake = self.engine.deadline
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
        asked = Requested(at=self.now, id=f"r{self._tie}", act=act, service=service, actor="pat", reason="asked")
        self.feed(attrs.evolve(asked, **changes))
        return asked.id

    def feed(self, event: Event) -> Output:
        """Give the engine one event and do what it commands."""
        output = self.engine.receive(event)
        self.events += 1
        stored = None if isinstance(event, TimePassed) else event
        if stored is not None or output.records:
            self.batches.append(Stored(at=event.at, input=stored, records=output.records))
        acts = any(isinstance(command, RunAction) for command in output.commands)
        if acts or self.now - self._flushed_at >= self.flush:
            self.durable, self._flushed_at = len(self.batches), self.now
        for watcher in self.watchers:
            watcher(self, event, output)
        for command in output.commands:
            self._do(command)
        return output

    def suspend(self, seconds: float) -> None:
        """Let the host stand still: nothing is read, everything that ends meanwhile is heard at the end."""
        self.now += seconds
        late = self.now - self.engine.deadline
        if late > self.fleet.limits.late_after:
            self.feed(WokeLate(at=self.now, late=late))

    def crash(self, down_for: float, *, lose: bool = True, fleet: Fleet | None = None) -> None:
        """Kill the manager now and start it again after `down_for` seconds.

        With `lose`, some of the batches that were not durable yet are gone. Actions under way go on without it.
        """
        self.crashes += 1
        keep = self.draw.randint(self.durable, len(self.batches)) if lose else len(self.batches)
        del self.batches[keep:]
        self.durable = len(self.batches)
        self._run += 1
        self._flights.clear()
        self.now += down_for
        self.fleet = fleet or self.fleet
        self.engine = self._make(history=self.records)
        self._begin(self.batches[-1].at if self.batches else 0.0)

    def replayed(self) -> list[Record]:
        """Return the records of a fresh engine fed with the stored inputs: law 20b says they are `records`."""
        engine = self._make()
        return [record for event in self.inputs for record in engine.receive(event).records]

    # -- the host's duties -------------------------------------------------------------------------------------------

    def _begin(self, resumes: float) -> None:
        self.feed(Started(at=self.now, resumes=resumes, fleet=self.fleet))

    def _later(self, time: float, what: Callable[[], None]) -> None:
        self._tie += 1
        heappush(self._heap, (time, self._tie, what))

    def _do(self, command: RunCheck | RunAction | CancelAction | Settle) -> None:
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
        action = self.engine.ledger.policies[command.service].steps[command.step].action
        reply = self.world.act(command, action, self.now)
        run = self._run
        self._actions[command.intent] = run

        def ended() -> None:
            if reply.settled not in (Settled.SUPERSEDED, Settled.NOT_STARTED):
                self.world.done(command, action, self.now)
            if self._run == run and self._actions.pop(command.intent, None) is not None:
                self.feed(
                    ActionFinished(at=self.now, intent=command.intent, settled=reply.settled, detail=reply.detail)
                )

        self._later(self.now + reply.takes, ended)

    def _cancel(self, command: CancelAction) -> None:
        def ended() -> None:
            if self._actions.pop(command.intent, None) is not None:
                self.feed(ActionFinished(at=self.now, intent=command.intent, settled=Settled.TIMED_OUT))

        self._later(self.now + 0.01, ended)

    def _settle(self, command: Settle) -> None:
        run = self._run

        def ended() -> None:
            if self._run == run:
                reply = self.world.settle(command.intent, self.now)
                self.feed(
                    ActionFinished(at=self.now, intent=command.intent, settled=reply.settled, detail=reply.detail)
                )

        self._later(self.now + 0.2, ended)
