"""The HTTP hook against real endpoints: what it is sent, when it has failed, and what it says after a crash."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tests.broken import fails_when

from selfheal.builtin.actions import HttpHook
from selfheal.core.model import Cause, Effect, Instance, Run, Settled
from selfheal.errors import ActionFailed
from selfheal.plugins import Action
from selfheal.secret import Secret

if TYPE_CHECKING:
    from tests.builtin.receiver import Call, Deed, Receiver, Reply, descriptors, everything, receiving
else:
    from receiver import Call, Reply, descriptors, everything, receiving

pytestmark = pytest.mark.anyio

CANARY = "canary-c0ffee"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
async def call() -> AsyncIterator[Call]:
    one = Call()
    yield one
    await one.aclose()


async def failure_of(hook: HttpHook, call: Call) -> ActionFailed:
    with pytest.raises(ActionFailed) as caught:
        await hook.run(call)
    return caught.value


async def test_the_endpoint_is_sent_the_fixed_json_and_the_key(receiver: Receiver, call: Call) -> None:
    call.expected = Instance(id="run-3", run=Run.RUNNING)
    call.arguments = {"to": 3}
    hook = HttpHook(url=receiver.url + "/repair", verb="scale_up", headers={"Authorization": Secret("Bearer x")})
    await hook.run(call)
    (request,) = receiver.requests
    assert (request.method, request.target) == ("POST", "/repair")
    assert request.headers["idempotency-key"] == "17/redis/1/0"
    assert request.headers["authorization"] == "Bearer x"
    assert json.loads(request.body) == {
        "version": 1,
        "kind": "action",
        "action": "scale_up",
        "key": "17/redis/1/0",
        "service": "redis",
        "incident": 17,
        "attempt": 1,
        "cause": Cause.UNREACHABLE,
        "expected": "run-3",
        "arguments": {"to": 3},
    }


def test_each_hook_has_its_own_verb_and_effect() -> None:
    hook = HttpHook(url="http://127.0.0.1/", verb="reset_cache", effect=Effect("gentle"))
    assert isinstance(hook, Action)
    assert (hook.verb, hook.effect, hook.kind) == ("reset_cache", Effect.GENTLE, "http")
    assert HttpHook(url="http://127.0.0.1/").effect is Effect.DISRUPTIVE


@pytest.mark.parametrize("method", ["get", "DELETE"])
async def test_a_method_without_a_body_sends_none(method: str, receiver: Receiver, call: Call) -> None:
    await HttpHook(url=receiver.url, method=method).run(call)
    (request,) = receiver.requests
    assert (request.method, request.body) == (method.upper(), b"")
    assert request.headers["idempotency-key"] == "17/redis/1/0"


@pytest.mark.parametrize(
    ("status", "expect", "done"),
    [
        (200, (), True),
        (202, (), True),
        (404, (), False),
        (503, (), False),
        (200, [202], False),
        (409, [200, 409], True),
    ],
)
async def test_which_status_means_done(status: int, expect: Any, done: bool, receiver: Receiver, call: Call) -> None:
    receiver.replies.append(Reply(status=status, body=b"a reason\non two lines"))
    hook = HttpHook(url=receiver.url, expect=expect)
    if done:
        await hook.run(call)
    else:
        assert str(await failure_of(hook, call)) == f"answered {status}: a reason\\u000aon two lines"


async def test_a_redirect_is_not_followed(receiver: Receiver, call: Call) -> None:
    receiver.replies.append(Reply(status=307, headers={"Location": receiver.url + "/elsewhere"}))
    assert "redirects are not followed" in str(await failure_of(HttpHook(url=receiver.url), call))
    assert len(receiver.requests) == 1


@fails_when("a hook takes longer than it may")
@pytest.mark.real_time
@pytest.mark.parametrize("deed", ["hang", "drip_header"])
async def test_s39_a_slow_endpoint_ends_at_our_deadline(deed: Deed, receiver: Receiver) -> None:
    call = Call(timeout=0.5)
    receiver.always = Reply(deed=deed)
    started = time.monotonic()
    failure = await failure_of(HttpHook(url=receiver.url), call)
    assert 0.4 < time.monotonic() - started < 3.0
    assert "no answer within 0.4" in str(failure)
    assert len(receiver.requests) == 1, "an action is never repeated by itself"
    await call.aclose()


@pytest.mark.real_time
async def test_a_cancelled_call_ends_at_once_and_leaves_no_connection(receiver: Receiver, call: Call) -> None:
    receiver.always = Reply(deed="hang")
    before = descriptors()
    with anyio.move_on_after(0.1) as scope:
        await HttpHook(url=receiver.url).run(call)
    assert scope.cancelled_caught
    receiver.settle()
    assert descriptors() <= before + 2, "the loop itself may have opened a pair"


async def test_what_was_never_sent_says_so(receiver: Receiver, call: Call) -> None:
    receiver.close()
    assert str(await failure_of(HttpHook(url=receiver.url), call)) == "not sent: 127.0.0.1: Connection refused"


async def test_an_endpoint_that_breaks_off_may_have_done_it(receiver: Receiver, call: Call) -> None:
    receiver.always = Reply(deed="drop")
    assert not str(await failure_of(HttpHook(url=receiver.url), call)).startswith("not sent")


# -- after a crash ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "settled"),
    [
        (Reply(body=b'{"settled": "done"}'), Settled.DONE),
        (Reply(body=b'{"settled": "failed", "more": 1}'), Settled.FAILED),
        (Reply(body=b'{"settled": "not_started"}'), Settled.NOT_STARTED),
        (Reply(body=b'{"settled": "superseded"}'), None),
        (Reply(body=b'{"settled": ["done"]}'), None),
        (Reply(body=b'"done"'), None),
        (Reply(body=b"done"), None),
        (Reply(status=404, body=b'{"settled": "not_started"}'), None),
        (Reply(status=302, body=b'{"settled": "done"}'), None),
        (Reply(deed="drop"), None),
        (Reply(deed="garbage"), None),
    ],
)
async def test_a_probe_counts_only_when_it_speaks_plainly(
    reply: Reply, settled: Settled | None, receiver: Receiver, call: Call
) -> None:
    receiver.replies.append(reply)
    hook = HttpHook(url="http://127.0.0.1:1/", probe_url=receiver.url + "/happened?of=redis")
    assert await hook.probe(call) is settled
    (request,) = receiver.requests
    assert (request.method, request.target) == ("GET", "/happened?of=redis&key=17%2Fredis%2F1%2F0")
    assert request.headers["idempotency-key"] == "17/redis/1/0"


async def test_without_a_probe_nobody_can_tell(call: Call) -> None:
    assert await HttpHook(url="http://127.0.0.1:1/").probe(call) is None


@pytest.mark.real_time
async def test_a_probe_that_hangs_ends_at_the_deadline(receiver: Receiver) -> None:
    call = Call(timeout=0.3)
    receiver.always = Reply(deed="hang")
    assert await HttpHook(url=receiver.url, probe_url=Secret(receiver.url)).probe(call) is None
    await call.aclose()


# -- secrets and configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deed", ["answer", "drop", "garbage"])
async def test_no_secret_is_in_an_outcome(
    deed: Deed, receiver: Receiver, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    receiver.always = Reply(deed=deed, status=500, body=f"{CANARY}-token at /{CANARY}-path".encode())
    hook = HttpHook(
        url=Secret(f"{receiver.url}/{CANARY}-path"),
        headers={"X-Token": Secret(f"{CANARY}-token")},
        probe_url=Secret(f"http://{CANARY}.invalid/"),
    )
    failure = await failure_of(hook, call)
    assert await hook.probe(call) is None
    assert CANARY not in everything(failure) + repr(hook) + caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"url": "nonsense"},
        {"probe_url": "nonsense"},
        {"method": "TRACE"},
        {"verb": ""},
        {"expect": [302]},
        {"expect": ["200"]},
        {"effect": "terrible"},
        {"headers": {"Host": "x"}},
    ],
)
def test_a_bad_option_is_refused_at_load(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        HttpHook(**{"url": "http://127.0.0.1/", **options})
