"""From the ledger and the records to every answer: status, history, statistics, metrics.

Nothing here keeps a second truth. *Live* answers are read from decided state and this run's evidence, on the engine's
thread; *stored* answers are read from the journal, in any thread or process. Records in them have their public shape
(`shapes`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from math import inf
from typing import Any, Final

import attrs

from selfheal import metrics, outages
from selfheal.core import detector, machine
from selfheal.core.alerts import DOWN
from selfheal.core.graph import no_service
from selfheal.core.guards import GUARDS
from selfheal.core.ledger import Ledger
from selfheal.core.model import Alert, Condition, Evidence, Hold, Incident, Instance, Policy, State, Suppression
from selfheal.core.records import (
    AlertChanged,
    Answered,
    FleetSet,
    Record,
    encode,
)
from selfheal.core.routing_words import CONDUCT
from selfheal.errors import RequestRefused
from selfheal.journal.store import Reader, StoredRecord
from selfheal.metrics import Metering
from selfheal.outages import each
from selfheal.shapes import VERSION, public, utc

MOST_DAYS: Final = 366
"""Days of one answer about each day."""

LIMIT: Final = 100
MOST: Final = 1000
HOUR: Final = 3600.0
"""Seconds of results, unless the caller says how many."""

UNWATCHED: Final = "unwatched"
"""How a service is counted that is gone from the configuration: what was believed of it says nothing now."""

LIVE: Final = frozenset(
    {"status", "services", "service", "explain", "graph", "approvals", "suppressions", "health", "metrics"}
)
"""Queries answered from the engine's own state."""


@attrs.frozen(kw_only=True)
class Facts:
    """What live answers are read from. `at` is journal time; `evidence_of` is None without a running engine.

    Without a `metering` the metrics have nothing in them that is counted.
    """

    ledger: Ledger
    at: float
    to_unix: Callable[[float], float]
    evidence_of: Callable[[str], Evidence | None] = lambda name: None
    due_of: Callable[[str], float] = lambda name: inf
    explain: Callable[[str], tuple[tuple[str, Hold | None], ...]] | None = None
    kinds: Mapping[str, str] = attrs.field(factory=dict)
    health: Mapping[str, Any] = attrs.field(factory=dict)
    metering: Metering | None = None

    def time(self, at: float | None) -> str | None:
        """Return a journal time as UTC text; None for never."""
        if at is None or at in (inf, -inf):
            return None
        return utc(self.to_unix(at))


def _stored(stored: StoredRecord) -> dict[str, Any]:
    return public(stored.record, seq=stored.seq, wall=stored.wall)


# -- live: from decided state and this run's evidence ----------------------------------------------------------------


def live(name: str, parameters: Mapping[str, Any], facts: Facts) -> Any:
    """Answer a live query. Raises `RequestRefused` for an unknown service."""
    service = parameters.get("service")
    if service is not None and service not in facts.ledger.policies:
        raise RequestRefused("unknown_service", no_service(service, facts.ledger.policies))
    return _LIVE[name](facts, parameters)


def _status(facts: Facts, parameters: Mapping[str, Any]) -> dict[str, Any]:
    ledger = facts.ledger
    lines = [_line(facts, name) for name in ledger.policies]
    counts = {**{state.value: 0 for state in State}, UNWATCHED: 0}
    for line in lines:
        counts[line["state"] if line["watched"] else UNWATCHED] += 1
    return {
        "version": VERSION,
        "fleet": ledger.fleet.name,
        "time": facts.time(facts.at),
        "counts": counts,
        "services": lines,
        "holds": [
            {"hold": hold, "evidence": evidence, "means": CONDUCT.get(hold, "")}
            for hold, evidence in ledger.holds.items()
        ],
        "incidents": [_incident(facts, incident) for incident in ledger.incidents.values()],
        "suppressions": [_shown(facts, suppression) for suppression in ledger.suppressions.values()],
        "undelivered": [
            {"notifier": one["notifier"], "since": one["failing_since"], "error": one["last_error"]}
            for one in facts.health.get("delivery", ())
            if one["failing_since"]
        ],
        "running": bool(facts.health.get("running")),
    }


