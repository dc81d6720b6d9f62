"""The log and the webhook, against real receivers that misbehave in every way we know of."""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trustme

from selfheal.builtin.http_client import BODY_LIMIT, Ask, NoAnswer, Reach, exchange, neutral, reach, split
from selfheal.builtin.notices import matter, retry_after
from selfheal.builtin.notifiers import (
    AlertmanagerNotifier,
    LogNotifier,
    WebhookNotifier,
    sign,
    signature_holds,
)
from selfheal.core.model import Notification, Phase, Severity
from selfheal.errors import NotificationFailed, PluginError
from selfheal.plugins import Notifier
from selfheal.secret import Secret

if TYPE_CHECKING:
    from tests.builtin.receiver import Call, Deed, Receiver, Reply, descriptors, everything, receiving
else:
    from receiver import Call, Reply, descriptors, everything, receiving

pytestmark = pytest.mark.anyio

CANARY = "canary-7f3a9c"
NOW = 1_750_000_000.0


def notification(**changes: Any) -> Notification:
    base = Notification(
        id="n-41",
        incident=17,
        service="redis",
        phase=Phase.FIRING,
        severity=Severity.HIGH,
        title="redis is down",
        text="unreachable for 31 s",
        since=NOW,
        correlation="c-9",
    )
    return attrs.evolve(base, **changes)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
async def call() -> AsyncIterator[Call]:
    one = Call()
    yield one
    await one.aclose()


async def failure_of(notifier: Notifier, call: Call, **changes: Any) -> NotificationFailed:
    with pytest.raises(NotificationFailed) as caught:
        await notifier.send(notification(**changes), call)
    return caught.value


# -- the log ----------------------------------------------------------------------------------------------------------


async def test_the_log_has_one_line_with_all_fields(caplog: pytest.LogCaptureFixture, call: Call) -> None:
    with caplog.at_level(logging.DEBUG, "selfheal.notify"):
        assert await LogNotifier().send(notification(), call) is None
    (record,) = caplog.records
    assert record.getMessage() == (
        'notification phase=firing severity=high service=redis incident=17 title="redis is down" '
        'text="unreachable for 31 s" since=2025-06-15T15:06:40.000Z correlation=c-9 id=n-41'
    )
    assert vars(record)["notification"]["incident"] == 17


@pytest.mark.parametrize(
    ("severity", "phase", "level"),
    [
        (Severity.CRITICAL, Phase.FIRING, logging.CRITICAL),
        (Severity.HIGH, Phase.UPDATED, logging.ERROR),
        (Severity.MEDIUM, Phase.FIRING, logging.WARNING),
        (Severity.LOW, Phase.FIRING, logging.INFO),
        (Severity.CRITICAL, Phase.RESOLVED, logging.INFO),
    ],
)
async def test_the_level_of_a_line_follows_the_severity(
    severity: Severity, phase: Phase, level: int, caplog: pytest.LogCaptureFixture, call: Call
) -> None:
    with caplog.at_level(logging.DEBUG, "selfheal.notify"):
        await LogNotifier().send(notification(severity=severity, phase=phase), call)
    assert [record.levelno for record in caplog.records] == [level]


async def test_a_text_cannot_forge_a_second_line(caplog: pytest.LogCaptureFixture, call: Call) -> None:
    evil = 'x\nCRITICAL notification phase=firing \x1b[31mred\u2028next\u202egnikaeps\r\x00" id=n-1'
    with caplog.at_level(logging.DEBUG, "selfheal.notify"):
        await LogNotifier().send(notification(text=evil, service="a b", title="100 %s"), call)
    line = caplog.records[0].getMessage()
    assert line.isprintable()
    assert line.count("\\u000a") == 1
    assert 'title="100 %s"' in line
    assert '\\" id=n-1"' in line


def test_neutral_text_is_capped_and_keeps_ordinary_letters() -> None:
    assert neutral("Grüße, 世界 – ok") == "Grüße, 世界 – ok"
    assert neutral("\U000e0041\x9b") == "\\U000e0041\\u009b"
    assert neutral("x" * 50, 10) == "x" * 9 + "…"


