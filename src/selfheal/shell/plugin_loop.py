"""Plugin coroutines on asyncio loops in threads of ours, whatever loop the host runs (law 15).

Owns `PluginLoops`, the host's side; `plugin_thread` owns one loop and what happens on it.

The law: a plugin that hangs or raises delays nobody. What enforces it:

==============================  =====================================================================================
A plugin that …                 is met by …
==============================  =====================================================================================
never returns                   our total deadline, on the loop
ignores its cancellation        a second one a second; it is given up, named, and not called again while it lives
raises `SystemExit` or worse    the run, which catches everything; the loop, which goes on
blocks the loop                 the watchdog: the loop is abandoned, bystanders run again elsewhere, the culprit is
                                named and alone in a loop of its own from then on
blocks it often but briefly     three strikes: alone from then on, nothing is abandoned
spins in a thread               a report. Who holds the GIL cannot be contained
==============================  =====================================================================================

Actions have a loop of their own: a check that blocks leaves no action in doubt. A bystander *action* on an abandoned
loop is never run again: its end is `ABANDONED`, and the engine settles it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Final

import anyio

from selfheal.shell.blocking import StillStuck
from selfheal.shell.contexts import CLOSING, Kept
from selfheal.shell.plugin_thread import Call, Ending, Kind, Outcome, PluginThread, Report, Run
from selfheal.shell.threads import Spinners, frames, running_in

TICK: Final = 0.1
"""Seconds between two looks of the watchdog, while anything runs."""

BLOCKED_TICKS: Final = 3
"""A loop is blocked once two looks found it in one turn, and so many more in the same step of it: 0.4 to 0.5 s.

