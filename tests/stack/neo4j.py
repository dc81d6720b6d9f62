"""A Neo4j of the tests: the community server from its published jars, on ports and in a home of its own.

See `tests.stack.built`. Setting the first password is a program of its own that takes 2 s, so it is done once for each
test run and copied.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.servers import free_ports, program_of, until
from tests.stack.built import built
from tests.stack.child import Child
from tests.stack.running import Program

USER = "neo4j"
PASSWORD = "sesame-open-sesame"

_OPENS = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.nio", "java.io", "sun.nio.ch")]

_LOGS = """\
<Configuration status="ERROR" monitorInterval="0">
  <Appenders>
    <Console name="console"><PatternLayout pattern="%d %level %msg%n"/></Console>
  </Appenders>
  <Loggers><Root level="WARN"><AppenderRef ref="console"/></Root></Loggers>
</Configuration>
"""


class Neo4j(Child):
    """One server. `password` is the one that its owner gave it at first."""

    def __init__(self, folder: Path, *, password: str = PASSWORD) -> None:
        self.java = program_of("neo4j", "java")
        self.jars = built("neo4j") / "lib"
        self.home = folder / "home"
        self.password = password
        self.bolt_port = free_ports(2)
        self.http_port = self.bolt_port + 1
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.uri = f"bolt://127.0.0.1:{self.bolt_port}"
        self.settings: dict[str, str] = {}
        """More lines of neo4j.conf."""
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make home, configuration and first password, unless they are there."""
        conf = self.home / "conf"
        fresh = not conf.exists()
        conf.mkdir(parents=True, exist_ok=True)
        settings = {
            "server.default_listen_address": "127.0.0.1",
            "server.bolt.enabled": "true",
            "server.bolt.listen_address": f"127.0.0.1:{self.bolt_port}",
            "server.bolt.advertised_address": f"127.0.0.1:{self.bolt_port}",
            "server.http.enabled": "true",
            "server.http.listen_address": f"127.0.0.1:{self.http_port}",
            "server.https.enabled": "false",
            "server.memory.heap.max_size": "256m",
            "server.memory.pagecache.size": "16m",
            "dbms.usage_report.enabled": "false",
            "db.tx_log.preallocate": "false",
            "db.tx_log.rotation.size": "1m",
        } | self.settings
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (conf / "neo4j.conf").write_text("".join(lines))
        for name in ("server-logs.xml", "user-logs.xml"):
            (conf / name).write_text(_LOGS)
        if fresh:
            admin = "org.neo4j.server.startup.Neo4jAdminCommand"
            self._java(admin, "dbms", "set-initial-password", self.password).begin(self.home / "log").wait(60.0)

    def begin(self) -> None:
        """Start it, and do not wait."""
        self._process = self.serving().begin(self.home / "log")

    def serving(self) -> Program:
        """Return the server as a program; its home is made."""
        self.prepare()
        places = [f"--home-dir={self.home}", f"--config-dir={self.home / 'conf'}"]
        return self._java("org.neo4j.server.CommunityEntryPoint", *places)

    def start(self) -> None:
        """Start it, and wait until it answers a query."""
        self.begin()
        until(lambda: self.ask("RETURN 1")[0] == 202, "Neo4j answers", 90.0)

    def _java(self, entry: str, *arguments: str) -> Program:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "NEO4J_HOME": str(self.home),
            "NEO4J_CONF": str(self.home / "conf"),
        }
        options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_OPENS]
        return Program(
            arguments=(self.java, *options, "-cp", f"{self.jars}/*", entry, *arguments),
            environment=environment,
            cwd=self.home,
        )

    def ask(self, statement: str, database: str = "neo4j", password: str | None = None) -> tuple[int, Any]:
        """Run a statement over HTTP; return the status and the answer, 0 where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10.0)
        try:
            body = json.dumps({"statement": statement})
            connection.request("POST", f"/db/{database}/query/v2", body, self.headers(password))
            answer = connection.getresponse()
            said = answer.read()
            return answer.status, json.loads(said) if said else None
        except (OSError, ValueError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()

    def headers(self, password: str | None = None, user: str = USER) -> dict[str, str]:
        """Return what a request of its owner, or of somebody else or with another password, has for headers."""
        pair = base64.b64encode(f"{user}:{password or self.password}".encode()).decode()
        return {"Authorization": f"Basic {pair}", "Content-Type": "application/json", "Accept": "application/json"}

    def copy_from(self, other: Neo4j) -> None:
        """Begin with the home of another one that does not run, on ports of our own."""
        shutil.copytree(other.home, self.home)
