"""Write the tables of `docs/reference/` from the code, so that a page cannot say what the code does not.

``python docs/_generate.py`` rewrites what stands between ``<!-- generated: NAME -->`` and ``<!-- end generated -->``
in every page; ``--check`` changes nothing, prints the differences and ends with 1 when there are any. What a name or
an option means is said in its docstring, in the ``about`` of its field's metadata, or in ``_about.toml`` beside this
file; an option that is described in none of them is an error, and so is a description of something that is gone.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum, IntEnum
from math import isfinite
from pathlib import Path
from typing import Any

import attrs
import click

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z_]+) -->\n)(?P<body>.*?)(<!-- end generated -->)", re.DOTALL)


class Absent(Exception):
    """A part of the house that a table is made of is not there."""


class About:
    """What options and words mean: `_about.toml`, and which of its lines were used."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[str, str]] = tomllib.loads((DOCS / "_about.toml").read_text("utf-8"))
        self.used: set[tuple[str, str]] = set()
        self.missing: set[str] = set()

    def of(self, owner: str, name: str) -> str:
        """Return the description of `name` of `owner`, or of `name` wherever it occurs (section `any`)."""
        for section in (owner, "any"):
            if text := self.lines.get(section, {}).get(name):
                self.used.add((section, name))
                return text
        self.missing.add(f"[{owner}] {name}")
        return ""

    def unused(self) -> set[str]:
        """Return the descriptions of what is not there."""
        every = {(section, name) for section, lines in self.lines.items() for name in lines}
        return {f"[{section}] {name}" for section, name in every - self.used}


ABOUT = About()


# -- reading the code -------------------------------------------------------------------------------------------------


def load(name: str) -> types.ModuleType:
    """Import a part of selfheal; raises `Absent` when it is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name is not None and problem.name.startswith("selfheal"):
            raise Absent(f"{problem.name} is not there") from problem
        raise


def named(module: str, name: str) -> Any:
    """Return one name of a part of selfheal; raises `Absent` when it is not there."""
    try:
        return getattr(load(module), name)
    except AttributeError as problem:
        raise Absent(f"{module}.{name} is not there") from problem


def prose(text: str | None, *, whole: bool = False) -> str:
    """Return the first paragraph of a docstring (or all of it) on one line each, in Markdown."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    kept = paragraphs if whole else paragraphs[:1]
    return "\n\n".join(markdown(one) for one in kept)


def markdown(text: str) -> str:
    """Return a paragraph of a docstring as Markdown: double back-quotes become single, lines are joined."""
    if text.startswith(("- ", "1. ", "* ")) or "\n    " in text:
        return text.replace("``", "`")
    return " ".join(text.replace("``", "`").split())


def cell(text: str) -> str:
    """Return text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines) + "\n"


def code(text: object) -> str:
    """Return text as code, unless it is empty."""
    return f"`{text}`" if str(text) else ""


def fields_of(cls: type) -> tuple[attrs.Attribute[Any], ...]:
    """Return the options of an attrs class: its public fields that a person may set."""
    return tuple(field for field in attrs.fields(cls) if field.init and not key_of(field).startswith("_"))


def key_of(field: attrs.Attribute[Any]) -> str:
    """Return the name by which an option is given: in a file and to the constructor alike."""
    return field.alias or field.name


def kind_of(field: attrs.Attribute[Any]) -> str:
    """Return the type of a field as a reader of the file needs it."""
    if field.metadata.get("unit") == "seconds":
        return "seconds"
    hint: Any = field.type
    text = hint if isinstance(hint, str) else hint.__name__ if isinstance(hint, type) else str(hint)
    return re.sub(r"\b(?:[a-z_]+\.)+([A-Z])", r"\1", text.strip("\"'"))


IN_A_FILE: Mapping[str, str] = {
    "str": "text",
    "bool": "true or false",
    "int": "whole number",
    "float": "number",
    "Secret": "secret",
    "Path": "path",
}
"""Python's types in the words of a configuration file."""


def holds(field: attrs.Attribute[Any]) -> str:
    """Return what a key of the file holds."""
    kind = kind_of(field).removesuffix(" | None")
    if listed := re.fullmatch(r"(?:tuple|frozenset)\[(.+?)(?:, \.\.\.)?\]", kind):
        return f"list of {_worded(listed[1])}"
    if kind.startswith("Mapping["):
        return f"table of {_worded(kind.removeprefix('Mapping[').removesuffix(']').partition(', ')[2])}"
    return _worded(kind)


