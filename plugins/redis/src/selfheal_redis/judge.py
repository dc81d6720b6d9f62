"""What the answers of a Redis mean: replies in, `CheckResult` out, without a socket.

Owns the table of error words and every threshold. Three rules of it:

- What a restart would not mend is WARNING: a replica where a primary was expected, a disk that is full, a memory that
  is full. Such a server still serves, and a restart of one that cannot save loses what it holds.
- What answers nobody is FAILING: loading, a script that does not end, no place for another client, a replica that may
  not serve what is old.
- A user who may not ask is told the right to add. A check that cannot look is never a passing one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from selfheal import Cause, CheckResult, Scalar, Verdict
from selfheal.wire import failing
from selfheal_redis.replies import Refusal, Reply

CAUSES: Final[Mapping[str, Cause]] = {
    "NOAUTH": Cause.AUTH,
    "WRONGPASS": Cause.AUTH,
    "NOPERM": Cause.AUTH,
    "DENIED": Cause.CONFIG,  # protected mode
    "LOADING": Cause.STARTING,
    "BUSY": Cause.OVERLOADED,  # a script runs too long
    "UNKILLABLE": Cause.OVERLOADED,
    "TRYAGAIN": Cause.DEGRADED_CLUSTER,
    "MASTERDOWN": Cause.DEGRADED_CLUSTER,
    "CLUSTERDOWN": Cause.DEGRADED_CLUSTER,
    "NOREPLICAS": Cause.DEGRADED_CLUSTER,
    "READONLY": Cause.READ_ONLY,
    "MISCONF": Cause.FULL,  # it cannot save, and so refuses writes: in practice the disk
    "OOM": Cause.OVERLOADED,
}
"""What the first word of an error says."""

NO_PLACE: Final = "max number of clients"
"""What stands in the error (a plain ERR) of a server that has `maxclients` clients."""

RIGHTS: Final = "+ping +role +info +client|setname"
"""What the user of a check must be allowed; nothing of it shows or changes a key."""

EVICTS_NOTHING: Final = "noeviction"


@attrs.frozen(kw_only=True)
class Limits:
    """From where on a server that answers is warned of. See the options of the check for each."""

    expect: str
    memory: float
    clients: float
    lag: float
    replicas: int


@attrs.frozen(kw_only=True)
class Seen:
    """What an earlier check on the same connection counted; only growth since then says something about now."""

    run: str
    refused: int

    @classmethod
    def of(cls, info: Mapping[str, str]) -> Seen:
        """Return what is worth remembering of an INFO."""
        return cls(run=info.get("run_id", ""), refused=number(info, "rejected_connections") or 0)


@attrs.frozen(kw_only=True)
class Concern:
    """One thing that is not as it should be."""

    cause: Cause
    text: str
    verdict: Verdict = Verdict.WARNING


def number(info: Mapping[str, str], name: str) -> int | None:
    """Return a field of INFO that is a whole number, or None where it is missing or none."""
    try:
        return int(info[name])
    except (KeyError, ValueError):
        return None


# -- errors ----------------------------------------------------------------------------------------------------------


def refused(refusal: Refusal, otherwise: Cause = Cause.ERROR) -> CheckResult:
    """Return what an error in answer to AUTH or PING says; `otherwise` is the cause of a plain ERR."""
    if NO_PLACE in refusal.text:
        return failing(Cause.OVERLOADED, "no place for another client: maxclients is reached")
    cause = CAUSES.get(refusal.word, otherwise)
    hints = {
        "NOAUTH": "; the check has no password",
        "NOPERM": f"; the user of the check needs {RIGHTS}",
        "DENIED": "; protected mode: bind it, or give it a password",
    }
    return failing(cause, refusal.text + hints.get(refusal.word, ""))


def hangs_up(refusal: Refusal) -> bool:
    """Whether a server that says this hangs up, or would say it to everything else too."""
    return NO_PLACE in refusal.text or refusal.word in ("DENIED", "NOAUTH")


def unwell(refusal: Refusal, info: Mapping[str, str]) -> CheckResult:
    """Return what an error in answer to PING says, with what INFO, which most such servers still answer, adds."""
    details = described(info)
    instance = info.get("run_id") or None
    match refusal.word:
        case "LOADING":
            return CheckResult(
                Verdict.FAILING,
                cause=Cause.STARTING,
                summary=_loading(refusal, info),
                details=details,
                instance=instance,
            )
        case "BUSY":
            cure = "FUNCTION KILL" if "FUNCTION KILL" in refusal.text else "SCRIPT KILL"
            text = f"a script does not end; {cure} ends it, a restart is not needed"
            return CheckResult(Verdict.FAILING, cause=Cause.OVERLOADED, summary=text, details={"cure": cure})
        case "MASTERDOWN" if number(info, "master_sync_in_progress") == 1:
            text = "a replica that is copying its primary's data, and serves nothing until it has it"
            return CheckResult(Verdict.FAILING, cause=Cause.STARTING, summary=text, details=details, instance=instance)
        case "MASTERDOWN":
            text = (
                f"a replica without its primary {_primary(info)}; it serves nothing old (replica-serve-stale-data no)"
            )
            return CheckResult(
                Verdict.FAILING, cause=Cause.DEGRADED_CLUSTER, summary=text, details=details, instance=instance
            )
        case "MISCONF":
            text = f"{_unsaved(info)}; it refuses writes. A restart would lose what is not saved"
            return CheckResult(Verdict.WARNING, cause=Cause.FULL, summary=text, details=details, instance=instance)
    found = refused(refusal)
    return attrs.evolve(found, details=details, instance=instance)


def _loading(refusal: Refusal, info: Mapping[str, str]) -> str:
    share, left = info.get("loading_loaded_perc"), number(info, "loading_eta_seconds")
    if share is None:
        return refusal.text
    text = f"loading its data: {share} % is read"
    return text if left is None else f"{text}, about {left} s to go"


def _unsaved(info: Mapping[str, str]) -> str:
    if info.get("aof_last_write_status") == "err":
        what = "the append-only file cannot be written"
    else:
        what = "the last background save failed"
    waiting = number(info, "rdb_changes_since_last_save")
    kept = "" if not waiting else f" ({waiting} changes are in memory only)"
    return f"{what}{kept}: is the disk full, or its folder not writable?"


def _primary(info: Mapping[str, str]) -> str:
    return f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"


def answered(
    ping: Reply, role: Reply, info: Reply, fields: Mapping[str, str], limits: Limits, seen: Seen | None
) -> CheckResult:
    """Return what the answers to PING, ROLE and INFO say together."""
    if isinstance(ping, Refusal):
        return unwell(ping, fields)
    if ping != b"PONG":
        return failing(Cause.ERROR, "not the answer of a Redis to PING")
    return judge(role, info, fields, limits, seen)


# -- a server that answers -------------------------------------------------------------------------------------------


def judge(role: Reply, info: Reply, fields: Mapping[str, str], limits: Limits, seen: Seen | None) -> CheckResult:
    """Return what ROLE and INFO of a server say that answers PING. `fields` are those of `info`."""
    concerns: list[Concern] = []
    for name, reply in (("ROLE", role), ("INFO", info)):
        if isinstance(reply, Refusal):
            concerns.append(_blind(name, reply))
    concerns += _of_role(_role(role, fields), fields, limits)
    concerns += _of_memory(fields, limits)
    concerns += _of_clients(fields, limits, seen)
    concerns += _of_persistence(fields)
    return concluded(concerns, described(fields), fields.get("run_id") or None)


def concluded(concerns: list[Concern], details: Mapping[str, Scalar], instance: str | None) -> CheckResult:
    """Return one result of all concerns: the first FAILING one names the cause, else the first."""
    if not concerns:
        return CheckResult(Verdict.PASSING, details=details, instance=instance)
    first = next((one for one in concerns if one.verdict is Verdict.FAILING), concerns[0])
    rest = [one.text for one in concerns if one is not first]
    return CheckResult(
        first.verdict, cause=first.cause, summary="; ".join([first.text, *rest]), details=details, instance=instance
    )


def more(result: CheckResult, concerns: list[Concern], details: Mapping[str, Scalar]) -> CheckResult:
    """Return a result with what a deeper look has found besides."""
    details = {**result.details, **details}
    if result.cause is not None:
        concerns = [Concern(cause=result.cause, text=result.summary, verdict=result.verdict), *concerns]
    return concluded(concerns, details, result.instance)


def _blind(name: str, refusal: Refusal) -> Concern:
    if refusal.word == "NOPERM":
        return Concern(cause=Cause.AUTH, text=f"the user of the check may not ask {name}; it needs {RIGHTS}")
    return Concern(cause=CAUSES.get(refusal.word, Cause.CONFIG), text=f"{name} was refused: {refusal.text}")


def _role(role: Reply, info: Mapping[str, str]) -> str:
    """Return master, slave or sentinel, as the server calls it; "" when it does not say."""
    if isinstance(role, list) and role and isinstance(role[0], bytes):
        return role[0].decode("utf-8", "replace")
    return info.get("role", "")


def _of_role(role: str, info: Mapping[str, str], limits: Limits) -> list[Concern]:
    if role == "slave":
        found = _of_replica(info, limits)
        if limits.expect == "primary":
            text = f"a replica of {_primary(info)} where a primary is expected: it refuses writes"
            found.insert(0, Concern(cause=Cause.READ_ONLY, text=text))
        return found
    if role == "master":
        found = _of_primary(info, limits)
        if limits.expect == "replica":
            text = "a primary where a replica is expected: was there a failover?"
            found.insert(0, Concern(cause=Cause.DEGRADED_CLUSTER, text=text))
        return found
    if role == "sentinel":
        found = _of_sentinel(info)
        if limits.expect != "any":
            text = f"a Sentinel where a {limits.expect} is expected: is the port right?"
            found.insert(0, Concern(cause=Cause.CONFIG, text=text))
        return found
    return []


def _of_replica(info: Mapping[str, str], limits: Limits) -> list[Concern]:
    if number(info, "master_sync_in_progress") == 1:
        return [Concern(cause=Cause.DEGRADED_CLUSTER, text=f"copying all data of its primary {_primary(info)}")]
    if info.get("master_link_status") == "down":
        since = number(info, "master_link_down_since_seconds")
        how_long = f" for {since} s" if since is not None and since >= 0 else ""
        text = f"no link to its primary {_primary(info)}{how_long}: what it serves grows old"
        return [Concern(cause=Cause.DEGRADED_CLUSTER, text=text)]
    heard = number(info, "master_last_io_seconds_ago")
    if heard is not None and heard > limits.lag:
        text = f"nothing heard of its primary {_primary(info)} for {heard} s"
        return [Concern(cause=Cause.DEGRADED_CLUSTER, text=text)]
    return []


def _of_primary(info: Mapping[str, str], limits: Limits) -> list[Concern]:
    found: list[Concern] = []
    replicas = replicas_of(info)
    late = [one for one in replicas if one["state"] == "online" and (lag := _lag(one)) is not None and lag > limits.lag]
    if late:
        text = f"{len(late)} of {len(replicas)} replicas are silent for more than {limits.lag:g} s"
        found.append(Concern(cause=Cause.DEGRADED_CLUSTER, text=text))
    online = sum(one["state"] == "online" for one in replicas) - len(late)
    if "connected_slaves" in info and online < limits.replicas:
        text = f"{online} replicas follow, where {limits.replicas} should"
        found.append(Concern(cause=Cause.DEGRADED_CLUSTER, text=text))
    return found


def replicas_of(info: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what a primary says of each replica: ip, port, state, offset, lag."""
    found = []
    for place in range(number(info, "connected_slaves") or 0):
        parts = [part.partition("=") for part in info.get(f"slave{place}", "").split(",")]
        one = {"state": "", **{name: value for name, _, value in parts}}
        found.append(one)
    return found


