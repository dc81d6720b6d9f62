"""Secrets: a value that cannot be printed, compared, hashed, pickled or found in a traceback by accident (law 16)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final, NoReturn, final

MASK: Final = "***"


@final
class Secret:
    """A value that shows itself only to `reveal`.

    It holds the value itself, or a function that reads it (from the environment or a file) each time it is asked,
    so that a rotated password is picked up. `source` says where it comes from, and is safe to print.
    """

    __slots__ = ("_read", "source")

    def __init__(self, value: str | Callable[[], str], *, source: str = "literal") -> None:
        self._read: Callable[[], str] = value if callable(value) else lambda: value
        self.source = source

    def reveal(self) -> str:
        """Return the value. Raises what its reader raises, e.g. `OSError` for a missing file."""
        return self._read()

    def __repr__(self) -> str:
        return f"Secret({MASK}, source={self.source!r})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        """Whether both reveal the same value, in constant time."""
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    __hash__ = None  # type: ignore[assignment]  # a hash of a secret is a fact about it

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: that would write it down")


def scrub(text: str, secrets: list[str]) -> str:
    """Return `text` with every one of `secrets` masked; values shorter than four characters are left alone."""
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= 4:
            text = text.replace(value, MASK)
    return text
