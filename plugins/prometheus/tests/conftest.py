"""What these tests share with those of the command line: a real daemon with a fleet of real programs."""

from __future__ import annotations

from tests.cli.conftest import house

__all__ = ["house"]
