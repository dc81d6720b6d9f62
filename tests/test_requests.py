"""The table of requests, row by row: what is accepted, and that everything else is refused in words."""

from __future__ import annotations

from contextlib import suppress
from math import inf, nan
from typing import Any, ClassVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfheal import views
from selfheal.core.messages import Requested
from selfheal.errors import RequestRefused
from selfheal.requests import OVERRIDES, SCOPES, TABLE, Kind, Parameter, Request, Scope, checked

ROWS = list(TABLE.values())
PARAMETERS = [(row, parameter) for row in ROWS for parameter in row.parameters]

GOOD: dict[Kind, list[Any]] = {
    Kind.TEXT: ["api", "x" * 1000, "ü"],
    Kind.NUMBER: [0, 1, 2**53 - 1],
    Kind.SECONDS: [1, 0.5, 366 * 86400],
    Kind.BOOLEAN: [True, False],
    Kind.WORDS: [[], ["api"], ("api", "web")],
}
BAD: dict[Kind, list[Any]] = {
    Kind.TEXT: ["", "x" * 1001, "\ud800", 7, 1.5, True, b"api", ["api"], {"a": 1}],
    Kind.NUMBER: [-1, 2**53, 1.0, nan, True, "7", [7], {}],
    Kind.SECONDS: [0, -1, 366 * 86400 + 1, nan, inf, True, "30s", [30]],
    Kind.BOOLEAN: [0, 1, "true", "", [True]],
    Kind.WORDS: ["api", 7, [7], [""], ["\ud800"], [["api"]], {"api": 1}, [None]],
}


def fitting(parameter: Parameter) -> list[Any]:
    """Return values that a parameter takes."""
    if not parameter.choices:
        return GOOD[parameter.kind]
    words = list(parameter.choices)
    return [words, words[:1], []] if parameter.kind is Kind.WORDS else words


def needed(row: Request) -> dict[str, Any]:
    """Return the least that a request needs."""
    return {parameter.name: fitting(parameter)[0] for parameter in row.parameters if parameter.required}


def refusal(name: object, parameters: dict[str, Any]) -> RequestRefused:
    """Return how a request is refused."""
    with pytest.raises(RequestRefused) as refused:
        checked(name, parameters)
    return refused.value


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_every_request_of_the_design() -> None:
    queries = (
        "status services service explain incidents incident history results graph alerts approvals suppressions audit "
        "statistics metrics health records heartbeat"
    )
    acts = "initialize recover enable disable pause resume maintenance silence lift approve refuse acknowledge release"
    assert " ".join(row.name for row in ROWS if not row.act) == queries
    assert " ".join(row.name for row in ROWS if row.act) == acts


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_it_does_and_what_it_answers(row: Request) -> None:
    assert TABLE[row.name] is row
    assert row.about.endswith(".")
    assert row.answer
    assert all(parameter.about for parameter in row.parameters)
    assert len({parameter.name for parameter in row.parameters}) == len(row.parameters)


def test_only_reading_needs_no_more_than_the_right_to_read() -> None:
    assert {row.name for row in ROWS if row.scope is Scope.READ} == {
        row.name for row in ROWS if not row.act and row.name != "heartbeat"
    }
    assert [row.name for row in ROWS if row.scope is Scope.ADMIN] == ["release"]
    assert frozenset({"read", "operate", "admin"}) == SCOPES


def test_every_parameter_of_an_act_reaches_the_engine() -> None:
    fields = {field.name for field in attrs.fields(Requested)}
    assert {parameter.name for row in ROWS if row.act for parameter in row.parameters} <= fields


def test_every_query_has_somebody_who_answers_it() -> None:
    queries = {row.name for row in ROWS if not row.act} - {"heartbeat"}
    assert queries == views.LIVE | set(views._STORED)
    assert set(views._LIVE) == views.LIVE


def test_the_guards_that_may_be_overridden_are_guards_that_say_so() -> None:
    from selfheal.core.guards import GUARDS, Pass

    assert set(OVERRIDES) == {guard.name for guard in GUARDS if guard.passed is Pass.OVERRIDE}


# -- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_least_is_accepted_and_returned(row: Request) -> None:
    found, clean = checked(row.name, needed(row))
    assert found is row
    assert clean == needed(row)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_parameter_that_is_null_was_not_given(row: Request) -> None:
    absent = {parameter.name: None for parameter in row.parameters if not parameter.required}
    assert checked(row.name, {**absent, **needed(row)})[1] == needed(row)


@pytest.mark.parametrize(("row", "parameter"), PARAMETERS, ids=lambda one: one.name)
def test_every_fitting_value_is_accepted(row: Request, parameter: Parameter) -> None:
    for value in fitting(parameter):
        clean = checked(row.name, {**needed(row), parameter.name: value})[1]
        assert clean[parameter.name] == (list(value) if parameter.kind is Kind.WORDS else value)


