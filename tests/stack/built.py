"""Servers that no package of Debian brings: built once from their public source, and kept.

What was built stands in the user's cache directory under name and version (`selfheal-tests/minio-…`), made in a folder
beside it and renamed, so that it is whole or not there; a lock lets one process build while the others wait. A build
needs Go, or Maven and Java, and their registries. Where they are missing the test is skipped and says which, or fails
if SELFHEAL_REQUIRE asks for the server, as with the servers that are packages (`tests.servers.program_of`).

`python -m tests.stack.built` builds ahead, with nothing but Python's standard library; cold, minio and weaviate take
about 3 minutes each on two cores, compose half of that, neo4j 11 s.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LONGEST_BUILD = 1500.0
"""Seconds after which a build is given up."""

NEO4J_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId>
  <artifactId>neo4j</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.neo4j</groupId><artifactId>neo4j</artifactId><version>{version}</version></dependency>
    <dependency><groupId>org.neo4j.app</groupId><artifactId>neo4j-server</artifactId><version>{version}</version></dependency>
  </dependencies>
</project>
"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A server as it is published: what it is built with, and how, into a folder."""

    version: str
    tools: tuple[str, ...]
    build: Callable[[Path, str], None]


def _go(package: str) -> Callable[[Path, str], None]:
    def build(folder: Path, version: str) -> None:
        _run(["go", "install", f"{package}@{version}"], GOBIN=str(folder))

    return build


def _neo4j(folder: Path, version: str) -> None:
    pom = folder / "pom.xml"
    pom.write_text(NEO4J_POM.format(version=version))
    _run(["mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={folder / 'lib'}"])


SOURCES = {
    "compose": Source(version="v2.32.4", tools=("go",), build=_go("github.com/docker/compose/v2/cmd")),
    "minio": Source(version="v0.0.0-20260212201848-7aac2a2c5b7c", tools=("go",), build=_go("github.com/minio/minio")),
    "weaviate": Source(version="v1.35.2", tools=("go",), build=_go("github.com/weaviate/weaviate/cmd/weaviate-server")),
    "neo4j": Source(version="5.26.0", tools=("mvn", "java"), build=_neo4j),
}


def built(server: str) -> Path:
    """Return the folder with the built server, building it now if it is not there.

    The test is skipped, or fails where SELFHEAL_REQUIRE asks for this server, when a tool is missing or a build fails.
    """
    # Here, because whoever builds ahead may have neither: CI does it before there is a virtual environment.
    import pytest
    from tests.servers import program_of

    folder = place(server)
    if not folder.is_dir():
        for tool in SOURCES[server].tools:
            program_of(server, tool)
        if problem := build(server):
            required = server in os.environ.get("SELFHEAL_REQUIRE", "").split(",")
            (pytest.fail if required else pytest.skip)(f"{server} could not be built: {problem}")
    return folder


def place(server: str) -> Path:
    """Return where the built server stands, or would stand."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "selfheal-tests" / f"{server}-{SOURCES[server].version}"


def build(server: str) -> str:
    """Build a server unless it is there; return what went wrong, or nothing."""
    folder, source = place(server), SOURCES[server]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return ""
        unfinished = Path(tempfile.mkdtemp(prefix=f"{server}-", suffix=".part", dir=folder.parent))
        try:
            source.build(unfinished, source.version)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        except subprocess.CalledProcessError as problem:
            said = [line for line in str(problem.output).splitlines() if line.strip()]
            return said[-1] if said else str(problem)
        except (OSError, subprocess.TimeoutExpired) as problem:
            return str(problem)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return ""


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], **environment: str) -> None:
    """Run a build at low priority; what it says is kept for the error."""
    nice = shutil.which("nice")
    subprocess.run(
        [nice, "-n", "10", *command] if nice else command,
        env={**os.environ, **environment},
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LONGEST_BUILD,
    )


if __name__ == "__main__":
    troubles = {name: build(name) for name in sys.argv[1:] or SOURCES}
    for name, trouble in troubles.items():
        print(f"{name}: {trouble or place(name)}")
    sys.exit(any(troubles.values()))
