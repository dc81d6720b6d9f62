"""What a finished check means: values, exceptions and endings in, `CheckResult` out.

Owns the translation of design law 7 for coroutine checks and for an application's callables, and the last look at
everything a plugin says before it is stored: scrubbed of the secrets of its object, stripped, capped (law 16).
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from enum import Enum
from math import isfinite
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import attrs

from selfheal.core.model import PASSING, Cause, CheckResult, Scalar, Verdict
from selfheal.errors import ConfigurationError, SecretUnreadable
from selfheal.plugins import CheckContext, HealthCheck
from selfheal.secret import Secret, scrub
from selfheal.shell.blocking import StillStuck
from selfheal.shell.oserrors import from_oserror
from selfheal.shell.plugin_thread import Ending, Outcome
from selfheal.wire import inconclusive

SUMMARY_LIMIT: Final = 500
"""Characters of a summary, and of one detail, that are kept."""

DETAILS_LIMIT: Final = 32
"""Details of one result that are kept."""

NAME_LIMIT: Final = 64
"""Characters of a detail's name that are kept."""

READ_LIMIT: Final = 65536
"""Characters of a text that are looked at, at all: no secret can straddle the end of what is kept."""

REMEMBERED: Final = 4
"""Values of one secret that are scrubbed: a rotated password may still stand in an old connection's error."""

_BUGS: Final = (ImportError, NameError, TypeError, AttributeError)
_UNSET: Final = (ConfigurationError, SecretUnreadable)
"""What a callable raises that has nothing to ask with."""


# -- what the runner calls ------------------------------------------------------------------------------------------


async def checked(check: HealthCheck, context: CheckContext, scrubber: Scrubber) -> CheckResult:
    """Run a coroutine check on the plugin loop and return what it means, scrubbed. Raises only when cancelled."""
    try:
        result = of_value(await check.check(context))
    except (asyncio.CancelledError, GeneratorExit):  # both ask the coroutine to end: the runner translates them
        raise
    except BaseException as problem:  # noqa: BLE001  # law 15: whatever a plugin raises is INCONCLUSIVE at worst
        result = of_exception(problem)
    if result is PASSING:
        return result
    await scrubber.read()
    return scrubber.clean(result)


def of_outcome(outcome: Outcome, *, timeout: float) -> CheckResult:
    """Return what the outcome of `checked` means. `timeout` is the deadline it had, in seconds."""
    match outcome.ending:
        case Ending.VALUE:
            return of_value(outcome.value)
        case Ending.TIMED_OUT:
            return CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT, summary=f"no answer within {timeout:g} s")
        case Ending.CANCELLED:
            return inconclusive("the check was cancelled", None)
        case Ending.ABANDONED:
            return inconclusive("the loop of the check was abandoned: another plugin blocked it", Cause.ERROR)
        case Ending.EXCEPTION:
            return Scrubber(None).clean(of_exception(outcome.error))


def of_callable(outcome: Outcome, *, timeout: float) -> CheckResult:
    """Return what an application's callable found: `bool`, `Verdict` or `CheckResult`; an exception is a failure.

    Except the exceptions that are bugs, and what is our own shortage: those are INCONCLUSIVE.
    """
    if outcome.ending is Ending.VALUE:
        value = outcome.value
        if isinstance(value, bool):
            return PASSING if value else CheckResult(Verdict.FAILING, cause=Cause.ERROR, summary="returned False")
        if isinstance(value, Verdict):
            value = CheckResult(value)
        if not isinstance(value, CheckResult):
            return inconclusive(
                f"returned {type(value).__name__}; return a bool, a Verdict or a CheckResult", Cause.CONFIG
            )
        return Scrubber(None).clean(of_value(value))
    error = outcome.error
    if outcome.ending is not Ending.EXCEPTION or error is None or isinstance(error, StillStuck):
        return of_outcome(outcome, timeout=timeout)
    if isinstance(error, ImportError) or not isinstance(error, Exception) or _ours(error):
        return Scrubber(None).clean(of_exception(error))
    verdict = Verdict.INCONCLUSIVE if isinstance(error, (*_BUGS, *_UNSET)) else Verdict.FAILING
    cause = Cause.CONFIG if isinstance(error, _UNSET) else Cause.ERROR
    return Scrubber(None).clean(CheckResult(verdict, cause=cause, summary=_told(error)))


