"""What every plugin must do, as test classes to inherit: each duty is one test, and fails under its own name.

    class TestMyCheck(CheckConformance):
        def make(self):
            return MyCheck(address=SERVER)

        def make_broken(self, fault, address):
            return MyCheck(address=address)

The classes need no test runner in particular: methods called `test_...` that raise `AssertionError`. Each runs your
plugin where selfheal runs it, on the plugin loop, under an asyncio host and (where trio is installed) a trio host.
"""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from math import isfinite
from typing import Any, ClassVar, Final

import attrs

from selfheal.core.model import (
    CheckResult,
    Effect,
    Instance,
    Notification,
    Phase,
    Run,
    Settled,
    Severity,
    Verdict,
)
from selfheal.errors import ActionFailed, NotificationFailed
from selfheal.plugins import Action, HealthCheck, Notifier, Watching, Workload
from selfheal.shell.contexts import Act
from selfheal.shell.plugin_thread import ACTION_GRACE, Ending, Kind, Outcome
from selfheal.shell.results import DETAILS_LIMIT, SUMMARY_LIMIT
from selfheal.testing.duties import RemoteDuties, fail
from selfheal.testing.stage import SERVICE, Stage, children, on_every_host, verdict_of
from selfheal.wire import WireCheck

MEMORY_LIMIT: Final = 16 * 2**20
"""Bytes a check may hold while a peer never stops talking."""

TEXT_LIMIT: Final = 2000
"""Characters an author's own text may have; the runner keeps the first `results.SUMMARY_LIMIT`."""


