"""From plain data to the ladder and the dependencies of a service: the two lists whose items take several forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from selfheal.config import schema
from selfheal.config.read import below
from selfheal.config.schema import UNREAD, Notes
from selfheal.core.model import MANUAL, Dependency, DependencyKind, Step, WhenDisabled
from selfheal.errors import PluginError
from selfheal.ladder import EFFECTS, HTTP, METHODS, NAMED, STEP_KEYS, Rung
from selfheal.loading import Tables
from selfheal.service import depends

_SHARED: Final = frozenset(STEP_KEYS) - {"action"}

STANDBY: Final = "standby"
"""The key of a step under which a workload stands that is to take over; text under it is another action's option."""

Make: TypeAlias = "Callable[[str, str, str, Mapping[str, Any], str, Mapping[str, Any]], Any]"
"""(section, kind, path of the kind, options, path, values of ours) -> the plugin object, or `UNREAD` after a note."""


@attrs.frozen(kw_only=True)
class DependencyTable:
    """A dependency written as a table."""

    service: str | None = None
    any_of: tuple[str, ...] = ()
    kind: DependencyKind = DependencyKind.HARD
    when_disabled: WhenDisabled = WhenDisabled.PROCEED


def read_depends(items: object, path: str, notes: Notes) -> Any:
    """Return the dependencies of a service; `UNREAD` after a note."""
    if not isinstance(items, list):
        return notes.wrong(path, "is not a list", 'write ["database"]')
    found = []
    for place, item in enumerate(items):
        where = f"{path}[{place}]"
        if isinstance(item, str):
            found.append(Dependency(services=(item,)))
        elif not isinstance(item, Mapping):
            notes.wrong(where, "is no dependency", 'write a name, { service = "…" } or { any_of = ["…"] }')
        elif (table := schema.construct(DependencyTable, item, where, notes)) is not UNREAD:
            try:
                found.append(depends(**{field: getattr(table, field) for field in item}))
            except ValueError as problem:
                notes.wrong(where, str(problem))
    return tuple(found) if len(found) == len(items) else UNREAD


def read_ladder(
    items: object, path: str, notes: Notes, tables: Tables, kind: object, workload: object, make: Make
) -> Any:
    """Return the ladder of a service whose check is of `kind`; `UNREAD` after a note."""
    if not isinstance(items, list):
        return notes.wrong(path, "is not a list", 'write ["restart"]')
    found = []
    for place, item in enumerate(items):
        where = f"{path}[{place}]"
        if isinstance(item, str):
            item = {"action": item}
        if not isinstance(item, Mapping):
            notes.wrong(where, "is no step", 'write a verb, or { action = "…" }')
        elif not isinstance(verb := item.get("action"), str):
            notes.wrong(where, "it does not say its action", 'write { action = "restart" }')
        elif (rung := _rung(verb, item, where, notes, tables, kind, workload, make)) is not UNREAD:
            found.append(rung)
    return tuple(found) if len(found) == len(items) else UNREAD


def _rung(
    verb: str,
    item: Mapping[str, Any],
    path: str,
    notes: Notes,
    tables: Tables,
    kind: object,
    workload: object,
    make: Make,
) -> Any:
    told = len(notes.problems)
    keys = schema.shape(Step)
    given = {}
    for key in item:
        if key in _SHARED:
            value = keys[key].read(item[key], below(path, key), notes)
            if value is not UNREAD:
                value = schema.judged(keys[key].field, value, below(path, key), notes)
            if value is not UNREAD:
                given[key] = value
    by, named = None, _named(item)
    if len(named) > 1:
        return notes.wrong(path, f"it names {' and '.join(named)}", "a step has one action; make two steps of it")
    own = {key: value for key, value in item.items() if key not in STEP_KEYS and key not in named}
    if HTTP in named:
        effect = given.get("effect", EFFECTS.get(verb))
        by = _hook(item[HTTP], below(path, HTTP), notes, tables, {"verb": verb, "effect": effect})
    elif named:
        by, own = _by(named[0], item[named[0]], own, path, make), {}
    options = _options(verb, own, path, notes, tables, kind, workload)
    if len(notes.problems) > told:
        return UNREAD
    try:
        return Rung.of(verb, given, options, by)
    except (TypeError, ValueError) as problem:
        return notes.wrong(path, str(problem))


def _hook(table: object, path: str, notes: Notes, tables: Tables, ours: Mapping[str, Any]) -> Any:
    """Return the HTTP hook that a step names; its verb and effect are the step's."""
    if not isinstance(table, Mapping):
        return notes.wrong(path, "is not a table", 'write http = { url = "…" }')
    try:
        cls = tables.actions[HTTP]
    except (KeyError, PluginError) as problem:
        return notes.wrong(path, f"there are no HTTP hooks here: {problem}")
    keys = schema.shape(cls)
    fixed = {key: value for key, value in ours.items() if key in keys and value is not None}
    return schema.construct(cls, table, path, notes, fixed=fixed)


def _named(item: Mapping[str, Any]) -> list[str]:
    """Return the keys by which a step names an action that belongs to no check."""
    found = [key for key in NAMED if key in item]
    if STANDBY in found and not (isinstance(item[STANDBY], Mapping) and "kind" in item[STANDBY]):
        found.remove(STANDBY)
    return found


def _by(name: str, table: object, own: Mapping[str, Any], path: str, make: Make) -> Any:
    """Return the action that a step names; what else stands in the step is its own."""
    where = below(path, name)
    if name != STANDBY:
        given = {**own, **table} if isinstance(table, Mapping) else {**own, "path": table}
        return make("action", name, where, given, where if isinstance(table, Mapping) else path, {})
    assert isinstance(table, Mapping)
    options = {key: value for key, value in table.items() if key != "kind"}
    workload = make("workload", str(table["kind"]), below(where, "kind"), options, where, {})
    return UNREAD if workload is UNREAD else make("action", name, where, own, path, {"workload": workload})


def _options(
    verb: str, options: dict[str, Any], path: str, notes: Notes, tables: Tables, kind: object, workload: object
) -> dict[str, Any]:
    """Return the keys that are the action's own, typed where the plugin's action has fields of these names."""
    name = f"{kind}.{verb}"
    if not options or name not in tables.actions or (verb in METHODS and isinstance(workload, METHODS[verb])):
        return options
    try:
        cls = tables.actions[name]
    except PluginError as problem:
        notes.wrong(path, str(problem))
        return options
    return {**options, **schema.read_fields(cls, options, path, notes)}


def ladder_needs(table: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the plugin actions that the steps of a service's table may mean."""
    check, items = table.get("check"), table.get("recovery_actions")
    kind = check.get("kind") if isinstance(check, Mapping) else None
    if not isinstance(items, list) or not isinstance(kind, str):
        return set()
    found: set[tuple[str, str]] = set()
    for item in items:
        verb = item.get("action") if isinstance(item, Mapping) else item
        named = _named(item) if isinstance(item, Mapping) else []
        ours = verb == MANUAL or bool(named)
        if STANDBY in named and isinstance(kept := item[STANDBY]["kind"], str):
            found.add(("workload", kept))
        if isinstance(verb, str) and not ours and not (verb in METHODS and "workload" in table):
            found.add(("action", f"{kind}.{verb}"))
    return found
