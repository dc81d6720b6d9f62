"""PostgreSQL for selfheal: a check that knows why, and cures with a fence. See the README beside `src`.

Registers the classes by reference: neither the check nor, above all, the driver is imported before a service needs it.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfheal.hookspecs import hookimpl


@hookimpl
def selfheal_register_checks() -> Mapping[str, str]:
    return {"postgres": "selfheal_postgres.check:PostgresCheck"}


@hookimpl
def selfheal_register_actions() -> Mapping[str, str]:
    return {
        "postgres.reconnect": "selfheal_postgres.reconnect:Reconnect",
        "postgres.failover": "selfheal_postgres.failover:Failover",
    }
