"""The routes: one table of method, path and request, which the handlers, the OpenAPI document and the tests read.

A route names a row of `selfheal.requests.TABLE` and says where its parameters stand: those named in the path there,
the others in the query of a GET and in the body of a POST. What a row needs, and what its values may be, is the row's
word and is not said again here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from selfheal.requests import TABLE, Kind, Parameter, Request, Scope

PAGE: Final = 100
"""Entries of a page, unless the caller says how many."""

MOST: Final = 1000
"""Entries of a page at most: what a row of the table gives at most."""

NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""What the name of a service is made of, and so what can stand in a path without being escaped."""

REASON: Final = Parameter(name="reason", about="why; it is recorded. One line of at most 1000 characters")
SERVICE_NAME: Final = Parameter(
    name="service_name", about="the service once more; another one than the path's is a 400"
)
CURSOR: Final = Parameter(name="cursor", about="where the page before this one ended: its `next`")


@attrs.frozen(kw_only=True)
class Paging:
    """How a list is given page by page: `seat` is the field of an entry that says where it stands."""

    seat: str


@attrs.frozen(kw_only=True)
class Filter:
    """A parameter of the query by which entries are left out. `field` is theirs; `since` compares times."""

    parameter: Parameter
    field: str


@attrs.frozen(kw_only=True)
class Route:
    """One method of one path. `request` names its row; a route of the door's own has none, and a scope of its own.

    `key` is the name under which a list is given, `only` are fields that its entries must have; `own` names what the
    door does itself; `everybody` is answered, without any scope.
    """

    method: str
    path: str
    request: str = ""
    key: str = ""
    only: Mapping[str, str] = attrs.field(factory=dict)
    paging: Paging | None = None
    filters: tuple[Filter, ...] = ()
    own: str = ""
    own_about: str = ""
    own_query: tuple[Parameter, ...] = ()
    everybody: bool = False

    @property
    def row(self) -> Request | None:
        """The row of the table of requests; None for a route of the door's own."""
        return TABLE[self.request] if self.request else None

    @property
    def scope(self) -> Scope | None:
        """The scope a caller needs; None where everybody is answered."""
        if self.everybody:
            return None
        return self.row.scope if self.row is not None else Scope.READ

    @property
    def about(self) -> str:
        """What it does, in a sentence."""
        return self.own_about or TABLE[self.request].about

    @property
    def name(self) -> str:
        """A name that no other route has, made of the method and the path."""
        words = [word.strip("{}").replace(".", "_") for word in self.path.split("/") if word]
        return "_".join([self.method.lower(), *words])

    @property
    def in_path(self) -> tuple[str, ...]:
        """The parameters that stand in the path, in order."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))

    @property
    def in_query(self) -> tuple[Parameter, ...]:
        """The parameters that stand in the query."""
        if self.method != "GET" or self.row is None:
            return self.own_query
        left_out = {*self.in_path, "before", "all"}
        paged = (CURSOR,) if self.paging is not None else ()
        rows = [one for one in self.row.parameters if one.name not in left_out]
        filters = [one.parameter for one in self.filters if one.parameter.name not in {row.name for row in rows}]
        return (*rows, *filters, *paged)

    @property
    def in_body(self) -> tuple[Parameter, ...]:
        """The parameters that stand in the body."""
        if self.method != "POST" or self.row is None:
            return ()
        rows = [one for one in self.row.parameters if one.name not in self.in_path]
        again = [SERVICE_NAME] if "service" in self.in_path else []
        return (*rows, *again, *([REASON] if self.row.act else []))


def _get(path: str, request: str, key: str = "", **more: Any) -> Route:
    return Route(method="GET", path=path, request=request, key=key, **more)


def _post(path: str, request: str) -> Route:
    return Route(method="POST", path=path, request=request)


def _own(method: str, path: str, own: str, about: str, *query: Parameter, everybody: bool = False) -> Route:
    return Route(method=method, path=path, own=own, own_about=about, own_query=query, everybody=everybody)


SEVERITIES: Final = ("critical", "high", "medium", "low")
BINDS: Final = ("paused", "maintenance", "observe", "silence")

_SEVERITY: Final = Filter(
    parameter=Parameter(name="severity", choices=SEVERITIES, about="only alerts this severe"), field="severity"
)
_STATE: Final = Filter(
    parameter=Parameter(name="state", choices=("open", "resolved", "all"), about="open ones, unless it says otherwise"),
    field="open",
)
_OF_SERVICE: Final = Filter(parameter=Parameter(name="service", about="only those of this service"), field="service")
_SINCE: Final = Filter(
    parameter=Parameter(name="since", about="only what is not older than this time, as 2026-01-31T12:00:00Z"),
    field="time",
)
_BINDS: Final = Filter(
    parameter=Parameter(name="binds", choices=BINDS, about="only suppressions of this kind"), field="binds"
)
_BY_SEQ: Final = Paging(seat="seq")

TICKET: Final = Parameter(name="ticket", about="what POST /events/ticket gave, in place of a header")
AFTER: Final = Parameter(
    name="after", kind=Kind.NUMBER, about="begin after this record; the header Last-Event-ID says the same"
)

ROUTES: Final[tuple[Route, ...]] = (
    _get("/status", "status"),
    _get("/services", "services", "services"),
    _get("/services/{service}", "service"),
    _get("/services/{service}/explain", "explain"),
    _get("/services/{service}/history", "history", "records", paging=_BY_SEQ, filters=(_SINCE,)),
    _get("/services/{service}/results", "results", "results"),
    _post("/services/{service}/recover", "recover"),
    _post("/services/{service}/enable", "enable"),
    _post("/services/{service}/disable", "disable"),
    _post("/services/{service}/initialize", "initialize"),
    _post("/services/{service}/approve", "approve"),
    _post("/services/{service}/refuse", "refuse"),
    _post("/services/{service}/acknowledge", "acknowledge"),
    _post("/services/{service}/heartbeat", "heartbeat"),
    _post("/initialize", "initialize"),
    _get("/statistics", "statistics"),
    _get("/health", "health", own="health", everybody=True),
    _get("/metrics", "metrics", own="metrics"),
    _get(
        "/alerts",
        "alerts",
        "alerts",
        paging=Paging(seat="opened_seq"),
        filters=(_SEVERITY, _STATE, _OF_SERVICE, _SINCE),
    ),
    _get("/incidents", "incidents", "incidents", paging=Paging(seat="incident")),
    _get("/incidents/{number}", "incident"),
    _get("/history", "history", "records", paging=_BY_SEQ, filters=(_SINCE,)),
    _get("/records", "records", "records"),
    _get("/graph", "graph"),
    _get("/approvals", "approvals", "approvals"),
    _get("/suppressions", "suppressions", "suppressions", filters=(_BINDS,)),
    _get("/pause", "suppressions", "suppressions", only={"binds": "paused"}),
    _get("/maintenance", "suppressions", "suppressions", only={"binds": "maintenance"}),
    _get("/silences", "suppressions", "suppressions", only={"binds": "silence"}),
    _get("/audit", "audit", "records", paging=_BY_SEQ, filters=(_SINCE,)),
    _post("/pause", "pause"),
    _post("/resume", "resume"),
    _post("/maintenance", "maintenance"),
    _post("/silences", "silence"),
    _post("/lift", "lift"),
    _post("/release", "release"),
    _own("GET", "/whoami", "whoami", "Who asks, and what they may do."),
    _own("GET", "/events", "events", "Every record from now on, as server-sent events.", TICKET, AFTER),
    _own("POST", "/events/ticket", "ticket", "A ticket that opens /events once, within half a minute."),
    _own("GET", "/openapi.json", "openapi", "This API, as an OpenAPI 3.1 document.", everybody=True),
    _own("GET", "/docs", "docs", "This API, as a page to read.", everybody=True),
)
"""Every route."""


class Crossroads:
    """Finds the route of a path. Segments are compared as they are; nothing is guessed from what is similar."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._by_length: dict[int, dict[tuple[str, ...], dict[str, Route]]] = {}
        for route in routes:
            parts = tuple(route.path.strip("/").split("/"))
            methods = self._by_length.setdefault(len(parts), {}).setdefault(parts, {})
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.path}")
            methods[route.method] = route

    def find(self, path: str) -> tuple[Mapping[str, Route], dict[str, str]]:
        """Return the routes of a path by method, and what stands in the path; nothing for a path we do not have."""
        asked = tuple(path.strip("/").split("/"))
        patterns = self._by_length.get(len(asked), {})
        if (exact := patterns.get(asked)) is not None and "{" not in path:
            return exact, {}
        for parts, methods in patterns.items():
            found: dict[str, str] = {}
            for part, word in zip(parts, asked, strict=True):
                if part.startswith("{") and word:
                    found[part[1:-1]] = word
                elif part != word:
                    break
            else:
                return methods, found
        return {}, {}
