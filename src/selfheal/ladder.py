"""The ladder: what the steps of a service mean, and who does them.

Owns the verbs with their effects, a step as it was written (`Rung`), and `resolve`, which finds the one thing that
answers each verb before the first outage rather than during it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, Protocol, TypeAlias

import attrs

from selfheal.core.graph import Spelling
from selfheal.core.model import MANUAL, Cause, Effect, Scalar, Step
from selfheal.errors import ConfigurationError, Problem
from selfheal.plugins import Action, FailingOver, Offering, Scaling, Starting, Workload

Callbacks: TypeAlias = "Mapping[tuple[str, str], Callable[..., Any]]"
"""(service, verb) -> the application's own cure."""


class RecoveryAction(StrEnum):
    """The six verbs of the specification. A plugin or an application may add its own; a verb is a plain word."""

    RESTART = "restart"
    RECONNECT = "reconnect"
    SCALE_UP = "scale_up"
    FAILOVER = "failover"
    RESET_CACHE = "reset_cache"
    MANUAL_INTERVENTION = MANUAL


EFFECTS: Final[Mapping[str, Effect]] = {
    "reconnect": Effect.GENTLE,
    "restart": Effect.DISRUPTIVE,
    "scale_up": Effect.DISRUPTIVE,
    "failover": Effect.DISRUPTIVE,
    "start": Effect.DISRUPTIVE,
    "stop": Effect.DISRUPTIVE,
    "reset_cache": Effect.DESTRUCTIVE,
    MANUAL: Effect.GENTLE,
}
"""How much a verb disturbs when nobody says otherwise; any other verb is disruptive."""

NEEDS_RUNNING: Final = frozenset({"reconnect"})
"""Verbs that make no sense where the workload does not run."""

METHODS: Final[Mapping[str, type[Any]]] = {
    "restart": Workload,
    "scale_up": Scaling,
    "failover": FailingOver,
    "start": Starting,
    "stop": Starting,
}
"""Verbs a workload may answer, and the interface it then has. A method is never looked up by a word of the file."""

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {"scale_up": ("to",), "failover": ("to",)}
"""What a workload's method reads from the step."""

STEP_KEYS: Final = tuple(field.name for field in attrs.fields(Step) if field.name != "arguments")
"""Keys of a step that mean the same for every action; any other is handed to the action."""

HTTP: Final = "http"
"""The kind of the action that is an endpoint of the user's own, and the key of a step that names one."""

NAMED: Final = (HTTP, "directory", "standby")
"""The kinds of actions that belong to no check: a step names one by a key of that name."""

_ORDER: Final = (Effect.GENTLE, Effect.DISRUPTIVE, Effect.DESTRUCTIVE)
_VERB: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@attrs.frozen(kw_only=True)
class Rung:
    """A step of a ladder as it was written: the `Step`, and what only the action itself understands.

    `given` are the keys that were written, `options` those that are no keys of every step, `by` an action object that
    was named in the step (an HTTP hook, say).
    """

    step: Step
    given: frozenset[str] = frozenset()
    options: Mapping[str, Any] = attrs.field(factory=dict)
    by: Action | None = None

    @classmethod
    def of(cls, verb: str, given: Mapping[str, Any], options: Mapping[str, Any], by: Action | None = None) -> Rung:
        """Return the rung of a verb; `given` are fields of `Step`. Raises `ValueError` or `TypeError`."""
        if _VERB.fullmatch(verb) is None:
            raise ValueError(f"action: {verb!a:.80} is no verb; verbs are words such as {', '.join(RecoveryAction)}")
        filled = {"effect": EFFECTS.get(verb, Effect.DISRUPTIVE), "needs_running": verb in NEEDS_RUNNING, **given}
        spelling = Spelling(STEP_KEYS)
        for key in options:
            if hint := spelling.hint(key, cutoff=0.85):
                raise ValueError(f"{key!a:.80} is unknown to steps; {hint}")
        return cls(step=Step(action=verb, **filled), given=frozenset(given), options=dict(options), by=by)

    @classmethod
    def written(cls, item: object) -> Rung:
        """Return what somebody wrote in Python: a verb, a table, a `Step`, or an action object."""
        match item:
            case Rung():
                return item
            case Step():
                return cls(step=item)
            case str():
                return cls.of(str(item), {}, {})
            case Mapping():
                return cls._table(dict(item))
            case Action():
                return cls.of(item.verb, {"effect": item.effect}, {}, item)
        raise TypeError(f"{item!r:.80} is no step; write a verb, {{'action': …}}, a Step or an action object")

    @classmethod
    def _table(cls, table: dict[str, Any]) -> Rung:
        verb = table.pop("action", None)
        if not isinstance(verb, str):
            raise TypeError(f"action: {verb!r:.80} is no verb; say which action this step is")
        if HTTP in table and not isinstance(table[HTTP], Action):
            raise TypeError(f"http: {type(table[HTTP]).__name__} is no action object; write http=HttpHook(url=…)")
        named = [key for key in NAMED if isinstance(table.get(key), Action)]
        if len(named) > 1:
            raise TypeError(f"{' and '.join(named)}: a step has one action; make two steps of it")
        by = table.pop(named[0]) if named else None
        given = {key: table.pop(key) for key in STEP_KEYS if key in table}
        if "effect" in given:
            given["effect"] = Effect(given["effect"])
        if "only_for" in given:
            given["only_for"] = frozenset(Cause(cause) for cause in given["only_for"])
        return cls.of(str(verb), given, table, by)


