"""Real PostgreSQL servers: each in a folder and on a port of its own, run as a user that is not root, ended by pid.

    with Template() as template:            # initdb once
        server = template.server()          # a copy of it
        server.start(max_connections=5)
        assert server.ask("SELECT 1") == "1"
        standby = server.standby()          # by pg_basebackup, streaming
        server.close()

`ask` and `asked` speak to the server with its own psql, so that what it says of itself is proven apart from ours.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import pytest
from tests.servers import free_port, program_of, until
from tests.stack.child import freeze
from tests.stack.running import Program

ADMIN: Final = "postgres"
ADMIN_PASSWORD: Final = "hunter2-admin-81c3"
WATCHER: Final = "watcher"
WATCHER_PASSWORD: Final = "hunter2-watcher-3e9a"
"""A role that may log in and nothing else."""

QUICK: Final[dict[str, Any]] = {
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": 20,
    "max_wal_senders": 5,
    "max_replication_slots": 5,
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_keep_size": "64MB",
    "autovacuum": "off",
    "log_min_messages": "warning",
    "checkpoint_timeout": "1h",
    "wal_receiver_timeout": "10s",
    "wal_retrieve_retry_interval": "200ms",
}
"""Settings under every start, so that hundreds of starts fit into a test run."""


def programs() -> Path:
    """Return the folder of the newest PostgreSQL's programs; skips the test, or fails it where it is required."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda at: int(at.parent.name), reverse=True)
    return Path(program_of("postgres", *(str(folder / "postgres") for folder in folders), "postgres")).parent


def unprivileged() -> dict[str, Any]:
    """Return the arguments of `subprocess` that make root somebody else: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            who = pwd.getpwnam(name)
            return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
    raise AssertionError("no user `postgres` or `nobody` to run the server as")


def run(*command: str | Path, cwd: Path) -> str:
    """Run one of PostgreSQL's programs and return what it says. Raises AssertionError with its complaint."""
    ended: subprocess.CompletedProcess[str] = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=60.0,
        **unprivileged(),
    )
    assert ended.returncode == 0, f"{Path(command[0]).name}: {ended.stderr.strip()[-500:]}"
    return ended.stdout.strip()


