"""The workload `swarm`: a service of a Docker swarm, asked of one of its managers.

Swarm starts by itself what has ended. Left to do are a restart of what runs and does not serve, as `docker service
update --force` does, and more replicas. Owns which tasks are the service now: swarm keeps the earlier ones as history.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ClassVar, Final

import attrs

from selfheal import Instance, Run, Settled
from selfheal.builtin.options import seconds, whole
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Context
from selfheal_docker import acts, doctor
from selfheal_docker.api import DEFAULT, Docker, check_host, line
from selfheal_docker.container import ABSENT, unix_time
from selfheal_docker.listening import AGAIN, CHANGES
from selfheal_docker.workload import check_name, check_named_again

LABEL: Final = "com.docker.swarm.service.name"
"""The label that swarm gives the containers of a service."""

UNDER_WAY: Final = ("updating", "rollback_started")
"""States of an update in which swarm is at work on the service."""

BEGINNING: Final = ("new", "pending", "assigned", "accepted", "preparing", "ready", "starting")
"""States of a task that does not run yet."""

_POLL: Final = 0.2  # seconds between two looks at what swarm does
_RESERVE: Final = 1.0  # seconds of an action's time kept back to say what was seen
_LIVELY: Final = 5.0  # seconds after an event in which the manager is asked again and again
_ANSWER: Final = 10.0  # seconds Docker is given to answer a question of a sensor
_FEW: Final = 6  # tasks whose ids are written out


@attrs.frozen(kw_only=True)
class _Task:
    """One task: what swarm calls one container that it runs, ran, or will run."""

    id: str
    slot: str
    desired: str
    state: str
    error: str
    since: float | None
    begun: bool
    created: str

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> _Task:
        status = data.get("Status") or {}
        return cls(
            id=str(data.get("ID", "")),
            slot=str(data.get("Slot") or data.get("NodeID", "")),
            desired=str(data.get("DesiredState", "")),
            state=str(status.get("State", "")),
            error=line(status.get("Err") or "", 200),
            since=unix_time(str(status.get("Timestamp", ""))),
            begun=bool((status.get("ContainerStatus") or {}).get("ContainerID")),
            created=str(data.get("CreatedAt", "")),
        )

    @property
    def running(self) -> bool:
        return self.state == "running" and self.desired == "running"


@attrs.frozen(kw_only=True)
class _Seen:
    """A service and the tasks that are it now: the newest of each slot that has begun."""

    id: str
    version: int
    spec: Mapping[str, Any]
    update: Mapping[str, Any]
    tasks: tuple[_Task, ...]
    coming: tuple[_Task, ...]

    @property
    def replicas(self) -> int | None:
        """How many there should be; None for a service that has one on each node."""
        replicated = (self.spec.get("Mode") or {}).get("Replicated")
        return None if replicated is None else int(replicated.get("Replicas") or 0)

    @property
    def running(self) -> tuple[_Task, ...]:
        return tuple(task for task in self.tasks if task.running)

    @property
    def identity(self) -> str:
        ids = ",".join(task.id for task in self.tasks)
        if len(self.tasks) > _FEW:
            return f"{len(self.tasks)} tasks {hashlib.sha256(ids.encode()).hexdigest()[:32]}"
        return ids or "no task yet"

    @property
    def written(self) -> list[str]:
        """The places in its containers that are kept outside of them."""
        mounts = ((self.spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}).get("Mounts") or []
        kept = [one for one in mounts if one.get("Type") in ("volume", "bind", "cluster") and not one.get("ReadOnly")]
        return sorted(str(one.get("Target", "")) for one in kept)


@attrs.frozen(kw_only=True)
class SwarmWorkload:
    """A service of a swarm: who runs; it can be restarted, and given more replicas."""

    kind: ClassVar[str] = "swarm"

    #: The service's name, as `docker service ls` shows it.
    service: str = attrs.field(validator=check_name)
    #: Where a manager of the swarm listens: `unix:///path`, or `tcp://host:port` of a socket proxy on an inner network.
    host: str = attrs.field(default=DEFAULT, validator=check_host)
    #: The most replicas `scale_up` may bring it to; 1 means that it is never scaled.
    replicas_max: int = whole(1, 1, 1000)
    #: The service's name once more, to have it scaled although its containers write to a volume or a folder: a second
    #: database is no recovery.
    scale_stateful: str | None = None
    #: Seconds that what was started must run to count as started.
    settle: float = seconds(1.0, 0.0, 300.0)

    def __attrs_post_init__(self) -> None:
        check_named_again(self.scale_stateful, self.service)

    @property
    def _docker(self) -> Docker:
        return Docker(self.host)

    # -- who runs ----------------------------------------------------------------------------------------------------

    async def inspect(self, context: Context) -> Instance:
        """Return who runs: the tasks of the service, the last one of each slot, ended ones included.

        RUNNING while one of them does, STARTING while swarm is about to start one, STOPPED at nought replicas, which
        is a person's wish. Raises `OSError` when Docker gives no answer, `ActionFailed` when it refuses to.
        """
        return await self._look(self._docker, context)

    async def _look(self, docker: Docker, context: Context) -> Instance:
        seen = await self._seen(docker, context)
        if seen is None:
            return attrs.evolve(ABSENT, detail="there is no such service")
        run, said = Run.EXITED, ""
        if seen.running:
            run = Run.RUNNING
        elif seen.replicas == 0:
            run, said = Run.STOPPED, "it was scaled to nought replicas"
        elif seen.coming or any(task.desired == "running" and task.state in BEGINNING for task in seen.tasks):
            run = Run.STARTING
        up, wanted = len(seen.running), seen.replicas
        parts = [said] if said else []
        if wanted is not None and 0 < wanted != up:
            parts.append(f"{up} of {wanted} replicas run")
        if seen.update.get("State") in (*UNDER_WAY, "paused", "rollback_paused"):
            parts.append(f"its update is {seen.update['State']}")
        parts += dict.fromkeys(task.error for task in (*seen.coming, *seen.tasks) if task.error and not task.running)
        since = max((task.since for task in seen.running if task.since is not None), default=None)
        return Instance(id=seen.identity, run=run, since=since, count=up, detail="; ".join(parts[:4]))

    async def _seen(self, docker: Docker, context: Context) -> _Seen | None:
        reply = await docker.get(context, f"/services/{self.service}")
        if reply.status == 404:
            return None
        service = reply.wanted(200).json()
        spec = service["Spec"] if isinstance(service, dict) and isinstance(service.get("Spec"), dict) else {}
        if spec.get("Name") != self.service:
            return None  # Docker takes the beginning of an id for an id: that one is somebody else's
        listed = await docker.get(context, "/tasks", filters=json.dumps({"service": [service["ID"]]}))
        data = listed.wanted(200).json()
        if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
            raise ActionFailed("Docker's answer is no list of tasks")
        tasks, coming = _now([_Task.read(one) for one in data], spec)
        return _Seen(
            id=str(service["ID"]),
            version=int(service["Version"]["Index"]),
            spec=spec,
            update=service.get("UpdateStatus") or {},
            tasks=tasks,
            coming=coming,
        )

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        """Yield the instance whenever it has changed; the first one only if it has already ended.

        This node's containers say when something happened. A manager knows of it a little later, so it is asked again
        for some seconds; what happens on other nodes is found by polling.
        """
        docker = attrs.evolve(self._docker, longest=_ANSWER)
        stirred = asyncio.Event()
        listening = asyncio.ensure_future(self._listen(docker, context, stirred))
        known: tuple[str, Run, int] | None = None
        lively = time.monotonic() + _LIVELY
        try:
            while True:
                try:
                    instance = await self._look(docker, context)
                except (OSError, ActionFailed):
                    pass  # polling says what is wrong with Docker
                else:
                    now = (instance.id, instance.run, instance.count)
                    if now != known and (known is not None or instance.run is Run.EXITED):
                        yield instance
                    known = now
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL if time.monotonic() < lively else None):
                        await stirred.wait()
                if stirred.is_set():
                    stirred.clear()
                    lively = time.monotonic() + _LIVELY
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, docker: Docker, context: Context, stirred: asyncio.Event) -> None:
        """Tell of whatever happens to a container of the service on this node; for ever."""
        pause = AGAIN[0]
        wanted = {"type": ["container"], "event": list(CHANGES), "label": [f"{LABEL}={self.service}"]}
        while True:
            try:
                async with docker.events(context, {"filters": json.dumps(wanted)}) as stream:
                    pause = AGAIN[0]
                    stirred.set()  # what happened before anybody listened
                    async for _ in stream:
                        stirred.set()
            except (OSError, ActionFailed):
                pass
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN[1])

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def verbs(self) -> frozenset[str]:
        """Return what this workload can be asked to do, which depends on how many replicas it may have."""
        return frozenset({"restart"} | ({"scale_up"} if self.replicas_max > 1 else set()))

    async def restart(self, context: ActionContext) -> str:
        """Have swarm replace every task, by the rules of the service's own updates, see the new ones run, and say so.

        Raises `ActionFailed` when there is none, it is another than the one that failed, was scaled to nought, is being
        updated already, or the update does not come to its end.
        """
        seen = await self._meant(context)
        if seen.replicas == 0:
            raise ActionFailed(f"{self.service} is left alone: it was scaled to nought replicas")
        template = dict(seen.spec.get("TaskTemplate") or {})
        template["ForceUpdate"] = int(template.get("ForceUpdate") or 0) + 1
        await self._update(context, seen, {**seen.spec, "TaskTemplate": template})
        before = {task.id for task in seen.tasks}

        def replaced(now: _Seen) -> bool:
            return len(now.running) >= (now.replicas or 1) and not _old(now, before)

        now = await self._until(context, "restart", seen.version, replaced)
        return f"swarm replaced the tasks of {self.service}: {now.identity} run"

    async def scale_up(self, context: ActionContext) -> str:
        """Have `arguments["to"]` replicas, at most `replicas_max`, and say how many run.

        Fewer than there are changes nothing (S31).

        Raises `ActionFailed` when the service cannot have several or should not, or they do not all run.
        """
        to = acts.scale_target(context, self.replicas_max, "replicas_max")
        seen = await self._meant(context)
        if refusal := self._against_scaling(seen):
            raise ActionFailed(f"{self.service} is not scaled: {refusal.message}; {refusal.hint}")
        if seen.replicas is not None and seen.replicas < to:
            await self._update(context, seen, {**seen.spec, "Mode": {"Replicated": {"Replicas": to}}})
        now = await self._until(context, "scale_up", seen.version, lambda now: len(now.running) >= to)
        return f"{len(now.running)} replicas of {self.service} run, {len(seen.running)} before"

    async def probe(self, context: ActionContext) -> Settled | None:
        """Say whether none of the tasks that failed runs any more, and others do; None while it cannot be told.

        Of a `scale_up` it is proof that as many replicas run as were asked for.
        """
        expected = context.expected
        if expected is None or expected.run is Run.UNKNOWN or " " in expected.id:
            return None
        try:
            seen = await self._seen(self._docker, context)
            to = acts.scale_target(context, self.replicas_max, "replicas_max") if context.verb == "scale_up" else 0
        except (OSError, ActionFailed):
            return None
        if seen is None or not seen.running or seen.update.get("State") in UNDER_WAY:
            return None
        if to:
            return Settled.DONE if len(seen.running) >= to else None
        return None if _old(seen, set(expected.id.split(","))) else Settled.DONE

    # -- how ---------------------------------------------------------------------------------------------------------

    async def _meant(self, context: ActionContext) -> _Seen:
        seen = await self._seen(self._docker, context)
        if seen is None:
            raise ActionFailed(f"there is no service {self.service} at {self.host}; create it, or correct the name")
        acts.as_expected(context, seen.identity)
        if seen.update.get("State") in UNDER_WAY:
            raise ActionFailed(f"{self.service} is left alone: an update of it is under way")
        return seen

    async def _update(self, context: ActionContext, seen: _Seen, spec: Mapping[str, Any]) -> None:
        """Hand swarm another specification of the service, unless somebody has changed it since it was looked at."""
        reply = await self._docker.post(context, f"/services/{seen.id}/update", spec, version=str(seen.version))
        if b"out of sequence" in reply.body:
            raise ActionFailed(f"{self.service} is left alone: somebody changed it at this moment")
        reply.wanted(200)

    async def _until(self, context: ActionContext, verb: str, before: int, done: Callable[[_Seen], bool]) -> _Seen:
        """Look until it is done and has stayed so for `settle` seconds; return the last look.

        Raises `ActionFailed` when it does not.

        What is said of an update counts from the version after `before` on: until then it is of an earlier one.
        """
        since: float | None = None
        while True:
            seen = await self._seen(self._docker, context)
            if seen is None:
                raise ActionFailed(f"{self.service} was removed meanwhile")
            state = str(seen.update.get("State") or "") if seen.version > before else ""
            if state in ("paused", "rollback_paused", "rollback_started", "rollback_completed"):
                raise ActionFailed(f"{self.service}: its {verb} failed ({state}): {line(seen.update.get('Message'))}")
            now = time.monotonic()
            if state in UNDER_WAY or not done(seen):
                since = None
            else:
                since = now if since is None else since
                if now - since >= self.settle:
                    return seen
            if context.remaining < _RESERVE:
                raise ActionFailed(f"{self.service}: its {verb} is not over in the time of this step: {_short(seen)}")
            await asyncio.sleep(_POLL)

    def _against_scaling(self, seen: _Seen) -> Problem | None:
        """Return the reason why the service must not have more replicas than now."""
        if seen.replicas is None:
            return Problem(
                path="workload.replicas_max",
                message="it is no replicated service, and has as many tasks as there are nodes",
                hint="leave replicas_max away",
            )
        if seen.written and self.scale_stateful != self.service:
            return Problem(
                path="workload.scale_stateful",
                message=f"it keeps data in {', '.join(seen.written)}, which a copy would share or lack",
                hint=f'scale_stateful = "{self.service}", if that is meant',
            )
        return None

    # -- before it is needed -----------------------------------------------------------------------------------------

    async def doctor(self, context: Context) -> list[Problem]:
        """Say, without acting, what would stand in the way of everything this workload may be asked to do."""
        try:
            problems = await doctor.of_swarm(self._docker, context)
            seen = None if problems else await self._seen(self._docker, context)
        except (OSError, ActionFailed) as problem:
            return [doctor.unanswered(self._docker, problem)]
        if problems:
            return problems
        if seen is None:
            message = f"there is no service {self.service}"
            return [Problem(path="workload.service", message=message, hint="create it, or correct the name")]
        refusal = self._against_scaling(seen) if "scale_up" in self.verbs() else None
        return [] if refusal is None else [refusal]


def _now(tasks: list[_Task], spec: Mapping[str, Any]) -> tuple[tuple[_Task, ...], tuple[_Task, ...]]:
    """Return the newest task of each slot that has begun, and those that have not."""
    begun: dict[str, _Task] = {}
    coming: dict[str, _Task] = {}
    for task in sorted(tasks, key=lambda task: task.created):
        if task.begun or task.state == "running":
            begun[task.slot] = task
            coming.pop(task.slot, None)
        elif task.desired in ("running", "ready"):
            coming[task.slot] = task
    replicated = (spec.get("Mode") or {}).get("Replicated")
    if replicated is not None:
        # Slots of earlier, larger days are history; which numbers are left after scaling down is swarm's own choice.
        newest = sorted(
            begun.values(), key=lambda task: (task.running, task.slot in coming, task.created), reverse=True
        )
        begun = {task.slot: task for task in newest[: max(1, int(replicated.get("Replicas") or 0))]}
    return tuple(begun[slot] for slot in sorted(begun)), tuple(coming[slot] for slot in sorted(coming))


def _old(seen: _Seen, before: set[str]) -> bool:
    """Whether one of the tasks that failed still runs."""
    return any(task.id in before for task in seen.running)


def _short(seen: _Seen) -> str:
    errors = "; ".join(dict.fromkeys(task.error for task in (*seen.coming, *seen.tasks) if task.error))
    said = f"{len(seen.running)} of {seen.replicas if seen.replicas is not None else 'its'} replicas run"
    return f"{said}: {errors}" if errors else said
