"""Proving beforehand, without acting, that the actions may do what they are for.

An ACL is asked about by the commands themselves, each in a form that does nothing: for a key that does not exist, or
with an argument that no server takes. Redis looks at the right before it looks at the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from selfheal.errors import ActionFailed, Problem
from selfheal_redis.replies import Refusal

if TYPE_CHECKING:
    from selfheal_redis.line import Line

Asked: TypeAlias = "Mapping[str, tuple[str, ...]]"
"""A rule of an ACL -> the command that it allows, in a form that does nothing."""

PATH: Final = "recovery_actions"


async def lacking(line: Line, verb: str, user: str | None, asked: Asked) -> list[Problem]:
    """Return which of these commands a user may not do, with the line that allows them. Raises what `ask` raises."""
    rules = []
    for rule, words in asked.items():
        reply = await line.ask(*words)
        if isinstance(reply, Refusal) and reply.word == "NOPERM":
            rules.append(rule)
    if not rules:
        return []
    name = user or "default"
    message = f"{verb}: the user {name} lacks {', '.join(rules)}"
    return [Problem(path=PATH, message=message, hint=f"ACL SETUSER {name} {' '.join(rules)}")]


def unproven(verb: str, problem: ActionFailed) -> Problem:
    """Return the problem that nothing could be proven, for the server was not reached, or did not let us in."""
    hint = "let it be reached, and the user in; then ask again"
    return Problem(path=PATH, message=f"{verb}: not proven: {problem}", hint=hint)
