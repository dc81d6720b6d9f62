"""The shipped code broken in one named place, and the scenarios that must fail on it.

A scenario that cannot fail proves nothing. `fails_when` runs one on the code as it is, where it passes, and on each of
the named builds, where it must fail: by an assertion of its own, not by a law, and not by a patch that no longer fits.
Builds are in `core` (the engine), `rooms` (everything around it) and `children` (what a test starts as a process of its
own, which finds the build in its environment). Nothing of this is known to `src`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
ROOMS: Final = ("core", "rooms", "children")
ENVIRONMENT: Final = "SELFHEAL_TESTS_BROKEN"
"""The variable by which a child process is told which build it is."""

PATIENCE: Final = 1.0
"""Seconds that a scenario waits on a broken build for what will never come."""

OURS: Final = tuple(ROOT / name for name in ("docs", "plugins", "src", "tests"))
"""Not the whole checkout: the virtual environment of the README lies in it, and pytest in that."""

HARNESS: Final = tuple(ROOT / "src" / "selfheal" / "testing" / name for name in ("probing.py", "servers.py"))
"""What a scenario is told with, beside the tests' own: an assertion in there is one of the scenario."""

Break = Callable[[ExitStack], None]


class Unfit(Exception):
    """A build that does not break what it says: the code has changed, and the build has to."""


# -- how a build is made ----------------------------------------------------------------------------------------------


class Replacing:
    """Break one attribute: what takes its place is made of it, and can be called as it is called."""

    def __init__(self, owner: object, name: str, made: Callable[[Any], Any]) -> None:
        """`owner` is a module or a class; in words (`selfheal.secret:Secret`) it is imported no sooner than needed."""
        self.owner, self.name, self.made = owner, name, made

    def resolved(self) -> Any:
        """Return the owner itself."""
        return resolve_name(self.owner) if isinstance(self.owner, str) else self.owner

    def __call__(self, stack: ExitStack) -> None:
        owner = self.resolved()
        where = f"{getattr(owner, '__name__', owner)}.{self.name}"
        shipped = inspect.getattr_static(owner, self.name, None)
        if shipped is None:
            raise Unfit(f"there is no {where}")
        whole = getattr(owner, self.name)
        other = self.made(whole)
        misfit = _misfit(whole, other)
        if misfit:
            raise Unfit(f"what takes the place of {where} {misfit}")
        if isinstance(shipped, staticmethod):
            other = staticmethod(other)
        if self.name in vars(owner):
            stack.callback(setattr, owner, self.name, shipped)
        else:
            stack.callback(delattr, owner, self.name)
        setattr(owner, self.name, other)

    @property
    def module(self) -> str:
        """The module that it breaks."""
        return str(self.owner).partition(":")[0]


class Importing:
    """Break a module by what its import does besides. Only a process of its own can be told: here it is imported."""

    def __init__(self, module: str, act: Callable[[], object]) -> None:
        self.module, self.act = module, act

    def __call__(self, stack: ExitStack) -> None:
        self.act()


replacing = Replacing
importing = Importing


