"""The application: an ASGI app that mounts anywhere, one way for every route, from the request to the answer.

    the bounds of what came in -> the site it came from -> who -> may they -> the parameters -> the rate -> asked

Mount it under any prefix; it has no lifespan of its own, because that of a mounted application is never run.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio
import anyio.to_thread
import attrs
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from selfheal import metrics
from selfheal.errors import ControlError, JournalError, NotRunning, RequestRefused
from selfheal.requests import checked
from selfheal.supervisor import Supervisor, Threaded
from selfheal_starlette import answers, dashboard, limits, openapi, pages
from selfheal_starlette.access import SAFE, Access, Authenticate, Caller, Rules, networks
from selfheal_starlette.events import Bounds, Feed
from selfheal_starlette.problems import MEDIA_TYPE, NOT_RUNNING, Refusal
from selfheal_starlette.routes import ROUTES, Crossroads, Route
from selfheal_starlette.supervised import Across, Here, Supervised
from selfheal_starlette.tickets import GOOD_FOR, Tickets
from selfheal_starlette.tokens import FILE, TokenBook, TokenFile

log = logging.getLogger("selfheal.http")

PREFIX: Final = "/api/recovery"
"""Where the application is usually mounted."""

ASKED_WITHIN: Final = 15.0
"""Seconds for the answer to a query."""

DONE_WITHIN: Final = 30.0
"""Seconds for the answer to an act, which comes once it is durable."""

TAKEN_WITHIN: Final = 30.0
"""Seconds a client may take to read an answer; the connection of one that takes longer is given up."""

WRITERS: Final = 2
"""Answers that are written at a time: each thread more that computes is one more for which the engine's has to wait."""

LATE: Final = 2.0
"""Seconds the engine may take to say how it is; one that takes longer counts as late."""

_KEY: Final = re.compile("[!-~]{1,200}")

