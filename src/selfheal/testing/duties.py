"""What all plugins must do, and how a duty is looked at: on the plugin loop, from every host, nothing passed over.

The classes of `conformance` inherit from those here. A duty that cannot be looked at, because the author has made no
plugin for it, is not silently done: it is named in `inapplicable` with the reason, or it fails.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, ClassVar, Final

import attrs

from selfheal.shell.plugin_thread import Kind, Outcome
from selfheal.shell.results import secret_forms
from selfheal.testing import servers
from selfheal.testing.stage import FAULTS, SERVICE, Stage, on_every_host

SLACK: Final = 0.1
"""Seconds by which a deadline may be missed."""

LONGEST_STEP: Final = 0.05
"""Seconds that a plugin may stand on its loop."""

TRIES: Final = 3
"""A duty about time is broken when so many tries in a row broke it: the machine may have been busy once."""


def fail(duty: str) -> None:
    """Say which duty was not done. Raises `AssertionError`."""
    raise AssertionError(duty)


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

    def make(self) -> Any:
        """Return the plugin, with everything well around it."""
        raise NotImplementedError("make: return your plugin, configured for a server that is well")

    def _call(self, stage: Stage, plugin: Any, timeout: float) -> tuple[Callable[[], Awaitable[object]], Kind]:
        raise NotImplementedError

    async def _run(self, stage: Stage, plugin: Any, timeout: float) -> Outcome:
        make, kind = self._call(stage, plugin, timeout)
        return await stage.loops.run(SERVICE, make, timeout=timeout, kind=kind)

    def _situations(self, only: str | None = None) -> Iterator[tuple[str, Any, float]]:
        """Yield a name, a plugin and its deadline for every situation the author can make, or for one of them."""
        if only in (None, "well"):
            yield "well", self.make(), self.timeout

    def _offered(self) -> dict[str, bool]:
        """Return what some duty needs beyond `make`, each with whether the author gives it."""
        plugin = self.make()
        secret = any("Secret" in str(field.type) for field in attrs.fields(type(plugin)))
        return {"secret": bool(secret_forms(plugin, self.secret))} if secret else {}

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

        on_every_host(body)

    def test_keeps_its_secrets(self) -> None:
        async def body(stage: Stage) -> None:
            for name, plugin, timeout in self._situations():
                outcome = await self._run(stage, plugin, timeout)
                shown = [repr(plugin), str(plugin), repr(outcome.value), str(outcome.value)]
                if outcome.error is not None:
                    shown += ["".join(traceback.format_exception(outcome.error)), repr(outcome.error.args)]
                for form in secret_forms(plugin, self.secret):
                    if any(form in text for text in shown):
                        fail(f"shows a secret in the situation {name!r}")

        on_every_host(body)

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

        on_every_host(body)


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
                    plugin = self.make_broken(fault, address)
                    if plugin is not None:
                        yield fault, plugin, min(self.timeout, 0.3)

    def _unanswered(self) -> Iterator[tuple[str, Any, float]]:
        """Yield the situations in which no answer can have come: a reset in the midst of one may have said yes."""
        yield from self._broken(("refused", "silent", "garbage"))
        with servers.reset(b"") as address:
            plugin = self.make_broken("reset", address)
            if plugin is not None:
                yield "reset", plugin, min(self.timeout, 0.3)

    def test_honours_its_deadline(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, _ in self._broken(("silent", "drip", "endless")):
                late: list[float] = []
                while len(late) < TRIES and (not late or min(late) > SLACK):
                    outcome = await self._run(stage, plugin, 0.3)
                    late.append(outcome.ended - outcome.started - 0.3)
                    if named := stage.named("blocked", "ignored_cancellation"):
                        fail(f"does not end when its deadline has passed ({fault!r}): {named[0]}")
                if min(late) > SLACK:
                    fail(f"ended {min(late) * 1e3:.0f} ms after its deadline ({fault!r})")

        on_every_host(body)

    def test_can_be_cancelled(self) -> None:
        async def body(stage: Stage) -> None:
            for fault, plugin, _ in self._broken(("silent",)):
                for after in (0.0, 0.001, 0.01, 0.05):
                    make, kind = self._call(stage, plugin, 5.0)
                    _, took = await stage.cancelled_after(after, make, kind)
                    if named := stage.named("blocked", "ignored_cancellation"):
                        fail(f"does not end when it is cancelled ({fault!r}): {named[0]}")
                    if took > SLACK and kind != "action":
                        fail(f"took {took * 1e3:.0f} ms to end when it was cancelled ({fault!r})")

        on_every_host(body)
