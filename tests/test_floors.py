"""Who may import whom, and what no file may do: read from the syntax, enforced for every file of the house.

The tables below are the rule; the functions only read. Whoever breaks one is told the file, the line and the reason.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
HOUSE = SRC / "selfheal"


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# -- the rule ---------------------------------------------------------------------------------------------------------

FLOORS: Mapping[int, tuple[str, ...]] = {
    0: ("core", "errors", "secret"),
    1: (
        "analytics",
        "builtin",
        "calendar",
        "config",
        "hookspecs",
        "journal",
        "ladder",
        "loading",
        "metrics",
        "plugins",
        "requests",
        "service",
        "shapes",
        "outages",
        "views",
        "wire",
        "words",
    ),
    2: ("control", "shell", "supervisor"),
    3: ("__main__", "cli", "daemon"),
}
"""The rooms of each floor. A room imports from its own floor and from those below."""

FACE = "__init__"
"""The public names: may import floors 0 to 2; no file of the house imports from it."""

BESIDE = "testing"
"""Beside the house: may import floors 0 to 2; nothing imports it."""

PACKAGES: Mapping[int, frozenset[str]] = {
    0: frozenset({"attrs"}),
    1: frozenset({"anyio", "attrs", "click", "h11", "httpx2", "pluggy", "sniffio", "tenacity"}),
    2: frozenset({"anyio", "attrs", "h11", "httpx2", "pluggy", "sniffio", "tenacity", "trio"}),
    3: frozenset({"anyio", "attrs", "click", "h11", "httpx2", "pluggy", "rich", "tenacity", "trio"}),
}
"""What each floor may import from other projects. The optional ones only inside the function that needs them."""

PACKAGES_OF_TESTING = frozenset({"anyio", "attrs", "hypothesis", "pluggy", "pytest", "trio", "trustme"})

PURE = words(
    "__future__ abc base64 binascii bisect collections copy dataclasses difflib enum functools hashlib heapq hmac"
    " itertools json math operator re statistics string struct textwrap types typing"
)
"""The standard library as far as it has no clock, no chance, no world: all that the core may import of it."""

NEVER_IN_CORE = words(
    "anyio asyncio concurrent contextvars ctypes datetime gc locale logging multiprocessing os pathlib pickle pluggy"
    " queue random secrets select selectors signal socket sqlite3 ssl subprocess sys tempfile tenacity threading time"
    " uuid warnings weakref zoneinfo"
)
"""Named so that nobody adds one of them to `PURE` in a hurry."""

CALLS_NEVER_IN_CORE: Mapping[str, str] = {
    "id": "it differs from run to run",
    "hash": "it differs from run to run for texts",
    "open": "the core touches no file",
    "print": "the core says what it has to say in records",
    "input": "the core asks nobody",
    "eval": "the core runs no text",
    "exec": "the core runs no text",
    "breakpoint": "left over",
}

CALLS_OF_THE_DAEMON: Mapping[str, str] = {
    "signal.signal": "a library installs no signal handler",
    "signal.set_wakeup_fd": "a library installs no signal handler",
    "anyio.open_signal_receiver": "a library installs no signal handler",
    "logging.basicConfig": "a library configures no logging",
    "logging.config.dictConfig": "a library configures no logging",
    "logging.config.fileConfig": "a library configures no logging",
    "logging.disable": "a library configures no logging",
    "asyncio.run": "the host owns its loop",
    "anyio.run": "the host owns its loop",
    "trio.run": "the host owns its loop",
    "sys.exit": "a library ends no process",
    "os._exit": "a library ends no process",
    "os.chdir": "a library moves no process",
    "os.umask": "a library changes no process",
}
"""What only floor 3 may do (and, for the loops, the testing kit)."""

CALLS_NEVER: Mapping[str, str] = {
    "os.system": "there is no shell: argument lists only",
    "os.popen": "there is no shell: argument lists only",
    "subprocess.getoutput": "there is no shell: argument lists only",
    "subprocess.getstatusoutput": "there is no shell: argument lists only",
    "asyncio.create_subprocess_shell": "there is no shell: argument lists only",
    "pickle.loads": "what is read may not be code",
    "pickle.load": "what is read may not be code",
    "eval": "what is read may not be code",
    "exec": "what is read may not be code",
}

NOT_AT_IMPORT = ("asyncio.", "anyio.", "os.", "random.", "socket.", "subprocess.", "threading.", "time.", "uuid.")
"""Calls that a module may not make while it is being imported; `logging.getLogger` and pure constructors may."""

FINE_AT_IMPORT = frozenset({"logging.getLogger", "os.fspath", "threading.local"})

WORK_AT_IMPORT: Mapping[tuple[str, str], str] = {
    ("selfheal", "_refuse_namesake"): "another project installs an import package of our name: one sentence says so",
}
"""(module, call) -> why this one bare call at import is right."""

ANYWHERE: Mapping[tuple[str, str], str] = {}
"""(module, call) -> why a call of `CALLS_OF_THE_DAEMON` is right there."""


# -- reading ----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Import:
    """One imported module, where it stands, and whether importing the file does not yet import it (`late`)."""

    module: str
    line: int
    late: bool


@attrs.frozen
class Module:
    """One file of the house."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The part of the name that the floors know: `core`, `wire`, …; `__init__` for the package itself."""
        rest = self.name.split(".")[1:]
        return rest[0] if rest else FACE

    @property
    def floor(self) -> int | None:
        """Its floor; None for the face and for what stands beside the house."""
        return next((floor for floor, rooms in FLOORS.items() if self.room in rooms), None)

    def imports(self) -> list[Import]:
        """Return what it imports, relative names resolved; what only type checkers read counts as late."""
        found: list[Import] = []
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        for node, late in _walk(self.tree):
            if isinstance(node, ast.Import):
                found += [Import(module=alias.name, line=node.lineno, late=late) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, *filter(None, [base])])
                found += [
                    Import(
                        module=f"{base}.{alias.name}" if base.startswith("selfheal") else base,
                        line=node.lineno,
                        late=late,
                    )
                    for alias in node.names
                ]
        return found

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Yield (dotted name, call), with names resolved through the imports of this file."""
        known = self._names()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and (name := dotted(node.func)):
                yield _resolved(name, known), node

    def calls_at_import(self) -> Iterator[tuple[str, ast.Call]]:
        """Yield the calls made while it is imported, outside functions (decorators and defaults included)."""
        known = self._names()
        for node in _outside_functions(self.tree):
            if isinstance(node, ast.Call) and (name := dotted(node.func)):
                yield _resolved(name, known), node

    def _names(self) -> dict[str, str]:
        known: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                known |= {
                    alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                    for alias in node.names
                }
            elif isinstance(node, ast.ImportFrom) and not node.level:
                known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        return known

    def at(self, line: int) -> str:
        """Return `path:line`, as editors like it."""
        return f"{self.path.relative_to(ROOT)}:{line}"


def _walk(tree: ast.AST, late: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(tree):
        yield child, late
        deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for_types = isinstance(child, ast.If) and dotted(child.test).endswith("TYPE_CHECKING")
        yield from _walk(child, late or deferred or for_types)


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            arguments = child.args
            outside = [*arguments.defaults, *filter(None, arguments.kw_defaults), *getattr(child, "decorator_list", [])]
            for node in outside:
                yield from ast.walk(node)
        elif not _main_block(child):
            yield child
            yield from _outside_functions(child)


def _main_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` for a plain chain of names, else an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (front := dotted(node.value)):
        return f"{front}.{node.attr}"
    return ""


def _resolved(name: str, known: Mapping[str, str]) -> str:
    first, dot, rest = name.partition(".")
    return f"{known.get(first, first)}{dot}{rest}"


def house() -> list[Module]:
    """Return every file under `src/selfheal`."""
    found = []
    for path in sorted(HOUSE.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text("utf-8"), str(path))))
    return found


def module_of(text: str, name: str = "selfheal.core.example") -> Module:
    """Return a file that is not there, for the tests of these tests."""
    return Module(name, HOUSE / "example.py", ast.parse(text))


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    """Every file, parsed once."""
    return house()


def told(problems: Iterable[str]) -> str:
    """Return the problems as one text: the message of a failing test."""
    return "\n".join(["", *problems])


# -- floors -----------------------------------------------------------------------------------------------------------


def broken_floors(module: Module) -> Iterator[str]:
    """Yield each import of the house that goes up, or to a place nobody may import."""
    for one in module.imports():
        parts = one.module.split(".")
        if parts[0] != "selfheal":
            continue
        where = module.at(one.line)
        room = next((part for part in parts[1:2]), FACE)
        target = next((floor for floor, rooms in FLOORS.items() if room in rooms), None)
        if room == BESIDE:
            if module.room != BESIDE:
                yield f"{where}: imports {one.module}; nothing imports the testing kit"
        elif target is None:
            if module.room != FACE:
                yield f"{where}: imports {one.module} through the public face; name the room that owns it"
        elif target > (2 if module.floor is None else module.floor):
            yield f"{where}: imports {one.module}, floor {target}, from {module.room}"


def test_every_room_stands_on_a_floor(modules: list[Module]) -> None:
    strangers = {m.room for m in modules if m.floor is None} - {FACE, BESIDE}
    assert not strangers, f"no floor is named for {sorted(strangers)}: say in FLOORS where they belong"


def test_imports_go_down(modules: list[Module]) -> None:
    problems = [problem for module in modules for problem in broken_floors(module)]
    assert not problems, told(problems)


def test_imports_form_no_circle(modules: list[Module]) -> None:
    names = {m.name for m in modules}
    packages = {m.name for m in modules if m.path.name == "__init__.py"}
    arrows: dict[str, set[str]] = {name: set() for name in names}
    for module in modules:
        for one in module.imports():
            if one.late:
                continue
            target = one.module if one.module in names else one.module.rpartition(".")[0]
            if (
                target in names
                and target != module.name
                and not (target in packages and module.name.startswith(f"{target}."))
            ):
                arrows[module.name].add(target)
    while leaves := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, told(
        f"{name} <-> {', '.join(sorted(to & arrows.keys()))}" for name, to in sorted(arrows.items())
    )


def test_packages_are_those_the_floor_may_have(modules: list[Module]) -> None:
    optional = _optional_packages()
    problems = []
    for module in modules:
        allowed = (
            PACKAGES_OF_TESTING if module.room == BESIDE else PACKAGES[2 if module.floor is None else module.floor]
        )
        for one in module.imports():
            top = one.module.split(".")[0]
            if top == "selfheal" or top in _standard_library():
                continue
            if top not in allowed:
                problems.append(f"{module.at(one.line)}: {module.room} may not import {top}")
            elif top in optional and not one.late and module.room != BESIDE:
                problems.append(f"{module.at(one.line)}: {top} is optional: import it in the function that needs it")
    assert not problems, told(problems)


def _optional_packages() -> set[str]:
    """The packages that a plain installation does not bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    needs = {need.split(">")[0].split("[")[0] for group in extras.values() for need in group}
    return needs - {need.split(">")[0] for need in project["dependencies"]}


