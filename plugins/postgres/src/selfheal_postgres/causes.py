"""What PostgreSQL's errors mean: SQLSTATE in, verdict and cause out, the same for both roads of the check.

A FAILING of a cause that a restart would not cure says so by its cause; two conditions are WARNING on purpose:

- *no slot is free*: those who are connected are served. A restart throws them out, and they come back;
- *the disk is full*: reading works. A PostgreSQL that is restarted on a full disk may not come back at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from selfheal import Cause, CheckResult, Verdict
from selfheal.wire import failing, inconclusive, warning
from selfheal_postgres.protocol import ServerError

STATES: Final[Mapping[str, Cause]] = {
    "57P03": Cause.STARTING,  # cannot_connect_now: starting up, in recovery, shutting down, hot standby off
    "57P01": Cause.STARTING,  # admin_shutdown: it is being stopped or restarted by somebody
    "57P02": Cause.STARTING,  # crash_shutdown: another backend died; recovery follows by itself
    "57P05": Cause.CONFIG,  # idle_session_timeout ended a kept connection between two checks
    "57014": Cause.TIMEOUT,  # query_canceled: statement_timeout
    "55P03": Cause.TIMEOUT,  # lock_not_available: lock_timeout
    "57P04": Cause.CONFIG,  # database_dropped
    "3D000": Cause.CONFIG,  # there is no such database
    "42501": Cause.AUTH,  # insufficient_privilege
    "0LP01": Cause.AUTH,
    "25006": Cause.READ_ONLY,
    "53300": Cause.OVERLOADED,  # too_many_connections
    "53200": Cause.OVERLOADED,  # out_of_memory
    "53100": Cause.FULL,  # disk_full
    "54000": Cause.FULL,  # program_limit_exceeded; among them: no transaction ids are left
}

CLASSES: Final[Mapping[str, Cause]] = {"28": Cause.AUTH, "53": Cause.OVERLOADED, "0A": Cause.CONFIG, "22": Cause.CONFIG}
"""By the first two letters, for what is not in `STATES`."""


def from_server(problem: ServerError, exhausted: Verdict = Verdict.WARNING) -> CheckResult:
    """Return what an error of the server says about it. `exhausted` is the verdict where no slot is free."""
    state = problem.sqlstate
    text = f"{problem.message[:200]} ({state})"
    cause = STATES.get(state) or CLASSES.get(state[:2])
    if state.startswith("42") and cause is None:  # our question is not understood: that says nothing about the server
        return inconclusive(f"it does not understand what a check asks: {text}", Cause.CONFIG)
    if cause is Cause.FULL:
        return warning(cause, text)
    if state == "53300":
        return CheckResult(exhausted, cause=cause, summary=f"no connection slot is free: {text}")
    return failing(cause or Cause.ERROR, text)
