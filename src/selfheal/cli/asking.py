"""The commands that only ask. Each prints a table for people, or with `--json` the answer as it came."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import floor
from typing import Any, Final

import click

from selfheal.cli import screen
from selfheal.cli.asked import Asked, seconds
from selfheal.requests import TABLE
from selfheal.words import ago, clean, clock, sentence, span

json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
limit_option = click.option("--limit", type=click.IntRange(1, 1000), default=50, help="At most so many, newest first.")

STATUS: Final = ("SERVICE", "STATE", "SINCE", "REASON", "CHECKED", "LATENCY", "DETAIL")


# -- status -----------------------------------------------------------------------------------------------------------


@click.command(help=TABLE["status"].about)
@click.option("--watch", is_flag=True, help="Show it anew until interrupted.")
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=1.0, help="Seconds between two looks.")
@json_option
def status(watch: bool, interval: float, as_json: bool) -> None:
    """Show how the fleet stands."""
    asked = Asked.here()
    if not watch:
        answer = asked.ask("status")
        if as_json:
            screen.document(answer)
        else:
            _head(answer)
            screen.table(STATUS, _rows(answer), empty="no services")
        return
    with suppress(KeyboardInterrupt):  # how a watcher leaves
        _watched(asked, interval, as_json)


def _watched(asked: Asked, interval: float, as_json: bool) -> None:
    """Show the status again and again: in place on a terminal, one after the other in a pipe."""
    if as_json:
        while True:
            screen.record(asked.ask("status"))
            time.sleep(interval)
    answer = asked.ask("status")
    with screen.Frame() as frame:
        while True:
            nobody = [] if answer["running"] else ["no selfheal runs here: this is what the journal says"]
            frame.show([clean(said) for said in (*_headlines(answer), *nobody)], STATUS, list(_rows(answer)))
            time.sleep(interval)
            answer = asked.ask("status")


def _headlines(answer: Mapping[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{count} {state}" for state, count in answer["counts"].items() if count) or "no services"
    when = f" at {clock(answer['time'])}" if answer["services"] or answer["running"] else ""  # of nothing, no time
    yield f"{answer['fleet']}{when}: {counts}"
    for hold in answer["holds"]:
        yield f"HOLD {hold['hold']}: {hold['evidence']}. {hold['means']}".rstrip()
    for one in answer["undelivered"]:
        yield f"NOTIFIER {one['notifier']}: nobody is told by it since {clock(one['since'])} ({one['error']})"
    for one in answer["suppressions"]:
        about = "everything" if one["everything"] else ", ".join(one["services"])
        until = f" until {clock(one['until'])}" if one["until"] else ""
        yield f"{one['binds']}: {about}{until}, {one['actor']}: {one['reason']}"
    for incident in answer["incidents"]:
        names = ", ".join(incident["members"])
        yield f"incident {incident['incident']}, {span(incident['duration_seconds'])}: {names}"


def _head(answer: Mapping[str, Any]) -> None:
    for number, said in enumerate(_headlines(answer)):
        screen.line(said, style="red" if said.startswith(("HOLD", "NOTIFIER")) else None if number else "bright_white")


def _rows(answer: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    for line in answer["services"]:
        checked = ago(line["last_check"], answer["time"])
        latency = line["latency_seconds"]
        yield (
            line["service"],
            line["state"] if line["watched"] else "unwatched",
            span(line["since_seconds"]) if line["since"] else "",
            _reason(line),
            "" if checked is None else "just now" if checked < 1.0 else f"{span(checked)} ago",
            span(latency) if latency is not None else "",
            _detail(line),
        )


def _reason(line: Mapping[str, Any]) -> str:
    if line["under_way"]:
        return _doing(line["under_way"])
    if not line["watched"]:
        return f"was {line['state']}"
    return "on probation" if line["probation"] else str(line["reason"])


def _doing(under_way: Mapping[str, Any]) -> str:
    """Say what is being done: `restart, 2 of 3, for 12s`."""
    word = "" if under_way["phase"] == "acting" else "verifying "
    place = f", {under_way['step'] + 1} of {under_way['steps']}" if under_way["steps"] > 1 else ""
    return f"{word}{under_way['action']}{place}, for {span(under_way['seconds'])}"


def _detail(line: Mapping[str, Any]) -> str:
    """Say why it is held, and what is wrong with it: the one does not hide the other."""
    known = line["detail"]
    seen = line["summary"] if line["state"] != "healthy" or not known else ""
    return "; ".join(dict.fromkeys(part for part in (known, seen) if part and not (part is seen and part in known)))


# -- one service ------------------------------------------------------------------------------------------------------


@click.command(help=TABLE["service"].about)
@click.argument("service")
@json_option
def service(service: str, as_json: bool) -> None:
    """Show everything about a service."""
    answer = Asked.here().ask("service", service=service)
    if as_json:
        screen.document(answer)
        return
    # What is so comes before what was asked for.
    for key, value in (*_flat({**answer, "policy": None}), *_flat({"policy": answer["policy"]})):
        screen.line(f"{key:<44} {value}")


def _flat(answer: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each single value of an answer under its path."""
    if isinstance(answer, Mapping) and answer:
        for key, value in answer.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(answer, list) and any(isinstance(item, (Mapping, list)) for item in answer):
        for place, value in enumerate(answer):
            yield from _flat(value, f"{path}[{place}]")
    elif answer not in (None, "", [], {}):
        items = answer if isinstance(answer, list) else [answer]
        yield path, ", ".join(f"{item:.6g}" if isinstance(item, float) else str(item) for item in items)


