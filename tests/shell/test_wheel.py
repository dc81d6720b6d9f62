"""Deadlines on a grid: never early, at most a slot late, and never a wake-up for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selfheal.shell.wheel import Wheel

times = st.floats(min_value=100.0, max_value=200.0)


@given(st.lists(times), st.lists(st.tuples(times, st.booleans())))
def test_an_item_is_due_within_a_slot_after_its_time_and_never_before(
    deadlines: list[float], looks: list[tuple[float, bool]]
) -> None:
    wheel: Wheel[int] = Wheel(100.0, 0.01)
    slots = [wheel.put(at, number) for number, at in enumerate(deadlines)]
    waiting = dict(enumerate(deadlines))
    for now, removes in sorted(looks):
        if removes and waiting:
            number = min(waiting)
            wheel.remove(slots[number], number)
            del waiting[number]
        due = wheel.due(now)
        for number in due:
            assert waiting.pop(number) <= now + 1e-6
        assert all(at > now - 0.01 - 1e-6 for at in waiting.values())
        first = wheel.first()
        assert (first is None) == (not waiting)
        if first is not None:
            assert min(waiting.values()) - 1e-6 <= first <= min(waiting.values()) + 0.01 + 1e-6


def test_what_was_removed_wakes_nobody_and_its_slot_can_be_used_again() -> None:
    wheel: Wheel[str] = Wheel(0.0, 0.01)
    slot = wheel.put(1.0, "a")
    wheel.remove(slot, "a")
    wheel.remove(slot, "a")
    assert wheel.put(1.0, "b") == slot
    assert wheel.first() is not None
    wheel.remove(slot, "b")
    assert wheel.first() is None
    assert wheel.put(1.0, "c") == slot
    assert wheel.due(0.999) == []
    assert wheel.due(1.0) == ["c"]
