"""The roads of a check: one answer for each command, stamped where it ran, with or without an inspection."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import attrs
import pytest
from tests.broken import fails_when

from selfheal import CheckContext, CheckResult, Service, Supervisor, Verdict
from selfheal.builtin.wire_checks import TcpCheck
from selfheal.core.messages import CheckFinished
from selfheal.core.model import PASSING, Cause, Instance, Run
from selfheal.journal import SqliteStore
from selfheal.plugins import Context
from selfheal.shell.roster import Road, road_of
from selfheal.testing.doubles import ScriptedCheck, ScriptedWorkload
from selfheal.testing.servers import hang, pong, refuse
from selfheal.wire import Talk, Target

if TYPE_CHECKING:
    from tests.shell.supervised import QUICK, Switch, hearing, quick, state_of, until, until_state
else:
    from supervised import QUICK, Switch, hearing, quick, state_of, until, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@attrs.frozen(kw_only=True)
class Both:
    """A class with both `talk` and `check`."""

    kind: ClassVar[str] = "both"
    address: str
    deeply: list[bool] = attrs.field(factory=list, eq=False)

    def target(self) -> Target:
        host, _, port = self.address.partition(":")
        return Target(host=host, port=int(port))

    def talk(self) -> Talk:
        return PASSING
        yield

    async def check(self, context: CheckContext) -> CheckResult:
        self.deeply.append(context.deep)
        return PASSING


def finished(path: Path) -> list[CheckFinished]:
    store = SqliteStore.open(path)
    try:
        return [batch.input for batch in store.batches() if isinstance(batch.input, CheckFinished)]
    finally:
        store.close()


async def test_each_check_goes_its_own_road() -> None:
    assert road_of(TcpCheck(address="127.0.0.1:1"), deep=True) is Road.WIRE  # it has no `check`
    assert road_of(Both(address="127.0.0.1:1"), deep=False) is Road.WIRE
    assert road_of(Both(address="127.0.0.1:1"), deep=True) is Road.PLUGIN
    assert road_of(ScriptedCheck(), deep=False) is Road.PLUGIN
    assert road_of(Switch(), deep=False) is Road.CALLABLE


async def test_deep_uses_the_coroutine_and_tells_it() -> None:
    with pong() as address:
        shallow, deep = Both(address=address), Both(address=address)
        services = [quick("shallow", check=shallow), quick("deep", check=deep, deep=True)]
        async with Supervisor(services, journal=None) as supervisor:
            await until_state(supervisor, "shallow", "healthy")
            await until_state(supervisor, "deep", "healthy")
    assert shallow.deeply == []
    assert deep.deeply
    assert all(deep.deeply)


async def test_results_are_stamped_where_they_ran_and_latency_is_theirs_alone(tmp_path: Path) -> None:
    """The host's loop stands still while the coroutine runs elsewhere: that is not the check's latency."""
    begun = threading.Event()

    @attrs.frozen(kw_only=True)
    class Timed:
        kind: ClassVar[str] = "timed"

        async def check(self, context: CheckContext) -> CheckResult:
            begun.set()
            await asyncio.sleep(0.05)
            return PASSING

    service = Service("api", check=Timed(), interval=60.0)
    async with Supervisor([service], journal=tmp_path / "selfheal.db") as supervisor:
        await anyio.to_thread.run_sync(begun.wait)
        time.sleep(0.22)  # noqa: ASYNC251  # the application's fault is the subject, below what makes us doubt
        asked = await until_state(supervisor, "api", "healthy")
    assert 0.05 <= asked["latency_seconds"] < 0.15
    (one,) = finished(tmp_path / "selfheal.db")
    assert one.at - one.ended >= 0.05


async def test_an_inspection_comes_first_once_it_fails_and_has_a_deadline_of_its_own(tmp_path: Path) -> None:
    @attrs.frozen(kw_only=True)
    class Silent(ScriptedWorkload):
        kind: ClassVar[str] = "silent"
        asked: list[float] = attrs.field(factory=list, eq=False)

        async def inspect(self, context: Context) -> Instance:
            self.asked.append(context.remaining)
            await asyncio.sleep(3600)
            return self.current

    workload, check = Silent(), Switch()
    service = quick("api", check=check, workload=workload)
    path = tmp_path / "selfheal.db"
    async with Supervisor([service], journal=path) as supervisor, hearing(supervisor) as heard:
        await until_state(supervisor, "api", "healthy")
        asked, calls = len(workload.asked), check.calls
        await until(lambda: check.calls > calls + 2, what="further checks")
        assert len(workload.asked) == asked  # nobody asks while all is well
        check.well = False
        await heard.state("api", "failed")
        assert (await state_of(supervisor, "api"))["evidence"]["instance"]["run"] == "unknown"
        check.well = True
        await heard.state("api", "healthy", nth=2)  # the check runs all the same
    assert workload.asked
    assert all(0.0 < remaining <= QUICK["timeout"] for remaining in workload.asked)
    inspected = [one for one in finished(path) if one.instance is not None]
    assert {one.instance.run for one in inspected if one.instance is not None} == {Run.UNKNOWN}
    assert all(one.ended - one.started < QUICK["timeout"] for one in inspected)  # its time is not the check's


async def test_who_runs_is_told_in_journal_time(tmp_path: Path) -> None:
    since = time.time() - 1000.0

    @attrs.frozen(kw_only=True)
    class Old(ScriptedWorkload):
        kind: ClassVar[str] = "old"

        async def inspect(self, context: Context) -> Instance:
            return Instance(id="old", run=Run.RUNNING, since=since)

    path = tmp_path / "selfheal.db"
    async with Supervisor([quick("api", check=Switch(False), workload=Old())], journal=path) as supervisor:
        await until_state(supervisor, "api", "failed")
        asked = await state_of(supervisor, "api")
    (instance,) = {one.instance.since for one in finished(path)[-1:] if one.instance is not None}
    assert instance == pytest.approx(-1000.0, abs=5.0)
    assert asked["evidence"]["instance"]["since"] is not None


async def test_every_road_tells_a_failure_with_its_cause() -> None:
    with refuse() as refused, hang() as _:
        services = [
            quick("wire", check=TcpCheck(address=refused)),
            quick("plugin", check=ScriptedCheck(script=(ConnectionRefusedError(111, "refused"),))),
            quick("slow", check=ScriptedCheck(script=(3600.0,))),
            quick("called", check=_raises),
            quick("missing", check=ScriptedCheck(script=(ImportError("no driver"),))),
        ]
        async with Supervisor(services, journal=None) as supervisor:
            for name, cause in [
                ("wire", Cause.UNREACHABLE),
                ("plugin", Cause.UNREACHABLE),
                ("slow", Cause.TIMEOUT),
                ("called", Cause.ERROR),
            ]:
                assert (await until_state(supervisor, name, "failed"))["evidence"]["cause"] == cause
            missing = await state_of(supervisor, "missing")
            assert missing["state"] == "unknown"  # a check that could not run is no failure (law 7, S65)
            assert missing["evidence"]["inconclusive"] > 0


def _raises() -> bool:
    raise RuntimeError("x")


@fails_when("exceptions lose their words")
async def test_s10_the_text_of_an_exception_is_kept() -> None:
    async with Supervisor([quick("api", check=_raises)], journal=None) as supervisor:
        assert (await until_state(supervisor, "api", "failed"))["summary"] == "RuntimeError: x"


async def test_what_is_cancelled_is_not_heard_of_again() -> None:
    """A result of a check that was dropped would answer a command that is not its own (law 3)."""
    slow, quicker = anyio.Event(), Switch()

    async def slowly() -> bool:
        try:
            await anyio.sleep(0.1)
        finally:
            slow.set()
        return False

    supervisor = Supervisor([quick("api", check=slowly, interval=5.0, timeout=4.0)], journal=None)
    async with supervisor, hearing(supervisor) as heard:
        await supervisor.register(quick("b", check=Switch()))
        await supervisor.register(quick("api", check=quicker, interval=5.0, timeout=4.0), replace=True)
        await until_state(supervisor, "api", "healthy")
        with anyio.fail_after(2):
            await slow.wait()
        await anyio.sleep(0.2)
        assert {r.after.state for r in heard.of("moved", service="api")} == {"unknown", "healthy"}


async def test_a_check_may_ask_its_own_workload() -> None:
    @attrs.frozen(kw_only=True)
    class Asking:
        kind: ClassVar[str] = "asking"

        async def check(self, context: Any) -> CheckResult:
            assert context.workload is not None
            instance = await context.workload.inspect(context)
            return PASSING if instance.run is Run.RUNNING else CheckResult(Verdict.FAILING)

    workload = ScriptedWorkload()
    async with Supervisor([quick("api", check=Asking(), workload=workload)], journal=None) as supervisor:
        await until_state(supervisor, "api", "healthy")
        workload.end()
        await until_state(supervisor, "api", "failed")


async def test_what_plugins_keep_is_closed_when_their_service_is_replaced_or_removed() -> None:
    class Connection:
        def __init__(self) -> None:
            self.open = True

        async def aclose(self) -> None:
            self.open = False

    connections: list[Connection] = []

    @attrs.frozen(kw_only=True)
    class Keeping:
        kind: ClassVar[str] = "keeping"
        name: str

        async def check(self, context: CheckContext) -> CheckResult:
            if "connection" not in context.kept:
                connections.append(context.kept.setdefault("connection", Connection()))
            return PASSING

    services = [quick("api", check=Keeping(name="one")), quick("b", check=Switch()), quick("c", check=Switch())]
    async with Supervisor(services, journal=None) as supervisor:
        await until_state(supervisor, "api", "healthy")
        await supervisor.register(quick("api", check=Keeping(name="two")), replace=True)
        await until(lambda: len(connections) == 2, what="the second connection")
        await until(lambda: not connections[0].open, what="the end of the first")
        assert connections[1].open
        await supervisor.remove("api")
        await until(lambda: not connections[1].open, what="the end of the second")
