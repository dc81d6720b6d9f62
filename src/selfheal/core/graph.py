"""Who needs whom: what is wrong with a set of dependencies, their order, and how much hangs on each service.

Owns every question about edges that needs no state. A *hard* edge is a wait (law 6); a *soft* one is only mentioned.
Every member of an `any_of` counts as a hard edge here: a service that can stand in for a parent only while its own
dependent runs is no stand-in, so a cycle through one alternative is refused like any other. So the hard edges of an
accepted fleet have no cycle, and whoever walks them upwards ends. Soft edges may turn in circles.

Everything is a function of the services in the order they were given; each costs O(services + edges).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Final, Protocol, TypeAlias

import attrs

from selfheal.core.model import Dependency, DependencyKind

_SPELLED: Final = 200_000
"""Names compared, in all, in search of the one that was meant; a fleet of typing mistakes is not worth minutes."""

_WALKED: Final = 1_000_000
"""Services visited, in all, for exact weights; beyond it weights are upper bounds (see `weights`)."""


class Node(Protocol):
    """Whatever has a name and dependencies: a `Policy`, or a `Service`."""

    @property
    def name(self) -> str: ...

    @property
    def depends_on(self) -> tuple[Dependency, ...]: ...


@attrs.frozen(kw_only=True)
class GraphProblem:
    """One thing wrong with the dependencies: where (`services.api.depends_on`), what, and what to do."""

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class GraphRefused(ValueError):
    """Dependencies that cannot be used; every problem is in `problems`."""

    def __init__(self, problems: tuple[GraphProblem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


Edges: TypeAlias = "dict[str, dict[str, Dependency]]"
"""Child -> parent -> the dependency that names the parent first."""


class Graph:
    """The dependencies of a fleet that has no `problems`. Raises `GraphRefused` for one that has.

    Names come out in the order services were given, except where `order` says otherwise.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        nodes = tuple(nodes)
        if found := problems(nodes):
            raise GraphRefused(found)
        hard, soft = _edges(nodes, DependencyKind.HARD), _edges(nodes, DependencyKind.SOFT)
        self._needs = {node.name: node.depends_on for node in nodes}
        self._parents = {child: tuple(parents) for child, parents in hard.items()}
        self._children = _turned(hard)
        self._soft_parents = {child: tuple(parents) for child, parents in soft.items()}
        self._soft_children = _turned(soft)
        self._weights = weights(nodes)
        self.order: tuple[str, ...] = tuple(_sorted(hard))
        """Every service, each after all of its hard parents: roots first."""

    def needs(self, name: str) -> tuple[Dependency, ...]:
        """Return the dependencies of a service as they were written."""
        return self._needs[name]

    def parents(self, name: str) -> tuple[str, ...]:
        """Return the hard parents of a service, alternatives of an `any_of` included."""
        return self._parents[name]

    def children(self, name: str) -> tuple[str, ...]:
        """Return the services that have `name` as a hard parent."""
        return self._children[name]

    def soft_parents(self, name: str) -> tuple[str, ...]:
        """Return the soft parents of a service."""
        return self._soft_parents[name]

    def soft_children(self, name: str) -> tuple[str, ...]:
        """Return the services that have `name` as a soft parent."""
        return self._soft_children[name]

    def weight(self, name: str) -> int:
        """Return how many services hang on `name`, however far below."""
        return self._weights[name]

    def below(self, name: str) -> tuple[str, ...]:
        """Return every service that hangs on `name`, nearest first."""
        return tuple(_below(self._children, name))


def weights(nodes: Iterable[Node]) -> dict[str, int]:
    """Return how many services hang on each one by hard edges, however far below.

    Exact wherever each dependent has one parent, and elsewhere for a million steps of counting, which some thousand
    services do not need; beyond that a shared dependent may be counted once for each way it hangs. Never an error:
    parents that are not there are left out, and a cycle is walked once.
    """
    edges = _edges(tuple(nodes), DependencyKind.HARD)
    children = _turned(edges)
    order = dict.fromkeys(_sorted(edges))
    result = dict.fromkeys(edges, 0)
    alone = dict.fromkeys(edges, False)  # nothing below it has a second parent
    budget = _WALKED
    turning = [name for name in edges if name not in order]
    for name in (*turning, *reversed(order)):
        alone[name] = all(alone[child] and len(edges[child]) == 1 for child in children[name])
        if not alone[name] and budget > 0:
            result[name] = sum(1 for _ in _below(children, name))
            budget -= 1 + result[name]
        else:
            result[name] = min(len(edges) - 1, sum(1 + result[child] for child in children[name]))
    return result


