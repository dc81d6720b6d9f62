"""selfheal watches services, decides when one has really failed, repairs them, and proves the repair."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, files
from typing import TYPE_CHECKING, Any

from selfheal.core.model import (
    PASSING,
    Backoff,
    Budget,
    Cause,
    CheckResult,
    Effect,
    Instance,
    Limits,
    Notification,
    Priority,
    Run,
    Scalar,
    Settled,
    Severity,
    State,
    Step,
    Verdict,
    Window,
)
from selfheal.core.routing import Route
from selfheal.errors import (
    ActionFailed,
    ConfigurationError,
    ControlError,
    JournalDamaged,
    JournalError,
    JournalHeld,
    JournalTooNew,
    NotificationFailed,
    NotRunning,
    PluginError,
    RequestRefused,
    SelfhealError,
)
from selfheal.hookspecs import hookimpl
from selfheal.ladder import RecoveryAction
from selfheal.plugins import Action, ActionContext, CheckContext, Context, HealthCheck, Notifier, Watching, Workload
from selfheal.secret import Secret
from selfheal.service import Canary, RecoveryStrategy, Service
from selfheal.wire import PeerClosed, Target, Tls, WireCheck

if TYPE_CHECKING:
    from selfheal.shell.converse import converse
    from selfheal.shell.once import check_once
    from selfheal.supervisor import Supervisor

_LATE = {
    "Supervisor": "selfheal.supervisor",
    "check_once": "selfheal.shell.once",
    "converse": "selfheal.shell.converse",
}
"""What runs something is imported when it is first asked for: a plugin or a command that only asks does without."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LATE[name]), name)
    return found


def _refuse_namesake() -> None:
    """Say it in one sentence when the unrelated distribution `selfheal` shares our folder of the import path."""
    try:
        shipped = files("selfheal") or ()
    except PackageNotFoundError:
        return
    if any(file.parts and file.parts[0] == "selfheal" for file in shipped):
        raise ImportError(
            "the unrelated distribution `selfheal` is installed and owns this import package too: "
            "run `pip uninstall selfheal` and then `pip install --force-reinstall selfheal-core`"
        )


_refuse_namesake()

__all__ = [
    "PASSING",
    "Action",
    "ActionContext",
    "ActionFailed",
    "Backoff",
    "Budget",
    "Canary",
    "Cause",
    "CheckContext",
    "CheckResult",
    "ConfigurationError",
    "Context",
    "ControlError",
    "Effect",
    "HealthCheck",
    "Instance",
    "JournalDamaged",
    "JournalError",
    "JournalHeld",
    "JournalTooNew",
    "Limits",
    "NotRunning",
    "Notification",
    "NotificationFailed",
    "Notifier",
    "PeerClosed",
    "PluginError",
    "Priority",
    "RecoveryAction",
    "RecoveryStrategy",
    "RequestRefused",
    "Route",
    "Run",
    "Scalar",
    "Secret",
    "SelfhealError",
    "Service",
    "Settled",
    "Severity",
    "State",
    "Step",
    "Supervisor",
    "Target",
    "Tls",
    "Verdict",
    "Watching",
    "Window",
    "WireCheck",
    "Workload",
    "check_once",
    "converse",
    "hookimpl",
]
