"""The workload `compose`: a service of a compose project, and so one container or several alike.

Its containers are found by the labels that compose gives them, and restarted through the Engine as any other; the
command `docker compose` is only needed to have more of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import attrs

from selfheal import Instance, Run, Settled
from selfheal.builtin.options import seconds, whole
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Context
from selfheal.secret import Secret
from selfheal_docker import acts, doctor
from selfheal_docker.acts import Patience
from selfheal_docker.api import DEFAULT, Docker, check_host
from selfheal_docker.compose_command import Compose
from selfheal_docker.container import ABSENT, Container, Memory
from selfheal_docker.listening import Filters, changes
from selfheal_docker.workload import UNEXPLAINED, check_named_again, check_unexplained

PROJECT: Final = "com.docker.compose.project"
SERVICE: Final = "com.docker.compose.service"
NUMBER: Final = "com.docker.compose.container-number"
ONE_OFF: Final = "com.docker.compose.oneoff"
HASH: Final = "com.docker.compose.config-hash"

_FEW: Final = 4  # containers whose incarnations are all shown; of more, a digest
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def _check_name(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name}: {value!r} is no name that compose would take; it has letters, digits, _.-")


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) else value


def _paths(value: object) -> object:
    return (_path(value),) if isinstance(value, str | Path) else tuple(_path(one) for one in value)  # type: ignore[attr-defined]  # refused below


def _check_path(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    paths = value if isinstance(value, tuple) else (value,)
    for path in paths:
        if path is not None and not (isinstance(path, Path) and path.is_absolute()):
            raise ValueError(f"{attribute.name}: {str(path)!r} is no absolute path")


def _check_environment(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(one, str | Secret) for one in value.values()):
        raise TypeError(f"{attribute.name}: give a table of names and texts or secrets")


@attrs.frozen(kw_only=True)
class ComposeWorkload:
    """A service of a compose project, as one workload however many containers it has."""

    kind: ClassVar[str] = "compose"

    #: The name of the project, as `docker compose ls` shows it.
    project: str = attrs.field(validator=_check_name)
    #: The name of the service in it.
    service: str = attrs.field(validator=_check_name)
    #: The project's directory; together with `files` it says what `scale_up` and a first `start` need to know.
    directory: Path | None = attrs.field(default=None, converter=_path, validator=_check_path)
    #: The compose files, in order; by default, those that compose finds in `directory`.
    files: tuple[Path, ...] = attrs.field(default=(), converter=_paths, validator=_check_path)
    #: Files of variables, as with `docker compose --env-file`; by default, `.env` in `directory`.
    env_files: tuple[Path, ...] = attrs.field(default=(), converter=_paths, validator=_check_path)
    #: Variables for the files, over the few that `docker` is given; values may be secrets.
    environment: Mapping[str, str | Secret] = attrs.field(factory=dict, validator=_check_environment)
    #: Where Docker listens: `unix:///path`, or `tcp://host:port` of a socket proxy on an inner network.
    host: str = attrs.field(default=DEFAULT, validator=check_host)
    #: The command `docker`.
    program: str = "docker"
    #: Seconds from the stop signal to SIGKILL; by default, the service's `stop_grace_period`, else 10.
    stop_timeout: float | None = seconds(None, 0.0, 3600.0)
    #: Seconds a container without a health check must run to count as started.
    settle: float = seconds(1.0, 0.0, 300.0)
    #: Seconds Docker's health check is waited for after a start; what is still starting then is not yet a failure.
    health_timeout: float = seconds(10.0, 0.0, 3600.0)
    #: What an end counts as of which cannot be told whether somebody asked for it: `exited` or `stopped`.
    unexplained_end: Literal["exited", "stopped"] = attrs.field(default="exited", validator=check_unexplained)
    #: The most containers `scale_up` may bring it to; 1 means that it is never scaled.
    instances_max: int = whole(1, 1, 1000)
    #: The service's name once more, to have it scaled although its containers write to a volume or a folder: a second
    #: database is no recovery.
    scale_stateful: str | None = None
    _memory: Memory = attrs.field(factory=Memory, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        check_named_again(self.scale_stateful, self.service)

    @property
    def _docker(self) -> Docker:
        return Docker(self.host)

    @property
    def _patience(self) -> Patience:
        return Patience(stop_timeout=self.stop_timeout, settle=self.settle, health_timeout=self.health_timeout)

    @property
    def _compose(self) -> Compose:
        if self.directory is None and not self.files:
            raise ActionFailed("neither `directory` nor `files` is configured, so compose does not know the project")
        return Compose(
            program=self.program,
            host=self.host,
            project=self.project,
            directory=self.directory,
            files=self.files,
            env_files=self.env_files,
            environment=self.environment,
        )

    # -- who runs ----------------------------------------------------------------------------------------------------

    async def inspect(self, context: Context) -> Instance:
        """Return who runs: every container of the service and when it was started, those that have ended included.

        RUNNING while one of them does. STOPPED when none runs and somebody stopped them all. Raises `OSError` when
        Docker gives no answer, `ActionFailed` when it refuses to.
        """
        return await self._look(self._docker, context)

    async def _look(self, docker: Docker, context: Context) -> Instance:
        return _one(await self._seen(docker, context))

    async def _seen(self, docker: Docker, context: Context) -> list[tuple[Container, Run, str]]:
        """Return the containers of the service, in order, each with how it stands."""
        labels = [f"{PROJECT}={self.project}", f"{SERVICE}={self.service}"]
        reply = await docker.get(context, "/containers/json", all="1", filters=json.dumps({"label": labels}))
        listed = reply.wanted(200).json()
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ActionFailed("Docker's answer is no list of containers")
        seen: list[tuple[Container, Run, str]] = []
        for one in listed:
            container = await acts.found(docker, context, str(one.get("Id")))
            if container is None or container.labels.get(ONE_OFF, "False") == "True":
                continue  # removed meanwhile; or somebody's `docker compose run`
            run, detail = await acts.standing(
                docker, context, self._memory, container, UNEXPLAINED[self.unexplained_end]
            )
            seen.append((container, run, detail))
        return sorted(seen, key=lambda one: (int(number) if (number := _number(one[0])).isdigit() else 0, one[0].id))

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        """Yield the instance whenever Docker says that something happened to one of its containers."""

        def filters() -> Filters:
            return {"label": [f"{PROJECT}={self.project}", f"{SERVICE}={self.service}"]}

        async def look(docker: Docker) -> Instance:
            return await self._look(docker, context)

        async with aclosing(changes(self._docker, context, self._memory, filters, look)) as instances:
            async for instance in instances:
                yield instance

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def verbs(self) -> frozenset[str]:
        """Return what this workload can be asked to do, which depends on how many containers it may have."""
        return frozenset({"restart", "start", "stop"} | ({"scale_up"} if self.instances_max > 1 else set()))

    async def restart(self, context: ActionContext) -> str:
        """Restart its containers, all at once, see them run, and say so; those a person has stopped stay so.

        Raises `ActionFailed` when there are none, they are others than those that failed, or one does not run
        afterwards.
        """
        seen = await self._meant(context)
        free = [one for one, run, _ in seen if run not in (Run.STOPPED, Run.ABSENT) and one.status != "restarting"]
        if not free:
            acts.refuse_restart(*seen[0])
        self._memory.ordered.extend(one.incarnation for one in free)
        told = await self._each(free, lambda one: acts.restart(self._docker, context, one, self._patience))
        left = len(seen) - len(free)
        return "; ".join(told) + (f"; left alone, for somebody stopped them or Docker has them: {left}" if left else "")

    async def start(self, context: ActionContext) -> str:
        """Start its containers and see them run; where there is none yet, `docker compose up` creates them."""
        seen = await self._seen(self._docker, context)
        if seen:
            acts.as_expected(context, _one(seen).id)
            return "; ".join(
                await self._each(
                    [one for one, _, _ in seen], lambda one: acts.start(self._docker, context, one, self._patience)
                )
            )
        await self._compose.up(self.service)
        after = _one(await self._seen(self._docker, context))
        if after.run not in (Run.RUNNING, Run.STARTING):
            raise ActionFailed(f"{self._title}: docker compose up said that it was started, and nothing runs")
        return f"docker compose up created {self._title}: {after.id}"

    async def stop(self, context: ActionContext) -> str:
        """Stop its containers, as a person's wish: nothing heals them afterwards."""
        seen = await self._meant(context)
        stopping = [one for one, _, _ in seen]
        return "; ".join(await self._each(stopping, lambda one: acts.stop(self._docker, context, one, self._patience)))

    async def scale_up(self, context: ActionContext) -> str:
        """Have `arguments["to"]` containers, at most `instances_max`, and say how many there are.

        Fewer than there are changes nothing (S31).

        Raises `ActionFailed` when the service cannot have several or should not, or the files have changed since its
        containers were created, so that further ones would be of another version.
        """
        to = acts.scale_target(context, self.instances_max, "instances_max")
        seen = await self._meant(context)
        up = sum(one.status == "running" for one, _, _ in seen)
        if up >= to:
            return f"{up} containers of {self._title} run already, and {to} were asked for"
        if refusals := await self._against_scaling(seen):
            raise ActionFailed(f"{self._title} is not scaled: {'; '.join(one.message for one in refusals)}")
        await self._compose.up(self.service, max(to, len(seen)))
        after = _one(await self._seen(self._docker, context))
        if after.count < to:
            raise ActionFailed(f"{self._title}: docker compose up is done, and {after.count} of {to} containers run")
        return f"{after.count} containers of {self._title} run, {up} before"

    async def _against_scaling(self, seen: Sequence[tuple[Container, Run, str]]) -> list[Problem]:
        """Return the reasons why the service must not have more containers than now."""
        compose = self._compose
        service = await compose.service(self.service)
        found = _fixed(service)
        written = sorted({place for container, _, _ in seen for place in container.written})
        if written and self.scale_stateful != self.service:
            found.append(
                Problem(
                    path="workload.scale_stateful",
                    message=f"it keeps data in {', '.join(written)}, which a copy would share or lack",
                    hint=f'scale_stateful = "{self.service}", if that is meant',
                )
            )
        now = await compose.fingerprint(self.service)
        if any(container.labels.get(HASH) != now for container, _, _ in seen):
            found.append(
                Problem(
                    path="workload.files",
                    message="its files or variables are not those its containers were created from, so a further one "
                    "would be of another version",
                    hint="run docker compose up yourself, or give the same `files`, `env_files` and `environment`",
                )
            )
        return found

    async def probe(self, context: ActionContext) -> Settled | None:
        """Say whether none of the containers that failed runs any more, and others do; None while it cannot be told.

        Of a `scale_up` it is proof that there are as many as were asked for, of a `stop` that none runs.
        """
        if context.expected is None or context.expected.run is Run.UNKNOWN or " " in context.expected.id:
            return None
        before = set(context.expected.id.split(","))
        try:
            running = {one.incarnation for one, _, _ in await self._seen(self._docker, context) if one.running}
            done = bool(running) and not running & before
            if context.verb == "scale_up":
                done = len(running) >= acts.scale_target(context, self.instances_max, "instances_max")
            elif context.verb == "stop":
                done = not running
        except (OSError, ActionFailed):
            return None
        return Settled.DONE if done else None

    # -- how ---------------------------------------------------------------------------------------------------------

    @property
    def _title(self) -> str:
        return f"{self.project}/{self.service}"

    async def _meant(self, context: ActionContext) -> list[tuple[Container, Run, str]]:
        seen = await self._seen(self._docker, context)
        if not seen:
            raise ActionFailed(
                f"{self._title} has no container at {self.host}; docker compose up creates them, or the names are wrong"
            )
        acts.as_expected(context, _one(seen).id)
        return seen

    async def _each(self, containers: Sequence[Container], act: Callable[[Container], Awaitable[str]]) -> list[str]:
        """Do it to all of them at once, and say what was done to each. Raises `ActionFailed` with what was not."""
        ended = await asyncio.gather(*(act(one) for one in containers), return_exceptions=True)
        failed = [one for one in ended if isinstance(one, BaseException)]
        for one in failed:
            if not isinstance(one, ActionFailed | OSError):
                raise one
        if failed:
            raise ActionFailed("; ".join(str(one) for one in failed))
        return [one for one in ended if isinstance(one, str)]

    # -- before it is needed -----------------------------------------------------------------------------------------

    async def doctor(self, context: Context) -> list[Problem]:
        """Say, without acting, what would stand in the way of everything this workload may be asked to do."""
        try:
            return await self._problems(context)
        except (OSError, ActionFailed) as problem:
            return [doctor.unanswered(self._docker, problem)]

    async def _problems(self, context: Context) -> list[Problem]:
        problems = await doctor.of_engine(self._docker, context, self.verbs() - {"scale_up"})
        if problems:
            return problems
        seen = await self._seen(self._docker, context)
        if not seen:
            problems += doctor.of_container(self._title, None)
        for container, _, _ in seen:
            problems += doctor.of_container(container.name, container)
        if "scale_up" in self.verbs():
            problems += await doctor.may_create(self._docker, context)
            try:
                problems += await self._against_scaling(seen)
            except (ActionFailed, OSError) as problem:
                hint = "see what docker compose config says in `directory`"
                problems.append(Problem(path="workload.directory", message=str(problem), hint=hint))
        return problems


