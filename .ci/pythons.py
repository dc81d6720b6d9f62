"""Which Pythons take part: those of the classifiers in pyproject.toml that really run on this machine.

Printed as ``3.11 /path/to/python3.11``, one a line. A name on the PATH is not enough: version switchers leave stubs
that only print an error, so each candidate is asked for its version. Standard library only; the noxfile loads it too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "import ensurepip, sqlite3, ssl, sys, venv; print('%d.%d' % sys.version_info[:2], sys.executable)"


def declared() -> list[str]:
    """Return the Python versions that pyproject.toml claims, oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = [line.removeprefix("Programming Language :: Python :: ") for line in project["classifiers"]]
    return sorted((v for v in found if v.startswith("3.")), key=lambda v: int(v.partition(".")[2]))


def candidates(version: str) -> Iterator[str]:
    """Yield paths that may be this Python: the PATH first, then the folders version switchers install into."""
    for place in os.environ.get("PATH", "").split(os.pathsep):
        yield str(Path(place, f"python{version}"))
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    uv = Path.home() / ".local/share/uv/python"
    for root, pattern in ((pyenv, f"{version}.*"), (uv, f"cpython-{version}.*")):
        for folder in sorted(root.glob(pattern), reverse=True):
            yield str(folder / "bin" / f"python{version}")


def executable(path: str, version: str) -> str | None:
    """Return the interpreter behind `path`, if it starts, is this version, and can make virtual environments."""
    if shutil.which(path) is None:
        return None
    question = [path, "-c", QUESTION]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603  # found by us
    except (OSError, subprocess.TimeoutExpired):
        return None
    claimed, _, real = answer.stdout.strip().partition(" ")
    return real if answer.returncode == 0 and claimed == version else None


def running() -> dict[str, str]:
    """Return version -> path of the declared Pythons that run here."""
    found: dict[str, str] = {}
    for version in declared():
        real = next(filter(None, (executable(path, version) for path in candidates(version))), None)
        if real is not None:
            found[version] = real
    return found


if __name__ == "__main__":
    for version, path in running().items():
        sys.stdout.write(f"{version} {path}\n")
