"""Proving, without acting, that this process may do what is configured; and what to change where it may not.

Permission cannot be read off the socket: a proxy or an authorisation plugin stands behind it and answers each request
by itself. So each kind of request is really made, for a container that does not exist: Docker answers that there is
none, whoever forbids it answers that it is forbidden, and nothing happens either way.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection
from typing import Final

from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import Context
from selfheal_docker.api import Docker, line
from selfheal_docker.container import Container

_REQUESTS: Final = {
    "restart": ("restart", "ALLOW_RESTARTS=1"),
    "start": ("start", "ALLOW_START=1"),
    "stop": ("stop", "ALLOW_STOP=1 or ALLOW_RESTARTS=1"),
    "scale_up": ("update", "POST=1, which allows everything else as well"),
}
"""verb -> the last part of the request's path, and the setting of the common socket proxy that allows it."""


async def of_engine(docker: Docker, context: Context, verbs: Collection[str]) -> list[Problem]:
    """Return what stands between this process and Docker, and which of `verbs` it would not be allowed."""
    try:
        seen = await docker.get(context, "/containers/json", limit="1")
    except (OSError, ActionFailed) as problem:
        return [unanswered(docker, problem)]
    problems = []
    if seen.status != 200:
        problems.append(
            Problem(
                path="workload.host",
                message=f"containers may not be looked at ({seen.status})",
                hint=_hint("CONTAINERS=1"),
            )
        )
    for verb in sorted(set(verbs) & set(_REQUESTS)):
        problems += await _allowed(docker, context, verb)
    problems += await _may_listen(docker, context)
    return problems


def unanswered(docker: Docker, problem: OSError | ActionFailed) -> Problem:
    """Return the problem that Docker gives no answer, or none that can be read."""
    if isinstance(problem, socket.gaierror):
        return Problem(path="workload.host", message=f"{docker.host}: {problem}", hint="correct the name")
    said = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
    text, _, hint = line(said, 400).partition("; ")
    return Problem(path="workload.host", message=text, hint=hint or "see that Docker runs and answers there")


async def _allowed(docker: Docker, context: Context, verb: str) -> list[Problem]:
    action, setting = _REQUESTS[verb]
    nobody = f"selfheal-doctor-{secrets.token_hex(16)}"
    reply = await docker.post(context, f"/containers/{nobody}/{action}", {} if action == "update" else None)
    if reply.status == 404 and b"no such container" in reply.body.lower():
        return []
    return [Problem(path="workload", message=f"{verb} is not allowed here ({reply.status})", hint=_hint(setting))]


async def _may_listen(docker: Docker, context: Context) -> list[Problem]:
    try:
        async with docker.events(context, {"since": "0", "until": "1"}) as events:
            async for _ in events:
                pass
    except (OSError, ActionFailed) as problem:
        return [
            Problem(
                path="workload.host",
                message=f"events may not be listened to ({line(problem)}): deaths are only seen by polling, and a stop "
                "by a person may be taken for an end",
                hint=_hint("EVENTS=1"),
            )
        ]
    return []


def _hint(setting: str) -> str:
    return f"set {setting} on the socket proxy, or let the authorisation plugin of Docker allow it"


def of_container(
    named: str, container: Container | None, memory_max: int | None = None, cpus_max: float | None = None
) -> list[Problem]:
    """Return what about a container would keep its workload from healing it."""
    if container is None:
        return [
            Problem(
                path="workload.container",
                message=f"there is no container {named}",
                hint="create it, correct the name, or name the Docker it is on with `host`",
            )
        ]
    problems = []
    if container.auto_remove:
        problems.append(
            Problem(
                path="workload.container",
                message=f"{named} was created with --rm: when it ends it is gone, and nothing is left to be started",
                hint="create it without --rm",
            )
        )
    if container.status == "dead":
        problems.append(
            Problem(
                path="workload.container",
                message=f"{named} is dead and cannot be started",
                hint=f"docker rm -f {named}",
            )
        )
    if memory_max is not None and container.memory <= 0:
        problems.append(
            Problem(
                path="workload.memory_max",
                message=f"{named} has no memory limit, so there is nothing to raise",
                hint=f"docker update --memory … {named}, or leave memory_max away",
            )
        )
    if cpus_max is not None and container.nano_cpus <= 0 and container.cpu_quota <= 0:
        problems.append(
            Problem(
                path="workload.cpus_max",
                message=f"{named} has no processor limit, so there is nothing to raise",
                hint=f"docker update --cpus … {named}, or leave cpus_max away",
            )
        )
    return problems


async def of_swarm(docker: Docker, context: Context) -> list[Problem]:
    """Return what stands between this process and the services of a swarm."""
    problems = []
    for path, setting in (("/services", "SERVICES=1"), ("/tasks", "TASKS=1")):
        reply = await docker.get(context, path, filters='{"name": ["selfheal-doctor-nobody"]}')
        if reply.status == 503:
            hint = "name a manager of the swarm in `host`; docker swarm init makes one of this node"
            return [Problem(path="workload.host", message=f"{docker.host} is no manager of a swarm", hint=hint)]
        if reply.status != 200:
            message = f"{path[1:]} may not be looked at ({reply.status})"
            problems.append(Problem(path="workload.host", message=message, hint=_hint(setting)))
    nobody = f"selfheal-doctor-{secrets.token_hex(16)}"
    reply = await docker.post(context, f"/services/{nobody}/update", {}, version="1")
    if reply.status in (401, 403, 405):
        message = f"services may not be updated here ({reply.status}), so neither restart nor scale_up is possible"
        hint = _hint("SERVICES=1 and POST=1, which allows everything else as well,")
        problems.append(Problem(path="workload", message=message, hint=hint))
    return problems


async def may_create(docker: Docker, context: Context) -> list[Problem]:
    """Return what forbids that containers are created, as `docker compose up` does; of an empty order none is made."""
    reply = await docker.post(context, "/containers/create", {})
    if reply.status not in (401, 403, 405):
        return []
    return [
        Problem(
            path="workload.instances_max",
            message=f"containers may not be created here ({reply.status}), so scale_up is not possible",
            hint="a socket proxy that allows this (POST=1, with CONTAINERS, IMAGES, NETWORKS, VOLUMES and INFO) allows "
            "everything: rather let selfheal use the socket itself, or leave instances_max at 1",
        )
    ]
