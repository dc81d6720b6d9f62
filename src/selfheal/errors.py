"""Every exception this library raises.

- SelfhealError: whatever selfheal itself refuses or fails at
    - ConfigurationError: what was written cannot be used; has a list of `Problem`
    - PluginError: a plugin could not be loaded or does not fit its interface
    - JournalError: the store refused
        - JournalHeld: another selfheal holds it
        - JournalDamaged: the file is corrupt, truncated, empty, or not ours
        - JournalTooNew: written by a newer release
    - RequestRefused: an act or a query was not answered as asked; has a `code`
    - NotRunning: the supervisor is not running
    - ControlError: the daemon cannot be reached, or did not speak our protocol
    - NotificationFailed: raised by notifiers; delivery is tried again unless `permanent`
    - SecretUnreadable: a secret is not there, or is not usable as one
    - ActionFailed: raised by actions and workloads; its text is the action's outcome

Errors say what was wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs


class SelfhealError(Exception):
    """Whatever selfheal itself refuses or fails at."""


@attrs.frozen(kw_only=True)
class Problem:
    """One thing wrong with a configuration: where (`services.redis.max_retries`), what, and what to do."""

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigurationError(SelfhealError):
    """What was written cannot be used. All problems are reported at once, in `problems`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PluginError(SelfhealError):
    """A plugin could not be loaded or does not fit its interface."""


class JournalError(SelfhealError):
    """The store refused."""


class JournalHeld(JournalError):
    """Another selfheal holds this journal."""


class JournalDamaged(JournalError):
    """The journal is corrupt, truncated, empty, or not ours; it is left as it is."""


class JournalTooNew(JournalError):
    """The journal was written by a newer release."""


class RequestRefused(SelfhealError):
    """An act or a query was not answered as asked.

    `code` is one of `unknown_request`, `unknown_service`, `bad_parameter`, `forbidden`, `refused`, `conflict`,
    `not_found`, `not_running`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class NotRunning(SelfhealError):
    """The supervisor is not running."""


class ControlError(SelfhealError):
    """The daemon cannot be reached, or did not speak our protocol."""


class NotificationFailed(SelfhealError):
    """Raised by a notifier that could not deliver.

    `retry_after` is the receiver's own wish in seconds; a `permanent` failure is not tried again.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, permanent: bool = False) -> None:
        self.retry_after = retry_after
        self.permanent = permanent
        super().__init__(message)


class SecretUnreadable(SelfhealError, LookupError):
    """A secret is not there, is empty, too long or no text. What it says never quotes what was read."""


class ActionFailed(SelfhealError):
    """Raised by an action or a workload that could not do what was asked; its text is the action's outcome."""
