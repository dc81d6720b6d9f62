"""The demo: real programs, real faults, the real engine. `--fast` is its own test.

Owns the scenes: what is broken, what the laws then demand, and how the records are read for the report. Nothing here
helps the engine: the scenes break things from outside, and judge by what was recorded and by who was really started.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio
import anyio.to_thread
import attrs

from selfheal.builtin.command import CommandWorkload
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.wire_checks import HttpCheck, RedisPing
from selfheal.cli.demo_screen import Screen, screen_for
from selfheal.core.model import Backoff, Budget, Limits, Notification, Run, Severity, State
from selfheal.core.records import Ended, Intended, Moved
from selfheal.core.routing import Route
from selfheal.errors import RequestRefused
from selfheal.plugins import Context
from selfheal.service import Service
from selfheal.shell.stream import Told
from selfheal.supervisor import Supervisor

STACK: Final = Path(__file__).with_name("demo_stack.py")
QUICK: Final[dict[str, Any]] = {
    "interval": 0.6,
    "timeout": 0.5,
    "recheck": 0.25,
    "min_failing_span": 0.7,
    "definite_span": 0.3,
    "success_threshold": 2,
    "probation": 0.0,
    "backoff": Backoff(initial=0.4, cap=2.0, forget_after=3600.0),
    "dependent_grace": 1.5,
    "suspicion_threshold": 0,
    "flapping": (),
}
"""Seconds a demo has patience for; a real fleet keeps the defaults."""


TALKATIVE: Final[dict[str, Any]] = {"group_wait": 0.3, "group_interval": 1.0}
"""Seconds between messages about one incident."""


@attrs.frozen(kw_only=True)
class ScreenNotifier:
    """Tells the viewer, by the road every notifier takes."""

    kind: ClassVar[str] = "screen"

    say: Callable[[Notification], None]

    async def send(self, notification: Notification, context: Context) -> str | None:
        """Show it."""
        self.say(notification)
        return "seen"


@attrs.define(kw_only=True)
class Heard:
    """The records of one scene."""

    told: list[Told] = attrs.field(factory=list)
    began: float = 0.0
    """UNIX time at which the fault was made."""

    def moves(self, service: str) -> list[Moved]:
        """Return the moves of a service."""
        return [t.record for t in self.told if isinstance(t.record, Moved) and t.record.service == service]

    def intents(self, service: str) -> list[Intended]:
        """Return the actions that were begun on a service."""
        return [t.record for t in self.told if isinstance(t.record, Intended) and t.record.service == service]

    def endings(self, service: str) -> list[Ended]:
        """Return how the actions on a service ended."""
        return [t.record for t in self.told if isinstance(t.record, Ended) and t.record.service == service]

    def reasons(self, service: str) -> list[str]:
        """Return the reasons for which a service that was down was not acted on."""
        return [m.after.reason for m in self.moves(service) if m.after.state is State.FAILED and m.after.reason]

    def seconds_to(self, service: str, *states: State) -> float | None:
        """Return the seconds from the fault to the first time a service entered one of the states."""
        for told in self.told:
            record = told.record
            if not isinstance(record, Moved) or record.service != service:
                continue
            if record.after.state in states and record.before.state is not record.after.state:
                return max(0.0, told.wall - self.began)
        return None

    def seconds_until_well(self, service: str) -> float | None:
        """Return the seconds from the fault to the last time a service became well."""
        found = None
        for told in self.told:
            record = told.record
            if not isinstance(record, Moved) or record.service != service:
                continue
            if record.after.state is State.HEALTHY and record.before.state is not State.HEALTHY:
                found = max(0.0, told.wall - self.began)
        return found


@attrs.frozen(kw_only=True)
class Verdicts:
    """What a scene came to."""

    title: str
    root: str
    detect: float | None
    recover: float | None
    did: list[str]
    spared: list[str]
    wrong: list[str]


class Stage:
    """The stack, the supervisor over it, and the means to break it from outside."""

    def __init__(self, folder: Path, screen: Screen) -> None:
        self.folder = folder
        self.screen = screen
        self.poison = folder / "poison"
        self.ports = dict(zip(("store", "cache", "api", "worker"), free_ports(4), strict=True))
        self.heard = Heard()
        self.news = anyio.Event()
        self.supervisor = Supervisor(
            self.services(),
            journal=folder / "selfheal.db",
            name="demo",
            limits=Limits(budget_floor=50),
            notifiers={"screen": ScreenNotifier(say=screen.told)},
            routes=[Route(notifier="screen", severities={Severity.CRITICAL, Severity.HIGH}, **TALKATIVE)],
        )

    # -- the fleet ---------------------------------------------------------------------------------------------------

    def program(self, *arguments: object) -> list[str]:
        """Return the command of one program of the stack."""
        return [sys.executable, "-S", "-E", str(STACK), *map(str, arguments)]

    def process(self, *arguments: object) -> ProcessWorkload:
        """Return the workload that runs a program of the stack."""
        return ProcessWorkload(command=self.program(*arguments), stop_timeout=0.5, cwd=self.folder)

    def services(self) -> list[Service]:
        """Return the fleet: what it is made of, not what will happen to it."""
        ports = self.ports
        restart = {"action": "restart", "settle": 0.3, "timeout": 10.0}
        api = ("api", ports["api"], ports["store"], ports["cache"])
        return [
            Service(
                "store",
                check=RedisPing(url=f"redis://127.0.0.1:{ports['store']}"),
                workload=self.process("store", ports["store"]),
                recovery_actions=[restart],
                priority="high",
                **{**QUICK, "interval": 2.5},
            ),
            Service(
                "cache",
                check=RedisPing(url=f"redis://127.0.0.1:{ports['cache']}"),
                workload=self.process("cache", ports["cache"]),
                recovery_actions=[restart],
                **{**QUICK, "flapping": (Budget(limit=3, per=600.0),)},
            ),
            Service(
                "api",
                check=HttpCheck(url=f"http://127.0.0.1:{ports['api']}/health"),
                workload=CommandWorkload(
                    inspect=self.control("inspect", *api),
                    start=self.control("start", *api),
                    stop=self.control("stop", *api),
                    restart=self.control("restart", *api),
                ),
                depends_on=["store", "cache"],
                recovery_actions=[restart],
                latency_objective=0.25,
                **{**QUICK, "timeout": 0.8, "interval": 1.0, "backoff": Backoff(initial=0.01, cap=0.02)},
            ),
            Service(
                "worker",
                check=HttpCheck(url=f"http://127.0.0.1:{ports['worker']}/"),
                workload=self.process("worker", ports["worker"], ports["store"], self.poison),
                depends_on=["store"],
                recovery_actions=[restart],
                max_retries=5,
                **{**QUICK, "budgets": (Budget(limit=2, per=600.0),)},
            ),
        ]

    def control(self, verb: str, *program: object) -> list[str]:
        """Return the command of the init script."""
        return self.program("ctl", self.folder, verb, *program)

    async def operate(self, verb: str) -> None:
        """Be the operator who uses the init script of the api by hand."""
        ports = self.ports
        await anyio.run_process(self.control(verb, "api", ports["api"], ports["store"], ports["cache"]), check=False)

    # -- breaking things ---------------------------------------------------------------------------------------------

    async def pid(self, service: str) -> int:
        """Return the process of a service as its workload tells it."""
        return int((await self.instance(service)).partition(":")[0])

    async def instance(self, service: str) -> str:
        """Ask the workload itself who runs."""
        running = self.supervisor._at_work()  # the demo looks where no request leads
        entry = running.roster.entries[service]
        looked = await running.actions.look(entry)
        if looked.run is not Run.RUNNING:
            raise RuntimeError(f"{service} does not run: {looked}")
        return looked.id

    async def signal(self, service: str, number: signal.Signals) -> None:
        """Send a signal to the process of a service."""
        os.kill(await self.pid(service), number)

    def starts_of_api(self) -> int:
        """Return how often the api was really started, whoever did it."""
        return len((self.folder / "api.starts").read_text().splitlines())

    def checks_of(self, service: str) -> int:
        """Return how many checks of a service have ended."""
        return self.supervisor._at_work().engine.evidence(service).checks  # the demo looks inside

    # -- waiting for the engine --------------------------------------------------------------------------------------

    def take(self, told: Told) -> None:
        """Take note of a record."""
        self.heard.told.append(told)
        self.screen.record(told)
        self.news.set()

    async def until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Wait for something to be true of what was heard; returns whether it came true in time."""
        with anyio.move_on_after(seconds):
            while not true():
                self.news = anyio.Event()
                with anyio.move_on_after(0.2):
                    await self.news.wait()
            return True
        return true()

    def state(self, service: str) -> State:
        """Return the state of a service."""
        return self.supervisor._at_work().engine.ledger.conditions[service].state  # as above

    def well(self, *services: str) -> Callable[[], bool]:
        """Return the question whether some services (or all) are HEALTHY."""
        names = services or tuple(self.ports)
        return lambda: all(self.state(name) is State.HEALTHY for name in names)

    def is_in(self, service: str, reason: str) -> Callable[[], bool]:
        """Return the question whether a service is down for a reason."""
        ledger = self.supervisor._at_work().engine.ledger  # as above
        return lambda: ledger.conditions[service].reason == reason