def _worded(kind: str) -> str:
    return " or ".join(
        IN_A_FILE.get(part, f"`{part}`" if part[:1].isupper() else part) for part in kind.split(" | ") if part != "None"
    )


def default_of(field: attrs.Attribute[Any]) -> str:
    """Return the default of a field as text; `required` where there is none."""
    value: Any = field.default
    if value is attrs.NOTHING:
        return "required"
    if hasattr(value, "takes_self"):
        value = "…" if value.takes_self else value.factory()
    return code(shown(value)) + (" s" if field.metadata.get("unit") == "seconds" and value is not None else "")


def shown(value: Any) -> str:
    """Return a value as a person would write it."""
    if isinstance(value, Enum):
        return value.name.lower() if isinstance(value, IntEnum) else str(value.value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return number(value) if isfinite(value) else "never"
    if isinstance(value, (frozenset, set)):
        return "[" + ", ".join(sorted(shown(item) for item in value)) + "]"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{}" if not value else str(dict(value))
    if attrs.has(value.__class__):
        return (
            "{ " + ", ".join(f"{f.name} = {shown(getattr(value, f.name))}" for f in fields_of(value.__class__)) + " }"
        )
    return str(value) if value != "" else '""'


def number(value: float) -> str:
    """Return a number as a person writes it: no exponent, no needless zeros."""
    return str(int(value)) if value == int(value) else repr(value)


def range_of(field: attrs.Attribute[Any]) -> str:
    """Return the bounds that a number's validator keeps, where it is one of ours."""
    if not isinstance(field.validator, types.FunctionType):
        return ""
    bounds = inspect.getclosurevars(field.validator).nonlocals
    if "low" not in bounds or "high" not in bounds:
        return ""
    low, high = bounds["low"], bounds["high"]
    if high >= 366 * 86400 and field.metadata.get("unit") == "seconds":
        return f"from {number(low)} to a year"
    return f"from {number(low)} to {number(high)}" if isfinite(high) else f"from {number(low)}"


def described(cls: type, field: attrs.Attribute[Any]) -> str:
    """Return what an option means.

    From its metadata, the ``#:`` comment above it, the ``Attributes`` of its class's docstring, or `_about.toml`.
    """
    if text := field.metadata.get("about"):
        return str(text)
    if text := comments(cls).get(field.name):
        return markdown(text)
    section = re.search(r"^\s*Attributes:\s*\n(.*)", inspect.cleandoc(cls.__doc__ or ""), re.DOTALL | re.MULTILINE)
    if section and (
        found := re.search(rf"^\s+{field.name}: (.*?)(?=^\s+\w+: |\Z)", section[1], re.DOTALL | re.MULTILINE)
    ):
        return markdown(found[1])
    return markdown(ABOUT.of(cls.__name__, field.name))


def comments(cls: type) -> dict[str, str]:
    """Return the ``#:`` comments that stand above the fields of a class."""
    found: dict[str, str] = {}
    said: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if line.strip().startswith("#:"):
            said.append(line.strip().removeprefix("#:").strip())
            continue
        if said and (match := re.match(r"\s+(\w+):", line)):
            found[match[1]] = " ".join(said)
        said = []
    return found


def options(cls: type) -> str:
    """Return the table of a class's options."""
    rows = []
    for field in fields_of(cls):
        bounds = range_of(field)
        about = described(cls, field)
        rows.append((code(key_of(field)), holds(field), default_of(field), f"{about} ({bounds})" if bounds else about))
    return table(("Key", "Holds", "Default", "Means"), rows) if rows else "It has no options.\n"


def enumeration(cls: type[Enum]) -> str:
    """Return the table of an enumeration's words."""
    rows = [(code(shown(member)), ABOUT.of(cls.__name__, member.name.lower())) for member in cls]
    return table(("Word", "Means"), rows)


def sections(classes: Iterable[type], *, level: int = 3) -> str:
    """Return one section per class: its name, what it is, and its fields with their types."""
    parts = []
    for cls in classes:
        name = getattr(cls, "kind", cls.__name__)
        rows = [(code(key_of(f)), code(kind_of(f)), default_of(f)) for f in fields_of(cls)]
        body = table(("Field", "Holds", "Default"), rows) if rows else ""
        parts.append(f"{'#' * level} `{name}`\n\n{prose(cls.__doc__, whole=True)}\n\n{body}")
    return "\n".join(parts)


# -- the blocks -------------------------------------------------------------------------------------------------------

MODEL = "selfheal.core.model"


def states() -> str:
    """Every state."""
    return enumeration(named(MODEL, "State"))


def transitions() -> str:
    """Every legal move: first drawn as arrows, then why."""
    moves = named("selfheal.core.machine", "TRANSITIONS")
    width = max(len(state.value) for state in moves)
    arrows = [f"{before.value:<{width}} -> {' '.join(after.value for after in moves[before])}" for before in moves]
    rows = [(code(before.value), code(after.value), why) for before in moves for after, why in moves[before].items()]
    return "```text\n" + "\n".join(arrows) + "\n```\n\n" + table(("From", "To", "When"), rows)


def guards() -> str:
    """Every guard in its order, and who may pass it."""
    passing = {"never": "nobody", "force": "a forced recovery", "override": "named, with scope `admin`"}
    rows = [
        (str(place), code(guard.name), prose(guard.ask.__doc__), passing[guard.passed.value])
        for place, guard in enumerate(named("selfheal.core.guards", "GUARDS"), 1)
    ]
    return table(("Order", "Guard", "Holds when", "Passed by"), rows)


def reasons() -> str:
    """Every reason of a FAILED service."""
    return table(("Reason", "Means"), [(code(reason), ABOUT.of("reasons", reason)) for reason in hold_reasons()])


def hold_reasons() -> list[str]:
    """Return every reason that the code of the core can give a FAILED service, in the order of the sources."""
    folder = Path(str(load("selfheal.core").__file__)).parent
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and re.fullmatch(r"held:[a-z_]+|backoff|escalated", str(node.value)):
                found[str(node.value)] = None
            if isinstance(node, ast.JoinedStr) and ast.unparse(node).strip("f'\"").startswith("waiting-for:"):
                found["waiting-for:<parent>"] = None
    binds = [f"held:{word.value}" for word in named(MODEL, "Binds") if word.value != "silence"]
    return sorted({*found, *binds}, key=lambda reason: (reason.startswith("held:"), reason))


def words(*names: str) -> Callable[[], str]:
    """Return a block that shows some enumerations of the model, each under its name."""

    def block() -> str:
        parts = [
            f"### {name}\n\n{prose(named(MODEL, name).__doc__)}\n\n{enumeration(named(MODEL, name))}" for name in names
        ]
        return "\n".join(parts)

    return block


def classes(module: str, *names: str) -> Callable[[], str]:
    """Return a block with the options of some classes, each under its name."""

    def block() -> str:
        found = [named(module, name) for name in names]
        return "\n".join(f"### {cls.__name__}\n\n{prose(cls.__doc__, whole=True)}\n\n{options(cls)}" for cls in found)

    return block


def builtin_classes(role: str) -> dict[str, type]:
    """Return kind -> class of what selfheal itself registers for a role: `checks`, `workloads`, …"""
    hook = named("selfheal.builtin", f"selfheal_register_{role}")
    found: dict[str, type] = {}
    for kind, value in hook().items():
        module, _, name = str(value).partition(":")
        found[kind] = value if isinstance(value, type) else named(module, name)
    return found


def kinds(role: str) -> Callable[[], str]:
    """Return a block with one section per builtin class of a role."""

    def block() -> str:
        parts = []
        for kind, cls in builtin_classes(role).items():
            about = prose(_without_attributes(cls.__doc__), whole=True)
            parts.append(f"### `{kind}`\n\nIn Python: `{cls.__module__}.{cls.__name__}`.\n\n{about}\n\n{options(cls)}")
        return "\n".join(parts)

    return block


def _without_attributes(text: str | None) -> str:
    return re.split(r"^\s*Attributes:\s*$", text or "", flags=re.MULTILINE)[0]


def requests() -> str:
    """Every act and query."""
    rows_of: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
    for request in named("selfheal.requests", "TABLE").values():
        parameters = "; ".join(
            f"`{p.name}`{' (required)' if p.required else ''}: {p.about}"
            + (f", one of {', '.join(p.choices)}" if p.choices else "")
            for p in request.parameters
        )
        rows_of[request.act].append(
            (code(request.name), request.about, parameters, code(request.scope.value), request.answer)
        )
    head = ("Name", "What it does", "Parameters", "Scope", "Answer")
    acts = "### Acts\n\nEach has an `actor` and a `reason` beside its parameters.\n\n" + table(head, rows_of[True])
    return "### Queries\n\n" + table(head, rows_of[False]) + "\n" + acts


def alert_rules() -> str:
    """Every rule that opens an alert, with its severity."""
    rules = [("a service", named("selfheal.core.alerts", "SERVICE_RULES"))]
    rules.append(("the fleet", named("selfheal.core.alerts", "FLEET_RULES")))
    rows = [
        (code(rule), about, code(severity.value), ABOUT.of("alert_rules", rule))
        for about, table_ in rules
        for rule, severity in table_.items()
    ]
    return table(("Rule", "About", "Severity", "Open while"), rows)


def records() -> str:
    """Every kind of record."""
    return sections(named("selfheal.core.records", "RECORDS").values())


def events() -> str:
    """Every event of the engine."""
    return sections(typing.get_args(named("selfheal.core.messages", "Event")))


def commands() -> str:
    """Every command of the engine."""
    return sections(typing.get_args(named("selfheal.core.messages", "Command")))


def errors() -> str:
    """The tree of errors, then each of them."""
    module = load("selfheal.errors")
    tree = (module.__doc__ or "").split("\n\n")[1]
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Exception)]
    parts = [f"### {cls.__name__}\n\n{prose(cls.__doc__, whole=True)}\n" for cls in found]
    return f"```text\n{tree}\n```\n\n" + "\n".join(parts)


