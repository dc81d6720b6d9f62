"""The public object: a fleet of services that is watched and healed while it is entered.

Three ways to run it, all the same underneath: ``async with supervisor:`` (or ``lifespan=supervisor.lifespan``) on the
application's own loop, ``with supervisor.threaded():`` beside a synchronous or blocking application, and the daemon.
"""

from __future__ import annotations

import hmac
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
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

from selfheal import control, shapes, views
from selfheal.calendar import Calendar, MaintenanceWindow
from selfheal.config import Configuration
from selfheal.control import Question
from selfheal.core.graph import no_service
from selfheal.core.messages import Requested
from selfheal.core.model import Limits
from selfheal.core.records import Answered
from selfheal.core.routing import Route
from selfheal.errors import JournalHeld, NotRunning, RequestRefused, SelfhealError
from selfheal.ladder import needed_actions
from selfheal.loading import Tables, load_plugins
from selfheal.metrics import BRIEFLY, PATIENCE
from selfheal.plugins import Notifier
from selfheal.requests import SCOPES, Request, checked
from selfheal.service import Canary, Service
from selfheal.shell.callables import Application
from selfheal.shell.homes import Home, settled
from selfheal.shell.reading import Reading
from selfheal.shell.roster import Roster
from selfheal.shell.running import Plan, Running, start
from selfheal.shell.stream import Told

F = TypeVar("F", bound=Callable[..., Any])

LOCAL: Final = "application"
"""The actor of acts that an application asks for without naming one."""

TURN: Final = 1.0
"""Seconds between two tries to take over a journal that another process holds."""

log = logging.getLogger("selfheal")


