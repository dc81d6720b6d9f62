"""The graph: what it refuses and in which words, and its order and weights against brute force."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfheal.core import graph
from selfheal.core.graph import Graph, GraphRefused, Spelling, problems, weights
from selfheal.core.model import Dependency, DependencyKind, Policy

SOFT = DependencyKind.SOFT


def hard(*names: str) -> Dependency:
    return Dependency(services=names)


def soft(*names: str) -> Dependency:
    return Dependency(services=names, kind=SOFT)


def fleet(**needs: Sequence[str | Dependency]) -> tuple[Policy, ...]:
    return tuple(
        Policy(name=name, depends_on=tuple(hard(one) if isinstance(one, str) else one for one in ones))
        for name, ones in needs.items()
    )


def said(*policies: Policy) -> list[str]:
    return [str(problem) for problem in problems(policies)]


# -- what is refused -------------------------------------------------------------------------------------------------


def test_s40_an_unknown_name_is_refused_with_a_suggestion() -> None:
    assert said(*fleet(database=[], api=["databse"])) == [
        'services.api.depends_on[0]: there is no service "databse" (did you mean "database"?)'
    ]


def test_a_name_like_no_other_is_refused_without_a_suggestion() -> None:
    assert said(*fleet(database=[], api=["zzz"])) == ['services.api.depends_on[0]: there is no service "zzz"']


def test_a_suggestion_ignores_case() -> None:
    assert 'did you mean "Database"?' in said(*fleet(Database=[], api=["dataBASE"]))[0]


def test_s41_a_cycle_is_refused_by_name_with_the_edge_to_soften() -> None:
    (problem,) = problems(fleet(a=["b"], b=["a"], c=["b"], d=["b"]))

    assert problem.path == "services.b.depends_on"
    assert problem.message == "a cycle: a needs b needs a"
    assert problem.hint == 'make one soft, such as { service = "a", kind = "soft" } in depends_on of "b"'


def test_a_cycle_through_an_alternative_is_refused_and_says_to_take_it_out() -> None:
    (problem,) = problems(fleet(a=[hard("b", "c")], b=["a"], c=[]))

    assert problem.message == "a cycle: a needs b needs a"
    assert problem.hint in {
        'take "b" out of the any_of of "a"',
        'make one soft, such as { service = "a", kind = "soft" } in depends_on of "b"',
    }


def test_the_hint_speaks_of_the_any_of_where_the_edge_is_one() -> None:
    (problem,) = problems(fleet(a=[hard("b", "c")], b=["a"], c=[], x=["a"], y=["a"]))

    assert problem.path == "services.a.depends_on"
    assert problem.hint == 'take "b" out of the any_of of "a"'


def test_soft_edges_may_turn_in_circles() -> None:
    assert said(*fleet(a=[soft("b")], b=[soft("a")])) == []
    assert said(*fleet(a=["b"], b=[soft("a")])) == []


def test_every_cycle_apart_from_others_is_told_at_once() -> None:
    found = problems(fleet(a=["b"], b=["a"], c=["d"], d=["c"], e=["a"]))

    assert [problem.message for problem in found] == ["a cycle: a needs b needs a", "a cycle: c needs d needs c"]


def test_a_long_cycle_is_abbreviated() -> None:
    names = [f"s{n}" for n in range(50)]
    (problem,) = problems(fleet(**{name: [names[n - 1]] for n, name in enumerate(names)}))

    assert "…" in problem.message
    assert len(problem.message) < 200


def test_a_service_cannot_depend_on_itself_hard_or_soft() -> None:
    assert [problem.message for problem in problems(fleet(a=["a"], b=[soft("b")]))] == [
        "a service cannot depend on itself"
    ] * 2


def test_an_empty_dependency_is_refused() -> None:
    assert said(*fleet(a=[hard()])) == ["services.a.depends_on[0]: names no service (name one, or leave it out)"]


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (["b", "b"], '"b" is named twice'),
        ([hard("b", "b")], '"b" is named twice'),
        (["b", soft("b")], '"b" is both hard and soft'),
        (["b", hard("b", "c")], '"b" stands in this any_of and is a dependency by itself'),
        ([hard("b", "c"), "b"], '"b" stands in this any_of and is a dependency by itself'),
        ([hard("b", "c"), hard("c", "b")], "the same any_of stands here twice"),
    ],
)
def test_a_parent_is_named_once(needs: list[str | Dependency], message: str) -> None:
    assert [problem.message for problem in problems(fleet(a=needs, b=[], c=[]))] == [message]


def test_two_groups_may_share_a_member() -> None:
    assert said(*fleet(a=[hard("b", "c"), hard("b", "d")], b=[], c=[], d=[])) == []


def test_a_name_taken_twice_is_refused() -> None:
    assert said(Policy(name="a"), Policy(name="a")) == ["services.a: the name is taken (give each its own)"]


def test_a_graph_is_not_made_of_what_is_refused() -> None:
    with pytest.raises(GraphRefused, match="databse") as caught:
        Graph(fleet(database=[], api=["databse"]))

    assert len(caught.value.problems) == 1


def test_suggestions_end_when_too_many_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_SPELLED", 5)
    spelling = Spelling(["alpha", "beta", "gamma"])

    assert spelling.hint("alphaa") == 'did you mean "alpha"?'
    assert spelling.hint("betaa") == ""
    assert spelling.hint("x" * 101) == ""


# -- order and look-ups ----------------------------------------------------------------------------------------------


def test_look_ups_tell_parents_children_and_what_was_written() -> None:
    found = Graph(fleet(web=["api", soft("cache")], api=["db"], db=[], cache=[soft("db")], jobs=[hard("db", "cache")]))

    assert found.order == ("db", "cache", "api", "jobs", "web")
    assert found.parents("jobs") == ("db", "cache")
    assert found.children("db") == ("api", "jobs")
    assert found.soft_parents("web") == ("cache",)
    assert found.soft_children("db") == ("cache",)
    assert found.needs("jobs") == (hard("db", "cache"),)
    assert found.below("db") == ("api", "jobs", "web")
    assert found.weight("db") == 3


def test_weights_forgive_what_problems_refuse() -> None:
    assert weights(fleet(a=["b"], b=["a"], c=["a", "gone"], d=["d"])) == {"a": 2, "b": 2, "c": 0, "d": 0}


def test_beyond_the_budget_weights_are_upper_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    diamond = fleet(top=[], left=["top"], right=["top"], low=["left", "right"])
    assert weights(diamond)["top"] == 3

    monkeypatch.setattr(graph, "_WALKED", 0)

    assert weights(diamond) == {"top": 3, "left": 1, "right": 1, "low": 0}


NAMES = [f"s{n}" for n in range(9)]


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Policy, ...]:
    """Any services with any edges between them: cycles, self-edges and strangers too."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    known = st.sampled_from(names)
    dependency = st.builds(
        Dependency,
        services=st.lists(known | st.just("stranger") if draw(st.booleans()) else known, max_size=3).map(tuple),
        kind=st.sampled_from(DependencyKind),
    )
    return tuple(Policy(name=name, depends_on=tuple(draw(st.lists(dependency, max_size=2)))) for name in names)