def hooks() -> str:
    """Every hook with its signature."""
    parts = []
    for name, function in hook_functions().items():
        signature = str(inspect.signature(function)).replace("'", "")
        parts.append(f"### {name}\n\n```python\n{name}{signature}\n```\n\n{prose(function.__doc__, whole=True)}\n")
    return "\n".join(parts)


def hook_functions() -> dict[str, Any]:
    """Return the hooks by name."""
    found = {name: value for name, value in vars(load("selfheal.hookspecs")).items() if name.startswith("selfheal_")}
    if not found:
        raise Absent("selfheal.hookspecs has no hook")
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


def interfaces() -> str:
    """What a plugin class is, and what it is given."""
    module = load("selfheal.plugins")
    found = [v for v in vars(module).values() if getattr(v, "_is_protocol", False) and v.__module__ == module.__name__]
    parts = []
    for cls in found:
        rows = []
        for name, value in vars(cls).items():
            if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
                continue
            function: Any = value.fget if isinstance(value, property) else value
            sign = (
                ""
                if isinstance(value, property)
                else str(inspect.signature(function)).replace("'", "").replace("self, ", "")
            )
            rows.append(
                (code(f"{'async ' if inspect.iscoroutinefunction(function) else ''}{name}{sign}"), prose(value.__doc__))
            )
        about = prose(cls.__doc__, whole=True)
        parts.append(f"### {cls.__name__}\n\n{about}\n\n" + (table(("Member", "What it is"), rows) if rows else ""))
    return "\n".join(parts)