def _standard_library() -> frozenset[str]:
    import sys

    return frozenset(sys.stdlib_module_names)


# -- the pure core ----------------------------------------------------------------------------------------------------


def impure(module: Module) -> Iterator[str]:
    """Yield what a file of the core imports or calls that is not a function of its inputs."""
    for one in module.imports():
        top = one.module.split(".")[0]
        if top in _standard_library() and top not in PURE:
            yield f"{module.at(one.line)}: imports {top}, which is not pure (see PURE in tests/test_floors.py)"
    for name, call in module.calls():
        if name in CALLS_NEVER_IN_CORE:
            yield f"{module.at(call.lineno)}: calls {name}(): {CALLS_NEVER_IN_CORE[name]}"


def test_the_core_is_pure(modules: list[Module]) -> None:
    problems = [problem for module in modules if module.room == "core" for problem in impure(module)]
    assert not problems, told(problems)


def test_no_clock_or_chance_is_called_pure() -> None:
    assert not PURE & NEVER_IN_CORE


SETS = ("set", "frozenset")
ORDER_FREE = frozenset({"all", "any", "frozenset", "len", "max", "min", "set", "sorted"})
ORDERED_READERS = frozenset(
    {"enumerate", "iter", "list", "map", "filter", "next", "reversed", "sum", "tuple", "zip", "dict"}
)


