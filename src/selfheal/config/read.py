"""From a file to plain data: TOML, or the same model in JSON. What cannot be read safely is refused here, once.

Owns the limits of a file (size, depth, characters), its errors with line and column, and how a secret is read: late,
each time it is asked, from where the file says it lies.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn

from selfheal.errors import ConfigurationError, Problem, SecretUnreadable
from selfheal.secret import Secret

SIZE_LIMIT: Final = 32 << 20
"""Bytes of a configuration file; a hundred thousand services need about twelve million."""

DEPTH_LIMIT: Final = 24
"""Tables and lists inside each other; the deepest key of ours is the sixth."""

SECRET_LIMIT: Final = 64 << 10
"""Bytes of a secret in a file."""

_COMMENTS: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*')
"""Texts, which may hold anything, and comments, which JSON has not and people write all the same."""

_WHOLE_LIMIT: Final = 1 << 63
_MOMENTS: Final = (datetime.datetime, datetime.date, datetime.time)


def problem(path: str, message: str, hint: str = "") -> Problem:
    """Return a problem whose words are printable, whatever they quote."""
    return Problem(path=printable(path), message=printable(message), hint=printable(hint))


def printable(text: str) -> str:
    """Return text with everything that does not print (and could move a cursor) written as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def refuse(path: str, message: str, hint: str = "") -> NoReturn:
    """Raise `ConfigurationError` with one problem."""
    raise ConfigurationError([problem(path, message, hint)])


