"""The check `weaviate`: its options, the talk, and what each answer means.

Two questions on one kept connection: `ready`, which needs no key, and `nodes`, which does. Weaviate's own client is
not used: it takes half a second and 79 MiB to import, and asks a package index at every connect.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from selfheal import Cause, CheckContext, CheckResult, Secret, Target, Tls, Verdict, converse
from selfheal.builtin import options
from selfheal.builtin.addresses import HttpUrl, read_http_url
from selfheal.builtin.http_talk import NotHttp, Reply, ask, cause_of, compose
from selfheal.errors import Problem
from selfheal.wire import Talk, failing, inconclusive, warning
from selfheal_weaviate.writing import COLLECTION, Disk, Probe

Details = dict[str, str | int | float | bool | None]
Part = Generator[Any, bytes, tuple[CheckResult, bool]]
"""A part of a talk: what it found, and whether the connection may carry more."""

READY: Final = "/v1/.well-known/ready"
NODES: Final = "/v1/nodes?output="

LIGHT_LIMIT: Final = 2**18
"""Bytes of one light check: about 200 a node."""

DEEP_LIMIT: Final = 2**22
"""Bytes of one deep check: about 300 a shard."""

PATIENCE: Final = 0.6
"""Share of the time left that a deep check waits for the list of nodes: a frozen node holds the list up."""

READING_FAULTS: Final = (OSError, ValueError, LookupError)
"""What reading an address or a secret may raise."""

NAMED: Final = 5
"""Nodes that a summary names."""

PROBE: Final = "probe"
"""Under which name the write probe is kept between checks."""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How every gRPC connection begins: HTTP/2's preface and an empty SETTINGS frame (RFC 9113 §3.4)."""


_YES_OR_NO: Final = attrs.validators.instance_of(bool)
_TEXT: Final = attrs.validators.optional(attrs.validators.instance_of(str))


