"""What both actions share: the address from the service's own check (S38), and a session whose failure is theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING

from selfheal.errors import ActionFailed
from selfheal.plugins import ActionContext
from selfheal_postgres.address import Address
from selfheal_postgres.check import PostgresCheck

if TYPE_CHECKING:
    from selfheal_postgres.driver import Session


def check_of(context: ActionContext) -> PostgresCheck:
    """Return the service's own check. Raises `ActionFailed` where it is none of ours."""
    if not isinstance(context.check, PostgresCheck):
        raise ActionFailed("this service's check is no `postgres`, and it is the check that has the address")
    return context.check


async def address_for(context: ActionContext, *, instead: str | None = None) -> Address:
    """Return the address of the service, or of another server with the same log-in. Raises `ActionFailed`."""
    check = check_of(context)
    words = ""
    try:
        return await context.blocking(lambda: check.address(instead=instead))
    except ValueError as problem:
        words = str(problem)
    except (OSError, KeyError) as problem:
        words = f"a secret cannot be read: {type(problem).__name__}"
    raise ActionFailed(f"the address cannot be used: {words}")  # outside: the cause might show the secret


@asynccontextmanager
async def session_for(
    context: ActionContext, address: Address | None = None, *, within: float = inf
) -> AsyncIterator[Session]:
    """Log in to the service, or at an address, `within` so many seconds.

    Raises `ActionFailed` with what went wrong, then or later.
    """
    import psycopg  # noqa: PLC0415  # the driver costs nothing until an action runs

    from selfheal_postgres.driver import server_error, session  # noqa: PLC0415  # as above

    at = address or await address_for(context)
    words = ""
    try:
        async with session(at, context, name="selfheal action", within=within) as asked:
            yield asked
            return
    except psycopg.Error as problem:
        said = server_error(problem)
        words = str(said) if said is not None else " ".join(str(problem).split())[:300]
    raise ActionFailed(f"{at.place}: {words}")
