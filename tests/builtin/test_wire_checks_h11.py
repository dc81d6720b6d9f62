"""h11 is the oracle: for random answers, cut at random, our reading agrees with its."""

from __future__ import annotations

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from selfheal.builtin.http_talk import Head, NotHttp, read_body, read_head
from selfheal.wire import PeerClosed

token = st.text("abcXYZ0-_!", min_size=1, max_size=8).map(str.encode)
value = st.text("ab ,;=\t\"'é", max_size=12).map(lambda text: text.strip(" \t").encode("latin-1"))
newline = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"])
reason = st.sampled_from([b"", b" ", b" OK", b" Not \xe9 found", b" a\tb"])
statuses = st.sampled_from([100, 103, 199, 200, 200, 200, 204, 301, 304, 404, 500, 503, 599, 600, 999])
framing = st.sampled_from(["none", "length", "chunked", "short", "long"])
body = st.binary(max_size=40)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Answers as servers give them: well formed for the most part."""
    end = draw(newline)
    said = b""
    for _ in range(draw(st.integers(1, 3))):
        status = draw(statuses)
        head = [b"HTTP/1.%d %d%b" % (draw(st.integers(0, 1)), status, draw(reason))]
        head += [name + b": " + text for name, text in draw(st.lists(st.tuples(token, value), max_size=3))]
        content, how = draw(body), draw(framing)
        if status < 200:
            content = b""
        elif how == "chunked":
            head.append(b"Transfer-Encoding: chunked")
            content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (content[:7], content[7:]) if piece)
            content += b"0\r\n\r\n"
        elif how != "none":
            head.append(b"Content-Length: %d" % max(0, len(content) + {"length": 0, "short": -1, "long": 1}[how]))
        said += end.join(head) + end + end + content
    return said


@st.composite
def cut(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> list[bytes]:
    """A reply in pieces."""
    reply = draw(source)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(reply) - 1)), max_size=5)))
    pieces = [reply[low:high] for low, high in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    return [piece for piece in pieces if piece]


broken = answers().flatmap(
    lambda reply: st.tuples(st.integers(0, max(0, len(reply) - 1)), st.binary(min_size=1, max_size=2)).map(
        lambda change: reply[: change[0]] + change[1] + reply[change[0] + 1 :]
    )
)


def ours(pieces: list[bytes], method: str) -> tuple[object, ...]:
    """Return status, headers and whether the text is in the body, as we read them; or how it went wrong."""
    pending = [*pieces]

    def drive(talk: object) -> object:
        try:
            next(talk)  # type: ignore[call-overload]
            while True:
                if pending:
                    talk.send(pending.pop(0))  # type: ignore[attr-defined]
                else:
                    talk.throw(PeerClosed())  # type: ignore[attr-defined]
        except StopIteration as stop:
            return stop.value

    try:
        head = drive(read_head(b""))
        assert isinstance(head, Head)
    except NotHttp:
        return ("not http",)
    except PeerClosed:
        return ("closed",)
    try:
        found = drive(read_body(head, method, b"ab", whole=True))
        return (head.status, head.headers(), found)
    except NotHttp:
        return (head.status, head.headers(), "broken")
    except PeerClosed:
        return (head.status, head.headers(), "closed")


def theirs(pieces: list[bytes], method: str) -> tuple[object, ...]:
    """The same by h11 alone."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    pending = [*pieces]
    answer: h11.Response | None = None
    content, ended = b"", False

    def head() -> tuple[int, dict[str, str]]:
        assert answer is not None
        found: dict[str, str] = {}
        for name, text in answer.headers.raw_items():
            key = name.decode().lower()
            found[key] = f"{found[key]}, {text.decode('latin-1')}" if key in found else text.decode("latin-1")
        return answer.status_code, found

    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                ended = not pending
                connection.receive_data(pending.pop(0) if pending else b"")
            elif isinstance(event, (h11.InformationalResponse, h11.Response)):
                if not event.http_version.startswith(b"1."):
                    return ("not http",)  # h11 takes any digit; there is no HTTP/0.x or /7.x that speaks like this
                answer = event if isinstance(event, h11.Response) else answer
            elif isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                keep = connection.their_state is h11.DONE and not ended and not connection.trailing_data[0]
                return (*head(), (b"ab" in content, keep))
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return ("closed",) if answer is None else (*head(), (b"ab" in content, False))
    except h11.RemoteProtocolError:
        if answer is not None:
            return (*head(), "closed" if ended else "broken")
        return ("closed",) if ended else ("not http",)


@settings(max_examples=400, deadline=None)
@given(cut(answers()), st.sampled_from(["GET", "HEAD"]))
def test_we_read_answers_as_h11_does(pieces: list[bytes], method: str) -> None:
    assert ours(pieces, method) == theirs(pieces, method)


@settings(max_examples=400, deadline=None)
@given(cut(broken))
def test_what_h11_takes_of_a_damaged_answer_we_take_alike(pieces: list[bytes]) -> None:
    """We may be more lenient (headers nobody asked about), never stricter, and never read another status."""
    wanted = theirs(pieces, "GET")
    if isinstance(wanted[0], int):
        assert ours(pieces, "GET") == wanted