@click.command(help=TABLE["explain"].about)
@click.argument("service")
@json_option
def explain(service: str, as_json: bool) -> None:
    """Show every guard in order, and what it says now."""
    answer = Asked.here().ask("explain", service=service)
    if as_json:
        screen.document(answer)
        return
    reason = f", {answer['reason']}" if answer["reason"] else ""
    detail = f" ({answer['detail']})" if answer["detail"] else ""
    screen.line(f"{service} is {answer['state']}{reason}{detail}", style=screen.STYLES.get(answer["state"]))
    screen.line(answer["verdict"])
    if answer["under_way"]:
        screen.line(f"Under way: {_doing(answer['under_way'])}")
    if answer["next_step"]:
        screen.line(f"Next step: {answer['next_step']}")
    if answer["guards"]:
        screen.line()
        rows = [
            ("holds", guard["guard"], _said_by(guard), guard["about"])
            if guard["holds"]
            else ("lets", guard["guard"], "", "")
            for guard in answer["guards"]
        ]
        screen.table(("", "GUARD", "SAYS", "ASKS"), rows, empty="")


def _said_by(guard: Mapping[str, Any]) -> str:
    until = f"until {clock(guard['until'])}" if guard["until"] else ""
    return ", ".join(part for part in (guard["reason"], guard["detail"], until) if part)


# -- what happened ----------------------------------------------------------------------------------------------------


@click.command(help=TABLE["incidents"].about)
@click.option("--service", help="Only those this service was in.")
@click.option("--open", "only_open", is_flag=True, help="Only those still open.")
@limit_option
@json_option
def incidents(service: str | None, only_open: bool, limit: int, as_json: bool) -> None:
    """List incidents."""
    answer = Asked.here().ask("incidents", service=service, open=only_open or None, limit=limit)
    if as_json:
        screen.document(answer)
        return
    rows = [
        (
            one["incident"],
            one["root"],
            clock(one["opened"]),
            "open" if one["open"] else f"merged into {one['merged_into']}" if one["merged_into"] else "closed",
            span(one["duration_seconds"]),
            len(one["actions"]),
            ", ".join(one["members"]),
        )
        for one in answer
    ]
    screen.table(("NO", "ROOT", "OPENED", "STATE", "LASTED", "ACTIONS", "SERVICES"), rows, empty="no incidents")


@click.command(help=TABLE["incident"].about)
@click.argument("number", type=click.IntRange(1))
@json_option
def incident(number: int, as_json: bool) -> None:
    """Show one incident."""
    answer = Asked.here().ask("incident", number=number)
    if as_json:
        screen.document(answer)
        return
    state = "open" if answer["open"] else f"closed after {span(answer['duration_seconds'])}: {answer['because']}"
    screen.line(f"incident {number}, {answer['root']}, opened {clock(answer['opened'])}, {state}")
    if answer["detection_seconds"] is not None:
        screen.line(f"from the first failure to its confirmation: {span(answer['detection_seconds'])}")
    screen.line()
    _records(answer["timeline"])


@click.command(help=TABLE["history"].about)
@click.argument("service", required=False)
@limit_option
@json_option
def history(service: str | None, limit: int, as_json: bool) -> None:
    """List records."""
    answer = Asked.here().ask("history", service=service, limit=limit)
    if as_json:
        screen.document(answer)
    else:
        _records(answer)


def _records(records: Sequence[Mapping[str, Any]]) -> None:
    rows = [(clock(record["time"]), record["service"] or "", sentence(record)) for record in records]
    screen.table(("TIME", "SERVICE", "WHAT"), rows, empty="nothing is recorded")


@click.command(help=TABLE["results"].about)
@click.argument("service")
@click.option("--last", callback=seconds, help="Only the last so many seconds, or 2h. Else an hour.")
@limit_option
@json_option
def results(service: str, last: float | None, limit: int, as_json: bool) -> None:
    """List results of checks."""
    answer = Asked.here().ask("results", service=service, window=last, limit=limit)
    if as_json:
        screen.document(answer)
        return
    rows = [
        (clock(one["time"]), one["verdict"], one["cause"] or "", span(one["latency_seconds"]), one["summary"])
        for one in answer
    ]
    screen.table(("TIME", "VERDICT", "CAUSE", "LATENCY", "SUMMARY"), rows, empty="no result is kept")


