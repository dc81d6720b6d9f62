"""Actions that need no driver: an HTTP endpoint that knows how to repair.

Owns what such a hook is sent, and how it is asked after a crash. The endpoint's word counts for little: checks decide
whether the service is well again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

import attrs

from selfheal.builtin.http_client import (
    SEE_URL,
    Answer,
    Ask,
    NoAnswer,
    check_headers,
    check_url,
    exchange,
    obstacle,
)
from selfheal.builtin.notices import header_safe
from selfheal.core.model import Effect, Settled
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext
from selfheal.secret import Secret

SHAPE: Final = 1
"""The version of the JSON a hook receives. New fields do not raise it; a changed or missing one would."""

METHODS: Final = ("POST", "PUT", "PATCH", "DELETE", "GET")
WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


def _optional_url(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        check_url(instance, attribute, value)


def _listed(value: object) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _upper(value: str) -> str:
    return value.upper()


def _check_expect(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or any(isinstance(one, bool) or not isinstance(one, int) for one in value):
        raise TypeError(f"{attribute.name}: give a list of status numbers, such as [200, 202]")
    for one in value:
        if not 200 <= one <= 599 or 300 <= one < 400:
            raise ValueError(f"{attribute.name}: {one} is no status to wait for (redirects are not followed)")


@attrs.frozen(kw_only=True)
class HttpHook:
    """Ask an HTTP endpoint to do the repair.

    It is sent a fixed JSON (`body_of`; no templates) under the header `Idempotency-Key`, which is the intent: the
    same when we ask again, never the same for another action. A status in `expect` (by default any 2xx) means it has
    done its part. The step's timeout ends the call, whatever the endpoint is doing.

    After a crash `probe_url`, if given, is asked with `?key=<the key>` and the same header: did that one happen? It
    answers with status 200 and `{"settled": "done"}`, `"failed"` or `"not_started"`; anything else means that it
    cannot tell, and people are told. Answer `not_started` only when it is certain: the step may then run again.
    """

    kind: ClassVar[str] = "http"

    url: str | Secret = attrs.field(validator=check_url, repr=False)
    verb: str = attrs.field(default="restart", validator=attrs.validators.min_len(1))
    effect: Effect = attrs.field(default=Effect.DISRUPTIVE, converter=Effect)
    method: str = attrs.field(default="POST", converter=_upper, validator=attrs.validators.in_(METHODS))
    headers: Mapping[str, str | Secret] = attrs.field(factory=dict, validator=check_headers, repr=False)
    expect: tuple[int, ...] = attrs.field(default=(), converter=_listed, validator=_check_expect)
    probe_url: str | Secret | None = attrs.field(default=None, validator=_optional_url, repr=False)
    private: bool = True
    verify: bool = True
    authority: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))

    async def run(self, context: ActionContext) -> str:
        """Call the endpoint once; say how it answered. Raises `ActionFailed` with what stood in the way."""
        body = json.dumps(body_of(self.verb, context), ensure_ascii=False, default=str).encode(errors="replace")
        answer = await self._exchange(context, self._ask(context, self.method, self.url, body))
        if (answer.status in self.expect) if self.expect else (200 <= answer.status < 300):
            return f"answered {answer.status}"
        raise ActionFailed(_complaint(answer))

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return what became of `context.key`, or None when the endpoint cannot tell or did not answer."""
        if self.probe_url is None:
            return None
        try:
            answer = await exchange(context, self._ask(context, "GET", _with_key(self.probe_url, context.key), b""))
        except NoAnswer:
            return None
        return settled_of(answer)

    async def doctor(self, context: ActionContext) -> Sequence[Problem]:
        """Return what would keep the call from going out; nothing is sent."""
        ask = attrs.evolve(self._ask(context, self.method, self.url, b""), timeout=context.remaining / 2)
        why = await context.blocking(obstacle, ask)
        return [Problem(path="url", message=why, hint=SEE_URL)] if why else []

    def _ask(self, context: ActionContext, method: str, url: str | Secret, body: bytes) -> Ask:
        headers: dict[str, str | Secret] = {**self.headers, "Idempotency-Key": header_safe(context.key)}
        if method in WITH_BODY:
            headers["Content-Type"] = "application/json"
        return Ask(
            method=method,
            url=url,
            headers=headers,
            body=body if method in WITH_BODY else b"",
            private=self.private,
            verify=self.verify,
            authority=self.authority,
            timeout=context.remaining,
        )

    async def _exchange(self, context: ActionContext, ask: Ask) -> Answer:
        words = ""
        try:
            return await exchange(context, ask)
        except NoAnswer as problem:
            words = f"{problem}" if problem.sent else f"not sent: {problem}"
        raise ActionFailed(words)


def body_of(verb: str, context: ActionContext) -> dict[str, Any]:
    """Return the public JSON a hook receives, version `SHAPE`."""
    return {
        "version": SHAPE,
        "kind": "action",
        "action": verb,
        "key": context.key,
        "service": context.service,
        "incident": context.incident,
        "attempt": context.attempt,
        "cause": None if context.cause is None else context.cause.value,
        "expected": None if context.expected is None else context.expected.id,
        "arguments": dict(context.arguments),
    }


def settled_of(answer: Answer) -> Settled | None:
    """Return what a probe's answer says; None unless it says so plainly."""
    if answer.status != 200:
        return None
    try:
        data = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    said = data.get("settled") if isinstance(data, dict) else None
    known = {one.value: one for one in (Settled.DONE, Settled.FAILED, Settled.NOT_STARTED)}
    return known.get(said) if isinstance(said, str) else None


def _with_key(url: str | Secret, key: str) -> str | Secret:
    if isinstance(url, Secret):
        return Secret(lambda: _add_key(url.reveal().strip(), key), source=url.source)
    return _add_key(url, key)


def _add_key(url: str, key: str) -> str:
    path = url.partition("#")[0]
    return path + ("&" if "?" in path else "?") + "key=" + quote(key, safe="")


def _complaint(answer: Answer) -> str:
    if 300 <= answer.status < 400:
        return f"answered {answer.status}: redirects are not followed; configure the final address"
    said = answer.plain(answer.body.decode(errors="replace").strip())
    return f"answered {answer.status}" + (f": {said}" if said else "")
