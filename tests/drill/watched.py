"""selfheal as it is installed: `selfheal run FILE` as a process, with a state_dir of its own, watching the hub.

The drill learns what it does as a person would, over the control socket. The policies are those of KnowledgeHub's table
(priorities, retries, ladders, thresholds) with shorter spans; what was shortened, and what was lifted because a drill
breaks more in an hour than a year brings, stands in `FLEET` and `SHORTENED`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Self

import attrs
from tests.drill.hosts import Host
from tests.drill.servers import APPLICATION
from tests.servers import free_port, until

from selfheal.control import Question, call
from selfheal.errors import SelfhealError

FLEET = """\
[fleet]
name = "drill"
state_dir = "{state}"
plugins = {plugins}
interval = "2s"
timeout = "1900ms"
recheck = "500ms"
min_failing_span = "1s"
definite_span = "300ms"
suspicion_threshold = 0
approval_timeout = "2s"
probation = "2s"
dependent_grace = "3s"
slow_retry = "4s"
budgets = [{{ limit = 1000, per = "1h" }}]
flapping = [{{ limit = 1000, per = "1h" }}]
budget_floor = 1000
storm_window = "10s"
late_after = "1s"

[canaries.loopback]
check = {{ kind = "tcp", address = "127.0.0.1:{canary}" }}
interval = "1s"
timeout = "900ms"
"""

RESTART = '{ action = "restart", settle = "500ms" }'
RECONNECT = '{ action = "reconnect", timeout = "3s", settle = "500ms" }'


@attrs.frozen(kw_only=True)
class Shortened:
    """What KnowledgeHub's table says of a service, and the first delay and start-up grace the drill gives it."""

    priority: str
    retries: int
    ladder: tuple[str, ...]
    threshold: int
    first_delay: str
    grace: str
    check: str
    more: str = ""


SHORTENED: Mapping[str, Shortened] = {
    "database": Shortened(
        priority="high",
        retries=3,
        ladder=(RECONNECT, RESTART),
        threshold=2,
        first_delay="1s",
        grace="4s",
        check='{ kind = "postgres", url = { env = "DATABASE_URL" }, expect = "primary", exhausted = "failing" }',
    ),
    "redis": Shortened(
        priority="medium",
        retries=3,
        ladder=(RECONNECT, RESTART, '{ action = "reset_cache", pattern = "cache:*" }'),
        threshold=2,
        first_delay="500ms",
        grace="2s",
        check='{ kind = "redis", url = { env = "REDIS_URL" } }',
    ),
    "weaviate": Shortened(
        priority="high",
        retries=2,
        ladder=(RESTART,),
        threshold=3,
        first_delay="1s",
        grace="15s",
        check='{ kind = "weaviate", url = { env = "WEAVIATE_URL" } }',
        more="deep = true",
    ),
    "neo4j": Shortened(
        priority="medium",
        retries=2,
        ladder=(RESTART,),
        threshold=3,
        first_delay="2s",
        grace="25s",
        check=(
            '{ kind = "neo4j", uri = "%NEO4J_URI%", user = "selfheal", password = { env = "NEO4J_PASSWORD" }, '
            "keep = false }"
        ),
    ),
    "minio": Shortened(
        priority="low",
        retries=2,
        ladder=(RESTART,),
        threshold=2,
        first_delay="1s",
        grace="4s",
        check=(
            '{ kind = "minio", url = "http://%MINIO_ENDPOINT%", bucket = "drill", '
            'access_key = { env = "MINIO_ACCESS_KEY" }, secret_key = { env = "MINIO_SECRET_KEY" } }'
        ),
        more="deep = true",
    ),
}

SERVICE = """
[services.{name}]
priority = "{one.priority}"
max_retries = {one.retries}
failure_threshold = {one.threshold}
backoff = {{ initial = "{one.first_delay}", cap = "4s", forget_after = "3s" }}
start_grace = "{one.grace}"
check = {check}
workload = {workload}
recovery_actions = [{ladder}]
{one.more}
"""