Scene = Callable[[Stage], Awaitable[Verdicts]]


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


async def broken(stage: Stage, title: str, make: Callable[[], Awaitable[None]]) -> None:
    """Announce a fault and make it."""
    stage.screen.scene(title)
    stage.heard = Heard(began=time.time())
    await make()
    stage.heard.began = time.time()


def judged(
    stage: Stage, title: str, root: str, *, only: str = "", most: int = 1, wrong: list[str], spared: list[str]
) -> Verdicts:
    """Read the records of a scene: what was done, how fast, and what must not have been done."""
    heard = stage.heard
    for name in stage.ports:
        begun = len(heard.intents(name))
        if name != only and begun:
            wrong.append(f"{name} was acted on {begun} times, and must not have been")
    if only and len(heard.intents(only)) > most:
        wrong.append(f"{only} was acted on {len(heard.intents(only))} times, and at most {most} were right")
    did = []
    for name in stage.ports:
        endings = {ended.intent: ended.settled.value for ended in heard.endings(name)}
        did += [f"{name}: {i.action} ({endings.get(i.intent, 'under way')})" for i in heard.intents(name)]
    return Verdicts(
        title=title,
        root=root,
        detect=heard.seconds_to(root, State.FAILED, State.DEGRADED),
        recover=heard.seconds_until_well(root),
        did=did,
        spared=spared,
        wrong=wrong,
    )