# -- what a webhook receives ------------------------------------------------------------------------------------------


async def test_a_webhook_receives_the_public_shape_and_gives_a_receipt(receiver: Receiver) -> None:
    call = Call()
    receiver.replies.append(Reply(status=202, body=b'{"id": 815}'))
    notifier = WebhookNotifier(url=receiver.url + "/hook?team=a%20b", private=True, headers={"X-Team": "ops"})
    assert await notifier.send(notification(), call) == "815"
    (request,) = receiver.requests
    assert (request.method, request.target) == ("POST", "/hook?team=a%20b")
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["x-team"] == "ops"
    assert request.headers["idempotency-key"] == request.headers["webhook-id"] == "n-41"
    assert "webhook-signature" not in request.headers
    assert json.loads(request.body) == {
        "version": 1,
        "kind": "notification",
        "id": "n-41",
        "matter": "incident-17",
        "phase": "firing",
        "severity": "high",
        "service": "redis",
        "incident": 17,
        "title": "redis is down",
        "text": "unreachable for 31 s",
        "since": "2025-06-15T15:06:40.000Z",
        "correlation": "c-9",
        "link": None,
        "receipt": None,
    }
    await call.aclose()


@pytest.mark.parametrize(
    ("reply", "receipt"),
    [
        (Reply(headers={"Webhook-Receipt": "r-1"}, body=b'{"id": "no"}'), "r-1"),
        (Reply(body=b'{"receipt": "r-2", "id": "no"}'), "r-2"),
        (Reply(body=b'{"id": true}'), None),
        (Reply(body=b"[1, 2]"), None),
        (Reply(body=b"ok"), None),
        (Reply(body=b"[" * 60000), None),
        (Reply(status=204, body=b""), None),
        (Reply(body=b'{"id": "a\\nb"}'), "a\\u000ab"),
    ],
)
async def test_where_a_receipt_is_found(reply: Reply, receipt: str | None, receiver: Receiver, call: Call) -> None:
    receiver.replies.append(reply)
    assert await WebhookNotifier(url=receiver.url, private=True).send(notification(), call) == receipt


@pytest.mark.parametrize("secret", ["plain words as a key", "whsec_c2VjcmV0IGtleSBvZiBzb21lIGxlbmd0aA=="])
async def test_a_receiver_verifies_the_signature(secret: str, receiver: Receiver, call: Call) -> None:
    await WebhookNotifier(url=receiver.url, private=True, secret=Secret(secret)).send(notification(text="ä"), call)
    (request,) = receiver.requests
    headers, now = request.headers, time.time()
    assert signature_holds(secret, headers, request.body, now=now)
    assert not signature_holds("another", headers, request.body, now=now)
    assert not signature_holds(secret, headers, request.body + b" ", now=now)
    assert not signature_holds(secret, {**headers, "webhook-id": "n-42"}, request.body, now=now)
    assert not signature_holds(secret, {**headers, "webhook-timestamp": str(int(now) - 1000)}, request.body, now=now)
    assert not signature_holds(secret, {**headers, "webhook-timestamp": "-1e3"}, request.body, now=now)
    assert not signature_holds(secret, {}, request.body, now=now)
    two = "v1,AAAA " + headers["webhook-signature"]
    assert signature_holds(secret, {**headers, "webhook-signature": two}, request.body, now=now), "keys are rotated"


async def test_a_recorded_webhook_cannot_be_replayed_later(receiver: Receiver, call: Call) -> None:
    await WebhookNotifier(url=receiver.url, private=True, secret=Secret("k")).send(notification(), call)
    (request,) = receiver.requests
    assert signature_holds("k", request.headers, request.body, now=time.time() + 290)
    assert not signature_holds("k", request.headers, request.body, now=time.time() + 310)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    # The example of the specification's own libraries.
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


