"""The workload `docker`: one container of a Docker Engine, by its name or id."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar, Final, Literal

import attrs

from selfheal import Instance, Run, Settled
from selfheal.builtin.options import factor, memory, processors, seconds
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Context
from selfheal_docker import acts, doctor, resources
from selfheal_docker.acts import Patience
from selfheal_docker.api import DEFAULT, Docker, check_host
from selfheal_docker.container import ABSENT, Container, Memory, instance_of
from selfheal_docker.listening import Filters, changes

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")

UNEXPLAINED: Final[dict[str, Run]] = {"exited": Run.EXITED, "stopped": Run.STOPPED}


def check_name(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate the name of a container: attrs calls this (S28)."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{attribute.name}: {value!r} is no name of a container; "
            "Docker's names have letters, digits, '_', '.' and '-', and begin with a letter or digit"
        )


def check_unexplained(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate `unexplained_end`: attrs calls this."""
    if value not in UNEXPLAINED:
        raise ValueError(f'{attribute.name}: {value!r} is neither "exited" (heal it) nor "stopped" (leave it alone)')


def check_named_again(named: str | None, service: str) -> None:
    """Validate `scale_stateful`, which names its own service or nothing. Raises `ValueError`."""
    if named not in (None, service):
        raise ValueError(f"scale_stateful: {named!r} is not this service's name, {service!r}")


