"""Worlds for the simulator: services that break, hang, flap, recover, and answer to the actions tried on them.

A world owns what is true outside the manager: it survives the manager's crashes, runs actions to their end whether
anybody still waits for them or not, and knows which instance runs. It draws from its own seeded source.
"""

from __future__ import annotations

import random
from typing import Protocol

import attrs

from selfheal.core.ledger import hard
from selfheal.core.messages import RunAction
from selfheal.core.model import PASSING, Cause, CheckResult, Fleet, Instance, Run, Settled, Verdict


@attrs.frozen(kw_only=True)
class CheckReply:
    """How a world answers a check: the result, how long it takes, and what `inspect` said before."""

    result: CheckResult
    takes: float = 0.05
    instance: Instance | None = None


@attrs.frozen(kw_only=True)
class ActionReply:
    """How a world answers an action: its own word, and how long it takes."""

    settled: Settled = Settled.DONE
    takes: float = 1.0
    detail: str = ""


class World(Protocol):
    """What the simulator asks."""

    def check(self, service: str, at: float, *, inspect: bool) -> CheckReply:
        """Answer a check (or a canary, `canary:<name>`) begun at `at`."""

    def act(self, command: RunAction, action: str, at: float) -> ActionReply:
        """Begin an action at `at`; its effect takes place when it ends."""

    def done(self, command: RunAction, action: str, at: float) -> None:
        """An action has come to its end at `at`: let its effect take place."""

    def cancelled(self, intent: str, at: float) -> None:
        """An action is told to stop at `at`: it has no effect any more."""

    def settle(self, intent: str, at: float) -> ActionReply:
        """After a crash: say what became of an intent."""


@attrs.define(kw_only=True)
class Thing:
    """One simulated service. `cured_by` names the actions that help while it is broken; `broken` is the cause.

    `unseen`: its workload cannot be inspected. `run_id`: its server tells which incarnation answers. `pattern` is how
    its checks turn out, over and over, whatever else is the case. `slips`: it restarts by itself just before somebody
    else would restart it.
    """

    broken: Cause | None = None
    heals_at: float = float("inf")
    cured_by: frozenset[str] = frozenset({"restart"})
    chance: float = 1.0
    verdict: Verdict = Verdict.FAILING
    latency: float = 0.02
    hangs: bool = False
    generation: int = 1
    run: Run = Run.RUNNING
    since: float = 0.0
    unseen: bool = False
    run_id: bool = False
    slips: bool = False
    boots_until: float = 0.0
    boot: float = 0.0
    pattern: tuple[bool, ...] = ()
    beats: int = 0
    restarts: int = 0
    needless: int = 0


