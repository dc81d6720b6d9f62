"""Story files: a few lines of script, played on the simulator, and the timeline of what the engine then decides.

A story is a text that a maintainer can review without reading code::

    A database is killed. It is restarted once, and the repair is proved.

    service db; has a workload; steps reconnect, restart
    service api; needs db; steps restart

    at 60   db breaks unreachable
    at 600  pat pauses everything for 300
    until 900

    ---- what happens …
         0.0  fleet     2 services: db, api
    …

The first paragraph is prose. Then come the fleet, the script, and, below a line that begins with four dashes, the
timeline that was last accepted. `parse` reads it, `Story.play` returns the timeline of now, `Story.written` the whole
file with that timeline in it. `CLAUSES` are the words of a service, `SENTENCES` those of the script; a line that
nobody understands is refused with its number. All times are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

import attrs

from selfheal.core.messages import (
    CancelAction,
    CheckFinished,
    Event,
    FleetProposed,
    JournalChanged,
    Output,
    Requested,
    Settle,
    WatchReported,
    WindowChanged,
    WokeLate,
)
from selfheal.core.model import (
    Backoff,
    Budget,
    Canary,
    Cause,
    Dependency,
    DependencyKind,
    Effect,
    Fleet,
    Limits,
    Policy,
    Priority,
    Purpose,
    Run,
    Step,
    Verdict,
    WhenDisabled,
    Window,
)
from selfheal.ladder import EFFECTS, NEEDS_RUNNING
from selfheal.testing.simulator import Simulator, Watcher
from selfheal.testing.timeline import told
from selfheal.testing.worlds import SimpleWorld

RULE: Final = (
    "---- what happens, written by `pytest --rewrite-stories`. "
    "Only commit the changes if you understand what caused them and if they are desired."
)
"""The line between the script and its timeline."""


class StoryRefused(ValueError):
    """A line of a story that nobody understands; the message names the line and its number."""


# -- the fleet ------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Cast:
    """Who plays: the fleet of a story, and what its world must know beside it."""

    fleet: Fleet = attrs.field(factory=Fleet)
    boots: Mapping[str, float] = attrs.field(factory=dict)
    actions_take: float = 1.0


def _number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"\s*(?:,|\band\b)\s*", text.strip()))


def _steps(text: str) -> tuple[Step, ...]:
    """Read `reconnect, restart (settle 5, asks), flush (destructive)`."""
    return tuple(_step(written.strip()) for written in re.split(r",(?![^(]*\))", text))


def _step(written: str) -> Step:
    match = re.fullmatch(r"(\w+)(?:\s*\((.*)\))?", written)
    if match is None:
        raise StoryRefused(f"{written!r} is no step")
    action, options = match[1], match[2]
    effect = EFFECTS.get(action, Effect.DISRUPTIVE)
    given: dict[str, Any] = {"effect": effect, "needs_running": action in NEEDS_RUNNING}
    for option in options.split(",") if options else ():
        word, _, value = option.strip().partition(" ")
        if word in ("timeout", "cooldown", "settle", "from_attempt"):
            given[word] = _number(value)
        elif word == "asks":
            given["approval"] = True
        elif word == "only":
            given["only_for"] = frozenset(Cause(cause) for cause in value.removeprefix("for ").split("/"))
        else:
            given["effect"] = Effect(word)
    return Step(action=action, **given)


def _needs(text: str) -> dict[str, Any]:
    return {"depends_on": _dependencies(text, DependencyKind.HARD)}


def _dependencies(text: str, kind: DependencyKind) -> tuple[Dependency, ...]:
    text, _, tail = text.partition(" (")
    if tail not in ("", "waits when disabled)"):
        raise StoryRefused(f"{tail!r} says nothing about a dependency")
    when = WhenDisabled.WAIT if tail else WhenDisabled.PROCEED
    if text.startswith("any of "):
        groups: Iterable[tuple[str, ...]] = [_names(text.removeprefix("any of "))]
    else:
        groups = [(name,) for name in _names(text)]
    return tuple(Dependency(services=names, kind=kind, when_disabled=when) for names in groups)


def _budgets(text: str) -> tuple[Budget, ...]:
    found = re.findall(r"(\d+) per (\d+)", text)
    return tuple(Budget(limit=int(limit), per=float(per)) for limit, per in found)


def _backoff(text: str) -> Backoff:
    words = text.replace(",", " ").split()
    return Backoff(**{key: _number(value) for key, value in zip(words[::2], words[1::2], strict=True)})


def _window(text: str) -> Window:
    failures, _, checks = text.partition(" of ")
    return Window(failures=int(failures), checks=int(checks))


CLAUSES: Final[Mapping[str, Callable[[str], dict[str, Any]]]] = {
    "has a workload": lambda _: {"has_workload": True},
    "only observed": lambda _: {"observe_only": True},
    "not enabled": lambda _: {"enabled": False},
    "no slow retry": lambda _: {"slow_retry": None},
    "steps ": lambda text: {"steps": _steps(text)},
    "needs ": _needs,
    "softly needs ": lambda text: {"depends_on": _dependencies(text, DependencyKind.SOFT)},
    "priority ": lambda text: {"priority": Priority[text.upper()]},
    "backoff ": lambda text: {"backoff": _backoff(text)},
    "budgets ": lambda text: {"budgets": _budgets(text)},
    "flapping ": lambda text: {"flapping": _budgets(text)},
    "window ": lambda text: {"window": _window(text)},
}
"""The words of a `service` line after its name, parted by semicolons; beside them `<field> <number>` of `Policy`."""


def _policy(cast: Cast, line: str, known: Policy | None = None) -> tuple[Cast, Policy]:
    name, *clauses = (part.strip() for part in line.split(";"))
    policy, boots = known or Policy(name=name), dict(cast.boots)
    for clause in clauses:
        word, _, value = clause.partition(" ")
        read = next((CLAUSES[start] for start in CLAUSES if clause.startswith(start)), None)
        if word == "boots":
            boots[name] = float(value)
            continue
        if read is not None:
            start = next(start for start in CLAUSES if clause.startswith(start))
            changes = read(clause.removeprefix(start))
            if "depends_on" in changes:
                changes["depends_on"] = (*policy.depends_on, *changes["depends_on"])
        elif word in attrs.fields_dict(Policy):
            changes = {word: _number(value)}
        else:
            raise StoryRefused(f"{clause!r} says nothing about a service")
        policy = attrs.evolve(policy, **changes)
    return attrs.evolve(cast, boots=boots), policy


def _enlist(cast: Cast, line: str) -> Cast | None:
    """Take one line about the fleet in; None when it is about something else."""
    word, _, rest = line.partition(" ")
    fleet = cast.fleet
    if word == "service":
        cast, policy = _policy(cast, rest.strip())
        return attrs.evolve(cast, fleet=attrs.evolve(fleet, policies=(*fleet.policies, policy)))
    if word == "canary":
        return attrs.evolve(
            cast, fleet=attrs.evolve(fleet, canaries=(*fleet.canaries, Canary(name=rest.strip(), interval=30.0)))
        )
    if word == "limit":
        field, _, value = rest.strip().partition(" ")
        if field not in attrs.fields_dict(Limits):
            raise StoryRefused(f"{field!r} is no limit")
        changes: dict[str, Any] = {field: _number(value)}
        limits = attrs.evolve(fleet.limits, **changes)
        return attrs.evolve(cast, fleet=attrs.evolve(fleet, limits=limits))
    if line.startswith("actions take "):
        return attrs.evolve(cast, actions_take=float(rest.removeprefix("take ")))
    return None


# -- the script -----------------------------------------------------------------------------------------------------


class Play:
    """A story being played: the simulator, its world, and the lines of the timeline so far."""

    def __init__(self, story: Story, watchers: Iterable[Watcher]) -> None:
        cast = story.cast
        self.story = story
        self.cast = cast
        self.acts = 0
        self.lines: list[str] = []
        self.world = SimpleWorld(cast.fleet, action_takes=(cast.actions_take, cast.actions_take))
        for name, seconds in cast.boots.items():
            self.world.things[name].boot = seconds
        self.simulator = Simulator(cast.fleet, self.world, watchers=[self._seen, *watchers])

    def say(self, at: float, who: str, what: str) -> None:
        """Add one line to the timeline."""
        self.lines.append(f"{at:8.1f}  {who:<9} {what}".rstrip())

    def feed(self, event: Event) -> None:
        """Give the engine an event of the script."""
        self.simulator.feed(event)

    def ask(self, match: re.Match[str], act: str, **parameters: Any) -> None:
        """Let a person ask the engine for something."""
        self.acts += 1
        actor = match["actor"]
        because = match.groupdict().get("because") or "no reason given"
        self.feed(
            Requested(
                at=self.simulator.now,
                id=f"{actor}-{self.acts}",
                act=act,
                actor=actor,
                reason=because,
                scopes=frozenset({"admin"}),
                **parameters,
            )
        )

    def perform(self, line: Line) -> Callable[[], None]:
        """Return what plays one line at its time. Raises `StoryRefused` when nobody knows how."""
        act = _reading(self, line)

        def played() -> None:
            self.say(self.simulator.now, "*", line.sentence)
            try:
                act()
            except ValueError as problem:
                raise StoryRefused(f"line {line.number}: {problem}") from problem

        return played

    def _seen(self, simulator: Simulator, event: Event, output: Output) -> None:
        del simulator
        if isinstance(event, WokeLate):
            self.say(event.at, "*", f"selfheal wakes {event.late:.1f} s late")
        if isinstance(event, CheckFinished) and self.story.shows_checks:
            result = event.result
            if result.verdict is not Verdict.PASSING or event.purpose is not Purpose.ROUTINE:
                cause = f" ({result.cause.value})" if result.cause is not None else ""
                self.say(event.at, event.service, f"  {event.purpose.value} check: {result.verdict.value}{cause}")
        for record in output.records:
            line = told(record)
            if line is not None:
                self.say(record.at, *line)
        for command in output.commands:
            if isinstance(command, CancelAction):
                self.say(event.at, "command", f"stop {command.intent}")
            elif isinstance(command, Settle):
                self.say(event.at, "command", f"find out what became of {command.intent}")


Sentence: TypeAlias = Callable[[Play, re.Match[str]], None]


def _known(play: Play, name: str) -> str:
    if name not in play.world.things:
        raise StoryRefused(f"there is no service {name!r}")
    return name


def _breaks(play: Play, match: re.Match[str]) -> None:
    changes: dict[str, Any] = {}
    for clause in (match["how"] or "").split(","):
        clause = clause.strip()
        if clause.startswith("cured by "):
            cures = clause.removeprefix("cured by ")
            changes["cured_by"] = frozenset() if cures == "nothing" else frozenset(_names(cures))
        elif clause.startswith("heals at "):
            changes["heals_at"] = float(clause.removeprefix("heals at "))
        elif clause:
            raise StoryRefused(f"{clause!r} says nothing about a fault")
    play.world.breaks(_known(play, match["who"]), Cause(match["cause"]), **changes)


def _warns(play: Play, match: re.Match[str]) -> None:
    play.world.breaks(_known(play, match["who"]), Cause(match["cause"]), verdict=Verdict.WARNING)


def _mends(play: Play, match: re.Match[str]) -> None:
    name = _known(play, match["who"])
    play.world.mends(name)
    play.world.things[name].latency = 0.02


def _hangs(play: Play, match: re.Match[str]) -> None:
    play.world.breaks(_known(play, match["who"]), Cause.TIMEOUT, hangs=True)


def _answers(play: Play, match: re.Match[str]) -> None:
    thing = play.world.things[_known(play, match["who"])]
    thing.pattern, thing.beats = tuple(one == "1" for one in match["pattern"]), 0


def _slows(play: Play, match: re.Match[str]) -> None:
    play.world.things[_known(play, match["who"])].latency = float(match["seconds"])


def _exits(play: Play, match: re.Match[str]) -> None:
    name = _known(play, match["who"])
    play.world.things[name].run = Run.STOPPED if match["how"] == "is stopped by a person" else Run.EXITED
    if match["how"] == "dies in sight":
        play.feed(WatchReported(at=play.simulator.now, service=name, instance=play.world.instance(name)))


def _unseen(play: Play, match: re.Match[str]) -> None:
    play.world.things[_known(play, match["who"])].unseen = True


def _started(play: Play, match: re.Match[str]) -> None:
    thing = play.world.things[_known(play, match["who"])]
    thing.run, thing.generation = Run.RUNNING, thing.generation + 1
    thing.boots_until = play.simulator.now + thing.boot


def _cut(play: Play, match: re.Match[str]) -> None:
    play.world.cut_off_until = play.simulator.now + float(match["seconds"])


def _journal(play: Play, match: re.Match[str]) -> None:
    well = match["how"] == "answers"
    play.feed(JournalChanged(at=play.simulator.now, well=well, detail="" if well else "disk is full"))


def _suspend(play: Play, match: re.Match[str]) -> None:
    play.simulator.suspend(float(match["seconds"]))


def _without(play: Play, gone: str) -> Fleet:
    names = _names(gone)
    kept = tuple(policy for policy in play.simulator.fleet.policies if policy.name not in names)
    return attrs.evolve(play.simulator.fleet, policies=kept)


def _crash(play: Play, match: re.Match[str]) -> None:
    fleet = _without(play, match["gone"]) if match["gone"] else None
    batches = len(play.simulator.batches)
    play.simulator.crash(float(match["seconds"]), fleet=fleet)
    lost = batches + 1 - len(play.simulator.batches)
    if lost > 0:
        play.say(play.simulator.now, "*", f"{lost} batches had not been stored yet")


def _reload(play: Play, match: re.Match[str]) -> None:
    if match["gone"]:
        fleet = _without(play, match["gone"])
    else:
        name = match["line"].partition(";")[0].strip()
        old = play.simulator.fleet
        known = next((policy for policy in old.policies if policy.name == name), None)
        _, policy = _policy(play.cast, match["line"], known)
        policies = tuple(policy if one.name == name else one for one in old.policies)
        fleet = attrs.evolve(old, policies=policies if known is not None else (*policies, policy))
        play.world.meets(fleet)
    play.acts += 1
    proposed = FleetProposed(
        at=play.simulator.now,
        id=f"{match['actor']}-{play.acts}",
        actor=match["actor"],
        fleet=fleet,
        confirmed=bool(match["confirmed"]),
    )
    play.feed(proposed)
    if play.simulator.engine.ledger.fleet == fleet:
        play.simulator.fleet = fleet


def _window_changes(play: Play, match: re.Match[str]) -> None:
    everything = match["who"] == "everything"
    play.feed(
        WindowChanged(
            at=play.simulator.now,
            window=match["window"],
            services=() if everything else _names(match["who"]),
            everything=everything,
            active=match["how"] == "opens",
            until=float(match["until"] or 0.0),
        )
    )


_SUPPRESSING: Final = {"pauses": "pause", "silences": "silence", "maintains": "maintenance", "resumes": "resume"}


def _suppress(play: Play, match: re.Match[str]) -> None:
    everything = match["who"] == "everything"
    play.ask(
        match,
        _SUPPRESSING[match["act"]],
        services=() if everything else _names(match["who"]),
        everything=everything,
        duration=float(match["seconds"]) if match["seconds"] else None,
    )


_ABOUT_ONE: Final = {
    "recovers": "recover",
    "enables": "enable",
    "disables": "disable",
    "approves": "approve",
    "refuses": "refuse",
    "acknowledges": "acknowledge",
    "looks afresh at": "initialize",
}


def _about_one(play: Play, match: re.Match[str]) -> None:
    override = frozenset(_names(match["override"])) if match["override"] else frozenset()
    play.ask(match, _ABOUT_ONE[match["act"]], service=match["who"], override=override)


_ACTOR: Final = r"(?P<actor>\w+)"
_BECAUSE: Final = r"(?: because (?P<because>.+))?"
_WHO: Final = r"(?P<who>[\w-]+(?:(?:, | and )[\w-]+)*)"
_FOR: Final = r"(?: for (?P<seconds>[\d.]+))?"

SENTENCES: Final[Mapping[str, Sentence]] = {
    r"the network is cut for (?P<seconds>[\d.]+)": _cut,
    r"journal (?P<how>fails|answers)": _journal,
    r"suspend for (?P<seconds>[\d.]+)": _suspend,
    r"crash for (?P<seconds>[\d.]+)(?: without (?P<gone>.+))?": _crash,
    r"(?P<who>\w+) breaks (?P<cause>\w+)(?P<how>,.*)?": _breaks,
    r"(?P<who>\w+) warns (?P<cause>\w+)": _warns,
    r"(?P<who>\w+) mends": _mends,
    r"(?P<who>\w+) hangs": _hangs,
    r"(?P<who>\w+) answers (?P<pattern>[01]+) over and over": _answers,
    r"(?P<who>\w+) takes (?P<seconds>[\d.]+) to answer": _slows,
    r"(?P<who>\w+) (?P<how>exits|dies in sight|is stopped by a person)": _exits,
    r"(?P<who>\w+) is started": _started,
    r"(?P<who>\w+) cannot be inspected": _unseen,
    rf"window (?P<window>\w+) (?P<how>opens|closes) on {_WHO}(?: until (?P<until>[\d.]+))?": _window_changes,
    rf"{_ACTOR} (?P<act>pauses|silences|maintains|resumes) {_WHO}{_FOR}{_BECAUSE}": _suppress,
    rf"{_ACTOR} (?P<act>{'|'.join(_ABOUT_ONE)}) (?P<who>[\w-]+)(?: overriding (?P<override>[\w, ]+?))?"
    rf"{_BECAUSE}": _about_one,
    rf"{_ACTOR} releases (?P<hold>\w+){_BECAUSE}": lambda play, match: play.ask(match, "release", hold=match["hold"]),
    rf"{_ACTOR} lifts (?P<id>[\w:-]+){_BECAUSE}": lambda play, match: play.ask(match, "lift", suppression=match["id"]),
    rf"{_ACTOR} reloads (?:without (?P<gone>[\w, ]+?)|with service (?P<line>.+?))(?P<confirmed>, confirmed)?": _reload,
}
"""What may happen `at` a time: a pattern for the whole sentence, and what it does."""


@attrs.frozen(kw_only=True)
class Line:
    """One sentence of the script, and when it is played."""

    at: float
    sentence: str
    number: int


@attrs.frozen(kw_only=True)
class Story:
    """A story as it stands in its file. `expected` is the timeline that was last accepted."""

    script: str
    cast: Cast
    lines: tuple[Line, ...]
    until: float
    shows_checks: bool = False
    expected: str = ""

    def play(self, watchers: Iterable[Watcher] = ()) -> str:
        """Return the timeline of the story as the engine decides now; `watchers` see every event.

        Raises `StoryRefused` for a sentence that cannot be played.
        """
        play = Play(self, watchers)
        for line in self.lines:
            play.simulator.at(line.at, play.perform(line))
        play.simulator.run(self.until)
        return "\n".join([*play.lines, "", *_ending(play)]) + "\n"

    def written(self, timeline: str) -> str:
        """Return the file of this story with `timeline` as what is expected."""
        return f"{self.script}\n{RULE}\n{timeline}"


def _reading(play: Play, line: Line) -> Callable[[], None]:
    for pattern, sentence in SENTENCES.items():
        match = re.fullmatch(pattern, line.sentence)
        if match is not None:
            found, act = match, sentence
            return lambda: act(play, found)
    raise StoryRefused(f"line {line.number}: nobody knows how to play {line.sentence!r}; see stories.SENTENCES")


def _ending(play: Play) -> list[str]:
    """Say how it stands at the end, and what was done on the way."""
    ledger, world = play.simulator.engine.ledger, play.world
    lines = []
    for name, condition in ledger.conditions.items():
        reason = f" [{condition.reason}]" if condition.reason else ""
        done = [action for _, service, action, _ in world.acted if service == name]
        counts = ", ".join(f"{action} x{done.count(action)}" for action in dict.fromkeys(done)) or "nothing was done"
        needless = world.things[name].needless
        lines.append(
            f"{name}: {condition.state.value}{reason}; {counts}" + (f", {needless} needless" if needless else "")
        )
    opened = sorted(f"{alert.service or 'fleet'} {alert.rule}" for alert in ledger.alerts.values())
    lines.append("open alerts: " + (", ".join(opened) or "none"))
    return lines


def parse(text: str) -> Story:
    """Return the story written in `text`.

    Raises `StoryRefused` naming the line that nobody understands.
    """
    head, _, expected = text.partition("\n----")
    script = head.rstrip("\n") + "\n"
    prose = True
    cast, lines, until, shows = Cast(), [], 0.0, False
    for number, raw in enumerate(script.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            prose = prose and bool(line)
            continue
        if prose:
            continue
        word, _, rest = line.partition(" ")
        try:
            enlisted = _enlist(cast, line)
            if enlisted is not None:
                cast = enlisted
            elif word == "at":
                lines += _lines(rest.strip(), number)
            elif word == "until":
                until = float(rest)
            elif line == "show checks":
                shows = True
            else:
                raise StoryRefused(f"{line!r} is neither fleet nor script")
        except (ValueError, KeyError, TypeError) as problem:
            raise StoryRefused(f"line {number}: {problem}") from problem
    if not until:
        raise StoryRefused("a story must say `until` when it is played")
    return Story(
        script=script,
        cast=cast,
        lines=tuple(lines),
        until=until,
        shows_checks=shows,
        expected=expected.partition("\n")[2],
    )


def _lines(text: str, number: int) -> list[Line]:
    """Read `60, 300 db breaks unreachable`."""
    match = re.fullmatch(r"((?:[\d.]+,?\s+)+)(.+)", text)
    if match is None:
        raise StoryRefused(f"{text!r} is no time and a sentence")
    return [Line(at=float(at), sentence=match[2], number=number) for at in re.findall(r"[\d.]+", match[1])]
