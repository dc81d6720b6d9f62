"""Acts of people: what each asks of the engine, and why it may be refused.

An act is an event like any other. Its answer is the `Answered` record, said after its effects in the same batch, so
that who reads the answer finds them done. The same act sent twice under one id has one effect and one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Final, TypeAlias

import attrs

from selfheal.core import alerts, machine
from selfheal.core.desk import Desk
from selfheal.core.graph import no_service
from selfheal.core.guards import SLOT, Pass, walk
from selfheal.core.messages import Requested
from selfheal.core.model import MANUAL, Binds, Forced, Policy, Scalar, State, Suppression
from selfheal.core.records import Answered
from selfheal.core.repair import Repair
from selfheal.core.roster import Roster

DEMAND_LASTS: Final = 900.0
"""Seconds in which a forced recovery must find its way; after that it is asked for again by whoever still wants it."""


@attrs.frozen(kw_only=True)
class Rooms:
    """The rooms of the rooms that acts reach into."""

    desk: Desk
    repair: Repair
    roster: Roster


class Refused(Exception):
    """An act is not done; `code` is one of those of `errors.RequestRefused`."""

    def __init__(self, code: str, because: str) -> None:
        self.code = code
        super().__init__(because)


def perform(rooms: Rooms, event: Requested) -> None:
    """Do what was asked and say the answer."""
    if event.id in rooms.desk.ledger.answers:
        return
    code = ""
    try:
        act = _ACTS.get(event.act)
        if act is None:
            raise Refused("unknown_request", f"no act {event.act!r}")
        if event.service and event.service not in rooms.desk.ledger.policies:
            raise Refused("unknown_service", no_service(event.service, rooms.desk.ledger.policies))
        because, accepted = act(rooms, event), True
    except Refused as refusal:
        code, because, accepted = refusal.code, str(refusal), False
    rooms.desk.say(
        Answered(
            at=rooms.desk.now,
            id=event.id,
            act=event.act,
            service=event.service,
            actor=event.actor,
            reason=event.reason,
            accepted=accepted,
            because=because,
            code=code,
            arguments=_arguments(event),
        )
    )


def _arguments(event: Requested) -> tuple[tuple[str, Scalar], ...]:
    """What else was asked for, as the audit keeps it."""
    said: dict[str, Scalar] = {
        "services": ",".join(event.services),
        "everything": event.everything,
        "duration": event.duration,
        "override": ",".join(sorted(event.override)),
        "suppression": event.suppression,
        "hold": event.hold,
        "action": event.action,
    }
    return tuple((name, value) for name, value in said.items() if value)


def _initialize(rooms: Rooms, event: Requested) -> str:
    """Look afresh at a service, or at all where `everything` is said; who says neither learns what is watched.

    What is in the configuration is watched from the start. So a client that begins with this act, as those of the
    specification do, finds nothing to be done, however often it comes: it must not wipe out what is known of an outage.
    """
    if not event.service and not event.everything:
        return _what_is_watched(rooms)
    names = [event.service] if event.service else list(rooms.desk.ledger.policies)
    done = 0
    for name in names:
        condition = rooms.desk.ledger.conditions[name]
        if condition.state is State.DISABLED or name in rooms.desk.ledger.unwatched:
            continue
        if rooms.desk.ledger.acting(name) is not None:
            if event.service:
                raise Refused("conflict", f"an action runs on {name}; wait for its end")
            continue
        rooms.roster.switch_on(name, f"looked at afresh: {event.reason}", event.actor, enabled=condition.enabled)
        done += 1
    return f"{done} looked at afresh"


def _what_is_watched(rooms: Rooms) -> str:
    ledger = rooms.desk.ledger
    off = [name for name in ledger.policies if ledger.conditions[name].state is State.DISABLED]
    watched = len(ledger.policies) - len(off) - len(ledger.unwatched.keys() - set(off))
    rest = f"; switched off: {', '.join(off)}" if off else ""
    return f"nothing to do: {watched} of {len(ledger.policies)} services are watched already{rest}"


def _recover(rooms: Rooms, event: Requested) -> str:
    name = _named(event)
    condition, policy = rooms.desk.ledger.conditions[name], rooms.desk.ledger.policies[name]
    if event.override and "admin" not in event.scopes:
        raise Refused("forbidden", f"overriding {', '.join(sorted(event.override))} needs the scope admin")
    if condition.state is State.RECOVERING or rooms.desk.ledger.acting(name) is not None:
        return "a recovery is under way already"
    if condition.state is State.DISABLED or name in rooms.desk.ledger.unwatched:
        raise Refused("refused", f"{name} is not watched; enable it first")
    if condition.state is State.HEALTHY:
        raise Refused("refused", f"{name} is healthy: there is nothing to recover")
    if not policy.steps:
        raise Refused("refused", f"{name} has no recovery_actions")
    until = rooms.desk.now + DEMAND_LASTS
    by = Forced(actor=event.actor, reason=event.reason, request=event.id, override=event.override, until=until)
    rooms.desk.agenda.set(("forced", name), until)
    rooms.desk.move(
        name, machine.forced(condition, rooms.desk.now, by), f"recovery forced: {event.reason}", event.actor
    )
    if condition.state is not State.FAILED:
        rooms.repair.believe(name, f"on the word of {event.actor}", event.actor)
    rooms.desk.ready(name)
    return f"a recovery is forced; {_what_comes_first(rooms, policy)}"


def _what_comes_first(rooms: Rooms, policy: Policy) -> str:
    """Return what stands before a recovery that was forced: whoever asked must not believe that it goes on."""
    for guard, hold in walk(rooms.repair.guards, rooms.repair.sight(policy)):
        if hold is None or hold.ask or guard.name == SLOT:  # these end by themselves, in a moment
            continue
        about = f"but {hold.reason} holds it" + (f" ({hold.detail})" if hold.detail else "")
        if guard.passed is Pass.OVERRIDE:
            return f"{about}: end that, or override {guard.name}"
        return f"{about}; it begins when that has ended, if it does within {DEMAND_LASTS:g} s"
    return "a fresh check comes first"


def _enable(rooms: Rooms, event: Requested) -> str:
    name = _named(event)
    condition, policy = rooms.desk.ledger.conditions[name], rooms.desk.ledger.policies[name]
    if name in rooms.desk.ledger.unwatched:
        raise Refused("refused", f"{name} is gone from the configuration: release the hold `fleet`, or bring it back")
    if condition.state is not State.DISABLED and condition.enabled:
        return "it is enabled"
    if not policy.enabled:
        after = attrs.evolve(condition, enabled=True)
        rooms.desk.move(name, after, f"switched on: {event.reason}", event.actor)
        return "switched on here, but the configuration says enabled = false"
    rooms.roster.switch_on(name, f"enabled: {event.reason}", event.actor)
    return "it is checked at once"


def _disable(rooms: Rooms, event: Requested) -> str:
    name = _named(event)
    condition = rooms.desk.ledger.conditions[name]
    if condition.state is State.DISABLED:
        rooms.desk.move(name, attrs.evolve(condition, enabled=False), f"switched off: {event.reason}", event.actor)
        return "it was disabled already"
    rooms.roster.switch_off(name, f"disabled: {event.reason}", event.actor)
    return "it is not watched any more"


def _suppressing(binds: Binds) -> Callable[[Rooms, Requested], str]:
    def act(rooms: Rooms, event: Requested) -> str:
        names = (*event.services, *([event.service] if event.service else []))
        unknown = [name for name in names if name not in rooms.desk.ledger.policies]
        if unknown:
            raise Refused(
                "unknown_service", f"{no_service(unknown[0], rooms.desk.ledger.policies)}; nothing was changed"
            )
        if not names and not event.everything:
            raise Refused("bad_parameter", "no service named; say `everything` if the whole fleet is meant")
        suppression = Suppression(
            id=event.id,
            binds=binds,
            services=names,
            everything=event.everything,
            since=rooms.desk.now,
            until=rooms.desk.now + event.duration if event.duration is not None else inf,
            actor=event.actor,
            reason=event.reason,
        )
        rooms.roster.suppress(suppression)
        return suppression.id

    return act


def _resume(rooms: Rooms, event: Requested) -> str:
    names = {*event.services, *([event.service] if event.service else [])}
    if not names and not event.everything:
        raise Refused("bad_parameter", "no service named; say `everything` if every pause is meant")
    ended = 0
    for suppression in tuple(rooms.desk.ledger.suppressions.values()):
        if suppression.binds is not Binds.PAUSED:
            continue
        if event.everything or (not suppression.everything and names.issuperset(suppression.services)):
            rooms.roster.lift(suppression.id, event.actor, event.reason)
            ended += 1
    if not ended:
        raise Refused("not_found", "no pause covers just that; see `suppressions` and lift one by its id")
    return f"{ended} ended"


def _lift(rooms: Rooms, event: Requested) -> str:
    if not rooms.roster.lift(event.suppression, event.actor, event.reason):
        raise Refused("not_found", f"no suppression {event.suppression!r}")
    return "lifted"


def _approve(rooms: Rooms, event: Requested) -> str:
    name, index = _asking(rooms, event)
    condition = rooms.desk.ledger.conditions[name]
    action = rooms.desk.ledger.policies[name].steps[index].action
    if action == MANUAL:
        raise Refused("refused", f"{action} is done by people: acknowledge it when it is")
    after = attrs.evolve(condition, approved=index, asked=None, asked_at=rooms.desk.now)
    rooms.desk.move(name, after, f"{action} approved: {event.reason}", event.actor)
    rooms.desk.ready(name)
    return f"{action} may run"


def _refuse(rooms: Rooms, event: Requested) -> str:
    name, index = _asking(rooms, event)
    rooms.repair.pass_over(name, f"refused: {event.reason}", event.actor)
    return f"{rooms.desk.ledger.policies[name].steps[index].action} is passed over"


def _acknowledge(rooms: Rooms, event: Requested) -> str:
    name = _named(event)
    known = list(alerts.acknowledged(rooms.desk.ledger, name, event.actor, rooms.desk.now))
    rooms.desk.say_all(iter(known))
    condition, policy = rooms.desk.ledger.conditions[name], rooms.desk.ledger.policies[name]
    index = machine.next_step(policy, condition, rooms.desk.evidence_of(name))
    asked = index is not None and condition.asked == index and name not in rooms.desk.ledger.unwatched
    if asked and index is not None and policy.steps[index].action == MANUAL:
        rooms.repair.pass_over(name, f"acknowledged: {event.reason}", event.actor)
        return f"{MANUAL} is acknowledged"
    if not known:
        raise Refused("not_found", f"nothing about {name} waits to be acknowledged")
    return f"{len(known)} acknowledged"


def _release(rooms: Rooms, event: Requested) -> str:
    if "admin" not in event.scopes:
        raise Refused("forbidden", "releasing a hold needs the scope admin")
    if event.hold == "journal":
        raise Refused("refused", "only a store that answers ends this hold; see act_without_journal")
    if not rooms.roster.release(event.hold, event.actor):
        raise Refused("not_found", f"no hold {event.hold!r}")
    return f"{event.hold} is released"


def _named(event: Requested) -> str:
    if not event.service:
        raise Refused("bad_parameter", f"{event.act} needs a service")
    return event.service


def _asking(rooms: Rooms, event: Requested) -> tuple[str, int]:
    name = _named(event)
    condition, policy = rooms.desk.ledger.conditions[name], rooms.desk.ledger.policies[name]
    index = machine.next_step(policy, condition, rooms.desk.evidence_of(name))
    watched = name not in rooms.desk.ledger.unwatched
    if not watched or condition.state is not State.FAILED or condition.asked is None or index is None:
        raise Refused("not_found", f"no step of {name} waits for a person")
    if condition.asked != index:
        was, step = policy.steps[condition.asked].action, policy.steps[index].action
        raise Refused("conflict", f"{was} was asked for, and {step} is next by now; look again")
    waits = policy.steps[index].action
    if event.action not in ("", waits):
        raise Refused("conflict", f"{waits} waits by now, and not {event.action}; look again")
    return name, index


Act: TypeAlias = Callable[[Rooms, Requested], str]

_ACTS: Final[Mapping[str, Act]] = {
    "initialize": _initialize,
    "recover": _recover,
    "enable": _enable,
    "disable": _disable,
    "pause": _suppressing(Binds.PAUSED),
    "maintenance": _suppressing(Binds.MAINTENANCE),
    "silence": _suppressing(Binds.SILENCE),
    "resume": _resume,
    "lift": _lift,
    "approve": _approve,
    "refuse": _refuse,
    "acknowledge": _acknowledge,
    "release": _release,
}
