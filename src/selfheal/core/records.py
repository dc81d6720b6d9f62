"""Records: what was decided, in the past tense; and the one codec that writes and reads them.

A record is an *after-image*: it carries the whole value afterwards, so applying it needs no policy and no history
(`Ledger.apply`). The codec writes an attrs value as a JSON object of the fields that differ from their defaults,
under the record's `kind` and `v` (the version of that kind's shape). Reading goes through `UPCASTS`, which lift the
shapes of earlier versions one step at a time, so that every record ever written folds to the same state (law 20a).
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import cache
from math import isfinite
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

import attrs

from selfheal.core.model import (
    Alert,
    Backoff,
    Budget,
    Canary,
    Condition,
    Dependency,
    Fleet,
    Incident,
    Limits,
    Policy,
    Scalar,
    Settled,
    Step,
    Suppression,
    Window,
)

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class FleetSet:
    """The fleet is now this one. `unwatched` were dropped without confirmation: kept, not watched (law 19)."""

    kind: ClassVar[str] = "fleet_set"
    at: float
    fleet: Fleet
    unwatched: tuple[str, ...] = ()
    actor: str = ""


@attrs.frozen(kw_only=True)
class Moved:
    """A service's condition changed; `because` says why in one line, `actor` who asked, if a person did."""

    kind: ClassVar[str] = "moved"
    at: float
    service: str
    before: Condition
    after: Condition
    because: str = ""
    actor: str = ""


@attrs.frozen(kw_only=True)
class IncidentOpened:
    """An incident began, or (`incident.reopened` grew) an old one is open again after a relapse."""

    kind: ClassVar[str] = "incident_opened"
    at: float
    service: str
    incident: Incident


@attrs.frozen(kw_only=True)
class IncidentMerged:
    """An incident turned out to be part of another: its members now belong to `into`."""

    kind: ClassVar[str] = "incident_merged"
    at: float
    service: str
    incident: int
    into: int


@attrs.frozen(kw_only=True)
class IncidentClosed:
    """The last member of an incident is well, disabled or gone."""

    kind: ClassVar[str] = "incident_closed"
    at: float
    service: str
    incident: int
    because: str = ""
    duration: float = 0.0


@attrs.frozen(kw_only=True)
class GuardAnswer:
    """What one guard said when it was asked: nothing (`reason` empty), or why it holds. `detail` has its values."""

    guard: str
    reason: str = ""
    detail: str = ""
    passed_by: str = ""


@attrs.frozen(kw_only=True)
class Intended:
    """An action is about to start. Durable before it does (law 12).

    `first`: its attempt begins with it. `spends`: budgets count it.
    """

    kind: ClassVar[str] = "intended"
    at: float
    intent: str
    service: str
    incident: int
    attempt: int
    step: int
    action: str
    expected: str | None = None
    first: bool = False
    guards: tuple[GuardAnswer, ...] = ()
    spends: bool = True
    timeout: float = 60.0
    actor: str = ""
    correlation: str = ""


@attrs.frozen(kw_only=True)
class Ended:
    """What became of an intent. `refunded`: it never started, so attempt and budget are given back (law 9)."""

    kind: ClassVar[str] = "ended"
    at: float
    intent: str
    service: str
    settled: Settled
    detail: str = ""
    duration: float = 0.0
    refunded: bool = False


@attrs.frozen(kw_only=True)
class Answered:
    """A person's act and our durable answer to it."""

    kind: ClassVar[str] = "answered"
    at: float
    id: str
    act: str
    service: str
    actor: str
    reason: str
    accepted: bool
    because: str = ""
    code: str = ""
    arguments: tuple[tuple[str, Scalar], ...] = ()


@attrs.frozen(kw_only=True)
class Doubted:
    """We woke late: checks begun before `at` prove nothing."""

    kind: ClassVar[str] = "doubted"
    at: float
    late: float


