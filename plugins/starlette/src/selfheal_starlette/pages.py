"""The page `/docs`: every route in words, made from the table, without a script."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from typing import Final

from selfheal.requests import Parameter
from selfheal_starlette.routes import ROUTES, Route

STYLE: Final = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;"
    "padding:0 1rem}code{font-family:ui-monospace,monospace}h2{font-size:1rem;margin:1.6rem 0 .2rem}"
    "p,ul{margin:.2rem 0}"
)

POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""What the page may load: its own style, known by its hash, and nothing else."""


def docs() -> str:
    """Return the page."""
    routes = "\n".join(_route(route) for route in ROUTES)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>selfheal over HTTP</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>selfheal over HTTP</h1>\n"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a>. Send a token as '
        f"<code>Authorization: Bearer TOKEN</code>.</p>\n{routes}\n</body>\n</html>\n"
    )


def _route(route: Route) -> str:
    scope = route.scope.value if route.scope is not None else "nobody's: everybody is answered"
    parts = [
        f"<h2><code>{route.method} {escape(route.path)}</code></h2>",
        f"<p>{escape(route.about)} Scope: {escape(scope)}.</p>",
    ]
    lines = [_line(one, "in the query") for one in route.in_query] + [
        _line(one, "in the body") for one in route.in_body
    ]
    return "\n".join([*parts, *(["<ul>", *lines, "</ul>"] if lines else [])])


def _line(parameter: Parameter, where: str) -> str:
    words = f"{where}: {parameter.about}"
    if parameter.choices:
        words += f" ({', '.join(parameter.choices)})"
    return f"<li><code>{escape(parameter.name)}</code> {escape(words)}</li>"


def table() -> str:
    """Return the routes as a table of Markdown, for the reference."""
    lines = ["| Route | What it does | Request | Parameters | Scope |", "| --- | --- | --- | --- | --- |"]
    for route in ROUTES:
        given = [f"`{one.name}`" for one in (*route.in_query, *route.in_body)]
        request = f"[`{route.request}`](requests.md)" if route.request else ""
        scope = f"`{route.scope.value}`" if route.scope is not None else "none"
        lines.append(f"| `{route.method} {route.path}` | {route.about} | {request} | {', '.join(given)} | {scope} |")
    return "\n".join(lines)
