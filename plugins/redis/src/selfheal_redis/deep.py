"""The deep check: the light one's questions and more, on a connection of the driver that is kept.

Owns what is asked beyond PING, ROLE and INFO. The order matters: the driver hangs up when it hears LOADING, so PING is
asked when everything that a loading server still tells has been heard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from selfheal import Cause, CheckResult, Scalar, Verdict
from selfheal.plugins import CheckContext
from selfheal.wire import failing, inconclusive
from selfheal_redis.address import Address
from selfheal_redis.judge import CAUSES, Concern, answered, more, number, refused, replicas_of
from selfheal_redis.line import NAME, Line, Refused, dial
from selfheal_redis.replies import NotRedis, Refusal, Reply, read_info

if TYPE_CHECKING:
    from selfheal_redis.check import RedisCheck

KEPT: Final = "line"
KEPT_CHECKS: Final = 10
"""Checks on one kept connection, as on the light road."""

WRITTEN_FOR: Final = 60
"""Seconds after which a key that we wrote is gone, should we not come to remove it."""


async def looked_into(check: RedisCheck, context: CheckContext) -> CheckResult:
    """Return what a thorough look says. Raises OSError."""
    try:
        address = check.address()
    except (OSError, ValueError, LookupError) as problem:
        return inconclusive(f"the address or password cannot be read: {type(problem).__name__}", Cause.CONFIG)
    mark = (check.renewed, address)
    line = await _kept(context, mark)
    result: CheckResult | None = None
    try:
        if line is not None:
            try:
                # Half the time: a silent peer may be dead, or only this connection lost to a firewall.
                async with asyncio.timeout(context.remaining / 2):
                    if not await _logged_in_again(line, address):
                        raise ConnectionError("it cannot be as new")
                    result = await _looked(check, line)
            except (OSError, NotRedis):  # what died at rest proves nothing
                await line.aclose()
                line = None
        if line is None:
            line = await dial(address, check.tls(), context)
            line.mark = mark
            result = await _looked(check, line)
    except Refused as problem:
        result = refused(problem.refusal, Cause.AUTH)
    except NotRedis as problem:
        result = failing(Cause.ERROR, str(problem))
    finally:
        if line is not None:
            line.checks += 1
            well = result is not None and result.verdict is not Verdict.FAILING and line.checks < KEPT_CHECKS
            if check.keep and well and KEPT not in context.kept:
                context.kept[KEPT] = line
            else:
                await line.aclose()
    assert result is not None
    return result


async def _kept(context: CheckContext, mark: object) -> Line | None:
    """Take the kept connection, if there is one for this address, this login and this renewal."""
    line: Line | None = context.kept.pop(KEPT, None)
    if line is not None and line.mark != mark:
        await line.aclose()
        return None
    return line


async def _logged_in_again(line: Line, address: Address) -> bool:
    """Find out whether we would still be let in: a connection stays logged in when a password is changed, or set.

    Return whether that could be found out. Raises `Refused` where we would not.
    """
    if address.password is not None:
        await line.must("AUTH", *(() if address.user is None else (address.user,)), address.password)
        return True
    if isinstance(await line.ask("RESET"), Refusal):
        return False
    await line.ask("CLIENT", "SETNAME", NAME)
    await line.must("SELECT", address.database)
    return True


async def _looked(check: RedisCheck, line: Line) -> CheckResult:
    info = await line.ask("INFO")
    role = await line.ask("ROLE")
    fields = read_info(info) if isinstance(info, bytes) else {}
    began = time.monotonic()
    ping: Reply
    try:
        ping = await line.ask("PING")
    except Refused as problem:
        if problem.refusal.word != "LOADING":
            raise
        ping = problem.refusal
    took = time.monotonic() - began
    result = answered(ping, role, info, fields, check.limits(), None)
    if isinstance(ping, Refusal):
        return result
    details: dict[str, Scalar] = {"ping_seconds": round(took, 6)}
    if isinstance(slow := await line.ask("SLOWLOG", "LEN"), int):
        details["slow_commands"] = slow
    concerns = await _of_replicas(line, fields)
    concerns += await _of_cluster(line, fields, details)
    concerns += await _of_sentinels(line, fields)
    if check.write_key is not None:
        concerns += await _of_writing(line, check.write_key)
    return more(result, concerns, details)


async def _of_replicas(line: Line, info: Mapping[str, str]) -> list[Concern]:
    """Say so where a primary refuses writes because too few replicas are near (`min-replicas-to-write`)."""
    good = number(info, "min_slaves_good_slaves")
    if good is None:
        return []
    said = await line.ask("CONFIG", "GET", "min-replicas-to-write")
    wanted = said[1] if isinstance(said, list) and len(said) == 2 else None
    if not isinstance(wanted, bytes) or not wanted.isdigit() or good >= int(wanted):
        return []
    text = f"{good} of {len(replicas_of(info))} replicas are near, and min-replicas-to-write is {int(wanted)}"
    return [Concern(cause=Cause.DEGRADED_CLUSTER, text=f"{text}: it refuses writes")]


async def _of_cluster(line: Line, info: Mapping[str, str], details: dict[str, Scalar]) -> list[Concern]:
    """Say so where the cluster that this node belongs to does not serve every slot."""
    if info.get("cluster_enabled") != "1":
        return []
    said = await line.ask("CLUSTER", "INFO")
    fields = read_info(said) if isinstance(said, bytes) else {}
    state = details["cluster_state"] = fields.get("cluster_state", "unknown")[:20]
    details["cluster_nodes"] = number(fields, "cluster_known_nodes")
    missing = 16384 - (number(fields, "cluster_slots_ok") or 0)
    if state == "fail":
        text = f"the cluster does not serve: {missing} of 16384 slots have no node"
        return [Concern(cause=Cause.DEGRADED_CLUSTER, text=text, verdict=Verdict.FAILING)]
    if state == "ok" and missing:
        return [Concern(cause=Cause.DEGRADED_CLUSTER, text=f"{missing} of 16384 slots of the cluster have no node")]
    return []


async def _of_sentinels(line: Line, info: Mapping[str, str]) -> list[Concern]:
    """Say so where a Sentinel could not fail over, for want of others."""
    found: list[Concern] = []
    for place in range(number(info, "sentinel_masters") or 0):
        name = dict(part.partition("=")[::2] for part in info.get(f"master{place}", "").split(",")).get("name", "")
        said = await line.ask("SENTINEL", "CKQUORUM", name)
        if isinstance(said, Refusal) and said.word == "NOQUORUM":
            found.append(Concern(cause=Cause.DEGRADED_CLUSTER, text=f"{name}: {said.text}"))
    return found


async def _of_writing(line: Line, key: str) -> list[Concern]:
    """Write the one key that may be written, unless it is there already, and remove what we wrote."""
    said = await line.ask("SET", key, "selfheal", "NX", "EX", WRITTEN_FOR)
    if not isinstance(said, Refusal):
        if said is not None:
            await line.ask("DEL", key)
        return []
    if said.word == "MOVED":
        return [Concern(cause=Cause.CONFIG, text="write_key belongs to another node of the cluster")]
    cause = CAUSES.get(said.word, Cause.ERROR)
    verdict = Verdict.WARNING if cause in (Cause.AUTH, Cause.CONFIG) else Verdict.FAILING
    return [Concern(cause=cause, text=f"it does not take a write: {said.text}", verdict=verdict)]
