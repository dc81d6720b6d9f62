"""The HTTP API of selfheal: mount it in an application, or let `selfheal run` serve it.

    app = Starlette(routes=[Mount("/api/recovery", app=recovery_app(supervisor))], lifespan=supervisor.lifespan)

Nothing of the web is imported before it is asked for by name, so that a daemon without `[http]` does without.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from selfheal.hookspecs import hookimpl

if TYPE_CHECKING:
    from selfheal_starlette.access import Caller
    from selfheal_starlette.app import RecoveryApp, recovery_app

_LATE: Final = {
    "Caller": "selfheal_starlette.access",
    "RecoveryApp": "selfheal_starlette.app",
    "recovery_app": "selfheal_starlette.app",
}

__all__ = ["Caller", "RecoveryApp", "recovery_app"]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATE[name]), name)
    return found


@hookimpl
def selfheal_register_frontends() -> dict[str, str]:
    """Register the table `[http]`."""
    return {"http": "selfheal_starlette.serving:Http"}


@hookimpl
def selfheal_register_commands() -> list[Any]:
    """Register `selfheal token`."""
    if "click" not in sys.modules:
        return []  # an application that never had a command line is not made to import one

    commands = import_module("selfheal_starlette.commands")
    return [commands.token]