@attrs.frozen(kw_only=True)
class WeaviateCheck:
    """Whether Weaviate is ready, has all its nodes, and may be written; with `deep`, also its shards and gRPC."""

    kind: ClassVar[str] = "weaviate"

    #: `http://host:8080` or `https://…`: the address alone, without a path. May be a secret.
    url: str | Secret = attrs.field()
    #: The key that the list of nodes is asked with.
    api_key: Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Secret))
    )
    #: How many nodes there must be. A node that died is forgotten by the others within seconds: only this misses it.
    nodes: int | None = options.whole(None, 1, 10_000)
    #: The port on the same host where a deep check looks for gRPC, usually 50051.
    grpc_port: int | None = options.whole(None, 1, 65535)
    #: Whether a deep check writes one object, always the same, into a collection of its own, `SelfhealWriteProbe`.
    write_probe: bool = attrs.field(default=False, validator=_YES_OR_NO)
    #: Any folder on the disk of its data, as this machine sees it: how full that is decides whether a restart helps.
    data_path: Path | None = attrs.field(default=None, converter=options.path)
    #: The name that the certificate must bear; the URL's host by default.
    server_name: str | None = attrs.field(default=None, validator=_TEXT)
    #: A PEM file of the authorities to trust, instead of the system's.
    authority: Path | None = attrs.field(default=None, converter=options.path)
    #: Our own certificate and its key, in one PEM file.
    certificate: Path | None = attrs.field(default=None, converter=options.path)
    #: Whether to verify the peer's certificate at all.
    verify: bool = attrs.field(default=True, validator=_YES_OR_NO)
    #: Seconds before its end from which a certificate warns.
    warn_before: float = options.seconds(14 * 86400.0)
    #: Whether to keep the connection: its end is then noticed within milliseconds.
    keep: bool = attrs.field(default=True, validator=_YES_OR_NO)

    @url.validator
    def _readable(self, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, str):
            self.address()
        elif not isinstance(value, Secret):
            raise TypeError(f"url: {type(value).__name__} is neither text nor a secret")

    @data_path.validator
    def _asked_for(self, attribute: attrs.Attribute[Any], value: Path | None) -> None:
        if value is not None and not self.write_probe:
            raise ValueError("data_path: has a meaning with write_probe = true only")

    def address(self) -> HttpUrl:
        """Return where it is. Raises ValueError, and what reading a secret raises."""
        try:
            url = read_http_url(self.url.reveal().strip() if isinstance(self.url, Secret) else self.url)
        except ValueError as problem:
            raise ValueError(f"url: {problem}") from None
        if url.target != "/":
            raise ValueError("url: give the address alone; the paths of Weaviate are known")
        return url

    def target(self) -> Target:
        """Return where to connect. Raises as `address` does."""
        return self._target(LIGHT_LIMIT, self.keep)

    def talk(self) -> Talk:
        """Ask whether it is ready and how its nodes are, once for each check."""
        while True:
            result, reusable = yield from self._guarded(self._state())
            if self.write_probe:
                result = graver(result, warning(Cause.CONFIG, NOT_DEEP), ready=True)
            if not (self.keep and reusable):
                return result
            yield result

    async def check(self, context: CheckContext) -> CheckResult:
        """Ask the same with every shard, and whether gRPC answers: the deep check."""
        try:  # a secret may stand in a file, and a disk may hang
            headers = await context.blocking(self._headers)
            target = await context.blocking(self._target, LIGHT_LIMIT, False)
        except READING_FAULTS as problem:
            return _unreadable(problem)
        result = await converse(target, self._once(self._readiness()))
        if result.verdict is Verdict.FAILING and result.cause is not Cause.STARTING:
            return result
        ready = result.verdict is not Verdict.FAILING
        patience = context.remaining * PATIENCE
        listed = self._once(self._listed(headers, "verbose", ready=ready))
        try:
            async with asyncio.timeout(patience):
                result = graver(result, await converse(attrs.evolve(target, limit=DEEP_LIMIT), listed), ready=ready)
        except TimeoutError:
            summary = f"it answers, but not how its nodes are within {patience:.1f} s: one of them may be frozen"
            result = graver(result, warning(Cause.DEGRADED_CLUSTER, summary), ready=ready)
        if self.write_probe and ready and _may_be_written(result):
            result = await self._written(result, target, headers, context)
        if self.grpc_port is None or result.verdict is Verdict.FAILING:
            return result
        return graver(result, await self._grpc(target, context.remaining * 0.9), ready=True)

    async def doctor(self, context: CheckContext) -> list[Problem]:
        """Return why nothing could be asked with this key, or why the write probe could not, or sees no disk."""
        found = []
        if self.write_probe and not context.deep:
            found.append(Problem(path="check.write_probe", message=NOT_DEEP, hint=SAY_DEEP))
        if problem := (await self._disk(None, context)).problem:
            found.append(Problem(path="check.data_path", message=problem, hint="any folder on that disk will do"))
        try:
            target = await context.blocking(self._target, LIGHT_LIMIT, False)
            result = await converse(target, self._once(self._state()))
        except OSError as problem:
            inner = problem.__cause__ if isinstance(problem.__cause__, OSError) else problem
            why = os.strerror(inner.errno) if inner.errno else type(inner).__name__
            return [*found, Problem(path="check.url", message=why, hint="see that Weaviate runs there")]
        except (ValueError, LookupError) as problem:
            why = f"it cannot be read: {type(problem).__name__}"
            return [*found, Problem(path="check.url", message=why, hint="see where it is to come from")]
        if result.cause is Cause.AUTH:
            hint = "a user with the role viewer, or with read_nodes"
            found.append(Problem(path="check.api_key", message=result.summary, hint=hint))
        elif result.verdict in (Verdict.FAILING, Verdict.INCONCLUSIVE):
            found.append(Problem(path="check.url", message=result.summary, hint="see that Weaviate is well there"))
        return found

    async def _written(
        self, result: CheckResult, target: Target, headers: Mapping[str, str], context: CheckContext
    ) -> CheckResult:
        """Return a result with what a write adds to it: what a write shows goes before what the nodes say."""
        probe = Probe(address=self.address(), target=target, headers=headers)
        earlier: Probe | None = context.kept.get(PROBE)
        probe.written = earlier is not None and earlier.written
        context.kept[PROBE] = probe
        disk = await self._disk(result, context)
        try:
            async with asyncio.timeout(context.remaining * PATIENCE):
                written = await probe.write(disk, make=CLOSED not in result.details)
        except TimeoutError:
            written = failing(Cause.TIMEOUT, "it lists its nodes, but a write has no answer")
        details = {**result.details, **written.details}
        if written.verdict is Verdict.FAILING and result.details.get("nodes") != 1:  # it may be about another node
            cause = Cause.DEGRADED_CLUSTER if written.cause is Cause.ERROR else written.cause
            written = attrs.evolve(written, verdict=Verdict.WARNING, cause=cause)
        if disk.problem and written.verdict is Verdict.PASSING:
            written = warning(Cause.CONFIG, disk.problem)
        return attrs.evolve(result if written.verdict is Verdict.PASSING else written, details=details)

    async def _disk(self, result: CheckResult | None, context: CheckContext) -> Disk:
        """Return how full the disk is; of a cluster only one of several disks could be seen, so none is."""
        if self.data_path is None:
            return Disk()
        if result is not None and result.details.get("nodes") != 1:
            return Disk(why_unknown="of several nodes, data_path shows the disk of one")
        try:
            seen = await context.blocking(os.statvfs, self.data_path)
        except OSError as problem:
            text = f"data_path cannot be looked at: {os.strerror(problem.errno or 0)}"
            return Disk(why_unknown=text, problem=text)
        return Disk(used=100.0 * (1.0 - seen.f_bfree / max(seen.f_blocks, 1)))

    async def _grpc(self, target: Target, patience: float) -> CheckResult:
        """Return whether the gRPC port speaks HTTP/2; over TLS, whether it takes a connection."""
        writer, problem = None, ""
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_connection(target.host, self.grpc_port)
                if target.tls is None:
                    writer.write(PREFACE)
                    frame = await reader.readexactly(9)
                    problem = "" if frame[3] == 4 else "it does not speak HTTP/2"
        except (OSError, EOFError) as failure:
            code = getattr(failure, "errno", None)
            problem = os.strerror(code) if code else f"no answer ({type(failure).__name__})"
        finally:
            if writer is not None:
                writer.transport.abort()
        if problem:
            summary = f"REST serves, gRPC on port {self.grpc_port} does not: {problem}"
            return attrs.evolve(warning(Cause.UNREACHABLE, summary), details={"grpc": False})
        return CheckResult(Verdict.PASSING, details={"grpc": True})

    def _target(self, limit: int, keep: bool) -> Target:
        url = self.address()
        tls = Tls(
            server_name=self.server_name,
            verify=self.verify,
            authority=self.authority,
            certificate=self.certificate,
            warn_before=self.warn_before,
        )
        return Target(host=url.host, port=url.port, tls=tls if url.secure else None, limit=limit, keep=keep)

    def _headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key.reveal().strip()}"}

    def _once(self, part: Part) -> Talk:
        result, _ = yield from self._guarded(part)
        return result

    @staticmethod
    def _guarded(part: Part) -> Part:
        try:
            return (yield from part)
        except NotHttp as problem:
            return failing(Cause.ERROR, f"not HTTP: {problem}"), False

    def _readiness(self) -> Part:
        """Ask whether it is ready."""
        ready = yield from ask(compose(self.address(), "GET", READY))
        return judge_ready(ready), ready.reusable

    def _state(self) -> Part:
        """Ask whether it is ready, and for its nodes, on one connection."""
        result, reusable = yield from self._readiness()
        if result.verdict is Verdict.FAILING and result.cause is not Cause.STARTING:
            return result, reusable
        if not reusable:
            return (warning(Cause.CONFIG, CLOSES) if result.verdict is Verdict.PASSING else result), False
        try:
            headers = self._headers()
        except READING_FAULTS as problem:
            return _unreadable(problem), False
        ready = result.verdict is Verdict.PASSING
        listed, reusable = yield from self._listed(headers, "minimal", ready=ready)
        return graver(result, listed, ready=ready), reusable

    def _listed(self, headers: Mapping[str, str], output: str, *, ready: bool) -> Part:
        try:
            request = compose(self.address(), "GET", NODES + output, headers)
        except ValueError as problem:
            return _unreadable(problem), False
        reply = yield from ask(request)
        return judge_nodes(reply, self.nodes, ready=ready), reply.reusable


