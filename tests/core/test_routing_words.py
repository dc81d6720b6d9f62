"""What a person woken at 3 a.m. reads."""

from __future__ import annotations

import pytest

from selfheal.core.alerts import FLEET_RULES, SERVICE_RULES
from selfheal.core.model import Alert, Severity
from selfheal.core.routing_words import CONDUCT, LISTED, TITLES, ended, span, text, title


def alert(rule: str, service: str = "api", **more: str) -> Alert:
    return Alert(id="a1", service=service, rule=rule, severity=Severity.HIGH, since=100.0, **more)  # type: ignore[arg-type]  # only texts


def test_every_rule_has_a_title_of_its_own() -> None:
    assert set(TITLES) == {*SERVICE_RULES, *FLEET_RULES}
    assert set(CONDUCT) <= set(TITLES)
    assert title([alert("novel")]) == "api: novel"


def test_a_title_counts_services_and_not_alerts() -> None:
    assert title([alert("failed"), alert("flapping")]) == "api is down"
    assert title([alert("failed"), alert("failed", "web"), alert("flapping", "web")]) == "api is down, 1 more with it"


def test_a_text_says_what_since_when_who_knows_and_who_acts() -> None:
    assert text([alert("failed", text="confirmed down (timeout)")], 130.0) == (
        "api: confirmed down (timeout), for 30 s\n"
        "selfheal repairs it unless something holds it back, and tells you when it gives up."
    )
    unattended = text([alert("failed"), alert("unattended", acknowledged_by="anna")], 7400.0)
    assert "api: unattended, for 2 h (acknowledged by anna)" in unattended
    assert unattended.endswith("selfheal does not act any further: a person is needed.")
    assert text([alert("degraded")], 100.0).endswith("\nselfheal only watches it: nothing is restarted.")


def test_a_long_text_is_cut_and_counted() -> None:
    lines = text([alert("failed", f"s{n}") for n in range(LISTED + 2)], 100.0).splitlines()
    assert len(lines) == LISTED + 2
    assert lines[LISTED] == "and 2 more"


def test_a_resolution_says_whom_it_concerned_and_how_long_it_took() -> None:
    assert ended(["api"], 720.0, "healthy") == ("Resolved: api", "Over after 12 min: healthy.")
    assert ended(["a", "b", "c", "d"], None, "") == ("Resolved: a, b, c and 1 more", "Over.")


@pytest.mark.parametrize(
    ("duration", "words"),
    [(0.0, "0 s"), (119.9, "119 s"), (120.0, "2 min"), (7199.0, "119 min"), (7200.0, "2 h"), (259_200.0, "3 d")],
)
def test_a_duration_in_words(duration: float, words: str) -> None:
    assert span(duration) == words