# -- values and exceptions -------------------------------------------------------------------------------------------


def of_value(value: object) -> CheckResult:
    """Return the result a check returned; anything that is not one is INCONCLUSIVE, `config` (S5)."""
    if value is PASSING:
        return PASSING
    if not isinstance(value, CheckResult):
        return inconclusive(f"the check returned {type(value).__name__}, not a CheckResult", Cause.CONFIG)
    try:
        verdict = Verdict(value.verdict)
        cause = None if value.cause is None else Cause(value.cause)
    except (TypeError, ValueError):
        return inconclusive("the check returned a CheckResult whose verdict or cause is none of ours", Cause.CONFIG)
    if cause is None and verdict is Verdict.FAILING:
        cause = Cause.ERROR
    return attrs.evolve(value, verdict=verdict, cause=cause)


def of_exception(problem: BaseException | None) -> CheckResult:
    """Return what an exception that left a coroutine check means. Not yet scrubbed."""
    problem = _single(problem)
    if isinstance(problem, StillStuck):
        return CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT, summary=str(problem))
    if isinstance(problem, OSError):
        return from_oserror(problem)
    if isinstance(problem, ImportError):
        return inconclusive(f"{_told(problem)}; install what this check needs", Cause.CONFIG)
    if isinstance(problem, asyncio.CancelledError | FutureCancelled | GeneratorExit):
        return inconclusive("the check cancelled itself", Cause.ERROR)
    return inconclusive("the check ended in an unknown way" if problem is None else _told(problem), Cause.ERROR)


def _ours(problem: Exception) -> bool:
    return isinstance(problem, OSError) and from_oserror(problem).verdict is Verdict.INCONCLUSIVE


def _single(problem: BaseException | None) -> BaseException | None:
    """Return the one exception inside of groups of one, as task groups raise them."""
    while isinstance(problem, BaseExceptionGroup) and len(problem.exceptions) == 1:
        problem = problem.exceptions[0]
    return problem


def _told(problem: BaseException) -> str:
    try:
        text = str(problem)
    except Exception:  # noqa: BLE001  # the __str__ of a foreign exception may do anything
        text = "its text could not be read"
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


# -- the last look --------------------------------------------------------------------------------------------------


_GIVE: Final = "make it readable for the user selfheal runs as"
_REMEDIES: Final = {
    "env": "set it in the environment selfheal runs in",
    "credential": "see LoadCredential= of its unit",
}
"""What to do about a secret of this kind that cannot be read."""