GUARDED: Final = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of every response. There are none of CORS: no page of another site reads anything here."""


@attrs.define(eq=False)
class _Asked:
    """One request on its way through."""

    request: Request
    route: Route
    in_path: Mapping[str, str]
    id: str
    caller: Caller | None = None
    address: str = "an unknown address"

    @property
    def known(self) -> Caller:
        """The caller of a route that nobody may use without a scope."""
        assert self.caller is not None
        return self.caller


_Answering: TypeAlias = "Callable[[Request, str, Connection, Receive, Send], Awaitable[Response | None]]"

BESIDE: Final = Route(method="GET", path="/", own="beside", own_about="What another frontend shows.")
"""How what stands beside the API is judged: as what is read."""


class RecoveryApp:
    """The ASGI application. Made by `recovery_app`."""

    def __init__(
        self,
        supervised: Supervised,
        *,
        rules: Rules,
        rates: limits.Rates,
        bounds: Bounds,
        tokens: Path | None,
    ) -> None:
        self._supervised = supervised
        if tokens is None and supervised.journal is not None:
            tokens = supervised.journal.parent / FILE
        book = TokenBook(TokenFile(tokens) if tokens is not None and rules.authenticate is None else None)
        self._access = Access(rules, book, Tickets(), rates)
        self._services = limits.Buckets(rates.service)
        self._callers = limits.Buckets(rates.caller)
        self._heartbeats = limits.Buckets(rates.heartbeats)
        self._crossroads = Crossroads(ROUTES)
        self._writing: anyio.CapacityLimiter | None = None
        self.feed = Feed(supervised, bounds)
        """The open streams; `feed.closing = True`, from any thread, ends them."""

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "there is no websocket here"})
        else:
            await self._guarded(self._answer, scope, receive, send)

    def beside(self, app: ASGIApp) -> ASGIApp:
        """Return an application that stands beside the API, with the same door before it: who may read is let in."""

        async def answer(request: Request, id_: str, scope: Connection, receive: Receive, send: Send) -> None:
            _judge_size(request)
            self._access.judge_origin(request)
            if request.method not in SAFE:
                raise Refusal("method", "this path is for GET", {"Allow": "GET, HEAD"})
            address = self._access.address(request)
            self._access.judge(request, BESIDE, await self._access.caller(request, BESIDE, address))
            if not self._supervised.running:
                raise Refusal("not_running", NOT_RUNNING)
            await app(scope, receive, send)

        return _Beside(partial(self._guarded, answer))

    async def _guarded(self, asked: _Answering, scope: Connection, receive: Receive, send: Send) -> None:
        """Answer one request by `asked`; whatever it raises is a problem document, and nothing of it leaks."""
        request = Request(scope, receive)
        id_ = secrets.token_hex(8)
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            answer = await asked(request, id_, scope, receive, noted)
        except Refusal as refusal:
            answer = _refused(refusal, id_)
        except RequestRefused as refused:
            answer = _refused(Refusal.of(refused), id_)
        except NotRunning:
            answer = _refused(Refusal("not_running", NOT_RUNNING), id_)
        except JournalError as problem:
            log.error("the journal did not answer a request over HTTP: %s", problem)
            answer = _refused(Refusal("journal", "the journal cannot be used; selfheal's log says why"), id_)
        except ControlError as problem:
            log.warning("the process that heals did not answer a request over HTTP: %s", problem)
            answer = _refused(Refusal("unreachable", "ask again in a moment", {"Retry-After": "2"}), id_)
        except ClientDisconnect:
            return
        except TimeoutError:
            text = "what was asked may still be done: look at the audit trail"
            answer = _refused(Refusal("timeout", text), id_)
        except Exception:  # what it was stands in our log; a caller gets no internals (S54)
            log.exception("request %s over HTTP failed", id_)
            answer = _refused(Refusal("internal", "selfheal's log says more, under this request_id"), id_)
        if answer is not None and not begun:
            _guard(answer, id_)
            if not str(scope.get("http_version", "1.1")).startswith("1"):
                del answer.headers["connection"]  # HTTP/2 has no such header
            with anyio.move_on_after(TAKEN_WITHIN):
                await answer(scope, receive, send)

    async def _answer(
        self, request: Request, id_: str, scope: Connection, receive: Receive, send: Send
    ) -> Response | None:
        """Return the response; None for a stream, which has been sent by then. Raises `Refusal` and its kin."""
        _judge_size(request)
        path = _path_of(scope)
        methods, in_path = self._crossroads.find(path)
        self._access.judge_origin(request)
        if not methods and (page := dashboard.respond(request, path)) is not None:
            return page
        if not methods:
            raise Refusal("unknown_request", "there is no such path; /openapi.json has them all")
        route = methods.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            allowed = [*methods, *(["HEAD"] if "GET" in methods else [])]
            there = " and ".join(methods)
            raise Refusal("method", f"this path is for {there}", {"Allow": ", ".join(allowed)})
        asked = _Asked(request, route, in_path, id_)
        address = self._access.address(request)
        asked.address = str(address) if address is not None else asked.address
        asked.caller = await self._access.caller(request, route, address)
        self._access.judge(request, route, asked.caller)
        answers.judge_path(in_path)
        if route.own:
            return await self._own(asked, scope, receive, send)
        if not self._supervised.running:
            raise Refusal("not_running", NOT_RUNNING)
        return await self._change(asked) if request.method == "POST" else await self._look(asked)

    # -- queries -------------------------------------------------------------------------------------------------------

    async def _look(self, asked: _Asked) -> Response:
        route = asked.route
        given = self._given(asked)
        if route.key:
            answer = await answers.listed(route, self._ask, given)
        else:
            answer = await self._ask(route.request, **given)
        return await self._shown(asked.request, answer)

    def _given(self, asked: _Asked) -> dict[str, Any]:
        given: dict[str, Any] = answers.from_query(asked.route, asked.request.query_params.multi_items())
        for name, word in asked.in_path.items():
            whole = name == "number" and word.isascii() and word.isdigit() and len(word) <= 16
            given[name] = int(word) if whole else word
        return given

    async def _ask(self, name: str, **given: Any) -> Any:
        with anyio.fail_after(ASKED_WITHIN):
            return await self._supervised.ask(name, **given)

    # -- acts ----------------------------------------------------------------------------------------------------------

    async def _change(self, asked: _Asked) -> Response:
        route, caller = asked.route, asked.known
        row = route.row
        assert row is not None
        answers.from_query(route, asked.request.query_params.multi_items())
        with anyio.move_on_after(limits.BODY_WITHIN) as waiting:
            body = await _body_of(asked.request)
        if waiting.cancelled_caught:
            raise Refusal("late", f"the body did not come within {limits.BODY_WITHIN:g} s", {"Connection": "close"})
        found = answers.from_body(body, asked.request.headers.get("content-type", ""))
        again = found.pop("service_name", None) if "service" in asked.in_path else None
        if again is not None and again != asked.in_path["service"]:
            raise Refusal("bad_parameter", "service_name is another service than the path's")
        if clash := sorted(asked.in_path.keys() & found.keys()):
            raise Refusal("bad_parameter", f"{clash[0]} stands in the path")
        reason = answers.reason_of(found, row.name) if row.act else ""
        _, given = checked(row.name, {**found, **asked.in_path})
        named = given.get("services", [])
        assert isinstance(named, list)
        answers.judge_names(named)
        self._access.judge_services(caller, row.name, given)
        self._judge_rate(caller, row.act, given)
        if not row.act:
            try:
                await self._ask(row.name, **given)
            except RequestRefused as refused:  # its parameters are as they should be: it is the service that has none
                raise Refusal("refused" if refused.code == "bad_parameter" else refused.code, str(refused)) from None
            return Response(status_code=204)
        key = self._key(asked, row.name, given)
        with anyio.fail_after(DONE_WITHIN):
            answer = await self._supervised.act(
                row.name, actor=caller.actor(asked.address), reason=reason, scopes=caller.scopes, key=key, **given
            )
        return Response(
            answers.body_of(answer), media_type="application/json", headers={"x-request-id": str(answer["id"])}
        )

    def _judge_rate(self, caller: Caller, act: bool, given: Mapping[str, Any]) -> None:
        """Count an act. Raises `Refusal` when there were too many."""
        service = str(given.get("service", ""))
        if not act:
            wait = self._heartbeats.take((caller.key, service))
        elif not (wait := self._services.wait((caller.key, service))) and not (wait := self._callers.take(caller.key)):
            self._services.take((caller.key, service))
        if wait:
            about = f" about {service:.100}" if service else ""
            raise Refusal("too_many", f"too many{about} in a short time; wait {wait} s", {"Retry-After": str(wait)})

    def _key(self, asked: _Asked, act: str, given: Mapping[str, Any]) -> str:
        """Return what makes an act one act: the caller's own key for exactly this, or else the request."""
        named = asked.request.headers.get("idempotency-key")
        if named is None:
            return asked.id
        if not _KEY.fullmatch(named):
            raise Refusal("bad_parameter", "Idempotency-Key is one word of at most 200 characters")
        said = answers.body_of([asked.known.key, named, act, sorted(given.items(), key=lambda one: one[0])])
        return sha256(said).hexdigest()[:32]

    # -- the door's own routes -----------------------------------------------------------------------------------------

    async def _own(self, asked: _Asked, scope: Connection, receive: Receive, send: Send) -> Response | None:
        given = answers.from_query(asked.route, asked.request.query_params.multi_items())
        match asked.route.own:
            case "openapi":
                return await self._shown(asked.request, openapi.document(_mount_of(scope)))
            case "docs":
                return Response(pages.docs(), media_type="text/html", headers={"content-security-policy": pages.POLICY})
            case "health":
                return await self._health(asked)
            case "whoami":
                return await self._shown(asked.request, asked.known.shown())
        if not self._supervised.running:
            raise Refusal("not_running", NOT_RUNNING)
        if asked.route.own == "metrics":
            return await self._metrics(asked, given)
        if asked.route.own == "ticket":
            return self._ticket(asked)
        await self._stream(asked, given, scope, receive, send)
        return None

    async def _health(self, asked: _Asked) -> Response:
        """How selfheal itself is; without a scope only whether it is well."""
        told: dict[str, Any] = {}
        wrong: list[str] = []
        if not self._supervised.running:
            wrong.append(NOT_RUNNING)
        else:
            try:
                with anyio.fail_after(LATE):
                    told = await self._supervised.ask("health")
            except TimeoutError:
                wrong.append(f"the scheduler is late: the engine did not say within {LATE:g} s how it is")
            except (NotRunning, ControlError, JournalError, RequestRefused) as problem:
                log.warning("selfheal cannot say how it is: %s", problem)
                wrong.append("the engine does not answer; selfheal's log says more")
        if told:
            wrong += [] if told["running"] else ["the engine does not turn: a fault has ended it, or nobody holds it"]
            wrong += ["the scheduler is late, for a minute or more"] if "doubt" in told["holds"] else []
            wrong += [] if told["journal"]["well"] else ["the journal cannot be written"]
        shown: dict[str, Any] = {"status": "fail" if wrong else "pass", "why": wrong}
        if asked.caller is not None and told:
            shown |= {"details": told}
        return await self._shown(asked.request, shown, status=503 if wrong else 200)

    async def _metrics(self, asked: _Asked, given: Mapping[str, Any]) -> Response:
        accept = asked.request.headers.get("accept", "")
        form = given.get("format") or metrics.chosen(accept, ("data", "text", "openmetrics"))
        answer = await self._ask("metrics", format=form)
        return await self._shown(asked.request, answer, media_type=metrics.CONTENT_TYPES.get(form, "application/json"))

    async def _shown(
        self, request: Request, answer: Any, *, status: int = 200, media_type: str = "application/json"
    ) -> Response:
        """Return what was read, or that it is still what the caller has."""
        self._writing = self._writing or anyio.CapacityLimiter(WRITERS)
        body, etag = await anyio.to_thread.run_sync(answers.written, answer, limiter=self._writing)
        if status != 200:
            return Response(body, status_code=status, media_type=media_type)
        headers = {"etag": etag, "vary": "accept"}
        if answers.matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    def _ticket(self, asked: _Asked) -> Response:
        caller, access = asked.known, self._access
        token = access.book.by_id(caller.token) if caller.token else None
        ticket = access.tickets.give(caller.name, token)
        return Response(
            answers.body_of({"ticket": ticket, "good_for_seconds": GOOD_FOR}), media_type="application/json"
        )

    async def _stream(
        self, asked: _Asked, given: Mapping[str, Any], scope: Connection, receive: Receive, send: Send
    ) -> None:
        caller, request = asked.known, asked.request
        after = given.get("after")
        if (last := request.headers.get("last-event-id")) is not None:
            if not (last.isascii() and last.isdigit() and len(last) < 16):
                raise Refusal("bad_parameter", "Last-Event-ID is the number of a record")
            after = int(last)
        headers = {
            **GUARDED,
            "content-type": "text/event-stream; charset=utf-8",
            "x-accel-buffering": "no",
            "x-request-id": asked.id,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        if request.method == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            await send({"type": "http.response.body", "body": b""})
            return
        asked_at = time.monotonic()

        async def still() -> bool:
            """Ask for a token at each sign of life, and the host less often: it may ask a store of its own."""
            nonlocal asked_at
            if self._access.rules.authenticate is not None and time.monotonic() - asked_at < self.feed.bounds.again:
                return True
            asked_at = time.monotonic()
            return await self._access.still(caller, request)

        await self.feed.serve(scope, receive, send, caller=caller.key, after=after, headers=raw, still=still)


@attrs.frozen
class _Beside:
    """An application as an object: of a function, Starlette believes that it is given a request."""

    answer: ASGIApp

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send)