class Counting(str):
    """A text that says how often it was written out whole."""

    __slots__ = ()
    written: ClassVar[int] = 0

    def __repr__(self) -> str:
        Counting.written += 1
        return super().__repr__()


HUGE: list[Any] = [10**5000, -(10**5000), "x" * 10_000_000, b"x" * 10_000_000, [10**5000] * 3, [["x" * 1000] * 1000]]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "parameter"), PARAMETERS, ids=lambda one: one.name)
def test_every_value_of_another_kind_is_refused_by_the_name_of_its_parameter(
    row: Request, parameter: Parameter
) -> None:
    for value in BAD[parameter.kind]:
        refused = refusal(row.name, {**needed(row), parameter.name: value})
        assert refused.code == "bad_parameter"
        assert str(refused).startswith(f"{row.name}: {parameter.name} ")
        assert len(str(refused)) < 250, "what was wrong is shown, not repeated at length"


@pytest.mark.parametrize("value", HUGE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("kind", Kind)
def test_a_huge_value_is_refused_in_few_words(kind: Kind, value: Any) -> None:
    row, parameter = next(one for one in PARAMETERS if one[1].kind is kind)
    refused = refusal(row.name, {**needed(row), parameter.name: value})
    assert refused.code == "bad_parameter"
    assert len(str(refused)) < 300


def test_of_a_huge_value_only_the_beginning_is_looked_at() -> None:
    Counting.written = 0
    assert "10000000" in str(refusal("history", {"limit": Counting("x" * 10_000_000)}))
    refusal(Counting("y" * 10_000_000), {})
    refusal("status", {Counting("z" * 10_000_000): 1})
    assert Counting.written == 0


def test_a_number_with_thousands_of_digits_as_a_name_is_refused_like_any_other() -> None:
    assert refusal("status", {10**5000: 1}).code == "bad_parameter"  # type: ignore[dict-item]
    assert refusal(10**5000, {}).code == "unknown_request"


@pytest.mark.parametrize(("row", "parameter"), [one for one in PARAMETERS if one[1].choices], ids=lambda one: one.name)
def test_a_word_that_is_no_choice_is_refused_with_the_choices(row: Request, parameter: Parameter) -> None:
    value = ["journal"] if parameter.kind is Kind.WORDS else "journal"
    refused = refusal(row.name, {**needed(row), parameter.name: value})
    assert refused.code == "bad_parameter"
    assert all(choice in str(refused) for choice in parameter.choices)


@pytest.mark.parametrize(("row", "parameter"), [one for one in PARAMETERS if one[1].required], ids=lambda one: one.name)
def test_what_is_needed_and_missing_is_asked_for(row: Request, parameter: Parameter) -> None:
    for given_ in ({}, {parameter.name: None}):
        refused = refusal(row.name, {**{k: v for k, v in needed(row).items() if k != parameter.name}, **given_})
        assert refused.code == "bad_parameter"
        assert f"{row.name} needs {parameter.name}: {parameter.about}" in str(refused)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_parameter_that_it_does_not_have_is_refused_with_those_it_has(row: Request) -> None:
    refused = refusal(row.name, {**needed(row), "force": True})
    assert refused.code == "bad_parameter"
    assert "'force'" in str(refused)
    assert all(parameter.name in str(refused) for parameter in row.parameters)


@pytest.mark.parametrize("name", ["", "Status", "__class__", "ask", "status ", None, 7, ["status"], {}])
def test_what_is_no_row_is_refused_with_the_rows(name: object) -> None:
    refused = refusal(name, {})
    assert refused.code == "unknown_request"
    assert "status" in str(refused)
    assert "release" in str(refused)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted({parameter.name for _, parameter in PARAMETERS})) | st.text(max_size=8)


@settings(deadline=None)
@given(name=st.sampled_from(sorted(TABLE)) | ANYTHING, parameters=st.dictionaries(NAMES, ANYTHING, max_size=4))
def test_whatever_comes_in_is_refused_or_of_the_right_kind(name: object, parameters: dict[str, Any]) -> None:
    with suppress(RequestRefused):
        row, clean = checked(name, parameters)
        right_kinds(row, clean)


def right_kinds(row: Request, clean: dict[str, Any]) -> None:
    """Check that what was accepted is what the row says."""
    known = {parameter.name: parameter for parameter in row.parameters}
    assert set(clean) <= set(known)
    types: dict[Kind, Any] = {
        Kind.TEXT: str,
        Kind.NUMBER: int,
        Kind.SECONDS: (int, float),
        Kind.BOOLEAN: bool,
        Kind.WORDS: list,
    }
    assert all(isinstance(value, types[known[key].kind]) for key, value in clean.items())
