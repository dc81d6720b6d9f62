"""The three watches over our own view of the fleet: storm, canaries, and our own lateness."""

from __future__ import annotations

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from selfheal.core.holds import CanaryWatch, DoubtWatch, StormWatch
from selfheal.core.model import Limits, Verdict

LIMITS = Limits()


def storm(total: int = 10) -> StormWatch:
    one = StormWatch()
    one.reset(total)
    return one


def suspects(one: StormWatch, *names: str, at: float = 0.0) -> None:
    for name in names:
        one.suspect(name, at, ())


# -- storms ---------------------------------------------------------------------------------------------------------


def test_half_of_the_independent_services_within_a_minute_are_a_storm() -> None:
    one = storm()
    suspects(one, "a", "b", "c", "d")
    assert not one.rising(LIMITS, 10.0)
    suspects(one, "e", at=10.0)
    assert one.rising(LIMITS, 10.0)
    assert one.evidence() == "5 of 10 independent services are failing"


def test_two_are_no_storm_however_small_the_fleet() -> None:
    one = storm(2)
    suspects(one, "a", "b")
    assert not one.rising(LIMITS, 0.0)


def test_what_began_over_a_minute_ago_raises_nothing() -> None:
    one = storm(6)
    suspects(one, "a", "b", at=0.0)
    suspects(one, "c", at=59.9)
    assert one.rising(LIMITS, 59.9)
    assert not one.rising(LIMITS, 60.0)


def test_dependents_of_a_suspect_parent_count_once_with_it() -> None:
    one = storm()
    one.suspect("db", 0.0, ("a", "b", "c", "d", "e"))
    suspects(one, "a", "b", "c", "d", "e", at=1.0)
    assert not one.rising(LIMITS, 1.0)
    assert one.independent == 5
    assert one.evidence() == "1 of 5 independent services are failing"


def test_a_parent_that_turns_out_to_fail_later_takes_its_dependents_out_of_the_count() -> None:
    one = storm()
    suspects(one, "a", "b", "c", "d", "e")
    assert one.rising(LIMITS, 1.0)
    one.suspect("db", 1.0, ("a", "b", "c", "d", "e"))
    assert not one.rising(LIMITS, 1.0)
    one.cleared("db", ("a", "b", "c", "d", "e"))
    assert one.rising(LIMITS, 1.0)


def test_a_service_with_two_suspect_parents_is_blamed_on_both() -> None:
    one = storm()
    one.suspect("db", 0.0, ("a",))
    one.suspect("cache", 0.0, ("a",))
    one.suspect("a", 0.0, ())
    one.cleared("db", ("a",))
    assert one.evidence().startswith("1 of")
    one.cleared("cache", ("a",))
    assert one.evidence().startswith("1 of")
    one.cleared("a", ())
    assert one.evidence() == "0 of 10 independent services are failing"


def test_a_dependent_that_is_well_is_not_counted_when_its_parent_is_cleared() -> None:
    one = storm()
    one.suspect("db", 0.0, ("a",))
    one.cleared("db", ("a",))
    assert one.evidence() == "0 of 10 independent services are failing"


def test_a_storm_is_over_when_the_share_has_halved() -> None:
    one = storm(20)
    names = [f"s{n}" for n in range(10)]
    suspects(one, *names)
    for name in names[:5]:
        assert not one.calm(LIMITS)
        one.cleared(name, ())
    assert not one.calm(LIMITS)  # 5 of 20 are not fewer than a quarter
    one.cleared(names[5], ())
    assert one.calm(LIMITS)


def test_being_suspect_or_cleared_twice_changes_nothing() -> None:
    one = storm()
    suspects(one, "a", "a")
    assert "a" in one
    assert one.evidence().startswith("1 of")
    one.cleared("a", ())
    one.cleared("a", ())
    assert "a" not in one
    assert one.evidence().startswith("0 of")


CHILDREN = {"db": ("api", "jobs"), "api": ("web",), "cache": ("api", "web"), "jobs": (), "web": (), "mail": ()}


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHILDREN)), st.integers(0, 40))))
def test_its_counts_are_those_of_counting_everything_anew(steps: list[tuple[str, int]]) -> None:
    one, down = storm(len(CHILDREN)), dict[str, float]()
    now = 0.0
    for name, wait in steps:
        now += wait
        if name in down:
            one.cleared(name, CHILDREN[name])
            del down[name]
        else:
            one.suspect(name, now, CHILDREN[name])
            down[name] = now
        blamed = {child for parent in down for child in CHILDREN[parent]}
        lone = [name for name in down if name not in blamed]
        recent = [name for name in lone if down[name] > now - LIMITS.storm_window]
        independent = len(CHILDREN) - (len(down) - len(lone))
        assert one.evidence() == f"{len(lone)} of {independent} independent services are failing"
        assert one.rising(LIMITS, now) is (len(recent) >= 3 and len(recent) >= 0.5 * independent)
        assert one.calm(LIMITS) is (len(lone) < 3 or len(lone) < 0.25 * independent)


