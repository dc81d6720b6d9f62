"""A way to break something, and those that every server knows.

A fault is induced for real, and then the server's own answer, or the machine's, proves that it is there before
selfheal is judged. `steps` says which steps may be taken, in a service's own ladder; whoever is not named there must
not be touched. Where the right answer is to leave it to people, `told` says when they know, and they mend it then.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
from tests.drill.hosts import pids, send
from tests.drill.servers import PASSWORD, empty, fill
from tests.drill.stage import Stage
from tests.drill.watched import SHORTENED
from tests.servers import until

NOT_TOUCHED = ""
"""The pattern of no step at all."""

QUIET = 5.0
"""Seconds during which nothing may be done although people have not come yet; more than any first delay here."""

IN_USE = ("in use", "could not bind", "cannot bind", "failed to bind", "unable to bind")
"""What servers say of a port that somebody else has."""

Breaking = Callable[[Stage], float]
"""Breaks something, proves it, and returns since when it is broken (UNIX time)."""


@attrs.frozen(kw_only=True)
class Fault:
    """One way to break one service, or several at once."""

    name: str
    services: tuple[str, ...]
    what: str
    """For people: what is done, and by what it is proven."""
    begin: Breaking
    steps: Mapping[str, str]
    """Per service the pattern that its steps, with a space between, must match; of all others none is allowed."""
    seen_as: str
    """The pattern of `state cause` in which it must be seen."""
    told: Callable[[Stage], bool] | None = None
    """When people know of it and come; None where selfheal has to repair it alone."""
    mend: Callable[[Stage], object] | None = None
    """What people do then, beside taking back what was induced."""
    quiet: float = 0.0
    """So long people wait before they mend it, to see that nothing is done."""
    incident: bool = True
    """Whether it must become an incident; a warning only becomes an alert, a held fire a hold."""
    within: float = 60.0
    """Seconds for selfheal to repair it, or to be told to people; and again for all to be well once mended."""

    @property
    def answer(self) -> str:
        """Return in words what selfheal has to make of it."""
        if not any("restart" in pattern for pattern in self.steps.values()):
            return "nothing is restarted; people are told"
        if self.told is None:
            return "repaired without people"
        return "tried within limits; well again by itself once the cause is gone"

    @property
    def title(self) -> str:
        """Return whom it is about."""
        return " + ".join(self.services)


def proven(what: str, true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until the condition that is to be judged is there: the fault itself must be real."""
    until(true, f"the fault is real: {what}", seconds)


# -- what every server knows ------------------------------------------------------------------------------------------


def _is_down(stage: Stage, service: str) -> bool:
    return not stage.hub[service].serves()


def killed(service: str) -> Fault:
    """Return the crash: SIGKILL."""

    def begin(stage: Stage) -> float:
        pid, before = stage.host.first_pid(service), stage.host.instance(service)
        at = send(stage.host, service, signal.SIGKILL)

        def gone() -> bool:
            return stage.host.first_pid(service) != pid or stage.host.instance(service) != before

        proven("its process is gone", gone)
        return at

    return Fault(
        name="killed",
        services=(service,),
        what="SIGKILL to its first process; the process is gone",
        begin=begin,
        steps={service: "restart"},
        seen_as=r"(unhealthy|failed) (unreachable|timeout)",
    )


def frozen(service: str) -> Fault:
    """Return the hang: SIGSTOP, so that its port takes connections and nobody speaks."""

    def begin(stage: Stage) -> float:
        targets = pids(stage.host, service)
        stage.cleaning.callback(_thaw, targets)
        at = send(stage.host, service, signal.SIGSTOP, everybody=True)
        proven("it takes a connection and does not answer", lambda: connects(stage, service))
        assert _is_down(stage, service), f"{service} answers although it is frozen"
        return at

    gentle = "reconnect " if service in ("database", "redis") else ""
    return Fault(
        name="frozen",
        services=(service,),
        what="SIGSTOP to all its processes; its port takes connections and nothing is said",
        begin=begin,
        steps={service: f"{gentle}restart"},
        seen_as=r"(unhealthy|failed) timeout",
    )


def _thaw(targets: list[int]) -> None:
    for pid in targets:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def connects(stage: Stage, service: str) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", stage.hub[service].ports[0]), timeout=1.0):
        return True
    return False


def cut_off(service: str) -> Fault:
    """Return the firewall: packets to its port are dropped, so that no restart helps until somebody takes that back."""

    def begin(stage: Stage) -> float:
        at = time.time()
        stage.cut(*stage.hub[service].ports)
        proven("no connection comes about", lambda: not connects(stage, service))
        return at

    def told(stage: Stage) -> bool:
        return stage.ended(service, "restart") > 0 and stage.watched.is_(service, "failed")

    one = "(reconnect )?restart" if service in ("database", "redis") else "restart"
    return Fault(
        name="cut off",
        services=(service,),
        what="iptables drops what goes to its port, until one attempt has been used up",
        begin=begin,
        told=told,
        steps={service: f"{one}( {one}){{0,{SHORTENED[service].retries - 1}}}"},
        seen_as=r"(unhealthy|failed) timeout",
        within=90.0,
    )


