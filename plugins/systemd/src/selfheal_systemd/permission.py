"""What polkit has to allow, so that this process may do what is configured: one unit, by its verbs, no more."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final

from selfheal_systemd.systemctl import Manager, user

RULES: Final = "/etc/polkit-1/rules.d/50-selfheal.rules"
"""Where the rule goes; polkit reads it at once."""

_WITH: Final = {"restart": ("reset-failed", "cancel"), "start": ("reset-failed", "cancel"), "stop": ("cancel",)}
"""verb -> what is also asked for on the way: a start limit to be lifted, a job to be taken back."""


def needed(verbs: Collection[str]) -> list[str]:
    """Return the verbs as polkit knows them."""
    also = {more for verb in verbs for more in _WITH.get(verb, ())}
    return sorted({"set-property" if verb == "scale_up" else verb for verb in verbs} | also)


def rule(name: str, verbs: Collection[str]) -> str:
    """Return the rule that lets this process do `verbs` (as polkit knows them) to this unit."""
    return (
        "polkit.addRule(function (action, subject) {\n"
        f'    if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == {json.dumps(user())} &&\n'
        f'        action.lookup("unit") == {json.dumps(name)} &&\n'
        f'        {json.dumps(sorted(verbs))}.indexOf(action.lookup("verb")) >= 0) {{\n'
        "        return polkit.Result.YES;\n"
        "    }\n"
        "});"
    )


def advice(manager: Manager, name: str, verb: str) -> str:
    """Return in one sentence what to do about a refusal."""
    if manager == "user":
        return 'run selfheal as the user whose manager it is, or say manager = "system"'
    return (
        f'a rule in {RULES} has to allow {user()} the verb "{verb}" on {name}: it stands in the README of '
        "selfheal-systemd under Permissions, and `doctor` prints it"
    )