# -- lists ------------------------------------------------------------------------------------------------------------


@click.command(help=TABLE["alerts"].about)
@click.option("--all", "every", is_flag=True, help="Resolved ones too.")
@limit_option
@json_option
def alerts(every: bool, limit: int, as_json: bool) -> None:
    """List alerts."""
    answer = Asked.here().ask("alerts", all=every or None, limit=limit)
    if as_json:
        screen.document(answer)
        return
    rows = [
        (
            one["severity"],
            one["service"] or "the fleet",
            one["rule"],
            clock(one["opened"]),
            clock(one["resolved"]) or ("acknowledged" if one["acknowledged_by"] else "open"),
            one["text"],
        )
        for one in answer
    ]
    screen.table(("SEVERITY", "SERVICE", "RULE", "OPENED", "RESOLVED", "TEXT"), rows, empty="no alerts")


@click.command(help=TABLE["approvals"].about)
@json_option
def approvals(as_json: bool) -> None:
    """List what waits for a person."""
    answer = Asked.here().ask("approvals")
    if as_json:
        screen.document(answer)
        return
    rows = [(one["service"], one["action"], clock(one["asked"]), clock(one["skipped_at"]) or "never") for one in answer]
    screen.table(("SERVICE", "STEP", "ASKED", "SKIPPED AT"), rows, empty="nothing waits for a person")


@click.command(help=TABLE["suppressions"].about)
@json_option
def suppressions(as_json: bool) -> None:
    """List suppressions."""
    answer = Asked.here().ask("suppressions")
    if as_json:
        screen.document(answer)
        return
    rows = [
        (
            one["suppression"],
            one["binds"],
            "everything" if one["everything"] else ", ".join(one["services"]),
            clock(one["until"]) or "it is lifted",
            one["actor"],
            one["reason"],
        )
        for one in answer
    ]
    screen.table(("ID", "BINDS", "SERVICES", "UNTIL", "BY", "REASON"), rows, empty="nothing is suppressed")


@click.command(help=TABLE["statistics"].about)
@click.argument("service", required=False)
@click.option("--last", callback=seconds, help="Only the last so many seconds, or 30d. Else all that is recorded.")
@json_option
def statistics(service: str | None, last: float | None, as_json: bool) -> None:
    """Show numbers from recorded data."""
    answer = Asked.here().ask("statistics", service=service, window=last)
    if as_json:
        screen.document(answer)
        return
    together = [("all together", answer["fleet"])] if len(answer["services"]) > 1 and "fleet" in answer else []
    rows = [
        (
            name,
            _percent(one["uptime_percentage"]),
            _percent(None if one["coverage"] is None else 100.0 * one["coverage"]),
            one["incidents"],
            one["recovered"],
            one["healed_by_itself"],
            ", ".join(f"{action} {its['success']}/{its['taken']}" for action, its in one["actions"].items()),
            span(one["median_recovery_seconds"]) or "no data",
            span(one["p90_recovery_seconds"]) or "no data",
        )
        for name, one in (*answer["services"].items(), *together)
    ]
    headers = ("SERVICE", "UP", "SEEN", "FAILED", "RECOVERED", "HEALED ITSELF", "HELPED", "MEDIAN", "90 % WITHIN")
    screen.table(headers, rows, empty="nothing is recorded yet")


def _percent(share: float | None) -> str:
    """Return a percentage that is never rounded up to a hundred."""
    if share is None:
        return "no data"
    return f"{floor(share * 1000) / 1000:g} %"


@click.command(help=TABLE["graph"].about)
@json_option
def graph(as_json: bool) -> None:
    """Show who depends on whom."""
    answer = Asked.here().ask("graph")
    if as_json:
        screen.document(answer)
        return
    rows = [(edge["service"], edge["kind"], " or ".join(edge["needs"])) for edge in answer["edges"]]
    screen.table(("SERVICE", "KIND", "NEEDS"), rows, empty="nobody depends on anybody")


@click.command(help=TABLE["health"].about)
@json_option
def health(as_json: bool) -> None:
    """Show how selfheal itself is."""
    answer = Asked.here().ask("health")
    if as_json:
        screen.document(answer)
        return
    for key, value in _flat(answer):
        screen.line(f"{key:<24} {value}")


@click.command(help=f"{TABLE['metrics'].about} Version 0.0.4, as Prometheus reads it.")
def metrics() -> None:
    """Print metrics."""
    click.echo(Asked.here().ask("metrics"), nl=False)