CLOSES: Final = (
    "it is ready, but the connection is closed after each answer, so its nodes cannot be asked: "
    "give the address of Weaviate itself"
)


SAY_DEEP: Final = "say deep = true at the service"
NOT_DEEP: Final = f"the write probe is for the deep check only: {SAY_DEEP}"

NO_ROOM: Final = "it is not ready and all its shards are read-only: is its disk full? It may be read; make room"

CLOSED: Final = "shards_read_only"
"""The detail that counts closed shards."""


def _may_be_written(result: CheckResult) -> bool:
    """Whether a write would say more than the nodes do: all are well, or shards are closed and nobody says why."""
    return result.verdict is Verdict.PASSING or CLOSED in result.details


def _unreadable(problem: Exception) -> CheckResult:
    return inconclusive(f"the address or the key cannot be used: {type(problem).__name__}", Cause.CONFIG)


def graver(first: CheckResult, second: CheckResult, *, ready: bool) -> CheckResult:
    """Return the graver of two results, with the details of both.

    Where it is not `ready` and its nodes say why, that is the cause: not a start, but a cluster without a leader, or a
    disk without room. A full disk has closed every shard: a person closes those of one collection.
    """
    order = (Verdict.PASSING, Verdict.WARNING, Verdict.INCONCLUSIVE, Verdict.FAILING)
    details = {**first.details, **second.details}
    if not ready and second.cause is Cause.READ_ONLY and details.get(CLOSED) == details.get("shards", 0):
        return CheckResult(Verdict.WARNING, cause=Cause.FULL, summary=NO_ROOM, details=details)
    if not ready and second.verdict is Verdict.WARNING and second.cause is Cause.DEGRADED_CLUSTER:
        summary = f"it is not ready: {second.summary}"
        return CheckResult(Verdict.FAILING, cause=second.cause, summary=summary, details=details)
    not_ours = second.cause in (Cause.AUTH, Cause.CONFIG)
    later = order.index(second.verdict) > order.index(first.verdict) or (second.verdict is Verdict.FAILING and not_ours)
    return attrs.evolve(second if later else first, details=details)


