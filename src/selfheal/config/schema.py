"""The fields of attrs classes are the schema of the file: types, defaults, limits, and the words of every refusal.

Owns how plain data becomes a typed value, strictly: no text is taken for a number, no number for a truth, no unknown
key is passed over. Problems are collected, never raised, so that all of them are told at once, each with its path.

A float whose metadata says `{"unit": "seconds"}`, and every float of a plugin's class that names no other unit, may be
written as a duration (`"1m30s"`). An option that may be None is turned off with `"off"`, unless it takes text.
"""

from __future__ import annotations

import datetime
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import attrs

from selfheal.config.read import SOURCES, below, problem, secret
from selfheal.core.graph import Spelling
from selfheal.errors import Problem
from selfheal.secret import MASK, Secret, scrub

UNREAD: Final = object()
"""Stands for a value that could not be read; the reason is in the `Notes`."""

OFF: Final = "off"
"""How a file writes None."""


class Notes:
    """What was found while reading: problems, which refuse the file, and warnings, which do not.

    `folder` is what relative paths start from.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def wrong(self, path: str, message: str, hint: str = "") -> Any:
        """Note a problem; return `UNREAD`."""
        self.problems.append(problem(path, message, hint))
        return UNREAD

    def warn(self, path: str, message: str, hint: str = "") -> None:
        """Note a warning."""
        self.warnings.append(problem(path, message, hint))

    def attempt(self, reader: Reader, value: Any, path: str) -> tuple[Any, Notes]:
        """Read a value into notes of its own, which the caller may keep or forget."""
        notes = Notes(self.folder)
        return reader(value, path, notes), notes

    def keep(self, other: Notes) -> None:
        """Take over what another has noted."""
        self.problems += other.problems
        self.warnings += other.warnings


Reader: TypeAlias = Callable[[Any, str, Notes], Any]
"""(value, path, notes) -> the typed value, or `UNREAD` after a note."""

# -- durations -------------------------------------------------------------------------------------------------------

UNITS: Final[Mapping[str, float]] = {
    "w": 604800.0,
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 0.001,
    "us": 0.000001,
}
_PART: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(w|d|h|ms|us|m|s)(?: |(?=[0-9])|$)")


def duration(text: str) -> float:
    """Return the seconds of a duration such as `"1m30s"`, `"500ms"`, `"1.5h"` or `"2d 12h"`, largest unit first.

    Raises `ValueError`: it has no unit, a sign, a unit twice, or units out of order.
    """
    total, at, last = 0.0, 0, float("inf")
    while at < len(text):
        part = _PART.match(text, at)
        if part is None or UNITS[part[2]] >= last:
            at = -1
            break
        last = UNITS[part[2]]
        total += float(part[1]) * last
        at = part.end()
    if at <= 0 or text.endswith(" "):
        raise ValueError(f'{text!a:.40} is no duration; write a number of seconds, or "1m30s", "500ms", "2h"')
    return total


# -- values ----------------------------------------------------------------------------------------------------------


def _masked(text: str) -> str:
    """Return text without the passwords of its URLs."""
    return re.sub(r"(://[^/\s:@]*:)[^/\s]*@", rf"\1{MASK}@", text)


def _shown(value: object) -> str:
    """Return a value for a message: short, printable, and without the password of a URL."""
    text = _masked(value) if isinstance(value, str) else value
    shown = "true" if text is True else "false" if text is False else "null" if text is None else f"{text!a}"
    return shown if len(shown) <= 80 else shown[:79] + "…"


def _plain(kind: type, wanted: str) -> Reader:
    def read(value: Any, path: str, notes: Notes) -> Any:
        if value.__class__ is kind:
            return value
        hint = "leave the key out" if value is None else ""
        if kind is bool and isinstance(value, str):
            hint = "write true or false, without quotation marks"
        return notes.wrong(path, f"{_shown(value)} is not {wanted}", hint)

    return read


def _float(value: Any, path: str, notes: Notes) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return notes.wrong(path, f"{_shown(value)} is not a number")


def _seconds(value: Any, path: str, notes: Notes) -> Any:
    if isinstance(value, str):
        try:
            return duration(value)
        except ValueError as fault:
            return notes.wrong(path, str(fault))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return notes.wrong(path, f"{_shown(value)} is not a duration", 'write seconds, or text such as "1m30s"')


def _path(value: Any, path: str, notes: Notes) -> Any:
    """Read a path of the file system; a relative one starts from the folder of the file."""
    if not isinstance(value, str) or not value:
        return notes.wrong(path, f"{_shown(value)} is not a path")
    return notes.folder / value if notes.folder is not None else Path(value)


def _moment(kind: Any) -> Reader:
    """Read a date or time: TOML has them, JSON writes them as ISO 8601 text."""

    def read(value: Any, path: str, notes: Notes) -> Any:
        if type(value) is kind:
            return value
        with suppress(ValueError):
            if isinstance(value, str):
                return kind.fromisoformat(value)
        return notes.wrong(path, f"{_shown(value)} is not a {kind.__name__}", "write it like 2025-01-31T04:00:00Z")

    return read


def _secret(value: Any, path: str, notes: Notes) -> Any:
    """Read a secret: exactly one of `{ env }`, `{ file }`, `{ credential }`, or text that is no secret at all."""
    where = "write { env = … }, { file = … } or { credential = … }"
    if isinstance(value, str):
        if not value:
            return notes.wrong(path, "the secret is empty", where)
        warn_of_literal(value, path, notes, certain=True)
        return Secret(value)
    if not isinstance(value, dict):
        return notes.wrong(path, f"a {type(value).__name__} is no secret", where)
    if len(value) != 1 or (source := next(iter(value))) not in SOURCES:
        return notes.wrong(path, "it does not say where the secret lies", where)
    name = value[source]
    if not isinstance(name, str) or not name or (source != "file" and ("/" in name or "=" in name)):
        return notes.wrong(below(path, source), "is not the name of one", where)
    found = secret(source, name, notes.folder)
    try:
        found.reveal()
    except (OSError, LookupError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or (fault.args[0] if fault.args else "")
        notes.warn(
            path, f"the secret cannot be read now: {reason}", f"it is looked for again when needed: {found.source}"
        )
    return found


def warn_of_literal(text: str, path: str, notes: Notes, *, certain: bool) -> None:
    """Warn of a secret that stands in the file; `certain` where the option takes nothing but secrets.

    A URL without a password is none, unless its path may be one, as with a webhook over http.
    """
    try:
        parts = urlsplit(text)
        password = parts.password
    except ValueError:
        return
    if not parts.scheme or "://" not in text:
        bare = certain
    else:
        bare = bool(password) or (certain and parts.scheme in {"http", "https"} and len(parts.path + parts.query) > 1)
    if bare:
        notes.warn(path, "a secret stands in the file", "better { env = … }, { file = … } or { credential = … }")


def _one_of(values: Mapping[str, Any]) -> Reader:
    """Read one of some words."""

    def read(value: Any, path: str, notes: Notes) -> Any:
        if isinstance(value, str) and value in values:
            return values[value]
        near = Spelling(values).hint(value) if isinstance(value, str) else ""
        return notes.wrong(path, f"{_shown(value)} is none of {', '.join(values)}", near)

    return read


def _enum(kind: type[Enum]) -> Reader:
    """Read a member by its value, or by its lower-case name where values are numbers."""
    return _one_of({member.value if isinstance(member.value, str) else member.name.lower(): member for member in kind})


def _literal(choices: tuple[Any, ...]) -> Reader:
    words = {str(choice): choice for choice in choices}

    def read(value: Any, path: str, notes: Notes) -> Any:
        for choice in choices:
            if value.__class__ is choice.__class__ and value == choice:
                return choice
        near = Spelling(words).hint(value) if isinstance(value, str) else ""
        return notes.wrong(path, f"{_shown(value)} is none of {', '.join(words)}", near)

    return read


def _list(make: Callable[[list[Any]], Any], item: Reader) -> Reader:
    def read(value: Any, path: str, notes: Notes) -> Any:
        if not isinstance(value, list):
            hint = f"write [{_shown(value)}]" if isinstance(value, (str, int, float)) else "write [ … ]"
            return notes.wrong(path, f"{_shown(value)} is not a list", hint)
        items = [item(one, f"{path}[{place}]", notes) for place, one in enumerate(value)]
        return UNREAD if any(one is UNREAD for one in items) else make(items)

    return read


def _tuple(readers: tuple[Reader, ...]) -> Reader:
    def read(value: Any, path: str, notes: Notes) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            return notes.wrong(path, f"{_shown(value)} is not a list of {len(readers)}")
        items = [
            one(item, f"{path}[{place}]", notes) for place, (one, item) in enumerate(zip(readers, value, strict=True))
        ]
        return UNREAD if any(one is UNREAD for one in items) else tuple(items)

    return read


def _mapping(item: Reader) -> Reader:
    def read(value: Any, path: str, notes: Notes) -> Any:
        if not isinstance(value, dict):
            return notes.wrong(path, f"{_shown(value)} is not a table", "write { key = value }")
        items = {key: item(one, below(path, key), notes) for key, one in value.items()}
        return UNREAD if any(one is UNREAD for one in items.values()) else items

    return read


def _nested(cls: type[Any]) -> Reader:
    def read(value: Any, path: str, notes: Notes) -> Any:
        if isinstance(value, dict):
            return construct(cls, value, path, notes)
        known = ", ".join(shape(cls))
        return notes.wrong(path, f"{_shown(value)} is not a table", f"its keys are: {known}")

    return read


def _union(members: tuple[Any, ...], *, timed: bool) -> Reader:
    """Read the first member that fits. Text is a secret only where it cannot stay text."""
    optional = types.NoneType in members
    kinds = [member for member in members if member is not types.NoneType]
    kinds.sort(key=lambda member: (member is Secret, member is float))
    readers = [(member, _reader(member, timed=timed)) for member in kinds]
    takes_text = any(
        member in {str, Secret, Path, Any} or typing.get_origin(member) is Literal or _is_enum(member)
        for member in kinds
    )

    def read(value: Any, path: str, notes: Notes) -> Any:
        if optional and (value is None or (value == OFF and not takes_text)):
            return None
        tried = []
        for member, reader in readers:
            found, told = notes.attempt(reader, value, path)
            if found is not UNREAD:
                notes.keep(told)
                if member is str and Secret in kinds:
                    warn_of_literal(value, path, notes, certain=False)
                return found
            tried.append((member, told))
        # A table is most likely meant for the member that takes tables: its words help, those of the others do not.
        fitting = [
            told for member, told in tried if isinstance(value, dict) and (member is Secret or attrs.has(member))
        ]
        if len(tried) == 1 or fitting:
            notes.keep((fitting or [told for _, told in tried])[0])
            return UNREAD
        shown = f"a {type(value).__name__}" if Secret in kinds else _shown(value)
        return notes.wrong(path, f"{shown} is none of: {', '.join(_called(member) for member in kinds)}")

    return read


def _called(hint: Any) -> str:
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", Secret: "secret", Path: "path"}
    if hint in words:
        return words[hint]
    return "list" if typing.get_origin(hint) in {tuple, list, frozenset, set} else "table"


def _unreadable(hint: Any) -> Reader:
    def read(value: Any, path: str, notes: Notes) -> Any:
        return notes.wrong(
            path, f"this option has a type that no file can hold ({hint!s:.80})", "report it to its author"
        )

    return read


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


_SIMPLE: Final[Mapping[Any, Reader]] = {
    str: _plain(str, "text"),
    int: _plain(int, "a whole number"),
    bool: _plain(bool, "true or false"),
    types.NoneType: _plain(types.NoneType, "nothing"),
    Path: _path,
    Secret: _secret,
    datetime.datetime: _moment(datetime.datetime),
    datetime.date: _moment(datetime.date),
    datetime.time: _moment(datetime.time),
    Any: lambda value, path, notes: value,
    object: lambda value, path, notes: value,
}


@cache
def _reader(hint: Any, *, timed: bool) -> Reader:
    """Return the reader of one annotation; `timed`: a float is a number of seconds."""
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if hint is float:
        return _seconds if timed else _float
    if isinstance(hint, typing.NewType):
        return _reader(hint.__supertype__, timed=timed)
    if _is_enum(hint):
        return _enum(hint)
    if isinstance(hint, type) and attrs.has(hint):
        return _nested(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _reader(args[0], timed=timed)
    if origin is Literal:
        return _literal(args)
    if origin in (typing.Union, types.UnionType):
        return _union(args, timed=timed)
    if origin is tuple and (not args or args[-1] is not Ellipsis):
        return _tuple(tuple(_reader(arg, timed=timed) for arg in args))
    if isinstance(origin, type) and issubclass(origin, Mapping) and args[0] is str:
        return _mapping(_reader(args[1], timed=timed))
    if isinstance(origin, type) and args and issubclass(origin, (tuple, list, set, frozenset)):
        return _list(origin, _reader(args[0], timed=timed))
    if isinstance(origin, type) and args and origin.__module__ == "collections.abc" and len(args) == 1:
        return _list(tuple, _reader(args[0], timed=timed))
    return _unreadable(hint)


# -- classes ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Key:
    """One field of a class as the file sees it: under its alias."""

    field: attrs.Attribute[Any]
    read: Reader

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.field.default is attrs.NOTHING


def shape(cls: type[Any]) -> dict[str, Key]:
    """Return the keys of a class: every field its constructor takes."""
    return _shape(typing.cast(Any, cls))


@cache
def _shape(cls: Any) -> dict[str, Key]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        hints = {}  # a name only type checkers can see; each of its options then says that it cannot be read
    ours = cls.__module__.startswith("selfheal.core.")
    keys = {}
    for field in attrs.fields(cls):
        if field.init:
            unit = field.metadata.get("unit", None if ours else "seconds")
            hint = hints.get(field.name, field.type)
            reader = _reader(hint, timed=unit == "seconds")
            keys[str(field.alias)] = Key(field, _lenient(field, hint, reader, timed=unit == "seconds"))
    return keys


def _lenient(field: attrs.Attribute[Any], hint: Any, reader: Reader, *, timed: bool) -> Reader:
    """Let a field's own converter make a list of one value, or read a type that we cannot.

    A bare type (`tuple`, `bool`) is no such converter: it would take text apart, or call "false" true.
    """
    if field.converter is None or isinstance(field.converter, type):
        return reader
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and len(args) == 2 and args[1] is Ellipsis:
        single = _reader(args[0], timed=timed)
        return lambda value, path, notes: (reader if isinstance(value, list) else single)(value, path, notes)
    if reader.__qualname__.startswith(_unreadable.__qualname__):
        return lambda value, path, notes: value
    return reader


def unknown(key: str, known: Iterable[str], path: str, notes: Notes) -> str:
    """Note a key nobody reads; return which key was meant, if one is near."""
    keys = sorted(known)
    shown = ", ".join(keys) if len(keys) <= 12 else f"{', '.join(keys[:12])} and {len(keys) - 12} more"
    hint = Spelling(keys).hint(key)
    notes.wrong(below(path, key), "unknown key", hint or f"known: {shown or 'none'}")
    return hint


def read_fields(cls: type[Any], table: Mapping[str, Any], path: str, notes: Notes) -> dict[str, Any]:
    """Return the typed values of the keys of `table` that are fields of `cls`; what cannot be read is noted."""
    keys = shape(cls)
    values = {}
    for key, value in table.items():
        if key in keys:
            found = keys[key].read(value, below(path, key), notes)
            if found is not UNREAD:
                values[key] = found
    return values


def construct(
    cls: type[Any], table: Mapping[str, Any], path: str, notes: Notes, *, fixed: Mapping[str, Any] | None = None
) -> Any:
    """Return `cls` made of a table, or `UNREAD` after noting everything that is wrong with it.

    `fixed` are values that the file does not give; a key of the same name is unknown to it.
    """
    fixed = fixed or {}
    keys = shape(cls)
    told = len(notes.problems)
    meant = [
        unknown(name, keys.keys() - fixed.keys(), path, notes) for name in table if name not in keys or name in fixed
    ]
    for name, key in keys.items():
        if key.required and name not in table and name not in fixed and not any(f'"{name}"' in hint for hint in meant):
            notes.wrong(path, f'"{name}" is missing')
    values = {**read_fields(cls, {name: table[name] for name in table if name not in fixed}, path, notes), **fixed}
    return make(cls, values, path, notes, sound=len(notes.problems) == told)


def make(cls: type[Any], values: Mapping[str, Any], path: str, notes: Notes, *, sound: bool = True) -> Any:
    """Return `cls(**values)`, or `UNREAD` after noting what its converters and validators say of each value.

    Where the values are not `sound` (others could not be read) it is not made, but still judged.
    """
    reason = ""
    if sound:
        try:
            return cls(**values)
        except (Exception, SystemExit) as fault:  # noqa: BLE001  # a class of a plugin may raise anything
            reason = _said(fault, "")
    told = len(notes.problems)
    _judge(cls, values, path, notes)
    for place in range(told, len(notes.problems)):
        notes.problems[place] = _scrubbed(notes.problems[place], values)
    if sound and len(notes.problems) == told:
        notes.problems.append(_scrubbed(problem(path, reason), values))
    return UNREAD


def _scrubbed(found: Problem, values: Mapping[str, Any]) -> Problem:
    """Take out of a plugin's own words whatever secret they may quote."""
    secrets = []
    for value in values.values():
        with suppress(OSError, LookupError, ValueError):
            secrets += [value.reveal()] if isinstance(value, Secret) else []
    return attrs.evolve(found, message=scrub(found.message, secrets))


