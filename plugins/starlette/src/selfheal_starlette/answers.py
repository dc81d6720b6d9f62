"""What is made of an answer before it goes out: parameters read, lists filtered and given page by page.

No answer is computed here; what is shown is what the supervisor said, or a part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from selfheal.requests import Kind, Parameter
from selfheal_starlette.problems import Refusal
from selfheal_starlette.routes import MOST, NAME, PAGE, Filter, Route

Ask = Callable[..., Awaitable[Any]]

SCANNED: Final = 20
"""Pages that are looked through for one answer; where nothing fits in so many, the caller says whether to go on."""

_SECONDS: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,3})?")
_NAME: Final = re.compile(NAME)
_WHOLE: Final = re.compile(r"[0-9]{1,16}")


# -- what comes in -----------------------------------------------------------------------------------------------------


def from_query(route: Route, given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the parameters of a query, as what they are. Raises `Refusal`."""
    known = {parameter.name: parameter for parameter in route.in_query}
    found: dict[str, Any] = {}
    for name, text in given:
        if name not in known:
            there = ", ".join(known) or "none"
            raise Refusal("bad_parameter", f"there is no parameter {name[:60]!a} here; there are: {there}")
        if name in found:
            raise Refusal("bad_parameter", f"{name} stands there twice")
        found[name] = _value(known[name], text)
    return found


def _value(parameter: Parameter, text: str) -> Any:
    if parameter.kind is Kind.NUMBER:
        number = int(text) if _WHOLE.fullmatch(text) else -1
        most = MOST if parameter.name == "limit" else 2**53 - 1
        least = 1 if parameter.name == "limit" else 0
        if not least <= number <= most:
            raise Refusal("bad_parameter", f"{parameter.name} must be a whole number from {least} to {most}")
        return number
    if parameter.kind is Kind.SECONDS:
        if not _SECONDS.fullmatch(text):
            raise Refusal("bad_parameter", f"{parameter.name} must be a number of seconds")
        return float(text)
    if parameter.kind is Kind.BOOLEAN:
        if text not in ("true", "false"):
            raise Refusal("bad_parameter", f"{parameter.name} must be true or false")
        return text == "true"
    if parameter.name == "service":
        judge_names([text])
    if not 0 < len(text) <= 1000:
        raise Refusal("bad_parameter", f"{parameter.name} must be a text of 1 to 1000 characters")
    if parameter.choices and text not in parameter.choices:
        raise Refusal("bad_parameter", f"{parameter.name} must be one of {', '.join(parameter.choices)}")
    return text


def judge_names(names: Iterable[str]) -> None:
    """Refuse what cannot be the name of a service. Raises `Refusal`."""
    if wrong := next((name for name in names if not _NAME.fullmatch(name)), None):
        raise Refusal("bad_parameter", f"{wrong[:60]!a} is no name of a service: letters, digits, . _ and -")


def judge_path(in_path: Mapping[str, str]) -> None:
    """Refuse a path about what cannot be a service, before anybody is asked, or it is recorded. Raises `Refusal`."""
    if (name := in_path.get("service")) is not None and not _NAME.fullmatch(name):
        raise Refusal("unknown_service", f"no service {name[:60]!a}")


