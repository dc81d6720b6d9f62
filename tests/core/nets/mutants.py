"""Wrong cores: the shipped engine with one thing wrong in one place, each a mistake somebody could make.

A mutant is a context manager's worth of `swap`s. Every net is tried on each; the shipped engine passes all of them with
the same seeds, so whatever is raised is the mutant's doing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from typing import Any, TypeAlias

import attrs
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from tests.core.nets import crashpoints, liveness, swarm
from tests.core.nets.machine import QUICK, Healing
from tests.core.nets.test_model import compare

from selfheal.core import alerts, backoff, detector, guards, incidents, machine, repair, roster
from selfheal.core.desk import Desk
from selfheal.core.engine import Engine
from selfheal.core.holds import CanaryWatch, DoubtWatch, StormWatch
from selfheal.core.ledger import Ledger, hard
from selfheal.core.lookout import Lookout
from selfheal.core.messages import RunAction, WokeLate
from selfheal.core.model import Effect, Hold, Purpose, Settled, State, Verdict
from selfheal.core.records import AlertChanged, Intended, Moved
from selfheal.core.repair import Repair
from selfheal.core.roster import Roster

Swap: TypeAlias = tuple[Any, str, Any]


@attrs.frozen
class Mutant:
    """A wrong core: its name, what is swapped, and the net known to catch it soonest."""

    name: str
    swaps: tuple[Swap, ...]
    net: str = "swarm"


@contextmanager
def wrong(mutant: Mutant) -> Iterator[None]:
    """Let the engine be wrong inside the block."""
    with ExitStack() as stack:
        for owner, name, value in mutant.swaps:
            stack.callback(setattr, owner, name, owner.__dict__[name])
            setattr(owner, name, value)
        yield


# -- how to be wrong ------------------------------------------------------------------------------------------------


def _without(guard: str) -> tuple[Swap, ...]:
    return ((Repair, "guards", tuple(g for g in guards.GUARDS if g.name != guard)),)


def _asks(guard: str, ask: guards.Ask) -> tuple[Swap, ...]:
    other = tuple(attrs.evolve(g, ask=ask) if g.name == guard else g for g in guards.GUARDS)
    return ((Repair, "guards", other),)


def _stale_parents(sight: guards.Sight) -> Any:
    for dependency in hard(sight.policy):
        if (hold := guards._parent(sight, dependency, -inf)) is not None:
            return hold
    return None


def _one_slot_more(sight: guards.Sight) -> Any:
    return (
        guards.slot(sight) if len(sight.ledger.occupied) > sight.ledger.fleet.limits.max_concurrent_recoveries else None
    )


def _unsaid(**forgotten: Any) -> tuple[Swap, ...]:
    """Decide something and do not say it: state beside the records."""
    say = Desk.say

    def forgetful(self: Desk, record: Any) -> None:
        say(self, record)
        if isinstance(record, Moved):
            self.records[-1] = attrs.evolve(record, after=attrs.evolve(record.after, **forgotten))

    return ((Desk, "say", forgetful),)


def _intent_unsaid(self: Desk, record: Any) -> None:
    self.ledger.apply(record)
    if not isinstance(record, Intended):
        self.records.append(record)


_act, _attempt, _started, _verify = Repair._act, Repair.attempt, Roster.started, Repair._verify
_checked, _passing, _after_check = Engine._checked, Engine._passing, Engine._after_check
_judge, _meet, _confirmed = detector.judge, detector._meet, detector.confirmed
_opens, _given_back, _begins, _wait = backoff.opens, machine.given_back, machine.begins, machine.wait
_over, _rung, _resume, _fire = machine.attempt_over, machine.next_rung, Roster._resume, Engine._fire
_changes, _image, _explain, _disbelieves = alerts.changes, Ledger.image, Engine.explain, Lookout.disbelieves
_take = Engine._take
_belongs, _ended = incidents.belongs_to, Ledger._ended


def _late_intent(self: Repair, *args: Any) -> None:
    """The action is commanded one event before its intent is said."""
    _act(self, *args)
    late = [r for r in self.desk.records if isinstance(r, Intended)]
    self.desk.records[:] = [r for r in self.desk.records if r not in late]
    _owed.extend(late)


_owed: list[Intended] = []
_receive = Engine.receive


def _pays_late(self: Engine, event: Any) -> Any:
    owed = _owed[:]
    _owed.clear()
    output = _receive(self, event)
    return attrs.evolve(output, records=(*owed, *output.records)) if owed else output


def _redo(self: Roster, event: Any) -> None:
    """What ran when the manager died is simply run again."""
    _started(self, event)
    for i in self.desk.ledger.intents.values():
        again = RunAction(intent=i.intent, service=i.service, step=i.step, expected=i.expected, timeout=i.timeout)
        self.desk.commands.append(again)


def _orphans_forgotten(self: Roster, event: Any) -> None:
    _started(self, event)
    self.desk.commands[:] = [c for c in self.desk.commands if type(c).__name__ != "Settle"]
    for intent in self.desk.ledger.intents:
        self.desk.agenda.cancel(("settle", intent))


def _words_believed(self: Repair, watch: Any, condition: Any, settled: Any, detail: str) -> None:
    if settled is Settled.DONE:
        self.well(watch, condition)
        self.desk.want(watch.name, Purpose.ROUTINE)
    else:
        _verify(self, watch, condition, settled, detail)


def _stale_accepted(self: Engine, event: Any) -> None:
    condition = self.ledger.conditions.get(event.service)
    _checked(self, event if condition is None else attrs.evolve(event, generation=condition.generation))


def _any_verdict(policy: Any, evidence: Any, result: Any, *rest: Any) -> Verdict:
    if result.verdict is Verdict.INCONCLUSIVE:
        result = attrs.evolve(result, verdict=Verdict.FAILING)
    return _judge(policy, evidence, result, *rest)


def _one_pass(self: Engine, watch: Any, condition: Any) -> None:
    whole = watch.policy
    watch.policy = attrs.evolve(whole, success_threshold=1)
    try:
        _passing(self, watch, condition)
    finally:
        watch.policy = whole


def _kept_over_instances(policy: Any, e: Any, instance: Any) -> None:
    e.instance = instance


def _no_span(policy: Any, evidence: Any, now: float) -> bool:
    return _confirmed(attrs.evolve(policy, min_failing_span=0.0, definite_span=0.0), evidence, now)


def _one_less(policy: Any, evidence: Any, now: float) -> bool:
    return _confirmed(attrs.evolve(policy, failure_threshold=max(1, policy.failure_threshold - 1)), evidence, now)


def _budget_plus_one(spent: Any, budget: Any) -> float:
    return _opens(spent, attrs.evolve(budget, limit=budget.limit + 1))


def _not_refunded(self: Ledger, record: Any) -> None:
    _ended(self, attrs.evolve(record, refunded=False))


def _attempt_kept(condition: Any, now: float, *, first: bool) -> Any:
    after = _given_back(condition, now, first=first)
    return attrs.evolve(after, attempt=condition.attempt, level=condition.level)


def _approval_kept(condition: Any, now: float, step: int) -> Any:
    return attrs.evolve(_begins(condition, now, step), approved=condition.approved)


def _level_one(policy: Any, seed: int, incident: int, attempt: int, level: int) -> float:
    return _wait(policy, seed, incident, attempt, min(level, 1))


def _dead_end(policy: Any, condition: Any, now: float, seed: int, **more: Any) -> Any:
    after = _over(policy, condition, now, seed, **more)
    return attrs.evolve(after, not_before=inf) if after.attempt >= policy.max_retries else after


def _endless(policy: Any, condition: Any, now: float, seed: int, **more: Any) -> Any:
    return _over(attrs.evolve(policy, max_retries=1000), condition, now, seed, **more)


def _two_rungs(condition: Any, now: float) -> Any:
    after = _rung(condition, now)
    return attrs.evolve(after, cursor=after.cursor + 1)


def _forces_on(self: Roster, policy: Any, *rest: Any) -> None:
    condition = self.desk.ledger.conditions[policy.name]
    if policy.name in self.desk.watches and policy.enabled and not condition.enabled:
        self.switch_on(policy.name, "it is in the configuration")
    else:
        _resume(self, policy, *rest)


def _at_event_time(self: Engine, until: float) -> None:
    if self.desk.agenda.deadline <= until:
        self.desk.now = max(self.desk.now, until)
    _fire(self, until)


def _catches_up(self: Engine, event: Any, at: float) -> None:
    if isinstance(event, WokeLate):
        self._fire(at)
    _take(self, event, at)


def _failed_left_open(ledger: Any, name: str, condition: Any, now: float) -> Iterator[Any]:
    for record in _changes(ledger, name, condition, now):
        if not isinstance(record, AlertChanged) or record.open or record.alert.rule != "failed":
            yield record


def _nothing(*args: Any, **named: Any) -> Iterator[Any]:
    del args, named
    return iter(())


def _image_without_spent(self: Ledger, number: int = 0) -> Any:
    return attrs.evolve(_image(self, number), spent={}, fleet_spent=())


def _explain_asks(self: Engine, service: str) -> Any:
    answer = _explain(self, service)
    for _, hold in answer:
        for name in hold.ask if hold is not None else ():
            self.desk.want(name, Purpose.PARENT)
    return answer


def _checkable(self: Desk, name: str) -> bool:
    return self.ledger.conditions[name].state is not State.DISABLED


def _forgets_inconclusive(self: Engine, watch: Any, wanted: Any) -> None:
    if not watch.evidence.inconclusive:
        _after_check(self, watch, wanted)


def _unsettled_counts(self: Lookout, event: Any, condition: Any, *rest: Any) -> bool:
    return _disbelieves(self, event, attrs.evolve(condition, settle_until=0.0), *rest)


def _no_relapse(ledger: Any, policy: Any, condition: Any, now: float) -> Any:
    return _belongs(ledger, policy, attrs.evolve(condition, last_incident=None), now)


def _expects_nobody(self: Repair, *args: Any) -> None:
    _act(self, *args)
    last: Any = self.desk.commands[-1]
    self.desk.commands[-1] = attrs.evolve(last, expected=None)


def _forced_spends(self: Repair, watch: Any, sight: Any, said: Any) -> None:
    say = self.desk.say

    def spending(record: Any) -> None:
        gentle = sight.policy.steps[sight.index].effect is Effect.GENTLE
        say(attrs.evolve(record, spends=not gentle) if isinstance(record, Intended) else record)

    self.desk.say = spending  # type: ignore[method-assign]
    try:
        _act(self, watch, sight, said)
    finally:
        del self.desk.say


def _never_late(self: DoubtWatch, limits: Any, at: float, late: float) -> bool:
    del self, limits, at, late
    return False


def _no_parents_asked(sight: guards.Sight) -> Any:
    """A parent is waited for, and nobody looks whether it is back."""
    hold = guards.parents(sight)
    return None if hold is None else attrs.evolve(hold, ask=())


def _never_allowed(sight: guards.Sight) -> Any:
    return Hold(reason="held:slot", detail="never")


def _skips_destructive_consent(sight: guards.Sight) -> Any:
    hold = guards.approval(sight)
    return None if hold is not None and sight.step is not None and sight.step.action != "manual_intervention" else hold


def _drops_anything(old: Any, new: Any) -> bool:
    del old, new
    return False


MUTANTS: tuple[Mutant, ...] = (
    Mutant("no dependency rule", _without("parents")),
    Mutant("a parent's old result will do", _asks("parents", _stale_parents)),
    Mutant("a parent is waited for and never looked at", _asks("parents", _no_parents_asked), "liveness"),
    Mutant("no slot limit", _without("slot")),
    Mutant("one slot too many", _asks("slot", _one_slot_more)),
    Mutant("nothing is ever done", _asks("slot", _never_allowed), "liveness"),
    Mutant("the intent comes late", ((Repair, "_act", _late_intent), (Engine, "receive", _pays_late))),
    Mutant("the intent is never said", ((Desk, "say", _intent_unsaid),)),
    Mutant("the backoff is not said", _unsaid(not_before=0.0)),
    Mutant("the attempt is not said", _unsaid(attempt=0)),
    Mutant("redo after a crash", ((Roster, "started", _redo),), "crash points"),
    Mutant("orphans are forgotten", ((Roster, "started", _orphans_forgotten),), "crash points"),
    Mutant("in doubt is taken for over", ((repair, "ORPHAN_MARGIN", -1e9),), "crash points"),
    Mutant(
        "no fresh check before a step",
        ((Repair, "attempt", lambda self, name, fresh=True: _attempt(self, name, fresh=True)),),
    ),
    Mutant("an action's word is believed", ((Repair, "_verify", _words_believed),)),
    Mutant("a stale result counts", ((Engine, "_checked", _stale_accepted),), "hypothesis"),
    Mutant("inconclusive is a failure", ((detector, "judge", _any_verdict),)),
    Mutant("starting is a failure", ((detector, "_excused", lambda *args: False),)),
    Mutant("no span", ((detector, "confirmed", _no_span),), "model"),
    Mutant("one failure less", ((detector, "confirmed", _one_less),), "model"),
    Mutant("one pass is enough", ((Engine, "_passing", _one_pass),), "model"),
    Mutant("failures are kept over instances", ((detector, "_meet", _kept_over_instances),)),
    Mutant("the stopped are started", _without("workload")),
    Mutant("a restart for a wrong password", ((machine, "allowed", lambda step, evidence: True),)),
    Mutant("no backoff", _without("backoff"), "model"),
    Mutant("a backoff that does not grow", ((machine, "wait", _level_one),), "model"),
    Mutant("a backoff that is never forgotten", ((machine, "level_now", lambda policy, c, now: c.level),), "model"),
    Mutant("no end of attempts", ((machine, "attempt_over", _endless),), "model"),
    Mutant("giving up is a dead end", ((machine, "attempt_over", _dead_end),), "liveness"),
    Mutant("one too many in a budget", ((backoff, "opens", _budget_plus_one),)),
    Mutant("no fleet budget", _without("fleet_budget")),
    Mutant("no service budget", _without("budget")),
    Mutant("a budget is not given back", ((Ledger, "_ended", _not_refunded),), "crash points"),
    Mutant("an attempt is not given back", ((machine, "given_back", _attempt_kept),)),
    Mutant("a snapshot without what was spent", ((Ledger, "image", _image_without_spent),)),
    Mutant("flapping is restarted", _without("flapping")),
    Mutant("no cooldown", _without("cooldown")),
    Mutant("a pause is not heeded", _without("paused")),
    Mutant("maintenance is not heeded", _without("maintenance")),
    Mutant("the observed are acted on", _without("observe")),
    Mutant("a canary is not heeded", ((CanaryWatch, "down", property(lambda self: False)),)),
    Mutant("a storm is not heeded", _without("storm")),
    Mutant("a storm ends by itself", ((StormWatch, "calm", lambda self, limits: True),)),
    Mutant("lateness is not heeded", ((DoubtWatch, "late", _never_late),)),
    Mutant("a suspended host makes up for lost time", ((Engine, "_take", _catches_up),)),
    Mutant("timers at the time of the event", ((Engine, "_fire", _at_event_time),)),
    Mutant("a restart switches on", ((Roster, "_resume", _forces_on),), "crash points"),
    Mutant("any fleet is taken", ((roster, "drops_too_much", _drops_anything),)),
    Mutant("destructive without consent", _asks("approval", _skips_destructive_consent)),
    Mutant("an approval outlives its step", ((machine, "begins", _approval_kept),), "crash points"),
    Mutant("an alert is left open", ((alerts, "changes", _failed_left_open),)),
    Mutant("an incident is left open", ((incidents, "left", _nothing),)),
    Mutant("a check beside an action", ((Desk, "checkable", _checkable),)),
    Mutant("asking asks", ((Engine, "explain", _explain_asks),)),
    Mutant("a check that could not run is the last", ((Engine, "_after_check", _forgets_inconclusive),)),
    Mutant("no journal, no matter", _without("journal")),
    Mutant("an attempt without an end", ((Repair, "run_clock", lambda *args: None),), "model"),
    Mutant("the clock runs while it is held", ((machine, "clock_stopped", lambda condition, now: {}),)),
    Mutant("failures count before it has settled", ((Lookout, "disbelieves", _unsettled_counts),)),
    Mutant("the ladder has every second rung", ((machine, "next_rung", _two_rungs),), "model"),
    Mutant("a relapse is a new outage", ((incidents, "belongs_to", _no_relapse),), "model"),
    Mutant("whoever runs is expected", ((Repair, "_act", _expects_nobody),)),
    Mutant("a forced recovery spends", ((Repair, "_act", _forced_spends),)),
)


# -- the nets, as far as they are cast for a mutant ------------------------------------------------------------------


def _swarm(most: int) -> Iterator[Callable[[], object]]:
    for seed in range(most):
        yield partial(swarm.one, seed, horizon=1500.0, fold_every=15, ask_every=7)


def _crash_points(most: int) -> Iterator[Callable[[], object]]:
    for story in crashpoints.STORIES:
        yield partial(crashpoints.told, story)
    walks = [list(crashpoints.points(story)) for story in crashpoints.STORIES]
    for number in range(most):
        for story, kills in zip(crashpoints.STORIES, walks, strict=True):
            yield partial(crashpoints.told, story, kills[number * 37 % len(kills)])


def _hypothesis(most: int) -> Iterator[Callable[[], object]]:
    quick = settings(QUICK, max_examples=most)
    yield partial(run_state_machine_as_test, Healing, settings=quick)


def _model(most: int) -> Iterator[Callable[[], object]]:
    for seed in range(most):
        yield partial(compare, seed)


def _liveness(most: int) -> Iterator[Callable[[], object]]:
    for seed in range(most):
        yield partial(liveness.one, seed)


NETS: dict[str, tuple[Callable[[int], Iterator[Callable[[], object]]], int]] = {
    "swarm": (_swarm, 40),
    "crash points": (_crash_points, 60),
    "hypothesis": (_hypothesis, 40),
    "model": (_model, 150),
    "liveness": (_liveness, 20),
}
"""Each net, and how far it is cast: seeds, walks, examples."""


def caught(mutant: Mutant, net: str, *, most: int | None = None) -> tuple[str, str] | None:
    """Return where a net catches a mutant (`7, 0.4 s`) and what it says; None when it does not."""
    cast, usual = NETS[net]
    began = time.perf_counter()
    with wrong(mutant):
        _owed.clear()
        throws = cast(usual if most is None else most)
        number = 0
        while True:
            try:
                throw = next(throws, None)
                if throw is None:
                    return None
                with swarm.within(30.0):
                    throw()
            except AssertionError as problem:  # a law; anything else is a patch that no longer fits the engine
                took = f"{time.perf_counter() - began:.1f} s"
                where = took if net == "hypothesis" else f"{number}, {took}"
                return where, f"{type(problem).__name__}: {problem}".splitlines()[0][:160]
            number += 1
