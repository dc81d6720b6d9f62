"""What a file says under `[fleet]`, for tests to which the usual patience would be a wait."""

from __future__ import annotations

from typing import Final

EAGER: Final = """
flapping = []
budgets = []
budget_floor = 100
probation = "0s"
backoff = { initial = "100ms", cap = "100ms" }
"""
"""A fleet that is repaired at once, however often it breaks."""
