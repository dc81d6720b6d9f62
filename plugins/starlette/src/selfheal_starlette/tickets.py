"""Tickets: what opens the stream of events once, for an `EventSource`, which can send no header.

A ticket stands in an address, and addresses are written down by proxies: so it is good for half a minute, for one
stream, and for reading only. It is signed and not stored; for who came with a token the key is the token's hash, which
every worker has, so that the worker that opens the stream need not be the one that gave the ticket. Each process lets
a ticket through once.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from selfheal.requests import Scope
from selfheal_starlette.tokens import Token, TokenBook

GOOD_FOR: Final = 30.0
"""Seconds from the giving of a ticket to its use."""

LONGEST: Final = 1000
"""Characters of a ticket."""


class Tickets:
    """Gives tickets and takes them, in one process."""

    def __init__(self) -> None:
        self._own = secrets.token_bytes(32)
        self._used: dict[str, float] = {}

    def give(self, name: str, token: Token | None) -> str:
        """Return a ticket for who is called so, and came with a token or without."""
        said = {
            "name": name,
            "token": token.id if token is not None else "",
            "until": time.time() + GOOD_FOR,
            "once": secrets.token_hex(8),
        }
        body = urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
        return f"{body}.{self._signature(body, token)}"

    def redeem(self, ticket: str, book: TokenBook) -> Mapping[str, Any] | None:
        """Return the fields of the caller that a ticket was given to, this once; None for one that is not good."""
        body, _, signature = ticket.partition(".")
        try:
            if len(ticket) > LONGEST or not ticket.isascii():
                return None
            said = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            name, id_, until, once = said["name"], said["token"], float(said["until"]), said["once"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        token = book.by_id(id_) if isinstance(id_, str) and id_ else None
        if id_ and token is None:
            return None
        if not hmac.compare_digest(signature, self._signature(body, token)):
            return None
        now = time.time()
        self._used = {key: end for key, end in self._used.items() if end > now}
        if not now < until <= now + GOOD_FOR or once in self._used:
            return None
        self._used[once] = until
        return {"name": name, "scope": Scope.READ, "token": id_}

    def _signature(self, body: str, token: Token | None) -> str:
        key = bytes.fromhex(token.hash) if token is not None else self._own
        return hmac.digest(key, b"a ticket for /events: " + body.encode(), sha256).hex()
