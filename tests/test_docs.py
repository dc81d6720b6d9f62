"""What a reader may look up is there, and is true: nothing of the public surface is undocumented.

The tables are written by `docs/_generate.py`; here it is asked from the other side, by looking at the code and then for
the word in the pages, so that a block taken out of a page by mistake is noticed too.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import tomllib
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import attrs
import pytest
from click.testing import CliRunner

import selfheal
from selfheal.config.schema import shape
from selfheal.control import Question, call
from selfheal.core import messages, model
from selfheal.core.records import RECORDS
from selfheal.requests import TABLE

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
EVERY = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    """The names of `docs/_generate.py`."""
    return runpy.run_path(str(DOCS / "_generate.py"))


def page(name: str) -> str:
    """Return a page of the reference."""
    return (DOCS / "reference" / f"{name}.md").read_text("utf-8")


def undocumented(names: typing.Iterable[str], *pages: str) -> list[str]:
    """Return which names stand as code, or as a heading, in none of the pages."""
    text = "\n".join(page(name) for name in pages)
    return [
        name
        for name in names
        if not re.search(rf"`(?:\w+\.)?{re.escape(name)}`|^#+ `?{re.escape(name)}`?$", text, re.MULTILINE)
    ]


# -- the pages are what the code says ---------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_code(generator: dict[str, Any]) -> None:
    """Rewrite them with ``python docs/_generate.py``."""
    problems = generator["generate"](check=True)
    assert not problems, "\n".join(["", *problems])


def test_every_block_stands_on_a_page(generator: dict[str, Any]) -> None:
    asked = {match["name"] for path in PAGES for match in generator["BLOCK"].finditer(path.read_text("utf-8"))}
    assert set(generator["BLOCKS"]) == asked


def test_a_page_that_lies_is_noticed(generator: dict[str, Any]) -> None:
    after, missing = generator["rendered"]("<!-- generated: states -->\nsix of them\n<!-- end generated -->\n")
    assert "six of them" not in after
    assert not missing
    assert generator["rendered"]("<!-- generated: nonsense -->\n<!-- end generated -->\n")[1]


# -- nothing is left out ----------------------------------------------------------------------------------------------

WORDS: dict[type[Enum], str] = {
    model.State: "states",
    model.Verdict: "checks",
    model.Cause: "checks",
    model.Run: "workloads",
    model.Effect: "actions",
    model.Settled: "actions",
    model.Severity: "notifiers",
    model.Phase: "notifiers",
    model.Binds: "notifiers",
}


@pytest.mark.parametrize("words", WORDS, ids=lambda cls: cls.__name__)
def test_every_word_is_documented(words: type[Enum]) -> None:
    assert not undocumented([str(member.value) for member in words], WORDS[words])


def test_every_reason_of_a_failed_service_is_documented(generator: dict[str, Any]) -> None:
    reasons = generator["hold_reasons"]()
    assert len(reasons) > 10
    assert not undocumented(reasons, "states")


def test_every_guard_is_documented_in_its_order() -> None:
    from selfheal.core.guards import GUARDS

    assert not undocumented([guard.name for guard in GUARDS], "states")
    assert all(guard.ask.__doc__ for guard in GUARDS)
    listed = re.findall(r"^\| \d+ \| `(\w+)`", page("states"), re.MULTILINE)
    assert listed == [guard.name for guard in GUARDS]


def test_the_drawn_moves_are_the_legal_ones() -> None:
    from selfheal.core.machine import TRANSITIONS

    drawn = {
        (before, after)
        for before, afters in re.findall(r"^(\w+)\s+-> ([\w ]+)$", page("states"), re.MULTILINE)
        for after in afters.split()
    }
    assert drawn == {(before.value, after.value) for before, moves in TRANSITIONS.items() for after in moves}


def test_every_request_and_parameter_is_documented() -> None:
    names = [*TABLE, *(parameter.name for request in TABLE.values() for parameter in request.parameters)]
    assert not undocumented(names, "requests")


def test_every_record_event_and_command_is_documented_with_its_fields() -> None:
    classes = [*RECORDS.values(), *typing.get_args(messages.Event), *typing.get_args(messages.Command)]
    names = [*RECORDS, *(cls.__name__ for cls in classes if cls not in RECORDS.values())]
    fields = [field.name for cls in classes for field in attrs.fields(cls)]
    assert not undocumented([*names, *fields], "records")


def test_every_error_is_documented() -> None:
    from selfheal import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert not undocumented([cls.__name__ for cls in classes], "errors")
    assert all(cls.__name__ in (errors.__doc__ or "") for cls in classes), "the tree at the top of errors.py is short"
    codes = re.findall(r"`(\w+)`", (errors.RequestRefused.__doc__ or "").split("`code` is one of")[1])
    assert len(codes) > 5
    assert not undocumented(codes, "errors")


POLICIES = (model.Policy, model.Backoff, model.Budget, model.Window, model.Dependency, model.Step)


@pytest.mark.parametrize("cls", [*POLICIES, model.Limits, model.Canary], ids=lambda cls: cls.__name__)
def test_every_key_of_the_policy_and_the_limits_is_documented(cls: type) -> None:
    assert not undocumented([field.name for field in attrs.fields(cls)], "configuration")


TABLES = [
    ("config.build", "FleetTable", "configuration"),
    ("calendar", "MaintenanceWindow", "configuration"),
    ("core.routing", "Route", "configuration"),
    ("core.routing", "Route", "notifiers"),
]


@pytest.mark.parametrize(("module", "name", "where"), TABLES)
def test_every_key_of_a_table_of_the_file_is_documented(module: str, name: str, where: str) -> None:
    cls = getattr(importlib.import_module(f"selfheal.{module}"), name)
    assert not undocumented([field.name for field in attrs.fields(cls) if field.init], where)


@pytest.mark.parametrize("role", ["checks", "workloads", "actions", "notifiers"])
def test_every_builtin_kind_and_option_is_documented(role: str, generator: dict[str, Any]) -> None:
    classes: dict[str, type] = generator["builtin_classes"](role)
    assert classes
    assert not undocumented(classes, role)
    for kind, cls in classes.items():
        keys = shape(cls)
        rows = re.findall(r"^\| `(\w+)` \|", generator["options"](cls), re.MULTILINE)
        assert sorted(keys) == sorted(rows), f"the options of {kind}, as a file gives them"
        assert not undocumented(keys, role)


def test_every_hook_is_documented_with_its_signature(generator: dict[str, Any]) -> None:
    hooks = generator["hook_functions"]()
    assert len(hooks) >= 8
    for name, hook in hooks.items():
        shown = re.search(rf"^{name}\((.*?)\) ->", page("hooks"), re.MULTILINE)
        assert shown, f"{name} is not shown with its signature"
        assert re.findall(r"(\w+):", shown[1]) == list(inspect.signature(hook).parameters)
    assert not undocumented(hooks, "hooks")
    assert all(hook.__doc__ for hook in hooks.values())


def test_every_command_and_option_is_documented(generator: dict[str, Any]) -> None:
    commands = generator["cli_commands"]()
    assert not undocumented([f"selfheal {path}" for path in commands], "cli")
    text = page("cli")
    options = [
        opt for command in commands.values() for p in command.params if p.param_type_name == "option" for opt in p.opts
    ]
    assert not [option for option in options if option not in text]
    assert all(command.help for command in commands.values()), "a command without a help text"


def test_every_public_name_of_the_package_is_documented() -> None:
    names: list[str] = importlib.import_module("selfheal").__all__
    assert names
    assert not undocumented(names, "library")


def test_every_public_name_of_the_testing_kit_is_documented(generator: dict[str, Any]) -> None:
    modules = generator["testing_modules"]()
    assert modules
    assert not undocumented(
        [name for module in modules.values() for name in generator["public_names"](module)], "testing"
    )


def test_the_page_of_scenarios_agrees_with_the_names_of_the_tests() -> None:
    """Asked from the other side: by looking for the names of tests, and then for the row."""
    rows = dict(re.findall(r"^\| S(\d+) \| .*? \| (.*) \|$", page("scenarios"), re.MULTILINE))
    assert len(rows) >= 65
    assert list(rows) == [str(number) for number in range(1, len(rows) + 1)]
    named: dict[str, set[str]] = {}
    for path in sorted([*(ROOT / "tests").rglob("test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]):
        for number in re.findall(r"def test_s0?(\d+)_", path.read_text("utf-8")):
            named.setdefault(number, set()).add(path.relative_to(ROOT).as_posix())
    assert {number: set(re.findall(r"`((?:tests|plugins)/\S+)`", where)) for number, where in rows.items()} == {
        number: named.get(number, set()) for number in rows
    }
    later = {number for number, where in rows.items() if where.startswith("later: ")}
    assert later == set(rows) - set(named)


# -- what the pages say can be done, can be done ----------------------------------------------------------------------


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of the code blocks of a language in every page."""
    for path in EVERY:
        for match in re.finditer(
            rf"^( *)```{language}\n(.*?)^\1```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE
        ):
            line = path.read_text("utf-8")[: match.start()].count("\n") + 1
            yield f"{path.relative_to(ROOT)}:{line}", textwrap.dedent(match[2])


