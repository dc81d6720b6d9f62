"""`recovery.json`, the file of the application selfheal grew out of, read as if it had been written for us.

Owns what each of its keys means. Every key is used or refused by name (S61). How a service is checked and what runs it
stands nowhere in such a file: that is the preset of the service's name, and presets come with plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

from selfheal.config.read import problem
from selfheal.config.schema import Notes, duration
from selfheal.core.graph import Spelling
from selfheal.errors import Problem
from selfheal.loading import EXTRAS
from selfheal.service import Service

FLEET: Final = frozenset(
    {"monitoring_interval", "health_check_interval", "failure_threshold", "max_concurrent_recoveries"}
    | {"recovery_timeout", "log_level", "max_retries"}
)
"""Keys at its top that are keys of `[fleet]` in ours."""

DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "monitoring_interval": "interval",
        "health_check_interval": "interval",
        "failure_threshold": "failure_threshold",
        "max_retries": "max_retries",
    }
)
"""Those of them that presets give too, and what they are in a service."""

TOP: Final = FLEET | {"enabled", "notification", "services"}

NOTIFICATION: Final = ("email_enabled", "slack_enabled", "webhook_url")

BACKOFF: Final[Mapping[str, str]] = MappingProxyType(
    {"initial_delay": "initial", "max_delay": "cap", "backoff_multiplier": "multiplier"}
)
"""Its names of the delays between attempts, and ours."""

RENAMED: Final[Mapping[str, str]] = MappingProxyType({"dependencies": "depends_on"})

WEBHOOK: Final = "webhook"
"""What the one notifier of such a file is called."""


def recognised(data: Mapping[str, Any]) -> bool:
    """Whether plain data is such a file, and not ours in JSON: ours has tables at its top and no plain values."""
    return not {"fleet", "notifiers", "canaries", "maintenance"} & data.keys() and bool(
        (TOP - {"services"}) & data.keys()
    )


@attrs.frozen
class Translated:
    """The same in our words: `data` to build from, and what was found on the way."""

    data: dict[str, Any]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    def placed(self, found: Iterable[Problem], presets: Mapping[str, Any]) -> list[Problem]:
        """Return problems of the translation where people can find them in their own file."""
        found = tuple(found)
        # Of a service without a preset it is also said that it has no check.
        unknown = {one.path.removesuffix(".preset") for one in found if one.path.endswith(".preset")}
        return [self._placed(one, presets) for one in found if one.path not in unknown]

    def shadowed(self, services: Iterable[Service]) -> list[Problem]:
        """Return a warning for each default at the top that no service has, because its preset is nearer."""
        services = tuple(services)
        found = []
        for key, name in DEFAULTS.items():
            said = self.data["fleet"].get(key)
            value = duration(said) if isinstance(said, str) else said
            if value is not None and services and all(getattr(one, name) != value for one in services):
                message = "no service has it: what is known of them is nearer than the top of the file"
                found.append(problem(key, message, f"say it at a service, such as services.{services[0].name}"))
        return found

    def _placed(self, found: Problem, presets: Mapping[str, Any]) -> Problem:
        head, _, key = found.path.partition(".")
        if head == "fleet" and key:
            return attrs.evolve(found, path=key)
        if head == "notifiers":
            return attrs.evolve(found, path="notification.webhook_url")
        if head == "services" and key.endswith(".preset"):
            return _without_preset(key.removesuffix(".preset"), presets)
        for theirs, ours in BACKOFF.items():
            if found.path.endswith(f".backoff.{ours}"):
                return attrs.evolve(found, path=found.path.removesuffix(f"backoff.{ours}") + theirs)
        return found


def translate(data: Mapping[str, Any]) -> Translated:
    """Return what a `recovery.json` says, in our words; see `recognised`."""
    notes = Notes()
    fleet = {key: data[key] for key in data if key in FLEET}
    if isinstance(level := fleet.get("log_level"), str):
        fleet["log_level"] = level.lower()  # as Python's logging calls them
    for key in [key for key in data if key not in TOP]:
        hint = Spelling(TOP).hint(key) or f"there are: {', '.join(sorted(TOP))}"
        notes.wrong(key or '""', "is unknown to recovery.json", hint)
    enabled = data.get("enabled", True)
    if not isinstance(enabled, bool):
        notes.wrong("enabled", f"{enabled!r:.80} is neither true nor false")
    elif not enabled:
        fleet["observe_only"] = True
        notes.warn("enabled", "is false: everything is watched and told, and nothing is repaired")
    services = data.get("services", {})
    named = services if isinstance(services, Mapping) else {}
    if named is not services:
        notes.wrong("services", "is not a table", 'write {"database": {…}, …}')
    found: dict[str, Any] = {"fleet": fleet}
    found["services"] = {name: _service(name, table) for name, table in named.items()}
    url = _notification(data.get("notification", {}), notes)
    if url is not None:
        found["notifiers"] = {WEBHOOK: {"kind": "webhook", "url": url}}
    return Translated(found, tuple(notes.problems), tuple(notes.warnings))


def _service(name: str, table: Any) -> Any:
    """Return one service in our words. What is no table is left for the builder to refuse."""
    if not isinstance(table, Mapping):
        return table
    made: dict[str, Any] = {"preset": name} if "check" not in table else {}
    backoff = {ours: table[theirs] for theirs, ours in BACKOFF.items() if theirs in table}
    if backoff:
        made["backoff"] = backoff
    return made | {RENAMED.get(key, key): value for key, value in table.items() if key not in BACKOFF}


def _notification(table: Any, notes: Notes) -> Any:
    """Return the URL of a webhook, if there is one; refuse what nobody would send."""
    if not isinstance(table, Mapping):
        notes.wrong("notification", "is not a table", f"there are: {', '.join(NOTIFICATION)}")
        return None
    for key in [key for key in table if key not in NOTIFICATION]:
        hint = Spelling(NOTIFICATION).hint(key) or f"there are: {', '.join(NOTIFICATION)}"
        notes.wrong(f"notification.{key}", "is unknown to recovery.json", hint)
    for key, what in (("email_enabled", "mail"), ("slack_enabled", "Slack messages")):
        wanted = table.get(key, False)
        if not isinstance(wanted, bool):
            notes.wrong(f"notification.{key}", f"{wanted!r:.80} is neither true nor false")
        elif wanted:
            notes.wrong(
                f"notification.{key}",
                f"selfheal sends no {what} by itself, and nothing here says where to",
                "give webhook_url, or an Alertmanager in selfheal.toml, which can; and set this to false",
            )
    return table.get("webhook_url")


def _without_preset(name: str, presets: Mapping[str, Any]) -> Problem:
    if presets:
        hint = f"there are presets for: {', '.join(presets)}; for another, give it a `check` here"
    else:
        hint = f"install selfheal-core[{EXTRAS['knowledgehub']}], which knows its five services"
    return problem(f"services.{name}", "nothing says how it is checked", hint)
