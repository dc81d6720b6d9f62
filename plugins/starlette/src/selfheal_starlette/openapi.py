"""The OpenAPI 3.1 document, made of the table that makes the routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from selfheal.metrics import CONTENT_TYPES
from selfheal.requests import Kind, Parameter, Scope
from selfheal_starlette import problems
from selfheal_starlette.routes import MOST, NAME, ROUTES, Route

VERSION: Final = "1"
"""Version of the API; it grows when something changes its meaning."""

_TEXT: Final = {"type": "string"}
_MAYBE_TEXT: Final = {"type": ["string", "null"]}
_SECONDS: Final = {"type": "number", "minimum": 0}
_MAYBE_NUMBER: Final = {"type": ["number", "null"]}
_WHOLE: Final = {"type": "integer"}
_MAYBE_WHOLE: Final = {"type": ["integer", "null"]}
_FLAG: Final = {"type": "boolean"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_OBJECT: Final = {"type": "object"}


def _object(required: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **more}}


def _many(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(of)}


def _named(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


STATES: Final = ("unknown", "healthy", "degraded", "unhealthy", "failed", "recovering", "disabled")

_STATE: Final = {"type": "string", "enum": list(STATES)}
_LINE: Final = {
    "service": _TEXT,
    "state": _STATE,
    "reason": _TEXT,
    "detail": _TEXT,
    "since": _MAYBE_TEXT,
    "since_seconds": _SECONDS,
    "probation": _FLAG,
    "incident": _MAYBE_WHOLE,
    "attempt": _WHOLE,
    "cause": _MAYBE_TEXT,
    "watched": _FLAG,
    "last_check": _MAYBE_TEXT,
    "last_verdict": _MAYBE_TEXT,
    "latency_seconds": _MAYBE_NUMBER,
    "summary": _TEXT,
}
_PARTS_OF_TIME: Final = ("observed_seconds", "down_seconds", "degraded_seconds", "planned_seconds")
_COUNTS: Final = ("incidents", "relapses", "recovered", "healed_by_itself", "open", "recoveries_measured")
_MAY_BE_UNKNOWN: Final = (
    "coverage",
    "uptime_percentage",
    "failure_rate_per_day",
    "mean_time_between_failures_seconds",
    "mean_time_between_failures_at_least_seconds",
    "median_detection_seconds",
    "mean_recovery_seconds",
    "median_recovery_seconds",
    "p90_recovery_seconds",
    "reliability_score",
)
_INCIDENT: Final = {
    "incident": _WHOLE,
    "root": _TEXT,
    "opened": _TEXT,
    "closed": _MAYBE_TEXT,
    "open": _FLAG,
    "members": _TEXTS,
    "actions": _TEXTS,
    "relapses": _WHOLE,
    "duration_seconds": _MAYBE_NUMBER,
}

SCHEMAS: Final[Mapping[str, dict[str, Any]]] = {
    "Problem": _object(
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": _WHOLE,
            "detail": _TEXT,
            "code": {"type": "string", "enum": list(problems.CODES)},
            "request_id": _TEXT,
        }
    ),
    "Record": _object(
        {
            "version": _WHOLE,
            "seq": _MAYBE_WHOLE,
            "at": {"type": "number"},
            "time": _TEXT,
            "kind": _TEXT,
            "service": _MAYBE_TEXT,
            "incident": _MAYBE_WHOLE,
            "root_incident": _MAYBE_WHOLE,
            "attempt": _MAYBE_WHOLE,
            "step": _MAYBE_WHOLE,
            "action": _MAYBE_TEXT,
            "actor": _MAYBE_TEXT,
            "reason": _object({"code": _TEXT, "detail": _TEXT}),
            "cause": _MAYBE_TEXT,
            "correlation_id": _MAYBE_TEXT,
            "guards": _many(_OBJECT),
            "duration_seconds": _MAYBE_NUMBER,
        }
    ),
    "Line": _object(_LINE),
    "Service": _object(
        {
            **_LINE,
            "check": _MAYBE_TEXT,
            "policy": _OBJECT,
            "condition": _OBJECT,
            "evidence": {"type": ["object", "null"]},
            "alerts": _many(_OBJECT),
            "action": _MAYBE_TEXT,
        }
    ),
    "Incident": _object(_INCIDENT),
    "Suppression": _object(
        {
            "suppression": _TEXT,
            "binds": _TEXT,
            "services": _TEXTS,
            "everything": _FLAG,
            "since": _MAYBE_TEXT,
            "until": _MAYBE_TEXT,
            "actor": _TEXT,
            "reason": _TEXT,
        }
    ),
    "Status": _object(
        {
            "version": _WHOLE,
            "fleet": _TEXT,
            "time": _MAYBE_TEXT,
            "counts": _object(dict.fromkeys(STATES, _WHOLE)),
            "services": _many(_named("Line")),
            "holds": _many(_object({"hold": _TEXT, "evidence": _TEXT})),
            "incidents": _many(_OBJECT),
            "suppressions": _many(_named("Suppression")),
            "running": _FLAG,
        }
    ),
    "Explanation": _object(
        {
            "service": _TEXT,
            "state": _STATE,
            "reason": _TEXT,
            "detail": _TEXT,
            "next_step": _MAYBE_TEXT,
            "holding": _TEXTS,
            "guards": _many(_object({"guard": _TEXT, "holds": _FLAG, "reason": _TEXT, "detail": _TEXT})),
            "verdict": _TEXT,
        }
    ),
    "Health": _object({"status": {"type": "string", "enum": ["pass", "fail"]}, "why": _TEXTS}, details=_OBJECT),
    "Ticket": _object({"ticket": _TEXT, "good_for_seconds": _SECONDS}),
    "Caller": _object(
        {
            "name": _TEXT,
            "scope": {"type": "string", "enum": [scope.value for scope in Scope]},
            "services": {"type": ["array", "null"], "items": _TEXT},
        }
    ),
    "Steps": _object({**dict.fromkeys(("taken", "success", "failure"), _WHOLE), "success_rate": _MAYBE_NUMBER}),
    "Day": _object({"date": _TEXT, **dict.fromkeys(_PARTS_OF_TIME, _SECONDS)}),
    "Numbers": _object(
        {
            "window_seconds": _SECONDS,
            **dict.fromkeys(_PARTS_OF_TIME, _SECONDS),
            **dict.fromkeys(_COUNTS, _WHOLE),
            **dict.fromkeys(_MAY_BE_UNKNOWN, _MAYBE_NUMBER),
            "failures_by_cause": {"type": "object", "additionalProperties": _WHOLE},
            "steps": _named("Steps"),
            "actions": {"type": "object", "additionalProperties": _named("Steps")},
        },
        days=_many(_named("Day")),
    ),
    "Statistics": _object(
        {
            "incidents": _WHOLE,
            "window_seconds": _SECONDS,
            "services": {"type": "object", "additionalProperties": _named("Numbers")},
        },
        fleet=_named("Numbers"),
    ),
    "Graph": _object({"services": _many(_OBJECT), "edges": _many(_OBJECT)}),
    "Metrics": {
        "type": "object",
        "additionalProperties": _object({"help": _TEXT, "type": _TEXT, "samples": _many(_OBJECT)}),
    },
}
"""What is answered. A field that is not named here may come in any release; none that is named goes or changes."""

ANSWERS: Final[Mapping[str, dict[str, Any]]] = {
    "status": _named("Status"),
    "service": _named("Service"),
    "explain": _named("Explanation"),
    "incident": {"allOf": [_named("Incident"), _object({"timeline": _many(_named("Record"))})]},
    "statistics": _named("Statistics"),
    "graph": _named("Graph"),
    "metrics": _named("Metrics"),
    "health": _named("Health"),
    "ticket": _named("Ticket"),
    "whoami": _named("Caller"),
    "results": _object({"time": _TEXT, "verdict": _TEXT, "latency_seconds": _SECONDS, "summary": _TEXT}),
    "openapi": _OBJECT,
    "services": _named("Service"),
    "incidents": _named("Incident"),
    "suppressions": _named("Suppression"),
    "approvals": _object({"service": _TEXT, "action": _MAYBE_TEXT, "asked": _MAYBE_TEXT, "skipped_at": _MAYBE_TEXT}),
    "history": _named("Record"),
    "records": _named("Record"),
    "audit": _named("Record"),
    "alerts": _named("Record"),
}
"""What a request answers; for one that is given as a list, what each entry is."""


@lru_cache(8)
def document(mount: str) -> dict[str, Any]:
    """Return the document for an application under a prefix."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "selfheal",
            "version": VERSION,
            "description": "How a fleet stands, why, and what is done about it; and the acts of people.",
        },
        "servers": [{"url": mount}],
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.about,
        "description": f"Scope: {route.scope.value}." if route.scope is not None else "Everybody is answered.",
        "parameters": [*_in_path(route), *(_in_query(one) for one in route.in_query), *_in_header(route)],
        "responses": _responses(route),
        # Where no token is configured, reading from loopback needs none.
        "security": [] if route.scope is None else [{"token": []}, {}],
    }
    if route.method == "POST" and route.row is not None:
        body = _body(route)
        needed = bool(body["required"] or "anyOf" in body)
        operation["requestBody"] = {"required": needed, "content": {"application/json": {"schema": body}}}
    return operation


