"""No secret appears in a record, the journal's bytes, an answer, a message, a log or a repr (law 16; G20, S63)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import attrs
import pytest

from selfheal import CheckContext, CheckResult, Secret, Service, Supervisor, Verdict, requests
from selfheal.builtin.notifiers import WebhookNotifier
from selfheal.builtin.process import ProcessWorkload
from selfheal.builtin.wire_checks import HttpCheck, RedisPing
from selfheal.core.model import Effect, Instance, Limits, Notification, Run
from selfheal.core.routing import Route
from selfheal.errors import ActionFailed, NotificationFailed
from selfheal.plugins import ActionContext, Context
from selfheal.shell import running as running_module
from selfheal.testing.servers import answer
from selfheal.wire import Talk, Target

if TYPE_CHECKING:
    from tests.shell.supervised import hearing, quick, until, until_state
else:
    from supervised import hearing, quick, until, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


class Canaries:
    """Secrets of this test, each named after the place it was put in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.values: dict[str, str] = {}

    def literal(self, place: str, shape: str = "{}") -> Secret:
        return Secret(shape.format(self._new(place)))

    def of_a_file(self, place: str, shape: str = "{}") -> Secret:
        file = self._folder / f"secret-{place}"
        file.write_text(shape.format(self._new(place)))
        return Secret(file.read_text, source=f"file {file}")

    def _new(self, place: str) -> str:
        self.values[place] = value = f"Canary-{place}-{len(self.values)}-s3cr3t"
        return value

    def found_in(self, text: str) -> list[str]:
        return [place for place, value in self.values.items() if value in text]


@attrs.frozen(kw_only=True)
class Leaky:
    """A check, workload, action and notifier whose every word holds its secret."""

    kind: ClassVar[str] = "leaky"
    verb: ClassVar[str] = "mend"
    effect: ClassVar[Effect] = Effect.GENTLE
    url: Secret

    async def check(self, context: CheckContext) -> CheckResult:
        raise ConnectionRefusedError(111, f"cannot reach {self.url.reveal()}")

    async def run(self, context: ActionContext) -> None:
        raise ActionFailed(f"tried {self.url.reveal()} in vain")

    async def probe(self, context: ActionContext) -> None:
        return None


@attrs.frozen(kw_only=True)
class Telling:
    """A check that tells its secret in a result, its details and the server's run id."""

    kind: ClassVar[str] = "telling"
    password: Secret

    async def check(self, context: CheckContext) -> CheckResult:
        said = self.password.reveal()
        return CheckResult(Verdict.FAILING, summary=f"login {said} failed", details={said: said}, instance=said)


@attrs.frozen(kw_only=True)
class LeakyWorkload:
    """A workload that tells its secret in every detail and every error, and in what its watch says."""

    kind: ClassVar[str] = "leaky"
    token: Secret
    calls: list[int] = attrs.field(factory=list, eq=False)

    async def inspect(self, context: Context) -> Instance:
        self.calls.append(1)
        if len(self.calls) % 5 == 0:
            raise RuntimeError(f"the engine refused {self.token.reveal()}")
        return Instance(id="one", run=Run.RUNNING, detail=f"asked with {self.token.reveal()}")

    async def restart(self, context: ActionContext) -> None:
        raise ActionFailed(f"restart with {self.token.reveal()} was refused")

    async def watch(self, context: Context) -> AsyncIterator[Instance]:
        for run in (Run.RUNNING, Run.STARTING, Run.RUNNING):
            await asyncio.sleep(0.05)
            yield Instance(id="one", run=run, detail=f"heard with {self.token.reveal()}")
        raise ConnectionError(f"lost {self.token.reveal()}")


@attrs.frozen(kw_only=True)
class LeakyWire:
    """A wire check that tells its secret."""

    kind: ClassVar[str] = "leaky-wire"
    address: str
    password: Secret

    def target(self) -> Target:
        host, _, port = self.address.partition(":")
        return Target(host=host, port=int(port))

    def talk(self) -> Talk:
        yield b"hello"
        return CheckResult(Verdict.FAILING, summary=f"AUTH {self.password.reveal()} was refused")


@attrs.frozen(kw_only=True)
class LeakyNotifier:
    kind: ClassVar[str] = "leaky"
    key: Secret

    async def send(self, notification: Notification, context: Context) -> str | None:
        raise NotificationFailed(f"401 for {self.key.reveal()}", permanent=notification.id.endswith("never"))