def _line(facts: Facts, name: str) -> dict[str, Any]:
    condition = facts.ledger.conditions[name]
    evidence = facts.evidence_of(name)
    # What it fails of may have changed since it was confirmed; what is decided goes by what is seen now, and so here.
    seen = evidence if condition.state in DOWN else None
    cause = machine.known_cause(condition, seen) if seen is not None else condition.cause
    return {
        "service": name,
        "state": condition.state.value,
        "reason": condition.reason,
        "detail": condition.detail,
        "since": facts.time(condition.since),
        "since_seconds": max(0.0, facts.at - condition.since),
        "probation": condition.state is State.HEALTHY and condition.probation_until > facts.at,
        "incident": condition.incident,
        "root": facts.ledger.root_of(condition.incident),
        "attempt": condition.attempt if condition.incident is not None else 0,
        "under_way": _under_way(facts, name),
        "cause": cause.value if cause is not None else None,
        "watched": name not in facts.ledger.unwatched,
        "last_check": facts.time(evidence.last_at) if evidence is not None else None,
        "next_check": facts.time(facts.due_of(name)),
        "last_verdict": evidence.last_verdict.value if evidence is not None and evidence.last_verdict else None,
        "latency_seconds": evidence.latency if evidence is not None else None,
        "summary": evidence.summary if evidence is not None else "",
    }


def _under_way(facts: Facts, name: str) -> dict[str, Any] | None:
    """What is being done about a service: which step acts, or is being verified, and for how long."""
    ledger = facts.ledger
    condition, steps = ledger.conditions[name], ledger.policies[name].steps
    intent = next((one for one in ledger.intents.values() if one.service == name), None)
    if intent is None and (condition.state is not State.RECOVERING or condition.cursor >= len(steps)):
        return None
    since = intent.at if intent is not None else condition.since
    return {
        "action": intent.action if intent is not None else steps[condition.cursor].action,
        "phase": "acting" if intent is not None else "verifying",
        "step": intent.step if intent is not None else condition.cursor,
        "steps": len(steps),
        "since": facts.time(since),
        "seconds": max(0.0, facts.at - since),
    }


