"""The check and the workload `command`: somebody else's program is asked, and told what to do.

Owns what exit codes mean. Programs are lists of arguments; what is put into them is an argument of its own, from the
short list of `PLACEHOLDERS`, and can never be read as an option.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from selfheal.builtin import options, spawn
from selfheal.builtin.proc import Ending
from selfheal.builtin.spawn import Finished
from selfheal.core.bounds import whole
from selfheal.core.model import PASSING, Cause, CheckResult, Instance, Run, Scalar, Verdict
from selfheal.errors import ActionFailed, Problem
from selfheal.plugins import ActionContext, CheckContext, Context
from selfheal.secret import Secret, scrub
from selfheal.wire import inconclusive

PLACEHOLDERS: Final = ("{service}", "{instance}", "{to}")
"""What may stand as a whole argument of a workload's command; `{to}` only where it is told to scale.

`{to}` is a whole number and nothing else, so it may also be a part of one: `web={to}`.
"""

_NOT_RUNNABLE: Final = {126, 127}  # what shells and `env` say when the program inside is missing or may not be run
_UNFIT: Final = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP, errno.E2BIG}
_CHECK_GRACE: Final = 0.1  # seconds between SIGTERM and SIGKILL: a check has nothing to save
_ACTION_GRACE: Final = 1.0
_LINE: Final = 200  # characters of output that are shown
_MOST_FIGURES: Final = 32


def _line(text: str) -> str:
    """Return text as one printable line of bounded length."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text).strip()[:_LINE]


@attrs.frozen(kw_only=True)
class _Ran:
    """What became of a command, with its secrets masked."""

    finished: Finished
    output: str
    timeout: float

    @property
    def last_line(self) -> str:
        return next((line for line in map(_line, reversed(self.output.splitlines())) if line), "")

    @property
    def ending(self) -> str:
        """Say how it ended, and what still lives of it."""
        finished = self.finished
        how = str(Ending(code=finished.code, signal=finished.signal))
        if finished.expired:
            how = f"not finished after {self.timeout:.3g} s, and ended by us"
        if finished.escaped:
            how += f"; still alive: process {', '.join(map(str, finished.escaped))}"
        return how


async def _ran(
    command: Sequence[str],
    context: Context,
    environment: Mapping[str, str | Secret],
    inherit: Sequence[str],
    cwd: Path | None,
    limit: int,
    *,
    grace: float,
    sweep: bool = False,
) -> _Ran:
    """Run a command within what is left of the context's time, killing included."""
    surroundings = spawn.surroundings(environment, inherit)
    secrets = [surroundings[name] for name, value in environment.items() if isinstance(value, Secret)]
    # Ended by us a little before the deadline of the call, we can still say so and name what would not end.
    remaining = context.remaining
    grace = min(grace, 0.2 * remaining)
    timeout = remaining - grace - min(1.0, 0.2 * remaining)
    finished = await spawn.run(
        command, timeout=timeout, limit=limit, environment=surroundings, cwd=cwd, grace=grace, sweep=sweep
    )
    return _Ran(finished=finished, output=scrub(finished.output, secrets), timeout=timeout)


