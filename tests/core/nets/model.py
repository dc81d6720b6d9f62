"""A reference model of one service: small, slow, and written from the design alone.

It covers a service with a ladder and nothing around it: no parents, workload, canaries, budgets or people. Given how
each check turns out and how long an action takes, it says when the service enters which state and when which step
begins. It shares no code with the engine and keeps its timers in a plain dict.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, TypeAlias

Happening: TypeAlias = tuple[float, str]
Policy: TypeAlias = dict[str, Any]


def predicted(
    policy: Policy, passes: Callable[[float], bool], check_takes: float, action_takes: float, until: float
) -> list[Happening]:
    """Return (time, state) for every change of state and (time, `act <attempt>/<step>`) for every step begun.

    `passes` says how a check begun at a time turns out. The keys of `policy` are those of the design.
    """
    p = policy
    said: list[Happening] = []
    due: dict[str, float] = {"check": 0.0}
    s: dict[str, Any] = {
        "state": "unknown", "failures": 0, "since": inf, "passes": 0, "attempt": 0, "level": 0, "step": 0,
        "in_attempt": False, "not_before": 0.0, "well_since": None, "probation_until": -inf, "settled": 0.0,
        "used": 0.0, "clock": None, "flight": "",
    }  # fmt: skip

    def enter(now: float, state: str) -> None:
        if s["state"] != state:
            s["state"] = state
            said.append((now, state))

    def look(now: float, why: str) -> None:
        due.pop("check", None)
        if why == "before":
            due.pop("act", None)
        s["flight"] = why
        s["began"] = now
        due["result"] = now + check_takes

    def look_later(now: float, *, soon: bool) -> None:
        if soon and p["recheck"] < p["interval"]:
            due["check"] = now + p["recheck"]
        else:  # the places of the grid lie at whole multiples of the interval
            due["check"] = (int(now // p["interval"]) + 1) * p["interval"]

    def delay() -> float:
        return min(p["cap"], p["initial"] * p["multiplier"] ** (s["level"] - 1)) if s["level"] else 0.0

    def fail(now: float) -> None:
        """The failure is believed: a relapse within probation keeps the attempts and the backoff level."""
        if s["well_since"] is None or now - s["well_since"] >= p["forget_after"]:
            s["level"] = 0
        relapse = now <= s["probation_until"]
        if not relapse:
            s["attempt"] = 0
        s.update(in_attempt=False, step=0, used=0.0, clock=None, well_since=None)
        if relapse and s["attempt"] >= p["max_retries"]:
            s["not_before"] = now + (inf if p["slow_retry"] is None else p["slow_retry"])
        else:
            s["not_before"] = now + delay() if s["level"] else 0.0
        enter(now, "failed")
        consider(now)

    def consider(now: float) -> None:
        """May the next step begin? Then a fresh check comes first; else wait for the backoff, the clock standing."""
        if now < s["not_before"] and not s["in_attempt"]:
            if s["clock"] is not None:
                s.update(used=s["used"] + now - s["clock"], clock=None)
            due["act"] = s["not_before"]
            if due["act"] == inf:
                del due["act"]
        elif s["flight"]:
            s["then"] = True
        else:
            look(now, "before")

    def act(now: float) -> None:
        if not s["in_attempt"]:
            s.update(in_attempt=True, attempt=s["attempt"] + 1, level=s["level"] + 1)
        if s["clock"] is None:
            s["clock"] = now
        due["over"] = s["clock"] + p["recovery_timeout"] - s["used"]
        enter(now, "recovering")
        said.append((now, f"act {s['attempt']}/{s['step']}"))
        due.pop("check", None)
        due["ended"] = now + action_takes

    def attempt_over(now: float) -> None:
        due.pop("over", None)
        pause = delay() if s["attempt"] < p["max_retries"] else p["slow_retry"]
        s.update(in_attempt=False, step=0, used=0.0, clock=None, not_before=now + (inf if pause is None else pause))
        enter(now, "failed")
        consider(now)
        if not s["flight"] and "check" not in due:
            look_later(now, soon=True)

    def result(now: float) -> None:
        why, s["flight"] = s["flight"], ""
        then, s["then"] = s.get("then", False), False
        began, well = s["began"], passes(s["began"])
        down = s["state"] in ("failed", "recovering")
        if well:
            s.update(failures=0, since=inf, passes=s["passes"] + 1)
            if not down:
                if s["state"] != "healthy":
                    s["well_since"] = now if s["well_since"] is None else s["well_since"]
                enter(now, "healthy")
            elif s["passes"] >= p["success_threshold"]:
                due.pop("over", None)
                due.pop("act", None)
                s.update(in_attempt=False, step=0, used=0.0, clock=None, not_before=0.0, settled=0.0, well_since=now)
                s["probation_until"] = now + p["probation"]
                enter(now, "healthy")
        elif began < s["settled"]:
            pass  # it began before the action had time to settle: it says nothing
        else:
            s["since"] = min(s["since"], began)
            s.update(failures=s["failures"] + 1, passes=0)
            if s["state"] == "recovering":
                if s["failures"] >= p["failure_threshold"]:
                    if s["step"] + 1 < p["steps"]:
                        s["step"] += 1
                        enter(now, "failed")
                        consider(now)
                    else:
                        attempt_over(now)
            elif s["state"] == "failed":
                if why == "before" and not (now < s["not_before"] and not s["in_attempt"]):
                    act(now)
                    return
                consider(now)
            elif s["failures"] >= p["failure_threshold"] and now - s["since"] >= p["min_failing_span"]:
                fail(now)
            else:
                enter(now, "unhealthy")
        if s["flight"] or "ended" in due:
            return
        if then and s["state"] == "failed":
            look(now, "before")
        elif "check" not in due:
            used_up = s["attempt"] >= p["max_retries"] and not s["in_attempt"]
            soon = s["state"] == "recovering" or s["failures"] > 0 or (s["state"] == "failed" and s["passes"] > 0)
            if s["state"] == "failed":
                soon = s["passes"] > 0 or not used_up
            look_later(now, soon=soon)

    while due:
        what = min(due, key=lambda key: due[key])
        now = due.pop(what)
        if now > until:
            break
        if what == "check":
            look(now, "verify" if s["state"] == "recovering" else "routine")
        elif what == "result":
            result(now)
        elif what == "act":
            consider(now)
        elif what == "ended":
            s.update(settled=now + p["settle"], failures=0, since=inf, passes=0)
            if "over" not in due:  # its time was over while it ran
                attempt_over(now)
            else:
                due["check"] = s["settled"]
        elif what == "over":
            if "ended" in due:
                due["ended"] = now + 0.01  # it is cancelled, and says so
            elif s["in_attempt"]:
                attempt_over(now)
    return said
