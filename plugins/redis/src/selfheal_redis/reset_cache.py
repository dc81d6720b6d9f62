"""`redis.reset_cache`: delete what is a cache, and nothing else.

Owns the proof that a server is a cache: that nearly all of its keys expire by themselves. What was meant to be kept for
ever is not on such a server. Nothing here can reach more than one database, and never `FLUSHALL`.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs

from selfheal import Effect, Settled
from selfheal.builtin.options import whole
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext
from selfheal_redis.judge import keys_of
from selfheal_redis.proving import PATH, lacking, unproven
from selfheal_redis.reaching import address_of, check_of, reaching
from selfheal_redis.replies import read_info

if TYPE_CHECKING:
    from selfheal_redis.line import Line

ENOUGH: Final = 0.05
"""Share of the time at the end of which it stops by itself, to say how far it came."""

_WILD: Final = re.compile(r"[*?\[\\]")


def _narrow(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is no pattern; write it as text")
    if not _WILD.split(value)[0]:
        raise ValueError(
            f"{attribute.name}: {value!r:.80} begins with a wildcard, and would take in what nobody thought of; "
            "begin with what the keys of the cache begin with, such as 'cache:*'"
        )


def _share(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{attribute.name}: {value!r:.40} is no share; give a number from 0 to 1")


@attrs.define
class _Gone:
    """How many keys went, for whatever becomes of the rest."""

    keys: int = 0


@attrs.frozen(kw_only=True)
class ResetCache:
    """Delete the keys that match `pattern`, or, without one, everything in `database`.

    It refuses where more than `persistent_share` of all keys of the server never expire, on a replica, and on a node of
    a cluster, of which it would reach a part only. Without `pattern` and `database` it refuses too.
    """

    kind: ClassVar[str] = "redis"
    verb: ClassVar[str] = "reset_cache"
    effect: ClassVar[Effect] = Effect.DESTRUCTIVE

    #: The keys to delete, as SCAN matches them (`cache:*`); must begin with plain text. In the URL's database, or
    #: in `database`.
    pattern: str | None = attrs.field(default=None, validator=_narrow)
    #: The number of the database to empty, or to look for `pattern` in.
    database: int | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(
            attrs.validators.and_(attrs.validators.ge(0), attrs.validators.lt(100_000))
        ),
    )
    #: The largest share of keys without an end that a server may hold and still count as a cache.
    persistent_share: float = attrs.field(default=0.1, validator=_share, metadata={"unit": "share"})
    #: How many keys are looked at in one go: more is faster, less leaves room for other clients.
    batch: int = whole(500, 1, 100_000)

    async def run(self, context: ActionContext) -> str:
        """Do it; return when everything is deleted, and say how much.

        Raises `ActionFailed` with what stands in the way, or how far it came.
        """
        if self.pattern is None and self.database is None:
            raise ActionFailed("it is not said what may be deleted: give the step a `pattern` or a `database`")
        gone = _Gone()
        try:
            async with reaching(context, database=self.database) as line:
                if self.pattern is None:
                    return await self._flush(line)
                await self._unlink(line, self.pattern, context, gone)
        except ActionFailed as problem:
            if not gone.keys:
                raise
            raise ActionFailed(f"{problem}; {gone.keys} keys were removed before that") from None
        where = "" if self.database is None else f" in database {self.database}"
        return f"removed {gone.keys} keys that match {self.pattern!r}{where}"

    async def probe(self, context: ActionContext) -> Settled | None:
        """Return None: an empty database may have been filled again, and a full one emptied before."""
        return None

    async def doctor(self, context: ActionContext) -> list[Problem]:
        """Return what it would be refused for, now: rights, and what the server is. Nothing is deleted.

        A bare `reset_cache`, as the specification's ladders have it, asks a person and deletes nothing: nothing lacks.
        """
        if self.pattern is None and self.database is None:
            return []
        asked = {"+info": ("INFO", "server"), "+dbsize": ("DBSIZE",), "+flushdb": ("FLUSHDB", "selfheal-doctor")}
        if self.pattern is not None:
            nobody = f"{_WILD.split(self.pattern)[0]}selfheal-doctor-{secrets.token_hex(16)}"
            key = f"+unlink ~{self.pattern}"
            asked = {"+info": asked["+info"], "+scan": ("SCAN", "0", "COUNT", "1"), key: ("UNLINK", nobody)}
        try:
            async with reaching(context, database=self.database) as line:
                if problems := await lacking(line, self.verb, address_of(check_of(context)).user, asked):
                    return problems
                try:
                    await self._prove(line)
                except ActionFailed as problem:
                    hint = "leave the step away, or name the server that is the cache"
                    return [Problem(path=PATH, message=f"{self.verb}: {problem}", hint=hint)]
        except ActionFailed as problem:
            return [unproven(self.verb, problem)]
        return []

    async def _prove(self, line: Line) -> None:
        """Raise `ActionFailed` unless this server is a cache that may be emptied."""
        said = await line.must("INFO")
        info = read_info(said) if isinstance(said, bytes) else {}
        if info.get("redis_mode") == "cluster":
            raise ActionFailed("this is a node of a cluster, of which it would reach a part only; nothing was deleted")
        if info.get("role") != "master":
            raise ActionFailed("this is a replica: its primary decides what is deleted; nothing was deleted")
        keys, expiring = keys_of(info)
        if keys - expiring > self.persistent_share * keys:
            raise ActionFailed(
                f"{keys - expiring} of {keys} keys of this server never expire, so it is no cache "
                f"(persistent_share = {self.persistent_share:g}); nothing was deleted"
            )

    async def _flush(self, line: Line) -> str:
        keys = await line.must("DBSIZE")
        if keys == 0:
            return f"database {self.database} was empty already"
        await self._prove(line)
        await line.must("FLUSHDB", "ASYNC")
        return f"emptied database {self.database}: {keys!r} keys were removed"

    async def _unlink(self, line: Line, pattern: str, context: ActionContext, gone: _Gone) -> None:
        """Delete what matches. The proof is asked for once there is something: a cache just emptied looks like none."""
        cursor: bytes | str = "0"
        proven = False
        whole = context.remaining
        while True:
            if context.remaining < ENOUGH * whole:
                raise ActionFailed(
                    "the time of this step was over before everything was looked at; another run goes on"
                )
            said = await line.must("SCAN", cursor, "MATCH", pattern, "COUNT", str(self.batch))
            match said:
                case [bytes() as cursor, list() as found]:
                    keys = [key for key in found if isinstance(key, bytes)]
                case _:
                    raise ActionFailed("the server does not answer SCAN as it should")
            if keys and not proven:
                await self._prove(line)
                proven = True
            if keys:
                said = await line.must("UNLINK", *keys)
                gone.keys += said if isinstance(said, int) else 0
            if cursor == b"0":
                return
