"""A service as people write it: a `Policy` plus plugin objects (its check, its workload, the cures of its ladder).

Owns the noun of the library and of the file, which names are allowed, and the keyed fingerprint by which a change of
a URL or a secret shows without showing them. The core sees only what `Service.policy` returns.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from hashlib import sha256
from pathlib import PurePath
from typing import Any, Final, TypeAlias

import attrs

from selfheal.core import model
from selfheal.core.model import (
    CANARY_PREFIX,
    Backoff,
    Budget,
    Dependency,
    DependencyKind,
    Fleet,
    Limits,
    Policy,
    Priority,
    WhenDisabled,
    Window,
)
from selfheal.ladder import ResolvedStep, Rung
from selfheal.plugins import HealthCheck, Workload
from selfheal.secret import Secret
from selfheal.wire import WireCheck

Check: TypeAlias = "HealthCheck | WireCheck | Callable[..., Any]"
"""What may stand after `check=`: a plugin object, or a callable of the application."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# -- names -----------------------------------------------------------------------------------------------------------


def name_fault(name: object) -> tuple[str, str] | None:
    """Return what is wrong with a name and what to do, or None: 1 to 100 ASCII letters, digits, `.`, `_` and `-`.

    A name ends up in paths, labels, log lines and arguments of commands, so it is refused rather than escaped.
    """
    rule = "use letters, digits, '.', '_' and '-', beginning with a letter or digit"
    if not isinstance(name, str):
        return f"{name!r:.80} is no name", "write it as text"
    if _NAME.fullmatch(name):
        return None
    message = f"{name!a:.100} cannot be a name"
    if not name:
        return "the name is empty", rule
    if name.startswith(CANARY_PREFIX):
        return message, f"{CANARY_PREFIX} is how canaries are told from services"
    if len(name) > 100:
        return message, "use at most 100 characters"
    plain = unicodedata.normalize("NFKC", name)
    if plain != name and _NAME.fullmatch(plain):
        return message, f"it looks like {plain!r} and is not; write {plain!r}"
    strange = next((character for character in name if ord(character) > 127), None)
    if strange is not None:
        return message, f"{strange!a} is {unicodedata.name(strange, 'an unnamed character')}; {rule}"
    return message, rule


def _check_name(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if fault := name_fault(value):
        raise ValueError(f"{attribute.name}: {fault[0]}; {fault[1]}")


# -- what a person writes, made into what the core wants -------------------------------------------------------------


def depends(
    *,
    service: str | None = None,
    any_of: Iterable[str] = (),
    kind: str = DependencyKind.HARD,
    when_disabled: str = WhenDisabled.PROCEED,
) -> Dependency:
    """Return the dependency on one `service` or on any of several. Raises `ValueError` when it names both or none."""
    names = tuple(any_of) if service is None else (service,)
    if (service is None) is (not any_of):
        raise ValueError("name one `service`, or several as `any_of`")
    return Dependency(services=names, kind=DependencyKind(kind), when_disabled=WhenDisabled(when_disabled))


def _dependency(item: object) -> Dependency:
    match item:
        case Dependency():
            return item
        case str():
            return Dependency(services=(item,))
        case Mapping():
            return depends(**item)
    raise TypeError(f"{item!r:.80} is no dependency; write a name, {{'service': …}} or {{'any_of': […]}}")


def _each(make: Callable[[object], Any], name: str) -> Callable[[object], tuple[Any, ...]]:
    """Return a converter of a list, whose complaints say which item they are about."""

    def convert(items: object) -> tuple[Any, ...]:
        if isinstance(items, (str, Mapping)) or not isinstance(items, Iterable):
            raise TypeError(f"{name}: give a list")
        made = []
        for place, item in enumerate(items):
            try:
                made.append(make(item))
            except (TypeError, ValueError) as problem:
                raise type(problem)(f"{name}[{place}]: {problem}") from None
        return tuple(made)

    return convert


def _priority(value: object) -> object:
    if isinstance(value, str) and value.upper() in Priority.__members__:
        return Priority[value.upper()]
    return value


def _check_check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, type):
        raise TypeError(f"{attribute.name}: {value.__name__} is a class; write {value.__name__}(…)")
    if not (isinstance(value, (HealthCheck, WireCheck)) or callable(value)):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is no check; it has neither `check` nor `talk`")