def problem_response(refusal: Refusal) -> Response:
    """Return a refusal as the response of who serves us, for what is not below our mount."""
    id_ = secrets.token_hex(8)
    answer = _refused(refusal, id_)
    _guard(answer, id_)
    return answer


def _guard(answer: Response, id_: str) -> None:
    for name, value in GUARDED.items():
        answer.headers.setdefault(name, value)
    answer.headers.setdefault("x-request-id", id_)


def _refused(refusal: Refusal, id_: str) -> Response:
    body = answers.body_of(refusal.document(id_))
    return Response(body, status_code=refusal.status, media_type=MEDIA_TYPE, headers=dict(refusal.headers))


def _judge_size(request: Request) -> None:
    """Refuse what is larger than anything that makes sense. Raises `Refusal`."""
    if len(request.scope["path"]) > limits.PATH or len(request.scope.get("query_string", b"")) > limits.QUERY:
        raise Refusal("too_long", f"at most {limits.PATH} bytes of path and {limits.QUERY} of query")
    if sum(len(name) + len(value) for name, value in request.scope["headers"]) > limits.HEADERS:
        raise Refusal("headers_too_large", f"at most {limits.HEADERS} bytes of headers")


async def _body_of(request: Request) -> bytes:
    too_large = Refusal("too_large", f"at most {limits.BODY} bytes", {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limits.BODY:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.BODY:
            raise too_large
    return bytes(body)


def _path_of(scope: Connection) -> str:
    """Return the path below the mount, whoever mounted us: some hosts leave the prefix in, some cut it off."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    below = path.removeprefix(root) if root and (path == root or path.startswith(f"{root}/")) else path
    return below if below == "" or below.startswith("/") else f"/{below}"


def _mount_of(scope: Connection) -> str:
    """Return where we are mounted, as an address; for a host that does not say it, as seen from the document."""
    return str(scope.get("root_path", "")) or "."


async def _no_lifespan(receive: Receive, send: Send) -> None:
    """Say that we start and stop nothing: an application that serves us alone has to enter the supervisor itself."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def recovery_app(
    supervisor: Supervisor | Threaded | Supervised,
    *,
    authenticate: Authenticate | None = None,
    loopback_writes: bool = False,
    hosts: Iterable[str] | None = None,
    origins: Iterable[str] = (),
    proxies: Iterable[str] = (),
    tokens: Path | str | None = None,
    rates: limits.Rates | None = None,
    bounds: Bounds | None = None,
) -> RecoveryApp:
    """Return the API of a supervisor as an ASGI application, to be mounted under a prefix such as `/api/recovery`.

    The host runs the supervisor: give it `supervisor.lifespan`, or pass on what `supervisor.threaded()` gives.
    `authenticate` says who asks, in place of tokens: it is called with the request, and returns a `Caller` or None; a
    plain function is called in a thread. Without it the tokens of `tokens.json` beside the journal count (`tokens` is
    another file), and where there are none, reading from loopback is allowed, and writing too with `loopback_writes`.
    `hosts` are the only host names answered, `origins` the other sites whose pages may ask, `proxies` the addresses or
    networks whose `X-Forwarded-For` is believed.
    Raises `ValueError` for a proxy that is no address.
    """
    supervised: Supervised
    match supervisor:
        case Supervisor():
            supervised = Here(supervisor)
        case Threaded():
            supervised = Across(supervisor.supervisor, supervisor.portal)
        case _:
            supervised = supervisor
    rules = Rules(
        authenticate=authenticate,
        loopback_writes=loopback_writes,
        hosts=frozenset(host.lower() for host in hosts) if hosts is not None else None,
        origins=frozenset(origin.lower().rstrip("/") for origin in origins),
        proxies=networks(proxies),
    )
    return RecoveryApp(
        supervised,
        rules=rules,
        rates=rates or limits.Rates(),
        bounds=bounds or Bounds(),
        tokens=Path(tokens) if tokens is not None else None,
    )


__all__ = ["PREFIX", "RecoveryApp", "recovery_app"]