class CheckConformance(RemoteDuties):
    """The duties of a health check, by `check` or by `talk`."""

    def make(self) -> HealthCheck | WireCheck:
        check: HealthCheck | WireCheck = super().make()
        return check

    def make_broken(self, fault: str, address: str) -> HealthCheck | WireCheck | None:
        check: HealthCheck | WireCheck | None = super().make_broken(fault, address)
        return check

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        return stage.make_check(plugin, timeout), "check"

    def test_passes_when_all_is_well(self) -> None:
        async def body(stage: Stage) -> None:
            result = verdict_of(await self._run(stage, self.make(), self.timeout))
            if result.verdict is not Verdict.PASSING:
                fail(f"all is well, and it says {result}")

        on_every_host(body)

    def test_never_passes_on_error(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, timeout in self._broken(self.faults):
                result = verdict_of(await self._run(stage, plugin, timeout))
                if result.verdict in (Verdict.PASSING, Verdict.WARNING):
                    fail(f"says {result.verdict} though its peer is broken ({fault!r})")

        on_every_host(body)

    def test_names_a_cause_when_failing(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, timeout in self._broken(self.faults):
                value = (await self._run(stage, plugin, timeout)).value
                if isinstance(value, CheckResult) and value.verdict is Verdict.FAILING and value.cause is None:
                    fail(f"is failing without a cause ({fault!r}): which step would help?")

        on_every_host(body)

    def test_bounds_its_output(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                tracemalloc.start()
                try:
                    outcome = await self._run(stage, plugin, timeout)
                    held = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                if held > MEMORY_LIMIT:
                    fail(f"held {held // 2**20} MiB in the situation {name!r}: read at most so many bytes")
                if size := _too_long(outcome):
                    fail(f"says too much in the situation {name!r}: {size}")

        on_every_host(body)

    def test_works_twice_at_once(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            make, kind = self._call(stage, plugin, self.timeout)

            async def both() -> list[object]:
                return list(await asyncio.gather(make(), make()))

            outcome = await stage.loops.run(SERVICE, both, timeout=2 * self.timeout, kind=kind)
            results = outcome.value if isinstance(outcome.value, list) else [outcome.error or outcome.ending]
            for result in results:
                if not isinstance(result, CheckResult) or result.verdict is not Verdict.PASSING:
                    fail(f"passes alone, but of two at once one says {result!r}")

        on_every_host(body)

    def test_can_be_written_as_json(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                value = (await self._run(stage, plugin, timeout)).value
                if isinstance(value, CheckResult):
                    _as_json(name, value)

        on_every_host(body)

    def test_names_its_instance_steadily(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            seen: list[object] = []
            for _ in range(2):
                value = (await self._run(stage, plugin, self.timeout)).value
                seen.append(value.instance if isinstance(value, CheckResult) else None)
            if any(instance is not None and not (isinstance(instance, str) and instance) for instance in seen):
                fail(f"names an instance that is no text: {seen[0]!r}")
            if seen[0] != seen[1]:
                fail(f"names another instance each time, though none was restarted: {seen[0]!r}, {seen[1]!r}")

        on_every_host(body)


def _too_long(outcome: Outcome) -> str:
    value = outcome.value
    if outcome.error is not None and len(str(outcome.error)) > TEXT_LIMIT:
        return f"an exception of {len(str(outcome.error))} characters"
    if isinstance(value, CheckResult):
        if len(value.summary) > TEXT_LIMIT:
            return f"a summary of {len(value.summary)} characters ({SUMMARY_LIMIT} are kept)"
        if len(value.details) > DETAILS_LIMIT:
            return f"{len(value.details)} details ({DETAILS_LIMIT} are kept)"
        if any(isinstance(text, str) and len(text) > TEXT_LIMIT for text in value.details.values()):
            return f"a detail of more than {TEXT_LIMIT} characters ({SUMMARY_LIMIT} are kept)"
    return ""


def _as_json(name: str, value: CheckResult | Instance) -> None:
    try:
        json.dumps(attrs.asdict(value), allow_nan=False)
    except (TypeError, ValueError) as problem:
        fail(f"cannot be written as JSON in the situation {name!r}: {problem}")


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

    async def _restart(self, stage: Stage, plugin: Workload, expected: Instance) -> None:
        def make() -> Awaitable[object]:
            intent = Act(key="1/conformance/1/0", incident=1, expected=expected, workload=plugin)
            return plugin.restart(stage.contexts.for_action(SERVICE, plugin, self.restart_timeout, intent))

        outcome = await stage.loops.run(SERVICE, make, timeout=self.restart_timeout, kind="action")
        if outcome.ending is not Ending.VALUE:
            fail(f"could not be restarted: {outcome.error or outcome.ending}")

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
                _as_json("well", instance)
            if len({instance.id for instance in seen}) != 1:
                fail(f"one incarnation, several ids: {sorted({instance.id for instance in seen})}")

        on_every_host(body)

    def test_a_restart_is_a_new_instance(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            before = await self._inspect(stage, plugin)
            await self._restart(stage, plugin, before)
            if (after := await self._inspect(stage, plugin)).id == before.id:
                fail(f"after a restart the id is still {after.id!r}: an action could hit the wrong incarnation")

        on_every_host(body)

    def test_what_is_absent_does_not_run(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make_absent()
            if plugin is None:
                return
            value = (await self._run(stage, plugin, self.timeout)).value
            if isinstance(value, Instance) and value.run in (Run.RUNNING, Run.STARTING, Run.STOPPED):
                fail(f"it does not exist, and inspect says {value.run}")

        on_every_host(body)

    def test_never_runs_when_nobody_knows(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, timeout in self._broken(self.faults):
                value = (await self._run(stage, plugin, timeout)).value
                if isinstance(value, Instance) and value.run is not Run.UNKNOWN:
                    fail(f"says {value.run} though its manager is broken ({fault!r}); raise, or say unknown")

        on_every_host(body)

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

        on_every_host(body)


class ActionConformance(RemoteDuties):
    """The duties of an action."""

    check: ClassVar[HealthCheck | None] = None
    workload: ClassVar[Workload | None] = None
    arguments: ClassVar[dict[str, Any]] = {}

    timeout: ClassVar[float] = 30.0
    runs: ClassVar[int] = 5

    def make(self) -> Action:
        action: Action = super().make()
        return action

    def make_broken(self, fault: str, address: str) -> Action | None:
        """Return the action, asking a broken peer at `address`; None: it asks nobody by an address."""
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

    def _act(self, key: str = "1/conformance/1/0") -> Act:
        return Act(key=key, incident=1, check=self.check, workload=self.workload, arguments=self.arguments)

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        return lambda: plugin.run(stage.contexts.for_action(SERVICE, plugin, timeout, self._act())), "action"

    async def _probe(self, stage: Stage, plugin: Action, key: str) -> object:
        outcome = await stage.run(
            lambda: plugin.probe(stage.contexts.for_action(SERVICE, plugin, 5.0, self._act(key))), 5.0
        )
        if outcome.ending is not Ending.VALUE or not (outcome.value is None or isinstance(outcome.value, Settled)):
            fail(f"probe: {outcome.ending}, {outcome.error or outcome.value!r}; return a Settled or None")
        return outcome.value

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
            if left := children() - before:
                fail(f"returned while what it started still runs: processes {sorted(left)}")

        on_every_host(body)

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

        on_every_host(body)

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

        on_every_host(body)

    def test_probe_answers(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            if await self._probe(stage, plugin, "9/conformance/9/9") is Settled.DONE:
                fail("probe says done of a key that was never run")
            await self._run(stage, plugin, self.timeout)
            said = await self._probe(stage, plugin, self._act().key)
            if said in (Settled.NOT_STARTED, Settled.FAILED, Settled.INTERRUPTED):
                fail(f"it was done, and probe says {said}")

        on_every_host(body)

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

        on_every_host(body)


NOTIFICATION: Final = Notification(
    id="conformance-1",
    incident=1,
    service="redis",
    phase=Phase.FIRING,
    severity=Severity.HIGH,
    title="redis is down",
    text='Several lines,\n"quotes", <tags> & more: ☃',
    since=1.7e9,
    correlation="c-1",
    link="https://example.org/incidents/1",
)


class NotifierConformance(RemoteDuties):
    """The duties of a notifier. `make` returns one whose receiver is well."""

    def make(self) -> Notifier:
        notifier: Notifier = super().make()
        return notifier

    def make_broken(self, fault: str, address: str) -> Notifier | None:
        notifier: Notifier | None = super().make_broken(fault, address)
        return notifier

    def make_refusing(self) -> Notifier | None:
        """Return a notifier whose receiver refuses what it is sent; None: cannot be made."""
        return None

    def _offered(self) -> dict[str, bool]:
        return super()._offered() | {"make_refusing": self.make_refusing() is not None}

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        return lambda: plugin.send(NOTIFICATION, stage.contexts.plain(SERVICE, plugin, timeout)), "other"

    def test_delivers_and_returns_a_receipt_or_none(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            for _ in range(2):  # at least once: the same id may come again
                outcome = await self._run(stage, plugin, self.timeout)
                if outcome.ending is not Ending.VALUE:
                    fail(f"all is well, and it ended with {outcome.error or outcome.ending}")
                if not (outcome.value is None or isinstance(outcome.value, str)):
                    fail(f"a receipt is a text or None, not {outcome.value!r}")

        on_every_host(body)

    def test_raises_when_it_was_not_delivered(self) -> None:
        async def body(stage: Stage) -> None:
            refusing = self.make_refusing()
            situations = [] if refusing is None else [("refusing", await self._run(stage, refusing, self.timeout))]
            for fault, plugin, timeout in self._unanswered():
                situations.append((fault, await self._run(stage, plugin, timeout)))
            for name, outcome in situations:
                if outcome.ending is Ending.VALUE:
                    fail(f"says it delivered, in the situation {name!r}")
                if outcome.error is not None and not isinstance(outcome.error, NotificationFailed):
                    fail(f"raised {outcome.error!r} in the situation {name!r}; raise NotificationFailed")

        on_every_host(body)
