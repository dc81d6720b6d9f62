"""Redis for selfheal: checks that know why, and cures that only clear what is a cache.

Everything is registered by reference, so that neither a module of ours nor the driver is imported before a configured
service needs it. `reset_pool` is for applications; it imports nothing at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from selfheal.hookspecs import hookimpl

__all__ = ["reset_pool"]


@hookimpl
def selfheal_register_checks() -> dict[str, str]:
    """Register the check `redis`."""
    return {"redis": "selfheal_redis.check:RedisCheck"}


@hookimpl
def selfheal_register_actions() -> dict[str, str]:
    """Register what can be done about a sick Redis."""
    return {
        "redis.reconnect": "selfheal_redis.reconnect:Reconnect",
        "redis.reset_cache": "selfheal_redis.reset_cache:ResetCache",
        "redis.failover": "selfheal_redis.failover:Failover",
    }


def reset_pool(client: Any) -> Callable[..., Any]:
    """Return the `reconnect` of an application: it ends every connection of the pool behind `client`.

    `client` is a `redis.asyncio.Redis` or `redis.Redis`, or the connection pool of one; what is returned is an
    `async def` for the first and a plain function for the second. Commands under way on these connections raise,
    which is what frees those that wait for a server that hangs; the next command connects anew.

        supervisor.action("redis", "reconnect")(reset_pool(client))
    """
    pool = getattr(client, "connection_pool", client)
    if not callable(getattr(pool, "disconnect", None)):
        raise TypeError(f"{type(client).__name__} is neither a client of Redis nor a connection pool")

    async def reset(context: object = None) -> None:
        """Disconnect the pool, on the loop it lives on."""
        await pool.disconnect(inuse_connections=True)

    def reset_here(context: object = None) -> None:
        """Disconnect the pool."""
        pool.disconnect(inuse_connections=True)

    return reset if inspect.iscoroutinefunction(pool.disconnect) else reset_here