def hard_edges(policies: Sequence[Policy]) -> dict[str, set[str]]:
    known = {policy.name for policy in policies}
    return {
        policy.name: {
            parent
            for dependency in policy.depends_on
            if dependency.kind is DependencyKind.HARD
            for parent in dependency.services
            if parent in known and parent != policy.name
        }
        for policy in policies
    }


def brute_below(edges: dict[str, set[str]], name: str) -> set[str]:
    below: set[str] = set()
    while True:
        more = {child for child, parents in edges.items() if parents & (below | {name})} - below - {name}
        if not more:
            return below
        below |= more


@given(fleets())
@settings(max_examples=300, deadline=None)
def test_a_cycle_is_told_exactly_when_graphlib_finds_one(policies: tuple[Policy, ...]) -> None:
    edges = hard_edges(policies)
    cycles = [problem for problem in problems(policies) if "a cycle:" in problem.message]

    try:
        tuple(TopologicalSorter(edges).static_order())
        assert not cycles
    except CycleError:
        assert cycles
    for problem in cycles:
        walk = problem.message.removeprefix("a cycle: ").split(" needs ")
        assert walk[0] == walk[-1]
        assert all(parent in edges[child] for child, parent in pairwise(walk))
    # Softening what was told, again and again, ends in a fleet without cycles.
    for _ in range(40):
        cycles = [problem for problem in problems(policies) if "a cycle:" in problem.message]
        if not cycles:
            break
        for problem in cycles:
            child = problem.path.split(".")[1]
            walk = problem.message.removeprefix("a cycle: ").split(" needs ")
            policies = tuple(softened(p, walk[walk.index(child) + 1]) if p.name == child else p for p in policies)
    assert not cycles


