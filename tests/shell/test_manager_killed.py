"""A kill of the manager at any moment: nothing is forgotten, nothing done twice, and the journal replays (G5, S60)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.broken import fails_when

from selfheal.builtin import proc
from selfheal.builtin.launch import Launcher
from selfheal.core.engine import Engine
from selfheal.core.ledger import Ledger
from selfheal.core.messages import Started, TimePassed
from selfheal.core.model import State
from selfheal.core.records import Ended, Intended, Record
from selfheal.core.routing import DeliveryFinished
from selfheal.journal import Files, SqliteStore
from selfheal.journal.audit import verify
from selfheal.journal.store import Batch

if TYPE_CHECKING:
    from tests.shell.killed_manager import supervisor, until_healthy
else:
    from killed_manager import supervisor, until_healthy

pytestmark = pytest.mark.real_time

CREATING = ["create:marked", "create:keyed", "create:built", "create:headed", "create:placed", "create:made"]
LAUNCHING = ["before the intent", "after the intent", "after the gate", "after the program", "after the record"]
MOMENTS = [
    *((point, 1) for point in CREATING),
    *((f"launch:{point}", 1) for point in LAUNCHING),
    *((f"append:{point}", n) for n in (1, 2, 4, 6, 9) for point in ("written", "committed", "headed")),
    ("action:before", 1),
    ("action:after", 1),
    *((f"launch:{point}", 1) for point in LAUNCHING),
    ("action:before", 2),
    ("action:after", 2),
    ("snapshot:written", 1),
    ("snapshot:committed", 1),
    ("close:checkpointed", 1),
]
"""One after another, on one journal: each run begins with what the one before has left."""


class Manager:
    """A folder with a journal, a program, and the managers that live and die over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "selfheal.db"

    def run(self, backend: str, moment: str = "", occurrence: int = 0) -> bool:
        """Let a manager live; return whether it was killed."""
        script = str(Path(__file__).with_name("killed_manager.py"))
        child = subprocess.run(
            [sys.executable, script, str(self.folder), backend, moment, str(occurrence)],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert child.returncode in (0, -signal.SIGKILL), child.stderr.decode()
        return child.returncode != 0

    def effects(self, word: str) -> list[str]:
        """Return the keys of the actions that have begun, or are done."""
        file = self.folder / "effects"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removeprefix(f"{word} ") for line in lines if line.startswith(word)]

    def programs(self) -> list[int]:
        """Return the first processes that carry the mark of the program and live."""
        (mark,) = Launcher(folder=self.folder / "processes", service="program").marks()
        return [
            seen.identity.pid
            for seen in proc.everyone()
            if seen.alive and seen.session == seen.identity.pid and mark in proc.environment_of(seen.identity.pid)
        ]

    def batches(self) -> list[Batch]:
        store = SqliteStore.open(self.path)
        try:
            return list(store.batches())
        finally:
            store.close()

    def records(self) -> list[Record]:
        return [record for batch in self.batches() for record in batch.records]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    for pid in manager.programs():
        os.kill(pid, signal.SIGKILL)


def replayed(batches: list[Batch]) -> None:
    """Hold law 20b: the stored inputs, given to a new engine, give the stored records."""
    engine = Engine()
    for batch in batches:
        if isinstance(batch.input, DeliveryFinished):
            continue
        event = batch.input if batch.input is not None else TimePassed(at=batch.at)
        assert engine.receive(event).records == batch.records, f"batch {batch.number} ({type(event).__name__})"


def account(manager: Manager) -> tuple[list[Intended], list[Ended]]:
    """Hold what must be true of a journal at any moment, and return its intents and their ends."""
    if not manager.path.exists():
        return [], []
    batches = manager.batches()  # opening it needs no help
    assert verify(Files(database=manager.path)).faults == ()
    assert [batch.number for batch in batches] == list(range(1, len(batches) + 1))
    replayed(batches)
    records = [record for batch in batches for record in batch.records]
    intended = [record for record in records if isinstance(record, Intended)]
    ended = [record for record in records if isinstance(record, Ended)]
    keys = Counter(record.intent for record in intended)
    assert max(keys.values(), default=1) == 1, "an intent was said twice"
    assert max(Counter(record.intent for record in ended).values(), default=1) == 1, "an intent ended twice"
    begun = Counter(manager.effects("begun"))
    assert max(begun.values(), default=1) == 1, "an action was carried out twice"
    assert set(begun) <= set(keys), "an action was carried out whose intent is not on the disk"
    never = {record.intent for record in ended if record.settled in ("not_started", "superseded")}
    assert not never & set(begun), "an action is said not to have started, and it did"
    return intended, ended


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_g5_a_kill_at_any_moment_forgets_nothing_and_does_nothing_twice(manager: Manager, backend: str) -> None:
    killed = 0
    for moment, occurrence in MOMENTS:
        died = manager.run(backend, moment, occurrence)
        killed += died
        intended, _ = account(manager)
        assert len(manager.programs()) <= 1, f"the program runs twice after a kill at {moment}"
        if moment.startswith(("action:", "launch:", "append:")):
            assert died, f"{moment} {occurrence} never came"
    assert not manager.run(backend)
    intended, ended = account(manager)
    assert {record.intent for record in intended} == {record.intent for record in ended}, "an intent never ended"
    assert len(manager.programs()) == 1
    ledger = Ledger.fold(manager.records())
    assert ledger.conditions["program"].state is State.HEALTHY
    assert not ledger.intents
    said = Counter(record.settled.value for record in ended)
    print(f"\n{backend}: {killed} kills, {len(intended)} intents, each ended once: {dict(said)}")


@fails_when("what was decided is not read again")
@pytest.mark.anyio
async def test_s60_budget_backoff_and_incident_go_on_where_they_were(manager: Manager, anyio_backend: str) -> None:
    """Killed while it verifies an attempt: the attempt counts, the incident is the same, and its end is known."""
    assert manager.run(anyio_backend, "action:after", 1)
    before = Ledger.fold(manager.records())
    condition = before.conditions["program"]
    assert condition.state is State.RECOVERING
    assert len(before.intents) == 1
    spent = before.spent["program"]
    program = manager.programs()
    async with supervisor(manager.folder) as again:
        running = again._running
        assert running is not None
        now = running.engine.ledger
        assert now.spent.get("program", ())[: len(spent)] == spent
        assert now.conditions["program"].incident == condition.incident
        assert (now.conditions["program"].attempt, now.conditions["program"].level) == (
            condition.attempt,
            condition.level,
        )
        began = time.monotonic()
        assert [await until_healthy(again)] == program, "the process that the dead manager started was not adopted"
        assert time.monotonic() - began < 10.0
    intended, ended = account(manager)
    assert [record.settled for record in ended] == ["done"]
    assert len(intended) == 1


@pytest.mark.anyio
async def test_an_action_that_never_began_is_settled_as_such_and_spends_nothing(
    manager: Manager, anyio_backend: str
) -> None:
    """Killed between the intent on the disk and the act."""
    assert manager.run(anyio_backend, "append:headed", 5) or manager.run(anyio_backend, "append:headed", 4)
    account(manager)
    assert not manager.run(anyio_backend)
    intended, ended = account(manager)
    begun = set(manager.effects("begun"))
    for record in ended:
        if record.intent not in begun:
            assert record.settled == "not_started"
            assert record.refunded
    assert len(intended) == len(ended)


def test_the_clean_life_replays_too(manager: Manager) -> None:
    assert not manager.run("asyncio")
    assert not manager.run("asyncio")
    batches = manager.batches()
    assert sum(isinstance(batch.input, Started) for batch in batches) == 2
    replayed(batches)
