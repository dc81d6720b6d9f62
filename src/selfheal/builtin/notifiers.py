"""Notifiers that need no service of their own: the log, and a webhook.

Owns the public JSON of a notification, and its signature.
`AlertmanagerNotifier` lives beside this file and is exported here too, because `builtin.notifiers` is where the
loader looks.

A receiver of the webhook verifies it as any receiver of Standard Webhooks does (https://www.standardwebhooks.com):

1. take the headers `webhook-id`, `webhook-timestamp` (UNIX seconds) and `webhook-signature` (`v1,<base64>`, several
   separated by blanks), and the body as it came, before any parsing;
2. refuse a timestamp more than 300 s from its own clock: what was recorded cannot be replayed later;
3. compute HMAC-SHA256 of `<id>.<timestamp>.<body>` with the shared secret and compare in constant time;
4. ignore an id it has seen before: delivery is at least once, and a repetition has the same id, while its timestamp
   and its signature are new.

`signature_holds` does 1 to 3.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from selfheal.builtin.alertmanager import AlertmanagerNotifier
from selfheal.builtin.http_client import SEE_URL, Answer, Ask, check_headers, check_url, neutral, obstacle, reveal
from selfheal.builtin.notices import delivered, header_safe, matter, utc
from selfheal.core.bounds import seconds
from selfheal.core.model import Notification, Phase, Severity
from selfheal.errors import Problem
from selfheal.plugins import Context
from selfheal.secret import Secret

SHAPE: Final = 1
"""The version of the JSON a webhook receives. New fields do not raise it; a changed or missing one would."""

REPLAY_WINDOW: Final = 300.0
"""Seconds a timestamp may differ from the receiver's clock, as Standard Webhooks recommends (five minutes)."""

__all__ = ["AlertmanagerNotifier", "LogNotifier", "WebhookNotifier", "matter", "signature_holds"]

logger = logging.getLogger("selfheal.notify")


# -- the log --------------------------------------------------------------------------------------------------------

_LEVELS: Final[Mapping[Severity, int]] = {
    Severity.CRITICAL: logging.CRITICAL,
    Severity.HIGH: logging.ERROR,
    Severity.MEDIUM: logging.WARNING,
    Severity.LOW: logging.INFO,
}


@attrs.frozen(kw_only=True)
class LogNotifier:
    """Write each notification as one line to the log `selfheal.notify`, at a level by severity (resolved: INFO).

    Nothing is configured: the application or the daemon says where the log goes. It needs no network and no store.
    """

    kind: ClassVar[str] = "log"

    async def send(self, notification: Notification, context: Context) -> str | None:
        level = logging.INFO if notification.phase is Phase.RESOLVED else _LEVELS[notification.severity]
        fields = _log_fields(notification)
        line = "notification " + " ".join(f"{name}={_log_value(value)}" for name, value in fields.items())
        logger.log(level, "%s", line, extra={"notification": fields})
        return None


def _log_fields(notification: Notification) -> dict[str, str | int]:
    fields: dict[str, str | int | None] = {
        "phase": notification.phase.value,
        "severity": notification.severity.value,
        "service": notification.service,
        "incident": notification.incident,
        "title": notification.title,
        "text": notification.text,
        "since": utc(notification.since),
        "correlation": notification.correlation,
        "link": notification.link,
        "id": notification.id,
    }
    return {
        name: neutral(value) if isinstance(value, str) else value
        for name, value in fields.items()
        if value is not None and value != ""
    }


def _log_value(value: str | int) -> str:
    if isinstance(value, int) or all(c.isalnum() or c in "-_.:/" for c in value):
        return str(value)
    return '"' + value.replace('"', '\\"') + '"'


# -- the webhook ----------------------------------------------------------------------------------------------------


def body_of(notification: Notification) -> dict[str, Any]:
    """Return the public JSON of a notification, version `SHAPE`."""
    return {
        "version": SHAPE,
        "kind": "notification",
        "id": notification.id,
        "matter": matter(notification),
        "phase": notification.phase.value,
        "severity": notification.severity.value,
        "service": notification.service or None,
        "incident": notification.incident,
        "title": notification.title,
        "text": notification.text,
        "since": utc(notification.since),
        "correlation": notification.correlation or None,
        "link": notification.link,
        "receipt": notification.receipt,
    }


