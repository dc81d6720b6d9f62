"""The life of a supervisor: entering, leaving, entering again, what an application declares, what it may change."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.broken import fails_when

from selfheal import ActionContext, CheckResult, Service, Supervisor, Verdict
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.core.engine import Engine
from selfheal.core.messages import CheckFinished
from selfheal.errors import NotRunning, RequestRefused
from selfheal.journal import Pace
from selfheal.testing.doubles import RecordingNotifier, ScriptedCheck, ScriptedWorkload
from selfheal.testing.servers import pong

if TYPE_CHECKING:
    from tests.shell.supervised import (
        MEND,
        QUICK,
        RESTART,
        Asgi,
        Switch,
        faulty,
        hearing,
        ours,
        quick,
        state_of,
        stored,
        until,
        until_state,
    )
else:
    from supervised import (
        MEND,
        QUICK,
        RESTART,
        Asgi,
        Switch,
        faulty,
        hearing,
        ours,
        quick,
        state_of,
        stored,
        until,
        until_state,
    )

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


# -- entering and leaving --------------------------------------------------------------------------------------------


async def test_leaving_ends_every_thread_and_closes_every_descriptor(tmp_path: Path) -> None:
    def services() -> list[Service]:
        return [
            quick("called", check=Switch()),
            quick("scripted", check=ScriptedCheck(), workload=ScriptedWorkload(), recovery_actions=RESTART),
            quick("wired", check=TcpCheck(address=address)),
        ]

    earlier = ours()[0]
    with pong() as address:
        async with Supervisor(services(), journal=None):  # what is made once in a process is made here
            pass
        await until(lambda: ours()[0] <= earlier, what="the end of the threads")
        before = ours()
        supervisor = Supervisor(services(), journal=tmp_path / "selfheal.db")
        async with supervisor:
            for name in ("called", "scripted", "wired"):
                await until_state(supervisor, name, "healthy")
            assert supervisor.running
        assert not supervisor.running
        await until(lambda: ours() == before, what=f"the return to {before}")


@fails_when("it can be entered twice", "the second stops the first")
async def test_s17_entering_twice_is_refused_and_harms_nothing() -> None:
    check = Switch()
    supervisor = Supervisor([quick("api", check=check)], journal=None)
    async with supervisor:
        await until_state(supervisor, "api", "healthy")
        with pytest.raises(RuntimeError, match="running already"):
            async with supervisor:
                raise AssertionError("entered twice")
        calls = check.calls
        await until(lambda: check.calls > calls, what="another check")


async def test_one_object_may_be_entered_again_and_remembers(tmp_path: Path) -> None:
    check = Switch()
    supervisor = Supervisor([quick("api", check=check)], journal=tmp_path / "selfheal.db")
    async with supervisor:
        await until_state(supervisor, "api", "healthy")
        await supervisor.act("disable", service="api", actor="alice", reason="a test")
    async with supervisor:
        assert (await state_of(supervisor, "api"))["state"] == "disabled"
        await supervisor.act("enable", service="api", actor="alice", reason="a test")
        await until_state(supervisor, "api", "healthy")


async def test_what_the_application_raises_comes_out_as_it_is(tmp_path: Path) -> None:
    supervisor = Supervisor([quick("api", check=Switch())], journal=tmp_path / "selfheal.db")
    with pytest.raises(ZeroDivisionError):
        async with supervisor:
            raise ZeroDivisionError
    async with supervisor:  # the journal was let go
        assert supervisor.running


async def test_a_cancelled_application_leaves_in_order(tmp_path: Path) -> None:
    supervisor = Supervisor([quick("api", check=Switch())], journal=tmp_path / "selfheal.db")
    with anyio.CancelScope() as scope:
        async with supervisor:
            await until_state(supervisor, "api", "healthy")
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not supervisor.running
    assert "fleet_set" in [record.kind for record in stored(tmp_path / "selfheal.db")]


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.1])
async def test_one_cancelled_while_it_is_being_entered_leaves_nothing(tmp_path: Path, after: float) -> None:
    supervisor = Supervisor([quick("api", check=Switch())], journal=tmp_path / "selfheal.db")
    with anyio.move_on_after(after):
        async with supervisor:
            await anyio.sleep_forever()
    assert not supervisor.running
    async with supervisor:
        await until_state(supervisor, "api", "healthy")


async def test_the_lifespan_is_that_of_the_host() -> None:
    supervisor = Supervisor([quick("api", check=Switch())], journal=None)

    async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            async with supervisor.lifespan(app):
                await send({"type": "lifespan.startup.complete"})
                assert (await receive())["type"] == "lifespan.shutdown"
            await send({"type": "lifespan.shutdown.complete"})
            return
        answered = await supervisor.ask("status")
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": json.dumps(answered).encode()})

    async with Asgi(app).served() as request:
        await until_state(supervisor, "api", "healthy")
        reply = await request("/status")
        assert json.loads(reply["body"])["counts"]["healthy"] == 1
    assert not supervisor.running
    with pytest.raises(NotRunning, match="lifespan"):
        await supervisor.ask("status")


async def test_nothing_starts_before_it_is_entered() -> None:
    before = threading.active_count()
    check = Switch()
    Supervisor([quick("api", check=check)], journal=None)
    assert check.calls == 0
    assert threading.active_count() == before


# -- what an application declares ------------------------------------------------------------------------------------


async def test_decorated_functions_check_and_cure() -> None:
    supervisor = Supervisor(journal=None)
    ill, cured = Switch(False), anyio.Event()
    options: dict[str, Any] = {"interval": 0.2, "recheck": 0.05, "failure_threshold": 2, "min_failing_span": 0.0}

    @supervisor.service("index", recovery_actions=MEND, **options)
    async def index_answers() -> bool:
        return ill()

    @supervisor.action("index", "mend")
    async def mend(context: ActionContext) -> None:
        assert context.service == "index"
        ill.well = True
        cured.set()

    async with supervisor, hearing(supervisor) as heard:
        with anyio.fail_after(5):
            await cured.wait()
        await heard.state("index", "healthy")
        with pytest.raises(RuntimeError, match="before it is entered"):
            supervisor.service("late")(index_answers)
        with pytest.raises(RuntimeError, match="before it is entered"):
            supervisor.action("index", "late")(mend)
    with pytest.raises(ValueError, match="registered already"):
        supervisor.service("index")(index_answers)
    with pytest.raises(TypeError, match=r"'mend' of 'index' is called with an ActionContext"):
        supervisor.action("index", "mend")(lambda: None)


# -- changing the fleet ----------------------------------------------------------------------------------------------


@fails_when("a new fleet forgets")
async def test_s7_a_service_registered_again_keeps_its_state_and_its_history() -> None:
    check = Switch(False)
    supervisor = Supervisor([quick("api", check=check), quick("other", check=Switch())], journal=None)
    async with supervisor:
        before = await until_state(supervisor, "api", "failed")
        with pytest.raises(RequestRefused, match="replace=True") as refused:
            await supervisor.register(quick("api", check=Switch()))
        assert refused.value.code == "conflict"
        await supervisor.register(quick("api", check=check, interval=0.25), replace=True)
        after = await state_of(supervisor, "api")
        assert (after["state"], after["incident"], after["since"][:19]) == (
            before["state"],
            before["incident"],
            before["since"][:19],
        )
        assert after["policy"]["interval"] == 0.25
        assert (await state_of(supervisor, "other"))["state"] == "healthy"


@fails_when("a change of the fleet loses the checks under way")
async def test_s8_a_check_may_register_another_service() -> None:
    supervisor = Supervisor(journal=None)
    registered: list[str] = []

    async def registers() -> bool:
        if not registered:
            registered.append("young")
            await supervisor.register(quick("young", check=Switch()))
        return True

    for n in range(5):
        supervisor.service(f"s{n}", **QUICK)(Switch())
    supervisor.service("old", **QUICK)(registers)
    async with supervisor:
        await until(lambda: bool(registered), what="the registering check")
        await until_state(supervisor, "old", "healthy")
        for name in ("young", "s0", "s4"):
            await until_state(supervisor, name, "healthy")


async def test_services_registered_at_the_same_time_are_all_there() -> None:
    supervisor = Supervisor([quick("first", check=Switch())], journal=None)
    async with supervisor:
        async with anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(supervisor.register, quick(f"s{n}", check=Switch()))
        for n in range(8):
            await until_state(supervisor, f"s{n}", "healthy")


async def test_a_refused_fleet_leaves_everything_as_it_was() -> None:
    check = Switch()
    services = [quick("a", check=check, depends_on=["b"]), quick("b", check=Switch()), quick("c", check=Switch())]
    supervisor = Supervisor(services, journal=None)
    async with supervisor, hearing(supervisor) as heard:
        for name in "abc":
            await until_state(supervisor, name, "healthy")
        other = Switch()
        begun = len(heard.of("fleet_set"))
        with pytest.raises(RequestRefused, match=r"a.*b"):
            await supervisor.register(quick("b", check=other, depends_on=["a"]), replace=True)
        calls = check.calls
        await until(lambda: check.calls > calls + 1, what="further checks of a")
        assert other.calls == 0
        assert len(heard.of("fleet_set")) == begun
        graph = await supervisor.ask("graph")
        assert [edge["service"] for edge in graph["edges"]] == ["a"]
        await supervisor.remove("c")  # a third is allowed
        with pytest.raises(RequestRefused, match="no service 'c'"):
            await supervisor.remove("c")
        await supervisor.register(quick("d", check=Switch()))


async def test_dropping_too_much_needs_a_word_more() -> None:
    supervisor = Supervisor([quick("only", check=Switch())], journal=None)
    async with supervisor:
        await until_state(supervisor, "only", "healthy")
        with pytest.raises(RequestRefused, match="confirm"):
            await supervisor.remove("only")
        assert (await state_of(supervisor, "only"))["state"] == "healthy"
        await supervisor.remove("only", confirmed=True)
        with pytest.raises(RequestRefused, match=r"unknown|no service"):
            await supervisor.ask("service", service="only")


async def test_a_check_under_way_does_not_lose_its_service_when_it_is_replaced() -> None:
    """The engine waits for an answer to every command; a replaced check that hangs must not be the last."""
    begun = anyio.Event()

    class Hanging:
        async def __call__(self) -> bool:
            begun.set()
            await anyio.sleep(60)
            return True

    options: dict[str, Any] = {"interval": 30.0, "timeout": 20.0}
    supervisor = Supervisor([quick("api", check=Hanging(), **options), quick("other", check=Switch())], journal=None)
    async with supervisor:
        with anyio.fail_after(5):
            await begun.wait()
        after = Switch()
        await supervisor.register(quick("api", check=after, **options), replace=True)
        await until_state(supervisor, "api", "healthy", within=3.0)
        assert after.calls >= 1


async def test_what_stays_the_same_keeps_its_connection_through_a_registration() -> None:
    with pong() as address:
        wired = quick("wired", check=TcpCheck(address=address))
        supervisor = Supervisor([wired, quick("b", check=Switch())], journal=None)
        async with supervisor:
            await until_state(supervisor, "wired", "healthy")
            lane = _lane(supervisor, "wired")
            await supervisor.register(quick("c", check=Switch()))
            await until_state(supervisor, "c", "healthy")
            assert _lane(supervisor, "wired") is lane


def _lane(supervisor: Supervisor, name: str) -> object:
    running = supervisor._running
    assert running is not None
    return running.checks.entries[name].lane


# -- acts ------------------------------------------------------------------------------------------------------------


async def test_one_act_under_one_id_has_one_effect_and_the_same_answer(tmp_path: Path) -> None:
    supervisor = Supervisor([quick("api", check=Switch())], journal=tmp_path / "selfheal.db")
    async with supervisor, hearing(supervisor) as heard:
        first = await supervisor.act("disable", service="api", actor="alice", reason="a test", id="once")
        with anyio.fail_after(5):
            again = await supervisor.act("disable", service="api", actor="alice", reason="a test", id="once")
        assert again["id"] == first["id"] == "once"
        assert again["seq"] == first["seq"]
        assert len(heard.of("answered")) == 1


async def test_an_act_that_waits_for_a_store_is_not_left_waiting_at_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome: list[NotRunning] = []
    patient = Pace(deadline=30.0)  # nobody has noticed yet that the store hangs
    with faulty(monkeypatch, patient) as store:
        supervisor = Supervisor([quick("api", check=Switch())], journal=tmp_path / "selfheal.db")

        async def act() -> None:
            try:
                await supervisor.act("disable", service="api", actor="alice", reason="a test")
            except NotRunning as problem:
                outcome.append(problem)

        async with anyio.create_task_group() as tasks:
            async with supervisor:
                await until_state(supervisor, "api", "healthy")
                store.hung = threading.Event()
                tasks.start_soon(act)
                await anyio.sleep(0.1)
                assert not outcome
            with anyio.fail_after(1.0):
                await until(lambda: bool(outcome), what="the end of waiting")
            store.hung.set()


async def test_an_act_nobody_knows_is_refused_with_its_name() -> None:
    supervisor = Supervisor([quick("api", check=Switch())], journal=None)
    async with supervisor:
        for name, code in (("__init__", "unknown_request"), ("status", "bad_parameter"), ("records", "bad_parameter")):
            with pytest.raises(RequestRefused) as refused:
                await supervisor.act(name, reason="a test")
            assert refused.value.code == code
        with pytest.raises(RequestRefused):
            await supervisor.act("disable", service="api", reason="")
        with pytest.raises(RequestRefused) as unknown:
            await supervisor.act("disable", service="nobody", reason="a test")
        assert unknown.value.code == "unknown_service"


# -- a fault of our own ----------------------------------------------------------------------------------------------


@fails_when("a fault of ours is passed over")
async def test_s18_a_fault_in_the_engine_ends_the_healing_and_not_the_application(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = RecordingNotifier()
    supervisor = Supervisor([quick("api", check=Switch())], journal=None, notifiers={"people": notifier})
    receive = Engine.receive

    def faulty_receive(engine: Engine, event: Any) -> Any:
        if isinstance(event, CheckFinished):
            raise ZeroDivisionError("a fault of ours")
        return receive(engine, event)

    async with supervisor:
        await until_state(supervisor, "api", "healthy")
        monkeypatch.setattr(Engine, "receive", faulty_receive)
        await until(lambda: bool(notifier.sent), what="the alarm")
        assert (await supervisor.ask("status"))["running"] is False
        assert (await supervisor.ask("health"))["running"] is False
        with pytest.raises(NotRunning):
            await supervisor.act("disable", service="api", reason="a test")
    assert "stopped" in notifier.sent[0].title
    assert any(record.levelname == "CRITICAL" for record in caplog.records)


async def test_a_service_whose_check_returns_nonsense_is_not_taken_for_healthy() -> None:
    supervisor = Supervisor(
        [
            quick("word", check=lambda: "down"),
            quick("none", check=lambda: None),
            quick("verdict", check=lambda: Verdict.WARNING),
            quick("result", check=lambda: CheckResult(Verdict.PASSING)),
        ],
        journal=None,
    )
    async with supervisor:
        await until_state(supervisor, "result", "healthy")
        await until_state(supervisor, "verdict", "degraded")
        for name in ("word", "none"):
            asked = await state_of(supervisor, name)
            assert asked["state"] == "unknown"
            assert asked["evidence"]["inconclusive"] >= 1


@pytest.mark.parametrize(("level", "lines"), [("INFO", 2), ("WARNING", 0)])
async def test_each_decision_is_a_line_of_the_log_for_who_listens(
    level: str, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(level, "selfheal.records"):
        async with Supervisor([Service("api", check=lambda: True, interval=0.1)], journal=None) as supervisor:
            with anyio.fail_after(5.0):
                while (await supervisor.ask("service", service="api"))["state"] != "healthy":  # noqa: ASYNC110  # no event
                    await anyio.sleep(0.01)
    said = [record.getMessage() for record in caplog.records if record.name == "selfheal.records"]
    assert said.count("selfheal begins") + said.count("api: unknown -> healthy (passing)") == lines