def _lag(replica: Mapping[str, str]) -> int | None:
    """Return the seconds since a replica acknowledged anything; it does so each second."""
    lag = number(replica, "lag")
    return lag if lag is not None and lag >= 0 else None


def _of_sentinel(info: Mapping[str, str]) -> list[Concern]:
    found = []
    for place in range(number(info, "sentinel_masters") or 0):
        said = dict(part.partition("=")[::2] for part in info.get(f"master{place}", "").split(","))
        if said.get("status") != "ok":
            text = f"Sentinel says {said.get('status', 'nothing')} of {said.get('name', '?')} at {said.get('address')}"
            found.append(Concern(cause=Cause.DEGRADED_CLUSTER, text=text))
    return found


def _of_memory(info: Mapping[str, str], limits: Limits) -> list[Concern]:
    most, used = number(info, "maxmemory"), number(info, "used_memory")
    if not most or used is None:
        return []
    used -= number(info, "mem_not_counted_for_evict") or 0
    policy = info.get("maxmemory_policy", "")
    keys, expiring = keys_of(info)
    if policy == EVICTS_NOTHING:
        why = "nothing is evicted (noeviction)"
    elif policy.startswith("volatile-") and keys and not expiring:
        why = f"no key expires, so that {policy} finds nothing to evict"
    else:
        return []
    if used > most:
        text = f"memory is full ({_mebibytes(used)} of {_mebibytes(most)} MiB) and {why}: it refuses writes"
        return [Concern(cause=Cause.OVERLOADED, text=text)]
    if used >= limits.memory * most:
        text = f"memory is nearly full ({_mebibytes(used)} of {_mebibytes(most)} MiB) and {why}"
        return [Concern(cause=Cause.OVERLOADED, text=text)]
    return []


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f}"


