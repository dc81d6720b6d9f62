"""The real Prometheus: one process of it that scrapes what it is told to, and promtool beside it."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.servers import free_port, program_of, until
from tests.stack.child import Child
from tests.stack.running import Program

PATIENCE = 20.0


def promtool(*arguments: str, said: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end, with `said` as its input."""
    program = program_of("prometheus", "promtool")
    return subprocess.run(
        [program, *arguments], input=said, capture_output=True, text=True, timeout=30, check=False, cwd=cwd
    )


class PrometheusServer(Child):
    """A `prometheus` on loopback that scrapes twice a second."""

    def __init__(self, folder: Path, target: str, *, token: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self._program = program_of("prometheus", "prometheus")
        folder.mkdir(parents=True, exist_ok=True)
        job: dict[str, Any] = {"job_name": "selfheal", "static_configs": [{"targets": [target]}]}
        if token is not None:
            job["authorization"] = {"credentials": token}
        given = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(given))  # JSON is YAML, too

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        program = Program(
            arguments=(
                self._program,
                f"--config.file={self.folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--query.lookback-delta=3s",
            ),
            environment={"PATH": os.environ["PATH"], "HOME": str(self.folder), "GOMAXPROCS": "1"},
            cwd=self.folder,
        )
        self._process = program.begin(self.folder / "log")
        until(self._ready, "Prometheus is ready", PATIENCE)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5.0) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def api(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            return json.load(answer)["data"]

    @property
    def trouble(self) -> str:
        """What the last scrape failed of; nothing where it did not, or was not yet."""
        return "".join(one["lastError"] for one in self.api("targets")["activeTargets"])

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return what an expression is now: label pairs, without job and instance, to values."""
        found = self.api("query", query=expression)["result"]
        hidden = {"job", "instance"}
        return {
            tuple(sorted((k, v) for k, v in one["metric"].items() if k not in hidden)): float(one["value"][1])
            for one in found
        }

    def number(self, expression: str) -> float | None:
        """Return the one value of an expression; None where it has none."""
        values = list(self.query(expression).values())
        assert len(values) < 2, f"{expression} has {len(values)} values"
        return values[0] if values else None

    def becomes(self, expression: str, value: float | None, seconds: float = PATIENCE) -> None:
        """Wait until an expression has a value."""
        until(lambda: self.number(expression) == value, f"{expression} == {value}", seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self.stop()
