"""Containers of a Docker Engine, and services of a compose project or a swarm, as workloads of selfheal."""

from __future__ import annotations

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_workloads() -> dict[str, str]:
    return {
        "docker": "selfheal_docker.workload:DockerWorkload",
        "compose": "selfheal_docker.compose:ComposeWorkload",
        "swarm": "selfheal_docker.swarm:SwarmWorkload",
    }
