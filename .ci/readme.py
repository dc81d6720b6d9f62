"""Print one of the two set-up commands of the README, so that CI types what a stranger types.

Usage: ``readme.py run`` (the main job on an embedded default) or ``readme.py tests``. Standard library only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def commands() -> dict[str, str]:
    """Return the commands between the README's markers: `run` and `tests`."""
    text = README.read_text("utf-8")
    found = re.findall(r"<!-- command: (\w+) -->\n+```(?:console|bash|sh)\n(.+?)\n```", text, re.DOTALL)
    return {name: block.strip() for name, block in found}


if __name__ == "__main__":
    sys.stdout.write(commands()[sys.argv[1]] + "\n")