def port_taken(service: str) -> Fault:
    """Return the server that cannot start any more: it dies, and somebody else sits on its port."""

    def begin(stage: Stage) -> float:
        at = send(stage.host, service, signal.SIGKILL)
        usurper = until(partial(_usurp, stage.hub[service].ports[0]), f"somebody takes the port of {service}", 5.0)
        stage.cleaning.callback(usurper.close)
        return at

    def told(stage: Stage) -> bool:
        if not stage.watched.is_(service, "failed", "escalated"):
            return False
        said = stage.host.log(service).lower()
        # Neo4j, as it is set up here, says nothing and exits with 1.
        complains = any(word in said for word in IN_USE) or stage.host.exit_status(service) == 1
        assert complains, f"{service} does not complain of its port: {said[-800:]}"
        return True

    retries = SHORTENED[service].retries
    one = "(reconnect )?restart" if service in ("database", "redis") else "restart"
    return Fault(
        name="cannot start",
        services=(service,),
        what="SIGKILL, and another program takes its port, so that every start fails (by its log or exit status); "
        "the program goes once selfheal has given up, and the slow retry is enough",
        begin=begin,
        told=told,
        steps={service: f"{one}( {one}){{{retries},{retries + 2}}}"},
        seen_as=r"(unhealthy|failed) (unreachable|timeout)",
        within=150.0,
    )


def _usurp(port: int) -> socket.socket | None:
    with suppress(OSError):
        return socket.create_server(("127.0.0.1", port))
    return None


def relapsing(service: str) -> Fault:
    """Return the crash that comes back: killed, repaired, and killed again while on probation."""

    def begin(stage: Stage) -> float:
        before = stage.host.instance(service)
        at = send(stage.host, service, signal.SIGKILL)

        def again() -> bool:
            return stage.host.instance(service) != before and stage.watched.is_(service, "healthy")

        until(again, f"{service} is repaired the first time", 60.0)
        send(stage.host, service, signal.SIGKILL)
        return at

    return Fault(
        name="dies again",
        services=(service,),
        what="SIGKILL, and once more while it is on probation",
        begin=begin,
        steps={service: "restart restart"},
        seen_as=r"(unhealthy|failed) (unreachable|timeout)",
        within=90.0,
    )


def stopped(service: str) -> Fault:
    """Return what is no fault: a person stops it, and must not be overruled."""

    def begin(stage: Stage) -> float:
        at = time.time()
        stage.host.stop(service)
        proven("it is stopped", lambda: not stage.host.running(service))
        return at

    return Fault(
        name="stopped",
        services=(service,),
        what="a person stops it (docker stop, systemctl stop), and starts it again later",
        begin=begin,
        told=lambda stage: stage.alerted(service),
        quiet=QUIET,
        mend=lambda stage: stage.host.start(service),
        steps={service: NOT_TOUCHED},
        seen_as=r"(unhealthy|failed) (unreachable|timeout|exited)",
    )


def full(service: str, mend: Callable[[Stage], object] | None = None) -> Fault:
    """Return the full disk: a restart may not come back at all, so nobody is restarted."""

    def begin(stage: Stage) -> float:
        at = time.time()
        disk = stage.hub[service].disk
        fill(disk)
        stage.cleaning.callback(empty, disk)
        proven("its disk takes nothing more", lambda: _takes_nothing(stage, service))
        return at

    return Fault(
        name="disk full",
        services=(service,),
        what="a file fills its disk; people make room",
        begin=begin,
        told=lambda stage: stage.watched.is_(service, "degraded"),
        quiet=QUIET,
        mend=mend,
        steps={service: NOT_TOUCHED},
        seen_as=r"degraded (full|read_only)",
        incident=False,
    )


def _takes_nothing(stage: Stage, service: str) -> bool:
    try:
        with (stage.hub[service].disk / "more").open("wb", buffering=0) as file:
            file.write(b"x" * 65536)
    except OSError:
        return True
    finally:
        (stage.hub[service].disk / "more").unlink(missing_ok=True)
    return False


def locked_out(service: str, change: Callable[[Stage, str, str], object]) -> Fault:
    """Return the changed password: nothing that is restarted would know the new one."""
    other = "another-" + PASSWORD

    def begin(stage: Stage) -> float:
        at = time.time()
        change(stage, PASSWORD, other)
        return at

    return Fault(
        name="password changed",
        services=(service,),
        what="its password is changed at the server, which refuses the old one; people change it back",
        begin=begin,
        told=lambda stage: stage.alerted(service),
        quiet=2 * QUIET,
        mend=lambda stage: change(stage, other, PASSWORD),
        # A new connection may be tried, for it harms nobody; what runs is not touched.
        steps={service: "(reconnect( reconnect)*)?" if service in ("database", "redis") else NOT_TOUCHED},
        seen_as=r"(unhealthy|failed) auth",
    )