def keys_of(info: Mapping[str, str]) -> tuple[int, int]:
    """Return how many keys the whole server holds, and how many of them expire by themselves."""
    keys = expiring = 0
    for name, value in info.items():
        if name.startswith("db") and name[2:].isdigit():
            said = dict(part.partition("=")[::2] for part in value.split(","))
            keys += number(said, "keys") or 0
            expiring += number(said, "expires") or 0
    return keys, expiring


def _of_clients(info: Mapping[str, str], limits: Limits, seen: Seen | None) -> list[Concern]:
    now, most = number(info, "connected_clients"), number(info, "maxclients")
    found: list[Concern] = []
    if now is not None and most:
        if now >= most:
            text = f"{now} of {most} clients: another one is refused"
            found.append(Concern(cause=Cause.OVERLOADED, text=text))
        elif now >= limits.clients * most:
            found.append(Concern(cause=Cause.OVERLOADED, text=f"{now} of {most} clients: nearly all"))
    total = number(info, "rejected_connections") or 0
    if seen is not None and seen.run == info.get("run_id") and total > seen.refused:
        text = f"{total - seen.refused} clients were refused since the last check"
        found.append(Concern(cause=Cause.OVERLOADED, text=text))
    return found


def _of_persistence(info: Mapping[str, str]) -> list[Concern]:
    found: list[Concern] = []
    if info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err":
        found.append(Concern(cause=Cause.FULL, text=_unsaved(info)))
    if info.get("aof_last_bgrewrite_status") == "err":
        text = "the last rewrite of the append-only file failed: is the disk full, or its folder not writable?"
        found.append(Concern(cause=Cause.FULL, text=text))
    return found


