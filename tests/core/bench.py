"""Two ways to try the engine: fed by hand, one event at a time, or played by the simulator under every law."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs

from selfheal.core.engine import Engine
from selfheal.core.ledger import Ledger
from selfheal.core.messages import (
    ActionFinished,
    CancelAction,
    CheckFinished,
    Event,
    FleetProposed,
    Output,
    Requested,
    RunAction,
    RunCheck,
    Settle,
    Started,
    TimePassed,
)
from selfheal.core.model import (
    CANARY_PREFIX,
    PASSING,
    Backoff,
    Canary,
    Cause,
    CheckResult,
    Condition,
    Effect,
    Evidence,
    Fleet,
    Instance,
    Limits,
    Policy,
    Purpose,
    Run,
    Settled,
    State,
    Step,
    Verdict,
)
from selfheal.core.records import Answered, Ended, Intended, Record
from selfheal.testing.laws import Laws
from selfheal.testing.simulator import Simulator
from selfheal.testing.worlds import SimpleWorld

R = TypeVar("R")

FAILING = CheckResult(Verdict.FAILING, cause=Cause.UNREACHABLE, summary="refused")
WARNING = CheckResult(Verdict.WARNING, cause=Cause.OVERLOADED, summary="91 % of the slots")
UNRUN = CheckResult(Verdict.INCONCLUSIVE, summary="a bug in the check")

RESTART = Step(action="restart")
RECONNECT = Step(action="reconnect", effect=Effect.GENTLE, needs_running=True)
PEOPLE = Step(action="manual_intervention", effect=Effect.GENTLE)
FLUSH = Step(action="flush", effect=Effect.DESTRUCTIVE)
STEADY = Backoff(jitter=0.0)


def service(name: str = "db", **changes: Any) -> Policy:
    """Return a policy with a restart, without jitter, and with what the test says."""
    return Policy(**{"name": name, "steps": (RESTART,), "jitter": 0.0, "backoff": STEADY, **changes})


def running(number: int = 1, run: Run = Run.RUNNING, name: str = "db", **changes: Any) -> Instance:
    """Return incarnation `number` of a service."""
    return Instance(id=f"{name}#{number}", run=run, **changes)


def failing(cause: Cause = Cause.UNREACHABLE, summary: str = "refused", **changes: Any) -> CheckResult:
    """Return a failing result."""
    return CheckResult(Verdict.FAILING, cause=cause, summary=summary, **changes)


class Hand:
    """The engine fed by hand. Checks and actions it commands wait here until the test says how they end."""

    def __init__(
        self,
        *policies: Policy,
        canaries: Iterable[str] = (),
        seed: int = 0,
        engine: Engine | None = None,
        start: bool = True,
        **limits: Any,
    ) -> None:
        self.fleet = Fleet(
            policies=policies,
            canaries=tuple(Canary(name=name) for name in canaries),
            limits=Limits(**limits),
            seed=seed,
        )
        self.engine = engine or Engine()
        self.records: list[Record] = []
        self.checks: dict[str, RunCheck] = {}
        self.actions: dict[str, RunAction] = {}
        self.cancelled: list[str] = []
        self.settles: list[str] = []
        self.began: dict[str, float] = {}
        self.asked = 0
        if start:
            self.feed(Started(at=self.engine.now, fleet=self.fleet))

    @property
    def ledger(self) -> Ledger:
        """The decided state."""
        return self.engine.ledger

    @property
    def now(self) -> float:
        """Journal time."""
        return self.engine.now

    def feed(self, event: Event) -> Output:
        """Give the engine one event and keep what it says."""
        output = self.engine.receive(event)
        self.records += output.records
        for command in output.commands:
            if isinstance(command, RunCheck):
                self.checks[command.service] = command
                self.began[command.service] = self.engine.now
            elif isinstance(command, RunAction):
                self.checks.pop(command.service, None)
                self.actions[command.service] = command
            elif isinstance(command, CancelAction):
                self.cancelled.append(command.intent)
            elif isinstance(command, Settle):
                self.settles.append(command.intent)
        assert Ledger.fold(self.records).image() == self.ledger.image() or self.partial
        return output

    partial = False
    """Whether the engine began with a state whose records are not here."""

    def wait(self, seconds: float) -> Output:
        """Let time pass."""
        return self.feed(TimePassed(at=self.now + seconds))

    def until(self, at: float) -> Output:
        """Let time pass until `at`."""
        return self.feed(TimePassed(at=at))

    def check(
        self,
        name: str = "db",
        result: CheckResult = FAILING,
        instance: Instance | None = None,
        *,
        took: float = 0.02,
        started: float | None = None,
    ) -> Output:
        """Answer the check of a service that is in flight, or the next one when it is due."""
        if name not in self.checks:
            due = self.engine.due(name)
            assert due < float("inf"), f"no check of {name} is in flight or due"
            self.until(due)
        command = self.checks.pop(name)
        began = self.began[name] if started is None else started
        return self.feed(
            CheckFinished(
                at=self.now + took,
                service=name,
                generation=command.generation,
                purpose=command.purpose,
                started=began,
                ended=self.now + took,
                result=result,
                instance=instance,
            )
        )

    def canary(self, name: str, result: CheckResult = PASSING) -> Output:
        """Answer the check of a canary."""
        return self.check(CANARY_PREFIX + name, result)

    def want(self, name: str = "db", purpose: Purpose = Purpose.PARENT) -> None:
        """Have a service checked now, as a room of the engine would."""
        self.engine.desk.want(name, purpose)
        self.wait(0.0)

    def well(self, *names: str) -> None:
        """Let services pass once."""
        for name in names:
            self.check(name, PASSING)

    def fail(self, name: str = "db", result: CheckResult = FAILING, instance: Instance | None = None) -> None:
        """Let a service fail its checks until it is believed to be down."""
        for _ in range(50):
            if self.state(name) is State.FAILED:
                return
            self.check(name, result, instance)
        raise AssertionError(f"{name} is not believed to be down: {self.condition(name)}")

    def until_true(self, done: Callable[[], bool], name: str = "db", result: CheckResult = FAILING) -> None:
        """Let a service fail its checks until something is so."""
        for _ in range(400):
            if done():
                return
            self.check(name, result)
        raise AssertionError(f"it never is so: {self.condition(name)}")

    def reach(
        self, reason: str, name: str = "db", result: CheckResult = FAILING, instance: Instance | None = None
    ) -> None:
        """Let a service fail its checks until it is held for this reason."""
        for _ in range(400):
            if self.reason(name) == reason:
                return
            self.check(name, result, instance)
        raise AssertionError(f"{name} never gets to {reason!r}: {self.condition(name)}")

    def act(self, name: str = "db", result: CheckResult = FAILING, instance: Instance | None = None) -> RunAction:
        """Let a service fail its checks until a step begins; return the command."""
        for _ in range(400):
            if name in self.actions:
                return self.actions[name]
            self.check(name, result, instance)
        raise AssertionError(f"nothing is done about {name}: {self.condition(name)}")

    def finish(
        self, name: str = "db", settled: Settled = Settled.DONE, *, took: float = 1.0, detail: str = ""
    ) -> Output:
        """Let the action of a service end."""
        command = self.actions.pop(name)
        return self.feed(ActionFinished(at=self.now + took, intent=command.intent, settled=settled, detail=detail))

    def recover(self, name: str = "db", instance: Instance | None = None) -> None:
        """Let a service pass its checks until it is well."""
        for _ in range(50):
            if self.state(name) in (State.HEALTHY, State.DEGRADED):
                return
            self.check(name, PASSING, instance)
        raise AssertionError(f"{name} does not become well: {self.condition(name)}")

    def ask(self, act: str, service: str = "", **changes: Any) -> Answered:
        """Let Pat ask for something; return the answer."""
        self.asked += 1
        asked = Requested(
            at=self.now, id=f"r{self.asked}", act=act, service=service, actor="pat", reason="asked", scopes=frozenset()
        )
        output = self.feed(attrs.evolve(asked, **changes))
        (answer,) = (record for record in output.records if isinstance(record, Answered))
        return answer

    def propose(self, *policies: Policy, confirmed: bool = False, **changes: Any) -> Answered:
        """Propose a fleet of other policies; return the answer."""
        self.asked += 1
        fleet = attrs.evolve(self.ledger.fleet, policies=policies, **changes)
        output = self.feed(
            FleetProposed(at=self.now, id=f"r{self.asked}", actor="pat", fleet=fleet, confirmed=confirmed)
        )
        (answer,) = (record for record in output.records if isinstance(record, Answered))
        return answer

    def restart(self, *, down_for: float = 10.0, fleet: Fleet | None = None) -> Output:
        """Kill the manager and start it again from its records."""
        resumes = self.now
        self.engine = Engine(history=self.records)
        self.checks.clear()
        self.actions.clear()
        self.settles.clear()
        return self.feed(Started(at=resumes + down_for, resumes=resumes, fleet=fleet or self.ledger.fleet))

    # -- what a test asks --------------------------------------------------------------------------------------------

    def condition(self, name: str = "db") -> Condition:
        """What is decided about a service."""
        return self.ledger.conditions[name]

    def state(self, name: str = "db") -> State:
        """Its state."""
        return self.condition(name).state

    def reason(self, name: str = "db") -> str:
        """Its reason."""
        return self.condition(name).reason

    def evidence(self, name: str = "db") -> Evidence:
        """What was observed of it in this run."""
        return self.engine.evidence(name)

    def said(self, kind: type[R]) -> list[R]:
        """Every record of one kind."""
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def alerts(self) -> set[str]:
        """The open alerts, as `service rule` (or only the rule, of the fleet)."""
        return {f"{alert.service} {alert.rule}".strip() for alert in self.ledger.alerts.values()}


def simulate(
    *policies: Policy,
    canaries: Iterable[str] = (),
    seed: int = 0,
    takes: float = 1.0,
    laws: Laws | None = None,
    **limits: Any,
) -> tuple[Simulator, SimpleWorld]:
    """Return a simulator of these services and its world, with every law watching after every event (or `laws`)."""
    fleet = Fleet(
        policies=policies, canaries=tuple(Canary(name=name) for name in canaries), limits=Limits(**limits), seed=seed
    )
    world = SimpleWorld(fleet, action_takes=(takes, takes))
    return Simulator(fleet, world, watchers=[laws or Laws()]), world


def began(records: Iterable[Record], name: str = "db") -> list[float]:
    """When each step of a service began."""
    return [record.at for record in records if isinstance(record, Intended) and record.service == name]


def ended(records: Iterable[Record], name: str = "db") -> list[Ended]:
    """How each step of a service ended."""
    return [record for record in records if isinstance(record, Ended) and record.service == name]
