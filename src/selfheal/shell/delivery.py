"""The outbox: from `Deliver` of the router to the notifiers, and back with what became of it.

Owns the waiting messages of each notifier, their order, and the patience with a receiver that does not answer. It
decides nothing about who is told what; that is `core.routing`.

What holds, for each notifier by itself (one that hangs or fails delays no other, nor anything else):

- One message at a time, in the order they were offered, at least once, under their stable id. A message that has been
  failing for `Patience.in_order` seconds lets messages *about other matters* pass it, lest one that a receiver chokes
  on silence the channel; those about its own matter still wait behind it.
- Every message offered ends in exactly one `finished`, except those that `close` returns.
- A newer message takes the place of an undelivered UPDATED of the same matter when nothing about it came in between.
- At most `limit` wait. Beyond that the least worth knowing goes first (UPDATED, then the lowest severity, then the
  oldest), with a `finished` that says so. A RESOLVED is never dropped, unless a later one of its matter waits too.
- What a notifier with `refresh` was told and is still open is sent to it again every `refresh` seconds, and what was
  resolved for 15 minutes more. Nobody hears of these: they are no news.

**When the journal is down.** No line here touches the store. The host offers a message when the router asks for it,
whether its record was stored or is marked volatile, and hands `finished` back as an input whether that can be stored
or not. So people are told of a dead store by the same road as of everything else; a notifier such as `log` needs
neither store nor network. What is lost with a crash in that time is the memory of having told them: after the restart
the router offers again what it does not know to be delivered, under the same id, and receivers drop what they know.

After a restart the router offers what is undelivered; `resume` takes what was delivered and is still open.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from math import inf
from typing import Final, TypeAlias

import anyio
import attrs
from anyio.abc import TaskGroup
from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_random_exponential
from tenacity.wait import wait_base

from selfheal.builtin.http_client import neutral
from selfheal.builtin.notices import matter
from selfheal.core.model import Notification, Phase, Severity
from selfheal.errors import NotificationFailed, PluginError
from selfheal.plugins import Context, Notifier
from selfheal.shell.blocking import StillStuck

Send: TypeAlias = Callable[[Context], Awaitable[str | None]]
Call: TypeAlias = Callable[[str, Send, float], Awaitable[str | None]]
Finished: TypeAlias = Callable[[str, str, str | None, str, bool], None]

GRACE: Final = 5.0
"""Seconds after its deadline at which we stop waiting for a `call` that did not keep it."""

BUG_ATTEMPTS: Final = 3
"""Attempts for a message at which a notifier raises what it may not: a bug does not go away in an hour."""

RESOLVED_AGAIN: Final = 900.0
"""Seconds for which a resolution is repeated to a notifier with `refresh`; Prometheus keeps its own as long."""

_RANK: Final = {Severity.LOW: 0, Severity.MEDIUM: 1, Severity.HIGH: 2, Severity.CRITICAL: 3}

log = logging.getLogger("selfheal.delivery")


class AtLeastAsked(wait_base):
    """A tenacity policy: wait as `policy` says, or as long as the receiver asked for, up to `cap` seconds."""

    def __init__(self, policy: wait_base, cap: float) -> None:
        self.policy = policy
        self.cap = cap

    def __call__(self, retry_state: RetryCallState) -> float:
        problem = retry_state.outcome.exception() if retry_state.outcome is not None else None
        asked = problem.retry_after if isinstance(problem, NotificationFailed) else None
        return max(self.policy(retry_state), min(asked or 0.0, self.cap))


def waits(first: float = 1.0, cap: float = 120.0, asked_cap: float = 900.0) -> wait_base:
    """Return the policy of the outbox: `first` seconds, doubled up to `cap`, half of it jittered.

    A receiver may ask for more, up to `asked_cap`: who asks for a year must not silence a channel.
    """
    half = wait_exponential(multiplier=first / 2, max=cap / 2)
    drawn = wait_random_exponential(multiplier=first / 2, max=cap / 2)
    return AtLeastAsked(half + drawn, asked_cap)


@attrs.frozen(kw_only=True)
class Patience:
    """How long a message is tried, in seconds from when it was offered, and how long to wait in between.

    A RESOLVED is tried for longer: while it is missing, somebody believes in an outage that is over.
    """

    wait: wait_base = attrs.field(factory=waits)
    give_up: float = 3600.0
    give_up_resolved: float = 86400.0
    in_order: float = 300.0

    def pause(self, attempt: int, problem: Exception) -> float:
        """Return the seconds to wait after the `attempt`-th failure in a row, which was `problem`."""
        state = RetryCallState(AsyncRetrying(), None, (), {})
        state.attempt_number = attempt
        state.set_exception((problem.__class__, problem, problem.__traceback__))
        return self.wait(state)

    def limit(self, phase: Phase) -> float:
        """Return the seconds after which a message of `phase` is given up."""
        return self.give_up_resolved if phase is Phase.RESOLVED else self.give_up


@attrs.frozen(kw_only=True)
class Standing:
    """How delivery to one notifier stands. `failing_since` is by the clock of the loop; None while it works.

    In `health` and `status` it is a time of day.
    """

    notifier: str
    waiting: int
    sending: str | None
    delivered: int
    failed: int
    replaced: int
    overflowed: int
    refreshed: int
    failing_since: float | None
    last_error: str


@attrs.frozen(kw_only=True)
class Undelivered:
    """A message that `close` could not deliver; `error` is empty where it was not tried."""

    notifier: str
    notification: Notification
    error: str


@attrs.define(eq=False)
class _Waiting:
    notification: Notification
    matter: str
    offered: float
    attempts: int = 0
    first_tried: float = inf
    last_tried: float = -inf
    not_before: float = -inf
    error: str = ""
    sending: bool = False
    perhaps: bool = False

    @property
    def worth(self) -> tuple[bool, int, float]:
        """What is dropped first is least; `offered` breaks the tie."""
        n = self.notification
        return (n.phase is not Phase.UPDATED, _RANK[n.severity], self.offered)


@attrs.define(eq=False)
class _Open:
    notification: Notification
    until: float = inf


class _Line:
    """Everything about one notifier: what waits, what is open, how it goes."""

    def __init__(self, name: str, notifier: Notifier) -> None:
        self.name = name
        self.notifier = notifier
        self.waiting: list[_Waiting] = []
        self.open: dict[str, _Open] = {}
        self.refresh_at = -inf
        self.passed_over: set[str] = set()
        self.failures = 0
        self.failed_since: set[str] = set()
        self.not_before = -inf
        self.failing_since: float | None = None
        self.last_error = ""
        self.delivered = self.failed = self.replaced = self.overflowed = self.refreshed = 0
        self.full = False
        # Made by the task that serves the line: an outbox may be built where no loop runs yet.
        self.woken: anyio.Event | None = None
        self.scope: anyio.CancelScope | None = None
        self.ended: anyio.Event | None = None

    def wake(self) -> None:
        """Have the task of this line look again."""
        if self.woken is not None:
            self.woken.set()

    async def nap(self, seconds: float = inf) -> None:
        """Wait for `wake`, at most so many seconds."""
        self.woken = anyio.Event()
        with anyio.move_on_after(seconds):
            await self.woken.wait()

    @property
    def refresh(self) -> float | None:
        every: float | None = getattr(self.notifier, "refresh", None)
        return every

    def next(self, in_order: float) -> tuple[_Waiting, float] | None:
        """Return the message to try next, and when.

        It is the first, unless that one has been failing for `in_order` seconds: then the one tried longest ago of
        those that are due, each matter's first only.
        """
        heads: dict[str, _Waiting] = {}
        for one in self.waiting:
            heads.setdefault(one.matter, one)
        able = [one for one in heads.values() if one.matter not in self.passed_over]
        if not able:
            return None
        now = anyio.current_time()
        if now - able[0].first_tried < in_order:
            return able[0], able[0].not_before
        due = [one for one in able if one.not_before <= now]
        one = min(due, key=lambda one: one.last_tried) if due else min(able, key=lambda one: one.not_before)
        return one, max(one.not_before, self.not_before)


class Outbox:
    """Delivers to notifiers, on the host's loop (asyncio or trio); every method is called there.

    `call(notifier, send, timeout)` runs the coroutine that `send` makes of a context where plugins run, within
    `timeout` seconds, and returns the receipt or raises. `finished(id, notifier, receipt, error, permanent)` hears the
    end of every message: delivered (`error` empty), or not; `permanent` then says that nobody was told, because no
    attempt was made or the only one was refused. Otherwise an attempt may have got through unconfirmed. It is called
    from within our methods and tasks and must only take note. `scrub` masks known secrets in error texts.
    `timeout` is the seconds of one attempt, `limit` how many messages may wait for one notifier.
    """

    def __init__(
        self,
        notifiers: Mapping[str, Notifier],
        *,
        call: Call,
        finished: Finished,
        patience: Patience | None = None,
        limit: int = 1000,
        timeout: float = 30.0,
        scrub: Callable[[str], str] = str,
    ) -> None:
        self._lines = {name: _Line(name, notifier) for name, notifier in notifiers.items()}
        self._call = call
        self._finished = finished
        self._patience = patience or Patience()
        self._limit = limit
        self._timeout = timeout
        self._scrub = scrub
        self._tasks: TaskGroup | None = None
        self._closing = False

    # -- the host's side -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until `close`. Once only."""
        async with anyio.create_task_group() as self._tasks:
            for line in self._lines.values():
                self._start(line)
            await anyio.sleep_forever()

    def _start(self, line: _Line) -> None:
        if self._tasks is not None:
            line.scope, line.ended = anyio.CancelScope(), anyio.Event()
            self._tasks.start_soon(self._serve, line, line.scope, line.ended)

    def offer(self, notifier: str, notification: Notification) -> None:
        """Take a message to be delivered. Never waits. An id that waits already is not taken twice."""
        line = self._lines.get(notifier)
        if line is None:
            self._finished(notification.id, notifier, None, f"there is no notifier called {notifier!r}", True)
            return
        if any(one.notification.id == notification.id for one in line.waiting):
            return
        new = _Waiting(notification, matter(notification), anyio.current_time())
        same = [one for one in line.waiting if one.matter == new.matter]
        last = same[-1] if same else None
        if last is not None and last.notification.phase is Phase.UPDATED and not last.sending:
            line.waiting[line.waiting.index(last)] = new
            line.replaced += 1
            self._tell(line, last, error=f"replaced by the newer {notification.id}")
        else:
            line.waiting.append(new)
            self._keep_bound(line)
        line.wake()

    def resume(self, notifier: str, notifications: Iterable[Notification]) -> None:
        """After a restart: take note of what was delivered before and is still open, for notifiers with `refresh`."""
        line = self._lines.get(notifier)
        if line is None or line.refresh is None:
            return
        for notification in notifications:
            line.open.setdefault(matter(notification), _Open(notification))
        line.wake()

    def replace(self, notifiers: Mapping[str, Notifier]) -> None:
        """Take the notifiers of a new configuration. What waits for one that is gone ends; the others try at once."""
        for name in self._lines.keys() - notifiers.keys():
            line = self._lines.pop(name)
            if line.scope is not None:
                line.scope.cancel()
            for one in line.waiting:
                self._tell(line, one, error="its notifier is no longer configured")
            line.waiting.clear()
        for name, notifier in notifiers.items():
            known = self._lines.get(name)
            if known is None:
                self._lines[name] = line = _Line(name, notifier)
                self._start(line)
            elif known.notifier is not notifier:
                known.notifier = notifier
                known.failures, known.not_before = 0, -inf
                for one in known.waiting:
                    one.not_before = -inf
                known.wake()

    def standing(self) -> tuple[Standing, ...]:
        """Return how delivery stands, by notifier."""
        return tuple(
            Standing(
                notifier=line.name,
                waiting=len(line.waiting),
                sending=next((one.notification.id for one in line.waiting if one.sending), None),
                delivered=line.delivered,
                failed=line.failed,
                replaced=line.replaced,
                overflowed=line.overflowed,
                refreshed=line.refreshed,
                failing_since=line.failing_since,
                last_error=line.last_error,
            )
            for line in self._lines.values()
        )

    async def close(self, seconds: float) -> tuple[Undelivered, ...]:
        """Try everything that waits once more, for at most `seconds`; end `run`, and return what was not delivered.

        No `finished` is called for those: the router offers them again after the restart, under the same ids.
        """
        self._closing = True
        if self._tasks is not None:
            for line in self._lines.values():
                line.wake()
            with anyio.move_on_after(seconds):
                await self._all_ended()
            self._tasks.cancel_scope.cancel()
            with anyio.move_on_after(GRACE, shield=True):
                await self._all_ended()
        left = tuple(
            Undelivered(notifier=line.name, notification=one.notification, error=one.error)
            for line in self._lines.values()
            for one in line.waiting
        )
        for line in self._lines.values():
            line.waiting.clear()  # whoever comes late after all has nothing to report any more
        return left

    async def _all_ended(self) -> None:
        for line in self._lines.values():
            if line.ended is not None:
                await line.ended.wait()

    # -- what waits ------------------------------------------------------------------------------------------------

    def _keep_bound(self, line: _Line) -> None:
        if len(line.waiting) <= self._limit:
            line.full = False
            return
        victim = _least(line.waiting)
        if victim is None:
            return
        line.waiting.remove(victim)
        line.overflowed += 1
        self._tell(line, victim, error=f"dropped: more than {self._limit} messages wait")
        if not line.full:
            line.full = True
            log.warning(
                "notifier %s: more than %d messages wait; the least important are dropped", line.name, self._limit
            )

    def _tell(self, line: _Line, one: _Waiting, *, receipt: str | None = None, error: str) -> None:
        permanent = bool(error) and not one.perhaps and not one.sending
        self._finished(one.notification.id, line.name, receipt, error, permanent)

    # -- one task for each notifier --------------------------------------------------------------------------------

    async def _serve(self, line: _Line, scope: anyio.CancelScope, ended: anyio.Event) -> None:
        try:
            with scope:
                while True:
                    chosen = line.next(self._patience.in_order)
                    if chosen is None and self._closing:
                        return
                    if chosen is None:
                        await self._rest(line)
                    elif not self._closing and (pause := chosen[1] - anyio.current_time()) > 0:
                        await line.nap(pause)
                    else:
                        await self._deliver(line, chosen[0])
        finally:
            ended.set()

    async def _rest(self, line: _Line) -> None:
        """Wait for a message, and send meanwhile what must be sent again."""
        every = line.refresh
        if every is None or not line.open:
            await line.nap()
            return
        now = anyio.current_time()
        if line.refresh_at > now:
            await line.nap(line.refresh_at - now)
            return
        line.refresh_at = now + every
        for key, still in list(line.open.items()):
            if line.waiting or self._closing:
                return
            if still.until < now:
                del line.open[key]
                continue
            try:
                await self._send(line, still.notification)
            except Exception as problem:  # noqa: BLE001  # whatever a plugin raises, the next round tries again
                self._stumbled(line, self._words(problem))
                return
            line.refreshed += 1
            self._recovered(line)

    async def _deliver(self, line: _Line, one: _Waiting) -> None:
        """Make one attempt, and decide what its end means for the message."""
        now = one.last_tried = anyio.current_time()
        one.first_tried = min(one.first_tried, now)
        one.attempts += 1
        one.sending = True
        try:
            receipt = await self._send(line, one.notification)
        except Exception as problem:  # noqa: BLE001  # law 15: whatever a plugin raises, it delays nobody else
            one.sending = False
            self._failed(line, one, problem)
            return
        finally:
            one.sending = False
        if one not in line.waiting:  # its notifier was taken away meanwhile, and its end has been told
            return
        line.waiting.remove(one)
        line.delivered += 1
        self._recovered(line)
        if line.refresh is not None:
            resolved = one.notification.phase is Phase.RESOLVED
            if not line.open:
                line.refresh_at = now + line.refresh
            line.open[one.matter] = _Open(one.notification, now + RESOLVED_AGAIN if resolved else inf)
        self._tell(line, one, receipt=receipt, error="")

    async def _send(self, line: _Line, notification: Notification) -> str | None:
        notifier = line.notifier
        with anyio.fail_after(self._timeout + GRACE):
            return await self._call(line.name, lambda context: notifier.send(notification, context), self._timeout)

    def _failed(self, line: _Line, one: _Waiting, problem: Exception) -> None:
        if one not in line.waiting:
            return
        now = anyio.current_time()
        one.error = self._words(problem)
        self._stumbled(line, one.error)
        line.failures += 1
        line.failed_since.add(one.notification.id)
        why = self._verdict(line, one, problem, now)
        if why:
            line.waiting.remove(one)
            line.failed += 1
            log.warning("notifier %s: %s not delivered: %s%s", line.name, one.notification.id, one.error, why)
            self._tell(line, one, error=one.error + why)
            if len(line.failed_since) > 1:
                self._expire(line, now)
            return
        if self._closing:
            line.passed_over.add(one.matter)
            return
        left = self._limit_of(line, one) - (now - one.offered)
        pause = min(self._patience.pause(max(one.attempts, line.failures), problem), left)
        one.not_before = now + pause
        # Others may pass one that has been failing for long; but a receiver that takes none of them is down.
        line.not_before = one.not_before if len(line.failed_since) > 1 else -inf

    def _expire(self, line: _Line, now: float) -> None:
        """Give up what has waited too long behind others that failed: its turn would only come to fail like theirs."""
        for one in list(line.waiting):
            waited = now - one.offered
            if waited >= self._limit_of(line, one):
                line.waiting.remove(one)
                line.failed += 1
                self._tell(line, one, error=f"{line.last_error} (given up after {waited:.0f} s)")

    def _limit_of(self, line: _Line, one: _Waiting) -> float:
        """Return the seconds a message is tried: a resolution no longer than a firing once newer news waits behind."""
        newer = any(other.matter == one.matter for other in line.waiting[line.waiting.index(one) + 1 :])
        return self._patience.limit(Phase.FIRING if newer else one.notification.phase)

    def _verdict(self, line: _Line, one: _Waiting, problem: Exception, now: float) -> str:
        """Return why a message is given up; nothing is another attempt."""
        if isinstance(problem, NotificationFailed) and problem.permanent:
            return " (refused)"
        if isinstance(problem, PluginError):
            return " (cannot be sent by this installation)"
        one.perhaps = True  # the request may have been heard, and only the answer lost
        expected = isinstance(problem, (NotificationFailed, OSError, StillStuck))
        if not expected and one.attempts >= BUG_ATTEMPTS:
            return f" (a bug in the notifier? {one.attempts} attempts)"
        if now - one.offered >= self._limit_of(line, one):
            return f" (given up after {one.attempts} attempts in {now - one.offered:.0f} s)"
        return ""

    def _stumbled(self, line: _Line, error: str) -> None:
        if line.failing_since is None:
            line.failing_since = anyio.current_time()
            log.warning("notifier %s fails: %s", line.name, error)
        line.last_error = error

    def _recovered(self, line: _Line) -> None:
        line.failures, line.not_before = 0, -inf
        line.failed_since.clear()
        if line.failing_since is not None:
            log.info("notifier %s works again", line.name)
            line.failing_since = None

    def _words(self, problem: Exception) -> str:
        """Return an error fit for a record. What is not meant for people is only named: its text may hold a secret."""
        if isinstance(problem, (NotificationFailed, PluginError, StillStuck)):
            return neutral(self._scrub(str(problem)), 300)
        if isinstance(problem, TimeoutError):
            return f"did not end within {self._timeout:g} s"
        return f"raised {problem.__class__.__name__}"


def _least(waiting: list[_Waiting]) -> _Waiting | None:
    """Return what can be spared: a RESOLVED only if a later one of its matter waits too."""
    spare = [one for one in waiting if not one.sending and one.notification.phase is not Phase.RESOLVED]
    if spare:
        return min(spare, key=lambda one: one.worth)
    seen: set[str] = set()
    oldest: _Waiting | None = None
    for one in reversed(waiting):
        if one.matter in seen and not one.sending:
            oldest = one
        seen.add(one.matter)
    return oldest