def judge_ready(ready: Reply) -> CheckResult:
    """Return what the answer about readiness says."""
    if ready.status == 200:
        return CheckResult(Verdict.PASSING)
    if ready.status == 503:
        return failing(Cause.STARTING, "it is not ready: it starts, or is in maintenance")
    if ready.status in (401, 403, 404):
        return failing(Cause.CONFIG, f"status {ready.status} for {READY}, which needs no key: is this a Weaviate?")
    return failing(cause_of(ready.status), f"status {ready.status} for {READY}")


def judge_nodes(reply: Reply, expected: int | None, *, ready: bool = True) -> CheckResult:
    """Return what the list of nodes says; `expected` is how many there must be."""
    if reply.status in (401, 403):
        why = "it does not take our key" if reply.status == 401 else "our key has no right to read the nodes"
        return failing(Cause.AUTH, f"{why} (status {reply.status})")
    if reply.status >= 500 and reply.status != 503:
        return warning(Cause.DEGRADED_CLUSTER, f"it cannot ask all its nodes: {_message(reply)}")
    if reply.status != 200:
        return failing(cause_of(reply.status), f"status {reply.status} for the list of nodes")
    try:
        nodes = list(json.loads(reply.body)["nodes"])
        return _judged(nodes, expected)
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        return failing(Cause.ERROR, f"its list of nodes is not understood: {type(problem).__name__}")


def _judged(nodes: list[Mapping[str, Any]], expected: int | None) -> CheckResult:
    unwell = [f"{_name(node)} {node['status']}" for node in nodes if node["status"] != "HEALTHY"]
    modes = {_name(node): str(node.get("operationalMode") or "ReadWrite") for node in nodes}
    refusing = [f"{name} {mode}" for name, mode in modes.items() if mode not in ("ReadWrite", "WriteOnly")]
    unread = [name for name, mode in modes.items() if mode == "WriteOnly"]
    shut = [shard for shard in _shards(nodes) if _is_read_only(shard)]
    closed = [f"{shard['class']}/{shard['name']}" for shard in shut if shard["class"] != COLLECTION]
    details = _facts(nodes, len(unwell), expected) | ({CLOSED: len(shut)} if shut else {})
    if unwell:
        cause, text = Cause.DEGRADED_CLUSTER, f"nodes not healthy: {_listing(unwell)}"
    elif expected is not None and len(nodes) < expected:
        there = _listing([_name(node) for node in nodes])
        cause, text = Cause.DEGRADED_CLUSTER, f"{len(nodes)} of {expected} nodes are there: {there}"
    elif refusing:
        cause, text = Cause.READ_ONLY, f"writes are refused: {_listing(refusing)}"
    elif unread:
        cause, text = Cause.CONFIG, f"reads are refused, it is WriteOnly: {_listing(unread)}"
    elif closed:
        why = "its disk or memory passed a limit, or a person closed them"
        cause, text = Cause.READ_ONLY, f"{len(closed)} shards are read-only ({why}): {_listing(closed)}"
    else:
        return CheckResult(Verdict.PASSING, details=details)
    return CheckResult(Verdict.WARNING, cause=cause, summary=text, details=details)


def _facts(nodes: list[Mapping[str, Any]], unwell: int, expected: int | None) -> Details:
    stats = [node["stats"] for node in nodes if node.get("stats")]
    queues = [(node.get("batchStats") or {}).get("queueLength") for node in nodes]
    found: Details = {
        "nodes": len(nodes),
        "nodes_expected": expected,
        "nodes_healthy": len(nodes) - unwell,
        "version": ", ".join(sorted({str(node.get("version", ""))[:30] for node in nodes} - {""}))[:100] or None,
        "queue": sum(queue for queue in queues if isinstance(queue, int)),
        "objects": sum(int(one.get("objectCount", 0)) for one in stats) if stats else None,
        "shards": sum(int(one.get("shardCount", 0)) for one in stats) if stats else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _shards(nodes: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [shard for node in nodes for shard in node.get("shards") or ()]


def _is_read_only(shard: Mapping[str, Any]) -> bool:
    return str(shard.get("vectorIndexingStatus", "")).upper().startswith("READONLY")


def _name(node: Mapping[str, Any]) -> str:
    return str(node["name"])[:60]


def _listing(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _message(reply: Reply) -> str:
    try:
        return str(json.loads(reply.body)["error"][0]["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return f"status {reply.status}"
