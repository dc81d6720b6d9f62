"""`redis.failover`: make a replica the primary, once it is certain that there is no other one.

Owns what counts as certain. Two primaries lose what one of them is told, so that without a proof nothing is done: that
we cannot reach the old primary proves nothing, for it may serve others. A Sentinel brings its own proof: it asks the
others, and makes the old primary a replica when it comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs

from selfheal import Cause, Effect, Run, Settled
from selfheal.builtin.options import seconds
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, Starting
from selfheal.secret import Secret
from selfheal_redis.address import Address, read_node
from selfheal_redis.driver import loaded
from selfheal_redis.judge import CAUSES, number
from selfheal_redis.proving import PATH, lacking, unproven
from selfheal_redis.reaching import address_of, check_of, told
from selfheal_redis.replies import NotRedis, Refusal, Reply, read_info

if TYPE_CHECKING:
    from selfheal_redis.line import Line

LOOK: Final = 2.0
"""Seconds that a look at a server may take whose silence is no surprise."""

AGAIN: Final = 0.1
"""Seconds between two looks at something that is under way."""

ENDED: Final = frozenset({Run.EXITED, Run.ABSENT})
"""How a workload stands that certainly serves nobody. One that somebody stopped may only be paused, and write on."""

DOWN: Final = ENDED | {Run.STOPPED}
"""The same once it was stopped by us: then it is known how."""


def _listed(value: object) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else value


def _node(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name}: {type(value).__name__} is no address; write host:port")
    try:
        read_node(value)
    except ValueError as problem:
        raise ValueError(f"{attribute.name}: {problem}") from None


_SECRET: Final = attrs.validators.optional(attrs.validators.instance_of(Secret))


@attrs.frozen(kw_only=True)
class Failover:
    """Promote the named `replica`, or have the named `sentinels` fail over.

    A replica is promoted (`REPLICAOF NO ONE`) only if the workload of the service is certainly down, nothing answers at
    the address of its check, and the replica itself does not hear its primary any more.
    """

    kind: ClassVar[str] = "redis"
    verb: ClassVar[str] = "failover"
    effect: ClassVar[Effect] = Effect.DISRUPTIVE

    #: `host:port` of the replica to promote.
    replica: str | None = attrs.field(default=None, validator=attrs.validators.optional(_node))
    #: `host:port` of the Sentinels, instead of `replica`; the first that answers is asked.
    sentinels: tuple[str, ...] = attrs.field(
        default=(), converter=_listed, validator=attrs.validators.deep_iterable(_node)
    )
    #: What the Sentinels call this primary.
    master: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.matches_re(r"[A-Za-z0-9._-]+"))
    )
    #: How the old primary is known to be down: `workload` (its workload says so) or `stop` (we stop it).
    fence: str = attrs.field(default="workload", validator=attrs.validators.in_(("workload", "stop")))
    #: Seconds that the replica may have been without its primary: what was written since is lost.
    stale_limit: float = seconds(3600.0, 1.0)
    #: The password of the replica or its primary, if it is not the one of the check.
    password: Secret | None = attrs.field(default=None, validator=_SECRET)
    #: The password of the Sentinels, if they have one.
    sentinel_password: Secret | None = attrs.field(default=None, validator=_SECRET)

    def __attrs_post_init__(self) -> None:
        if bool(self.replica) is bool(self.sentinels):
            raise ValueError("replica: name the `replica` to promote, or the `sentinels` to ask, and not both")
        if self.sentinels and not self.master:
            raise ValueError("master: say what the Sentinels call this primary (`sentinel monitor NAME …`)")

    async def run(self, context: ActionContext) -> str:
        """Do it, and say who is the primary now; a replica that is the primary already is left alone.

        Raises `ActionFailed` with what is missing.
        """
        await loaded(context)
        doing = _Election(self, context) if self.replica is None else _Promotion(self, context)
        return await doing.run()

    async def probe(self, context: ActionContext) -> Settled | None:
        """Ask the replica what it is. What a Sentinel did on our word, nobody can tell from what it did by itself."""
        if self.replica is None:
            return None
        await loaded(context)
        try:
            role = await _Promotion(self, context).role()
        except ActionFailed:
            return None
        if role == "master":
            return Settled.DONE
        # With `stop` the old primary may have been stopped all the same, and so something has happened.
        return Settled.NOT_STARTED if role == "slave" and self.fence == "workload" else None

    async def doctor(self, context: ActionContext) -> list[Problem]:
        """Return what is missing for a failover, without doing it. Of Sentinels: whether one knows this primary."""
        await loaded(context)
        doing = _Election(self, context) if self.replica is None else _Promotion(self, context)
        try:
            return await doing.problems()
        except ActionFailed as problem:
            return [unproven(self.verb, problem)]

    def node(self, context: ActionContext, where: str, password: Secret | None) -> Address:
        """Return the address of another server of this kind: same TLS, same user."""
        own = address_of(check_of(context))
        host, port = read_node(where)
        if password is None:
            return attrs.evolve(own, host=host, port=port, path=None, database=0)
        try:
            revealed = password.reveal()
        except (OSError, LookupError, ValueError) as problem:
            raise ActionFailed(f"a password cannot be read: {type(problem).__name__}") from None
        return attrs.evolve(own, host=host, port=port, path=None, database=0, password=revealed)


# -- a named replica -------------------------------------------------------------------------------------------------


class _Promotion:
    """One promotion of a named replica."""

    def __init__(self, action: Failover, context: ActionContext) -> None:
        self.action = action
        self.context = context
        self.check = check_of(context)
        self.address = action.node(context, str(action.replica), action.password)
        self.stopped = False

    async def role(self) -> str:
        """Ask the replica what it is. Raises `ActionFailed`."""
        from selfheal_redis.line import dialled  # noqa: PLC0415  # it needs the driver

        with told(f"the replica {self.address.shown}"):
            async with dialled(self.address, self.check.tls(), self.context) as line:
                await line.must("ROLE")
                # What lay unread at a replica that was frozen is done by its next turn, and so before a second answer.
                return role_of(await line.must("ROLE"))

    async def problems(self) -> list[Problem]:
        """Return what is missing. Raises `ActionFailed` when the replica cannot be asked."""
        from selfheal_redis.line import dialled  # noqa: PLC0415  # it needs the driver

        verb, found = self.action.verb, []
        asked = {"+role": ("ROLE",), "+info": ("INFO", "replication"), "+replicaof": ("REPLICAOF", "doctor", "nowhere")}
        with told(f"the replica {self.address.shown}"):
            async with dialled(self.address, self.check.tls(), self.context) as line:
                found += await lacking(line, verb, self.address.user, asked)
                if not found and (role := role_of(await line.must("ROLE"))) != "slave":
                    message = f"{verb}: {self.address.shown} is no replica but a {role}"
                    found.append(Problem(path=PATH, message=message, hint="name one in `replica`"))
        if missing := self._no_fence():
            found.append(Problem(path=PATH, message=f"{verb}: the old primary cannot be fenced", hint=missing))
        return found

    def _no_fence(self) -> str:
        """Return what is missing for a fence; empty where nothing is."""
        workload = self.context.workload
        if workload is None:
            return (
                "the service has no workload that could say whether the old primary is down; give it one, "
                "let Sentinel decide (`sentinels`), or register a callback that fences it and fails over"
            )
        if self.action.fence == "stop" and not isinstance(workload, Starting):
            return f'the workload {workload.kind} cannot be stopped (fence = "stop")'
        return ""

    async def run(self) -> str:
        """Look at the replica, fence the old primary, look again, promote. Raises `ActionFailed` with what it left."""
        try:
            return await self._run()
        except ActionFailed as problem:
            if not self.stopped:
                raise
            raise ActionFailed(
                f"{problem}; the old primary was stopped for this and stays so: "
                f"see to {self.address.shown}, or start the old one again"
            ) from None

    async def _run(self) -> str:
        from selfheal_redis.line import dialled  # noqa: PLC0415  # it needs the driver

        with told(f"the replica {self.address.shown}"):
            async with dialled(self.address, self.check.tls(), self.context) as line:
                role = role_of(await line.must("ROLE"))
                if role == "master":
                    return f"{self.address.shown} was the primary already"
                if role != "slave":
                    raise ActionFailed(f"{self.address.shown} is no replica but a {role or 'server without a role'}")
                await self._worth(line)
                await self._fence()
                await self._heard_nothing(line)
                await self._worth(line)
                await line.must("REPLICAOF", "NO", "ONE")
                if role_of(await line.must("ROLE")) != "master":
                    raise ActionFailed(f"{self.address.shown} took the command and is no primary")
        return f"{self.address.shown} is the primary now" + ("; the old one was stopped first" if self.stopped else "")

    async def _info(self, line: Line) -> dict[str, str]:
        said = await line.must("INFO", "replication")
        return read_info(said) if isinstance(said, bytes) else {}

    async def _worth(self, line: Line) -> None:
        """Raise `ActionFailed` unless the replica has a whole copy that is young enough."""
        info = await self._info(line)
        if info.get("master_sync_in_progress") == "1":
            raise ActionFailed(f"the replica {self.address.shown} has no whole copy yet: it is copying its primary")
        if info.get("master_link_status") == "up":
            return
        since = number(info, "master_link_down_since_seconds")
        if since is None or since < 0:
            raise ActionFailed(f"how old the copy of {self.address.shown} is cannot be told: it never had a link")
        if since > self.action.stale_limit:
            raise ActionFailed(
                f"the replica {self.address.shown} heard nothing for {since} s "
                f"(stale_limit = {self.action.stale_limit:g}): what was written since would be lost"
            )

    async def _fence(self) -> None:
        """Make certain that the old primary is down. Raises `ActionFailed` with what is missing."""
        if missing := self._no_fence():
            raise ActionFailed(f"not fenced: {missing}")
        workload = self.context.workload
        assert workload is not None
        expected = self.context.expected
        with asked("inspected"):
            seen = await workload.inspect(self.context)
        if expected is not None and expected.run is not Run.UNKNOWN and seen.id != expected.id:
            raise ActionFailed(
                f"not fenced: {seen.id} is the old primary by now, not {expected.id} whose failure was seen"
            )
        if self.action.fence == "stop":
            assert isinstance(workload, Starting)
            with asked("stopped"):
                await workload.stop(self.context)
            self.stopped = True
        with asked("inspected"):
            instance = await workload.inspect(self.context)
        if instance.run not in (DOWN if self.action.fence == "stop" else ENDED):
            raise ActionFailed(
                f"not fenced: the workload of the old primary is {instance.run.value}; "
                'it must be down, or be stopped by us (fence = "stop")'
            )
        if said := await self._answers():
            raise ActionFailed(f"not fenced: its workload is {instance.run.value}, and yet {said}")

    async def _answers(self) -> str:
        """Return what still answers at the address of the check, or "" when nothing does."""
        from selfheal_redis.line import Refused, dialled  # noqa: PLC0415  # it needs the driver

        own = address_of(self.check)
        try:
            async with dialled(own, self.check.tls(), self.context, within=LOOK) as line:
                role = role_of(await line.ask("ROLE"))
        except OSError:
            return ""
        except (Refused, NotRedis) as problem:
            return f"{own.shown} answers: {problem}"
        return f"{own.shown} answers as {role or 'something'}"

    async def _heard_nothing(self, line: Line) -> None:
        """Wait until the replica has lost its primary. Raises `ActionFailed`: the other side may see more than we."""
        whole = self.context.remaining
        while (await self._info(line)).get("master_link_status") == "up":
            if self.context.remaining < whole / 2:
                raise ActionFailed(f"not fenced: the replica {self.address.shown} still hears its primary")
            await asyncio.sleep(AGAIN)


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Say that it was the workload, and not the replica, that could not be reached."""
    words = ""
    try:
        yield
    except OSError as problem:
        words = f"not fenced: the workload of the old primary could not be {what}: {problem.strerror or problem}"
    if words:
        raise ActionFailed(words)


