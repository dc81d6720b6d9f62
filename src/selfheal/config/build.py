"""From plain data to a `Configuration`: services with their plugin objects, canaries, limits, notifiers, frontends.

Owns the shape of the file as a whole, the precedence of a value (the service, its preset, `[fleet]`, the default), and
the checks that no single value can fail. A file is used whole or not at all, and everything wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from selfheal.calendar import MaintenanceWindow
from selfheal.config import schema
from selfheal.config.ladders import ladder_needs, read_depends, read_ladder
from selfheal.config.read import below, duplicates_but_for_case, plain
from selfheal.config.schema import UNREAD, Notes
from selfheal.core import graph
from selfheal.core.graph import Spelling
from selfheal.core.model import Backoff, Dependency, Limits, Policy
from selfheal.core.routing import Route
from selfheal.errors import ConfigurationError, PluginError, Problem
from selfheal.loading import NOT_INSTALLED, Tables
from selfheal.plugins import Notifier
from selfheal.service import DERIVED, Canary, Service, name_fault

SECTIONS: Final = ("fleet", "services", "canaries", "maintenance", "notifiers")
"""The tables of a file that are ours; any other belongs to the frontend of that name."""

INTERVAL_SYNONYMS: Final = ("monitoring_interval", "health_check_interval")
"""What the specification calls `interval`, in two places."""

POLICY_KEYS: Final = tuple(
    field.name for field in attrs.fields(Policy) if field.name not in {*DERIVED, "name", "depends_on"}
)
"""Keys that a service, a preset and `[fleet]` may all give."""

PRESET_KEYS: Final = frozenset({*POLICY_KEYS, *INTERVAL_SYNONYMS, "check", "workload", "recovery_actions"})
SERVICE_KEYS: Final = PRESET_KEYS | {"depends_on", "preset"}
ROUTE_KEYS: Final = frozenset(field.name for field in attrs.fields(Route)) - {"notifier"}
CANARY_KEYS: Final = frozenset({"check", "interval", "timeout", *INTERVAL_SYNONYMS})


@attrs.frozen(kw_only=True)
class FleetTable:
    """The keys of `[fleet]` that are neither limits nor defaults of services.

    `plugins` is the allow-list of entry points; without it all that are needed are loaded. `state_dir` holds the
    journal. `seed` spreads jitter; it is drawn when none is given.
    """

    name: str = "selfheal"
    state_dir: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    plugins: tuple[str, ...] | None = None
    seed: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))


@attrs.frozen(kw_only=True)
class Configuration:
    """Everything a file says, typed.

    `notifiers` maps names to notifiers, each with its route in `routes`; `frontends` maps the name of a table to its
    frontend. `tables` are the plugins it was made with, `path` is the file, where there was one.
    """

    name: str = "selfheal"
    services: tuple[Service, ...] = ()
    canaries: tuple[Canary, ...] = ()
    limits: Limits = attrs.field(factory=Limits)
    seed: int | None = None
    notifiers: Mapping[str, Notifier] = attrs.field(factory=dict)
    routes: tuple[Route, ...] = ()
    maintenance: tuple[MaintenanceWindow, ...] = ()
    frontends: Mapping[str, Any] = attrs.field(factory=dict)
    state_dir: Path | None = None
    log_level: str = "info"
    plugins: tuple[str, ...] | None = None
    warnings: tuple[Problem, ...] = ()
    path: Path | None = None
    tables: Tables = attrs.field(factory=Tables, repr=False, eq=False)


def at_start_only(before: Configuration, after: Configuration) -> tuple[str, ...]:
    """Return the keys of a file in which two versions differ and which a reload does not take over."""
    fleet = [f"fleet.{key}" for key in ("name", "seed", "state_dir", "plugins") if _differ(before, after, key)]
    names = [name for name in before.notifiers if name not in after.notifiers]
    names += [name for name in after.notifiers if name not in before.notifiers]
    routes = {
        route for one, other in ((before, after), (after, before)) for route in one.routes if route not in other.routes
    }
    names += sorted({route.notifier for route in routes}.difference(names))
    doors = {**before.frontends, **after.frontends}
    return (
        *fleet,
        *(f"notifiers.{name}" for name in names),
        *(name for name in doors if before.frontends.get(name) != after.frontends.get(name)),
    )


def _differ(before: Configuration, after: Configuration, key: str) -> bool:
    return bool(getattr(before, key) != getattr(after, key))


def needs(data: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Return the (section, kind) pairs that plain data names, as `load_plugins` takes them; never an error."""
    found = {("frontend", key) for key in data if key not in SECTIONS}
    for section, keys in (("services", ("check", "workload")), ("canaries", ("check",))):
        for table in _tables(data.get(section)):
            for key in keys:
                found |= _kind(key, table.get(key))
            if section == "services":
                found |= ladder_needs(table)
                found |= {("preset", table["preset"])} if isinstance(table.get("preset"), str) else set()
    for table in _tables(data.get("notifiers")):
        found |= _kind("notifier", table)
    return frozenset(found)