def sign(secret: str, identity: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` of a message. A secret `whsec_…` is base64, any other is taken as it is written.

    Raises `ValueError` when what follows `whsec_` is not base64.
    """
    key = secret.encode()
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("what follows whsec_ is not base64") from None
    digest = hmac.digest(key, f"{identity}.{timestamp}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(digest).decode()


def signature_holds(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float, window: float = REPLAY_WINDOW
) -> bool:
    """Return whether a webhook that was received is authentic and fresh. Header names are expected in lower case.

    `now` is the receiver's UNIX time, `window` how many seconds the timestamp may differ from it. Whether its
    `webhook-id` was seen before is the receiver's to know.
    """
    stamp = headers.get("webhook-timestamp", "")
    if not (stamp.isascii() and stamp.isdecimal() and len(stamp) < 16) or abs(now - int(stamp)) > window:
        return False
    expected = sign(secret, headers.get("webhook-id", ""), int(stamp), body)
    given = headers.get("webhook-signature", "").split(" ")[:8]
    return any(hmac.compare_digest(expected.encode(), one.encode()) for one in given)


@attrs.frozen(kw_only=True)
class WebhookNotifier:
    """Post each notification as JSON to a URL of yours; its fields are those of `selfheal.builtin.notifiers.body_of`.

    With `secret`, every message is signed as Standard Webhooks does: `webhook-signature` is the HMAC-SHA256 of
    `<webhook-id>.<webhook-timestamp>.<body>`. A receiver refuses a timestamp more than 300 s off and ignores an id it
    has seen; `selfheal.builtin.notifiers.signature_holds` checks the rest.

    `headers` are added, `private` allows a receiver at a loopback or private address, `authority` is a PEM file of the
    only authorities to trust, `timeout` is for one attempt as a whole. No redirect is followed, and no proxy is used.

    Any 2xx is delivered; the receipt is the header `webhook-receipt`, or `receipt` or `id` of a JSON answer.
    """

    kind: ClassVar[str] = "webhook"

    url: str | Secret = attrs.field(validator=check_url, repr=False)
    secret: Secret | None = None
    headers: Mapping[str, str | Secret] = attrs.field(factory=dict, validator=check_headers, repr=False)
    private: bool = False
    verify: bool = True
    authority: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    timeout: float = seconds(10.0, 0.1, 600.0)

    async def send(self, notification: Notification, context: Context) -> str | None:
        body = json.dumps(body_of(notification), ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        answer = await delivered(context, self._ask({**self.headers, **self._own_headers(notification, body)}, body))
        return _receipt(answer)

    async def doctor(self, context: Context) -> Sequence[Problem]:
        """Return what would keep a message from being delivered; nothing is sent."""
        ask = attrs.evolve(self._ask(self.headers), timeout=min(self.timeout, context.remaining / 2))
        why = await context.blocking(obstacle, ask)
        return [Problem(path="url", message=why, hint=SEE_URL)] if why else []

    def _ask(self, headers: Mapping[str, str | Secret], body: bytes = b"") -> Ask:
        return Ask(
            method="POST",
            url=self.url,
            headers=headers,
            body=body,
            private=self.private,
            verify=self.verify,
            authority=self.authority,
            timeout=self.timeout,
        )

    def _own_headers(self, notification: Notification, body: bytes) -> dict[str, str | Secret]:
        identity = header_safe(notification.id)
        timestamp = int(time.time())
        own: dict[str, str | Secret] = {
            "Content-Type": "application/json",
            "Idempotency-Key": identity,
            "webhook-id": identity,
            "webhook-timestamp": str(timestamp),
        }
        secret = self.secret
        if secret is not None:
            # A secret made of a secret: it is read in the thread that reads them all, each time anew.
            own["webhook-signature"] = Secret(
                lambda: sign(reveal(secret), identity, timestamp, body), source=secret.source
            )
        return own


def _receipt(answer: Answer) -> str | None:
    named = answer.headers.get("webhook-receipt")
    if named is None:
        try:
            data = json.loads(answer.body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(data, dict):
            return None
        found = data.get("receipt", data.get("id"))
        if isinstance(found, bool) or not isinstance(found, (str, int)):
            return None
        named = str(found)
    return answer.plain(named) or None