class Scrubber:
    """Removes the secrets of one plugin object from what it says."""

    def __init__(self, plugin: object) -> None:
        self._secrets = list(secrets_in(plugin))
        self._values: list[dict[str, None]] = [{} for _ in self._secrets]
        self._forms: list[str] = []
        self._from_files = any(secret.source != "literal" for secret in self._secrets)

    @property
    def may_block(self) -> bool:
        """Whether reading the secrets anew may block: they come from files, say."""
        return self._from_files

    async def read(self) -> None:
        """Read the secrets anew, on an asyncio loop: from files in a thread, for a disk may hang."""
        if self._from_files:
            await asyncio.get_running_loop().run_in_executor(None, self.read_now)
        else:
            self.read_now()

    def read_now(self) -> None:
        """Read the secrets anew, here. One that cannot be read is scrubbed by its earlier values."""
        for secret, values in zip(self._secrets, self._values, strict=True):
            try:
                value = secret.reveal()
            except Exception:  # noqa: BLE001, S112  # a reader is configuration: a missing file must not fail the check
                continue
            values.pop(value, None)
            values[value] = None
            while len(values) > REMEMBERED:
                del values[next(iter(values))]
        self._forms = [form for values in self._values for value in values for form in _forms(value)]

    def unreadable(self) -> list[tuple[str, str]]:
        """Say of each secret that cannot be read why not, and what to do. Reads files: not for the loop."""
        told = []
        for secret in self._secrets:
            try:
                secret.reveal()
            except Exception as problem:  # noqa: BLE001  # whatever the reader of a secret raises, it is unreadable
                kind = secret.source.partition(" ")[0]
                told.append((f"the secret from {secret.source} cannot be read: {problem}", _REMEDIES.get(kind, _GIVE)))
        return list(dict.fromkeys(told))

    def quotable(self, text: str) -> bool:
        """Whether a text holds no part of a secret: no run of six characters is in both, bar the scheme of an URL."""
        values = [value.partition("://")[2] or value for values in self._values for value in values]
        return not any(value[at : at + 6] in text for value in values for at in range(max(1, len(value) - 5)) if value)

    def text(self, text: object, limit: int = SUMMARY_LIMIT) -> str:
        """Return a text without secrets and control characters, at most `limit` characters long."""
        cut = scrub(str(text)[:READ_LIMIT], self._forms)
        plain = "".join(" " if c.isspace() else c for c in cut if c.isspace() or unicodedata.category(c)[0] != "C")
        plain = scrub(plain, self._forms).strip()
        return plain if len(plain) <= limit else plain[: limit - 1] + "…"

    def clean(self, result: CheckResult) -> CheckResult:
        """Return a result that can be stored: scrubbed, capped, and nothing in it but plain values."""
        if result is PASSING:
            return result
        return CheckResult(
            result.verdict,
            cause=result.cause,
            summary=self.text(result.summary),
            details=self._details(result.details),
            instance=None if result.instance is None else self.text(result.instance, 200),
            definite=bool(result.definite),
        )

    def _details(self, details: object) -> dict[str, Scalar]:
        if not isinstance(details, Mapping):
            return {}
        kept: dict[str, Scalar] = {}
        for name, value in details.items():
            if len(kept) == DETAILS_LIMIT:
                break
            kept[self.text(name, NAME_LIMIT)] = self._scalar(value)
        return kept

    def _scalar(self, value: object) -> Scalar:
        if isinstance(value, Enum):
            value = value.value
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and abs(value) < 2**63:
            return int(value)
        if isinstance(value, float) and isfinite(value):
            return float(value)
        try:
            return self.text(value)
        except Exception:  # noqa: BLE001  # the __str__ of a foreign value may do anything
            return type(value).__name__


def secrets_in(value: object) -> Iterable[Secret]:
    """Yield every `Secret` in an attrs object, through nested ones, mappings and sequences."""
    seen: set[int] = set()
    waiting: list[object] = [value]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Secret):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        elif attrs.has(kind := type(value)):
            waiting.extend(getattr(value, field.name, None) for field in attrs.fields(kind))


def secret_forms(plugin: object, *more: str) -> list[str]:
    """Return every shape of the secrets of a plugin object that is long enough to be looked for; reads them now."""
    forms = {form for secret in secrets_in(plugin) for form in _forms(secret.reveal())}
    forms |= {form for value in more for form in _forms(value)}
    return [form for form in forms if len(form) >= 4]


_KEYED: Final = re.compile(r"(?i)(?:password|passwd|passfile|pwd|token|secret|key|sig|signature)\s*=\s*([^\s&;]+)")


def _forms(value: str) -> Iterable[str]:
    """Yield the shapes in which a secret may turn up: whole, quoted, escaped, and the password of a URL or DSN."""
    found = {value.strip(), *(match.strip("'\"") for match in _KEYED.findall(value))}
    if "://" in value:
        try:
            parts = urlsplit(value.strip())
            found.add(parts.password or "")
        except ValueError:
            pass
    shapes = {value}
    for part in found:
        for plain in (part, unquote(part)):
            shapes |= {plain, quote(plain), quote(plain, safe=""), repr(plain)[1:-1]}
    return shapes