def problems(nodes: Iterable[Node]) -> tuple[GraphProblem, ...]:
    """Return everything wrong with the names and dependencies of these services; nothing when they can be used."""
    nodes = tuple(nodes)
    spelling = Spelling(node.name for node in nodes)
    seen: set[str] = set()
    found: list[GraphProblem] = []
    for node in nodes:
        if node.name in seen:
            found.append(
                GraphProblem(path=f"services.{node.name}", message="the name is taken", hint="give each its own")
            )
        seen.add(node.name)
        if node.depends_on:
            found += _faults(node, seen=spelling)
    return (*found, *_cycles(_edges(nodes, DependencyKind.HARD)))


class Spelling:
    """The names there are, and which of them somebody may have meant."""

    def __init__(self, known: Iterable[str]) -> None:
        self._known = dict.fromkeys(known)
        self._left = _SPELLED

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def hint(self, name: str, *, cutoff: float = 0.6) -> str:
        """Return `did you mean …?`, or nothing where no name is near or too many were asked for already.

        `cutoff` from 0 to 1 says how near; at 0.85 only a slip of the fingers is.
        """
        if len(name) > 100 or self._left < len(self._known):
            return ""
        self._left -= len(self._known)
        folded = {known.casefold(): known for known in reversed(self._known)}
        near = get_close_matches(name.casefold(), folded, n=1, cutoff=cutoff)
        return f'did you mean "{folded[near[0]]}"?' if near else ""


def no_service(name: str, known: Iterable[str]) -> str:
    """Return the refusal of a name that none of the `known` services has."""
    hint = Spelling(known).hint(name)
    return f"no service {name!r:.120}" + (f"; {hint}" if hint else "")


# -- faults of one service -------------------------------------------------------------------------------------------


def _faults(node: Node, *, seen: Spelling) -> Iterator[GraphProblem]:
    """Yield what is wrong with the dependencies of one service, taken by themselves."""
    singles: dict[str, DependencyKind] = {}
    groups: set[frozenset[str]] = set()
    for place, dependency in enumerate(node.depends_on):
        path = f"services.{node.name}.depends_on[{place}]"
        names = dependency.services
        if not names:
            yield GraphProblem(path=path, message="names no service", hint="name one, or leave it out")
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                yield GraphProblem(path=path, message=f'"{name}" is named twice', hint="name it once")
            if name == node.name:
                yield GraphProblem(path=path, message="a service cannot depend on itself", hint="leave it out")
            elif name not in seen:
                yield GraphProblem(path=path, message=f'there is no service "{name}"', hint=seen.hint(name))
        if len(names) == 1:
            yield from _repeated(path, names[0], singles, dependency.kind)
            singles.setdefault(names[0], dependency.kind)
        elif names and frozenset(names) in groups:
            yield GraphProblem(path=path, message="the same any_of stands here twice", hint="leave one out")
        groups.add(frozenset(names))
    for place, dependency in enumerate(node.depends_on):
        if len(dependency.services) > 1:
            path = f"services.{node.name}.depends_on[{place}]"
            for name in dict.fromkeys(dependency.services):
                if name in singles:
                    message = f'"{name}" stands in this any_of and is a dependency by itself'
                    yield GraphProblem(path=path, message=message, hint="name it in one of the two")


def _repeated(
    path: str, name: str, singles: Mapping[str, DependencyKind], kind: DependencyKind
) -> Iterator[GraphProblem]:
    if name not in singles:
        return
    if singles[name] is kind:
        yield GraphProblem(path=path, message=f'"{name}" is named twice', hint="name it once")
    else:
        yield GraphProblem(path=path, message=f'"{name}" is both hard and soft', hint="decide for one of the two")


