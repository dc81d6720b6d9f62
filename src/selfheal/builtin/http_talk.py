"""The HTTP/1.1 that a check speaks: one request, and as much of the answer as the conditions need.

The status line and the headers are read here, because nearly every check stops there and h11 would double its cost.
The body is read by h11, which knows chunks, lengths and answers that have none; in the tests it is the oracle for the
rest. Informational answers (1xx) are passed over. Redirects are never followed: another address is another check.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Generator, Mapping
from typing import Final

import attrs
import h11

from selfheal.builtin.addresses import HttpUrl
from selfheal.core.model import Cause
from selfheal.wire import PeerClosed

_END: Final = re.compile(rb"\n\r?\n")
_STATUS: Final = re.compile(rb"HTTP/([0-9]\.[0-9]) ([0-9]{3})(?: [^\x00\r\n]*)?\r?\n")
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")  # a header may go on in the next line: obsolete, and still seen
_NO_STATUS: Final = "it does not begin with a status line of HTTP/1"
_FIELD: Final = re.compile(rb"^([-!#$%&'*+.^_`|~0-9a-zA-Z]+):[ \t]*([^\r\n]*?)[ \t]*\r?$", re.MULTILINE)

CAUSES: Final = {
    401: Cause.AUTH,
    403: Cause.AUTH,
    407: Cause.AUTH,
    408: Cause.TIMEOUT,
    429: Cause.OVERLOADED,
    502: Cause.UNREACHABLE,
    503: Cause.OVERLOADED,
    504: Cause.TIMEOUT,
    507: Cause.FULL,
    511: Cause.AUTH,
}
"""Statuses that say why. Of the others 5xx is `error`, and everything below is `config`.

The peer is up and answers, but not to this question: a moved page, a wrong path, a wrong method. A restart cannot cure
that, and a mistyped URL must not restart a healthy service. 502 and 504 are a proxy's word about what is behind it.
"""


class NotHttp(Exception):
    """What the peer says is not an HTTP answer; the text says why."""


@attrs.frozen
class Head:
    """Status line and headers of an answer, as they came, and what was heard after them."""

    status: int
    raw: bytes
    rest: bytes

    def headers(self) -> dict[str, str]:
        """Return the headers by lower-case name; several of one name are joined with a comma (RFC 9110 §5.3)."""
        found: dict[str, str] = {}
        lines = _FOLD.sub(b" ", self.raw)
        for name, value in _FIELD.findall(lines, lines.index(b"\n") + 1):
            key, text = name.decode("ascii").lower(), value.decode("latin-1")
            found[key] = f"{found[key]}, {text}" if key in found else text
        return found


def cause_of(status: int) -> Cause:
    """Return why an unwanted status was given, as far as it tells."""
    return CAUSES.get(status, Cause.ERROR if status >= 500 else Cause.CONFIG)


def read_head(data: bytes) -> Generator[bytes, bytes, Head]:
    """Read up to the end of the headers of the final answer. Raises `NotHttp`, as early as it is sure."""
    while True:
        searched = 0
        while (end := _END.search(data, searched)) is None:
            if not (data.startswith(b"HTTP/1.") or b"HTTP/1.".startswith(data)):
                raise NotHttp(_NO_STATUS)
            searched = max(0, len(data) - 2)
            data += yield b""
        raw, data = data[: end.end()], data[end.end() :]
        line = _STATUS.match(raw)
        if line is None or line[1][0] != ord("1"):
            raise NotHttp(_NO_STATUS)
        status = int(line[2])
        if status >= 200 or status == 101:
            return Head(status, raw, data)


def read_body(head: Head, method: str, wanted: bytes | None, whole: bool) -> Generator[bytes, bytes, tuple[bool, bool]]:
    """Read the body as far as needed; return whether `wanted` is in it, and whether the connection may be kept.

    Stops as soon as `wanted` is found, unless the `whole` answer is to be read so that the connection can be kept.
    Raises `NotHttp` for broken framing, and `PeerClosed` when the end comes before the whole was said.
    """
    seen, found = b"", wanted is None

    def take(data: bytes) -> bool:
        nonlocal seen, found
        if wanted is not None and not found:
            seen += data
            found = wanted in seen
            seen = seen[max(0, len(seen) - len(wanted) + 1) :]
        return whole or not found

    reusable = (yield from _pieces(head, method, take)) if whole or not found else False
    return found, reusable


def _pieces(head: Head, method: str, take: Callable[[bytes], bool]) -> Generator[bytes, bytes, bool]:
    """Hand each piece of the body to `take`, as long as it wants more; return whether the connection may be kept."""
    answer = h11.Connection(h11.CLIENT)
    answer.send(h11.Request(method=method, target="/", headers=[("Host", "-")]))
    answer.send(h11.EndOfMessage())
    closed, more = False, True
    try:
        answer.receive_data(head.raw + head.rest)
        while more:
            event = answer.next_event()
            if event is h11.NEED_DATA:
                try:
                    data = yield b""
                except PeerClosed:
                    data, closed = b"", True
                answer.receive_data(data)
            elif isinstance(event, h11.Data):
                more = take(bytes(event.data))
            elif event is h11.PAUSED or isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
    except h11.RemoteProtocolError as problem:
        if closed:
            raise PeerClosed("closed the connection in the middle of its answer") from problem
        raise NotHttp("the framing of its body is broken") from problem
    reusable = answer.our_state is h11.DONE and answer.their_state is h11.DONE and not answer.trailing_data[0]
    return reusable and not closed


# -- whole answers, for checks that read what a server says of itself -------------------------------------------------


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
    """Return a request. Raises `ValueError`, without its value, for a header that HTTP cannot carry."""
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
    body = bytearray()

    def take(data: bytes) -> bool:
        body.extend(data)
        return True

    reusable = yield from _pieces(head, method, take)
    return Reply(status=head.status, headers=head.headers(), body=bytes(body), reusable=reusable)