class SimpleWorld:
    """Services on one machine that need their declared parents; good enough for stories, swarms and a drawn day.

    It notices two actions of one service at once, and one action begun twice, and raises `AssertionError`; `lenient`
    where the manager was told to act without a journal, and may lose what it did.
    """

    def __init__(self, fleet: Fleet, *, seed: int = 0, action_takes: tuple[float, float] = (1.0, 1.0)) -> None:
        self.fleet = fleet
        self.draw = random.Random(seed)  # noqa: S311  # a simulation wants repeatable draws, not secrecy
        self.things: dict[str, Thing] = {policy.name: Thing() for policy in fleet.policies}
        self.canaries: dict[str, bool] = {canary.name: True for canary in fleet.canaries}
        self.parents: dict[str, tuple[tuple[str, ...], ...]] = {}
        self.workloads: dict[str, bool] = {}
        self.timeouts: dict[str, float] = {}
        self.meets(fleet)
        self.action_takes = action_takes
        self.cut_off_until = 0.0
        self.finished: dict[str, Settled] = {}
        self.under_way: dict[str, str] = {}
        self.begun: dict[str, None] = {}
        self.lenient = False
        self.acted: list[tuple[float, str, str, str]] = []

    def meets(self, fleet: Fleet) -> None:
        """Let the services of another fleet be there too."""
        for policy in fleet.policies:
            self.things.setdefault(policy.name, Thing())
            self.parents[policy.name] = tuple(dependency.services for dependency in hard(policy))
            self.workloads[policy.name] = policy.has_workload
            self.timeouts[policy.name] = policy.timeout
        for canary in fleet.canaries:
            self.canaries.setdefault(canary.name, True)

    # -- faults ------------------------------------------------------------------------------------------------------

    def breaks(
        self, service: str, cause: Cause = Cause.UNREACHABLE, *, heals_at: float = float("inf"), **changes: object
    ) -> None:
        """Let a service be broken, for good or until it heals by itself; `changes` set other fields of its `Thing`."""
        thing = self.things[service]
        thing.broken, thing.heals_at = cause, heals_at
        for name, value in changes.items():
            setattr(thing, name, value)

    def mends(self, service: str) -> None:
        """Let a service be well."""
        thing = self.things[service]
        thing.broken, thing.hangs, thing.run, thing.pattern, thing.unseen = None, False, Run.RUNNING, (), False
        thing.verdict, thing.slips = Verdict.FAILING, False

    def reborn(self, service: str, at: float) -> None:
        """Let a service restart by itself, without being cured."""
        thing = self.things[service]
        thing.generation += 1
        thing.since = at

    def well(self, service: str, at: float) -> bool:
        """Whether a service would pass a check begun at `at`."""
        thing = self.things.get(service)
        if thing is None:
            return True
        if thing.broken is not None and at >= thing.heals_at:
            self.mends(service)
        if thing.broken is not None or at < thing.boots_until or thing.run is not Run.RUNNING:
            return False
        return all(any(self.well(parent, at) for parent in anyof) for anyof in self.parents.get(service, ()))

    # -- the simulator asks ------------------------------------------------------------------------------------------

    def check(self, service: str, at: float, *, inspect: bool) -> CheckReply:
        """Answer as a well-behaved runner would: one deadline, a cause for every failure."""
        if service.startswith("canary:"):
            answers = self.canaries[service.removeprefix("canary:")] and at >= self.cut_off_until
            lost = CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT, summary="no answer")
            return CheckReply(result=PASSING if answers else lost)
        thing = self.things[service]
        instance = self.instance(service) if inspect and self.workloads[service] else None
        if at < self.cut_off_until:
            lost = CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT, summary="no answer")
            return CheckReply(result=lost, takes=self.timeouts[service], instance=instance)
        if thing.pattern:
            passes = thing.pattern[thing.beats % len(thing.pattern)]
            thing.beats += 1
            result = PASSING if passes else CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary="a bad answer")
            return CheckReply(result=result, takes=thing.latency, instance=instance)
        if self.well(service, at):
            result = CheckResult(Verdict.PASSING, instance=self.instance(service).id) if thing.run_id else PASSING
            return CheckReply(result=result, takes=thing.latency, instance=instance)
        if thing.hangs:
            late = CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT, summary="no answer")
            return CheckReply(result=late, takes=self.timeouts[service], instance=instance)
        cause = thing.broken or (Cause.STARTING if at < thing.boots_until else Cause.UNREACHABLE)
        verdict = thing.verdict if thing.broken is not None else Verdict.FAILING
        result = CheckResult(verdict, cause=cause, summary=cause.value)
        return CheckReply(result=result, takes=thing.latency, instance=instance)

    def instance(self, service: str) -> Instance:
        """Return who runs a service now."""
        thing = self.things[service]
        if thing.unseen:
            return Instance(id="", run=Run.UNKNOWN, detail="no answer")
        return Instance(id=f"{service}#{thing.generation}", run=thing.run, since=thing.since)

    def act(self, command: RunAction, action: str, at: float) -> ActionReply:
        """Say how an action will end; a changed or unexpected instance supersedes it, as a runner would find."""
        thing = self.things[command.service]
        if thing.slips:
            thing.slips = False
            self.reborn(command.service, at)
        if self.workloads.get(command.service):
            instance = self.instance(command.service)
            if instance.run in (Run.UNKNOWN, Run.STOPPED):
                return ActionReply(settled=Settled.NOT_STARTED, takes=0.01, detail=f"its workload is {instance.run}")
            if command.expected is not None and command.expected != instance.id:
                return ActionReply(settled=Settled.SUPERSEDED, takes=0.01, detail="another instance runs")
        self.acted.append((at, command.service, action, command.intent))
        other = self.under_way.get(command.service)
        assert other is None or self.lenient, f"law 4: {command.intent} runs beside {other}"
        assert command.intent not in self.begun or self.lenient, f"law 12: {command.intent} runs twice"
        self.begun[command.intent] = None
        self.under_way[command.service] = command.intent
        takes = self.draw.uniform(*self.action_takes)
        if takes > command.timeout:
            return ActionReply(settled=Settled.TIMED_OUT, takes=command.timeout)
        return ActionReply(takes=takes)

    def done(self, command: RunAction, action: str, at: float) -> None:
        """Let the effect take place: a new instance, and a cure if this action is one."""
        if self.under_way.get(command.service) != command.intent:
            return
        del self.under_way[command.service]
        thing = self.things[command.service]
        if thing.broken is None and thing.run is Run.RUNNING and at >= thing.boots_until:
            thing.needless += 1
        if action == "restart":
            thing.restarts += 1
            thing.generation += 1
            thing.run, thing.since = Run.RUNNING, at
            thing.boots_until = at + thing.boot
        if thing.broken is not None and action in thing.cured_by and self.draw.random() < thing.chance:
            thing.broken, thing.hangs = None, False
        self.finished[command.intent] = Settled.DONE

    def cancelled(self, intent: str, at: float) -> None:
        """Let an action be killed: nothing of it takes effect."""
        for service, running in tuple(self.under_way.items()):
            if running == intent:
                del self.under_way[service]
                self.finished[intent] = Settled.TIMED_OUT

    def settle(self, intent: str, at: float) -> ActionReply:
        """Answer from what really happened; an action cut short by the crash cannot be told."""
        return ActionReply(settled=self.finished.get(intent, Settled.IN_DOUBT), takes=0.2)