def because(stage: Stage, service: str) -> str:
    """Say why a service that looked ill was left alone, from its own records."""
    reasons = dict.fromkeys(stage.heard.reasons(service))
    if reasons:
        return f"{service} was not restarted: {', '.join(reasons)}"
    if any(move.after.state is State.UNHEALTHY for move in stage.heard.moves(service)):
        return f"{service} failed checks for a moment; that was not enough to believe"
    return f"{service} was not touched"


async def insist(stage: Stage, service: str, reason: str, wrong: list[str]) -> None:
    """Be the person who forces a recovery."""
    try:
        await stage.supervisor.act("recover", service=service, actor="you", reason=reason)
    except RequestRefused as refusal:
        wrong.append(f"a forced recovery of {service} was refused: {refusal}")


# -- the scenes -----------------------------------------------------------------------------------------------------


async def killed(stage: Stage) -> Verdicts:
    """SIGKILL: the end of a process is heard, not polled."""
    title = "SIGKILL hits the cache"
    await broken(stage, title, lambda: stage.signal("cache", signal.SIGKILL))
    wrong = (
        [] if await stage.until(lambda: bool(stage.heard.intents("cache")), 5.0) else ["the cache was not restarted"]
    )
    if not await stage.until(stage.well(), 10.0):
        wrong.append("not everything was well again within 10 s")
    return judged(stage, title, "cache", only="cache", wrong=wrong, spared=[because(stage, "api")])