PYTHON = [
    block for block in blocks("python") if not block[0].startswith(("docs/reference/hooks", "docs/reference/library"))
]


@pytest.mark.parametrize(("where", "text"), PYTHON, ids=[where for where, _ in PYTHON])
def test_python_in_the_pages_compiles_and_imports_what_is_there(where: str, text: str) -> None:
    tree = compile(text, where, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "selfheal":
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{where}: {node.module} has no {missing}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "selfheal":
            assert hasattr(importlib.import_module("selfheal"), node.attr), f"{where}: there is no selfheal.{node.attr}"


TOML = list(blocks("toml"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(("where", "text"), TOML, ids=[where for where, _ in TOML])
def test_toml_in_the_pages_is_read_by_the_real_loader(where: str, text: str, tmp_path: Path) -> None:
    """A block with a service in it is a whole configuration; others are fragments, and only have to be TOML."""
    data = tomllib.loads(text)
    if "services" not in data:
        return
    config = importlib.import_module("selfheal.config")
    file = tmp_path / "selfheal.toml"
    file.write_text(text, "utf-8")
    report = config.check(file)
    assert not report.problems, "\n".join(["", *map(str, report.problems)])


LINES = [
    (f"{where}+{number}", line.split("#")[0].strip())
    for where, text in blocks("console")
    for number, line in enumerate(text.splitlines(), 1)
    if line.startswith(("selfheal ", ".venv/bin/selfheal "))
]


@pytest.mark.parametrize(("where", "line"), LINES, ids=[where for where, _ in LINES])
def test_a_command_in_the_pages_is_one_that_the_command_line_has(
    where: str, line: str, generator: dict[str, Any]
) -> None:
    commands = generator["cli_commands"]()
    words = shlex.split(line)[1:]
    top = {opt for parameter in generator["cli_group"]().params for opt in parameter.opts}
    while words and words[0] in top:
        words = words[2:]
    path = next((" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in commands), None)
    assert path is not None, f"{where}: there is no command {words[:2]}; there are {sorted(commands)}"
    known = {opt for parameter in commands[path].params for opt in (*parameter.opts, *parameter.secondary_opts)}
    assert not {word.partition("=")[0] for word in words if word.startswith("--")} - known


NAMES = ("api", "database", "importer", "search", "web", "redis")
"""The services that the pages speak of."""

NEEDS_A_FILE = re.compile(r" (run|check|doctor) ")
ASKED = [one for one in LINES if not NEEDS_A_FILE.search(one[1])]
REFUSED = {"selfheal incident 17": "no incident 17"}
"""Lines that this fleet, which is well, has no answer to."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the state_dir of a running fleet that has the services of the pages."""
    folder = tmp_path_factory.mktemp("home")
    supervisor = selfheal.Supervisor(
        [selfheal.Service(name, check=lambda: True, interval=0.5) for name in NAMES], journal=folder / "selfheal.db"
    )
    with supervisor.threaded():
        yield folder


@pytest.mark.real_time
def test_the_commands_in_the_pages_do_what_they_say_on_a_running_fleet(home: Path) -> None:
    main = importlib.import_module("selfheal.cli").main
    suppression = ""
    for where, line in ASKED:
        words = [word for word in shlex.split(line)[1:] if word not in ("--state-dir", "first-state")]
        words = [suppression if word == "SUPPRESSION" else word for word in words]
        done = CliRunner().invoke(main, ["--state-dir", str(home), *words])
        if line.endswith("incident 1") or line in REFUSED:
            assert done.exit_code == 3, f"{where}: {line}"
            continue
        assert done.exit_code == 0, f"{where}: {line}\n{done.output}"
        if found := re.search(r"silence: .* selfheal lift (\w+)", done.output):
            suppression = found[1]
    assert suppression


PYTHON_OF_README = next(text for where, text in PYTHON if where.startswith("README.md"))


@pytest.mark.real_time
def test_the_python_of_the_readme_heals_the_server_that_is_killed(tmp_path: Path) -> None:
    """As typed, but for the port."""
    assert PYTHON_OF_README.count("8000") == 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "app.py").write_text(PYTHON_OF_README.replace("8000", str(port)), "utf-8")
    app = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path)
    try:
        first = served(tmp_path, port, other_than=None)
        os.kill(first, signal.SIGKILL)
        second = served(tmp_path, port, other_than=first)
        app.send_signal(signal.SIGINT)
        app.wait(20.0)
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
    finally:
        app.kill()
        app.wait()


def served(folder: Path, port: int, *, other_than: int | None) -> int:
    """Wait until the server of the README answers, under another pid; return the pid."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            with urlopen(f"http://127.0.0.1:{port}/", timeout=5.0):
                answer = call(folder / "control.sock", Question(request="service", parameters={"service": "web"}))
        except (OSError, selfheal.SelfhealError):
            answer = None
        pids = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if cmdline(path)[-3:] == ["-m", "http.server", str(port)]
        ]
        if answer is not None and pids and pids[0] != other_than:
            return pids[0]
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


def cmdline(process: Path) -> list[str]:
    """Return the arguments of a process; none when it is gone."""
    try:
        return (process / "cmdline").read_text("utf-8").rstrip("\0").split("\0")
    except (OSError, UnicodeDecodeError):
        return []


def test_links_between_pages_lead_somewhere() -> None:
    links = [(path, target) for path in EVERY for target in LINK.findall(path.read_text("utf-8"))]
    inside = [(path, target) for path, target in links if not re.match(r"[a-z]+:", target)]
    assert len(inside) > 20
    assert not [(path.name, target) for path, target in inside if not (path.parent / target).exists()]


def test_every_page_is_reached_from_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for path in PAGES:
        for body in re.findall(r"```{toctree}\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
            listed |= {
                path.parent / f"{line.strip()}.md" for line in body.splitlines() if line.strip() and ":" not in line
            }
    assert not [str(path) for path in PAGES if path not in listed]


# -- the first screen -------------------------------------------------------------------------------------------------


def test_the_readme_has_two_set_up_commands_that_a_fresh_machine_understands() -> None:
    commands = runpy.run_path(str(ROOT / ".ci" / "readme.py"))["commands"]()
    assert set(commands) == {"run", "tests"}
    for command in commands.values():
        assert command.startswith("python3 -m venv")
        assert "uv " not in command
        assert not command.count("\n")


def test_the_readme_says_what_it_never_does_before_the_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.index("never") < text.index("<!-- command: run -->") < text.index("<!-- command: tests -->")
