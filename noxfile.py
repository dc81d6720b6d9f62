"""The house's chores, each one command: ``nox -s lint``, ``nox -s tests-3.12``, ``nox -s docs``, …

Nothing is written twice: the Pythons come from the classifiers, the lowest versions from the dependencies, and what a
session installs from the dependency groups of pyproject.toml.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
RUNNING: dict[str, str] = runpy.run_path(str(ROOT / ".ci" / "pythons.py"))["running"]()
OLDEST = next(iter(RUNNING))
# Interpreters that a version switcher keeps off the PATH: put them where nox looks.
os.environ["PATH"] = os.pathsep.join([*(str(Path(p).parent) for p in RUNNING.values()), os.environ["PATH"]])

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "typing", f"tests-{OLDEST}", "docs"]
nox.options.error_on_missing_interpreters = True
nox.options.reuse_existing_virtualenvs = True


def group(session: nox.Session, name: str, *more: str) -> None:
    """Install the project, its plugins and one dependency group, resolved by nox so that an old pip will do."""
    session.install("-e", ".", "-r", "plugins/all.txt", *nox.project.dependency_groups(PROJECT, name), *more)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Style, and the shape of the code: ruff's rules and its formatting."""
    session.install(*(tool for tool in nox.project.dependency_groups(PROJECT, "dev") if tool.startswith("ruff")))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=OLDEST)
def typing(session: nox.Session) -> None:
    """Check every type, strictly."""
    group(session, "typing")
    session.run("mypy", *session.posargs)


@nox.session(python=list(RUNNING))
def tests(session: nox.Session) -> None:
    """Run the tests on one Python; arguments after ``--`` go to pytest."""
    group(session, "tests")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=OLDEST)
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest version of every dependency that pyproject.toml allows."""
    extras = PROJECT["project"].get("optional-dependencies", {})
    declared = [*PROJECT["project"]["dependencies"], *(need for needs in extras.values() for need in needs)]
    for path in sorted((ROOT / "plugins").glob("*/pyproject.toml")):
        plugin = nox.project.load_toml(path)["project"]
        declared += plugin["dependencies"]
    lowest = sorted({f"{name}=={version}" for name, version in map(_lowest, declared) if version})
    constraints = Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("\n".join(lowest) + "\n", "utf-8")
    session.log("lowest: %s", " ".join(lowest))
    group(session, "tests", "-c", str(constraints))
    session.run("python", "-m", "pytest", *(session.posargs or ["-m", "not real_time and not slow"]))


def _lowest(requirement: str) -> tuple[str, str]:
    """Return (name, lowest version) of ``name[extra]>=version``; our own plugins, named without one, have none."""
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:>=\s*([0-9][^,;\s]*))?", requirement)
    assert match is not None, requirement
    return match[1], match[2] or ""


@nox.session(python=OLDEST)
def coverage(session: nox.Session) -> None:
    """Every branch of the core, each module by its own tests; no line is covered by accident from elsewhere."""
    group(session, "tests")
    files = sorted((ROOT / "src/selfheal/core").glob("*.py"))
    modules = [path.stem for path in files if re.search(r"^\s*def ", path.read_text("utf-8"), re.MULTILINE)]
    wanted = session.posargs or modules
    short: list[str] = []
    for module in wanted:
        own = sorted((ROOT / "tests/core").glob(f"test_{module}*.py"))
        if not own:
            short.append(f"{module}: has no tests/core/test_{module}*.py")
            continue
        data = str(Path(session.create_tmp()) / f"{module}.coverage")
        env = {"COVERAGE_FILE": data}
        session.run("coverage", "erase", env=env, silent=True)
        session.run("coverage", "run", "-m", "pytest", "-q", *map(str, own), env=env)
        session.run("coverage", "combine", "--quiet", env=env, silent=True, success_codes=[0, 1])
        # All modules are measured before the session fails, so that one run shows all that is missing.
        show = ["coverage", "report", "--include", f"*/selfheal/core/{module}.py"]
        report = session.run(*show, env=env, success_codes=[0, 1, 2], silent=True)
        session.log("%s", report)
        if not re.search(r"^TOTAL.*\b100%$", str(report), re.MULTILINE):
            short.append(f"{module}: not every branch is covered by {', '.join(path.name for path in own)}")
    if short:
        session.error("\n".join(["coverage of the core is short of 100 %:", *short]))


@nox.session(python=OLDEST)
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    group(session, "docs")
    session.run("python", "docs/_generate.py", "--check")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session(python=OLDEST)
def reference(session: nox.Session) -> None:
    """Write the tables of ``docs/reference/`` anew from the code."""
    group(session, "docs")
    session.run("python", "docs/_generate.py", *session.posargs)


@nox.session(python=OLDEST)
def stories(session: nox.Session) -> None:
    """Run the stories only; ``nox -s stories -- --rewrite-stories`` writes what now happens into them."""
    group(session, "tests")
    session.run("python", "-m", "pytest", "tests/core/test_stories.py", *session.posargs)


@nox.session(python=OLDEST)
def plugins(session: nox.Session) -> None:
    """Test every plugin distribution (or the one named after ``--``) with its own tests."""
    folders = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    chosen = [folder for folder in folders if not session.posargs or folder.name in session.posargs]
    if not chosen:
        session.skip("there is no plugin distribution here")
    group(session, "tests")
    for folder in chosen:
        session.run("python", "-m", "pytest", str(folder / "tests"))


@nox.session(python=OLDEST)
def changelog(session: nox.Session) -> None:
    """Show the changelog that the fragments make."""
    session.install(*(tool for tool in nox.project.dependency_groups(PROJECT, "dev") if tool.startswith("towncrier")))
    session.run("towncrier", "build", "--draft", "--version", "next")


if __name__ == "__main__":
    sys.exit("run me with nox: python -m nox")
