"""How the documentation is built: Sphinx, MyST, furo; nothing is fetched, and a warning is an error."""

from __future__ import annotations

import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]

project = "selfheal"
author = "The selfheal maintainers"
copyright = "The selfheal maintainers"  # noqa: A001  # the name Sphinx wants
release = version = _project["version"]

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True
# The generated pages show signatures and fragments of other people's syntax.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"selfheal {release}"
html_copy_source = False
