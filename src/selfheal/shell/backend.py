"""What a callback of the host's loop runs on: said to anyio, which cannot tell by itself.

sniffio knows asyncio by the task that runs, and in a callback there is none. A host that began with anyio has left
word in the context; one that began with `asyncio.run` (uvicorn, say) has not, and whatever asks there finds no loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Backend:
    """The event loop this is made on. Raises `RuntimeError` where none runs."""

    def __init__(self) -> None:
        self._word: Any = None
        try:
            import sniffio  # noqa: PLC0415  # there with trio only; without it anyio asks asyncio itself
        except ImportError:
            return
        if sniffio.current_async_library() == "asyncio":
            self._word = sniffio.current_async_library_cvar

    def do(self, work: Callable[[], T]) -> T:
        """Do `work`, in a task or in a callback, and return what it returns; anyio knows where it is meanwhile."""
        if self._word is None or self._word.get() is not None:
            return work()
        token = self._word.set("asyncio")
        try:
            return work()
        finally:
            self._word.reset(token)