@attrs.frozen(kw_only=True)
class CommandCheck:
    """Whether a program says that the service is well.

    Exit code 0 is PASSING, any other FAILING. With `nagios`, the convention of Nagios, Icinga and check_mk plugins: 0
    PASSING, 1 WARNING, 2 FAILING, anything else INCONCLUSIVE; the first line is the summary, and performance figures
    after a `|` are details. A program that is not there or may not be run (exit codes 126 and 127 say so of a program
    within) is INCONCLUSIVE, `config`; one killed by a signal is INCONCLUSIVE; one that has not finished in time is
    FAILING, `timeout`, and is ended with everything it started. What it leaves in its process group when it ends is
    killed.
    """

    kind: ClassVar[str] = "command"

    #: The program and its arguments, as a list.
    command: tuple[str, ...] = attrs.field(converter=spawn.checked)
    #: Whether its exit codes follow the convention of Nagios plugins.
    nagios: bool = False
    #: The cause a FAILING verdict carries, which selects the steps of the ladder.
    cause: Cause = attrs.field(default=Cause.ERROR, converter=Cause)
    #: The directory to run it in.
    cwd: Path | None = attrs.field(default=None, converter=options.path)
    #: Variables it is given, over the few that every program is given; values may be secrets.
    environment: Mapping[str, str | Secret] = attrs.field(factory=dict, converter=spawn.named)
    #: Names of further variables of selfheal's own that it is given.
    inherit: tuple[str, ...] = attrs.field(default=(), converter=options.texts)
    #: Bytes of output that are read; the rest is thrown away.
    limit: int = whole(spawn.LIMIT, 1, 1 << 24)

    async def doctor(self, context: Context) -> list[Problem]:
        """Say whether its program is there."""
        look = partial(spawn.missing, cwd=self.cwd, environment=self.environment)
        return await context.blocking(look, self.command, "check.command")

    async def check(self, context: CheckContext) -> CheckResult:
        """Run it once."""
        try:
            ran = await _ran(
                self.command, context, self.environment, self.inherit, self.cwd, self.limit,
                grace=_CHECK_GRACE, sweep=True,
            )  # fmt: skip
        except OSError as error:
            cause = Cause.CONFIG if error.errno in _UNFIT else Cause.ERROR
            return inconclusive(f"{self.command[0]} could not be run: {error}", cause)
        finished = ran.finished
        if finished.expired:
            return CheckResult(Verdict.FAILING, cause=Cause.TIMEOUT, summary=f"{self.command[0]}: {ran.ending}")
        if finished.code is None or finished.code in _NOT_RUNNABLE:
            said = f" ({ran.last_line})" if ran.last_line else ""
            return inconclusive(
                f"{self.command[0]}: {ran.ending}{said}", Cause.ERROR if finished.code is None else Cause.CONFIG
            )
        return self._by_convention(ran, finished.code) if self.nagios else self._by_code(ran, finished.code)

    def _by_code(self, ran: _Ran, code: int) -> CheckResult:
        if code == 0:
            return PASSING
        summary = f"exit code {code}: {ran.last_line}" if ran.last_line else f"exit code {code}"
        return CheckResult(Verdict.FAILING, cause=self.cause, summary=summary, details={"exit_code": code})

    def _by_convention(self, ran: _Ran, code: int) -> CheckResult:
        text, details = read_plugin_output(ran.output)
        verdict = {0: Verdict.PASSING, 1: Verdict.WARNING, 2: Verdict.FAILING}.get(code, Verdict.INCONCLUSIVE)
        if verdict is Verdict.PASSING:
            return CheckResult(verdict, summary=text, details=details)
        cause = Cause.ERROR if verdict is Verdict.INCONCLUSIVE else self.cause
        return CheckResult(verdict, cause=cause, summary=text or f"exit code {code}", details=details)


# -- the output of Nagios plugins ------------------------------------------------------------------------------------

_FIGURE: Final = re.compile(r"(?:'(?P<quoted>(?:[^']|'')*)'|(?P<plain>[^\s'=]+))=(?P<value>[^\s;]*)\S*")
_VALUE: Final = re.compile(r"(?P<number>[-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?)(?P<unit>[^\d\s]*)")
_TIMES: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NAMES: Final = {"%": "percent", "B": "bytes", "c": "total"}


def read_plugin_output(output: str) -> tuple[str, dict[str, Scalar]]:
    """Return the first line for people, and the performance figures by name.

    A figure's name tells its unit: times become `<name>_seconds`; `%`, `B` and `c` become `_percent`, `_bytes` and
    `_total`; any other unit is appended as it is (`_KB`: whether that is 1000 or 1024 bytes, no plugin says). A figure
    that is unknown (`U`) is None. At most 32 are kept; what is no figure is passed over.
    """
    first, _, rest = output.partition("\n")
    text, _, figures = first.partition("|")
    # Further figures may follow the first `|` of the long text.
    figures += " " + rest.partition("|")[2]
    details: dict[str, Scalar] = {}
    for found in _FIGURE.finditer(figures):
        quoted = found["quoted"]
        name = _line(quoted.replace("''", "'") if quoted is not None else found["plain"])[:64]
        if len(details) >= _MOST_FIGURES:
            break
        if not name:
            continue
        if found["value"] == "U":
            details[name] = None
            continue
        figure = _VALUE.fullmatch(found["value"])
        if figure is None:
            continue
        number, unit = float(figure["number"].replace(",", ".")), figure["unit"]
        if not isfinite(number):
            continue
        if unit in _TIMES:
            details[f"{name}_seconds"] = number * _TIMES[unit]
        elif unit:
            details[f"{name}_{_NAMES.get(unit, unit)}"] = number
        else:
            details[name] = number
    return _line(text), details


# -- the workload ----------------------------------------------------------------------------------------------------

_RUNS: Final = {0: Run.RUNNING, 1: Run.EXITED, 2: Run.EXITED, 3: Run.STOPPED, 4: Run.UNKNOWN}
"""The exit codes of `status` in the Linux Standard Base. 3 is somebody's wish there, and is never healed."""


def _arguments(value: object) -> object:
    """Return the arguments of a command that may be left out, refusing what would never be filled in."""
    if value in ((), [], None):
        return ()
    arguments = spawn.checked(value)  # type: ignore[arg-type]  # it refuses whatever is no list of texts
    for argument in arguments:
        for placeholder in PLACEHOLDERS:
            if placeholder in argument and argument != placeholder and placeholder != "{to}":
                raise ValueError(f"{argument!r}: {placeholder} is only filled in as an argument of its own")
    if arguments[0] in PLACEHOLDERS or "{to}" in arguments[0]:
        raise ValueError(f"{arguments[0]} cannot be the program")
    return arguments


