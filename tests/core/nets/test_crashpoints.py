"""Every crash point of every story."""

from __future__ import annotations

import pytest
from tests.core.nets.crashpoints import STORIES, Story, points, told
from tests.core.nets.swarm import within


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_killed_at_any_point_nothing_is_forgotten_or_doubled(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    undisturbed = told(story)
    assert any(undisturbed.records)
    walked = 0
    for kill in points(story):
        with within(60.0):
            simulator = told(story, kill)
        assert simulator.crashes == 1, f"{kill} was not carried out"
        walked += 1
    with capsys.disabled():
        print(f"\n{story.name}: {walked} crash points")
    assert walked > 50