def softened(policy: Policy, parent: str) -> Policy:
    return attrs.evolve(
        policy,
        depends_on=tuple(
            attrs.evolve(d, services=tuple(s for s in d.services if s != parent)) for d in policy.depends_on
        ),
    )


@given(fleets())
@settings(max_examples=300, deadline=None)
def test_weights_are_the_number_of_all_dependents(policies: tuple[Policy, ...]) -> None:
    edges = hard_edges(policies)

    assert weights(policies) == {name: len(brute_below(edges, name)) for name in edges}


@given(fleets())
@settings(max_examples=300, deadline=None)
def test_an_accepted_fleet_is_ordered_roots_first_and_twice_alike(policies: tuple[Policy, ...]) -> None:
    if problems(policies):
        with pytest.raises(GraphRefused):
            Graph(policies)
        return
    found = Graph(policies)

    assert sorted(found.order) == sorted(policy.name for policy in policies)
    for name in found.order:
        assert all(found.order.index(parent) < found.order.index(name) for parent in found.parents(name))
        assert set(found.below(name)) == brute_below(hard_edges(policies), name)
    assert found.order == Graph(policies).order


@pytest.mark.parametrize("shape", ["chain", "star", "ring", "pairs", "layers"])
def test_a_fleet_of_twenty_thousand_is_read_in_time_that_grows_with_it(shape: str) -> None:
    count = 20_000
    shapes: dict[str, Callable[[int], list[int]]] = {
        "chain": lambda n: [n - 1] if n else [],
        "star": lambda n: [0] if n else [],
        "ring": lambda n: [(n - 1) % count],
        "pairs": lambda n: [n ^ 1],
        "layers": lambda n: [n // 10 * 10 - 1 - k for k in range(5)] if n >= 10 else [],
    }
    needs = shapes[shape]
    policies = [Policy(name=f"s{n}", depends_on=tuple(hard(f"s{k}") for k in needs(n))) for n in range(count)]
    began = time.perf_counter()

    found = problems(policies)
    weighed = weights(policies)

    assert time.perf_counter() - began < 10.0  # 0.1 to 0.5 s on an idle machine; a quadratic walk takes minutes
    assert bool(found) is (shape in {"ring", "pairs"})
    assert shape != "chain" or weighed["s0"] == count - 1


def test_a_name_that_nobody_has_is_refused_with_the_one_that_was_meant() -> None:
    assert graph.no_service("dadabase", ["api", "database"]) == "no service 'dadabase'; did you mean \"database\"?"
    assert graph.no_service("zzz", ["api", "database"]) == "no service 'zzz'"
    assert len(graph.no_service("x" * 5000, ["api"])) < 140