def _judge(cls: type[Any], values: Mapping[str, Any], path: str, notes: Notes) -> None:
    """Run every converter and validator by itself, on an instance that has all values but was never validated."""
    bare = object.__new__(cls)
    converted = {}
    for name, key in shape(cls).items():
        value: Any = key.field.default
        if name in values:
            value = converted[name] = judged(key.field, values[name], below(path, name), notes, convert=True)
        elif isinstance(value, attrs.Factory):  # type: ignore[arg-type]  # a class, which attrs types as a function
            value = UNREAD if value.takes_self else value.factory()
        if value is not UNREAD and value is not attrs.NOTHING:
            object.__setattr__(bare, key.field.name, value)
    for name, value in converted.items():
        if value is not UNREAD:
            judged(shape(cls)[name].field, value, below(path, name), notes, instance=bare)


def judged(
    field: attrs.Attribute[Any], value: Any, path: str, notes: Notes, *, instance: object = None, convert: bool = False
) -> Any:
    """Return a value after its field's converter (`convert`) or validator; `UNREAD` after noting what it says.

    Other errors than `TypeError` and `ValueError` are ignored: they come of looking at an instance that is not whole.
    """
    with suppress(Exception):
        try:
            if not convert:
                if field.validator is not None:
                    field.validator(instance, field, value)
            elif field.converter is not None:
                converter: Any = field.converter
                value = converter(value)
        except (TypeError, ValueError) as fault:
            if type(getattr(field, "converter", None)).__name__ != "Converter":  # that one takes more than a value
                return notes.wrong(path, _said(fault, str(field.alias)))
    return value


def _said(fault: BaseException, name: str) -> str:
    """Return what an exception says, in one printable line, without the name of the option in front."""
    first = fault.args[0] if fault.args and isinstance(fault.args[0], str) else str(fault)
    text = " ".join(first.split()).removeprefix(f"{name}: ").removeprefix(f"'{name}' ") or type(fault).__name__
    text = _masked(text)
    return text if len(text) <= 300 else text[:299] + "…"
