"""The commands that change something. Each is recorded with who and why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from selfheal.cli import screen
from selfheal.cli.asked import act, seconds
from selfheal.requests import OVERRIDES, TABLE
from selfheal.words import span

F = TypeVar("F", bound=Callable[..., Any])


def _reason(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """Return the reason; on a terminal it is asked for."""
    if value is None and sys.stdin.isatty():
        value = click.prompt("Reason", err=True)
    if not value or not value.strip():
        raise click.UsageError("say why, with --reason; it is recorded", ctx)
    return value.strip()


def _service_completion(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of services that begin so, for the completion of shells."""
    from selfheal.cli.asked import Asked
    from selfheal.errors import SelfhealError

    try:
        names = [line["service"] for line in Asked.here().ask("status")["services"]]
    except SelfhealError:
        return []
    return [name for name in names if name.startswith(incomplete)]


reason_option = click.option("--reason", callback=_reason, help="Why; it is recorded. Asked for on a terminal.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer as it came: the record.")
service_argument = click.argument("service", shell_complete=_service_completion)


NOT_STORED: Final = 5
"""The exit code of an act that is in force and could not be stored."""


def _said(answer: Any, as_json: bool, text: str = "") -> None:
    """Print the answer to an act; one that could not be stored must not look like one that was."""
    if as_json:
        screen.document(answer)
    else:
        about = f" {answer['service']}" if answer.get("service") else ""
        screen.line(text or f"{answer['action']}{about}: {answer['reason']['detail'] or 'accepted'}")
    if answer.get("volatile"):
        screen.note(
            "selfheal: not stored yet, for the journal cannot be written: it holds while this selfheal runs, "
            "and is lost if that ends first. `selfheal status` says why"
        )
        click.get_current_context().exit(NOT_STORED)


def _on_service(name: str, request: str, about: str) -> click.Command:
    """Return the command of an act on one service."""

    @click.command(name, help=about)
    @service_argument
    @reason_option
    @json_option
    def command(service: str, reason: str, as_json: bool) -> None:
        _said(act(request, service=service, reason=reason), as_json)

    return command


enable = _on_service("enable", "enable", TABLE["enable"].about)
disable = _on_service("disable", "disable", f"{TABLE['disable'].about} It stays off until somebody enables it.")


def _on_question(name: str) -> click.Command:
    """Return the command that answers the question of a step."""

    @click.command(name, help=TABLE[name].about)
    @service_argument
    @click.option("--action", help="The step that is meant, as `approvals` shows it: refused if another waits by now.")
    @reason_option
    @json_option
    def command(service: str, action: str | None, reason: str, as_json: bool) -> None:
        _said(act(name, service=service, action=action, reason=reason), as_json)

    return command


approve = _on_question("approve")
refuse = _on_question("refuse")
ack = _on_service("ack", "acknowledge", TABLE["acknowledge"].about)


@click.command(help=TABLE["recover"].about)
@service_argument
@click.option(
    "--override",
    type=click.Choice(OVERRIDES),
    multiple=True,
    help="A guard to pass as well; may be given more than once.",
)
@reason_option
@json_option
def recover(service: str, override: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Recover a service now."""
    _said(act("recover", service=service, override=override, reason=reason), as_json)


@click.command(help=TABLE["initialize"].about)
@click.argument("service", required=False, shell_complete=_service_completion)
@click.option("--everything", is_flag=True, help="The whole fleet; must be said.")
@reason_option
@json_option
def initialize(service: str | None, everything: bool, reason: str, as_json: bool) -> None:
    """Look afresh."""
    _meant((service,) if service is not None else (), (), everything)
    _said(act("initialize", service=service, everything=everything, reason=reason), as_json)


def _selected(command: F) -> F:
    """Add what says which services are meant."""
    named = click.argument("named", nargs=-1, metavar="[SERVICE]...", shell_complete=_service_completion)
    services = click.option(
        "--services", multiple=True, shell_complete=_service_completion, help="A service; the same as naming it."
    )
    everything = click.option("--everything", is_flag=True, help="The whole fleet; must be said.")
    return named(services(everything(command)))


def _meant(named: tuple[str, ...], services: tuple[str, ...], everything: bool) -> tuple[str, ...]:
    """Return the services that are meant; none where it is the whole fleet."""
    meant = tuple(dict.fromkeys((*named, *services)))
    if bool(meant) == everything:
        raise click.UsageError("name the services that are meant, or say --everything; and not both")
    return meant


def _goes_on(names: tuple[str, ...]) -> None:
    """Say which actions are under way: what is suppressed begins no other, and lets these end."""
    from selfheal.cli.asked import Asked

    for line in Asked.here().ask("status")["services"]:
        under_way = line["under_way"]
        if under_way and under_way["phase"] == "acting" and (not names or line["service"] in names):
            about = f"{line['service']}: {under_way['action']} is under way, for {span(under_way['seconds'])}"
            screen.note(f"{about}, and is not stopped by this")


def _suppressing(name: str) -> click.Command:
    """Return the command of an act that suppresses something for a while."""

    @click.command(name, help=TABLE[name].about)
    @_selected
    @click.option("--duration", callback=seconds, help="When it ends by itself: seconds, or 1h30m. Else when lifted.")
    @reason_option
    @json_option
    def command(
        named: tuple[str, ...],
        services: tuple[str, ...],
        everything: bool,
        duration: float | None,
        reason: str,
        as_json: bool,
    ) -> None:
        meant = _meant(named, services, everything)
        answer = act(name, services=meant, everything=everything, duration=duration, reason=reason)
        about = "everything" if everything else ", ".join(meant)
        id_ = answer["reason"]["detail"]
        if name != "silence" and not as_json:
            _goes_on(meant)
        _said(answer, as_json, f"{name}: {about}. End it with: selfheal lift {id_} --reason …")

    return command


pause = _suppressing("pause")
maintenance = _suppressing("maintenance")
silence = _suppressing("silence")


@click.command(help=TABLE["resume"].about)
@_selected
@reason_option
@json_option
def resume(named: tuple[str, ...], services: tuple[str, ...], everything: bool, reason: str, as_json: bool) -> None:
    """End pauses."""
    meant = _meant(named, services, everything)
    _said(act("resume", services=meant, everything=everything, reason=reason), as_json)


@click.command(help=TABLE["lift"].about)
@click.argument("suppression")
@reason_option
@json_option
def lift(suppression: str, reason: str, as_json: bool) -> None:
    """End one suppression."""
    _said(act("lift", suppression=suppression, reason=reason), as_json)


@click.command(help=TABLE["release"].about)
@click.argument("hold", type=click.Choice(["storm", "canary", "doubt", "fleet"]))
@reason_option
@json_option
def release(hold: str, reason: str, as_json: bool) -> None:
    """End a hold."""
    _said(act("release", hold=hold, reason=reason), as_json)


@click.command(help=f"{TABLE['heartbeat'].about} For a job to call when it has done its work.")
@service_argument
def heartbeat(service: str) -> None:
    """Say that a service lives."""
    act("heartbeat", service=service, reason=None)
