"""The Hypothesis net over the shipped engine."""

from __future__ import annotations

from tests.core.nets.machine import PROFILE, Healing

TestHealing = Healing.TestCase
TestHealing.settings = PROFILE