def _number(container: Container) -> str:
    return container.labels.get(NUMBER, "")


def _one(seen: Sequence[tuple[Container, Run, str]]) -> Instance:
    """Return the one instance that these containers are together."""
    if not seen:
        return ABSENT
    incarnations = [container.incarnation for container, _, _ in seen]
    identity = ",".join(incarnations)
    if len(incarnations) > _FEW:
        identity = f"{len(incarnations)} containers {hashlib.sha256(identity.encode()).hexdigest()[:32]}"
    runs = {run for _, run, _ in seen}
    together = next(
        (run for run in (Run.RUNNING, Run.STARTING, Run.EXITED, Run.UNKNOWN, Run.STOPPED) if run in runs), Run.ABSENT
    )
    up = sum(container.running and run is not Run.STOPPED for container, run, _ in seen)
    said = [f"{container.name}: {detail}" for container, run, detail in seen if detail and run is not Run.RUNNING][:4]
    if len(seen) > 1 and up < len(seen):
        said.insert(0, f"{up} of {len(seen)} containers run")
    return Instance(
        id=identity,
        run=together,
        since=max((one.started_at for one, _, _ in seen if one.started_at is not None), default=None),
        count=up,
        detail="; ".join(said),
    )


def _fixed(service: Mapping[str, Any]) -> list[Problem]:
    """Return what in a service's file makes it one of a kind."""
    found = []
    if service.get("container_name"):
        found.append(
            Problem(
                path="workload.service",
                message=f"it has the container_name {service['container_name']!r}, which only one container can have",
                hint="remove container_name from the compose file",
            )
        )
    ports = service.get("ports")
    for port in ports if isinstance(ports, list) else ():
        published = str(port.get("published") or "") if isinstance(port, dict) else ""
        if published and published != "0" and "-" not in published:
            found.append(
                Problem(
                    path="workload.service",
                    message=f"it has the fixed port {published} of the host, which only one container can have",
                    hint="publish a range of ports, or none and put a proxy in front",
                )
            )
    return found
