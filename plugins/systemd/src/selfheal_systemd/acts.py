"""Having systemd act on a unit: what is refused before, and what must be seen after.

Owns that nothing is done to another incarnation than the one that failed, that nobody's job is replaced, and that a
start is only well done when the unit runs: systemd calls a job of a `Type=simple` unit done when the program has been
started, even if it was gone a moment later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeVar

import attrs

from selfheal import ActionContext, ActionFailed, Context, Run
from selfheal.builtin import proc
from selfheal_systemd import permission
from selfheal_systemd.systemctl import Denied, Systemctl
from selfheal_systemd.unit import Unit, how_it_ended, stands, timespan

T = TypeVar("T")

_RESERVE: Final = 1.0  # seconds of an action's time kept back to say what was seen
_POLL: Final = (0.03, 0.3)  # seconds between two looks while a job is under way: at first, doubling to at most
_LIFTED: Final = " (it was at its start limit, which was reset first)"
_PATIENCE: Final = 2.0  # seconds to take back a job when we are cancelled: the loop grants an action 5


def _runs(unit: Unit) -> str:
    """Say what a unit runs as."""
    if unit.ended:
        return f"it has done its work (invocation {unit.id})"
    return f"invocation {unit.id}" + (f", process {unit.main_pid}" if unit.main_pid else "")


@attrs.frozen(kw_only=True)
class Acting:
    """One unit to be acted on, in the time of one step."""

    systemctl: Systemctl
    context: ActionContext
    name: str
    settle: float
    unexplained: Run

    # -- looking -----------------------------------------------------------------------------------------------------

    async def meant(self) -> Unit:
        """Return the unit. Raises `ActionFailed` when there is none (S30), or another incarnation than expected."""
        unit = await self._look()
        if unit.load == "not-found" and not unit.runs:
            raise ActionFailed(f"there is no unit {self.name}; install it, or correct the name")
        expected = self.context.expected
        if expected is not None and expected.run is not Run.UNKNOWN and expected.id != unit.id:
            raise ActionFailed(f"{unit.id} runs by now, not {expected.id} whose failure was seen; left alone")
        return unit

    async def _look(self) -> Unit:
        return await self.systemctl.show(self.context, self.name)

    # -- the verbs ---------------------------------------------------------------------------------------------------

    async def restart(self) -> str:
        """Restart it, or start it if it has ended, see it run, and say what runs now.

        Raises `ActionFailed` when that is not ours to do, or did not work.
        """
        unit = await self.meant()
        await self._refuse(unit)
        lifted = await self._lift_start_limit(unit)
        await self._carry_out("restart")
        now = await self._seen_running("restart", unit)
        verb = "restarted" if unit.runs else "started"
        before = f", which {how_it_ended(unit)}" if unit.ended and unit.invocation else ""
        return f"{verb} {self.name}{before}: {_runs(now)}{_LIFTED if lifted else ''}"

    async def start(self) -> str:
        """Start it, see it run, and say what runs now; one that runs is left alone.

        Raises `ActionFailed` when it does not run.
        """
        unit = await self.meant()
        if unit.runs:
            if unit.said.get("FreezerState") == "frozen":
                raise ActionFailed(f"{self.name} is frozen: systemctl thaw {self.name} lets it go on")
            return f"{self.name} ran already: {_runs(unit)}"
        self._refuse_unstartable(unit)
        await self._refuse_job(unit)
        lifted = await self._lift_start_limit(unit)
        await self._carry_out("start")
        return f"started {self.name}: {_runs(await self._seen_running('start', unit))}{_LIFTED if lifted else ''}"

    async def stop(self) -> str:
        """Stop it, as a person's wish; one that has ended stays so. Raises `ActionFailed` when it still runs."""
        unit = await self.meant()
        if unit.ended and not unit.job:
            return f"{self.name} had ended already"
        if unit.said.get("CanStop") == "no":
            raise ActionFailed(f"{self.name} may not be stopped by hand (RefuseManualStop=yes in its file)")
        after = await self._carry_out("stop")
        if not after.ended:
            raise ActionFailed(f"{self.name} still runs ({after.active}), though systemd was asked to stop it")
        return f"stopped {self.name}"

    # -- what is refused ---------------------------------------------------------------------------------------------

    async def _refuse(self, unit: Unit) -> None:
        """Raise `ActionFailed` for a unit that is not ours to restart now."""
        run, detail = stands(unit, self.unexplained)
        if unit.healed_by_systemd or unit.active == "activating":
            raise ActionFailed(f"{self.name} is left alone: {detail}")
        await self._refuse_job(unit)
        if run is Run.STOPPED:
            raise ActionFailed(f"{self.name} is left alone: {detail}")
        self._refuse_unstartable(unit)
        if unit.runs and unit.said.get("CanStop") == "no":
            raise ActionFailed(f"{self.name} may not be stopped by hand (RefuseManualStop=yes in its file)")

    async def _refuse_job(self, unit: Unit) -> None:
        if unit.job:
            found = await self.systemctl.job(self.context, unit.job)
            kind = found[0] if found is not None else "recent"
            raise ActionFailed(f"{self.name} is left alone: a {kind} job of it is under way (job {unit.job})")

    def _refuse_unstartable(self, unit: Unit) -> None:
        if unit.load != "loaded":
            reason = unit.said.get("LoadError", "") or "systemctl unmask, or mend its file"
            raise ActionFailed(f"{self.name} cannot be started: its unit is {unit.load} ({reason[:300]})")
        if unit.said.get("CanStart") == "no":
            raise ActionFailed(f"{self.name} may not be started by hand (RefuseManualStart=yes in its file)")

    # -- how ---------------------------------------------------------------------------------------------------------

    async def _lift_start_limit(self, unit: Unit) -> bool:
        """Have systemd forget the starts it counts, wherever the next one might be refused; return whether it was.

        A restart at the limit *stops* what runs and then refuses to start it. systemd does not show its count, but
        what has not changed for the whole interval was not started in it.
        """
        interval = timespan(unit.said.get("StartLimitIntervalUSec", ""))
        if not interval or unit.said.get("StartLimitBurst") == "0":
            return False
        quiet = time.monotonic() - unit.changed / 1e6
        if unit.result == "start-limit-hit" or (unit.changed and quiet <= interval):
            await self._may("reset-failed", self.systemctl.act(self.context, "reset-failed", self.name))
            return unit.result == "start-limit-hit"
        return False

    async def _may(self, verb: str, work: Awaitable[T]) -> T:
        try:
            return await work
        except Denied as problem:
            raise ActionFailed(f"{problem}; {permission.advice(self.systemctl.manager, self.name, verb)}") from None

    async def _carry_out(self, verb: str) -> Unit:
        """Queue the job and return the unit once it is over, whatever came of it."""
        try:
            await self._may(verb, self.systemctl.enqueue(self.context, verb, self.name))
            return await self._until_over(verb)
        except (asyncio.CancelledError, TimeoutError):
            await proc.uninterrupted(self._withdraw(verb))
            raise

    async def _until_over(self, verb: str) -> Unit:
        pause = _POLL[0]
        job = 0
        while True:
            unit = await self._look()
            job = job or unit.job
            if not unit.job or unit.job != job:
                return unit
            if self.context.remaining < _RESERVE + pause:
                left = await self._withdraw(verb)
                raise ActionFailed(f"{self.name}: its {verb} is not over in the time of this step: {left}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _POLL[1])

    async def _withdraw(self, verb: str) -> str:
        """Take back our job if systemd has not begun with it; return what became of it.

        One that has begun is left to systemd: taking a restart back between its two halves would leave the unit
        down, and nobody could tell that from a stop by a person. Until it is over the unit counts as starting.
        """
        context = _Brief(self.context, time.monotonic() + _PATIENCE)
        try:
            job = (await self.systemctl.show(context, self.name)).job
            found = await self.systemctl.job(context, job) if job else None
            if found is None:
                return "its job is over by now"
            kind, state = found
            # There was no job of it before, so this is ours; a restart of what is down is queued as a start.
            if state != "waiting" or kind not in (verb, "start"):
                return f"systemd goes on with it (its {kind} job {job} is {state})"
            await self.systemctl.cancel(context, job)
        except (OSError, ActionFailed) as problem:
            return f"and systemd could not be asked what it does ({problem})"
        return f"it waited for other units, and was taken back (job {job})"

    async def _seen_running(self, verb: str, before: Unit) -> Unit:
        """Look at a unit that was just started until it has settled, or has ended after all; return the last look."""
        left = max(0.0, self.context.remaining - _RESERVE)
        settled = time.monotonic() + min(self.settle, left)
        first: Unit | None = None
        while True:
            now = await self._look()
            first = first or now
            await self._refuse_failed_start(verb, before, first, now)
            if now.ended or time.monotonic() >= settled:
                return now
            await asyncio.sleep(_POLL[1] if self.settle > 1.0 else _POLL[1] / 3)

    async def _refuse_failed_start(self, verb: str, before: Unit, first: Unit, now: Unit) -> None:
        """Raise `ActionFailed` if what was started does not run: systemd itself may call that well done."""
        if now.once and now.succeeded and now.id != before.id:
            return
        if now.healed_by_systemd or now.restarts > first.restarts:
            raise ActionFailed(
                f"{self.name} was started and {how_it_ended(now)} at once, and systemd starts it over and over "
                f"(Restart={now.said.get('Restart')})"
            )
        if now.id == before.id:
            raise ActionFailed(f"{self.name} was not started: {await self._why_not(now)}")
        if now.ended or now.active == "deactivating":
            raise ActionFailed(f"{self.name} was started and does not run: it {how_it_ended(now)}")

    async def _why_not(self, now: Unit) -> str:
        if now.result == "start-limit-hit":
            return "it was started too often (start-limit-hit), and its failures could not be forgotten"
        if now.unmet:
            return "a condition in its file was not met"
        if now.runs:
            return f"systemd said that it was, yet it is still {now.id}"
        down = await self._needed_and_down(now)
        return f"its job ended without it; {down or 'another job came in between, or a unit it needs did not start'}"

    async def _needed_and_down(self, now: Unit) -> str:
        down = []
        for name in now.said.get("Requires", "").split()[:20]:
            needed = await self.systemctl.show(self.context, name)
            if needed.ended:
                down.append(f"{name} ({needed.load if needed.load != 'loaded' else needed.active})")
        return f"what it needs does not run: {', '.join(down)}" if down else ""


@attrs.define
class _Brief:
    """A context for what has to be done when the time of the real one is over."""

    context: Context
    end: float

    @property
    def service(self) -> str:
        return self.context.service

    @property
    def remaining(self) -> float:
        return max(0.0, self.end - time.monotonic())

    @property
    def kept(self) -> MutableMapping[str, Any]:
        return self.context.kept

    async def blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        return await self.context.blocking(function, *args)
