"""Everything that is not answered as asked, as problem details (RFC 9457): one shape, and never a word of internals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from selfheal.errors import RequestRefused

MEDIA_TYPE: Final = "application/problem+json"

CODES: Final[Mapping[str, tuple[int, str]]] = {
    "bad_request": (400, "The request cannot be understood"),
    "bad_parameter": (400, "A parameter is wrong"),
    "unauthenticated": (401, "Say who you are"),
    "forbidden": (403, "You may not do this"),
    "cross_origin": (403, "This came from another site"),
    "unknown_request": (404, "There is no such request"),
    "unknown_service": (404, "There is no such service"),
    "not_found": (404, "There is no such thing"),
    "method": (405, "Not with this method"),
    "not_acceptable": (406, "Not in this form"),
    "late": (408, "The request took too long to arrive"),
    "refused": (409, "Refused"),
    "conflict": (409, "Not now"),
    "too_large": (413, "The body is too large"),
    "too_long": (414, "The address is too long"),
    "media_type": (415, "The body is not JSON"),
    "wrong_host": (421, "This is not the host you named"),
    "too_many": (429, "Too many requests"),
    "headers_too_large": (431, "The headers are too large"),
    "internal": (500, "A fault in selfheal"),
    "not_running": (503, "The engine is not running"),
    "journal": (503, "The journal cannot be used"),
    "unreachable": (503, "The process that heals does not answer"),
    "full": (503, "Too many streams are open"),
    "timeout": (504, "No answer in time"),
}
"""Every code, with its status and title. Those of `RequestRefused` are among them, under their own names."""

NOT_RUNNING: Final = (
    "The engine is not running. Give `supervisor.lifespan` to the outermost application (the lifespan of a mounted "
    "one is never run), or enter `async with supervisor:` around it."
)


@attrs.define(eq=False)
class Refusal(Exception):
    """A request that is not answered as asked. `code` is one of `CODES`, `detail` is for the caller to read."""

    code: str
    detail: str
    headers: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def of(cls, refused: RequestRefused) -> Refusal:
        """Return what the engine, or the table of requests, has refused."""
        if refused.code not in CODES:
            return cls("refused", str(refused))
        return cls(refused.code, str(refused))

    @property
    def status(self) -> int:
        """The status of the response."""
        return CODES[self.code][0]

    def document(self, request_id: str) -> dict[str, Any]:
        """Return the body of the response."""
        return {
            "type": f"urn:selfheal:problem:{self.code}",
            "title": CODES[self.code][1],
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
