"""What the actions have in common: whom they act on, and the words in which they fail.

The address is the one of the service's own check, never another (S38).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import attrs

from selfheal.errors import ActionFailed
from selfheal.plugins import ActionContext
from selfheal_redis.address import Address
from selfheal_redis.check import READING_FAULTS, RedisCheck
from selfheal_redis.driver import loaded
from selfheal_redis.replies import NotRedis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selfheal_redis.line import Line


def check_of(context: ActionContext) -> RedisCheck:
    """Return the service's own check. Raises `ActionFailed` when it is no check of Redis."""
    check = context.check
    if not isinstance(check, RedisCheck):
        raise ActionFailed(f"the check of {context.service} is no check of Redis, and so there is no address to act on")
    return check


def address_of(check: RedisCheck) -> Address:
    """Return where the Redis of a check is. Raises `ActionFailed` when a secret cannot be read."""
    try:
        return check.address()
    except READING_FAULTS as problem:
        raise ActionFailed(f"the address or password cannot be read: {type(problem).__name__}") from None


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn what a connection raises into `ActionFailed`, in words that hold no secret."""
    from selfheal_redis.line import Refused  # noqa: PLC0415  # it needs the driver

    words = ""
    try:
        yield
    except Refused as problem:
        words = f"{where} refused: {problem.refusal.text}"
    except NotRedis as problem:
        words = f"{where}: {problem}"
    except TimeoutError:
        words = f"{where} did not answer in time"
    except OSError as problem:
        words = f"{where} cannot be reached: {problem.strerror or problem}"
    if words:
        raise ActionFailed(words)


@asynccontextmanager
async def reaching(context: ActionContext, *, database: int | None = None) -> AsyncIterator[Line]:
    """Connect to the Redis of the service's check, for the length of the block. Raises `ActionFailed`."""
    check = check_of(context)
    address = address_of(check)
    if database is not None:
        address = attrs.evolve(address, database=database)
    await loaded(context)
    from selfheal_redis.line import dialled  # noqa: PLC0415  # it needs the driver

    with told(address.shown):
        async with dialled(address, check.tls(), context) as line:
            yield line