def from_body(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the object in a body; an empty body is an empty object. Raises `Refusal`."""
    if not body:
        return {}
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal("media_type", "send the body as `Content-Type: application/json`")

    def constant(name: str) -> None:
        raise ValueError(f"{name} is no number in JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands there twice")
        return found

    try:
        found = json.loads(body.decode("utf-8"), parse_constant=constant, object_pairs_hook=once)
    except (ValueError, RecursionError) as fault:
        raise Refusal("bad_request", f"the body is not JSON: {str(fault)[:100]!a}") from None
    if not isinstance(found, dict):
        raise Refusal("bad_request", "the body is one object")
    if empty := next((name for name, value in found.items() if value is None), None):
        # Not the same as leaving it out: whoever fills in a name that is not there does not mean the whole fleet.
        raise Refusal("bad_parameter", f"{empty[:60]!a} is null; leave out what is not meant")
    return found


def reason_of(found: dict[str, Any], act: str) -> str:
    """Take the reason out of a body. Raises `Refusal`."""
    reason = found.pop("reason", None)
    if reason is None:
        return f"{act} asked for over HTTP, without a reason"
    if not isinstance(reason, str) or not reason.strip() or len(reason) > 1000 or not reason.isprintable():
        raise Refusal("bad_parameter", "reason must be one printable line of 1 to 1000 characters")
    return reason


# -- what goes out -----------------------------------------------------------------------------------------------------


async def listed(route: Route, ask: Ask, given: dict[str, Any]) -> dict[str, Any]:
    """Return the answer of a route that gives a list, filtered and one page of it. Raises `Refusal`."""
    filters = [(one, given.pop(one.parameter.name)) for one in route.filters if one.parameter.name in given]
    if route.request == "alerts":
        state = next((value for one, value in filters if one.field == "open"), "open")
        filters = [(one, value) for one, value in filters if one.field != "open"]
        filters += [(one, state) for one in route.filters if one.field == "open" and state != "all"]
        given["all"] = state != "open"
    keep = [_keeping(one, value) for one, value in filters]
    if route.paging is None:
        entries = [one for one in await ask(route.request, **given) if _kept(route, one, keep)]
        return {route.key: entries}
    return await _page(route, ask, given, keep)


async def _page(
    route: Route, ask: Ask, given: dict[str, Any], keep: list[Callable[[Mapping[str, Any]], bool]]
) -> dict[str, Any]:
    assert route.paging is not None
    seat, limit, before = route.paging.seat, given.pop("limit", PAGE), _place(given.pop("cursor", None))
    asked = MOST if keep else min(limit + 1, MOST)
    found: list[Any] = []
    for _ in range(SCANNED):
        place = {} if before is None else {"before": before}
        batch = await ask(route.request, **given, **place, limit=asked)
        found += [one for one in batch if _kept(route, one, keep)]
        if len(found) > limit:
            return {route.key: found[:limit], "next": str(found[limit - 1][seat])}
        if len(batch) < asked:
            return {route.key: found, "next": None}
        before = batch[-1][seat]
    return {route.key: found, "next": str(before)}


def _place(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not _WHOLE.fullmatch(cursor) or int(cursor) >= 2**53:
        raise Refusal("bad_parameter", "cursor is what an earlier answer gave as `next`")
    return int(cursor)


def _kept(route: Route, entry: Mapping[str, Any], keep: list[Callable[[Mapping[str, Any]], bool]]) -> bool:
    return all(entry[field] == value for field, value in route.only.items()) and all(one(entry) for one in keep)


def _keeping(one: Filter, value: str) -> Callable[[Mapping[str, Any]], bool]:
    if one.parameter.name == "since":
        return _since(value)
    wanted = {"open": True, "resolved": False}.get(value) if one.field == "open" else value
    return lambda entry: bool(entry[one.field] == wanted)


def _since(text: str) -> Callable[[Mapping[str, Any]], bool]:
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is None:
            raise ValueError
        # Ours are all written in UTC to the millisecond, and so in the order of time as text too.
        wanted = instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        raise Refusal("bad_parameter", "since must be a time with its zone, as 2026-01-31T12:00:00Z") from None
    return lambda entry: bool(entry["time"] >= wanted)


_CLOCKS: Final = re.compile(rb'"(?:time|since_seconds|duration_seconds|lag_seconds)":[^,}\]]*')


def body_of(answer: Any) -> bytes:
    """Return an answer as JSON. Everything beyond ASCII is escaped, so that no reader takes it for something else."""
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()


def written(answer: Any) -> tuple[bytes, str]:
    """Return an answer as it goes out, with its tag. Of a large fleet that takes a while: call it in a thread."""
    body = answer.encode() if isinstance(answer, str) else body_of(answer)
    return body, etag_of(body)


def etag_of(body: bytes) -> str:
    """Return a weak tag that stays while nothing has changed but the clocks in an answer."""
    return f'W/"{sha256(_CLOCKS.sub(b"", body)).hexdigest()[:32]}"'


def matches(header: str | None, etag: str) -> bool:
    """Whether an `If-None-Match` names a tag."""
    if header is None:
        return False
    named = [one.strip() for one in header.split(",")]
    return "*" in named or any(one.removeprefix("W/") == etag.removeprefix("W/") for one in named)
