"""People are told once, of everything, over restarts and reloads; receivers that forget are told again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import pytest

from selfheal import Service, Supervisor
from selfheal.config import Configuration
from selfheal.core.model import Phase
from selfheal.core.records import Record
from selfheal.core.routing import Route
from selfheal.errors import NotificationFailed
from selfheal.journal import SqliteStore
from selfheal.shell.telling import still_told
from selfheal.testing.doubles import RecordingNotifier

if TYPE_CHECKING:
    from tests.shell.supervised import Switch, hearing, quick, stored, until, until_state
else:
    from supervised import Switch, hearing, quick, stored, until, until_state

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

AT_ONCE = Route(notifier="people", group_wait=0.0)


@attrs.frozen(kw_only=True)
class Forgetful(RecordingNotifier):
    """A receiver that forgets what is not repeated, as Alertmanager does."""

    refresh: float = 0.2


class Down:
    """A service that is down until the test says otherwise, in as many runs as are wanted."""

    def __init__(self, path: Path) -> None:
        self.path, self.check = path, Switch(False)

    def run(self, notifier: RecordingNotifier, **options: Any) -> Supervisor:
        return Supervisor(
            [quick("api", check=self.check)],
            journal=self.path,
            notifiers={"people": notifier},
            routes=[AT_ONCE],
            **options,
        )


async def test_what_was_told_and_is_open_is_told_again_after_a_restart_to_who_forgets(tmp_path: Path) -> None:
    down = Down(tmp_path / "selfheal.db")
    first, second, third = Forgetful(), Forgetful(), Forgetful()
    async with down.run(first) as supervisor, hearing(supervisor) as heard:
        await heard.first("delivered")
    async with down.run(second):
        await until(lambda: len(second.sent) >= 3, what="three repetitions")
    assert {message.id for message in second.sent} <= {message.id for message in first.sent}
    assert all(abs(message.since - first.sent[0].since) < 1.0 for message in second.sent)
    down.check.well = True
    async with down.run(third) as supervisor, hearing(supervisor) as heard:
        await until(lambda: any(message.phase is Phase.RESOLVED for message in third.sent), what="the end")
        await heard.first("incident_closed")


async def test_what_was_told_is_not_told_again_to_who_remembers(tmp_path: Path) -> None:
    down = Down(tmp_path / "selfheal.db")
    first, second = RecordingNotifier(), RecordingNotifier()
    async with down.run(first) as supervisor, hearing(supervisor) as heard:
        await heard.first("delivered")
    async with down.run(second) as supervisor:
        await until_state(supervisor, "api", "failed")
        await anyio.sleep(0.5)
    told = {message.id for message in first.sent}
    assert [message.id for message in second.sent if message.id in told] == []


async def test_what_was_not_delivered_is_offered_again_under_its_own_id(tmp_path: Path) -> None:
    down = Down(tmp_path / "selfheal.db")
    first, second = RecordingNotifier(script=(NotificationFailed("away"),)), RecordingNotifier()
    async with down.run(first) as supervisor:
        running = supervisor._running
        assert running is not None
        await until(lambda: running.outbox.standing()[0].failing_since is not None, what="a failed attempt")
        waiting = running.outbox._lines["people"].waiting[0].notification.id
    async with down.run(second):
        await until(lambda: bool(second.sent), what="the message")
    assert second.sent[0].id == waiting


async def test_deliveries_are_journalled_with_their_inputs(tmp_path: Path) -> None:
    down = Down(tmp_path / "selfheal.db")
    async with down.run(RecordingNotifier(script=("a receipt",))) as supervisor, hearing(supervisor) as heard:
        delivered = await heard.first("delivered")
    assert delivered.receipt == "a receipt"
    store = SqliteStore.open(down.path)
    inputs = [batch.input for batch in store.batches() if any(r.kind == "delivered" for r in batch.records)]
    store.close()
    assert inputs
    assert {type(given).__name__ for given in inputs} == {"DeliveryFinished"}


async def test_a_notifier_with_new_settings_takes_over_at_a_reload(tmp_path: Path) -> None:
    down = Down(tmp_path / "selfheal.db")
    old, new = RecordingNotifier(script=(NotificationFailed("wrong address"),)), RecordingNotifier()
    async with down.run(old) as supervisor:
        running = supervisor._running
        assert running is not None
        await until(lambda: running.outbox.standing()[0].failing_since is not None, what="a failed attempt")
        services = (quick("api", check=down.check),)
        await supervisor.reload(_configuration(services, new))
        await until(lambda: bool(new.sent), what="the message", within=2.0)


def _configuration(services: Iterable[Service], notifier: RecordingNotifier) -> Configuration:
    return Configuration(services=tuple(services), notifiers={"people": notifier}, routes=(AT_ONCE,))


def _history(path: Path) -> list[Record]:
    kinds = ("alert_changed", "delivered", "suppression_changed", "incident_merged", "incident_closed")
    return [record for record in stored(path) if record.kind in kinds]


async def test_only_what_is_told_and_not_ended_stands(tmp_path: Path) -> None:
    down = Down(tmp_path / "selfheal.db")
    notifier = RecordingNotifier()
    async with down.run(notifier) as supervisor, hearing(supervisor) as heard:
        await heard.first("delivered")
        down.check.well = True
        await until(lambda: any(message.phase is Phase.RESOLVED for message in notifier.sent), what="the end")
        down.check.well = False
        await heard.first("incident_opened", nth=2)
        await until(lambda: notifier.sent[-1].phase is not Phase.RESOLVED, what="the next beginning")
        await anyio.sleep(0.2)
    standing = still_told([AT_ONCE], _history(down.path), ["people", "somebody else"])
    assert standing["somebody else"] == []
    assert [deliver.notification.id for deliver in standing["people"]] == [notifier.sent[-1].id]
