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
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any, Final

from selfheal.core.model import CheckResult, Notification, Phase, Severity, Verdict
from selfheal.errors import NotificationFailed
from selfheal.plugins import Context, HealthCheck, Notifier
from selfheal.shell.plugin_thread import Ending, Kind, Outcome
from selfheal.shell.results import DETAILS_LIMIT, SUMMARY_LIMIT
from selfheal.testing.duties import RemoteDuties, as_json, fail
from selfheal.testing.repairing import ActionConformance, WorkloadConformance
from selfheal.testing.stage import SERVICE, Road, Stage, roads_of, verdict_of
from selfheal.wire import WireCheck

__all__ = ["ActionConformance", "CheckConformance", "NotifierConformance", "WorkloadConformance"]

MEMORY_LIMIT: Final = 16 * 2**20
"""Bytes a check may hold while a peer never stops talking."""

TEXT_LIMIT: Final = 2000
"""Characters an author's own text may have; the runner keeps the first `results.SUMMARY_LIMIT`."""


class CheckConformance(RemoteDuties):
    """The duties of a health check. One that has both a `check` and a `talk` is held to them on each of the two."""

    _road: Road | None = None

    def make(self) -> HealthCheck | WireCheck:
        check: HealthCheck | WireCheck = super().make()
        return check

    def make_broken(self, fault: str, address: str) -> HealthCheck | WireCheck | None:
        check: HealthCheck | WireCheck | None = super().make_broken(fault, address)
        return check

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        return stage.make_check(plugin, timeout, self._road), "check"

    def _context(self, stage: Stage, plugin: Any, timeout: float) -> Context:
        deep = self._road == "check" and len(roads_of(plugin)) > 1
        return stage.contexts.for_check(SERVICE, plugin, timeout, deep=deep)

    def _hosted(self, body: Callable[[Stage], Awaitable[None]]) -> None:
        """Look at a duty on each road that the check has, and say on which one it was broken."""
        roads = roads_of(self.make())
        for road in roads:
            self._road = road
            try:
                super()._hosted(body)
            except AssertionError as broken:
                if len(roads) == 1:
                    raise
                raise AssertionError(f"by its `{road}`: {broken}") from broken
            finally:
                self._road = None

    def test_passes_when_all_is_well(self) -> None:
        async def body(stage: Stage) -> None:
            result = verdict_of(await self._run(stage, self.make(), self.timeout))
            if result.verdict is not Verdict.PASSING:
                fail(f"all is well, and it says {result}")

        self._hosted(body)

    def test_never_passes_on_error(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, timeout in self._broken(self.faults):
                result = verdict_of(await self._run(stage, plugin, timeout))
                if result.verdict in (Verdict.PASSING, Verdict.WARNING):
                    fail(f"says {result.verdict} though its peer is broken ({fault!r})")

        self._hosted(body)

    def test_names_a_cause_when_failing(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, timeout in self._broken(self.faults):
                value = (await self._run(stage, plugin, timeout)).value
                if isinstance(value, CheckResult) and value.verdict is Verdict.FAILING and value.cause is None:
                    fail(f"is failing without a cause ({fault!r}): which step would help?")

        self._hosted(body)

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

        self._hosted(body)

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

        self._hosted(body)

    def test_can_be_written_as_json(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                value = (await self._run(stage, plugin, timeout)).value
                if isinstance(value, CheckResult):
                    as_json(name, value)

        self._hosted(body)

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

        self._hosted(body)


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

        self._hosted(body)

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

        self._hosted(body)