async def root_hangs(stage: Stage) -> Verdicts:
    """SIGSTOP: the root hangs while two dependents need it. They fail first, and must wait."""
    title = "SIGSTOP freezes the store; the api and the worker need it"

    async def freeze_after_a_check() -> None:
        # Right after a good check of the store, so that what is known of it is stale when the api is believed down.
        checks = stage.checks_of("store")
        await stage.until(lambda: stage.checks_of("store") > checks, 5.0)
        await stage.signal("store", signal.SIGSTOP)

    await broken(stage, title, freeze_after_a_check)
    wrong = []
    if not await stage.until(lambda: bool(stage.heard.intents("store")), 10.0):
        wrong.append("the store was not restarted")
    if not await stage.until(stage.well(), 12.0):
        wrong.append("not everything was well again within 12 s of the repair")
    if "waiting-for:store" not in stage.heard.reasons("api"):
        wrong.append("the api did not wait for the store")
    spared = [because(stage, "api"), because(stage, "worker")]
    return judged(stage, title, "store", only="store", wrong=wrong, spared=spared)


async def refuses(stage: Stage) -> Verdicts:
    """The process lives and its port refuses."""
    title = "the api stops listening; its process lives on"
    await broken(stage, title, lambda: stage.signal("api", signal.SIGUSR1))
    restarted = await stage.until(lambda: bool(stage.heard.intents("api")), 6.0)
    wrong = [] if restarted else ["the api was not restarted"]
    if not await stage.until(stage.well(), 10.0):
        wrong.append("not everything was well again within 10 s")
    return judged(stage, title, "api", only="api", wrong=wrong, spared=[because(stage, "store")])


async def slow(stage: Stage) -> Verdicts:
    """A slow answer is no failure: people hear of it, nothing is restarted."""
    title = "the api answers slowly"
    await broken(stage, title, lambda: stage.signal("api", signal.SIGUSR2))
    seen = await stage.until(lambda: stage.state("api") is State.DEGRADED, 6.0)
    wrong = [] if seen else ["the slow api was not DEGRADED"]
    await anyio.sleep(0.5)
    await stage.signal("api", signal.SIGUSR2)
    if not await stage.until(stage.well(), 6.0):
        wrong.append("the api was not HEALTHY after it was quick again")
    spared = ["api was not restarted: it served, only slowly (DEGRADED)"]
    return judged(stage, title, "api", wrong=wrong, spared=spared)


async def replaced(stage: Stage) -> Verdicts:
    """Somebody else is quicker: the instance that failed is gone when the action is about to run."""
    title = "the api hangs, and an operator restarts it at the same moment"
    starts = stage.starts_of_api()
    await broken(stage, title, lambda: stage.signal("api", signal.SIGSTOP))
    wrong = []
    if not await stage.until(lambda: stage.state("api") is State.FAILED, 6.0):
        wrong.append("the hanging api was not noticed")
    await anyio.sleep(0.3)  # the check before the step hangs now: it has seen the old instance
    await stage.operate("replace")
    if not await stage.until(stage.well(), 10.0):
        wrong.append("not everything was well again within 10 s")
    again = stage.starts_of_api() - starts - 1
    if again:
        wrong.append(f"the operator's new instance was restarted {again} times")
    spared = ["api was not restarted again: another instance ran than the one that had failed"]
    return judged(stage, title, "api", only="api", wrong=wrong, spared=spared)


async def stopped(stage: Stage) -> Verdicts:
    """A person's stop is respected, however long the service is down."""
    title = "an operator stops the api"
    await broken(stage, title, lambda: stage.operate("stop"))
    wrong = []
    if not await stage.until(stage.is_in("api", "held:workload"), 6.0):
        wrong.append("the stop was not recognized as a person's")
    await anyio.sleep(1.5)
    await stage.operate("start")
    if not await stage.until(stage.well(), 8.0):
        wrong.append("the api was not well after the operator started it")
    return judged(stage, title, "api", wrong=wrong, spared=[because(stage, "api")])


