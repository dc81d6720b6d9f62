"""The deep check: a signed question about a bucket, and one about every drive.

The SDK signs and does nothing else: its own way to send has five minutes of patience and five retries. The list of
drives is of MinIO's administration; a key without that right still has its bucket asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult

import attrs

from selfheal import Cause, CheckResult, Secret, Verdict
from selfheal.builtin.http_talk import Reply, ask, cause_of, compose
from selfheal.wire import failing

if TYPE_CHECKING:
    from selfheal_minio.checks import MinioCheck, Part

Details = dict[str, str | int | float | bool | None]
Sign = Callable[[str, str], bytes]
"""Method and path in, the bytes of a signed request out."""

INFO: Final = "/minio/admin/v3/info"
NAMED: Final = 5
"""Drives that a summary names."""

_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")
_NO_BODY: Final = hashlib.sha256(b"").hexdigest()

CODES: Final = {
    "AccessDenied": Cause.AUTH,
    "InvalidAccessKeyId": Cause.AUTH,
    "SignatureDoesNotMatch": Cause.AUTH,
    "ExpiredToken": Cause.AUTH,
    "RequestTimeTooSkewed": Cause.CONFIG,
    "AuthorizationHeaderMalformed": Cause.CONFIG,
    "NoSuchBucket": Cause.CONFIG,
    "SlowDown": Cause.OVERLOADED,
    "SlowDownRead": Cause.DEGRADED_CLUSTER,  # its word for: too few drives to read
    "SlowDownWrite": Cause.DEGRADED_CLUSTER,
    "TooManyRequests": Cause.OVERLOADED,
    "ServerBusy": Cause.OVERLOADED,
    "XMinioServerNotInitialized": Cause.STARTING,
    "XMinioStorageFull": Cause.FULL,
}
"""What MinIO's own word for an error (`X-Minio-Error-Code`) says; it tells a wrong key from a wrong clock."""


def signer_of(check: MinioCheck) -> Sign:
    """Return what signs requests with the keys of a check. It imports the SDK, reads secrets: call it in a thread."""
    from minio.credentials.credentials import Credentials  # noqa: PLC0415  # 72 ms and 7 MiB that only a deep check pays
    from minio.signer import sign_v4_s3  # noqa: PLC0415  # as above

    access, secret = check.access_key, check.secret_key
    assert access is not None
    assert secret is not None
    keys = Credentials(access.reveal().strip() if isinstance(access, Secret) else access, secret.reveal().strip())
    url = check.address()

    def sign(method: str, path: str) -> bytes:
        now = datetime.now(UTC)  # a signature is dated
        headers: dict[str, Any] = {
            "Host": url.authority,
            "x-amz-content-sha256": _NO_BODY,
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        }
        signed = sign_v4_s3(
            method=method,
            url=SplitResult("https" if url.secure else "http", url.authority, path, "", ""),
            region=check.region,
            headers=headers,
            credentials=keys,
            content_sha256=_NO_BODY,
            date=now,
        )
        return compose(url, method, path, {name: str(value) for name, value in signed.items()})

    return sign


def deeply(check: MinioCheck, health: Part, sign: Sign) -> Generator[Any, bytes, tuple[CheckResult, bool]]:
    """Ask for health, and unless that is the whole answer, with the keys, and for the drives, on one connection."""
    result, reusable = yield from health
    if result.verdict is Verdict.FAILING or not reusable:
        return result, False
    if check.bucket is None:
        reply = yield from ask(sign("GET", "/"))
        taken = judge_keys(reply)
    else:
        reply = yield from ask(sign("HEAD", f"/{check.bucket}"), "HEAD")
        taken = judge_bucket(reply, check.bucket)
    if taken.verdict is Verdict.FAILING or not reply.reusable:
        return graver(result, taken), False
    drives = yield from ask(sign("GET", INFO))
    return graver(graver(result, taken), judge_drives(drives, check.min_free)), drives.reusable


def graver(first: CheckResult, second: CheckResult) -> CheckResult:
    """Return the graver of two results, the first of equals, with the details of both."""
    order = (Verdict.PASSING, Verdict.WARNING, Verdict.INCONCLUSIVE, Verdict.FAILING)
    one = second if order.index(second.verdict) > order.index(first.verdict) else first
    return attrs.evolve(one, details={**first.details, **second.details})


