"""SpaceNet's allocation and reservation with connections that never move: what drop and grow are worth."""

from __future__ import annotations

from continual.learner import Setup
from continual.spacenet import SpaceNet2021


def build(setup: Setup) -> SpaceNet2021:
    """The learner for a benchmark."""
    return SpaceNet2021.for_setup(setup, drop=None, grow=None)
