"""Telling people: records go to the router, what it decides to the outbox, and what became of that back to the journal.

Owns the one router and the one outbox of a run, the clock of the router, and what a run must know of earlier ones:
what was told and is still open, because some receivers forget it unless it is repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from secrets import token_hex
from typing import Protocol

import anyio
import anyio.to_thread
import attrs

from selfheal.builtin.notices import matter
from selfheal.core.messages import TimePassed
from selfheal.core.model import Notification, Phase, Severity
from selfheal.core.records import Delivered, Record
from selfheal.core.routing import REFUSED, Deliver, DeliveryFinished, Route, Router, RouterOutput
from selfheal.plugins import Notifier
from selfheal.shell.contexts import Contexts
from selfheal.shell.delivery import Outbox, Send, Undelivered
from selfheal.shell.plugin_loop import PluginLoops
from selfheal.shell.plugin_thread import Ending
from selfheal.shell.results import Scrubber
from selfheal.shell.stream import Told

log = logging.getLogger("selfheal")


class Clock(Protocol):
    """What telling needs of the loop."""

    def at(self, instant: float | None = None) -> float: ...

    def to_unix(self, at: float) -> float: ...

    def note(self, records: Iterable[Record], cause: DeliveryFinished | None = None) -> None: ...


class Telling:
    """Tells people what the records say. Every method is called on the host's loop."""

    def __init__(
        self, routes: Iterable[Route], notifiers: Mapping[str, Notifier], *, loops: PluginLoops, contexts: Contexts
    ) -> None:
        self.clock: Clock
        self._routes = tuple(routes)
        self._notifiers = dict(notifiers)
        self._loops = loops
        self._contexts = contexts
        self._router: Router | None = None
        self._due = anyio.Event()
        self._ended = False
        self._scrubbers: dict[str, Scrubber] = {}
        self._learn(self._notifiers)
        self.outbox = Outbox(self._notifiers, call=self._send, finished=self._finished, scrub=self._scrub)

    # -- life --------------------------------------------------------------------------------------------------------

    def remember(self, history: Iterable[Record]) -> Callable[[], None]:
        """Fold what was told before. Blocks: call it in a thread, and what it returns on the host's loop."""
        history = tuple(history)
        router = Router(self._routes, history=history)
        refreshed = {name for name, one in self._notifiers.items() if getattr(one, "refresh", None) is not None}
        standing = still_told(self._routes, history, refreshed) if refreshed else {}
        for scrubber in self._scrubbers.values():
            scrubber.read_now()

        def begin() -> None:
            self._router = router
            for notifier, deliveries in standing.items():
                self.outbox.resume(notifier, [self._restated(deliver) for deliver in deliveries])

        return begin

    async def run(self) -> None:
        """Wake the router when it wants to be woken, until cancelled."""
        while True:
            self._due = anyio.Event()
            router = self._router
            assert router is not None
            with anyio.move_on_after(max(0.0, router.deadline - self.clock.at())):
                await self._due.wait()
                continue
            self._routed(router.receive(TimePassed(at=self.clock.at())))

    async def replace(self, notifiers: Mapping[str, Notifier]) -> None:
        """Take the notifiers of a new configuration: what waits for one that is gone ends, the others try at once."""
        old, self._notifiers = self._notifiers, dict(notifiers)
        self._learn(self._notifiers)
        self.outbox.replace(self._notifiers)
        for name, notifier in old.items():
            if self._notifiers.get(name) is not notifier:
                self._loops.forgive(f"{name} (notifier)")
                await self._loops.close_kept(name, of=[notifier])

    async def close(self, seconds: float) -> tuple[Undelivered, ...]:
        """Give what waits a last chance of so many seconds; return what was not delivered, and will be tried again."""
        left = await self.outbox.close(seconds)
        # What was delivered in these seconds is still on its way to the router, through the loop: let it arrive.
        arrived = anyio.Event()
        self._loops.tell(arrived.set)
        await arrived.wait()
        self._ended = True
        return left

    # -- records in, messages out ------------------------------------------------------------------------------------

    def hear(self, told: Told) -> None:
        """Take a record in."""
        if self._router is not None and not self._ended:
            self._routed(self._router.receive(told.record))

    def cry(self, title: str, text: str) -> None:
        """Tell every notifier something that the engine cannot: that it has stopped."""
        for name in self._notifiers:
            self.outbox.offer(
                name,
                Notification(
                    id=f"{name}:selfheal-{token_hex(4)}",
                    incident=None,
                    service="",
                    phase=Phase.FIRING,
                    severity=Severity.CRITICAL,
                    title=title,
                    text=text,
                    since=self.clock.to_unix(self.clock.at()),
                    correlation="selfheal",
                ),
            )

    def _routed(self, output: RouterOutput, cause: DeliveryFinished | None = None) -> None:
        for deliver in output.deliveries:
            self.outbox.offer(deliver.notifier, self._restated(deliver))
        if output.records or cause is not None:
            self.clock.note(output.records, cause)
        self._due.set()

    def _restated(self, deliver: Deliver) -> Notification:
        return attrs.evolve(deliver.notification, since=self.clock.to_unix(deliver.notification.since))

    # -- what became of them -----------------------------------------------------------------------------------------

    def _finished(self, id_: str, notifier: str, receipt: str | None, error: str, permanent: bool) -> None:
        finished = DeliveryFinished(
            at=self.clock.at(), notification=id_, notifier=notifier, receipt=receipt, error=error, permanent=permanent
        )
        # Not from within the outbox: what the router says next may be offered to it at once.
        self._loops.tell(partial(self._heard_back, finished))

    def _heard_back(self, finished: DeliveryFinished) -> None:
        if self._router is not None and not self._ended:
            self._routed(self._router.receive(finished), finished)

    async def _send(self, notifier: str, send: Send, timeout: float) -> str | None:
        plugin = self._notifiers[notifier]
        scrubber = self._scrubbers[notifier]

        async def sent() -> str | None:
            await scrubber.read()
            return await send(self._contexts.plain(notifier, plugin, timeout))

        outcome = await self._loops.run(f"{notifier} (notifier)", sent, timeout=timeout, kind="other")
        if outcome.ending is Ending.VALUE:
            return scrubber.text(outcome.value) if isinstance(outcome.value, str) else None
        if outcome.error is not None:
            raise outcome.error
        raise TimeoutError(f"{notifier}: {outcome.ending.value}")

    # -- secrets -----------------------------------------------------------------------------------------------------

    def _learn(self, notifiers: Mapping[str, Notifier]) -> None:
        """Know the secrets of the notifiers; those of one that is gone may still stand in an error."""
        self._scrubbers |= {name: Scrubber(notifier) for name, notifier in notifiers.items()}

    def _scrub(self, text: str) -> str:
        for scrubber in self._scrubbers.values():
            text = scrubber.text(text)
        return text


