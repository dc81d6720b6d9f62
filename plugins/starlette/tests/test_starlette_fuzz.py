"""schemathesis over the OpenAPI document, against a real server: with every right, and with none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.stack.starlette import MANY, Served, api, settled

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

SETTINGS = """
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "414", "415", "429", "431"]
"""


def document(served: Served) -> dict[str, Any]:
    """Return the document, without the one rule that a schema cannot say: `service_name` is that of the path."""
    found: dict[str, Any] = served.get("/openapi.json").json()
    for methods in found["paths"].values():
        for operation in methods.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                content["schema"]["properties"].pop("service_name", None)
    return found


def fuzz(served: Served, folder: Path, *options: str) -> None:
    """Run it over every route but the stream, which has no end, and show what it finds."""
    (folder / "openapi.json").write_text(json.dumps(document(served)))
    (folder / "schemathesis.toml").write_text(SETTINGS)
    line = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", "openapi.json"]
    line += ["--url", served.base, "--checks", "all", "--exclude-checks", "ignored_auth", "--exclude-path", "/events"]
    line += ["--max-examples", "15", "--seed", "1", "--no-color", "--suppress-health-check", "all", *options]
    run = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    told = "\n".join(line[:300] for line in f"{run.stdout}{run.stderr}".splitlines())
    assert run.returncode == 0, told[-8000:]
    assert "generated" in told, told[-2000:]


def test_nothing_is_found_with_every_right(tmp_path: Path) -> None:
    with api(tmp_path, rates=MANY) as served:
        token = served.token("fuzzer", "admin")
        settled(served, **token)
        fuzz(served, tmp_path, "--header", f"Authorization: {token['Authorization']}")
        assert served.get("/health").status_code == 200


def test_nothing_is_found_without_any(tmp_path: Path) -> None:
    with api(tmp_path, rates=MANY) as served:
        reader = served.token("somebody else", "admin")
        fuzz(served, tmp_path)
        assert served.get("/audit", headers=reader).json()["records"] == []