def within(data: Path) -> list[int]:
    """Return the processes that live in a data folder: a postmaster and what it has forked, orphans too."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "cwd").readlink() == data:
                    found.append(int(entry.name))
    return found


class Server:
    """One PostgreSQL: a data folder, a port, a folder for its unix socket, and its postmaster while it runs."""

    def __init__(self, template: Template, folder: Path) -> None:
        self.template = template
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._frozen: list[int] = []

    # -- its life ------------------------------------------------------------------------------------------------------

    def begin(self, **settings: Any) -> None:
        """Start it with these settings over ours, and do not wait."""
        self._process = self.serving(**settings).begin(self.log)
        self._pid = self._process.pid

    def serving(self, **settings: Any) -> Program:
        """Return the server as a program, with these settings over ours."""
        who = unprivileged()
        return Program(
            arguments=tuple(self._command(settings)),
            environment={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            cwd=self.folder,
            user=who.get("user"),
            group=who.get("group"),
        )

    def start_apart(self, **settings: Any) -> None:
        """Start it as nobody's child, and wait until it takes connections: what it forks is not counted as ours."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            subprocess.run(
                ["setsid", "--fork", *self._command(settings)],
                check=True,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **unprivileged(),
            )
        until(lambda: self.ready() == 0, f"PostgreSQL takes connections; see {self.log}", 30.0)
        self._pid = int((self.data / "postmaster.pid").read_text().split()[0])

    def _command(self, settings: dict[str, Any]) -> list[str]:
        ours = {
            **QUICK,
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            **settings,
        }
        arguments = [part for name, value in ours.items() for part in ("-c", f"{name}={value}")]
        return [str(self.template.bin / "postgres"), "-D", str(self.data), *arguments]

    def start(self, **settings: Any) -> None:
        """Start it, and wait until it takes connections."""
        self.begin(**settings)
        until(lambda: not self.alive or self.ready() == 0, f"PostgreSQL takes connections; see {self.log}", 30.0)
        assert self.alive, f"PostgreSQL ended at once: {self.log.read_text()[-500:]}"

    def ready(self) -> int:
        """Return what pg_isready says: 0 takes connections, 1 rejects them, 2 does not answer."""
        where = ["-h", str(self.folder), "-p", str(self.port), "-t", "1"]
        return subprocess.run(
            [str(self.template.bin / "pg_isready"), *where], check=False, capture_output=True
        ).returncode

    @property
    def alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self._pid in within(self.data)

    @property
    def pid(self) -> int:
        assert self._pid, "it was never started"
        return self._pid

    def reload(self) -> None:
        """Have it read its files again, and wait until it has."""
        before = self.ask("SELECT pg_conf_load_time()")
        self.ask("SELECT pg_reload_conf()")
        until(lambda: self.ask("SELECT pg_conf_load_time()") != before, "the files have been read again")

    def end(self, number: int = signal.SIGQUIT) -> None:
        """End it with a signal (SIGQUIT: at once, as after a power cut; SIGINT: in good order), and wait for that."""
        self.thaw()
        if self.alive:
            os.kill(self._pid, number)
        self._reap()
        until(lambda: not within(self.data), "its processes have ended", 30.0)

    def kill(self) -> None:
        """SIGKILL the postmaster; what it has forked ends by itself."""
        self.end(signal.SIGKILL)

    def restart(self, **settings: Any) -> None:
        """End it in good order and start it again."""
        self.end(signal.SIGINT)
        self.start(**settings)

    def freeze(self, *, all_of_it: bool = False) -> None:
        """SIGSTOP the postmaster, and with `all_of_it` its backends: connections are taken and nobody speaks."""
        self._frozen = within(self.data) if all_of_it else [self.pid]
        for pid in self._frozen:
            freeze(pid)

    def thaw(self) -> None:
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    def limit(self, **limits: str | int) -> None:
        """Set limits of its postmaster, which new backends have from it, as prlimit names them; hard ones stay."""
        told = [f"--{name}={value}:" for name, value in limits.items()]
        run("prlimit", "--pid", str(self.pid), *told, cwd=self.folder)

    @property
    def address_space(self) -> int:
        """How many bytes of address space its postmaster has."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmSize")) * 1024

    def close(self) -> None:
        """End it, whatever it is doing, and remove its folder."""
        self.thaw()
        for pid in within(self.data):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reap()
        until(lambda: not within(self.data), "its processes have ended", 30.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(30.0)
            self._process = None
        self._pid = 0

    # -- what it says of itself ----------------------------------------------------------------------------------------

    def ask(self, sql: str, *, database: str = "postgres") -> str:
        """Return what psql prints for a statement, asked as the administrator. Raises AssertionError."""
        return run(*self._psql(sql, database), cwd=self.folder)

    def refuses(self, sql: str = "SELECT 1", *, database: str = "postgres") -> str:
        """Return psql's complaint about a statement; empty where there is none."""
        ended = subprocess.run(
            [str(part) for part in self._psql(sql, database)],
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=30.0,
            **unprivileged(),
        )
        return ended.stderr.strip() if ended.returncode else ""

    def _psql(self, sql: str, database: str) -> list[str | Path]:
        where: list[str | Path] = ["-h", self.folder, "-p", str(self.port), "-U", ADMIN, "-d", database]
        return [self.template.bin / "psql", "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where, "-c", sql]

    @contextmanager
    def session(self, sql: str, *, user: str = WATCHER, database: str = "postgres") -> Iterator[subprocess.Popen[str]]:
        """Hold a session open that has said `sql` and waits for more; it is ended on exit."""
        where = ["-h", str(self.folder), "-p", str(self.port), "-U", user, "-d", database]
        command = [str(self.template.bin / "psql"), "-X", "-A", "-t", "-q", *where]
        given: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        environment = {**os.environ, "PGPASSWORD": WATCHER_PASSWORD, "PGAPPNAME": "psql"}
        held = subprocess.Popen(command, cwd=self.folder, text=True, env=environment, **given, **unprivileged())
        try:
            assert held.stdin is not None
            assert held.stdout is not None
            held.stdin.write(f"{sql};\n\\echo ready\n")
            held.stdin.flush()
            for line in held.stdout:
                if line.strip() == "ready":
                    break
            yield held
        finally:
            held.kill()
            held.communicate(timeout=10.0)

    # -- a disk that can be filled -------------------------------------------------------------------------------------

    @contextmanager
    def on_small_disk(self, megabytes: int) -> Iterator[None]:
        """Move its data to a tmpfs of this size for the length of the block; it must not run. Skips without root."""
        kept = self.folder / "kept"
        self.data.rename(kept)
        self.data.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "selfheal", str(self.data)],
            check=False,
            capture_output=True,
            text=True,
        )
        if mounted.returncode != 0:
            pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
        try:
            self.template.own(self.data, 0o700)
            run("cp", "-a", f"{kept}/.", self.data, cwd=self.folder)
            yield
        finally:
            self.end()
            subprocess.run(["umount", str(self.data)], check=True)

    def fill_disk(self) -> None:
        """Write a file beside the data until nothing more fits."""
        with (self.data / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 65536):
                pass
        with (self.data / "ballast2").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    # -- who follows it ------------------------------------------------------------------------------------------------

    def standby(self, **settings: Any) -> Server:
        """Return a standby of it, made by pg_basebackup and streaming."""
        made = self.copied_to_standby()
        made.start(**settings)
        until(
            lambda: self.ask("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") != "0",
            "the standby streams",
        )
        return made

    def copy(self) -> Server:
        """Return a copy of it; neither runs."""
        made = Server(self.template, self.template.new_folder())
        run("cp", "-a", self.data, made.data, cwd=made.folder)
        return made

    def copied_to_standby(self) -> Server:
        """Return a standby that has not been started."""
        made = Server(self.template, self.template.new_folder())
        where = ["-h", str(self.folder), "-p", str(self.port), "-U", ADMIN]
        command: list[str | Path] = [
            self.template.bin / "pg_basebackup",
            *where,
            "-D",
            made.data,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        ]
        run(*command, "--no-sync", cwd=made.folder)
        return made

    # -- how to reach it -----------------------------------------------------------------------------------------------

    def url(self, user: str = WATCHER, password: str | None = WATCHER_PASSWORD, database: str = "postgres") -> str:
        """Return a URL over TCP."""
        secret = "" if password is None else f":{password}"
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"