@attrs.frozen(kw_only=True)
class Resumed:
    """A run began. Nobody looked for `away` seconds before it (0.0 in the first): they are no part of any uptime."""

    kind: ClassVar[str] = "resumed"
    at: float
    away: float


@attrs.frozen(kw_only=True)
class HoldChanged:
    """A hold on the whole fleet (`storm`, `canary`, `doubt`, `journal`, `fleet`) began or ended; on what evidence."""

    kind: ClassVar[str] = "hold_changed"
    at: float
    hold: str
    on: bool
    evidence: str = ""
    actor: str = ""


@attrs.frozen(kw_only=True)
class SuppressionChanged:
    """A suppression began (`on`) or ended: by its expiry, the calendar, or a person (`actor`)."""

    kind: ClassVar[str] = "suppression_changed"
    at: float
    suppression: Suppression
    on: bool
    actor: str = ""


@attrs.frozen(kw_only=True)
class AlertChanged:
    """An alert was opened, changed or acknowledged (`open`), or resolved (not `open`)."""

    kind: ClassVar[str] = "alert_changed"
    at: float
    service: str
    alert: Alert
    open: bool
    because: str = ""
    actor: str = ""


@attrs.frozen(kw_only=True)
class Delivered:
    """A notification reached its notifier, or was given up (`error`)."""

    kind: ClassVar[str] = "delivered"
    at: float
    notification: str
    notifier: str
    service: str = ""
    incident: int | None = None
    receipt: str | None = None
    error: str = ""


Record: TypeAlias = (
    FleetSet
    | Moved
    | IncidentOpened
    | IncidentMerged
    | IncidentClosed
    | Intended
    | Ended
    | Answered
    | Doubted
    | Resumed
    | HoldChanged
    | SuppressionChanged
    | AlertChanged
    | Delivered
)

RECORDS: Final[Mapping[str, type[Any]]] = {cls.kind: cls for cls in typing.get_args(Record)}
"""Every kind of record, by the name it is stored under."""

VERSIONS: Final[Mapping[str, int]] = dict.fromkeys(RECORDS, 1)
"""The version of each kind's stored shape that this release writes."""

Upcast: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTS: Final[Mapping[tuple[str, int], Upcast]] = {}
"""(kind, version) -> what makes version + 1 of it. A change of a stored shape adds a row; none is ever removed."""


# -- the codec ------------------------------------------------------------------------------------------------------
#
# Structure comes from the annotations, so a field added with a default needs no code here and reads old data as its
# default. The classes a person writes (`WHOLE`) are stored with every field, because their defaults are advice that a
# later release may change, and an old record must go on meaning what it meant. Floats keep their exact value (JSON's
# shortest repr round-trips); the infinities, which JSON lacks, are the strings "inf" and "-inf".


WHOLE: Final = frozenset({Fleet, Policy, Step, Dependency, Backoff, Budget, Window, Canary, Limits})
"""Classes stored with every field."""


def encode(value: Any) -> Any:
    """Return `value` as plain JSON data: attrs classes become objects; see above for which fields are left out."""
    if value is None or value.__class__ in (str, bool, int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else repr(value)
    if isinstance(value, Enum):
        return value.name.lower() if isinstance(value, int) else value.value
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, (frozenset, set)):
        return sorted(encode(item) for item in value)
    if isinstance(value, Mapping):
        return {str(encode(key)): encode(item) for key, item in value.items()}
    if attrs.has(value.__class__):
        return {
            name: encode(item)
            for name, default in _defaults(value.__class__)
            if (item := getattr(value, name)) != default or item.__class__ is not default.__class__
        }
    raise TypeError(f"{value.__class__.__name__} has no stored form")


