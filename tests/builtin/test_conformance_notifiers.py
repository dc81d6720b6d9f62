"""Our own notifiers do what a notifier must do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import pytest

from selfheal.builtin.notifiers import AlertmanagerNotifier, LogNotifier, WebhookNotifier
from selfheal.plugins import Notifier
from selfheal.secret import Secret
from selfheal.testing.conformance import NotifierConformance

if TYPE_CHECKING:
    from tests.builtin.receiver import Reply, receiving
else:
    from receiver import Reply, receiving

pytestmark = pytest.mark.real_time

TOKEN = "hunter2-canary-51d2e8"


class TestLog(NotifierConformance):
    inapplicable: ClassVar[Mapping[str, str]] = {
        "make_broken": "it hands a line to the logging of the application, and speaks to nobody",
        "make_refusing": "a log takes every line",
    }

    def make(self) -> Notifier:
        return LogNotifier()

    def make_broken(self, fault: str, address: str) -> Notifier | None:
        return None


class OverHttp(NotifierConformance):
    """A notifier whose receiver takes everything, and one that takes nothing."""

    runs = 10

    @pytest.fixture(autouse=True)
    def _receivers(self) -> Iterator[None]:
        with receiving() as well, receiving() as refusing:
            refusing.always = Reply(status=403, body=b"who are you?")
            self.well, self.refusing = well, refusing
            yield

    def make(self) -> Notifier:
        return self._at(self.well.url)

    def make_refusing(self) -> Notifier:
        return self._at(self.refusing.url)

    def make_broken(self, fault: str, address: str) -> Notifier:
        return self._at(f"http://{address}")

    def _at(self, url: str) -> Notifier:
        raise NotImplementedError


class TestWebhook(OverHttp):
    def _at(self, url: str) -> Notifier:
        return WebhookNotifier(url=Secret(f"{url}/hooks/{TOKEN}"), secret=Secret(TOKEN), private=True)


class TestAlertmanager(OverHttp):
    def _at(self, url: str) -> Notifier:
        return AlertmanagerNotifier(url=[url], headers={"Authorization": Secret(TOKEN)})