class Template:
    """A data folder made once; servers are copies of it. Its roles: the administrator, and one that may only log in."""

    def __init__(self, place: Path = Path("/tmp")) -> None:
        self.bin = programs()
        self.root = Path(tempfile.mkdtemp(prefix="selfheal-postgres-", dir=place))
        self._servers: list[Server] = []
        self.own(self.root)
        self._made = self._make()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def server(self) -> Server:
        """Return a new server that has not been started."""
        return self._made.copy()

    def new_folder(self) -> Path:
        """Return a folder that the server may enter, and others too, for its unix socket."""
        folder = Path(tempfile.mkdtemp(prefix="s", dir=self.root))
        self.own(folder)
        return folder

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)

    def own(self, folder: Path, mode: int = 0o755) -> None:
        """Give a folder to the user the servers run as."""
        folder.chmod(mode)
        who = unprivileged()
        if who:
            os.chown(folder, who["user"], who["group"])

    def _make(self) -> Server:
        server = Server(self, self.new_folder())
        secret = server.folder / "secret"
        secret.write_text(ADMIN_PASSWORD)
        secret.chmod(0o644)
        auth = ["--auth-local=trust", "--auth-host=scram-sha-256", "-U", ADMIN, f"--pwfile={secret}"]
        run(self.bin / "initdb", "-D", server.data, *auth, "--no-sync", "-E", "UTF8", "--locale=C.UTF-8", cwd=self.root)
        server.start()
        try:
            server.ask(f"CREATE ROLE {WATCHER} LOGIN PASSWORD '{WATCHER_PASSWORD}'")
        finally:
            server.end(signal.SIGINT)
        return server
