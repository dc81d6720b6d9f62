"""`redis.reconnect`: replace our own connections; and, where it was asked for, end clients of the server.

Owns which clients may be ended. Replication links, our own connections, and clients that nobody described never are.
"""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs

from selfheal import Effect, Settled
from selfheal.builtin.options import seconds
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext
from selfheal_redis.check import NAME
from selfheal_redis.judge import NO_PLACE
from selfheal_redis.proving import lacking, unproven
from selfheal_redis.reaching import address_of, check_of, reaching
from selfheal_redis.replies import Refusal

if TYPE_CHECKING:
    from selfheal_redis.line import Line

AGAIN: Final = 0.1
"""Seconds until it is tried again to get in where there is no place."""

ENOUGH: Final = 0.2
"""Share of the time at the end of which it is not tried again: the killing itself takes some."""

BATCH: Final = 200
"""Clients that are ended in one go."""

NAMED: Final = 5
"""Clients whose names and addresses are told."""

_TEXT: Final = attrs.validators.optional(
    attrs.validators.and_(attrs.validators.instance_of(str), attrs.validators.min_len(1))
)


@attrs.frozen(kw_only=True)
class Reconnect:
    """Replace the connections that selfheal itself keeps to this Redis; with `kill_…`, also end clients of the server.

    Without a `kill_…` option it speaks to nobody and always succeeds. With one it is disruptive: whoever is ended has
    to connect anew. A client must meet every option that is given.
    """

    kind: ClassVar[str] = "redis"
    verb: ClassVar[str] = "reconnect"

    #: End clients that have asked nothing for so long.
    kill_idle: float | None = seconds(None, 1.0)
    #: End clients of this name (`CLIENT SETNAME`); `*` and `?` stand for anything.
    kill_name: str | None = attrs.field(default=None, validator=_TEXT)
    #: End clients that are logged in as this user.
    kill_user: str | None = attrs.field(default=None, validator=_TEXT)
    #: The kind of clients that may be ended: `normal` or `pubsub`.
    kill_type: str = attrs.field(default="normal", validator=attrs.validators.in_(("normal", "pubsub")))

    #: How much it disturbs: gentle, or disruptive where it ends clients.
    effect: Effect = attrs.field(init=False)

    @effect.default
    def _effect(self) -> Effect:
        return Effect.DISRUPTIVE if self.kills else Effect.GENTLE

    @property
    def kills(self) -> bool:
        """Whether it ends any clients."""
        return self.kill_idle is not None or self.kill_name is not None or self.kill_user is not None

    async def run(self, context: ActionContext) -> str:
        """Do it, and say who was ended.

        Raises `ActionFailed` when clients were to be ended and the server did not let us.
        """
        check_of(context).renew()
        if not self.kills:
            return "selfheal's own connections are made anew"
        whole = context.remaining
        while True:
            try:
                async with reaching(context) as line:
                    return await self._kill(line)
            except ActionFailed as problem:
                if NO_PLACE not in str(problem):
                    raise
                if context.remaining < ENOUGH * whole:
                    raise ActionFailed(
                        "maxclients is reached, and no place became free for us either: raise it, or set `timeout` "
                        "on the server, so that it ends idle clients by itself"
                    ) from None
            await asyncio.sleep(AGAIN)

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return None: which clients there were before is not known any more."""
        return None

    async def doctor(self, context: ActionContext) -> list[Problem]:
        """Return which commands the user may not do, none of which ends anybody here."""
        if not self.kills:
            return []
        asked = {
            "+client|id": ("CLIENT", "ID"),
            "+client|list": ("CLIENT", "LIST", "TYPE", self.kill_type),
            "+client|kill": ("CLIENT", "KILL", "ID", "0"),
        }
        try:
            async with reaching(context) as line:
                return await lacking(line, self.verb, address_of(check_of(context)).user, asked)
        except ActionFailed as problem:
            return [unproven(self.verb, problem)]

    async def _kill(self, line: Line) -> str:
        mine = await line.must("CLIENT", "ID")
        listed = await line.must("CLIENT", "LIST", "TYPE", self.kill_type)
        if not isinstance(listed, bytes):
            raise ActionFailed("the server does not list its clients")
        chosen = [one for one in clients(listed) if one.get("id") != str(mine) and self._means(one)]
        ended: list[str] = []
        for at in range(0, len(chosen), BATCH):
            some = chosen[at : at + BATCH]
            said = await line.ask_all([("CLIENT", "KILL", "ID", one["id"]) for one in some])
            ended += [_who(one) for one, number in zip(some, said, strict=True) if number == 1]
            if refused := [one for one in said if isinstance(one, Refusal)]:
                raise ActionFailed(f"the server ended {len(ended)} of {len(chosen)} clients: {refused[0].text}")
        if not ended:
            return "no client met what was asked for, and none was ended"
        return f"ended {len(ended)} clients: {', '.join(ended[:NAMED])}" + (", …" if len(ended) > NAMED else "")

    def _means(self, client: dict[str, str]) -> bool:
        """Whether a client is one to be ended."""
        if client.get("name") == NAME or not set(client.get("flags", "?")).isdisjoint("MS"):
            return False
        if self.kill_idle is not None and float(client.get("idle", "0")) < self.kill_idle:
            return False
        if self.kill_name is not None and not fnmatchcase(client.get("name", ""), self.kill_name):
            return False
        return self.kill_user is None or client.get("user") == self.kill_user


def _who(client: dict[str, str]) -> str:
    """Return the name and the address of a client, as people know it."""
    return f"{client.get('name', '')}@{client.get('addr', '?')}".removeprefix("@")


def clients(listed: bytes) -> list[dict[str, Any]]:
    """Return what CLIENT LIST says of each client."""
    lines = listed.decode("utf-8", "replace").splitlines()
    return [dict(part.partition("=")[::2] for part in line.split(" ")) for line in lines if line]
