"""The check `minio`: its options, the light talk about health, and what each answer means.

MinIO says how it is at three addresses that need no key. They are asked on one connection, which is kept:
`live` (the process), `cluster` (may one write?) and, where one may not, `cluster/read` (may one read?).
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from selfheal import Cause, CheckContext, CheckResult, Secret, Target, Tls, Verdict, converse
from selfheal.builtin import options
from selfheal.builtin.addresses import HttpUrl, read_http_url
from selfheal.builtin.http_talk import NotHttp, Reply, ask, cause_of, compose
from selfheal.wire import Talk, failing, inconclusive, warning

_LIVE: Final = "/minio/health/live"
_CLUSTER: Final = "/minio/health/cluster"
_READ: Final = "/minio/health/cluster/read"

LIGHT_LIMIT: Final = 65536
"""Bytes of one light check; the answers have no body."""

DEEP_LIMIT: Final = 2**21
"""Bytes of one deep check: the list of drives takes about 1 kB a drive, that of buckets 120 bytes a bucket."""

READING_FAULTS: Final = (OSError, ValueError, LookupError)
"""What reading an address or a secret may raise."""


_YES_OR_NO: Final = attrs.validators.instance_of(bool)
_TEXT: Final = attrs.validators.optional(attrs.validators.instance_of(str))


@attrs.frozen(kw_only=True)
class MinioCheck:
    """Whether MinIO lives, may be written and read; with `deep`, also a bucket, our key, and every drive."""

    kind: ClassVar[str] = "minio"

    #: `http://host:9000`, `https://…`, or `host:9000` as the SDK takes it: the address of one node, or of what stands
    #: before all of them. May be a secret.
    url: str | Secret = attrs.field()
    #: Whether an address without a scheme is meant for https, as with `secure` of the SDK.
    secure: bool = attrs.field(default=False, validator=_YES_OR_NO)
    #: The access key that a deep check uses. May be a secret. It goes with `secret_key`.
    access_key: str | Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of((str, Secret)))
    )
    #: The secret key that a deep check uses.
    secret_key: Secret | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Secret))
    )
    #: The bucket that a deep check asks for: it must be there, and the keys must be allowed to list it. Without one a
    #: deep check with keys asks whether they are taken.
    bucket: str | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.matches_re(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")),
    )
    #: The region that requests are signed for.
    region: str = attrs.field(default="us-east-1", validator=attrs.validators.matches_re(r"[a-z0-9-]+"))
    #: A deep check warns of a drive with a smaller share than this free. MinIO itself refuses to write below 0.01.
    min_free: float = options.share(0.05)
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
        if not isinstance(value, str | Secret):
            raise TypeError(f"url: {type(value).__name__} is neither text nor a secret")

    def __attrs_post_init__(self) -> None:
        if isinstance(self.url, str):
            self.address()
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key go together: give both, or none")
        if self.bucket is not None and self.secret_key is None:
            raise ValueError("bucket: a deep check asks for it with keys; give access_key and secret_key too")

    def address(self) -> HttpUrl:
        """Return where it is. Raises ValueError, and what reading a secret raises."""
        text = self.url.reveal().strip() if isinstance(self.url, Secret) else self.url
        if "://" not in text:
            text = f"{'https' if self.secure else 'http'}://{text}"
        try:
            url = read_http_url(text)
        except ValueError as problem:
            raise ValueError(f"url: {problem}") from None
        if url.target != "/":
            raise ValueError("url: give the address alone; the paths of MinIO are known")
        return url

    def target(self) -> Target:
        """Return where to connect. Raises as `address` does."""
        return self._target(LIGHT_LIMIT, self.keep)

    def talk(self) -> Talk:
        """Ask for health, once for each check."""
        while True:
            result, reusable = yield from self._guarded(self._health())
            if not (self.keep and reusable):
                return result
            yield result

    async def check(self, context: CheckContext) -> CheckResult:
        """Ask for health and, where keys are given, for the bucket and the drives: the deep check."""
        if self.secret_key is None:
            try:
                target = await context.blocking(self._target, LIGHT_LIMIT, False)
            except READING_FAULTS as problem:
                return inconclusive(f"the address cannot be read: {type(problem).__name__}", Cause.CONFIG)
            return await converse(target, self._once(self._health()))
        from selfheal_minio.deep import deeply, signer_of  # noqa: PLC0415  # only a deep check needs it

        try:
            sign = await context.blocking(signer_of, self)
            target = await context.blocking(self._target, DEEP_LIMIT, False)
        except READING_FAULTS as problem:
            return inconclusive(f"the address or a key cannot be read: {type(problem).__name__}", Cause.CONFIG)
        return await converse(target, self._once(deeply(self, self._health(), sign)))

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

    def _once(self, part: Part) -> Talk:
        result, _ = yield from self._guarded(part)
        return result

    @staticmethod
    def _guarded(part: Part) -> Part:
        try:
            return (yield from part)
        except NotHttp as problem:
            return failing(Cause.ERROR, f"not HTTP: {problem}"), False

    def _health(self) -> Part:
        """Ask what MinIO itself says of its health."""
        url = self.address()
        live = yield from ask(compose(url, "GET", _LIVE))
        if (result := judge_live(live)) is not None:
            return result, live.reusable
        if not live.reusable:
            return warning(Cause.CONFIG, CLOSES), False
        cluster = yield from ask(compose(url, "GET", _CLUSTER))
        if cluster.status != 503 or SERVER_STATUS in cluster.headers or not cluster.reusable:
            return judge_cluster(cluster, None), cluster.reusable
        read = yield from ask(compose(url, "GET", _READ))
        return judge_cluster(cluster, read), read.reusable


Part = Generator[Any, bytes, tuple[CheckResult, bool]]
"""A part of a talk: what it found, and whether the connection may carry more."""

SERVER_STATUS: Final = "x-minio-server-status"
CLOSES: Final = (
    "it lives, but the connection is closed after each answer, so the quorum cannot be asked: give the address of MinIO"
)
PARTS: Final = {
    "offline": "its drives are not all found yet",
    "bucket-metadata-offline": "it still reads its buckets",
    "iam-offline": "it still reads its users",
}
"""What `X-Minio-Server-Status` says of a start that is not over."""


def judge_live(live: Reply) -> CheckResult | None:
    """Return what the answer about the process says; None when it lives and serves."""
    if live.status in (429, 503):
        return failing(Cause.OVERLOADED, f"it has more requests waiting than it takes (status {live.status})")
    if live.status in (401, 403, 404):
        return failing(Cause.CONFIG, f"status {live.status}, where MinIO needs no key: is this the address of a MinIO?")
    if live.status != 200:
        return failing(cause_of(live.status), f"status {live.status} for {_LIVE}")
    return _starting(live)


def _starting(reply: Reply) -> CheckResult | None:
    if (status := reply.headers.get(SERVER_STATUS)) is None:
        return None
    return CheckResult(
        Verdict.FAILING,
        cause=Cause.STARTING,
        summary=f"it starts: {PARTS.get(status, status[:60])}",
        details={"server_status": status[:60]},
    )


def judge_cluster(cluster: Reply, read: Reply | None) -> CheckResult:
    """Return what the answers about writing and, where it is refused, about reading say."""
    for reply in (cluster,) if read is None else (cluster, read):
        if (starting := _starting(reply)) is not None:
            return starting
    details = _quorums(cluster, read)
    if cluster.status == 200:
        if healing := details.get("healing_drives"):
            summary = f"it serves, and heals {healing} drive{'s' if healing != 1 else ''}"
            return CheckResult(Verdict.WARNING, cause=Cause.DEGRADED_CLUSTER, summary=summary, details=details)
        return CheckResult(Verdict.PASSING, details=details)
    if cluster.status != 503:
        return failing(cause_of(cluster.status), f"status {cluster.status} for {_CLUSTER}")
    if read is None:
        return attrs.evolve(warning(Cause.DEGRADED_CLUSTER, "it lives, and may not be written"), details=details)
    if read.status == 200:
        summary = "too few drives to write: reading goes on, every write is refused"
        return CheckResult(Verdict.WARNING, cause=Cause.READ_ONLY, summary=summary, details=details)
    summary = "too few drives even to read: it lives, and serves nothing"
    return CheckResult(Verdict.FAILING, cause=Cause.DEGRADED_CLUSTER, summary=summary, details=details)


def _quorums(cluster: Reply, read: Reply | None) -> dict[str, str | int | float | bool | None]:
    found: dict[str, str | int | float | bool | None] = {
        "writable": cluster.status == 200,
        "write_quorum": _count(cluster, "x-minio-write-quorum"),
        "healing_drives": _count(cluster, "x-minio-healing-drives"),
    }
    if read is not None:
        found |= {"readable": read.status == 200, "read_quorum": _count(read, "x-minio-read-quorum")}
    return {name: value for name, value in found.items() if value is not None}


def _count(reply: Reply, name: str) -> int | None:
    text = reply.headers.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None