async def test_a_repetition_has_the_same_id_and_a_new_signature(
    receiver: Receiver, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = WebhookNotifier(url=receiver.url, private=True, secret=Secret("k"))
    receiver.replies.append(Reply(status=500))
    clock = [NOW]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    await failure_of(notifier, call)
    clock[0] += 600
    await notifier.send(notification(), call)
    first, second = (request.headers for request in receiver.requests)
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-signature"] != second["webhook-signature"]
    assert signature_holds("k", second, receiver.requests[1].body, now=NOW + 600)


# -- what a status means ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "permanent"),
    [(301, True), (400, True), (401, True), (404, True), (408, False), (429, False), (500, False), (503, False)],
)
async def test_a_status_says_whether_to_try_again(status: int, permanent: bool, receiver: Receiver, call: Call) -> None:
    receiver.replies.append(Reply(status=status, headers={"Location": "http://192.0.2.1/elsewhere"}, body=b"no\nway"))
    failure = await failure_of(WebhookNotifier(url=receiver.url, private=True), call)
    assert failure.permanent is permanent
    assert str(status) in str(failure)
    assert str(failure).isprintable()
    assert len(receiver.requests) == 1, "a redirect is never followed"
    assert ("redirects are not followed" in str(failure)) is (status == 301)
    assert "192.0.2.1" not in str(failure)


async def test_retry_after_is_handed_on(receiver: Receiver, call: Call) -> None:
    receiver.replies.append(Reply(status=429, headers={"Retry-After": "7"}))
    failure = await failure_of(WebhookNotifier(url=receiver.url, private=True), call)
    assert (failure.retry_after, failure.permanent) == (7.0, False)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("120") == 120.0
    soon = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert soon is not None
    assert 58 <= soon <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    for nonsense in ("", "soon", "-5", "nan", "inf", "9" * 400, "²"):
        assert retry_after(nonsense) is None


# -- receivers that misbehave -----------------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.parametrize("deed", ["drop", "hang", "drip_header", "endless_header", "garbage"])
async def test_a_receiver_without_an_answer_is_a_temporary_failure_within_the_deadline(
    deed: Deed, receiver: Receiver
) -> None:
    call = Call(timeout=0.6)
    receiver.always = Reply(deed=deed)
    started = time.monotonic()
    failure = await failure_of(WebhookNotifier(url=receiver.url, private=True), call)
    assert not failure.permanent
    assert time.monotonic() - started < 3.0
    await call.aclose()


@pytest.mark.real_time
@pytest.mark.parametrize("deed", ["drip", "endless", "cut"])
async def test_a_body_that_misbehaves_does_not_undo_the_status(deed: Deed, receiver: Receiver) -> None:
    call = Call(timeout=2.0)
    receiver.always = Reply(deed=deed)
    started = time.monotonic()
    assert await WebhookNotifier(url=receiver.url, private=True).send(notification(), call) is None
    assert time.monotonic() - started < 1.9
    receiver.always = Reply(deed=deed, status=400)
    assert (await failure_of(WebhookNotifier(url=receiver.url, private=True), call)).permanent
    await call.aclose()


async def test_no_more_than_the_cap_of_a_body_is_read(receiver: Receiver, call: Call) -> None:
    receiver.always = Reply(deed="endless")
    answer = await exchange(call, Ask(method="GET", url=receiver.url, private=True))
    assert len(answer.body) == BODY_LIMIT


async def test_a_refused_port_says_so(receiver: Receiver, call: Call) -> None:
    receiver.close()
    failure = await failure_of(WebhookNotifier(url=receiver.url, private=True), call)
    assert str(failure) == "127.0.0.1: Connection refused"
    assert not failure.permanent


async def test_the_next_address_is_tried_when_one_refuses(receiver: Receiver, call: Call) -> None:
    # "localhost" has ::1 first on most machines, where nobody listens.
    await WebhookNotifier(url=f"http://localhost:{receiver.port}", private=True).send(notification(), call)
    assert receiver.requests[0].headers["host"] == f"localhost:{receiver.port}"


