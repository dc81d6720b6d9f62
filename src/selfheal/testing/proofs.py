"""What a whole run must show, beside the laws of each step: calm after the faults, and the same again from its inputs.

Each function raises `AssertionError` naming the law it found broken.
"""

from __future__ import annotations

from selfheal.core.engine import Engine
from selfheal.core.messages import Event
from selfheal.core.model import State
from selfheal.testing.simulator import Simulator


def asking_sees(engine: Engine) -> tuple[object, ...]:
    """Return everything that a question could have changed."""
    desk = engine.desk
    evidence = {name: repr(watch.evidence) for name, watch in desk.watches.items()}
    flights = {name: (watch.flight, watch.wanted) for name, watch in desk.watches.items()}
    pending = (list(desk.records), list(desk.commands), list(desk.awake), dict(desk.reserved), dict(desk.touched))
    return engine.snapshot(), engine.deadline, len(desk.agenda), evidence, flights, pending


def changes_nothing(simulator: Simulator, event: Event) -> None:
    """Feed an event that is not worth an answer: a stale or foreign result, an unknown intent (law 3).

    Only when no timer is due: a timer may rightly fire at any event. Raises `AssertionError` when anything changed.
    """
    if simulator.engine.deadline <= event.at or event.at < simulator.engine.now:
        return
    before = asking_sees(simulator.engine)
    output = simulator.feed(event)
    assert not output.records, f"law 3: a stale result has said {output.records[0].kind}"
    assert not output.commands, f"law 3: a stale result has commanded {output.commands[0]}"
    assert asking_sees(simulator.engine) == before, "law 3: a stale result has changed something"


def quiet(simulator: Simulator, within: float, *, silent_for: float = 400.0) -> None:
    """After faults have stopped: everything recoverable is well within a bound and the journal falls quiet (law 21).

    Time passes until all is well, at most `within` seconds, and `silent_for` more. Raises `AssertionError` naming who
    is not well, or what is still said or held.
    """
    end = simulator.now + within
    while (ill := _ill(simulator)) and simulator.now < end:
        simulator.run(min(end, simulator.now + within / 50))
    assert not ill, f"law 21: not well after {within:g} s: {ill}"
    simulator.run(simulator.now + silent_for)
    ledger = simulator.engine.ledger
    assert not ledger.intents, f"law 12: nothing runs, yet {list(ledger.intents)} are open"
    assert not (left := {"storm", "canary", "doubt", "journal"} & set(ledger.holds)), f"law 18: {left} never ends"
    stale = [a for a in ledger.alerts.values() if a.service not in ledger.unwatched and a.rule != "fleet"]
    assert not stale, f"law 14: all is well, yet open: {[(a.service, a.rule) for a in stale]}"
    before = len(simulator.records)
    simulator.run(simulator.now + silent_for)
    assert len(simulator.records) == before, f"law 21: the journal does not fall quiet: {simulator.records[before]}"


def _ill(simulator: Simulator) -> dict[str, tuple[str, str]]:
    ledger = simulator.engine.ledger
    conditions = {n: c for n, c in ledger.conditions.items() if n not in ledger.unwatched}
    return {
        n: (c.state.value, c.reason) for n, c in conditions.items() if c.state not in (State.HEALTHY, State.DISABLED)
    }


def replays(simulator: Simulator) -> None:
    """The stored inputs, fed to a fresh engine, give the stored records (laws 1, 2 and 20b)."""
    again, stored = simulator.replayed(), simulator.records
    if again == stored:
        return
    at = next((i for i, pair in enumerate(zip(again, stored, strict=False)) if pair[0] != pair[1]), len(stored))
    raise AssertionError(f"law 20b: record {at} is {stored[at : at + 1]}, replayed it is {again[at : at + 1]}")
