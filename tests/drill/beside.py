"""The same faults, repaired by others: Monit, and systemd's own `Restart=`, on the same units of the same systemd.

Measured from the signal to the server's next good answer. Monit looks as often as selfheal in the drill, and wants as
many failures; systemd restarts what ends after its RestartSec. Both as their manuals say it is done.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median

import attrs
from tests.drill.hosts import Units, host_of, pids, send, unit
from tests.drill.servers import HubServer, furnish, servers
from tests.drill.stage import listening
from tests.drill.watched import Watched, waited
from tests.servers import program_of, until

SERVERS = ("redis", "database", "minio")
KILLS, FREEZES = 5, 1
GIVEN_UP = 30.0
"""Seconds after which nobody is waited for any more."""

MONIT = """\
set daemon 2
set pidfile {folder}/monit.pid
set statefile {folder}/monit.state
set idfile {folder}/monit.id
"""

MONIT_CHECK = """\
check process {name} matching "{matching}"
  start program = "{systemctl} start {unit}" with timeout 10 seconds
  stop program = "{systemctl} stop {unit}" with timeout 10 seconds
  restart program = "{systemctl} restart {unit}" with timeout 10 seconds
  if failed host 127.0.0.1 port {port} protocol {protocol} with timeout 2 seconds for 2 cycles then restart
"""

PROTOCOLS = {"redis": "redis", "database": "pgsql", "minio": 'http request "/minio/health/cluster"'}


@attrs.frozen(kw_only=True)
class Measured:
    """What one of them made of one signal to one server: seconds to its next good answer; None where it gave none."""

    by: str
    service: str
    signal: str
    times: tuple[float | None, ...]

    @property
    def told(self) -> str:
        """Return the median, and the range."""
        known = sorted(one for one in self.times if one is not None)
        if len(known) < len(self.times):
            return f"not within {GIVEN_UP:.0f} s ({len(self.times) - len(known)} of {len(self.times)})"
        spread = f" ({known[0]:.2f}–{known[-1]:.2f})" if len(known) > 1 else ""
        return f"{median(known):.2f} s{spread}"


def compared(names: tuple[str, ...] = SERVERS) -> Iterator[Measured]:
    """Have each of the three repair the same signals, one after the other, and return what was measured."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="selfheal-drill-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        hub = servers(names, folder, stack)
        host = stack.enter_context(host_of("units", folder))
        assert isinstance(host, Units)
        for server in hub.values():
            host.run(server.name, server.program)
        furnish(hub)
        watchers: dict[str, Callable[[Units, Mapping[str, HubServer]], AbstractContextManager[object]]] = {
            "selfheal": _selfheal,
            "Monit": _monit,
            "systemd Restart=": _restart_always,
        }
        for by, watching in watchers.items():
            with watching(host, hub):
                for server in hub.values():
                    for name, number, times in (
                        ("SIGKILL", signal.SIGKILL, KILLS),
                        ("SIGSTOP", signal.SIGSTOP, FREEZES),
                    ):
                        times = 1 if by.startswith("systemd") and name == "SIGSTOP" else times  # it never notices
                        taken = tuple(_next_answer(host, server, number) for _ in range(times))
                        yield Measured(by=by, service=server.name, signal=name, times=taken)


def _next_answer(host: Units, server: HubServer, number: int) -> float | None:
    until(server.serves, f"{server.name} serves", GIVEN_UP)
    time.sleep(6.0)  # whoever watches has seen it well, and has forgotten the last time
    first, targets = host.first_pid(server.name), pids(host, server.name)
    began = time.monotonic()
    send(host, server.name, number, everybody=number == signal.SIGSTOP)
    if number == signal.SIGKILL:
        until(lambda: not _runs(first), "it has ended")
    answered = waited(server.serves, GIVEN_UP, 0.01)
    taken = time.monotonic() - began
    if not answered:
        for pid in targets:
            if _runs(pid):
                os.kill(pid, signal.SIGCONT)
    return taken if answered else None


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def _selfheal(host: Units, hub: Mapping[str, HubServer]) -> Iterator[None]:
    environment = {key: value for server in hub.values() for key, value in server.environment.items()}
    watched = Watched(host, environment, tuple(hub), None)
    with listening(watched.canary), watched:
        yield


@contextmanager
def _monit(host: Units, hub: Mapping[str, HubServer]) -> Iterator[None]:
    program = program_of("monit", "monit")
    folder = host.folder / "monit"
    folder.mkdir()
    text = MONIT.format(folder=folder)
    for server in hub.values():
        text += MONIT_CHECK.format(
            name=server.name,
            matching=f"{server.program.arguments[0]}.*{server.ports[0]}",
            systemctl=host.systemd.programs() / "systemctl",
            unit=unit(server.name),
            port=server.ports[0],
            protocol=PROTOCOLS[server.name],
        )
    file = folder / "monitrc"
    file.write_text(text, "utf-8")
    file.chmod(0o600)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([program, "-I", "-c", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        time.sleep(6.0)  # three of its cycles
        assert process.poll() is None, (folder / "log").read_text("utf-8")
        yield
    finally:
        process.terminate()
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _restart_always(host: Units, hub: Mapping[str, HubServer]) -> AbstractContextManager[None]:
    for server in hub.values():
        host.write(server.name, server.program, Restart="always", RestartSec="100ms")
        host.systemd.ask("restart", unit(server.name))
    return nullcontext()


def markdown(measured: list[Measured]) -> str:
    """Return what was measured as a table of the docs."""
    by = list(dict.fromkeys(one.by for one in measured))
    lines = ["| signal | server | " + " | ".join(by) + " |", "|" + " --- |" * (len(by) + 2)]
    for name in dict.fromkeys(one.signal for one in measured):
        for service in dict.fromkeys(one.service for one in measured):
            told = {one.by: one.told for one in measured if (one.signal, one.service) == (name, service)}
            lines.append(f"| {name} | {service} | " + " | ".join(told.get(each, "–") for each in by) + " |")
    return "\n".join(lines) + "\n"