API = """
[services.{name}]
check = {{ kind = "http", url = "http://127.0.0.1:{port}/health" }}
workload = {workload}
depends_on = {needs}
failure_threshold = 3
start_grace = "5s"
backoff = {{ initial = "1s", cap = "4s", forget_after = "3s" }}
recovery_actions = [{restart}]
"""


class Watched:
    """A daemon of selfheal that watches servers and their application."""

    def __init__(self, host: Host, environment: Mapping[str, str], names: tuple[str, ...], port: int | None) -> None:
        self.folder = host.folder
        self.state = self.folder / "state"
        self.file = self.folder / "selfheal.toml"
        self.canary = free_port()
        self.names = names
        self._environment = {**os.environ, "HOME": str(self.folder), **environment, **host.environment()}
        self._process: subprocess.Popen[bytes] | None = None
        kinds = {"database": "postgres"}
        plugins = [kinds.get(name, name) for name in names]
        quoted = ", ".join(f'"{name}"' for name in [*plugins, host.plugin])
        text = FLEET.format(state=self.state, plugins=f"[{quoted}]", canary=self.canary)
        for name in names:
            one = SHORTENED[name]
            check = one.check
            for key, value in environment.items():
                check = check.replace(f"%{key}%", value)
            ladder = ", ".join(one.ladder)
            text += SERVICE.format(name=name, one=one, check=check, workload=host.workload(name), ladder=ladder)
        if port is not None:
            needs = "[" + ", ".join(f'"{name}"' for name in names) + "]"
            workload = host.workload(APPLICATION)
            text += API.format(name=APPLICATION, port=port, workload=workload, needs=needs, restart=RESTART)
        self.file.write_text(text, "utf-8")

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "selfheal", "run", str(self.file)]
        with (self.folder / "selfheal.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            until(lambda: self.ended() or self.all_well(), f"all is well; see {self.folder}/selfheal.log", 90.0)
            assert not self.ended(), (self.folder / "selfheal.log").read_text("utf-8")[-3000:]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ended(self) -> bool:
        """Whether the daemon has ended, which it never should."""
        return self._process is None or self._process.poll() is not None

    def ask(self, request: str, **parameters: Any) -> Any:
        """Ask the daemon over its control socket. Raises SelfhealError."""
        return call(self.state / "control.sock", Question(request=request, parameters=parameters))

    def states(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what the daemon says of each service; empty while nobody answers."""
        try:
            return {line["service"]: line for line in self.ask("status")["services"]}
        except SelfhealError:
            return {}

    def is_(self, service: str, state: str, reason: str = "") -> bool:
        """Whether a service is in a state, and for a reason that begins so."""
        line = self.states().get(service, {})
        return line.get("state") == state and str(line.get("reason") or "").startswith(reason)

    def all_well(self) -> bool:
        """Whether every service is healthy, nobody is on probation, and no hold, incident or alert is open."""
        lines = self.states()
        if not lines or any(line["state"] != "healthy" or line["probation"] for line in lines.values()):
            return False
        if self.ask("status")["holds"] or self.ask("alerts"):
            return False
        return not any(one["open"] for one in self.ask("incidents", open=True))

    def history(self, after: int) -> list[dict[str, Any]]:
        """Return the records after a sequence number, oldest first."""
        found: list[dict[str, Any]] = self.ask("records", after=after, limit=1000)
        return found

    def last(self) -> int:
        """Return the sequence number of the last record."""
        newest = self.ask("history", limit=1)
        return int(newest[0]["seq"]) if newest else 0


def unix(record: Mapping[str, Any]) -> float:
    """Return the UNIX time of a record."""
    return datetime.fromisoformat(record["time"]).timestamp()


def waited(true: Callable[[], Any], seconds: float, every: float = 0.1) -> bool:
    """Whether it became true within so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