def _tables(value: object) -> Iterable[Mapping[str, Any]]:
    return [table for table in value.values() if isinstance(table, Mapping)] if isinstance(value, Mapping) else []


def _kind(section: str, table: object) -> set[tuple[str, str]]:
    kind = table.get("kind") if isinstance(table, Mapping) else None
    return {(section, kind)} if isinstance(kind, str) else set()


@attrs.frozen
class _Node:
    """A service as far as the graph must know it, whether or not the rest of it could be read."""

    name: str
    depends_on: tuple[Dependency, ...]


def build(data: Mapping[str, Any], *, tables: Tables, path: Path | None = None) -> Configuration:
    """Return the configuration that plain data (see `read.plain`) describes.

    Relative paths start from the folder of `path`. Raises `ConfigurationError` with everything that is wrong.
    """
    notes = Notes(path.parent.absolute() if path is not None else None)
    builder = _Builder(tables, notes)
    configuration = builder.build(data)
    if notes.problems:
        raise ConfigurationError(notes.problems)
    return attrs.evolve(configuration, warnings=tuple(notes.warnings), path=path)


class _Builder:
    """Builds one configuration; what it finds goes to `notes`."""

    def __init__(self, tables: Tables, notes: Notes) -> None:
        self.tables = tables
        self.notes = notes
        self.fleet = FleetTable()
        self.defaults: dict[str, Any] = {}
        self.ladder: Mapping[str, Any] = {}
        self._presets: dict[str, tuple[Mapping[str, Any], dict[str, Any]]] = {}
        self._nodes: list[_Node] = []

    def build(self, data: Mapping[str, Any]) -> Configuration:
        """Return the configuration; it is whole only while `notes` has no problem."""
        limits = self._fleet(self._table(data, "fleet"))
        named = self._table(data, "services")
        services = [made for name, table in named.items() if (made := self._service(name, table)) is not UNREAD]
        for problem in graph.problems(self._nodes):
            self.notes.wrong(problem.path, problem.message, problem.hint)
        for first, second in duplicates_but_for_case(named):
            self.notes.warn(below("services", second), f'differs from "{first}" in nothing but the case of its letters')
        if not named:
            self.notes.warn("services", "there are none: nothing is watched", "add [services.<name>] with a check")
        spelling = Spelling(named)
        canaries = tuple(self._canaries(self._table(data, "canaries")))
        notifiers, routes = self._notifiers(self._table(data, "notifiers"), spelling)
        return Configuration(
            name=self.fleet.name,
            services=tuple(services),
            canaries=canaries,
            limits=limits,
            seed=self.fleet.seed,
            notifiers=notifiers,
            routes=routes,
            maintenance=tuple(self._maintenance(data.get("maintenance", []), spelling)),
            frontends=self._frontends(data),
            state_dir=self.fleet.state_dir,
            log_level=self.fleet.log_level,
            plugins=self.fleet.plugins,
            tables=self.tables,
        )

    def _table(self, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """Return a table of the file; an absent one is empty."""
        value = data.get(key, {})
        if isinstance(value, Mapping):
            return value
        self.notes.wrong(key, "is not a table", f"write [{key}]" if key == "fleet" else f"write [{key}.<name>]")
        return {}

    def _name(self, path: str, name: str, table: object) -> bool:
        """Note what is wrong with the head of a named table; return whether its keys can be looked at."""
        if fault := name_fault(name):
            self.notes.wrong(path, *fault)
        if not isinstance(table, Mapping):
            self.notes.wrong(path, f"a {type(table).__name__} is not a table", "write its keys below")
        return isinstance(table, Mapping)

    # -- [fleet] -----------------------------------------------------------------------------------------------------

    def _fleet(self, table: Mapping[str, Any]) -> Limits:
        """Read `[fleet]`: its own keys, the limits, and defaults of services."""
        own, limits = schema.shape(FleetTable), schema.shape(Limits)
        defaults = {}
        for key, value in table.items():
            if key in POLICY_KEYS or key in INTERVAL_SYNONYMS:
                defaults[key] = value
            elif key not in own and key not in limits and key != "recovery_actions":
                known = {*own, *limits, *POLICY_KEYS, *INTERVAL_SYNONYMS, "recovery_actions"}
                schema.unknown(key, known, "fleet", self.notes)
        self.defaults = self._layer(defaults, "fleet")
        self.ladder = {key: table[key] for key in table if key == "recovery_actions"}
        fleet = schema.construct(FleetTable, {key: table[key] for key in table if key in own}, "fleet", self.notes)
        if fleet is not UNREAD:
            self.fleet = fleet
            if fault := name_fault(fleet.name):
                self.notes.wrong("fleet.name", *fault)
        for plugin in self.tables.plugins:
            if plugin.reason == NOT_INSTALLED:
                message = f'the plugin "{plugin.name}" is not installed'
                self.notes.warn("fleet.plugins", message, "install it, or leave it out")
        made = schema.construct(Limits, {key: table[key] for key in table if key in limits}, "fleet", self.notes)
        return Limits() if made is UNREAD else made

    # -- layers ------------------------------------------------------------------------------------------------------

    def _layer(self, table: Mapping[str, Any], path: str) -> dict[str, Any]:
        """Return the policy keys of one layer, typed and judged; `backoff` stays a table of what was given."""
        values: dict[str, Any] = {}
        spelled = ""
        for key, value in table.items():
            name = "interval" if key in INTERVAL_SYNONYMS else key
            if name not in POLICY_KEYS:
                continue
            where = below(path, key)
            if name == "interval":
                if spelled:
                    self.notes.wrong(where, f"means the same as {spelled}, which stands here too", "give one of them")
                spelled = key
            if name == "backoff" and isinstance(value, Mapping):
                found: Any = self._some(Backoff, value, where)
            else:
                found = self._some(Policy, {name: value}, path, where).get(name, UNREAD)
            if found is not UNREAD:
                values[name] = found
        if values.get("budgets") == ():
            self.notes.warn(below(path, "budgets"), "without a budget nothing limits how often a service is restarted")
        return values

    def _some(self, cls: type[Any], table: Mapping[str, Any], path: str, where: str = "") -> dict[str, Any]:
        """Return the keys of a core class that `table` gives, each typed and judged by itself."""
        keys = schema.shape(cls)
        values = {}
        for key, value in table.items():
            if key not in keys:
                schema.unknown(key, keys, path, self.notes)
                continue
            at = where or below(path, key)
            found = keys[key].read(value, at, self.notes)
            if found is not UNREAD:
                found = schema.judged(keys[key].field, found, at, self.notes)
            if found is not UNREAD:
                values[key] = found
        return values

    def _preset(self, table: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """Return the preset that a service names: as plain data, and its policy keys typed."""
        name = table.get("preset")
        if name is None:
            return {}, {}
        presets = self.tables.presets
        if not isinstance(name, str) or name not in presets:
            self.notes.wrong(
                below(path, "preset"), *self.tables.no_preset(name if isinstance(name, str) else repr(name))
            )
            return {}, {}
        if name not in self._presets:
            where = f"preset {name}"
            raw: Mapping[str, Any] = {}
            try:
                raw = plain(presets[name])
            except ConfigurationError as refused:
                for problem in refused.problems:
                    self.notes.wrong(where, f"{problem.path}: {problem.message}", problem.hint)
            for key in raw:
                if key not in PRESET_KEYS:
                    schema.unknown(key, PRESET_KEYS, where, self.notes)
            self._presets[name] = raw, self._layer(raw, where)
        return self._presets[name]

    # -- [services.<name>] -------------------------------------------------------------------------------------------

    def _service(self, name: str, table: Any) -> Any:
        """Return one service, or `UNREAD` after a note."""
        path = below("services", name)
        told = len(self.notes.problems)
        if not self._name(path, name, table):
            self._nodes.append(_Node(name, ()))
            return UNREAD
        for key in table:
            if key not in SERVICE_KEYS:
                schema.unknown(key, SERVICE_KEYS, path, self.notes)
        raw, preset = self._preset(table, path)
        values = self._merged(path, self.defaults, preset, self._layer(table, path))
        values["workload"] = self._object("workload", _over(raw.get("workload"), table.get("workload")), path)
        values["check"] = self._check(_over(raw.get("check"), table.get("check")), path, values["workload"])
        values["recovery_actions"] = self._ladder(table, raw, path, values["check"], values["workload"])
        values["depends_on"] = read_depends(table.get("depends_on", []), below(path, "depends_on"), self.notes)
        self._nodes.append(_Node(name, () if values["depends_on"] is UNREAD else values["depends_on"]))
        given = {key: value for key, value in values.items() if value is not UNREAD}
        sound = len(self.notes.problems) == told
        if name_fault(name) is None:
            given["name"] = name
        made = schema.make(Service, given, path, self.notes, sound=sound)
        if made is not UNREAD:
            self._doubt(made, path)
        return made

    def _merged(self, path: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the layers over one another, the last on top; tables of `backoff` are merged key by key."""
        values: dict[str, Any] = {}
        backoff: dict[str, Any] = {}
        for layer in layers:
            values |= layer
            backoff |= layer.get("backoff", {})
        if "backoff" in values:
            made = values["backoff"] = schema.make(Backoff, backoff, below(path, "backoff"), self.notes)
            if made is not UNREAD and made.initial > made.cap:
                message = f"{made.initial:g} s is more than the cap of {made.cap:g} s"
                self.notes.wrong(below(path, "backoff"), f"initial: {message}", "lower one or raise the other")
        return values

    def _check(self, table: object, path: str, workload: object) -> Any:
        if table is None:
            hint = 'such as check = { kind = "tcp", address = "host:port" }'
            return self.notes.wrong(path, "it has no check", hint)
        return self._object("check", table, path, {"workload": None if workload is UNREAD else workload})

    def _ladder(self, table: Mapping[str, Any], raw: Mapping[str, Any], path: str, check: Any, workload: Any) -> Any:
        """Return the ladder of the first layer that has one."""
        places = ((table, path), (raw, f"preset {table.get('preset')}"), (self.ladder, "fleet"))
        for layer, where in places:
            if "recovery_actions" in layer:
                kind = getattr(type(check), "kind", None)
                here = below(where, "recovery_actions")
                ladder = layer["recovery_actions"]
                return read_ladder(ladder, here, self.notes, self.tables, kind, workload, self._plugin)
        return ()

    def _object(self, section: str, table: object, path: str, ours: Mapping[str, Any] | None = None) -> Any:
        """Return the plugin object of a table with a `kind`; None where there is no table."""
        if table is None:
            return None
        where = below(path, section)
        known = ", ".join(sorted(self.tables.section(section)))
        if not isinstance(table, Mapping):
            return self.notes.wrong(where, "is not a table", f'write {section} = {{ kind = "…" }}; kinds are: {known}')
        kind = table.get("kind")
        if not isinstance(kind, str):
            return self.notes.wrong(where, "it does not say its kind", f"kinds are: {known}")
        options = {key: value for key, value in table.items() if key != "kind"}
        return self._plugin(section, kind, below(where, "kind"), options, where, ours)

    def _plugin(
        self,
        section: str,
        kind: str,
        kind_at: str,
        options: Mapping[str, Any],
        path: str,
        ours: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return an object of the class that a table of names has for `kind`.

        `ours` are values we give to fields of these names. Unless the file says otherwise, a field `state_directory` is
        the fleet's `state_dir`, and a field `fleet` its name.
        """
        cls = self._class(section, kind, kind_at)
        if cls is UNREAD:
            return UNREAD
        keys = schema.shape(cls)
        fixed = {key: value for key, value in (ours or {}).items() if key in keys}
        of_the_fleet = {"state_directory": self.fleet.state_dir, "fleet": self.fleet.name}
        wanted = keys.keys() - options.keys()
        fixed |= {key: value for key, value in of_the_fleet.items() if key in wanted and value is not None}
        return schema.construct(cls, options, path, self.notes, fixed=fixed)

    def _class(self, section: str, kind: str, path: str) -> Any:
        table = self.tables.section(section)
        if kind not in table:
            return self.notes.wrong(path, *self.tables.why_not(section, kind))
        try:
            return table[kind]
        except PluginError as problem:
            return self.notes.wrong(path, str(problem), "is everything it needs installed?")

    def _doubt(self, service: Service, path: str) -> None:
        """Warn of what can be meant, but hardly is."""
        if service.workload is not None and not service.recovery_actions and not service.observe_only:
            hint = 'write recovery_actions = ["restart"], or observe_only = true'
            self.notes.warn(path, "it has a workload and no recovery_actions: nothing is ever repaired", hint)
        for place, rung in enumerate(service.recovery_actions):
            where = f"{below(path, 'recovery_actions')}[{place}]"
            if rung.step.from_attempt > service.max_retries:
                attempts = f"{service.max_retries} attempt{'s' if service.max_retries > 1 else ''}"
                self.notes.warn(where, f"it comes from attempt {rung.step.from_attempt} on, and there are {attempts}")
            if "timeout" in rung.given and rung.step.timeout > service.recovery_timeout:
                self.notes.warn(
                    where, f"its timeout is longer than the attempt, which ends after {service.recovery_timeout:g} s"
                )

    # -- everything else ---------------------------------------------------------------------------------------------

    def _canaries(self, named: Mapping[str, Any]) -> Iterator[Canary]:
        for name, table in named.items():
            path = below("canaries", name)
            told = len(self.notes.problems)
            if not self._name(path, name, table):
                continue
            for key in table:
                if key not in CANARY_KEYS:
                    schema.unknown(key, CANARY_KEYS, path, self.notes)
            layer = {key: value for key, value in table.items() if key in CANARY_KEYS}
            values = {"check": self._check(table.get("check"), path, None), **self._layer(layer, path)}
            given = {key: value for key, value in values.items() if value is not UNREAD}
            sound = len(self.notes.problems) == told
            if name_fault(name) is None:
                given["name"] = name
            made = schema.make(Canary, given, path, self.notes, sound=sound)
            if made is not UNREAD:
                yield made

    def _notifiers(self, named: Mapping[str, Any], services: Spelling) -> tuple[dict[str, Notifier], tuple[Route, ...]]:
        """Return notifiers and their routes: the keys of a route are those that the notifier itself has not."""
        notifiers: dict[str, Notifier] = {}
        routes: list[Route] = []
        for name, table in named.items():
            path = below("notifiers", name)
            if not self._name(path, name, table):
                continue
            kind = table.get("kind")
            if not isinstance(kind, str):
                kinds = ", ".join(sorted(self.tables.notifiers))
                self.notes.wrong(path, "it does not say its kind", f"kinds are: {kinds}")
                continue
            cls = self._class("notifier", kind, below(path, "kind"))
            keys = {} if cls is UNREAD else schema.shape(cls)
            routing = {key: table[key] for key in table if key in ROUTE_KEYS and key not in keys}
            options = {key: table[key] for key in table if key in keys and key != "kind"}
            for key in table:
                if cls is not UNREAD and key not in routing and key not in options and key != "kind":
                    schema.unknown(key, {*keys, *ROUTE_KEYS}, path, self.notes)
            route = schema.construct(Route, routing, path, self.notes, fixed={"notifier": name or "?"})
            made = UNREAD if cls is UNREAD else self._plugin("notifier", kind, path, options, path)
            if made is not UNREAD and route is not UNREAD:
                self._judge_route(route, path, services, named)
                notifiers[name] = made
                routes.append(route)
        return notifiers, tuple(routes)

    def _judge_route(self, route: Route, path: str, services: Spelling, notifiers: Mapping[str, Any]) -> None:
        self._known(route.services or (), below(path, "services"), services)
        if route.services == () or not route.severities:
            self.notes.warn(path, "its route selects nothing, so it is never told anything")
        if route.escalate_to and route.escalate_to not in notifiers:
            message = f"there is no notifier {route.escalate_to!a:.100}"
            self.notes.wrong(below(path, "escalate_to"), message, Spelling(notifiers).hint(route.escalate_to))

    def _maintenance(self, items: object, services: Spelling) -> Iterator[MaintenanceWindow]:
        """Yield the windows; one without a name is called by what it says, so that it keeps its name over a reload."""
        if not isinstance(items, list):
            self.notes.wrong("maintenance", "is not a list of tables", "write [[maintenance]]")
            return
        seen: dict[str, int] = {}
        for place, table in enumerate(items):
            path = f"maintenance[{place}]"
            if not isinstance(table, Mapping):
                self.notes.wrong(path, "is not a table", "write [[maintenance]]")
                continue
            said = " ".join(f"{key}={table[key]}" for key in sorted(table) if key != "name")
            named: Mapping[str, Any] = {} if "name" in table else {"name": said[:200]}
            window = schema.construct(MaintenanceWindow, table, path, self.notes, fixed=named)
            if window is UNREAD:
                continue
            if "name" in table and (fault := name_fault(window.name)):
                self.notes.wrong(below(path, "name"), *fault)
            if (first := seen.setdefault(window.name, place)) != place:
                self.notes.wrong(
                    path, f"is maintenance[{first}] again, by name or by content", "give each its own name"
                )
            self._known(window.services, below(path, "services"), services)
            yield window

    def _known(self, names: Iterable[str], path: str, services: Spelling) -> None:
        for place, name in enumerate(names):
            if name not in services:
                self.notes.wrong(f"{path}[{place}]", f"there is no service {name!a:.100}", services.hint(name))

    def _frontends(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the frontends whose tables the file has."""
        found = {}
        for key, table in data.items():
            if key in SECTIONS:
                continue
            path = below("", key)
            if key not in self.tables.frontends and (hint := Spelling(SECTIONS).hint(key)):
                self.notes.wrong(path, "unknown key", hint)
            elif not isinstance(table, Mapping):
                tables = (*SECTIONS, *self.tables.frontends)
                self.notes.wrong(path, "unknown key", f"a file holds the tables: {', '.join(tables)}")
            elif (made := self._plugin("frontend", key, path, table, path)) is not UNREAD:
                found[key] = made
        return found


def _over(below_it: object, on_top: object) -> object:
    """Return a table of a service over that of its preset, key by key, unless it is of another kind."""
    if on_top is None or not isinstance(below_it, Mapping) or not isinstance(on_top, Mapping):
        return below_it if on_top is None else on_top
    if on_top.get("kind", below_it.get("kind")) != below_it.get("kind"):
        return on_top
    return {**below_it, **on_top}