class Supervisor:
    """Watches services, repairs what fails, and answers requests about them.

    `journal` is the database file (its folder then holds all state); None keeps everything in memory, for tests and
    toys. `notifiers` maps names to notifiers; `routes` say who hears what (by default every notifier hears all).
    Nothing starts before it is entered, and it installs no signal handler and no logging.

    One process heals per journal. Where another holds it, this one reads along, hands acts on, and takes over when the
    other is gone; with `share` false it raises `JournalHeld` instead. Without a `seed` one is drawn from the journal.
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
        seed: int | None = 0,
        plugins: Iterable[str] | None = None,
        observers: Iterable[Callable[[Mapping[str, Any]], object]] = (),
        frontends: Mapping[str, Any] | None = None,
        share: bool = True,
    ) -> None:
        self.name = name
        self.frontends: Mapping[str, Any] = dict(frontends or {})
        """By the names of their tables; whoever runs the supervisor serves them, and `[http]` shows what they offer."""
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
        self._share = share
        self._running: Running | None = None
        self._reading: Reading | None = None
        self._stack: AsyncExitStack | None = None

    @classmethod
    def from_file(cls, path: Path | str, *, state_dir: Path | str | None = None, **options: Any) -> Self:
        """Return the supervisor that a file describes; its journal lies in the `state_dir`, the file's or the given.

        `options` are other arguments of the class. Reads files and may import plugins. Raises `ConfigurationError`.
        """
        return cls.of(settled(Path(path), state_dir=Path(state_dir) if state_dir is not None else None), **options)

    @classmethod
    def of(cls, configuration: Configuration, **options: Any) -> Self:
        """Return the supervisor of a configuration that names its `state_dir`."""
        c = configuration
        given: dict[str, Any] = {
            "journal": Home.at(c.state_dir).journal if c.state_dir is not None else None,
            "notifiers": c.notifiers,
            "routes": c.routes,
            "canaries": c.canaries,
            "limits": c.limits,
            "maintenance": c.maintenance,
            "name": c.name,
            "seed": c.seed,
            "plugins": c.plugins,
            "frontends": c.frontends,
        }
        return cls(c.services, **{**given, **options})

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
        """Register the decorated callable as the application's own cure for a step of a service's ladder.

        It is called with an `ActionContext`. Raises `TypeError` for one that does not take it.
        """

        def decorate(function: F) -> F:
            self._not_running("action")
            if not _takes_one(function):
                raise TypeError(f"the cure {verb!r} of {service!r} is called with an ActionContext; let it take one")
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
        if self._stack is not None:
            raise RuntimeError(f"declare with @supervisor.{what} before it is entered; at run time use `register`")

    # -- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("this supervisor is running already")
        self._stack = AsyncExitStack()
        await self._stack.__aenter__()
        try:
            try:
                self._running = await start(self._plan(), self._stack)
                await self._stack.enter_async_context(self._door())
            except JournalHeld:
                if not self._share:
                    raise
                await self._stack.enter_async_context(self._read_along())
        except BaseException:
            stack, self._stack = self._stack, None
            try:
                await stack.aclose()
            finally:
                self._running = self._reading = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        stack, self._stack = self._stack, None
        assert stack is not None
        try:
            return await stack.__aexit__(kind, problem, trace)
        except BaseExceptionGroup as group:
            if problem is None or group.split(lambda one: one is problem)[1] is not None:
                raise
            return False  # the application's own exception, wrapped by task groups of ours: it gets its own back
        finally:
            self._running = self._reading = None

    def _door(self) -> AbstractAsyncContextManager[object]:
        """The control socket, beside the journal."""
        if self.journal is None:
            return AsyncExitStack()
        return control.serving(self, Home.of(self.journal).socket, journal=self.journal.name)

    @asynccontextmanager
    async def _read_along(self) -> AsyncIterator[None]:
        """While another process holds the journal: read it, and wait for our turn."""
        assert self.journal is not None
        plan, over = self._plan(), anyio.Event()
        # What is wrong with the services is to be known now, and not when the other one has died.
        await anyio.to_thread.run_sync(plan.roster, b"")
        async with anyio.create_task_group() as tasks:
            self._reading = reading = Reading(self.journal, tasks)
            tasks.start_soon(self._take_turn, plan, reading, over)
            try:
                yield
            finally:
                over.set()
                reading.close()

    async def _take_turn(self, plan: Plan, reading: Reading, over: anyio.Event) -> None:
        """Hold the journal as soon as it is free, for as long as we live."""
        while not over.is_set():
            try:
                async with AsyncExitStack() as stack:
                    self._running = await start(plan, stack)
                    self._reading, reading.over = None, True
                    await stack.enter_async_context(self._door())
                    log.warning("took over the journal %s", self.journal)
                    await over.wait()
            except JournalHeld:
                pass
            except SelfhealError:
                log.exception("the journal %s is free, and cannot be taken over", self.journal)
            with anyio.move_on_after(TURN):
                await over.wait()

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
        tables = self._tables(self._services.values())
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

    def _tables(self, services: Iterable[Service]) -> Tables:
        """Load the plugins that the ladders of these services need, and those that are allowed by name."""
        return load_plugins(self._allowed, needed=needed_actions(services, self._callbacks))

    def _roster(
        self,
        services: tuple[Service, ...],
        key: bytes,
        canaries: tuple[Canary, ...] | None = None,
        limits: Limits | None = None,
    ) -> Roster:
        drawn = int.from_bytes(hmac.digest(key, b"seed", "sha256")[:4])
        return Roster.of(
            services,
            self._canaries if canaries is None else canaries,
            limits=limits or self._limits,
            name=self.name,
            seed=drawn if self._seed is None else self._seed,
            key=key,
            callbacks=self._callbacks,
            actions=self._tables(services).actions,
        )

    @property
    def running(self) -> bool:
        """Whether requests are answered: the engine runs here, or in the process that holds the journal."""
        return self._running is not None or self._reading is not None

    @property
    def reading(self) -> bool:
        """Whether another process holds the journal and heals, and this one only reads along."""
        return self._reading is not None

    def _at_work(self) -> Running:
        if self._reading is not None:
            raise RequestRefused("conflict", f"another process holds {self.journal} and heals: change the fleet there")
        if self._running is None:
            raise NotRunning("the supervisor is not running: enter it, or give `supervisor.lifespan` to the host")
        return self._running

    # -- changing the fleet at run time ------------------------------------------------------------------------------

    async def register(self, service: Service, *, replace: bool = False, actor: str = LOCAL) -> None:
        """Add a service, or with `replace` put it in the place of the one of that name, keeping its state.

        Raises `RequestRefused` for a name that is taken, and for a fleet the engine refuses (a cycle, say).
        """
        async with self._at_work().changing:
            if service.name in self._services and not replace:
                raise RequestRefused("conflict", f"a service {service.name!r} is registered already; say replace=True")
            service = _kept(self._services.get(service.name), self._at_home(service))
            await self._change({**self._services, service.name: service}, f"register {service.name}", actor)

    async def remove(self, name: str, *, confirmed: bool = False, actor: str = LOCAL) -> None:
        """Watch a service no more; what is open about it is closed.

        Raises `RequestRefused` for an unknown name, or when so much of the fleet would go that it must be `confirmed`.
        """
        async with self._at_work().changing:
            if name not in self._services:
                raise RequestRefused("unknown_service", no_service(name, self._services))
            left = {key: service for key, service in self._services.items() if key != name}
            await self._change(left, f"remove {name}", actor, confirmed=confirmed)

    async def reload(self, configuration: Configuration, *, confirmed: bool = False, actor: str = LOCAL) -> None:
        """Take over the services, canaries, limits and maintenance windows of another version of the file.

        State, budgets and pauses stay. A notifier that there was takes over its new settings; what else changed waits
        for the next start (`config.at_start_only` names it). Raises `RequestRefused` when it drops so much of the
        fleet that it must be `confirmed`, and `ConfigurationError`; then nothing has changed.
        """
        c = configuration
        async with self._at_work().changing:
            known = self._services
            services = {s.name: _kept(known.get(s.name), self._at_home(s)) for s in c.services}
            await self._change(services, "reload", actor, confirmed=confirmed, canaries=c.canaries, limits=c.limits)
            self._canaries, self._limits = c.canaries, c.limits
            self._notifiers = {name: c.notifiers.get(name, one) for name, one in self._notifiers.items()}
            self._calendar = Calendar(c.maintenance)
            self._at_work().windows.replace(self._calendar)
            await self._at_work().telling.replace(self._notifiers)

    async def _change(
        self,
        services: dict[str, Service],
        reason: str,
        actor: str,
        *,
        confirmed: bool = False,
        canaries: tuple[Canary, ...] | None = None,
        limits: Limits | None = None,
    ) -> None:
        running = self._at_work()
        key = running.journal.derive("fingerprints")
        roster = await anyio.to_thread.run_sync(self._roster, tuple(services.values()), key, canaries, limits)
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

        The same `id` makes it the same act, however often it is asked. Raises `RequestRefused` when it is refused, with
        the code and the reason; `NotRunning`; `ControlError` when the process that holds the journal does not answer.
        """
        request, given = checked(name, parameters)
        if not request.act:
            raise RequestRefused("bad_parameter", f"{name} is no act; ask for it")
        if not reason:
            raise RequestRefused("bad_parameter", f"{name} needs a reason")
        key = id or token_hex(8)
        if self._reading is not None:
            question = Question(request=name, parameters=given, reason=reason, actor=actor, key=key, scopes=scopes)
            handed, answer = await self._reading.persist(question)
            if handed:
                return dict(answer)
        running = self._at_work()
        if key in running.engine.ledger.answers:
            told = await anyio.to_thread.run_sync(running.answer_to, key)
        else:
            told = await running.act(
                self._requested(request, given, running, actor=actor, reason=reason, scopes=scopes, id_=key)
            )
        answered = told.record
        assert isinstance(answered, Answered)
        if not answered.accepted:
            raise RequestRefused(answered.code or "refused", answered.because)
        return shapes.public(told.record, seq=told.seq, wall=told.wall, volatile=told.volatile)

    def _requested(
        self,
        request: Request,
        given: Mapping[str, Any],
        running: Running,
        *,
        actor: str,
        reason: str,
        scopes: frozenset[str],
        id_: str,
    ) -> Requested:
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
        if "override" in plain:
            plain["override"] = frozenset(plain["override"])
        return Requested(
            at=running.loop.at(),
            id=id_,
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
        request, given = checked(name, parameters)
        if request.act:
            raise RequestRefused("bad_parameter", f"{name} is an act; it needs an actor and a reason")
        if self._reading is not None and name == "heartbeat":
            handed, answer = await self._reading.persist(Question(request=name, parameters=given))
            if handed:
                return answer
        elif self._reading is not None:
            return await self._reading.ask(request, given)
        running = self._at_work()
        if name == "heartbeat":
            return self.beat(str(given["service"]))
        if name == "metrics":  # of a large fleet it is a long text, and of a long journal it takes a while
            return await anyio.to_thread.run_sync(views.metered(self._facts(running), given))
        if name in views.LIVE:
            return views.live(name, given, self._facts(running))
        known = frozenset(self._services)
        return await anyio.to_thread.run_sync(
            views.stored, name, given, running.journal.reader, running.metering, known
        )

    def metrics(self, format: str = "data") -> Any:  # noqa: A002  # the word of the request
        """Answer `metrics` from any thread, to a collector that cannot wait; beside the holder, from the journal.

        Blocks: call it on the supervisor's own loop only where nothing else will do. Raises as `ask` does, and
        `TimeoutError` where that loop does not turn.
        """
        _, given = checked("metrics", {"format": format})
        if self._reading is not None:
            return self._reading.answer("metrics", given)
        running = self._at_work()
        patience = BRIEFLY if running.here else PATIENCE
        return running.now(lambda: views.metered(self._facts(running), given, patience=patience))()

    def beat(self, service: str) -> None:
        """Note that a service with a heartbeat check has called.

        Raises `RequestRefused` for an unknown service, or one whose check is no heartbeat.
        """
        known = self._services.get(service)
        if known is None:
            raise RequestRefused("unknown_service", no_service(service, self._services))
        beat = getattr(known.check, "beat", None)
        if beat is None:
            raise RequestRefused("bad_parameter", f"the check of {service} is no heartbeat")
        beat(monotonic())
        if self._reading is not None:
            self._reading.beat(service)

    def _facts(self, running: Running) -> views.Facts:
        engine = running.engine
        return views.Facts(
            ledger=engine.ledger,
            at=running.loop.at(),
            to_unix=running.loop.to_unix,
            evidence_of=lambda name: engine.evidence(name) if name not in engine.ledger.unwatched else None,
            due_of=engine.due,
            explain=engine.explain,
            kinds={name: service.kind or "callable" for name, service in self._services.items()},
            health=running.health(),
            metering=running.metering,
        )

    @asynccontextmanager
    async def records(self) -> AsyncIterator[AsyncIterator[Told]]:
        """Give every record from now on, once it is stored. The iteration ends early for a reader that is too slow."""
        if self._reading is not None:
            async with aclosing(await self._reading.records()) as read_along:
                yield read_along
            return
        async with self._at_work().stream.subscribe() as receive:
            yield receive


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # written in C, and does not say
        return True
    return True


def _kept(known: Service | None, new: Service) -> Service:
    """Return a service with the plugin objects it has already, where they are equal.

    They hold what was heard so far: the beats of a heartbeat, a kept connection, the children of a process.
    """
    if known is None:
        return new
    check = known.check if known.check == new.check else new.check
    workload = known.workload if known.workload == new.workload else new.workload
    return attrs.evolve(new, check=check, workload=workload)


class Threaded:
    """A supervisor that runs in a thread of its own, for synchronous callers. Its methods block."""

    def __init__(self, supervisor: Supervisor, portal: anyio.from_thread.BlockingPortal) -> None:
        self.supervisor = supervisor
        self.portal = portal
        """Leads to the event loop of the supervisor, for a caller that must not block while it waits."""

    def act(self, name: str, *, reason: str, actor: str = LOCAL, **parameters: Any) -> dict[str, Any]:
        """Ask for an act; see `Supervisor.act`."""
        return self.portal.call(partial(self.supervisor.act, name, reason=reason, actor=actor, **parameters))

    def ask(self, name: str, **parameters: Any) -> Any:
        """Ask a query; see `Supervisor.ask`."""
        return self.portal.call(partial(self.supervisor.ask, name, **parameters))

    def beat(self, service: str) -> None:
        """Note a heartbeat; see `Supervisor.beat`."""
        self.portal.call(self.supervisor.beat, service)

    def register(self, service: Service, *, replace: bool = False) -> None:
        """Add or replace a service; see `Supervisor.register`."""
        self.portal.call(partial(self.supervisor.register, service, replace=replace))

    def remove(self, name: str, *, confirmed: bool = False) -> None:
        """Remove a service; see `Supervisor.remove`."""
        self.portal.call(partial(self.supervisor.remove, name, confirmed=confirmed))


__all__ = ["Supervisor", "Threaded"]