def _in_path(route: Route) -> Iterable[dict[str, Any]]:
    assert not route.in_path or route.row is not None
    about = {one.name: one for one in route.row.parameters} if route.row is not None else {}
    for name in route.in_path:
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": about[name].about,
            "schema": schema_of(about[name]),
        }


def _in_query(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.about,
        "schema": schema_of(parameter),
    }


def _in_header(route: Route) -> Iterable[dict[str, Any]]:
    if route.row is not None and route.row.act:
        about = "makes this one act, however often it is sent"
        schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"}
        yield {"name": "Idempotency-Key", "in": "header", "required": False, "description": about, "schema": schema}
    if route.own == "events":
        about = "the last record that was seen, from which to go on"
        schema = {"type": "string", "pattern": "^[0-9]{1,15}$"}
        yield {"name": "Last-Event-ID", "in": "header", "required": False, "description": about, "schema": schema}


def _body(route: Route) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "required": [one.name for one in route.in_body if one.required],
        "properties": {one.name: {**schema_of(one), "description": one.about} for one in route.in_body},
    }
    if {"services", "everything"} <= body["properties"].keys():
        # An empty list is nothing, and the whole fleet must be said.
        some = {"required": ["services"], "properties": {"services": {"minItems": 1}}}
        body["anyOf"] = [some, {"required": ["everything"], "properties": {"everything": {"const": True}}}]
    return body