def wire() -> str:
    """The names of the author's side of wire checks."""
    return names_of("selfheal.wire")


def testing() -> str:
    """The public names of the testing kit, one section for each of its modules."""
    parts = []
    for name, module in testing_modules().items():
        about = prose(module.__doc__)
        parts.append(f"### {name}\n\n{about}\n\n{names_of(name)}")
    return "\n".join(parts)


def testing_modules() -> dict[str, types.ModuleType]:
    """Return the modules of the testing kit that define public names."""
    package = load("selfheal.testing")
    found = {part.name: load(part.name) for part in pkgutil.iter_modules(package.__path__, "selfheal.testing.")}
    return {name: module for name, module in found.items() if public_names(module)}


def library() -> str:
    """The public names of the package."""
    return names_of("selfheal")


def names_of(module_name: str) -> str:
    """Return a table of a module's public names, and one of the methods of each class that is more than data."""
    module = load(module_name)
    public = public_names(module)
    rows, methods = [], []
    for name in public:
        value = getattr(module, name)
        doc = value.__doc__ if isinstance(value, (type, types.FunctionType, types.ModuleType)) else ""
        rows.append((code(name), prose(doc) or ABOUT.of(module_name, name)))
        if (
            isinstance(value, type)
            and not issubclass(value, (Enum, Exception))
            and not getattr(value, "_is_protocol", False)
        ):
            methods += list(_methods(name, value))
    if not rows:
        raise Absent(f"{module_name} has no public name")
    return table(("Name", "What it is"), rows) + ("\n" + table(("Method", "What it does"), methods) if methods else "")


