"""What Docker says of a container, and what that means: who runs, and how it ended.

Owns the one question Docker does not answer: did it end by itself, or did somebody have it stopped? Docker keeps that
mark for its own restart policy and shows it to nobody, so it is concluded, from the surest witness to the weakest:

1. an `Error` of its last start: nobody stopped it, it could not start;
2. an order of ours: a restart of our own that Docker did not finish is no wish of a person;
3. the start of Docker itself: what it ended then, before it answered anybody, nobody can have asked it for;
4. Docker's events, heard by `watch` or read back afterwards (Docker remembers the last 256 events of all containers
   together, until it is restarted itself): `stop`, or a `kill` with a signal that ends, says that somebody asked;
   an end (`die`) without them says that nobody did. A `docker kill` is asking, as it is for Docker's own policy;
5. its restart policy: what Docker would itself have restarted (`always`, `unless-stopped`, `on-failure` and a code
   other than 0) and has not, somebody stopped;
6. otherwise it cannot be told, and the option `unexplained_end` says what then counts.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

import attrs

from selfheal import Instance, Run
from selfheal.errors import ActionFailed
from selfheal_docker.api import line

ABSENT: Final = Instance(id="absent", run=Run.ABSENT, count=0, detail="there is no such container")

_KILL_WINDOW: Final = 60.0  # seconds between a signal sent through Docker and the end it is held to explain
_JITTER: Final = 1.0  # seconds by which the times of an end and of its event may differ
_RESTORING: Final = 5.0  # seconds, beside the stop time-out, in which an Engine that starts ends what it finds
_TICK: Final = 0.02  # seconds by which the start of a process may be known too late
_HEARD: Final = 64  # events of one container, or ends, that are remembered


# -- reading what Docker sends ---------------------------------------------------------------------------------------


class _Part:
    """A JSON object of Docker's, read without trusting it: what is missing or of another type is as if empty."""

    def __init__(self, data: object) -> None:
        self._data: Mapping[str, Any] = data if isinstance(data, dict) else {}

    def part(self, name: str) -> _Part:
        return _Part(self._data.get(name))

    def text(self, name: str) -> str:
        value = self._data.get(name)
        return value if isinstance(value, str) else ""

    def flag(self, name: str) -> bool:
        return self._data.get(name) is True

    def number(self, name: str) -> int:
        value = self._data.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    def texts(self) -> dict[str, str]:
        return {name: value for name, value in self._data.items() if isinstance(value, str)}

    def objects(self, name: str) -> Iterator[_Part]:
        value = self._data.get(name)
        yield from (_Part(one) for one in value if isinstance(one, dict)) if isinstance(value, list) else ()