def schema_of(parameter: Parameter) -> dict[str, Any]:
    """Return the schema of a parameter's value, as narrow as its check."""
    text: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 1000}
    if parameter.choices:
        text = {"type": "string", "enum": list(parameter.choices)}
    elif parameter.name in ("service", "services", "service_name"):
        text = {"type": "string", "pattern": f"^{NAME}$"}
    match parameter.kind:
        case Kind.NUMBER if parameter.name == "limit":
            return {"type": "integer", "minimum": 1, "maximum": MOST}
        case Kind.NUMBER:
            return {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
        case Kind.SECONDS:
            return {"type": "number", "exclusiveMinimum": 0, "maximum": 366 * 86400}
        case Kind.BOOLEAN:
            return {"type": "boolean"}
        case Kind.WORDS:
            return {"type": "array", "items": text}
    if parameter.name == "cursor":
        return {"type": "string", "pattern": "^[0-9]{1,15}$"}
    if parameter.name == "since":
        return {"type": "string", "format": "date-time"}
    if parameter.name == "reason":
        text = {**text, "pattern": "^[ -~]*[!-~][ -~]*$"}
    return text


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {_success(route): _well(route)}
    if route.method == "GET" and route.own not in ("events", "docs"):
        responses["304"] = {"description": "It is still what `If-None-Match` names."}
    for status in sorted({status for status, _ in problems.CODES.values()}):
        if route.own == "health" and status == 503:
            content = {"application/json": {"schema": _named("Health")}}
            responses["503"] = {"description": "selfheal is not well, and says why", "content": content}
        else:
            titles = [title for known, title in problems.CODES.values() if known == status]
            responses[str(status)] = {
                "description": "; ".join(titles),
                "content": {problems.MEDIA_TYPE: {"schema": _named("Problem")}},
            }
    return responses


def _success(route: Route) -> str:
    return "204" if route.row is not None and route.method == "POST" and not route.row.act else "200"


def _well(route: Route) -> dict[str, Any]:
    if _success(route) == "204":
        return {"description": "It was heard."}
    if route.own == "events":
        return {"description": "The stream.", "content": {"text/event-stream": {"schema": _TEXT}}}
    if route.own == "docs":
        return {"description": "The page.", "content": {"text/html": {"schema": _TEXT}}}
    content: dict[str, Any] = {"application/json": {"schema": _answer(route)}}
    if route.own == "metrics":
        content |= {kind.partition(";")[0]: {"schema": _TEXT} for kind in CONTENT_TYPES.values()}
    return {"description": "The answer.", "content": content}


def _answer(route: Route) -> dict[str, Any]:
    if route.row is not None and route.row.act:
        return _named("Record")
    entry = ANSWERS[route.own or route.request]
    if not route.key:
        return dict(entry)
    paged = {"next": _MAYBE_TEXT} if route.paging is not None else {}
    return _object({route.key: _many(entry), **paged})
