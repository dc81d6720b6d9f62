"""`audit`: what people asked for, and whether the journal is what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click

from selfheal.cli import screen
from selfheal.cli.asked import Asked, home
from selfheal.journal import Verification
from selfheal.journal import accept as take_as_it_is
from selfheal.journal.audit import verify as verified
from selfheal.words import clock, counted, sentence


class Shown(click.Group):
    """A group whose first command is meant where none is named: `audit api` is `audit show api`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name in."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


@click.group(cls=Shown)
def audit() -> None:
    """What people asked for, and what they were answered; and whether the journal is whole.

    `selfheal audit SERVICE` is short for `selfheal audit show SERVICE`.
    """


@audit.command()
@click.argument("service", required=False)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, help="At most so many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as they are.")
def show(service: str | None, limit: int, as_json: bool) -> None:
    """Show acts of people and what was answered, newest first."""
    answer = Asked.here().ask("audit", service=service, limit=limit)
    if as_json:
        screen.document(answer)
        return
    rows = [(clock(record["time"]), record["service"] or "", sentence(record)) for record in answer]
    screen.table(("TIME", "SERVICE", "WHO ASKED FOR WHAT"), rows, empty="nobody has asked for anything")


@audit.command()
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify(as_json: bool) -> None:
    """Read the whole journal and name every row that is not what was written.

    It works while selfheal runs. The seal it prints, kept elsewhere, proves later that nothing was changed before it.
    """
    found = verified(_files())
    if as_json:
        screen.document(_plain(found))
    else:
        _told(found)
    if not found.well:
        click.get_current_context().exit(1)


@audit.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def accept(yes: bool) -> None:
    """Take the database as it is: for who knows why journal, marker and head do not fit, such as a restored copy.

    It changes nothing in the database, so a changed row goes on being reported. selfheal must not run.
    """
    files = _files()
    if not yes:
        click.confirm(f"Take {files.database} as it is, whatever happened to it?", abort=True, err=True)
    _told(take_as_it_is(files.database))


def _files() -> Any:
    from selfheal.journal import Files

    return Files(database=home(click.get_current_context().find_object(Path)).journal)


def _plain(found: Verification) -> dict[str, Any]:
    return {**attrs.asdict(found), "well": found.well}


def _told(found: Verification) -> None:
    for fault in found.faults:
        screen.line(str(fault), style="red")
    word = "is what was written" if found.well else f"has {counted(len(found.faults), 'fault')}"
    screen.line(f"{found.records} records in {found.batches} batches: the journal {word}")
    if found.well:
        screen.line(f"seal {found.seal}")
