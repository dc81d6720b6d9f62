"""The public object: a fleet of services that is watched and healed while it is entered.

Three ways to run it, all the same underneath: ``async with supervisor:`` (or ``lifespan=supervisor.lifespan``) on the
application's own loop, ``with supervisor.threaded():`` beside a synchronous or blocking application, and the daemon.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import attrs

from selfheal import views
from selfheal.calendar import Calendar, MaintenanceWindow
from selfheal.core.messages import Requested
from selfheal.core.model import Limits
from selfheal.core.records import Answered
from selfheal.core.routing import Route
from selfheal.errors import NotRunning, RequestRefused
from selfheal.loading import load_plugins
from selfheal.plugins import Notifier
from selfheal.requests import SCOPES, Request, checked
from selfheal.service import Canary, Service
from selfheal.shell.callables import Application
from selfheal.shell.roster import Roster
from selfheal.shell.running import Plan, Running, start
from selfheal.shell.stream import Told

F = TypeVar("F", bound=Callable[..., Any])

LOCAL: Final = "application"
"""The actor of acts that an application asks for without naming one."""


class Supervisor:
    """Watches services, repairs what fails, and answers requests about them.

    `journal` is the database file (its folder then holds all state); None keeps everything in memory, for tests and
    toys. `notifiers` maps names to notifiers; `routes` say who hears what (by default every notifier hears all).
    Nothing starts before it is entered, and it installs no signal handler and no logging.
    """

    def __init__(
        self,
        services: Iterable[Service] = (),
        *,
        journal: Path | str | None,
        notifiers: Mapping[str, Notifier] | None = None,
        routes: Iterable[Route] | None = None,
        canaries: Iterable[Canary] = (),
        limits: Limits | None = None,
        maintenance: Iterable[MaintenanceWindow] = (),
        name: str = "selfheal",
        seed: int = 0,
        plugins: Iterable[str] | None = None,
        observers: Iterable[Callable[[Mapping[str, Any]], object]] = (),
    ) -> None:
        self.name = name
        self.journal = Path(journal) if journal is not None else None
        self._services: dict[str, Service] = {}
        for service in services:
            if service.name in self._services:
                raise ValueError(f"two services are called {service.name!r}")
            self._services[service.name] = self._at_home(service)
        self._canaries = tuple(canaries)
        self._limits = limits or Limits()
        self._seed = seed
        self._notifiers = dict(notifiers or {})
        self._routes = tuple(routes) if routes is not None else tuple(Route(notifier=n) for n in self._notifiers)
        self._calendar = Calendar(tuple(maintenance))
        self._callbacks: dict[tuple[str, str], Callable[..., Any]] = {}
        self._allowed = tuple(plugins) if plugins is not None else None
        self._observers = tuple(observers)
        self._running: Running | None = None
        self._stack: AsyncExitStack | None = None

    # -- what an application declares --------------------------------------------------------------------------------

    def service(self, name: str, **options: Any) -> Callable[[F], F]:
        """Register the decorated callable as the check of a service; `options` are the fields of `Service`.

        The callable takes nothing and returns `bool`, `Verdict` or `CheckResult`. Use `register` on one that runs.
        """

        def decorate(function: F) -> F:
            self._declare(Service(name, check=function, **options))
            return function

        return decorate

    def action(self, service: str, verb: str) -> Callable[[F], F]:
        """Register the decorated callable as the application's own cure for a step of a service's ladder."""

        def decorate(function: F) -> F:
            self._not_running("action")
            self._callbacks[service, verb] = function
            return function

        return decorate

    def _declare(self, service: Service) -> None:
        self._not_running("service")
        if service.name in self._services:
            raise ValueError(f"a service {service.name!r} is registered already; use `register(…, replace=True)`")
        self._services[service.name] = self._at_home(service)

    def _at_home(self, service: Service) -> Service:
        """Let a workload that keeps files of its own, and was not told where, keep them beside the journal."""
        workload: Any = service.workload
        if self.journal is None or getattr(workload, "state_directory", "") is not None:
            return service
        return attrs.evolve(service, workload=attrs.evolve(workload, state_directory=self.journal.parent / "processes"))

    def _not_running(self, what: str) -> None:
        if self._running is not None:
            raise RuntimeError(f"declare with @supervisor.{what} before it is entered; at run time use `register`")

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("this supervisor is running already")
        self._stack = AsyncExitStack()
        await self._stack.__aenter__()
        try:
            self._running = await start(self._plan(), self._stack)
        except BaseException:
            stack, self._stack = self._stack, None
            await stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        stack, self._stack = self._stack, None
        assert stack is not None
        try:
            return await stack.__aexit__(kind, problem, trace)
        finally:
            self._running = None

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Run for as long as an application does: give this to Starlette, FastAPI or any ASGI host as `lifespan`."""
        del app
        async with self:
            yield

    @contextmanager
    def threaded(self, *, backend: str = "asyncio") -> Iterator[Threaded]:
        """Run in a thread of its own, beside an application that is synchronous or blocks its loop.

        Asynchronous callables of the application run on the loop this is called on; where none turns they are
        INCONCLUSIVE.
        """
        application = Application.here()
        with anyio.from_thread.start_blocking_portal(backend) as portal:
            self._elsewhere = (True, application)
            try:
                with portal.wrap_async_context_manager(self):
                    yield Threaded(self, portal)
            finally:
                self._elsewhere = (False, None)

    _elsewhere: tuple[bool, Application | None] = (False, None)

    def _plan(self) -> Plan:
        tables = load_plugins(self._allowed, needed=())
        observers: list[tuple[str, Callable[[Mapping[str, Any]], object]]] = [*tables.observers]
        observers += [("application", observer) for observer in self._observers]
        threaded, application = self._elsewhere
        return Plan(
            roster=partial(self._roster, tuple(self._services.values())),
            journal=self.journal,
            notifiers=self._notifiers,
            routes=self._routes,
            calendar=self._calendar,
            observers=tuple(observers),
            threaded=threaded,
            application=application,
        )

    def _roster(self, services: tuple[Service, ...], key: bytes) -> Roster:
        return Roster.of(
            services,
            self._canaries,
            limits=self._limits,
            name=self.name,
            seed=self._seed,
            key=key,
            callbacks=self._callbacks,
            actions=load_plugins(self._allowed, needed=()).actions,
        )

    @property
    def running(self) -> bool:
        """Whether the engine runs."""
        return self._running is not None

    def _at_work(self) -> Running:
        if self._running is None:
            raise NotRunning("the supervisor is not running: enter it, or give `supervisor.lifespan` to the host")
        return self._running

    # -- changing the fleet at run time ------------------------------------------------------------------------------

    async def register(self, service: Service, *, replace: bool = False, actor: str = LOCAL) -> None:
        """Add a service, or with `replace` put it in the place of the one of that name, keeping its state.

        Raises `RequestRefused` for a name that is taken, and for a fleet the engine refuses (a cycle, say).
        """
        if service.name in self._services and not replace:
            raise RequestRefused("conflict", f"a service {service.name!r} is registered already; say replace=True")
        known = self._services.get(service.name)
        kept = known is not None and known.check == service.check
        # An equal check object keeps what it has heard so far: the beats of a heartbeat, a kept connection.
        service = attrs.evolve(service, check=known.check) if known is not None and kept else service
        await self._change({**self._services, service.name: self._at_home(service)}, f"register {service.name}", actor)

    async def remove(self, name: str, *, confirmed: bool = False, actor: str = LOCAL) -> None:
        """Watch a service no more; what is open about it is closed.

        Raises `RequestRefused` for an unknown name, or when so much of the fleet would go that it must be `confirmed`.
        """
        if name not in self._services:
            raise RequestRefused("unknown_service", f"no service {name!r}")
        left = {key: service for key, service in self._services.items() if key != name}
        await self._change(left, f"remove {name}", actor, confirmed=confirmed)

    async def _change(self, services: dict[str, Service], reason: str, actor: str, *, confirmed: bool = False) -> None:
        running = self._at_work()
        key = running.journal.derive("fingerprints")
        roster = await anyio.to_thread.run_sync(self._roster, tuple(services.values()), key)
        told = await running.propose(roster, actor=actor, reason=reason, confirmed=confirmed)
        answered = told.record
        assert isinstance(answered, Answered)
        if not answered.accepted:
            raise RequestRefused(answered.code or "refused", answered.because)
        self._services = services

    # -- requests ----------------------------------------------------------------------------------------------------

    async def act(
        self,
        name: str,
        *,
        actor: str = LOCAL,
        reason: str,
        scopes: frozenset[str] = SCOPES,
        id: str | None = None,  # noqa: A002  # the word of the record
        **parameters: Any,
    ) -> dict[str, Any]:
        """Ask for an act (see `requests.TABLE`) and return its answer, once it is durable.

        Raises `RequestRefused` when it is refused, with the code and the reason; `NotRunning`.
        """
        running = self._at_work()
        request, given = checked(name, parameters)
        if not request.act:
            raise RequestRefused("bad_parameter", f"{name} is no act; ask for it")
        if not reason:
            raise RequestRefused("bad_parameter", f"{name} needs a reason")
        told = await running.act(
            self._requested(request, given, running, actor=actor, reason=reason, scopes=scopes, id_=id)
        )
        answered = told.record
        assert isinstance(answered, Answered)
        if not answered.accepted:
            raise RequestRefused(answered.code or "refused", answered.because)
        return views.public(told.record, seq=told.seq, wall=told.wall, volatile=told.volatile)

    def _requested(
        self,
        request: Request,
        given: Mapping[str, Any],
        running: Running,
        *,
        actor: str,
        reason: str,
        scopes: frozenset[str],
        id_: str | None,
    ) -> Requested:
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
        if "override" in plain:
            plain["override"] = frozenset(plain["override"])
        return Requested(
            at=running.loop.at(),
            id=id_ or token_hex(8),
            act=request.name,
            actor=actor,
            reason=reason,
            scopes=scopes,
            **plain,
        )

    async def ask(self, name: str, **parameters: Any) -> Any:
        """Ask a query (see `requests.TABLE`) and return its answer as plain data.

        Raises `RequestRefused` for an unknown query, parameter or service; `NotRunning`.
        """
        running = self._at_work()
        request, given = checked(name, parameters)
        if request.act:
            raise RequestRefused("bad_parameter", f"{name} is an act; it needs an actor and a reason")
        if name == "heartbeat":
            return self.beat(str(given["service"]))
        if name in views.LIVE:
            return views.live(name, given, self._facts(running))
        return await anyio.to_thread.run_sync(views.stored, name, given, running.journal.reader)

    def beat(self, service: str) -> None:
        """Note that a service with a heartbeat check has called.

        Raises `RequestRefused` for an unknown service, or one whose check is no heartbeat.
        """
        known = self._services.get(service)
        if known is None:
            raise RequestRefused("unknown_service", f"no service {service!r}")
        beat = getattr(known.check, "beat", None)
        if beat is None:
            raise RequestRefused("bad_parameter", f"the check of {service} is no heartbeat")
        beat(monotonic())

    def _facts(self, running: Running) -> views.Facts:
        engine = running.engine
        return views.Facts(
            ledger=engine.ledger,
            at=running.loop.at(),
            to_unix=running.loop.to_unix,
            evidence_of=lambda name: engine.evidence(name) if name not in engine.ledger.unwatched else None,
            explain=engine.explain,
            kinds={name: service.kind or "callable" for name, service in self._services.items()},
            health={
                "running": True,
                "journal": {"well": running.journal.well, "detail": running.journal.detail},
                "latest": running.loop.busiest,
                "checks_in_flight": running.probes.in_flight,
                "plugins": [str(report) for report in running.reports[-10:]],
                "delivery": [attrs.asdict(standing) for standing in running.outbox.standing()],
            },
        )

    @asynccontextmanager
    async def records(self) -> AsyncIterator[AsyncIterator[Told]]:
        """Give every record from now on, once it is stored. The iteration ends early for a reader that is too slow."""
        async with self._at_work().stream.subscribe() as receive:
            yield receive