@attrs.frozen(kw_only=True)
class DockerWorkload:
    """One container: who runs and how it ended; it can be restarted, started, stopped and given more resources."""

    kind: ClassVar[str] = "docker"

    #: The container's name, or its id (at least twelve digits of it).
    container: str = attrs.field(validator=check_name)
    #: Where Docker listens: `unix:///path`, or `tcp://host:port` of a socket proxy on an inner network.
    host: str = attrs.field(default=DEFAULT, validator=check_host)
    #: Seconds from the stop signal to SIGKILL; by default, what the container was created with, else 10.
    stop_timeout: float | None = seconds(None, 0.0, 3600.0)
    #: Seconds a container without a health check must run to count as started.
    settle: float = seconds(1.0, 0.0, 300.0)
    #: Seconds Docker's health check is waited for after a start; what is still starting then is not yet a failure.
    health_timeout: float = seconds(10.0, 0.0, 3600.0)
    #: What an end counts as of which cannot be told whether somebody asked for it: `exited` or `stopped`.
    unexplained_end: Literal["exited", "stopped"] = attrs.field(default="exited", validator=check_unexplained)
    #: The most memory `scale_up` may give it, in bytes or as `"2g"`; by default, memory is left alone.
    memory_max: int | None = memory(low=resources.LEAST)
    #: The most processors `scale_up` may give it; by default, they are left alone.
    cpus_max: float | None = processors()
    #: The factor by which one `scale_up` raises memory and processors.
    grow: float = factor(1.5)
    _memory: Memory = attrs.field(factory=Memory, init=False, eq=False, repr=False)

    @property
    def _docker(self) -> Docker:
        return Docker(self.host)

    @property
    def _patience(self) -> Patience:
        return Patience(stop_timeout=self.stop_timeout, settle=self.settle, health_timeout=self.health_timeout)

    # -- who runs ----------------------------------------------------------------------------------------------------

    async def inspect(self, context: Context) -> Instance:
        """Return who runs: the container and when it was started, which stays when it ends.

        Raises `OSError` when Docker gives no answer, `ActionFailed` when it refuses to.
        """
        return await self._look(self._docker, context)

    async def _look(self, docker: Docker, context: Context) -> Instance:
        container = await acts.found(docker, context, self.container)
        if container is None:
            return ABSENT
        run, detail = await self._standing(docker, context, container)
        return instance_of(container, run, detail)

    async def _standing(self, docker: Docker, context: Context, container: Container) -> tuple[Run, str]:
        unexplained = UNEXPLAINED[self.unexplained_end]
        return await acts.standing(docker, context, self._memory, container, unexplained)

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        """Yield the instance whenever Docker says that something happened to it."""
        names = {self.container}

        def filters() -> Filters:
            return {"container": sorted(names)}

        async def look(docker: Docker) -> Instance:
            container = await acts.found(docker, context, self.container)
            # A new name is told under the new name only, so the id is listened to as well.
            names.clear()
            names.update({self.container} if container is None else {self.container, container.id})
            if container is None:
                return ABSENT
            run, detail = await self._standing(docker, context, container)
            return instance_of(container, run, detail)

        async with aclosing(changes(self._docker, context, self._memory, filters, look)) as instances:
            async for instance in instances:
                yield instance

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def verbs(self) -> frozenset[str]:
        """Return what this workload can be asked to do, which depends on whether it has a maximum to grow to."""
        grows = self.memory_max is not None or self.cpus_max is not None
        return frozenset({"restart", "start", "stop"} | ({"scale_up"} if grows else set()))

    async def restart(self, context: ActionContext) -> str:
        """Restart it, or start it if it has ended, see it run, and say what runs now.

        Raises `ActionFailed` when it does not exist (S30), is another incarnation than the one that failed, was
        stopped or paused by a person, is being restarted by Docker itself, ended at once, or is unhealthy afterwards.
        """
        container = await self._meant(context)
        run, detail = await self._standing(self._docker, context, container)
        acts.refuse_restart(container, run, detail)
        self._memory.ordered.append(container.incarnation)
        return await acts.restart(self._docker, context, container, self._patience)

    async def start(self, context: ActionContext) -> str:
        """Start it and see it run; one that runs is left alone. Raises `ActionFailed`, as `restart` does."""
        return await acts.start(self._docker, context, await self._meant(context), self._patience)

    async def stop(self, context: ActionContext) -> str:
        """Stop it, as a person's wish: it counts as stopped afterwards, and nothing heals it."""
        return await acts.stop(self._docker, context, await self._meant(context), self._patience)

    async def scale_up(self, context: ActionContext) -> str:
        """Give it more memory and processors while it runs, up to the maxima, and say how much; nothing is restarted.

        Raises `ActionFailed` when it is at its maximum already, has no limits, or Docker did not do it.
        """
        if context.arguments.get("to") is not None:
            raise ActionFailed(
                "scale_up: one container cannot be several; leave `to` away, or use the workload compose"
            )
        container = await self._meant(context)
        update = resources.raised(container, self.memory_max, self.cpus_max, self.grow)
        (await self._docker.post(context, f"/containers/{container.id}/update", update)).wanted(200)
        after = await acts.found(self._docker, context, container.id)
        missed = "it was removed" if after is None else resources.short_of(after, update)
        if after is None or missed:
            raise ActionFailed(f"{container.name}: Docker said that it was updated, but {missed}")
        return resources.told(container, after)

    async def probe(self, context: ActionContext) -> Settled | None:
        """Say whether another incarnation runs than the one that failed; None while that cannot be told.

        The same incarnation proves nothing yet: Docker may still be waiting for it to stop, and will then start it.
        Of a `stop` its end is proof. Nothing can be told of a `scale_up`: what it had before, Docker does not say.
        """
        if context.expected is None or context.expected.run is Run.UNKNOWN or context.verb == "scale_up":
            return None
        try:
            container = await acts.found(self._docker, context, self.container)
        except (OSError, ActionFailed):
            return None
        if container is not None and context.verb == "stop":
            return Settled.DONE if container.status == "exited" else None
        if container is None or not container.running or container.incarnation == context.expected.id:
            return None
        return Settled.DONE

    async def _meant(self, context: ActionContext) -> Container:
        container = await acts.found(self._docker, context, self.container)
        if container is None:
            raise ActionFailed(f"there is no container {self.container} at {self.host}; create it, or correct the name")
        acts.as_expected(context, container.incarnation)
        return container

    # -- before it is needed -----------------------------------------------------------------------------------------

    async def doctor(self, context: Context) -> list[Problem]:
        """Say, without acting, what would stand in the way of everything this workload may be asked to do."""
        try:
            problems = await doctor.of_engine(self._docker, context, self.verbs())
            if not problems:
                container = await acts.found(self._docker, context, self.container)
                problems = doctor.of_container(self.container, container, self.memory_max, self.cpus_max)
        except (OSError, ActionFailed) as problem:
            return [doctor.unanswered(self._docker, problem)]
        return problems