def public_names(module: types.ModuleType) -> list[str]:
    """Return what a module offers: its `__all__`, or else the public classes and functions it defines itself."""
    return list(getattr(module, "__all__", ())) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]


def signature_of(function: Callable[..., Any]) -> str:
    """Return a signature as text; the members of a set in it are sorted, for their order differs from run to run."""
    text = str(inspect.signature(function)).replace("'", "")
    return re.sub(r"\{([a-z_, ]+)\}", lambda match: "{" + ", ".join(sorted(match[1].split(", "))) + "}", text)


def _methods(owner: str, cls: type) -> Iterator[tuple[str, str]]:
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        sign = signature_of(function).replace("(self, ", "(").replace("(self)", "()")
        asynchronous = "async " if inspect.iscoroutinefunction(function) else ""
        yield code(f"{asynchronous}{owner}.{name}{sign}"), prose(value.__doc__)


def cli() -> str:
    """Every command, its arguments and options."""
    parts = []
    for path, command in cli_commands().items():
        rows = []
        for parameter in command.params:
            spelled = ", ".join([*parameter.opts, *parameter.secondary_opts])
            is_option = parameter.param_type_name == "option"
            about = getattr(parameter, "help", None) or ("" if is_option else "an argument")
            if not about:
                about = ABOUT.of(f"selfheal {path}", parameter.name or "")
            rows.append((code(spelled if is_option else (parameter.name or "").upper()), about))
        text = markdown(inspect.cleandoc(command.help or command.short_help or ""))
        parts.append(f"### `selfheal {path}`\n\n{text}\n\n" + (table(("Option", "Means"), rows) if rows else ""))
    return "\n".join(parts)


def scenarios() -> str:
    """Every scenario, where its tests are, and on which broken builds they are shown to fail."""
    known = tomllib.loads((DOCS / "_scenarios.toml").read_text("utf-8"))
    tested, builds = scenario_tests(), scenario_builds()
    rows = []
    for number, text in known["scenarios"].items():
        later = known["later"].get(number, "")
        files = sorted({f"`{path}`" for path, _ in tested.get(int(number), ())})
        if bool(later) is bool(files):
            ABOUT.missing.add(
                f"_scenarios.toml, S{number}: "
                + ("it has tests now, so it is not for later" if later else "why no test?")
            )
        red, reason = builds.get(int(number), ()), known["no_build"].get(number, "")
        if bool(red) is bool(reason or later):
            ABOUT.missing.add(
                f"_scenarios.toml, S{number}: "
                + ("it has a broken build now" if red else "on which build do its tests fail? See tests/broken")
            )
        rows.append((f"S{number}", text, ", ".join(files) or f"later: {later}", "; ".join(red) or reason))
    if unknown := sorted(set(tested) - {int(number) for number in known["scenarios"]}):
        ABOUT.missing.add(f"_scenarios.toml has no scenario {unknown}")
    return table(("No", "Then", "Tested in", "Red on"), rows)


def scenario_tests() -> dict[int, list[tuple[str, str]]]:
    """Return the tests that carry the number of a scenario: number -> file and name."""
    found: dict[int, list[tuple[str, str]]] = {}
    root = DOCS.parent
    for path in sorted([*(root / "tests").rglob("test_*.py"), *root.glob("plugins/*/tests/test_*.py")]):
        for match in re.finditer(r"^ *(?:async )?def (test_s(\d+)_\w+)", path.read_text("utf-8"), re.MULTILINE):
            place = path.relative_to(DOCS.parent).as_posix()
            found.setdefault(int(match[2]), []).append((place, match[1]))
    return found