def _without_to(instance: object, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if any("{to}" in argument for argument in value):
        raise ValueError(f"{attribute.alias}: {{to}} is only known to `scale`")


@attrs.frozen(kw_only=True)
class CommandWorkload:
    """Ask and steer whatever runs the service by commands.

    `inspect` answers by exit code, as `status` does in the Linux Standard Base: 0 running, 1 or 2 ended by itself, 3
    stopped on purpose (never healed), 4 not known; anything else, and no answer in time, is a failed inspection. Its
    first line of output is the id of the incarnation, which must change with every restart by whomever (a pid with its
    start time, say) and should stay when the incarnation ends; an empty one means that restarts by others go
    unnoticed. Further lines may say `count=3` (copies that run; scaling needs it), `since=1764035000` (UNIX time) and
    `detail=…`.

    The other commands have done their work when they exit with 0; anything else is a failed action. Without `restart`,
    `stop` and `start` are used, one after the other, and not the second if the first failed. An argument that is
    exactly `{service}` or `{instance}` (the id that failed) is filled in, and refused if it would begin with a dash;
    for `scale`, so is `{to}`, the number of copies, also within an argument (`web={to}`). Every command also finds
    SELFHEAL_SERVICE, and for actions SELFHEAL_KEY (the same when it is asked of again), SELFHEAL_INCIDENT and
    SELFHEAL_ATTEMPT, in its environment. A daemon that a command has started is left alone when the command ends in
    time, and is ended with it when it does not.
    """

    kind: ClassVar[str] = "command"

    #: Says who runs now.
    _inspect: tuple[str, ...] = attrs.field(converter=_arguments, validator=_without_to, alias="inspect")
    #: Restarts it.
    _restart: tuple[str, ...] = attrs.field(default=(), converter=_arguments, validator=_without_to, alias="restart")
    #: Starts it.
    _start: tuple[str, ...] = attrs.field(default=(), converter=_arguments, validator=_without_to, alias="start")
    #: Stops it.
    _stop: tuple[str, ...] = attrs.field(default=(), converter=_arguments, validator=_without_to, alias="stop")
    #: Scales it up to `{to}` copies.
    _scale: tuple[str, ...] = attrs.field(default=(), converter=_arguments, alias="scale")
    #: The directory to run them in.
    cwd: Path | None = attrs.field(default=None, converter=options.path)
    #: Variables they are given, over the few that every program is given; values may be secrets.
    environment: Mapping[str, str | Secret] = attrs.field(factory=dict, converter=spawn.named)
    #: Names of further variables of selfheal's own that they are given.
    inherit: tuple[str, ...] = attrs.field(default=(), converter=options.texts)
    #: Bytes of output that are read; the rest is thrown away.
    limit: int = whole(spawn.LIMIT, 1, 1 << 24)

    def __attrs_post_init__(self) -> None:
        if not self._inspect:
            raise ValueError("inspect: without it nobody knows who runs, and nothing may be done; give a command")
        if not self._restart and not (self._stop and self._start):
            raise ValueError("restart: give a command, or both `stop` and `start`")
        if self._scale and not any("{to}" in argument for argument in self._scale):
            raise ValueError("scale: no argument has {to}, so it could not be told how many copies to run")

    def verbs(self) -> frozenset[str]:
        """Return what this workload can be asked to do, which depends on the commands it was given."""
        given = {"start": self._start, "stop": self._stop, "scale_up": self._scale}
        return frozenset({"restart"} | {verb for verb, arguments in given.items() if arguments})

    async def doctor(self, context: Context) -> list[Problem]:
        """Say whether the programs of its commands are there; nothing is run."""
        look = partial(spawn.missing, cwd=self.cwd, environment=self.environment)
        problems: list[Problem] = []
        for verb in ("inspect", "restart", "start", "stop", "scale"):
            if arguments := getattr(self, f"_{verb}"):
                problems += await context.blocking(look, arguments, f"workload.{verb}")
        return list(dict.fromkeys(problems))

    async def inspect(self, context: Context) -> Instance:
        """Return who runs now. Raises `ActionFailed` when the command does not say, `OSError` when it cannot run."""
        run, first, facts = await self._asked(context)
        since, count = None, 1 if run is Run.RUNNING else 0
        with contextlib.suppress(KeyError, ValueError):
            since = float(facts["since"])
        with contextlib.suppress(KeyError, ValueError):
            count = max(0, int(facts["count"]))
        detail = _line(facts.get("detail", ""))
        return Instance(id=first or "unnamed", run=run, since=since, count=count, detail=detail)

    async def _asked(self, context: Context) -> tuple[Run, str, dict[str, str]]:
        """Run `inspect` and return its exit code, its first line and its facts, each read."""
        arguments = self._filled(self._inspect, {"{service}": context.service}, "inspect")
        environment = {**self.environment, "SELFHEAL_SERVICE": context.service}
        ran = await _ran(
            arguments, context, environment, self.inherit, self.cwd, self.limit, grace=_CHECK_GRACE, sweep=True
        )
        code = ran.finished.code
        if code is None or code not in _RUNS:
            raise ActionFailed(f"inspect: {arguments[0]}: {ran.ending}: {ran.last_line}")
        first, _, rest = ran.output.partition("\n")
        return _RUNS[code], _line(first), dict(line.split("=", 1) for line in rest.splitlines() if "=" in line)

    async def restart(self, context: ActionContext) -> None:
        """Restart it. Raises `ActionFailed` when a command fails; then the next is not run."""
        await self._as_expected(context)
        if self._restart:
            return await self._do(context, "restart", self._restart)
        await self._do(context, "stop", self._stop)
        return await self._do(context, "start", self._start)

    async def start(self, context: ActionContext) -> None:
        """Start it. Raises `ActionFailed` when there is no command for it, or it fails."""
        await self._do(context, "start", self._start)

    async def stop(self, context: ActionContext) -> None:
        """Stop it. Raises `ActionFailed` when there is no command for it, or it fails."""
        await self._as_expected(context)
        await self._do(context, "stop", self._stop)

    async def scale_up(self, context: ActionContext) -> None:
        """Run at least `arguments["to"]` copies; fewer than run already changes nothing (S31).

        Raises `ActionFailed` also when `inspect` does not say `count=`: one could be scaling down.
        """
        to = context.arguments.get("to")
        if not isinstance(to, int) or isinstance(to, bool) or not 1 <= to <= 1000:
            raise ActionFailed(f'scale_up needs "to", a whole number from 1 to 1000, and got {to!r}')
        if not self._scale:
            raise ActionFailed("no `scale` command is configured")
        run, _, facts = await self._asked(context)
        if run is not Run.RUNNING or not re.fullmatch(r"\d{1,9}", facts.get("count", "").strip()):
            raise ActionFailed("scale_up: `inspect` does not say `count=…` of what runs; it might be scaling down")
        if int(facts["count"]) < to:
            await self._do(context, "scale", self._scale, {"{to}": str(to)})

    async def _as_expected(self, context: ActionContext) -> None:
        """Raise `ActionFailed` unless this is the incarnation whose failure was seen (law 17)."""
        expected = context.expected
        if expected is None or expected.run is Run.UNKNOWN:
            return
        now = await self.inspect(context)
        if now.id != expected.id:
            raise ActionFailed(f"{now.id} runs by now, not {expected.id} whose failure was seen; left alone")

    async def _do(
        self, context: ActionContext, verb: str, arguments: tuple[str, ...], values: Mapping[str, str] | None = None
    ) -> None:
        if not arguments:
            raise ActionFailed(f"no `{verb}` command is configured")
        known = {"{service}": context.service, **(values or {})}
        if context.expected is not None:
            known["{instance}"] = context.expected.id
        arguments = self._filled(arguments, known, verb)
        environment = {
            **self.environment,
            "SELFHEAL_SERVICE": context.service,
            "SELFHEAL_KEY": context.key,
            "SELFHEAL_INCIDENT": str(context.incident),
            "SELFHEAL_ATTEMPT": str(context.attempt),
        }
        try:
            ran = await _ran(arguments, context, environment, self.inherit, self.cwd, self.limit, grace=_ACTION_GRACE)
        except OSError as error:
            raise ActionFailed(f"{verb}: {arguments[0]} could not be run: {error}") from error
        if ran.finished.code != 0:
            said = f": {ran.last_line}" if ran.last_line else ""
            raise ActionFailed(f"{verb}: {arguments[0]}: {ran.ending}{said}")

    @staticmethod
    def _filled(arguments: tuple[str, ...], values: Mapping[str, str], verb: str) -> tuple[str, ...]:
        """Put values in place of whole arguments; each stays one argument, and none can become an option (S28)."""
        filled = []
        for argument in arguments:
            if argument in PLACEHOLDERS:
                value = values.get(argument)
                if value is None:
                    raise ActionFailed(f"{verb}: {argument} is not known here")
                if value.startswith("-") or "\0" in value:
                    raise ActionFailed(f"{verb}: {argument} would be {value!r}, which could be taken for an option")
                argument = value
            elif "{to}" in argument:
                argument = argument.replace("{to}", values["{to}"])
            filled.append(argument)
        return tuple(filled)