def _check_workload(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (isinstance(value, type) or not isinstance(value, Workload)):
        raise TypeError(f"{attribute.name}: {value!r:.80} is no workload; it has no `inspect` and `restart`")


def _check_priority(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, Priority):
        raise ValueError(f"{attribute.name}: {value!r:.80} is no priority; say high, medium or low")


_OF_TYPE: Final[Mapping[str, Any]] = {
    "backoff": attrs.validators.instance_of(Backoff),
    "window": attrs.validators.optional(attrs.validators.instance_of(Window)),
}


def _ladder(items: object) -> tuple[Rung, ...]:
    return _each(Rung.written, "recovery_actions")(items)


def _dependencies(items: object) -> tuple[Dependency, ...]:
    return _each(_dependency, "depends_on")(items)


def _like(name: str) -> Any:
    """Return a field with the default, limits and unit of the same field of `Policy`: they are written once."""
    field = attrs.fields_dict(Policy)[name]
    validator: Any = field.validator
    if isinstance(field.default, bool):
        validator = attrs.validators.instance_of(bool)
    elif name in _OF_TYPE:
        validator = _OF_TYPE[name]
    return attrs.field(
        default=field.default,
        converter=field.converter,
        validator=validator,
        metadata=field.metadata,
        kw_only=True,
    )


def _budgets(items: Iterable[Budget]) -> tuple[Budget, ...]:
    return tuple(items)


_ARE_BUDGETS: Final = attrs.validators.deep_iterable(attrs.validators.instance_of(Budget))


def _timeout() -> Any:
    """Return the field `timeout`: 5 s, or 80 % of a shorter interval, so that a check ends before the next."""
    like: Any = attrs.fields_dict(Policy)["timeout"]

    def usual(instance: Service | Canary) -> float:
        interval: Any = instance.interval  # a wrong one is refused in a moment, by its own validator
        return min(float(like.default), 0.8 * interval) if isinstance(interval, float | int) else float(like.default)

    def before_the_next(instance: Service | Canary, attribute: attrs.Attribute[Any], value: float) -> None:
        interval: Any = instance.interval
        if isinstance(interval, float | int) and value >= interval:
            raise ValueError(f"{attribute.name}: {value:g} s is not below the interval of {instance.interval:g} s")

    return attrs.field(
        default=attrs.Factory(usual, takes_self=True),
        converter=like.converter,
        validator=[like.validator, before_the_next],
        metadata=like.metadata,
        kw_only=True,
    )


BOOT: Final = 60.0
"""Seconds in which a program that began a moment ago may fail its checks: many need that long before they listen.

What they cost is a slower second step where the first did not help. A restart within them, on the other hand, begins
the start anew, and again: three attempts of such a loop, and people are called to what was well.
"""


def _grace() -> Any:
    """Return the field `start_grace`: `BOOT` where a workload says since when it runs, else nothing."""
    like: Any = attrs.fields_dict(Policy)["start_grace"]

    def usual(instance: Service) -> float:
        return BOOT if instance.workload is not None else float(like.default)

    return attrs.field(
        default=attrs.Factory(usual, takes_self=True),
        converter=like.converter,
        validator=like.validator,
        metadata=like.metadata,
        kw_only=True,
    )


# -- the nouns -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Service:
    """One service: how it is checked, what runs it, and what may be done when it fails.

    Every field of `Policy` is a field here, with its default and unit (seconds). `check` is a plugin object, or a
    callable of the application that returns `bool`, `Verdict` or `CheckResult`. `recovery_actions` is the ladder: a
    verb (`"restart"`), a table (`{"action": "scale_up", "to": 3, "cooldown": 600.0}`), a `Step`, or an action object.
    `depends_on` holds names, `{"service": …, "kind": "soft"}` or `{"any_of": […]}`. `timeout` is 5 s, and 80 % of an
    interval that is shorter. Raises `ValueError` or `TypeError`, which name the field.
    """

    name: str = attrs.field(validator=_check_name)
    check: Check = attrs.field(kw_only=True, validator=_check_check)
    workload: Workload | None = attrs.field(kw_only=True, default=None, validator=_check_workload)
    recovery_actions: tuple[Rung, ...] = attrs.field(kw_only=True, default=(), converter=_ladder)
    depends_on: tuple[Dependency, ...] = attrs.field(kw_only=True, default=(), converter=_dependencies)
    priority: Priority = attrs.field(
        kw_only=True, default=Priority.MEDIUM, converter=_priority, validator=_check_priority
    )
    enabled: bool = _like("enabled")
    deep: bool = _like("deep")
    # detection
    interval: float = _like("interval")
    timeout: float = _timeout()
    recheck: float = _like("recheck")
    jitter: float = _like("jitter")
    failure_threshold: int = _like("failure_threshold")
    min_failing_span: float = _like("min_failing_span")
    definite_span: float = _like("definite_span")
    window: Window | None = _like("window")  # noqa: RUF009  # it returns an attrs field
    success_threshold: int = _like("success_threshold")
    start_grace: float = _grace()
    starting_limit: float = _like("starting_limit")
    suspicion_threshold: int = _like("suspicion_threshold")
    suspicion_span: float = _like("suspicion_span")
    latency_objective: float | None = _like("latency_objective")
    latency_strikes: int = _like("latency_strikes")
    warning_fails: bool = _like("warning_fails")
    flapping: tuple[Budget, ...] = attrs.field(
        kw_only=True, default=attrs.fields(Policy).flapping.default, converter=_budgets, validator=_ARE_BUDGETS
    )
    # recovery
    max_retries: int = _like("max_retries")
    backoff: Backoff = _like("backoff")  # noqa: RUF009  # it returns an attrs field
    recovery_timeout: float = _like("recovery_timeout")
    slow_retry: float | None = _like("slow_retry")
    probation: float = _like("probation")
    budgets: tuple[Budget, ...] = attrs.field(
        kw_only=True, default=attrs.fields(Policy).budgets.default, converter=_budgets, validator=_ARE_BUDGETS
    )
    approval_timeout: float = _like("approval_timeout")
    observe_only: bool = _like("observe_only")
    dependent_grace: float = _like("dependent_grace")

    @property
    def kind(self) -> str | None:
        """The kind of its check; None for a callable of the application."""
        kind = getattr(type(self.check), "kind", None)
        return kind if isinstance(kind, str) else None

    def policy(self, *, key: bytes = b"", steps: Sequence[ResolvedStep] | None = None) -> Policy:
        """Return what the core may know of this service.

        `steps` is what `resolve` returned; without it the steps are as written, with the effects of their verbs.
        Without a `key` there is no fingerprint. With one, secrets are revealed, which may read files: call it in a
        thread.
        """
        ladder = [rung.step for rung in self.recovery_actions] if steps is None else [one.step for one in steps]
        return Policy(
            **{name: getattr(self, name) for name in _SHARED},
            steps=tuple(ladder),
            has_workload=self.workload is not None,
            fingerprint=fingerprint(
                key, self.check, self.workload, [(r.step.action, r.options, r.by) for r in self.recovery_actions]
            ),
        )


@attrs.frozen
class Canary:
    """A check of something that is always there: while none of them answers, nothing is concluded of anything."""

    name: str = attrs.field(validator=_check_name)
    check: Check = attrs.field(kw_only=True, validator=_check_check)
    interval: float = _like("interval")
    timeout: float = _timeout()

    def plain(self, *, key: bytes = b"") -> model.Canary:
        """Return what the core may know of this canary; see `Service.policy` for `key`."""
        return model.Canary(
            name=self.name, interval=self.interval, timeout=self.timeout, fingerprint=fingerprint(key, self.check)
        )


def fleet_of(
    services: Iterable[Service],
    *,
    canaries: Iterable[Canary] = (),
    limits: Limits | None = None,
    name: str = "selfheal",
    seed: int = 0,
    key: bytes = b"",
    ladders: Mapping[str, Sequence[ResolvedStep]] | None = None,
) -> Fleet:
    """Return the one value the engine is given; `ladders` is what `resolve_all` returned. See `Service.policy`."""
    ladders = ladders or {}
    return Fleet(
        name=name,
        policies=tuple(service.policy(key=key, steps=ladders.get(service.name)) for service in services),
        canaries=tuple(canary.plain(key=key) for canary in canaries),
        limits=limits or Limits(),
        seed=seed,
    )


def RecoveryStrategy(  # noqa: N802  # the specification's name, and it reads like the class it stands for
    service_name: str,
    health_check: Check,
    recovery_actions: Iterable[object],
    max_retries: int = 5,
    initial_delay: float = 1.0,
    max_delay: float = 300.0,
    backoff_multiplier: float = 2.0,
    health_check_interval: float = 30.0,
    failure_threshold: int = 3,
    recovery_timeout: float = 60.0,
    dependencies: Iterable[object] = (),
    **more: Any,
) -> Service:
    """Return a `Service` from the field names and defaults of the specification; `more` are other fields of it.

    Delays and intervals are seconds. Raises `ValueError` or `TypeError` like `Service`, under its names.
    """
    return Service(
        service_name,
        check=health_check,
        recovery_actions=recovery_actions,
        depends_on=dependencies,
        interval=health_check_interval,
        failure_threshold=failure_threshold,
        max_retries=max_retries,
        backoff=Backoff(initial=initial_delay, multiplier=backoff_multiplier, cap=max_delay),
        recovery_timeout=recovery_timeout,
        **more,
    )


DERIVED: Final = frozenset({"steps", "has_workload", "fingerprint"})
"""Fields of a `Policy` that follow from the plugin objects of a `Service`."""

_SHARED: Final = tuple(field.name for field in attrs.fields(Policy) if field.name not in DERIVED)

# -- fingerprints ----------------------------------------------------------------------------------------------------


def fingerprint(key: bytes, *objects: object) -> str:
    """Return the HMAC-SHA256 of plugin objects: equal while classes, options and secrets are; empty without a key.

    Secrets are revealed for it; one that cannot be read counts as unreadable. It tells nothing without the key, so
    the key must not be stored beside the records.
    """
    if not key:
        return ""
    digest = hmac.new(key, digestmod=sha256)

    def feed(kind: str, content: str = "") -> None:
        data = f"{kind}:{content}".encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)

    _feed(feed, objects)
    return digest.hexdigest()[:32]


def _feed(feed: Callable[..., None], value: object) -> None:
    """Say a value so that no two different ones are said alike. Nothing of it depends on this process."""
    match value:
        case Secret():
            try:
                feed("secret", value.reveal())
            except (OSError, LookupError, ValueError):
                feed("unreadable", value.source)
        case Enum():
            feed("enum", f"{type(value).__qualname__}.{value.name}")
        case None | bool() | int() | float() | str() | bytes() | PurePath():
            feed(type(value).__name__, str(value))
        case Mapping():
            feed("mapping", str(len(value)))
            for item in sorted(value, key=str):
                _feed(feed, item)
                _feed(feed, value[item])
        case frozenset() | set():
            feed("set", str(len(value)))
            for item in sorted(value, key=str):
                _feed(feed, item)
        case tuple() | list():
            feed("list", str(len(value)))
            for item in value:
                _feed(feed, item)
        case _ if attrs.has(cls := type(value)):
            feed("object", _named(cls))
            for field in attrs.fields(cls):
                if field.init:  # the others follow from these, or are memory
                    feed("field", field.name)
                    _feed(feed, getattr(value, field.name, None))
        case _:
            feed("other", _named(value if hasattr(value, "__qualname__") else type(value)))


def _named(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