def scenario_builds() -> dict[int, list[str]]:
    """Return the broken builds on which tests of a scenario must fail: number -> names in `tests/broken`."""
    found: dict[int, list[str]] = {}
    for path in sorted((DOCS.parent / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if "@fails_when(" in text else ():
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for call in node.decorator_list if (match := re.match(r"test_s(\d+)_", node.name)) else ():
                if match and isinstance(call, ast.Call) and ast.unparse(call.func) == "fails_when":
                    names = found.setdefault(int(match[1]), [])
                    names += [name for one in call.args if (name := ast.literal_eval(one)) not in names]
    return found


def cli_group() -> click.Group:
    """Return the command line itself; raises `Absent` when it is not there."""
    module = load("selfheal.cli")
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    if not groups:
        raise Absent("selfheal.cli has no click group")
    main = vars(module).get("main")
    return main if isinstance(main, click.Group) else groups[0]


def cli_commands() -> dict[str, Any]:
    """Return every command by the words after `selfheal`, groups opened."""
    found: dict[str, Any] = {}

    def open_up(one: click.Group, path: str) -> None:
        for name in one.list_commands(click.Context(one)):
            command = one.get_command(click.Context(one), name)
            if command is None or command.hidden:
                continue
            found[f"{path}{name}"] = command
            if isinstance(command, click.Group):
                open_up(command, f"{path}{name} ")

    open_up(cli_group(), "")
    return found


BLOCKS: Mapping[str, Callable[[], str]] = {
    "states": states,
    "transitions": transitions,
    "guards": guards,
    "reasons": reasons,
    "check_words": words("Verdict", "Cause"),
    "workload_words": words("Run"),
    "action_words": words("Effect", "Settled"),
    "alert_rules": alert_rules,
    "alert_words": words("Severity", "Phase", "Binds"),
    "policy": classes(MODEL, "Policy", "Backoff", "Budget", "Window", "Dependency", "Step"),
    "fleet": classes(MODEL, "Limits", "Canary"),
    "fleet_table": classes("selfheal.config.build", "FleetTable"),
    "notifier_table": classes("selfheal.core.routing", "Route"),
    "maintenance_table": classes("selfheal.calendar", "MaintenanceWindow"),
    "routes": classes("selfheal.core.routing", "Route"),
    "tls": classes("selfheal.wire", "Tls", "Target"),
    "checks": kinds("checks"),
    "workloads": kinds("workloads"),
    "actions": kinds("actions"),
    "notifiers": kinds("notifiers"),
    "requests": requests,
    "records": records,
    "events": events,
    "commands": commands,
    "errors": errors,
    "hooks": hooks,
    "interfaces": interfaces,
    "wire": wire,
    "testing": testing,
    "library": library,
    "cli": cli,
    "scenarios": scenarios,
}
"""Every block a page may ask for."""


# -- writing ----------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    """Return every page."""
    return sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)


def rendered(text: str) -> tuple[str, list[str]]:
    """Return a page with its blocks made anew, and what is missing for that."""
    missing: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        try:
            body = BLOCKS[name]()
        except KeyError:
            missing.append(f"there is no block {name}")
        except Absent as problem:
            missing.append(f"{name}: {problem}")
        else:
            return f"{match[1]}\n{body.strip()}\n\n{match[4]}"
        return match[0]

    return BLOCK.sub(replace, text), missing


def generate(*, check: bool) -> list[str]:
    """Make every page anew; with `check` only compare. Return what is wrong."""
    problems: list[str] = []
    for path in pages():
        before = path.read_text("utf-8")
        after, missing = rendered(before)
        problems += [f"{path.name}: {one}" for one in missing]
        if after == before:
            continue
        if check:
            difference = difflib.unified_diff(
                before.splitlines(), after.splitlines(), "committed", "from the code", lineterm=""
            )
            problems.append(f"{path.relative_to(DOCS)} is not what the code says; run: python docs/_generate.py")
            problems += list(difference)[:40]
        else:
            path.write_text(after, "utf-8")
    problems += [f"_about.toml: say what this is: {one}" for one in sorted(ABOUT.missing)]
    if not any(" is not there" in one for one in problems):
        problems += [f"_about.toml: this is not there: {one}" for one in sorted(ABOUT.unused())]
    return problems


if __name__ == "__main__":
    found = generate(check="--check" in sys.argv[1:])
    sys.stdout.write("".join(f"{line}\n" for line in found))
    sys.exit(1 if found else 0)
