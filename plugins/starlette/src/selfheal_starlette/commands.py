"""`selfheal token`: make, list and revoke the tokens of the HTTP API."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from selfheal.config import duration
from selfheal.hookspecs import STATE_DIR
from selfheal.requests import Scope
from selfheal_starlette.tokens import FILE, Token, TokenFile, TokensUnusable


def _file() -> TokenFile:
    folder: Path = click.get_current_context().meta[STATE_DIR]()
    return TokenFile(folder / FILE)


def _expiry(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of text such as `90d`."""
    if value is None:
        return None
    try:
        return duration(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem), ctx, param) from None


@click.group("token")
def token() -> None:
    """Tokens of the HTTP API: who may read, and who may act."""


@token.command("create")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=Scope.READ.value,
    show_default=True,
    help="What it may do; each includes those before it.",
)
@click.option("--service", "services", multiple=True, help="A service it may act on; again for more. Without, all.")
@click.option("--expires", callback=_expiry, help="How long it is good for, as 90d. Without, until it is revoked.")
@click.option("--json", "as_json", is_flag=True, help="Print the token and what is kept of it as JSON.")
def create(name: str, scope: str, services: tuple[str, ...], expires: float | None, as_json: bool) -> None:
    """Make a token for NAME, and show it this once."""
    if services and scope == Scope.READ.value:
        raise click.UsageError("--service limits what a token acts on, and with --scope read it acts on nothing")
    if scope == Scope.ADMIN.value and services:
        raise click.UsageError("--service limits a token to services, and the scope admin is for the whole fleet")
    until = time.time() + expires if expires is not None else None
    try:
        text, made = _file().create(name, Scope(scope), services=services or None, expires=until)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    if as_json:
        click.echo(json.dumps({"token": text, **_public(made)}))
        return
    click.echo(text)
    click.echo(
        f"This is shown once. Send it as `Authorization: Bearer TOKEN`; revoke it by its id, {made.id}.", err=True
    )


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def list_(as_json: bool) -> None:
    """Show the tokens there are. Their text is not kept, and so not shown."""
    tokens = _file().read()
    if as_json:
        click.echo(json.dumps([_public(one) for one in tokens]))
        return
    if not tokens:
        click.echo("no tokens: reading is allowed from this machine, and nothing is changed over HTTP")
    for one in tokens:
        shape = _public(one)
        limits = ", ".join(one.services) if one.services is not None else "every service"
        end = f"until {shape['expires']}" if shape["expires"] else "until revoked"
        if one.over(time.time()):
            end = f"expired {shape['expires']}"
        click.echo(f"{one.id}  {one.scope.value:<8} {one.name}  ({limits}; {end})")


@token.command("revoke")
@click.argument("id_", metavar="ID")
def revoke(id_: str) -> None:
    """Let the token of this ID be no token any more; it takes effect at once, without a restart."""
    gone = _file().revoke(id_)
    if gone is None:
        raise TokensUnusable(f"there is no token with the id {id_}: `selfheal token list` shows them")
    click.echo(f"revoked {gone.id} ({gone.name})")


def _public(one: Token) -> dict[str, object]:
    """Return a token without its hash."""
    return {key: value for key, value in one.shape().items() if key != "hash"}