# -- canaries -------------------------------------------------------------------------------------------------------


def test_without_canaries_everybody_is_believed() -> None:
    one = CanaryWatch()
    assert not one.down
    assert one.vouches(1e9)


def test_they_are_down_when_each_has_answered_and_none_well() -> None:
    one = CanaryWatch()
    one.reset(("gateway", "resolver"))
    one.heard("gateway", Verdict.FAILING, 1.0)
    assert not one.down  # the other has not been heard
    one.heard("resolver", Verdict.INCONCLUSIVE, 1.0)
    assert not one.down
    one.heard("resolver", Verdict.FAILING, 2.0)
    assert one.down
    one.heard("gateway", Verdict.PASSING, 5.0)
    assert not one.down
    assert one.well_since == 5.0


def test_one_that_answers_vouches_for_what_began_before_it_was_asked() -> None:
    one = CanaryWatch()
    one.reset(("gateway",))
    assert not one.vouches(0.0)
    one.heard("gateway", Verdict.WARNING, 7.0)
    assert one.vouches(7.0)
    assert not one.vouches(7.1)
    one.heard("gateway", Verdict.PASSING, 6.0)  # an older answer, heard later
    assert one.vouches(7.0)
    assert one.well_since == -inf  # they were never down


def test_other_canaries_begin_afresh() -> None:
    one = CanaryWatch()
    one.reset(("gateway",))
    one.heard("gateway", Verdict.FAILING, 1.0)
    one.reset(("resolver",))
    assert not one.down
    assert one.names == ("resolver",)


# -- our own lateness -----------------------------------------------------------------------------------------------


def test_one_late_wake_is_no_habit() -> None:
    one = DoubtWatch()
    assert not one.late(LIMITS, 100.0, 0.4)
    assert one.before == 100.0


def test_late_for_a_minute_on_end_is_peoples_business() -> None:
    one = DoubtWatch()
    said = [one.late(LIMITS, 100.0 + 10.0 * n, 5.0) for n in range(8)]
    assert said == [False] * 6 + [True] * 2


def test_two_late_wakes_far_apart_do_not_belong_together() -> None:
    one = DoubtWatch()
    for n in range(8):
        assert not one.late(LIMITS, 100.0 + 16.0 * n, 0.5)


def test_a_new_run_doubts_nothing() -> None:
    one = DoubtWatch()
    one.late(LIMITS, 100.0, 0.5)
    one.reset()
    assert (one.before, one.since, one.last) == (-inf, inf, -inf)


def test_it_says_since_when_a_service_is_suspect() -> None:
    watch = StormWatch()
    watch.reset(3)
    watch.suspect("a", 12.0, ())

    assert watch.since("a") == 12.0
    assert watch.since("b") == inf


def test_what_is_pardoned_raises_nothing_and_what_begins_to_fail_then_may() -> None:
    one = storm(4)
    suspects(one, "a", "b", "c")
    one.pardon()
    assert not one.rising(LIMITS, 1.0)
    suspects(one, "d", at=2.0)
    assert not one.rising(LIMITS, 2.0)
    one.resize(2)
    suspects(one, "e", "f", at=3.0)
    assert one.rising(LIMITS, 3.0)
    assert list(one) == ["a", "b", "c", "d", "e", "f"]


def test_who_is_watched_now_counts_and_who_is_not_any_more_does_not() -> None:
    one = storm(6)
    suspects(one, "a", "b", "c")
    assert one.rising(LIMITS, 0.0)
    one.resize(1)
    assert not one.rising(LIMITS, 0.0)
    one.resize(-1)
    assert one.rising(LIMITS, 0.0)


def test_who_is_pardoned_counts_as_failing_and_raises_nothing() -> None:
    one = storm(4)
    suspects(one, "a", "b")
    one.suspect("c", 0.0, (), pardoned=True)
    assert [one.pardoned(name) for name in "abc"] == [False, False, True]
    assert not one.rising(LIMITS, 0.0)
    assert one.evidence() == "3 of 4 independent services are failing"
    one.cleared("c", ())
    assert one.evidence() == "2 of 4 independent services are failing"
