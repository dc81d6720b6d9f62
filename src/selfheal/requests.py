"""Every act and every query, one row each: name, parameters, the scope needed, what is answered.

The control socket, HTTP and the command line are readers of this table, so that a request works the same through
each door; dispatch is by a look-up here and never by an attribute named in what came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import attrs

from selfheal.core.model import Scalar
from selfheal.errors import RequestRefused


class Scope(StrEnum):
    """What a caller may do. Each scope includes those before it."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"


SCOPES: Final = frozenset(scope.value for scope in Scope)


class Kind(StrEnum):
    """What a parameter holds."""

    TEXT = "text"
    NUMBER = "number"
    SECONDS = "seconds"
    BOOLEAN = "boolean"
    WORDS = "words"


@attrs.frozen(kw_only=True)
class Parameter:
    """One parameter of a request."""

    name: str
    kind: Kind = Kind.TEXT
    required: bool = False
    choices: tuple[str, ...] = ()
    about: str


@attrs.frozen(kw_only=True)
class Request:
    """One act or query. An act has an actor and a reason beside its parameters, and a durable `Answered` record."""

    name: str
    act: bool
    scope: Scope
    about: str
    answer: str
    parameters: tuple[Parameter, ...] = ()


_SERVICE: Final = Parameter(name="service", required=True, about="the name of a service")
_SOME: Final = Parameter(name="service", about="the name of a service; without it, all")
_SELECTED: Final = (
    Parameter(name="services", kind=Kind.WORDS, about="names of services"),
    Parameter(name="everything", kind=Kind.BOOLEAN, about="the whole fleet; must be said, an empty list is nothing"),
    Parameter(name="duration", kind=Kind.SECONDS, about="seconds until it ends by itself; without it, when lifted"),
)
_AFTER: Final = Parameter(name="after", kind=Kind.NUMBER, about="only what has a higher sequence number")
_BEFORE: Final = Parameter(name="before", kind=Kind.NUMBER, about="only what comes before this one: the next page")
_LIMIT: Final = Parameter(name="limit", kind=Kind.NUMBER, about="at most so many, newest first; 100, at most 1000")
_FORMAT: Final = Parameter(
    name="format", choices=("text", "openmetrics", "data"), about="Prometheus 0.0.4, OpenMetrics 1.0.0, or plain data"
)

_ASKED: Final = Parameter(
    name="action", about="the step that was seen to wait, as `approvals` shows it; refused if another waits by now"
)

OVERRIDES: Final = ("parents", "paused", "maintenance", "observe")
"""Guards a forced recovery passes only when they are named and the caller has the `admin` scope."""


def _query(name: str, about: str, answer: str, *parameters: Parameter) -> Request:
    return Request(name=name, act=False, scope=Scope.READ, about=about, answer=answer, parameters=parameters)


def _act(name: str, about: str, *parameters: Parameter, scope: Scope = Scope.OPERATE) -> Request:
    answer = "the Answered record: accepted or not, and why"
    return Request(name=name, act=True, scope=scope, about=about, answer=answer, parameters=parameters)


TABLE: Final[Mapping[str, Request]] = {
    request.name: request
    for request in (
        _query("status", "How the fleet stands.", "counts by state, holds, open incidents, each service in one line"),
        _query("services", "Every service.", "a list of services with their policy and condition"),
        _query("service", "One service.", "its policy, condition, evidence and open alerts", _SERVICE),
        _query("explain", "Why something was done, or not.", "every guard in order and what it says", _SERVICE),
        _query(
            "incidents",
            "Incidents, newest first.",
            "a list of incidents",
            _SOME,
            Parameter(name="open", kind=Kind.BOOLEAN, about="only those still open"),
            _BEFORE,
            _LIMIT,
        ),
        _query(
            "incident",
            "One incident with its records.",
            "the incident, its members and its timeline",
            Parameter(name="number", kind=Kind.NUMBER, required=True, about="its number"),
        ),
        _query(
            "history", "Records of one service or of all, newest first.", "a list of records", _SOME, _BEFORE, _LIMIT
        ),
        _query(
            "results",
            "What the checks of a service found, newest first.",
            "a list of results with their latencies",
            _SERVICE,
            Parameter(name="window", kind=Kind.SECONDS, about="only the last so many seconds; without it, an hour"),
            _LIMIT,
        ),
        _query("graph", "Who depends on whom.", "nodes and edges, roots first"),
        _query(
            "alerts",
            "Alerts.",
            "open alerts, or all that ever were",
            Parameter(name="all", kind=Kind.BOOLEAN, about="resolved ones too"),
            _BEFORE,
            _LIMIT,
        ),
        _query("approvals", "Steps that wait for a person.", "a list of services, steps and when they are skipped"),
        _query("suppressions", "Pauses, maintenance, observe-only and silences.", "a list of suppressions"),
        _query("audit", "Acts of people and what was answered.", "a list of Answered records", _SOME, _BEFORE, _LIMIT),
        _query(
            "statistics",
            "Numbers from recorded data.",
            "of the fleet and of each service: uptime, failures, times, recoveries",
            _SOME,
            Parameter(name="window", kind=Kind.SECONDS, about="only the last so many seconds; without it, all"),
            Parameter(name="days", kind=Kind.NUMBER, about="also how each of the last so many days went; at most 366"),
        ),
        _query("metrics", "Metrics, as Prometheus reads them.", "text, or families with their samples", _FORMAT),
        _query(
            "health",
            "How selfheal itself is.",
            "running or reading along, journal, worst lag of the last minute, release",
        ),
        _query("records", "The stream of records.", "records in order of their sequence number", _AFTER, _LIMIT),
        _act(
            "initialize",
            "Forget what is believed of a service, or of everything, and look afresh; budgets stay. "
            "Without either, say what is watched.",
            Parameter(name="service", about="the name of a service"),
            _SELECTED[1],
        ),
        _act(
            "recover",
            "Recover a service now, past backoff, budget, flapping, storm and escalation.",
            _SERVICE,
            Parameter(name="override", kind=Kind.WORDS, choices=OVERRIDES, about="guards to override; needs admin"),
        ),
        _act("enable", "Watch a service again.", _SERVICE),
        _act("disable", "Stop watching a service.", _SERVICE),
        _act("pause", "Let nothing automatic act; checks go on.", *_SELECTED),
        _act("resume", "End pauses.", *_SELECTED[:2]),
        _act("maintenance", "A maintenance window from now: checks go on, nothing acts, nobody is paged.", *_SELECTED),
        _act("silence", "Tell nobody about some services; resolutions are still told.", *_SELECTED),
        _act(
            "lift",
            "End one suppression.",
            Parameter(name="suppression", required=True, about="its id, as `suppressions` shows it"),
        ),
        _act("approve", "Let the step that waits for a person run.", _SERVICE, _ASKED),
        _act("refuse", "Skip the step that waits for a person.", _SERVICE, _ASKED),
        _act("acknowledge", "Say that a person knows and sees to it.", _SERVICE),
        _act(
            "release",
            "End a hold on the fleet by a person's word.",
            Parameter(
                name="hold", required=True, choices=("storm", "canary", "doubt", "fleet"), about="which hold to release"
            ),
            scope=Scope.ADMIN,
        ),
        Request(
            name="heartbeat",
            act=False,
            scope=Scope.OPERATE,
            about="A service says that it lives.",
            answer="nothing",
            parameters=(_SERVICE,),
        ),
    )
}
"""Every request, by name."""


