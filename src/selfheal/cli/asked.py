"""Where a command gets its answer: from the selfheal that runs, or, for a query, from the journal it left."""

from __future__ import annotations

from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import attrs
import click

from selfheal.cli import screen
from selfheal.config import duration
from selfheal.control import TIMEOUT, Question, Silent, Unreachable, alive, call
from selfheal.errors import ControlError
from selfheal.shell.homes import Home, usual_homes
from selfheal.shell.reading import Onlooker
from selfheal.views import LIVE
from selfheal.words import span


def home(state_dir: Path | None) -> Home:
    """Return where to ask. Raises `ControlError` when no place is named and none, or several, suggest themselves."""
    if state_dir is not None:
        return Home.at(state_dir)
    homes = usual_homes()
    answering = [one for one in homes if alive(one.socket)]
    found = answering or homes
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(str(one.folder) for one in found)
        raise ControlError(f"there is more than one selfheal here ({places}): say which with --state-dir")
    raise ControlError("no selfheal was found in the usual places: say where its state_dir is, with --state-dir")


def _elsewhere() -> str:
    """Return where else one may be, for who has not said where to ask."""
    if click.get_current_context().find_object(Path) is not None:
        return ""
    return " (one whose file names another state_dir is asked with --state-dir, or SELFHEAL_STATE_DIR)"


WHOLE: Final = 60.0
"""Seconds a command waits for what is counted from a long journal: who typed it rather waits than sees a part."""


BRIEFLY: Final = 5.0
"""Seconds a command waits for what a selfheal that turns answers at once; then the journal is asked."""


@attrs.define
class Asked:
    """Asks queries of one home, and says on standard error, once, when nobody answers but the journal."""

    home: Home
    onlooker: Onlooker | None = None

    @classmethod
    def here(cls) -> Asked:
        """Return the one of the command that runs."""
        return cls(home(click.get_current_context().find_object(Path)))

    def ask(self, name: str, **parameters: Any) -> Any:
        """Return the answer to a query; parameters that are None were not given."""
        given = {key: value for key, value in parameters.items() if value is not None}
        try:
            patience = BRIEFLY if name in LIVE and name != "metrics" else TIMEOUT
            answer = call(self.home.socket, Question(request=name, parameters=given), timeout=patience)
        except Unreachable as nobody:
            return self._from_journal(f"{nobody}{_elsewhere()}", name, given)
        except Silent as frozen:
            return self._from_journal(str(frozen), name, given)
        self.close()
        return answer

    def close(self) -> None:
        """Let go of the journal."""
        if self.onlooker is not None:
            self.onlooker.close()
            self.onlooker = None

    def _from_journal(self, nobody: str, name: str, given: dict[str, Any]) -> Any:
        if self.onlooker is None:
            if not self.home.journal.exists():
                raise ControlError(f"{nobody}, and there is no journal {self.home.journal} either")
            self.onlooker = Onlooker(self.home.journal)
            age = self.onlooker.age()
            last = f"its last entry is {span(age)} old" if age is not None else "it is empty"
            screen.note(f"{nobody}. This is from the journal; {last}.")
        return self.onlooker.answer(name, given, patience=WHOLE)


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of an option that is a number, or text such as `1h30m`."""
    if value is None:
        return None
    try:
        return float(value) if value.replace(".", "", 1).isdigit() else duration(value)
    except ValueError as problem:
        raise click.BadParameter(str(problem), ctx, param) from None


def act(name: str, *, reason: str | None, **parameters: Any) -> Any:
    """Ask for an act and return its answer. Raises `ControlError` where nobody runs who could do it."""
    place = home(click.get_current_context().find_object(Path))
    given = {key: value for key, value in parameters.items() if value not in (None, (), False)}
    question = Question(request=name, parameters=given, reason=reason, key=token_hex(8) if reason else None)
    try:
        return call(place.socket, question)
    except Unreachable as nobody:
        raise Unreachable(f"{nobody}{_elsewhere()}. Nothing was done; start it with `selfheal run FILE`") from nobody