def role_of(said: Reply) -> str:
    """Return the first word of an answer to ROLE."""
    match said:
        case [bytes() as role, *_]:
            return role.decode("ascii", "replace")
    return ""


# -- Sentinel --------------------------------------------------------------------------------------------------------


class _Election:
    """One failover by Sentinel."""

    def __init__(self, action: Failover, context: ActionContext) -> None:
        self.action = action
        self.context = context
        self.check = check_of(context)
        self.name = str(action.master)

    async def problems(self) -> list[Problem]:
        """Return which Sentinels cannot be asked, or do not know this primary."""
        from selfheal_redis.line import Refused, dialled  # noqa: PLC0415  # it needs the driver

        found = []
        for where in self.action.sentinels:
            words = ""
            try:
                address = self._sentinel(where)
                within = self.context.remaining / len(self.action.sentinels)
                async with dialled(address, self.check.tls(), self.context, within=within) as line:
                    await self._primary(line)
            except (OSError, Refused, NotRedis, ActionFailed) as problem:
                words = str(problem)
            if words:
                message = f"{self.action.verb}: the Sentinel {where}: {words}"
                found.append(Problem(path=PATH, message=message, hint="correct `sentinels`, `master` or its password"))
        return found

    def _sentinel(self, where: str) -> Address:
        address = self.action.node(self.context, where, self.action.sentinel_password)
        if self.action.sentinel_password is None:
            return attrs.evolve(address, user=None, password=None)
        return address

    async def run(self) -> str:
        """Ask the first Sentinel that answers, and say what became of it; a primary that is well is left alone."""
        from selfheal_redis.line import Refused, dialled  # noqa: PLC0415  # it needs the driver

        troubles: list[str] = []
        for where in self.action.sentinels:
            address = self._sentinel(where)
            share = self.context.remaining / (len(self.action.sentinels) - len(troubles) + 1)
            try:
                async with dialled(address, self.check.tls(), self.context, within=share) as line:
                    return await self._ask(line)
            except (OSError, Refused, NotRedis) as problem:
                troubles.append(f"{where}: {problem}")
        raise ActionFailed(f"no Sentinel could be asked: {'; '.join(troubles)}")

    async def _ask(self, line: Line) -> str:
        before = first = await self._primary(line)
        while (sick := await self._sick(before)) is not None and (now := await self._primary(line)) != before:
            before = now  # Sentinel has done it by itself meanwhile
        if sick is None and before == first:
            return f"the primary {before[0]}:{before[1]} is well, and was left alone"
        if sick is None:
            return f"Sentinel had failed over already, to {before[0]}:{before[1]}"
        if not sick and not await self._down(line):
            raise ActionFailed(
                f"not fenced: we hear nothing of the primary {before[0]}:{before[1]}, and Sentinel does: the fault may "
                "be ours"
            )
        quorum = await line.ask("SENTINEL", "CKQUORUM", self.name)
        if isinstance(quorum, Refusal):
            raise ActionFailed(f"the Sentinels cannot fail over: {quorum.text}")
        said = await line.ask("SENTINEL", "FAILOVER", self.name)
        if isinstance(said, Refusal) and said.word != "INPROG":
            raise ActionFailed(f"Sentinel did not fail over: {said.text}")
        whole = self.context.remaining
        while (after := await self._primary(line)) == before or await self._sick(after) is not None:
            if self.context.remaining < whole / 10:
                raise ActionFailed(f"Sentinel began to fail over from {before[0]}:{before[1]} and has not finished")
            await asyncio.sleep(AGAIN)
        return f"Sentinel failed over from {before[0]}:{before[1]} to {after[0]}:{after[1]}"

    async def _primary(self, line: Line) -> tuple[str, int]:
        """Return where Sentinel says the primary is. Raises `ActionFailed` when it does not know this one."""
        match await line.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name):
            case [bytes() as host, bytes() as port] if port.isdigit():
                return host.decode("utf-8", "replace"), int(port)
            case Refusal() as refusal:
                raise ActionFailed(f"Sentinel refused: {refusal.text}")
        raise ActionFailed(f"Sentinel knows no {self.name}")

    async def _down(self, line: Line) -> bool:
        """Whether Sentinel itself holds the primary to be down, or is failing over already."""
        match await line.ask("SENTINEL", "MASTER", self.name):
            case list() as said if b"flags" in said[:-1]:
                flags = said[said.index(b"flags") + 1]
                return isinstance(flags, bytes) and not {b"s_down", b"o_down", b"failover_in_progress"}.isdisjoint(
                    flags.split(b",")
                )
        return False

    async def _sick(self, where: tuple[str, int]) -> str | None:
        """Return what is wrong with a primary in its own words, "" when it says nothing, None when it is well.

        Raises `ActionFailed` when it does not let us in: that is our fault, and not its own.
        """
        from selfheal_redis.line import Refused, dialled  # noqa: PLC0415  # it needs the driver

        host, port = where
        address = self.action.node(self.context, f"[{host}]:{port}", self.action.password)
        try:
            async with dialled(address, self.check.tls(), self.context, within=LOOK) as line:
                role, ping = role_of(await line.ask("ROLE")), await line.ask("PING")
        except Refused as problem:
            ping, role = problem.refusal, "master"
        except (OSError, NotRedis):
            return ""
        if isinstance(ping, Refusal) and CAUSES.get(ping.word) in (Cause.AUTH, Cause.CONFIG):
            raise ActionFailed(f"the primary {host}:{port} does not let us in: {ping.text}")
        if role != "master":
            return ""
        return None if ping == b"PONG" else str(ping)
