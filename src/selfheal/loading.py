"""Plugins found, loaded, and laid out in tables: kind -> class.

Owns which plugins are let in (`plugins = [...]` of the file), what happens to one that is broken (disabled, with the
reason, and nobody else notices), and who wins when two claim one name (our own; between two others nobody, and it is
said). Each plugin is asked through a pluggy manager of its own, so that what one raises or misspells is its own.

Nothing is imported before it is needed: entry points are listed only when something that is not built in is named or
allowed, and a class given as `"module:Class"` is imported when it is first looked up.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, TypeAlias

import attrs
import pluggy

from selfheal import builtin, hookspecs
from selfheal.core.graph import Spelling
from selfheal.errors import PluginError
from selfheal.hookspecs import GROUP

BUILTIN: Final = "selfheal"
"""The name under which our own classes are registered."""

EXTRAS: Final[Mapping[str, str]] = {
    "redis": "redis",
    "postgres": "postgres",
    "neo4j": "neo4j",
    "weaviate": "weaviate",
    "minio": "minio",
    "docker": "docker",
    "compose": "docker",
    "swarm": "docker",
    "systemd": "systemd",
    "starlette": "starlette",
    "prometheus": "prometheus",
    "knowledgehub": "knowledgehub",
}
"""Kinds and plugin names we know of -> the extra of `selfheal-core` that installs them."""

FRONTEND_EXTRAS: Final[Mapping[str, str]] = {"http": "starlette", "prometheus": "prometheus"}
"""Tables of the file that a frontend reads -> the extra that installs it."""

PRESET_EXTRAS: Final[Mapping[str, str]] = dict.fromkeys(
    ("database", "redis", "weaviate", "neo4j", "minio"), "knowledgehub"
)
"""Presets we know of -> the extra that installs them."""

Observer: TypeAlias = "Callable[[Mapping[str, Any]], None]"

_KIND: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_ACTION: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}(\.[a-z][a-z0-9_]{0,63})?")

SECTIONS: Final[Mapping[str, str]] = {
    "check": "selfheal_register_checks",
    "workload": "selfheal_register_workloads",
    "action": "selfheal_register_actions",
    "notifier": "selfheal_register_notifiers",
    "frontend": "selfheal_register_frontends",
}
"""What a name table holds -> the hook that fills it."""

MUST_HAVE: Final[Mapping[str, tuple[str, ...]]] = {
    "check": ("check",),
    "workload": ("inspect", "restart"),
    "action": ("run",),
    "notifier": ("send",),
    "frontend": ("serve",),
}
"""Methods without which a class cannot do its part; each is an `async def`. A wire check needs none of these."""


@attrs.frozen(kw_only=True)
class Plugin:
    """What became of one plugin. `provides` names its classes (`check redis`), `reason` why it has less, or none."""

    name: str
    origin: str = ""
    loaded: bool = True
    reason: str = ""
    provides: tuple[str, ...] = ()


class NameTable(Mapping[str, type[Any]]):
    """kind -> class. A name that two plugins claim is in no table; `why_not` knows about it.

    A look-up imports the class if it was registered by reference, and raises `PluginError` when that fails.
    """

    def __init__(self, section: str) -> None:
        self.section = section
        self._found: dict[str, type[Any] | str] = {}
        self._owner: dict[str, str] = {}
        self._contested: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __contains__(self, kind: object) -> bool:
        return kind in self._found

    def __getitem__(self, kind: str) -> type[Any]:
        found = self._found[kind]
        if isinstance(found, str):
            found = self._found[kind] = _imported(self.section, kind, found, self._owner[kind])
        return found

    def owner(self, kind: str) -> str:
        """Return the name of the plugin that `kind` came from."""
        return self._owner[kind]

    def claim(self, kind: str, cls: type[Any] | str, plugin: str) -> str:
        """Enter a class; return what stands in the way, or nothing. Our own classes keep their names."""
        if kind in self._contested:
            self._contested[kind].append(plugin)
        elif self._owner.get(kind) is None:
            self._found[kind], self._owner[kind] = cls, plugin
            return ""
        elif self._owner[kind] == BUILTIN:
            return f'the {self.section} "{kind}" is selfheal\'s own; the one of {plugin} is not used'
        else:
            self._contested[kind] = [self._owner[kind], plugin]
            del self._found[kind]
        return f'the {self.section} "{kind}" is claimed by {" and ".join(self._contested[kind])}; none of them is used'

    def contested(self, kind: str) -> tuple[str, ...]:
        """Return the plugins that claim `kind`, when they are more than one."""
        return tuple(self._contested.get(kind, ()))


@attrs.frozen(kw_only=True)
class Tables:
    """Everything plugins offer, by name; and what became of each plugin."""

    checks: NameTable = attrs.field(factory=lambda: NameTable("check"))
    workloads: NameTable = attrs.field(factory=lambda: NameTable("workload"))
    actions: NameTable = attrs.field(factory=lambda: NameTable("action"))
    notifiers: NameTable = attrs.field(factory=lambda: NameTable("notifier"))
    frontends: NameTable = attrs.field(factory=lambda: NameTable("frontend"))
    presets: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    commands: tuple[Any, ...] = ()
    observers: tuple[tuple[str, Observer], ...] = ()
    plugins: tuple[Plugin, ...] = ()

    def section(self, name: str) -> NameTable:
        """Return the name table of a section: `check`, `workload`, `action`, `notifier` or `frontend`."""
        return {
            "check": self.checks,
            "workload": self.workloads,
            "action": self.actions,
            "notifier": self.notifiers,
            "frontend": self.frontends,
        }[name]

    def no_preset(self, name: str) -> tuple[str, str]:
        """Return a message and a hint for a preset that no plugin offers."""
        message, extra = f"there is no preset {name!a:.80}", PRESET_EXTRAS.get(name)
        for plugin in self.plugins:
            if not plugin.loaded and plugin.name == extra:
                hint = "add it to `plugins`" if plugin.reason == NOT_ALLOWED else "see `selfheal plugins`"
                return f'{message}: the plugin "{plugin.name}" is disabled: {plugin.reason}', hint
        if extra is not None and not self.presets:
            return message, f"install selfheal-core[{extra}]"
        known = ", ".join(self.presets) or "none; presets come with plugins"
        return message, Spelling(self.presets).hint(name) or f"there are: {known}"

    def why_not(self, section: str, kind: str) -> tuple[str, str]:
        """Return a message and a hint for a kind that no table has."""
        table = self.section(section)
        message = f'there is no {section} "{kind:.80}"'
        if rivals := table.contested(kind):
            return f"{message}: {' and '.join(rivals)} both claim it", "let one of them in with `plugins = [...]`"
        extra = (FRONTEND_EXTRAS if section == "frontend" else EXTRAS).get(kind)
        for plugin in self.plugins:
            if not plugin.loaded and plugin.name in {kind, extra}:
                hint = "add it to `plugins`" if plugin.reason == NOT_ALLOWED else "see `selfheal plugins`"
                return f'{message}: the plugin "{plugin.name}" is disabled: {plugin.reason}', hint
        if extra is not None:
            return message, f"you have `{kind}` configured; install selfheal-core[{extra}]"
        known = sorted(table)
        return message, Spelling(known).hint(kind) or f"there are: {', '.join(known) or 'none'}"


NOT_ALLOWED: Final = "`plugins` does not name it"
NOT_INSTALLED: Final = "it is not installed"


def installed() -> Iterable[EntryPoint]:
    """Return the entry points of the group `selfheal` on this machine."""
    return entry_points(group=GROUP)


def load_plugins(
    allowed: Collection[str] | None = None,
    *,
    needed: Collection[tuple[str, str]] | None = None,
    extra: Mapping[str, object] | None = None,
    listing: Callable[[], Iterable[EntryPoint]] = installed,
) -> Tables:
    """Load plugins and return their tables; what fails is in `Tables.plugins`, and nothing is raised.

    `allowed` names the entry points that may be loaded (None: all; empty: none). `needed` are the (section, kind)
    pairs a configuration names (`preset` is a section too): when all are built in and nothing is `allowed` by name, no
    entry point is even listed. `extra` are plugin modules or objects given by hand, by name.
    """
    loader = _Loader()
    loader.admit(BUILTIN, "selfheal-core", lambda: builtin)
    for name, module in (extra or {}).items():
        loader.admit(name, "given by hand", partial(_same, module))
    if allowed is None:
        scan = needed is None or not all(loader.has(section, kind) for section, kind in needed)
    else:
        scan = bool(allowed)
    if scan:
        _admit_installed(loader, allowed, listing)
    return loader.result()


def _same(module: object) -> object:
    return module


def _admit_installed(
    loader: _Loader, allowed: Collection[str] | None, listing: Callable[[], Iterable[EntryPoint]]
) -> None:
    points = sorted(listing(), key=lambda point: (point.name, _origin(point)))
    for point in points:
        if allowed is not None and point.name not in allowed:
            loader.plugins.append(Plugin(name=point.name, origin=_origin(point), loaded=False, reason=NOT_ALLOWED))
        else:
            loader.admit(point.name, _origin(point), point.load)
    names = {point.name for point in points} | {plugin.name for plugin in loader.plugins}
    for name in dict.fromkeys(allowed or ()):
        if name not in names:
            loader.plugins.append(Plugin(name=name, loaded=False, reason=NOT_INSTALLED))


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


class _Loader:
    """Admits one plugin after another and keeps what became of each."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.plugins: list[Plugin] = []
        self._presets: dict[str, Mapping[str, Any]] = {}
        self._commands: list[Any] = []
        self._observers: list[tuple[str, Observer]] = []

    def has(self, section: str, kind: str) -> bool:
        return kind in (self._presets if section == "preset" else self.tables.section(section))

    def result(self) -> Tables:
        return attrs.evolve(
            self.tables,
            presets=self._presets,
            commands=tuple(self._commands),
            observers=tuple(self._observers),
            plugins=tuple(self.plugins),
        )

    def admit(self, name: str, origin: str, load: Callable[[], object]) -> None:
        """Load a plugin and enter what it registers: all of it, or, when anything is wrong with it, nothing."""
        try:
            if any(plugin.name == name and plugin.loaded for plugin in self.plugins):
                raise PluginError(f'another plugin is called "{name}" too')
            offer = _Offer.of(load())
        except (Exception, SystemExit) as problem:  # noqa: BLE001  # whatever a plugin raises is its own end only
            reason = str(problem) if isinstance(problem, PluginError) else f"{type(problem).__name__}: {problem}"
            self.plugins.append(Plugin(name=name, origin=origin, loaded=False, reason=_line(reason)))
            return
        notes: list[str] = []
        provides: list[str] = []
        for section, kind, cls in offer.classes:
            note = self.tables.section(section).claim(kind, cls, name)
            notes += [note] if note else []
            provides += [] if note else [f"{section} {kind}"]
        for preset, keys in offer.presets.items():
            if preset in self._presets:
                notes.append(f'the preset "{preset}" is taken')
            else:
                self._presets[preset] = keys
                provides.append(f"preset {preset}")
        self._commands += offer.commands
        provides += [f"command {command.name}" for command in offer.commands]
        if offer.observer is not None:
            self._observers.append((name, offer.observer))
            provides.append("observer")
        reason = "; ".join(notes) if notes or provides else "it registers nothing; are its hooks marked @hookimpl?"
        self.plugins.append(Plugin(name=name, origin=origin, reason=reason, provides=tuple(provides)))