# -- who does what ---------------------------------------------------------------------------------------------------


class Laddered(Protocol):
    """What `resolve` must know of a `Service`."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str | None: ...

    @property
    def workload(self) -> Workload | None: ...

    @property
    def recovery_actions(self) -> tuple[Rung, ...]: ...


@attrs.frozen(kw_only=True)
class ResolvedStep:
    """A step and who does it.

    `how` is `callback` (call `target` with the context), `http` or `plugin` (`target.run(context)`, and
    `target.probe`), `workload` (`target.<method>(context)`), or `people`, who have no target.
    """

    step: Step
    how: Literal["callback", "http", "workload", "plugin", "people"]
    target: Any = None
    method: str = "run"


def needed_actions(services: Iterable[Laddered], callbacks: Callbacks) -> frozenset[tuple[str, str]]:
    """Return the plugin actions that these ladders may need, as `load_plugins` takes them (`needed`)."""
    return frozenset(
        ("action", f"{service.kind}.{verb}")
        for service in services
        for verb in {rung.step.action for rung in service.recovery_actions if rung.by is None} - {MANUAL}
        if service.kind is not None
        and (service.name, verb) not in callbacks
        and not _answered_by(service.workload, verb)
    )


def resolve_all(
    services: Iterable[Laddered], callbacks: Callbacks, actions: Mapping[str, type[Any]]
) -> dict[str, tuple[ResolvedStep, ...]]:
    """Return the ladders of all services. Raises `ConfigurationError` with everything that does not resolve."""
    services = tuple(services)
    ladders: dict[str, tuple[ResolvedStep, ...]] = {}
    problems: list[Problem] = []
    for service in services:
        try:
            ladders[service.name] = resolve(service, callbacks, actions)
        except ConfigurationError as refused:
            problems += refused.problems
    names = Spelling(service.name for service in services)
    for name, verb in callbacks:
        if name not in names:
            message = f'there is no service "{name:.100}"'
            problems.append(Problem(path=f"actions.{name}.{verb}", message=message, hint=names.hint(name)))
    if problems:
        raise ConfigurationError(problems)
    return ladders


def resolve(service: Laddered, callbacks: Callbacks, actions: Mapping[str, type[Any]]) -> tuple[ResolvedStep, ...]:
    """Return who does each step of a service's ladder.

    In this order: the application's callback; an action object given in the step (an HTTP hook); the workload's
    method; the plugin action `<check kind>.<verb>` of `actions`. A callback and an object for one step are ambiguous.
    Raises `ConfigurationError` with every step that nothing, or more than one thing, answers.
    """
    steps: list[ResolvedStep] = []
    problems: list[Problem] = []
    for place, rung in enumerate(service.recovery_actions):
        path = f"services.{service.name}.recovery_actions[{place}]"
        try:
            steps.append(_resolved(service, rung, callbacks.get((service.name, rung.step.action)), actions))
        except _Unresolved as fault:
            problems.append(Problem(path=path, message=fault.message, hint=fault.hint))
    if problems:
        raise ConfigurationError(problems)
    return tuple(steps)


class _Unresolved(Exception):
    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(message)


def _resolved(
    service: Laddered, rung: Rung, callback: Callable[..., Any] | None, actions: Mapping[str, type[Any]]
) -> ResolvedStep:
    step, verb = rung.step, rung.step.action
    plugin = f"{service.kind}.{verb}" if service.kind is not None else ""
    if verb == MANUAL:
        if callback is not None or rung.by is not None:
            raise _Unresolved(f"{verb} is people and nothing else can be it", "give the action a verb of its own")
        return ResolvedStep(step=_with_arguments(rung, ()), how="people")
    if callback is not None:
        if rung.by is not None:
            raise _Unresolved(f"both a callback and the action object of this step answer {verb}", "remove one")
        return ResolvedStep(step=_with_arguments(rung, None), how="callback", target=callback)
    if rung.by is not None:
        return _by_object(rung, rung.by)
    if _answered_by(service.workload, verb):
        step = _at_least(EFFECTS[verb], rung, _with_arguments(rung, ARGUMENTS.get(verb, ())))
        return ResolvedStep(step=step, how="workload", target=service.workload, method=verb)
    if plugin in actions:
        made = _made(actions[plugin], rung.options, plugin)
        return ResolvedStep(step=_at_least(made.effect, rung, step), how="plugin", target=made)
    raise _Unresolved(*_nobody(service, verb, actions))


def _answered_by(workload: Workload | None, verb: str) -> bool:
    """Whether a workload can do a verb: it has the method, and its options allow for it."""
    if verb not in METHODS or not isinstance(workload, METHODS[verb]):
        return False
    return not isinstance(workload, Offering) or verb in workload.verbs()


def _by_object(rung: Rung, by: Any) -> ResolvedStep:
    """Return a step that names its own action. What an endpoint of theirs does, people know better than its class."""
    step, verb = _with_arguments(rung, ()), rung.step.action
    if by.kind != HTTP:
        if by.verb != verb:
            raise _Unresolved(f"{by.kind} is no {verb}", f'write action = "{by.verb}"')
        return ResolvedStep(step=_at_least(by.effect, rung, step), how="plugin", target=by)
    if "effect" not in rung.given:
        step = attrs.evolve(step, effect=max(step.effect, by.effect, key=_ORDER.index))
    fields = attrs.fields_dict(type(by))
    changes = {"verb": verb, "effect": step.effect}
    changes = {name: value for name, value in changes.items() if name in fields and getattr(by, name) != value}
    return ResolvedStep(step=step, how="http", target=attrs.evolve(by, **changes) if changes else by)


def _nobody(service: Laddered, verb: str, actions: Mapping[str, type[Any]]) -> tuple[str, str]:
    """Say that nothing answers a verb, and what would."""
    ours = [name.partition(".")[2] for name in actions if service.kind and name.startswith(f"{service.kind}.")]
    known = dict.fromkeys([*EFFECTS, *ours])
    if verb not in known and (hint := Spelling(known).hint(verb)):
        return f'nothing answers "{verb}"', hint
    if verb in METHODS:
        lacks = "has no workload" if service.workload is None else f"has a workload that cannot `{verb}`"
        return (
            f'nothing answers "{verb}": the service {lacks}',
            "give it a workload that can, add http = { url = … } to the step, or register a callback",
        )
    offers = f"; its check offers: {', '.join(ours)}" if ours else ""
    return f'nothing answers "{verb}"{offers}', "add http = { url = … } to the step, or register a callback"


def _with_arguments(rung: Rung, known: Sequence[str] | None) -> Step:
    """Return the step with its further keys as arguments; `known` are the ones that will be read (None: any)."""
    for key, value in rung.options.items():
        if known is not None and key not in known:
            readable = (*STEP_KEYS, *known)
            hint = Spelling(readable).hint(key) or f"it reads: {', '.join(readable)}"
            raise _Unresolved(f"{key!a:.80} is unknown to {rung.step.action}", hint)
        if not (value is None or isinstance(value, (str, int, float, bool))):
            raise _Unresolved(f"{key!a:.80} is neither text, number, true nor false", "arguments are plain values")
    to = rung.options.get("to")
    if (
        rung.step.action == "scale_up"
        and to is not None
        and (isinstance(to, bool) or not isinstance(to, int) or to < 1)
    ):
        raise _Unresolved(f'"to" is {to!r:.80}', "give the number of copies there should be, 1 or more")
    arguments: tuple[tuple[str, Scalar], ...] = tuple(sorted(rung.options.items()))
    return attrs.evolve(rung.step, arguments=arguments) if arguments else rung.step


def _at_least(effect: Effect, rung: Rung, step: Step) -> Step:
    """Return the step with the effect its action really has: one may call a step worse than it is, never better."""
    if _ORDER.index(step.effect) >= _ORDER.index(effect):
        return step if "effect" in rung.given or step.effect is effect else attrs.evolve(step, effect=effect)
    if "effect" in rung.given:
        raise _Unresolved(f"{step.action} is {effect}, not {step.effect}", "leave `effect` out, or call it worse")
    return attrs.evolve(step, effect=effect)


def _made(cls: type[Any], options: Mapping[str, Any], name: str) -> Any:
    """Return the plugin's action with the further keys of the step as its fields."""
    fields = [field.alias for field in attrs.fields(cls) if field.init]
    for key in options:
        if key not in fields:
            readable = (*STEP_KEYS, *fields)
            hint = Spelling(readable).hint(key) or f"it reads: {', '.join(readable)}"
            raise _Unresolved(f"{key!a:.80} is unknown to {name}", hint)
    try:
        return cls(**options)
    except (TypeError, ValueError) as problem:
        raise _Unresolved(f"{name}: {problem}") from problem
