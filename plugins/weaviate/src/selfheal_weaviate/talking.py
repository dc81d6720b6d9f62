"""HTTP/1.1 as parts of a talk, and a talk run by a coroutine.

The runner of wire checks drives a light check; the deep check is a coroutine and drives the same talk here, on
asyncio, under its one deadline. Nothing in this file knows what the answers mean.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import Generator, Mapping

import attrs
import h11

from selfheal import Cause, CheckResult, Context, PeerClosed, Target, Tls, Verdict
from selfheal.builtin.addresses import HttpUrl
from selfheal.builtin.http_talk import Head, NotHttp, read_head
from selfheal.wire import Talk, failing, inconclusive, secure


@attrs.frozen(kw_only=True)
class Reply:
    """One whole answer. Header names are lower case; `reusable` is whether the connection may carry another."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reusable: bool


def compose(
    url: HttpUrl, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """Return a request. Raises ValueError, without its value, for a header that HTTP cannot carry."""
    lines = {"Host": url.authority, "User-Agent": "selfheal", "Accept-Encoding": "identity", **(headers or {})}
    if body:
        lines["Content-Length"] = str(len(body))
    for name, value in lines.items():
        if not all(" " <= letter <= "~" for letter in value):
            raise ValueError(f"header {name} has a character that HTTP does not carry")
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def ask(request: bytes, method: str = "GET") -> Generator[bytes, bytes, Reply]:
    """Send a request and read the whole answer. Raises `NotHttp`, and `PeerClosed` when it ends too early."""
    head = yield from read_head((yield request))
    return (yield from _whole(head, method))


def _whole(head: Head, method: str) -> Generator[bytes, bytes, Reply]:
    answer = h11.Connection(h11.CLIENT)
    answer.send(h11.Request(method=method, target="/", headers=[("Host", "-")]))
    answer.send(h11.EndOfMessage())
    body, closed = bytearray(), False
    try:
        answer.receive_data(head.raw + head.rest)
        while True:
            event = answer.next_event()
            if event is h11.NEED_DATA:
                try:
                    data = yield b""
                except PeerClosed:
                    data, closed = b"", True
                answer.receive_data(data)
            elif isinstance(event, h11.Data):
                body += event.data
            elif event is h11.PAUSED or isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
    except h11.RemoteProtocolError as problem:
        if closed:
            raise PeerClosed("closed the connection in the middle of its answer") from problem
        raise NotHttp("the framing of its answer is broken") from problem
    reusable = answer.our_state is h11.DONE and answer.their_state is h11.DONE and not answer.trailing_data[0]
    return Reply(status=head.status, headers=head.headers(), body=bytes(body), reusable=reusable and not closed)


@attrs.frozen(kw_only=True)
class Trust:
    """A TLS context, and what its files looked like when it was made."""

    context: ssl.SSLContext
    files: tuple[float, ...]


def trust(tls: Tls, earlier: Trust | None = None) -> Trust:
    """Return what to trust; `earlier` while its files are the same. It reads them: call it in a thread.

    Raises OSError.
    """
    files = tuple(path.stat().st_mtime for path in (tls.authority, tls.certificate) if path is not None)
    if earlier is not None and earlier.files == files:
        return earlier
    context = ssl.create_default_context(cafile=tls.authority)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate)
    return Trust(context=context, files=files)


async def converse(context: Context, target: Target, talk: Talk) -> CheckResult:
    """Run a talk to its result, on a connection of its own. Raises `OSError` when the peer is not reached."""
    tls = target.tls
    if tls is not None:
        try:
            trusted = await context.blocking(trust, tls, context.kept.get("trust"))
        except OSError as problem:
            return inconclusive(f"authority or certificate cannot be used: {problem.strerror}", Cause.CONFIG)
        context.kept["trust"] = trusted

        def ends_soon(result: CheckResult, peer: ssl.SSLObject) -> CheckResult:
            return _warned(result, peer, tls.warn_before)

        talk = secure(talk, trusted.context, tls.server_name or target.host, ends_soon)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        return await _turns(talk, target.limit, reader, writer)
    finally:
        talk.close()
        writer.transport.abort()  # an orderly goodbye would wait for a peer that may be frozen


def _warned(result: CheckResult, peer: ssl.SSLObject, before: float) -> CheckResult:
    """Return a warning in the place of a PASSING when the certificate ends within `before` seconds."""
    ends = (peer.getpeercert() or {}).get("notAfter")
    if result.verdict is not Verdict.PASSING or not isinstance(ends, str):
        return result
    left = ssl.cert_time_to_seconds(ends) - time.time()  # the end of a certificate is a date
    if left >= before:
        return result
    summary = f"its certificate ends in {left / 86400:.1f} days"
    return attrs.evolve(result, verdict=Verdict.WARNING, cause=Cause.CONFIG, summary=summary)


async def _turns(talk: Talk, room: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> CheckResult:
    said: bytes | CheckResult
    try:
        said = next(talk)
        while not isinstance(said, CheckResult):
            if said:
                writer.write(said)
            try:
                heard = await reader.read(65536)
            except ConnectionError:
                heard = b""
            room -= len(heard)
            if room < 0:
                return failing(Cause.ERROR, "said more than a check reads")
            said = talk.send(heard) if heard else talk.throw(PeerClosed("closed the connection"))
    except StopIteration as stop:
        result: CheckResult = stop.value
        return result
    except PeerClosed as problem:
        return failing(Cause.UNREACHABLE, str(problem))
    return said