class Unordered(ast.NodeVisitor):
    """Finds the places of one file that depend on the order of a set, which differs from run to run.

    As far as syntax tells: displays, comprehensions and calls that make sets, operators on them, names assigned from
    them or annotated as sets in the same function, and `fields` that are annotated as sets in a class of the core.
    """

    def __init__(self, fields: frozenset[str]) -> None:
        self.fields = fields
        self.known: list[set[str]] = [set()]
        self.lines: list[int] = []
        self._free = 0

    def is_set(self, node: ast.expr) -> bool:
        """Whether an expression is a set, as far as syntax tells."""
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Call(func=ast.Name(id=name)):
                return name in SETS
            case ast.Call(func=ast.Attribute(value=value, attr=attr)):
                return attr in {"union", "intersection", "difference", "symmetric_difference"} and self.is_set(value)
            case ast.BinOp(left=left, op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor(), right=right):
                return self.is_set(left) or self.is_set(right)
            case ast.Name(id=name):
                return name in self.known[-1]
            case ast.Attribute(attr=attr):
                return attr in self.fields
        return False

    def visit(self, node: ast.AST) -> None:
        """Look at one node, then at what is in it."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                named = {one.arg for one in arguments if _says_set(one.annotation)}
                self.known.append(self.known[-1] - {one.arg for one in arguments} | named)
                self.generic_visit(node)
                self.known.pop()
                return
            case ast.Assign(targets=targets, value=value) if self.is_set(value):
                self.known[-1] |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if _says_set(annotation):
                self.known[-1].add(name)
            case ast.For(iter=iterated) | ast.Starred(value=iterated):
                self._look(iterated)
            case ast.ListComp(generators=parts) | ast.GeneratorExp(generators=parts) | ast.DictComp(generators=parts):
                for part in [] if self._free else parts:
                    self._look(part.iter)
            case ast.Call(func=func, args=args):
                name = func.id if isinstance(func, ast.Name) else ""
                if name in ORDERED_READERS or (isinstance(func, ast.Attribute) and func.attr in {"join", "extend"}):
                    for argument in args:
                        self._look(argument)
                self._free += name in ORDER_FREE
                self.generic_visit(node)
                self._free -= name in ORDER_FREE
                return
        self.generic_visit(node)

    def _look(self, node: ast.expr) -> None:
        if self.is_set(node):
            self.lines.append(node.lineno)


def _says_set(annotation: ast.expr | None) -> bool:
    return annotation is not None and ast.unparse(annotation).startswith((*SETS, "Set[", "AbstractSet["))


def set_fields(trees: Iterable[ast.AST]) -> frozenset[str]:
    """Return the fields that a class annotates as sets."""
    return frozenset(
        line.target.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and _says_set(line.annotation)
    )


def unordered(tree: ast.Module, fields: frozenset[str] = frozenset()) -> list[int]:
    """Return the lines of a file where the order of a set shows."""
    finder = Unordered(fields)
    finder.visit(tree)
    return sorted(finder.lines)


def test_nothing_in_the_core_depends_on_the_order_of_a_set(modules: list[Module]) -> None:
    core = [module for module in modules if module.room == "core"]
    fields = set_fields(module.tree for module in core)
    problems = [
        f"{module.at(line)}: goes through a set in its own order; sort it, or keep a dict"
        for module in core
        for line in unordered(module.tree, fields)
    ]
    assert not problems, told(problems)


# -- what no file, or only the daemon, may do -------------------------------------------------------------------------


def misdeeds(module: Module) -> Iterator[str]:
    """Yield calls that the library must not make there."""
    for name, call in module.calls():
        where = module.at(call.lineno)
        if name in CALLS_NEVER:
            yield f"{where}: calls {name}(): {CALLS_NEVER[name]}"
        if name in CALLS_OF_THE_DAEMON and module.floor != 3 and (module.name, name) not in ANYWHERE:
            if module.room == BESIDE and name.endswith(".run"):
                continue
            yield f"{where}: calls {name}(): {CALLS_OF_THE_DAEMON[name]}"
        if name.endswith(".add_signal_handler") and module.floor != 3:
            yield f"{where}: calls {name}(): a library installs no signal handler"
        for keyword in call.keywords:
            if keyword.arg == "shell" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield f"{where}: passes shell=: there is no shell, argument lists only"


def work_at_import(module: Module) -> Iterator[str]:
    """Yield what runs while the file is imported, as far as syntax tells."""
    for node in _outside_functions(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
            called = dotted(node.value.func) if isinstance(node.value, ast.Call) else ""
            if (module.name, called) not in WORK_AT_IMPORT:
                yield f"{module.at(node.lineno)}: runs {ast.unparse(node.value):.60} when it is imported"
        if isinstance(node, (ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Global, ast.Delete)):
            yield f"{module.at(node.lineno)}: has a statement that works when it is imported"
        if isinstance(node, ast.Attribute) and dotted(node) == "os.environ":
            yield f"{module.at(node.lineno)}: reads the environment when it is imported"
    for name, call in module.calls_at_import():
        if name in FINE_AT_IMPORT:
            continue
        if name == "open" or name.startswith(NOT_AT_IMPORT):
            yield f"{module.at(call.lineno)}: calls {name}() when it is imported"


def test_the_library_leaves_the_process_alone(modules: list[Module]) -> None:
    problems = [problem for module in modules for problem in misdeeds(module)]
    assert not problems, told(problems)


def test_importing_does_no_work(modules: list[Module]) -> None:
    problems = [problem for module in modules for problem in work_at_import(module)]
    assert not problems, told(problems)


def test_who_only_imports_the_package_does_not_pay_for_the_engine() -> None:
    """A plugin and a command that only asks import `selfheal`; the supervisor comes when it is named."""
    lines = (
        "import selfheal, sys",
        "heavy = {'selfheal.supervisor', 'selfheal.shell', 'selfheal.core.engine', 'selfheal.journal', 'anyio'}",
        "assert not heavy & set(sys.modules), sorted(heavy & set(sys.modules))",
        "assert selfheal.Supervisor.__module__ == 'selfheal.supervisor'",
        "assert 'Supervisor' in vars(selfheal)",
        "assert not hasattr(selfheal, 'Manager')",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_plugins_use_public_names_only() -> None:
    problems = []
    for path in sorted((ROOT / "plugins").glob("*/src/**/*.py")):
        module = Module("plugin", path, ast.parse(path.read_text("utf-8"), str(path)))
        for one in module.imports():
            parts = one.module.split(".")
            if parts[0] == "selfheal" and any(part.startswith("_") for part in parts):
                problems.append(f"{module.at(one.line)}: imports {one.module}")
            if parts[0] == "selfheal" and len(parts) > 1 and parts[1] in {"core", "shell", "journal", "cli", "daemon"}:
                problems.append(f"{module.at(one.line)}: imports {one.module}; a plugin uses the public names")
    assert not problems, told(problems)


# -- these tests can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "from selfheal.shell import loop",
        "from selfheal import Supervisor",
        "import selfheal",
        "from ..supervisor import Supervisor",
        "def f():\n    from selfheal.testing import simulate",
    ],
)
def test_a_broken_floor_is_seen(text: str) -> None:
    assert list(broken_floors(module_of(text)))


@pytest.mark.parametrize("text", ["from selfheal.core.model import State", "from .model import State", "import attrs"])
def test_a_kept_floor_is_left_alone(text: str) -> None:
    assert not list(broken_floors(module_of(text)))


@pytest.mark.parametrize(
    "text", ["import time", "from datetime import datetime", "import random as r", "id(1)", "hash('a')"]
)
def test_an_impure_line_is_seen(text: str) -> None:
    assert list(impure(module_of(text)))


@pytest.mark.parametrize(
    "text",
    [
        "for x in {1, 2}: pass",
        "y = [x for x in set(z)]",
        "list(a | {1})",
        "','.join({str(x) for x in y})",
        "names = {1}\nfor x in names: pass",
        "def f(names: frozenset[str]):\n    return tuple(names)",
        "total = sum({0.1, 0.2})",
        "[*{1, 2}]",
        "class A:\n    tags: frozenset[str]\n    def f(self):\n        return list(self.tags)",
    ],
)
def test_the_order_of_a_set_is_seen(text: str) -> None:
    tree = ast.parse(text)
    assert unordered(tree, set_fields([tree]))


@pytest.mark.parametrize(
    "text",
    [
        "sorted({1, 2})",
        "any(x for x in {1})",
        "1 in {1}",
        "len(set(z))",
        "for x in sorted(set(z)): pass",
        "{x for x in {1}}",
    ],
)
def test_an_order_free_use_of_a_set_is_left_alone(text: str) -> None:
    assert not unordered(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess\ndef f(): subprocess.run('x', shell=True)",
        "import signal\ndef f(): signal.signal(1, g)",
        "from signal import signal as s\ndef f(): s(1, g)",
        "import logging\ndef f(): logging.basicConfig()",
        "import asyncio\ndef f(): asyncio.run(g())",
        "def f(loop): loop.add_signal_handler(1, g)",
        "import os\ndef f(): os.system('x')",
    ],
)
def test_a_misdeed_is_seen(text: str) -> None:
    assert list(misdeeds(module_of(text, "selfheal.shell.example")))


@pytest.mark.parametrize(
    "text",
    [
        "import threading\nLOCK = threading.Lock()",
        "print('hello')",
        "import os\nHOME = os.environ['HOME']",
        "import time\nclass A:\n    began = time.monotonic()",
        "for x in (1, 2): pass",
        "import time\ndef f(now=time.time()): pass",
    ],
)
def test_work_at_import_is_seen(text: str) -> None:
    assert list(work_at_import(module_of(text)))