def read(path: Path) -> dict[str, Any]:
    """Return the data of a file as it stands (see `plain`): JSON if it is called `.json`, else TOML; empty is empty.

    Raises `ConfigurationError`: the file is missing, no plain file, too large, not UTF-8, or malformed.
    """
    text = _text(path)
    try:
        data = _json(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        refuse(str(path), f"not TOML: {fault}")
    except json.JSONDecodeError as fault:
        refuse(str(path), f"not JSON: {fault.msg} (at line {fault.lineno}, column {fault.colno})")
    except RecursionError:
        refuse(str(path), "tables and lists stand too deep inside each other", f"at most {DEPTH_LIMIT}")
    except ValueError as fault:
        refuse(str(path), f"malformed: {fault}")
    if not isinstance(data, dict):
        refuse(str(path), f"holds a {type(data).__name__}, not a table", "write an object with `services` in it")
    return data


def _text(path: Path) -> str:
    """Return the text of a file, without a byte order mark."""
    try:
        # Without O_NONBLOCK the opening of a pipe nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                refuse(str(path), "is not a plain file", "give the path of a configuration file")
            content = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as fault:
        refuse(str(path), f"cannot be read: {getattr(fault, 'strerror', None) or fault}")
    if len(content) > SIZE_LIMIT:
        refuse(str(path), f"is larger than {SIZE_LIMIT >> 20} MiB", "is it a configuration file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        refuse(str(path), f"is not UTF-8 (line {line}, byte {fault.start})", "save it as UTF-8")


def writable_by_anybody(path: Path) -> bool:
    """Whether every user of this machine may change a file."""
    try:
        return bool(path.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def _json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)!a:.80} stands there twice")
        return table

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number in JSON")

    text = _COMMENTS.sub(lambda found: found[0] if found[0].startswith('"') else " " * len(found[0]), text)
    return json.loads(text, object_pairs_hook=once, parse_constant=constant) if text.strip() else {}


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data, as dicts and lists, after a look at every value.

    Raises `ConfigurationError` for all of: other types, keys that are no text, infinities and NaN, whole numbers beyond
    64 bits, control characters and half surrogate pairs, and what stands too deep.
    """
    if data.__class__ is dict and _sound(data, 0):
        return data
    problems: list[Problem] = []
    copied: dict[str, Any] = {}
    todo: list[tuple[str, Any, Any, Any, int]] = [("", data, None, None, 0)]
    for path, value, holder, key, depth in todo:
        copy: Any = value
        if depth > DEPTH_LIMIT:
            problems.append(problem(path, "stands too deep", f"at most {DEPTH_LIMIT} levels"))
        elif isinstance(value, Mapping):
            copy = copied if holder is None else {}
            for name, item in value.items():
                if fault := _fault(name) if isinstance(name, str) else "is no text":
                    problems.append(problem(path or ".", f"the key {name!a:.80} {fault}"))
                else:
                    todo.append((below(path, name), item, copy, name, depth + 1))
        elif isinstance(value, (list, tuple)):
            copy = [None] * len(value)
            todo += [(f"{path}[{place}]", item, copy, place, depth + 1) for place, item in enumerate(value)]
        elif fault := _fault(value):
            problems.append(problem(path, fault))
        if holder is not None:
            holder[key] = copy
    if problems:
        raise ConfigurationError(problems)
    return copied


def _sound(value: Any, depth: int) -> bool:
    """Whether nothing is wrong, found without building a path for every value: what nearly every file is."""
    kind = value.__class__
    if depth > DEPTH_LIMIT:
        return False
    if kind is str:
        return value.isprintable() or not _fault(value)
    if kind is dict:
        return all(key.__class__ is str and _sound(key, 0) and _sound(item, depth + 1) for key, item in value.items())
    if kind is list:
        return all(_sound(item, depth + 1) for item in value)
    return kind is not tuple and not isinstance(value, Mapping) and not _fault(value)


def _fault(value: object) -> str:
    """Return what is wrong with a single value, or nothing."""
    if isinstance(value, str):
        if value.isprintable():
            return ""
        for character in value:
            if "\ud800" <= character <= "\udfff":
                return "holds half a surrogate pair, which is no character"
            if (character < " " and character not in "\t\r\n") or "\x7f" <= character <= "\x9f":
                return f"holds the control character {character!a}"
        return ""
    if value is None or isinstance(value, (bool, *_MOMENTS)):
        return ""
    if isinstance(value, int):
        return "" if -_WHOLE_LIMIT <= value < _WHOLE_LIMIT else "is a number beyond 64 bits"
    if isinstance(value, float):
        return "" if isfinite(value) else f"{value} is no number anything can be measured by"
    return f"is a {type(value).__name__}, which no file can hold"


def below(path: str, key: str) -> str:
    """Return the path of a key under a path; a key that is no plain word is quoted."""
    shown = key if key.isascii() and key.replace("-", "_").replace(".", "_").isidentifier() else f"{key!a:.80}"
    shown = f'"{key}"' if "." in shown and shown == key else shown
    return f"{path}.{shown}" if path else shown


# -- secrets ---------------------------------------------------------------------------------------------------------

SOURCES: Final = ("env", "file", "credential")
"""Where a secret may lie: a variable of the environment, a file, a systemd credential."""


def secret(source: str, name: str, folder: Path | None = None) -> Secret:
    """Return the secret that lies at `name`; `folder` is what a relative path of a file starts from.

    Each `reveal` reads it again. It raises `SecretUnreadable` when it is not there, is empty, too long or not text, and
    `OSError` when its file cannot be read.
    """
    if source == "env":
        return Secret(lambda: _from_environment(name), source=f"env {name}")
    if source == "credential":
        return Secret(lambda: _from_credential(name), source=f"credential {name}")
    path = folder / name if folder is not None else Path(name)
    return Secret(lambda: _from_file(path), source=f"file {path}")


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise SecretUnreadable(
            f"the environment has no {name}" if value is None else f"{name} of the environment is empty"
        )
    return value


def _from_credential(name: str) -> str:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise SecretUnreadable(f"no credential {name}: CREDENTIALS_DIRECTORY is not set; give the unit LoadCredential=")
    return _from_file(Path(folder) / name)


def _from_file(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(SECRET_LIMIT + 1)
    if len(content) > SECRET_LIMIT:
        raise SecretUnreadable(f"{path} is larger than {SECRET_LIMIT >> 10} KiB, which is no secret")
    try:
        value = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        value = "\0"
    if "\0" in value:
        raise SecretUnreadable(f"{path} does not hold text")
    if not value:
        raise SecretUnreadable(f"{path} is empty")
    return value


def duplicates_but_for_case(names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that differ only in the case of their letters."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.casefold(), name)
        if first != name:
            yield first, name
