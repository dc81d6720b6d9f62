"""Stretches of time against the plainest model there is: sets of whole seconds."""

from __future__ import annotations

from itertools import pairwise
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from selfheal.analytics.spans import ALWAYS, Spans

STRETCHES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def seconds_of(stretches: list[tuple[int, int]]) -> set[int]:
    return {second for since, until in stretches for second in range(since, until)}


def made(seconds: set[int]) -> list[tuple[float, float]]:
    return list(Spans((second, second + 1) for second in seconds))


@given(STRETCHES, STRETCHES, st.integers(0, 30), st.integers(0, 30))
def test_spans_are_sets_of_instants(one: list[tuple[int, int]], other: list[tuple[int, int]], a: int, b: int) -> None:
    first, second = seconds_of(one), seconds_of(other)
    assert list(Spans(one)) == made(first)
    assert list(Spans(one) | Spans(other)) == made(first | second)
    assert list(Spans(one) - Spans(other)) == made(first - second)
    assert list(Spans(one) & Spans(other)) == made(first & second)
    assert list(Spans(one).within(a, b)) == made(first & set(range(a, b)))
    assert Spans(one).seconds == len(first)
    assert Spans(one).seconds_within(a, b) == len(first & set(range(a, b)))


@given(STRETCHES, st.lists(st.integers(0, 30)))
def test_the_parts_between_edges_are_what_lies_within_each(one: list[tuple[int, int]], edges: list[int]) -> None:
    edges.sort()
    parts = [Spans(one).within(since, until).seconds for since, until in pairwise(edges)]
    assert Spans(one).parts(edges) == parts


@given(STRETCHES)
def test_stretches_are_disjoint_apart_and_none_is_empty(one: list[tuple[int, int]]) -> None:
    ends = [end for stretch in Spans(one) for end in stretch]
    assert ends == sorted(set(ends))


def test_time_without_an_end() -> None:
    since = Spans([(5.0, inf)])
    assert list(ALWAYS - since) == [(-inf, 5.0)]
    assert list(since & Spans([(0.0, 7.0)])) == [(5.0, 7.0)]
    assert since.seconds == inf