# -- what is worth seeing --------------------------------------------------------------------------------------------

_PLAIN: Final = (
    ("version", "redis_version"),
    ("memory_policy", "maxmemory_policy"),
    ("saved", "rdb_last_bgsave_status"),
    ("appended", "aof_last_write_status"),
)
_COUNTED: Final = (
    ("uptime_seconds", "uptime_in_seconds"),
    ("clients", "connected_clients"),
    ("clients_limit", "maxclients"),
    ("clients_blocked", "blocked_clients"),
    ("clients_refused", "rejected_connections"),
    ("memory_bytes", "used_memory"),
    ("memory_limit_bytes", "maxmemory"),
    ("evicted", "evicted_keys"),
    ("operations_per_second", "instantaneous_ops_per_sec"),
    ("unsaved_changes", "rdb_changes_since_last_save"),
)
_ROLES: Final = {"master": "primary", "slave": "replica"}


def described(info: Mapping[str, str]) -> dict[str, Scalar]:
    """Return the small facts of an INFO that are worth seeing beside a verdict."""
    if not info:
        return {}
    found: dict[str, Scalar] = {}
    mode = info.get("redis_mode", "")
    if role := "sentinel" if mode == "sentinel" else _ROLES.get(info.get("role", ""), ""):
        found["role"] = role
    if mode == "cluster":
        found["mode"] = mode
    for name, field in _PLAIN:
        if value := info.get(field):
            found[name] = value[:100]
    for name, field in _COUNTED:
        if (count := number(info, field)) is not None:
            found[name] = count
    if mode != "sentinel":
        found["keys"], found["keys_expiring"] = keys_of(info)
    if info.get("role") == "slave":
        found |= _of_link(info)
    elif replicas := replicas_of(info):
        found["replicas"] = len(replicas)
        offset = number(info, "master_repl_offset") or 0
        behind = [offset - (number(one, "offset") or 0) for one in replicas if one["state"] == "online"]
        found["lag_bytes"] = max(behind, default=0)
        found["lag_seconds"] = max((_lag(one) or 0 for one in replicas), default=0)
    if info.get("loading") == "1":
        found["loading_percent"] = info.get("loading_loaded_perc", "")[:10]
        found["loading_eta_seconds"] = number(info, "loading_eta_seconds")
    return found


def _of_link(info: Mapping[str, str]) -> dict[str, Scalar]:
    """Return what a replica says of its primary."""
    found: dict[str, Scalar] = {"primary": _primary(info), "link": info.get("master_link_status", "")[:20]}
    if (heard := number(info, "master_last_io_seconds_ago")) is not None and heard >= 0:
        found["lag_seconds"] = heard
    if (since := number(info, "master_link_down_since_seconds")) is not None and since >= 0:
        found["link_down_seconds"] = since
    return found
