"""What the README and the how-to page show is read by the real loader, and is true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfheal.config import check
from selfheal_knowledgehub import health, presets

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "plugins" / "knowledgehub" / "README.md"
PAGE = ROOT / "docs" / "how-to" / "move-from-recovery-json.md"


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield (where, language, text) of each file that the pages show."""
    for path in (README, PAGE):
        text = path.read_text("utf-8")
        for match in re.finditer(r"^```(toml|json)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield f"{path.stem}:{text[: match.start()].count(chr(10)) + 1}", match[1], match[2]


@pytest.mark.parametrize(("where", "language", "text"), list(blocks()), ids=[where for where, _, _ in blocks()])
def test_a_file_in_the_pages_is_read_without_a_problem(where: str, language: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"recovery.{language}"
    file.write_text(text)
    report = check(file)
    assert not report.problems, where
    assert report.configuration is not None
    assert report.configuration.services


ROW = re.compile(
    r"^\| `(\w+)` \| (\w+) \| (\d) \| ([\w, ]+) \| (\d) \| (\d+) s, (\d+) s \| (\d+) s \| container `([\w-]+)` \|$",
    re.MULTILINE,
)


def test_the_table_of_presets_is_what_the_presets_are() -> None:
    known = {
        name: [
            keys["priority"],
            str(keys["max_retries"]),
            ", ".join(keys["recovery_actions"]),
            str(keys["failure_threshold"]),
            f"{keys['backoff']['initial']:g}",
            f"{keys['backoff']['cap']:g}",
            f"{keys['interval']:g}",
            keys["workload"]["container"],
        ]
        for name, keys in presets({}).items()
    }
    assert {name: list(rest) for name, *rest in ROW.findall(README.read_text("utf-8"))} == known


def test_every_variable_is_in_both_tables() -> None:
    text = README.read_text("utf-8")
    named = set(re.findall(r"`([A-Z][A-Z0-9]+_[A-Z_]+)`", text.split("## The variables")[1].split("## ")[0]))
    assert named >= health.EXAMPLES.keys()
    assert {name for name in named if name in PAGE.read_text("utf-8")} >= health.EXAMPLES.keys()
    source = "".join(path.read_text("utf-8") for path in (README.parent / "src").rglob("*.py"))
    assert {name for name in named if f'"{name}"' not in source} == set()
