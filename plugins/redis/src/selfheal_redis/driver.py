"""When the driver is imported: at the first deep check or action that speaks to a server, and not on the loop."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

from selfheal.plugins import Context

LINE: Final = "selfheal_redis.line"


async def loaded(context: Context) -> None:
    """Import what speaks through the driver in the service's thread; it takes some 50 ms. Raises ImportError."""
    if LINE not in sys.modules:
        await context.blocking(import_module, LINE)