def _services(facts: Facts, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    alerts: dict[str, list[Alert]] = {}
    for alert in facts.ledger.alerts.values():
        alerts.setdefault(alert.service, []).append(alert)
    actions = {intent.service: intent.intent for intent in reversed(facts.ledger.intents.values())}
    return [_one(facts, name, alerts.get(name, ()), actions.get(name)) for name in facts.ledger.policies]


def _service(facts: Facts, parameters: Mapping[str, Any]) -> dict[str, Any]:
    name, ledger = parameters["service"], facts.ledger
    alerts = [alert for alert in ledger.alerts.values() if alert.service == name]
    return _one(facts, name, alerts, next((i.intent for i in ledger.intents.values() if i.service == name), None))


def _one(facts: Facts, name: str, alerts: Iterable[Alert], action: str | None) -> dict[str, Any]:
    ledger = facts.ledger
    evidence = facts.evidence_of(name)
    return {
        **_line(facts, name),
        "check": facts.kinds.get(name),
        "policy": encode(ledger.policies[name]),
        "condition": _condition(facts, ledger.conditions[name]),
        "evidence": _evidence(facts, evidence) if evidence is not None else None,
        "alerts": [_alert_shown(facts, alert) for alert in alerts],
        "action": action,
    }


def _condition(facts: Facts, condition: Condition) -> dict[str, Any]:
    shape: dict[str, Any] = encode(condition)
    for field in ("since", "not_before", "probation_until", "well_since", "asked_at"):
        value = getattr(condition, field)
        shape[field] = facts.time(value) if value else None
    return {**shape, "state": condition.state.value}


def _evidence(facts: Facts, evidence: Evidence) -> dict[str, Any]:
    return {
        "checks": evidence.checks,
        "failures": evidence.failures,
        "passes": evidence.passes,
        "inconclusive": evidence.inconclusive,
        "failing_since": facts.time(evidence.failing_since),
        "last_check": facts.time(evidence.last_at),
        "last_verdict": evidence.last_verdict.value if evidence.last_verdict is not None else None,
        "cause": evidence.cause.value if evidence.cause is not None else None,
        "summary": evidence.summary,
        "details": dict(evidence.details),
        "latency_seconds": evidence.latency,
        "suspicion": evidence.score,
        "instance": _instance(facts, evidence.instance),
    }


def _instance(facts: Facts, instance: Instance | None) -> dict[str, Any] | None:
    if instance is None:
        return None
    return {
        "id": instance.id,
        "run": instance.run.value,
        "since": facts.time(instance.since),
        "count": instance.count,
        "detail": instance.detail,
    }


def _explain(facts: Facts, parameters: Mapping[str, Any]) -> dict[str, Any]:
    name = parameters["service"]
    condition, policy = facts.ledger.conditions[name], facts.ledger.policies[name]
    evidence = facts.evidence_of(name)
    answers = facts.explain(name) if facts.explain is not None else ()
    about = {guard.name: (guard.ask.__doc__ or "").partition("\n")[0] for guard in GUARDS}
    index = machine.next_step(policy, condition, evidence) if evidence is not None else None
    holding = [guard for guard, hold in answers if hold is not None]
    return {
        "service": name,
        "state": condition.state.value,
        "reason": condition.reason,
        "detail": condition.detail,
        "under_way": _under_way(facts, name),
        "next_step": policy.steps[index].action if index is not None and condition.state is State.FAILED else None,
        "holding": holding,
        "guards": [
            {
                "guard": guard,
                "holds": hold is not None,
                "reason": hold.reason if hold is not None else "",
                "detail": hold.detail if hold is not None else "",
                "until": facts.time(hold.until) if hold is not None else None,
                "about": about.get(guard, ""),
            }
            for guard, hold in answers
        ],
        "verdict": _not_yet(policy, evidence, facts.at)
        if condition.state is State.UNHEALTHY and evidence is not None and evidence.failures
        else _in_words(condition, holding, known=bool(answers), watched=name not in facts.ledger.unwatched),
    }


def _not_yet(policy: Policy, evidence: Evidence, at: float) -> str:
    """Say how far a failure is from being believed."""
    needed, span = policy.failure_threshold, detector.failing_span(policy, evidence)
    lasted = max(0.0, at - evidence.failing_since)
    return (
        f"Nothing is done yet: {evidence.failures} of {needed} failing checks, "
        f"over {lasted:.0f} of {span:g} s; then it counts as failed."
    )


def _in_words(condition: Condition, holding: list[str], *, known: bool, watched: bool) -> str:
    """Say in one sentence why something is done, or not."""
    if not watched:
        return (
            "Nothing is done, and nobody looks: it is gone from the configuration. "
            "Release the hold `fleet` to drop it, or bring it back; what is shown is what was believed then."
        )
    if condition.state is State.DISABLED:
        return "Nothing is done: it is switched off."
    if condition.state is State.RECOVERING:
        return f"Attempt {condition.attempt} is under way: an action runs, or its effect is being verified."
    if condition.state is not State.FAILED:
        return f"Nothing is done: it is {condition.state.value}, and only a confirmed failure is acted on."
    if not known:
        return f"It is down: {condition.reason or 'about to be acted on'}. Ask the running engine for its guards."
    if holding:
        return f"It is down and nothing is done, because of: {', '.join(holding)}."
    return "It is down and no guard holds: a fresh check comes first, then the next step."


def _graph(facts: Facts, parameters: Mapping[str, Any]) -> dict[str, Any]:
    nodes = [{"service": n, "state": facts.ledger.conditions[n].state.value} for n in facts.ledger.policies]
    edges = [
        {
            "service": policy.name,
            "needs": list(dependency.services),
            "kind": dependency.kind.value,
            "when_disabled": dependency.when_disabled.value,
        }
        for policy in facts.ledger.policies.values()
        for dependency in policy.depends_on
    ]
    return {"services": nodes, "edges": edges}


def _approvals(facts: Facts, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    waiting = []
    for name, condition in facts.ledger.conditions.items():
        if condition.asked_at is None or condition.state is not State.FAILED:
            continue
        policy = facts.ledger.policies[name]
        index = machine.next_step(policy, condition, facts.evidence_of(name) or Evidence())
        step = policy.steps[index] if index is not None else None
        people = step is not None and step.action == "manual_intervention"
        waiting.append(
            {
                "service": name,
                "action": step.action if step is not None else None,
                "step": index,
                "incident": condition.incident,
                "asked": facts.time(condition.asked_at),
                "skipped_at": None if people else facts.time(condition.asked_at + policy.approval_timeout),
            }
        )
    return waiting


def _suppressions(facts: Facts, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_shown(facts, suppression) for suppression in facts.ledger.suppressions.values()]


def _shown(facts: Facts, suppression: Suppression) -> dict[str, Any]:
    return {
        "suppression": suppression.id,
        "binds": suppression.binds.value,
        "services": list(suppression.services),
        "everything": suppression.everything,
        "since": facts.time(suppression.since),
        "until": facts.time(suppression.until),
        "actor": suppression.actor,
        "reason": suppression.reason,
    }


def _incident(facts: Facts, incident: Incident) -> dict[str, Any]:
    return {
        "incident": incident.number,
        "root": incident.root,
        "since": facts.time(incident.since),
        "open": True,
        "members": list(facts.ledger.members.get(incident.number, ())),
        "correlation_id": incident.correlation,
        "duration_seconds": facts.at - incident.since,
    }


def _alert_shown(facts: Facts, alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.id,
        "service": alert.service or None,
        "rule": alert.rule,
        "severity": alert.severity.value,
        "since": facts.time(alert.since),
        "text": alert.text,
        "incident": alert.incident,
        "folded": alert.folded,
        "acknowledged_by": alert.acknowledged_by or None,
    }


def _health(facts: Facts, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "release": _release(),
        "fleet": facts.ledger.fleet.name,
        "time": facts.time(facts.at),
        "services": len(facts.ledger.policies),
        "holds": list(facts.ledger.holds),
        **facts.health,
    }


def _release() -> str | None:
    """The version of selfheal that is installed; None where it runs from a folder and was never installed."""
    try:
        return version("selfheal-core")
    except PackageNotFoundError:
        return None


def metered(facts: Facts, parameters: Mapping[str, Any], *, patience: float = metrics.PATIENCE) -> Callable[[], Any]:
    """Copy what is live, and return what makes the answer of it: that blocks, and may be called in any thread."""
    running = None if facts.health.get("reading") else facts.health.get("running")
    moment = metrics.Moment.of(facts.ledger, facts.evidence_of, running)
    metering, form = facts.metering, str(parameters.get("format", metrics.FORMATS[0]))

    def answer() -> Any:
        families = metrics.live(moment) if metering is None else metering.families(moment, patience=patience)
        return metrics.written(families, form)

    return answer


def _metrics(facts: Facts, parameters: Mapping[str, Any]) -> Any:
    return metered(facts, parameters)()


_LIVE: Final[Mapping[str, Callable[[Facts, Mapping[str, Any]], Any]]] = {
    "status": _status,
    "services": _services,
    "service": _service,
    "explain": _explain,
    "graph": _graph,
    "approvals": _approvals,
    "suppressions": _suppressions,
    "health": _health,
    "metrics": _metrics,
}


# -- stored: from the journal ----------------------------------------------------------------------------------------


def stored(
    name: str,
    parameters: Mapping[str, Any],
    reader: Reader,
    metering: Metering | None = None,
    known: Container[str] = (),
) -> Any:
    """Answer a stored query. Blocks: call it in a thread. With a `metering` what was counted before is not read again.

    Raises `RequestRefused` for an unknown incident, and for a service that is neither `known` (its first record may not
    be stored yet) nor was ever spoken of by a record: nothing is known of a misspelt name, which is not to say that
    nothing has happened to it.
    """
    service = parameters.get("service")
    if service is not None and service not in known and not _heard_of(reader, str(service)):
        raise RequestRefused("unknown_service", f"no service {service!r}, now or as far back as the journal goes")
    return _STORED[name](_Stored(reader, metering if metering is not None else Metering(reader)), parameters)


@attrs.frozen
class _Stored:
    """A journal, and what its records add up to."""

    reader: Reader
    metering: Metering


def _heard_of(reader: Reader, service: str) -> bool:
    if reader.records(service=service, limit=1):
        return True
    fleets = (record.record for record in each(reader, ("fleet_set",)))
    return any(policy.name == service for one in fleets if isinstance(one, FleetSet) for policy in one.fleet.policies)


def _most(parameters: Mapping[str, Any]) -> int:
    return min(int(parameters.get("limit", LIMIT)), MOST)


def _history(journal: _Stored, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    page = journal.reader.records(
        service=parameters.get("service"),
        before=parameters.get("before"),
        limit=_most(parameters),
        newest_first=True,
    )
    return [_stored(record) for record in page]


def _records(journal: _Stored, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    page = journal.reader.records(after=int(parameters.get("after", 0)), limit=_most(parameters))
    return [_stored(record) for record in page]


def _audit(journal: _Stored, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What people asked for: of one service also where it was one of several, or of all."""
    service, most = parameters.get("service"), _most(parameters)
    found: list[dict[str, Any]] = []
    before: int | None = parameters.get("before")
    while len(found) < most:
        page = journal.reader.records(kinds=("answered",), before=before, limit=MOST, newest_first=True)
        if not page:
            break
        found += [_stored(record) for record in page if service is None or _concerns(record.record, str(service))]
        before = page[-1].seq
    return found[:most]


def _concerns(record: Record, service: str) -> bool:
    assert isinstance(record, Answered)
    said = dict(record.arguments)
    return record.service == service or service in str(said.get("services", "")).split(",") or "everything" in said


def _alerts(journal: _Stored, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last word on every alert, newest first; resolved ones only when `all` is asked for.

    They stand in the order in which they opened, which no later word changes: `opened_seq` is where a page ends.
    """
    before = parameters.get("before", inf)
    with journal.metering.account() as account:
        wanted = (
            (one.opened, one.opened_seq, one.last)
            for one in reversed(account.alerts.all.values())
            if (one.open or parameters.get("all")) and one.opened_seq < before
        )
        chosen = list(islice(wanted, _most(parameters)))
    return [_alert(journal.reader, opened, opened_seq, last) for opened, opened_seq, last in chosen]


def _alert(reader: Reader, opened: float, opened_seq: int, last: int) -> dict[str, Any]:
    (record,) = reader.records(after=last - 1, before=last + 1, limit=1)
    change, shape = record.record, _stored(record)
    assert isinstance(change, AlertChanged)
    return {
        **shape,
        "text": change.alert.text,
        "opened": utc(opened),
        "opened_seq": opened_seq,
        "resolved": None if change.open else shape["time"],
    }


def _incidents(journal: _Stored, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    service, before = parameters.get("service"), parameters.get("before", inf)
    with journal.metering.account() as account:
        chosen = (
            outage
            for outage in reversed(account.outages.all.values())
            if (service is None or service in outage.members)
            and outage.number < before
            and (outage.open or not parameters.get("open"))
        )
        return [outage.shape() for outage in islice(chosen, _most(parameters))]


def _one_incident(journal: _Stored, parameters: Mapping[str, Any]) -> dict[str, Any]:
    number = int(parameters["number"])
    with journal.metering.account() as account:
        outage = account.outages.all.get(number)
        if outage is None:
            raise RequestRefused("not_found", f"no incident {number}")
        shape, first, last = outage.shape(), outage.first, outage.last
    about = each(journal.reader, outages.KINDS, after=first - 1, upto=last)
    return {**shape, "timeline": [_stored(one) for one in about if number in outages.concerned(one.record)]}


def _results(journal: _Stored, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The newest results of a service. Raw results expire; what is left is what there is."""
    since = journal.reader.last().wall - parameters.get("window", HOUR)
    newest = deque(journal.reader.results(str(parameters["service"]), since=since), maxlen=_most(parameters))
    return [
        {
            "service": one.finished.service,
            "time": utc(one.wall),
            "verdict": one.finished.result.verdict.value,
            "cause": one.finished.result.cause.value if one.finished.result.cause is not None else None,
            "latency_seconds": one.finished.ended - one.finished.started,
            "summary": one.finished.result.summary,
        }
        for one in reversed(newest)
    ]


def _statistics(journal: _Stored, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers from recorded data; where there is none, the number is null and not a guess (S51)."""
    service, days = parameters.get("service"), min(int(parameters.get("days", 0)), MOST_DAYS)
    with journal.metering.account() as account:
        last, count = account.last, account.tally
        wall = last.wall + max(0.0, count.at - last.at)
        try:
            return count.statistics(
                until=last.at, wall=wall, service=service, window=parameters.get("window"), days=days
            )
        except KeyError:
            raise RequestRefused("unknown_service", f"of {service!r} nothing is recorded that counts") from None


_STORED: Final[Mapping[str, Callable[[_Stored, Mapping[str, Any]], Any]]] = {
    "incidents": _incidents,
    "incident": _one_incident,
    "history": _history,
    "alerts": _alerts,
    "audit": _audit,
    "statistics": _statistics,
    "results": _results,
    "records": _records,
}
