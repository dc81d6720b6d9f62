"""The commands that do without a running selfheal: run one, look once, judge a file, list plugins, show it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from selfheal.cli import complain, screen
from selfheal.core.graph import no_service
from selfheal.core.messages import CheckFinished
from selfheal.core.model import CANARY_PREFIX, Verdict
from selfheal.errors import ConfigurationError, Problem, RequestRefused
from selfheal.words import counted, span

file_argument = click.argument("file", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")


@click.command()
@file_argument
@click.option("--http", metavar="HOST:PORT", help="Serve the API and the dashboard there: the same as an [http] table.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="SELFHEAL_LOG_FORMAT",
    help="How the log on standard error is written; also SELFHEAL_LOG_FORMAT.",
)
@click.pass_obj
def run(state_dir: Path | None, file: Path, http: str | None, log_format: str) -> None:
    """Watch the services of a FILE, and repair what has really failed, until told to stop.

    SIGTERM and Ctrl-C stop it in order, SIGHUP lets it read the file again. One selfheal runs for each state_dir; a
    second one is refused.
    """
    from selfheal import daemon

    daemon.run(file, state_dir=state_dir, http=http, log_format=log_format)


# -- looking once -----------------------------------------------------------------------------------------------------


@click.command()
@file_argument
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@json_option
@click.pass_obj
def check(state_dir: Path | None, file: Path, services: tuple[str, ...], as_json: bool) -> None:
    """Read a FILE and look at each of its services once, or only at those named. Nothing is started or repaired.

    It ends with 1 when a check fails. A program that selfheal would run itself fails here while nobody runs it.
    """
    configuration, roster = _roster(file, state_dir, services)
    # A workload may keep its own files in the state_dir: not as whoever looks here first, perhaps another user.
    inspect = configuration.state_dir is not None and configuration.state_dir.is_dir()
    found = _look(roster, services or tuple(roster.entries), inspect)
    if as_json:
        screen.document([_shape(one) for one in found])
    else:
        rows = [
            (
                one.service,
                one.result.verdict.value,
                one.result.cause.value if one.result.cause is not None else "",
                span(one.ended - one.started),
                one.instance.run.value if one.instance is not None else "",
                one.result.summary,
            )
            for one in found
        ]
        screen.table(("SERVICE", "VERDICT", "CAUSE", "TOOK", "WORKLOAD", "SUMMARY"), rows, empty="no services")
    if any(one.result.verdict is Verdict.FAILING for one in found):
        click.get_current_context().exit(1)


def _roster(file: Path, state_dir: Path | None, services: Sequence[str]) -> tuple[Any, Any]:
    """Return the configuration of a file and its services with their plugin objects, as `run` would have them."""
    from selfheal.shell.homes import settled
    from selfheal.shell.roster import Roster

    configuration = settled(file, state_dir=state_dir)
    _warn(configuration.warnings)
    roster = Roster.of(
        configuration.services,
        configuration.canaries,
        limits=configuration.limits,
        name=configuration.name,
        seed=0,
        key=b"",
        callbacks={},
        actions=configuration.tables.actions,
    )
    if unknown := [name for name in services if name not in roster.entries]:
        raise RequestRefused("unknown_service", no_service(unknown[0], roster.entries))
    return configuration, roster


@click.command()
@file_argument
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@json_option
@click.pass_obj
def doctor(state_dir: Path | None, file: Path, services: tuple[str, ...], as_json: bool) -> None:
    """Prove that the user who asks could do what a FILE says, without doing any of it, and name what is lacking.

    Run it as the user that selfheal runs as. Secrets are read, programs looked for, rights asked for; each thing that
    lacks comes with its remedy. It ends with 1 when anything does.
    """
    import anyio

    from selfheal.shell.once import examine

    configuration, roster = _roster(file, state_dir, services)
    # Who asks about one service does not ask about who is told of it.
    notifiers = {} if services else configuration.notifiers
    found = anyio.run(partial(examine, roster, services or tuple(roster.entries), notifiers=notifiers))
    problems = [problem for some in found.values() for problem in some]
    if as_json:
        screen.document([attrs.asdict(problem) for problem in problems])
    else:
        for problem in problems:
            complain(str(problem))
        if not problems:
            them = counted(len(found) - len(notifiers), "service")
            them += f" and {counted(len(notifiers), 'notifier')}" if notifiers else ""
            screen.line(f"{file}: nothing stands in the way of {them}, as far as it can be proven")
    if problems:
        click.get_current_context().exit(1)


def _look(roster: Any, names: Sequence[str], inspect: bool) -> list[CheckFinished]:
    import anyio

    from selfheal.shell.once import look

    found: dict[str, CheckFinished] = {}
    told = partial(look, roster, names, lambda finished: found.setdefault(finished.service, finished), inspect=inspect)
    anyio.run(told)
    return [found[name] for name in names]


def _shape(one: CheckFinished) -> Mapping[str, Any]:
    result = one.result
    return {
        "service": one.service.removeprefix(CANARY_PREFIX),
        "canary": one.service.startswith(CANARY_PREFIX),
        "verdict": result.verdict.value,
        "cause": result.cause.value if result.cause is not None else None,
        "summary": result.summary,
        "details": dict(result.details),
        "latency_seconds": one.ended - one.started,
        "workload": one.instance.run.value if one.instance is not None else None,
    }


# -- the file ---------------------------------------------------------------------------------------------------------


@click.group()
def config() -> None:
    """Look at a configuration file."""


@config.command("check")
@file_argument
@json_option
def config_check(file: Path, as_json: bool) -> None:
    """Name everything that is wrong with a FILE, and everything doubtful. Nothing is started, nobody is asked."""
    from selfheal.config import check as judged

    report = judged(file)
    if as_json:
        shown = {
            "problems": [attrs.asdict(problem) for problem in report.problems],
            "warnings": [attrs.asdict(problem) for problem in report.warnings],
            "services": [service.name for service in report.configuration.services] if report.configuration else [],
        }
        screen.document(shown)
    else:
        _warn(report.warnings)
        for problem in report.problems:
            complain(str(problem))
        if not report.problems and report.configuration is not None:
            c = report.configuration
            parts = ((c.canaries, "canary"), (c.notifiers, "notifier"), (c.frontends, "frontend"))
            also = [counted(len(things), thing) for things, thing in parts if things]
            screen.line(f"{file}: {', '.join([counted(len(c.services), 'service'), *also])}; nothing is wrong")
    if report.problems:
        click.get_current_context().exit(2)


def _warn(warnings: Sequence[Problem]) -> None:
    for warning in warnings:
        screen.note(f"warning: {warning}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@json_option
def plugins(file: Path | None, as_json: bool) -> None:
    """List plugins: what each offers, or why it does not. With a FILE, as that file lets them in."""
    from selfheal.config.read import read
    from selfheal.loading import load_plugins

    allowed = read(file).get("fleet", {}).get("plugins") if file is not None else None
    if allowed is not None and not isinstance(allowed, list):
        raise ConfigurationError([Problem(path="fleet.plugins", message="is not a list of names")])
    found = load_plugins(allowed).plugins
    if as_json:
        screen.document([attrs.asdict(plugin) for plugin in found])
        return
    rows = [
        (
            plugin.name,
            plugin.origin,
            "loaded" if plugin.loaded else "disabled",
            "; ".join(part for part in (plugin.reason, ", ".join(plugin.provides)) if part),
        )
        for plugin in found
    ]
    screen.table(("PLUGIN", "FROM", "STATE", "OFFERS"), rows, empty="no plugins")


@click.command()
@click.option(
    "--fast",
    is_flag=True,
    help="The same in half a minute, with nobody asked; exits 1 if anything went otherwise than it should.",
)
def demo(fast: bool) -> None:
    """Run small services on this machine, break them, and show what is decided and why.

    Nothing outside its temporary folder is touched. It ends with an error when a law was broken.
    """
    from selfheal.cli.demo import main as shown

    click.get_current_context().exit(shown(fast=fast))
