"""Stand-ins for the plugins of the design's example: the same shapes, no drivers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from selfheal.core.model import PASSING, CheckResult, Effect, Instance, Run, Settled
from selfheal.hookspecs import hookimpl
from selfheal.plugins import ActionContext, CheckContext, Context
from selfheal.secret import Secret


class _Check:
    async def check(self, context: CheckContext) -> CheckResult:
        return PASSING


class _Workload:
    async def inspect(self, context: Context) -> Instance:
        return Instance(id="1", run=Run.RUNNING)

    async def restart(self, context: ActionContext) -> None: ...


class _Action:
    async def run(self, context: ActionContext) -> None: ...

    async def probe(self, context: ActionContext) -> Settled | None:
        return None


@attrs.frozen(kw_only=True)
class PostgresCheck(_Check):
    kind: ClassVar[str] = "postgres"
    url: Secret
    expect: str = attrs.field(default="any", validator=attrs.validators.in_(("any", "primary", "replica")))


@attrs.frozen(kw_only=True)
class RedisCheck(_Check):
    kind: ClassVar[str] = "redis"
    url: Secret


@attrs.frozen(kw_only=True)
class PostgresReconnect(_Action):
    kind: ClassVar[str] = "postgres"
    verb: ClassVar[str] = "reconnect"
    effect: ClassVar[Effect] = Effect.GENTLE


@attrs.frozen(kw_only=True)
class RedisReconnect(_Action):
    kind: ClassVar[str] = "redis"
    verb: ClassVar[str] = "reconnect"
    effect: ClassVar[Effect] = Effect.GENTLE


@attrs.frozen(kw_only=True)
class RedisResetCache(_Action):
    kind: ClassVar[str] = "redis"
    verb: ClassVar[str] = "reset_cache"
    effect: ClassVar[Effect] = Effect.DESTRUCTIVE
    pattern: str = "*"
    patience: float = 1.0


@attrs.frozen(kw_only=True)
class DockerContainer(_Workload):
    kind: ClassVar[str] = "docker"
    container: str


@attrs.frozen(kw_only=True)
class SystemdUnit(_Workload):
    kind: ClassVar[str] = "systemd"
    unit: str

    async def scale_up(self, context: ActionContext) -> None: ...


@attrs.frozen(kw_only=True)
class HttpFrontend:
    kind: ClassVar[str] = "http"
    listen: str = "127.0.0.1:3000"
    token: Secret | None = None

    async def serve(self, supervisor: Any) -> None: ...


class StandIns:
    """A plugin as an object."""

    @hookimpl
    def selfheal_register_checks(self) -> list[type]:
        return [PostgresCheck, RedisCheck]

    @hookimpl
    def selfheal_register_workloads(self) -> list[type]:
        return [DockerContainer, SystemdUnit]

    @hookimpl
    def selfheal_register_actions(self) -> list[type]:
        return [PostgresReconnect, RedisReconnect, RedisResetCache]

    @hookimpl
    def selfheal_register_frontends(self) -> list[type]:
        return [HttpFrontend]

    @hookimpl
    def selfheal_register_presets(self) -> Mapping[str, Mapping[str, Any]]:
        return {
            "database": {
                "priority": "high",
                "interval": "20s",
                "max_retries": 2,
                "backoff": {"initial": 2, "cap": "1m"},
                "check": {"kind": "postgres", "expect": "primary"},
                "recovery_actions": ["reconnect"],
            }
        }
