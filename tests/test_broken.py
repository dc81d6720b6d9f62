"""The broken builds themselves: each fits the code as it is, leaves it whole, and a scenario that misses it is told."""

from __future__ import annotations

import ast
import asyncio
import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.broken import ROOMS, ROOT, Importing, Replacing, Unfit, broken, builds, fails_when, replacing

from selfheal.core import detector, ledger
from selfheal.core.model import State
from selfheal.secret import Secret

FRESH = "nobody is unknown"
SHOWN = "a secret shows itself"


def used() -> Iterator[str]:
    """Yield the names of builds that tests are marked with."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if "\n@fails_when(" in text else ():
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "fails_when":
                    yield from map(ast.literal_eval, call.args)


# -- every build ------------------------------------------------------------------------------------------------------


def test_every_build_is_used_and_every_one_that_is_used_is_there_once() -> None:
    names = [name for room in ROOMS for name in builds(room)]
    assert len(names) == len(set(names))
    assert set(used()) == set(names)


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in ROOMS for name in builds(room)])
def test_every_build_fits_the_code_and_leaves_it_whole(room: str, name: str) -> None:
    build = builds(room)[name]
    if isinstance(build, Importing):
        assert importlib.util.find_spec(build.module) is not None
        return
    before = held(build)
    with ExitStack() as stack:
        build(stack)
        assert not isinstance(build, Replacing) or held(build) != before
    assert held(build) == before


def held(build: Any) -> Any:
    """Return what stands in the place that a build breaks."""
    if not isinstance(build, Replacing):
        return None
    owner = build.resolved()
    return build.name in vars(owner), getattr(owner, build.name)


# -- a build that breaks nothing, or too much -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "made", "words"),
    [
        (ledger, "FRSH", lambda _: None, "there is no selfheal.core.ledger.FRSH"),
        ("selfheal.core.desk:Desk", "chekable", lambda _: None, "there is no Desk.chekable"),
        (ledger, "FRESH", lambda _: 7, "is a int, not a Condition"),
        (detector, "confirmed", lambda _: lambda policy, evidence: True, "cannot be called like it: too many"),
        (detector, "confirmed", lambda _: lambda policy, evidence, now, what: True, "missing a required argument"),
        (detector, "confirmed", lambda _: True, "cannot be called"),
        ("selfheal.supervisor:Supervisor", "act", lambda _: lambda self, name, *, reason: {}, "asynchronous"),
    ],
)
def test_what_no_longer_fits_is_refused(owner: Any, name: str, made: Callable[[Any], Any], words: str) -> None:
    with ExitStack() as stack, pytest.raises(Unfit, match=words):
        replacing(owner, name, made)(stack)


def test_a_build_that_nobody_knows_is_refused() -> None:
    with pytest.raises(Unfit, match="there is no build 'broken somehow'"), broken("broken somehow"):
        pass


def fresh() -> None:
    assert ledger.FRESH.state is State.UNKNOWN


def test_a_scenario_passes_on_the_code_as_it_is_and_fails_on_the_build() -> None:
    scenario = fails_when(FRESH)(fresh)
    scenario(build="")
    scenario(build=FRESH)
    scenario(build="")


def test_a_scenario_that_fails_on_the_code_as_it_is_fails() -> None:
    def shown() -> None:
        assert "hunter2" in repr(Secret("hunter2"))

    with pytest.raises(AssertionError):
        fails_when(SHOWN)(shown)(build="")


def test_a_scenario_that_passes_on_the_build_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="it passes when a secret shows itself"):
        fails_when(SHOWN)(fresh)(build=SHOWN)


def test_an_asynchronous_scenario_is_run_likewise() -> None:
    async def shown() -> None:
        await asyncio.sleep(0.0)
        assert "hunter2" not in repr(Secret("hunter2"))

    asyncio.run(fails_when(SHOWN)(shown)(build=""))
    asyncio.run(fails_when(SHOWN)(shown)(build=SHOWN))
    with pytest.raises(pytest.fail.Exception, match="it passes when"):
        asyncio.run(fails_when(FRESH)(shown)(build=FRESH))


def test_expecting_what_does_not_come_is_an_assertion_too() -> None:
    def raises() -> None:
        with pytest.raises(ValueError, match="unknown"):
            raise ValueError(ledger.FRESH.state.value)

    fails_when(FRESH)(raises)(build=FRESH)

    def refuses() -> None:
        with pytest.raises(TypeError):
            _ = ledger.FRESH.state is State.UNKNOWN and [] + ()  # type: ignore[operator]

    fails_when(FRESH)(refuses)(build=FRESH)


def test_an_error_is_no_assertion() -> None:
    def errs() -> None:
        if ledger.FRESH.state is not State.UNKNOWN:
            raise TypeError("takes 2 positional arguments but 3 were given")

    with pytest.raises(Unfit, match="ended in TypeError, and failed no assertion: takes 2"):
        fails_when(FRESH)(errs)(build=FRESH)

    def group() -> None:
        try:
            fresh()
        except AssertionError as problem:
            raise ExceptionGroup("both", [problem, KeyError("other")]) from None

    with pytest.raises(Unfit, match="ended in KeyError"):
        fails_when(FRESH)(group)(build=FRESH)


def test_an_assertion_of_the_code_itself_is_none_of_the_scenario() -> None:
    known: dict[str, Any] = {"ledger": ledger, "State": State}
    code = compile("def law(): assert ledger.FRESH.state is State.UNKNOWN", str(ROOT / "src/selfheal/law.py"), "exec")
    exec(code, known)  # its place in the tree is the subject
    with pytest.raises(Unfit, match=r"failed in .*law\.py, not in the scenario"):
        fails_when(FRESH)(known["law"])(build=FRESH)


# -- another process --------------------------------------------------------------------------------------------------

ASKS = """
import signal
from selfheal import Supervisor
print(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, Supervisor.__aenter__.__qualname__)
"""


def said() -> str:
    done = subprocess.run([sys.executable, "-c", ASKS], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_a_child_is_the_build_and_the_next_is_whole() -> None:
    with broken("an import takes the signals"):
        assert said() == "True Supervisor.__aenter__"
    with broken("who is entered takes the signals"):
        assert said() == "False _takes_the_signals.<locals>.enter"
    assert said() == "False Supervisor.__aenter__"


def test_a_child_that_dies_of_the_build_itself_is_none_of_the_scenario() -> None:
    def dies() -> None:
        code = f"exec(compile('[].hide', {str(ROOT / 'tests/broken/children.py')!r}, 'exec'))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    with pytest.raises(Unfit, match="itself failed in a child: Traceback"):
        fails_when("an import takes the signals")(dies)(build="an import takes the signals")


# -- the page ---------------------------------------------------------------------------------------------------------


def test_a_scenario_without_a_build_is_noticed_and_so_is_a_reason_too_many() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "_generate.py"))
    known, missing = generator["scenarios"].__globals__, generator["ABOUT"].missing
    whole = known["scenario_builds"]()
    generator["scenarios"]()
    assert not missing
    known["scenario_builds"] = lambda: {number: names for number, names in whole.items() if number != 5}
    generator["scenarios"]()
    assert [one for one in missing if "S5:" in one and "on which build" in one]
    missing.clear()
    known["scenario_builds"] = lambda: {**whole, 62: ["nobody looks"]}
    generator["scenarios"]()
    assert [one for one in missing if "S62:" in one and "it has a broken build now" in one]
