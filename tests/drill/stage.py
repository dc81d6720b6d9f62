"""The whole drill standing: servers and application on a host, selfheal watching them, and a user who keeps asking."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
from tests.drill import app
from tests.drill.hosts import Containers, Units, host_of
from tests.drill.prober import Prober
from tests.drill.servers import APPLICATION, HubServer, furnish, servers
from tests.drill.watched import Watched, waited
from tests.servers import free_port
from tests.stack.running import Program

MARK = "selfheal-drill"
"""By which our rules in the machine's firewall are known."""


@attrs.define(kw_only=True)
class Stage:
    """What a fault may break, and what judges it."""

    host: Containers | Units
    hub: Mapping[str, HubServer]
    watched: Watched
    prober: Prober
    first: int = 0
    """The last record before the fault that is under way."""
    cleaning: ExitStack
    """What puts right what a fault has done, whatever becomes of the drill; emptied after each fault."""

    @property
    def names(self) -> tuple[str, ...]:
        """The servers."""
        return tuple(self.hub)

    @property
    def everybody(self) -> tuple[str, ...]:
        """The servers and the application."""
        return (*self.hub, APPLICATION)

    def instances(self) -> dict[str, str]:
        """Return which incarnation of each there is."""
        return {name: self.host.instance(name) for name in self.everybody}

    def records(self) -> list[dict[str, Any]]:
        """Return the records since the fault that is under way."""
        return self.watched.history(self.first)

    def ended(self, service: str, action: str) -> int:
        """Return how often a step of a service has ended since then."""
        records = [one for one in self.records() if one["service"] == service]
        intents = {one["step"] for one in records if one["kind"] == "intended" and one["action"] == action}
        return sum(one["kind"] == "ended" and one["step"] in intents for one in records)

    def alerted(self, service: str) -> bool:
        """Whether people have an open alert about a service, and know since the fault."""
        return any(
            one["kind"] == "alert_changed" and one["service"] == service and one["open"] for one in self.records()
        )

    def cut(self, *ports: int) -> None:
        """Drop every packet to these ports of loopback, until mended."""
        for port in ports:
            rule = _rule(port)
            subprocess.run(["iptables", "-w", "-I", "INPUT", *rule], check=True)
            self.cleaning.callback(subprocess.run, ["iptables", "-w", "-D", "INPUT", *rule], check=False)

    def mend(self) -> None:
        """Take back what is still broken."""
        self.cleaning.close()


def _rule(port: int) -> list[str]:
    match = ["-p", "tcp", "-d", "127.0.0.1", "--dport", str(port), "-m", "comment", "--comment", MARK]
    return [*match, "-j", "DROP"]


@contextmanager
def standing(kind: str, names: tuple[str, ...]) -> Iterator[Stage]:
    """Have everything running and well; nothing of it stays, whatever happens."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="selfheal-drill-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        hub = servers(names, folder, stack)
        host = stack.enter_context(host_of(kind, folder))
        for server in hub.values():
            host.run(server.name, server.program)
        furnish(hub)
        port = free_port()
        environment = {key: value for server in hub.values() for key, value in server.environment.items()}
        host.run(APPLICATION, _application(folder, port, environment, names))
        watched = Watched(host, environment, names, port)
        stack.enter_context(listening(watched.canary))
        stack.enter_context(watched)
        prober = stack.enter_context(Prober(port, names))
        assert waited(lambda: prober.good_since(0.0), 30.0), f"the application does not work: {prober.asked[-1:]}"
        cleaning = stack.enter_context(ExitStack())
        yield Stage(host=host, hub=hub, watched=watched, prober=prober, cleaning=cleaning)


def _application(folder: Path, port: int, environment: Mapping[str, str], names: tuple[str, ...]) -> Program:
    place = folder / APPLICATION
    place.mkdir()
    shutil.copy(app.__file__ or "", place / "app.py")
    return Program(
        arguments=(sys.executable, str(place / "app.py"), str(port)),
        environment={
            **environment,
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "DRILL_SERVICES": ",".join(names),
            "PYTHONUNBUFFERED": "1",
        },
        cwd=place,
    )


@contextmanager
def listening(port: int) -> Iterator[None]:
    """Be what is always there: a port that takes every connection."""
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        listener.settimeout(0.2)
        ended = threading.Event()

        def take() -> None:
            while not ended.is_set():
                try:
                    listener.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=take, name="canary", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(5.0)
