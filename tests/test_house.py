"""The habits of the house that a machine can look at: sizes, words, docstrings, fragments, one truth in one place."""

from __future__ import annotations

import ast
import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "src" / "selfheal"
CODE = sorted([*HOUSE.rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")])
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

LINES_OF_A_FILE = 600
LINES_OF_A_FUNCTION = 70

FORBIDDEN_NAMES = re.compile(
    r"(?:Manager|Helper|Util|Utils|Handler|Base[A-Z]\w*|\w+Impl)$|^Base[A-Z]|^do_(?![A-Z]+$)|_impl$|_helper$"
)
"""Names that say nothing: what manages, helps, handles or is a base has a name of its own.

`do_GET` is the word of http.server.
"""

FORBIDDEN_FILES = frozenset({"utils", "helpers", "common", "misc", "types", "constants", "base", "exceptions"})


def where(path: Path, node: ast.AST) -> str:
    """Return `path:line`."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every file of the house and of the plugins, parsed."""
    for path in CODE:
        yield path, ast.parse(path.read_text("utf-8"), str(path))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_a_file_holds_one_idea() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in CODE
        if (count := path.read_text("utf-8").count("\n")) > LINES_OF_A_FILE
    }
    assert not long, f"look for the second idea in {long}"


def test_a_function_fits_on_a_screen() -> None:
    long = [
        f"{where(path, one)}: {one.name} has {(one.end_lineno or 0) - one.lineno + 1} lines"
        for path, tree in trees()
        for one in functions(tree)
        if (one.end_lineno or 0) - one.lineno + 1 > LINES_OF_A_FUNCTION
    ]
    assert not long, "\n".join(["", *long])


def test_names_say_what_a_thing_is() -> None:
    wrong = [
        f"{where(path, node)}: {node.name}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and FORBIDDEN_NAMES.search(node.name)
    ]
    wrong += [str(path.relative_to(ROOT)) for path in CODE if path.stem in FORBIDDEN_FILES]
    assert not wrong, "\n".join(["", *wrong])


def test_every_file_says_what_it_owns() -> None:
    assert not [str(path.relative_to(ROOT)) for path, tree in trees() if not ast.get_docstring(tree)]


def test_every_public_class_and_function_has_a_docstring() -> None:
    silent = [
        f"{where(path, node)}: {node.name}"
        for path, tree in trees()
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and _owes_a_docstring(node)
    ]
    assert not silent, "\n".join(["", *silent])


def _owes_a_docstring(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is public, silent, and not an implementation of a hook, which the hook documents."""
    of_a_plugin = any("hookimpl" in ast.unparse(one) for one in node.decorator_list)
    return not (node.name.startswith("_") or of_a_plugin or ast.get_docstring(node))


def test_a_silenced_warning_names_its_rule_and_its_reason() -> None:
    bare = []
    for path in [*CODE, ROOT / "noxfile.py", *(ROOT / "docs").glob("*.py")]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            silenced = re.search(r"#\s*(?:noqa(?!:)|type: ignore(?!\[))", line)
            unexplained = re.search(r"#\s*(?:noqa: [A-Z0-9, ]+|type: ignore\[[\w, -]+\])\s*$", line)
            if silenced or unexplained:
                bare.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not bare, "\n".join(["", "give the rule and, after a second #, the reason:", *bare])


def test_every_module_of_the_core_has_tests_of_its_own() -> None:
    files = {path.stem: ast.parse(path.read_text("utf-8")) for path in (HOUSE / "core").glob("*.py")}
    modules = [name for name, tree in files.items() if any(functions(tree))]
    missing = [name for name in sorted(modules) if not list((ROOT / "tests/core").glob(f"test_{name}*.py"))]
    assert not missing, f"tests/core has no test_<module>*.py for {missing}"


def test_every_distribution_is_typed() -> None:
    roots = [HOUSE, *(path.parent for path in (ROOT / "plugins").glob("*/src/*/__init__.py"))]
    assert not [str(root.relative_to(ROOT)) for root in roots if not (root / "py.typed").exists()]


PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_a_distribution_like_the_others(folder: Path) -> None:
    about = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    name, package = folder.name, f"selfheal_{folder.name}"
    assert about["name"] == f"selfheal-{name}"
    assert about["entry-points"]["selfheal"] == {name: package}
    assert (folder / "src" / package / "__init__.py").exists()
    assert list((folder / "tests").glob("test_*.py"))
    assert len((folder / "README.md").read_text("utf-8").splitlines()) > 20
    for key in ("version", "requires-python", "license", "authors"):
        assert about[key] == PROJECT["project"][key], f"{key} differs from the house's"
    needs = about["dependencies"]
    assert "selfheal-core" in needs
    assert not [need for need in needs if ">=" not in need and not need.startswith("selfheal-")]


def test_every_plugin_is_installed_typed_and_offered_with_the_house() -> None:
    names = [folder.name for folder in PLUGINS]
    installed = re.findall(r"^-e \./plugins/(\S+)$", (ROOT / "plugins/all.txt").read_text("utf-8"), re.MULTILINE)
    assert sorted(installed) == names, "plugins/all.txt"
    typed = PROJECT["tool"]["mypy"]["mypy_path"].split(":")
    assert sorted(typed) == sorted(["src", *(f"plugins/{name}/src" for name in names)]), "mypy_path"
    members = PROJECT["tool"]["uv"]["sources"]
    assert sorted(members) == sorted(["selfheal-core", *(f"selfheal-{name}" for name in names)]), "tool.uv.sources"
    extras = PROJECT["project"]["optional-dependencies"]
    assert {name: extras.get(name) for name in names} == {name: [f"selfheal-{name}"] for name in names}


TYPES = {one["directory"] for one in PROJECT["tool"]["towncrier"]["type"]}


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "changelog.d").iterdir() if path.name != "README.md")
)
def test_a_fragment_of_the_changelog_is_named_and_written_as_agreed(name: str) -> None:
    match = re.fullmatch(r"(?:\d+|\+[a-z0-9-]+)\.([a-z]+)(?:\.\d+)?\.md", name)
    assert match, f"{name}: call it <issue>.<type>.md or +<word>.<type>.md"
    assert match[1] in TYPES, f"{name}: the types are {sorted(TYPES)}"
    text = (ROOT / "changelog.d" / name).read_text("utf-8").strip()
    assert text.endswith("."), f"{name}: write sentences"
    assert "\n\n" not in text, f"{name}: one paragraph"


def test_the_types_of_fragments_are_explained() -> None:
    text = (ROOT / "changelog.d/README.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == TYPES


def test_the_pythons_of_the_chores_are_those_of_the_classifiers() -> None:
    declared = runpy.run_path(str(ROOT / ".ci/pythons.py"))["declared"]()
    assert declared == sorted(declared, key=lambda version: int(version.split(".")[1]))
    assert PROJECT["project"]["requires-python"] == f">={declared[0]}"


def test_every_dependency_has_a_lowest_version() -> None:
    extras = PROJECT["project"].get("optional-dependencies", {})
    needs = [*PROJECT["project"]["dependencies"], *(need for group in extras.values() for need in group)]
    assert not [need for need in needs if ">=" not in need and not need.startswith("selfheal-")]


def test_the_licence_is_the_one_declared() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert text.startswith("MIT License")
    assert PROJECT["project"]["license"] == "MIT"
    assert PROJECT["project"]["authors"][0]["name"].lower() in text.lower()


def test_markers_are_explained_to_contributors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    names = [marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
    assert not [name for name in names if f"`{name}`" not in text]
