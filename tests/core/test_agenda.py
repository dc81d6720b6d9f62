"""What is due when, and who waits for what."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfheal.core.agenda import Agenda, Rank, Waiting


def drained(agenda: Agenda) -> list[tuple[float, str]]:
    out = []
    while agenda.deadline < inf:
        at, (_, name) = agenda.pop()
        out.append((at, name))
    return out


def test_the_earliest_comes_first_and_ties_go_by_the_order_of_setting() -> None:
    agenda = Agenda()
    for name, due in (("late", 9.0), ("second", 5.0), ("third", 5.0), ("first", 1.0)):
        agenda.set(("check", name), due)
    assert drained(agenda) == [(1.0, "first"), (5.0, "second"), (5.0, "third"), (9.0, "late")]


def test_a_key_has_one_due_time_the_last_one_set() -> None:
    agenda = Agenda()
    agenda.set(("check", "db"), 3.0)
    agenda.set(("check", "db"), 7.0)
    assert agenda.due(("check", "db")) == 7.0
    assert len(agenda) == 1
    assert drained(agenda) == [(7.0, "db")]


def test_the_same_thing_and_another_reason_are_two_keys() -> None:
    agenda = Agenda()
    agenda.set(("check", "db"), 3.0)
    agenda.set(("act", "db"), 2.0)
    assert [agenda.pop()[1] for _ in range(2)] == [("act", "db"), ("check", "db")]


def test_what_is_cancelled_or_never_due_does_not_come() -> None:
    agenda = Agenda()
    agenda.set(("check", "db"), 3.0)
    agenda.cancel(("check", "db"))
    agenda.cancel(("check", "db"))
    agenda.set(("act", "db"), inf)
    assert agenda.due(("check", "db")) == inf
    assert agenda.deadline == inf
    assert len(agenda) == 0


def test_an_infinite_time_takes_an_earlier_one_back() -> None:
    agenda = Agenda()
    agenda.set(("act", "db"), 3.0)
    agenda.set(("act", "db"), inf)
    assert agenda.deadline == inf


def test_nothing_due_cannot_be_popped() -> None:
    with pytest.raises(IndexError, match="nothing is due"):
        Agenda().pop()


def test_what_is_overdue_moves_to_now_in_its_order_and_the_rest_stays() -> None:
    agenda = Agenda()
    for name, due in (("b", 2.0), ("a", 1.0), ("c", 4.0)):
        agenda.set(("check", name), due)
    agenda.postpone(4.0)
    assert drained(agenda) == [(4.0, "c"), (4.0, "a"), (4.0, "b")]


def test_it_can_be_emptied() -> None:
    agenda = Agenda()
    agenda.set(("check", "db"), 1.0)
    agenda.clear()
    assert agenda.deadline == inf


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.one_of(st.none(), st.integers(0, 9)))))
def test_it_agrees_with_a_dictionary_whatever_is_set_and_cancelled(does: list[tuple[str, int | None]]) -> None:
    agenda, plain = Agenda(), dict[str, float]()
    for name, due in does:
        if due is None:
            agenda.cancel(("check", name))
            plain.pop(name, None)
        else:
            agenda.set(("check", name), float(due))
            plain[name] = float(due)
        assert agenda.deadline == min(plain.values(), default=inf)
    assert sorted(drained(agenda)) == sorted((due, name) for name, due in plain.items())


HIGH: Rank = (-2, 0, "high")
BIG: Rank = (-1, -7, "big")
SMALL: Rank = (-1, 0, "small")


def test_the_most_important_waiter_is_woken_first() -> None:
    waiting = Waiting()
    for rank in (SMALL, BIG, HIGH):
        waiting.add("slot", rank)
    assert "slot" in waiting
    assert waiting.take("slot") == "high"
    assert waiting.take_all("slot") == ["big", "small"]
    assert "slot" not in waiting
    assert waiting.take("slot") is None


def test_waiting_twice_is_waiting_once() -> None:
    waiting = Waiting()
    waiting.add("slot", HIGH)
    waiting.add("slot", HIGH)
    assert waiting.take_all("slot") == ["high"]


def test_waiters_of_one_thing_are_not_those_of_another() -> None:
    waiting = Waiting()
    waiting.add("slot", HIGH)
    assert waiting.take("operator") is None
    assert waiting.take_all("slot") == ["high"]


def test_all_waiting_can_be_forgotten() -> None:
    waiting = Waiting()
    waiting.add("slot", HIGH)
    waiting.clear()
    assert "slot" not in waiting