Looks are counted, not seconds: after a suspension of the whole process only one more look has passed.
"""

SUSPENDED: Final = 0.5
"""Seconds by which the watchdog itself woke late, from which what it saw before counts for nothing."""

STRIKES: Final = 3
"""So many steps of more than `plugin_thread.SLOW_STEP` put a plugin alone in a loop of its own."""

RERUNS: Final = 3
"""A check whose loop was abandoned so often without a name to blame is given up as ABANDONED."""

IDLE_TICKS: Final = 50
"""Looks without anything in flight after which the watchdog sleeps until it is needed."""

log = logging.getLogger("selfheal.plugins")

Poke = Callable[[Callable[[], object]], object]
Make = Callable[[], Awaitable[object]]
Done = Callable[[Outcome], None]


def poke_here() -> Poke:
    """Return the function that runs another on the loop this is called on. Raises `RuntimeError` where none runs."""
    if "trio" in sys.modules:
        import trio  # noqa: PLC0415  # an optional dependency, needed only where the host has imported it

        with contextlib.suppress(RuntimeError):
            return trio.lowlevel.current_trio_token().run_sync_soon
    # In the host's context, not the caller's: anyio's backend is a context variable, and so is the owner.
    return partial(asyncio.get_running_loop().call_soon_threadsafe, context=copy_context())


class PluginLoops:
    """All plugin loops of one supervisor.

    `poke` runs a function on the host's loop, from any thread (`call_soon_threadsafe`, or a trio token's
    `run_sync_soon`); `done` and `told` are called through it. `kept` is closed where it lives, when a loop ends.
    Nothing starts before the first `submit`.
    """

    def __init__(self, *, poke: Poke, told: Callable[[Report], None] | None = None, kept: Kept | None = None) -> None:
        self._poke = poke
        self._told = told
        self.kept = kept if kept is not None else Kept()
        self._lock = threading.RLock()
        self._shared: dict[bool, PluginThread] = {}
        self._alone: dict[tuple[str, bool], PluginThread] = {}
        self._apart: set[tuple[str, bool]] = set()
        self._strikes: dict[tuple[str, bool], int] = {}
        self._leaving: list[PluginThread] = []
        self._zombies: dict[tuple[str, Kind], Run] = {}
        self._outbox: deque[Callable[[], object]] = deque()
        self._poked = False
        self._closing = False
        self._watching = False
        self._spinners = Spinners()

    # -- the host's side -------------------------------------------------------------------------------------------

    def submit(self, owner: str, make: Make, *, timeout: float, done: Done, kind: Kind = "check") -> Call:
        """Run the coroutine that `make` returns; `done` hears its outcome on the host's loop, exactly once.

        `make` is called on the plugin loop, again for each run of a `check` or an `inspect` whose loop was abandoned;
        an `action` and `other` never run twice. `timeout` is the total deadline in seconds (`inf` for none). While
        an earlier call of this owner and kind still lives although it was given up, the outcome is the exception
        `StillStuck` and nothing is started. May be called from any thread.
        """
        call = Call(owner, make, timeout, done, kind)
        with self._lock:
            self._place(call)
        if not self._watching:
            self._start_watching()
        return call

    async def run(self, owner: str, make: Make, *, timeout: float, kind: Kind = "check") -> Outcome:
        """Submit and wait for the outcome, on the host's loop. When the waiting is cancelled, so is the call."""
        ended = anyio.Event()
        outcomes: list[Outcome] = []

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            ended.set()

        call = self.submit(owner, make, timeout=timeout, done=done, kind=kind)
        try:
            await ended.wait()
        finally:
            if not outcomes:
                call.cancel()
        return outcomes[0]

    def tell(self, function: Callable[[], object]) -> None:
        """Run `function` on the host's loop, soon, in order; from any thread. Many tellings cost one wake-up."""
        self._outbox.append(function)
        if not self._poked:
            self._poked = True
            try:
                self._poke(self._flush)
            except RuntimeError:  # the host's loop has ended (trio's RunFinishedError is one too): nobody is left
                self._outbox.clear()
                self._poked = False

    def forgive(self, owner: str) -> None:
        """Let a plugin back among the others: at reload, when it may have been mended."""
        with self._lock:
            for actions in (False, True):
                self._apart.discard((owner, actions))
                self._strikes.pop((owner, actions), None)
                home = self._alone.pop((owner, actions), None)
                if home is not None:
                    self._retire(home)

    async def close_kept(self, service: str, *, of: Sequence[object] | None = None, timeout: float = CLOSING) -> None:
        """Close what plugins keep for `service`, on every loop that has something; at most `timeout` seconds.

        With `of`, only what belongs to these plugin objects: a successor of the same name keeps its own.
        """
        loops = self.kept.loops(service)
        homes = [home for home in self._homes() if home.loop in loops]
        async with anyio.create_task_group() as group:
            for home in homes:
                group.start_soon(self._close_kept_of, home, service, timeout, of)

    async def aclose(self, timeout: float = 5.0) -> None:
        """Cancel what runs, close what is kept, end the threads; return after at most `timeout` seconds.

        Threads still stuck then are daemons and are left behind, named in a report.
        """
        with self._lock:
            self._closing = True
            homes = self._homes()
        for home in homes:
            for run in home.runs_now():
                run.call.cancelled = True
                home.cancel(run)
        ended = anyio.Event()

        def wait() -> None:
            end = time.monotonic() + timeout
            for home in homes:
                home.retire()
            for home in homes:
                home.thread.join(max(0.0, end - time.monotonic()))
                if home.thread.is_alive():
                    self.report(Report(kind="stuck", owner=home.owner, where=home.thread.name, seconds=timeout))
                    for run in home.runs_now():
                        self.settle(run, Outcome.without(run, Ending.ABANDONED))
            self.tell(ended.set)

        threading.Thread(target=wait, name="selfheal-closing", daemon=True).start()
        with anyio.CancelScope(shield=True):
            await ended.wait()

    # -- where a call runs -----------------------------------------------------------------------------------------

    def _place(self, call: Call) -> None:
        """Give a call a home and post it there, or settle it at once; the lock is held."""
        if self._closing or call.cancelled:
            self._settle(call, Outcome.at_once(Ending.CANCELLED))
            return
        zombie = self._zombies.get((call.owner, call.kind))
        home = None if zombie is not None else self._home(call)
        if home is None or (home.blocked and home.owner):
            self._settle(call, Outcome.at_once(Ending.EXCEPTION, StillStuck("the previous call has not come back")))
            return
        call.run = run = Run(call, home)
        home.post(run)

    def _home(self, call: Call) -> PluginThread:
        actions = call.kind == "action"
        if (call.owner, actions) in self._apart:
            home = self._alone.get((call.owner, actions))
            if home is None:
                home = self._alone[call.owner, actions] = PluginThread(self, owner=call.owner, actions=actions)
        else:
            home = self._shared.get(actions)
            if home is None:
                home = self._shared[actions] = PluginThread(self, owner="", actions=actions)
        return home

    def _homes(self) -> list[PluginThread]:
        with self._lock:
            return [*self._shared.values(), *self._alone.values(), *self._leaving]

    def _retire(self, home: PluginThread) -> None:
        """Let a home end when its last run has ended; the lock is held."""
        self._leaving.append(home)
        home.retire()

    async def _close_kept_of(
        self, home: PluginThread, service: str, timeout: float, of: Sequence[object] | None
    ) -> None:
        ended = anyio.Event()
        home.close_kept(service, timeout, partial(self.tell, ended.set), of)
        with anyio.move_on_after(timeout + TICK):
            await ended.wait()

    # -- what the plugin threads say -------------------------------------------------------------------------------

    def settle(self, run: Run, outcome: Outcome) -> None:
        """Take the outcome of a run: its call's, unless the call is settled or runs elsewhere by now."""
        if run.call.run is run:
            self._settle(run.call, outcome)

    def _settle(self, call: Call, outcome: Outcome) -> None:
        with self._lock:
            if call.settled:
                return
            call.settled = True
        self.tell(partial(call.done, outcome))

    def give_up(self, run: Run, outcome: Outcome) -> None:
        """Settle a run that has not ended; until it does, its owner gets no other of this kind."""
        with self._lock:
            if run.ended:
                return
            self._zombies.setdefault((run.call.owner, run.call.kind), run)
        self.settle(run, outcome)

    def ended(self, run: Run) -> None:
        """Hear that a run has truly ended."""
        key = (run.call.owner, run.call.kind)
        if self._zombies.get(key) is run:
            with self._lock:
                if self._zombies.get(key) is run:
                    del self._zombies[key]

    def strike(self, run: Run, seconds: float) -> None:
        """Hear that one step of a run stood on its loop for `seconds`; the third puts its owner apart."""
        key = (run.call.owner, run.call.kind == "action")
        with self._lock:
            strikes = self._strikes[key] = self._strikes.get(key, 0) + 1
            if key in self._apart or strikes < STRIKES:
                return
            self._apart.add(key)
        self.report(Report(kind="slow", owner=run.call.owner, where=f"{STRIKES} steps, the last one", seconds=seconds))

    def left(self, home: PluginThread) -> None:
        """Hear that a plugin thread has ended."""
        with self._lock:
            if home in self._leaving:
                self._leaving.remove(home)

    def report(self, report: Report) -> None:
        """Name a plugin that misbehaved."""
        log.warning("%s", report)
        if self._told is not None:
            self.tell(partial(self._told, report))

    def _flush(self) -> None:
        """On the host's loop: call everything told so far."""
        self._poked = False
        left = len(self._outbox)
        try:
            while left:
                left -= 1
                self._outbox.popleft()()
        finally:
            if left:  # the host's function raised: that is between the two of them, the rest is still told
                self.tell(_nothing)

    # -- the watchdog ----------------------------------------------------------------------------------------------

    def _start_watching(self) -> None:
        with self._lock:
            if self._watching:
                return
            self._watching = True
        threading.Thread(target=self._watch_over, name="selfheal-watchdog", daemon=True).start()

    def _watch_over(self) -> None:
        """Look at every home until nothing has run for a while; then end. `submit` starts it again."""
        idle = 0
        before = time.monotonic()
        while idle < IDLE_TICKS and not (self._closing and idle):
            time.sleep(TICK)
            now = time.monotonic()
            homes = [home for home in self._homes() if home.runs or home.blocked]
            idle = 0 if homes else idle + 1
            self._look(homes, now, late=now - before - TICK)
            before = time.monotonic()
        self._watching = False
        if any(home.runs for home in self._homes()):  # submitted between the last look and the line above
            self._start_watching()

    def _look(self, homes: list[PluginThread], now: float, late: float) -> None:
        standing = [home for home in homes if not home.turns.waiting and home.turns.number == home.turn]
        stands = frames() if standing else {}
        for home in homes:
            home.turn = home.turns.number
            step, where = running_in(stands.get(home.thread.ident or 0)) if home in standing else (None, "")
            if step is None or step is not home.seen or late > SUSPENDED:
                home.seen, home.looks, home.since = step, 0, now
                home.blocked = False
                continue
            home.looks += 1
            if home.looks >= BLOCKED_TICKS and not home.blocked:
                home.blocked = True
                self._blocked(home, home.culprit(step), where, now - home.since)
        del stands
        for home in homes:
            for run in home.runs_now():
                if now >= run.overdue_at():
                    self._overdue(run)
        for name, where in self._spinners.look(now, late):
            self.report(Report(kind="spinning", owner=name.removeprefix("selfheal-").removesuffix("-io"), where=where))

    def _overdue(self, run: Run) -> None:
        """Settle what its own loop could not, because it stands still."""
        if not run.begun:
            outcome = Outcome.at_once(Ending.EXCEPTION, StillStuck("the previous call has not come back"))
        elif run.call.cancelled:
            outcome = Outcome.without(run, Ending.ABANDONED if run.call.kind == "action" else Ending.CANCELLED)
        else:
            outcome = Outcome.without(run, Ending.ABANDONED if run.call.kind == "action" else Ending.TIMED_OUT)
        self.give_up(run, outcome)

    def _blocked(self, home: PluginThread, culprit: Run | None, where: str, seconds: float) -> None:
        """Name the culprit; if it had company, abandon the loop and save the bystanders."""
        owner = culprit.call.owner if culprit is not None else home.owner
        self.report(Report(kind="blocked", owner=owner, where=where, seconds=seconds))
        if home.owner:
            return
        with self._lock:
            if owner:
                self._apart.add((owner, home.actions))
            if self._shared.get(home.actions) is home:
                del self._shared[home.actions]
            home.abandoned = True
            bystanders = [run for run in home.runs_now() if run is not culprit]
            for run in bystanders:
                self._save(run)
            self._retire(home)

    def _save(self, run: Run) -> None:
        """Run a bystander again elsewhere, or say that nobody knows what became of it; the lock is held."""
        call = run.call
        run.dropped = True
        if call.settled or call.run is not run:
            return
        again = not run.begun or (call.kind in ("check", "inspect") and call.reruns < RERUNS)
        if not again or call.cancelled:
            self._settle(call, Outcome.without(run, Ending.CANCELLED if not run.begun else Ending.ABANDONED))
            return
        call.reruns += run.begun
        call.run = None
        self._place(call)


def _nothing() -> None:
    pass