async def test_a_name_that_does_not_exist_is_a_temporary_failure(call: Call) -> None:
    failure = await failure_of(WebhookNotifier(url="http://nowhere.invalid/", private=True), call)
    assert "nowhere.invalid does not resolve" in str(failure)
    assert not failure.permanent


@pytest.mark.real_time
async def test_three_hundred_failures_leave_no_descriptor(receiver: Receiver) -> None:
    call = Call(timeout=60.0)
    notifier = WebhookNotifier(url=receiver.url, private=True, timeout=0.1)
    deeds: tuple[Deed, ...] = ("drop", "garbage", "cut", "hang", "endless", "answer")
    receiver.always = Reply(status=500)
    await failure_of(notifier, call)
    before = descriptors()
    for number in range(300):
        deed = deeds[number % 6] if number % 6 not in (3, 4) or number < 60 else "drop"
        receiver.replies.append(Reply(status=500, deed=deed))
        await failure_of(notifier, call)
    receiver.settle()
    assert descriptors() <= before
    await call.aclose()


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, path


def server_context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


async def test_tls_trusts_the_authority_it_is_given_and_checks_the_name(authority: tuple[trustme.CA, Path]) -> None:
    ca, path = authority
    with receiving(tls=server_context(ca, "localhost")) as receiver:
        call = Call()
        by_name = receiver.url.replace("127.0.0.1", "localhost")
        await WebhookNotifier(url=by_name, private=True, authority=path).send(notification(), call)
        assert len(receiver.requests) == 1
        await call.aclose()
        failure = await failure_of(WebhookNotifier(url=receiver.url, private=True, authority=path), call)
        assert "certificate: IP address mismatch" in str(failure)
        await call.aclose()
        failure = await failure_of(WebhookNotifier(url=by_name, private=True), call)
        assert "certificate: unable to get local issuer certificate" in str(failure)
        await call.aclose()
        await WebhookNotifier(url=by_name, private=True, verify=False).send(notification(), call)
        assert len(receiver.requests) == 2
        await call.aclose()


async def test_a_missing_authority_is_named(call: Call, tmp_path: Path) -> None:
    notifier = WebhookNotifier(url="https://127.0.0.1:1/", private=True, authority=tmp_path / "none.pem")
    assert str(await failure_of(notifier, call)).endswith("none.pem: No such file or directory")


# -- where we send to -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("8.8.8.8", Reach.PUBLIC),
        ("2606:4700::1111", Reach.PUBLIC),
        ("127.0.0.1", Reach.INNER),
        ("0.0.0.0", Reach.INNER),
        ("10.1.2.3", Reach.INNER),
        ("172.16.0.1", Reach.INNER),
        ("192.168.1.1", Reach.INNER),
        ("100.64.0.1", Reach.INNER),
        ("198.18.0.1", Reach.INNER),
        ("::", Reach.INNER),
        ("::1", Reach.INNER),
        ("fc00::1", Reach.INNER),
        ("fd12:3456::1", Reach.INNER),
        ("::ffff:10.0.0.1", Reach.INNER),
        ("::127.0.0.1", Reach.INNER),
        ("64:ff9b::7f00:1", Reach.INNER),
        ("64:ff9b::808:808", Reach.PUBLIC),
        ("64:ff9b:1::a00:1", Reach.INNER),
        ("2002:7f00:1::", Reach.INNER),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", Reach.INNER),
        ("169.254.169.254", Reach.FORBIDDEN),
        ("100.100.100.200", Reach.FORBIDDEN),
        ("168.63.129.16", Reach.FORBIDDEN),
        ("::ffff:169.254.169.254", Reach.FORBIDDEN),
        ("64:ff9b::a9fe:a9fe", Reach.FORBIDDEN),
        ("fe80::1", Reach.FORBIDDEN),
        ("fd00:ec2::254", Reach.FORBIDDEN),
        ("fd20:ce::254", Reach.FORBIDDEN),
        ("224.0.0.1", Reach.FORBIDDEN),
        ("255.255.255.255", Reach.FORBIDDEN),
        ("ff02::1", Reach.FORBIDDEN),
    ],
)
def test_where_an_address_leads(address: str, where: Reach) -> None:
    assert reach(ipaddress.ip_address(address)) is where


SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "017700000001",
    "0",
    "localhost",
    "[::1]",
    "[::ffff:7f00:1]",
]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_loopback_passes_without_the_option(host: str, receiver: Receiver, call: Call) -> None:
    failure = await failure_of(WebhookNotifier(url=f"http://{host}:{receiver.port}/"), call)
    assert "set `private = true`" in str(failure)
    assert receiver.requests == []


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "2852039166", "[fd00:ec2::254]"])
async def test_metadata_is_never_sent_to(host: str, call: Call) -> None:
    failure = await failure_of(WebhookNotifier(url=f"http://{host}/latest", private=True), call)
    assert "never sent to" in str(failure)


@pytest.mark.parametrize("mixed", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"]])
async def test_one_inner_address_among_several_refuses_the_name(
    mixed: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [(2, 1, 6, "", (address, 80)) for address in mixed]
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: entries)
    failure = await failure_of(WebhookNotifier(url="http://rebinding.example/"), call)
    assert "private" in str(failure)


async def test_the_address_that_was_looked_at_is_the_one_connected_to(
    receiver: Receiver, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that answers differently the second time (DNS rebinding) is asked only once."""
    asked: list[Any] = []
    really = socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if host != "changing.example":
            return really(host, port, *args, **options)
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "127.0.0.9", port))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    await WebhookNotifier(url=f"http://changing.example:{receiver.port}/", private=True).send(notification(), call)
    assert receiver.requests[0].headers["host"] == f"changing.example:{receiver.port}"
    assert asked == ["changing.example"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/",
        "http:///path",
        "//host",
        "http://a b/",
        "http://h:x/",
        "http://h/\nx",
        "http://[::1",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="not a usable URL") as caught:
        WebhookNotifier(url=url + CANARY)
    assert CANARY not in str(caught.value)


def test_a_url_is_taken_apart() -> None:
    assert split("https://Example.org") == ("https", "example.org", 443, "/", None)
    assert split("http://u:p%40ss@[::1]:81/ä?q=ü") == ("http", "::1", 81, "/%C3%A4?q=%C3%BC", "Basic dTpwQHNz")


@pytest.mark.parametrize(
    "headers",
    [{"Bad Name": "x"}, {"": "x"}, {"X": 1}, {"Host": "x"}, {"Content-Length": "1"}, {"Ünï": "x"}, {"X\r\nY": "z"}],
)
def test_headers_are_checked_when_configured(headers: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="headers"):
        WebhookNotifier(url="http://example.org", headers=headers)


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deed", ["answer", "drop", "garbage", "hang"])
async def test_no_secret_is_in_an_error_a_log_or_a_repr(
    deed: Deed, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    call = Call(timeout=0.5)
    echo = f"you sent {CANARY}-header to /hook/{CANARY}-url?k={CANARY}-query".encode()
    receiver.always = Reply(deed=deed, status=403, body=echo, headers={"X-Echo": CANARY})
    notifier = WebhookNotifier(
        url=Secret(f"http://u:{CANARY}-password@127.0.0.1:{receiver.port}/hook/{CANARY}-url?k={CANARY}-query"),
        secret=Secret(f"{CANARY}-key"),
        headers={"Authorization": Secret(f"{CANARY}-header")},
        private=True,
    )
    with caplog.at_level(logging.INFO):
        failure = await failure_of(notifier, call)
    assert CANARY not in repr(notifier)
    assert CANARY not in everything(failure)
    assert CANARY not in caplog.text
    await call.aclose()


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        (Secret(f"http://127.0.0.1:1/{CANARY}\nx"), "not a usable URL"),
        (Secret(f"gopher://{CANARY}/"), "not a usable URL"),
        (Secret(f"http://{CANARY}.invalid/"), "does not resolve"),
        (Secret(f"http://[{CANARY}/"), "not a usable URL"),
        (Secret(f"http://127.0.0.1:1/{CANARY}"), "Connection refused"),
        (Secret(lambda: open("/nowhere/" + CANARY).read(), source="file"), "the secret from file cannot be read"),  # noqa: SIM115
    ],
)
async def test_a_secret_url_that_does_not_work_is_not_quoted(secret: Secret, says: str, call: Call) -> None:
    failure = await failure_of(WebhookNotifier(url=secret, private=True), call)
    assert says in str(failure)
    assert CANARY not in everything(failure)


async def test_the_host_of_a_secret_url_is_not_named_when_it_refuses(
    receiver: Receiver, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = socket.getaddrinfo
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *a, **k: really(host.replace(CANARY, "127.0.0.1"), *a, **k))
    receiver.close()
    failure = await failure_of(WebhookNotifier(url=Secret(f"http://{CANARY}:{receiver.port}/"), private=True), call)
    assert str(failure) == "the host of the URL: Connection refused"


@pytest.mark.parametrize("value", [f"{CANARY}\r\nX-Evil: 1", f"{CANARY}\x00", f"{CANARY}\u2028", " "])
async def test_a_secret_that_is_no_header_value_is_refused_unseen(value: str, receiver: Receiver, call: Call) -> None:
    notifier = WebhookNotifier(url=receiver.url, private=True, headers={"Authorization": Secret(value)})
    if value == " ":
        await notifier.send(notification(), call)
        return
    failure = await failure_of(notifier, call)
    assert "header Authorization" in str(failure)
    assert CANARY not in everything(failure)
    assert receiver.requests == []


async def test_a_rotated_secret_is_read_again(receiver: Receiver, call: Call) -> None:
    keys = iter(["one", "two"])
    notifier = WebhookNotifier(url=receiver.url, private=True, secret=Secret(lambda: next(keys)))
    await notifier.send(notification(), call)
    await notifier.send(notification(), call)
    first, second = receiver.requests
    assert signature_holds("one", first.headers, first.body, now=time.time())
    assert signature_holds("two", second.headers, second.body, now=time.time())


async def test_a_key_that_is_not_base64_is_named_by_its_source(receiver: Receiver, call: Call) -> None:
    notifier = WebhookNotifier(url=receiver.url, private=True, secret=Secret(f"whsec_{CANARY}!", source="env:KEY"))
    failure = await failure_of(notifier, call)
    assert "env:KEY" in str(failure)
    assert CANARY not in everything(failure)


# -- the rest ---------------------------------------------------------------------------------------------------------


async def test_without_httpx2_the_error_says_what_to_install(
    receiver: Receiver, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    for notifier in (
        WebhookNotifier(url=receiver.url, private=True),
        AlertmanagerNotifier(url=receiver.url),
    ):
        with pytest.raises(PluginError, match=r"pip install selfheal-core\[http\]"):
            await notifier.send(notification(), call)


async def test_proxies_of_the_environment_are_not_asked(
    receiver: Receiver, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    await WebhookNotifier(url=receiver.url, private=True).send(notification(), call)
    assert len(receiver.requests) == 1


@pytest.mark.real_time
async def test_whether_a_request_was_sent_is_known(receiver: Receiver) -> None:
    call = Call(timeout=0.3)
    receiver.always = Reply(deed="hang")
    with pytest.raises(NoAnswer) as caught:
        await exchange(call, Ask(method="POST", url=receiver.url, private=True))
    assert caught.value.sent
    receiver.close()
    await call.aclose()
    with pytest.raises(NoAnswer) as caught:
        await exchange(Call(), Ask(method="POST", url=receiver.url, private=True))
    assert not caught.value.sent


def test_a_matter_is_the_same_over_its_phases() -> None:
    assert matter(notification()) == matter(notification(phase=Phase.RESOLVED, title="well", id="n-99"))
    assert matter(notification(incident=None)) == "redis/c-9"
    assert matter(notification(incident=None, service="", correlation="")) == "fleet"