def _misfit(whole: Any, other: Any) -> str:
    """Say why one cannot stand for the other; nothing, if it can."""
    if not callable(whole) or isinstance(whole, type):
        return "" if isinstance(other, type(whole)) else f"is a {type(other).__name__}, not a {type(whole).__name__}"
    if not callable(other):
        return "cannot be called"
    if inspect.iscoroutinefunction(whole) is not inspect.iscoroutinefunction(other):
        return "is not asynchronous, or is and should not be"
    parameters = inspect.signature(whole).parameters.values()
    for every in (True, False):
        given = [one for one in parameters if every or one.default is one.empty]
        named = {one.name: None for one in given if one.kind is one.KEYWORD_ONLY}
        placed = [None for one in given if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        try:
            inspect.signature(other).bind(*placed, **named)
        except TypeError as problem:
            return f"cannot be called like it: {problem}"
    return ""


# -- being one --------------------------------------------------------------------------------------------------------


def builds(room: str) -> Mapping[str, Break]:
    """Return the builds of a room by their names."""
    found: Mapping[str, Break] = importlib.import_module(f"tests.broken.{room}").BUILDS
    return found


_NOW: list[str] = []


@contextmanager
def broken(build: str) -> Iterator[None]:
    """Let the code be broken in one place, here or in the processes that are started meanwhile."""
    room = next((room for room in ROOMS if build in builds(room)), None)
    if room is None:
        raise Unfit(f"there is no build {build!r}")
    with ExitStack() as stack:
        if room == "children":
            stack.enter_context(_in_children(build))
        else:
            builds(room)[build](stack)
        _NOW.append(build)
        stack.callback(_NOW.pop)
        yield


def patience(seconds: float) -> float:
    """Return how long a test may wait for something: on a broken build it is not waited for as long.

    `SELFHEAL_TESTS_IMPATIENT=1` shows that this is no reason to fail: it makes every run as impatient.
    """
    return min(seconds, PATIENCE) if _NOW or os.environ.get("SELFHEAL_TESTS_IMPATIENT") else seconds


def fails_when(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run a scenario on the code as it is, and on each of these builds, where one of its own assertions must fail."""
    import pytest  # a child that is broken has no need of it

    def decorate(scenario: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(scenario):

            @functools.wraps(scenario)
            async def test(*, build: str, **given: Any) -> None:
                with _must_fail(build):
                    await scenario(**given)

        else:

            @functools.wraps(scenario)
            def test(*, build: str, **given: Any) -> None:
                with _must_fail(build):
                    scenario(**given)

        signature = inspect.signature(scenario)
        parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in signature.parameters.values()]
        asked = inspect.Parameter("build", inspect.Parameter.KEYWORD_ONLY)
        test.__signature__ = signature.replace(parameters=[*parameters, asked])  # type: ignore[attr-defined]  # pytest reads it
        each = pytest.mark.parametrize("build", ["", *names], ids=["whole", *names])
        parametrised: Callable[..., Any] = each(test)
        return parametrised

    return decorate


@contextmanager
def _must_fail(build: str) -> Iterator[None]:
    """On a broken build, see that the block fails as a scenario does."""
    if not build:
        yield
        return
    import pytest  # as above

    try:
        with broken(build):
            yield
    except (pytest.skip.Exception, Unfit):
        raise
    except (Exception, BaseExceptionGroup, pytest.fail.Exception) as problem:
        for one in _single(problem):
            if not isinstance(one, AssertionError | pytest.fail.Exception):
                raise Unfit(f"{build!r} ended in {type(one).__name__}, and failed no assertion: {one}") from problem
            where = _where(one)
            if not where.is_relative_to(ROOT / "tests") and where not in HARNESS:
                raise Unfit(f"{build!r} failed in {where}, not in the scenario") from problem
            if build in builds("children") and str(Path(__file__).parent) in str(one):
                raise Unfit(f"{build!r} itself failed in a child: {one}") from problem
            print(f"when {build}: {one}")
    else:
        pytest.fail(f"it passes when {build}")


def _single(problem: BaseException) -> Iterator[BaseException]:
    if isinstance(problem, BaseExceptionGroup):
        for one in problem.exceptions:
            yield from _single(one)
    else:
        yield problem


def _where(problem: BaseException) -> Path:
    """Return the file of ours in which it was raised; what pytest does inside a `raises` is not ours."""
    found, trace = Path(), problem.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if any(path.is_relative_to(one) for one in OURS) and path.parent != Path(__file__).parent:
            found = path
        trace = trace.tb_next
    return found


# -- being one in another process -------------------------------------------------------------------------------------


@contextmanager
def _in_children(build: str) -> Iterator[None]:
    """Have every Python that is started meanwhile be the build: it looks for a `sitecustomize` when it starts."""
    import tempfile  # a child that is broken has no need of it

    import pytest  # nor of this

    with tempfile.TemporaryDirectory(prefix="selfheal-broken-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder, "sitecustomize.py").write_text("from tests.broken import at_start\nat_start()\n")
        patch.setenv("PYTHONPATH", os.pathsep.join([folder, str(ROOT)]), prepend=os.pathsep)
        patch.setenv(ENVIRONMENT, build)
        yield


def at_start() -> None:
    """Be the build that the environment names, as soon as the module that it breaks is imported."""
    how = builds("children")[os.environ[ENVIRONMENT]]
    assert isinstance(how, Replacing | Importing)
    sys.meta_path.insert(0, _Breaking(how.module, how))


class _Breaking(MetaPathFinder):
    """Breaks one module as soon as it has been imported."""

    def __init__(self, module: str, how: Break) -> None:
        self.module, self.how = module, how

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def and_break(module: Any) -> None:
            execute(module)
            self.how(ExitStack())

        spec.loader.exec_module = and_break  # type: ignore[method-assign]  # this loader was made for this module alone
        return spec
