"""What the viewer of the demo sees: lines in a pipe, a live table under them on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from selfheal.core.model import Notification
from selfheal.core.records import Answered, Ended, HoldChanged, Intended, Moved
from selfheal.shell.stream import Told

if TYPE_CHECKING:
    from selfheal.cli.demo import Verdicts
    from selfheal.supervisor import Supervisor

COLOURS: Final = {
    "healthy": "green",
    "degraded": "yellow",
    "unhealthy": "dark_orange",
    "failed": "red",
    "recovering": "cyan",
    "unknown": "dim",
    "disabled": "dim",
}


def line_of(told: Told) -> str:
    """Return a record in words, or an empty text for what a viewer need not see."""
    record = told.record
    if isinstance(record, Moved):
        after, before = record.after, record.before
        if after.state is not before.state:
            return f"{record.service:<7} {before.state.value} -> {after.state.value}  ({record.because})"
        if after.reason != before.reason and after.reason:
            return f"{record.service:<7} {after.state.value}, {after.reason}" + (
                f"  ({after.detail})" if after.detail else ""
            )
    elif isinstance(record, Intended):
        who = f" for {record.actor}" if record.actor else ""
        asked = ", ".join(answer.guard for answer in record.guards if answer.passed_by)
        return f"{record.service:<7} {record.action}{who}: every guard lets it" + (
            f" (forced past {asked})" if asked else ""
        )
    elif isinstance(record, Ended):
        detail = f"  ({record.detail})" if record.detail else ""
        return f"{record.service:<7} the action ended: {record.settled.value}{detail}"
    elif isinstance(record, HoldChanged):
        return f"fleet   hold {record.hold} {'on' if record.on else 'off'}: {record.evidence}"
    elif isinstance(record, Answered):
        return f"{record.service:<7} {record.actor}: {record.act} ({record.reason})"
    return ""


def seconds(value: float | None) -> str:
    """Return seconds for people."""
    return "-" if value is None else f"{value:.2f} s"


class Screen:
    """Plain lines, one for each thing that happens."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def say(self, text: str, style: str = "") -> None:
        """Print a line."""
        del style
        print(text, flush=True)  # noqa: T201  # a screen prints

    def scene(self, title: str) -> None:
        """Announce what happens next."""
        self.say("")
        self.say(f"== {title}", "bold")

    def record(self, told: Told) -> None:
        """Show a record."""
        line = line_of(told)
        if line:
            state = told.record.after.state.value if isinstance(told.record, Moved) else ""
            self.say(f"  {time.monotonic() - self.began:6.2f}  {line}", COLOURS.get(state, ""))

    def told(self, notification: Notification) -> None:
        """Show a message that people get. Called on a thread of the plugins."""
        severity = notification.severity.value
        self.say(f"          you are told ({severity}, {notification.phase.value}): {notification.title}", "magenta")

    def verdict(self, verdict: Verdicts) -> None:
        """Show what a scene came to."""
        figures = f"noticed after {seconds(verdict.detect)}, well again after {seconds(verdict.recover)}"
        self.say(
            f"   {'WRONG' if verdict.wrong else 'as it should be'}: {figures}", "red" if verdict.wrong else "green"
        )
        for problem in verdict.wrong:
            self.say(f"     ! {problem}", "red")

    async def run(self, supervisor: Supervisor) -> None:
        """Keep what is live on the screen up to date, until cancelled."""

    async def choose(self, options: list[str]) -> int | None:
        """Let the viewer choose the next fault; None ends the demo."""
        self.say("")
        for number, option in enumerate(options, 1):
            self.say(f"  {number}  {option}")
        try:
            answer = await anyio.to_thread.run_sync(input, "which fault (Enter: the first, q: to the report)? ")
        except EOFError:
            return None
        answer = answer.strip()
        if not answer:
            return 0
        return int(answer) - 1 if answer.isdigit() and 1 <= int(answer) <= len(options) else None

    def report(self, verdicts: list[Verdicts]) -> None:
        """Show the final report."""
        self.say("")
        self.say("== report", "bold")
        for verdict in verdicts:
            mark = "WRONG" if verdict.wrong else "ok"
            self.say(f"{mark:<6} {verdict.title}", "red" if verdict.wrong else "green")
            self.say(f"       noticed {seconds(verdict.detect)}, well again {seconds(verdict.recover)}")
            for did in verdict.did or ["nothing was done"]:
                self.say(f"       did:   {did}")
            for spared in verdict.spared:
                self.say(f"       left:  {spared}")
            for problem in verdict.wrong:
                self.say(f"       WRONG: {problem}", "red")
        wrong = sum(bool(verdict.wrong) for verdict in verdicts)
        self.say("")
        took = time.monotonic() - self.began
        end = f"{len(verdicts)} faults, {len(verdicts) - wrong} handled as the laws demand, {took:.0f} s"
        self.say(end, "bold red" if wrong else "bold green")


class RichScreen(Screen):
    """The same lines in colour, over a live table of the services."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        self.console: Any = Console(highlight=False)
        self.live: Any = Live("", console=self.console, refresh_per_second=8, transient=True)

    def say(self, text: str, style: str = "") -> None:
        """Print a line above the table."""
        self.console.print(text, style=style or None, markup=False)

    async def run(self, supervisor: Supervisor) -> None:
        """Draw the table five times a second."""
        with self.live:
            while True:
                self.live.update(self.table(await supervisor.ask("status")))
                await anyio.sleep(0.2)

    def table(self, status: dict[str, Any]) -> Any:
        """Return the services as a table."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for column in ("service", "state", "why", "for", "last check"):
            table.add_column(column)
        for line in status["services"]:
            state = line["state"]
            latency = line["latency_seconds"]
            table.add_row(
                line["service"],
                f"[{COLOURS[state]}]{state}[/]",
                line["reason"] or line["summary"],
                f"{line['since_seconds']:.0f} s",
                f"{line['last_verdict'] or '-'}" + (f" {latency * 1000:.1f} ms" if latency is not None else ""),
            )
        return table

    async def choose(self, options: list[str]) -> int | None:
        """Take the table away while the viewer chooses."""
        self.live.stop()
        try:
            return await super().choose(options)
        finally:
            self.live.start()


def screen_for(*, fast: bool) -> Screen:
    """Return the screen that fits: rich on a terminal where rich is installed, plain lines elsewhere."""
    del fast
    if not sys.stdout.isatty():
        return Screen()
    try:
        return RichScreen()
    except ImportError:
        return Screen()


__all__ = ["Screen", "screen_for"]