@attrs.frozen(kw_only=True)
class _Offer:
    """Everything one plugin registers, looked through before any of it counts."""

    classes: tuple[tuple[str, str, type[Any] | str], ...]
    presets: Mapping[str, Mapping[str, Any]]
    commands: tuple[Any, ...]
    observer: Observer | None

    @classmethod
    def of(cls, plugin: object) -> _Offer:
        """Ask a plugin for everything. Raises `PluginError`, or whatever the plugin raises."""
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin)
            manager.check_pending()
        except pluggy.PluginValidationError as problem:
            raise PluginError(_misspelt(manager) or str(problem)) from problem
        for caller in manager.get_hookcallers(plugin) or ():
            if any(inspect.iscoroutinefunction(impl.function) for impl in caller.get_hookimpls()):
                raise PluginError(f"{caller.name} is an `async def`: hooks are called, not awaited; make it a `def`")
        return cls(
            classes=tuple(
                (section, kind, found)
                for section, hook in SECTIONS.items()
                for answer in _answers(manager, hook)
                for kind, found in _classes(section, answer)
            ),
            presets={
                name: keys
                for answer in _answers(manager, "selfheal_register_presets")
                for name, keys in _presets(answer)
            },
            commands=tuple(
                command for answer in _answers(manager, "selfheal_register_commands") for command in _commands(answer)
            ),
            observer=_observer(manager),
        )


