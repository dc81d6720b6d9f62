"""The script of `test_crash`: writes a told story, and is killed at a point of it."""

from __future__ import annotations

import attrs

from selfheal.core.messages import CheckFinished
from selfheal.journal import Batch, Keep, SqliteStore
from selfheal.testing.crashes import CrashPoint
from selfheal.testing.stores import batch, checked, story


def told() -> list[Batch]:
    """Return a story over four hours: 40 batches of everything, and quiet results enough to be merged."""
    batches: list[Batch] = []
    for hour in range(4):
        for one in story():
            at = one.at + 3600.0 * hour
            number = len(batches) + 1
            event = one.input
            if event is not None:
                event = attrs.evolve(event, at=at)
            batches.append(Batch(number=number, at=at, wall=one.wall + 3600.0 * hour, input=event, records=one.records))
        batches += [
            batch(len(batches) + 1 + turn, checked(3600.0 * hour + 100.0 + turn, generation=turn)) for turn in range(20)
        ]
    assert any(isinstance(one.input, CheckFinished) for one in batches)
    return batches


def tell(crash_point: CrashPoint, path: str) -> None:
    """Write the story one batch at a time; print each number once it is stored."""
    store = SqliteStore.open(path, keep=Keep(inputs=3600.0 * 10, runs=3600.0 * 10), crash_point=crash_point)
    for one in told():
        store.append([one], durable=one.number % 3 == 0)
        print(one.number)
        if one.number % 7 == 0:
            store.save_snapshot(one.number, b"state")
        if one.number % 11 == 0:
            store.tend()
    store.close()
