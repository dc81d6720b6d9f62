"""Who is told, of what, and when: the second pure machine. Records, delivery outcomes and time in; `Deliver` out.

What is open is decided by `alerts`. Here it is grouped into *talks*: one incident (its root and everything folded into
it) is one talk with each notifier; what has no incident is a talk by service and rule. A talk goes in rounds: FIRING,
any number of UPDATED, RESOLVED. What holds:

- Nothing is told before `group_wait`, unless it is critical; what is gone by then is never told. What joins later is
  told at the next tick of `group_interval`; without news, what nobody acknowledged is repeated every `repeat_interval`
  and escalated once a round, after `escalate_after`. What ends while the rest goes on is no news.
- A silence or maintenance (of the service, or of the root it is folded under) holds all of that back; what is still
  open and untold when it ends is told then. It never holds back a RESOLVED: whoever was told is told the end, also if
  no route leads there any more. Each alert told ends in exactly one RESOLVED (law 14).
- A talk has at most one message in flight. To try it again is the shell's work; here only its end is learnt. A FIRING
  or UPDATED that was given up is told again at the next repeat, if anything is open still. If all is over, a RESOLVED
  follows a FIRING that may have got through, once; one that was refused for good was not told, so nothing is owed.
  A RESOLVED that was given up stays owed and is tried again after 5 minutes, doubled up to a day, under the same id.
  A message whose end is never reported counts as refused after 25 hours, so that no talk waits for ever.
- When incidents merge, the talk that people already know goes on under its number. If they know both, each ends by
  itself, and the one folded away is neither repeated nor escalated. An alert once told stays in its talk.
- The state is a fold of the stored records: timers happen at their due time, before any record later than it, so a
  replay decides the same messages under the same ids. What has no `Delivered` is offered again. Where a replay decides
  otherwise (the routes were changed), the id in a `Delivered` says what was told: that round is taken over as told,
  and whatever is open in it is news.

The host gives the records of an instant first and `TimePassed` after them, and looks at `deadline` after each.
One record costs the number of notifiers, not of services; only a message costs the size of its talk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2s
from math import inf
from typing import Final, TypeAlias

import attrs

from selfheal.core import routing_words
from selfheal.core.agenda import Agenda
from selfheal.core.messages import TimePassed
from selfheal.core.model import Alert, Binds, Notification, Phase, Severity, Suppression
from selfheal.core.records import (
    AlertChanged,
    Delivered,
    IncidentClosed,
    IncidentMerged,
    Record,
    SuppressionChanged,
)
from selfheal.core.talks import Deliver, Known, Route, Talk

__all__ = [
    "IN_DOUBT",
    "OWED_FIRST",
    "REFUSED",
    "REMEMBERED",
    "Deliver",
    "DeliveryFinished",
    "Route",
    "Router",
    "RouterOutput",
]

REFUSED: Final = "refused for good: "
"""How the error of a `Delivered` begins when trying again was of no use: nobody was told."""

IN_DOUBT: Final = 3600.0
"""Seconds for which a FIRING without an end may have been on its way when we died: so long does the outbox try it."""

OWED_FIRST: Final = 300.0
OWED_CAP: Final = 86_400.0
"""Seconds until a RESOLVED that was given up is tried again: at first, and at most."""

REMEMBERED: Final = 1024
"""Rounds that were told and ended of which we still know it, lest a late word of delivery begins them anew."""

RANK: Final = {Severity.CRITICAL: 0, Severity.HIGH: 1, Severity.MEDIUM: 2, Severity.LOW: 3}


@attrs.frozen(kw_only=True)
class DeliveryFinished:
    """A notifier took a message (`receipt`), or the shell gave it up (`error`); `permanent`: it was refused."""

    at: float
    notification: str
    notifier: str
    receipt: str | None = None
    error: str = ""
    permanent: bool = False


@attrs.frozen
class RouterOutput:
    """What one input caused: records to store, and messages for the outbox, in order."""

    records: tuple[Delivered, ...] = ()
    deliveries: tuple[Deliver, ...] = ()


RouterEvent: TypeAlias = Record | TimePassed | DeliveryFinished


class Router:
    """Decides who is told what. `history` are the stored records, oldest first; `now` and `deadline` journal time."""

    def __init__(self, routes: Sequence[Route], history: Iterable[Record] = ()) -> None:
        self.routes = tuple(routes)
        self.now = 0.0
        self._agenda = Agenda()
        self._talks: dict[tuple[str, str], Talk] = {}
        self._aliases: dict[tuple[str, int], str] = {}
        self._alerts: dict[str, Known] = {}
        self._places: dict[str, dict[str, None]] = {}
        self._roots: dict[int, str] = {}
        self._silences: dict[str, Suppression] = {}
        self._muted: dict[str, int] = {}
        self._everything = 0
        self._ended: dict[tuple[str, str, str], None] = {}
        self._heard_of: dict[str, None] = {}
        self._notifiers: dict[str, list[Route]] = {}
        for route in self.routes:
            self._notifiers.setdefault(route.notifier, []).append(route)
        self._out: list[Deliver] = []
        for record in history:
            self._advance(record.at, now_too=isinstance(record, Delivered))
            self._take(record)
        self._again = self._unfinished()
        self._out = []

    # -- the doors ----------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float:
        """When to be woken with `TimePassed`, in journal time; infinity when nothing is due."""
        return self.now if self._again else self._agenda.deadline

    def receive(self, event: RouterEvent) -> RouterOutput:
        """Take in one record, delivery outcome or wake-up. `Delivered` records are our own: read back, they are news
        to nobody."""
        records: tuple[Delivered, ...] = ()
        again, self._again = self._again, []
        for talk in again:
            assert talk.in_flight is not None
            talk.offered = max(self.now, event.at)
            self._schedule(talk)
            self._out.append(talk.in_flight)
        self._advance(event.at, now_too=isinstance(event, TimePassed | DeliveryFinished))
        if isinstance(event, DeliveryFinished):
            record = self._recorded(event)
            self._take(record)
            records = (record,)
        elif not isinstance(event, TimePassed | Delivered):
            self._take(event)
        out, self._out = self._out, []
        return RouterOutput(records, tuple(out))

    # -- time ---------------------------------------------------------------------------------------------------------

    def _advance(self, at: float, *, now_too: bool) -> None:
        """What was due before `at` happens at its own time. What is due at `at` waits for the records of that instant,
        except where the event shows that they are complete: a wake-up, or the end of a message decided by then."""
        until = max(self.now, at)
        while (due := self._agenda.deadline) < until or (now_too and due == until):
            due, name = self._agenda.pop()
            self.now = max(self.now, due)
            talk = self._talks[name]
            if talk.escalation_due <= due:
                self._escalate(talk)
            elif talk.in_flight is not None:
                self._given_up(talk, refused=True)
            elif not talk.open:
                self._resolve(talk)
            elif min(exact := min(talk.news.values(), default=inf), talk.repeat_due) <= due:
                self._tell(talk)
            else:
                talk.ready = exact
            self._schedule(talk)
        self.now = until

    def _schedule(self, talk: Talk) -> None:
        name = talk.name
        if self._talks.get(name) is talk:
            due = max(self.now, min(talk.message_due, talk.escalation_due))
            if self._agenda.due(name) != due:
                self._agenda.set(name, due)

    # -- records ------------------------------------------------------------------------------------------------------

    def _take(self, record: Record) -> None:
        match record:
            case AlertChanged(alert=alert, open=True):
                self._opened(alert)
            case AlertChanged(alert=alert, because=because):
                self._closed(alert, because)
            case SuppressionChanged(suppression=suppression, on=on):
                self._suppressed(suppression, on=on)
            case IncidentClosed(incident=number):
                self._roots.pop(number, None)
            case IncidentMerged(incident=number, into=into):
                self._merged(number, into)
                self._roots.pop(number, None)
            case Delivered():
                self._delivered(record)
            case _:
                pass

    def _opened(self, alert: Alert) -> None:
        known = self._alerts.get(alert.id)
        if known is None:
            known = self._alerts[alert.id] = Known(alert, self.now)
            self._place(known)
            for routes in self._notifiers.values():
                route = next((route for route in routes if route.takes(alert)), None)
                if route is not None:
                    self._join(known, route)
            return
        known.alert = alert
        self._place(known)
        for talk in tuple(known.talks.values()):
            if talk.has_told(alert.id) or self._key(talk.route.notifier, alert) == talk.key:
                talk.sort(known, self.now, muted=self._mutes(known))
                self._schedule(talk)
            else:
                self._leave(known, talk, "it belongs to another incident")
                self._join(known, talk.route, at_once=talk.at_once)

    def _closed(self, alert: Alert, because: str) -> None:
        known = self._alerts.pop(alert.id, None)
        if known is None:
            return
        for place in known.places:
            self._places[place].pop(alert.id, None)
        for talk in tuple(known.talks.values()):
            self._leave(known, talk, because)

    def _key(self, notifier: str, alert: Alert) -> str:
        if alert.incident is None:
            return f"{alert.service or 'fleet'}/{alert.rule}"
        return self._aliases.get((notifier, alert.incident), f"incident-{alert.incident}")

    def _join(self, known: Known, route: Route, *, at_once: bool = False) -> None:
        alert = known.alert
        for talk in known.talks.values():
            if talk.route.notifier == route.notifier:
                if alert.id in talk.news:  # an escalation to somebody who is about to be told anyway
                    talk.news[alert.id] = talk.ready = self.now
                    self._schedule(talk)
                return
        key = self._key(route.notifier, alert)
        talk = self._talks.get((route.notifier, key)) or self._begin(route, key, alert.service)
        talk.at_once = talk.at_once or at_once
        talk.open[alert.id] = known
        talk.owed = None
        known.talks[talk.name] = talk
        talk.sort(known, self.now, muted=self._mutes(known))
        self._schedule(talk)
        if talk.escalated:
            self._join(known, talk.route.escalated(), at_once=True)

    def _begin(self, route: Route, key: str, service: str) -> Talk:
        number = key.removeprefix("incident-")
        incident = int(number) if number != key and number.isdecimal() else None
        talk = self._talks[route.notifier, key] = Talk(route, key, service, incident)
        return talk

    def _leave(self, known: Known, talk: Talk, because: str) -> None:
        del known.talks[talk.name]
        talk.drop(known.alert.id, self.now, because)
        if not talk.open and not talk.begun:
            self._forget(talk)
        self._schedule(talk)

    def _forget(self, talk: Talk) -> None:
        del self._talks[talk.name]
        self._agenda.cancel(talk.name)
        for alias in [a for a, key in self._aliases.items() if (a[0], key) == talk.name]:
            del self._aliases[alias]

    # -- silences and incidents ---------------------------------------------------------------------------------------

    def _place(self, known: Known) -> None:
        """Index an alert under the services whose silence is its own: its service, and the root it is folded under."""
        alert = known.alert
        places = {alert.service: None}
        if alert.incident is not None and not alert.folded:
            self._roots[alert.incident] = alert.service
        elif alert.incident in self._roots:
            places[self._roots[alert.incident]] = None
        for place in known.places:
            self._places[place].pop(alert.id, None)
        known.places = tuple(places)
        for place in known.places:
            self._places.setdefault(place, {})[alert.id] = None

    def _mutes(self, known: Known) -> bool:
        return self._everything > 0 or any(self._muted.get(place) for place in known.places)

    def _suppressed(self, suppression: Suppression, *, on: bool) -> None:
        if suppression.binds not in (Binds.SILENCE, Binds.MAINTENANCE):
            return
        before = self._silences.pop(suppression.id, None)
        if on:
            self._silences[suppression.id] = suppression
        touched: dict[str, None] = {}
        for change, scope in ((-1, before), (1, suppression if on else None)):
            if scope is None:
                continue
            if scope.everything:
                self._everything += change
                touched |= dict.fromkeys(self._alerts)
                continue
            for service in dict.fromkeys(scope.services):
                self._muted[service] = self._muted.get(service, 0) + change
                touched |= self._places.get(service, {})
        for id_ in touched:
            known = self._alerts[id_]
            for talk in known.talks.values():
                talk.sort(known, self.now, muted=self._mutes(known), ended_silence=True)
                self._schedule(talk)

    def _merged(self, number: int, into: int) -> None:
        for notifier in dict.fromkeys(notifier for notifier, _ in self._talks):
            old, new = (self._aliases.get((notifier, n), f"incident-{n}") for n in (number, into))
            child, parent = self._talks.get((notifier, old)), self._talks.get((notifier, new))
            if child is None or child is parent:
                continue
            if child.begun and parent is not None and parent.begun:
                child.folded = True
                self._schedule(child)
                continue
            moving, target = (child, new) if not child.begun else (parent, old)
            self._aliases[notifier, into if child.begun else number] = target
            for known in tuple(moving.open.values()) if moving is not None else ():
                assert moving is not None
                self._leave(known, moving, "merged")
                moved = attrs.evolve(known.alert, incident=into)
                known.alert = moved
                self._join(known, moving.route, at_once=moving.at_once)

    # -- messages -----------------------------------------------------------------------------------------------------

    def _tell(self, talk: Talk) -> None:
        fresh = bool(talk.news)
        audible = [known.alert for known in talk.open.values() if not self._mutes(known)]
        audible.sort(key=lambda alert: (alert.folded, RANK[alert.severity], alert.since, alert.service, alert.id))
        if not talk.begun:
            talk.round, talk.first = audible[0].id, self.now
            talk.service = audible[0].service
            # What has no incident is told apart by its rule: two rules of one service are two matters to a receiver.
            talk.correlation = audible[0].correlation if talk.incident is not None else audible[0].rule
        talk.since = min(talk.since, *(alert.since for alert in audible))
        severity = min((alert.severity for alert in audible), key=RANK.__getitem__)
        talk.worst = min(talk.worst, severity, key=RANK.__getitem__)
        talk.who |= dict.fromkeys(alert.service or "the fleet" for alert in audible)
        talk.tried |= dict.fromkeys(alert.id for alert in audible)
        talk.news.clear()
        talk.ready, talk.last = inf, self.now
        phase = Phase.UPDATED if talk.known else Phase.FIRING
        title = routing_words.title(audible)
        if phase is Phase.UPDATED:
            title = f"Update: {title}" if fresh else f"Still: {title}"
        elif talk.at_once:
            title = f"Escalated, not acknowledged: {title}"
        self._send(
            talk, phase, severity, title, routing_words.text(audible, self.now), tuple(alert.id for alert in audible)
        )

    def _resolve(self, talk: Talk) -> None:
        if not talk.route.send_resolved or not (talk.known or talk.perhaps):
            self._over(talk)
            return
        if talk.owed is not None:
            talk.in_flight, talk.offered = talk.owed, self.now
            self._out.append(talk.owed)
            return
        lasted = self.now - talk.since if talk.since < inf else None
        title, text = routing_words.ended([*talk.who] or [talk.service or "the fleet"], lasted, talk.because)
        self._send(talk, Phase.RESOLVED, talk.worst, title, text, tuple(talk.told))

    def _send(
        self, talk: Talk, phase: Phase, severity: Severity, title: str, text: str, alerts: tuple[str, ...]
    ) -> None:
        talk.number += 1
        digest = blake2s("\n".join((phase, *alerts)).encode(), digest_size=4).hexdigest()
        notification = Notification(
            id=f"{talk.route.notifier}:{talk.key}.{talk.round}.{talk.number}.{phase}.{digest}",
            incident=talk.incident,
            service=talk.service,
            phase=phase,
            severity=severity,
            title=title,
            text=text,
            since=talk.since if talk.since < inf else self.now,
            correlation=talk.correlation,
            receipt=talk.receipt,
        )
        talk.in_flight = Deliver(notifier=talk.route.notifier, notification=notification, alerts=alerts)
        talk.offered = self.now
        self._out.append(talk.in_flight)

    def _escalate(self, talk: Talk) -> None:
        talk.escalated = True
        for known in tuple(talk.open.values()):
            self._join(known, talk.route.escalated(), at_once=True)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def _recorded(self, event: DeliveryFinished) -> Delivered:
        name = _parse(event.notifier, event.notification)
        talk = self._talks.get((event.notifier, name[0])) if name is not None else None
        return Delivered(
            at=self.now,
            notification=event.notification,
            notifier=event.notifier,
            service=talk.service if talk is not None else "",
            incident=talk.incident if talk is not None else None,
            receipt=event.receipt,
            error=REFUSED + event.error if event.permanent else event.error,
        )

    def _delivered(self, record: Delivered) -> None:
        self._heard_of[record.notifier] = None
        name = _parse(record.notifier, record.notification)
        if name is None:
            return
        talk = self._talks.get((record.notifier, name[0]))
        if talk is None or talk.in_flight is None or talk.in_flight.notification.id != record.notification:
            if not record.error:
                self._adopt(record, talk, *name)
            return
        if record.error:
            self._given_up(talk, refused=record.error.startswith(REFUSED))
        else:
            self._reached(talk, record.receipt)
        self._schedule(talk)

    def _reached(self, talk: Talk, receipt: str | None) -> None:
        message, talk.in_flight = talk.in_flight, None
        assert message is not None
        talk.receipt = receipt or talk.receipt
        if message.notification.phase is Phase.RESOLVED:
            self._over(talk)
        else:
            talk.known = True
            talk.told |= dict.fromkeys(message.alerts)

    def _given_up(self, talk: Talk, *, refused: bool) -> None:
        message, talk.in_flight = talk.in_flight, None
        assert message is not None
        if message.notification.phase is not Phase.RESOLVED:
            talk.perhaps = talk.perhaps or not refused
        elif talk.open:
            pass  # it is not over after all: the round goes on, and ends with what has joined
        elif talk.known:
            talk.owed = message
            talk.owed_at = self.now + min(OWED_CAP, OWED_FIRST * 2.0 ** min(talk.tries, 20))
            talk.tries += 1
        else:
            self._over(talk)

    def _over(self, talk: Talk) -> None:
        """End a round; what has joined meanwhile begins the next."""
        if talk.known:
            self._remember(talk.name, talk.round)
        self._forget(talk)
        for known in tuple(talk.open.values()):
            del known.talks[talk.name]
            self._join(known, talk.route, at_once=talk.at_once)

    def _remember(self, name: tuple[str, str], round_: str) -> None:
        self._ended[(*name, round_)] = None
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _adopt(self, record: Delivered, talk: Talk | None, key: str, round_: str, number: int, phase: str) -> None:
        """Take over what was told under other routes, or in an order that this replay did not see."""
        name = (record.notifier, key)
        if phase == Phase.RESOLVED:
            self._remember(name, round_)
            if talk is not None and talk.round == round_:
                self._over(talk)
            return
        if (*name, round_) in self._ended:
            return
        if talk is None:
            routes = self._notifiers.get(record.notifier) or [Route(notifier=record.notifier)]
            talk = self._begin(routes[0], key, record.service)
            talk.correlation = key.rpartition("/")[2] if talk.incident is None else ""
            talk.owed_at, talk.worst = self.now, Severity.HIGH
        elif talk.round == round_ and talk.known and talk.number >= number:
            return
        if talk.round != round_:
            talk.told.clear()
        talk.in_flight = talk.owed = None
        talk.round, talk.number, talk.known = round_, max(talk.number, number), True
        talk.first, talk.last = min(talk.first, self.now), self.now
        talk.receipt = record.receipt or talk.receipt
        talk.tried = {id_: None for id_ in talk.told if id_ in talk.open}
        for known in talk.open.values():
            talk.sort(known, self.now, muted=self._mutes(known))
        self._schedule(talk)

    def _unfinished(self) -> list[Talk]:
        """Return the talks whose message is to be offered again after a restart, in order.

        A replay under new routes finds messages that never were. Of what is over and was never told, only what may
        have been on its way when we died counts; of the rest nobody has heard, and nobody needs to.
        """
        again = []
        for talk in tuple(self._talks.values()):
            if talk.in_flight is None:
                continue
            on_its_way = talk.route.notifier in self._heard_of and self.now - talk.offered <= IN_DOUBT
            if talk.open or talk.known or on_its_way:
                again.append(talk)
            else:
                self._forget(talk)
        return sorted(again, key=lambda talk: (talk.offered, talk.name))


def _parse(notifier: str, id_: str) -> tuple[str, str, int, str] | None:
    """Return key, round, number and phase of a notification's id; None when it is not one of ours."""
    prefix = f"{notifier}:"
    head, *rest = id_.removeprefix(prefix).rsplit(".", 4)
    if not id_.startswith(prefix) or len(rest) != 4 or not rest[1].isdecimal():
        return None
    return head, rest[0], int(rest[1]), rest[2]