def _answers(manager: pluggy.PluginManager, hook: str) -> list[Any]:
    """Call one hook of the one plugin in `manager`."""
    return list(getattr(manager.hook, hook)())


def _observer(manager: pluggy.PluginManager) -> Observer | None:
    caller = manager.hook.selfheal_on_record
    if not caller.get_hookimpls():
        return None
    return lambda record: caller(record=record)


def _misspelt(manager: pluggy.PluginManager) -> str:
    """Name hooks we do not have, with the one that was meant."""
    known = [name for name in vars(hookspecs) if name.startswith("selfheal_")]
    named = [name for name in vars(manager.hook) if name.startswith("selfheal_") and name not in known]
    return "; ".join(f"there is no hook {name}; {Spelling(known).hint(name)}".rstrip("; ") for name in named)


def _classes(section: str, answer: object) -> Iterator[tuple[str, type[Any] | str]]:
    """Yield kind and class of what a hook returned, each looked at."""
    if isinstance(answer, Mapping):
        for kind, found in answer.items():
            pattern = _ACTION if section == "action" else _KIND
            if not isinstance(kind, str) or pattern.fullmatch(kind) is None:
                raise PluginError(f"{kind!r:.80} is no name for a {section}: lower-case letters, digits, _ and -")
            if not isinstance(found, str):
                _look_at(section, kind, found)
            elif found.count(":") != 1:
                raise PluginError(f'{section} {kind}: {found!r:.80} is no reference; write "package.module:Class"')
            yield kind, found
    elif isinstance(answer, Iterable) and not isinstance(answer, str):
        for found in answer:
            kind = getattr(found, "kind", None)
            if section == "action" and isinstance(verb := getattr(found, "verb", None), str):
                kind = f"{kind}.{verb}"
            yield from _classes(section, {kind: found})
    else:
        raise PluginError(f"{SECTIONS[section]} returned {type(answer).__name__}, not a list of classes")