@cache
def _defaults(cls: type[Any]) -> tuple[tuple[str, Any], ...]:
    """Return (field, default) of an attrs class; a field without a constant default has a value equal to nothing."""
    missing = object()
    out = []
    for field in attrs.fields(cls):
        default = field.default
        if default is attrs.NOTHING or cls in WHOLE:
            default = missing
        elif isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # its stub calls this class a function
            default = default.factory()
        out.append((field.name, default))
    return tuple(out)


def decode(cls: type[T], data: Any) -> T:
    """Return the value of class `cls` that `encode` made `data` of.

    Raises `ValueError` when `data` does not have that shape; the message names the path.
    """
    try:
        return typing.cast(T, _reader(typing.cast(Any, cls))(data))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(f"not a stored {getattr(cls, '__name__', cls)}: {problem}") from problem


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return the function that reads one annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return float
    if origin in (typing.Union, types.UnionType):
        return _union_reader(args)
    if origin in (tuple, frozenset, set, list):
        return _sequence_reader(origin, args)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        read_key, read = _reader(args[0]), _reader(args[1])
        return lambda data: {read_key(key): read(item) for key, item in data.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return (lambda data: hint[data.upper()]) if issubclass(hint, int) else hint
    if isinstance(hint, type) and attrs.has(hint):
        return _class_reader(hint)
    if hint in (str, int, bool):
        return _plain_reader(hint)
    raise TypeError(f"no stored form for {hint!r}")


def _plain_reader(hint: type) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if data.__class__ is not hint:
            raise TypeError(f"{data!r} is not {hint.__name__}")
        return data

    return read


def _union_reader(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Unions in stored values are `X | None`, or scalars, which JSON keeps apart by itself."""
    plain = {str, int, float, bool, types.NoneType}
    if set(args) <= plain:
        infinite = ("inf", "-inf") if float in args and str not in args else ()
        return lambda data: float(data) if data in infinite else data
    (inner,) = (a for a in args if a is not types.NoneType)
    read = _reader(inner)
    return lambda data: None if data is None else read(data)


def _sequence_reader(origin: Any, args: tuple[Any, ...]) -> Callable[[Any], Any]:
    if origin is tuple and args[-1] is not Ellipsis:
        readers = [_reader(a) for a in args]
        return lambda data: tuple(read(item) for read, item in zip(readers, data, strict=True))
    read = _reader(args[0])
    return lambda data: origin(read(item) for item in data)


def _class_reader(cls: type[Any]) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls)
    readers = {field.name: (field.alias, _reader(hints[field.name])) for field in attrs.fields(cls)}

    def read(data: Any) -> Any:
        arguments = {}
        for name, item in data.items():
            alias, reader = readers[name]
            arguments[alias] = reader(item)
        return cls(**arguments)

    return read


def encode_record(record: Record) -> dict[str, Any]:
    """Return a record as JSON data under its `kind` and version `v`."""
    return {"kind": record.kind, "v": VERSIONS[record.kind], **encode(record)}


def decode_record(data: Mapping[str, Any]) -> Record:
    """Return the record stored as `data`, lifting older shapes.

    Raises `ValueError` for an unknown kind, a version newer than this release writes, or a malformed record.
    """
    body = dict(data)
    kind, version = body.pop("kind", None), body.pop("v", None)
    cls = RECORDS.get(kind)
    if cls is None or not isinstance(version, int):
        raise ValueError(f"unknown record kind {kind!r}")
    if version > VERSIONS[cls.kind]:
        raise ValueError(f"{kind} version {version} is of a newer release (this one knows {VERSIONS[cls.kind]})")
    while version < VERSIONS[cls.kind]:
        body = UPCASTS[cls.kind, version](body)
        version += 1
    return typing.cast(Record, decode(cls, body))


def dumps(data: Any) -> bytes:
    """Return JSON data as compact bytes; the same data gives the same bytes."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def record_bytes(records: Iterable[Record]) -> bytes:
    """Return records as JSON lines: what golden tests and comparisons of two runs hold against each other."""
    return b"".join(dumps(encode_record(record)) + b"\n" for record in records)
