"""Containers of a Docker Engine, and services of a compose project, as workloads of selfheal."""

from __future__ import annotations

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_workloads() -> dict[str, str]:
    return {
        "docker": "selfheal_docker.workload:DockerWorkload",
        "compose": "selfheal_docker.compose:ComposeWorkload",
    }
