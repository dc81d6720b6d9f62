"""The dashboard: a page, and how its files are served.

The page stands at `dashboard/` below the API and finds it by relative addresses, so it works under any prefix. It holds
no data, and so it is given to everybody; what it shows it asks of the API, as whoever looks at it.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

import attrs
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

AT: Final = "dashboard"
"""The segment of the path below the API at which the page stands."""

TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
"""The types of the files that are served, by the end of their names; a file of another kind is none of the page."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""What the page may do: load its own files, and ask the API it was loaded from. No text ever becomes markup."""

HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-cache",  # kept, and asked for anew each time: 304 while it is the same release
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of every file of the page."""


@attrs.frozen(kw_only=True)
class Asset:
    """One file of the page."""

    body: bytes
    packed: bytes
    """The same for who takes gzip. It holds no data, so how small it gets tells nobody anything."""
    media_type: str
    etag: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return the files of the page by name; the page itself is the empty name. They are read once."""
    found: dict[str, Asset] = {}
    folder = files(__name__)
    for prefix, inside in (("", folder), ("vendor/", folder / "vendor")):
        for entry in inside.iterdir():
            end = entry.name[entry.name.rfind(".") :]
            if entry.is_file() and end in TYPES:
                body = entry.read_bytes()
                name = prefix + entry.name
                etag = f'"{sha256(body).hexdigest()[:32]}"'
                asset = Asset(body=body, packed=gzip.compress(body, mtime=0), media_type=TYPES[end], etag=etag)
                found["" if name == "index.html" else name] = asset
    return found


def respond(request: Request, path: str) -> Response | None:
    """Return the response to a request for `path`, which is what follows the mount of the API; None if not the page's.

    `/dashboard` is led on to `/dashboard/`, and so is the mount itself: relative addresses need the slash.
    """
    if path in ("", "/", f"/{AT}"):
        if request.method not in ("GET", "HEAD"):
            return None
        # The path of the request as the browser knows it may differ from ours behind a proxy: so it is relative.
        last = str(request.scope["path"]).rpartition("/")[2]
        to = f"{AT}/" if path != "" and last in ("", AT) else f"{last}/{AT}/"
        return RedirectResponse(to, status_code=307, headers={"cache-control": "no-cache"})
    if not path.startswith(f"/{AT}/"):
        return None
    if request.method not in ("GET", "HEAD"):
        return Response(status_code=405, headers={**HEADERS, "allow": "GET, HEAD"})
    asset = assets().get(path.removeprefix(f"/{AT}/"))
    if asset is None:
        return Response("There is no such file.\n", status_code=404, media_type="text/plain", headers=dict(HEADERS))
    packed = _takes_gzip(request.headers.get("accept-encoding", ""))
    etag = f'{asset.etag[:-1]}-gzip"' if packed else asset.etag
    headers = {**HEADERS, "etag": etag, "vary": "Accept-Encoding"}
    asked = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in asked or "*" in asked:
        return Response(status_code=304, headers=headers)
    if packed:
        return Response(asset.packed, media_type=asset.media_type, headers={**headers, "content-encoding": "gzip"})
    return Response(asset.body, media_type=asset.media_type, headers=headers)


def _takes_gzip(accepted: str) -> bool:
    for one in accepted.split(","):
        coding, _, weight = one.partition(";")
        if coding.strip().lower() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


__all__ = ["AT", "HEADERS", "POLICY", "Asset", "assets", "respond"]
