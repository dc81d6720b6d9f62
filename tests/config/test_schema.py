"""Types as schema: what each annotation takes from a file, and in which words it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfheal.config.schema import UNREAD, Notes, construct, duration, shape
from selfheal.core.model import Backoff, Budget
from selfheal.secret import Secret


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Rank(IntEnum):
    LOW = 0
    HIGH = 1


Port = NewType("Port", int)


@attrs.frozen(kw_only=True)
class Inner:
    size: int = 1
    name: str = "x"


def _listed(value: object) -> object:
    return value if isinstance(value, tuple) else (value,)


def _complex(value: str) -> complex:
    return complex(value)


@attrs.frozen(kw_only=True)
class Everything:
    text: str = ""
    whole: int = 0
    number: float = 0.0
    share: float = attrs.field(default=0.0, metadata={"unit": "share"})
    truth: bool = False
    maybe: float | None = 1.0
    maybe_text: str | None = None
    colour: Colour = Colour.RED
    rank: Rank = Rank.LOW
    word: Literal["on", "auto", 3] = "on"
    path: Path | None = None
    secret: Secret | None = None
    either: str | Secret = ""
    words: tuple[str, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    numbers: frozenset[int] = frozenset()
    list_: list[int] = attrs.field(factory=list, alias="list")
    sequence: Sequence[str] = ()
    table: Mapping[str, str | Secret] = attrs.field(factory=dict)
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    port: Port = Port(1)
    noted: Annotated[int, "any"] = 0
    any_: Any = attrs.field(default=None, alias="anything")
    status: tuple[int | str, ...] = attrs.field(default=(), converter=_listed)
    letters: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    strange: complex = 0j
    converted: complex = attrs.field(default=0j, converter=_complex)
    moment: datetime | None = None
    day: date | None = None
    mixed: int | bool | tuple[str, ...] | Mapping[str, str] | None = None
    _derived: int = attrs.field(default=0, init=False)


def made(**table: Any) -> Any:
    notes = Notes(Path("/etc"))
    found = construct(Everything, table, "x", notes)
    assert not notes.problems, notes.problems
    return found


def refused(cls: type[Any] = Everything, **table: Any) -> list[str]:
    notes = Notes(Path("/etc"))
    assert construct(cls, table, "x", notes) is UNREAD
    return [str(problem) for problem in notes.problems]


@pytest.mark.parametrize(
    ("key", "given", "found"),
    [
        ("number", 3, 3.0),
        ("number", "1m30s", 90.0),
        ("share", 0.5, 0.5),
        ("maybe", "off", None),
        ("maybe", None, None),
        ("maybe", "2s", 2.0),
        ("maybe_text", "off", "off"),
        ("colour", "green", Colour.GREEN),
        ("rank", "high", Rank.HIGH),
        ("word", 3, 3),
        ("path", "a/b", Path("/etc/a/b")),
        ("path", "/a", Path("/a")),
        ("words", ["a"], ("a",)),
        ("pair", ["b", 2], ("b", 2)),
        ("numbers", [1, 1, 2], frozenset({1, 2})),
        ("sequence", ["a"], ("a",)),
        ("inner", {"size": 2}, Inner(size=2)),
        ("inners", [{"size": 2}, {}], (Inner(size=2), Inner())),
        ("port", 80, 80),
        ("noted", 80, 80),
        ("status", 200, (200,)),
        ("status", [200, "3xx"], (200, "3xx")),
        ("either", "plain", "plain"),
        ("converted", "1j", 1j),
        ("moment", datetime(2025, 1, 31, 4), datetime(2025, 1, 31, 4)),
        ("moment", "2025-01-31T04:00:00", datetime(2025, 1, 31, 4)),
        ("day", "2025-01-31", date(2025, 1, 31)),
        ("mixed", True, True),
        ("mixed", 3, 3),
        ("mixed", ["a"], ("a",)),
        ("table", {"a": "b"}, {"a": "b"}),
    ],
)
def test_a_type_takes_what_it_means(key: str, given: Any, found: Any) -> None:
    value = getattr(made(**{key: given}), key)

    assert value == found
    assert type(value) is type(found)


def test_aliases_are_the_keys_and_derived_fields_have_none() -> None:
    assert made(list=[1], anything={"a": [1]}).any_ == {"a": [1]}
    assert "list_" not in shape(Everything)
    assert "derived" not in shape(Everything)


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("truth", "false", "'false' is not true or false (write true or false, without quotation marks)"),
        ("truth", 1, "1 is not true or false"),
        ("whole", True, "true is not a whole number"),
        ("whole", 3.0, "3.0 is not a whole number"),
        ("whole", "3", "'3' is not a whole number"),
        ("whole", None, "null is not a whole number (leave the key out)"),
        ("number", True, "true is not a duration"),
        ("number", "30", "'30' is no duration"),
        ("number", "-5s", "'-5s' is no duration"),
        ("share", "5s", "'5s' is not a number"),
        ("text", 3, "3 is not text"),
        ("colour", "gren", "'gren' is none of red, green (did you mean \"green\"?)"),
        ("colour", "RED", "'RED' is none of red, green (did you mean \"red\"?)"),
        ("rank", 1, "1 is none of low, high"),
        ("word", "of", "'of' is none of on, auto, 3"),
        ("word", True, "true is none of on, auto, 3"),
        ("words", "a b", "'a b' is not a list (write ['a b'])"),
        ("letters", "PATH", "'PATH' is not a list (write ['PATH'])"),
        ("words", ["a", 1], "x.words[1]: 1 is not text"),
        ("pair", ["a"], "is not a list of 2"),
        ("inner", {"sise": 2}, 'x.inner.sise: unknown key (did you mean "size"?)'),
        ("inner", 3, "3 is not a table (its keys are: size, name)"),
        ("table", {"a": 1}, "x.table.a: a int is none of: text, secret"),
        ("table", 3, "3 is not a table"),
        ("maybe", "soon", "'soon' is no duration"),
        ("strange", "1j", "this option has a type that no file can hold"),
        ("path", 3, "3 is not a path"),
        ("converted", "x", "complex() arg is a malformed string"),
        ("day", datetime(2025, 1, 31), "is not a date"),
        ("moment", "tomorrow", "'tomorrow' is not a datetime (write it like 2025-01-31T04:00:00Z)"),
        ("mixed", "on", "'on' is none of: whole number, true or false, list, table"),
    ],
)
def test_a_type_takes_nothing_else(key: str, given: Any, words: str) -> None:
    (said,) = refused(**{key: given})

    assert words in said
    assert said.startswith(f"x.{key}")


def test_everything_wrong_is_told_at_once_types_and_limits_alike() -> None:
    assert refused(Backoff, initial="2x", multiplier=0.5, jitter=2, kap=3) == [
        'x.kap: unknown key (did you mean "cap"?)',
        'x.initial: \'2x\' is no duration; write a number of seconds, or "1m30s", "500ms", "2h"',
        "x.multiplier: 0.5 is out of range; give a number from 1 to 100",
        "x.jitter: 2.0 is out of range; give a number from 0 to 1",
    ]
    assert refused(Budget, limit=0, per=-1) == [
        "x.limit: 0 is out of range; give a number from 1 to 1e+06",
        "x.per: -1.0 is out of range; give a number from 0.001 to a year",
    ]


def test_what_only_the_whole_can_judge_is_told_at_its_path() -> None:
    @attrs.frozen(kw_only=True)
    class Range:
        low: int = attrs.field(default=0)
        high: int = attrs.field(default=1)

        @high.validator
        def _above(self, attribute: object, value: int) -> None:
            if value < self.low:
                raise ValueError("high: below low")

        def __attrs_post_init__(self) -> None:
            if self.high > 100:
                raise RuntimeError("too\nwide")

    assert refused(Range, low=5, high=1) == ["x.high: below low"]
    assert refused(Range, high=1000) == ["x: too wide"]
    assert refused(Range, low="a", high=1) == ["x.low: 'a' is not a whole number"]


@pytest.mark.skipif(not hasattr(attrs, "Converter"), reason="attrs before 24.1 has no converters that take more")
def test_a_converter_that_wants_the_instance_is_left_to_the_class() -> None:
    def given(value: object, instance: object) -> object:
        if value == "bad":
            raise ValueError("a: bad value")
        return value

    converter: Any = attrs.Converter(given, takes_self=True)
    cls = attrs.make_class("Whole", {"a": attrs.field(default="x", converter=converter, type=str)}, kw_only=True)

    assert refused(cls, a="bad") == ["x: a: bad value"]


def test_a_missing_key_is_named() -> None:
    @attrs.frozen(kw_only=True)
    class Needs:
        url: str

    assert refused(Needs) == ['x: "url" is missing']


def test_annotations_that_only_type_checkers_see_refuse_and_do_not_raise() -> None:
    @attrs.frozen(kw_only=True)
    class Hidden:
        a: NoSuchName = 1  # type: ignore[name-defined]  # noqa: F821

    (said,) = refused(Hidden, a=1)

    assert "a type that no file can hold" in said


# -- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "it does not say where the secret lies"),
        ({"env": "A", "file": "b"}, "it does not say where the secret lies"),
        ({"vault": "A"}, "it does not say where the secret lies"),
        ({"env": ""}, "x.secret.env: is not the name of one"),
        ({"env": ["A"]}, "x.secret.env: is not the name of one"),
        ({"credential": "../shadow"}, "x.secret.credential: is not the name of one"),
        ("", "the secret is empty"),
        (5, "a int is no secret"),
    ],
)
def test_a_secret_says_one_place(given: Any, words: str) -> None:
    (said,) = refused(secret=given)

    assert words in said
    assert "{ env = … }" in said


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ("hunter2", True),
        ("redis://127.0.0.1:6379/0", False),
        ("redis://:hunter2@127.0.0.1", True),
        ("https://hooks.example/T0/B0/hunter2", True),
        ("https://example.org", False),
        ("https://example.org/", False),
        ("http://[", False),
    ],
)
def test_a_literal_secret_is_taken_with_a_warning_unless_it_is_a_plain_address(given: str, warned: bool) -> None:
    notes = Notes()

    found = construct(Everything, {"secret": given}, "x", notes)

    assert found.secret.reveal() == given
    assert [warning.path for warning in notes.warnings] == (["x.secret"] if warned else [])
    assert "hunter2" not in f"{found!r}{notes.warnings}"


def test_text_that_may_be_a_secret_is_warned_of_only_with_a_password() -> None:
    notes = Notes()

    construct(Everything, {"either": "http://a/b"}, "x", notes)
    assert not notes.warnings
    construct(Everything, {"either": "http://user:hunter2@a/b"}, "x", notes)

    assert [warning.path for warning in notes.warnings] == ["x.either"]


def test_a_secret_is_not_quoted_when_the_class_refuses_it() -> None:
    @attrs.frozen(kw_only=True)
    class Leaky:
        token: Secret = attrs.field()
        url: str = attrs.field(default="")

        @token.validator
        def _look(self, attribute: object, value: Secret) -> None:
            raise ValueError(f"token: {value.reveal()} is too short")

        @url.validator
        def _far(self, attribute: object, value: str) -> None:
            raise ValueError(f"url: {value} is far")

    assert refused(Leaky, token="hunter2", url="http://me:swordfish@x") == [
        "x.token: *** is too short",
        "x.url: http://me:***@x is far",
    ]
    assert "hunter2" not in "".join(refused(whole="http://me:hunter2@x"))


# -- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        ("2d 12h", 216000.0),
        ("1w", 604800.0),
        ("10us", 0.00001),
        ("1 h", 3600.0),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "30",
        "-1s",
        "+1s",
        "1s1m",
        "1s1s",
        "1x",
        "s",
        "1.s",
        ".5s",
        "1e3s",
        "١s",
        "1s ",
        " 1s",
        "1m  30s",
        "infs",
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        duration(text)


@given(st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_parts(minutes: int, seconds: int, milliseconds: int) -> None:
    assert duration(f"{minutes}m{seconds}s{milliseconds}ms") == pytest.approx(
        minutes * 60 + seconds + milliseconds / 1000
    )