def still_told(
    routes: Iterable[Route], history: Iterable[Record], notifiers: Iterable[str]
) -> dict[str, list[Deliver]]:
    """Return the last message of every matter that these notifiers were told of and not yet told the end of.

    A router is led through the history once more: what it offers has the ids that the history says were delivered.
    """
    wanted = frozenset(notifiers)
    router = Router(tuple(routes))
    offered: dict[str, Deliver] = {}
    standing: dict[str, dict[str, Deliver]] = {name: {} for name in wanted}
    for record in history:
        output = router.receive(_finished(record) if isinstance(record, Delivered) else record)
        offered |= {d.notification.id: d for d in output.deliveries if d.notifier in wanted}
        if isinstance(record, Delivered):
            message = offered.pop(record.notification, None)
            if message is not None and not record.error:
                _stand(standing[record.notifier], message)
    return {name: list(messages.values()) for name, messages in standing.items()}


def _finished(record: Delivered) -> DeliveryFinished:
    """Return what the router once heard, from what it said of that."""
    return DeliveryFinished(
        at=record.at,
        notification=record.notification,
        notifier=record.notifier,
        receipt=record.receipt,
        error=record.error.removeprefix(REFUSED),
        permanent=record.error.startswith(REFUSED),
    )


def _stand(messages: dict[str, Deliver], message: Deliver) -> None:
    about = matter(message.notification)
    if message.notification.phase is Phase.RESOLVED:
        messages.pop(about, None)
    else:
        messages[about] = message


__all__ = ["Telling", "still_told"]
