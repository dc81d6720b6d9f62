"""The hooks: how a plugin registers its classes, and the one by which it is told of records.

Hooks register, they never do the work: a hook is called once, when plugins are loaded, and must return at once. Write
a module with functions of these names under `@hookimpl`, and name the module in the entry-point group `selfheal`:

    @hookimpl
    def selfheal_register_checks():
        return [RedisCheck]

A `selfheal_register_…` hook for classes returns them, or maps each kind to its class or to `"package.module:Class"`,
which is imported when a configured service first needs it (so that a driver may be imported at the top of a module).
A class is a frozen attrs class with `kind: ClassVar[str]`; its fields are the keys people write in the file, so give
each a type and a validator. A hook is a plain function; `async def` is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeAlias, runtime_checkable

import pluggy

GROUP: Final = "selfheal"
"""The entry-point group, and pluggy's project name."""

hookspec: Final = pluggy.HookspecMarker(GROUP)
hookimpl: Final = pluggy.HookimplMarker(GROUP)
"""Marks the functions of a plugin that are hooks."""

STATE_DIR: Final = "selfheal.state_dir"
"""Key of `click.Context.meta` for the commands of plugins: a function that returns the `state_dir` that is meant.

It raises `ControlError` where none is named and none, or several, suggest themselves.
"""

Registered: TypeAlias = "Iterable[type[Any]] | Mapping[str, type[Any] | str]"
"""What a registering hook returns: classes, or kind -> class or `"module:Class"`."""


@runtime_checkable
class Frontend(Protocol):
    """A door of the running supervisor, configured by the table of the file that has its kind for a name."""

    kind: ClassVar[str]

    async def serve(self, supervisor: Any) -> None:
        """Serve until cancelled. One that ends by itself or raises is reported, and does not end the supervisor.

        A frontend may also offer `routes(supervisor)`: ASGI applications by their paths (`{"/metrics": app}`), which
        `[http]` shows beside the API to whoever may read there. They are called on the event loop of that server, and
        `supervisor` has `ask` and `act` for any loop.
        """


# The bodies are what a plugin without the hook registers: nothing.


@hookspec
def selfheal_register_checks() -> Registered:
    """Return classes with `check` (a `HealthCheck`), or `target` and `talk` (a `WireCheck`), or both."""
    return ()


@hookspec
def selfheal_register_workloads() -> Registered:
    """Return classes with `inspect` and `restart`: what runs a service (a `Workload`)."""
    return ()


@hookspec
def selfheal_register_actions() -> Registered:
    """Return classes with `verb`, `effect` and `run` (an `Action`). A mapping has `"<check kind>.<verb>"` for keys."""
    return ()


@hookspec
def selfheal_register_notifiers() -> Registered:
    """Return classes with `send` (a `Notifier`)."""
    return ()


@hookspec
def selfheal_register_frontends() -> Registered:
    """Return classes with `serve` (a `Frontend`)."""
    return ()


@hookspec
def selfheal_register_presets() -> Mapping[str, Mapping[str, Any]]:
    """Return name -> keys of a service as the file would have them, used where it says `preset = "<name>"`."""
    return {}


@hookspec
def selfheal_register_commands() -> Iterable[Any]:
    """Return click commands, added to the command line under their own names."""
    return ()


@hookspec
def selfheal_on_record(record: Mapping[str, Any]) -> None:
    """Be told of a record, in its public JSON shape, once it is stored.

    Called in the order of records, off the engine's path, by one caller; return at once. What it raises is logged
    with the plugin's name and otherwise ignored.
    """
