"""What must be true of those who repair: the duties of workloads and actions, which `conformance` hands on.

Owns what may be said and done about an intent: that nothing is done to another instance than the one that failed, and
that whoever asks after a crash, or before the first outage, changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, ClassVar, Final

from selfheal.core.model import Effect, Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal.plugins import Action, Context, HealthCheck, Probing, Starting, Watching, Workload
from selfheal.shell.contexts import Act
from selfheal.shell.plugin_thread import ACTION_GRACE, Ending, Kind, Outcome
from selfheal.shell.results import secret_forms
from selfheal.testing.duties import RemoteDuties, as_json, fail
from selfheal.testing.stage import FAULTS, SERVICE, Stage, children

NEVER_RUN: Final = "9/conformance/9/9"
"""The key of an intent that nobody ever acted on."""

STRANGER: Final = Instance(id="conformance-nobody-1", run=Run.EXITED)
"""An instance that was never seen anywhere: whatever is found, it is another one."""


def is_a_sentence(said: object) -> None:
    """See that what a verb returned can stand in the history. Raises `AssertionError`."""
    if said is not None and (not isinstance(said, str) or not said.strip() or len(said.splitlines()) > 1):
        fail(f"returned {said!r:.100}; return None, or one sentence of what was done")


async def _probed(stage: Stage, where: str, plugin: Any, act: Act, timeout: float) -> object:
    """Return what `probe` says of an intent: a Settled or None; None too where its deadline has cut it short."""
    outcome = await stage.run(lambda: plugin.probe(stage.contexts.for_action(SERVICE, plugin, timeout, act)), timeout)
    if named := stage.named("blocked", "ignored_cancellation"):
        fail(f"{where}: does not end when its deadline has passed: {named[0]}")
    if outcome.ending is Ending.EXCEPTION:
        fail(f"{where}: raised {outcome.error!r}; return None when it cannot be told")
    if not (outcome.value is None or isinstance(outcome.value, Settled)):
        fail(f"{where}: said {outcome.value!r:.100}; return a Settled or None")
    return outcome.value


class WorkloadConformance(RemoteDuties):
    """The duties of a workload. `make` returns one that runs and may be restarted."""

    restart_timeout: ClassVar[float] = 30.0

    def make(self) -> Workload:
        workload: Workload = super().make()
        return workload

    def make_absent(self) -> Workload | None:
        """Return a workload that does not exist; None: cannot be made."""
        return None

    def make_broken(self, fault: str, address: str) -> Workload | None:
        """Return the workload, asking a broken manager at `address`; None: it asks nobody by an address."""
        return None

    def _offered(self) -> dict[str, bool]:
        watches = isinstance(self.make(), Watching)
        return super()._offered() | {"make_absent": self.make_absent() is not None, "watch": watches}

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        return lambda: plugin.inspect(stage.contexts.plain(SERVICE, plugin, timeout)), "inspect"

    def _context(self, stage: Stage, plugin: Any, timeout: float) -> Context:
        return stage.contexts.for_action(SERVICE, plugin, timeout, Act(key="doctor/conformance", workload=plugin))

    async def _seen(self, stage: Stage, plugin: Any) -> object:
        instance = await self._inspect(stage, plugin)
        return instance.id, instance.run, instance.count

    async def _done(
        self, stage: Stage, plugin: Workload, verb: str, expected: Instance, key: str = "1/conformance/1/0", **more: Any
    ) -> Outcome:
        """Have the workload do a verb, as a step of a ladder would."""

        def make() -> Awaitable[object]:
            intent = Act(key=key, verb=verb, incident=1, expected=expected, workload=plugin, arguments=more)
            context = stage.contexts.for_action(SERVICE, plugin, self.restart_timeout, intent)
            done: Awaitable[object] = getattr(plugin, verb)(context)
            return done

        return await stage.loops.run(SERVICE, make, timeout=self.restart_timeout, kind="action")

    async def _restart(
        self, stage: Stage, plugin: Workload, expected: Instance, key: str = "1/conformance/1/0"
    ) -> None:
        outcome = await self._done(stage, plugin, "restart", expected, key)
        if outcome.ending is not Ending.VALUE:
            fail(f"could not be restarted: {outcome.error or outcome.ending}")
        is_a_sentence(outcome.value)

    async def _inspect(self, stage: Stage, plugin: Workload) -> Instance:
        outcome = await self._run(stage, plugin, self.timeout)
        if not isinstance(outcome.value, Instance):
            said = outcome.error or outcome.value
            raise AssertionError(f"inspect: {outcome.ending}, {said!r}, where an Instance was due")
        return outcome.value

    def test_inspects_a_steady_instance(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            seen = [await self._inspect(stage, plugin) for _ in range(3)]
            for instance in seen:
                identity: object = instance.id
                if not isinstance(identity, str) or not identity:
                    fail(f"the id of an instance is a text, not {identity!r}")
                if instance.run not in (Run.RUNNING, Run.STARTING):
                    fail(f"it runs, and inspect says {instance.run!r}")
                if instance.since is not None and not (isfinite(instance.since) and 0 < instance.since < 1e11):
                    fail(f"since is UNIX time in seconds, not {instance.since!r}")
                as_json("well", instance)
            if len({instance.id for instance in seen}) != 1:
                fail(f"one incarnation, several ids: {sorted({instance.id for instance in seen})}")

        self._hosted(body)

    def test_a_restart_is_a_new_instance(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            before = await self._inspect(stage, plugin)
            await self._restart(stage, plugin, before)
            if (after := await self._inspect(stage, plugin)).id == before.id:
                fail(f"after a restart the id is still {after.id!r}: an action could hit the wrong incarnation")

        self._hosted(body)

    def test_leaves_another_instance_alone(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            for verb in ("restart", "stop") if isinstance(plugin, Starting) else ("restart",):
                before = await self._seen(stage, plugin)
                outcome = await self._done(stage, plugin, verb, STRANGER)
                if (after := await self._seen(stage, plugin)) != before:
                    fail(
                        f"{verb}: was done to {before!r}, though the failure was of {STRANGER.id}; now it is {after!r}"
                    )
                if outcome.ending is Ending.VALUE or not isinstance(outcome.error, ActionFailed | OSError):
                    how = outcome.error or outcome.ending
                    fail(f"{verb}: left another instance alone, and ended with {how!r}; raise ActionFailed")

        self._hosted(body)

    def test_probe_never_acts(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                if not isinstance(plugin, Probing):
                    continue
                where = f"probe, in the situation {name!r}"
                before = await self._seen(stage, plugin) if name == "well" else None
                for expected in (None, STRANGER):
                    act = Act(key=NEVER_RUN, verb="restart", incident=9, expected=expected)
                    said = await _probed(stage, where, plugin, act, timeout)
                    if name in FAULTS and said in (Settled.DONE, Settled.FAILED):
                        fail(f"{where}: says {said}, and there is nobody who could know; return None")
                if name == "well" and (after := await self._seen(stage, plugin)) != before:
                    fail(f"{where}: did something, where it should only have looked: {before!r} became {after!r}")

        self._hosted(body)

    def test_probe_knows_a_restart(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            if not isinstance(plugin, Probing):
                return
            before = await self._inspect(stage, plugin)
            key = f"2/conformance/{time.monotonic_ns()}/0"
            act = Act(key=key, verb="restart", incident=2, expected=before, workload=plugin)
            if await _probed(stage, "probe, before it", plugin, act, self.timeout) is Settled.DONE:
                fail("probe says done of a restart that never was: the same instance runs")
            await self._restart(stage, plugin, before, act.key)
            said = await _probed(stage, "probe, after it", plugin, act, self.timeout)
            if said not in (None, Settled.DONE):
                fail(f"it was restarted, and probe says {said}")

        self._hosted(body)

    def test_what_is_absent_does_not_run(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make_absent()
            if plugin is None:
                return
            value = (await self._run(stage, plugin, self.timeout)).value
            if isinstance(value, Instance) and value.run in (Run.RUNNING, Run.STARTING, Run.STOPPED):
                fail(f"it does not exist, and inspect says {value.run}")

        self._hosted(body)

    def test_never_runs_when_nobody_knows(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, timeout in self._broken(self.faults):
                value = (await self._run(stage, plugin, timeout)).value
                if isinstance(value, Instance) and value.run is not Run.UNKNOWN:
                    fail(f"says {value.run} though its manager is broken ({fault!r}); raise, or say unknown")

        self._hosted(body)

    def test_watch_hears_of_a_restart(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            if not isinstance(plugin, Watching):
                return
            before = await self._inspect(stage, plugin)
            heard: list[Instance] = []

            async def listen() -> None:
                async for instance in plugin.watch(stage.contexts.plain(SERVICE, plugin)):
                    heard.append(instance)
                    if instance.id != before.id and instance.run is Run.RUNNING:
                        return

            ended: list[Outcome] = []
            stage.loops.submit(SERVICE, listen, timeout=self.restart_timeout, done=ended.append, kind="other")
            await stage.loops.run(SERVICE, lambda: asyncio.sleep(0.1), timeout=1.0)
            await self._restart(stage, plugin, before)
            end = time.monotonic() + self.timeout
            while not ended and time.monotonic() < end:
                await stage.loops.run(SERVICE, lambda: asyncio.sleep(0.01), timeout=1.0)
            if not ended or ended[0].ending is not Ending.VALUE:
                fail(f"it was restarted, and watch said {heard}")

        self._hosted(body)


class ActionConformance(RemoteDuties):
    """The duties of an action.

    One that reads its address from the service's own check is made to face broken peers by `check_at`, one with an
    address of its own by `make_broken`.
    """

    check: ClassVar[HealthCheck | None] = None
    workload: ClassVar[Workload | None] = None
    arguments: ClassVar[dict[str, Any]] = {}

    timeout: ClassVar[float] = 30.0
    runs: ClassVar[int] = 5

    def make(self) -> Action:
        action: Action = super().make()
        return action

    def make_broken(self, fault: str, address: str) -> Action | None:
        """Return the action, asking a broken peer at `address`; None: it has no address of its own."""
        return None

    def check_at(self, address: str) -> HealthCheck | None:
        """Return the service's own check, of a server at `address`; None: the action does not read it there (S38)."""
        return None

    def make_slow(self) -> Action | None:
        """Return an action that takes some seconds, to be cancelled; None: there is none."""
        return None

    def make_failing(self) -> Action | None:
        """Return an action that cannot do what it is asked; None: there is none."""
        return None

    def observe(self) -> object:
        """Return what the action changes, to be compared: after a second call with one key it must be the same."""
        return None

    def _offered(self) -> dict[str, bool]:
        made = {"make_slow": self.make_slow(), "make_failing": self.make_failing(), "observe": self.observe()}
        return super()._offered() | {name: thing is not None for name, thing in made.items()}

    _beside: HealthCheck | None = None

    def _facing(self, fault: str, address: str) -> Iterator[tuple[str, Any, float]]:
        """Yield the action and who it speaks to: itself says so, or the check that stands beside it meanwhile."""
        plugin = self.make_broken(fault, address)
        if plugin is not None:
            yield fault, plugin, min(self.timeout, 0.3)
        elif (check := self.check_at(address)) is not None:
            plugin = self.make()
            with self._standing_beside(check):
                yield fault, plugin, min(self.timeout, 0.3)

    @contextmanager
    def _standing_beside(self, check: HealthCheck) -> Iterator[None]:
        self._beside = check
        try:
            yield
        finally:
            self._beside = None

    def _secrets(self, plugin: Any) -> list[str]:
        checks = [check for check in (self.check, self._beside) if check is not None]
        return super()._secrets(plugin) + [form for check in checks for form in secret_forms(check)]

    def _context(self, stage: Stage, plugin: Any, timeout: float) -> Context:
        return stage.contexts.for_action(SERVICE, plugin, timeout, self._act("doctor/conformance"))

    async def _seen(self, stage: Stage, plugin: Any) -> object:
        return self.observe()

    def _act(self, key: str = "1/conformance/1/0", expected: Instance | None = None) -> Act:
        return Act(
            key=key,
            incident=1,
            expected=expected,
            check=self._beside or self.check,
            workload=self.workload,
            arguments=self.arguments,
        )

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        return lambda: plugin.run(stage.contexts.for_action(SERVICE, plugin, timeout, self._act())), "action"

    def test_says_its_verb_and_effect(self) -> None:
        plugin = self.make()
        verb, effect = getattr(plugin, "verb", None), getattr(plugin, "effect", None)
        if not isinstance(verb, str) or not verb:
            fail("an action has a `verb`, a text: the step of a ladder it answers to")
        if not isinstance(effect, Effect):
            fail("an action has an `effect`, an `Effect`: budgets and consent depend on it")

    def test_returns_when_its_command_has_finished(self) -> None:
        async def body(stage: Stage) -> None:
            before = children()
            outcome = await self._run(stage, self.make(), self.timeout)
            if outcome.ending is not Ending.VALUE:
                fail(f"all is well, and it ended with {outcome.error or outcome.ending}")
            is_a_sentence(outcome.value)
            if left := children() - before:
                fail(f"returned while what it started still runs: processes {sorted(left)}")

        self._hosted(body)

    def test_kills_what_it_started_when_cancelled(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make_slow()
            if plugin is None:
                return
            before = children()
            make, kind = self._call(stage, plugin, self.timeout)
            outcome, took = await stage.cancelled_after(0.3, make, kind)
            if outcome.ending is Ending.VALUE:
                fail("make_slow: the action was over before it could be cancelled")
            if outcome.ending is Ending.ABANDONED or took > ACTION_GRACE:
                fail(f"did not end within {ACTION_GRACE:g} s of being cancelled")
            end = time.monotonic() + 1.0
            while (left := children() - before) and time.monotonic() < end:
                await stage.run(lambda: asyncio.sleep(0.02), 1.0)
            if left:
                fail(f"was cancelled, and what it started still runs: processes {sorted(left)}")

        self._hosted(body)

    def test_a_second_call_does_no_harm(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            await self._run(stage, plugin, self.timeout)
            once = self.observe()
            outcome = await self._run(stage, plugin, self.timeout)
            if outcome.ending is not Ending.VALUE and not isinstance(outcome.error, ActionFailed):
                fail(f"a second call with the same key ended with {outcome.error!r}")
            if (twice := self.observe()) != once:
                fail(f"a second call with the same key did it again: {once!r} became {twice!r}")

        self._hosted(body)

    def test_probe_answers(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            if await _probed(stage, "probe", plugin, self._act(NEVER_RUN), self.timeout) is Settled.DONE:
                fail("probe says done of a key that was never run")
            await self._run(stage, plugin, self.timeout)
            said = await _probed(stage, "probe", plugin, self._act(), self.timeout)
            if said in (Settled.NOT_STARTED, Settled.FAILED, Settled.INTERRUPTED):
                fail(f"it was done, and probe says {said}")

        self._hosted(body)

    def test_probe_never_acts(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                where = f"probe, in the situation {name!r}"
                before = (self.observe(), children())
                for expected in (None, STRANGER):
                    said = await _probed(stage, where, plugin, self._act(NEVER_RUN, expected), timeout)
                    if name in FAULTS and said in (Settled.DONE, Settled.FAILED):
                        fail(f"{where}: says {said}, and there is nobody who could know; return None")
                if (after := (self.observe(), children())) != before:
                    fail(f"{where}: did something, where it should only have looked: {before!r} became {after!r}")

        self._hosted(body)

    def test_leaves_another_instance_alone(self) -> None:
        async def body(stage: Stage) -> None:
            if self.workload is None:
                return  # nobody says which instance there is, and so none is expected
            plugin = self.make()
            before = self.observe()
            act = self._act("3/conformance/1/0", STRANGER)
            outcome = await stage.run(
                lambda: plugin.run(stage.contexts.for_action(SERVICE, plugin, self.timeout, act)),
                self.timeout,
                "action",
            )
            if (after := self.observe()) != before:
                fail(f"was done, though another instance had failed: {before!r} became {after!r}")
            if outcome.ending is Ending.VALUE or not isinstance(outcome.error, ActionFailed | OSError):
                how = outcome.error or outcome.ending
                fail(f"left another instance alone, and ended with {how!r}; raise ActionFailed")

        self._hosted(body)

    def test_fails_by_raising(self) -> None:
        async def body(stage: Stage) -> None:
            failing = self.make_failing()
            ended = [] if failing is None else [("failing", await self._run(stage, failing, self.timeout))]
            for fault, plugin, timeout in self._unanswered():
                ended.append((fault, await self._run(stage, plugin, timeout)))
            for name, outcome in ended:
                said = outcome.ending is Ending.VALUE or outcome.error is not None
                if said and not isinstance(outcome.error, ActionFailed | OSError):
                    how = outcome.error or outcome.ending
                    fail(f"could not do it ({name!r}), and ended with {how!r}; raise ActionFailed")

        self._hosted(body)
