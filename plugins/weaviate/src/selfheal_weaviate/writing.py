"""The write probe of the check `weaviate`: one object, always the same, in a collection of its own.

Weaviate closes every shard when its disk or memory passes a limit, and opens none of them again when there is room:
up to 1.35 only a restart does, while `ready` says 200. Nothing but a write shows it, and only a shard that was open
before: a collection made afterwards takes writes. So the collection stays while the check is in use, and goes with it.

It is made only where no shard is closed: on a full disk Weaviate loses its leader over the attempt.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Generator, Mapping
from typing import Any, Final

import attrs

from selfheal import Cause, CheckResult, Target, Verdict, converse
from selfheal.builtin.addresses import HttpUrl
from selfheal.builtin.http_talk import NotHttp, Reply, ask, cause_of, compose
from selfheal.wire import Talk, failing, warning

COLLECTION: Final = "SelfhealWriteProbe"
OBJECT: Final = "5e1fea15-0000-4000-8000-000000000001"

RIGHTS: Final = f"to read, create and delete the collection {COLLECTION} and to create and update its objects"
"""What the user of a key must be allowed for a probe."""

LIMIT: Final = 90.0
"""Percent of the disk from which on Weaviate takes no writes, where it does not say (DISK_USE_READONLY_PERCENTAGE)."""

MARGIN: Final = 2.0
"""How far below its limit, in percent, a disk has room: nearer to it, a restart would soon be undone."""

GOODBYE: Final = 1.5
"""Seconds that the collection may take to go."""

_LIMIT: Final = re.compile(r"threshold set to (\d+(?:\.\d+)?)\s*%")
_SCHEMA: Final = "/v1/schema"
_MADE: Final = {
    "class": COLLECTION,
    "description": "Written by selfheal to see whether writes are taken (write_probe). May be deleted.",
    "vectorizer": "none",
    "vectorIndexConfig": {"skip": True},
    "properties": [{"name": "at", "dataType": ["text"], "indexFilterable": False, "indexSearchable": False}],
}


@attrs.frozen(kw_only=True)
class Disk:
    """How full the disk is, as far as it can be seen from here."""

    used: float | None = None
    """Percent, as Weaviate counts: what is reserved for root is free."""
    why_unknown: str = "give data_path, and it can be seen from here when there is room"
    problem: str = ""
    """What is wrong with `data_path`, if anything."""


@attrs.define(kw_only=True)
class Probe:
    """What is kept of the collection between two checks."""

    address: HttpUrl = attrs.field(repr=False)
    target: Target = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    """Among them the key, which no repr shows."""
    written: bool = False
    """Whether the last write was taken. Where it was not, the closed shard is the proof of it, and is left."""

    async def aclose(self) -> None:
        """Delete the collection, where the last write was taken. Never raises OSError or TimeoutError."""
        if not self.written:
            return
        try:
            async with asyncio.timeout(GOODBYE):
                await converse(self.target, self._dropped())
        except (OSError, TimeoutError):
            return

    async def write(self, disk: Disk, *, make: bool) -> CheckResult:
        """Write the object, and say what came of it; the collection is made where it is missing, and `make`."""
        result = await converse(self.target, self._told(disk, make=make))
        self.written = result.details.get("written") is True
        return result

    def _told(self, disk: Disk, *, make: bool) -> Talk:
        try:
            return (yield from self._write(disk, make=make))
        except NotHttp as problem:
            return failing(Cause.ERROR, f"not HTTP: {problem}")

    def _write(self, disk: Disk, *, make: bool) -> Talk:
        there = yield from self._ask("GET", f"{_SCHEMA}/{COLLECTION}")
        if there.status == 404:
            if not make:
                return CheckResult(Verdict.PASSING)
            there = yield from self._ask("POST", _SCHEMA, _MADE)
            if there.status == 422 and "already exists" in said(there):  # another healer was quicker
                there = attrs.evolve(there, status=200)
        if there.status != 200:
            return judge_write(there, disk)
        one = {"class": COLLECTION, "id": OBJECT, "properties": {"at": f"{time.time():.0f}"}}
        return judge_write((yield from self._ask("POST", "/v1/batch/objects", {"objects": [one]})), disk)

    def _dropped(self) -> Talk:
        try:
            yield from self._ask("DELETE", f"{_SCHEMA}/{COLLECTION}")
        except NotHttp as problem:
            return failing(Cause.ERROR, str(problem))
        return CheckResult(Verdict.PASSING)

    def _ask(self, method: str, path: str, body: object = None) -> Generator[bytes, bytes, Reply]:
        data = b"" if body is None else json.dumps(body).encode()
        headers = {**self.headers, **({"Content-Type": "application/json"} if data else {})}
        return ask(compose(self.address, method, path, headers, data), method)


def said(reply: Reply) -> str:
    """Return the text of an error of Weaviate: of the whole request, or of the one object in it; or ""."""
    try:
        read = json.loads(reply.body)
        errors = read[0]["result"].get("errors") if isinstance(read, list) else read
        return str(errors["error"][0]["message"]) if errors else ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


def judge_write(reply: Reply, disk: Disk) -> CheckResult:
    """Return what the answer to a write says.

    FAILING is what a restart mends: shards that stay closed although there is room, or that memory has closed.
    """
    found = _judged(reply, said(reply)[:300], disk)
    details: dict[str, Any] = {"written": found.verdict is Verdict.PASSING}
    if disk.used is not None:
        details["disk_used_percent"] = round(disk.used, 1)
    return attrs.evolve(found, details=details)


def _judged(reply: Reply, text: str, disk: Disk) -> CheckResult:
    if reply.status in (401, 403):
        return warning(Cause.AUTH, f"no write could be tried (status {reply.status}): our key needs the right {RIGHTS}")
    if reply.status == 200 and not text:
        return _taken(reply)
    if "disk usage too high" in text:
        return _closed_by_disk(text, disk)
    if "no space left on device" in text:
        return warning(Cause.FULL, f"a write failed, its disk is full: {text}")
    if "memory usage too high" in text:
        return failing(Cause.OVERLOADED, f"it takes no write until it is restarted, since its memory was full: {text}")
    if "memory" in text:
        return warning(Cause.OVERLOADED, f"a write failed for want of memory: {text}")
    if "read-only" in text:
        return warning(Cause.READ_ONLY, f"writes are refused: {text}")
    if "leader not found" in text:
        return failing(Cause.DEGRADED_CLUSTER, f"a write failed: {text}")
    cause = Cause.ERROR if reply.status == 200 else cause_of(reply.status)
    return failing(cause, f"a write failed (status {reply.status}): {text or 'without a word'}")


def _taken(reply: Reply) -> CheckResult:
    try:
        status = str(json.loads(reply.body)[0]["result"]["status"])
    except (ValueError, LookupError, TypeError) as problem:
        return failing(Cause.ERROR, f"its answer to a write is not understood: {type(problem).__name__}")
    if status != "SUCCESS":
        return failing(Cause.ERROR, f"a write was not taken: {status[:40]}")
    return CheckResult(Verdict.PASSING)


def _closed_by_disk(text: str, disk: Disk) -> CheckResult:
    stated = _LIMIT.search(text)
    limit = float(stated[1]) if stated else LIMIT
    since = f"since its disk passed {limit:g} %"
    if disk.used is None:
        return warning(
            Cause.FULL,
            f"every write is refused {since}; up to 1.35 only a restart opens its shards again, once there is room"
            f" ({disk.why_unknown})",
        )
    if disk.used > limit - MARGIN:
        return warning(Cause.FULL, f"every write is refused, its disk is {disk.used:.0f} % full: make room")
    return failing(
        Cause.ERROR,  # a cause that is restarted for: `full` and `read_only` are not
        f"every write is refused {since}, though it is {disk.used:.0f} % full now: a restart opens its shards again",
    )