def judge_keys(reply: Reply) -> CheckResult:
    """Return what the answer about all buckets says of the keys. Keys that may see none are taken all the same."""
    if reply.status == 200:
        return CheckResult(Verdict.PASSING)
    said = _CODE.search(reply.body)
    code = said[1].decode() if said is not None else ""
    if code == "AccessDenied":
        return CheckResult(Verdict.PASSING, details={"buckets": "none shown to this key (s3:ListAllMyBuckets)"})
    return _refused(reply.status, code)


def judge_bucket(reply: Reply, bucket: str) -> CheckResult:
    """Return what the answer about the bucket says. A HEAD has no body: MinIO says why in a header."""
    if reply.status == 200:
        return CheckResult(Verdict.PASSING, details={"bucket": bucket})
    code = reply.headers.get("x-minio-error-code", "")[:60]
    found = _refused(reply.status, code, bucket)
    return attrs.evolve(found, details={"bucket": bucket, **found.details})


def _refused(status: int, code: str, bucket: str = "") -> CheckResult:
    """Return what a refusal says, of a bucket or of all of them."""
    cause = CODES.get(code, cause_of(status))
    asked = f" for bucket {bucket}" if bucket else ""
    what = {
        Cause.AUTH: f"it does not take our key{asked}",
        Cause.CONFIG: f"it refuses how we ask{asked}",
        Cause.OVERLOADED: "it has more requests than it takes",
        Cause.DEGRADED_CLUSTER: f"too few drives{asked}",
    }.get(cause, f"bucket {bucket} is not served" if bucket else "its buckets are not listed")
    if code == "RequestTimeTooSkewed":
        what = "our clock and its clock differ by more than 15 minutes"
    elif status == 404 and bucket:
        what = f"bucket {bucket} is not there"
    said = f"status {status}{f', {code}' if code else ''}"
    return attrs.evolve(failing(cause, f"{what} ({said})"), details={"status": status})


def judge_drives(reply: Reply, min_free: float) -> CheckResult:
    """Return what the list of drives says. A key without the right to see it is no fault: that is said in a detail."""
    if reply.status in (401, 403):
        return CheckResult(Verdict.PASSING, details={"drives": "not shown to this key (admin:ServerInfo)"})
    try:
        if reply.status != 200:
            raise ValueError(f"status {reply.status}")
        info = json.loads(reply.body)
        drives = [drive for server in info["servers"] for drive in server.get("drives") or ()]
        details = _facts(info, drives)
        off = [_name(drive) for drive in drives if drive.get("state") != "ok"]
        full = [_name(drive) for drive in drives if (free := _free(drive)) is not None and free < min_free]
        down = [str(server.get("endpoint")) for server in info["servers"] if server.get("state") != "online"]
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        return CheckResult(Verdict.PASSING, details={"drives": f"not understood: {type(problem).__name__}"})
    if down:
        text, cause = f"{_listed(down)} not online", Cause.DEGRADED_CLUSTER
    elif off:
        text, cause = f"{len(off)} of {len(drives)} drives not in order: {_listed(off)}", Cause.DEGRADED_CLUSTER
    elif full:
        text, cause = f"less than {min_free:.0%} free on {_listed(full)}", Cause.FULL
    else:
        return CheckResult(Verdict.PASSING, details=details)
    return CheckResult(Verdict.WARNING, cause=cause, summary=text, details=details)


def _facts(info: Mapping[str, Any], drives: list[Mapping[str, Any]]) -> Details:
    free = [share for drive in drives if (share := _free(drive)) is not None]
    found: Details = {
        "version": str(info["servers"][0].get("version", ""))[:60],
        "backend": str(info.get("backend", {}).get("backendType", ""))[:20],
        "nodes": len(info["servers"]),
        "drives": len(drives),
        "drives_ok": sum(drive.get("state") == "ok" for drive in drives),
        "least_free": round(min(free), 4) if free else None,
    }
    return {name: value for name, value in found.items() if value not in ("", None)}


def _free(drive: Mapping[str, Any]) -> float | None:
    total, available = drive.get("totalspace"), drive.get("availspace", 0)
    return None if not total or drive.get("state") != "ok" else float(available) / float(total)


def _name(drive: Mapping[str, Any]) -> str:
    state = str(drive.get("state", ""))
    return f"{str(drive.get('endpoint', '?'))[:100]}{'' if state == 'ok' else f' ({state[:30]})'}"


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