class Threaded:
    """A supervisor that runs in a thread of its own, for synchronous callers. Its methods block."""

    def __init__(self, supervisor: Supervisor, portal: anyio.from_thread.BlockingPortal) -> None:
        self.supervisor = supervisor
        self._portal = portal

    def act(self, name: str, *, reason: str, actor: str = LOCAL, **parameters: Any) -> dict[str, Any]:
        """Ask for an act; see `Supervisor.act`."""
        return self._portal.call(partial(self.supervisor.act, name, reason=reason, actor=actor, **parameters))

    def ask(self, name: str, **parameters: Any) -> Any:
        """Ask a query; see `Supervisor.ask`."""
        return self._portal.call(partial(self.supervisor.ask, name, **parameters))

    def beat(self, service: str) -> None:
        """Note a heartbeat; see `Supervisor.beat`."""
        self._portal.call(self.supervisor.beat, service)

    def register(self, service: Service, *, replace: bool = False) -> None:
        """Add or replace a service; see `Supervisor.register`."""
        self._portal.call(partial(self.supervisor.register, service, replace=replace))

    def remove(self, name: str, *, confirmed: bool = False) -> None:
        """Remove a service; see `Supervisor.remove`."""
        self._portal.call(partial(self.supervisor.remove, name, confirmed=confirmed))


__all__ = ["Supervisor", "Threaded"]
