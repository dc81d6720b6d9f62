"""The interfaces of plugins; they are loaded by `loading`.

What an author may rely on stands in `docs/reference/plugins.md`, and each sentence of it is a conformance test in
`selfheal.testing`. Classes are frozen attrs with `kind: ClassVar[str]`; their fields *are* the configuration schema.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from selfheal.core.model import Cause, CheckResult, Effect, Instance, Notification, Settled
from selfheal.errors import Problem

T = TypeVar("T")


class Context(Protocol):
    """What every plugin call is given."""

    @property
    def service(self) -> str:
        """The name of the service (or notifier) this is for."""

    @property
    def remaining(self) -> float:
        """Seconds left of the total deadline, which is enforced by us; never negative."""

    @property
    def kept(self) -> MutableMapping[str, Any]:
        """Where to keep connections between calls.

        It belongs to the service, the plugin object and the loop it runs on. Values with `aclose()` or `close()` are
        closed on that loop at reload and stop.
        """

    async def blocking(self, function: Callable[..., T], /, *args: Any) -> T:
        """Run a synchronous function in this service's one thread and return its value.

        While an earlier call is still stuck the check is FAILING with cause `timeout` and no thread is added.
        """


class CheckContext(Context, Protocol):
    """What a check is given."""

    @property
    def deep(self) -> bool:
        """Whether the service asks for the thorough check."""

    @property
    def previous(self) -> CheckResult | None:
        """The result of the last check of this service in this run."""

    @property
    def workload(self) -> Workload | None:
        """The service's own workload, for a check that asks it who runs."""


class ActionContext(Context, Protocol):
    """What an action, and the workload under it, is given."""

    @property
    def key(self) -> str:
        """The intent: an idempotency key, the same when we ask later whether it happened."""

    @property
    def verb(self) -> str:
        """The step of the ladder it serves: `restart`, `scale_up`, …"""

    @property
    def incident(self) -> int: ...

    @property
    def attempt(self) -> int: ...

    @property
    def cause(self) -> Cause | None: ...

    @property
    def expected(self) -> Instance | None:
        """The instance whose failure was observed; acting on another is a fault."""

    @property
    def check(self) -> HealthCheck | None:
        """The service's own check object, for the address in it (S38)."""

    @property
    def workload(self) -> Workload | None: ...

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the step of the ladder adds, e.g. `to` for `scale_up`."""


@runtime_checkable
class HealthCheck(Protocol):
    """Says how a service is."""

    kind: ClassVar[str]

    async def check(self, context: CheckContext) -> CheckResult:
        """Return a result; raise `OSError` freely (one table translates it). Anything else raised is INCONCLUSIVE."""


@runtime_checkable
class Workload(Protocol):
    """What runs the service: a container, a unit, a process.

    What a verb returns is what was done, in a sentence for the history (`3 instances run, 1 was started`); None says no
    more than that it was done.
    """

    kind: ClassVar[str]

    async def inspect(self, context: Context) -> Instance:
        """Return who runs now, since when (UNIX time), and how it stands."""

    async def restart(self, context: ActionContext) -> str | None:
        """Restart it; return when the command has finished. Raise `ActionFailed` when it could not be done."""


@runtime_checkable
class Starting(Protocol):
    """A workload that can be started and stopped."""

    async def start(self, context: ActionContext) -> str | None: ...

    async def stop(self, context: ActionContext) -> str | None: ...


@runtime_checkable
class Scaling(Protocol):
    """A workload that can be scaled: upwards only, to `arguments["to"]`."""

    async def scale_up(self, context: ActionContext) -> str | None: ...


@runtime_checkable
class FailingOver(Protocol):
    """A workload that can hand its role to a standby, after the old one is fenced or proven down."""

    async def failover(self, context: ActionContext) -> str | None: ...


@runtime_checkable
class Probing(Protocol):
    """A workload that can say after a crash whether an action took effect."""

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return what became of `context.key`, or None when it cannot be told."""


@runtime_checkable
class Watching(Protocol):
    """A workload whose end can be heard in milliseconds; polling confirms."""

    def watch(self, context: Context) -> AsyncIterator[Instance]:
        """Yield the instance whenever it changes."""


@runtime_checkable
class Offering(Protocol):
    """A workload whose options decide which verbs it can do: what it has a method for is not all of it."""

    def verbs(self) -> frozenset[str]:
        """Return the verbs it can do."""


@runtime_checkable
class Hosting(Protocol):
    """A workload whose program selfheal itself runs: a child, and not somebody else's unit or container."""

    @property
    def autostart(self) -> bool:
        """Whether it is started when it is found absent at the start of selfheal."""

    @property
    def stop_timeout(self) -> float:
        """Seconds it may take to end."""

    async def start(self, context: ActionContext) -> str | None: ...

    async def release(self, context: Context, *, stopping: bool) -> None:
        """Let go of the program: at a clean stop of selfheal (`stopping`), or at a reload that drops the service."""


@runtime_checkable
class Proving(Protocol):
    """A check, workload or action that can prove beforehand, without acting, that it may do what it is for."""

    async def doctor(self, context: Context) -> Sequence[Problem]:
        """Return what would stand in the way, each with its exact remedy.

        A check is given a `CheckContext`, a workload and an action an `ActionContext`.
        """


@runtime_checkable
class Action(Protocol):
    """A cure by its own name, found as `<check kind>.<verb>`."""

    kind: ClassVar[str]

    @property
    def verb(self) -> str:
        """The step it answers to; a class attribute, or a field where people choose."""

    @property
    def effect(self) -> Effect:
        """How much it disturbs."""

    async def run(self, context: ActionContext) -> str | None:
        """Do it; return when the command has finished; kill what you started when cancelled.

        What is returned is what was done, in a sentence for the history (`removed 312 keys`); None says no more than
        that it was done.
        """

    async def probe(self, context: ActionContext) -> Settled | None:
        """After a crash: did it happen? None when it cannot be told."""


@runtime_checkable
class Notifier(Protocol):
    """Tells people."""

    kind: ClassVar[str]

    async def send(self, notification: Notification, context: Context) -> str | None:
        """Deliver it and return a receipt. Raise `NotificationFailed` when it was not delivered."""
