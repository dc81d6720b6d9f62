"""What all plugins must do, and how a duty is looked at: on the plugin loop, from every host, nothing passed over.

The classes of `conformance` inherit from those here. A duty that cannot be looked at, because the author has made no
plugin for it, is not silently done: it is named in `inapplicable` with the reason, or it fails.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import attrs

from selfheal.core.model import CheckResult, Instance
from selfheal.errors import Problem
from selfheal.plugins import Context, Proving
from selfheal.shell.plugin_thread import Ending, Kind, Outcome
from selfheal.shell.results import secret_forms
from selfheal.testing import servers
from selfheal.testing.stage import FAULTS, HANGING, SERVICE, Stage, children, on_every_host

SLACK: Final = 0.1
"""Seconds by which a deadline may be missed."""

LONGEST_STEP: Final = 0.05
"""Seconds that a plugin may stand on its loop."""

TRIES: Final = 3
"""A duty about time is broken when so many tries in a row broke it: the machine may have been busy once."""


def fail(duty: str) -> None:
    """Say which duty was not done. Raises `AssertionError`."""
    raise AssertionError(duty)


def as_json(name: str, value: CheckResult | Instance) -> None:
    """See that what a plugin says can be stored. Raises `AssertionError`."""
    try:
        json.dumps(attrs.asdict(value), allow_nan=False)
    except (TypeError, ValueError) as problem:
        fail(f"cannot be written as JSON in the situation {name!r}: {problem}")


class Duties:
    """The duties that the four kinds of plugin have in common."""

    timeout: ClassVar[float] = 1.0
    """Seconds a call may take when all is well."""

    runs: ClassVar[int] = 50
    """How often it is run to see what it leaves behind."""

    patience: ClassVar[float] = 10.0
    """Seconds after which what is still open after a run has been left behind. A busy machine closes late; what is
    closed at all is gone long before."""

    secret: ClassVar[str] = ""
    """A secret that `make` uses, if it is not a field of type `Secret`."""

    inapplicable: ClassVar[Mapping[str, str]] = {}
    """What has no meaning for this plugin (a fault, a `make_...`, `observe`, `watch`, `secret`), each with the reason.

    What is neither made nor named here fails `test_passes_over_nothing_in_silence`; so does what is both.
    """

    refusal_is_proven: ClassVar[bool] = True
    """Whether its `doctor`, if it has one, must find out that its peer refuses; False where it asks no peer."""

    def make(self) -> Any:
        """Return the plugin, with everything well around it."""
        raise NotImplementedError("make: return your plugin, configured for a server that is well")

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        raise NotImplementedError

    async def _run(self, stage: Stage, plugin: Any, timeout: float) -> Outcome:
        make, kind = self._call(stage, plugin, timeout)
        return await stage.loops.run(SERVICE, make, timeout=timeout, kind=kind)

    def _hosted(self, body: Callable[[Stage], Awaitable[None]]) -> None:
        """Look at a duty from every host."""
        on_every_host(body)

    def _context(self, stage: Stage, plugin: Any, timeout: float) -> Context:
        """Return what `doctor` is given."""
        return stage.contexts.plain(SERVICE, plugin, timeout)

    def _secrets(self, plugin: Any) -> list[str]:
        """Return what must not be shown."""
        return secret_forms(plugin, self.secret)

    async def _seen(self, stage: Stage, plugin: Any) -> object:
        """Return what would show that something was done, when all is well."""
        return None

    def _situations(self, only: str | None = None) -> Iterator[tuple[str, Any, float]]:
        """Yield a name, a plugin and its deadline for every situation the author can make, or for one of them."""
        if only in (None, "well"):
            yield "well", self.make(), self.timeout

    def _offered(self) -> dict[str, bool]:
        """Return what some duty needs beyond `make`, each with whether the author gives it."""
        plugin = self.make()
        secret = any("Secret" in str(field.type) for field in attrs.fields(type(plugin)))
        return {"secret": bool(self._secrets(plugin))} if secret else {}

    def test_passes_over_nothing_in_silence(self) -> None:
        offered = self._offered()
        passed_over = sorted(name for name, given in offered.items() if not given and not self.inapplicable.get(name))
        if passed_over:
            fail(
                f"some duties are not looked at for want of {', '.join(passed_over)}: make what they need, "
                "or say in `inapplicable` why it has no meaning for this plugin"
            )
        if stale := sorted(name for name in self.inapplicable if offered.get(name, True)):
            fail(
                f"`inapplicable` names {', '.join(stale)}, which is made or not asked for: nothing excuses it any more"
            )

    def test_is_frozen_and_has_a_kind(self) -> None:
        plugin = self.make()
        if not attrs.has(type(plugin)):
            fail(f"{type(plugin).__name__} is no attrs class: its fields are the configuration schema")
        for field in attrs.fields(type(plugin))[:1]:
            try:
                setattr(plugin, field.name, getattr(plugin, field.name))
            except attrs.exceptions.FrozenInstanceError:
                continue
            fail(f"{type(plugin).__name__} can be changed: use @attrs.frozen")
        kind = getattr(type(plugin), "kind", None)
        if not isinstance(kind, str) or not kind:
            fail(f'{type(plugin).__name__} has no `kind: ClassVar[str] = "..."`')

    def test_does_not_block_the_loop(self) -> None:
        async def body(stage: Stage) -> None:
            plugin = self.make()
            await self._run(stage, plugin, self.timeout + 5.0)  # drivers are imported at the first call
            gaps: list[float] = []
            while len(gaps) < TRIES and (not gaps or min(gaps) > LONGEST_STEP):
                make, kind = self._call(stage, plugin, self.timeout)
                gaps.append(await stage.longest_gap(make, self.timeout, kind))
            if min(gaps) > LONGEST_STEP:
                fail(f"stood on its loop for {min(gaps) * 1e3:.0f} ms at a time; {LONGEST_STEP * 1e3:.0f} are allowed")

        self._hosted(body)

    def test_keeps_its_secrets(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                outcome = await self._run(stage, plugin, timeout)
                shown = [repr(plugin), str(plugin), repr(outcome.value), str(outcome.value)]
                if outcome.error is not None:
                    shown += ["".join(traceback.format_exception(outcome.error)), repr(outcome.error.args)]
                for form in self._secrets(plugin):
                    if any(form in text for text in shown):
                        fail(f"shows a secret in the situation {name!r}")

        self._hosted(body)

    def test_leaves_nothing_behind(self) -> None:
        async def body(stage: Stage) -> None:
            for name in [name for name, _, _ in self._situations()]:
                for _, plugin, timeout in self._situations(name):
                    for _ in range(3):  # drivers are imported, and pools filled, at the first calls
                        await self._run(stage, plugin, min(timeout, 0.1) if name in FAULTS else timeout)
                before = await stage.open_now()  # the peer is in this process too: it is counted without
                for _, plugin, timeout in self._situations(name):
                    for _ in range(self.runs):
                        await self._run(stage, plugin, min(timeout, 0.02) if name in FAULTS else timeout)
                if more := (await stage.settled(before, self.patience)).more_than(before):
                    fail(f"{self.runs} runs in the situation {name!r} left behind: {more}")

        self._hosted(body)

    def test_proves_without_acting(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                if isinstance(plugin, Proving):
                    await self._proves(stage, name, plugin, timeout)

        self._hosted(body)

    async def _proves(self, stage: Stage, name: str, plugin: Any, timeout: float) -> None:
        """Look at its `doctor` in one situation: what it may do, and what it must not."""
        before = (children(), await self._seen(stage, plugin) if name == "well" else None)
        outcome = await stage.run(lambda: plugin.doctor(self._context(stage, plugin, timeout)), timeout)
        where = f"doctor, in the situation {name!r}"
        if named := stage.named("blocked", "ignored_cancellation"):
            fail(f"{where}: does not end when its deadline has passed: {named[0]}")
        if outcome.ending is Ending.EXCEPTION:
            fail(f"{where}: raised {outcome.error!r}; return a Problem that says what to do")
        after = (children(), await self._seen(stage, plugin) if name == "well" else None)
        if after != before:
            fail(f"{where}: did something, where it should only have proven: {before!r} became {after!r}")
        if outcome.ending is not Ending.VALUE:
            return  # its deadline has cut it short, and it has obeyed
        said = [one for one in outcome.value if isinstance(one, Problem)] if isinstance(outcome.value, Sequence) else []
        if not isinstance(outcome.value, Sequence) or len(said) < len(outcome.value):
            fail(f"{where}: returned {outcome.value!r:.200}, where a list of Problem was due")
        for problem in said:
            if not (problem.path and problem.message and problem.hint):
                fail(f"{where}: {problem} lacks its path, its message or its hint: what is to be done?")
            if any(form in repr(problem) or form in str(problem) for form in self._secrets(plugin)):
                fail(f"{where}: shows a secret")
        if name == "well" and said:
            fail(f"{where}: complains though all is well: {said[0]}")
        if name == "refused" and not said and self.refusal_is_proven:
            fail(f"{where}: finds nothing, and there is nobody whom it could ask")


class RemoteDuties(Duties):
    """The duties of a plugin that speaks to something with an address."""

    faults: ClassVar[tuple[str, ...]] = tuple(FAULTS)
    """The faults of a peer that apply; see `stage.FAULTS`."""

    def make_broken(self, fault: str, address: str) -> Any:
        """Return the plugin, speaking to a peer with this fault at `address` (`host:port`); None: does not apply."""
        raise NotImplementedError("make_broken: return your plugin, configured for the server at `address`")

    def _offered(self) -> dict[str, bool]:
        broken = [fault for fault, _, _ in self._broken(self.faults)]
        return super()._offered() | ({fault: fault in broken for fault in FAULTS} if broken else {"make_broken": False})

    def _situations(self, only: str | None = None) -> Iterator[tuple[str, Any, float]]:
        yield from super()._situations(only)
        yield from self._broken(self.faults if only is None else (only,))

    def _broken(self, faults: tuple[str, ...]) -> Iterator[tuple[str, Any, float]]:
        for fault in faults:
            if fault in self.faults:
                with FAULTS[fault]() as address:
                    yield from self._facing(fault, address)

    def _facing(self, fault: str, address: str) -> Iterator[tuple[str, Any, float]]:
        """Yield the plugin and the time it has, speaking to a peer with this fault."""
        plugin = self.make_broken(fault, address)
        if plugin is not None:
            yield fault, plugin, min(self.timeout, 0.3)

    def _unanswered(self) -> Iterator[tuple[str, Any, float]]:
        """Yield the situations in which no answer can have come: a reset in the midst of one may have said yes."""
        yield from self._broken(("refused", "hole", "silent", "garbage", "drip"))
        with servers.reset(b"") as address:
            yield from self._facing("reset", address)

    def test_honours_its_deadline(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, _ in self._broken(HANGING):
                late: list[float] = []
                while len(late) < TRIES and (not late or min(late) > SLACK):
                    outcome = await self._run(stage, plugin, 0.3)
                    late.append(outcome.ended - outcome.started - 0.3)
                    if named := stage.named("blocked", "ignored_cancellation"):
                        fail(f"does not end when its deadline has passed ({fault!r}): {named[0]}")
                if min(late) > SLACK:
                    fail(f"ended {min(late) * 1e3:.0f} ms after its deadline ({fault!r})")

        self._hosted(body)

    def test_can_be_cancelled(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, _ in self._broken(("hole", "silent")):
                for after in (0.0, 0.001, 0.01, 0.05):
                    make, kind = self._call(stage, plugin, 5.0)
                    returned: list[object] = []

                    async def watched(make: Any = make, returned: list[object] = returned) -> object:
                        returned.append(await make())
                        return returned[0]

                    _, took = await stage.cancelled_after(after, watched, kind)
                    if returned and kind in ("action", "other"):
                        fail(f"was cancelled, and returned as if its work were done ({fault!r}): {returned[0]!r:.100}")
                    if named := stage.named("blocked", "ignored_cancellation"):
                        fail(f"does not end when it is cancelled ({fault!r}): {named[0]}")
                    if took > SLACK and kind != "action":
                        fail(f"took {took * 1e3:.0f} ms to end when it was cancelled ({fault!r})")

        self._hosted(body)
