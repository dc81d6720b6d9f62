"""The stories: scripts with the timeline that was last accepted, played anew; and what a script is refused for.

`pytest --rewrite-stories` writes what now happens into the files. Only commit the changes if you understand what
caused them and if they are desired.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from selfheal.testing import stories
from selfheal.testing.laws import Laws
from selfheal.testing.stories import StoryRefused, parse

FOLDER = Path(__file__).resolve().parents[1] / "stories"
FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_story_goes_as_it_was_accepted(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text("utf-8")
    story = parse(text)
    timeline = story.play([Laws()])
    if request.config.getoption("--rewrite-stories"):
        path.write_text(story.written(timeline), "utf-8")
        return
    assert text == story.written(timeline), f"{path.name} goes another way now; see --rewrite-stories"


def test_there_are_stories() -> None:
    assert len(FILES) >= 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_story_begins_with_what_it_is_about(path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]
    assert first[0].isupper()
    assert len(first.split()) > 4


def test_a_story_goes_the_same_way_twice() -> None:
    story = parse(FILES[0].read_text("utf-8"))
    assert story.play() == story.play()


def test_a_story_ends_with_how_everybody_stands() -> None:
    timeline = parse("A database.\n\nservice db; steps restart\n\nat 60 db breaks auth\nuntil 300\n").play()
    assert timeline.endswith("\n\ndb: failed [held:cause]; nothing was done\nopen alerts: db failed, db unattended\n")


def test_a_step_at_several_times_is_played_at_each() -> None:
    timeline = parse("Twice.\n\nservice db\n\nat 60, 70 db mends\nuntil 80\n").play()
    assert timeline.count("db mends") == 2


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("service db\nuntil 9\nat 3 db explodes", "line 5: nobody knows how to play 'db explodes'"),
        ("service db\nat\nuntil 9", "line 4: '' is no time and a sentence"),
        ("service db\nat 2 db breaks badly\nuntil 9", "line 4: 'badly' is not a valid Cause"),
        ("service db; colour blue\nuntil 9", "line 3: 'colour blue' says nothing about a service"),
        ("service db; interval soon\nuntil 9", "line 3"),
        ("service db; interval -1\nuntil 9", "line 3: interval: -1.0 is out of range"),
        ("service db; steps restart now\nuntil 9", "line 3: 'restart now' is no step"),
        ("service db; steps restart (loudly)\nuntil 9", "line 3: 'loudly' is not a valid Effect"),
        ("service db; needs a (or not)\nuntil 9", "line 3: 'or not)' says nothing about a dependency"),
        ("limit patience 3\nuntil 9", "line 3: 'patience' is no limit"),
        ("once upon a time\nuntil 9", "line 3: 'once upon a time' is neither fleet nor script"),
        ("service db", "must say `until`"),
        ("service db\nat 1 pg mends\nuntil 9", "line 4: there is no service 'pg'"),
        ("service db\nat 1 db breaks full, oddly\nuntil 9", "line 4: 'oddly' says nothing about a fault"),
    ],
)
def test_a_line_that_nobody_understands_is_refused_with_its_number(lines: str, problem: str) -> None:
    with pytest.raises(StoryRefused) as caught:
        parse(f"A story.\n\n{lines}\n").play()
    assert problem in str(caught.value)


def test_every_sentence_is_played_in_some_story_or_here() -> None:
    script = """Everything that can be said.

service a; has a workload; steps reconnect, restart (timeout 30, cooldown 60, settle 3, from_attempt 1)
service b; steps restart (asks), scale_up (only for full/overloaded); needs a (waits when disabled); softly needs c
service c; not enabled; priority high; backoff initial 5, cap 60; window 3 of 5
service d; only observed; no slow retry; budgets 2 per 60; flapping 9 per 60; boots 4; needs any of a, b
canary gateway
limit max_concurrent_recoveries 2
actions take 3
# a comment

show checks
at 10 a breaks unreachable, cured by restart and reconnect
at 20 a warns full
at 30 a hangs
at 40 a mends
at 50 a answers 110 over and over
at 60 a takes 0.5 to answer
at 70 a exits
at 75 a is stopped by a person
at 80 a dies in sight
at 90 a is started
at 95 a cannot be inspected
at 100 the network is cut for 5
at 110 journal fails
at 120 journal answers
at 130 suspend for 3
at 140 crash for 3
at 150 window weekly opens on everything until 400
at 160 window weekly closes on everything
at 170 pat pauses everything for 60
at 180 pat silences a, b because of noise
at 185 pat lifts pat-2
at 190 pat maintains a and b for 20
at 200 pat resumes everything
at 210 pat recovers a overriding parents, paused because I must
at 220 pat enables c
at 230 pat disables c
at 240 pat approves b
at 250 pat refuses b
at 260 pat acknowledges a
at 270 pat looks afresh at a
at 280 pat releases storm
at 290 pat reloads without d, confirmed
at 300 pat reloads with service e; needs a
at 310 pat reloads with service e; interval 7
at 320 crash for 1 without e
until 400
"""
    timeline = parse(script).play([Laws()])
    at = [line for line in script.splitlines() if line.startswith("at ")]
    for line in at:
        assert line.split(" ", 2)[2] in timeline
    assert len(stories.SENTENCES) <= len(at)
