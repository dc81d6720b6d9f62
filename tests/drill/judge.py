"""Runs one fault and judges what selfheal made of it, from its records and from what the servers themselves say.

A row is good only if the fault was detected as what it is, the right steps were taken in the right order and no others,
each was verified, the incident was recorded and closed, everybody else is the incarnation it was, all that was promised
to the application's user is there, and the application works again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from tests.drill.breaking import Fault
from tests.drill.servers import APPLICATION
from tests.drill.stage import Stage
from tests.drill.watched import unix, waited

Record = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Row:
    """What became of one fault; times in seconds."""

    on: str
    fault: Fault
    detected: float | None = None
    """From the fault to the first record that says so."""
    good_again: float | None = None
    """From the fault, or from when people mended it, to the application's first good answer after all bad ones."""
    closed: float | None = None
    """The same, to the end of the incident: repaired, and verified by checks."""
    steps: str = ""
    bad_seconds: int = 0
    breaches: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing is held against it."""
        return not self.breaches


def run(stage: Stage, fault: Fault) -> Row:
    """Break it, let selfheal and, where they are wanted, people do their part, and judge. Leaves everything well."""
    breaches: list[str] = []
    before, first = stage.instances(), stage.watched.last()
    stage.first = first
    began = mended = fault.begin(stage)
    try:
        mended = _people(stage, fault, breaches) or began
        if not waited(lambda: _sight(fault, stage.records()), fault.within):
            breaches.append(f"not detected within {fault.within:.0f} s")
        if not waited(stage.watched.all_well, fault.within):
            breaches.append(f"not well within {fault.within:.0f} s: {_unwell(stage)}")
    finally:
        stage.mend()
    well = time.time()
    if not waited(lambda: stage.prober.good_since(well), 15.0):
        breaches.append(f"the application does not work again: {dict(stage.prober.asked[-1].failed)}")
    records = stage.watched.history(first)
    breaches += [*_seen(fault, records), *_stepped(fault, records), *_ordered(fault, records)]
    breaches += [*_incidents(fault, records), *_untouched(fault, before, stage.instances()), *_lost(stage)]
    if stage.watched.ended():
        breaches.append("selfheal itself has ended")
    ends = [unix(one) for one in records if one["kind"] == "incident_closed"]
    return Row(
        on=stage.host.name,
        fault=fault,
        detected=_detected(fault, records, began),
        good_again=_good_again(stage, began, mended),
        closed=max(ends) - mended if ends else None,
        steps=" ".join(_told(one) for one in records if one["kind"] == "intended"),
        bad_seconds=stage.prober.bad_seconds(began, well),
        breaches=tuple(breaches),
    )


def _people(stage: Stage, fault: Fault, breaches: list[str]) -> float | None:
    """Wait until people are told, and as long as they take; mend it, and return when. None where nobody comes."""
    told = fault.told
    if told is None:
        return None
    if not waited(lambda: told(stage), fault.within):
        breaches.append(f"people were not told within {fault.within:.0f} s: {_unwell(stage) or 'all is called well'}")
    time.sleep(fault.quiet)  # nothing may happen meanwhile: this is what is tested
    stage.mend()
    at = time.time()
    if fault.mend is not None:
        fault.mend(stage)
    return at


def _unwell(stage: Stage) -> str:
    lines = stage.watched.states().values()
    return (
        ", ".join(
            f"{one['service']} {one['state']} {one['reason']} {one['detail']} {one['summary']}".strip()
            for one in lines
            if one["state"] != "healthy" or one["probation"]
        )
        or str(stage.watched.ask("incidents", open=True))[:600]
    )


def _told(intent: Record) -> str:
    return str(intent["action"]) if intent["service"] != APPLICATION else f"{APPLICATION}:{intent['action']}"


def _of(records: Iterable[Record], kind: str, service: str) -> list[Record]:
    return [one for one in records if one["kind"] == kind and one["service"] == service]


def _sight(fault: Fault, records: Iterable[Record]) -> Sequence[Record]:
    """Return the records that say that something is wrong with what was broken."""
    if fault.seen_as.startswith("hold"):
        return [one for one in records if one["kind"] == "hold_changed"]
    found = [one for one in records if one["kind"] == "moved" and one["to"] in ("unhealthy", "failed", "degraded")]
    return [one for one in found if one["service"] in fault.services or fault.services == ("all",)]


def _detected(fault: Fault, records: Iterable[Record], began: float) -> float | None:
    seen = _sight(fault, records)
    return unix(seen[0]) - began if seen else None


def _seen(fault: Fault, records: Iterable[Record]) -> list[str]:
    seen = _sight(fault, records)
    if fault.seen_as.startswith("hold"):
        return [] if seen else ["no hold was recorded"]
    services = fault.services if fault.services != ("all",) else tuple(fault.steps)
    found = []
    for service in services:
        said = [f"{one['to']} {one['cause']}" for one in seen if one["service"] == service]
        if not any(re.fullmatch(fault.seen_as, one) for one in said):
            found.append(f"{service} was seen as {said}, not as {fault.seen_as}")
    return found


def _stepped(fault: Fault, records: Sequence[Record]) -> list[str]:
    found = []
    for service in {one["service"] for one in records if one["service"]} | set(fault.steps):
        steps = " ".join(str(one["action"]) for one in _of(records, "intended", service))
        wanted = fault.steps.get(service, "")
        if not re.fullmatch(wanted, steps):
            found.append(f"{service}: steps were '{steps}', not '{wanted}'")
        ended = [one["reason"]["code"] for one in _of(records, "ended", service)]
        if len(ended) != len(_of(records, "intended", service)):
            found.append(f"{service}: {steps} ended as {ended}: not every intent has its end")
        if steps and not _verified(_of(records, "ended", service), _of(records, "moved", service)):
            found.append(f"{service}: it was not verified after '{steps}'")
    return found


def _verified(ends: Sequence[Record], moves: Sequence[Record]) -> bool:
    """Whether checks made it well after the last step had ended."""
    last = max((one["seq"] for one in ends), default=0)
    return any(one["to"] == "healthy" and one["seq"] > last for one in moves)


def _ordered(fault: Fault, records: Sequence[Record]) -> list[str]:
    """A child may be acted on only once every parent that was broken is well again (law 6)."""
    found = []
    children = _of(records, "intended", APPLICATION)
    for parent in fault.steps:
        if parent == APPLICATION or not children:
            continue
        moves = [one for one in _of(records, "moved", parent) if one["seq"] < children[0]["seq"]]
        if moves and moves[-1]["to"] != "healthy":
            found.append(f"{APPLICATION} was acted on while {parent} was {moves[-1]['to']}")
        if not moves and _of(records, "moved", parent):
            found.append(f"{APPLICATION} was acted on before anything was known of {parent}")
    return found


def _incidents(fault: Fault, records: Sequence[Record]) -> list[str]:
    opened = {one["incident"] for one in records if one["kind"] == "incident_opened"}
    merged = {one["incident"] for one in records if one["kind"] == "incident_merged"}
    closed = {one["incident"] for one in records if one["kind"] == "incident_closed"}
    found = []
    if fault.incident and not opened:
        found.append("no incident was opened")
    if opened - closed - merged:
        found.append(f"incidents {sorted(opened - closed - merged)} were not closed")
    alerts: dict[str, bool] = {}
    for one in records:
        if one["kind"] == "alert_changed":
            alerts[str(one["alert"])] = bool(one["open"])
    if not alerts:
        found.append("nobody was alerted")
    if any(alerts.values()):
        found.append(f"alerts still open: {[name for name, is_open in alerts.items() if is_open]}")
    return found


def _untouched(fault: Fault, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    acted = {name for name, pattern in fault.steps.items() if "restart" in pattern}
    if fault.name == "stopped":
        acted |= set(fault.services)  # by a person
    changed = {name for name in before if before[name] != after[name]}
    found = [f"{name} is another incarnation, and was not to be touched" for name in sorted(changed - acted)]
    return found + [f"{name} is still the same incarnation" for name in sorted(acted - changed)]


def _lost(stage: Stage) -> list[str]:
    found = []
    for name, server in stage.hub.items():
        promised = set(stage.prober.promised[name])
        try:
            missing = promised - server.holds()
        except Exception as problem:  # noqa: BLE001 - whatever a server that is not well raises is a breach
            found.append(f"{name} cannot be counted: {problem!r}"[:200])
            continue
        if missing:
            found.append(f"{name} has lost {len(missing)} of {len(promised)}: {sorted(missing)[:5]}")
    return found


def _good_again(stage: Stage, began: float, mended: float) -> float | None:
    """Return from `mended` to the first good answer after the last bad one since it began; 0 if none was bad."""
    asked = [one for one in list(stage.prober.asked) if one.at >= began]
    bad = [index for index, one in enumerate(asked) if not one.good]
    if not bad:
        return 0.0
    after = asked[bad[-1] + 1 :]
    return max(0.0, after[0].at - mended) if after else None
