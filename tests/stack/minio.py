"""A MinIO of the tests: one process of the real server on ports and drives of its own.

Built from source, see `tests.stack.built`. With several drives it keeps objects with erasure code, as a cluster does:
of four, three must be there to write and two to read.
"""

from __future__ import annotations

import http.client
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.servers import free_ports, until
from tests.stack.built import built
from tests.stack.child import Child
from tests.stack.running import Program

USER = "steward"
PASSWORD = "sesame-open-sesame"  # of a server that lives for one test


class Minio(Child):
    """One MinIO. `drives` are folders; by default one, so that there is no erasure code."""

    def __init__(self, folder: Path, *, drives: int = 1) -> None:
        self.program = built("minio") / "minio"
        self.folder = folder
        self.drives = [folder / f"drive{number}" for number in range(1, drives + 1)]
        self.endpoints: list[str] = []
        """The drives of all nodes as URLs, where this is one of several; its own drives otherwise."""
        self.port = free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self.password = PASSWORD
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, *options: str, **environment: str) -> None:
        """Start it, with more options and environment, and do not wait."""
        self._process = self.serving(*options, **environment).begin(self.folder / "log")

    def serving(self, *options: str, **environment: str) -> Program:
        """Return the server as a program; its drives are made."""
        for drive in self.drives:
            drive.mkdir(parents=True, exist_ok=True)
        known = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "MINIO_ROOT_USER": USER,
            "MINIO_ROOT_PASSWORD": self.password,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "1",  # else several drives on the disk of the system are refused
            "_MINIO_SERVER_LOCAL": f"127.0.0.1:{self.port}",  # inside a container it would wait for another address
        }
        ours = ["server", "--quiet", "--address", f"127.0.0.1:{self.port}", "--certs-dir", str(self.folder / "certs")]
        return Program(
            arguments=(str(self.program), *ours, *options, *(self.endpoints or map(str, self.drives))),
            environment=known | environment,
            cwd=self.folder,
        )

    def start(self, *options: str, **environment: str) -> None:
        """Start it, and wait until it says that it can be written."""
        self.begin(*options, **environment)
        until(lambda: self.ask("/minio/health/cluster")[0] == 200, "MinIO can be written", 30.0)

    def ask(self, path: str, method: str = "GET") -> tuple[int, Mapping[str, str]]:
        """Return status and headers of an answer; status 0 where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            answer.read()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()
