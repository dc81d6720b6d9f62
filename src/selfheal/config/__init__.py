"""The file: read it, check it, make it into services.

`load` is what a supervisor calls; `check` is what `selfheal config check` shows. A file is TOML, or the same model in
JSON when it is called `.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from selfheal.config import build, legacy, read
from selfheal.config.build import Configuration, at_start_only
from selfheal.config.schema import duration
from selfheal.errors import ConfigurationError, Problem
from selfheal.ladder import Callbacks, resolve_all
from selfheal.loading import Tables, load_plugins

__all__ = ["Configuration", "Report", "at_start_only", "check", "configure", "duration", "load"]


@attrs.frozen(kw_only=True)
class Report:
    """What a look at a file found; `configuration` is None where there are problems that prevent one."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    configuration: Configuration | None = None


def load(path: str | Path, *, tables: Tables | None = None) -> Configuration:
    """Return the configuration a file describes. Without `tables` the plugins it needs and allows are loaded.

    Which action answers a step is found by `ladder.resolve_all`, once the application has registered its callbacks.
    Reads files and may import plugins: not for the event loop. Raises `ConfigurationError` with every problem.
    """
    path = Path(path)
    configuration = configure(read.read(path), tables=tables, path=path)
    if read.writable_by_anybody(path):
        message = "anybody on this machine may write this file, and so run commands as selfheal"
        warning = Problem(path=str(path), message=message, hint="chmod o-w")
        configuration = attrs.evolve(configuration, warnings=(*configuration.warnings, warning))
    return configuration


def configure(
    data: Mapping[str, Any],
    *,
    tables: Tables | None = None,
    path: Path | None = None,
    added: Mapping[str, Mapping[str, Any]] | None = None,
) -> Configuration:
    """Return the configuration that plain data describes, as if a file at `path` held it. See `load`.

    `added` are tables that count as if they stood in the file, in our words, before those that do; of `fleet`, keys.
    """
    sound = read.plain(data)
    if legacy.recognised(sound):
        return _translated(legacy.translate(sound), tables, path, added or {})
    whole = _with(sound, added or {})
    return build.build(whole, tables=_found(whole, tables), path=path)


def _with(data: Mapping[str, Any], added: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return data with tables added; what is no table of its own is left for the builder to refuse."""
    fleet = data.get("fleet", {})
    more = {key: read.plain(table) for key, table in added.items()}
    if "fleet" in more:
        more["fleet"] = {**fleet, **more["fleet"]} if isinstance(fleet, Mapping) else fleet
    return {**data, **more}


def _found(data: Mapping[str, Any], tables: Tables | None) -> Tables:
    return load_plugins(_allowed(data), needed=build.needs(data)) if tables is None else tables


def _translated(
    old: legacy.Translated, tables: Tables | None, path: Path | None, added: Mapping[str, Mapping[str, Any]]
) -> Configuration:
    whole = _with(old.data, added)
    found = _found(whole, tables)
    try:
        made = build.build(whole, tables=found, path=path)
    except ConfigurationError as refused:
        raise ConfigurationError([*old.problems, *old.placed(refused.problems, found.presets)]) from None
    if old.problems:
        raise ConfigurationError(old.problems)
    told = (*old.warnings, *old.shadowed(made.services), *old.placed(made.warnings, found.presets))
    return attrs.evolve(made, warnings=told)


def check(path: str | Path, *, tables: Tables | None = None, callbacks: Callbacks | None = None) -> Report:
    """Return everything wrong with a file and everything doubtful, without raising; steps are resolved too."""
    try:
        configuration = load(path, tables=tables)
    except ConfigurationError as refused:
        return Report(problems=refused.problems)
    problems: tuple[Problem, ...] = ()
    try:
        resolve_all(configuration.services, callbacks or {}, configuration.tables.actions)
    except ConfigurationError as refused:
        problems = refused.problems
    return Report(problems=problems, warnings=configuration.warnings, configuration=configuration)


def _allowed(data: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the allow-list of plain data; None without one, and nothing at all where it cannot be read."""
    fleet = data.get("fleet")
    names = fleet.get("plugins") if isinstance(fleet, Mapping) else None
    if names is None:
        return None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