# -- walks -----------------------------------------------------------------------------------------------------------


def _edges(nodes: tuple[Node, ...], kind: DependencyKind) -> Edges:
    """Return the edges of one kind between services that exist; an edge to oneself is left out."""
    edges: Edges = {node.name: {} for node in nodes}
    for node in nodes:
        for dependency in node.depends_on:
            if dependency.kind is kind:
                for parent in dependency.services:
                    if parent in edges and parent != node.name:
                        edges[node.name].setdefault(parent, dependency)
    return edges


def _turned(edges: Edges) -> dict[str, tuple[str, ...]]:
    """Return the children of every service."""
    children: dict[str, list[str]] = {name: [] for name in edges}
    for child, parents in edges.items():
        for parent in parents:
            children[parent].append(child)
    return {name: tuple(below) for name, below in children.items()}


def _below(children: Mapping[str, tuple[str, ...]], name: str) -> Iterator[str]:
    """Yield everything below `name`, nearest first, each once and never `name` itself."""
    seen = {name}
    todo = [name]
    for parent in todo:
        for child in children[parent]:
            if child not in seen:
                seen.add(child)
                todo.append(child)
                yield child


def _sorted(edges: Edges) -> list[str]:
    """Return services so that each stands after its parents; those on or below a cycle are missing."""
    children = _turned(edges)
    waiting = {child: len(parents) for child, parents in edges.items()}
    order = [name for name, count in waiting.items() if count == 0]
    for name in order:
        for child in children[name]:
            waiting[child] -= 1
            if waiting[child] == 0:
                order.append(child)
    return order


def _cycles(edges: Edges) -> Iterator[GraphProblem]:
    """Yield a problem for each of a largest set of cycles that share no service, found in the order given."""
    children = _turned(edges)
    parents_left = {name: len(parents) for name, parents in edges.items()}
    children_left = {name: len(below) for name, below in children.items()}
    left = dict.fromkeys(edges)

    def take(names: Iterable[str]) -> None:
        """Take services away, and with them whoever can then no longer be on a cycle."""
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in left:
                continue
            del left[name]
            for child in children[name]:
                parents_left[child] -= 1
                if parents_left[child] == 0:
                    todo.append(child)
            for parent in edges[name]:
                children_left[parent] -= 1
                if children_left[parent] == 0:
                    todo.append(parent)

    take([name for name in edges if not parents_left[name] or not children_left[name]])
    # Walk upwards from each service that is left. A walk ends in a cycle, and a service leaves the path only when it
    # has been taken away, so each is walked on to once.
    ahead = {name: list(reversed(edges[name])) for name in left}
    path: list[str] = []
    place: dict[str, int] = {}
    for start in tuple(left):
        while path or start in left:
            if not path:
                path, place = [start], {start: 0}
            elif path[-1] not in left:
                del place[path.pop()]
            elif ahead[path[-1]][-1] not in left:
                ahead[path[-1]].pop()
            elif (parent := ahead[path[-1]][-1]) not in place:
                place[parent] = len(path)
                path.append(parent)
            else:
                cycle = path[place[parent] :]
                yield _refusal(edges, children, cycle)
                take(cycle)


def _refusal(edges: Edges, children: Mapping[str, tuple[str, ...]], cycle: list[str]) -> GraphProblem:
    """Name the cycle, and the edge that is most likely not meant: that of the service most others need."""
    place = max(range(len(cycle)), key=lambda at: (len(children[cycle[at]]), -at))
    child, parent = cycle[place], cycle[(place + 1) % len(cycle)]
    shown = cycle if len(cycle) <= 12 else [*cycle[:6], "…", *cycle[-5:]]
    if len(edges[child][parent].services) > 1:
        hint = f'take "{parent}" out of the any_of of "{child}"'
    else:
        hint = f'make one soft, such as {{ service = "{parent}", kind = "soft" }} in depends_on of "{child}"'
    names = " needs ".join([*shown, cycle[0]])
    return GraphProblem(path=f"services.{child}.depends_on", message=f"a cycle: {names}", hint=hint)