def unix_time(text: str) -> float | None:
    """Return a time of Docker's as UNIX time; None for its zero, and for what is no time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.year > 1970 and moment.tzinfo is not None else None


def signal_number(text: str) -> int:
    """Return the number of a signal named as Docker may name it (`15`, `TERM`, `SIGTERM`); 0 for an unknown one."""
    if text.isascii() and text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    found = getattr(signal, name, None)
    return int(found) if isinstance(found, signal.Signals) else 0


@attrs.frozen(kw_only=True)
class Container:
    """One container, as `docker inspect` knows it; times are UNIX time, amounts of memory bytes."""

    id: str
    name: str
    status: str
    started: str
    started_at: float | None
    finished_at: float | None
    exit_code: int
    out_of_memory: bool
    error: str
    health: str
    unhealthy_times: int
    health_exit_code: int
    policy: str
    most_retries: int
    restarts: int
    stop_signal: int
    stop_timeout: float
    auto_remove: bool
    memory: int
    memory_and_swap: int
    nano_cpus: int
    cpu_quota: int
    cpu_period: int
    labels: Mapping[str, str]
    written: tuple[str, ...]
    """Where it writes to a volume or a folder of the host: what it keeps there, it does not share with a copy."""

    @property
    def short(self) -> str:
        """The id as Docker shows it to people."""
        return self.id[:12]

    @property
    def incarnation(self) -> str:
        """Who runs, or ran last: stays when it ends, and changes with every start by whomever."""
        return f"{self.short}@{self.started or 'never'}"

    @property
    def running(self) -> bool:
        return self.status in ("running", "paused")


def read(data: object) -> Container:
    """Return the container in an answer to `inspect`. Raises `ActionFailed` when there is none in it."""
    whole = _Part(data)
    state, host, config = whole.part("State"), whole.part("HostConfig"), whole.part("Config")
    health, policy = state.part("Health"), host.part("RestartPolicy")
    if not whole.text("Id") or not state.text("Status"):
        raise ActionFailed("Docker's answer describes no container")
    probes = list(health.objects("Log"))
    began = unix_time(state.text("StartedAt"))
    return Container(
        id=whole.text("Id"),
        name=whole.text("Name").removeprefix("/"),
        status=state.text("Status"),
        started=state.text("StartedAt") if began is not None else "",
        started_at=began,
        finished_at=unix_time(state.text("FinishedAt")),
        exit_code=state.number("ExitCode"),
        out_of_memory=state.flag("OOMKilled"),
        error=state.text("Error"),
        health=health.text("Status") if health.text("Status") != "none" else "",
        unhealthy_times=health.number("FailingStreak"),
        health_exit_code=probes[-1].number("ExitCode") if probes else 0,
        policy=policy.text("Name"),
        most_retries=policy.number("MaximumRetryCount"),
        restarts=whole.number("RestartCount"),
        stop_signal=signal_number(config.text("StopSignal")) or signal.SIGTERM,
        stop_timeout=float(config.number("StopTimeout") or 10),
        auto_remove=host.flag("AutoRemove"),
        memory=host.number("Memory"),
        memory_and_swap=host.number("MemorySwap"),
        nano_cpus=host.number("NanoCpus"),
        cpu_quota=host.number("CpuQuota"),
        cpu_period=host.number("CpuPeriod"),
        labels=config.part("Labels").texts(),
        written=tuple(one.text("Destination") for one in whole.objects("Mounts") if one.flag("RW")),
    )


@attrs.frozen(kw_only=True)
class Event:
    """One event of a container; `at` is UNIX time."""

    action: str
    container: str
    at: float
    signal: int = 0


def read_event(data: object) -> Event | None:
    """Return an event of a container; None for anything else."""
    whole = _Part(data)
    actor = whole.part("Actor")
    if whole.text("Type") != "container" or not actor.text("ID"):
        return None
    at = whole.number("timeNano") / 1e9 or float(whole.number("time"))
    number = signal_number(actor.part("Attributes").text("signal"))
    return Event(action=whole.text("Action"), container=actor.text("ID"), at=at, signal=number)


# -- how it ended ----------------------------------------------------------------------------------------------------

Asked: TypeAlias = "bool | None"
"""Whether somebody asked for an end; None when it cannot be told."""


def asked_by_events(container: Container, events: Iterable[Event]) -> Asked:
    """Return what events say of the end of this incarnation; None unless its end is among them."""
    began, ended = container.started_at or 0.0, container.finished_at or 0.0
    ending = {container.stop_signal, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGQUIT}
    died = False
    for event in events:
        if event.container != container.id or event.at < began:
            continue
        if event.action == "stop":
            return True
        if event.action == "kill" and event.signal in ending and ended - _KILL_WINDOW <= event.at <= ended + _JITTER:
            return True
        died = died or event.action == "die"
    return False if died else None


def asked_by_docker(container: Container, began: float | None) -> Asked:
    """Return False for an end that was Docker's own doing; None for any other.

    An Engine that was killed finds its containers still running when it is started again (at `began`), and stops
    them, before it answers anybody. In its events that looks like a person's stop, and those with `unless-stopped` it
    leaves stopped (20.10).
    """
    if began is None or container.started_at is None or container.finished_at is None:
        return None
    within = began + container.stop_timeout + _RESTORING
    return False if container.started_at < began <= container.finished_at + _TICK <= within else None


def asked_by_policy(container: Container) -> Asked:
    """Return what its restart policy says: what Docker would have restarted by itself, somebody stopped."""
    if container.policy in ("always", "unless-stopped"):
        return True
    if container.policy == "on-failure" and container.exit_code != 0:
        tries_left = container.most_retries == 0 or container.restarts < container.most_retries
        return True if tries_left else None
    return None


@attrs.define(eq=False)
class Memory:
    """What one workload has seen of its containers in this run of selfheal; nothing that a successor would need."""

    heard: deque[Event] = attrs.field(factory=lambda: deque(maxlen=_HEARD))
    ends: dict[str, bool] = attrs.field(factory=dict)
    """incarnation -> whether somebody asked for its end."""
    ordered: deque[str] = attrs.field(factory=lambda: deque(maxlen=_HEARD))
    """Incarnations that we have told Docker to restart."""

    def known(self, container: Container) -> Asked:
        """Return what is known of its end without asking anybody."""
        if container.error or container.incarnation in self.ordered:
            return False
        return self.ends.get(container.incarnation)

    def learn(self, container: Container, told: Asked) -> Asked:
        """Remember what was found out, for Docker soon forgets."""
        if told is not None:
            self.ends[container.incarnation] = told
            while len(self.ends) > _HEARD:
                del self.ends[next(iter(self.ends))]
        return told

    def forget_since(self, instant: float) -> None:
        """Forget the stops heard since `instant` (UNIX time): Docker went down then, and they were part of that."""
        kept = [event for event in self.heard if event.at < instant]
        gone = {event.container[:12] for event in self.heard if event.at >= instant}
        self.heard.clear()
        self.heard.extend(kept)
        for incarnation in [one for one in self.ends if one.partition("@")[0] in gone]:
            del self.ends[incarnation]


# -- how it stands ---------------------------------------------------------------------------------------------------


def stands(container: Container, asked: Asked, unexplained: Run) -> tuple[Run, str]:
    """Return how a container stands, and a sentence about it. `asked` counts only for one that has ended."""
    match container.status:
        case "running":
            return _running(container)
        case "paused":
            return Run.STOPPED, "paused: somebody asked Docker to freeze it (docker unpause lets it go on)"
        case "restarting":
            return Run.STARTING, (
                f"Docker itself is restarting it (policy {container.policy}, restart {container.restarts}): "
                f"it {how_it_ended(container)}"
            )
        case "removing":
            return Run.ABSENT, "it is being removed"
        case "created" if not container.error:
            return Run.STARTING, "created, and never started yet"
        case "dead":
            return Run.EXITED, "dead: Docker failed to remove it, and it cannot be started again"
    if container.error:
        return Run.EXITED, f"it could not be started: {line(container.error)}"
    ended = how_it_ended(container)
    if asked is None:
        return unexplained, f"{ended}; whether somebody stopped it cannot be told, Docker no longer remembers"
    return (Run.STOPPED, f"somebody asked Docker to stop it; it {ended}") if asked else (Run.EXITED, ended)


def _running(container: Container) -> tuple[Run, str]:
    if container.health == "starting":
        return Run.STARTING, "its health check has not passed yet"
    if container.health == "unhealthy":
        times, code = container.unhealthy_times, container.health_exit_code
        return Run.RUNNING, f"unhealthy: its health check failed {times} times in a row, last with code {code}"
    return Run.RUNNING, container.health


def how_it_ended(container: Container) -> str:
    """Return the end of a container in words."""
    code = container.exit_code
    said = f"exited with code {code}"
    if code > 128 and code - 128 in {one.value for one in signal.Signals}:
        said = f"was ended by {signal.Signals(code - 128).name} (code {code})"
    return f"{said}: out of memory" if container.out_of_memory else said


def instance_of(container: Container, run: Run, detail: str) -> Instance:
    """Return the instance that a container is."""
    count = 1 if container.running and run is not Run.STOPPED else 0
    return Instance(id=container.incarnation, run=run, since=container.started_at, count=count, detail=detail)
