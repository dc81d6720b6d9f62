"""Against the real Alertmanager: what fires is seen, what is resolved goes, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from selfheal.builtin.notifiers import AlertmanagerNotifier
from selfheal.core.model import Notification, Phase, Severity
from selfheal.errors import NotificationFailed
from selfheal.secret import Secret

if TYPE_CHECKING:
    from tests.builtin.receiver import Call, Receiver, Reply, everything, receiving
    from tests.servers import free_port, program_of, until
else:
    from receiver import Call, Reply, everything, receiving

    from servers import free_port, program_of, until

pytestmark = pytest.mark.anyio

CANARY = "canary-51d2e8"


def notification(**changes: Any) -> Notification:
    base = Notification(
        id="n-1",
        incident=17,
        service="redis",
        phase=Phase.FIRING,
        severity=Severity.HIGH,
        title="redis is down",
        text="unreachable",
        since=time.time() - 600,
        correlation="c-9",
    )
    return attrs.evolve(base, **changes)


class Alertmanager:
    """One process of the real program, on a port of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        self._program = program
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "config.yml").write_text(
            "route: {receiver: nobody, group_wait: 1s, group_by: [service]}\nreceivers: [{name: nobody}]\n"
        )

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={self._folder / 'config.yml'}",
                    f"--storage.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=log,
            )
        until(self._ready, "Alertmanager is ready")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def alerts(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def severities(self) -> list[str]:
        return sorted(alert["labels"]["severity"] for alert in self.alerts())

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    one = Alertmanager(program_of("alertmanager", "prometheus-alertmanager", "alertmanager"), tmp_path)
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
async def call() -> AsyncIterator[Call]:
    one = Call()
    yield one
    await one.aclose()


@pytest.mark.server
async def test_firing_shows_and_resolved_disappears(alertmanager: Alertmanager, call: Call) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url, fleet="hub", labels={"team": "ops"})
    link = "https://example.org/incidents/17"
    assert await notifier.send(notification(link=link), call) == "incident-17"
    (alert,) = alertmanager.alerts()
    assert alert["labels"] == {
        "alertname": "ServiceNeedsAttention",
        "service": "redis",
        "severity": "high",
        "incident": "17",
        "fleet": "hub",
        "team": "ops",
    }
    assert alert["annotations"] == {
        "summary": "redis is down",
        "description": "unreachable",
        "correlation": "c-9",
        "notification": "n-1",
    }
    assert alert["generatorURL"] == link
    await notifier.send(notification(phase=Phase.RESOLVED, id="n-2", title="redis is well"), call)
    assert alertmanager.alerts() == []


@pytest.mark.server
@pytest.mark.parametrize("age", [0.0, 5.0, 86400.0])
async def test_a_resolution_counts_however_young_the_matter_is(
    age: float, alertmanager: Alertmanager, call: Call
) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url)
    since = time.time() - age
    await notifier.send(notification(since=since), call)
    assert len(alertmanager.alerts()) == 1
    await notifier.send(notification(since=since, phase=Phase.RESOLVED), call)
    assert alertmanager.alerts() == []
    await notifier.send(notification(since=since, phase=Phase.RESOLVED), call)
    assert alertmanager.alerts() == [], "a repetition changes nothing"


@pytest.mark.server
async def test_a_relapse_fires_again(alertmanager: Alertmanager, call: Call) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url)
    for phase in (Phase.FIRING, Phase.RESOLVED, Phase.FIRING):
        await notifier.send(notification(phase=phase), call)
    assert alertmanager.severities() == ["high"]


@pytest.mark.server
async def test_a_change_of_severity_leaves_one_alert(alertmanager: Alertmanager, call: Call) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url)
    await notifier.send(notification(), call)
    await notifier.send(notification(phase=Phase.UPDATED, severity=Severity.CRITICAL), call)
    assert alertmanager.severities() == ["critical"]
    await notifier.send(notification(phase=Phase.RESOLVED, severity=Severity.LOW), call)
    assert alertmanager.severities() == []


@pytest.mark.server
async def test_an_alert_outlives_the_healer(alertmanager: Alertmanager, call: Call) -> None:
    """Alertmanager's own resolve_timeout (5 min) does not apply: the end is ours, and far ahead."""
    before = time.time()
    await AlertmanagerNotifier(url=alertmanager.url, alive_for=3600.0).send(notification(), call)
    (alert,) = alertmanager.alerts()
    ends = time.mktime(time.strptime(alert["endsAt"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert before + 3590 < ends < time.time() + 3601


@pytest.mark.server
async def test_matters_are_kept_apart(alertmanager: Alertmanager, call: Call) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url)
    for incident, service, correlation in (
        (1, "redis", "a"),
        (2, "redis", "a"),
        (1, "api", "a"),
        (None, "redis", "a"),
        (None, "redis", "b"),
        (None, "", ""),
    ):
        await notifier.send(notification(incident=incident, service=service, correlation=correlation), call)
    assert len(alertmanager.alerts()) == 6
    await notifier.send(notification(incident=None, correlation="a", phase=Phase.RESOLVED), call)
    assert len(alertmanager.alerts()) == 5


@pytest.mark.server
async def test_hostile_text_is_taken(alertmanager: Alertmanager, call: Call) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url)
    evil = 'x"\\\n{{ .Labels }}\x00\ud800' + "y" * 5000
    await notifier.send(notification(service=evil, title=evil, text=evil, link="javascript:alert(1)"), call)
    (alert,) = alertmanager.alerts()
    assert "generatorURL" not in alert
    description = alert["annotations"]["description"]
    assert description.startswith('x"\\\n{{ .Labels }}\\u0000')
    assert len(description) < 2100
    assert alert["labels"]["service"].isprintable()


@pytest.mark.server
async def test_a_restart_of_alertmanager_forgets_and_the_next_refresh_tells_it_again(
    alertmanager: Alertmanager, call: Call
) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url)
    await notifier.send(notification(), call)
    alertmanager.stop()
    with pytest.raises(NotificationFailed, match="Connection refused") as caught:
        await notifier.send(notification(), call)
    assert not caught.value.permanent
    alertmanager.start()
    assert alertmanager.alerts() == [], "it keeps alerts in memory only: this is why they are refreshed"
    await notifier.send(notification(), call)
    assert alertmanager.severities() == ["high"]