def checked(name: object, parameters: Mapping[str, Any]) -> tuple[Request, dict[str, Scalar | list[str]]]:
    """Return the row of a request and its parameters, validated.

    Raises `RequestRefused` with code `unknown_request` or `bad_parameter`; the message names the parameter.
    """
    request = TABLE.get(name) if isinstance(name, str) else None
    if request is None:
        raise RequestRefused("unknown_request", f"no request {_shown(name)}; there are: {', '.join(TABLE)}")
    known = {parameter.name: parameter for parameter in request.parameters}
    for given in parameters:
        if given not in known:
            raise RequestRefused(
                "bad_parameter", f"{name} has no parameter {_shown(given)}; it has: {', '.join(known) or 'none'}"
            )
    clean: dict[str, Scalar | list[str]] = {}
    for parameter in request.parameters:
        value = parameters.get(parameter.name)
        if value is None:
            if parameter.required:
                raise RequestRefused("bad_parameter", f"{name} needs {parameter.name}: {parameter.about}")
            continue
        clean[parameter.name] = _checked_value(request.name, parameter, value)
    return request, clean


def _shown(value: object) -> str:
    """Return what was given, in few words: whatever it is, only so much of it is looked at."""
    match value:
        case bool() | float() | None:
            return repr(value)
        case int():
            return repr(value) if value.bit_length() <= 256 else f"a number of {value.bit_length()} bits"
        case str() | bytes():
            return repr(value) if len(value) <= 60 else f"{value[:60]!r}…, which is {len(value)} long"
        case list() | tuple():
            return f"[{', '.join(_shown(one) for one in value)}]" if _short(value) else f"a list of {len(value)}"
    return f"a {type(value).__name__}"


def _short(values: Sequence[object]) -> bool:
    return len(values) <= 3 and not any(isinstance(one, (list, tuple)) for one in values)


def _is_text(value: object) -> bool:
    """Whether it is text that can be written down: half a surrogate pair has no stored form."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_value(name: str, parameter: Parameter, value: Any) -> Scalar | list[str]:
    def refuse(wanted: str) -> RequestRefused:
        return RequestRefused("bad_parameter", f"{name}: {parameter.name} must be {wanted}, not {_shown(value)}")

    match parameter.kind:
        case Kind.TEXT:
            if not _is_text(value) or not value or len(value) > 1000:
                raise refuse("a text of 1 to 1000 characters")
        case Kind.NUMBER:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
                raise refuse("a whole number")
        case Kind.SECONDS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 366 * 86400:
                raise refuse("a number of seconds, at most a year")
        case Kind.BOOLEAN:
            if not isinstance(value, bool):
                raise refuse("true or false")
        case Kind.WORDS:
            if not isinstance(value, (list, tuple)) or not all(_is_text(word) and word for word in value):
                raise refuse("a list of texts")
    words = list(value) if parameter.kind is Kind.WORDS else [value]
    if parameter.choices and (wrong := [word for word in words if word not in parameter.choices]):
        raise RequestRefused(
            "bad_parameter",
            f"{name}: {parameter.name} has no {_shown(wrong[0])}; choose from {', '.join(parameter.choices)}",
        )
    return words if parameter.kind is Kind.WORDS else value
