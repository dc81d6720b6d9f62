"""What a finished check means, and the last look at what a plugin says."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from decimal import Decimal
from math import inf, nan
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import attrs
import pytest
from tests.broken import fails_when

from selfheal.core.model import PASSING, Cause, CheckResult, Verdict
from selfheal.plugins import CheckContext
from selfheal.secret import Secret
from selfheal.shell.blocking import StillStuck
from selfheal.shell.contexts import Contexts
from selfheal.shell.plugin_thread import Ending, Outcome
from selfheal.shell.results import Scrubber, checked, of_exception, of_outcome, of_value, secrets_in


@attrs.frozen(kw_only=True)
class Says:
    """A check that returns or raises what it is told, and has secrets."""

    kind: ClassVar[str] = "says"
    what: Any
    password: Secret | None = None
    headers: dict[str, Any] = attrs.field(factory=dict)

    async def check(self, context: CheckContext) -> CheckResult:
        if isinstance(self.what, BaseException):
            raise self.what
        result: CheckResult = self.what
        return result


def run(check: Says) -> CheckResult:
    return asyncio.run(checked(check, Contexts().for_check("s", check, 1.0), Scrubber(check)))


@fails_when("what is no result is a success")
@pytest.mark.parametrize("value", ["down", "", None, True, False, 0, {"verdict": "passing"}, Verdict.PASSING])
def test_s05_a_value_that_is_no_result_is_neither_success_nor_failure(value: object) -> None:
    result = run(Says(what=value))
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert type(value).__name__ in result.summary


@fails_when("exceptions lose their words")
def test_s10_the_text_of_an_exception_is_kept() -> None:
    result = run(Says(what=RuntimeError("x")))
    assert (result.verdict, result.cause, result.summary) == (Verdict.INCONCLUSIVE, Cause.ERROR, "RuntimeError: x")


@fails_when("a check that could not run has failed")
def test_s65_a_missing_package_is_inconclusive_and_says_what_to_do() -> None:
    result = run(Says(what=ModuleNotFoundError("No module named 'psycopg'")))
    assert (result.verdict, result.cause) == (Verdict.INCONCLUSIVE, Cause.CONFIG)
    assert "psycopg" in result.summary
    assert "install" in result.summary


@pytest.mark.parametrize(
    ("problem", "verdict", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), Verdict.FAILING, Cause.UNREACHABLE),
        (TimeoutError(), Verdict.FAILING, Cause.TIMEOUT),
        (socket.gaierror(-2, "unknown"), Verdict.FAILING, Cause.DNS),
        (PermissionError(errno.EACCES, "no"), Verdict.FAILING, Cause.CONFIG),
        (OSError(errno.EMFILE, "too many"), Verdict.INCONCLUSIVE, Cause.ERROR),
        (ExceptionGroup("tasks", [ConnectionResetError(errno.ECONNRESET, "x")]), Verdict.FAILING, Cause.UNREACHABLE),
        (StillStuck("the previous call has not come back"), Verdict.FAILING, Cause.TIMEOUT),
        (SystemExit(1), Verdict.INCONCLUSIVE, Cause.ERROR),
        (TypeError("bug"), Verdict.INCONCLUSIVE, Cause.ERROR),
    ],
)
def test_what_an_exception_means(problem: BaseException, verdict: Verdict, cause: Cause) -> None:
    result = run(Says(what=problem))
    assert (result.verdict, result.cause) == (verdict, cause)


@pytest.mark.parametrize(
    ("ending", "verdict", "cause"),
    [
        (Ending.TIMED_OUT, Verdict.FAILING, Cause.TIMEOUT),
        (Ending.CANCELLED, Verdict.INCONCLUSIVE, None),
        (Ending.ABANDONED, Verdict.INCONCLUSIVE, Cause.ERROR),
    ],
)
def test_what_an_ending_means(ending: Ending, verdict: Verdict, cause: Cause | None) -> None:
    result = of_outcome(Outcome.at_once(ending), timeout=5.0)
    assert (result.verdict, result.cause) == (verdict, cause)
    assert result.summary


def test_an_ordinary_pass_stays_one_object() -> None:
    assert run(Says(what=PASSING, password=Secret("hunter22"))) is PASSING


def test_a_failure_always_has_a_cause_and_plain_words_become_ours() -> None:
    assert of_value(CheckResult(Verdict.FAILING)).cause is Cause.ERROR
    assert of_value(CheckResult("failing", cause="full")).cause is Cause.FULL  # type: ignore[arg-type]
    assert of_value(CheckResult("down")).verdict is Verdict.INCONCLUSIVE  # type: ignore[arg-type]


SECRET = "s3cr3t/p@ss word"


@pytest.mark.parametrize(
    "text",
    [
        f"auth failed for {SECRET}",
        f"bad url redis://user:{quote(SECRET, safe='')}@host",
        f"repr {SECRET!r}",
        f"{'x' * 490} {SECRET} and more",
        "s3cr3t/p@ss\x00 word",
    ],
)
def test_no_secret_of_the_object_is_in_a_result(text: str) -> None:
    said = CheckResult(
        Verdict.FAILING, cause=Cause.AUTH, summary=text, details={"said": text, text: 1}, instance=f"id {text}"
    )
    for check in (
        Says(what=said, password=Secret(SECRET)),
        Says(what=said, headers={"a": [{"b": (Says(what=None, password=Secret(SECRET)),)}]}),
        Says(what=said, password=Secret(f"postgres://me:{quote(SECRET, safe='')}@db/app")),
        Says(what=said, password=Secret(f"  {SECRET}\n")),
    ):
        shown = repr(run(check))
        for part in (SECRET, quote(SECRET, safe=""), "s3cr3t"):
            assert part not in shown


def test_the_password_of_a_dsn_is_scrubbed_from_an_exception() -> None:
    check = Says(what=RuntimeError("login failed: hunter22"), password=Secret("host=db user=me password=hunter22"))
    assert run(check).summary == "RuntimeError: login failed: ***"


def test_a_rotated_secret_is_read_again_and_its_old_value_is_scrubbed_too() -> None:
    values = iter(["first-value", "second-value"])
    scrubber = Scrubber(Says(what=None, password=Secret(lambda: next(values), source="file")))
    asyncio.run(scrubber.read())
    asyncio.run(scrubber.read())
    asyncio.run(scrubber.read())  # a reader that fails now
    assert scrubber.text("first-value second-value third") == "*** *** third"


def test_secrets_are_found_once_also_in_circles() -> None:
    inner = Secret("inner-value")
    circle: list[Any] = [inner]
    circle.append(circle)
    assert list(secrets_in(Says(what=circle, headers={"again": inner}))) == [inner]


def test_a_result_is_bounded_plain_and_can_be_written_as_json() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError

    details: dict[str, Any] = {
        "flag": True,
        "count": 3,
        "big": 2**80,
        "huge": 10**5000,
        "ratio": 0.5,
        "nan": nan,
        "inf": inf,
        "none": None,
        "decimal": Decimal("1.5"),
        "path": Path("/a"),
        "list": [1, 2],
        "odd": Odd(),
        "enum": Cause.FULL,
        "long": "y" * 10_000,
        "n" * 500: 1,
    }
    details |= {f"more{number}": number for number in range(100)}
    said = CheckResult(
        Verdict.WARNING,
        summary="a\x1b[31m\nb\u202e" + "z" * 10_000_000,
        details=details,
        definite=1,  # type: ignore[arg-type]
    )
    result = run(Says(what=said))
    text = json.dumps(attrs.asdict(result), allow_nan=False)
    assert len(text) < 8000
    assert result.summary.startswith("a[31m b")
    assert len(result.summary) == 500
    assert len(result.details) == 32
    assert result.details["flag"] is True
    assert result.details["enum"] == "full"
    assert result.details["odd"] == "Odd"
    assert result.details["nan"] == "nan"
    assert result.definite is True


def test_an_exception_whose_text_cannot_be_read_is_still_named() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert of_exception(Odd()).summary.startswith("Odd: ")
