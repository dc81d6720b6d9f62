"""No plugin of ours escapes the duties: each is held to them, and none of them is left out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from selfheal import builtin
from selfheal.testing import conformance

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("test_conformance_*s.py"))
REGISTERED = sorted(
    address.rpartition(":")[2]
    for kind in ("checks", "workloads", "actions", "notifiers")
    for address in getattr(builtin, f"selfheal_register_{kind}")().values()
)
DUTIES = {name for one in vars(conformance).values() for name in dir(one) if name.startswith("test_")}


def calls(tree: ast.AST) -> set[str]:
    """Return the names of what is called in a file."""
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


@pytest.mark.parametrize("name", REGISTERED)
def test_every_plugin_of_ours_is_held_to_its_duties(name: str) -> None:
    made = set().union(*(calls(ast.parse(path.read_text("utf-8"))) for path in FILES))
    assert name in made, f"no class of {', '.join(path.name for path in FILES)} makes a {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_duty_is_skipped_or_put_in_another_s_place(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    for one in ast.walk(tree):
        if isinstance(one, ast.ClassDef):
            names = {part.name for part in one.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
            names |= {
                target.id
                for part in one.body
                if isinstance(part, ast.Assign)
                for target in part.targets
                if isinstance(target, ast.Name)
            }
            assert not names & DUTIES, f"{one.name} does {names & DUTIES} in its own way"
    passed_over = {"skip", "skipif", "xfail", "importorskip"}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & passed_over
    assert not used, f"{path.name} passes over duties by {used}; say in `inapplicable` what has no meaning, and why"


def test_there_are_duties_and_plugins() -> None:
    assert len(DUTIES) > 20
    assert len(REGISTERED) > 10
    assert len(FILES) == 4