def fleet(canaries: Canaries, address: str, folder: Path) -> tuple[list[Service], dict[str, Any]]:
    """Return services and notifiers with a secret in every place where one may stand."""
    ladder: list[Any] = [Leaky(url=canaries.literal("action", "https://u:{}@example.org/"))]
    restart: list[Any] = [{"action": "restart", "settle": 0.05}]
    services = [
        quick("raises", check=Leaky(url=canaries.literal("check", "redis://u:{}@127.0.0.1/")), recovery_actions=ladder),
        quick("tells", check=Telling(password=canaries.of_a_file("file"))),
        quick("wire", check=LeakyWire(address=address, password=canaries.literal("wire"))),
        quick("wire-file", check=LeakyWire(address=address, password=canaries.of_a_file("wire-file"))),
        quick("header", check=HttpCheck(url=f"http://{address}/", headers={"authorization": canaries.literal("header")},
                                        body="never there")),
        quick("redis", check=RedisPing(url=canaries.literal("redis", f"redis://:{{}}@{address}/0"))),
        quick("worked", check=lambda: False, workload=LeakyWorkload(token=canaries.literal("workload")),
              recovery_actions=restart),
        quick("worked-file", check=lambda: False, workload=LeakyWorkload(token=canaries.of_a_file("workload-file")),
              recovery_actions=restart),
        quick("program", check=lambda: True, workload=ProcessWorkload(
            command=["sh", "-c", "exec sleep 600"], environment={"TOKEN": canaries.literal("environment")})),
        quick("no-program", check=lambda: False, workload=ProcessWorkload(
            command=["/nowhere/at/all"], environment={"TOKEN": canaries.literal("environment-2")}),
              recovery_actions=restart),
    ]  # fmt: skip
    notifiers: dict[str, Any] = {
        "hook": WebhookNotifier(
            url=canaries.literal("hook-url", "http://127.0.0.1:1/hooks/{}"),
            private=True,
            headers={"authorization": canaries.literal("hook-header", "Bearer {}")},
        ),
        "leaky": LeakyNotifier(key=canaries.literal("notifier")),
        "leaky-file": LeakyNotifier(key=canaries.of_a_file("notifier-file")),
    }
    return services, notifiers


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


async def test_g20_no_secret_is_found_anywhere(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secrets").mkdir()
    canaries = Canaries(tmp_path / "secrets")
    state = tmp_path / "state"
    seen: list[Any] = []
    with answer(b"-ERR wrong password\r\n") as address:
        services, notifiers = fleet(canaries, address, tmp_path)
        supervisor = Supervisor(
            services,
            journal=state / "selfheal.db",
            notifiers=notifiers,
            routes=[Route(notifier=name, group_wait=0.0) for name in notifiers],
            observers=[seen.append],
            limits=Limits(storm_floor=1000, budget_floor=1000, max_concurrent_recoveries=100),
        )
        async with supervisor, hearing(supervisor) as heard:
            for name in ("raises", "worked", "worked-file"):
                await heard.first("ended", service=name, within=10.0)
            for name in ("raises", "tells", "wire", "wire-file", "header"):
                await until_state(supervisor, name, "failed", "recovering", "unhealthy")
            await heard.first("ended", service="no-program", within=10.0)
            await until(lambda: any(s.last_error for s in _standing(supervisor)), what="a failed delivery")
            await anyio.sleep(0.5)
            answers = await _ask_everything(supervisor)
            texts = {
                "records": "\n".join(repr(told) for told in heard.told),
                "observed": json.dumps(seen),
                "answers": answers,
                "repr": f"{supervisor!r} {services!r} {notifiers!r} {_entries(supervisor)}",
                "messages": repr(list(_standing(supervisor))),
            }
            assert "***" in texts["records"]  # something was there to be masked
    texts["log"] = "\n".join([*(said.handler.format(r) for r in said.records), *(repr(r.args) for r in said.records)])
    for file in sorted(state.rglob("*")):
        if file.is_file():
            texts[f"file {file.name}"] = file.read_bytes().decode("latin-1")
    found = {where: places for where, text in texts.items() if (places := canaries.found_in(text))}
    assert found == {}
    assert len(canaries.values) >= 13
    print(f"\n{len(canaries.values)} canaries, {sum(map(len, texts.values()))} characters in {len(texts)} places: none")


def _standing(supervisor: Supervisor) -> Any:
    running = supervisor._running
    assert running is not None
    return running.outbox.standing()


def _entries(supervisor: Supervisor) -> str:
    running = supervisor._running
    assert running is not None
    return repr([*running.roster.entries.values(), running.plan])


async def _ask_everything(supervisor: Supervisor) -> str:
    said = []
    services = [one["service"] for one in await supervisor.ask("services")]
    numbers = [one["incident"] for one in await supervisor.ask("incidents")]
    for request in requests.TABLE.values():
        if request.act or request.name == "heartbeat":
            continue
        required = [parameter.name for parameter in request.parameters if parameter.required]
        asked: list[dict[str, Any]] = [{}]
        if required == ["service"]:
            asked = [{"service": name} for name in services]
        elif required == ["number"]:
            asked = [{"number": number} for number in numbers]
        said += [json.dumps(await supervisor.ask(request.name, **parameters)) for parameters in asked]
    return "\n".join(said)


async def test_a_rotated_secret_is_scrubbed_as_well_as_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first-Canary-value")
    check = Telling(password=Secret(file.read_text, source=f"file {file}"))
    async with Supervisor([quick("tells", check=check)], journal=None) as supervisor, hearing(supervisor) as heard:
        await heard.first("moved")
        file.write_text("second-Canary-value")
        await anyio.sleep(0.5)
        asked = json.dumps(await supervisor.ask("service", service="tells"))
        assert "***" in asked
        assert "Canary-value" not in asked + repr([told.record for told in heard.told])


def test_the_plan_of_a_run_shows_no_secret() -> None:
    notifier = LeakyNotifier(key=Secret("Canary-in-a-plan"))
    plan = running_module.Plan(roster=lambda key: NotImplemented, journal=None, notifiers={"n": notifier})
    assert "Canary" not in repr(plan)