async def flaps(stage: Stage) -> Verdicts:
    """Killed again and again: the third confirmed failure is a person's business."""
    title = "SIGKILL hits the cache twice more"
    await broken(stage, title, lambda: stage.signal("cache", signal.SIGKILL))
    wrong = []
    if not await stage.until(lambda: len(stage.heard.intents("cache")) == 1, 6.0):
        wrong.append("the cache was not restarted the second time")
    await stage.until(stage.well(), 10.0)
    await stage.signal("cache", signal.SIGKILL)
    if not await stage.until(stage.is_in("cache", "held:flapping"), 6.0):
        wrong.append("three failures were not called flapping")
    await anyio.sleep(1.0)
    if len(stage.heard.intents("cache")) > 1:
        wrong.append("the flapping cache was restarted all the same")
    await insist(stage, "cache", "seen, one more time", wrong)
    if not await stage.until(stage.well(), 10.0):
        wrong.append("the forced recovery did not heal it")
    spared = ["cache was not restarted a third time by itself: held:flapping, until a person asked"]
    return judged(stage, title, "cache", only="cache", most=2, wrong=wrong, spared=spared)


async def loops(stage: Stage) -> Verdicts:
    """A crash loop: the budget ends it, and people are told."""
    title = "a poisoned job: the worker dies as soon as it starts"

    async def poison() -> None:
        stage.poison.touch()

    await broken(stage, title, poison)
    wrong = []
    if not await stage.until(stage.is_in("worker", "held:budget"), 15.0):
        wrong.append("the budget did not end the crash loop")
    await anyio.sleep(1.0)
    automatic = len(stage.heard.intents("worker"))
    if automatic != 2:
        wrong.append(f"{automatic} automatic restarts where the budget allows 2")
    stage.poison.unlink()
    await insist(stage, "worker", "the job was removed", wrong)
    if not await stage.until(stage.well(), 12.0):
        wrong.append("the forced recovery did not heal it")
    spared = ["worker was not restarted a third time by itself: held:budget, until a person asked"]
    return judged(stage, title, "worker", only="worker", most=3, wrong=wrong, spared=spared)


SCENES: Final[tuple[Scene, ...]] = (killed, root_hangs, refuses, slow, replaced, stopped, flaps, loops)
"""Every fault of the demo, in order."""


# -- running it -----------------------------------------------------------------------------------------------------


async def play(fast: bool, screen: Screen) -> int:
    """Start the stack, play the scenes, report; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="selfheal-demo-", ignore_cleanup_errors=True) as folder:
        stage = Stage(Path(folder), screen)
        verdicts: list[Verdicts] = []
        await stage.operate("start")
        try:
            async with stage.supervisor, stage.supervisor.records() as records, anyio.create_task_group() as tasks:

                async def listen() -> None:
                    async for told in records:
                        stage.take(told)

                tasks.start_soon(listen)
                tasks.start_soon(screen.run, stage.supervisor)
                screen.scene("starting a store, a cache, an api that needs both, and a worker")
                if not await stage.until(stage.well(), 15.0):
                    screen.say("the stack did not come up")
                    tasks.cancel_scope.cancel()
                    return 1
                await _scenes(stage, verdicts, fast=fast)
                tasks.cancel_scope.cancel()
        finally:
            await stage.operate("stop")
        screen.report(verdicts)
        return 1 if any(verdict.wrong for verdict in verdicts) else 0


async def _scenes(stage: Stage, verdicts: list[Verdicts], *, fast: bool) -> None:
    remaining = list(SCENES)
    while remaining:
        if not fast:
            choice = await stage.screen.choose([scene.__doc__ or "" for scene in remaining])
            if choice is None:
                return
            scene = remaining.pop(choice)
        else:
            scene = remaining.pop(0)
        verdict = await scene(stage)
        verdicts.append(verdict)
        stage.screen.verdict(verdict)


def main(*, fast: bool = False) -> int:
    """Run the demo; return 0 when every fault was healed as the laws demand."""
    screen = screen_for(fast=fast)
    # A terminal that is closed, and whoever says TERM, is obeyed as Ctrl-C is: the stack is stopped before we go.
    usual = {number: signal.signal(number, _interrupt) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        return anyio.run(play, fast, screen)
    except KeyboardInterrupt:
        return 130
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    signal.raise_signal(signal.SIGINT)