@pytest.mark.real_time
@pytest.mark.server
async def test_one_that_hangs_is_a_temporary_failure(alertmanager: Alertmanager) -> None:
    call = Call(timeout=0.5)
    alertmanager.signal(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(NotificationFailed, match="no answer within") as caught:
        await AlertmanagerNotifier(url=alertmanager.url).send(notification(), call)
    assert not caught.value.permanent
    assert time.monotonic() - started < 3.0
    alertmanager.signal(signal.SIGCONT)
    await call.aclose()


@pytest.mark.server
async def test_what_it_refuses_is_permanent(alertmanager: Alertmanager, call: Call) -> None:
    notifier = AlertmanagerNotifier(url=alertmanager.url + "/wrong")
    with pytest.raises(NotificationFailed, match="404") as caught:
        await notifier.send(notification(), call)
    assert caught.value.permanent


# -- several ----------------------------------------------------------------------------------------------------------


async def test_all_are_told_and_one_is_enough(receiver: Receiver, call: Call) -> None:
    with receiving() as second:
        second.always = Reply(status=500)
        closed = f"http://127.0.0.1:{free_port()}"
        notifier = AlertmanagerNotifier(url=[closed, second.url, receiver.url])
        assert await notifier.send(notification(), call) == "incident-17"
        assert len(receiver.requests) == len(second.requests) == 1
        assert receiver.requests[0].target == "/api/v2/alerts"


@pytest.mark.real_time
async def test_one_that_hangs_does_not_keep_the_others_from_being_told(receiver: Receiver, call: Call) -> None:
    with receiving() as second:
        second.always = Reply(deed="hang")
        started = time.monotonic()
        await AlertmanagerNotifier(url=[second.url, receiver.url], timeout=0.5).send(notification(), call)
        assert time.monotonic() - started < 3.0
        assert len(receiver.requests) == 1


async def test_when_all_fail_each_is_named_by_its_number(receiver: Receiver, call: Call) -> None:
    with receiving() as second:
        receiver.always = Reply(status=400, body=b"bad")
        second.always = Reply(status=429, headers={"Retry-After": "9"})
        with pytest.raises(NotificationFailed) as caught:
            await AlertmanagerNotifier(url=[receiver.url, second.url]).send(notification(), call)
        assert str(caught.value) == "number 1: answered 400: bad; number 2: answered 429: {}"
        assert (caught.value.retry_after, caught.value.permanent) == (9.0, False), "the second may take it later"


# -- configuration and secrets ----------------------------------------------------------------------------------------


async def test_a_path_and_a_query_of_the_url_are_kept(receiver: Receiver, call: Call) -> None:
    await AlertmanagerNotifier(url=receiver.url + "/alerts/?tenant=a").send(notification(), call)
    assert receiver.requests[0].target == "/alerts/api/v2/alerts?tenant=a"


async def test_no_secret_shows(receiver: Receiver, caplog: pytest.LogCaptureFixture, call: Call) -> None:
    caplog.set_level("INFO")
    receiver.always = Reply(status=401, body=f"bad {CANARY}-token for {CANARY}-path".encode())
    notifier = AlertmanagerNotifier(
        url=[Secret(f"{receiver.url}/{CANARY}-path"), Secret(f"http://{CANARY}.invalid")],
        headers={"Authorization": Secret(f"{CANARY}-token")},
    )
    with pytest.raises(NotificationFailed) as caught:
        await notifier.send(notification(), call)
    assert receiver.requests[0].target == f"/{CANARY}-path/api/v2/alerts"
    assert CANARY not in everything(caught.value) + caplog.text + repr(notifier)


@pytest.mark.parametrize("labels", [{"a-b": "x"}, {"1a": "x"}, {"": "x"}, {"service": "x"}, {"severity": "x"}])
def test_labels_alertmanager_would_refuse_are_refused_at_load(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="labels"):
        AlertmanagerNotifier(url="http://127.0.0.1:9093", labels=labels)


@pytest.mark.parametrize("url", [[], "ftp://x", ["http://ok", ""]])
def test_urls_are_checked_at_load(url: Any) -> None:
    with pytest.raises(ValueError, match="url"):
        AlertmanagerNotifier(url=url)