def _presets(answer: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(answer, Mapping):
        raise PluginError(f"selfheal_register_presets returned {type(answer).__name__}, not name -> keys")
    for name, keys in answer.items():
        if not isinstance(name, str) or not isinstance(keys, Mapping):
            raise PluginError(f"selfheal_register_presets: {name!r:.80} is not a name with a table of keys")
        yield name, keys


def _commands(answer: object) -> Iterator[Any]:
    if not isinstance(answer, Iterable):
        raise PluginError(f"selfheal_register_commands returned {type(answer).__name__}, not a list of commands")
    for command in answer:
        if not isinstance(getattr(command, "name", None), str):
            raise PluginError(f"selfheal_register_commands: {command!r:.80} is no click command")
        yield command


def _look_at(section: str, kind: str, cls: object) -> None:
    """Raise `PluginError` when a class cannot do what its section asks."""
    if not isinstance(cls, type) or not attrs.has(cls):
        raise PluginError(f"{section} {kind}: {cls!r:.80} is not an attrs class; decorate it with @attrs.frozen")
    own = getattr(cls, "kind", None)
    if own != kind.partition(".")[0]:
        raise PluginError(f"{section} {kind}: {cls.__name__}.kind is {own!r:.80}, and the two must agree")
    wanted = MUST_HAVE[section]
    if section == "check" and hasattr(cls, "talk") and hasattr(cls, "target"):
        wanted = ()
    for name in wanted:
        method = getattr(cls, name, None)
        if not callable(method):
            raise PluginError(f"{section} {kind}: {cls.__name__} has no method `{name}`")
        if (
            inspect.isfunction(method)
            and not hasattr(method, "__wrapped__")
            and not inspect.iscoroutinefunction(method)
        ):
            raise PluginError(f"{section} {kind}: {cls.__name__}.{name} must be an `async def`")


def _imported(section: str, kind: str, reference: str, owner: str) -> type[Any]:
    """Import a class registered by reference."""
    module, _, name = reference.partition(":")
    try:
        cls = getattr(import_module(module), name)
        _look_at(section, kind, cls)
    except (Exception, SystemExit) as problem:  # a plugin's module may raise anything
        reason = str(problem) if isinstance(problem, PluginError) else f"{type(problem).__name__}: {problem}"
        raise PluginError(
            _line(f'the {section} "{kind}" of the plugin {owner} cannot be loaded: {reason}')
        ) from problem
    found: type[Any] = cls
    return found


def _line(text: str) -> str:
    """Return `text` in one printable line of bounded length: it came from a plugin."""
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 300 else text[:299] + "…"
